// How the cores share one rotation: geometry and chip limits in, launch parameters out.
#pragma once

#include <vector>

#include "npu/chip.h"
#include "rope/rope_geometry.h"
#include "rope/rope_params.h"

namespace npu_rope {

struct RopePlan {
  int32_t cores;     // to launch; 0 where there is nothing to do
  int64_t ub_bytes;  // of the unified buffer that a core uses
  RopeParams params;
};

/// What the number of cores is chosen by: the launch takes
///
///   cores * kStartNs + (bytes that the busiest core reads and writes) / kBytesPerNs,
///
/// and the grid of (token parts × head parts) that takes least is used, of equals the one with
/// fewer cores. One core moves about 100 bytes a ns, which is also about what its vector unit
/// rotates; where it joins pairs it takes a quarter as long again, and where it gathers columns,
/// ten times. What a core more costs is known within a range only, 30 to 110 ns. 60 is bad at
/// neither end: no launch of the benchmarks' table takes 8 % longer than by the best number of
/// cores for either (python -m benchmarks cores); with 30 they took up to 18 % longer. The launch
/// itself costs the same for every grid.
constexpr double kStartNs = 60;
constexpr double kBytesPerNs = 100, kPairBytesPerNs = 80, kArrangedBytesPerNs = 8;

/// Pure. Throws std::invalid_argument where the chip has no kernel or the geometry is not one that
/// the kernel rotates.
RopePlan plan_rope(const RopeGeometry& geometry, const Chip& chip);

/// What a core does, in order: the kernel goes by the same walk.
std::vector<RopeBox> boxes_of(const RopePlan& plan, int32_t core);

}  // namespace npu_rope
