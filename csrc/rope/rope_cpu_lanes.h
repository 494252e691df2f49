// Vectors for rope_cpu_rows.cpp alone: elements of every dtype as lanes of fp32 (fp64 for fp64).
// Everything has internal linkage, since this file is compiled for several instruction sets.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__F16C__)
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

/// Two neighbouring vectors, 2 * N lanes.
template <class E, int N>
struct Two {
  Vec<E, N> a, b;
};

template <class V, int... I>
ROPE_INLINE V even_lanes(V a, V b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (2 * I)...);
}

template <class V, int... I>
ROPE_INLINE V odd_lanes(V a, V b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (2 * I + 1)...);
}

template <int First, class V, int... I>
ROPE_INLINE V alternate_lanes(V a, V b, std::integer_sequence<int, I...>) {
  constexpr int n = sizeof...(I);
  return __builtin_shufflevector(a, b, (First + I / 2 + I % 2 * n)...);
}

/// Lanes 0, 2, 4, ... into a, lanes 1, 3, 5, ... into b.
template <class E, int N>
ROPE_INLINE Two<E, N> deal(Two<E, N> v) {
  constexpr std::make_integer_sequence<int, N> lanes;
  return {even_lanes(v.a, v.b, lanes), odd_lanes(v.a, v.b, lanes)};
}

/// The inverse of deal.
template <class E, int N>
ROPE_INLINE Two<E, N> merge(Two<E, N> v) {
  constexpr std::make_integer_sequence<int, N> lanes;
  return {alternate_lanes<0>(v.a, v.b, lanes), alternate_lanes<N / 2>(v.a, v.b, lanes)};
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

/// Rounds fp32 to the nearest bf16, ties to even, in the high 16 bits; the low ones are garbage.
/// A NaN must have zeros there: the addition would carry it into a number.
template <class U>
ROPE_INLINE U round_to_bf16(U bits) {
  return bits + 0x7fffu + (bits >> 16 & 1u);
}

// For one dtype: Compute is what it is rotated in. load() brings 2 * N elements as lanes, in order,
// or dealt (kDealt: the even elements in a, the odd ones in b); store() rounds and takes them
// back; rounded() is what store() and load() would make of the lanes. read() and write() do the same
// for one element.

template <class E>
struct Native {
  using Element = E;
  using Compute = E;
  static constexpr bool kDealt = false;

  static ROPE_INLINE E read(const E* p) { return *p; }
  static ROPE_INLINE void write(E* p, E value) { *p = value; }

  static ROPE_INLINE E rounded(E value) { return value; }
  template <int N>
  static ROPE_INLINE Two<E, N> rounded(Two<E, N> v) {
    return v;
  }

  template <int N>
  static ROPE_INLINE Two<E, N> load(const E* p) {
    return {load_vec<Vec<E, N>>(p), load_vec<Vec<E, N>>(p + N)};
  }
  template <int N>
  static ROPE_INLINE void store(E* p, Two<E, N> v) {
    store_vec(p, v.a);
    store_vec(p + N, v.b);
  }
};
using Float64 = Native<double>;
using Float32 = Native<float>;

/// Two elements seen as one uint32_t: the even one is the low half, the odd one the high half.
struct BFloat16 {
  using Element = uint16_t;
  using Compute = float;
  static constexpr bool kDealt = true;

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
    using U = Vec<uint32_t, N>;
    const U pairs = load_vec<U>(p);
    return {bit_cast<Vec<float, N>>(pairs << 16), bit_cast<Vec<float, N>>(pairs & 0xffff0000u)};
  }
  template <int N>
  static ROPE_INLINE void store(Element* p, Two<float, N> v) {
    using U = Vec<uint32_t, N>;
    const U even = round_to_bf16(bit_cast<U>(v.a)) >> 16;
    const U odd = round_to_bf16(bit_cast<U>(v.b)) & 0xffff0000u;
    store_vec(p, even | odd);
  }
};

struct Float16 {
  using Element = uint16_t;
  using Compute = float;
  static constexpr bool kDealt = false;

  static ROPE_INLINE float read(const Element* p) { return half_bits_to_float<float>(uint32_t{*p}); }
  static ROPE_INLINE void write(Element* p, float value) {
    *p = static_cast<Element>(float_to_half_bits<float, uint32_t>(value));
  }

  static ROPE_INLINE float rounded(float value) {
    Element half;
    write(&half, value);
    return read(&half);
  }
  template <int N>
  static ROPE_INLINE Two<float, N> rounded(Two<float, N> v) {
    Element half[2 * N];
    store<N>(half, v);
    return load<N>(half);
  }

  template <int N>
  static ROPE_INLINE Two<float, N> load(const Element* p) {
    return {widen<N>(p), widen<N>(p + N)};
  }
  template <int N>
  static ROPE_INLINE void store(Element* p, Two<float, N> v) {
    narrow<N>(p, v.a);
    narrow<N>(p + N, v.b);
  }

  template <int N>
  static ROPE_INLINE Vec<float, N> widen(const Element* p) {
#if defined(__AVX512F__)
    if constexpr (N == 16) return (Vec<float, N>)_mm512_cvtph_ps(load_vec<__m256i>(p));
#endif
#if defined(__F16C__)
    if constexpr (N == 8) return (Vec<float, N>)_mm256_cvtph_ps(load_vec<__m128i>(p));
    if constexpr (N == 4) return (Vec<float, N>)_mm_cvtph_ps(_mm_loadl_epi64((const __m128i*)p));
#elif defined(__aarch64__)
    if constexpr (N == 4) return (Vec<float, N>)vcvt_f32_f16(load_vec<float16x4_t>(p));
#else
    const auto half = __builtin_convertvector(load_vec<Vec<uint16_t, N>>(p), Vec<uint32_t, N>);
    return half_bits_to_float<Vec<float, N>>(half);
#endif
  }

  template <int N>
  static ROPE_INLINE void narrow(Element* p, Vec<float, N> v) {
#if defined(__AVX512F__)
    if constexpr (N == 16) store_vec(p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#endif
#if defined(__F16C__)
    if constexpr (N == 8) store_vec(p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
    if constexpr (N == 4) {
      _mm_storel_epi64((__m128i*)p, _mm_cvtps_ph((__m128)v, _MM_FROUND_TO_NEAREST_INT));
    }
#elif defined(__aarch64__)
    if constexpr (N == 4) store_vec(p, vcvt_f16_f32((float32x4_t)v));
#else
    const auto half = float_to_half_bits<Vec<float, N>, Vec<uint32_t, N>>(v);
    store_vec(p, __builtin_convertvector(half, Vec<uint16_t, N>));
#endif
  }
};

}  // namespace
}  // namespace npu_rope::ROPE_ISA
