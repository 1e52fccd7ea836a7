// The watch: when rank 0 waits for the others for too long, it says for what (-wd, -wk). A part of
// tp_blocks.h, where the mesh stands and watch_start.
//
// A rank that is stopped, or a link that is cut, leaves the others in a collective for ever. The
// process notes what it is at, and when a wait begins and ends. These notes are a few stores, and a
// thread of rank 0 looks at them.
#ifndef WATCH_H
#define WATCH_H

typedef struct { char host[64]; int pid; } Place;

static struct {
    uint64_t waits;      // odd while the process waits; no two waits have the same
    int which;           // the group that is waited for
    int kind;            // of the all-reduce, or TRAFFIC_KINDS: another collective
    int64_t index;       // which of its kind in its pass, from 1
    const char *stage;   // of the run, and the update it belongs to
    int64_t update;
    const Place *places; // of all processes, NULL while they are not known yet
    Mesh mesh;           // from here on set before the thread starts
    int64_t say, end;    // seconds, 0 for never
} watch = {.which = MESH_WORLD, .kind = TRAFFIC_KINDS, .stage = "start-up"};

#define NOTE(field, value) __atomic_store_n(&watch.field, (value), __ATOMIC_RELEASE)
#define NOTED(field)       __atomic_load_n(&watch.field, __ATOMIC_ACQUIRE)

// The run is now at `stage` ("update", ...) number `update`.
static inline void watch_stage(const char *stage, int64_t update) {
    NOTE(stage, stage);
    NOTE(update, update);
}

// What comes is all-reduce `index` (from 1) of this kind in its pass; TRAFFIC_KINDS: none.
static inline void watch_sum(int kind, int64_t index) {
    NOTE(kind, kind);
    NOTE(index, index);
}

// Around every wait for a group of processes. A wait that begins ends the one before.
static inline void wait_begin(int which) {
    NOTE(which, which);
    NOTE(waits, (watch.waits + 1) | 1);
}
static inline void wait_end(void) { NOTE(waits, (watch.waits + 1) & ~(uint64_t)1); }

// What became of a process of this host: NULL when it runs, or when that cannot be told.
static inline const char *process_trouble(int pid) {
    char path[64], line[512] = "";
    if (kill(pid, 0) && errno == ESRCH) return "has ended";
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *file = fopen(path, "r");
    if (!file) return NULL;
    const char *name = fgets(line, sizeof line, file) ? strrchr(line, ')') : NULL;
    fclose(file);
    char state = name && name[1] ? name[2] : 0; // "PID (NAME) STATE ..."
    if (state == 'T' || state == 't') return "is stopped";
    return state == 'Z' || state == 'X' ? "has ended" : NULL;
}

// For whom rank 0 waits: processes of this host that are stopped or have ended, whatever their
// group, since others may wait for those. Or else, in a group of two, the other one.
static inline void watch_whom(char *out, size_t size) {
    const Mesh *m = &watch.mesh;
    const Place *places = NOTED(places);
    int which = NOTED(which), others = m->world - 1;
    size_t used = 0;
    if (which == MESH_TP || which == MESH_DP) others = mesh_size(m, which) - 1;
    for (int i = 1; i < m->world && places && used < size; i++) {
        if (strcmp(places[i].host, places[0].host)) continue;
        const char *trouble = process_trouble(places[i].pid);
        if (!trouble) continue;
        used += (size_t)snprintf(out + used, size - used, "%srank %d (process %d of this host) %s",
                                 used ? ", " : "", i, places[i].pid, trouble);
    }
    if (used) return;
    int other = which == MESH_DP ? m->group : 1; // where there is only one
    if (others > 1) snprintf(out, size, "it waits for %d other ranks", others);
    else if (!places) snprintf(out, size, "it waits for rank %d", other);
    else snprintf(out, size, "it waits for rank %d on host %s", other, places[other].host);
}

// "update 12: for 60 s in all-reduce 2 of the forward pass; rank 1 (...) is stopped"
static inline void watch_describe(char *out, size_t size, int64_t seconds) {
    static const char *const sums[TRAFFIC_KINDS] = {
        "of the forward pass", "of the backward pass", "of partial gradients",
        "of the cut vocabulary"};
    static const char *const groups[] = {
        "a collective of the tensor ranks", "a collective of the replicas",
        "a collective of all processes", "the GPU's work and the sums in it"};
    int kind = NOTED(kind);
    int64_t update = NOTED(update);
    char whom[512], what[64], number[32] = "";
    watch_whom(whom, sizeof whom);
    if (update) snprintf(number, sizeof number, " %lld", (long long)update);
    if (kind == TRAFFIC_KINDS) {
        snprintf(what, sizeof what, "%s", groups[NOTED(which)]);
    } else if (kind == TRAFFIC_FORWARD || kind == TRAFFIC_BACKWARD) {
        snprintf(what, sizeof what, "all-reduce %lld %s", (long long)NOTED(index), sums[kind]);
    } else {
        snprintf(what, sizeof what, "an all-reduce %s", sums[kind]);
    }
    snprintf(out, size, "%s%s: for %lld s in %s; %s", NOTED(stage), number, (long long)seconds,
             what, whom);
}

// Seconds are counted in naps: time for which this process was stopped itself is no wait.
static inline void *watch_loop(void *nothing) {
    const int naps_per_second = 10;
    const int64_t again = 600;
    int64_t naps = 0, next = watch.say;
    uint64_t seen = 0;
    char text[1024];
    for (;;) {
        struct timespec nap = {0, 1000 * 1000 * 1000 / naps_per_second};
        nanosleep(&nap, NULL);
        uint64_t waits = NOTED(waits);
        if (waits != seen) {
            if (next > watch.say) fprintf(stderr, "waiting: it goes on\n");
            seen = waits;
            naps = 0;
            next = watch.say;
        }
        int64_t seconds = waits & 1 ? naps++ / naps_per_second : 0;
        if (watch.end && seconds >= watch.end) {
            watch_describe(text, sizeof text, seconds);
            // MPI_Abort from this thread is more than MPI_THREAD_FUNNELED allows. OpenMPI and MPICH
            // do it, and the thread that may is waiting.
            fail("%s (-wk %lld)", text, (long long)watch.end);
        }
        if (watch.say && seconds >= next) {
            watch_describe(text, sizeof text, seconds);
            fprintf(stderr, "waiting: %s\n", text_printable(text));
            next += again;
        }
    }
    return nothing;
}

#endif
