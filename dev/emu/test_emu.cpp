/*
Tests of the stand-in for CUDA in this folder: that it computes what CUDA would, and that it finds
the mistakes it is there to find. Most run in either build; what only one of them can see says so.

  F="-x c++ -std=c++20 -O1 -g -Wall -Wextra -Wno-unknown-pragmas -Idev/emu"
  g++ $F dev/emu/test_emu.cpp dev/emu/emu.cpp -o test_emu && ./test_emu
  g++ $F -fsanitize=address dev/emu/test_emu.cpp dev/emu/emu.cpp -o test_emu && ./test_emu
  mpicxx $F -DUSE_MPI dev/emu/test_emu.cpp dev/emu/emu.cpp -o test_emu && mpirun -n 3 ./test_emu

The last line is "test_emu: N passed, N failed, N skipped"; the exit status is 1 if anything failed.
*/
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <cublasLt.h>
#include <nccl.h>
#include <stdarg.h>
#include <sys/wait.h>
#include <unistd.h>
#include <algorithm>
#include <chrono>
#include <string>
#include <vector>

static const char *program;
static int passed, failed, skipped, process, processes = 1;

static void check(bool good, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void check(bool good, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    char text[300];
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (!good || process == 0) printf("%s %s\n", good ? "ok    " : "FAILED", text);
    good ? passed++ : failed++;
}
[[maybe_unused]] static void skip(const char *what, const char *why) {
    if (process == 0) printf("skip   %s: %s\n", what, why);
    skipped++;
}

#define CUDA_CHECK(call)                                                  \
    do {                                                                  \
        cudaError_t code_ = (call);                                       \
        if (code_ != cudaSuccess) {                                       \
            fflush(stdout);                                               \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, \
                    cudaGetErrorString(code_));                           \
            exit(1);                                                      \
        }                                                                 \
    } while (0)
// A launch whose error is looked at by the test.
#define TRY_LAUNCH(kernel, grid, block, shared, on, ...)                              \
    (emu_launch(#kernel, kernel, grid, block, shared, on __VA_OPT__(, ) __VA_ARGS__), \
     cudaGetLastError())

// An array on the device with its elements sent and fetched by plain copies.
template <typename T> struct Array {
    T *at;
    size_t n;
    explicit Array(size_t n) : n(n) { CUDA_CHECK(cudaMalloc(&at, n * sizeof(T))); }
    explicit Array(const std::vector<T> &x) : Array(x.size()) { set(x); }
    Array(const Array &) = delete;
    ~Array() { CUDA_CHECK(cudaFree(at)); }
    void set(const std::vector<T> &x) {
        CUDA_CHECK(cudaMemcpy(at, x.data(), n * sizeof(T), cudaMemcpyHostToDevice));
        CUDA_CHECK(cudaDeviceSynchronize());
    }
    std::vector<T> get() const {
        std::vector<T> x(n);
        CUDA_CHECK(cudaMemcpy(x.data(), at, n * sizeof(T), cudaMemcpyDeviceToHost));
        return x;
    }
};

enum { SEEDS = 40, FULL = -1 };
static const unsigned FULL_MASK = 0xFFFFFFFFu;

// ----------------------------------------------------------------------------
// launches

__global__ void index_kernel(uint4 *out, int *order, int *count) {
    unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    unsigned i = block * blockDim.x * blockDim.y * blockDim.z + thread;
    out[i] = make_uint4(blockIdx.x + 100 * blockIdx.y + 10000 * blockIdx.z, threadIdx.x,
                        threadIdx.y, threadIdx.z);
    order[atomicAdd(count, 1)] = (int)i;
}
static std::vector<int> index_order(uint64_t seed, bool *right) {
    dim3 grid(3, 2, 4), block(5, 7, 2);
    int n = 24 * 70;
    Array<uint4> out((size_t)n);
    Array<int> order((size_t)n), count(1);
    CUDA_CHECK(cudaMemset(count.at, 0, sizeof(int)));
    emu_seed(seed);
    LAUNCH(index_kernel, grid, block, 0, 0, out.at, order.at, count.at);
    std::vector<uint4> got = out.get();
    *right = true;
    for (unsigned i = 0; i < (unsigned)n; i++) {
        unsigned b = i / 70, t = i % 70;
        uint4 want = make_uint4(b % 3 + 100 * (b / 3 % 2) + 10000 * (b / 6), t % 5, t / 5 % 7,
                                t / 35);
        *right &= !memcmp(&got[i], &want, sizeof want);
    }
    return order.get();
}

__global__ void write_kernel(float *out, float value) { out[threadIdx.x] = value; }
__global__ void nothing_kernel() {}
__global__ void shared_kernel(float *out, int n) {
    SHARED_DYNAMIC(float, s);
    if (threadIdx.x == 0) {
        int nans = 0;
        for (int i = 0; i < n; i++) nans += s[i] != s[i];
        *out = (float)nans;
        for (int i = 0; i < n; i++) s[i] = 1;
    }
}
template <int N> __global__ void static_shared_kernel(float *out) {
    __shared__ float s[N];
    *out = s[N - 1];
    s[N - 1] = 1;
}

static void test_launches() {
    bool right, right_too;
    std::vector<int> a = index_order(1, &right), b = index_order(2, &right_too);
    std::vector<int> again = index_order(1, &right_too), all = a;
    check(right, "every thread of a grid has its own indices");
    check(a != b && a == again, "the order of threads follows the seed");
    std::sort(all.begin(), all.end());
    bool once = true;
    for (int i = 0; i < (int)all.size(); i++) once &= all[(size_t)i] == i;
    check(once && !std::is_sorted(a.begin(), a.end()),
          "every thread runs once, in an order that is not its number's");

    Array<float> out(32);
    float value = 1;
    LAUNCH(write_kernel, 1, 32, 0, 0, out.at, value);
    value = 2;
    check(out.get()[31] == 1, "a kernel gets its arguments as they were at the launch");

    struct {
        const char *what;
        dim3 grid, block;
        size_t shared;
        cudaError_t want;
    } bad[] = {{"no threads", 1, dim3(0), 0, cudaErrorInvalidConfiguration},
               {"1025 threads", 1, 1025, 0, cudaErrorInvalidConfiguration},
               {"64 x 32 threads", 1, dim3(64, 32), 0, cudaErrorInvalidConfiguration},
               {"65 threads along z", 1, dim3(1, 1, 65), 0, cudaErrorInvalidConfiguration},
               {"no blocks", dim3(0), 32, 0, cudaErrorInvalidConfiguration},
               {"65536 blocks along y", dim3(1, 65536), 32, 0, cudaErrorInvalidConfiguration},
               {"49153 bytes of shared memory", 1, 32, 49153, cudaErrorInvalidValue}};
    for (auto &x : bad) {
        check(TRY_LAUNCH(nothing_kernel, x.grid, x.block, x.shared, 0) == x.want,
              "a launch with %s is refused", x.what);
    }
    float local = 0;
    check(TRY_LAUNCH(write_kernel, 1, 1, 0, 0, &local, 1.0f) == cudaErrorIllegalAddress,
          "a launch with a host pointer is refused");
    check(cudaGetLastError() == cudaSuccess, "an error is told once");
    check(TRY_LAUNCH(nothing_kernel, 1, 1024, 49152, 0) == cudaSuccess,
          "a launch at the limits is taken");

    int many = 100000;
    check(cudaFuncSetAttribute(shared_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               232449) == cudaErrorInvalidValue &&
              cudaGetLastError() == cudaErrorInvalidValue,
          "more shared memory than there is cannot be allowed");
    CUDA_CHECK(
        cudaFuncSetAttribute(shared_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, many));
    LAUNCH(shared_kernel, 3, 32, (size_t)many, 0, out.at, many / 4);
    check(out.get()[0] == (float)(many / 4),
          "dynamic shared memory is NaN at the start of each block");
    LAUNCH((static_shared_kernel<33>), 2, 1, 0, 0, out.at);
#ifdef EMU_ASAN
    skip("static shared memory is NaN at the start of each block",
         "ASan wants it left alone; build without -fsanitize=address");
#else
    float left = out.get()[0];
    check(left != left, "static shared memory is NaN at the start of each block");
#endif
}

// ----------------------------------------------------------------------------
// barriers

__global__ void reverse_kernel(float *x, int barrier) {
    __shared__ float s[128];
    s[threadIdx.x] = x[threadIdx.x];
    if (barrier) __syncthreads();
    x[threadIdx.x] = s[blockDim.x - 1 - threadIdx.x];
}
// Sums a block: inside each warp by shuffles, then over warps by way of shared memory.
__global__ void sum_kernel(float *out, const float *x, int barrier) {
    __shared__ float parts[32];
    float sum = x[threadIdx.x];
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(FULL_MASK, sum, step);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
    if (barrier) __syncthreads();
    sum = threadIdx.x % 32 < blockDim.x / 32 ? parts[threadIdx.x % 32] : 0;
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(FULL_MASK, sum, step);
    if (threadIdx.x == 33) *out = sum;
}
__global__ void predicate_kernel(int *out, int n) {
    int t = (int)threadIdx.x;
    if (t >= n) return; // the others do not wait for these
    int count = __syncthreads_count(t % 3 == 0), any = __syncthreads_or(t == 40);
    int none = __syncthreads_or(0);
    int all = __syncthreads_and(1), not_all = __syncthreads_and(t != 40);
    out[t] = count * 10000 + any * 1000 + none * 100 + all * 10 + not_all;
}
__global__ void spin_kernel(volatile int *flag, int *out) {
    if (threadIdx.x == 0) *flag = 1;
    else
        while (*flag != 1) __nanosleep(100);
    out[threadIdx.x] = *flag;
}

static void test_barriers() {
    int wrong_reverse[2] = {}, wrong_sum[2] = {};
    Array<float> out(1), x(128);
    for (int seed = 1; seed <= SEEDS; seed++) {
        for (int barrier = 0; barrier < 2; barrier++) {
            std::vector<float> values(128), back;
            float sum = 0;
            for (int i = 0; i < 128; i++) sum += values[(size_t)i] = (float)(i + 1000 * seed);
            x.set(values);
            emu_seed((uint64_t)seed);
            LAUNCH(sum_kernel, 1, 128, 0, 0, out.at, x.at, barrier);
            wrong_sum[barrier] += out.get()[0] != sum;
            LAUNCH(reverse_kernel, 1, 128, 0, 0, x.at, barrier);
            back = x.get();
            std::reverse(values.begin(), values.end());
            wrong_reverse[barrier] += values != back;
        }
    }
    check(wrong_reverse[1] == 0 && wrong_sum[1] == 0,
          "kernels with their barriers are right under %d seeds", SEEDS);
    check(wrong_reverse[0] > 0, "reversing without a barrier is wrong under %d of %d seeds",
          wrong_reverse[0], SEEDS);
    check(wrong_sum[0] > 0, "summing without a barrier is wrong under %d of %d seeds", wrong_sum[0],
          SEEDS);

    Array<int> counts(70);
    LAUNCH(predicate_kernel, 2, 100, 0, 0, counts.at, 70);
    std::vector<int> got = counts.get();
    check(std::count(got.begin(), got.end(), 24 * 10000 + 1010) == 70,
          "__syncthreads_count, _or and _and, when some have returned");

    Array<int> flag(1), seen(64);
    LAUNCH(spin_kernel, 1, 64, 0, 0, flag.at, seen.at);
    std::vector<int> all = seen.get();
    check(std::count(all.begin(), all.end(), 1) == 64, "threads that sleep let others go on");
}

// ----------------------------------------------------------------------------
// warps

template <typename T> __global__ void shuffle_kernel(T *out, int width, int by) {
    T mine = (T)(float)(100 + threadIdx.x);
    T *to = out + 4 * threadIdx.x;
    to[0] = __shfl_sync(FULL_MASK, mine, by, width);
    to[1] = __shfl_up_sync(FULL_MASK, mine, (unsigned)by, width);
    to[2] = __shfl_down_sync(FULL_MASK, mine, (unsigned)by, width);
    to[3] = __shfl_xor_sync(FULL_MASK, mine, by, width);
}
// By the definition: a lane takes the value of a lane of its own group of `width`, or keeps its
// own.
template <typename T> static bool shuffles_right() {
    Array<T> out(4 * 64);
    bool right = true;
    for (int width = 2; width <= 32; width *= 2) {
        for (int by = 0; by < width; by++) {
            LAUNCH((shuffle_kernel<T>), 1, 64, 0, 0, out.at, width, by);
            std::vector<T> got = out.get();
            for (int t = 0; t < 64; t++) {
                int group = t / width * width, within = t % width;
                int want[4] = {group + by, within >= by ? t - by : t,
                               within + by < width ? t + by : t, t ^ by};
                for (int i = 0; i < 4; i++)
                    right &= (float)got[(size_t)(4 * t + i)] == (float)(100 + want[i]);
            }
        }
    }
    return right;
}
__global__ void vote_kernel(unsigned *out) {
    unsigned lane = threadIdx.x % 32, *to = out + 8 * threadIdx.x;
    if (lane >= 24) return;
    to[0] = __ballot_sync(FULL_MASK, lane % 3 == 0); // of the lanes that are left
    to[1] = (unsigned)__any_sync(FULL_MASK, lane == 23) * 10 +
            (unsigned)__any_sync(FULL_MASK, lane == 24);
    to[2] = (unsigned)__all_sync(FULL_MASK, lane < 24) * 10 +
            (unsigned)__all_sync(FULL_MASK, lane < 23);
    to[3] = __activemask();
    // two groups of one warp, which do not wait for each other, take different numbers of steps
    unsigned mask = lane < 8 ? 0xFFu : 0xFFFF00u, sum = 0;
    for (unsigned i = 0; i < (lane < 8 ? 1u : 5u); i++) sum = __reduce_add_sync(mask, lane + i);
    to[4] = sum;
    to[5] = __reduce_max_sync(mask, lane);
    to[6] = __reduce_min_sync(mask, lane);
    __syncwarp();
    to[7] = (unsigned)__reduce_add_sync(FULL_MASK, -(int)lane);
}
struct Fragment {
    float at[5];
};
// Stands for an instruction that multiplies matrices held by a warp: each lane needs what others
// hold.
__global__ void share_kernel(float *out) {
    float sum = 0;
    for (int round = 0; round < 3; round++) {
        Fragment mine;
        for (int i = 0; i < 5; i++) mine.at[i] = (float)(threadIdx.x * 10 + (unsigned)(i * round));
        const Fragment *all = (const Fragment *)emu_warp_share(&mine, sizeof mine);
        for (int lane = 0; lane < 32; lane++) sum += all[lane].at[(lane + round) % 5];
    }
    out[threadIdx.x] = sum;
}

static void test_warps() {
    check(shuffles_right<int>(), "shuffles of int, every width and distance");
    check(shuffles_right<unsigned>() && shuffles_right<float>() && shuffles_right<double>() &&
              shuffles_right<long long>() && shuffles_right<__nv_bfloat16>(),
          "shuffles of unsigned, float, double, long long and bfloat16");
    Array<unsigned> votes(8 * 64);
    bool right = true;
    for (int seed = 1; seed <= SEEDS; seed++) {
        emu_seed((uint64_t)seed);
        LAUNCH(vote_kernel, 1, 64, 0, 0, votes.at);
        std::vector<unsigned> got = votes.get();
        for (unsigned t = 0; t < 64; t++) {
            const unsigned *v = &got[8 * t];
            if (t % 32 >= 24) continue;
            bool low = t % 32 < 8;
            right &= v[0] == 0x249249 && v[1] == 10 && v[2] == 10 && (v[3] & 0xFFFFFF) == 0xFFFFFF;
            right &= v[4] == (low ? 28u : 248u + 4 * 16) && v[5] == (low ? 7u : 23u) &&
                     v[6] == (low ? 0u : 8u) && v[7] == (unsigned)-276;
        }
    }
    check(right, "votes and reductions of whole warps and of groups in them, under %d seeds",
          SEEDS);
    Array<float> shares(64);
    LAUNCH(share_kernel, 1, 64, 0, 0, shares.at);
    std::vector<float> got = shares.get();
    right = true;
    for (int t = 0; t < 64; t++) {
        float want = 0;
        for (int round = 0; round < 3; round++) {
            for (int lane = 0; lane < 32; lane++)
                want += (float)((t / 32 * 32 + lane) * 10 + (lane + round) % 5 * round);
        }
        right &= got[(size_t)t] == want;
    }
    check(right, "emu_warp_share gives each lane what the whole warp brought");
}

// ----------------------------------------------------------------------------
// numbers

__global__ void arithmetic_kernel(float *out, int *counts, unsigned long long *wide) {
    atomicAdd(out, 0.5f);
    atomicMax(counts, (int)threadIdx.x);
    atomicAdd(counts + 1, 2);
    atomicInc((unsigned *)counts + 2, 9);
    if (atomicCAS(counts + 3, -1, (int)threadIdx.x) == -1) atomicExch(counts + 4, (int)threadIdx.x);
    atomicAdd(wide, 1ull << 40);
}
static float float_of(unsigned bits) { return __uint_as_float(bits); }

static void test_numbers() {
    int wrong = 0;
    for (unsigned bits = 0; bits < 65536; bits++) {
        __nv_bfloat16 x = __ushort_as_bfloat16((unsigned short)bits);
        float f = __bfloat162float(x);
        unsigned back = __bfloat16_as_ushort(__float2bfloat16_rn(f));
        wrong += f == f ? back != bits : !__hisnan(__float2bfloat16(f));
    }
    check(wrong == 0,
          "bfloat16 to float and back is the same, and NaN stays NaN: %d of 65536 wrong", wrong);
    struct {
        unsigned in, out;
        const char *what;
    } rounds[] = {{0x3F808000, 0x3F80, "a tie goes down to even"},
                  {0x3F818000, 0x3F82, "a tie goes up to even"},
                  {0x3F808001, 0x3F81, "above a tie goes up"},
                  {0xBF818000, 0xBF82, "a negative tie goes to even"},
                  {0x7F7FFFFF, 0x7F80, "the largest float becomes infinite"},
                  {0x00008000, 0x0000, "a subnormal tie goes to even"},
                  {0x7F800000, 0x7F80, "infinity stays"},
                  {0x7FFFFFFF, 0x7FFF, "a NaN does not overflow to zero"},
                  {0x7F800001, 0x7FFF, "a NaN with low bits only stays one"}};
    for (auto &r : rounds) {
        unsigned got = __bfloat16_as_ushort(__float2bfloat16_rn(float_of(r.in)));
        check(got == r.out, "bfloat16: %s: %08x gives %04x", r.what, r.in, got);
    }
    __nv_bfloat162 pair = __floats2bfloat162_rn(1.5f, -3.0f), product = __hmul2(pair, pair);
    __nv_bfloat162 sum = __hadd2(pair, pair);
    check(__low2float(product) == 2.25f && __high2float(product) == 9 && __low2float(sum) == 3 &&
              (float)(pair.x + pair.y) == -1.5f,
          "pairs of bfloat16");
    check(sizeof(__nv_bfloat16) == 2 && sizeof(__nv_bfloat162) == 4 && alignof(int4) == 16,
          "sizes and alignments");
    check(min(-1, 1u) == 1u && max(2, 3.5f) == 3.5f && min(1.0f, NAN) == 1.0f &&
              max(NAN, 1.0f) == 1.0f && min(3ll, 2) == 2,
          "min and max of mixed numbers");
    check(rsqrtf(4) == 0.5f && __expf(0) == 1 && __popc(0xF0F0) == 8 && __clz(1) == 31 &&
              __ffs(8) == 4 && __float_as_uint(1) == 0x3F800000 && __saturatef(NAN) == 0,
          "functions of CUDA");
    Array<float> out(1);
    Array<int> counts(5);
    Array<unsigned long long> wide(1);
    CUDA_CHECK(cudaMemset(out.at, 0, sizeof(float)));
    // The last two are -1, as fresh memory is.
    CUDA_CHECK(cudaMemset(counts.at, 0, 3 * sizeof(int)));
    CUDA_CHECK(cudaMemset(wide.at, 0, 8));
    LAUNCH(arithmetic_kernel, 2, 64, 0, 0, out.at, counts.at, wide.at);
    std::vector<int> got = counts.get();
    check(out.get()[0] == 64 && got[0] == 63 && got[1] == 256 && got[2] == 8 && got[3] == got[4] &&
              wide.get()[0] == 128ull << 40,
          "atomics");
}

// ----------------------------------------------------------------------------
// memory and copies

__device__ float device_value;
__constant__ int constant_table[4];
__global__ void symbol_kernel(float *out) { out[0] = device_value + (float)constant_table[3]; }

static void test_memory() {
    size_t free_before, free_now, total;
    CUDA_CHECK(cudaMemGetInfo(&free_before, &total));
    {
        Array<float> x(1000);
        CUDA_CHECK(cudaMemGetInfo(&free_now, &total));
        std::vector<float> fresh = x.get();
        check(std::all_of(fresh.begin(), fresh.end(), [](float f) { return f != f; }),
              "fresh memory is NaN");
        check(free_before - free_now == 4000, "cudaMemGetInfo counts what is held");
    }
    CUDA_CHECK(cudaMemGetInfo(&free_now, &total));
    check(free_now == free_before, "cudaFree gives it back");
    char *big = nullptr;
    check(cudaMalloc(&big, total + 1) == cudaErrorMemoryAllocation &&
              cudaGetLastError() == cudaErrorMemoryAllocation && !big,
          "more than EMU_MEMORY_MIB is refused");
    check(cudaFree(&total) == cudaErrorInvalidValue && cudaGetLastError() == cudaErrorInvalidValue,
          "cudaFree of something else");

    Array<int> a(10), b(10);
    std::vector<int> host = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, back(10);
    auto refused = [](cudaError_t error) {
        return error == cudaErrorInvalidValue && cudaGetLastError() == cudaErrorInvalidValue;
    };
    check(refused(cudaMemcpy(a.at, host.data(), 40, cudaMemcpyDeviceToHost)),
          "a copy in the wrong direction is refused");
    check(refused(cudaMemcpy(a.at, b.at, 40, cudaMemcpyHostToDevice)),
          "a copy from the device that says host is refused");
    check(refused(cudaMemcpy(a.at, host.data(), 44, cudaMemcpyHostToDevice)),
          "a copy that overruns its destination is refused");
    check(refused(cudaMemcpy(back.data(), a.at + 1, 40, cudaMemcpyDeviceToHost)),
          "a copy that overruns its source is refused");
    check(refused(cudaMemsetAsync(a.at, 0, 41)), "a memset that overruns is refused");

    emu_poison(a.at + 4, 8);
    CUDA_CHECK(cudaMemset(a.at, 0, 40));
    CUDA_CHECK(cudaDeviceSynchronize());
    emu_unpoison(a.at + 4, 8);
    check(a.get()[9] == 0, "a memset may go over a poisoned gap");
    CUDA_CHECK(cudaMemcpyAsync(a.at, host.data(), 40, cudaMemcpyHostToDevice));
    host.assign(10, -1);
    CUDA_CHECK(cudaMemcpyAsync(b.at, a.at, 40, cudaMemcpyDeviceToDevice));
    CUDA_CHECK(cudaMemsetAsync(b.at, 0, 8));
    CUDA_CHECK(cudaMemcpyAsync(back.data(), b.at, 40, cudaMemcpyDefault));
    check(back[0] == 0 && back[1] == 0 && back[2] == 2 && back[9] == 9,
          "pageable memory is copied at the call");
    int *pinned;
    CUDA_CHECK(cudaMallocHost(&pinned, 40));
    for (int i = 0; i < 10; i++) pinned[i] = i;
    CUDA_CHECK(cudaMemcpyAsync(a.at, pinned, 40, cudaMemcpyHostToDevice));
    pinned[3] = 33; // too early
    check(a.get()[3] == 33, "pinned memory is copied when its turn comes");
    CUDA_CHECK(cudaMemcpy2DAsync(pinned, 8, a.at, 12, 4, 3, cudaMemcpyDeviceToHost));
    check(pinned[0] == 0 && pinned[2] == 2,
          "nothing has come to pinned memory before the host waits");
    CUDA_CHECK(cudaDeviceSynchronize());
    check(pinned[0] == 0 && pinned[1] == 1 && pinned[2] == 33 && pinned[4] == 6,
          "copies of rows with pitches");
    CUDA_CHECK(cudaFreeHost(pinned));

    float value = 2.5f;
    int table[4] = {1, 2, 3, 4};
    CUDA_CHECK(cudaMemcpyToSymbol(device_value, &value, sizeof value));
    CUDA_CHECK(cudaMemcpyToSymbol(constant_table, table, sizeof table));
    Array<float> out(1);
    LAUNCH(symbol_kernel, 1, 1, 0, 0, out.at);
    check(out.get()[0] == 6.5f, "variables of the device");
}

// ----------------------------------------------------------------------------
// streams

__global__ void scale_kernel(float *x, float by, float plus) {
    x[threadIdx.x] = x[threadIdx.x] * by + plus;
}

// Two streams work on one array, in an order that only the events keep: ((1 * 2 + 1) * 3 + 5) * 2 =
// 28
static float two_streams(uint64_t seed, bool wait_once, bool wait_again) {
    cudaStream_t s[2];
    cudaEvent_t event;
    for (auto &stream : s) CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    Array<float> x(std::vector<float>(32, 1));
    emu_seed(seed);
    LAUNCH(scale_kernel, 1, 32, 0, s[0], x.at, 2.0f, 1.0f);
    CUDA_CHECK(cudaEventRecord(event, s[0]));
    if (wait_once) CUDA_CHECK(cudaStreamWaitEvent(s[1], event));
    LAUNCH(scale_kernel, 1, 32, 0, s[1], x.at, 3.0f, 5.0f);
    // The same event again: the first wait is for its first record.
    CUDA_CHECK(cudaEventRecord(event, s[1]));
    if (wait_again) CUDA_CHECK(cudaStreamWaitEvent(s[0], event));
    LAUNCH(scale_kernel, 1, 32, 0, s[0], x.at, 2.0f, 0.0f);
    for (auto &stream : s) CUDA_CHECK(cudaStreamSynchronize(stream));
    std::vector<float> got = x.get();
    for (auto &stream : s) CUDA_CHECK(cudaStreamDestroy(stream));
    CUDA_CHECK(cudaEventDestroy(event));
    return got[31];
}
// The null stream between two pieces of work of another stream: (1 + 1) * 10 + 2 = 22 if it is
// waited for
static float null_stream(uint64_t seed, unsigned flags) {
    cudaStream_t s;
    CUDA_CHECK(cudaStreamCreateWithFlags(&s, flags));
    Array<float> x(std::vector<float>(1, 1));
    CUDA_CHECK(cudaDeviceSynchronize());
    emu_seed(seed);
    LAUNCH(scale_kernel, 1, 1, 0, s, x.at, 1.0f, 1.0f);
    LAUNCH(scale_kernel, 1, 1, 0, 0, x.at, 10.0f, 0.0f);
    LAUNCH(scale_kernel, 1, 1, 0, s, x.at, 1.0f, 2.0f);
    CUDA_CHECK(cudaDeviceSynchronize());
    float got = x.get()[0];
    CUDA_CHECK(cudaStreamDestroy(s));
    return got;
}

// cudaMemcpy of 5, then * 2 on a stream apart from the null stream: 10 if the copy has been waited
// for
static float copy_then_scale(uint64_t seed, float *host) {
    cudaStream_t s;
    CUDA_CHECK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    Array<float> x(std::vector<float>(1, 1));
    CUDA_CHECK(cudaDeviceSynchronize());
    emu_seed(seed);
    CUDA_CHECK(cudaMemcpy(x.at, host, sizeof *host, cudaMemcpyHostToDevice));
    LAUNCH(scale_kernel, 1, 1, 0, s, x.at, 2.0f, 0.0f);
    CUDA_CHECK(cudaDeviceSynchronize());
    float got = x.get()[0];
    CUDA_CHECK(cudaStreamDestroy(s));
    return got;
}

static void test_streams() {
    float pageable = 5, *pinned;
    int wrong_pageable = 0, wrong_pinned = 0;
    CUDA_CHECK(cudaMallocHost(&pinned, sizeof *pinned));
    *pinned = pageable;
    for (int seed = 1; seed <= SEEDS; seed++) {
        wrong_pageable += copy_then_scale((uint64_t)seed, &pageable) != 10;
        wrong_pinned += copy_then_scale((uint64_t)seed, pinned) != 10;
    }
    CUDA_CHECK(cudaFreeHost(pinned));
    check(wrong_pinned == 0, "cudaMemcpy from pinned memory has ended when it returns");
    check(wrong_pageable > 0, "but not from pageable memory: wrong under %d of %d seeds",
          wrong_pageable, SEEDS);

    int wrong = 0, wrong_first = 0, wrong_second = 0, wrong_null = 0, wrong_apart = 0;
    for (int seed = 1; seed <= SEEDS; seed++) {
        wrong += two_streams((uint64_t)seed, true, true) != 28;
        wrong_first += two_streams((uint64_t)seed, false, true) != 28;
        wrong_second += two_streams((uint64_t)seed, true, false) != 28;
        wrong_null += null_stream((uint64_t)seed, cudaStreamDefault) != 22;
        wrong_apart += null_stream((uint64_t)seed, cudaStreamNonBlocking) != 22;
    }
    check(wrong == 0, "two streams that wait for each other are right under %d seeds", SEEDS);
    check(wrong_first > 0, "without the first wait they are wrong under %d of %d", wrong_first,
          SEEDS);
    check(wrong_second > 0, "without the second they are wrong under %d of %d", wrong_second,
          SEEDS);
    check(wrong_null == 0, "the null stream and others wait for each other");
    check(wrong_apart > 0, "but not those made apart from it: wrong under %d of %d seeds",
          wrong_apart, SEEDS);

    cudaEvent_t start, end;
    cudaStream_t stream;
    CUDA_CHECK(cudaStreamCreate(&stream));
    CUDA_CHECK(cudaEventCreate(&start));
    CUDA_CHECK(cudaEventCreate(&end));
    Array<float> x(std::vector<float>(32, 1));
    float milliseconds = -1;
    check(cudaEventElapsedTime(&milliseconds, start, end) == cudaErrorInvalidResourceHandle &&
              cudaGetLastError() == cudaErrorInvalidResourceHandle,
          "no time before the first record");
    auto begin = std::chrono::steady_clock::now();
    CUDA_CHECK(cudaEventRecord(start, stream));
    LAUNCH(scale_kernel, 1, 32, 0, stream, x.at, 1.0f, 1.0f);
    CUDA_CHECK(cudaEventRecord(end, stream));
    check(cudaEventQuery(end) == cudaErrorNotReady && cudaStreamQuery(stream) == cudaErrorNotReady,
          "work waits until it is waited for");
    CUDA_CHECK(cudaEventSynchronize(end));
    CUDA_CHECK(cudaEventElapsedTime(&milliseconds, start, end));
    std::chrono::duration<float, std::milli> around = std::chrono::steady_clock::now() - begin;
    check(milliseconds >= 0 && milliseconds <= around.count() + 0.01f &&
              cudaStreamQuery(stream) == cudaSuccess,
          "events measure %.3f ms of %.3f", milliseconds, around.count());
    CUDA_CHECK(cudaEventRecord(end, stream));
    while (cudaEventQuery(end) == cudaErrorNotReady) {
    }
    check(true, "asking whether an event was reached comes to an end");
    int called = 0;
    CUDA_CHECK(cudaLaunchHostFunc(
        stream, [](void *data) { ++*(int *)data; }, &called));
    check(!called, "a host function waits in its stream");
    CUDA_CHECK(cudaStreamSynchronize(stream));
    check(called == 1, "and is called");
    CUDA_CHECK(cudaEventDestroy(start));
    CUDA_CHECK(cudaEventDestroy(end));
    CUDA_CHECK(cudaStreamDestroy(stream));
    check(cudaStreamSynchronize(stream) == cudaErrorInvalidResourceHandle,
          "a destroyed stream is refused");
    (void)cudaGetLastError();
}

static void test_devices() {
    int count = 0, value, driver, blocks;
    cudaDeviceProp p;
    char bus[32];
    cudaError_t error = cudaGetDeviceCount(&count);
    check(error == cudaSuccess && count >= 1, "%d devices", count);
    check(cudaSetDevice(count) == cudaErrorInvalidDevice &&
              cudaGetLastError() == cudaErrorInvalidDevice,
          "one more is refused");
    CUDA_CHECK(cudaSetDevice(count - 1));
    CUDA_CHECK(cudaGetDevice(&value));
    check(value == count - 1, "cudaSetDevice");
    CUDA_CHECK(cudaSetDevice(0));
    CUDA_CHECK(cudaGetDeviceProperties(&p, 0));
    CUDA_CHECK(cudaDeviceGetAttribute(&value, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
    check(!strcmp(p.name, "stand-in for a GPU (dev/emu)") && p.major == 9 &&
              (size_t)value == p.sharedMemPerBlockOptin,
          "properties");
    CUDA_CHECK(cudaDriverGetVersion(&driver));
    CUDA_CHECK(cudaDeviceGetPCIBusId(bus, sizeof bus, 0));
    CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, nothing_kernel, 256, 100000));
    check(driver == 13000 && !strcmp(bus, "0000:01:00.0") && blocks == 2,
          "versions, bus, occupancy");
    check(!strcmp(cudaGetErrorName(cudaErrorNotReady), "cudaErrorNotReady") &&
              strlen(cudaGetErrorString(cudaErrorNoDevice)) > 5,
          "names of errors");
}

// ----------------------------------------------------------------------------
// matrix products

// One product: op(A) (m,k) op(B) (k,n), padded leading dimensions, `batch` of them.
struct Case {
    bool transpose_a, transpose_b;
    cudaDataType_t in, out;
    cublasLtEpilogue_t epilogue;
    float beta;
    int batch;
    size_t m, n, k;
};
static float random_number() {
    static uint64_t state = 88172645463325252u;
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (float)((double)(state >> 11) / 9007199254740992.0) * 2 - 1;
}
static float rounded(cudaDataType_t type, float x) {
    return type == CUDA_R_16BF ? (float)__nv_bfloat16(x) : x;
}

// A matrix or vector of either type on the device, with its values here as floats.
// What nobody should read is NaN.
struct Operand {
    cudaDataType_t type;
    size_t ld, rows, columns, stride; // stride from one of the batch to the next
    std::vector<float> values;
    void *at;
    Operand(cudaDataType_t type, size_t rows, size_t columns, size_t ld, int batch, bool fill)
        : type(type), ld(ld), rows(rows), columns(columns), stride(ld * columns),
          values(stride * (size_t)batch, NAN) {
        CUDA_CHECK(cudaMalloc(&at, bytes()));
        for (size_t i = 0; fill && i < values.size(); i++) {
            if (i % ld < rows) values[i] = rounded(type, random_number());
        }
        send();
    }
    Operand(const Operand &) = delete;
    ~Operand() { CUDA_CHECK(cudaFree(at)); }
    size_t bytes() const { return values.size() * (type == CUDA_R_32F ? 4 : 2); }
    void send() {
        std::vector<__nv_bfloat16> narrow(values.begin(), values.end());
        CUDA_CHECK(cudaMemcpy(at, type == CUDA_R_32F ? (void *)values.data() : narrow.data(),
                              bytes(), cudaMemcpyHostToDevice));
    }
    void fetch() {
        std::vector<__nv_bfloat16> narrow(values.size());
        CUDA_CHECK(cudaMemcpy(type == CUDA_R_32F ? (void *)values.data() : narrow.data(), at,
                              bytes(), cudaMemcpyDeviceToHost));
        if (type != CUDA_R_32F) values.assign(narrow.begin(), narrow.end());
    }
    double get(int batch, size_t i, size_t j) const {
        return values[(size_t)batch * stride + j * ld + i];
    }
};
struct Descriptors {
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t a, b, c;
    ~Descriptors() {
        cublasLtMatmulDescDestroy(product);
        for (cublasLtMatrixLayout_t x : {a, b, c}) cublasLtMatrixLayoutDestroy(x);
    }
};
static cublasLtMatrixLayout_t layout_of(const Operand &x, int batch) {
    cublasLtMatrixLayout_t layout;
    int32_t count = batch;
    int64_t stride = (int64_t)x.stride;
    cublasLtMatrixLayoutCreate(&layout, x.type, x.rows, x.columns, (int64_t)x.ld);
    cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count,
                                     sizeof count);
    cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride,
                                     sizeof stride);
    return layout;
}

// What the epilogue makes of x = alpha op(A) op(B) + beta C; aux is read or written, bias read.
static double gelu(double x) {
    return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}
static double epilogue_of(const Case &test, double x, double bias, double aux_in, double *aux_out) {
    if (test.epilogue & CUBLASLT_EPILOGUE_BIAS) x += bias;
    *aux_out = x;
    if (test.epilogue & CUBLASLT_EPILOGUE_GELU) return gelu(x);
    if (test.epilogue & 64) return x * (gelu(aux_in + 1e-5) - gelu(aux_in - 1e-5)) / 2e-5;
    return x;
}

// Compares everything that a product writes with a triple loop in double; returns the largest
// error in units of its tolerance.
static double product_error(const Case &t, const Operand &a, const Operand &b, const Operand &c,
                            const Operand &d, const Operand &bias_in, const Operand &bias,
                            const Operand &aux_in, const Operand &aux, float alpha) {
    double worst = 0, unit = t.out == CUDA_R_16BF ? 1.0 / 128 : 1e-5;
    auto compare = [&](double got, double want, double scale) {
        double error = fabs(got - want) / (unit * (scale + fabs(want)));
        if (!(error <= worst)) worst = error == error ? error : INFINITY;
    };
    for (int batch = 0; batch < t.batch; batch++) {
        std::vector<double> row_sums(t.m, 0);
        for (size_t j = 0; j < t.n; j++) {
            double b_sum = 0;
            for (size_t l = 0; l < t.k; l++)
                b_sum += t.transpose_b ? b.get(batch, j, l) : b.get(batch, l, j);
            if (t.epilogue == CUBLASLT_EPILOGUE_BGRADB) compare(bias.get(batch, j, 0), b_sum, 1);
            for (size_t i = 0; i < t.m; i++) {
                double x = 0, aux_out;
                for (size_t l = 0; l < t.k; l++) {
                    x += (t.transpose_a ? a.get(batch, l, i) : a.get(batch, i, l)) *
                         (t.transpose_b ? b.get(batch, j, l) : b.get(batch, l, j));
                }
                x *= alpha;
                if (t.beta != 0) x += (double)t.beta * c.get(batch, i, j);
                x = epilogue_of(t, x, bias_in.get(batch, i, 0), aux_in.get(batch, i, j), &aux_out);
                row_sums[i] += x;
                compare(d.get(batch, i, j), x, 1);
                bool writes_aux = (t.epilogue & 128) && (t.epilogue & CUBLASLT_EPILOGUE_GELU);
                if (writes_aux) compare(aux.get(batch, i, j), aux_out, 1);
            }
        }
        for (size_t i = 0; i < t.m; i++) {
            double a_sum = 0;
            for (size_t l = 0; l < t.k; l++)
                a_sum += t.transpose_a ? a.get(batch, l, i) : a.get(batch, i, l);
            if (t.epilogue == CUBLASLT_EPILOGUE_BGRADA) compare(bias.get(batch, i, 0), a_sum, 1);
            if (t.epilogue == CUBLASLT_EPILOGUE_DGELU_BGRAD)
                compare(bias.get(batch, i, 0), row_sums[i], 1);
        }
    }
    return worst;
}

static double product_run(cublasLtHandle_t lt, const Case &t,
                          uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE) {
    float alpha = 0.5f;
    Operand a(t.in, t.transpose_a ? t.k : t.m, t.transpose_a ? t.m : t.k,
              (t.transpose_a ? t.k : t.m) + 3, t.batch, true);
    Operand b(t.in, t.transpose_b ? t.n : t.k, t.transpose_b ? t.k : t.n,
              (t.transpose_b ? t.n : t.k) + 1, t.batch, true);
    Operand c(t.out, t.m, t.n, t.m + 2, t.batch, t.beta != 0),
        d(t.out, t.m, t.n, t.m + 2, t.batch, false);
    bool bias_read = t.epilogue & CUBLASLT_EPILOGUE_BIAS, aux_read = t.epilogue & 64;
    size_t length = t.epilogue == CUBLASLT_EPILOGUE_BGRADB ? t.n : t.m;
    Operand bias(t.out, length, 1, length, t.batch, bias_read),
        aux(t.out, t.m, t.n, (t.m + 7) / 8 * 8, t.batch, aux_read);
    Operand bias_in(t.out, t.m, 1, t.m, t.batch, false),
        aux_in(t.out, t.m, t.n, aux.ld, t.batch, false);
    if (bias_read) bias_in.values = bias.values;
    aux_in.values = aux.values;
    Descriptors x;
    int32_t trans_a = t.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    int32_t trans_b = t.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    uint32_t epilogue = t.epilogue;
    int64_t aux_ld = (int64_t)aux.ld, aux_stride = (int64_t)aux.stride;
    int64_t bias_stride = (int64_t)length;
    cublasLtMatmulDescCreate(&x.product, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    auto set = [&](cublasLtMatmulDescAttributes_t attribute, const auto &value) {
        if (cublasLtMatmulDescSetAttribute(x.product, attribute, &value, sizeof value))
            check(false, "attribute %d", (int)attribute);
    };
    set(CUBLASLT_MATMUL_DESC_TRANSA, trans_a);
    set(CUBLASLT_MATMUL_DESC_TRANSB, trans_b);
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
    set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias.at);
    set(CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE, bias_stride);
    set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, aux.at);
    set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, aux_ld);
    set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE, aux_stride);
    x.a = layout_of(a, t.batch), x.b = layout_of(b, t.batch), x.c = layout_of(c, t.batch);
    cublasLtMatmulPreference_t preference;
    uint64_t workspace = 0;
    cublasLtMatmulHeuristicResult_t found;
    int count = 0;
    cublasLtMatmulPreferenceCreate(&preference);
    cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                         &workspace, sizeof workspace);
    cublasLtMatmulPreferenceSetAttribute(
        preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction, sizeof reduction);
    cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(lt, x.product, x.a, x.b, x.c, x.c,
                                                           preference, 1, &found, &count);
    cublasLtMatmulPreferenceDestroy(preference);
    if (status || count != 1) return INFINITY;
    bool in_place = t.beta != 0 && t.transpose_a; // some of them with C == D
    void *to = in_place ? c.at : d.at;
    if (cublasLtMatmul(lt, x.product, &alpha, a.at, x.a, b.at, x.b, &t.beta, c.at, x.c, to, x.c,
                       &found.algo, nullptr, 0, 0))
        return INFINITY;
    Operand kept(t.out, t.m, t.n, t.m + 2, t.batch, false);
    kept.values = c.values;
    if (in_place) c.fetch();
    for (Operand *fetched : {&d, &bias, &aux}) fetched->fetch();
    return product_error(t, a, b, kept, in_place ? c : d, bias_in, bias, aux_in, aux, alpha);
}

static const struct {
    cublasLtEpilogue_t epilogue;
    const char *name;
} epilogues[] = {
    {CUBLASLT_EPILOGUE_DEFAULT, "DEFAULT"},   {CUBLASLT_EPILOGUE_BIAS, "BIAS"},
    {CUBLASLT_EPILOGUE_GELU, "GELU"},         {CUBLASLT_EPILOGUE_GELU_BIAS, "GELU_BIAS"},
    {CUBLASLT_EPILOGUE_GELU_AUX, "GELU_AUX"}, {CUBLASLT_EPILOGUE_GELU_AUX_BIAS, "GELU_AUX_BIAS"},
    {CUBLASLT_EPILOGUE_DGELU, "DGELU"},       {CUBLASLT_EPILOGUE_DGELU_BGRAD, "DGELU_BGRAD"},
    {CUBLASLT_EPILOGUE_BGRADA, "BGRADA"},     {CUBLASLT_EPILOGUE_BGRADB, "BGRADB"}};
static const struct {
    cudaDataType_t in, out;
    const char *name;
} types[] = {{CUDA_R_16BF, CUDA_R_16BF, "bf16 to bf16"},
             {CUDA_R_16BF, CUDA_R_32F, "bf16 to fp32"},
             {CUDA_R_32F, CUDA_R_32F, "fp32"}};

template <typename T> static void layout_set(cublasLtMatrixLayout_t layout,
                                             cublasLtMatrixLayoutAttribute_t attribute, T value) {
    cublasLtMatrixLayoutSetAttribute(layout, attribute, &value, sizeof value);
}
// What is asked for wrongly has to be refused: the status of a product of 8 x 8
// matrices with one thing changed.
template <typename F> static cublasStatus_t product_refused(cublasLtHandle_t lt, F change) {
    Operand a(CUDA_R_32F, 8, 8, 8, 1, true), b(CUDA_R_32F, 8, 8, 8, 1, true),
        c(CUDA_R_32F, 8, 8, 8, 1, true);
    Descriptors x;
    float one = 1;
    cublasLtMatmulDescCreate(&x.product, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    x.a = layout_of(a, 1), x.b = layout_of(b, 1), x.c = layout_of(c, 1);
    change(x);
    return cublasLtMatmul(lt, x.product, &one, a.at, x.a, b.at, x.b, &one, c.at, x.c, c.at, x.c,
                          nullptr, nullptr, 0, 0);
}
// An algorithm asked for with 1 MiB of workspace and 16 bytes of alignment, then used as `use`
// says.
struct Use {
    // Bytes that the program brings, and by how many floats A is off the start of its allocation.
    size_t workspace, offset;
    uint32_t alignment;       // asked for; 0: not set
};
static cublasStatus_t algorithm_used(cublasLtHandle_t lt, Use use) {
    Operand a(CUDA_R_32F, 8, 9, 8, 1, true), b(CUDA_R_32F, 8, 8, 8, 1, true),
        c(CUDA_R_32F, 8, 8, 8, 1, true);
    Descriptors x;
    Array<char> workspace(1 << 20);
    float one = 1, zero = 0;
    uint64_t most = workspace.n;
    int count = 0;
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulHeuristicResult_t found = {};
    cublasLtMatmulDescCreate(&x.product, CUBLAS_COMPUTE_32F_FAST_TF32, CUDA_R_32F);
    x.a = layout_of(a, 1), x.b = layout_of(b, 1), x.c = layout_of(c, 1);
    layout_set<uint64_t>(x.a, CUBLASLT_MATRIX_LAYOUT_COLS, 8);
    cublasLtMatmulPreferenceCreate(&preference);
    cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                         &most, sizeof most);
    if (use.alignment) {
        cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                                             &use.alignment, sizeof use.alignment);
    }
    cublasLtMatmulAlgoGetHeuristic(lt, x.product, x.a, x.b, x.c, x.c, preference, 1, &found,
                                   &count);
    cublasLtMatmulPreferenceDestroy(preference);
    cublasStatus_t status = cublasLtMatmul(lt, x.product, &one, (float *)a.at + use.offset, x.a,
                                           b.at, x.b, &zero, c.at, x.c, c.at, x.c, &found.algo,
                                           workspace.at, use.workspace, 0);
    std::vector<char> after = workspace.get(); // and waits for the product
    return count == 1 && found.workspaceSize <= most && after.size() == workspace.n
               ? status
               : CUBLAS_STATUS_INTERNAL_ERROR;
}

static void test_products() {
    cublasLtHandle_t lt;
    check(cublasLtCreate(&lt) == CUBLAS_STATUS_SUCCESS &&
              !strcmp(cublasLtGetStatusString(CUBLAS_STATUS_SUCCESS), "CUBLAS_STATUS_SUCCESS"),
          "cublasLtCreate");
    for (auto &type : types) {
        for (auto &e : epilogues) {
            double worst = 0;
            for (int bits = 0; bits < 16; bits++) {
                Case t = {(bits & 1) != 0,       (bits & 2) != 0,  type.in, type.out, e.epilogue,
                          bits & 4 ? -0.75f : 0, bits & 8 ? 3 : 1, 37,      21,       19};
                worst = fmax(worst, product_run(lt, t));
            }
            check(worst <= 1, "products %s, %s: %.2f of the tolerance", type.name, e.name, worst);
        }
    }
    Case t = {true, false, CUDA_R_16BF, CUDA_R_32F, CUBLASLT_EPILOGUE_DEFAULT, 0, 1, 50, 530, 600};
    double error = product_run(lt, t);
    check(error <= 10, "a product larger than a panel: %.2f of the tolerance", error);
    t.out = CUDA_R_16BF;
    error = product_run(lt, t);
    double narrow = product_run(lt, t, CUBLASLT_REDUCTION_SCHEME_MASK);
    check(error <= 1 && narrow > 1,
          "sums of parts are bfloat16 unless forbidden: %.2f of the tolerance, else %.2f", narrow,
          error);
    setenv("EMU_PRODUCT", "GELU_BIAS 13", 1);
    Case asked = {false, false, CUDA_R_32F, CUDA_R_32F, CUBLASLT_EPILOGUE_GELU_BIAS, 0, 1, 8, 8, 8};
    bool ends = isinf(product_run(lt, asked));
    asked.epilogue = CUBLASLT_EPILOGUE_GELU;
    check(ends && product_run(lt, asked) <= 1, "EMU_PRODUCT: one epilogue ends as it says");
    unsetenv("EMU_PRODUCT");

    check(product_refused(lt, [](Descriptors &) {}) == CUBLAS_STATUS_SUCCESS,
          "a plain product is taken");
    check(product_refused(lt,
                          [](Descriptors &x) {
                              layout_set<int64_t>(x.a, CUBLASLT_MATRIX_LAYOUT_LD, 7);
                          }) == CUBLAS_STATUS_INVALID_VALUE,
          "a leading dimension below the rows is refused");
    check(product_refused(lt,
                          [](Descriptors &x) {
                              layout_set<int64_t>(x.a, CUBLASLT_MATRIX_LAYOUT_LD, 9);
                          }) == CUBLAS_STATUS_INVALID_VALUE,
          "a matrix that overruns its allocation is refused");
    check(product_refused(lt,
                          [](Descriptors &x) {
                              layout_set<uint64_t>(x.b, CUBLASLT_MATRIX_LAYOUT_ROWS, 7);
                          }) == CUBLAS_STATUS_INVALID_VALUE,
          "sizes that do not fit are refused");
    check(product_refused(lt,
                          [](Descriptors &x) {
                              layout_set<uint32_t>(x.b, CUBLASLT_MATRIX_LAYOUT_ORDER,
                                                   CUBLASLT_ORDER_ROW);
                          }) == CUBLAS_STATUS_NOT_SUPPORTED,
          "rows first are not supported");
    check(product_refused(lt,
                          [](Descriptors &x) {
                              layout_set<uint32_t>(x.b, CUBLASLT_MATRIX_LAYOUT_TYPE, CUDA_R_16BF);
                          }) == CUBLAS_STATUS_NOT_SUPPORTED,
          "operands of two types are not supported");
    auto relu = [](Descriptors &x) {
        uint32_t epilogue = CUBLASLT_EPILOGUE_RELU;
        cublasLtMatmulDescSetAttribute(x.product, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue,
                                       sizeof epilogue);
    };
    check(product_refused(lt, relu) == CUBLAS_STATUS_NOT_SUPPORTED, "RELU is not supported");
    auto no_bias = [](Descriptors &x) {
        uint32_t epilogue = CUBLASLT_EPILOGUE_BIAS;
        cublasLtMatmulDescSetAttribute(x.product, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue,
                                       sizeof epilogue);
    };
    auto numbers_on_device = [](Descriptors &x) {
        int32_t mode = CUBLASLT_POINTER_MODE_DEVICE;
        cublasLtMatmulDescSetAttribute(x.product, CUBLASLT_MATMUL_DESC_POINTER_MODE, &mode,
                                       sizeof mode);
    };
    check(product_refused(lt, numbers_on_device) == CUBLAS_STATUS_INVALID_VALUE,
          "alpha said to be on the device, but is not, is refused");
    check(product_refused(lt, no_bias) == CUBLAS_STATUS_INVALID_VALUE, "a bias needs a pointer");
    check(algorithm_used(lt, {1 << 20, 0, 0}) == CUBLAS_STATUS_SUCCESS &&
              algorithm_used(lt, {1 << 20, 4, 16}) == CUBLAS_STATUS_SUCCESS,
          "algorithms used as they were asked for");
    check(algorithm_used(lt, {64, 0, 0}) == CUBLAS_STATUS_INVALID_VALUE,
          "an algorithm without its workspace is refused");
    check(algorithm_used(lt, {1 << 20, 4, 0}) == CUBLAS_STATUS_INVALID_VALUE,
          "an algorithm for 256 bytes of alignment, used with 16");
    check(algorithm_used(lt, {2 << 20, 0, 0}) == CUBLAS_STATUS_INVALID_VALUE,
          "a workspace that overruns its allocation is refused");
    cublasLtDestroy(lt);
}

// ----------------------------------------------------------------------------
// mistakes that end the program: each is made by a child, which must not end well and must say why

__global__ void past_end_kernel(float *x, int n) { x[n] = 1; }
__global__ void static_past_end_kernel(float *out, int i) {
    __shared__ float s[8];
    s[i] = 1;
    *out = s[0];
}
__global__ void dynamic_past_end_kernel(float *out, int i) {
    SHARED_DYNAMIC(float, s);
    *out = s[i];
}
__global__ void apart_kernel() {
    if (threadIdx.x % 32 < 16) __syncthreads();
    else __syncwarp();
}
__global__ void two_barriers_kernel() {
    if (threadIdx.x < 16) __syncthreads();
    else __syncthreads_or(1);
}
__global__ void two_shuffles_kernel(int *out) {
    if (threadIdx.x % 2) *out = __shfl_xor_sync(FULL_MASK, 1, 1);
    else *out = __shfl_down_sync(FULL_MASK, 1, 1);
}
__global__ void not_in_mask_kernel() { __syncwarp(0xFFFF); }
__device__ int deep(volatile int *x, int n) {
    volatile int here[256] = {n};
    return n > 0 ? deep(x, n - 1) + here[0] : *x;
}
__global__ void deep_kernel(int *x) { *x = deep(x, 100000); }

static float *child_memory(size_t n) {
    float *x;
    CUDA_CHECK(cudaMalloc(&x, n * sizeof *x));
    return x;
}
static void child_run(auto kernel, auto... arguments) {
    emu_launch("child", kernel, 1, 32, 32, 0, arguments...);
    CUDA_CHECK(cudaDeviceSynchronize());
}
enum Build { EITHER, WITH_ASAN };
static const struct {
    const char *name, *says;
    Build build;
    void (*make)();
} mistakes[] = {
    {"a kernel writes behind device memory", "use-after-poison", WITH_ASAN,
     [] { child_run(past_end_kernel, child_memory(10), 10); }},
    {"a kernel writes far behind device memory", "of an allocation of 40", EITHER,
     [] { child_run(past_end_kernel, child_memory(10), 1024); }},
    {"a kernel writes before device memory", "touches byte -4 of", EITHER,
     [] { child_run(past_end_kernel, child_memory(10), -1); }},
    {"a kernel writes behind static shared memory", "global-buffer-overflow", WITH_ASAN,
     [] { child_run(static_past_end_kernel, child_memory(1), 8); }},
    {"a kernel reads behind dynamic shared memory", "heap-buffer-overflow", WITH_ASAN,
     [] { child_run(dynamic_past_end_kernel, child_memory(1), 8); }},
    {"a kernel touches a poisoned gap", "use-after-poison", WITH_ASAN,
     [] {
         float *x = child_memory(64);
         emu_poison(x + 32, 64);
         child_run(past_end_kernel, x, 40);
     }},
    {"the host touches device memory", "the host touches device memory: byte 12 of", EITHER,
     [] { child_memory(10)[3] = 1; }},
    {"a kernel touches memory that was freed", "memory that was freed", EITHER,
     [] {
         float *x = child_memory(10), *y = child_memory(10);
         struct Hidden {
             float *x;
         } hidden = {x};
         CUDA_CHECK(cudaFree(x));
         child_run(
             +[](Hidden h, float *to) { *to = h.x[0]; }, hidden, y);
     }},
    {"threads wait for each other in different places", "16 threads wait in __syncwarp", EITHER,
     [] { child_run(apart_kernel); }},
    {"threads come to two kinds of barriers", "comes to __syncthreads", EITHER,
     [] { child_run(two_barriers_kernel); }},
    {"lanes come to two kinds of shuffles", "in different operations", EITHER,
     [] { child_run(two_shuffles_kernel, (int *)child_memory(1)); }},
    {"a lane leaves itself out", "is not in its own mask", EITHER,
     [] { child_run(not_in_mask_kernel); }},
    {"a kernel overflows its stack", "overflows its stack", EITHER,
     [] { child_run(deep_kernel, (int *)child_memory(1)); }},
};

// Runs this program with `name` and returns what it wrote to stderr.
static std::string child_output(const char *name, bool *ended_well) {
    int ends[2], status;
    char buffer[4096];
    std::string text;
    fflush(stdout);
    if (pipe(ends)) return "no pipe";
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 2);
        close(ends[0]);
        execl(program, program, name, (char *)nullptr);
        _exit(0);
    }
    close(ends[1]);
    for (ssize_t n; (n = read(ends[0], buffer, sizeof buffer)) > 0;) text.append(buffer, (size_t)n);
    close(ends[0]);
    *ended_well = waitpid(child, &status, 0) == child && WIFEXITED(status) &&
                  WEXITSTATUS(status) == 0;
    return text;
}

static void test_mistakes() {
    for (auto &mistake : mistakes) {
#ifndef EMU_ASAN
        if (mistake.build == WITH_ASAN) {
            skip(mistake.name, "build with -fsanitize=address");
            continue;
        }
#endif
        bool ended_well;
        std::string text = child_output(mistake.name, &ended_well);
        bool good = !ended_well && text.find(mistake.says) != std::string::npos;
        check(good, "%s: is reported", mistake.name);
        if (!good) printf("       wanted \"%s\", got:\n%s\n", mistake.says, text.c_str());
    }
    setenv("EMU_GPUS", "0", 1);
    bool ended_well;
    std::string text = child_output("no device", &ended_well);
    check(!ended_well && text.find(cudaGetErrorString(cudaErrorNoDevice)) != std::string::npos,
          "EMU_GPUS=0: no device");
    unsetenv("EMU_GPUS");
}

static int child_main(const char *name) {
    if (!strcmp(name, "no device")) child_memory(1);
    for (auto &mistake : mistakes) {
        if (!strcmp(mistake.name, name)) mistake.make();
    }
    return 0;
}

// ----------------------------------------------------------------------------
// collectives

static ncclComm_t nccl_world() {
    ncclUniqueId id;
    ncclComm_t comm;
    if (process == 0) ncclGetUniqueId(&id);
#ifdef USE_MPI
    MPI_Bcast(&id, sizeof id, MPI_BYTE, 0, MPI_COMM_WORLD);
#endif
    check(ncclCommInitRank(&comm, processes, id, process) == ncclSuccess, "ncclCommInitRank of %d",
          processes);
    return comm;
}

// Rank r sends (r + 1) * (i + 1), which has few enough bits for every type here.
template <typename T>
static void test_reductions(ncclComm_t comm, ncclDataType_t type, const char *name) {
    size_t n = 12, ranks = (size_t)processes;
    float all = (float)(ranks * (ranks + 1) / 2);
    std::vector<T> mine(n * ranks);
    for (size_t i = 0; i < mine.size(); i++) mine[i] = (T)(float)((process + 1) * (int)(i + 1));
    Array<T> x(mine), sums(mine.size()), largest(mine.size()), shard(n), gathered(mine.size()),
        from_last(mine), at_last(mine.size());
    ncclGroupStart();
    bool good = !ncclAllReduce(x.at, sums.at, x.n, type, ncclSum, comm, 0);
    good &= !ncclAllReduce(x.at, largest.at, x.n, type, ncclMax, comm, 0);
    good &= !ncclReduceScatter(x.at, shard.at, n, type, ncclSum, comm, 0);
    good &= !ncclAllGather(x.at, gathered.at, n, type, comm, 0);
    good &= !ncclBroadcast(from_last.at, from_last.at, x.n, type, processes - 1, comm, 0);
    good &= !ncclReduce(x.at, at_last.at, x.n, type, ncclSum, processes - 1, comm, 0);
    good &= !ncclAllReduce(x.at, x.at, x.n, type, ncclSum, comm, 0); // in place
    ncclGroupEnd();
    std::vector<T> in_place = x.get(), s = sums.get(), m = largest.get(), h = shard.get();
    std::vector<T> g = gathered.get(), b = from_last.get(), e = at_last.get();
    for (size_t i = 0; i < x.n; i++) {
        float one = (float)(i + 1);
        good &= (float)s[i] == one * all && (float)in_place[i] == one * all &&
                (float)m[i] == one * (float)ranks;
        good &= (float)b[i] == one * (float)ranks &&
                (process != processes - 1 || (float)e[i] == one * all);
        good &= (float)g[i] == (float)((i / n + 1) * (i % n + 1));
        if (i < n) good &= (float)h[i] == (float)((size_t)process * n + i + 1) * all;
    }
    check(good, "collectives of %s over %d ranks", name, processes);
}

static void test_collectives() {
    ncclComm_t comm = nccl_world();
    test_reductions<float>(comm, ncclFloat32, "float");
    test_reductions<double>(comm, ncclFloat64, "double");
    test_reductions<__nv_bfloat16>(comm, ncclBfloat16, "bfloat16");
    test_reductions<int>(comm, ncclInt32, "int");
    test_reductions<uint64_t>(comm, ncclUint64, "uint64");
    Array<float> x(std::vector<float>(8, 1));
    check(ncclAllReduce(x.at, x.at, 8 * sizeof(float), ncclFloat32, ncclSum, comm, 0) ==
              ncclInvalidArgument,
          "a count in bytes overruns and is refused");
    ncclResult_t error = ncclInternalError;
    check(ncclCommGetAsyncError(comm, &error) == ncclSuccess && error == ncclSuccess,
          "ncclCommGetAsyncError");

    // 0.75 is less than half a step at 256, and lost; that of two ranks together would not be.
    Array<__nv_bfloat16> narrow(std::vector<__nv_bfloat16>(1, process == 0 ? 256.0f : 0.75f));
    ncclAllReduce(narrow.at, narrow.at, 1, ncclBfloat16, ncclSum, comm, 0);
    check((float)narrow.get()[0] == 256, "a sum of bfloat16 is rounded for every rank");
    check(ncclCommDestroy(comm) == ncclSuccess, "ncclCommDestroy");
}

#ifdef USE_MPI
// Two communicators on two streams, queued in another order by each rank, as real ranks
// may; and a host that waits in MPI.
static void test_overlap() {
    setenv("NCCL_LAUNCH_ORDER_IMPLICIT", "1", 1);
    ncclComm_t comms[2] = {nccl_world(), nccl_world()};
    unsetenv("NCCL_LAUNCH_ORDER_IMPLICIT");
    cudaStream_t streams[2];
    std::vector<float> ones(1000, 1);
    Array<float> x(ones), y(ones);
    Array<float> *arrays[2] = {&x, &y};
    for (auto &stream : streams)
        CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    bool good = true;
    for (int seed = 1; seed <= SEEDS; seed++) {
        emu_seed((uint64_t)(seed + 1000 * process)); // each rank goes its own way
        for (int i = 0; i < 6; i++) {
            int which = (i + process) % 2;
            LAUNCH(scale_kernel, 1, 1000, 0, streams[which], arrays[which]->at, 0.5f, 0.5f);
            good &= !ncclAllReduce(arrays[which]->at, arrays[which]->at, 1000, ncclFloat32, ncclSum,
                                   comms[which], streams[which]);
            LAUNCH(scale_kernel, 1, 1000, 0, streams[which], arrays[which]->at,
                   1 / (float)processes, 0.0f);
        }
        // The others wait for it in MPI, with their work not done.
        if (process == 0) CUDA_CHECK(cudaDeviceSynchronize());
        MPI_Barrier(MPI_COMM_WORLD);
        CUDA_CHECK(cudaDeviceSynchronize());
        good &= x.get() == ones && y.get() == ones;
    }
    check(good,
          "two communicators in different orders, and ranks that wait in MPI meanwhile, under %d "
          "seeds",
          SEEDS);
    for (auto &stream : streams) CUDA_CHECK(cudaStreamDestroy(stream));
    for (auto &comm : comms) ncclCommDestroy(comm);

    // one communicator, two streams: operations begin in the order in which they
    // were queued, whatever the seed
    ncclComm_t comm = nccl_world();
    for (auto &stream : streams)
        CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    for (int i = 0; i < 8; i++)
        ncclAllReduce(arrays[i % 2]->at, arrays[i % 2]->at, 1000, ncclFloat32, ncclMax, comm,
                      streams[i % 2]);
    CUDA_CHECK(cudaDeviceSynchronize());
    check(x.get() == ones && y.get() == ones, "one communicator on two streams");
    for (auto &stream : streams) CUDA_CHECK(cudaStreamDestroy(stream));
    ncclCommDestroy(comm);
}

// Two communicators that nothing orders are refused; an event or the host that waits orders them.
static void test_order() {
    ncclComm_t comms[2] = {nccl_world(), nccl_world()};
    cudaStream_t streams[2];
    cudaEvent_t event;
    Array<float> x(std::vector<float>(4, 1));
    for (auto &stream : streams)
        CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CUDA_CHECK(cudaEventCreate(&event));
    auto sum = [&](int comm, int stream) {
        return ncclAllReduce(x.at, x.at, 4, ncclFloat32, ncclMax, comms[comm], streams[stream]);
    };
    bool good = !sum(0, 0) && sum(1, 1) == ncclInvalidUsage;
    good &= !sum(0, 1) && sum(1, 0) == ncclInvalidUsage;
    check(good, "two communicators on two streams are refused");
    CUDA_CHECK(cudaDeviceSynchronize());
    check(!sum(1, 1), "and are not after the host has waited");
    check(sum(0, 0) == ncclInvalidUsage, "but are again after that");
    CUDA_CHECK(cudaEventRecord(event, streams[1]));
    check(sum(0, 0) == ncclInvalidUsage, "also when an event is recorded that nobody waits for");
    CUDA_CHECK(cudaStreamWaitEvent(streams[0], event));
    check(!sum(0, 0) && !sum(1, 0), "and are not behind the event, nor on one stream");
    CUDA_CHECK(cudaDeviceSynchronize());
    CUDA_CHECK(cudaEventDestroy(event));
    for (auto &stream : streams) CUDA_CHECK(cudaStreamDestroy(stream));
    for (auto &comm : comms) ncclCommDestroy(comm);
}
#endif

// ----------------------------------------------------------------------------

int main(int argc, char **argv) {
    program = "/proc/self/exe";
    if (argc > 1) return child_main(argv[1]);
#ifdef USE_MPI
    int level;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &level);
    MPI_Comm_rank(MPI_COMM_WORLD, &process);
    MPI_Comm_size(MPI_COMM_WORLD, &processes);
#endif
    test_launches();
    test_barriers();
    test_warps();
    test_numbers();
    test_memory();
    test_streams();
    test_devices();
    test_products();
    if (processes == 1) test_mistakes();
    else skip("mistakes that end a program", "run with one process");
    test_collectives();
#ifdef USE_MPI
    if (processes > 1) {
        test_overlap();
        test_order();
    } else skip("collectives of several processes", "run with mpirun -n 2");
    MPI_Allreduce(MPI_IN_PLACE, &failed, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    MPI_Finalize();
#else
    skip("collectives of several processes",
         "build with mpicxx -DUSE_MPI and run with mpirun -n 2");
#endif
    if (process == 0)
        printf("test_emu: %d passed, %d failed, %d skipped\n", passed, failed, skipped);
    return failed != 0;
}
