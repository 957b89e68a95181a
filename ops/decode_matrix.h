// Decoding of quantised rows on devices that multiply matrices: what decode.h does for keys in rows, 16 keys at a time.
//
// Keys. A lane has a key, or rather a fourth of it: OWN octets. With u the codes, spread over the channels and 0 for pruned
// ones, s the signs and b a digit of the query, a score is step * sum(s u b) + m * sum over kept(s b) + a * sum over
// pruned(s b), summed over digits. All three come from products of bytes:
//
//   F1 = sum((s (u - 127.5) - 0.5) b), F2 = sum((-127.5 s - 0.5) b), F3 = sum((127.5 s t - 0.5) b), B = sum(b)
//
// with t = 1 for kept and -1 for pruned channels: the bytes of F2 are 0x80 and 0x7f, those of F1 and F3 are they xor u
// and xor 0xff. Then sum(s u b) = F1 - F2, sum over kept(s b) = (F3 - F2) / 255, and over pruned = -(F2 + F3 + B) / 255.
// A query is three signed bytes a channel, of its greatest one as many steps as a float32 has: columns 4 c + p of the
// product are the digits p of query c, so every sum is exact, and the fourth column is idle.
//
// Values. A lane of the scores has a column and four keys, which is how a product takes weights: weight times scale, as the
// sum of two float16 in columns 4 c + p, p even and odd. Codes are exact in float16. Four-bit values have a scale for each
// 32 channels, so p / 2 is which of two groups; four groups take two products.
//
// The greatest score that weights are relative to includes the value's scale, so that float16 holds weight times scale.
#ifndef SPARK_DECODE_MATRIX_H
#define SPARK_DECODE_MATRIX_H

#include "decode.h"

#if SPARK_HAS_MATRIX

// LDS of a block, in words behind the queries: selectors of codes and bytes of kept channels by a mask's byte, signs by a
// sign plane's byte; then for each wave the fields of 16 keys, KEY_SLACK_WORDS, four factors of each key. All of it gives
// way to the waves' states.
SPARK_CONSTANT u32 MATRIX_TABLE_WORDS = 256 * 6;

template <u32 OCTETS, u32 COLUMNS, u32 KEY_BITS, u32 VALUE_BITS>
struct DecodeMatrix {
    SPARK_CONSTANT u32 KEYS = 16;
    SPARK_CONSTANT u32 OWN = OCTETS / 4;
    SPARK_CONSTANT u32 BLOCKS = (COLUMNS + 3) / 4; // of four queries
    // Channels of values: UNIT side by side in each of HALVES parts.
    SPARK_CONSTANT u32 UNIT = OCTETS < 16 ? 4 : 8;
    SPARK_CONSTANT u32 HALVES = OCTETS < 16 ? 1 : OCTETS / 16;
    SPARK_CONSTANT u32 WORDS = UNIT / 4; // of 8-bit codes
    // Products of a half, for two groups of 4-bit values each.
    SPARK_CONSTANT bool GROUPED = VALUE_BITS == 4;
    SPARK_CONSTANT u32 SETS = GROUPED && OCTETS >= 16 ? 2 : 1;
    // Weights are at most 2^12 e^2, the largest float16 being nearly 2^16, and all that matter are far from its least.
    static constexpr float HEADROOM = 12.0f, SLACK = 2.88539f;
    static constexpr float LOG2_E = 1.44269504088896340736f, LN_2 = 0.69314718055994530942f;

    const SparkCall& call;
    const Sequence& s;
    const KeyLayout layout;
    const ValueLayout values;
    const u32 kv_head, first_column;
    const u32 row, group;  // of the lane as it unpacks: key and fourth of it; channels and keys 4 group to 4 group + 3
    const u32 part;        // of the lane's column of scores
    const Shared<u32> masks, signs;
    const u32 staged;      // bytes of LDS, of the wave
    const Shared<float> factors;

    u32 digits[BLOCKS][OWN][2];
    int digit_sum[BLOCKS];
    float unit[BLOCKS]; // of a digit, times scale, to base 2
    Keys seen[BLOCKS];

    // To base 2, of the lane's column: what weights are relative to, the sum of weights, and what values add to the output.
    float reference[BLOCKS], sum[BLOCKS], minimum[BLOCKS][HALVES][SETS];
    // By dimensions of their own: compilers index registers by plain loop variables only.
    float weighted[BLOCKS][SETS][HALVES][WORDS][4][4];

    SPARK_FN DecodeMatrix(const SparkCall& call, const Sequence& s, u32 kv_head, u32 first_column)
        : call(call), s(s), layout(call), values(call), kv_head(kv_head), first_column(first_column), row(lane() % 16),
          group(lane() / 16), part(lane() % 4), masks(region(call)), signs(region(call) + 4 * 1024),
          staged(region(call) + 4 * (MATRIX_TABLE_WORDS + wave_words() * wave())),
          factors(staged + 4 * (KEYS * layout.words + KEY_SLACK_WORDS + 3) / 16 * 16) {
        fill_tables();
        SPARK_UNROLL
        for (u32 b = 0; b < BLOCKS; ++b) {
            set_digits(b);
            seen[b] = first_column + column(b) < call.group * call.new_tokens ? seen_by(call, s, token(b)) : Keys{0, 0};
            reference[b] = NO_SCORE;
            sum[b] = 0.0f;
            SPARK_UNROLL
            for (u32 set = 0; set < SETS; ++set) {
                SPARK_UNROLL
                for (u32 h = 0; h < HALVES; ++h) minimum[b][h][set] = 0.0f;
            }
            each_sum(b, [](float& x) { x = 0.0f; });
        }
        clear_row(staged, KEYS * layout.words + KEY_SLACK_WORDS);
        block_barrier();
    }

    template <class F>
    SPARK_FN void each_sum(u32 b, F change) {
        SPARK_UNROLL
        for (u32 set = 0; set < SETS; ++set) {
            SPARK_UNROLL
            for (u32 h = 0; h < HALVES; ++h) {
                SPARK_UNROLL
                for (u32 w = 0; w < WORDS; ++w) {
                    SPARK_UNROLL
                    for (u32 k = 0; k < 4; ++k) {
                        SPARK_UNROLL
                        for (u32 r = 0; r < 4; ++r) change(weighted[b][set][h][w][k][r]);
                    }
                }
            }
        }
    }

    // Byte of LDS behind units and queries, a multiple of 32.
    SPARK_FN static u32 region(const SparkCall& call) { return 4 * (1 + COLUMNS) * call.head_dim; }
    // A multiple of four.
    SPARK_FN u32 wave_words() const { return (KEYS * layout.words + KEY_SLACK_WORDS + 3) / 4 * 4 + 4 * KEYS; }

    // Of the lane's column in block `b`; beyond the call's it sees nothing.
    SPARK_FN u32 column(u32 b) const { return 4 * b + row / 4; }
    SPARK_FN u32 token(u32 b) const { return (first_column + column(b)) / call.group; }
    SPARK_FN u32 head(u32 b) const { return kv_head * call.group + (first_column + column(b)) % call.group; }

    SPARK_FN void fill_tables() const {
        for (u32 byte = thread(); byte < 256; byte += DECODE_WAVES * WAVE) {
            u32 selectors[2] = {0, 0}, kept[2] = {0, 0}, n = 0;
            SPARK_UNROLL
            for (u32 k = 0; k < 8; ++k) {
                const bool keep = byte >> k & 1;
                // Nibbles are taken apart to even ones in the low word and odd ones in the high word.
                const u32 at = KEY_BITS == 8 ? n : n / 2 + n % 2 * 4;
                selectors[k / 4] |= (keep ? at : PICK_ZERO) << 8 * (k % 4);
                kept[k / 4] |= (keep ? 0xffu : 0u) << 8 * (k % 4);
                n += keep;
            }
            SPARK_UNROLL
            for (u32 k = 0; k < 2; ++k) {
                masks.store(4 * byte + k, selectors[k]);
                masks.store(4 * byte + 2 + k, kept[k]);
                signs.store(2 * byte + k, kept[k] ^ 0x80808080);
            }
        }
    }

    SPARK_FN void set_digits(u32 b) {
        const u32 d = call.head_dim;
        const Shared<float> queries(4 * d);
        const bool exists = column(b) < COLUMNS;
        const u32 first = exists ? column(b) * d : 0;
        float most = 0.0f;
        SPARK_ROLLED
        for (u32 j = 8 * OWN * group; j < 8 * OWN * (group + 1); ++j) {
            const float q = exists && j < d ? queries.load(first + j) : 0.0f;
            most = greatest(most, q < 0.0f ? -q : q);
        }
        most = greatest(most, shuffle_xor(most, 16));
        most = greatest(most, shuffle_xor(most, 32));
        // About as far as three signed bytes reach. What is smaller than any product of numbers that occur is zero.
        const float steps = 8355000.0f, factor = most > 1e-30f ? steps / most : 0.0f;
        u32 total = 0;
        SPARK_UNROLL
        for (u32 n = 0; n < OWN; ++n) {
            const u32 octet = OWN * group + n;
            const bool own = exists && 8 * octet < d;
            SPARK_UNROLL
            for (u32 w = 0; w < 2; ++w) {
                u32 word = 0;
                SPARK_ROLLED
                for (u32 k = 0; k < 4; ++k) {
                    const float q = own ? queries.load(first + 8 * octet + 4 * w + k) : 0.0f;
                    // With 0x80 added to each digit all are positive, and without carries between them.
                    const u32 all = (u32)((int)round_even(q * factor) + 0x808080) ^ 0x808080;
                    const u32 digit = part < 3 ? all >> 8 * (2 - part) & 0xff : 0;
                    word |= digit << 8 * k;
                    total += digit - (digit << 1 & 0x100);
                }
                digits[b][n][w] = word;
            }
        }
        total += shuffle_xor(total, 16);
        total += shuffle_xor(total, 32);
        digit_sum[b] = (int)total;
        const float size = part == 0 ? 65536.0f : part == 1 ? 256.0f : part == 2 ? 1.0f : 0.0f;
        unit[b] = size * (most / steps) * (call.scale * LOG2_E);
    }

    // A mask without the channels that have no slot, which read as pruned, for a row of a host that marks too many.
    SPARK_FN static u32 limited(u32 mask, u32 room) {
        u32 first = 0;
        for (u32 k = 0; k < 8; ++k) {
            if ((mask >> k & 1) && room > 0) {
                first |= 1u << k;
                room -= 1;
            }
        }
        return first;
    }

    // The products of the lane's key and the queries' digits: F1 to F3 of four keys, see above.
    SPARK_FN void multiply_keys(int (&f)[BLOCKS][3][4]) const {
        SPARK_UNROLL
        for (u32 b = 0; b < BLOCKS; ++b) {
            SPARK_UNROLL
            for (u32 k = 0; k < 3; ++k) {
                SPARK_UNROLL
                for (u32 r = 0; r < 4; ++r) f[b][k][r] = 0;
            }
        }
        const u32 begin = staged + 4 * layout.words * row, octets = call.head_dim / 8;
        const Shared<u8> bytes(begin);
        u32 mask[OWN], sign[OWN], own = 0;
        SPARK_UNROLL
        for (u32 n = 0; n < OWN; ++n) {
            const u32 octet = OWN * group + n;
            mask[n] = octet < octets ? bytes.load(octet) : 0;
            sign[n] = bytes.load(layout.mask_bytes + octet);
            own += popcount(mask[n]);
        }
        const u32 neighbour = shuffle_xor(own, 16), half = own + neighbour, other = shuffle_xor(half, 32);
        u32 slot = (group & 1 ? neighbour : 0) + (group & 2 ? other : 0);
        if (vote(half + other > call.kept)) {
            SPARK_NOTE("rare");
            u32 before = slot;
            slot = slot < call.kept ? slot : call.kept;
            SPARK_UNROLL
            for (u32 n = 0; n < OWN; ++n) {
                const u32 all = popcount(mask[n]);
                mask[n] = limited(mask[n], before < call.kept ? call.kept - before : 0);
                before += all;
            }
        }
        // In units of codes, from the begin of LDS, which codes are whole bytes from.
        u32 at = (begin + layout.codes_at) * (8 / KEY_BITS) + slot;
        const Shared<u32> words(0);
        SPARK_UNROLL
        for (u32 n = 0; n < OWN; ++n) {
            const u32 word = at * KEY_BITS / 32, shift = at * KEY_BITS % 32;
            const u32 w0 = words.load(word), w1 = words.load(word + 1);
            u32 low = funnel_right(w1, w0, shift), high;
            if constexpr (KEY_BITS == 8) {
                high = funnel_right(words.load(word + 2), w1, shift);
            } else {
                high = low >> 4 & 0x0f0f0f0f;
                low &= 0x0f0f0f0f;
            }
            at += popcount(mask[n]);
            u32 entry[4], g[2];
            masks.load_some(4 * mask[n], entry);
            signs.load_some(2 * sign[n], g);
            const u32 codes[2] = {pick_bytes(high, low, entry[0]) ^ g[0], pick_bytes(high, low, entry[1]) ^ g[1]};
            const u32 kinds[2] = {entry[2] ^ g[0], entry[3] ^ g[1]};
            SPARK_UNROLL
            for (u32 b = 0; b < BLOCKS; ++b) {
                multiply_bytes(codes, digits[b][n], f[b][0]);
                multiply_bytes(g, digits[b][n], f[b][1]);
                multiply_bytes(kinds, digits[b][n], f[b][2]);
            }
        }
    }

    // Each key's step, m / 255 and a / -255, by the lane that has the key.
    SPARK_FN void share_factors() const {
        const Shared<u16> halves(staged + 4 * layout.words * row + layout.scalars_at);
        if (group == 0) {
            factors.store(4 * row, finite_half(halves.load(2)));
            factors.store(4 * row + 1, finite_half(halves.load(1)) * (1.0f / 255.0f));
            factors.store(4 * row + 2, call.recover ? finite_half(halves.load(0)) * (-1.0f / 255.0f) : 0.0f);
            factors.store(4 * row + 3, 0.0f);
        }
    }

    // Codes of values of the lane's channels, and scale and minimum for its column, of four keys.
    struct Values {
        u32 codes[HALVES][4][UNIT / 4];
        u32 pairs[HALVES][SETS][4];
    };

    // Keys from `t` on, of which there are `count`: keys beyond them read as the last one.
    SPARK_FN void fetch_values(u32 t, u32 count, Values& v) const {
        const i64 at = ((i64)s.index * call.kv_heads + kv_head) * call.past_rows + t;
        const u8* rows = (const u8*)call.past_value + at * call.value_row_bytes;
        const u32 units = call.head_dim / UNIT;
        SPARK_UNROLL
        for (u32 r = 0; r < 4; ++r) {
            const u32 key = 4 * group + r < count ? 4 * group + r : count - 1;
            const u32 begin = key * call.value_row_bytes, codes = begin + values.codes_at;
            SPARK_UNROLL
            for (u32 h = 0; h < HALVES; ++h) {
                // Channels beyond the head's are not used.
                const u32 own = row + 16 * h < units ? row + 16 * h : 0;
                if constexpr (VALUE_BITS == 8) {
                    load_words(rows + codes + UNIT * own, v.codes[h][r]);
                    v.pairs[h][0][r] = load((const u32*)(rows + begin));
                } else {
                    if constexpr (UNIT == 8) {
                        v.codes[h][r][0] = load((const u32*)(rows + codes + 4 * own));
                    } else {
                        v.codes[h][r][0] = load((const u16*)(rows + codes + 2 * own));
                    }
                    SPARK_UNROLL
                    for (u32 set = 0; set < SETS; ++set) {
                        const u32 pair = 4 * h + 2 * set + part / 2, pairs = call.head_dim / VALUE_GROUP;
                        v.pairs[h][set][r] = load((const u32*)(rows + begin) + (pair < pairs ? pair : 0));
                    }
                }
            }
        }
    }

    // How many channels byte `k` of word `w` lies behind the first of its lane.
    SPARK_FN static u32 offset(u32 w, u32 k) {
        return VALUE_BITS == 8 ? 4 * w + k : UNIT == 8 ? 2 * k + w : 2 * (k % 2) + k / 2;
    }

    // Codes of four keys, transposed: of each of the word's four channels as float16.
    SPARK_FN static void transpose(const u32 (&words)[4], u32 (&halves)[4][2]) {
        SPARK_UNROLL
        for (u32 pair = 0; pair < 2; ++pair) {
            const u32 w0 = words[2 * pair], w1 = words[2 * pair + 1];
            const u32 x[2] = {pick_bytes(w1, w0, 0x05010400), pick_bytes(w1, w0, 0x07030602)};
            SPARK_UNROLL
            for (u32 k = 0; k < 4; ++k) {
                // 0x6400 is 1024 and has steps of 1.
                const u32 above = pick_bytes(0x64646464, x[k / 2], k % 2 ? 0x04030402 : 0x04010400);
                halves[k][pair] = add_halves(above, 0xe400e400);
            }
        }
    }

    // Weights of four keys times their scales, the lane's part of them, as float16.
    SPARK_FN void split_weights(const float (&p)[4], const float (&scale)[4], u32 (&halves)[2]) const {
        u32 h[4];
        SPARK_UNROLL
        for (u32 r = 0; r < 4; ++r) {
            const float w = p[r] * scale[r];
            const float first = half_to_float(float_to_half(w));
            h[r] = float_to_half(part % 2 ? w - first : first);
        }
        halves[0] = h[0] | h[1] << 16;
        halves[1] = h[2] | h[3] << 16;
    }

    // Adds to the output: values of four keys, by the weights `p`. Scales and minima are in `pair`.
    SPARK_FN void add_values(const Values& v, const float (&p)[BLOCKS][4]) {
        SPARK_UNROLL
        for (u32 h = 0; h < HALVES; ++h) {
            u32 weights[BLOCKS][SETS][2];
            SPARK_UNROLL
            for (u32 set = 0; set < SETS; ++set) {
                float scale[4], least[4];
                SPARK_UNROLL
                for (u32 r = 0; r < 4; ++r) {
                    scale[r] = finite_half(v.pairs[h][set][r] & 0xffff);
                    least[r] = finite_half(v.pairs[h][set][r] >> 16);
                }
                SPARK_UNROLL
                for (u32 b = 0; b < BLOCKS; ++b) {
                    split_weights(p[b], scale, weights[b][set]);
                    SPARK_UNROLL
                    for (u32 r = 0; r < 4; ++r) minimum[b][h][set] = fused(p[b][r], least[r], minimum[b][h][set]);
                }
            }
            SPARK_UNROLL
            for (u32 w = 0; w < UNIT / 4; ++w) {
                u32 words[4], halves[4][2];
                SPARK_UNROLL
                for (u32 r = 0; r < 4; ++r) {
                    if constexpr (VALUE_BITS == 8) {
                        words[r] = v.codes[h][r][w];
                    } else {
                        const u32 x = v.codes[h][r][0];
                        words[r] = UNIT == 8 ? x >> 4 * w & 0x0f0f0f0f : (x & 0x0f0f) | (x << 12 & 0x0f0f0000);
                    }
                }
                transpose(words, halves);
                SPARK_UNROLL
                for (u32 k = 0; k < 4; ++k) {
                    SPARK_UNROLL
                    for (u32 b = 0; b < BLOCKS; ++b) {
                        SPARK_UNROLL
                        for (u32 set = 0; set < SETS; ++set) {
                            multiply_halves(halves[k], weights[b][set], weighted[b][set][h][w][k]);
                        }
                    }
                }
            }
        }
    }

    // About the logarithm to base 2 of a scale's size, less by at most 0.09; at least -24, where float16 ends.
    SPARK_FN static float log2_near(u32 half) {
        const float x = finite_half(half & 0x7fff);
        return fused((float)bits_of(greatest(x, 0x1p-24f)), 0x1p-23f, -127.0f);
    }

    // The greatest that weights may be relative to.
    SPARK_FN void refer(u32 b, float most) {
        most = greatest(most, shuffle_xor(most, 2));
        most = greatest(most, shuffle_xor(most, 16));
        most = greatest(most, shuffle_xor(most, 32));
        most -= HEADROOM;
        if (most > reference[b]) {
            const float factor = exp2_of(reference[b] > NO_SCORE ? reference[b] - most : -1000.0f);
            reference[b] = most;
            sum[b] *= factor;
            SPARK_UNROLL
            for (u32 set = 0; set < SETS; ++set) {
                SPARK_UNROLL
                for (u32 h = 0; h < HALVES; ++h) minimum[b][h][set] *= factor;
            }
            each_sum(b, [factor](float& x) { x *= factor; });
        }
    }

    // Adds the stored keys and values from `t` on, at most KEYS and below `end`.
    SPARK_FN void tile(u32 t, u32 end) {
        const u32 count = end - t < KEYS ? end - t : KEYS;
        SPARK_NOTE_ROWS(KEYS, KEY_BITS, VALUE_BITS);
        Values v;
        fetch_values(t, count, v);
        stage_keys(call, layout, s, kv_head, t, count, staged);
        share_factors();
        int f[BLOCKS][3][4];
        multiply_keys(f);
        wave_barrier();
        float score[BLOCKS][4];
        SPARK_UNROLL
        for (u32 r = 0; r < 4; ++r) {
            float x[4];
            factors.load_some(4 * (4 * group + r), x);
            SPARK_UNROLL
            for (u32 b = 0; b < BLOCKS; ++b) {
                const int f1 = f[b][0][r], f2 = f[b][1][r], f3 = f[b][2][r];
                const float dot = fused(x[0], (float)(f1 - f2),
                                        fused(x[1], (float)(f3 - f2), x[2] * (float)(f2 + f3 + digit_sum[b])));
                score[b][r] = sum_over(dot * unit[b], 4);
            }
        }
        float p[BLOCKS][4];
        SPARK_UNROLL
        for (u32 b = 0; b < BLOCKS; ++b) {
            const u32 from = t + 4 * group - seen[b].start, stop = seen[b].end < end ? seen[b].end : end;
            const u32 keys = seen[b].start < stop ? stop - seen[b].start : 0;
            SPARK_UNROLL
            for (u32 r = 0; r < 4; ++r) {
                const float x = least(greatest(score[b][r], -FLOAT_MAX), FLOAT_MAX);
                score[b][r] = from + r < keys ? x : NO_SCORE;
            }
            if (has_more(call)) {
                SPARK_NOTE("rare");
                SPARK_ROLLED
                for (u32 r = 0; r < 4; ++r) {
                    float x = NO_SCORE;
                    SPARK_UNROLL
                    for (u32 k = 0; k < 4; ++k) {
                        if (k == r) x = score[b][k];
                    }
                    if (x > NO_SCORE) {
                        x = with_more(call, s, x * LN_2, head(b), token(b), t + 4 * group + r);
                        x = least(greatest(x * LOG2_E, -FLOAT_MAX), FLOAT_MAX);
                    }
                    SPARK_UNROLL
                    for (u32 k = 0; k < 4; ++k) score[b][k] = k == r ? x : score[b][k];
                }
            }
        }
        weigh(v, score, p);
        add_values(v, p);
    }

    // Weights from scores, once the reference is such that float16 holds them times their scale.
    SPARK_FN void weigh(const Values& v, const float (&score)[BLOCKS][4], float (&p)[BLOCKS][4]) {
        float size[4];
        SPARK_UNROLL
        for (u32 r = 0; r < 4; ++r) {
            size[r] = log2_near(v.pairs[0][0][r]);
            if constexpr (VALUE_BITS == 4) {
                SPARK_UNROLL
                for (u32 n = 1; n < HALVES * SETS; ++n) {
                    size[r] = greatest(size[r], log2_near(v.pairs[n / SETS][n % SETS][r]));
                }
            }
        }
        SPARK_UNROLL
        for (u32 b = 0; b < BLOCKS; ++b) {
            float most = NO_SCORE;
            SPARK_UNROLL
            for (u32 r = 0; r < 4; ++r) most = greatest(most, score[b][r] + size[r]);
            if (vote(most > reference[b] + (HEADROOM + SLACK))) {
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

    SPARK_FN void tiles(u32 start, u32 end) {
        for (u32 t = start + wave() * KEYS; t < end; t += DECODE_WAVES * KEYS) tile(t, end);
    }

    // The wave's states to LDS: for each query D weighted sums, the greatest score, the sum of weights.
    SPARK_FN Shared<float> write_states() {
        const u32 d = call.head_dim;
        const Shared<float> states(region(call) + 4 * wave() * COLUMNS * (d + 2));
        block_barrier();
        SPARK_UNROLL
        for (u32 b = 0; b < BLOCKS; ++b) {
            sum[b] += shuffle_xor(sum[b], 16);
            sum[b] += shuffle_xor(sum[b], 32);
            SPARK_UNROLL
            for (u32 h = 0; h < HALVES; ++h) {
                SPARK_UNROLL
                for (u32 set = 0; set < SETS; ++set) {
                    minimum[b][h][set] += shuffle_xor(minimum[b][h][set], 16);
                    minimum[b][h][set] += shuffle_xor(minimum[b][h][set], 32);
                }
            }
            const bool exists = column(b) < COLUMNS;
            const u32 state = column(b) * (d + 2);
            if (exists && group == 0 && part == 0) {
                states.store(state + d, reference[b] > NO_SCORE ? reference[b] * LN_2 : NO_SCORE);
                states.store(state + d + 1, sum[b]);
            }
            // Which groups of 32 channels the lane's four channels of each tile are in: the columns that have their scale.
            const u32 own_part = GROUPED ? (OCTETS < 16 ? group / 2 : group % 2) : 0;
            const bool second = SETS == 2 && group / 2 == 1;
            SPARK_UNROLL
            for (u32 h = 0; h < HALVES; ++h) {
                // Values, not choices of where to read: registers cannot be indexed.
                const float first_least = minimum[b][h][0], second_least = minimum[b][h][SETS - 1];
                const float least = second ? second_least : first_least;
                SPARK_UNROLL
                for (u32 w = 0; w < WORDS; ++w) {
                    SPARK_UNROLL
                    for (u32 k = 0; k < 4; ++k) {
                        // Keeps the compiler from taking all sums at once, for which it has not the registers.
                        wave_barrier();
                        SPARK_UNROLL
                        for (u32 r = 0; r < 4; ++r) {
                            const float first = weighted[b][0][h][w][k][r], last = weighted[b][SETS - 1][h][w][k][r];
                            const float x = second ? last : first;
                            const float both = x + shuffle_xor(x, 1) + least;
                            const u32 channel = UNIT * (4 * group + r + 16 * h) + offset(w, k);
                            if (exists && part == 2 * own_part && channel < d) states.store(state + channel, both);
                        }
                    }
                }
            }
        }
        wave_barrier();
        return states;
    }
};

// Whether registers have room for the sums: src/hip/plan.rs chooses no others.
template <u32 OCTETS, u32 COLUMNS, u32 VALUE_BITS>
SPARK_FN constexpr bool has_room() {
    return OCTETS < 16 || COLUMNS <= 4 || VALUE_BITS == 8;
}

// The waves' states of the stored keys from `start` to below `end`, in LDS.
template <u32 OCTETS, u32 COLUMNS, u32 KEY_BITS, u32 VALUE_BITS>
SPARK_FN Shared<float> decode_stored(const SparkCall& call, const Sequence& s, const DecodeBlock& block, u32 start, u32 end) {
    if constexpr (has_room<OCTETS, COLUMNS, VALUE_BITS>()) {
        DecodeMatrix<OCTETS, COLUMNS, KEY_BITS, VALUE_BITS> stored(call, s, block.kv_head, block.first_column);
        stored.tiles(start, end);
        return stored.write_states();
    } else {
        return Shared<float>(0);
    }
}

template <u32 OCTETS, u32 COLUMNS>
SPARK_FN void decode_quantised(const SparkCall& call) {
    typedef Decode<OCTETS, COLUMNS> Dense;
    const DecodeBlock block(call, COLUMNS);
    const Sequence s(call, block_z());
    const Keys keys = block.keys(call, s);
    const u32 dense = first_dense(call, s);

    queries_to_shared<COLUMNS>(call, s, block.kv_head, block.first_column);
    const u32 end = keys.end < dense ? keys.end : dense;
    Shared<float> states(0);
    if (call.key_bits == 8) {
        states = call.value_bits == 8 ? decode_stored<OCTETS, COLUMNS, 8, 8>(call, s, block, keys.start, end)
                                      : decode_stored<OCTETS, COLUMNS, 8, 4>(call, s, block, keys.start, end);
    } else {
        states = call.value_bits == 8 ? decode_stored<OCTETS, COLUMNS, 4, 8>(call, s, block, keys.start, end)
                                      : decode_stored<OCTETS, COLUMNS, 4, 4>(call, s, block, keys.start, end);
    }
    Dense own(call, s, block.kv_head, block.first_column);
    const KeyLayout layout(call);
    const ValueLayout values(call);
    own.template tiles<DENSE, 1>(layout, values, 0, keys.start > dense ? keys.start : dense, keys.end);
    own.merge_rows();
    SPARK_UNROLL
    for (u32 c = 0; c < COLUMNS; ++c) {
        const u32 state = c * (call.head_dim + 2);
        float other[8];
        SPARK_UNROLL
        for (u32 k = 0; k < 8; ++k) other[k] = own.active ? states.load(state + 8 * own.octet + k) : 0.0f;
        own.merge(c, states.load(state + call.head_dim), states.load(state + call.head_dim + 1), other);
    }
    own.merge_waves();
    own.write(block);
}

#else

template <u32 OCTETS, u32 COLUMNS>
SPARK_FN void decode_quantised(const SparkCall& call) {
    decode<OCTETS, COLUMNS>(call);
}

#endif

#endif
