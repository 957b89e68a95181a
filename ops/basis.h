// Queries and keys in a calibrated basis: each is multiplied by the matrix of its KV head, after its rotation.
// src/cpu/tokens.rs is the reference; sums are in its order, so that keys are identical.
#ifndef SPARK_BASIS_H
#define SPARK_BASIS_H

#include "tokens.h"

SPARK_CONSTANT u32 BASIS_THREADS = SPARK_BASIS_THREADS;
// Tokens of a thread, which multiplies all of them by a number of the matrix that it has read once.
SPARK_CONSTANT u32 BASIS_TOKENS = SPARK_BASIS_TOKENS;

// Direction `j` of a key of a head, whose D channels are in LDS from byte `at` on.
SPARK_FN float key_in_basis(const SparkCall& call, u32 head, u32 at, u32 j) {
    const u32 d = call.head_dim;
    const float* matrix = call.key_basis + (i64)head * d * d;
    const Shared<float> x(at);
    float sum = 0.0f;
    for (u32 i = 0; i < d; ++i) sum += x.load(i) * load(matrix + (i64)i * d + j);
    return finite(sum);
}

// Writes the new queries and keys, rotated and in the basis; padding is left as it is. Blocks: x = block of columns,
// (new token, query head) pairs of the KV head, then block of its new tokens + all of both * KV head, z = sequence.
// LDS: the channels of the block's columns or tokens, BASIS_TOKENS * (BASIS_THREADS / D) of them.
SPARK_FN void change_basis(const SparkCall& call) {
    const u32 d = call.head_dim, slots = BASIS_THREADS / d, rows = BASIS_TOKENS * slots;
    const Sequence s(call, block_z());
    const u32 columns = call.group * call.new_tokens, query_blocks = (columns + rows - 1) / rows;
    const u32 blocks = query_blocks + (call.new_tokens + rows - 1) / rows;
    const u32 kv_head = block_x() / blocks, block = block_x() % blocks;
    const bool queries = block < query_blocks;
    const u32 heads = queries ? call.group : 1, first = (queries ? block : block - query_blocks) * rows;
    const float* matrix = (queries ? call.query_basis : call.key_basis) + (i64)kv_head * d * d;
    float* to = queries ? call.basis_queries : call.basis_keys;
    // Of the tensor.
    const u32 all_heads = queries ? call.query_heads : call.kv_heads;

    const Shared<float> x(0);
    for (u32 n = thread(); n < rows * d / 8; n += BASIS_THREADS) {
        const u32 row = n / (d / 8), octet = n % (d / 8), i = (first + row) / heads;
        float own[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        if (i < s.valid) {
            const u32 head = kv_head * heads + (first + row) % heads;
            // The choice of a reference would put the call into scratch memory.
            if (queries) {
                token_octet(call, call.query, s, head, i, octet, true, own);
            } else {
                token_octet(call, call.key, s, head, i, octet, true, own);
            }
        }
        SPARK_UNROLL
        for (u32 k = 0; k < 8; ++k) x.store(8 * n + k, own[k]);
    }
    block_barrier();
    const u32 slot = thread() / d, j = thread() % d;
    if (slot >= slots) return;
    float sums[BASIS_TOKENS] = {};
    for (u32 i = 0; i < d; ++i) {
        const float m = load(matrix + (i64)i * d + j);
        SPARK_UNROLL
        for (u32 n = 0; n < BASIS_TOKENS; ++n) sums[n] += x.load((slot * BASIS_TOKENS + n) * d + i) * m;
    }
    SPARK_UNROLL
    for (u32 n = 0; n < BASIS_TOKENS; ++n) {
        const u32 row = first + slot * BASIS_TOKENS + n, i = row / heads, head = kv_head * heads + row % heads;
        if (i >= s.valid) continue;
        const i64 token = ((i64)block_z() * all_heads + head) * call.new_tokens + i;
        store(to + token * d + j, finite(sums[n]));
    }
}

#endif
