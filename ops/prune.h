// The write path: a wave selects the channels of one key and encodes it and its value. src/method/selection.rs and
// src/format are the reference; masks and codes are identical, a may differ by the order of its sum.
#ifndef SPARK_PRUNE_H
#define SPARK_PRUNE_H

#include "prune_planes.h"

SPARK_CONSTANT u32 PRUNE_WAVES = SPARK_BLOCK_WAVES;
SPARK_CONSTANT u32 MIN_OBSERVED = 8;

// Quantises `x`, rounding as the CPU does.
SPARK_FN u32 code_of(float x, float minimum, float step, float most) {
    if (step == 0.0f) return 0;
    return (u32)round_even(least(greatest((x - minimum) / step, 0.0f), most));
}

// The keep mask of a key, from the bits of its scores: the lane's bit of each chunk. As in src/method/selection.rs.
SPARK_FN void select_channels(const int (&score)[CHUNKS], u32 kept, u32 d, bool (&keep)[CHUNKS]) {
    int bound = 0;
    u32 reach = d;
    for (int bit = 30; bit >= 0 && reach != kept; --bit) {
        const int higher = bound | 1 << bit;
        u32 count = 0;
        SPARK_UNROLL
        for (u32 c = 0; c < CHUNKS; ++c) count += popcount(vote(score[c] >= higher));
        if (count >= kept) {
            bound = higher;
            reach = count;
        }
    }
    // Of the scores equal to the threshold, the first ones are kept.
    u64 equal[CHUNKS];
    u32 equals = 0;
    SPARK_UNROLL
    for (u32 c = 0; c < CHUNKS; ++c) {
        equal[c] = vote(score[c] == bound);
        equals += popcount(equal[c]);
    }
    const u32 room = equals - (reach - kept);
    u32 before = 0;
    SPARK_UNROLL
    for (u32 c = 0; c < CHUNKS; ++c) {
        keep[c] = score[c] > bound || (score[c] == bound && before + rank_in(equal[c]) < room);
        before += popcount(equal[c]);
    }
}

SPARK_FN void encode_key(const SparkCall& call, const Sequence& s, u32 head, u32 i, u32 row, u32 codes) {
    const KeyLayout layout(call);
    const u32 d = call.head_dim;
    const float* own = (const float*)call.workspace + ((i64)block_z() * call.kv_heads + head) * d;
    float key[CHUNKS], size[CHUNKS];
    int score[CHUNKS];
    SPARK_UNROLL
    for (u32 c = 0; c < CHUNKS; ++c) {
        const u32 j = c * WAVE + lane();
        // Scores are not negative, so their bits have the same order; lanes without a channel come below all.
        score[c] = -1;
        key[c] = size[c] = 0.0f;
        if (j < d) {
            const float k = channel(call, call.key, s, head, i, j, true);
            const float n = s.valid < MIN_OBSERVED ? typical_saliency(call, head, j) : load(own + j);
            score[c] = (int)bits_of(k * k * n);
            key[c] = k;
            size[c] = float_of(bits_of(k) & 0x7fffffff) / channel_scale(call, head, j);
        }
    }
    bool keep[CHUNKS];
    select_channels(score, call.kept, d, keep);

    float squares = 0.0f, lo = FLOAT_MAX, hi = -FLOAT_MAX;
    u64 mask[CHUNKS], signs[CHUNKS];
    SPARK_UNROLL
    for (u32 c = 0; c < CHUNKS; ++c) {
        mask[c] = vote(keep[c]);
        signs[c] = vote(key[c] <= 0.0f && !(call.key_bits == 16 && keep[c]));
        if (keep[c]) {
            lo = least(lo, size[c]);
            hi = greatest(hi, size[c]);
        } else {
            squares += size[c] * size[c];
        }
    }
    float a = 0.0f;
    if (call.recover && call.kept < d) a = sqrt_of(sum_over(squares, WAVE) / (float)(d - call.kept));

    clear_row(row, layout.words);
    const Shared<u8> bytes(row);
    const Shared<u16> halves(row);
    SPARK_UNROLL
    for (u32 c = 0; c < CHUNKS; ++c) {
        const u32 at = lane() - c * (WAVE / 8);
        if (at < WAVE / 8 && lane() < layout.mask_bytes) {
            bytes.store(lane(), (u8)(mask[c] >> 8 * at));
            bytes.store(layout.mask_bytes + lane(), (u8)(signs[c] >> 8 * at));
        }
    }
    float m = 0.0f, step = 0.0f;
    const float most = call.key_bits == 8 || call.key_companded ? 255.0f : 15.0f;
    if (call.key_bits != 16) {
        const u16 m_bits = to_finite_half(least_over(lo, WAVE));
        const u16 step_bits = to_finite_half((greatest_over(hi, WAVE) - least_over(lo, WAVE)) / most);
        m = half_to_float(m_bits);
        step = half_to_float(step_bits);
        if (lane() == 0) {
            halves.store(layout.scalars_at / 2 + 1, m_bits);
            halves.store(layout.scalars_at / 2 + 2, step_bits);
        }
    }
    if (lane() == 0) halves.store(layout.scalars_at / 2, to_finite_half(a));
    const Shared<u8> nibbles(codes);
    u32 before = 0;
    SPARK_UNROLL
    for (u32 c = 0; c < CHUNKS; ++c) {
        const u32 slot = before + rank_in(mask[c]);
        before += popcount(mask[c]);
        if (!keep[c]) continue;
        if (call.key_bits == 16) {
            halves.store(layout.codes_at / 2 + slot, to_finite_half(key[c]));
        } else if (call.key_bits == 8) {
            bytes.store(layout.codes_at + slot, (u8)code_of(size[c], m, step, most));
        } else if (call.key_companded) {
            nibbles.store(slot, (u8)(step == 0.0f ? 0 : nearest_code((size[c] - m) / step)));
        } else {
            nibbles.store(slot, (u8)code_of(size[c], m, step, most));
        }
    }
    if (call.key_bits == 4) pack_nibbles(codes, row + layout.codes_at, call.kept);
    write_key(call, s, head, i, row, key);
}

SPARK_FN void encode_value(const SparkCall& call, const Sequence& s, u32 head, u32 i, u32 row, u32 codes) {
    const ValueLayout layout(call);
    const u32 d = call.head_dim, bits = call.value_bits;
    const Shared<u8> bytes(row), nibbles(codes);
    const Shared<u16> halves(row);
    float value[CHUNKS], lo = FLOAT_MAX, hi = -FLOAT_MAX;
    SPARK_UNROLL
    for (u32 c = 0; c < CHUNKS; ++c) {
        const u32 j = c * WAVE + lane();
        value[c] = j < d ? channel(call, call.value, s, head, i, j, false) : 0.0f;
    }
    if (call.value_rotated) rotate(d, value);
    SPARK_UNROLL
    for (u32 c = 0; c < CHUNKS; ++c) {
        if (c * WAVE + lane() < d) {
            lo = least(lo, value[c]);
            hi = greatest(hi, value[c]);
        }
    }
    clear_row(row, layout.words);
    const float most = bits == 8 ? 255.0f : 15.0f;
    const bool grouped = call.value_groups > 1;
    lo = least_over(lo, WAVE);
    hi = greatest_over(hi, WAVE);
    SPARK_UNROLL
    for (u32 c = 0; c < CHUNKS; ++c) {
        const u32 j = c * WAVE + lane();
        float minimum = lo, most_here = hi;
        if (grouped) {
            // A group is 32 lanes; lanes without a channel form whole groups of their own.
            minimum = least_over(value[c], VALUE_GROUP);
            most_here = greatest_over(value[c], VALUE_GROUP);
        }
        const u16 scale_bits = to_finite_half((most_here - minimum) / most), minimum_bits = to_finite_half(minimum);
        if (j >= d) continue;
        const u32 code = code_of(value[c], half_to_float(minimum_bits), half_to_float(scale_bits), most);
        if (bits == 16) {
            halves.store(j, to_finite_half(value[c]));
        } else if (bits == 8) {
            bytes.store(layout.codes_at + j, (u8)code);
        } else {
            nibbles.store(j, (u8)code);
        }
        const u32 group = grouped ? VALUE_GROUP : SPARK_MAX_HEAD_DIM;
        if (bits != 16 && j % group == 0) {
            halves.store(2 * (j / group), scale_bits);
            halves.store(2 * (j / group) + 1, minimum_bits);
        }
    }
    if (bits == 4) pack_nibbles(codes, row + layout.codes_at, d);
    u8* to = (u8*)call.present_value;
    const i64 at = ((i64)s.index * call.kv_heads + head) * call.present_rows + s.past + i;
    copy_row(row, layout.words, to + at * call.value_row_bytes, call.value_row_bytes);
}

// Blocks: x = block of tokens + blocks of a head * KV head, z = sequence. LDS: for each wave a row and 256 codes, and
// with PLANES 256 floats.
template <bool PLANES>
SPARK_FN void prune_tokens(const SparkCall& call) {
    const KeyLayout key(call);
    const ValueLayout value(call);
    const u32 blocks = (call.new_tokens + PRUNE_WAVES - 1) / PRUNE_WAVES;
    const u32 i = block_x() % blocks * PRUNE_WAVES + wave(), head = block_x() / blocks;
    const Sequence s(call, block_z());
    if (i >= s.valid) return;
    const u32 words = key.words > value.words ? key.words : value.words;
    const u32 row = wave() * (4 * words + (PLANES ? 5 : 1) * SPARK_MAX_HEAD_DIM), codes = row + 4 * words;
    if constexpr (PLANES) {
        encode_planes(call, s, head, i, row, codes);
    } else {
        encode_key(call, s, head, i, row, codes);
    }
    encode_value(call, s, head, i, row, codes);
}

#endif
