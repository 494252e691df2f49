// What a kernel includes: Ascend C as far as it is simulated. See simulator.h for how to run one.
#pragma once

#include "data_copy.h"
#include "queue.h"
#include "vector.h"

#define ASCEND_IS_AIV true
#define ASCEND_IS_AIC false
#define KERNEL_TASK_TYPE_DEFAULT(type) static_assert(type == KERNEL_TYPE_AIV_ONLY, "vector only")

enum KernelType { KERNEL_TYPE_AIV_ONLY };

/// Only in debug builds of the chip's compiler; here always.
#define ASSERT(condition)                                                                    \
  ((condition) ? static_cast<void>(0)                                                        \
               : npu_rope::simulator::Core::current().fail("ASSERT", AscendC::Where::here(), \
                                                           "failed: " #condition))
