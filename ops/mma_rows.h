// The rows of a tile for tensor cores: copied to LDS as they are stored, while the tile before is multiplied; and which
// lane has what.
#ifndef SPARK_MMA_ROWS_H
#define SPARK_MMA_ROWS_H

#include "decode.h"

// Keys of a product.
SPARK_CONSTANT u32 MATRIX_KEYS = SPARK_MATRIX_KEYS;
// Bytes of a copy, and what it is aligned to.
SPARK_CONSTANT u32 COPY_BYTES = 16;
SPARK_CONSTANT u32 MMA_SLACK = SPARK_MMA_SLACK_BYTES;

// Rows in the tail of a buffer that a lane has in flight: registers have no room for more.
template <class Dense>
struct TailSteps {
    SPARK_CONSTANT u32 STEPS = 1;
};

struct MatrixLanes {
    // The lane's query of four; its fourth of the keys of a tile; which of the digits of a query and of the halves of a
    // weight it has.
    SPARK_FN static u32 query() { return lane() / 4 % 4; }
    SPARK_FN static u32 group() { return lane() % 4; }
    SPARK_FN static u32 part() { return lane() / 16; }

    // Over the lanes of a query that have different keys.
    SPARK_FN static float greatest_of_query(float x) {
        x = greatest(x, shuffle_xor(x, 1));
        return greatest(x, shuffle_xor(x, 2));
    }
    SPARK_FN static float sum_of_query(float x) {
        x += shuffle_xor(x, 1);
        return x + shuffle_xor(x, 2);
    }
};

// A wave's memory: factors of 16 keys, and two buffers of rows. A buffer has the key rows, from one of its first 16
// bytes on, so that it is aligned as the rows are in global memory, and then the value rows likewise.
struct MatrixRows {
    const SparkCall& call;
    const u8 *keys, *values; // of the sequence and KV head
    const u32 at, value_at;  // bytes of LDS: of the wave; from a buffer's begin to its values
    u32 key_begin, value_begin, last;

    // Bytes of LDS, multiples of 16.
    SPARK_FN static u32 wave_bytes(const SparkCall& call) {
        return MATRIX_KEYS * (u32)sizeof(Quad) + 2 * buffer_bytes(call);
    }
    SPARK_FN static u32 buffer_bytes(const SparkCall& call) {
        return MATRIX_KEYS * (call.key_row_bytes + call.value_row_bytes) + 2 * MMA_SLACK;
    }
    SPARK_FN static u32 block_bytes(const SparkCall& call) { return DECODE_WAVES * wave_bytes(call); }

    // LDS from byte `region` on, a multiple of 16.
    SPARK_FN MatrixRows(const SparkCall& call, const Sequence& s, u32 kv_head, u32 region)
        : call(call), at(region + wave() * wave_bytes(call)),
          value_at(MATRIX_KEYS * call.key_row_bytes + MMA_SLACK) {
        const i64 first = ((i64)s.index * call.kv_heads + kv_head) * call.past_rows;
        keys = (const u8*)call.past_key + first * call.key_row_bytes;
        values = (const u8*)call.past_value + first * call.value_row_bytes;
        key_begin = value_begin = last = 0;
        // Bytes beside rows are read, but not used.
        clear_row(at, wave_bytes(call) / 4);
    }

    SPARK_FN u32 factors() const { return at; }

    // Bytes of LDS of a row of the current tile; those beyond the last one are the last one.
    SPARK_FN u32 key(u32 row) const { return key_begin + (row < last ? row : last) * call.key_row_bytes; }
    SPARK_FN u32 value(u32 row) const { return value_begin + (row < last ? row : last) * call.value_row_bytes; }

    // Asks for `bytes` bytes, a multiple of four, which come to LDS to one of the 16 bytes from `to`, a multiple of 16, on.
    SPARK_FN static void copy(u32 to, const u8* from, u32 bytes) {
        const u32 shift = (u32)(u64)from % COPY_BYTES, begin = to + shift, before = (COPY_BYTES - shift) % COPY_BYTES;
        const u32 head = before < bytes ? before : bytes, whole = (bytes - head) / COPY_BYTES * COPY_BYTES;
        for (u32 i = COPY_BYTES * lane(); i < whole; i += COPY_BYTES * WAVE) {
            copy_async<COPY_BYTES>(begin + head + i, from + head + i);
        }
        // Single words: at most three before and three after.
        const u32 word = 4 * (lane() % 4), end = bytes - head - whole;
        if (lane() < 4 && word < head) copy_async<4>(begin + word, from + word);
        const u32 rest = head + whole + word;
        if (lane() >= 4 && lane() < 8 && word < end) copy_async<4>(begin + rest, from + rest);
    }

    // Asks for the rows from `t` on, at most MATRIX_KEYS and below `end`, for buffer `buffer`.
    SPARK_FN void request(u32 buffer, u32 t, u32 end) {
        // The wave has read what the buffer had.
        wave_barrier();
        if (t < end) {
            const u32 count = end - t < MATRIX_KEYS ? end - t : MATRIX_KEYS;
            const u32 begin = at + MATRIX_KEYS * (u32)sizeof(Quad) + buffer * buffer_bytes(call);
            copy(begin, keys + (i64)t * call.key_row_bytes, count * call.key_row_bytes);
            copy(begin + value_at, values + (i64)t * call.value_row_bytes, count * call.value_row_bytes);
        }
        end_copies();
    }

    // Waits for the tile from `t` on, which was asked for, for this buffer, before the last one that was.
    SPARK_FN void await(u32 buffer, u32 t, u32 end) {
        const u32 begin = at + MATRIX_KEYS * (u32)sizeof(Quad) + buffer * buffer_bytes(call);
        last = (end - t < MATRIX_KEYS ? end - t : MATRIX_KEYS) - 1;
        key_begin = begin + (u32)(u64)(keys + (i64)t * call.key_row_bytes) % COPY_BYTES;
        value_begin = begin + value_at + (u32)(u64)(values + (i64)t * call.value_row_bytes) % COPY_BYTES;
        await_copies<1>();
        wave_barrier();
    }

    // It is in LDS.
    SPARK_FN void stage() const {}
};

#endif
