// Device and pinned memory, and copies.
#include "sim.h"

#include <sys/mman.h>

#include <map>

extern "C" void spark_emulation_allow(const void* begin, size_t bytes);
extern "C" void spark_emulation_forbid(const void* begin);

constexpr size_t PAGE = 4096;
static size_t pages(size_t bytes) { return (bytes + PAGE - 1) / PAGE * PAGE; }

// Begin and bytes. Never freed: the process may end while a thread still frees.
static std::map<uintptr_t, size_t>& memory() {
    static auto* memory = new std::map<uintptr_t, size_t>;
    return *memory;
}

static size_t used() {
    size_t sum = 0;
    for (auto [begin, bytes] : memory()) sum += bytes;
    return sum;
}

static void protect(int protection) {
    for (auto [begin, bytes] : memory()) mprotect(reinterpret_cast<void*>(begin), pages(bytes), protection);
}

static int opened = 0;
Open::Open() {
    if (opened++ == 0) protect(PROT_READ | PROT_WRITE);
}
Open::~Open() {
    if (--opened == 0) protect(PROT_NONE);
}

bool within(CUdeviceptr at, size_t bytes) {
    auto range = memory().upper_bound(at);
    if (range == memory().begin()) return false;
    --range;
    return at - range->first <= range->second && bytes <= range->second - (at - range->first);
}

EXPORT CUresult cuMemAlloc_v2(CUdeviceptr* out, size_t bytes) {
    if (CUresult error = ready(); error != CUDA_SUCCESS) return error;
    if (int error = injected(__func__)) return CUresult(error);
    if (bytes == 0) return INVALID_VALUE;
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (used() + bytes > simulated_memory()) return OUT_OF_MEMORY;
    const int kind = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* at = mmap(nullptr, pages(bytes), PROT_READ | PROT_WRITE, kind, -1, 0);
    if (at == MAP_FAILED) return OUT_OF_MEMORY;
    // Not all of a large block: untouched pages cost nothing.
    memset(at, 0xa5, bytes < (64u << 20) ? bytes : 64u << 20);
    mprotect(at, pages(bytes), PROT_NONE);
    spark_emulation_allow(at, bytes);
    memory()[reinterpret_cast<uintptr_t>(at)] = bytes;
    *out = reinterpret_cast<CUdeviceptr>(at);
    trace("cuMemAlloc %zu", bytes);
    return CUDA_SUCCESS;
}
EXPORT CUresult cuMemFree_v2(CUdeviceptr at) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    auto range = memory().find(at);
    if (range == memory().end()) return complain(INVALID_VALUE, "free of what is not allocated");
    trace("cuMemFree %zu", range->second);
    spark_emulation_forbid(reinterpret_cast<void*>(at));
    munmap(reinterpret_cast<void*>(at), pages(range->second));
    memory().erase(range);
    return faulted();
}
EXPORT CUresult cuMemHostAlloc(void** out, size_t bytes, unsigned) {
    if (int error = injected(__func__)) return CUresult(error);
    trace("cuMemHostAlloc %zu", bytes);
    *out = std::malloc(bytes);
    return *out ? ready() : OUT_OF_MEMORY;
}
EXPORT CUresult cuMemFreeHost(void* at) {
    trace("cuMemFreeHost");
    std::free(at);
    return faulted();
}
EXPORT CUresult cuMemGetInfo_v2(size_t* free, size_t* total) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    *total = simulated_memory();
    *free = *total - used();
    return ready();
}

// Addresses of the host and of the device alike. A copy of a stream runs at once, as everything does.
EXPORT CUresult cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    trace("copy %s %zu bytes %s to %s", name_of(stream), bytes, within(from, 0) ? "device" : "host",
          within(to, 0) ? "device" : "host");
    return queue(stream, [=] {
        Open open;
        for (CUdeviceptr at : {to, from}) {
            if (within(at, 0) && !within(at, bytes)) return complain(INVALID_VALUE, "a copy out of bounds");
        }
        std::memmove(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes);
        return CUDA_SUCCESS;
    });
}
EXPORT CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes) {
    if (CUresult error = ready(); error != CUDA_SUCCESS) return error;
    Open open;
    if (!within(to, bytes)) return complain(INVALID_VALUE, "a copy out of bounds");
    std::memcpy(reinterpret_cast<void*>(to), from, bytes);
    return CUDA_SUCCESS;
}
EXPORT CUresult cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) {
    if (CUresult error = ready(); error != CUDA_SUCCESS) return error;
    Open open;
    if (!within(from, bytes)) return complain(INVALID_VALUE, "a copy out of bounds");
    std::memcpy(to, reinterpret_cast<void*>(from), bytes);
    return CUDA_SUCCESS;
}
EXPORT CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    return queue(stream, [=] {
        Open open;
        if (!within(to, bytes) || !within(from, bytes)) return complain(INVALID_VALUE, "a copy out of bounds");
        std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes);
        return CUDA_SUCCESS;
    });
}
EXPORT CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t bytes, CUstream stream) {
    return queue(stream, [=] {
        Open open;
        if (!within(to, bytes)) return complain(INVALID_VALUE, "a fill out of bounds");
        std::memset(reinterpret_cast<void*>(to), value, bytes);
        return CUDA_SUCCESS;
    });
}
