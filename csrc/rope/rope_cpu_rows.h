// The part of the CPU kernel that is compiled once for each instruction set.
#pragma once

#include "rope_geometry.h"

namespace npu_rope {

/// What one thread rotates: some heads of some neighbouring tokens of one batch.
struct RopeRange {
  int64_t batch;
  int64_t token_begin, token_end;
  int64_t q_head_begin, q_head_end;
  int64_t k_head_begin, k_head_end;
};

using RotateRange = void (*)(const RopeGeometry&, const RopePointers&, const RopeRange&);

namespace baseline {  // SSE2 on x86-64, NEON on aarch64
void rotate_range(const RopeGeometry&, const RopePointers&, const RopeRange&);
}
namespace avx2 {
void rotate_range(const RopeGeometry&, const RopePointers&, const RopeRange&);
}
namespace avx512 {
void rotate_range(const RopeGeometry&, const RopePointers&, const RopeRange&);
}
namespace avx512_bf16 {
void rotate_range(const RopeGeometry&, const RopePointers&, const RopeRange&);
}

}  // namespace npu_rope
