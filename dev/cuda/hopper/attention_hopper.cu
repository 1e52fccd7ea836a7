/*
Checks attention_hopper.cuh, and times it beside the trainer's attention: see bench.h for what
is printed. Needs a Hopper GPU (compute capability 9.0); on others all is skipped. On the
stand-in, try several EMU_SEED.

  make dev/cuda/hopper/attention_hopper          then run it: B 16, 12 heads of 64, T 1024
  dev/cuda/hopper/attention_hopper 4 4096        another B and T
  make dev/cuda/hopper/attention_hopper_emu      then run it: on a CPU; checks only

What fails it: a wrong swizzle, offset or parity, a wait or fence that is missing, a tile given
back too early, a mask off by one.

Floating-point operations are counted as 4 B NH T T HS / 2 forward, two products of which
causality needs half, and as 2.5 times that backward, five products, though both backward
passes make two of them twice.
*/
#include "../bench.h"
#ifndef PRECISION_FP32
#include "../attention.h"
#include "attention_hopper.cuh"

enum { BEYOND = 4096 }; // elements after the end of each result, which must stay as they are

// ----------------------------------------------------------------------------
// errors

// The largest error of `found` (T,HS). Its unit is the largest element of the row, or of all.
static double error_of(const std::vector<double> &found, const std::vector<double> &expected,
                       int HS, bool by_row) {
    double worst = 0, most = 0;
    for (double x : expected) most = fmax(most, fabs(x));
    for (size_t row = 0; row < expected.size(); row += HS) {
        double unit = by_row ? 0 : fmax(most, 0.1); // with T 1, dq and dk are zero
        for (size_t i = row; i < row + HS && by_row; i++) unit = fmax(unit, fabs(expected[i]));
        for (size_t i = row; i < row + HS; i++) worst = larger(worst, found[i], expected[i], unit);
    }
    return worst;
}

// The larger of `worst` and the differences of n elements from the trainer's, of which those above
// 1 are relative, in `unit`. Infinite if anything beyond them was written.
template <typename T> static double difference_of(double worst, const T *found, const T *trainers,
                                                  size_t n, double unit) {
    std::vector<double> x = fetch(found, n + BEYOND), y = fetch(trainers, n);
    for (size_t i = 0; i < n; i++) worst = larger(worst, x[i], y[i], unit * fmax(1, fabs(y[i])));
    for (size_t i = n; i < n + BEYOND; i++) if (x[i] == x[i]) return INFINITY;
    return worst;
}

// ----------------------------------------------------------------------------
// one shape

// The trainer's results are those without a prefix. Both backward passes get the trainer's out and
// lse.
struct Operands {
    AttentionShape s;
    size_t n, rows; // elements of out, of lse
    Sets<real> qkv, dout, out, dqkv, hopper_out, hopper_dqkv;
    Sets<float> lse, sums, scratch, hopper_lse, hopper_delta;
    Operands(AttentionShape s, int sets)
        : s(s), n((size_t)s.B * s.T * s.heads * s.HS), rows((size_t)s.B * s.T * s.heads),
          qkv(3 * n, sets, 1), dout(n, sets, 1), out(n, sets, 0), dqkv(3 * n, sets, 0),
          hopper_out(n + BEYOND, sets, 0), hopper_dqkv(3 * n + BEYOND, sets, 0), lse(rows, sets, 0),
          sums((size_t)s.B * attention_tiles(s.T, s.HS) * 3 * s.heads * s.HS, 1, 0),
          scratch(2 * rows, sets, 0), hopper_lse(rows + BEYOND, sets, 0),
          hopper_delta(rows + BEYOND, sets, 0) {}
};

// worst: of out and lse, and of dqkv, the largest errors in set 0, in the first and the last head.
// lse counts a hundredfold: nothing in it is rounded to bf16.
static void errors_of(double (&worst)[2], const Operands &o, const real *out, const float *lse,
                      const real *dqkv) {
    AttentionShape s = o.s;
    worst[0] = worst[1] = 0;
    for (int last = 0; last < 2; last++) {
        int b = last ? s.B - 1 : 0, h = last ? s.heads - 1 : 0;
        Head e = head_expected(o.qkv[0], o.dout[0], s, b, h);
        std::vector<double> lses = fetch(lse + ((size_t)b * s.heads + h) * s.T, s.T);
        worst[0] = larger(worst[0], error_of(head_matrix(out, s, 1, 0, b, h), e.out, s.HS, true), 0,
                          1);
        for (int t = 0; t < s.T; t++) worst[0] = larger(worst[0], lses[t], e.lse[t], 0.01);
        const std::vector<double> *gradients[3] = {&e.dq, &e.dk, &e.dv};
        for (int i = 0; i < 3; i++) {
            worst[1] = larger(worst[1],
                              error_of(head_matrix(dqkv, s, 3, i, b, h), *gradients[i], s.HS,
                                       false),
                              0, 1);
        }
    }
}

// Both kernels on one shape. `timed` false only checks, and prints the new ones alone.
static void attention_compare(AttentionShape s, int timed) {
    double n = (double)s.B * s.T * s.heads * s.HS, error[2], seconds[4];
    Operands o(s, timed ? sets_for(8 * n) : 1);
    int sets = o.qkv.count, has_backward = s.HS == 64;
    auto run = [&](int hopper, int back, int i) {
        auto forward = hopper ? attention_hopper_forward : attention_forward;
        real *out = hopper ? o.hopper_out[i] : o.out[i];
        real *dqkv = hopper ? o.hopper_dqkv[i] : o.dqkv[i];
        float *lse = hopper ? o.hopper_lse[i] : o.lse[i];
        if (!back) forward(out, lse, o.qkv[i], s, gpu.stream);
        else if (hopper)
            attention_hopper_backward(dqkv, o.hopper_delta[i], o.dout[i], o.out[i], o.lse[i],
                                      o.qkv[i], s, gpu.stream);
        else
            attention_backward(dqkv, o.sums.at, o.scratch[i], o.dout[i], o.out[i], o.lse[i],
                               o.qkv[i], s, gpu.stream);
    };
    for (int i = 0; i < sets; i++) {
        run(0, 0, i), run(1, 0, i), run(0, 1, i);
        if (has_backward) run(1, 1, i);
    }
    for (int hopper = 1; hopper >= !timed; hopper--) {
        if (hopper) {
            errors_of(error, o, o.hopper_out[0], o.hopper_lse[0],
                      has_backward ? o.hopper_dqkv[0] : o.dqkv[0]);
            error[0] = difference_of(error[0], o.hopper_out[0], o.out[0], o.n, 1);
            error[0] = difference_of(error[0], o.hopper_lse[0], o.lse[0], o.rows, 0.01);
            if (has_backward)
                error[1] = difference_of(error[1], o.hopper_dqkv[0], o.dqkv[0], 3 * o.n, 1);
        } else {
            errors_of(error, o, o.out[0], o.lse[0], o.dqkv[0]);
        }
        for (int back = 0; back <= has_backward; back++) {
            Row row;
            row.kernel = text("%s_%s", hopper ? "hopper" : "attention",
                              back ? "backward" : "forward");
            row.shape = text("%dx%dx%dx%d", s.B, s.T, s.heads, s.HS);
            row.bytes = (back ? 16 : 8) * n + 4 * n / s.HS, row.flops = (back ? 5 : 2) * n * s.T;
            row.error = error[back];
            // P and out are rounded to bf16, 2^-9 each; backward, dS and delta too.
            row.tolerance = back ? 3e-2 : 1e-2;
            auto launch = [&](int i) { run(hopper, back, i); };
            if (!timed) row_print(row, 0, "");
            else
                seconds[2 * hopper + back] = bench(row, sets, launch,
                                                   hopper ? "" : "the trainer's");
        }
    }
    for (int back = 0; back <= has_backward && timed && timing; back++) {
        printf("# %s %s: the trainer's takes %.2f times as long\n",
               text("%dx%dx%dx%d", s.B, s.T, s.heads, s.HS).c_str(), back ? "backward" : "forward",
               seconds[back] / seconds[2 + back]);
    }
}

static void attention_hopper(Shape shape) {
    static const int lengths[] = {1, 2, 17, 63, 64, 65, 127, 128, 129, 193, 255, 300};
    for (int T : lengths) {
        attention_compare({.B = 2, .T = T, .heads = 3, .HS = 64}, 0);
        if (T % 4 == 1) attention_compare({.B = 1, .T = T, .heads = 2, .HS = 128}, 0);
    }
    // Fills the ring.
    for (int HS = 64; HS <= 128; HS *= 2)
        attention_compare({.B = 1, .T = 1100, .heads = 1, .HS = HS}, 0);
    attention_compare({.B = shape.B, .T = shape.T, .heads = shape.NH, .HS = 64}, 1);
    if (!emulated)
        attention_compare({.B = shape.B, .T = shape.T, .heads = shape.NH / 2, .HS = 128}, 1);
}
#else
static void attention_hopper(Shape) {
    bench_skip("attention_hopper", "it multiplies bf16: build with PRECISION=BF16");
}
#endif

int main(int argc, char **argv) {
    Shape shape = shape_parse(argc, argv);
    int major = 0;
    // If this fails, bench_open says why.
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0) != cudaSuccess)
        major = 0;
    bench_open("attention_hopper", 0, major == 9);
    if (major == 9) attention_hopper(shape);
    else bench_skip("attention_hopper", "wgmma is there on GPUs of compute capability 9.0 only");
    return bench_close();
}
