/*
What adds up a stream and normalizes it: columns_kernel, merge_norm_kernel and norm_again_kernel.
Merging F parts is also the all-reduce over F tensor ranks in one process; where it merges
gradients, it leaves their sums over rows.

  dev/cuda/merge [B [T]]      shapes are F x rows x C
*/
#include "bench.h"

enum { SAMPLED_ROWS = 64 };

// Operands of a Merge of F parts and of the Norm behind it. With `own` each rank goes on
// from the base and its own part.
typedef struct { int F, own, rows, C, copies; } MergeShape;

struct MergeOperands {
    MergeShape s;
    size_t n;
    Sets<real> base, parts, out, normed, w, b;
    Sets<float> mean, rstd, bias;
    MergeOperands(MergeShape s, int sets)
        : s(s), n((size_t)s.rows * s.C), base(n, sets, 1), parts(s.F * n, sets, 1),
          out(s.copies * n, sets, 0), normed(s.copies * n, sets, 0), w(s.C, 1, 1), b(s.C, 1, 1),
          mean((size_t)s.copies * s.rows, sets, 0), rstd((size_t)s.copies * s.rows, sets, 0),
          bias(s.C, 1, 1) {}
    Merge merge_at(int set, int with_bias) const {
        Merge g = {};
        g.out = out[set], g.base = base[set], g.base_rows = s.rows, g.base_scale = 1;
        g.parts = parts[set], g.count = s.own ? 1 : s.F, g.step = s.own, g.parts_scale = 1;
        g.bias = with_bias ? bias.at : NULL, g.bias_scale = 1;
        g.copies = s.copies, g.rows = s.rows, g.C = s.C;
        return g;
    }
    Norm norm_at(int set) const { return Norm{normed[set], mean[set], rstd[set], w.at, b.at}; }
};

// Sampled rows of the sum, against the operands.
static double sum_error(const MergeOperands &o, int with_bias) {
    int C = o.s.C;
    double worst = 0;
    std::vector<double> bias = fetch(o.bias.at, C);
    for (int copy = 0; copy < o.s.copies; copy++) {
        for (int i = 0; i < SAMPLED_ROWS; i++) {
            size_t at = (size_t)sample_of(i, SAMPLED_ROWS, o.s.rows) * C;
            std::vector<double> expected = fetch(o.base.at + at, C);
            std::vector<double> found = fetch(o.out.at + copy * o.n + at, C);
            for (int f = 0; f < o.s.F; f++) {
                if (o.s.own && f != copy) continue;
                std::vector<double> part = fetch(o.parts.at + f * o.n + at, C);
                for (int c = 0; c < C; c++) expected[c] += part[c];
            }
            for (int c = 0; c < C; c++) {
                if (with_bias) expected[c] += bias[c];
                worst = larger(worst, found[c], expected[c], 1 + fabs(expected[c]));
            }
        }
    }
    return worst;
}

// Sums over the rows of the stream as it was stored.
static double columns_error(const MergeOperands &o, const float *sums) {
    int C = o.s.C;
    double worst = 0;
    std::vector<double> x = fetch(o.out.at, o.n), found = fetch(sums, C), expected(C);
    for (size_t i = 0; i < o.n; i++) expected[i % C] += x[i];
    for (int c = 0; c < C; c++) {
        worst = larger(worst, found[c], expected[c], sqrt(o.s.rows) + fabs(expected[c]));
    }
    return worst;
}

// Sampled rows of LayerNorm, mean and 1 / standard deviation, against the stream as it was stored.
static double norm_error(const MergeOperands &o) {
    int C = o.s.C;
    double worst = 0;
    std::vector<double> w = fetch(o.w.at, C), b = fetch(o.b.at, C);
    for (int i = 0; i < SAMPLED_ROWS; i++) {
        size_t row = sample_of(i, SAMPLED_ROWS, o.s.copies * o.s.rows);
        std::vector<double> x = fetch(o.out.at + row * C, C);
        std::vector<double> found = fetch(o.normed.at + row * C, C);
        double mean = 0, variance = 0;
        for (double v : x) mean += v / C;
        for (double v : x) variance += (v - mean) * (v - mean) / C;
        double rstd = 1 / sqrt(variance + 1e-5);
        for (int c = 0; c < C; c++) {
            double expected = (x[c] - mean) * rstd * w[c] + b[c];
            worst = larger(worst, found[c], expected, 1 + fabs(expected));
        }
        worst = larger(worst, fetch(o.mean.at + row, 1)[0], mean, 1);
        worst = larger(worst, fetch(o.rstd.at + row, 1)[0], rstd, 1);
    }
    return worst;
}

static void bench_merge(Shape shape, int F, int own) {
    MergeShape s = {F, own, shape.B * shape.T, shape.C, own ? F : 1};
    double n = (double)s.rows * s.C * sizeof(real);
    double row_params = s.C * (2.0 * sizeof(real) + sizeof(float));
    double sum_bytes = (1.0 + F + s.copies) * n;
    MergeOperands o(s, sets_for(sum_bytes));
    std::string name = text("%dx%dx%d", F, s.rows, s.C);
    Sets<float> scratch((size_t)CHUNKS_MAX * s.C, 1, 0), bias_grad(s.C, 1, 0);
    auto sum = [&](int set) {
        chunks_sum(bias_grad.at, 0, 1, merge(o.merge_at(set, 0), scratch.at), 1, s.C, 0);
    };
    auto sum_norm = [&](int set) { merge_norm(o.merge_at(set, 1), o.norm_at(set)); };
    auto again = [&](int set) { norm_again(o.norm_at(set), o.out[set], s.copies, s.rows, s.C); };

    if (!own) {
        Row row{.kernel = "merge", .shape = name, .bytes = sum_bytes + s.C * sizeof(float)};
        int chunks = ceil_div(4 * gpu.properties.multiProcessorCount, ceil_div(s.C, WARP * PACK));
        row.scratch = 2.0 * min(CHUNKS_MAX, chunks) * s.C * sizeof(float);
        sum(0);
        row.error = fmax(sum_error(o, 0), columns_error(o, bias_grad.at));
        bench(row, o.base.count, sum);
    }
    Row row{.kernel = own ? "merge_norm_own" : "merge_norm", .shape = name};
    row.bytes = sum_bytes + s.copies * n + 2.0 * s.copies * s.rows * sizeof(float) + row_params;
    row.again = s.copies * s.rows * row_params + (s.copies - 1) * n;
    row.why = "each row reads w, b and the bias, each copy the base";
    sum_norm(0);
    row.error = fmax(sum_error(o, 1), norm_error(o));
    bench(row, o.base.count, sum_norm);
    if (F > 1) return;
    row = Row{.kernel = "norm_again", .shape = name,
              .bytes = 2 * n + 2.0 * s.rows * sizeof(float) + 2.0 * s.C * sizeof(real)};
    row.again = s.rows * 2.0 * (s.C * sizeof(real) + (WARP - 1) * sizeof(float));
    row.why = "each row reads w and b, each lane mean and rstd";
    // All sets have streams to normalize.
    for (int set = 1; set < o.base.count; set++) sum_norm(set);
    CUDA_CHECK(cudaMemsetAsync(o.normed.at, 0xFF, (size_t)n, gpu.stream));
    again(0);
    row.error = norm_error(o);
    bench(row, o.base.count, again);
}

int main(int argc, char **argv) {
    Shape s = shape_parse(argc, argv);
    bench_open("merge", 0, 1);
    for (int F = 1; F <= 4; F *= 2) bench_merge(s, F, 0);
    bench_merge(s, 2, 1);
    return bench_close();
}
