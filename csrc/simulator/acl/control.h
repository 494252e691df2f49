// What tests call, by ctypes, beside CANN's own functions. All in libascendcl.so.
#pragma once

#include <cstddef>

extern "C" {

/// Forgets the log and begins to write it: one line a call, "function detail".
void npu_rope_sim_log_start();
/// Ends the log and returns it; valid until the next call of this function.
const char* npu_rope_sim_log_stop();

/// Makes `function` fail with `code`: `after` calls succeed, the next `times` fail (< 0: all).
/// "name@device" fails when the device runs the task, "*" is every function. Code 0 ends it.
void npu_rope_sim_fail(const char* function, int code, int after, int times);

/// Makes every task of `function` take so much longer on the device; "name@call": the call itself,
/// which for what is queued holds up torch_npu's queue.
void npu_rope_sim_delay(const char* function, int milliseconds);

/// 1: the tasks (or calls) of `function` wait. 0: they go on.
void npu_rope_sim_hold(const char* function, int hold);

/// 0: kernels are launched but do nothing, so that a benchmark times the host alone. 1: as usual.
void npu_rope_sim_run_kernels(int run);

/// Bytes of the live allocations on the device.
size_t npu_rope_sim_live_bytes(int device);
}
