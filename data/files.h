// Files and failure: how everything that crosses the program's edge is opened, read, written and
// given up. This header and those beside it are compiled as gnu11 and, for the CUDA trainer, as
// C++20.
//
// A file is read through `File`, which knows its path and exact size, so that every message can
// name what was found and what was expected. A file is written to a temporary name beside its own,
// synced and renamed: a reader sees the old file or the new one, never half of one. The bytes that
// pass through a `File` are hashed on their way. `fail` is the only way out on an error: it removes
// unfinished files first.
#ifndef FILES_H
#define FILES_H

#include "hash.h"
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the file formats are little-endian and are read and written as they lie in memory"
#endif

#define HEADER_INTS 256 // every header is 256 int32, as in llm.c
#define HEADER_BYTES (HEADER_INTS * sizeof(int32_t))

typedef struct {
    FILE *stream;             // NULL when closed
    size_t size;              // bytes in the file: when it was opened, or written so far
    Hash hash;                // of what was read or written so far
    char path[PATH_MAX];      // the name the user knows
    char temporary[PATH_MAX]; // where a file lies until it is written in full; "" when reading
} File;

enum { FILES_OPEN_MAX = 8 };
static File *files_open[FILES_OPEN_MAX]; // what `fail` has to close, and to remove when unfinished

// Called by `fail` when its message is out and unfinished files are gone. The default ends the
// process; MPI ends all ranks here, the fuzzer jumps back to its loop. Must not return.
static void fail_exit(void) { exit(EXIT_FAILURE); }
static void (*fail_hook)(void) = fail_exit;
static int fail_rank = -1; // stands in messages when there are several processes
static char fail_advice[4 * PATH_MAX]; // ends every message while it is not empty
static char fail_message[8 * PATH_MAX];
static int fail_quiet; // 1: the message is not printed, whoever set the hook takes it

static void files_abandon(void) {
    for (int i = 0; i < FILES_OPEN_MAX; i++) {
        if (!files_open[i]) continue;
        fclose(files_open[i]->stream);
        if (files_open[i]->temporary[0]) unlink(files_open[i]->temporary);
        files_open[i] = NULL;
    }
}

// Bytes of the UTF-8 character that begins with this one; 0 where none does.
static size_t utf8_length(unsigned char first) {
    if (first < 0x80) return 1;
    if (first < 0xC2 || first > 0xF4) return 0;
    if (first < 0xE0) return 2;
    return first < 0xF0 ? 3 : 4;
}

// The character at the beginning of `left` bytes and its length; or -1, and what is wrong with it.
static int32_t utf8_read(const char *text, size_t left, size_t *length, const char **wrong) {
    static const int32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char *s = (const unsigned char *)text;
    *length = utf8_length(s[0]);
    int32_t c = *length > 1 ? s[0] & (0x7F >> *length) : s[0];
    *wrong = "no character begins with it";
    if (!*length) return -1;
    *wrong = "its character is cut off";
    for (size_t i = 1; i < *length; i++) {
        if (i == left || (s[i] & 0xC0) != 0x80) return -1;
        c = c << 6 | (s[i] & 0x3F);
    }
    *wrong = "its character is written with more bytes than it needs";
    if (c < smallest[*length]) return -1;
    *wrong = "half of a surrogate pair is no character";
    if (c >= 0xD800 && c < 0xE000) return -1;
    *wrong = "its character is beyond U+10FFFF";
    return c < 0x110000 ? c : -1;
}

// Bytes of the character that `text` begins with, where a terminal shows it: 0 for bytes that are
// no UTF-8, for controls (U+0080 to U+009F are some too), which a terminal obeys, and for what
// breaks a line or turns its direction. A string's end cuts a character off.
static size_t text_shown(const char *text) {
    size_t length;
    const char *wrong;
    int32_t c = utf8_read(text, 4, &length, &wrong);
    if (c < 0x20 || (c >= 0x7F && c <= 0x9F)) return 0;
    if ((c >= 0x2028 && c <= 0x202E) || (c >= 0x2066 && c <= 0x2069)) return 0;
    return length;
}

// Replaces what is not shown: a message or a log line stays one line, whatever a path or an option
// holds.
static char *text_printable(char *text) {
    for (char *c = text; *c;) {
        size_t length = text_shown(c);
        if (!length) *c = '?';
        c += length ? length : 1;
    }
    return text;
}

// Prints "error: " (and the rank, among several) and the message to stderr, removes unfinished
// files and ends the program with status 1.
__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(fail_message, sizeof fail_message, format, arguments);
    va_end(arguments);
    size_t n = strlen(fail_message);
    if (fail_advice[0]) snprintf(fail_message + n, sizeof fail_message - n, "; %s", fail_advice);
    text_printable(fail_message);
    fflush(stdout);
    if (fail_rank < 0 && !fail_quiet) fprintf(stderr, "error: %s\n", fail_message);
    if (fail_rank >= 0 && !fail_quiet) {
        fprintf(stderr, "error: rank %d: %s\n", fail_rank, fail_message);
    }
    files_abandon();
    fail_hook();
    abort();
}

// Fails if anything was lost on its way to standard output.
static void stdout_flush(void) {
    if (fflush(stdout) || ferror(stdout)) fail("standard output: %s", strerror(errno));
}

// Zeroed memory on a cache-line boundary; fails with the number of bytes and what they were for.
// Large blocks ask for huge pages: a matrix product walks down rows that lie pages apart.
static void *alloc_zeroed(size_t count, size_t size, const char *what) {
    if (size && count > SIZE_MAX / 2 / size) {
        fail("%s: %zu x %zu bytes overflow the address space", what, count, size);
    }
    const size_t line = 64, huge = 2 << 20;
    size_t bytes = count * size, unit = bytes >= 4 * huge ? huge : line;
    bytes = bytes / unit * unit + unit;
    void *block = aligned_alloc(unit, bytes);
    if (!block) fail("out of memory: %.1f MiB asked for %s", (double)bytes / (1 << 20), what);
#ifdef MADV_HUGEPAGE
    // Only a hint: where it fails, the block is slower.
    if (unit == huge) madvise(block, bytes, MADV_HUGEPAGE);
#endif
    return memset(block, 0, bytes);
}

// The same, as an array of `type`: C++ wants a pointer's type said.
#define ALLOC(type, count, what) ((type *)alloc_zeroed((count), sizeof(type), (what)))

// Joins a folder and a name; fails when the result is longer than a path may be.
static void path_join(char out[PATH_MAX], const char *folder, const char *name) {
    int n = snprintf(out, PATH_MAX, "%s/%s", folder, name);
    if (n < 0 || n >= PATH_MAX) {
        fail("%s/%s: the path is longer than %d bytes", folder, name, PATH_MAX - 1);
    }
}

// A path as one word of a shell's command line, for messages that are there to be copied.
static void path_quote(char *out, size_t size, const char *path) {
    const char *plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./+-=:,@%";
    size_t n = (size_t)snprintf(out, size, "%s", path[0] == '-' ? "./" : "");
    if (strspn(path, plain) == strlen(path)) {
        snprintf(out + n, size - n, "%s", path);
        return;
    }
    out[n++] = '\'';
    for (const char *c = path; *c && n + 6 < size; c++) {
        n += (size_t)snprintf(out + n, size - n, *c == '\'' ? "'\\''" : "%c", *c);
    }
    snprintf(out + n, size - n, "'");
}

static void file_register(File *file) {
    for (int i = 0; i < FILES_OPEN_MAX; i++) {
        if (!files_open[i]) {
            files_open[i] = file;
            return;
        }
    }
    fclose(file->stream);
    fail("%s: more than %d files open at once", file->path, FILES_OPEN_MAX);
}

static void file_forget(File *file) {
    for (int i = 0; i < FILES_OPEN_MAX; i++) {
        if (files_open[i] == file) files_open[i] = NULL;
    }
}

// Opens a regular file for reading. `what` is the kind of file, for messages.
static void file_open(File *file, const char *path, const char *what) {
    memset(file, 0, sizeof *file);
    if (snprintf(file->path, sizeof file->path, "%s", path) >= (int)sizeof file->path) {
        fail("%s: path too long", what);
    }
    struct stat info; // looked at first: opening a pipe would wait for somebody to write to it
    if (stat(path, &info)) fail("%s: cannot open %s: %s", path, what, strerror(errno));
    if (!S_ISREG(info.st_mode)) fail("%s: not a regular file, expected %s", path, what);
    file->stream = fopen(path, "rb");
    if (!file->stream) fail("%s: cannot open %s: %s", path, what, strerror(errno));
    file_register(file);
    file->size = (size_t)info.st_size;
    file->hash = hash_begin();
}

static void file_read(File *file, void *out, size_t bytes) {
    if (fread(out, 1, bytes, file->stream) == bytes) {
        hash_add(&file->hash, out, bytes);
        return;
    }
    if (ferror(file->stream)) fail("%s: read error: %s", file->path, strerror(errno));
    fail("%s: ends early: it has %zu bytes, more were expected", file->path, file->size);
}

static void file_close(File *file) {
    file_forget(file);
    fclose(file->stream);
    file->stream = NULL;
}

// Reads the header and checks its magic and its version, one of two (pass the same twice for one).
static void header_read(File *file, int32_t header[HEADER_INTS], int32_t magic, int v1, int v2,
                        const char *what) {
    if (file->size < HEADER_BYTES) {
        fail("%s: %zu bytes, too short for the %zu-byte header of %s", file->path, file->size,
             HEADER_BYTES, what);
    }
    file_read(file, header, HEADER_BYTES);
    if (header[0] != magic) {
        fail("%s: not %s: magic %d, expected %d", file->path, what, header[0], magic);
    }
    if (header[1] == v1 || header[1] == v2) return;
    if (v1 == v2) fail("%s: %s of version %d, expected %d", file->path, what, header[1], v1);
    fail("%s: %s of version %d, expected %d or %d", file->path, what, header[1], v1, v2);
}

// Begins a file at a temporary name beside `path`: a new one, whatever had that name. Nothing
// exists under `path` itself before `file_commit`.
static void file_create(File *file, const char *path) {
    memset(file, 0, sizeof *file);
    if (snprintf(file->path, sizeof file->path, "%s", path) >= (int)sizeof file->path) {
        fail("%s: path too long", path);
    }
    if (snprintf(file->temporary, sizeof file->temporary, "%s.part", path) >=
        (int)sizeof file->temporary) {
        fail("%s: path too long", path);
    }
    unlink(file->temporary);
    int descriptor = open(file->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    file->stream = descriptor < 0 ? NULL : fdopen(descriptor, "wb");
    if (!file->stream) fail("%s: cannot write: %s", file->temporary, strerror(errno));
    file_register(file);
    file->hash = hash_begin();
}

static void file_write(File *file, const void *data, size_t bytes) {
    if (fwrite(data, 1, bytes, file->stream) == bytes) {
        file->size += bytes;
        hash_add(&file->hash, data, bytes);
        return;
    }
    fail("%s: cannot write %zu bytes: %s; what was there before is untouched", file->path, bytes,
         strerror(errno));
}

// Makes a rename or a removal in the folder of `path` survive a power cut.
static void folder_sync(const char *path) {
    char copy[PATH_MAX];
    snprintf(copy, sizeof copy, "%s", path);
    int folder = open(dirname(copy), O_RDONLY | O_DIRECTORY);
    if (folder < 0) return;
    // Some file systems refuse to sync a folder; the file itself is synced either way.
    fsync(folder);
    close(folder);
}

// Flushes, syncs and renames to the final name.
static void file_commit(File *file) {
    if (fflush(file->stream) || fsync(fileno(file->stream))) {
        fail("%s: cannot write: %s; what was there before is untouched", file->path,
             strerror(errno));
    }
    if (rename(file->temporary, file->path)) {
        fail("%s: cannot rename into place: %s", file->path, strerror(errno));
    }
    file->temporary[0] = 0;
    file_close(file);
    folder_sync(file->path);
}

// Creates a folder and those above it; an existing one is fine. On failure those it made are
// removed again.
static void folder_create(const char *path) {
    char partial[PATH_MAX];
    struct stat info;
    size_t made[PATH_MAX / 2];
    int count = 0;
    const char *failed = NULL;
    if (snprintf(partial, sizeof partial, "%s", path) >= (int)sizeof partial) {
        fail("%s: path too long", path);
    }
    for (size_t end = 1; !failed && end <= strlen(path); end++) {
        if (path[end] && path[end] != '/') continue;
        partial[end] = 0;
        int made_it = !mkdir(partial, 0777), error = errno;
        int is_folder = !stat(partial, &info) && S_ISDIR(info.st_mode);
        if (made_it) made[count++] = end;
        else if (error != EEXIST) failed = strerror(error);
        else if (!is_folder) failed = "it exists and is not a folder";
        if (!failed) partial[end] = path[end];
    }
    if (!failed) return;
    while (count-- > 0) {
        char folder[PATH_MAX];
        snprintf(folder, sizeof folder, "%.*s", (int)made[count], path);
        rmdir(folder);
    }
    fail("%s: cannot make this folder: %s", partial, failed);
}

// For qsort: doubles, none of them NaN.
static int compare_ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

#endif
