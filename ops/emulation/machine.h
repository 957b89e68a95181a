// A GPU on the host: blocks run one after the other, the threads of a block as fibers that take turns at barriers and
// at the primitives in which all lanes of a wave take part. It stops a launch, with an error that names kernel, block,
// thread and address, at
//
// - an access to global memory outside the ranges that were allowed,
// - a read of LDS that no thread of the block wrote, or beyond what the launch asked for,
// - an access to LDS that another thread conflicts with and no barrier separates from it,
// - a wave whose lanes wait for different things, or a block barrier that not all threads reach.
#ifndef SPARK_EMULATION_MACHINE_H
#define SPARK_EMULATION_MACHINE_H

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../call.h"

namespace emulation {

using Kernel = void (*)(const SparkCall&);

// Registers a kernel by its name.
struct Registration {
    Registration(const char* name, unsigned wave, unsigned threads, Kernel kernel);
};

enum class Collective : unsigned {
    Vote,
    Shuffle,
    FromLane,
    MatrixF16,
    MatrixF32,
    MatrixI8,
    MmaF16,
    MmaI8,
    WaveBarrier,
    BlockBarrier
};

// The memory that the current thread may access without another check, and its position.
struct Now {
    unsigned thread, block_x, block_z;
    const unsigned char *allowed_begin, *allowed_end; // the range of global memory used last
    unsigned char* shared;
};
extern thread_local Now now;

void check_global_slow(const void* p, size_t bytes, const char* access);
void shared_read(uint32_t at, uint32_t bytes);
void shared_write(uint32_t at, uint32_t bytes);
// Waits for all lanes of the wave (all threads of the block for BlockBarrier), and returns the exchanged value.
uint64_t meet(Collective kind, uint64_t value, unsigned argument);
[[noreturn]] void trap(const char* what);
// Copies to LDS by the current thread, which happen when they are waited for.
void copy_later(uint32_t to, const void* from, uint32_t bytes);
void end_copies();
void await_copies(unsigned left);

// A lane's registers for a matrix instruction; its address is the value that lanes exchange.
struct MatrixLane {
    const uint32_t *a, *b;
    void* c; // four numbers
};

inline void check_global(const void* p, size_t bytes, const char* access) {
    const unsigned char* first = static_cast<const unsigned char*>(p);
    if (first < now.allowed_begin || first + bytes > now.allowed_end) check_global_slow(p, bytes, access);
}

uint16_t float_to_half(float x);
float half_to_float(uint16_t h);

} // namespace emulation

#endif
