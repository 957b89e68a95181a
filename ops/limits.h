// Numbers shared by the kernels and src/gpu/plan: ops/build.rs makes Rust constants of them, without the prefix.
#ifndef SPARK_LIMITS_H
#define SPARK_LIMITS_H

// T, the type of query, key, value and output.
#define SPARK_FLOAT16 0
#define SPARK_FLOAT32 1
#define SPARK_BFLOAT16 2
// What pruned channels read as: zero, the mean magnitude of the row's, or one drawn from a distribution.
#define SPARK_RECOVER_NONE 0
#define SPARK_RECOVER_MEAN 1
#define SPARK_RECOVER_EXPONENTIAL 2
#define SPARK_RECOVER_NORMAL 3
// Greatest head size.
#define SPARK_MAX_HEAD_DIM 256
// Most sequences whose lengths fit a call; larger batches take several launches.
#define SPARK_MAX_SEQUENCES 64

// Waves per block for decoding, pruning and merging.
#define SPARK_BLOCK_WAVES 4
// Threads per block of other kernels.
#define SPARK_GROW_THREADS 256
#define SPARK_RECENT_THREADS 256
#define SPARK_ROUND_THREADS 256
#define SPARK_SALIENCY_THREADS 512
#define SPARK_BASIS_THREADS 256
#define SPARK_PREFILL_THREADS 256
// Rows that a block decodes for prompts on matrix cores (ops/rounded.h).
#define SPARK_UNPACK_KEYS 64
// Words that a thread of the copy of a growing cache handles side by side.
#define SPARK_GROW_WORDS 4
// Tokens that a thread changes the basis of side by side.
#define SPARK_BASIS_TOKENS 8

// Words that may be read past the end of a key row's fields; they are not used, but must exist.
#define SPARK_KEY_SLACK_WORDS 5
// The same where AMD's matrix cores take rows in planes (ops/plane_steps.h): lanes have a place beyond a plane's end.
#define SPARK_PLANE_SLACK_WORDS 10
// Keys of a tile for matrix cores, and words of the tables that unpack their codes (ops/matrix_keys.h).
#define SPARK_MATRIX_KEYS 16
#define SPARK_MATRIX_TABLE_WORDS 1536
// Bytes beside the key rows and beside the value rows of a tile in LDS (ops/mma_rows.h), multiples of 16: up to 12
// before, and after them what is read beyond the last one, which of values are at most 56 channels. Of keys in planes
// up to 12 bytes more are read, which are the values'.
#define SPARK_MMA_KEY_SLACK_BYTES 32
#define SPARK_MMA_VALUE_SLACK_BYTES 80

#endif
