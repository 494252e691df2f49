// The one place where a kernel is enqueued.
#pragma once

#include <torch_npu/csrc/core/npu/NPUStream.h>
#include <torch_npu/csrc/framework/OpCommand.h>

#include <functional>
#include <string>

#include "npu/chip.h"

namespace npu_rope {

/// The chip of this machine; throws c10::Error where it is none that the package knows.
const Chip& current_chip();

/// What `launch()` returns, or where that is 0 the error that it has left behind: CANN's generated
/// launch functions return 0 or nothing where the runtime refused the launch.
int code_of(const std::function<int()>& launch);

/// Enqueues `launch(stream)`, which returns 0 or an error code, on the current stream of the
/// current device. It goes through torch_npu's task queue, behind everything that was enqueued
/// before it, and may run on another thread after this returns: `launch` must own what it uses.
template <class Launch>
void enqueue(const std::string& name, const Launch& launch) {
  // false: the queue is not drained. A raw launch on this stream from here would overtake it.
  const aclrtStream stream = c10_npu::getCurrentNPUStream().stream(false);
  at_npu::native::OpCommand::RunOpApi(
      name, [stream, launch]() -> int { return code_of([&] { return launch(stream); }); });
}

}  // namespace npu_rope
