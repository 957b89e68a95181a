// What a block of a decoding kernel computes, and what it has in LDS: its queries, and key rows as they are stored.
#ifndef SPARK_DECODE_BLOCK_H
#define SPARK_DECODE_BLOCK_H

#include "rows.h"
#include "scores.h"

SPARK_CONSTANT u32 DECODE_WAVES = SPARK_BLOCK_WAVES;

// Queries of a KV head, and a piece of their keys.
// Blocks: x = chunk of queries + chunks * (piece of the keys + splits * KV head), z = sequence.
struct DecodeBlock {
    u32 columns; // (token, head) pairs of a KV head
    u32 first_column, last_column, split, kv_head;

    SPARK_FN DecodeBlock(const SparkCall& call, u32 most_columns) : columns(call.group * call.new_tokens) {
        const u32 chunks = (columns + most_columns - 1) / most_columns;
        first_column = same(block_x() % chunks * most_columns);
        last_column = (first_column + most_columns < columns ? first_column + most_columns : columns) - 1;
        split = same(block_x() / chunks % call.splits);
        kv_head = same(block_x() / chunks / call.splits);
    }

    SPARK_FN Keys keys(const SparkCall& call, const Sequence& s) const {
        const u32 first = same(first_column / call.group), end = same(last_column / call.group + 1);
        const Keys keys = keys_of(call, s, first, end, split);
        return {same(keys.start), same(keys.end)};
    }
};

// LDS: D units, COLUMNS * D queries, both of which stay; D scales.
template <u32 COLUMNS>
SPARK_FN void queries_to_shared(const SparkCall& call, const Sequence& s, u32 kv_head, u32 first_column) {
    const u32 d = call.head_dim;
    const Shared<float> units(0), queries(4 * d), scales(4 * (COLUMNS + 1) * d);
    for (u32 j = thread(); j < d; j += DECODE_WAVES * WAVE) {
        const float scale = channel_scale(call, kv_head, j);
        scales.store(j, call.key_bits == 16 ? 1.0f : scale);
        units.store(j, call.key_bits == 16 ? scale : 1.0f / scale);
    }
    block_barrier();
    for (u32 n = thread(); n < COLUMNS * d / 8; n += DECODE_WAVES * WAVE) {
        const u32 c = n / (d / 8), o = n % (d / 8), column = first_column + c, i = column / call.group;
        float q[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        if (i < s.valid) {
            token_octet(call, call.query, s, kv_head * call.group + column % call.group, i, o, true, q);
        }
        SPARK_UNROLL
        for (u32 k = 0; k < 8; ++k) queries.store(8 * n + k, q[k] * scales.load(8 * o + k));
    }
    block_barrier();
}

// One wave copies the fields of `count` key rows, from position `t` on, to LDS from byte `staged` on.
SPARK_FN void stage_keys(const SparkCall& call, const KeyLayout& layout, const Sequence& s, u32 kv_head, u32 t,
                         u32 count, u32 staged) {
    const i64 row = ((i64)s.index * call.kv_heads + kv_head) * call.past_rows + t;
    const u8* from = (const u8*)call.past_key + row * call.key_row_bytes;
    const Shared<u32> to(staged);
    wave_barrier();
    if (4 * layout.words == call.key_row_bytes) {
        const u32 words = count * layout.words, whole = words / 4 * 4;
        for (u32 i = 4 * lane(); i < whole; i += 4 * WAVE) {
            u32 w[4];
            load_words(from + 4 * i, w);
            SPARK_UNROLL
            for (u32 k = 0; k < 4; ++k) to.store(i + k, w[k]);
        }
        const u32 i = whole + lane();
        if (i < words) to.store(i, load((const u32*)from + i));
    } else {
        SPARK_NOTE("padded rows");
        for (u32 r = 0; r < count; ++r) {
            const u32* words = (const u32*)(from + (i64)r * call.key_row_bytes);
            for (u32 i = anew(lane()); i < layout.words; i += WAVE) to.store(r * layout.words + i, load(words + i));
        }
    }
    wave_barrier();
}

#endif
