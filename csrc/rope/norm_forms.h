// The forms of norm_apply on a backend that can launch: those of rope_forms.h, with a norm.
#pragma once

#include "rope/rope_forms.h"

namespace npu_rope {

/// `launch(geometry, pointers)` norms and rotates; it is called with at least one row.
template <void (*launch)(const RopeGeometry&, const RopePointers&)>
struct NormForms {
  using Tensor = at::Tensor;

  static std::tuple<Tensor, Tensor> norm_apply(const Tensor& q, const Tensor& k, const Tensor& cos,
                                               const Tensor& sin, const NormOptions& norm,
                                               const RopeOptions& options) {
    const RopeArgs args = check(q, k, cos, sin, norm, options);
    const c10::DeviceGuard guard(cos.device());
    Tensor q_out = empty_as(q), k_out = empty_as(k);
    norm_and_rotate(args, q, k, cos, sin, norm, q_out, k_out);
    return {std::move(q_out), std::move(k_out)};
  }

  static void norm_apply_(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                          const NormOptions& norm, const RopeOptions& options) {
    const RopeArgs args = check(q, k, cos, sin, norm, options);
    check_norm_overlap(q, k, cos, sin, norm, q, k);
    const c10::DeviceGuard guard(cos.device());
    norm_and_rotate(args, q, k, cos, sin, norm, q, k);
  }

  static void norm_apply_out(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                             const NormOptions& norm, const RopeOptions& options,
                             const Tensor& q_out, const Tensor& k_out) {
    const RopeArgs args = check(q, k, cos, sin, norm, options);
    check_outputs<int64_t>(q, k, q_out, k_out);
    check_format(q_out, "q_out");
    check_format(k_out, "k_out");
    check_norm_overlap(q, k, cos, sin, norm, q_out, k_out);
    const c10::DeviceGuard guard(cos.device());
    norm_and_rotate(args, q, k, cos, sin, norm, q_out, k_out);
  }

 private:
  static RopeArgs check(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                        const NormOptions& norm, const RopeOptions& options) {
    const RopeArgs args = check_inputs<int64_t>(q, k, cos, sin, options, kInputNames);
    check_norm(norm, q, k, args);
    check_formats(q, k, cos, sin, kInputNames);
    check_format(norm.q_weight, "q_weight");
    check_format(norm.k_weight, "k_weight");
    return args;
  }

  static void norm_and_rotate(const RopeArgs& args, const Tensor& q, const Tensor& k,
                              const Tensor& cos, const Tensor& sin, const NormOptions& norm,
                              const Tensor& q_out, const Tensor& k_out) {
    const auto dense = [](const Tensor& t) { return has_dense_rows(t) ? t : t.contiguous(); };
    const Tensor q_weight = dense(norm.q_weight), k_weight = dense(norm.k_weight);
    rotate(args, q, k, cos, sin, q_out, k_out, /*transpose=*/false,
           [&](const RopeGeometry& rotation, const auto&... tensors) {
             RopeGeometry geometry = rotation;
             geometry.norm = make_norm(norm);
             RopePointers pointers = pointers_of(tensors...);
             if (geometry.norm.q) pointers.q_weight = q_weight.const_data_ptr();
             if (geometry.norm.k) pointers.k_weight = k_weight.const_data_ptr();
             launch(geometry, pointers);
           });
  }
};

}  // namespace npu_rope
