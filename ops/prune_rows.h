// Rows that a wave has made in LDS: codes are packed there, and rows are written to memory.
#ifndef SPARK_PRUNE_ROWS_H
#define SPARK_PRUNE_ROWS_H

#include "rows.h"
#include "tail.h"
#include "tokens.h"

// Packs `n` codes, one byte each in LDS from `codes` on, into nibbles from byte `at` on.
SPARK_FN void pack_nibbles(u32 codes, u32 at, u32 n) {
    const Shared<u8> from(codes), to(at);
    wave_barrier();
    for (u32 i = lane(); i < (n + 1) / 2; i += WAVE) {
        const u32 high = 2 * i + 1 < n ? from.load(2 * i + 1) : 0;
        to.store(i, (u8)(from.load(2 * i) | high << 4));
    }
}

// The same of codes of two bits.
SPARK_FN void pack_quarters(u32 codes, u32 at, u32 n) {
    const Shared<u8> from(codes), to(at);
    wave_barrier();
    for (u32 i = lane(); i < (n + 3) / 4; i += WAVE) {
        u32 byte = 0;
        for (u32 k = 0; k < 4 && 4 * i + k < n; ++k) byte |= (u32)from.load(4 * i + k) << 2 * k;
        to.store(i, (u8)byte);
    }
}

// Copies a row from LDS to memory, with zeros after its fields.
SPARK_FN void copy_row(u32 row, u32 words, void* to, u32 row_bytes) {
    const Shared<u32> from(row);
    wave_barrier();
    for (u32 i = lane(); i < row_bytes / 4; i += WAVE) store((u32*)to + i, i < words ? from.load(i) : 0u);
    wave_barrier();
}

// Writes the row of a key from LDS, and one of the last keys dense too, in rows that no token has taken.
SPARK_FN void write_key(const SparkCall& call, const Sequence& s, u32 head, u32 i, u32 row,
                        const float (&key)[CHUNKS]) {
    u8* to = (u8*)call.present_key;
    const i64 at = ((i64)s.index * call.kv_heads + head) * call.present_rows + s.past + i;
    copy_row(row, KeyLayout(call).words, to + at * call.key_row_bytes, call.key_row_bytes);
    const u32 dense = s.tail < s.valid ? s.tail : s.valid;
    if (i + dense < s.valid) return;
    u8* slot = new_slot(call, s, head, i);
    SPARK_UNROLL
    for (u32 c = 0; c < CHUNKS; ++c) {
        const u32 j = c * WAVE + lane();
        if (j < call.head_dim) store((u16*)slot + j, dense_half(key[c]));
    }
}

#endif
