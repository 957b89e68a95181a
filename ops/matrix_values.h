// Weighted sums of quantised values on matrix cores, 16 keys and blocks of four queries at a time.
//
// A lane of the scores has a column and four keys, which matches the layout of weights in a product. Weight times
// scale is represented by the sum of two float16 numbers in columns 4 c + p, p even and odd. Codes are exact in
// float16. Four-bit values may have a scale for each 32 channels, so p / 2 selects one of two groups; four groups take
// two products.
#ifndef SPARK_MATRIX_VALUES_H
#define SPARK_MATRIX_VALUES_H

#include "matrix_rows.h"

// GROUPED: rows may have a scale for each 32 channels.
template <u32 OCTETS, u32 BLOCKS, u32 BITS, bool GROUPED>
struct MatrixValues {
    SPARK_CONSTANT u32 UNIT = OCTETS < 16 ? 4 : 8; // channels of a lane, side by side
    SPARK_CONSTANT u32 WORDS = UNIT / 4;           // of 8-bit codes
    SPARK_CONSTANT u32 SETS = GROUPED && OCTETS >= 16 ? 2 : 1; // of two groups each

    const SparkCall& call;
    const u32 group, part; // channels and keys 4 group to 4 group + 3; of the lane's column
    u32 begin[4];          // of the keys' rows, bytes
    u32 own, own_pair;     // the lane's codes in a row, and its first scale

    // For the lane's column: what minima and codes add to the output.
    float minimum[BLOCKS][SETS];
    MatrixSums weighted[BLOCKS][SETS][WORDS][4];

    // For four keys: codes of the lane's channels, scales and minima for its column.
    u32 codes[4][BITS == 8 ? WORDS : 1], pairs[SETS][4];

    SPARK_FN explicit MatrixValues(const SparkCall& call) : call(call), group(lane() / 16), part(lane() % 4) {
        const u32 unit = lane() % 16;
        // Lanes without channels, and groups after the last, read values that are not used.
        own = ValueLayout(call).codes_at + (UNIT * unit < call.head_dim ? unit : 0) * (UNIT * BITS / 8);
        own_pair = GROUPED && part / 2 < call.value_groups ? 4 * (part / 2) : 0;
        SPARK_UNROLL
        for (u32 r = 0; r < 4; ++r) begin[r] = (4 * group + r) * call.value_row_bytes;
        SPARK_UNROLL
        for (u32 b = 0; b < BLOCKS; ++b) {
            SPARK_UNROLL
            for (u32 set = 0; set < SETS; ++set) minimum[b][set] = 0.0f;
            each_sums(b, [](MatrixSums& x) { x = MatrixSums{0.0f, 0.0f, 0.0f, 0.0f}; });
        }
    }

    template <class F>
    SPARK_FN void each_sums(u32 b, F change) {
        SPARK_UNROLL
        for (u32 set = 0; set < SETS; ++set) {
            SPARK_UNROLL
            for (u32 w = 0; w < WORDS; ++w) {
                SPARK_UNROLL
                for (u32 k = 0; k < 4; ++k) change(weighted[b][set][w][k]);
            }
        }
    }

    // Loads the rows of the tile; those beyond repeat the last one.
    SPARK_FN void fetch(const MatrixRows& tile) {
        const u8* rows = tile.values();
        const u32 last = (tile.count - 1) * call.value_row_bytes;
        SPARK_UNROLL
        for (u32 r = 0; r < 4; ++r) {
            const u32 at = begin[r] < last ? begin[r] : last;
            if constexpr (UNIT * BITS == 16) {
                codes[r][0] = load((const u16*)(rows + (at + own)));
            } else {
                load_words(rows + (at + own), codes[r]);
            }
            SPARK_UNROLL
            for (u32 set = 0; set < SETS; ++set) {
                // Head sizes with half a set do not occur: 4-bit values have whole groups, and one set has room for
                // two. Where all channels are one group, its scale serves for every one.
                const u32 second = 2 * set + part / 2 < call.value_groups ? 8 * set : 0;
                pairs[set][r] = load((const u32*)(rows + (at + own_pair + second)));
            }
        }
    }

    // After the rows have arrived: replaces scales and minima that are not finite, which hosts may pass, as `finite`
    // does.
    SPARK_FN void arrive(const MatrixRows&) {
        u32 odd = 0;
        SPARK_UNROLL
        for (u32 set = 0; set < SETS; ++set) {
            SPARK_UNROLL
            for (u32 r = 0; r < 4; ++r) odd |= (pairs[set][r] & 0x7c007c00) + 0x04000400;
        }
        if (vote(odd & 0x80008000)) {
            SPARK_NOTE("rare");
            SPARK_UNROLL
            for (u32 set = 0; set < SETS; ++set) {
                SPARK_UNROLL
                for (u32 r = 0; r < 4; ++r) {
                    const u32 pair = pairs[set][r];
                    const u32 scale = to_finite_half(half_to_float((u16)pair));
                    pairs[set][r] = scale | to_finite_half(half_to_float(pair >> 16)) << 16;
                }
            }
        }
    }

    SPARK_FN float scale(u32 set, u32 r) const { return half_to_float((u16)pairs[set][r]); }

    // Approximate base-2 logarithm of the greatest scale of key `r`, too small by at most 0.09; at least -24, the
    // limit of float16.
    SPARK_FN float size(u32 r) const {
        float most = 0x1p-24f;
        SPARK_UNROLL
        for (u32 set = 0; set < SETS; ++set) most = greatest(most, magnitude(scale(set, r)));
        return fused((float)bits_of(most), 0x1p-23f, -127.0f);
    }

    // Distance of byte `k` of word `w` from the lane's first channel.
    SPARK_FN static u32 offset(u32 w, u32 k) {
        return BITS == 8 ? 4 * w + k : UNIT == 8 ? 2 * k + w : 2 * (k % 2) + k / 2;
    }

    // Codes of four keys, transposed: each of the word's four channels as float16.
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

    // Adds the values with the weights `p` of their keys.
    SPARK_FN void add(const float (&p)[BLOCKS][4]) {
        // Odd parts hold the remainder that the first float16 leaves.
        const u32 head_bits = part % 2 ? 0xffffe000 : 0;
        u32 weights[BLOCKS][SETS][2];
        SPARK_UNROLL
        for (u32 b = 0; b < BLOCKS; ++b) {
            SPARK_UNROLL
            for (u32 set = 0; set < SETS; ++set) {
                float own[4];
                SPARK_UNROLL
                for (u32 r = 0; r < 4; ++r) {
                    const float w = p[b][r] * scale(set, r);
                    own[r] = w - float_of(bits_of(w) & head_bits);
                    minimum[b][set] = fused(p[b][r], half_to_float((u16)(pairs[set][r] >> 16)), minimum[b][set]);
                }
                weights[b][set][0] = truncate_halves(own[0], own[1]);
                weights[b][set][1] = truncate_halves(own[2], own[3]);
            }
        }
        SPARK_UNROLL
        for (u32 w = 0; w < WORDS; ++w) {
            u32 words[4], halves[4][2];
            SPARK_UNROLL
            for (u32 r = 0; r < 4; ++r) {
                if constexpr (BITS == 8) {
                    words[r] = codes[r][w];
                } else {
                    const u32 x = codes[r][0];
                    words[r] = UNIT == 8 ? x >> 4 * w & 0x0f0f0f0f : (x & 0x0f0f) | (x << 12 & 0x0f0f0000);
                }
            }
            transpose(words, halves);
            SPARK_UNROLL
            for (u32 k = 0; k < 4; ++k) {
                SPARK_UNROLL
                for (u32 b = 0; b < BLOCKS; ++b) {
                    SPARK_UNROLL
                    for (u32 set = 0; set < SETS; ++set) matrix_f16(halves[k], weights[b][set], weighted[b][set][w][k]);
                }
            }
        }
    }

    // Multiplies the sums of block `b`.
    SPARK_FN void rescale_sums(u32 b, float factor) {
        SPARK_UNROLL
        for (u32 set = 0; set < SETS; ++set) minimum[b][set] *= factor;
        each_sums(b, [factor](MatrixSums& x) {
            SPARK_UNROLL
            for (u32 r = 0; r < 4; ++r) x[r] *= factor;
        });
    }

    // Writes the D sums of each of the block's queries to LDS, those of query c from c * (D + 2) on, if it is below
    // `columns`.
    SPARK_FN void write(u32 b, const Shared<float>& states, u32 columns) {
        const u32 column = 4 * b + MatrixLanes::query(), first = column * (call.head_dim + 2);
        SPARK_UNROLL
        for (u32 set = 0; set < SETS; ++set) {
            minimum[b][set] += shuffle_xor(minimum[b][set], 16);
            minimum[b][set] += shuffle_xor(minimum[b][set], 32);
        }
        // The groups of 32 channels that the lane's channels belong to: the columns that have their scale.
        const u32 own_part = GROUPED ? 2 * (OCTETS < 16 ? group / 2 : group % 2) : 0;
        const bool second = SETS == 2 && group / 2 == 1;
        // Selects values, not addresses: registers cannot be indexed.
        const float first_least = minimum[b][0], second_least = minimum[b][SETS - 1];
        const float least = second ? second_least : first_least;
        SPARK_UNROLL
        for (u32 w = 0; w < WORDS; ++w) {
            SPARK_UNROLL
            for (u32 k = 0; k < 4; ++k) {
                // Prevents the compiler from processing all sums at once, for which it lacks registers.
                wave_barrier();
                SPARK_UNROLL
                for (u32 r = 0; r < 4; ++r) {
                    const float low = weighted[b][0][w][k][r], high = weighted[b][SETS - 1][w][k][r];
                    const float x = second ? high : low;
                    const float both = x + shuffle_xor(x, 1) + least;
                    const u32 channel = UNIT * (4 * group + r) + offset(w, k);
                    const bool own = column < columns && part == own_part && channel < call.head_dim;
                    if (own) states.store(first + channel, both);
                }
            }
        }
    }
};

#endif
