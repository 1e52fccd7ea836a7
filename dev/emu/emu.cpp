/*
The stand-in for CUDA behind the headers in this folder: device memory, streams, kernels, cuBLASLt
and (with USE_MPI) NCCL, on a CPU and in one operating system thread. cuda_runtime.h says what it
is for and how to build with it.

What is drawn by chance comes from one generator, seeded by EMU_SEED (1 if it is not set): the
stream that goes on, the order of the blocks, the thread that goes on. The same seed gives the same
run, with MPI as long as messages arrive alike.

  EMU_SEED        any number
  EMU_GPUS        how many devices there are (8)
  EMU_MEMORY_MIB  what a process may hold of device memory (16384)
  EMU_CAPABILITY  compute capability, times ten (90)
  EMU_DRIVER      the CUDA that the driver is for, 12020 for 12.2 (CUDART_VERSION)
  EMU_LAUNCHES    a file to which each kernel and product is added as it is launched: a kernel's
                  name; or cublasLtMatmul, its epilogue, the rows and columns of D as cuBLASLt
                  counts them, what is summed over, and the size of the batch
  EMU_PRODUCT     an epilogue and a status, which its products end with undone: "DGELU 15"
  EMU_NVLS        1: NVLink SHARP, whose sums differ between calls, unless NCCL_ALGO forbids it
  EMU_NCCL        1: each process says at its end what NCCL sent, and which products ran beside it
*/
#include "cublasLt.h"
#include "cuda_bf16.h"
#include "cuda_runtime.h"
#include "nccl.h"
#include <algorithm>
#include <chrono>
#include <deque>
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <map>
#include <memory>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <string>
#include <unistd.h>
#if !(defined(__ELF__) && (defined(__x86_64__) || defined(__aarch64__))) && !defined(EMU_UCONTEXT)
#define EMU_UCONTEXT 1 // no switch of our own for this machine; slower, because the system is asked
#endif
#ifdef EMU_UCONTEXT
#include <ucontext.h>
#endif
#include <vector>
#ifdef __linux__
#include <link.h>
#endif
#ifdef EMU_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

// ----------------------------------------------------------------------------
// messages and chance

static bool kernel_describe(char *text, size_t size);

// Mistakes that CUDA would not report, or only as "launch failure", end the program here,
// with the place they were made at.
[[noreturn]] static void die(const char *format, ...) __attribute__((format(printf, 1, 2)));
[[noreturn]] static void die(const char *format, ...) {
    // Written at once, because several processes may have something to say.
    char where[400] = "", text[600];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    bool in_kernel = kernel_describe(where, sizeof where);
    fflush(stdout);
    fprintf(stderr, "emu: %s%s%s\n", where, in_kernel ? ": " : "", text);
    abort();
}

// Mistakes that CUDA reports too: the reason is printed, the call returns the error.
static cudaError_t last_error = cudaSuccess;
static cudaError_t error_keep(cudaError_t error) {
    if (error != cudaSuccess) last_error = error;
    return error;
}
static cudaError_t refuse(cudaError_t error, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static cudaError_t refuse(cudaError_t error, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fflush(stdout);
    fprintf(stderr, "emu: ");
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
    return error_keep(error);
}

static long environment_number(const char *name, long otherwise) {
    const char *text = getenv(name);
    if (!text || !*text) return otherwise;
    char *end;
    long number = strtol(text, &end, 10);
    if (*end || number < 0) die("%s=%s is not a number", name, text);
    return number;
}

static uint64_t chance_state = 0;
static uint64_t chance() { // splitmix64
    if (!chance_state) emu_seed((uint64_t)environment_number("EMU_SEED", 1));
    uint64_t z = chance_state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}
static size_t chance_below(size_t n) { return (size_t)((unsigned __int128)chance() * n >> 64); }
void emu_seed(uint64_t seed) { chance_state = seed * 0xD1342543DE82EF95u + 0x2545F4914F6CDD1Du; }

static void launch_note(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void launch_note(const char *format, ...) {
    static const char *path = getenv("EMU_LAUNCHES");
    static FILE *file = path ? fopen(path, "a") : nullptr;
    if (path && !file) die("EMU_LAUNCHES=%s: %s", path, strerror(errno));
    if (!file) return;
    va_list arguments;
    va_start(arguments, format);
    vfprintf(file, format, arguments);
    va_end(arguments);
    fflush(file);
}

#define ERRORS(X)                                                           \
    X(cudaSuccess, "no error")                                              \
    X(cudaErrorInvalidValue, "invalid argument")                            \
    X(cudaErrorMemoryAllocation, "out of memory")                           \
    X(cudaErrorInvalidConfiguration, "invalid configuration argument")      \
    X(cudaErrorInvalidHostPointer, "invalid host pointer")                  \
    X(cudaErrorInvalidDevicePointer, "invalid device pointer")              \
    X(cudaErrorInvalidMemcpyDirection, "invalid copy direction for memcpy") \
    X(cudaErrorInvalidDeviceFunction, "invalid device function")            \
    X(cudaErrorNoDevice, "no CUDA-capable device is detected")              \
    X(cudaErrorInvalidDevice, "invalid device ordinal")                     \
    X(cudaErrorInvalidResourceHandle, "invalid resource handle")            \
    X(cudaErrorNotReady, "device not ready")                                \
    X(cudaErrorIllegalAddress, "an illegal memory access was encountered")  \
    X(cudaErrorLaunchFailure, "unspecified launch failure")                 \
    X(cudaErrorNotSupported, "operation not supported")                     \
    X(cudaErrorUnknown, "unknown error")

const char *cudaGetErrorString(cudaError_t error) {
    switch (error) {
#define ERROR_TEXT(name, text) \
    case name: return text;
        ERRORS(ERROR_TEXT)
    }
    return "unrecognized error code";
}
const char *cudaGetErrorName(cudaError_t error) {
    switch (error) {
#define ERROR_NAME(name, text) \
    case name: return #name;
        ERRORS(ERROR_NAME)
    }
    return "unrecognized error code";
}
cudaError_t cudaPeekAtLastError(void) { return last_error; }
cudaError_t cudaGetLastError(void) {
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

// ----------------------------------------------------------------------------
// devices

enum {
    SHARED_USUAL = 48 << 10,
    SHARED_MOST = 232448,
    SHARED_OF_SM = 233472,
    SHARED_RESERVED = 1024,
    THREADS_OF_SM = 2048
};

static int device_current = 0;

static int device_count() {
    static int count = (int)environment_number("EMU_GPUS", 8);
    return count;
}
static size_t memory_limit() {
    static size_t limit = (size_t)environment_number("EMU_MEMORY_MIB", 16384) << 20;
    return limit;
}
static cudaError_t device_check() {
    return error_keep(device_count() ? cudaSuccess : cudaErrorNoDevice);
}
static cudaError_t device_check(int device) {
    if (device_check()) return cudaErrorNoDevice;
    return error_keep(device >= 0 && device < device_count() ? cudaSuccess
                                                             : cudaErrorInvalidDevice);
}

cudaError_t cudaGetDeviceCount(int *count) {
    *count = device_count();
    return device_check();
}
cudaError_t cudaSetDevice(int device) {
    if (cudaError_t error = device_check(device)) return error;
    device_current = device;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int *device) {
    *device = device_current;
    return device_check();
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device) {
    if (cudaError_t error = device_check(device)) return error;
    cudaDeviceProp p = {};
    snprintf(p.name, sizeof p.name, "stand-in for a GPU (dev/emu)");
    p.uuid.bytes[0] = (char)(device + environment_number("EMU_FIRST_GPU", 0));
    long host = gethostid();
    memcpy(p.uuid.bytes + 8, &host, sizeof host);
    p.totalGlobalMem = memory_limit();
    p.sharedMemPerBlock = SHARED_USUAL;
    p.sharedMemPerBlockOptin = SHARED_MOST;
    p.sharedMemPerMultiprocessor = SHARED_OF_SM;
    p.totalConstMem = 64 << 10;
    p.major = (int)environment_number("EMU_CAPABILITY", 90) / 10;
    p.minor = (int)environment_number("EMU_CAPABILITY", 90) % 10;
    p.multiProcessorCount = 4;
    p.l2CacheSize = 1 << 20;
    p.warpSize = warpSize;
    p.regsPerBlock = 65536;
    p.maxThreadsPerBlock = p.maxThreadsDim[0] = p.maxThreadsDim[1] = 1024;
    p.maxThreadsDim[2] = 64;
    p.maxThreadsPerMultiProcessor = THREADS_OF_SM;
    p.maxGridSize[0] = INT_MAX;
    p.maxGridSize[1] = p.maxGridSize[2] = 65535;
    p.memoryBusWidth = 64;
    p.pciBusID = device + 1;
    *properties = p;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device) {
    cudaDeviceProp p;
    if (cudaError_t error = cudaGetDeviceProperties(&p, device)) return error;
    switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = p.maxThreadsPerBlock; break;
    case cudaDevAttrMaxGridDimX: *value = p.maxGridSize[0]; break;
    case cudaDevAttrMaxGridDimY: *value = p.maxGridSize[1]; break;
    case cudaDevAttrMaxGridDimZ: *value = p.maxGridSize[2]; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = (int)p.sharedMemPerBlock; break;
    case cudaDevAttrWarpSize: *value = p.warpSize; break;
    case cudaDevAttrClockRate: *value = 1000000; break;
    case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; break;
    case cudaDevAttrMemoryClockRate: *value = 1000000; break;
    case cudaDevAttrGlobalMemoryBusWidth: *value = p.memoryBusWidth; break;
    case cudaDevAttrL2CacheSize: *value = p.l2CacheSize; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = p.maxThreadsPerMultiProcessor; break;
    case cudaDevAttrComputeCapabilityMajor: *value = p.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = p.minor; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *value = (int)p.sharedMemPerMultiprocessor;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = (int)p.sharedMemPerBlockOptin; break;
    default:
        return refuse(cudaErrorInvalidValue,
                      "cudaDeviceGetAttribute: attribute %d is not known here", (int)attribute);
    }
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *text, int length, int device) {
    if (cudaError_t error = device_check(device)) return error;
    int written = snprintf(text, (size_t)length, "0000:%02x:00.0", device + 1);
    return error_keep(written < length ? cudaSuccess : cudaErrorInvalidValue);
}
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0;
    *greatest = -5;
    return device_check();
}
cudaError_t cudaDriverGetVersion(int *version) {
    *version = device_count() ? (int)environment_number("EMU_DRIVER", CUDART_VERSION) : 0;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaProfilerStart(void) { return cudaSuccess; }
cudaError_t cudaProfilerStop(void) { return cudaSuccess; }

// ----------------------------------------------------------------------------
// memory

// Device memory is mapped page by page, between two pages that nobody may touch. It is open only
// while device work runs: the host that follows a device pointer is stopped. What is left of the
// last page is poisoned for ASan.
struct Allocation {
    enum Kind { DEVICE, PINNED, REGISTERED, SYMBOL } kind;
    size_t bytes;
};
// These and other lists below are never destroyed: what runs when the program exits may still need
// them.
static auto &allocations = *new std::map<uintptr_t, Allocation>;
// Freed device memory, kept closed for a while.
static auto &retired = *new std::deque<std::pair<void *, size_t>>;
static size_t memory_used;
static bool memory_is_open;
enum { RETIRED_MOST = 512 };

static size_t page_bytes() {
    static size_t bytes = (size_t)sysconf(_SC_PAGESIZE);
    return bytes;
}
static size_t page_round(size_t bytes) {
    return (bytes + page_bytes() - 1) / page_bytes() * page_bytes();
}

// The allocation that `pointer` is in (or at the end of), with where it begins; null
// when it is ordinary host memory.
static const Allocation *allocation_find(const void *pointer, uintptr_t *start) {
    auto after = allocations.upper_bound((uintptr_t)pointer);
    if (after == allocations.begin()) return nullptr;
    --after;
    if ((uintptr_t)pointer > after->first + after->second.bytes) return nullptr;
    *start = after->first;
    return &after->second;
}
static bool is_device(const Allocation *a) {
    return a && (a->kind == Allocation::DEVICE || a->kind == Allocation::SYMBOL);
}

static void memory_protect(int protection) {
    for (auto &[start, a] : allocations) {
        if (a.kind != Allocation::DEVICE) continue;
        if (mprotect((void *)start, page_round(a.bytes), protection))
            die("mprotect fails: %s", strerror(errno));
    }
}
static void memory_open() {
    if (!memory_is_open) memory_protect(PROT_READ | PROT_WRITE);
    memory_is_open = true;
}
static void memory_close() {
    if (memory_is_open) memory_protect(PROT_NONE);
    memory_is_open = false;
}

static const struct Fiber *fiber_at_guard(const void *address);

static struct sigaction fault_others;
// Says what a fault in memory was about, where that is known, and leaves the rest to whoever
// handled faults before (ASan prints the stack): the access is tried again when this returns.
static void fault_report(int, siginfo_t *info, void *) {
    uintptr_t at = (uintptr_t)info->si_addr;
    char where[400];
    bool in_kernel = kernel_describe(where, sizeof where);
    for (auto &[start, a] : allocations) {
        if (a.kind != Allocation::DEVICE || at + page_bytes() < start ||
            at >= start + page_round(a.bytes) + page_bytes())
            continue;
        if (at >= start && at < start + a.bytes && !memory_is_open) {
            fprintf(stderr,
                    "emu: the host touches device memory: byte %zu of an allocation of %zu\n",
                    (size_t)(at - start), a.bytes);
        } else {
            fprintf(stderr, "emu: %s touches byte %td of an allocation of %zu\n",
                    in_kernel ? where : "device work", (ptrdiff_t)(at - start), a.bytes);
        }
    }
    for (auto &[start, bytes] : retired) {
        if (at < (uintptr_t)start || at >= (uintptr_t)start + bytes) continue;
        fprintf(stderr, "emu: %s touches device memory that was freed\n",
                in_kernel ? where : "somebody");
    }
    if (fiber_at_guard(info->si_addr)) fprintf(stderr, "emu: %s overflows its stack\n", where);
    sigaction(SIGSEGV, &fault_others, nullptr);
}
static void fault_watch() {
    static bool watching = false;
    if (watching) return;
    watching = true;
    stack_t stack = {};
    // A fiber that overflows has no stack left.
    if (!sigaltstack(nullptr, &stack) && (stack.ss_flags & SS_DISABLE)) {
        static char spare[64 << 10];
        stack = {};
        stack.ss_sp = spare;
        stack.ss_size = sizeof spare;
        sigaltstack(&stack, nullptr);
    }
    struct sigaction action = {};
    action.sa_sigaction = fault_report;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &fault_others);
}

cudaError_t cudaMalloc(void **pointer, size_t bytes) {
    *pointer = nullptr;
    if (device_check()) return cudaErrorNoDevice;
    if (!bytes) return cudaSuccess;
    if (bytes > memory_limit() - memory_used) return error_keep(cudaErrorMemoryAllocation);
    fault_watch();
    size_t page = page_bytes(), rounded = page_round(bytes);
    void *mapped = mmap(nullptr, rounded + 2 * page, PROT_NONE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) return error_keep(cudaErrorMemoryAllocation);
    char *start = (char *)mapped + page;
    if (mprotect(start, rounded, PROT_READ | PROT_WRITE))
        return error_keep(cudaErrorMemoryAllocation);
    memset(start, 0xFF, rounded);
    emu_poison(start + bytes, rounded - bytes);
    if (!memory_is_open) mprotect(start, rounded, PROT_NONE);
    allocations[(uintptr_t)start] = {Allocation::DEVICE, bytes};
    memory_used += bytes;
    *pointer = start;
    return cudaSuccess;
}

// As in CUDA, everything the device still has to do is done first.
cudaError_t cudaFree(void *pointer) {
    if (device_check()) return cudaErrorNoDevice;
    if (!pointer) return cudaSuccess;
    cudaDeviceSynchronize();
    auto found = allocations.find((uintptr_t)pointer);
    if (found == allocations.end() || found->second.kind != Allocation::DEVICE) {
        return refuse(cudaErrorInvalidValue, "cudaFree: %p is not the start of device memory",
                      pointer);
    }
    size_t rounded = page_round(found->second.bytes), page = page_bytes();
    memory_used -= found->second.bytes;
    allocations.erase(found);
    emu_unpoison(pointer, rounded);
    mmap(pointer, rounded, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
         0);
    retired.push_back({(char *)pointer - page, rounded + 2 * page});
    if (retired.size() > RETIRED_MOST) {
        munmap(retired.front().first, retired.front().second);
        retired.pop_front();
    }
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes) {
    *total_bytes = memory_limit();
    *free_bytes = memory_limit() - memory_used;
    return device_check();
}

// Pinned memory is malloc'ed at its exact size, for ASan to watch.
cudaError_t cudaHostAlloc(void **pointer, size_t bytes, unsigned) {
    *pointer = nullptr;
    if (device_check()) return cudaErrorNoDevice;
    if (!bytes) return cudaSuccess;
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!memory) return error_keep(cudaErrorMemoryAllocation);
    memset(memory, 0xFF, bytes);
    emu_poison((char *)memory + bytes, (bytes + 63) / 64 * 64 - bytes);
    allocations[(uintptr_t)memory] = {Allocation::PINNED, bytes};
    *pointer = memory;
    return cudaSuccess;
}
cudaError_t cudaMallocHost(void **pointer, size_t bytes, unsigned flags) {
    return cudaHostAlloc(pointer, bytes, flags);
}
cudaError_t cudaFreeHost(void *pointer) {
    if (!pointer) return cudaSuccess;
    cudaDeviceSynchronize();
    auto found = allocations.find((uintptr_t)pointer);
    if (found == allocations.end() || found->second.kind != Allocation::PINNED) {
        return refuse(cudaErrorInvalidValue, "cudaFreeHost: %p is not the start of pinned memory",
                      pointer);
    }
    emu_unpoison(pointer, (found->second.bytes + 63) / 64 * 64);
    allocations.erase(found);
    free(pointer);
    return cudaSuccess;
}
cudaError_t cudaHostRegister(void *pointer, size_t bytes, unsigned) {
    uintptr_t start;
    if (!pointer || !bytes || allocation_find(pointer, &start))
        return error_keep(cudaErrorInvalidValue);
    allocations[(uintptr_t)pointer] = {Allocation::REGISTERED, bytes};
    return device_check();
}
cudaError_t cudaHostUnregister(void *pointer) {
    cudaDeviceSynchronize();
    auto found = allocations.find((uintptr_t)pointer);
    bool known = found != allocations.end() && found->second.kind == Allocation::REGISTERED;
    if (known) allocations.erase(found);
    return error_keep(known ? cudaSuccess : cudaErrorInvalidValue);
}
cudaError_t emu_symbol(const void *symbol, size_t bytes) {
    allocations[(uintptr_t)symbol] = {Allocation::SYMBOL, bytes};
    return device_check();
}

// What `who` is about to touch must lie in one allocation (of the device, or of anything that a GPU
// reaches).
static bool extent_check(const char *who, const char *what, const void *pointer, size_t bytes,
                         bool device_only) {
    uintptr_t start;
    const Allocation *a = allocation_find(pointer, &start);
    if (!bytes) return true;
    if (!a || (device_only && !is_device(a))) {
        fprintf(stderr, "emu: %s: %s %p is %s\n", who, what, pointer,
                !pointer ? "null"
                : a      ? "pinned memory of the host, not of the device"
                         : "no memory of the device");
        return false;
    }
    size_t offset = (uintptr_t)pointer - start;
    if (offset + bytes <= a->bytes) return true;
    fprintf(stderr,
            "emu: %s: %s: %zu bytes from byte %zu of an allocation of %zu overrun it by %zu\n", who,
            what, bytes, offset, a->bytes, offset + bytes - a->bytes);
    return false;
}

// ----------------------------------------------------------------------------
// streams and events

// A piece of work says whether it has been done; or that it waits for another
// stream, or for another process.
enum Progress { DONE, BLOCKED, PENDING, NOTHING };
struct Operation {
    uint64_t order; // in which it was queued, over all streams
    std::function<Progress()> run;
};
// What has been done for sure when the next operation begins, by what it was told to wait for: of
// each stream, by its number, all operations up to one.
typedef std::map<uint64_t, uint64_t> Past;
static void past_join(Past &past, const Past &other) {
    for (auto &[stream, order] : other) past[stream] = std::max(past[stream], order);
}
struct CUstream_st {
    std::deque<Operation> queue;
    bool blocking; // it and the null stream wait for each other
    uint64_t number;
    Past past;
};
struct EventRecord {
    Past past;
    bool done = false;
    std::chrono::steady_clock::time_point time;
};
struct CUevent_st {
    unsigned flags;
    std::shared_ptr<EventRecord> record; // the most recent one; null before the first
};
static auto &null_stream = *new CUstream_st{{}, true, 0, {}};
static auto &streams = *new std::vector<CUstream_st *>{&null_stream};
static auto &host_past = *new Past; // what the host has waited for
static uint64_t operations_queued;

static CUstream_st *stream_find(cudaStream_t stream) {
    if (!stream) return &null_stream;
    return std::find(streams.begin(), streams.end(), stream) == streams.end() ? nullptr : stream;
}

// What has been done before an operation that is queued now.
static const Past &stream_past(CUstream_st *stream) {
    past_join(stream->past, host_past);
    for (CUstream_st *other : streams) {
        bool waits = other->blocking && stream->blocking;
        if (waits && (stream == &null_stream || other == &null_stream))
            past_join(stream->past, other->past);
    }
    return stream->past;
}

static void stream_queue(CUstream_st *stream, std::function<Progress()> run) {
    stream_past(stream);
    stream->past[stream->number] = ++operations_queued;
    stream->queue.push_back({operations_queued, std::move(run)});
}

// The legacy null stream runs after everything queued earlier in blocking streams, and
// before everything queued later.
static bool stream_may_run(const CUstream_st *stream) {
    if (!stream->blocking) return true;
    uint64_t order = stream->queue.front().order;
    if (stream != &null_stream)
        return null_stream.queue.empty() || null_stream.queue.front().order > order;
    for (const CUstream_st *other : streams) {
        if (other != stream && other->blocking && !other->queue.empty() &&
            other->queue.front().order < order)
            return false;
    }
    return true;
}

// Runs the next piece of work of one stream, drawn among those that have some and are ready.
static Progress device_step() {
    Progress best = NOTHING;
    std::vector<CUstream_st *> waiting;
    for (CUstream_st *stream : streams) {
        if (!stream->queue.empty()) waiting.push_back(stream);
    }
    size_t first = waiting.empty() ? 0 : chance_below(waiting.size());
    for (size_t i = 0; i < waiting.size(); i++) {
        CUstream_st *stream = waiting[(first + i) % waiting.size()];
        Progress progress = BLOCKED;
        if (stream_may_run(stream)) {
            memory_open();
            progress = stream->queue.front().run();
        }
        if (progress == DONE) {
            stream->queue.pop_front();
            return DONE;
        }
        if (best != PENDING) best = progress;
    }
    return best;
}

// What waits for other processes leaves them the processor.
static void wait_a_little(int *tries) {
    if (++*tries < 100) sched_yield();
    else usleep(50);
}

template <typename F> static void device_run_until(F reached) {
    for (int tries = 0; !reached();) {
        Progress progress = device_step();
        if (progress == DONE) tries = 0;
        else if (progress == PENDING) wait_a_little(&tries);
        else die("streams wait for each other for ever");
    }
    memory_close();
}

static bool device_idle() {
    return std::all_of(streams.begin(), streams.end(),
                       [](CUstream_st *s) { return s->queue.empty(); });
}
cudaError_t cudaDeviceSynchronize(void) {
    device_run_until(device_idle);
    for (CUstream_st *stream : streams) past_join(host_past, stream->past);
    return device_check();
}
cudaError_t cudaDeviceReset(void) { return cudaDeviceSynchronize(); }

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    if (device_check()) return cudaErrorNoDevice;
    static uint64_t made = 0;
    *stream = new CUstream_st{{}, !(flags & cudaStreamNonBlocking), ++made, {}};
    streams.push_back(*stream);
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int) {
    return cudaStreamCreateWithFlags(stream, flags);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    if (!stream || !stream_find(stream)) return error_keep(cudaErrorInvalidResourceHandle);
    device_run_until([=]() { return stream->queue.empty(); });
    streams.erase(std::find(streams.begin(), streams.end(), stream));
    past_join(host_past, stream->past);
    delete stream;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    CUstream_st *s = stream_find(stream);
    if (!s) return error_keep(cudaErrorInvalidResourceHandle);
    device_run_until([=]() { return s->queue.empty(); });
    past_join(host_past, s->past);
    return device_check();
}
// A question is answered after one more step, so that asking again and again comes to an end.
cudaError_t cudaStreamQuery(cudaStream_t stream) {
    CUstream_st *s = stream_find(stream);
    if (!s) return error_keep(cudaErrorInvalidResourceHandle);
    if (!s->queue.empty()) device_step();
    memory_close();
    if (!s->queue.empty()) return cudaErrorNotReady;
    past_join(host_past, s->past);
    return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) {
    CUstream_st *s = stream_find(stream);
    if (!s) return error_keep(cudaErrorInvalidResourceHandle);
    stream_queue(s, [=]() {
        function(data);
        return DONE;
    });
    return device_check();
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    if (device_check()) return cudaErrorNoDevice;
    *event = new CUevent_st{flags, nullptr};
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *event, unsigned flags) {
    return cudaEventCreateWithFlags(event, flags);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    if (!event) return error_keep(cudaErrorInvalidResourceHandle);
    delete event;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    CUstream_st *s = stream_find(stream);
    if (!s || !event) return error_keep(cudaErrorInvalidResourceHandle);
    auto record = std::make_shared<EventRecord>();
    event->record = record;
    stream_queue(s, [record]() {
        record->time = std::chrono::steady_clock::now();
        record->done = true;
        return DONE;
    });
    record->past = s->past;
    return device_check();
}
// Waits for the most recent record at the time of this call, whatever is recorded later;
// before the first, for nothing.
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    CUstream_st *s = stream_find(stream);
    if (!s || !event) return error_keep(cudaErrorInvalidResourceHandle);
    if (auto record = event->record) {
        stream_queue(s, [record]() { return record->done ? DONE : BLOCKED; });
        past_join(s->past, record->past);
    }
    return device_check();
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
    if (!event) return error_keep(cudaErrorInvalidResourceHandle);
    if (event->record && !event->record->done) device_step();
    memory_close();
    if (event->record && !event->record->done) return cudaErrorNotReady;
    if (event->record) past_join(host_past, event->record->past);
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    if (!event) return error_keep(cudaErrorInvalidResourceHandle);
    if (auto record = event->record) {
        device_run_until([=]() { return record->done; });
        past_join(host_past, record->past);
    }
    return device_check();
}
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    if (!start || !end || !start->record || !end->record)
        return error_keep(cudaErrorInvalidResourceHandle);
    if ((start->flags | end->flags) & cudaEventDisableTiming)
        return error_keep(cudaErrorInvalidResourceHandle);
    if (!start->record->done || !end->record->done) return cudaErrorNotReady;
    auto passed = end->record->time - start->record->time;
    *milliseconds = std::chrono::duration<float, std::milli>(passed).count();
    return cudaSuccess;
}

// ----------------------------------------------------------------------------
// copies

struct Copy {
    char *to;
    const char *from;
    size_t to_pitch, from_pitch, width, height;
};
static size_t copy_extent(size_t pitch, const Copy &c) { return pitch * (c.height - 1) + c.width; }
static void copy_run(const Copy &c) {
    for (size_t row = 0; row < c.height; row++)
        memcpy(c.to + row * c.to_pitch, c.from + row * c.from_pitch, c.width);
}

// One end of a copy: on the side that the kind says, and inside one allocation if it is in any.
static bool copy_end_check(const char *who, const char *what, const void *pointer, size_t extent,
                           bool on_device) {
    uintptr_t start;
    const Allocation *a = allocation_find(pointer, &start);
    if (on_device) return extent_check(who, what, pointer, extent, true);
    if (is_device(a) && (uintptr_t)pointer < start + a->bytes) {
        fprintf(stderr, "emu: %s: %s %p is device memory, but the kind says host\n", who, what,
                pointer);
        return false;
    }
    return !a || is_device(a) || extent_check(who, what, pointer, extent, false);
}

static cudaError_t copy_queue(const char *who, Copy c, cudaMemcpyKind kind, cudaStream_t stream,
                              bool host_waits) {
    uintptr_t start;
    CUstream_st *s = stream_find(stream);
    if (device_check()) return cudaErrorNoDevice;
    if (!s) return error_keep(cudaErrorInvalidResourceHandle);
    if (!c.width || !c.height) return cudaSuccess;
    if (c.to_pitch < c.width || c.from_pitch < c.width)
        return refuse(cudaErrorInvalidValue, "%s: pitch below width", who);
    const Allocation *to = allocation_find(c.to, &start), *from = allocation_find(c.from, &start);
    bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice ||
                     (kind == cudaMemcpyDefault && is_device(to));
    bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice ||
                       (kind == cudaMemcpyDefault && is_device(from));
    if (!copy_end_check(who, "destination", c.to, copy_extent(c.to_pitch, c), to_device) ||
        !copy_end_check(who, "source", c.from, copy_extent(c.from_pitch, c), from_device)) {
        return error_keep(cudaErrorInvalidValue);
    }
    auto staged = std::make_shared<std::vector<char>>();
    if (!from_device && !from) { // pageable: read now
        staged->resize(c.width * c.height);
        copy_run({staged->data(), c.from, c.width, c.from_pitch, c.width, c.height});
        c.from = staged->data();
        c.from_pitch = c.width;
    }
    stream_queue(s, [c, staged]() {
        copy_run(c);
        return DONE;
    });
    // The host waits for what reaches its pageable memory in any case. It never waits for a copy
    // inside the device, nor for one from pageable memory, which has been staged.
    bool waits = !to_device && (host_waits || !to);
    if (waits || (host_waits && !from_device && from)) {
        device_run_until([=]() { return s->queue.empty(); });
    }
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    return copy_queue("cudaMemcpy", {(char *)to, (const char *)from, bytes, bytes, bytes, 1}, kind,
                      0, true);
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
    return copy_queue("cudaMemcpyAsync", {(char *)to, (const char *)from, bytes, bytes, bytes, 1},
                      kind, stream, false);
}
cudaError_t cudaMemcpy2D(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                         size_t width, size_t height, cudaMemcpyKind kind) {
    return copy_queue("cudaMemcpy2D",
                      {(char *)to, (const char *)from, to_pitch, from_pitch, width, height}, kind,
                      0, true);
}
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream) {
    return copy_queue("cudaMemcpy2DAsync",
                      {(char *)to, (const char *)from, to_pitch, from_pitch, width, height}, kind,
                      stream, false);
}

// Not checked by ASan, because one memset may cover several tensors and the poisoned gaps between
// them. The empty asm keeps g++ from making a call of memset of it, which is checked.
#ifdef EMU_ASAN
__attribute__((no_sanitize_address))
#endif
static void fill_unchecked(char *to, int value, size_t bytes) {
    while (bytes && (uintptr_t)to % 8) *to++ = (char)value, bytes--;
    uint64_t word = (unsigned char)value * 0x0101010101010101u;
    for (; bytes >= 8; bytes -= 8, to += 8) {
        *(uint64_t __attribute__((may_alias)) *)to = word;
        asm volatile("" ::: "memory");
    }
    while (bytes) *to++ = (char)value, bytes--;
}
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream) {
    CUstream_st *s = stream_find(stream);
    if (device_check()) return cudaErrorNoDevice;
    if (!s) return error_keep(cudaErrorInvalidResourceHandle);
    if (!bytes) return cudaSuccess;
    if (!extent_check("cudaMemset", "destination", to, bytes, false))
        return error_keep(cudaErrorInvalidValue);
    stream_queue(s, [=]() {
        fill_unchecked((char *)to, value, bytes);
        return DONE;
    });
    return cudaSuccess;
}
cudaError_t cudaMemset(void *to, int value, size_t bytes) {
    return cudaMemsetAsync(to, value, bytes, 0);
}

// ----------------------------------------------------------------------------
// fibers: stacks between which one operating system thread switches without asking the system

enum { FIBER_STACK = 128 << 10 };
struct Fiber {
    void *stack_pointer; // while it does not run
    // FIBER_STACK bytes, below them a page that nobody may touch; null for the program's own stack.
    char *stack;
    void *asan_frames;
#ifdef EMU_UCONTEXT
    ucontext_t context;
#endif
};
static auto &fibers = *new std::vector<Fiber *>, &fibers_idle = *new std::vector<Fiber *>;
static Fiber fiber_program;
#ifdef EMU_ASAN
static const void *program_stack;
static size_t program_stack_bytes;
#endif

static void fiber_main();

// Saves what a called function must preserve, exchanges the stacks, and returns to
// where the other fiber called it.
#ifndef EMU_UCONTEXT
extern "C" void emu_switch(void **stack_pointer, void *to);
#ifdef __x86_64__
asm(R"(
    .text
    .globl emu_switch
    .type emu_switch, @function
emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size emu_switch, .-emu_switch
)");
// In words: six registers, then where to return to, then the end of the stack.
enum { SWITCH_SAVES = 6, SWITCH_FRAME = 8 };
#else
asm(R"(
    .text
    .globl emu_switch
    .type emu_switch, %function
emu_switch:
    sub sp, sp, #160
    stp x29, x30, [sp, #0]
    stp x19, x20, [sp, #16]
    stp x21, x22, [sp, #32]
    stp x23, x24, [sp, #48]
    stp x25, x26, [sp, #64]
    stp x27, x28, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x29, x30, [sp, #0]
    ldp x19, x20, [sp, #16]
    ldp x21, x22, [sp, #32]
    ldp x23, x24, [sp, #48]
    ldp x25, x26, [sp, #64]
    ldp x27, x28, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
    .size emu_switch, .-emu_switch
)");
enum { SWITCH_SAVES = 1, SWITCH_FRAME = 20 }; // words: the frame and return registers come first
#endif
#endif

// ASan has to know which stack it is on.
static void fiber_arrive([[maybe_unused]] const Fiber *self) {
#ifdef EMU_ASAN
    const void *from;
    size_t bytes;
    __sanitizer_finish_switch_fiber(self->asan_frames, &from, &bytes);
    // The first switch of all is from there.
    if (!program_stack) program_stack = from, program_stack_bytes = bytes;
#endif
}
static void fiber_switch(Fiber *from, Fiber *to) {
#ifdef EMU_ASAN
    const void *bottom = to->stack ? to->stack : program_stack;
    __sanitizer_start_switch_fiber(&from->asan_frames, bottom,
                                   to->stack ? (size_t)FIBER_STACK : program_stack_bytes);
#endif
#ifdef EMU_UCONTEXT
    swapcontext(&from->context, &to->context);
#else
    emu_switch(&from->stack_pointer, to->stack_pointer);
#endif
    fiber_arrive(from);
}

static Fiber *fiber_new() {
    size_t page = page_bytes();
    void *mapped = mmap(nullptr, FIBER_STACK + page, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED || mprotect(mapped, page, PROT_NONE))
        die("no memory for the stacks of threads");
    Fiber *f = new Fiber();
    f->stack = (char *)mapped + page;
#ifdef EMU_UCONTEXT
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->stack;
    f->context.uc_stack.ss_size = FIBER_STACK;
    makecontext(&f->context, fiber_main, 0);
#else
    // Or the tops of all stacks would compete for the same lines of the cache.
    size_t offset = fibers.size() * 5 % 64 * 64;
    void **frame = (void **)(f->stack + FIBER_STACK - offset) - SWITCH_FRAME;
    memset(frame, 0, SWITCH_FRAME * sizeof *frame);
    frame[SWITCH_SAVES] = (void *)fiber_main;
    f->stack_pointer = frame;
#endif
    fibers.push_back(f);
    return f;
}
static Fiber *fiber_take() {
    if (fibers_idle.empty()) return fiber_new();
    Fiber *f = fibers_idle.back();
    fibers_idle.pop_back();
    return f;
}
static const Fiber *fiber_at_guard(const void *address) {
    for (const Fiber *f : fibers) {
        if ((const char *)address < f->stack && (const char *)address >= f->stack - page_bytes())
            return f;
    }
    return nullptr;
}

// ----------------------------------------------------------------------------
// a block: its threads, barriers and warp operations

struct Launch {
    std::string name;
    dim3 grid, block;
    size_t shared;
    std::function<void()> thread;
};
struct Thread {
    uint3 index;
    Fiber *fiber;      // null before it starts
    const char *waits; // the operation that it waits in, null if in none
    unsigned mask;     // in a warp operation: with which lanes, and what it brings
    const void *mine;
    size_t bytes;
    EmuShare *held; // what it got from its latest warp operation
};
struct Warp {
    unsigned alive, waiting; // lanes: that have not returned; that wait in a warp operation
};
static struct {
    const Launch *launch; // null when no kernel runs
    int current, live, arrived;
    const char *barrier; // the kind at which `arrived` threads wait
    int predicates, result, result_threads;
    size_t window; // the next thread is drawn among this many
    char *shared;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    std::vector<int> ready;
} block;
static auto &shares_free = *new std::vector<EmuShare *>;

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

static bool kernel_describe(char *text, size_t size) {
    if (!block.launch) return false;
    snprintf(text, size, "kernel %s, block (%u,%u,%u), thread (%u,%u,%u)",
             block.launch->name.c_str(), blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x,
             threadIdx.y, threadIdx.z);
    return true;
}

// Nobody can go on. Lists what the threads wait in, with the first thread of each kind.
[[noreturn]] static void block_deadlock() {
    std::map<std::pair<std::string, unsigned>, std::pair<int, uint3>> waits;
    for (const Thread &t : block.threads) {
        if (!t.waits) continue;
        auto &[count, first] = waits[{t.waits, t.mask}];
        if (!count++) first = t.index;
    }
    for (auto &[wait, who] : waits) {
        fprintf(stderr, "emu: %d threads wait in %s", who.first, wait.first.c_str());
        if (wait.second) fprintf(stderr, " for the lanes of mask 0x%08x", wait.second);
        fprintf(stderr, ", the first is (%u,%u,%u)\n", who.second.x, who.second.y, who.second.z);
    }
    die("deadlock: %d of %zu threads have returned, the others wait for threads that never come",
        (int)block.threads.size() - block.live, block.threads.size());
}

// Draws the thread that goes on.
static int block_draw() {
    size_t n = block.ready.size();
    if (!n) block_deadlock();
    size_t at = n - 1 - chance_below(n < block.window ? n : block.window);
    int thread = block.ready[at];
    block.ready[at] = block.ready.back();
    block.ready.pop_back();
    return thread;
}

static void thread_begin(int thread) {
    block.current = thread;
    threadIdx = block.threads[thread].index;
}

// The current thread waits, or lets others go first; returns when it is its turn again.
static void block_go_on() {
    Thread &self = block.threads[block.current];
    int next = block_draw();
    if (next == block.current) return;
    thread_begin(next);
    Thread &other = block.threads[next];
    if (!other.fiber) other.fiber = fiber_take();
    fiber_switch(self.fiber, other.fiber);
}

// Everybody that lives may go on, warp by warp in an order that is drawn: this
// matters where `window` is one warp.
static void block_all_ready() {
    int warps = (int)block.warps.size(), order[32];
    for (int i = 0; i < warps; i++) {
        int j = (int)chance_below((size_t)i + 1);
        order[i] = order[j];
        order[j] = i;
    }
    for (int i = 0; i < warps; i++) {
        for (unsigned left = block.warps[order[i]].alive; left; left &= left - 1) {
            int thread = order[i] * warpSize + __builtin_ctz(left);
            block.threads[thread].waits = nullptr;
            block.ready.push_back(thread);
        }
    }
}
static void barrier_release() {
    block.result = block.predicates;
    block.result_threads = block.arrived;
    block.predicates = block.arrived = 0;
    block.barrier = nullptr;
    block_all_ready();
}

int emu_block_barrier(const char *name, int predicate, int *threads) {
    Thread &self = block.threads[block.current];
    if (block.barrier && strcmp(block.barrier, name)) {
        die("comes to %s while %d threads of its block wait in %s", name, block.arrived,
            block.barrier);
    }
    block.barrier = self.waits = name;
    self.mask = 0;
    block.predicates += predicate != 0;
    if (++block.arrived == block.live) barrier_release();
    block_go_on();
    if (threads) *threads = block.result_threads;
    return block.result;
}

static void share_drop(Thread &t) {
    if (t.held && !--t.held->holders) shares_free.push_back(t.held);
    t.held = nullptr;
}

// All lanes of the mask that live are there, and wait for each other.
static bool group_complete(const Warp &warp, const Thread *lanes, unsigned mask) {
    unsigned left = mask & warp.alive;
    if (left & ~warp.waiting) return false;
    for (; left; left &= left - 1) {
        if (lanes[__builtin_ctz(left)].mask != mask) return false;
    }
    return true;
}

// Gathers what the lanes brought, and lets them go on.
static void group_release(Warp &warp, Thread *lanes, unsigned mask) {
    unsigned present = mask & warp.alive;
    const Thread &first = lanes[__builtin_ctz(present)];
    size_t bytes = first.bytes;
    EmuShare *share = nullptr;
    if (bytes) {
        if (shares_free.empty()) shares_free.push_back(new EmuShare());
        share = shares_free.back();
        shares_free.pop_back();
        if (share->capacity < bytes * warpSize) {
            share->capacity = bytes * warpSize;
            free(share->at);
            share->at = (char *)aligned_alloc(64, (share->capacity + 63) / 64 * 64);
        }
        if (present != 0xFFFFFFFFu) memset(share->at, 0xFF, bytes * warpSize);
        share->present = present;
        share->holders = __builtin_popcount(present);
    }
    for (unsigned left = present; left; left &= left - 1) {
        int lane = __builtin_ctz(left);
        Thread &t = lanes[lane];
        if (t.bytes != bytes || (t.waits != first.waits && strcmp(t.waits, first.waits))) {
            die("lanes of one warp wait for each other in different operations: %s of %zu bytes, "
                "%s of %zu bytes",
                t.waits, t.bytes, first.waits, bytes);
        }
        if (bytes == 4) memcpy(share->at + lane * 4, t.mine, 4);
        else if (bytes) memcpy(share->at + lane * bytes, t.mine, bytes);
        t.held = share;
    }
    for (unsigned left = present; left; left &= left - 1) {
        Thread &t = lanes[__builtin_ctz(left)];
        t.waits = nullptr;
        block.ready.push_back((int)(&t - block.threads.data()));
    }
    warp.waiting &= ~present;
}

const EmuShare &emu_warp_exchange(const char *name, unsigned mask, const void *mine, size_t bytes) {
    static const EmuShare nothing = {};
    int lane = block.current % warpSize;
    Thread &self = block.threads[block.current], *lanes = &self - lane;
    Warp &warp = block.warps[block.current / warpSize];
    if (!(mask >> lane & 1)) die("%s: lane %d is not in its own mask 0x%08x", name, lane, mask);
    share_drop(self);
    self.waits = name;
    self.mask = mask;
    self.mine = mine;
    self.bytes = bytes;
    warp.waiting |= 1u << lane;
    if (group_complete(warp, lanes, mask)) group_release(warp, lanes, mask);
    block_go_on();
    return self.held ? *self.held : nothing;
}

unsigned emu_lane() { return (unsigned)(block.current % warpSize); }
unsigned __activemask() { return block.warps[block.current / warpSize].alive; }
void __nanosleep(unsigned) {
    block.ready.push_back(block.current);
    block.window = SIZE_MAX; // a warp that waits for another one must let it go on
    block_go_on();
}
void *emu_shared_dynamic() { return block.shared; }

// The current thread has returned: others may have been waiting for it only.
static void thread_end() {
    int lane = block.current % warpSize;
    Thread *lanes = &block.threads[block.current - lane];
    Warp &warp = block.warps[block.current / warpSize];
    share_drop(lanes[lane]);
    warp.alive &= ~(1u << lane);
    for (unsigned left = warp.waiting; left; left &= left - 1) {
        unsigned mask = lanes[__builtin_ctz(left)].mask;
        if (!group_complete(warp, lanes, mask)) continue;
        group_release(warp, lanes, mask);
        left &= warp.waiting | (left & -left);
    }
    if (--block.live && block.arrived == block.live) barrier_release();
}

// A fiber runs threads from their beginning. One that waits keeps its fiber until it returns; after
// one that returns, the same fiber runs the next that has not started: a kernel without barriers
// runs on one fiber, without any switch between threads.
static void fiber_main() {
    Fiber *self = block.threads[block.current].fiber;
    fiber_arrive(self);
    for (;;) {
        block.launch->thread();
        thread_end();
        Fiber *next = &fiber_program;
        if (block.live) {
            thread_begin(block_draw());
            Thread &t = block.threads[block.current];
            if (!t.fiber) {
                t.fiber = self;
                continue;
            }
            next = t.fiber;
        }
        fibers_idle.push_back(self);
        // Back when this fiber is taken for another thread, which is then the current one.
        fiber_switch(self, next);
    }
}

// ----------------------------------------------------------------------------
// launches

// Where the program's static shared memory is: its thread-local variables without
// initial value (see __shared__).
static char *static_shared;
static size_t static_shared_bytes;
static void static_shared_find() {
#if defined(__linux__) && !defined(EMU_ASAN)
    dl_iterate_phdr(
        [](dl_phdr_info *info, size_t, void *) {
            if (info->dlpi_name && *info->dlpi_name) return 0; // the program itself has no name
            for (int i = 0; i < info->dlpi_phnum; i++) {
                const auto &header = info->dlpi_phdr[i];
                if (header.p_type != PT_TLS || !info->dlpi_tls_data) continue;
                static_shared = (char *)info->dlpi_tls_data + header.p_filesz;
                static_shared_bytes = header.p_memsz - header.p_filesz;
            }
            return 1;
        },
        nullptr);
#endif
}

static void block_run() {
    int threads = (int)block.threads.size(), warps = (threads + warpSize - 1) / warpSize;
    unsigned index_x = 0, index_y = 0, index_z = 0;
    for (Thread &t : block.threads) {
        t = {{index_x, index_y, index_z}, nullptr, nullptr, 0, nullptr, 0, nullptr};
        if (++index_x < blockDim.x) continue;
        index_x = 0;
        if (++index_y < blockDim.y) continue;
        index_y = 0;
        index_z++;
    }
    for (int w = 0; w < warps; w++) {
        int lanes = std::min(threads - w * warpSize, warpSize);
        block.warps[w] = {0xFFFFFFFFu >> (warpSize - lanes), 0};
    }
    block.live = threads;
    block.arrived = block.predicates = 0;
    block.barrier = nullptr;
    // All threads mixed, or one warp far ahead of the others.
    block.window = chance() & 1 ? SIZE_MAX : (size_t)warpSize;
    block.ready.clear();
    block_all_ready();
    if (static_shared_bytes) memset(static_shared, 0xFF, static_shared_bytes);
    thread_begin(block_draw());
    Thread &first = block.threads[block.current];
    first.fiber = fiber_take();
    fiber_switch(&fiber_program, first.fiber);
}

// Blocks run one after another, from a block that is drawn and by a stride that is drawn and meets
// all of them.
static void launch_run(const Launch &launch) {
    static pthread_t runner;
    static bool first = true;
    if (first) {
        runner = pthread_self();
        static_shared_find();
    }
    first = false;
    if (!pthread_equal(runner, pthread_self()))
        die("kernels run in one thread of the program, and this is another");
    uint64_t blocks = (uint64_t)launch.grid.x * launch.grid.y * launch.grid.z;
    uint64_t at = chance_below(blocks), stride;
    do stride = 1 + chance_below(blocks);
    while (std::__gcd(stride, blocks) != 1);
    gridDim = launch.grid;
    blockDim = launch.block;
    block.threads.resize((size_t)launch.block.x * launch.block.y * launch.block.z);
    block.warps.resize((block.threads.size() + warpSize - 1) / warpSize);
    block.launch = &launch;
    for (uint64_t i = 0; i < blocks; i++, at = (at + stride) % blocks) {
        blockIdx = {(unsigned)(at % launch.grid.x), (unsigned)(at / launch.grid.x % launch.grid.y),
                    (unsigned)(at / launch.grid.x / launch.grid.y)};
        // At its exact size, which is 128 bytes at least aligned, for ASan to see what is beyond
        // it.
        void *shared = nullptr;
        if (launch.shared && posix_memalign(&shared, 128, launch.shared))
            die("no memory for shared memory");
        if (shared) memset(shared, 0xFF, launch.shared);
        block.shared = (char *)shared;
        block_run();
        free(shared);
    }
    block.launch = nullptr;
}

bool emu_kernel_memory(const void *at, uintptr_t *start) {
    if (!block.launch) return false;
    const Allocation *a = allocation_find(at, start);
    return a && a->kind == Allocation::DEVICE && (uintptr_t)at < *start + a->bytes;
}

static std::map<const void *, size_t> &shared_limits() {
    static std::map<const void *, size_t> limits;
    return limits;
}
cudaError_t emu_function_attribute(const void *kernel, cudaFuncAttribute attribute, int value) {
    if (device_check()) return cudaErrorNoDevice;
    if (!kernel) return error_keep(cudaErrorInvalidDeviceFunction);
    if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
        value > SHARED_MOST) {
        return refuse(cudaErrorInvalidValue,
                      "cudaFuncSetAttribute: %d bytes of shared memory, the most is %d", value,
                      SHARED_MOST);
    }
    shared_limits()[kernel] = (size_t)value;
    return cudaSuccess;
}
cudaError_t emu_occupancy(int *blocks, int threads, size_t shared) {
    if (threads < 1 || threads > 1024 || shared > SHARED_MOST)
        return error_keep(cudaErrorInvalidValue);
    int by_threads = THREADS_OF_SM / ((threads + warpSize - 1) / warpSize * warpSize);
    *blocks = std::min({32, by_threads, (int)(SHARED_OF_SM / (shared + SHARED_RESERVED))});
    return device_check();
}

bool emu_launch_pointer(const char *name, int argument, const volatile void *pointer) {
    const void *plain = const_cast<const void *>(pointer);
    uintptr_t start;
    if (!plain || allocation_find(plain, &start)) return true;
    refuse(cudaErrorIllegalAddress, "kernel %s: argument %d is %p, which no GPU can follow", name,
           argument, plain);
    return false;
}

void emu_launch_queue(const char *name, const void *kernel, dim3 grid, dim3 threads, size_t shared,
                      cudaStream_t stream, std::function<void()> thread) {
    if (device_check()) return;
    CUstream_st *s = stream_find(stream);
    if (!s) return (void)error_keep(cudaErrorInvalidResourceHandle);
    auto limit = shared_limits().find(kernel);
    size_t shared_most = limit == shared_limits().end()
                             ? (size_t)SHARED_USUAL
                             : std::max<size_t>(limit->second, SHARED_USUAL);
    size_t count = (size_t)threads.x * threads.y * threads.z;
    const char *wrong = nullptr;
    if (!count || threads.x > 1024 || threads.y > 1024 || threads.z > 64 || count > 1024)
        wrong = "block";
    if (!grid.x || !grid.y || !grid.z || grid.x > INT_MAX || grid.y > 65535 || grid.z > 65535)
        wrong = "grid";
    if (shared > shared_most) wrong = "shared memory";
    if (wrong) {
        refuse(shared > shared_most ? cudaErrorInvalidValue : cudaErrorInvalidConfiguration,
               "kernel %s: %s: grid (%u,%u,%u), block (%u,%u,%u), %zu bytes of shared memory of "
               "%zu allowed",
               name, wrong, grid.x, grid.y, grid.z, threads.x, threads.y, threads.z, shared,
               shared_most);
        return;
    }
    name += *name == '('; // of a template: (kernel<arguments>)
    launch_note("%.*s\n", (int)strcspn(name, "<)"), name);
    auto launch = std::make_shared<Launch>(Launch{name, grid, threads, shared, std::move(thread)});
    stream_queue(s, [launch]() {
        launch_run(*launch);
        return DONE;
    });
}

// ----------------------------------------------------------------------------
// cuBLASLt: matrix products

// A product for so many multiprocessors (0: all) is queued.
static void nccl_beside(CUstream_st *stream, int32_t sm_target);

struct cublasLtContext {
    int unused;
};
struct cublasLtMatmulDescOpaque_t {
    cublasComputeType_t compute;
    cudaDataType_t scale;
    int32_t pointer_mode, transpose_a, transpose_b, transpose_c, sm_target;
    uint32_t epilogue;
    void *bias, *aux;
    int64_t bias_stride, aux_ld, aux_stride; // strides from one product of the batch to the next
    int32_t bias_type, aux_type;             // -1: that of D
};
struct cublasLtMatrixLayoutOpaque_t {
    uint32_t type, order;
    uint64_t rows, columns;
    int64_t ld;
    int32_t batch;
    int64_t stride;
};
struct cublasLtMatmulPreferenceOpaque_t {
    uint64_t workspace;
    uint32_t alignments[4]; // of A, B, C, D
    uint32_t reduction;     // schemes that may add up parts of k
};

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
    if (device_check()) return CUBLAS_STATUS_NOT_INITIALIZED;
    *handle = new cublasLtContext();
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
    delete handle;
    return CUBLAS_STATUS_SUCCESS;
}
size_t cublasLtGetVersion(void) { return 130000; }

#define STATUSES(X)                   \
    X(CUBLAS_STATUS_SUCCESS)          \
    X(CUBLAS_STATUS_NOT_INITIALIZED)  \
    X(CUBLAS_STATUS_ALLOC_FAILED)     \
    X(CUBLAS_STATUS_INVALID_VALUE)    \
    X(CUBLAS_STATUS_ARCH_MISMATCH)    \
    X(CUBLAS_STATUS_MAPPING_ERROR)    \
    X(CUBLAS_STATUS_EXECUTION_FAILED) \
    X(CUBLAS_STATUS_INTERNAL_ERROR)   \
    X(CUBLAS_STATUS_NOT_SUPPORTED)    \
    X(CUBLAS_STATUS_LICENSE_ERROR)
const char *cublasLtGetStatusName(cublasStatus_t status) {
    switch (status) {
#define STATUS_NAME(name) \
    case name: return #name;
        STATUSES(STATUS_NAME)
    }
    return "unknown cuBLAS status";
}
const char *cublasLtGetStatusString(cublasStatus_t status) { return cublasLtGetStatusName(status); }

static const char *epilogue_name(uint32_t epilogue) {
    switch (epilogue) {
#define EPILOGUE_NAME(name) \
    case CUBLASLT_EPILOGUE_##name: return #name;
        EPILOGUE_NAME(DEFAULT)
        EPILOGUE_NAME(BIAS)
        EPILOGUE_NAME(GELU)
        EPILOGUE_NAME(GELU_AUX)
        EPILOGUE_NAME(GELU_BIAS)
        EPILOGUE_NAME(GELU_AUX_BIAS)
        EPILOGUE_NAME(DGELU)
        EPILOGUE_NAME(DGELU_BGRAD)
        EPILOGUE_NAME(BGRADA)
        EPILOGUE_NAME(BGRADB)
    }
    return "UNKNOWN";
}

// A refusal says why: on a GPU one has to guess.
static cublasStatus_t refuse_product(cublasStatus_t status, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static cublasStatus_t refuse_product(cublasStatus_t status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fflush(stdout);
    fprintf(stderr, "emu: cublasLt: ");
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
    return status;
}
template <typename T>
static cublasStatus_t attribute_set(T *field, const void *value, size_t bytes) {
    if (!value || bytes != sizeof *field) {
        return refuse_product(CUBLAS_STATUS_INVALID_VALUE, "attribute of %zu bytes, expected %zu",
                              bytes, sizeof *field);
    }
    memcpy(field, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *desc, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
    *desc = new cublasLtMatmulDescOpaque_t();
    (*desc)->compute = compute;
    (*desc)->scale = scale;
    (*desc)->epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    (*desc)->bias_type = (*desc)->aux_type = -1;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
    delete desc;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void *value, size_t bytes) {
    switch (attribute) {
    case CUBLASLT_MATMUL_DESC_COMPUTE_TYPE: return attribute_set(&desc->compute, value, bytes);
    case CUBLASLT_MATMUL_DESC_SCALE_TYPE: return attribute_set(&desc->scale, value, bytes);
    case CUBLASLT_MATMUL_DESC_POINTER_MODE: return attribute_set(&desc->pointer_mode, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSA: return attribute_set(&desc->transpose_a, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB: return attribute_set(&desc->transpose_b, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSC: return attribute_set(&desc->transpose_c, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE: return attribute_set(&desc->epilogue, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: return attribute_set(&desc->bias, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE:
        return attribute_set(&desc->bias_stride, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER: return attribute_set(&desc->aux, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD: return attribute_set(&desc->aux_ld, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE:
        return attribute_set(&desc->aux_stride, value, bytes);
    case CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET: return attribute_set(&desc->sm_target, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE:
        return attribute_set(&desc->aux_type, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE: return attribute_set(&desc->bias_type, value, bytes);
    }
    return refuse_product(CUBLAS_STATUS_INVALID_VALUE,
                          "attribute %d of a product is not known here", (int)attribute);
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType type,
                                          uint64_t rows, uint64_t cols, int64_t ld) {
    *layout = new cublasLtMatrixLayoutOpaque_t{(uint32_t)type, CUBLASLT_ORDER_COL, rows, cols, ld,
                                               1, 0};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
    delete layout;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute,
                                                const void *value, size_t bytes) {
    switch (attribute) {
    case CUBLASLT_MATRIX_LAYOUT_TYPE: return attribute_set(&layout->type, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_ORDER: return attribute_set(&layout->order, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_ROWS: return attribute_set(&layout->rows, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_COLS: return attribute_set(&layout->columns, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_LD: return attribute_set(&layout->ld, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT: return attribute_set(&layout->batch, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
        return attribute_set(&layout->stride, value, bytes);
    }
    return refuse_product(CUBLAS_STATUS_INVALID_VALUE, "attribute %d of a matrix is not known here",
                          (int)attribute);
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference) {
    *preference = new cublasLtMatmulPreferenceOpaque_t{0, {256, 256, 256, 256},
                                                       CUBLASLT_REDUCTION_SCHEME_MASK};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
    delete preference;
    return CUBLAS_STATUS_SUCCESS;
}
// There is one way to compute here: what is preferred comes back as what
// cublasLtMatmul must then be given.
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void *value, size_t bytes) {
    uint32_t ignored;
    switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
        return attribute_set(&preference->workspace, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
        return attribute_set(&preference->alignments[0], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
        return attribute_set(&preference->alignments[1], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
        return attribute_set(&preference->alignments[2], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
        return attribute_set(&preference->alignments[3], value, bytes);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
        return attribute_set(&preference->reduction, value, bytes);
    default: return attribute_set(&ignored, value, bytes);
    }
}

// A product as it was asked for: the descriptors may be changed or destroyed before it runs.
struct Product {
    cublasLtMatmulDescOpaque_t desc;
    cublasLtMatrixLayoutOpaque_t a_layout, b_layout, c_layout, d_layout;
    const void *a, *b, *c;
    void *d;
    void *workspace;
    size_t workspace_bytes;         // of which are used
    const void *alpha_at, *beta_at; // on the device, where POINTER_MODE says so
    float alpha, beta;
    size_t m, n, k;
    size_t panel;       // how many of k are added up at a time
    bool panels_narrow; // and their sums in the type of D
};
// What an algorithm was found for.
struct Algorithm {
    uint64_t m, n, k, workspace;
    uint32_t alignments[4], panel, narrow;
};
static_assert(sizeof(Algorithm) <= sizeof(cublasLtMatmulAlgo_t));
enum { WORKSPACE_WANTED = 64 << 10, ALGORITHMS = 3 }; // they differ in the order of their sums

static bool type_known(uint32_t type) { return type == CUDA_R_32F || type == CUDA_R_16BF; }
static size_t type_bytes(uint32_t type) { return type == CUDA_R_32F ? 4 : 2; }

// Sets m, n, k and says whether NVIDIA's library and this one take the product.
static cublasStatus_t product_check(Product &p) {
    const cublasLtMatmulDescOpaque_t &t = p.desc;
    const cublasLtMatrixLayoutOpaque_t *all[4] = {&p.a_layout, &p.b_layout, &p.c_layout,
                                                  &p.d_layout};
    for (int i = 0; i < 4; i++) {
        const auto &x = *all[i];
        if (!x.rows || !x.columns || x.ld < (int64_t)x.rows || x.batch < 1) {
            return refuse_product(CUBLAS_STATUS_INVALID_VALUE,
                                  "%c is %zu x %zu with leading dimension %zd, batch %d", "ABCD"[i],
                                  (size_t)x.rows, (size_t)x.columns, (ssize_t)x.ld, x.batch);
        }
        if (x.order != CUBLASLT_ORDER_COL || !type_known(x.type)) {
            return refuse_product(CUBLAS_STATUS_NOT_SUPPORTED, "%c has type %u and order %u",
                                  "ABCD"[i], x.type, x.order);
        }
        if (x.batch != p.d_layout.batch)
            return refuse_product(CUBLAS_STATUS_INVALID_VALUE, "batches differ");
    }
    p.m = t.transpose_a ? p.a_layout.columns : p.a_layout.rows;
    p.k = t.transpose_a ? p.a_layout.rows : p.a_layout.columns;
    p.n = t.transpose_b ? p.b_layout.rows : p.b_layout.columns;
    size_t k = t.transpose_b ? p.b_layout.columns : p.b_layout.rows;
    if (k != p.k || p.d_layout.rows != p.m || p.d_layout.columns != p.n || p.c_layout.rows != p.m ||
        p.c_layout.columns != p.n) {
        return refuse_product(CUBLAS_STATUS_INVALID_VALUE,
                              "op(A) %zu x %zu, op(B) %zu x %zu, C %zu x %zu, D %zu x %zu", p.m,
                              p.k, k, p.n, (size_t)p.c_layout.rows, (size_t)p.c_layout.columns,
                              (size_t)p.d_layout.rows, (size_t)p.d_layout.columns);
    }
    bool float_inputs = p.a_layout.type == CUDA_R_32F;
    if (p.a_layout.type != p.b_layout.type || p.c_layout.type != p.d_layout.type ||
        (float_inputs && p.d_layout.type != CUDA_R_32F)) {
        return refuse_product(CUBLAS_STATUS_NOT_SUPPORTED, "types A %u, B %u, C %u, D %u",
                              p.a_layout.type, p.b_layout.type, p.c_layout.type, p.d_layout.type);
    }
    bool compute_known = t.compute == CUBLAS_COMPUTE_32F ||
                         t.compute == CUBLAS_COMPUTE_32F_PEDANTIC ||
                         (t.compute == CUBLAS_COMPUTE_32F_FAST_TF32 && float_inputs);
    if (!compute_known || t.scale != CUDA_R_32F || t.transpose_c || (t.pointer_mode & ~1)) {
        return refuse_product(CUBLAS_STATUS_NOT_SUPPORTED,
                              "compute type %d, scale type %d, transposed C %d, pointer mode %d",
                              t.compute, t.scale, t.transpose_c, t.pointer_mode);
    }
    switch (t.epilogue) {
    case CUBLASLT_EPILOGUE_DEFAULT:
    case CUBLASLT_EPILOGUE_BIAS:
    case CUBLASLT_EPILOGUE_GELU:
    case CUBLASLT_EPILOGUE_GELU_BIAS:
    case CUBLASLT_EPILOGUE_GELU_AUX:
    case CUBLASLT_EPILOGUE_GELU_AUX_BIAS:
    case CUBLASLT_EPILOGUE_DGELU:
    case CUBLASLT_EPILOGUE_DGELU_BGRAD:
    case CUBLASLT_EPILOGUE_BGRADA:
    case CUBLASLT_EPILOGUE_BGRADB: break;
    default: return refuse_product(CUBLAS_STATUS_NOT_SUPPORTED, "epilogue %u", t.epilogue);
    }
    return CUBLAS_STATUS_SUCCESS;
}
static const uint32_t EPILOGUES_BIAS = CUBLASLT_EPILOGUE_BIAS | 16 | CUBLASLT_EPILOGUE_BGRADA |
                                       CUBLASLT_EPILOGUE_BGRADB;
static const uint32_t EPILOGUES_AUX = 128;

// The vectors and matrices of epilogues. Sets the types left to default.
static cublasStatus_t product_epilogue_check(Product &p) {
    cublasLtMatmulDescOpaque_t &t = p.desc;
    if (t.bias_type == -1) t.bias_type = (int32_t)p.d_layout.type;
    if (t.aux_type == -1) t.aux_type = (int32_t)p.d_layout.type;
    if (t.epilogue & EPILOGUES_BIAS) {
        if (!t.bias)
            return refuse_product(CUBLAS_STATUS_INVALID_VALUE, "epilogue %u without a bias pointer",
                                  t.epilogue);
        if (t.bias_type != (int32_t)p.d_layout.type) {
            return refuse_product(CUBLAS_STATUS_NOT_SUPPORTED, "bias type %d, D type %u",
                                  t.bias_type, p.d_layout.type);
        }
    }
    if (t.epilogue & EPILOGUES_AUX) {
        if (!t.aux || t.aux_ld < (int64_t)p.m || t.aux_ld % 8 || t.aux_stride % 8) {
            return refuse_product(CUBLAS_STATUS_INVALID_VALUE,
                                  "auxiliary matrix %p with leading dimension %zd, stride %zd, for "
                                  "%zu rows",
                                  t.aux, (ssize_t)t.aux_ld, (ssize_t)t.aux_stride, p.m);
        }
        if (t.aux_type != (int32_t)p.d_layout.type) {
            return refuse_product(CUBLAS_STATUS_NOT_SUPPORTED, "auxiliary type %d, D type %u",
                                  t.aux_type, p.d_layout.type);
        }
    }
    return CUBLAS_STATUS_SUCCESS;
}

static bool matrix_extent_check(const char *what, const void *at, size_t rows, size_t columns,
                                int64_t ld, int64_t stride, int batch, uint32_t type) {
    size_t elements = (columns - 1) * (size_t)ld + rows;
    const char *first = (const char *)at;
    if (stride < 0) first += stride * (batch - 1) * (int64_t)type_bytes(type);
    elements += (size_t)(stride < 0 ? -stride : stride) * (size_t)(batch - 1);
    return extent_check("cublasLtMatmul", what, first, elements * type_bytes(type), false);
}
static bool layout_extent_check(const char *what, const void *at,
                                const cublasLtMatrixLayoutOpaque_t &x) {
    return matrix_extent_check(what, at, x.rows, x.columns, x.ld, x.stride, x.batch, x.type);
}
static bool product_extents_check(const Product &p) {
    const cublasLtMatmulDescOpaque_t &t = p.desc;
    int batch = p.d_layout.batch;
    if (batch > 1 && !p.d_layout.stride) {
        fprintf(stderr, "emu: cublasLtMatmul: a batch of %d writes over the same D\n", batch);
        return false;
    }
    bool good = layout_extent_check("A", p.a, p.a_layout) &&
                layout_extent_check("B", p.b, p.b_layout) &&
                layout_extent_check("D", p.d, p.d_layout);
    if (good && (p.beta_at || p.beta != 0)) good = layout_extent_check("C", p.c, p.c_layout);
    if (good && (t.epilogue & EPILOGUES_BIAS)) {
        size_t length = t.epilogue & CUBLASLT_EPILOGUE_BGRADB ? p.n : p.m;
        good = matrix_extent_check("bias", t.bias, length, 1, (int64_t)length, t.bias_stride, batch,
                                   (uint32_t)t.bias_type);
    }
    if (good && (t.epilogue & EPILOGUES_AUX)) {
        good = matrix_extent_check("auxiliary matrix", t.aux, p.m, p.n, t.aux_ld, t.aux_stride,
                                   batch, (uint32_t)t.aux_type);
    }
    return good;
}

// The product itself, in float. op(A) is packed in strips of 16 rows and op(B) in strips of 4
// columns, so that a tile of 16 x 4 sums stays in registers while it runs along k.
enum { TILE_M = 16, TILE_N = 4, PANEL_K = 256, PANEL_N = 512 };
typedef float Float8 __attribute__((vector_size(32), may_alias));

#ifdef EMU_ASAN // the panels are ours, and this is where the time goes
#define TILE_BODY static inline __attribute__((always_inline, no_sanitize_address))
#define TILE static __attribute__((no_sanitize_address))
#else
#define TILE_BODY static inline __attribute__((always_inline))
#define TILE static
#endif
TILE_BODY void tile_run(const float *a, const float *b, size_t k, float *out) {
    Float8 sums[TILE_N][2] = {};
    for (size_t i = 0; i < k; i++, a += TILE_M, b += TILE_N) {
        Float8 a0 = *(const Float8 *)a, a1 = *(const Float8 *)(a + 8);
        for (int j = 0; j < TILE_N; j++) {
            sums[j][0] += a0 * b[j];
            sums[j][1] += a1 * b[j];
        }
    }
    for (int j = 0; j < TILE_N; j++) {
        *(Float8 *)(out + j * TILE_M) = sums[j][0];
        *(Float8 *)(out + j * TILE_M + 8) = sums[j][1];
    }
}
TILE void tile_plain(const float *a, const float *b, size_t k, float *out) {
    tile_run(a, b, k, out);
}
#ifdef __x86_64__
__attribute__((target("avx2,fma"))) TILE void tile_avx2(const float *a, const float *b, size_t k,
                                                        float *out) {
    tile_run(a, b, k, out);
}
#endif

static float element_load(uint32_t type, const void *at, size_t i) {
    return type == CUDA_R_32F ? ((const float *)at)[i] : (float)((const __nv_bfloat16 *)at)[i];
}
static void element_store(uint32_t type, void *at, size_t i, float x) {
    if (type == CUDA_R_32F) ((float *)at)[i] = x;
    else ((__nv_bfloat16 *)at)[i] = x;
}

// Rows [row, row + strip) and columns [column, column + k) of a matrix, as floats: `strip` rows of
// one column beside each other. What is beyond the last row is 0.
static void panel_pack(float *panel, size_t strip, const void *from,
                       const cublasLtMatrixLayoutOpaque_t &x, bool transposed, size_t row,
                       size_t rows, size_t column, size_t k) {
    size_t down = transposed ? (size_t)x.ld : 1, right = transposed ? 1 : (size_t)x.ld;
    size_t here = std::min(strip, rows - row);
    for (size_t j = 0; j < k; j++) {
        size_t at = row * down + (column + j) * right;
        for (size_t i = 0; i < here; i++)
            panel[j * strip + i] = element_load(x.type, from, at + i * down);
        for (size_t i = here; i < strip; i++) panel[j * strip + i] = 0;
    }
}

struct alignas(64) Line {
    float at[16];
};
// sums (m,n), columns beside each other = op(A) op(B)
static void product_multiply(float *sums, const Product &p, const void *a, const void *b) {
    void (*tile)(const float *, const float *, size_t, float *) = tile_plain;
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) tile = tile_avx2;
#endif
    std::vector<Line> panel_a(PANEL_K * TILE_M / 16), panel_b(PANEL_K * PANEL_N / 16),
        out(TILE_M * TILE_N / 16);
    std::fill(sums, sums + p.m * p.n, 0.0f);
    for (size_t column = 0; column < p.n; column += PANEL_N) {
        size_t columns = std::min<size_t>(PANEL_N, p.n - column);
        for (size_t at_k = 0; at_k < p.k; at_k += p.panel) {
            size_t k = std::min(p.panel, p.k - at_k);
            // op(B) by columns is its transpose by rows.
            for (size_t j = 0; j < columns; j += TILE_N) {
                panel_pack(panel_b[0].at + j * k, TILE_N, b, p.b_layout, !p.desc.transpose_b,
                           column + j, p.n, at_k, k);
            }
            for (size_t row = 0; row < p.m; row += TILE_M) {
                size_t rows = std::min<size_t>(TILE_M, p.m - row);
                panel_pack(panel_a[0].at, TILE_M, a, p.a_layout, p.desc.transpose_a, row, p.m, at_k,
                           k);
                for (size_t j = 0; j < columns; j += TILE_N) {
                    tile(panel_a[0].at, panel_b[0].at + j * k, k, out[0].at);
                    for (size_t jj = 0; jj < std::min<size_t>(TILE_N, columns - j); jj++) {
                        float *to = sums + (column + j + jj) * p.m + row;
                        for (size_t i = 0; i < rows; i++) {
                            to[i] += out[0].at[jj * TILE_M + i];
                            if (p.panels_narrow) to[i] = (float)(__nv_bfloat16)to[i];
                        }
                    }
                }
            }
        }
    }
}

// GELU with tanh, and its derivative
static const float GELU_SCALE = 0.7978845608028654f; // sqrt(2 / pi)
static float gelu(float x) {
    return 0.5f * x * (1 + tanhf(GELU_SCALE * (x + 0.044715f * x * x * x)));
}
static float gelu_derivative(float x) {
    float t = tanhf(GELU_SCALE * (x + 0.044715f * x * x * x));
    return 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * GELU_SCALE * (1 + 3 * 0.044715f * x * x);
}

static void *batch_at(const void *at, uint32_t type, int64_t stride, int batch) {
    return (char *)at + stride * batch * (int64_t)type_bytes(type);
}

// D of one product of the batch out of its sums; C is read only where beta is not 0.
static void product_finish(const float *sums, const Product &p, float alpha, float beta,
                           const void *c, void *d, int batch) {
    const cublasLtMatmulDescOpaque_t &t = p.desc;
    bool adds_bias = t.epilogue & CUBLASLT_EPILOGUE_BIAS,
         sums_bias = (t.epilogue & CUBLASLT_EPILOGUE_DGELU_BGRAD) == CUBLASLT_EPILOGUE_DGELU_BGRAD;
    bool forward = t.epilogue & CUBLASLT_EPILOGUE_GELU,
         backward = (t.epilogue & CUBLASLT_EPILOGUE_DGELU) == CUBLASLT_EPILOGUE_DGELU;
    void *bias = t.bias ? batch_at(t.bias, (uint32_t)t.bias_type, t.bias_stride, batch) : nullptr;
    void *aux = t.aux ? batch_at(t.aux, (uint32_t)t.aux_type, t.aux_stride, batch) : nullptr;
    std::vector<float> bias_sums(sums_bias ? p.m : 0);
    for (size_t j = 0; j < p.n; j++) {
        for (size_t i = 0; i < p.m; i++) {
            size_t at_aux = j * (size_t)t.aux_ld + i;
            float x = alpha * sums[j * p.m + i];
            if (beta != 0)
                x += beta * element_load(p.c_layout.type, c, j * (size_t)p.c_layout.ld + i);
            if (adds_bias) x += element_load((uint32_t)t.bias_type, bias, i);
            if (forward && (t.epilogue & EPILOGUES_AUX))
                element_store((uint32_t)t.aux_type, aux, at_aux, x);
            if (forward) x = gelu(x);
            if (backward) x *= gelu_derivative(element_load((uint32_t)t.aux_type, aux, at_aux));
            if (sums_bias) bias_sums[i] += x;
            element_store(p.d_layout.type, d, j * (size_t)p.d_layout.ld + i, x);
        }
    }
    for (size_t i = 0; i < bias_sums.size(); i++)
        element_store((uint32_t)t.bias_type, bias, i, bias_sums[i]);
}

// The bias gradients that are sums of an operand over k.
static void product_bias_of_operand(const Product &p, const void *a, const void *b, int batch) {
    const cublasLtMatmulDescOpaque_t &t = p.desc;
    bool of_a = t.epilogue == CUBLASLT_EPILOGUE_BGRADA;
    if (!of_a && t.epilogue != CUBLASLT_EPILOGUE_BGRADB) return;
    const cublasLtMatrixLayoutOpaque_t &x = of_a ? p.a_layout : p.b_layout;
    const void *from = of_a ? a : b;
    bool k_is_rows = of_a ? t.transpose_a : !t.transpose_b;
    void *bias = batch_at(t.bias, (uint32_t)t.bias_type, t.bias_stride, batch);
    for (size_t i = 0; i < (of_a ? p.m : p.n); i++) {
        float sum = 0;
        for (size_t k = 0; k < p.k; k++)
            sum += element_load(x.type, from,
                                k_is_rows ? i * (size_t)x.ld + k : k * (size_t)x.ld + i);
        element_store((uint32_t)t.bias_type, bias, i, sum);
    }
}

static void product_run(const Product &p) {
    float alpha = p.alpha_at ? *(const float *)p.alpha_at : p.alpha;
    float beta = p.beta_at ? *(const float *)p.beta_at : p.beta;
    std::vector<float> sums(p.m * p.n);
    // Nobody else may keep anything there.
    if (p.workspace_bytes) memset(p.workspace, 0xFF, p.workspace_bytes);
    for (int batch = 0; batch < p.d_layout.batch; batch++) {
        const void *a = batch_at(p.a, p.a_layout.type, p.a_layout.stride, batch);
        const void *b = batch_at(p.b, p.b_layout.type, p.b_layout.stride, batch);
        const void *c = batch_at(p.c, p.c_layout.type, p.c_layout.stride, batch);
        product_multiply(sums.data(), p, a, b);
        product_finish(sums.data(), p, alpha, beta, c,
                       batch_at(p.d, p.d_layout.type, p.d_layout.stride, batch), batch);
        product_bias_of_operand(p, a, b, batch);
    }
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(
    cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a_layout,
    cublasLtMatrixLayout_t b_layout, cublasLtMatrixLayout_t c_layout,
    cublasLtMatrixLayout_t d_layout, cublasLtMatmulPreference_t preference, int requested,
    cublasLtMatmulHeuristicResult_t results[], int *returned) {
    *returned = 0;
    if (!handle) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (!desc || !a_layout || !b_layout || !c_layout || !d_layout || !preference || requested < 1)
        return CUBLAS_STATUS_INVALID_VALUE;
    Product p = {};
    p.desc = *desc, p.a_layout = *a_layout, p.b_layout = *b_layout, p.c_layout = *c_layout;
    p.d_layout = *d_layout;
    if (cublasStatus_t status = product_check(p)) return status;
    uint64_t workspace = std::min<uint64_t>(preference->workspace, WORKSPACE_WANTED);
    // Asked for nothing else, it takes many parts, and adds them up in the type of D.
    const uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_INPLACE |
                             CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE;
    bool narrow = p.d_layout.type == CUDA_R_16BF && (preference->reduction & schemes);
    Algorithm found = {p.m, p.n, p.k, workspace, {}, narrow ? TILE_M : PANEL_K, narrow};
    memcpy(found.alignments, preference->alignments, sizeof found.alignments);
    int count = std::min<int>(requested, ALGORITHMS);
    for (*returned = 0; *returned < count; ++*returned, found.panel /= 4) {
        cublasLtMatmulHeuristicResult_t &result = results[*returned] = {};
        memcpy(&result.algo, &found, sizeof found);
        result.workspaceSize = found.workspace;
        result.state = CUBLAS_STATUS_SUCCESS;
        result.wavesCount = 1;
    }
    return CUBLAS_STATUS_SUCCESS;
}

// An algorithm is for the sizes, the alignments and the workspace that were told when it was found.
// NVIDIA's library takes more than that on some days, and fails on others.
static cublasStatus_t product_algorithm_check(Product &p, const cublasLtMatmulAlgo_t *algo,
                                              size_t workspace_bytes) {
    Algorithm found;
    p.panel = PANEL_K;
    if (!algo) return CUBLAS_STATUS_SUCCESS;
    memcpy(&found, algo, sizeof found);
    if (found.m != p.m || found.n != p.n || found.k != p.k) {
        return refuse_product(CUBLAS_STATUS_INVALID_VALUE,
                              "the algorithm was found for %zu x %zu x %zu, not %zu x %zu x %zu",
                              (size_t)found.m, (size_t)found.n, (size_t)found.k, p.m, p.n, p.k);
    }
    const void *const pointers[4] = {p.a, p.b, p.c, p.d};
    for (int i = 0; i < 4; i++) {
        bool unused = i == 2 && !p.beta_at && p.beta == 0;
        if (unused || (uintptr_t)pointers[i] % std::max(found.alignments[i], 1u) == 0) continue;
        return refuse_product(CUBLAS_STATUS_INVALID_VALUE,
                              "%c = %p, but the algorithm was found for an alignment of %u bytes: "
                              "set CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_%c_BYTES",
                              "ABCD"[i], pointers[i], found.alignments[i], "ABCD"[i]);
    }
    if (workspace_bytes < found.workspace) {
        return refuse_product(CUBLAS_STATUS_INVALID_VALUE,
                              "the algorithm needs a workspace of %zu bytes, not %zu",
                              (size_t)found.workspace, workspace_bytes);
    }
    p.workspace_bytes = found.workspace, p.panel = found.panel, p.panels_narrow = found.narrow;
    return CUBLAS_STATUS_SUCCESS;
}

// What EMU_PRODUCT has products of this epilogue end with.
static cublasStatus_t product_asked_status(uint32_t epilogue) {
    const char *asked = getenv("EMU_PRODUCT"), *name = epilogue_name(epilogue);
    size_t n = strlen(name);
    if (!asked || strncmp(asked, name, n) || asked[n] != ' ') return CUBLAS_STATUS_SUCCESS;
    return (cublasStatus_t)atoi(asked + n);
}

// Supported: bfloat16 A and B with bfloat16 or float C and D, or all of them float; any transposes,
// leading dimensions, strided batches; sums in float; the epilogues listed in cublasLt.h but RELU.
cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha,
                              const void *a, cublasLtMatrixLayout_t a_layout, const void *b,
                              cublasLtMatrixLayout_t b_layout, const void *beta, const void *c,
                              cublasLtMatrixLayout_t c_layout, void *d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *algo,
                              void *workspace, size_t workspace_bytes, cudaStream_t stream) {
    if (!handle) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (!desc || !a_layout || !b_layout || !c_layout || !d_layout || !alpha || !beta)
        return CUBLAS_STATUS_INVALID_VALUE;
    Product p = {};
    p.desc = *desc, p.a_layout = *a_layout, p.b_layout = *b_layout, p.c_layout = *c_layout;
    p.d_layout = *d_layout;
    p.a = a, p.b = b, p.c = c, p.d = d, p.workspace = workspace;
    if (desc->pointer_mode == CUBLASLT_POINTER_MODE_DEVICE) {
        p.alpha_at = alpha;
        p.beta_at = beta;
        if (!extent_check("cublasLtMatmul", "alpha", alpha, 4, false))
            return CUBLAS_STATUS_INVALID_VALUE;
        if (!extent_check("cublasLtMatmul", "beta", beta, 4, false))
            return CUBLAS_STATUS_INVALID_VALUE;
    } else {
        p.alpha = *(const float *)alpha;
        p.beta = *(const float *)beta;
    }
    if (cublasStatus_t status = product_check(p)) return status;
    if (cublasStatus_t status = product_epilogue_check(p)) return status;
    if (!product_extents_check(p)) return CUBLAS_STATUS_INVALID_VALUE;
    if (c == d && (p.beta_at || p.beta != 0) &&
        (p.c_layout.ld != p.d_layout.ld || p.c_layout.stride != p.d_layout.stride)) {
        return refuse_product(CUBLAS_STATUS_INVALID_VALUE,
                              "C and D are one matrix, but with two layouts");
    }
    if (cublasStatus_t status = product_algorithm_check(p, algo, workspace_bytes)) return status;
    if (workspace_bytes &&
        !extent_check("cublasLtMatmul", "workspace", workspace, workspace_bytes, true)) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    CUstream_st *s = stream_find(stream);
    if (!s) return CUBLAS_STATUS_INVALID_VALUE;
    if (cublasStatus_t status = product_asked_status(desc->epilogue)) return status;
    launch_note("cublasLtMatmul %s %zu %zu %zu %d\n", epilogue_name(desc->epilogue), p.m, p.n, p.k,
                p.d_layout.batch);
    nccl_beside(s, desc->sm_target);
    stream_queue(s, [p]() {
        product_run(p);
        return DONE;
    });
    return CUBLAS_STATUS_SUCCESS;
}

// ----------------------------------------------------------------------------
// NCCL

#ifdef USE_MPI
static MPI_Comm emu_world = MPI_COMM_WORLD;
void emu_set_world(MPI_Comm world) { emu_world = world; }

// A GPU goes on while its process waits in MPI, and so must the device here: another process
// may wait for what it has to send. These stand before the library's own functions of the
// same names, as MPI provides for.
static int mpi_wait(int count, MPI_Request *requests, MPI_Status *statuses) {
    for (int tries = 0, arrived = 0;;) {
        int error = PMPI_Testall(count, requests, &arrived, statuses);
        if (error || arrived) {
            memory_close();
            return error;
        }
        if (device_step() != DONE) wait_a_little(&tries);
    }
}
static int mpi_wait_one(int error, MPI_Request request) {
    return error ? error : mpi_wait(1, &request, MPI_STATUSES_IGNORE);
}
int MPI_Wait(MPI_Request *request, MPI_Status *status) {
    return mpi_wait(1, request, status == MPI_STATUS_IGNORE ? MPI_STATUSES_IGNORE : status);
}
int MPI_Waitall(int count, MPI_Request *requests, MPI_Status *statuses) {
    return mpi_wait(count, requests, statuses);
}
int MPI_Barrier(MPI_Comm comm) {
    MPI_Request request;
    int error = PMPI_Ibarrier(comm, &request);
    return mpi_wait_one(error, request);
}
int MPI_Bcast(void *buffer, int count, MPI_Datatype type, int root, MPI_Comm comm) {
    MPI_Request request;
    int error = PMPI_Ibcast(buffer, count, type, root, comm, &request);
    return mpi_wait_one(error, request);
}
int MPI_Allreduce(const void *send, void *receive, int count, MPI_Datatype type, MPI_Op op,
                  MPI_Comm comm) {
    MPI_Request request;
    int error = PMPI_Iallreduce(send, receive, count, type, op, comm, &request);
    return mpi_wait_one(error, request);
}
int MPI_Reduce(const void *send, void *receive, int count, MPI_Datatype type, MPI_Op op, int root,
               MPI_Comm comm) {
    MPI_Request request;
    int error = PMPI_Ireduce(send, receive, count, type, op, root, comm, &request);
    return mpi_wait_one(error, request);
}
int MPI_Gather(const void *send, int send_count, MPI_Datatype send_type, void *receive,
               int receive_count, MPI_Datatype receive_type, int root, MPI_Comm comm) {
    MPI_Request request;
    int error = PMPI_Igather(send, send_count, send_type, receive, receive_count, receive_type,
                             root, comm, &request);
    return mpi_wait_one(error, request);
}
int MPI_Allgather(const void *send, int send_count, MPI_Datatype send_type, void *receive,
                  int receive_count, MPI_Datatype receive_type, MPI_Comm comm) {
    MPI_Request request;
    int error = PMPI_Iallgather(send, send_count, send_type, receive, receive_count, receive_type,
                                comm, &request);
    return mpi_wait_one(error, request);
}
#endif

struct ncclComm {
    int ranks, rank, device;
    bool in_order; // its operations begin in the host's order, together with those of others
    bool sharp;    // NVLink SHARP may add up
    uint64_t queued, compared, begun, ended; // how many operations have come how far
    Past last;     // the last operation on each stream
#ifdef USE_MPI
    MPI_Comm calls, data; // the ranks compare their calls over one, and move data over the other
#endif
};
static auto &nccl_comms = *new std::vector<ncclComm *>;
static char nccl_text[400] = "";
static ncclResult_t nccl_refuse(ncclResult_t result, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static ncclResult_t nccl_refuse(ncclResult_t result, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(nccl_text, sizeof nccl_text, format, arguments);
    va_end(arguments);
    fflush(stdout);
    fprintf(stderr, "emu: NCCL: %s\n", nccl_text);
    return result;
}

// What one process did, for EMU_NCCL. The bytes are those that a ring sends, on average over ranks.
static struct {
    bool says;
    uint64_t calls, beside, crowded; // products beside collectives; which leave them no processor
    double bytes;
} nccl_count;
static void nccl_say() {
    fprintf(stderr, "emu: NCCL: %llu calls sent %.0f bytes; of %llu products beside them %llu "
            "leave no multiprocessor\n", (unsigned long long)nccl_count.calls, nccl_count.bytes,
            (unsigned long long)nccl_count.beside, (unsigned long long)nccl_count.crowded);
}

// Whether an operation of comm may still be at work, on another stream, when one begins that is
// queued now on this one: nothing orders the two.
static bool nccl_unordered(const ncclComm *comm, CUstream_st *stream) {
    const Past &past = stream_past(stream);
    for (auto &[other, order] : comm->last) {
        auto known = past.find(other);
        if (known == past.end() || known->second < order) return true;
    }
    return false;
}

static void nccl_beside(CUstream_st *stream, int32_t sm_target) {
    bool beside = std::any_of(nccl_comms.begin(), nccl_comms.end(),
                              [=](const ncclComm *comm) { return nccl_unordered(comm, stream); });
    cudaDeviceProp properties;
    cudaGetDeviceProperties(&properties, device_current);
    bool leaves = sm_target > 0 && sm_target < properties.multiProcessorCount;
    nccl_count.beside += beside;
    nccl_count.crowded += beside && !leaves;
}

const char *ncclGetErrorString(ncclResult_t result) {
    static const char *const texts[] = {
        "no error",         "unhandled cuda error", "unhandled system error", "internal error",
        "invalid argument", "invalid usage",        "remote process exited",  "in progress"};
    return (unsigned)result < sizeof texts / sizeof *texts ? texts[result] : "unknown result code";
}
const char *ncclGetLastError(ncclComm_t) { return nccl_text; }
ncclResult_t ncclGetVersion(int *version) {
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
}
ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    static unsigned made = 0;
    uint64_t time = (uint64_t)std::chrono::steady_clock::now().time_since_epoch().count();
    memset(id, 0, sizeof *id);
    unsigned number = (unsigned)(time ^ time >> 32) * 2654435761u ^ (unsigned)getpid() * 40503u ^
                      ++made << 20;
    memcpy(id->internal, &number, sizeof number);
    snprintf(id->internal + sizeof number, sizeof id->internal - sizeof number, "emu %d %u",
             (int)getpid(), made);
    return ncclSuccess;
}

ncclResult_t ncclCommInitRank(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank) {
    if (!comm || ranks < 1 || rank < 0 || rank >= ranks)
        return nccl_refuse(ncclInvalidArgument, "rank %d of %d", rank, ranks);
    if (device_check()) return ncclUnhandledCudaError;
    ncclComm made = {};
    made.ranks = ranks;
    made.rank = rank;
    made.device = device_current;
#ifdef USE_MPI
    // The split is a blocking call, so all come to it before any enters: what they wait for
    // on the device is done meanwhile.
    unsigned number;
    memcpy(&number, id.internal, sizeof number);
    MPI_Barrier(emu_world);
    if (MPI_Comm_split(emu_world, (int)(number & INT_MAX), rank, &made.calls))
        return ncclSystemError;
    int mpi_ranks, mpi_rank, same = 1;
    MPI_Comm_size(made.calls, &mpi_ranks);
    MPI_Comm_rank(made.calls, &mpi_rank);
    if (mpi_ranks != ranks || mpi_rank != rank) same = 0;
    if (!same) {
        MPI_Comm_free(&made.calls);
        return nccl_refuse(ncclInvalidUsage,
                           "rank %d of %d, but the id brought together %d processes, this one as "
                           "%d",
                           rank, ranks, mpi_ranks, mpi_rank);
    }
    MPI_Comm_dup(made.calls, &made.data);
#else
    (void)id;
    if (ranks > 1)
        return nccl_refuse(ncclInvalidUsage, "%d ranks need MPI here: build with mpicxx -DUSE_MPI",
                           ranks);
#endif
    const char *order = getenv("NCCL_LAUNCH_ORDER_IMPLICIT"), *algorithms = getenv("NCCL_ALGO");
    made.in_order = order && atoi(order) != 0;
    made.sharp = environment_number("EMU_NVLS", 0) && !(algorithms && strstr(algorithms, "^NVLS"));
    *comm = new ncclComm(made);
    nccl_comms.push_back(*comm);
    if (environment_number("EMU_NCCL", 0) && !nccl_count.says) nccl_count.says = !atexit(nccl_say);
    return ncclSuccess;
}
ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t *) {
    return ncclCommInitRank(comm, ranks, id, rank);
}
ncclResult_t ncclCommFinalize(ncclComm_t comm) {
    if (!comm) return ncclInvalidArgument;
    device_run_until([=]() { return comm->ended == comm->queued; });
    return ncclSuccess;
}
ncclResult_t ncclCommDestroy(ncclComm_t comm) {
    if (!comm) return ncclSuccess;
    ncclCommFinalize(comm);
#ifdef USE_MPI
    int finalized;
    MPI_Finalized(&finalized);
    if (!finalized) {
        MPI_Comm_free(&comm->calls);
        MPI_Comm_free(&comm->data);
    }
#endif
    nccl_comms.erase(std::find(nccl_comms.begin(), nccl_comms.end(), comm));
    delete comm;
    return ncclSuccess;
}
// What was queued on it may still need it.
ncclResult_t ncclCommAbort(ncclComm_t) { return ncclSuccess; }
ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t *error) {
    *error = ncclSuccess;
    return ncclSuccess;
}
ncclResult_t ncclCommCount(const ncclComm_t comm, int *count) {
    *count = comm->ranks;
    return ncclSuccess;
}
ncclResult_t ncclCommUserRank(const ncclComm_t comm, int *rank) {
    *rank = comm->rank;
    return ncclSuccess;
}
ncclResult_t ncclCommCuDevice(const ncclComm_t comm, int *device) {
    *device = comm->device;
    return ncclSuccess;
}
static int groups_open;
ncclResult_t ncclGroupStart(void) {
    groups_open++;
    return ncclSuccess;
}
ncclResult_t ncclGroupEnd(void) {
    if (!groups_open) return nccl_refuse(ncclInvalidUsage, "ncclGroupEnd without ncclGroupStart");
    groups_open--;
    return ncclSuccess;
}

static size_t nccl_bytes(ncclDataType_t type) { // 0: not known here
    switch (type) {
    case ncclInt8:
    case ncclUint8: return 1;
    case ncclBfloat16:
    case ncclFloat16: return 2;
    case ncclInt32:
    case ncclUint32:
    case ncclFloat32: return 4;
    case ncclInt64:
    case ncclUint64:
    case ncclFloat64: return 8;
    }
    return 0;
}

// What all ranks must have called alike.
struct Call {
    enum Kind : int { ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, BROADCAST, REDUCE } kind;
    int type, op, root;
    uint64_t count; // of the shard in reduce-scatter and all-gather
    bool operator==(const Call &) const = default;
};
static const char *const call_names[] = {"ncclAllReduce", "ncclReduceScatter", "ncclAllGather",
                                         "ncclBroadcast", "ncclReduce"};
struct Collective {
    Call call;
    const char *send;
    char *receive;
    ncclComm *comm;
    uint64_t turn; // its number among those of its communicator
    enum { QUEUED, COMPARING, COMPARED, MOVING } state = QUEUED;
    std::vector<Call> calls;        // of all ranks
    // What this rank sends, what all of them sent to it; bfloat16 is sent as it is.
    std::vector<char> mine, theirs;
#ifdef USE_MPI
    MPI_Request request;
#endif
};

// to[i] = what the ranks sent for i, reduced in their order from `first` on. W is what T is added
// in; every sum is rounded to T, as on its way around a ring.
template <typename T, typename W>
static void reduce_typed(char *to, const char *from, size_t count, int ranks, int first, int op) {
    for (size_t i = 0; i < count; i++) {
        W sum = (W)((const T *)from)[(size_t)first * count + i];
        for (int rank = 1; rank < ranks; rank++) {
            W x = (W)((const T *)from)[(size_t)((first + rank) % ranks) * count + i];
            if (op == ncclSum || op == ncclAvg) sum = sum + x;
            if (op == ncclMax) sum = sum > x || sum != sum ? sum : x;
            if (op == ncclMin) sum = sum < x || sum != sum ? sum : x;
            if (op == ncclProd) sum = sum * x;
            sum = (W)(T)sum;
        }
        if (op == ncclAvg) sum = sum / (W)ranks;
        ((T *)to)[i] = (T)sum;
    }
}
static void reduce_ranks(char *to, const char *from, size_t count, int ranks, int first, int type,
                         int op) {
    switch (type) {
    case ncclFloat32: return reduce_typed<float, float>(to, from, count, ranks, first, op);
    case ncclFloat64: return reduce_typed<double, double>(to, from, count, ranks, first, op);
    case ncclBfloat16: return reduce_typed<__nv_bfloat16, float>(to, from, count, ranks, first, op);
    case ncclInt32: return reduce_typed<int32_t, int32_t>(to, from, count, ranks, first, op);
    case ncclUint32: return reduce_typed<uint32_t, uint32_t>(to, from, count, ranks, first, op);
    case ncclInt64: return reduce_typed<int64_t, int64_t>(to, from, count, ranks, first, op);
    case ncclUint64: return reduce_typed<uint64_t, uint64_t>(to, from, count, ranks, first, op);
    default: die("NCCL reduces no type %d here", type);
    }
}

// The buffers of one operation: bytes that each rank sends, and that it gets in the end.
static size_t collective_send_bytes(const Collective &c) {
    size_t bytes = c.call.count * nccl_bytes((ncclDataType_t)c.call.type);
    if (c.call.kind == Call::BROADCAST && c.comm->rank != c.call.root) return 0;
    return c.call.kind == Call::REDUCE_SCATTER ? bytes * (size_t)c.comm->ranks : bytes;
}
static size_t collective_receive_bytes(const Collective &c) {
    size_t bytes = c.call.count * nccl_bytes((ncclDataType_t)c.call.type);
    if (c.call.kind == Call::REDUCE && c.comm->rank != c.call.root) return 0;
    return c.call.kind == Call::ALL_GATHER ? bytes * (size_t)c.comm->ranks : bytes;
}

static void collective_compare(const Collective &c) {
    for (int rank = 0; rank < c.comm->ranks; rank++) {
        const Call &a = c.calls[(size_t)rank], &b = c.call;
        if (a == b) continue;
        die("NCCL: operation %llu of a communicator: rank %d calls %s (count %llu, type %d, op %d, "
            "root %d), "
            "but rank %d %s (count %llu, type %d, op %d, root %d)",
            (unsigned long long)c.turn, rank, call_names[a.kind], (unsigned long long)a.count,
            a.type, a.op, a.root, c.comm->rank, call_names[b.kind], (unsigned long long)b.count,
            b.type, b.op, b.root);
    }
}

// Takes what this rank sends as it is now, and sends it.
static void collective_move(Collective &c) {
    size_t ranks = (size_t)c.comm->ranks;
    size_t bytes = c.call.count * nccl_bytes((ncclDataType_t)c.call.type);
    bool broadcast = c.call.kind == Call::BROADCAST;
    bool sends = !broadcast || c.comm->rank == c.call.root;
    bool gets_all = !broadcast && (c.call.kind != Call::REDUCE || c.comm->rank == c.call.root);
    if (sends) c.mine.assign(c.send, c.send + collective_send_bytes(c));
    else c.mine.resize(bytes);
    if (gets_all) c.theirs.resize(bytes * ranks);
    if (ranks == 1) {
        c.theirs = c.mine;
        return;
    }
#ifdef USE_MPI
    int count = (int)bytes;
    MPI_Comm comm = c.comm->data;
    switch (c.call.kind) {
    case Call::ALL_REDUCE:
    case Call::ALL_GATHER:
        MPI_Iallgather(c.mine.data(), count, MPI_BYTE, c.theirs.data(), count, MPI_BYTE, comm,
                       &c.request);
        break;
    case Call::REDUCE_SCATTER:
        MPI_Ialltoall(c.mine.data(), count, MPI_BYTE, c.theirs.data(), count, MPI_BYTE, comm,
                      &c.request);
        break;
    case Call::BROADCAST:
        MPI_Ibcast(c.mine.data(), count, MPI_BYTE, c.call.root, comm, &c.request);
        break;
    case Call::REDUCE:
        MPI_Igather(c.mine.data(), count, MPI_BYTE, c.theirs.data(), count, MPI_BYTE, c.call.root,
                    comm, &c.request);
        break;
    }
#endif
}
static void collective_end(Collective &c) {
    if (c.call.kind == Call::BROADCAST) {
        memcpy(c.receive, c.mine.data(), c.mine.size());
    } else if (c.call.kind == Call::ALL_GATHER) {
        memcpy(c.receive, c.theirs.data(), c.theirs.size());
    } else if (!c.theirs.empty()) {
        std::vector<char> reduced(c.call.count * nccl_bytes((ncclDataType_t)c.call.type));
        // NVLink SHARP: the same on all ranks, another in each run.
        uint64_t run = (uint64_t)environment_number("EMU_SEED", 1) + c.turn;
        bool sharp = c.comm->sharp && c.call.kind == Call::ALL_REDUCE;
        int first = sharp ? (int)(run % (uint64_t)c.comm->ranks) : 0;
        reduce_ranks(reduced.data(), c.theirs.data(), c.call.count, c.comm->ranks, first,
                     c.call.type, c.call.op);
        memcpy(c.receive, reduced.data(), reduced.size());
    }
    c.comm->ended++;
}

static bool collective_arrived([[maybe_unused]] Collective &c) {
    int arrived = 1;
#ifdef USE_MPI
    if (c.comm->ranks > 1) MPI_Test(&c.request, &arrived, MPI_STATUS_IGNORE);
#endif
    return arrived;
}
// Goes as far as it can. MPI wants the collectives of a communicator begun in one order everywhere,
// so each of the two waits for those queued before it, which streams alone would not see to.
static Progress collective_run(Collective &c) {
    if (c.state == Collective::QUEUED) {
        if (c.comm->compared != c.turn) return BLOCKED;
        c.comm->compared++;
        c.calls.resize((size_t)c.comm->ranks, c.call);
#ifdef USE_MPI
        int bytes = sizeof c.call;
        if (c.comm->ranks > 1) {
            MPI_Iallgather(&c.call, bytes, MPI_BYTE, c.calls.data(), bytes, MPI_BYTE, c.comm->calls,
                           &c.request);
        }
#endif
        c.state = Collective::COMPARING;
    }
    if (c.state == Collective::COMPARING) {
        if (!collective_arrived(c)) return PENDING;
        collective_compare(c);
        c.state = Collective::COMPARED;
    }
    if (c.state == Collective::COMPARED) {
        if (c.comm->begun != c.turn) return PENDING;
        c.comm->begun++;
        collective_move(c);
        c.state = Collective::MOVING;
    }
    if (!collective_arrived(c)) return PENDING;
    collective_end(c);
    return DONE;
}

static ncclResult_t collective_queue(Call call, const void *send, void *receive, ncclComm *comm,
                                     cudaStream_t stream) {
    const char *name = call_names[call.kind];
    CUstream_st *s = stream_find(stream);
    if (!comm || !s)
        return nccl_refuse(ncclInvalidArgument, "%s: no such communicator or stream", name);
    size_t bytes = nccl_bytes((ncclDataType_t)call.type);
    bool reduces = call.kind != Call::ALL_GATHER && call.kind != Call::BROADCAST;
    if (!bytes || (reduces && (bytes == 1 || call.type == ncclFloat16)) ||
        (unsigned)call.op > ncclAvg || call.root < 0 || call.root >= comm->ranks) {
        return nccl_refuse(ncclInvalidArgument, "%s: type %d, op %d, root %d", name, call.type,
                           call.op, call.root);
    }
    if (call.count > INT_MAX / bytes)
        return nccl_refuse(ncclInvalidArgument, "%s: %zu elements are too many", name,
                           (size_t)call.count);
    auto c = std::make_shared<Collective>();
    c->call = call;
    c->send = (const char *)send;
    c->receive = (char *)receive;
    c->comm = comm;
    if (!extent_check(name, "send buffer", send, collective_send_bytes(*c), false) ||
        !extent_check(name, "receive buffer", receive, collective_receive_bytes(*c), false)) {
        return nccl_refuse(ncclInvalidArgument, "%s: %zu elements of %zu bytes; see above", name,
                           (size_t)call.count, bytes);
    }
    // GPUs may begin the two in another order each, and then wait for each other for ever.
    for (const ncclComm *other : nccl_comms) {
        if (other == comm || (comm->in_order && other->in_order)) continue;
        if (other->ranks == 1 || comm->ranks == 1 || !nccl_unordered(other, s)) continue;
        return nccl_refuse(ncclInvalidUsage, "%s while an operation of another communicator may be "
                           "at work on another stream: order them by events, or set "
                           "NCCL_LAUNCH_ORDER_IMPLICIT=1", name);
    }
    double ring = (double)(comm->ranks - 1) / comm->ranks;
    size_t all = std::max(collective_send_bytes(*c), collective_receive_bytes(*c));
    nccl_count.calls++;
    nccl_count.bytes += (call.kind == Call::ALL_REDUCE ? 2 : 1) * ring * (double)all;
    c->turn = comm->queued++;
    stream_queue(s, [c]() { return collective_run(*c); });
    comm->last[s->number] = operations_queued;
    return ncclSuccess;
}

ncclResult_t ncclAllReduce(const void *send, void *receive, size_t count, ncclDataType_t type,
                           ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
    return collective_queue({Call::ALL_REDUCE, type, op, 0, count}, send, receive, comm, stream);
}
ncclResult_t ncclReduceScatter(const void *send, void *receive, size_t receive_count,
                               ncclDataType_t type, ncclRedOp_t op, ncclComm_t comm,
                               cudaStream_t stream) {
    return collective_queue({Call::REDUCE_SCATTER, type, op, 0, receive_count}, send, receive, comm,
                            stream);
}
ncclResult_t ncclAllGather(const void *send, void *receive, size_t send_count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream) {
    return collective_queue({Call::ALL_GATHER, type, 0, 0, send_count}, send, receive, comm,
                            stream);
}
ncclResult_t ncclBroadcast(const void *send, void *receive, size_t count, ncclDataType_t type,
                           int root, ncclComm_t comm, cudaStream_t stream) {
    return collective_queue({Call::BROADCAST, type, 0, root, count}, send, receive, comm, stream);
}
ncclResult_t ncclReduce(const void *send, void *receive, size_t count, ncclDataType_t type,
                        ncclRedOp_t op, int root, ncclComm_t comm, cudaStream_t stream) {
    return collective_queue({Call::REDUCE, type, op, root, count}, send, receive, comm, stream);
}
