// The stand-in HIP runtime: device memory is host memory, a stream is a queue that runs when something waits for it,
// and kernels run in the emulation library. What a program must not do on a real GPU fails here too: device memory is
// protected while nothing runs on the "device", and queued work runs as late as the rules of streams allow.
//
// Environment, beside that of record.h:
//   SPARK_EMULATION          library that executes kernels (ops/emulation); without it a launch fails
//   GPU_SIM_ARCH             gcnArchName of the devices, gfx90a:sramecc+:xnack- by default
//   GPU_SIM_WAVE             lanes of a wave, 64 by default
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>

#include "../record.h"

using Error = int; // hipError_t
enum : Error {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    NO_BINARY_FOR_GPU = 209,
    NOT_FOUND = 500,
    ILLEGAL_ADDRESS = 700,
    NOT_SUPPORTED = 801,
};

#define EXPORT extern "C" __attribute__((visibility("default")))

// Of the environment.
struct Config {
    std::string arch, emulation;
    unsigned wave, devices;
    size_t memory;
};
const Config& config();

// One lock for everything: the stand-in is about order, not speed.
std::recursive_mutex& lock();

// Ends a function: `error`, or the one that GPU_SIM_FAIL asks for, becomes the calling thread's last error.
Error end(const char* function, Error error);
// Says on standard error what went wrong.
void complain(const char* format, ...) __attribute__((format(printf, 1, 2)));

// The device of the calling thread.
int current_device();

// memory.cpp
bool is_device(const void* address);
bool is_pinned(const void* address);
// Runs `work` with device memory accessible.
void on_device(const std::function<void()>& work);

// streams.cpp
struct Stream;
// Queues `work`; an error of it sticks to the process, as on a GPU.
void enqueue(Stream* stream, std::function<Error()> work);
// Runs all that the null stream waits for, which is everything.
Error drain_all();
const char* stream_name(Stream* stream);

// emulation.cpp
void allow(const void* begin, size_t bytes);
void forbid(const void* begin);
Error emulate(const std::string& kernel, const unsigned grid[3], const unsigned block[3], unsigned shared_bytes,
              const void* call);
