// The operator's forms as the dispatcher knows them: their C++ types, how one is called, and how a
// kernel that takes the options as one struct is registered.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <tuple>

#include "rope/rope_args.h"

namespace npu_rope {

/// A kernel of each form. Of q and k one may be undefined, which is None in Python; what is written
/// instead of it, or returned, is undefined too.
struct RopeKernels {
  using Tensor = at::Tensor;
  using Functional = std::tuple<Tensor, Tensor>(const Tensor& q, const Tensor& k, const Tensor& cos,
                                                const Tensor& sin, const RopeOptions& options);
  using Inplace = void(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                       const RopeOptions& options);
  using Out = void(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                   const RopeOptions& options, const Tensor& q_out, const Tensor& k_out);
};

inline const at::Tensor& or_undefined(const std::optional<at::Tensor>& tensor) {
  static const at::Tensor undefined;
  return tensor ? *tensor : undefined;
}

inline std::optional<at::Tensor> or_none(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional<at::Tensor>(tensor) : std::nullopt;
}

/// The same forms as the dispatcher calls them: each option, in the schema's order, an argument.
template <class... Option>
struct RopeSchemas {
  using Tensor = at::Tensor;
  using Maybe = const std::optional<Tensor>&;
  using Functional = std::tuple<Tensor, Tensor>(Maybe q, Maybe k, const Tensor& cos,
                                                const Tensor& sin, Option...);
  using Inplace = void(Maybe q, Maybe k, const Tensor& cos, const Tensor& sin, Option...);
  using Out = void(Maybe q, Maybe k, const Tensor& cos, const Tensor& sin, Option..., Maybe q_out,
                   Maybe k_out);

  template <RopeKernels::Functional* kernel>
  static std::tuple<Tensor, Tensor> functional(Maybe q, Maybe k, const Tensor& cos,
                                               const Tensor& sin, Option... option) {
    return kernel(or_undefined(q), or_undefined(k), cos, sin, {option...});
  }
  template <RopeKernels::Inplace* kernel>
  static void inplace(Maybe q, Maybe k, const Tensor& cos, const Tensor& sin, Option... option) {
    kernel(or_undefined(q), or_undefined(k), cos, sin, {option...});
  }
  template <RopeKernels::Out* kernel>
  static void out(Maybe q, Maybe k, const Tensor& cos, const Tensor& sin, Option... option,
                  Maybe q_out, Maybe k_out) {
    kernel(or_undefined(q), or_undefined(k), cos, sin, {option...}, or_undefined(q_out),
           or_undefined(k_out));
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

template <class Form>
c10::TypedOperatorHandle<Form> find_form(const char* name, const char* overload = "") {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, overload).template typed<Form>();
}

/// Each form called through the dispatcher.
struct RopeCalls {
  static RopeKernels::Functional apply, apply_backward;
  static RopeKernels::Inplace apply_;
  static RopeKernels::Out apply_out;

  static RopeKernels::Functional* functional(bool transpose) {
    return transpose ? apply_backward : apply;
  }
};

}  // namespace npu_rope
