// Devices, contexts, code, launches and errors.
#include "sim.h"

#include <map>
#include <memory>
#include <vector>

#include "../../../ops/call.h"

extern "C" int spark_emulate(const char* kernel, const unsigned grid[3], const unsigned block[3], unsigned shared_bytes,
                             const void* call, unsigned wave_size, char* error, size_t error_len);

struct CUfunc_st {
    std::string name;
    int device;
    unsigned most_shared_bytes = 48 * 1024;
};
struct CUmod_st {
    int device;
    std::map<std::string, std::unique_ptr<CUfunc_st>> functions;
};

std::recursive_mutex lock;
static CUresult sticky = CUDA_SUCCESS;
static bool initialised = false;

constexpr int MOST_DEVICES = 8;
static char handles[MOST_DEVICES]; // of which the addresses are the contexts
static thread_local std::vector<CUcontext> contexts; // the current one last

static int devices() {
    static const int count = int(simulated_devices());
    return count < MOST_DEVICES ? count : MOST_DEVICES;
}
static CUcontext context_of(int device) { return reinterpret_cast<CUcontext>(&handles[device]); }
static bool is_context(CUcontext given) { return given >= context_of(0) && given < context_of(devices()); }

int current_device() {
    return contexts.empty() ? -1 : int(reinterpret_cast<char*>(contexts.back()) - handles);
}
CUresult complain(CUresult error, const std::string& what) {
    std::fprintf(stderr, "stand-in libcuda: %s\n", what.c_str());
    return error;
}
CUresult fault(CUresult error) { return sticky = error; }
CUresult faulted() { return sticky; }
CUresult ready() {
    if (!initialised) return complain(NOT_INITIALIZED, "cuInit was not called");
    if (contexts.empty()) return complain(INVALID_CONTEXT, "no context is current in this thread");
    if (is_captured()) return complain(CAPTURE_UNSUPPORTED, "a call that a capture does not allow");
    return sticky;
}

// benches/cuda/read.cu
static CUresult read_words(CUdeviceptr from, uint64_t bytes, CUdeviceptr to) {
    Open open;
    if (!within(from, bytes) || !within(to, 4)) {
        return fault(complain(ILLEGAL_ADDRESS, "read_words out of bounds"));
    }
    uint32_t all = 0;
    for (uint64_t i = 0; i < bytes / 16 * 4; ++i) all ^= reinterpret_cast<uint32_t*>(from)[i];
    if (all == 0) *reinterpret_cast<uint32_t*>(to) = 1;
    return CUDA_SUCCESS;
}

static CUresult emulate(const std::string& kernel, const unsigned (&grid)[3], const unsigned (&block)[3],
                        unsigned shared_bytes, const SparkCall& call) {
    Open open;
    char problem[1024] = "";
    if (int error = injected("kernel")) {
        fault(CUresult(error));
    } else if (spark_emulate(kernel.c_str(), grid, block, shared_bytes, &call, 32, problem, sizeof problem) != 0) {
        fault(complain(ILLEGAL_ADDRESS, problem));
    }
    // The launch itself went well.
    return CUDA_SUCCESS;
}

EXPORT CUresult cuInit(unsigned flags) {
    initialised = true;
    return flags == 0 ? CUDA_SUCCESS : INVALID_VALUE;
}
EXPORT CUresult cuDriverGetVersion(int* version) {
    *version = 13000;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceGetCount(int* count) {
    *count = devices();
    return initialised ? CUDA_SUCCESS : NOT_INITIALIZED;
}
EXPORT CUresult cuDeviceGet(CUdevice* device, int ordinal) {
    *device = ordinal;
    return ordinal >= 0 && ordinal < devices() ? CUDA_SUCCESS : INVALID_DEVICE;
}
EXPORT CUresult cuDeviceGetName(char* name, int bytes, CUdevice) {
    std::snprintf(name, size_t(bytes), "stand-in, no GPU");
    return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice) {
    static const std::map<int, int> values = {
        {10, 32}, {16, 4}, {38, 1 << 20}, {75, 9}, {76, 0}, {97, int(MOST_SHARED_BYTES)},
    };
    if (int error = injected(__func__)) return CUresult(error);
    auto known = values.find(int(which));
    if (known == values.end()) return complain(INVALID_VALUE, "attribute " + std::to_string(int(which)));
    *value = known->second;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceGetPCIBusId(char* name, int bytes, CUdevice device) {
    std::snprintf(name, size_t(bytes), "0000:%02x:00.0", device + 1);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext* out, CUdevice device) {
    if (device < 0 || device >= devices()) return INVALID_DEVICE;
    *out = context_of(device);
    return initialised ? CUDA_SUCCESS : NOT_INITIALIZED;
}
EXPORT CUresult cuCtxSetCurrent(CUcontext given) {
    if (!is_context(given)) return complain(INVALID_CONTEXT, "an unknown context");
    if (contexts.empty()) contexts.emplace_back();
    contexts.back() = given;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxPushCurrent_v2(CUcontext given) {
    if (!is_context(given)) return complain(INVALID_CONTEXT, "an unknown context");
    contexts.push_back(given);
    return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxPopCurrent_v2(CUcontext* popped) {
    if (contexts.empty()) return complain(INVALID_CONTEXT, "no context is current");
    *popped = contexts.back();
    contexts.pop_back();
    return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxSynchronize() {
    trace("cuCtxSynchronize");
    return ready();
}

EXPORT CUresult cuModuleLoadData(CUmodule* module, const void* image) {
    if (CUresult error = ready(); error != CUDA_SUCCESS) return error;
    trace("cuModuleLoadData device %d", current_device());
    if (int error = injected(__func__)) return CUresult(error);
    const unsigned char fatbin[] = {0x50, 0xed, 0x55, 0xba}, cubin[] = {0x7f, 'E', 'L', 'F'};
    if (std::memcmp(image, fatbin, 4) != 0 && std::memcmp(image, cubin, 4) != 0) return INVALID_IMAGE;
    *module = new CUmod_st{current_device(), {}};
    return CUDA_SUCCESS;
}
EXPORT CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
    if (std::strncmp(name, "spark_", 6) != 0 && std::strcmp(name, "read_words") != 0) return NOT_FOUND;
    std::lock_guard<std::recursive_mutex> guard(lock);
    auto& slot = module->functions[name];
    if (!slot) slot.reset(new CUfunc_st{name, module->device});
    *function = slot.get();
    return CUDA_SUCCESS;
}
EXPORT CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute which, int value) {
    if (int(which) != 8 || value < 0 || unsigned(value) > MOST_SHARED_BYTES) return INVALID_VALUE;
    function->most_shared_bytes = unsigned(value);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                               unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                               CUstream stream, void** arguments, void** extra) {
    if (int error = injected(__func__)) return CUresult(error);
    if (extra || block_x * block_y * block_z > MOST_THREADS || grid_x == 0 || grid_y == 0 || grid_z == 0 ||
        grid_z > 65535 || shared_bytes > function->most_shared_bytes) {
        return complain(INVALID_VALUE, "a launch of " + function->name + " that no device takes");
    }
    if (function->device != current_device()) {
        return complain(INVALID_VALUE, function->name + " is of another device than the current one");
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
    trace("launch %s on %s", function->name.c_str(), name_of(stream));
    return queue(stream, [=, name = function->name] {
        return emulate(name, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes, call);
    });
}

static const char* describe(CUresult error, bool name) {
    static const std::map<int, std::pair<const char*, const char*>> known = {
        {INVALID_VALUE, {"CUDA_ERROR_INVALID_VALUE", "invalid argument"}},
        {OUT_OF_MEMORY, {"CUDA_ERROR_OUT_OF_MEMORY", "out of memory"}},
        {NO_DEVICE, {"CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"}},
        {INVALID_DEVICE, {"CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"}},
        {ILLEGAL_ADDRESS, {"CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"}},
        {719, {"CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"}},
        {CAPTURE_UNSUPPORTED,
         {"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"}},
    };
    auto found = known.find(int(error));
    if (found == known.end()) return name ? "CUDA_ERROR_UNKNOWN" : "see standard error";
    return name ? found->second.first : found->second.second;
}
EXPORT CUresult cuGetErrorName(CUresult error, const char** name) {
    *name = describe(error, true);
    return CUDA_SUCCESS;
}
EXPORT CUresult cuGetErrorString(CUresult error, const char** text) {
    *text = describe(error, false);
    return CUDA_SUCCESS;
}
