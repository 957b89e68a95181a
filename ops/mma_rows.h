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

// Where the rows of one kind lie, keys or values, and how those of a tile come to LDS. Tiles of a wave are a multiple
// of 16 bytes apart, so all begin at the same byte of 16, `shift`, in global memory and in LDS.
struct MmaCopies {
    const u32 row_bytes;
    const u8* next; // the first row of the tile that is asked for next
    u32 shift;
    // Bytes from the first row on to what the lane copies of whole tiles: to the first of its aligned 16, and to a
    // single word, if below NO_WORD.
    u32 own, word;
    SPARK_CONSTANT u32 NO_WORD = 1u << 31;

    SPARK_FN MmaCopies(const void* rows, i64 first, u32 row_bytes)
        : row_bytes(row_bytes), next((const u8*)rows + first * row_bytes), shift(0), own(0), word(0) {}

    // Goes to row `t`, where the wave's first tile begins.
    SPARK_FN void begin(u32 t) {
        next += (i64)t * row_bytes;
        shift = anew((u32)(u64)next % COPY_BYTES);
        own = anew((COPY_BYTES - shift) % COPY_BYTES + COPY_BYTES * lane());
        word = anew(own_word(MATRIX_KEYS * row_bytes));
    }

    // The word of `bytes` bytes that is in none of their aligned 16, and no other lane's.
    SPARK_FN u32 own_word(u32 bytes) const {
        const u32 before = (COPY_BYTES - shift) % COPY_BYTES, head = before < bytes ? before : bytes;
        const u32 tail = (bytes - head) % COPY_BYTES, at = 4 * (lane() % 4);
        if (lane() < 4) return at < head ? at : NO_WORD;
        return lane() < 8 && at < tail ? bytes - tail + at : NO_WORD;
    }

    // Asks for the next `count` rows, which come to LDS from byte `to` + `shift` on; `to` is a multiple of 16.
    SPARK_FN void request(u32 to, u32 count) {
        const u32 bytes = count * row_bytes;
        u32 single = word;
        if (count < MATRIX_KEYS) single = own_word(bytes);
        const u32 begin = copies_to(to + shift);
        if (single < NO_WORD) copy_async<4>(begin + single, next + single);
        const u8* from = next + own;
        const u32 at = anew(begin + own);
        // Of the last aligned 16.
        const u32 end = (begin + bytes) / COPY_BYTES * COPY_BYTES;
        SPARK_UNROLL
        for (u32 n = 0; n < 5; ++n) {
            const u32 further = n * COPY_BYTES * WAVE;
            if (at + further < end) copy_async<COPY_BYTES>(at + further, from + further);
        }
        if (bytes > 5 * COPY_BYTES * WAVE) {
            for (u32 n = 5 * COPY_BYTES * WAVE; at + n < end; n += COPY_BYTES * WAVE) {
                copy_async<COPY_BYTES>(at + n, from + n);
            }
        }
        next += DECODE_WAVES * MATRIX_KEYS * row_bytes;
    }
};

// A wave's memory: factors of 16 keys, and two buffers of rows. A buffer has the key rows of a tile, from one of its
// first 16 bytes on, and then the value rows likewise.
struct MatrixRows {
    const SparkCall& call;
    MmaCopies keys, values;  // of the sequence and KV head
    const u32 at, value_at;  // bytes of LDS: of the wave; from a buffer's begin to its values
    u32 key_begin, value_begin, last;

    // Bytes of LDS, multiples of 16.
    SPARK_FN static u32 buffer_bytes(const SparkCall& call) {
        return MATRIX_KEYS * (call.key_row_bytes + call.value_row_bytes) + 2 * MMA_SLACK;
    }
    SPARK_FN static u32 wave_bytes(const SparkCall& call) {
        return MATRIX_KEYS * (u32)sizeof(Quad) + 2 * buffer_bytes(call);
    }
    SPARK_FN static u32 block_bytes(const SparkCall& call) { return DECODE_WAVES * wave_bytes(call); }

    // LDS from byte `region` on, a multiple of 16.
    SPARK_FN MatrixRows(const SparkCall& call, const Sequence& s, u32 kv_head, u32 region)
        : call(call), keys(call.past_key, first_row(call, s, kv_head), call.key_row_bytes),
          values(call.past_value, first_row(call, s, kv_head), call.value_row_bytes),
          at(region + wave() * wave_bytes(call)), value_at(MATRIX_KEYS * call.key_row_bytes + MMA_SLACK),
          key_begin(0), value_begin(0), last(0) {
        // Bytes beside rows are read, but not used.
        clear_row(at, wave_bytes(call) / 4);
    }

    SPARK_FN static i64 first_row(const SparkCall& call, const Sequence& s, u32 kv_head) {
        return ((i64)s.index * call.kv_heads + kv_head) * call.past_rows;
    }

    SPARK_FN u32 factors() const { return at; }
    SPARK_FN u32 begin_of(u32 buffer) const {
        return at + MATRIX_KEYS * (u32)sizeof(Quad) + (buffer ? buffer_bytes(call) : 0);
    }

    // Bytes of LDS of a row of the current tile; those beyond the last one are the last one.
    SPARK_FN u32 key(u32 row) const { return key_begin + (row < last ? row : last) * call.key_row_bytes; }
    SPARK_FN u32 value(u32 row) const { return value_begin + (row < last ? row : last) * call.value_row_bytes; }

    // The wave's first tile is that from `t` on; the others follow at the distance that a block's waves take at once.
    SPARK_FN void begin(u32 t) {
        keys.begin(t);
        values.begin(t);
    }

    // Asks for the wave's next tile, from `t` on, at most MATRIX_KEYS rows and below `end`, for buffer `buffer`.
    SPARK_FN void request(u32 buffer, u32 t, u32 end) {
        // The wave has read what the buffer had.
        wave_barrier();
        if (t < end) {
            const u32 count = end - t < MATRIX_KEYS ? end - t : MATRIX_KEYS;
            keys.request(begin_of(buffer), count);
            values.request(begin_of(buffer) + value_at, count);
        }
        end_copies();
    }

    // Waits for the tile from `t` on, which was asked for, for this buffer, before the last one that was.
    SPARK_FN void await(u32 buffer, u32 t, u32 end) {
        last = (end - t < MATRIX_KEYS ? end - t : MATRIX_KEYS) - 1;
        key_begin = begin_of(buffer) + keys.shift;
        value_begin = begin_of(buffer) + value_at + values.shift;
        await_copies<1>();
        wave_barrier();
    }

    // It is in LDS.
    SPARK_FN void stage() const {}
};

#endif
