// A query as digits of signed bytes, for products of bytes: three a channel, nearly as exact as a float32 of the size
// of the query's greatest.
#ifndef SPARK_DIGITS_H
#define SPARK_DIGITS_H

#include "numbers.h"

// About the range of three signed bytes.
SPARK_CONSTANT float DIGIT_STEPS = 8355000.0f;

// The greatest magnitude of channels `from` to below `to` of a query of `d` channels, in LDS from `first` on; zero
// unless it `exists`.
SPARK_FN float greatest_channel(const Shared<float>& queries, u32 first, u32 from, u32 to, u32 d, bool exists) {
    float most = 0.0f;
    SPARK_ROLLED
    for (u32 j = from; j < to; ++j) {
        const float q = exists && j < d ? queries.load(first + j) : 0.0f;
        most = greatest(most, q < 0.0f ? -q : q);
    }
    return most;
}

// What the channels of a query are multiplied by, whose greatest magnitude is `most`. Queries smaller than any that
// occur count as zero.
SPARK_FN float digit_factor(float most) { return most > 1e-30f ? DIGIT_STEPS / most : 0.0f; }

// The digits of a channel times that factor, a byte each, the lowest one first.
SPARK_FN u32 digits_of(float x) {
    // With 0x80 added, all digits are non-negative, and there are no carries between them.
    return (u32)((int)round_even(x) + 0x808080) ^ 0x808080;
}

// A digit as a number, modulo 2^32.
SPARK_FN u32 digit_value(u32 digit) { return digit - (digit << 1 & 0x100); }

#endif
