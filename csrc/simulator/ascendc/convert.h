// The conversions of Cast: which pairs and modes arch 2201 has, and what they give.
#pragma once

#include "core.h"
#include "types.h"

namespace npu_rope::simulator {

/// One element, from S to D in the given mode, where arch 2201 has that conversion.
template <typename D, typename S>
struct Conversion;

constexpr unsigned mode_bit(AscendC::RoundMode mode) { return 1u << static_cast<unsigned>(mode); }
constexpr unsigned kModeNone = mode_bit(AscendC::RoundMode::CAST_NONE);
constexpr unsigned kModesDirected =
    mode_bit(AscendC::RoundMode::CAST_RINT) | mode_bit(AscendC::RoundMode::CAST_FLOOR) |
    mode_bit(AscendC::RoundMode::CAST_CEIL) | mode_bit(AscendC::RoundMode::CAST_ROUND) |
    mode_bit(AscendC::RoundMode::CAST_TRUNC);
constexpr unsigned kModeOdd = mode_bit(AscendC::RoundMode::CAST_ODD);

template <>
struct Conversion<float, half> {
  static constexpr unsigned kModes = kModeNone;
  static float convert(half value, AscendC::RoundMode) { return half_to_float(value.bits); }
};
template <>
struct Conversion<float, bfloat16_t> {
  static constexpr unsigned kModes = kModeNone;
  static float convert(bfloat16_t value, AscendC::RoundMode) {
    return bfloat16_to_float(value.bits);
  }
};
template <>
struct Conversion<half, float> {
  static constexpr unsigned kModes = kModeNone | kModesDirected | kModeOdd;
  static half convert(float value, AscendC::RoundMode mode) {
    half result;
    result.bits = round_float<10, -14>(value, mode);
    return result;
  }
  static half nearest(float value) { return half(value); }
};
template <>
struct Conversion<bfloat16_t, float> {
  static constexpr unsigned kModes = kModesDirected;
  static bfloat16_t convert(float value, AscendC::RoundMode mode) {
    bfloat16_t result;
    result.bits = round_float<7, -126>(value, mode);
    return result;
  }
  static bfloat16_t nearest(float value) { return bfloat16_t(value); }
};
template <>
struct Conversion<float, float> {
  static constexpr unsigned kModes = kModesDirected;
  static float convert(float value, AscendC::RoundMode mode) {
    return std::isfinite(value) ? static_cast<float>(round_to_integer(value, mode)) : value;
  }
};
template <>
struct Conversion<int32_t, float> {
  static constexpr unsigned kModes = kModesDirected;
  /// Out of range saturates; NaN gives 0.
  static int32_t convert(float value, AscendC::RoundMode mode) {
    if (std::isnan(value)) return 0;
    const double rounded = std::isinf(value) ? value : round_to_integer(value, mode);
    constexpr double kLow = std::numeric_limits<int32_t>::min();
    constexpr double kHigh = std::numeric_limits<int32_t>::max();
    return static_cast<int32_t>(std::min(std::max(rounded, kLow), kHigh));
  }
};

inline const char* mode_name(AscendC::RoundMode mode) {
  constexpr const char* kNames[] = {"CAST_NONE",  "CAST_RINT",  "CAST_FLOOR", "CAST_CEIL",
                                    "CAST_ROUND", "CAST_TRUNC", "CAST_ODD"};
  return kNames[static_cast<int>(mode)];
}

inline std::string mode_names(unsigned modes) {
  std::string names;
  for (unsigned mode = 0; mode <= 6; ++mode) {
    if (!(modes >> mode & 1)) continue;
    names += (names.empty() ? "" : ", ") + std::string(mode_name(AscendC::RoundMode(mode)));
  }
  return names;
}

template <typename D, typename S>
constexpr bool kIsConvertible =
    (std::is_same_v<D, float> && one_of<S, half, bfloat16_t, float>()) ||
    (std::is_same_v<S, float> && one_of<D, half, bfloat16_t, int32_t>());

/// Picks the loop for the mode, so that the common one vectorizes, and hands it to `run`.
template <typename D, typename S, typename Run>
void convert_with(Where where, AscendC::RoundMode mode, Run run) {
  static_assert(kIsConvertible<D, S>,
                "Cast: arch 2201 or the simulator does not have this pair of dtypes");
  using Pair = Conversion<D, S>;
  if (!(Pair::kModes & mode_bit(mode))) {
    Core::current().fail("Cast", where,
                         std::string(mode_name(mode)) + " from " + dtype_name<S>() + " to " +
                             dtype_name<D>() + " does not exist on arch 2201, expected " +
                             mode_names(Pair::kModes));
  }
  if constexpr (one_of<D, half, bfloat16_t>()) {
    if (mode == AscendC::RoundMode::CAST_RINT || mode == AscendC::RoundMode::CAST_NONE) {
      run([](S value) { return Pair::nearest(value); });
      return;
    }
  }
  run([mode](S value) { return Pair::convert(value, mode); });
}

}  // namespace npu_rope::simulator
