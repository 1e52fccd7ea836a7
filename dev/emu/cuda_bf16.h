/*
bfloat16 for the stand-in: the upper half of a float. Rounding is to nearest, ties to even;
a NaN stays one. Only what a trainer in C++ uses of CUDA's header of this name; conversions
are implicit where CUDA's are.
*/
#ifndef EMU_CUDA_BF16_H
#define EMU_CUDA_BF16_H

#include "cuda_runtime.h"

struct __attribute__((may_alias, aligned(2))) __nv_bfloat16_raw {
    unsigned short x;
};

inline unsigned short emu_bf16_round(float x) {
    unsigned bits = __float_as_uint(x);
    if (x != x) return 0x7FFF; // CUDA's canonical NaN
    return (unsigned short)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

struct __attribute__((may_alias, aligned(2))) __nv_bfloat16 {
    unsigned short emu_bits16;
    __nv_bfloat16() = default;
    __nv_bfloat16(const __nv_bfloat16_raw &raw) : emu_bits16(raw.x) {}
    template <typename T>
        requires std::is_arithmetic_v<T>
    __nv_bfloat16(T x) : emu_bits16(emu_bf16_round((float)x)) {}
    operator float() const { return __uint_as_float((unsigned)emu_bits16 << 16); }
    operator __nv_bfloat16_raw() const { return {emu_bits16}; }
};
struct __attribute__((may_alias, aligned(4))) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;
template <> struct emu_shuffles<__nv_bfloat16> : std::true_type {};
template <> struct emu_shuffles<__nv_bfloat162> : std::true_type {};

inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return __nv_bfloat16(x); }
inline __nv_bfloat16 __float2bfloat16(float x) { return __nv_bfloat16(x); }
inline __nv_bfloat16 __double2bfloat16(double x) { return __nv_bfloat16((float)x); }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.emu_bits16; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short x) { return __nv_bfloat16_raw{x}; }

inline __nv_bfloat162 make_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return {v.x, v.y}; }
inline __nv_bfloat162 __float2bfloat162_rn(float x) { return {x, x}; }
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 x) { return {x, x}; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {v.x, v.y}; }
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) { return v.x; }
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) { return v.y; }
inline float __low2float(__nv_bfloat162 v) { return v.x; }
inline float __high2float(__nv_bfloat162 v) { return v.y; }

// Each operation is done in float and rounded once, which is what one instruction on bfloat16
// gives.
inline __nv_bfloat16 __hadd(__nv_bfloat16 a, __nv_bfloat16 b) { return (float)a + (float)b; }
inline __nv_bfloat16 __hsub(__nv_bfloat16 a, __nv_bfloat16 b) { return (float)a - (float)b; }
inline __nv_bfloat16 __hmul(__nv_bfloat16 a, __nv_bfloat16 b) { return (float)a * (float)b; }
inline __nv_bfloat16 __hneg(__nv_bfloat16 a) { return -(float)a; }
inline bool __hisnan(__nv_bfloat16 a) { return (float)a != (float)a; }
inline __nv_bfloat162 __hadd2(__nv_bfloat162 a, __nv_bfloat162 b) {
    return {__hadd(a.x, b.x), __hadd(a.y, b.y)};
}
inline __nv_bfloat162 __hsub2(__nv_bfloat162 a, __nv_bfloat162 b) {
    return {__hsub(a.x, b.x), __hsub(a.y, b.y)};
}
inline __nv_bfloat162 __hmul2(__nv_bfloat162 a, __nv_bfloat162 b) {
    return {__hmul(a.x, b.x), __hmul(a.y, b.y)};
}
inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
    return {fmaf(a.x, b.x, c.x), fmaf(a.y, b.y, c.y)};
}
// As in CUDA, operators keep bfloat16, and mixing it with float in one of them is
// ambiguous and does not compile.
inline __nv_bfloat16 operator+(const __nv_bfloat16 &a, const __nv_bfloat16 &b) {
    return __hadd(a, b);
}
inline __nv_bfloat16 operator-(const __nv_bfloat16 &a, const __nv_bfloat16 &b) {
    return __hsub(a, b);
}
inline __nv_bfloat16 operator*(const __nv_bfloat16 &a, const __nv_bfloat16 &b) {
    return __hmul(a, b);
}
inline __nv_bfloat16 operator/(const __nv_bfloat16 &a, const __nv_bfloat16 &b) {
    return (float)a / (float)b;
}
inline __nv_bfloat16 operator-(const __nv_bfloat16 &a) { return __hneg(a); }

inline __nv_bfloat16 atomicAdd(__nv_bfloat16 *at, __nv_bfloat16 value) {
    __nv_bfloat16 old = *at;
    *at = __hadd(old, value);
    return old;
}
inline __nv_bfloat162 atomicAdd(__nv_bfloat162 *at, __nv_bfloat162 value) {
    __nv_bfloat162 old = *at;
    *at = __hadd2(old, value);
    return old;
}

#endif
