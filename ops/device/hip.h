// Primitives on AMD GPUs, through compiler builtins: neither HIP headers nor device libraries are needed.
#ifndef SPARK_DEVICE_HIP_H
#define SPARK_DEVICE_HIP_H

#define SPARK_FN __attribute__((device)) inline __attribute__((always_inline))
#define SPARK_CONSTANT static constexpr
// Numbers in memory that kernels may index.
#define SPARK_TABLE(type, name, size) static const __attribute__((constant)) type name[size]
#define SPARK_KERNEL(name, threads, waves)                                                                             \
    extern "C" __attribute__((global)) __attribute__((amdgpu_flat_work_group_size(1, threads)))                       \
    __attribute__((amdgpu_waves_per_eu(waves))) void name(SparkCall call)
#define SPARK_UNROLL _Pragma("unroll")
#define SPARK_ROLLED _Pragma("clang loop unroll(disable)")

#if defined(__HIP_DEVICE_COMPILE__) || defined(__AMDGCN__)
#if defined(__AMDGCN_WAVEFRONT_SIZE__) && __AMDGCN_WAVEFRONT_SIZE__ == 32
SPARK_CONSTANT u32 WAVE = 32;
#elif defined(__AMDGCN_WAVEFRONT_SIZE__) || defined(__GFX9__)
SPARK_CONSTANT u32 WAVE = 64;
#else
SPARK_CONSTANT u32 WAVE = 32;
#endif
#else
// The host's pass over the sources, whose output is discarded.
SPARK_CONSTANT u32 WAVE = 64;
#endif
// `has_matrix_cores` of src/gpu/hip/arch.rs has the same list.
#if defined(__gfx908__) || defined(__gfx90a__) || defined(__gfx940__) || defined(__gfx941__) ||  \
    defined(__gfx942__) || defined(__gfx950__)
#define SPARK_MATRIX
#else
#define SPARK_NO_MATRIX
#endif

SPARK_FN u32 thread() { return __builtin_amdgcn_workitem_id_x(); }
SPARK_FN u32 block_x() { return __builtin_amdgcn_workgroup_id_x(); }
SPARK_FN u32 block_z() { return __builtin_amdgcn_workgroup_id_z(); }
SPARK_FN u32 lane() { return thread() % WAVE; }
// In a scalar register, so that values derived from it are computed once for the wave. Divisions lose this property.
SPARK_FN u32 same(u32 x) { return (u32)__builtin_amdgcn_readfirstlane((int)x); }
SPARK_FN u32 wave() { return same(thread() / WAVE); }

// For the compiler, pointers in a structure may point anywhere: these state that they point to global memory.
#define SPARK_IN_GLOBAL __attribute__((address_space(1)))

template <class V>
SPARK_FN V load(const V* p) {
    return *(const SPARK_IN_GLOBAL V*)p;
}
template <class V>
SPARK_FN void store(V* p, V v) {
    *(SPARK_IN_GLOBAL V*)p = v;
}

// Loads of up to four words are one instruction, whatever the alignment.
template <u32 N>
struct WordsOf {
    typedef u32 Vector __attribute__((ext_vector_type(N), aligned(4)));
};
template <>
struct WordsOf<1> {
    typedef u32 Vector;
};
template <u32 N>
SPARK_FN void load_words(const void* p, u32 (&w)[N]) {
    if constexpr (N > 4) {
        static_assert(N % 4 == 0, "whole vectors");
        SPARK_UNROLL
        for (u32 i = 0; i < N; i += 4) {
            typename WordsOf<4>::Vector v = *(const SPARK_IN_GLOBAL typename WordsOf<4>::Vector*)((const u8*)p + 4 * i);
            SPARK_UNROLL
            for (u32 k = 0; k < 4; ++k) w[i + k] = v[k];
        }
    } else if constexpr (N == 1) {
        w[0] = load((const u32*)p);
    } else {
        typename WordsOf<N>::Vector v = *(const SPARK_IN_GLOBAL typename WordsOf<N>::Vector*)p;
        SPARK_UNROLL
        for (u32 k = 0; k < N; ++k) w[k] = v[k];
    }
}
template <u32 N>
SPARK_FN void store_words(void* p, const u32 (&w)[N]) {
    static_assert(N % 4 == 0, "whole vectors");
    SPARK_UNROLL
    for (u32 i = 0; i < N; i += 4) {
        typename WordsOf<4>::Vector v = {w[i], w[i + 1], w[i + 2], w[i + 3]};
        *(SPARK_IN_GLOBAL typename WordsOf<4>::Vector*)((u8*)p + 4 * i) = v;
    }
}

extern __attribute__((device)) __attribute__((shared)) __attribute__((aligned(16))) u32 spark_shared[];

typedef u32 Quad __attribute__((ext_vector_type(4)));

template <class V>
struct Shared {
    // The same bytes are read and written as elements of several types.
    typedef V Alias __attribute__((may_alias));
    u32 at; // byte offset
    SPARK_FN explicit Shared(u32 byte) : at(byte) {}
    SPARK_FN V load(u32 i) const { return ((const Alias*)((const u8*)spark_shared + at))[i]; }
    SPARK_FN void store(u32 i, V v) const { ((Alias*)((u8*)spark_shared + at))[i] = v; }
};

// Newer compilers have removed the first of each of these pairs.
#if __has_builtin(__builtin_amdgcn_uicmp)
SPARK_FN u64 vote(bool b) { return __builtin_amdgcn_uicmp((u32)b, 0u, 33); }
#else
SPARK_FN u64 vote(bool b) {
    if constexpr (WAVE == 64) return __builtin_amdgcn_ballot_w64(b);
    return __builtin_amdgcn_ballot_w32(b);
}
#endif
template <int CONTROL>
SPARK_FN u32 move_lanes(u32 v) {
#if __has_builtin(__builtin_amdgcn_mov_dpp)
    return (u32)__builtin_amdgcn_mov_dpp((int)v, CONTROL, 0xf, 0xf, true);
#else
    return (u32)__builtin_amdgcn_update_dpp((int)v, (int)v, CONTROL, 0xf, 0xf, true);
#endif
}
SPARK_FN u32 rank_in(u64 mask) {
    u32 below = __builtin_amdgcn_mbcnt_lo((u32)mask, 0);
    if constexpr (WAVE == 64) below = __builtin_amdgcn_mbcnt_hi((u32)(mask >> 32), below);
    return below;
}
SPARK_FN u32 bits_of(float x) { return __builtin_bit_cast(u32, x); }
SPARK_FN float float_of(u32 x) { return __builtin_bit_cast(float, x); }
SPARK_FN u32 shuffle_xor(u32 v, u32 mask) {
    // Within 32 lanes a swizzle needs no address, and the smallest masks become data-parallel moves.
    switch (mask) {
    case 1: return move_lanes<0xb1>(v);  // quad_perm 1,0,3,2
    case 2: return move_lanes<0x4e>(v);  // quad_perm 2,3,0,1
    case 4: return (u32)__builtin_amdgcn_ds_swizzle((int)v, 0x101f);
    case 8: return move_lanes<0x128>(v); // row_ror 8
    case 16: return (u32)__builtin_amdgcn_ds_swizzle((int)v, 0x401f);
    default: return (u32)__builtin_amdgcn_ds_bpermute((int)((lane() ^ mask) << 2), (int)v);
    }
}
SPARK_FN float shuffle_xor(float v, u32 mask) { return float_of(shuffle_xor(bits_of(v), mask)); }

SPARK_FN void wave_barrier() {
    __builtin_amdgcn_fence(__ATOMIC_ACQ_REL, "wavefront");
    __builtin_amdgcn_wave_barrier();
}
SPARK_FN void block_barrier() {
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
    __builtin_amdgcn_s_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}

SPARK_FN u32 anew(u32 x) {
    asm volatile("" : "+v"(x));
    return x;
}

// Without the builtin, of LLVM 15, nothing keeps a compiler from it.
SPARK_FN void in_order() {
#if __has_builtin(__builtin_amdgcn_sched_barrier)
    __builtin_amdgcn_sched_barrier(0);
#endif
}
SPARK_FN u32 popcount(u32 x) { return (u32)__builtin_popcount(x); }
SPARK_FN u32 popcount(u64 x) { return (u32)__builtin_popcountll(x); }
// The low word of (high:low) >> shift % 32.
SPARK_FN u32 funnel_right(u32 high, u32 low, u32 shift) { return __builtin_amdgcn_alignbit(high, low, shift); }

// Of four nibbles, the low half of each byte.
SPARK_FN u32 look_up_bytes(u32 bytes, const u32 (&table)[4]) {
    // Three bits of a nibble pick one of eight bytes; the fourth picks of two such.
    const u32 at = bytes & 0x07070707, which = (bytes >> 1 & 0x04040404) | 0x03020100;
    const u32 first = __builtin_amdgcn_perm(table[1], table[0], at);
    return __builtin_amdgcn_perm(__builtin_amdgcn_perm(table[3], table[2], at), first, which);
}
SPARK_FN void look_up(u32 nibbles, const u32 (&table)[4], u32& low, u32& high) {
    const u32 even = look_up_bytes(nibbles, table), odd = look_up_bytes(nibbles >> 4, table);
    low = __builtin_amdgcn_perm(odd, even, 0x05010400);
    high = __builtin_amdgcn_perm(odd, even, 0x07030602);
}

SPARK_FN float half_to_float(u16 h) { return (float)__builtin_bit_cast(_Float16, h); }
SPARK_FN u16 float_to_half(float x) { return __builtin_bit_cast(u16, (_Float16)x); }
SPARK_FN float least(float a, float b) { return __builtin_fminf(a, b); }
SPARK_FN float greatest(float a, float b) { return __builtin_fmaxf(a, b); }
SPARK_FN float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
// Even and odd channels separately: CDNA multiplies and adds pairs in one instruction.
SPARK_FN float product(const float (&a)[8], const float (&b)[8]) {
#pragma clang fp contract(fast)
    typedef float Pair __attribute__((ext_vector_type(2)));
    Pair sum = {0.0f, 0.0f};
    SPARK_UNROLL
    for (u32 k = 0; k < 8; k += 2) sum = Pair{a[k], a[k + 1]} * Pair{b[k], b[k + 1]} + sum;
    return sum.x + sum.y;
}
// Subnormal results may become zero.
#if __has_builtin(__builtin_amdgcn_exp2f)
SPARK_FN float exp2_of(float x) { return __builtin_amdgcn_exp2f(x); }
#else
SPARK_FN float exp2_of(float x) { return __builtin_exp2f(x); }
#endif
SPARK_FN float round_even(float x) { return __builtin_rintf(x); }
// Correctly rounded: the instruction is not, and not every compiler corrects it.
SPARK_FN float sqrt_of(float x) {
    const bool small = x < 0x1p-96f;
    const float y = small ? x * 0x1p32f : x;
    float s = __builtin_amdgcn_sqrtf(y);
    const float below = float_of(bits_of(s) - 1), above = float_of(bits_of(s) + 1);
    s = y > 0.0f && fused(-below, s, y) <= 0.0f ? below : s;
    s = y > 0.0f && fused(-above, s, y) > 0.0f ? above : s;
    return small ? s * 0x1p-16f : s;
}

#ifdef SPARK_MATRIX
typedef float MatrixSums __attribute__((ext_vector_type(4)));
typedef int MatrixCounts __attribute__((ext_vector_type(4)));

SPARK_FN void matrix_f16(const u32 (&a)[2], const u32 (&b)[2], MatrixSums& c) {
    typedef u32 Pair __attribute__((ext_vector_type(2)));
    typedef _Float16 Halves __attribute__((ext_vector_type(4)));
    const Halves x = __builtin_bit_cast(Halves, Pair{a[0], a[1]}), y = __builtin_bit_cast(Halves, Pair{b[0], b[1]});
    c = __builtin_amdgcn_mfma_f32_16x16x16f16(x, y, c, 0, 0, 0);
}
SPARK_FN void matrix_f32(float a, float b, MatrixSums& c) {
    c = __builtin_amdgcn_mfma_f32_16x16x4f32(a, b, c, 0, 0, 0);
}
SPARK_FN void matrix_i8(const u32 (&a)[2], const u32 (&b)[2], MatrixCounts& c) {
#if defined(__gfx908__) || defined(__gfx90a__)
    SPARK_UNROLL
    for (u32 k = 0; k < 2; ++k) c = __builtin_amdgcn_mfma_i32_16x16x16i8((int)a[k], (int)b[k], c, 0, 0, 0);
#else
    const long x = (long)((u64)a[1] << 32 | a[0]), y = (long)((u64)b[1] << 32 | b[0]);
    c = __builtin_amdgcn_mfma_i32_16x16x32_i8(x, y, c, 0, 0, 0);
#endif
}

SPARK_CONSTANT u32 PICK_ZERO = 12;
SPARK_FN u32 pick_bytes(u32 high, u32 low, u32 selectors) { return __builtin_amdgcn_perm(high, low, selectors); }
SPARK_FN u32 low_halves(u32 a, u32 b) { return __builtin_amdgcn_perm(b, a, 0x05040100); }
SPARK_FN u32 high_halves(u32 a, u32 b) { return __builtin_amdgcn_perm(b, a, 0x07060302); }
SPARK_FN u32 halves_of(float a, float b) { return (u32)float_to_half(a) | (u32)float_to_half(b) << 16; }
SPARK_FN u32 add_halves(u32 a, u32 b) {
    typedef _Float16 Halves __attribute__((ext_vector_type(2)));
    return __builtin_bit_cast(u32, __builtin_bit_cast(Halves, a) + __builtin_bit_cast(Halves, b));
}
SPARK_FN u32 truncate_halves(float a, float b) {
    return __builtin_bit_cast(u32, __builtin_amdgcn_cvt_pkrtz(a, b));
}
#endif

#endif
