// Attention for many queries (prompts, and chunks of prompts after a cache) without matrix cores. A block takes
// QUERIES (new token, query head) pairs of one KV head, with adjacent tokens, and a piece of their keys. Keys and
// values are decoded once per tile, to float32 in LDS, and read from there by all queries. Plain multiply-adds: thread
// (y, x) of 16 by 16 holds the scores of queries y, y + 16, ... with keys x, x + 16, ..., and the output's channels x,
// x + 16, ... of the same queries.
#ifndef SPARK_PREFILL_H
#define SPARK_PREFILL_H

#include "source.h"
#include "states.h"

SPARK_CONSTANT u32 SIDE = 16;

// For head sizes up to CHANNELS. LDS: queries, then keys or values, each row followed by a word that spreads banks,
// then probabilities, then the memory of `Source`. src/gpu/plan computes the same total.
template <u32 CHANNELS>
struct Prefill {
    SPARK_CONSTANT u32 QUERIES = CHANNELS > 128 ? 16 : 32;
    SPARK_CONSTANT u32 KEYS = QUERIES;
    SPARK_CONSTANT u32 PER_SIDE = QUERIES / SIDE;

    const SparkCall& call;
    const Sequence& s;
    const u32 first_column, columns;
    const u32 stride; // of queries, keys and values in LDS
    const Source<CHANNELS / 8, KEYS> source;
    const Shared<float> queries, tile, weights;
    const u32 x, y;

    Keys seen[PER_SIDE];
    float max[PER_SIDE], sum[PER_SIDE], weighted[PER_SIDE][CHANNELS / SIDE];

    SPARK_FN Prefill(const SparkCall& call, const Sequence& s, u32 kv_head, u32 first_column, u32 columns)
        : call(call), s(s), first_column(first_column), columns(columns), stride(call.head_dim + 1),
          source(call, s, kv_head, 4 * ((QUERIES + KEYS) * stride + QUERIES * (KEYS + 1))), queries(0),
          tile(4 * QUERIES * stride), weights(4 * (QUERIES + KEYS) * stride), x(thread() % SIDE), y(thread() / SIDE) {
        SPARK_UNROLL
        for (u32 r = 0; r < PER_SIDE; ++r) {
            seen[r] = seen_by(call, s, source.token(column(r)));
            max[r] = NO_SCORE;
            sum[r] = 0.0f;
            SPARK_UNROLL
            for (u32 k = 0; k < CHANNELS / SIDE; ++k) weighted[r][k] = 0.0f;
        }
    }

    SPARK_FN u32 column(u32 r) const { return first_column + y + SIDE * r; }

    SPARK_FN void put(const Shared<float>& to, u32 row, u32 octet, const float (&v)[8]) const {
        SPARK_UNROLL
        for (u32 k = 0; k < 8; ++k) to.store(row * stride + 8 * octet + k, v[k]);
    }

    SPARK_FN void load_queries() const {
        const u32 octets = call.head_dim / 8;
        for (u32 n = thread(); n < QUERIES * octets; n += PREFILL_THREADS) {
            float q[8];
            source.query(first_column + n / octets, n % octets, q);
            put(queries, n / octets, n % octets, q);
        }
    }

    SPARK_FN void load_keys(u32 t, u32 end) const {
        const u32 octets = call.head_dim / 8;
        for (u32 n = thread(); n < KEYS * octets; n += PREFILL_THREADS) {
            float key[8];
            source.key(t, n / octets, end, n % octets, key);
            put(tile, n / octets, n % octets, key);
        }
    }

    SPARK_FN void load_values(u32 t, u32 end) const {
        const u32 octets = call.head_dim / 8;
        for (u32 n = thread(); n < KEYS * octets; n += PREFILL_THREADS) {
            float v[1][8];
            source.value(t + n / octets, end, n % octets, v);
            put(tile, n / octets, n % octets, v[0]);
        }
    }

    // Computes the scores of the tile's keys and the softmax step, and writes the keys' probabilities to LDS.
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
                if (sees && has_more(call)) {
                    const u32 own = column(r);
                    score[r][c] = with_more(call, s, score[r][c], source.head(own), source.token(own), at);
                }
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
        load_queries();
        source.prepare();
        for (u32 t = keys.start; t < keys.end; t += KEYS) {
            const u32 end = keys.end - t < KEYS ? keys.end : t + KEYS;
            block_barrier();
            source.stage(t, end);
            block_barrier();
            source.find_dense(t, end);
            load_keys(t, end);
            block_barrier();
            score_keys(t, end);
            block_barrier();
            load_values(t, end);
            block_barrier();
            add_values();
        }
    }

    // Through LDS, in the place of the queries, so that a thread has eight adjacent channels.
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
            write_result(call, source.head(column), source.token(column), split, octet, weights.load(2 * row),
                         weights.load(2 * row + 1), v);
        }
    }
};

template <u32 CHANNELS>
SPARK_FN void prefill(const SparkCall& call) {
    typedef Prefill<CHANNELS> Own;
    const Part part(call, Own::QUERIES);
    Own own(call, part.s, part.kv_head, part.first_column, part.columns);
    own.attend(part.keys);
    own.write(part.split);
}

#endif
