/*
Gradients of biases that no other kernel takes on its way: bias_backward, sums over the rows of a
matrix, of F ranks at once.

  dev/cuda/bias [B [T]]      shapes are F x rows x columns
*/
#include "bench.h"

static void bench_bias(const char *name, int F, int rows, int cols) {
    size_t n = (size_t)F * rows * cols;
    double sums = (double)F * cols * sizeof(float), worst = 0;
    Row row{.kernel = name, .shape = text("%dx%dx%d", F, rows, cols),
            .bytes = (double)n * sizeof(real) + sums};
    int across = ceil_div(cols, WARP * PACK) * F;
    int chunks = ceil_div(4 * gpu.properties.multiProcessorCount, across);
    row.scratch = 2.0 * min(CHUNKS_MAX, chunks) * sums;
    Sets<real> d(n, sets_for(row.bytes), 1);
    Sets<float> out((size_t)F * cols, 1, 0), scratch((size_t)F * CHUNKS_MAX * cols, 1, 0);
    auto launch = [&](int set) {
        bias_backward(out.at, cols, 1, d[set], F, rows, cols, 0, scratch.at);
    };
    launch(0);
    for (int f = 0; f < F; f++) {
        std::vector<double> x = fetch(d.at + (size_t)f * rows * cols, (size_t)rows * cols);
        std::vector<double> expected(cols);
        std::vector<double> found = fetch(out.at + f * cols, cols);
        for (int r = 0; r < rows; r++) {
            for (int c = 0; c < cols; c++) expected[c] += x[(size_t)r * cols + c];
        }
        for (int c = 0; c < cols; c++)
            worst = larger(worst, found[c], expected[c], sqrt(rows) + fabs(expected[c]));
    }
    row.error = worst;
    row.tolerance = 2e-5; // out is float in every build
    bench(row, d.count, launch);
}

int main(int argc, char **argv) {
    Shape s = shape_parse(argc, argv);
    bench_open("bias", 0, 1);
    bench_bias("bias_backward_out", 1, s.B * s.T, s.C);
    for (int R = 1; R <= 2; R++) bench_bias("bias_backward_qkv", R, s.B * s.T, 3 * s.C / R);
    return bench_close();
}
