// Reads queries, keys and values for prefill: eight channels of one at a time, in float32 within float16's range. The
// fields of key rows are read through LDS, a tile of rows at once, because the position of a kept channel depends on
// the row's mask.
#ifndef SPARK_SOURCE_H
#define SPARK_SOURCE_H

#include "rows.h"
#include "scores.h"
#include "tail.h"

SPARK_CONSTANT u32 PREFILL_THREADS = SPARK_PREFILL_THREADS;

// The fields of a row may decode to numbers beyond float16's range.
SPARK_FN float limited(float x) { return least(greatest(x, -F16_MAX), F16_MAX); }

// The work of a prefill block. Blocks: x = block of `queries` columns + blocks * (piece of the keys + splits * KV
// head), z = sequence. Columns are (new token, query head) pairs of a KV head, with adjacent tokens.
struct Part {
    const Sequence s;
    u32 columns, first_column, split, kv_head;
    Keys keys;

    SPARK_FN Part(const SparkCall& call, u32 queries) : s(call, block_z()), columns(call.group * call.new_tokens) {
        const u32 blocks = (columns + queries - 1) / queries;
        // The last queries start first: they see the most keys.
        first_column = (blocks - 1 - block_x() % blocks) * queries;
        split = block_x() / blocks % call.splits;
        kv_head = block_x() / blocks / call.splits;
        const u32 last = (first_column + queries < columns ? first_column + queries : columns) - 1;
        keys = keys_of(call, s, first_column / call.group, last / call.group + 1, split);
    }
};

// Keys that any and that each of a wave's queries sees: `count` columns of `columns` from `first` on. Unused columns
// may see anything: they are not written.
struct SeenByWave {
    Keys some, every;

    SPARK_FN SeenByWave(const SparkCall& call, const Sequence& s, u32 first, u32 count, u32 columns) {
        // The first of adjacent tokens sees the earliest keys, the last one the latest.
        const u32 end = first + count < columns ? first + count : columns;
        const u32 from = first / call.group, to = first < columns ? (end - 1) / call.group : from;
        const Keys a = seen_by(call, s, from), b = seen_by(call, s, to);
        some.start = a.start;
        some.end = from < s.valid ? seen_by(call, s, to < s.valid ? to : s.valid - 1).end : 0;
        every.start = b.start;
        every.end = to < s.valid ? a.end : 0;
    }

    // Whether any query sees a key of the tile from `t` on, below `end`; whether all queries see all its `keys` keys.
    SPARK_FN bool any(u32 t, u32 end) const { return t < some.end && end > some.start; }
    SPARK_FN bool all(u32 t, u32 end, u32 keys) const {
        return t >= every.start && t + keys <= (end < every.end ? end : every.end);
    }
};

// For one KV head of a sequence, head sizes up to 8 * OCTETS and tiles of KEYS keys.
template <u32 OCTETS, u32 KEYS>
struct Source {
    const SparkCall& call;
    const Sequence& s;
    const u32 kv_head;
    const KeyLayout layout;
    const ValueLayout values;
    const u32 dense;            // position from which on keys are dense
    const u32 in_tail;          // position from which on keys before them may be dense in the tail
    const Shared<float> scales; // c
    const u32 staged;           // byte where the fields of rows begin
    const Shared<Slot> slots;   // of the keys of the tile that are in the tail

    // LDS from byte `at` on: D scales, the fields of KEYS rows, KEY_SLACK_WORDS, and, if a sequence has a tail, KEYS
    // slots.
    SPARK_FN Source(const SparkCall& call, const Sequence& s, u32 kv_head, u32 at)
        : call(call), s(s), kv_head(kv_head), layout(call), values(call), dense(first_dense(call, s)),
          in_tail(first_in_tail(call, s)), scales(at), staged(at + 4 * call.head_dim),
          slots(staged + 4 * (KEYS * layout.words + KEY_SLACK_WORDS)) {}

    SPARK_FN u32 token(u32 column) const { return column / call.group; }
    SPARK_FN u32 head(u32 column) const { return kv_head * call.group + column % call.group; }
    SPARK_FN i64 entry() const { return (i64)s.index * call.kv_heads + kv_head; }

    // Fills LDS except for the rows; a barrier follows before anything is read.
    SPARK_FN void prepare() const {
        for (u32 j = thread(); j < call.head_dim; j += PREFILL_THREADS) {
            scales.store(j, channel_scale(call, kv_head, j));
        }
        // Channels after the last row are read, but not used.
        const Shared<u32> rows(staged);
        for (u32 n = thread(); n < KEYS * layout.words + KEY_SLACK_WORDS; n += PREFILL_THREADS) rows.store(n, 0);
    }

    // Zero for padding.
    SPARK_FN void query(u32 column, u32 octet, float (&q)[8]) const {
        SPARK_UNROLL
        for (u32 k = 0; k < 8; ++k) q[k] = 0.0f;
        if (token(column) < s.valid) token_octet(call, call.query, s, head(column), token(column), octet, true, q);
    }

    // Calls `put(row, octet, numbers)` for the queries of columns `first` and on, as many as a tile has keys, by all
    // threads of the block.
    template <class Put>
    SPARK_FN void queries(u32 first, Put put) const {
        for (u32 n = thread(); n < KEYS * OCTETS; n += PREFILL_THREADS) {
            const u32 row = n / OCTETS, octet = n % OCTETS;
            float q[8] = {0, 0, 0, 0, 0, 0, 0, 0};
            if (8 * octet < call.head_dim) query(first + row, octet, q);
            put(row, octet, q);
        }
    }

    // The same for the keys of the tile from `t` on, below `end`.
    template <class Put>
    SPARK_FN void keys(u32 t, u32 end, Put put) const {
        for (u32 n = anew(thread()); n < KEYS * OCTETS; n += PREFILL_THREADS) {
            const u32 row = n / OCTETS, octet = n % OCTETS;
            float k[8] = {0, 0, 0, 0, 0, 0, 0, 0};
            if (8 * octet < call.head_dim) key(t, row, end, octet, k);
            put(row, octet, k);
        }
    }

    // Copies the fields of the key rows from `t` to below `end` to LDS, as far as keys are stored in rows.
    SPARK_FN void stage(u32 t, u32 end) const {
        if (end > dense) end = dense;
        const Shared<u32> to(staged);
        const u8* from = (const u8*)call.past_key + (entry() * call.past_rows + t) * call.key_row_bytes;
        for (u32 n = anew(thread()); t < end && n < (end - t) * layout.words; n += PREFILL_THREADS) {
            const u32 row = n / layout.words, word = n % layout.words;
            to.store(n, load((const u32*)(from + (i64)row * call.key_row_bytes) + word));
        }
    }

    // Looks for the keys from `t` to below `end` in the tail, if some may be there, once their rows are staged. By all
    // threads; then all may read keys.
    SPARK_FN void find_dense(u32 t, u32 end) const {
        if (in_tail >= dense || in_tail >= end || t >= dense) return;
        const Tail tail(call, s, kv_head);
        // Side by side, of one wave.
        const u32 lanes = PREFILL_THREADS / KEYS, own = anew(thread()), row = own / lanes, at = t + row;
        const bool asked = at < end && in_tail <= at && at < dense;
        Slot found = NO_SLOT;
        SPARK_ROLLED
        for (u32 attempt = 0; attempt < 2; ++attempt) {
            Slot slot = NO_SLOT;
            if (asked && found == NO_SLOT) slot = attempt == 0 ? tail.own_slot(at) : tail.earlier_slot(at);
            u32 other = slot == NO_SLOT;
            for (u32 octet = own % lanes; slot != NO_SLOT && octet < call.head_dim / 8; octet += lanes) {
                u32 channels[4];
                tail.fetch(slot, octet, channels);
                const KeyReader<OCTETS, ANY_ROWS> reader(octet);
                other |= differs(call, layout, staged + 4 * layout.words * row, reader, channels);
            }
            SPARK_UNROLL
            for (u32 m = 1; m < lanes; m *= 2) other |= shuffle_xor(other, m);
            if (!other) found = slot;
        }
        if (own % lanes == 0) slots.store(row, found);
        block_barrier();
    }

    // Key `row` of the tile from `t` on; zero from `end` on.
    SPARK_FN void key(u32 t, u32 row, u32 end, u32 octet, float (&k)[8]) const {
        const u32 at = t + row;
        SPARK_UNROLL
        for (u32 j = 0; j < 8; ++j) k[j] = 0.0f;
        if (at >= end) return;
        const Slot slot = in_tail <= at && at < dense ? slots.load(row) : NO_SLOT;
        if (at >= s.past) {
            token_octet(call, call.key, s, kv_head, at - s.past, octet, true, k);
        } else if (at >= dense) {
            const i64 recent = entry() * call.past_recent_rows + (at - dense);
            read_some(call.scalar, call.past_recent, recent * call.head_dim + 8 * octet, k);
        } else if (slot != NO_SLOT) {
            u32 channels[4];
            Tail(call, s, kv_head).fetch(slot, octet, channels);
            read_dense(channels, k);
        } else {
            const KeyReader<OCTETS, ANY_ROWS> reader(octet);
            reader.read(call, layout, staged + 4 * layout.words * row, at, scales, k);
            SPARK_UNROLL
            for (u32 j = 0; j < 8; ++j) k[j] = limited(call.key_bits == 16 ? k[j] : k[j] * scales.load(8 * octet + j));
        }
    }

    // The values of N keys from position `at` on. From `end` on any finite values are returned, and if all are beyond
    // it nothing is read.
    template <u32 N>
    SPARK_FN void value(u32 at, u32 end, u32 octet, float (&v)[N][8]) const {
        SPARK_UNROLL
        for (u32 n = 0; n < N; ++n) {
            SPARK_UNROLL
            for (u32 j = 0; j < 8; ++j) v[n][j] = 0.0f;
        }
        const u32 stored = end < s.past ? end : s.past;
        if (at < stored) {
            ValueOctet own[N];
            SPARK_UNROLL
            for (u32 n = 0; n < N; ++n) {
                const i64 row = entry() * call.past_rows + (at + n < stored ? at + n : stored - 1);
                own[n].fetch(call, values, (const u8*)call.past_value + row * call.value_row_bytes, octet);
            }
            SPARK_UNROLL
            for (u32 n = 0; n < N; ++n) {
                own[n].read(call, v[n]);
                SPARK_UNROLL
                for (u32 j = 0; j < 8; ++j) v[n][j] = limited(v[n][j]);
            }
        }
        if (at < end && at + N > s.past) {
            SPARK_UNROLL
            for (u32 n = 0; n < N; ++n) {
                const u32 i = at + n < end ? at + n : end - 1;
                float own[8];
                token_octet(call, call.value, s, kv_head, i < s.past ? 0 : i - s.past, octet, false, own);
                SPARK_UNROLL
                for (u32 j = 0; j < 8; ++j) v[n][j] = at + n < s.past ? v[n][j] : own[j];
            }
        }
    }
};

#endif
