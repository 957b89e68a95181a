// Row format 2 where it differs from format 1, as defined in docs/format.md: what codes of keys stand for, and the
// rotation of values. src/format/v2 is the reference; rotated numbers are the same to the last bit.
#ifndef SPARK_FORMAT_V2_H
#define SPARK_FORMAT_V2_H

#ifndef SPARK_NUMBERS_H
#error "include rows.h instead: compilers at run time know no parent folders"
#endif

// Replaces eight codes of four bits by what they stand for, in 255ths of the range of a row, a byte each: those of the
// low half in `low`, of the high half in `high`.
SPARK_FN void expand_codes(u32 codes, u32& low, u32& high) {
    // 0, 4, 12, 23, 35, 49, 65, 81, 99, 119, 139, 160, 182, 206, 230, 255
    look_up(codes, {0x170c0400, 0x51413123, 0xa08b7763, 0xffe6ceb6}, low, high);
}

// The code that stands for the number nearest to `x`, of two the lower one.
SPARK_FN u32 nearest_code(float x) {
    const float between[15] = {2.0f,  8.0f,   17.5f,  29.0f,  42.0f,  57.0f,  73.0f, 90.0f,
                               109.0f, 129.0f, 149.5f, 171.0f, 194.0f, 218.0f, 242.5f};
    u32 code = 0;
    SPARK_UNROLL
    for (u32 n = 0; n < 15; ++n) code += x > between[n];
    return code;
}

// Changes the signs of those channels whose bit is set: the first 256 bits of the fraction of pi.
SPARK_FN void change_signs(float (&x)[CHUNKS]) {
    const u32 signs[8] = {0x886a3f24, 0xd308a385, 0x2e8a1913, 0x44737003,
                          0x223809a4, 0xd0319f29, 0x98fa2e08, 0x896c4eec};
    SPARK_UNROLL
    for (u32 c = 0; c < CHUNKS; ++c) {
        // Of 32 lanes.
        u32 word = signs[c * WAVE / 32];
        if (WAVE == 64 && lane() >= 32) word = signs[c * WAVE / 32 + WAVE / 64];
        x[c] = float_of(bits_of(x[c]) ^ word >> lane() % 32 << 31);
    }
}

// The orthonormal Walsh-Hadamard transform of the largest power of two of D channels, then of the largest one of those
// that are left, and so on; its own inverse. Lanes without channels get no sensible numbers.
SPARK_FN void transform(u32 d, float (&x)[CHUNKS]) {
    SPARK_UNROLL
    for (u32 stage = 0; stage < 8; ++stage) {
        const u32 half = 1u << stage;
        float other[CHUNKS];
        SPARK_UNROLL
        for (u32 c = 0; c < CHUNKS; ++c) {
            other[c] = half < WAVE ? shuffle_xor(x[c], half) : x[(c ^ half / WAVE) % CHUNKS];
        }
        SPARK_UNROLL
        for (u32 c = 0; c < CHUNKS; ++c) {
            // The highest bit in which the channel and D differ is the size of its block: blocks come in order of their
            // sizes.
            const u32 j = c * WAVE + lane();
            const float own = j & half ? -x[c] : x[c];
            x[c] = (d ^ j) >= 2 * half ? other[c] + own : x[c];
        }
    }
    SPARK_UNROLL
    for (u32 c = 0; c < CHUNKS; ++c) {
        // 1 / sqrt(size), of a power of two.
        const u32 log = (bits_of((float)(d ^ (c * WAVE + lane()))) >> 23) - 127;
        x[c] *= float_of((127 - log / 2) << 23) * (log % 2 ? 0.70710677f : 1.0f);
    }
}

// Rotates the D channels of a head, which a wave shares.
SPARK_FN void rotate(u32 d, float (&x)[CHUNKS]) {
    change_signs(x);
    transform(d, x);
}

// Takes back what `rotate` does.
SPARK_FN void rotate_back(u32 d, float (&x)[CHUNKS]) {
    transform(d, x);
    change_signs(x);
}

#endif
