// Query saliency: n of every KV head over the last valid queries of a sequence. src/cpu/prune.rs is the reference; the
// sums here round in the same way, so that masks are identical.
#ifndef SPARK_SALIENCY_H
#define SPARK_SALIENCY_H

#include "tokens.h"

SPARK_CONSTANT u32 SALIENCY_THREADS = SPARK_SALIENCY_THREADS;

// Blocks: x = KV head, z = sequence. LDS: one float per thread.
SPARK_FN void observe(const SparkCall& call) {
    const Shared<float> squares(0);
    const u32 head = block_x(), d = call.head_dim;
    const Sequence s(call, block_z());
    // Several tokens side by side, with a thread for each of their channels.
    const u32 tokens = SALIENCY_THREADS / d, slot = thread() / d, j = thread() % d;
    const u32 first = s.valid > call.observation_window ? s.valid - call.observation_window : 0;
    float n = 0.0f;
    for (u32 w = first; w < s.valid; w += tokens) {
        if (slot < tokens && w + slot < s.valid) {
            float sum = 0.0f;
            for (u32 g = 0; g < call.group; ++g) {
                sum += channel(call, call.query, s, head * call.group + g, w + slot, j, true);
            }
            const float mean = sum / (float)call.group;
            squares.store(thread(), mean * mean);
        }
        block_barrier();
        if (thread() < d) {
            for (u32 k = 0; k < tokens && w + k < s.valid; ++k) n += squares.load(k * d + j);
        }
        block_barrier();
    }
    if (thread() < d) {
        n = sqrt_of(n);
        store((float*)call.workspace + ((i64)block_z() * call.kv_heads + head) * d + j, n);
        if (call.observed_saliency) {
            store(call.observed_saliency + ((i64)s.index * call.kv_heads + head) * d + j, n);
        }
    }
}

#endif
