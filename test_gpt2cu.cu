/*
Tests of the CUDA trainer. Includes train_gpt2.cu and compares what it computes with the CPU trainer
(dev/test/oracle.c, linked in), and each kernel with plain loops in double.

  make test_gpt2cu && ./test_gpt2cu            on a GPU, in bf16; test_gpt2cu_fp32: in fp32
  make test_gpt2cu_emu && ./test_gpt2cu_emu    on a CPU, by the stand-in in dev/emu; also
                                               test_gpt2cu_emu_fp32
  FIXTURES=folder ./test_gpt2cu                also against losses, logits and gradients of an
                                               independent float64 program

Each check prints its error beside its tolerance. The last line is "test_gpt2cu: N passed, N failed,
N skipped"; the exit status is 1 if anything failed.

Built with -DPLANTED_FAULTS it is another program, dev/test/faults_gpt2cu or faults_gpt2cu_emu.
Mistakes are planted in a copy of the trainer, one at a time (see dev/test/faults), and the suite
has to see each:

  output bias added by every rank        losses and gradients of R 2 against the CPU trainer
  no barrier before a tile of attention  attention against plain loops, under several orders of
                                         threads (a race: on a GPU it need not show, and then this
                                         is skipped, not failed)
  a wrong register of mma.sync           attention against plain loops (bf16 only: fp32 has no such
                                         instruction)
  a query that sees the key after it     attention against plain loops, and losses against the CPU
                                         trainer
  gradients of the pattern before        patterns in turn against models made for each
  an all-reduce told bytes               needs real ranks: dev/test/cuda.sh, two processes against
                                         one
*/
#ifndef NO_MAIN
#define NO_MAIN
#endif
#ifdef PLANTED_FAULTS
#include "dev/test/train_gpt2_faulty.cu"
#else
#include "train_gpt2.cu"
#endif
#include "dev/test/check.h"
#include "dev/test/oracle.h"
#include <vector>

// ----------------------------------------------------------------------------
// counting and comparing

#ifdef PRECISION_FP32
static constexpr double TOLERANCE_LOSS = 1e-5, TOLERANCE_GRADIENT = 1e-4, TOLERANCE_LOGITS = 1e-4;
static constexpr double TOLERANCE_TRAINING = 1e-4; // losses of ten updates
static constexpr double TOLERANCE_KERNEL = 2e-5;   // see element_error
static constexpr double TOLERANCE_ATTENTION = 2e-5;
#else
static constexpr double TOLERANCE_LOSS = 1e-2, TOLERANCE_GRADIENT = 3e-2, TOLERANCE_LOGITS = 3e-2;
static constexpr double TOLERANCE_TRAINING = 2e-2;
static constexpr double TOLERANCE_KERNEL = 4e-3;   // one rounding to bf16 is 2^-9
// P, dS and the out that delta is made of are rounded too.
static constexpr double TOLERANCE_ATTENTION = 3e-2;
#endif
#ifdef CUDA_EMULATED
static constexpr int emulated = 1;
#else
static constexpr int emulated = 0;
static void emu_seed(uint64_t) {}
#endif

#ifdef EMU_ASAN
// Slow: some combinations of what is also tested by itself are left out.
static constexpr int sanitized = 1;
#else
static constexpr int sanitized = 0;
#endif

// The largest difference of an element, relative to that element and the root mean square of all.
// NaN where NaN is not expected.
static double element_error(const std::vector<float> &x, const std::vector<double> &y) {
    double squares = 0, error = 0;
    if (x.size() != y.size()) return NAN;
    for (double v : y) squares += v * v;
    double typical = sqrt(squares / (double)y.size());
    for (size_t i = 0; i < y.size(); i++) {
        double d = fabs((double)x[i] - y[i]);
        error = worse(error, d == 0 ? 0 : d / (fabs(y[i]) + typical));
    }
    return error;
}

// ----------------------------------------------------------------------------
// device memory, reached by copies alone

// n elements on the GPU, at first NaN, with a margin after them that nobody may write to.
template <typename T> struct Device {
    T *at;
    size_t n;
    static constexpr size_t MARGIN = 64;
    explicit Device(size_t count) : at(NULL), n(count) {
        CUDA_CHECK(cudaMalloc((void **)&at, (n + MARGIN) * sizeof(T)));
        poison();
    }
    explicit Device(const std::vector<float> &values) : Device(values.size()) { put(values); }
    Device(const Device &) = delete;
    Device &operator=(const Device &) = delete;
    ~Device() { cudaFree(at); }
    void poison() {
        CUDA_CHECK(cudaMemset(at, 0xFF, (n + MARGIN) * sizeof(T)));
        CUDA_CHECK(cudaDeviceSynchronize());
    }
    void put(const std::vector<float> &values) {
        std::vector<T> host(n);
        for (size_t i = 0; i < n; i++) host[i] = (T)values[i];
        CUDA_CHECK(cudaMemcpy(at, host.data(), n * sizeof(T), cudaMemcpyHostToDevice));
        CUDA_CHECK(cudaDeviceSynchronize());
    }
    std::vector<float> get() const {
        std::vector<T> host(n + MARGIN);
        std::vector<float> out(n);
        CUDA_CHECK(cudaDeviceSynchronize());
        CUDA_CHECK(cudaMemcpy(host.data(), at, (n + MARGIN) * sizeof(T), cudaMemcpyDeviceToHost));
        for (size_t i = 0; i < n; i++) out[i] = (float)host[i];
        const unsigned char *margin = (const unsigned char *)(host.data() + n);
        for (size_t i = 0; i < MARGIN * sizeof(T); i++) {
            if (margin[i] != 0xFF) {
                check(0, "something wrote past the end of %zu elements", n);
                break;
            }
        }
        return out;
    }
    std::vector<unsigned char> bytes() const {
        std::vector<unsigned char> host(n * sizeof(T));
        CUDA_CHECK(cudaDeviceSynchronize());
        CUDA_CHECK(cudaMemcpy(host.data(), at, host.size(), cudaMemcpyDeviceToHost));
        return host;
    }
};

// Normal numbers that the real type holds exactly, different at every call.
static uint64_t draws;
static std::vector<float> random_values(size_t n, double scale = 1) {
    std::vector<float> out(n);
    draws++;
    for (size_t i = 0; i < n; i++) {
        out[i] = (float)(real)(float)(scale * random_normal(random_bits(11, 1, draws, i)));
    }
    return out;
}
static int random_in(int low, int high) {
    return low + (int)random_below(random_bits(11, 2, ++draws, 0), (uint64_t)(high - low + 1));
}

// Random tokens and targets, the same at every call.
static void random_batch(int32_t *tokens, int32_t *targets, int n, int V) {
    for (int i = 0; i < n; i++) {
        tokens[i] = (int32_t)random_below(random_bits(1, 2, 3, (uint64_t)i), (uint64_t)V);
        targets[i] = (int32_t)random_below(random_bits(1, 2, 4, (uint64_t)i), (uint64_t)V);
    }
}

// ----------------------------------------------------------------------------
// a model on the GPU beside the same model of the CPU trainer

struct Case {
    const char *pattern = "t";
    int R = 2, rule = RULE_SUM;
    int L = 4, NH = 4, C = 64, V = 65, B = 2, T = 20;
    int vocab_parallel = 0, recompute = 0, fuses_gelu = 0, micro_steps = 1;
    int purpose = FOR_TRAINING;
};

struct Pair {
    Case c;
    GPT2 m;
    Oracle *oracle;
    std::vector<int32_t> tokens, targets; // (micro_steps,B,T)
    char name[160];
};

// Larger than GPT-2's initial weights, and nothing at 0 or 1, so that no gradient is rounding alone
// and a gain or a bias that is left out shows.
static float weight_of(const ParamSpec *spec, int p, const GPT2Config *c, uint64_t i) {
    double drawn = param_init(spec, p, WEIGHTS_LINEAR, c, 1, i);
    double n = random_normal(random_bits(5, 5, (uint64_t)p, i));
    if (p == P_wte && i >= (uint64_t)c->V * (uint64_t)c->C) return 0; // rows of the padding
    if (p == P_wte || p == P_wpe) return (float)(0.1 * n);
    if (spec->init == INIT_ONE) return (float)(1 + 0.2 * n);
    return (float)(spec->cols == 1 ? drawn + 0.1 * n : drawn);
}

static GPT2Config config_of(const Case &c) {
    GPT2Config config = {};
    config.maxT = c.T;
    config.V = c.V;
    config.L = c.L;
    config.NH = c.NH;
    config.C = c.C;
    config.Vp = vocabulary_pad(c.V);
    config.R = c.R;
    config.rule = c.rule;
    snprintf(config.pattern, sizeof config.pattern, "%s", c.pattern);
    return config;
}

static void model_open_for(GPT2 *m, const Case &c) {
    GPT2Config config = config_of(c);
    ModelOptions options = {};
    Mesh mesh = mesh_make(1, 0, c.R, c.R);
    mesh.vocab_parallel = c.vocab_parallel;
    options.recompute = c.recompute;
    gpu.fuses_gelu = c.fuses_gelu;
    gpt2_create(m, &config, mesh, c.B, c.T, options, c.purpose);
}

static Oracle *oracle_for(const Case &c) {
    OracleShape s = {};
    s.maxT = c.T;
    s.V = c.V;
    s.L = c.L;
    s.NH = c.NH;
    s.C = c.C;
    s.R = c.R;
    s.rule = c.rule;
    s.pattern = c.pattern;
    s.vocab_parallel = c.vocab_parallel;
    s.B = c.B;
    s.T = c.T;
    return oracle_create(&s);
}

// Whole tensors to the GPU, as a file would bring them.
static void tensor_put(GPT2 *m, const ParamSpec *spec, int p, const float *values) {
    for (int layer = 0; layer < spec->layers; layer++) {
        model_rows_put(m, SET_PARAMS, p, layer, 0, spec->rows,
                       values + layer * spec_layer_size(spec));
    }
}

static void pair_open(Pair *pair, const Case &c) {
    GPT2Config config = config_of(c);
    ParamSpec specs[P_COUNT];
    param_specs(specs, &config);
    pair->c = c;
    model_open_for(&pair->m, c);
    pair->oracle = oracle_for(c);
    snapshot_make(&pair->m);
    for (int p = 0; p < P_COUNT; p++) {
        std::vector<float> w(spec_size(&specs[p]));
        for (size_t i = 0; i < w.size(); i++) w[i] = weight_of(&specs[p], p, &config, i);
        oracle_put(pair->oracle, ORACLE_PARAMS, p, w.data());
        tensor_put(&pair->m, &specs[p], p, w.data());
    }
    snapshot_put(&pair->m, SET_PARAMS);
    snapshot_drop(&pair->m);
    pair->tokens.resize((size_t)c.micro_steps * c.B * c.T);
    pair->targets.resize(pair->tokens.size());
    random_batch(pair->tokens.data(), pair->targets.data(), (int)pair->tokens.size(), c.V);
    static const char *const rules[] = {"sum", "mean", "streams"};
    static const char *const recomputes[] = {"", " -r 1", " -r 2"};
    snprintf(pair->name, sizeof pair->name, "%s %s R %d: %dx%dx%d V %d b %d t %d%s%s%s%s",
             c.pattern, rules[c.rule], c.R, c.L, c.NH, c.C, c.V, c.B, c.T,
             c.vocab_parallel ? " -vp 1" : "", recomputes[c.recompute],
             c.fuses_gelu ? " fused GELU" : "", c.micro_steps > 1 ? " micro-batches" : "");
}

static void pair_close(Pair *pair) {
    gpt2_free(&pair->m);
    oracle_free(pair->oracle);
}

// Tensor p, whole and in the order of files, from a flat block on the GPU: parameters' masters,
// moments or gradients.
static std::vector<float> tensor_get(const GPT2 *m, const float *block, int p) {
    const ParamSpec *whole = &m->whole[p];
    std::vector<float> flat(m->flat.size[p]), out(spec_size(whole));
    CUDA_CHECK(cudaDeviceSynchronize());
    CUDA_CHECK(cudaMemcpy(flat.data(), block + m->flat.begin[p], flat.size() * sizeof(float),
                          cudaMemcpyDeviceToHost));
    const float *next = flat.data();
    for (int layer = 0; layer < whole->layers; layer++) {
        for (int f = 0; f < parts_of(m, p); f++) {
            Shard part = shard_of(whole, m->rank0 + f, m->config.R);
            for (int r = 0; r < part.rows; r++, next += part.cols) {
                memcpy(&out[layer * spec_layer_size(whole) + shard_row(&part, r)], next,
                       part.cols * sizeof(float));
            }
        }
    }
    return out;
}

static std::vector<float> oracle_tensor_of(const Pair *pair, int set, int p) {
    std::vector<float> out(oracle_size(pair->oracle, p));
    oracle_get(pair->oracle, set, p, out.data());
    return out;
}

// Every gradient tensor against the CPU trainer's: one line that names the worst, or one for each
// that is too far off.
static void compare_gradients(const Pair *pair) {
    double worst = -1;
    const char *worst_name = "";
    for (int p = 0; p < P_COUNT; p++) {
        std::vector<float> found = tensor_get(&pair->m, pair->m.grads, p),
                           expected = oracle_tensor_of(pair, ORACLE_GRADIENT, p);
        double error = relative_error(found.data(), expected.data(), expected.size());
        if (!(error <= TOLERANCE_GRADIENT)) {
            check(0, "%s d%s: error %.2e, tolerance %.0e", pair->name, pair->m.whole[p].name, error,
                  TOLERANCE_GRADIENT);
        }
        if (error > worst || error != error) {
            worst = error;
            worst_name = pair->m.whole[p].name;
        }
    }
    check(worst <= TOLERANCE_GRADIENT, "%s all %d gradients, worst d%s: error %.2e, tolerance %.0e",
          pair->name, P_COUNT, worst_name, worst, TOLERANCE_GRADIENT);
}

static void compare_logits(Pair *pair) {
    int V = pair->c.V, rows = pair->c.B * pair->c.T;
    double worst = 0;
    std::vector<float> found(V), expected(V);
    for (int row = 0; row < rows; row++) {
        logits_collect(&pair->m, row, found.data());
        oracle_logits(pair->oracle, row, expected.data());
        double error = 0;
        if (sizeof(real) < sizeof(float)) {
            error = relative_error(found.data(), expected.data(), (size_t)V);
        } else {
            for (int v = 0; v < V; v++) {
                error = worse(error, fabs((double)found[v] - (double)expected[v]));
            }
        }
        worst = worse(worst, error);
    }
    check_error(pair->name, "logits", worst, TOLERANCE_LOGITS);
}

// One update's forward and backward passes. Every second micro-batch is a sequence shorter, when
// there are two.
static void compare_pass(Pair *pair) {
    const Case &c = pair->c;
    for (int i = 0; i < c.micro_steps; i++) {
        const int32_t *x = pair->tokens.data() + (size_t)i * c.B * c.T;
        const int32_t *y = pair->targets.data() + (size_t)i * c.B * c.T;
        int B = i % 2 && c.B > 1 ? c.B - 1 : c.B;
        gpt2_micro_step(&pair->m, x, y, B, c.T, i, c.micro_steps);
        oracle_micro_step(pair->oracle, x, y, B, c.T, i, c.micro_steps);
    }
}

// Losses, logits, every gradient, the norm and what was communicated, of one case.
static void compare(const Case &c) {
    Pair pair;
    long long counts[3];
    pair_open(&pair, c);
    const int32_t *x = pair.tokens.data(), *y = pair.targets.data();
    double loss = gpt2_forward(&pair.m, x, y, c.B, c.T);
    double expected = oracle_forward(pair.oracle, x, y, c.B, c.T);
    check_error(pair.name, "loss", fabs(loss - expected), TOLERANCE_LOSS);
    compare_logits(&pair);
    compare_pass(&pair);
    UpdateSums sums = gpt2_gradients(&pair.m);
    OracleSums wanted = oracle_gradients(pair.oracle);
    check_error(pair.name, "loss of a step", fabs(sums.loss - wanted.loss), TOLERANCE_LOSS);
    check_error(pair.name, "gradient norm, relative", fabs(sums.norm / wanted.norm - 1),
                TOLERANCE_GRADIENT);
    compare_gradients(&pair);
    oracle_traffic(pair.oracle, counts);
    const Traffic *t = pair.m.traffic;
    long long merges = (long long)(t[TRAFFIC_FORWARD].count + t[TRAFFIC_BACKWARD].count);
    check(merges == counts[0] && t[TRAFFIC_GRADIENTS].count == counts[1],
          "%s %lld all-reduces, expected %lld; %lld of partial gradients, expected %lld",
          pair.name, merges, counts[0], (long long)t[TRAFFIC_GRADIENTS].count, counts[1]);
    pair_close(&pair);
}

// ----------------------------------------------------------------------------
// against the CPU trainer: broken by a gradient that misses a path, a rank, a micro-batch, or reads
// another rank's part

static void test_patterns(void) {
    static const char *const patterns[] = {"t", "s", "p", "ts", "sppp", "spps", "pp.", "psss"};
    int turn = 0;
    for (const char *pattern : patterns) {
        int has_p = strchr(pattern, 'p') != NULL;
        for (int rule = RULE_SUM; rule <= (has_p ? RULE_STREAMS : RULE_SUM); rule++, turn++) {
            if (sanitized && has_p && turn % 3) continue;
            compare(Case{.pattern = pattern, .R = 2, .rule = rule, .C = 32, .T = 17,
                         .fuses_gelu = turn % 2});
        }
    }
}

// Ladder, delayed, and runs of p under every rule: broken by a stream read one merge too early or
// too late.
static void test_variants(void) {
    compare(Case{.pattern = "l", .R = 2, .C = 32, .T = 17});
    compare(Case{.pattern = "l", .R = 1, .L = 2, .C = 32, .T = 16, .fuses_gelu = 1});
    compare(Case{.pattern = "sl", .R = 4, .C = 32, .T = 16, .recompute = 2, .micro_steps = 2});
    compare(Case{.pattern = "llpt", .R = 2, .rule = RULE_MEAN, .C = 32, .T = 16});
    compare(Case{.pattern = "d", .R = 2, .C = 32, .T = 17, .fuses_gelu = 1});
    compare(Case{.pattern = "sdl", .R = 4, .L = 6, .C = 32, .T = 16, .recompute = 2,
                 .micro_steps = 2});
    for (int rule = RULE_SUM; rule <= RULE_STREAMS; rule++) {
        compare(Case{.pattern = "sppp", .R = 4, .rule = rule, .C = 32, .T = 16});
        compare(Case{.pattern = "spp.p", .R = 2, .rule = rule, .C = 32, .T = 16, .fuses_gelu = 1});
    }
    compare(Case{.pattern = "p", .R = 2, .rule = RULE_MEAN, .C = 32, .T = 16, .vocab_parallel = 1,
                 .recompute = 2, .micro_steps = 2});
}

// Where something else than the pattern is at stake.
static void test_shapes(void) {
    // Six blocks.
    compare(Case{.pattern = "tss", .R = 2, .L = 6, .C = 32, .T = 9});
    // One rank.
    compare(Case{.pattern = "t", .R = 1, .C = 64, .T = 33});
    // Heads of 24; B T odd.
    compare(Case{.pattern = "t", .R = 4, .C = 96, .B = 3, .T = 21, .fuses_gelu = 1});
    // More than one tile of queries.
    compare(Case{.pattern = "sppp", .R = 4, .C = 32, .B = 1, .T = 70});
    compare(Case{.pattern = "p", .R = 4, .rule = RULE_MEAN, .C = 64, .T = 16, .fuses_gelu = 1});
    compare(Case{.pattern = "pp.", .R = 4, .rule = RULE_STREAMS, .C = 32, .T = 16});
    // R 1: any pattern is plain GPT-2.
    compare(Case{.pattern = "s", .R = 1, .rule = RULE_MEAN, .C = 32, .T = 16});
    // Heads of 64.
    compare(Case{.pattern = "s", .R = 2, .L = 1, .NH = 2, .C = 128, .T = 19});
    // Heads of 128.
    compare(Case{.pattern = "p", .R = 2, .L = 2, .NH = 2, .C = 256, .B = 1, .T = 18,
                 .fuses_gelu = 1});
    // Heads of 40.
    compare(Case{.pattern = "sp", .R = 2, .L = 2, .NH = 2, .C = 80, .T = 13});
    compare(Case{.pattern = "t", .R = 2, .L = 1, .NH = 2, .C = 16, .V = 50257, .B = 1, .T = 7});
    compare(Case{.pattern = "p", .R = 2, .L = 1, .NH = 2, .C = 16, .V = 50257, .B = 1, .T = 6,
                 .vocab_parallel = 1});
    for (int R = 2; R <= 4; R += 2) { // V 65 over 4 ranks: the last has no token at all
        compare(Case{.pattern = "t", .R = R, .L = 2, .C = 32, .T = 15, .vocab_parallel = 1});
        compare(Case{.pattern = "spp.p", .R = R, .rule = RULE_MEAN, .C = 32, .T = 16,
                     .vocab_parallel = 1, .fuses_gelu = 1});
    }
    compare(Case{.pattern = "sppp", .R = 2, .C = 32, .T = 16, .micro_steps = 2});
    compare(Case{.pattern = "sppp", .R = 2, .rule = RULE_MEAN, .C = 32, .T = 16, .fuses_gelu = 1,
                 .micro_steps = 3});
    compare(Case{.pattern = "p", .R = 2, .rule = RULE_STREAMS, .L = 2, .C = 32, .B = 3, .T = 9,
                 .micro_steps = 2});
    compare(Case{.pattern = "t", .R = 2, .L = 2, .C = 32, .T = 16, .vocab_parallel = 1,
                 .recompute = 2, .micro_steps = 2});
}

// Everything of a flat block, as bytes of floats.
static std::vector<float> block_get(const float *block, size_t n) {
    std::vector<float> out(n);
    CUDA_CHECK(cudaDeviceSynchronize());
    CUDA_CHECK(cudaMemcpy(out.data(), block, n * sizeof(float), cudaMemcpyDeviceToHost));
    return out;
}

static int same_bits(const std::vector<float> &a, const std::vector<float> &b) {
    return a.size() == b.size() && !memcmp(a.data(), b.data(), a.size() * sizeof(float));
}

// What is computed again in the backward pass is what the forward pass had: the same bits, where
// the same kernel made it.
static void test_recompute(void) {
    static const char *const patterns[] = {"t", "sppp"};
    for (int i = 0; i < 4; i++) {
        std::vector<float> grads[3];
        for (int recompute = 0; recompute < 3; recompute++) {
            Case c = {.pattern = patterns[i % 2], .rule = RULE_MEAN, .C = 32, .T = 16,
                      .recompute = recompute, .fuses_gelu = i / 2};
            Pair pair;
            pair_open(&pair, c);
            gpt2_micro_step(&pair.m, pair.tokens.data(), pair.targets.data(), c.B, c.T, 0, 1);
            oracle_micro_step(pair.oracle, pair.tokens.data(), pair.targets.data(), c.B, c.T, 0, 1);
            gpt2_gradients(&pair.m);
            oracle_gradients(pair.oracle);
            grads[recompute] = block_get(pair.m.grads, pair.m.flat_size);
            if (recompute) compare_gradients(&pair);
            pair_close(&pair);
        }
        check(same_bits(grads[1], grads[2]),
              "%s%s: LayerNorm recomputed gives the same gradients, bit for bit", patterns[i % 2],
              i / 2 ? ", fused GELU" : "");
        if (i / 2) continue; // cuBLASLt's GELU is not ours
        check(same_bits(grads[0], grads[1]),
              "%s: GELU recomputed gives the same gradients, bit for bit", patterns[i % 2]);
    }
}

// An update with the gradient clipped to 1, of both. Losses before it go to found and expected.
static void pair_update(Pair *pair, int64_t N, double *found, double *expected) {
    compare_pass(pair);
    UpdateSums sums = gpt2_gradients(&pair->m);
    OracleSums wanted = oracle_gradients(pair->oracle);
    AdamW h = {};
    h.rate = 1e-3;
    h.beta1 = 0.9;
    h.beta2 = 0.95;
    h.eps = 1e-8;
    h.decay = 0.1;
    h.grad_scale = sums.norm > 1 ? 1 / sums.norm : 1;
    gpt2_update(&pair->m, h, N);
    oracle_update(pair->oracle, h.rate, h.decay, wanted.norm > 1 ? 1 / wanted.norm : 1, N);
    *found = sums.loss;
    *expected = wanted.loss;
}

// Text read in pieces, each after the keys and values of the earlier ones, is text read at once:
// broken by a position that is off by one, a stale key, or a tile of keys that ends too early. A
// GPU's products may add up one row in another order than many: in bf16 each way is as far from the
// truth as logits may be.
static void test_reading(void) {
    static const struct { const char *pattern; int R, rule, vocab_parallel, NH; } cases[] = {
        {"t", 1, RULE_SUM, 0, 4}, {"s", 2, RULE_SUM, 1, 4}, {"sppp", 2, RULE_MEAN, 0, 4},
        {"pp.", 4, RULE_STREAMS, 1, 4}, {"l", 2, RULE_SUM, 0, 2}, {"dt", 2, RULE_SUM, 0, 2}};
    enum { T = 150, V = 65 }; // more than one tile of queries and of keys
    const int sizes[] = {70, 1, 1, 3, 71, 4, 4}; // the last four again
    int32_t tokens[T], targets[T];
    for (int i = 0; i < T; i++) tokens[i] = targets[i] = (int32_t)(random_bits(7, 0, 0, i) % V);
    for (const auto &c : cases) {
        GPT2 m;
        GPT2Config config = {T, V, 4, c.NH, 32 * c.NH, vocabulary_pad(V), c.R, c.rule, ""};
        snprintf(config.pattern, sizeof config.pattern, "%s", c.pattern);
        Mesh mesh = mesh_make(1, 0, c.R, c.R);
        mesh.vocab_parallel = c.vocab_parallel;
        gpt2_create(&m, &config, mesh, 1, T, ModelOptions{}, FOR_SAMPLES);
        gpt2_init_weights(&m, WEIGHTS_LINEAR, 1);
        std::vector<float> expected(T * V), found(V);
        gpt2_forward(&m, tokens, targets, 1, T);
        for (int t = 0; t < T; t++) logits_collect(&m, t, expected.data() + t * V);
        double worst = 0;
        int past = 0, piece = 0;
        for (int n : sizes) {
            if (++piece == 7) past -= n;
            int scored = n > SCORED_MAX ? 1 : n;
            gpt2_read(&m, tokens + past, n, past, scored);
            past += n;
            for (int row = 0; row < scored; row++) {
                logits_collect(&m, row, found.data());
                const float *same = expected.data() + (past - scored + row) * V;
                worst = worse(worst, relative_error(found.data(), same, V));
            }
        }
        check(past == T, "%s: %d tokens read", c.pattern, past);
        check_error("read in pieces:", c.pattern, worst,
                    sizeof(real) == sizeof(float) ? 1e-5 : TOLERANCE_LOGITS);
        gpt2_free(&m);
    }
}

// A model that takes one pattern after another computes what a model made for each does, to the
// last bit, and keeps what it has read: broken by memory that is laid out for another plan, or
// a copy for the new plan that nothing waits for.
static void test_patterns_in_turn() {
    enum { B = 2, T = 12, V = 65 };
    int32_t tokens[B * T], targets[B * T];
    for (int i = 0; i < B * T; i++) {
        tokens[i] = (int32_t)(random_bits(8, 0, 0, i) % V);
        targets[i] = (int32_t)(random_bits(9, 0, 0, i) % V);
    }
    auto made_for = [](GPT2 *m, const char *pattern, int rows, int purpose) {
        GPT2Config config = {T, V, 4, 4, 64, vocabulary_pad(V), 2, RULE_MEAN, ""};
        snprintf(config.pattern, sizeof config.pattern, "%s", pattern);
        gpt2_create(m, &config, mesh_make(1, 0, 2, 2), rows, T, ModelOptions{}, purpose);
        gpt2_init_weights(m, WEIGHTS_LINEAR, 1);
    };
    auto squares_of = [&](GPT2 *m, double *loss) {
        gpt2_micro_step(m, tokens, targets, B, T, 0, 1);
        UpdateSums sums = gpt2_gradients(m);
        *loss = sums.loss;
        return sums.norm;
    };
    GPT2 m, one;
    made_for(&m, "p", B, FOR_TRAINING);
    for (const char *pattern : {"t", "p", "sl", "d", "pp.", "ts", "p"}) {
        double loss, expected_loss;
        made_for(&one, pattern, B, FOR_TRAINING);
        gpt2_take_pattern(&m, pattern); // last, so that nothing is waited for between this and use
        double norm = squares_of(&m, &loss), expected = squares_of(&one, &expected_loss);
        check(norm == expected && loss == expected_loss,
              "%s after other patterns: loss and norm are those of a model made for it", pattern);
        gpt2_free(&one);
    }
    gpt2_free(&m);
    std::vector<float> found(V), expected(V);
    made_for(&m, "t", 1, FOR_SAMPLES);
    made_for(&one, "t", 1, FOR_SAMPLES);
    gpt2_read(&m, tokens, 5, 0, 1);
    gpt2_take_pattern(&m, "sp");
    gpt2_read(&m, targets, 4, 5, 1);
    gpt2_take_pattern(&m, "t");
    gpt2_read(&m, tokens + 5, 4, 5, 4);
    gpt2_read(&one, tokens, 5, 0, 1);
    gpt2_read(&one, tokens + 5, 4, 5, 4);
    for (int row = 0; row < 4; row++) {
        logits_collect(&m, row, found.data());
        logits_collect(&one, row, expected.data());
        check(found == expected, "token %d, read under t after a draft under sp: the bits of t",
              5 + row);
    }
    gpt2_free(&m);
    gpt2_free(&one);
}

// A student's gradients and its distance to a teacher of another pattern: broken by a segment that
// is matched before its gradient is there, a bias that misses it, or a stream of the teacher's that
// another has taken the place of.
static void test_distillation(void) {
    static const struct { Case c; const char *teacher; } cases[] = {
        {Case{.pattern = "t", .C = 32, .T = 17}, "spps"},
        {Case{.pattern = "s", .R = 4, .C = 32, .T = 16, .recompute = 2, .micro_steps = 2}, "t"},
        {Case{.pattern = "sppp", .rule = RULE_MEAN, .C = 32, .T = 17, .vocab_parallel = 1}, "t"},
        {Case{.pattern = "dltp", .rule = RULE_STREAMS, .C = 32, .T = 16, .fuses_gelu = 1}, "t"},
        {Case{.pattern = "l", .R = 1, .C = 32, .T = 16, .micro_steps = 2}, "dlst"}};
    for (const auto &at : cases) {
        Pair pair, teacher;
        Case c = at.c;
        c.pattern = at.teacher;
        c.purpose = FOR_TEACHING;
        pair_open(&teacher, c);
        pair_open(&pair, at.c);
        gpt2_teach(&pair.m, &teacher.m, 3);
        oracle_teach(pair.oracle, teacher.oracle, 3);
        compare_pass(&pair);
        UpdateSums sums = gpt2_gradients(&pair.m);
        OracleSums wanted = oracle_gradients(pair.oracle);
        char name[200];
        snprintf(name, sizeof name, "%s, teacher %s", pair.name, at.teacher);
        check(wanted.distance > 0.01, "%s: they differ, by %.3f", name, wanted.distance);
        check_error(name, "distance, relative", fabs(sums.distance / wanted.distance - 1),
                    TOLERANCE_GRADIENT);
        check_error(name, "loss of a step", fabs(sums.loss - wanted.loss), TOLERANCE_LOSS);
        check_error(name, "gradient norm, relative", fabs(sums.norm / wanted.norm - 1),
                    TOLERANCE_GRADIENT);
        compare_gradients(&pair);
        check(teacher.m.traffic[TRAFFIC_FORWARD].count ==
                  (c.R > 1) * c.micro_steps * teacher.m.plan.merges,
              "%s: the teacher's all-reduces are its own", name);
        check(teacher.m.bytes[BLOCK_ACTIVATIONS] < pair.m.bytes[BLOCK_ACTIVATIONS],
              "%s: the teacher needs less memory", name);
        pair_close(&pair);
        pair_close(&teacher);
    }
}

// Ten AdamW updates: losses, and how far the weights have come. A key's bias has no gradient but
// rounding (all scores of a query move alike, which softmax does not see), of which AdamW makes
// steps as large as any: those of qkvb are left out.
static void test_training(void) {
    static const Case cases[] = {
        {.pattern = "t", .C = 32, .T = 16},
        {.pattern = "sppp", .C = 32, .T = 16, .fuses_gelu = 1},
        {.pattern = "p", .rule = RULE_MEAN, .L = 2, .C = 32, .T = 16, .vocab_parallel = 1,
         .micro_steps = 2},
    };
    for (const Case &c : cases) {
        Pair pair;
        double worst = 0, norm = 0, difference = 0, found = 0, expected = 0, first = 0;
        std::vector<float> before[P_COUNT];
        pair_open(&pair, c);
        for (int p = 0; p < P_COUNT; p++) before[p] = oracle_tensor_of(&pair, ORACLE_PARAMS, p);
        for (int N = 1; N <= 10; N++) {
            pair_update(&pair, N, &found, &expected);
            worst = worse(worst, fabs(found - expected));
            if (N == 1) first = found;
        }
        for (int p = 0; p < P_COUNT; p++) {
            std::vector<float> x = tensor_get(&pair.m, pair.m.master, p),
                               y = oracle_tensor_of(&pair, ORACLE_PARAMS, p);
            for (size_t i = 0; i < y.size() && p != P_qkvb; i++) {
                double step = (double)y[i] - (double)before[p][i], d = (double)x[i] - (double)y[i];
                norm += step * step;
                difference += d * d;
            }
        }
        check(found < first - 0.05, "%s: ten updates lower the loss from %.3f to %.3f", pair.name,
              first, found);
        check_error(pair.name, "losses of ten updates", worst, TOLERANCE_TRAINING);
        check_error(pair.name, "way of the weights in ten updates", sqrt(difference / norm),
                    sizeof(real) == 4 ? 1e-4 : 5e-2);
        pair_close(&pair);
    }
}

// Both trainers draw the same weights for the same seed, cut or whole.
static void test_initial_weights(void) {
    for (int i = 0; i < 4; i++) {
        Case c = {.pattern = "t", .R = i ? 2 : 1, .L = 2, .C = 32, .T = 5,
                  .vocab_parallel = i == 3};
        Pair pair;
        int same = 1;
        pair_open(&pair, c);
        gpt2_init_weights(&pair.m, i % 2, 1337);
        oracle_init_weights(pair.oracle, i % 2, 1337);
        for (int p = 0; p < P_COUNT; p++) {
            std::vector<float> x = tensor_get(&pair.m, pair.m.master, p),
                               y = oracle_tensor_of(&pair, ORACLE_PARAMS, p);
            same &= !memcmp(x.data(), y.data(), y.size() * sizeof(float));
        }
        check(same, "initial weights %s R %d%s: those of the CPU trainer, bit for bit",
              i % 2 ? "linear" : "gpt2", c.R, c.vocab_parallel ? " -vp 1" : "");
        pair_close(&pair);
    }
}

// ----------------------------------------------------------------------------
// the same bits at every run: broken by an atomic, or by a kernel that does not wait for what it
// reads

static std::vector<float> three_updates(const Case &c) {
    GPT2 m;
    std::vector<float> all;
    std::vector<int32_t> tokens((size_t)c.B * c.T), targets(tokens.size());
    random_batch(tokens.data(), targets.data(), (int)tokens.size(), c.V);
    model_open_for(&m, c);
    gpt2_init_weights(&m, WEIGHTS_LINEAR, 3);
    for (int N = 1; N <= 3; N++) {
        for (int micro = 0; micro < 2; micro++) {
            gpt2_micro_step(&m, tokens.data(), targets.data(), c.B - micro, c.T, micro, 2);
        }
        UpdateSums sums = gpt2_gradients(&m);
        all.push_back((float)sums.loss);
        all.push_back((float)sums.norm);
        AdamW h = {};
        h.rate = 1e-3;
        h.beta1 = 0.9;
        h.beta2 = 0.95;
        h.eps = 1e-8;
        h.decay = 0.1;
        h.grad_scale = 1 / sums.norm;
        gpt2_update(&m, h, N);
    }
    for (const float *block : {m.master, m.moment1, m.moment2, m.grads}) {
        std::vector<float> values = block_get(block, m.flat_size);
        all.insert(all.end(), values.begin(), values.end());
    }
    gpt2_free(&m);
    return all;
}

static void test_repeats(void) {
    static const Case cases[] = {
        {.pattern = "t", .L = 2, .C = 40 * 4, .B = 3, .T = 23},
        {.pattern = "sppp", .rule = RULE_MEAN, .C = 32, .B = 3, .T = 21, .recompute = 2,
         .fuses_gelu = 1},
        {.pattern = "p", .R = 4, .L = 2, .C = 64, .B = 2, .T = 66, .vocab_parallel = 1,
         .recompute = 1},
    };
    for (const Case &c : cases) {
        std::vector<float> first = three_updates(c);
        int same = 1, finite = 1;
        for (float v : first) finite &= isfinite(v);
        for (int run = sanitized ? 3 : 1; run <= 3; run++) {
            // On the stand-in each run has another order of threads, blocks and streams.
            emu_seed(run == 1 ? 1 : 1000 * run);
            same &= same_bits(first, three_updates(c));
        }
        emu_seed(1);
        check(same && finite,
              "%s R %d: three updates, %d times: the same losses, norms, weights and moments, bit "
              "for bit", c.pattern, c.R, sanitized ? 2 : 4);
    }
}

// ----------------------------------------------------------------------------
// checkpoints: broken by a shard at the wrong place, rounded weights instead of the master, or
// moments left behind

static int files_equal(const char *folder, const char *other, const char *kind, int64_t updates) {
    char a[PATH_MAX], b[PATH_MAX];
    checkpoint_path(a, folder, kind, updates);
    checkpoint_path(b, other, kind, updates);
    FILE *x = fopen(a, "rb"), *y = fopen(b, "rb");
    int same = x && y;
    for (int c = 0; same && c != EOF;) same = (c = fgetc(x)) == fgetc(y);
    if (x) fclose(x);
    if (y) fclose(y);
    return same;
}

static int sets_equal(const Pair *pair) {
    const float *blocks[3] = {pair->m.master, pair->m.moment1, pair->m.moment2};
    int same = 1;
    for (int set = 0; set < 3; set++) {
        for (int p = 0; p < P_COUNT; p++) {
            std::vector<float> x = tensor_get(&pair->m, blocks[set], p),
                               y = oracle_tensor_of(pair, set, p);
            // With a vocabulary that is cut, x has more rows.
            same &= !memcmp(x.data(), y.data(), y.size() * sizeof(float));
        }
    }
    return same;
}

static void test_checkpoints(const char *folder) {
    static const Case cases[] = {
        {.pattern = "t", .R = 1, .L = 2, .C = 32, .T = 16},
        {.pattern = "sppp", .R = 4, .rule = RULE_MEAN, .C = 32, .T = 16},
        {.pattern = "s", .R = 2, .L = 2, .C = 32, .T = 16, .vocab_parallel = 1},
    };
    int64_t N = 0;
    for (const Case &c : cases) {
        Pair pair, back;
        char path[PATH_MAX], other[PATH_MAX];
        double found, expected, worst = 0;
        snprintf(other, sizeof other, "%s/other", folder);
        folder_create(other);
        pair_open(&pair, c);
        for (int i = 0; i < 2; i++) pair_update(&pair, ++N, &found, &expected);
        checkpoint_save(&pair.m, folder, N, 0, "");
        oracle_load(pair.oracle, folder, N);
        check(sets_equal(&pair),
              "%s: the CPU trainer reads every bit of the weights and moments that CUDA wrote",
              pair.name);
        oracle_save(pair.oracle, other, N);
        check(files_equal(folder, other, "model", N) && files_equal(folder, other, "state", N),
              "%s: and writes the same files", pair.name);
        for (int i = 0; i < 2; i++) { // from here both go on from the same
            pair_update(&pair, N + 1 + i, &found, &expected);
            worst = worse(worst, fabs(found - expected));
        }
        check_error(pair.name, "losses after the CPU trainer took over", worst, TOLERANCE_TRAINING);

        pair_open(&back, c); // and the way back, into a new model
        oracle_load(back.oracle, folder, N);
        for (int i = 0; i < 2; i++) {
            oracle_micro_step(back.oracle, back.tokens.data(), back.targets.data(), c.B, c.T, 0, 1);
            OracleSums sums = oracle_gradients(back.oracle);
            oracle_update(back.oracle, 1e-3, 0.1, 1 / sums.norm, N + 1 + i);
        }
        N += 2;
        oracle_save(back.oracle, other, N);
        checkpoint_path(path, other, "model", N);
        gpt2_load(&back.m, path);
        checkpoint_path(path, other, "state", N);
        gpt2_load_state(&back.m, path, N);
        check(sets_equal(&back), "%s: CUDA reads every bit of what the CPU trainer wrote",
              back.name);
        worst = 0;
        for (int i = 0; i < 2; i++) {
            pair_update(&back, N + 1 + i, &found, &expected);
            worst = worse(worst, fabs(found - expected));
        }
        check_error(back.name, "losses after CUDA took over", worst, TOLERANCE_TRAINING);
        pair_close(&pair);
        pair_close(&back);
    }
}

// ----------------------------------------------------------------------------
// fixtures (dev/test/check.h): an independent float64 program's numbers for a tiny model

static void fixture_create(GPT2 *m, const GPT2Config *config) {
    gpu.fuses_gelu = !gpu.fuses_gelu; // both ways take turns
    gpt2_create(m, config, mesh_make(1, 0, config->R, config->R), 2, 16, ModelOptions{},
                FOR_TRAINING);
}

static int fixture_compare(GPT2 *m, const DebugState *d, const char *where) {
    int V = m->config.V;
    double worst = 0, loss = gpt2_forward(m, d->x, d->y, d->B, d->T);
    std::vector<float> logits(V);
    for (int row = 0; row < d->B * d->T; row++) {
        const float *expected = &d->logits[(size_t)row * V];
        logits_collect(m, row, logits.data());
        double error = 0;
        if (sizeof(real) < sizeof(float)) {
            error = relative_error(logits.data(), expected, V);
        } else {
            for (int v = 0; v < V; v++) {
                error = worse(error, fabs((double)logits[v] - (double)expected[v]));
            }
        }
        worst = worse(worst, error);
    }
    check_error(where, "loss", fabs(loss - (double)d->loss), TOLERANCE_LOSS);
    check_error(where, "logits", worst, TOLERANCE_LOGITS);
    gpt2_micro_step(m, d->x, d->y, d->B, d->T, 0, 1);
    gpt2_gradients(m);
    const float *expected = d->grads;
    for (int p = 0; p < P_COUNT; p++) {
        char name[32];
        std::vector<float> found = tensor_get(m, m->grads, p);
        snprintf(name, sizeof name, "d%s", m->whole[p].name);
        check_error(where, name, relative_error(found.data(), expected, found.size()),
                    TOLERANCE_GRADIENT);
        expected += found.size();
    }
    return 3;
}

// ----------------------------------------------------------------------------
// kernels against plain loops in double. Outputs are NaN before, so that what is not written shows.

typedef std::vector<float> Values;
typedef std::vector<double> Doubles;

static void check_kernel(const char *what, double worst, int cases, double tolerance) {
    check(worst <= tolerance, "%s, %d cases: error %.2e, tolerance %.0e", what, cases, worst,
          tolerance);
}

static double gelu_plain(double x) {
    return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}
static double gelu_slope(double x) {
    double t = tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x));
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
}

// The sums over chunks of rows that a kernel left, added up: (batch,cols).
template <typename T> static Values chunks_added(Chunks<T> chunks, int batch, int cols) {
    Device<float> out((size_t)batch * cols);
    chunks_sum(out.at, cols, 1, chunks, batch, cols, 0);
    return out.get();
}

// What they have to be: sums over the rows of d (batch,rows,cols).
static Doubles columns_plain(const Doubles &d, int batch, int rows, int cols) {
    Doubles sums((size_t)batch * cols);
    for (size_t i = 0; i < sums.size() * rows; i++) {
        sums[i / cols / rows * cols + i % cols] += d[i];
    }
    return sums;
}

// Every optional part of a merge, on and off: broken by a stride, a scale or a count that belongs
// to another copy.
static void test_merge(void) {
    double worst = 0, worst_sums = 0, worst_norm = 0, worst_stats = 0;
    int cases = 0, again = 1, finite = 1;
    for (int i = 0; i < 96; i++, cases++) {
        int T = random_in(1, 9), B = random_in(1, 3), rows = B * T;
        int C = i == 0 ? 12288 : 2056;
        if (i > 1) C = 8 * random_in(1, 38);
        int step = random_in(0, 1);
        int copies = random_in(1, 3), in_place = i % 8 == 7;
        int count = in_place ? 1 : 0;
        if (!in_place && i % 5 != 4) count = random_in(1, 3);
        int base = i & 1, shared_base = i >> 1 & 1, few_rows = i >> 2 & 1, owns = i >> 3 & 1;
        int shared_own = i >> 4 & 1, bias = i >> 5 & 1;
        size_t n = (size_t)rows * C;
        int base_rows = few_rows ? T : rows;
        Values b = random_values((shared_base ? 1 : copies) * (size_t)base_rows * C);
        Values p = random_values(copies * 3 * n);
        Values o = random_values(shared_own ? n : copies * 3 * n), c = random_values(C);
        Values lw = random_values(C), lb = random_values(C);
        Device<real> db(b), dp(p), down(o), dw(lw), dlb(lb), out(copies * n), normed(copies * n);
        Device<real> second(copies * n);
        Device<float> dc(c), mean((size_t)copies * rows), rstd((size_t)copies * rows);
        Merge g;
        memset(&g, 0, sizeof g);
        g.out = in_place ? dp.at : out.at;
        g.base = base ? db.at : NULL;
        g.base_stride = shared_base ? 0 : (size_t)base_rows * C;
        g.base_rows = base_rows;
        g.base_scale = 0.75f;
        if (in_place) step = 1;
        g.parts = dp.at;
        g.count = count;
        g.step = step * count;
        g.parts_scale = 1.25f;
        g.owns = owns ? down.at : NULL;
        g.own_stride = shared_own ? 0 : n;
        g.share = 0.5f;
        g.bias = bias ? dc.at : NULL;
        g.bias_scale = 2;
        g.copies = copies;
        g.rows = rows;
        g.C = C;
        Doubles expected(copies * n);
        for (int y = 0; y < copies; y++) {
            for (int r = 0; r < rows; r++) {
                for (int k = 0; k < C; k++) {
                    double sum = bias ? 2 * (double)c[k] : 0;
                    if (base) {
                        sum += 0.75 * (double)b[(shared_base ? 0 : y) * (size_t)base_rows * C +
                                                (size_t)(r % base_rows) * C + k];
                    }
                    for (int j = y * g.step; j < y * g.step + count; j++) {
                        sum += 1.25 * (double)p[j * n + (size_t)r * C + k];
                        if (owns) {
                            sum += 0.5 * (double)o[(shared_own ? 0 : j) * n + (size_t)r * C + k];
                        }
                    }
                    expected[y * n + (size_t)r * C + k] = sum;
                }
            }
        }
        Device<float> scratch((size_t)copies * CHUNKS_MAX * C);
        Values sums = chunks_added(merge(g, scratch.at), copies, C);
        Values found = in_place ? dp.get() : out.get();
        found.resize(copies * n);
        worst = worse(worst, element_error(found, expected));
        Doubles stored(found.begin(), found.end());
        worst_sums = worse(worst_sums, element_error(sums, columns_plain(stored, copies, rows, C)));
        if (in_place) dp.put(p);
        out.poison();
        g.out = out.at;
        merge_norm(g, Norm{normed.at, mean.at, rstd.at, dw.at, dlb.at});
        Values x = out.get(), m = mean.get(), s = rstd.get();
        worst = worse(worst, element_error(x, expected));
        Doubles normal(copies * n), means((size_t)copies * rows), rstds(means.size());
        for (size_t r = 0; r < means.size(); r++) { // of the row as it is stored
            double sum = 0, squares = 0;
            for (int k = 0; k < C; k++) sum += (double)x[r * C + k];
            means[r] = sum / C;
            for (int k = 0; k < C; k++) squares += pow((double)x[r * C + k] - means[r], 2);
            rstds[r] = 1 / sqrt(squares / C + 1e-5);
            for (int k = 0; k < C; k++) {
                normal[r * C + k] = ((double)x[r * C + k] - means[r]) * rstds[r] * (double)lw[k] +
                                    (double)lb[k];
            }
        }
        if (count || base || bias) { // else rows are zeros, whose rstd is 1/sqrt(eps)
            worst_norm = worse(worst_norm, element_error(normed.get(), normal));
            for (size_t r = 0; r < means.size(); r++) {
                worst_stats = worse(worst_stats, fabs((double)m[r] - means[r]) * rstds[r] +
                                                     fabs((double)s[r] / rstds[r] - 1));
            }
        }
        norm_again(Norm{second.at, mean.at, rstd.at, dw.at, dlb.at}, out.at, copies, rows, C);
        again &= normed.bytes() == second.bytes();
        for (float v : normed.get()) finite &= isfinite(v);
    }
    check_kernel("merge, and the stream of merge_norm", worst, cases, TOLERANCE_KERNEL);
    check_kernel("merge: the sums over rows of what it wrote", worst_sums, cases, 2e-5);
    check_kernel("merge_norm: LayerNorm", worst_norm, cases, TOLERANCE_KERNEL);
    check_kernel("merge_norm: mean and rstd", worst_stats, cases, 1e-5);
    check(again && finite, "norm_again: the same bits as merge_norm, all of them numbers");
}

static void test_norm_backward(void) {
    double worst = 0, worst_grads = 0, worst_sums = 0;
    int cases = 0;
    for (int i = 0; i < 48; i++, cases++) {
        int merged = i & 1 && i >= 24; // all ranks at once
        int parts = merged ? random_in(1, 3) : 1, F = merged ? 1 : random_in(1, 3);
        int shared = i & 1, add_dx = i >> 1 & 1, add = i >> 2 & 1, sum_dx = i >> 3 & 1;
        int rows = i == 0 ? 300 : random_in(1, 40);
        int C = i == 1 ? NORM_C_MAX : 8 * random_in(1, 38), copies = shared ? 1 : F;
        size_t n = (size_t)rows * C, stride = 2 * (size_t)C + 8;
        Values all = random_values(F * parts * n), dout(F * n);
        Values x = random_values(copies * n, 2), w = random_values(C);
        for (size_t j = 0; j < all.size(); j++) dout[parts > 1 ? j % n : j] += all[j];
        if (parts > 1) {
            for (float &d : dout) d = (float)(real)d; // as a product rounds what it adds up
        }
        Values old = random_values(F * n);
        Values old_grads = random_values(F * stride), mean((size_t)copies * rows);
        Values rstd(mean.size());
        for (size_t r = 0; r < mean.size(); r++) {
            double sum = 0, squares = 0;
            for (int k = 0; k < C; k++) sum += (double)x[r * C + k];
            for (int k = 0; k < C; k++) squares += pow((double)x[r * C + k] - sum / C, 2);
            mean[r] = (float)(sum / C);
            rstd[r] = (float)(1 / sqrt(squares / C + 1e-5));
        }
        Device<real> ddout(all), dx_in(x), dw(w), dx(F * n);
        Device<float> dmean(mean), drstd(rstd), grads(F * stride);
        Device<float> partial((size_t)F * CHUNKS_MAX * (2 + sum_dx) * C);
        if (add_dx) dx.put(old);
        if (add) grads.put(old_grads);
        NormBackward g = {};
        g.dx = dx.at;
        g.add_dx = add_dx;
        g.sum_dx = sum_dx;
        g.dout = ddout.at;
        g.parts = parts;
        g.x = dx_in.at;
        g.mean = dmean.at;
        g.rstd = drstd.at;
        g.x_stride = shared ? 0 : n;
        g.stats_stride = shared ? 0 : rows;
        g.w = dw.at;
        g.partial = partial.at;
        g.rows = rows;
        g.C = C;
        Chunks<float> sums = norm_backward(g, grads.at, grads.at + C, stride, F, add);
        Doubles expected(F * n), wants(F * stride, NAN);
        for (int f = 0; f < F; f++) {
            for (int k = 0; k < C; k++) {
                wants[f * stride + k] = add ? (double)old_grads[f * stride + k] : 0;
                wants[f * stride + C + k] = add ? (double)old_grads[f * stride + C + k] : 0;
            }
            for (int r = 0; r < rows; r++) {
                size_t at = f * n + (size_t)r * C, from = (shared ? 0 : f * n) + (size_t)r * C;
                size_t stat = (shared ? 0 : f * (size_t)rows) + r;
                double sum = 0, sum_norm = 0;
                auto norm = [&](int k) {
                    return ((double)x[from + k] - (double)mean[stat]) * (double)rstd[stat];
                };
                for (int k = 0; k < C; k++) {
                    double d = (double)dout[at + k] * (double)w[k];
                    sum += d / C;
                    sum_norm += d * norm(k) / C;
                    wants[f * stride + k] += (double)dout[at + k] * norm(k);
                    wants[f * stride + C + k] += (double)dout[at + k];
                }
                for (int k = 0; k < C; k++) {
                    double d = (double)dout[at + k] * (double)w[k];
                    expected[at + k] = (add_dx ? (double)old[at + k] : 0) +
                                       (d - sum - norm(k) * sum_norm) * (double)rstd[stat];
                }
            }
        }
        Values written = dx.get();
        worst = worse(worst, element_error(written, expected));
        if (sum_dx) {
            Doubles stored(written.begin(), written.end());
            worst_sums = worse(worst_sums, element_error(chunks_added(sums, F, C),
                                                         columns_plain(stored, F, rows, C)));
        }
        Values found = grads.get(), part;
        Doubles want;
        for (int f = 0; f < F; f++) { // without what lies between ranks
            part.insert(part.end(), &found[f * stride], &found[f * stride] + 2 * C);
            want.insert(want.end(), &wants[f * stride], &wants[f * stride] + 2 * C);
            for (int k = 2 * C; k < (int)stride && !add; k++) {
                if (!isnan(found[f * stride + k])) {
                    check(0, "norm_backward wrote between two ranks' gradients");
                }
            }
        }
        worst_grads = worse(worst_grads, element_error(part, want));
    }
    check_kernel("norm_backward: dx", worst, cases, TOLERANCE_KERNEL);
    check_kernel("norm_backward: gain and bias", worst_grads, cases, 2e-5);
    check_kernel("norm_backward: the sums over rows of dx", worst_sums, cases, 2e-5);
}

static void test_bias_backward(void) {
    double worst = 0;
    int cases = 0;
    for (int i = 0; i < 24; i++, cases++) {
        int batch = random_in(1, 3), rows = i < 2 ? 700 + i : random_in(1, 60);
        int cols = 8 * random_in(1, 38), add = i & 1;
        size_t stride = cols + 4;
        Values d = random_values((size_t)batch * rows * cols), old = random_values(batch * stride);
        Values found;
        Device<real> dd(d);
        Device<float> out(batch * stride), scratch((size_t)batch * CHUNKS_MAX * cols);
        if (add) out.put(old);
        float scale = i % 3 ? 1 : 0.5f;
        bias_backward(out.at, stride, scale, dd.at, batch, rows, cols, add, scratch.at);
        Values all = out.get();
        Doubles expected;
        for (int b = 0; b < batch; b++) {
            for (int c = 0; c < cols; c++) {
                double sum = add ? (double)old[b * stride + c] : 0;
                for (int r = 0; r < rows; r++) {
                    sum += (double)scale * (double)d[((size_t)b * rows + r) * cols + c];
                }
                expected.push_back(sum), found.push_back(all[b * stride + c]);
            }
        }
        worst = worse(worst, element_error(found, expected));
    }
    check_kernel("bias_backward", worst, cases, 2e-5);
}

// Tokens sorted by the trainer itself.
static void test_embedding(void) {
    double worst = 0, worst_wpe = 0;
    int cases = 0, exact = 1;
    for (int i = 0; i < 16; i++, cases++) {
        Case shape = {.pattern = "t", .R = 1, .L = 1, .NH = 1, .C = 8, .V = i % 3 ? 65 : 50257,
                      .B = random_in(1, 3), .T = random_in(1, 45)};
        int rows = shape.B * shape.T, C = 8 * random_in(1, 38), V = shape.V, add = i & 1;
        int first = i % 4 ? V / 3 : 0, count = i % 4 == 1 ? V / 2 : V - first;
        // A part of a large table, to be quick.
        if (V > 65) {
            count = count < 300 ? count : 300;
            first = V - 2 * count;
        }
        GPT2 m;
        std::vector<int32_t> tokens(rows), targets(rows);
        model_open_for(&m, shape);
        random_batch(tokens.data(), targets.data(), rows, V);
        for (int r = 0; r < rows; r += 2) tokens[r] = first + r % 5 % count; // some come often
        batch_send(&m, tokens.data(), targets.data(), rows);
        Values wte = random_values((size_t)count * C), dout = random_values((size_t)rows * C);
        Values old = random_values((size_t)count * C);
        Values old_wpe = random_values((size_t)shape.T * C);
        Device<real> dwte(wte), ddout(dout), out((size_t)rows * C);
        Device<float> grad(old), wpe((size_t)shape.T * C);
        embedding_forward(out.at, m.batch.tokens, dwte.at, first, count, rows, C);
        embedding_backward(grad.at, ddout.at, m.batch, first, count, C);
        if (add) wpe.put(old_wpe);
        position_backward(wpe.at, ddout.at, shape.B, shape.T, C, add);
        Values found = out.get();
        Doubles expected(old.begin(), old.end()), expected_wpe((size_t)shape.T * C);
        for (int r = 0; r < rows; r++) {
            int token = tokens[r] - first, held = token >= 0 && token < count;
            for (int c = 0; c < C; c++) {
                exact &= found[(size_t)r * C + c] == (held ? wte[(size_t)token * C + c] : 0);
                if (held) expected[(size_t)token * C + c] += (double)dout[(size_t)r * C + c];
            }
        }
        for (int t = 0; t < shape.T; t++) {
            for (int c = 0; c < C; c++) {
                double sum = add ? (double)old_wpe[(size_t)t * C + c] : 0;
                for (int b = 0; b < shape.B; b++) {
                    sum += (double)dout[((size_t)b * shape.T + t) * C + c];
                }
                expected_wpe[(size_t)t * C + c] = sum;
            }
        }
        worst = worse(worst, element_error(grad.get(), expected));
        worst_wpe = worse(worst_wpe, element_error(wpe.get(), expected_wpe));
        gpt2_free(&m);
    }
    check(exact,
          "embedding_forward, %d cases: rows of the table, zeros for tokens that are elsewhere",
          cases);
    check_kernel("embedding_backward", worst, cases, 2e-5);
    check_kernel("position_backward", worst_wpe, cases, 2e-5);
}

static void test_gelu(void) {
    double worst = 0, worst_back = 0, worst_sums = 0;
    int cases = 0;
    for (int n = 8; n < 6000; n = 3 * n + 8, cases++) {
        // As (batch,rows,cols)
        int cols = n % 40 ? 8 : 40, batch = n / cols % 2 ? 1 : 2, rows = n / cols / batch;
        Values x = random_values(n, 2), dout = random_values(n);
        x[0] = 0;
        x[1] = 30;
        x[2] = -30;
        x[3] = (float)(real)1e4f;
        x[4] = (float)(real)-1e4f;
        Device<real> dx(x), dd(dout), out(n), back(n);
        gelu_forward(out.at, dx.at, n);
        Device<float> scratch((size_t)batch * CHUNKS_MAX * cols);
        Values sums = chunks_added(gelu_backward(back.at, dd.at, dx.at, batch, rows, cols,
                                                 scratch.at), batch, cols);
        gelu_backward(dd.at, dd.at, dx.at, batch, rows, cols, NULL); // in place, without sums
        Doubles expected(n), slopes(n);
        for (int i = 0; i < n; i++) {
            expected[i] = gelu_plain((double)x[i]),
            slopes[i] = (double)dout[i] * gelu_slope((double)x[i]);
        }
        worst_sums = worse(worst_sums,
                           element_error(sums, columns_plain(slopes, batch, rows, cols)));
        Values found = out.get();
        // The two largest values are scaled down, or they alone would set the scale of errors.
        for (int i = 3; i < 5; i++) {
            found[i] /= 1e4f;
            expected[i] /= 1e4;
        }
        worst = worse(worst, element_error(found, expected));
        worst_back = worse(worst_back, worse(element_error(back.get(), slopes),
                                             element_error(dd.get(), slopes)));
    }
    check_kernel("gelu_forward", worst, cases, TOLERANCE_KERNEL);
    check_kernel("gelu_backward", worst_back, cases, TOLERANCE_KERNEL);
    check_kernel("gelu_backward: the sums over its rows", worst_sums, cases, 2e-5);
}

// Fused, and cut into parts: the loss and the gradient over the logits. Columns of the padding hold
// NaN before: they take no part. One part may have no token at all.
static void test_classifier(void) {
    static const int sizes[] = {65, 1, 128, 1000, 50257};
    double worst_loss = 0, worst_grad = 0;
    int cases = 0, padding = 1, untouched = 1;
    for (int V : sizes) {
        for (int parts = 0; parts <= 4; parts += parts == 0 ? 1 : parts, cases++) { // 0: fused
            int rows = V > 1000 ? 3 : 7, Vp = vocabulary_pad(V);
            int width = parts ? ceil_div(Vp, 8 * parts) * 8 : Vp, all = parts ? parts : 1;
            size_t n = (size_t)rows * width;
            double scale = 0.125;
            Values logits = random_values(all * n, 3);
            std::vector<int32_t> tokens(rows), targets(rows);
            random_batch(tokens.data(), targets.data(), rows, V);
            targets[0] = V - 1;
            for (size_t i = 0; i < all * n; i++) {
                if ((int)(i / n) * width + (int)(i % width) >= V) logits[i] = NAN;
            }
            Device<real> dlogits(logits);
            Device<float> losses(rows), lse(rows), most(rows), part_most((size_t)all * rows);
            Device<float> sums((size_t)2 * all * rows);
            Device<int32_t> dtargets(rows);
            CUDA_CHECK(cudaMemcpy(dtargets.at, targets.data(), rows * sizeof(int32_t),
                                  cudaMemcpyHostToDevice));
            CUDA_CHECK(cudaDeviceSynchronize());
            int threads = classifier_threads(width), blocks = ceil_div(rows, BLOCK);
            std::vector<unsigned char> before = dlogits.bytes();
            auto range = [&](int f) { return max(0, min(V - f * width, width)); };
            if (!parts) {
                LAUNCH(classifier_kernel, rows, threads, 0, gpu.stream, dlogits.at, losses.at,
                       dtargets.at, 0.0f, V, width);
                untouched &= dlogits.bytes() == before;
                LAUNCH(classifier_kernel, rows, threads, 0, gpu.stream, dlogits.at, losses.at,
                       dtargets.at, (float)scale, V, width);
            } else {
                for (int f = 0; f < parts; f++) {
                    LAUNCH(classifier_part_kernel, rows, threads, 0, gpu.stream, dlogits.at + f * n,
                           part_most.at + (size_t)f * rows, sums.at + (size_t)2 * f * rows,
                           dtargets.at, f * width, range(f), width);
                }
                LAUNCH(parts_max_kernel, blocks, BLOCK, 0, gpu.stream, most.at, part_most.at, parts,
                       rows);
                LAUNCH(parts_rescale_kernel, blocks, BLOCK, 0, gpu.stream, sums.at, part_most.at,
                       most.at, parts, rows);
                LAUNCH(losses_kernel, blocks, BLOCK, 0, gpu.stream, losses.at, lse.at, most.at,
                       sums.at, rows);
                untouched &= dlogits.bytes() == before;
                for (int f = 0; f < parts; f++) {
                    LAUNCH(classifier_backward_kernel, rows, threads, 0, gpu.stream,
                           dlogits.at + f * n, lse.at, dtargets.at, (float)scale, f * width,
                           range(f), width);
                }
            }
            Values found = dlogits.get(), found_losses = losses.get(), grad;
            Doubles expected, expected_losses;
            for (int r = 0; r < rows; r++) {
                auto at = [&](int v) { return (v / width) * n + (size_t)r * width + v % width; };
                double largest = -INFINITY, sum = 0;
                for (int v = 0; v < V; v++) largest = fmax(largest, (double)logits[at(v)]);
                for (int v = 0; v < V; v++) sum += exp((double)logits[at(v)] - largest);
                double log_sum = largest + log(sum);
                expected_losses.push_back(log_sum - (double)logits[at(targets[r])]);
                for (int v = 0; v < all * width; v++) {
                    if (v >= V) {
                        padding &= found[at(v)] == 0;
                        continue;
                    }
                    double probability = exp((double)logits[at(v)] - log_sum);
                    grad.push_back(found[at(v)]);
                    expected.push_back((probability - (v == targets[r])) * scale);
                }
            }
            for (int r = 0; r < rows; r++) {
                worst_loss = worse(worst_loss, fabs((double)found_losses[r] - expected_losses[r]));
            }
            // With one token the gradient is 0.
            if (V > 1) worst_grad = worse(worst_grad, element_error(grad, expected));
        }
    }
    check_kernel("classifier, fused and in 1, 2, 4 parts: losses", worst_loss, cases, 1e-5);
    check_kernel("classifier: gradient over the logits", worst_grad, cases, TOLERANCE_KERNEL);
    check(padding, "classifier: the gradient of padded columns is zero, whatever they held");
    check(untouched, "classifier: without a backward pass logits stay as they are");
}

// NaN logits give NaN losses: broken by a maximum that loses them. Also that of a part that has one
// token.
static void test_classifier_nan(void) {
    int rows = 1, width = 32, V = 33;
    for (int where = 0; where < 3; where++) { // fused; a part of 32; the part of one token
        Values logits(2 * width, 0.5f);
        logits[where == 2 ? 32 : 3] = NAN;
        Device<real> dlogits(logits);
        Device<float> losses(1), lse(1), most(1), part_most(2), sums(4);
        Device<int32_t> target(1);
        CUDA_CHECK(cudaMemset(target.at, 0, sizeof(int32_t)));
        CUDA_CHECK(cudaDeviceSynchronize());
        if (where == 0) {
            LAUNCH(classifier_kernel, 1, 32, 0, gpu.stream, dlogits.at, losses.at, target.at, 1.0f,
                   V, 2 * width);
        } else {
            for (int f = 0; f < 2; f++) {
                LAUNCH(classifier_part_kernel, 1, 32, 0, gpu.stream, dlogits.at + f * width,
                       part_most.at + f, sums.at + 2 * f, target.at, f * width, f ? 1 : 32, width);
            }
            LAUNCH(parts_max_kernel, 1, BLOCK, 0, gpu.stream, most.at, part_most.at, 2, rows);
            LAUNCH(parts_rescale_kernel, 1, BLOCK, 0, gpu.stream, sums.at, part_most.at, most.at, 2,
                   rows);
            LAUNCH(losses_kernel, 1, BLOCK, 0, gpu.stream, losses.at, lse.at, most.at, sums.at,
                   rows);
        }
        check(isnan(losses.get()[0]), "classifier%s: a NaN logit makes the loss NaN",
              where == 0   ? ""
              : where == 1 ? " in parts"
                           : " in parts, of which one is all NaN");
    }
}

// Few queries of a longer sequence against all of them at once. Broken by a key too many or too
// few, and where groups of threads have none.
static void test_attention_token(void) {
    static const struct { int B, heads, HS, past, T, spare; } cases[] = {
        {1, 1, 8, 0, 1, 3},   {2, 3, 24, 5, 2, 0},  {1, 2, 32, 64, 1, 7}, {2, 2, 40, 31, 9, 1},
        {1, 2, 64, 127, 16, 0}, {1, 1, 64, 700, 1, 2}, {2, 1, 96, 33, 3, 4},
        {1, 2, 128, 200, 5, 0}};
    for (const auto &c : cases) {
        int rows = c.past + c.T + c.spare, W = c.heads * c.HS;
        Device<real> qkv(random_values((size_t)c.B * rows * 3 * W));
        Device<real> all((size_t)c.B * rows * W), few((size_t)c.B * c.T * W);
        Device<float> lse((size_t)c.B * c.heads * rows);
        attention_forward(all.at, lse.at, qkv.at, {c.B, rows, c.heads, c.HS}, gpu.stream);
        attention_forward(few.at, NULL, qkv.at, {c.B, c.T, c.heads, c.HS, c.past, c.spare},
                          gpu.stream);
        CUDA_CHECK(cudaDeviceSynchronize());
        std::vector<float> expected, found;
        Values of_all = all.get(), of_few = few.get();
        for (int b = 0; b < c.B; b++) {
            for (int i = 0; i < c.T * W; i++) {
                expected.push_back((float)of_all[((size_t)b * rows + c.past) * W + i]);
                found.push_back((float)of_few[(size_t)b * c.T * W + i]);
            }
        }
        char what[96];
        snprintf(what, sizeof what, "%d of %d queries, heads of %d", c.T, rows, c.HS);
        double error = relative_error(found.data(), expected.data(), found.size());
        check_error("attention_token", what, error, sizeof(real) == sizeof(float) ? 1e-6 : 4e-3);
    }
}

static void test_loss_mean(void) {
    Values losses = random_values(301);
    Device<float> d(losses);
    double *total, found, expected = 0;
    CUDA_CHECK(cudaMalloc((void **)&total, sizeof(double)));
    for (float v : losses) expected += (double)v / 301;
    for (int add = 0; add < 2; add++) {
        LAUNCH(loss_mean_kernel, 1, BLOCK, 0, gpu.stream, total, d.at, 301, add);
    }
    CUDA_CHECK(cudaDeviceSynchronize());
    CUDA_CHECK(cudaMemcpy(&found, total, sizeof found, cudaMemcpyDeviceToHost));
    CUDA_CHECK(cudaFree(total));
    check_error("loss_mean", "twice 301 losses", fabs(found - 2 * expected), 1e-12);
}

// Causal attention, forward and backward, against plain loops. Returns the worst error of out, lse,
// dQ dK dV and their sums over all rows.
static double attention_error(int B, int T, int heads, int HS) {
    int W = heads * HS;
    AttentionShape s = {B, T, heads, HS};
    Values qkv = random_values((size_t)B * T * 3 * W), dout = random_values((size_t)B * T * W);
    Device<real> dqkv(qkv), ddout(dout), out(dout.size()), grad(qkv.size());
    size_t chunks = (size_t)B * attention_tiles(T, HS);
    Device<float> lse((size_t)B * heads * T), rows(2 * lse.n), columns(chunks * 3 * W);
    attention_forward(out.at, lse.at, dqkv.at, s, gpu.stream);
    attention_backward(grad.at, columns.at, rows.at, ddout.at, out.at, lse.at, dqkv.at, s,
                       gpu.stream);
    Doubles expected((size_t)B * T * W), sums((size_t)B * heads * T), back(qkv.size());
    double scale = 1 / sqrt(HS);
    for (int b = 0; b < B; b++) {
        for (int h = 0; h < heads; h++) {
            auto at = [&](int t, int part, int c) {
                return ((size_t)(b * T + t) * 3 + part) * W + h * HS + c;
            };
            auto row = [&](int t, int c) { return (size_t)(b * T + t) * W + h * HS + c; };
            for (int t = 0; t < T; t++) {
                Doubles p(t + 1), dp(t + 1);
                double sum = 0, delta_row = 0;
                for (int u = 0; u <= t; u++) {
                    double dot = 0;
                    for (int c = 0; c < HS; c++) {
                        dot += (double)qkv[at(t, 0, c)] * (double)qkv[at(u, 1, c)];
                    }
                    p[u] = exp(dot * scale);
                    sum += p[u];
                }
                sums[(size_t)(b * heads + h) * T + t] = log(sum);
                for (int u = 0; u <= t; u++) {
                    p[u] /= sum;
                    for (int c = 0; c < HS; c++) {
                        expected[row(t, c)] += p[u] * (double)qkv[at(u, 2, c)];
                        dp[u] += (double)dout[row(t, c)] * (double)qkv[at(u, 2, c)];
                        back[at(u, 2, c)] += p[u] * (double)dout[row(t, c)];
                    }
                    delta_row += p[u] * dp[u];
                }
                for (int u = 0; u <= t; u++) {
                    double ds = p[u] * (dp[u] - delta_row) * scale;
                    for (int c = 0; c < HS; c++) {
                        back[at(t, 0, c)] += ds * (double)qkv[at(u, 1, c)];
                        back[at(u, 1, c)] += ds * (double)qkv[at(t, 0, c)];
                    }
                }
            }
        }
    }
    double lse_error = 0, parts = 0;
    Values found_lse = lse.get(), found = grad.get(), found_columns = columns.get();
    for (size_t i = 0; i < sums.size(); i++) {
        lse_error = worse(lse_error, fabs((double)found_lse[i] - sums[i]));
    }
    // Each part is measured by its own size. With one token dQ and dK are 0.
    for (int part = 0; part < 3 && T > 1; part++) {
        Values x;
        Doubles y;
        for (size_t i = 0; i < found.size(); i++) {
            if ((int)(i / W % 3) == part) x.push_back(found[i]), y.push_back(back[i]);
        }
        parts = worse(parts, element_error(x, y));
    }
    // Rows of dS add up to 0, and so do dK over all keys: sums are measured by those of all parts.
    Values x(3 * W);
    Doubles y(3 * W);
    for (size_t i = 0; i < found_columns.size(); i++) x[i % (3 * W)] += found_columns[i];
    for (size_t i = 0; i < back.size(); i++) y[i % (3 * W)] += back[i];
    parts = worse(parts, element_error(x, y));
    return worse(worse(element_error(out.get(), expected), parts), lse_error);
}

// A tile is 64 or 128 rows: sizes around it, and heads that fill a tile's columns or not. P and dS
// are rounded to bf16.
static void test_attention(void) {
    static const int sizes[][4] = {{1, 1, 1, 8},    {2, 7, 3, 8},    {1, 64, 2, 8},
                                   {1, 65, 1, 16},  {1, 130, 1, 16}, {2, 33, 2, 24},
                                   {1, 63, 2, 32},  {1, 129, 1, 32}, {1, 70, 1, 40},
                                   {1, 40, 2, 64},  {1, 128, 1, 64}, {1, 67, 1, 72},
                                   {1, 35, 1, 128}, {2, 66, 1, 128}};
    for (const int *s : sizes) {
        double error = attention_error(s[0], s[1], s[2], s[3]);
        check(error <= TOLERANCE_ATTENTION,
              "attention B %d T %d heads %d of %d: error %.2e, tolerance %.0e", s[0], s[1], s[2],
              s[3], error, TOLERANCE_ATTENTION);
    }
}

// A product that the library offers, and then does not do, goes on as one that it does not have.
static void test_matmul_fails_late(void) {
    if (!emulated) return; // what NVIDIA's library does with such an algorithm nobody says
    Device<char> workspace(MATMUL_WORKSPACE);
    Device<real> a(random_values(2 * 24 * 32)), b(random_values(2 * 32 * 40)), out(2 * 24 * 40);
    Matmul m = {.out = out.at, .out_stride = 24 * 40, .a = a.at, .b = b.at, .a_stride = 24 * 32,
                .b_stride = 32 * 40, .M = 24, .N = 40, .K = 32, .batch = 2};
    matmul(m, workspace.at);
    std::vector<float> expected = out.get();
    MatmulPlan *plan = matmul_plan(&m);
    memset(&plan->algorithm, 0xFF, sizeof plan->algorithm);
    out.poison();
    matmul(m, workspace.at);
    check(out.get() == expected && plan->state == 2,
          "matmul goes on where cublasLtMatmul fails, one product at a time");
}

// Makes as if cuBLASLt had no such products: 1: with a batch; 2: nor with a GELU; 0: as it is.
static void plans_refuse(int what) {
    static std::vector<MatmulPlan *> refused;
    for (MatmulPlan *plan : refused) plan->state = 1;
    refused.clear();
    for (int i = 0; i < MATMUL_PLANS && matmul_plans && what; i++) {
        MatmulPlan *plan = &matmul_plans[i];
        int gelu = plan->key.epilogue == CUBLASLT_EPILOGUE_DGELU ||
                   plan->key.epilogue == CUBLASLT_EPILOGUE_DGELU_BGRAD ||
                   plan->key.epilogue == CUBLASLT_EPILOGUE_GELU_AUX_BIAS;
        if (plan->state != 1 || !(plan->key.batch > 1 || (what > 1 && gelu))) continue;
        plan->state = 2;
        refused.push_back(plan);
    }
}

// Every form of product that the trainer asks for, and some more, in one call and in several. With
// accumulate 0 what out was, NaN, must not matter.
static void test_matmul(void) {
    double worst_real = 0, worst_float = 0, worst_gelu = 0;
    int cases = 0;
    Device<char> workspace(MATMUL_WORKSPACE);
    for (int i = 0; i < 160; i++) {
        // epilogue: 1 bias, 2 GELU, 3 its gradient, half of the time with that of a bias
        int at = i & 1, bt = i >> 1 & 1, out_float = i >> 2 & 1, accumulate = i >> 3 & 1;
        int epilogue = i / 16 % 4;
        int batch = random_in(1, 3), M = at ? 8 * random_in(1, 9) : random_in(1, 70);
        int N = 8 * random_in(1, 9);
        int K = !at || bt ? 8 * random_in(1, 20) : random_in(1, 150);
        int same_a = random_in(0, 2) == 0, same_b = random_in(0, 2) == 0;
        int same_bias = random_in(0, 1);
        if (epilogue && (out_float || accumulate)) continue;
        if (epilogue == 3 && at) continue;
        cases++;
        size_t a_stride = same_a ? 0 : (size_t)M * K, b_stride = same_b ? 0 : (size_t)N * K;
        size_t n = (size_t)M * N, bias_stride = same_bias ? 0 : N;
        Values a = random_values((same_a ? 1 : batch) * (size_t)M * K);
        Values b = random_values((same_b ? 1 : batch) * (size_t)N * K, 1 / sqrt(K));
        Values old = random_values(batch * n);
        Values bias = random_values((same_bias ? 1 : batch) * (size_t)N);
        Values before = random_values(batch * n);
        Device<real> da(a), db(b), dbias(bias), dbefore(batch * n), dout(batch * n);
        Device<real> bias_grad((size_t)batch * N);
        Device<float> dfloat(batch * n);
        Matmul m = {};
        m.out = out_float ? (void *)dfloat.at : (void *)dout.at;
        m.out_stride = n;
        m.out_float = out_float;
        m.a = da.at;
        m.b = db.at;
        m.a_stride = a_stride;
        m.b_stride = b_stride;
        m.a_transposed = at;
        m.b_transposed = bt;
        if (epilogue == 1 || epilogue == 2) {
            m.bias = dbias.at;
            m.bias_stride = bias_stride;
        }
        if (epilogue == 2) m.before_gelu = dbefore.at;
        if (epilogue == 3) m.gelu_in = dbefore.at;
        if (epilogue == 3 && i >> 1 & 1) {
            m.bias_grad = bias_grad.at;
            m.bias_stride = N;
        }
        m.M = M;
        m.N = N;
        m.K = K;
        m.batch = batch;
        m.accumulate = accumulate;
        Doubles expected(batch * n), expected_before(batch * n);
        for (int y = 0; y < batch; y++) {
            for (int r = 0; r < M; r++) {
                for (int c = 0; c < N; c++) {
                    double sum = 0;
                    for (int k = 0; k < K; k++) {
                        sum += (double)
                                   a[y * a_stride + (at ? (size_t)k * M + r : (size_t)r * K + k)] *
                               (double)
                                   b[y * b_stride + (bt ? (size_t)c * K + k : (size_t)k * N + c)];
                    }
                    size_t to = y * n + (size_t)r * N + c;
                    if (m.bias) sum += (double)bias[y * bias_stride + c];
                    if (accumulate) sum += (double)old[to];
                    expected_before[to] = sum;
                    expected[to] = epilogue == 2   ? gelu_plain(sum)
                                   : epilogue == 3 ? sum * gelu_slope((double)before[to])
                                                   : sum;
                }
            }
        }
        double *worst = out_float ? &worst_float : &worst_real;
        if (epilogue > 1) worst = &worst_gelu;
        // The ways matmul goes where cuBLASLt cannot do it at once.
        for (int refused = 0; refused <= 2; refused++) {
            dout.poison(), dfloat.poison(), dbefore.poison(), bias_grad.poison();
            if (accumulate) dout.put(old), dfloat.put(old);
            if (epilogue == 3) dbefore.put(before);
            plans_refuse(refused);
            matmul(m, workspace.at);
            *worst = worse(*worst, element_error(out_float ? dfloat.get() : dout.get(), expected));
            if (epilogue == 2) {
                *worst = worse(*worst, element_error(dbefore.get(), expected_before));
            }
            if (m.bias_grad) {
                *worst = worse(*worst, element_error(bias_grad.get(),
                                                     columns_plain(expected, batch, M, N)));
            }
        }
        plans_refuse(0);
    }
    check_kernel("matmul to activations", worst_real, cases, TOLERANCE_KERNEL);
    check_kernel("matmul to float", worst_float, cases, 2e-5);
    // Without fusion values are rounded before and after GELU.
    check_kernel("matmul with GELU and its gradient", worst_gelu, cases, 2 * TOLERANCE_KERNEL);
}

// How many sub-blocks finish the gradient of their stream by themselves: broken by a pass over
// memory that need not be, or by a gradient that is finished before all of it is there.
static void test_back_merge(void) {
    static const struct { const char *pattern; int R, merged; } cases[] = {
        {"t", 1, 8}, {"t", 2, 8}, {"t", 4, 8}, // all
        {"s", 2, 0}, {"p", 2, 0},              // the ranks' own gradients were there before
        {"st", 2, 4},                          // those of the two t
        {"l", 1, 0}, {"l", 2, 0},              // the sum goes on beside the sub-block before
    };
    for (auto c : cases) {
        GPT2 m;
        int merged = 0, in_two = 0;
        model_open_for(&m, Case{.pattern = c.pattern, .R = c.R, .L = 4, .C = 32, .T = 7});
        const Steps *steps = &m.plan.backward;
        for (int group = 1; group <= 2; group++) {
            m.mesh.group = group;
            for (int i = 0; i < steps->count; i++) {
                const Step *s = &steps->at[i];
                if (s->kind != STEP_BACK || !back_merge(&m, s, steps->at + steps->count)) continue;
                if (group == 1) merged++;
                else in_two++;
            }
        }
        m.mesh.group = 1;
        check(merged == c.merged && in_two == 0,
              "%s R %d: %d of 8 sub-blocks add to the merged gradient, expected %d; %d where ranks "
              "are in two processes, expected 0", c.pattern, c.R, merged, c.merged, in_two);
        gpt2_free(&m);
    }
}

// Gradient norm, AdamW, and small sums over the flat block of a model.
static void test_update(void) {
    GPT2 m;
    Case c = {.pattern = "p", .R = 2, .L = 2, .C = 32, .T = 7};
    model_open_for(&m, c);
    size_t n = m.flat_size;
    Values g = random_values(n, 0.5), w = random_values(n), m1 = random_values(n, 0.1);
    Values m2 = random_values(n, 0.1);
    for (float &v : m2) v = fabsf(v);
    Device<float> dg(g);
    Device<double> partial((size_t)P_COUNT * NORM_BLOCKS), squares(P_COUNT);
    gradients_square(squares.at, partial.at, dg.at, m.flat, norm_slices(&m));
    double worst = 0;
    Values found = squares.get();
    for (int p = 0; p < P_COUNT; p++) {
        double sum = 0;
        for (size_t i = m.flat.begin[p]; i < m.flat.begin[p] + m.flat.size[p]; i++) {
            sum += (double)g[i] * (double)g[i];
        }
        // Some tensors are empty.
        worst = worse(worst, fabs((double)found[p] - sum) / (sum > 0 ? sum : 1));
    }
    check_error("squares of each tensor's gradient,", "relative", worst, 1e-6);

    // AdamW of all of it, and of a part, as with -z 1.
    for (size_t first = 0; first < n; first += n / 2 / 16 * 16 + 16) {
        size_t count = first ? n - first : n;
        Values part_w(w.begin() + first, w.end()), part1(m1.begin() + first, m1.end());
        Values part2(m2.begin() + first, m2.end());
        Device<float> master(part_w), d1(part1), d2(part2);
        Device<real> params(n);
        if (sizeof(real) == 4) params.put(w);
        float *own = sizeof(real) == 4 ? (float *)(void *)params.at + first : master.at;
        AdamWStep h = {0.01f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.5f, 2.0f, 3.0f};
        LAUNCH(adamw_kernel, (unsigned)ceil_div(count, (size_t)BLOCK * PACK), BLOCK, 0, gpu.stream,
               params.at, own, d1.at, d2.at, dg.at, first, count, m.flat, h);
        Values found_params = params.get(), found1 = d1.get(), found2 = d2.get();
        Values found_w = master.get(), mine;
        Doubles want_w(count), want1(count), want2(count);
        int rounded = 1;
        for (size_t i = 0; i < count; i++) {
            double d = (double)g[first + i] * 0.5, decay = 0;
            for (int p = 0; p < P_COUNT; p++) {
                int inside = first + i >= m.flat.begin[p] &&
                             first + i < m.flat.begin[p] + m.flat.size[p];
                if (inside && m.whole[p].decay) decay = 0.1;
            }
            want1[i] = 0.9 * (double)part1[i] + 0.1 * d;
            want2[i] = 0.95 * (double)part2[i] + 0.05 * d * d;
            want_w[i] = (double)part_w[i] - 0.01 * (want1[i] * 2 / (sqrt(want2[i] * 3) + 1e-8) +
                                                    decay * (double)part_w[i]);
            if (sizeof(real) == 4) {
                mine.push_back(found_params[first + i]);
            } else {
                mine.push_back(found_w[i]);
                rounded &= found_params[first + i] == (float)(real)found_w[i];
            }
        }
        for (size_t i = 0; i < first; i++) {
            rounded &= sizeof(real) == 4 ? found_params[i] == w[i] : isnan(found_params[i]);
        }
        worst = worse(element_error(mine, want_w),
                      worse(element_error(found1, want1), element_error(found2, want2)));
        check_kernel(first ? "adamw of a replica's part" : "adamw", worst, 1, 2e-6);
        check(rounded, "adamw: weights are the master's, rounded, and others stay");
    }

    size_t stride = 104, length = 99;
    Values x = random_values(3 * stride);
    Device<float> dx(x);
    LAUNCH(copies_sum_kernel, 1, BLOCK, 0, gpu.stream, dx.at, 3, stride, length);
    Values sum = dx.get();
    int exact = 1;
    for (size_t i = 0; i < 3 * stride; i++) {
        exact &= sum[i] == (i < length ? x[i] + x[stride + i] + x[2 * stride + i] : x[i]);
    }
    check(exact, "copies_sum: into the first, and nothing else");

    Values attprojb = random_values(2 * 32), fcprojb = random_values(2 * 32);
    Device<real> da(attprojb), df(fcprojb);
    Device<float> sums(4 * 32);
    Device<int> from(4);
    static const int begins[4] = {0, 0, 2, 1};
    CUDA_CHECK(cudaMemcpy(from.at, begins, sizeof begins, cudaMemcpyHostToDevice));
    CUDA_CHECK(cudaDeviceSynchronize());
    LAUNCH(bias_sums_kernel, 4, BLOCK, 0, gpu.stream, sums.at, da.at, df.at, from.at, 32);
    Values biases = sums.get();
    worst = 0;
    for (int k = 0; k < 4; k++) {
        for (int i = 0; i < 32; i++) {
            double want = 0;
            for (int j = begins[k]; j <= k; j++) {
                want += (double)(j % 2 ? fcprojb : attprojb)[j / 2 * 32 + i];
            }
            worst = worse(worst, fabs((double)biases[k * 32 + i] - want));
        }
    }
    check_error("bias_sums", "of sub-blocks 0, 0-1, 2, 1-3", worst, 1e-6);
    gpt2_free(&m);
}

static void test_kernels(void) {
    test_merge();
    test_norm_backward();
    test_bias_backward();
    test_embedding();
    test_gelu();
    test_classifier();
    test_classifier_nan();
    test_attention_token();
    test_loss_mean();
    test_attention();
    test_matmul();
    test_back_merge();
    test_matmul_fails_late();
    test_update();
}

// ----------------------------------------------------------------------------
// planted faults: the suite is seen to fail on them

#ifdef PLANTED_FAULTS
static void fault_set(int fault) {
    planted_fault = fault;
    LAUNCH(fault_kernel, 1, 1, 0, gpu.stream, fault);
    CUDA_CHECK(cudaDeviceSynchronize());
}

static void test_planted_fault(int fault, const char *name, void (*test)(void)) {
    fault_set(fault);
    expect_failure = 1;
    test();
    int found = expect_failure - 1;
    expect_failure = 0;
    fault_set(FAULT_NONE);
    if (!found && fault == FAULT_NO_BARRIER_IN_ATTENTION && !emulated) {
        skip(name, "this race did not show on this GPU; it does on the stand-in");
        return;
    }
    check(found > 0, "planted fault, %s: %d checks fail, as they must", name, found);
}

static void fault_test_ranks(void) {
    compare(Case{.pattern = "t", .L = 1, .C = 32, .T = 5});
    compare(Case{.pattern = "sp", .L = 2, .C = 32, .T = 5});
}

static void fault_test_attention_seeds(void) {
    for (int seed = 1; seed <= 4; seed++) {
        emu_seed(seed);
        check(attention_error(4, 300, 4, 32) <= TOLERANCE_ATTENTION, "attention");
    }
    emu_seed(1);
}

static void fault_test_causal(void) {
    compare(Case{.pattern = "t", .L = 1, .C = 32, .T = 5});
}

int main(void) {
    gpu_open(0);
    test_planted_fault(FAULT_BIAS_PER_RANK, "output bias added by every rank", fault_test_ranks);
    test_planted_fault(FAULT_NO_BARRIER_IN_ATTENTION, "no barrier before a tile of attention",
                       fault_test_attention_seeds);
#ifndef PRECISION_FP32
    test_planted_fault(FAULT_WRONG_FRAGMENT, "a wrong register of mma.sync", test_attention);
#endif
    test_planted_fault(FAULT_GRADIENTS_OF_BEFORE, "gradients of the pattern before",
                       test_patterns_in_turn);
    test_planted_fault(FAULT_CAUSAL_OFF_BY_ONE, "a query that sees the key after it, in attention",
                       test_attention);
    test_planted_fault(FAULT_CAUSAL_OFF_BY_ONE, "a query that sees the key after it, in the model",
                       fault_test_causal);
    test_planted_fault(FAULT_BIAS_WITHOUT_MATCH, "a bias that misses the teacher",
                       test_distillation);
    check(attention_error(1, 65, 1, 16) <= TOLERANCE_ATTENTION, "the faults are gone");
    gpu_close();
    printf("faults_gpt2cu: %d passed, %d failed, %d skipped\n", passed, failed, skipped);
    return failed > 0;
}
#else // the tests themselves

int main(void) {
    char folder[] = "/tmp/test_gpt2cu_XXXXXX", command[64];
    if (!mkdtemp(folder)) fail("%s: %s", folder, strerror(errno));
    gpu_open(0);
    test_kernels();
    test_patterns();
    test_variants();
    test_shapes();
    test_recompute();
    test_reading();
    test_patterns_in_turn();
    test_distillation();
    test_training();
    test_initial_weights();
    test_repeats();
    test_checkpoints(folder);
    test_fixtures(TOLERANCE_TRAINING, sizeof(real) == sizeof(float) ? 1e-4 : 3e-2);
    gpu_close();
    snprintf(command, sizeof command, "rm -r %s", folder);
    if (system(command)) printf("(%s is left behind)\n", folder);
    printf("test_gpt2cu: %d passed, %d failed, %d skipped\n", passed, failed, skipped);
    return failed > 0;
}
#endif
