// The rows of a tile for AMD's matrix cores: keys are copied to LDS, values are loaded to registers; and which lane has
// what. mma_rows.h is NVIDIA's counterpart.
#ifndef SPARK_MATRIX_ROWS_H
#define SPARK_MATRIX_ROWS_H

#include "decode.h"

// Keys of a product.
SPARK_CONSTANT u32 MATRIX_KEYS = SPARK_MATRIX_KEYS;
// LDS of a block whose keys have masks, in words: for each byte of a mask, a quad of code selectors and bytes of kept
// channels; for each byte of a sign plane, two words of signs.
SPARK_CONSTANT u32 MATRIX_TABLE_WORDS = SPARK_MATRIX_TABLE_WORDS;

struct MatrixLanes {
    // The lane's query of four.
    SPARK_FN static u32 query() { return lane() % 16 / 4; }

    // Over the lanes of a query that have different keys, or scales of different groups of channels.
    SPARK_FN static float greatest_of_query(float x) {
        x = greatest(x, shuffle_xor(x, 2));
        x = greatest(x, shuffle_xor(x, 16));
        return greatest(x, shuffle_xor(x, 32));
    }
    // Over those that have different keys.
    SPARK_FN static float sum_of_query(float x) {
        x += shuffle_xor(x, 16);
        return x + shuffle_xor(x, 32);
    }
};

struct MatrixRows {
    const SparkCall& call;
    const Sequence& s;
    const u32 kv_head;
    const KeyLayout layout;
    // Bytes of LDS: the tables; the wave's key rows and what is read beyond them; the factors of its keys.
    const u32 region, staged, factors;
    u32 first, count; // of the tile

    // Words of LDS for the tables, which keys in planes do not need.
    SPARK_FN static u32 table_words(const SparkCall& call) { return call.key_planes ? 0 : MATRIX_TABLE_WORDS; }

    // The same for the key rows of a wave, and what is read beyond them.
    SPARK_FN static u32 key_words(const SparkCall& call, const KeyLayout& layout) {
        return MATRIX_KEYS * layout.words + (call.key_planes ? PLANE_SLACK_WORDS : KEY_SLACK_WORDS);
    }

    // The same for each wave, a multiple of four.
    SPARK_FN static u32 wave_words(const SparkCall& call, const KeyLayout& layout) {
        return (key_words(call, layout) + 3) / 4 * 4 + 4 * MATRIX_KEYS;
    }

    // Bytes of LDS for a block.
    SPARK_FN static u32 block_bytes(const SparkCall& call) {
        return 4 * (table_words(call) + DECODE_WAVES * wave_words(call, KeyLayout(call)));
    }

    // The tables are in LDS from byte `region` on, a multiple of 16, and each wave's words follow them.
    SPARK_FN MatrixRows(const SparkCall& call, const Sequence& s, u32 kv_head, u32 region)
        : call(call), s(s), kv_head(kv_head), layout(call), region(region),
          staged(region + 4 * (table_words(call) + wave_words(call, layout) * wave())),
          factors(staged + 4 * (wave_words(call, layout) - 4 * MATRIX_KEYS)), first(0), count(0) {}

    // Rows are not asked for ahead: other waves of the compute unit work meanwhile.
    SPARK_FN void begin(u32) {}
    SPARK_FN void request(u32, u32, u32) {}

    // The tile from `t` on, at most MATRIX_KEYS keys and below `end`, is the current one.
    SPARK_FN void await(u32, u32 t, u32 end) {
        first = t;
        count = end - t < MATRIX_KEYS ? end - t : MATRIX_KEYS;
    }

    // Its value rows, in global memory.
    SPARK_FN const u8* values() const {
        const i64 at = ((i64)s.index * call.kv_heads + kv_head) * call.past_rows + first;
        return (const u8*)call.past_value + at * call.value_row_bytes;
    }

    // Copies its key rows to LDS.
    SPARK_FN void stage() const { stage_keys(call, layout, s, kv_head, first, count, staged); }
};

#endif
