/*
Causal attention, forward and backward.

  dev/cuda/attention [B [T [HS [heads]]]]     64 12: GPT-2 124M; shapes are B x T x heads x HS
  dev/cuda/attention sizes                    heads of 32, 64 and 128, T from 256 to 4096, 16384 tokens

Of the products of two T x T triangles and HS there are 2 forward and 5 backward: 2 B heads T T HS and 5 B heads T T HS
operations, though the backward kernels do 7. R tensor ranks in one process are R times the sequences with 1/R of the heads.
*/
#include "bench.h"

#ifdef PRECISION_FP32
static constexpr double TOLERANCE_FORWARD = 2e-5, TOLERANCE_BACKWARD = 2e-5;
#else
static constexpr double TOLERANCE_FORWARD = 1e-2, TOLERANCE_BACKWARD = 3e-2; // P, dS, and the out that makes delta are rounded
#endif

// One head against plain loops in double.
struct Head {
    int T, HS;
    std::vector<double> q, k, v, out, dout, dq, dk, dv, lse; // (T,HS), lse (T)
    std::vector<double> p, dp;                               // (T) of the row at hand
    double delta;

    static double dot(const double *x, const double *y, int n) {
        double sum = 0;
        for (int i = 0; i < n; i++) sum += x[i] * y[i];
        return sum;
    }
    void forward_row(int t) {
        double most = -INFINITY, sum = 0, *o = &out[(size_t)t * HS];
        for (int u = 0; u <= t; u++) most = fmax(most, p[u] = dot(&q[(size_t)t * HS], &k[(size_t)u * HS], HS) / sqrt(HS));
        for (int u = 0; u <= t; u++) sum += p[u] = exp(p[u] - most);
        lse[t] = most + log(sum);
        for (int u = 0; u <= t; u++) {
            p[u] /= sum;
            for (int c = 0; c < HS; c++) o[c] += p[u] * v[(size_t)u * HS + c];
        }
    }
    void backward_row(int t) {
        const double *d = &dout[(size_t)t * HS];
        delta = dot(d, &out[(size_t)t * HS], HS);
        for (int u = 0; u <= t; u++) {
            double ds = p[u] * (dot(d, &v[(size_t)u * HS], HS) - delta) / sqrt(HS);
            for (int c = 0; c < HS; c++) {
                dq[(size_t)t * HS + c] += ds * k[(size_t)u * HS + c];
                dk[(size_t)u * HS + c] += ds * q[(size_t)t * HS + c];
                dv[(size_t)u * HS + c] += p[u] * d[c];
            }
        }
    }
};

struct AttentionOperands {
    AttentionShape s;
    size_t n, rows; // elements of out, rows of all heads
    Sets<real> qkv, dqkv, out, dout;
    Sets<float> lse, delta;
    AttentionOperands(AttentionShape s, int sets)
        : s(s), n((size_t)s.B * s.T * s.heads * s.HS), rows((size_t)s.B * s.T * s.heads), qkv(3 * n, sets, 1),
          dqkv(3 * n, sets, 0), out(n, sets, 0), dout(n, sets, 1), lse(rows, sets, 0), delta(rows, 1, 0) {}
    void forward(int set) const { attention_forward(out[set], lse[set], qkv[set], s, gpu.stream); }
    void backward(int set) const {
        attention_backward(dqkv[set], delta.at, dout[set], out[set], lse[set], qkv[set], s, gpu.stream);
    }
    // Matrix `which` of sequence b, head h, from set 0 of x, whose rows hold `matrices` of them: (T,HS)
    std::vector<double> matrix(const Sets<real> &x, int matrices, int which, int b, int h) const {
        size_t width = (size_t)s.heads * s.HS;
        return fetch(x.at + ((size_t)b * s.T * matrices + which) * width + (size_t)h * s.HS, s.T, matrices * width, s.HS);
    }
};

// The largest error of a row of `width`, as a vector, relative to that row and the root mean square of all. (Rows differ in
// size: early queries see few keys. Elements of bf16 products have long tails.)
static double rows_error(double worst, const std::vector<double> &found, const std::vector<double> &expected, int width) {
    double squares = 0;
    for (double v : expected) squares += v * v;
    double typical = sqrt(squares / (double)expected.size() * width);
    for (size_t row = 0; row < expected.size(); row += width) {
        double difference = 0;
        for (size_t i = row; i < row + width; i++) difference += (found[i] - expected[i]) * (found[i] - expected[i]);
        worst = larger(worst, sqrt(difference), 0, typical + sqrt(Head::dot(&expected[row], &expected[row], width)));
    }
    return worst;
}

// The first and the last head of the batch; of long sequences, whose plain loops take long, the last alone.
static void attention_errors(const AttentionOperands &o, double *forward, double *backward) {
    const AttentionShape &s = o.s;
    for (int last = s.T > 1024; last < 2; last++) {
        int b = last * (s.B - 1), h = last * (s.heads - 1);
        size_t n = (size_t)s.T * s.HS;
        std::vector<double> zeros(n), row(s.T);
        Head head = {s.T, s.HS, o.matrix(o.qkv, 3, 0, b, h), o.matrix(o.qkv, 3, 1, b, h), o.matrix(o.qkv, 3, 2, b, h), zeros,
                     o.matrix(o.dout, 1, 0, b, h), zeros, zeros, zeros, row, row, row, 0};
        for (int t = 0; t < s.T; t++) {
            head.forward_row(t);
            head.backward_row(t);
        }
        std::vector<double> lse = fetch(o.lse.at + ((size_t)b * s.heads + h) * s.T, s.T);
        *forward = rows_error(*forward, o.matrix(o.out, 1, 0, b, h), head.out, s.HS);
        *forward = rows_error(*forward, lse, head.lse, 1);
        *backward = rows_error(*backward, o.matrix(o.dqkv, 3, 0, b, h), head.dq, s.HS);
        *backward = rows_error(*backward, o.matrix(o.dqkv, 3, 1, b, h), head.dk, s.HS);
        *backward = rows_error(*backward, o.matrix(o.dqkv, 3, 2, b, h), head.dv, s.HS);
    }
}

static void bench_attention(AttentionShape s) {
    double n = (double)s.B * s.T * s.heads * s.HS * sizeof(real), rows = (double)s.B * s.T * s.heads * sizeof(float);
    Row forward{.kernel = "attention_forward", .shape = text("%dx%dx%dx%d", s.B, s.T, s.heads, s.HS)}, backward = forward;
    forward.flops = 2.0 * s.B * s.heads * s.T * s.T * s.HS, forward.bytes = 4 * n + rows;
    backward.kernel = "attention_backward", backward.flops = 2.5 * forward.flops, backward.bytes = 8 * n + rows;
    forward.tolerance = TOLERANCE_FORWARD, backward.tolerance = TOLERANCE_BACKWARD;
    AttentionOperands o(s, sets_for(forward.bytes));
    for (int set = 0; set < o.qkv.count; set++) o.forward(set); // the backward pass reads what this leaves
    o.backward(0);
    attention_errors(o, &forward.error, &backward.error);
    bench(forward, o.qkv.count, [&](int set) { o.forward(set); });
    bench(backward, o.qkv.count, [&](int set) { o.backward(set); });
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "sizes")) {
        int tokens = emulated ? 128 : 16384, width = emulated ? 256 : 768;
        bench_open("attention", 0, 1);
        for (int HS = 32; HS <= 128; HS *= 2) {
            for (int T = tokens / 64; T <= tokens / 4; T *= 2) bench_attention(AttentionShape{tokens / T, T, width / HS, HS});
        }
        return bench_close();
    }
    Shape s = shape_parse(argc, argv);
    int HS = argc > 3 ? argument_int("HS", argv[3], 8, 128) : s.C / s.NH;
    int heads = argc > 4 ? argument_int("heads", argv[4], 1, 1024) : s.NH;
    bench_open("attention", 0, 1);
    for (int R = 1; R <= 2 && heads % R == 0; R++) bench_attention(AttentionShape{R * s.B, s.T, heads / R, HS});
    return bench_close();
}
