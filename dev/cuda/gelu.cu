/*
GELU by itself, as GPUs before Hopper and -r need it: gelu_forward, and gelu_backward with the
gradient of the bias before it. (From Hopper on, products do it.)

  dev/cuda/gelu [B [T]]      shapes are rows x 4C
*/
#include "bench.h"

int main(int argc, char **argv) {
    Shape s = shape_parse(argc, argv);
    bench_open("gelu", 0, 1);
    int rows = s.B * s.T, cols = 4 * s.C;
    size_t n = (size_t)rows * cols, checked = n < 1 << 16 ? n : 1 << 16;
    std::string shape = text("%dx%d", rows, cols);
    double sums = cols * sizeof(float);
    Row forward{.kernel = "gelu_forward", .shape = shape, .bytes = 2.0 * n * sizeof(real)};
    Row backward{.kernel = "gelu_backward", .shape = shape, .bytes = 3.0 * n * sizeof(real) + sums};
    int chunks = ceil_div(4 * gpu.properties.multiProcessorCount, ceil_div(cols, WARP * PACK));
    backward.scratch = 2.0 * min(CHUNKS_MAX, chunks) * sums;
    int sets = sets_for(forward.bytes);
    Sets<real> in(n, sets, 2), out(n, sets, 0), dout(n, sets, 1), dx(n, sets, 0);
    Sets<float> db(cols, 1, 0), scratch((size_t)CHUNKS_MAX * cols, 1, 0);
    auto gelu_on = [&](int set) { gelu_forward(out[set], in[set], n); };
    auto slope_on = [&](int set) {
        Chunks<float> left = gelu_backward(dx[set], dout[set], in[set], 1, rows, cols, scratch.at);
        chunks_sum(db.at, 0, 1, left, 1, cols, 0);
    };
    gelu_on(0);
    slope_on(0);
    // The beginning and the end.
    for (size_t first = 0; first < n; first = first + checked < n ? n - checked : n) {
        std::vector<double> x = fetch(in.at + first, checked), d = fetch(dout.at + first, checked);
        std::vector<double> y = fetch(out.at + first, checked), dy = fetch(dx.at + first, checked);
        for (size_t i = 0; i < checked; i++) {
            double expected = gelu_plain(x[i]), slope = d[i] * gelu_slope_plain(x[i]);
            forward.error = larger(forward.error, y[i], expected, 1 + fabs(expected));
            backward.error = larger(backward.error, dy[i], slope, 1 + fabs(slope));
        }
    }
    std::vector<double> x = fetch(in.at, n), d = fetch(dout.at, n), found = fetch(db.at, cols);
    for (int c = 0; c < cols; c++) {
        double sum = 0;
        for (size_t i = c; i < n; i += cols) sum += d[i] * gelu_slope_plain(x[i]);
        backward.error = larger(backward.error, found[c], sum, sqrt(rows) + fabs(sum));
    }
    bench(forward, sets, gelu_on);
    bench(backward, sets, slope_on);
    return bench_close();
}
