// Every call of the simulated runtime passes through here: it is logged, an injected fault may take
// its place, and an exception becomes the error code and message that CANN would give.
#pragma once

#include <acl/acl.h>

#include <atomic>
#include <stdexcept>
#include <string>

namespace npu_rope::acl {

/// What a call or a task reports: CANN's error code, and the text for aclGetRecentErrMsg.
struct Failure : std::runtime_error {
  Failure(aclError code, const std::string& what) : std::runtime_error(what), code(code) {}
  aclError code;
};

/// Logs the call and throws if a fault is injected for it.
void enter(const std::string& function, const std::string& detail = "");

/// Throws if a fault is injected for the device's part of this function ("name@device").
void enter_on_device(const std::string& function);

/// Waits as long as the tests want this function ("name@call") or its tasks ("name") to take.
void hold_up(const std::string& function);

/// Whether a launched kernel runs; see control.h.
std::atomic<bool>& runs_kernels();

/// Stores the text for aclGetRecentErrMsg and returns the code.
aclError report(const std::string& function, const Failure& failure);

/// A function that exists only because torch_npu links it: fails and names it.
aclError absent(const char* function);

/// The body of an exported function.
template <class Body>
aclError call(const char* function, const std::string& detail, Body&& body) {
  try {
    enter(function, detail);
    body();
    return ACL_SUCCESS;
  } catch (const Failure& failure) {
    return report(function, failure);
  }
}
template <class Body>
aclError call(const char* function, Body&& body) {
  return call(function, "", std::forward<Body>(body));
}

}  // namespace npu_rope::acl
