// See traffic.h. What is here must be compiled without -fsanitize=thread.
#include "traffic.h"
#include "cuda_runtime.h"
#include <map>
#include <vector>

static bool counting, instrumented;
static EmuTraffic traffic;

// A bit for each byte of an allocation; allocations go by the address that they start at.
typedef std::vector<bool> Bytes;
struct Touched {
    Bytes read, written;
};
static auto &touched = *new std::map<uintptr_t, Touched>;

// Marks bytes, and returns how many of them were not marked before.
static uint64_t bytes_mark(Bytes &marks, size_t first, size_t bytes) {
    uint64_t fresh = 0;
    if (marks.size() < first + bytes) marks.resize(first + bytes);
    for (size_t i = first; i < first + bytes; i++) {
        fresh += !marks[i];
        marks[i] = true;
    }
    return fresh;
}

static void count(const volatile void *at, size_t bytes, bool write) {
    uintptr_t start;
    if (!counting || !bytes || !emu_kernel_memory(const_cast<const void *>(at), &start)) return;
    size_t first = (uintptr_t)at - start;
    Touched &t = touched[start];
    (write ? traffic.writes : traffic.reads) += bytes;
    if (write) traffic.written_once += bytes_mark(t.written, first, bytes);
    else traffic.read_once += bytes_mark(t.read, first, bytes);
    traffic.accesses += (bytes + 15) / 16;
    traffic.accesses_16 += bytes / 16;
}

void emu_traffic_begin(void) {
    if (!instrumented) {
        fprintf(stderr, "emu: no accesses to count: compile the program with -fsanitize=thread, "
                        "as dev/emu/traffic.h says\n");
        abort();
    }
    cudaDeviceSynchronize();
    traffic = {};
    touched.clear();
    counting = true;
}

EmuTraffic emu_traffic_end(void) {
    cudaDeviceSynchronize();
    counting = false;
    return traffic;
}

// ----------------------------------------------------------------------------
// what g++ calls for -fsanitize=thread

extern "C" {

void __tsan_init(void) { instrumented = true; }
void __tsan_func_entry(void *) {}
void __tsan_func_exit(void) {}
void __tsan_vptr_update(void **, void *) {}
void __tsan_read_range(void *at, unsigned long bytes) { count(at, bytes, false); }
void __tsan_write_range(void *at, unsigned long bytes) { count(at, bytes, true); }

#define ACCESS(bytes)                                              \
    void __tsan_read##bytes(void *at) { count(at, bytes, false); } \
    void __tsan_write##bytes(void *at) { count(at, bytes, true); }
ACCESS(1) ACCESS(2) ACCESS(4) ACCESS(8) ACCESS(16)

// The host's atomics: whether a local static variable has its value, and the notes of the watch
// (tp_blocks.h). A kernel's are plain reads and writes here.
#define ATOMIC(bits)                                                                           \
    uint##bits##_t __tsan_atomic##bits##_load(const volatile uint##bits##_t *at, int) {        \
        return __atomic_load_n(at, __ATOMIC_SEQ_CST);                                          \
    }                                                                                          \
    void __tsan_atomic##bits##_store(volatile uint##bits##_t *at, uint##bits##_t value, int) { \
        __atomic_store_n(at, value, __ATOMIC_SEQ_CST);                                         \
    }
ATOMIC(8) ATOMIC(16) ATOMIC(32) ATOMIC(64)

// These are called as ever: the linker's --wrap leads the calls here.
void *__real_memcpy(void *to, const void *from, size_t bytes);
void *__real_memmove(void *to, const void *from, size_t bytes);
void *__real_memset(void *to, int value, size_t bytes);
void *__wrap_memcpy(void *to, const void *from, size_t bytes) {
    count(from, bytes, false);
    count(to, bytes, true);
    return __real_memcpy(to, from, bytes);
}
void *__wrap_memmove(void *to, const void *from, size_t bytes) {
    count(from, bytes, false);
    count(to, bytes, true);
    return __real_memmove(to, from, bytes);
}
void *__wrap_memset(void *to, int value, size_t bytes) {
    count(to, bytes, true);
    return __real_memset(to, value, bytes);
}
}
