// The stand-in for libcudart.so.13: what ONNX Runtime's CUDA execution provider calls, by the stand-in for libcuda. Its
// own kernels are machine code of a GPU: they have no names here and cannot run.
#include "sim.h"

// libcuda
extern "C" {
CUresult cuInit(unsigned);
CUresult cuDeviceGetCount(int*);
CUresult cuDevicePrimaryCtxRetain(CUcontext*, CUdevice);
CUresult cuCtxSetCurrent(CUcontext);
CUresult cuCtxSynchronize();
CUresult cuMemAlloc_v2(CUdeviceptr*, size_t);
CUresult cuMemFree_v2(CUdeviceptr);
CUresult cuMemHostAlloc(void**, size_t, unsigned);
CUresult cuMemFreeHost(void*);
CUresult cuMemGetInfo_v2(size_t*, size_t*);
CUresult cuMemcpyAsync(CUdeviceptr, CUdeviceptr, size_t, CUstream);
CUresult cuMemsetD8Async(CUdeviceptr, unsigned char, size_t, CUstream);
CUresult cuStreamCreate(CUstream*, unsigned);
CUresult cuStreamDestroy_v2(CUstream);
CUresult cuStreamSynchronize(CUstream);
CUresult cuStreamWaitEvent(CUstream, CUevent, unsigned);
CUresult cuStreamBeginCapture_v2(CUstream, CUstreamCaptureMode);
CUresult cuStreamEndCapture(CUstream, CUgraph*);
CUresult cuStreamIsCapturing(CUstream, CUstreamCaptureStatus*);
CUresult cuGraphInstantiateWithFlags(CUgraphExec*, CUgraph, unsigned long long);
CUresult cuGraphDestroy(CUgraph);
CUresult cuGraphExecDestroy(CUgraphExec);
CUresult cuGraphLaunch(CUgraphExec, CUstream);
CUresult cuLaunchHostFunc(CUstream, void (*)(void*), void*);
CUresult cuEventCreate(CUevent*, unsigned);
CUresult cuEventDestroy_v2(CUevent);
CUresult cuEventRecord(CUevent, CUstream);
CUresult cuEventSynchronize(CUevent);
CUresult cuEventElapsedTime(float*, CUevent, CUevent);
CUresult cuGetErrorName(CUresult, const char**);
CUresult cuGetErrorString(CUresult, const char**);
}

static thread_local int last = 0, device = 0;

// Ends a function; errors of the driver have the same numbers in the runtime.
static int end(CUresult error) {
    if (error != CUDA_SUCCESS) last = int(error);
    return int(error);
}

// A context for the calling thread, as every function of the runtime makes one.
static void enter() {
    static const bool initialised = cuInit(0) == CUDA_SUCCESS;
    thread_local int entered = -1;
    CUcontext context;
    if (initialised && entered != device && cuDevicePrimaryCtxRetain(&context, device) == CUDA_SUCCESS) {
        cuCtxSetCurrent(context);
        entered = device;
    }
}

static CUdeviceptr address(const void* pointer) { return CUdeviceptr(reinterpret_cast<uintptr_t>(pointer)); }

EXPORT int cudaRuntimeGetVersion(int* version) { return *version = 13000, 0; }
EXPORT int cudaDriverGetVersion(int* version) { return *version = 13000, 0; }
EXPORT int cudaGetLastError() {
    const int error = last;
    last = 0;
    return error;
}
EXPORT int cudaPeekAtLastError() { return last; }
EXPORT const char* cudaGetErrorName(int error) {
    const char* name;
    cuGetErrorName(CUresult(error), &name);
    return name;
}
EXPORT const char* cudaGetErrorString(int error) {
    const char* text;
    cuGetErrorString(CUresult(error), &text);
    return text;
}

EXPORT int cudaGetDeviceCount(int* count) {
    enter();
    return end(cuDeviceGetCount(count));
}
EXPORT int cudaGetDevice(int* ordinal) { return *ordinal = device, 0; }
EXPORT int cudaSetDevice(int ordinal) {
    int count = 0;
    cudaGetDeviceCount(&count);
    if (ordinal < 0 || ordinal >= count) return end(INVALID_DEVICE);
    device = ordinal;
    enter();
    return 0;
}

// The fields of cudaDeviceProp of CUDA 13 that the provider reads.
struct Properties {
    char name[256];
    char identity[32];
    size_t global_bytes, shared_bytes;
    int registers, warp_size;
    size_t pitch;
    int block_threads, block_dim[3], grid_dim[3];
    size_t constant_bytes;
    int major, minor;
    size_t texture[2];
    int multiprocessors;
    char others[604 - 388];
    int multiprocessor_threads;
    char more[672 - 608];
    size_t shared_bytes_optin;
    char rest[1008 - 680];
};
#if __has_include(<driver_types.h>)
#include <driver_types.h>
static_assert(offsetof(Properties, warp_size) == offsetof(cudaDeviceProp, warpSize));
static_assert(offsetof(Properties, multiprocessors) == offsetof(cudaDeviceProp, multiProcessorCount));
static_assert(offsetof(Properties, shared_bytes_optin) == offsetof(cudaDeviceProp, sharedMemPerBlockOptin));
static_assert(sizeof(Properties) == sizeof(cudaDeviceProp));
#endif

EXPORT int cudaGetDeviceProperties(Properties* properties, int ordinal) {
    *properties = {};
    snprintf(properties->name, sizeof properties->name, "stand-in device %d", ordinal);
    properties->global_bytes = size_t(4) << 30;
    properties->shared_bytes = 48 << 10;
    properties->shared_bytes_optin = MOST_SHARED_BYTES;
    properties->registers = 65536;
    properties->warp_size = 32;
    properties->block_threads = int(MOST_THREADS);
    for (int i = 0; i < 3; i++) properties->block_dim[i] = 1024, properties->grid_dim[i] = i ? 65535 : 2147483647;
    properties->major = 9;
    properties->multiprocessors = 4;
    properties->multiprocessor_threads = 2048;
    return 0;
}
EXPORT int cudaDeviceGetAttribute(int* value, int which, int) {
    *value = which == 75 ? 9 : which == 16 ? 4 : which == 10 ? 32 : which == 97 ? int(MOST_SHARED_BYTES) : 0;
    return 0;
}
EXPORT int cudaDeviceSynchronize() {
    enter();
    return end(cuCtxSynchronize());
}

EXPORT int cudaMalloc(void** out, size_t bytes) {
    enter();
    *out = nullptr;
    return bytes ? end(cuMemAlloc_v2(reinterpret_cast<CUdeviceptr*>(out), bytes)) : 0;
}
EXPORT int cudaFree(void* memory) {
    enter();
    return memory ? end(cuMemFree_v2(address(memory))) : 0;
}
EXPORT int cudaHostAlloc(void** out, size_t bytes, unsigned flags) {
    enter();
    return end(cuMemHostAlloc(out, bytes ? bytes : 1, flags));
}
EXPORT int cudaMallocHost(void** out, size_t bytes) { return cudaHostAlloc(out, bytes, 0); }
EXPORT int cudaFreeHost(void* memory) {
    enter();
    return end(cuMemFreeHost(memory));
}
EXPORT int cudaMemGetInfo(size_t* free, size_t* total) {
    enter();
    return end(cuMemGetInfo_v2(free, total));
}
EXPORT int cudaMemcpyAsync(void* to, const void* from, size_t bytes, int, CUstream stream) {
    enter();
    return bytes ? end(cuMemcpyAsync(address(to), address(from), bytes, stream)) : 0;
}
EXPORT int cudaMemcpy(void* to, const void* from, size_t bytes, int kind) {
    return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}
EXPORT int cudaMemsetAsync(void* to, int value, size_t bytes, CUstream stream) {
    enter();
    return bytes ? end(cuMemsetD8Async(address(to), static_cast<unsigned char>(value), bytes, stream)) : 0;
}
EXPORT int cudaMemset(void* to, int value, size_t bytes) { return cudaMemsetAsync(to, value, bytes, nullptr); }

EXPORT int cudaStreamCreateWithFlags(CUstream* stream, unsigned flags) {
    enter();
    return end(cuStreamCreate(stream, flags));
}
EXPORT int cudaStreamCreate(CUstream* stream) { return cudaStreamCreateWithFlags(stream, 0); }
EXPORT int cudaStreamDestroy(CUstream stream) { return end(cuStreamDestroy_v2(stream)); }
EXPORT int cudaStreamSynchronize(CUstream stream) {
    enter();
    return end(cuStreamSynchronize(stream));
}
EXPORT int cudaStreamWaitEvent(CUstream stream, CUevent event, unsigned flags) {
    enter();
    return end(cuStreamWaitEvent(stream, event, flags));
}
EXPORT int cudaLaunchHostFunc(CUstream stream, void (*function)(void*), void* argument) {
    enter();
    return end(cuLaunchHostFunc(stream, function, argument));
}
EXPORT int cudaStreamBeginCapture(CUstream stream, CUstreamCaptureMode mode) {
    enter();
    return end(cuStreamBeginCapture_v2(stream, mode));
}
EXPORT int cudaStreamEndCapture(CUstream stream, CUgraph* graph) { return end(cuStreamEndCapture(stream, graph)); }
EXPORT int cudaStreamIsCapturing(CUstream stream, CUstreamCaptureStatus* status) {
    return end(cuStreamIsCapturing(stream, status));
}
EXPORT int cudaGraphInstantiate(CUgraphExec* executable, CUgraph graph, unsigned long long flags) {
    return end(cuGraphInstantiateWithFlags(executable, graph, flags));
}
EXPORT int cudaGraphDestroy(CUgraph graph) { return end(cuGraphDestroy(graph)); }
EXPORT int cudaGraphExecDestroy(CUgraphExec executable) { return end(cuGraphExecDestroy(executable)); }
EXPORT int cudaGraphLaunch(CUgraphExec executable, CUstream stream) {
    enter();
    return end(cuGraphLaunch(executable, stream));
}

EXPORT int cudaEventCreateWithFlags(CUevent* event, unsigned flags) {
    enter();
    return end(cuEventCreate(event, flags));
}
EXPORT int cudaEventCreate(CUevent* event) { return cudaEventCreateWithFlags(event, 0); }
EXPORT int cudaEventDestroy(CUevent event) { return end(cuEventDestroy_v2(event)); }
EXPORT int cudaEventRecord(CUevent event, CUstream stream) {
    enter();
    return end(cuEventRecord(event, stream));
}
EXPORT int cudaEventRecordWithFlags(CUevent event, CUstream stream, unsigned) { return cudaEventRecord(event, stream); }
EXPORT int cudaEventSynchronize(CUevent event) {
    enter();
    return end(cuEventSynchronize(event));
}
EXPORT int cudaEventElapsedTime(float* milliseconds, CUevent start, CUevent stop) {
    return end(cuEventElapsedTime(milliseconds, start, stop));
}

// The provider's own kernels, which it registers as it is loaded.
EXPORT void** __cudaRegisterFatBinary(void*) {
    static void* handle;
    return &handle;
}
EXPORT void __cudaRegisterFatBinaryEnd(void**) {}
EXPORT void __cudaUnregisterFatBinary(void**) {}
EXPORT void __cudaRegisterFunction(void**, const void*, char*, const char*, int, void*, void*, void*, void*, int*) {}
EXPORT void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
EXPORT int cudaFuncSetAttribute(const void*, int, int) { return 0; }
