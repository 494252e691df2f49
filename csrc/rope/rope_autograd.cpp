// Derivatives of y1 = x1*cos1 - x2*sin1, y2 = x2*cos2 + x1*sin2. The rotation is linear in x, and
// its transposed is apply_backward:
//
//   dx1 = g1*cos1 + g2*sin2        dcos1 = g1*x1        dsin1 = -g1*x2
//   dx2 = g2*cos2 - g1*sin1        dcos2 = g2*x2        dsin2 =  g2*x1
//
// with the table's gradients summed over heads and broadcast axes. apply_backward is linear too and
// its transposed is apply, so one autograd function serves both, to any order.
#include "rope/rope_autograd.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/stack.h>
#include <torch/csrc/autograd/custom_function.h>

#include <string>

#include "rope/rope_args.h"
#include "rope/rope_ops.h"

namespace npu_rope {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Pair = std::tuple<Tensor, Tensor>;

// The rotated slice in fp32 (float64 for float64) as its two partners.
Pair partners(const Tensor& rows, const RopeArgs& args, bool half_order) {
  const Tensor slice = rows.narrow(-1, args.rotary_offset, args.rotary_dim)
                           .to(rows.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  const int64_t half = args.rotary_dim / 2;
  if (half_order) return {slice.narrow(-1, 0, half), slice.narrow(-1, half, half)};
  return {slice.slice(-1, 0, std::nullopt, 2), slice.slice(-1, 1, std::nullopt, 2)};
}

// The gradient of a table from those of its entries for the first and the second partner, which
// still have the rows' axes but a head axis of 1.
Tensor table_grad(const Tensor& first, const Tensor& second, const Tensor& table,
                  const RopeArgs& args) {
  Tensor grad = args.half_tables                    ? first + second
                : args.style == Style::kInterleaved ? at::stack({first, second}, -1).flatten(-2)
                                                    : at::cat({first, second}, -1);
  if (args.table.head < 0) grad = grad.squeeze(args.rows.head);
  if (table.dim() == 2 && grad.dim() == 3) grad = grad.sum(args.rows.batch);
  return grad.sum_to_size_symint(table.sym_sizes()).to(table.scalar_type());
}

// Gradients of cos and sin from the rows on the x side of the rotation and on the y side.
Pair table_grads(const Pair& x_rows, const Pair& y_rows, const Tensor& cos, const Tensor& sin,
                 const RopeArgs& args) {
  Tensor cos1, cos2, sin1, sin2;
  const auto add = [&](const Tensor& x, const Tensor& y) {
    const auto [x1, x2] = partners(x, args, /*half_order=*/args.style == Style::kHalf);
    const auto [y1, y2] = partners(y, args, /*half_order=*/args.style != Style::kInterleaved);
    const auto into = [&](Tensor& sum, const Tensor& product) {
      const Tensor over_heads = product.sum(args.rows.head, /*keepdim=*/true);
      sum = sum.defined() ? sum + over_heads : over_heads;
    };
    into(cos1, y1 * x1);
    into(cos2, y2 * x2);
    into(sin1, -(y1 * x2));
    into(sin2, y2 * x1);
  };
  add(std::get<0>(x_rows), std::get<0>(y_rows));
  add(std::get<1>(x_rows), std::get<1>(y_rows));
  return {table_grad(cos1, cos2, cos, args), table_grad(sin1, sin2, sin, args)};
}

class RopeFunction : public torch::autograd::Function<RopeFunction> {
 public:
  // Outputs are q's and k's rotation; transposed where `transpose`.
  static variable_list forward(AutogradContext* ctx, const Tensor& q, const Tensor& k,
                               const Tensor& cos, const Tensor& sin, const RopeOptions& options,
                               bool transpose) {
    auto& data = ctx->saved_data;
    if (options.layout)
      data["layout"] = std::string(options.layout->data(), options.layout->size());
    if (options.rotary_dim) data["rotary_dim"] = *options.rotary_dim;
    data["rotary_offset"] = options.rotary_offset;
    data["interleaved"] = options.interleaved;
    data["deinterleave"] = options.deinterleave;
    data["cast_tables"] = options.cast_tables;
    data["round_each"] = options.round_each;
    data["transpose"] = transpose;
    const bool wants_table_grads = cos.requires_grad() || sin.requires_grad();
    ctx->save_for_backward(
        {cos, sin, wants_table_grads ? q : Tensor(), wants_table_grads ? k : Tensor()});
    at::AutoDispatchBelowADInplaceOrView below;
    auto [q_out, k_out] =
        (transpose ? RopeCalls::apply_backward : RopeCalls::apply)(q, k, cos, sin, options);
    return {q_out, k_out};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &cos = saved[0], &sin = saved[1], &q = saved[2], &k = saved[3];
    auto& data = ctx->saved_data;
    const auto layout_value = data.find("layout"), width_value = data.find("rotary_dim");
    RopeOptions options{};
    std::string layout;
    if (layout_value != data.end()) {
      layout = layout_value->second.toStringRef();
      options.layout = layout;
    }
    if (width_value != data.end()) options.rotary_dim = width_value->second.toInt();
    options.rotary_offset = data["rotary_offset"].toInt();
    options.interleaved = data["interleaved"].toBool();
    options.deinterleave = data["deinterleave"].toBool();
    options.cast_tables = data["cast_tables"].toBool();
    options.round_each = data["round_each"].toBool();
    const bool transpose = data["transpose"].toBool();

    variable_list inputs(6);
    if (ctx->needs_input_grad(0) || ctx->needs_input_grad(1)) {
      std::tie(inputs[0], inputs[1]) = (transpose ? RopeCalls::apply : RopeCalls::apply_backward)(
          grads[0], grads[1], cos, sin, options);
    }
    if (q.defined()) {
      const RopeArgs args = check_inputs<c10::SymInt>(q, k, cos, sin, options, {"q", "k"});
      const Pair in(q, k), out(grads[0], grads[1]);
      std::tie(inputs[2], inputs[3]) =
          transpose ? table_grads(out, in, cos, sin, args) : table_grads(in, out, cos, sin, args);
    }
    return inputs;
  }
};

// Whether autograd has to know: a gradient is asked for, or a tangent came (which it refuses).
bool needs_autograd(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin) {
  const auto has_tangent = [](const Tensor& t) { return t._fw_grad(/*level=*/0).defined(); };
  return (at::GradMode::is_enabled() &&
          (q.requires_grad() || k.requires_grad() || cos.requires_grad() || sin.requires_grad())) ||
         has_tangent(q) || has_tangent(k) || has_tangent(cos) || has_tangent(sin);
}

template <bool transpose>
Pair differentiable(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                    const RopeOptions& options) {
  if (needs_autograd(q, k, cos, sin)) {
    const variable_list out = RopeFunction::apply(q, k, cos, sin, options, transpose);
    return {out[0], out[1]};
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return (transpose ? RopeCalls::apply_backward : RopeCalls::apply)(q, k, cos, sin, options);
}

void check_no_grad(bool needs_grad, const char* form) {
  TORCH_CHECK(!needs_grad, "npu_rope::", form,
              " has no derivative, but an input requires grad: use npu_rope::apply, or "
              "torch.no_grad()");
}

// Autograd's kernels call these directly: one dispatch less. Inference mode dispatches to them.

void inplace_bump(Tensor& q, Tensor& k, const Tensor& cos, const Tensor& sin,
                  const RopeOptions& options) {
  {
    at::AutoDispatchBelowADInplaceOrView below;
    RopeCalls::apply_(q, k, cos, sin, options);
  }
  torch::autograd::impl::bump_version(q);
  torch::autograd::impl::bump_version(k);
}

void out_bump(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
              const RopeOptions& options, Tensor& q_out, Tensor& k_out) {
  {
    at::AutoDispatchBelowADInplaceOrView below;
    RopeCalls::apply_out(q, k, cos, sin, options, q_out, k_out);
  }
  torch::autograd::impl::bump_version(q_out);
  torch::autograd::impl::bump_version(k_out);
}

void inplace_autograd(Tensor& q, Tensor& k, const Tensor& cos, const Tensor& sin,
                      const RopeOptions& options) {
  check_no_grad(needs_autograd(q, k, cos, sin), "apply_");
  inplace_bump(q, k, cos, sin, options);
}

void out_autograd(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                  const RopeOptions& options, Tensor& q_out, Tensor& k_out) {
  check_no_grad(needs_autograd(q, k, cos, sin) || needs_autograd(q_out, k_out, cos, sin),
                "apply.out");
  out_bump(q, k, cos, sin, options, q_out, k_out);
}

}  // namespace

void register_autograd(torch::Library& library) {
  library.impl("apply", RopeSchema::functional<differentiable<false>>);
  library.impl("apply_backward", RopeSchema::functional<differentiable<true>>);
  library.impl("apply_", RopeSchema::inplace<inplace_autograd>);
  library.impl("apply.out", RopeSchema::out<out_autograd>);
}

void register_inplace_or_view(torch::Library& library) {
  library.impl("apply_", RopeSchema::inplace<inplace_bump>);
  library.impl("apply.out", RopeSchema::out<out_bump>);
}

}  // namespace npu_rope
