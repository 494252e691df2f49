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
using Layout = std::optional<c10::string_view>;
using Width = std::optional<int64_t>;

// What every form takes after its tensors.
#define ROPE_OPTIONS                                                                      \
  "str? layout=None, int? rotary_dim=None, int rotary_offset=0, bool interleaved=False, " \
  "bool deinterleave=False, bool cast_tables=True"

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

std::tuple<Tensor, Tensor> meta_outputs(const Tensor& q, const Tensor& k) {
  return {at::empty_symint(q.sym_sizes(), q.options()),
          at::empty_symint(k.sym_sizes(), k.options())};
}

std::tuple<Tensor, Tensor> apply_meta(const Tensor& q, const Tensor& k, const Tensor& cos,
                                      const Tensor& sin, Layout layout, Width rotary_dim,
                                      int64_t rotary_offset, bool interleaved, bool deinterleave,
                                      bool cast_tables) {
  check_inputs<c10::SymInt>(
      q, k, cos, sin, {layout, rotary_dim, rotary_offset, interleaved, deinterleave, cast_tables},
      kInputNames);
  return meta_outputs(q, k);
}

std::tuple<Tensor, Tensor> apply_backward_meta(const Tensor& grad_q, const Tensor& grad_k,
                                               const Tensor& cos, const Tensor& sin, Layout layout,
                                               Width rotary_dim, int64_t rotary_offset,
                                               bool interleaved, bool deinterleave,
                                               bool cast_tables) {
  check_inputs<c10::SymInt>(
      grad_q, grad_k, cos, sin,
      {layout, rotary_dim, rotary_offset, interleaved, deinterleave, cast_tables}, kGradNames);
  return meta_outputs(grad_q, grad_k);
}

void apply_inplace_meta(Tensor& q, Tensor& k, const Tensor& cos, const Tensor& sin, Layout layout,
                        Width rotary_dim, int64_t rotary_offset, bool interleaved,
                        bool deinterleave, bool cast_tables) {
  check_inputs<c10::SymInt>(
      q, k, cos, sin, {layout, rotary_dim, rotary_offset, interleaved, deinterleave, cast_tables},
      kInputNames);
}

void apply_out_meta(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                    Layout layout, Width rotary_dim, int64_t rotary_offset, bool interleaved,
                    bool deinterleave, bool cast_tables, Tensor& q_out, Tensor& k_out) {
  check_inputs<c10::SymInt>(
      q, k, cos, sin, {layout, rotary_dim, rotary_offset, interleaved, deinterleave, cast_tables},
      kInputNames);
  check_outputs<c10::SymInt>(q, k, q_out, k_out);
}

// ---- npu ----

void rope_npu(const RopeGeometry& geometry, const RopePointers& pointers) {
  npu_library().rope(geometry, pointers);
}

template <void (*launch)(const RopeGeometry&, const RopePointers&)>
void register_forms(torch::Library& library) {
  library.impl("apply", RopeForms<launch>::apply);
  library.impl("apply_", RopeForms<launch>::apply_);
  library.impl("apply.out", RopeForms<launch>::apply_out);
  library.impl("apply_backward", RopeForms<launch>::apply_backward);
}

TORCH_LIBRARY_IMPL(npu_rope, CPU, library) { register_forms<rope_cpu>(library); }
TORCH_LIBRARY_IMPL(npu_rope, PrivateUse1, library) { register_forms<rope_npu>(library); }
TORCH_LIBRARY_IMPL(npu_rope, Meta, library) {
  library.impl("apply", apply_meta);
  library.impl("apply_", apply_inplace_meta);
  library.impl("apply.out", apply_out_meta);
  library.impl("apply_backward", apply_backward_meta);
}
TORCH_LIBRARY_IMPL(npu_rope, Autograd, library) { register_autograd(library); }
TORCH_LIBRARY_IMPL(npu_rope, ADInplaceOrView, library) { register_inplace_or_view(library); }

template <class Form>
c10::TypedOperatorHandle<Form> find(const char* name, const char* overload = "") {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, overload).typed<Form>();
}

}  // namespace

const c10::TypedOperatorHandle<FunctionalForm>& apply_op() {
  static const auto op = find<FunctionalForm>("npu_rope::apply");
  return op;
}
const c10::TypedOperatorHandle<FunctionalForm>& apply_backward_op() {
  static const auto op = find<FunctionalForm>("npu_rope::apply_backward");
  return op;
}
const c10::TypedOperatorHandle<InplaceForm>& apply_inplace_op() {
  static const auto op = find<InplaceForm>("npu_rope::apply_");
  return op;
}
const c10::TypedOperatorHandle<OutForm>& apply_out_op() {
  static const auto op = find<OutForm>("npu_rope::apply", "out");
  return op;
}

}  // namespace npu_rope
