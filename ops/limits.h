// Numbers that the kernels and src/gpu/plan both go by: ops/build.rs makes Rust constants of them, without the prefix.
#ifndef SPARK_LIMITS_H
#define SPARK_LIMITS_H

// T, the type of query, key, value and output.
#define SPARK_FLOAT16 0
#define SPARK_FLOAT32 1
#define SPARK_BFLOAT16 2
// Greatest head size.
#define SPARK_MAX_HEAD_DIM 256
// Sequences whose lengths fit a call; larger batches take several launches.
#define SPARK_MAX_SEQUENCES 64

// Waves of a block that decodes, prunes or merges.
#define SPARK_BLOCK_WAVES 4
// Threads of other blocks.
#define SPARK_GROW_THREADS 256
#define SPARK_RECENT_THREADS 256
#define SPARK_SALIENCY_THREADS 512
#define SPARK_PREFILL_THREADS 256
// Words of a thread that copies a growing cache, side by side.
#define SPARK_GROW_WORDS 4

// Words that eight channels may be read past the end of their key row's fields; they are not used, but must be there.
#define SPARK_KEY_SLACK_WORDS 5
// Keys of a tile for matrix cores, and words of the tables that their codes are unpacked by (ops/matrix_keys.h).
#define SPARK_MATRIX_KEYS 16
#define SPARK_MATRIX_TABLE_WORDS 1536

#endif
