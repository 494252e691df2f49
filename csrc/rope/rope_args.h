// From the operator's arguments to a checked geometry. Knows tensors, but no device.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/string_view.h>

#include <cstdint>
#include <optional>
#include <tuple>

#include "rope/rope_geometry.h"

namespace npu_rope {

/// The keyword arguments of every form of the operator, as they came, in the schema's order.
struct RopeOptions {
  std::optional<c10::string_view> layout;
  std::optional<int64_t> rotary_dim;
  int64_t rotary_offset;
  bool interleaved;
  bool deinterleave;
  bool cast_tables;
  bool round_each;

  auto tuple() const {
    return std::make_tuple(layout, rotary_dim, rotary_offset, interleaved, deinterleave,
                           cast_tables, round_each);
  }
};

/// What norm_apply takes besides: RMSNorm before the rotation.
struct NormOptions {
  at::Tensor q_weight, k_weight;  // where one is undefined (None) there is no norm
  double eps, weight_offset;
};

/// What errors call q and k.
constexpr const char* kInputNames[2] = {"q", "k"};
constexpr const char* kGradNames[2] = {"grad_q", "grad_k"};

/// Which axis of a tensor is which; -1 where it has none. The last axis is never among them.
struct Axes {
  int64_t batch, token, head;
};

/// What the checks found out, as far as it does not depend on a token or head count.
struct RopeArgs {
  Style style;
  bool half_tables, cast_tables, round_each;
  int64_t head_dim, rotary_dim, rotary_offset;
  Axes rows, table;
};

/// Checks ranks, sizes, dtypes, devices and options of the inputs, and throws c10::Error naming the
/// argument, what was expected and what came. `names` are what errors call q and k, of which one
/// may be undefined (None), as may then its output below. Int is int64_t, or c10::SymInt for a
/// kernel that is traced: no token or head count is specialised then.
template <class Int>
RopeArgs check_inputs(const at::Tensor& q, const at::Tensor& k, const at::Tensor& cos,
                      const at::Tensor& sin, const RopeOptions& options,
                      const char* const (&names)[2]);

/// Checks the norm of rows that check_inputs has accepted.
void check_norm(const NormOptions& norm, const at::Tensor& q, const at::Tensor& k,
                const RopeArgs& args);

/// Checks that outputs have exactly their inputs' shape, dtype and device.
template <class Int>
void check_outputs(const at::Tensor& q, const at::Tensor& k, const at::Tensor& q_out,
                   const at::Tensor& k_out);

/// The geometry of checked tensors whose last axes are all dense.
RopeGeometry make_geometry(const RopeArgs& args, const at::Tensor& q, const at::Tensor& k,
                           const at::Tensor& cos, const at::Tensor& sin, const at::Tensor& q_out,
                           const at::Tensor& k_out, bool transpose);

/// The norm as the geometry has it.
RopeNorm make_norm(const NormOptions& norm);

/// Whether elements of the last axis lie side by side, as every kernel wants them. Of one element
/// they do, whatever its stride.
inline bool has_dense_rows(const at::Tensor& tensor) {
  return !tensor.defined() || tensor.strides().back() == 1 || tensor.sizes().back() == 1 ||
         tensor.numel() == 0;
}

}  // namespace npu_rope
