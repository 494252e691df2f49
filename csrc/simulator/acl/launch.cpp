#include "launch.h"

#include "../ascendc/simulator.h"
#include "calls.h"
#include "device.h"
#include "memory.h"
#include "stream.h"

namespace npu_rope::acl {
namespace {

void run(uint32_t blocks, int device, const std::function<void()>& kernel) {
  if (!runs_kernels()) return;
  const auto live = live_blocks(device);  // held: what is freed meanwhile is still there
  std::vector<simulator::GmRegion> regions;
  for (const auto& block : live) {
    regions.push_back({block->data(), static_cast<int64_t>(block->bytes()), false});
  }
  simulator::Options options;
  options.auto_sync = false;  // the kernel is right without the compiler's help, too
  try {
    simulator::simulate(find_chip(soc_name()), static_cast<int>(blocks), regions, kernel, options);
  } catch (const std::exception& error) {  // SimulationError, or a chip without a simulator
    throw Failure(ACL_ERROR_RT_VECTOR_CORE_EXCEPTION, error.what());
  }
}

}  // namespace

uint32_t launch_kernel(const std::string& function, uint32_t blocks, aclrtStream handle,
                       std::function<void()> kernel) {
  call(function.c_str(), std::to_string(blocks) + " cores", [&] {
    Stream& stream = stream_of(handle);
    if (stream.device != current_device()) {
      throw Failure(ACL_ERROR_RT_STREAM_CONTEXT,
                    "the stream belongs to device " + std::to_string(stream.device) +
                        ", the thread's device is " + std::to_string(current_device()));
    }
    stream.enqueue(function, [blocks, device = stream.device, kernel = std::move(kernel)] {
      run(blocks, device, kernel);
    });
  });
  return 0;
}

}  // namespace npu_rope::acl
