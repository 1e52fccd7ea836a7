/*
Gradient check: every parameter tensor's gradient against central differences of the loss, in double
precision, for every block letter, merge rule and tensor size R of 1, 2, 4.

  make dev/gradcheck && dev/gradcheck     all of them, half a minute at most
  dev/gradcheck spps mean 2               one pattern, rule and R over 4 blocks, tensor by tensor

A tensor is moved along a direction v by +h and -h: (loss(+h) - loss(-h)) / 2h must be gradient . v.
Directions are the gradient itself and random ones, which every element takes part in; errors are
relative to the gradient's norm. What would break it: any wrong term in a backward pass, a rank's
gradient that is counted twice or not at all.
*/
#define NO_MAIN
#include "../train_gpt2.c"

#if !defined(__SIZEOF_DOUBLE__) || __SIZEOF_DOUBLE__ != 8
#error "central differences need doubles of 8 bytes"
#endif

enum { B = 2, T = 5, V = 11, L = 4, NH = 4, C = 16, DIRECTIONS = 3 };
static const double step = 1e-5, tolerance = 1e-6;
static const char *const rules[] = {"sum", "mean", "streams"};

static int32_t tokens[B * T], targets[B * T];
static int passed, failed; // tensors

static void direction_fill(real *v, const real *gradient, size_t n, int which) {
    double norm = 0;
    for (size_t i = 0; i < n; i++) {
        v[i] = which == 0 ? gradient[i]
                          : (real)random_normal(random_bits(17, (uint64_t)which, 0, i));
        norm += (double)v[i] * (double)v[i];
    }
    for (size_t i = 0; i < n; i++) v[i] /= (real)sqrt(norm);
}

static double loss_at(GPT2 *m, real *w, const real *origin, const real *v, size_t n, double h) {
    for (size_t i = 0; i < n; i++) w[i] = origin[i] + (real)h * v[i];
    return gpt2_forward(m, tokens, targets, B, T);
}

// Largest error of tensor p over the directions, relative to the norm of its gradient.
static double tensor_error(GPT2 *m, int p) {
    size_t n = spec_size(&m->local[p]);
    real *w = m->params.at[p], *g = m->grads.at[p];
    real *origin = memcpy(alloc_zeroed(n, sizeof(real), "test"), w, n * sizeof(real));
    real *v = alloc_zeroed(n, sizeof(real), "test");
    double norm = 0, worst = 0;
    for (size_t i = 0; i < n; i++) norm += (double)g[i] * (double)g[i];
    norm = sqrt(norm);
    for (int which = 0; which < DIRECTIONS; which++) {
        double expected = 0;
        direction_fill(v, g, n, which);
        for (size_t i = 0; i < n; i++) expected += (double)g[i] * (double)v[i];
        double found = (loss_at(m, w, origin, v, n, step) - loss_at(m, w, origin, v, n, -step)) /
                       (2 * step);
        double error = fabs(found - expected) / norm;
        worst = error > worst || error != error ? error : worst;
    }
    memcpy(w, origin, n * sizeof(real));
    free(origin), free(v);
    return worst;
}

// Checks one (pattern, rule, R); returns the number of tensors that fail.
static int check_gradients(const char *pattern, int rule, int R, int verbose) {
    GPT2 m;
    GPT2Config config = {.maxT = T, .V = V, .L = L, .NH = NH, .C = C, .Vp = vocabulary_pad(V),
                         .R = R, .rule = rule};
    int bad = 0, tensors = 0;
    double worst = 0;
    if (snprintf(config.pattern, sizeof config.pattern, "%s", pattern) > PATTERN_MAX) {
        fail("pattern too long");
    }
    gpt2_create(&m, &config, mesh_make(1, 0, R, R), B, T, FOR_TRAINING);
    gpt2_init_weights(&m, WEIGHTS_LINEAR, 3);
    // Biases and gains away from 0 and 1, weights large enough to matter.
    for (size_t i = 0; i < param_count(m.local); i++) {
        m.params.block[i] += (real)(0.2 * random_normal(random_bits(19, 0, 0, i)));
    }
    gpt2_forward(&m, tokens, targets, B, T);
    gpt2_backward(&m, 1, 0);
    gradients_reduce(&m);
    for (int p = 0; p < P_COUNT; p++) {
        double error = tensor_error(&m, p);
        tensors++;
        if (verbose || !(error <= tolerance)) {
            printf("%s %s rule %s R %d, d%s: error %.1e, tolerance %.0e\n",
                   error <= tolerance ? "ok    " : "FAILED", pattern, rules[rule], R,
                   m.local[p].name, error, tolerance);
        }
        bad += !(error <= tolerance);
        worst = error > worst || error != error ? error : worst;
    }
    if (!bad && !verbose) {
        printf("ok     %s rule %s R %d: %d tensors, largest error %.1e, tolerance %.0e\n", pattern,
               rules[rule], R, tensors, worst, tolerance);
    }
    passed += tensors - bad, failed += bad;
    gpt2_free(&m);
    return bad;
}

int main(int argc, char **argv) {
    static const char *const patterns[] = {"t", "s", "p", "sppp", "pp."};
    static const int sizes[] = {1, 2, 4};
    for (int i = 0; i < B * T; i++) {
        tokens[i] = (int32_t)random_below(random_bits(5, 0, 0, (uint64_t)i), V);
        targets[i] = (int32_t)random_below(random_bits(5, 0, 1, (uint64_t)i), V);
    }
    if (argc == 4) {
        int rule = word_find(RULE_NAMES, argv[2]);
        if (rule < 0) fail("'%s' is not a merge rule; expected one of: %s", argv[2], RULE_NAMES);
        return check_gradients(argv[1], rule, (int)strtol(argv[3], NULL, 10), 1) > 0;
    }
    if (argc != 1) fail("expected no arguments, or PATTERN RULE R");
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
        for (int rule = RULE_SUM; rule <= RULE_STREAMS; rule++) {
            for (int r = 0; r < 3; r++) check_gradients(patterns[i], rule, sizes[r], 0);
        }
    }
    static const char *const hidden[] = {"l", "sl", "ls", "tl", "lt", "lp", "lltp", "pl",
                                         "d", "ddtp", "pd", "sldd"};
    for (size_t i = 0; i < sizeof hidden / sizeof *hidden; i++) {
        for (int r = 0; r < 3; r++) check_gradients(hidden[i], (int)i % 3, sizes[r], 0);
    }
    printf("gradcheck: %d passed, %d failed, 0 skipped\n", passed, failed);
    return failed > 0;
}
