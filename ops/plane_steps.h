// How products of bytes take keys in planes: in steps of 32 directions of one plane, eight for each of four lanes that
// share a key. A step is of the same plane for all lanes, so that they do not diverge.
//
// A score is s * sum((t - 128) x), with t the level of a direction's code and x the query's direction times a 127th of
// the range of its plane. The last step of a plane may reach beyond it: what is read there is multiplied by zeros.
#ifndef SPARK_PLANE_STEPS_H
#define SPARK_PLANE_STEPS_H

#include "rows.h"

// Bits of keys in planes, where a template takes those of codes.
SPARK_CONSTANT u32 BITS_OF_PLANES = 0;

// The first step of planes of 4 and of 2 bits, and how many steps there are.
struct StepKinds {
    u32 fours, twos, end;

    SPARK_FN bool of_8(u32 step) const { return step < fours; }
    SPARK_FN bool of_4(u32 step) const { return step >= fours && step < twos; }
};

struct PlaneSteps {
    SPARK_CONSTANT u32 NO_DIRECTION = 0xffffffff;

    const Planes planes;
    const StepKinds kinds;
    u32 eight_at, four_at, two_at; // where the codes of the lane begin in a row
    u32 four_shift, two_shift;

    // Most steps: each of three planes may end with a step that is not full.
    SPARK_FN static constexpr u32 most(u32 octets) { return octets / 4 + 2; }

    SPARK_FN static StepKinds kinds_of(const Planes& planes) {
        const u32 fours = (planes.eight + 31) / 32, twos = fours + (planes.coded - planes.eight + 31) / 32;
        return {fours, twos, twos + (planes.kept - planes.coded + 31) / 32};
    }

    // `group`: which of the four lanes of a key.
    SPARK_FN PlaneSteps(const SparkCall& call, u32 group)
        : planes(planes_of(call)), kinds(kinds_of(planes)), eight_at(8 * group),
          four_at(planes.fours_at / 4 * 4 + 4 * group - 16 * kinds.fours),
          two_at((planes.twos_at + 2 * group) / 4 * 4 - 8 * kinds.twos), four_shift(8 * (planes.fours_at % 4)),
          two_shift(8 * ((planes.twos_at + 2 * group) % 4)) {}

    // The same, of which nothing is computed ahead of a loop: what follows from them for every step takes more
    // registers than there are.
    SPARK_FN StepKinds kinds_anew() const {
        const u32 all = same(anew(kinds.fours | kinds.twos << 8 | kinds.end << 16));
        return {all & 0xff, all >> 8 & 0xff, all >> 16};
    }

    // Code `at` of the eight that lane `group` has in a step: its direction, or NO_DIRECTION.
    SPARK_FN u32 direction(u32 step, u32 group, u32 at) const {
        const bool eight = kinds.of_8(step), four = kinds.of_4(step);
        const u32 first = eight ? 0 : four ? planes.eight : planes.coded;
        const u32 before = eight ? 0 : four ? kinds.fours : kinds.twos;
        const u32 limit = eight ? planes.eight : four ? planes.coded : planes.kept;
        const u32 j = first + 32 * (step - before) + 8 * group + at;
        return step < kinds.end && j < limit ? j : NO_DIRECTION;
    }

    // What the lane has in a step of the row in LDS from byte `row` on: eight codes of 8 bits, four of them in `high`.
    SPARK_FN void eights(u32 step, u32 row, u32& low, u32& high) const {
        const Shared<u32> words(row + eight_at + 32 * step);
        low = funnel_right(words.load(1), words.load(0), 8 * PLANE_CODES_AT);
        high = funnel_right(words.load(2), words.load(1), 8 * PLANE_CODES_AT);
    }
    // Eight codes of 4 bits.
    SPARK_FN u32 nibbles(u32 step, u32 row) const {
        const Shared<u32> words(row + four_at + 16 * step);
        return funnel_right(words.load(1), words.load(0), four_shift);
    }
    // Eight codes of 2 bits, in the low half.
    SPARK_FN u32 pairs(u32 step, u32 row) const {
        const Shared<u32> words(row + two_at + 8 * step);
        return funnel_right(words.load(1), words.load(0), two_shift);
    }
};

// Calls `use` with the step, word, byte and number of each direction that the lane has of a query, as products take it:
// D numbers in LDS from `first` on, zeros unless it `exists`.
template <class Keys, class F>
SPARK_FN void each_direction(const Keys& keys, const Shared<float>& queries, u32 first, bool exists, F use) {
    SPARK_UNROLL
    for (u32 n = 0; n < Keys::STEPS; ++n) {
        SPARK_UNROLL
        for (u32 w = 0; w < 2; ++w) {
            SPARK_ROLLED
            for (u32 k = 0; k < 4; ++k) {
                const u32 j = keys.steps.direction(n, keys.group, keys.place(n, w, k));
                const bool own = exists && j != PlaneSteps::NO_DIRECTION;
                use(n, w, k, own ? queries.load(first + j) * plane_unit(keys.steps.planes, j, 1.0f) : 0.0f);
            }
        }
    }
}

// The greatest magnitude of these.
template <class Keys>
SPARK_FN float greatest_direction(const Keys& keys, const Shared<float>& queries, u32 first, bool exists) {
    float most = 0.0f;
    const auto compare = [&](u32, u32, u32, float x) { most = greatest(most, x < 0.0f ? -x : x); };
    each_direction(keys, queries, first, exists, compare);
    return most;
}

// Products of the key row in LDS from byte `row` on with every block of queries, into `sums`: `multiply(digits, levels,
// sum)` adds those of a block and a step.
template <class Keys, u32 BLOCKS, class Multiply>
SPARK_FN void sum_steps(const Keys& keys, const StepKinds& now, u32 row, MatrixCounts (&sums)[BLOCKS],
                        Multiply multiply) {
    SPARK_UNROLL
    for (u32 b = 0; b < BLOCKS; ++b) sums[b] = MatrixCounts{0, 0, 0, 0};
    SPARK_UNROLL
    for (u32 n = 0; n < Keys::STEPS; ++n) {
        if (n < now.end) {
            u32 t[2];
            keys.levels(now, n, row, t);
            SPARK_UNROLL
            for (u32 b = 0; b < BLOCKS; ++b) multiply(keys.digits[b][n], t, sums[b]);
        }
    }
}

#endif
