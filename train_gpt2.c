/*
GPT-2 training on the CPU with tensor parallelism (TP) that needs few all-reduces. The numerical
oracle of the project: train_gpt2.cu, the CUDA trainer, has to give the same numbers.

A transformer block is two sub-blocks, attention and MLP. Cut over R tensor ranks, each rank
computes a partial output of every sub-block, and an all-reduce ("merge") adds them up. How often
that is done is the block's letter (`-p`):

  t  Megatron TP    merge after attention and after the MLP     2 all-reduces per block
  s  SPD            merge after the MLP only                    1
  p  Parallel       merge after the last p of a run             1 per run
  l  Ladder         as t, hidden behind the next sub-block      2 per block

Ranks live in processes of their own under mpirun, or together in one process ("folded"), each on
views of the same tensors; what they exchange goes through `allreduce`, which counts and times it. A
simulation and a real run are the same code and, for two ranks, the same bits.

  make train_gpt2                            builds it and prepares the text when that is missing
  ./train_gpt2 -p sppp -x 500 -l 1e-3        trains the 4x4x128 model on Shakespeare's characters
  OMP_NUM_THREADS=1 ./train_gpt2 -p sppp     the same numbers, bit for bit
  mpirun -n 2 ./train_gpt2 -p sppp           the same again, each process with its half of the model
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

// e^x, to 2 ulp in float. The C library's expf keeps compilers from vectorizing a loop; this is
// straight-line code: x = n ln2 + r with |r| <= ln2/2, a polynomial for e^r (Cephes), and n added
// to the exponent. NaN stays NaN; beyond the range of float the result is the largest or smallest
// power in range, never wrapped.
static inline real real_exp(real x) {
    if (sizeof(real) == sizeof(double)) return (real)exp((double)x);
    float y = (float)x;
    y = y > 88.0f ? 88.0f : y;
    y = y < -87.0f ? -87.0f : y;
    float n = (y * 1.44269504f + 12582912.0f) - 12582912.0f; // 1.5 * 2^23 rounds to an integer
    float r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
    float e = 1.9875691500e-4f;
    e = e * r + 1.3981999507e-3f;
    e = e * r + 8.3334519073e-3f;
    e = e * r + 4.1665795894e-2f;
    e = e * r + 1.6666665459e-1f;
    e = e * r + 5.0000001201e-1f;
    e = e * r * r + r + 1.0f;
    union { float value; uint32_t bits; } power;
    power.bits = (uint32_t)((int32_t)n + 127) << 23;
    return (real)(e * power.value);
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
} View;

typedef struct {
    View out;         // (M,N)
    View a;           // (M,K), stored as (K,M) if a_transposed
    int a_transposed;
    View b;           // (K,N), stored as (N,K) if b_transposed
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

static inline real *view_row(View v, int i) {
    if (v.group) return v.data + (size_t)(i / v.group) * v.jump + (size_t)(i % v.group) * v.ld;
    return v.data + (size_t)i * v.ld;
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

// Computes rows i0.. (at most MB) and columns j0.. of out.
static void block_compute(const Matmul *m, int i0, int rows, int j0, int cols) {
    static _Thread_local real packed[MB / MR * A_PANEL] __attribute__((aligned(64)));
    static _Thread_local real panel[KC * NR] __attribute__((aligned(64)));
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
            (m->b_transposed ? panel_transpose : panel_copy)(m->b, k0, t.depth, j, t.cols, panel);
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

static void range_compute(const Matmul *m, int i0, int i1, int j0, int j1) {
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
    if (threads == 1 || (double)m.M * m.N * m.K < 1 << 18) {
        matmul_serial(m);
        return;
    }
    // The time of a rectangle goes with its area, plus what it costs to read or pack the rows of a
    // and the columns of b.
    double best = INFINITY, row_cost = m.a_transposed ? 14 : 2;
    double column_cost = m.b_transposed ? 14 : 7;
    for (int d = 1; d <= threads; d++) {
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
static void embedding_forward(real *out, const int32_t *tokens, const real *wte, int first,
                              int count, int rows, int C) {
    #pragma omp parallel for schedule(static)
    for (int i = 0; i < rows; i++) {
        int held = tokens[i] >= first && tokens[i] < first + count;
        real *row = out + (size_t)i * C;
        if (held) memcpy(row, wte + (size_t)(tokens[i] - first) * C, (size_t)C * sizeof(real));
        else memset(row, 0, (size_t)C * sizeof(real));
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
    #pragma omp parallel for schedule(static)
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
    #pragma omp parallel for schedule(static)
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
    int B, T, heads, HS; // heads of one tensor rank, NH/R, and their size
    real *scratch;       // 2 (ATTENTION_ROWS, T) for each of
    int threads;
} AttentionShape;

// Q, K or V (part 0, 1, 2) of sequence b, head h, from row t on; qkv (B,T,3,heads,HS).
static View attention_view(const AttentionShape *s, real *qkv, int part, int b, int h, int t) {
    size_t width = (size_t)s->heads * s->HS;
    return view_of(qkv + ((size_t)b * s->T + t) * 3 * width + part * width + (size_t)h * s->HS,
                   3 * width);
}

static View attention_out_view(const AttentionShape *s, real *out, int b, int h, int t) {
    size_t width = (size_t)s->heads * s->HS;
    return view_of(out + ((size_t)b * s->T + t) * width + (size_t)h * s->HS, width);
}

// Probabilities of queries t .. t+n-1 over keys 0 .. t+n-1 from their scores, in place; keys after
// a query get 0. lse (n) is written.
static void attention_softmax(real *scores, real *lse, int t, int n, real scale) {
    int keys = t + n;
    for (int i = 0; i < n; i++) {
        real *row = scores + (size_t)i * keys, largest = row[0], sum = 0;
        int seen = t + i + 1;
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
static void attention_softmax_again(real *scores, const real *lse, int t, int n, real scale) {
    int keys = t + n;
    for (int i = 0; i < n; i++) {
        real *row = scores + (size_t)i * keys, shift = lse[i];
        int seen = t + i + 1;
        for (int j = 0; j < seen; j++) row[j] = real_exp(not_positive(row[j] * scale - shift));
        for (int j = seen; j < keys; j++) row[j] = 0;
    }
}

// out (B,T,heads,HS), lse (B,heads,T), qkv (B,T,3,heads,HS)
static void attention_forward(real *out, real *lse, real *qkv, AttentionShape s) {
    real scale = 1 / (real)sqrt((double)s.HS);
    #pragma omp parallel for collapse(2) schedule(static) num_threads(s.threads)
    for (int b = 0; b < s.B; b++) {
        for (int h = 0; h < s.heads; h++) {
            real *probs = s.scratch + (size_t)omp_get_thread_num() * 2 * ATTENTION_ROWS * s.T;
            real *lse_head = lse + ((size_t)b * s.heads + h) * s.T;
            View K = attention_view(&s, qkv, 1, b, h, 0), V = attention_view(&s, qkv, 2, b, h, 0);
            for (int t = 0; t < s.T; t += ATTENTION_ROWS) {
                int n = int_min(ATTENTION_ROWS, s.T - t), keys = t + n;
                View P = view_of(probs, keys), Q = attention_view(&s, qkv, 0, b, h, t);
                matmul_serial((Matmul){.out = P, .a = Q, .b = K, .b_transposed = 1, .M = n,
                                       .N = keys, .K = s.HS});
                attention_softmax(probs, lse_head + t, t, n, scale);
                matmul_serial((Matmul){.out = attention_out_view(&s, out, b, h, t), .a = P, .b = V,
                                       .M = n, .N = s.HS, .K = keys});
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

// dqkv is written; dout, out (B,T,heads,HS); lse, qkv as in the forward pass
static void attention_backward(real *dqkv, real *dout, real *out, real *lse, real *qkv,
                               AttentionShape s) {
    real scale = 1 / (real)sqrt((double)s.HS);
    #pragma omp parallel for collapse(2) schedule(static) num_threads(s.threads)
    for (int b = 0; b < s.B; b++) {
        for (int h = 0; h < s.heads; h++) {
            real *probs = s.scratch + (size_t)omp_get_thread_num() * 2 * ATTENTION_ROWS * s.T;
            real *dprobs = probs + (size_t)ATTENTION_ROWS * s.T;
            real *lse_head = lse + ((size_t)b * s.heads + h) * s.T;
            View K = attention_view(&s, qkv, 1, b, h, 0), V = attention_view(&s, qkv, 2, b, h, 0);
            View dK = attention_view(&s, dqkv, 1, b, h, 0);
            View dV = attention_view(&s, dqkv, 2, b, h, 0);
            for (int t = 0; t < s.T; t++) {
                memset(view_row(dK, t), 0, (size_t)s.HS * sizeof(real));
                memset(view_row(dV, t), 0, (size_t)s.HS * sizeof(real));
            }
            for (int t = 0; t < s.T; t += ATTENTION_ROWS) {
                int n = int_min(ATTENTION_ROWS, s.T - t), keys = t + n;
                View Q = attention_view(&s, qkv, 0, b, h, t);
                View dQ = attention_view(&s, dqkv, 0, b, h, t);
                View d = attention_out_view(&s, dout, b, h, t);
                View o = attention_out_view(&s, out, b, h, t);
                View P = view_of(probs, keys), dP = view_of(dprobs, keys);
                matmul_serial((Matmul){.out = P, .a = Q, .b = K, .b_transposed = 1, .M = n,
                                       .N = keys, .K = s.HS});
                attention_softmax_again(probs, lse_head + t, t, n, scale);
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
    real *block; // the allocation that holds them all
} Tensors;

// What one sub-block keeps for its backward pass. Where ranks read the same stream there is one
// copy of its LayerNorm, else one for each.
typedef struct {
    real *normed;      // (copies,B,T,C) LayerNorm of the stream it reads
    real *mean, *rstd; // (copies,B,T)
    real *inner;       // (F, B,T,3C/R) attention: Q, K, V         MLP: (F, B,T,4C/R) before GELU
    real *outer;       // (F, B,T,C/R)  attention: heads' output   MLP: (F, B,T,4C/R) after GELU
    real *lse;         // (F, B,NH/R,T) attention: log of each row's sum of exponentials
    int copies;        // 1 or F
    int inner_width, outer_width; // per rank: 3C/R and C/R, or 4C/R twice
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

typedef struct {
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
    int B_max, T_max;         // what the activations below have room for
    int B, T;                 // of the last forward pass
    real *activations;        // the allocation that holds everything from here on
    Value *values;            // of the plan, by V_...
    SubBlock *subs;           // (2L+1), the last of which is the final LayerNorm alone
    int vocab_parts;          // parts of the vocabulary in this process: 1, or F where it is cut
    int vocab_width;          // columns of each part: Vp, or the rows of wte that a rank has
    real *logits;             // (vocab_parts, B,T,vocab_width), and then their gradient
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
    double *row_sums;         // for the gradient norm
    Traffic traffic[TRAFFIC_KINDS]; // what was executed since the model was created
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
    real *data = t->at[p] + (size_t)layer * spec_layer_size(&m->local[p]) + s.offset;
    return (View){data, s.ld, s.group < s.rows ? s.group : 0, s.jump};
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
    return (AttentionShape){.B = m->B, .T = m->T, .heads = c->NH / c->R, .HS = c->C / c->NH,
                            .scratch = m->attention_scratch, .threads = m->threads};
}

static void tensors_allocate(Tensors *t, const ParamSpec specs[P_COUNT], const char *what) {
    t->block = alloc_zeroed(param_count(specs), sizeof(real), what);
    real *next = t->block;
    for (int p = 0; p < P_COUNT; p++) t->at[p] = next, next += spec_size(&specs[p]);
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

// Lays all activations out in `block`, or only counts them if it is NULL. Returns the number of
// reals.
static size_t activations_lay(GPT2 *m, real *block) {
    const GPT2Config *c = &m->config;
    size_t BT = (size_t)m->B_max * m->T_max, BTC = BT * c->C, F = m->F, used = 0;
    size_t parts = m->vocab_parts;
    int Cr = c->C / c->R;
    for (int v = V_NONE + 1; v < V_STREAM + m->plan.streams; v++) {
        Value *value = &m->values[v];
        value->copies = value_is_shared(&m->plan, v) ? 1 : m->F;
        if (v == V_O0 && value->copies < (int)parts) value->copies = (int)parts;
        value->at = carve(block, &used, plan_uses(&m->plan, v) ? value->copies * BTC : 0);
    }
    for (int k = 0; k <= 2 * c->L; k++) {
        SubBlock *s = &m->subs[k];
        s->copies = m->values[V_STREAM + m->plan.reads[k]].copies;
        s->normed = carve(block, &used, s->copies * BTC);
        s->mean = carve(block, &used, s->copies * BT);
        s->rstd = carve(block, &used, s->copies * BT);
        if (k == 2 * c->L) break;
        s->inner_width = k % 2 ? 4 * Cr : 3 * Cr;
        s->outer_width = k % 2 ? 4 * Cr : Cr;
        s->inner = carve(block, &used, F * BT * s->inner_width);
        s->outer = carve(block, &used, F * BT * s->outer_width);
        s->lse = carve(block, &used, k % 2 ? 0 : F * BT * (c->NH / c->R));
    }
    m->logits = carve(block, &used, parts * BT * m->vocab_width);
    m->largest = carve(block, &used, parts * BT);
    m->sums = carve(block, &used, 2 * parts * BT);
    m->losses = carve(block, &used, BT);
    m->lse = carve(block, &used, BT);
    m->zeros = carve(block, &used, c->C);
    m->bias_sum = carve(block, &used, c->C);
    m->received = carve(block, &used, m->mesh.group == 2 && plan_uses(&m->plan, V_D1) ? BTC : 0);
    m->dnormed = carve(block, &used, BTC);
    m->dinner = carve(block, &used, F * BT * 4 * Cr);
    m->douter = carve(block, &used, BT * 4 * Cr);
    m->attention_scratch = carve(block, &used, (size_t)m->threads * 2 * ATTENTION_ROWS * m->T_max);
    return used;
}

static size_t activations_bytes(GPT2 *m) {
    return activations_lay(m, m->activations) * sizeof(real);
}

// Makes a model of this shape with room for batches (B,T), its parameters zero. Without `training`
// there are no gradients and no moments. Fails when the shape, the pattern or R cannot be had.
static void gpt2_create(GPT2 *m, const GPT2Config *config, Mesh mesh, int B, int T, int training) {
    memset(m, 0, sizeof *m);
    m->config = *config;
    m->mesh = mesh;
    m->F = mesh.F;
    m->rank0 = mesh.group_rank * mesh.F;
    m->B_max = B;
    m->T_max = T;
    m->threads = omp_get_max_threads();
    if (config->NH % config->R) {
        fail("-tp %d: %d heads cannot be divided over %d tensor ranks", config->R, config->NH,
             config->R);
    }
    if (T > config->maxT) fail("-t %d: the model reads at most %d tokens", T, config->maxT);
    plan_make(&m->plan, config->pattern, config->L, config->rule, config->R, "-p");
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
    tensors_allocate(&m->params, m->local, "parameters");
    if (training) {
        tensors_allocate(&m->moment1, m->local, "AdamW moments");
        tensors_allocate(&m->moment2, m->local, "AdamW moments");
        gradients_allocate(m);
        m->row_sums = alloc_zeroed(rows_max, sizeof(double), "gradient norm");
    }
    m->subs = alloc_zeroed(2 * (size_t)config->L + 1, sizeof(SubBlock), "sub-blocks");
    m->values = alloc_zeroed(V_STREAM + (size_t)m->plan.streams, sizeof(Value), "plan");
    m->activations = alloc_zeroed(activations_lay(m, NULL), sizeof(real),
                                  "activations (fewer with a lower -b or -t)");
    activations_lay(m, m->activations);
    m->tokens = alloc_zeroed((size_t)B * T, sizeof(int32_t), "tokens");
    m->targets = alloc_zeroed((size_t)B * T, sizeof(int32_t), "targets");
}

static void gpt2_free(GPT2 *m) {
    void *blocks[] = {m->params.block, m->grads.block, m->moment1.block, m->moment2.block,
                      m->rank_grads, m->row_sums, m->subs, m->values, m->activations, m->tokens,
                      m->targets};
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
                real *row = whole_layer(m, &m->params, p, layer) + (size_t)r * local->cols;
                for (int c = 0; c < local->cols; c++) {
                    row[c] = (real)param_init(whole, p, how, &m->config, seed, first + c);
                }
            }
        }
    }
}

// ----------------------------------------------------------------------------
// merges: the only place where ranks talk

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
    #pragma omp parallel for schedule(static)
    for (size_t i = 0; i < n; i += 1024) {
        size_t to = i + 1024 < n ? i + 1024 : n;
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
    watch_sum(kind, m->traffic[kind].count % m->plan.merges + 1);
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
    watch_sum(m->merge.kind, m->traffic[m->merge.kind].count % m->plan.merges + 1);
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
typedef struct { real *normed, *mean, *rstd, *inner, *outer, *lse; } RankActs;

static RankActs rank_acts(const GPT2 *m, const SubBlock *s, int f) {
    size_t rows = (size_t)m->B * m->T, C = (size_t)m->config.C, rank = (size_t)f;
    size_t copy = s->copies == 1 ? 0 : rank;
    return (RankActs){.normed = s->normed + copy * rows * C,
                      .mean = s->mean + copy * rows, .rstd = s->rstd + copy * rows,
                      .inner = s->inner + rank * rows * s->inner_width,
                      .outer = s->outer + rank * rows * s->outer_width,
                      .lse = s->lse + rank * rows * (m->config.NH / m->config.R)};
}

// Gain and bias of the LayerNorm that sub-block k begins with, or their gradients; the final one
// for k = 2L.
typedef struct { real *w, *b; } Norm;
static Norm norm_of(const GPT2 *m, const Tensors *t, int k) {
    if (k == 2 * m->config.L) return (Norm){t->at[P_lnfw], t->at[P_lnfb]};
    const SubParams *p = &sub_params[k % 2];
    return (Norm){whole_layer(m, t, p->ln_w, k / 2), whole_layer(m, t, p->ln_b, k / 2)};
}

// LayerNorm of rank f's stream for sub-block k.
static void subblock_norm(GPT2 *m, int k, int f, const real *stream) {
    RankActs a = rank_acts(m, &m->subs[k], f);
    Norm norm = norm_of(m, &m->params, k);
    layernorm_forward(a.normed, a.mean, a.rstd, stream, norm.w, norm.b, m->B * m->T, m->config.C);
}

// Partial output of rank f (B,T,C), no output bias:
// out = or += Wout[:, part f] . inside(Win[part f] . LN(stream) + b[part f]).
static void subblock_forward(GPT2 *m, int k, int f, real *out, int add) {
    const SubBlock *s = &m->subs[k];
    const SubParams *p = &sub_params[k % 2];
    const Tensors *w = &m->params;
    RankActs a = rank_acts(m, s, f);
    int C = m->config.C, layer = k / 2, rows = m->B * m->T;
    matmul((Matmul){.out = view_of(a.inner, s->inner_width), .a = view_of(a.normed, C),
                    .b = part_view(m, w, p->in_w, layer, f), .b_transposed = 1,
                    .bias = part_view(m, w, p->in_b, layer, f),
                    .M = rows, .N = s->inner_width, .K = C});
    sums_progress(&m->merge_sums);
    if (k % 2) gelu_forward(a.outer, a.inner, (size_t)rows * s->inner_width);
    else attention_forward(a.outer, a.lse, a.inner, attention_shape(m));
    sums_progress(&m->merge_sums);
    matmul((Matmul){.out = view_of(out, C), .a = view_of(a.outer, s->outer_width),
                    .b = part_view(m, w, p->out_w, layer, f), .b_transposed = 1,
                    .M = rows, .N = C, .K = s->outer_width, .accumulate = add});
}

// Rank f's gradient of what its input matrix made, kept from subblock_backward to
// subblock_weight_backward.
static real *dinner_at(const GPT2 *m, int k, int f) {
    return m->dinner + (size_t)f * m->B * m->T * m->subs[k].inner_width;
}

// From the gradient of rank f's partial output, dout (B,T,C), to those of the stream it read, which
// is written to dstream (B,T,C), or added to it if add_stream, and of its parameters (added to if
// add_grads), without the input matrix and its bias.
static void subblock_backward(GPT2 *m, int k, int f, real *dout, real *dstream, int add_stream,
                              int add_grads) {
    const SubBlock *s = &m->subs[k];
    const SubParams *p = &sub_params[k % 2];
    const Tensors *w = &m->params, *grads = &m->rank_grads[f];
    RankActs a = rank_acts(m, s, f);
    int C = m->config.C, layer = k / 2, rows = m->B * m->T;
    real *dinner = dinner_at(m, k, f);
    View d = view_of(dout, C);

    matmul((Matmul){.out = part_view(m, grads, p->out_w, layer, f), .a = d, .a_transposed = 1,
                    .b = view_of(a.outer, s->outer_width),
                    .M = C, .N = s->outer_width, .K = rows, .accumulate = add_grads});
    sums_progress(&m->merge_sums);
    matmul((Matmul){.out = view_of(m->douter, s->outer_width), .a = d,
                    .b = part_view(m, w, p->out_w, layer, f),
                    .M = rows, .N = s->outer_width, .K = C});
    sums_progress(&m->merge_sums);
    if (k % 2) gelu_backward(dinner, m->douter, a.inner, (size_t)rows * s->inner_width);
    else attention_backward(dinner, m->douter, a.outer, a.lse, a.inner, attention_shape(m));
    sums_progress(&m->merge_sums);
    matmul((Matmul){.out = view_of(m->dnormed, C), .a = view_of(dinner, s->inner_width),
                    .b = part_view(m, w, p->in_w, layer, f),
                    .M = rows, .N = C, .K = s->inner_width});
    Norm dnorm = norm_of(m, grads, k);
    layernorm_backward(dstream, dnorm.w, dnorm.b, m->dnormed,
                       value_at(m, V_STREAM + m->plan.reads[k], f), a.mean, a.rstd,
                       norm_of(m, w, k).w, rows, C, add_stream, add_grads);
}

// The rest: gradients of the input matrix and its bias.
static void subblock_weight_backward(GPT2 *m, int k, int f, int add_grads) {
    const SubBlock *s = &m->subs[k];
    const SubParams *p = &sub_params[k % 2];
    const Tensors *grads = &m->rank_grads[f];
    int C = m->config.C, layer = k / 2, rows = m->B * m->T;
    real *dinner = dinner_at(m, k, f);
    matmul((Matmul){.out = part_view(m, grads, p->in_w, layer, f),
                    .a = view_of(dinner, s->inner_width), .a_transposed = 1,
                    .b = view_of(rank_acts(m, s, f).normed, C),
                    .M = s->inner_width, .N = C, .K = rows, .accumulate = add_grads});
    sums_progress(&m->merge_sums);
    bias_backward(part_view(m, grads, p->in_b, layer, f), 1, dinner, rows, s->inner_width,
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
        const real *bias = whole_layer(m, &m->params, sub_params[k % 2].out_b, k / 2);
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
    #pragma omp parallel for schedule(static)
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
        View grad = part_view(m, &m->rank_grads[f], sub_params[s->k % 2].out_b, s->k / 2, f);
        real scale = (real)(first ? s->scale : 1), *d = value_at(m, v, f);
        bias_backward(grad, scale, d, m->B * m->T, m->config.C, add_grads || s->add);
    }
}

// The matrices and the inner bias of sub-block k have their gradients of this update, short of the
// sum over data-parallel replicas: it goes on while earlier sub-blocks compute. Tensors of which
// ranks have partial gradients come later.
static void replica_sums_begin(GPT2 *m, int k) {
    const int tensors[3] = {sub_params[k % 2].in_w, sub_params[k % 2].in_b,
                            sub_params[k % 2].out_w};
    for (int i = 0; i < 3; i++) {
        size_t n = spec_layer_size(&m->local[tensors[i]]);
        real *grad = whole_layer(m, &m->grads, tensors[i], k / 2);
        sums_begin(&m->replica_sums, &m->mesh, MESH_DP, grad, n, sizeof(real));
    }
    sums_progress(&m->replica_sums);
}

static void steps_run(GPT2 *m, const Steps *steps, int add_grads) {
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
        }
    }
}

// ----------------------------------------------------------------------------
// embedding and head, which share wte. Either every rank has all of it, or its rows are cut over
// the tensor ranks (`-vp 1`; Megatron-LM, arXiv 1909.08053, section 3), and a rank embeds and
// scores the tokens it has the rows of.

typedef struct { int first, count; } TokenRange;

// The tokens whose rows part f of this process holds.
static TokenRange vocab_range(const GPT2 *m, int f) {
    if (!spec_is_cut(&m->whole[P_wte])) return (TokenRange){0, m->config.V};
    int first = (m->rank0 + f) * m->vocab_width, left = m->config.V - first;
    return (TokenRange){first, left < 0 ? 0 : int_min(left, m->vocab_width)};
}

static real *logits_part(const GPT2 *m, int f) {
    return m->logits + (size_t)f * m->B * m->T * m->vocab_width;
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
        const real *wte = part_view(m, &m->params, P_wte, 0, f).data;
        embedding_forward(parts + f * n, m->tokens, wte, r.first, r.count, rows, C);
    }
    vocab_sum(m, parts, n);
    position_forward(stream, parts, m->params.at[P_wpe], m->B, m->T, C);
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

// Logits of one row (a token of the last forward pass) over the whole vocabulary: out (V). All
// ranks take part.
static void logits_collect(GPT2 *m, int row, float *out) {
    size_t V = (size_t)m->config.V;
    memset(out, 0, V * sizeof *out);
    for (int f = 0; f < m->vocab_parts; f++) {
        TokenRange r = vocab_range(m, f);
        const real *logits = logits_part(m, f) + (size_t)row * m->vocab_width;
        for (int v = 0; v < r.count; v++) out[r.first + v] = (float)logits[v];
    }
    if (spec_is_cut(&m->whole[P_wte])) mesh_sum(&m->mesh, MESH_TP, out, V, sizeof *out);
}

// ----------------------------------------------------------------------------
// forward and backward pass

// Logits of tokens (B,T) into m->logits; with targets (B,T), also each token's loss. Returns the
// mean loss in nats, or NaN without targets. B and T are at most those the model was created for.
static double gpt2_forward(GPT2 *m, const int32_t *tokens, const int32_t *targets, int B, int T) {
    int C = m->config.C, rows = B * T;
    m->B = B;
    m->T = T;
    memcpy(m->tokens, tokens, (size_t)rows * sizeof *tokens);
    tokens_embed(m);
    steps_run(m, &m->plan.forward, 0);
    const SubBlock *last = &m->subs[2 * m->config.L];
    for (int f = 0; f < m->vocab_parts; f++) {
        matmul((Matmul){.out = view_of(logits_part(m, f), m->vocab_width),
                        .a = view_of(last->normed, C),
                        .b = part_view(m, &m->params, P_wte, 0, f), .b_transposed = 1,
                        .M = rows, .N = vocab_range(m, f).count, .K = C});
    }
    if (!targets) return NAN;
    memcpy(m->targets, targets, (size_t)rows * sizeof *targets);
    losses_compute(m);
    double sum = 0;
    for (int i = 0; i < rows; i++) sum += (double)m->losses[i];
    return sum / rows;
}

// Gradients of scale * mean loss of the last forward pass. They replace what the gradients were, or
// are added to it. Partial gradients are not yet summed over ranks: gradients_reduce does that once
// per update. Logits are overwritten.
static void gpt2_backward(GPT2 *m, double scale, int add_grads) {
    int C = m->config.C, rows = m->B * m->T;
    size_t n = (size_t)rows * C;
    const SubBlock *last = &m->subs[2 * m->config.L];
    real *dlast = m->values[V_O0].at, *G = m->values[V_G].at;
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
        int done = spec->cut == WHOLE_PARTIAL_GRAD || (begun && spec->fan_in);
        if (!done) mesh_sum(&m->mesh, MESH_DP, m->grads.at[p], spec_size(spec), sizeof(real));
    }
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

static real *set_row(GPT2 *m, int set, int p, int layer, int row) {
    Tensors *sets[] = {[SET_PARAMS] = &m->params, [SET_MOMENT1] = &m->moment1,
                       [SET_MOMENT2] = &m->moment2};
    return whole_layer(m, sets[set], p, layer) + (size_t)row * m->local[p].cols;
}

static void model_rows_put(void *owner, int set, int p, int layer, int row, int rows,
                           const float *values) {
    GPT2 *m = owner;
    Shard mine = shard_of(&m->whole[p], m->mesh.group_rank, m->mesh.group);
    size_t cols = (size_t)m->whole[p].cols, first = (size_t)row * cols;
    for (int r = 0; r < mine.rows; r++) {
        size_t at = shard_row(&mine, r);
        if (at < first || at >= first + (size_t)rows * cols) continue;
        real *out = set_row(m, set, p, layer, r);
        for (int c = 0; c < mine.cols; c++) out[c] = (real)values[at - first + c];
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
        const real *in = set_row(m, set, p, layer, r);
        for (int c = 0; c < mine.cols; c++) values[at - first + c] = (float)in[c];
    }
    mesh_join(&m->mesh, values, (size_t)rows * cols);
}

static uint64_t gpt2_load(GPT2 *m, const char *path) {
    GPT2Config config;
    return model_read(path, &config, model_rows_put, m);
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
                            int training) {
    gpt2_create(m, config, mesh, (int)o->batch, (int)o->length, training);
    m->network = (Network){.latency_us = o->net_latency, .gbits = o->net_gbits};
}

static void gpt2_micro_step(GPT2 *m, const int32_t *tokens, const int32_t *targets, int B, int T,
                            int micro, int micro_steps) {
    double loss = gpt2_forward(m, tokens, targets, B, T) / micro_steps;
    m->loss_sum = micro ? m->loss_sum + loss : loss;
    m->last_pass = micro == micro_steps - 1;
    gpt2_backward(m, 1.0 / ((double)micro_steps * m->mesh.DP), micro > 0);
}

static UpdateSums gpt2_gradients(GPT2 *m) {
    double replicas[] = {m->loss_sum, stop_asked != 0};
    mesh_sum(&m->mesh, MESH_DP, replicas, 2, sizeof *replicas);
    UpdateSums sums = {.loss = replicas[0] / m->mesh.DP, .stop = replicas[1] > 0};
    gradients_reduce(m);
    sums.norm = gradients_norm(m, &sums);
    return sums;
}

// A number that changes when any bit of the tensors changes that every rank has whole.
static uint64_t replicated_hash(GPT2 *m) {
    uint64_t hash = 0;
    for (int p = 0; p < P_COUNT; p++) {
        if (spec_is_cut(&m->local[p])) continue;
        hash = words_hash(hash, m->params.at[p], spec_size(&m->local[p]) * sizeof(real));
    }
    return hash;
}

static int gpt2_describe(GPT2 *m, int i, char *line, size_t size) {
    if (i > 0) return 0;
    double MiB = 1.0 / (1 << 20), tensors = (double)(param_count(m->local) * sizeof(real)) * MiB;
    double partials = (double)((m->F - 1) * partial_grads_size(m) * sizeof(real)) * MiB;
    double gradients = m->grads.block ? tensors + partials : 0;
    snprintf(line, size,
             "# memory_MiB parameters %.1f gradients %.1f moments %.1f activations %.1f", tensors,
             gradients, m->grads.block ? 2 * tensors : 0, (double)activations_bytes(m) * MiB);
    return 1;
}

static int gpt2_describe_process(GPT2 *m, char out[PROCESS_WHAT]) {
    snprintf(out, PROCESS_WHAT, "%d thread%s", m->threads, m->threads > 1 ? "s" : "");
    return 0;
}

// ----------------------------------------------------------------------------
// main

#include "data/run.h"

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
