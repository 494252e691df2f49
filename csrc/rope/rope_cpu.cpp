#include "rope_cpu.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>

#include <algorithm>
#include <string>

#include "rope_cpu_rows.h"

namespace npu_rope {
namespace {

constexpr int64_t kParallelBytes = 100 * 1024;  // below, waking the threads costs more
constexpr int64_t kBytesPerThread = 50 * 1024;  // at least

/// What torch itself found; ATEN_CPU_CAPABILITY narrows it.
RotateRange choose_instruction_set() {
#if defined(__x86_64__)
  const std::string capability = at::get_cpu_capability();
  if (capability == "AVX512") {
    return __builtin_cpu_supports("avx512bf16") ? avx512_bf16::rotate_range : avx512::rotate_range;
  }
  if (capability == "AVX2") return avx2::rotate_range;
#endif
  return baseline::rotate_range;
}

}  // namespace

void rope_cpu(const RopeGeometry& geometry, const RopePointers& pointers) {
  static const RotateRange rotate_range = choose_instruction_set();

  const int64_t rows = geometry.batch * geometry.tokens;
  const int64_t row_bytes =
      (geometry.q_heads + geometry.k_heads) * geometry.head_dim * size_of(geometry.dtype);
  const int64_t bytes = rows * row_bytes;
  if (bytes == 0) return;

  // A unit of work is a row, or a part of its heads where there are fewer rows than threads.
  int64_t parts = 1;
  if (bytes >= kParallelBytes && rows < at::get_num_threads()) {
    const int64_t threads = std::min<int64_t>(at::get_num_threads(), bytes / kBytesPerThread);
    parts = std::max<int64_t>(threads / rows, 1);
  }
  const auto rotate_units = [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end;) {
      const int64_t row = unit / parts, part = unit % parts;
      RopeRange range;
      range.batch = row / geometry.tokens;
      range.token_begin = row % geometry.tokens;
      const int64_t whole_rows = parts > 1 ? 1 : end - unit;
      range.token_end = std::min(range.token_begin + whole_rows, geometry.tokens);
      range.q_head_begin = geometry.q_heads * part / parts;
      range.q_head_end = geometry.q_heads * (part + 1) / parts;
      range.k_head_begin = geometry.k_heads * part / parts;
      range.k_head_end = geometry.k_heads * (part + 1) / parts;
      rotate_range(geometry, pointers, range);
      unit += range.token_end - range.token_begin;
    }
  };
  if (bytes < kParallelBytes) return rotate_units(0, rows);
  const int64_t grain = std::max<int64_t>(kBytesPerThread * parts / row_bytes, 1);
  at::parallel_for(0, rows * parts, grain, rotate_units);
}

}  // namespace npu_rope
