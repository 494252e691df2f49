// half and bfloat16_t, and exact rounding of float32 to them in every mode the chip has.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

namespace AscendC {

enum class RoundMode {
  CAST_NONE = 0,  // nearest even where the conversion loses bits
  CAST_RINT,      // nearest, ties to even
  CAST_FLOOR,
  CAST_CEIL,
  CAST_ROUND,  // nearest, ties away from zero
  CAST_TRUNC,
  CAST_ODD,  // von Neumann: an inexact result gets an odd last bit
};

}  // namespace AscendC

namespace npu_rope::simulator {

inline uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float bits_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// The four 16-bit conversions below are free of branches, so that loops over them vectorize.

inline float half_to_float(uint16_t half) {
  // Shift exponent and mantissa into place, then rescale by 2^112: exact, subnormals included.
  const uint32_t magnitude = uint32_t{half & 0x7fffu} << 13;
  const uint32_t special = magnitude >= 0x0f800000u ? 0x70000000u : 0u;  // inf and NaN
  const uint32_t scaled = float_bits(bits_float(magnitude) * bits_float(0x77800000u));
  const uint32_t quiet = magnitude > 0x0f800000u ? 0x00400000u : 0u;
  const uint32_t bits = special ? (magnitude | special | quiet) : scaled;
  return bits_float(bits | uint32_t{half & 0x8000u} << 16);
}

inline uint16_t float_to_half(float value) {
  const uint32_t bits = float_bits(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Below 2^-14 the last bit kept is worth 2^-24: adding 0.5 makes the hardware round there.
  const uint32_t small = float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u;
  // Above, round on the 13 bits that go, and rebias the exponent by 112. 65520 and up become inf.
  const uint32_t rounded = (magnitude + 0x0fffu + (magnitude >> 13 & 1u)) >> 13;
  const uint32_t large = magnitude >= 0x477ff000u ? 0x7c00u : rounded - (112u << 10);
  uint32_t result = magnitude < 0x38800000u ? small : large;
  result = magnitude > 0x7f800000u ? 0x7e00u : result;
  return static_cast<uint16_t>(sign | result);
}

inline float bfloat16_to_float(uint16_t bfloat) { return bits_float(uint32_t{bfloat} << 16); }

inline uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = float_bits(value);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

/// Whether the magnitude grows by one unit, given its last bit and the discarded part of it.
inline bool rounds_up(AscendC::RoundMode mode, bool negative, bool odd, bool first, bool rest) {
  switch (mode) {
    case AscendC::RoundMode::CAST_NONE:
    case AscendC::RoundMode::CAST_RINT:
      return first && (rest || odd);
    case AscendC::RoundMode::CAST_FLOOR:
      return negative && (first || rest);
    case AscendC::RoundMode::CAST_CEIL:
      return !negative && (first || rest);
    case AscendC::RoundMode::CAST_ROUND:
      return first;
    case AscendC::RoundMode::CAST_TRUNC:
      return false;
    case AscendC::RoundMode::CAST_ODD:
      return !odd && (first || rest);
  }
  return false;
}

/// float32 to a binary format of `kMantissa` stored bits and smallest normal exponent
/// `kMinExponent`, in any mode. Overflow follows IEEE 754: infinity, or the largest number where
/// the mode rounds towards zero there.
template <int kMantissa, int kMinExponent>
uint16_t round_float(float value, AscendC::RoundMode mode) {
  constexpr uint32_t kInfinity = ((1u << (15 - kMantissa)) - 1u) << kMantissa;
  const uint32_t bits = float_bits(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    return static_cast<uint16_t>(kMantissa == 7 ? 0x7fc0u : sign | 0x7e00u);
  }
  if (magnitude == 0x7f800000u) return static_cast<uint16_t>(sign | kInfinity);
  const int exponent = magnitude >> 23 ? static_cast<int>(magnitude >> 23) - 127 : -126;
  const uint64_t mantissa = (magnitude & 0x7fffffu) | (magnitude >> 23 ? 0x800000u : 0u);
  const int below = exponent < kMinExponent ? kMinExponent - exponent : 0;
  const int shift = 23 - kMantissa + below;
  uint32_t kept = shift > 40 ? 0u : static_cast<uint32_t>(mantissa >> shift);
  const bool first = shift <= 40 && (mantissa >> (shift - 1) & 1u);
  const bool rest =
      shift > 40 ? mantissa != 0 : (mantissa & ((uint64_t{1} << (shift - 1)) - 1u)) != 0;
  const uint32_t base = below ? 0u : static_cast<uint32_t>(exponent - kMinExponent) << kMantissa;
  uint32_t result = base + kept;  // the hidden bit of `kept` carries into the exponent field
  if (result < kInfinity && rounds_up(mode, sign != 0, kept & 1u, first, rest)) ++result;
  if (result >= kInfinity) {
    const bool nearest = mode == AscendC::RoundMode::CAST_NONE ||
                         mode == AscendC::RoundMode::CAST_RINT ||
                         mode == AscendC::RoundMode::CAST_ROUND;
    const bool outward = nearest || (mode == AscendC::RoundMode::CAST_FLOOR && sign) ||
                         (mode == AscendC::RoundMode::CAST_CEIL && !sign);
    result = outward ? kInfinity : kInfinity - 1u;
  }
  return static_cast<uint16_t>(sign | result);
}

/// A finite number to an integer, in any mode but CAST_ODD.
inline double round_to_integer(double value, AscendC::RoundMode mode) {
  switch (mode) {
    case AscendC::RoundMode::CAST_FLOOR:
      return std::floor(value);
    case AscendC::RoundMode::CAST_CEIL:
      return std::ceil(value);
    case AscendC::RoundMode::CAST_ROUND:
      return std::round(value);
    case AscendC::RoundMode::CAST_TRUNC:
      return std::trunc(value);
    default: {
      const double low = std::floor(value), gap = value - low;
      const bool up = gap > 0.5 || (gap == 0.5 && std::fmod(low, 2.0) != 0.0);
      return std::copysign(up ? low + 1.0 : low, value);
    }
  }
}

}  // namespace npu_rope::simulator

/// IEEE binary16. Arithmetic is done in float32 and rounded to nearest even.
struct half {
  uint16_t bits = 0;

  half() = default;
  template <typename T, typename = std::enable_if_t<std::is_arithmetic_v<T>>>
  half(T value) : bits(npu_rope::simulator::float_to_half(static_cast<float>(value))) {}
  operator float() const { return npu_rope::simulator::half_to_float(bits); }
};

struct bfloat16_t {
  uint16_t bits = 0;

  bfloat16_t() = default;
  template <typename T, typename = std::enable_if_t<std::is_arithmetic_v<T>>>
  bfloat16_t(T value) : bits(npu_rope::simulator::float_to_bfloat16(static_cast<float>(value))) {}
  operator float() const { return npu_rope::simulator::bfloat16_to_float(bits); }
};

namespace npu_rope::simulator {

template <typename T>
constexpr const char* dtype_name() {
  if constexpr (std::is_same_v<T, half>) return "half";
  if constexpr (std::is_same_v<T, bfloat16_t>) return "bfloat16_t";
  if constexpr (std::is_same_v<T, float>) return "float";
  if constexpr (std::is_same_v<T, double>) return "double";
  if constexpr (std::is_same_v<T, int8_t>) return "int8_t";
  if constexpr (std::is_same_v<T, uint8_t>) return "uint8_t";
  if constexpr (std::is_same_v<T, int16_t>) return "int16_t";
  if constexpr (std::is_same_v<T, uint16_t>) return "uint16_t";
  if constexpr (std::is_same_v<T, int32_t>) return "int32_t";
  if constexpr (std::is_same_v<T, uint32_t>) return "uint32_t";
  if constexpr (std::is_same_v<T, int64_t>) return "int64_t";
  if constexpr (std::is_same_v<T, uint64_t>) return "uint64_t";
  return "?";
}

template <typename T, typename... Allowed>
constexpr bool one_of() {
  return (std::is_same_v<T, Allowed> || ...);
}

}  // namespace npu_rope::simulator
