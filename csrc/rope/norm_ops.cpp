#include "rope/norm_ops.h"

namespace npu_rope {

using at::Tensor;

std::tuple<Tensor, Tensor> NormCalls::norm_apply(const Tensor& q, const Tensor& k,
                                                 const Tensor& cos, const Tensor& sin,
                                                 const NormOptions& norm,
                                                 const RopeOptions& options) {
  static const auto op = find_form<NormSchema::Functional>("npu_rope::norm_apply");
  const auto call = [&](auto... option) {
    return op.call(or_none(q), or_none(k), or_none(norm.q_weight), or_none(norm.k_weight), cos, sin,
                   norm.eps, norm.weight_offset, option...);
  };
  return std::apply(call, options.tuple());
}

void NormCalls::norm_apply_(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                            const NormOptions& norm, const RopeOptions& options) {
  static const auto op = find_form<NormSchema::Inplace>("npu_rope::norm_apply_");
  const auto call = [&](auto... option) {
    op.call(or_none(q), or_none(k), or_none(norm.q_weight), or_none(norm.k_weight), cos, sin,
            norm.eps, norm.weight_offset, option...);
  };
  std::apply(call, options.tuple());
}

void NormCalls::norm_apply_out(const Tensor& q, const Tensor& k, const Tensor& cos,
                               const Tensor& sin, const NormOptions& norm,
                               const RopeOptions& options, const Tensor& q_out,
                               const Tensor& k_out) {
  static const auto op = find_form<NormSchema::Out>("npu_rope::norm_apply", "out");
  const auto call = [&](auto... option) {
    op.call(or_none(q), or_none(k), or_none(norm.q_weight), or_none(norm.k_weight), cos, sin,
            norm.eps, norm.weight_offset, option..., or_none(q_out), or_none(k_out));
  };
  std::apply(call, options.tuple());
}

}  // namespace npu_rope
