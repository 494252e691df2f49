#include "rope/rope_ops.h"

namespace npu_rope {

using at::Tensor;

std::tuple<Tensor, Tensor> RopeCalls::apply(const Tensor& q, const Tensor& k, const Tensor& cos,
                                            const Tensor& sin, const RopeOptions& options) {
  static const auto op = find_form<RopeSchema::Functional>("npu_rope::apply");
  const auto call = [&](auto... option) {
    return op.call(or_none(q), or_none(k), cos, sin, option...);
  };
  return std::apply(call, options.tuple());
}

std::tuple<Tensor, Tensor> RopeCalls::apply_backward(const Tensor& grad_q, const Tensor& grad_k,
                                                     const Tensor& cos, const Tensor& sin,
                                                     const RopeOptions& options) {
  static const auto op = find_form<RopeSchema::Functional>("npu_rope::apply_backward");
  const auto call = [&](auto... option) {
    return op.call(or_none(grad_q), or_none(grad_k), cos, sin, option...);
  };
  return std::apply(call, options.tuple());
}

void RopeCalls::apply_(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                       const RopeOptions& options) {
  static const auto op = find_form<RopeSchema::Inplace>("npu_rope::apply_");
  const auto call = [&](auto... option) { op.call(or_none(q), or_none(k), cos, sin, option...); };
  std::apply(call, options.tuple());
}

void RopeCalls::apply_out(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                          const RopeOptions& options, const Tensor& q_out, const Tensor& k_out) {
  static const auto op = find_form<RopeSchema::Out>("npu_rope::apply", "out");
  const auto call = [&](auto... option) {
    op.call(or_none(q), or_none(k), cos, sin, option..., or_none(q_out), or_none(k_out));
  };
  std::apply(call, options.tuple());
}

}  // namespace npu_rope
