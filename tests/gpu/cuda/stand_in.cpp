// A stand-in for libcuda.so.1: the functions that src/gpu/cuda and tests/gpu/cuda call, on a GPU that is the emulation
// of the kernels with waves of 32. It shows that the calls fit together, not that the kernels are right (the emulation
// does that without it), nor any time: what would be left to try on a real GPU is then only what the GPU does.
//
// Device memory is protected while no kernel or copy runs, so that a host that touches it crashes; new memory is not
// zero. Streams are not distinguished, and what is queued runs at once, except while a stream is captured.
//
// Built with NVIDIA's cuda.h at hand (`tools/cuda.sh build`), the compiler compares all signatures with it.
#if __has_include(<cuda.h>)
#include <cuda.h>
// The numbers in tests/gpu/cuda.
static_assert(CU_DEVICE_ATTRIBUTE_WARP_SIZE == 10 && CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT == 16);
static_assert(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE == 38 && CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN == 97);
static_assert(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR == 75 && CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR == 76);
static_assert(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES == 8);
static_assert(CU_STREAM_CAPTURE_STATUS_NONE == 0 && CU_STREAM_CAPTURE_STATUS_ACTIVE == 1);
static_assert(CU_STREAM_NON_BLOCKING == 1 && CU_STREAM_CAPTURE_MODE_THREAD_LOCAL == 1);
#else
typedef enum { CUDA_SUCCESS = 0 } CUresult;
typedef int CUdevice, CUdevice_attribute, CUfunction_attribute, CUstreamCaptureMode, CUstreamCaptureStatus;
typedef unsigned long long CUdeviceptr, cuuint64_t;
typedef struct CUctx_st* CUcontext;
typedef struct CUmod_st* CUmodule;
typedef struct CUfunc_st* CUfunction;
typedef struct CUstream_st* CUstream;
typedef struct CUevent_st* CUevent;
typedef struct CUgraph_st* CUgraph;
typedef struct CUgraphExec_st* CUgraphExec;
#endif

#include <sys/mman.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "../../../ops/call.h"

extern "C" void spark_emulation_allow(const void* begin, size_t bytes);
extern "C" void spark_emulation_forbid(const void* begin);
extern "C" int spark_emulate(const char* kernel, const unsigned grid[3], const unsigned block[3], unsigned shared_bytes,
                             const void* call, unsigned wave_size, char* error, size_t error_len);

struct CUfunc_st {
    std::string name;
    unsigned most_shared_bytes = 48 * 1024;
};
struct CUmod_st {
    std::map<std::string, std::unique_ptr<CUfunc_st>> functions;
};
struct CUstream_st {};
struct CUevent_st {
    std::chrono::steady_clock::time_point when;
};
using Work = std::function<CUresult()>;
struct CUgraph_st {
    std::vector<Work> works;
};
struct CUgraphExec_st {
    std::vector<Work> works;
};

namespace {

constexpr CUresult INVALID_VALUE = CUresult(1), NOT_INITIALIZED = CUresult(3), INVALID_CONTEXT = CUresult(201),
                   INVALID_IMAGE = CUresult(200), NOT_FOUND = CUresult(500), ILLEGAL_ADDRESS = CUresult(700),
                   CAPTURE_UNSUPPORTED = CUresult(900);
constexpr unsigned MOST_SHARED_BYTES = 227 * 1024, MOST_THREADS = 1024;
constexpr size_t PAGE = 4096;

char context; // of which the address is the handle
thread_local std::vector<CUcontext> contexts; // the current one last
bool initialised = false;
std::recursive_mutex lock;
std::map<uintptr_t, size_t> memory; // begin and bytes
CUresult sticky = CUDA_SUCCESS;     // a fault ends a context
CUgraph captured = nullptr;
CUstream capturing = nullptr;

CUresult complain(CUresult error, const std::string& what) {
    std::fprintf(stderr, "stand-in libcuda: %s\n", what.c_str());
    return error;
}

size_t pages(size_t bytes) { return (bytes + PAGE - 1) / PAGE * PAGE; }

// While it lives, device memory can be touched.
struct Open {
    std::lock_guard<std::recursive_mutex> guard{lock};
    Open() { protect(PROT_READ | PROT_WRITE); }
    ~Open() { protect(PROT_NONE); }
    static void protect(int protection) {
        for (auto [begin, bytes] : memory) mprotect(reinterpret_cast<void*>(begin), pages(bytes), protection);
    }
};

bool within(CUdeviceptr at, size_t bytes) {
    auto range = memory.upper_bound(at);
    if (range == memory.begin()) return false;
    --range;
    return at - range->first <= range->second && bytes <= range->second - (at - range->first);
}

// Runs now, or later where the stream is being captured.
CUresult queue(CUstream stream, Work work) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (contexts.empty()) return complain(INVALID_CONTEXT, "no context is current in this thread");
    if (sticky != CUDA_SUCCESS) return sticky;
    if (captured && stream == capturing) {
        captured->works.push_back(std::move(work));
        return CUDA_SUCCESS;
    }
    if (captured) return complain(CAPTURE_UNSUPPORTED, "work on another stream during a capture");
    return work();
}

// What only makes sense when nothing is captured.
CUresult ready() {
    if (!initialised) return complain(NOT_INITIALIZED, "cuInit was not called");
    if (contexts.empty()) return complain(INVALID_CONTEXT, "no context is current in this thread");
    if (captured) return complain(CAPTURE_UNSUPPORTED, "a call that a capture does not allow");
    return sticky;
}

CUresult copy(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    Open open;
    if (!within(to, bytes) || !within(from, bytes)) return complain(INVALID_VALUE, "a copy out of bounds");
    std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes);
    return CUDA_SUCCESS;
}

// benches/cuda/read.cu
CUresult read_words(CUdeviceptr from, uint64_t bytes, CUdeviceptr to) {
    Open open;
    if (!within(from, bytes) || !within(to, 4)) return sticky = complain(ILLEGAL_ADDRESS, "read_words out of bounds");
    uint32_t all = 0;
    for (uint64_t i = 0; i < bytes / 16 * 4; ++i) all ^= reinterpret_cast<uint32_t*>(from)[i];
    if (all == 0) *reinterpret_cast<uint32_t*>(to) = 1;
    return CUDA_SUCCESS;
}

CUresult emulate(const std::string& kernel, const unsigned (&grid)[3], const unsigned (&block)[3],
                 unsigned shared_bytes, const SparkCall& call) {
    Open open;
    char problem[1024] = "";
    if (spark_emulate(kernel.c_str(), grid, block, shared_bytes, &call, 32, problem, sizeof problem) != 0) {
        return sticky = complain(ILLEGAL_ADDRESS, problem);
    }
    return CUDA_SUCCESS;
}

} // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT CUresult cuInit(unsigned flags) {
    initialised = true;
    return flags == 0 ? CUDA_SUCCESS : INVALID_VALUE;
}
EXPORT CUresult cuDriverGetVersion(int* version) {
    *version = 13000;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceGetCount(int* count) {
    *count = 1;
    return initialised ? CUDA_SUCCESS : NOT_INITIALIZED;
}
EXPORT CUresult cuDeviceGet(CUdevice* device, int ordinal) {
    *device = 0;
    return ordinal == 0 ? CUDA_SUCCESS : INVALID_VALUE;
}
EXPORT CUresult cuDeviceGetName(char* name, int bytes, CUdevice) {
    std::snprintf(name, size_t(bytes), "stand-in, no GPU");
    return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice) {
    static const std::map<int, int> values = {
        {10, 32}, {16, 4}, {38, 1 << 20}, {75, 9}, {76, 0}, {97, int(MOST_SHARED_BYTES)},
    };
    auto known = values.find(int(which));
    if (known == values.end()) return complain(INVALID_VALUE, "attribute " + std::to_string(int(which)));
    *value = known->second;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext* out, CUdevice) {
    *out = reinterpret_cast<CUcontext>(&context);
    return initialised ? CUDA_SUCCESS : NOT_INITIALIZED;
}
EXPORT CUresult cuCtxSetCurrent(CUcontext given) {
    if (given != reinterpret_cast<CUcontext>(&context)) return complain(INVALID_CONTEXT, "an unknown context");
    if (contexts.empty()) contexts.emplace_back();
    contexts.back() = given;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxPushCurrent_v2(CUcontext given) {
    if (given != reinterpret_cast<CUcontext>(&context)) return complain(INVALID_CONTEXT, "an unknown context");
    contexts.push_back(given);
    return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxPopCurrent_v2(CUcontext* popped) {
    if (contexts.empty()) return complain(INVALID_CONTEXT, "no context is current");
    *popped = contexts.back();
    contexts.pop_back();
    return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceGetPCIBusId(char* name, int bytes, CUdevice) {
    std::snprintf(name, size_t(bytes), "0000:01:00.0");
    return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxSynchronize() { return ready(); }

EXPORT CUresult cuModuleLoadData(CUmodule* module, const void* image) {
    if (CUresult error = ready(); error != CUDA_SUCCESS) return error;
    const unsigned char fatbin[] = {0x50, 0xed, 0x55, 0xba}, cubin[] = {0x7f, 'E', 'L', 'F'};
    if (std::memcmp(image, fatbin, 4) != 0 && std::memcmp(image, cubin, 4) != 0) return INVALID_IMAGE;
    *module = new CUmod_st;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
    if (std::strncmp(name, "spark_", 6) != 0 && std::strcmp(name, "read_words") != 0) return NOT_FOUND;
    std::lock_guard<std::recursive_mutex> guard(lock);
    auto& slot = module->functions[name];
    if (!slot) slot.reset(new CUfunc_st{name});
    *function = slot.get();
    return CUDA_SUCCESS;
}
EXPORT CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute which, int value) {
    if (int(which) != 8 || value < 0 || unsigned(value) > MOST_SHARED_BYTES) return INVALID_VALUE;
    function->most_shared_bytes = unsigned(value);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemAlloc_v2(CUdeviceptr* out, size_t bytes) {
    if (CUresult error = ready(); error != CUDA_SUCCESS) return error;
    if (bytes == 0) return INVALID_VALUE;
    std::lock_guard<std::recursive_mutex> guard(lock);
    void* at = mmap(nullptr, pages(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) return CUresult(2);
    std::memset(at, 0xa5, bytes);
    mprotect(at, pages(bytes), PROT_NONE);
    spark_emulation_allow(at, bytes);
    memory[reinterpret_cast<uintptr_t>(at)] = bytes;
    *out = reinterpret_cast<CUdeviceptr>(at);
    return CUDA_SUCCESS;
}
EXPORT CUresult cuMemFree_v2(CUdeviceptr at) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    auto range = memory.find(at);
    if (range == memory.end()) return complain(INVALID_VALUE, "free of what is not allocated");
    spark_emulation_forbid(reinterpret_cast<void*>(at));
    munmap(reinterpret_cast<void*>(at), pages(range->second));
    memory.erase(range);
    return CUDA_SUCCESS;
}
EXPORT CUresult cuMemHostAlloc(void** out, size_t bytes, unsigned) {
    *out = std::malloc(bytes);
    return *out ? ready() : CUresult(2);
}
EXPORT CUresult cuMemFreeHost(void* at) {
    std::free(at);
    return CUDA_SUCCESS;
}
// Addresses of the host and of the device alike. A copy of a stream runs at once, as everything does.
EXPORT CUresult cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
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
    return queue(stream, [=] { return copy(to, from, bytes); });
}

EXPORT CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                               unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                               CUstream stream, void** arguments, void** extra) {
    if (extra || block_x * block_y * block_z > MOST_THREADS || grid_x == 0 || grid_y == 0 || grid_z == 0 ||
        grid_z > 65535 || shared_bytes > function->most_shared_bytes) {
        return complain(INVALID_VALUE, "a launch of " + function->name + " that no device takes");
    }
    if (function->name == "read_words") {
        CUdeviceptr from, to;
        uint64_t bytes;
        std::memcpy(&from, arguments[0], 8);
        std::memcpy(&bytes, arguments[1], 8);
        std::memcpy(&to, arguments[2], 8);
        return queue(stream, [=] { return read_words(from, bytes, to); });
    }
    SparkCall call;
    std::memcpy(&call, arguments[0], sizeof call);
    return queue(stream, [=, name = function->name] {
        return emulate(name, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes, call);
    });
}

EXPORT CUresult cuStreamCreate(CUstream* stream, unsigned) {
    *stream = new CUstream_st;
    return ready();
}
EXPORT CUresult cuStreamDestroy_v2(CUstream stream) {
    delete stream;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuStreamSynchronize(CUstream) { return ready(); }
EXPORT CUresult cuStreamWaitEvent(CUstream, CUevent, unsigned) { return ready(); }
EXPORT CUresult cuEventDestroy_v2(CUevent event) {
    delete event;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuStreamBeginCapture_v2(CUstream stream, CUstreamCaptureMode) {
    if (CUresult error = ready(); error != CUDA_SUCCESS) return error;
    if (!stream) return complain(CAPTURE_UNSUPPORTED, "the default stream cannot be captured");
    captured = new CUgraph_st;
    capturing = stream;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuStreamEndCapture(CUstream stream, CUgraph* graph) {
    if (!captured || stream != capturing) return complain(CAPTURE_UNSUPPORTED, "no capture of this stream");
    *graph = captured;
    captured = nullptr;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus* status) {
    *status = CUstreamCaptureStatus(captured && stream == capturing ? 1 : 0);
    return ready();
}
EXPORT CUresult cuGraphInstantiateWithFlags(CUgraphExec* executable, CUgraph graph, unsigned long long flags) {
    if (flags != 0) return INVALID_VALUE;
    *executable = new CUgraphExec_st{graph->works};
    return CUDA_SUCCESS;
}
EXPORT CUresult cuGraphDestroy(CUgraph graph) {
    delete graph;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuGraphExecDestroy(CUgraphExec executable) {
    delete executable;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuGraphLaunch(CUgraphExec executable, CUstream stream) {
    for (const Work& work : executable->works) {
        if (CUresult error = queue(stream, work); error != CUDA_SUCCESS) return error;
    }
    return CUDA_SUCCESS;
}

EXPORT CUresult cuEventCreate(CUevent* event, unsigned) {
    *event = new CUevent_st;
    return ready();
}
EXPORT CUresult cuEventRecord(CUevent event, CUstream stream) {
    return queue(stream, [=] {
        event->when = std::chrono::steady_clock::now();
        return CUDA_SUCCESS;
    });
}
EXPORT CUresult cuEventSynchronize(CUevent) { return ready(); }
#undef cuEventElapsedTime
EXPORT CUresult cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end) {
    *milliseconds = std::chrono::duration<float, std::milli>(end->when - start->when).count();
    return CUDA_SUCCESS;
}

EXPORT CUresult cuGetErrorName(CUresult, const char** name) {
    *name = "an error of the stand-in";
    return CUDA_SUCCESS;
}
EXPORT CUresult cuGetErrorString(CUresult, const char** text) {
    *text = "see standard error";
    return CUDA_SUCCESS;
}
