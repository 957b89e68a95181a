// Row format 3: keys in a basis, in planes of codes of 8, 4 and 2 bits, as defined in docs/format.md.
// src/format/v3 is the reference; s may differ by the order of its sums.
#ifndef SPARK_FORMAT_V3_H
#define SPARK_FORMAT_V3_H

#ifndef SPARK_FORMAT_V2_H
#error "include rows.h instead: compilers at run time know no parent folders"
#endif

SPARK_CONSTANT u32 PLANE_CODES_AT = 2; // after s

// Where the codes of a row lie.
struct Planes {
    u32 eight, coded; // directions of 8 bits, of 8 or 4
    u32 kept;         // of all planes
    u32 fours_at, twos_at;
    u32 bytes; // of all fields

    SPARK_FN Planes(u32 eight, u32 four, u32 kept)
        : eight(eight), coded(eight + four), kept(kept), fours_at(PLANE_CODES_AT + eight),
          twos_at(fours_at + (four + 1) / 2), bytes(twos_at + (kept - coded + 3) / 4) {}
};

SPARK_FN Planes planes_of(const SparkCall& call) {
    return Planes(call.key_directions_8, call.key_directions_4, call.kept);
}

// The same, not to be kept in registers beside what rows of other formats need.
SPARK_FN Planes planes_anew(const SparkCall& call) {
    return Planes(same(anew(call.key_directions_8)), same(anew(call.key_directions_4)), same(anew(call.kept)));
}

// A 127th of the ranges of planes of 8, 4 and 2 bits, in scales of a row.
SPARK_CONSTANT float UNIT_OF_8 = 4.5f / 127.0f, UNIT_OF_4 = 2.73f / 127.0f, UNIT_OF_2 = 1.51f / 127.0f;

// The same of a direction's plane, with the scale s.
SPARK_FN float plane_unit(const Planes& planes, u32 j, float s) {
    const float unit = j < planes.eight ? UNIT_OF_8 : j < planes.coded ? UNIT_OF_4 : UNIT_OF_2;
    return j < planes.kept ? s * unit : 0.0f;
}

// The code for `x` 127ths of the range of direction `j`: the one whose level is nearest, of two the lower one.
SPARK_FN u32 plane_code(const Planes& planes, u32 j, float x) {
    if (j < planes.eight) return (u32)round_even(least(greatest(x, -127.0f), 127.0f) + 128.0f);
    // Half-way between levels.
    const float fours[15] = {-111.5f, -85.5f, -66.5f, -51.0f, -37.0f, -24.0f, -12.0f, 0.0f,
                             12.0f,   24.0f,  37.0f,  51.0f,  66.5f,  85.5f,  111.5f};
    u32 four = 0;
    SPARK_UNROLL
    for (u32 n = 0; n < 15; ++n) four += x > fours[n];
    const u32 two = (u32)(x > -82.5f) + (u32)(x > 0.0f) + (u32)(x > 82.5f);
    return j < planes.coded ? four : two;
}

// What codes of 4 bits stand for, in 127ths of the range, plus 128: a byte each.
struct LevelsOf4 {
    u32 words[4];

    // 1, 32, 53, 70, 84, 98, 110, 122, 134, 146, 158, 172, 186, 203, 224, 255; XOR `flip` in every four.
    SPARK_FN explicit LevelsOf4(u32 flip = 0)
        : words{0x46352001 ^ flip, 0x7a6e6254 ^ flip, 0xac9e9286 ^ flip, 0xffe0cbba ^ flip} {}
};
// The same of codes of 2 bits: 1, 90, 166, 255.
SPARK_CONSTANT u32 LEVELS_OF_2 = 0xffa65a01;

// The same of `code` of direction `j`, with 4 bits `four`.
SPARK_FN u32 plane_level(const Planes& planes, u32 j, u32 code, u32 four) {
    const u32 two = LEVELS_OF_2 >> (8 * code & 31) & 0xff;
    return j < planes.eight ? code : j < planes.coded ? four : two;
}

// The code of direction `j` in the row in LDS from byte `row` on; of one that is dropped any number.
SPARK_FN u32 stored_code(const Planes& planes, u32 row, u32 j) {
    const Shared<u8> bytes(row);
    const u32 four = j - planes.eight, two = j - planes.coded;
    u32 at = PLANE_CODES_AT + j, shift = 0, mask = 0xff;
    if (j >= planes.eight) at = planes.fours_at + four / 2, shift = 4 * (four % 2), mask = 0xf;
    if (j >= planes.coded) at = planes.twos_at + two / 4, shift = 2 * (two % 4), mask = 0x3;
    return bytes.load(j < planes.kept ? at : 0) >> shift & mask;
}

// The 32 bits of the row in LDS from byte `row` on that begin at bit `at`; its first ones where the row ends before.
SPARK_FN u32 row_bits(const Planes& planes, u32 row, u32 at) {
    const u32 from = at < 8 * planes.bytes ? at : 0;
    const Shared<u32> words(row);
    return funnel_right(words.load(from / 32 + 1), words.load(from / 32), from % 32);
}

// Eight codes of 2 bits, the low half of a word, as nibbles.
SPARK_FN u32 widened_pairs(u32 codes) {
    codes = (codes | codes << 8) & 0x00ff00ff;
    codes = (codes | codes << 4) & 0x0f0f0f0f;
    return (codes | codes << 2) & 0x33333333;
}

// Eight directions of a key row that is in LDS from byte `row` on, read as if all were of each plane: lanes whose
// directions are of other planes, or of two, do the same.
SPARK_FN void read_planes(const SparkCall& call, u32 row, u32 octet, float (&x)[8]) {
    SPARK_NOTE("planes");
    const Planes planes = planes_anew(call);
    const float s = finite_half(Shared<u16>(row).load(0));
    const u32 first = 8 * octet;
    const u32 eight_at = 8 * (PLANE_CODES_AT + first), four_at = 8 * planes.fours_at + 4 * (first - planes.eight);
    const u32 eight[2] = {row_bits(planes, row, eight_at), row_bits(planes, row, eight_at + 32)};
    u32 four[2], two[2];
    look_up(row_bits(planes, row, four_at), LevelsOf4().words, four[0], four[1]);
    const u32 twos = row_bits(planes, row, 8 * planes.twos_at + 2 * (first - planes.coded)) & 0xffff;
    look_up(widened_pairs(twos), {LEVELS_OF_2, 0, 0, 0}, two[0], two[1]);
    SPARK_UNROLL
    for (u32 k = 0; k < 8; ++k) {
        const u32 j = first + k, word = j < planes.eight ? eight[k / 4] : j < planes.coded ? four[k / 4] : two[k / 4];
        x[k] = ((float)(word >> 8 * (k % 4) & 0xff) - 128.0f) * plane_unit(planes, j, s);
    }
}

// The same, one direction after the other, in a loop through which they rotate, since registers cannot be indexed: for
// kernels that read rows of other formats too, and have no registers left.
SPARK_FN void read_planes_in_turn(const SparkCall& call, u32 row, u32 octet, float (&x)[8]) {
    SPARK_NOTE("planes");
    const Planes planes = planes_anew(call);
    const float s = finite_half(Shared<u16>(row).load(0));
    SPARK_ROLLED
    for (u32 j = 8 * octet; j < 8 * octet + 8; ++j) {
        const u32 code = stored_code(planes, row, j);
        u32 four, rest;
        look_up(code & 0xf, LevelsOf4().words, four, rest);
        SPARK_UNROLL
        for (u32 n = 1; n < 8; ++n) x[n - 1] = x[n];
        x[7] = ((float)plane_level(planes, j, code, four & 0xff) - 128.0f) * plane_unit(planes, j, s);
    }
}

// Whether eight dense directions, two a word, are of another key than that of the row in LDS from byte `row` on, as far
// as its codes tell.
SPARK_FN bool planes_differ(const SparkCall& call, u32 row, u32 octet, const u32 (&directions)[4]) {
    const Planes planes = planes_anew(call);
    const float s = finite_half(Shared<u16>(row).load(0));
    bool other = false;
    SPARK_ROLLED
    for (u32 k = 0; k < 8; ++k) {
        u32 half = 0;
        SPARK_UNROLL
        for (u32 n = 0; n < 8; ++n) half = n == k ? directions[n / 2] >> 16 * (n % 2) & 0xffff : half;
        const u32 j = 8 * octet + k;
        const float x = finite_half(half), unit = plane_unit(planes, j, s);
        const bool differs = s == 0.0f ? x != 0.0f
                                       : plane_code(planes, j, x * (1.0f / unit)) != stored_code(planes, row, j);
        other = other || (j < planes.kept && differs);
    }
    return other;
}

#endif
