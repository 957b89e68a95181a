// Attention for many queries on matrix cores. A block of four waves takes QUERIES columns, (new token, query head)
// pairs of one KV head with adjacent tokens, and a piece of their keys. Keys and values come to LDS once per tile, as
// E, decoded or copied (halves.h), and each wave multiplies them with its own queries, which stay in registers.
//
// Both products are computed transposed: keys * queries^T, then values^T * weights^T. So a lane has scores of only one
// query, that of its column, and they are already in the layout of the weights in the second product, operand B, if
// the values' keys are put in the same order. Weights never leave the lane, and the softmax rescales only the lane's
// own sums.
//
// E is float16 for T float16 and bfloat16, float32 for T float32. Rotated queries, decoded keys and values, and
// weights are rounded to float16, as in other GPU implementations of attention; sums are float32. bfloat16 would gain
// nothing here: it would round eight times as coarsely, and values read from T are limited to float16's range anyway.
//
// Cost model, for each wave and tile of 64 keys with E float16, D = 128 and 32 queries: 128 matrix instructions, of 32
// cycles on CDNA 2 and 16 on CDNA 3, compared with 32 LDS reads (8 cycles each of the one LDS that four SIMDs share)
// and the vector instructions that docs/performance.md counts. Matrix and vector instructions of different waves
// overlap, so a compute unit should hold two blocks: 256 registers per lane and 32 KB of LDS each. A wave has two
// fragments of queries, because each read of keys or values then feeds two products, and a tile is read once for
// 128 columns; with D > 128 registers hold only one.
#ifndef SPARK_PREFILL_MATRIX_H
#define SPARK_PREFILL_MATRIX_H

#include "halves.h"
#include "operand.h"

// Weights are at most 2^EXPONENT. CDNA 2 flushes float16 below 2^-14 to zero, so weights use the range from there up
// to near the greatest float16, and only those below 2^-29 of the greatest are lost.
template <class E>
struct Weights {
    SPARK_CONSTANT float EXPONENT = sizeof(E) == 2 ? 15.0f : 0.0f;
    SPARK_CONSTANT float UNIT = sizeof(E) == 2 ? 1.0f / 32768.0f : 1.0f;
};

// For head sizes up to CHANNELS, padded with zeros. LDS: a tile of keys or values, KEYS * CHANNELS of E; then the
// memory of `Source`. src/gpu/plan computes the same total.
template <class E, u32 CHANNELS>
struct MatrixPrefill {
    // Fragments of 16 columns per wave, limited by registers.
    SPARK_CONSTANT u32 FRAGMENTS = sizeof(E) * CHANNELS > 256 ? 1 : 2;
    SPARK_CONSTANT u32 WAVE_QUERIES = 16 * FRAGMENTS;
    SPARK_CONSTANT u32 QUERIES = WAVE_QUERIES * PREFILL_THREADS / WAVE;
    SPARK_CONSTANT u32 KEYS = 32 * FRAGMENTS;
    SPARK_CONSTANT u32 OCTETS = CHANNELS / 8;
    SPARK_CONSTANT u32 STEPS = CHANNELS / 32;   // of 32 channels
    SPARK_CONSTANT u32 ROWS = KEYS / 16;        // tiles of 16 keys
    SPARK_CONSTANT u32 OUTPUTS = CHANNELS / 16; // tiles of 16 channels
    SPARK_CONSTANT u32 QUADS = Operand<E>::QUADS;
    SPARK_CONSTANT u32 KEY_QUADS = OCTETS * QUADS; // of a key
    SPARK_CONSTANT u32 CHANNEL_QUADS = KEYS / 8 * QUADS; // of a channel of all values

    const SparkCall& call;
    const Sequence& s;
    const u32 first_column, columns;
    const Source<OCTETS, KEYS> source;
    const Shared<E> tile;
    u32 across, along; // of the lane, in operands: row or column, and which eight elements

    Keys seen[FRAGMENTS]; // by the lane's queries
    SeenByWave wave_sees;
    Operand<E> query[STEPS][FRAGMENTS], weights[KEYS / 32][FRAGMENTS];
    float max[FRAGMENTS], sum[FRAGMENTS];
    MatrixSums weighted[FRAGMENTS][OUTPUTS];

    SPARK_FN MatrixPrefill(const SparkCall& call, const Sequence& s, u32 kv_head, u32 first_column, u32 columns)
        : call(call), s(s), first_column(first_column), columns(columns),
          source(call, s, kv_head, KEYS * CHANNELS * sizeof(E)), tile(0), across(lane() % 16), along(lane() / 16),
          wave_sees(call, s, first_column + WAVE_QUERIES * wave(), WAVE_QUERIES, columns) {
        SPARK_UNROLL
        for (u32 f = 0; f < FRAGMENTS; ++f) {
            seen[f] = seen_by(call, s, source.token(column(f)));
            max[f] = NO_SCORE;
            sum[f] = 0.0f;
            SPARK_UNROLL
            for (u32 n = 0; n < OUTPUTS; ++n) weighted[f][n] = MatrixSums{0.0f, 0.0f, 0.0f, 0.0f};
        }
    }

    // Of the lane in fragment `f`.
    SPARK_FN u32 column(u32 f) const { return first_column + WAVE_QUERIES * wave() + 16 * f + across; }

    // Positions in LDS of quad `i` of an octet of a key, and of quad `i` of a channel of all values. The eight quads
    // of 128 bytes are permuted differently for each of eight rows, so that only lanes that are not processed together
    // share banks: a write processes eight neighbours together, a read two groups of four whose octets differ in the
    // lowest bit (counted in ops/emulation/banks.cpp).
    static SPARK_FN u32 key_quad(u32 row, u32 octet, u32 i) {
        return row * KEY_QUADS + ((i * OCTETS + octet) ^ row % 8);
    }
    static SPARK_FN u32 value_quad(u32 channel, u32 i) {
        const u32 width = CHANNEL_QUADS < 8 ? CHANNEL_QUADS : 8;
        const u32 order = (channel * width / 8 % width) ^ channel / 8 % 8;
        return (channel * CHANNEL_QUADS + i) ^ order;
    }

    SPARK_FN void put_key(u32 row, u32 octet, const float (&x)[8]) const {
        Operand<E> own;
        to_operand(x, own);
        SPARK_UNROLL
        for (u32 i = 0; i < QUADS; ++i) Shared<Quad>(tile.at).store(key_quad(row, octet, i), own.quad(i));
    }

    // The lane's part of 16 keys from `row` on, 32 channels from 32 * step on. Same positions as key_quad, with the
    // terms that do not depend on the lane separated, which leaves few addresses: constants become part of the
    // instruction.
    SPARK_FN Operand<E> key_operand(u32 row, u32 step) const {
        const u32 lanes = key_quad(across, along, 0);
        Operand<E> own;
        SPARK_UNROLL
        for (u32 i = 0; i < QUADS; ++i) {
            const u32 at = i * OCTETS + 4 * step;
            own.set_quad(i, Shared<Quad>(tile.at).load((lanes ^ at % 8) + at / 8 * 8 + row * KEY_QUADS));
        }
        return own;
    }

    // The lane's part of 16 channels from `channel` on, 32 keys from 32 * step on. Same positions as value_quad.
    SPARK_FN Operand<E> value_operand(u32 channel, u32 step) const {
        const u32 lanes = value_quad(across, along * QUADS);
        Operand<E> own;
        SPARK_UNROLL
        for (u32 i = 0; i < QUADS; ++i) {
            const u32 order = (4 * step * QUADS + i) ^ channel / 8 % 8;
            own.set_quad(i, Shared<Quad>(tile.at).load((lanes ^ order) + channel * CHANNEL_QUADS));
        }
        return own;
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
                    SPARK_UNROLL
                    for (u32 f = 0; f < FRAGMENTS; ++f) query[step][f] = key_operand(own - part + 16 * f, step);
                }
            }
        }
    }

    SPARK_FN void load_keys(u32 t, u32 end) const {
        if constexpr (sizeof(E) == 2) {
            if (has_halves(call, s, t, end)) return copy_keys(source, t, end, [this](u32 row, u32 octet, Quad key) {
                Shared<Quad>(tile.at).store(key_quad(row, octet, 0), key);
            });
        }
        source.keys(t, end, [this](u32 row, u32 octet, const float (&key)[8]) { put_key(row, octet, key); });
    }

    // What a thread transposes at a time: an octet of two neighbouring keys. Of 32 keys, key 16 * half + 4 * group + r
    // is stored where the scores of that group of lanes have it, in order 8 * group + 4 * half + r. Eight neighbouring
    // lanes take eight octets, the next ones the rest of the same quads, so that banks differ.
    struct Neighbours {
        u32 octet, key;
        u32 quad, pair; // of each channel: where, and which pair of its operand

        SPARK_FN explicit Neighbours(u32 n) {
            const u32 two = n / 8 % (KEYS / 2), half = two / 2 % 2, group = two / 4 % 4, step = two / 16;
            octet = n % 8 + n / 8 / (KEYS / 2) * 8;
            key = 32 * step + 16 * half + 4 * group + 2 * (two % 2);
            quad = (4 * step + group) * QUADS + half * (QUADS - 1);
            pair = 2 * half + two % 2;
        }
    };

    SPARK_FN void load_values(u32 t, u32 end) const {
        for (u32 n = anew(thread()); n < KEYS / 2 * OCTETS; n += PREFILL_THREADS) {
            const Neighbours own(n);
            const bool has = 8 * own.octet < call.head_dim && t + own.key < end;
            if constexpr (sizeof(E) == 2) {
                u32 pairs[8] = {0, 0, 0, 0, 0, 0, 0, 0};
                if (has) value_pairs(source, t + own.key, end, own.octet, pairs);
                SPARK_UNROLL
                for (u32 k = 0; k < 8; ++k) {
                    store_pair(tile, value_quad(8 * own.octet + k, own.quad), own.pair, pairs[k]);
                }
            } else {
                float v[2][8] = {};
                if (has) source.value(t + own.key, end, own.octet, v);
                SPARK_UNROLL
                for (u32 k = 0; k < 8; ++k) {
                    store_pair(tile, value_quad(8 * own.octet + k, own.quad), own.pair, v[0][k], v[1][k]);
                }
            }
        }
    }

    typedef MatrixSums Scores[ROWS][FRAGMENTS];

    // Computes the scores of the tile's keys, the softmax step, and the keys' weights.
    SPARK_FN void score_keys(u32 t, u32 end) {
        Scores score;
        SPARK_UNROLL
        for (u32 n = 0; n < ROWS; ++n) {
            SPARK_UNROLL
            for (u32 f = 0; f < FRAGMENTS; ++f) score[n][f] = MatrixSums{0.0f, 0.0f, 0.0f, 0.0f};
        }
        SPARK_UNROLL
        for (u32 step = 0; step < STEPS; ++step) {
            SPARK_UNROLL
            for (u32 n = 0; n < ROWS; ++n) {
                const Operand<E> key = key_operand(16 * n, step);
                SPARK_UNROLL
                for (u32 f = 0; f < FRAGMENTS; ++f) multiply(key, query[step][f], score[n][f]);
            }
        }
        float most[FRAGMENTS];
        SPARK_UNROLL
        for (u32 f = 0; f < FRAGMENTS; ++f) {
            SPARK_UNROLL
            for (u32 n = 0; n < ROWS; ++n) {
                SPARK_UNROLL
                for (u32 r = 0; r < 4; ++r) score[n][f][r] = scaled(call, score[n][f][r]);
            }
        }
        if (!wave_sees.all(t, end, KEYS)) mask(score, t, end);
        if (has_more(call)) add_more(score, t);
        bool grows = false;
        SPARK_UNROLL
        for (u32 f = 0; f < FRAGMENTS; ++f) {
            most[f] = max[f];
            SPARK_UNROLL
            for (u32 n = 0; n < ROWS; ++n) {
                SPARK_UNROLL
                for (u32 r = 0; r < 4; ++r) most[f] = greatest(most[f], score[n][f][r]);
            }
            most[f] = greatest(most[f], shuffle_xor(most[f], 16));
            most[f] = greatest(most[f], shuffle_xor(most[f], 32));
            grows = grows || most[f] > max[f];
        }
        // Rarely after the first tiles.
        if (vote(grows)) {
            SPARK_UNROLL
            for (u32 f = 0; f < FRAGMENTS; ++f) {
                const float factor = rescale(max[f], most[f]);
                max[f] = most[f];
                sum[f] *= factor;
                SPARK_UNROLL
                for (u32 n = 0; n < OUTPUTS; ++n) {
                    SPARK_UNROLL
                    for (u32 r = 0; r < 4; ++r) weighted[f][n][r] *= factor;
                }
            }
        }
        SPARK_UNROLL
        for (u32 f = 0; f < FRAGMENTS; ++f) {
            // A column without visible keys gets no weights.
            const float base = max[f] > NO_SCORE ? max[f] : 0.0f;
            SPARK_UNROLL
            for (u32 step = 0; step < KEYS / 32; ++step) {
                float p[8];
                SPARK_UNROLL
                for (u32 k = 0; k < 8; ++k) {
                    p[k] = exp2_of(fused(score[2 * step + k / 4][f][k % 4] - base, LOG2_E, Weights<E>::EXPONENT));
                    sum[f] += p[k];
                }
                to_operand(p, weights[step][f]);
            }
        }
    }

    // Position of the lane's score `r` of tile `n` of 16 keys.
    SPARK_FN u32 position_of(u32 t, u32 n, u32 r) const { return t + 16 * n + 4 * along + r; }

    // Masks keys that a query does not see.
    SPARK_FN void mask(Scores& score, u32 t, u32 end) const {
        SPARK_UNROLL
        for (u32 f = 0; f < FRAGMENTS; ++f) {
            const u32 last = end < seen[f].end ? end : seen[f].end;
            const u32 count = last > seen[f].start ? last - seen[f].start : 0;
            SPARK_UNROLL
            for (u32 n = 0; n < ROWS; ++n) {
                SPARK_UNROLL
                for (u32 r = 0; r < 4; ++r) {
                    // Wraps for keys before the first.
                    const bool sees = position_of(t, n, r) - seen[f].start < count;
                    score[n][f][r] = sees ? score[n][f][r] : NO_SCORE;
                }
            }
        }
    }

    // Applies softcap and attention_bias to the scores. Long, so a single copy in a loop through which scores rotate:
    // registers cannot be indexed.
    SPARK_FN void add_more(Scores& score, u32 t) const {
        for (u32 at = 0; at < 4 * ROWS; ++at) {
            const u32 first = anew(column(0));
            SPARK_UNROLL
            for (u32 f = 0; f < FRAGMENTS; ++f) {
                float x = score[0][f][0];
                SPARK_UNROLL
                for (u32 n = 1; n < 4 * ROWS; ++n) score[(n - 1) / 4][f][(n - 1) % 4] = score[n / 4][f][n % 4];
                // Unused columns have no bias.
                const u32 own = first + 16 * f < columns ? first + 16 * f : columns - 1;
                const u32 position = position_of(t, at / 4, at % 4);
                if (x > NO_SCORE) x = with_more(call, s, x, source.head(own), source.token(own), position);
                score[ROWS - 1][f][3] = x;
            }
        }
    }

    SPARK_FN void add_values() {
        SPARK_UNROLL
        for (u32 n = 0; n < OUTPUTS; ++n) {
            SPARK_UNROLL
            for (u32 step = 0; step < KEYS / 32; ++step) {
                const Operand<E> value = value_operand(16 * n, step);
                SPARK_UNROLL
                for (u32 f = 0; f < FRAGMENTS; ++f) multiply(value, weights[step][f], weighted[f][n]);
            }
        }
    }

    SPARK_FN void attend(const Keys& keys) {
        load_queries();
        source.prepare();
        block_barrier();
        stage_rows(source, keys.start, tile_end(keys, keys.start));
        for (u32 t = keys.start; t < keys.end; t += KEYS) {
            const u32 end = tile_end(keys, t);
            // For more than 64 channels registers have no room for the places of all operands.
            if constexpr (STEPS > 2) across = anew(across), along = anew(along);
            const bool sees = wave_sees.any(t, end);
            block_barrier();
            if (!has_halves(call, s, t, end)) source.find_dense(t, end);
            load_keys(t, end);
            block_barrier();
            if (sees) score_keys(t, end);
            block_barrier();
            load_values(t, end);
            // Keys that the next tile reads through LDS are loaded together with this tile's values.
            if (t + KEYS < keys.end) stage_rows(source, t + KEYS, tile_end(keys, t + KEYS));
            block_barrier();
            if (sees) add_values();
        }
    }

    SPARK_FN u32 tile_end(const Keys& keys, u32 t) const { return keys.end - t < KEYS ? keys.end : t + KEYS; }

    // A lane has four channels of each tile of 16. Lanes of two groups exchange half of their channels of two tiles,
    // so that each has eight adjacent channels.
    SPARK_FN void write(u32 split) const {
        // Divided by anew, as in decoding.
        const u32 group = same(anew(call.group));
        SPARK_UNROLL
        for (u32 f = 0; f < FRAGMENTS; ++f) {
            float total = sum[f] * Weights<E>::UNIT;
            total += shuffle_xor(total, 16);
            total += shuffle_xor(total, 32);
            const bool odd = along % 2;
            SPARK_UNROLL
            for (u32 n = 0; n < OUTPUTS; n += 2) {
                float v[8];
                SPARK_UNROLL
                for (u32 r = 0; r < 4; ++r) {
                    const float first = weighted[f][n][r] * Weights<E>::UNIT;
                    const float second = weighted[f][n + 1][r] * Weights<E>::UNIT;
                    const float other = shuffle_xor(odd ? first : second, 16);
                    v[r] = odd ? other : first;
                    v[4 + r] = odd ? second : other;
                }
                const u32 octet = 2 * n + 2 * odd + along / 2;
                const u32 own = column(f);
                if (8 * octet < call.head_dim && own < columns) {
                    write_result(call, source.kv_head * group + own % group, own / group, split, octet, max[f], total,
                                 v);
                }
            }
        }
    }
};

// Blocks: as for `prefill`.
template <class E, u32 CHANNELS>
SPARK_FN void matrix_prefill(const SparkCall& call) {
    typedef MatrixPrefill<E, CHANNELS> Own;
    // Lets the compiler omit the other types.
    if ((sizeof(E) == 4) != (call.scalar == SPARK_FLOAT32)) __builtin_unreachable();
    const Part part(call, Own::QUERIES);
    Own own(call, part.s, part.kv_head, part.first_column, part.columns);
    own.attend(part.keys);
    own.write(part.split);
}

#endif
