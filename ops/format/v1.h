// Row format 1, as defined in docs/format.md: positions of the fields, and decoding of eight channels of a row at a
// time. Format 2 is the same but for what the call says and format/v2.h has; format/v3.h has keys in planes.
#ifndef SPARK_FORMAT_V1_H
#define SPARK_FORMAT_V1_H

#ifndef SPARK_FORMAT_V3_H
#error "include rows.h instead: compilers at run time know no parent folders"
#endif

SPARK_CONSTANT u32 VALUE_GROUP = 32;

SPARK_FN u32 code_bytes(u32 bits, u32 n) { return bits == 16 ? 2 * n : bits == 8 ? n : (n + 1) / 2; }

// Of rows in planes only `words` has a meaning.
struct KeyLayout {
    u32 mask_bytes; // of the keep mask, and of the sign plane after it
    u32 scalars_at; // float16 a, then zero, or m and step
    u32 codes_at;
    u32 words; // that hold fields; a row may be longer

    SPARK_FN explicit KeyLayout(const SparkCall& call)
        : mask_bytes(call.head_dim / 8), scalars_at(2 * mask_bytes),
          codes_at(scalars_at + (call.key_bits == 16 ? 4 : 6)) {
        const u32 bytes = call.key_planes ? planes_of(call).bytes : codes_at + code_bytes(call.key_bits, call.kept);
        words = (bytes + 3) / 4;
    }
};

struct ValueLayout {
    u32 codes_at;
    u32 words;

    SPARK_FN explicit ValueLayout(const SparkCall& call)
        : codes_at(call.value_bits == 16 ? 0 : 4 * call.value_groups),
          words((codes_at + code_bytes(call.value_bits, call.head_dim) + 3) / 4) {}
};

SPARK_CONSTANT u32 KEY_SLACK_WORDS = SPARK_KEY_SLACK_WORDS, PLANE_SLACK_WORDS = SPARK_PLANE_SLACK_WORDS;

// Key rows that a kernel meets: those with masks, those in planes, or either, as the call says. Kernels for either need
// more registers.
enum RowKind { MASKED, IN_PLANES, ANY_ROWS };

template <RowKind KIND>
SPARK_FN bool in_planes(const SparkCall& call) {
    return KIND == ANY_ROWS ? call.key_planes : KIND == IN_PLANES;
}

// Eight channels of a key row that is in LDS from byte `row` on: kept channels as stored, pruned ones as their sign
// times a. In units of c where keys are quantised; else `scales` is the head's c, in LDS.
template <u32 OCTETS, RowKind KIND>
struct KeyReader {
    u32 octet;
    u32 below[OCTETS / 4 > 0 ? OCTETS / 4 : 1]; // of the mask's words, the channels before the octet

    SPARK_FN explicit KeyReader(u32 octet) : octet(octet) {
        SPARK_UNROLL
        for (u32 w = 0; w < OCTETS / 4; ++w) {
            below[w] = w < octet / 4 ? 0xffffffffu : w == octet / 4 ? (1u << 8 * (octet % 4)) - 1 : 0;
        }
    }

    // Channels before the octet that the mask of the row marks.
    SPARK_FN u32 kept_before(u32 row) const {
        const Shared<u32> words(row);
        u32 kept = 0;
        SPARK_UNROLL
        for (u32 w = 0; w < OCTETS / 4; ++w) kept += popcount(words.load(w) & below[w]);
        return kept;
    }

    // The row of the key at `position`.
    SPARK_FN void read(const SparkCall& call, const KeyLayout& layout, u32 row, u32 position,
                       const Shared<float>& scales, float (&x)[8]) const {
        if (KIND == IN_PLANES) return read_planes(call, row, octet, x);
        if (in_planes<KIND>(call)) return read_planes_in_turn(call, row, octet, x);
        const Shared<u16> halves(row);
        const Shared<u8> bytes(row);
        u32 slot = kept_before(row);
        u32 mask = bytes.load(octet);
        const u32 signs = bytes.load(layout.mask_bytes + octet);
        if (slot + popcount(mask) > call.kept) {
            // Rows from a host may mark more channels than there are slots: the surplus reads as pruned.
            SPARK_NOTE("rare");
            slot = slot < call.kept ? slot : call.kept;
            u32 room = call.kept - slot, first = 0;
            for (u32 k = 0; k < 8; ++k) {
                if ((mask >> k & 1) && room > 0) {
                    first |= 1u << k;
                    room -= 1;
                }
            }
            mask = first;
        }
        const float a = call.recover ? finite_half(halves.load(layout.scalars_at / 2)) : 0.0f;
        if (call.key_bits == 16) {
            SPARK_NOTE("key16");
            u32 at = layout.codes_at / 2 + slot;
            SPARK_UNROLL
            for (u32 k = 0; k < 8; ++k) {
                const float kept = finite_half(halves.load(at));
                const bool keep = mask >> k & 1;
                at += keep;
                const float lost = float_of(bits_of(a * scales.load(8 * octet + k)) ^ (signs >> k) << 31);
                x[k] = keep ? kept : lost;
            }
        } else {
            read_codes(call, layout, row, slot, mask, signs, a, x);
        }
        if (call.recover > SPARK_RECOVER_MEAN) draw_pruned(call, position, mask, x);
    }

  private:
    // With the codes of the octet from `slot` on.
    SPARK_FN void read_codes(const SparkCall& call, const KeyLayout& layout, u32 row, u32 slot, u32 mask, u32 signs,
                             float a, float (&x)[8]) const {
        const Shared<u32> words(row);
        const Shared<u16> halves(row);
        SPARK_NOTE("quantised keys");
        const float m = finite_half(halves.load(layout.scalars_at / 2 + 1));
        const float step = finite_half(halves.load(layout.scalars_at / 2 + 2));
        const u32 bit = 8 * layout.codes_at + call.key_bits * slot, word = bit / 32;
        // The next eight codes in (high:low).
        const u32 w0 = words.load(word), w1 = words.load(word + 1);
        u32 low = funnel_right(w1, w0, bit % 32), high = 0, bits = call.key_bits;
        if (bits == 8) {
            SPARK_NOTE("key8");
            high = funnel_right(words.load(word + 2), w1, bit % 32);
        } else if (call.key_companded) {
            SPARK_NOTE("companded");
            expand_codes(low, low, high);
            bits = 8;
        }
        const u32 code = (1u << bits) - 1;
        SPARK_UNROLL
        for (u32 k = 0; k < 8; ++k) {
            const bool keep = mask >> k & 1;
            const float kept = fused(step, (float)(low & code), m);
            const u32 shift = keep ? bits : 0;
            low = funnel_right(high, low, shift);
            high >>= shift;
            x[k] = float_of(bits_of(keep ? kept : a) ^ (signs >> k) << 31);
        }
    }

    // Replaces the mean magnitude of pruned channels by drawn ones. Rarely wanted, so a single copy in a loop through
    // which channels rotate: registers cannot be indexed.
    SPARK_FN void draw_pruned(const SparkCall& call, u32 position, u32 mask, float (&x)[8]) const {
        SPARK_NOTE("rare");
        SPARK_ROLLED
        for (u32 k = 0; k < 8; ++k) {
            const float own = x[0], factor = mask >> k & 1 ? 1.0f : drawn(call.recover, position, 8 * octet + k);
            SPARK_UNROLL
            for (u32 n = 1; n < 8; ++n) x[n - 1] = x[n];
            x[7] = own * factor;
        }
    }
};

// Zeroes `words` words of LDS from byte `row` on, by one wave.
SPARK_FN void clear_row(u32 row, u32 words) {
    const Shared<u32> to(row);
    for (u32 i = lane(); i < words; i += WAVE) to.store(i, 0);
    wave_barrier();
}

// Eight channels of a value row, loaded by `fetch` and decoded by `read`, so that several rows can be in flight.
struct ValueOctet {
    u32 words[4];
    u32 pair; // float16 scale, float16 minimum

    SPARK_FN void fetch(const SparkCall& call, const ValueLayout& layout, const void* row, u32 octet) {
        const u8* codes = (const u8*)row + layout.codes_at;
        if (call.value_bits == 16) {
            SPARK_NOTE("value16");
            load_words(codes + 16 * octet, words);
            pair = 0;
        } else if (call.value_bits == 8) {
            SPARK_NOTE("value8");
            u32 w[2];
            load_words(codes + 8 * octet, w);
            words[0] = w[0];
            words[1] = w[1];
            pair = load((const u32*)row);
        } else {
            SPARK_NOTE("value4");
            words[0] = load((const u32*)(codes + 4 * octet));
            // A branch: nvcc has no register for the choice of an address.
            if (call.value_groups > 1) {
                pair = load((const u32*)row + octet / (VALUE_GROUP / 8));
            } else {
                pair = load((const u32*)row);
            }
        }
    }

    SPARK_FN void read(const SparkCall& call, float (&v)[8]) const {
        if (call.value_bits == 16) {
            SPARK_NOTE("value16");
            SPARK_UNROLL
            for (u32 k = 0; k < 8; ++k) v[k] = finite_half(words[k / 2] >> 16 * (k % 2) & 0xffff);
            return;
        }
        const float scale = finite_half(pair & 0xffff), minimum = finite_half(pair >> 16);
        if (call.value_bits == 8) {
            SPARK_NOTE("value8");
            SPARK_UNROLL
            for (u32 k = 0; k < 8; ++k) v[k] = fused(scale, (float)(words[k / 4] >> 8 * (k % 4) & 0xff), minimum);
        } else {
            SPARK_NOTE("value4");
            SPARK_UNROLL
            for (u32 k = 0; k < 8; ++k) v[k] = fused(scale, (float)(words[0] >> 4 * k & 0xf), minimum);
        }
    }
};

#endif
