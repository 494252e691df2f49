// What an entry (rope_entry.cpp.in) does.
#pragma once

#include "norm_kernel.h"
#include "rope_kernel.h"

namespace npu_rope {

template <typename T, bool kSplit, bool kJoin, uint8_t kKind>
__aicore__ inline void Run(GM_ADDR q, GM_ADDR k, GM_ADDR cos, GM_ADDR sin, GM_ADDR q_out,
                           GM_ADDR k_out, GM_ADDR q_weight, GM_ADDR k_weight,
                           const RopeParams& params) {
  AscendC::TPipe pipe;
  if constexpr (kKind == kNorms || kKind == kNormsArranged) {
    NormKernel<T, kSplit, kJoin, kKind == kNormsArranged> kernel(params, pipe);
    kernel.Init(q, k, cos, sin, q_out, k_out, q_weight, k_weight);
    kernel.Process();
  } else {
    RopeKernel<T, kSplit, kJoin, kKind == kRotatesUpright> kernel(params, pipe);
    kernel.Init(q, k, cos, sin, q_out, k_out);
    kernel.Process();
  }
}

}  // namespace npu_rope
