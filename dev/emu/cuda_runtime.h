/*
A stand-in for the CUDA runtime, with which a CUDA program builds by g++ and runs on a CPU:

  g++ -x c++ -std=c++20 -O1 -g -fsanitize=address -Idev/emu \
      program.cu dev/emu/emu.cpp -o program_emu

It is for finding mistakes, not for speed: threads, blocks and streams run in an order drawn from
EMU_SEED, so that what is not ordered by a barrier, an event or a wait comes out wrong under some
seed; fresh memory is NaN; device memory that the host touches, and touching memory out of bounds,
ends the program with a message. README.md beside this file says what is not here.

The only translation a program needs is of launches and of dynamic shared memory: LAUNCH
and SHARED_DYNAMIC, at the end.
*/
#ifndef EMU_CUDA_RUNTIME_H
#define EMU_CUDA_RUNTIME_H

#include <functional>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <type_traits>
#include <utility>

#define CUDA_EMULATED 1
#define CUDART_VERSION 13000
#if defined(__SANITIZE_ADDRESS__)
#define EMU_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMU_ASAN 1
#endif
#endif
#ifdef EMU_ASAN
#include <sanitizer/asan_interface.h>
#endif

// ----------------------------------------------------------------------------
// keywords

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline
// Left empty: the standard library writes __attribute__((__noinline__)), which this must not break.
#define __noinline__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

// One block runs at a time, so its static shared memory is static. With ASan these are plain
// variables, between red zones that catch a wrong index. Without it they are thread-local, which
// gathers those of the whole program in one range that can be filled with NaN before each block:
// what a block forgot to initialise shows. (A named section would do that too, but g++ lets none
// hold variables of templates beside others.) So each build sees one kind of mistake. An alignment
// is written first, or as __align__: `alignas(16) __shared__ float x[4]`.
#if defined(EMU_ASAN) || !defined(__linux__)
#define __shared__ static
#else
#define __shared__ static __thread
#endif

// ----------------------------------------------------------------------------
// vectors and the names of a thread

// The vectors may alias anything: kernels move other types through them, 16 bytes at a time.
#define EMU_VECTOR(type, element, alignment, members)            \
    struct __attribute__((may_alias, aligned(alignment))) type { \
        element members;                                         \
    }
#define EMU_MEMBERS2 x, y
#define EMU_MEMBERS3 x, y, z
#define EMU_MEMBERS4 x, y, z, w
EMU_VECTOR(int2, int, 8, EMU_MEMBERS2);
EMU_VECTOR(int3, int, 4, EMU_MEMBERS3);
EMU_VECTOR(int4, int, 16, EMU_MEMBERS4);
EMU_VECTOR(uint2, unsigned, 8, EMU_MEMBERS2);
EMU_VECTOR(uint3, unsigned, 4, EMU_MEMBERS3);
EMU_VECTOR(uint4, unsigned, 16, EMU_MEMBERS4);
EMU_VECTOR(float2, float, 8, EMU_MEMBERS2);
EMU_VECTOR(float3, float, 4, EMU_MEMBERS3);
EMU_VECTOR(float4, float, 16, EMU_MEMBERS4);
EMU_VECTOR(double2, double, 16, EMU_MEMBERS2);
EMU_VECTOR(longlong2, long long, 16, EMU_MEMBERS2);
EMU_VECTOR(ulonglong2, unsigned long long, 16, EMU_MEMBERS2);

inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float3 make_float3(float x, float y, float z) { return {x, y, z}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
    operator uint3() const { return {x, y, z}; }
};

// Set whenever another thread goes on.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

// ----------------------------------------------------------------------------
// memory, copies

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInvalidHostPointer = 16,
    cudaErrorInvalidDevicePointer = 17,
    cudaErrorInvalidMemcpyDirection = 21,
    cudaErrorInvalidDeviceFunction = 98,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorNotReady = 600,
    cudaErrorIllegalAddress = 700,
    cudaErrorLaunchFailure = 719,
    cudaErrorNotSupported = 801,
    cudaErrorUnknown = 999,
};
const char *cudaGetErrorString(cudaError_t error);
const char *cudaGetErrorName(cudaError_t error);
cudaError_t cudaGetLastError(void); // and forgets it
cudaError_t cudaPeekAtLastError(void);

enum cudaMemcpyKind {
    cudaMemcpyHostToHost = 0,
    cudaMemcpyHostToDevice = 1,
    cudaMemcpyDeviceToHost = 2,
    cudaMemcpyDeviceToDevice = 3,
    cudaMemcpyDefault = 4,
};
enum {
    cudaHostAllocDefault = 0,
    cudaHostAllocPortable = 1,
    cudaHostAllocMapped = 2,
    cudaHostAllocWriteCombined = 4
};
enum { cudaHostRegisterDefault = 0, cudaHostRegisterPortable = 1, cudaHostRegisterMapped = 2 };

typedef struct CUstream_st *cudaStream_t;
typedef struct CUevent_st *cudaEvent_t;

// Device memory is filled with 0xFF bytes, which are NaN in every floating type, and only device
// work may touch it. What one process holds at a time is limited to EMU_MEMORY_MIB.
cudaError_t cudaMalloc(void **pointer, size_t bytes);
cudaError_t cudaFree(void *pointer);
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes);
cudaError_t cudaHostAlloc(void **pointer, size_t bytes, unsigned flags);
cudaError_t cudaMallocHost(void **pointer, size_t bytes, unsigned flags = 0);
cudaError_t cudaFreeHost(void *pointer);
cudaError_t cudaHostRegister(void *pointer, size_t bytes, unsigned flags);
cudaError_t cudaHostUnregister(void *pointer);
template <typename T> cudaError_t cudaMalloc(T **pointer, size_t bytes) {
    return cudaMalloc(reinterpret_cast<void **>(pointer), bytes);
}
template <typename T> cudaError_t cudaHostAlloc(T **pointer, size_t bytes, unsigned flags) {
    return cudaHostAlloc(reinterpret_cast<void **>(pointer), bytes, flags);
}
template <typename T> cudaError_t cudaMallocHost(T **pointer, size_t bytes, unsigned flags = 0) {
    return cudaMallocHost(reinterpret_cast<void **>(pointer), bytes, flags);
}

// Copies follow CUDA: pageable host memory is read at the call, pinned memory when the
// copy runs; the kind must be what the pointers are, and a copy that overruns an
// allocation is refused with a message.
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream = 0);
cudaError_t cudaMemcpy2D(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                         size_t width, size_t height, cudaMemcpyKind kind);
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream = 0);
cudaError_t cudaMemset(void *to, int value, size_t bytes);
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream = 0);

// A __device__ or __constant__ variable is a global of the program. Its address on the
// device is known once asked for.
cudaError_t emu_symbol(const void *symbol, size_t bytes);
template <typename T> cudaError_t cudaGetSymbolAddress(void **pointer, const T &symbol) {
    *pointer = const_cast<void *>(static_cast<const void *>(&symbol));
    return emu_symbol(&symbol, sizeof symbol);
}
template <typename T>
cudaError_t cudaMemcpyToSymbolAsync(const T &symbol, const void *from, size_t bytes, size_t offset,
                                    cudaMemcpyKind kind, cudaStream_t stream = 0) {
    void *to;
    cudaError_t error = cudaGetSymbolAddress(&to, symbol);
    return error ? error
                 : cudaMemcpyAsync(static_cast<char *>(to) + offset, from, bytes, kind, stream);
}
template <typename T>
cudaError_t cudaMemcpyToSymbol(const T &symbol, const void *from, size_t bytes, size_t offset = 0,
                               cudaMemcpyKind kind = cudaMemcpyHostToDevice) {
    void *to;
    cudaError_t error = cudaGetSymbolAddress(&to, symbol);
    return error ? error : cudaMemcpy(static_cast<char *>(to) + offset, from, bytes, kind);
}
template <typename T>
cudaError_t cudaMemcpyFromSymbol(void *to, const T &symbol, size_t bytes, size_t offset = 0,
                                 cudaMemcpyKind kind = cudaMemcpyDeviceToHost) {
    void *from;
    cudaError_t error = cudaGetSymbolAddress(&from, symbol);
    return error ? error : cudaMemcpy(to, static_cast<char *>(from) + offset, bytes, kind);
}

// ----------------------------------------------------------------------------
// streams and events

// Work waits in its stream until the program waits for something; then the streams whose next piece
// of work is ready take turns in an order drawn from the seed. The null stream is the legacy one:
// it runs after all that was queued before it, and before all that was queued after it, in every
// stream made without cudaStreamNonBlocking.
enum { cudaStreamDefault = 0, cudaStreamNonBlocking = 1 };
enum {
    cudaEventDefault = 0,
    cudaEventBlockingSync = 1,
    cudaEventDisableTiming = 2,
    cudaEventInterprocess = 4
};
enum { cudaEventRecordDefault = 0, cudaEventWaitDefault = 0 };
cudaError_t cudaStreamCreate(cudaStream_t *stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags);
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags = 0);
cudaError_t cudaEventCreate(cudaEvent_t *event, unsigned flags = cudaEventDefault);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = 0);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end);
typedef void (*cudaHostFn_t)(void *data);
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data);

// ----------------------------------------------------------------------------
// devices

struct cudaUUID_t { char bytes[16]; };
struct cudaDeviceProp {
    char name[256];
    cudaUUID_t uuid;
    size_t totalGlobalMem, sharedMemPerBlock, sharedMemPerBlockOptin, sharedMemPerMultiprocessor,
        totalConstMem;
    int major, minor, multiProcessorCount, l2CacheSize, warpSize, regsPerBlock;
    int maxThreadsPerBlock, maxThreadsPerMultiProcessor, maxThreadsDim[3], maxGridSize[3];
    int memoryBusWidth, integrated, ECCEnabled, pciBusID, pciDeviceID, pciDomainID;
};
enum cudaDeviceAttr {
    cudaDevAttrMaxThreadsPerBlock = 1,
    cudaDevAttrMaxGridDimX = 5,
    cudaDevAttrMaxGridDimY = 6,
    cudaDevAttrMaxGridDimZ = 7,
    cudaDevAttrMaxSharedMemoryPerBlock = 8,
    cudaDevAttrWarpSize = 10,
    cudaDevAttrClockRate = 13,
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrMemoryClockRate = 36,
    cudaDevAttrGlobalMemoryBusWidth = 37,
    cudaDevAttrL2CacheSize = 38,
    cudaDevAttrMaxThreadsPerMultiProcessor = 39,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
    cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
enum cudaFuncAttribute {
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
    cudaFuncAttributePreferredSharedMemoryCarveout = 9,
};
cudaError_t cudaGetDeviceCount(int *count); // EMU_GPUS of them, 8 if that is not set
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDevice(int *device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device);
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device);
cudaError_t cudaDeviceGetPCIBusId(char *text, int length, int device);
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest);
cudaError_t cudaDeviceSynchronize(void);
cudaError_t cudaDeviceReset(void);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaRuntimeGetVersion(int *version);
cudaError_t cudaProfilerStart(void);
cudaError_t cudaProfilerStop(void);

cudaError_t emu_function_attribute(const void *kernel, cudaFuncAttribute attribute, int value);
cudaError_t emu_occupancy(int *blocks, int threads, size_t shared);
template <typename... P>
cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute attribute, int value) {
    return emu_function_attribute(reinterpret_cast<const void *>(kernel), attribute, value);
}
inline cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute attribute,
                                        int value) {
    return emu_function_attribute(kernel, attribute, value);
}
template <typename... P>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void (*)(P...), int threads,
                                                          size_t shared) {
    return emu_occupancy(blocks, threads, shared);
}

// ----------------------------------------------------------------------------
// barriers and warps

// All threads of the block that have not returned must come to the same kind of barrier. Returns
// how many brought a predicate that is not 0; *threads is how many came.
int emu_block_barrier(const char *name, int predicate, int *threads);
inline void __syncthreads() { emu_block_barrier("__syncthreads", 0, nullptr); }
inline int __syncthreads_count(int predicate) {
    return emu_block_barrier("__syncthreads_count", predicate, nullptr);
}
inline int __syncthreads_or(int predicate) {
    return emu_block_barrier("__syncthreads_or", predicate, nullptr) != 0;
}
inline int __syncthreads_and(int predicate) {
    int threads;
    return emu_block_barrier("__syncthreads_and", predicate, &threads) == threads;
}

// What the lanes of a warp brought to an operation: `bytes` bytes each, in order of lanes.
// Those of lanes that took no part are 0xFF. It stays as it is until the lane that got it
// comes to its next warp operation.
struct EmuShare {
    unsigned present; // the lanes that took part
    int holders;
    char *at;
    size_t capacity;
};
// All lanes named by `mask` that have not returned must come, to the same
// operation with the same mask and size.
const EmuShare &emu_warp_exchange(const char *name, unsigned mask, const void *mine, size_t bytes);
unsigned emu_lane();     // of the thread that asks
unsigned __activemask(); // the lanes of its warp that have not returned, converged or not
void __nanosleep(unsigned nanoseconds); // lets other threads of the block go on

// For emulating an instruction of a whole warp (mma.sync, ldmatrix): returns 32 slots
// of `bytes` bytes, one from each.
inline const void *emu_warp_share(const void *mine, size_t bytes) {
    return emu_warp_exchange("emu_warp_share", 0xFFFFFFFFu, mine, bytes).at;
}

inline void __syncwarp(unsigned mask = 0xFFFFFFFFu) {
    emu_warp_exchange("__syncwarp", mask, nullptr, 0);
}

template <typename T> struct emu_shuffles
    : std::bool_constant<std::is_arithmetic_v<T> && sizeof(T) >= 4 && sizeof(T) <= 8> {};
template <typename T>
inline T emu_shuffle(const char *name, unsigned mask, T value, unsigned source) {
    static_assert(emu_shuffles<T>::value, "CUDA does not shuffle this type");
    memcpy(&value, emu_warp_exchange(name, mask, &value, sizeof value).at + source * sizeof value,
           sizeof value);
    return value;
}
// A lane whose source would be outside its group of `width` lanes keeps its own value.
template <typename T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = warpSize) {
    unsigned lane = emu_lane(), group = lane & ~(width - 1u);
    return emu_shuffle("__shfl_sync", mask, value, group + (source & (width - 1u)));
}
template <typename T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
    unsigned lane = emu_lane(), within = lane & (width - 1u);
    return emu_shuffle("__shfl_up_sync", mask, value, delta <= within ? lane - delta : lane);
}
template <typename T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
    unsigned lane = emu_lane(), within = lane & (width - 1u);
    return emu_shuffle("__shfl_down_sync", mask, value,
                       delta < width - within ? lane + delta : lane);
}
template <typename T>
inline T __shfl_xor_sync(unsigned mask, T value, int with, int width = warpSize) {
    unsigned lane = emu_lane(), source = (lane ^ with) & 31, last = lane | (width - 1u);
    return emu_shuffle("__shfl_xor_sync", mask, value, source <= last ? source : lane);
}

inline unsigned emu_vote(const char *name, unsigned mask, int predicate, unsigned *present) {
    const EmuShare &share = emu_warp_exchange(name, mask, &predicate, sizeof predicate);
    unsigned votes = 0;
    for (int lane = 0; lane < warpSize; lane++) {
        memcpy(&predicate, share.at + lane * sizeof predicate, sizeof predicate);
        votes |= predicate ? 1u << lane : 0;
    }
    *present = share.present;
    return votes & share.present;
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
    unsigned present;
    return emu_vote("__ballot_sync", mask, predicate, &present);
}
inline int __any_sync(unsigned mask, int predicate) {
    unsigned present;
    return emu_vote("__any_sync", mask, predicate, &present) != 0;
}
inline int __all_sync(unsigned mask, int predicate) {
    unsigned present;
    unsigned votes = emu_vote("__all_sync", mask, predicate, &present);
    return votes == present;
}

template <typename T, typename F>
inline T emu_reduce(const char *name, unsigned mask, T value, F combine) {
    static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned>,
                  "CUDA reduces int and unsigned only");
    const EmuShare &share = emu_warp_exchange(name, mask, &value, sizeof value);
    bool first = true;
    for (int lane = 0; lane < warpSize; lane++) {
        if (!(share.present >> lane & 1)) continue;
        T theirs;
        memcpy(&theirs, share.at + lane * sizeof theirs, sizeof theirs);
        value = first ? theirs : combine(value, theirs);
        first = false;
    }
    return value;
}
template <typename T> inline T __reduce_add_sync(unsigned mask, T value) {
    return emu_reduce("__reduce_add_sync", mask, value,
                      [](T a, T b) { return (T)((unsigned)a + (unsigned)b); });
}
template <typename T> inline T __reduce_min_sync(unsigned mask, T value) {
    return emu_reduce("__reduce_min_sync", mask, value, [](T a, T b) { return a < b ? a : b; });
}
template <typename T> inline T __reduce_max_sync(unsigned mask, T value) {
    return emu_reduce("__reduce_max_sync", mask, value, [](T a, T b) { return a > b ? a : b; });
}

// ----------------------------------------------------------------------------
// atomics and fences: threads take turns, so plain reads and writes are both

template <typename T, typename... U>
concept emu_one_of = (std::is_same_v<T, U> || ...);
template <typename T>
concept emu_word = emu_one_of<T, int, unsigned, unsigned long long>;
template <typename T>
concept emu_addend = emu_word<T> || emu_one_of<T, float, double>;

template <emu_addend T> inline T atomicAdd(T *at, std::type_identity_t<T> value) {
    T old = *at;
    *at = old + value;
    return old;
}
template <emu_word T> inline T atomicMax(T *at, std::type_identity_t<T> value) {
    T old = *at;
    *at = old > value ? old : value;
    return old;
}
template <emu_word T> inline T atomicMin(T *at, std::type_identity_t<T> value) {
    T old = *at;
    *at = old < value ? old : value;
    return old;
}
template <emu_word T> inline T atomicOr(T *at, std::type_identity_t<T> value) {
    T old = *at;
    *at = old | value;
    return old;
}
template <typename T>
    requires(emu_word<T> || std::is_same_v<T, float>)
inline T atomicExch(T *at, std::type_identity_t<T> value) {
    T old = *at;
    *at = value;
    return old;
}
template <emu_word T>
inline T atomicCAS(T *at, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
    T old = *at;
    if (old == expected) *at = value;
    return old;
}
// Counts up to `last`, then starts again at 0.
inline unsigned atomicInc(unsigned *at, unsigned last) {
    unsigned old = *at;
    *at = old >= last ? 0 : old + 1;
    return old;
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

// ----------------------------------------------------------------------------
// arithmetic. The fast forms are as exact as the slow ones here.

#define __expf(x) expf(x) // macros, because glibc has declarations of its own by these names
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __powf(x, y) powf(x, y)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
inline float __fdividef(float x, float y) { return x / y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float __frsqrt_rn(float x) { return (float)(1.0 / sqrt((double)x)); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1) : 0; } // NaN becomes 0
inline int __float2int_rn(float x) { return (int)lrintf(x); }
inline int __float2int_rd(float x) { return (int)floorf(x); }
inline int __float2int_rz(float x) { return (int)x; }
inline unsigned __umulhi(unsigned x, unsigned y) { return (unsigned)((uint64_t)x * y >> 32); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }

template <typename To, typename From> inline To emu_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
inline unsigned __float_as_uint(float x) { return emu_bits<unsigned>(x); }
inline int __float_as_int(float x) { return emu_bits<int>(x); }
inline float __uint_as_float(unsigned x) { return emu_bits<float>(x); }
inline float __int_as_float(int x) { return emu_bits<float>(x); }

// CUDA's min and max take any two numbers; as there, int and unsigned are compared as unsigned.
template <typename A, typename B>
    requires(std::is_arithmetic_v<A> && std::is_arithmetic_v<B>)
constexpr std::common_type_t<A, B> min(A a, B b) {
    using T = std::common_type_t<A, B>;
    // The one that is a number.
    if constexpr (std::is_floating_point_v<T>) return (T)a < (T)b || b != b ? (T)a : (T)b;
    else return (T)a < (T)b ? (T)a : (T)b;
}
template <typename A, typename B>
    requires(std::is_arithmetic_v<A> && std::is_arithmetic_v<B>)
constexpr std::common_type_t<A, B> max(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>) return (T)a > (T)b || b != b ? (T)a : (T)b;
    else return (T)a > (T)b ? (T)a : (T)b;
}

// Loads and stores with a hint for the caches.
template <typename T> inline T __ldg(const T *from) { return *from; }
template <typename T> inline T __ldcs(const T *from) { return *from; }
template <typename T> inline T __ldcg(const T *from) { return *from; }
template <typename T> inline T __ldca(const T *from) { return *from; }
template <typename T> inline void __stcs(T *to, std::type_identity_t<T> value) { *to = value; }
template <typename T> inline void __stcg(T *to, std::type_identity_t<T> value) { *to = value; }
template <typename T> inline void __stwt(T *to, std::type_identity_t<T> value) { *to = value; }
inline size_t __cvta_generic_to_shared(const void *pointer) {
    return reinterpret_cast<size_t>(pointer);
}

// ----------------------------------------------------------------------------
// what the stand-in adds

// Draws everything that follows from another seed than EMU_SEED.
void emu_seed(uint64_t seed);

// From here on, any access to these bytes but by cudaMemset is reported (with ASan; without
// it nothing happens). For the gaps between tensors that share one allocation. Both ends
// should be multiples of 8 bytes.
inline void emu_poison(const void *from, size_t bytes) {
#ifdef EMU_ASAN
    __asan_poison_memory_region(from, bytes);
#else
    (void)from, (void)bytes;
#endif
}
inline void emu_unpoison(const void *from, size_t bytes) {
#ifdef EMU_ASAN
    __asan_unpoison_memory_region(from, bytes);
#else
    (void)from, (void)bytes;
#endif
}

// Is a kernel running, and `at` in device memory? Then *start is where its allocation begins.
bool emu_kernel_memory(const void *at, uintptr_t *start);

// ----------------------------------------------------------------------------
// launches

// The arguments are those of the kernel, by value, as they are at the call. A pointer
// among them must be null or one that a GPU can follow: emu_launch_pointer refuses those
// to pageable memory of the host.
void emu_launch_queue(const char *name, const void *kernel, dim3 grid, dim3 block, size_t shared,
                      cudaStream_t stream, std::function<void()> thread);
bool emu_launch_pointer(const char *name, int argument, const volatile void *pointer);
void *emu_shared_dynamic();

template <typename T> bool emu_launch_argument(const char *name, int argument, const T &value) {
    if constexpr (std::is_pointer_v<T> && !std::is_function_v<std::remove_pointer_t<T>>) {
        return emu_launch_pointer(name, argument, value);
    } else {
        return true;
    }
}
template <typename... P> void emu_launch(const char *name, void (*kernel)(P...), dim3 grid,
                                         dim3 block, size_t shared, cudaStream_t stream,
                                         std::type_identity_t<P>... arguments) {
    int argument = 0;
    if (!(emu_launch_argument(name, ++argument, arguments) && ...)) return;
    (void)argument; // a kernel may have none
    emu_launch_queue(name, reinterpret_cast<const void *>(kernel), grid, block, shared, stream,
                     [=]() { kernel(arguments...); });
}

// A program that defines CUDA_CHECK gets launches checked by it, as its own LAUNCH for nvcc would
// be.
#define LAUNCH(kernel, grid, block, shared, on, ...)                                     \
    do {                                                                                 \
        emu_launch(#kernel, kernel, grid, block, shared, on __VA_OPT__(, ) __VA_ARGS__); \
        CUDA_CHECK(cudaGetLastError());                                                  \
    } while (0)
// The block's dynamic shared memory, as an array of `type`: as many bytes as the launch
// said, fresh and NaN for each block.
#define SHARED_DYNAMIC(type, name) type *name = static_cast<type *>(emu_shared_dynamic())

#endif
