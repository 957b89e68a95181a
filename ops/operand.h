// Operands of matrix cores: a lane's eight elements, float16 or float32, in registers and in LDS.
//
// The wave's tile is C (16 by 16, float32) += A (16 by 32) * B (32 by 16). Lane l has the elements 8 * (l / 16) to 8 *
// (l / 16) + 7 of row l % 16 of A and of column l % 16 of B, and the rows 4 * (l / 16) to 4 * (l / 16) + 3 of column l
// % 16 of C. The order in which instructions take the 32 elements does not matter, as long as A and B agree.
#ifndef SPARK_OPERAND_H
#define SPARK_OPERAND_H

#include "numbers.h"

// 16-byte words of LDS.
SPARK_CONSTANT u32 QUAD_BYTES = 16;

// E: u16 (the bits of a float16) or float.
template <class E>
struct Operand {
    SPARK_CONSTANT u32 QUADS = 8 * sizeof(E) / QUAD_BYTES;
    u32 words[4 * QUADS];

    // Quad `i`.
    SPARK_FN Quad quad(u32 i) const { return Quad{words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]}; }
    SPARK_FN void set_quad(u32 i, const Quad& q) {
        SPARK_UNROLL
        for (u32 k = 0; k < 4; ++k) words[4 * i + k] = q[k];
    }
};

// From numbers within the range of float16.
SPARK_FN void to_operand(const float (&x)[8], Operand<u16>& o) {
    SPARK_UNROLL
    for (u32 k = 0; k < 4; ++k) o.words[k] = halves_of(x[2 * k], x[2 * k + 1]);
}
SPARK_FN void to_operand(const float (&x)[8], Operand<float>& o) {
    SPARK_UNROLL
    for (u32 k = 0; k < 8; ++k) o.words[k] = bits_of(x[k]);
}

SPARK_FN void multiply(const Operand<u16>& a, const Operand<u16>& b, MatrixSums& c) {
    SPARK_UNROLL
    for (u32 k = 0; k < 4; k += 2) matrix_f16({a.words[k], a.words[k + 1]}, {b.words[k], b.words[k + 1]}, c);
}
SPARK_FN void multiply(const Operand<float>& a, const Operand<float>& b, MatrixSums& c) {
    SPARK_UNROLL
    for (u32 k = 0; k < 8; ++k) matrix_f32(float_of(a.words[k]), float_of(b.words[k]), c);
}

// Writes two neighbours of an operand's eight to LDS: pair `pair`, which lies in quad `quad`.
SPARK_FN void store_pair(const Shared<u16>& to, u32 quad, u32 pair, u32 both) {
    Shared<u32>(to.at).store(4 * quad + pair, both);
}
SPARK_FN void store_pair(const Shared<float>& to, u32 quad, u32 pair, float first, float second) {
    Shared<u64>(to.at).store(2 * quad + pair % 2, bits_of(first) | (u64)bits_of(second) << 32);
}

#endif
