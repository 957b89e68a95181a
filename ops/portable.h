// The few primitives that differ between devices. Kernels use these and nothing else of any device:
//
//   WAVE                         lanes of a wave, 64 or 32
//   thread(), block_x(), block_z(), lane(), wave()
//   load<V>(p), store(p, v)      one element of global memory
//   load_words(p, w), store_words(p, w)   several 32-bit words of global memory, p aligned to 4 bytes
//   Shared<V>                    elements in the block's LDS, asked for at launch
//   same(x)                      x, which is the same in all lanes of the wave, where it is computed with once for the wave
//   vote(b), shuffle_xor(v, mask)       all lanes of a wave take part
//   rank_in(mask)                set bits of a vote below the own lane
//   wave_barrier()               what lanes of the wave wrote to LDS is seen by its other lanes
//   block_barrier()              the same for the block
//   Shared<V>::load_some(i, v)   several elements at once, aligned to the size of all of them
//   half_to_float, float_to_half, exp2_of, sqrt_of, round_even, least, greatest, fused, product
//
// Where SPARK_HAS_MATRIX is 1, waves have 64 lanes, of which 16 g + i are the fourth g of row or column i, and all take part in
//   multiply_bytes(a, b, sum)    sum[r] of lane 16 g + j += products of eight signed bytes each of a of lanes 16 h + 4 g + r
//                                and b of lanes 16 h + j, over h
//   multiply_halves(a, b, sum)   the same with four float16 each, those below the normal numbers as zero or as they are
//   pick_bytes(high, low, s)     byte n is the byte s_n of (high:low), 0 to 7, or zero where s_n is PICK_ZERO
//   add_halves(a, b)             of two float16
//   truncate_halves(a, b)        a and b as float16, towards zero
//
// Every control decision around a primitive that all lanes take part in is the same in all lanes of the wave (of the
// block for block_barrier).
#ifndef SPARK_PORTABLE_H
#define SPARK_PORTABLE_H

#include "call.h"

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

// Names a part of a loop in the assembly, for counting its instructions (tests/device_code/loops.py).
#ifdef SPARK_COUNTED
#define SPARK_NOTE(text) asm volatile("; spark " text)
#define SPARK_NOTE_ROWS(n, key_bits, value_bits)                                                                       \
    asm volatile("; spark rows %0 key%1 value%2" : : "n"(n), "n"(key_bits), "n"(value_bits))
#else
#define SPARK_NOTE(text)
#define SPARK_NOTE_ROWS(n, key_bits, value_bits)
#endif

#if defined(SPARK_EMULATION)
#include "emulation/device.h"
#elif defined(__CUDACC__)
#include "device_cuda.h"
#else
#include "device_hip.h"
#endif

// Masks must come out as on the CPU, so a product and a sum round twice unless `fused` says otherwise. (nvcc needs
// --fmad=false, other compilers than clang -ffp-contract=off.)
#ifdef __clang__
#pragma clang fp contract(off)
#endif

#endif
