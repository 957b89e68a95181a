// The few primitives that differ between devices. Kernels use these and nothing else of any device:
//
//   WAVE                         lanes of a wave, 64 or 32
//   thread(), block_x(), block_z(), lane(), wave()
//   load<V>(p), store(p, v)      one element of global memory
//   load_words(p, w), store_words(p, w)   several 32-bit words of global memory, p aligned to 4 bytes
//   Shared<V>                    elements in the block's LDS, asked for at launch
//   vote(b), shuffle_xor(v, mask)       all lanes of a wave take part
//   rank_in(mask)                set bits of a vote below the own lane
//   wave_barrier()               what lanes of the wave wrote to LDS is seen by its other lanes
//   block_barrier()              the same for the block
//   half_to_float, float_to_half, exp2_of, sqrt_of, round_even, least, greatest, fused, product
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
