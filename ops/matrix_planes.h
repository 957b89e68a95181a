// Products of keys in planes with queries on matrix cores, 16 keys and blocks of four queries at a time: what
// matrix_keys.h is for keys with masks, with the same digits of queries in the same columns. One product of bytes is
// enough: t - 128 (see plane_steps.h) is a signed byte.
#ifndef SPARK_MATRIX_PLANES_H
#define SPARK_MATRIX_PLANES_H

#include "matrix_keys.h"
#include "plane_steps.h"

template <u32 OCTETS, u32 BLOCKS>
struct MatrixKeys<OCTETS, BLOCKS, BITS_OF_PLANES> {
    SPARK_CONSTANT u32 STEPS = PlaneSteps::most(OCTETS);
    SPARK_CONSTANT u32 SIGNED = 0x80808080;

    const SparkCall& call;
    const KeyLayout layout;
    const u32 row, group, part; // key and fourth of it; digit of the lane's column
    const PlaneSteps steps;
    const u32 staged, factors; // LDS, see MatrixRows

    u32 digits[BLOCKS][STEPS][2];
    float unit[BLOCKS]; // of a digit, times scale, to base 2

    SPARK_FN MatrixKeys(const SparkCall& call, const MatrixRows& rows)
        : call(call), layout(call), row(lane() % 16), group(lane() / 16), part(lane() % 4), steps(call, group),
          staged(rows.staged), factors(rows.factors) {
        clear_row(staged, MatrixRows::key_words(call, layout));
    }

    // Which of the eight codes of a lane is byte `k` of word `w`: of 4 and 2 bits the first word has the even ones, of
    // 2 bits with the middle two exchanged.
    SPARK_FN u32 place(u32 step, u32 w, u32 k) const {
        if (steps.kinds.of_8(step)) return 4 * w + k;
        return 2 * (steps.kinds.of_4(step) || k % 3 == 0 ? k : 3 - k) + w;
    }

    // Levels less 128 of the lane's codes in a step, of the key row in LDS from byte `row` on.
    SPARK_FN void levels(const StepKinds& now, u32 step, u32 row, u32 (&t)[2]) const {
        if (now.of_8(step)) {
            SPARK_NOTE("directions of 8 bits");
            steps.eights(step, row, t[0], t[1]);
            t[0] ^= SIGNED;
            t[1] ^= SIGNED;
        } else if (now.of_4(step)) {
            SPARK_NOTE("directions of 4 bits");
            const u32 codes = steps.nibbles(step, row);
            const LevelsOf4 table(SIGNED);
            t[0] = look_up_bytes(codes, table.words);
            t[1] = look_up_bytes(codes >> 4, table.words);
        } else {
            SPARK_NOTE("directions of 2 bits");
            const u32 codes = steps.pairs(step, row), spread = (codes & 0xffff) | codes << 12;
            t[0] = pick_bytes(0, LEVELS_OF_2 ^ SIGNED, spread & 0x03030303);
            t[1] = pick_bytes(0, LEVELS_OF_2 ^ SIGNED, spread >> 2 & 0x03030303);
        }
    }

    // Sets the query of block `b` for the lane's column: D numbers in LDS from `first` on, zeros unless it `exists`.
    SPARK_FN void set_query(u32 b, const Shared<float>& queries, u32 first, bool exists) {
        float most = greatest_direction(*this, queries, first, exists);
        most = greatest(most, shuffle_xor(most, 16));
        most = greatest(most, shuffle_xor(most, 32));
        const float factor = digit_factor(most);
        SPARK_UNROLL
        for (u32 n = 0; n < STEPS; ++n) digits[b][n][0] = digits[b][n][1] = 0;
        each_direction(*this, queries, first, exists, [&](u32 n, u32 w, u32 k, float x) {
            const u32 digit = part < 3 ? digits_of(x * factor) >> 8 * (2 - part) & 0xff : 0;
            digits[b][n][w] |= digit << 8 * k;
        });
        const float step = part == 0 ? 65536.0f : part == 1 ? 256.0f : part == 2 ? 1.0f : 0.0f;
        unit[b] = step * (most / DIGIT_STEPS) * (call.scale * LOG2_E);
    }

    // Scores to base 2 of the staged keys, for the lane's column and keys 4 group to 4 group + 3.
    SPARK_FN void score(const MatrixRows&, float (&scores)[BLOCKS][4]) const {
        const StepKinds now = steps.kinds_anew();
        const u32 begin = staged + 4 * layout.words * row;
        if (group == 0) Shared<float>(factors).store(row, finite_half(Shared<u16>(begin).load(0)));
        MatrixCounts f[BLOCKS];
        sum_steps(*this, now, begin, f, [](const u32 (&own)[2], const u32 (&t)[2], MatrixCounts& sum) {
            matrix_i8(t, own, sum);
        });
        wave_barrier();
        const Quad s = Shared<Quad>(factors).load(group);
        SPARK_UNROLL
        for (u32 r = 0; r < 4; ++r) {
            SPARK_UNROLL
            for (u32 b = 0; b < BLOCKS; ++b) {
                const float dot = float_of(s[r]) * (float)f[b][r] * unit[b];
                scores[b][r] = least(greatest(sum_over(dot, 4), -FLOAT_MAX), FLOAT_MAX);
            }
        }
    }
};

#endif
