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

namespace npu_rope {

constexpr const char* kInputNames[2] = {"q", "k"};
constexpr const char* kGradNames[2] = {"grad_q", "grad_k"};

/// An npu tensor in one of CANN's private formats (FRACTAL_NZ, ...) has its elements elsewhere than
/// its strides say.
inline void check_format(const at::Tensor& tensor, const char* name) {
  if (!tensor.is_privateuseone() || tensor.numel() == 0) return;
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

  static void apply_(Tensor& q, Tensor& k, const Tensor& cos, const Tensor& sin,
                     const RopeOptions& options) {
    const RopeArgs args = check_inputs<int64_t>(q, k, cos, sin, options, kInputNames);
    check_formats(q, k, cos, sin, kInputNames);
    check_overlap(q, k, cos, sin, q, k);
    const c10::DeviceGuard guard(q.device());
    rotate(args, q, k, cos, sin, q, k, /*transpose=*/false);
  }

  static void apply_out(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                        const RopeOptions& options, Tensor& q_out, Tensor& k_out) {
    const RopeArgs args = check_inputs<int64_t>(q, k, cos, sin, options, kInputNames);
    check_outputs<int64_t>(q, k, q_out, k_out);
    check_formats(q, k, cos, sin, kInputNames);
    check_format(q_out, "q_out");
    check_format(k_out, "k_out");
    check_overlap(q, k, cos, sin, q_out, k_out);
    const c10::DeviceGuard guard(q.device());
    rotate(args, q, k, cos, sin, q_out, k_out, /*transpose=*/false);
  }

 private:
  static std::tuple<Tensor, Tensor> make(const Tensor& q, const Tensor& k, const Tensor& cos,
                                         const Tensor& sin, const RopeOptions& options,
                                         const char* const (&names)[2], bool transpose) {
    const RopeArgs args = check_inputs<int64_t>(q, k, cos, sin, options, names);
    check_formats(q, k, cos, sin, names);
    const c10::DeviceGuard guard(q.device());
    Tensor q_out = at::empty(q.sizes(), q.options());
    Tensor k_out = at::empty(k.sizes(), k.options());
    rotate(args, q, k, cos, sin, q_out, k_out, transpose);
    return {std::move(q_out), std::move(k_out)};
  }

  // Rows that are not dense are the one case that costs copies.
  static void rotate(const RopeArgs& args, const Tensor& q, const Tensor& k, const Tensor& cos,
                     const Tensor& sin, const Tensor& q_out, const Tensor& k_out, bool transpose) {
    if (!has_dense_rows(q_out) || !has_dense_rows(k_out)) {
      const Tensor q_dense = at::empty(q.sizes(), q.options());
      const Tensor k_dense = at::empty(k.sizes(), k.options());
      rotate(args, q, k, cos, sin, q_dense, k_dense, transpose);
      q_out.copy_(q_dense);
      k_out.copy_(k_dense);
      return;
    }
    if (!has_dense_rows(q) || !has_dense_rows(k) || !has_dense_rows(cos) || !has_dense_rows(sin)) {
      const auto dense = [](const Tensor& t) { return has_dense_rows(t) ? t : t.contiguous(); };
      return rotate(args, dense(q), dense(k), dense(cos), dense(sin), q_out, k_out, transpose);
    }
    const RopeGeometry geometry = make_geometry(args, q, k, cos, sin, q_out, k_out, transpose);
    if (geometry.batch * geometry.tokens * (geometry.q_heads + geometry.k_heads) == 0) return;
    launch(geometry, {q.const_data_ptr(), k.const_data_ptr(), cos.const_data_ptr(),
                      sin.const_data_ptr(), q_out.mutable_data_ptr(), k_out.mutable_data_ptr()});
  }
};

}  // namespace npu_rope
