/*
LayerNorm, backward: norm_backward_kernel and the sums over chunks of rows behind it.

  dev/cuda/norm_backward [B [T]]      shapes are F x rows x C
*/
#include "bench.h"

enum { SAMPLED_ROWS = 64 };

// F ranks; `shared`: all read the same stream. add: dx, dw and db are added to. parts > 0: F is 1,
// the dout of so many ranks are added up, dx is added to, and summed over rows.
typedef struct { int F, shared, add, parts, rows, C; } NormShape;

struct NormOperands {
    NormShape s;
    size_t n;
    Sets<real> dx, dout, x, w;
    Sets<float> mean, rstd, partial, dw, db, sums;
    NormOperands(NormShape s, int sets)
        : s(s), n((size_t)s.rows * s.C), dx(s.F * n, sets, 1),
          dout(s.F * max(1, s.parts) * n, sets, 1),
          x(s.shared ? n : s.F * n, sets, 1), w(s.C, 1, 1), mean((size_t)s.F * s.rows, 1, 0.1),
          rstd((size_t)s.F * s.rows, 1, 1), partial((size_t)s.F * CHUNKS_MAX * 3 * s.C, 1, 0),
          dw((size_t)s.F * s.C, 1, 1), db((size_t)s.F * s.C, 1, 1), sums(s.C, 1, 0) {}
    void launch(int set) const {
        NormBackward g = {};
        g.dx = dx[set], g.add_dx = s.add || s.parts, g.sum_dx = s.parts > 0;
        g.dout = dout[set], g.parts = max(1, s.parts), g.x = x[set];
        g.x_stride = s.shared ? 0 : n;
        g.mean = mean.at, g.rstd = rstd.at, g.stats_stride = s.shared ? 0 : s.rows;
        g.w = w.at, g.partial = partial.at, g.rows = s.rows, g.C = s.C;
        Chunks<float> left = norm_backward(g, dw.at, db.at, s.C, s.F, s.add);
        if (s.parts) chunks_sum(sums.at, 0, 1, left, 1, s.C, 0);
    }
};

// Runs set 0 once. dx of sampled rows, and all of dw and db, against plain loops.
static double norm_backward_error(const NormOperands &o) {
    const NormShape &s = o.s;
    int C = s.C;
    size_t stats = (size_t)s.F * s.rows, sums = (size_t)s.F * C;
    double worst = 0;
    std::vector<double> w = fetch(o.w.at, C), mean = fetch(o.mean.at, stats);
    std::vector<double> rstd = fetch(o.rstd.at, stats);
    std::vector<double> was_dx = fetch(o.dx.at, s.F * o.n), was_dw = fetch(o.dw.at, sums);
    std::vector<double> was_db = fetch(o.db.at, sums);
    o.launch(0);
    for (int f = 0; f < s.F; f++) {
        std::vector<double> d = fetch(o.dout.at + f * o.n, o.n);
        for (int part = 1; part < s.parts; part++) {
            std::vector<double> more = fetch(o.dout.at + part * o.n, o.n);
            for (size_t i = 0; i < o.n; i++) d[i] = (double)(float)(real)(float)(d[i] + more[i]);
        }
        std::vector<double> x = fetch(o.x.at + (s.shared ? 0 : f * o.n), o.n);
        std::vector<double> dx = fetch(o.dx.at + f * o.n, o.n), dw = fetch(o.dw.at + f * C, C);
        std::vector<double> db = fetch(o.db.at + f * C, C);
        const double *m = &mean[s.shared ? 0 : f * s.rows], *r = &rstd[s.shared ? 0 : f * s.rows];
        for (int i = 0; i < SAMPLED_ROWS; i++) {
            int row = sample_of(i, SAMPLED_ROWS, s.rows);
            double sum = 0, sum_norm = 0;
            for (int c = 0; c < C; c++) {
                double dnorm = d[(size_t)row * C + c] * w[c];
                sum += dnorm / C,
                    sum_norm += dnorm * (x[(size_t)row * C + c] - m[row]) * r[row] / C;
            }
            for (int c = 0; c < C; c++) {
                size_t at = (size_t)row * C + c;
                double expected = (d[at] * w[c] - sum - (x[at] - m[row]) * r[row] * sum_norm) *
                                  r[row];
                if (s.add || s.parts) expected += was_dx[f * o.n + at];
                worst = larger(worst, dx[at], expected, 1 + fabs(expected));
            }
        }
        for (int c = 0; c < C; c++) {
            double expected_dw = s.add ? was_dw[f * C + c] : 0;
            double expected_db = s.add ? was_db[f * C + c] : 0;
            for (int row = 0; row < s.rows; row++) {
                size_t at = (size_t)row * C + c;
                expected_dw += d[at] * (x[at] - m[row]) * r[row], expected_db += d[at];
            }
            worst = larger(worst, dw[c], expected_dw, sqrt(s.rows) + fabs(expected_dw));
            worst = larger(worst, db[c], expected_db, sqrt(s.rows) + fabs(expected_db));
        }
    }
    if (!s.parts) return worst;
    std::vector<double> dx = fetch(o.dx.at, o.n), found = fetch(o.sums.at, C), expected(C);
    for (size_t i = 0; i < o.n; i++) expected[i % C] += dx[i];
    for (int c = 0; c < C; c++) {
        worst = larger(worst, found[c], expected[c], sqrt(s.rows) + fabs(expected[c]));
    }
    return worst;
}

static void bench_norm_backward(Shape shape, int F, int shared, int add, int parts) {
    NormShape s = {F, shared, add, parts, shape.B * shape.T, shape.C};
    double n = (double)s.rows * s.C * sizeof(real), streams = shared ? 1 : F;
    double sums = 2.0 * F * s.C * sizeof(float); // dw and db
    int reads = max(1, parts); // of dout, for each dx
    Row row{.kernel = add ? "norm_backward_add" : "norm_backward",
            .shape = text("%dx%dx%d", max(F, parts), s.rows, s.C)};
    if (parts) {
        row.kernel = "norm_backward_merge";
        sums *= 1.5; // and those of dx
    }
    row.bytes = ((reads + 1.0 + (add || parts)) * F + streams) * n +
                2.0 * streams * s.rows * sizeof(float) + s.C * sizeof(real) + (1 + add) * sums;
    int warps = ceil_div(s.C, WARP * PACK), chunks = min(CHUNKS_MAX, ceil_div(s.rows, 2));
    row.again = (double)F * chunks * s.C * sizeof(real) +
                (warps * F - streams) * 2.0 * s.rows * sizeof(float);
    row.why = "x is read by each rank, w by each chunk, mean and rstd by each warp";
    row.again += (F - streams) * n;
    row.scratch = 2.0 * chunks * sums;
    NormOperands o(s, sets_for(row.bytes));
    row.error = norm_backward_error(o);
    bench(row, o.dx.count, [&](int set) { o.launch(set); });
}

int main(int argc, char **argv) {
    Shape s = shape_parse(argc, argv);
    bench_open("norm_backward", 0, 1);
    bench_norm_backward(s, 1, 1, 0, 0);
    bench_norm_backward(s, 1, 1, 0, 1); // t with R 1: straight into the gradient of the stream
    bench_norm_backward(s, 1, 1, 0, 2); // and with R 2 folded
    bench_norm_backward(s, 2, 1, 0, 0); // the sub-blocks of s that begin at a merge
    bench_norm_backward(s, 2, 0, 1, 0); // those whose ranks went on by themselves
    return bench_close();
}
