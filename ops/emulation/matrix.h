// Matrix instructions: of a wave of 64 lanes with the registers of CDNA, of one of 32 lanes with those of NVIDIA's mma.
#ifndef SPARK_EMULATION_MATRIX_H
#define SPARK_EMULATION_MATRIX_H

#include "machine.h"

namespace emulation {

// V_MFMA_F32_16X16X16F16: A[i][k] and B[k][j] are in lanes i + 16 * (k / 4) and j + 16 * (k / 4), there element k % 4.
// Subnormal inputs count as zero, as on MI200 (MIOpen's documentation, "MI200 MFMA behavior specifics").
struct MatrixF16 {
    using Sum = float;
    static constexpr unsigned DEPTH = 16;
    static unsigned lane(unsigned row, unsigned k) { return row + 16 * (k / 4); }
    static float element(const uint32_t* words, unsigned k) {
        const uint16_t h = static_cast<uint16_t>(words[k % 4 / 2] >> 16 * (k % 2));
        return (h & 0x7c00) == 0 ? 0.0f : half_to_float(h);
    }
};

// V_MFMA_F32_16X16X4F32: A[i][k] and B[k][j] are in lanes i + 16 * k and j + 16 * k.
struct MatrixF32 {
    using Sum = float;
    static constexpr unsigned DEPTH = 4;
    static unsigned lane(unsigned row, unsigned k) { return row + 16 * k; }
    static float element(const uint32_t* words, unsigned) {
        float x;
        std::memcpy(&x, words, sizeof x);
        return x;
    }
};

// V_MFMA_I32_16X16X32_I8: A[i][k] and B[k][j] are in lanes i + 16 * (k / 8) and j + 16 * (k / 8), there byte k % 8.
// MI100 and MI200 multiply first and second words separately, with the same sums.
struct MatrixI8 {
    using Sum = int;
    static constexpr unsigned DEPTH = 32;
    static unsigned lane(unsigned row, unsigned k) { return row + 16 * (k / 8); }
    static int element(const uint32_t* words, unsigned k) {
        return static_cast<int8_t>(words[k % 8 / 4] >> 8 * (k % 4) & 0xff);
    }
};

// C += A * B. C[i][j] is in lane j + 16 * (i / 4), there element i % 4.
template <class Registers>
void multiply(const MatrixLane* const (&lanes)[64]) {
    using Sum = typename Registers::Sum;
    Sum a[16][Registers::DEPTH], b[Registers::DEPTH][16];
    for (unsigned i = 0; i < 16; ++i) {
        for (unsigned k = 0; k < Registers::DEPTH; ++k) {
            const MatrixLane& lane = *lanes[Registers::lane(i, k)];
            a[i][k] = Registers::element(lane.a, k);
            b[k][i] = Registers::element(lane.b, k);
        }
    }
    for (unsigned i = 0; i < 16; ++i) {
        for (unsigned j = 0; j < 16; ++j) {
            Sum& c = static_cast<Sum*>(lanes[j + 16 * (i / 4)]->c)[i % 4];
            for (unsigned k = 0; k < Registers::DEPTH; ++k) c += a[i][k] * b[k][j];
        }
    }
}

// mma.m16n8k16 of float16: word 2 * (k / 8) + row / 8 of A and word k / 8 of B, there element k % 2.
struct MmaF16 {
    using Sum = float;
    static constexpr unsigned DEPTH = 16, ELEMENTS = 2;
    static float of_a(uint32_t word, unsigned n) { return half_to_float(static_cast<uint16_t>(word >> 16 * n)); }
    static float of_b(uint32_t word, unsigned n) { return of_a(word, n); }
};

// mma.m16n8k32 of signed by unsigned bytes: word 2 * (k / 16) + row / 8 of A and word k / 16 of B, there byte k % 4.
struct MmaI8 {
    using Sum = int;
    static constexpr unsigned DEPTH = 32, ELEMENTS = 4;
    static int of_a(uint32_t word, unsigned n) { return static_cast<int8_t>(word >> 8 * n & 0xff); }
    static int of_b(uint32_t word, unsigned n) { return static_cast<uint8_t>(word >> 8 * n & 0xff); }
};

// C += A * B, 16 by 8. Row i of A and column j of B are in lanes 4 * (i % 8) + n and 4 * j + n, n the element within
// half a depth, by words. C[i][j] is in lane 4 * (i % 8) + j / 2, there element 2 * (i / 8) + j % 2.
template <class Registers>
void multiply_rows(const MatrixLane* const (&lanes)[32]) {
    constexpr unsigned HALF = Registers::DEPTH / 2, ELEMENTS = Registers::ELEMENTS;
    for (unsigned i = 0; i < 16; ++i) {
        for (unsigned j = 0; j < 8; ++j) {
            auto& c = static_cast<typename Registers::Sum*>(lanes[4 * (i % 8) + j / 2]->c)[2 * (i / 8) + j % 2];
            for (unsigned k = 0; k < Registers::DEPTH; ++k) {
                const unsigned lane = k % HALF / ELEMENTS, element = k % ELEMENTS;
                const uint32_t a = lanes[4 * (i % 8) + lane]->a[2 * (k / HALF) + i / 8];
                const uint32_t b = lanes[4 * j + lane]->b[k / HALF];
                c += Registers::of_a(a, element) * Registers::of_b(b, element);
            }
        }
    }
}

} // namespace emulation

#endif
