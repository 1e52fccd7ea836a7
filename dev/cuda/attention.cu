/*
Causal attention, forward and backward.

  dev/cuda/attention [B [T [HS [heads]]]]    64 12: GPT-2 124M; shapes are B x T x heads x HS
  dev/cuda/attention sizes                   heads of 32, 64, 128; T from 256 to 4096; 16384 tokens

Of the products of two T x T triangles and HS there are 2 forward and 5 backward: 2 B heads T T HS
and 5 B heads T T HS operations, though the backward kernels do 7. R tensor ranks in one process are
R times the sequences with 1/R of the heads.
*/
#include "bench.h"
#include "attention.h"

#ifdef PRECISION_FP32
static constexpr double TOLERANCE_FORWARD = 2e-5, TOLERANCE_BACKWARD = 2e-5;
#else
// P, dS, and the out that makes delta are rounded.
static constexpr double TOLERANCE_FORWARD = 1e-2, TOLERANCE_BACKWARD = 3e-2;
#endif

struct AttentionOperands {
    AttentionShape s;
    size_t n, rows; // elements of out, rows of all heads
    Sets<real> qkv, dqkv, out, dout;
    Sets<float> lse, sums, scratch;
    AttentionOperands(AttentionShape s, int sets)
        : s(s), n((size_t)s.B * s.T * s.heads * s.HS), rows((size_t)s.B * s.T * s.heads),
          qkv(3 * n, sets, 1), dqkv(3 * n, sets, 0), out(n, sets, 0), dout(n, sets, 1),
          lse(rows, sets, 0),
          sums((size_t)s.B * attention_tiles(s.T, s.HS) * 3 * s.heads * s.HS, 1, 0),
          scratch(2 * rows, 1, 0) {}
    void forward(int set) const { attention_forward(out[set], lse[set], qkv[set], s, gpu.stream); }
    void backward(int set) const {
        attention_backward(dqkv[set], sums.at, scratch.at, dout[set], out[set], lse[set], qkv[set],
                           s, gpu.stream);
    }
};

// The largest error of a row of `width`, as a vector, relative to that row and the root
// mean square of all. (Rows differ in size: early queries see few keys. Elements of
// bf16 products have long tails.)
static double rows_error(double worst, const std::vector<double> &found,
                         const std::vector<double> &expected, int width) {
    double squares = 0;
    for (double v : expected) squares += v * v;
    double typical = sqrt(squares / (double)expected.size() * width);
    for (size_t row = 0; row < expected.size(); row += width) {
        double difference = 0;
        for (size_t i = row; i < row + width; i++)
            difference += (found[i] - expected[i]) * (found[i] - expected[i]);
        worst = larger(worst, sqrt(difference), 0,
                       typical + sqrt(dot(&expected[row], &expected[row], width)));
    }
    return worst;
}

// The first and the last head of the batch; of long sequences, whose plain loops take long, the
// last alone.
static void attention_errors(const AttentionOperands &o, double *forward, double *backward) {
    const AttentionShape &s = o.s;
    for (int last = s.T > 1024; last < 2; last++) {
        int b = last * (s.B - 1), h = last * (s.heads - 1);
        Head e = head_expected(o.qkv.at, o.dout.at, s, b, h);
        std::vector<double> lse = fetch(o.lse.at + ((size_t)b * s.heads + h) * s.T, s.T);
        *forward = rows_error(*forward, head_matrix(o.out.at, s, 1, 0, b, h), e.out, s.HS);
        *forward = rows_error(*forward, lse, e.lse, 1);
        *backward = rows_error(*backward, head_matrix(o.dqkv.at, s, 3, 0, b, h), e.dq, s.HS);
        *backward = rows_error(*backward, head_matrix(o.dqkv.at, s, 3, 1, b, h), e.dk, s.HS);
        *backward = rows_error(*backward, head_matrix(o.dqkv.at, s, 3, 2, b, h), e.dv, s.HS);
    }
}

static void bench_attention(AttentionShape s) {
    double n = (double)s.B * s.T * s.heads * s.HS * sizeof(real);
    double rows = (double)s.B * s.T * s.heads * sizeof(float);
    Row forward{.kernel = "attention_forward",
                .shape = text("%dx%dx%dx%d", s.B, s.T, s.heads, s.HS)};
    Row backward = forward;
    forward.flops = 2.0 * s.B * s.heads * s.T * s.T * s.HS, forward.bytes = 4 * n + rows;
    backward.kernel = "attention_backward", backward.flops = 2.5 * forward.flops;
    backward.bytes = 8 * n + rows;
    forward.tolerance = TOLERANCE_FORWARD, backward.tolerance = TOLERANCE_BACKWARD;
    AttentionOperands o(s, sets_for(forward.bytes));
    // The backward pass reads what this leaves.
    for (int set = 0; set < o.qkv.count; set++) o.forward(set);
    o.backward(0);
    attention_errors(o, &forward.error, &backward.error);
    bench(forward, o.qkv.count, [&](int set) { o.forward(set); });
    bench(backward, o.qkv.count, [&](int set) { o.backward(set); });
}

// One token after s.past others, which is as many bytes as their keys and values; against the last
// of as many queries at once.
static void bench_token(AttentionShape s) {
    size_t W = (size_t)s.heads * s.HS, rows = (size_t)s.past + 1;
    Row token{.kernel = "attention_token",
              .shape = text("%dx(%d+1)x%dx%d", s.B, s.past, s.heads, s.HS)};
    token.bytes = 2.0 * s.B * rows * W * sizeof(real), token.flops = 2 * token.bytes / sizeof(real);
    token.tolerance = TOLERANCE_FORWARD;
    int sets = sets_for(token.bytes);
    Sets<real> qkv(3 * s.B * rows * W, sets, 1), out(s.B * W, sets, 0), all(s.B * rows * W, 1, 0);
    Sets<float> lse(s.B * rows * s.heads, 1, 0);
    auto forward = [&](int set) { attention_forward(out[set], NULL, qkv[set], s, gpu.stream); };
    forward(0);
    attention_forward(all[0], lse[0], qkv[0], {s.B, (int)rows, s.heads, s.HS}, gpu.stream);
    for (int b = 0; b < s.B; b++) {
        token.error = rows_error(token.error, fetch(out[0] + b * W, W),
                                 fetch(all[0] + ((b + 1) * rows - 1) * W, W), s.HS);
    }
    bench(token, sets, forward);
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "sizes")) {
        int tokens = emulated ? 128 : 16384, width = emulated ? 256 : 768;
        bench_open("attention", 0, 1);
        for (int HS = 32; HS <= 128; HS *= 2) {
            for (int T = tokens / 64; T <= tokens / 4; T *= 2)
                bench_attention(AttentionShape{tokens / T, T, width / HS, HS});
        }
        return bench_close();
    }
    Shape s = shape_parse(argc, argv);
    int HS = argc > 3 ? argument_int("HS", argv[3], 8, 128) : s.C / s.NH;
    int heads = argc > 4 ? argument_int("heads", argv[4], 1, 1024) : s.NH;
    bench_open("attention", 0, 1);
    for (int R = 1; R <= 2 && heads % R == 0; R++)
        bench_attention(AttentionShape{R * s.B, s.T, heads / R, HS});
    if (s.T > 1) bench_token(AttentionShape{1, 1, heads, HS, s.T - 1});
    return bench_close();
}
