// Devices, errors and configuration.
#include "sim.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

const Config& config() {
    static const Config config = {
        setting("GPU_SIM_ARCH", "gfx90a:sramecc+:xnack-"),
        setting("SPARK_EMULATION", ""),
        unsigned(std::stoul(setting("GPU_SIM_WAVE", "64"))),
        simulated_devices(),
        simulated_memory(),
    };
    return config;
}

std::recursive_mutex& lock() {
    static auto* mutex = new std::recursive_mutex;
    return *mutex;
}

static thread_local Error last = SUCCESS;
static thread_local int device = 0;

int current_device() { return device; }

void complain(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("stand-in HIP runtime: ", stderr);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
}

Error end(const char* function, Error error) {
    if (error == SUCCESS) error = injected(function);
    if (error != SUCCESS) last = error;
    return error;
}

EXPORT Error hipGetLastError() {
    Error error = last;
    last = SUCCESS;
    return error;
}

EXPORT Error hipPeekAtLastError() { return last; }

static const std::map<Error, std::pair<const char*, const char*>>& names() {
    static const std::map<Error, std::pair<const char*, const char*>> names = {
        {SUCCESS, {"hipSuccess", "no error"}},
        {INVALID_VALUE, {"hipErrorInvalidValue", "invalid argument"}},
        {OUT_OF_MEMORY, {"hipErrorOutOfMemory", "out of memory"}},
        {NO_DEVICE, {"hipErrorNoDevice", "no ROCm-capable device is detected"}},
        {INVALID_DEVICE, {"hipErrorInvalidDevice", "invalid device ordinal"}},
        {INVALID_IMAGE, {"hipErrorInvalidImage", "device kernel image is invalid"}},
        {NO_BINARY_FOR_GPU, {"hipErrorNoBinaryForGpu", "no kernel image is available for execution on the device"}},
        {NOT_FOUND, {"hipErrorNotFound", "named symbol not found"}},
        {ILLEGAL_ADDRESS, {"hipErrorIllegalAddress", "an illegal memory access was encountered"}},
        {719, {"hipErrorLaunchFailure", "unspecified launch failure"}},
        {NOT_SUPPORTED, {"hipErrorNotSupported", "operation not supported"}},
    };
    return names;
}

EXPORT const char* hipGetErrorName(Error error) {
    auto known = names().find(error);
    return known == names().end() ? "hipErrorUnknown" : known->second.first;
}

EXPORT const char* hipGetErrorString(Error error) {
    auto known = names().find(error);
    return known == names().end() ? "unknown error" : known->second.second;
}

EXPORT Error hipInit(unsigned) { return end(__func__, config().devices ? SUCCESS : NO_DEVICE); }

EXPORT Error hipRuntimeGetVersion(int* version) {
    *version = 70226015;
    return end(__func__, SUCCESS);
}

EXPORT Error hipGetDeviceCount(int* count) {
    *count = int(config().devices);
    return end(__func__, *count ? SUCCESS : NO_DEVICE);
}

static Error check(int ordinal) {
    if (config().devices == 0) return NO_DEVICE;
    return ordinal >= 0 && unsigned(ordinal) < config().devices ? SUCCESS : INVALID_DEVICE;
}

EXPORT Error hipSetDevice(int ordinal) {
    Error error = check(ordinal);
    if (error == SUCCESS) device = ordinal;
    return end(__func__, error);
}

EXPORT Error hipGetDevice(int* ordinal) {
    *ordinal = device;
    return end(__func__, check(device));
}

EXPORT Error hipDeviceGetAttribute(int* value, int, int ordinal) {
    *value = 0;
    return end(__func__, check(ordinal));
}

// hipDeviceProp_tR0600, the structure of HIP 6 and 7: the fields that somebody reads.
struct Properties {
    char name[256];
    char identity[32];
    size_t global_bytes, shared_bytes;
    int registers, warp_size;
    size_t pitch;
    int block_threads, block_dim[3], grid_dim[3], clock;
    size_t constant_bytes;
    int major, minor;
    size_t texture[2];
    int overlap, compute_units;
    char others[768];
    char arch[256];
    char rest[56];
};
static_assert(offsetof(Properties, warp_size) == 308 && offsetof(Properties, compute_units) == 388, "as in HIP 6");
static_assert(offsetof(Properties, arch) == 1160 && sizeof(Properties) == 1472, "as in HIP 6");

EXPORT Error hipGetDevicePropertiesR0600(Properties* properties, int ordinal) {
    Error error = check(ordinal);
    if (error == SUCCESS) {
        *properties = {};
        snprintf(properties->name, sizeof properties->name, "stand-in device %d", ordinal);
        snprintf(properties->arch, sizeof properties->arch, "%s", config().arch.c_str());
        properties->global_bytes = config().memory;
        properties->shared_bytes = 65536;
        properties->registers = 65536;
        properties->warp_size = int(config().wave);
        properties->block_threads = 1024;
        for (int i = 0; i < 3; i++) properties->block_dim[i] = 1024, properties->grid_dim[i] = 2147483647;
        properties->major = 9;
        properties->compute_units = 104;
    }
    return end(__func__, error);
}
