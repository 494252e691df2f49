// What bench_cpu.py measures the CPU kernel against: the memory's own limit, and an operator with
// npu_rope's schemas that does nothing.
#include <ATen/Parallel.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>

namespace {

using at::Tensor;

constexpr int64_t kParallelBytes = 100 * 1024;  // npu_rope's own threshold

/// A (tokens, heads, head_dim) view as runs of bytes, one a token, or one for all.
struct Runs {
  char* data;
  int64_t count, bytes, stride;

  explicit Runs(const Tensor& t)
      : data(static_cast<char*>(t.data_ptr())),
        count(t.size(0)),
        bytes(t[0].numel() * t.element_size()),
        stride(t.stride(0) * t.element_size()) {}
};

void modify(char* data, int64_t bytes, int64_t prefetch) {
  constexpr int64_t kLine = 64;
  int64_t i = 0;
  for (; i + kLine <= bytes; i += kLine) {
    if (prefetch) __builtin_prefetch(data + i + prefetch);
    auto* words = reinterpret_cast<uint64_t*>(data + i);
    for (int64_t w = 0; w < kLine / 8; ++w) words[w] ^= 1;
  }
  for (; i < bytes; ++i) data[i] ^= 1;
}

void modify_runs(const Runs& runs, int64_t begin, int64_t end, int64_t prefetch) {
  if (runs.stride == runs.bytes) {
    modify(runs.data + begin * runs.stride, (end - begin) * runs.bytes, prefetch);
  } else {
    for (int64_t i = begin; i < end; ++i) {
      modify(runs.data + i * runs.stride, runs.bytes, prefetch);
    }
  }
}

void read_runs(const Runs& runs, int64_t begin, int64_t end) {
  uint64_t sum = 0;
  for (int64_t i = begin; i < end; ++i) {
    const auto* words = reinterpret_cast<const uint64_t*>(runs.data + i * runs.stride);
    for (int64_t w = 0; w < runs.bytes / 8; ++w) sum ^= words[w];
  }
  asm volatile("" : : "r"(sum));
}

/// Flips a bit of each word of q and k in place and reads the tables once: the same traffic as the
/// rotation in place, and no arithmetic. prefetch: bytes ahead, 0 for none.
void read_modify_write(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin,
                       int64_t prefetch) {
  const Runs runs[] = {Runs(q), Runs(k), Runs(cos), Runs(sin)};
  const auto pass = [&](int64_t begin, int64_t end) {
    modify_runs(runs[0], begin, end, prefetch);
    modify_runs(runs[1], begin, end, prefetch);
    read_runs(runs[2], begin, end);
    read_runs(runs[3], begin, end);
  };
  const int64_t tokens = q.size(0);
  if (tokens * (runs[0].bytes + runs[1].bytes) < kParallelBytes) return pass(0, tokens);
  at::parallel_for(0, tokens, 1, pass);
}

using Rows = std::optional<Tensor>;
using Layout = std::optional<std::string>;

std::tuple<Tensor, Tensor> empty(const Rows& q, const Rows& k, const Tensor&, const Tensor&,
                                 const Layout&, std::optional<int64_t>, int64_t, bool, bool, bool,
                                 bool) {
  return {at::empty_like(*q, at::MemoryFormat::Contiguous),
          at::empty_like(*k, at::MemoryFormat::Contiguous)};
}

void empty_(const Rows&, const Rows&, const Tensor&, const Tensor&, const Layout&,
            std::optional<int64_t>, int64_t, bool, bool, bool, bool) {}

TORCH_LIBRARY(npu_rope_bench, m) {
  const std::string options =
      ", *, str? layout=None, int? rotary_dim=None, int rotary_offset=0, bool interleaved=False, "
      "bool deinterleave=False, bool cast_tables=True, bool round_each=False)";
  const std::string schema = "empty(Tensor? q, Tensor? k, Tensor cos, Tensor sin" + options;
  const std::string schema_ =
      "empty_(Tensor(a!)? q, Tensor(b!)? k, Tensor cos, Tensor sin" + options;
  m.def((schema + " -> (Tensor, Tensor)").c_str());
  m.def((schema_ + " -> ()").c_str());
  m.def(
      "read_modify_write(Tensor(a!) q, Tensor(b!) k, Tensor cos, Tensor sin, int prefetch) -> ()");
}

TORCH_LIBRARY_IMPL(npu_rope_bench, CPU, m) {
  m.impl("empty", empty);
  m.impl("empty_", empty_);
  m.impl("read_modify_write", read_modify_write);
}

}  // namespace
