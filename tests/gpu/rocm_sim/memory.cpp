// Device and pinned memory. Device memory can be touched by kernels and copies only: for everybody else it is
// protected, so that a host that dereferences a device pointer crashes here as well.
#include "sim.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <map>

struct Block {
    size_t bytes;
    int device;
};

static std::map<uintptr_t, Block>& blocks() {
    static auto* blocks = new std::map<uintptr_t, Block>;
    return *blocks;
}

static std::map<uintptr_t, size_t>& pinned() {
    static auto* pinned = new std::map<uintptr_t, size_t>;
    return *pinned;
}

static size_t bytes_of(const Block& block) { return block.bytes; }
static size_t bytes_of(size_t bytes) { return bytes; }

template <typename T>
static bool within(const std::map<uintptr_t, T>& ranges, const void* address) {
    auto after = ranges.upper_bound(uintptr_t(address));
    return after != ranges.begin() && uintptr_t(address) - (--after)->first < bytes_of(after->second);
}

bool is_device(const void* address) { return within(blocks(), address); }
bool is_pinned(const void* address) { return within(pinned(), address); }

static size_t pages(size_t bytes) { return (bytes + 4095) / 4096 * 4096; }

static void protect(int protection) {
    for (auto& [begin, block] : blocks()) mprotect(reinterpret_cast<void*>(begin), pages(block.bytes), protection);
}

void on_device(const std::function<void()>& work) {
    static int depth = 0;
    if (depth++ == 0) protect(PROT_READ | PROT_WRITE);
    work();
    if (--depth == 0) protect(PROT_NONE);
}

static size_t used(int device) {
    size_t sum = 0;
    for (auto& [begin, block] : blocks()) sum += block.device == device ? block.bytes : 0;
    return sum;
}

EXPORT Error hipMalloc(void** out, size_t bytes) {
    std::lock_guard<std::recursive_mutex> guard(lock());
    *out = nullptr;
    if (bytes == 0) return end(__func__, SUCCESS);
    if (Error error = injected(__func__)) return end("", error);
    if (used(current_device()) + bytes > config().memory) {
        trace("hipMalloc %zu out of memory", bytes);
        return end("", OUT_OF_MEMORY);
    }
    const int kind = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* memory = mmap(nullptr, pages(bytes), PROT_READ | PROT_WRITE, kind, -1, 0);
    if (memory == MAP_FAILED) return end("", OUT_OF_MEMORY);
    // Memory is not zero on a device. Not all of a large block: untouched pages cost nothing.
    memset(memory, 0x5A, bytes < (64u << 20) ? bytes : 64u << 20);
    mprotect(memory, pages(bytes), PROT_NONE);
    blocks()[uintptr_t(memory)] = {bytes, current_device()};
    allow(memory, bytes);
    *out = memory;
    trace("hipMalloc %zu", bytes);
    return SUCCESS;
}

EXPORT Error hipFree(void* memory) {
    std::lock_guard<std::recursive_mutex> guard(lock());
    if (!memory) return end(__func__, SUCCESS);
    Error error = drain_all();
    auto block = blocks().find(uintptr_t(memory));
    if (block == blocks().end()) return end(__func__, INVALID_VALUE);
    trace("hipFree %zu", block->second.bytes);
    forbid(memory);
    munmap(memory, pages(block->second.bytes));
    blocks().erase(block);
    return end(__func__, error);
}

EXPORT Error hipMemGetInfo(size_t* free, size_t* total) {
    std::lock_guard<std::recursive_mutex> guard(lock());
    *total = config().memory;
    *free = *total - used(current_device());
    return end(__func__, SUCCESS);
}

EXPORT Error hipHostMalloc(void** out, size_t bytes, unsigned) {
    std::lock_guard<std::recursive_mutex> guard(lock());
    trace("hipHostMalloc %zu", bytes);
    *out = aligned_alloc(4096, pages(bytes ? bytes : 1));
    if (!*out) return end(__func__, OUT_OF_MEMORY);
    pinned()[uintptr_t(*out)] = bytes;
    return end(__func__, SUCCESS);
}

EXPORT Error hipHostFree(void* memory) {
    std::lock_guard<std::recursive_mutex> guard(lock());
    Error error = memory ? drain_all() : SUCCESS;
    trace("hipHostFree");
    pinned().erase(uintptr_t(memory));
    free(memory);
    return end(__func__, error);
}
