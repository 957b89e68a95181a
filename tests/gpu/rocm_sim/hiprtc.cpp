// hipRTC, by that of an older HIP where one is installed: it compiles for devices that are not there.
#include "sim.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

static void* older(const char* name) {
    static void* library = dlopen(SIM_OLDER_HIP, RTLD_NOW | RTLD_LOCAL);
    void* function = library ? dlsym(library, name) : nullptr;
    if (!function) fprintf(stderr, "stand-in hipRTC: no %s in %s\n", name, SIM_OLDER_HIP), abort();
    return function;
}

// Whether GPU_SIM_FAIL asks for it, or GPU_SIM_NO_RTC, beside another failure.
static bool fails(const char* name) {
    const char* wish = getenv("GPU_SIM_FAIL");
    return getenv("GPU_SIM_NO_RTC") || (wish && strncmp(wish, name, strlen(name)) == 0);
}

static void note(const char* name) {
    FILE* file = getenv("GPU_SIM_TRACE") ? fopen(getenv("GPU_SIM_TRACE"), "a") : nullptr;
    if (file) fprintf(file, "%s\n", name), fclose(file);
}

#define FORWARD(name, types, arguments)                                                                                \
    EXPORT int name types {                                                                                            \
        note(#name);                                                                                                   \
        if (fails(#name)) return 11;                                                                                   \
        return reinterpret_cast<int(*) types>(older(#name)) arguments;                                                 \
    }

FORWARD(hiprtcVersion, (int* major, int* minor), (major, minor))
FORWARD(hiprtcCreateProgram,
        (void** program, const char* source, const char* name, int headers, const char** sources, const char** names),
        (program, source, name, headers, sources, names))
FORWARD(hiprtcCompileProgram, (void* program, int options, const char** texts), (program, options, texts))
FORWARD(hiprtcGetProgramLogSize, (void* program, size_t* bytes), (program, bytes))
FORWARD(hiprtcGetProgramLog, (void* program, char* log), (program, log))
FORWARD(hiprtcGetCodeSize, (void* program, size_t* bytes), (program, bytes))
FORWARD(hiprtcGetCode, (void* program, char* code), (program, code))
FORWARD(hiprtcDestroyProgram, (void** program), (program))

EXPORT const char* hiprtcGetErrorString(int error) {
    return reinterpret_cast<const char* (*)(int)>(older("hiprtcGetErrorString"))(error);
}
