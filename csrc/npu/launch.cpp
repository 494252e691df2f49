#include "npu/launch.h"

#include <acl/acl.h>
#include <c10/util/Exception.h>

#include <stdexcept>

namespace npu_rope {

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
