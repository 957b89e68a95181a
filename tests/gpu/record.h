// What every stand-in for a GPU driver writes down, and how it is made to fail.
//
// Environment:
//   GPU_SIM_TRACE     file that gets a line for every call that matters to the tests
//   GPU_SIM_FAIL      FUNCTION:N:CODE, the N-th call (from 1) of a function returns this error; the N-th kernel that
//                     runs where FUNCTION is "kernel". N+ for all calls from the N-th on
//   GPU_SIM_DEVICES   number of devices, 1 by default
//   GPU_SIM_MEMORY    bytes of memory of a device, 4 GiB by default
//   GPU_SIM_NO_RTC    hipRTC and NVRTC fail, whatever GPU_SIM_FAIL says
#pragma once

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>

inline std::string setting(const char* name, const char* otherwise) {
    const char* value = getenv(name);
    return value && *value ? value : otherwise;
}
inline unsigned simulated_devices() { return unsigned(std::stoul(setting("GPU_SIM_DEVICES", "1"))); }
inline size_t simulated_memory() { return std::stoull(setting("GPU_SIM_MEMORY", "4294967296")); }

// Appends a line to GPU_SIM_TRACE.
__attribute__((format(printf, 1, 2))) inline void trace(const char* format, ...) {
    static FILE* file = getenv("GPU_SIM_TRACE") ? fopen(getenv("GPU_SIM_TRACE"), "a") : nullptr;
    if (!file) return;
    char line[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    fprintf(file, "%s\n", line);
    fflush(file);
}

// The error that GPU_SIM_FAIL has for this call of `function`, or 0: NAME:FIRST:CODE, NAME:FIRST-LAST:CODE or
// NAME:FIRST+:CODE. Each call counts once.
inline int injected(const char* function) {
    static const char* wish = getenv("GPU_SIM_FAIL");
    static std::mutex mutex;
    static unsigned calls = 0;
    const size_t name = strlen(function);
    if (!wish || strncmp(wish, function, name) != 0 || wish[name] != ':') return 0;
    std::lock_guard<std::mutex> guard(mutex);
    unsigned first = 0, last = 0;
    int code = 0;
    const char* which = wish + name;
    if (sscanf(which, ":%u+:%d", &first, &code) == 2) {
        last = ~0u;
    } else if (sscanf(which, ":%u-%u:%d", &first, &last, &code) != 3) {
        if (sscanf(which, ":%u:%d", &first, &code) != 2) fprintf(stderr, "GPU_SIM_FAIL=%s\n", wish);
        last = first;
    }
    calls++;
    if (calls < first || calls > last) return 0;
    trace("injected %s %d", function, code);
    return code;
}
