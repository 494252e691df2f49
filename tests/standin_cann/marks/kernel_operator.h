// The marks that ascendc_library's scripts look for in preprocessed sources.
#pragma once
#ifdef __aicore__
#error "__aicore__ before CANN's own: a device function would be one of the host's"
#endif
#define __global__ __attribute__((cce_kernel))
#define __aicore__ [aicore]
#define GM_ADDR __attribute__((cce_global)) uint8_t*
#define KERNEL_TASK_TYPE_DEFAULT(type) standin_kernel_type = type;
