// The special instructions of train_gpt2.cu in plain code, for the stand-in: the same functions as
// there, where each is one instruction of the GPU. C++; included by train_gpt2.cu in its place.
#ifndef EMU_INSTRUCTIONS_H
#define EMU_INSTRUCTIONS_H

#include <vector>

// c (16,8) += a (16,16) b (16,8): every lane shows its fragments to the others.
static inline void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t *b) {
    struct Fragments { __nv_bfloat16 a[4][2], b[2][2]; } mine;
    memcpy(mine.a, a, sizeof mine.a);
    memcpy(mine.b, b, sizeof mine.b);
    const Fragments *of = (const Fragments *)emu_warp_share(&mine, sizeof mine);
    int lane = threadIdx.x % WARP;
    for (int i = 0; i < 4; i++) {
        int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 16; k++) {
            __nv_bfloat16 x = of[row % 8 * 4 + k % 8 / 2].a[row / 8 + k / 8 * 2][k % 2];
            __nv_bfloat16 y = of[column * 4 + k % 8 / 2].b[k / 8][k % 2];
            c[i] += __bfloat162float(x) * __bfloat162float(y);
        }
    }
}

static inline void ldmatrix(uint32_t (&to)[4], const __nv_bfloat16 *row) {
    auto rows = (const __nv_bfloat16 *const *)emu_warp_share(&row, sizeof row);
    int lane = threadIdx.x % WARP;
    for (int i = 0; i < 4; i++) memcpy(&to[i], rows[8 * i + lane / 4] + lane % 4 * 2, sizeof to[i]);
}

static inline void ldmatrix_transposed(uint32_t (&to)[4], const __nv_bfloat16 *row) {
    auto rows = (const __nv_bfloat16 *const *)emu_warp_share(&row, sizeof row);
    int lane = threadIdx.x % WARP;
    for (int i = 0; i < 4; i++) {
        __nv_bfloat16 pair[2] = {rows[8 * i + lane % 4 * 2][lane / 4],
                                 rows[8 * i + lane % 4 * 2 + 1][lane / 4]};
        memcpy(&to[i], pair, sizeof to[i]);
    }
}

// The hardware may copy at once or as late as in copies_wait. Here copies do the one and the other
// by turns, so that a missing wait is noticed, and also a tile that is overwritten while it is
// still in use.
struct CopyLater { void *to; const void *from; int bytes; bool there; };
static std::vector<CopyLater> copies_started[1024];
static unsigned copies_turn;

static inline void copy_now(CopyLater c) {
    if (c.there) memcpy(c.to, c.from, c.bytes);
    else memset(c.to, 0, c.bytes);
}

template <int BYTES> static void copy_start(void *to, const void *from, bool there) {
    if (++copies_turn % 3 == 0) copy_now({to, from, BYTES, there});
    else copies_started[threadIdx.x].push_back({to, from, BYTES, there});
}

static inline void copies_wait() {
    for (CopyLater c : copies_started[threadIdx.x]) copy_now(c);
    copies_started[threadIdx.x].clear();
}

static inline float exp2_fast(float x) { return exp2f(x); }

#endif
