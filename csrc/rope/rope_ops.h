// The operator's forms as typed handles, to call one from C++ through the dispatcher.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <tuple>

namespace npu_rope {

using FunctionalForm = std::tuple<at::Tensor, at::Tensor>(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& cos, const at::Tensor& sin,
    std::optional<c10::string_view> layout, std::optional<int64_t> rotary_dim,
    int64_t rotary_offset, bool interleaved, bool deinterleave, bool cast_tables);
using InplaceForm = void(at::Tensor& q, at::Tensor& k, const at::Tensor& cos, const at::Tensor& sin,
                         std::optional<c10::string_view> layout, std::optional<int64_t> rotary_dim,
                         int64_t rotary_offset, bool interleaved, bool deinterleave,
                         bool cast_tables);
using OutForm = void(const at::Tensor& q, const at::Tensor& k, const at::Tensor& cos,
                     const at::Tensor& sin, std::optional<c10::string_view> layout,
                     std::optional<int64_t> rotary_dim, int64_t rotary_offset, bool interleaved,
                     bool deinterleave, bool cast_tables, at::Tensor& q_out, at::Tensor& k_out);

const c10::TypedOperatorHandle<FunctionalForm>& apply_op();
const c10::TypedOperatorHandle<FunctionalForm>& apply_backward_op();
const c10::TypedOperatorHandle<InplaceForm>& apply_inplace_op();
const c10::TypedOperatorHandle<OutForm>& apply_out_op();

}  // namespace npu_rope
