// The new keys for prompts on tensor cores: every block reads them, so they are rotated once, and rounded to float16 as
// the products take them. In the workspace after the states, [sequences of the launch, Hk, L, D].
#ifndef SPARK_ROUNDED_H
#define SPARK_ROUNDED_H

#include "states.h"

SPARK_CONSTANT u32 ROUND_THREADS = SPARK_ROUND_THREADS;

// Where those of a KV head begin. src/gpu/plan computes the same.
SPARK_FN u8* rounded_keys(const SparkCall& call, u32 sequence, u32 kv_head) {
    const i64 states = (i64)call.sequences * call.query_heads * call.new_tokens * call.splits;
    const i64 before = call.splits > 1 ? (states * (call.head_dim + 2) * 4 + 15) / 16 * 16 : 0;
    const i64 key = ((i64)sequence * call.kv_heads + kv_head) * call.new_tokens;
    return (u8*)call.workspace + before + 2 * key * call.head_dim;
}

// Blocks: x = block of octets of all heads and tokens, z = sequence. Keys of padding are not written.
SPARK_FN void round_keys(const SparkCall& call) {
    const u32 octets = call.head_dim / 8, n = block_x() * ROUND_THREADS + thread();
    const u32 octet = n % octets, i = n / octets % call.new_tokens, head = n / octets / call.new_tokens;
    const Sequence s(call, block_z());
    if (head >= call.kv_heads || i >= s.valid) return;
    float key[8];
    token_octet(call, call.key, s, head, i, octet, true, key);
    const u32 words[4] = {halves_of(key[0], key[1]), halves_of(key[2], key[3]), halves_of(key[4], key[5]),
                          halves_of(key[6], key[7])};
    store_words(rounded_keys(call, block_z(), head) + 16 * ((i64)i * octets + octet), words);
}

#endif
