#include "stream.h"

#include <map>

#include "device.h"

namespace npu_rope::acl {
namespace {

struct Streams {
  std::mutex mutex;
  std::map<aclrtStream, std::unique_ptr<Stream>> all;
  std::map<int, aclrtStream> of_device;  // default streams
  int next_id = 0;

  aclrtStream add(int device) {  // with the mutex held
    auto stream = std::make_unique<Stream>(device, next_id++);
    const aclrtStream handle = stream.get();
    all[handle] = std::move(stream);
    return handle;
  }
};

Streams& streams() {  // never destroyed: its threads may outlive static destructors
  static auto* const instance = new Streams;
  return *instance;
}

std::unique_ptr<Stream> take(aclrtStream handle) {
  stream_of(handle);
  Streams& s = streams();
  const std::lock_guard<std::mutex> lock(s.mutex);
  auto node = s.all.extract(handle);
  return std::move(node.mapped());
}

std::optional<Failure> run_task(const Task& task) {
  try {
    hold_up(task.function);
    enter_on_device(task.function);
    task.work();
    return std::nullopt;
  } catch (const Failure& failure) {
    return Failure(failure.code, task.function + ": " + failure.what());
  }
}

void refuse_while_captured(const Stream& stream) {
  if (stream.captured_by) {
    throw Failure(ACL_ERROR_RT_STREAM_CAPTURED, "stream " + std::to_string(stream.id) +
                                                    " is being captured and cannot be waited for");
  }
}

}  // namespace

Stream::~Stream() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void Stream::enqueue(const std::string& function, std::function<void()> work) {
  if (captured_by) {
    captured_by->tasks.push_back({function, std::move(work)});
    return;
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    tasks_.push_back({function, std::move(work)});
    if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
  }
  changed_.notify_all();
}

void Stream::run() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return stop_ || !tasks_.empty(); });
    if (tasks_.empty()) return;
    const Task& task = tasks_.front();
    const bool dropped = failure_ && stops_on_failure && task.function != kRecordEvent;
    lock.unlock();
    std::optional<Failure> failure;
    if (!dropped) failure = run_task(task);
    lock.lock();
    if (failure && !failure_) failure_ = failure;
    tasks_.pop_front();
    changed_.notify_all();
  }
}

void Stream::synchronize() {
  refuse_while_captured(*this);
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [&] { return tasks_.empty(); });
  if (!failure_) return;
  const Failure failure = *failure_;
  if (!stops_on_failure) failure_.reset();
  throw failure;
}

bool Stream::idle() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return tasks_.empty();
}

Stream& stream_of(aclrtStream handle) {
  Streams& s = streams();
  const int device = handle ? -1 : current_device();
  const std::lock_guard<std::mutex> lock(s.mutex);
  if (!handle) {
    aclrtStream& of_device = s.of_device[device];
    if (!of_device) of_device = s.add(device);
    handle = of_device;
  }
  const auto found = s.all.find(handle);
  if (found == s.all.end()) {
    throw Failure(ACL_ERROR_RT_PARAM_INVALID, "not a live stream");
  }
  return *found->second;
}

void end_capture(const std::shared_ptr<Graph>& graph) {
  graph->ended = true;
  Streams& s = streams();
  const std::lock_guard<std::mutex> lock(s.mutex);
  for (const auto& [handle, stream] : s.all) {
    if (stream->captured_by == graph) stream->captured_by.reset();
  }
}

void synchronize_device(int device) {
  std::vector<Stream*> waited;
  {
    Streams& s = streams();
    const std::lock_guard<std::mutex> lock(s.mutex);
    for (const auto& [handle, stream] : s.all) {
      if (stream->device == device) waited.push_back(stream.get());
    }
  }
  for (Stream* stream : waited) stream->synchronize();
}

}  // namespace npu_rope::acl

using namespace npu_rope::acl;

aclError aclrtCreateStreamWithConfig(aclrtStream* stream, uint32_t, uint32_t) {
  return call("aclrtCreateStreamWithConfig", [&] {
    const int device = current_device();
    Streams& s = streams();
    const std::lock_guard<std::mutex> lock(s.mutex);
    *stream = s.add(device);
  });
}

aclError aclrtCreateStream(aclrtStream* stream) {
  return aclrtCreateStreamWithConfig(stream, 0, 0);
}

aclError aclrtDestroyStream(aclrtStream stream) {
  return call("aclrtDestroyStream", [&] { take(stream)->synchronize(); });
}

aclError aclrtDestroyStreamForce(aclrtStream stream) {
  return call("aclrtDestroyStreamForce", [&] { take(stream); });
}

aclError aclrtSynchronizeStream(aclrtStream stream) {
  return call("aclrtSynchronizeStream", [&] { stream_of(stream).synchronize(); });
}
aclError aclrtSynchronizeStreamWithTimeout(aclrtStream stream, int32_t) {
  return call("aclrtSynchronizeStreamWithTimeout", [&] { stream_of(stream).synchronize(); });
}
aclError aclrtSynchronizeDevice() {
  return call("aclrtSynchronizeDevice", [] { synchronize_device(current_device()); });
}
aclError aclrtSynchronizeDeviceWithTimeout(int32_t) {
  return call("aclrtSynchronizeDeviceWithTimeout", [] { synchronize_device(current_device()); });
}

aclError aclrtStreamQuery(aclrtStream stream, aclrtStreamStatus* status) {
  return call("aclrtStreamQuery", [&] {
    Stream& queried = stream_of(stream);
    refuse_while_captured(queried);
    *status = queried.idle() ? ACL_STREAM_STATUS_COMPLETE : ACL_STREAM_STATUS_NOT_READY;
  });
}

aclError aclrtStreamGetId(aclrtStream stream, int32_t* id) {
  return call("aclrtStreamGetId", [&] { *id = stream_of(stream).id; });
}

aclError aclrtSetStreamFailureMode(aclrtStream stream, uint64_t mode) {
  return call("aclrtSetStreamFailureMode",
              [&] { stream_of(stream).stops_on_failure = mode == ACL_STOP_ON_FAILURE; });
}
