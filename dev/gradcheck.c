/*
Gradient check: every parameter tensor's gradient against central differences of the loss, in double
precision, for every block letter, merge rule and tensor size R of 1, 2, 4 (patterns with l and d
with one rule each).

  make dev/gradcheck && dev/gradcheck     all of them, a minute at most
  dev/gradcheck spps mean 2               one pattern, rule and R over 4 blocks, tensor by tensor
  dev/gradcheck spps mean 2 t             the same with a teacher of blocks t

A tensor is moved along a direction v by +h and -h: (loss(+h) - loss(-h)) / 2h must be gradient . v.
Directions are the gradient itself and random ones, which every element takes part in; errors are
relative to the gradient's norm. With a teacher the loss has the weighted distance to its streams.
What would break it: any wrong term in a backward pass, a rank's gradient that is counted twice or
not at all, a stream that is matched before its gradient is there.
*/
#define NO_MAIN
#include "../train_gpt2.c"

_Static_assert(sizeof(real) == sizeof(double), "central differences need -DREAL=double");

enum { B = 2, T = 5, V = 11, L = 4, NH = 4, C = 16, DIRECTIONS = 3 };
static const double step = 1e-5, tolerance = 1e-6, weight = 0.7; // of the distance to a teacher
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

// Mean squared difference of the streams of m's last forward pass to the teacher's, at all places
// where both have one that all ranks share.
static double distance(const GPT2 *m, const GPT2 *teacher) {
    double sum = 0;
    int segments = 0;
    for (int k = 1; k <= 2 * L; k++) {
        int mine = m->plan.boundary[k], other = teacher->plan.boundary[k];
        if (mine < 0 || other < 0) continue;
        const real *x = m->values[V_STREAM + mine].at, *y = teacher->values[V_STREAM + other].at;
        for (int i = 0; i < B * T * C; i++) sum += (x[i] - y[i]) * (x[i] - y[i]);
        segments++;
    }
    return sum / (B * T * C) / segments;
}

static double loss_at(GPT2 *m, real *w, const real *origin, const real *v, size_t n, double h) {
    for (size_t i = 0; i < n; i++) w[i] = origin[i] + (real)h * v[i];
    double loss = gpt2_forward(m, tokens, targets, B, T);
    return m->teacher ? loss + weight * distance(m, m->teacher) : loss;
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

static void model_make(GPT2 *m, const char *pattern, int rule, int R, int purpose, uint64_t seed) {
    GPT2Config config = {.maxT = T, .V = V, .L = L, .NH = NH, .C = C, .Vp = vocabulary_pad(V),
                         .R = R, .rule = rule};
    if (snprintf(config.pattern, sizeof config.pattern, "%s", pattern) > PATTERN_MAX) {
        fail("pattern too long");
    }
    gpt2_create(m, &config, mesh_make(1, 0, R, R), B, T, purpose);
    gpt2_init_weights(m, WEIGHTS_LINEAR, 3);
    // Biases and gains away from 0 and 1, weights large enough to matter.
    for (size_t i = 0; i < param_count(m->local); i++) {
        m->params.block[i] += (real)(0.2 * random_normal(random_bits(seed, 0, 0, i)));
    }
}

// Checks one (pattern, rule, R), with a teacher of this pattern unless that is ""; returns the
// number of tensors that fail.
static int check_gradients(const char *pattern, int rule, int R, const char *taught, int verbose) {
    GPT2 m, teacher = {0};
    int bad = 0, checks = 0;
    double worst = 0;
    model_make(&m, pattern, rule, R, FOR_TRAINING, 19);
    if (taught[0]) {
        model_make(&teacher, taught, RULE_SUM, R, FOR_TEACHING, 23);
        gpt2_teach(&m, &teacher, weight);
    }
    gpt2_micro_step(&m, tokens, targets, B, T, 0, 1);
    gradients_reduce(&m);
    if (taught[0]) {
        double expected = distance(&m, &teacher), found = m.distance_sum;
        int good = fabs(found - expected) <= 1e-12 * expected && m.plan.matches > 0;
        if (!good) printf("FAILED %s teacher %s R %d: distance %.15g, expected %.15g\n", pattern,
                          taught, R, found, expected);
        checks++, bad += !good;
    }
    for (int p = 0; p < P_COUNT; p++) {
        double error = tensor_error(&m, p);
        checks++;
        if (verbose || !(error <= tolerance)) {
            printf("%s %s rule %s R %d%s%s, d%s: error %.1e, tolerance %.0e\n",
                   error <= tolerance ? "ok    " : "FAILED", pattern, rules[rule], R,
                   taught[0] ? " teacher " : "", taught, m.local[p].name, error, tolerance);
        }
        bad += !(error <= tolerance);
        worst = error > worst || error != error ? error : worst;
    }
    if (!bad && !verbose) {
        printf("ok     %s rule %s R %d%s%s: %d tensors, largest error %.1e, tolerance %.0e\n",
               pattern, rules[rule], R, taught[0] ? " teacher " : "", taught, P_COUNT, worst,
               tolerance);
    }
    passed += checks - bad, failed += bad;
    gpt2_free(&m);
    gpt2_free(&teacher);
    return bad;
}

int main(int argc, char **argv) {
    static const char *const patterns[] = {"t", "s", "p", "sppp", "pp."};
    static const int sizes[] = {1, 2, 4};
    for (int i = 0; i < B * T; i++) {
        tokens[i] = (int32_t)random_below(random_bits(5, 0, 0, (uint64_t)i), V);
        targets[i] = (int32_t)random_below(random_bits(5, 0, 1, (uint64_t)i), V);
    }
    if (argc == 4 || argc == 5) {
        int rule = word_find(RULE_NAMES, argv[2]);
        if (rule < 0) fail("'%s' is not a merge rule; expected one of: %s", argv[2], RULE_NAMES);
        int R = (int)strtol(argv[3], NULL, 10);
        return check_gradients(argv[1], rule, R, argc == 5 ? argv[4] : "", 1) > 0;
    }
    if (argc != 1) fail("expected no arguments, or PATTERN RULE R [TEACHER]");
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
        for (int rule = RULE_SUM; rule <= RULE_STREAMS; rule++) {
            for (int r = 0; r < 3; r++) check_gradients(patterns[i], rule, sizes[r], "", 0);
        }
    }
    static const char *const hidden[] = {"l", "sl", "ls", "tl", "lt", "lp", "lltp", "pl",
                                         "d", "ddtp", "pd", "sldd"};
    for (size_t i = 0; i < sizeof hidden / sizeof *hidden; i++) {
        for (int r = 0; r < 3; r++) check_gradients(hidden[i], (int)i % 3, sizes[r], "", 0);
    }
    static const struct { const char *student, *teacher; int rule; } distilled[] = {
        {"t", "t", RULE_SUM}, {"s", "t", RULE_SUM}, {"p", "t", RULE_SUM}, {"spps", "t", RULE_MEAN},
        {"pp.", "t", RULE_STREAMS}, {"l", "t", RULE_SUM}, {"d", "t", RULE_SUM},
        {"ddlp", "t", RULE_SUM}, {"slpp", "t", RULE_STREAMS}, {"t", "p", RULE_SUM},
        {"tsld", "spps", RULE_SUM}, {"ppsl", "dltp", RULE_MEAN}};
    for (size_t i = 0; i < sizeof distilled / sizeof *distilled; i++) {
        const char *student = distilled[i].student, *teacher = distilled[i].teacher;
        for (int r = 0; r < 3; r++) {
            check_gradients(student, distilled[i].rule, sizes[r], teacher, 0);
        }
    }
    printf("gradcheck: %d passed, %d failed, 0 skipped\n", passed, failed);
    return failed > 0;
}
