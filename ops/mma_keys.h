// Products of quantised keys with queries on tensor cores, 16 keys and blocks of four queries at a time: what
// matrix_keys.h is for AMD's matrix cores, for waves of 32 lanes and the registers of mma.
//
// A score is step * sum(s u b) + m * sum over kept(s b) + a * sum over pruned(s b), summed over digits, with u the
// codes, spread over the channels and 0 for pruned ones, s the signs and b a digit of the query. All three are derived
// from products of unsigned bytes with signed ones. With n = 255 for negative channels and 0 for others, k likewise for
// kept ones:
//
//   F1 = sum((u xor n) b), F2 = sum(n b), F3 = sum((k xor n) b), B = sum(b)
//
// Then sum(s u b) = F1 - F2, sum over kept(s b) = (F3 - F2) / 255, and over pruned = B - (F2 + F3) / 255.
//
// Queries are the rows of a product and keys its columns, eight at a time. Lane l has a fourth of a key, fourth l % 4
// of column l / 4, as OWN octets; and of the products those of rows l / 4 and l / 4 + 8 with two columns. Row l / 4
// belongs to query l / 4 % 4. Of its three digits, part l / 16 = 0 has the highest in row l / 4 and the next in row
// l / 4 + 8, part 1 the lowest in row l / 4 + 8, and zeros in the other. So a lane's two rows make 256 * first +
// second, exactly, and two lanes a score.
//
// Columns are keys in an order in which lane l has the products of keys 4 * (l % 4) to 4 * (l % 4) + 3, as weights of
// values need them.
#ifndef SPARK_MMA_KEYS_H
#define SPARK_MMA_KEYS_H

#include "digits.h"
#include "mma_rows.h"

template <u32 OCTETS, u32 BLOCKS, u32 KEY_BITS>
struct MatrixKeys {
    SPARK_CONSTANT u32 OWN = OCTETS / 4;

    const SparkCall& call;
    const KeyLayout layout;
    const u32 group, part;      // fourth of a key; which of the digits
    const Shared<Quad> factors; // of each key, as bits

    u32 digits[BLOCKS][OWN][4];
    int digit_sum[BLOCKS]; // 255 B
    float unit[BLOCKS]; // of the lane's digits, times scale, to base 2
    u32 existing;       // bits of the lane's channels that the head has

    SPARK_FN MatrixKeys(const SparkCall& call, const MatrixRows& rows)
        : call(call), layout(call), group(MatrixLanes::group()), part(MatrixLanes::part()), factors(rows.factors()) {
        existing = 0;
        SPARK_UNROLL
        for (u32 n = 0; n < OWN; ++n) {
            if (8 * (OWN * group + n) < call.head_dim) existing |= 0xffu << 8 * n;
        }
        existing = anew(existing);
    }

    // Sets the query of block `b` for the lane's row: D numbers in LDS from `first` on, zeros unless it `exists`.
    SPARK_FN void set_query(u32 b, const Shared<float>& queries, u32 first, bool exists) {
        const u32 d = call.head_dim;
        float most = greatest_channel(queries, first, 8 * OWN * group, 8 * OWN * (group + 1), d, exists);
        most = greatest(most, shuffle_xor(most, 1));
        most = greatest(most, shuffle_xor(most, 2));
        const float factor = digit_factor(most);
        u32 total = 0;
        SPARK_UNROLL
        for (u32 n = 0; n < OWN; ++n) {
            const u32 octet = OWN * group + n;
            SPARK_UNROLL
            for (u32 w = 0; w < 2; ++w) {
                u32 upper = 0, lower = 0;
                SPARK_UNROLL
                for (u32 k = 0; k < 4; ++k) {
                    const bool own = exists && 8 * octet < d;
                    const float q = own ? queries.load(first + 8 * octet + 4 * w + k) : 0.0f;
                    const u32 all = digits_of(q * factor);
                    const u32 one = part == 0 ? all >> 16 & 0xff : 0;
                    const u32 other = part == 0 ? all >> 8 & 0xff : all & 0xff;
                    upper |= one << 8 * k;
                    lower |= other << 8 * k;
                    total += 256 * digit_value(one) + digit_value(other);
                }
                digits[b][n][2 * w] = upper;
                digits[b][n][2 * w + 1] = lower;
            }
        }
        total += shuffle_xor(total, 1);
        total += shuffle_xor(total, 2);
        digit_sum[b] = 255 * (int)total;
        unit[b] = (part == 0 ? 256.0f : 1.0f) * (most / DIGIT_STEPS) * (call.scale * LOG2_E);
    }

    // OWN bytes of LDS from `byte` on, which are the lane's fourth of a plane that starts at a multiple of four.
    SPARK_FN u32 plane(u32 byte) const {
        // Reads past a plane's last octet, where there are no digits and no slots.
        const u32 at = byte + OWN * group;
        if (call.head_dim % (8 * OWN) == 0) return OWN == 4 ? Shared<u32>(at).load(0) : Shared<u16>(at).load(0);
        SPARK_NOTE("odd heads");
        u32 bits = 0;
        SPARK_UNROLL
        for (u32 n = 0; n < OWN; ++n) bits |= (u32)Shared<u8>(at).load(n) << 8 * n;
        return bits;
    }

    // A mask without the channels that have no slot, of which `slot` are before it: they read as pruned, in rows from a
    // host that mark too many.
    SPARK_FN u32 limited(u32 mask, u32 slot) const {
        u32 first = 0;
        SPARK_ROLLED
        for (u32 k = 0; k < 32; ++k) {
            if ((mask >> k & 1) && slot < call.kept) {
                first |= 1u << k;
                slot += 1;
            }
        }
        return first;
    }

    // All ones in the bytes of a word whose bit of `nibble`, below 16, is set.
    SPARK_FN static u32 widened(u32 nibble) { return permute_bytes(nibble * 0x10204080, 0, 0xba98); }

    // Adds the products of key `row` of the tile and the queries' digits: F1 to F3.
    SPARK_FN void multiply(const MatrixRows& rows, u32 row, MatrixCounts (&f)[BLOCKS][3]) const {
        const u32 begin = rows.key(row);
        u32 mask = plane(begin) & existing;
        const u32 sign_bits = plane(begin + layout.mask_bytes);
        const u32 kept = popcount(mask);
        const u32 neighbour = shuffle_xor(kept, 1), half = kept + neighbour, other = shuffle_xor(half, 2);
        u32 slot = (group & 1 ? neighbour : 0) + (group & 2 ? other : 0);
        if (SPARK_UNLIKELY(vote(half + other > call.kept))) {
            SPARK_NOTE("rare");
            mask = limited(mask, slot);
            slot = slot < call.kept ? slot : call.kept;
        }
        // In units of codes, from the start of LDS.
        u32 at = (begin + layout.codes_at) * (8 / KEY_BITS) + slot;
        const Shared<u32> words(0);
        SPARK_UNROLL
        for (u32 n = 0; n < OWN; ++n) {
            const u32 word = at * KEY_BITS / 32, shift = at * KEY_BITS;
            const u32 w0 = words.load(word), w1 = words.load(word + 1);
            u32 low = funnel_right(w1, w0, shift), high;
            if constexpr (KEY_BITS == 8) {
                high = funnel_right(words.load(word + 2), w1, shift);
            } else if (call.key_companded) {
                SPARK_NOTE("companded");
                expand_codes(low, low, high);
            } else {
                const u32 even = low & 0x0f0f0f0f, odd = low >> 4 & 0x0f0f0f0f;
                low = permute_bytes(even, odd, 0x5140);
                high = permute_bytes(even, odd, 0x7362);
            }
            // A bit of the mask in each nibble, and the number of those up to and before each.
            const u32 byte = mask >> 8 * n & 0xff;
            u32 bits = byte * 0x1001 & 0x000f000f;
            bits = bits * 0x41 & 0x03030303;
            bits = anew(bits * 0x9 & 0x11111111);
            const u32 counts = bits * 0x11111111, before = counts - bits;
            at += counts >> 28;
            const u32 signs = sign_bits >> 8 * n & 0xff;
            const u32 g[2] = {widened(signs & 15), widened(signs >> 4)};
            const u32 k[2] = {permute_bytes(bits << 3, bits << 7, 0x9d8c), permute_bytes(bits << 3, bits << 7, 0xbfae)};
            const u32 codes[2] = {(permute_bytes(low, high, before) & k[0]) ^ g[0],
                                  (permute_bytes(low, high, before >> 16) & k[1]) ^ g[1]};
            const u32 kinds[2] = {k[0] ^ g[0], k[1] ^ g[1]};
            SPARK_UNROLL
            for (u32 b = 0; b < BLOCKS; ++b) {
                mma_i8(digits[b][n], codes, f[b][0]);
                mma_i8(digits[b][n], g, f[b][1]);
                mma_i8(digits[b][n], kinds, f[b][2]);
            }
        }
    }

    // Writes each key's step, m / 255 and a / 255, a lane each.
    SPARK_FN void share_factors(const MatrixRows& rows) const {
        const float a = call.recover ? 1.0f / 255.0f : 0.0f;
        const u32 row = lane() % MATRIX_KEYS;
        const Shared<u16> halves(rows.key(row) + layout.scalars_at);
        const float step = finite_half(halves.load(2)), m = finite_half(halves.load(1)) * (1.0f / 255.0f);
        const Quad own = {bits_of(step), bits_of(m), bits_of(finite_half(halves.load(0)) * a), 0};
        if (lane() < MATRIX_KEYS) factors.store(row, own);
    }

    // Scores to base 2 of the tile, for the lane's query and keys 4 group to 4 group + 3.
    SPARK_FN void score(const MatrixRows& rows, float (&scores)[BLOCKS][4]) const {
        share_factors(rows);
        SPARK_UNROLL
        for (u32 half = 0; half < 2; ++half) {
            MatrixCounts f[BLOCKS][3];
            SPARK_UNROLL
            for (u32 b = 0; b < BLOCKS; ++b) {
                SPARK_UNROLL
                for (u32 k = 0; k < 3; ++k) f[b][k] = MatrixCounts{0, 0, 0, 0};
            }
            multiply(rows, MatrixLanes::row_of(half), f);
            if (half == 0) wave_barrier();
            SPARK_UNROLL
            for (u32 e = 0; e < 2; ++e) {
                const Quad x = factors.load(4 * group + 2 * half + e);
                const float step = float_of(x[0]), m = float_of(x[1]), a = float_of(x[2]);
                SPARK_UNROLL
                for (u32 b = 0; b < BLOCKS; ++b) {
                    const int f1 = 256 * f[b][0][e] + f[b][0][2 + e], f2 = 256 * f[b][1][e] + f[b][1][2 + e];
                    const int f3 = 256 * f[b][2][e] + f[b][2][2 + e];
                    const float pruned = a * (float)(digit_sum[b] - f2 - f3);
                    const float dot = fused(step, (float)(f1 - f2), fused(m, (float)(f3 - f2), pruned)) * unit[b];
                    const float both = dot + shuffle_xor(dot, 16);
                    scores[b][2 * half + e] = least(greatest(both, -FLOAT_MAX), FLOAT_MAX);
                }
            }
        }
    }
};

#endif
