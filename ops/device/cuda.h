// Primitives on NVIDIA GPUs, for nvcc and NVRTC: no header of CUDA is needed.
#ifndef SPARK_DEVICE_CUDA_H
#define SPARK_DEVICE_CUDA_H

#define SPARK_FN __device__ __forceinline__
#define SPARK_CONSTANT static constexpr
// Numbers in memory that kernels may index.
#define SPARK_TABLE(type, name, size) static __device__ const type name[size]
// A multiprocessor, like a compute unit, has four SIMDs of 512 registers per lane, and allocates registers in
// multiples of eight, up to 255. The maximum number of threads is set so that the registers suffice.
#define SPARK_KERNEL(name, threads, waves)                                                                             \
    extern "C" __global__ void __maxnreg__((waves) > 2 ? 512 / (waves) / 8 * 8 : 255)                                  \
        name(const __grid_constant__ SparkCall call)
#define SPARK_UNROLL _Pragma("unroll")
#define SPARK_ROLLED _Pragma("unroll 1")

SPARK_CONSTANT u32 WAVE = 32;
#define SPARK_NO_MATRIX
// Those of compute capability 8.0 and later. `has_tensor_cores` of src/gpu/cuda/driver.rs asks the same.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define SPARK_MMA
#endif

SPARK_FN u32 thread() { return threadIdx.x; }
SPARK_FN u32 block_x() { return blockIdx.x; }
SPARK_FN u32 block_z() { return blockIdx.z; }
SPARK_FN u32 lane() { return threadIdx.x % WAVE; }
SPARK_FN u32 wave() { return threadIdx.x / WAVE; }
SPARK_FN u32 same(u32 x) { return x; }

template <class V>
SPARK_FN V load(const V* p) {
    return *p;
}
template <class V>
SPARK_FN void store(V* p, V v) {
    *p = v;
}
// Vector loads need their natural alignment here, which rows do not have.
template <u32 N>
SPARK_FN void load_words(const void* p, u32 (&w)[N]) {
    SPARK_UNROLL
    for (u32 i = 0; i < N; ++i) w[i] = ((const u32*)p)[i];
}
template <u32 N>
SPARK_FN void store_words(void* p, const u32 (&w)[N]) {
    SPARK_UNROLL
    for (u32 i = 0; i < N; ++i) ((u32*)p)[i] = w[i];
}

extern __shared__ __align__(16) u32 spark_shared[];

template <class V>
struct Shared {
    u32 at; // byte offset
    SPARK_FN explicit Shared(u32 byte) : at(byte) {}
    SPARK_FN V load(u32 i) const { return ((const V*)((const u8*)spark_shared + at))[i]; }
    SPARK_FN void store(u32 i, V v) const { ((V*)((u8*)spark_shared + at))[i] = v; }
};

SPARK_FN u64 vote(bool b) { return __ballot_sync(0xffffffffu, b); }
SPARK_FN u32 rank_in(u64 mask) { return __popc((u32)mask & ((1u << lane()) - 1)); }
SPARK_FN u32 bits_of(float x) { return __float_as_uint(x); }
SPARK_FN float float_of(u32 x) { return __uint_as_float(x); }
SPARK_FN u32 shuffle_xor(u32 v, u32 mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
SPARK_FN float shuffle_xor(float v, u32 mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
SPARK_FN void wave_barrier() { __syncwarp(); }
SPARK_FN void block_barrier() { __syncthreads(); }

SPARK_FN u32 anew(u32 x) {
    asm volatile("" : "+r"(x));
    return x;
}
SPARK_FN void in_order() {}
SPARK_FN u32 popcount(u32 x) { return __popc(x); }
SPARK_FN u32 popcount(u64 x) { return __popcll(x); }
// The low word of (high:low) >> shift % 32.
SPARK_FN u32 funnel_right(u32 high, u32 low, u32 shift) { return __funnelshift_r(low, high, shift); }

// Of four nibbles, those of the low half.
SPARK_FN u32 look_up_half(u32 nibbles, const u32 (&table)[4]) {
    // Three bits of a nibble pick one of eight bytes; the fourth picks of two such.
    const u32 at = nibbles & 0x7777, which = (nibbles >> 1 & 0x4444) | 0x3210;
    return __byte_perm(__byte_perm(table[0], table[1], at), __byte_perm(table[2], table[3], at), which);
}
SPARK_FN void look_up(u32 nibbles, const u32 (&table)[4], u32& low, u32& high) {
    low = look_up_half(nibbles, table);
    high = look_up_half(nibbles >> 16, table);
}

SPARK_FN float half_to_float(u16 h) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h));
    return x;
}
SPARK_FN u16 float_to_half(float x) {
    u16 h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x));
    return h;
}
SPARK_FN float least(float a, float b) { return fminf(a, b); }
SPARK_FN float greatest(float a, float b) { return fmaxf(a, b); }
SPARK_FN float fused(float a, float b, float c) { return fmaf(a, b, c); }
SPARK_FN float product(const float (&a)[8], const float (&b)[8]) {
    float sum = 0.0f;
    SPARK_UNROLL
    for (u32 k = 0; k < 8; ++k) sum = fused(a[k], b[k], sum);
    return sum;
}
// Subnormal results may become zero.
SPARK_FN float exp2_of(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
SPARK_FN float round_even(float x) { return rintf(x); }
SPARK_FN float sqrt_of(float x) { return __fsqrt_rn(x); }

#ifdef SPARK_MMA
struct alignas(16) Quad {
    u32 words[4];
    SPARK_FN u32 operator[](u32 i) const { return words[i]; }
};

template <class N>
struct MatrixPart {
    N numbers[4];
    SPARK_FN N& operator[](u32 r) { return numbers[r]; }
    SPARK_FN N operator[](u32 r) const { return numbers[r]; }
};
typedef MatrixPart<float> MatrixSums;
typedef MatrixPart<int> MatrixCounts;

SPARK_FN void mma_i8(const u32 (&a)[4], const u32 (&b)[2], MatrixCounts& c) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
SPARK_FN void mma_f16(const u32 (&a)[4], const u32 (&b)[2], MatrixSums& c) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

SPARK_FN u32 copies_to(u32 byte) { return (u32)__cvta_generic_to_shared((const u8*)spark_shared + byte); }
// The distance is part of the instruction.
template <u32 BYTES, u32 FURTHER = 0>
SPARK_FN void copy_async(u32 at, const void* from) {
    if constexpr (BYTES == 16) {
        // Past the L1 cache: nothing is read again.
        asm volatile("cp.async.cg.shared.global [%0 + %2], [%1 + %2], 16;"
                     :
                     : "r"(at), "l"(from), "n"(FURTHER)
                     : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0 + %2], [%1 + %2], 4;"
                     :
                     : "r"(at), "l"(from), "n"(FURTHER)
                     : "memory");
    }
}
SPARK_FN void end_copies() { asm volatile("cp.async.commit_group;" : : : "memory"); }
template <u32 LEFT>
SPARK_FN void await_copies() {
    asm volatile("cp.async.wait_group %0;" : : "n"(LEFT) : "memory");
}

SPARK_FN float from_lane(float v, u32 lane) { return __shfl_sync(0xffffffffu, v, (int)lane); }
// __byte_perm ignores the highest bit of a selector.
SPARK_FN u32 permute_bytes(u32 low, u32 high, u32 selectors) {
    u32 picked;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(picked) : "r"(low), "r"(high), "r"(selectors));
    return picked;
}
SPARK_FN u32 low_halves(u32 a, u32 b) { return permute_bytes(a, b, 0x5410); }
SPARK_FN u32 high_halves(u32 a, u32 b) { return permute_bytes(a, b, 0x7632); }
SPARK_FN u32 add_halves(u32 a, u32 b) {
    u32 sum;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(sum) : "r"(a), "r"(b));
    return sum;
}
SPARK_FN u32 fused_halves(u32 a, u32 b, u32 c) {
    u32 sum;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
    return sum;
}
SPARK_FN u32 halves_of(float low, float high) {
    u32 both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
SPARK_FN u32 truncate_halves(float a, float b) {
    u32 both;
    asm("cvt.rz.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(b), "f"(a));
    return both;
}
#endif

#endif
