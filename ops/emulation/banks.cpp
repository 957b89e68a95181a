// Counts bank conflicts of the LDS layouts of ops/prefill_matrix.h. LDS has 32 banks of four bytes, and processes 128
// bytes at once: for writes those of neighbouring lanes, for reads of 16 bytes those of eight lanes that are not all
// neighbours (rocm.docs.amd.com, Composable Kernel, "Understanding AMD GPU LDS and bank conflicts").
#include "machine.h"

#define SPARK_EMULATION 64
namespace banks {
#include "../prefill_matrix.h"

// Lanes 0 to 3 and 20 to 23, 4 to 7 and 16 to 19, 8 to 11 and 28 to 31, 12 to 15 and 24 to 27; the same from 32 on.
unsigned reading_lane(unsigned turn, unsigned n) {
    const unsigned first = turn % 4 * 4, second = 16 + (turn % 4 ^ 1) * 4;
    return turn / 4 * 32 + (n < 4 ? first + n : second + n - 4);
}

// Conflicts of `count` simultaneous accesses, the n-th at unit `at(n)` of 128 / count bytes.
template <class At>
unsigned conflicts(unsigned count, const At& at) {
    unsigned long long taken = 0, found = 0;
    for (unsigned n = 0; n < count; ++n) {
        const unsigned long long bit = 1ull << at(n) % count;
        found += (taken & bit) != 0;
        taken |= bit;
    }
    return (unsigned)found;
}

template <class E, u32 CHANNELS>
unsigned of() {
    typedef MatrixPrefill<E, CHANNELS> Own;
    const u32 quads = Own::QUADS, turns = 8;
    unsigned found = 0;
    for (u32 i = 0; i < quads; ++i) {
        for (u32 n = 0; n < Own::KEYS * Own::OCTETS; n += 8) {
            const auto quad = [&](u32 l) { return Own::key_quad((n + l) / Own::OCTETS, (n + l) % Own::OCTETS, i); };
            found += conflicts(8, quad);
        }
        for (u32 turn = 0; turn < turns; ++turn) {
            for (u32 row = 0; row < Own::KEYS; row += 16) {
                for (u32 step = 0; step < Own::STEPS; ++step) {
                    found += conflicts(8, [&](u32 n) {
                        const u32 lane = reading_lane(turn, n);
                        return Own::key_quad(row + lane % 16, 4 * step + lane / 16, i);
                    });
                }
            }
            for (u32 channel = 0; channel < CHANNELS; channel += 16) {
                for (u32 step = 0; step < Own::KEYS / 32; ++step) {
                    found += conflicts(8, [&](u32 n) {
                        const u32 lane = reading_lane(turn, n);
                        return Own::value_quad(channel + lane % 16, (4 * step + lane / 16) * quads + i);
                    });
                }
            }
        }
    }
    // Pairs of neighbours: 32 of four bytes or 16 of eight at once.
    const u32 pairs = 4 / quads, at_once = 8 * pairs;
    for (u32 n = 0; n < Own::KEYS / 2 * Own::OCTETS; n += at_once) {
        for (u32 k = 0; k < 8; ++k) {
            found += conflicts(at_once, [&](u32 l) {
                const typename Own::Neighbours own(n + l);
                return pairs * Own::value_quad(8 * own.octet + k, own.quad) + own.pair % pairs;
            });
        }
    }
    return found;
}

} // namespace banks

extern "C" __attribute__((visibility("default"))) unsigned spark_emulation_bank_conflicts() {
    using namespace banks;
    return of<u16, 64>() + of<u16, 128>() + of<u16, 256>() + of<float, 64>() + of<float, 128>() + of<float, 256>();
}
