// The write path of a key in a basis: a wave changes its basis and encodes it in planes. src/format/v3/planes.rs is the
// reference.
#ifndef SPARK_PRUNE_PLANES_H
#define SPARK_PRUNE_PLANES_H

#include "basis.h"
#include "prune_rows.h"

// A key in a basis, in planes: codes with the scale of the least error. LDS: a row, 256 codes, D floats.
SPARK_FN void encode_planes(const SparkCall& call, const Sequence& s, u32 head, u32 i, u32 row, u32 codes) {
    const Planes planes = planes_of(call);
    const u32 d = call.head_dim, channels = codes + SPARK_MAX_HEAD_DIM;
    const Shared<float> x(channels);
    for (u32 j = lane(); j < d; j += WAVE) x.store(j, channel(call, call.key, s, head, i, j, true));
    wave_barrier();
    float key[CHUNKS], rounded[CHUNKS], weight[CHUNKS], squares = 0.0f;
    SPARK_UNROLL
    for (u32 c = 0; c < CHUNKS; ++c) {
        const u32 j = c * WAVE + lane();
        key[c] = rounded[c] = weight[c] = 0.0f;
        if (j >= d) continue;
        key[c] = key_in_basis(call, head, channels, j);
        if (j >= planes.kept) continue;
        rounded[c] = half_to_float(dense_half(key[c]));
        weight[c] = typical_saliency(call, head, j) * typical_saliency(call, head, j);
        squares += rounded[c] * rounded[c];
    }
    const float size = sqrt_of(sum_over(squares, WAVE) / (float)planes.kept);
    u16 best = to_finite_half(size);
    float least_error = FLOAT_MAX;
    SPARK_ROLLED
    for (u32 n = 0; n < 15; ++n) {
        // 0.55, 0.65 and so on, as float32 has them: the nearest to a twentieth of a whole number.
        const u16 scale_bits = to_finite_half((float)(11 + 2 * n) / 20.0f * size);
        const float scale = half_to_float(scale_bits);
        float error = 0.0f;
        SPARK_UNROLL
        for (u32 c = 0; c < CHUNKS; ++c) {
            const u32 j = c * WAVE + lane();
            const float unit = plane_unit(planes, j, scale);
            const u32 code = plane_code(planes, j, unit == 0.0f ? 0.0f : rounded[c] * (1.0f / unit));
            u32 four, rest;
            look_up(code, LevelsOf4().words, four, rest);
            const float off = rounded[c] - ((float)plane_level(planes, j, code, four & 0xff) - 128.0f) * unit;
            error += off * off * weight[c];
        }
        error = sum_over(error, WAVE);
        if (error < least_error) {
            least_error = error;
            best = scale_bits;
        }
    }
    const float scale = half_to_float(best);
    const u32 words = KeyLayout(call).words;
    clear_row(row, words);
    if (lane() == 0) Shared<u16>(row).store(0, best);
    const Shared<u8> bytes(row), own(codes);
    if (scale != 0.0f) {
        SPARK_UNROLL
        for (u32 c = 0; c < CHUNKS; ++c) {
            const u32 j = c * WAVE + lane();
            if (j >= planes.kept) continue;
            const u32 code = plane_code(planes, j, rounded[c] * (1.0f / plane_unit(planes, j, scale)));
            if (j < planes.eight) {
                bytes.store(PLANE_CODES_AT + j, (u8)code);
            } else {
                own.store(j, (u8)code);
            }
        }
        pack_nibbles(codes + planes.eight, row + planes.fours_at, planes.coded - planes.eight);
        pack_quarters(codes + planes.coded, row + planes.twos_at, planes.kept - planes.coded);
    }
    write_key(call, s, head, i, row, key);
}

#endif
