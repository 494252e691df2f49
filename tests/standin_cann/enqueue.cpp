// A launch of the stand-in: on the simulated runtime, and with what CANN's launches do beside it.
#include <acl/acl_rt.h>

#include <cstdint>
#include <functional>
#include <string>

#include "simulator/acl/launch.h"

void standin_enqueue(const char* kernel, uint32_t blocks, void* stream, bool allocates,
                     const std::function<void()>& run) {
  void* buffer = nullptr;
  if (allocates) aclrtMalloc(&buffer, 8, ACL_MEM_MALLOC_HUGE_FIRST);
  npu_rope::acl::launch_kernel(std::string("aclrtlaunch_") + kernel, blocks, stream, run);
  if (allocates) aclrtFree(buffer);
}
