// Attention for many queries on tensor cores, of T float16 or bfloat16: what prefill_matrix.h is for AMD's matrix
// cores, with operands rounded to float16 as there. A block of eight waves takes QUERIES columns, (new token, query
// head) pairs of one KV head with adjacent tokens, and a piece of their keys; a wave has 16 of the columns, as rows of
// the products.
//
// Keys and values come to LDS once per tile, as float16, decoded or copied (halves.h). Scores are in the layout of the
// weights in the second product, operand A, so weights never leave the lane, which has two of the queries. The order of
// channels within 32, and of keys within 64, is that in which a lane finds its operands of two or four instructions
// side by side.
#ifndef SPARK_MMA_PREFILL_H
#define SPARK_MMA_PREFILL_H

#include "halves.h"

// For head sizes up to CHANNELS, padded with zeros. LDS: a tile of keys and one of values; then the memory of `Source`.
// src/gpu/plan computes the same total.
template <u32 CHANNELS>
struct MmaPrefill {
    SPARK_CONSTANT u32 WAVE_QUERIES = 16;
    SPARK_CONSTANT u32 QUERIES = WAVE_QUERIES * PREFILL_THREADS / WAVE;
    SPARK_CONSTANT u32 KEYS = 64;
    SPARK_CONSTANT u32 OCTETS = CHANNELS / 8;
    SPARK_CONSTANT u32 STEPS = CHANNELS / 32; // of 32 channels, two instructions each
    SPARK_CONSTANT u32 ROWS = KEYS / 8;       // tiles of 8 keys
    SPARK_CONSTANT u32 TILE_BYTES = 2 * KEYS * CHANNELS;
    // As in prefill_matrix.h: weights are at most 2^15.
    static constexpr float EXPONENT = 15.0f, UNIT = 1.0f / 32768.0f;

    const SparkCall& call;
    const Sequence& s;
    const u32 first_column, columns;
    const Source<OCTETS, KEYS> source;
    const Shared<Quad> keys, values;
    const u32 across, along; // of the lane, in operands: row or column, and which fourth of the elements

    Keys seen[2]; // by the lane's queries
    SeenByWave wave_sees;
    u32 query[STEPS][2][4], weights[KEYS / 16][4];
    float max[2], sum[2];
    MatrixSums weighted[OCTETS];

    SPARK_FN MmaPrefill(const SparkCall& call, const Sequence& s, u32 kv_head, u32 first_column, u32 columns)
        : call(call), s(s), first_column(first_column), columns(columns), source(call, s, kv_head, 2 * TILE_BYTES),
          keys(0), values(TILE_BYTES), across(lane() / 4), along(lane() % 4),
          wave_sees(call, s, first_column + WAVE_QUERIES * wave(), WAVE_QUERIES, columns) {
        SPARK_UNROLL
        for (u32 h = 0; h < 2; ++h) {
            seen[h] = seen_by(call, s, source.token(column(h)));
            max[h] = NO_SCORE;
            sum[h] = 0.0f;
        }
        SPARK_UNROLL
        for (u32 n = 0; n < OCTETS; ++n) weighted[n] = MatrixSums{0.0f, 0.0f, 0.0f, 0.0f};
    }

    // The lane's columns, `h` 0 and 1.
    SPARK_FN u32 column(u32 h) const { return first_column + WAVE_QUERIES * wave() + 8 * h + across; }

    // Where in its tile an octet of a key lies, and quad `i` of a channel of all values, so that eight lanes side by
    // side use all banks.
    SPARK_FN static u32 key_quad(u32 row, u32 octet) { return row * OCTETS + (octet ^ 4 * (row % 2)); }
    SPARK_FN static u32 value_quad(u32 channel, u32 i) {
        return channel * (KEYS / 8) + (i ^ (channel % 2 + channel / 8 % 4 * 2));
    }

    // The lane's fourth of 32 channels from 32 * step on, of 8 keys from `row` on, and its quad `i` of 8 channels from
    // `channel` on. Same positions as above, with the terms that do not depend on the lane apart: constants become part
    // of the instruction.
    SPARK_FN Quad key_operand(u32 row, u32 step) const {
        const u32 lanes = across * OCTETS + along + (4 * (across % 2) ^ 4 * (step % 2));
        return keys.load(lanes + step / 2 * 8 + row * OCTETS);
    }
    SPARK_FN Quad value_operand(u32 channel, u32 i) const {
        const u32 lanes = across * (KEYS / 8) + 2 * (along ^ channel / 8 % 4) + (i ^ across % 2);
        return values.load(lanes + channel * (KEYS / 8));
    }

    SPARK_FN void put_key(u32 row, u32 octet, const float (&x)[8]) const {
        keys.store(key_quad(row, octet), Quad{halves_of(x[0], x[1]), halves_of(x[2], x[3]), halves_of(x[4], x[5]),
                                              halves_of(x[6], x[7])});
    }

    // Through LDS, so that each is read once; as many at a time as a tile has keys.
    SPARK_FN void load_queries() {
        for (u32 part = 0; part < QUERIES; part += KEYS) {
            block_barrier();
            source.queries(first_column + part, [this](u32 row, u32 octet, const float (&q)[8]) {
                put_key(row, octet, q);
            });
            block_barrier();
            const u32 own = WAVE_QUERIES * wave();
            if (own / KEYS * KEYS == part) {
                SPARK_UNROLL
                for (u32 step = 0; step < STEPS; ++step) {
                    const Quad low = key_operand(own - part, step), high = key_operand(own - part + 8, step);
                    SPARK_UNROLL
                    for (u32 i = 0; i < 2; ++i) {
                        query[step][i][0] = low[2 * i];
                        query[step][i][1] = high[2 * i];
                        query[step][i][2] = low[2 * i + 1];
                        query[step][i][3] = high[2 * i + 1];
                    }
                }
            }
        }
    }

    SPARK_FN void load_keys(u32 t, u32 end) const {
        if (has_halves(call, s, t, end)) {
            copy_keys(source, t, end, [this](u32 row, u32 octet, Quad key) { keys.store(key_quad(row, octet), key); });
        } else {
            source.keys(t, end, [this](u32 row, u32 octet, const float (&key)[8]) { put_key(row, octet, key); });
        }
    }

    // A thread transposes an octet of two neighbouring keys at a time. Of 16 keys, those of fourth `along` of the
    // weights are 2 * along, the next one, and those eight further on. Eight neighbouring lanes take eight such pairs,
    // which lie side by side, and the next ones other octets.
    SPARK_FN void load_values(u32 t, u32 end) const {
        const Shared<u32> words(values.at);
        for (u32 n = anew(thread()); n < KEYS / 2 * OCTETS; n += PREFILL_THREADS) {
            const u32 half = n % 2, step = n / 2 % 4, fourth = n / 32 % 4, octet = n / 8 % 4 + n / 128 * 4;
            const u32 at = t + 16 * step + 8 * half + 2 * fourth;
            u32 pairs[8] = {0, 0, 0, 0, 0, 0, 0, 0};
            if (8 * octet < call.head_dim && at < end) value_pairs(source, at, end, octet, pairs);
            SPARK_UNROLL
            for (u32 k = 0; k < 8; ++k) {
                const u32 quad = value_quad(8 * octet + k, 2 * fourth + step / 2);
                words.store(4 * quad + 2 * (step % 2) + half, pairs[k]);
            }
        }
    }

    typedef MatrixSums Scores[ROWS];

    // Computes the scores of the tile's keys, the softmax step, and the keys' weights.
    SPARK_FN void score_keys(u32 t, u32 end) {
        Scores score;
        SPARK_UNROLL
        for (u32 n = 0; n < ROWS; ++n) score[n] = MatrixSums{0.0f, 0.0f, 0.0f, 0.0f};
        SPARK_UNROLL
        for (u32 step = 0; step < STEPS; ++step) {
            SPARK_UNROLL
            for (u32 n = 0; n < ROWS; ++n) {
                const Quad key = key_operand(8 * n, step);
                mma_f16(query[step][0], {key[0], key[1]}, score[n]);
                mma_f16(query[step][1], {key[2], key[3]}, score[n]);
            }
        }
        SPARK_UNROLL
        for (u32 n = 0; n < ROWS; ++n) {
            SPARK_UNROLL
            for (u32 r = 0; r < 4; ++r) score[n][r] = scaled(call, score[n][r]);
        }
        if (!wave_sees.all(t, end, KEYS)) mask(score, t, end);
        if (SPARK_UNLIKELY(has_more(call))) add_more(score, t);
        float most[2];
        bool grows = false;
        SPARK_UNROLL
        for (u32 h = 0; h < 2; ++h) {
            most[h] = max[h];
            SPARK_UNROLL
            for (u32 n = 0; n < ROWS; ++n) most[h] = greatest(most[h], greatest(score[n][2 * h], score[n][2 * h + 1]));
            most[h] = greatest(most[h], shuffle_xor(most[h], 1));
            most[h] = greatest(most[h], shuffle_xor(most[h], 2));
            grows = grows || most[h] > max[h];
        }
        // Rarely after the first tiles.
        if (vote(grows)) {
            SPARK_UNROLL
            for (u32 h = 0; h < 2; ++h) {
                const float factor = rescale(max[h], most[h]);
                max[h] = most[h];
                sum[h] *= factor;
                SPARK_UNROLL
                for (u32 n = 0; n < OCTETS; ++n) {
                    weighted[n][2 * h] *= factor;
                    weighted[n][2 * h + 1] *= factor;
                }
            }
        }
        SPARK_UNROLL
        for (u32 h = 0; h < 2; ++h) {
            // A column without visible keys gets no weights.
            const float base = max[h] > NO_SCORE ? max[h] : 0.0f;
            SPARK_UNROLL
            for (u32 n = 0; n < ROWS; ++n) {
                float p[2];
                SPARK_UNROLL
                for (u32 e = 0; e < 2; ++e) {
                    p[e] = exp2_of(fused(score[n][2 * h + e] - base, LOG2_E, EXPONENT));
                    sum[h] += p[e];
                }
                weights[n / 2][2 * (n % 2) + h] = halves_of(p[0], p[1]);
            }
        }
    }

    // Position of the lane's score `r` of tile `n` of 8 keys.
    SPARK_FN u32 position_of(u32 t, u32 n, u32 r) const { return t + 8 * n + 2 * along + r % 2; }

    // Masks keys that a query does not see.
    SPARK_FN void mask(Scores& score, u32 t, u32 end) const {
        SPARK_UNROLL
        for (u32 h = 0; h < 2; ++h) {
            const u32 last = end < seen[h].end ? end : seen[h].end;
            const u32 count = last > seen[h].start ? last - seen[h].start : 0;
            SPARK_UNROLL
            for (u32 n = 0; n < ROWS; ++n) {
                SPARK_UNROLL
                for (u32 e = 0; e < 2; ++e) {
                    // Wraps for keys before the first.
                    const bool sees = position_of(t, n, e) - seen[h].start < count;
                    score[n][2 * h + e] = sees ? score[n][2 * h + e] : NO_SCORE;
                }
            }
        }
    }

    // Applies softcap and attention_bias to the scores. Long, so a single copy in a loop through which scores rotate:
    // registers cannot be indexed.
    SPARK_FN void add_more(Scores& score, u32 t) const {
        for (u32 at = 0; at < 4 * ROWS; ++at) {
            float x = score[0][0];
            SPARK_UNROLL
            for (u32 n = 1; n < 4 * ROWS; ++n) score[(n - 1) / 4][(n - 1) % 4] = score[n / 4][n % 4];
            // Unused columns have no bias.
            const u32 own = anew(column(0)) + 8 * (at % 4 / 2), column = own < columns ? own : columns - 1;
            const u32 position = position_of(t, at / 4, at % 4);
            if (x > NO_SCORE) x = with_more(call, s, x, source.head(column), source.token(column), position);
            score[ROWS - 1][3] = x;
        }
    }

    SPARK_FN void add_values() {
        SPARK_UNROLL
        for (u32 n = 0; n < OCTETS; ++n) {
            SPARK_UNROLL
            for (u32 i = 0; i < 2; ++i) {
                const Quad value = value_operand(8 * n, i);
                mma_f16(weights[2 * i], {value[0], value[1]}, weighted[n]);
                mma_f16(weights[2 * i + 1], {value[2], value[3]}, weighted[n]);
            }
        }
    }

    SPARK_FN void attend(const Keys& all) {
        load_queries();
        source.prepare();
        block_barrier();
        stage_rows(source, all.start, tile_end(all, all.start));
        for (u32 t = all.start; t < all.end; t += KEYS) {
            const u32 end = tile_end(all, t);
            block_barrier();
            if (!has_halves(call, s, t, end)) source.find_dense(t, end);
            load_keys(t, end);
            load_values(t, end);
            block_barrier();
            // Keys that the next tile reads through LDS.
            if (t + KEYS < all.end) stage_rows(source, t + KEYS, tile_end(all, t + KEYS));
            if (wave_sees.any(t, end)) {
                score_keys(t, end);
                add_values();
            }
        }
    }

    SPARK_FN u32 tile_end(const Keys& all, u32 t) const { return all.end - t < KEYS ? all.end : t + KEYS; }

    // Writes two neighbouring channels of each octet, of each of the lane's queries.
    SPARK_FN void write(u32 split) const {
        SPARK_UNROLL
        for (u32 h = 0; h < 2; ++h) {
            float total = sum[h] * UNIT;
            total += shuffle_xor(total, 1);
            total += shuffle_xor(total, 2);
            if (column(h) >= columns) continue;
            const u32 head = source.head(column(h)), i = source.token(column(h));
            SPARK_UNROLL
            for (u32 n = 0; n < OCTETS; ++n) {
                const float x[2] = {weighted[n][2 * h] * UNIT, weighted[n][2 * h + 1] * UNIT};
                if (8 * n < call.head_dim) write_pair(call, head, i, split, 8 * n + 2 * along, max[h], total, x);
            }
        }
    }
};

// Blocks: as for `prefill`.
template <u32 CHANNELS>
SPARK_FN void mma_prefill(const SparkCall& call) {
    typedef MmaPrefill<CHANNELS> Own;
    // Lets the compiler omit the other type.
    if (call.scalar == SPARK_FLOAT32) __builtin_unreachable();
    const Part part(call, Own::QUERIES);
    Own own(call, part.s, part.kv_head, part.first_column, part.columns);
    own.attend(part.keys);
    own.write(part.split);
}

#endif
