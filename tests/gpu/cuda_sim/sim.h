// The stand-in for libcuda.so.1: the functions that src/gpu/cuda, src/plugin, tests/gpu/cuda and the stand-in for
// libcudart call, on GPUs that are the emulation of the kernels with waves of 32. It shows that the calls fit together,
// not that the kernels are right (the emulation does that without it), nor any time: what would be left to try on a
// real GPU is then only what the GPU does.
//
// Device memory is protected while no kernel or copy runs, so that a host that touches it crashes; new memory is not
// zero. What is queued runs at once, except while a stream is captured; a fault is heard of at the next call.
//
// Built with NVIDIA's cuda.h at hand (`tools/cuda.sh build`), the compiler compares all signatures with it.
// The environment is that of record.h.
#pragma once

#if __has_include(<cuda.h>)
#include <cuda.h>
// The numbers in src/gpu/cuda and tests/gpu/cuda.
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

#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>

#include "../record.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

constexpr CUresult INVALID_VALUE = CUresult(1), OUT_OF_MEMORY = CUresult(2), NOT_INITIALIZED = CUresult(3),
                   NO_DEVICE = CUresult(100), INVALID_DEVICE = CUresult(101), INVALID_IMAGE = CUresult(200),
                   INVALID_CONTEXT = CUresult(201), NOT_FOUND = CUresult(500), ILLEGAL_ADDRESS = CUresult(700),
                   CAPTURE_UNSUPPORTED = CUresult(900), CAPTURE_IMPLICIT = CUresult(906);
constexpr unsigned MOST_SHARED_BYTES = 227 * 1024, MOST_THREADS = 1024;

// One lock for everything: the stand-in is about order, not speed.
extern std::recursive_mutex lock;

// driver.cpp
CUresult complain(CUresult error, const std::string& what);
// What a call that makes or waits for something needs: a context, no fault before, nothing captured.
CUresult ready();
// Ends the contexts: every later call fails with it.
CUresult fault(CUresult error);
CUresult faulted();
// The device of the calling thread's context, or -1.
int current_device();

// memory.cpp: while it lives, device memory can be touched.
struct Open {
    std::lock_guard<std::recursive_mutex> guard{lock};
    Open();
    ~Open();
};
// Whether device memory has these bytes.
bool within(CUdeviceptr at, size_t bytes);

// streams.cpp
using Work = std::function<CUresult()>;
// Runs `work` now, or later where the stream is captured.
CUresult queue(CUstream stream, Work work);
bool is_captured();
const char* name_of(CUstream stream);
