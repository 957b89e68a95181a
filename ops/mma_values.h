// Weighted sums of quantised values on tensor cores, 16 keys and blocks of four queries at a time: what
// matrix_values.h is for AMD's matrix cores.
//
// Channels are the rows of a product and queries its columns. Lane l has, of keys 4 * (l % 4) to 4 * (l % 4) + 3, in
// each 32 channels the four from 4 * (l / 4) on; and the weights of column l / 4, which are those of query l / 4 % 4
// that it has from the scores. Weight times scale is the sum of two float16 numbers, in columns l / 4 below 4 and
// above. Four-bit values may have a scale for each 32 channels.
#ifndef SPARK_MMA_VALUES_H
#define SPARK_MMA_VALUES_H

#include "mma_rows.h"

// GROUPED: rows may have a scale for each 32 channels.
template <u32 OCTETS, u32 BLOCKS, u32 BITS, bool GROUPED>
struct MatrixValues {
    SPARK_CONSTANT u32 UNITS = OCTETS / 4; // of 32 channels
    SPARK_CONSTANT u32 SETS = GROUPED ? UNITS : 1;

    const SparkCall& call;
    const u32 group, part;
    const u32 own;  // the lane's codes of the first unit in a row, bytes
    u32 row[4];     // of the tile: bytes of LDS
    const u32 kilo; // 1024 twice, where compilers take it for a number that is not known

    float minimum[BLOCKS][SETS]; // for the lane's query: what minima add to the output
    MatrixSums weighted[BLOCKS][UNITS][2];

    u32 pairs[SETS][4]; // of four keys: scales and minima

    SPARK_FN explicit MatrixValues(const SparkCall& call)
        : call(call), group(MatrixLanes::group()), part(MatrixLanes::part()),
          own(ValueLayout(call).codes_at + lane() / 4 * (BITS / 2)), kilo(anew(0x64006400)) {
        SPARK_UNROLL
        for (u32 b = 0; b < BLOCKS; ++b) {
            SPARK_UNROLL
            for (u32 set = 0; set < SETS; ++set) minimum[b][set] = 0.0f;
            SPARK_UNROLL
            for (u32 u = 0; u < UNITS; ++u) {
                SPARK_UNROLL
                for (u32 i = 0; i < 2; ++i) weighted[b][u][i] = MatrixSums{0.0f, 0.0f, 0.0f, 0.0f};
            }
        }
    }

    // Whether rows have several scales, one for each unit; else the first one serves for all.
    SPARK_FN bool grouped() const { return SETS > 1 && call.value_groups > 1; }

    // Calls `change(set, r)` for all scales that there are.
    template <class F>
    SPARK_FN void each_pair(F change) const {
        SPARK_UNROLL
        for (u32 r = 0; r < 4; ++r) change(0u, r);
        if (grouped()) {
            SPARK_UNROLL
            for (u32 set = 1; set < SETS; ++set) {
                SPARK_UNROLL
                for (u32 r = 0; r < 4; ++r) change(set, r);
            }
        }
    }

    // Rows come to LDS without registers.
    SPARK_FN void fetch(const MatrixRows&) {}

    // Loads scales and minima of the tile.
    SPARK_FN void arrive(const MatrixRows& rows) {
        SPARK_UNROLL
        for (u32 r = 0; r < 4; ++r) row[r] = rows.value(4 * group + r);
        // Heads may have fewer units.
        each_pair([this](u32 set, u32 r) {
            pairs[set][r] = Shared<u32>(row[r]).load(set < call.value_groups ? set : 0);
        });
        limit();
    }

    // Replaces scales and minima that are not finite, which hosts may pass, as `finite` does.
    SPARK_FN void limit() {
        u32 odd = 0;
        each_pair([this, &odd](u32 set, u32 r) { odd |= (pairs[set][r] & 0x7c007c00) + 0x04000400; });
        if (SPARK_UNLIKELY(vote(odd & 0x80008000))) {
            SPARK_NOTE("rare");
            each_pair([this](u32 set, u32 r) {
                const u32 pair = pairs[set][r], scale = to_finite_half(half_to_float((u16)pair));
                pairs[set][r] = scale | to_finite_half(half_to_float(pair >> 16)) << 16;
            });
        }
    }

    SPARK_FN float scale(u32 set, u32 r) const { return half_to_float((u16)pairs[set][r]); }

    // Approximate base-2 logarithm of the greatest scale of key `r`, too small by at most 0.09; at least -24, the
    // limit of float16.
    SPARK_FN float size(u32 r) const {
        // Magnitudes of float16 are in the order of their bits; 1 is the least.
        u32 most = pairs[0][r] & 0x7fff;
        if (grouped()) {
            SPARK_UNROLL
            for (u32 set = 1; set < SETS; ++set) {
                const u32 other = pairs[set][r] & 0x7fff;
                most = most > other ? most : other;
            }
        }
        return fused((float)bits_of(half_to_float((u16)(most > 1 ? most : 1))), 0x1p-23f, -127.0f);
    }

    // Codes of four keys and the four channels of unit `u`: of each channel as float16, two keys a word.
    SPARK_FN void transpose(u32 u, u32 (&halves)[4][2]) const {
        SPARK_UNROLL
        for (u32 pair = 0; pair < 2; ++pair) {
            // Lanes without channels read what is behind the row, and do not use it.
            const u32 first = row[2 * pair] + own, second = row[2 * pair + 1] + own, at = 8 * u;
            if constexpr (BITS == 8) {
                const u32 w0 = Shared<u32>(first).load(at), w1 = Shared<u32>(second).load(at);
                const u32 x[2] = {permute_bytes(w0, w1, 0x5140), permute_bytes(w0, w1, 0x7362)};
                SPARK_UNROLL
                for (u32 k = 0; k < 4; ++k) {
                    // 0x6400 is 1024 and has steps of 1.
                    const u32 above = permute_bytes(x[k / 2], 0x64646464, k % 2 ? 0x4342 : 0x4140);
                    halves[k][pair] = add_halves(above, 0xe400e400);
                }
            } else {
                const u32 w0 = Shared<u16>(first).load(at), w1 = Shared<u16>(second).load(at), x = w0 | w1 << 16;
                SPARK_UNROLL
                for (u32 k = 0; k < 4; k += 2) {
                    // Of the higher nibble: 1024 + 16 u, a sixteenth of which is 64 + u.
                    const u32 low = (x >> 4 * k & 0x000f000f) | kilo, high = (x >> 4 * k & 0x00f000f0) | kilo;
                    halves[k][pair] = add_halves(low, 0xe400e400);
                    halves[k + 1][pair] = fused_halves(high, 0x2c002c00, 0xd400d400);
                }
            }
        }
    }

    // Adds the values with the weights `p` of their keys.
    SPARK_FN void add(const float (&p)[BLOCKS][4]) {
        // Part 1 has the remainder that the first float16 leaves.
        const u32 head_bits = part ? 0xffffe000 : 0;
        u32 weights[BLOCKS][2] = {};
        SPARK_UNROLL
        for (u32 u = 0; u < UNITS; ++u) {
            if (u == 0 || grouped()) {
                const u32 set = u % SETS;
                SPARK_UNROLL
                for (u32 b = 0; b < BLOCKS; ++b) {
                    float mine[4];
                    SPARK_UNROLL
                    for (u32 r = 0; r < 4; ++r) {
                        const float w = p[b][r] * scale(set, r);
                        mine[r] = w - float_of(bits_of(w) & head_bits);
                        minimum[b][set] = fused(p[b][r], half_to_float((u16)(pairs[set][r] >> 16)), minimum[b][set]);
                    }
                    weights[b][0] = truncate_halves(mine[0], mine[1]);
                    weights[b][1] = truncate_halves(mine[2], mine[3]);
                }
            }
            u32 halves[4][2];
            transpose(u, halves);
            SPARK_UNROLL
            for (u32 i = 0; i < 2; ++i) {
                const u32 codes[4] = {halves[2 * i][0], halves[2 * i + 1][0], halves[2 * i][1], halves[2 * i + 1][1]};
                SPARK_UNROLL
                for (u32 b = 0; b < BLOCKS; ++b) mma_f16(codes, weights[b], weighted[b][u][i]);
            }
        }
    }

    // A lane that has the scores of the query that is in the lane's column 2 * (l % 4) + `e` of the sums.
    SPARK_FN u32 scores_of(u32 e) const { return 4 * (2 * (group % 2) + e); }

    // Multiplies the sums of block `b`. By all lanes, each with the factor of its query.
    SPARK_FN void rescale_sums(u32 b, float factor) {
        SPARK_UNROLL
        for (u32 set = 0; set < SETS; ++set) minimum[b][set] *= factor;
        const float factors[2] = {from_lane(factor, scores_of(0)), from_lane(factor, scores_of(1))};
        SPARK_UNROLL
        for (u32 u = 0; u < UNITS; ++u) {
            SPARK_UNROLL
            for (u32 i = 0; i < 2; ++i) {
                SPARK_UNROLL
                for (u32 r = 0; r < 4; ++r) weighted[b][u][i][r] *= factors[r % 2];
            }
        }
    }

    // Writes the D sums of each of the block's queries to LDS, those of query c from c * (D + 2) on, if it is below
    // `columns`.
    SPARK_FN void write(u32 b, const Shared<float>& states, u32 columns) {
        float least[SETS][2];
        SPARK_UNROLL
        for (u32 set = 0; set < SETS; ++set) {
            float sum = minimum[b][set];
            sum += shuffle_xor(sum, 1);
            sum += shuffle_xor(sum, 2);
            SPARK_UNROLL
            for (u32 e = 0; e < 2; ++e) least[set][e] = from_lane(sum, scores_of(e));
        }
        SPARK_UNROLL
        for (u32 u = 0; u < UNITS; ++u) {
            SPARK_UNROLL
            for (u32 i = 0; i < 2; ++i) {
                SPARK_UNROLL
                for (u32 r = 0; r < 4; ++r) {
                    // Selects a value, not an address: registers cannot be indexed.
                    const float least_of_unit = grouped() ? least[u % SETS][r % 2] : least[0][r % 2];
                    const float x = weighted[b][u][i][r], both = x + shuffle_xor(x, 2) + least_of_unit;
                    const u32 channel = 32 * u + 4 * (lane() / 4) + 2 * i + r / 2;
                    const u32 column = 4 * b + 2 * (group % 2) + r % 2;
                    const bool own = group < 2 && column < columns && channel < call.head_dim;
                    if (own) states.store(column * (call.head_dim + 2) + channel, both);
                }
            }
        }
    }
};

#endif
