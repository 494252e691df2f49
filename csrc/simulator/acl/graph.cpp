// Capture and replay: what torch.npu.NPUGraph calls.
#include <map>

#include "device.h"
#include "stream.h"

namespace npu_rope::acl {
namespace {

struct Graphs {
  std::mutex mutex;
  std::map<aclmdlRI, std::shared_ptr<Graph>> all;
};

Graphs& graphs() {
  static auto* const instance = new Graphs;
  return *instance;
}

std::shared_ptr<Graph> graph_of(aclmdlRI handle) {
  Graphs& g = graphs();
  const std::lock_guard<std::mutex> lock(g.mutex);
  const auto found = g.all.find(handle);
  if (found == g.all.end()) throw Failure(ACL_ERROR_RT_PARAM_INVALID, "not a live graph");
  return found->second;
}

}  // namespace
}  // namespace npu_rope::acl

using namespace npu_rope::acl;

aclError aclmdlRICaptureBegin(aclrtStream handle, aclmdlRICaptureMode) {
  return call("aclmdlRICaptureBegin", [&] {
    Stream& stream = stream_of(handle);
    if (stream.captured_by) {
      throw Failure(ACL_ERROR_RT_STREAM_CAPTURED, "the stream is being captured already");
    }
    const auto graph = std::make_shared<Graph>();
    stream.captured_by = graph;
    Graphs& g = graphs();
    const std::lock_guard<std::mutex> lock(g.mutex);
    g.all[graph.get()] = graph;
  });
}

aclError aclmdlRICaptureGetInfo(aclrtStream handle, aclmdlRICaptureStatus* status,
                                aclmdlRI* graph) {
  return call("aclmdlRICaptureGetInfo", [&] {
    const Stream& stream = stream_of(handle);
    *status =
        stream.captured_by ? ACL_MODEL_RI_CAPTURE_STATUS_ACTIVE : ACL_MODEL_RI_CAPTURE_STATUS_NONE;
    if (graph) *graph = stream.captured_by.get();
  });
}

aclError aclmdlRICaptureEnd(aclrtStream handle, aclmdlRI* graph) {
  return call("aclmdlRICaptureEnd", [&] {
    Stream& stream = stream_of(handle);
    if (!stream.captured_by) {
      throw Failure(ACL_ERROR_RT_STREAM_NOT_CAPTURED, "the stream is not being captured");
    }
    const std::shared_ptr<Graph> captured = stream.captured_by;
    *graph = captured.get();
    end_capture(captured);
  });
}

aclError aclmdlRICaptureThreadExchangeMode(aclmdlRICaptureMode* mode) {
  return call("aclmdlRICaptureThreadExchangeMode", [&] {
    thread_local aclmdlRICaptureMode current = ACL_MODEL_RI_CAPTURE_MODE_GLOBAL;
    std::swap(current, *mode);
  });
}

aclError aclmdlRIExecuteAsync(aclmdlRI handle, aclrtStream stream) {
  return call("aclmdlRIExecuteAsync", [&] {
    const auto graph = graph_of(handle);
    Stream& target = stream_of(stream);
    for (const Task& task : graph->tasks) target.enqueue(task.function, task.work);
  });
}

aclError aclmdlRIDestroy(aclmdlRI handle) {
  return call("aclmdlRIDestroy", [&] {
    graph_of(handle);
    Graphs& g = graphs();
    const std::lock_guard<std::mutex> lock(g.mutex);
    g.all.erase(handle);
  });
}
