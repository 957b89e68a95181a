// Products of keys in planes with queries on tensor cores, 16 keys and blocks of four queries at a time: what
// mma_keys.h is for keys with masks, with the same digits of queries in the same rows. One product of bytes is enough:
// a score (see plane_steps.h) is s * (sum(t b) - 128 B), with b a digit of the query and B = sum(b).
#ifndef SPARK_MMA_PLANES_H
#define SPARK_MMA_PLANES_H

#include "mma_keys.h"
#include "plane_steps.h"

template <u32 OCTETS, u32 BLOCKS>
struct MatrixKeys<OCTETS, BLOCKS, BITS_OF_PLANES> {
    SPARK_CONSTANT u32 STEPS = PlaneSteps::most(OCTETS);

    const SparkCall& call;
    const u32 group, part; // fourth of a key; which of the digits
    const PlaneSteps steps;
    const Shared<float> factors; // s of each key

    u32 digits[BLOCKS][STEPS][4];
    int digit_sum[BLOCKS]; // 128 B
    float unit[BLOCKS];    // of the lane's digits, times scale, to base 2

    SPARK_FN MatrixKeys(const SparkCall& call, const MatrixRows& rows)
        : call(call), group(MatrixLanes::group()), part(MatrixLanes::part()), steps(call, group),
          factors(rows.factors()) {}

    // Which of the eight codes of a lane is byte `k` of word `w`.
    SPARK_FN u32 place(u32 step, u32 w, u32 k) const {
        return steps.kinds.of_8(step) || steps.kinds.of_4(step) ? 4 * w + k : 2 * k + w;
    }

    // Levels of the lane's codes in a step, of the key row in LDS from byte `row` on.
    SPARK_FN void levels(const StepKinds& now, u32 step, u32 row, u32 (&t)[2]) const {
        if (now.of_8(step)) {
            SPARK_NOTE("directions of 8 bits");
            steps.eights(step, row, t[0], t[1]);
        } else if (now.of_4(step)) {
            SPARK_NOTE("directions of 4 bits");
            look_up(steps.nibbles(step, row), LevelsOf4().words, t[0], t[1]);
        } else {
            SPARK_NOTE("directions of 2 bits");
            const u32 codes = steps.pairs(step, row);
            t[0] = permute_bytes(LEVELS_OF_2, 0, codes & 0x3333);
            t[1] = permute_bytes(LEVELS_OF_2, 0, codes >> 2 & 0x3333);
        }
    }

    // Sets the query of block `b` for the lane's row: D numbers in LDS from `first` on, zeros unless it `exists`.
    SPARK_FN void set_query(u32 b, const Shared<float>& queries, u32 first, bool exists) {
        float most = greatest_direction(*this, queries, first, exists);
        most = greatest(most, shuffle_xor(most, 1));
        most = greatest(most, shuffle_xor(most, 2));
        const float factor = digit_factor(most);
        SPARK_UNROLL
        for (u32 n = 0; n < STEPS; ++n) {
            SPARK_UNROLL
            for (u32 k = 0; k < 4; ++k) digits[b][n][k] = 0;
        }
        u32 total = 0;
        each_direction(*this, queries, first, exists, [&](u32 n, u32 w, u32 k, float x) {
            const u32 all = digits_of(x * factor);
            const u32 one = part == 0 ? all >> 16 & 0xff : 0;
            const u32 other = part == 0 ? all >> 8 & 0xff : all & 0xff;
            digits[b][n][2 * w] |= one << 8 * k;
            digits[b][n][2 * w + 1] |= other << 8 * k;
            total += 256 * digit_value(one) + digit_value(other);
        });
        total += shuffle_xor(total, 1);
        total += shuffle_xor(total, 2);
        digit_sum[b] = 128 * (int)total;
        unit[b] = (part == 0 ? 256.0f : 1.0f) * (most / DIGIT_STEPS) * (call.scale * LOG2_E);
    }

    // Scores to base 2 of the tile, for the lane's query and keys 4 group to 4 group + 3.
    SPARK_FN void score(const MatrixRows& rows, float (&scores)[BLOCKS][4]) const {
        const StepKinds now = steps.kinds_anew();
        if (lane() < MATRIX_KEYS) factors.store(lane(), finite_half(Shared<u16>(rows.key(lane())).load(0)));
        SPARK_UNROLL
        for (u32 half = 0; half < 2; ++half) {
            const u32 begin = rows.key(MatrixLanes::row_of(half));
            MatrixCounts f[BLOCKS];
            sum_steps(*this, now, begin, f, [](const u32 (&own)[4], const u32 (&t)[2], MatrixCounts& sum) {
                mma_i8(own, t, sum);
            });
            if (half == 0) wave_barrier();
            SPARK_UNROLL
            for (u32 e = 0; e < 2; ++e) {
                const float s = factors.load(4 * group + 2 * half + e);
                SPARK_UNROLL
                for (u32 b = 0; b < BLOCKS; ++b) {
                    const int sum = 256 * f[b][e] + f[b][2 + e] - digit_sum[b];
                    const float dot = s * (float)sum * unit[b], both = dot + shuffle_xor(dot, 16);
                    scores[b][2 * half + e] = least(greatest(both, -FLOAT_MAX), FLOAT_MAX);
                }
            }
        }
    }
};

#endif
