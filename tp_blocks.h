// What both trainers must agree on, and nothing that computes an activation: model shape, parameter
// table and shards, block patterns and the plan, processes and their mesh, random numbers, data
// order, network model, learning rate. Host code only, in the C that is C++20 too.
//
// The words used everywhere:
//   B sequences per micro-batch    T tokens per sequence      C channels
//   NH heads                       L blocks ("layers")        V vocabulary size
//   Vp V padded to a multiple of 128
//   R size of tensor parallelism (TP): one model is cut over R tensor ranks
//   F of these run in one process ("folded")    DP data-parallel replicas of the model
//
// A block of GPT-2 is u = x + A(x) + bo, x' = u + M(u) + b2, where A is LayerNorm and attention, M
// LayerNorm and MLP. Rank i of R has NH/R heads and 4C/R hidden units, with which it computes
// partial outputs A_i and M_i. Summed over the ranks these are A and M. Such a sum is an all-reduce
// of B T C values, a merge. A block's letter says where merges stand:
//
//   t  Megatron-LM (arXiv 1909.08053): two merges, plain GPT-2
//        u = x + sum_i A_i(x) + bo                     x' = u + sum_i M_i(u) + b2
//   s  SPD, sync-point drop (arXiv 2502.20727): one merge
//        u_i = x + A_i(x) + bo                         x' = x + sum_i (A_i(x) + M_i(u_i)) + bo + b2
//   p  Parallel: one merge for a run of blocks, in which rank i has a stream h_i of its own
//        u_i = h_i + A_i(h_i) + bo                     h_i' = u_i + M_i(u_i) + b2
//      The run's end is made of them by the merge rule (`-pm`), from x at its start:
//        sum      x + sum_i of all partial outputs of the run + its biases
//        mean     mean of h_i before the last block + sum_i of its partial outputs + its biases
//        streams  sum of h_i
//   l  Ladder residual (arXiv 2501.06589): two merges, each going on while the next sub-block runs
//        X[j+1] = X[j] + sum_i o[j]_i + b[j]. Sub-block j of the run reads X[j-1] (X[0] for j = 0);
//        o[j]_i is what rank i makes of it, A_i or M_i, and b[j] its bias, bo or b2
//   d  Delayed, by one: as l, and a rank has its own newest output at once
//        sub-block j of rank i reads X[j-1] + o[j-1]_i + b[j-1] (X[0] for j = 0)
//
// With R = 1 t, s, p and d are plain GPT-2, and l is not. With more, s, p and d are another
// function for each R, so R and the rule belong to the model.
#ifndef TP_BLOCKS_H
#define TP_BLOCKS_H

#include "data/files.h"
#include "data/stop.h"
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
#include <pthread.h>
#include <signal.h>
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
#define PATTERN_LETTERS "tspld." // a letter for each block; . closes a run of p
enum { PATTERN_MAX = 240, L_MAX = 1024, VP_MULTIPLE = 128 };
enum { UPDATES_MAX = 99999999 }; // what 8 digits hold

typedef struct {
    int maxT, V, L, NH, C, Vp;     // in the order of the model file's header
    int R;                         // belongs to the model, whose function depends on it (s, p, d)
    int rule;                      // what a run of p blocks is merged to
    char pattern[PATTERN_MAX + 1]; // of PATTERN_LETTERS, repeated to fill L blocks
    char patterns[PATTERN_MAX + 1]; // that updates draw theirs from, "t,sppp,p"; "" = `pattern`
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

// Every rank has as many heads as the others.
static void heads_check(const GPT2Config *c) {
    char divisors[256] = "";
    size_t n = 0;
    if (c->NH % c->R == 0) return;
    for (int R = 1; R <= c->NH && n < sizeof divisors - 16; R++) {
        if (c->NH % R) continue;
        n += (size_t)snprintf(divisors + n, sizeof divisors - n, "%s%d", n ? ", " : "", R);
    }
    fail("-tp %d: %d heads cannot be divided over %d tensor ranks, but over %s", c->R, c->NH, c->R,
         divisors);
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

// A matrix or inner bias of sub-blocks, whose gradient a rank has when it has gone back through it.
static int is_cut_in_blocks(const ParamSpec specs[P_COUNT], int p) {
    return spec_is_cut(&specs[p]) && p != P_wte;
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
// block patterns, and the plan: the forward and the backward pass as two lists of steps
//
// A block is two sub-blocks, attention (k = 2 * block) and MLP (k = 2 * block + 1). Ranks talk in
// sums over all of them, and nowhere else. What a letter means stands in plan_segment and
// plan_hidden, which write its forward steps. The backward steps are the transpose of those:
// plan_backward derives them step by step, for every letter. Both trainers run the two lists as
// they are, `--plan` prints them, dev/net/plan adds up their time.

// A trainer that computes weight gradients while ranks talk defines this as 1.
#ifndef WEIGHTS_BESIDE_SUMS
#define WEIGHTS_BESIDE_SUMS 0
#endif

static inline int is_mlp(int k) { return k % 2; }
static inline int layer_of(int k) { return k / 2; }

// What steps read and write: tensors (B,T,C). A shared one has the same bits on all ranks and is
// stored once; of the others every rank has its own.
enum {
    V_NONE,
    V_O0, V_O1, // own: partial outputs of sub-blocks, added up
    V_G,        // shared: gradient of the newest stream that all ranks share
    V_D0, V_D1, // own: gradient of the rank's own streams, and its part of that of a shared stream
    V_P,        // own: G + D, the gradient of a partial output
    V_STREAM,   // V_STREAM + i is stream number i: shared or own, see Plan
};

enum {
    STEP_SUB,    // to (O) = or += the partial output of sub-block k, which reads the stream `from`
    STEP_SUM,    // to = scale * from + sum of parts + bias * (output biases of first .. end-1)
    STEP_BIAS,   // gradient of k's output bias = or += row sums, on rank 0 of scale * from, on the
                 // others of parts: a merge adds the bias once, not once per rank
    STEP_BACK,   // to (D) = or += the gradient of what sub-block k read, from that of its output,
                 // `from`; also the gradients of its LayerNorm and output matrix
    STEP_WEIGHT, // gradients of k's input matrix and its bias, which no other step reads
    STEP_MATCH,  // to (G) += gradient of the distance between the stream `from` and the teacher's,
                 // both with the outputs of all sub-blocks before k
};

// Which parts a sum adds up. All ranks bring theirs to a sum over ranks, and `from` too where it is
// their own; a shared `from` enters once. A sum over all ranks may begin, go on beside steps that
// leave its parts alone, and end: then it stands in the list twice. There is one at a time.
enum { SUM_OWN, SUM_WHOLE, SUM_BEGIN, SUM_END };

typedef struct {
    int kind, k;
    int to, from, parts; // V_...
    double scale;        // of `from`
    int add;             // SUB, BIAS, BACK: add to what is there
    int how;             // SUM: one of SUM_...
    int first, end;      // SUM: output biases of these sub-blocks,
    double bias;         //      so many times
} Step;

typedef struct {
    Step *at;
    int count;
} Steps;

typedef struct {
    char letters[L_MAX + 1];    // one per block
    int L, R;
    int merges;                 // sums over all ranks in the forward pass, as many in the backward
    int streams;
    char shared[4 * L_MAX + 1]; // stream i is the same on all ranks
    int reader[4 * L_MAX + 1];  // the first sub-block that reads stream i, or -1
    int reads[2 * L_MAX + 1];   // the stream that sub-block k reads; 2L is the final LayerNorm
    int written[4 * L_MAX + 1], last_read[4 * L_MAX + 1]; // by which forward steps stream i is
    int boundary[2 * L_MAX + 1]; // the stream that a sum over all ranks made of all sub-blocks
                                 // before k, or -1
    char matched[2 * L_MAX + 1]; // 1: it is held against the teacher's; see plan_distill
    int matches;                 // how many are
    Steps forward, backward;
} Plan;

static int value_is_shared(const Plan *plan, int v) {
    return v == V_G || (v >= V_STREAM && plan->shared[v - V_STREAM]);
}

static int step_is_merge(const Step *s) {
    return s->kind == STEP_SUM && (s->how == SUM_WHOLE || s->how == SUM_BEGIN);
}

// Whether v is ever written: by a step, or as what a pass starts from. Without `backward` only the
// forward pass counts.
static inline int plan_uses(const Plan *plan, int v, int backward) {
    if (v == V_STREAM || (v == V_G && backward)) return 1;
    for (int pass = 0; pass <= (backward != 0); pass++) {
        const Steps *steps = pass ? &plan->backward : &plan->forward;
        for (int i = 0; i < steps->count; i++) {
            if (steps->at[i].to == v) return 1;
        }
    }
    return 0;
}

// ---- patterns

// Lays the pattern over L blocks: a letter for each, and closes[block] = 1 where a run of equal
// letters ends after a block ("." ends a run of p, and so does the pattern's repetition unless it
// begins with p). Fails on anything that is not a pattern; `where` is what it came from.
static void pattern_lay(char letters[L_MAX + 1], char closes[L_MAX], const char *pattern, int L,
                        const char *where) {
    int count = 0, block = 0;
    for (const char *c = pattern; *c; c++) {
        if (!strchr(PATTERN_LETTERS, *c)) {
            fail("%s '%s': '%c' is not a block; expected t, s, p, l, d and . after a p", where,
                 pattern, *c);
        }
        if (*c == '.' && (c == pattern || c[-1] != 'p')) {
            fail("%s '%s': a . may only stand after a p, which it closes", where, pattern);
        }
        count += *c != '.';
    }
    if (!count) {
        fail("%s '%s': empty; expected letters t, s, p, l, d, such as t, s, sppp or pp.", where,
             pattern);
    }
    if (strlen(pattern) > PATTERN_MAX) {
        fail("%s: a pattern of %zu characters, at most %d", where, strlen(pattern), PATTERN_MAX);
    }
    if (L % count) {
        fail("%s '%s': %d letters cannot fill %d blocks; expected a divisor of %d", where, pattern,
             count, L, L);
    }
    for (const char *c = pattern; block < L; c = c[1] ? c + 1 : pattern) {
        if (*c == '.') continue;
        const char *next = c[1] ? c + 1 : pattern;
        letters[block] = *c;
        closes[block] = *c != *next || block == L - 1;
        block++;
    }
    letters[L] = 0;
}

// ---- the forward pass

static void steps_add(Steps *steps, Step step) { steps->at[steps->count++] = step; }

static int stream_add(Plan *plan, int shared) {
    plan->shared[plan->streams] = (char)shared;
    plan->reader[plan->streams] = -1;
    return V_STREAM + plan->streams++;
}

static void plan_reads(Plan *plan, int k, int stream) {
    int *reader = &plan->reader[stream - V_STREAM];
    plan->reads[k] = stream - V_STREAM;
    if (*reader < 0) *reader = k;
}

// When streams are needed in the forward pass: the first from its start, the last to its end.
static void plan_lifetimes(Plan *plan, int last) {
    for (int i = plan->forward.count - 1; i >= 0; i--) {
        const Step *s = &plan->forward.at[i];
        if (s->to >= V_STREAM) plan->written[s->to - V_STREAM] = i;
    }
    for (int i = 0; i < plan->forward.count; i++) {
        const Step *s = &plan->forward.at[i];
        if (s->to >= V_STREAM) plan->last_read[s->to - V_STREAM] = i;
        if (s->from >= V_STREAM) plan->last_read[s->from - V_STREAM] = i;
    }
    plan->last_read[last - V_STREAM] = plan->forward.count;
}

static void plan_sub(Plan *plan, int k, int stream, int to, int add) {
    Step sub = {.kind = STEP_SUB, .k = k, .to = to, .from = stream, .add = add};
    plan_reads(plan, k, stream);
    steps_add(&plan->forward, sub);
}

// Sub-blocks begin .. end-1 with one merge, at their end: t is a segment of one sub-block, s one of
// a block, p one of a run of blocks. In between, each rank goes on from its own partial outputs
// alone. x is the stream before them; returns the one after them, which all ranks share.
//
//   between          h_k(i) = x + o_begin(i) + .. + o_k-1(i) + the biases of these
//   rule sum         x + sum over ranks of all o + biases
//   rule mean        mean of h(i) before the last block + sum over ranks of its o + its biases
//   rule streams     sum over ranks of h(i) = R x + sum over ranks of all o + R biases
static int plan_segment(Plan *plan, int x, int begin, int end, int rule, int R) {
    Step sum = {.kind = STEP_SUM, .from = x, .parts = V_O0, .scale = 1, .first = begin, .bias = 1};
    int reads = x, base = rule == RULE_MEAN && end - begin > 2 ? end - 2 : begin;
    for (int k = begin; k < end; k++) {
        if (k == base) { // partial outputs are added up from here on
            sum.from = reads;
            sum.first = k;
        }
        plan_sub(plan, k, reads, V_O0, k > sum.first);
        sum.end = k + 1;
        if (sum.end == end) break;
        sum.how = SUM_OWN;
        sum.to = stream_add(plan, 0);
        steps_add(&plan->forward, sum);
        reads = sum.to;
    }
    if (base > begin) sum.scale = 1.0 / R;
    if (rule == RULE_STREAMS) {
        sum.scale = R;
        sum.bias = R;
    }
    sum.how = SUM_WHOLE;
    sum.to = stream_add(plan, 1);
    steps_add(&plan->forward, sum);
    return sum.to;
}

// Sub-blocks begin .. end-1 of a run of l or, delayed, d: the sum of one goes on while the next
// computes, which therefore reads the stream before it, in d with the rank's own part of the sum.
// X[j+1] = X[j] + sum over ranks of o[j] + b[j]. Sub-block j reads X[j-1], or X[j-1] + o[j-1]_i +
// b[j-1]; the first one X[0]. Returns the stream after them.
static int plan_hidden(Plan *plan, int x, int begin, int end, int delayed) {
    Step sum = {.kind = STEP_SUM, .scale = 1, .bias = 1};
    int reads = x;
    for (int k = begin; k < end; k++) {
        int out = (k - begin) % 2 ? V_O1 : V_O0;
        plan_sub(plan, k, reads, out, 0);
        if (k > begin) {
            sum.how = SUM_END; // of sub-block k-1
            steps_add(&plan->forward, sum);
            x = sum.to;
        }
        reads = x;
        sum.from = x;
        sum.parts = out;
        sum.first = k;
        sum.end = k + 1;
        if (delayed && k + 1 < end) {
            reads = stream_add(plan, 0);
            sum.to = reads;
            sum.how = SUM_OWN;
            steps_add(&plan->forward, sum);
        }
        sum.to = stream_add(plan, 1);
        sum.how = k + 1 < end ? SUM_BEGIN : SUM_WHOLE;
        steps_add(&plan->forward, sum);
    }
    return sum.to;
}

// ---- the backward pass

// Where the walk back through the forward steps stands.
typedef struct {
    Plan *plan;
    double *share; // how many times G stands in the gradient of each stream, beside D
    struct {
        int merged, own; // whether the gradient of these partial outputs has G in it, and D
        double bias;     // how many times the merge added the biases
    } out[2];            // of V_O0 and V_O1
    int D;               // the one that is filled now,
    int known;           // and whether anything is in it;
    int due;             // 1: its sum over ranks is to begin before the next sub-block
    int open;            // the one whose sum over ranks goes on, or V_NONE
    int owed;            // sub-block whose STEP_WEIGHT is still to come, or -1
} Transpose;

static void transpose_weight(Transpose *t) {
    Step weight = {.kind = STEP_WEIGHT, .k = t->owed};
    if (t->owed >= 0) steps_add(&t->plan->backward, weight);
    t->owed = -1;
}

// G = scale G + sum over ranks of D.
static void transpose_merge(Transpose *t, int how, int D, double scale) {
    Step sum = {.kind = STEP_SUM, .to = V_G, .from = scale != 0 ? V_G : V_NONE, .parts = D,
                .scale = scale, .how = how};
    steps_add(&t->plan->backward, sum);
}

static void transpose_finish(Transpose *t) {
    if (t->open) transpose_merge(t, SUM_END, t->open, 1);
    t->open = V_NONE;
}

// G becomes the gradient of a stream that all ranks share: all that was read from it is in D.
static void transpose_stream(Transpose *t, int stream) {
    double scale = t->share[stream - V_STREAM];
    transpose_finish(t);
    if (!t->known) return; // the last stream: G is its gradient from the start
    if (WEIGHTS_BESIDE_SUMS) transpose_merge(t, SUM_BEGIN, t->D, scale);
    transpose_weight(t);
    transpose_merge(t, WEIGHTS_BESIDE_SUMS ? SUM_END : SUM_WHOLE, t->D, scale);
    t->known = 0;
}

// G is the gradient of the stream that s writes, and of no newer one.
static void transpose_match(Transpose *t, const Step *s) {
    Step match = {.kind = STEP_MATCH, .k = s->end, .to = V_G, .from = s->to};
    if (t->plan->matched[s->end]) steps_add(&t->plan->backward, match);
}

static void transpose_sum(Transpose *t, const Step *s) {
    int out = s->parts - V_O0;
    double *of_from = &t->share[s->from - V_STREAM], of_to = t->share[s->to - V_STREAM];
    if (s->how == SUM_OWN) {
        Step sum = {.kind = STEP_SUM, .to = t->D, .from = V_G, .parts = t->known ? t->D : V_NONE,
                    .scale = of_to, .how = SUM_OWN};
        if (of_to != 0) steps_add(&t->plan->backward, sum); // rule mean: the merge reads it too
        t->known = 1;
        t->out[out].own = 1; // D stands for `from` too, which this stream went on from
        return;
    }
    if (s->how == SUM_WHOLE) transpose_stream(t, s->to);
    if (s->how == SUM_BEGIN) {
        transpose_finish(t);
        t->due = t->known;
    }
    if (step_is_merge(s)) transpose_match(t, s);
    if (s->how != SUM_BEGIN) *of_from += s->scale;
    if (s->how != SUM_END) {
        t->out[out].merged = 1;
        t->out[out].bias = s->bias;
    }
}

// The gradient of k's partial output and of its output bias go the same ways back: through the
// merge that added them up, and through the later sub-blocks of the rank. But the merge added the
// bias once (or `bias` times), not once for every rank: rank 0 counts that.
static void transpose_sub(Transpose *t, const Step *s) {
    Steps *steps = &t->plan->backward;
    int out = s->to - V_O0, merged = t->out[out].merged, own = t->out[out].own;
    int dout = merged ? V_G : t->D;
    if (merged && own) dout = V_P;
    Step both = {.kind = STEP_SUM, .to = V_P, .from = V_G, .parts = t->D, .scale = 1,
                 .how = SUM_OWN};
    Step bias = {.kind = STEP_BIAS, .k = s->k, .from = dout, .parts = own ? t->D : V_NONE,
                 .scale = merged && !own ? t->out[out].bias : 1};
    Step more = {.kind = STEP_BIAS, .k = s->k, .from = V_G, .scale = t->out[out].bias - 1,
                 .add = 1};
    if (dout == V_P) steps_add(steps, both);
    steps_add(steps, bias);
    if (dout == V_P && more.scale != 0) steps_add(steps, more);
    if (t->due) { // the sum over ranks of this D goes on beside k, which fills the other one
        transpose_merge(t, SUM_BEGIN, t->D, 1);
        t->open = t->D;
        t->D = t->D == V_D0 ? V_D1 : V_D0;
        t->known = t->due = 0;
    }
    transpose_weight(t);
    Step back = {.kind = STEP_BACK, .k = s->k, .to = t->D, .from = dout, .add = t->known};
    steps_add(steps, back);
    t->known = 1;
    t->owed = s->k;
    if (!s->add) t->out[out].merged = t->out[out].own = 0; // what came before is another sum
}

static void plan_backward(Plan *plan) {
    Transpose t = {.plan = plan, .D = V_D0, .open = V_NONE, .owed = -1};
    t.share = ALLOC(double, (size_t)plan->streams, "plan");
    for (int i = plan->forward.count - 1; i >= 0; i--) {
        const Step *s = &plan->forward.at[i];
        if (s->kind == STEP_SUB) transpose_sub(&t, s);
        else transpose_sum(&t, s);
    }
    transpose_stream(&t, V_STREAM);
    free(t.share);
}

// Makes the plan of a pattern over L blocks. Fails as pattern_lay does. plan_free gives it back.
static void plan_make(Plan *plan, const char *pattern, int L, int rule, int R, const char *where) {
    char closes[L_MAX];
    memset(plan, 0, sizeof *plan);
    pattern_lay(plan->letters, closes, pattern, L, where);
    plan->L = L;
    plan->R = R;
    plan->forward.at = ALLOC(Step, (size_t)L * 8 + 1, "plan");   // at most 4 for a sub-block
    plan->backward.at = ALLOC(Step, (size_t)L * 18 + 3, "plan"); // at most 9
    int x = stream_add(plan, 1);
    for (int block = 0, end; block < L; block = end) {
        char letter = plan->letters[block];
        int begin = 2 * block;
        for (end = block + 1; strchr("pld", letter) && !closes[end - 1];) end++;
        switch (letter) {
        case 't':
            x = plan_segment(plan, x, begin, begin + 1, RULE_SUM, R);
            x = plan_segment(plan, x, begin + 1, begin + 2, RULE_SUM, R);
            break;
        case 's': x = plan_segment(plan, x, begin, begin + 2, RULE_SUM, R); break;
        case 'p': x = plan_segment(plan, x, begin, 2 * end, rule, R); break;
        default: x = plan_hidden(plan, x, begin, 2 * end, letter == 'd');
        }
    }
    plan_reads(plan, 2 * L, x);
    for (int k = 0; k <= 2 * L; k++) plan->boundary[k] = -1;
    for (int i = 0; i < plan->forward.count; i++) {
        const Step *s = &plan->forward.at[i];
        if (!step_is_merge(s)) continue;
        plan->boundary[s->end] = s->to - V_STREAM;
        plan->merges++;
    }
    plan_lifetimes(plan, x);
    plan_backward(plan);
}

// Distillation, block to block (arXiv 2502.20727): from now on the backward list has a STEP_MATCH
// for each segment, a stream that a sum over ranks made, where the teacher has one too. Both have
// one at the end. The teacher has as many blocks.
static inline void plan_distill(Plan *plan, const Plan *teacher) {
    plan->matches = 0;
    for (int k = 0; k <= 2 * plan->L; k++) {
        plan->matched[k] = plan->boundary[k] >= 0 && teacher->boundary[k] >= 0;
        plan->matches += plan->matched[k];
    }
    plan->backward.count = 0;
    plan_backward(plan);
}

static void plan_free(Plan *plan) {
    free(plan->forward.at);
    free(plan->backward.at);
    memset(plan, 0, sizeof *plan);
}

// Whether another R or merge rule would be another function.
static int pattern_depends_on_R(const char *pattern) { return strpbrk(pattern, "spd") != NULL; }

// Plain GPT-2: the function does not depend on R, and the model file says nothing of it.
static int pattern_is_plain(const char *pattern) { return strspn(pattern, "t") == strlen(pattern); }
static int config_is_plain(const GPT2Config *c) {
    return pattern_is_plain(c->pattern) && !c->patterns[0];
}

// ---- lists of patterns, "t,sppp,p" (`-pe`). One that stands there twice is drawn twice as often.

static int list_count(const char *list) {
    int n = list[0] != 0;
    for (; *list; list++) n += *list == ',';
    return n;
}

// Pattern number i of a list.
static const char *list_at(const char *list, int i, char out[PATTERN_MAX + 1]) {
    while (i-- > 0) list += strcspn(list, ",") + 1;
    snprintf(out, PATTERN_MAX + 1, "%.*s", (int)strcspn(list, ","), list);
    return out;
}

// The number of the first that is this pattern, or -1.
static int list_find(const char *list, const char *pattern) {
    char here[PATTERN_MAX + 1];
    for (int i = 0; i < list_count(list); i++) {
        if (!strcmp(list_at(list, i, here), pattern)) return i;
    }
    return -1;
}

// Fails unless all of a list are patterns of L blocks, and a model file has room for it beside the
// model's own pattern.
static void list_check(const char *list, const char *pattern, int L, const char *where) {
    char here[PATTERN_MAX + 1], letters[L_MAX + 1], closes[L_MAX];
    if (strlen(list) + strlen(pattern) > PATTERN_MAX) {
        fail("%s: a list of %zu characters beside a pattern of %zu, at most %d together", where,
             strlen(list), strlen(pattern), PATTERN_MAX);
    }
    for (int i = 0; i < list_count(list); i++) {
        pattern_lay(letters, closes, list_at(list, i, here), L, where);
    }
}

// ---- the plan for a reader (`--plan`)

typedef struct { char text[160]; } Line;

__attribute__((format(printf, 2, 3))) static void line_add(Line *line, const char *format, ...) {
    size_t used = strlen(line->text);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line->text + used, sizeof line->text - used, format, arguments);
    va_end(arguments);
}

// "x3" or "x3(i)", where (i) says that every rank i has its own.
static void line_value(Line *line, const Plan *plan, int v) {
    static const char *const names[V_STREAM] = {"", "o", "o'", "G", "D", "D'", "P"};
    if (v >= V_STREAM) line_add(line, "x%d", v - V_STREAM);
    else line_add(line, "%s", names[v]);
    if (!value_is_shared(plan, v)) line_add(line, "(i)");
}

static void line_sum(Line *line, const Plan *plan, const Step *s) {
    const char *all = s->how == SUM_OWN ? "" : "Σ ", *plus = "";
    line_value(line, plan, s->to);
    line_add(line, " = ");
    if (s->from) {
        if (s->scale != 1) line_add(line, "%.4g ", s->scale);
        if (!value_is_shared(plan, s->from)) line_add(line, "%s", all);
        line_value(line, plan, s->from);
        plus = " + ";
    }
    if (s->parts) {
        line_add(line, "%s%s", plus, all);
        line_value(line, plan, s->parts);
    }
    if (s->end == s->first) return;
    line_add(line, " + ");
    if (s->bias != 1) line_add(line, "%.4g ", s->bias);
    if (s->end == s->first + 1) line_add(line, "b%d", s->first);
    else line_add(line, s->bias != 1 ? "(b%d..b%d)" : "b%d..b%d", s->first, s->end - 1);
}

// "o(i) += f3(x3(i))", or with prime = "'" its transpose.
static void line_call(Line *line, const Plan *plan, const Step *s, const char *prime) {
    line_value(line, plan, s->to);
    line_add(line, " %s f%d%s(", s->add ? "+=" : "=", s->k, prime);
    line_value(line, plan, s->from);
    line_add(line, ")");
}

static void step_print(const Plan *plan, const Step *s, size_t bytes) {
    static const char *const hows[] = {"", "all-reduce", "all-reduce begins",
                                       "all-reduce has ended"};
    const char *part = is_mlp(s->k) ? "MLP" : "attention";
    Line line = {}, remark = {};
    switch (s->kind) {
    case STEP_SUB:
        line_call(&line, plan, s, "");
        line_add(&remark, "%s of block %d", part, layer_of(s->k));
        break;
    case STEP_SUM:
        line_sum(&line, plan, s);
        line_add(&remark, "%s", hows[s->how]);
        if (step_is_merge(s)) line_add(&remark, ", %zu bytes", bytes);
        break;
    case STEP_BIAS:
        line_add(&line, "db%d %s ", s->k, s->add ? "+=" : "=");
        if (s->scale != 1) line_add(&line, "%.4g ", s->scale);
        line_value(&line, plan, s->from);
        if (s->parts != s->from) {
            line_add(&line, " on rank 0, ");
            if (s->parts) line_value(&line, plan, s->parts);
            else line_add(&line, "0");
            line_add(&line, " on others");
        }
        break;
    case STEP_BACK:
        line_call(&line, plan, s, "'");
        line_add(&remark, "%s of block %d, back", part, layer_of(s->k));
        break;
    case STEP_WEIGHT: line_add(&line, "dW%d", s->k); break;
    case STEP_MATCH:
        line_value(&line, plan, s->to);
        line_add(&line, " += w (");
        line_value(&line, plan, s->from);
        line_add(&line, " - y%d)", s->k);
        line_add(&remark, "distance to the teacher");
        break;
    }
    int columns = 0; // of the terminal: the bytes after a character's first are no columns
    for (const char *c = line.text; *c; c++) columns += (*c & 0xC0) != 0x80;
    printf("    %s", line.text);
    if (remark.text[0]) printf("%*s%s", columns < 40 ? 40 - columns : 1, "", remark.text);
    printf("\n");
}

// Prints both lists, for batches of `rows` tokens and activations of `size` bytes an element.
static inline void plan_print(const Plan *plan, int C, int rows, size_t size) {
    size_t bytes = (size_t)rows * (size_t)C * size;
    printf("blocks %s, R %d: %d all-reduces forward, %d backward, of %d x %d values, %zu bytes\n",
           plan->letters, plan->R, plan->merges, plan->merges, rows, C, bytes);
    if (plan->R == 1) printf("with R 1 there is nobody to talk to: none of them is executed\n");
    printf("\n");
    printf("x        a stream; x(i): rank i has its own; Σ adds up all ranks\n"
           "f, b, W  sub-block k: its partial output, output bias and input matrix\n"
           "o, o'    partial outputs, added up; o' is filled while the sum of o is on its way\n"
           "G, D, D' gradients: of the newest stream that all ranks share; of each rank's own\n"
           "P        G + D(i); f', db, dW: f backward, the gradients of b and W\n"
           "b2..b5   b2 + b3 + b4 + b5\n");
    if (plan->matches) printf("y4, w    the teacher's stream before sub-block 4; weight\n");
    printf("\n");
    printf("forward\n");
    for (int i = 0; i < plan->forward.count; i++) step_print(plan, &plan->forward.at[i], bytes);
    printf("backward, from G, the gradient of x%d\n", plan->streams - 1);
    for (int i = 0; i < plan->backward.count; i++) step_print(plan, &plan->backward.at[i], bytes);
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

// Groups: of the ranks of one model, of the same rank in all replicas; all processes, when they
// call each other, and when their GPUs do (NCCL).
enum { MESH_TP, MESH_DP, MESH_WORLD, MESH_GPUS };
static inline int mesh_size(const Mesh *mesh, int which) {
    return which == MESH_TP ? mesh->group : mesh->DP;
}

#include "data/watch.h" // MPI_WAIT tells it what is waited for

// ----------------------------------------------------------------------------
// processes: what the mesh needs of MPI, and the same for a process alone
//
// A process that was started alone does not touch MPI, so that it runs where there is none.
// Collectives here take all processes of the named group; those of one process do nothing.

typedef struct {
    const char *by; // the variable of the environment that tells
    int said;       // its value
    int count;      // of the processes, this one among them; 0: several, but nothing says how many
} Launch;

// What a launcher started, a count of 1 where there was none. mpirun may start its daemons with
// srun, so its own variables come first. SLURM_NTASKS is not looked at: a job's script has it too,
// and what that runs without srun is alone.
static Launch processes_launched(void) {
    static const char *const sizes[] = {
        "OMPI_COMM_WORLD_SIZE", // OpenMPI's mpirun
        "PMI_SIZE",             // MPICH's and Intel's mpirun, srun --mpi=pmi2
        "SLURM_STEP_NUM_TASKS", // any srun
        "PMIX_RANK",            // a launcher that only PMIx knows
    };
    const int count = sizeof sizes / sizeof *sizes;
    Launch found = {NULL, 0, 1};
    for (int i = 0; i < count && !found.by; i++) {
        const char *value = getenv(sizes[i]);
        if (!value || !*value) continue;
        found.by = sizes[i];
        found.said = (int)strtol(value, NULL, 10);
        found.count = i < count - 1 ? found.said : 0;
    }
    return found;
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

// The same for a call that waits for other processes, of group `which`.
#define MPI_WAIT(which, call) \
    do {                      \
        wait_begin(which);    \
        MPI_CHECK(call);      \
        wait_end();           \
    } while (0)

static MPI_Comm world_comm = MPI_COMM_WORLD; // the processes that work
static int processes_joined;                 // MPI was started
static int processes_aside;                  // how many others wait for those that work

static void processes_abort(void) { MPI_Abort(MPI_COMM_WORLD, EXIT_FAILURE); }

// Joins the other processes, if there are any. From here on a failure of one ends all. An MPI that
// does not understand the launcher takes each process for the only one: each would be a run of its
// own, in the same files.
static inline void processes_begin(int *world, int *rank) {
    Launch launch = processes_launched();
    int provided;
    *world = 1;
    *rank = 0;
    if (launch.count == 1) return;
    MPI_CHECK(MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided));
    processes_joined = 1;
    MPI_CHECK(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
    MPI_CHECK(MPI_Comm_size(MPI_COMM_WORLD, world));
    MPI_CHECK(MPI_Comm_rank(MPI_COMM_WORLD, rank));
    if (launch.count ? *world != launch.count : *world <= launch.said) {
        fail("%s is %d, but MPI finds %d process%s: this program's MPI does not understand what "
             "started it; use the mpirun of that MPI, or another --mpi= of srun (srun --mpi=list), "
             "or to run alone, unset %s",
             launch.by, launch.said, *world, *world > 1 ? "es" : "", launch.by);
    }
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
    stop_ignore();
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
    if (!processes_joined) return 0;
    MPI_Comm host;
    MPI_CHECK(MPI_Comm_split_type(world_comm, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host));
    MPI_CHECK(MPI_Comm_rank(host, &rank));
    MPI_CHECK(MPI_Comm_free(&host));
    return rank;
}

// Sends `bytes` of x from rank 0 of the world to all others.
static inline void processes_broadcast(const Mesh *mesh, void *x, size_t bytes) {
    if (mesh->world == 1) return;
    MPI_WAIT(MESH_WORLD, MPI_Bcast(x, (int)bytes, MPI_BYTE, 0, world_comm));
}

// Collects `bytes` of x of each process of the world in rank 0: out (world, bytes).
static inline void processes_gather(const Mesh *mesh, const void *x, size_t bytes, void *out) {
    memcpy(out, x, bytes);
    if (mesh->world == 1) return;
    MPI_WAIT(MESH_WORLD,
             MPI_Gather(x, (int)bytes, MPI_BYTE, out, (int)bytes, MPI_BYTE, 0, world_comm));
}

// Returns when all processes of the world have called it.
static inline void processes_wait(const Mesh *mesh) {
    if (mesh->world > 1) MPI_WAIT(MESH_WORLD, MPI_Barrier(world_comm));
}

static inline void processes_end(void) {
    if (!processes_joined) return;
    watch_stage("the end", 0);
    if (processes_aside) {
        MPI_Request request;
        MPI_CHECK(MPI_Ibarrier(MPI_COMM_WORLD, &request));
        MPI_WAIT(MESH_WORLD, MPI_Wait(&request, MPI_STATUS_IGNORE));
    }
    MPI_WAIT(MESH_WORLD, MPI_Finalize());
}

// Forms the groups of a mesh. All processes take part.
static inline void mesh_connect(Mesh *mesh) {
    if (mesh->world == 1) return;
    MPI_WAIT(MESH_WORLD, MPI_Comm_split(world_comm, mesh->dp_rank, mesh->rank, &mesh->tp));
    MPI_WAIT(MESH_WORLD, MPI_Comm_split(world_comm, mesh->group_rank, mesh->rank, &mesh->dp));
}

static MPI_Comm mesh_comm(const Mesh *mesh, int which) {
    return which == MESH_TP ? mesh->tp : mesh->dp;
}
static MPI_Datatype mesh_type(size_t size) {
    return size == sizeof(float) ? MPI_FLOAT : MPI_DOUBLE;
}
static const size_t MPI_AT_ONCE = 1 << 30; // MPI counts in int

// A group of two sums so many bytes at most by one message each way: as fast as a message gets, and
// the same bits on both, since a + b = b + a. OpenMPI 4 takes a ring, which is twice the time on a
// network, from 4 to 8 and from 16 to 64 KiB; beyond, its sum is as fast. Pieces below the 4 KiB
// that it sends at once through shared memory gained 2 us there and lost up to 50 over TCP.
enum { PAIR_BYTES = 1 << 15 };

static inline void pair_sum(const Mesh *mesh, int which, void *x, size_t n, size_t size) {
    union {
        float floats[PAIR_BYTES / sizeof(float)];
        double doubles[PAIR_BYTES / sizeof(double)];
    } theirs;
    int other = 1 - (which == MESH_TP ? mesh->group_rank : mesh->dp_rank), bytes = (int)(n * size);
    MPI_WAIT(which, MPI_Sendrecv(x, bytes, MPI_BYTE, other, 0, &theirs, bytes, MPI_BYTE, other, 0,
                                 mesh_comm(mesh, which), MPI_STATUS_IGNORE));
    if (size == sizeof(float)) {
        for (size_t i = 0; i < n; i++) ((float *)x)[i] += theirs.floats[i];
    } else {
        for (size_t i = 0; i < n; i++) ((double *)x)[i] += theirs.doubles[i];
    }
}

// Sums n elements of `size` bytes (4 float, 8 double) in place over a group; every process of it
// gets the same bits. Another group may get other last bits of the same terms.
static inline void mesh_sum(const Mesh *mesh, int which, void *x, size_t n, size_t size) {
    if (mesh_size(mesh, which) == 1) return;
    if (mesh_size(mesh, which) == 2 && n * size <= PAIR_BYTES) {
        pair_sum(mesh, which, x, n, size);
        return;
    }
    for (size_t done = 0, here; done < n; done += here) {
        here = n - done < MPI_AT_ONCE ? n - done : MPI_AT_ONCE;
        MPI_WAIT(which, MPI_Allreduce(MPI_IN_PLACE, (char *)x + done * size, (int)here,
                                      mesh_type(size), MPI_SUM, mesh_comm(mesh, which)));
    }
}

// Sums that go on while the caller computes. MPI moves data only inside its calls, and
// sums_progress is such a call.
typedef struct {
    int count, which; // of one group
    MPI_Request requests[6 * L_MAX];
} PendingSums;

// As mesh_sum, but x may be neither read nor written until sums_finish.
static inline void sums_begin(PendingSums *sums, const Mesh *mesh, int which, void *x, size_t n,
                              size_t size) {
    if (mesh_size(mesh, which) == 1) return;
    if (n > INT_MAX) fail("a tensor of %zu elements is too large for one all-reduce", n);
    MPI_Request *request = &sums->requests[sums->count++];
    sums->which = which;
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
    sums->which = MESH_TP;
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
    if (!sums->count) return;
    MPI_WAIT(sums->which, MPI_Waitall(sums->count, sums->requests, MPI_STATUSES_IGNORE));
    sums->count = 0;
}

// The largest of each of n elements over the TP group, in place.
static inline void mesh_max(const Mesh *mesh, void *x, size_t n, size_t size) {
    if (mesh->group == 1) return;
    MPI_WAIT(MESH_TP,
             MPI_Allreduce(MPI_IN_PLACE, x, (int)n, mesh_type(size), MPI_MAX, mesh->tp));
}

// Sends `bytes` of x from one process of a group to all others of it.
static inline void mesh_broadcast(const Mesh *mesh, int which, int owner, void *x, size_t bytes) {
    if (mesh_size(mesh, which) == 1) return;
    for (size_t done = 0, here; done < bytes; done += here) {
        here = bytes - done < MPI_AT_ONCE ? bytes - done : MPI_AT_ONCE;
        MPI_WAIT(which, MPI_Bcast((char *)x + done, (int)here, MPI_BYTE, owner,
                                  mesh_comm(mesh, which)));
    }
}

// Collects n doubles of each process of the TP group, in rank order: out (group,n).
static inline void mesh_gather(const Mesh *mesh, const double *x, int n, double *out) {
    memcpy(out, x, (size_t)n * sizeof(double));
    if (mesh->group == 1) return;
    MPI_WAIT(MESH_TP, MPI_Allgather(x, n, MPI_DOUBLE, out, n, MPI_DOUBLE, mesh->tp));
}

// Puts the pieces of a buffer together in the first process of the TP group: each brings its own
// bits and zeros elsewhere. Bits are or-ed, not added, since adding would lose the sign of a zero.
static inline void mesh_join(const Mesh *mesh, float *x, size_t n) {
    if (mesh->group == 1) return;
    const void *send = mesh->group_rank ? x : MPI_IN_PLACE;
    void *receive = mesh->group_rank ? NULL : x;
    MPI_WAIT(MESH_TP, MPI_Reduce(send, receive, (int)n, MPI_UINT32_T, MPI_BOR, 0, mesh->tp));
}

#else // a process alone: every group is of one, and its collectives do nothing
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"

typedef struct { int count; } PendingSums;

static inline void processes_begin(int *world, int *rank) {
    Launch launch = processes_launched();
    *world = 1;
    *rank = 0;
    if (launch.count == 1) return;
    fail("started as one of several processes (%s is %d), but this program was built without MPI "
         "(Debian: apt-get install libopenmpi-dev openmpi-bin, then make again); to run alone, "
         "unset %s", launch.by, launch.said, launch.by);
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

// Starts the watch of a mesh: after `say` seconds in one wait rank 0 says what it waits for, and
// again every ten minutes; after `end` seconds it ends the run. 0 is never. All processes take
// part.
static inline void watch_start(const Mesh *mesh, int64_t say, int64_t end) {
    if (mesh->world == 1) return;
    watch.mesh = *mesh;
    watch.say = say;
    watch.end = end;
    if (mesh->rank == 0 && (say || end)) {
        pthread_t thread;
        sigset_t all, before; // signals are for the thread that trains
        sigfillset(&all);
        pthread_sigmask(SIG_BLOCK, &all, &before);
        int error = pthread_create(&thread, NULL, watch_loop, NULL);
        if (error) fail("no thread to watch waits (-wd, -wk): %s", strerror(error));
        pthread_detach(thread);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    Place here = {}, *places = ALLOC(Place, (size_t)mesh->world, "the places of processes");
    gethostname(here.host, sizeof here.host - 1);
    here.pid = (int)getpid();
    processes_gather(mesh, &here, sizeof here, places);
    NOTE(places, places);
}

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

// independent sequences of one seed
enum { RANDOM_WEIGHTS, RANDOM_ORDER, RANDOM_SAMPLE, RANDOM_PATTERN };

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

// The pattern that update N draws from a list: a function of (seed, N) alone, as the rows are.
static const char *pattern_draw(const char *list, uint64_t seed, int64_t N,
                                char out[PATTERN_MAX + 1]) {
    uint64_t bits = random_bits(seed, RANDOM_PATTERN, (uint64_t)N, 0);
    return list_at(list, (int)random_below(bits, (uint64_t)list_count(list)), out);
}

// ----------------------------------------------------------------------------
// e^x, of the CPU's activations and of the tokens that both trainers draw

// To 2 ulp. The C library's expf keeps compilers from vectorizing a loop; this is straight-line
// code: x = n ln2 + r with |r| <= ln2/2, a polynomial for e^r (Cephes), and n added to the
// exponent. NaN stays NaN; below -87 and above 88 the result is e^-87 and e^88.
static inline float exp_float(float x) {
    x = x > 88.0f ? 88.0f : x;
    x = x < -87.0f ? -87.0f : x;
    float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f; // 1.5 * 2^23 rounds to an integer
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float e = 1.9875691500e-4f;
    e = e * r + 1.3981999507e-3f;
    e = e * r + 8.3334519073e-3f;
    e = e * r + 4.1665795894e-2f;
    e = e * r + 1.6666665459e-1f;
    e = e * r + 5.0000001201e-1f;
    e = e * r * r + r + 1.0f;
    union { float value; uint32_t bits; } power;
    power.bits = (uint32_t)((int32_t)n + 127) << 23;
    return e * power.value;
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
    double distance;     // to the teacher, if there is one: mean squared difference of streams
    double norm;         // of the gradient, before clipping
    const char *culprit; // the first tensor whose gradient is not finite, or NULL
    int stop;            // whether any process has been asked to stop (data/stop.h)
} UpdateSums;

// What a model has memory for: forward passes; backward passes and updates too; or the keys and
// values of one sequence, of which READ_AT_ONCE tokens are read at once and SCORED_MAX scored; or
// the streams of forward passes without logits, for a student.
enum { FOR_LOSS, FOR_TRAINING, FOR_SAMPLES, FOR_TEACHING };
enum { IN_BF16 = 4 }; // or-ed to FOR_LOSS or FOR_SAMPLES: matrices held in bf16 (CPU)
enum { READ_AT_ONCE = 256, SCORED_MAX = 16 };

enum { PROCESS_WHAT = 96 }; // room for the words on what a process computes with

#endif
