// Decoding: recovery attention for few queries. A block takes a piece of the keys of one KV head and up to COLUMNS of
// its queries, (new token, query head) pairs; its waves take tiles of keys in turn.
//
// Within a wave, OCTETS lanes share a row, eight channels each, and WAVE / OCTETS rows are processed side by side: a
// key is decoded once for all queries, the reduction of a product stays within OCTETS lanes, and a value's
// contribution to the output stays in the lane. Key rows are copied unchanged to LDS, in whole cache lines, because
// the position of a kept channel depends on the row's mask; value rows go straight to registers, and are loaded before
// the scores are computed. The running maximum changes once per tile.
#ifndef SPARK_DECODE_H
#define SPARK_DECODE_H

#include "decode_block.h"
#include "states.h"
#include "tail.h"

// Rows that a lane has in flight.
template <u32 COLUMNS>
struct DecodeSteps {
    SPARK_CONSTANT u32 STEPS = COLUMNS > 1 ? 2 : 4;
};

// Keys stored in rows; those that may be dense in the tail of a shared buffer; dense keys in past_key_recent and among
// the new tokens. There are few of the latter two.
enum KeyKind { STORED, IN_TAIL, DENSE };

template <u32 OCTETS, u32 COLUMNS, RowKind ROW_KIND>
struct Decode {
    SPARK_CONSTANT u32 ROWS = WAVE / OCTETS; // of a wave, side by side
    SPARK_CONSTANT u32 STEPS = DecodeSteps<COLUMNS>::STEPS;
    SPARK_CONSTANT u32 TILE = ROWS * STEPS;

    const SparkCall& call;
    const Sequence& s;
    const u32 kv_head;
    u32 octet, row; // of the lane
    const bool active;    // whether the head has so many octets
    KeyReader<OCTETS, ROW_KIND> reader;

    const u32 first_column;
    const Shared<float> units; // of the D channels. 16-bit keys: c. Quantised ones: 1 / c, with c in the query.
    Keys seen[COLUMNS];
    float query[COLUMNS][8];

    float max[COLUMNS], sum[COLUMNS], weighted[COLUMNS][8];

    // LDS: as left by queries_to_shared.
    SPARK_FN Decode(const SparkCall& call, const Sequence& s, u32 kv_head, u32 first_column)
        : call(call), s(s), kv_head(kv_head), octet(lane() % OCTETS), row(lane() / OCTETS),
          active(8 * octet < call.head_dim), reader(octet), first_column(first_column), units(0) {
        const u32 d = call.head_dim;
        const Shared<float> queries(4 * d);
        SPARK_UNROLL
        for (u32 c = 0; c < COLUMNS; ++c) {
            const Keys sees = seen_by(call, s, same(token(c)));
            seen[c] = {same(sees.start), same(sees.end)};
            max[c] = NO_SCORE;
            sum[c] = 0.0f;
            SPARK_UNROLL
            for (u32 k = 0; k < 8; ++k) {
                query[c][k] = active ? queries.load(c * d + 8 * octet + k) : 0.0f;
                weighted[c][k] = 0.0f;
            }
        }
    }

    // Of query `c`.
    SPARK_FN u32 token(u32 c) const { return (first_column + c) / call.group; }
    SPARK_FN u32 head(u32 c) const { return kv_head * call.group + (first_column + c) % call.group; }

    SPARK_FN i64 entry() const { return (i64)s.index * call.kv_heads + kv_head; }

    // A dense key, in the units of rows.
    SPARK_FN void dense_key(u32 t, float (&key)[8]) const {
        if (t < s.past) {
            const i64 at = entry() * call.past_recent_rows + (t - first_dense(call, s));
            read_some(call.scalar, call.past_recent, at * call.head_dim + 8 * octet, key);
        } else {
            token_octet(call, call.key, s, kv_head, t - s.past, octet, true, key);
        }
        to_units(key);
    }

    SPARK_FN void to_units(float (&key)[8]) const {
        if (call.key_bits == 16) return;
        SPARK_UNROLL
        for (u32 k = 0; k < 8; ++k) key[k] *= units.load(8 * octet + k);
    }

    // Looks for the keys from position `t` on in the tail: their channels, and whether the tail has each. Stages their
    // rows in LDS from byte `staged` on.
    template <u32 N>
    SPARK_FN void find_dense(const KeyLayout& layout, u32 staged, u32 t, u32 count, u32 (&channels)[N][4],
                             bool (&found)[N]) const {
        const Tail tail(call, s, kv_head);
        SPARK_UNROLL
        for (u32 n = 0; n < N; ++n) {
            const u32 r = n * ROWS + row;
            if (r < count && active) tail.fetch(tail.own_slot(t + r), octet, channels[n]);
        }
        stage_keys(call, layout, s, kv_head, t, count, staged);
        const u64 lanes = ~(~(u64)0 << OCTETS) << row * OCTETS; // of the row
        SPARK_UNROLL
        for (u32 n = 0; n < N; ++n) {
            const u32 r = n * ROWS + row, at = staged + 4 * layout.words * r;
            const bool reads = r < count && active;
            found[n] = (vote(reads && differs(call, layout, at, reader, channels[n])) & lanes) == 0;
            if (tail.before == 0) continue;
            SPARK_NOTE("rare");
            const Slot slot = !found[n] && r < count ? tail.earlier_slot(t + r) : NO_SLOT;
            if (slot != NO_SLOT && active) tail.fetch(slot, octet, channels[n]);
            const bool other = slot == NO_SLOT || (active && differs(call, layout, at, reader, channels[n]));
            const bool is_there = (vote(other) & lanes) == 0;
            found[n] = found[n] || is_there;
        }
    }

    // Adds keys and values from position `t` on, at most N * ROWS and below `end`, all of one kind.
    template <KeyKind KIND, u32 N>
    SPARK_FN void tile(const KeyLayout& layout, const ValueLayout& values, u32 staged, u32 t, u32 end) {
        const u32 count = end - t < N * ROWS ? end - t : N * ROWS;
        if constexpr (KIND == STORED) {
            // Of any bits.
            SPARK_NOTE_ROWS(N * ROWS, 0, 0);
        }
        ValueOctet value[N];
        SPARK_UNROLL
        for (u32 n = 0; n < N; ++n) {
            const u32 r = n * ROWS + row;
            const i64 at = entry() * call.past_rows + t + r;
            const u8* rows = (const u8*)call.past_value;
            if (r < count && active && (KIND != DENSE || t + r < s.past)) {
                value[n].fetch(call, values, rows + at * call.value_row_bytes, octet);
            }
        }
        u32 channels[N][4];
        bool found[N] = {};
        if constexpr (KIND == STORED) stage_keys(call, layout, s, kv_head, t, count, staged);
        if constexpr (KIND == IN_TAIL) find_dense(layout, staged, t, count, channels, found);
        float score[N][COLUMNS];
        SPARK_UNROLL
        for (u32 n = 0; n < N; ++n) {
            const u32 r = n * ROWS + row;
            float key[8];
            SPARK_UNROLL
            for (u32 k = 0; k < 8; ++k) key[k] = 0.0f;
            if (r < count && active) {
                if constexpr (KIND == DENSE) {
                    dense_key(t + r, key);
                } else if (found[n]) {
                    read_dense(channels[n], key);
                    to_units(key);
                } else {
                    reader.read(call, layout, staged + 4 * layout.words * r, t + r, units, key);
                }
            }
            SPARK_UNROLL
            for (u32 c = 0; c < COLUMNS; ++c) {
                const float dot = sum_over(product(query[c], key), OCTETS);
                score[n][c] = r < count && seen[c].contains(t + r) ? scaled(call, dot) : NO_SCORE;
            }
        }
        if (has_more(call)) add_more(score, t, count);
        SPARK_UNROLL
        for (u32 c = 0; c < COLUMNS; ++c) {
            float most = max[c];
            SPARK_UNROLL
            for (u32 n = 0; n < N; ++n) most = greatest(most, score[n][c]);
            if (most > max[c]) {
                SPARK_NOTE("rare");
                const float factor = rescale(max[c], most);
                max[c] = most;
                sum[c] *= factor;
                SPARK_UNROLL
                for (u32 k = 0; k < 8; ++k) weighted[c][k] *= factor;
            }
        }
        SPARK_UNROLL
        for (u32 n = 0; n < N; ++n) {
            const u32 r = n * ROWS + row;
            if (r >= count || !active) continue;
            float v[8];
            if (KIND != DENSE || t + r < s.past) {
                value[n].read(call, v);
            } else {
                token_octet(call, call.value, s, kv_head, t + r - s.past, octet, false, v);
            }
            SPARK_UNROLL
            for (u32 c = 0; c < COLUMNS; ++c) {
                const float p = rescale(score[n][c], max[c]);
                sum[c] += p;
                SPARK_UNROLL
                for (u32 k = 0; k < 8; ++k) weighted[c][k] = fused(p, v[k], weighted[c][k]);
            }
        }
    }

    // Applies softcap and attention_bias to the scores. Rarely needed and long, so a single copy in a loop that
    // selects a score by comparisons: registers cannot be indexed.
    template <u32 N>
    SPARK_FN void add_more(float (&score)[N][COLUMNS], u32 t, u32 count) const {
        SPARK_NOTE("rare");
        for (u32 at = 0; at < N * COLUMNS; ++at) {
            float x = NO_SCORE;
            SPARK_UNROLL
            for (u32 n = 0; n < N; ++n) {
                SPARK_UNROLL
                for (u32 c = 0; c < COLUMNS; ++c) {
                    if (at == n * COLUMNS + c) x = score[n][c];
                }
            }
            const u32 r = at / COLUMNS * ROWS + row, c = at % COLUMNS;
            if (r < count && x > NO_SCORE) x = with_more(call, s, x, head(c), token(c), t + r);
            SPARK_UNROLL
            for (u32 n = 0; n < N; ++n) {
                SPARK_UNROLL
                for (u32 c = 0; c < COLUMNS; ++c) score[n][c] = at == n * COLUMNS + c ? x : score[n][c];
            }
        }
    }

    template <KeyKind KIND, u32 N>
    SPARK_FN void tiles(const KeyLayout& layout, const ValueLayout& values, u32 staged, u32 start, u32 end) {
        const u32 size = N * ROWS;
        for (u32 t = start + wave() * size; t < end; t += DECODE_WAVES * size) {
            // Each kind of rows has addresses of its own; those of all at once would not fit into registers.
            octet = anew(octet), row = anew(row), reader.octet = octet;
            tile<KIND, N>(layout, values, staged, t, end);
        }
    }

    // Adds another state of the same query and channels.
    SPARK_FN void merge(u32 c, float other_max, float other_sum, const float (&other)[8]) {
        const float most = greatest(max[c], other_max);
        const float mine = rescale(max[c], most), its = rescale(other_max, most);
        max[c] = most;
        sum[c] = sum[c] * mine + its * other_sum;
        SPARK_UNROLL
        for (u32 k = 0; k < 8; ++k) weighted[c][k] = weighted[c][k] * mine + its * other[k];
    }

    // Merges the rows side by side: afterwards every row has the state of the wave.
    SPARK_FN void merge_rows() {
        SPARK_UNROLL
        for (u32 n = 0; n < 6; ++n) {
            const u32 m = 1u << n;
            if (m < OCTETS || m >= WAVE) continue;
            SPARK_UNROLL
            for (u32 c = 0; c < COLUMNS; ++c) {
                float other[8];
                SPARK_UNROLL
                for (u32 k = 0; k < 8; ++k) other[k] = shuffle_xor(weighted[c][k], m);
                // Lanes without channels have no sum of their own, so the sum is exchanged before it is used.
                merge(c, shuffle_xor(max[c], m), shuffle_xor(sum[c], m), other);
            }
        }
    }

    // Merges the waves of the block: afterwards the first one has the state of the block. LDS: half the waves' states.
    SPARK_FN void merge_waves() {
        const u32 d = call.head_dim, floats = COLUMNS * (d + 2);
        const Shared<float> states(4 * d);
        for (u32 half = DECODE_WAVES / 2; half > 0; half /= 2) {
            block_barrier();
            if (wave() >= half && wave() < 2 * half && row == 0 && active) {
                const u32 at = (wave() - half) * floats;
                SPARK_UNROLL
                for (u32 c = 0; c < COLUMNS; ++c) {
                    SPARK_UNROLL
                    for (u32 k = 0; k < 8; ++k) states.store(at + c * (d + 2) + 8 * octet + k, weighted[c][k]);
                    if (octet == 0) {
                        states.store(at + c * (d + 2) + d, max[c]);
                        states.store(at + c * (d + 2) + d + 1, sum[c]);
                    }
                }
            }
            block_barrier();
            if (wave() < half && row == 0 && active) {
                const u32 at = wave() * floats;
                SPARK_UNROLL
                for (u32 c = 0; c < COLUMNS; ++c) {
                    float other[8];
                    SPARK_UNROLL
                    for (u32 k = 0; k < 8; ++k) other[k] = states.load(at + c * (d + 2) + 8 * octet + k);
                    merge(c, states.load(at + c * (d + 2) + d), states.load(at + c * (d + 2) + d + 1), other);
                }
            }
        }
    }

    // Writes the block's results, by its first wave.
    SPARK_FN void write(const DecodeBlock& block) const {
        if (thread() >= WAVE || row != 0 || !active) return;
        // Divided by anew: else its reciprocal would be kept since the beginning.
        const u32 group = same(anew(call.group));
        SPARK_UNROLL
        for (u32 c = 0; c < COLUMNS; ++c) {
            const u32 column = first_column + c;
            // No break: clang 15 does not unroll a loop that has one.
            if (column < block.columns) {
                write_result(call, kv_head * group + column % group, column / group, block.split, octet, max[c], sum[c],
                             weighted[c]);
            }
        }
    }
};

// LDS: D units; then, reusing the same memory in turn, queries and scales, for each wave the fields of TILE rows and
// KEY_SLACK_WORDS, and the states of half the waves.
template <u32 OCTETS, u32 COLUMNS, RowKind ROW_KIND>
SPARK_FN void decode(const SparkCall& call) {
    typedef Decode<OCTETS, COLUMNS, ROW_KIND> Own;
    const DecodeBlock block(call, COLUMNS);
    const Sequence s(call, block_z());
    const Keys keys = block.keys(call, s);

    queries_to_shared<COLUMNS>(call, s, block.kv_head, block.first_column);
    Own own(call, s, block.kv_head, block.first_column);
    block_barrier();
    const KeyLayout layout(call);
    const ValueLayout values(call);
    const u32 staged_words = Own::TILE * layout.words + KEY_SLACK_WORDS;
    const u32 staged = 4 * (call.head_dim + staged_words * wave());
    // Channels after the last row are read, but not used.
    clear_row(staged, staged_words);
    const u32 dense = first_dense(call, s), in_tail = first_in_tail(call, s);
    own.template tiles<STORED, Own::STEPS>(layout, values, staged, keys.start, keys.end < in_tail ? keys.end : in_tail);
    // Registers have no room for the tail's keys of two rows and several queries.
    own.template tiles<IN_TAIL, COLUMNS == 1 ? Own::STEPS : 1>(layout, values, staged,
                                                               keys.start > in_tail ? keys.start : in_tail,
                                                               keys.end < dense ? keys.end : dense);
    own.template tiles<DENSE, 1>(layout, values, staged, keys.start > dense ? keys.start : dense, keys.end);
    own.merge_rows();
    own.merge_waves();
    own.write(block);
}

#endif
