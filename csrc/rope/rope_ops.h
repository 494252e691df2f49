// The operator's forms as the dispatcher knows them: their C++ types, how one is called, and how a
// kernel that takes the options as one struct is registered.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <tuple>

#include "rope/rope_args.h"

namespace npu_rope {

/// A kernel of each form.
struct RopeKernels {
  using Tensor = at::Tensor;
  using Functional = std::tuple<Tensor, Tensor>(const Tensor& q, const Tensor& k, const Tensor& cos,
                                                const Tensor& sin, const RopeOptions& options);
  using Inplace = void(Tensor& q, Tensor& k, const Tensor& cos, const Tensor& sin,
                       const RopeOptions& options);
  using Out = void(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                   const RopeOptions& options, Tensor& q_out, Tensor& k_out);
};

/// The same forms as the dispatcher calls them: each option, in the schema's order, an argument.
template <class... Option>
struct RopeSchemas {
  using Tensor = at::Tensor;
  using Functional = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&,
                                                const Tensor&, Option...);
  using Inplace = void(Tensor&, Tensor&, const Tensor&, const Tensor&, Option...);
  using Out = void(const Tensor&, const Tensor&, const Tensor&, const Tensor&, Option..., Tensor&,
                   Tensor&);

  template <RopeKernels::Functional* kernel>
  static std::tuple<Tensor, Tensor> functional(const Tensor& q, const Tensor& k, const Tensor& cos,
                                               const Tensor& sin, Option... option) {
    return kernel(q, k, cos, sin, {option...});
  }
  template <RopeKernels::Inplace* kernel>
  static void inplace(Tensor& q, Tensor& k, const Tensor& cos, const Tensor& sin,
                      Option... option) {
    kernel(q, k, cos, sin, {option...});
  }
  template <RopeKernels::Out* kernel>
  static void out(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                  Option... option, Tensor& q_out, Tensor& k_out) {
    kernel(q, k, cos, sin, {option...}, q_out, k_out);
  }
};

using RopeSchema = RopeSchemas<std::optional<c10::string_view>, std::optional<int64_t>, int64_t,
                               bool, bool, bool, bool>;

/// Registers the forms of a struct of kernels.
template <class Forms>
void register_rope(torch::Library& library) {
  library.impl("apply", RopeSchema::functional<Forms::apply>);
  library.impl("apply_", RopeSchema::inplace<Forms::apply_>);
  library.impl("apply.out", RopeSchema::out<Forms::apply_out>);
  library.impl("apply_backward", RopeSchema::functional<Forms::apply_backward>);
}

/// Each form called through the dispatcher.
struct RopeCalls {
  static RopeKernels::Functional apply, apply_backward;
  static RopeKernels::Inplace apply_;
  static RopeKernels::Out apply_out;
};

}  // namespace npu_rope
