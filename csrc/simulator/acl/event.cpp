// Events: a point in one stream that other streams and the host can wait for.
#include <atomic>
#include <chrono>
#include <memory>

#include "stream.h"

namespace npu_rope::acl {
namespace {

using Clock = std::chrono::steady_clock;

/// One recording. An event that is recorded again gets a new one; who waits keeps the old.
struct Record {
  std::mutex mutex;
  std::condition_variable done;
  bool complete = false;
  Clock::time_point when;

  void finish() {
    const std::lock_guard<std::mutex> lock(mutex);
    complete = true;
    when = Clock::now();
    done.notify_all();
  }
  void wait() {
    std::unique_lock<std::mutex> lock(mutex);
    done.wait(lock, [&] { return complete; });
  }
  bool is_complete() {
    const std::lock_guard<std::mutex> lock(mutex);
    return complete;
  }
};

struct Event {
  std::mutex mutex;
  std::shared_ptr<Record> record;      // null: never recorded, which counts as complete
  std::shared_ptr<Graph> captured_by;  // the graph in whose capture it was recorded

  std::shared_ptr<Record> latest() {
    const std::lock_guard<std::mutex> lock(mutex);
    return record;
  }
  std::shared_ptr<Graph> capture() {
    const std::lock_guard<std::mutex> lock(mutex);
    return captured_by && !captured_by->ended ? captured_by : nullptr;
  }
};

Event& event_of(aclrtEvent handle) {
  if (!handle) throw Failure(ACL_ERROR_RT_PARAM_INVALID, "event is null");
  return *static_cast<Event*>(handle);
}

void create(aclrtEvent* handle) { *handle = new Event; }

bool is_complete(Event& event) {
  if (event.capture()) {
    throw Failure(ACL_ERROR_RT_EVENT_CAPTURED, "the event was recorded in a captured stream");
  }
  const auto record = event.latest();
  return !record || record->is_complete();
}

}  // namespace
}  // namespace npu_rope::acl

using namespace npu_rope::acl;

aclError aclrtCreateEventWithFlag(aclrtEvent* event, uint32_t) {
  return call("aclrtCreateEventWithFlag", [&] { create(event); });
}
aclError aclrtCreateEventExWithFlag(aclrtEvent* event, uint32_t) {
  return call("aclrtCreateEventExWithFlag", [&] { create(event); });
}
aclError aclrtDestroyEvent(aclrtEvent event) {
  return call("aclrtDestroyEvent", [&] { delete &event_of(event); });
}

aclError aclrtRecordEvent(aclrtEvent handle, aclrtStream stream) {
  return call("aclrtRecordEvent", [&] {
    Event& event = event_of(handle);
    Stream& recorded = stream_of(stream);
    // In a graph the order of capture already keeps the order that the event stands for.
    const auto record = recorded.captured_by ? nullptr : std::make_shared<Record>();
    {
      const std::lock_guard<std::mutex> lock(event.mutex);
      event.record = record;
      event.captured_by = recorded.captured_by;
    }
    if (record) recorded.enqueue(kRecordEvent, [record] { record->finish(); });
  });
}

aclError aclrtStreamWaitEvent(aclrtStream stream, aclrtEvent handle) {
  return call("aclrtStreamWaitEvent", [&] {
    Event& event = event_of(handle);
    Stream& waiting = stream_of(stream);
    if (const auto graph = event.capture()) {
      waiting.captured_by = graph;  // the fork of a capture
      return;
    }
    const auto record = event.latest();
    if (record) waiting.enqueue("aclrtStreamWaitEvent", [record] { record->wait(); });
  });
}

// Recording anew makes an event fresh again, so resetting has nothing left to do.
aclError aclrtResetEvent(aclrtEvent event, aclrtStream) {
  return call("aclrtResetEvent", [&] { event_of(event); });
}

aclError aclrtSynchronizeEvent(aclrtEvent event) {
  return call("aclrtSynchronizeEvent", [&] {
    if (!is_complete(event_of(event))) event_of(event).latest()->wait();
  });
}

aclError aclrtQueryEventStatus(aclrtEvent event, aclrtEventRecordedStatus* status) {
  return call("aclrtQueryEventStatus", [&] {
    *status = is_complete(event_of(event)) ? ACL_EVENT_RECORDED_STATUS_COMPLETE
                                           : ACL_EVENT_RECORDED_STATUS_NOT_READY;
  });
}

aclError aclrtQueryEventWaitStatus(aclrtEvent event, aclrtEventWaitStatus* status) {
  return call("aclrtQueryEventWaitStatus", [&] {
    *status = is_complete(event_of(event)) ? ACL_EVENT_WAIT_STATUS_COMPLETE
                                           : ACL_EVENT_WAIT_STATUS_NOT_READY;
  });
}

aclError aclrtEventElapsedTime(float* ms, aclrtEvent start, aclrtEvent end) {
  return call("aclrtEventElapsedTime", [&] {
    const auto from = event_of(start).latest(), to = event_of(end).latest();
    if (!from || !to || !from->is_complete() || !to->is_complete()) {
      throw Failure(ACL_ERROR_RT_EVENT_TIMESTAMP_INVALID, "both events must be recorded and done");
    }
    *ms = std::chrono::duration<float, std::milli>(to->when - from->when).count();
  });
}
