#include "rope/rope_overlap.h"

#include <c10/util/Exception.h>
#include <c10/util/SmallVector.h>

#include <algorithm>

namespace npu_rope {
namespace {

constexpr int kMostSteps = 1000;  // of a search; views of one packed tensor need about ten

/// n * stride bytes, for low <= n <= high; stride > 0.
struct Term {
  int64_t stride, low, high;
};
using Terms = c10::SmallVector<Term, 12>;

/// Whether a choice of n in each of terms[i:], by falling strides, sums up to `sum`. False too
/// where `steps` run out first.
bool reaches(const Terms& terms, size_t i, int64_t sum, int& steps) {
  if (i == terms.size()) return sum == 0;
  int64_t low = 0, high = 0;  // of what comes after this term
  for (size_t j = i + 1; j < terms.size(); ++j) {
    low += terms[j].low * terms[j].stride;
    high += terms[j].high * terms[j].stride;
  }
  const auto [stride, least, most] = terms[i];
  for (int64_t n = std::max(least, (sum - high) / stride - 1);
       n <= std::min(most, (sum - low) / stride + 1); ++n) {
    const int64_t rest = sum - n * stride;
    if (rest < low || rest > high) continue;
    if (--steps < 0) return false;
    if (reaches(terms, i + 1, rest, steps)) return true;
  }
  return false;
}

bool reaches(Terms terms, int64_t sum) {
  std::sort(terms.begin(), terms.end(), [](Term a, Term b) { return a.stride > b.stride; });
  size_t kept = 0;  // terms of one stride are one term
  for (const Term& term : terms) {
    if (kept > 0 && terms[kept - 1].stride == term.stride) {
      terms[kept - 1].low += term.low;
      terms[kept - 1].high += term.high;
    } else {
      terms[kept++] = term;
    }
  }
  terms.resize(kept);
  int steps = kMostSteps;
  return reaches(terms, 0, sum, steps);
}

/// The steps to every byte of a tensor from its first, times `sign`.
void add_terms(const at::Tensor& tensor, int64_t sign, Terms& terms) {
  const int64_t size = tensor.element_size();
  const auto add = [&](int64_t stride, int64_t most) {
    if (stride == 0 || most == 0) return;
    terms.push_back({stride, sign < 0 ? -most : 0, sign < 0 ? 0 : most});
  };
  for (int64_t axis = 0; axis < tensor.dim(); ++axis) {
    add(tensor.strides()[axis] * size, tensor.sizes()[axis] - 1);
  }
  add(1, size - 1);
}

/// An address; on meta the place in the storage.
int64_t first_byte(const at::Tensor& tensor) {
  return tensor.is_meta() ? tensor.storage_offset() * tensor.element_size()
                          : reinterpret_cast<int64_t>(tensor.const_data_ptr());
}

int64_t last_byte(const at::Tensor& tensor) {
  int64_t elements = 0;
  for (int64_t axis = 0; axis < tensor.dim(); ++axis) {
    elements += (tensor.sizes()[axis] - 1) * tensor.strides()[axis];
  }
  return first_byte(tensor) + (elements + 1) * tensor.element_size() - 1;
}

bool has_numbers(const at::Tensor& tensor) {
  return tensor.defined() && !tensor.unsafeGetTensorImpl()->has_symbolic_sizes_strides() &&
         tensor.numel() > 0;
}

/// A tensor of the call with the bytes from its first to its last; last < first where there is
/// nothing to overlap.
struct Operand {
  const at::Tensor& tensor;
  const char* name;
  int64_t first = 0, last = -1;

  Operand(const at::Tensor& tensor, const char* name) : tensor(tensor), name(name) {
    if (!has_numbers(tensor)) return;
    first = first_byte(tensor);
    last = last_byte(tensor);
  }
};

bool overlap(const Operand& a, const Operand& b) {
  if (a.last < b.first || b.last < a.first || a.last < a.first || b.last < b.first) return false;
  if (a.tensor.is_meta() && !a.tensor.is_alias_of(b.tensor)) return false;
  Terms terms;
  add_terms(a.tensor, 1, terms);
  add_terms(b.tensor, -1, terms);
  return reaches(std::move(terms), b.first - a.first);
}

/// Whether two elements of a tensor share a byte, as an expanded tensor's do.
bool overlaps_itself(const at::Tensor& tensor) {
  if (!has_numbers(tensor) || tensor.is_contiguous()) return false;
  Terms axes;
  for (int64_t axis = 0; axis < tensor.dim(); ++axis) {
    const int64_t stride = tensor.strides()[axis], most = tensor.sizes()[axis] - 1;
    if (most == 0) continue;
    if (stride == 0) return true;
    axes.push_back({stride, -most, most});
  }
  std::sort(axes.begin(), axes.end(), [](Term a, Term b) { return a.stride < b.stride; });
  int64_t inner = 0;
  for (const Term& axis : axes) {
    if (axis.stride <= inner) {  // not nested: is there a way back to where it began?
      for (size_t i = 0; i < axes.size(); ++i) {
        Terms steps = axes;
        steps[i].low = 1;
        if (reaches(std::move(steps), 0)) return true;
      }
      return false;
    }
    inner += axis.high * axis.stride;
  }
  return false;
}

void check_apart(const Operand& out, const Operand& other) {
  TORCH_CHECK_VALUE(!overlap(out, other), out.name, " overlaps ", other.name,
                    " in memory, expected it to be apart");
}

/// An output and its own input: the very same memory, or apart.
void check_own(const Operand& in, const Operand& out) {
  TORCH_CHECK_VALUE(!overlaps_itself(out.tensor), out.name, " is an expanded tensor (strides ",
                    out.tensor.strides(),
                    "): several of its elements are one in memory, so it can't be written");
  if (!is_same_memory(in.tensor, out.tensor)) check_apart(out, in);
}

}  // namespace

bool is_same_memory(const at::Tensor& a, const at::Tensor& b) {
  if (a.is_same(b)) return true;
  if (!has_numbers(a) || !has_numbers(b) || (a.is_meta() && !a.is_alias_of(b))) return false;
  if (first_byte(a) != first_byte(b)) return false;
  for (int64_t axis = 0; axis < a.dim(); ++axis) {
    if (a.sizes()[axis] > 1 && a.strides()[axis] != b.strides()[axis]) return false;
  }
  return true;
}

void check_overlap(const at::Tensor& q, const at::Tensor& k, const at::Tensor& cos,
                   const at::Tensor& sin, const at::Tensor& q_out, const at::Tensor& k_out) {
  const bool in_place = q.is_same(q_out) && k.is_same(k_out);
  const Operand q_in(q, "q"), k_in(k, "k"), cos_in(cos, "cos"), sin_in(sin, "sin");
  const Operand q_to = in_place ? q_in : Operand(q_out, "q_out");
  const Operand k_to = in_place ? k_in : Operand(k_out, "k_out");
  check_own(q_in, q_to);
  check_own(k_in, k_to);
  check_apart(q_to, k_to);
  if (!in_place) {
    check_apart(q_to, k_in);
    check_apart(k_to, q_in);
  }
  for (const Operand* const out : {&q_to, &k_to}) {
    check_apart(*out, cos_in);
    check_apart(*out, sin_in);
  }
}

void check_norm_overlap(const at::Tensor& q, const at::Tensor& k, const at::Tensor& cos,
                        const at::Tensor& sin, const NormOptions& norm, const at::Tensor& q_out,
                        const at::Tensor& k_out) {
  check_overlap(q, k, cos, sin, q_out, k_out);
  const Operand q_to(q_out, "what is written for q"), k_to(k_out, "what is written for k");
  for (const Operand& weight :
       {Operand(norm.q_weight, "q_weight"), Operand(norm.k_weight, "k_weight")}) {
    check_apart(weight, q_to);
    check_apart(weight, k_to);
  }
}

}  // namespace npu_rope
