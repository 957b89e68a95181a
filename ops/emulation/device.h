// Primitives on the emulated GPU. Included within a namespace, once for each wave size.
#ifndef SPARK_EMULATION
#error "SPARK_EMULATION is the wave size"
#endif

#define SPARK_FN inline
#define SPARK_CONSTANT static constexpr
#define SPARK_KERNEL(name, threads, waves)                                                                                    \
    static void name(const SparkCall& call);                                                                           \
    static const emulation::Registration registration_of_##name(#name, WAVE, threads, name);                           \
    static void name(const SparkCall& call)
#define SPARK_UNROLL
#define SPARK_ROLLED

SPARK_CONSTANT u32 WAVE = SPARK_EMULATION;

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
    template <u32 N>
    SPARK_FN void load_some(u32 i, V (&v)[N]) const {
        emulation::check_aligned(at + i * (u32)sizeof(V), sizeof(v));
        for (u32 k = 0; k < N; ++k) v[k] = load(i + k);
    }
};

SPARK_FN u64 vote(bool b) { return emulation::meet(emulation::Collective::Vote, b, 0); }
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

// The low word of (high:low) >> shift, shift below 32.
SPARK_FN u32 funnel_right(u32 high, u32 low, u32 shift) { return (u32)(((u64)high << 32 | low) >> shift); }

SPARK_FN float half_to_float(u16 h) { return emulation::half_to_float(h); }
SPARK_FN u16 float_to_half(float x) { return emulation::float_to_half(x); }
SPARK_FN float least(float a, float b) { return std::fmin(a, b); }
SPARK_FN float greatest(float a, float b) { return std::fmax(a, b); }
// Rounds twice, unlike the devices: the comparison with the CPU has room for either.
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

// Waves of 32 lanes are of devices without products of matrices.
#if SPARK_EMULATION == 64
#define SPARK_HAS_MATRIX 1

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
SPARK_FN u32 add_halves(u32 a, u32 b) {
    const auto add = [](u32 x, u32 y) -> u32 { return float_to_half(half_to_float((u16)x) + half_to_float((u16)y)); };
    return add(a & 0xffff, b & 0xffff) | add(a >> 16, b >> 16) << 16;
}
SPARK_FN u32 truncate_halves(float a, float b) {
    const auto truncate = [](float x) -> u32 {
        const u16 nearest = float_to_half(x);
        // Of two neighbours the one nearer to zero has the lower bits.
        return nearest - (std::fabs(half_to_float(nearest)) > std::fabs(x));
    };
    return truncate(a) | truncate(b) << 16;
}
// Calls `each` with r, and what the lanes have that meet in sum[r].
template <class F>
SPARK_FN void meet_operands(const u32 (&a)[2], const u32 (&b)[2], F each) {
    const u32 group = lane() / 16, column = lane() % 16;
    u64 rows[4][4];
    const u64* all = emulation::gather((u64)a[1] << 32 | a[0]);
    for (u32 r = 0; r < 4; ++r) {
        for (u32 h = 0; h < 4; ++h) rows[r][h] = all[16 * h + 4 * group + r];
    }
    all = emulation::gather((u64)b[1] << 32 | b[0]);
    for (u32 r = 0; r < 4; ++r) {
        for (u32 h = 0; h < 4; ++h) each(r, rows[r][h], all[16 * h + column]);
    }
}
SPARK_FN void multiply_bytes(const u32 (&a)[2], const u32 (&b)[2], int (&sum)[4]) {
    meet_operands(a, b, [&](u32 r, u64 x, u64 y) {
        for (u32 k = 0; k < 8; ++k) sum[r] += (int)(signed char)(x >> 8 * k) * (signed char)(y >> 8 * k);
    });
}
SPARK_FN void multiply_halves(const u32 (&a)[2], const u32 (&b)[2], float (&sum)[4]) {
    // As an MI200 does, which has zeros for numbers below the normal ones.
    const auto number = [](u64 h) { return h & 0x7c00 ? half_to_float((u16)h) : 0.0f; };
    meet_operands(a, b, [&](u32 r, u64 x, u64 y) {
        for (u32 k = 0; k < 4; ++k) sum[r] += number(x >> 16 * k) * number(y >> 16 * k);
    });
}
#else
#define SPARK_HAS_MATRIX 0
#endif
