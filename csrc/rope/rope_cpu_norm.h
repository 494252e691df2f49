// RMSNorm's factor of rows, for rope_cpu_rows.cpp alone: 1 / sqrt(mean of squares + eps).
//
// The squares of a row are added pairwise: neighbours first, then neighbouring sums, a missing
// partner being 0. That is the order in which the NPU's reductions add, and it does not depend on
// the width of vectors: here neighbouring lanes of two vectors are added until one vector is left
// of each row, and then those of as many rows as a vector has lanes.
#pragma once

#include "rope_cpu_lanes.h"

namespace npu_rope::ROPE_ISA {
namespace {

/// Sums of neighbouring lanes, block by block of 16 bytes: a's, then b's.
template <class E, int N>
ROPE_INLINE Vec<E, N> add_in_blocks(Vec<E, N> a, Vec<E, N> b) {
  const auto lanes = deal_blocks(Two<E, N>{a, b});
  return lanes.a + lanes.b;
}

/// Sums of neighbouring lanes, those of a and then those of b.
template <class E, int N>
ROPE_INLINE Vec<E, N> add_neighbours(Vec<E, N> a, Vec<E, N> b) {
  using Index = typename Shuffles<E, N>::FromBlocks;
  const auto sums = add_in_blocks<E, N>(a, b);
  return shuffle<Index, E, N>(sums, sums);
}

/// Four sums in each block, one of each of four vectors -> the vectors' one after the other.
template <int N>
struct ByVector {
  static constexpr int of(int l) { return l % (N / 4) * 4 + l / (N / 4); }
};

/// The pairwise sum of `count` vectors that vector_at(index) gives, down to one vector.
template <class E, int N, int count, class At>
ROPE_INLINE Vec<E, N> add_pairwise(const At& vector_at, int64_t first = 0) {
  constexpr int kHalf = count / 2, kQuarter = count / 4;
  if constexpr (count == 1) {
    return vector_at(first);
  } else if constexpr (count >= 4 && sizeof(E) == 4) {  // a block holds one sum of each vector
    const auto sum = [&](int i) {
      return add_pairwise<E, N, kQuarter>(vector_at, first + i * kQuarter);
    };
    const auto sums = add_in_blocks<E, N>(add_in_blocks<E, N>(sum(0), sum(1)),
                                          add_in_blocks<E, N>(sum(2), sum(3)));
    return shuffle<ByVector<N>, E, N>(sums, sums);
  } else {
    const auto a = add_pairwise<E, N, kHalf>(vector_at, first);
    const auto b = add_pairwise<E, N, kHalf>(vector_at, first + kHalf);
    return add_neighbours<E, N>(a, b);
  }
}

/// To the nearest, as IEEE 754 says.
template <class E, int N>
ROPE_INLINE Vec<E, N> square_root(Vec<E, N> v) {
  constexpr int kBytes = sizeof(v);
  constexpr bool kFloat = sizeof(E) == sizeof(float);
#if defined(__AVX512F__)
  if constexpr (kBytes == 64 && kFloat) return (Vec<E, N>)_mm512_maskz_sqrt_ps(-1, (__m512)v);
  if constexpr (kBytes == 64 && !kFloat) return (Vec<E, N>)_mm512_maskz_sqrt_pd(-1, (__m512d)v);
#elif defined(__AVX__)
  if constexpr (kBytes == 32 && kFloat) return (Vec<E, N>)_mm256_sqrt_ps((__m256)v);
  if constexpr (kBytes == 32 && !kFloat) return (Vec<E, N>)_mm256_sqrt_pd((__m256d)v);
#elif defined(__SSE2__)
  if constexpr (kBytes == 16 && kFloat) return (Vec<E, N>)_mm_sqrt_ps((__m128)v);
  if constexpr (kBytes == 16 && !kFloat) return (Vec<E, N>)_mm_sqrt_pd((__m128d)v);
#elif defined(__aarch64__)
  if constexpr (kBytes == 16 && kFloat) return (Vec<E, N>)vsqrtq_f32((float32x4_t)v);
  if constexpr (kBytes == 16 && !kFloat) return (Vec<E, N>)vsqrtq_f64((float64x2_t)v);
#endif
  for (int i = 0; i < N; ++i) {
    v[i] = kFloat ? static_cast<E>(__builtin_sqrtf(static_cast<float>(v[i])))
                  : static_cast<E>(__builtin_sqrt(static_cast<double>(v[i])));
  }
  return v;
}

constexpr int kMostLoads = 16;  // of a row that are added without a call

/// Factors of rows of one dtype. The rows' elements are brought in by T (rope_cpu_lanes.h).
template <class T, int kLanes>
struct RowFactors {
  using Element = typename T::Element;
  using E = typename T::Compute;
  static constexpr int64_t kLoad = 2 * kLanes;  // elements of one load
  using V = Vec<E, kLanes>;

  // Loads in order are not brought back in order by themselves, but two of them together.
  static constexpr bool kInBlocks = !T::kDealt && sizeof(E) == 4;

  /// `loaded` as T::load gives it -> sums of the squares of neighbours, in order or in blocks.
  static ROPE_INLINE V squares(Two<E, kLanes> loaded) {
    if constexpr (T::kFusedSums) {  // the squares are exact
      const auto u = deal_blocks(loaded);
      return T::template multiply_add<kLanes>(u.b, u.b, u.a * u.a);
    }
    const V a = loaded.a * loaded.a, b = loaded.b * loaded.b;
    if constexpr (T::kDealt) return a + b;
    if constexpr (kInBlocks) return add_in_blocks<E, kLanes>(a, b);
    return add_neighbours<E, kLanes>(a, b);
  }

  /// The pairwise sum of what squares_of_load(index) gives of `count` loads, down to one vector.
  template <int count, class Squares>
  static ROPE_INLINE V add_loads(const Squares& squares_of_load) {
    if constexpr (!kInBlocks) {
      return add_pairwise<E, kLanes, count>(squares_of_load);
    } else if constexpr (count == 1) {
      const V sums = squares_of_load(0);
      return shuffle<typename Shuffles<E, kLanes>::FromBlocks, E, kLanes>(sums, sums);
    } else {
      return add_pairwise<E, kLanes, count / 2>([&](int64_t i) {
        const V sums = add_in_blocks<E, kLanes>(squares_of_load(2 * i), squares_of_load(2 * i + 1));
        return shuffle<ByVector<kLanes>, E, kLanes>(sums, sums);
      });
    }
  }

  /// Those of elements [begin, begin + kLoad) of a row; what lies beyond dim counts as 0.
  static ROPE_INLINE V squares_at(const Element* x, int64_t dim, int64_t begin) {
    if (begin + kLoad <= dim) return squares(T::template load<kLanes>(x + begin));
    if (begin >= dim) return V{};
    Element tail[kLoad] = {};
    std::memcpy(tail, x + begin, (dim - begin) * sizeof(Element));
    return squares(T::template load<kLanes>(tail));
  }

  /// The sums of a row that is at most `count` loads long, or exactly, in one vector. Clears
  /// `moderate` unless all its elements are known to be.
  template <int count, bool exactly>
  static ROPE_INLINE V row_sums(const Element* x, int64_t dim, bool& moderate) {
    if constexpr (T::kPairwise) {
      const int64_t last = dim - kLoad;  // where a whole load may begin
      const bool row_is =
          last >= 0 && all_moderate(x, last, std::make_integer_sequence<int, count>());
      moderate &= row_is;
      if (row_is) {
        return add_loads<count>([&](int64_t i) {
          const auto pairs = exactly
                                 ? load_vec<Vec<Element, kLoad>>(x + i * kLoad)
                                 : T::template load_at_most<kLanes>(x + i * kLoad, dim - i * kLoad);
          return T::template dot<kLanes>(pairs, pairs);
        });
      }
    }
    return add_loads<count>([&](int64_t i) {
      return exactly ? squares(T::template load<kLanes>(x + i * kLoad))
                     : squares_at(x, dim, i * kLoad);
    });
  }
  template <int... Load>
  static ROPE_INLINE bool all_moderate(const Element* x, int64_t last,
                                       std::integer_sequence<int, Load...>) {
    return T::template moderate<kLanes>(
        load_vec<Vec<Element, kLoad>>(x + (Load * kLoad < last ? Load * kLoad : last))...);
  }

  /// The same for a row of any length up to `loads`, a power of two.
  static V long_row_sums(const Element* x, int64_t dim, int64_t loads) {
    bool moderate = false;
    if (loads <= kMostLoads) return row_sums<kMostLoads, false>(x, dim, moderate);
    const int64_t half = loads / 2, size = half * kLoad;
    const V a = long_row_sums(x, dim, half);
    const V b = dim > size ? long_row_sums(x + size, dim - size, half) : V{};
    return add_neighbours<E, kLanes>(a, b);
  }

  /// The factors of rows [0, count), count <= kLanes, x_stride elements apart; sums_of(row) gives a
  /// row's sums in one vector.
  template <class SumsOf>
  static ROPE_INLINE V compute_vector(const Element* x, int64_t x_stride, int64_t count,
                                      int64_t dim, E eps, const SumsOf& sums_of) {
    V of_row[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) of_row[i] = i < count ? sums_of(x + i * x_stride) : V{};
    const V sums = add_pairwise<E, kLanes, kLanes>([&](int64_t i) { return of_row[i]; });
    const E share = static_cast<E>(1.0 / static_cast<double>(dim));
    return (V{} + E{1}) / square_root<E, kLanes>(sums * share + eps);
  }

  template <int loads>
  static ROPE_INLINE V compute_loads(const Element* x, int64_t x_stride, int64_t count, int64_t dim,
                                     E eps, bool& moderate) {
    if constexpr (loads > kMostLoads) {
      moderate = false;
      int64_t most = loads;
      while (most * kLoad < dim) most *= 2;
      return compute_vector(x, x_stride, count, dim, eps,
                            [&](const Element* row) { return long_row_sums(row, dim, most); });
    } else if (dim == loads * kLoad) {
      return compute_vector(x, x_stride, count, dim, eps, [&](const Element* row) {
        return row_sums<loads, true>(row, dim, moderate);
      });
    } else if (dim < loads * kLoad) {
      moderate = false;
      return compute_vector(x, x_stride, count, dim, eps, [&](const Element* row) {
        return row_sums<loads, false>(row, dim, moderate);
      });
    } else {
      return compute_loads<2 * loads>(x, x_stride, count, dim, eps, moderate);
    }
  }

  /// The factors of any number of rows; `factors` has room for whole vectors. Returns whether the
  /// rows are known to be of moderate elements (T::moderate) and the factors at least 2^-11.
  static bool compute(const Element* x, int64_t x_stride, int64_t count, int64_t dim, E eps,
                      E* factors) {
    bool moderate = T::kPairwise;
    for (int64_t row = 0; row < count; row += kLanes) {
      const int64_t left = count - row, rows = left < kLanes ? left : kLanes;
      const V of_rows = compute_loads<1>(x + row * x_stride, x_stride, rows, dim, eps, moderate);
      if constexpr (T::kPairwise) moderate &= T::template all_at_least<kLanes>(of_rows, 0x1p-11f);
      store_vec(factors + row, of_rows);
    }
    return moderate;
  }
};

}  // namespace
}  // namespace npu_rope::ROPE_ISA
