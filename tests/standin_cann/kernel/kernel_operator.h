// CANN's header, as a kernel sees it: the simulator's.
#pragma once
#ifdef __aicore__
#error "__aicore__ before CANN's own: a device function would be one of the host's"
#endif
#include_next <kernel_operator.h>
