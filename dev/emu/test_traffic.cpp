/*
Tests of traffic.h: kernels whose bytes can be counted by hand. traffic.h says how to build
them. A line for each case, then "test_traffic: N passed, N failed, N skipped"; the exit
status is 1 if anything failed.
*/
#include "traffic.h"
#include <cuda_bf16.h>
#include <cuda_runtime.h>

static int passed, failed;

static void check(const char *name, EmuTraffic found, EmuTraffic expected) {
    bool good = !memcmp(&found, &expected, sizeof found);
    good ? passed++ : failed++;
    printf("%s %s\n", good ? "ok     " : "FAILED ", name);
    for (const EmuTraffic *t : {&found, &expected}) {
        if (good) break;
        printf("        %s reads %llu of %llu, writes %llu of %llu, %llu accesses, %llu of 16 "
               "bytes\n",
               t == &found ? "found:   " : "expected:", (unsigned long long)t->reads,
               (unsigned long long)t->read_once, (unsigned long long)t->writes,
               (unsigned long long)t->written_once, (unsigned long long)t->accesses,
               (unsigned long long)t->accesses_16);
    }
}

#define CUDA_CHECK(call)                                                  \
    do {                                                                  \
        cudaError_t code_ = (call);                                       \
        if (code_ != cudaSuccess) {                                       \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, \
                    cudaGetErrorString(code_));                           \
            exit(1);                                                      \
        }                                                                 \
    } while (0)

// All kernels run with N threads, THREADS to a block.
enum { BLOCKS = 4, THREADS = 64, N = BLOCKS * THREADS };
#define RUN(kernel, ...) LAUNCH(kernel, BLOCKS, THREADS, THREADS * 16, 0, __VA_ARGS__)
__device__ static inline int index() { return (int)(blockIdx.x * blockDim.x + threadIdx.x); }

template <typename T> struct alignas(16) Packed { T at[16 / sizeof(T)]; };
struct Large { float at[20]; };

__global__ void copy_kernel(float *to, const float *from) { to[index()] = from[index()]; }
__global__ void copy_int4_kernel(int4 *to, const int4 *from) { to[index()] = from[index()]; }
__global__ void copy_vectors_kernel(float4 *to, const float4 *from, uint2 *to8,
                                    const uint2 *from8) {
    float4 v = __ldcs(from + index());
    v.x += v.y * v.z - v.w;
    __stcs(to + index(), v);
    to8[index()] = from8[index()];
}
// As the trainer does it: 16 bytes into registers, arithmetic on some of them, 16 bytes out.
template <typename T> static Packed<T> pack_load(const T *from) {
    Packed<T> p;
    *reinterpret_cast<int4 *>(p.at) = *reinterpret_cast<const int4 *>(from);
    return p;
}
template <typename T> __global__ void packs_kernel(T *to, const T *from) {
    constexpr int PACK = 16 / sizeof(T);
    Packed<T> p = pack_load(from + index() * PACK);
    for (int j = 0; j < PACK / 2; j++) p.at[j] = (float)p.at[j] * 2;
    *reinterpret_cast<int4 *>(to + index() * PACK) = *reinterpret_cast<const int4 *>(p.at);
}
__global__ void copy_large_kernel(Large *to, const Large *from) { to[index()] = from[index()]; }
__global__ void strided_kernel(const __nv_bfloat16 *from, float *out) {
    float x = from[8 * index()];
    if (x == 12345) *out = x; // never
}
__global__ void again_kernel(float *to, const float *from) {
    for (int pass = 0; pass < 3; pass++) {
        to[index()] = from[index()] + from[0];
        __syncthreads();
    }
}
__global__ void overlapping_kernel(char *to) { memset(to + 4 * index(), 1, 8); }
// What cp.async is on the stand-in: memcpy of a size that the compiler does not know,
// into shared memory and out of it.
__global__ void through_shared_kernel(char *to, const char *from, const int *bytes) {
    SHARED_DYNAMIC(char, dynamic);
    __shared__ int sum;
    if (threadIdx.x == 0) sum = 0;
    __syncthreads();
    atomicAdd(&sum, 1);
    memcpy(dynamic + 16 * threadIdx.x, from + 16 * index(), (size_t)*bytes);
    __syncthreads();
    if (sum != THREADS) return;
    size_t other = THREADS - 1 - threadIdx.x; // its pack goes where it came from
    memcpy(to + 16 * (blockIdx.x * THREADS + other), dynamic + 16 * other, (size_t)*bytes);
}
__global__ void atomic_kernel(unsigned *sum) { atomicAdd(sum, 1u); }
__global__ void warp_kernel(float *to, const float *from) {
    float x = from[index()];
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, step);
    if (threadIdx.x % 32 == 0) to[index() / 32] = x;
}
__global__ void host_memory_kernel(float *to, const float *from) { to[index()] = from[index()]; }

int main(void) {
    char *a, *b, *pinned;
    int *sixteen, host[N] = {16};
    CUDA_CHECK(cudaMalloc(&a, N * sizeof(Large)));
    CUDA_CHECK(cudaMalloc(&b, N * sizeof(Large)));
    CUDA_CHECK(cudaMalloc(&sixteen, sizeof *sixteen));
    CUDA_CHECK(cudaMallocHost(&pinned, sizeof host));
    CUDA_CHECK(cudaMemset(a, 0, N * sizeof(Large)));
    CUDA_CHECK(cudaMemcpy(sixteen, host, sizeof *sixteen, cudaMemcpyHostToDevice));

    RUN(copy_kernel, (float *)b, (float *)a); // in its stream still when counting begins
    emu_traffic_begin();
    check("nothing", emu_traffic_end(), {});

#define COUNT(name, expected, kernel, ...) \
    emu_traffic_begin();                   \
    RUN(kernel, __VA_ARGS__);              \
    check(name, emu_traffic_end(), expected)
#define EXPECTED(...) (EmuTraffic{__VA_ARGS__})
    COUNT("a copy of floats", EXPECTED(4 * N, 4 * N, 4 * N, 4 * N, 2 * N, 0), copy_kernel,
          (float *)b, (float *)a);
    COUNT("a copy of int4", EXPECTED(16 * N, 16 * N, 16 * N, 16 * N, 2 * N, 2 * N),
          copy_int4_kernel, (int4 *)b, (int4 *)a);
    COUNT("float4 by __ldcs and __stcs, and uint2",
          EXPECTED(24 * N, 24 * N, 16 * N, 16 * N, 4 * N, 2 * N), copy_vectors_kernel, (float4 *)b,
          (float4 *)a, (uint2 *)b, (uint2 *)a);
    COUNT("packs of float", EXPECTED(16 * N, 16 * N, 16 * N, 16 * N, 2 * N, 2 * N),
          packs_kernel<float>, (float *)b, (float *)a);
    COUNT("packs of bf16", EXPECTED(16 * N, 16 * N, 16 * N, 16 * N, 2 * N, 2 * N),
          packs_kernel<__nv_bfloat16>, (__nv_bfloat16 *)b, (__nv_bfloat16 *)a);
    COUNT("a struct of 80 bytes", EXPECTED(80 * N, 80 * N, 80 * N, 80 * N, 10 * N, 10 * N),
          copy_large_kernel, (Large *)b, (Large *)a);
    COUNT("every eighth bf16", EXPECTED(2 * N, 0, 2 * N, 0, N, 0), strided_kernel,
          (__nv_bfloat16 *)a, (float *)b);
    COUNT("the same again", EXPECTED(24 * N, 12 * N, 4 * N, 4 * N, 9 * N, 0), again_kernel,
          (float *)b, (float *)a);
    COUNT("writes that overlap", EXPECTED(0, 8 * N, 0, 4 * N + 4, N, 0), overlapping_kernel, b);
    COUNT("memcpy by way of shared memory",
          EXPECTED(24 * N, 16 * N, 16 * N + 4, 16 * N, 4 * N, 2 * N), through_shared_kernel, b, a,
          sixteen);
    COUNT("atomicAdd", EXPECTED(4 * N, 4 * N, 4, 4, 2 * N, 0), atomic_kernel, (unsigned *)b);
    COUNT("shuffles", EXPECTED(4 * N, N / 8, 4 * N, N / 8, N + N / 32, 0), warp_kernel, (float *)b,
          (float *)a);
    COUNT("reads of pinned memory", EXPECTED(0, 4 * N, 0, 4 * N, N, 0), host_memory_kernel,
          (float *)b, (float *)pinned);

    emu_traffic_begin();
    RUN(copy_kernel, (float *)b, (float *)a);
    RUN(copy_kernel, (float *)(b + 2 * N), (float *)a);
    check("two launches", emu_traffic_end(), {8 * N, 8 * N, 4 * N, 6 * N, 4 * N, 0});

    emu_traffic_begin();
    CUDA_CHECK(cudaMemcpyAsync(b, a, sizeof host, cudaMemcpyDeviceToDevice));
    CUDA_CHECK(cudaMemcpyAsync(pinned, a, sizeof host, cudaMemcpyDeviceToHost));
    CUDA_CHECK(cudaMemcpy(b, host, sizeof host, cudaMemcpyHostToDevice));
    CUDA_CHECK(cudaMemsetAsync(b, 0, sizeof host));
    CUDA_CHECK(cudaDeviceSynchronize());
    for (int i = 0; i < N; i++) host[i] += pinned[i];
    check("copies and the host", emu_traffic_end(), {});

    RUN(copy_kernel, (float *)b, (float *)a);
    CUDA_CHECK(cudaDeviceSynchronize());
    emu_traffic_begin();
    check("what ran while nobody counted", emu_traffic_end(), {});

    printf("test_traffic: %d passed, %d failed, 0 skipped\n", passed, failed);
    return failed != 0;
}
