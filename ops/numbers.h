// Element types of tensors, and the numbers that kernels compute with. src/element.rs is the CPU's side of it.
#ifndef SPARK_NUMBERS_H
#define SPARK_NUMBERS_H

#include "portable.h"

SPARK_CONSTANT float F16_MAX = 65504.0f;
SPARK_CONSTANT float FLOAT_MAX = 3.40282346638528859812e38f;
// Not a score: what a masked key has instead, and the greatest of no scores.
SPARK_CONSTANT float NO_SCORE = -__builtin_huge_valf();

// NaN as 0, everything else limited to the float16 range.
SPARK_FN float finite(float x) { return x == x ? least(greatest(x, -F16_MAX), F16_MAX) : 0.0f; }

SPARK_FN float finite_half(u32 h) { return finite(half_to_float((u16)h)); }

// The nearest finite float16.
SPARK_FN u16 to_finite_half(float x) { return float_to_half(finite(x)); }

SPARK_FN float exp_of(float x) { return exp2_of(x * 1.44269504088896340736f); }

SPARK_FN float tanh_of(float x) {
    const float y = x < 0.0f ? -x : x;
    float t;
    if (y < 0.25f) {
        const float z = y * y;
        t = y * (1.0f + z * (-1.0f / 3.0f + z * (2.0f / 15.0f + z * (-17.0f / 315.0f + z * (62.0f / 2835.0f)))));
    } else {
        // exp overflows to infinity for large y, which gives 1.
        t = 1.0f - 2.0f / (exp_of(2.0f * y) + 1.0f);
    }
    return x < 0.0f ? -t : t;
}

// T = float32. `some` reads channels from their words, `pack` writes eight.
struct Float32 {
    SPARK_CONSTANT u32 BYTES = 4;
    SPARK_CONSTANT u32 WORDS = 8; // of eight channels
    SPARK_FN static float read(const void* data, i64 i) { return load((const float*)data + i); }
    SPARK_FN static void write(void* data, i64 i, float x) { store((float*)data + i, x); }
    template <u32 N>
    SPARK_FN static void some(const u32 (&w)[N], float (&x)[N]) {
        SPARK_UNROLL
        for (u32 k = 0; k < N; ++k) x[k] = float_of(w[k]);
    }
    SPARK_FN static void pack(const float (&x)[8], u32 (&w)[8]) {
        SPARK_UNROLL
        for (u32 k = 0; k < 8; ++k) w[k] = bits_of(x[k]);
    }
};

// T of two bytes; `Of` converts.
template <class Of>
struct Short {
    SPARK_CONSTANT u32 BYTES = 2;
    SPARK_CONSTANT u32 WORDS = 4;
    SPARK_FN static float read(const void* data, i64 i) { return Of::from(load((const u16*)data + i)); }
    SPARK_FN static void write(void* data, i64 i, float x) { store((u16*)data + i, Of::to(x)); }
    template <u32 N>
    SPARK_FN static void some(const u32 (&w)[N], float (&x)[2 * N]) {
        SPARK_UNROLL
        for (u32 k = 0; k < N; ++k) {
            x[2 * k] = Of::from((u16)(w[k] & 0xffff));
            x[2 * k + 1] = Of::from((u16)(w[k] >> 16));
        }
    }
    SPARK_FN static void pack(const float (&x)[8], u32 (&w)[4]) {
        SPARK_UNROLL
        for (u32 k = 0; k < 4; ++k) w[k] = (u32)Of::to(x[2 * k]) | (u32)Of::to(x[2 * k + 1]) << 16;
    }
};

struct HalfBits {
    SPARK_FN static float from(u16 h) { return half_to_float(h); }
    SPARK_FN static u16 to(float x) { return to_finite_half(x); }
};
struct BrainBits {
    SPARK_FN static float from(u16 h) { return float_of((u32)h << 16); }
    // To nearest, of two the even one; numbers here are finite and far from the end of the range.
    SPARK_FN static u16 to(float x) {
        const u32 b = bits_of(x);
        return (u16)((b + 0x7fff + (b >> 16 & 1)) >> 16);
    }
};
typedef Short<HalfBits> Float16;
typedef Short<BrainBits> BFloat16;

// Sums, least and greatest over aligned groups of `lanes` lanes.
SPARK_FN float sum_over(float x, u32 lanes) {
    SPARK_UNROLL
    for (u32 m = 1; m < WAVE; m <<= 1) {
        if (m < lanes) x += shuffle_xor(x, m);
    }
    return x;
}
SPARK_FN float least_over(float x, u32 lanes) {
    SPARK_UNROLL
    for (u32 m = 1; m < WAVE; m <<= 1) {
        if (m < lanes) x = least(x, shuffle_xor(x, m));
    }
    return x;
}
SPARK_FN float greatest_over(float x, u32 lanes) {
    SPARK_UNROLL
    for (u32 m = 1; m < WAVE; m <<= 1) {
        if (m < lanes) x = greatest(x, shuffle_xor(x, m));
    }
    return x;
}

#endif
