// Code objects and launches. A code object is read as far as a loader reads it: it must be for the device's processor
// and hold the kernels asked for. What runs is the emulation of the kernel of that name.
#include "sim.h"

#include <elf.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <set>
#include <vector>

struct Module {
    std::set<std::string> kernels;
    int device;
};

struct Function {
    Module* module;
    std::string name;
};

// Processors of the LLVM AMDGPU ABI, the low byte of e_flags.
static unsigned machine(const std::string& arch) {
    static const std::map<std::string, unsigned> machines = {
        {"gfx906", 0x2f},  {"gfx908", 0x30},  {"gfx90a", 0x3f},  {"gfx940", 0x40},  {"gfx942", 0x4c},
        {"gfx950", 0x4f},  {"gfx1030", 0x36}, {"gfx1031", 0x37}, {"gfx1100", 0x41}, {"gfx1101", 0x46},
        {"gfx1102", 0x47}, {"gfx1200", 0x48}, {"gfx1201", 0x4e},
    };
    auto known = machines.find(arch.substr(0, arch.find(':')));
    return known == machines.end() ? 0 : known->second;
}

static Error read(const char* image, Module& module) {
    constexpr char BUNDLE[] = "__CLANG_OFFLOAD_BUNDLE__";
    if (memcmp(image, BUNDLE, sizeof BUNDLE - 1) == 0) {
        uint64_t count;
        memcpy(&count, image + 24, 8);
        const char* at = image + 32;
        for (uint64_t i = 0; i < count; i++) {
            uint64_t entry[3]; // offset, bytes, bytes of the name
            memcpy(entry, at, sizeof entry);
            std::string target(at + sizeof entry, entry[2]);
            at += sizeof entry + entry[2];
            if (target.rfind("hip", 0) == 0 && read(image + entry[0], module) == SUCCESS) return SUCCESS;
        }
        return NO_BINARY_FOR_GPU;
    }
    Elf64_Ehdr header;
    memcpy(&header, image, sizeof header);
    if (memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_machine != 224) return INVALID_IMAGE;
    if ((header.e_flags & 0xff) != machine(config().arch)) return NO_BINARY_FOR_GPU;
    std::vector<Elf64_Shdr> sections(header.e_shnum);
    memcpy(sections.data(), image + header.e_shoff, sizeof(Elf64_Shdr) * sections.size());
    for (auto& section : sections) {
        if (section.sh_type != SHT_DYNSYM) continue;
        const char* strings = image + sections[section.sh_link].sh_offset;
        for (size_t i = 0; i < section.sh_size / sizeof(Elf64_Sym); i++) {
            Elf64_Sym symbol;
            memcpy(&symbol, image + section.sh_offset + i * sizeof symbol, sizeof symbol);
            std::string name = strings + symbol.st_name;
            // A kernel's descriptor.
            if (name.size() > 3 && name.substr(name.size() - 3) == ".kd") {
                module.kernels.insert(name.substr(0, name.size() - 3));
            }
        }
    }
    return SUCCESS;
}

EXPORT Error hipModuleLoadData(Module** out, const void* image) {
    std::lock_guard<std::recursive_mutex> guard(lock());
    Error error = injected(__func__);
    Module module{{}, current_device()};
    if (error == SUCCESS) error = read(static_cast<const char*>(image), module);
    trace("hipModuleLoadData device %d %zu kernels error %d", current_device(), module.kernels.size(), error);
    if (error == SUCCESS) *out = new Module(module);
    return end("", error);
}

EXPORT Error hipModuleUnload(Module* module) {
    delete module;
    return end(__func__, SUCCESS);
}

EXPORT Error hipModuleGetFunction(Function** out, Module* module, const char* name) {
    std::lock_guard<std::recursive_mutex> guard(lock());
    if (!module->kernels.count(name)) return end(__func__, NOT_FOUND);
    *out = new Function{module, name};
    return end(__func__, SUCCESS);
}

EXPORT Error hipModuleLaunchKernel(Function* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                                   unsigned bz, unsigned shared_bytes, Stream* stream, void** parameters,
                                   void** extra) {
    std::lock_guard<std::recursive_mutex> guard(lock());
    if (Error error = injected(__func__)) return end("", error);
    // Arguments as one buffer: HIP_LAUNCH_PARAM_BUFFER_POINTER, _SIZE, _END.
    if (parameters || !extra || extra[0] != (void*)1 || extra[2] != (void*)2 || extra[4] != (void*)3) {
        complain("kernel arguments are expected as one buffer");
        return end("", INVALID_VALUE);
    }
    if (function->module->device != current_device()) {
        complain("%s is of device %d, the current one is %d", function->name.c_str(), function->module->device,
                 current_device());
        return end("", INVALID_VALUE);
    }
    if (!gx || !gy || !gz || !bx || !by || !bz || uint64_t(bx) * by * bz > 1024 || shared_bytes > 65536) {
        return end("", INVALID_VALUE);
    }
    // The caller's buffer lives only until the call returns.
    std::string arguments(static_cast<const char*>(extra[1]), *static_cast<size_t*>(extra[3]));
    trace("launch %s on %s grid %u %u %u block %u %u %u shared %u", function->name.c_str(), stream_name(stream), gx, gy,
          gz, bx, by, bz, shared_bytes);
    enqueue(stream, [=, name = function->name] {
        const unsigned grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
        return emulate(name, grid, block, shared_bytes, arguments.data());
    });
    return SUCCESS;
}

// Kernels that are part of the host's own libraries are machine code of a GPU: they have names here and nothing else.
static std::map<const void*, std::string>& host_kernels() {
    static auto* kernels = new std::map<const void*, std::string>;
    return *kernels;
}

EXPORT void** __hipRegisterFatBinary(const void*) {
    static void* handle;
    return &handle;
}

EXPORT void __hipRegisterFunction(void**, const void* host, char*, const char* name, unsigned, void*, void*, void*,
                                  void*, int*) {
    std::lock_guard<std::recursive_mutex> guard(lock());
    host_kernels()[host] = name;
}

EXPORT void __hipRegisterVar(void**, void*, char*, char*, int, size_t, int, int) {}
EXPORT void __hipUnregisterFatBinary(void**) {}

struct Configuration {
    unsigned grid[3], block[3];
    size_t shared;
    Stream* stream;
};
struct Dim3 {
    unsigned x, y, z;
};
static thread_local Configuration pushed;

EXPORT Error __hipPushCallConfiguration(Dim3 grid, Dim3 block, size_t shared, Stream* stream) {
    pushed = {{grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, shared, stream};
    return SUCCESS;
}

EXPORT Error __hipPopCallConfiguration(Dim3* grid, Dim3* block, size_t* shared, Stream** stream) {
    *grid = {pushed.grid[0], pushed.grid[1], pushed.grid[2]};
    *block = {pushed.block[0], pushed.block[1], pushed.block[2]};
    *shared = pushed.shared;
    *stream = pushed.stream;
    return SUCCESS;
}

EXPORT Error hipLaunchKernel(const void* host, Dim3, Dim3, void**, size_t, Stream*) {
    std::lock_guard<std::recursive_mutex> guard(lock());
    auto kernel = host_kernels().find(host);
    complain("the host's own kernel %s cannot run here",
             kernel == host_kernels().end() ? "without a name" : kernel->second.c_str());
    return end(__func__, NOT_SUPPORTED);
}
