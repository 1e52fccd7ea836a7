/*
Attention for Hopper GPUs (sm_90a only): what attention_forward and attention_backward of the
trainer compute, with the instructions of that generation. An experiment beside the trainer, not a
part of it: never run on a GPU as of 2026-11-21; compiled for sm_90a, and run on the stand-in
(dev/emu/hopper.h). attention_hopper.cu checks it and times it beside the trainer's.

The manner is FlashAttention-3's (arXiv 2407.08608):

  - One warp, the producer, has the tensor copy engine bring tiles of K and V into a ring in shared
    memory. Two warpgroups, the consumers, own 64 queries each and multiply straight from there
    (wgmma), so that they spend no instruction on loads.
  - The scores of the next tile of keys and P V of this one are issued together: the tensor cores
    are still at P V while the next exponentials are made.
  - The consumers issue by turns, so that one makes exponentials while the other's products run.
  - Blocks stay, one on each multiprocessor, and walk over tiles of queries; the producer is
    ahead of the consumers by a ring.

The backward pass has the same form, but is not summed by atomics as there: as in the trainer, one
kernel owns keys and one owns queries, so that every run gives the same bits.

bf16 and causal; heads of size 64, and forward also 128. Included after the trainer, whose names it
uses.
*/
#ifdef CUDA_EMULATED
#include "../../emu/hopper.h"
#else
#include <cuda.h> // for the types of tensor maps; the program is not linked with the driver
#endif

// ----------------------------------------------------------------------------
// instructions: each stands in one function, and beside it what it does on the stand-in

// mbarriers: a phase ends when `arrivals` threads have arrived and all bytes that they announced
// are there. Phases count from 0; barrier_wait waits for one by its lowest bit, and returns at once
// for the phase "before the first".

__device__ __forceinline__ void barrier_init(uint64_t *barrier, int arrivals) {
#ifndef CUDA_EMULATED
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n"
                 :: "r"(shared_address(barrier)), "r"(arrivals) : "memory");
#else
    emu_barrier_init(barrier, arrivals);
#endif
}

// The copy engine has to see what this thread wrote to shared memory.
__device__ __forceinline__ void copy_engine_fence() {
#ifndef CUDA_EMULATED
    asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
#endif
}

__device__ __forceinline__ void barrier_arrive(uint64_t *barrier) {
#ifndef CUDA_EMULATED
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n"
                 :: "r"(shared_address(barrier)) : "memory");
#else
    emu_barrier_arrive(barrier, 0);
#endif
}

// Arrives, and announces bytes that copies will bring.
__device__ __forceinline__ void barrier_expect(uint64_t *barrier, int bytes) {
#ifndef CUDA_EMULATED
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n"
                 :: "r"(shared_address(barrier)), "r"(bytes) : "memory");
#else
    emu_barrier_arrive(barrier, bytes);
#endif
}

__device__ __forceinline__ void barrier_wait(uint64_t *barrier, unsigned phase) {
#ifndef CUDA_EMULATED
    int over;
    do {
        asm volatile("{\n.reg .pred over;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n"
                     "selp.s32 %0, 1, 0, over;\n}\n"
                     : "=r"(over) : "r"(shared_address(barrier)), "r"(phase & 1) : "memory");
    } while (!over);
#else
    emu_barrier_wait(barrier, phase & 1);
#endif
}

// Starts to copy the box at these coordinates to shared memory; the barrier counts
// its bytes when they are there.
__device__ __forceinline__ void box_start(real *to, uint64_t *barrier, const CUtensorMap *map,
                                          int x, int y, int z, int w) {
#ifndef CUDA_EMULATED
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3, %4, %5}], [%6];\n"
                 :: "r"(shared_address(to)), "l"(map), "r"(x), "r"(y), "r"(z), "r"(w),
                    "r"(shared_address(barrier)) : "memory");
#else
    emu_copy_start(to, barrier, map, x, y, z, w);
#endif
}

// Arrives when all copies that this thread has begun by copy_start are there.
__device__ __forceinline__ void barrier_arrive_after_copies(uint64_t *barrier) {
#ifndef CUDA_EMULATED
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];\n"
                 :: "r"(shared_address(barrier)) : "memory");
#else
    copies_wait();
    emu_barrier_arrive(barrier, 0);
#endif
}

// Hardware barrier `id` among `threads` threads, of which some wait and others
// only tell that they were here.
__device__ __forceinline__ void named_barrier_wait(int id, int threads) {
#ifndef CUDA_EMULATED
    asm volatile("bar.sync %0, %1;\n" :: "r"(id), "r"(threads) : "memory");
#else
    emu_named_barrier(id, threads, true);
#endif
}
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
#ifndef CUDA_EMULATED
    asm volatile("bar.arrive %0, %1;\n" :: "r"(id), "r"(threads) : "memory");
#else
    emu_named_barrier(id, threads, false);
#endif
}

// From here on each thread of this warpgroup has N registers; what is given back, others may take.
template <int N> __device__ __forceinline__ void registers_give_back() {
#ifndef CUDA_EMULATED
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" :: "n"(N));
#endif
}
template <int N> __device__ __forceinline__ void registers_take() {
#ifndef CUDA_EMULATED
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" :: "n"(N));
#endif
}

// --------------------------------------
// products of a warpgroup: C (64,N) = A (64,16) · B (16,N), which run on while the threads go on
//
// Warp w of the four has rows 16w .. 16w+15; with g = lane / 4 and t = lane % 4 a lane holds the
// same of them as with mma (see there): c[4n + 2h + i] is row 16w + g + 8h, column 8n + 2t + i, and
// a[0..3] in registers are as mma's.
//
// products_fence comes before the first product after registers were written otherwise;
// products_commit makes a group of what was issued; products_wait<PENDING> returns when all groups
// but the latest PENDING are done.

// A matrix in shared memory in lines of 128 bytes (64 elements), 16-byte packs of a line permuted
// as the copy engine does it (SWIZZLE_128B: pack p of line l lies at p ^ l % 8), starting at a
// multiple of 1024 bytes. Bits 0-13: address / 16; 16-29: "leading" offset / 16, which has no
// meaning here, since no product is wider than a line; 32-45: "stride" offset / 16, from 8 lines to
// the next 8; 62-63: 1 says 128-byte swizzle. What lies n elements further is n / 8 more.
__device__ __forceinline__ uint64_t matrix_descriptor(const real *matrix) {
#ifndef CUDA_EMULATED
    uint32_t address = shared_address(matrix);
#else
    uint32_t address = emu_shared_address(matrix);
#endif
    return (uint64_t)1 << 62 | (uint64_t)(1024 / 16) << 32 | (uint64_t)(1024 / 16) << 16 |
           (address & 0x3FFFF) / 16;
}

#define F4(c, i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define F32(c, i)                                                                      \
    F4(c, i), F4(c, i + 4), F4(c, i + 8), F4(c, i + 12), F4(c, i + 16), F4(c, i + 20), \
        F4(c, i + 24), F4(c, i + 28)
#define R0_31                                                \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
    "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define R32_63                                                         \
    "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
    "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"

// c (64,128) = a b, or += if `add`, for a (64,16) with lines of rows and b (16,128) with
// lines of columns: both read along k
__device__ __forceinline__ void product_64x128(float (&c)[64], uint64_t a, uint64_t b, int add) {
#ifndef CUDA_EMULATED
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" R0_31 "," R32_63
                 "}, %64, %65, add, 1, 1, 0, 0;\n}\n"
                 : F32(c, 0), F32(c, 32)
                 : "l"(a), "l"(b), "r"(add)
                 : "memory");
#else
    emu_product_issue(c, 128, a, NULL, b, false, add);
#endif
}

// c (64,64) += a b, for a (64,16) in registers and b (16,64) with a line for each k
__device__ __forceinline__ void product_64x64(float *c, const uint32_t (&a)[4], uint64_t b) {
#ifndef CUDA_EMULATED
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" R0_31
                 "}, {%32,%33,%34,%35}, %36, 1, 1, 1, 1;\n"
                 : F32(c, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)
                 : "memory");
#else
    emu_product_issue(c, 64, 0, a, b, true, true);
#endif
}

__device__ __forceinline__ void products_fence() {
#ifndef CUDA_EMULATED
    asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
#else
    emu_products_fence();
#endif
}
__device__ __forceinline__ void products_commit() {
#ifndef CUDA_EMULATED
    asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
#else
    emu_products_commit();
#endif
}
// `c` are sums that are complete then; the compiler may not read them earlier.
template <int PENDING, int N> __device__ __forceinline__ void products_wait(float (&c)[N]) {
#ifndef CUDA_EMULATED
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" :: "n"(PENDING) : "memory");
    #pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(c[i]) :: "memory");
#else
    (void)c;
    emu_products_wait(PENDING);
#endif
}

// ----------------------------------------------------------------------------
// sizes, shared memory, the way through the work
//
// All kernels here have the same form. A block owns rows of N matrices (forward: Q),
// which stay in shared memory, and takes in steps the rows of two others (forward: K and
// V) that those see or are seen by.

template <int D> struct Hopper {
    enum {
        CONSUMERS = 2,        // warpgroups
        OWN = 64 * CONSUMERS, // rows that a block owns at a time
        STEP = 128,           // rows that it takes at a time
        SLOTS = 512 / D,      // of the ring, a step of one matrix each: 128 KiB
        BOX = 64,             // rows and columns that the engine copies at once: 64 x 128 bytes
        THREADS = 128 * (CONSUMERS + 1),
        REGISTERS = 65536 / THREADS / 8 * 8, // of a thread when a block begins
        PRODUCER_REGISTERS = 40,
        CONSUMER_REGISTERS = 232
    };
    static_assert(PRODUCER_REGISTERS + CONSUMERS * CONSUMER_REGISTERS <=
                      (CONSUMERS + 1) * REGISTERS,
                  "nobody could take that");
};

// Tiles of D columns lie as D / 64 matrices of 64 columns, one after the other.
template <int D, int N> struct alignas(1024) HopperShared {
    using H = Hopper<D>;
    real own[N][H::OWN * D], ring[H::SLOTS][H::STEP * D];
    // A number for each row in the ring: see the backward pass.
    float beside[N > 1 ? H::SLOTS : 1][H::STEP];
    uint64_t own_full, own_empty, full[H::SLOTS], empty[H::SLOTS]; // mbarriers
};

// The block's dynamic shared memory, with its mbarriers ready. `arrivals` says how often
// the producer arrives for a step.
template <int D, int N>
__device__ __forceinline__ HopperShared<D, N> &hopper_begin(char *memory, int arrivals) {
    using H = Hopper<D>;
    memory += -(uintptr_t)memory % alignof(HopperShared<D, N>);
    HopperShared<D, N> &shared = *reinterpret_cast<HopperShared<D, N> *>(memory);
    if (threadIdx.x == 0) {
        barrier_init(&shared.own_full, 1);
        barrier_init(&shared.own_empty, 4 * H::CONSUMERS); // once for each warp
        for (int i = 0; i < H::SLOTS; i++) {
            barrier_init(&shared.full[i], arrivals);
            barrier_init(&shared.empty[i], 4 * H::CONSUMERS);
        }
        copy_engine_fence();
    }
    __syncthreads();
    return shared;
}

// Calls f(b, h, first) for the tiles of rows that this block owns one after the other, in all of
// its threads alike. With tile i comes the i-th from the end: both together see as much as any
// other such pair, so that blocks have equal work.
template <int OWN, typename F> __device__ __forceinline__ void each_tile(AttentionShape s, F f) {
    int tiles = ceil_div<int>(s.T, OWN), pairs = ceil_div(tiles, 2);
    #pragma unroll 1
    for (int i = 2 * blockIdx.x; i < 2 * pairs * s.heads * s.B;
         i += i % 2 ? 2 * gridDim.x - 1 : 1) {
        int pair = i / 2 % pairs, head = i / 2 / pairs, tile = i % 2 ? pair : tiles - 1 - pair;
        if (i % 2 && tile == tiles - 1 - pair) continue; // the one in the middle
        f(head / s.heads, head % s.heads, tile * OWN);
    }
}

// The steps for rows first .. first+OWN-1: those of keys up to them if they are queries,
// of queries from them on if KEYS.
struct StepRange { int begin, end; };
template <int D, bool KEYS> __device__ __forceinline__ StepRange tile_steps(int first, int T) {
    using H = Hopper<D>;
    if (KEYS) return {first / H::STEP, ceil_div<int>(T, H::STEP)};
    return {0, ceil_div<int>(min(first + H::OWN, T), H::STEP)};
}

// ----------------------------------------------------------------------------
// the producer: one warp
//
// The ring carries K0 V0 K1 V1 .. for every tile. `at` counts these since the start of the kernel,
// and says all that both sides need to know: the slot, and how often it was filled before.

// One of the matrices in a tensor, for all heads: a map of (B,T,y,HS), and the y of head 0
struct Source { const CUtensorMap *map; int y; };

// tile (ROWS,D) = rows first .. of one head; rows from T on are zeros.
template <int ROWS, int D> __device__ __forceinline__ void tile_bring(real *tile, uint64_t *full,
                                                                      Source source, int b, int h,
                                                                      int first) {
    constexpr int BOX = Hopper<D>::BOX;
    for (int column = 0; column < D; column += BOX) {
        for (int row = 0; row < ROWS; row += BOX) {
            box_start(tile + column * ROWS + row * BOX, full, source.map, column, source.y + h,
                      first + row, b);
        }
    }
}

// `beside`, if not null, are two arrays (B,heads,T) of numbers that come with the
// rows of each matrix in the ring.
template <int D, int N, bool KEYS>
__device__ __forceinline__ void hopper_produce(HopperShared<D, N> &shared, const Source (&own)[N],
                                               const Source (&ring)[2],
                                               const float *const (&beside)[2], AttentionShape s) {
    using H = Hopper<D>;
    int at = 0, tiles = 0, lane = threadIdx.x % WARP;
    each_tile<H::OWN>(s, [&](int b, int h, int first) {
        StepRange steps = tile_steps<D, KEYS>(first, s.T);
        auto bring = [&](int i, int step) {
            int slot = at % H::SLOTS;
            // Until it was emptied as often as it was filled.
            barrier_wait(&shared.empty[slot], at / H::SLOTS + 1);
            if (lane == 0) {
                barrier_expect(&shared.full[slot], sizeof shared.ring[slot]);
                tile_bring<H::STEP, D>(shared.ring[slot], &shared.full[slot], ring[i], b, h,
                                       step * H::STEP);
            }
            if (KEYS) {
                const float *from = beside[i] + ((size_t)b * s.heads + h) * s.T;
                for (int n = lane, row = step * H::STEP + lane; n < H::STEP;
                     n += WARP, row += WARP) {
                    copy_start<4>(&shared.beside[slot][n], from + row, row < s.T);
                }
                barrier_arrive_after_copies(&shared.full[slot]);
            }
            __syncwarp(); // no lane may wait two turns of the ring behind lane 0: a parity repeats
            at++;
        };
        bring(0, steps.begin); // before the tile's own rows, whose place may still be in use
        barrier_wait(&shared.own_empty, tiles++ + 1);
        if (lane == 0) {
            barrier_expect(&shared.own_full, sizeof shared.own);
            for (int i = 0; i < N; i++)
                tile_bring<H::OWN, D>(shared.own[i], &shared.own_full, own[i], b, h, first);
        }
        __syncwarp();
        bring(1, steps.begin);
        for (int step = steps.begin + 1; step < steps.end; step++) {
            bring(0, step);
            bring(1, step);
        }
    });
}

// ----------------------------------------------------------------------------
// the consumers: what all of them do

// scores (64,STEP) = a bᵀ, for 64 rows of a tile a (OWN,D) and a tile b (STEP,D)
template <int D>
__device__ __forceinline__ void scores_issue(float (&scores)[64], uint64_t a, uint64_t b) {
    using H = Hopper<D>;
    #pragma unroll
    for (int c = 0; c < D; c += 16) {
        int matrix = c / 64, within = c % 64;
        product_64x128(scores, a + (matrix * H::OWN * 64 + within) / 8,
                       b + (matrix * H::STEP * 64 + within) / 8, c > 0);
    }
}

// sums (64,D) += p b, for p (64,STEP) in registers and a tile b (STEP,D)
template <int D> __device__ __forceinline__ void sums_issue(float (&sums)[D / 2],
                                                            const uint32_t (&p)[8][4], uint64_t b) {
#pragma unroll
    for (int c = 0; c < D; c += 64) {
        #pragma unroll
        for (int k = 0; k < Hopper<D>::STEP; k += 16) {
            product_64x64(sums + c / 2, p[k / 16], b + (c * Hopper<D>::STEP + k * 64) / 8);
        }
    }
}

// Scores of keys that a query must not see become -inf. `row` is this lane's first,
// `column` the first of the step.
template <bool KEYS>
__device__ __forceinline__ void tile_mask(float (&scores)[64], int row, int column) {
    column += threadIdx.x % 4 * 2;
    #pragma unroll
    for (int i = 0; i < 64; i++) {
        int y = row + i / 2 % 2 * 8, x = column + i / 4 * 8 + i % 2;
        if (!(KEYS ? attention_sees(x, y) : attention_sees(y, x))) scores[i] = -INFINITY;
    }
}

// Probabilities, or dS, as the A of the next product, rounded to bf16
__device__ __forceinline__ void registers_from(uint32_t (&p)[8][4], const float (&c)[64]) {
    #pragma unroll
    for (int i = 0; i < 32; i++) p[i / 4][i % 4] = bf16_pair(c[2 * i], c[2 * i + 1]);
}

// c[i] as registers_from rounded it
__device__ __forceinline__ float register_value(const uint32_t (&p)[8][4], int i) {
    uint32_t pair = p[i / 8][i / 2 % 4];
    return __uint_as_float(i % 2 ? pair & 0xFFFF0000u : pair << 16);
}

// Lane t of four neighbours brings w[0..3] and gets w[t] of all four: 4 bytes of each of
// 16-byte packs become one whole pack.
__device__ __forceinline__ void quad_transpose(uint32_t (&w)[4]) {
    #pragma unroll
    for (int step = 1; step <= 2; step *= 2) {
        bool upper = threadIdx.x & step;
        #pragma unroll
        for (int i = 0; i < 4; i++) {
            if (i & step) continue;
            uint32_t got = __shfl_xor_sync(FULL_WARP, upper ? w[i] : w[i + step], step);
            if (upper) w[i] = got;
            else w[i + step] = got;
        }
    }
}

// Rows `row` and row+8 of a matrix (T,HS) = what this lane holds of them times
// factor, with 16 bytes from each lane.
template <int D> __device__ __forceinline__ void held_store(real *matrix, int stride,
                                                            const float (&c)[D / 2], float factor0,
                                                            float factor8, int row, int T) {
#pragma unroll
    for (int half = 0; half < 2; half++, row += 8) {
        float factor = half ? factor8 : factor0;
        #pragma unroll
        for (int column = 0; column < D; column += 32) {
            uint32_t w[4];
            #pragma unroll
            for (int n = 0; n < 4; n++) {
                const float *pair = &c[(column / 8 + n) * 4 + 2 * half];
                w[n] = bf16_pair(pair[0] * factor, pair[1] * factor);
            }
            quad_transpose(w);
            real *to = matrix + (ptrdiff_t)row * stride + column + threadIdx.x % 4 * 8;
            // An assignment would be split by nvcc.
            if (row < T) __stcg(reinterpret_cast<uint4 *>(to), make_uint4(w[0], w[1], w[2], w[3]));
        }
    }
}

// The tile in the ring that was brought as number `at`, when it is there; and that this warp is
// done with it.
template <int D, int N>
__device__ __forceinline__ uint64_t ring_wait(HopperShared<D, N> &shared, int at) {
    int slot = at % Hopper<D>::SLOTS;
    barrier_wait(&shared.full[slot], at / Hopper<D>::SLOTS);
    return matrix_descriptor(shared.ring[slot]);
}
template <int D, int N>
__device__ __forceinline__ void ring_release(HopperShared<D, N> &shared, int at) {
    if (threadIdx.x % WARP == 0) barrier_arrive(&shared.empty[at % Hopper<D>::SLOTS]);
}

// Consumers issue products by turns: barrier 1 + c lets consumer c go on when the one before it has
// passed.
template <int D> __device__ __forceinline__ void turn_take(int group) {
    named_barrier_wait(1 + group, 256);
}
template <int D> __device__ __forceinline__ void turn_pass(int group) {
    named_barrier_arrive(1 + (group + 1) % Hopper<D>::CONSUMERS, 256);
}
// Around all turns: the first consumer may begin, and takes the last pass, so that the
// barriers are left as they were.
template <int D> __device__ __forceinline__ void turns_begin(int group) {
    if (group == Hopper<D>::CONSUMERS - 1) turn_pass<D>(group);
}
template <int D> __device__ __forceinline__ void turns_end(int group) {
    if (group == 0) turn_take<D>(group);
}

// ----------------------------------------------------------------------------
// forward

// What softmax_step of the trainer does, in this layout; but output may still be summed: it has to
// be multiplied by shrink later.
__device__ __forceinline__ void softmax_tile(float (&scores)[64], float (&shrink)[2],
                                             float (&largest)[2], float (&sum)[2], float factor) {
#pragma unroll
    for (int half = 0; half < 2; half++) { // rows g and g+8
        float most = largest[half], more = 0;
        #pragma unroll
        for (int i = 0; i < 32; i++) most = fmaxf(most, scores[i / 2 * 4 + 2 * half + i % 2]);
        most = fmaxf(most, __shfl_xor_sync(FULL_WARP, most, 1));
        most = fmaxf(most, __shfl_xor_sync(FULL_WARP, most, 2));
        float shift = most * factor;
        shrink[half] = exp2_fast((largest[half] - most) * factor); // 0 at first
        #pragma unroll
        for (int i = 0; i < 32; i++) {
            float &score = scores[i / 2 * 4 + 2 * half + i % 2];
            score = exp2_fast(fmaf(score, factor, -shift));
            more += score;
        }
        sum[half] = sum[half] * shrink[half] + more; // this lane's part
        largest[half] = most;
    }
}

// What warpgroup `group` of the consumers does.
template <int D>
__device__ __forceinline__ void forward_consume(HopperShared<D, 1> &shared, real *out, float *lse,
                                                AttentionShape s, float scale, int group) {
    using H = Hopper<D>;
    const float factor = scale * (float)M_LOG2E;
    const uint64_t q = matrix_descriptor(shared.own[0] + group * 64 * 64);
    int at = 0, tiles = 0;
    turns_begin<D>(group);
    each_tile<H::OWN>(s, [&](int b, int h, int first) {
        StepRange steps = tile_steps<D, false>(first, s.T);
        first += 64 * group;
        int lane = threadIdx.x % WARP, row = first + threadIdx.x / WARP % 4 * 16 + lane / 4;
        float scores[64], output[D / 2] = {}, largest[2] = {-INFINITY, -INFINITY}, sum[2] = {},
                                     shrink[2], over[2];
        uint32_t p[8][4];
        auto softmax = [&](int key) {
            if (key + H::STEP - 1 > first) tile_mask<false>(scores, row, key);
            softmax_tile(scores, shrink, largest, sum, factor);
        };

        barrier_wait(&shared.own_full, tiles++);
        uint64_t k = ring_wait(shared, at);
        turn_take<D>(group);
        products_fence();
        scores_issue<D>(scores, q, k);
        products_commit();
        turn_pass<D>(group);
        products_wait<0>(scores);
        ring_release(shared, at);
        softmax(0);
        registers_from(p, scores);
        uint64_t v = ring_wait(shared, at + 1);

        // Scores of this step, output of the one before.
        for (int step = 1; step < steps.end; step++) {
            at += 2;
            k = ring_wait(shared, at);
            turn_take<D>(group);
            products_fence();
            scores_issue<D>(scores, q, k);
            products_commit();
            sums_issue<D>(output, p, v);
            products_commit();
            turn_pass<D>(group);
            products_wait<1>(scores);
            ring_release(shared, at);
            softmax(step * H::STEP);
            // The wait for V stands here, not before its use, because ptxas (13.0) moves
            // wgmma.wait_group up to the last branch before it: without one, the exponentials would
            // be made when the tensor cores are done.
            v = ring_wait(shared, at + 1);
            products_wait<0>(output);
            ring_release(shared, at - 1);
            #pragma unroll
            for (int i = 0; i < D / 2; i++) output[i] *= shrink[i / 2 % 2];
            registers_from(p, scores);
        }
        if (lane == 0) barrier_arrive(&shared.own_empty);

        products_fence();
        sums_issue<D>(output, p, v);
        products_commit();
        products_wait<0>(output);
        ring_release(shared, at + 1);
        at += 2;
        #pragma unroll
        for (int half = 0; half < 2; half++) {
            float total = sum[half];
            total += __shfl_xor_sync(FULL_WARP, total, 1);
            total += __shfl_xor_sync(FULL_WARP, total, 2);
            int r = row + 8 * half;
            if (lane % 4 == 0 && r < s.T)
                lse[((size_t)b * s.heads + h) * s.T + r] = largest[half] * scale + logf(total);
            over[half] = 1 / total;
        }
        held_store<D>(out + ((size_t)b * s.T * s.heads + h) * D, s.heads * D, output, over[0],
                      over[1], row, s.T);
    });
    turns_end<D>(group);
}

template <int D> __global__ void __launch_bounds__(Hopper<D>::THREADS, 1)
    hopper_forward_kernel(real *out, float *lse, const __grid_constant__ CUtensorMap qkv,
                          AttentionShape s, float scale) {
    using H = Hopper<D>;
    SHARED_DYNAMIC(char, memory);
    HopperShared<D, 1> &shared = hopper_begin<D, 1>(memory, 1);
    // The same in all lanes, which the compiler can see then.
    int group = __shfl_sync(FULL_WARP, threadIdx.x / 128, 0);
    if (group == H::CONSUMERS) {
        registers_give_back<H::PRODUCER_REGISTERS>();
        const Source own[1] = {{&qkv, 0}}, ring[2] = {{&qkv, s.heads}, {&qkv, 2 * s.heads}};
        if (threadIdx.x / WARP % 4 == 0) hopper_produce<D, 1, false>(shared, own, ring, {}, s);
    } else {
        registers_take<H::CONSUMER_REGISTERS>();
        forward_consume<D>(shared, out, lse, s, scale, group);
    }
}

// ----------------------------------------------------------------------------
// backward: heads of size 64
//
// The trainer's two kernels in one template (see there for the formulas). If KEYS, the block owns
// keys and takes queries: scores and dP are born transposed, and P and dS are at once what dV +=
// Pᵀ dout and dK += dSᵀ Q multiply by. Else it owns queries, and dQ += dS K. A query's lse and
// delta are then this lane's rows', or its columns', which come beside Q and dout in the ring.

// Calls f(i, x) for all that a lane holds of (64,STEP), where x is the number that belongs to its
// query: one of this lane's two rows', or if KEYS that of its column, 2t or 2t+1 of each 8.
template <bool KEYS, typename F>
__device__ __forceinline__ void each_held_of_query(const float *of_columns,
                                                   const float (&of_rows)[2], F f) {
#pragma unroll
    for (int n = 0; n < 16; n++) {
        float2 pair = {};
        if (KEYS) pair = reinterpret_cast<const float2 *>(of_columns)[4 * n + threadIdx.x % 4];
        #pragma unroll
        for (int i = 0; i < 4; i++) f(4 * n + i, !KEYS ? of_rows[i / 2] : i % 2 ? pair.y : pair.x);
    }
}

template <bool KEYS>
__device__ __forceinline__ void backward_consume(HopperShared<64, 2> &shared, real *dqkv,
                                                 const float *lse, const float *delta,
                                                 AttentionShape s, float scale, int group) {
    constexpr int D = 64;
    using H = Hopper<D>;
    const float factor = scale * (float)M_LOG2E;
    // Of Q or K scores are made, of dout or V dP.
    const uint64_t own_s = matrix_descriptor(shared.own[0] + group * 64 * 64);
    const uint64_t own_dp = matrix_descriptor(shared.own[1] + group * 64 * 64);
    int at = 0, tiles = 0, lane = threadIdx.x % WARP, width = s.heads * D;
    turns_begin<D>(group);
    each_tile<H::OWN>(s, [&](int b, int h, int first) {
        StepRange steps = tile_steps<D, KEYS>(first, s.T);
        first += 64 * group;
        int row = first + threadIdx.x / WARP % 4 * 16 + lane / 4;
        float dv[32] = {}, sums[32] = {}, row_lse[2] = {}, row_delta[2] = {}; // sums: dK or dQ
        for (int half = 0; half < 2 && !KEYS; half++) {
            size_t i = ((size_t)b * s.heads + h) * s.T + row + 8 * half;
            if (row + 8 * half < s.T) row_lse[half] = lse[i], row_delta[half] = delta[i];
        }
        barrier_wait(&shared.own_full, tiles++);
        for (int step = steps.begin; step < steps.end; step++, at += 2) {
            float p[64], ds[64];
            uint32_t a[8][4], p_rounded[8][4];
            // K and V, or Q and dout.
            uint64_t its_s = ring_wait(shared, at), its_dp = ring_wait(shared, at + 1);
            turn_take<D>(group);
            products_fence();
            scores_issue<D>(p, own_s, its_s);
            products_commit();
            scores_issue<D>(ds, own_dp, its_dp);
            products_commit();
            turn_pass<D>(group);
            products_wait<1>(p);
            if (KEYS ? step * H::STEP < first + 63 : step * H::STEP + H::STEP - 1 > first) {
                tile_mask<KEYS>(p, row, step * H::STEP);
            }
            each_held_of_query<KEYS>(shared.beside[at % H::SLOTS], row_lse,
                                     [&](int i, float its_lse) {
                                         p[i] = exp2_fast(
                                             fmaf(p[i], factor, -its_lse * (float)M_LOG2E));
                                     });
            if (KEYS) {
                registers_from(p_rounded, p);
                products_fence();
                sums_issue<D>(dv, p_rounded, its_dp);
                products_commit();
            }
            products_wait<KEYS>(ds); // that of dV may go on
            each_held_of_query<KEYS>(shared.beside[(at + 1) % H::SLOTS], row_delta,
                                     [&](int i, float its_delta) {
                                         // To keep p itself would take 64 registers more.
                                         ds[i] = (KEYS ? register_value(p_rounded, i) : p[i]) *
                                                 (ds[i] - its_delta);
                                     });
            registers_from(a, ds);
            products_fence();
            sums_issue<D>(sums, a, its_s);
            products_commit();
            products_wait<0>(sums);
            if (KEYS) products_wait<0>(dv);
            ring_release(shared, at);
            ring_release(shared, at + 1);
        }
        if (lane == 0) barrier_arrive(&shared.own_empty);
        real *dq = dqkv + (size_t)b * s.T * 3 * width + h * D;
        held_store<D>(KEYS ? dq + width : dq, 3 * width, sums, scale, scale, row, s.T);
        if (KEYS) held_store<D>(dq + 2 * width, 3 * width, dv, 1, 1, row, s.T);
    });
    turns_end<D>(group);
}

template <bool KEYS> __global__ void __launch_bounds__(Hopper<64>::THREADS, 1)
    hopper_backward_kernel(real *dqkv, const float *lse, const float *delta,
                           const __grid_constant__ CUtensorMap qkv,
                           const __grid_constant__ CUtensorMap dout, AttentionShape s,
                           float scale) {
    using H = Hopper<64>;
    SHARED_DYNAMIC(char, memory);
    HopperShared<64, 2> &shared = hopper_begin<64, 2>(memory, KEYS ? 1 + WARP : 1);
    int group = __shfl_sync(FULL_WARP, threadIdx.x / 128, 0);
    if (group == H::CONSUMERS) {
        registers_give_back<H::PRODUCER_REGISTERS>();
        const Source queries[2] = {{&qkv, 0}, {&dout, 0}};
        const Source keys[2] = {{&qkv, s.heads}, {&qkv, 2 * s.heads}};
        const float *beside[2] = {lse, delta};
        if (threadIdx.x / WARP % 4 == 0) {
            hopper_produce<64, 2, KEYS>(shared, KEYS ? keys : queries, KEYS ? queries : keys,
                                        beside, s);
        }
    } else {
        registers_take<H::CONSUMER_REGISTERS>();
        backward_consume<KEYS>(shared, dqkv, lse, delta, s, scale, group);
    }
}

// ----------------------------------------------------------------------------
// launches

// The copy engine's map of a tensor (B,T,Y,HS). With a dimension for each, rows from T on are
// outside of it and not the next sequence's.
template <int D> static CUtensorMap hopper_map(const real *tensor, int Y, AttentionShape s) {
    static decltype(&cuTensorMapEncodeTiled) encode;
    if (!encode) {
        cudaDriverEntryPointQueryResult found;
        // Asked for by name, which leaves the program without a link to the driver.
        const char *name = "cuTensorMapEncodeTiled";
#if CUDART_VERSION < 12050 // none by version yet
        CUDA_CHECK(cudaGetDriverEntryPoint(name, (void **)&encode, cudaEnableDefault, &found));
#else
        CUDA_CHECK(cudaGetDriverEntryPointByVersion(name, (void **)&encode, 12000,
                                                    cudaEnableDefault, &found));
#endif
        if (found != cudaDriverEntryPointSuccess)
            fail("this driver has no cuTensorMapEncodeTiled: it is older than CUDA 12.0");
    }
    CUtensorMap map;
    cuuint64_t row = (cuuint64_t)Y * D * sizeof(real);
    cuuint64_t dims[4] = {D, (cuuint64_t)Y, (cuuint64_t)s.T, (cuuint64_t)s.B};
    cuuint64_t strides[3] = {D * sizeof(real), row, row * s.T};
    cuuint32_t box[4] = {Hopper<D>::BOX, 1, Hopper<D>::BOX, 1}, each[4] = {1, 1, 1, 1};
    CUresult code = encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, (void *)tensor, dims, strides,
                           box, each, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (code != CUDA_SUCCESS)
        fail("cuTensorMapEncodeTiled of (%d,%d,%d,%d): error %d", s.B, s.T, Y, D, (int)code);
    return map;
}

// As many blocks as have work and a multiprocessor each.
template <int D> static int hopper_blocks(AttentionShape s) {
    return min(ceil_div(ceil_div<int>(s.T, Hopper<D>::OWN), 2) * s.heads * s.B,
               gpu.properties.multiProcessorCount);
}

template <int D, int N>
static constexpr size_t HOPPER_SHARED = sizeof(HopperShared<D, N>) + alignof(HopperShared<D, N>);

template <int D> static void hopper_forward(real *out, float *lse, const real *qkv,
                                            AttentionShape s, cudaStream_t on) {
    attention_allow_shared<hopper_forward_kernel<D>>(HOPPER_SHARED<D, 1>);
    LAUNCH((hopper_forward_kernel<D>), hopper_blocks<D>(s), Hopper<D>::THREADS,
           (HOPPER_SHARED<D, 1>), on, out, lse, hopper_map<D>(qkv, 3 * s.heads, s), s,
           1 / sqrtf((float)D));
}

// As attention_forward: out (B,T,heads,HS) and lse (B,heads,T) from qkv
// (B,T,3,heads,HS); for HS 64 and 128.
static void attention_hopper_forward(real *out, float *lse, const real *qkv, AttentionShape s,
                                     cudaStream_t on) {
    if (s.HS == 64) hopper_forward<64>(out, lse, qkv, s, on);
    else if (s.HS == 128) hopper_forward<128>(out, lse, qkv, s, on);
    else fail("attention_hopper_forward: heads of size %d; need 64 or 128", s.HS);
}

// delta (B,heads,T): each row of dout * out summed. LANES neighbours share a row and take 16 bytes
// of it each.
template <int LANES>
__global__ void attention_delta_kernel(float *delta, const real *dout, const real *out,
                                       AttentionShape s) {
    size_t row = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) / LANES;
    size_t rows = (size_t)s.B * s.T * s.heads;
    int column = threadIdx.x % LANES * PACK;
    float sum = 0;
    if (row < rows && column < s.HS) {
        Packed<real> d = pack_load(dout + row * s.HS + column);
        Packed<real> o = pack_load(out + row * s.HS + column);
        for (int i = 0; i < PACK; i++) sum += to_float(d.at[i]) * to_float(o.at[i]);
    }
    for (int step = LANES / 2; step > 0; step /= 2) sum += __shfl_xor_sync(FULL_WARP, sum, step);
    if (row < rows && column == 0) {
        size_t h = row % s.heads, t = row / s.heads % s.T, b = row / s.heads / s.T;
        delta[(b * s.heads + h) * s.T + t] = sum;
    }
}

// delta (B,heads,T) = the dot products of the rows of dout and out (B,T,heads,HS), each by LANES
// threads with a pack
template <int LANES>
static void attention_delta(float *delta, const real *dout, const real *out, AttentionShape s,
                            cudaStream_t on) {
    unsigned blocks = (unsigned)ceil_div<size_t>((size_t)s.B * s.T * s.heads * LANES, 256);
    LAUNCH((attention_delta_kernel<LANES>), blocks, 256, 0, on, delta, dout, out, s);
}

template <bool KEYS> static void hopper_backward(real *dqkv, const float *lse, const float *delta,
                                                 const real *dout, const real *qkv,
                                                 AttentionShape s, cudaStream_t on) {
    attention_allow_shared<hopper_backward_kernel<KEYS>>(HOPPER_SHARED<64, 2>);
    LAUNCH((hopper_backward_kernel<KEYS>), hopper_blocks<64>(s), Hopper<64>::THREADS,
           (HOPPER_SHARED<64, 2>), on, dqkv, lse, delta, hopper_map<64>(qkv, 3 * s.heads, s),
           hopper_map<64>(dout, s.heads, s), s, 1 / sqrtf(64.0f));
}

// dqkv, as attention_backward, and delta (B,heads,T), which is of no use later; for HS 64.
static void attention_hopper_backward(real *dqkv, float *delta, const real *dout, const real *out,
                                      const float *lse, const real *qkv, AttentionShape s,
                                      cudaStream_t on) {
    if (s.HS != 64) fail("attention_hopper_backward: heads of size %d; need 64", s.HS);
    attention_delta<64 / PACK>(delta, dout, out, s, on);
    hopper_backward<true>(dqkv, lse, delta, dout, qkv, s, on);
    hopper_backward<false>(dqkv, lse, delta, dout, qkv, s, on);
}
