/*
GPT-2 on the CPU, training and generating text, with tensor parallelism (TP) that needs few
all-reduces. The numerical oracle of the project: train_gpt2.cu, the CUDA trainer, has to give the
same numbers.

A transformer block is two sub-blocks, attention and MLP. Cut over R tensor ranks, each rank
computes a partial output of every sub-block, and an all-reduce ("merge") adds them up. The block's
letter (`-p`) says when that is done, and what a sub-block reads before it is:

  t  Megatron TP    merge after attention and after the MLP     2 all-reduces per block
  s  SPD            merge after the MLP only                    1
  p  Parallel       merge after the last p of a run             1 per run
  l  Ladder         merge of each beside the next sub-block,    2 per block, hidden
                    which reads the stream without it
  d  delayed        as l, but it reads its rank's own part      2 per block, hidden

In s, p and d a rank goes on from its own partial output, in l from a stream without the newest one.
So all letters but t are other functions than GPT-2; with R = 1 only l is.

`main` is the loop over updates. What an update does around the passes here - its batches, the
learning rate, clipping - is run_update in data/run.h, which the CUDA trainer shares.

Ranks live in processes of their own under mpirun, or together in one process ("folded"), each on
views of the same tensors; what they exchange goes through `allreduce`, which counts and times it. A
simulation and a real run are the same code and, for two ranks, the same bits.

  make train_gpt2                            builds it and prepares the text when that is missing
  ./train_gpt2 -p sppp -x 500 -l 1e-3        trains the 4x4x128 model on Shakespeare's characters
  OMP_NUM_THREADS=1 ./train_gpt2 -p sppp ..  the same numbers, bit for bit
  mpirun -n 2 ./train_gpt2 -p sppp ..        the same again, each process with its half of the model
  ./train_gpt2 -e model.bin -x 0 -gp Once    no update: text that goes on from "Once"
  ./train_gpt2 --help                        every option

Shapes are written beside every tensor: B sequences, T tokens each, C channels, NH heads, HS = C/NH,
V tokens (padded to Vp), R tensor ranks, F of them in this process. f counts ranks, k sub-blocks (2
per block), p parameter tensors.
*/
#include <math.h>
#include <omp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tp_blocks.h"
#include "data/checkpoint.h"
#include "data/options.h"

// ----------------------------------------------------------------------------
// real numbers

#ifndef REAL
#define REAL float // double for gradient checks
#endif
typedef REAL real;

static inline real real_exp(real x) {
    return sizeof(real) == sizeof(double) ? (real)exp((double)x) : (real)exp_float((float)x);
}

// A logarithm of a probability, which rounding can push above 0, the more the larger its terms. NaN
// stays NaN.
static inline real not_positive(real x) { return x > 0 ? 0 : x; }

static inline real real_sqrt(real x) {
    return sizeof(real) == sizeof(double) ? (real)sqrt((double)x) : (real)sqrtf((float)x);
}

static inline real real_tanh(real x) {
    if (sizeof(real) == sizeof(double)) return (real)tanh((double)x);
    return 1 - 2 / (real_exp(2 * x) + 1);
}

// ----------------------------------------------------------------------------
// matmul: most of the time is spent here
//
// One scheme serves the three products of a linear layer, y = x Wᵀ, dx = dy W and dW = dyᵀ x.
// The output is cut into tiles of MR x NR elements, which the micro-kernel keeps in vector
// registers while it walks along K. It reads NR columns of b from a packed panel, which stays in
// the L1 cache while all rows of a block pass by, and multiplies them with MR values of a. Those
// are read in place when they run along K; a transposed a is first packed in panels of MR rows. K
// is cut in steps of KC at fixed places and never split over threads, so that each element is
// always the same sequence of operations, whichever block or thread computes it. (The scheme is
// that of Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", with the
// panel of b in L1 instead of L2. Tiles of 12x32 and 6x64, KC of 64 and 384, and packing a always
// were slower.)

// A row-major matrix cut out of a bigger one. Row i starts at
// data + (i / group) * jump + (i % group) * ld; group 0 means that the rows are not grouped. (One
// rank's rows of qkvw are three groups.)
typedef struct {
    real *data;
    size_t ld;
    int group;
    size_t jump;
    const uint16_t *bf16; // b of a product may be held in bf16: then in place of data
} View;

typedef struct {
    View out;         // (M,N)
    View a;           // (M,K), stored as (K,M) if a_transposed
    int a_transposed;
    View b;           // (K,N), stored as (N,K) if b_transposed, as it must be if in bf16
    int b_transposed;
    View bias;        // (N,1), added to every row of out; data NULL means none
    int M, N, K;      // any size, 0 included
    int accumulate;   // 0: out = a b + bias, and what out was is never read; 1: out += a b + bias
} Matmul;

#if defined(__AVX512F__)
// 16 of 32 registers accumulate: enough to hide the latency of a multiply-add.
enum { VEC_BYTES = 64, MR = 8 };
#elif defined(__AVX__)
enum { VEC_BYTES = 32, MR = 4 };
#else
enum { VEC_BYTES = 16, MR = 4 };
#endif
typedef real vec __attribute__((vector_size(VEC_BYTES)));
// A vec at any address.
typedef real loose_vec __attribute__((vector_size(VEC_BYTES), aligned(sizeof(real)), may_alias));
typedef __typeof__((vec){0} < (vec){0}) lane_index; // integers as wide as real
enum {
    LANES = VEC_BYTES / sizeof(real),
    NR = 2 * LANES,
    KC = 256,               // a panel of b is KC x NR floats or 32 KiB: L1 has room for rows of a
    MB = 512, NB = 1024,    // a block of out: its packed a and its own elements stay in L2
    A_PANEL = (KC + 8) * MR // between panels of a: at a power of two they would share cache sets
};

// As many lanes of bf16 at any address, and what becomes of them.
typedef uint16_t bf16_words
    __attribute__((vector_size(LANES * sizeof(uint16_t)), aligned(sizeof(uint16_t)), may_alias));
typedef uint32_t words_vec __attribute__((vector_size(LANES * sizeof(uint32_t))));
typedef float floats_vec __attribute__((vector_size(LANES * sizeof(float))));

// One tile of out: rows x cols elements of a full MR x NR product over `depth` values of k.
typedef struct {
    const real *a[MR]; // row i has its value for k at a[i][k * a_step]
    int a_step;
    const real *panel; // panel[k * NR + j]: element (k, j) of b
    const real *start; // NR values that the sums start from: the bias, or zeros
    real *out[MR];
    int depth, rows, cols, add;
} Tile;

static int int_min(int a, int b) { return a < b ? a : b; }

static View view_of(real *data, size_t ld) { return (View){.data = data, .ld = ld}; }

static inline size_t view_at(View v, int i) {
    if (v.group) return (size_t)(i / v.group) * v.jump + (size_t)(i % v.group) * v.ld;
    return (size_t)i * v.ld;
}

static inline real *view_row(View v, int i) { return v.data + view_at(v, i); }

// The same matrix without its first rows, of which there are whole groups.
static View view_from(View v, int rows) {
    if (v.bf16) v.bf16 += view_at(v, rows);
    else v.data += view_at(v, rows);
    return v;
}

// bf16 is the upper half of a float. Rounds to the nearest, to even between two.
static inline uint16_t bf16_from(real x) {
    union { float value; uint32_t bits; } u = {.value = (float)x};
    if (u.value != u.value) return 0x7FC0; // NaN: rounding could carry it to infinity
    return (uint16_t)((u.bits + 0x7FFF + (u.bits >> 16 & 1)) >> 16);
}

static inline vec bf16_widen(const uint16_t *x) {
    bf16_words words = *(const bf16_words *)x;
    words_vec bits = __builtin_convertvector(words, words_vec) << 16;
    return __builtin_convertvector((floats_vec)bits, vec);
}

// Packs rows k0.. and columns j0.. of b, stored as (K,N). What stands in columns past `cols` of the
// panel is not used.
static void panel_copy(View b, int k0, int depth, int j0, int cols, real *panel) {
    for (int k = 0; k < depth; k++, panel += NR) {
        const real *row = view_row(b, k0 + k) + j0;
        if (cols == NR) memcpy(panel, row, NR * sizeof(real)); // of fixed size: no call
        else memcpy(panel, row, (size_t)cols * sizeof(real));
    }
}

// Lane i of the result is lane from[i] of the 2 * LANES lanes of x followed by y.
static inline vec vec_pick(vec x, vec y, lane_index from) {
#if defined(__clang__)
    vec z = x;
    for (int i = 0; i < LANES; i++) z[i] = from[i] < LANES ? x[from[i]] : y[from[i] - LANES];
    return z;
#else
    return __builtin_shuffle(x, y, from);
#endif
}

// Transposes a block of LANES x LANES. Interleaving the first half of a block with its second half
// moves the top bit of each position to the bottom: after log2(LANES) times, rows and columns have
// changed places.
static inline void block_transpose(vec block[LANES]) {
    lane_index low, high;
    for (int i = 0; i < LANES; i++) {
        low[i] = i / 2 + i % 2 * LANES;
        high[i] = low[i] + LANES / 2;
    }
    for (int step = 1; step < LANES; step *= 2) {
        vec mixed[LANES];
        for (int i = 0; i < LANES / 2; i++) {
            mixed[2 * i] = vec_pick(block[i], block[i + LANES / 2], low);
            mixed[2 * i + 1] = vec_pick(block[i], block[i + LANES / 2], high);
        }
        memcpy(block, mixed, sizeof mixed);
    }
}

// The same panel for b stored as (N,K).
static void panel_transpose(View b, int k0, int depth, int j0, int cols, real *panel) {
    for (int j = 0; j < cols; j += LANES) {
        int count = int_min(LANES, cols - j);
        const real *rows[LANES];
        // Rows past the edge repeat the last one; the panel's columns from them are not used.
        for (int i = 0; i < LANES; i++) rows[i] = view_row(b, j0 + j + int_min(i, count - 1)) + k0;
        for (int k = 0; k < depth; k += LANES) {
            vec block[LANES];
            if (depth - k >= LANES) {
                for (int i = 0; i < LANES; i++) block[i] = *(const loose_vec *)(rows[i] + k);
            } else {
                memset(block, 0, sizeof block);
                for (int i = 0; i < count; i++) {
                    memcpy(&block[i], rows[i] + k, (size_t)(depth - k) * sizeof(real));
                }
            }
            block_transpose(block); // KC is a multiple of LANES: the panel has room for all of it
            for (int i = 0; i < LANES; i++) *(vec *)(panel + (size_t)(k + i) * NR + j) = block[i];
        }
    }
}

// Packs rows i0.. of a, stored as (K,M), in panels of MR rows: value (i, k) goes to
// A_PANEL * (i / MR) + k * MR + i % MR.
static void rows_pack(View a, int i0, int rows, int k0, int depth, real *packed) {
    for (int k = 0; k < depth; k++) {
        const real *from = view_row(a, k0 + k) + i0;
        real *to = packed + (size_t)k * MR;
        int left = rows;
        for (; left >= MR; left -= MR, from += MR, to += A_PANEL) {
            memcpy(to, from, MR * sizeof(real));
        }
        memcpy(to, from, (size_t)left * sizeof(real));
    }
}

// Widens rows j0.. and columns k0.. of b, held in bf16, to wide (rows,KC).
static View rows_widen(View b, int k0, int depth, int j0, int rows, real *wide) {
    for (int j = 0; j < rows; j++) {
        const uint16_t *from = b.bf16 + view_at(b, j0 + j) + k0;
        real *to = wide + (size_t)j * KC;
        int k = 0;
        for (; k + LANES <= depth; k += LANES) *(loose_vec *)(to + k) = bf16_widen(from + k);
        for (; k < depth; k++) to[k] = (real)float_from_bf16(from[k]);
    }
    return view_of(wide, KC);
}

// The micro-kernel.
static inline void tile_compute(const Tile *t) {
    const vec *b = (const vec *)t->panel, *start = (const vec *)t->start;
    const real *a[MR];
    vec acc[MR][2];
    for (int i = 0; i < MR; i++) {
        a[i] = t->a[i];
        acc[i][0] = start[0];
        acc[i][1] = start[1];
        __builtin_prefetch(t->out[i], 1); // out may be far away in memory: fetch it while computing
        __builtin_prefetch(t->out[i] + LANES, 1);
    }
    size_t at = 0, a_step = (size_t)t->a_step;
    #pragma GCC unroll 4
    for (int k = 0; k < t->depth; k++, b += 2, at += a_step) {
        vec b0 = b[0], b1 = b[1];
        #pragma GCC unroll 8
        for (int i = 0; i < MR; i++) {
            acc[i][0] += a[i][at] * b0;
            acc[i][1] += a[i][at] * b1;
        }
    }
    if (t->rows == MR && t->cols == NR) {
        #pragma GCC unroll 8
        for (int i = 0; i < MR; i++) {
            loose_vec *to = (loose_vec *)t->out[i];
            to[0] = t->add ? (vec)to[0] + acc[i][0] : acc[i][0];
            to[1] = t->add ? (vec)to[1] + acc[i][1] : acc[i][1];
        }
        return;
    }
    vec edge[MR][2]; // a copy, since registers cannot be indexed
    #pragma GCC unroll 8
    for (int i = 0; i < MR; i++) {
        edge[i][0] = acc[i][0];
        edge[i][1] = acc[i][1];
    }
    for (int i = 0; i < t->rows; i++) {
        const real *from = (const real *)edge[i];
        for (int j = 0; j < t->cols; j++) t->out[i][j] = t->add ? t->out[i][j] + from[j] : from[j];
    }
}

// Products of few rows, such as those of one token, are as fast as memory brings b: it is read once
// and where it lies. The functions below are inlined with M, the rows of out, as a constant, so
// that its elements stay in registers. Every element is one sum, in the same order for every M: a
// token read alone and one of several have the same bits.
enum {
    THIN_ROWS = 9, THIN_COLUMNS = 4,
    FETCH_AHEAD = 2048 // elements of b
};

static inline real vec_sum(vec x) {
    real lanes[LANES];
    memcpy(lanes, &x, sizeof lanes);
    for (int half = LANES / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    }
    return lanes[0];
}

static inline void thin_store(const Matmul *m, int i, int j, real x) {
    real *out = view_row(m->out, i) + j;
    if (m->bias.data) x += *view_row(m->bias, j);
    *out = m->accumulate ? *out + x : x;
}

// LANES values of b from element `at` on, or the first `count` of them and zeros; in bf16 if BF16.
static inline vec vec_load(View b, size_t at, int count, const int BF16) {
    uint16_t words[LANES] = {0};
    vec x = {0};
    if (BF16 && count == LANES) return bf16_widen(b.bf16 + at);
    if (count == LANES) return *(const loose_vec *)(b.data + at);
    if (BF16) memcpy(words, b.bf16 + at, (size_t)count * sizeof *words);
    else memcpy(&x, b.data + at, (size_t)count * sizeof(real));
    return BF16 ? bf16_widen(words) : x;
}

static inline void vec_fetch(View b, size_t at, const int BF16) {
    if (BF16) __builtin_prefetch(b.bf16 + at, 0, 2); // 2: into L2
    else __builtin_prefetch(b.data + at, 0, 2);
}

// A step of the dot products below: sum[i][n] += elements k .. k+count-1 of row i of a times those
// of row j + n of b.
static inline __attribute__((always_inline)) void thin_step(
    const Matmul *m, vec sum[THIN_ROWS][THIN_COLUMNS], const size_t *a, const size_t *b,
    const size_t *next, int k, int count, const int M, const int BF16, const int COLUMNS) {
    vec x[THIN_COLUMNS];
    #pragma GCC unroll 4
    for (int n = 0; n < COLUMNS; n++) {
        if (next) vec_fetch(m->b, next[n] + k, BF16);
        x[n] = vec_load(m->b, b[n] + k, count, BF16);
    }
    #pragma GCC unroll 9
    for (int i = 0; i < M; i++) {
        vec y = vec_load(m->a, a[i] + k, count, 0);
        #pragma GCC unroll 4
        for (int n = 0; n < COLUMNS; n++) sum[i][n] += y * x[n];
    }
}

// Columns j .. j+COLUMNS-1 for b stored as (N,K), in bf16 if BF16: dot products. If FETCH, rows of
// b `ahead` further down are fetched meanwhile.
static inline __attribute__((always_inline)) void thin_dots_at(const Matmul *m, int j, int ahead,
                                                               const int M, const int BF16,
                                                               const int COLUMNS, const int FETCH) {
    size_t a[THIN_ROWS], b[THIN_COLUMNS], next[THIN_COLUMNS];
    vec sum[THIN_ROWS][THIN_COLUMNS] = {0};
    int whole = m->K / LANES * LANES, left = m->K - whole;
    for (int i = 0; i < M; i++) a[i] = view_at(m->a, i);
    for (int n = 0; n < COLUMNS; n++) {
        b[n] = view_at(m->b, j + n);
        next[n] = view_at(m->b, int_min(j + n + ahead, m->N - 1));
    }
    #pragma GCC unroll 4
    for (int k = 0; k < whole; k += LANES) {
        thin_step(m, sum, a, b, FETCH ? next : NULL, k, LANES, M, BF16, COLUMNS);
    }
    if (left) thin_step(m, sum, a, b, NULL, whole, left, M, BF16, COLUMNS);
    for (int i = 0; i < M; i++) {
        for (int n = 0; n < COLUMNS; n++) thin_store(m, i, j + n, vec_sum(sum[i][n]));
    }
}

// Columns j0 .. j1-1. One row of a takes one column at a time: memory is fastest where it is read
// as one stream, which processors fetch ahead (two columns at a time had half the speed). More rows
// take several, for which a value of a is loaded once; then, and where rows of b are short and lie
// apart, as keys do, what is read next has to be fetched here.
static inline __attribute__((always_inline)) void thin_dots(const Matmul *m, int j0, int j1,
                                                            const int M, const int BF16) {
    const int COLUMNS = M == 1 ? 1 : int_min(THIN_COLUMNS, 3 * MR / M);
    int ahead = COLUMNS, j = j0;
    while (m->K && ahead * m->K < FETCH_AHEAD) ahead += COLUMNS;
    if (COLUMNS == 1 && m->K > FETCH_AHEAD / 8) {
        for (; j < j1; j++) thin_dots_at(m, j, 0, M, BF16, 1, 0);
    }
    for (; j + COLUMNS <= j1; j += COLUMNS) thin_dots_at(m, j, ahead, M, BF16, COLUMNS, 1);
    for (; j < j1; j++) thin_dots_at(m, j, 0, M, BF16, 1, 0);
}

// Columns j .. j+count-1 for b stored as (K,N): its rows are added up, SUMS vectors of columns, or
// the part of one.
static inline __attribute__((always_inline)) void thin_sums_at(const Matmul *m, int j, int count,
                                                               const int M, const int SUMS) {
    vec sum[THIN_ROWS][THIN_COLUMNS] = {0};
    for (int k = 0; k < m->K; k++) {
        vec x[THIN_COLUMNS];
        size_t b = view_at(m->b, k) + j;
        size_t next = view_at(m->b, int_min(k + FETCH_AHEAD / (SUMS * LANES), m->K - 1)) + j;
        #pragma GCC unroll 4
        for (int n = 0; n < SUMS; n++) {
            vec_fetch(m->b, next + n * LANES, 0);
            x[n] = vec_load(m->b, b + n * LANES, SUMS > 1 ? LANES : count, 0);
        }
        #pragma GCC unroll 9
        for (int i = 0; i < M; i++) {
            real y = view_row(m->a, i)[k];
            #pragma GCC unroll 4
            for (int n = 0; n < SUMS; n++) sum[i][n] += y * x[n];
        }
    }
    for (int i = 0; i < M; i++) {
        for (int n = 0; n < count; n++) thin_store(m, i, j + n, sum[i][n / LANES][n % LANES]);
    }
}

static inline __attribute__((always_inline)) void thin_sums(const Matmul *m, int j0, int j1,
                                                            const int M) {
    const int SUMS = M <= 3 ? 4 : 2, STEP = SUMS * LANES;
    int j = j0;
    for (; j + STEP <= j1; j += STEP) thin_sums_at(m, j, STEP, M, SUMS);
    for (; j < j1; j += LANES) thin_sums_at(m, j, int_min(LANES, j1 - j), M, 1);
}

static inline __attribute__((always_inline)) void thin_rows(const Matmul *m, int j0, int j1,
                                                            const int M) {
    if (m->b.bf16) thin_dots(m, j0, j1, M, 1);
    else if (m->b_transposed) thin_dots(m, j0, j1, M, 0);
    else thin_sums(m, j0, j1, M);
}

static void thin_compute(const Matmul *m, int j0, int j1) {
    _Static_assert(THIN_ROWS == 9, "the cases below");
    switch (m->M) {
    case 1: thin_rows(m, j0, j1, 1); return;
    case 2: thin_rows(m, j0, j1, 2); return;
    case 3: thin_rows(m, j0, j1, 3); return;
    case 4: thin_rows(m, j0, j1, 4); return;
    case 5: thin_rows(m, j0, j1, 5); return;
    case 6: thin_rows(m, j0, j1, 6); return;
    case 7: thin_rows(m, j0, j1, 7); return;
    case 8: thin_rows(m, j0, j1, 8); return;
    case 9: thin_rows(m, j0, j1, 9); return;
    }
}

// Computes rows i0.. (at most MB) and columns j0.. of out.
static void block_compute(const Matmul *m, int i0, int rows, int j0, int cols) {
    static _Thread_local real packed[MB / MR * A_PANEL] __attribute__((aligned(64)));
    static _Thread_local real panel[KC * NR] __attribute__((aligned(64)));
    static _Thread_local real wide[NR * KC] __attribute__((aligned(64)));
    for (int k0 = 0; k0 == 0 || k0 < m->K; k0 += KC) { // once for K = 0, which leaves the bias
        Tile t = {.a_step = m->a_transposed ? MR : 1, .panel = panel,
                  .depth = int_min(KC, m->K - k0), .add = m->accumulate || k0 > 0};
        if (m->a_transposed) rows_pack(m->a, i0, rows, k0, t.depth, packed);
        for (int j = j0; j < j0 + cols; j += NR) {
            real start[NR] __attribute__((aligned(64))) = {0};
            t.start = start;
            t.cols = int_min(NR, j0 + cols - j);
            for (int n = 0; n < t.cols && m->bias.data && k0 == 0; n++) {
                start[n] = *view_row(m->bias, j + n);
            }
            if (m->b.bf16) {
                View b = rows_widen(m->b, k0, t.depth, j, t.cols, wide);
                panel_transpose(b, 0, t.depth, 0, t.cols, panel);
            } else if (m->b_transposed) {
                panel_transpose(m->b, k0, t.depth, j, t.cols, panel);
            } else {
                panel_copy(m->b, k0, t.depth, j, t.cols, panel);
            }
            for (int i = 0; i < rows; i += MR) {
                t.rows = int_min(MR, rows - i);
                for (int r = 0; r < MR; r++) {
                    // Rows past the edge repeat the last one, and are not stored.
                    int row = i + int_min(r, t.rows - 1);
                    t.a[r] = m->a_transposed ? packed + (size_t)(i / MR) * A_PANEL + (row - i)
                                             : view_row(m->a, i0 + row) + k0;
                    t.out[r] = view_row(m->out, i0 + row) + j;
                }
                tile_compute(&t);
            }
        }
    }
}

static int is_thin(const Matmul *m) { return m->M <= THIN_ROWS && !m->a_transposed; }

static void range_compute(const Matmul *m, int i0, int i1, int j0, int j1) {
    if (is_thin(m)) {
        thin_compute(m, j0, j1);
        return;
    }
    for (int i = i0; i < i1; i += MB) {
        for (int j = j0; j < j1; j += NB) {
            block_compute(m, i, int_min(MB, i1 - i), j, int_min(NB, j1 - j));
        }
    }
}

// The product on the calling thread alone, for use inside a parallel region. out may not overlap a,
// b or bias.
static void matmul_serial(Matmul m) { range_compute(&m, 0, m.M, 0, m.N); }

// Where part number `part` of `size` elements begins, when they are shared out in whole units.
static int part_begin(int size, int unit, int parts, int part) {
    size_t units = ((size_t)size + (size_t)unit - 1) / (size_t)unit;
    return int_min(size, (int)(units * (size_t)part / (size_t)parts) * unit);
}

// The same product, to the last bit, on all threads: each computes one rectangle of a grid over
// out.
static void matmul(Matmul m) {
    int threads = omp_get_max_threads(), down = 1;
    // A short product does not pay for a parallel region.
    if (threads == 1 || (double)m.M * m.N * m.K < (is_thin(&m) ? 1 << 16 : 1 << 18)) {
        matmul_serial(m);
        return;
    }
    // The time of a rectangle goes with its area, plus what it costs to read or pack the rows of a
    // and the columns of b.
    double best = INFINITY, row_cost = m.a_transposed ? 14 : 2;
    double column_cost = m.b_transposed ? 14 : 7;
    for (int d = 1; d <= (is_thin(&m) ? 1 : threads); d++) {
        double height = ceil((double)m.M / MR / d) * MR;
        double width = ceil((double)m.N / NR / (threads / d)) * NR;
        double cost = height * width + height * row_cost + width * column_cost;
        if (cost < best) {
            best = cost;
            down = d;
        }
    }
    int across = threads / down;
    #pragma omp parallel for schedule(static, 1)
    for (int t = 0; t < down * across; t++) {
        int y = t / across, x = t % across;
        range_compute(&m, part_begin(m.M, MR, down, y), part_begin(m.M, MR, down, y + 1),
                      part_begin(m.N, NR, across, x), part_begin(m.N, NR, across, x + 1));
    }
}

// ----------------------------------------------------------------------------
// layers: each as a forward and a backward function
//
// Every loop over threads gives each thread whole rows or whole columns to itself and adds in a
// fixed order, so that results do not depend, in any bit, on the number of threads.

enum { COLUMNS_AT_ONCE = 64 }; // columns that one thread sums at a time

// out (B,T,C) = wte[token] for tokens first .. first+count-1, whose rows wte (count,C) holds; zeros
// for others
static void embedding_forward(real *out, const int32_t *tokens, View wte, int first, int count,
                              int rows, int C) {
    #pragma omp parallel for schedule(static) if (rows > 1)
    for (int i = 0; i < rows; i++) {
        int held = tokens[i] >= first && tokens[i] < first + count;
        size_t at = held ? view_at(wte, tokens[i] - first) : 0;
        real *row = out + (size_t)i * C;
        if (!held) {
            memset(row, 0, (size_t)C * sizeof(real));
        } else if (!wte.bf16) {
            memcpy(row, wte.data + at, (size_t)C * sizeof(real));
        } else {
            for (int c = 0; c < C; c++) row[c] = (real)float_from_bf16(wte.bf16[at + c]);
        }
    }
}

// dwte (count,C) is added to: the head has been there first.
static void embedding_backward(real *dwte, const real *dout, const int32_t *tokens, int first,
                               int count, int rows, int C) {
    #pragma omp parallel for schedule(static)
    for (int from = 0; from < C; from += COLUMNS_AT_ONCE) {
        int to = int_min(C, from + COLUMNS_AT_ONCE);
        for (int i = 0; i < rows; i++) {
            if (tokens[i] < first || tokens[i] >= first + count) continue;
            real *row = dwte + (size_t)(tokens[i] - first) * C;
            for (int c = from; c < to; c++) row[c] += dout[(size_t)i * C + c];
        }
    }
}

// out (B,T,C) = x + wpe[position]; out may be x
static void position_forward(real *out, const real *x, const real *wpe, int B, int T, int C) {
    #pragma omp parallel for schedule(static) if (B * T > 1)
    for (int i = 0; i < B * T; i++) {
        size_t row = (size_t)i * C, position = (size_t)(i % T) * C;
        for (int c = 0; c < C; c++) out[row + c] = x[row + c] + wpe[position + c];
    }
}

// dwpe (maxT,C) is written, or added to.
static void position_backward(real *dwpe, const real *dout, int B, int T, int C, int accumulate) {
    #pragma omp parallel for schedule(static)
    for (int t = 0; t < T; t++) {
        for (int b = 0; b < B; b++) {
            const real *d = dout + ((size_t)b * T + t) * C;
            real *row = dwpe + (size_t)t * C;
            for (int c = 0; c < C; c++) row[c] = b == 0 && !accumulate ? d[c] : row[c] + d[c];
        }
    }
}

static void layernorm_forward_row(real *out, real *mean, real *rstd, const real *x, const real *w,
                                  const real *b, int C) {
    real sum = 0, squares = 0;
    #pragma omp simd reduction(+ : sum)
    for (int c = 0; c < C; c++) sum += x[c];
    real m = sum / C;
    #pragma omp simd reduction(+ : squares)
    for (int c = 0; c < C; c++) squares += (x[c] - m) * (x[c] - m);
    real s = 1 / (real)sqrt((double)(squares / C) + 1e-5);
    for (int c = 0; c < C; c++) out[c] = (x[c] - m) * s * w[c] + b[c];
    *mean = m;
    *rstd = s;
}

// out (rows,C) = (x - mean) * rstd * w + b over each row of x (rows,C); mean, rstd (rows) are kept
// for the backward pass.
static void layernorm_forward(real *out, real *mean, real *rstd, const real *x, const real *w,
                              const real *b, int rows, int C) {
    #pragma omp parallel for schedule(static) if (rows > 1)
    for (int i = 0; i < rows; i++) {
        layernorm_forward_row(out + (size_t)i * C, mean + i, rstd + i, x + (size_t)i * C, w, b, C);
    }
}

// One row of dx: written, or added to if add_dx.
static void layernorm_backward_row(real *dx, const real *d, const real *x, real m, real s,
                                   const real *w, int C, int add_dx) {
    real sum = 0, sum_norm = 0;
    #pragma omp simd reduction(+ : sum, sum_norm)
    for (int c = 0; c < C; c++) {
        real dnorm = d[c] * w[c];
        sum += dnorm;
        sum_norm += dnorm * ((x[c] - m) * s);
    }
    real a = sum / C, b = sum_norm / C;
    for (int c = 0; c < C; c++) {
        real value = (d[c] * w[c] - a - (x[c] - m) * s * b) * s;
        dx[c] = add_dx ? dx[c] + value : value;
    }
}

// dx (rows,C) is written, or added to if add_dx; dw, db (C) are written, or added to if add_dw.
static void layernorm_backward(real *dx, real *dw, real *db, const real *dout, const real *x,
                               const real *mean, const real *rstd, const real *w, int rows, int C,
                               int add_dx, int add_dw) {
    #pragma omp parallel
    {
        #pragma omp for schedule(static) nowait // the second loop reads nothing of the first
        for (int i = 0; i < rows; i++) {
            size_t row = (size_t)i * C;
            layernorm_backward_row(dx + row, dout + row, x + row, mean[i], rstd[i], w, C, add_dx);
        }
        #pragma omp for schedule(static)
        for (int from = 0; from < C; from += COLUMNS_AT_ONCE) {
            int n = int_min(COLUMNS_AT_ONCE, C - from);
            real sum_w[COLUMNS_AT_ONCE] = {0}, sum_b[COLUMNS_AT_ONCE] = {0};
            for (int i = 0; i < rows; i++) {
                const real *row = x + (size_t)i * C + from, *d = dout + (size_t)i * C + from;
                real m = mean[i], s = rstd[i];
                for (int c = 0; c < n; c++) {
                    sum_w[c] += d[c] * ((row[c] - m) * s);
                    sum_b[c] += d[c];
                }
            }
            for (int c = 0; c < n; c++) {
                dw[from + c] = add_dw ? dw[from + c] + sum_w[c] : sum_w[c];
                db[from + c] = add_dw ? db[from + c] + sum_b[c] : sum_b[c];
            }
        }
    }
}

// Gradient of a bias: out (cols,1) = or += scale * the sum over the rows of d (rows,cols). d NULL
// stands for zeros.
static void bias_backward(View out, real scale, const real *d, int rows, int cols, int accumulate) {
    #pragma omp parallel for schedule(static)
    for (int from = 0; from < cols; from += COLUMNS_AT_ONCE) {
        int n = int_min(COLUMNS_AT_ONCE, cols - from);
        real sum[COLUMNS_AT_ONCE] = {0};
        for (int i = 0; d && i < rows; i++) {
            const real *row = d + (size_t)i * cols + from;
            for (int c = 0; c < n; c++) sum[c] += row[c];
        }
        for (int c = 0; c < n; c++) {
            real *to = view_row(out, from + c);
            *to = accumulate ? *to + scale * sum[c] : scale * sum[c];
        }
    }
}

// GPT-2's GELU, 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), over n values
#define GELU_SCALE ((real)0.7978845608028654)
#define GELU_CUBE ((real)0.044715)

static void gelu_forward(real *out, const real *x, size_t n) {
    #pragma omp parallel for simd schedule(static)
    for (size_t i = 0; i < n; i++) {
        real v = x[i], t = real_tanh(GELU_SCALE * (v + GELU_CUBE * v * v * v));
        out[i] = (real)0.5 * v * (1 + t);
    }
}

// dx = dout * gelu'(x); dx may be dout
static void gelu_backward(real *dx, const real *dout, const real *x, size_t n) {
    #pragma omp parallel for simd schedule(static)
    for (size_t i = 0; i < n; i++) {
        real v = x[i], t = real_tanh(GELU_SCALE * (v + GELU_CUBE * v * v * v));
        real slope = (real)0.5 * (1 + t) +
                     (real)0.5 * v * (1 - t * t) * GELU_SCALE * (1 + 3 * GELU_CUBE * v * v);
        dx[i] = dout[i] * slope;
    }
}

// One row of a sum: out = scale * from + parts + bias. out may be either of the first two.
static void sum_row(real *out, real scale, const real *from, const real *parts, const real *bias,
                    int C) {
    for (int c = 0; c < C; c++) out[c] = scale * from[c] + parts[c] + bias[c];
}

// out += scale * x over n values
static void scaled_add(real *out, real scale, const real *x, size_t n) {
    #pragma omp parallel for simd schedule(static)
    for (size_t i = 0; i < n; i++) out[i] += scale * x[i];
}

// ----------------------------------------------------------------------------
// attention: causal, one (sequence, head) per thread at a time
//
// Queries are taken ATTENTION_ROWS at a time, against the keys up to the last of them, so that
// nothing of size T x T is kept: the backward pass makes the probabilities again from lse, the log
// of each row's sum of exponentials.

enum { ATTENTION_ROWS = 64 };

typedef struct {
    int B, T;      // sequences, and tokens of each that are new: they have queries
    int past;      // tokens before them whose keys and values are there from earlier calls; B is 1
    int heads, HS; // heads of one tensor rank, NH/R, and their size
    real *scratch; // 2 (ATTENTION_ROWS, past + T) for each of
    int threads;
} AttentionShape;

// Head h of one of `parts` parts, from row `row` on: x (rows,parts,heads,HS). Queries are one part,
// keys and values two, and their gradients together three.
static View head_view(const AttentionShape *s, real *x, int parts, int part, int row, int h) {
    size_t width = (size_t)s->heads * s->HS;
    real *at = x + ((size_t)row * parts + part) * width + (size_t)h * s->HS;
    return view_of(at, (size_t)parts * width);
}

// Probabilities of n queries over `keys` keys from their scores, in place. The last query sees all
// keys, the one before it all but one, and so on; what a query does not see gets 0. lse (n) is
// written.
static void attention_softmax(real *scores, real *lse, int n, int keys, real scale) {
    for (int i = 0; i < n; i++) {
        real *row = scores + (size_t)i * keys, largest = row[0], sum = 0;
        int seen = keys - n + i + 1;
        #pragma omp simd reduction(max : largest)
        for (int j = 0; j < seen; j++) largest = row[j] > largest ? row[j] : largest;
        #pragma omp simd reduction(+ : sum)
        for (int j = 0; j < seen; j++) {
            row[j] = real_exp((row[j] - largest) * scale);
            sum += row[j];
        }
        for (int j = 0; j < seen; j++) row[j] *= 1 / sum;
        for (int j = seen; j < keys; j++) row[j] = 0;
        lse[i] = largest * scale + (real)log((double)sum);
    }
}

// The same probabilities once more from the scores and lse.
static void attention_softmax_again(real *scores, const real *lse, int n, int keys, real scale) {
    for (int i = 0; i < n; i++) {
        real *row = scores + (size_t)i * keys, shift = lse[i];
        int seen = keys - n + i + 1;
        for (int j = 0; j < seen; j++) row[j] = real_exp(not_positive(row[j] * scale - shift));
        for (int j = seen; j < keys; j++) row[j] = 0;
    }
}

// out (B,T,heads,HS), lse (B,heads,T), q (B,T,heads,HS), kv (B,past+T,2,heads,HS)
static void attention_forward(real *out, real *lse, real *q, real *kv, AttentionShape s) {
    real scale = 1 / (real)sqrt((double)s.HS);
    int room = s.past + s.T;
    #pragma omp parallel for collapse(2) schedule(static) num_threads(s.threads)
    for (int b = 0; b < s.B; b++) {
        for (int h = 0; h < s.heads; h++) {
            real *probs = s.scratch + (size_t)omp_get_thread_num() * 2 * ATTENTION_ROWS * room;
            real *lse_head = lse + ((size_t)b * s.heads + h) * s.T;
            View K = head_view(&s, kv, 2, 0, b * room, h), V = head_view(&s, kv, 2, 1, b * room, h);
            for (int t = 0; t < s.T; t += ATTENTION_ROWS) {
                int n = int_min(ATTENTION_ROWS, s.T - t), keys = s.past + t + n;
                View P = view_of(probs, keys), Q = head_view(&s, q, 1, 0, b * s.T + t, h);
                matmul_serial((Matmul){.out = P, .a = Q, .b = K, .b_transposed = 1, .M = n,
                                       .N = keys, .K = s.HS});
                attention_softmax(probs, lse_head + t, n, keys, scale);
                matmul_serial((Matmul){.out = head_view(&s, out, 1, 0, b * s.T + t, h), .a = P,
                                       .b = V, .M = n, .N = s.HS, .K = keys});
            }
        }
    }
}

// dscores = probabilities * (dprobabilities - delta) * scale, in place, where delta of a row is
// dout . out (FlashAttention, arXiv 2205.14135, appendix B.2).
static void attention_softmax_backward(real *dprobs, const real *probs, View dout, View out, int n,
                                       int keys, int HS, real scale) {
    for (int i = 0; i < n; i++) {
        const real *p = probs + (size_t)i * keys, *d = view_row(dout, i), *o = view_row(out, i);
        real *dp = dprobs + (size_t)i * keys, delta = 0;
        #pragma omp simd reduction(+ : delta)
        for (int c = 0; c < HS; c++) delta += d[c] * o[c];
        for (int j = 0; j < keys; j++) dp[j] = p[j] * (dp[j] - delta) * scale;
    }
}

// dqkv (B,T,3,heads,HS) is written; dout, out (B,T,heads,HS); the others as in the forward pass,
// with nothing past
static void attention_backward(real *dqkv, real *dout, real *out, real *lse, real *q, real *kv,
                               AttentionShape s) {
    real scale = 1 / (real)sqrt((double)s.HS);
    #pragma omp parallel for collapse(2) schedule(static) num_threads(s.threads)
    for (int b = 0; b < s.B; b++) {
        for (int h = 0; h < s.heads; h++) {
            real *probs = s.scratch + (size_t)omp_get_thread_num() * 2 * ATTENTION_ROWS * s.T;
            real *dprobs = probs + (size_t)ATTENTION_ROWS * s.T;
            real *lse_head = lse + ((size_t)b * s.heads + h) * s.T;
            int first = b * s.T;
            View K = head_view(&s, kv, 2, 0, first, h), V = head_view(&s, kv, 2, 1, first, h);
            View dK = head_view(&s, dqkv, 3, 1, first, h), dV = head_view(&s, dqkv, 3, 2, first, h);
            for (int t = 0; t < s.T; t++) {
                memset(view_row(dK, t), 0, (size_t)s.HS * sizeof(real));
                memset(view_row(dV, t), 0, (size_t)s.HS * sizeof(real));
            }
            for (int t = 0; t < s.T; t += ATTENTION_ROWS) {
                int n = int_min(ATTENTION_ROWS, s.T - t), keys = t + n;
                View Q = head_view(&s, q, 1, 0, first + t, h);
                View dQ = head_view(&s, dqkv, 3, 0, first + t, h);
                View d = head_view(&s, dout, 1, 0, first + t, h);
                View o = head_view(&s, out, 1, 0, first + t, h);
                View P = view_of(probs, keys), dP = view_of(dprobs, keys);
                matmul_serial((Matmul){.out = P, .a = Q, .b = K, .b_transposed = 1, .M = n,
                                       .N = keys, .K = s.HS});
                attention_softmax_again(probs, lse_head + t, n, keys, scale);
                matmul_serial((Matmul){.out = dP, .a = d, .b = V, .b_transposed = 1, .M = n,
                                       .N = keys, .K = s.HS});
                matmul_serial((Matmul){.out = dV, .a = P, .a_transposed = 1, .b = d, .M = keys,
                                       .N = s.HS, .K = n, .accumulate = 1});
                attention_softmax_backward(dprobs, probs, d, o, n, keys, s.HS, scale);
                matmul_serial((Matmul){.out = dQ, .a = dP, .b = K, .M = n, .N = s.HS, .K = keys});
                matmul_serial((Matmul){.out = dK, .a = dP, .a_transposed = 1, .b = Q, .M = keys,
                                       .N = s.HS, .K = n, .accumulate = 1});
            }
        }
    }
}

// ----------------------------------------------------------------------------
// classifier: softmax and cross-entropy over logits (rows,width) of the tokens first ..
// first+count-1, in the first `count` columns. Columns after them are neither read nor written.

// largest, sum (rows): the largest logit and the sum of exponentials relative to it; chosen (rows):
// the target's logit, 0 if it is not among these.
static void classifier_forward(real *largest, real *sum, real *chosen, const real *logits,
                               const int32_t *targets, int rows, int first, int count, int width) {
    #pragma omp parallel for schedule(static)
    for (int i = 0; i < rows; i++) {
        const real *row = logits + (size_t)i * width;
        real most = -INFINITY, total = 0;
        #pragma omp simd reduction(max : most)
        for (int v = 0; v < count; v++) most = row[v] > most ? row[v] : most;
        #pragma omp simd reduction(+ : total)
        for (int v = 0; v < count; v++) total += real_exp(row[v] - most);
        largest[i] = most;
        sum[i] = total;
        chosen[i] = targets[i] >= first && targets[i] < first + count ? row[targets[i] - first] : 0;
    }
}

// logits become their own gradient, (softmax - one at the target) * scale; lse (rows) is the log of
// the sum of exponentials over the whole vocabulary.
static void classifier_backward(real *logits, const real *lse, const int32_t *targets, real scale,
                                int rows, int first, int count, int width) {
    #pragma omp parallel for schedule(static)
    for (int i = 0; i < rows; i++) {
        real *row = logits + (size_t)i * width, shift = lse[i];
        for (int v = 0; v < count; v++) row[v] = real_exp(not_positive(row[v] - shift)) * scale;
        if (targets[i] >= first && targets[i] < first + count) row[targets[i] - first] -= scale;
    }
}

// ----------------------------------------------------------------------------
// the model and its memory

// One copy of the parameter table: parameters, gradients, or an AdamW moment. at[p] holds what this
// process has of tensor p: part (first rank / F) of R / F of the whole.
typedef struct {
    real *at[P_COUNT];
    uint16_t *bf16[P_COUNT];    // in its place, of a tensor that is held in bf16; else NULL
    real *block;                // the allocations that hold them all
    uint16_t *bf16_block;
} Tensors;

// What one sub-block keeps for its backward pass. Where ranks read the same stream there is one
// copy of its LayerNorm, else one for each.
typedef struct {
    real *normed;      // (copies,B,T,C) LayerNorm of the stream it reads
    real *mean, *rstd; // (copies,B,T)
    real *inner;       // (F, B,T,C/R)  attention: queries         MLP: (F, B,T,4C/R) before GELU
    real *outer;       // (F, B,T,C/R)  attention: heads' output   MLP: (F, B,T,4C/R) after GELU
    real *kv;          // (F, B_max,T_max,2C/R) attention: keys and values, of which a batch has
                       // (B,past+T,2C/R) of each rank; of one sequence they stay
    real *lse;         // (F, B,NH/R,T) attention: log of each row's sum of exponentials
    int copies;        // 1 or F
    int width;         // per rank: C/R or 4C/R
    int in_width;      // rows of the input matrix per rank: 3C/R or 4C/R
} SubBlock;

// What the plan's steps read and write.
typedef struct {
    real *at;   // (copies,B,T,C)
    int copies; // 1: all ranks have the same; F: each has its own
} Value;

// A sum over ranks that goes on while the caller computes.
typedef struct {
    int kind;     // TRAFFIC_...
    real *parts;  // (F,n)
    size_t n;
    double begun; // when
} PendingMerge;

typedef struct GPT2 {
    GPT2Config config;
    Plan plan;
    Mesh mesh;
    int F;                    // tensor ranks folded into this process; their numbers begin at rank0
    int rank0;
    ParamSpec whole[P_COUNT]; // shapes of whole tensors
    ParamSpec local[P_COUNT]; // of what this process holds: part group_rank of `group` of each
    Tensors params, grads, moment1, moment2;
    Tensors *rank_grads;      // (F) where rank f puts its gradients: `grads`, or its own part of
                              // partial_grads where each rank has a partial gradient
    real *partial_grads;      // (F,n), until gradients_reduce adds them up
    int purpose;              // FOR_...: what there is memory for
    int B_max, T_max;         // room for keys and values,
    int rows_max;             // and for the rest of a forward pass: tokens
    int B, T, past;           // of the last forward pass: T tokens after `past`
    int scored;               // tokens that it has logits of, the last ones
    real *kept;               // the allocation of keys and values, which outlast a pass, and zeros
    real *activations;        // the allocation that the rest of a pass lies in,
    size_t activations_room;  // and how many reals it has room for
    Value *values;            // of the plan, by V_...
    SubBlock *subs;           // (2L+1), the last of which is the final LayerNorm alone
    int vocab_parts;          // parts of the vocabulary in this process: 1, or F where it is cut
    int vocab_width;          // columns of each part: Vp, or the rows of wte that a rank has
    real *logits;             // (vocab_parts, scored,vocab_width), and then their gradient
    real *largest, *sums;     // (vocab_parts, B,T), (vocab_parts, 2,B,T): see classifier_forward
    real *losses, *lse;       // (B,T)
    real *zeros, *bias_sum;   // (C) an operand that a sum does not have; output biases added up
    real *received;           // (B,T,C) of the other process, where there are two
    real *dnormed;            // (B,T,C) scratch
    real *dinner;             // (F, B,T,4C/R) from STEP_BACK to STEP_WEIGHT
    real *douter;             // (B,T,4C/R) scratch
    real *attention_scratch;  // for this many threads:
    int threads;
    int32_t *tokens, *targets; // (B,T) of the last forward pass
    double *row_sums;         // of a gradient's rows for its norm; (B,T) for the distance
    struct GPT2 *teacher;     // whose streams those of this model are to match, or NULL
    double match_weight;      // of their distance in the loss,
    double match_scale;       // and of the difference of two elements in the gradient
    double distance;          // of the last backward pass: mean squared difference of streams
    double distance_sum;      // as loss_sum
    Traffic traffic[TRAFFIC_KINDS]; // what was executed since the model was created
    int sum_number;           // of the last all-reduce of this forward or backward pass, from 1
    Network network;          // emulated
    double loss_sum;          // of the update's micro-steps so far, each divided by their number
    int last_pass;            // the update's last backward pass: sums over replicas may begin
    PendingSums replica_sums; // those that have begun
    PendingSums merge_sums;   // of the merge that goes on,
    PendingMerge merge;       // and its parts
} GPT2;

// Rank f's part of one layer of a tensor, as a view: folding costs no copies.
static View part_view(const GPT2 *m, const Tensors *t, int p, int layer, int f) {
    Shard s = shard_of(&m->local[p], f, m->F);
    size_t at = (size_t)layer * spec_layer_size(&m->local[p]) + s.offset;
    View v = {.ld = s.ld, .group = s.group < s.rows ? s.group : 0, .jump = s.jump};
    if (t->bf16[p]) v.bf16 = t->bf16[p] + at;
    else v.data = t->at[p] + at;
    return v;
}

// One element of a tensor, counted from its start, however it is held.
static real element_get(const Tensors *t, int p, size_t at) {
    return t->bf16[p] ? (real)float_from_bf16(t->bf16[p][at]) : t->at[p][at];
}
static void element_set(Tensors *t, int p, size_t at, real value) {
    if (t->bf16[p]) t->bf16[p][at] = bf16_from(value);
    else t->at[p][at] = value;
}

// One layer of a tensor that every rank has whole.
static real *whole_layer(const GPT2 *m, const Tensors *t, int p, int layer) {
    return t->at[p] + (size_t)layer * spec_layer_size(&m->local[p]);
}

// Rank f's own of value v, or the one that all ranks share; NULL for V_NONE.
static real *value_at(const GPT2 *m, int v, int f) {
    const Value *value = &m->values[v];
    if (v == V_NONE) return NULL;
    return value->at + (value->copies == 1 ? 0 : (size_t)f * m->B * m->T * m->config.C);
}

static AttentionShape attention_shape(const GPT2 *m) {
    const GPT2Config *c = &m->config;
    return (AttentionShape){.B = m->B, .T = m->T, .past = m->past, .heads = c->NH / c->R,
                            .HS = c->C / c->NH, .scratch = m->attention_scratch,
                            .threads = m->threads};
}

// With in_bf16 the matrices are held in bf16: those of the blocks, and wte.
static void tensors_allocate(Tensors *t, const ParamSpec specs[P_COUNT], int in_bf16,
                             const char *what) {
    size_t reals = 0, bf16s = 0;
    for (int pass = 0; pass < 2; pass++) { // counts them, then lays them out
        if (pass) t->block = alloc_zeroed(reals, sizeof(real), what);
        if (pass && bf16s) t->bf16_block = alloc_zeroed(bf16s, sizeof(uint16_t), what);
        reals = bf16s = 0;
        for (int p = 0; p < P_COUNT; p++) {
            int is_bf16 = in_bf16 && specs[p].decay && p != P_wpe;
            if (pass && is_bf16) t->bf16[p] = t->bf16_block + bf16s;
            if (pass && !is_bf16) t->at[p] = t->block + reals;
            if (is_bf16) bf16s += spec_size(&specs[p]);
            else reals += spec_size(&specs[p]);
        }
    }
}

static size_t partial_grads_size(const GPT2 *m) {
    size_t n = 0;
    for (int p = 0; p < P_COUNT; p++) {
        if (m->local[p].cut == WHOLE_PARTIAL_GRAD) n += spec_size(&m->local[p]);
    }
    return n;
}

// Gradients: tensors of which each rank has only a partial gradient lie together at the end, once
// for each folded rank, so that one all-reduce sums them all.
static void gradients_allocate(GPT2 *m) {
    size_t n = partial_grads_size(m), others = param_count(m->local) - n, partial = 0;
    m->grads.block = alloc_zeroed(others + m->F * n, sizeof(real), "gradients");
    m->partial_grads = m->grads.block + others;
    m->rank_grads = alloc_zeroed(m->F, sizeof(Tensors), "gradient table");
    real *next = m->grads.block;
    for (int p = 0; p < P_COUNT; p++) {
        int is_partial = m->local[p].cut == WHOLE_PARTIAL_GRAD;
        for (int f = 0; f < m->F; f++) {
            m->rank_grads[f].at[p] = is_partial ? m->partial_grads + f * n + partial : next;
        }
        m->grads.at[p] = m->rank_grads[0].at[p];
        if (is_partial) partial += spec_size(&m->local[p]);
        else next += spec_size(&m->local[p]);
    }
}

static real *carve(real *block, size_t *used, size_t n) {
    real *at = block ? block + *used : NULL;
    *used += (n + 15) / 16 * 16; // keeps tensors on cache lines
    return at;
}

// Where stream i lies, copies times n values. A forward pass alone needs it from the step that
// writes it to the last that reads it; then a later stream of as many copies takes its place.
// holder[j] is the stream that has j's place now, or -1 where j has taken another's.
static void stream_lay(GPT2 *m, int i, int *holder, real *block, size_t *used, size_t n) {
    Value *values = &m->values[V_STREAM], *value = &values[i];
    const Plan *plan = &m->plan;
    int kept = m->purpose == FOR_TRAINING || m->purpose == FOR_TEACHING;
    for (int j = 0; j < i && !kept; j++) {
        int same = holder[j] >= 0 && values[j].copies == value->copies;
        if (!same || plan->last_read[holder[j]] >= plan->written[i]) continue;
        value->at = values[j].at;
        holder[j] = i;
        holder[i] = -1;
        return;
    }
    value->at = carve(block, used, value->copies * n);
    holder[i] = i;
}

static void values_lay(GPT2 *m, real *block, size_t *used, size_t n) {
    int *holder = ALLOC(int, (size_t)m->plan.streams, "plan");
    for (int v = V_NONE + 1; v < V_STREAM + m->plan.streams; v++) {
        Value *value = &m->values[v];
        value->copies = value_is_shared(&m->plan, v) ? 1 : m->F;
        if (v >= V_STREAM) stream_lay(m, v - V_STREAM, holder, block, used, n);
        else if (!plan_uses(&m->plan, v, m->purpose == FOR_TRAINING)) value->at = NULL;
        else value->at = carve(block, used, value->copies * n);
    }
    free(holder);
}

// What sub-block k keeps, of `rows` tokens. Keys and values are not among it.
static void subblock_lay(GPT2 *m, int k, real *block, size_t *used, size_t rows) {
    const GPT2Config *c = &m->config;
    SubBlock *s = &m->subs[k];
    size_t F = m->F;
    s->copies = m->values[V_STREAM + m->plan.reads[k]].copies;
    s->normed = carve(block, used, s->copies * rows * c->C);
    s->mean = carve(block, used, s->copies * rows);
    s->rstd = carve(block, used, s->copies * rows);
    if (k == 2 * c->L) return;
    s->inner = carve(block, used, F * rows * s->width);
    s->outer = carve(block, used, F * rows * s->width);
    s->lse = carve(block, used, is_mlp(k) ? 0 : F * rows * (c->NH / c->R));
}

// Lays out in `block` what a change of pattern leaves as it is, or only counts it if it is NULL.
// Returns the number of reals.
static size_t kept_lay(GPT2 *m, real *block) {
    const GPT2Config *c = &m->config;
    size_t used = 0, kv = (size_t)m->F * m->B_max * m->T_max * 2 * (c->C / c->R);
    for (int k = 0; k < 2 * c->L; k++) m->subs[k].kv = carve(block, &used, is_mlp(k) ? 0 : kv);
    if (m->purpose == FOR_TEACHING) { // nobody reads them after its block
        used = 0;
        for (int k = 0; k < 2 * c->L; k++) m->subs[k].kv = block;
        carve(block, &used, kv);
    }
    m->zeros = carve(block, &used, c->C);
    return used;
}

// The same for all other activations, as the plan has them.
static size_t activations_lay(GPT2 *m, real *block) {
    const GPT2Config *c = &m->config;
    int training = m->purpose == FOR_TRAINING, samples = m->purpose == FOR_SAMPLES;
    size_t rows = m->rows_max, F = m->F, parts = m->vocab_parts, used = 0;
    size_t scored = samples && rows > SCORED_MAX ? SCORED_MAX : rows;
    if (m->purpose == FOR_TEACHING) scored = 0;
    int Cr = c->C / c->R;
    values_lay(m, block, &used, rows * c->C);
    // Without a backward pass all sub-blocks use the same memory. A sum ends with the LayerNorm of
    // the sub-block that reads it; until that one runs, there is no other LayerNorm or sub-block.
    size_t first = used, most = used;
    for (int k = 0; k <= 2 * c->L; k++) {
        if (!training) used = first;
        subblock_lay(m, k, block, &used, rows);
        most = used > most ? used : most;
    }
    used = most;
    m->logits = carve(block, &used, parts * scored * m->vocab_width);
    m->largest = carve(block, &used, parts * rows);
    m->sums = carve(block, &used, 2 * parts * rows);
    m->losses = carve(block, &used, rows);
    m->lse = carve(block, &used, rows);
    m->bias_sum = carve(block, &used, c->C);
    m->received = carve(block, &used, m->mesh.group == 2 ? rows * c->C : 0);
    m->dnormed = carve(block, &used, training ? rows * c->C : 0);
    m->dinner = carve(block, &used, training ? F * rows * 4 * Cr : 0);
    m->douter = carve(block, &used, training ? rows * 4 * Cr : 0);
    m->attention_scratch = carve(block, &used, (size_t)m->threads * 2 * ATTENTION_ROWS * m->T_max);
    return used;
}

static size_t activations_bytes(GPT2 *m) {
    return (kept_lay(m, m->kept) + m->activations_room) * sizeof(real);
}

// From here on the model runs under this pattern: other sums, of the same parameters. Keys and
// values of tokens that were read stay; what else the last pass has left is lost. The pattern of
// `config`, which belongs to the model, stays too. Fails as plan_make does.
static void gpt2_take_pattern(GPT2 *m, const char *pattern) {
    const GPT2Config *c = &m->config;
    plan_free(&m->plan);
    plan_make(&m->plan, pattern, c->L, c->rule, c->R, "-p");
    if (m->teacher) plan_distill(&m->plan, &m->teacher->plan);
    size_t n = activations_lay(m, NULL);
    if (n > m->activations_room) {
        free(m->activations);
        m->activations = alloc_zeroed(n, sizeof(real),
                                      "activations (fewer with a lower -b or -t)");
        m->activations_room = n;
    }
    activations_lay(m, m->activations);
}

// Makes a model of this shape, its parameters zero, with memory for what `purpose` says of batches
// (B,T). Fails when the shape, the pattern or R cannot be had.
static void gpt2_create(GPT2 *m, const GPT2Config *config, Mesh mesh, int B, int T, int purpose) {
    int in_bf16 = purpose & IN_BF16;
    memset(m, 0, sizeof *m);
    m->config = *config;
    m->mesh = mesh;
    m->F = mesh.F;
    m->rank0 = mesh.group_rank * mesh.F;
    m->purpose = purpose & ~IN_BF16;
    m->B_max = B;
    m->T_max = T;
    m->rows_max = m->purpose == FOR_SAMPLES ? int_min(T, READ_AT_ONCE) : B * T;
    m->threads = omp_get_max_threads();
    heads_check(config);
    if (T > config->maxT) fail("-t %d: the model reads at most %d tokens", T, config->maxT);
    param_specs(m->whole, config);
    int cut = mesh.vocab_parallel && config->R > 1;
    if (cut) specs_cut_vocabulary(m->whole, config->R);
    m->vocab_parts = cut ? m->F : 1;
    m->vocab_width = cut ? m->whole[P_wte].rows / config->R : config->Vp;
    int rows_max = 0;
    for (int p = 0; p < P_COUNT; p++) {
        Shard mine = shard_of(&m->whole[p], mesh.group_rank, mesh.group);
        m->local[p] = m->whole[p];
        m->local[p].rows = mine.rows;
        m->local[p].cols = mine.cols;
        rows_max = mine.rows > rows_max ? mine.rows : rows_max;
    }
    tensors_allocate(&m->params, m->local, in_bf16, "parameters");
    if (m->purpose == FOR_TRAINING) {
        tensors_allocate(&m->moment1, m->local, 0, "AdamW moments");
        tensors_allocate(&m->moment2, m->local, 0, "AdamW moments");
        gradients_allocate(m);
        rows_max = rows_max > m->rows_max ? rows_max : m->rows_max;
        m->row_sums = alloc_zeroed(rows_max, sizeof(double), "gradient norm");
    }
    int Cr = config->C / config->R;
    m->subs = alloc_zeroed(2 * (size_t)config->L + 1, sizeof(SubBlock), "sub-blocks");
    for (int k = 0; k < 2 * config->L; k++) {
        m->subs[k].width = is_mlp(k) ? 4 * Cr : Cr;
        m->subs[k].in_width = is_mlp(k) ? 4 * Cr : 3 * Cr;
    }
    m->values = alloc_zeroed(V_STREAM + 4 * (size_t)config->L + 1, sizeof(Value), "plan");
    m->kept = alloc_zeroed(kept_lay(m, NULL), sizeof(real), "keys and values");
    kept_lay(m, m->kept);
    gpt2_take_pattern(m, config->pattern);
    m->tokens = alloc_zeroed(m->rows_max, sizeof(int32_t), "tokens");
    m->targets = alloc_zeroed(m->rows_max, sizeof(int32_t), "targets");
}

static void gpt2_free(GPT2 *m) {
    void *blocks[] = {m->params.block, m->params.bf16_block, m->grads.block, m->moment1.block,
                      m->moment2.block, m->rank_grads, m->row_sums, m->subs, m->values,
                      m->kept, m->activations, m->tokens, m->targets};
    plan_free(&m->plan);
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) free(blocks[i]);
    memset(m, 0, sizeof *m);
}

// Random initial weights: each process draws its own part of the same whole tensors.
static void gpt2_init_weights(GPT2 *m, int how, uint64_t seed) {
    for (int p = 0; p < P_COUNT; p++) {
        const ParamSpec *whole = &m->whole[p], *local = &m->local[p];
        Shard mine = shard_of(whole, m->mesh.group_rank, m->mesh.group);
        #pragma omp parallel for collapse(2) schedule(static)
        for (int layer = 0; layer < local->layers; layer++) {
            for (int r = 0; r < local->rows; r++) {
                uint64_t first = layer * spec_layer_size(whole) + shard_row(&mine, r);
                size_t row = layer * spec_layer_size(local) + (size_t)r * local->cols;
                for (int c = 0; c < local->cols; c++) {
                    double value = param_init(whole, p, how, &m->config, seed, first + c);
                    element_set(&m->params, p, row + c, (real)value);
                }
            }
        }
    }
}

// ----------------------------------------------------------------------------
// merges: the only place where ranks sum what blocks make
//
// Ranks talk elsewhere for the vocabulary, the update and files: by mesh_... of tp_blocks.h.

// Ends an all-reduce that began at `begun` and that has been waited for since `idle`: on an
// emulated network it takes at least as long as that would; it is counted.
static void traffic_count(GPT2 *m, int kind, size_t bytes, double begun, double idle) {
    Traffic *t = &m->traffic[kind];
    if (m->network.latency_us > 0 || m->network.gbits > 0) {
        wait_until(begun + network_seconds(&m->network, m->config.R, bytes));
    }
    t->count++;
    t->bytes += bytes;
    t->seconds += seconds_now() - idle;
}

// Sums what the folded ranks bring, parts (F,n), into the first, in the order of the ranks.
static void folded_sum(const GPT2 *m, real *parts, size_t n) {
    const size_t step = 1024; // what is shorter, such as one token's, is not worth waking threads
    #pragma omp parallel for schedule(static) if (m->F > 1 && n > step)
    for (size_t i = 0; i < n; i += step) {
        size_t to = i + step < n ? i + step : n;
        for (int f = 1; f < m->F; f++) {
            for (size_t j = i; j < to; j++) parts[j] += parts[f * n + j];
        }
    }
}

// Sums over all R ranks. parts (F,n) holds what the folded ranks bring; the sum is left in the
// first of them. All ranks of the TP group take part. The order is that of the ranks, so that
// folded and real ranks give the same bits for R = 2.
static void allreduce(GPT2 *m, int kind, real *parts, size_t n) {
    if (m->config.R == 1) return; // nobody to talk to, nothing to count
    double start = seconds_now();
    folded_sum(m, parts, n);
    watch_sum(kind, ++m->sum_number);
    mesh_sum(&m->mesh, MESH_TP, parts, n, sizeof(real));
    watch_sum(TRAFFIC_KINDS, 0);
    traffic_count(m, kind, n * sizeof(real), start, start);
}

// The same in two halves, between which the caller computes and leaves parts alone. One at a time:
// two would share the network. MPI moves it in merge_sums' progress calls, which stand between the
// matmuls of a sub-block.
static void allreduce_begin(GPT2 *m, int kind, real *parts, size_t n) {
    if (m->config.R == 1) return;
    m->merge = (PendingMerge){.kind = kind, .parts = parts, .n = n, .begun = seconds_now()};
    folded_sum(m, parts, n);
    if (m->mesh.group == 2) {
        sums_exchange(&m->merge_sums, &m->mesh, parts, m->received, n * sizeof(real));
    } else {
        sums_begin(&m->merge_sums, &m->mesh, MESH_TP, parts, n, sizeof(real));
    }
    m->traffic[kind].seconds += seconds_now() - m->merge.begun;
}

static void allreduce_end(GPT2 *m) {
    if (m->config.R == 1) return;
    double idle = seconds_now();
    watch_sum(m->merge.kind, ++m->sum_number);
    sums_finish(&m->merge_sums);
    watch_sum(TRAFFIC_KINDS, 0);
    if (m->mesh.group == 2) scaled_add(m->merge.parts, 1, m->received, m->merge.n);
    traffic_count(m, m->merge.kind, m->merge.n * sizeof(real), m->merge.begun, idle);
}

// ----------------------------------------------------------------------------
// sub-blocks: attention (even k) and MLP (odd k) differ in what stands between their two matrices

// Their parameters: [0] attention, [1] MLP.
typedef struct { int ln_w, ln_b, in_w, in_b, out_w, out_b; } SubParams;
static const SubParams sub_params[2] = {
    {P_ln1w, P_ln1b, P_qkvw, P_qkvb, P_attprojw, P_attprojb},
    {P_ln2w, P_ln2b, P_fcw, P_fcb, P_fcprojw, P_fcprojb},
};

// Rank f's own of what a sub-block keeps.
typedef struct { real *normed, *mean, *rstd, *inner, *outer, *kv, *lse; } RankActs;

static RankActs rank_acts(const GPT2 *m, const SubBlock *s, int f) {
    size_t rows = (size_t)m->B * m->T, C = (size_t)m->config.C, rank = (size_t)f;
    size_t copy = s->copies == 1 ? 0 : rank;
    RankActs a = {.normed = s->normed + copy * rows * C,
                  .mean = s->mean + copy * rows, .rstd = s->rstd + copy * rows};
    if (!s->inner) return a; // the final LayerNorm
    a.inner = s->inner + rank * rows * s->width;
    a.outer = s->outer + rank * rows * s->width;
    if (s->in_width == s->width) return a; // MLP
    a.kv = s->kv + rank * m->B_max * m->T_max * 2 * s->width;
    a.lse = s->lse + rank * rows * (m->config.NH / m->config.R);
    return a;
}

// Gain and bias of the LayerNorm that sub-block k begins with, or their gradients; the final one
// for k = 2L.
typedef struct { real *w, *b; } Norm;
static Norm norm_of(const GPT2 *m, const Tensors *t, int k) {
    if (k == 2 * m->config.L) return (Norm){t->at[P_lnfw], t->at[P_lnfb]};
    const SubParams *p = &sub_params[is_mlp(k)];
    return (Norm){whole_layer(m, t, p->ln_w, layer_of(k)), whole_layer(m, t, p->ln_b, layer_of(k))};
}

// LayerNorm of rank f's stream for sub-block k.
static void subblock_norm(GPT2 *m, int k, int f, const real *stream) {
    RankActs a = rank_acts(m, &m->subs[k], f);
    Norm norm = norm_of(m, &m->params, k);
    layernorm_forward(a.normed, a.mean, a.rstd, stream, norm.w, norm.b, m->B * m->T, m->config.C);
}

// out (B,T,cols) = LN(stream) . Win[row0 .. row0+cols-1 of part f]^T + b
static void subblock_in(GPT2 *m, int k, int f, real *out, int row0, int cols) {
    const SubParams *p = &sub_params[is_mlp(k)];
    int C = m->config.C, layer = layer_of(k);
    matmul((Matmul){.out = view_of(out, cols), .a = view_of(rank_acts(m, &m->subs[k], f).normed, C),
                    .b = view_from(part_view(m, &m->params, p->in_w, layer, f), row0),
                    .b_transposed = 1,
                    .bias = view_from(part_view(m, &m->params, p->in_b, layer, f), row0),
                    .M = m->B * m->T, .N = cols, .K = C});
}

// Partial output of rank f (B,T,C), no output bias:
// out = or += Wout[:, part f] . inside(Win[part f] . LN(stream) + b[part f]).
static void subblock_forward(GPT2 *m, int k, int f, real *out, int add) {
    const SubBlock *s = &m->subs[k];
    RankActs a = rank_acts(m, s, f);
    int C = m->config.C, rows = m->B * m->T, width = s->width;
    subblock_in(m, k, f, a.inner, 0, width);
    if (!is_mlp(k)) subblock_in(m, k, f, a.kv + (size_t)m->past * 2 * width, width, 2 * width);
    sums_progress(&m->merge_sums);
    if (is_mlp(k)) gelu_forward(a.outer, a.inner, (size_t)rows * width);
    else attention_forward(a.outer, a.lse, a.inner, a.kv, attention_shape(m));
    sums_progress(&m->merge_sums);
    matmul((Matmul){.out = view_of(out, C), .a = view_of(a.outer, width),
                    .b = part_view(m, &m->params, sub_params[is_mlp(k)].out_w, layer_of(k), f),
                    .b_transposed = 1, .M = rows, .N = C, .K = width, .accumulate = add});
}

// Rank f's gradient of what its input matrix made, kept from subblock_backward to
// subblock_weight_backward.
static real *dinner_at(const GPT2 *m, int k, int f) {
    return m->dinner + (size_t)f * m->B * m->T * m->subs[k].in_width;
}

// From the gradient of rank f's partial output, dout (B,T,C), to those of the stream it read, which
// is written to dstream (B,T,C), or added to it if add_stream, and of its parameters (added to if
// add_grads), without the input matrix and its bias.
static void subblock_backward(GPT2 *m, int k, int f, real *dout, real *dstream, int add_stream,
                              int add_grads) {
    const SubBlock *s = &m->subs[k];
    const SubParams *p = &sub_params[is_mlp(k)];
    const Tensors *w = &m->params, *grads = &m->rank_grads[f];
    RankActs a = rank_acts(m, s, f);
    int C = m->config.C, layer = layer_of(k), rows = m->B * m->T;
    real *dinner = dinner_at(m, k, f);
    View d = view_of(dout, C);

    matmul((Matmul){.out = part_view(m, grads, p->out_w, layer, f), .a = d, .a_transposed = 1,
                    .b = view_of(a.outer, s->width),
                    .M = C, .N = s->width, .K = rows, .accumulate = add_grads});
    sums_progress(&m->merge_sums);
    matmul((Matmul){.out = view_of(m->douter, s->width), .a = d,
                    .b = part_view(m, w, p->out_w, layer, f),
                    .M = rows, .N = s->width, .K = C});
    sums_progress(&m->merge_sums);
    if (is_mlp(k)) gelu_backward(dinner, m->douter, a.inner, (size_t)rows * s->width);
    else attention_backward(dinner, m->douter, a.outer, a.lse, a.inner, a.kv, attention_shape(m));
    sums_progress(&m->merge_sums);
    matmul((Matmul){.out = view_of(m->dnormed, C), .a = view_of(dinner, s->in_width),
                    .b = part_view(m, w, p->in_w, layer, f),
                    .M = rows, .N = C, .K = s->in_width});
    Norm dnorm = norm_of(m, grads, k);
    layernorm_backward(dstream, dnorm.w, dnorm.b, m->dnormed,
                       value_at(m, V_STREAM + m->plan.reads[k], f), a.mean, a.rstd,
                       norm_of(m, w, k).w, rows, C, add_stream, add_grads);
}

// The rest: gradients of the input matrix and its bias.
static void subblock_weight_backward(GPT2 *m, int k, int f, int add_grads) {
    const SubBlock *s = &m->subs[k];
    const SubParams *p = &sub_params[is_mlp(k)];
    const Tensors *grads = &m->rank_grads[f];
    int C = m->config.C, layer = layer_of(k), rows = m->B * m->T;
    real *dinner = dinner_at(m, k, f);
    matmul((Matmul){.out = part_view(m, grads, p->in_w, layer, f),
                    .a = view_of(dinner, s->in_width), .a_transposed = 1,
                    .b = view_of(rank_acts(m, s, f).normed, C),
                    .M = s->in_width, .N = C, .K = rows, .accumulate = add_grads});
    sums_progress(&m->merge_sums);
    bias_backward(part_view(m, grads, p->in_b, layer, f), 1, dinner, rows, s->in_width,
                  add_grads);
}

// ----------------------------------------------------------------------------
// steps: what the plan asks for (see tp_blocks.h)

// Output biases of sub-blocks first .. end-1, added up: (C), or zeros where there are none.
static const real *biases_sum(GPT2 *m, const Step *s) {
    int C = m->config.C;
    if (s->first == s->end) return m->zeros;
    memset(m->bias_sum, 0, (size_t)C * sizeof(real));
    for (int k = s->first; k < s->end; k++) {
        const real *bias = whole_layer(m, &m->params, sub_params[is_mlp(k)].out_b, layer_of(k));
        for (int c = 0; c < C; c++) m->bias_sum[c] += bias[c];
    }
    real times = (real)s->bias;
    for (int c = 0; c < C; c++) m->bias_sum[c] *= times;
    return m->bias_sum;
}

// One copy of a sum: to = scale * from + parts + bias. A stream is normed for the first sub-block
// that reads it while it is in cache.
static void sum_write(GPT2 *m, const Step *s, int f, const real *from, const real *parts,
                      const real *bias) {
    int C = m->config.C, rows = m->B * m->T;
    int reader = s->to >= V_STREAM ? m->plan.reader[s->to - V_STREAM] : -1;
    real *to = value_at(m, s->to, f), scale = (real)s->scale;
    size_t from_step = from ? (size_t)C : 0, parts_step = parts ? (size_t)C : 0;
    RankActs a = reader < 0 ? (RankActs){0} : rank_acts(m, &m->subs[reader], f);
    Norm norm = reader < 0 ? (Norm){0} : norm_of(m, &m->params, reader);
    if (!from) from = m->zeros;
    if (!parts) parts = m->zeros;
    #pragma omp parallel for schedule(static) if (rows > 1)
    for (int i = 0; i < rows; i++) {
        real *row = to + (size_t)i * C;
        sum_row(row, scale, from + i * from_step, parts + i * parts_step, bias, C);
        if (reader < 0) continue;
        real *normed = a.normed + (size_t)i * C;
        layernorm_forward_row(normed, a.mean + i, a.rstd + i, row, norm.w, norm.b, C);
    }
}

static void step_sum(GPT2 *m, const Step *s) {
    size_t n = (size_t)m->B * m->T * m->config.C;
    int traffic = s->to == V_G ? TRAFFIC_BACKWARD : TRAFFIC_FORWARD;
    int every_rank = s->from && !value_is_shared(&m->plan, s->from); // brings a `from` of its own
    if (s->how == SUM_OWN) {
        const real *bias = biases_sum(m, s);
        for (int f = 0; f < m->values[s->to].copies; f++) {
            sum_write(m, s, f, value_at(m, s->from, f), value_at(m, s->parts, f), bias);
        }
        return;
    }
    real *parts = m->values[s->parts].at;
    if (s->how != SUM_END && every_rank) {
        for (int f = 0; f < m->F; f++) {
            scaled_add(value_at(m, s->parts, f), (real)s->scale, value_at(m, s->from, f), n);
        }
    }
    if (s->how == SUM_WHOLE) allreduce(m, traffic, parts, n);
    if (s->how == SUM_BEGIN) allreduce_begin(m, traffic, parts, n);
    if (s->how == SUM_BEGIN) return;
    if (s->how == SUM_END) allreduce_end(m);
    const real *from = every_rank ? NULL : value_at(m, s->from, 0);
    sum_write(m, s, 0, from, parts, biases_sum(m, s));
}

// Rank 0 of the model has a sum of its own.
static void step_bias(GPT2 *m, const Step *s, int add_grads) {
    for (int f = 0; f < m->F; f++) {
        int first = m->rank0 + f == 0, v = first ? s->from : s->parts;
        View grad = part_view(m, &m->rank_grads[f], sub_params[is_mlp(s->k)].out_b,
                              layer_of(s->k), f);
        real scale = (real)(first ? s->scale : 1), *d = value_at(m, v, f);
        bias_backward(grad, scale, d, m->B * m->T, m->config.C, add_grads || s->add);
    }
}

// Adds to G, the gradient of a stream, that of its distance to the teacher's. Both streams have the
// same bits on all ranks, so each rank does this by itself.
static void step_match(GPT2 *m, const Step *s) {
    const GPT2 *teacher = m->teacher;
    int C = m->config.C, rows = m->B * m->T;
    const real *x = value_at(m, s->from, 0);
    const real *y = value_at(teacher, V_STREAM + teacher->plan.boundary[s->k], 0);
    real *G = value_at(m, s->to, 0), scale = (real)m->match_scale;
    #pragma omp parallel for schedule(static)
    for (int i = 0; i < rows; i++) {
        double sum = 0;
        for (size_t j = (size_t)i * C; j < (size_t)(i + 1) * C; j++) {
            real d = x[j] - y[j];
            G[j] += scale * d;
            sum += (double)d * (double)d;
        }
        m->row_sums[i] = sum;
    }
    double sum = 0;
    for (int i = 0; i < rows; i++) sum += m->row_sums[i];
    m->distance += sum / rows / C / m->plan.matches;
}

// The matrices and the inner bias of sub-block k have their gradients of this update, short of the
// sum over data-parallel replicas: it goes on while earlier sub-blocks compute. Tensors of which
// ranks have partial gradients come later.
static void replica_sums_begin(GPT2 *m, int k) {
    const int tensors[3] = {sub_params[is_mlp(k)].in_w, sub_params[is_mlp(k)].in_b,
                            sub_params[is_mlp(k)].out_w};
    for (int i = 0; i < 3; i++) {
        size_t n = spec_layer_size(&m->local[tensors[i]]);
        real *grad = whole_layer(m, &m->grads, tensors[i], layer_of(k));
        sums_begin(&m->replica_sums, &m->mesh, MESH_DP, grad, n, sizeof(real));
    }
    sums_progress(&m->replica_sums);
}

static void steps_run(GPT2 *m, const Steps *steps, int add_grads) {
    m->sum_number = 0;
    for (const Step *s = steps->at; s < steps->at + steps->count; s++) {
        switch (s->kind) {
        case STEP_SUB:
            for (int f = 0; f < m->F; f++) {
                // Normed when the stream was written, if that was for this sub-block.
                int normed = m->plan.reader[s->from - V_STREAM] == s->k;
                if (!normed && f < m->subs[s->k].copies) {
                    subblock_norm(m, s->k, f, value_at(m, s->from, f));
                }
                subblock_forward(m, s->k, f, value_at(m, s->to, f), s->add);
            }
            break;
        case STEP_SUM: step_sum(m, s); break;
        case STEP_BIAS: step_bias(m, s, add_grads); break;
        case STEP_BACK:
            for (int f = 0; f < m->F; f++) {
                subblock_backward(m, s->k, f, value_at(m, s->from, f), value_at(m, s->to, f),
                                  s->add, add_grads);
            }
            break;
        case STEP_WEIGHT:
            for (int f = 0; f < m->F; f++) subblock_weight_backward(m, s->k, f, add_grads);
            if (m->last_pass) replica_sums_begin(m, s->k);
            break;
        case STEP_MATCH: step_match(m, s); break;
        }
    }
}

// ----------------------------------------------------------------------------
// embedding and head, which share wte. Either every rank has all of it, or its rows are cut over
// the tensor ranks (`-vp 1`, the default where R is more than 1; Megatron-LM, arXiv 1909.08053,
// section 3), and a rank embeds and scores the tokens it has the rows of.

typedef struct { int first, count; } TokenRange;

// The tokens whose rows part f of this process holds.
static TokenRange vocab_range(const GPT2 *m, int f) {
    if (!spec_is_cut(&m->whole[P_wte])) return (TokenRange){0, m->config.V};
    int first = (m->rank0 + f) * m->vocab_width, left = m->config.V - first;
    return (TokenRange){first, left < 0 ? 0 : int_min(left, m->vocab_width)};
}

static real *logits_part(const GPT2 *m, int f) {
    return m->logits + (size_t)f * m->scored * m->vocab_width;
}

// Sums what the parts of the vocabulary bring, parts (vocab_parts,n), into the first.
static void vocab_sum(GPT2 *m, real *parts, size_t n) {
    if (spec_is_cut(&m->whole[P_wte])) allreduce(m, TRAFFIC_VOCABULARY, parts, n);
}

static void tokens_embed(GPT2 *m) {
    int C = m->config.C, rows = m->B * m->T;
    size_t n = (size_t)rows * C;
    real *parts = m->values[V_O0].at, *stream = m->values[V_STREAM].at;
    for (int f = 0; f < m->vocab_parts; f++) {
        TokenRange r = vocab_range(m, f);
        View wte = part_view(m, &m->params, P_wte, 0, f);
        embedding_forward(parts + f * n, m->tokens, wte, r.first, r.count, rows, C);
    }
    vocab_sum(m, parts, n);
    const real *wpe = m->params.at[P_wpe] + (size_t)m->past * C;
    position_forward(stream, parts, wpe, m->B, m->T, C);
    subblock_norm(m, 0, 0, stream);
}

// Loss of each token, and lse, from the logits of all parts of all ranks.
static void losses_compute(GPT2 *m) {
    int rows = m->B * m->T;
    size_t n = (size_t)rows;
    for (int f = 0; f < m->vocab_parts; f++) {
        TokenRange r = vocab_range(m, f);
        classifier_forward(m->largest + f * n, m->sums + 2 * f * n, m->sums + (2 * f + 1) * n,
                           logits_part(m, f), m->targets, rows, r.first, r.count, m->vocab_width);
    }
    real *most = m->lse; // over all ranks; lse itself comes after
    memcpy(most, m->largest, n * sizeof(real));
    if (spec_is_cut(&m->whole[P_wte])) {
        double start = seconds_now();
        for (int f = 1; f < m->vocab_parts; f++) {
            for (size_t i = 0; i < n; i++) {
                most[i] = m->largest[f * n + i] > most[i] ? m->largest[f * n + i] : most[i];
            }
        }
        mesh_max(&m->mesh, most, n, sizeof(real));
        traffic_count(m, TRAFFIC_VOCABULARY, n * sizeof(real), start, start);
        for (int f = 0; f < m->vocab_parts; f++) {
            for (size_t i = 0; i < n; i++) {
                m->sums[2 * f * n + i] *= real_exp(m->largest[f * n + i] - most[i]);
            }
        }
    }
    vocab_sum(m, m->sums, 2 * n);
    for (size_t i = 0; i < n; i++) {
        m->lse[i] = most[i] + (real)log((double)m->sums[i]);
        m->losses[i] = m->lse[i] - m->sums[n + i];
    }
}

// Logits of one of the tokens that the last forward pass scored, over the whole vocabulary:
// out (V). All ranks take part.
static void logits_collect(GPT2 *m, int row, float *out) {
    size_t V = (size_t)m->config.V;
    memset(out, 0, V * sizeof *out);
    for (int f = 0; f < m->vocab_parts; f++) {
        TokenRange r = vocab_range(m, f);
        const real *logits = logits_part(m, f) + (size_t)row * m->vocab_width;
        for (int v = 0; v < r.count; v++) out[r.first + v] = (float)logits[v];
    }
    if (!spec_is_cut(&m->whole[P_wte])) return;
    double start = seconds_now();
    mesh_sum(&m->mesh, MESH_TP, out, V, sizeof *out);
    traffic_count(m, TRAFFIC_VOCABULARY, V * sizeof *out, start, start);
}

// ----------------------------------------------------------------------------
// forward and backward pass

// Reads T tokens of each of B sequences at positions past .. past+T-1, and makes the logits of the
// last `scored` of all these tokens. The keys and values of `past` tokens are where earlier calls
// have left them, those of the new ones are left behind them; with a past, B is 1.
static void forward_pass(GPT2 *m, const int32_t *tokens, int B, int T, int past, int scored) {
    int C = m->config.C, rows = B * T;
    m->B = B;
    m->T = T;
    m->past = past;
    m->scored = scored;
    memcpy(m->tokens, tokens, (size_t)rows * sizeof *tokens);
    tokens_embed(m);
    steps_run(m, &m->plan.forward, 0);
    const real *normed = m->subs[2 * m->config.L].normed + (size_t)(rows - scored) * C;
    for (int f = 0; f < m->vocab_parts; f++) {
        matmul((Matmul){.out = view_of(logits_part(m, f), m->vocab_width),
                        .a = view_of((real *)normed, C),
                        .b = part_view(m, &m->params, P_wte, 0, f), .b_transposed = 1,
                        .M = scored, .N = vocab_range(m, f).count, .K = C});
    }
}

// Logits of tokens (B,T) into m->logits; with targets (B,T), also each token's loss. Returns the
// mean loss in nats, or NaN without targets. B and T are at most those the model was created for.
static double gpt2_forward(GPT2 *m, const int32_t *tokens, const int32_t *targets, int B, int T) {
    int rows = B * T;
    forward_pass(m, tokens, B, T, 0, rows);
    if (!targets) return NAN;
    memcpy(m->targets, targets, (size_t)rows * sizeof *targets);
    losses_compute(m);
    double sum = 0;
    for (int i = 0; i < rows; i++) sum += (double)m->losses[i];
    return sum / rows;
}

// Reads T tokens of one sequence after `past` ones, and makes the logits of the last `scored` of
// them: 1, or with T up to SCORED_MAX as many. past + T is at most the T that the model was created
// for.
static void gpt2_read(GPT2 *m, const int32_t *tokens, int T, int past, int scored) {
    for (int done = 0, n; done < T; done += n) {
        n = int_min(m->rows_max, T - done);
        int last = done + n == T;
        forward_pass(m, tokens + done, 1, n, past + done, last ? int_min(scored, n) : 0);
    }
}

// Gradients of scale * loss of the last forward pass: its mean over tokens and, with a teacher that
// has read the same tokens, the weighted distance to its streams. They replace what the gradients
// were, or are added to it. Partial gradients are not yet summed over ranks: gradients_reduce does
// that once per update. Logits are overwritten.
static void gpt2_backward(GPT2 *m, double scale, int add_grads) {
    int C = m->config.C, rows = m->B * m->T;
    size_t n = (size_t)rows * C;
    const SubBlock *last = &m->subs[2 * m->config.L];
    real *dlast = m->values[V_O0].at, *G = m->values[V_G].at;
    m->distance = 0;
    if (m->teacher) m->match_scale = 2 * m->match_weight * scale / n / m->plan.matches;
    for (int f = 0; f < m->vocab_parts; f++) {
        TokenRange r = vocab_range(m, f);
        View dlogits = view_of(logits_part(m, f), m->vocab_width);
        classifier_backward(dlogits.data, m->lse, m->targets, (real)(scale / rows), rows, r.first,
                            r.count, m->vocab_width);
        matmul((Matmul){.out = part_view(m, &m->grads, P_wte, 0, f),
                        .a = dlogits, .a_transposed = 1, .b = view_of(last->normed, C),
                        .M = r.count, .N = C, .K = rows, .accumulate = add_grads});
        matmul((Matmul){.out = view_of(dlast + f * n, C), .a = dlogits,
                        .b = part_view(m, &m->params, P_wte, 0, f),
                        .M = rows, .N = C, .K = r.count});
    }
    vocab_sum(m, dlast, n);
    layernorm_backward(G, m->grads.at[P_lnfw], m->grads.at[P_lnfb], dlast,
                       m->values[V_STREAM + m->plan.reads[2 * m->config.L]].at, last->mean,
                       last->rstd, m->params.at[P_lnfw], rows, C, 0, add_grads);
    steps_run(m, &m->plan.backward, add_grads);
    for (int f = 0; f < m->vocab_parts; f++) {
        TokenRange r = vocab_range(m, f);
        real *dwte = part_view(m, &m->grads, P_wte, 0, f).data;
        embedding_backward(dwte, G, m->tokens, r.first, r.count, rows, C);
    }
    position_backward(m->grads.at[P_wpe], G, m->B, m->T, C, add_grads);
}

// ----------------------------------------------------------------------------
// update: sum of partial gradients, norm, AdamW

// Gradients of tensors that every rank has whole: each process of a TP group summed them over the
// replicas for itself, and with three replicas and more the order of a sum, so its last bits, may
// depend on where its processes run. Those of the first process count.
static void whole_grads_agree(GPT2 *m) {
    const Mesh *mesh = &m->mesh;
    if (mesh->DP < 3) return;
    mesh_broadcast(mesh, MESH_TP, 0, m->partial_grads, partial_grads_size(m) * sizeof(real));
    for (int p = 0; p < P_COUNT; p++) {
        const ParamSpec *spec = &m->local[p];
        if (spec_is_cut(spec) || spec->cut == WHOLE_PARTIAL_GRAD) continue;
        mesh_broadcast(mesh, MESH_TP, 0, m->grads.at[p], spec_size(spec) * sizeof(real));
    }
}

// Ends an update's gradients. Tensors that every rank has whole, but saw its own streams with: the
// sum over ranks is the gradient, one all-reduce. Then the sums over replicas: those begun in the
// last backward pass, and the rest.
static void gradients_reduce(GPT2 *m) {
    allreduce(m, TRAFFIC_GRADIENTS, m->partial_grads, partial_grads_size(m));
    int begun = m->replica_sums.count;
    sums_finish(&m->replica_sums);
    mesh_sum(&m->mesh, MESH_DP, m->partial_grads, partial_grads_size(m), sizeof(real));
    for (int p = 0; p < P_COUNT; p++) {
        const ParamSpec *spec = &m->local[p];
        int done = spec->cut == WHOLE_PARTIAL_GRAD || (begun && is_cut_in_blocks(m->local, p));
        if (!done) mesh_sum(&m->mesh, MESH_DP, m->grads.at[p], spec_size(spec), sizeof(real));
    }
    whole_grads_agree(m);
}

// Sum of squares of rank f's part of one tensor's gradient. Row by row in double, rows in order, so
// that it depends neither on threads nor on how ranks are folded.
static double part_norm_squared(GPT2 *m, int p, int f) {
    const ParamSpec *spec = &m->local[p];
    Shard s = shard_of(spec, f, m->F);
    double total = 0;
    for (int layer = 0; layer < spec->layers; layer++) {
        View part = part_view(m, &m->grads, p, layer, f);
        #pragma omp parallel for schedule(static)
        for (int r = 0; r < s.rows; r++) {
            const real *row = view_row(part, r);
            double sum = 0;
            #pragma omp simd reduction(+ : sum)
            for (int c = 0; c < s.cols; c++) sum += (double)row[c] * (double)row[c];
            m->row_sums[r] = sum;
        }
        for (int r = 0; r < s.rows; r++) total += m->row_sums[r];
    }
    return total;
}

static int counted_per_rank(const GPT2 *m, int p) {
    return spec_is_cut(&m->local[p]);
}

// Norm of the whole gradient: sharded tensors over all ranks, replicated ones once. Into `sums` go
// the culprit and, if any rank knows of it, the wish to stop. All ranks of the TP group take part
// and get the same.
static double gradients_norm(GPT2 *m, UpdateSums *sums) {
    int R = m->config.R, F = m->F, n = F * P_COUNT + 1;
    double *mine = alloc_zeroed(n, sizeof(double), "norm");
    double *all = alloc_zeroed((size_t)m->mesh.group * n, sizeof(double), "norm");
    double total = 0;
    sums->culprit = NULL;
    for (int f = 0; f < F; f++) {
        for (int p = 0; p < P_COUNT; p++) {
            if (f == 0 || counted_per_rank(m, p)) {
                mine[f * P_COUNT + p] = part_norm_squared(m, p, f);
            }
        }
    }
    mine[n - 1] = sums->stop;
    mesh_gather(&m->mesh, mine, n, all);
    for (int p = 0; p < P_COUNT; p++) {
        int ranks = counted_per_rank(m, p) ? R : 1;
        for (int rank = 0; rank < ranks; rank++) {
            double squared = all[rank / F * n + rank % F * P_COUNT + p];
            if (!isfinite(squared) && !sums->culprit) sums->culprit = m->local[p].name;
            total += squared;
        }
    }
    for (int i = 0; i < m->mesh.group; i++) sums->stop |= all[i * n + n - 1] != 0;
    free(mine);
    free(all);
    return sqrt(total);
}

// One AdamW step (arXiv 1711.05101), number `update` from 1.
static void gpt2_update(GPT2 *m, AdamW h, int64_t update) {
    real b1 = (real)h.beta1, b2 = (real)h.beta2, eps = (real)h.eps, scale = (real)h.grad_scale;
    real rate = (real)h.rate;
    real correct1 = (real)(1 / (1 - pow(h.beta1, (double)update)));
    real correct2 = (real)(1 / (1 - pow(h.beta2, (double)update)));
    for (int p = 0; p < P_COUNT; p++) {
        real decay = (real)(m->local[p].decay ? h.decay : 0);
        real *w = m->params.at[p], *g = m->grads.at[p], *m1 = m->moment1.at[p];
        real *m2 = m->moment2.at[p];
        size_t n = spec_size(&m->local[p]);
        #pragma omp parallel for simd schedule(static)
        for (size_t i = 0; i < n; i++) {
            real d = g[i] * scale;
            m1[i] = b1 * m1[i] + (1 - b1) * d;
            m2[i] = b2 * m2[i] + (1 - b2) * d * d;
            real root = real_sqrt(m2[i] * correct2);
            w[i] -= rate * (m1[i] * correct1 / (root + eps) + decay * w[i]);
        }
    }
}

// ----------------------------------------------------------------------------
// checkpoints: between files, which hold whole tensors, and what this process has of them

static Tensors *set_tensors(GPT2 *m, int set) {
    Tensors *sets[] = {[SET_PARAMS] = &m->params, [SET_MOMENT1] = &m->moment1,
                       [SET_MOMENT2] = &m->moment2};
    return sets[set];
}

static size_t row_begin(const GPT2 *m, int p, int layer, int row) {
    return (size_t)layer * spec_layer_size(&m->local[p]) + (size_t)row * m->local[p].cols;
}

static void model_rows_put(void *owner, int set, int p, int layer, int row, int rows,
                           const float *values) {
    GPT2 *m = owner;
    Shard mine = shard_of(&m->whole[p], m->mesh.group_rank, m->mesh.group);
    size_t cols = (size_t)m->whole[p].cols, first = (size_t)row * cols;
    for (int r = 0; r < mine.rows; r++) {
        size_t at = shard_row(&mine, r);
        if (at < first || at >= first + (size_t)rows * cols) continue;
        size_t out = row_begin(m, p, layer, r);
        for (int c = 0; c < mine.cols; c++) {
            element_set(set_tensors(m, set), p, out + c, (real)values[at - first + c]);
        }
    }
}

// What other processes have is zero here until they are joined; of a replicated tensor the first
// brings all.
static void model_rows_get(void *owner, int set, int p, int layer, int row, int rows,
                           float *values) {
    GPT2 *m = owner;
    Shard mine = shard_of(&m->whole[p], m->mesh.group_rank, m->mesh.group);
    size_t cols = (size_t)m->whole[p].cols, first = (size_t)row * cols;
    int cut = spec_is_cut(&m->whole[p]);
    memset(values, 0, (size_t)rows * cols * sizeof(float));
    for (int r = 0; r < mine.rows && (cut || m->mesh.group_rank == 0); r++) {
        size_t at = shard_row(&mine, r);
        if (at < first || at >= first + (size_t)rows * cols) continue;
        size_t in = row_begin(m, p, layer, r);
        for (int c = 0; c < mine.cols; c++) {
            values[at - first + c] = (float)element_get(set_tensors(m, set), p, in + c);
        }
    }
    mesh_join(&m->mesh, values, (size_t)rows * cols);
}

static uint64_t gpt2_load(GPT2 *m, const char *path) {
    return model_read(path, &m->config, model_rows_put, m);
}

static uint64_t gpt2_load_state(GPT2 *m, const char *path, int64_t updates) {
    return state_read(path, &m->config, updates, model_rows_put, m);
}

// The first TP group gathers, its first process writes.
static void checkpoint_save(GPT2 *m, const char *folder, int64_t updates, int64_t keep,
                            const char *record) {
    if (m->mesh.dp_rank) return;
    checkpoint_write(folder, &m->config, updates, keep, record, m->mesh.rank == 0, model_rows_get,
                     m);
}

static void gpt2_check(GPT2 *m, const char *where) {
    ParamSpec specs[P_COUNT];
    param_specs(specs, &m->config);
    if (m->mesh.rank) where = NULL;
    tensors_write(NULL, where, specs, SET_PARAMS, model_rows_get, m);
}

// ----------------------------------------------------------------------------
// what a run asks of its trainer, beside the functions above; data/run.h says what each has to do

static void gpt2_create_for(GPT2 *m, const GPT2Config *config, Mesh mesh, const Options *o,
                            int purpose) {
    int B = purpose == FOR_SAMPLES ? 1 : (int)o->batch;
    if (o->held == HELD_BF16) {
        if (purpose == FOR_TRAINING) {
            fail("-w bf16: only without updates and -o, as with -x 0 and -g");
        }
        purpose |= IN_BF16;
    }
    gpt2_create(m, config, mesh, B, (int)o->length, purpose);
    m->network = (Network){.latency_us = o->net_latency, .gbits = o->net_gbits};
}

static void gpt2_teach(GPT2 *m, GPT2 *teacher, double weight) {
    m->teacher = teacher;
    m->match_weight = weight;
    plan_distill(&m->plan, &teacher->plan);
}

static void gpt2_micro_step(GPT2 *m, const int32_t *tokens, const int32_t *targets, int B, int T,
                            int micro, int micro_steps) {
    if (m->teacher) forward_pass(m->teacher, tokens, B, T, 0, 0);
    double loss = gpt2_forward(m, tokens, targets, B, T) / micro_steps;
    m->last_pass = micro == micro_steps - 1;
    gpt2_backward(m, 1.0 / ((double)micro_steps * m->mesh.DP), micro > 0);
    double distance = m->distance / micro_steps;
    m->loss_sum = micro ? m->loss_sum + loss : loss;
    m->distance_sum = micro ? m->distance_sum + distance : distance;
}

static UpdateSums gpt2_gradients(GPT2 *m) {
    double replicas[] = {m->loss_sum, m->distance_sum, stop_asked != 0};
    mesh_sum(&m->mesh, MESH_DP, replicas, 3, sizeof *replicas);
    UpdateSums sums = {.loss = replicas[0] / m->mesh.DP, .distance = replicas[1] / m->mesh.DP,
                       .stop = replicas[2] > 0};
    gradients_reduce(m);
    sums.norm = gradients_norm(m, &sums);
    return sums;
}

// A number that changes when any bit of the tensors changes that every rank has whole.
static uint64_t replicated_hash(GPT2 *m) {
    uint64_t hash = 0;
    for (int p = 0; p < P_COUNT; p++) {
        const uint16_t *words = m->params.bf16[p];
        size_t n = spec_size(&m->local[p]);
        if (spec_is_cut(&m->local[p])) continue;
        if (words) hash = words_hash(hash, words, n * sizeof *words); // Vp is even: whole words
        else hash = words_hash(hash, m->params.at[p], n * sizeof(real));
    }
    return hash;
}

static int gpt2_describe(GPT2 *m, int i, char *line, size_t size) {
    if (i > 0) return 0;
    double MiB = 1.0 / (1 << 20), tensors = 0;
    for (int p = 0; p < P_COUNT; p++) {
        size_t each = m->params.bf16[p] ? sizeof(uint16_t) : sizeof(real);
        tensors += (double)(spec_size(&m->local[p]) * each) * MiB;
    }
    double partials = (double)((m->F - 1) * partial_grads_size(m) * sizeof(real)) * MiB;
    double gradients = m->grads.block ? tensors + partials : 0;
    snprintf(line, size,
             "# memory_MiB parameters %.1f gradients %.1f moments %.1f activations %.1f", tensors,
             gradients, m->grads.block ? 2 * tensors : 0, (double)activations_bytes(m) * MiB);
    return 1;
}

static int gpt2_describe_end(char *line, size_t size) {
    (void)line, (void)size;
    return 0;
}

static int gpt2_describe_process(GPT2 *m, char out[PROCESS_WHAT]) {
    snprintf(out, PROCESS_WHAT, "%d thread%s", m->threads, m->threads > 1 ? "s" : "");
    return 0;
}

// ----------------------------------------------------------------------------
// main

#include "data/run.h"

_Static_assert(DRAFTS_MAX + 1 <= THIN_ROWS && DRAFTS_MAX + 1 <= SCORED_MAX,
               "a check of drafts has the bits of tokens one by one");

#ifndef NO_MAIN // programs that include this file for its model have a main of their own
int main(int argc, char **argv) {
    static Run run; // all zero
    int world, rank;
    descriptors_open();
    processes_begin(&world, &rank);
    run_parse(&run, argc, argv, rank);
    if (run_instead(&run)) {
        processes_end();
        return 0;
    }
    run_open(&run, world, rank);
    run_say_facts(&run);
    for (int64_t done = run.first;; done++) { // updates
        if (run_validation_due(&run, done)) run_validate(&run, done);
        if (run_sample_due(&run, done)) run_sample(&run, done);
        if (run_checkpoint_due(&run, done)) run_checkpoint(&run, done);
        if (done >= run.updates || run.stop) break;
        RunlogUpdate update = run_update(&run, done + 1);
        run_progress(&run, &update);
    }
    run_summary(&run);
    int status = run_close(&run);
    processes_end();
    return status;
}
#endif
