#include "rope/rope_layer.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>
#include <c10/util/accumulate.h>

#include <algorithm>
#include <initializer_list>

#include "npu/library.h"
#include "rope/norm_ops.h"
#include "rope/rope_forms.h"
#include "rope/rope_ops.h"

namespace npu_rope {
namespace {

using at::Tensor;

template <class Check>
std::string refusal_of(const Check& check) {
  try {
    check();
    return "";
  } catch (const c10::Error& refused) {  // of a check alone: it touches no device
    return refused.what_without_backtrace();
  }
}

template <bool round_each>
const std::string& chip_problem() {
  static const std::string problem = refusal_of([] {
    RopeGeometry smallest{};
    smallest.batch = smallest.tokens = smallest.q_heads = 1;
    smallest.head_dim = smallest.rotary_dim = 2;
    smallest.round_each = round_each;
    npu_library().check(smallest);
  });
  return problem;
}

// Throws where no kernel norms such rows: of one, since counts and strides make no difference.
void check_npu_norm(const RopeArgs& args, const Tensor& q, const Tensor& k, const Tensor& cos,
                    const Tensor& sin, const NormOptions& norm) {
  RopeGeometry row = make_geometry(args, q, k, cos, sin, q, k, /*transpose=*/false);
  row.batch = row.tokens = row.q_heads = 1;
  row.k_heads = 0;
  row.q_in_place = row.k_in_place = false;
  row.q = row.k = row.q_out = row.k_out = {};
  row.cos = row.sin = {};
  row.norm = make_norm(norm);
  npu_library().check(row);
}

// A fake or functional tensor, or another library's: its own dispatch decides.
bool is_plain(const Tensor& tensor) {
  return !tensor.is_meta() && !tensor.unsafeGetTensorImpl()->is_python_dispatch();
}

bool wants_grad(std::initializer_list<const Tensor*> inputs) {
  const auto wants = [](const Tensor* input) { return input->requires_grad(); };
  return at::GradMode::is_enabled() && std::any_of(inputs.begin(), inputs.end(), wants);
}

bool is_writable(const Tensor& tensor) {
  return (!tensor.is_inference() || c10::InferenceMode::is_enabled()) && !tensor.is_neg() &&
         !tensor.is_conj() && !tensor._is_zerotensor();
}

// The table in a shape that the operator takes beside q: [S, W] for every batch, or the rows' shape
// without their heads; undefined where it has not one row for each token.
Tensor shaped(const Tensor& table, const Tensor& q) {
  if (q.dim() < 3 || table.dim() < 2) return Tensor();
  if (table.dim() == 2 && table.sizes()[0] == q.sizes()[q.dim() - 3]) return table;
  at::DimVector sizes(q.sizes().begin(), q.sizes().end() - 2);
  const int64_t rows = c10::multiply_integers(table.sizes().slice(0, table.dim() - 1));
  if (rows != c10::multiply_integers(sizes)) return Tensor();
  sizes.push_back(table.sizes().back());
  return table.sizes() == at::IntArrayRef(sizes) ? table : table.reshape(sizes);
}

}  // namespace

const std::string& npu_library_problem() {
  static const std::string problem = refusal_of([] { npu_library(); });
  return problem;
}

const std::string& npu_chip_problem(bool round_each) {
  return round_each ? chip_problem<true>() : chip_problem<false>();
}

RopeResult try_apply(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                     const RopeTarget& target, const RopeOptions& options,
                     const std::optional<NormOptions>& norm) {
  if (!is_plain(q) || !is_plain(k) || !is_plain(cos) || !is_plain(sin) ||
      (norm && !(is_plain(norm->q_weight) && is_plain(norm->k_weight)))) {
    return "a tensor is fake, meta or a subclass with a dispatch of its own";
  }
  if (q.scalar_type() == at::kDouble) return "q is Double, which the default is left to";
  if (q.is_privateuseone()) {
    if (!npu_library_problem().empty()) return npu_library_problem();
    const std::string& problem = npu_chip_problem(options.round_each);
    if (!problem.empty()) return problem;
  }
  const Tensor cos_rows = shaped(cos, q), sin_rows = shaped(sin, q);
  if (!cos_rows.defined() || !sin_rows.defined()) return "a table has not one row for each token";

  const bool grad =
      wants_grad({&q, &k, &cos, &sin}) || (norm && wants_grad({&norm->q_weight, &norm->k_weight}));
  const bool over_q = target.in_place && !grad && is_writable(q) && q.is_contiguous();
  const bool over_k = target.in_place && !grad && is_writable(k) && k.is_contiguous();
  const bool into = target.q_out.has_value() && target.k_out.has_value();
  if (into && (grad || !is_writable(*target.q_out) || !is_writable(*target.k_out))) {
    return "a gradient is asked for, or an output can't be written as it is: an inference tensor "
           "outside inference mode, or a negated view";
  }
  const bool in_place = over_q && over_k;
  Tensor q_out, k_out;  // of the form with outputs
  if (into) {
    q_out = *target.q_out;
    k_out = *target.k_out;
  } else if (over_q != over_k) {
    q_out = over_q ? q : at::empty(q.sizes(), q.options());
    k_out = over_k ? k : at::empty(k.sizes(), k.options());
  }
  const auto check_writes = [&](const Tensor& q_to, const Tensor& k_to) {
    if (norm) {
      check_norm_overlap(q, k, cos_rows, sin_rows, *norm, q_to, k_to);
    } else {
      check_overlap(q, k, cos_rows, sin_rows, q_to, k_to);
    }
  };
  std::string refusal = refusal_of([&] {
    const RopeArgs args = check_inputs<int64_t>(q, k, cos_rows, sin_rows, options, kInputNames);
    check_formats(q, k, cos_rows, sin_rows, kInputNames);
    if (norm) {
      check_norm(*norm, q, k, args);
      check_format(norm->q_weight, "q_weight");
      check_format(norm->k_weight, "k_weight");
      if (q.is_privateuseone()) check_npu_norm(args, q, k, cos_rows, sin_rows, *norm);
    }
    if (in_place) check_writes(q, k);
    if (!q_out.defined()) return;
    check_outputs<int64_t>(q, k, q_out, k_out);
    check_format(q_out, "q_out");
    check_format(k_out, "k_out");
    check_writes(q_out, k_out);
  });
  if (!refusal.empty()) return refusal;

  if (q_out.defined()) {
    if (norm) {
      NormCalls::norm_apply_out(q, k, cos_rows, sin_rows, *norm, options, q_out, k_out);
    } else {
      RopeCalls::apply_out(q, k, cos_rows, sin_rows, options, q_out, k_out);
    }
    return std::tuple(std::move(q_out), std::move(k_out));
  }
  if (!in_place) {
    return norm ? NormCalls::norm_apply(q, k, cos_rows, sin_rows, *norm, options)
                : RopeCalls::apply(q, k, cos_rows, sin_rows, options);
  }
  if (norm) {
    NormCalls::norm_apply_(q, k, cos_rows, sin_rows, *norm, options);
  } else {
    RopeCalls::apply_(q, k, cos_rows, sin_rows, options);
  }
  return std::tuple(q, k);
}

}  // namespace npu_rope
