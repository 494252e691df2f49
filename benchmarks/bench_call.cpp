// Operators with the signatures of npu_rope's that check nothing and enqueue a function that does
// nothing: what is below every operator of this kind.
#include <ATen/ops/empty.h>
#include <torch/library.h>
#include <torch_npu/csrc/core/npu/NPUStream.h>
#include <torch_npu/csrc/framework/OpCommand.h>

#include <tuple>

namespace {

using at::Tensor;
using Layout = std::optional<c10::string_view>;

void enqueue_nothing() {
  static const std::string name = "npu_rope_bench_call";
  const aclrtStream stream = c10_npu::getCurrentNPUStream().stream(false);
  at_npu::native::OpCommand::RunOpApi(name, [stream]() -> int { return stream ? 0 : 1; });
}

std::tuple<Tensor, Tensor> apply(const Tensor& q, const Tensor& k, const Tensor&, const Tensor&,
                                 Layout, std::optional<int64_t>, int64_t, bool, bool, bool) {
  Tensor q_out = at::empty(q.sizes(), q.options());
  Tensor k_out = at::empty(k.sizes(), k.options());
  enqueue_nothing();
  return {std::move(q_out), std::move(k_out)};
}

void apply_(Tensor&, Tensor&, const Tensor&, const Tensor&, Layout, std::optional<int64_t>, int64_t,
            bool, bool, bool) {
  enqueue_nothing();
}

#define OPTIONS                                                                           \
  "str? layout=None, int? rotary_dim=None, int rotary_offset=0, bool interleaved=False, " \
  "bool deinterleave=False, bool cast_tables=True"

TORCH_LIBRARY(npu_rope_bench_call, library) {
  library.def("apply(Tensor q, Tensor k, Tensor cos, Tensor sin, *, " OPTIONS
              ") -> (Tensor, Tensor)");
  library.def("apply_(Tensor(a!) q, Tensor(b!) k, Tensor cos, Tensor sin, *, " OPTIONS ") -> ()");
}

TORCH_LIBRARY_IMPL(npu_rope_bench_call, PrivateUse1, library) {
  library.impl("apply", apply);
  library.impl("apply_", apply_);
}

}  // namespace
