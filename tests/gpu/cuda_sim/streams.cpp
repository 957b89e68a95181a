// Streams, events and graphs.
#include "sim.h"

#include <chrono>
#include <vector>

struct CUstream_st {
    std::string name;
};
struct CUevent_st {
    std::chrono::steady_clock::time_point when;
};
struct CUgraph_st {
    std::vector<Work> works;
};
struct CUgraphExec_st {
    std::vector<Work> works;
};

static CUgraph captured = nullptr;
static CUstream capturing = nullptr;

bool is_captured() { return captured; }
const char* name_of(CUstream stream) { return stream ? stream->name.c_str() : "null"; }

CUresult queue(CUstream stream, Work work) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (current_device() < 0) return complain(INVALID_CONTEXT, "no context is current in this thread");
    if (faulted() != CUDA_SUCCESS) return faulted();
    if (captured && stream == capturing) {
        captured->works.push_back(std::move(work));
        return CUDA_SUCCESS;
    }
    if (captured) return complain(CAPTURE_UNSUPPORTED, "work on another stream during a capture");
    return work();
}

EXPORT CUresult cuStreamCreate(CUstream* stream, unsigned) {
    static int count = 0;
    std::lock_guard<std::recursive_mutex> guard(lock);
    *stream = new CUstream_st{"stream" + std::to_string(++count)};
    trace("cuStreamCreate %s", name_of(*stream));
    return ready();
}
EXPORT CUresult cuStreamDestroy_v2(CUstream stream) {
    delete stream;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuStreamSynchronize(CUstream stream) {
    trace("cuStreamSynchronize %s", name_of(stream));
    return ready();
}
EXPORT CUresult cuStreamWaitEvent(CUstream, CUevent, unsigned) { return ready(); }
EXPORT CUresult cuLaunchHostFunc(CUstream stream, void (*function)(void*), void* argument) {
    return queue(stream, [=] { return function(argument), CUDA_SUCCESS; });
}

EXPORT CUresult cuStreamBeginCapture_v2(CUstream stream, CUstreamCaptureMode) {
    if (CUresult error = ready(); error != CUDA_SUCCESS) return error;
    if (!stream) return complain(CAPTURE_UNSUPPORTED, "the default stream cannot be captured");
    trace("cuStreamBeginCapture %s", name_of(stream));
    captured = new CUgraph_st;
    capturing = stream;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuStreamEndCapture(CUstream stream, CUgraph* graph) {
    if (!captured || stream != capturing) return complain(CAPTURE_UNSUPPORTED, "no capture of this stream");
    *graph = captured;
    captured = nullptr;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus* status) {
    // The default stream would wait for the one that is captured.
    if (captured && !stream) return CAPTURE_IMPLICIT;
    *status = CUstreamCaptureStatus(captured && stream == capturing ? 1 : 0);
    return faulted();
}
EXPORT CUresult cuGraphInstantiateWithFlags(CUgraphExec* executable, CUgraph graph, unsigned long long flags) {
    if (flags != 0) return INVALID_VALUE;
    *executable = new CUgraphExec_st{graph->works};
    return CUDA_SUCCESS;
}
EXPORT CUresult cuGraphDestroy(CUgraph graph) {
    delete graph;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuGraphExecDestroy(CUgraphExec executable) {
    delete executable;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuGraphLaunch(CUgraphExec executable, CUstream stream) {
    for (const Work& work : executable->works) {
        if (CUresult error = queue(stream, work); error != CUDA_SUCCESS) return error;
    }
    return CUDA_SUCCESS;
}

EXPORT CUresult cuEventCreate(CUevent* event, unsigned) {
    *event = new CUevent_st;
    return ready();
}
EXPORT CUresult cuEventDestroy_v2(CUevent event) {
    delete event;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuEventRecord(CUevent event, CUstream stream) {
    return queue(stream, [=] {
        event->when = std::chrono::steady_clock::now();
        return CUDA_SUCCESS;
    });
}
EXPORT CUresult cuEventSynchronize(CUevent) { return ready(); }
#undef cuEventElapsedTime
EXPORT CUresult cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end) {
    *milliseconds = std::chrono::duration<float, std::milli>(end->when - start->when).count();
    return CUDA_SUCCESS;
}
