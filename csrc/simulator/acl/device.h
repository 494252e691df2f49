// The devices of the simulated machine, and which one a thread uses.
//
//   NPU_ROPE_SIM_SOC       their name (Ascend910B1)
//   NPU_ROPE_SIM_DEVICES   how many there are (1)
//   NPU_ROPE_SIM_MEMORY    megabytes of memory of each (2048)
#pragma once

#include <cstddef>
#include <string>

namespace npu_rope::acl {

const std::string& soc_name();
int device_count();
size_t device_bytes();

/// The calling thread's device; throws where it has set none, as CANN does.
int current_device();

/// Throws where there is no such device.
void check_device(int device);

}  // namespace npu_rope::acl
