/*
GELU by itself, as GPUs before Hopper and -r need it: gelu_forward and gelu_backward.
(From Hopper on, products do it.)

  dev/cuda/gelu [B [T]]      shapes are rows x 4C
*/
#include "bench.h"

int main(int argc, char **argv) {
    Shape s = shape_parse(argc, argv);
    bench_open("gelu", 0, 1);
    size_t n = (size_t)s.B * s.T * 4 * s.C, checked = n < 1 << 16 ? n : 1 << 16;
    std::string shape = text("%dx%d", s.B * s.T, 4 * s.C);
    Row forward{.kernel = "gelu_forward", .shape = shape, .bytes = 2.0 * n * sizeof(real)};
    Row backward{.kernel = "gelu_backward", .shape = shape, .bytes = 3.0 * n * sizeof(real)};
    int sets = sets_for(forward.bytes);
    Sets<real> in(n, sets, 2), out(n, sets, 0), dout(n, sets, 1), dx(n, sets, 0);
    auto gelu_on = [&](int set) { gelu_forward(out[set], in[set], n); };
    auto slope_on = [&](int set) { gelu_backward(dx[set], dout[set], in[set], n); };
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
    bench(forward, sets, gelu_on);
    bench(backward, sets, slope_on);
    return bench_close();
}
