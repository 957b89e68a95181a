// The rows of a tile for tensor cores: copied to LDS as they are stored, while the tile before is multiplied; and which
// lane has what.
#ifndef SPARK_MMA_ROWS_H
#define SPARK_MMA_ROWS_H

#include "decode.h"

// Keys of a product.
SPARK_CONSTANT u32 MATRIX_KEYS = SPARK_MATRIX_KEYS;
// Bytes of a copy, and what it is aligned to.
SPARK_CONSTANT u32 COPY_BYTES = 16;
SPARK_CONSTANT u32 KEY_SLACK = SPARK_MMA_KEY_SLACK_BYTES, VALUE_SLACK = SPARK_MMA_VALUE_SLACK_BYTES;

struct MatrixLanes {
    // The lane's query of four; its fourth of the keys of a tile; which of the digits of a query and of the halves of a
    // weight it has.
    SPARK_FN static u32 query() { return lane() / 4 % 4; }
    SPARK_FN static u32 group() { return lane() % 4; }
    SPARK_FN static u32 part() { return lane() / 16; }
    // The row of the tile that is the lane's column in a product of eight keys, of the first or the second one.
    SPARK_FN static u32 row_of(u32 half) { return 4 * (lane() / 8) + 2 * half + lane() / 4 % 2; }

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
// of 16 bytes apart, so all begin at the same byte of 16, `shift()`, in global memory and in LDS.
struct MmaCopies {
    const u32 row_bytes;
    const u8* next; // the first row of the tile that is asked for next
    // Of what the lane copies: bytes from the first row on to the first of its aligned 16. And of whole tiles, 16 bits
    // each: bytes from there to the end of the last ones, and from the first row on to a single word, if below NO_WORD.
    u32 own, room_and_word;
    SPARK_CONSTANT u32 NO_WORD = 0xffff;

    SPARK_FN MmaCopies(const void* rows, i64 first, u32 row_bytes)
        : row_bytes(row_bytes), next((const u8*)rows + first * row_bytes), own(0), room_and_word(0) {}

    // Goes to row `t`, where the wave's first tile begins.
    SPARK_FN void begin(u32 t) {
        next += (i64)t * row_bytes;
        own = anew((0 - (u32)(u64)next) % COPY_BYTES + COPY_BYTES * lane());
        room_and_word = own_room(MATRIX_KEYS * row_bytes) | own_word(MATRIX_KEYS * row_bytes) << 16;
    }

    SPARK_FN u32 shift() const { return (0 - own) % COPY_BYTES; }

    // From the lane's first aligned 16 bytes to the end of the last ones of `bytes` bytes.
    SPARK_FN u32 own_room(u32 bytes) const {
        const u32 begin = shift() + own, end = (shift() + bytes) / COPY_BYTES * COPY_BYTES;
        return begin < end ? end - begin : 0;
    }

    // The word of `bytes` bytes that is in none of their aligned 16, and no other lane's.
    SPARK_FN u32 own_word(u32 bytes) const {
        const u32 before = own % COPY_BYTES, head = before < bytes ? before : bytes;
        const u32 tail = (bytes - head) % COPY_BYTES, at = 4 * (lane() % 4);
        if (lane() < 4) return at < head ? at : NO_WORD;
        return lane() < 8 && at < tail ? bytes - tail + at : NO_WORD;
    }

    // Asks for the next `count` rows, which come to LDS from byte `to` + `shift()` on; `to` is a multiple of 16.
    SPARK_FN void request(u32 to, u32 count) {
        u32 most = room_and_word & 0xffff, single = room_and_word >> 16;
        if (SPARK_UNLIKELY(count < MATRIX_KEYS)) {
            single = own_word(count * row_bytes);
            most = own_room(count * row_bytes);
        }
        const u32 begin = copies_to(to + shift()), at = begin + own;
        if (single < NO_WORD) copy_async<4>(begin + single, next + single);
        const u8* from = next + own;
        SPARK_CONSTANT u32 STEP = COPY_BYTES * WAVE;
        if (most > 0) copy_async<COPY_BYTES>(at, from);
        if (most > STEP) copy_async<COPY_BYTES, STEP>(at, from);
        if (most > 2 * STEP) copy_async<COPY_BYTES, 2 * STEP>(at, from);
        if (most > 3 * STEP) copy_async<COPY_BYTES, 3 * STEP>(at, from);
        if (most > 4 * STEP) copy_async<COPY_BYTES, 4 * STEP>(at, from);
        SPARK_ROLLED
        for (u32 n = 5 * STEP; n < most; n += STEP) copy_async<COPY_BYTES>(at + n, from + n);
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
        return MATRIX_KEYS * (call.key_row_bytes + call.value_row_bytes) + KEY_SLACK + VALUE_SLACK;
    }
    SPARK_FN static u32 wave_bytes(const SparkCall& call) {
        return MATRIX_KEYS * (u32)sizeof(Quad) + 2 * buffer_bytes(call);
    }
    SPARK_FN static u32 block_bytes(const SparkCall& call) { return DECODE_WAVES * wave_bytes(call); }

    // LDS from byte `region` on, a multiple of 16.
    SPARK_FN MatrixRows(const SparkCall& call, const Sequence& s, u32 kv_head, u32 region)
        : call(call), keys(call.past_key, first_row(call, s, kv_head), call.key_row_bytes),
          values(call.past_value, first_row(call, s, kv_head), call.value_row_bytes),
          at(region + wave() * wave_bytes(call)), value_at(MATRIX_KEYS * call.key_row_bytes + KEY_SLACK),
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
        key_begin = begin_of(buffer) + keys.shift();
        value_begin = begin_of(buffer) + value_at + values.shift();
        await_copies<1>();
        wave_barrier();
    }

    // It is in LDS.
    SPARK_FN void stage() const {}
};

#endif
