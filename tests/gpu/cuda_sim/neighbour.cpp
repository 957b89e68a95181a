// An execution provider beside ours, for tests: NeighbourExecutionProvider takes Identity on the first GPU of the
// stand-in for the CUDA driver, which it names as ours does. Its memory is the driver's own, its stream one of its own.
//
// ONNX Runtime's structures are arrays of pointers after a version, and its tables of functions are arrays; the numbers
// used here are in src/plugin/abi.rs, with their names.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

using Status = void*;
using Address = unsigned long long;

extern "C" {
int cuMemAlloc_v2(Address*, size_t);
int cuMemFree_v2(Address);
int cuMemcpyAsync(Address, Address, size_t, void*);
int cuStreamCreate(void**, unsigned);
int cuStreamDestroy_v2(void*);
int cuStreamSynchronize(void*);
int cuInit(unsigned);
int cuDevicePrimaryCtxRetain(void**, int);
int cuCtxSetCurrent(void*);
}

namespace {

constexpr unsigned NVIDIA = 0x10de, VERSION = 24;
constexpr int GPU = 1;
const char* const NAME = "NeighbourExecutionProvider";

void* const* api;
void* const* ep_api;

// Function `slot` of a table, called with arguments of exactly its types.
template <typename R = Status, typename... A>
R call(void* const* table, size_t slot, A... arguments) {
    return reinterpret_cast<R (*)(A...)>(table[slot])(arguments...);
}

// A structure of ONNX Runtime with N members.
template <size_t N>
struct Members {
    uintptr_t version = VERSION;
    void* members[N] = {};
    template <typename F>
    void set(size_t member, F* function) {
        members[member - 1] = reinterpret_cast<void*>(function);
    }
};

void enter() {
    void* context;
    cuInit(0);
    if (cuDevicePrimaryCtxRetain(&context, 0) == 0) cuCtxSetCurrent(context);
}

struct Allocator : Members<6> {
    const void* info;
    explicit Allocator(const void* info) : info(info) {
        set(1, allocate);
        set(2, free);
        set(3, info_of);
        set(4, allocate);
    }
    static void* allocate(void*, size_t bytes) {
        Address at = 0;
        enter();
        return bytes && cuMemAlloc_v2(&at, bytes) == 0 ? reinterpret_cast<void*>(at) : nullptr;
    }
    static void free(void*, void* memory) {
        enter();
        if (memory) cuMemFree_v2(reinterpret_cast<Address>(memory));
    }
    static const void* info_of(const Allocator* self) { return self->info; }
};

// The tests have one stream, so that nothing ever waits for another one.
struct Notification : Members<4> {
    Notification() {
        set(1, release);
        set(2, nothing);
        set(3, wait);
        set(4, nothing);
    }
    static void release(Notification* self) { delete self; }
    static Status nothing(void*) { return nullptr; }
    static Status wait(void*, void*) { return nullptr; }
};

struct Stream : Members<5> {
    void* stream = nullptr;
    Stream() {
        enter();
        cuStreamCreate(&stream, 1);
        set(1, release);
        set(2, handle);
        set(3, notification);
        set(4, flush);
        set(5, run_end);
    }
    static void release(Stream* self) {
        cuStreamDestroy_v2(self->stream);
        delete self;
    }
    static void* handle(Stream* self) { return self->stream; }
    static Status notification(Stream*, Notification** out) { return *out = new Notification, nullptr; }
    static Status flush(Stream* self) { return cuStreamSynchronize(self->stream), nullptr; }
    static Status run_end(Stream*) { return nullptr; }
};

// Copies its input.
struct Identity : Members<4> {
    Identity() {
        // The version and the flags, of 32 bits each, come first.
        set(1, compute);
        set(2, release);
    }
    static void release(Identity* self) { delete self; }
    static Status compute(Identity*, void* context) {
        const void* input = nullptr;
        void *shape = nullptr, *output = nullptr, *to = nullptr, *stream = nullptr;
        const void* from = nullptr;
        size_t rank = 0, bytes = 0;
        if (Status failed = call(api, 90, context, size_t(0), &input)) return failed;
        if (Status failed = call(api, 65, input, &shape)) return failed;
        call(api, 61, shape, &rank);
        std::vector<int64_t> dimensions(rank);
        call(api, 62, shape, dimensions.data(), rank);
        call<void>(api, 99, shape);
        if (Status failed = call(api, 91, context, size_t(0), dimensions.data(), rank, &output)) return failed;
        call(api, 378, input, &from);
        call(api, 51, output, &to);
        call(api, 318, input, &bytes);
        call(api, 193, context, &stream);
        enter();
        if (cuMemcpyAsync(reinterpret_cast<Address>(to), reinterpret_cast<Address>(from), bytes, stream) != 0) {
            return call(api, 0, 1, "the neighbour's copy failed");
        }
        return nullptr;
    }
    static Status create(void*, const void*, Identity** out) { return *out = new Identity, nullptr; }
};

Status add_kernel(void* registry) {
    const void* type = nullptr;
    void *builder = nullptr, *definition = nullptr;
    if (Status failed = call(ep_api, 40, 1, &type)) return failed;
    if (Status failed = call(ep_api, 21, &builder)) return failed;
    call(ep_api, 23, builder, "Identity");
    call(ep_api, 24, builder, "");
    call(ep_api, 25, builder, 1, 1000);
    call(ep_api, 26, builder, NAME);
    call(ep_api, 29, builder, "V", &type, size_t(1));
    if (Status failed = call(ep_api, 32, builder, &definition)) return failed;
    return call(ep_api, 20, registry, definition, &Identity::create, static_cast<void*>(nullptr));
}

struct Ep : Members<14> {
    void* registry;
    explicit Ep(void* registry) : registry(registry) {
        set(1, name);
        set(2, capability);
        set(9, run_end);
        set(11, stream);
        set(13, kernels);
    }
    static const char* name(const Ep*) { return NAME; }
    static Status capability(Ep*, const void* graph, void* support) {
        size_t count = 0;
        call(api, 344, graph, &count);
        std::vector<const void*> nodes(count);
        call(api, 345, graph, nodes.data(), count);
        for (const void* node : nodes) {
            const void* kernel = nullptr;
            const char* domain = nullptr;
            call(api, 351, node, &domain);
            if (*domain) continue;
            if (Status failed = call(ep_api, 41, support, node, &kernel)) return failed;
            if (kernel) call(ep_api, 3, support, node);
        }
        return nullptr;
    }
    static Status run_end(Ep*, const void*, bool) { return nullptr; }
    static Status stream(Ep*, const void*, Stream** out) { return *out = new Stream, nullptr; }
    static Status kernels(Ep* self, const void** out) { return *out = self->registry, nullptr; }
};

struct Factory : Members<21> {
    void *registry = nullptr, *hardware = nullptr, *info = nullptr;
    Factory() {
        set(1, name);
        set(2, name);
        set(3, devices);
        set(4, create_ep);
        set(5, release_ep);
        set(6, vendor);
        set(7, version_text);
        set(9, create_allocator);
        set(10, release_allocator);
        set(11, create_transfer);
        set(12, is_stream_aware);
        set(13, create_stream);
    }
    static const char* name(const Factory*) { return NAME; }
    static unsigned vendor(const Factory*) { return NVIDIA; }
    static const char* version_text(const Factory*) { return "1.0.0"; }
    static Status devices(Factory* self, const void* const*, size_t, void** out, size_t, size_t* count) {
        const void* none = nullptr;
        *count = 0;
        Status failed = call(ep_api, 16, GPU, NVIDIA, 0u, "NVIDIA", none, &self->hardware);
        if (!failed) failed = call(api, 320, "Cuda", GPU, NVIDIA, 0, 0, size_t(0), 0, &self->info);
        if (!failed) failed = call(ep_api, 0, self, self->hardware, none, none, out);
        if (!failed) failed = call(ep_api, 5, *out, self->info);
        *count = failed ? 0 : 1;
        return failed;
    }
    static Status create_ep(Factory* self, const void*, const void*, size_t, const void*, const void*, Ep** out) {
        return *out = new Ep(self->registry), nullptr;
    }
    static void release_ep(Factory*, Ep* ep) { delete ep; }
    static Status create_allocator(Factory*, const void* info, const void*, Allocator** out) {
        return *out = new Allocator(info), nullptr;
    }
    static void release_allocator(Factory*, Allocator* allocator) { delete allocator; }
    // Those of the other provider serve the same memory.
    static Status create_transfer(Factory*, void** out) { return *out = nullptr, nullptr; }
    static bool is_stream_aware(const Factory*) { return true; }
    static Status create_stream(Factory*, const void*, const void*, Stream** out) {
        return *out = new Stream, nullptr;
    }
};

} // namespace

struct ApiBase {
    void* const* (*get)(unsigned);
    const char* (*version)();
};

EXPORT Status CreateEpFactories(const char*, const ApiBase* base, const void*, Factory** out, size_t, size_t* count) {
    api = base->get(VERSION);
    ep_api = call<void* const*>(api, 317);
    auto* factory = new Factory;
    if (Status failed = call(ep_api, 18, &factory->registry)) return failed;
    if (Status failed = add_kernel(factory->registry)) return failed;
    *out = factory;
    *count = 1;
    return nullptr;
}

EXPORT Status ReleaseEpFactory(Factory* factory) {
    call<void>(api, 94, factory->info);
    call<void>(ep_api, 17, factory->hardware);
    call<void>(ep_api, 19, factory->registry);
    delete factory;
    return nullptr;
}
