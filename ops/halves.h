// Tiles of keys and values in float16, which prompts on matrix cores multiply: copied from the workspace where they are
// there, decoded from rows else.
#ifndef SPARK_HALVES_H
#define SPARK_HALVES_H

#include "rounded.h"

// Whether the workspace has all keys from `t` to below `end`.
SPARK_FN bool has_halves(const SparkCall& call, const Sequence& s, u32 t, u32 end) {
    return t >= s.past ? call.rounded_keys > 0 : call.unpacked > 0 && end <= s.past;
}

// Copies those key rows from `t` to below `end` that are to be decoded to LDS.
template <u32 OCTETS, u32 KEYS>
SPARK_FN void stage_rows(const Source<OCTETS, KEYS>& source, u32 t, u32 end) {
    if (!has_halves(source.call, source.s, t, end)) source.stage(t, end);
}

// Calls `put(row, octet, quad)` for the keys of the tile from `t` on, below `end`, which the workspace has, by all
// threads of the block.
template <u32 OCTETS, u32 KEYS, class Put>
SPARK_FN void copy_keys(const Source<OCTETS, KEYS>& source, u32 t, u32 end, Put put) {
    const SparkCall& call = source.call;
    const u32 past = source.s.past, octets = call.head_dim / 8, head = source.kv_head;
    const bool fresh = t >= past;
    const u8* all = fresh ? rounded_keys(call, block_z(), head) : unpacked_keys(call, block_z(), head);
    // Within 32 bits: src/gpu/plan refuses more new tokens, and bounds the unpacked ones.
    const u32 first = (t - (fresh ? past : first_unpacked(call, source.s))) * octets;
    const u32 own = anew(thread());
    SPARK_UNROLL
    for (u32 part = 0; part < KEYS * OCTETS; part += PREFILL_THREADS) {
        const u32 n = part + own, row = n / OCTETS, octet = n % OCTETS;
        Quad key = {0, 0, 0, 0};
        if (octet < octets && t + row < end) key = load((const Quad*)all + (first + row * octets + octet));
        put(row, octet, key);
    }
}

// An octet of the values of the keys at position `at`, which is below `end`, and at the next one: each channel of both
// side by side. What the second one has from `end` on is finite.
template <u32 OCTETS, u32 KEYS>
SPARK_FN void value_pairs(const Source<OCTETS, KEYS>& source, u32 at, u32 end, u32 octet, u32 (&pairs)[8]) {
    const SparkCall& call = source.call;
    const u32 past = source.s.past;
    const bool copied = at >= past && call.scalar == SPARK_FLOAT16, unpacked = call.unpacked > 0 && at + 1 < past;
    if (!copied && !unpacked) {
        float v[2][8];
        source.value(at, end, octet, v);
        SPARK_UNROLL
        for (u32 k = 0; k < 8; ++k) pairs[k] = halves_of(v[0][k], v[1][k]);
        return;
    }
    u32 first[4], second[4];
    if (unpacked) {
        const u16* all = (const u16*)unpacked_values(call, block_z(), source.kv_head);
        const u32 own = (at - first_unpacked(call, source.s)) * call.head_dim + 8 * octet;
        load_words(all + own, first);
        load_words(all + (own + call.head_dim), second);
    } else {
        const u32 i = at - past, next = at + 1 < end ? i + 1 : i;
        const u16* from = (const u16*)call.value.data + 8 * octet;
        load_words(from + token_at(call.value, source.s.index, source.kv_head, i), first);
        load_words(from + token_at(call.value, source.s.index, source.kv_head, next), second);
    }
    u32 odd = 0;
    SPARK_UNROLL
    for (u32 k = 0; k < 8; ++k) {
        pairs[k] = k % 2 ? high_halves(first[k / 2], second[k / 2]) : low_halves(first[k / 2], second[k / 2]);
        odd |= (pairs[k] & 0x7c007c00) + 0x04000400;
    }
    if (SPARK_UNLIKELY(odd & 0x80008000)) {
        SPARK_UNROLL
        for (u32 k = 0; k < 8; ++k) {
            pairs[k] = halves_of(finite_half(pairs[k] & 0xffff), finite_half(pairs[k] >> 16));
        }
    }
}

#endif
