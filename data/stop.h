// Signals that stop a run: it ends after the validation, sample and update under way, with a
// checkpoint. The handler only notes the first that came. All processes learn of it by the sums of
// an update (gpt2_gradients), since it may have reached only one of them.
#ifndef STOP_H
#define STOP_H

#include <signal.h>
#include <string.h>
#include <time.h>

static const struct { int number; const char *name; } stop_signals[] = {
    {SIGTERM, "SIGTERM"}, {SIGINT, "SIGINT"}, {SIGHUP, "SIGHUP"}, {SIGUSR1, "SIGUSR1"}};
enum { STOP_SIGNALS = sizeof stop_signals / sizeof stop_signals[0] };

static volatile sig_atomic_t stop_asked; // the signal's number, or 0
static struct timespec stop_time;        // when it came

// A second signal ends the process at once, as if it had never been caught. What comes within a
// tenth of a second is still the first: timeout(1) sends its signal to the process and to its
// group.
static void stop_handle(int number) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (!__atomic_load_n(&stop_asked, __ATOMIC_ACQUIRE)) { // other threads may be in here too
        stop_time = now;
        __atomic_store_n(&stop_asked, number, __ATOMIC_RELEASE);
        return;
    }
    double seconds = (double)(now.tv_sec - stop_time.tv_sec) +
                     1e-9 * (double)(now.tv_nsec - stop_time.tv_nsec);
    if (seconds < 0.1) return;
    signal(number, SIG_DFL);
    raise(number); // acts when the handler returns
}

// From here on the signals are caught, but for those that the process was started deaf to, as by
// nohup.
static inline void stop_catch(void) {
    struct sigaction old, caught = {};
    caught.sa_handler = stop_handle;
    caught.sa_flags = SA_RESTART;
    for (int i = 0; i < STOP_SIGNALS; i++) { // a thread handles one at a time
        sigaddset(&caught.sa_mask, stop_signals[i].number);
    }
    for (int i = 0; i < STOP_SIGNALS; i++) {
        int number = stop_signals[i].number;
        if (!sigaction(number, NULL, &old) && old.sa_handler == SIG_IGN) continue;
        sigaction(number, &caught, NULL);
    }
}

// For processes that only wait for others: the launcher sends signals to all, and their death would
// be that of the job.
static inline void stop_ignore(void) {
    for (int i = 0; i < STOP_SIGNALS; i++) signal(stop_signals[i].number, SIG_IGN);
}

static inline const char *stop_name(int number) {
    for (int i = 0; i < STOP_SIGNALS; i++) {
        if (stop_signals[i].number == number) return stop_signals[i].name;
    }
    return "a signal";
}

#endif
