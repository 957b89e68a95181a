#include "machine.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "fiber.h"
#include "matrix.h"
#include "shared.h"

namespace emulation {

namespace {

struct Known {
    Kernel kernel;
    unsigned threads;
};
std::map<std::pair<std::string, unsigned>, Known>& kernels() {
    static std::map<std::pair<std::string, unsigned>, Known> all;
    return all;
}

// Global memory that kernels may access, by first byte.
std::mutex allowed_lock;
std::map<uintptr_t, size_t> allowed;

constexpr unsigned MOST_THREADS = 1024;

// To LDS.
struct Copy {
    uint32_t to;
    const void* from;
    uint32_t bytes;
};

struct Thread {
    Context context;
    bool done = false, waits = false;
    Collective kind{};
    uint64_t value = 0;
    unsigned argument = 0;
    std::vector<std::vector<Copy>> copies; // by groups, the last of which is not ended
};

class Machine {
  public:
    std::string launch(const char* name, const Known& known, const unsigned grid[3], unsigned threads_of_block,
                       unsigned shared_bytes, const SparkCall& its_call, unsigned wave_size);
    [[noreturn]] void trap(const std::string& what);
    uint64_t meet(Collective kind, uint64_t value, unsigned argument);
    void check_global(const void* p, size_t bytes, const char* access);
    void shared_access(uint32_t at, uint32_t bytes, bool write);
    void copy_later(const Copy& copy);
    void end_copies();
    void await_copies(unsigned left);
    [[noreturn]] static void run_thread();

  private:
    std::string run_block();
    // Runs the threads of a wave until all wait for the same operation or are done, and exchanges their values.
    // Returns whether the wave is done, or waits for the block.
    bool run_wave(unsigned wave);
    void answer(unsigned first);

    std::string error;
    const char* kernel_name = "";
    Kernel kernel = nullptr;
    const SparkCall* call = nullptr;
    unsigned wave = 64, size = 0;
    std::vector<Thread> threads;
    std::vector<uint32_t> wave_epochs;
    uint32_t block_epoch = 0;
    SharedMemory shared;
    Context scheduler;
    Stacks stacks;
    std::vector<std::pair<uintptr_t, uintptr_t>> ranges;
};

thread_local std::unique_ptr<Machine> machine;

std::string Machine::launch(const char* name, const Known& known, const unsigned grid[3], unsigned threads_of_block,
                            unsigned shared_bytes, const SparkCall& its_call, unsigned wave_size) {
    kernel_name = name;
    kernel = known.kernel;
    call = &its_call;
    wave = wave_size;
    size = threads_of_block;
    {
        std::lock_guard<std::mutex> guard(allowed_lock);
        ranges.clear();
        for (auto& [begin, bytes] : allowed) ranges.emplace_back(begin, begin + bytes);
    }
    for (unsigned z = 0; z < grid[2]; ++z) {
        for (unsigned y = 0; y < grid[1]; ++y) {
            for (unsigned x = 0; x < grid[0]; ++x) {
                shared.reset(shared_bytes, wave);
                now = Now{0, x, z, nullptr, nullptr, shared.data()};
                std::string what = run_block();
                if (!what.empty()) return what;
            }
        }
    }
    return {};
}

std::string Machine::run_block() {
    error.clear();
    block_epoch = 0;
    threads.assign(size, Thread{});
    wave_epochs.assign(size / wave, 0);
    for (unsigned t = 0; t < size; ++t) {
        unsigned char* stack = stacks.get(t);
        if (!stack) return "no memory for stacks";
        prepare(threads[t].context, stack, Stacks::BYTES - Stacks::GUARD, run_thread);
    }
    for (;;) {
        for (unsigned w = 0; w < size / wave; ++w) {
            while (!run_wave(w)) {
            }
            if (!error.empty()) return error;
        }
        const auto waiting = std::count_if(threads.begin(), threads.end(), [](const Thread& t) { return !t.done; });
        if (waiting == 0) return {};
        if (waiting != static_cast<long>(size)) {
            return std::string(kernel_name) + ": some threads wait at a block barrier and others have ended";
        }
        block_epoch += 1;
        for (auto& t : threads) t.waits = false;
    }
}

bool Machine::run_wave(unsigned w) {
    const unsigned first = w * wave;
    for (unsigned l = 0; l < wave; ++l) {
        // In alternate rounds from the last lane down, so that nothing can rely on an order.
        const unsigned t = first + ((wave_epochs[w] + block_epoch) % 2 ? wave - 1 - l : l);
        Thread& thread = threads[t];
        if (thread.done || thread.waits) continue;
        now.thread = t;
        switch_to(scheduler, thread.context);
        if (!error.empty()) return true;
    }
    const Thread& one = threads[first];
    for (unsigned t = first; t < first + wave; ++t) {
        const Thread& other = threads[t];
        const bool alike_argument = other.argument == one.argument || one.kind == Collective::FromLane;
        const bool same_wait = other.kind == one.kind && alike_argument;
        const bool alike = other.done == one.done && (one.done || same_wait);
        if (!alike) {
            char text[160];
            std::snprintf(text, sizeof text, ": lanes %u and %u of wave %u of block (%u, %u) wait for different things",
                          0u, t - first, w, now.block_x, now.block_z);
            error = kernel_name + std::string(text);
            return true;
        }
    }
    if (one.done || one.kind == Collective::BlockBarrier) return true;
    answer(first);
    if (one.kind == Collective::WaveBarrier) wave_epochs[w] += 1;
    return false;
}

void Machine::answer(unsigned first) {
    const Collective kind = threads[first].kind;
    if (kind == Collective::MatrixF16 || kind == Collective::MatrixF32 || kind == Collective::MatrixI8) {
        const MatrixLane* lanes[64];
        for (unsigned l = 0; l < 64; ++l) {
            lanes[l] = reinterpret_cast<const MatrixLane*>(threads[first + l].value);
            threads[first + l].waits = false;
        }
        if (kind == Collective::MatrixI8) return multiply<MatrixI8>(lanes);
        return kind == Collective::MatrixF16 ? multiply<MatrixF16>(lanes) : multiply<MatrixF32>(lanes);
    }
    if (kind == Collective::MmaF16 || kind == Collective::MmaI8) {
        const MatrixLane* lanes[32];
        for (unsigned l = 0; l < 32; ++l) {
            lanes[l] = reinterpret_cast<const MatrixLane*>(threads[first + l].value);
            threads[first + l].waits = false;
        }
        return kind == Collective::MmaF16 ? multiply_rows<MmaF16>(lanes) : multiply_rows<MmaI8>(lanes);
    }
    uint64_t values[64];
    uint64_t mask = 0;
    for (unsigned l = 0; l < wave; ++l) {
        values[l] = threads[first + l].value;
        mask |= (values[l] & 1) << l;
    }
    for (unsigned l = 0; l < wave; ++l) {
        Thread& t = threads[first + l];
        t.waits = false;
        const unsigned from = kind == Collective::FromLane ? t.argument : l ^ t.argument;
        t.value = kind == Collective::Vote ? mask : values[from % wave];
    }
}

void Machine::run_thread() {
    Machine& m = *machine;
    m.kernel(*m.call);
    Thread& own = m.threads[now.thread];
    own.done = true;
    for (;;) switch_to(own.context, m.scheduler);
}

uint64_t Machine::meet(Collective kind, uint64_t value, unsigned argument) {
    Thread& own = threads[now.thread];
    own.waits = true;
    own.kind = kind;
    own.value = value;
    own.argument = argument;
    switch_to(own.context, scheduler);
    return own.value;
}

void Machine::trap(const std::string& what) {
    char text[160];
    std::snprintf(text, sizeof text, ": thread %u of block (%u, %u) ", now.thread, now.block_x, now.block_z);
    error = kernel_name + std::string(text) + what;
    Thread& own = threads[now.thread];
    for (;;) switch_to(own.context, scheduler);
}

void Machine::check_global(const void* p, size_t bytes, const char* access) {
    const auto at = reinterpret_cast<uintptr_t>(p);
    auto range = std::upper_bound(ranges.begin(), ranges.end(), std::make_pair(at, UINTPTR_MAX));
    if (range != ranges.begin()) {
        --range;
        if (at >= range->first && at + bytes <= range->second) {
            now.allowed_begin = reinterpret_cast<const unsigned char*>(range->first);
            now.allowed_end = reinterpret_cast<const unsigned char*>(range->second);
            return;
        }
    }
    char text[160];
    if (range != ranges.end() && at >= range->first) {
        std::snprintf(text, sizeof text, "would %s %zu bytes of global memory at %p, byte %zu of a range of %zu",
                      access, bytes, p, size_t(at - range->first), size_t(range->second - range->first));
    } else {
        std::snprintf(text, sizeof text, "would %s %zu bytes of global memory at %p, which is in no range", access,
                      bytes, p);
    }
    trap(text);
}

void Machine::shared_access(uint32_t at, uint32_t bytes, bool write) {
    char text[160];
    if (at > shared.size() || shared.size() - at < bytes || at % bytes != 0) {
        std::snprintf(text, sizeof text, "would %s bytes %u to %u of LDS, of which the launch has %u",
                      write ? "write" : "read", at, at + bytes, shared.size());
        trap(text);
    }
    const uint32_t wave_epoch = wave_epochs[now.thread / wave];
    for (uint32_t byte = at; byte < at + bytes; ++byte) {
        const char* what = write ? shared.check_write(byte, now.thread, block_epoch, wave_epoch)
                                 : shared.check_read(byte, now.thread, block_epoch, wave_epoch);
        if (what) {
            std::snprintf(text, sizeof text, "%s, at byte %u", what, byte);
            trap(text);
        }
    }
}

void Machine::copy_later(const Copy& copy) {
    check_global(copy.from, copy.bytes, "copy");
    if ((copy.to | reinterpret_cast<uintptr_t>(copy.from)) % copy.bytes != 0) trap("copies unaligned bytes");
    auto& copies = threads[now.thread].copies;
    if (copies.empty()) copies.emplace_back();
    copies.back().push_back(copy);
}

void Machine::end_copies() {
    auto& copies = threads[now.thread].copies;
    if (copies.empty()) copies.emplace_back();
    copies.emplace_back();
}

void Machine::await_copies(unsigned left) {
    auto& copies = threads[now.thread].copies;
    // The last group is not ended.
    while (copies.size() > left + 1) {
        for (const Copy& copy : copies.front()) {
            shared_access(copy.to, copy.bytes, true);
            std::memcpy(shared.data() + copy.to, copy.from, copy.bytes);
        }
        copies.erase(copies.begin());
    }
}

} // namespace

thread_local Now now;

Registration::Registration(const char* name, unsigned wave, unsigned threads, Kernel kernel) {
    kernels()[{name, wave}] = {kernel, threads};
}

void check_global_slow(const void* p, size_t bytes, const char* access) { machine->check_global(p, bytes, access); }
void shared_read(uint32_t at, uint32_t bytes) { machine->shared_access(at, bytes, false); }
void shared_write(uint32_t at, uint32_t bytes) { machine->shared_access(at, bytes, true); }
uint64_t meet(Collective kind, uint64_t value, unsigned argument) { return machine->meet(kind, value, argument); }
void trap(const char* what) { machine->trap(what); }
void copy_later(uint32_t to, const void* from, uint32_t bytes) { machine->copy_later({to, from, bytes}); }
void end_copies() { machine->end_copies(); }
void await_copies(unsigned left) { machine->await_copies(left); }

float half_to_float(uint16_t h) {
    const uint32_t sign = uint32_t{h & 0x8000u} << 16, magnitude = h & 0x7fffu;
    float x;
    if (magnitude < 0x0400) {
        x = static_cast<float>(magnitude) * 0x1p-24f;
    } else {
        const uint32_t bits = magnitude >= 0x7c00 ? 0x7f800000u | magnitude << 13 : (magnitude << 13) + (112u << 23);
        std::memcpy(&x, &bits, 4);
    }
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    bits |= sign;
    std::memcpy(&x, &bits, 4);
    return x;
}

uint16_t float_to_half(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
    const uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return sign | 0x7e00;
    if (magnitude >= 0x477ff000) return sign | 0x7c00;
    if (magnitude < 0x38800000) {
        // Below the least normal number: adding 0.5 leaves the bits of the rounded multiple of 2^-24 at the low end.
        float y;
        std::memcpy(&y, &magnitude, 4);
        y += 0.5f;
        uint32_t rounded;
        std::memcpy(&rounded, &y, 4);
        return sign | static_cast<uint16_t>(rounded - 0x3f000000);
    }
    const uint32_t odd = magnitude >> 13 & 1;
    return sign | static_cast<uint16_t>((magnitude - (112u << 23) + 0xfff + odd) >> 13);
}

} // namespace emulation

#define SPARK_EXPORT extern "C" __attribute__((visibility("default")))

// Allows kernels to access `bytes` bytes from `begin` on.
SPARK_EXPORT void spark_emulation_allow(const void* begin, size_t bytes) {
    std::lock_guard<std::mutex> guard(emulation::allowed_lock);
    emulation::allowed[reinterpret_cast<uintptr_t>(begin)] = bytes;
}

// Forbids kernels to access the range that begins at `begin`.
SPARK_EXPORT void spark_emulation_forbid(const void* begin) {
    std::lock_guard<std::mutex> guard(emulation::allowed_lock);
    emulation::allowed.erase(reinterpret_cast<uintptr_t>(begin));
}

// Runs `kernel` to its end: returns 0, or 1 with a message in `error`. Threads may launch concurrently.
SPARK_EXPORT int spark_emulate(const char* kernel, const unsigned grid[3], const unsigned block[3],
                               unsigned shared_bytes, const void* call, unsigned wave_size, char* error,
                               size_t error_len) {
    std::string what;
    const auto known = emulation::kernels().find({kernel, wave_size});
    if (known == emulation::kernels().end()) {
        what = "no kernel " + std::string(kernel) + " for waves of " + std::to_string(wave_size);
    } else if (block[1] != 1 || block[2] != 1 || block[0] == 0 || block[0] > known->second.threads ||
               block[0] > emulation::MOST_THREADS || block[0] % wave_size != 0) {
        what = std::string(kernel) + ": a block of " + std::to_string(block[0]) + " threads is not whole waves of " +
               std::to_string(wave_size) + " or more than " + std::to_string(known->second.threads);
    } else {
        SparkCall copy;
        std::memcpy(&copy, call, sizeof copy);
        if (!emulation::machine) emulation::machine = std::make_unique<emulation::Machine>();
        what = emulation::machine->launch(kernel, known->second, grid, block[0], shared_bytes, copy, wave_size);
    }
    if (error && error_len) std::snprintf(error, error_len, "%s", what.c_str());
    return what.empty() ? 0 : 1;
}
