// The rotation on the CPU.
#pragma once

#include "rope_geometry.h"

namespace npu_rope {

/// Rotates q and k. Neither allocates nor checks: rope_args has done both. The bits do not depend
/// on the number of threads or on the instruction set.
void rope_cpu(const RopeGeometry& geometry, const RopePointers& pointers);

}  // namespace npu_rope
