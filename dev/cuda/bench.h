/*
What the benchmarks of CUDA kernels in this folder share. Each is a short program that includes this
file, and by it the trainer, whose own functions it runs:

  make dev/cuda/gelu && dev/cuda/gelu            on a GPU: GPT-2 124M's shapes, B 16, T 1024
  dev/cuda/gelu 64 512                           another B and T
  make dev/cuda/gelu_emu && dev/cuda/gelu_emu    on a CPU, by dev/emu: a tiny shape, not timed
  dev/cuda/all                                   all of them: see there

Each kernel is first compared with a plain loop in double on the host; a wrong one makes the exit
status 1. Then it is timed, beside two ceilings measured in the same run: a large copy, of which
bytes read and written both count, and a large square product by cuBLASLt. Every kernel is one line
of columns between blanks, every other line begins with #:

  verdict      ok, or FAILED if error > tolerance
  kernel
  shape        sizes joined by x; what the benchmark says of them
  ms           median of many launches; here and in the next columns "-" where nothing was timed
  rate unit    GB/s of the bytes that have to move, each once; TFLOP/s where arithmetic takes longer
  share        of the ceiling that binds, in percent
  error tolerance
  note         anything

gelu_emu_traffic (-DEMU_TRAFFIC; see dev/emu/traffic.h) also counts what a kernel moves that
computes little, in one more line:

  verdict kernel shape "traffic" must ... asked ... (at most ...) distinct ... wide ...: why

"must" are the bytes that the rate is made of; "asked" what threads asked for, "distinct" the
bytes among them, "wide" the share of accesses of 16 bytes. FAILED if distinct differs from
must by more than 1%, or asked exceeds it by more than 5%, beside what the benchmark says is
read again from cache, and why.
*/
#define NO_MAIN
#include "../../train_gpt2.cu"
#include <algorithm>
#include <string>
#include <vector>
#ifdef EMU_TRAFFIC
#include "../emu/traffic.h"
#endif

#ifdef PRECISION_FP32
static constexpr double TOLERANCE = 2e-5;
#else
static constexpr double TOLERANCE = 4e-3; // one rounding to bf16 is up to 2^-8
#endif
#ifdef CUDA_EMULATED
static constexpr int emulated = 1;
#else
static constexpr int emulated = 0;
#endif

// ----------------------------------------------------------------------------
// a run: its shape, its counts

// GPT-2 124M, or on the stand-in something small with no size a power of two.
typedef struct { int B, T, C, NH, V; } Shape;

static const char *program;
static int passed, failed, skipped;
// On a GPU; on the stand-in with BENCH_TIME=1, which shows that it runs.
static int timing;
static double peak_bytes, peak_flops;    // per second; 0: not measured
static unsigned long long *clock_memory; // of the kernels that hold the stream back
static void *matmul_workspace;

// printf into a string
__attribute__((format(printf, 1, 2))) static std::string text(const char *format, ...) {
    char out[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(out, sizeof out, format, arguments);
    va_end(arguments);
    return out;
}

static int argument_int(const char *name, const char *argument, int low, int high) {
    char *end;
    long value = strtol(argument, &end, 10);
    if (*end || end == argument || value < low || value > high) {
        fail("%s: '%s': expected a number from %d to %d", name, argument, low, high);
    }
    return (int)value;
}

static Shape shape_parse(int argc, char **argv) {
    Shape s = {.B = 16, .T = 1024, .C = 768, .NH = 12, .V = GPT2_V};
    if (emulated) s = Shape{.B = 2, .T = 40, .C = 384, .NH = 6, .V = 1003};
    if (argc > 1) s.B = argument_int("B", argv[1], 1, 4096);
    if (argc > 2) s.T = argument_int("T", argv[2], 1, 65536);
    if ((size_t)s.B * s.T > 1 << 22) fail("B %d, T %d: more than 4 million tokens", s.B, s.T);
    return s;
}

static void bench_skip(const char *name, const char *why) {
    printf("skip   %-22s %s\n", name, why);
    skipped++;
}

// Prints the last line; what it returns is main's.
static int bench_close(void) {
    printf("# %s %s: %d passed, %d failed, %d skipped\n", program, REAL_NAME, passed, failed,
           skipped);
    gpu_close();
    return failed > 0;
}

// ----------------------------------------------------------------------------
// operands: in as many sets as exceed the L2 cache several times, which the launches take in turn

// How many sets, of which a launch moves `bytes` each. The check uses set 0.
static int sets_for(double bytes) {
    double several = 4.0 * gpu.properties.l2CacheSize;
    return !timing || bytes > several ? 1 : (int)ceil(several / bytes);
}

// Normal numbers times scale. A stretch of them is drawn and repeated; its length, a prime,
// gives rows different parts of it.
template <typename T> static void fill_random(T *to, size_t n, double scale) {
    const size_t drawn = n < 1048573 ? n : 1048573;
    static uint64_t draws;
    std::vector<T> values(drawn);
    draws++;
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < drawn; i++)
        values[i] = (T)(float)(scale * random_normal(random_bits(7, sizeof(T), draws, i)));
    CUDA_CHECK(cudaMemcpy(to, values.data(), drawn * sizeof(T), cudaMemcpyHostToDevice));
    for (size_t done = drawn, here; done < n; done += here) {
        here = done < n - done ? done : n - done;
        CUDA_CHECK(cudaMemcpy(to + done, to, here * sizeof(T), cudaMemcpyDeviceToDevice));
    }
    CUDA_CHECK(cudaDeviceSynchronize());
}

// `count` sets of n elements on the GPU.
template <typename T> struct Sets {
    size_t n, stride; // sets begin at multiples of 256 bytes
    int count;
    T *at;
    // Scale 0: NaN.
    Sets(size_t n, int count, double scale)
        : n(n), stride(ceil_div(n, (size_t)256) * 256), count(count) {
        CUDA_CHECK(cudaMalloc((void **)&at, stride * count * sizeof(T)));
        CUDA_CHECK(cudaMemset(at, 0xFF, stride * count * sizeof(T)));
        CUDA_CHECK(cudaDeviceSynchronize());
        if (scale != 0) fill_random(at, stride * count, scale);
    }
    Sets(const Sets &) = delete;
    Sets &operator=(const Sets &) = delete;
    ~Sets() { cudaFree(at); }
    T *operator[](int set) const { return at + set * stride; }
};

// From the GPU's memory, when all launches are done: n pieces of `width` elements, which begin
// `step` apart.
template <typename T>
static std::vector<double> fetch(const T *from, size_t n, size_t step = 1, size_t width = 1) {
    std::vector<T> raw(n * width);
    std::vector<double> out(n * width);
    size_t piece = width * sizeof(T);
    CUDA_CHECK(cudaDeviceSynchronize());
    if (step == width) CUDA_CHECK(cudaMemcpy(raw.data(), from, n * piece, cudaMemcpyDeviceToHost));
    else
        CUDA_CHECK(cudaMemcpy2D(raw.data(), piece, from, step * sizeof(T), piece, n,
                                cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < out.size(); i++) out[i] = (double)(float)raw[i];
    return out;
}

// Which of n rows the i-th of `samples` is: the first, the last, and others between them.
static int sample_of(int i, int samples, int n) {
    return samples < 2 ? 0 : (int)((long long)i * (n - 1) / (samples - 1));
}

// The larger of `worst` and the difference in units of `scale`; NaN is the largest.
static double larger(double worst, double found, double expected, double scale) {
    double error = fabs(found - expected) / scale;
    return error > worst || error != error ? error : worst;
}

// GELU in double, as GPT-2 has it, and its derivative.
static double gelu_plain(double x) {
    return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}
static double gelu_slope_plain(double x) {
    double scale = sqrt(2 / M_PI), t = tanh(scale * (x + 0.044715 * x * x * x));
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * scale * (1 + 3 * 0.044715 * x * x);
}

// ----------------------------------------------------------------------------
// timing

static const double seconds_per_kernel = 0.4;
enum { SAMPLES_MIN = 7, SAMPLES_MAX = 101, BATCH_MAX = 100 };

// Seconds of each of `count` launches, by events around all of them. The GPU is held back for
// `hold` seconds while the host queues them, so that the gaps between them are the GPU's own.
template <typename Launch>
static double batch_seconds(int count, int sets, double hold, Launch launch) {
    static cudaEvent_t begin, end;
    static int turn;
    float ms;
    if (!begin) CUDA_CHECK(cudaEventCreate(&begin));
    if (!end) CUDA_CHECK(cudaEventCreate(&end));
    LAUNCH(network_begin_kernel, 1, 1, 0, gpu.stream, clock_memory);
    LAUNCH(network_wait_kernel, 1, 1, 0, gpu.stream, clock_memory,
           (unsigned long long)(1e9 * hold));
    CUDA_CHECK(cudaEventRecord(begin, gpu.stream));
    for (int i = 0; i < count; i++) launch(turn++ % sets);
    CUDA_CHECK(cudaEventRecord(end, gpu.stream));
    CUDA_CHECK(cudaEventSynchronize(end));
    CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
    return 1e-3 * ms / count;
}

// Median seconds of launch(set). A sample is a batch of a millisecond or more, long
// beside the resolution of events.
template <typename Launch> static double median_seconds(int sets, double budget, Launch launch) {
    double samples[SAMPLES_MAX], began = seconds_now();
    int n = 0;
    for (int i = 0; i < 3; i++) launch(i % sets); // warms up: modules are loaded, plans made
    double queued = (seconds_now() - began) / 3;
    CUDA_CHECK(cudaStreamSynchronize(gpu.stream));
    began = seconds_now();
    for (int i = 0; i < 3; i++) launch(i % sets);
    queued = fmin(queued, (seconds_now() - began) / 3);
    CUDA_CHECK(cudaStreamSynchronize(gpu.stream));
    double once = (seconds_now() - began) / 3;
    int batch = once > 1e-3 ? 1 : (int)fmin(BATCH_MAX, ceil(1e-3 / once));
    while (n < SAMPLES_MIN || (n < SAMPLES_MAX && seconds_now() - began < budget)) {
        samples[n++] = batch_seconds(batch, sets, 1.5 * queued * batch, launch);
    }
    std::sort(samples, samples + n);
    return samples[n / 2];
}

// ----------------------------------------------------------------------------
// rows

struct Row {
    std::string kernel, shape;
    // That a launch has to move, each byte once, and to compute. With flops 0 bytes alone count.
    double bytes = 0, flops = 0;
    double error = 0, tolerance = TOLERANCE;
    double again = 0;     // bytes that are meant to be read once more, from cache
    const char *why = ""; // they are
    double scratch = 0;   // bytes at most that are written and then read besides, and stay in cache
};

static void row_print(const Row &row, double seconds, const std::string &note) {
    int good = row.error <= row.tolerance; // NaN is not
    good ? passed++ : failed++;
    printf("%-6s %-22s %-18s ", good ? "ok" : "FAILED", row.kernel.c_str(), row.shape.c_str());
    if (seconds > 0) {
        double moving = peak_bytes > 0 ? row.bytes / peak_bytes : 0;
        double computing = peak_flops > 0 ? row.flops / peak_flops : 0;
        int computes = computing > moving;
        printf("%9.4f %8.1f %-7s ", 1e3 * seconds,
               computes ? row.flops / seconds * 1e-12 : row.bytes / seconds * 1e-9,
               computes ? "TFLOP/s" : "GB/s");
        if (moving + computing > 0) printf("%6.1f", 100 * fmax(moving, computing) / seconds);
        else printf("%6s", "-");
    } else {
        printf("%9s %8s %-7s %6s", "-", "-", "-", "-");
    }
    printf(" %8.1e %8.1e%s%s\n", row.error, row.tolerance, note.empty() ? "" : "  ", note.c_str());
    fflush(stdout);
}

#ifdef EMU_TRAFFIC
template <typename Launch> static void traffic_check(const Row &row, Launch launch) {
    if (row.flops > 0) return;
    CUDA_CHECK(cudaDeviceSynchronize());
    emu_traffic_begin();
    launch(0);
    CUDA_CHECK(cudaDeviceSynchronize());
    EmuTraffic t = emu_traffic_end();
    double asked = (double)(t.reads + t.writes), distinct = (double)(t.read_once + t.written_once);
    double most = 1.05 * (row.bytes + row.again + row.scratch);
    int good = asked <= most && distinct >= 0.99 * row.bytes &&
               distinct <= 1.01 * row.bytes + row.scratch;
    good ? passed++ : failed++;
    printf("%-6s %-22s %-18s traffic must %.0f asked %.0f (at most %.0f) distinct %.0f wide "
           "%.1f%%%s%s\n",
           good ? "ok" : "FAILED", row.kernel.c_str(), row.shape.c_str(), row.bytes, asked, most,
           distinct, 100.0 * t.accesses_16 / t.accesses, row.again > 0 ? ": " : "", row.why);
}
#else
template <typename Launch> static void traffic_check(const Row &, Launch) {}
#endif

// Times launch(set), which has been checked with set 0, and prints its row.
template <typename Launch>
static double bench(const Row &row, int sets, Launch launch, const std::string &note = "") {
    traffic_check(row, launch);
    double seconds = timing ? median_seconds(sets, seconds_per_kernel, launch) : 0;
    row_print(row, seconds, note);
    return seconds;
}

// ----------------------------------------------------------------------------
// ceilings

static void ceilings_measure(void) {
    size_t n = emulated ? 4 << 20 : 1 << 30;
    int side = emulated ? 64 : 8192;
    {
        Sets<char> from(n, 1, 0), to(n, 1, 0);
        peak_bytes = 2.0 * n / median_seconds(1, seconds_per_kernel, [&](int) {
            CUDA_CHECK(cudaMemcpyAsync(to.at, from.at, n, cudaMemcpyDeviceToDevice, gpu.stream));
        });
    }
    Sets<real> a((size_t)side * side, 1, 1), b((size_t)side * side, 1, 1),
        out((size_t)side * side, 1, 0);
    Matmul m = {};
    m.out = out.at, m.a = a.at, m.b = b.at, m.b_transposed = 1;
    m.M = m.N = m.K = side, m.batch = 1;
    peak_flops = 2.0 * side * side * side /
                 median_seconds(1, seconds_per_kernel, [&](int) { matmul(m, matmul_workspace); });
}

// What every main begins with. Without `ceilings` no shares are printed.
static void bench_open(const char *name, int gpu_index, int ceilings) {
    int gpus = 0;
    program = name;
    cudaError_t status = cudaGetDeviceCount(&gpus);
    if (status != cudaSuccess || gpus < 1) {
        fail("no GPU that CUDA can use: %s; make dev/cuda/%s_emu builds what runs on a CPU",
             cudaGetErrorString(status), name);
    }
    gpu_open(gpu_index);
    timing = !emulated || getenv("BENCH_TIME");
    CUDA_CHECK(cudaMalloc((void **)&clock_memory, sizeof *clock_memory));
    CUDA_CHECK(cudaMalloc(&matmul_workspace, MATMUL_WORKSPACE));
    if (timing && ceilings) ceilings_measure();
    printf("# %s %s on %s", name, REAL_NAME, gpu.properties.name);
    if (peak_bytes > 0)
        printf(": copy %.1f GB/s, product %.1f TFLOP/s", 1e-9 * peak_bytes, 1e-12 * peak_flops);
    printf("\n# verdict kernel shape ms rate unit share error tolerance note\n");
}
