#include "npu/chip.h"

#include <stdexcept>

namespace npu_rope {
namespace {

constexpr int64_t kKiB = 1024;
constexpr int64_t kMiB = 1024 * kKiB;

// Of the 192 KB of arch 2201 the compiler keeps 8 KB and 256 bytes to itself.
constexpr int64_t kUsable2201 = 192 * kKiB - 8 * kKiB - 256;

}  // namespace

const std::vector<Chip>& chips() {
  static const std::vector<Chip> all = {
      // name           arch  cores MHz   UB          usable       L2
      {"Ascend910B1", 2201, 48, 1850, 192 * kKiB, kUsable2201, 192 * kMiB},
      {"Ascend910B2", 2201, 48, 1800, 192 * kKiB, kUsable2201, 192 * kMiB},
      {"Ascend910B2C", 2201, 48, 1800, 192 * kKiB, kUsable2201, 192 * kMiB},
      {"Ascend910B3", 2201, 40, 1800, 192 * kKiB, kUsable2201, 192 * kMiB},
      {"Ascend910B4", 2201, 40, 1500, 192 * kKiB, kUsable2201, 96 * kMiB},
      {"Ascend910B4-1", 2201, 40, 1500, 192 * kKiB, kUsable2201, 168 * kMiB},
      {"Ascend910_9391", 2201, 48, 1850, 192 * kKiB, kUsable2201, 192 * kMiB},  // A3 from here
      {"Ascend910_9392", 2201, 48, 1850, 192 * kKiB, kUsable2201, 192 * kMiB},
      {"Ascend910_9381", 2201, 48, 1800, 192 * kKiB, kUsable2201, 192 * kMiB},
      {"Ascend910_9382", 2201, 48, 1800, 192 * kKiB, kUsable2201, 192 * kMiB},
      {"Ascend910_9372", 2201, 40, 1800, 192 * kKiB, kUsable2201, 192 * kMiB},
      {"Ascend910_9362", 2201, 40, 1500, 192 * kKiB, kUsable2201, 168 * kMiB},
      // Known, but without a kernel: no DataCopyPad and no bf16; registers in place of UB operands.
      {"Ascend310P3", 2002, 7, 1000, 256 * kKiB, 256 * kKiB, 16 * kMiB},
      {"Ascend950PR_958b", 3510, 64, 1650, 256 * kKiB, 248 * kKiB, 112 * kMiB},
  };
  return all;
}

const Chip& find_chip(const std::string& soc) {
  std::string known;
  for (const Chip& chip : chips()) {
    if (chip.name == soc) return chip;
    known += (known.empty() ? "" : ", ") + chip.name;
  }
  throw std::invalid_argument("soc is '" + soc + "', expected one of " + known);
}

}  // namespace npu_rope
