// The last keys of every sequence after the call, dense. src/cpu/prune.rs is the reference.
#ifndef SPARK_RECENT_H
#define SPARK_RECENT_H

#include "basis.h"

SPARK_CONSTANT u32 RECENT_THREADS = SPARK_RECENT_THREADS;

// Blocks: x = row of present_key_recent + rows * KV head, z = sequence. One thread per channel. LDS: in a basis, D
// floats.
SPARK_FN void write_recent(const SparkCall& call) {
    const u32 j = thread(), d = call.head_dim;
    const Sequence s(call, block_z());
    const u32 row = block_x() % call.present_recent_rows, head = block_x() / call.present_recent_rows;
    const u32 window = call.recent_window, total = s.past + s.valid;
    const u32 before = s.past < window ? s.past : window, after = total < window ? total : window;
    const i64 entry = (i64)s.index * call.kv_heads + head;
    const u32 t = total - after + row;
    if (call.key_planes && row < after && t >= s.past) {
        if (j < d) Shared<float>(0).store(j, channel(call, call.key, s, head, t - s.past, j, true));
        block_barrier();
    }
    if (j >= d) return;
    float x = 0.0f;
    if (row < after) {
        if (t >= s.past) {
            x = call.key_planes ? key_in_basis(call, head, 0, j)
                                : channel(call, call.key, s, head, t - s.past, j, true);
        } else {
            const u32 from = t - (s.past - before);
            x = finite(read_one(call.scalar, call.past_recent, (entry * call.past_recent_rows + from) * d + j));
        }
    }
    write_one(call.scalar, call.present_recent, (entry * call.present_recent_rows + row) * d + j, x);
}

#endif
