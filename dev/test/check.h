// What the tests of both trainers share: counting and comparing, and the fixtures. C and
// C++; included after the trainer.
#ifndef CHECK_H
#define CHECK_H

static int passed, failed, skipped;
// A planted fault is in: failures are what is wanted, and are counted here instead.
static int expect_failure;

static void check(int good, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void check(int good, const char *format, ...) {
    va_list arguments;
    if (expect_failure) {
        expect_failure += !good;
        return;
    }
    printf("%s ", good ? "ok    " : "FAILED");
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    printf("\n");
    fflush(stdout);
    good ? passed++ : failed++;
}

static void check_error(const char *where, const char *what, double error, double tolerance) {
    // NaN fails.
    check(error <= tolerance, "%s %s: error %.2e, tolerance %.0e", where, what, error, tolerance);
}

static void skip(const char *what, const char *why) {
    printf("skip   %s: %s\n", what, why);
    skipped++;
}

// The larger of two errors, where NaN is the largest.
static double worse(double a, double b) { return a != a || b != b ? NAN : a > b ? a : b; }

#ifdef __cplusplus
// What test_gpt2cu.cu compares: everything is widened on its way from the GPU.
typedef float Checked;
#else
typedef real Checked;
#endif

// |x - y| / |y| in the Euclidean norm; the largest difference if y is zero
static double relative_error(const Checked *x, const float *y, size_t n) {
    double difference = 0, norm = 0, largest = 0;
    for (size_t i = 0; i < n; i++) {
        double d = (double)x[i] - (double)y[i];
        difference += d * d;
        norm += (double)y[i] * (double)y[i];
        largest = worse(largest, fabs(d));
    }
    return norm > 0 ? sqrt(difference / norm) : largest;
}

// ----------------------------------------------------------------------------
// fixtures: an independent float64 program's numbers for a tiny model, in the folder $FIXTURES

typedef struct {
    int B, T;
    int32_t *x, *y;               // (B,T)
    float *logits, loss, *grads;  // (B,T,V); all tensors in the order of the model file
} DebugState;

// What a trainer's test brings: a model of this shape, all R ranks folded, room for
// (2,16); and its comparison of loss, logits and gradients, which returns how many
// forward and backward passes it made.
static void fixture_create(GPT2 *m, const GPT2Config *config);
static int fixture_compare(GPT2 *m, const DebugState *d, const char *where);

static const char *fixtures_folder(void) { // NULL: there is none
    const char *folder = getenv("FIXTURES");
    return folder && folder[0] ? folder : NULL;
}

static void debug_state_read(DebugState *d, const char *path, const GPT2Config *c,
                             size_t parameters) {
    File file;
    int32_t header[HEADER_INTS];
    file_open(&file, path, "a debug state");
    header_read(&file, header, 20240327, 2, 2, "a debug state");
    d->B = header[2], d->T = header[3];
    size_t BT = (size_t)d->B * (size_t)d->T, logits = BT * (size_t)c->V;
    if (file.size != HEADER_BYTES + 4 * (2 * BT + logits + 1 + parameters))
        fail("%s: %zu bytes", path, file.size);
    d->x = ALLOC(int32_t, BT, "test"), d->y = ALLOC(int32_t, BT, "test");
    d->logits = ALLOC(float, logits, "test"), d->grads = ALLOC(float, parameters, "test");
    file_read(&file, d->x, BT * 4), file_read(&file, d->y, BT * 4);
    file_read(&file, d->logits, logits * 4), file_read(&file, &d->loss, 4);
    file_read(&file, d->grads, parameters * 4);
    file_close(&file);
}

// Ten updates: learning rate 1e-3, decay 0.1, clipped to 1. `line` holds ten
// losses and ten gradient norms.
static void fixture_train(GPT2 *m, const Tokens *text, const char *line, const char *where,
                          double tolerance_loss, double tolerance_norm) {
    enum { B = 2, T = 16 };
    double worst_loss = 0, worst_norm = 0, expected[20];
    int32_t tokens[B * T], targets[B * T];
    char *end = (char *)line;
    for (int i = 0; i < 20; i++) expected[i] = strtod(end, &end);
    for (int s = 0; s < 10; s++) {
        tokens_copy(text, (size_t)(s * B * T), B * T, tokens);
        tokens_copy(text, (size_t)(s * B * T) + 1, B * T, targets);
        gpt2_micro_step(m, tokens, targets, B, T, 0, 1);
        UpdateSums sums = gpt2_gradients(m);
        AdamW h = {};
        h.rate = 1e-3, h.beta1 = 0.9, h.beta2 = 0.95, h.eps = 1e-8, h.decay = 0.1;
        h.grad_scale = sums.norm > 1 ? 1 / sums.norm : 1;
        gpt2_update(m, h, s + 1);
        worst_loss = worse(worst_loss, fabs(sums.loss - expected[s]));
        worst_norm = worse(worst_norm, fabs(sums.norm / expected[10 + s] - 1));
    }
    check_error(where, "losses of ten updates", worst_loss, tolerance_loss);
    check_error(where, "gradient norms of ten updates, relative", worst_norm, tolerance_norm);
}

// One line of train.tsv: pattern, R, rule, merges per forward pass, and what fixture_train reads.
static void fixture_test(const char *folder, const Tokens *text, char *line, double tolerance_loss,
                         double tolerance_norm) {
    char path[PATH_MAX], name[512], *field[5] = {line};
    for (int i = 1; i < 5; i++) field[i] = strchr(field[i - 1], '\t'), *field[i]++ = 0;
    GPT2 m;
    DebugState d;
    File file;
    GPT2Config config;
    snprintf(path, sizeof path, "%s/tiny.bin", folder);
    model_open(&file, path, &config);
    file_close(&file);
    config.R = (int)strtol(field[1], NULL, 10);
    config.rule = word_find(RULE_NAMES, field[2]);
    if (snprintf(config.pattern, sizeof config.pattern, "%s", field[0]) > PATTERN_MAX)
        fail("%s: pattern too long", field[0]);
    fixture_create(&m, &config);
    gpt2_load(&m, path);
    int length = snprintf(name, sizeof name, "fixture %s R %d %s", config.pattern, config.R,
                          field[2]);
    if (length >= (int)sizeof name) fail("%s: too long", field[2]);
    check(m.plan.merges == (int)strtol(field[3], NULL, 10),
          "%s: %d merges per forward pass, expected %s", name, m.plan.merges, field[3]);
    for (char *c = field[0]; *c; c++) *c = *c == '.' ? '+' : *c; // as in the names of the files
    length = snprintf(path, sizeof path, "%s/debug_%s_tp%d_%s.bin", folder, field[0], config.R,
                      field[2]);
    if (length >= (int)sizeof path) fail("%s: too long", folder);
    debug_state_read(&d, path, &config, param_count(m.whole));
    int expected = fixture_compare(&m, &d, name) * m.plan.merges;
    long long merges = (long long)(m.traffic[TRAFFIC_FORWARD].count +
                                   m.traffic[TRAFFIC_BACKWARD].count);
    if (config.R > 1)
        check(merges == expected, "%s: %lld all-reduces executed, expected %d", name, merges,
              expected);
    fixture_train(&m, text, field[4], name, tolerance_loss, tolerance_norm);
    free(d.x), free(d.y), free(d.logits), free(d.grads);
    gpt2_free(&m);
}

static void test_fixtures(double tolerance_loss, double tolerance_norm) {
    enum { TRIPLES = 13 }; // of pattern, R and rule
    const char *folder = fixtures_folder();
    char path[PATH_MAX], line[4096];
    int rows = 0;
    Tokens text;
    if (!folder) {
        skip("fixtures",
             "set FIXTURES to the folder that holds tiny.bin and the debug_*.bin files");
        return;
    }
    snprintf(path, sizeof path, "%s/tiny_tokens.bin", folder);
    tokens_open(&text, path);
    snprintf(path, sizeof path, "%s/train.tsv", folder);
    FILE *table = fopen(path, "r");
    if (!table) fail("%s: %s", path, strerror(errno));
    while (fgets(line, sizeof line, table)) {
        if (line[0] == '#') continue;
        fixture_test(folder, &text, line, tolerance_loss, tolerance_norm);
        rows++;
    }
    check(rows == TRIPLES, "%s: %d rows, expected %d", path, rows, TRIPLES);
    fclose(table);
    tokens_close(&text);
}

#endif
