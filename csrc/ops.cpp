// Every operator of this package, and which file serves it on which dispatch key.
//
//   Autograd, ADInplaceOrView   rope/rope_autograd.cpp
//   CPU                         rope/rope_forms.h over rope/rope_cpu.cpp
//   Meta (and fake tensors)     below: the checks, and allocation
//   PrivateUse1 (npu)           rope/rope_forms.h over rope/rope_npu.cpp, by npu/library.h
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "npu/library.h"
#include "rope/rope_autograd.h"
#include "rope/rope_cpu.h"
#include "rope/rope_forms.h"
#include "rope/rope_ops.h"

namespace npu_rope {
namespace {

using at::Tensor;
// What every form takes after its tensors.
#define ROPE_OPTIONS                                                                      \
  "str? layout=None, int? rotary_dim=None, int rotary_offset=0, bool interleaved=False, " \
  "bool deinterleave=False, bool cast_tables=True, bool round_each=False"

TORCH_LIBRARY(npu_rope, library) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  library.def("apply(Tensor q, Tensor k, Tensor cos, Tensor sin, *, " ROPE_OPTIONS
              ") -> (Tensor, Tensor)",
              tags);
  library.def("apply_(Tensor(a!) q, Tensor(b!) k, Tensor cos, Tensor sin, *, " ROPE_OPTIONS
              ") -> ()",
              tags);
  library.def("apply.out(Tensor q, Tensor k, Tensor cos, Tensor sin, *, " ROPE_OPTIONS
              ", Tensor(a!) q_out, Tensor(b!) k_out) -> ()",
              tags);
  library.def(
      "apply_backward(Tensor grad_q, Tensor grad_k, Tensor cos, Tensor sin, *, " ROPE_OPTIONS
      ") -> (Tensor, Tensor)",
      tags);
}

// ---- Meta: the same checks, no memory ----

struct RopeMeta {
  static std::tuple<Tensor, Tensor> apply(const Tensor& q, const Tensor& k, const Tensor& cos,
                                          const Tensor& sin, const RopeOptions& options) {
    check_inputs<c10::SymInt>(q, k, cos, sin, options, kInputNames);
    return outputs(q, k);
  }
  static std::tuple<Tensor, Tensor> apply_backward(const Tensor& grad_q, const Tensor& grad_k,
                                                   const Tensor& cos, const Tensor& sin,
                                                   const RopeOptions& options) {
    check_inputs<c10::SymInt>(grad_q, grad_k, cos, sin, options, kGradNames);
    return outputs(grad_q, grad_k);
  }
  static void apply_(Tensor& q, Tensor& k, const Tensor& cos, const Tensor& sin,
                     const RopeOptions& options) {
    check_inputs<c10::SymInt>(q, k, cos, sin, options, kInputNames);
  }
  static void apply_out(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                        const RopeOptions& options, Tensor& q_out, Tensor& k_out) {
    check_inputs<c10::SymInt>(q, k, cos, sin, options, kInputNames);
    check_outputs<c10::SymInt>(q, k, q_out, k_out);
  }

 private:
  static std::tuple<Tensor, Tensor> outputs(const Tensor& q, const Tensor& k) {
    return {at::empty_symint(q.sym_sizes(), q.options()),
            at::empty_symint(k.sym_sizes(), k.options())};
  }
};

// ---- npu ----

void rope_npu(const RopeGeometry& geometry, const RopePointers& pointers) {
  npu_library().rope(geometry, pointers);
}

TORCH_LIBRARY_IMPL(npu_rope, CPU, library) { register_rope<RopeForms<rope_cpu>>(library); }
TORCH_LIBRARY_IMPL(npu_rope, PrivateUse1, library) { register_rope<RopeForms<rope_npu>>(library); }
TORCH_LIBRARY_IMPL(npu_rope, Meta, library) { register_rope<RopeMeta>(library); }
TORCH_LIBRARY_IMPL(npu_rope, Autograd, library) { register_autograd(library); }
TORCH_LIBRARY_IMPL(npu_rope, ADInplaceOrView, library) { register_inplace_or_view(library); }

}  // namespace
}  // namespace npu_rope
