// The bridge to the emulation of the kernels.
#include "sim.h"

#include <dlfcn.h>

#include <cstdlib>

using Emulate = int (*)(const char*, const unsigned*, const unsigned*, unsigned, const void*, unsigned, char*, size_t);

struct Emulation {
    Emulate run = nullptr;
    void (*allow)(const void*, size_t) = nullptr;
    void (*forbid)(const void*) = nullptr;

    Emulation() {
        if (config().emulation.empty()) return;
        void* library = dlopen(config().emulation.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (!library) {
            complain("%s", dlerror());
            return;
        }
        run = reinterpret_cast<Emulate>(dlsym(library, "spark_emulate"));
        allow = reinterpret_cast<void (*)(const void*, size_t)>(dlsym(library, "spark_emulation_allow"));
        forbid = reinterpret_cast<void (*)(const void*)>(dlsym(library, "spark_emulation_forbid"));
        if (!run || !allow || !forbid) {
            complain("%s lacks functions of the emulation", config().emulation.c_str());
            run = nullptr;
        }
    }
};

static Emulation& emulation() {
    static auto* emulation = new Emulation;
    return *emulation;
}

void allow(const void* begin, size_t bytes) {
    if (emulation().run) emulation().allow(begin, bytes);
}

void forbid(const void* begin) {
    if (emulation().run) emulation().forbid(begin);
}

Error emulate(const std::string& kernel, const unsigned grid[3], const unsigned block[3], unsigned shared_bytes,
              const void* call) {
    if (Error error = injected("kernel")) return error;
    if (!emulation().run) {
        complain("no emulation to run %s: set SPARK_EMULATION", kernel.c_str());
        return NOT_SUPPORTED;
    }
    char problem[1024] = "";
    if (emulation().run(kernel.c_str(), grid, block, shared_bytes, call, config().wave, problem, sizeof problem) == 0) {
        return SUCCESS;
    }
    complain("%s: %s", kernel.c_str(), problem);
    trace("fault %s: %s", kernel.c_str(), problem);
    return ILLEGAL_ADDRESS;
}
