// The folder of a run (-o): tried before training, and one run's at a time. The lock on
// FOLDER/run.lock is the kernel's and ends with its process, however that ends. The file stays:
// removing it could take the lock from the next one, who has it open already. In it stands who
// holds the lock.
#ifndef FOLDER_H
#define FOLDER_H

#include "files.h"
#include <signal.h>
#include <sys/file.h>
#include <time.h>

#define PROBE_NAME "probe_00000000.bin.part" // as long as any name that a run gives a file
enum { FOLDER_BYTES = PATH_MAX - 1 - sizeof PROBE_NAME }; // what is left of a path for the folder

// Makes the folder where there is none and tries a file in it. Where that fails the folder is
// not left behind.
static void folder_prepare(const char *folder) {
    char path[PATH_MAX];
    path_join(path, folder, PROBE_NAME);
    int is_new = access(folder, F_OK);
    folder_create(folder);
    int probe = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0666);
    int failed = probe < 0 || unlink(path), error = errno;
    if (probe >= 0) close(probe);
    if (!failed) return;
    if (is_new) rmdir(folder);
    fail("-o %s: no file can be made and removed in it: %s; make it writable, or name another "
         "folder", folder, strerror(error));
}

// Who holds a lock, by its file. The file is signed when all else is well: until then it may name
// the one before.
static const char *lock_holder(int lock, char out[512]) {
    char host[65], here[65] = "";
    long pid;
    ssize_t n = pread(lock, out, 511, 0);
    out[n > 0 ? n : 0] = 0;
    out[strcspn(out, "\n")] = 0;
    gethostname(here, sizeof here - 1);
    int dead = sscanf(out, "pid %ld on %64s", &pid, host) == 2 && !strcmp(host, here) &&
               kill((pid_t)pid, 0) && errno == ESRCH;
    return out[0] && !dead ? out : "a run that has just begun";
}

// Takes the lock of a folder and returns its descriptor, which stays open until the process ends;
// fails when another process holds it. Without `create` and a file: -1. A file system that has no
// locks gives one that excludes nobody.
static int lock_take(const char *folder, int create) {
    char path[PATH_MAX], holder[512];
    path_join(path, folder, "run.lock");
    int lock = open(path, O_RDWR | O_NOFOLLOW | O_CLOEXEC | (create ? O_CREAT : 0), 0666);
    if (lock < 0 && !create) return -1;
    if (lock < 0) fail("%s: cannot be opened: %s", path, strerror(errno));
    if (flock(lock, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK) {
        fail("-o %s: in use by %s; wait for its end, or name another folder", folder,
             lock_holder(lock, holder));
    }
    return lock;
}

// Whether the lock of a folder is still the file that is held.
static int lock_stands(const char *folder, int lock) {
    char path[PATH_MAX];
    struct stat there, held;
    path_join(path, folder, "run.lock");
    return !stat(path, &there) && !fstat(lock, &held) && there.st_dev == held.st_dev &&
           there.st_ino == held.st_ino;
}

// Writes who holds it: process, host, since when, and how it was started, as far as a line holds.
static void lock_sign(int lock) {
    char host[65] = "", since[40], command[256] = "";
    time_t now = time(NULL);
    int file = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t n = file < 0 ? 0 : read(file, command, sizeof command - 1);
    if (file >= 0) close(file);
    for (ssize_t i = 0; i + 1 < n; i++) command[i] = command[i] ? command[i] : ' ';
    gethostname(host, sizeof host - 1);
    strftime(since, sizeof since, "%F %T %z", localtime(&now));
    if (ftruncate(lock, 0)) return; // it only serves a message
    dprintf(lock, "pid %ld on %s since %s: %s\n", (long)getpid(), host, since,
            text_printable(command));
}

#endif
