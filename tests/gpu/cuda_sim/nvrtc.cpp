// A stand-in for libnvrtc.so.13 beside the one for libcuda: "compiles" the kernels to a file that only begins as code
// for NVIDIA GPUs does. The stand-in for libcuda runs kernels by emulation, whatever code it was given.
#include "../record.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {
constexpr size_t BYTES = 128;
int program;
} // namespace

EXPORT int nvrtcCreateProgram(void** out, const char* source, const char*, int, const char* const*,
                              const char* const*) {
    *out = &program;
    return source && std::strlen(source) > 0 ? 0 : 3;
}
EXPORT int nvrtcCompileProgram(void*, int count, const char* const* options) {
    trace("nvrtcCompileProgram");
    if (int error = injected(__func__)) return error;
    if (getenv("GPU_SIM_NO_RTC")) return 11;
    for (int i = 0; i < count; ++i) {
        if (std::strcmp(options[i], "--gpu-architecture=sm_90") == 0) return 0;
    }
    return 5;
}
EXPORT int nvrtcGetProgramLogSize(void*, size_t* bytes) {
    *bytes = 1;
    return 0;
}
EXPORT int nvrtcGetProgramLog(void*, char* log) {
    *log = 0;
    return 0;
}
EXPORT int nvrtcGetCUBINSize(void*, size_t* bytes) {
    *bytes = BYTES;
    return 0;
}
EXPORT int nvrtcGetCUBIN(void*, char* code) {
    std::memset(code, 0, BYTES);
    std::memcpy(code, "\x7f" "ELF\x02", 5);
    code[18] = char(190);
    return 0;
}
EXPORT int nvrtcDestroyProgram(void** gone) {
    *gone = nullptr;
    return 0;
}
