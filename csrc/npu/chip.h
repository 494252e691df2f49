// The limits of the chips, from their platform files: what the plan keeps to and the simulator
// enforces.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace npu_rope {

struct Chip {
  std::string name;   // as aclrtGetSocName gives it
  int32_t arch;       // NPU architecture: 2201 is A2/A3
  int32_t cores;      // vector cores that can run at once
  int32_t mhz;        // their clock
  int64_t ub_bytes;   // unified buffer of a core
  int64_t ub_usable;  // what is left of it for a kernel
  int64_t l2_bytes;
};

/// Every chip that is known, those without a kernel too.
const std::vector<Chip>& chips();

/// The chip of that name; throws std::invalid_argument naming the known ones.
const Chip& find_chip(const std::string& soc);

}  // namespace npu_rope
