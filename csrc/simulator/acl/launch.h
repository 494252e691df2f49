// How a kernel that was compiled for the simulator is launched.
#pragma once

#include <acl/acl_base.h>

#include <cstdint>
#include <functional>
#include <string>

namespace npu_rope::acl {

/// Enqueues a kernel on simulated cores. Returns 0 even where that fails, as CANN's launch
/// functions do: the error is the thread's last one. `kernel` is called once for each of the blocks
/// and may touch the live allocations of the stream's device, and nothing else.
uint32_t launch_kernel(const std::string& function, uint32_t blocks, aclrtStream stream,
                       std::function<void()> kernel);

}  // namespace npu_rope::acl
