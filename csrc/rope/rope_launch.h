// The kernels' launch functions, by the names and signatures that CANN's ascendc_library gives
// them. Each puts one launch on the stream and returns 0 or an error code. The parameters are
// copied before it returns; the kernel gets them by value.
//
//   CANN 8.x       generated from rope_kernel.cpp by ascendc_library
//   CANN >= 9.1    rope_launch.asc
//   no NPU         ../simulator/acl/rope_launch.cpp
#pragma once

#include <acl/acl_base.h>

#include <cstdint>

#include "rope/rope_params.h"

extern "C" {

uint32_t aclrtlaunch_rope_fp16(uint32_t cores, aclrtStream stream, void* q, void* k, void* cos,
                               void* sin, void* q_out, void* k_out, npu_rope::RopeParams* params);
uint32_t aclrtlaunch_rope_bf16(uint32_t cores, aclrtStream stream, void* q, void* k, void* cos,
                               void* sin, void* q_out, void* k_out, npu_rope::RopeParams* params);
uint32_t aclrtlaunch_rope_fp32(uint32_t cores, aclrtStream stream, void* q, void* k, void* cos,
                               void* sin, void* q_out, void* k_out, npu_rope::RopeParams* params);
}
