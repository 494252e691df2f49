// The forms of the operator (functional, in place, out, backward) on a backend that can launch.
//
//   check -> device of the tensors -> dense rows -> geometry -> early return -> launch
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <iterator>
#include <tuple>

#include "npu/library.h"
#include "rope/rope_args.h"
#include "rope/rope_overlap.h"

namespace npu_rope {

/// An npu tensor in one of CANN's private formats (FRACTAL_NZ, ...) has its elements elsewhere than
/// its strides say.
inline void check_format(const at::Tensor& tensor, const char* name) {
  if (!tensor.defined() || !tensor.is_privateuseone() || tensor.numel() == 0) return;
  constexpr int64_t kPlain[] = {0, 1, 2, 27, 30};  // NCHW, NHWC, ND, NDHWC, NCDHW
  const int64_t format = npu_library().format(tensor);
  TORCH_CHECK_VALUE(
      std::find(std::begin(kPlain), std::end(kPlain), format) != std::end(kPlain), name,
      " is stored in format ", format,
      ", expected a plain one (ND is 2, FRACTAL_NZ is 29): torch_npu.npu_format_cast(", name,
      ", 2)");
}

inline void check_formats(const at::Tensor& q, const at::Tensor& k, const at::Tensor& cos,
                          const at::Tensor& sin, const char* const (&names)[2]) {
  check_format(q, names[0]);
  check_format(k, names[1]);
  check_format(cos, "cos");
  check_format(sin, "sin");
}

inline at::Tensor empty_as(const at::Tensor& tensor) {
  return tensor.defined() ? at::empty(tensor.sizes(), tensor.options()) : at::Tensor();
}

/// Without weights.
inline RopePointers pointers_of(const at::Tensor& q, const at::Tensor& k, const at::Tensor& cos,
                                const at::Tensor& sin, const at::Tensor& q_out,
                                const at::Tensor& k_out) {
  const auto read = [](const at::Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; };
  const auto write = [](const at::Tensor& t) {
    return t.defined() ? t.mutable_data_ptr() : nullptr;
  };
  return {read(q), read(k), read(cos), read(sin), write(q_out), write(k_out), nullptr, nullptr};
}

/// Rotates checked tensors by `launch(geometry, q, k, cos, sin, q_out, k_out)`, which gets dense
/// rows, of which there is at least one. Rows that are not dense are the one case that costs
/// copies.
template <class Launch>
void rotate(const RopeArgs& args, const at::Tensor& q, const at::Tensor& k, const at::Tensor& cos,
            const at::Tensor& sin, const at::Tensor& q_out, const at::Tensor& k_out, bool transpose,
            const Launch& launch) {
  if (!has_dense_rows(q_out) || !has_dense_rows(k_out)) {
    const at::Tensor q_dense = empty_as(q), k_dense = empty_as(k);
    rotate(args, q, k, cos, sin, q_dense, k_dense, transpose, launch);
    if (q.defined()) q_out.copy_(q_dense);
    if (k.defined()) k_out.copy_(k_dense);
    return;
  }
  if (!has_dense_rows(q) || !has_dense_rows(k) || !has_dense_rows(cos) || !has_dense_rows(sin)) {
    const auto dense = [](const at::Tensor& t) { return has_dense_rows(t) ? t : t.contiguous(); };
    return rotate(args, dense(q), dense(k), dense(cos), dense(sin), q_out, k_out, transpose,
                  launch);
  }
  const RopeGeometry geometry = make_geometry(args, q, k, cos, sin, q_out, k_out, transpose);
  if (geometry.batch * geometry.tokens * (geometry.q_heads + geometry.k_heads) == 0) return;
  launch(geometry, q, k, cos, sin, q_out, k_out);
}

/// `launch(geometry, pointers)` rotates; it is called with at least one row to rotate.
template <void (*launch)(const RopeGeometry&, const RopePointers&)>
struct RopeForms {
  using Tensor = at::Tensor;

  static std::tuple<Tensor, Tensor> apply(const Tensor& q, const Tensor& k, const Tensor& cos,
                                          const Tensor& sin, const RopeOptions& options) {
    return make(q, k, cos, sin, options, kInputNames, /*transpose=*/false);
  }

  static std::tuple<Tensor, Tensor> apply_backward(const Tensor& grad_q, const Tensor& grad_k,
                                                   const Tensor& cos, const Tensor& sin,
                                                   const RopeOptions& options) {
    return make(grad_q, grad_k, cos, sin, options, kGradNames, /*transpose=*/true);
  }

  static void apply_(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                     const RopeOptions& options) {
    const RopeArgs args = check_inputs<int64_t>(q, k, cos, sin, options, kInputNames);
    check_formats(q, k, cos, sin, kInputNames);
    check_overlap(q, k, cos, sin, q, k);
    const c10::DeviceGuard guard(cos.device());
    rotate(args, q, k, cos, sin, q, k, /*transpose=*/false, launch_pointers);
  }

  static void apply_out(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                        const RopeOptions& options, const Tensor& q_out, const Tensor& k_out) {
    const RopeArgs args = check_inputs<int64_t>(q, k, cos, sin, options, kInputNames);
    check_outputs<int64_t>(q, k, q_out, k_out);
    check_formats(q, k, cos, sin, kInputNames);
    check_format(q_out, "q_out");
    check_format(k_out, "k_out");
    check_overlap(q, k, cos, sin, q_out, k_out);
    const c10::DeviceGuard guard(cos.device());
    rotate(args, q, k, cos, sin, q_out, k_out, /*transpose=*/false, launch_pointers);
  }

 private:
  static std::tuple<Tensor, Tensor> make(const Tensor& q, const Tensor& k, const Tensor& cos,
                                         const Tensor& sin, const RopeOptions& options,
                                         const char* const (&names)[2], bool transpose) {
    const RopeArgs args = check_inputs<int64_t>(q, k, cos, sin, options, names);
    check_formats(q, k, cos, sin, names);
    const c10::DeviceGuard guard(cos.device());
    Tensor q_out = empty_as(q), k_out = empty_as(k);
    rotate(args, q, k, cos, sin, q_out, k_out, transpose, launch_pointers);
    return {std::move(q_out), std::move(k_out)};
  }

  static void launch_pointers(const RopeGeometry& geometry, const Tensor& q, const Tensor& k,
                              const Tensor& cos, const Tensor& sin, const Tensor& q_out,
                              const Tensor& k_out) {
    launch(geometry, pointers_of(q, k, cos, sin, q_out, k_out));
  }
};

}  // namespace npu_rope
