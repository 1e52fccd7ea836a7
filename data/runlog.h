// The run's log, OUT/main.log: one line per event, "key:value" pairs, written by both trainers
// alike.
//
//   # <option or derived fact> <value>            one per line, at the start of each run
//   s:0 tel:4.197431                              validation loss after 0 updates
//   s:0 tel[sppp]:4.201377                        the same under another pattern, one of -pe
//   g:0 new:200 prompt:6 prompt_ms:0.750 ms:0.157 p99:0.310 comm:0.057 ar:8 mean:0.163
//                                      of a sample: tokens made and in the prompt; per token made
//                                      median and 99% of ms, median of comm, all-reduces, mean ms
//     With -sd, behind `ar`: rounds:13 drafted:26 accepted:20. Rounds with drafts, these and those
//     accepted. A token takes its share of its round, and `ar` counts the all-reduces of drafts
//     and checks.
//   s:1 trl:4.200113 lr:1.000000e-03 norm:2.205633 ms:41.2 tok:18640 ar:12 mb:0.29 comm:0.8
//                                                 and kd:3.1e-02 with a teacher, pe:sppp with -pe
#ifndef RUNLOG_H
#define RUNLOG_H

#include "files.h"

typedef struct {
    FILE *stream; // NULL: no log
    char path[PATH_MAX];
} Runlog;

// One update, in the units of the log line.
typedef struct {
    int64_t update; // from 1
    double loss, rate, norm, ms;
    double tokens_per_second;
    int64_t allreduces; // activation all-reduces executed by one TP group, forward and backward
    double mib;         // their payload
    double comm_ms;     // time spent in them
    int distills;       // 1: there is a teacher, and this is
    double distance;    // the mean squared difference to its streams
    const char *pattern; // that it drew from -pe, or ""
} RunlogUpdate;

// Appends a line, in full and at once: what was logged is there however the process ends.
__attribute__((format(printf, 2, 3)))
static void runlog_line(Runlog *log, const char *format, ...) {
    if (!log->stream) return;
    va_list arguments;
    va_start(arguments, format);
    int failed = vfprintf(log->stream, format, arguments) < 0;
    va_end(arguments);
    if (failed || fputc('\n', log->stream) == EOF || fflush(log->stream)) {
        fail("%s: cannot write: %s", log->path, strerror(errno));
    }
}

// After it, what was logged is there if the machine goes down.
static void runlog_sync(Runlog *log) {
    if (log->stream && fsync(fileno(log->stream))) {
        fail("%s: cannot write: %s", log->path, strerror(errno));
    }
}

static void runlog_update_format(char *out, size_t size, const RunlogUpdate *u) {
    int n = snprintf(out, size,
                     "s:%lld trl:%.6f lr:%.6e norm:%.6f ms:%.1f tok:%.0f ar:%lld mb:%.2f comm:%.1f",
                     (long long)u->update, u->loss, u->rate, u->norm, u->ms, u->tokens_per_second,
                     (long long)u->allreduces, u->mib, u->comm_ms);
    if (u->distills) n += snprintf(out + n, size - (size_t)n, " kd:%.6e", u->distance);
    if (u->pattern[0]) snprintf(out + n, size - (size_t)n, " pe:%s", u->pattern);
}

// Drops what a run had logged after `updates`, so that a resumed run's log reads as that of a run
// never stopped.
static void runlog_cut(const char *path, int64_t updates) {
    FILE *old = fopen(path, "r");
    char *line = NULL;
    size_t room = 0;
    ssize_t length;
    File file;
    // The log is a record for people; a checkpoint without one still resumes.
    if (!old && errno == ENOENT) return;
    if (!old) fail("%s: cannot be read: %s", path, strerror(errno));
    file_create(&file, path);
    while ((length = getline(&line, &room, old)) > 0) {
        if (line[length - 1] != '\n') continue; // cut off by a crash
        int dated = !strncmp(line, "s:", 2) || !strncmp(line, "g:", 2);
        if (!dated || strtoll(line + 2, NULL, 10) <= updates) {
            file_write(&file, line, (size_t)length);
        }
    }
    if (!feof(old)) fail("%s: read error: %s; it is untouched", path, strerror(errno));
    free(line);
    fclose(old);
    file_commit(&file);
}

// Whether there is a log. Only a regular file can be one: to open a pipe is to wait for a reader.
static int runlog_exists(const char *folder) {
    char path[PATH_MAX];
    struct stat info;
    path_join(path, folder, "main.log");
    if (lstat(path, &info)) return 0;
    if (stat(path, &info) || !S_ISREG(info.st_mode)) {
        fail("%s: not a regular file, expected a run's log; remove it, or name another folder",
             path);
    }
    return 1;
}

// Opens FOLDER/main.log to append to it. A resumed run first drops the lines of updates after those
// it starts from (-1 for a start from nothing, which will write the line of update 0 again).
static void runlog_open(Runlog *log, const char *folder, int resumed, int64_t updates) {
    path_join(log->path, folder, "main.log");
    if (resumed) runlog_cut(log->path, updates);
    log->stream = fopen(log->path, "a+");
    if (!log->stream) fail("%s: cannot write: %s", log->path, strerror(errno));
}

// Whether it has a line that begins with KIND:N and REST.
static int runlog_has(const Runlog *log, const char *kind, int64_t N, const char *rest) {
    char text[64], *line = NULL;
    size_t room = 0, n = (size_t)snprintf(text, sizeof text, "%s:%lld%s", kind, (long long)N, rest);
    int found = 0;
    FILE *file = fopen(log->path, "r");
    if (!file) fail("%s: cannot be read: %s", log->path, strerror(errno));
    while (!found && getline(&line, &room, file) > 0) found = !strncmp(line, text, n);
    free(line);
    fclose(file);
    return found;
}

// Whether somebody removed the log, or the folder with it.
static int runlog_removed(const Runlog *log) {
    struct stat info;
    if (!log->stream) return 0;
    return (access(log->path, F_OK) && errno == ENOENT) ||
           (!fstat(fileno(log->stream), &info) && !info.st_nlink);
}

// Makes a removed log again, from what is still open of it. Returns 0 where another file stands in
// its place, at whose end it goes on.
static int runlog_restore(Runlog *log) {
    FILE *old = log->stream;
    char text[4096];
    ssize_t n;
    int file = open(log->path, O_RDWR | O_CREAT | O_EXCL | O_APPEND, 0666), is_new = file >= 0;
    if (!is_new && errno == EEXIST) file = open(log->path, O_RDWR | O_APPEND);
    if (file < 0) fail("%s: removed, and cannot be made again: %s", log->path, strerror(errno));
    log->stream = fdopen(file, "a+");
    if (!log->stream) fail("%s: cannot write: %s", log->path, strerror(errno));
    for (off_t at = 0; is_new && (n = pread(fileno(old), text, sizeof text, at)) > 0; at += n) {
        fwrite(text, 1, (size_t)n, log->stream); // checked when the next line is written
    }
    fclose(old);
    return is_new;
}

static void runlog_close(Runlog *log) {
    if (log->stream && fclose(log->stream)) {
        fail("%s: cannot write: %s", log->path, strerror(errno));
    }
    log->stream = NULL;
}

#endif
