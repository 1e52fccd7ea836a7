/*
Hopper's own instructions for the stand-in (compute capability 9.0): mbarriers, the tensor copy
engine, products of a warpgroup, named barriers. Included only by programs that use them, after
the trainer or cuda_runtime.h.

A tensor copy and a product are computed from what the hardware gets: the tensor map, the
descriptors with their strides and swizzle, the registers. Nothing of a program's idea of its tiles
is used here, so that a wrong descriptor gives wrong numbers. Both are asynchronous there, so here a
copy runs at a moment drawn between its start and the wait for it, and a product reads its operands
at one drawn between its issue and its wait; half of them as late as that. Accumulators are NaN
meanwhile. A missing wait and a tile that is overwritten too early thus show under some EMU_SEED.

Not here: clusters, multicast, swizzles other than 128 bytes, the proxy fence (nothing is
reordered), setmaxnreg; nor is it noticed if a warpgroup's four warps do not all come to a product.
*/
#ifndef EMU_HOPPER_H
#define EMU_HOPPER_H

#include "cuda_bf16.h"
#include "cuda_runtime.h"
#include <deque>
#include <map>
#include <stdarg.h>
#include <vector>

__attribute__((noreturn, format(printf, 1, 2))) static void emu_hopper_die(const char *format,
                                                                           ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "emu: block %u, thread %u: ", blockIdx.x, threadIdx.x);
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    exit(1);
}

// True once in n times.
static bool emu_hopper_chance(unsigned n) {
    static uint64_t state = 0x9E3779B97F4A7C15u *
                            (uint64_t)(getenv("EMU_SEED")
                                           ? strtoull(getenv("EMU_SEED"), NULL, 10) + 1
                                           : 2);
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state % n == 0;
}

// ----------------------------------------------------------------------------
// shared memory by address: the low 18 bits of a pointer, which are enough to tell 256 KiB apart

enum { EMU_ADDRESS_MASK = (1 << 18) - 1 };
static uint32_t emu_shared_address(const void *p) {
    return (uint32_t)((uintptr_t)p & EMU_ADDRESS_MASK);
}

// Where an address of shared memory is once 128 bytes' swizzle has moved its 16 bytes: bits 4-6 are
// XORed with bits 7-9. `base` is where the block's shared memory starts.
template <typename T> inline T *emu_swizzled(T *base, uint32_t address) {
    T *at = base + ((address - (uintptr_t)base) & EMU_ADDRESS_MASK);
    return (T *)((uintptr_t)at ^ ((uintptr_t)at >> 7 & 7) << 4);
}

// ----------------------------------------------------------------------------
// tensor maps: the part of the driver's interface that makes one

typedef uint32_t cuuint32_t;
typedef uint64_t cuuint64_t;
typedef int CUresult;
enum { CUDA_SUCCESS = 0, CUDA_ERROR_INVALID_VALUE = 1 };
enum CUtensorMapDataType { CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 = 9 };
enum CUtensorMapInterleave { CU_TENSOR_MAP_INTERLEAVE_NONE = 0 };
enum CUtensorMapSwizzle { CU_TENSOR_MAP_SWIZZLE_NONE = 0, CU_TENSOR_MAP_SWIZZLE_128B = 3 };
enum CUtensorMapL2promotion {
    CU_TENSOR_MAP_L2_PROMOTION_NONE = 0,
    CU_TENSOR_MAP_L2_PROMOTION_L2_128B = 2
};
enum CUtensorMapFloatOOBfill { CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE = 0 };

struct alignas(64) CUtensorMap {
    const char *base;
    uint64_t dims[5], strides[5]; // in elements, in bytes
    uint32_t box[5], rank, swizzle;
};
static_assert(sizeof(CUtensorMap) == 128);

static CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType, cuuint32_t rank,
                                       void *base, const cuuint64_t *dims,
                                       const cuuint64_t *strides, const cuuint32_t *box,
                                       const cuuint32_t *element_strides, CUtensorMapInterleave,
                                       CUtensorMapSwizzle swizzle, CUtensorMapL2promotion,
                                       CUtensorMapFloatOOBfill) {
    bool good = rank >= 1 && rank <= 5 && (uintptr_t)base % 16 == 0 && (uintptr_t)map % 64 == 0;
    *map = CUtensorMap{(const char *)base, {}, {2}, {}, rank, (uint32_t)swizzle};
    for (cuuint32_t i = 0; good && i < rank; i++) {
        map->dims[i] = dims[i], map->box[i] = box[i];
        if (i) map->strides[i] = strides[i - 1];
        good = dims[i] > 0 && dims[i] <= 1ull << 32 && box[i] > 0 && box[i] <= 256 &&
               element_strides[i] == 1 &&
               (!i || (map->strides[i] % 16 == 0 && map->strides[i] < 1ull << 40));
    }
    good = good && 2 * box[0] % 16 == 0 && (!swizzle || 2 * box[0] <= 128);
    return good ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

enum cudaDriverEntryPointQueryResult {
    cudaDriverEntryPointSuccess = 0,
    cudaDriverEntryPointSymbolNotFound = 1
};
enum { cudaEnableDefault = 0 };
static cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned,
                                                    unsigned long long,
                                                    cudaDriverEntryPointQueryResult *found) {
    bool known = !strcmp(symbol, "cuTensorMapEncodeTiled");
    *function = known ? (void *)cuTensorMapEncodeTiled : nullptr;
    *found = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}

// ----------------------------------------------------------------------------
// mbarriers and copies. A phase ends when no arrival and no byte is awaited.

static void emu_products_some();

struct EmuBarrier {
    uint16_t arrivals, awaited;
    int32_t bytes : 24;
    uint32_t phase : 1, made : 7;
};
enum { EMU_BARRIER_MADE = 0x5A };
static_assert(sizeof(EmuBarrier) == sizeof(uint64_t));

struct EmuCopy {
    CUtensorMap map;
    char *to;
    int at[5];
    uint64_t *barrier;
    bool late; // not before somebody waits at its barrier
};
static std::vector<EmuCopy> emu_copies; // started, of the block that runs

static EmuBarrier &emu_barrier(uint64_t *at) {
    EmuBarrier &b = *(EmuBarrier *)at;
    if ((uintptr_t)at % 8 || b.made != EMU_BARRIER_MADE)
        emu_hopper_die("an mbarrier that was not initialised");
    return b;
}
static void emu_barrier_turn(EmuBarrier &b) {
    if (b.awaited || b.bytes) return;
    b.phase ^= 1;
    b.awaited = b.arrivals;
}
static void emu_barrier_init(uint64_t *at, int arrivals) {
    if (!emu_copies.empty())
        emu_hopper_die("the block before this one ended with %zu copies under way",
                       emu_copies.size());
    *(EmuBarrier *)at = {(uint16_t)arrivals, (uint16_t)arrivals, 0, 0, EMU_BARRIER_MADE};
}
static void emu_barrier_arrive(uint64_t *at, int bytes) {
    EmuBarrier &b = emu_barrier(at);
    emu_products_some();
    if (!b.awaited) emu_hopper_die("more arrivals at an mbarrier than its phase awaits");
    b.bytes += bytes;
    b.awaited--;
    emu_barrier_turn(b);
}

// What lies outside of the tensor arrives as zeros, and counts as bytes as well.
static void emu_copy_run(const EmuCopy &c) {
    char *base = (char *)emu_shared_dynamic();
    uint32_t n = 1;
    for (uint32_t d = 0; d < c.map.rank; d++) n *= c.map.box[d];
    for (uint32_t i = 0; i < n; i++) {
        const char *from = c.map.base;
        bool there = true;
        for (uint32_t d = 0, rest = i; d < c.map.rank; rest /= c.map.box[d++]) {
            int64_t x = c.at[d] + (int64_t)(rest % c.map.box[d]);
            there = there && x >= 0 && (uint64_t)x < c.map.dims[d];
            from += x * (int64_t)c.map.strides[d];
        }
        char *to = c.map.swizzle ? emu_swizzled(base, emu_shared_address(c.to + 2 * i))
                                 : c.to + 2 * i;
        if (there) memcpy(to, from, 2);
        else memset(to, 0, 2);
    }
    EmuBarrier &b = emu_barrier(c.barrier);
    b.bytes -= (int)(2 * n);
    emu_barrier_turn(b);
}

// Runs copies that are under way until chance stops it, late ones only if they are awaited at this
// barrier.
static void emu_copies_some(const uint64_t *awaited) {
    for (size_t i = 0; i < emu_copies.size();) {
        EmuCopy c = emu_copies[i];
        if ((c.late && c.barrier != awaited) || emu_hopper_chance(2)) {
            i++;
            continue;
        }
        emu_copies.erase(emu_copies.begin() + (ptrdiff_t)i);
        emu_copy_run(c);
    }
}
static void emu_copy_start(void *to, uint64_t *barrier, const CUtensorMap *map, int x, int y, int z,
                           int w) {
    if ((uintptr_t)to % 128)
        emu_hopper_die("a tensor copy to an address that is not a multiple of 128");
    emu_copies.push_back({*map, (char *)to, {x, y, z, w}, barrier, emu_hopper_chance(2)});
    emu_copies_some(nullptr);
}

// Waits for the phase of this parity to end. The one before it has ended, as far as a barrier
// knows.
static void emu_barrier_wait(uint64_t *at, unsigned parity) {
    emu_products_some();
    for (int tries = 0; emu_barrier(at).phase == parity; tries++) {
        if (tries == 1 << 16)
            emu_hopper_die("deadlock: waits at an mbarrier for %d arrivals and %d bytes",
                           emu_barrier(at).awaited, emu_barrier(at).bytes);
        emu_copies_some(at);
        __nanosleep(1);
    }
}

// bar.sync and bar.arrive: the barrier of number `id` lets those that wait go on when `threads`
// have come.
static void emu_named_barrier(int id, int threads, bool wait) {
    static int come[16];
    static unsigned times[16];
    emu_products_some();
    unsigned before = times[id];
    if (++come[id] == threads) come[id] = 0, times[id]++;
    for (int tries = 0; wait && times[id] == before; tries++) {
        if (tries == 1 << 16)
            emu_hopper_die("deadlock: waits at barrier %d for %d threads more", id,
                           threads - come[id]);
        emu_copies_some(nullptr);
        __nanosleep(1);
    }
}

// ----------------------------------------------------------------------------
// products of a warpgroup: wgmma.mma_async, m64nNk16, bf16 to float
//
// Each thread computes what it holds. Until its wait the sums are kept aside and the
// registers that get them are NaN.

struct EmuProduct {
    // n / 2 of them: [4i + 2h + j] is row g + 8h of this warp's 16, column 8i + 2t + j.
    float *sums;
    int n;
    uint64_t a, b; // descriptors
    // A in registers: those of lanes t = 0..3 of this row; null if A is in shared memory.
    const uint32_t *of[4];
    bool b_transposed; // N is contiguous in shared memory, not K
    int group;         // committed as the group of this number
    bool late, done;   // late: not before the wait
};
struct EmuProducts {
    std::deque<EmuProduct> issued;
    std::map<float *, std::vector<float>> sums; // kept aside
    int groups;                                 // committed
    bool fenced;                                // since the last wait
};
static EmuProducts emu_products[1024];

static float emu_bf16_at(const char *at) {
    uint16_t bits;
    memcpy(&bits, at, 2);
    return __uint_as_float((uint32_t)bits << 16);
}

// An operand in shared memory, by its descriptor. With 128 bytes' swizzle a pattern is 8 lines of
// 128 bytes. If K is contiguous a line is a row's, where rows count along M or N, and patterns of 8
// rows lie the stride offset apart. If M or N is contiguous a line is 64 rows of one k; patterns of
// 8 k lie the stride offset apart, those of 64 rows the leading offset.
struct EmuOperand {
    const char *base = (const char *)emu_shared_dynamic();
    uint32_t start, leading, stride;
    bool transposed;
    EmuOperand(uint64_t descriptor, bool transposed)
        : start((uint32_t)(descriptor & 0x3FFF) << 4),
          leading((uint32_t)(descriptor >> 16 & 0x3FFF) << 4),
          stride((uint32_t)(descriptor >> 32 & 0x3FFF) << 4), transposed(transposed) {
        if (descriptor >> 62 != 1)
            emu_hopper_die("a descriptor whose swizzle is not that of 128 bytes");
        if ((start & 0x380) || (descriptor >> 49 & 7))
            emu_hopper_die("a descriptor of what is not aligned to 1024 bytes");
    }
    float at(int row, int k) const {
        uint32_t offset = transposed
                              ? row / 64 * leading + k / 8 * stride + k % 8 * 128 + row % 64 * 2
                              : row / 8 * stride + row % 8 * 128 + k * 2;
        return emu_bf16_at(emu_swizzled(base, start + offset));
    }
};

static void emu_product_run(EmuProduct &p) {
    float *sums = emu_products[threadIdx.x].sums[p.sums].data();
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    // a_shared is not used if A is in registers.
    EmuOperand a_shared(p.of[0] ? p.b : p.a, false), b(p.b, p.b_transposed);
    for (int half = 0; half < 2; half++) {
        float a[16];
        for (int k = 0; k < 16; k++) {
            if (p.of[0])
                a[k] = emu_bf16_at((const char *)&p.of[k % 8 / 2][half + k / 8 * 2] + k % 2 * 2);
            else a[k] = a_shared.at(16 * warp + lane / 4 + 8 * half, k);
        }
        for (int i = 0; i < p.n / 4; i++) {
            float &sum = sums[i / 2 * 4 + 2 * half + i % 2];
            for (int k = 0; k < 16; k++) sum += a[k] * b.at(i / 2 * 8 + lane % 4 * 2 + i % 2, k);
        }
    }
    p.done = true;
}
// Runs products that this thread has issued, in their order, until chance stops it.
static void emu_products_some() {
    for (EmuProduct &p : emu_products[threadIdx.x].issued) {
        if (p.done) continue;
        if (p.late || !emu_hopper_chance(3)) return;
        emu_product_run(p);
    }
}

static void emu_products_fence() { emu_products[threadIdx.x].fenced = true; }

// sums (64,n) = a b, or += if `add`; a is a descriptor, or if a_registers is not null
// four registers of each thread.
static void emu_product_issue(float *sums, int n, uint64_t a, const uint32_t *a_registers,
                              uint64_t b, bool b_transposed, bool add) {
    EmuProducts &all = emu_products[threadIdx.x];
    const uint32_t *const *lanes = (const uint32_t *const *)emu_warp_share(&a_registers,
                                                                           sizeof a_registers);
    EmuProduct p = {sums, n, a, b, {}, b_transposed, -1, emu_hopper_chance(2), false};
    for (int t = 0; t < 4; t++) p.of[t] = lanes[threadIdx.x % 32 / 4 * 4 + t];
    if (!all.sums.count(sums)) {
        if (!all.fenced)
            emu_hopper_die("a product without wgmma.fence since its registers were last in use");
        all.sums[sums] = std::vector<float>(sums, sums + n / 2);
        memset(sums, 0xFF, n / 2 * sizeof *sums);
    }
    if (!add) { // what is issued earlier on these sums has to be done with them
        for (EmuProduct &q : all.issued) if (!q.done) emu_product_run(q);
        all.sums[sums].assign(n / 2, 0);
    }
    all.issued.push_back(p);
    emu_products_some();
}

static void emu_products_commit() {
    EmuProducts &all = emu_products[threadIdx.x];
    for (EmuProduct &p : all.issued) if (p.group < 0) p.group = all.groups;
    all.groups++;
    emu_products_some();
}

// Waits until at most `pending` groups are under way. A warp goes on together, so that no lane's
// registers change while its neighbours still read them.
static void emu_products_wait(int pending) {
    EmuProducts &all = emu_products[threadIdx.x];
    while (!all.issued.empty() && all.issued.front().group >= 0 &&
           all.issued.front().group < all.groups - pending) {
        if (!all.issued.front().done) emu_product_run(all.issued.front());
        all.issued.pop_front();
    }
    for (auto it = all.sums.begin(); it != all.sums.end();) {
        bool busy = false;
        for (const EmuProduct &p : all.issued) busy = busy || p.sums == it->first;
        if (!busy) memcpy(it->first, it->second.data(), it->second.size() * sizeof(float));
        it = busy ? std::next(it) : all.sums.erase(it);
    }
    all.fenced = false;
    __syncwarp();
}

#endif
