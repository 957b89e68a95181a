// Element types of tensors, and the numbers that kernels compute with. src/element.rs is the CPU's counterpart.
#ifndef SPARK_NUMBERS_H
#define SPARK_NUMBERS_H

#include "portable.h"

SPARK_CONSTANT float F16_MAX = 65504.0f;
SPARK_CONSTANT float FLOAT_MAX = 3.40282346638528859812e38f;
// Not a score: what a masked key has instead, and the greatest of no scores.
SPARK_CONSTANT float NO_SCORE = __builtin_bit_cast(float, 0xff800000u); // minus infinity, which NVRTC has no name for

// NaN as 0, everything else limited to the float16 range.
SPARK_FN float finite(float x) { return x == x ? least(greatest(x, -F16_MAX), F16_MAX) : 0.0f; }

SPARK_FN float finite_half(u32 h) { return finite(half_to_float((u16)h)); }

SPARK_FN float magnitude(float x) { return float_of(bits_of(x) & 0x7fffffff); }

// The nearest finite float16.
SPARK_FN u16 to_finite_half(float x) { return float_to_half(finite(x)); }

SPARK_CONSTANT float LOG2_E = 1.44269504088896340736f, LN_2 = 0.69314718055994530942f;

// Channels of a head that a lane holds where a wave shares them: lane, lane + WAVE, ...
SPARK_CONSTANT u32 CHUNKS = SPARK_MAX_HEAD_DIM / WAVE;

SPARK_FN float exp_of(float x) { return exp2_of(x * LOG2_E); }

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

// T is known at run time, not at compile time: tensors of T are read where little else is done, and the branch is the
// same in all lanes.
SPARK_FN float from_short(u32 scalar, u32 bits) {
    return scalar == SPARK_FLOAT16 ? half_to_float((u16)bits) : float_of(bits << 16);
}

// bfloat16: to nearest even; numbers here are finite and far from the end of the range.
SPARK_FN u32 to_brain(float x) {
    const u32 b = bits_of(x);
    return (b + 0x7fff + (b >> 16 & 1)) >> 16;
}

// Element `i` of T.
SPARK_FN float read_one(u32 scalar, const void* data, i64 i) {
    if (scalar == SPARK_FLOAT32) return load((const float*)data + i);
    return from_short(scalar, load((const u16*)data + i));
}

SPARK_FN void write_one(u32 scalar, void* data, i64 i, float x) {
    if (scalar == SPARK_FLOAT32) {
        store((float*)data + i, x);
    } else {
        store((u16*)data + i, scalar == SPARK_FLOAT16 ? to_finite_half(x) : (u16)to_brain(x));
    }
}

// N elements of T from `i` on, a multiple of four, as finite numbers.
template <u32 N>
SPARK_FN void read_some(u32 scalar, const void* data, i64 i, float (&x)[N]) {
    if (scalar == SPARK_FLOAT32) {
        u32 w[N];
        load_words((const float*)data + i, w);
        SPARK_UNROLL
        for (u32 k = 0; k < N; ++k) x[k] = float_of(w[k]);
    } else {
        u32 w[N / 2];
        load_words((const u16*)data + i, w);
        // One branch for all of them.
        if (scalar == SPARK_FLOAT16) {
            SPARK_UNROLL
            for (u32 k = 0; k < N; ++k) x[k] = half_to_float((u16)(w[k / 2] >> 16 * (k % 2)));
        } else {
            SPARK_UNROLL
            for (u32 k = 0; k < N; ++k) x[k] = float_of(w[k / 2] >> 16 * (k % 2) << 16);
        }
    }
    SPARK_UNROLL
    for (u32 k = 0; k < N; ++k) x[k] = finite(x[k]);
}

// Eight elements of T from `i` on.
SPARK_FN void write_octet(u32 scalar, void* data, i64 i, const float (&x)[8]) {
    if (scalar == SPARK_FLOAT32) {
        u32 w[8];
        SPARK_UNROLL
        for (u32 k = 0; k < 8; ++k) w[k] = bits_of(x[k]);
        store_words((float*)data + i, w);
        return;
    }
    u32 w[4];
    if (scalar == SPARK_FLOAT16) {
        SPARK_UNROLL
        for (u32 k = 0; k < 4; ++k) w[k] = (u32)to_finite_half(x[2 * k]) | (u32)to_finite_half(x[2 * k + 1]) << 16;
    } else {
        SPARK_UNROLL
        for (u32 k = 0; k < 4; ++k) w[k] = to_brain(x[2 * k]) | to_brain(x[2 * k + 1]) << 16;
    }
    store_words((u16*)data + i, w);
}

// Sum, minimum and maximum over aligned groups of `lanes` lanes.
SPARK_FN float sum_over(float x, u32 lanes) {
    SPARK_UNROLL
    for (u32 n = 0; n < 6; ++n) {
        const u32 m = 1u << n;
        if (m < lanes) x += shuffle_xor(x, m);
    }
    return x;
}
SPARK_FN float least_over(float x, u32 lanes) {
    SPARK_UNROLL
    for (u32 n = 0; n < 6; ++n) {
        const u32 m = 1u << n;
        if (m < lanes) x = least(x, shuffle_xor(x, m));
    }
    return x;
}
SPARK_FN float greatest_over(float x, u32 lanes) {
    SPARK_UNROLL
    for (u32 n = 0; n < 6; ++n) {
        const u32 m = 1u << n;
        if (m < lanes) x = greatest(x, shuffle_xor(x, m));
    }
    return x;
}

#endif
