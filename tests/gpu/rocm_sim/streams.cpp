// Streams, events and copies. Queued work runs only when somebody waits for it.
#include "sim.h"

#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <vector>

struct Stream {
    std::string name;
    int device;
    std::deque<std::function<Error()>> queue;
    uint64_t queued = 0, done = 0;
};

struct Event {
    Stream* stream = nullptr;
    uint64_t reached = 0;
};

// Never freed: events refer to streams that are gone.
static std::vector<std::unique_ptr<Stream>>& streams() {
    static auto* streams = new std::vector<std::unique_ptr<Stream>>;
    return *streams;
}

static Stream* null_stream() {
    static auto* stream = new Stream{"null", 0, {}};
    return stream;
}

static Stream* real(Stream* stream) { return stream ? stream : null_stream(); }
const char* stream_name(Stream* stream) { return real(stream)->name.c_str(); }

// An error of work that ran sticks: every later call fails with it, as after a fault on a GPU.
static Error sticky = SUCCESS;

static Error drain(Stream* stream, uint64_t until) {
    while (stream->done < until && !stream->queue.empty()) {
        auto work = std::move(stream->queue.front());
        stream->queue.pop_front();
        stream->done++;
        Error error = sticky;
        if (error == SUCCESS) on_device([&] { error = work(); });
        if (error != SUCCESS && sticky == SUCCESS) sticky = error;
    }
    return sticky;
}

Error drain_all() {
    for (size_t i = 0; i < streams().size(); i++) drain(streams()[i].get(), UINT64_MAX);
    return drain(null_stream(), UINT64_MAX);
}

static Error drain_stream(Stream* stream) { return stream ? drain(stream, UINT64_MAX) : drain_all(); }

void enqueue(Stream* stream, std::function<Error()> work) {
    // Work of the null stream comes after all that is queued elsewhere.
    if (!stream) drain_all();
    real(stream)->queue.push_back(std::move(work));
    real(stream)->queued++;
}

EXPORT Error hipStreamCreateWithFlags(Stream** out, unsigned) {
    std::lock_guard<std::recursive_mutex> guard(lock());
    streams().push_back(std::make_unique<Stream>());
    *out = streams().back().get();
    (*out)->name = "stream" + std::to_string(streams().size());
    (*out)->device = current_device();
    trace("hipStreamCreate %s", stream_name(*out));
    return end(__func__, SUCCESS);
}

EXPORT Error hipStreamDestroy(Stream* stream) {
    std::lock_guard<std::recursive_mutex> guard(lock());
    return end(__func__, drain_stream(stream));
}

EXPORT Error hipStreamIsCapturing(Stream*, int* status) { return *status = 0, end(__func__, SUCCESS); }

EXPORT int hipGetStreamDeviceId(Stream* stream) { return real(stream)->device; }

EXPORT Error hipStreamSynchronize(Stream* stream) {
    std::lock_guard<std::recursive_mutex> guard(lock());
    trace("hipStreamSynchronize %s", stream_name(stream));
    return end(__func__, drain_stream(stream));
}

EXPORT Error hipDeviceSynchronize() {
    std::lock_guard<std::recursive_mutex> guard(lock());
    trace("hipDeviceSynchronize");
    return end(__func__, drain_all());
}

EXPORT Error hipLaunchHostFunc(Stream* stream, void (*function)(void*), void* argument) {
    std::lock_guard<std::recursive_mutex> guard(lock());
    enqueue(stream, [=] { return function(argument), SUCCESS; });
    return end(__func__, SUCCESS);
}

EXPORT Error hipEventCreateWithFlags(Event** out, unsigned) {
    *out = new Event;
    return end(__func__, SUCCESS);
}

EXPORT Error hipEventCreate(Event** out) {
    *out = new Event;
    return end(__func__, SUCCESS);
}

EXPORT Error hipEventDestroy(Event* event) {
    delete event;
    return end(__func__, SUCCESS);
}

EXPORT Error hipEventRecord(Event* event, Stream* stream) {
    std::lock_guard<std::recursive_mutex> guard(lock());
    *event = {real(stream), real(stream)->queued};
    return end(__func__, SUCCESS);
}

EXPORT Error hipStreamWaitEvent(Stream* stream, Event* event, unsigned) {
    std::lock_guard<std::recursive_mutex> guard(lock());
    Event seen = *event;
    if (seen.stream) enqueue(stream, [=] { return drain(seen.stream, seen.reached); });
    return end(__func__, SUCCESS);
}

EXPORT Error hipEventSynchronize(Event* event) {
    std::lock_guard<std::recursive_mutex> guard(lock());
    return end(__func__, event->stream ? drain(event->stream, event->reached) : SUCCESS);
}

EXPORT Error hipEventElapsedTime(float* milliseconds, Event*, Event*) {
    *milliseconds = 0;
    return end(__func__, SUCCESS);
}

// A copy that may run late. Pageable host memory is read before the call returns, and a copy to it is done by then.
static Error copy_later(Stream* stream, void* to, const void* from, size_t bytes) {
    trace("copy %s %zu bytes %s to %s", stream_name(stream), bytes, is_device(from) ? "device" : "host",
          is_device(to) ? "device" : "host");
    if (is_device(from) || is_pinned(from)) {
        enqueue(stream, [=] { return memcpy(to, from, bytes), SUCCESS; });
    } else {
        auto staged = std::make_shared<std::string>(static_cast<const char*>(from), bytes);
        enqueue(stream, [=] { return memcpy(to, staged->data(), bytes), SUCCESS; });
    }
    return is_device(to) || is_pinned(to) ? SUCCESS : drain_stream(stream);
}

EXPORT Error hipMemcpyAsync(void* to, const void* from, size_t bytes, int, Stream* stream) {
    std::lock_guard<std::recursive_mutex> guard(lock());
    return end(__func__, bytes ? copy_later(stream, to, from, bytes) : SUCCESS);
}

EXPORT Error hipMemcpy(void* to, const void* from, size_t bytes, int) {
    std::lock_guard<std::recursive_mutex> guard(lock());
    if (bytes) copy_later(nullptr, to, from, bytes);
    return end(__func__, drain_all());
}

EXPORT Error hipMemcpyWithStream(void* to, const void* from, size_t bytes, int, Stream* stream) {
    std::lock_guard<std::recursive_mutex> guard(lock());
    if (bytes) copy_later(stream, to, from, bytes);
    return end(__func__, drain_stream(stream));
}

EXPORT Error hipMemsetAsync(void* to, int value, size_t bytes, Stream* stream) {
    std::lock_guard<std::recursive_mutex> guard(lock());
    enqueue(stream, [=] { return memset(to, value, bytes), SUCCESS; });
    return end(__func__, SUCCESS);
}

EXPORT Error hipMemset(void* to, int value, size_t bytes) {
    std::lock_guard<std::recursive_mutex> guard(lock());
    enqueue(nullptr, [=] { return memset(to, value, bytes), SUCCESS; });
    return end(__func__, drain_all());
}
