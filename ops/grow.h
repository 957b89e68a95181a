// A growing cache: copies past rows to the start of the present ones, and zeroes rows without a token. The prune
// kernel writes the new rows in between. src/cpu/cache.rs is the reference.
#ifndef SPARK_GROW_H
#define SPARK_GROW_H

#include "tokens.h"

SPARK_CONSTANT u32 GROW_THREADS = SPARK_GROW_THREADS;
SPARK_CONSTANT u32 GROW_WORDS = SPARK_GROW_WORDS; // of a thread, side by side

// Blocks: x = block of words + blocks of a head * (KV head + Hk * (0: keys, 1: values)), z = sequence.
SPARK_FN void grow_rows(const SparkCall& call) {
    const u32 block_words = GROW_THREADS * GROW_WORDS;
    const u32 key_words = call.key_row_bytes / 4, value_words = call.value_row_bytes / 4;
    const u64 most_words = (u64)call.present_rows * (key_words > value_words ? key_words : value_words);
    const u32 blocks = (u32)((most_words + block_words - 1) / block_words);
    const u32 block = block_x() % blocks, head = block_x() / blocks % call.kv_heads;
    const u32 which = block_x() / blocks / call.kv_heads;
    if (!(call.grow >> which & 1)) return;
    const Sequence s(call, block_z());
    const u64 row_words = which ? value_words : key_words;
    const u64 first = (u64)block * block_words + thread() * GROW_WORDS;
    const u64 entry = (u64)s.index * call.kv_heads + head;
    const u32* from = (const u32*)(which ? call.past_value : call.past_key) + entry * call.past_rows * row_words;
    u32* to = (u32*)(which ? call.present_value : call.present_key) + entry * call.present_rows * row_words;
    const u64 past = s.past * row_words, used = (s.past + (u64)s.valid) * row_words;
    const u64 end = call.present_rows * row_words;
    if (first + GROW_WORDS <= past) {
        u32 w[GROW_WORDS];
        load_words(from + first, w);
        store_words(to + first, w);
        return;
    }
    if (first >= used && first + GROW_WORDS <= end) {
        const u32 zero[GROW_WORDS] = {0, 0, 0, 0};
        store_words(to + first, zero);
        return;
    }
    for (u64 at = first; at < first + GROW_WORDS && at < end; ++at) {
        if (at < past) {
            store(to + at, load(from + at));
        } else if (at >= used) {
            store(to + at, 0u);
        }
    }
}

#endif
