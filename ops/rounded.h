// Keys and values in float16, as the products of prompts on matrix cores take them: what every block of queries would
// make anew is made once, in the workspace after the states. New keys are rotated: [sequences of the launch, Hk, L, D].
// Where it pays, stored rows from `first_unpacked` on are decoded: after the new keys, keys and then values, each
// [sequences of the launch, Hk, call.unpacked, D], with room for the sequence that has most.
#ifndef SPARK_ROUNDED_H
#define SPARK_ROUNDED_H

#include "source.h"
#include "states.h"

SPARK_CONSTANT u32 ROUND_THREADS = SPARK_ROUND_THREADS;
SPARK_CONSTANT u32 UNPACK_KEYS = SPARK_UNPACK_KEYS; // of a block

// Where those of a KV head begin. src/gpu/plan computes the same.
SPARK_FN u8* rounded_keys(const SparkCall& call, u32 sequence, u32 kv_head) {
    const i64 states = (i64)call.sequences * call.query_heads * call.new_tokens * call.splits;
    const i64 before = call.splits > 1 ? (states * (call.head_dim + 2) * 4 + 15) / 16 * 16 : 0;
    const i64 key = ((i64)sequence * call.kv_heads + kv_head) * call.new_tokens;
    return (u8*)call.workspace + before + 2 * key * call.head_dim;
}
SPARK_FN u8* unpacked_keys(const SparkCall& call, u32 sequence, u32 kv_head) {
    const i64 key = ((i64)sequence * call.kv_heads + kv_head) * call.unpacked;
    return rounded_keys(call, call.sequences, 0) + 2 * key * call.head_dim;
}
SPARK_FN u8* unpacked_values(const SparkCall& call, u32 sequence, u32 kv_head) {
    return unpacked_keys(call, call.sequences + sequence, kv_head);
}

// Position of the first row that is unpacked: no query sees those before. src/gpu/plan computes the same.
SPARK_FN u32 first_unpacked(const SparkCall& call, const Sequence& s) {
    return seen_by(call, s, 0).start / UNPACK_KEYS * UNPACK_KEYS;
}

// Writes octet `octet` of token `i` of those that begin at `first`.
SPARK_FN void store_halves(const SparkCall& call, u8* first, u32 i, u32 octet, const float (&x)[8]) {
    const u32 words[4] = {halves_of(x[0], x[1]), halves_of(x[2], x[3]), halves_of(x[4], x[5]), halves_of(x[6], x[7])};
    store_words(first + 2 * ((i64)i * call.head_dim + 8 * octet), words);
}

// Blocks: x = block of octets of all heads and tokens, z = sequence. Keys of padding are not written.
SPARK_FN void round_keys(const SparkCall& call) {
    const u32 octets = call.head_dim / 8, n = block_x() * ROUND_THREADS + thread();
    const u32 octet = n % octets, i = n / octets % call.new_tokens, head = n / octets / call.new_tokens;
    const Sequence s(call, block_z());
    if (head >= call.kv_heads || i >= s.valid) return;
    float key[8];
    token_octet(call, call.key, s, head, i, octet, true, key);
    store_halves(call, rounded_keys(call, block_z(), head), i, octet, key);
}

// For head sizes up to CHANNELS. Blocks: x = tile of UNPACK_KEYS rows + tiles * KV head, z = sequence. LDS: the memory
// of `Source`.
template <u32 CHANNELS>
SPARK_FN void unpack_rows(const SparkCall& call) {
    // Lets the compiler omit the other type.
    if (call.scalar == SPARK_FLOAT32) __builtin_unreachable();
    const Sequence s(call, block_z());
    const u32 tiles = (call.unpacked + UNPACK_KEYS - 1) / UNPACK_KEYS;
    const u32 first = first_unpacked(call, s), kv_head = block_x() / tiles, own = block_x() % tiles * UNPACK_KEYS;
    const u32 t = first + own;
    if (t >= s.past || s.valid == 0) return;
    const u32 end = s.past - t < UNPACK_KEYS ? s.past : t + UNPACK_KEYS;
    const Source<CHANNELS / 8, UNPACK_KEYS> source(call, s, kv_head, 0);
    source.prepare();
    block_barrier();
    source.stage(t, end);
    block_barrier();
    source.find_dense(t, end);
    u8* keys = unpacked_keys(call, block_z(), kv_head);
    source.keys(t, end, [&](u32 row, u32 octet, const float (&key)[8]) {
        if (8 * octet < call.head_dim && t + row < end) store_halves(call, keys, own + row, octet, key);
    });
    u8* values = unpacked_values(call, block_z(), kv_head);
    for (u32 n = anew(thread()); n < UNPACK_KEYS * CHANNELS / 8; n += PREFILL_THREADS) {
        const u32 at = t + n / (CHANNELS / 8), octet = n % (CHANNELS / 8);
        if (8 * octet >= call.head_dim || at >= end) continue;
        float v[1][8];
        source.value(at, end, octet, v);
        store_halves(call, values, at - first, octet, v[0]);
    }
}

#endif
