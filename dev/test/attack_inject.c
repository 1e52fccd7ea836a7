// Makes system calls fail, end short or be a program's last. dev/test/attack builds and preloads
// this library. For Linux on x86-64.
//
//   INJECT_ON=attacked         watches calls on paths that hold this word
//   INJECT="write 12 5"        the 12th of them that writes fails with errno 5; "12+": all from it
//   INJECT="write 12 short"    it writes half of its bytes; "kill": half of them, then SIGKILL
//   INJECT_LOG=FILE            appends the name of each watched call
//
// The kernel hands the calls in the table over by SIGSYS (seccomp), whichever library makes them:
// inside of libc, no symbol stands between fwrite and write. The handler makes them itself, by the
// one instruction that the filter lets through.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

typedef struct {
    const char *name;
    int number;
    int fd, path; // which arguments name the file; -1: none does
} Call;

static const Call calls[] = {
    {"read", SYS_read, 0, -1},          {"read", SYS_pread64, 0, -1},
    {"write", SYS_write, 0, -1},        {"write", SYS_pwrite64, 0, -1},
    {"fsync", SYS_fsync, 0, -1},        {"fsync", SYS_fdatasync, 0, -1},
    {"truncate", SYS_ftruncate, 0, -1}, {"close", SYS_close, 0, -1},
    {"mmap", SYS_mmap, 4, -1},          {"lock", SYS_flock, 0, -1},
    {"list", SYS_getdents64, 0, -1},    {"open", SYS_open, -1, 0},
    {"open", SYS_openat, 0, 1},         {"mkdir", SYS_mkdir, -1, 0},
    {"rename", SYS_rename, -1, 0},      {"rename", SYS_renameat, 0, 1},
    {"rename", SYS_renameat2, 0, 1},    {"unlink", SYS_unlink, -1, 0},
    {"unlink", SYS_unlinkat, 0, 1},
};
enum { CALLS = sizeof calls / sizeof *calls };

static struct {
    const char *on, *call, *what;
    long when;
    int from_then_on, log;
} inject;

// Makes a system call. The filter sees an instruction's end: call_made.
long call_make(long n, const long arguments[6]);
extern const char call_made[];
__asm__(".text\n"
        "call_make: mov %rdi, %rax\n"
        "mov %rsi, %r11\n"
        "mov 0(%r11), %rdi\n"
        "mov 8(%r11), %rsi\n"
        "mov 16(%r11), %rdx\n"
        "mov 24(%r11), %r10\n"
        "mov 32(%r11), %r8\n"
        "mov 40(%r11), %r9\n"
        "syscall\n"
        "call_made: ret\n");

static int is_watched(const Call *call, const long arguments[6]) {
    char link[32], path[4096];
    if (call->path >= 0 && strstr((const char *)arguments[call->path], inject.on)) return 1;
    if (call->fd < 0 || (int)arguments[call->fd] < 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", (int)arguments[call->fd]);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length < 0 ? 0 : length] = 0;
    return strstr(path, inject.on) != NULL;
}

static void log_put(const Call *call) {
    char line[32];
    const long arguments[6] = {inject.log, (long)line, sprintf(line, "%s\n", call->name)};
    if (inject.log >= 0) call_make(SYS_write, arguments);
}

// What the program gets in place of its call: the result, or -errno.
static long call_do(const Call *call, const long arguments[6]) {
    static long counted;
    if (!is_watched(call, arguments)) return call_make(call->number, arguments);
    log_put(call);
    if (!inject.call || strcmp(inject.call, call->name)) {
        return call_make(call->number, arguments);
    }
    long n = __atomic_add_fetch(&counted, 1, __ATOMIC_SEQ_CST);
    if (n != inject.when && !(inject.from_then_on && n > inject.when)) {
        return call_make(call->number, arguments);
    }
    long number = strtol(inject.what, NULL, 10);
    if (number) return -number;
    int moves_bytes = !strcmp(call->name, "write") || !strcmp(call->name, "read");
    int is_last = !strcmp(inject.what, "kill");
    long half[6], done = 0;
    memcpy(half, arguments, sizeof half);
    if (moves_bytes) half[2] = (arguments[2] + 1) / 2;
    if (moves_bytes || !is_last) done = call_make(call->number, half);
    if (is_last) kill(getpid(), SIGKILL);
    return done;
}

static void trapped(int signal_number, siginfo_t *info, void *context) {
    (void)signal_number;
    greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
    const long arguments[6] = {r[REG_RDI], r[REG_RSI], r[REG_RDX], r[REG_R10], r[REG_R8],
                               r[REG_R9]};
    const Call *call = calls;
    int before = errno;
    while (call->number != info->si_syscall) call++;
    r[REG_RAX] = call_do(call, arguments);
    errno = before;
}

// These replace libc's: a thread that blocks SIGSYS would die of it.
int pthread_sigmask(int how, const sigset_t *set, sigset_t *old) {
    uint64_t without = 0;
    if (set) memcpy(&without, set, sizeof without);
    without &= ~(1ull << (SIGSYS - 1));
    long failed = syscall(SYS_rt_sigprocmask, how, set ? &without : NULL, old, sizeof without);
    return failed ? errno : 0;
}
int sigprocmask(int how, const sigset_t *set, sigset_t *old) {
    return pthread_sigmask(how, set, old) ? -1 : 0;
}

__attribute__((constructor)) static void inject_begin(void) {
    static char text[256];
    inject.on = getenv("INJECT_ON");
    inject.log = -1;
    if (!inject.on) return;
    const char *log = getenv("INJECT_LOG");
    if (log) {
        int low = open(log, O_WRONLY | O_CREAT | O_APPEND, 0666);
        // The program's own files get the numbers that they would have had.
        inject.log = fcntl(low, F_DUPFD_CLOEXEC, 200);
        close(low);
    }
    snprintf(text, sizeof text, "%s", getenv("INJECT") ? getenv("INJECT") : "");
    inject.call = strtok(text, " ");
    const char *when = strtok(NULL, " ");
    inject.what = strtok(NULL, " ");
    if (!inject.what) inject.call = NULL;
    inject.when = inject.what ? strtol(when, NULL, 10) : 0;
    inject.from_then_on = inject.what && strchr(when, '+');

    struct sigaction action = {.sa_sigaction = trapped, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSYS, &action, NULL);
    const uintptr_t made = (uintptr_t)call_made;
    struct sock_filter filter[CALLS + 7];
    struct sock_filter *f = filter;
    const uint32_t ip = offsetof(struct seccomp_data, instruction_pointer);
    *f++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, ip);
    *f++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)made, 0, 2);
    *f++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, ip + 4);
    *f++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(made >> 32),
                                        CALLS + 1, 0);
    *f++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
                                        offsetof(struct seccomp_data, nr));
    for (int i = 0; i < CALLS; i++) {
        *f++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)calls[i].number,
                                            (uint8_t)(CALLS - i), 0);
    }
    *f++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    *f++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP);
    struct sock_fprog program = {(unsigned short)(f - filter), filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) {
        dprintf(2, "attack_inject: no seccomp here\n");
        _exit(99);
    }
}
