/*
What an update does to the flat block of all parameters: gradient norm, AdamW, and with 2 tensor
ranks in this process the sum of their partial gradients. These run on a model as the trainer makes
it; B and T do not matter to them.

  dev/cuda/update      shapes are numbers of elements
*/
#include "bench.h"

enum { SAMPLED = 64 };

static void model_make(GPT2 *m, int R) {
    GPT2Config config;
    const char *name = emulated ? "2x4x64" : "d12";
    if (!config_parse(&config, name, emulated ? 203 : GPT2_V, 64)) fail("'%s': not a model", name);
    config.R = R;
    gpt2_create(m, &config, mesh_make(1, 0, R, R), 1, 64, ModelOptions{}, 1);
    gpt2_init_weights(m, WEIGHTS_GPT2, 1);
    m->micro_steps = 1;
    CUDA_CHECK(cudaMemsetAsync(m->loss_total, 0, sizeof(double), gpu.stream));
    fill_random(m->grads, m->flat_size + (m->F - 1) * m->partials_size, 1e-3);
}

static void bench_norm(GPT2 *m) {
    size_t n = 0;
    double squares = 0;
    for (int p = 0; p < P_COUNT; p++) {
        n += m->flat.size[p];
        for (double g : fetch(m->grads + m->flat.begin[p], m->flat.size[p])) squares += g * g;
    }
    Row row{.kernel = "gradient_norm", .shape = text("%zu", n), .bytes = (double)n * sizeof(float),
            .tolerance = 1e-5};
    row.error = fabs(gpt2_gradients(m).norm / sqrt(squares) - 1);
    row.scratch = (double)(sizeof(double) * P_COUNT * (2 * norm_blocks(1) + 1));
    bench(row, 1, [&](int) { // gpt2_gradients would wait for the GPU
        gradients_square(m->squares, m->squares_partial, m->grads, m->flat, norm_slices(m));
    });
}

// The first and the last elements of each tensor in a flat block.
template <typename T> static std::vector<double> sampled(const GPT2 *m, const T *block) {
    std::vector<double> out;
    for (int p = 0; p < P_COUNT; p++) {
        size_t begin = m->flat.begin[p], size = m->flat.size[p];
        if (size == 0) continue;
        for (size_t at : {begin, begin + size - SAMPLED}) {
            for (double value : fetch(block + at, SAMPLED)) out.push_back(value);
        }
    }
    return out;
}

// Before and after a second step: the first one has made the moments.
static void bench_adamw(GPT2 *m) {
    AdamW h = {};
    h.rate = 1e-3, h.beta1 = 0.9, h.beta2 = 0.95, h.eps = 1e-8, h.decay = 0.1, h.grad_scale = 0.5;
    Row row{.kernel = "adamw", .shape = text("%zu", m->owned_size), .tolerance = 1e-5};
    std::vector<double> w, m1, m2, g;
    gpt2_update(m, h, 1);
    w = sampled(m, m->master), m1 = sampled(m, m->moment1), m2 = sampled(m, m->moment2);
    g = sampled(m, m->grads);
    gpt2_update(m, h, 2);
    std::vector<double> found = sampled(m, m->master), found1 = sampled(m, m->moment1);
    std::vector<double> found2 = sampled(m, m->moment2);
    std::vector<double> rounded = sampled(m, m->params);
    size_t i = 0;
    for (int p = 0; p < P_COUNT; p++) {
        for (int j = 0; m->flat.size[p] && j < 2 * SAMPLED; j++, i++) {
            double d = 0.5 * g[i], mean = 0.9 * m1[i] + 0.1 * d;
            double square = 0.95 * m2[i] + 0.05 * d * d;
            double step = mean / (1 - 0.9 * 0.9) / (sqrt(square / (1 - 0.95 * 0.95)) + 1e-8);
            double expected = w[i] - 1e-3 * (step + (m->whole[p].decay ? 0.1 * w[i] : 0));
            // Of what the step does.
            row.error = larger(row.error, found[i] - w[i], expected - w[i],
                               1e-3 + 1e-2 * fabs(w[i]));
            row.error = larger(row.error, rounded[i], (double)(float)(real)(float)found[i], 1);
            row.error = larger(row.error, found1[i], mean, fabs(mean) + 1e-3);
            row.error = larger(row.error, found2[i], square, fabs(square) + 1e-6);
        }
    }
    // Gradients, weights and both moments are read; weights and moments written,
    // and in bf16 the rounded weights.
    row.bytes = (double)m->owned_size *
                (7 * sizeof(float) + (sizeof(real) < sizeof(float) ? sizeof(real) : 0));
    bench(row, 1, [&](int) { gpt2_update(m, h, 3); });
}

static void bench_partials(GPT2 *m) {
    size_t n = m->partials_size;
    Row row{.kernel = "copies_sum", .shape = text("%dx%zu", m->F, n),
            .bytes = (m->F + 1.0) * n * sizeof(float)};
    row.tolerance = 1e-6;
    std::vector<double> a = fetch(m->grads + m->partials_begin, n);
    std::vector<double> b = fetch(m->grads + m->partials_begin + n, n);
    gradients_reduce(m);
    std::vector<double> found = fetch(m->grads + m->partials_begin, n);
    for (size_t i = 0; i < n; i++)
        row.error = larger(row.error, found[i], a[i] + b[i], 1e-3 + fabs(a[i] + b[i]));
    bench(row, 1, [&](int) { gradients_reduce(m); }, "stays in cache");
}

int main(int argc, char **argv) {
    shape_parse(argc, argv);
    bench_open("update", 0, 1);
    GPT2 m;
    model_make(&m, 1);
    bench_norm(&m);
    bench_adamw(&m);
    gpt2_free(&m);
    model_make(&m, 2);
    bench_partials(&m);
    gpt2_free(&m);
    return bench_close();
}
