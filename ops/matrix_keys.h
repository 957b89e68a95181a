// Products of quantised keys with queries on matrix cores, 16 keys and blocks of four queries at a time.
//
// A lane has a fourth of a key, OWN octets. With u the codes, spread over the channels and 0 for pruned ones, s the
// signs and b a digit of the query, a score is step * sum(s u b) + m * sum over kept(s b) + a * sum over pruned(s b),
// summed over digits. All three are derived from products of bytes:
//
//   F1 = sum((s (u - 127.5) - 0.5) b), F2 = sum((-127.5 s - 0.5) b), F3 = sum((127.5 s t - 0.5) b), B = sum(b)
//
// with t = 1 for kept and -1 for pruned channels: the bytes of F2 are 0x80 and 0x7f, those of F1 and F3 are they xor u
// and xor 0xff. Then sum(s u b) = F1 - F2, sum over kept(s b) = (F3 - F2) / 255, and over pruned = -(F2 + F3 + B) /
// 255. A query is three signed bytes a channel, nearly as exact as a float32 of the size of its greatest: columns 4 c +
// p of the product are the digits p of query c, so every sum is exact, and the fourth column is idle.
#ifndef SPARK_MATRIX_KEYS_H
#define SPARK_MATRIX_KEYS_H

#include "digits.h"
#include "matrix_rows.h"

template <u32 OCTETS, u32 BLOCKS, u32 KEY_BITS>
struct MatrixKeys {
    SPARK_CONSTANT u32 OWN = OCTETS / 4;

    const SparkCall& call;
    const KeyLayout layout;
    const u32 row, group, part; // key and fourth of it; digit of the lane's column
    // LDS, see MatrixRows.
    const Shared<Quad> masks;
    const Shared<u64> signs;
    const u32 staged;
    const Shared<Quad> factors; // of each key, as bits

    u32 digits[BLOCKS][OWN][2];
    int digit_sum[BLOCKS];
    float unit[BLOCKS]; // of a digit, times scale, to base 2

    SPARK_FN MatrixKeys(const SparkCall& call, const MatrixRows& rows)
        : call(call), layout(call), row(lane() % 16), group(lane() / 16), part(lane() % 4), masks(rows.region),
          signs(rows.region + 4 * 1024), staged(rows.staged), factors(rows.factors) {
        fill_tables();
        clear_row(staged, MatrixRows::key_words(call, layout));
        block_barrier();
    }

    SPARK_FN void fill_tables() const {
        for (u32 byte = thread(); byte < 256; byte += DECODE_WAVES * WAVE) {
            u32 selectors[2] = {0, 0}, kept[2] = {0, 0}, n = 0;
            SPARK_UNROLL
            for (u32 k = 0; k < 8; ++k) {
                const bool keep = byte >> k & 1;
                // Nibbles are separated: even ones in the low word, odd ones in the high word.
                const u32 at = KEY_BITS == 8 || call.key_companded ? n : n / 2 + n % 2 * 4;
                selectors[k / 4] |= (keep ? at : PICK_ZERO) << 8 * (k % 4);
                kept[k / 4] |= (keep ? 0xffu : 0u) << 8 * (k % 4);
                n += keep;
            }
            masks.store(byte, Quad{selectors[0], selectors[1], kept[0], kept[1]});
            signs.store(byte, ((u64)kept[1] << 32 | kept[0]) ^ 0x8080808080808080);
        }
    }

    // Sets the query of block `b` for the lane's column: D numbers in LDS from `first` on, zeros unless it `exists`.
    SPARK_FN void set_query(u32 b, const Shared<float>& queries, u32 first, bool exists) {
        const u32 d = call.head_dim;
        float most = greatest_channel(queries, first, 8 * OWN * group, 8 * OWN * (group + 1), d, exists);
        most = greatest(most, shuffle_xor(most, 16));
        most = greatest(most, shuffle_xor(most, 32));
        const float factor = digit_factor(most);
        u32 total = 0;
        SPARK_UNROLL
        for (u32 n = 0; n < OWN; ++n) {
            const u32 octet = OWN * group + n;
            const bool own = exists && 8 * octet < d;
            SPARK_UNROLL
            for (u32 w = 0; w < 2; ++w) {
                u32 word = 0;
                SPARK_ROLLED
                for (u32 k = 0; k < 4; ++k) {
                    const float q = own ? queries.load(first + 8 * octet + 4 * w + k) : 0.0f;
                    const u32 all = digits_of(q * factor);
                    const u32 digit = part < 3 ? all >> 8 * (2 - part) & 0xff : 0;
                    word |= digit << 8 * k;
                    total += digit_value(digit);
                }
                digits[b][n][w] = word;
            }
        }
        total += shuffle_xor(total, 16);
        total += shuffle_xor(total, 32);
        digit_sum[b] = (int)total;
        const float size = part == 0 ? 65536.0f : part == 1 ? 256.0f : part == 2 ? 1.0f : 0.0f;
        unit[b] = size * (most / DIGIT_STEPS) * (call.scale * LOG2_E);
    }

    // A mask without the channels that have no slot, which read as pruned, for rows from a host that mark too many.
    SPARK_FN static u32 limited(u32 mask, u32 room) {
        u32 first = 0;
        SPARK_ROLLED
        for (u32 k = 0; k < 8; ++k) {
            if ((mask >> k & 1) && room > 0) {
                first |= 1u << k;
                room -= 1;
            }
        }
        return first;
    }

    // The products of the lane's key and the queries' digits: F1 to F3 of four keys, see above.
    SPARK_FN void multiply(MatrixCounts (&f)[BLOCKS][3]) const {
        SPARK_UNROLL
        for (u32 b = 0; b < BLOCKS; ++b) {
            SPARK_UNROLL
            for (u32 k = 0; k < 3; ++k) f[b][k] = MatrixCounts{0, 0, 0, 0};
        }
        const u32 begin = staged + 4 * layout.words * row;
        // Reads past a plane's last octet, where there are no digits and no slots.
        const Shared<u8> own_masks(begin + OWN * group), own_signs(begin + layout.mask_bytes + OWN * group);
        u32 mask[OWN], kept = 0;
        SPARK_UNROLL
        for (u32 n = 0; n < OWN; ++n) {
            const u32 byte = own_masks.load(n);
            mask[n] = 8 * (OWN * group + n) < call.head_dim ? byte : 0;
            kept += popcount(mask[n]);
        }
        const u32 neighbour = shuffle_xor(kept, 16), half = kept + neighbour, other = shuffle_xor(half, 32);
        u32 slot = (group & 1 ? neighbour : 0) + (group & 2 ? other : 0);
        if (vote(half + other > call.kept)) {
            SPARK_NOTE("rare");
            u32 before = slot;
            slot = slot < call.kept ? slot : call.kept;
            SPARK_UNROLL
            for (u32 n = 0; n < OWN; ++n) {
                const u32 all = popcount(mask[n]);
                mask[n] = limited(mask[n], before < call.kept ? call.kept - before : 0);
                before += all;
            }
        }
        // In units of codes, from the start of LDS.
        u32 at = (begin + layout.codes_at) * (8 / KEY_BITS) + slot;
        const Shared<u32> words(0);
        SPARK_UNROLL
        for (u32 n = 0; n < OWN; ++n) {
            const u32 word = at * KEY_BITS / 32, shift = at * KEY_BITS % 32;
            const u32 w0 = words.load(word), w1 = words.load(word + 1);
            u32 low = funnel_right(w1, w0, shift), high;
            if constexpr (KEY_BITS == 8) {
                high = funnel_right(words.load(word + 2), w1, shift);
            } else if (call.key_companded) {
                SPARK_NOTE("companded");
                expand_codes(low, low, high);
            } else {
                high = low >> 4 & 0x0f0f0f0f;
                low &= 0x0f0f0f0f;
            }
            at += popcount(mask[n]);
            const Quad entry = masks.load(mask[n]);
            const u64 both = signs.load(own_signs.load(n));
            const u32 g[2] = {(u32)both, (u32)(both >> 32)};
            const u32 codes[2] = {pick_bytes(high, low, entry[0]) ^ g[0], pick_bytes(high, low, entry[1]) ^ g[1]};
            const u32 kinds[2] = {entry[2] ^ g[0], entry[3] ^ g[1]};
            SPARK_UNROLL
            for (u32 b = 0; b < BLOCKS; ++b) {
                matrix_i8(codes, digits[b][n], f[b][0]);
                matrix_i8(g, digits[b][n], f[b][1]);
                matrix_i8(kinds, digits[b][n], f[b][2]);
            }
        }
    }

    // Writes each key's step, m / 255 and a / -255, by the lanes that have the key.
    SPARK_FN void share_factors() const {
        const Shared<u16> halves(staged + 4 * layout.words * row + layout.scalars_at);
        const float a = call.recover ? -1.0f / 255.0f : 0.0f;
        if (group == 0) {
            const float step = finite_half(halves.load(2)), m = finite_half(halves.load(1)) * (1.0f / 255.0f);
            factors.store(row, Quad{bits_of(step), bits_of(m), bits_of(finite_half(halves.load(0)) * a), 0});
        }
    }

    // Scores to base 2 of the staged keys, for the lane's column and keys 4 group to 4 group + 3.
    SPARK_FN void score(const MatrixRows&, float (&scores)[BLOCKS][4]) const {
        share_factors();
        MatrixCounts f[BLOCKS][3];
        multiply(f);
        wave_barrier();
        SPARK_UNROLL
        for (u32 r = 0; r < 4; ++r) {
            const Quad x = factors.load(4 * group + r);
            const float step = float_of(x[0]), m = float_of(x[1]), a = float_of(x[2]);
            SPARK_UNROLL
            for (u32 b = 0; b < BLOCKS; ++b) {
                const int f1 = f[b][0][r], f2 = f[b][1][r], f3 = f[b][2][r];
                const float pruned = a * (float)(f2 + f3 + digit_sum[b]);
                const float dot = fused(step, (float)(f1 - f2), fused(m, (float)(f3 - f2), pruned));
                scores[b][r] = least(greatest(sum_over(dot * unit[b], 4), -FLOAT_MAX), FLOAT_MAX);
            }
        }
    }
};

#endif
