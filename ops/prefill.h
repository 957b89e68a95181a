// Attention for many queries: prompts, and chunks of them after a cache. A block takes QUERIES (new token, query head)
// pairs of one KV head, adjacent in the token, and a piece of their keys; keys and values are decoded once a tile, to float32 in
// LDS, and read from there by all queries. Plain multiply-adds: thread (y, x) of 16 by 16 holds the scores of queries
// y, y + 16, ... with keys x, x + 16, ..., and the output's channels x, x + 16, ... of the same queries.
#ifndef SPARK_PREFILL_H
#define SPARK_PREFILL_H

#include "row.h"
#include "scores.h"
#include "states.h"

SPARK_CONSTANT u32 PREFILL_THREADS = 256;
SPARK_CONSTANT u32 SIDE = 16;

// For head sizes up to CHANNELS. LDS: queries, then keys or values, each row with a word behind it that spreads banks, then
// probabilities, then c, then the fields of key rows. src/hip/plan adds them up alike.
template <u32 CHANNELS>
struct Prefill {
    SPARK_CONSTANT u32 QUERIES = CHANNELS > 128 ? 16 : 32;
    SPARK_CONSTANT u32 KEYS = QUERIES;
    SPARK_CONSTANT u32 PER_SIDE = QUERIES / SIDE;
    SPARK_CONSTANT u32 OCTETS = CHANNELS / 8;

    const SparkCall& call;
    const Sequence& s;
    const u32 kv_head, first_column, columns;
    const KeyLayout layout;
    const ValueLayout values;
    const u32 stride; // of queries, keys and values in LDS
    const Shared<float> queries, tile, weights, scales;
    const u32 staged; // byte
    const u32 x, y;

    u32 head[PER_SIDE], token[PER_SIDE];
    Keys seen[PER_SIDE];
    float max[PER_SIDE], sum[PER_SIDE], weighted[PER_SIDE][CHANNELS / SIDE];

    SPARK_FN Prefill(const SparkCall& call, const Sequence& s, u32 kv_head, u32 first_column, u32 columns)
        : call(call), s(s), kv_head(kv_head), first_column(first_column), columns(columns), layout(call), values(call),
          stride(call.head_dim + 1), queries(0), tile(4 * QUERIES * stride), weights(4 * (QUERIES + KEYS) * stride),
          scales(4 * ((QUERIES + KEYS) * stride + QUERIES * (KEYS + 1))), staged(scales.at + 4 * call.head_dim), x(thread() % SIDE), y(thread() / SIDE) {
        SPARK_UNROLL
        for (u32 r = 0; r < PER_SIDE; ++r) {
            const u32 column = first_column + y + SIDE * r;
            token[r] = column / call.group;
            head[r] = kv_head * call.group + column % call.group;
            seen[r] = seen_by(call, s, token[r]);
            max[r] = NO_SCORE;
            sum[r] = 0.0f;
            SPARK_UNROLL
            for (u32 k = 0; k < CHANNELS / SIDE; ++k) weighted[r][k] = 0.0f;
        }
    }

    SPARK_FN i64 entry() const { return (i64)s.index * call.kv_heads + kv_head; }

    SPARK_FN void put(const Shared<float>& to, u32 row, u32 octet, const float (&v)[8]) const {
        SPARK_UNROLL
        for (u32 k = 0; k < 8; ++k) to.store(row * stride + 8 * octet + k, v[k]);
    }

    SPARK_FN void load_queries() const {
        const u32 octets = call.head_dim / 8;
        for (u32 n = thread(); n < QUERIES * octets; n += PREFILL_THREADS) {
            const u32 row = n / octets, octet = n % octets, column = first_column + row, i = column / call.group;
            float q[8] = {0, 0, 0, 0, 0, 0, 0, 0};
            if (i < s.valid) {
                token_octet(call, call.query, s, kv_head * call.group + column % call.group, i, octet, true, q);
            }
            put(queries, row, octet, q);
        }
    }

    // Copies the fields of the tile's key rows to LDS, as far as its keys are read from rows.
    SPARK_FN void stage(u32 t, u32 end) const {
        const Shared<u32> to(staged);
        const u8* from = (const u8*)call.past_key + (entry() * call.past_rows + t) * call.key_row_bytes;
        for (u32 n = thread(); t < end && n < (end - t) * layout.words; n += PREFILL_THREADS) {
            const u32 row = n / layout.words, word = n % layout.words;
            to.store(n, load((const u32*)(from + (i64)row * call.key_row_bytes) + word));
        }
    }

    SPARK_FN void load_keys(u32 t, u32 end, u32 dense) const {
        const u32 octets = call.head_dim / 8;
        for (u32 n = thread(); n < KEYS * octets; n += PREFILL_THREADS) {
            const u32 row = n / octets, octet = n % octets, at = t + row;
            float key[8] = {0, 0, 0, 0, 0, 0, 0, 0};
            if (at < end) {
                if (at >= s.past) {
                    token_octet(call, call.key, s, kv_head, at - s.past, octet, true, key);
                } else if (at >= dense) {
                    const i64 recent = entry() * call.past_recent_rows + (at - dense);
                    read_some(call.scalar, call.past_recent, recent * call.head_dim + 8 * octet, key);
                } else {
                    const KeyReader<OCTETS> reader(octet);
                    reader.read(call, layout, staged + 4 * layout.words * row, scales, key);
                    if (call.key_bits != 16) {
                        SPARK_UNROLL
                        for (u32 k = 0; k < 8; ++k) key[k] *= scales.load(8 * octet + k);
                    }
                }
            }
            put(tile, row, octet, key);
        }
    }

    SPARK_FN void load_values(u32 t, u32 end) const {
        const u32 octets = call.head_dim / 8;
        for (u32 n = thread(); n < KEYS * octets; n += PREFILL_THREADS) {
            const u32 row = n / octets, octet = n % octets, at = t + row;
            float v[8] = {0, 0, 0, 0, 0, 0, 0, 0};
            if (at < end) {
                if (at >= s.past) {
                    token_octet(call, call.value, s, kv_head, at - s.past, octet, false, v);
                } else {
                    const u8* rows = (const u8*)call.past_value;
                    ValueOctet own;
                    own.fetch(call, values, rows + (entry() * call.past_rows + at) * call.value_row_bytes, octet);
                    own.read(call, v);
                }
            }
            put(tile, row, octet, v);
        }
    }

    // Scores of the tile's keys, the softmax's step, and the keys' probabilities to LDS.
    SPARK_FN void score_keys(u32 t, u32 end) {
        float score[PER_SIDE][PER_SIDE];
        SPARK_UNROLL
        for (u32 r = 0; r < PER_SIDE; ++r) {
            SPARK_UNROLL
            for (u32 c = 0; c < PER_SIDE; ++c) score[r][c] = 0.0f;
        }
        for (u32 j = 0; j < call.head_dim; ++j) {
            float q[PER_SIDE], k[PER_SIDE];
            SPARK_UNROLL
            for (u32 r = 0; r < PER_SIDE; ++r) {
                q[r] = queries.load((y + SIDE * r) * stride + j);
                k[r] = tile.load((x + SIDE * r) * stride + j);
            }
            SPARK_UNROLL
            for (u32 r = 0; r < PER_SIDE; ++r) {
                SPARK_UNROLL
                for (u32 c = 0; c < PER_SIDE; ++c) score[r][c] = fused(q[r], k[c], score[r][c]);
            }
        }
        SPARK_UNROLL
        for (u32 r = 0; r < PER_SIDE; ++r) {
            float most = max[r];
            SPARK_UNROLL
            for (u32 c = 0; c < PER_SIDE; ++c) {
                const u32 at = t + x + SIDE * c;
                const bool sees = at < end && seen[r].contains(at);
                score[r][c] = sees ? scaled(call, score[r][c]) : NO_SCORE;
                if (sees && has_more(call)) score[r][c] = with_more(call, s, score[r][c], head[r], token[r], at);
                most = greatest(most, score[r][c]);
            }
            most = greatest_over(most, SIDE);
            const float factor = rescale(max[r], most);
            max[r] = most;
            float added = 0.0f;
            SPARK_UNROLL
            for (u32 c = 0; c < PER_SIDE; ++c) {
                const float p = rescale(score[r][c], most);
                added += p;
                weights.store((y + SIDE * r) * (KEYS + 1) + x + SIDE * c, p);
            }
            sum[r] = sum[r] * factor + sum_over(added, SIDE);
            SPARK_UNROLL
            for (u32 k = 0; k < CHANNELS / SIDE; ++k) weighted[r][k] *= factor;
        }
    }

    SPARK_FN void add_values() {
        for (u32 key = 0; key < KEYS; ++key) {
            float p[PER_SIDE];
            SPARK_UNROLL
            for (u32 r = 0; r < PER_SIDE; ++r) p[r] = weights.load((y + SIDE * r) * (KEYS + 1) + key);
            SPARK_UNROLL
            for (u32 k = 0; k < CHANNELS / SIDE; ++k) {
                if (x + SIDE * k >= call.head_dim) continue;
                const float v = tile.load(key * stride + x + SIDE * k);
                SPARK_UNROLL
                for (u32 r = 0; r < PER_SIDE; ++r) weighted[r][k] = fused(p[r], v, weighted[r][k]);
            }
        }
    }

    SPARK_FN void attend(const Keys& keys) {
        const u32 dense = first_dense(call, s);
        load_queries();
        for (u32 j = thread(); j < call.head_dim; j += PREFILL_THREADS) scales.store(j, channel_scale(call, kv_head, j));
        // Channels behind the last row are read, though not used.
        const Shared<u32> rows(staged);
        for (u32 n = thread(); n < KEYS * layout.words + KEY_SLACK_WORDS; n += PREFILL_THREADS) rows.store(n, 0);
        for (u32 t = keys.start; t < keys.end; t += KEYS) {
            const u32 end = keys.end - t < KEYS ? keys.end : t + KEYS;
            block_barrier();
            stage(t, end < dense ? end : dense);
            block_barrier();
            load_keys(t, end, dense);
            block_barrier();
            score_keys(t, end);
            block_barrier();
            load_values(t, end);
            block_barrier();
            add_values();
        }
    }

    // By way of LDS, where the queries were, so that a thread has eight channels side by side.
    SPARK_FN void write(u32 split) const {
        block_barrier();
        SPARK_UNROLL
        for (u32 r = 0; r < PER_SIDE; ++r) {
            SPARK_UNROLL
            for (u32 k = 0; k < CHANNELS / SIDE; ++k) {
                const u32 j = x + SIDE * k;
                if (j < call.head_dim) queries.store((y + SIDE * r) * stride + j, weighted[r][k]);
            }
            if (x == 0) {
                weights.store(2 * (y + SIDE * r), max[r]);
                weights.store(2 * (y + SIDE * r) + 1, sum[r]);
            }
        }
        block_barrier();
        const u32 octets = call.head_dim / 8;
        for (u32 n = thread(); n < QUERIES * octets; n += PREFILL_THREADS) {
            const u32 row = n / octets, octet = n % octets, column = first_column + row;
            if (column >= columns) continue;
            float v[8];
            SPARK_UNROLL
            for (u32 k = 0; k < 8; ++k) v[k] = queries.load(row * stride + 8 * octet + k);
            write_result(call, kv_head * call.group + column % call.group, column / call.group, split, octet,
                            weights.load(2 * row), weights.load(2 * row + 1), v);
        }
    }
};

// Blocks: x = block of queries + blocks * (piece of the keys + splits * KV head), z = sequence.
template <u32 CHANNELS>
SPARK_FN void prefill(const SparkCall& call) {
    typedef Prefill<CHANNELS> Own;
    const u32 columns = call.group * call.new_tokens, blocks = (columns + Own::QUERIES - 1) / Own::QUERIES;
    // The last queries first: they see the most keys.
    const u32 first_column = (blocks - 1 - block_x() % blocks) * Own::QUERIES;
    const u32 split = block_x() / blocks % call.splits, kv_head = block_x() / blocks / call.splits;
    const Sequence s(call, block_z());
    const u32 last_column = (first_column + Own::QUERIES < columns ? first_column + Own::QUERIES : columns) - 1;
    const Keys keys = keys_of(call, s, first_column / call.group, last_column / call.group + 1, split);
    Own own(call, s, kv_head, first_column, columns);
    own.attend(keys);
    own.write(split);
}

#endif
