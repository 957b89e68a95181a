// All kernels, one translation unit for every compiler: hipcc, clang, hipRTC, nvcc, and a host compiler with the emulation.
// A kernel's name ends with its T where it has one; src/hip/plan.rs says which to launch, and how.
#include "decode.h"
#include "grow.h"
#include "prefill.h"
#include "prune.h"
#include "recent.h"
#include "saliency.h"
#include "states.h"

SPARK_KERNEL(spark_grow, 256) { grow_rows(call); }

#define SPARK_DECODE(octets, columns, suffix, T)                                                                       \
    SPARK_KERNEL(spark_decode_##octets##x##columns##_##suffix, 256) { decode<T, octets, columns>(call); }

#define SPARK_KERNELS_OF(suffix, T)                                                                                    \
    SPARK_KERNEL(spark_saliency_##suffix, 512) { observe<T>(call); }                                                   \
    SPARK_KERNEL(spark_prune_##suffix, 256) { prune_tokens<T>(call); }                                                 \
    SPARK_KERNEL(spark_recent_##suffix, 256) { write_recent<T>(call); }                                                \
    SPARK_KERNEL(spark_merge_##suffix, 256) { merge_states<T>(call); }                                                 \
    SPARK_KERNEL(spark_prefill_128_##suffix, 256) { prefill<T, 128>(call); }                                           \
    SPARK_KERNEL(spark_prefill_256_##suffix, 256) { prefill<T, 256>(call); }                                           \
    SPARK_DECODE(8, 1, suffix, T)                                                                                      \
    SPARK_DECODE(8, 4, suffix, T)                                                                                      \
    SPARK_DECODE(8, 8, suffix, T)                                                                                      \
    SPARK_DECODE(16, 1, suffix, T)                                                                                     \
    SPARK_DECODE(16, 4, suffix, T)                                                                                     \
    SPARK_DECODE(16, 8, suffix, T)                                                                                     \
    SPARK_DECODE(32, 1, suffix, T)                                                                                     \
    SPARK_DECODE(32, 4, suffix, T)                                                                                     \
    SPARK_DECODE(32, 8, suffix, T)

SPARK_KERNELS_OF(f16, Float16)
SPARK_KERNELS_OF(f32, Float32)
SPARK_KERNELS_OF(bf16, BFloat16)
