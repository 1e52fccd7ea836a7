// What the CPU trainer and a CUDA trainer must agree on, and nothing that touches an activation:
// model shape, parameter table and shards, block patterns and the plan of merges, process mesh, processes (MPI), random
// numbers, data order, network model, learning rate, options. Host code only, in the C that is C++20 too: train_gpt2.c and
// the CUDA trainer include it.
//
// The words used everywhere:
//   B sequences per micro-batch    T tokens per sequence    C channels    NH heads    L blocks ("layers")
//   V vocabulary size              Vp V padded to a multiple of 128
//   R size of tensor parallelism (TP): one model is cut over R tensor ranks    F of them folded into one process
//   DP data-parallel replicas of the model
#ifndef TP_BLOCKS_H
#define TP_BLOCKS_H

#include "data/files.h"
#ifdef USE_MPI
#define OMPI_SKIP_MPICXX 1 // C++ compilers get the C interface too
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>
typedef MPI_Comm Group; // processes that sum and gather among each other
#else
typedef int Group; // nothing to be known of it
#endif
#include <limits.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

// ----------------------------------------------------------------------------
// model shape

enum { RULE_SUM, RULE_MEAN, RULE_STREAMS };
#define RULE_NAMES "sum mean streams"
enum { PATTERN_MAX = 240, L_MAX = 1024, VP_MULTIPLE = 128 };

typedef struct {
    int maxT, V, L, NH, C, Vp;     // in the order of the model file's header
    int R;                         // belongs to the model, whose function depends on it (s, p)
    int rule;                      // what a run of p blocks is merged to
    char pattern[PATTERN_MAX + 1]; // letters t s p l and '.', repeated to fill L blocks
} GPT2Config;

static int vocabulary_pad(int V) { return (V + VP_MULTIPLE - 1) / VP_MULTIPLE * VP_MULTIPLE; }

static void range_check(const char *where, const char *name, long long found, long long low,
                        long long high) {
    if (found < low || found > high) {
        fail("%s: %s is %lld, expected %lld to %lld", where, name, found, low, high);
    }
}

// Fails unless the shape is one that can be computed with; within these bounds no size overflows 63
// bits. `where` is the file or the option that the shape came from.
static void config_check(const GPT2Config *c, const char *where) {
    range_check(where, "the longest sequence (maxT)", c->maxT, 1, 1 << 20);
    range_check(where, "the vocabulary (V)", c->V, 1, 65536);
    range_check(where, "the number of blocks (L)", c->L, 1, L_MAX);
    range_check(where, "the number of heads (NH)", c->NH, 1, 4096);
    range_check(where, "the number of channels (C)", c->C, 1, 65536);
    if (c->C % c->NH) fail("%s: %d channels cannot be divided by %d heads", where, c->C, c->NH);
    if (c->Vp != vocabulary_pad(c->V)) {
        fail("%s: the vocabulary %d is padded to %d, expected %d", where, c->V, c->Vp,
             vocabulary_pad(c->V));
    }
}

// Reads "d12" (GPT-2's sizes) or "LxHxC" such as "4x4x128" into a shape of V tokens. Returns 0 if
// it is neither.
static int config_parse(GPT2Config *config, const char *text, int V, int maxT) {
    static const struct { const char *name; int L, NH, C; } gpt2_sizes[] = {
        {"d12", 12, 12, 768}, {"d24", 24, 16, 1024}, {"d36", 36, 20, 1280}, {"d48", 48, 25, 1600}};
    GPT2Config c = {};
    c.maxT = maxT;
    c.V = V;
    c.Vp = vocabulary_pad(V);
    c.R = 1;
    c.pattern[0] = 't';
    for (size_t i = 0; i < sizeof gpt2_sizes / sizeof *gpt2_sizes; i++) {
        if (!strcmp(text, gpt2_sizes[i].name)) {
            c.L = gpt2_sizes[i].L;
            c.NH = gpt2_sizes[i].NH;
            c.C = gpt2_sizes[i].C;
        }
    }
    if (!c.L) {
        int used = 0;
        int found = sscanf(text, "%9dx%9dx%9d%n", &c.L, &c.NH, &c.C, &used);
        if (strspn(text, "0123456789x") != strlen(text) || found != 3 || text[used]) return 0;
    }
    config_check(&c, "-e");
    *config = c;
    return 1;
}

// ----------------------------------------------------------------------------
// parameters: one row says all there is to know about a tensor

enum { INIT_ZERO, INIT_ONE, INIT_NORMAL, INIT_RESIDUAL }; // RESIDUAL: normal, scaled by 1/sqrt(2L)

enum {
    WHOLE,              // on every rank, and so is its whole gradient
    WHOLE_PARTIAL_GRAD, // on every rank, which see other streams: their sum is the gradient
    CUT_ROWS,           // rank i of R owns rows i*rows/R ..
    CUT_QKV,            // the same within each of the three row ranges Q, K, V
    CUT_COLUMNS,        // rank i of R owns columns i*columns/R ..
};

// The order of the rows is the order in the model file. A bias is a matrix of one column. fan-in is
// that of the matrix a tensor belongs to, for `-wi linear`; 0 where that start does not apply.
#define PARAMETERS(X)                                                                   \
    /* name     layers rows columns init           decay fan-in cut over TP ranks */    \
    X(wte,      1,     Vp,  C,      INIT_NORMAL,   1,    0,   WHOLE)                    \
    X(wpe,      1,     maxT, C,     INIT_NORMAL,   1,    0,   WHOLE)                    \
    X(ln1w,     L,     C,   1,      INIT_ONE,      0,    0,   WHOLE_PARTIAL_GRAD)       \
    X(ln1b,     L,     C,   1,      INIT_ZERO,     0,    0,   WHOLE_PARTIAL_GRAD)       \
    X(qkvw,     L,     3*C, C,      INIT_NORMAL,   1,    C,   CUT_QKV)                  \
    X(qkvb,     L,     3*C, 1,      INIT_ZERO,     0,    C,   CUT_QKV)                  \
    X(attprojw, L,     C,   C,      INIT_RESIDUAL, 1,    C,   CUT_COLUMNS)              \
    X(attprojb, L,     C,   1,      INIT_ZERO,     0,    C,   WHOLE_PARTIAL_GRAD)       \
    X(ln2w,     L,     C,   1,      INIT_ONE,      0,    0,   WHOLE_PARTIAL_GRAD)       \
    X(ln2b,     L,     C,   1,      INIT_ZERO,     0,    0,   WHOLE_PARTIAL_GRAD)       \
    X(fcw,      L,     4*C, C,      INIT_NORMAL,   1,    C,   CUT_ROWS)                 \
    X(fcb,      L,     4*C, 1,      INIT_ZERO,     0,    C,   CUT_ROWS)                 \
    X(fcprojw,  L,     C,   4*C,    INIT_RESIDUAL, 1,    4*C, CUT_COLUMNS)              \
    X(fcprojb,  L,     C,   1,      INIT_ZERO,     0,    4*C, WHOLE_PARTIAL_GRAD)       \
    X(lnfw,     1,     C,   1,      INIT_ONE,      0,    0,   WHOLE)                    \
    X(lnfb,     1,     C,   1,      INIT_ZERO,     0,    0,   WHOLE)

#define X(name, ...) P_##name,
enum { PARAMETERS(X) P_COUNT };
#undef X

typedef struct {
    const char *name;
    int layers, rows, cols; // the whole tensor: `layers` matrices (rows, cols), one after the other
    int init, decay, fan_in, cut;
} ParamSpec;

static void param_specs(ParamSpec specs[P_COUNT], const GPT2Config *config) {
    int Vp = config->Vp, maxT = config->maxT, C = config->C, L = config->L;
#define X(name, ...) {#name, __VA_ARGS__},
    const ParamSpec table[P_COUNT] = {PARAMETERS(X)};
#undef X
    memcpy(specs, table, sizeof table);
}

static size_t spec_layer_size(const ParamSpec *spec) { return (size_t)spec->rows * spec->cols; }
static size_t spec_size(const ParamSpec *spec) { return spec_layer_size(spec) * spec->layers; }

// Ranks have different parts of it, rather than all the same whole.
static int spec_is_cut(const ParamSpec *spec) {
    return spec->cut != WHOLE && spec->cut != WHOLE_PARTIAL_GRAD;
}

static size_t param_count(const ParamSpec specs[P_COUNT]) {
    size_t n = 0;
    for (int p = 0; p < P_COUNT; p++) n += spec_size(&specs[p]);
    return n;
}

// Where one part of a tensor lies inside one layer of it. Row r of the part starts at
// offset + (r / group) * jump + (r % group) * ld, and has `cols` elements.
typedef struct {
    size_t offset, ld, jump;
    int rows, cols, group;
} Shard;

// Part i of n of a tensor. A process that holds F of R ranks stores its tensors as part (first rank
// / F) of R / F of the whole, which is again a tensor of the same form; a rank folded into it is
// part f of F of that. Whole tensors are not cut. Contract: n divides NH.
static Shard shard_of(const ParamSpec *spec, int i, int n) {
    size_t rows = (size_t)spec->rows, cols = (size_t)spec->cols;
    Shard cut = {.offset = 0, .ld = cols, .jump = rows * cols, .rows = spec->rows,
                 .cols = spec->cols, .group = spec->rows};
    switch (spec->cut) {
    case CUT_ROWS:
        cut.rows = cut.group = spec->rows / n;
        cut.offset = (size_t)i * cut.rows * cols;
        return cut;
    case CUT_QKV:
        cut.rows = spec->rows / n;
        cut.group = spec->rows / 3 / n;
        cut.jump = rows / 3 * cols;
        cut.offset = (size_t)i * cut.group * cols;
        return cut;
    case CUT_COLUMNS:
        cut.cols = spec->cols / n;
        cut.offset = (size_t)i * cut.cols;
        return cut;
    default: return cut; // whole
    }
}

// With the vocabulary cut over R ranks wte is CUT_ROWS. Its rows, when R does not divide them, are
// filled up in memory; in files they are Vp as ever. What is past V takes no part in anything.
static void specs_cut_vocabulary(ParamSpec specs[P_COUNT], int R) {
    specs[P_wte].rows = (specs[P_wte].rows + R - 1) / R * R;
    specs[P_wte].cut = CUT_ROWS;
}

static size_t shard_row(const Shard *s, int r) {
    return s->offset + (size_t)(r / s->group) * s->jump + (size_t)(r % s->group) * s->ld;
}

// ----------------------------------------------------------------------------
// block patterns and the plan of merges
//
// A block is two sub-blocks, attention (even) and MLP (odd), each adding a partial output to the stream. Letters differ
// only in where ranks merge: t after both sub-blocks, s after the MLP, p after the MLP of the last block of its run.
// Between two merges lies a segment; within it every rank goes on from its own partial outputs alone.
// l (Ladder residual, arXiv 2501.06589) merges where t does, but a sub-block reads the stream as it was one merge earlier, if
// that is still in the same run of l. So a merge can go on while the next sub-block computes. The function differs from
// plain GPT-2's at every R, and does not depend on R.

typedef struct {
    int begin, end; // sub-blocks begin .. end-1; a merge stands at the end
    // What the merge adds up: the partial outputs of sub-blocks base .. end-1 of all ranks, and the stream at `base`,
    // which is the point up to which each rank's own stream is taken as it is. If base == begin, that stream is the same on all
    // ranks and counts once (rule sum, and every t and s). Otherwise ranks differ there, and each brings share times its
    // own: base = the run's last block and share 1/R is rule mean, base = end and share 1 is rule streams.
    int base;
    double share;
    int late; // 1: its one sub-block reads the stream at begin-1, not at begin (l, but for a run's first sub-block)
} Segment;

typedef struct {
    Segment segments[2 * L_MAX];
    int count;              // segments, which is merges per forward pass
    char letters[L_MAX + 1]; // one per block
} Plan;

// Fills in a segment that ends with a block of this letter.
static Segment segment_make(int begin, int end, char letter, int rule, int R) {
    Segment s = {.begin = begin, .end = end, .base = begin, .share = 1, .late = 0};
    if (letter != 'p') return s;
    if (rule == RULE_MEAN && end - 2 > begin) s.base = end - 2, s.share = 1.0 / R;
    if (rule == RULE_STREAMS) s.base = end;
    return s;
}

// Lays the pattern over L blocks. Fails on anything that is not a pattern; `where` is what it came from, "-p" or a file.
static void plan_make(Plan *plan, const char *pattern, int L, int rule, int R, const char *where) {
    int letters = 0;
    for (const char *c = pattern; *c; c++) {
        if (!strchr("tspl.", *c)) fail("%s '%s': '%c' is not a block; expected t, s, p, l and . after a p", where, pattern, *c);
        if (*c == '.' && (c == pattern || c[-1] != 'p')) {
            fail("%s '%s': a . may only stand after a p, which it closes", where, pattern);
        }
        letters += *c != '.';
    }
    if (!letters) fail("%s '%s': empty; expected letters t, s, p, l, such as t, s, sppp or pp.", where, pattern);
    if (strlen(pattern) > PATTERN_MAX) fail("%s: a pattern of %zu characters, at most %d", where, strlen(pattern), PATTERN_MAX);
    if (L % letters) fail("%s '%s': %d letters cannot fill %d blocks; expected a divisor of %d", where, pattern, letters, L, L);

    memset(plan, 0, sizeof *plan);
    int begin = 0, block = 0;
    for (const char *c = pattern; block < L; c = c[1] ? c + 1 : pattern) {
        if (*c == '.') continue;
        const char *next = c[1] ? c + 1 : pattern;
        int closes = *c != 'p' || *next != 'p' || block == L - 1; // "." and a repetition's t, s or l close a run too
        plan->letters[block] = *c;
        if (*c == 't' || *c == 'l') {
            plan->segments[plan->count] = segment_make(begin, 2 * block + 1, *c, rule, R);
            plan->segments[plan->count++].late = *c == 'l' && block && plan->letters[block - 1] == 'l';
            begin = 2 * block + 1;
        }
        if (closes) {
            plan->segments[plan->count] = segment_make(begin, 2 * block + 2, *c, rule, R);
            plan->segments[plan->count++].late = *c == 'l';
            begin = 2 * block + 2;
        }
        block++;
    }
}

// The merge at the end of segment i may go on while segment i+1 computes, which does not read its outcome; and in the
// backward pass the sum of the gradient of what segment i+1 read while segment i computes.
__attribute__((unused)) static int merge_is_hidden(const Plan *plan, int i) {
    return i + 1 < plan->count && plan->segments[i + 1].late;
}

// Whether another R or merge rule would be another function.
static int pattern_depends_on_R(const char *pattern) { return strpbrk(pattern, "sp") != NULL; }

// Plain GPT-2: the function does not depend on R, and the model file says nothing of it.
static int pattern_is_plain(const char *pattern) { return strspn(pattern, "t") == strlen(pattern); }

// ----------------------------------------------------------------------------
// process mesh: world = DP x TP, neighbours in rank order form a TP group

typedef struct {
    int world, rank;
    int R, F;              // tensor ranks, and how many of them each process runs itself
    int group, group_rank; // processes in a TP group, and which of them this is
    int DP, dp_rank;
    int vocab_parallel;    // 1: the rows of wte are cut over the tensor ranks too
    Group tp, dp;          // its TP group; the processes with the same tensor ranks in all replicas
} Mesh;

static Mesh mesh_make(int world, int rank, int R, int fold) {
    int F = world % R == 0 ? 1 : R;
    if (fold) F = fold;
    if (R % F) {
        fail("-fold %d: %d tensor ranks (-tp) cannot be run %d to a process; expected a divisor "
             "of %d",
             F, R, F, R);
    }
    int group = R / F;
    if (world % group) {
        fail("-tp %d -fold %d needs a multiple of %d processes, but there %s %d; try mpirun -n %d, "
             "or -fold %d for all tensor ranks in each process",
             R, F, group, world == 1 ? "is" : "are", world, group, R);
    }
    Mesh m = {};
    m.world = world;
    m.rank = rank;
    m.R = R;
    m.F = F;
    m.group = group;
    m.group_rank = rank % group; // its tensor ranks begin at group_rank * F
    m.DP = world / group;
    m.dp_rank = rank / group;
    return m;
}

enum { MESH_TP, MESH_DP }; // groups: of the ranks of one model, of the same rank in all replicas
static inline int mesh_size(const Mesh *mesh, int which) {
    return which == MESH_TP ? mesh->group : mesh->DP;
}

// ----------------------------------------------------------------------------
// processes: what the mesh needs of MPI, and the same for a process alone
//
// A program that mpirun did not start does not touch MPI, so that it runs where there is none.
// Collectives here take all processes of the named group; those of one process do nothing.

// How many processes the launcher of OpenMPI, or of MPICH and its kin, started; 0 when there was
// none.
static int processes_launched(void) {
    const char *size = getenv("OMPI_COMM_WORLD_SIZE");
    if (!size) size = getenv("PMI_SIZE");
    return size ? (int)strtol(size, NULL, 10) : 0;
}

#ifdef USE_MPI

#define MPI_CHECK(call)                                              \
    do {                                                             \
        int code_ = (call);                                          \
        if (code_ != MPI_SUCCESS) {                                  \
            char text_[MPI_MAX_ERROR_STRING];                        \
            int length_;                                             \
            MPI_Error_string(code_, text_, &length_);                \
            fail("%s:%d: %s: %s", __FILE__, __LINE__, #call, text_); \
        }                                                            \
    } while (0)

static MPI_Comm world_comm = MPI_COMM_WORLD; // the processes that work
static int processes_aside;                  // how many others wait for them

static void processes_abort(void) { MPI_Abort(MPI_COMM_WORLD, EXIT_FAILURE); }

// Joins the other processes, if there are any. From here on a failure of one ends all.
static inline void processes_begin(int *world, int *rank) {
    *world = 1;
    *rank = 0;
    if (!processes_launched()) return;
    int provided;
    MPI_CHECK(MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided));
    MPI_CHECK(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
    MPI_CHECK(MPI_Comm_size(MPI_COMM_WORLD, world));
    MPI_CHECK(MPI_Comm_rank(MPI_COMM_WORLD, rank));
    fail_hook = processes_abort;
    if (*world > 1) fail_rank = *rank;
}

// Leaves to work only processes with keep != 0, of which the first must be one. Their new number
// and ranks go to *world and *rank, in the old order. The others never return: they sleep until
// processes_end lets them go, and exit with status 0 and without a word. All processes take part. A
// failure of any still ends all.
static inline void processes_keep(int keep, int *world, int *rank) {
    if (!*rank && !keep) fail("the first process cannot step aside");
    if (*world == 1) return;
    int all = *world, done = 0;
    MPI_CHECK(MPI_Comm_split(MPI_COMM_WORLD, keep ? 0 : MPI_UNDEFINED, *rank, &world_comm));
    if (keep) {
        MPI_CHECK(MPI_Comm_size(world_comm, world));
        MPI_CHECK(MPI_Comm_rank(world_comm, rank));
        processes_aside = all - *world;
        fail_rank = *world > 1 ? *rank : -1;
        return;
    }
    MPI_Request request; // not a blocking barrier: MPI waits with a busy core
    MPI_CHECK(MPI_Ibarrier(MPI_COMM_WORLD, &request));
    for (;;) {
        struct timespec nap = {0, 20 * 1000 * 1000};
        MPI_CHECK(MPI_Test(&request, &done, MPI_STATUS_IGNORE));
        if (done) break;
        nanosleep(&nap, NULL);
    }
    MPI_CHECK(MPI_Finalize());
    exit(EXIT_SUCCESS);
}

// Whether no process of lower rank brings the same `bytes` of key. All working processes take part.
static inline int processes_first_with(const void *key, size_t bytes, int world, int rank) {
    int first = 1;
    if (world == 1) return 1;
    char *keys = ALLOC(char, bytes * (size_t)world, "keys");
    MPI_CHECK(MPI_Allgather(key, (int)bytes, MPI_BYTE, keys, (int)bytes, MPI_BYTE, world_comm));
    for (int i = 0; i < rank; i++) first &= memcmp(keys + i * bytes, key, bytes) != 0;
    free(keys);
    return first;
}

// This process's number among the working processes of its host.
static inline int processes_local_rank(void) {
    int rank = 0;
    if (!processes_launched()) return 0;
    MPI_Comm host;
    MPI_CHECK(MPI_Comm_split_type(world_comm, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host));
    MPI_CHECK(MPI_Comm_rank(host, &rank));
    MPI_CHECK(MPI_Comm_free(&host));
    return rank;
}

// Sends `bytes` of x from rank 0 of the world to all others.
static inline void processes_broadcast(const Mesh *mesh, void *x, size_t bytes) {
    if (mesh->world == 1) return;
    MPI_CHECK(MPI_Bcast(x, (int)bytes, MPI_BYTE, 0, world_comm));
}

// Collects `bytes` of x of each process of the world in rank 0: out (world, bytes).
static inline void processes_gather(const Mesh *mesh, const void *x, size_t bytes, void *out) {
    memcpy(out, x, bytes);
    if (mesh->world == 1) return;
    MPI_CHECK(MPI_Gather(x, (int)bytes, MPI_BYTE, out, (int)bytes, MPI_BYTE, 0, world_comm));
}

// Returns when all processes of the world have called it.
static inline void processes_wait(const Mesh *mesh) {
    if (mesh->world > 1) MPI_CHECK(MPI_Barrier(world_comm));
}

static inline void processes_end(void) {
    if (!processes_launched()) return;
    if (processes_aside) {
        MPI_Request request;
        MPI_CHECK(MPI_Ibarrier(MPI_COMM_WORLD, &request));
        MPI_CHECK(MPI_Wait(&request, MPI_STATUS_IGNORE));
    }
    MPI_CHECK(MPI_Finalize());
}

// Forms the groups of a mesh. All processes take part.
static inline void mesh_connect(Mesh *mesh) {
    if (mesh->world == 1) return;
    MPI_CHECK(MPI_Comm_split(world_comm, mesh->dp_rank, mesh->rank, &mesh->tp));
    MPI_CHECK(MPI_Comm_split(world_comm, mesh->group_rank, mesh->rank, &mesh->dp));
}

static MPI_Comm mesh_comm(const Mesh *mesh, int which) {
    return which == MESH_TP ? mesh->tp : mesh->dp;
}
static MPI_Datatype mesh_type(size_t size) {
    return size == sizeof(float) ? MPI_FLOAT : MPI_DOUBLE;
}
static const size_t MPI_AT_ONCE = 1 << 30; // MPI counts in int

// Sums n elements of `size` bytes (4 float, 8 double) in place over a group; every process gets the
// same bits.
static inline void mesh_sum(const Mesh *mesh, int which, void *x, size_t n, size_t size) {
    if (mesh_size(mesh, which) == 1) return;
    for (size_t done = 0, here; done < n; done += here) {
        here = n - done < MPI_AT_ONCE ? n - done : MPI_AT_ONCE;
        MPI_CHECK(MPI_Allreduce(MPI_IN_PLACE, (char *)x + done * size, (int)here, mesh_type(size),
                                MPI_SUM, mesh_comm(mesh, which)));
    }
}

// Sums that go on while the caller computes. MPI moves data only inside its calls, and
// sums_progress is such a call.
typedef struct {
    int count;
    MPI_Request requests[6 * L_MAX];
} PendingSums;

// As mesh_sum, but x may be neither read nor written until sums_finish.
static inline void sums_begin(PendingSums *sums, const Mesh *mesh, int which, void *x, size_t n,
                              size_t size) {
    if (mesh_size(mesh, which) == 1) return;
    if (n > INT_MAX) fail("a tensor of %zu elements is too large for one all-reduce", n);
    MPI_Request *request = &sums->requests[sums->count++];
    MPI_CHECK(MPI_Iallreduce(MPI_IN_PLACE, x, (int)n, mesh_type(size), MPI_SUM,
                             mesh_comm(mesh, which), request));
}

// For a TP group of two: each sends x and gets the other's in `other`, to be added after
// sums_finish, which gives both the same bits. OpenMPI 4's Iallreduce of two is a reduction and
// then a broadcast, twice the time on a network.
static inline void sums_exchange(PendingSums *sums, const Mesh *mesh, const void *x, void *other,
                                 size_t bytes) {
    if (bytes > INT_MAX) fail("an activation of %zu bytes is too large for one message", bytes);
    int to = 1 - mesh->group_rank;
    MPI_Request *receive = &sums->requests[sums->count++], *send = &sums->requests[sums->count++];
    MPI_CHECK(MPI_Irecv(other, (int)bytes, MPI_BYTE, to, 0, mesh->tp, receive));
    MPI_CHECK(MPI_Isend(x, (int)bytes, MPI_BYTE, to, 0, mesh->tp, send));
}

static inline void sums_progress(PendingSums *sums) {
    int done;
    if (!sums->count) return;
    MPI_CHECK(MPI_Testall(sums->count, sums->requests, &done, MPI_STATUSES_IGNORE));
}

static inline void sums_finish(PendingSums *sums) {
    if (sums->count) MPI_CHECK(MPI_Waitall(sums->count, sums->requests, MPI_STATUSES_IGNORE));
    sums->count = 0;
}

// The largest of each of n elements over the TP group, in place.
static inline void mesh_max(const Mesh *mesh, void *x, size_t n, size_t size) {
    if (mesh->group == 1) return;
    MPI_CHECK(MPI_Allreduce(MPI_IN_PLACE, x, (int)n, mesh_type(size), MPI_MAX, mesh->tp));
}

// Sends `bytes` of x from one process of a group to all others of it.
static inline void mesh_broadcast(const Mesh *mesh, int which, int owner, void *x, size_t bytes) {
    if (mesh_size(mesh, which) == 1) return;
    for (size_t done = 0, here; done < bytes; done += here) {
        here = bytes - done < MPI_AT_ONCE ? bytes - done : MPI_AT_ONCE;
        MPI_CHECK(MPI_Bcast((char *)x + done, (int)here, MPI_BYTE, owner, mesh_comm(mesh, which)));
    }
}

// Collects n doubles of each process of the TP group, in rank order: out (group,n).
static inline void mesh_gather(const Mesh *mesh, const double *x, int n, double *out) {
    memcpy(out, x, (size_t)n * sizeof(double));
    if (mesh->group == 1) return;
    MPI_CHECK(MPI_Allgather(x, n, MPI_DOUBLE, out, n, MPI_DOUBLE, mesh->tp));
}

// Puts the pieces of a buffer together in the first process of the TP group: each brings its own
// bits and zeros elsewhere. Bits are or-ed, not added, since adding would lose the sign of a zero.
static inline void mesh_join(const Mesh *mesh, float *x, size_t n) {
    if (mesh->group == 1) return;
    const void *send = mesh->group_rank ? x : MPI_IN_PLACE;
    void *receive = mesh->group_rank ? NULL : x;
    MPI_CHECK(MPI_Reduce(send, receive, (int)n, MPI_UINT32_T, MPI_BOR, 0, mesh->tp));
}

#else // a process alone: every group is of one, and its collectives do nothing
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"

typedef struct { int count; } PendingSums;

static inline void processes_begin(int *world, int *rank) {
    *world = 1;
    *rank = 0;
    if (processes_launched() <= 1) return;
    fail("started as one of %d processes, but this program was built without MPI (Debian: apt-get "
         "install libopenmpi-dev openmpi-bin, then make again)", processes_launched());
}
static inline void processes_keep(int keep, int *world, int *rank) {
    if (!keep) fail("the first process cannot step aside");
}
static inline int processes_first_with(const void *key, size_t bytes, int world, int rank) {
    return 1;
}
static inline int processes_local_rank(void) { return 0; }
static inline void processes_broadcast(const Mesh *mesh, void *x, size_t bytes) {}
static inline void processes_gather(const Mesh *mesh, const void *x, size_t bytes, void *out) {
    memcpy(out, x, bytes);
}
static inline void processes_wait(const Mesh *mesh) {}
static inline void processes_end(void) {}

static inline void mesh_connect(Mesh *mesh) {}
static inline void mesh_sum(const Mesh *mesh, int which, void *x, size_t n, size_t size) {}
static inline void mesh_max(const Mesh *mesh, void *x, size_t n, size_t size) {}
static inline void mesh_broadcast(const Mesh *mesh, int which, int owner, void *x, size_t bytes) {}
static inline void mesh_gather(const Mesh *mesh, const double *x, int n, double *out) {
    memcpy(out, x, (size_t)n * sizeof(double));
}
static inline void mesh_join(const Mesh *mesh, float *x, size_t n) {}

static inline void sums_begin(PendingSums *sums, const Mesh *mesh, int which, void *x, size_t n,
                              size_t size) {}
static inline void sums_exchange(PendingSums *sums, const Mesh *mesh, const void *x, void *other,
                                 size_t bytes) {}
static inline void sums_progress(PendingSums *sums) {}
static inline void sums_finish(PendingSums *sums) {}

#pragma GCC diagnostic pop
#endif

// Fails unless `bytes` of x are what rank 0 of the world has; `what` names them.
static inline void processes_same(const Mesh *mesh, const void *x, size_t bytes, const char *what) {
    if (mesh->world == 1) return;
    char *first = ALLOC(char, bytes, what);
    memcpy(first, x, bytes);
    processes_broadcast(mesh, first, bytes);
    if (memcmp(first, x, bytes)) fail("%s differs from rank 0's", what);
    free(first);
    processes_wait(mesh); // nobody goes on, and writes, before all have agreed
}

// ----------------------------------------------------------------------------
// random numbers: a counter-based generator, so that any part of any sequence can be drawn by
// itself

enum { RANDOM_WEIGHTS, RANDOM_ORDER, RANDOM_SAMPLE }; // independent sequences of one seed

// The output function of splitmix64 (Steele, Lea, Flood 2014).
static uint64_t random_mix(uint64_t x) {
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

static uint64_t random_bits(uint64_t seed, uint64_t sequence, uint64_t a, uint64_t b) {
    return random_mix(random_mix(random_mix(random_mix(seed) ^ sequence) ^ a) ^ b);
}

// Goes on from `hash` over the 4-byte words of data; `bytes` is a multiple of 4.
static uint64_t words_hash(uint64_t hash, const void *data, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 4) {
        uint32_t word;
        memcpy(&word, (const char *)data + i, sizeof word);
        hash = random_mix(hash ^ word);
    }
    return hash;
}

static double random_uniform(uint64_t bits) { return (double)(bits >> 11) * 0x1p-53; } // [0, 1)

static double random_normal(uint64_t bits) { // Box-Muller; the two halves are independent
    double u = ((double)(bits >> 32) + 0.5) * 0x1p-32, v = (double)(bits & 0xFFFFFFFFu) * 0x1p-32;
    return sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v);
}

static uint64_t random_below(uint64_t bits, uint64_t n) {
    return (uint64_t)(((unsigned __int128)bits * n) >> 64);
}

enum { WEIGHTS_GPT2, WEIGHTS_LINEAR };
#define WEIGHTS_NAMES "gpt2 linear"

// Initial value of one element, counted from the start of the whole tensor, so that every layout
// draws the same weights.
static double param_init(const ParamSpec *spec, int p, int how, const GPT2Config *c, uint64_t seed,
                         uint64_t element) {
    // Rows past V are padding.
    if (p == P_wte && element >= (uint64_t)c->V * (uint64_t)spec->cols) return 0;
    uint64_t bits = random_bits(seed, RANDOM_WEIGHTS, (uint64_t)p, element);
    if (how == WEIGHTS_LINEAR && spec->fan_in) {
        return (2 * random_uniform(bits) - 1) / sqrt(spec->fan_in);
    }
    switch (spec->init) {
    case INIT_ONE: return 1;
    case INIT_NORMAL: return 0.02 * random_normal(bits);
    case INIT_RESIDUAL: return 0.02 / sqrt(2.0 * c->L) * random_normal(bits);
    default: return 0;
    }
}

// Where row r of update s (from 0; `rows` rows each) begins in a text of `count` tokens: it reads
// tokens start .. start+T. A function of (seed, s, r) alone, so that a step does not depend on the
// mesh. Contract: count > T.
static size_t row_start(int shuffle, uint64_t seed, uint64_t s, uint64_t r, uint64_t rows,
                        size_t count, int T) {
    if (shuffle) return random_below(random_bits(seed, RANDOM_ORDER, s, r), count - (size_t)T);
    return (s * rows + r) % ((count - 1) / (size_t)T) * (size_t)T;
}

// ----------------------------------------------------------------------------
// time, traffic, network model

static double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// Returns at `until`: sleeps for most of the time, which leaves the core to others, and spins for
// the rest.
static inline void wait_until(double until) {
    const double wake_up = 200e-6;
    double left = until - seconds_now();
    if (left > wake_up) {
        struct timespec t;
        t.tv_sec = (time_t)(left - wake_up);
        t.tv_nsec = (long)(1e9 * (left - wake_up - (double)t.tv_sec));
        nanosleep(&t, NULL);
    }
    while (seconds_now() < until) continue;
}

// All-reduces, by what they are for: merges of activations, of their gradients, partial gradients
// of replicated parameters, and embedding, head and loss of a vocabulary that is cut over ranks.
enum { TRAFFIC_FORWARD, TRAFFIC_BACKWARD, TRAFFIC_GRADIENTS, TRAFFIC_VOCABULARY, TRAFFIC_KINDS };

typedef struct {
    int64_t count;  // all-reduces executed
    size_t bytes;   // their payload, once
    double seconds; // in them and waiting for them; not what was hidden behind computation
} Traffic;

typedef struct {
    double latency_us; // per hop
    double gbits;      // per link, Gbit/s; 0: not a limit
} Network;

// Seconds that a ring all-reduce of n bytes over R ranks takes: 2(R-1) hops, each moving n/R bytes.
static double network_seconds(const Network *net, int R, size_t bytes) {
    double us = 2.0 * (R - 1) * net->latency_us;
    if (net->gbits > 0) us += 2.0 * (R - 1) / R * 8.0 * (double)bytes / (net->gbits * 1e3);
    return us * 1e-6;
}

// ----------------------------------------------------------------------------
// learning rate

enum { SCHEDULE_COSINE, SCHEDULE_LINEAR, SCHEDULE_CONSTANT, SCHEDULE_WSD };
#define SCHEDULE_NAMES "cosine linear constant wsd"
#define WSD_DECAY 0.2 // warm-up, stable, decay: the last fifth falls by 1 - sqrt, as in llm.c

// Learning rate of update N of X (from 1): `warmup` updates up, then down to the fraction `last` of
// `peak`.
static double learning_rate(int schedule, double peak, int64_t warmup, double last, int64_t N,
                            int64_t X) {
    if (N <= warmup) return peak * (double)N / (double)warmup;
    double along = X > warmup ? (double)(N - warmup) / (double)(X - warmup) : 1, left = 1;
    switch (schedule) {
    case SCHEDULE_COSINE: left = 0.5 * (1 + cos(3.141592653589793 * along)); break;
    case SCHEDULE_LINEAR: left = 1 - along; break;
    case SCHEDULE_WSD: {
        double begin = (1 - WSD_DECAY) * (double)X;
        left = (double)N > begin ? 1 - sqrt(((double)N - begin) / ((double)X - begin)) : 1;
        break;
    }
    default: return peak;
    }
    return peak * (last + (1 - last) * left);
}

// ----------------------------------------------------------------------------
// an update: what the run and the trainer's own functions hand each other (data/run.h)

typedef struct {
    double rate, beta1, beta2, eps, decay; // decay of matrices and embeddings
    double grad_scale;                     // clipping: gradients are multiplied by this
} AdamW;

// Of one update, before it is made.
typedef struct {
    double loss;         // mean over all micro-batches of all replicas
    double norm;         // of the gradient, before clipping
    const char *culprit; // the first tensor whose gradient is not finite, or NULL
} UpdateSums;

enum { PROCESS_WHAT = 96 }; // room for the words on what a process computes with

#endif
