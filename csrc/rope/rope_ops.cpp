#include "rope/rope_ops.h"

#include <ATen/core/dispatch/Dispatcher.h>

namespace npu_rope {
namespace {

using at::Tensor;

template <class Form>
c10::TypedOperatorHandle<Form> find(const char* name, const char* overload = "") {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, overload).typed<Form>();
}

std::optional<Tensor> maybe(const Tensor& tensor) {
  return tensor.defined() ? std::optional<Tensor>(tensor) : std::nullopt;
}

}  // namespace

std::tuple<Tensor, Tensor> RopeCalls::apply(const Tensor& q, const Tensor& k, const Tensor& cos,
                                            const Tensor& sin, const RopeOptions& options) {
  static const auto op = find<RopeSchema::Functional>("npu_rope::apply");
  const auto call = [&](auto... option) {
    return op.call(maybe(q), maybe(k), cos, sin, option...);
  };
  return std::apply(call, options.tuple());
}

std::tuple<Tensor, Tensor> RopeCalls::apply_backward(const Tensor& grad_q, const Tensor& grad_k,
                                                     const Tensor& cos, const Tensor& sin,
                                                     const RopeOptions& options) {
  static const auto op = find<RopeSchema::Functional>("npu_rope::apply_backward");
  const auto call = [&](auto... option) {
    return op.call(maybe(grad_q), maybe(grad_k), cos, sin, option...);
  };
  return std::apply(call, options.tuple());
}

void RopeCalls::apply_(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                       const RopeOptions& options) {
  static const auto op = find<RopeSchema::Inplace>("npu_rope::apply_");
  const auto call = [&](auto... option) { op.call(maybe(q), maybe(k), cos, sin, option...); };
  std::apply(call, options.tuple());
}

void RopeCalls::apply_out(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                          const RopeOptions& options, const Tensor& q_out, const Tensor& k_out) {
  static const auto op = find<RopeSchema::Out>("npu_rope::apply", "out");
  const auto call = [&](auto... option) {
    op.call(maybe(q), maybe(k), cos, sin, option..., maybe(q_out), maybe(k_out));
  };
  std::apply(call, options.tuple());
}

}  // namespace npu_rope
