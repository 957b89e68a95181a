// The argument of every kernel: one structure, passed by value. src/gpu/params.rs declares the same in Rust; both
// sides assert sizes and offsets.
//
// All pointers are device pointers, null where the call has no such tensor. They are aligned to at least 4 bytes.
// Everything but the contents of tensors has been validated on the host.
#ifndef SPARK_CALL_H
#define SPARK_CALL_H

#include "limits.h"

// Tokens of T: channel j of head h of token i of sequence b is element b * batch + h * head + i * token + j.
struct SparkTokens {
    const void* data;
    long long batch;
    long long head;
    long long token;
};

// Past tokens of a sequence, and valid new ones; further new ones are right padding. Keys that the tail of its buffers
// keeps, 0: none; prune: after the call.
struct SparkSequence {
    unsigned past;
    unsigned valid;
    unsigned tail;
};

struct SparkCall {
    SparkTokens query;  // [B, Hq, L, D]
    SparkTokens key;    // [B, Hk, L, D]
    SparkTokens value;  // [B, Hk, L, D]
    SparkTokens output; // [B, Hq, L, D], written

    const void* past_key;   // rows, [B, Hk, past_rows, key_row_bytes]
    const void* past_value; // rows, [B, Hk, past_rows, value_row_bytes]
    void* present_key;      // rows, [B, Hk, present_rows, key_row_bytes]
    void* present_value;    // rows, [B, Hk, present_rows, value_row_bytes]

    const void* past_recent; // T, [B, Hk, past_recent_rows, D]
    void* present_recent;    // T, [B, Hk, present_recent_rows, D]

    const void* cos_cache;         // T, [positions, D / 2]
    const void* sin_cache;         // T, [positions, D / 2]
    const long long* position_ids; // [B, L]; null: past + index

    const float* query_saliency; // [Hk, D]; null: ones
    float* observed_saliency;    // [B, Hk, D]

    const float* key_basis;   // [Hk, D, D], where key_planes
    const float* query_basis; // [Hk, D, D], likewise; prune: null
    float* basis_queries;     // [sequences, Hq, L, D], written: rotated and in the basis
    float* basis_keys;        // [sequences, Hk, L, D], likewise

    const void* bias;     // T, [B or 1, Hq or 1, L, columns]
    long long bias_batch; // its strides in elements, 0 where the dimension is 1
    long long bias_head;
    long long bias_token;

    // Prune: n by which keys are pruned, float32 [sequences, Hk, D]. Attention: partial softmax states, see states.h,
    // then what rounded.h has, then basis_queries and basis_keys.
    void* workspace;

    unsigned scalar;       // T
    unsigned new_tokens;   // L
    unsigned past_rows;    // P
    unsigned present_rows; // S
    unsigned query_heads;  // Hq
    unsigned kv_heads;     // Hk
    unsigned group;        // Hq / Hk
    unsigned head_dim;     // D
    unsigned kept;         // T_k

    unsigned key_bits;
    unsigned value_bits;
    unsigned key_row_bytes;
    unsigned value_row_bytes;

    unsigned recover; // what pruned channels read as
    unsigned recent_window;
    unsigned past_recent_rows;
    unsigned present_recent_rows;

    unsigned rotary;    // 0: none, 1: pairs (j, j + D/2), 2: pairs (2j, 2j + 1)
    unsigned positions; // rows of cos_cache and sin_cache
    unsigned observation_window;
    unsigned causal;

    unsigned window; // keys that a query sees, itself included; 0: all
    float scale;     // factor of the scores
    float softcap;   // 0: none
    unsigned grow;   // bit 0: copy past_key to present_key, bit 1: copy past_value to present_value

    unsigned first_sequence; // of the launch, in the batch
    unsigned sequences;      // of the launch
    unsigned splits;         // pieces that the keys of a sequence are cut into (scores.h), each a state of its own
    unsigned split_keys;     // keys of a piece

    unsigned tail_window; // keys that a tail keeps where there is room

    unsigned key_planes;       // 1: key rows are those of format 3; key_bits is 16
    unsigned key_directions_8; // directions of 8 bits, and those of 4 that follow them
    unsigned key_directions_4;

    unsigned in_basis;         // 1: query and key are what basis_queries and basis_keys are: float32, rotated

    unsigned key_companded; // 1: codes of keys, of 4 bits, are those of format 2
    unsigned value_groups;  // pairs of scale and minimum in a value row; of groups of VALUE_GROUP channels, if several
    unsigned rounded_keys;  // 1: the workspace has the new keys in float16, see rounded.h
    unsigned value_rotated; // 1: value rows are rotated as in format 2. Attention: of a launch that has past tokens
    unsigned unpacked;      // stored rows of a sequence that the workspace has room for in float16, likewise

    SparkSequence sequence[SPARK_MAX_SEQUENCES]; // of the launch
};

// src/gpu/params.rs asserts the same.
static_assert(sizeof(SparkTokens) == 32, "size");
static_assert(sizeof(SparkSequence) == 12, "size");
static_assert(sizeof(SparkCall) == 1216, "size");
// NVRTC of CUDA 13.0 and before knows no such builtin.
#ifndef __CUDACC_RTC__
static_assert(__builtin_offsetof(SparkCall, past_key) == 128, "offset");
static_assert(__builtin_offsetof(SparkCall, bias) == 248, "offset");
static_assert(__builtin_offsetof(SparkCall, workspace) == 280, "offset");
static_assert(__builtin_offsetof(SparkCall, new_tokens) == 292, "offset");
static_assert(__builtin_offsetof(SparkCall, scale) == 376, "offset");
static_assert(__builtin_offsetof(SparkCall, sequence) == 444, "offset");
#endif

#endif
