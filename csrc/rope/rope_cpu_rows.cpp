// The rotation of one thread's share. Compiled once for each instruction set, with ROPE_ISA naming
// the namespace; so nothing here may have external linkage but rotate_range, and neither ATen nor
// inline functions of the standard library may be used: the linker would keep one copy for all.
#include "rope_cpu_rows.h"

#include "rope_cpu_lanes.h"
#include "rope_cpu_norm.h"

namespace npu_rope::ROPE_ISA {
namespace {

constexpr int64_t kMaxDim = 1024;       // of a head
constexpr int64_t kTableBytes = 32768;  // prepared tables of a block of tokens
// Where 16-bit rows follow each other in memory and need little arithmetic, the hardware's
// prefetcher does best with short blocks and groups; elsewhere the next group is prefetched by
// instructions, which need longer ones.
constexpr int64_t kBlockTokens = 8, kDenseBlockTokens = 1;
constexpr int64_t kGroupHeads = 16;                                // of one token, rotated together
constexpr int64_t kDenseGroupHeads = kVectorBytes == 64 ? 4 : 16;  // fewer, more table loads
constexpr int64_t kLineBytes = 64;
constexpr int kIntoL2 = 2;  // of __builtin_prefetch: L1 has too few misses in flight

/// From which order to which a row is rotated.
enum class Order { kHalf, kInterleaved, kInterleavedToHalf, kHalfToInterleaved };

constexpr bool reads_interleaved(Order order) {
  return order == Order::kInterleaved || order == Order::kInterleavedToHalf;
}
constexpr bool writes_interleaved(Order order) {
  return order == Order::kInterleaved || order == Order::kHalfToInterleaved;
}

// Lanes as T::load gives them <-> lanes in the elements' order.

template <class T, class E, int N>
ROPE_INLINE Two<E, N> in_order(Two<E, N> loaded) {
  if constexpr (T::kDealt) return merge(loaded);
  return loaded;
}
template <class T, class E, int N>
ROPE_INLINE Two<E, N> as_loaded(Two<E, N> ordered) {
  if constexpr (T::kDealt) return deal(ordered);
  return ordered;
}

/// Any NaN as the standard one, whose low bits are zeros, which BFloat16's rounding relies on.
template <class E>
ROPE_INLINE E without_nan_payload(E value) {
  return value == value ? value : E{} + __builtin_nanf("");
}
template <class E, int N>
ROPE_INLINE Two<E, N> without_nan_payload(Two<E, N> v) {
  return {without_nan_payload(v.a), without_nan_payload(v.b)};
}

// A whole step is 2 * N pairs: two vectors of first partners, two of second ones. A half step is N
// pairs in two vectors together. Both carry a vector's width to an overload.
template <int N>
struct Whole {};
template <int N>
struct Half {};
struct Single {};

/// Cuts pairs into whole steps, then half steps of ever narrower vectors, then single pairs, and
/// calls f(step, first pair).
template <int N, int Narrowest, class F>
ROPE_INLINE void for_each_half_step(int64_t pairs, const F& f, int64_t first) {
  if (first + N <= pairs) {
    f(Half<N>(), first);
    first += N;
  }
  if constexpr (N > Narrowest) {
    for_each_half_step<N / 2, Narrowest>(pairs, f, first);
  } else {
    for (; first < pairs; ++first) f(Single(), first);
  }
}
template <int N, int Narrowest, class F>
ROPE_INLINE void for_each_step(int64_t pairs, const F& f) {
  int64_t first = 0;
  for (; first + 2 * N <= pairs; first += 2 * N) f(Whole<N>(), first);
  for_each_half_step<N, Narrowest>(pairs, f, first);
}

/// What a product is before it goes into a sum.
enum class Products {
  kInCompute,  // rounded to Compute
  kExact,      // exact in Compute, where two 16-bit factors allow it
  kInElement,  // rounded to T: round_each
};

/// The rotation of rows, of normalized ones where `norms`.
template <class T, Order order, Products products, bool norms>
struct Rotation {
  static_assert(!norms || products != Products::kExact, "a normalized row has no 16-bit factors");
  using Element = typename T::Element;
  using Compute = typename T::Compute;
  using Table = Native<Compute>;
  static constexpr int kLanes = kVectorBytes / sizeof(Compute);
  static constexpr int kLineElements = kLineBytes / sizeof(Element);
  static constexpr int kNarrowest = 16 / sizeof(Compute);
  static constexpr bool kLight = sizeof(Element) == 2 && !norms && products != Products::kInElement;
  static constexpr bool kPairwise = T::kPairwise && products == Products::kExact;
  static constexpr bool kModerately = T::kPairwise && (products == Products::kInElement || norms);

  // The prepared table of a token has four values for each pair, with the sign inside sin1,
  //   y1 = x1 * cos1 + x2 * sin1,  y2 = x2 * cos2 + x1 * sin2,
  // and lies step by step in the lanes' order: cos1, sin1, cos2, sin2 of a whole step, and of a
  // half one cos1 and cos2 together, then sin1 and sin2.
  //
  // A moderate table's magnitudes lie between 2^-40 and 2^40 or are 0: with moderate elements (of
  // T::moderate) no product and no sum is then subnormal or overflows. If it is to be used
  // pairwise, as T::dot wants it, every N pairs of a step have N times (cos1, sin1) in 32 bits,
  // then N times (sin2, cos2), in the pairs' order.

  struct Prepared {
    const Compute* values;
    Compute* end;
    bool moderate;
  };

  /// Of some rows that are normalized before they are rotated.
  struct Scales {
    const Compute* weights;  // two a pair, in the table's lanes: those of x1 and those of x2
    const Compute* factors;  // one a head
    bool moderate;           // with a moderate table no product and no sum is subnormal
  };

  // What a step needs of a token's table and, where rows are normalized, of the weights.
  template <int N>
  struct WholeStep {
    Two<Compute, N> cos1, sin1, cos2, sin2, weight1, weight2;
  };
  template <int N>
  struct HalfStep {
    Two<Compute, N> cos, sin, weight;
  };

  template <class F>
  static ROPE_INLINE void for_each_step(int64_t pairs, const F& f) {
    ROPE_ISA::for_each_step<kLanes, kNarrowest>(pairs, f);
  }

  // Interleaved pairs as T::load gives them <-> the first partners in a, the second ones in b.
  // Where the order stays, the table's lanes follow theirs (as_rotated).

  template <int N>
  static ROPE_INLINE Two<Compute, N> to_pairs(Two<Compute, N> loaded) {
    if constexpr (T::kDealt) return loaded;
    if constexpr (order == Order::kInterleaved) return deal_blocks(loaded);
    return deal(loaded);
  }
  template <int N>
  static ROPE_INLINE Two<Compute, N> from_pairs(Two<Compute, N> pairs) {
    if constexpr (T::kDealt) return pairs;
    if constexpr (order == Order::kInterleaved) return merge_blocks(pairs);
    return merge(pairs);
  }
  template <int N>
  static ROPE_INLINE Two<Compute, N> as_rotated(Two<Compute, N> ordered) {
    if constexpr (order == Order::kHalf) return as_loaded<T>(ordered);
    if constexpr (order == Order::kInterleaved && !T::kDealt) return to_blocks(ordered);
    return ordered;
  }

  /// x * cos + partner * sin
  static ROPE_INLINE Compute rotated(Compute x, Compute cos, Compute partner, Compute sin) {
    if constexpr (products == Products::kInElement) {
      return T::rounded(x * cos) + T::rounded(partner * sin);
    }
    return x * cos + partner * sin;
  }
  template <class U, int N>
  static ROPE_INLINE Two<Compute, N> rotated(Two<Compute, N> x, Two<Compute, N> cos,
                                             Two<Compute, N> partner, Two<Compute, N> sin) {
    Two<Compute, N> p = {x.a * cos.a, x.b * cos.b};
    if constexpr (products == Products::kExact && T::kFusedSums) {
      return {T::template multiply_add<N>(partner.a, sin.a, p.a),
              T::template multiply_add<N>(partner.b, sin.b, p.b)};
    }
    Two<Compute, N> r = {partner.a * sin.a, partner.b * sin.b};
    if constexpr (products == Products::kInElement) {
      if constexpr (!std::is_same_v<U, T>) return U::template sum_of_rounded<N>(p, r);
      p = T::rounded(p);
      r = T::rounded(r);
    }
    return {p.a + r.a, p.b + r.b};
  }

  /// 2 * N elements at each.
  template <int N>
  static ROPE_INLINE void prefetch(const Element* p, const Element* q) {
    for (int i = 0; i < 2 * N; i += kLineElements) {
      __builtin_prefetch(p + i, 0, kIntoL2);
      __builtin_prefetch(q + i, 0, kIntoL2);
    }
  }

  /// x * factor * weight
  static ROPE_INLINE Compute normalized(Compute x, Compute factor, Compute weight) {
    const Compute n = x * factor * weight;
    return products == Products::kInElement ? T::rounded(n) : n;
  }
  template <int N>
  static ROPE_INLINE Two<Compute, N> normalized(Two<Compute, N> x, Compute factor,
                                                Two<Compute, N> weight) {
    const Two<Compute, N> n = {x.a * factor * weight.a, x.b * factor * weight.b};
    return products == Products::kInElement ? T::rounded(n) : n;
  }

  /// Some heads of one token. x and y are the first elements of the first head's rotated slice, and
  /// may be the same unless the order changes. Prefetches what lies `ahead` elements further.
  static ROPE_INLINE void rotate_heads(const Element* x, Element* y, int64_t x_stride,
                                       int64_t y_stride, int64_t heads, int64_t pairs,
                                       Prepared table, int64_t ahead, Scales scales) {
    if constexpr (kPairwise) {
      if (table.moderate) {  // little arithmetic: head by head, as memory likes it
        for (int64_t head = 0; head < heads; ++head, x += x_stride, y += y_stride) {
          if (ahead) {
            for (int64_t i = 0; i < 2 * pairs; i += kLineElements) {
              __builtin_prefetch(x + ahead + i, 0, kIntoL2);
            }
          }
          for_each_step(pairs, [&](auto step, int64_t first) {
            rotate_pairs(step, x, y, pairs, first, table.values + 2 * first);
          });
        }
        return;
      }
    }
    // Step by step, so that the table stays in registers.
    for_each_step(pairs, [&](auto step, int64_t first) {
      rotate_step(step, x, y, x_stride, y_stride, heads, pairs, first, table.values + 4 * first,
                  table.moderate, ahead, scales);
    });
  }

  template <class U, int N>
  static ROPE_INLINE void rotate_whole(const Element* x, Element* y, int64_t pairs, int64_t first,
                                       const WholeStep<N>& step, Compute factor) {
    Two<Compute, N> x1, x2;
    if constexpr (reads_interleaved(order)) {
      const auto u = to_pairs(U::template load<N>(x + 2 * first));
      const auto v = to_pairs(U::template load<N>(x + 2 * first + 2 * N));
      x1 = {u.a, v.a};
      x2 = {u.b, v.b};
    } else {
      x1 = U::template load<N>(x + first);
      x2 = U::template load<N>(x + pairs + first);
      if constexpr (writes_interleaved(order)) {
        x1 = in_order<T>(x1);
        x2 = in_order<T>(x2);
      }
    }
    if constexpr (norms) {
      x1 = normalized<N>(x1, factor, step.weight1);
      x2 = normalized<N>(x2, factor, step.weight2);
    }
    const Two<Compute, N> y1 = rotated<U, N>(x1, step.cos1, x2, step.sin1),
                          y2 = rotated<U, N>(x2, step.cos2, x1, step.sin2);
    if constexpr (writes_interleaved(order)) {
      U::template store<N>(y + 2 * first, from_pairs(Two<Compute, N>{y1.a, y2.a}));
      U::template store<N>(y + 2 * first + 2 * N, from_pairs(Two<Compute, N>{y1.b, y2.b}));
    } else if constexpr (reads_interleaved(order)) {
      U::template store<N>(y + first, as_loaded<T>(y1));
      U::template store<N>(y + pairs + first, as_loaded<T>(y2));
    } else {
      U::template store<N>(y + first, y1);
      U::template store<N>(y + pairs + first, y2);
    }
  }

  template <class U, int N>
  static ROPE_INLINE void rotate_half(const Element* x, Element* y, int64_t pairs, int64_t first,
                                      const HalfStep<N>& step, Compute factor) {
    constexpr bool reads = reads_interleaved(order), writes = writes_interleaved(order);
    Two<Compute, N> u;
    if constexpr (reads) {
      u = to_pairs(U::template load<N>(x + 2 * first));
    } else {
      u = U::template load<N>(x + first, x + pairs + first);
      if constexpr (writes) u = in_order<T>(u);
    }
    if constexpr (norms) u = normalized<N>(u, factor, step.weight);
    Two<Compute, N> partner = {u.b, u.a};
    if constexpr (T::kDealt && !reads && !writes) {
      partner = {swap_halves<Compute, N>(u.a), swap_halves<Compute, N>(u.b)};
    }
    Two<Compute, N> v = rotated<U, N>(u, step.cos, partner, step.sin);
    if constexpr (writes) {
      U::template store<N>(y + 2 * first, from_pairs(v));
    } else {
      if constexpr (reads) v = as_loaded<T>(v);
      U::template store<N>(y + first, y + pairs + first, v);
    }
  }

  template <int N>
  static ROPE_INLINE void rotate_step(Whole<N>, const Element* x, Element* y, int64_t x_stride,
                                      int64_t y_stride, int64_t heads, int64_t pairs, int64_t first,
                                      const Compute* table, bool moderate, int64_t ahead,
                                      Scales scales) {
    const auto entries = [&](int place) { return Table::template load<N>(table + place * 2 * N); };
    WholeStep<N> step = {entries(0), entries(1), entries(2), entries(3), {}, {}};
    if constexpr (norms) {
      step.weight1 = Table::template load<N>(scales.weights + 2 * first);
      step.weight2 = Table::template load<N>(scales.weights + 2 * first + 2 * N);
    }
    for (int64_t head = 0; head < heads; ++head, x += x_stride, y += y_stride) {
      if (ahead) prefetch<N>(x + first + ahead, x + pairs + first + ahead);
      const Compute factor = norms ? scales.factors[head] : Compute{1};
      if constexpr (kModerately) {
        using H = Vec<Element, 2 * N>;
        const auto elements = [&] {
          if constexpr (norms) return scales.moderate;
          constexpr bool reads = reads_interleaved(order);
          const H u = load_vec<H>(x + (reads ? 2 * first : first));
          const H v = load_vec<H>(x + (reads ? 2 * first + 2 * N : pairs + first));
          return T::template none_small<N>(u, v);
        };
        if (moderate && elements()) {
          rotate_whole<typename T::Moderate, N>(x, y, pairs, first, step, factor);
          continue;
        }
      }
      rotate_whole<T, N>(x, y, pairs, first, step, factor);
    }
  }

  template <int N>
  static ROPE_INLINE void rotate_step(Half<N>, const Element* x, Element* y, int64_t x_stride,
                                      int64_t y_stride, int64_t heads, int64_t pairs, int64_t first,
                                      const Compute* table, bool moderate, int64_t ahead,
                                      Scales scales) {
    HalfStep<N> step = {Table::template load<N>(table), Table::template load<N>(table + 2 * N), {}};
    if constexpr (norms) step.weight = Table::template load<N>(scales.weights + 2 * first);
    for (int64_t head = 0; head < heads; ++head, x += x_stride, y += y_stride) {
      if (ahead) prefetch<N>(x + first + ahead, x + pairs + first + ahead);
      const Compute factor = norms ? scales.factors[head] : Compute{1};
      if constexpr (kModerately) {
        const auto elements = [&] {
          if constexpr (norms) return scales.moderate;
          return T::template none_small<N>(load_pairs<N>(x, pairs, first));
        };
        if (moderate && elements()) {
          rotate_half<typename T::Moderate, N>(x, y, pairs, first, step, factor);
          continue;
        }
      }
      rotate_half<T, N>(x, y, pairs, first, step, factor);
    }
  }

  template <int N>
  static ROPE_INLINE Vec<Element, 2 * N> load_pairs(const Element* x, int64_t pairs,
                                                    int64_t first) {
    using H = Vec<Element, N>;
    if constexpr (reads_interleaved(order)) return load_vec<Vec<Element, 2 * N>>(x + 2 * first);
    return T::template pair_up<N, 0>(load_vec<H>(x + first), load_vec<H>(x + pairs + first));
  }

  static ROPE_INLINE void rotate_pairs(Single, const Element* x, Element* y, int64_t pairs,
                                       int64_t pair, const Compute* table) {
    Element entry[4];
    std::memcpy(entry, table, sizeof(entry));
    const Compute values[] = {T::read(&entry[0]), T::read(&entry[3]), T::read(&entry[1]),
                              T::read(&entry[2])};
    rotate_step(Single(), x, y, 0, 0, 1, pairs, pair, values, false, 0, {});
  }

  template <int N>
  static ROPE_INLINE void rotate_pairs(Whole<N>, const Element* x, Element* y, int64_t pairs,
                                       int64_t first, const Compute* table) {
    using H = Vec<Element, 2 * N>;
    const int64_t other = reads_interleaved(order) ? 2 * first + 2 * N : pairs + first;
    H u = load_vec<H>(x + (reads_interleaved(order) ? 2 * first : first));
    H v = load_vec<H>(x + other);
    if (!__builtin_expect(T::template moderate<N>(u, v), true)) {
      rotate_pairs(Half<N>(), x, y, pairs, first, table);
      rotate_pairs(Half<N>(), x, y, pairs, first + N, table + 2 * N);
      return;
    }
    if constexpr (!reads_interleaved(order)) {
      const H x1 = u, x2 = v;
      u = T::template pair_up<N, 0>(x1, x2);
      v = T::template pair_up<N, N>(x1, x2);
    }
    const auto dot = [&](H pairs, int place) {
      return T::template dot<N>(pairs, load_vec<H>(table + place * N));
    };
    const Two<Compute, N> y1 = {dot(u, 0), dot(v, 2)}, y2 = {dot(u, 1), dot(v, 3)};
    if constexpr (writes_interleaved(order)) {
      const auto store = [&](int64_t place, Two<Compute, N> y12) {
        store_vec(y + place, T::template as_pairs<N>(T::template narrow_in_order<N>(y12)));
      };
      store(2 * first, {y1.a, y2.a});
      store(2 * first + 2 * N, {y1.b, y2.b});
    } else {
      store_vec(y + first, T::template narrow_in_order<N>(y1));
      store_vec(y + pairs + first, T::template narrow_in_order<N>(y2));
    }
  }

  template <int N>
  static ROPE_INLINE void rotate_pairs(Half<N>, const Element* x, Element* y, int64_t pairs,
                                       int64_t first, const Compute* table) {
    using H = Vec<Element, 2 * N>;
    const H u = load_pairs<N>(x, pairs, first);
    const H t1 = load_vec<H>(table), t2 = load_vec<H>(table + N);
    H v;  // all y1, then all y2
    if (__builtin_expect(T::template moderate<N>(u), true)) {
      v = T::template narrow_in_order<N>({T::template dot<N>(u, t1), T::template dot<N>(u, t2)});
    } else {
      const auto wide = [](H pairs) { return T::widen(bit_cast<Vec<uint32_t, N>>(pairs)); };
      const Two<Compute, N> x12 = wide(u), first = wide(t1), second = wide(t2);
      const Two<Compute, N> y12 = {x12.a * first.a + x12.b * first.b,
                                   x12.a * second.a + x12.b * second.b};
      v = T::template from_pairs<N>(T::narrow(y12));
    }
    if constexpr (writes_interleaved(order)) {
      store_vec(y + 2 * first, T::template as_pairs<N>(v));
    } else {
      store_halves<N>(y + first, y + pairs + first, v);
    }
  }

  static ROPE_INLINE void rotate_step(Single, const Element* x, Element* y, int64_t x_stride,
                                      int64_t y_stride, int64_t heads, int64_t pairs, int64_t pair,
                                      const Compute* table, bool, int64_t, Scales scales) {
    constexpr bool reads = reads_interleaved(order), writes = writes_interleaved(order);
    const Compute cos1 = table[0], cos2 = table[1], sin1 = table[2], sin2 = table[3];
    for (int64_t head = 0; head < heads; ++head, x += x_stride, y += y_stride) {
      Compute x1 = T::read(x + (reads ? 2 * pair : pair));
      Compute x2 = T::read(x + (reads ? 2 * pair + 1 : pairs + pair));
      if constexpr (norms) {
        x1 = normalized(x1, scales.factors[head], scales.weights[2 * pair]);
        x2 = normalized(x2, scales.factors[head], scales.weights[2 * pair + 1]);
      }
      T::write(y + (writes ? 2 * pair : pair), rotated(x1, cos1, x2, sin1));
      T::write(y + (writes ? 2 * pair + 1 : pairs + pair), rotated(x2, cos2, x1, sin2));
    }
  }

  /// One table row of dtype S to Compute, rounded to T on the way if asked for: from entry i on, in
  /// ever narrower vectors.
  template <class S, int N>
  static ROPE_INLINE void widen_from(int64_t i, const typename S::Element* table, int64_t size,
                                     bool round, Compute* row) {
    for (; i + 2 * N <= size; i += 2 * N) {
      auto v = without_nan_payload(in_order<S>(S::template load<N>(table + i)));
      if (round) v = T::rounded(v);
      Table::template store<N>(row + i, v);
    }
    if constexpr (N > kNarrowest) {
      widen_from<S, N / 2>(i, table, size, round, row);
    } else {
      widen_singly<S>(i, table, size, round, row);
    }
  }
  template <class S>
  static ROPE_INLINE void widen_singly(int64_t i, const typename S::Element* table, int64_t size,
                                       bool round, Compute* row) {
    for (; i < size; ++i) {
      const Compute value = without_nan_payload(static_cast<Compute>(S::read(table + i)));
      row[i] = round ? T::rounded(value) : value;
    }
  }

  template <class S>
  static void widen(const void* table, int64_t size, bool round, Compute* row) {
    const auto* from = static_cast<const typename S::Element*>(table);
    if constexpr (sizeof(typename S::Compute) == sizeof(Compute)) {
      widen_from<S, kLanes>(0, from, size, round, row);
    } else {
      widen_singly<S>(0, from, size, round, row);
    }
  }

  static void widen(DType dtype, const void* table, int64_t size, bool round, Compute* row) {
    switch (dtype) {
      case DType::kFloat16:
        return widen<Float16>(table, size, round, row);
      case DType::kBFloat16:
        return widen<BFloat16>(table, size, round, row);
      case DType::kFloat32:
        return widen<Float32>(table, size, round, row);
      case DType::kFloat64:
        return widen<Float64>(table, size, round, row);
    }
  }

  static Prepared prepare_table(const RopeGeometry& geometry, const RopePointers& pointers,
                                int64_t batch, int64_t token, Compute* table) {
    const DType dtype = geometry.table_dtype;
    const int64_t pairs = geometry.rotary_dim / 2;
    const int64_t size = geometry.half_tables ? pairs : geometry.rotary_dim;
    const int64_t bytes = dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
    const bool round = geometry.cast_tables && dtype != geometry.dtype;
    const int64_t cos_offset = batch * geometry.cos.batch + token * geometry.cos.token;
    const int64_t sin_offset = batch * geometry.sin.batch + token * geometry.sin.token;
    Compute cos[kMaxDim], sin[kMaxDim];
    widen(dtype, static_cast<const char*>(pointers.cos) + cos_offset * bytes, size, round, cos);
    widen(dtype, static_cast<const char*>(pointers.sin) + sin_offset * bytes, size, round, sin);

    // Full tables lie like the rotated row; the second half of half tables is the first one.
    constexpr bool interleaved = order == Order::kInterleaved;
    const bool dealt = interleaved && !geometry.half_tables;
    const int64_t second = geometry.half_tables ? 0 : pairs;
    const bool transpose = geometry.transpose;
    bool moderate = false;
    if constexpr (kPairwise || kModerately) {
      moderate = moderate_or_zero(cos, size, 0x1p40f) && moderate_or_zero(sin, size, 0x1p40f);
    }
    const bool pairwise = kPairwise && moderate;

    const int64_t floats = pairwise ? 2 : 4;  // of a pair
    for_each_step(pairs, [&](auto step, int64_t first) {
      arrange(step, cos, sin, first, second, dealt, transpose, pairwise, table + floats * first);
    });
    return {table, table + floats * pairs, moderate};
  }

  /// Whether every magnitude lies between 1 / largest and largest, or is 0.
  static bool moderate_or_zero(const float* row, int64_t size, float largest) {
    const uint32_t least = bit_cast<uint32_t>(1 / largest);
    const uint32_t range = bit_cast<uint32_t>(largest) - least;
    uint32_t outside = 0;
    for (int64_t i = 0; i < size; ++i) {
      const uint32_t magnitude = bit_cast<uint32_t>(row[i]) & 0x7fffffffu;
      outside |= magnitude - least > range && magnitude != 0;
    }
    return !outside;
  }

  /// The partners' table values of pairs [first, first + 2N), in the pairs' order.
  template <int N>
  static ROPE_INLINE void take(const Compute* row, int64_t first, int64_t second, bool dealt,
                               Two<Compute, N>& value1, Two<Compute, N>& value2) {
    if (dealt) {
      const auto u = deal(Table::template load<N>(row + 2 * first));
      const auto v = deal(Table::template load<N>(row + 2 * first + 2 * N));
      value1 = {u.a, v.a};
      value2 = {u.b, v.b};
    } else {
      value1 = Table::template load<N>(row + first);
      value2 = Table::template load<N>(row + second + first);
    }
  }

  template <int N>
  static ROPE_INLINE void arrange(Whole<N>, const Compute* cos, const Compute* sin, int64_t first,
                                  int64_t second, bool dealt, bool transpose, bool pairwise,
                                  Compute* table) {
    Two<Compute, N> cos1, cos2, sin1, sin2;
    take<N>(cos, first, second, dealt, cos1, cos2);
    take<N>(sin, first, second, dealt, sin1, sin2);
    const Two<Compute, N> minus_sin1 = {-sin1.a, -sin1.b};
    const auto signed_sin1 = transpose ? sin2 : minus_sin1;
    const auto signed_sin2 = transpose ? minus_sin1 : sin2;
    if constexpr (kPairwise) {
      if (pairwise) {
        put_pairs<N>(table, cos1.a, signed_sin1.a, cos2.a, signed_sin2.a);
        put_pairs<N>(table + 2 * N, cos1.b, signed_sin1.b, cos2.b, signed_sin2.b);
        return;
      }
    }
    const auto put = [&](int place, Two<Compute, N> v) {
      Table::template store<N>(table + place * 2 * N, as_rotated(v));
    };
    put(0, cos1);
    put(1, signed_sin1);
    put(2, cos2);
    put(3, signed_sin2);
  }

  template <int N>
  static ROPE_INLINE void arrange(Half<N>, const Compute* cos, const Compute* sin, int64_t first,
                                  int64_t second, bool dealt, bool transpose, bool pairwise,
                                  Compute* table) {
    const auto take_both = [&](const Compute* row) {
      if (dealt) return deal(Table::template load<N>(row + 2 * first));
      return Table::template load<N>(row + first, row + second + first);
    };
    const auto both_cos = take_both(cos), both_sin = take_both(sin);
    const Vec<Compute, N> minus_sin1 = -both_sin.a, sin2 = both_sin.b;
    const Two<Compute, N> both_signed =
        transpose ? Two<Compute, N>{sin2, minus_sin1} : Two<Compute, N>{minus_sin1, sin2};
    if constexpr (kPairwise) {
      if (pairwise) {
        return put_pairs<N>(table, both_cos.a, both_signed.a, both_cos.b, both_signed.b);
      }
    }
    Table::template store<N>(table, as_rotated(both_cos));
    Table::template store<N>(table + 2 * N, as_rotated(both_signed));
  }

  /// Values that are bf16 already.
  template <int N>
  static ROPE_INLINE void put_pairs(Compute* table, Vec<Compute, N> cos1, Vec<Compute, N> sin1,
                                    Vec<Compute, N> cos2, Vec<Compute, N> sin2) {
    store_vec(table, T::narrow(Two<Compute, N>{cos1, sin1}));
    store_vec(table + N, T::narrow(Two<Compute, N>{sin2, cos2}));
  }

  static ROPE_INLINE void arrange(Single, const Compute* cos, const Compute* sin, int64_t pair,
                                  int64_t second, bool dealt, bool transpose, bool pairwise,
                                  Compute* table) {
    const int64_t i1 = dealt ? 2 * pair : pair;
    const int64_t i2 = dealt ? 2 * pair + 1 : second + pair;
    const Compute sin1 = transpose ? sin[i2] : -sin[i1], sin2 = transpose ? -sin[i1] : sin[i2];
    if (pairwise) {
      Element entry[4];
      T::write(&entry[0], cos[i1]);
      T::write(&entry[1], sin1);
      T::write(&entry[2], sin2);
      T::write(&entry[3], cos[i2]);
      std::memcpy(table, entry, sizeof(entry));
      return;
    }
    table[0] = cos[i1];
    table[1] = cos[i2];
    table[2] = sin1;
    table[3] = sin2;
  }

  /// One of q and k: its rows of a block of tokens.
  struct Rows {
    const Element* x;
    Element* y;
    RowStrides x_strides, y_strides;
    int64_t tokens, heads;
    bool in_place;
    const Element* next;  // what is rotated after them
  };

  /// Of q or k: weight_offset + weight, in the row's order and as Scales has them; ones where it is
  /// not normalized.
  struct Weights {
    bool normalize, moderate = false;
    alignas(kLineBytes) Compute in_order[kMaxDim];
    alignas(kLineBytes) Compute rotated[kMaxDim];
  };

  static void prepare_weights(const RopeGeometry& geometry, bool normalize, const void* weight,
                              Weights& weights) {
    weights.normalize = normalize;
    if (normalize) {
      widen(geometry.norm.weight_dtype, weight, geometry.head_dim, false, weights.in_order);
    }
    const auto offset = static_cast<Compute>(geometry.norm.weight_offset);
    for (int64_t i = 0; i < geometry.head_dim; ++i) {
      weights.in_order[i] = normalize ? offset + weights.in_order[i] : Compute{1};
    }
    if constexpr (kModerately) {
      weights.moderate = moderate_or_zero(weights.in_order, geometry.head_dim, 0x1p20f);
    }
    const int64_t pairs = geometry.rotary_dim / 2;
    for_each_step(pairs, [&](auto step, int64_t first) {
      arrange_weights(step, weights.in_order + geometry.rotary_offset, first, pairs,
                      weights.rotated + 2 * first);
    });
  }

  template <int N>
  static ROPE_INLINE void arrange_weights(Whole<N>, const Compute* row, int64_t first,
                                          int64_t pairs, Compute* weights) {
    Two<Compute, N> of_x1, of_x2;
    take<N>(row, first, pairs, reads_interleaved(order), of_x1, of_x2);
    Table::template store<N>(weights, as_rotated(of_x1));
    Table::template store<N>(weights + 2 * N, as_rotated(of_x2));
  }
  template <int N>
  static ROPE_INLINE void arrange_weights(Half<N>, const Compute* row, int64_t first, int64_t pairs,
                                          Compute* weights) {
    const auto both = reads_interleaved(order)
                          ? deal(Table::template load<N>(row + 2 * first))
                          : Table::template load<N>(row + first, row + pairs + first);
    Table::template store<N>(weights, as_rotated(both));
  }
  static ROPE_INLINE void arrange_weights(Single, const Compute* row, int64_t pair, int64_t pairs,
                                          Compute* weights) {
    weights[0] = row[reads_interleaved(order) ? 2 * pair : pair];
    weights[1] = row[reads_interleaved(order) ? 2 * pair + 1 : pairs + pair];
  }

  /// Of some heads of one token. Returns whether Scales::moderate holds: the sum of its squares
  /// bounds a moderate row's x * factor by 32, and with factors of at least 2^-11 and moderate
  /// weights and tables no product is below 2^-102, so that no sum of two is subnormal.
  static ROPE_INLINE bool compute_factors(const RopeGeometry& geometry, const Element* x,
                                          int64_t x_stride, int64_t heads, const Weights& weights,
                                          Compute* factors) {
    if (!weights.normalize) {
      for (int64_t i = 0; i < heads; ++i) factors[i] = 1;
      return false;
    }
    const auto eps = static_cast<Compute>(geometry.norm.eps);
    return RowFactors<T, kLanes>::compute(x, x_stride, heads, geometry.head_dim, eps, factors) &&
           weights.moderate;
  }

  /// Columns of some heads that are not rotated.
  static void normalize_rest(const RopeGeometry& geometry, const Element* x, Element* y,
                             int64_t x_stride, int64_t y_stride, int64_t heads,
                             const Weights& weights, const Compute* factors) {
    const int64_t end = geometry.rotary_offset + geometry.rotary_dim;
    for (int64_t i = 0; i < heads; ++i, x += x_stride, y += y_stride) {
      normalize(x, y, 0, geometry.rotary_offset, factors[i], weights.in_order);
      normalize(x, y, end, geometry.head_dim, factors[i], weights.in_order);
    }
  }
  static ROPE_INLINE void normalize(const Element* x, Element* y, int64_t begin, int64_t end,
                                    Compute factor, const Compute* weights) {
    int64_t i = begin;
    for (; i + 2 * kLanes <= end; i += 2 * kLanes) {
      const auto u = in_order<T>(T::template load<kLanes>(x + i));
      const auto weight = Table::template load<kLanes>(weights + i);
      T::template store<kLanes>(y + i, as_loaded<T>(normalized<kLanes>(u, factor, weight)));
    }
    for (; i < end; ++i) T::write(y + i, normalized(T::read(x + i), factor, weights[i]));
  }

  static bool is_dense(const RopeGeometry& geometry, RowStrides rows, int64_t heads) {
    return heads == 0 || (rows.head == geometry.head_dim && rows.token == heads * rows.head);
  }

  static void rotate_rows(const RopeGeometry& geometry, const Rows& rows, const Prepared* tables,
                          const Weights* weights) {
    if (rows.heads == 0) return;
    constexpr bool reorders = reads_interleaved(order) != writes_interleaved(order);
    const bool copy_first = reorders && rows.in_place;
    const bool dense = kLight && is_dense(geometry, rows.x_strides, rows.heads);
    const int64_t group = dense ? kDenseGroupHeads : kGroupHeads;
    const RowStrides from = rows.x_strides, to = rows.y_strides;
    // Head by head where that is the order in memory (BNSD), otherwise token by token.
    const bool by_head = from.token < from.head;
    const int64_t outer_size = by_head ? rows.heads : rows.tokens;
    const int64_t inner_size = by_head ? rows.tokens : rows.heads;
    const int64_t outer_step = by_head ? group : 1, inner_step = by_head ? 1 : group;
    const auto place = [&](RowStrides strides, int64_t outer, int64_t inner) {
      return by_head ? inner * strides.token + outer * strides.head
                     : outer * strides.token + inner * strides.head;
    };
    for (int64_t outer = 0, inner = 0; outer < outer_size;) {
      int64_t next_outer = outer, next_inner = inner + inner_step;
      if (next_inner >= inner_size) {
        next_outer += outer_step;
        next_inner = 0;
      }
      const int64_t token = by_head ? inner : outer, head = by_head ? outer : inner;
      const int64_t left = rows.heads - head, heads = left < group ? left : group;
      const Element* x = rows.x + place(from, outer, inner);
      Element* y = rows.y + place(to, outer, inner);
      const Element* next =
          next_outer < outer_size ? rows.x + place(from, next_outer, next_inner) : rows.next;
      const int64_t ahead = dense ? 0 : distance(x, next);
      const Prepared table = tables[token];
      alignas(kLineBytes) Compute factors[kGroupHeads];
      Scales scales = {};
      if constexpr (norms) {
        const bool moderate = compute_factors(geometry, x, from.head, heads, *weights, factors);
        scales = {weights->rotated, factors, moderate};
        if (geometry.head_dim > geometry.rotary_dim) {
          normalize_rest(geometry, x, y, from.head, to.head, heads, *weights, factors);
        }
      } else if (!rows.in_place && geometry.head_dim > geometry.rotary_dim) {
        copy_through(geometry, x, y, from.head, to.head, heads);
      }
      x += geometry.rotary_offset;
      y += geometry.rotary_offset;
      const int64_t pairs = geometry.rotary_dim / 2;
      if (copy_first) {
        for (int64_t i = 0; i < heads; ++i, ++scales.factors) {
          Element copy[kMaxDim];
          std::memcpy(copy, x + i * from.head, 2 * pairs * sizeof(Element));
          rotate_heads(copy, y + i * to.head, 0, 0, 1, pairs, table, 0, scales);
        }
      } else {
        rotate_heads(x, y, from.head, to.head, heads, pairs, table, ahead, scales);
      }
      outer = next_outer;
      inner = next_inner;
    }
  }

  /// In elements, of one tensor or of two.
  static int64_t distance(const Element* from, const Element* to) {
    return (reinterpret_cast<intptr_t>(to) - reinterpret_cast<intptr_t>(from)) /
           static_cast<int64_t>(sizeof(Element));
  }

  /// What of some heads is not rotated.
  static void copy_through(const RopeGeometry& geometry, const Element* x, Element* y,
                           int64_t x_stride, int64_t y_stride, int64_t heads) {
    const int64_t end = geometry.rotary_offset + geometry.rotary_dim;
    for (; heads > 0; --heads, x += x_stride, y += y_stride) {
      std::memcpy(y, x, geometry.rotary_offset * sizeof(Element));
      std::memcpy(y + end, x + end, (geometry.head_dim - end) * sizeof(Element));
    }
  }

  static Rows rows_of(const void* x, void* y, RowStrides x_strides, RowStrides y_strides,
                      bool in_place, int64_t batch, int64_t token, int64_t head_begin,
                      int64_t head_end, int64_t tokens) {
    const auto place = [&](RowStrides strides) {
      return batch * strides.batch + token * strides.token + head_begin * strides.head;
    };
    return {static_cast<const Element*>(x) + place(x_strides),
            static_cast<Element*>(y) + place(y_strides),
            x_strides,
            y_strides,
            tokens,
            head_end - head_begin,
            in_place,
            nullptr};
  }

  static void rotate(const RopeGeometry& geometry, const RopePointers& pointers,
                     const RopeRange& range) {
    Weights weights[norms ? 2 : 1];
    if constexpr (norms) {
      prepare_weights(geometry, geometry.norm.q, pointers.q_weight, weights[0]);
      prepare_weights(geometry, geometry.norm.k, pointers.k_weight, weights[1]);
    }
    for_each_block(geometry, pointers, range,
                   [&](const Rows& q, const Rows& k, const Prepared* tables) {
                     rotate_rows(geometry, q, tables, &weights[0]);
                     rotate_rows(geometry, k, tables, &weights[norms]);
                   });
  }

  /// Calls f(q's rows, k's rows, their tables) for blocks of tokens.
  template <class F>
  static ROPE_INLINE void for_each_block(const RopeGeometry& geometry, const RopePointers& pointers,
                                         const RopeRange& range, const F& f) {
    alignas(kLineBytes) Compute values[kTableBytes / sizeof(Compute)];
    Prepared tables[kBlockTokens];
    const int64_t table_size = 2 * geometry.rotary_dim;
    int64_t block =
        kTableBytes / static_cast<int64_t>(sizeof(Compute)) / (table_size + (table_size == 0));
    const bool dense = is_dense(geometry, geometry.q, range.q_head_end - range.q_head_begin) &&
                       is_dense(geometry, geometry.k, range.k_head_end - range.k_head_begin);
    const int64_t longest = dense ? kDenseBlockTokens : kBlockTokens;
    if (block > longest) block = longest;
    if (block < 1) block = 1;
    for (int64_t token = range.token_begin; token < range.token_end; token += block) {
      const int64_t left = range.token_end - token;
      const int64_t tokens = left < block ? left : block;
      Compute* end = values;
      for (int64_t i = 0; i < tokens; ++i) {
        tables[i] = prepare_table(geometry, pointers, range.batch, token + i, end);
        end = tables[i].end;
      }
      Rows q = rows_of(pointers.q, pointers.q_out, geometry.q, geometry.q_out, geometry.q_in_place,
                       range.batch, token, range.q_head_begin, range.q_head_end, tokens);
      Rows k = rows_of(pointers.k, pointers.k_out, geometry.k, geometry.k_out, geometry.k_in_place,
                       range.batch, token, range.k_head_begin, range.k_head_end, tokens);
      q.next = k.heads > 0 ? k.x : q.x + tokens * q.x_strides.token;
      k.next = q.heads > 0 ? q.x + tokens * q.x_strides.token : k.x + tokens * k.x_strides.token;
      f(q, k, tables);
    }
  }
};

template <class T, Products products, bool norms>
void rotate_range_of(const RopeGeometry& geometry, const RopePointers& pointers,
                     const RopeRange& range) {
  switch (geometry.style) {
    case Style::kHalf:
      return Rotation<T, Order::kHalf, products, norms>::rotate(geometry, pointers, range);
    case Style::kInterleaved:
      return Rotation<T, Order::kInterleaved, products, norms>::rotate(geometry, pointers, range);
    case Style::kDeinterleave:
      if constexpr (!norms) {  // it has no transposed
        if (geometry.transpose) {
          return Rotation<T, Order::kHalfToInterleaved, products, norms>::rotate(geometry, pointers,
                                                                                 range);
        }
      }
      return Rotation<T, Order::kInterleavedToHalf, products, norms>::rotate(geometry, pointers,
                                                                             range);
  }
}

/// For 16-bit T.
template <class T>
void rotate_range_16(const RopeGeometry& geometry, const RopePointers& pointers,
                     const RopeRange& range) {
  const bool norms = geometry.norm.q || geometry.norm.k;
  if (geometry.round_each) {
    return norms ? rotate_range_of<T, Products::kInElement, true>(geometry, pointers, range)
                 : rotate_range_of<T, Products::kInElement, false>(geometry, pointers, range);
  }
  if (norms) return rotate_range_of<T, Products::kInCompute, true>(geometry, pointers, range);
  if constexpr (T::kFusedSums || T::kPairwise) {
    if (geometry.cast_tables || geometry.table_dtype == geometry.dtype) {
      return rotate_range_of<T, Products::kExact, false>(geometry, pointers, range);
    }
  }
  rotate_range_of<T, Products::kInCompute, false>(geometry, pointers, range);
}

/// For wider T.
template <class T>
void rotate_range_wide(const RopeGeometry& geometry, const RopePointers& pointers,
                       const RopeRange& range) {
  const bool norms = geometry.norm.q || geometry.norm.k;
  norms ? rotate_range_of<T, Products::kInCompute, true>(geometry, pointers, range)
        : rotate_range_of<T, Products::kInCompute, false>(geometry, pointers, range);
}

}  // namespace

void rotate_range(const RopeGeometry& geometry, const RopePointers& pointers,
                  const RopeRange& range) {
  switch (geometry.dtype) {
    case DType::kFloat16:
      return rotate_range_16<Float16>(geometry, pointers, range);
    case DType::kBFloat16:
      return rotate_range_16<BFloat16>(geometry, pointers, range);
    case DType::kFloat32:
      return rotate_range_wide<Float32>(geometry, pointers, range);
    case DType::kFloat64:
      return rotate_range_wide<Float64>(geometry, pointers, range);
  }
}

}  // namespace npu_rope::ROPE_ISA
