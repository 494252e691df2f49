// Prints one number for the results of each of many calls of the CPU kernel: compiled for two
// machines, the lines are the same where the bits are. Needs neither torch nor a library.
//
//   main COUNT
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "rope/rope_cpu_rows.h"

using namespace npu_rope;

namespace {

/// The same numbers on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t bits() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    const uint64_t mixed = (state_ ^ (state_ >> 29)) * 0xbf58476d1ce4e5b9u;
    return mixed ^ (mixed >> 32);
  }
  int64_t below(int64_t end) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(end)); }
  bool one_in(int64_t n) { return below(n) == 0; }

 private:
  uint64_t state_;
};

struct Format {
  int bits, exponent_bits;
  int mantissa_bits() const { return bits - exponent_bits - 1; }
  uint64_t special_exponent() const { return (uint64_t{1} << exponent_bits) - 1; }
};

Format format_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return {16, 5};
    case DType::kBFloat16:
      return {16, 8};
    case DType::kFloat32:
      return {32, 8};
    case DType::kFloat64:
      return {64, 11};
  }
  abort();
}

/// Elements of any dtype, as their bits.
class Elements {
 public:
  Elements(DType dtype, int64_t count) : dtype_(dtype), bytes_(count * size_of(dtype)) {}
  void* data() { return bytes_.data(); }

  /// Most about 1 in size; in a wild array zeros, subnormal numbers, infinities, NaN and any size.
  void fill(Random& random, bool wild) {
    const Format format = format_of(dtype_);
    const int mantissa = format.mantissa_bits();
    for (size_t at = 0; at < bytes_.size(); at += size_of(dtype_)) {
      uint64_t bits = random.bits() >> (64 - format.bits);
      if (!wild || !random.one_in(8)) {
        const uint64_t exponent = format.special_exponent() / 2 + 1 - random.below(9);
        bits &= (uint64_t{1} << mantissa) - 1;
        bits |= exponent << mantissa | (random.bits() & 1) << (format.bits - 1);
      } else if (random.one_in(2)) {
        const bool infinite = random.one_in(4);
        bits = (infinite ? format.special_exponent() : 0) << mantissa;
        if (!infinite) bits |= random.below(4);
      }
      __builtin_memcpy(&bytes_[at], &bits, size_of(dtype_));  // both machines are little-endian
    }
  }

  /// Every NaN counts as one: which of them comes out is the machine's.
  void mix_into(uint64_t& hash) const {
    const Format format = format_of(dtype_);
    const uint64_t infinity = format.special_exponent() << format.mantissa_bits();
    for (size_t at = 0; at < bytes_.size(); at += size_of(dtype_)) {
      uint64_t bits = 0;
      __builtin_memcpy(&bits, &bytes_[at], size_of(dtype_));
      const uint64_t magnitude = bits & ((uint64_t{1} << (format.bits - 1)) - 1);
      hash = (hash ^ (magnitude > infinity ? infinity + 1 : bits)) * 0x100000001b3u;
    }
  }

 private:
  DType dtype_;
  std::vector<unsigned char> bytes_;
};

RowStrides dense(int64_t tokens, int64_t heads, int64_t head_dim, int64_t gap) {
  const int64_t head = head_dim + gap, token = heads * head + gap;
  return {tokens * token, token, head};
}

RopeGeometry any_geometry(Random& random) {
  constexpr DType kDTypes[] = {DType::kFloat16, DType::kBFloat16, DType::kFloat32, DType::kFloat64};
  constexpr int64_t kDims[] = {2, 6, 16, 18, 64, 66, 72, 80, 96, 128, 192, 250, 256};
  RopeGeometry g{};
  g.dtype = kDTypes[random.below(4)];
  g.table_dtype = kDTypes[random.below(4)];
  g.style = static_cast<Style>(random.below(3));
  g.half_tables = random.one_in(2);
  g.cast_tables = random.one_in(2);
  g.round_each = size_of(g.dtype) == 2 && random.one_in(3);
  g.batch = 1 + random.below(2);
  g.tokens = 1 + random.below(11);
  g.q_heads = random.below(20);
  g.k_heads = random.below(4);
  g.head_dim = kDims[random.below(sizeof(kDims) / sizeof(kDims[0]))];
  g.rotary_dim = random.one_in(2) ? g.head_dim : 2 * (1 + random.below(g.head_dim / 2));
  g.rotary_offset = random.below(g.head_dim - g.rotary_dim + 1);
  const int64_t gap = random.one_in(2) ? random.below(9) : 0;
  g.q = g.q_out = dense(g.tokens, g.q_heads, g.head_dim, gap);
  g.k = g.k_out = dense(g.tokens, g.k_heads, g.head_dim, gap);
  const int64_t width = g.rotary_dim / (g.half_tables ? 2 : 1);
  g.cos = g.sin = {random.one_in(2) ? 0 : g.tokens * width, width};
  if (random.one_in(2)) {
    g.norm = {!random.one_in(4), !random.one_in(4), kDTypes[random.below(3)],
              random.one_in(4) ? 0 : 1e-6, random.one_in(2) ? 0.0 : 1.0};
    if (g.dtype == DType::kFloat64) g.norm.weight_dtype = DType::kFloat64;
  }
  g.transpose = !g.norm.q && !g.norm.k && random.one_in(4);
  return g;
}

uint64_t result(Random& random) {
  const RopeGeometry g = any_geometry(random);
  const bool wild = random.one_in(4);
  Elements q(g.dtype, g.batch * g.q.batch), k(g.dtype, g.batch * g.k.batch);
  Elements q_out = q, k_out = k;
  const int64_t entries = g.batch * g.tokens * g.rotary_dim;
  Elements cos(g.table_dtype, entries), sin(g.table_dtype, entries);
  Elements q_weight(g.norm.weight_dtype, g.head_dim), k_weight = q_weight;
  for (Elements* elements : {&q, &k, &cos, &sin, &q_weight, &k_weight}) {
    elements->fill(random, wild);
  }
  const RopePointers pointers{q.data(),     k.data(),     cos.data(),      sin.data(),
                              q_out.data(), k_out.data(), q_weight.data(), k_weight.data()};
  for (int64_t batch = 0; batch < g.batch; ++batch) {
    ROPE_ISA::rotate_range(g, pointers, {batch, 0, g.tokens, 0, g.q_heads, 0, g.k_heads});
  }
  uint64_t hash = 0xcbf29ce484222325u;
  q_out.mix_into(hash);
  k_out.mix_into(hash);
  return hash;
}

}  // namespace

int main(int, char** argv) {
  const int64_t count = atoll(argv[1]);
  for (int64_t i = 0; i < count; ++i) {
    Random random(i);
    printf("%lld %016llx\n", static_cast<long long>(i),
           static_cast<unsigned long long>(result(random)));
  }
}
