/*
GPT-2 on NVIDIA GPUs, training and generating text, with tensor parallelism (TP) that needs few
all-reduces. It mirrors train_gpt2.c, the CPU trainer: the same blocks, options, files, log lines
and, to rounding, the same numbers; read that file first, and tp_blocks.h for what a plan and its
steps are. What is different:

  - The F tensor ranks that are folded into one process are a batch dimension: every kernel and
    every matrix product does all of them in one launch. A merge of folded ranks costs no pass over
    memory of its own: the kernel that adds bias and residual and normalizes reads all F partial
    outputs, and in the backward pass of t the one that differentiates LayerNorm adds up all F.
  - Real ranks (one process and one GPU each, under mpirun) add NCCL. In the forward pass it runs on
    the compute stream, in the backward pass beside it, while weight gradients are computed, which
    no merge needs. Gradients are summed over data-parallel replicas on a stream of their own while
    the backward pass goes on.
  - Activations, and the weights that products read, are bf16 (PRECISION=BF16) or float
    (PRECISION=FP32). Gradients, optimizer state, master weights and every sum inside a kernel are
    float.
  - Nothing is summed by floating-point atomics: a run repeats itself bit by bit.

  make train_gpt2cu                              for the GPU of this machine; without one, for
                                                 compute capability 8.0, 9.0 and newer
  ./train_gpt2cu -e 4x4x128 -t 64 -p sppp        one GPU, both tensor ranks on it
  mpirun -n 2 --bind-to none ./train_gpt2cu -p sppp
                                                 two GPUs, one rank each
  make train_gpt2cu_emu && ./train_gpt2cu_emu    the same file on a CPU, by dev/emu: slow, and for
                                                 tests (4x4x32, T 16)

Shapes are written beside every tensor: B sequences, T tokens each, C channels, NH heads, HS = C/NH,
V tokens (padded to Vp), R tensor ranks, F of them in this process. f counts ranks, k sub-blocks (2
per block), p parameter tensors; rows = B T.
*/
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <cublasLt.h>
#ifdef USE_NCCL
#include <nccl.h>
#endif
#include <nvtx3/nvToolsExt.h>
#include <math.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BUILT_IN CUDA
#define WEIGHTS_BESIDE_SUMS 1 // products keep the GPU busy while NCCL sums
#include "dev/emu/trainer.h" // nothing on a GPU
#ifndef DEFAULT_MODEL
#define DEFAULT_MODEL "d12"
#define DEFAULT_T "1024"
#endif
#include "tp_blocks.h"
#include "data/checkpoint.h"
#include "data/choices.h"
#include "data/options.h"
#include "data/runlog.h"
#include "data/tokenizer.h"
#include "data/tokens.h"

// ----------------------------------------------------------------------------
// numbers, calls and launches

#ifdef PRECISION_TF32 // as fp32; products of matrices round their inputs to TF32
#define PRECISION_FP32
#define REAL_NAME "tf32"
#elif defined(PRECISION_FP32)
#define REAL_NAME "fp32"
#endif
#ifdef PRECISION_FP32
typedef float real; // activations and the weights that products read
#define REAL_TYPE CUDA_R_32F
#else
typedef __nv_bfloat16 real;
#define REAL_TYPE CUDA_R_16BF
#define REAL_NAME "bf16"
#endif

// Every call to a library goes through one of these: file and line, the call, the library's own
// text; `fail` adds the rank.
#define CUDA_CHECK(call)                                                     \
    do {                                                                     \
        cudaError_t code_ = (call);                                          \
        if (code_ == cudaSuccess) break;                                     \
        const char *text_ = cudaGetErrorString(code_);                       \
        fail("%s:%d: %s: %s", __FILE__, __LINE__, #call, text_);             \
    } while (0)

#define CUBLAS_CHECK(call)                                                   \
    do {                                                                     \
        cublasStatus_t code_ = (call);                                       \
        if (code_ == CUBLAS_STATUS_SUCCESS) break;                           \
        const char *text_ = cublasLtGetStatusString(code_);                  \
        fail("%s:%d: %s: %s", __FILE__, __LINE__, #call, text_);             \
    } while (0)

#define NCCL_CHECK(call)                                                     \
    do {                                                                     \
        ncclResult_t code_ = (call);                                         \
        if (code_ == ncclSuccess) break;                                     \
        const char *text_ = ncclGetErrorString(code_);                       \
        const char *last_ = ncclGetLastError(NULL);                          \
        fail("%s:%d: %s: %s (%s)", __FILE__, __LINE__, #call, text_, last_); \
    } while (0)

// Launches a kernel on stream `on`. A template's name stands in parentheses:
// LAUNCH((sum_kernel<4>), grid, block, 0, stream, x, n). dev/emu, where CUDA code runs on a CPU,
// brings its own.
#ifndef LAUNCH
#define LAUNCH(kernel, grid, block, shared, on, ...)             \
    do {                                                         \
        (kernel)<<<(grid), (block), (shared), (on)>>>(__VA_ARGS__); \
        CUDA_CHECK(cudaGetLastError());                          \
    } while (0)
// The block's dynamic shared memory, as an array of `type`.
#define SHARED_DYNAMIC(type, name)                                    \
    extern __shared__ __align__(128) unsigned char shared_dynamic_[]; \
    type *name = reinterpret_cast<type *>(shared_dynamic_)
#endif

static constexpr int WARP = 32;

#define FULL_WARP 0xFFFFFFFFu

#include "dev/cuda/instructions.cuh"

template <typename A, typename B> static constexpr __host__ __device__ A ceil_div(A a, B b) {
    return (a + b - 1) / b;
}

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
template <typename T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}

// 16 bytes of T, which is what one thread reads or writes at a time: PACK elements.
template <typename T> struct alignas(16) Packed {
    T at[16 / sizeof(T)];
};
static constexpr int PACK = 16 / sizeof(real);

template <typename T> __device__ __forceinline__ Packed<T> pack_load(const T *from) {
    Packed<T> p;
    *reinterpret_cast<int4 *>(p.at) = *reinterpret_cast<const int4 *>(from);
    return p;
}
template <typename T> __device__ __forceinline__ void pack_store(T *to, const Packed<T> &p) {
    *reinterpret_cast<int4 *>(to) = *reinterpret_cast<const int4 *>(p.at);
}
// The same to global memory and in one instruction; nvcc 13 breaks some stores of bf16 into four.
template <typename T> __device__ __forceinline__ void pack_store_whole(T *to, const Packed<T> &p) {
    __stcg(reinterpret_cast<int4 *>(to), *reinterpret_cast<const int4 *>(p.at));
}

// The elements of a pack as floats. A bf16 is the upper half of one: an instruction each.
__device__ __forceinline__ void pack_unpack(float x[PACK], const Packed<real> &p) {
#pragma unroll
    for (int j = 0; j < PACK; j++) {
        if (sizeof(real) == sizeof(float)) x[j] = to_float(p.at[j]);
        else {
            uint32_t pair;
            memcpy(&pair, p.at + j / 2 * 2, sizeof pair);
            x[j] = __uint_as_float(j % 2 ? pair & 0xFFFF0000u : pair << 16);
        }
    }
}

// PACK floats, to go with PACK elements of `real`.
__device__ __forceinline__ void floats_load(float x[PACK], const float *from) {
#pragma unroll
    for (int j = 0; j < PACK; j += 4) {
        Packed<float> p = pack_load(from + j);
#pragma unroll
        for (int i = 0; i < 4; i++) x[j + i] = p.at[i];
    }
}
__device__ __forceinline__ void floats_store(float *to, const float x[PACK]) {
#pragma unroll
    for (int j = 0; j < PACK; j += 4) {
        pack_store(to + j, Packed<float>{{x[j], x[j + 1], x[j + 2], x[j + 3]}});
    }
}

__device__ __forceinline__ void pack_add(float sum[PACK], const Packed<real> &p, float scale) {
    float x[PACK];
    pack_unpack(x, p);
#pragma unroll
    for (int j = 0; j < PACK; j++) sum[j] += scale * x[j];
}
__device__ __forceinline__ void pack_add(float sum[PACK], const real *from, float scale) {
    pack_add(sum, pack_load(from), scale);
}

// Sums and maxima over a warp; every lane gets the result, always added in the same order.
__device__ __forceinline__ float warp_sum(float x) {
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(FULL_WARP, x, step);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
    for (int step = WARP / 2; step > 0; step /= 2) {
        x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, step));
    }
    return x;
}

// The same over a block of up to 1024 threads; shared (WARP) is scratch. Every thread gets the
// result.
template <bool MAX> __device__ __forceinline__ float block_reduce(float x, float *shared) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x = MAX ? warp_max(x) : warp_sum(x);
    __syncthreads(); // shared may still be read from the last time
    if (lane == 0) shared[warp] = x;
    __syncthreads();
    float nothing = MAX ? -INFINITY : 0;
    float y = lane < warps ? shared[lane] : nothing;
    return MAX ? warp_max(y) : warp_sum(y);
}

// From here to the end of the scope, a range of the function's name in a profile
// (dev/cuda/profile.sh).
struct Range {
    Range(const char *name) { nvtxRangePushA(name); }
    ~Range() { nvtxRangePop(); }
};
#define RANGE() Range range_(__func__)

// ----------------------------------------------------------------------------
// the GPU of this process

typedef struct {
    int index;                      // among the GPUs of this host
    cudaDeviceProp properties;
    cudaStream_t stream;            // kernels, products and merges that are waited for
    cudaStream_t replica_stream;    // sums of gradients over replicas
    cudaStream_t hidden_stream;     // merges that go on while something else computes
    cublasLtHandle_t blas;
    int fuses_gelu;                 // whether products write or differentiate GELU: GELU_...
} Gpu;
enum { GELU_APART, GELU_FUSED, GELU_TIMED }; // TIMED: of each product, what is faster
static Gpu gpu;

static constexpr int BLOCK_WARPS = 8, BLOCK = BLOCK_WARPS * WARP;

static void gpu_open(int index) {
    gpu.index = index;
    CUDA_CHECK(cudaSetDevice(index));
    CUDA_CHECK(cudaGetDeviceProperties(&gpu.properties, index));
    if (gpu.properties.major < 8) {
        fail("GPU %d, %s: compute capability %d.%d, but 8.0 or newer is needed", index,
             gpu.properties.name, gpu.properties.major, gpu.properties.minor);
    }
    CUDA_CHECK(cudaStreamCreateWithFlags(&gpu.stream, cudaStreamNonBlocking));
    // A hidden merge takes the multiprocessors it needs before the products beside it take them
    // all. So does a sum of gradients, since NCCL begins sums in order: a merge waits until it has
    // begun.
    int lowest, highest; // a lower number goes first
    CUDA_CHECK(cudaDeviceGetStreamPriorityRange(&lowest, &highest));
    CUDA_CHECK(cudaStreamCreateWithPriority(&gpu.replica_stream, cudaStreamNonBlocking,
                                            min(highest + 1, lowest)));
    CUDA_CHECK(cudaStreamCreateWithPriority(&gpu.hidden_stream, cudaStreamNonBlocking, highest));
    CUBLAS_CHECK(cublasLtCreate(&gpu.blas));
    // Hopper does both faster in one, and so does llm.c there; elsewhere it is tried.
    gpu.fuses_gelu = gpu.properties.major == 9 ? GELU_FUSED : GELU_TIMED;
}

static void gpu_close(void) {
    if (!gpu.stream) return;
    CUBLAS_CHECK(cublasLtDestroy(gpu.blas));
    CUDA_CHECK(cudaStreamDestroy(gpu.stream));
    CUDA_CHECK(cudaStreamDestroy(gpu.replica_stream));
    CUDA_CHECK(cudaStreamDestroy(gpu.hidden_stream));
    memset(&gpu, 0, sizeof gpu);
}

// ----------------------------------------------------------------------------
// sums over rows, for gradients of biases and of LayerNorm
//
// In two steps and always in the same order: the kernel that has the rows at hand leaves the sums
// of chunks of them, then one block per 32 columns adds up the chunks.

static constexpr int CHUNKS_MAX = 1024;

// The sums of chunk i of batch b lie at from[(b * count + i) * stride].
template <typename T> struct Chunks {
    const T *from;
    int count, stride;
};

// out (cols) of batch y, out_stride apart, = or += scale * the sum over chunks
template <typename Out, typename T>
__global__ void __launch_bounds__(WARP * WARP)
chunks_sum_kernel(Out *out, size_t out_stride, float scale, Chunks<T> chunks, int cols, int add) {
    __shared__ float sums[WARP][WARP];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, c = blockIdx.x * WARP + lane;
    const T *from = chunks.from + (size_t)blockIdx.y * chunks.count * chunks.stride + c;
    float sum = 0;
    for (int i = warp; i < chunks.count && c < cols; i += WARP) {
        sum += to_float(from[(size_t)i * chunks.stride]);
    }
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp || c >= cols) return;
    for (int i = 1; i < WARP; i++) sum += sums[i][lane];
    out += blockIdx.y * out_stride + c;
    *out = from_float<Out>(add ? to_float(*out) + scale * sum : scale * sum);
}

template <typename Out, typename T>
static void chunks_sum(Out *out, size_t out_stride, float scale, Chunks<T> chunks, int batch,
                       int cols, int add) {
    LAUNCH((chunks_sum_kernel<Out, T>), dim3(ceil_div(cols, WARP), batch), WARP * WARP, 0,
           gpu.stream, out, out_stride, scale, chunks, cols, add);
}

// give(column, total) of each column of this block, which has the WARP * PACK from its y on: the
// total of what its warps have in `sum`, a pack in each lane. sums is the block's shared memory.
template <typename F>
__device__ __forceinline__ void columns_total(float (*sums)[WARP * PACK], const float *sum,
                                              int cols, F give) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
#pragma unroll
    for (int j = 0; j < PACK; j++) sums[warp][lane * PACK + j] = sum[j];
    __syncthreads();
    for (int i = threadIdx.x; i < WARP * PACK; i += BLOCK) {
        int column = blockIdx.y * WARP * PACK + i;
        if (column >= cols) return;
        float total = 0;
        for (int w = 0; w < BLOCK_WARPS; w++) total += sums[w][i];
        give(column, total);
    }
}

// Makes every pack of (batch,rows,cols) by pack_make(source, ..), which returns it as floats.
// partial (batch,chunks,cols): the sums of what it made; NULL: nobody wants them.
template <typename Source>
__global__ void columns_kernel(float *partial, Source source, int rows, int cols, int chunk_rows) {
    __shared__ float sums[BLOCK_WARPS][WARP * PACK];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, c = (blockIdx.y * WARP + lane) * PACK;
    int begin = blockIdx.x * chunk_rows, end = min(rows, begin + chunk_rows);
    float sum[PACK] = {0};
    for (int row = begin + warp; row < end && c < cols; row += BLOCK_WARPS) {
        float made[PACK];
        pack_make(source, blockIdx.z, row, c, made);
#pragma unroll
        for (int j = 0; j < PACK; j++) sum[j] += made[j];
    }
    if (!partial) return;
    partial += ((size_t)blockIdx.z * gridDim.x + blockIdx.x) * cols;
    columns_total(sums, sum, cols, [&](int column, float total) { partial[column] = total; });
}

// scratch (batch,CHUNKS_MAX,cols), or NULL
template <typename Source>
static Chunks<float> columns_make(Source source, int batch, int rows, int cols, float *scratch) {
    int across = ceil_div(cols, WARP * PACK);
    int wanted = ceil_div(4 * gpu.properties.multiProcessorCount, across * batch);
    int chunks = max(1, min(min(wanted, CHUNKS_MAX), ceil_div(rows, BLOCK_WARPS)));
    int chunk_rows = ceil_div(rows, chunks);
    chunks = ceil_div(rows, chunk_rows);
    LAUNCH((columns_kernel<Source>), dim3(chunks, across, batch), BLOCK, 0, gpu.stream, scratch,
           source, rows, cols, chunk_rows);
    return {scratch, chunks, cols};
}

// The rows of d (batch,rows,cols) as they are.
typedef struct {
    const real *d;
    int rows, cols;
} Rows;

__device__ __forceinline__ void pack_make(const Rows &g, int batch, int row, int c,
                                          float made[PACK]) {
#pragma unroll
    for (int j = 0; j < PACK; j++) made[j] = 0;
    pack_add(made, g.d + ((size_t)batch * g.rows + row) * g.cols + c, 1);
}

// Gradient of a bias: out (cols) of each of `batch`, out_stride apart, = or += scale * the sums
// over the rows of d (batch,rows,cols), by a pass over them. scratch (batch,CHUNKS_MAX,cols)
static void bias_backward(float *out, size_t out_stride, float scale, const real *d, int batch,
                          int rows, int cols, int add, float *scratch) {
    RANGE();
    Chunks<float> sums = columns_make(Rows{d, rows, cols}, batch, rows, cols, scratch);
    chunks_sum(out, out_stride, scale, sums, batch, cols, add);
}

// ----------------------------------------------------------------------------
// merges on one GPU: what a stream is made of, added up and, on the way, normalized
//
// One warp takes a row of C elements; a lane reads and writes 16 bytes at a time.

// out = base_scale base + parts_scale (sum of parts) + share (sum of owns) + bias_scale bias. Copy
// g of out takes parts g step .. g step + count - 1: ranks that go on by themselves are `copies` of
// count 1, step 1; a merge has count F, step 0.
typedef struct {
    real *out;          // (copies,rows,C)
    const real *base;   // (base_rows,C) for each copy; NULL: none
    size_t base_stride; // elements from one copy's base to the next; 0: all have the same
    int base_rows;      // row r of out reads row r % base_rows
    float base_scale;
    const real *parts;  // (..,rows,C)
    int count, step;
    float parts_scale;
    const real *owns;   // (rows,C) for each part, own_stride apart; NULL: none
    size_t own_stride;
    float share;
    const float *bias;  // (C); NULL: none
    float bias_scale;
    int copies, rows, C;
} Merge;

// What the LayerNorm of it needs and writes; out of the merge is its input x.
typedef struct {
    real *normed;       // (copies,rows,C)
    float *mean, *rstd; // (copies,rows)
    const real *w, *b;  // (C)
} Norm;

__device__ __forceinline__ void merge_pack(const Merge &g, int copy, int row, int c,
                                           float sum[PACK]) {
    size_t n = (size_t)g.rows * g.C, at = (size_t)row * g.C + c;
    int first = copy * g.step;
    Packed<real> base = {}, part = {}, own = {};
    float bias[PACK] = {};
    // All that most merges read is on its way before any of it is waited for.
    if (g.base) {
        base = pack_load(g.base + copy * g.base_stride + (size_t)(row % g.base_rows) * g.C + c);
    }
    if (g.count) part = pack_load(g.parts + first * n + at);
    if (g.count && g.owns) own = pack_load(g.owns + first * g.own_stride + at);
    if (g.bias) floats_load(bias, g.bias + c);
#pragma unroll
    for (int j = 0; j < PACK; j++) sum[j] = 0;
    if (g.base) pack_add(sum, base, g.base_scale);
    if (g.count) pack_add(sum, part, g.parts_scale);
    if (g.count && g.owns) pack_add(sum, own, g.share);
    for (int i = first + 1; i < first + g.count; i++) {
        pack_add(sum, g.parts + i * n + at, g.parts_scale);
        if (g.owns) pack_add(sum, g.owns + i * g.own_stride + at, g.share);
    }
#pragma unroll
    for (int j = 0; j < PACK; j++) sum[j] += g.bias_scale * bias[j];
}

__device__ __forceinline__ Packed<real> pack_round(const float x[PACK]) {
    Packed<real> p;
#pragma unroll
    for (int j = 0; j < PACK; j++) p.at[j] = from_float<real>(x[j]);
    return p;
}

__device__ __forceinline__ void pack_make(const Merge &g, int copy, int row, int c,
                                          float made[PACK]) {
    merge_pack(g, copy, row, c, made);
    Packed<real> rounded = pack_round(made);
    pack_store(g.out + ((size_t)copy * g.rows + row) * g.C + c, rounded);
#pragma unroll
    for (int j = 0; j < PACK; j++) made[j] = to_float(rounded.at[j]);
}

// The row waits in shared memory, (warps,C), as it is stored, so that the backward pass sees the
// same. It is stored last: a store to global memory would keep the next pack's loads behind it. out
// NULL: it is stored already.
__global__ void merge_norm_kernel(Merge g, Norm norm) {
    SHARED_DYNAMIC(real, shared);
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, copy = blockIdx.y;
    int row = blockIdx.x * (blockDim.x / WARP) + warp;
    if (row >= g.rows) return;
    real *x = shared + (size_t)warp * g.C;
    float v[PACK], sum = 0, squares = 0;
    size_t at = (size_t)copy * g.rows + row;
    for (int c = lane * PACK; c < g.C; c += WARP * PACK) {
        merge_pack(g, copy, row, c, v);
        Packed<real> rounded = pack_round(v);
        pack_store(x + c, rounded);
        pack_unpack(v, rounded);
#pragma unroll
        for (int j = 0; j < PACK; j++) sum += v[j];
    }
    float mean = warp_sum(sum) / g.C;
    for (int c = lane * PACK; c < g.C; c += WARP * PACK) {
        pack_unpack(v, pack_load(x + c));
#pragma unroll
        for (int j = 0; j < PACK; j++) squares += (v[j] - mean) * (v[j] - mean);
    }
    float rstd = rsqrtf(warp_sum(squares) / g.C + 1e-5f);
    for (int c = lane * PACK; c < g.C; c += WARP * PACK) {
        Packed<real> row_pack = pack_load(x + c);
        Packed<real> w = pack_load(norm.w + c), b = pack_load(norm.b + c);
        if (g.out) pack_store(g.out + at * g.C + c, row_pack);
        pack_unpack(v, row_pack);
#pragma unroll
        for (int j = 0; j < PACK; j++) {
            v[j] = (v[j] - mean) * rstd * to_float(w.at[j]) + to_float(b.at[j]);
        }
        pack_store(norm.normed + at * g.C + c, pack_round(v));
    }
    if (lane == 0) {
        norm.mean[at] = mean;
        norm.rstd[at] = rstd;
    }
}

// LayerNorm once more, of streams x (copies,rows,C) whose mean and rstd are kept (`-r 2`).
__global__ void norm_again_kernel(Norm norm, const real *x, int rows, int C) {
    int row = blockIdx.x * BLOCK_WARPS + threadIdx.x / WARP, copy = blockIdx.y;
    if (row >= rows) return;
    size_t at = (size_t)copy * rows + row;
    float mean = norm.mean[at], rstd = norm.rstd[at];
    for (int c = threadIdx.x % WARP * PACK; c < C; c += WARP * PACK) {
        Packed<real> p = pack_load(x + at * C + c);
        Packed<real> w = pack_load(norm.w + c), b = pack_load(norm.b + c);
        float v[PACK];
#pragma unroll
        for (int j = 0; j < PACK; j++) {
            v[j] = (to_float(p.at[j]) - mean) * rstd * to_float(w.at[j]) + to_float(b.at[j]);
        }
        pack_store(norm.normed + at * C + c, pack_round(v));
    }
}

// Returns the sums over rows of each copy. scratch (copies,CHUNKS_MAX,C), or NULL: none
static Chunks<float> merge(const Merge &g, float *scratch) {
    return columns_make(g, g.copies, g.rows, g.C, scratch);
}

static void merge_norm(const Merge &g, const Norm &norm) {
    size_t row = g.C * sizeof(real);
    int warps = max(1, min(BLOCK_WARPS, (int)((48 << 10) / row)));
    LAUNCH(merge_norm_kernel, dim3(ceil_div(g.rows, warps), g.copies), warps * WARP, warps * row,
           gpu.stream, g, norm);
}

static void norm_again(const Norm &norm, const real *x, int copies, int rows, int C) {
    LAUNCH(norm_again_kernel, dim3(ceil_div(rows, BLOCK_WARPS), copies), BLOCK, 0, gpu.stream, norm,
           x, rows, C);
}

// ----------------------------------------------------------------------------
// LayerNorm, backward

typedef struct {
    real *dx;                       // (F,rows,C) written, or added to
    int add_dx, sum_dx;             // sum_dx: its sums over rows are left in `partial` too
    const real *dout;               // (F,rows,C), or with F 1 (parts,rows,C): their sum
    int parts;
    const real *x;                  // (copies,rows,C), x_stride apart
    const float *mean, *rstd;       // (copies,rows), stats_stride apart
    size_t x_stride, stats_stride;  // 0 where all ranks read the same stream
    const real *w;                  // (C)
    float *partial;                 // (F,chunks,2,C), with sum_dx (F,chunks,3,C): gradients of w
                                    // and b from a chunk of rows, and the sums of dx
    int rows, C, chunk_rows;
} NormBackward;

// The sum of `count` packs, n elements apart, rounded as a product rounds what it adds up.
__device__ __forceinline__ Packed<real> parts_load(const real *from, int count, size_t n) {
    if (count == 1) return pack_load(from);
    float sum[PACK] = {0};
#pragma unroll 1
    for (int i = 0; i < count; i++) pack_add(sum, from + i * n, 1);
    return pack_round(sum);
}

// Sums over rows that norm_backward_kernel makes: of w, of b, and of dx.
__host__ __device__ constexpr int norm_sums(const NormBackward &g) { return g.sum_dx ? 3 : 2; }

static constexpr int NORM_THREADS = 640, NORM_C_MAX = 1024 * PACK; // a thread takes a pack

// A block goes through a chunk of rows, ROWS at a time. A thread has a pack of columns: of a row,
// which it keeps between its two uses, and of the sums over rows. Blocks of more than NORM_THREADS
// have registers for one row at a time.
template <int ROWS>
__global__ void __launch_bounds__(ROWS > 1 ? NORM_THREADS : 1024)
norm_backward_kernel(NormBackward g) {
    __shared__ float shared[2][2 * ROWS][WARP];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    int f = blockIdx.y, C = g.C, c = threadIdx.x * PACK, turn = 0;
    int begin = blockIdx.x * g.chunk_rows, end = min(g.rows, begin + g.chunk_rows);
    size_t n = (size_t)g.rows * C;
    size_t in_rank = (size_t)begin * C + c, of_rank = f * n;
    const real *dout = g.dout + of_rank + in_rank, *x = g.x + f * g.x_stride + in_rank;
    real *dx = g.dx + of_rank + in_rank;
    float dw[PACK] = {0}, db[PACK] = {0}, sum_dx[PACK] = {0};
    float each = 1.0f / C;
    Packed<real> wp = {};
    if (c < C) wp = pack_load(g.w + c);
    for (int row = begin; row < end; row += ROWS, turn ^= 1) {
        Packed<real> dp[ROWS] = {}, xp[ROWS] = {}, old[ROWS] = {};
        float rstd[ROWS], norm[ROWS][PACK], dnorm[ROWS][PACK], sums[2 * ROWS] = {0};
        size_t stat = f * g.stats_stride + min(row + lane, end - 1);
        float means = lane < ROWS ? g.mean[stat] : 0, rstds = lane < ROWS ? g.rstd[stat] : 0;
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            if (c >= C || row + i >= end) continue;
            dp[i] = parts_load(dout + i * C, g.parts, n);
            xp[i] = pack_load(x + i * C);
            if (g.add_dx && ROWS > 1) old[i] = pack_load(dx + i * C);
        }
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            float d[PACK], w[PACK], mean = __shfl_sync(FULL_WARP, means, i);
            rstd[i] = __shfl_sync(FULL_WARP, rstds, i);
            pack_unpack(d, dp[i]);
            pack_unpack(w, wp);
            pack_unpack(norm[i], xp[i]);
#pragma unroll
            for (int j = 0; j < PACK; j++) {
                norm[i][j] = (norm[i][j] - mean) * rstd[i];
                dnorm[i][j] = d[j] * w[j];
                sums[2 * i] += dnorm[i][j];
                sums[2 * i + 1] += dnorm[i][j] * norm[i][j];
                dw[j] += d[j] * norm[i][j];
                db[j] += d[j];
            }
        }
#pragma unroll
        for (int i = 0; i < 2 * ROWS; i++) {
            sums[i] = warp_sum(sums[i]);
            if (lane == 0) shared[turn][i][warp] = sums[i];
        }
        __syncthreads(); // one is enough: the next sums lie elsewhere
#pragma unroll
        for (int i = 0; i < 2 * ROWS; i++) {
            sums[i] = warp_sum(lane < warps ? shared[turn][i][lane] : 0) * each;
        }
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            float v[PACK];
            if (c >= C || row + i >= end) continue;
            if (g.add_dx && ROWS == 1) old[i] = pack_load(dx + i * C); // no room for it before
            pack_unpack(v, old[i]);
#pragma unroll
            for (int j = 0; j < PACK; j++) {
                v[j] += (dnorm[i][j] - sums[2 * i] - norm[i][j] * sums[2 * i + 1]) * rstd[i];
            }
            Packed<real> rounded = pack_round(v);
            pack_store(dx + i * C, rounded);
            if (!g.sum_dx) continue;
            pack_unpack(v, rounded);
#pragma unroll
            for (int j = 0; j < PACK; j++) sum_dx[j] += v[j];
        }
        dout += ROWS * C;
        x += ROWS * C;
        dx += ROWS * C;
    }
    if (c >= C) return;
    float *sums_at = g.partial + ((size_t)f * gridDim.x + blockIdx.x) * norm_sums(g) * C + c;
    floats_store(sums_at, dw);
    floats_store(sums_at + C, db);
    if (g.sum_dx) floats_store(sums_at + 2 * C, sum_dx);
}

// In as many chunks as the GPU holds blocks; returns how many.
template <int ROWS> static int norm_backward_launch(NormBackward g, int threads, int F) {
    int blocks;
    CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, norm_backward_kernel<ROWS>,
                                                             threads, 0));
    blocks = min(blocks * gpu.properties.multiProcessorCount, CHUNKS_MAX);
    g.chunk_rows = ceil_div(ceil_div(g.rows, blocks), ROWS) * ROWS;
    int chunks = ceil_div(g.rows, g.chunk_rows);
    LAUNCH((norm_backward_kernel<ROWS>), dim3(chunks, F), threads, 0, gpu.stream, g);
    return chunks;
}

// dw, db (C) of each of F ranks, grad_stride apart, are written, or added to. g.partial has room
// for CHUNKS_MAX chunks. Returns the sums over rows of dx, if g.sum_dx.
static Chunks<float> norm_backward(NormBackward g, float *dw, float *db, size_t grad_stride, int F,
                                   int add) {
    RANGE();
    int threads = ceil_div(g.C, WARP * PACK) * WARP;
    int chunks = threads > NORM_THREADS ? norm_backward_launch<1>(g, threads, F)
                                        : norm_backward_launch<2>(g, threads, F);
    Chunks<float> of_w = {g.partial, chunks, norm_sums(g) * g.C}, of_b = of_w, of_dx = of_w;
    of_b.from += g.C;
    of_dx.from += 2 * g.C;
    chunks_sum(dw, grad_stride, 1, of_w, F, g.C, add);
    chunks_sum(db, grad_stride, 1, of_b, F, g.C, add);
    return of_dx;
}

// ----------------------------------------------------------------------------
// embedding

// out (rows,C) = wte[token] for tokens first .. first+count-1, whose rows wte (count,C) holds;
// zeros for others
__global__ void embedding_kernel(real *out, const int32_t *tokens, const real *wte, int first,
                                 int count, int rows, int C) {
    int row = blockIdx.x * BLOCK_WARPS + threadIdx.x / WARP;
    if (row >= rows) return;
    int token = tokens[row] - first, held = token >= 0 && token < count;
    for (int c = threadIdx.x % WARP * PACK; c < C; c += WARP * PACK) {
        float zero[PACK] = {0};
        pack_store(out + (size_t)row * C + c,
                   held ? pack_load(wte + (size_t)token * C + c) : pack_round(zero));
    }
}

static void embedding_forward(real *out, const int32_t *tokens, const real *wte, int first,
                              int count, int rows, int C) {
    LAUNCH(embedding_kernel, ceil_div(rows, BLOCK_WARPS), BLOCK, 0, gpu.stream, out, tokens, wte,
           first, count, rows, C);
}

// Rows of the micro-batch sorted by token: group g is token group_token[g] at rows
// order[group_begin[g]] .. of it. Then no two blocks add to the same row of the gradient, and a
// token's rows are added in their order: no atomics.
typedef struct {
    const int32_t *tokens, *targets, *order, *group_token, *group_begin;
    int groups;
} Batch;

// dwte (count,C) is added to: the head has been there first. A block takes a token and 32 packs of
// its columns.
__global__ void embedding_backward_kernel(float *dwte, const real *dout, Batch batch, int first,
                                          int count, int C) {
    __shared__ float sums[BLOCK_WARPS][WARP * PACK];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, c = (blockIdx.y * WARP + lane) * PACK;
    int token = batch.group_token[blockIdx.x] - first, end = batch.group_begin[blockIdx.x + 1];
    if (token < 0 || token >= count) return; // the whole block: another rank has it
    float sum[PACK] = {0};
    for (int i = batch.group_begin[blockIdx.x] + warp; i < end && c < C; i += BLOCK_WARPS) {
        pack_add(sum, dout + (size_t)batch.order[i] * C + c, 1);
    }
    dwte += (size_t)token * C;
    columns_total(sums, sum, C, [&](int column, float total) { dwte[column] += total; });
}

static void embedding_backward(float *dwte, const real *dout, Batch batch, int first, int count,
                               int C) {
    LAUNCH(embedding_backward_kernel, dim3(batch.groups, ceil_div(C, WARP * PACK)), BLOCK, 0,
           gpu.stream, dwte, dout, batch, first, count, C);
}

// dwpe (T,C) = or += sum over sequences of dout (B,T,C)
__global__ void position_backward_kernel(float *dwpe, const real *dout, int B, int T, int C,
                                         int add) {
    int t = blockIdx.x * BLOCK_WARPS + threadIdx.x / WARP;
    if (t >= T) return;
    for (int c = threadIdx.x % WARP * PACK; c < C; c += WARP * PACK) {
        float sum[PACK] = {0}, *to = dwpe + (size_t)t * C + c;
        if (add) floats_load(sum, to);
        for (int b = 0; b < B; b++) pack_add(sum, dout + ((size_t)b * T + t) * C + c, 1);
        floats_store(to, sum);
    }
}

static void position_backward(float *dwpe, const real *dout, int B, int T, int C, int add) {
    LAUNCH(position_backward_kernel, ceil_div(T, BLOCK_WARPS), BLOCK, 0, gpu.stream, dwpe, dout, B,
           T, C, add);
}

// ----------------------------------------------------------------------------
// GELU: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), GPT-2's. As 0.5 (1 + tanh(u / 2)) is the
// logistic function of u, it is x logistic(u) with u = 2 sqrt(2/pi) (x + 0.044715 x^3).

#define GELU_SCALE (2 * 0.7978845608028654f)
#define GELU_CUBE 0.044715f

__device__ __forceinline__ float gelu_logistic(float x) {
    float u = GELU_SCALE * (x + GELU_CUBE * x * x * x);
    return __fdividef(1, 1 + exp2_fast(-(float)M_LOG2E * u));
}

__global__ void gelu_kernel(real *out, const real *in, size_t n) {
    size_t i = ((size_t)blockIdx.x * BLOCK + threadIdx.x) * PACK;
    if (i >= n) return;
    float x[PACK];
    pack_unpack(x, pack_load(in + i));
#pragma unroll
    for (int j = 0; j < PACK; j++) x[j] *= gelu_logistic(x[j]);
    pack_store(out + i, pack_round(x));
}

// What columns_kernel makes of it: dx (rows,cols) of each of a batch = dout gelu'(in).
typedef struct {
    real *dx; // may be dout
    const real *dout, *in;
    int rows, cols;
} GeluBackward;

__device__ __forceinline__ void pack_make(const GeluBackward &g, int batch, int row, int c,
                                          float made[PACK]) {
    size_t at = ((size_t)batch * g.rows + row) * g.cols + c;
    float x[PACK];
    pack_unpack(x, pack_load(g.in + at));
    pack_unpack(made, pack_load(g.dout + at));
#pragma unroll
    for (int j = 0; j < PACK; j++) {
        float s = gelu_logistic(x[j]), du = GELU_SCALE * (1 + 3 * GELU_CUBE * x[j] * x[j]);
        made[j] *= s + x[j] * s * (1 - s) * du;
    }
    pack_store(g.dx + at, pack_round(made));
}

// n a multiple of PACK
static void gelu_forward(real *out, const real *in, size_t n) {
    LAUNCH(gelu_kernel, (unsigned)ceil_div(n, (size_t)BLOCK * PACK), BLOCK, 0, gpu.stream, out, in,
           n);
}

// Returns the sums over the rows of dx. scratch (batch,CHUNKS_MAX,cols), or NULL: none
static Chunks<float> gelu_backward(real *dx, const real *dout, const real *in, int batch, int rows,
                                   int cols, float *scratch) {
    return columns_make(GeluBackward{dx, dout, in, rows, cols}, batch, rows, cols, scratch);
}

// ----------------------------------------------------------------------------
// classifier: softmax and cross-entropy over logits (rows,width) of the tokens first ..
// first+count-1, in the first `count` columns; one block per row

// Takes the pack at column v into the largest logit so far and the sum of exponentials relative to
// it. Only a pack that is TESTED may reach past `count`.
template <bool TESTED>
__device__ __forceinline__ void pack_scan(const real *row, int v, int count, float *most,
                                          float *sum) {
    float x[PACK], here = -INFINITY;
    pack_unpack(x, pack_load(row + v));
#pragma unroll
    for (int j = 0; j < PACK; j++) {
        if (TESTED && v + j >= count) x[j] = -INFINITY;
        here = fmaxf(here, x[j]);
    }
    if (here > *most) {
        *sum *= exp2_fast((*most - here) * (float)M_LOG2E);
        *most = here;
    }
    float shift = *most * (float)M_LOG2E;
#pragma unroll
    for (int j = 0; j < PACK; j++) *sum += exp2_fast(fmaf(x[j], (float)M_LOG2E, -shift));
}

// Largest of a row and the sum of exponentials relative to it, both over the block.
__device__ __forceinline__ void row_scan(const real *row, int count, float *shared, float *most,
                                         float *sum) {
    float m = -INFINITY, s = 0; // of this thread: online, in one pass over memory
    int v = threadIdx.x * PACK, step = blockDim.x * PACK;
    for (; v + PACK <= count; v += step) pack_scan<false>(row, v, count, &m, &s);
    if (v < count) pack_scan<true>(row, v, count, &m, &s);
    *most = block_reduce<true>(m, shared);
    *sum = block_reduce<false>(m == -INFINITY ? s : s * expf(m - *most), shared);
}

// The pack at column v becomes its gradient: see row_backward. shift is lse log2(e). Only a pack
// that is TESTED may reach past `count` or hold the target.
template <bool TESTED>
__device__ __forceinline__ void pack_backward(real *row, int v, int target, float shift,
                                              float scale, int count) {
    float x[PACK];
    pack_unpack(x, pack_load(row + v));
#pragma unroll
    for (int j = 0; j < PACK; j++) {
        x[j] = exp2_fast(fmaf(x[j], (float)M_LOG2E, -shift)) * scale;
        if (TESTED && v + j >= count) x[j] = 0;
        if (TESTED && v + j == target) x[j] -= scale;
    }
    pack_store(row + v, pack_round(x));
}

// The row becomes its own gradient, (softmax - one at the target) scale; columns past `count`
// become zero.
__device__ __forceinline__ void row_backward(real *row, int target, float lse, float scale,
                                             int count, int width) {
    float shift = lse * (float)M_LOG2E;
    int v = threadIdx.x * PACK, step = blockDim.x * PACK;
    int target_pack = target & -PACK, waits = 0; // till the end, so that the others need no test
    for (; v + PACK <= count; v += step) {
        if (v == target_pack) waits = 1;
        else pack_backward<false>(row, v, target, shift, scale, count);
    }
    if (v < count) {
        pack_backward<true>(row, v, target, shift, scale, count);
        v += step;
    }
    for (; v < width; v += step) pack_store(row + v, Packed<real>{});
    if (waits) pack_backward<true>(row, target_pack, target, shift, scale, count);
}

// With the whole vocabulary here, all at once: losses (rows), and the gradient over the logits
// unless scale is 0.
__global__ void __launch_bounds__(1024)
classifier_kernel(real *logits, float *losses, const int32_t *targets, float scale, int count,
                  int width) {
    __shared__ float shared[WARP];
    real *row = logits + (size_t)blockIdx.x * width;
    int target = targets[blockIdx.x];
    float most, sum, chosen = to_float(row[target]);
    // The barriers of row_scan stand between reading `chosen` and writing over it.
    row_scan(row, count, shared, &most, &sum);
    float lse = most + logf(sum);
    if (threadIdx.x == 0) losses[blockIdx.x] = lse - chosen;
    if (scale != 0) row_backward(row, target, lse, scale, count, width);
}

// Of one part of the vocabulary: most, sums[0] (rows): as row_scan says; sums[1]: the target's
// logit, 0 if it is elsewhere.
__global__ void __launch_bounds__(1024)
classifier_part_kernel(const real *logits, float *most, float *sums, const int32_t *targets,
                       int first, int count, int width) {
    __shared__ float shared[WARP];
    const real *row = logits + (size_t)blockIdx.x * width;
    int target = targets[blockIdx.x] - first, rows = gridDim.x;
    float m, s;
    row_scan(row, count, shared, &m, &s);
    if (threadIdx.x) return;
    most[blockIdx.x] = m;
    sums[blockIdx.x] = s;
    sums[rows + blockIdx.x] = target >= 0 && target < count ? to_float(row[target]) : 0;
}

// most (rows) = the largest over parts (parts,rows)
__global__ void parts_max_kernel(float *most, const float *part_most, int parts, int rows) {
    int i = blockIdx.x * BLOCK + threadIdx.x;
    if (i >= rows) return;
    float m = part_most[i];
    for (int f = 1; f < parts; f++) m = fmaxf(m, part_most[(size_t)f * rows + i]);
    most[i] = m;
}

// sums (parts,2,rows), made relative to `most` of all ranks, are added up into the first.
__global__ void parts_rescale_kernel(float *sums, const float *part_most, const float *most,
                                     int parts, int rows) {
    int i = blockIdx.x * BLOCK + threadIdx.x;
    if (i >= rows) return;
    float sum = 0, chosen = 0;
    for (int f = 0; f < parts; f++) {
        float m = part_most[(size_t)f * rows + i], part = sums[(size_t)2 * f * rows + i];
        // m is -inf for a part without tokens, whose sum is 0, and for one of NaNs alone.
        sum += m == -INFINITY ? part : part * expf(m - most[i]);
        chosen += sums[((size_t)2 * f + 1) * rows + i];
    }
    sums[i] = sum;
    sums[rows + i] = chosen;
}

__global__ void losses_kernel(float *losses, float *lse, const float *most, const float *sums,
                              int rows) {
    int i = blockIdx.x * BLOCK + threadIdx.x;
    if (i >= rows) return;
    lse[i] = most[i] + logf(sums[i]);
    losses[i] = lse[i] - sums[rows + i];
}

__global__ void __launch_bounds__(1024)
classifier_backward_kernel(real *logits, const float *lse, const int32_t *targets, float scale,
                           int first, int count, int width) {
    row_backward(logits + (size_t)blockIdx.x * width, targets[blockIdx.x] - first, lse[blockIdx.x],
                 scale, count, width);
}

// total = or += the mean of losses (rows), or of what else there is a number of for each; one block
__global__ void loss_mean_kernel(double *total, const float *losses, int rows, int add) {
    __shared__ double sums[BLOCK];
    double sum = 0;
    for (int i = threadIdx.x; i < rows; i += BLOCK) sum += losses[i];
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x) return;
    for (int i = 1; i < BLOCK; i++) sum += sums[i];
    *total = add ? *total + sum / rows : sum / rows;
}

// G += scale (x - y), of (rows,C) each; distances (rows) = or += sums of (x - y)^2. A warp a row.
__global__ void match_kernel(real *G, float *distances, const real *x, const real *y, float scale,
                             int rows, int C, int add) {
    int row = blockIdx.x * BLOCK_WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= rows) return;
    float sum = 0;
    for (int c = lane * PACK; c < C; c += WARP * PACK) {
        size_t at = (size_t)row * C + c;
        Packed<real> g = pack_load(G + at), mine = pack_load(x + at), wanted = pack_load(y + at);
        float v[PACK];
#pragma unroll
        for (int j = 0; j < PACK; j++) {
            float d = to_float(mine.at[j]) - to_float(wanted.at[j]);
            v[j] = to_float(g.at[j]) + scale * d;
            sum += d * d;
        }
        pack_store(G + at, pack_round(v));
    }
    sum = warp_sum(sum);
    if (lane == 0) distances[row] = add ? distances[row] + sum : sum;
}

static int classifier_threads(int width) {
    return min(1024, ceil_div(ceil_div(width, PACK), WARP) * WARP);
}

// ----------------------------------------------------------------------------
// update: gradient norm and AdamW, over the flat block that holds all tensors

// Where tensors lie in the flat block: tensor p is elements begin[p] .. begin[p] + size[p] - 1.
typedef struct {
    size_t begin[P_COUNT], size[P_COUNT];
    int decays[P_COUNT];
} FlatTable;

static constexpr int NORM_BLOCKS = 1024; // at most, of one slice or all

// The flat block in as many slices as there are replicas; `count` of them, from element `first` on,
// are here. A slice is added up by itself, so that with -z 1, where each replica has one, the norm
// has the same bits.
typedef struct {
    size_t first, size; // of a slice
    int count, blocks;  // blocks of threads for each
} NormSlices;

// partial (count,P_COUNT,blocks): sums of squares of what each tensor's gradient has in a slice.
// Every block has a part of every tensor, so that none is left with a large tensor alone.
__global__ void squares_kernel(double *partial, const float *grads, FlatTable table,
                               NormSlices slices) {
    __shared__ float shared[WARP];
    size_t low = slices.first + blockIdx.y * slices.size, high = low + slices.size;
    for (int p = 0; p < P_COUNT; p++) {
        size_t begin = max(table.begin[p], low), end = min(table.begin[p] + table.size[p], high);
        double sum = 0;
#pragma unroll 4
        for (size_t i = begin + ((size_t)blockIdx.x * BLOCK + threadIdx.x) * 4; i < end;
             i += (size_t)gridDim.x * BLOCK * 4) {
            Packed<float> v = pack_load(grads + i);
            sum += v.at[0] * v.at[0] + v.at[1] * v.at[1] + v.at[2] * v.at[2] + v.at[3] * v.at[3];
        }
        float total = block_reduce<false>((float)sum, shared);
        if (threadIdx.x == 0) partial[(blockIdx.y * P_COUNT + p) * gridDim.x + blockIdx.x] = total;
    }
}

// squares (count,P_COUNT): one warp each
__global__ void squares_sum_kernel(double *squares, const double *partial, int blocks) {
    double sum = 0;
    for (int i = threadIdx.x; i < blocks; i += WARP) sum += partial[blockIdx.x * blocks + i];
    for (int step = WARP / 2; step > 0; step /= 2) sum += __shfl_xor_sync(FULL_WARP, sum, step);
    if (threadIdx.x == 0) squares[blockIdx.x] = sum;
}

// For each of `slices` slices.
static int norm_blocks(int slices) {
    return max(1, min(NORM_BLOCKS, 4 * gpu.properties.multiProcessorCount) / slices);
}

// squares (count,P_COUNT) of each tensor's gradient; partial (count,P_COUNT,blocks) is scratch
static void gradients_square(double *squares, double *partial, const float *grads,
                             const FlatTable &table, const NormSlices &slices) {
    dim3 grid((unsigned)slices.blocks, (unsigned)slices.count);
    LAUNCH(squares_kernel, grid, BLOCK, 0, gpu.stream, partial, grads, table, slices);
    LAUNCH(squares_sum_kernel, slices.count * P_COUNT, WARP, 0, gpu.stream, squares, partial,
           slices.blocks);
}

typedef struct { float rate, beta1, beta2, eps, decay, scale, correct1, correct2; } AdamWStep;

// One AdamW step (arXiv 1711.05101) of elements first .. first+n-1 of the flat block; master and
// moments hold just these. In fp32 the parameters are their own master.
__global__ void adamw_kernel(real *params, float *master, float *moment1, float *moment2,
                             const float *grads, size_t first, size_t n, FlatTable table,
                             AdamWStep h) {
    size_t i = ((size_t)blockIdx.x * BLOCK + threadIdx.x) * PACK;
    if (i >= n) return;
    float decay = 0, g[PACK], w[PACK], m1[PACK], m2[PACK];
    for (int p = 0; p < P_COUNT; p++) { // sizes are multiples of 8: neighbours belong to one tensor
        if (table.decays[p] && first + i - table.begin[p] < table.size[p]) decay = h.decay;
    }
    floats_load(g, grads + first + i);
    floats_load(w, master + i);
    floats_load(m1, moment1 + i);
    floats_load(m2, moment2 + i);
#pragma unroll
    for (int j = 0; j < PACK; j++) {
        float d = g[j] * h.scale;
        m1[j] = h.beta1 * m1[j] + (1 - h.beta1) * d;
        m2[j] = h.beta2 * m2[j] + (1 - h.beta2) * d * d;
        float root = sqrtf(m2[j] * h.correct2);
        w[j] -= h.rate * (m1[j] * h.correct1 / (root + h.eps) + decay * w[j]);
    }
    floats_store(moment1 + i, m1);
    floats_store(moment2 + i, m2);
    floats_store(master + i, w);
    if (sizeof(real) < sizeof(float)) pack_store_whole(params + first + i, pack_round(w));
}

// Sum over copies 0 .. count-1 of x (count,n), `stride` apart, into the first
__global__ void copies_sum_kernel(float *x, int count, size_t stride, size_t n) {
    size_t i = (size_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i >= n) return;
    float sum = x[i];
    for (int f = 1; f < count; f++) sum += x[f * stride + i];
    x[i] = sum;
}

// sums (2L,C): for each sub-block k the output biases of sub-blocks from[k] .. k. attprojb, fcprojb
// (L,C)
__global__ void bias_sums_kernel(float *sums, const real *attprojb, const real *fcprojb,
                                 const int *from, int C) {
    int k = blockIdx.x;
    for (int c = threadIdx.x; c < C; c += blockDim.x) {
        float sum = 0;
        for (int i = from[k]; i <= k; i++) {
            sum += to_float((i % 2 ? fcprojb : attprojb)[(size_t)(i / 2) * C + c]);
        }
        sums[(size_t)k * C + c] = sum;
    }
}

// ----------------------------------------------------------------------------
// attention: causal, in the manner of FlashAttention-2 (arXiv 2307.08691)
//
// A block keeps a tile of queries and walks over tiles of keys; nothing of size T x T is ever in
// memory. The forward pass keeps each row's largest score and its sum of exponentials so far and
// rescales its output when the largest one grows (algorithm 1 of the paper). The backward pass
// makes the probabilities P again from lse, the log of each row's sum:
//
//   delta = rowsum(dout * out)    dS = P * (dout Vᵀ - delta)
//   dV = Pᵀ dout    dK = scale dSᵀ Q    dQ = scale dS K
//
// It runs as two kernels. The first owns queries and sums over keys (dQ); it has the rows of dout
// that delta is made of, and leaves what the second one needs of each row. That one owns keys and
// sums over queries (dK, dV). This makes P twice, 7 products of matrices for the 5 that there are,
// but needs neither atomics nor a second buffer: every sum has one owner and one order, so that a
// run can be repeated to the bit. (dev/cuda/NOTES.md counts what 5 products would move.)
//
// Causality also takes care of the end of a sequence: rows from T on read as 0, and since they come
// after every real query, no real query sees them as keys, and as queries they add 0 to dK and dV.

typedef struct {
    int B, T;      // B counts the sequences of all folded ranks
    int heads, HS; // of one rank, and their size
    int past;      // rows of qkv before each sequence's T, whose keys and values count too
    int spare;     // rows of qkv behind them, before the next sequence
} AttentionShape;

// Where the matrices of one (sequence, head) start, in elements, and how far apart their rows are.
typedef struct {
    // In qkv (B,past+T+spare,3,heads,HS), out (B,T,heads,HS), lse (B,heads,T).
    size_t qkv, out, row;
    int width;            // heads*HS: the stride of out, and the way from Q to K and from K to V
    int qkv_stride;       // 3*heads*HS
} AttentionHead;

// Where the sums over the rows of a tile of this head's dQ go, in (B,tiles,3,heads,HS); those of dK
// and dV lie a head.width and two of them behind.
__device__ __forceinline__ float *tile_sums(float *sums, AttentionHead head, int tile, int HS) {
    return sums + ((size_t)blockIdx.z * gridDim.x + tile) * head.qkv_stride + blockIdx.y * HS;
}

// What the first kernel of the backward pass leaves to the second of each row, (B,heads,T) each.
// The precisions have their own idea of it.
typedef struct { float *lse, *delta; } AttentionRows;

// The grid is (tiles, heads, B), the last two up to 65535: what depends on them alone lives in
// uniform registers then, and the blocks of a head run one after the other, while its keys and
// values are in the L2 cache. `rows` of qkv are one sequence.
__device__ __forceinline__ AttentionHead attention_head(AttentionShape s, int rows) {
    int h = blockIdx.y, b = blockIdx.z, width = s.heads * s.HS;
    AttentionHead head;
    head.qkv = (size_t)b * rows * 3 * width + h * s.HS;
    head.out = (size_t)b * s.T * width + h * s.HS;
    head.row = ((size_t)b * s.heads + h) * s.T;
    head.width = width;
    head.qkv_stride = 3 * width;
    return head;
}

// Does a query at position `query` see the key at position `key`?
__device__ __forceinline__ bool attention_sees(int query, int key) {
    return key <= query;
}

// The barrier between the loading of a tile and its use.
__device__ __forceinline__ void attention_tile_barrier() {
    __syncthreads();
}

#ifdef PRECISION_FP32
#include "dev/cuda/attention_fp32.cuh"
#else

// --------------------------------------
// bf16: tensor cores (compute capability 8.0 and later)
//
// 4 warps share a tile; each owns 16*M of its rows, M = 2 where the registers allow it, since every
// fragment that is read from shared memory is then multiplied twice. The products are mma.m16n8k16:
// C (16,8) += A (16,16) B (16,8). With g = lane / 4 and t = lane % 4 a lane holds, as the PTX ISA
// lays them out (two bf16 to a register, the lower index first):
//
//   A  a0: row g, k 2t 2t+1             a1: row g+8, k 2t 2t+1
//      a2: row g, k 2t+8 2t+9           a3: row g+8, k 2t+8 2t+9
//   B  b0: k 2t 2t+1, column g          b1: k 2t+8 2t+9, column g
//   C  c0 c1: row g, columns 2t 2t+1    c2 c3: row g+8, columns 2t 2t+1
//
// Two C side by side are therefore laid out like an A: probabilities go from one product into the
// next in registers.

enum { ATTENTION_WARPS = 4, ATTENTION_THREADS = ATTENTION_WARPS * WARP };

__device__ __forceinline__ uint32_t bf16_pair(float low, float high) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    uint32_t bits;
    memcpy(&bits, &pair, sizeof bits);
    return bits;
}

// --------------------------------------
// bf16: tiles and fragments
//
// A tile's rows are D elements long without padding. Its 16-byte packs are permuted within a row,
// or within the two rows that lie in the same 128 bytes: ldmatrix reads one column of packs of 8
// rows at a time, and they then lie in 8 different groups of 4 banks.

// `row` may be any, `pack` counts packs of 8 columns
template <int D> __device__ __forceinline__ int tile_at(int row, int pack) {
    constexpr int PACKS = D / 8, ROWS_OF_128 = D < 64 ? 64 / D : 1;
    return row * D + (pack ^ (row / ROWS_OF_128 % (PACKS < 8 ? PACKS : 8))) * 8;
}

// tile (ROWS,D) = rows first .. of a matrix (T,HS) with row stride `stride`; what lies outside of
// it becomes 0.
template <int ROWS, int D, bool FULL>
__device__ __forceinline__ void tile_start(real *tile, const real *matrix, int stride, int first,
                                           int T, int HS) {
    constexpr int PACKS = D / 8;
    constexpr int AT_ONCE = ATTENTION_THREADS / PACKS; // rows that the block copies at once
    static_assert(ROWS % AT_ONCE == 0);
    int thread = made_again(threadIdx.x), row = thread / PACKS, pack = thread % PACKS;
    const real *from = matrix + (ptrdiff_t)(first + row) * stride + pack * 8;
    int end = FULL || pack * 8 < HS ? T : 0;
    #pragma unroll
    for (int n = 0; n < ROWS; n += AT_ONCE, from += AT_ONCE * stride) {
        copy_start<16>(tile + tile_at<D>(row, pack) + n * D, from, first + row + n < end);
    }
}

// to (ROWS) = from[first ..], with zeros from T on
template <int ROWS>
__device__ __forceinline__ void row_start(float *to, const float *from, int first, int T) {
    static_assert(ROWS <= ATTENTION_THREADS);
    int i = made_again(threadIdx.x);
    if (i < ROWS) copy_start<4>(to + i, from + first + i, first + i < T);
}

// A = rows row .. row+16*M-1 of a tile, all of its columns
template <int M, int D>
__device__ __forceinline__ void fragments_load(uint32_t (&a)[M][D / 16][4], const real *tile,
                                               int row) {
    int lane = threadIdx.x % WARP;
    #pragma unroll
    for (int m = 0; m < M; m++) {
        #pragma unroll
        for (int k = 0; k < D / 16; k++) {
            ldmatrix(a[m][k], tile + tile_at<D>(row + 16 * m + lane % 16, 2 * k + lane / 16));
        }
    }
}

// c (16*M,16) += A times the transpose of rows row .. row+15 of a tile, row a multiple of 16, which
// does not change the order of packs. c[m][n] is the C of columns 8n ..
template <int M, int D>
__device__ __forceinline__ void multiply_by_rows(float (&c)[M][2][4],
                                                 const uint32_t (&a)[M][D / 16][4],
                                                 const real *tile, int row) {
    int lane = threadIdx.x % WARP;
    int at = row * D + tile_at<D>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
    #pragma unroll
    for (int k = 0; k < D / 16; k++) {
        uint32_t b[4]; // rows 0-7 and 8-15, two registers each
        ldmatrix(b, tile + (at ^ 16 * k));
        #pragma unroll
        for (int m = 0; m < M; m++) {
            mma(c[m][0], a[m][k], b);
            mma(c[m][1], a[m][k], b + 2);
        }
    }
}

// c (16*M,D) += A (16*M,16) · (rows row .. row+15 of a tile), row a multiple of 16
template <int M, int D>
__device__ __forceinline__ void multiply_by_columns(float (&c)[M][D / 8][4],
                                                    const uint32_t (&a)[M][4], const real *tile,
                                                    int row) {
    int lane = threadIdx.x % WARP, at = row * D + tile_at<D>(lane % 16, lane / 16);
    #pragma unroll
    for (int n = 0; n < D / 16; n++) {
        uint32_t b[4]; // columns 0-7 and 8-15, two registers each
        ldmatrix_transposed(b, tile + (at ^ 16 * n));
        #pragma unroll
        for (int m = 0; m < M; m++) {
            mma(c[m][2 * n], a[m], b);
            mma(c[m][2 * n + 1], a[m], b + 2);
        }
    }
}

// Two C side by side as the A of the next product, rounded to bf16.
template <int M>
__device__ __forceinline__ void fragments_from(uint32_t (&a)[M][4], const float (&c)[M][2][4]) {
    #pragma unroll
    for (int m = 0; m < M; m++) {
        #pragma unroll
        for (int i = 0; i < 4; i++) {
            a[m][i] = bf16_pair(c[m][i / 2][i % 2 * 2], c[m][i / 2][i % 2 * 2 + 1]);
        }
    }
}

// c[n][i] as fragments_from rounded it
__device__ __forceinline__ float fragment_value(const uint32_t (&a)[4], int n, int i) {
    uint32_t pair = a[2 * n + i / 2];
    return __uint_as_float(i % 2 ? pair & 0xFFFF0000u : pair << 16);
}

// Calls f(m, n, i) for all that a lane holds of (16*M,16): c[m][n][i].
template <int M, typename F> __device__ __forceinline__ void each_held(F f) {
    #pragma unroll
    for (int m = 0; m < M; m++) {
        #pragma unroll
        for (int n = 0; n < 2; n++) {
            #pragma unroll
            for (int i = 0; i < 4; i++) f(m, n, i);
        }
    }
}

// Scores (16*M,16) that a query must not see become -inf. Their rows start at position row, their
// columns at column.
template <int M, bool ROWS_ARE_KEYS>
__device__ __forceinline__ void scores_mask(float (&scores)[M][2][4], int row, int column) {
    int lane = threadIdx.x % WARP;
    each_held<M>([&](int m, int n, int i) {
        int y = row + 16 * m + lane / 4 + i / 2 * 8, x = column + 8 * n + lane % 4 * 2 + i % 2;
        if (!(ROWS_ARE_KEYS ? attention_sees(x, y) : attention_sees(y, x))) {
            scores[m][n][i] = -INFINITY;
        }
    });
}

// Rows first+own .. of a matrix (T,HS) = factor * c (16*M,D), by way of the rows own .. of a tile
// that only this warp uses, so that every thread writes 16 bytes at a time.
template <int M, int D, bool FULL>
__device__ __forceinline__ void rows_store(real *matrix, int stride, real *tile, int own,
                                           const float (&c)[M][D / 8][4], float factor, int first,
                                           int T, int HS) {
    constexpr int PACKS = D / 8;
    int lane = threadIdx.x % WARP;
    #pragma unroll
    for (int m = 0; m < M; m++) {
        #pragma unroll
        for (int n = 0; n < PACKS; n++) {
            #pragma unroll
            for (int half = 0; half < 2; half++) {
                uint32_t pair = bf16_pair(c[m][n][2 * half] * factor,
                                          c[m][n][2 * half + 1] * factor);
                int row = own + 16 * m + lane / 4 + 8 * half;
                *reinterpret_cast<uint32_t *>(tile + tile_at<D>(row, n) + lane % 4 * 2) = pair;
            }
        }
    }
    __syncwarp();
    for (int i = lane; i < 16 * M * PACKS; i += WARP) {
        int row = own + i / PACKS, pack = i % PACKS;
        if (first + row >= T || (!FULL && pack * 8 >= HS)) continue;
        pack_store_whole(matrix + (ptrdiff_t)(first + row) * stride + pack * 8,
                         pack_load(tile + tile_at<D>(row, pack)));
    }
}

// to (HS) = factor * the sums over the rows of a block, of which each warp has 16*M in c. They meet
// in its rows own .. of the tile that rows_store went by.
template <int M, int D>
__device__ __forceinline__ void columns_sum(float *to, real *tile, int own,
                                            const float (&c)[M][D / 8][4], float factor, int HS) {
    int lane = threadIdx.x % WARP;
    float *mine = reinterpret_cast<float *>(tile + own * D);
    __syncwarp(); // rows_store has read these rows
    #pragma unroll
    for (int i = 0; i < D / 4; i++) { // columns 8n + 2t and 8n + 2t+1
        float sum = 0;
        for (int m = 0; m < M; m++) sum += c[m][i / 2][i % 2] + c[m][i / 2][2 + i % 2];
        for (int step = 4; step < WARP; step *= 2) sum += __shfl_xor_sync(FULL_WARP, sum, step);
        if (lane < 4) mine[i / 2 * 8 + lane * 2 + i % 2] = sum;
    }
    __syncthreads();
    if ((int)threadIdx.x >= HS) return;
    float sum = 0;
    for (int warp = 0; warp < ATTENTION_WARPS; warp++) {
        sum += reinterpret_cast<const float *>(tile + warp * 16 * M * D)[threadIdx.x];
    }
    to[threadIdx.x] = sum * factor;
}

// --------------------------------------
// bf16: forward

// Tile sizes are chosen so that two blocks fit into a multiprocessor of 164 KiB and 65536
// registers.
template <int D> struct AttentionForward {
    enum {
        M = D <= 64 ? 2 : 1,
        OWN = ATTENTION_WARPS * 16 * M, // queries of a block
        STEP = 64,                      // keys that it takes at a time
        SHARED = (OWN + 4 * STEP) * D * sizeof(real)
    };
};

// Scores of a tile, scores[n] those of keys 16n .. 16n+15, become exponentials relative to each
// row's `largest`; factor makes scores powers of 2. `largest` follows a row's largest score only
// when that has grown by a factor of 2^8, which float and bf16 have room for: most tiles need not
// rescale output and sum. Every query sees key 0, so that it is above -inf after the first tile.
// A NaN is never the largest, but its exponential is NaN and stays.
template <int M, int N, int PACKS>
__device__ __forceinline__ void softmax_step(float (&scores)[N][M][2][4],
                                             float (&output)[M][PACKS][4], float (&largest)[M][2],
                                             float (&sum)[M][2], float factor) {
    const float room = 8 / factor;
    float most[M][2];
    bool grown = false;
    #pragma unroll
    for (int r = 0; r < 2 * M; r++) { // rows g and g+8 of each C
        int m = r / 2, half = r % 2;
        float top = -INFINITY;
        #pragma unroll
        for (int i = 0; i < 4 * N; i++) {
            top = fmaxf(top, scores[i / 4][m][i / 2 % 2][2 * half + i % 2]);
        }
        top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, 1));
        top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, 2));
        bool grows = top - largest[m][half] > room;
        most[m][half] = grows ? top : largest[m][half];
        grown |= grows;
    }
    if (__any_sync(FULL_WARP, grown)) {
        #pragma unroll
        for (int r = 0; r < 2 * M; r++) {
            int m = r / 2, half = r % 2;
            // Before the first tile `largest` is -inf, which makes shrink 0.
            float shrink = exp2_fast((largest[m][half] - most[m][half]) * factor);
            #pragma unroll
            for (int n = 0; n < 2 * PACKS; n++) output[m][n / 2][2 * half + n % 2] *= shrink;
            sum[m][half] *= shrink;
            largest[m][half] = most[m][half];
        }
    }
    #pragma unroll
    for (int r = 0; r < 2 * M; r++) {
        int m = r / 2, half = r % 2;
        float shift = largest[m][half] * factor;
        #pragma unroll
        for (int i = 0; i < 4 * N; i++) {
            float &score = scores[i / 4][m][i / 2 % 2][2 * half + i % 2];
            score = exp2_fast(fmaf(score, factor, -shift));
            // `sum` is this lane's part: the four lanes of a row add theirs up at the end.
            sum[m][half] += score;
        }
    }
}

template <int D, bool FULL>
__global__ void __launch_bounds__(ATTENTION_THREADS, 2)
attention_forward_kernel(real *out, float *lse, const real *qkv, AttentionShape s, float scale) {
    using Sizes = AttentionForward<D>;
    constexpr int M = Sizes::M, OWN = Sizes::OWN, STEP = Sizes::STEP;
    constexpr int RING = 2 * STEP; // a power of 2
    SHARED_DYNAMIC(real, Q);
    // K and V are rings of two steps, one in use while the next arrives: position `key` lies in row
    // key % RING.
    real *K = Q + OWN * D, *V = K + RING * D;
    int first = (gridDim.x - 1 - blockIdx.x) * OWN; // the longest work comes first
    AttentionHead head = attention_head(s, s.past + s.T + s.spare);
    const real *q = qkv + head.qkv, *k = q + head.width, *v = k + head.width;
    int lane = threadIdx.x % WARP, own = threadIdx.x / WARP * 16 * M;
    int position = s.past + first, keys = s.past + s.T; // of the first query; rows of K and V
    int own_first = position + own, own_last = first + own < s.T ? own_first + 16 * M - 1 : -1;
    int end = min(position + OWN, keys); // of the keys that these queries see
    float factor = scale * (float)M_LOG2E;

    auto step_start = [&](int key) {
        tile_start<STEP, D, FULL>(K + (key & (RING - 1)) * D, k, head.qkv_stride, key, keys, s.HS);
        tile_start<STEP, D, FULL>(V + (key & (RING - 1)) * D, v, head.qkv_stride, key, keys, s.HS);
    };
    tile_start<OWN, D, FULL>(Q, q, head.qkv_stride, position, keys, s.HS);
    step_start(0);
    uint32_t queries[M][D / 16][4];
    float output[M][D / 8][4] = {}, largest[M][2], sum[M][2] = {};
    for (int m = 0; m < M; m++) largest[m][0] = largest[m][1] = -INFINITY;

    for (int key = 0; key < end; key += STEP) {
        // After the barrier this tile is there for all, and the other one, which the previous step
        // used, may be overwritten.
        copies_wait();
        attention_tile_barrier();
        if (key + STEP < end) step_start(key + STEP);
        if (key == 0) fragments_load<M, D>(queries, Q, own);
        if (key > own_last) continue; // all keys come after this warp's queries, or it has none

        float scores[STEP / 16][M][2][4] = {};
        #pragma unroll
        for (int n = 0; n < STEP / 16; n++) {
            multiply_by_rows<M, D>(scores[n], queries, K, (key & (RING - 1)) + 16 * n);
        }
        if (key + STEP - 1 > own_first) {
            #pragma unroll
            for (int n = 0; n < STEP / 16; n++) {
                scores_mask<M, false>(scores[n], own_first, key + 16 * n);
            }
        }
        softmax_step(scores, output, largest, sum, factor);
        #pragma unroll
        for (int n = 0; n < STEP / 16; n++) {
            uint32_t p[M][4];
            fragments_from<M>(p, scores[n]);
            multiply_by_columns<M, D>(output, p, V, (key & (RING - 1)) + 16 * n);
        }
    }

    #pragma unroll
    for (int m = 0; m < M; m++) {
        #pragma unroll
        for (int half = 0; half < 2; half++) {
            float total = sum[m][half];
            total += __shfl_xor_sync(FULL_WARP, total, 1);
            total += __shfl_xor_sync(FULL_WARP, total, 2);
            int row = first + own + 16 * m + lane / 4 + 8 * half;
            if (lane % 4 == 0 && row < s.T) {
                lse[head.row + row] = largest[m][half] * scale + logf(total);
            }
            #pragma unroll
            for (int n = 0; n < D / 4; n++) output[m][n / 2][2 * half + n % 2] *= 1 / total;
        }
    }
    rows_store<M, D, FULL>(out + head.out, head.width, Q, own, output, 1, first, s.T, s.HS);
}

// --------------------------------------
// bf16: backward
//
// Scores are made from the same products in the same order as in the forward pass, so that P
// exceeds 1 by no more than the rounding of lse. The products of dP start from -delta instead of 0,
// which spares a subtraction.

// Sizes of both kernels. A block keeps OWN rows of two matrices and takes STEP rows of two others
// at a time, of those 16 at once, so that scores need few registers and sums may have many.
template <int D> struct AttentionBackward {
    enum {
        M = D <= 64 ? 2 : 1,
        OWN = ATTENTION_WARPS * 16 * M,
        STEP = D <= 64 ? 64 : 32,
        SHARED = (2 * OWN + 4 * STEP) * D * sizeof(real) + 4 * STEP * sizeof(float)
    };
};

// Of this warp's rows, own .. of a tile dO and first+own .. of the matrices: rows.lse, -lse as a
// power of 2, and rows.delta, -delta
template <int ROWS, int D, bool FULL>
__device__ __forceinline__ void rows_prepare(AttentionRows rows, const real *dO, const real *out,
                                             const float *lse, AttentionHead head, int first,
                                             int own, int T, int HS) {
    constexpr int PACKS = D / 8; // lanes of a row
    int lane = threadIdx.x % WARP, pack = lane % PACKS;
    #pragma unroll
    for (int i = lane / PACKS; i < ROWS; i += WARP / PACKS) {
        int row = first + own + i;
        float sum = 0;
        if (row < T && (FULL || pack * 8 < HS)) {
            Packed<real> d = pack_load(dO + tile_at<D>(own + i, pack));
            Packed<real> o = pack_load(out + head.out + (size_t)row * head.width + pack * 8);
            for (int j = 0; j < 8; j++) sum -= to_float(d.at[j]) * to_float(o.at[j]);
        }
        for (int step = PACKS / 2; step > 0; step /= 2) {
            sum += __shfl_xor_sync(FULL_WARP, sum, step);
        }
        if (row < T && pack == 0) {
            rows.lse[head.row + row] = lse[head.row + row] * -(float)M_LOG2E;
            rows.delta[head.row + row] = sum;
        }
    }
    __syncwarp();
}

// dQ of a tile of queries, its column sums, and `rows` of them
template <int D, bool FULL>
__global__ void __launch_bounds__(ATTENTION_THREADS, 2)
attention_backward_queries_kernel(real *dqkv, float *sums, AttentionRows rows, const real *dout,
                                  const real *out, const float *lse, const real *qkv,
                                  AttentionShape s, float scale) {
    using Sizes = AttentionBackward<D>;
    constexpr int M = Sizes::M, OWN = Sizes::OWN, STEP = Sizes::STEP;
    constexpr int RING = 2 * STEP; // a power of 2
    SHARED_DYNAMIC(real, Q);
    real *dO = Q + OWN * D, *K = dO + OWN * D, *V = K + RING * D;
    int first = (gridDim.x - 1 - blockIdx.x) * OWN; // the longest work comes first
    AttentionHead head = attention_head(s, s.T);
    const real *q = qkv + head.qkv, *k = q + head.width, *v = k + head.width;
    int lane = threadIdx.x % WARP, own = threadIdx.x / WARP * 16 * M;
    int own_last = first + own + 16 * M - 1;
    int end = min(first + OWN, s.T); // of the keys
    float factor = scale * (float)M_LOG2E;

    auto step_start = [&](int key) {
        tile_start<STEP, D, FULL>(K + (key & (RING - 1)) * D, k, head.qkv_stride, key, s.T, s.HS);
        tile_start<STEP, D, FULL>(V + (key & (RING - 1)) * D, v, head.qkv_stride, key, s.T, s.HS);
    };
    tile_start<OWN, D, FULL>(Q, q, head.qkv_stride, first, s.T, s.HS);
    tile_start<OWN, D, FULL>(dO, dout + head.out, head.width, first, s.T, s.HS);
    step_start(0);
    copies_wait();
    __syncthreads(); // Q and dO are there; the loop waits once more, which takes no time
    rows_prepare<16 * M, D, FULL>(rows, dO, out, lse, head, first, own, s.T, s.HS);
    float row_lse[M][2], row_delta[M][2]; // of rows g and g+8 of each C
    for (int i = 0; i < 2 * M; i++) {
        int row = first + own + 16 * (i / 2) + lane / 4 + 8 * (i % 2);
        row_lse[i / 2][i % 2] = row < s.T ? rows.lse[head.row + row] : 0;
        row_delta[i / 2][i % 2] = row < s.T ? rows.delta[head.row + row] : 0;
    }
    uint32_t queries[M][D / 16][4], douts[M][D / 16][4];
    fragments_load<M, D>(queries, Q, own);
    fragments_load<M, D>(douts, dO, own);
    float dQ[M][D / 8][4] = {};

    for (int key = 0; key < end; key += STEP) {
        copies_wait();
        __syncthreads(); // as in the forward pass: this tile is there, the other one is free
        if (key + STEP < end) step_start(key + STEP);
        #pragma unroll 1
        for (int at = key; at < key + STEP && at <= own_last; at += 16) {
            int row = at & (RING - 1);
            float p[M][2][4] = {}, ds[M][2][4];
            uint32_t a[M][4];
            multiply_by_rows<M, D>(p, queries, K, row);
            if (at + 15 > first + own) scores_mask<M, false>(p, first + own, at);
            each_held<M>([&](int m, int n, int i) {
                p[m][n][i] = exp2_fast(fmaf(p[m][n][i], factor, row_lse[m][i / 2]));
                ds[m][n][i] = row_delta[m][i / 2];
            });
            multiply_by_rows<M, D>(ds, douts, V, row);
            each_held<M>([&](int m, int n, int i) { ds[m][n][i] *= p[m][n][i]; });
            fragments_from<M>(a, ds);
            multiply_by_columns<M, D>(dQ, a, K, row);
        }
    }
    rows_store<M, D, FULL>(dqkv + head.qkv, head.qkv_stride, Q, own, dQ, scale, first, s.T, s.HS);
    columns_sum<M, D>(tile_sums(sums, head, first / OWN, s.HS), Q, own, dQ, scale, s.HS);
}

// dK and dV of a tile of keys, and their column sums. Rows of P and dS are keys here, columns
// queries: they are born transposed, as A fragments of the products that need them so.
template <int D, bool FULL>
__global__ void __launch_bounds__(ATTENTION_THREADS, 2)
attention_backward_keys_kernel(real *dqkv, float *sums, AttentionRows rows, const real *dout,
                               const real *qkv, AttentionShape s, float scale) {
    using Sizes = AttentionBackward<D>;
    constexpr int M = Sizes::M, OWN = Sizes::OWN, STEP = Sizes::STEP;
    constexpr int RING = 2 * STEP; // a power of 2
    SHARED_DYNAMIC(real, K);
    // Q and dO are rings, as K and V are in the forward pass.
    real *V = K + OWN * D, *Q = V + OWN * D, *dO = Q + RING * D;
    float *row_lse = reinterpret_cast<float *>(dO + RING * D), *row_delta = row_lse + RING;
    int first = blockIdx.x * OWN; // the first keys have the most queries
    AttentionHead head = attention_head(s, s.T);
    const real *q = qkv + head.qkv;
    int lane = threadIdx.x % WARP, own = threadIdx.x / WARP * 16 * M;
    float factor = scale * (float)M_LOG2E;

    auto step_start = [&](int query) {
        int to = query & (RING - 1);
        tile_start<STEP, D, FULL>(Q + to * D, q, head.qkv_stride, query, s.T, s.HS);
        tile_start<STEP, D, FULL>(dO + to * D, dout + head.out, head.width, query, s.T, s.HS);
        row_start<STEP>(row_lse + to, rows.lse + head.row, query, s.T);
        row_start<STEP>(row_delta + to, rows.delta + head.row, query, s.T);
    };
    tile_start<OWN, D, FULL>(K, q + head.width, head.qkv_stride, first, s.T, s.HS);
    tile_start<OWN, D, FULL>(V, q + 2 * head.width, head.qkv_stride, first, s.T, s.HS);
    step_start(first);
    uint32_t keys[M][D / 16][4], values[M][D / 16][4];
    copies_wait();
    __syncthreads(); // K and V are there; the loop waits once more, which takes no time
    fragments_load<M, D>(keys, K, own);
    fragments_load<M, D>(values, V, own);
    float dK[M][D / 8][4] = {}, dV[M][D / 8][4] = {};

    for (int query = first; query < s.T; query += STEP) {
        copies_wait();
        __syncthreads(); // as in the forward pass: this tile is there, the other one is free
        if (query + STEP < s.T) step_start(query + STEP);
        #pragma unroll 1
        for (int at = query; at < query + STEP; at += 16) {
            // All of these queries come before this warp's keys.
            if (at + 15 < first + own) continue;
            // A lane's scores are of queries column + 0, 1, 8, 9.
            int row = at & (RING - 1), column = row + lane % 4 * 2;
            float p[M][2][4] = {}, ds[M][2][4];
            uint32_t pa[M][4], dsa[M][4];
            multiply_by_rows<M, D>(p, keys, Q, row);
            if (at < first + own + 16 * M - 1) scores_mask<M, true>(p, first + own, at);
            each_held<M>([&](int m, int n, int i) {
                int its = column + 8 * n + i % 2;
                p[m][n][i] = exp2_fast(fmaf(p[m][n][i], factor, row_lse[its]));
                ds[m][n][i] = row_delta[its];
            });
            fragments_from<M>(pa, p);
            multiply_by_rows<M, D>(ds, values, dO, row);
            // P as it was rounded for dV: keeping it in float as well would take more registers
            // than there are.
            each_held<M>([&](int m, int n, int i) { ds[m][n][i] *= fragment_value(pa[m], n, i); });
            fragments_from<M>(dsa, ds);
            multiply_by_columns<M, D>(dV, pa, dO, row);
            multiply_by_columns<M, D>(dK, dsa, Q, row);
        }
    }
    real *dk = dqkv + head.qkv + head.width, *dv = dk + head.width;
    float *to = tile_sums(sums, head, blockIdx.x, s.HS) + head.width;
    rows_store<M, D, FULL>(dk, head.qkv_stride, K, own, dK, scale, first, s.T, s.HS);
    columns_sum<M, D>(to, K, own, dK, scale, s.HS);
    rows_store<M, D, FULL>(dv, head.qkv_stride, V, own, dV, 1, first, s.T, s.HS);
    columns_sum<M, D>(to + head.width, V, own, dV, 1, s.HS);
}

#endif

// --------------------------------------
// few queries: of a token that is made, or of drafts that are checked

static constexpr int TOKEN_THREADS = 512;

// A block has one query. LANES threads take a key at a time, 16 bytes of its row each, and as many
// keys are under way as there are such groups. They add up as they go, each relative to its largest
// score; then warps do, then the block. lse is not made: no backward pass follows.
template <int D, bool FULL>
__global__ void __launch_bounds__(TOKEN_THREADS)
attention_token_kernel(real *out, const real *qkv, AttentionShape s, float scale) {
    constexpr int LANES = D / PACK, GROUPS = TOKEN_THREADS / LANES, WARPS = TOKEN_THREADS / WARP;
    __shared__ __align__(16) float outputs[WARPS][D]; // stored by 16 bytes
    __shared__ float largest[WARPS], sums[WARPS];
    AttentionHead head = attention_head(s, s.past + s.T + s.spare);
    int group = threadIdx.x / LANES, c = threadIdx.x % LANES * PACK, warp = threadIdx.x / WARP;
    int position = s.past + blockIdx.x;
    bool held = FULL || c < s.HS;
    const real *q = qkv + head.qkv + c, *k = q + head.width, *v = k + head.width;
    float query[PACK] = {}, output[PACK] = {}, most = -INFINITY, sum = 0;
    if (held) pack_unpack(query, pack_load(q + (size_t)position * head.qkv_stride));

    #pragma unroll 4
    for (int first = 0; first <= position; first += GROUPS) {
        int key = first + group;
        bool sees = attention_sees(position, key);
        size_t at = (size_t)key * head.qkv_stride;
        Packed<real> key_row = {}, value_row = {};
        if (held && sees) {
            key_row = pack_load(k + at);
            value_row = pack_load(v + at);
        }
        float x[PACK], score = 0;
        pack_unpack(x, key_row);
        #pragma unroll
        for (int j = 0; j < PACK; j++) score += query[j] * x[j];
        #pragma unroll
        for (int step = 1; step < LANES; step *= 2) {
            score += __shfl_xor_sync(FULL_WARP, score, step);
        }
        if (!sees) continue; // the last turn has keys for a part of the warp alone
        score *= scale * (float)M_LOG2E;
        float top = fmaxf(most, score), shrink = exp2_fast(most - top), p = exp2_fast(score - top);
        pack_unpack(x, value_row);
        #pragma unroll
        for (int j = 0; j < PACK; j++) output[j] = output[j] * shrink + p * x[j];
        sum = sum * shrink + p;
        most = top;
    }

    // A group that had no key has a sum of 0 and a largest score of -inf, which may meet its like.
    auto weight = [](float most, float top) { return most == top ? 1 : exp2_fast(most - top); };
    #pragma unroll
    for (int step = LANES; step < WARP; step *= 2) {
        float theirs = __shfl_xor_sync(FULL_WARP, most, step), top = fmaxf(most, theirs);
        float mine = weight(most, top), other = weight(theirs, top);
        sum = sum * mine + __shfl_xor_sync(FULL_WARP, sum, step) * other;
        #pragma unroll
        for (int j = 0; j < PACK; j++) {
            output[j] = output[j] * mine + __shfl_xor_sync(FULL_WARP, output[j], step) * other;
        }
        most = top;
    }
    if (threadIdx.x % WARP < LANES) {
        floats_store(&outputs[warp][c], output);
        largest[warp] = most;
        sums[warp] = sum;
    }
    __syncthreads();
    if ((int)threadIdx.x >= s.HS) return;
    float top = -INFINITY, total = 0, result = 0;
    #pragma unroll
    for (int i = 0; i < WARPS; i++) top = fmaxf(top, largest[i]);
    #pragma unroll
    for (int i = 0; i < WARPS; i++) {
        float share = weight(largest[i], top);
        total += sums[i] * share;
        result += outputs[i][threadIdx.x] * share;
    }
    out += head.out + (size_t)blockIdx.x * head.width;
    out[threadIdx.x] = from_float<real>(result / total);
}

// --------------------------------------
// launches

// Calls launch.operator()<D, FULL>() for the smallest tile width D that heads of size HS fit in.
// FULL says that they fill it, which spares the kernels all tests of columns.
template <typename F> static void attention_by_size(int HS, F launch) {
    if (HS <= 0 || HS % 8 != 0 || HS > 128) {
        fail("attention: heads of size %d; need a multiple of 8 up to 128", HS);
    }
    if (HS == 128) launch.template operator()<128, true>();
    else if (HS > 64) launch.template operator()<128, false>();
    else if (HS == 64) launch.template operator()<64, true>();
    else if (HS > 32) launch.template operator()<64, false>();
    else if (HS == 32) launch.template operator()<32, true>();
    else launch.template operator()<32, false>();
}

// Lets a kernel use more shared memory than the 48 KiB that every kernel may, once.
template <auto Kernel> static void attention_allow_shared(size_t bytes) {
    static bool allowed = bytes <= 48 * 1024;
    const cudaFuncAttribute shared = cudaFuncAttributeMaxDynamicSharedMemorySize;
    if (!allowed) CUDA_CHECK(cudaFuncSetAttribute(Kernel, shared, (int)bytes));
    allowed = true;
}

// out (B,T,heads,HS) and lse (B,heads,T) from qkv (B,past+T+spare,3,heads,HS), whose rows have to
// lie at multiples of 16 bytes. Where they are parts of sequences and T is at most SCORED_MAX, no
// lse is made.
static void attention_forward(real *out, float *lse, const real *qkv, AttentionShape s,
                              cudaStream_t on) {
    RANGE();
    float scale = 1 / sqrtf((float)s.HS);
    bool is_part = s.past > 0 || s.spare > 0;
    attention_by_size(s.HS, [&]<int D, bool FULL>() {
        if (is_part && s.T <= SCORED_MAX) {
            LAUNCH((attention_token_kernel<D, FULL>), dim3(s.T, s.heads, s.B), TOKEN_THREADS, 0, on,
                   out, qkv, s, scale);
            return;
        }
        using Sizes = AttentionForward<D>;
        attention_allow_shared<attention_forward_kernel<D, FULL>>(Sizes::SHARED);
        LAUNCH((attention_forward_kernel<D, FULL>),
               dim3(ceil_div<int>(s.T, Sizes::OWN), s.heads, s.B), ATTENTION_THREADS, Sizes::SHARED,
               on, out, lse, qkv, s, scale);
    });
}

// Tiles of a sequence in the backward pass.
static int attention_tiles(int T, int HS) {
    int tiles = 0;
    attention_by_size(HS, [&]<int D, bool FULL>() {
        tiles = ceil_div<int>(T, AttentionBackward<D>::OWN);
    });
    return tiles;
}

// dqkv (B,T,3,heads,HS) is written, and its sums over the rows of each tile, sums (B,tiles,
// 3,heads,HS), for the gradient of the bias. scratch (2,B,heads,T). dout, out (B,T,heads,HS).
// Nothing is past or spare.
static void attention_backward(real *dqkv, float *sums, float *scratch, const real *dout,
                               const real *out, const float *lse, const real *qkv,
                               AttentionShape s, cudaStream_t on) {
    RANGE();
    AttentionRows rows = {scratch, scratch + (size_t)s.B * s.heads * s.T};
    attention_by_size(s.HS, [&]<int D, bool FULL>() {
        using Sizes = AttentionBackward<D>;
        constexpr int SHARED = Sizes::SHARED;
        dim3 blocks(attention_tiles(s.T, s.HS), s.heads, s.B);
        float scale = 1 / sqrtf((float)s.HS);
        attention_allow_shared<attention_backward_queries_kernel<D, FULL>>(SHARED);
        LAUNCH((attention_backward_queries_kernel<D, FULL>), blocks, ATTENTION_THREADS, SHARED, on,
               dqkv, sums, rows, dout, out, lse, qkv, s, scale);
        attention_allow_shared<attention_backward_keys_kernel<D, FULL>>(SHARED);
        LAUNCH((attention_backward_keys_kernel<D, FULL>), blocks, ATTENTION_THREADS, SHARED, on,
               dqkv, sums, rows, dout, qkv, s, scale);
    });
}

// ----------------------------------------------------------------------------
// matmul: cuBLASLt, which thinks in columns: our row-major out = a b is its outᵀ = bᵀ aᵀ

// out (M,N) = a (M,K) b (K,N) of each of `batch`, all without gaps between rows. Batches lie the
// given strides apart; 0 says that all read the same. Of bias, before_gelu
// and gelu_in at most one is given, or bias with before_gelu, or gelu_in with bias_grad.
typedef struct {
    void *out;
    size_t out_stride;
    int out_float;         // out is float; else real
    const real *a, *b;
    size_t a_stride, b_stride;
    int a_transposed;      // a is stored as (K,M)
    int b_transposed;      // b is stored as (N,K)
    const real *bias;      // (N), added to every row; NULL: none
    real *bias_grad;       // (N), gets the sums over the rows of out; NULL: nobody wants them
    size_t bias_stride;    // of either
    // (M,N) for each of the batch, as out without gaps:
    real *before_gelu;     // gets a b + bias, of which out is the GELU
    const real *gelu_in;   // out = (a b) gelu'(gelu_in)
    int M, N, K, batch;
    int accumulate;        // out += a b; otherwise what out was is never read
} Matmul;

// What cuBLASLt needs to know of a shape, made once: its own choice of algorithm among it.
typedef struct {
    int M, N, K, batch, a_transposed, b_transposed, out_float, accumulate;
    int epilogue; // cublasLtEpilogue_t
    int spared;
    size_t a_stride, b_stride, out_stride, bias_stride;
} MatmulKey;

typedef struct {
    MatmulKey key;
    int state;             // 0: free; 1: can be had; 2: cuBLASLt has no such thing
    cublasStatus_t status; // why not
    int searched;          // its algorithm is the fastest of several
    int gelu_timed;        // 1: whether it is faster with the GELU in it is known
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t a, b, out; // ours
    cublasLtMatmulAlgo_t algorithm;
} MatmulPlan;

static constexpr int MATMUL_PLANS = 1 << 14, MATMUL_WORKSPACE = 32 << 20;
static MatmulPlan *matmul_plans; // hash table
static int matmul_spared;        // multiprocessors that products leave to sums beside them

// How many algorithms `-ms` times for each shape, to take the fastest. 0 takes cuBLASLt's first
// choice.
enum { MATMUL_SEARCH_MAX = 64 };
static int matmul_search;
static Mesh matmul_mesh = {.world = 1, .R = 1, .F = 1, .group = 1, .DP = 1}; // then a model's

// Makes a choice by time, unless one is kept from before (data/choices.h). `choice` stays as it is
// where none can be kept, since then the next run could choose otherwise. Processes of a TP group
// agree on what the first chooses: tensors that all of them have must stay the same.
template <typename F>
static void matmul_choose(const char *what, void *choice, size_t bytes, F by_time) {
    char key[CHOICE_KEY];
    snprintf(key, sizeof key, "%s, cuBLASLt %zu, %s, %s", gpu.properties.name,
             cublasLtGetVersion(), REAL_NAME, what);
    int kept = matmul_mesh.group_rank || choice_find(key, choice, bytes);
    if (!kept && choices_can_be_kept()) {
        by_time();
        choice_keep(key, choice, bytes);
    }
    mesh_broadcast(&matmul_mesh, MESH_TP, 0, choice, bytes);
}

static cublasLtMatrixLayout_t matmul_layout(cudaDataType_t type, int rows, int cols, int batch,
                                            size_t stride) {
    cublasLtMatrixLayout_t layout;
    int64_t offset = (int64_t)stride;
    // cuBLASLt counts columns first.
    CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&layout, type, (uint64_t)cols, (uint64_t)rows, cols));
    CUBLAS_CHECK(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
                                                  &batch, sizeof batch));
    CUBLAS_CHECK(cublasLtMatrixLayoutSetAttribute(layout,
                                                  CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                                  &offset, sizeof offset));
    return layout;
}

#define OPERATION_SET(plan, attribute, value)                                               \
    CUBLAS_CHECK(cublasLtMatmulDescSetAttribute((plan)->operation,                          \
                                                CUBLASLT_MATMUL_DESC_##attribute, &(value), \
                                                sizeof(value)))

// The pointers that belong to the operation, not to the call: those of m or, for a question that
// every product of the plan shares, `instead` of them.
static void matmul_set_pointers(MatmulPlan *plan, const Matmul *m, const void *instead) {
    const void *bias = m->bias ? m->bias : m->bias_grad;
    const void *aux = m->before_gelu ? m->before_gelu : m->gelu_in;
    if (bias && instead) bias = instead;
    if (aux && instead) aux = instead;
    if (bias) OPERATION_SET(plan, BIAS_POINTER, bias);
    if (aux) OPERATION_SET(plan, EPILOGUE_AUX_POINTER, aux);
}

// The algorithms that cuBLASLt thinks best, up to `room` of them, best first; returns how many, 0
// if it has none.
static int matmul_algorithms(MatmulPlan *plan, const Matmul *m,
                             cublasLtMatmulHeuristicResult_t *found, int room) {
    cublasLtMatmulPreference_t preference;
    size_t workspace = MATMUL_WORKSPACE;
    uint32_t alignment = 16; // of every tensor and every rank's part of one
    uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE; // parts of K add up in float
    int count = 0;
    // It looks at how bias and aux lie, of which other layers' may lie less well than m's.
    matmul_set_pointers(plan, m, (const void *)(uintptr_t)alignment);
    CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference));
#define PREFERENCE_SET(attribute, value)                                                          \
    CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(preference,                                 \
                                                      CUBLASLT_MATMUL_PREF_##attribute, &(value), \
                                                      sizeof(value)))
    PREFERENCE_SET(MAX_WORKSPACE_BYTES, workspace);
    PREFERENCE_SET(REDUCTION_SCHEME_MASK, reduction);
    PREFERENCE_SET(MIN_ALIGNMENT_A_BYTES, alignment);
    PREFERENCE_SET(MIN_ALIGNMENT_B_BYTES, alignment);
    PREFERENCE_SET(MIN_ALIGNMENT_C_BYTES, alignment);
    PREFERENCE_SET(MIN_ALIGNMENT_D_BYTES, alignment);
#undef PREFERENCE_SET
    plan->status = cublasLtMatmulAlgoGetHeuristic(gpu.blas, plan->operation, plan->b, plan->a,
                                                  plan->out, plan->out, preference, room, found,
                                                  &count);
    CUBLAS_CHECK(cublasLtMatmulPreferenceDestroy(preference));
    matmul_set_pointers(plan, m, NULL);
    return plan->status == CUBLAS_STATUS_SUCCESS ? count : 0;
}

static void matmul_plan_make(MatmulPlan *plan, const Matmul *m) {
    const MatmulKey *k = &plan->key;
    cublasComputeType_t compute = CUBLAS_COMPUTE_32F;
#ifdef PRECISION_TF32
    compute = CUBLAS_COMPUTE_32F_FAST_TF32;
#endif
    cudaDataType_t real_type = REAL_TYPE;
    cublasOperation_t yes = CUBLAS_OP_T, no = CUBLAS_OP_N;
    cublasLtEpilogue_t epilogue = (cublasLtEpilogue_t)k->epilogue;
    CUBLAS_CHECK(cublasLtMatmulDescCreate(&plan->operation, compute, CUDA_R_32F));
    OPERATION_SET(plan, TRANSA, k->b_transposed ? yes : no); // its A is our b
    OPERATION_SET(plan, TRANSB, k->a_transposed ? yes : no);
    OPERATION_SET(plan, EPILOGUE, epilogue);
    if (k->spared) {
        int32_t target = max(1, gpu.properties.multiProcessorCount - k->spared);
        OPERATION_SET(plan, SM_COUNT_TARGET, target);
    }
    if (m->bias || m->bias_grad) {
        int64_t stride = (int64_t)k->bias_stride;
        OPERATION_SET(plan, BIAS_DATA_TYPE, real_type);
        if (k->batch > 1) OPERATION_SET(plan, BIAS_BATCH_STRIDE, stride);
    }
    if (m->before_gelu || m->gelu_in) {
        int64_t ld = k->N, stride = (int64_t)k->out_stride;
        OPERATION_SET(plan, EPILOGUE_AUX_LD, ld);
        if (k->batch > 1) OPERATION_SET(plan, EPILOGUE_AUX_BATCH_STRIDE, stride);
    }
    plan->a = matmul_layout(REAL_TYPE, k->a_transposed ? k->K : k->M, k->a_transposed ? k->M : k->K,
                            k->batch, k->a_stride);
    plan->b = matmul_layout(REAL_TYPE, k->b_transposed ? k->N : k->K, k->b_transposed ? k->K : k->N,
                            k->batch, k->b_stride);
    plan->out = matmul_layout(k->out_float ? CUDA_R_32F : REAL_TYPE, k->M, k->N, k->batch,
                              k->out_stride);

    cublasLtMatmulHeuristicResult_t found;
    plan->state = matmul_algorithms(plan, m, &found, 1) == 1 ? 1 : 2;
    if (plan->state == 1) plan->algorithm = found.algo;
}

static MatmulPlan *matmul_plan(const Matmul *m) {
    MatmulKey key;
    memset(&key, 0, sizeof key); // padding too: keys are compared as bytes
    key.M = m->M;
    key.N = m->N;
    key.K = m->K;
    key.batch = m->batch;
    key.a_transposed = m->a_transposed;
    key.b_transposed = m->b_transposed;
    key.out_float = m->out_float;
    key.accumulate = m->accumulate;
    key.spared = matmul_spared;
    key.epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    if (m->bias) key.epilogue = CUBLASLT_EPILOGUE_BIAS;
    if (m->before_gelu) key.epilogue = CUBLASLT_EPILOGUE_GELU_AUX_BIAS;
    if (m->gelu_in) key.epilogue = CUBLASLT_EPILOGUE_DGELU;
    if (m->bias_grad) key.epilogue = CUBLASLT_EPILOGUE_DGELU_BGRAD;
    key.a_stride = m->a_stride;
    key.b_stride = m->b_stride;
    key.out_stride = m->out_stride;
    key.bias_stride = m->bias_stride;
    uint64_t hash = words_hash(0, &key, sizeof key);
    if (!matmul_plans) matmul_plans = ALLOC(MatmulPlan, MATMUL_PLANS, "plans of matrix products");
    for (int tries = 0; tries < MATMUL_PLANS; tries++) {
        MatmulPlan *plan = &matmul_plans[(hash + tries) % MATMUL_PLANS];
        if (plan->state && memcmp(&plan->key, &key, sizeof key)) continue;
        if (!plan->state) {
            plan->key = key;
            matmul_plan_make(plan, m);
        }
        return plan;
    }
    fail("more than %d shapes of matrix products", MATMUL_PLANS);
}

static cublasStatus_t matmul_launch(const MatmulPlan *plan, const cublasLtMatmulAlgo_t *algorithm,
                                    const Matmul *m, void *workspace) {
    float one = 1, beta = m->accumulate ? 1 : 0;
    return cublasLtMatmul(gpu.blas, plan->operation, &one, m->b, plan->b, m->a, plan->a, &beta,
                          m->out, plan->out, m->out, plan->out, algorithm, workspace,
                          MATMUL_WORKSPACE, gpu.stream);
}

// Milliseconds that a launch takes, the least of a few; INFINITY where it cannot be done.
template <typename F> static float launch_time(F launch) {
    cudaEvent_t begin, end;
    float least = INFINITY;
    CUDA_CHECK(cudaEventCreate(&begin));
    CUDA_CHECK(cudaEventCreate(&end));
    for (int run = 0; run < 4; run++) {
        float ms;
        CUDA_CHECK(cudaEventRecord(begin, gpu.stream));
        if (launch() != CUBLAS_STATUS_SUCCESS) break;
        CUDA_CHECK(cudaEventRecord(end, gpu.stream));
        CUDA_CHECK(cudaEventSynchronize(end));
        CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
        if (run > 0) least = fminf(least, ms); // the first run warms up
    }
    CUDA_CHECK(cudaEventDestroy(begin));
    CUDA_CHECK(cudaEventDestroy(end));
    return least;
}

// The fastest algorithm for plan. What timing adds to `out` is taken back.
static cublasLtMatmulAlgo_t matmul_fastest(MatmulPlan *plan, const Matmul *m, void *workspace) {
    cublasLtMatmulHeuristicResult_t found[MATMUL_SEARCH_MAX];
    int count = matmul_algorithms(plan, m, found, matmul_search);
    size_t bytes = ((m->batch - 1) * m->out_stride + (size_t)m->M * m->N) *
                   (m->out_float ? sizeof(float) : sizeof(real));
    void *kept = NULL;
    cublasLtMatmulAlgo_t fastest = plan->algorithm;
    float least = INFINITY;
    if (m->accumulate) {
        if (cudaMalloc(&kept, bytes) != cudaSuccess) { // the model fills the GPU: it stays untimed
            cudaGetLastError();
            return fastest;
        }
        CUDA_CHECK(cudaMemcpyAsync(kept, m->out, bytes, cudaMemcpyDeviceToDevice, gpu.stream));
    }
    for (int i = 0; i < count; i++) {
        auto launch = [&] { return matmul_launch(plan, &found[i].algo, m, workspace); };
        float ms = launch_time(launch);
        if (ms >= least) continue;
        least = ms;
        fastest = found[i].algo;
    }
    if (kept) {
        CUDA_CHECK(cudaMemcpyAsync(m->out, kept, bytes, cudaMemcpyDeviceToDevice, gpu.stream));
        CUDA_CHECK(cudaStreamSynchronize(gpu.stream));
        CUDA_CHECK(cudaFree(kept));
    }
    return fastest;
}

static void matmul_plan_search(MatmulPlan *plan, const Matmul *m, void *workspace) {
    char what[128];
    const MatmulKey *k = &plan->key;
    snprintf(what, sizeof what, "-ms %d, product %d x %d x %d of %d, shape %016llx", matmul_search,
             k->M, k->N, k->K, k->batch, (unsigned long long)words_hash(0, k, sizeof *k));
    plan->searched = 1;
    matmul_choose(what, &plan->algorithm, sizeof plan->algorithm,
                  [&] { plan->algorithm = matmul_fastest(plan, m, workspace); });
}

static void matmul(Matmul m, void *workspace);

// A product with a GELU in two launches.
static cublasStatus_t matmul_gelu_apart(const Matmul *m, void *workspace) {
    size_t n = (size_t)m->batch * m->M * m->N;
    Matmul plain = *m;
    plain.before_gelu = NULL;
    plain.gelu_in = NULL;
    plain.bias_grad = NULL;
    if (m->before_gelu) plain.out = m->before_gelu;
    matmul(plain, workspace);
    if (m->before_gelu) {
        gelu_forward((real *)m->out, m->before_gelu, n);
        return CUBLAS_STATUS_SUCCESS;
    }
    Chunks<float> sums = gelu_backward((real *)m->out, (real *)m->out, m->gelu_in, m->batch, m->M,
                                       m->N, m->bias_grad ? (float *)workspace : NULL);
    if (m->bias_grad) chunks_sum(m->bias_grad, m->bias_stride, 1, sums, m->batch, m->N, 0);
    return CUBLAS_STATUS_SUCCESS;
}

// Takes the plan for one that cuBLASLt does not have where its GELU is faster by itself.
static void matmul_plan_time_gelu(MatmulPlan *plan, const Matmul *m, void *workspace) {
    char what[128];
    const MatmulKey *k = &plan->key;
    int search = matmul_search;
    unsigned char fused = 0;
    snprintf(what, sizeof what, "GELU in the product %d x %d x %d of %d, shape %016llx", k->M, k->N,
             k->K, k->batch, (unsigned long long)words_hash(0, k, sizeof *k));
    plan->gelu_timed = 1;
    matmul_search = 0; // it would ask the whole TP group
    matmul_choose(what, &fused, sizeof fused, [&] {
        fused = launch_time([&] { return matmul_launch(plan, &plan->algorithm, m, workspace); }) <
                launch_time([&] { return matmul_gelu_apart(m, workspace); });
    });
    matmul_search = search;
    if (!fused) plan->state = 2;
}

// Whether a status says that cuBLASLt has no such product here. All others are errors.
static int product_is_missing(cublasStatus_t status) {
    return status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE ||
           status == CUBLAS_STATUS_ARCH_MISMATCH;
}

// Returns 0, having done nothing, where cuBLASLt cannot do it in one call.
static int matmul_try(const Matmul *m, void *workspace) {
    MatmulPlan *plan = matmul_plan(m);
    int gelu = m->before_gelu || m->gelu_in;
    if (plan->state == 2) return 0;
    matmul_set_pointers(plan, m, NULL);
    if (matmul_search > 1 && !plan->searched) matmul_plan_search(plan, m, workspace);
    if (gelu && gpu.fuses_gelu == GELU_TIMED && !plan->gelu_timed) {
        matmul_plan_time_gelu(plan, m, workspace);
        if (plan->state == 2) return 0;
    }
    plan->status = matmul_launch(plan, &plan->algorithm, m, workspace);
    if (plan->status == CUBLAS_STATUS_SUCCESS) return 1;
    if (!product_is_missing(plan->status)) { // a kernel before it may have failed
        CUDA_CHECK(cudaGetLastError());
        CUBLAS_CHECK(plan->status);
    }
    plan->state = 2;
    cudaGetLastError(); // the launch's own
    return 0;
}

// "EPILOGUE count, ..." of the plans whose products take several launches, as cuBLASLt has no such
// thing, or a GELU was faster by itself; empty if there are none.
static void matmul_describe_apart(char *out, size_t size) {
    static const struct { int epilogue; const char *name; } names[] = {
        {CUBLASLT_EPILOGUE_DEFAULT, "DEFAULT"},
        {CUBLASLT_EPILOGUE_BIAS, "BIAS"},
        {CUBLASLT_EPILOGUE_GELU_AUX_BIAS, "GELU_AUX_BIAS"},
        {CUBLASLT_EPILOGUE_DGELU, "DGELU"},
        {CUBLASLT_EPILOGUE_DGELU_BGRAD, "DGELU_BGRAD"}};
    size_t n = 0;
    out[0] = 0;
    for (const auto &e : names) {
        int count = 0;
        for (int i = 0; i < MATMUL_PLANS && matmul_plans; i++) {
            count += matmul_plans[i].state == 2 && matmul_plans[i].key.epilogue == e.epilogue;
        }
        if (count && n < size) {
            n += snprintf(out + n, size - n, "%s%s %d", n ? ", " : "", e.name, count);
        }
    }
}

static void matmul(Matmul m, void *workspace) {
    RANGE();
    if (matmul_try(&m, workspace)) return;
    if (m.before_gelu || m.gelu_in) {
        matmul_gelu_apart(&m, workspace);
        return;
    }
    // One product at a time, for versions of cuBLASLt whose epilogues have no strides.
    for (int i = 0; i < m.batch; i++) {
        Matmul one = m;
        one.batch = 1;
        one.out = (char *)m.out + i * m.out_stride * (m.out_float ? sizeof(float) : sizeof(real));
        one.a = m.a + i * m.a_stride;
        one.b = m.b + i * m.b_stride;
        one.bias = m.bias ? m.bias + i * m.bias_stride : NULL;
        if (!matmul_try(&one, workspace)) {
            fail("cuBLASLt has no product of (%d,%d) and (%d,%d): %s", m.M, m.K, m.K, m.N,
                 cublasLtGetStatusString(matmul_plan(&one)->status));
        }
    }
}

// ----------------------------------------------------------------------------
// the model and its memory: parameters, gradients, optimizer state and activations are one
// allocation each
//
// A flat block holds all tensors that this process has, those last of which ranks have partial
// gradients. A tensor lies there as [layer][rank][rows][columns]: a rank's part is without gaps,
// folded or not, and all ranks' parts are one batch.

typedef struct {
    real *normed;          // (copies,B,T,C) LayerNorm of the stream it reads
    float *mean, *rstd;    // (copies,B,T)
    real *inner;           // (F, B,T,3C/R) attention: Q, K, V        MLP: (F, B,T,4C/R) before GELU
    real *outer;           // (F, B,T,C/R)  attention: heads' output  MLP: (F, B,T,4C/R) after GELU
    float *lse;            // (F, B,NH/R,T) attention
    int copies;            // 1 where all ranks read the same stream, else F
    int inner_width, outer_width;
} SubBlock;

// What the plan's steps read and write.
typedef struct {
    real *at;   // (copies,B,T,C)
    int copies; // 1: all ranks have the same; F: each has its own
} Value;

// What is asked of a model besides its shape.
typedef struct {
    int recompute; // in the backward pass: 1 GELU, 2 LayerNorm too
    int zero;      // 1: optimizer state is cut over the replicas (ZeRO stage 1, arXiv 1910.02054)
    int chunks;    // of rows, in which forward merges between processes are begun; 0 and 1: whole
    Network network;
} ModelOptions;

// An event before and after each all-reduce of an update, to learn at its end how long the compute
// stream waited.
typedef struct { cudaEvent_t begin, end; int kind; } Span;

enum { BLOCK_PARAMS, BLOCK_GRADS, BLOCK_STATE, BLOCK_KEPT, BLOCK_ACTIVATIONS, BLOCK_KINDS };
static const char *const block_names[BLOCK_KINDS] = {"parameters", "gradients", "optimizer state",
                                                     "keys and values", "activations"};

typedef struct GPT2 {
    GPT2Config config;
    Plan plan;
    Mesh mesh;
    ModelOptions options;
    int F, rank0;              // tensor ranks in this process; their numbers begin at rank0
    ParamSpec whole[P_COUNT];  // shapes of whole tensors
    ParamSpec local[P_COUNT];  // shapes of one rank's part
    FlatTable flat;
    size_t flat_size;          // of the flat block, a multiple of 16 x replicas
    size_t partials_begin, partials_size; // the tensors of which each rank has a partial gradient
    size_t owned_begin, owned_size; // the part of the flat block whose optimizer state is here
    void *blocks[BLOCK_KINDS]; // the allocations
    size_t bytes[BLOCK_KINDS];
    real *params;              // (flat_size)
    float *grads;              // (flat_size); F-1 copies of the partial ones follow these at once
    float *master, *moment1, *moment2; // (owned_size)
    int B_max, T_max, B, T;    // room for, and of the last forward pass,
    int past, spare;           // before and behind whose T tokens qkv has room: see AttentionShape
    int scored;                // tokens that it has logits of, the last ones
    Value *values;             // of the plan, by V_...
    SubBlock *subs;            // (2L+1), the last of which is the final LayerNorm alone
    int *bias_from;            // (2L) on the GPU: see bias_sums_kernel
    float *bias_sums;          // (2L,C) output biases since the last merge or base
    int purpose;               // FOR_...: what there is memory for
    struct GPT2 *teacher;      // whose streams those of this model are to match, or NULL
    double match_weight;       // of their distance in the loss,
    double match_scale;        // and of the difference of two elements in the gradient
    int vocab_parts, vocab_width, vocab_cut;
    real *logits;              // (vocab_parts, scored,vocab_width), and then their gradient
    float *part_most, *part_sums; // (vocab_parts,B,T), (vocab_parts,2,B,T)
    float *most, *lse, *losses;   // (B,T)
    float *distances;          // (B,T) squares of differences to the teacher's streams, added up
    double *loss_total;        // (2) loss, and squares of differences of a token
    double *squares, *squares_partial; // (DP,P_COUNT), (DP,P_COUNT,norm_blocks(DP))
    real *dnormed;             // (F, B,T,C)
    real *normed_scratch;      // (F, B,T,C) for -r 2
    real *outer_scratch;       // (F, B,T,4C/R) for -r 1
    real *dinner, *douter;     // (F, B,T,4C/R)
    float *row_scratch;        // (2, F, B,NH/R,T) for attention_backward
    float *sums_scratch;       // sums of chunks of rows,
    Chunks<float> sums;        // which are there of
    int sums_of;               // this value of the backward pass, as it was written last, or V_NONE
    void *workspace;           // cuBLASLt's
    unsigned long long *clock; // (2) when an all-reduce began, on an emulated network; [1] hidden
    Batch batch;               // on the GPU
    int32_t *batch_data;       // (5 B T + 1)
    int32_t *batch_host[2];    // pinned, filled in turn
    cudaEvent_t batch_copied[2];
    int batch_turn;
    int32_t *token_count;      // (V+1) scratch of the host
    void *mpi_buffer;          // pinned, for all-reduces through MPI
    int micro_steps;           // of the update under way
    int last_pass;             // the update's last backward pass: sums over replicas may begin
    int replica_sums_begun;
    cudaEvent_t ready, finished, hidden; // hidden: the merge that goes on has ended
    int hidden_kind;
    int chunks;                // in which the product under way is merged; see matmul_merged
    Span *spans;
    int span_count, span_room;
    double *host_results;      // pinned: loss, differences and squares of an update
    real *host_logits;         // pinned (vocab_parts,vocab_width): of a token
    float *snapshot;           // a copy of the parameter table on the host, to read or write files
    int snapshot_set;
    Traffic traffic[TRAFFIC_KINDS];
    int sum_number;            // of the last all-reduce of this forward or backward pass, from 1
} GPT2;

static int parts_of(const GPT2 *m, int p) { return spec_is_cut(&m->whole[p]) ? m->F : 1; }

// All folded ranks' parts of one layer of tensor p: parts_of(m, p) of them,
// spec_layer_size(&m->local[p]) apart.
static size_t layer_offset(const GPT2 *m, int p, int layer) {
    return m->flat.begin[p] + (size_t)layer * parts_of(m, p) * spec_layer_size(&m->local[p]);
}
static real *param_at(const GPT2 *m, int p, int layer) {
    return m->params + layer_offset(m, p, layer);
}
static float *grad_at(const GPT2 *m, int p, int layer) {
    return m->grads + layer_offset(m, p, layer);
}
// From one rank's part to the next: 0 for a weight that all ranks share; gradients of those are
// partials_size apart.
static size_t param_stride(const GPT2 *m, int p) {
    return spec_is_cut(&m->whole[p]) ? spec_layer_size(&m->local[p]) : 0;
}
static size_t grad_stride(const GPT2 *m, int p) {
    return spec_is_cut(&m->whole[p]) ? param_stride(m, p) : m->partials_size;
}

// Takes n elements of `size` bytes off the block. On the stand-in the gaps between tensors are out
// of bounds.
static void *carve(char *block, size_t *used, size_t n, size_t size) {
    const size_t line = 256;
    void *at = block ? block + *used : NULL;
    size_t bytes = n * size, room = (bytes + line - 1) / line * line;
    room += fence_behind(at, bytes, room);
    *used += room;
    return at;
}
#define CARVE(type, n) ((type *)carve(block, &used, (n), sizeof(type)))

static void block_allocate(GPT2 *m, int kind, size_t bytes) {
    size_t free_bytes = 0, total = 0, held = 0;
    const double MiB = 1 << 20;
    if (bytes == 0) return;
    cudaError_t status = cudaMalloc(&m->blocks[kind], bytes);
    if (status == cudaSuccess) {
        m->bytes[kind] = bytes;
        return;
    }
    if (status != cudaErrorMemoryAllocation) CUDA_CHECK(status);
    CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total));
    for (int i = 0; i < kind; i++) held += m->bytes[i];
    fail("out of GPU memory: %.1f MiB asked for %s, beside %.1f MiB for parameters %.1f, gradients "
         "%.1f, optimizer state %.1f; %.1f of %.1f MiB are free; %s",
         bytes / MiB, block_names[kind], held / MiB, m->bytes[BLOCK_PARAMS] / MiB,
         m->bytes[BLOCK_GRADS] / MiB, m->bytes[BLOCK_STATE] / MiB, free_bytes / MiB, total / MiB,
         kind >= BLOCK_KEPT
             ? "a lower -b (with -d as it was) or -t needs less, and so does -r 1 or -r 2"
             : "-z 1 cuts the optimizer state over replicas, more GPUs under mpirun cut the model");
}

// Where tensors lie in the flat block.
static void flat_lay(GPT2 *m) {
    size_t next = 0;
    for (int partial = 0; partial < 2; partial++) {
        if (partial) m->partials_begin = next;
        for (int p = 0; p < P_COUNT; p++) {
            if ((m->whole[p].cut == WHOLE_PARTIAL_GRAD) != partial) continue;
            m->flat.begin[p] = next;
            m->flat.size[p] = spec_size(&m->local[p]) * parts_of(m, p);
            m->flat.decays[p] = m->whole[p].decay;
            next += m->flat.size[p];
        }
    }
    m->partials_size = next - m->partials_begin;
    size_t unit = 16 * (size_t)m->mesh.DP;
    m->flat_size = ceil_div(next, unit) * unit;
    m->owned_size = m->options.zero ? m->flat_size / m->mesh.DP : m->flat_size;
    m->owned_begin = m->options.zero ? m->owned_size * m->mesh.dp_rank : 0;
}

static void tensors_allocate(GPT2 *m, int training) {
    size_t params = m->flat_size * sizeof(real), state = m->owned_size * sizeof(float);
    int own_master = sizeof(real) < sizeof(float);
    block_allocate(m, BLOCK_PARAMS, params);
    block_allocate(m, BLOCK_GRADS,
                   training ? (m->flat_size + (m->F - 1) * m->partials_size) * sizeof(float) : 0);
    block_allocate(m, BLOCK_STATE, training ? (2 + own_master) * state : 0);
    m->params = (real *)m->blocks[BLOCK_PARAMS];
    m->grads = (float *)m->blocks[BLOCK_GRADS];
    CUDA_CHECK(cudaMemsetAsync(m->params, 0, params, gpu.stream));
    if (!training) return;
    m->moment1 = (float *)m->blocks[BLOCK_STATE];
    m->moment2 = m->moment1 + m->owned_size;
    m->master = own_master ? m->moment2 + m->owned_size
                           : (float *)(void *)m->params + m->owned_begin;
    CUDA_CHECK(cudaMemsetAsync(m->grads, 0, m->bytes[BLOCK_GRADS], gpu.stream));
    CUDA_CHECK(cudaMemsetAsync(m->moment1, 0, m->bytes[BLOCK_STATE], gpu.stream));
}

static void value_carve(GPT2 *m, int v, char *block, size_t *used) {
    Value *value = &m->values[v];
    size_t BTC = (size_t)m->B_max * m->T_max * m->config.C;
    value->copies = value_is_shared(&m->plan, v) ? 1 : m->F;
    size_t n = plan_uses(&m->plan, v, m->purpose != FOR_TEACHING) ? value->copies * BTC : 0;
    value->at = (real *)carve(block, used, n, sizeof(real));
}

// Lays out in `block` what a change of pattern leaves as it is, or only counts it if it is NULL.
// Returns the number of bytes.
static size_t kept_lay(GPT2 *m, char *block) {
    size_t BT = (size_t)m->B_max * m->T_max, DP = m->mesh.DP, used = 0;
    for (int k = 0; k < 2 * m->config.L; k += 2) { // attention: keys and values
        int again = k > 0 && m->purpose == FOR_TEACHING; // nobody reads them after their block
        m->subs[k].inner = again ? m->subs[0].inner
                                 : CARVE(real, m->F * BT * m->subs[k].inner_width);
    }
    m->loss_total = CARVE(double, 2);
    m->squares = CARVE(double, DP * P_COUNT);
    m->squares_partial = CARVE(double, DP * P_COUNT * norm_blocks(m->mesh.DP));
    m->workspace = CARVE(char, MATMUL_WORKSPACE);
    m->clock = CARVE(unsigned long long, 2);
    m->batch_data = CARVE(int32_t, 5 * BT + 1);
    return used;
}

// The same for all other activations, as the plan has them.
static size_t activations_lay(GPT2 *m, char *block) {
    const GPT2Config *c = &m->config;
    size_t BT = (size_t)m->B_max * m->T_max, BTC = BT * c->C, F = m->F, used = 0;
    size_t parts = m->vocab_parts;
    int Cr = c->C / c->R, recompute = m->options.recompute, teaching = m->purpose == FOR_TEACHING;
    // Logits live from the product that makes them to the two that read their gradients. The
    // scratch of the blocks is in use before and after that, so it lies in the same place. What
    // lies there in turn:
    //
    //   blocks forward   |                  | O0 O1     |                                  |
    //   head and losses  | logits (parts, BT, width), which become their gradients         |
    //   blocks backward  | -r: normed outer |       G P | dnormed dinner douter rows sums  |
    //
    // Behind it lies what lasts: streams, what sub-blocks keep, and D0 and D1, since the head
    // writes D0 while it reads logits. (With the address sanitizer, for which the stand-in has
    // fences between tensors, the scratch lies behind the logits.)
    m->logits = CARVE(real, teaching ? 0 : parts * BT * m->vocab_width);
    size_t logits_end = used;
#ifndef EMU_ASAN
    used = 0;
#endif
    m->normed_scratch = CARVE(real, recompute > 1 ? F * BTC : 0);
    m->outer_scratch = CARVE(real, recompute > 0 ? F * BT * 4 * Cr : 0);
    for (int v = V_NONE + 1; v < V_STREAM; v++) {
        if (v != V_D0 && v != V_D1) value_carve(m, v, block, &used);
    }
    m->dnormed = CARVE(real, teaching ? 0 : F * BTC);
    m->dinner = CARVE(real, teaching ? 0 : F * BT * 4 * Cr);
    m->douter = CARVE(real, teaching ? 0 : F * BT * 4 * Cr);
    m->row_scratch = CARVE(float, teaching ? 0 : 2 * F * BT * (c->NH / c->R));
    size_t sums = CHUNKS_MAX * 4 * (size_t)c->C;
    size_t tile_sums = (size_t)m->B_max * attention_tiles(m->T_max, c->C / c->NH) * 3 * Cr;
    m->sums_scratch = CARVE(float, F * (sums > tile_sums ? sums : tile_sums));
    if (used < logits_end) used = logits_end;

    for (int i = 0; i < m->plan.streams; i++) value_carve(m, V_STREAM + i, block, &used);
    // A teacher's sub-blocks all use the same memory, since nothing goes back through them; not
    // where accesses are watched (address sanitizer), which leaves `first` unused.
    [[maybe_unused]] size_t first = used;
    size_t most = used;
    for (int k = 0; k <= 2 * c->L; k++) {
        SubBlock *s = &m->subs[k];
        int final = k == 2 * c->L;
#ifndef EMU_ASAN
        if (teaching) used = first;
#endif
        s->copies = m->values[V_STREAM + m->plan.reads[k]].copies;
        s->normed = recompute > 1 && !final ? m->normed_scratch : CARVE(real, s->copies * BTC);
        s->mean = CARVE(float, s->copies * BT);
        s->rstd = CARVE(float, s->copies * BT);
        most = used > most ? used : most;
        if (final) break;
        if (is_mlp(k)) s->inner = CARVE(real, F * BT * s->inner_width);
        s->outer = is_mlp(k) && recompute > 0 ? m->outer_scratch
                                              : CARVE(real, F * BT * s->outer_width);
        s->lse = is_mlp(k) ? NULL : CARVE(float, F * BT * (c->NH / c->R));
        most = used > most ? used : most;
    }
    used = most;
    m->bias_from = CARVE(int, 2 * c->L);
    m->bias_sums = CARVE(float, (size_t)2 * c->L * c->C);
    m->part_most = CARVE(float, parts * BT);
    m->part_sums = CARVE(float, 2 * parts * BT);
    m->most = CARVE(float, BT);
    m->lse = CARVE(float, BT);
    m->losses = CARVE(float, BT);
    m->distances = CARVE(float, BT);
    value_carve(m, V_D0, block, &used); // the head writes it while it reads logits
    value_carve(m, V_D1, block, &used);
    return used;
}

// Where the biases begin that the sum after sub-block k adds: see bias_sums_kernel.
static void bias_from_fill(GPT2 *m) {
    int *from = ALLOC(int, 2 * m->config.L, "sub-blocks");
    for (int i = 0; i < m->plan.forward.count; i++) {
        const Step *s = &m->plan.forward.at[i];
        if (s->kind == STEP_SUM) from[s->end - 1] = s->first;
    }
    size_t bytes = 2 * (size_t)m->config.L * sizeof(int);
    // cudaMemcpy would not do: from pageable memory it may return before the copy is done, which
    // then goes on beside this stream.
    CUDA_CHECK(cudaMemcpyAsync(m->bias_from, from, bytes, cudaMemcpyHostToDevice, gpu.stream));
    CUDA_CHECK(cudaStreamSynchronize(gpu.stream)); // before `from` goes
    free(from);
}

// From here on the model runs under this pattern: other sums, of the same parameters. Keys and
// values of tokens that were read stay; what else the last pass has left is lost. The pattern of
// `config`, which belongs to the model, stays too. Fails as plan_make does.
static void gpt2_take_pattern(GPT2 *m, const char *pattern) {
    const GPT2Config *c = &m->config;
    plan_free(&m->plan);
    plan_make(&m->plan, pattern, c->L, c->rule, c->R, "-p");
    if (m->teacher) plan_distill(&m->plan, &m->teacher->plan);
    size_t bytes = activations_lay(m, NULL);
    CUDA_CHECK(cudaDeviceSynchronize()); // the last pass may still use what is laid out anew
    if (bytes > m->bytes[BLOCK_ACTIVATIONS]) {
        CUDA_CHECK(cudaFree(m->blocks[BLOCK_ACTIVATIONS]));
        block_allocate(m, BLOCK_ACTIVATIONS, bytes);
    }
    activations_lay(m, (char *)m->blocks[BLOCK_ACTIVATIONS]);
    bias_from_fill(m);
    if (m->grads) { // step_bias leaves alone what stays zero under this pattern
        size_t others = (m->F - 1) * m->partials_size * sizeof(float);
        float *copies = m->grads + m->partials_begin + m->partials_size;
        CUDA_CHECK(cudaMemsetAsync(copies, 0, others, gpu.stream));
    }
}

static void shape_check(const GPT2Config *c, int T) {
    int HS = c->C / c->NH;
    heads_check(c);
    if (T > c->maxT) fail("-t %d: the model reads at most %d tokens", T, c->maxT);
    if (HS % 8 || HS > 128) {
        fail("a head size of %d (%d channels, %d heads): on a GPU a multiple of 8 up to 128", HS,
             c->C, c->NH);
    }
    if (c->C > NORM_C_MAX) fail("%d channels: on a GPU at most %d", c->C, NORM_C_MAX);
}

// Makes a model of this shape with room for batches (B,T), its parameters zero. Only FOR_TRAINING
// there are gradients and optimizer state, and FOR_TEACHING no backward pass and no logits. Fails
// when the shape, the pattern, R or the memory cannot be had. All processes take part.
static void gpt2_create(GPT2 *m, const GPT2Config *config, Mesh mesh, int B, int T,
                        ModelOptions options, int purpose) {
    memset(m, 0, sizeof *m);
    m->config = *config;
    m->mesh = mesh;
    m->options = options;
    m->F = mesh.F;
    m->rank0 = mesh.group_rank * mesh.F;
    m->B_max = B;
    m->T_max = T;
    m->purpose = purpose;
    shape_check(config, T);
    const int sequences = 65535; // of all ranks here: what a grid of blocks has in its z
    if ((int64_t)m->F * B > sequences) {
        fail("-b %d: at most %d with %d ranks on a GPU", B, sequences / m->F, m->F);
    }
    param_specs(m->whole, config);
    m->vocab_cut = mesh.vocab_parallel && config->R > 1;
    if (m->vocab_cut) specs_cut_vocabulary(m->whole, 8 * config->R); // parts of 16-byte rows
    m->vocab_parts = m->vocab_cut ? m->F : 1;
    m->vocab_width = m->vocab_cut ? m->whole[P_wte].rows / config->R : config->Vp;
    for (int p = 0; p < P_COUNT; p++) {
        Shard mine = shard_of(&m->whole[p], m->rank0, config->R);
        m->local[p] = m->whole[p];
        m->local[p].rows = mine.rows;
        m->local[p].cols = mine.cols;
    }
    flat_lay(m);
    tensors_allocate(m, purpose == FOR_TRAINING);
    int Cr = config->C / config->R;
    m->subs = ALLOC(SubBlock, 2 * (size_t)config->L + 1, "sub-blocks");
    for (int k = 0; k < 2 * config->L; k++) {
        m->subs[k].inner_width = is_mlp(k) ? 4 * Cr : 3 * Cr;
        m->subs[k].outer_width = is_mlp(k) ? 4 * Cr : Cr;
    }
    m->values = ALLOC(Value, V_STREAM + 4 * (size_t)config->L + 1, "values of the plan");
    m->token_count = ALLOC(int32_t, (size_t)config->V + 1, "tokens");
    block_allocate(m, BLOCK_KEPT, kept_lay(m, NULL));
    kept_lay(m, (char *)m->blocks[BLOCK_KEPT]);
    gpt2_take_pattern(m, config->pattern);
    for (int i = 0; i < 2; i++) {
        size_t bytes = ((size_t)5 * B * T + 1) * sizeof(int32_t);
        CUDA_CHECK(cudaMallocHost((void **)&m->batch_host[i], bytes));
        CUDA_CHECK(cudaEventCreateWithFlags(&m->batch_copied[i], cudaEventDisableTiming));
    }
    CUDA_CHECK(cudaMallocHost((void **)&m->host_results,
                              (2 + (size_t)mesh.DP * P_COUNT) * sizeof(double)));
    CUDA_CHECK(cudaMallocHost((void **)&m->host_logits,
                              (size_t)m->vocab_parts * m->vocab_width * sizeof(real)));
    CUDA_CHECK(cudaEventCreateWithFlags(&m->ready, cudaEventDisableTiming));
    CUDA_CHECK(cudaEventCreateWithFlags(&m->finished, cudaEventDisableTiming));
    CUDA_CHECK(cudaEventCreateWithFlags(&m->hidden, cudaEventDisableTiming));
    CUDA_CHECK(cudaDeviceSynchronize());
}

static void gpt2_free(GPT2 *m) {
    if (!m->subs) return;
    CUDA_CHECK(cudaDeviceSynchronize());
    for (int i = 0; i < BLOCK_KINDS; i++) {
        if (m->blocks[i]) CUDA_CHECK(cudaFree(m->blocks[i]));
    }
    for (int i = 0; i < 2; i++) {
        CUDA_CHECK(cudaFreeHost(m->batch_host[i]));
        CUDA_CHECK(cudaEventDestroy(m->batch_copied[i]));
    }
    for (int i = 0; i < m->span_room; i++) {
        CUDA_CHECK(cudaEventDestroy(m->spans[i].begin));
        CUDA_CHECK(cudaEventDestroy(m->spans[i].end));
    }
    if (m->mpi_buffer) CUDA_CHECK(cudaFreeHost(m->mpi_buffer));
    CUDA_CHECK(cudaFreeHost(m->host_results));
    CUDA_CHECK(cudaFreeHost(m->host_logits));
    CUDA_CHECK(cudaEventDestroy(m->ready));
    CUDA_CHECK(cudaEventDestroy(m->finished));
    CUDA_CHECK(cudaEventDestroy(m->hidden));
    plan_free(&m->plan);
    free(m->subs);
    free(m->values);
    free(m->spans);
    free(m->snapshot);
    free(m->token_count);
    memset(m, 0, sizeof *m);
}

// ----------------------------------------------------------------------------
// sums over processes, each of which has a GPU: by NCCL, or by MPI through host memory
//
// A process alone starts neither. NCCL refuses two ranks on one GPU; `-cm mpi` does not.

enum { COMM_AUTO, COMM_NCCL, COMM_MPI }; // the words of -cm
static int comm_kind; // COMM_AUTO: a process alone

typedef enum { ELEMENT_REAL, ELEMENT_FLOAT } Element;
static size_t element_size(Element e) { return e == ELEMENT_FLOAT ? sizeof(float) : sizeof(real); }

// ---- NCCL, on the GPU's streams

// So many blocks of NCCL's each have a multiprocessor, at most, and products beside its sums leave
// it as many: some of cuBLAS's stay until they are done. A guess, not measured.
static int nccl_blocks(void) { return max(1, min(16, gpu.properties.multiProcessorCount / 6)); }

#ifdef USE_NCCL
static const int nccl_built_in = 1;
static ncclComm_t nccl_comms[2]; // MESH_TP, MESH_DP
static int nccl_in_order;        // sums of both may go on at once

static ncclDataType_t nccl_type(Element e) {
    return e == ELEMENT_FLOAT || sizeof(real) == sizeof(float) ? ncclFloat32 : ncclBfloat16;
}

// Defaults, which the environment overrules. NVLink SHARP adds up in another order from call to
// call (NVIDIA/nccl issues 1497 and 2360). Where sums of two communicators go on at once, all GPUs
// have to begin them in one order, or wait for each other for ever: from 2.26 on NCCL sees to it.
// With a driver below 12.3, or built with such a CUDA, which nobody can ask, it has each sum wait
// for the end of the one before: with such a driver those of gradients come after the pass. All
// processes have to agree, and take part.
static void nccl_choose(const Mesh *mesh) {
    const char *order = "NCCL_LAUNCH_ORDER_IMPLICIT";
    int version, driver;
    setenv("NCCL_ALGO", "^NVLS,NVLSTree", 0);
    if (mesh->group == 1 || mesh->DP == 1) return;
    NCCL_CHECK(ncclGetVersion(&version));
    CUDA_CHECK(cudaDriverGetVersion(&driver));
    setenv(order, version >= NCCL_VERSION(2, 26, 0) && driver >= 12030 ? "1" : "0", 0);
    double not_here = version < NCCL_VERSION(2, 26, 0) || strcmp(getenv(order), "1");
    mesh_sum(mesh, MESH_TP, &not_here, 1, sizeof not_here);
    mesh_sum(mesh, MESH_DP, &not_here, 1, sizeof not_here);
    nccl_in_order = not_here == 0;
}

static void nccl_open(const Mesh *mesh) {
    NCCL_WORLD(world_comm);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.maxCTAs = nccl_blocks();
    // Else its blocks come in clusters on 9.0, each of which waits until multiprocessors in one
    // part of the GPU are free at once; those that products leave are anywhere.
    config.cgaClusterSize = 1;
    nccl_choose(mesh);
    for (int which = MESH_TP; which <= MESH_DP; which++) {
        ncclUniqueId id;
        if (mesh_size(mesh, which) == 1) continue;
        int rank = which == MESH_TP ? mesh->group_rank : mesh->dp_rank;
        if (rank == 0) NCCL_CHECK(ncclGetUniqueId(&id));
        mesh_broadcast(mesh, which, 0, &id, sizeof id);
        wait_begin(which);
        NCCL_CHECK(ncclCommInitRankConfig(&nccl_comms[which], mesh_size(mesh, which), id, rank,
                                          &config));
        wait_end();
    }
}

static void nccl_close(void) {
    for (int which = MESH_TP; which <= MESH_DP; which++) {
        if (nccl_comms[which]) NCCL_CHECK(ncclCommDestroy(nccl_comms[which]));
        nccl_comms[which] = NULL;
    }
}

// Waits for an event, and looks at NCCL meanwhile: a rank that died, or a network that broke, shows
// there, while the stream would wait for ever.
static void nccl_wait(cudaEvent_t event) {
    for (cudaError_t status; (status = cudaEventQuery(event)) != cudaSuccess;) {
        if (status != cudaErrorNotReady) CUDA_CHECK(status);
        for (int which = MESH_TP; which <= MESH_DP; which++) {
            ncclResult_t state = ncclSuccess;
            if (nccl_comms[which]) NCCL_CHECK(ncclCommGetAsyncError(nccl_comms[which], &state));
            if (state != ncclSuccess && state != ncclInProgress) {
                fail("NCCL, while waiting for other ranks: %s", ncclGetErrorString(state));
            }
        }
        HOST_YIELD(); // to threads of NCCL that share this core
    }
}

// NCCL counts elements.
static void nccl_reduce(int which, void *x, size_t n, Element element, int largest,
                        cudaStream_t on) {
    NCCL_CHECK(ncclAllReduce(x, x, n, nccl_type(element), largest ? ncclMax : ncclSum,
                             nccl_comms[which], on));
}

// From the first process of a TP group to the others.
static void nccl_broadcast(float *x, size_t n) {
    NCCL_CHECK(ncclBroadcast(x, x, n, ncclFloat32, 0, nccl_comms[MESH_TP], gpu.stream));
}

// Into the owner's x alone, among the replicas.
static void nccl_reduce_to(int owner, float *x, size_t n, cudaStream_t on) {
    NCCL_CHECK(ncclReduce(x, x, n, ncclFloat32, ncclSum, owner, nccl_comms[MESH_DP], on));
}

// One launch for all that is asked for in between.
static void nccl_group_begin(void) { NCCL_CHECK(ncclGroupStart()); }
static void nccl_group_end(void) { NCCL_CHECK(ncclGroupEnd()); }

static void nccl_gather(real *x, size_t begin, size_t n) {
    NCCL_CHECK(ncclAllGather(x + begin, x, n, nccl_type(ELEMENT_REAL), nccl_comms[MESH_DP],
                             gpu.stream));
}
#else
static const int nccl_built_in = 0, nccl_in_order = 0;
static void nccl_open(const Mesh *) {}
static void nccl_close(void) {}
static void nccl_wait(cudaEvent_t) {}
static void nccl_reduce(int, void *, size_t, Element, int, cudaStream_t) {}
static void nccl_broadcast(float *, size_t) {}
static void nccl_reduce_to(int, float *, size_t, cudaStream_t) {}
static void nccl_group_begin(void) {}
static void nccl_group_end(void) {}
static void nccl_gather(real *, size_t, size_t) {}
#endif

// ---- MPI, through pinned host memory, a piece at a time; these return when it is done

static constexpr size_t MPI_PIECE = 32 << 20; // bytes

#ifdef USE_MPI
static MPI_Op bf16_sum; // MPI has no bf16

static void bf16_sum_function(void *in, void *inout, int *n, MPI_Datatype *) {
    const __nv_bfloat16 *x = (const __nv_bfloat16 *)in;
    __nv_bfloat16 *y = (__nv_bfloat16 *)inout;
    for (int i = 0; i < *n; i++) {
        y[i] = __float2bfloat16_rn(__bfloat162float(x[i]) + __bfloat162float(y[i]));
    }
}

static void mpi_open(void) { MPI_CHECK(MPI_Op_create(bf16_sum_function, 1, &bf16_sum)); }
static void mpi_close(void) { MPI_CHECK(MPI_Op_free(&bf16_sum)); }

// Sums, or takes the largest of, n elements of `size` bytes in host memory.
static void mpi_reduce(const Mesh *mesh, int which, void *x, size_t n, size_t size, int largest) {
    int is_float = size == sizeof(float);
    MPI_Op sum = is_float ? MPI_SUM : bf16_sum, op = largest ? MPI_MAX : sum;
    MPI_WAIT(which, MPI_Allreduce(MPI_IN_PLACE, x, (int)n, is_float ? MPI_FLOAT : MPI_UINT16_T, op,
                                  mesh_comm(mesh, which)));
}

// Into the owner's x alone, among the replicas.
static void mpi_reduce_to(const Mesh *mesh, int owner, float *x, size_t n) {
    int mine = mesh->dp_rank == owner;
    MPI_WAIT(MESH_DP, MPI_Reduce(mine ? MPI_IN_PLACE : x, mine ? x : NULL, (int)n, MPI_FLOAT,
                                 MPI_SUM, owner, mesh_comm(mesh, MESH_DP)));
}
#else
static void mpi_open(void) {}
static void mpi_close(void) {}
static void mpi_reduce(const Mesh *, int, void *, size_t, size_t, int) {}
static void mpi_reduce_to(const Mesh *, int, float *, size_t) {}
#endif

static void *host_buffer(GPT2 *m) {
    if (!m->mpi_buffer) CUDA_CHECK(cudaMallocHost(&m->mpi_buffer, MPI_PIECE));
    return m->mpi_buffer;
}

static void host_take(void *host, const void *x, size_t bytes) {
    CUDA_CHECK(cudaMemcpyAsync(host, x, bytes, cudaMemcpyDeviceToHost, gpu.stream));
    CUDA_CHECK(cudaStreamSynchronize(gpu.stream));
}

static void host_put(void *x, const void *host, size_t bytes) {
    CUDA_CHECK(cudaMemcpyAsync(x, host, bytes, cudaMemcpyHostToDevice, gpu.stream));
    CUDA_CHECK(cudaStreamSynchronize(gpu.stream)); // the buffer is about to be used again
}

static void host_reduce(GPT2 *m, int which, char *x, size_t n, Element element, int largest) {
    size_t size = element_size(element), piece = MPI_PIECE / size;
    void *host = host_buffer(m);
    for (size_t done = 0; done < n; done += piece) {
        size_t here = n - done < piece ? n - done : piece;
        host_take(host, x + done * size, here * size);
        mpi_reduce(&m->mesh, which, host, here, size, largest);
        host_put(x + done * size, host, here * size);
    }
}

static void host_reduce_to(GPT2 *m, int owner, float *x, size_t n) {
    size_t piece = MPI_PIECE / sizeof(float);
    float *host = (float *)host_buffer(m);
    for (size_t done = 0; done < n; done += piece) {
        size_t here = n - done < piece ? n - done : piece;
        host_take(host, x + done, here * sizeof(float));
        mpi_reduce_to(&m->mesh, owner, host, here);
        if (m->mesh.dp_rank == owner) host_put(x + done, host, here * sizeof(float));
    }
}

static void host_broadcast(GPT2 *m, int which, int owner, void *x, size_t bytes) {
    void *host = host_buffer(m);
    for (size_t done = 0; done < bytes; done += MPI_PIECE) {
        size_t here = bytes - done < MPI_PIECE ? bytes - done : MPI_PIECE;
        host_take(host, (char *)x + done, here);
        mesh_broadcast(&m->mesh, which, owner, host, here);
        host_put((char *)x + done, host, here);
    }
}

static void host_gather(GPT2 *m, real *x) {
    for (int owner = 0; owner < m->mesh.DP; owner++) {
        host_broadcast(m, MESH_DP, owner, x + owner * m->owned_size, m->owned_size * sizeof(real));
    }
}

// ---- either

// Which way sums go: `choice` is -cm. All processes take part; the mesh is connected.
static void comm_open(const Mesh *mesh, int choice) {
    comm_kind = COMM_AUTO;
    if (mesh->world == 1) return;
    if (choice == COMM_NCCL && !nccl_built_in) {
        fail("-cm nccl: not built in (NVIDIA's CUDA repository: apt-get install libnccl-dev, then "
             "make again)");
    }
    comm_kind = choice;
    if (choice == COMM_AUTO) comm_kind = nccl_built_in ? COMM_NCCL : COMM_MPI;
    mpi_open();
    if (comm_kind == COMM_NCCL) nccl_open(mesh);
}

static void comm_close(void) {
    nccl_close();
    if (comm_kind != COMM_AUTO) mpi_close();
    comm_kind = COMM_AUTO;
}

static int network_emulated(const GPT2 *m) {
    return m->options.network.latency_us > 0 || m->options.network.gbits > 0;
}

// The streams get sums over processes to do, and from here on the host may wait for them: also in a
// launch, when too many are queued. On an emulated network they take as long as they take.
static void gpus_wait_begin(const GPT2 *m) {
    if (comm_kind == COMM_NCCL && !network_emulated(m)) wait_begin(MESH_GPUS);
}

// Waits until the stream has done all it was given.
static void stream_wait(GPT2 *m) {
    gpus_wait_begin(m);
    if (comm_kind == COMM_NCCL) {
        CUDA_CHECK(cudaEventRecord(m->finished, gpu.stream));
        nccl_wait(m->finished);
    }
    CUDA_CHECK(cudaStreamSynchronize(gpu.stream));
    wait_end();
}

// Sums n elements (or takes the largest, of floats) in place over a group; every process gets the
// same bits.
static void group_reduce(GPT2 *m, int which, void *x, size_t n, Element element, int largest,
                         cudaStream_t on) {
    if (mesh_size(&m->mesh, which) == 1 || n == 0) return;
    if (comm_kind == COMM_MPI) host_reduce(m, which, (char *)x, n, element, largest);
    if (comm_kind == COMM_NCCL) nccl_reduce(which, x, n, element, largest, on);
}

// Sums elements begin .. begin+n-1 of the gradients over the replicas. With -z 1 each goes to the
// replica alone that updates it, half as many bytes: a reduce-scatter of unequal parts.
static void replicas_reduce(GPT2 *m, size_t begin, size_t n, cudaStream_t on) {
    if (!m->options.zero) {
        group_reduce(m, MESH_DP, m->grads + begin, n, ELEMENT_FLOAT, 0, on);
        return;
    }
    for (size_t at = begin, end = begin + n; at < end;) {
        size_t owner = at / m->owned_size, next = min(end, (owner + 1) * m->owned_size);
        if (comm_kind == COMM_MPI) host_reduce_to(m, (int)owner, m->grads + at, next - at);
        if (comm_kind == COMM_NCCL) nccl_reduce_to((int)owner, m->grads + at, next - at, on);
        at = next;
    }
}

// While sums go on beside them, products leave NCCL multiprocessors.
static void products_spare(int beside) {
    matmul_spared = beside && comm_kind == COMM_NCCL ? nccl_blocks() : 0;
}

// Every replica has owned_size elements of x, its own part of flat_size: all get all of it.
static void replicas_gather(GPT2 *m, real *x) {
    if (comm_kind == COMM_NCCL) nccl_gather(x, m->owned_begin, m->owned_size);
    else host_gather(m, x);
}

// ----------------------------------------------------------------------------
// merges: the only place where ranks sum what blocks make

__global__ void network_begin_kernel(unsigned long long *begin) { *begin = clock_ns(); }

__global__ void network_wait_kernel(const unsigned long long *begin, unsigned long long ns) {
    while (clock_ns() - *begin < ns) __nanosleep(200);
}

// Space for one more pair of events; they are made once and used in every update.
static Span *span_next(GPT2 *m, int kind) {
    if (m->span_count == m->span_room) {
        int room = m->span_room ? 2 * m->span_room : 64;
        Span *spans = ALLOC(Span, room, "events");
        if (m->spans) memcpy(spans, m->spans, m->span_room * sizeof *spans);
        free(m->spans);
        m->spans = spans;
        for (int i = m->span_room; i < room; i++) {
            CUDA_CHECK(cudaEventCreate(&spans[i].begin));
            CUDA_CHECK(cudaEventCreate(&spans[i].end));
        }
        m->span_room = room;
    }
    m->spans[m->span_count].kind = kind;
    return &m->spans[m->span_count++];
}

// After the stream was waited for: the time that its all-reduces took.
static void spans_collect(GPT2 *m) {
    for (int i = 0; i < m->span_count; i++) {
        float ms;
        CUDA_CHECK(cudaEventElapsedTime(&ms, m->spans[i].begin, m->spans[i].end));
        m->traffic[m->spans[i].kind].seconds += 1e-3 * ms;
    }
    m->span_count = 0;
}

// Sums x (n) over the processes of the TP group on stream `on`, as slowly as the emulated network.
// clock: see GPT2.
static void allreduce_launch(GPT2 *m, void *x, size_t n, Element element, int largest,
                             cudaStream_t on, unsigned long long *clock) {
    if (network_emulated(m)) LAUNCH(network_begin_kernel, 1, 1, 0, on, clock);
    group_reduce(m, MESH_TP, x, n, element, largest, on);
    if (!network_emulated(m)) return;
    double seconds = network_seconds(&m->options.network, m->config.R, n * element_size(element));
    LAUNCH(network_wait_kernel, 1, 1, 0, on, clock, (unsigned long long)(1e9 * seconds));
}

// Whether an all-reduce is anything to wait for: not where there is nobody to talk to, nor where
// the parts of all ranks are in this process, which were added up before or are by the kernel that
// comes next, unless a network is emulated.
static int ranks_wait(const GPT2 *m) {
    return m->config.R > 1 && (m->mesh.group > 1 || network_emulated(m));
}

static void allreduce_count(GPT2 *m, int kind, size_t n, Element element) {
    if (m->config.R == 1) return; // nothing was communicated
    m->traffic[kind].count++;
    m->traffic[kind].bytes += n * element_size(element);
}

// Sums x (n) over all R ranks, of which those in this process have been added up before.
static void allreduce(GPT2 *m, int kind, void *x, size_t n, Element element, int largest) {
    RANGE();
    allreduce_count(m, kind, n, element);
    if (!ranks_wait(m)) return;
    Span *span = span_next(m, kind);
    CUDA_CHECK(cudaEventRecord(span->begin, gpu.stream));
    m->sum_number++;
    if (comm_kind == COMM_MPI) watch_sum(kind, m->sum_number);
    allreduce_launch(m, x, n, element, largest, gpu.stream, &m->clock[0]);
    watch_sum(TRAFFIC_KINDS, 0);
    CUDA_CHECK(cudaEventRecord(span->end, gpu.stream));
}

// The same in two halves, between which the caller computes and leaves x alone; only the wait that
// is left counts as its time. One at a time, and no other between them: NCCL wants the calls on a
// communicator in one order. Through MPI there is no second half: the host would be busy with it.
static void allreduce_begin(GPT2 *m, int kind, real *x, size_t n) {
    RANGE();
    m->hidden_kind = kind;
    if (comm_kind == COMM_MPI) {
        allreduce(m, kind, x, n, ELEMENT_REAL, 0);
        return;
    }
    allreduce_count(m, kind, n, ELEMENT_REAL);
    if (!ranks_wait(m)) return;
    CUDA_CHECK(cudaEventRecord(m->ready, gpu.stream));
    CUDA_CHECK(cudaStreamWaitEvent(gpu.hidden_stream, m->ready, 0));
    allreduce_launch(m, x, n, ELEMENT_REAL, 0, gpu.hidden_stream, &m->clock[1]);
    CUDA_CHECK(cudaEventRecord(m->hidden, gpu.hidden_stream));
    products_spare(1);
}

static void allreduce_end(GPT2 *m) {
    RANGE();
    if (comm_kind == COMM_MPI || !ranks_wait(m)) return;
    Span *span = span_next(m, m->hidden_kind); // what was not hidden
    CUDA_CHECK(cudaEventRecord(span->begin, gpu.stream));
    CUDA_CHECK(cudaStreamWaitEvent(gpu.stream, m->hidden, 0));
    CUDA_CHECK(cudaEventRecord(span->end, gpu.stream));
    products_spare(m->replica_sums_begun);
}

// ----------------------------------------------------------------------------
// sub-blocks: attention (even k) and MLP (odd k) differ in what stands between their two matrices

// Their parameters: [0] attention, [1] MLP.
typedef struct { int ln_w, ln_b, in_w, in_b, out_w, out_b; } SubParams;
static const SubParams sub_params[2] = {
    {P_ln1w, P_ln1b, P_qkvw, P_qkvb, P_attprojw, P_attprojb},
    {P_ln2w, P_ln2b, P_fcw, P_fcb, P_fcprojw, P_fcprojb},
};

// The three products of a layer of tensor p, weights w (OC,IC) of all ranks that are here. g says
// where activations lie, and their number of rows; these add the rest.

// out (rows,OC) = or += a (rows,IC) wᵀ, with what else a product can do
static void matmul_forward(GPT2 *m, int p, int layer, Matmul g) {
    g.b = param_at(m, p, layer);
    g.b_stride = param_stride(m, p);
    g.b_transposed = 1;
    g.N = m->local[p].rows;
    g.K = m->local[p].cols;
    g.batch = parts_of(m, p);
    matmul(g, m->workspace);
}

// The same, and where it is in chunks of rows the sum of each over the ranks, which goes on while
// the next chunk is computed. allreduce_end waits for the last.
static void matmul_merged(GPT2 *m, int p, int layer, Matmul g) {
    int rows = g.M, chunks = max(1, m->chunks), OC = m->local[p].rows, IC = m->local[p].cols;
    const real *a = g.a;
    real *out = (real *)g.out;
    for (int c = 0, first = 0; c < chunks; c++, first += g.M) {
        g.M = (int)((int64_t)rows * (c + 1) / chunks) - first;
        g.a = a + (size_t)first * IC;
        g.out = out + (size_t)first * OC;
        matmul_forward(m, p, layer, g);
        if (chunks == 1) return;
        allreduce_begin(m, TRAFFIC_FORWARD, (real *)g.out, (size_t)g.M * OC);
    }
}

// out (rows,IC) = a (rows,OC) w, from the gradient of the output to that of the input
static void matmul_backward_input(GPT2 *m, int p, int layer, Matmul g) {
    g.b = param_at(m, p, layer);
    g.b_stride = param_stride(m, p);
    g.N = m->local[p].cols;
    g.K = m->local[p].rows;
    g.batch = parts_of(m, p);
    matmul(g, m->workspace);
}

// The gradient of w, = or += aᵀ b, of a (rows,OC), the gradient of the output, and the input b
// (rows,IC)
static void matmul_backward_weight(GPT2 *m, int p, int layer, Matmul g) {
    g.out = grad_at(m, p, layer);
    g.out_stride = param_stride(m, p);
    g.out_float = 1;
    g.a_transposed = 1;
    g.M = m->local[p].rows;
    g.N = m->local[p].cols;
    g.batch = parts_of(m, p);
    matmul(g, m->workspace);
}

static size_t stream_size(const GPT2 *m) { return (size_t)m->B * m->T * m->config.C; }
// From one rank's copy of value v to the next's: 0 where all have the same.
static size_t value_stride(const GPT2 *m, int v) {
    return m->values[v].copies > 1 ? stream_size(m) : 0;
}
static real *value_at(const GPT2 *m, int v) { return m->values[v].at; }
static int stream_read(const GPT2 *m, int k) { return V_STREAM + m->plan.reads[k]; }

static AttentionShape attention_shape(const GPT2 *m) {
    return AttentionShape{m->F * m->B, m->T, m->config.NH / m->config.R,
                          m->config.C / m->config.NH, m->past, m->spare};
}

// Which tensors, and which layer of them, hold the LayerNorm that sub-block k begins with; the
// final one for k = 2L.
typedef struct { int w, b, layer; } NormTensors;
static NormTensors norm_tensors(const GPT2 *m, int k) {
    const SubParams *p = &sub_params[is_mlp(k)];
    if (k == 2 * m->config.L) return NormTensors{P_lnfw, P_lnfb, 0};
    return NormTensors{p->ln_w, p->ln_b, layer_of(k)};
}

static Norm norm_of(GPT2 *m, int k) {
    SubBlock *s = &m->subs[k];
    NormTensors t = norm_tensors(m, k);
    return Norm{s->normed, s->mean, s->rstd, param_at(m, t.w, t.layer), param_at(m, t.b, t.layer)};
}

// A Merge that so far adds up nothing.
static Merge merge_of(const GPT2 *m, real *out, int copies) {
    int rows = m->B * m->T;
    return Merge{.out = out, .base_rows = rows, .base_scale = 1, .parts_scale = 1, .share = 1,
                 .bias_scale = 1, .copies = copies, .rows = rows, .C = m->config.C};
}

// Adds scale times value v, each copy of the outcome its own copy of it.
static void merge_base(const GPT2 *m, Merge *g, int v, double scale) {
    g->base = value_at(m, v);
    g->base_stride = value_stride(m, v);
    g->base_scale = (float)scale;
}

// Partial outputs of all folded ranks (F, B,T,C), no output bias:
// to = or += Wout . inside(Win . LN(stream) + b), each its own part.
static void subblock_forward(GPT2 *m, int k, real *to, int add) {
    RANGE();
    const SubBlock *s = &m->subs[k];
    const SubParams *p = &sub_params[is_mlp(k)];
    int layer = layer_of(k), rows = m->B * m->T, mlp = is_mlp(k);
    size_t inner = (size_t)rows * s->inner_width, outer = (size_t)rows * s->outer_width;
    int fused = mlp && gpu.fuses_gelu; // the product writes both sides of GELU
    real *fresh = s->inner; // queries, keys and values of new tokens lie behind those of the past
    if (!mlp) {
        fresh += (size_t)m->past * s->inner_width;
        inner += (size_t)m->B * (m->past + m->spare) * s->inner_width;
    }
    matmul_forward(m, p->in_w, layer,
                   {.out = fused ? s->outer : fresh, .out_stride = inner, .a = s->normed,
                    .a_stride = value_stride(m, stream_read(m, k)),
                    .bias = param_at(m, p->in_b, layer), .bias_stride = param_stride(m, p->in_b),
                    .before_gelu = fused ? s->inner : NULL, .M = rows});
    if (!mlp) attention_forward(s->outer, s->lse, s->inner, attention_shape(m), gpu.stream);
    else if (!gpu.fuses_gelu) gelu_forward(s->outer, s->inner, m->F * inner);

    matmul_merged(m, p->out_w, layer,
                  {.out = to, .out_stride = stream_size(m), .a = s->outer, .a_stride = outer,
                   .M = rows, .accumulate = add});
}

// With -r, what the forward pass did not keep of sub-block k.
static void subblock_again(GPT2 *m, int k) {
    const SubBlock *s = &m->subs[k];
    int rows = m->B * m->T;
    if (m->options.recompute > 1)
        norm_again(norm_of(m, k), value_at(m, stream_read(m, k)), s->copies, rows, m->config.C);
    if (m->options.recompute > 0 && is_mlp(k))
        gelu_forward(s->outer, s->inner, (size_t)m->F * rows * s->inner_width);
}

// From the gradients `dpartial` of the ranks' partial outputs, dpartial_stride apart, to those of
// the streams they read, written to dstream (F, B,T,C), or added to it if add_stream, and of their
// parameters (added to if add_grads), without the input matrix: dinner waits for
// subblock_weight_backward. merged: all ranks read the same stream, and the sum over them is added
// to dstream, G (B,T,C). Gradients of LayerNorm are then rank 0's; those of others stay zero.
static void subblock_backward(GPT2 *m, int k, const real *dpartial, size_t dpartial_stride,
                              real *dstream, int add_stream, int merged, int add_grads) {
    RANGE();
    const SubBlock *s = &m->subs[k];
    const SubParams *p = &sub_params[is_mlp(k)];
    int layer = layer_of(k), rows = m->B * m->T, C = m->config.C, mlp = is_mlp(k), F = m->F;
    int width = s->inner_width;
    size_t outer = (size_t)rows * s->outer_width;
    subblock_again(m, k);

    matmul_backward_weight(m, p->out_w, layer,
                           {.a = dpartial, .b = s->outer, .a_stride = dpartial_stride,
                            .b_stride = outer, .K = rows, .accumulate = add_grads});

    int fused = mlp && gpu.fuses_gelu; // the product goes on through GELU, and sums its rows
    real *sums = (real *)(void *)m->sums_scratch;
    matmul_backward_input(m, p->out_w, layer,
                          {.out = fused ? m->dinner : m->douter, .out_stride = outer,
                           .a = dpartial, .a_stride = dpartial_stride,
                           .bias_grad = fused ? sums : NULL, .bias_stride = (size_t)width,
                           .gelu_in = fused ? s->inner : NULL, .M = rows});
    float *din_b = grad_at(m, p->in_b, layer);
    size_t din_b_stride = param_stride(m, p->in_b);
    if (fused) {
        chunks_sum(din_b, din_b_stride, 1, Chunks<real>{sums, 1, width}, F, width, add_grads);
    } else if (mlp) {
        Chunks<float> chunks = gelu_backward(m->dinner, m->douter, s->inner, F, rows, width,
                                             m->sums_scratch);
        chunks_sum(din_b, din_b_stride, 1, chunks, F, width, add_grads);
    } else {
        AttentionShape shape = attention_shape(m);
        Chunks<float> chunks = {m->sums_scratch, m->B * attention_tiles(shape.T, shape.HS), width};
        attention_backward(m->dinner, m->sums_scratch, m->row_scratch, m->douter, s->outer, s->lse,
                           s->inner, shape, gpu.stream);
        chunks_sum(din_b, din_b_stride, 1, chunks, F, width, add_grads);
    }

    matmul_backward_input(m, p->in_w, layer,
                          {.out = m->dnormed, .out_stride = stream_size(m), .a = m->dinner,
                           .a_stride = (size_t)rows * width, .M = rows});

    NormTensors t = norm_tensors(m, k);
    NormBackward norm = {.dx = dstream, .add_dx = add_stream || merged, .sum_dx = merged,
                         .dout = m->dnormed, .parts = merged ? F : 1,
                         .x = value_at(m, stream_read(m, k)), .mean = s->mean, .rstd = s->rstd,
                         .x_stride = value_stride(m, stream_read(m, k)),
                         .stats_stride = s->copies > 1 ? (size_t)rows : 0,
                         .w = param_at(m, t.w, t.layer), .partial = m->sums_scratch,
                         .rows = rows, .C = C};
    m->sums = norm_backward(norm, grad_at(m, t.w, t.layer), grad_at(m, t.b, t.layer),
                            grad_stride(m, t.w), merged ? 1 : F, add_grads);
    m->sums_of = merged ? V_G : V_NONE;
}

// The rest: the gradient of the input matrix.
static void subblock_weight_backward(GPT2 *m, int k, int add_grads) {
    RANGE();
    const SubBlock *s = &m->subs[k];
    const SubParams *p = &sub_params[is_mlp(k)];
    int layer = layer_of(k), rows = m->B * m->T, width = s->inner_width;
    matmul_backward_weight(m, p->in_w, layer,
                           {.a = m->dinner, .b = s->normed, .a_stride = (size_t)rows * width,
                            .b_stride = value_stride(m, stream_read(m, k)), .K = rows,
                            .accumulate = add_grads});
}

// ----------------------------------------------------------------------------
// steps: what the plan asks for (see tp_blocks.h)

// What a step adds up, where all parts are in this process.
static Merge merge_of_step(const GPT2 *m, const Step *s) {
    int own = s->how == SUM_OWN;
    Merge g = merge_of(m, value_at(m, s->to), m->values[s->to].copies);
    if (s->parts) {
        g.parts = value_at(m, s->parts);
        g.count = own ? 1 : m->F;
        g.step = own;
    }
    if (s->from && !own && !value_is_shared(&m->plan, s->from)) { // every rank brings its own
        g.owns = value_at(m, s->from);
        g.own_stride = value_stride(m, s->from);
        g.share = (float)s->scale;
    } else if (s->from) {
        merge_base(m, &g, s->from, s->scale);
    }
    if (s->end > s->first) g.bias = m->bias_sums + (size_t)(s->end - 1) * m->config.C;
    g.bias_scale = (float)s->bias;
    return g;
}

// Where other processes have parts of merge g too: adds up, in place, what the folded ranks bring.
// Base and bias, which are added once and not by every process, stay for the end.
static void parts_fold(const GPT2 *m, const Merge *g, real *parts) {
    Merge mine = *g;
    mine.out = parts;
    mine.copies = 1;
    mine.base = NULL;
    mine.bias = NULL;
    if (m->mesh.group > 1 && (m->F > 1 || mine.owns)) merge(mine, NULL);
}

// The same merge after that, and after the sum over processes: one part is left.
static void parts_folded(const GPT2 *m, Merge *g) {
    if (m->mesh.group == 1) return;
    g->count = 1;
    g->owns = NULL;
}

// done: the sum over ranks in this process, by the sub-block before it.
static void step_sum(GPT2 *m, const Step *s, int done) {
    RANGE();
    int reader = s->to >= V_STREAM ? m->plan.reader[s->to - V_STREAM] : -1;
    int traffic = s->to == V_G ? TRAFFIC_BACKWARD : TRAFFIC_FORWARD;
    real *parts = value_at(m, s->parts);
    Merge g = merge_of_step(m, s);
    if (step_is_merge(s)) parts_fold(m, &g, parts);
    int begun = s->how == SUM_WHOLE && m->chunks > 1;
    m->chunks = 1;
    if (s->how == SUM_WHOLE && !begun) {
        allreduce(m, traffic, parts, stream_size(m), ELEMENT_REAL, 0);
    }
    if (s->how == SUM_BEGIN) allreduce_begin(m, traffic, parts, stream_size(m));
    if (s->how == SUM_BEGIN) return;
    if (s->how == SUM_END || begun) allreduce_end(m);
    if (done) return;
    if (s->how != SUM_OWN) parts_folded(m, &g);
    if (reader >= 0) { // normed for the first sub-block that reads it
        merge_norm(g, norm_of(m, reader));
    } else {
        m->sums = merge(g, m->sums_scratch);
        m->sums_of = s->to;
    }
}

// Sub-block k reads a stream that was normed for another one.
static void stream_norm(GPT2 *m, int k) {
    Merge again = merge_of(m, NULL, m->subs[k].copies);
    merge_base(m, &again, stream_read(m, k), 1);
    merge_norm(again, norm_of(m, k));
}

// Gradients of a bias (C), of `count` ranks from `first` on, = or += scale * the sums over the rows
// of their copies of value v.
static void value_bias_backward(GPT2 *m, float *grad, int v, int first, int count, float scale,
                                int add) {
    int C = m->config.C, rows = m->B * m->T;
    size_t stride = m->partials_size;
    const real *d = value_at(m, v) + first * value_stride(m, v);
    Chunks<float> sums = m->sums;
    sums.from += (size_t)first * sums.count * sums.stride;
    grad += first * stride;
    if (m->sums_of == v) {
        chunks_sum(grad, stride, scale, sums, count, C, add);
    } else {
        m->sums_of = V_NONE;
        bias_backward(grad, stride, scale, d, count, rows, C, add, m->sums_scratch);
    }
}

// Rank 0 of the model has a sum of its own. Where the others have none, their gradients were zero
// when the pattern was taken and stay so, except in the copy that gets the sum over ranks.
static void step_bias(GPT2 *m, const Step *s, int add_grads) {
    int C = m->config.C, add = add_grads || s->add;
    float *grad = grad_at(m, sub_params[is_mlp(s->k)].out_b, layer_of(s->k));
    int first = m->rank0 == 0 && s->from != s->parts; // ranks that differ from the others: 1 or 0
    if (first) value_bias_backward(m, grad, s->from, 0, 1, (float)s->scale, add);
    if (s->parts && first < m->F)
        value_bias_backward(m, grad, s->parts, first, m->F - first, 1, add);
    if (!s->parts && m->rank0 > 0 && !add)
        CUDA_CHECK(cudaMemsetAsync(grad, 0, C * sizeof(float), gpu.stream));
}

// Adds to G, the gradient of a stream, that of its distance to the teacher's. Both streams have the
// same bits on all ranks, so each rank does this by itself. The last segment comes first.
static void step_match(GPT2 *m, const Step *s) {
    RANGE();
    const GPT2 *teacher = m->teacher;
    int rows = m->B * m->T, add = s->k < 2 * m->config.L;
    LAUNCH(match_kernel, ceil_div(rows, BLOCK_WARPS), BLOCK, 0, gpu.stream, value_at(m, s->to),
           m->distances, value_at(m, s->from),
           value_at(teacher, V_STREAM + teacher->plan.boundary[s->k]), (float)m->match_scale, rows,
           m->config.C, add);
    if (m->sums_of == s->to) m->sums_of = V_NONE;
}

// The matrices and the inner bias of sub-block k have their gradients of this update, short of the
// sum over data-parallel replicas: it goes on beside the compute stream. Tensors of which ranks
// have partial gradients come later.
static void replica_sums_begin(GPT2 *m, int k) {
    RANGE();
    const int tensors[3] = {sub_params[is_mlp(k)].in_w, sub_params[is_mlp(k)].in_b,
                            sub_params[is_mlp(k)].out_w};
    if (m->mesh.DP == 1 || comm_kind != COMM_NCCL) return;
    if (m->mesh.group > 1 && !nccl_in_order) return; // beside sums over the TP group
    CUDA_CHECK(cudaEventRecord(m->ready, gpu.stream));
    CUDA_CHECK(cudaStreamWaitEvent(gpu.replica_stream, m->ready, 0));
    nccl_group_begin();
    for (int i = 0; i < 3; i++) {
        size_t n = spec_layer_size(&m->local[tensors[i]]) * parts_of(m, tensors[i]);
        replicas_reduce(m, layer_offset(m, tensors[i], layer_of(k)), n, gpu.replica_stream);
    }
    nccl_group_end();
    m->replica_sums_begun = 1;
    products_spare(1);
}

// In how many chunks of rows what step s computes is merged, if that is all that the next step
// merges, and NCCL can do it meanwhile.
static int merge_chunks(const GPT2 *m, const Step *s, const Step *next) {
    int apart = comm_kind == COMM_NCCL && m->mesh.group > 1 && m->F == 1;
    int alone = next->kind == STEP_SUM && next->how == SUM_WHOLE && next->parts == s->to &&
                value_is_shared(&m->plan, next->from);
    return apart && alone ? min(m->options.chunks, m->B * m->T) : 1;
}

// The sum that s, a STEP_BACK, does on its way, or NULL: G += Σ D, of a D that s alone fills, and
// nothing else happens to either in between. All ranks are in this process and read one stream.
static const Step *back_merge(const GPT2 *m, const Step *s, const Step *end) {
    const Step *sum = s + 1;
    if (s->add || m->mesh.group > 1 || m->subs[s->k].copies != 1) return NULL;
    for (; sum < end; sum++) {
        if (sum->kind == STEP_WEIGHT || (sum->how == SUM_BEGIN && sum->parts == s->to)) continue;
        int merges = sum->kind == STEP_SUM && sum->how != SUM_OWN && sum->scale == 1;
        return merges && sum->parts == s->to ? sum : NULL;
    }
    return NULL;
}

static void steps_run(GPT2 *m, const Steps *steps, int add_grads) {
    const Step *end = steps->at + steps->count, *merged = NULL;
    m->sum_number = 0;
    for (const Step *s = steps->at; s < end; s++) {
        switch (s->kind) {
        case STEP_SUB: // never the last
            m->chunks = merge_chunks(m, s, s + 1);
            if (m->plan.reader[s->from - V_STREAM] != s->k) stream_norm(m, s->k);
            subblock_forward(m, s->k, value_at(m, s->to), s->add);
            break;
        case STEP_SUM: step_sum(m, s, s == merged); break;
        case STEP_BIAS: step_bias(m, s, add_grads); break;
        case STEP_BACK:
            merged = back_merge(m, s, end);
            subblock_backward(m, s->k, value_at(m, s->from), value_stride(m, s->from),
                              value_at(m, merged ? V_G : s->to), s->add, merged != NULL, add_grads);
            break;
        case STEP_WEIGHT:
            subblock_weight_backward(m, s->k, add_grads);
            if (m->last_pass) replica_sums_begin(m, s->k);
            break;
        case STEP_MATCH: step_match(m, s); break;
        }
    }
}

// ----------------------------------------------------------------------------
// embedding and head, which share wte. Either every rank has all of it, or its rows are cut over
// the tensor ranks (`-vp 1`, the default; Megatron-LM, arXiv 1909.08053, section 3), and a rank
// embeds and scores the tokens it has the rows of.

typedef struct { int first, count; } TokenRange;

// The tokens whose rows part f of this process holds.
static TokenRange vocab_range(const GPT2 *m, int f) {
    if (!m->vocab_cut) return TokenRange{0, m->config.V};
    int first = (m->rank0 + f) * m->vocab_width, left = m->config.V - first;
    return TokenRange{first, left < 0 ? 0 : min(left, m->vocab_width)};
}

static real *logits_part(const GPT2 *m, int f) {
    return m->logits + (size_t)f * m->scored * m->vocab_width;
}
static size_t wte_part(const GPT2 *m, int f) {
    return m->flat.begin[P_wte] + f * spec_layer_size(&m->local[P_wte]);
}

// Sorts rows by token, for embedding_backward: to order (rows), behind which group_token (rows) and
// group_begin (rows+1) lie; see Batch. Returns the number of groups.
static int rows_group(GPT2 *m, const int32_t *tokens, int rows, int32_t *order) {
    int V = m->config.V, groups = 0;
    int32_t *group_token = order + rows, *group_begin = group_token + rows;
    int32_t *at = m->token_count; // (V+1) becomes where the next row of each token goes
    memset(at, 0, (size_t)(V + 1) * sizeof *at);
    for (int i = 0; i < rows; i++) at[tokens[i] + 1]++;
    for (int v = 0; v < V; v++) {
        if (at[v + 1]) {
            group_token[groups] = v;
            group_begin[groups] = at[v];
            groups++;
        }
        at[v + 1] += at[v];
    }
    group_begin[groups] = rows;
    for (int i = 0; i < rows; i++) order[at[tokens[i]]++] = i;
    return groups;
}

// Sends a micro-batch to the GPU in one copy. Without targets there is no backward pass.
static void batch_send(GPT2 *m, const int32_t *tokens, const int32_t *targets, int rows) {
    m->batch_turn ^= 1;
    int groups = 0, turn = m->batch_turn;
    size_t count = rows;
    int32_t *host = m->batch_host[turn];
    CUDA_CHECK(cudaEventSynchronize(m->batch_copied[turn])); // until the last copy has left it
    memcpy(host, tokens, rows * sizeof *tokens);
    if (targets) {
        memcpy(host + rows, targets, rows * sizeof *targets);
        groups = rows_group(m, tokens, rows, host + 2 * rows);
        count = (size_t)5 * rows + 1;
    }
    CUDA_CHECK(cudaMemcpyAsync(m->batch_data, host, count * sizeof *host, cudaMemcpyHostToDevice,
                               gpu.stream));
    CUDA_CHECK(cudaEventRecord(m->batch_copied[turn], gpu.stream));
    const int32_t *data = m->batch_data;
    m->batch = Batch{data, data + rows, data + 2 * rows, data + 3 * rows, data + 4 * rows, groups};
}

static void tokens_embed(GPT2 *m) {
    RANGE();
    int C = m->config.C, rows = m->B * m->T;
    size_t n = stream_size(m);
    real *parts = value_at(m, V_O0);
    for (int f = 0; f < m->vocab_parts; f++) {
        TokenRange r = vocab_range(m, f);
        embedding_forward(parts + f * n, m->batch.tokens, m->params + wte_part(m, f), r.first,
                          r.count, rows, C);
    }
    Merge all = merge_of(m, value_at(m, V_STREAM), 1);
    all.parts = parts;
    all.count = m->vocab_parts;
    all.base = param_at(m, P_wpe, 0) + (size_t)m->past * C;
    all.base_rows = m->T; // row r is position past + r % T
    if (m->vocab_cut) {
        parts_fold(m, &all, parts);
        parts_folded(m, &all);
        allreduce(m, TRAFFIC_VOCABULARY, parts, n, ELEMENT_REAL, 0);
    }
    merge_norm(all, norm_of(m, 0));
}

// Logits of the last `scored` tokens of the forward pass, of all parts of the vocabulary. Columns
// past a part's tokens come out as zero.
static void logits_compute(GPT2 *m) {
    size_t before = (size_t)(m->B * m->T - m->scored) * m->config.C;
    matmul_forward(m, P_wte, 0,
                   {.out = m->logits, .out_stride = (size_t)m->scored * m->vocab_width,
                    .a = m->subs[2 * m->config.L].normed + before, .M = m->scored});
}

// Losses of all tokens; and the gradients of scale times their mean over the logits, unless scale
// is 0.
static void classify(GPT2 *m, double scale) {
    RANGE();
    int rows = m->B * m->T, width = m->vocab_width, threads = classifier_threads(width),
        blocks = ceil_div(rows, BLOCK);
    float each = (float)(scale / rows);
    if (!m->vocab_cut) {
        LAUNCH(classifier_kernel, rows, threads, 0, gpu.stream, m->logits, m->losses,
               m->batch.targets, each, m->config.V, width);
        return;
    }
    for (int f = 0; f < m->vocab_parts; f++) {
        TokenRange r = vocab_range(m, f);
        LAUNCH(classifier_part_kernel, rows, threads, 0, gpu.stream, logits_part(m, f),
               m->part_most + (size_t)f * rows, m->part_sums + (size_t)2 * f * rows,
               m->batch.targets, r.first, r.count, width);
    }
    LAUNCH(parts_max_kernel, blocks, BLOCK, 0, gpu.stream, m->most, m->part_most, m->vocab_parts,
           rows);
    allreduce(m, TRAFFIC_VOCABULARY, m->most, rows, ELEMENT_FLOAT, 1);
    LAUNCH(parts_rescale_kernel, blocks, BLOCK, 0, gpu.stream, m->part_sums, m->part_most, m->most,
           m->vocab_parts, rows);
    allreduce(m, TRAFFIC_VOCABULARY, m->part_sums, 2 * (size_t)rows, ELEMENT_FLOAT, 0);
    LAUNCH(losses_kernel, blocks, BLOCK, 0, gpu.stream, m->losses, m->lse, m->most, m->part_sums,
           rows);
    for (int f = 0; f < m->vocab_parts && scale != 0; f++) {
        TokenRange r = vocab_range(m, f);
        LAUNCH(classifier_backward_kernel, rows, threads, 0, gpu.stream, logits_part(m, f), m->lse,
               m->batch.targets, each, r.first, r.count, width);
    }
}

// Logits (V) of one of the tokens that the last forward pass scored. All ranks take part.
static void logits_collect(GPT2 *m, int row, float *out) {
    size_t width = m->vocab_width;
    for (int f = 0; f < m->vocab_parts; f++) {
        CUDA_CHECK(cudaMemcpyAsync(m->host_logits + f * width, logits_part(m, f) + row * width,
                                   width * sizeof(real), cudaMemcpyDeviceToHost, gpu.stream));
    }
    stream_wait(m);
    spans_collect(m);
    memset(out, 0, (size_t)m->config.V * sizeof *out);
    for (int f = 0; f < m->vocab_parts; f++) {
        TokenRange r = vocab_range(m, f);
        for (int v = 0; v < r.count; v++) out[r.first + v] = (float)m->host_logits[f * width + v];
    }
    if (!m->vocab_cut) return;
    Traffic *t = &m->traffic[TRAFFIC_VOCABULARY];
    size_t V = (size_t)m->config.V, bytes = V * sizeof *out;
    double start = seconds_now();
    mesh_sum(&m->mesh, MESH_TP, out, V, sizeof *out);
    if (network_emulated(m)) {
        wait_until(start + network_seconds(&m->options.network, m->config.R, bytes));
    }
    t->count++;
    t->bytes += bytes;
    t->seconds += seconds_now() - start;
}

// ----------------------------------------------------------------------------
// forward and backward pass: launches only; the host runs ahead of the GPU

// The launches of an update of `-p t` at R 1 with one micro-batch, in order. Folded ranks are in
// the same launches. Where GELU is apart from its products, it is one kernel more. dev/test/cuda.sh
// compares the list with what is launched. A teacher runs its forward pass before, without logits;
// after it there is a match_kernel for each stream that is matched, and a columns_kernel for sums
// of rows that norm_backward_kernel leaves otherwise, and one loss_mean_kernel more.
//
//   bias_sums_kernel                              what merges add
//   embedding_kernel
//   merge_norm_kernel                             + positions; LayerNorm of the first block
//   L times:
//     cublasLtMatmul BIAS (BT,C) (C,3C)           queries, keys, values
//     attention_forward_kernel                    attention_token_kernel of tokens that are made
//     cublasLtMatmul (BT,C) (C,C)
//     merge_norm_kernel                           x + it + bias; LayerNorm before the MLP
//     cublasLtMatmul GELU_AUX_BIAS (BT,C) (C,4C)
//     cublasLtMatmul (BT,4C) (4C,C)
//     merge_norm_kernel                           x + it + bias; LayerNorm of the next block
//   cublasLtMatmul (BT,C) (C,Vp)                  logits
//   classifier_kernel                             losses; logits become their gradients
//   loss_mean_kernel
//   cublasLtMatmul (Vp,BT) (BT,C)                 wte
//   cublasLtMatmul (BT,Vp) (Vp,C)
//   norm_backward_kernel                          the last LayerNorm; sums of chunks of rows
//   chunks_sum_kernel                             lnfw
//   chunks_sum_kernel                             lnfb
//   L times:
//     chunks_sum_kernel                           fcprojb, of what norm_backward_kernel left
//     cublasLtMatmul (C,BT) (BT,4C)               fcprojw
//     cublasLtMatmul DGELU_BGRAD (BT,C) (C,4C)
//     chunks_sum_kernel                           fcb
//     cublasLtMatmul (BT,4C) (4C,C)
//     norm_backward_kernel                        + what came past the MLP
//     chunks_sum_kernel                           ln2w
//     chunks_sum_kernel                           ln2b
//     cublasLtMatmul (4C,BT) (BT,C)               fcw
//     chunks_sum_kernel                           attprojb
//     cublasLtMatmul (C,BT) (BT,C)                attprojw
//     cublasLtMatmul (BT,C) (C,C)
//     attention_backward_queries_kernel
//     attention_backward_keys_kernel
//     chunks_sum_kernel                           qkvb
//     cublasLtMatmul (BT,3C) (3C,C)
//     norm_backward_kernel                        + what came past attention
//     chunks_sum_kernel                           ln1w
//     chunks_sum_kernel                           ln1b
//     cublasLtMatmul (3C,BT) (BT,C)               qkvw
//   embedding_backward_kernel                     wte
//   position_backward_kernel                      wpe
//   squares_kernel                                norm of the gradient
//   squares_sum_kernel
//   adamw_kernel

// T new tokens of each of B sequences, and logits of the last `scored` of all. With a `past`, B is
// 1, and the keys and values of so many tokens before them are there. There is room for `spare`
// more.
static void forward_pass(GPT2 *m, const int32_t *tokens, const int32_t *targets, int B, int T,
                         int past, int spare, int scored) {
    RANGE();
    m->B = B;
    m->T = T;
    m->past = past;
    m->spare = spare;
    m->scored = scored;
    gpus_wait_begin(m);
    batch_send(m, tokens, targets, B * T);
    LAUNCH(bias_sums_kernel, 2 * m->config.L, BLOCK, 0, gpu.stream, m->bias_sums,
           param_at(m, P_attprojb, 0), param_at(m, P_fcprojb, 0), m->bias_from, m->config.C);
    tokens_embed(m);
    steps_run(m, &m->plan.forward, 0);
    if (scored) logits_compute(m);
}

// From the gradient over the logits, which `classify` left there, to those of all parameters. They
// replace what the gradients were, or are added to it.
static void backward_pass(GPT2 *m, int add_grads) {
    RANGE();
    int C = m->config.C, rows = m->B * m->T;
    size_t n = stream_size(m), logits = (size_t)rows * m->vocab_width;
    const SubBlock *last = &m->subs[2 * m->config.L];
    real *parts = value_at(m, V_D0), *G = value_at(m, V_G);
    matmul_backward_weight(m, P_wte, 0,
                           {.a = m->logits, .b = last->normed, .a_stride = logits, .K = rows,
                            .accumulate = add_grads});
    matmul_backward_input(m, P_wte, 0,
                          {.out = parts, .out_stride = n, .a = m->logits, .a_stride = logits,
                           .M = rows});
    if (m->vocab_cut) {
        Merge mine = merge_of(m, parts, 1);
        mine.parts = parts;
        mine.count = m->F;
        if (m->F > 1) merge(mine, NULL);
        allreduce(m, TRAFFIC_VOCABULARY, parts, n, ELEMENT_REAL, 0);
    }
    NormBackward norm = {.dx = G, .sum_dx = 1, .dout = parts, .parts = 1,
                         .x = value_at(m, stream_read(m, 2 * m->config.L)),
                         .mean = last->mean, .rstd = last->rstd, .w = param_at(m, P_lnfw, 0),
                         .partial = m->sums_scratch, .rows = rows, .C = C};
    m->sums = norm_backward(norm, grad_at(m, P_lnfw, 0), grad_at(m, P_lnfb, 0), 0, 1, add_grads);
    m->sums_of = V_G;
    steps_run(m, &m->plan.backward, add_grads);
    for (int f = 0; f < m->vocab_parts; f++) {
        TokenRange r = vocab_range(m, f);
        embedding_backward(m->grads + wte_part(m, f), G, m->batch, r.first, r.count, C);
    }
    position_backward(grad_at(m, P_wpe, 0), G, m->B, m->T, C, add_grads);
}

static void loss_mean(GPT2 *m, double *total, const float *losses, int add) {
    LAUNCH(loss_mean_kernel, 1, BLOCK, 0, gpu.stream, total, losses, m->B * m->T, add);
}

// Logits of tokens (B,T) into m->logits; with targets (B,T), also the losses. Returns their mean in
// nats, or NaN without targets. B and T are at most those the model was created for.
static double gpt2_forward(GPT2 *m, const int32_t *tokens, const int32_t *targets, int B, int T) {
    RANGE();
    forward_pass(m, tokens, targets, B, T, 0, 0, B * T);
    if (!targets) return NAN;
    classify(m, 0);
    loss_mean(m, m->loss_total, m->losses, 0);
    CUDA_CHECK(cudaMemcpyAsync(m->host_results, m->loss_total, sizeof(double),
                               cudaMemcpyDeviceToHost, gpu.stream));
    stream_wait(m);
    spans_collect(m);
    return m->host_results[0];
}

// Reads T tokens of one sequence after `past` ones, and makes the logits of the last `scored` of
// them. past + T is at most the T that the model was created for.
static void gpt2_read(GPT2 *m, const int32_t *tokens, int T, int past, int scored) {
    RANGE();
    if (T) forward_pass(m, tokens, NULL, 1, T, past, m->T_max - past - T, scored);
    if (scored) return; // logits_collect waits
    stream_wait(m);
    spans_collect(m);
}

static void gpt2_teach(GPT2 *m, GPT2 *teacher, double weight) {
    m->teacher = teacher;
    m->match_weight = weight;
    plan_distill(&m->plan, &teacher->plan);
}

// Forward and backward pass of micro-batch number `micro` (from 0) of this replica's `micro_steps`.
// The teacher is on the same stream: it has read the tokens before the student does.
static void gpt2_micro_step(GPT2 *m, const int32_t *tokens, const int32_t *targets, int B, int T,
                            int micro, int micro_steps) {
    RANGE();
    if (micro == 0) m->replica_sums_begun = 0;
    m->micro_steps = micro_steps;
    m->last_pass = micro == micro_steps - 1;
    if (m->teacher) forward_pass(m->teacher, tokens, NULL, B, T, 0, 0, 0);
    forward_pass(m, tokens, targets, B, T, 0, 0, B * T);
    double scale = 1.0 / ((double)micro_steps * m->mesh.DP);
    classify(m, scale);
    loss_mean(m, m->loss_total, m->losses, micro > 0);
    if (m->teacher) m->match_scale = 2 * m->match_weight * scale / stream_size(m) / m->plan.matches;
    backward_pass(m, micro > 0);
    if (m->teacher) loss_mean(m, m->loss_total + 1, m->distances, micro > 0);
}

// ----------------------------------------------------------------------------
// update: sum of partial gradients, norm, AdamW

// The sums over replicas: those begun in the last backward pass, and the rest.
static void replicas_reduce_rest(GPT2 *m) {
    if (!m->replica_sums_begun) {
        replicas_reduce(m, 0, m->flat_size, gpu.stream);
        return;
    }
    CUDA_CHECK(cudaEventRecord(m->ready, gpu.stream));
    CUDA_CHECK(cudaStreamWaitEvent(gpu.replica_stream, m->ready, 0));
    nccl_group_begin();
    replicas_reduce(m, m->partials_begin, m->partials_size, gpu.replica_stream);
    for (int p = 0; p < P_COUNT; p++) {
        int begun = is_cut_in_blocks(m->whole, p);
        if (begun || m->whole[p].cut == WHOLE_PARTIAL_GRAD) continue;
        replicas_reduce(m, m->flat.begin[p], m->flat.size[p], gpu.replica_stream);
    }
    nccl_group_end();
    CUDA_CHECK(cudaEventRecord(m->ready, gpu.replica_stream));
    CUDA_CHECK(cudaStreamWaitEvent(gpu.stream, m->ready, 0));
    m->replica_sums_begun = 0;
    products_spare(0);
}

// Gradients of tensors that every rank has whole: each process of a TP group summed them over the
// replicas for itself, and with three replicas and more the order of a sum, so its last bits, may
// depend on where its processes run. Those of the first process count. With -z 1 also what other
// replicas update is sent, which nobody reads.
static void whole_grads_agree(GPT2 *m) {
    if (m->mesh.DP < 3 || m->mesh.group == 1) return;
    nccl_group_begin();
    for (int p = 0; p < P_COUNT; p++) {
        float *grad = m->grads + m->flat.begin[p];
        size_t n = m->flat.size[p];
        if (spec_is_cut(&m->whole[p])) continue;
        if (comm_kind == COMM_MPI) host_broadcast(m, MESH_TP, 0, grad, n * sizeof *grad);
        if (comm_kind == COMM_NCCL) nccl_broadcast(grad, n);
    }
    nccl_group_end();
}

// Tensors that every rank has whole, but saw its own streams with: the sum over ranks is the
// gradient, one all-reduce. Then the sums over replicas.
static void gradients_reduce(GPT2 *m) {
    RANGE();
    float *partials = m->grads + m->partials_begin;
    if (m->F > 1) {
        LAUNCH(copies_sum_kernel, (unsigned)ceil_div(m->partials_size, (size_t)BLOCK), BLOCK, 0,
               gpu.stream, partials, m->F, m->partials_size, m->partials_size);
    }
    allreduce(m, TRAFFIC_GRADIENTS, partials, m->partials_size, ELEMENT_FLOAT, 0);
    if (m->mesh.DP == 1) return;
    replicas_reduce_rest(m);
    whole_grads_agree(m);
}

static NormSlices norm_slices(const GPT2 *m) {
    int DP = m->mesh.DP;
    return NormSlices{.first = m->owned_begin, .size = m->flat_size / DP,
                      .count = m->options.zero ? 1 : DP, .blocks = norm_blocks(DP)};
}

// After the last micro-step. Norm of the whole gradient: sharded tensors over all ranks, replicated
// ones once. The host waits for the GPU here, and only here, in every update.
static UpdateSums gpt2_gradients(GPT2 *m) {
    RANGE();
    UpdateSums sums = {};
    const int n = P_COUNT + 1; // and whether this process was asked to stop
    double *all = ALLOC(double, (size_t)m->mesh.group * n, "norm"), total = 0, mine[n] = {};
    size_t slices = (size_t)m->mesh.DP * P_COUNT;
    NormSlices here = norm_slices(m);
    gradients_reduce(m);
    gradients_square(m->squares, m->squares_partial, m->grads, m->flat, here);
    CUDA_CHECK(cudaMemcpyAsync(m->host_results, m->loss_total, 2 * sizeof(double),
                               cudaMemcpyDeviceToHost, gpu.stream));
    double *squares = m->host_results + 2; // (DP,P_COUNT)
    memset(squares, 0, slices * sizeof *squares);
    CUDA_CHECK(cudaMemcpyAsync(squares + here.first / here.size * P_COUNT, m->squares,
                               here.count * P_COUNT * sizeof(double), cudaMemcpyDeviceToHost,
                               gpu.stream));
    stream_wait(m);
    spans_collect(m);
    if (m->teacher) spans_collect(m->teacher);
    if (m->options.zero) mesh_sum(&m->mesh, MESH_DP, squares, slices, sizeof *squares);
    for (size_t i = 0; i < slices; i++) mine[i % P_COUNT] += squares[i];
    mine[P_COUNT] = stop_asked != 0;
    mesh_gather(&m->mesh, mine, n, all);
    for (int p = 0; p < P_COUNT; p++) {
        int processes = spec_is_cut(&m->whole[p]) ? m->mesh.group : 1;
        for (int i = 0; i < processes; i++) {
            double squared = all[i * n + p];
            if (!isfinite(squared) && !sums.culprit) sums.culprit = m->whole[p].name;
            total += squared;
        }
    }
    double distance = m->teacher ? m->host_results[1] / m->config.C / m->plan.matches : 0;
    // loss, distance, and who is to stop
    double replicas[] = {m->host_results[0] / m->micro_steps, distance / m->micro_steps, 0};
    for (int i = 0; i < m->mesh.group; i++) replicas[2] += all[i * n + P_COUNT];
    free(all);
    mesh_sum(&m->mesh, MESH_DP, replicas, 3, sizeof *replicas);
    sums.loss = replicas[0] / m->mesh.DP;
    sums.distance = replicas[1] / m->mesh.DP;
    sums.norm = sqrt(total);
    sums.stop = replicas[2] > 0;
    return sums;
}

// One AdamW step, number `update` from 1, of the elements this process has the optimizer state of.
static void gpt2_update(GPT2 *m, AdamW h, int64_t update) {
    RANGE();
    AdamWStep step = {.rate = (float)h.rate, .beta1 = (float)h.beta1, .beta2 = (float)h.beta2,
                      .eps = (float)h.eps, .decay = (float)h.decay, .scale = (float)h.grad_scale,
                      .correct1 = (float)(1 / (1 - pow(h.beta1, (double)update))),
                      .correct2 = (float)(1 / (1 - pow(h.beta2, (double)update)))};
    LAUNCH(adamw_kernel, (unsigned)ceil_div(m->owned_size, (size_t)BLOCK * PACK), BLOCK, 0,
           gpu.stream, m->params, m->master, m->moment1, m->moment2, m->grads, m->owned_begin,
           m->owned_size, m->flat, step);
    if (m->options.zero && m->mesh.DP > 1) replicas_gather(m, m->params);
}

// ----------------------------------------------------------------------------
// checkpoints: files hold whole tensors. They pass through a copy of the flat block on the host,
// one copy of the parameter table (SET_PARAMS, SET_MOMENT1, SET_MOMENT2) at a time.

enum { SET_NONE = -1 };

static void snapshot_make(GPT2 *m) {
    if (!m->snapshot) {
        m->snapshot = ALLOC(float, m->flat_size, "a copy of the parameters on the host");
    }
    m->snapshot_set = SET_NONE;
}

static void snapshot_drop(GPT2 *m) {
    free(m->snapshot);
    m->snapshot = NULL;
}

static float *set_on_gpu(const GPT2 *m, int set) {
    if (set == SET_PARAMS) return m->master;
    return set == SET_MOMENT1 ? m->moment1 : m->moment2;
}

// From the GPU. With ZeRO each replica has a part of it, and all replicas take part. Without
// training there are only the rounded weights.
static void snapshot_take(GPT2 *m, int set) {
    m->snapshot_set = set;
    if (!set_on_gpu(m, set)) {
        real *rounded = ALLOC(real, m->flat_size, "rounded parameters");
        CUDA_CHECK(cudaMemcpyAsync(rounded, m->params, m->flat_size * sizeof(real),
                                   cudaMemcpyDeviceToHost, gpu.stream));
        stream_wait(m);
        for (size_t i = 0; i < m->flat_size; i++) m->snapshot[i] = (float)rounded[i];
        free(rounded);
        return;
    }
    CUDA_CHECK(cudaMemcpyAsync(m->snapshot + m->owned_begin, set_on_gpu(m, set),
                               m->owned_size * sizeof(float), cudaMemcpyDeviceToHost, gpu.stream));
    stream_wait(m);
    for (int owner = 0; owner < m->mesh.DP && m->options.zero; owner++) {
        mesh_broadcast(&m->mesh, MESH_DP, owner, m->snapshot + owner * m->owned_size,
                       m->owned_size * sizeof(float));
    }
}

// To the GPU. Weights go there twice: as they are, and rounded.
static void snapshot_put(GPT2 *m, int set) {
    if (set == SET_PARAMS) {
        real *rounded = ALLOC(real, m->flat_size, "rounded parameters");
        for (size_t i = 0; i < m->flat_size; i++) rounded[i] = (real)m->snapshot[i];
        CUDA_CHECK(cudaMemcpyAsync(m->params, rounded, m->flat_size * sizeof(real),
                                   cudaMemcpyHostToDevice, gpu.stream));
        CUDA_CHECK(cudaStreamSynchronize(gpu.stream));
        free(rounded);
    }
    float *to = set_on_gpu(m, set); // none without training
    if (to) {
        size_t bytes = m->owned_size * sizeof(float);
        CUDA_CHECK(cudaMemcpyAsync(to, m->snapshot + m->owned_begin, bytes, cudaMemcpyHostToDevice,
                                   gpu.stream));
        CUDA_CHECK(cudaStreamSynchronize(gpu.stream));
    }
}

// Row `row` of one layer of tensor p, of the part of it that is the f-th here.
static float *snapshot_row(GPT2 *m, int p, int layer, int f, int row) {
    const ParamSpec *local = &m->local[p];
    return m->snapshot + layer_offset(m, p, layer) + f * spec_layer_size(local) +
           (size_t)row * local->cols;
}

static void model_rows_put(void *owner, int set, int p, int layer, int row, int rows,
                           const float *values) {
    GPT2 *m = (GPT2 *)owner;
    size_t cols = (size_t)m->whole[p].cols, first = (size_t)row * cols, n = (size_t)rows * cols;
    if (m->snapshot_set != set && m->snapshot_set != SET_NONE) snapshot_put(m, m->snapshot_set);
    m->snapshot_set = set;
    for (int f = 0; f < parts_of(m, p); f++) {
        Shard part = shard_of(&m->whole[p], m->rank0 + f, m->config.R);
        for (int r = 0; r < part.rows; r++) {
            size_t at = shard_row(&part, r);
            if (at < first || at >= first + n) continue;
            memcpy(snapshot_row(m, p, layer, f, r), values + at - first,
                   (size_t)part.cols * sizeof(float));
        }
    }
}

// What other processes have is zero here until they are joined; of a replicated tensor the first
// brings all.
static void model_rows_get(void *owner, int set, int p, int layer, int row, int rows,
                           float *values) {
    GPT2 *m = (GPT2 *)owner;
    size_t cols = (size_t)m->whole[p].cols, first = (size_t)row * cols, n = (size_t)rows * cols;
    int mine = spec_is_cut(&m->whole[p]) || m->mesh.group_rank == 0;
    if (m->snapshot_set != set) snapshot_take(m, set);
    memset(values, 0, n * sizeof(float));
    for (int f = 0; f < parts_of(m, p) && mine; f++) {
        Shard part = shard_of(&m->whole[p], m->rank0 + f, m->config.R);
        for (int r = 0; r < part.rows; r++) {
            size_t at = shard_row(&part, r);
            if (at < first || at >= first + n) continue;
            memcpy(values + at - first, snapshot_row(m, p, layer, f, r),
                   (size_t)part.cols * sizeof(float));
        }
    }
    mesh_join(&m->mesh, values, n);
}

static uint64_t gpt2_load(GPT2 *m, const char *path) {
    snapshot_make(m);
    uint64_t hash = model_read(path, &m->config, model_rows_put, m);
    snapshot_put(m, SET_PARAMS);
    snapshot_drop(m);
    return hash;
}

static uint64_t gpt2_load_state(GPT2 *m, const char *path, int64_t updates) {
    snapshot_make(m);
    uint64_t hash = state_read(path, &m->config, updates, model_rows_put, m);
    snapshot_put(m, m->snapshot_set);
    snapshot_drop(m);
    return hash;
}

// The first TP group gathers, its first process writes; with ZeRO all replicas bring their parts.
static void checkpoint_save(GPT2 *m, const char *folder, int64_t updates, int64_t keep,
                            const char *record) {
    if (m->mesh.dp_rank && !m->options.zero) return;
    snapshot_make(m);
    checkpoint_write(folder, &m->config, updates, keep, record, m->mesh.rank == 0, model_rows_get,
                     m);
    snapshot_drop(m);
}

static void gpt2_check(GPT2 *m, const char *where) {
    ParamSpec specs[P_COUNT];
    param_specs(specs, &m->config);
    if (m->mesh.rank) where = NULL;
    snapshot_make(m);
    tensors_write(NULL, where, specs, SET_PARAMS, model_rows_get, m);
    snapshot_drop(m);
}

// Random initial weights: each process draws its own part of the same whole tensors.
static void gpt2_init_weights(GPT2 *m, int how, uint64_t seed) {
    snapshot_make(m);
    for (int p = 0; p < P_COUNT; p++) {
        const ParamSpec *whole = &m->whole[p], *local = &m->local[p];
        int parts = parts_of(m, p);
#pragma omp parallel for collapse(2) schedule(static)
        for (int layer = 0; layer < local->layers; layer++) {
            for (int r = 0; r < parts * local->rows; r++) {
                Shard part = shard_of(whole, m->rank0 + r / local->rows, m->config.R);
                uint64_t first = layer * spec_layer_size(whole) + shard_row(&part, r % local->rows);
                float *row = snapshot_row(m, p, layer, r / local->rows, r % local->rows);
                for (int c = 0; c < local->cols; c++) {
                    row[c] = (float)param_init(whole, p, how, &m->config, seed, first + c);
                }
            }
        }
    }
    snapshot_put(m, SET_PARAMS);
    snapshot_drop(m);
}

#ifndef NO_MAIN // programs that include this file for its model stop here

// ----------------------------------------------------------------------------
// what data/run.h asks of a trainer

static int processes_stepped_aside;

// Chooses this process's GPU, of those it sees: all of its host's, or just one where the launcher
// hands them out. NCCL wants one each: processes that find theirs taken step aside, unless -cm mpi
// has several share one.
static void gpu_choose(const Options *o, int *world, int *rank) {
    int gpus = 0, all = *world;
    cudaError_t status = cudaGetDeviceCount(&gpus);
    if (status != cudaSuccess || gpus < 1) {
        fail("no GPU that CUDA can use: %s; ./train_gpt2 trains on the CPU",
             cudaGetErrorString(status));
    }
    cudaDeviceProp properties;
    int index = processes_local_rank() % gpus;
    CUDA_CHECK(cudaGetDeviceProperties(&properties, index));
    int first = processes_first_with(&properties.uuid, sizeof properties.uuid, *world, *rank);
    if (*world > 1) processes_keep(first || o->comm == COMM_MPI, world, rank);
    processes_stepped_aside = all - *world;
    gpu_open(index);
}

// Fails where processes have different GPUs: in how many parts a sum is taken, and which algorithm
// a product has, depends on the GPU, so what all ranks compute alike would differ in its last bits.
static void gpus_check(const Mesh *mesh) {
    const cudaDeviceProp *p = &gpu.properties;
    int facts[] = {p->major, p->minor, p->multiProcessorCount};
    char what[sizeof p->name + 96];
    snprintf(what, sizeof what, "this process's GPU, %s (%d.%d, %d multiprocessors),", p->name,
             facts[0], facts[1], facts[2]);
    processes_same(mesh, facts, sizeof facts, what);
}

static void gpt2_create_for(GPT2 *m, const GPT2Config *config, Mesh mesh, const Options *o,
                            int purpose) {
    ModelOptions options = {};
    options.recompute = (int)o->recompute;
    options.chunks = (int)o->chunks;
    options.zero = (int)o->zero && mesh.DP > 1;
    options.network.latency_us = o->net_latency;
    options.network.gbits = o->net_gbits;
    gpus_check(&mesh);
    if (purpose != FOR_TEACHING) comm_open(&mesh, o->comm); // a teacher is a second model
    matmul_search = (int)o->matmul_search;
    if (matmul_search > 1) choices_check("-ms");
    matmul_mesh = mesh;
    int B = purpose == FOR_SAMPLES ? 1 : (int)o->batch;
    gpt2_create(m, config, mesh, B, (int)o->length, options, purpose);
}

// A number that changes when any bit of the tensors changes that every rank has whole.
static uint64_t replicated_hash(GPT2 *m) {
    uint64_t hash = 0;
    real *all = ALLOC(real, m->flat_size, "a copy of the parameters on the host");
    stream_wait(m);
    CUDA_CHECK(cudaMemcpy(all, m->params, m->flat_size * sizeof(real), cudaMemcpyDeviceToHost));
    for (int p = 0; p < P_COUNT; p++) {
        if (spec_is_cut(&m->whole[p])) continue;
        hash = words_hash(hash, all + m->flat.begin[p], m->flat.size[p] * sizeof(real));
    }
    free(all);
    return hash;
}

static int gpt2_describe(GPT2 *m, int i, char *line, size_t size) {
    static const char *const ways[] = {"none: one process", "NCCL", "MPI through host memory"};
    const double MiB = 1 << 20;
    if (i == 0) {
        int driver = 0;
        CUDA_CHECK(cudaDriverGetVersion(&driver));
        snprintf(line, size,
                 "# device %.100s, compute capability %d.%d, CUDA %d.%d, precision %s, all-reduce "
                 "between processes by %s",
                 gpu.properties.name, gpu.properties.major, gpu.properties.minor, driver / 1000,
                 driver % 1000 / 10, REAL_NAME, ways[comm_kind]);
        return 1;
    }
    if (i == 1) {
        snprintf(line, size,
                 "# memory_MiB parameters %.1f gradients %.1f optimizer %.1f "
                 "activations %.1f",
                 m->bytes[BLOCK_PARAMS] / MiB, m->bytes[BLOCK_GRADS] / MiB,
                 m->bytes[BLOCK_STATE] / MiB,
                 (m->bytes[BLOCK_KEPT] + m->bytes[BLOCK_ACTIVATIONS]) / MiB);
        return 1;
    }
    if (i == 2 && processes_stepped_aside) {
        snprintf(line, size,
                 "# aside %d processes beyond the GPUs of their hosts do nothing; -cm mpi has "
                 "several share a GPU", processes_stepped_aside);
        return 1;
    }
    return 0;
}

static int gpt2_describe_end(char *line, size_t size) {
    char apart[160];
    matmul_describe_apart(apart, sizeof apart);
    snprintf(line, size, "# products in several launches, kinds by epilogue: %s", apart);
    return apart[0] != 0;
}

static int gpt2_describe_process(GPT2 *m, char out[PROCESS_WHAT]) {
    (void)m;
    snprintf(out, PROCESS_WHAT, "GPU %d, %.64s", gpu.index, gpu.properties.name);
    return 1;
}

// ----------------------------------------------------------------------------
// main

#include "data/run.h"

int main(int argc, char **argv) {
    static Run run; // all zero
    int world, rank;
    descriptors_open();
    processes_begin(&world, &rank);
    run_parse(&run, argc, argv, rank);
    if (run_instead(&run)) {
        processes_end();
        return 0;
    }
    gpu_choose(&run.options, &world, &rank);
    run_open(&run, world, rank);
    run_say_facts(&run);
    for (int64_t done = run.first;; done++) { // updates
        if (run_validation_due(&run, done)) run_validate(&run, done);
        if (run_sample_due(&run, done)) run_sample(&run, done);
        if (run_checkpoint_due(&run, done)) run_checkpoint(&run, done);
        if (done >= run.updates || run.stop) break;
        RunlogUpdate update = run_update(&run, done + 1);
        run_progress(&run, &update);
    }
    run_summary(&run);
    int status = run_close(&run);
    comm_close();
    gpu_close();
    processes_end();
    return status;
}
#endif
