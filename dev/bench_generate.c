/*
Speed of generating text on the CPU, beside what this machine can do.

  make dev/bench_generate && dev/bench_generate      GPT-2 124M, a window of 1024 tokens, R 1
  dev/bench_generate d24 1024 2                      another model, window and R (folded)

Every new token reads all weights once, so the ceiling is memory: a plain parallel sum over an array
of 512 MiB, before and after each token. The share is the median over tokens. A pass of
several tokens reads the weights once too, as long as there are few. A prompt is read in large
products, whose ceiling is the forward pass of training. The trainer's own functions are timed: this
file includes train_gpt2.c.
*/
#define NO_MAIN
#include "../train_gpt2.c"

enum { ROUNDS = 41, SUMMED = 512 << 20 };

static double median(double *x, int n) {
    qsort(x, (size_t)n, sizeof *x, compare_ascending);
    return x[n / 2];
}

// Seconds that all threads together take to add up SUMMED bytes.
static double sum_seconds(const float *x) {
    size_t n = SUMMED / sizeof *x, step = 64;
    volatile float sink = 0;
    double start = seconds_now();
    float total = 0;
    #pragma omp parallel for schedule(static) reduction(+ : total)
    for (size_t i = 0; i < n; i += step) {
        float sum = 0;
        #pragma omp simd reduction(+ : sum)
        for (size_t j = 0; j < step; j++) sum += x[i + j];
        total += sum;
    }
    sink = total;
    (void)sink;
    return seconds_now() - start;
}

// Bytes of the matrices that a pass over few tokens reads: the blocks', and wte for the head.
static double weight_bytes(const GPT2 *m) {
    size_t n = 0;
    for (int p = 0; p < P_COUNT; p++) {
        if (m->local[p].cols > 1 && p != P_wpe) n += spec_size(&m->local[p]);
    }
    return (double)n * (m->params.bf16[P_wte] ? sizeof(uint16_t) : sizeof(real));
}

static void report_tokens(GPT2 *m, const int32_t *text, int n, int past, const float *summed) {
    double seconds[ROUNDS], shares[ROUNDS];
    gpt2_read(m, text, past, 0, 0);
    for (int i = 0; i < ROUNDS; i++) {
        double sum = sum_seconds(summed) / 2, start = seconds_now();
        gpt2_read(m, text, n, past, n);
        seconds[i] = seconds_now() - start;
        sum += sum_seconds(summed) / 2;
        shares[i] = weight_bytes(m) / seconds[i] / (SUMMED / sum);
    }
    double s = median(seconds, ROUNDS);
    printf("%5d tokens after %4d   %8.2f ms   %6.1f GB/s of weights   %5.1f%% of a sum\n", n, past,
           s * 1e3, weight_bytes(m) / s * 1e-9, 100 * median(shares, ROUNDS));
}

int main(int argc, char **argv) {
    GPT2 m, training;
    GPT2Config c;
    const char *name = argc > 1 ? argv[1] : "d12";
    long T = argc > 2 ? strtol(argv[2], NULL, 10) : 1024;
    long R = argc > 3 ? strtol(argv[3], NULL, 10) : 1;
    if (T < 64 || T > 1 << 16 || !config_parse(&c, name, GPT2_V, (int)T) || R < 1 || c.NH % R) {
        fail("expected d12, d24, d36, d48 or LxHxC, a window of at least 64, and R");
    }
    c.R = (int)R;
    Mesh mesh = mesh_make(1, 0, c.R, c.R);
    float *summed = ALLOC(float, SUMMED / sizeof(float), "sum");
    int32_t *text = ALLOC(int32_t, (size_t)T, "text");
    for (int i = 0; i < T; i++) text[i] = (int32_t)(random_bits(4, 0, 0, (uint64_t)i) % 50000);
    printf("%s, window %ld, R %ld, %d threads; a sum reads %.1f GB/s\n", name, T, R,
           omp_get_max_threads(), SUMMED / sum_seconds(summed) * 1e-9);
    for (int half = 1; half >= 0; half--) {
        gpt2_create(&m, &c, mesh, 1, (int)T, half ? FOR_SAMPLES | IN_BF16 : FOR_SAMPLES);
        gpt2_init_weights(&m, WEIGHTS_GPT2, 1);
        printf("\nmatrices in %s\n", half ? "bf16 (-w bf16)" : "fp32");
        const int tokens[] = {1, 2, 5, 8};
        for (int i = 0; i < 4; i++) report_tokens(&m, text, tokens[i], 32, summed);
        report_tokens(&m, text, 1, (int)T - 1, summed);
        if (half) gpt2_free(&m);
    }
    printf("memory: parameters %.1f MiB, keys and values %.1f MiB, rest of a pass %.1f MiB\n",
           (double)(param_count(m.local) * sizeof(real)) / (1 << 20),
           2.0 * c.L * c.C * (double)T * sizeof(real) / (1 << 20),
           ((double)activations_bytes(&m) - 2.0 * c.L * c.C * (double)T * sizeof(real)) /
               (1 << 20));
    int prompt = (int)(T < 512 ? T : 512);
    gpt2_create(&training, &c, mesh, 1, prompt, FOR_TRAINING);
    gpt2_init_weights(&training, WEIGHTS_GPT2, 1);
    double reading[7], forward[7], ratios[7];
    // The head apart: a prompt scores one token, training all of them.
    double head = 2.0 * c.V * c.C, blocks = 24.0 * c.L * c.C * c.C;
    for (int i = 0; i < 7; i++) {
        double start = seconds_now();
        gpt2_read(&m, text, prompt, 0, 1);
        reading[i] = seconds_now() - start;
        start = seconds_now();
        gpt2_forward(&training, text, NULL, 1, prompt);
        forward[i] = seconds_now() - start;
        ratios[i] = ((blocks * prompt + head) / reading[i]) /
                    ((blocks + head) * prompt / forward[i]);
    }
    double s = median(reading, 7);
    printf("prompt of %d        %8.1f ms   %6.1f GFLOP/s, %.2f of training's forward pass\n",
           prompt, s * 1e3, (blocks * prompt + head) / s * 1e-9, median(ratios, 7));
    gpt2_free(&m);
    gpt2_free(&training);
    free(summed);
    free(text);
    return 0;
}
