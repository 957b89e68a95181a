// Decoding of quantised rows on matrix cores: like decode.h, with stored keys taken 16 at a time. AMD's and NVIDIA's
// differ in how rows come to the wave, in which lane has what, and in the products: MatrixRows, MatrixLanes, MatrixKeys
// and MatrixValues.
#ifndef SPARK_DECODE_MATRIX_H
#define SPARK_DECODE_MATRIX_H

#ifdef SPARK_MMA
#include "mma_planes.h"
#include "mma_values.h"
#else
#include "matrix_planes.h"
#include "matrix_values.h"
#endif

// One wave's stored keys. A lane has the scores of a query and four keys in each block of queries.
template <u32 OCTETS, u32 COLUMNS, u32 KEY_BITS, u32 VALUE_BITS>
struct DecodeMatrix {
    SPARK_CONSTANT u32 BLOCKS = (COLUMNS + 3) / 4; // of four queries
    // Values beside keys in planes have one scale a row.
    SPARK_CONSTANT bool GROUPED = VALUE_BITS == 4 && KEY_BITS != BITS_OF_PLANES;
    // Weights times scales are at most 2^12 e^2, below the largest float16 of nearly 2^16, and all that matter are far
    // above its least normal number.
    static constexpr float HEADROOM = 12.0f, SLACK = 2.88539f;

    const SparkCall& call;
    const Sequence& s;
    const u32 kv_head, first_column;
    MatrixRows rows;
    MatrixKeys<OCTETS, BLOCKS, KEY_BITS> keys;
    MatrixValues<OCTETS, BLOCKS, VALUE_BITS, GROUPED> values;
    Keys seen[BLOCKS];
    // To base 2, for the lane's query: the reference of the weights, which is the greatest sum of a score and the
    // logarithm of its value's scale, less HEADROOM; and the sum of weights.
    float reference[BLOCKS], sum[BLOCKS];

    // LDS: as left by queries_to_shared; after it the memory of MatrixRows, which the waves' states reuse.
    SPARK_FN DecodeMatrix(const SparkCall& call, const Sequence& s, u32 kv_head, u32 first_column)
        : call(call), s(s), kv_head(kv_head), first_column(first_column), rows(call, s, kv_head, region(call)),
          keys(call, rows), values(call) {
        SPARK_UNROLL
        for (u32 b = 0; b < BLOCKS; ++b) {
            const bool exists = column(b) < COLUMNS;
            keys.set_query(b, Shared<float>(4 * call.head_dim), exists ? column(b) * call.head_dim : 0, exists);
            const bool asked = exists && first_column + column(b) < call.group * call.new_tokens;
            seen[b] = asked ? seen_by(call, s, token(b)) : Keys{0, 0};
            reference[b] = NO_SCORE;
            sum[b] = 0.0f;
        }
    }

    // Byte of LDS after units and queries, a multiple of 32.
    SPARK_FN static u32 region(const SparkCall& call) { return 4 * (1 + COLUMNS) * call.head_dim; }

    // The first byte of LDS that neither the memory of MatrixRows nor the waves' states take.
    SPARK_FN static u32 end(const SparkCall& call) {
        const u32 bytes = MatrixRows::block_bytes(call), states = 4 * DECODE_WAVES * COLUMNS * (call.head_dim + 2);
        return region(call) + (bytes > states ? bytes : states);
    }

    // Of the lane's query in block `b`.
    SPARK_FN u32 column(u32 b) const { return 4 * b + MatrixLanes::query(); }
    SPARK_FN u32 token(u32 b) const { return (first_column + column(b)) / call.group; }
    SPARK_FN u32 head(u32 b) const { return kv_head * call.group + (first_column + column(b)) % call.group; }

    SPARK_FN void tiles(u32 start, u32 end) {
        const u32 stride = DECODE_WAVES * MATRIX_KEYS;
        u32 t = start + wave() * MATRIX_KEYS, buffer = 0;
        rows.begin(t);
        rows.request(buffer, t, end);
        for (; t < end; t += stride) {
            rows.request(buffer ^ 1, t + stride, end);
            rows.await(buffer, same(t), end);
            tile(same(t), end);
            buffer ^= 1;
        }
    }

    // Adds the stored keys and values from `t` on, at most MATRIX_KEYS and below `end`.
    SPARK_FN void tile(u32 t, u32 end) {
        SPARK_NOTE_ROWS(MATRIX_KEYS, KEY_BITS, VALUE_BITS);
        values.fetch(rows);
        rows.stage();
        float score[BLOCKS][4], p[BLOCKS][4];
        keys.score(rows, score);
        SPARK_UNROLL
        for (u32 b = 0; b < BLOCKS; ++b) {
            const u32 stop = seen[b].end < end ? seen[b].end : end;
            const u32 count = seen[b].start < stop ? stop - seen[b].start : 0;
            const u32 from = t + 4 * keys.group - seen[b].start;
            SPARK_UNROLL
            for (u32 r = 0; r < 4; ++r) score[b][r] = from + r < count ? score[b][r] : NO_SCORE;
        }
        if (SPARK_UNLIKELY(has_more(call))) add_more(score, t);
        values.arrive(rows);
        weigh(score, p);
        values.add(p);
    }

    // Applies softcap and attention_bias to the scores; rarely needed.
    SPARK_FN void add_more(float (&score)[BLOCKS][4], u32 t) const {
        SPARK_NOTE("rare");
        SPARK_UNROLL
        for (u32 b = 0; b < BLOCKS; ++b) {
            SPARK_ROLLED
            for (u32 r = 0; r < 4; ++r) {
                float x = NO_SCORE;
                SPARK_UNROLL
                for (u32 k = 0; k < 4; ++k) {
                    if (k == r) x = score[b][k];
                }
                if (x > NO_SCORE) {
                    x = with_more(call, s, x * LN_2, head(b), token(b), t + 4 * keys.group + r);
                    x = x > NO_SCORE ? least(greatest(x * LOG2_E, -FLOAT_MAX), FLOAT_MAX) : NO_SCORE;
                }
                SPARK_UNROLL
                for (u32 k = 0; k < 4; ++k) score[b][k] = k == r ? x : score[b][k];
            }
        }
    }

    // Computes weights from scores, once the reference is high enough for float16 to hold weights times scales.
    SPARK_FN void weigh(const float (&score)[BLOCKS][4], float (&p)[BLOCKS][4]) {
        float size[4];
        SPARK_UNROLL
        for (u32 r = 0; r < 4; ++r) size[r] = values.size(r);
        SPARK_UNROLL
        for (u32 b = 0; b < BLOCKS; ++b) {
            float most = NO_SCORE;
            SPARK_UNROLL
            for (u32 r = 0; r < 4; ++r) most = greatest(most, score[b][r] + size[r]);
            if (SPARK_UNLIKELY(vote(most > reference[b] + (HEADROOM + SLACK)))) {
                SPARK_NOTE("rare");
                refer(b, most);
            }
            const float from = reference[b] > NO_SCORE ? reference[b] : 0.0f;
            SPARK_UNROLL
            for (u32 r = 0; r < 4; ++r) {
                p[b][r] = exp2_of(score[b][r] - from);
                sum[b] += p[b][r];
            }
        }
    }

    // Raises the reference to `most` less HEADROOM if that is greater; all lanes of a query then agree on it.
    SPARK_FN void refer(u32 b, float most) {
        most = MatrixLanes::greatest_of_query(most) - HEADROOM;
        float factor = 1.0f;
        if (most > reference[b]) {
            factor = exp2_of(reference[b] > NO_SCORE ? reference[b] - most : -1000.0f);
            reference[b] = most;
            sum[b] *= factor;
        }
        values.rescale_sums(b, factor);
    }

    // Writes the wave's states to LDS: for each query D weighted sums, the greatest score, the sum of weights.
    SPARK_FN Shared<float> write_states() {
        const u32 d = call.head_dim;
        const Shared<float> states(region(call) + 4 * wave() * COLUMNS * (d + 2));
        block_barrier();
        SPARK_UNROLL
        for (u32 b = 0; b < BLOCKS; ++b) {
            sum[b] = MatrixLanes::sum_of_query(sum[b]);
            const u32 first = column(b) * (d + 2);
            if (column(b) < COLUMNS && keys.group == 0 && keys.part == 0) {
                states.store(first + d, reference[b] > NO_SCORE ? reference[b] * LN_2 : NO_SCORE);
                states.store(first + d + 1, sum[b]);
            }
            values.write(b, states, COLUMNS);
        }
        wave_barrier();
        return states;
    }
};

// Whether registers have room for the sums: src/gpu/plan chooses no other sizes.
template <u32 OCTETS, u32 COLUMNS, bool GROUPED>
SPARK_FN constexpr bool has_room() {
#ifdef SPARK_MMA
    return true;
#else
    return OCTETS < 16 || COLUMNS <= 4 || !GROUPED;
#endif
}

// Computes the waves' states of the stored keys from `start` to below `end`, in LDS.
template <u32 OCTETS, u32 COLUMNS, u32 KEY_BITS, u32 VALUE_BITS>
SPARK_FN Shared<float> decode_stored(const SparkCall& call, const Sequence& s, const DecodeBlock& block, u32 start,
                                     u32 end) {
    typedef DecodeMatrix<OCTETS, COLUMNS, KEY_BITS, VALUE_BITS> Stored;
    if constexpr (has_room<OCTETS, COLUMNS, Stored::GROUPED>()) {
        Stored stored(call, s, block.kv_head, block.first_column);
        stored.tiles(start, end);
        return stored.write_states();
    } else {
        return Shared<float>(0);
    }
}

template <u32 OCTETS, u32 COLUMNS, RowKind KIND>
SPARK_FN void decode_quantised(const SparkCall& call) {
    typedef Decode<OCTETS, COLUMNS, KIND> Dense;
    const DecodeBlock block(call, COLUMNS);
    const Sequence s(call, block_z());
    const Keys keys = block.keys(call, s);
    const u32 dense = first_dense(call, s), in_tail = first_in_tail(call, s);

    queries_to_shared<COLUMNS>(call, s, block.kv_head, block.first_column);
    const u32 end = keys.end < in_tail ? keys.end : in_tail;
    Shared<float> states(0);
    if constexpr (KIND == IN_PLANES) {
        SPARK_CONSTANT u32 PLANES = BITS_OF_PLANES;
        states = call.value_bits == 8 ? decode_stored<OCTETS, COLUMNS, PLANES, 8>(call, s, block, keys.start, end)
                                      : decode_stored<OCTETS, COLUMNS, PLANES, 4>(call, s, block, keys.start, end);
    } else if (call.key_bits == 8) {
        states = call.value_bits == 8 ? decode_stored<OCTETS, COLUMNS, 8, 8>(call, s, block, keys.start, end)
                                      : decode_stored<OCTETS, COLUMNS, 8, 4>(call, s, block, keys.start, end);
    } else {
        states = call.value_bits == 8 ? decode_stored<OCTETS, COLUMNS, 4, 8>(call, s, block, keys.start, end)
                                      : decode_stored<OCTETS, COLUMNS, 4, 4>(call, s, block, keys.start, end);
    }
    Dense own(call, s, block.kv_head, block.first_column);
    const KeyLayout layout(call);
    const ValueLayout values(call);
    if (in_tail < dense) {
        // LDS: for each wave the fields of TILE rows and KEY_SLACK_WORDS.
        const u32 staged_words = Dense::TILE * layout.words + KEY_SLACK_WORDS;
        const u32 staged = DecodeMatrix<OCTETS, COLUMNS, 8, 8>::end(call) + 4 * staged_words * wave();
        clear_row(staged, staged_words);
        // One row a lane: registers have no room for more.
        own.template tiles<IN_TAIL, 1>(layout, values, staged, keys.start > in_tail ? keys.start : in_tail,
                                       keys.end < dense ? keys.end : dense);
    }
    own.template tiles<DENSE, 1>(layout, values, 0, keys.start > dense ? keys.start : dense, keys.end);
    own.merge_rows();
    // Lanes without channels have those of others, and nobody asks them for theirs.
    const u32 channel = own.active ? 8 * own.octet : 0;
    SPARK_UNROLL
    for (u32 c = 0; c < COLUMNS; ++c) {
        const u32 state = c * (call.head_dim + 2);
        float other[8];
        SPARK_UNROLL
        for (u32 k = 0; k < 8; ++k) other[k] = states.load(state + channel + k);
        own.merge(c, states.load(state + call.head_dim), states.load(state + call.head_dim + 1), other);
        in_order();
    }
    own.merge_waves();
    own.write(block);
}

#endif
