// The few primitives that differ between devices. Kernels use nothing else that depends on a device:
//
//   WAVE                         lanes of a wave, 64 or 32
//   SPARK_TABLE(type, name, size) = {...}   numbers that kernels may index
//   thread(), block_x(), block_z(), lane(), wave()
//   load<V>(p), store(p, v)      one element of global memory
//   load_words(p, w), store_words(p, w)   several 32-bit words of global memory, p aligned to 4 bytes
//   Shared<V>                    elements in the block's LDS, asked for at launch
//   same(x)                      x, which is the same in all lanes of the wave, to be computed with once for the wave
//   vote(b), shuffle_xor(v, mask)       all lanes of a wave take part
//   rank_in(mask)                set bits of a vote below the own lane
//   wave_barrier()               what lanes of the wave wrote to LDS is seen by its other lanes
//   block_barrier()              the same for the block
//   anew(x)                      x, of which nothing is computed ahead of a loop, where it would hold registers
//   in_order()                   what comes after begins after what comes before, and no register holds it earlier
//   look_up(nibbles, table, low, high)   eight entries of a table of sixteen bytes: four each in `low` and `high`
//   half_to_float, float_to_half, exp2_of, sqrt_of, round_even, least, greatest, fused, product
//
// SPARK_MATRIX and SPARK_NO_MATRIX are defined where kernels for GPUs with and without matrix cores are wanted. With
// them, waves have 64 lanes, and all take part in
//   matrix_f16(a, b, c), matrix_f32(a, b, c), matrix_i8(a, b, c)   C (16 by 16) += A * B
//   MatrixSums, MatrixCounts     four float32 or int, the lane's part of C
// and each for itself in
//   Quad                         four words, aligned to 16 bytes, for Shared
//   pick_bytes(high, low, s)     byte n is the byte s_n of (high:low), 0 to 7, or zero where s_n is PICK_ZERO
//   look_up_bytes(bytes, table)  four entries of a table of sixteen bytes, those of the low halves of four bytes
//   add_halves(a, b)             of two float16
//   truncate_halves(a, b)        a and b as float16, towards zero
//   halves_of(a, b)              a and b as float16, to nearest even
//   low_halves(a, b), high_halves(a, b)   the lower, or the upper, halves of a and b
//
// Of C, lane l has column l % 16, rows 4 * (l / 16) to 4 * (l / 16) + 3. matrix_f16: A is 16 by 16 and B 16 by 16 of
// float16; lane l has of row l % 16 of A, and of column l % 16 of B, the elements 4 * (l / 16) to 4 * (l / 16) + 3, low
// half of the first word first; numbers below the normal ones count as zero or as they are. matrix_f32: A is 16 by 4
// and B 4 by 16 of float32; lane l has element l / 16 of the same row and column. matrix_i8: A is 16 by 32 and B 32 by
// 16 of signed bytes, sums are int; lane l has eight elements of the same row and column, the same eight of both.
// These are the registers of V_MFMA_F32_16X16X16F16, V_MFMA_F32_16X16X4F32 and V_MFMA_I32_16X16X32_I8, or two of
// V_MFMA_I32_16X16X16I8 (AMD's "Instinct MI200" and "MI300" ISA guides; the formulas are those of its matrix
// instruction calculator, github.com/ROCm/amd_matrix_instruction_calculator).
//
// SPARK_MMA is defined where kernels for NVIDIA's tensor cores are wanted. With them, waves have 32 lanes, and all take
// part in
//   mma_i8(a, b, c), mma_f16(a, b, c)   C (16 by 8) += A * B, as mma.m16n8k32 of signed by unsigned bytes and
//                                mma.m16n8k16 of float16
//   from_lane(v, lane)           v of that lane
// and each for itself in Quad, add_halves, truncate_halves, halves_of, low_halves, high_halves as above and
//   fused_halves(a, b, c)        a * b + c of two float16
//   permute_bytes(low, high, s)  byte n is the byte of (high:low) that nibble n of s says: 0 to 7; 8 more: its sign
//                                bit, eight times. Upper nibbles of s are ignored.
//   copies_to(byte)              what copies call that byte of LDS; a multiple of 16 where the byte is
//   copy_async<BYTES, FURTHER>(at, from)   4 or 16 bytes of global memory to LDS, both aligned to as many, later; both
//                                begin FURTHER bytes further on
//   end_copies()                 ends a group of such copies
//   await_copies<LEFT>()         waits for the lane's own groups but the last LEFT
//
// Of C, lane l has columns 2 * (l % 4) and the next of row l / 4, and then of row l / 4 + 8. mma_i8: A is 16 by 32 and
// B 32 by 8; lane l has of A, in this order, elements 4 * (l % 4) to 4 * (l % 4) + 3 of row l / 4 and of row l / 4 + 8,
// and the same 16 elements further on of both; of B the same elements of column l / 4. mma_f16 likewise, with A 16 by
// 16, B 16 by 8, two elements a word from 2 * (l % 4) on, and then 8 elements further on. (NVIDIA's "PTX ISA", "Matrix
// multiply-accumulate operation using mma instruction".)
//
// The control flow around a primitive in which all lanes take part is uniform in the wave (in the block for
// block_barrier).
#ifndef SPARK_PORTABLE_H
#define SPARK_PORTABLE_H

#include "call.h"

// A condition that is seldom true, whose code is to lie apart.
#define SPARK_UNLIKELY(condition) __builtin_expect((condition) != 0, 0)

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

// Names a part of a loop in the assembly, for counting its instructions (tests/gpu/device_code/loops.py).
#ifdef SPARK_COUNTED
#define SPARK_NOTE(text) asm volatile("; spark " text)
#define SPARK_NOTE_ROWS(n, key_bits, value_bits)                                                                       \
    asm volatile("; spark rows %0 key%1 value%2" : : "n"(n), "n"(key_bits), "n"(value_bits))
#else
#define SPARK_NOTE(text)
#define SPARK_NOTE_ROWS(n, key_bits, value_bits)
#endif

#if defined(SPARK_EMULATION)
#include "device/emulated.h"
#elif defined(__CUDACC__)
#include "device/cuda.h"
#else
#include "device/hip.h"
#endif

// Masks must come out as on the CPU, so a product and a sum round separately unless `fused` says otherwise. (nvcc
// needs --fmad=false, compilers other than clang -ffp-contract=off.)
#ifdef __clang__
#pragma clang fp contract(off)
#endif

#endif
