// What one rotation is, once every check has passed: plain numbers, neither torch nor ACL.
// rope_args makes it from tensors; the plan, the CPU kernel and the NPU launch read it.
#pragma once

#include <cstdint>

namespace npu_rope {

enum class DType : int32_t { kFloat16, kBFloat16, kFloat32, kFloat64 };

constexpr int64_t size_of(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

/// Where the two partners of a pair lie in the rotated slice of width R.
enum class Style : int32_t {
  kHalf,          // (i, i + R/2) -> (i, i + R/2)
  kInterleaved,   // (2i, 2i + 1) -> (2i, 2i + 1)
  kDeinterleave,  // (2i, 2i + 1) -> (i, i + R/2)
};

/// Distances between neighbours in elements, not bytes. The last axis is dense.
struct RowStrides {
  int64_t batch, token, head;
};

/// The same for a table, which has no head axis. 0 where the table is broadcast.
struct TableStrides {
  int64_t batch, token;
};

/// RMSNorm of q's and of k's rows before they are rotated, over all of head_dim:
///
///   x * (1 / sqrt(mean(x * x) + eps)) * (weight_offset + weight)
struct RopeNorm {
  bool q, k;  // which of them have it
  DType weight_dtype;
  double eps, weight_offset;
};

/// One rotation of q [batch, tokens, q_heads, head_dim] and k [batch, tokens, k_heads, head_dim].
/// Whatever the layout was called, it is only strides here. Any of batch, tokens, q_heads and
/// k_heads may be 0; batch and tokens are folded into one axis where the strides allow.
struct RopeGeometry {
  DType dtype;        // of q, k and the outputs
  DType table_dtype;  // of cos and sin
  Style style;
  bool transpose;    // apply_backward: the transposed rotation, reading outputs' order, writing
                     // inputs'
  bool half_tables;  // table width rotary_dim / 2: entry i serves pair i; else rotary_dim
  bool cast_tables;  // round the tables to dtype (nearest even) before they are used
  bool round_each;   // round each product, sum and difference to dtype: of a 16-bit dtype only
  int64_t batch, tokens, q_heads, k_heads;
  int64_t head_dim, rotary_dim, rotary_offset;
  bool q_in_place, k_in_place;  // output and input are the same memory: what is not rotated stays
  RowStrides q, k, q_out, k_out;
  TableStrides cos, sin;
  RopeNorm norm;
};

/// First elements, in the order of the operator's arguments.
struct RopePointers {
  const void* q;
  const void* k;
  const void* cos;
  const void* sin;
  void* q_out;
  void* k_out;
  const void* q_weight;  // where the geometry has norms
  const void* k_weight;
};

}  // namespace npu_rope
