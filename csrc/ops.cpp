// Every operator of this package, and which file serves it on which dispatch key.
//
//   Autograd, ADInplaceOrView   rope/rope_autograd.cpp
//   CPU                         rope/rope_forms.h, rope/norm_forms.h over rope/rope_cpu.cpp
//   Meta (and fake tensors)     below: the checks, and allocation
//   Negative, Conjugate         below: views that are resolved first
//   PrivateUse1 (npu)           the same over rope/rope_npu.cpp, by npu/library.h
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "npu/library.h"
#include "rope/norm_forms.h"
#include "rope/norm_ops.h"
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

// What the forms of norm_apply take between q and k and those options.
#define NORM_OPTIONS                                                           \
  "Tensor? q_weight, Tensor? k_weight, Tensor cos, Tensor sin, *, float eps, " \
  "float weight_offset=0.0"

TORCH_LIBRARY(npu_rope, library) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  library.def("apply(Tensor? q, Tensor? k, Tensor cos, Tensor sin, *, " ROPE_OPTIONS
              ") -> (Tensor, Tensor)",
              tags);
  library.def("apply_(Tensor(a!)? q, Tensor(b!)? k, Tensor cos, Tensor sin, *, " ROPE_OPTIONS
              ") -> ()",
              tags);
  library.def("apply.out(Tensor? q, Tensor? k, Tensor cos, Tensor sin, *, " ROPE_OPTIONS
              ", Tensor(a!)? q_out, Tensor(b!)? k_out) -> ()",
              tags);
  library.def(
      "apply_backward(Tensor? grad_q, Tensor? grad_k, Tensor cos, Tensor sin, *, " ROPE_OPTIONS
      ") -> (Tensor, Tensor)",
      tags);
  library.def("norm_apply(Tensor? q, Tensor? k, " NORM_OPTIONS ", " ROPE_OPTIONS
              ") -> (Tensor, Tensor)",
              tags);
  library.def("norm_apply_(Tensor(a!)? q, Tensor(b!)? k, " NORM_OPTIONS ", " ROPE_OPTIONS ") -> ()",
              tags);
  library.def("norm_apply.out(Tensor? q, Tensor? k, " NORM_OPTIONS ", " ROPE_OPTIONS
              ", Tensor(a!)? q_out, Tensor(b!)? k_out) -> ()",
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
  static void apply_(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                     const RopeOptions& options) {
    check_inputs<c10::SymInt>(q, k, cos, sin, options, kInputNames);
    check_overlap(q, k, cos, sin, q, k);
  }
  static void apply_out(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                        const RopeOptions& options, const Tensor& q_out, const Tensor& k_out) {
    check_inputs<c10::SymInt>(q, k, cos, sin, options, kInputNames);
    check_outputs<c10::SymInt>(q, k, q_out, k_out);
    check_overlap(q, k, cos, sin, q_out, k_out);
  }
  static std::tuple<Tensor, Tensor> norm_apply(const Tensor& q, const Tensor& k, const Tensor& cos,
                                               const Tensor& sin, const NormOptions& norm,
                                               const RopeOptions& options) {
    check_norm(norm, q, k, check_inputs<c10::SymInt>(q, k, cos, sin, options, kInputNames));
    return outputs(q, k);
  }
  static void norm_apply_(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                          const NormOptions& norm, const RopeOptions& options) {
    check_norm(norm, q, k, check_inputs<c10::SymInt>(q, k, cos, sin, options, kInputNames));
    check_norm_overlap(q, k, cos, sin, norm, q, k);
  }
  static void norm_apply_out(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                             const NormOptions& norm, const RopeOptions& options,
                             const Tensor& q_out, const Tensor& k_out) {
    check_norm(norm, q, k, check_inputs<c10::SymInt>(q, k, cos, sin, options, kInputNames));
    check_outputs<c10::SymInt>(q, k, q_out, k_out);
    check_norm_overlap(q, k, cos, sin, norm, q_out, k_out);
  }

 private:
  static std::tuple<Tensor, Tensor> outputs(const Tensor& q, const Tensor& k) {
    const auto empty = [](const Tensor& t) {
      return t.defined() ? at::empty_symint(t.sym_sizes(), t.options()) : Tensor();
    };
    return {empty(q), empty(k)};
  }
};

// ---- Negative and Conjugate: views whose elements are other than what their memory holds ----

struct RopeLazyViews {
  static std::tuple<Tensor, Tensor> apply(const Tensor& q, const Tensor& k, const Tensor& cos,
                                          const Tensor& sin, const RopeOptions& options) {
    return RopeCalls::apply(resolve(q), resolve(k), resolve(cos), resolve(sin), options);
  }
  static std::tuple<Tensor, Tensor> apply_backward(const Tensor& grad_q, const Tensor& grad_k,
                                                   const Tensor& cos, const Tensor& sin,
                                                   const RopeOptions& options) {
    return RopeCalls::apply_backward(resolve(grad_q), resolve(grad_k), resolve(cos), resolve(sin),
                                     options);
  }
  // PyTorch's own fallback does not write them either, but by a failed assertion.
  static void apply_(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                     const RopeOptions& options) {
    check_written(q, "q");
    check_written(k, "k");
    RopeCalls::apply_(q, k, resolve(cos), resolve(sin), options);
  }
  static void apply_out(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                        const RopeOptions& options, const Tensor& q_out, const Tensor& k_out) {
    check_written(q_out, "q_out");
    check_written(k_out, "k_out");
    RopeCalls::apply_out(resolve(q), resolve(k), resolve(cos), resolve(sin), options, q_out, k_out);
  }
  static std::tuple<Tensor, Tensor> norm_apply(const Tensor& q, const Tensor& k, const Tensor& cos,
                                               const Tensor& sin, const NormOptions& norm,
                                               const RopeOptions& options) {
    return NormCalls::norm_apply(resolve(q), resolve(k), resolve(cos), resolve(sin), resolve(norm),
                                 options);
  }
  static void norm_apply_(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                          const NormOptions& norm, const RopeOptions& options) {
    check_written(q, "q");
    check_written(k, "k");
    NormCalls::norm_apply_(q, k, resolve(cos), resolve(sin), resolve(norm), options);
  }
  static void norm_apply_out(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                             const NormOptions& norm, const RopeOptions& options,
                             const Tensor& q_out, const Tensor& k_out) {
    check_written(q_out, "q_out");
    check_written(k_out, "k_out");
    NormCalls::norm_apply_out(resolve(q), resolve(k), resolve(cos), resolve(sin), resolve(norm),
                              options, q_out, k_out);
  }

 private:
  static Tensor resolve(const Tensor& tensor) {
    return tensor.defined() ? tensor.resolve_conj().resolve_neg() : tensor;
  }
  static NormOptions resolve(const NormOptions& norm) {
    return {resolve(norm.q_weight), resolve(norm.k_weight), norm.eps, norm.weight_offset};
  }
  static void check_written(const Tensor& tensor, const char* name) {
    if (!tensor.defined()) return;
    TORCH_CHECK_VALUE(!tensor.is_neg() && !tensor.is_conj(), name,
                      " is a view that is negated or conjugated when it is read, so it can't be "
                      "written: expected ",
                      name, ".resolve_neg() or ", name, ".resolve_conj()");
  }
};

// ---- npu ----

void rope_npu(const RopeGeometry& geometry, const RopePointers& pointers) {
  npu_library().rope(geometry, pointers);
}

TORCH_LIBRARY_IMPL(npu_rope, CPU, library) {
  register_rope<RopeForms<rope_cpu>>(library);
  register_norm<NormForms<rope_cpu>>(library);
}
TORCH_LIBRARY_IMPL(npu_rope, PrivateUse1, library) {
  register_rope<RopeForms<rope_npu>>(library);
  register_norm<NormForms<rope_npu>>(library);
}
TORCH_LIBRARY_IMPL(npu_rope, Meta, library) {
  register_rope<RopeMeta>(library);
  register_norm<RopeMeta>(library);
}
TORCH_LIBRARY_IMPL(npu_rope, Negative, library) {
  register_rope<RopeLazyViews>(library);
  register_norm<RopeLazyViews>(library);
}
TORCH_LIBRARY_IMPL(npu_rope, Conjugate, library) {
  register_rope<RopeLazyViews>(library);
  register_norm<RopeLazyViews>(library);
}
TORCH_LIBRARY_IMPL(npu_rope, Autograd, library) { register_autograd(library); }
TORCH_LIBRARY_IMPL(npu_rope, ADInplaceOrView, library) { register_inplace_or_view(library); }

}  // namespace
}  // namespace npu_rope
