// Kernels with deliberate faults, with which tests check that the emulation finds them. Registered for waves of 64
// lanes.
#include "machine.h"

#define SPARK_EMULATION 64
namespace faults {
#include "../portable.h"

SPARK_KERNEL(fault_none, 256, 1) {
    const Shared<u32> words(0);
    words.store(thread(), thread());
    block_barrier();
    const u32 other = words.load(255 - thread());
    block_barrier();
    words.store(thread(), other + shuffle_xor(other, 32) + (u32)vote(thread() % 2));
    wave_barrier();
    words.load(thread() ^ 63);
    (void)call;
}
SPARK_KERNEL(fault_unwritten, 256, 1) {
    const Shared<u32> words(0);
    words.store(thread(), 1);
    block_barrier();
    words.load(thread() + 1);
    (void)call;
}
SPARK_KERNEL(fault_no_barrier, 256, 1) {
    const Shared<u32> words(0);
    words.store(thread(), 1);
    block_barrier();
    words.store(thread(), 2);
    wave_barrier();
    words.load(255 - thread());
    (void)call;
}
SPARK_KERNEL(fault_no_wave_barrier, 256, 1) {
    const Shared<u32> words(0);
    words.store(thread(), 1);
    words.load(thread() ^ 1);
    (void)call;
}
SPARK_KERNEL(fault_overwritten, 256, 1) {
    const Shared<u32> words(0);
    words.store(thread(), 1);
    block_barrier();
    words.load(255 - thread());
    words.store(thread(), 2);
    (void)call;
}
SPARK_KERNEL(fault_divergent, 256, 1) {
    if (thread() % 64 < 32) {
        vote(true);
    } else {
        wave_barrier();
    }
    (void)call;
}
SPARK_KERNEL(fault_left_alone, 256, 1) {
    if (thread() >= 64) block_barrier();
    (void)call;
}
} // namespace faults
