// The tail of a shared buffer: recent keys, dense, in rows that no token has taken yet (docs/format.md). A slot has D
// float16. src/format/tail.rs, src/format/slot.rs, src/format/v1/dense.rs and src/format/v3/planes.rs are the
// reference.
#ifndef SPARK_TAIL_H
#define SPARK_TAIL_H

#include "rows.h"
#include "tokens.h"

// Where a slot lies: the bytes from its begin to the end of a (sequence, KV head)'s region of a buffer, a multiple of
// 16, plus 1 in the key buffer, 0 in the value buffer.
typedef u32 Slot;
SPARK_CONSTANT Slot NO_SLOT = 0;

// The slot of that number. Slots of both buffers are numbered by the free rows that they need, of equal ones the key
// buffer's first: below number n there are floor((n + 1) * key bytes / bytes of both rows) of the key buffer.
SPARK_FN Slot slot_of(const SparkCall& call, u32 number) {
    const u32 both = call.key_row_bytes + call.value_row_bytes, bytes = (number + 1) * call.key_row_bytes;
    const u32 keys = bytes / both;
    const bool in_key = bytes - keys * both + call.key_row_bytes >= both;
    return ((in_key ? keys : number - keys) + 1) * (2 * call.head_dim) + in_key;
}

// The tail of a (sequence, KV head), to be read, of a sequence that has one.
struct Tail {
    const SparkCall& call;
    const u8 *key_end, *value_end; // of its regions
    u32 kept, before;              // keys; and those of the window before it was last halved, 0: it was not
    u32 free;                      // rows

    SPARK_FN Tail(const SparkCall& call, const Sequence& s, u32 kv_head)
        : call(call), kept(s.tail), before(call.tail_window), free(call.past_rows - s.past) {
        const i64 rows = ((i64)s.index * call.kv_heads + kv_head + 1) * call.past_rows;
        key_end = (const u8*)call.past_key + rows * call.key_row_bytes;
        value_end = (const u8*)call.past_value + rows * call.value_row_bytes;
        while (before / 2 > kept) before /= 2;
        if (before <= kept) before = 0;
    }

    // Of the last `kept` positions.
    SPARK_FN Slot own_slot(u32 position) const { return slot_of(call, position % kept); }

    // The other slot that may hold the key, as long as no row lies there.
    SPARK_FN Slot earlier_slot(u32 position) const {
        if (before == 0) return NO_SLOT;
        const Slot slot = slot_of(call, position % before);
        const u64 free_bytes = (u64)free * (slot & 1 ? call.key_row_bytes : call.value_row_bytes);
        return slot / 16 * 16 <= free_bytes ? slot : NO_SLOT;
    }

    // Eight channels of the key in `slot`, two a word.
    SPARK_FN void fetch(Slot slot, u32 octet, u32 (&channels)[4]) const {
        load_words((slot & 1 ? key_end : value_end) - slot / 16 * 16 + 16 * octet, channels);
    }
};

// Eight dense channels as finite numbers.
SPARK_FN void read_dense(const u32 (&channels)[4], float (&x)[8]) {
    SPARK_UNROLL
    for (u32 k = 0; k < 8; ++k) x[k] = finite_half(channels[k / 2] >> 16 * (k % 2) & 0xffff);
}

// Whether eight dense channels are of another key than that of the row in LDS from byte `row` on, as far as the row
// tells: by their signs, and with 16 bits by the kept channels.
template <u32 OCTETS, RowKind KIND>
SPARK_FN bool differs(const SparkCall& call, const KeyLayout& layout, u32 row,
                      const KeyReader<OCTETS, KIND>& reader, const u32 (&channels)[4]) {
    if (in_planes<KIND>(call)) return planes_differ(call, row, reader.octet, channels);
    const Shared<u8> bytes(row);
    const u32 signs = bytes.load(layout.mask_bytes + reader.octet);
    u32 negative = 0;
    SPARK_UNROLL
    for (u32 k = 0; k < 8; ++k) {
        // At most 0, or not a number.
        const u32 half = channels[k / 2] >> 16 * (k % 2) & 0xffff;
        negative |= (half - 1 < 0x7c00 ? 0u : 1u) << k;
    }
    if (call.key_bits != 16) return negative != signs;
    const Shared<u16> kept(row + layout.codes_at);
    const u32 mask = bytes.load(reader.octet);
    bool other = ((negative ^ signs) & ~mask & 0xff) != 0;
    u32 slot = reader.kept_before(row);
    SPARK_UNROLL
    for (u32 k = 0; k < 8; ++k) {
        const u32 half = channels[k / 2] >> 16 * (k % 2) & 0xffff;
        // Channels that are marked beyond the kept ones read as pruned.
        if ((mask >> k & 1) && slot < call.kept) {
            const u32 stored = kept.load(slot);
            // Where the row has zero, the dense key may have the least positive number.
            other = other || (half != stored && !(stored == 0 && half == 1));
            slot += 1;
        }
    }
    return other;
}

// Where the key of new token `i` goes, one of the last ones that the tail keeps.
SPARK_FN u8* new_slot(const SparkCall& call, const Sequence& s, u32 kv_head, u32 i) {
    const Slot slot = slot_of(call, (s.past + i) % s.tail);
    const i64 rows = ((i64)s.index * call.kv_heads + kv_head + 1) * call.present_rows;
    u8* end = slot & 1 ? (u8*)call.present_key + rows * call.key_row_bytes
                       : (u8*)call.present_value + rows * call.value_row_bytes;
    return end - slot / 16 * 16;
}

// A channel of a key as a slot has it, finite. What is positive stays so: its sign is to be that of the row.
SPARK_FN u16 dense_half(float x) {
    const u16 nearest = to_finite_half(x);
    return x > 0.0f && nearest == 0 ? (u16)1 : nearest;
}

#endif
