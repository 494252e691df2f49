#include "rope/rope_args.h"

#include <c10/core/SymInt.h>

#include <cmath>
#include <string>

#include "rope/rope_overlap.h"

namespace npu_rope {
namespace {

constexpr int64_t kMaxHeadDim = 1024;

// One spelling of each comparison for counts that are numbers and for counts that are symbols.
// A symbolic one is asserted, not guarded, so that a trace stays valid for every count.
bool same(int64_t a, int64_t b) { return a == b; }
bool same(const c10::SymInt& a, const c10::SymInt& b) {
  return a.sym_eq(b).expect_true(__FILE__, __LINE__);
}
bool same_or_one(int64_t a, int64_t b) { return a == b || a == 1; }
bool same_or_one(const c10::SymInt& a, const c10::SymInt& b) {
  return a.sym_eq(b).sym_or(a.sym_eq(1)).expect_true(__FILE__, __LINE__);
}

template <class Int>
c10::ArrayRef<Int> sizes_of(const at::Tensor& tensor);
template <>
c10::ArrayRef<int64_t> sizes_of<int64_t>(const at::Tensor& tensor) {
  return tensor.sizes();
}
template <>
c10::ArrayRef<c10::SymInt> sizes_of<c10::SymInt>(const at::Tensor& tensor) {
  return tensor.sym_sizes();
}

// A width is part of the operator's meaning, not a count: a trace specialises it.
int64_t width_of(const at::Tensor& tensor) {
  return tensor.sym_sizes().back().guard_int(__FILE__, __LINE__);
}

DType dtype_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kHalf:
      return DType::kFloat16;
    case at::kBFloat16:
      return DType::kBFloat16;
    case at::kFloat:
      return DType::kFloat32;
    case at::kDouble:
      return DType::kFloat64;
    default:
      TORCH_INTERNAL_ASSERT(false, "unchecked dtype ", tensor.scalar_type());
  }
}

bool is_rope_dtype(at::ScalarType dtype) {
  return dtype == at::kHalf || dtype == at::kBFloat16 || dtype == at::kFloat;
}

Axes row_axes(int64_t rank, const RopeOptions& options, const char* name) {
  TORCH_CHECK_VALUE(rank == 3 || rank == 4, name, " has ", rank,
                    " dims, expected 3 (TND) or 4 (BSND, BNSD, SBND)");
  const c10::string_view layout = options.layout.value_or(rank == 3 ? "TND" : "BSND");
  Axes axes{};
  if (layout == "TND") {
    axes = {-1, 0, 1};
  } else if (layout == "BSND") {
    axes = {0, 1, 2};
  } else if (layout == "BNSD") {
    axes = {0, 2, 1};
  } else if (layout == "SBND") {
    axes = {1, 0, 2};
  } else {
    TORCH_CHECK_VALUE(false, "layout is '", std::string(layout.data(), layout.size()),
                      "', expected 'TND', 'BSND', 'BNSD' or 'SBND'");
  }
  TORCH_CHECK_VALUE(rank == (axes.batch < 0 ? 3 : 4), "layout is '",
                    std::string(layout.data(), layout.size()), "', which takes ",
                    axes.batch < 0 ? 3 : 4, "-D tensors, but ", name, " has ", rank, " dims");
  return axes;
}

Style style_of(const RopeOptions& options) {
  TORCH_CHECK_VALUE(options.interleaved || !options.deinterleave,
                    "deinterleave=True needs interleaved=True: it writes interleaved pairs in half "
                    "order");
  return !options.interleaved   ? Style::kHalf
         : options.deinterleave ? Style::kDeinterleave
                                : Style::kInterleaved;
}

// A table has the rows' axes, with a head axis of 1 or without it, or only the token axis.
Axes table_axes(int64_t rank, const Axes& rows, int64_t row_rank, const char* name) {
  if (rank == row_rank) return rows;
  if (rank == 2) return {-1, 0, -1};
  TORCH_CHECK_VALUE(rank == row_rank - 1, name, " has ", rank, " dims, expected ",
                    row_rank == 3 ? "2 or 3" : "2, 3 or 4", " beside ", row_rank, "-D q and k");
  const auto without_head = [&](int64_t axis) { return axis - (axis > rows.head ? 1 : 0); };
  return {without_head(rows.batch), without_head(rows.token), -1};
}

template <class Int>
void check_pair(const at::Tensor& a, const at::Tensor& b, const char* a_name, const char* b_name) {
  TORCH_CHECK_TYPE(b.scalar_type() == a.scalar_type(), b_name, " is ", b.scalar_type(),
                   ", expected ", a.scalar_type(), " as ", a_name);
  TORCH_CHECK_VALUE(b.device() == a.device(), b_name, " is on ", b.device(), ", expected ",
                    a.device(), " as ", a_name);
  TORCH_CHECK_VALUE(b.dim() == a.dim(), b_name, " has ", b.dim(), " dims, expected ", a.dim(),
                    " as ", a_name);
}

// Every axis alike but, where it is given, the head axis.
template <class Int>
void check_sizes(const at::Tensor& a, const at::Tensor& b, const char* a_name, const char* b_name,
                 int64_t head_axis = -1) {
  const auto expected = sizes_of<Int>(a), came = sizes_of<Int>(b);
  for (int64_t axis = 0; axis < a.dim(); ++axis) {
    if (axis == head_axis) continue;
    TORCH_CHECK_VALUE(same(came[axis], expected[axis]), b_name, " has shape ", came, ", expected ",
                      expected, " as ", a_name,
                      head_axis < 0 ? "" : " but for the number of heads");
  }
}

}  // namespace

template <class Int>
RopeArgs check_inputs(const at::Tensor& q, const at::Tensor& k, const at::Tensor& cos,
                      const at::Tensor& sin, const RopeOptions& options,
                      const char* const (&names)[2]) {
  const auto [q_name, k_name] = names;
  RopeArgs args{};
  args.style = style_of(options);
  args.cast_tables = options.cast_tables;
  TORCH_CHECK_TYPE(q.defined() || k.defined(), q_name, " and ", k_name,
                   " are None, expected a tensor for one of them at least");
  TORCH_CHECK_TYPE(cos.defined() && sin.defined(), cos.defined() ? "sin" : "cos",
                   " is None, expected a tensor");
  const at::Tensor& rows = q.defined() ? q : k;
  const char* const name = q.defined() ? q_name : k_name;
  args.round_each = options.round_each && rows.element_size() == 2;
  args.rows = row_axes(rows.dim(), options, name);

  const bool is_double = rows.scalar_type() == at::kDouble && !rows.is_privateuseone();
  TORCH_CHECK_TYPE(is_rope_dtype(rows.scalar_type()) || is_double, name, " is ", rows.scalar_type(),
                   ", expected Half, BFloat16 or Float",
                   rows.is_privateuseone() ? "" : " or Double");
  if (q.defined() && k.defined()) {
    check_pair<Int>(q, k, q_name, k_name);
    check_sizes<Int>(q, k, q_name, k_name, args.rows.head);
  }
  args.head_dim = width_of(rows);
  TORCH_CHECK_VALUE(args.head_dim >= 2 && args.head_dim <= kMaxHeadDim && args.head_dim % 2 == 0,
                    name, " has head_dim ", args.head_dim, ", expected an even number from 2 to ",
                    kMaxHeadDim);

  TORCH_CHECK_TYPE(
      is_rope_dtype(cos.scalar_type()) || (is_double && cos.scalar_type() == at::kDouble),
      "cos is ", cos.scalar_type(), ", expected Half, BFloat16 or Float",
      is_double ? " or Double" : "");
  check_pair<Int>(cos, sin, "cos", "sin");
  check_sizes<Int>(cos, sin, "cos", "sin");
  TORCH_CHECK_VALUE(cos.device() == rows.device(), "cos is on ", cos.device(), ", expected ",
                    rows.device(), " as ", name);
  args.table = table_axes(cos.dim(), args.rows, rows.dim(), "cos");
  const auto row_sizes = sizes_of<Int>(rows), table_sizes = sizes_of<Int>(cos);
  const auto check_axis = [&](int64_t table_axis, int64_t row_axis, const char* what) {
    if (table_axis < 0) return;
    TORCH_CHECK_VALUE(same_or_one(table_sizes[table_axis], row_sizes[row_axis]), "cos has ",
                      table_sizes[table_axis], " ", what, ", expected ", row_sizes[row_axis],
                      " as ", name, ", or 1: shape ", table_sizes, " beside ", row_sizes);
  };
  check_axis(args.table.batch, args.rows.batch, "batches");
  check_axis(args.table.token, args.rows.token, "tokens");
  if (args.table.head >= 0) {
    TORCH_CHECK_VALUE(same(table_sizes[args.table.head], Int(1)), "cos has ",
                      table_sizes[args.table.head], " heads, expected 1: shape ", table_sizes);
  }

  const int64_t width = width_of(cos);
  args.rotary_dim = options.rotary_dim.value_or(width);
  args.rotary_offset = options.rotary_offset;
  if (options.rotary_dim) {
    TORCH_CHECK_VALUE(args.rotary_dim >= 2 && args.rotary_dim % 2 == 0, "rotary_dim is ",
                      args.rotary_dim, ", expected an even number of at least 2");
    TORCH_CHECK_VALUE(width == args.rotary_dim || width == args.rotary_dim / 2, "cos has last dim ",
                      width, ", expected rotary_dim ", args.rotary_dim, " (full tables) or ",
                      args.rotary_dim / 2, " (half tables)");
  } else {
    TORCH_CHECK_VALUE(width >= 2 && width % 2 == 0, "cos has last dim ", width,
                      ", expected an even number of at least 2 (full tables; half tables need "
                      "rotary_dim)");
  }
  args.half_tables = width != args.rotary_dim;
  TORCH_CHECK_VALUE(args.rotary_offset >= 0, "rotary_offset is ", args.rotary_offset,
                    ", expected at least 0");
  TORCH_CHECK_VALUE(args.rotary_dim <= args.head_dim - args.rotary_offset, "rotary_offset ",
                    args.rotary_offset, " + rotary_dim ", args.rotary_dim,
                    options.rotary_dim ? "" : " (cos's last dim)", " is over head_dim ",
                    args.head_dim);
  return args;
}

template RopeArgs check_inputs<int64_t>(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                        const at::Tensor&, const RopeOptions&,
                                        const char* const (&)[2]);
template RopeArgs check_inputs<c10::SymInt>(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                            const at::Tensor&, const RopeOptions&,
                                            const char* const (&)[2]);

void check_norm(const NormOptions& norm, const at::Tensor& q, const at::Tensor& k,
                const RopeArgs& args) {
  TORCH_CHECK_VALUE(std::isfinite(norm.eps) && norm.eps >= 0, "eps is ", norm.eps,
                    ", expected a finite number of at least 0");
  TORCH_CHECK_VALUE(std::isfinite(norm.weight_offset), "weight_offset is ", norm.weight_offset,
                    ", expected a finite number");
  const at::Tensor& rows = q.defined() ? q : k;
  const bool is_double = rows.scalar_type() == at::kDouble;
  const auto check_weight = [&](const at::Tensor& weight, const char* name) {
    if (!weight.defined()) return;
    TORCH_CHECK_TYPE(
        is_rope_dtype(weight.scalar_type()) || (is_double && weight.scalar_type() == at::kDouble),
        name, " is ", weight.scalar_type(), ", expected Half, BFloat16 or Float",
        is_double ? " or Double" : "");
    TORCH_CHECK_VALUE(weight.device() == rows.device(), name, " is on ", weight.device(),
                      ", expected ", rows.device(), " as ", q.defined() ? "q" : "k");
    TORCH_CHECK_VALUE(weight.dim() == 1 && width_of(weight) == args.head_dim, name, " has shape ",
                      weight.sym_sizes(), ", expected [", args.head_dim,
                      "]: one weight for each column of head_dim");
  };
  check_weight(norm.q_weight, "q_weight");
  check_weight(norm.k_weight, "k_weight");
  if (norm.q_weight.defined() && norm.k_weight.defined()) {
    TORCH_CHECK_TYPE(norm.k_weight.scalar_type() == norm.q_weight.scalar_type(), "k_weight is ",
                     norm.k_weight.scalar_type(), ", expected ", norm.q_weight.scalar_type(),
                     " as q_weight");
  }
}

template <class Int>
void check_outputs(const at::Tensor& q, const at::Tensor& k, const at::Tensor& q_out,
                   const at::Tensor& k_out) {
  const auto check = [](const at::Tensor& in, const at::Tensor& out, const char* in_name,
                        const char* out_name) {
    TORCH_CHECK_TYPE(in.defined() == out.defined(), out_name, " is ",
                     out.defined() ? "a tensor" : "None", ", expected ",
                     in.defined() ? "a tensor" : "None", " as ", in_name);
    if (!in.defined()) return;
    check_pair<Int>(in, out, in_name, out_name);
    check_sizes<Int>(in, out, in_name, out_name);
  };
  check(q, q_out, "q", "q_out");
  check(k, k_out, "k", "k_out");
}

template void check_outputs<int64_t>(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                     const at::Tensor&);
template void check_outputs<c10::SymInt>(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                         const at::Tensor&);

namespace {

int64_t stride_of(const at::Tensor& tensor, int64_t axis) {
  return axis < 0 || tensor.sizes()[axis] == 1 ? 0 : tensor.strides()[axis];
}

RowStrides row_strides(const at::Tensor& tensor, const Axes& axes) {
  if (!tensor.defined()) return {0, 0, 0};
  return {stride_of(tensor, axes.batch), stride_of(tensor, axes.token),
          stride_of(tensor, axes.head)};
}

TableStrides table_strides(const at::Tensor& tensor, const Axes& axes) {
  return {stride_of(tensor, axes.batch), stride_of(tensor, axes.token)};
}

// Makes (batch, tokens) one axis where every operand steps through it evenly.
void fold_batch(RopeGeometry& geometry) {
  if (geometry.batch == 1) return;
  const bool one_token = geometry.tokens == 1;
  const auto is_even = [&](const auto& strides) {
    return one_token || strides.batch == geometry.tokens * strides.token;
  };
  if (!is_even(geometry.q) || !is_even(geometry.k) || !is_even(geometry.q_out) ||
      !is_even(geometry.k_out) || !is_even(geometry.cos) || !is_even(geometry.sin)) {
    return;
  }
  const auto fold = [&](auto& strides) {
    if (one_token) strides.token = strides.batch;
    strides.batch = 0;
  };
  fold(geometry.q);
  fold(geometry.k);
  fold(geometry.q_out);
  fold(geometry.k_out);
  fold(geometry.cos);
  fold(geometry.sin);
  geometry.tokens *= geometry.batch;
  geometry.batch = 1;
}

}  // namespace

RopeGeometry make_geometry(const RopeArgs& args, const at::Tensor& q, const at::Tensor& k,
                           const at::Tensor& cos, const at::Tensor& sin, const at::Tensor& q_out,
                           const at::Tensor& k_out, bool transpose) {
  RopeGeometry geometry{};
  const at::Tensor& rows = q.defined() ? q : k;
  geometry.dtype = dtype_of(rows);
  geometry.table_dtype = dtype_of(cos);
  geometry.style = args.style;
  geometry.transpose = transpose;
  geometry.half_tables = args.half_tables;
  geometry.cast_tables = args.cast_tables;
  geometry.round_each = args.round_each;
  const auto sizes = rows.sizes();
  geometry.batch = args.rows.batch < 0 ? 1 : sizes[args.rows.batch];
  geometry.tokens = sizes[args.rows.token];
  geometry.q_heads = q.defined() ? q.sizes()[args.rows.head] : 0;
  geometry.k_heads = k.defined() ? k.sizes()[args.rows.head] : 0;
  geometry.head_dim = args.head_dim;
  geometry.rotary_dim = args.rotary_dim;
  geometry.rotary_offset = args.rotary_offset;
  const bool q_in_place = q.defined() && is_same_memory(q, q_out);
  const bool k_in_place = k.defined() && is_same_memory(k, k_out);
  geometry.q_in_place = q.defined() ? q_in_place : k_in_place;
  geometry.k_in_place = k.defined() ? k_in_place : q_in_place;
  geometry.q = row_strides(q, args.rows);
  geometry.k = row_strides(k, args.rows);
  geometry.q_out = row_strides(q_out, args.rows);
  geometry.k_out = row_strides(k_out, args.rows);
  geometry.cos = table_strides(cos, args.table);
  geometry.sin = table_strides(sin, args.table);
  fold_batch(geometry);
  return geometry;
}

RopeNorm make_norm(const NormOptions& norm) {
  RopeNorm made{};
  made.q = norm.q_weight.defined();
  made.k = norm.k_weight.defined();
  if (made.q) made.weight_dtype = dtype_of(norm.q_weight);
  if (made.k) made.weight_dtype = dtype_of(norm.k_weight);
  made.eps = norm.eps;
  made.weight_offset = norm.weight_offset;
  return made;
}

}  // namespace npu_rope
