#include "rope/rope_ops.h"

namespace npu_rope {
namespace {

template <class Form>
c10::TypedOperatorHandle<Form> find(const char* name, const char* overload = "") {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, overload).typed<Form>();
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> RopeCalls::apply(const at::Tensor& q, const at::Tensor& k,
                                                    const at::Tensor& cos, const at::Tensor& sin,
                                                    const RopeOptions& options) {
  static const auto op = find<RopeSchema::Functional>("npu_rope::apply");
  return std::apply([&](auto... option) { return op.call(q, k, cos, sin, option...); },
                    options.tuple());
}

std::tuple<at::Tensor, at::Tensor> RopeCalls::apply_backward(const at::Tensor& grad_q,
                                                             const at::Tensor& grad_k,
                                                             const at::Tensor& cos,
                                                             const at::Tensor& sin,
                                                             const RopeOptions& options) {
  static const auto op = find<RopeSchema::Functional>("npu_rope::apply_backward");
  return std::apply([&](auto... option) { return op.call(grad_q, grad_k, cos, sin, option...); },
                    options.tuple());
}

void RopeCalls::apply_(at::Tensor& q, at::Tensor& k, const at::Tensor& cos, const at::Tensor& sin,
                       const RopeOptions& options) {
  static const auto op = find<RopeSchema::Inplace>("npu_rope::apply_");
  std::apply([&](auto... option) { op.call(q, k, cos, sin, option...); }, options.tuple());
}

void RopeCalls::apply_out(const at::Tensor& q, const at::Tensor& k, const at::Tensor& cos,
                          const at::Tensor& sin, const RopeOptions& options, at::Tensor& q_out,
                          at::Tensor& k_out) {
  static const auto op = find<RopeSchema::Out>("npu_rope::apply", "out");
  std::apply([&](auto... option) { op.call(q, k, cos, sin, option..., q_out, k_out); },
             options.tuple());
}

}  // namespace npu_rope
