// The new tokens of a call: queries, keys and values, rotated if required. src/cpu/tokens.rs is the reference.
#ifndef SPARK_TOKENS_H
#define SPARK_TOKENS_H

#include "numbers.h"

// A sequence of the launch.
struct Sequence {
    u32 index; // in the batch
    u32 past;
    u32 valid;
    u32 tail; // keys that the tail of its buffers keeps

    SPARK_FN Sequence(const SparkCall& call, u32 n)
        : index(call.first_sequence + n), past(call.sequence[n].past), valid(call.sequence[n].valid),
          tail(call.sequence[n].tail) {}
};

// Row of the rotation tables for new token `i`. A position after their end, which the host could not see, becomes
// their last row, a negative one their first.
SPARK_FN u32 position(const SparkCall& call, const Sequence& s, u32 i) {
    i64 p = (i64)s.past + i;
    if (call.position_ids) {
        // In words: NVIDIA GPUs fault on eight bytes that are aligned to four, and a call guarantees only four.
        u32 words[2];
        load_words(call.position_ids + (i64)s.index * call.new_tokens + i, words);
        p = (i64)((u64)words[1] << 32 | words[0]);
    }
    const i64 last = (i64)call.positions - 1;
    p = p < last ? p : last;
    return (u32)(p > 0 ? p : 0);
}

SPARK_FN i64 token_at(const SparkTokens& tokens, u32 b, u32 head, u32 i) {
    return (i64)b * tokens.batch + (i64)head * tokens.head + (i64)i * tokens.token;
}

// The two channels of the rotated pair that has channel `j`, and the index of its angle.
struct Pair {
    u32 first, second, angle;
    bool is_first;

    SPARK_FN Pair(const SparkCall& call, u32 j) {
        const u32 half = call.head_dim / 2;
        is_first = call.rotary == 1 ? j < half : j % 2 == 0;
        angle = call.rotary == 1 ? (is_first ? j : j - half) : j / 2;
        first = call.rotary == 1 ? angle : 2 * angle;
        second = call.rotary == 1 ? angle + half : 2 * angle + 1;
    }
};

SPARK_FN float rotated(bool is_first, float x0, float x1, float cos, float sin) {
    return finite(is_first ? x0 * cos - x1 * sin : x0 * sin + x1 * cos);
}

// The type of tokens that need no rotation; of queries and keys if `rotate`.
SPARK_FN u32 scalar_of(const SparkCall& call, bool rotate) {
    return rotate && call.in_basis ? SPARK_FLOAT32 : call.scalar;
}

// Channel `j` of a token, rotated if `rotate`.
SPARK_FN float channel(const SparkCall& call, const SparkTokens& tokens, const Sequence& s, u32 head, u32 i, u32 j,
                       bool rotate) {
    const i64 at = token_at(tokens, s.index, head, i);
    if (!rotate || !call.rotary) return finite(read_one(scalar_of(call, rotate), tokens.data, at + j));
    const Pair pair(call, j);
    const i64 row = (i64)position(call, s, i) * (call.head_dim / 2) + pair.angle;
    const float cos = finite(read_one(call.scalar, call.cos_cache, row));
    const float sin = finite(read_one(call.scalar, call.sin_cache, row));
    const float x0 = finite(read_one(call.scalar, tokens.data, at + pair.first));
    const float x1 = finite(read_one(call.scalar, tokens.data, at + pair.second));
    return rotated(pair.is_first, x0, x1, cos, sin);
}

// Channels 8 * octet to 8 * octet + 7 of a token, rotated if `rotate`.
SPARK_FN void token_octet(const SparkCall& call, const SparkTokens& tokens, const Sequence& s, u32 head, u32 i,
                          u32 octet, bool rotate, float (&x)[8]) {
    const i64 at = token_at(tokens, s.index, head, i);
    if (!rotate || !call.rotary) return read_some(scalar_of(call, rotate), tokens.data, at + 8 * octet, x);
    // Half a head is a whole number of quads, but not always of octets.
    const u32 half = call.head_dim / 2;
    const i64 row = (i64)position(call, s, i) * half;
    SPARK_UNROLL
    for (u32 q = 0; q < 2; ++q) {
        const u32 j = 8 * octet + 4 * q;
        float x0[4], x1[4], cos[4], sin[4];
        if (call.rotary == 1) {
            const bool is_first = j < half;
            const u32 angle = is_first ? j : j - half;
            read_some(call.scalar, tokens.data, at + angle, x0);
            read_some(call.scalar, tokens.data, at + angle + half, x1);
            read_some(call.scalar, call.cos_cache, row + angle, cos);
            read_some(call.scalar, call.sin_cache, row + angle, sin);
            SPARK_UNROLL
            for (u32 k = 0; k < 4; ++k) x[4 * q + k] = rotated(is_first, x0[k], x1[k], cos[k], sin[k]);
        } else {
            read_some(call.scalar, tokens.data, at + j, x0);
            SPARK_UNROLL
            for (u32 k = 0; k < 2; ++k) {
                const float c = finite(read_one(call.scalar, call.cos_cache, row + j / 2 + k));
                const float n = finite(read_one(call.scalar, call.sin_cache, row + j / 2 + k));
                x[4 * q + 2 * k] = rotated(true, x0[2 * k], x0[2 * k + 1], c, n);
                x[4 * q + 2 * k + 1] = rotated(false, x0[2 * k], x0[2 * k + 1], c, n);
            }
        }
    }
}

// The model's typical n of a channel; 1 if the host passes none, or an invalid one.
SPARK_FN float typical_saliency(const SparkCall& call, u32 head, u32 j) {
    if (!call.query_saliency) return 1.0f;
    const float n = load(call.query_saliency + head * call.head_dim + j);
    return n > 0.0f && n <= FLOAT_MAX ? n : 1.0f;
}

// Channel scale c.
SPARK_FN float channel_scale(const SparkCall& call, u32 head, u32 j) {
    return 1.0f / sqrt_of(typical_saliency(call, head, j));
}

#endif
