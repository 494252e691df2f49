// CPU debug mode: memory that is given out is what a kernel may touch, and a run is a simulated
// one.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <vector>

#include "npu/chip.h"
#include "simulator/ascendc/simulator.h"

enum class KernelMode { MIX_MODE, AIC_MODE, AIV_MODE };

namespace standin {
inline std::vector<npu_rope::simulator::GmRegion> regions;
inline KernelMode mode = KernelMode::MIX_MODE;
}  // namespace standin

namespace AscendC {
inline void* GmAlloc(size_t bytes) {
  void* const memory = std::malloc(bytes);
  standin::regions.push_back({memory, static_cast<int64_t>(bytes), false});
  return memory;
}
inline void SetKernelMode(KernelMode mode) { standin::mode = mode; }
}  // namespace AscendC

// Any mode but that of vector cores runs twice the blocks.
#define ICPU_RUN_KF(kernel, blocks, ...)                                                    \
  npu_rope::simulator::simulate(npu_rope::find_chip("Ascend910B1"),                         \
                                (standin::mode == KernelMode::AIV_MODE ? 1 : 2) * (blocks), \
                                standin::regions, [&] { kernel(__VA_ARGS__); })
