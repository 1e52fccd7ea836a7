/*
Speed of every layer of the CPU trainer, forward and backward, beside what this machine can do.

  make dev/bench_cpu && dev/bench_cpu      GPT-2 124M's shapes, B 4, T 64, R 1
  dev/bench_cpu 4x4x128 12 64 2            another model, B, T and R: one rank's shapes
  dev/bench_cpu 4x4x128 12 64 2 updates    only the last table: whole updates of t, s, sppp and p

Each kernel is first compared with a plain loop in double; a wrong one is reported and the exit
status is 1. Then the median of many runs is printed with GFLOP/s (multiply and add counted as two)
or GB/s (bytes that have to move, once), and the share of a ceiling: for bytes a copy of 256 MiB,
for arithmetic multiply-adds on vector registers. The latter runs in turn with the kernel, and the
share is the median over pairs, so that it holds on a machine whose speed drifts; beside it stands
the share of the best tenth of the pairs, which is what the code reaches when nobody disturbs it.
Small operands stay in cache, which may be faster than any copy. The trainer's own functions are
timed: this file includes train_gpt2.c.
*/
#define NO_MAIN
#include "../train_gpt2.c"

enum { RUNS_MAX = 200, SAMPLES = 400, HS_MAX = 1024 };
static const double seconds_per_kernel = 0.4;

static double peak_gbs;
static int wrong;

// ----------------------------------------------------------------------------
// measuring

// Median seconds of a statement, run for about seconds_per_kernel after once for warming up.
#define MEDIAN_SECONDS(statement)                                                          \
    __extension__({                                                                        \
        static double times_[RUNS_MAX];                                                    \
        int n_ = 0;                                                                        \
        double begin_ = seconds_now();                                                     \
        statement;                                                                         \
        while (n_ < 5 || (n_ < RUNS_MAX && seconds_now() - begin_ < seconds_per_kernel)) { \
            double start_ = seconds_now();                                                 \
            statement;                                                                     \
            times_[n_++] = seconds_now() - start_;                                         \
        }                                                                                  \
        qsort(times_, (size_t)n_, sizeof *times_, compare_ascending);                      \
        times_[n_ / 2];                                                                    \
    })

static void report(const char *name, double seconds, double bytes, double error, double tolerance) {
    int good = error <= tolerance;
    wrong += !good;
    printf("%-34s %9.3f ms %8.1f GB/s    %5.1f%%                 %s %.1e\n", name, seconds * 1e3,
           bytes / seconds * 1e-9, 100 * bytes / seconds * 1e-9 / peak_gbs,
           good ? "error" : "WRONG, error", error);
}

// Multiply-adds on independent vector registers: nothing is loaded, so this is the most that any
// loop can reach.
enum { FMA_CHAINS = 12 }; // enough for two units of latency 4 to 6

static void fma_loop(long rounds, volatile real *sink) {
    vec acc[FMA_CHAINS], x = (vec){0} + (real)0.999999, y = (vec){0} + (real)1e-6;
    for (int i = 0; i < FMA_CHAINS; i++) acc[i] = (vec){0} + (real)i;
    for (long r = 0; r < rounds; r++) {
        #pragma GCC unroll 12
        for (int i = 0; i < FMA_CHAINS; i++) acc[i] = acc[i] * x + y;
    }
    for (int i = 0; i < FMA_CHAINS; i++) *sink += acc[i][0];
}

static void fma_on_all_threads(long rounds) {
    #pragma omp parallel
    {
        volatile real sink = 0;
        fma_loop(rounds, &sink);
    }
}

static double fma_flops(long rounds) {
    return 2.0 * FMA_CHAINS * LANES * (double)rounds * omp_get_max_threads();
}

// A kernel and the multiply-add loop, timed in turn.
typedef struct {
    double flops; // of one call of the kernel
    double seconds[RUNS_MAX], share[RUNS_MAX];
    double begin, start, peak;
    int n; // pairs done; the first call only warms up
} Paired;

static int paired_goes_on(Paired *p) {
    enum { ROUNDS = 400000 };
    if (!p->begin) p->begin = seconds_now(), p->n = -1;
    if (p->n >= 5 && (p->n == RUNS_MAX || seconds_now() - p->begin > seconds_per_kernel)) return 0;
    double start = seconds_now();
    fma_on_all_threads(ROUNDS);
    p->start = seconds_now();
    p->peak = fma_flops(ROUNDS) / (p->start - start);
    return 1;
}

static void paired_end(Paired *p) {
    double seconds = seconds_now() - p->start;
    if (p->n >= 0) p->seconds[p->n] = seconds, p->share[p->n] = p->flops / seconds / p->peak;
    p->n++;
}

static void report_paired(const char *name, Paired *p, double error, double tolerance) {
    int good = error <= tolerance, n = p->n;
    wrong += !good;
    qsort(p->seconds, (size_t)n, sizeof(double), compare_ascending);
    qsort(p->share, (size_t)n, sizeof(double), compare_ascending);
    double median = p->seconds[n / 2];
    printf("%-34s %9.3f ms %8.1f GFLOP/s %5.1f%% (best %5.1f%%)   %s %.1e\n", name, median * 1e3,
           p->flops / median * 1e-9, 100 * p->share[n / 2], 100 * p->share[n - 1 - n / 10],
           good ? "error" : "WRONG, error", error);
}

static void copy_on_all_threads(char *to, const char *from, size_t bytes) {
    #pragma omp parallel for schedule(static)
    for (size_t i = 0; i < bytes; i += 1 << 20) memcpy(to + i, from + i, 1 << 20);
}

static void ceilings_measure(void) {
    enum { ROUNDS = 4000000 };
    size_t bytes = (size_t)256 << 20;
    char *from = alloc_zeroed(bytes, 1, "copy"), *to = alloc_zeroed(bytes, 1, "copy");
    double fma = MEDIAN_SECONDS(fma_on_all_threads(ROUNDS));
    double copy = MEDIAN_SECONDS(copy_on_all_threads(to, from, bytes));
    peak_gbs = 2.0 * (double)bytes / copy * 1e-9;
    printf("ceilings, %d threads: %.1f GFLOP/s (multiply-add on registers), "
           "%.1f GB/s (copy, read and written)\n\n",
           omp_get_max_threads(), fma_flops(ROUNDS) / fma * 1e-9, peak_gbs);
    free(from), free(to);
}

static real *random_reals(size_t n, uint64_t seed, double scale) {
    real *x = alloc_zeroed(n, sizeof(real), "benchmark");
    #pragma omp parallel for schedule(static)
    for (size_t i = 0; i < n; i++) x[i] = (real)(scale * random_normal(random_bits(seed, 0, 0, i)));
    return x;
}

static double larger(double worst, double found, double expected, double scale) {
    double error = fabs(found - expected) / scale;
    return error > worst || error != error ? error : worst;
}

// ----------------------------------------------------------------------------
// matrix products

static double plain_at(View v, int transposed, int i, int j) {
    return (double)(transposed ? view_row(v, j)[i] : view_row(v, i)[j]);
}

static void bench_matmul(const char *name, Matmul m) {
    double worst = 0;
    matmul(m);
    for (int s = 0; s < SAMPLES; s++) {
        int i = (int)random_below(random_bits(3, 1, 0, (uint64_t)s), (uint64_t)m.M);
        int j = (int)random_below(random_bits(3, 1, 1, (uint64_t)s), (uint64_t)m.N);
        double expected = 0, squares = 0;
        for (int k = 0; k < m.K; k++) {
            double product = plain_at(m.a, m.a_transposed, i, k) *
                             plain_at(m.b, m.b_transposed, k, j);
            expected += product;
            squares += product * product;
        }
        worst = larger(worst, (double)view_row(m.out, i)[j], expected, sqrt(squares));
    }
    double flops = 2.0 * m.M * m.N * m.K;
    Paired p = {.flops = flops};
    while (paired_goes_on(&p)) {
        matmul(m);
        paired_end(&p);
    }
    report_paired(name, &p, worst, 1e-5);
}

// y = x Wᵀ with x (rows,in), W (out,in): forward, dX and dW
static void bench_linear(const char *name, int rows, int in, int out) {
    char label[64];
    real *x = random_reals((size_t)rows * in, 1, 1), *w = random_reals((size_t)out * in, 2, 1);
    real *y = random_reals((size_t)rows * out, 3, 1);
    real *dx = random_reals((size_t)rows * in, 4, 1), *dw = random_reals((size_t)out * in, 5, 1);
    snprintf(label, sizeof label, "%s forward %dx%dx%d", name, rows, out, in);
    bench_matmul(label, (Matmul){.out = view_of(y, out), .a = view_of(x, in), .b = view_of(w, in),
                                 .b_transposed = 1, .M = rows, .N = out, .K = in});
    snprintf(label, sizeof label, "%s dX %dx%dx%d", name, rows, in, out);
    bench_matmul(label, (Matmul){.out = view_of(dx, in), .a = view_of(y, out), .b = view_of(w, in),
                                 .M = rows, .N = in, .K = out});
    snprintf(label, sizeof label, "%s dW %dx%dx%d", name, out, in, rows);
    bench_matmul(label, (Matmul){.out = view_of(dw, in), .a = view_of(y, out), .a_transposed = 1,
                                 .b = view_of(x, in), .M = out, .N = in, .K = rows});
    free(x), free(w), free(y), free(dx), free(dw);
}

// ----------------------------------------------------------------------------
// attention

// One query row against plain loops: its output, its dQ, and what it adds to dK and dV of key u.
typedef struct { double *p, *dp, sum, delta; } PlainRow;

static void plain_row(PlainRow *r, AttentionShape s, real *q, real *kv, const real *dout, int b,
                      int h, int t) {
    View query = head_view(&s, q, 1, 0, b * s.T + t, h), k = head_view(&s, kv, 2, 0, b * s.T, h);
    View v = head_view(&s, kv, 2, 1, b * s.T, h);
    View d = head_view(&s, (real *)dout, 1, 0, b * s.T + t, h);
    r->sum = r->delta = 0;
    for (int u = 0; u <= t; u++) {
        double dot = 0, ddot = 0;
        for (int c = 0; c < s.HS; c++) {
            dot += (double)view_row(query, 0)[c] * (double)view_row(k, u)[c];
            ddot += (double)view_row(d, 0)[c] * (double)view_row(v, u)[c];
        }
        r->sum += r->p[u] = exp(dot / sqrt(s.HS));
        r->dp[u] = ddot;
    }
    for (int u = 0; u <= t; u++) r->p[u] /= r->sum, r->delta += r->p[u] * r->dp[u];
}

// Element c of row `row` of part `part` of x: see head_view.
static double element(const AttentionShape *s, real *x, int parts, int part, int row, int h,
                      int c) {
    return (double)head_view(s, x, parts, part, row, h).data[c];
}

static double attention_error(AttentionShape s, real *q, real *kv, real *out, real *dout,
                              real *dqkv, int backward) {
    double worst = 0;
    PlainRow r = {.p = alloc_zeroed(s.T, sizeof(double), "row"),
                  .dp = alloc_zeroed(s.T, sizeof(double), "row")};
    int b = s.B - 1, h = s.heads - 1, u = s.T / 3; // one head, and in it one key
    double dk[HS_MAX] = {0}, dv[HS_MAX] = {0};
    for (int t = 0; t < s.T; t++) {
        plain_row(&r, s, q, kv, dout, b, h, t);
        for (int c = 0; c < s.HS; c++) {
            double o = 0, dq = 0;
            for (int j = 0; j <= t; j++) {
                o += r.p[j] * element(&s, kv, 2, 1, b * s.T + j, h, c);
                dq += r.p[j] * (r.dp[j] - r.delta) / sqrt(s.HS) *
                      element(&s, kv, 2, 0, b * s.T + j, h, c);
            }
            if (backward) worst = larger(worst, element(&s, dqkv, 3, 0, b * s.T + t, h, c), dq, 1);
            else worst = larger(worst, element(&s, out, 1, 0, b * s.T + t, h, c), o, 1);
            if (t < u) continue;
            dk[c] += r.p[u] * (r.dp[u] - r.delta) / sqrt(s.HS) *
                     element(&s, q, 1, 0, b * s.T + t, h, c);
            dv[c] += r.p[u] * element(&s, dout, 1, 0, b * s.T + t, h, c);
        }
    }
    for (int c = 0; backward && c < s.HS; c++) {
        worst = larger(worst, element(&s, dqkv, 3, 1, b * s.T + u, h, c), dk[c], 1);
        worst = larger(worst, element(&s, dqkv, 3, 2, b * s.T + u, h, c), dv[c], 1);
    }
    free(r.p), free(r.dp);
    return worst;
}

static void bench_attention(int B, int T, int heads, int HS) {
    size_t n = (size_t)B * T * heads * HS;
    AttentionShape s = {.B = B, .T = T, .heads = heads, .HS = HS, .threads = omp_get_max_threads()};
    s.scratch = alloc_zeroed((size_t)s.threads * 2 * ATTENTION_ROWS * T, sizeof(real), "benchmark");
    real *q = random_reals(n, 1, 1), *kv = random_reals(2 * n, 5, 1);
    real *dqkv = random_reals(3 * n, 2, 1);
    real *out = random_reals(n, 3, 1), *dout = random_reals(n, 4, 1);
    real *lse = alloc_zeroed((size_t)B * T * heads, sizeof(real), "benchmark");
    double flops = 4.0 * B * heads * HS * (0.5 * T * (T + 1)); // under the causal mask
    attention_forward(out, lse, q, kv, s);
    double error = attention_error(s, q, kv, out, dout, dqkv, 0);
    Paired forward = {.flops = flops}, backward = {.flops = 2.5 * flops};
    while (paired_goes_on(&forward)) {
        attention_forward(out, lse, q, kv, s);
        paired_end(&forward);
    }
    report_paired("attention forward", &forward, error, 1e-5);
    attention_backward(dqkv, dout, out, lse, q, kv, s);
    error = attention_error(s, q, kv, out, dout, dqkv, 1);
    while (paired_goes_on(&backward)) {
        attention_backward(dqkv, dout, out, lse, q, kv, s);
        paired_end(&backward);
    }
    report_paired("attention backward", &backward, error, 1e-5);
    free(s.scratch), free(q), free(kv), free(dqkv), free(out), free(dout), free(lse);
}

// ----------------------------------------------------------------------------
// layers that move bytes

static void bench_layernorm(int rows, int C) {
    size_t n = (size_t)rows * C;
    real *x = random_reals(n, 1, 1), *out = random_reals(n, 2, 1), *dout = random_reals(n, 3, 1);
    real *dx = random_reals(n, 4, 1);
    real *w = random_reals(C, 5, 1), *b = random_reals(C, 6, 1), *dw = random_reals(C, 7, 1);
    real *db = random_reals(C, 8, 1);
    real *mean = random_reals(rows, 9, 1), *rstd = random_reals(rows, 10, 1);
    double forward = 0, backward = 0;
    layernorm_forward(out, mean, rstd, x, w, b, rows, C);
    layernorm_backward(dx, dw, db, dout, x, mean, rstd, w, rows, C, 0, 0);
    for (int i = 0; i < rows; i += 1 + rows / 16) {
        double m = 0, v = 0, sum = 0, sum_norm = 0;
        const real *row = x + (size_t)i * C, *d = dout + (size_t)i * C;
        for (int c = 0; c < C; c++) m += (double)row[c] / C;
        for (int c = 0; c < C; c++) v += ((double)row[c] - m) * ((double)row[c] - m) / C;
        double s = 1 / sqrt(v + 1e-5);
        for (int c = 0; c < C; c++) {
            sum += (double)d[c] * (double)w[c] / C;
            sum_norm += (double)d[c] * (double)w[c] * ((double)row[c] - m) * s / C;
        }
        for (int c = 0; c < C; c++) {
            double norm = ((double)row[c] - m) * s;
            forward = larger(forward, (double)out[(size_t)i * C + c],
                             norm * (double)w[c] + (double)b[c], 1);
            backward = larger(backward, (double)dx[(size_t)i * C + c],
                              ((double)d[c] * (double)w[c] - sum - norm * sum_norm) * s, 1);
        }
    }
    double seconds = MEDIAN_SECONDS(layernorm_forward(out, mean, rstd, x, w, b, rows, C));
    report("layernorm forward", seconds, 2.0 * n * sizeof(real), forward, 1e-5);
    seconds = MEDIAN_SECONDS(layernorm_backward(dx, dw, db, dout, x, mean, rstd, w, rows, C, 0, 0));
    report("layernorm backward", seconds, 3.0 * n * sizeof(real), backward, 1e-5);
    free(x), free(out), free(dout), free(dx);
    free(w), free(b), free(dw), free(db), free(mean), free(rstd);
}

static void bench_gelu(int rows, int width) {
    size_t n = (size_t)rows * width;
    real *x = random_reals(n, 1, 2), *out = random_reals(n, 2, 1), *dout = random_reals(n, 3, 1);
    real *dx = random_reals(n, 4, 1);
    double forward = 0, backward = 0, k = sqrt(2 / 3.141592653589793);
    gelu_forward(out, x, n);
    gelu_backward(dx, dout, x, n);
    for (size_t i = 0; i < n; i += 1 + n / 1000) {
        double v = (double)x[i], t = tanh(k * (v + 0.044715 * v * v * v));
        forward = larger(forward, (double)out[i], 0.5 * v * (1 + t), 1);
        backward = larger(backward, (double)dx[i],
                          (double)dout[i] * (0.5 * (1 + t) + 0.5 * v * (1 - t * t) * k *
                                                                 (1 + 3 * 0.044715 * v * v)),
                          1);
    }
    double seconds = MEDIAN_SECONDS(gelu_forward(out, x, n));
    report("gelu forward", seconds, 2.0 * n * sizeof(real), forward, 1e-5);
    seconds = MEDIAN_SECONDS(gelu_backward(dx, dout, x, n));
    report("gelu backward", seconds, 3.0 * n * sizeof(real), backward, 1e-5);
    free(x), free(out), free(dout), free(dx);
}

static void bench_bias(int rows, int inner) {
    size_t wide = (size_t)rows * inner;
    real *d = random_reals(wide, 5, 1), *dbias = random_reals(inner, 6, 1);
    double worst = 0;
    bias_backward(view_of(dbias, 1), 1, d, rows, inner, 0);
    for (int c = 0; c < inner; c++) {
        double sum = 0;
        for (int i = 0; i < rows; i++) sum += (double)d[(size_t)i * inner + c];
        worst = larger(worst, (double)dbias[c], sum, sqrt(rows));
    }
    double seconds = MEDIAN_SECONDS(bias_backward(view_of(dbias, 1), 1, d, rows, inner, 0));
    report("bias backward", seconds, 1.0 * wide * sizeof(real), worst, 1e-5);
    free(d), free(dbias);
}

static void embed(real *out, const int32_t *tokens, real *wte, const real *wpe, int V, int B,
                  int T, int C) {
    embedding_forward(out, tokens, view_of(wte, C), 0, V, B * T, C);
    position_forward(out, out, wpe, B, T, C);
}

static void embed_backward(real *dwte, real *dwpe, const real *dout, const int32_t *tokens, int V,
                           int B, int T, int C) {
    embedding_backward(dwte, dout, tokens, 0, V, B * T, C);
    position_backward(dwpe, dout, B, T, C, 0);
}

static void bench_embedding(int B, int T, int C, int V) {
    int rows = B * T;
    size_t n = (size_t)rows * C;
    real *out = random_reals(n, 1, 1), *wte = random_reals((size_t)V * C, 2, 1);
    real *wpe = random_reals((size_t)T * C, 3, 1);
    int32_t *tokens = alloc_zeroed(rows, sizeof(int32_t), "benchmark");
    double forward = 0, backward = 0;
    for (int i = 0; i < rows; i++)
        tokens[i] = (int32_t)random_below(random_bits(4, 0, 0, (uint64_t)i), (uint64_t)V);
    embed(out, tokens, wte, wpe, V, B, T, C);
    for (size_t i = 0; i < n; i++) {
        size_t row = i / (size_t)C, c = i % (size_t)C;
        forward = larger(forward, (double)out[i],
                         (double)wte[(size_t)tokens[row] * C + c] +
                             (double)wpe[row % (size_t)T * C + c],
                         1);
    }
    double seconds = MEDIAN_SECONDS(embed(out, tokens, wte, wpe, V, B, T, C));
    report("embedding forward", seconds, 5.0 * n * sizeof(real), forward, 1e-5);
    memset(wte, 0, (size_t)V * C * sizeof(real));
    embed_backward(wte, wpe, out, tokens, V, B, T, C);
    for (int c = 0; c < C; c++) {
        double sum = 0, position = 0;
        for (int i = 0; i < rows; i++) {
            if (tokens[i] == tokens[rows / 2]) sum += (double)out[(size_t)i * C + c];
            if (i % T == T / 2) position += (double)out[(size_t)i * C + c];
        }
        backward = larger(backward, (double)wte[(size_t)tokens[rows / 2] * C + c], sum, 1);
        backward = larger(backward, (double)wpe[(size_t)(T / 2) * C + c], position, 1);
    }
    seconds = MEDIAN_SECONDS(embed_backward(wte, wpe, out, tokens, V, B, T, C));
    report("embedding backward", seconds, 5.0 * n * sizeof(real), backward, 1e-4);
    free(out), free(wte), free(wpe), free(tokens);
}

static void bench_classifier(int rows, int V) {
    int Vp = vocabulary_pad(V);
    size_t n = (size_t)rows * Vp;
    real *logits = random_reals(n, 1, 1), *most = random_reals(rows, 2, 1);
    real *sums = random_reals(rows, 3, 1);
    real *chosen = random_reals(rows, 4, 1), *lse = random_reals(rows, 5, 1);
    int32_t *targets = alloc_zeroed(rows, sizeof(int32_t), "benchmark");
    double forward = 0, backward = 0, sum = 0;
    int row = rows / 2;
    for (int i = 0; i < rows; i++)
        targets[i] = (int32_t)random_below(random_bits(4, 0, 0, (uint64_t)i), (uint64_t)V);
    classifier_forward(most, sums, chosen, logits, targets, rows, 0, V, Vp);
    real *kept = memcpy(alloc_zeroed(Vp, sizeof(real), "row"), logits + (size_t)row * Vp,
                        (size_t)Vp * sizeof(real));
    for (int v = 0; v < V; v++) sum += exp((double)kept[v]);
    for (int i = 0; i < rows; i++) lse[i] = most[i] + (real)log((double)sums[i]);
    forward = larger(0, (double)(lse[row] - chosen[row]), log(sum) - (double)kept[targets[row]], 1);
    classifier_backward(logits, lse, targets, 1, rows, 0, V, Vp);
    for (int v = 0; v < V; v++)
        backward = larger(backward, (double)logits[(size_t)row * Vp + v],
                          exp((double)kept[v]) / sum - (v == targets[row]), 1);
    double seconds = MEDIAN_SECONDS(
        classifier_forward(most, sums, chosen, logits, targets, rows, 0, V, Vp));
    report("classifier forward", seconds, 1.0 * rows * V * sizeof(real), forward, 1e-5);
    seconds = MEDIAN_SECONDS(classifier_backward(logits, lse, targets, 1, rows, 0, V, Vp));
    report("classifier backward", seconds, 2.0 * rows * V * sizeof(real), backward, 1e-5);
    free(logits), free(most), free(sums), free(chosen), free(lse), free(targets), free(kept);
}

// ----------------------------------------------------------------------------
// what works on the whole model: merges, norm, AdamW, and whole updates

static void bench_model(const GPT2Config *config, int B, int T) {
    GPT2 m;
    UpdateSums sums = {0};
    gpt2_create(&m, config, mesh_make(1, 0, config->R, config->R), B, T, FOR_TRAINING);
    gpt2_init_weights(&m, WEIGHTS_GPT2, 1);
    size_t n = param_count(m.local), BTC = (size_t)B * T * config->C;
    for (size_t i = 0; i < n; i++) m.grads.block[i] = (real)1e-3 * (real)(i % 7);
    if (m.F > 1) {
        double worst = 0;
        real *parts = m.values[V_O0].at;
        for (size_t i = 0; i < m.F * BTC; i++) parts[i] = (real)(i % BTC % 10);
        allreduce(&m, TRAFFIC_FORWARD, parts, BTC);
        for (size_t i = 0; i < BTC; i++) {
            worst = larger(worst, (double)parts[i], (double)(i % 10) * m.F, 1);
        }
        double seconds = MEDIAN_SECONDS(allreduce(&m, TRAFFIC_FORWARD, parts, BTC));
        report("all-reduce over folded ranks", seconds, (m.F + 1.0) * BTC * sizeof(real), worst,
               1e-5);
    }
    double squares = 0, first = (double)m.params.block[5], second = (double)m.grads.block[5];
    for (int p = 0; p < P_COUNT; p++) {
        for (size_t i = 0; i < spec_size(&m.local[p]); i++)
            squares += (double)m.grads.at[p][i] * (double)m.grads.at[p][i];
    }
    double error = fabs(gradients_norm(&m, &sums) / sqrt(squares) - 1);
    double seconds = MEDIAN_SECONDS(gradients_norm(&m, &sums));
    report("gradient norm", seconds, 1.0 * n * sizeof(real), error, 1e-6);
    AdamW h = {.rate = 1e-3, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .decay = 0.1,
               .grad_scale = 1};
    gpt2_update(&m, h, 1);
    error = fabs((double)m.params.block[5] -
                 (first - 1e-3 * (second / (fabs(second) + 1e-8) + 0.1 * first)));
    seconds = MEDIAN_SECONDS(gpt2_update(&m, h, 2));
    report("AdamW", seconds, 7.0 * n * sizeof(real), error, 1e-6);
    gpt2_free(&m);
}

static void bench_updates(GPT2Config config, int B, int T) {
    static const char *const patterns[] = {"t", "t", "s", "sppp", "p"};
    int32_t *tokens = alloc_zeroed((size_t)B * T, sizeof(int32_t), "tokens");
    int R = config.R;
    double dense = 0;
    for (int i = 0; i < B * T; i++)
        tokens[i] = (int32_t)random_below(random_bits(4, 0, 0, (uint64_t)i), (uint64_t)config.V);
    printf("\nwhole updates, %dx%dx%d, B %d, T %d, tensor ranks folded into this process\n",
           config.L, config.NH, config.C, B, T);
    for (int i = 0; i < 5; i++) {
        if (i > 0 && R == 1) break;
        if (config.L % (int)strlen(patterns[i])) continue;
        GPT2 m;
        UpdateSums sums = {0};
        config.R = i == 0 ? 1 : R;
        snprintf(config.pattern, sizeof config.pattern, "%s", patterns[i]);
        gpt2_create(&m, &config, mesh_make(1, 0, config.R, config.R), B, T, FOR_TRAINING);
        gpt2_init_weights(&m, WEIGHTS_GPT2, 1);
        double forward = MEDIAN_SECONDS(gpt2_forward(&m, tokens, tokens, B, T));
        double seconds = MEDIAN_SECONDS({
            gpt2_forward(&m, tokens, tokens, B, T);
            gpt2_backward(&m, 1, 0);
            gradients_reduce(&m);
            gradients_norm(&m, &sums);
            gpt2_update(&m,
                        (AdamW){.rate = 1e-4, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8,
                                .grad_scale = 1},
                        10);
        });
        if (i == 0) dense = seconds;
        printf("%-5s R %d   forward %9.2f ms   update %9.2f ms   %5.3f times R 1   %8.0f "
               "tokens/s\n",
               patterns[i], config.R, forward * 1e3, seconds * 1e3, seconds / dense,
               B * T / seconds);
        gpt2_free(&m);
    }
    free(tokens);
}

int main(int argc, char **argv) {
    GPT2Config c;
    long B = argc > 2 ? strtol(argv[2], NULL, 10) : 4;
    long T = argc > 3 ? strtol(argv[3], NULL, 10) : 64;
    long R = argc > 4 ? strtol(argv[4], NULL, 10) : 1;
    const char *name = argc > 1 ? argv[1] : "d12";
    int small = argc > 1 && strchr(name, 'x');
    if (!config_parse(&c, name, small ? 65 : GPT2_V, (int)T))
        fail("'%s': expected d12, d24, d36, d48, or LxHxC", name);
    if (B < 1 || T < 1 || R < 1 || c.NH % R)
        fail("expected LxHxC B T R, where R divides %d heads", c.NH);
    if (c.C / c.NH > HS_MAX) fail("%d channels per head, at most %d", c.C / c.NH, HS_MAX);
    c.R = (int)R;
    int rows = (int)(B * T), C = c.C, Cr = C / c.R, HS = C / c.NH;
    if (!(argc > 5 && !strcmp(argv[5], "updates"))) {
        ceilings_measure();
        bench_linear("qkv", rows, C, 3 * Cr);
        bench_linear("attproj", rows, Cr, C);
        bench_linear("fc", rows, C, 4 * Cr);
        bench_linear("fcproj", rows, 4 * Cr, C);
        bench_linear("head", rows, C, c.V);
        bench_attention((int)B, (int)T, c.NH / c.R, HS);
        bench_layernorm(rows, C);
        bench_gelu(rows, 4 * Cr);
        bench_bias(rows, 4 * Cr);
        bench_embedding((int)B, (int)T, C, c.V);
        bench_classifier(rows, c.V);
        bench_model(&c, (int)B, (int)T);
    }
    bench_updates(c, (int)B, (int)T);
    if (wrong) printf("%d kernels are WRONG\n", wrong);
    return wrong > 0;
}
