// Primitives on the emulated GPU. Included within a namespace, once for each wave size.
#ifndef SPARK_EMULATION
#error "SPARK_EMULATION is the wave size"
#endif

#define SPARK_FN inline
#define SPARK_CONSTANT static constexpr
#define SPARK_TABLE(type, name, size) static constexpr type name[size]
#define SPARK_KERNEL(name, threads, waves)                                                                             \
    static void name(const SparkCall& call);                                                                           \
    static const emulation::Registration registration_of_##name(#name, WAVE, threads, name);                           \
    static void name(const SparkCall& call)
#define SPARK_UNROLL
#define SPARK_ROLLED

SPARK_CONSTANT u32 WAVE = SPARK_EMULATION;
// GPUs with waves of 64 lanes exist with and without matrix cores.
#define SPARK_NO_MATRIX
#if SPARK_EMULATION == 64
#define SPARK_MATRIX
#else
#define SPARK_MMA
#endif

SPARK_FN u32 thread() { return emulation::now.thread; }
SPARK_FN u32 block_x() { return emulation::now.block_x; }
SPARK_FN u32 block_z() { return emulation::now.block_z; }
SPARK_FN u32 lane() { return thread() % WAVE; }
SPARK_FN u32 wave() { return thread() / WAVE; }
SPARK_FN u32 same(u32 x) { return x; }

template <class V>
SPARK_FN V load(const V* p) {
    emulation::check_global(p, sizeof(V), "read");
    V v;
    std::memcpy(&v, p, sizeof(V));
    return v;
}
template <class V>
SPARK_FN void store(V* p, V v) {
    emulation::check_global(p, sizeof(V), "write");
    std::memcpy(p, &v, sizeof(V));
}
template <u32 N>
SPARK_FN void load_words(const void* p, u32 (&w)[N]) {
    emulation::check_global(p, sizeof(w), "read");
    std::memcpy(w, p, sizeof(w));
}
template <u32 N>
SPARK_FN void store_words(void* p, const u32 (&w)[N]) {
    emulation::check_global(p, sizeof(w), "write");
    std::memcpy(p, w, sizeof(w));
}

struct alignas(16) Quad {
    u32 words[4];
    u32 operator[](u32 i) const { return words[i]; }
};

template <class V>
struct Shared {
    u32 at; // byte offset
    SPARK_FN explicit Shared(u32 byte) : at(byte) {}
    SPARK_FN V load(u32 i) const {
        const u32 byte = at + i * (u32)sizeof(V);
        emulation::shared_read(byte, sizeof(V));
        V v;
        std::memcpy(&v, emulation::now.shared + byte, sizeof(V));
        return v;
    }
    SPARK_FN void store(u32 i, V v) const {
        const u32 byte = at + i * (u32)sizeof(V);
        emulation::shared_write(byte, sizeof(V));
        std::memcpy(emulation::now.shared + byte, &v, sizeof(V));
    }
};

SPARK_FN u64 vote(bool b) { return emulation::meet(emulation::Collective::Vote, b, 0); }
SPARK_FN u32 anew(u32 x) { return x; }
SPARK_FN void in_order() {}
SPARK_FN u32 popcount(u32 x) { return (u32)__builtin_popcount(x); }
SPARK_FN u32 popcount(u64 x) { return (u32)__builtin_popcountll(x); }
SPARK_FN u32 rank_in(u64 mask) { return popcount(mask & (((u64)1 << lane()) - 1)); }
SPARK_FN u32 bits_of(float x) {
    u32 b;
    std::memcpy(&b, &x, 4);
    return b;
}
SPARK_FN float float_of(u32 b) {
    float x;
    std::memcpy(&x, &b, 4);
    return x;
}
SPARK_FN u32 shuffle_xor(u32 v, u32 mask) { return (u32)emulation::meet(emulation::Collective::Shuffle, v, mask); }
SPARK_FN float shuffle_xor(float v, u32 mask) { return float_of(shuffle_xor(bits_of(v), mask)); }
SPARK_FN void wave_barrier() { emulation::meet(emulation::Collective::WaveBarrier, 0, 0); }
SPARK_FN void block_barrier() { emulation::meet(emulation::Collective::BlockBarrier, 0, 0); }

// The low word of (high:low) >> shift % 32.
SPARK_FN u32 funnel_right(u32 high, u32 low, u32 shift) { return (u32)(((u64)high << 32 | low) >> shift % 32); }

SPARK_FN void look_up(u32 nibbles, const u32 (&table)[4], u32& low, u32& high) {
    low = high = 0;
    for (u32 n = 0; n < 8; ++n) {
        const u32 at = nibbles >> 4 * n & 15, entry = table[at / 4] >> 8 * (at % 4) & 0xff;
        (n < 4 ? low : high) |= entry << 8 * (n % 4);
    }
}

SPARK_FN float half_to_float(u16 h) { return emulation::half_to_float(h); }
SPARK_FN u16 float_to_half(float x) { return emulation::float_to_half(x); }
SPARK_FN float least(float a, float b) { return std::fmin(a, b); }
SPARK_FN float greatest(float a, float b) { return std::fmax(a, b); }
// Rounds twice, unlike the devices: the tolerance of the comparison with the CPU covers both.
SPARK_FN float fused(float a, float b, float c) { return a * b + c; }
SPARK_FN float product(const float (&a)[8], const float (&b)[8]) {
    float sum = 0.0f;
    SPARK_UNROLL
    for (u32 k = 0; k < 8; ++k) sum = fused(a[k], b[k], sum);
    return sum;
}
SPARK_FN float exp2_of(float x) { return std::exp2(x); }
SPARK_FN float round_even(float x) { return std::nearbyint(x); }
SPARK_FN float sqrt_of(float x) { return std::sqrt(x); }

template <class N>
struct MatrixPart {
    N numbers[4];
    N& operator[](u32 r) { return numbers[r]; }
    N operator[](u32 r) const { return numbers[r]; }
};
typedef MatrixPart<float> MatrixSums;
typedef MatrixPart<int> MatrixCounts;

SPARK_FN u32 add_halves(u32 a, u32 b) {
    const auto add = [](u32 x, u32 y) -> u32 { return float_to_half(half_to_float((u16)x) + half_to_float((u16)y)); };
    return add(a & 0xffff, b & 0xffff) | add(a >> 16, b >> 16) << 16;
}
SPARK_FN u32 truncate_halves(float a, float b) {
    const auto truncate = [](float x) -> u32 {
        const u16 nearest = float_to_half(x);
        // Of two neighbours, the one nearer to zero has the lower bits.
        return nearest - (std::fabs(half_to_float(nearest)) > std::fabs(x));
    };
    return truncate(a) | truncate(b) << 16;
}
SPARK_FN u32 halves_of(float a, float b) { return float_to_half(a) | (u32)float_to_half(b) << 16; }
SPARK_FN u32 low_halves(u32 a, u32 b) { return (a & 0xffff) | b << 16; }
SPARK_FN u32 high_halves(u32 a, u32 b) { return a >> 16 | (b & 0xffff0000); }

#ifdef SPARK_MATRIX
SPARK_FN void matrix_f16(const u32 (&a)[2], const u32 (&b)[2], MatrixSums& c) {
    emulation::MatrixLane own = {a, b, c.numbers};
    emulation::meet(emulation::Collective::MatrixF16, (u64)&own, 0);
}
SPARK_FN void matrix_f32(float a, float b, MatrixSums& c) {
    const u32 x = bits_of(a), y = bits_of(b);
    emulation::MatrixLane own = {&x, &y, c.numbers};
    emulation::meet(emulation::Collective::MatrixF32, (u64)&own, 0);
}
SPARK_FN void matrix_i8(const u32 (&a)[2], const u32 (&b)[2], MatrixCounts& c) {
    emulation::MatrixLane own = {a, b, c.numbers};
    emulation::meet(emulation::Collective::MatrixI8, (u64)&own, 0);
}

SPARK_CONSTANT u32 PICK_ZERO = 12;
SPARK_FN u32 pick_bytes(u32 high, u32 low, u32 selectors) {
    const u64 bytes = (u64)high << 32 | low;
    u32 picked = 0;
    for (u32 n = 0; n < 4; ++n) {
        const u32 at = selectors >> 8 * n & 0xff;
        if (at > 7 && at != PICK_ZERO) emulation::trap("picks no byte");
        if (at <= 7) picked |= (u32)(bytes >> 8 * at & 0xff) << 8 * n;
    }
    return picked;
}
SPARK_FN u32 look_up_bytes(u32 bytes, const u32 (&table)[4]) {
    u32 picked = 0;
    for (u32 n = 0; n < 4; ++n) {
        const u32 at = bytes >> 8 * n & 15;
        picked |= (table[at / 4] >> 8 * (at % 4) & 0xff) << 8 * n;
    }
    return picked;
}
#endif

#ifdef SPARK_MMA
SPARK_FN void mma_f16(const u32 (&a)[4], const u32 (&b)[2], MatrixSums& c) {
    emulation::MatrixLane own = {a, b, c.numbers};
    emulation::meet(emulation::Collective::MmaF16, (u64)&own, 0);
}
SPARK_FN void mma_i8(const u32 (&a)[4], const u32 (&b)[2], MatrixCounts& c) {
    emulation::MatrixLane own = {a, b, c.numbers};
    emulation::meet(emulation::Collective::MmaI8, (u64)&own, 0);
}
SPARK_FN u32 copies_to(u32 byte) { return byte; }
template <u32 BYTES, u32 FURTHER = 0>
SPARK_FN void copy_async(u32 to, const void* from) {
    emulation::copy_later(to + FURTHER, (const u8*)from + FURTHER, BYTES);
}
SPARK_FN void end_copies() { emulation::end_copies(); }
template <u32 LEFT>
SPARK_FN void await_copies() {
    emulation::await_copies(LEFT);
}
// Rounds twice: the products of codes are exact.
SPARK_FN u32 fused_halves(u32 a, u32 b, u32 c) {
    const auto one = [](u32 x, u32 y, u32 z) -> u32 {
        return float_to_half(half_to_float((u16)x) * half_to_float((u16)y) + half_to_float((u16)z));
    };
    return one(a, b, c) | one(a >> 16, b >> 16, c >> 16) << 16;
}
SPARK_FN float from_lane(float v, u32 lane) {
    return float_of((u32)emulation::meet(emulation::Collective::FromLane, bits_of(v), lane));
}
SPARK_FN u32 permute_bytes(u32 low, u32 high, u32 selectors) {
    const u64 bytes = (u64)high << 32 | low;
    u32 picked = 0;
    for (u32 n = 0; n < 4; ++n) {
        const u32 selector = selectors >> 4 * n & 15, byte = (u32)(bytes >> 8 * (selector & 7) & 0xff);
        picked |= (selector < 8 ? byte : byte >> 7 ? 0xffu : 0u) << 8 * n;
    }
    return picked;
}
#endif
