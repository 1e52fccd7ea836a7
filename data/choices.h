// Choices between ways to compute the same, made by their times. Where times are close together,
// now one wins and now another, and with it the last bits of a result. So what was chosen once is
// kept in a file beside the program, PROGRAM.choices, and holds for all later runs. A line is
// "key: choice", the choice in hexadecimal digits.
#ifndef CHOICES_H
#define CHOICES_H

#include "files.h"
#include <sys/file.h>

enum { CHOICE_KEY = 512, CHOICE_BYTES = 64 }; // at most

static void choices_path(char path[PATH_MAX]) {
    char program[PATH_MAX - 16];
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    if (n < 0) fail("/proc/self/exe: %s", strerror(errno));
    program[n] = 0;
    char *rebuilt = n > 10 ? program + n - 10 : program; // while it runs
    if (!strcmp(rebuilt, " (deleted)")) *rebuilt = 0;
    snprintf(path, PATH_MAX, "%s.choices", program);
}

// Waits for other processes to close it. NULL where it cannot be had; errno says why.
static FILE *choices_open(const char *mode) {
    char path[PATH_MAX];
    choices_path(path);
    FILE *file = fopen(path, mode);
    if (file) flock(fileno(file), LOCK_EX);
    return file;
}

static inline int choices_can_be_kept(void) {
    FILE *file = choices_open("a");
    if (file) fclose(file);
    return file != NULL;
}

// Fails, naming the option that asks for choices, where none can be kept.
static inline void choices_check(const char *option) {
    char path[PATH_MAX];
    if (choices_can_be_kept()) return;
    int why = errno;
    choices_path(path);
    fail("%s keeps its choices in %s: %s", option, path, strerror(why));
}

static int choice_read(FILE *file, const char *key, void *choice, size_t bytes) {
    char line[CHOICE_KEY + 2 * CHOICE_BYTES + 4];
    size_t n = strlen(key);
    while (fgets(line, sizeof line, file)) {
        const char *digits = line + n + 2;
        if (strncmp(line, key, n) || strncmp(line + n, ": ", 2)) continue;
        if (strspn(digits, "0123456789abcdef") != 2 * bytes) continue;
        for (size_t i = 0; i < bytes; i++) {
            sscanf(digits + 2 * i, "%2hhx", (unsigned char *)choice + i);
        }
        return 1;
    }
    return 0;
}

// Returns 0 where none is kept for this key.
static inline int choice_find(const char *key, void *choice, size_t bytes) {
    FILE *file = choices_open("r");
    if (!file) return 0;
    int found = choice_read(file, key, choice, bytes);
    fclose(file);
    return found;
}

// Keeps a choice. Where another process has kept one of this key first, it becomes that.
static inline void choice_keep(const char *key, void *choice, size_t bytes) {
    char path[PATH_MAX];
    FILE *file = choices_open("a+");
    int kept = file && choice_read(file, key, choice, bytes);
    if (file && !kept) {
        fprintf(file, "%s: ", key);
        for (size_t i = 0; i < bytes; i++) fprintf(file, "%02x", ((unsigned char *)choice)[i]);
        fprintf(file, "\n");
    }
    choices_path(path);
    if (!file || fflush(file) || ferror(file)) fail("%s: %s", path, strerror(errno));
    fclose(file);
}
#endif
