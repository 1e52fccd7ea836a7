// Special instructions of the GPU that train_gpt2.cu uses, each in one function.
#ifdef CUDA_EMULATED
#include "../emu/instructions.h" // the same functions in plain code
#else

__device__ __forceinline__ uint32_t shared_address(const void *p) {
    return (uint32_t)__cvta_generic_to_shared(p);
}

// c += a b
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t *b) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8x8 matrices from shared memory. Lane 8i+r brings the address of row r of matrix i and gets,
// as to[i], the elements 2t and 2t+1 of its row g.
__device__ __forceinline__ void ldmatrix(uint32_t (&to)[4], const __nv_bfloat16 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same of the transposed matrices: to[i] are the elements g of its rows 2t and 2t+1.
__device__ __forceinline__ void ldmatrix_transposed(uint32_t (&to)[4], const __nv_bfloat16 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Starts to copy BYTES (4 or 16) from global to shared memory, or to write zeros there if `there`
// is false; then nothing is read and `from` may be any address. copies_wait waits for all that this
// thread has started; other threads see them after the barrier that follows.
template <int BYTES>
__device__ __forceinline__ void copy_start(void *to, const void *from, bool there) {
    int bytes = there ? BYTES : 0; // the rest is filled with zeros
    if constexpr (BYTES == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n"
                     :: "r"(shared_address(to)), "l"(__cvta_generic_to_global(from)), "r"(bytes)
                     : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n"
                     :: "r"(shared_address(to)), "l"(__cvta_generic_to_global(from)), "r"(bytes)
                     : "memory");
    }
}
__device__ __forceinline__ void copies_wait() { asm volatile("cp.async.wait_all;\n" ::: "memory"); }

// 2^x to about 2 units in the last place, in one instruction
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}

// x. What is computed from it in a loop is computed again each time around, and takes no register
// meanwhile.
__device__ __forceinline__ unsigned made_again(unsigned x) {
    asm volatile("" : "+r"(x));
    return x;
}

// Nanoseconds of a clock that all multiprocessors share
__device__ __forceinline__ unsigned long long clock_ns() {
    unsigned long long ns;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
    return ns;
}

#endif
