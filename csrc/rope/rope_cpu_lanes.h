// Vectors for rope_cpu_rows.cpp alone: elements of every dtype as lanes of fp32 (fp64 for fp64).
// Everything has internal linkage, since this file is compiled for several instruction sets.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace npu_rope::ROPE_ISA {
namespace {

#define ROPE_INLINE __attribute__((always_inline)) inline

template <class E, int N>
using Vec [[gnu::vector_size(sizeof(E) * N)]] = E;

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class To, class From>
ROPE_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

template <class V>
ROPE_INLINE V load_vec(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

template <class V>
ROPE_INLINE void store_vec(void* p, V v) {
  std::memcpy(p, &v, sizeof(v));
}

/// The first or, Upper, the second half of the lanes. (A memcpy would go through memory.)
template <int Upper, class H, class V, int... Lane>
ROPE_INLINE H half_of(V v, std::integer_sequence<int, Lane...>) {
  return __builtin_shufflevector(v, v, (Lane + Upper * int{sizeof...(Lane)})...);
}
template <int N, class V>
ROPE_INLINE void store_halves(void* p, void* q, V v) {
  using H = Vec<uint16_t, N>;
  store_vec(p, half_of<0, H>(v, std::make_integer_sequence<int, N>()));
  store_vec(q, half_of<1, H>(v, std::make_integer_sequence<int, N>()));
}

/// The second half of the lanes, then the first.
template <class V, int... Lane>
ROPE_INLINE V swap_halves(V v, std::integer_sequence<int, Lane...>) {
  constexpr int kLanes = sizeof...(Lane);
  return __builtin_shufflevector(v, v, ((Lane + kLanes / 2) % kLanes)...);
}
template <class E, int N>
ROPE_INLINE Vec<E, N> swap_halves(const Vec<E, N>& v) {
  return swap_halves(v, std::make_integer_sequence<int, N>());
}

/// Two neighbouring vectors, 2 * N lanes.
template <class E, int N>
struct Two {
  Vec<E, N> a, b;
};

// Shuffles stay inside blocks of 16 bytes where they can, since AVX2 pays twice to cross them.

/// Lane l of the result is lane Index::of(l) of a and b side by side.
template <class Index, class V, int... Lane>
ROPE_INLINE V shuffle(V a, V b, std::integer_sequence<int, Lane...>) {
  return __builtin_shufflevector(a, b, Index::of(Lane)...);
}
template <class Index, class E, int N>
ROPE_INLINE Vec<E, N> shuffle(const Vec<E, N>& a, const Vec<E, N>& b) {
  return shuffle<Index>(a, b, std::make_integer_sequence<int, N>());
}

template <class E, int N>
struct Shuffles {
  static constexpr int kBlock = 16 / sizeof(E);
  static constexpr int kHalf = kBlock / 2;

  template <int Odd>  // every second lane of a's block, then of b's
  struct Deal {
    static constexpr int of(int l) {
      const int block = l / kBlock * kBlock, i = l % kBlock;
      return block + (i < kHalf ? 2 * i : N + 2 * (i - kHalf)) + Odd;
    }
  };
  template <int Upper>  // the lower or upper halves of a's and b's blocks, alternating
  struct Merge {
    static constexpr int of(int l) {
      const int block = l / kBlock * kBlock, i = l % kBlock;
      return block + Upper * kHalf + i / 2 + i % 2 * N;
    }
  };
  struct ToBlocks {  // lanes in order -> as Deal leaves them
    static constexpr int of(int l) {
      const int block = l / kBlock, i = l % kBlock;
      return block * kHalf + i % kHalf + i / kHalf * (N / 2);
    }
  };
  struct FromBlocks {
    static constexpr int of(int l) {
      const int i = l % (N / 2);
      return i / kHalf * kBlock + l / (N / 2) * kHalf + i % kHalf;
    }
  };
};

/// Lanes 0, 2, 4, ... into a, lanes 1, 3, 5, ... into b, both in the order of to_blocks.
template <class E, int N>
ROPE_INLINE Two<E, N> deal_blocks(Two<E, N> v) {
  using S = Shuffles<E, N>;
  return {shuffle<typename S::template Deal<0>, E, N>(v.a, v.b),
          shuffle<typename S::template Deal<1>, E, N>(v.a, v.b)};
}
/// The inverse of deal_blocks.
template <class E, int N>
ROPE_INLINE Two<E, N> merge_blocks(Two<E, N> v) {
  using S = Shuffles<E, N>;
  return {shuffle<typename S::template Merge<0>, E, N>(v.a, v.b),
          shuffle<typename S::template Merge<1>, E, N>(v.a, v.b)};
}
template <class E, int N>
ROPE_INLINE Two<E, N> to_blocks(Two<E, N> v) {
  using Index = typename Shuffles<E, N>::ToBlocks;
  return {shuffle<Index, E, N>(v.a, v.a), shuffle<Index, E, N>(v.b, v.b)};
}
template <class E, int N>
ROPE_INLINE Two<E, N> from_blocks(Two<E, N> v) {
  using Index = typename Shuffles<E, N>::FromBlocks;
  return {shuffle<Index, E, N>(v.a, v.a), shuffle<Index, E, N>(v.b, v.b)};
}

/// Lanes 0, 2, 4, ... into a, lanes 1, 3, 5, ... into b, in order.
template <class E, int N>
ROPE_INLINE Two<E, N> deal(Two<E, N> v) {
  return from_blocks(deal_blocks(v));
}
/// The inverse of deal.
template <class E, int N>
ROPE_INLINE Two<E, N> merge(Two<E, N> v) {
  return merge_blocks(to_blocks(v));
}

// fp16 and fp32 bit patterns, one a lane. U is uint32_t or a vector of it, F float or a vector.

/// fp16 in the low 16 bits -> fp32, exactly.
template <class F, class U>
ROPE_INLINE F half_bits_to_float(U half) {
  const U magnitude = (half & 0x7fffu) << 13;
  // The exponents' biases differ by 127 - 15; subnormals become normal by the multiplication.
  const U scaled = bit_cast<U>(bit_cast<F>(magnitude) * 0x1p112f);
  const U finite_or_not = magnitude >= 0x7c00u << 13 ? magnitude | 0x7f800000u : scaled;
  return bit_cast<F>(finite_or_not | (half & 0x8000u) << 16);
}

/// fp32 -> fp16 in the low 16 bits, to the nearest, ties to even.
template <class F, class U>
ROPE_INLINE U float_to_half_bits(F value) {
  const U bits = bit_cast<U>(value);
  const U magnitude = bits & 0x7fffffffu;
  // The exponent is rebiased and the carry of the rounding runs into it, up to infinity.
  const U normal = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  // Adding 1/2 leaves fp16's subnormal unit, 2^-24, in the last bit, rounded by the addition.
  const U subnormal = bit_cast<U>(bit_cast<F>(magnitude) + 0.5f) - 0x3f000000u;
  const U infinity_or_nan = magnitude > 0x7f800000u ? U{} + 0x7e00u : U{} + 0x7c00u;
  const U finite = magnitude < 113u << 23 ? subnormal : normal;
  const U unsigned_half = magnitude >= 143u << 23 ? infinity_or_nan : finite;
  return unsigned_half | (bits >> 16 & 0x8000u);
}

/// fp32 -> the nearest fp16, ties to even, as fp32. (Shorter than to fp16 and back by the two
/// above.)
template <class F, class U>
ROPE_INLINE F round_to_half(F value) {
  const U bits = bit_cast<U>(value), sign = bits & 0x80000000u;
  const F magnitude = bit_cast<F>(bits ^ sign);
  // 2^13 times the power of two below a value has the last of its 11 bits in its own last place, to
  // which the addition rounds; subnormals have no lower one than numbers from 2^-14 on.
  const F power = bit_cast<F>(bits & 0x7f800000u);
  const F large = (power > 0x1p-14f ? power : F{} + 0x1p-14f) * 0x1p13f;
  const F rounded = magnitude + large - large;
  const F finite_or_not = magnitude >= 65520.0f ? F{} + __builtin_inff() : rounded;
  return bit_cast<F>(bit_cast<U>(finite_or_not) | sign);
}

/// Rounds fp32 to the nearest bf16, ties to even, in the high 16 bits; the low ones are garbage.
/// A NaN must have zeros there: the addition would carry it into a number.
template <class U>
ROPE_INLINE U round_to_bf16(U bits) {
  return bits + 0x7fffu + (bits >> 16 & 1u);
}

// For one dtype: Compute is what it is rotated in. load() brings 2 * N elements as lanes, in order,
// or dealt (kDealt: the even elements in a, the odd ones in b); store() rounds and takes them
// back; rounded() is what store() and load() would make of the lanes. With two pointers there are
// N elements at each. read() and write() do the same for one element.
//
// The product of two 16-bit factors is exact in fp32, but for overflow and underflow that only bf16
// can reach. kFusedSums and kPairwise say that the instruction set can make use of it.

template <class E>
struct Native {
  using Element = E;
  using Compute = E;
  static constexpr bool kDealt = false, kFusedSums = false, kPairwise = false;

  static ROPE_INLINE E read(const E* p) { return *p; }
  static ROPE_INLINE void write(E* p, E value) { *p = value; }

  static ROPE_INLINE E rounded(E value) { return value; }
  template <int N>
  static ROPE_INLINE Two<E, N> rounded(Two<E, N> v) {
    return v;
  }

  template <int N>
  static ROPE_INLINE Two<E, N> load(const E* p, const E* q) {
    return {load_vec<Vec<E, N>>(p), load_vec<Vec<E, N>>(q)};
  }
  template <int N>
  static ROPE_INLINE Two<E, N> load(const E* p) {
    return load<N>(p, p + N);
  }
  template <int N>
  static ROPE_INLINE void store(E* p, E* q, Two<E, N> v) {
    store_vec(p, v.a);
    store_vec(q, v.b);
  }
  template <int N>
  static ROPE_INLINE void store(E* p, Two<E, N> v) {
    store<N>(p, p + N, v);
  }
};
using Float64 = Native<double>;
using Float32 = Native<float>;

/// uint16_t lanes: the even ones of a, the odd ones of b.
template <int N>
ROPE_INLINE Vec<uint16_t, 2 * N> even_then_odd(Vec<uint32_t, N> a, Vec<uint32_t, N> b) {
  using H = Vec<uint16_t, 2 * N>;
#if defined(__SSE2__) && !defined(__SSE4_1__)  // no blend
  return bit_cast<H>((a & 0xffffu) | (b & 0xffff0000u));
#else
  struct Index {
    static constexpr int of(int l) { return l % 2 ? 2 * N + l : l; }
  };
  return shuffle<Index, uint16_t, 2 * N>(bit_cast<H>(a), bit_cast<H>(b));
#endif
}

/// max(a - b, 0) in 2 * N lanes of uint16_t.
template <int N>
ROPE_INLINE Vec<uint16_t, 2 * N> saturating_subtract(Vec<uint16_t, 2 * N> a,
                                                     Vec<uint16_t, 2 * N> b) {
  using H = Vec<uint16_t, 2 * N>;
#if defined(__AVX512BW__)
  if constexpr (N == 16) return (H)_mm512_subs_epu16((__m512i)a, (__m512i)b);
#endif
#if defined(__AVX2__)
  if constexpr (N == 8) return (H)_mm256_subs_epu16((__m256i)a, (__m256i)b);
#endif
#if defined(__SSE2__)
  if constexpr (N == 4) return (H)_mm_subs_epu16((__m128i)a, (__m128i)b);
#elif defined(__aarch64__)
  if constexpr (N == 4) return (H)vqsubq_u16((uint16x8_t)a, (uint16x8_t)b);
#else
  return a > b ? a - b : H{};
#endif
}

/// Two elements seen as one uint32_t: the even one is the low half, the odd one the high half.
struct BFloat16 {
  using Element = uint16_t;
  using Compute = float;
  static constexpr bool kDealt = true, kFusedSums = false;
#if defined(__AVX512BF16__)
  static constexpr bool kPairwise = true;
  using Moderate = struct ModerateBFloat16;
#else
  static constexpr bool kPairwise = false;
#endif

  static ROPE_INLINE float read(const Element* p) { return bit_cast<float>(uint32_t{*p} << 16); }
  static ROPE_INLINE void write(Element* p, float value) {
    *p = static_cast<Element>(round_to_bf16(bit_cast<uint32_t>(value)) >> 16);
  }

  static ROPE_INLINE float rounded(float value) {
    return bit_cast<float>(round_to_bf16(bit_cast<uint32_t>(value)) & 0xffff0000u);
  }
  template <int N>
  static ROPE_INLINE Two<float, N> rounded(Two<float, N> v) {
    using U = Vec<uint32_t, N>;
    return {bit_cast<Vec<float, N>>(round_to_bf16(bit_cast<U>(v.a)) & 0xffff0000u),
            bit_cast<Vec<float, N>>(round_to_bf16(bit_cast<U>(v.b)) & 0xffff0000u)};
  }

  template <int N>
  static ROPE_INLINE Two<float, N> load(const Element* p) {
    return widen(load_vec<Vec<uint32_t, N>>(p));
  }
  template <int N>
  static ROPE_INLINE Two<float, N> load(const Element* p, const Element* q) {
    using H = Vec<uint32_t, N / 2>;
    return widen(join(load_vec<H>(p), load_vec<H>(q), std::make_integer_sequence<int, N>()));
  }
  template <int N>
  static ROPE_INLINE void store(Element* p, Two<float, N> v) {
    store_vec(p, narrow(v));
  }
  template <int N>
  static ROPE_INLINE void store(Element* p, Element* q, Two<float, N> v) {
    store_halves<N>(p, q, narrow(v));
  }

  template <class U, int N = sizeof(U) / 4>
  static ROPE_INLINE Two<float, N> widen(U pairs) {
    return {bit_cast<Vec<float, N>>(pairs << 16), bit_cast<Vec<float, N>>(pairs & 0xffff0000u)};
  }
  template <int N>
  static ROPE_INLINE Vec<uint16_t, 2 * N> narrow(Two<float, N> v) {
    using U = Vec<uint32_t, N>;
    const U even = bit_cast<U>(v.a), odd = bit_cast<U>(v.b);
    // In lanes of 16 bits: one more where low > 0x8000, or low == 0x8000 and high is odd.
    const auto high = even_then_odd<N>(even >> 16, odd), low = even_then_odd<N>(even, odd << 16);
    return high + (saturating_subtract<N>(low, ~high & 1) >> 15);
  }
  template <class H, int... Lane>
  static ROPE_INLINE Vec<uint32_t, sizeof...(Lane)> join(H a, H b,
                                                         std::integer_sequence<int, Lane...>) {
    return __builtin_shufflevector(a, b, Lane...);
  }

#if defined(__AVX512BF16__)
  // Pairs of elements, the first one in the low half of 32 bits. These instructions always round to
  // nearest even, and take subnormal numbers for zeros.

  template <int N>
  using Pairs = Vec<uint16_t, 2 * N>;

  /// x1 * t1 + x2 * t2. The same bits as of two products and their sum where the products are exact
  /// and neither they nor the sum subnormal.
  template <int N>
  static ROPE_INLINE Vec<float, N> dot(Pairs<N> x, Pairs<N> t) {
    const auto zero = -Vec<float, N>{};  // -0.0 changes no sum, not even -0.0
    if constexpr (N == 16) {
      return (Vec<float, N>)_mm512_dpbf16_ps((__m512)zero, (__m512bh)x, (__m512bh)t);
    } else if constexpr (N == 8) {
      return (Vec<float, N>)_mm256_dpbf16_ps((__m256)zero, (__m256bh)x, (__m256bh)t);
    } else {
      return (Vec<float, N>)_mm_dpbf16_ps((__m128)zero, (__m128bh)x, (__m128bh)t);
    }
  }

  /// N pairs from `from` on, of lanes of a and lanes of b.
  template <int N, int from, class H>
  static ROPE_INLINE Pairs<N> pair_up(H a, H b) {
    return pair_up<from>(a, b, std::make_integer_sequence<int, 2 * N>());
  }
  template <int from, class H, int... Lane>
  static ROPE_INLINE Pairs<sizeof...(Lane) / 2> pair_up(H a, H b,
                                                        std::integer_sequence<int, Lane...>) {
    constexpr int size = sizeof(H) / sizeof(Element);
    return __builtin_shufflevector(a, b, (from + Lane / 2 + Lane % 2 * size)...);
  }

  /// All first elements, then all second ones <-> pairs.
  template <int N>
  static ROPE_INLINE Pairs<N> as_pairs(Vec<Element, 2 * N> v) {
    struct Index {
      static constexpr int of(int l) { return l / 2 + l % 2 * N; }
    };
    return shuffle<Index, Element, 2 * N>(v, v);
  }
  template <int N>
  static ROPE_INLINE Vec<Element, 2 * N> from_pairs(Pairs<N> v) {
    struct Index {
      static constexpr int of(int l) { return l % N * 2 + l / N; }
    };
    return shuffle<Index, Element, 2 * N>(v, v);
  }

  /// All of v.a, then all of v.b, none of them subnormal.
  template <int N>
  static ROPE_INLINE Vec<uint16_t, 2 * N> narrow_in_order(Two<float, N> v) {
    using H = Vec<uint16_t, 2 * N>;
    if constexpr (N == 16) return (H)_mm512_cvtne2ps_pbh((__m512)v.b, (__m512)v.a);
    if constexpr (N == 8) return (H)_mm256_cvtne2ps_pbh((__m256)v.b, (__m256)v.a);
    if constexpr (N == 4) return (H)_mm_cvtne2ps_pbh((__m128)v.b, (__m128)v.a);
  }

  /// Whether the magnitude of every element is at least 2^-31 and less than 2^33.
  template <int N, class... Rest>
  static ROPE_INLINE bool moderate(Pairs<N> x, Rest... rest) {
    // The exponents' field less that of 2^-31 is then below 64: its two highest bits are zeros.
    using H = Pairs<N>;
    const H difference = ((x - 0x3000) | ... | (rest - 0x3000)), bits = H{} + 0x6000;
    if constexpr (N == 16) return !_mm512_test_epi16_mask((__m512i)difference, (__m512i)bits);
    if constexpr (N == 8) return !_mm256_test_epi16_mask((__m256i)difference, (__m256i)bits);
    if constexpr (N == 4) return !_mm_test_epi16_mask((__m128i)difference, (__m128i)bits);
  }

  /// Whether the magnitude of every element is at least 2^-63.
  template <int N>
  static ROPE_INLINE bool none_small(Pairs<N> x) {
    return !has_small<N>(x);
  }
  template <int N>
  static ROPE_INLINE bool none_small(Pairs<N> x, Pairs<N> y) {
    return !(has_small<N>(x) | has_small<N>(y));
  }
  template <int N>
  static ROPE_INLINE uint32_t has_small(Pairs<N> x) {
    const auto bits = Pairs<N>{} + 0x6000;  // the exponent's two highest
    if constexpr (N == 16) return _mm512_testn_epi16_mask((__m512i)x, (__m512i)bits);
    if constexpr (N == 8) return _mm256_testn_epi16_mask((__m256i)x, (__m256i)bits);
    if constexpr (N == 4) return _mm_testn_epi16_mask((__m128i)x, (__m128i)bits);
  }

  /// `size` elements, which may be more or less than a vector's, and zeros.
  template <int N>
  static ROPE_INLINE Pairs<N> load_at_most(const Element* p, int64_t size) {
    static_assert(N == 16);
    const uint32_t mask = size >= 32 ? ~0u : size <= 0 ? 0u : (1u << size) - 1;
    return (Pairs<N>)_mm512_maskz_loadu_epi16(mask, p);
  }

  template <int N>
  static ROPE_INLINE bool all_at_least(Vec<float, N> v, float least) {
    static_assert(N == 16);
    return _mm512_cmp_ps_mask((__m512)v, _mm512_set1_ps(least), _CMP_GE_OQ) == 0xffff;
  }
#endif
};

#if defined(__AVX512BF16__)
/// BFloat16 by instructions that take subnormal numbers for zeros, where none can come up.
struct ModerateBFloat16 : BFloat16 {
  template <int N>
  static ROPE_INLINE Vec<float, N> sum_of_rounded(Vec<float, N> p, Vec<float, N> r) {
    const auto ones = bit_cast<Pairs<N>>(Vec<uint32_t, N>{} + 0x3f803f80u);
    return dot<N>(narrow<N>({p, r}), ones);
  }
  template <int N>
  static ROPE_INLINE Two<float, N> sum_of_rounded(Two<float, N> p, Two<float, N> r) {
    return {sum_of_rounded<N>(p.a, r.a), sum_of_rounded<N>(p.b, r.b)};
  }

  template <int N>
  static ROPE_INLINE void store(Element* p, Two<float, N> v) {
    store_vec(p, narrow<N>(v));
  }
  template <int N>
  static ROPE_INLINE void store(Element* p, Element* q, Two<float, N> v) {
    store_halves<N>(p, q, narrow<N>(v));
  }
  template <int N>
  static ROPE_INLINE Pairs<N> narrow(Two<float, N> v) {
    return as_pairs<N>(narrow_in_order<N>(v));
  }
};
#endif

struct Float16 {
  using Element = uint16_t;
  using Compute = float;
  static constexpr bool kDealt = false, kPairwise = false;
#if defined(__FMA__)
  static constexpr bool kFusedSums = true;
#else
  static constexpr bool kFusedSums = false;
#endif

  static ROPE_INLINE float read(const Element* p) {
    return half_bits_to_float<float>(uint32_t{*p});
  }
  static ROPE_INLINE void write(Element* p, float value) {
    *p = static_cast<Element>(float_to_half_bits<float, uint32_t>(value));
  }

  static ROPE_INLINE float rounded(float value) { return round_to_half<float, uint32_t>(value); }
  template <int N>
  static ROPE_INLINE Two<float, N> rounded(Two<float, N> v) {
#if defined(__F16C__) || defined(__aarch64__)
    return {widen<N>(narrow<N>(v.a)), widen<N>(narrow<N>(v.b))};
#else
    using F = Vec<float, N>;
    using U = Vec<uint32_t, N>;
    return {round_to_half<F, U>(v.a), round_to_half<F, U>(v.b)};
#endif
  }

  template <int N>
  static ROPE_INLINE Two<float, N> load(const Element* p, const Element* q) {
    using H = Vec<uint16_t, N>;
    return {widen<N>(load_vec<H>(p)), widen<N>(load_vec<H>(q))};
  }
  template <int N>
  static ROPE_INLINE Two<float, N> load(const Element* p) {
    return load<N>(p, p + N);
  }
  template <int N>
  static ROPE_INLINE void store(Element* p, Element* q, Two<float, N> v) {
    store_vec(p, narrow<N>(v.a));
    store_vec(q, narrow<N>(v.b));
  }
  template <int N>
  static ROPE_INLINE void store(Element* p, Two<float, N> v) {
    store<N>(p, p + N, v);
  }

  template <int N>
  static ROPE_INLINE Vec<float, N> widen(Vec<uint16_t, N> half) {
#if defined(__AVX512F__)
    if constexpr (N == 16) return (Vec<float, N>)_mm512_cvtph_ps((__m256i)half);
#endif
#if defined(__F16C__)
    if constexpr (N == 8) return (Vec<float, N>)_mm256_cvtph_ps((__m128i)half);
    if constexpr (N == 4) {
      return (Vec<float, N>)_mm_cvtph_ps(_mm_cvtsi64_si128(bit_cast<int64_t>(half)));
    }
#elif defined(__aarch64__)
    if constexpr (N == 4) return (Vec<float, N>)vcvt_f32_f16(bit_cast<float16x4_t>(half));
#else
    return half_bits_to_float<Vec<float, N>>(__builtin_convertvector(half, Vec<uint32_t, N>));
#endif
  }

  template <int N>
  static ROPE_INLINE Vec<uint16_t, N> narrow(Vec<float, N> v) {
    using H = Vec<uint16_t, N>;
#if defined(__AVX512F__)
    if constexpr (N == 16) return (H)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
#endif
#if defined(__F16C__)
    if constexpr (N == 8) return (H)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
    if constexpr (N == 4) {
      const __m128i half = _mm_cvtps_ph((__m128)v, _MM_FROUND_TO_NEAREST_INT);
      return bit_cast<H>(_mm_cvtsi128_si64(half));
    }
#elif defined(__aarch64__)
    if constexpr (N == 4) return bit_cast<H>(vcvt_f16_f32((float32x4_t)v));
#else
    return __builtin_convertvector(float_to_half_bits<Vec<float, N>, Vec<uint32_t, N>>(v), H);
#endif
  }

#if defined(__FMA__)
  /// a * b + c, rounded once.
  template <int N>
  static ROPE_INLINE Vec<float, N> multiply_add(Vec<float, N> a, Vec<float, N> b, Vec<float, N> c) {
    using V = Vec<float, N>;
#if defined(__AVX512F__)
    if constexpr (N == 16) return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#endif
    if constexpr (N == 8) return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
    if constexpr (N == 4) return (V)_mm_fmadd_ps((__m128)a, (__m128)b, (__m128)c);
  }
#endif
};

}  // namespace
}  // namespace npu_rope::ROPE_ISA
