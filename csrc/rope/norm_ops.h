// norm_apply's forms as the dispatcher knows them: rope_ops.h with a norm before the options.
#pragma once

#include "rope/rope_ops.h"

namespace npu_rope {

/// A kernel of each form. A weight may be undefined, which is None in Python.
struct NormKernels {
  using Tensor = at::Tensor;
  using Functional = std::tuple<Tensor, Tensor>(const Tensor& q, const Tensor& k, const Tensor& cos,
                                                const Tensor& sin, const NormOptions& norm,
                                                const RopeOptions& options);
  using Inplace = void(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                       const NormOptions& norm, const RopeOptions& options);
  using Out = void(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                   const NormOptions& norm, const RopeOptions& options, const Tensor& q_out,
                   const Tensor& k_out);
};

template <class... Option>
struct NormSchemas {
  using Tensor = at::Tensor;
  using Maybe = const std::optional<Tensor>&;
  using Functional = std::tuple<Tensor, Tensor>(Maybe q, Maybe k, Maybe q_weight, Maybe k_weight,
                                                const Tensor& cos, const Tensor& sin, double eps,
                                                double weight_offset, Option...);
  using Inplace = void(Maybe q, Maybe k, Maybe q_weight, Maybe k_weight, const Tensor& cos,
                       const Tensor& sin, double eps, double weight_offset, Option...);
  using Out = void(Maybe q, Maybe k, Maybe q_weight, Maybe k_weight, const Tensor& cos,
                   const Tensor& sin, double eps, double weight_offset, Option..., Maybe q_out,
                   Maybe k_out);

  template <NormKernels::Functional* kernel>
  static std::tuple<Tensor, Tensor> functional(Maybe q, Maybe k, Maybe q_weight, Maybe k_weight,
                                               const Tensor& cos, const Tensor& sin, double eps,
                                               double weight_offset, Option... option) {
    return kernel(or_undefined(q), or_undefined(k), cos, sin,
                  {or_undefined(q_weight), or_undefined(k_weight), eps, weight_offset},
                  {option...});
  }
  template <NormKernels::Inplace* kernel>
  static void inplace(Maybe q, Maybe k, Maybe q_weight, Maybe k_weight, const Tensor& cos,
                      const Tensor& sin, double eps, double weight_offset, Option... option) {
    kernel(or_undefined(q), or_undefined(k), cos, sin,
           {or_undefined(q_weight), or_undefined(k_weight), eps, weight_offset}, {option...});
  }
  template <NormKernels::Out* kernel>
  static void out(Maybe q, Maybe k, Maybe q_weight, Maybe k_weight, const Tensor& cos,
                  const Tensor& sin, double eps, double weight_offset, Option... option,
                  Maybe q_out, Maybe k_out) {
    kernel(or_undefined(q), or_undefined(k), cos, sin,
           {or_undefined(q_weight), or_undefined(k_weight), eps, weight_offset}, {option...},
           or_undefined(q_out), or_undefined(k_out));
  }
};

using NormSchema = NormSchemas<std::optional<c10::string_view>, std::optional<int64_t>, int64_t,
                               bool, bool, bool, bool>;

/// Registers the forms of a struct of kernels.
template <class Forms>
void register_norm(torch::Library& library) {
  library.impl("norm_apply", NormSchema::functional<Forms::norm_apply>);
  library.impl("norm_apply_", NormSchema::inplace<Forms::norm_apply_>);
  library.impl("norm_apply.out", NormSchema::out<Forms::norm_apply_out>);
}

/// Each form called through the dispatcher.
struct NormCalls {
  static NormKernels::Functional norm_apply;
  static NormKernels::Inplace norm_apply_;
  static NormKernels::Out norm_apply_out;
};

}  // namespace npu_rope
