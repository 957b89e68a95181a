// All kernels, one translation unit for every compiler: hipcc, clang, hipRTC, nvcc, and a host compiler with the
// emulation. src/gpu/plan decides which to launch, and how. The numbers of a kernel are its maximum number of threads,
// and the waves per SIMD for which registers are allocated (src/gpu/plan relies on them).
#include "basis.h"
#include "decode.h"
#include "grow.h"
#if defined(SPARK_MATRIX) || defined(SPARK_MMA)
#include "decode_matrix.h"
#endif
#ifdef SPARK_MATRIX
#include "prefill_matrix.h"
#endif
#ifdef SPARK_MMA
#include "mma_prefill.h"
#endif
#ifdef SPARK_NO_MATRIX
#include "prefill.h"
#endif
#include "prune.h"
#include "recent.h"
#include "saliency.h"
#include "states.h"

SPARK_KERNEL(spark_grow, 256, 4) { grow_rows(call); }
SPARK_KERNEL(spark_saliency, 512, 4) { observe(call); }
SPARK_KERNEL(spark_prune, 256, 8) { prune_tokens<false>(call); }
SPARK_KERNEL(spark_prune_planes, 256, 4) { prune_tokens<true>(call); }
SPARK_KERNEL(spark_basis, 256, 4) { change_basis(call); }
SPARK_KERNEL(spark_recent, 256, 4) { write_recent(call); }
SPARK_KERNEL(spark_merge, 256, 4) { merge_states(call); }
#if defined(SPARK_MATRIX) || defined(SPARK_MMA)
SPARK_KERNEL(spark_round_keys, 256, 4) { round_keys(call); }
SPARK_KERNEL(spark_unpack_64, 256, 4) { unpack_rows<64>(call); }
SPARK_KERNEL(spark_unpack_128, 256, 4) { unpack_rows<128>(call); }
#endif
#ifdef SPARK_MATRIX
SPARK_KERNEL(spark_decode_quantised_8x1, 256, 3) { decode_quantised<8, 1, MASKED>(call); }
SPARK_KERNEL(spark_decode_quantised_8x4, 256, 3) { decode_quantised<8, 4, MASKED>(call); }
SPARK_KERNEL(spark_decode_quantised_8x8, 256, 2) { decode_quantised<8, 8, MASKED>(call); }
SPARK_KERNEL(spark_decode_quantised_16x1, 256, 2) { decode_quantised<16, 1, MASKED>(call); }
SPARK_KERNEL(spark_decode_quantised_16x4, 256, 2) { decode_quantised<16, 4, MASKED>(call); }
SPARK_KERNEL(spark_decode_quantised_16x8, 256, 2) { decode_quantised<16, 8, MASKED>(call); }
SPARK_KERNEL(spark_decode_quantised_planes_8x4, 256, 3) { decode_quantised<8, 4, IN_PLANES>(call); }
SPARK_KERNEL(spark_decode_quantised_planes_8x8, 256, 2) { decode_quantised<8, 8, IN_PLANES>(call); }
SPARK_KERNEL(spark_decode_quantised_planes_16x4, 256, 3) { decode_quantised<16, 4, IN_PLANES>(call); }
SPARK_KERNEL(spark_decode_quantised_planes_16x8, 256, 2) { decode_quantised<16, 8, IN_PLANES>(call); }
SPARK_KERNEL(spark_unpack_256, 256, 4) { unpack_rows<256>(call); }
SPARK_KERNEL(spark_prefill_matrix_f16_64, 256, 2) { matrix_prefill<u16, 64>(call); }
SPARK_KERNEL(spark_prefill_matrix_f16_128, 256, 2) { matrix_prefill<u16, 128>(call); }
SPARK_KERNEL(spark_prefill_matrix_f16_256, 256, 2) { matrix_prefill<u16, 256>(call); }
SPARK_KERNEL(spark_prefill_matrix_f32_64, 256, 2) { matrix_prefill<float, 64>(call); }
SPARK_KERNEL(spark_prefill_matrix_f32_128, 256, 2) { matrix_prefill<float, 128>(call); }
SPARK_KERNEL(spark_prefill_matrix_f32_256, 256, 2) { matrix_prefill<float, 256>(call); }
#endif
#ifdef SPARK_MMA
SPARK_KERNEL(spark_decode_quantised_8x1, 128, 4) { decode_quantised<8, 1, MASKED>(call); }
SPARK_KERNEL(spark_decode_quantised_8x4, 128, 4) { decode_quantised<8, 4, MASKED>(call); }
SPARK_KERNEL(spark_decode_quantised_8x8, 128, 2) { decode_quantised<8, 8, MASKED>(call); }
SPARK_KERNEL(spark_decode_quantised_16x1, 128, 4) { decode_quantised<16, 1, MASKED>(call); }
SPARK_KERNEL(spark_decode_quantised_16x4, 128, 4) { decode_quantised<16, 4, MASKED>(call); }
SPARK_KERNEL(spark_decode_quantised_16x8, 128, 2) { decode_quantised<16, 8, MASKED>(call); }
SPARK_KERNEL(spark_decode_quantised_planes_8x4, 128, 4) { decode_quantised<8, 4, IN_PLANES>(call); }
SPARK_KERNEL(spark_decode_quantised_planes_8x8, 128, 2) { decode_quantised<8, 8, IN_PLANES>(call); }
SPARK_KERNEL(spark_decode_quantised_planes_16x4, 128, 4) { decode_quantised<16, 4, IN_PLANES>(call); }
SPARK_KERNEL(spark_decode_quantised_planes_16x8, 128, 2) { decode_quantised<16, 8, IN_PLANES>(call); }
SPARK_KERNEL(spark_prefill_mma_64, 256, 2) { mma_prefill<64>(call); }
SPARK_KERNEL(spark_prefill_mma_128, 256, 2) { mma_prefill<128>(call); }
#endif
#ifdef SPARK_NO_MATRIX
SPARK_KERNEL(spark_prefill_128, 256, 2) { prefill<128>(call); }
SPARK_KERNEL(spark_prefill_256, 256, 2) { prefill<256>(call); }
#endif
SPARK_KERNEL(spark_decode_8x1, 256, 3) { decode<8, 1, MASKED>(call); }
SPARK_KERNEL(spark_decode_8x4, 256, 3) { decode<8, 4, MASKED>(call); }
SPARK_KERNEL(spark_decode_8x8, 256, 2) { decode<8, 8, MASKED>(call); }
SPARK_KERNEL(spark_decode_16x1, 256, 3) { decode<16, 1, MASKED>(call); }
SPARK_KERNEL(spark_decode_16x4, 256, 3) { decode<16, 4, MASKED>(call); }
SPARK_KERNEL(spark_decode_16x8, 256, 2) { decode<16, 8, MASKED>(call); }
SPARK_KERNEL(spark_decode_32x1, 256, 3) { decode<32, 1, MASKED>(call); }
SPARK_KERNEL(spark_decode_32x4, 256, 3) { decode<32, 4, MASKED>(call); }
SPARK_KERNEL(spark_decode_32x8, 256, 2) { decode<32, 8, MASKED>(call); }
SPARK_KERNEL(spark_decode_planes_8x1, 256, 3) { decode<8, 1, IN_PLANES>(call); }
SPARK_KERNEL(spark_decode_planes_8x4, 256, 3) { decode<8, 4, IN_PLANES>(call); }
SPARK_KERNEL(spark_decode_planes_16x1, 256, 3) { decode<16, 1, IN_PLANES>(call); }
SPARK_KERNEL(spark_decode_planes_16x4, 256, 3) { decode<16, 4, IN_PLANES>(call); }
SPARK_KERNEL(spark_decode_planes_32x1, 256, 3) { decode<32, 1, IN_PLANES>(call); }
SPARK_KERNEL(spark_decode_planes_32x4, 256, 3) { decode<32, 4, IN_PLANES>(call); }
