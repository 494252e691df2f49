// The kernel's entries: one for each dtype of q and k and order of rows on either side, each
// compiled by itself (CMake makes its source from rope_entry.cpp.in and its line here), launched by
// aclrtlaunch_<name>. A core's instruction cache then holds what one launch needs, no more.
//
//   half          halves -> halves      deinterleave   pairs -> halves
//   interleaved   pairs -> pairs        reinterleave   halves -> pairs (deinterleave's backward)
//
// upright: interleaved, too, by rope_upright.h.
// rope_norm_*: with the norm of norm_kernel.h before the rotation; arranged: of any order, by
// columns that are gathered.
#pragma once

#include <cstddef>

#include "rope/rope_geometry.h"
#include "rope/rope_params.h"

//    name, dtype, the same in the kernel, rows come as pairs, rows leave as pairs,
//    RopeParams::kind
#define ROPE_ENTRIES(ENTRY)                                                           \
  ENTRY(rope_fp16_half, kFloat16, half, false, false, kRotates)                       \
  ENTRY(rope_fp16_interleaved, kFloat16, half, true, true, kRotates)                  \
  ENTRY(rope_fp16_upright, kFloat16, half, true, true, kRotatesUpright)               \
  ENTRY(rope_fp16_deinterleave, kFloat16, half, true, false, kRotates)                \
  ENTRY(rope_fp16_reinterleave, kFloat16, half, false, true, kRotates)                \
  ENTRY(rope_bf16_half, kBFloat16, bfloat16_t, false, false, kRotates)                \
  ENTRY(rope_bf16_interleaved, kBFloat16, bfloat16_t, true, true, kRotates)           \
  ENTRY(rope_bf16_upright, kBFloat16, bfloat16_t, true, true, kRotatesUpright)        \
  ENTRY(rope_bf16_deinterleave, kBFloat16, bfloat16_t, true, false, kRotates)         \
  ENTRY(rope_bf16_reinterleave, kBFloat16, bfloat16_t, false, true, kRotates)         \
  ENTRY(rope_fp32_half, kFloat32, float, false, false, kRotates)                      \
  ENTRY(rope_fp32_interleaved, kFloat32, float, true, true, kRotates)                 \
  ENTRY(rope_fp32_upright, kFloat32, float, true, true, kRotatesUpright)              \
  ENTRY(rope_fp32_deinterleave, kFloat32, float, true, false, kRotates)               \
  ENTRY(rope_fp32_reinterleave, kFloat32, float, false, true, kRotates)               \
  ENTRY(rope_norm_fp16_half, kFloat16, half, false, false, kNorms)                    \
  ENTRY(rope_norm_fp16_interleaved, kFloat16, half, true, true, kNorms)               \
  ENTRY(rope_norm_fp16_deinterleave, kFloat16, half, true, false, kNorms)             \
  ENTRY(rope_norm_fp16_arranged, kFloat16, half, false, false, kNormsArranged)        \
  ENTRY(rope_norm_bf16_half, kBFloat16, bfloat16_t, false, false, kNorms)             \
  ENTRY(rope_norm_bf16_interleaved, kBFloat16, bfloat16_t, true, true, kNorms)        \
  ENTRY(rope_norm_bf16_deinterleave, kBFloat16, bfloat16_t, true, false, kNorms)      \
  ENTRY(rope_norm_bf16_arranged, kBFloat16, bfloat16_t, false, false, kNormsArranged) \
  ENTRY(rope_norm_fp32_half, kFloat32, float, false, false, kNorms)                   \
  ENTRY(rope_norm_fp32_interleaved, kFloat32, float, true, true, kNorms)              \
  ENTRY(rope_norm_fp32_deinterleave, kFloat32, float, true, false, kNorms)            \
  ENTRY(rope_norm_fp32_arranged, kFloat32, float, false, false, kNormsArranged)

namespace npu_rope {

/// An entry and a function of it: the launch, or the kernel itself.
template <class Function>
struct RopeEntry {
  DType dtype;
  bool split_in, join_out;
  uint8_t kind;
  Function* function;
};

/// The function of the entry that these parameters are for, or null.
template <class Function, std::size_t n>
Function* find_entry(const RopeEntry<Function> (&entries)[n], DType dtype,
                     const RopeParams& params) {
  for (const auto& entry : entries) {
    if (entry.dtype == dtype && entry.split_in == static_cast<bool>(params.split_in) &&
        entry.join_out == static_cast<bool>(params.join_out) && entry.kind == params.kind) {
      return entry.function;
    }
  }
  return nullptr;
}

}  // namespace npu_rope
