// Switching between stacks.
#ifndef SPARK_EMULATION_FIBER_H
#define SPARK_EMULATION_FIBER_H

#include <cstddef>
#include <cstdint>
#include <sys/mman.h>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulation {

// A point of execution that is left by `leave` or `switch_to` and continued there.
struct Context {
#if defined(__x86_64__)
    void* stack_pointer = nullptr;
#else
    ucontext_t context;
#endif
};

// Continues `to`; returns when something switches back to `from`.
void switch_to(Context& from, Context& to);

// Prepares `context` to run `entry`, which never returns, on the `bytes` of stack from `stack` on.
void prepare(Context& context, unsigned char* stack, size_t bytes, void (*entry)());

// Stacks of one OS thread, with a guard page below each.
class Stacks {
  public:
    static constexpr size_t BYTES = 128 << 10;
    static constexpr size_t GUARD = 4096;

    Stacks() = default;
    Stacks(const Stacks&) = delete;
    Stacks& operator=(const Stacks&) = delete;
    ~Stacks() {
        for (void* p : stacks) munmap(p, BYTES);
    }
    // The lowest usable byte of stack `n`; null if there is no memory.
    unsigned char* get(size_t n) {
        while (stacks.size() <= n) {
            void* p = mmap(nullptr, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (p == MAP_FAILED) return nullptr;
            mprotect(p, GUARD, PROT_NONE);
            stacks.push_back(p);
        }
        return static_cast<unsigned char*>(stacks[n]) + GUARD;
    }

  private:
    std::vector<void*> stacks;
};

} // namespace emulation

#endif
