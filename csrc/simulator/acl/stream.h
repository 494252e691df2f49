// Streams: each runs its tasks in order on a thread of its own, beside the host and the other
// streams. Events order them; a captured stream records tasks for a later replay.
#pragma once

#include <acl/acl.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "calls.h"

namespace npu_rope::acl {

/// What the device does for one call, by the name of the function that asked for it.
struct Task {
  std::string function;
  std::function<void()> work;
};

/// The task that runs even behind a failed one, lest others wait for ever.
constexpr const char* kRecordEvent = "aclrtRecordEvent";

/// A captured graph: its tasks in the order in which they were captured.
struct Graph {
  std::vector<Task> tasks;
  bool ended = false;
};

class Stream {
 public:
  Stream(int device, int id) : device(device), id(id) {}
  ~Stream();

  /// Adds a task; while the stream is captured, to the graph. The thread starts with the first one.
  void enqueue(const std::string& function, std::function<void()> work);
  /// Waits for all tasks and throws what the first failed one reported.
  void synchronize();
  bool idle();

  const int device;
  const int id;
  /// ACL_STOP_ON_FAILURE: once a task failed, the tasks behind it are dropped and every
  /// synchronisation reports the failure; else they run, and it is reported once.
  std::atomic<bool> stops_on_failure{false};
  std::shared_ptr<Graph> captured_by;  // null: not captured

 private:
  void run();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Task> tasks_;  // the front one is running
  std::optional<Failure> failure_;
  bool stop_ = false;
  std::thread thread_;
};

/// Throws where the handle is not a live stream. Null is the current device's default stream.
Stream& stream_of(aclrtStream handle);

/// Gives every stream that the graph captures back to the device.
void end_capture(const std::shared_ptr<Graph>& graph);

/// Waits for every stream of the device.
void synchronize_device(int device);

}  // namespace npu_rope::acl
