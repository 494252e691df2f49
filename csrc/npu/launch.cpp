#include "npu/launch.h"

#include <acl/acl.h>
#include <c10/util/Exception.h>
#include <dlfcn.h>

#include <stdexcept>

namespace npu_rope {
namespace {

/// A function of the runtime that gives this thread's last error, or null: older CANN has none.
using LastError = int(int level);
LastError* find_last_error(const char* name) {
  return reinterpret_cast<LastError*>(dlsym(RTLD_DEFAULT, name));
}
constexpr int kOfThread = 0;  // ACL_RT_THREAD_LEVEL

}  // namespace

int code_of(const std::function<int()>& launch) {
  static LastError* const take = find_last_error("aclrtGetLastError");
  static LastError* const peek = find_last_error("aclrtPeekAtLastError");
  if (!take || !peek) return launch();
  take(kOfThread);  // what an earlier call has left is not the launch's
  const int code = launch();
  return code != 0 ? code : peek(kOfThread);
}

const Chip& current_chip() {
  static const Chip& chip = []() -> const Chip& {
    const char* const soc = aclrtGetSocName();
    TORCH_CHECK(soc, "aclrtGetSocName names no chip");
    try {
      return find_chip(soc);
    } catch (const std::invalid_argument& unknown) {
      TORCH_CHECK(false, "npu_rope does not know this NPU: ", unknown.what());
    }
  }();
  return chip;
}

}  // namespace npu_rope
