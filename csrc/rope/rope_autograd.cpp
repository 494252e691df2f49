// Derivatives of y1 = x1*cos1 - x2*sin1, y2 = x2*cos2 + x1*sin2. The rotation is linear in x, and
// its transposed is apply_backward:
//
//   dx1 = g1*cos1 + g2*sin2        dcos1 = g1*x1        dsin1 = -g1*x2
//   dx2 = g2*cos2 - g1*sin1        dcos2 = g2*x2        dsin2 =  g2*x1
//
// with the table's gradients summed over heads and broadcast axes. apply_backward is linear too and
// its transposed is apply, so one autograd function serves both, to any order. Forward mode is the
// same rotation of the rows' tangents, and of the rows by the tables' tangents.
//
// norm_apply rotates n*g, where n = x*r, r = 1/sqrt(mean(x*x) + eps) and g = weight_offset +
// weight. Of h, which is the gradient of n*g by apply_backward,
//
//   dweight = sum over rows of h*n        dx = r * (h*g - n * mean(h*g*n))
//
// by ATen's operators, to any order. Forward mode is that of ATen's norm and of the rotation.
#include "rope/rope_autograd.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <string>
#include <type_traits>

#include "rope/norm_ops.h"
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

// Whether a count is 1 for certain; of a symbol without a value it is not.
bool is_known_one(const c10::SymInt& count) {
#ifdef TORCH_GUARD_OR_FALSE
  return TORCH_GUARD_OR_FALSE(count.sym_eq(1));
#else
  return TORCH_GUARD_SIZE_OBLIVIOUS(count.sym_eq(1));
#endif
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
  for (int64_t axis = 0; axis < table.dim() - 1; ++axis) {
    if (is_known_one(table.sym_size(axis))) grad = grad.sum(axis, /*keepdim=*/true);
    // A count that turns out to be 1 only when a traced graph runs can't be summed over.
    grad.sym_size(axis).sym_eq(table.sym_size(axis)).expect_true(__FILE__, __LINE__);
  }
  return grad.to(table.scalar_type());
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
  const auto add_defined = [&](const Tensor& x, const Tensor& y) {
    if (x.defined() && y.defined()) add(x, y);
  };
  add_defined(std::get<0>(x_rows), std::get<0>(y_rows));
  add_defined(std::get<1>(x_rows), std::get<1>(y_rows));
  if (!cos1.defined()) return {};
  return {table_grad(cos1, cos2, cos, args), table_grad(sin1, sin2, sin, args)};
}

bool wants_grad(const Tensor& tensor) { return tensor.defined() && tensor.requires_grad(); }

void save_options(AutogradContext& ctx, const RopeOptions& options) {
  auto& data = ctx.saved_data;
  if (options.layout) data["layout"] = std::string(options.layout->data(), options.layout->size());
  if (options.rotary_dim) data["rotary_dim"] = *options.rotary_dim;
  data["rotary_offset"] = options.rotary_offset;
  data["interleaved"] = options.interleaved;
  data["deinterleave"] = options.deinterleave;
  data["cast_tables"] = options.cast_tables;
  data["round_each"] = options.round_each;
}

// `layout` keeps the string that the options refer to.
RopeOptions saved_options(AutogradContext& ctx, std::string& layout) {
  auto& data = ctx.saved_data;
  const auto layout_value = data.find("layout"), width_value = data.find("rotary_dim");
  RopeOptions options{};
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
  return options;
}

// What autograd's graph runs. Its node is made by hand below, since Function::apply refuses
// torch.func's transforms and forward mode.
struct RopeFunction : torch::autograd::Function<RopeFunction> {
  static constexpr bool is_traceable = true;  // by compiled autograd

  static void save(AutogradContext& ctx, const Tensor& q, const Tensor& k, const Tensor& cos,
                   const Tensor& sin, const RopeOptions& options, bool transpose) {
    save_options(ctx, options);
    ctx.saved_data["transpose"] = transpose;
    const bool wants_table_grads = wants_grad(cos) || wants_grad(sin);
    ctx.save_for_backward(
        {cos, sin, wants_table_grads ? q : Tensor(), wants_table_grads ? k : Tensor()});
    ctx.set_materialize_grads(false);  // rows whose gradient nobody asked for are not rotated
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &cos = saved[0], &sin = saved[1], &q = saved[2], &k = saved[3];
    std::string layout;
    const RopeOptions options = saved_options(*ctx, layout);
    const bool transpose = ctx->saved_data["transpose"].toBool();

    variable_list inputs(4);
    const Tensor grad_q = ctx->needs_input_grad(0) ? grads[0] : Tensor();
    const Tensor grad_k = ctx->needs_input_grad(1) ? grads[1] : Tensor();
    if (grad_q.defined() || grad_k.defined()) {
      std::tie(inputs[0], inputs[1]) =
          RopeCalls::functional(!transpose)(grad_q, grad_k, cos, sin, options);
    }
    if (q.defined() || k.defined()) {
      const RopeArgs args = check_inputs<c10::SymInt>(q, k, cos, sin, options, {"q", "k"});
      const Pair in(q, k), out(grads[0], grads[1]);
      std::tie(inputs[2], inputs[3]) =
          transpose ? table_grads(out, in, cos, sin, args) : table_grads(in, out, cos, sin, args);
    }
    return inputs;
  }
};

// The rows of q or k before the rotation, by differentiable operators, and what depends on them.
// Without a weight the rows are as they are.
struct NormedRows {
  Tensor factor, normed, weight;  // r, n, g

  NormedRows(const Tensor& x, const Tensor& as_given, double eps, double weight_offset) {
    if (!x.defined()) return;
    const auto compute = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    normed = x.to(compute);
    if (!as_given.defined()) return;
    weight = as_given.to(compute) + weight_offset;
    factor = at::rsqrt((normed * normed).mean(-1, /*keepdim=*/true) + eps);
    normed = normed * factor;
  }

  Tensor rows() const { return weight.defined() ? normed * weight : normed; }

  // rotated: the gradient of rows().
  Tensor grad(const Tensor& rotated) const {
    if (!weight.defined() || !rotated.defined()) return rotated;
    const Tensor scaled = rotated * weight;
    const Tensor along = (scaled * normed).mean(-1, /*keepdim=*/true);
    return (factor * (scaled - normed * along)).to(rotated.scalar_type());
  }
  Tensor weight_grad(const Tensor& rotated) const {
    if (!rotated.defined()) return {};
    return (rotated * normed).flatten(0, -2).sum(0);
  }
};

struct NormFunction : torch::autograd::Function<NormFunction> {
  static constexpr bool is_traceable = true;

  static void save(AutogradContext& ctx, const Tensor& q, const Tensor& k, const Tensor& cos,
                   const Tensor& sin, const NormOptions& norm, const RopeOptions& options) {
    save_options(ctx, options);
    ctx.saved_data["eps"] = norm.eps;
    ctx.saved_data["weight_offset"] = norm.weight_offset;
    ctx.saved_data["wants_table_grads"] = wants_grad(cos) || wants_grad(sin);
    ctx.save_for_backward({q, k, norm.q_weight, norm.k_weight, cos, sin});
    ctx.set_materialize_grads(false);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &q = saved[0], &k = saved[1], &q_weight = saved[2], &k_weight = saved[3],
                 &cos = saved[4], &sin = saved[5];
    std::string layout;
    const RopeOptions options = saved_options(*ctx, layout);
    const double eps = ctx->saved_data["eps"].toDouble();
    const double weight_offset = ctx->saved_data["weight_offset"].toDouble();
    const NormedRows q_rows(q, q_weight, eps, weight_offset);
    const NormedRows k_rows(k, k_weight, eps, weight_offset);

    variable_list inputs(6);
    Pair rotated;
    if (grads[0].defined() || grads[1].defined()) {
      rotated = RopeCalls::apply_backward(grads[0], grads[1], cos, sin, options);
    }
    const auto& [q_rotated, k_rotated] = rotated;
    if (ctx->needs_input_grad(0)) inputs[0] = q_rows.grad(q_rotated);
    if (ctx->needs_input_grad(1)) inputs[1] = k_rows.grad(k_rotated);
    const auto weight_grad = [](const NormedRows& rows, const Tensor& grad, const Tensor& weight) {
      const Tensor sum = rows.weight_grad(grad);
      return sum.defined() ? sum.to(weight.scalar_type()) : sum;
    };
    if (ctx->needs_input_grad(2)) inputs[2] = weight_grad(q_rows, q_rotated, q_weight);
    if (ctx->needs_input_grad(3)) inputs[3] = weight_grad(k_rows, k_rotated, k_weight);
    if (ctx->saved_data["wants_table_grads"].toBool()) {
      const RopeArgs args = check_inputs<c10::SymInt>(q, k, cos, sin, options, {"q", "k"});
      std::tie(inputs[4], inputs[5]) =
          table_grads({q_rows.rows(), k_rows.rows()}, {grads[0], grads[1]}, cos, sin, args);
    }
    return inputs;
  }
};

using RopeNode = torch::autograd::CppNode<RopeFunction>;
using NormNode = torch::autograd::CppNode<NormFunction>;

// A node's owners count by std::shared_ptr in older torch, by an intrusive pointer in newer.
template <class Made = RopeNode,
          class Owner = std::decay_t<decltype(std::declval<const Tensor&>().grad_fn())>>
auto make_node() {
  if constexpr (std::is_same_v<Owner, std::shared_ptr<torch::autograd::Node>>) {
    return std::shared_ptr<Made>(new Made, [](Made* node) { deleteNode(node); });
  } else {
    return c10::make_intrusive<Made>();
  }
}

bool want_grads(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin) {
  return at::GradMode::is_enabled() &&
         (wants_grad(q) || wants_grad(k) || wants_grad(cos) || wants_grad(sin));
}

Tensor tangent_of(const Tensor& tensor) {
  return tensor.defined() ? tensor._fw_grad(/*level=*/0) : tensor;
}

void set_tangent(const Tensor& rows, const Tensor& tangent) {
  if (tangent.defined()) rows._set_fw_grad(tangent, /*level=*/0, /*is_inplace_op=*/false);
}

bool have_tangents(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin) {
  const auto has = [](const Tensor& t) { return t.defined() && t._fw_grad(/*level=*/0).defined(); };
  return has(q) || has(k) || has(cos) || has(sin);
}

// The tangents of the outputs: of the rows' and of the tables' tangents, in both of which the
// rotation is linear, but for the columns that pass through whatever the tables are.
Pair rotate_tangents(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                     const RopeOptions& options, bool transpose) {
  const auto primal = [](const Tensor& t) {
    return tangent_of(t).defined() ? t._fw_primal(/*level=*/0) : t;
  };
  const auto rotate = RopeCalls::functional(transpose);
  const Tensor q_tangent = tangent_of(q), k_tangent = tangent_of(k);
  Pair sum;
  if (q_tangent.defined() || k_tangent.defined()) {
    sum = rotate(q_tangent, k_tangent, primal(cos), primal(sin), options);
  }
  if (!tangent_of(cos).defined() && !tangent_of(sin).defined()) return sum;

  const RopeArgs args = check_inputs<c10::SymInt>(q, k, cos, sin, options, {"q", "k"});
  RopeOptions whole = options;
  whole.rotary_dim = args.rotary_dim;
  whole.rotary_offset = 0;
  const auto slice = [&](const Tensor& rows) {
    return rows.defined() ? primal(rows).narrow(-1, args.rotary_offset, args.rotary_dim) : rows;
  };
  const auto entries = [](const Tensor& table) {
    const Tensor tangent = tangent_of(table);
    return tangent.defined() ? tangent : at::zeros_like(table);
  };
  const Pair turned = rotate(slice(q), slice(k), entries(cos), entries(sin), whole);
  const int64_t after = args.head_dim - args.rotary_offset - args.rotary_dim;
  const auto add = [&](Tensor& to, const Tensor& from) {
    if (!from.defined()) return;
    const Tensor padded = at::constant_pad_nd(from, {args.rotary_offset, after});
    to = to.defined() ? to + padded : padded;
  };
  add(std::get<0>(sum), std::get<0>(turned));
  add(std::get<1>(sum), std::get<1>(turned));
  return sum;
}

// What `compute` gives, as the outputs of a node of the graph whose inputs these are.
template <class Made, class Save, class Compute, class... Inputs>
Pair with_node(const Save& save, const Compute& compute, const Inputs&... inputs) {
  const auto node = make_node<Made>();
  node->set_ctx_grad_fn(node);
  node->set_next_edges(torch::autograd::collect_next_edges(inputs...));
  node->is_variable_input_.assign(sizeof...(inputs), true);
  save(node->ctx_);
  const Pair out = compute();
  for (const Tensor& rows : {std::get<0>(out), std::get<1>(out)}) {
    torch::autograd::set_history(rows, node);
    rows.defined() ? node->output_info_.emplace_back(rows) : node->output_info_.emplace_back();
  }
  node->save_variables_to_ctx();
  return out;
}

template <bool transpose>
Pair differentiable(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                    const RopeOptions& options) {
  const auto rotate = [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    return RopeCalls::functional(transpose)(q, k, cos, sin, options);
  };
  const bool wants_gradient = want_grads(q, k, cos, sin);
  const bool has_tangent = have_tangents(q, k, cos, sin);
  if (!wants_gradient && !has_tangent) return rotate();

  const Pair out = wants_gradient
                       ? with_node<RopeNode>(
                             [&](AutogradContext& ctx) {
                               RopeFunction::save(ctx, q, k, cos, sin, options, transpose);
                             },
                             rotate, q, k, cos, sin)
                       : rotate();
  if (has_tangent) {
    const auto [q_tangent, k_tangent] = rotate_tangents(q, k, cos, sin, options, transpose);
    set_tangent(std::get<0>(out), q_tangent);
    set_tangent(std::get<1>(out), k_tangent);
  }
  return out;
}

void check_no_grad(bool needs_grad, const char* form, const char* functional) {
  TORCH_CHECK(!needs_grad, "npu_rope::", form,
              " has no derivative, but an input requires grad or has a tangent: use npu_rope::",
              functional, ", or torch.no_grad()");
}

// What torch itself would refuse, but only once it was written.
void check_written(const Tensor& tensor, const char* name) {
  TORCH_CHECK(!tensor.defined() || !tensor.is_inference() || c10::InferenceMode::is_enabled(), name,
              " is an inference tensor, expected a normal one outside InferenceMode: ", name,
              ".clone() is one");
}

void bump(const Tensor& tensor) {
  if (tensor.defined()) torch::autograd::impl::bump_version(tensor);
}

// Autograd's kernels call these directly: one dispatch less. Inference mode dispatches to them.

void inplace_bump(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                  const RopeOptions& options) {
  check_written(q, "q");
  check_written(k, "k");
  {
    at::AutoDispatchBelowADInplaceOrView below;
    RopeCalls::apply_(q, k, cos, sin, options);
  }
  bump(q);
  bump(k);
}

void out_bump(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
              const RopeOptions& options, const Tensor& q_out, const Tensor& k_out) {
  check_written(q_out, "q_out");
  check_written(k_out, "k_out");
  {
    at::AutoDispatchBelowADInplaceOrView below;
    RopeCalls::apply_out(q, k, cos, sin, options, q_out, k_out);
  }
  bump(q_out);
  bump(k_out);
}

void inplace_autograd(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                      const RopeOptions& options) {
  check_no_grad(want_grads(q, k, cos, sin) || have_tangents(q, k, cos, sin), "apply_", "apply");
  inplace_bump(q, k, cos, sin, options);
}

void out_autograd(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                  const RopeOptions& options, const Tensor& q_out, const Tensor& k_out) {
  const auto needs = [&](const Tensor& a, const Tensor& b) {
    return want_grads(a, b, cos, sin) || have_tangents(a, b, cos, sin);
  };
  check_no_grad(needs(q, k) || needs(q_out, k_out), "apply.out", "apply");
  out_bump(q, k, cos, sin, options, q_out, k_out);
}

// ---- norm_apply ----

bool want_grads(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                const NormOptions& norm) {
  return want_grads(q, k, cos, sin) || want_grads(norm.q_weight, norm.k_weight, cos, sin);
}

bool have_tangents(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                   const NormOptions& norm) {
  return have_tangents(q, k, cos, sin) || have_tangents(norm.q_weight, norm.k_weight, cos, sin);
}

Pair norm_differentiable(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                         const NormOptions& norm, const RopeOptions& options) {
  const auto compute = [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    return NormCalls::norm_apply(q, k, cos, sin, norm, options);
  };
  const auto save = [&](AutogradContext& ctx) {
    NormFunction::save(ctx, q, k, cos, sin, norm, options);
  };
  const Pair out =
      want_grads(q, k, cos, sin, norm)
          ? with_node<NormNode>(save, compute, q, k, norm.q_weight, norm.k_weight, cos, sin)
          : compute();
  if (have_tangents(q, k, cos, sin, norm)) {
    const auto rows = [&](const Tensor& x, const Tensor& weight) {
      const NormedRows of_x(x, weight, norm.eps, norm.weight_offset);
      return x.defined() ? of_x.rows().to(x.scalar_type()) : x;
    };
    const auto [q_dual, k_dual] =
        RopeCalls::apply(rows(q, norm.q_weight), rows(k, norm.k_weight), cos, sin, options);
    set_tangent(std::get<0>(out), tangent_of(q_dual));
    set_tangent(std::get<1>(out), tangent_of(k_dual));
  }
  return out;
}

void norm_inplace_bump(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                       const NormOptions& norm, const RopeOptions& options) {
  check_written(q, "q");
  check_written(k, "k");
  {
    at::AutoDispatchBelowADInplaceOrView below;
    NormCalls::norm_apply_(q, k, cos, sin, norm, options);
  }
  bump(q);
  bump(k);
}

void norm_out_bump(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                   const NormOptions& norm, const RopeOptions& options, const Tensor& q_out,
                   const Tensor& k_out) {
  check_written(q_out, "q_out");
  check_written(k_out, "k_out");
  {
    at::AutoDispatchBelowADInplaceOrView below;
    NormCalls::norm_apply_out(q, k, cos, sin, norm, options, q_out, k_out);
  }
  bump(q_out);
  bump(k_out);
}

void norm_inplace_autograd(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                           const NormOptions& norm, const RopeOptions& options) {
  check_no_grad(want_grads(q, k, cos, sin, norm) || have_tangents(q, k, cos, sin, norm),
                "norm_apply_", "norm_apply");
  norm_inplace_bump(q, k, cos, sin, norm, options);
}

void norm_out_autograd(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                       const NormOptions& norm, const RopeOptions& options, const Tensor& q_out,
                       const Tensor& k_out) {
  const auto needs = [&](const Tensor& a, const Tensor& b) {
    return want_grads(a, b, cos, sin, norm) || have_tangents(a, b, cos, sin, norm);
  };
  check_no_grad(needs(q, k) || needs(q_out, k_out), "norm_apply.out", "norm_apply");
  norm_out_bump(q, k, cos, sin, norm, options, q_out, k_out);
}

}  // namespace

void register_autograd(torch::Library& library) {
  library.impl("apply", RopeSchema::functional<differentiable<false>>);
  library.impl("apply_backward", RopeSchema::functional<differentiable<true>>);
  library.impl("apply_", RopeSchema::inplace<inplace_autograd>);
  library.impl("apply.out", RopeSchema::out<out_autograd>);
  library.impl("norm_apply", NormSchema::functional<norm_differentiable>);
  library.impl("norm_apply_", NormSchema::inplace<norm_inplace_autograd>);
  library.impl("norm_apply.out", NormSchema::out<norm_out_autograd>);
}

void register_inplace_or_view(torch::Library& library) {
  library.impl("apply_", RopeSchema::inplace<inplace_bump>);
  library.impl("apply.out", RopeSchema::out<out_bump>);
  library.impl("norm_apply_", NormSchema::inplace<norm_inplace_bump>);
  library.impl("norm_apply.out", NormSchema::out<norm_out_bump>);
}

}  // namespace npu_rope
