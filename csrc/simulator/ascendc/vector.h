// Instructions of the vector unit. Each comes in the documented forms: the first `count` elements,
// and repeats with strides under a mask that is a number or an array of bits.
//
// What a dtype may not do on arch 2201 does not compile, as with CANN's own headers.
#pragma once

#include "compute.h"
#include "convert.h"

namespace AscendC {

// ----------------------------------------------------------------------------------------- masks

inline void SetMaskCount() { npu_rope::simulator::Core::current().set_mask_mode(true); }
inline void SetMaskNorm() { npu_rope::simulator::Core::current().set_mask_mode(false); }
inline void ResetMask() {
  npu_rope::simulator::Core::current().set_mask_bits(~uint64_t{0}, ~uint64_t{0});
}

template <typename T, MaskMode mode = MaskMode::NORMAL>
void SetVectorMask(const uint64_t maskHigh, const uint64_t maskLow, Where where = Where::here()) {
  auto& core = npu_rope::simulator::Core::current();
  if constexpr (mode == MaskMode::COUNTER) {
    core.set_mask_bits(0, maskLow);
  } else {
    const uint64_t mask[2] = {maskLow, maskHigh};
    core.set_mask_array("SetVectorMask", where, mask, sizeof(T));
  }
}

template <typename T, MaskMode mode = MaskMode::NORMAL>
void SetVectorMask(int32_t len, Where where = Where::here()) {
  auto& core = npu_rope::simulator::Core::current();
  if constexpr (mode == MaskMode::COUNTER) {
    core.set_mask_bits(0, static_cast<uint64_t>(len));
  } else {
    const bool counter = core.counter_mode();
    core.set_mask_mode(false);
    core.set_mask_prefix("SetVectorMask", where, len, sizeof(T));
    core.set_mask_mode(counter);
  }
}

// ---------------------------------------------------------------------------- two sources, one
// result

// The three documented forms of an instruction: mask of bits, mask as a number, first n elements.
#define NPU_ROPE_BINARY(NAME, ALLOWED, ACCUMULATES, FUNCTION)                                      \
  template <typename T, bool isSetMask = true>                                                     \
  void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,     \
            uint64_t mask[], const Wide<uint8_t> repeatTime,                                       \
            const BinaryRepeatParams& repeatParams, Where where = Where::here()) {                 \
    static_assert(ALLOWED, #NAME " does not take this dtype on arch 2201 or in the simulator");    \
    npu_rope::simulator::binary<T, isSetMask, const uint64_t*>(                                    \
        #NAME, where, dst, src0, src1, mask, repeatTime, repeatParams, ACCUMULATES,                \
        [](T a, T b) { return T(FUNCTION); });                                                     \
  }                                                                                                \
  template <typename T, bool isSetMask = true>                                                     \
  void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,     \
            uint64_t mask, const Wide<uint8_t> repeatTime, const BinaryRepeatParams& repeatParams, \
            Where where = Where::here()) {                                                         \
    static_assert(ALLOWED, #NAME " does not take this dtype on arch 2201 or in the simulator");    \
    npu_rope::simulator::binary<T, isSetMask, uint64_t>(#NAME, where, dst, src0, src1, mask,       \
                                                        repeatTime, repeatParams, ACCUMULATES,     \
                                                        [](T a, T b) { return T(FUNCTION); });     \
  }                                                                                                \
  template <typename T>                                                                            \
  void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src0, const LocalTensor<T>& src1,     \
            const int32_t& count, Where where = Where::here()) {                                   \
    static_assert(ALLOWED, #NAME " does not take this dtype on arch 2201 or in the simulator");    \
    npu_rope::simulator::binary<T>(#NAME, where, dst, src0, src1, count,                           \
                                   [](T a, T b) { return T(FUNCTION); });                          \
  }

NPU_ROPE_BINARY(Add, npu_rope::simulator::kIsArithmetic<T>, true, npu_rope::simulator::add(a, b))
NPU_ROPE_BINARY(Sub, npu_rope::simulator::kIsArithmetic<T>, true,
                npu_rope::simulator::subtract(a, b))
NPU_ROPE_BINARY(Mul, npu_rope::simulator::kIsArithmetic<T>, true,
                npu_rope::simulator::multiply(a, b))
NPU_ROPE_BINARY(Div, npu_rope::simulator::kIsArithmetic<T>, false,
                npu_rope::simulator::divide(a, b))
NPU_ROPE_BINARY(And, (npu_rope::simulator::one_of<T, int16_t, uint16_t>()), false, a& b)
NPU_ROPE_BINARY(Or, (npu_rope::simulator::one_of<T, int16_t, uint16_t>()), false, a | b)
#undef NPU_ROPE_BINARY

// -------------------------------------------------------------------------- one source, one result

#define NPU_ROPE_SCALAR(NAME, ALLOWED, FUNCTION)                                                  \
  template <typename T, bool isSetMask = true>                                                    \
  void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalarValue,           \
            uint64_t mask[], const Wide<uint8_t> repeatTime,                                      \
            const UnaryRepeatParams& repeatParams, Where where = Where::here()) {                 \
    static_assert(ALLOWED, #NAME " does not take this dtype on arch 2201 or in the simulator");   \
    npu_rope::simulator::unary<T, T, isSetMask, const uint64_t*>(                                 \
        #NAME, where, dst, src, mask, repeatTime, repeatParams,                                   \
        [b = scalarValue](T a) { return T(FUNCTION); });                                          \
  }                                                                                               \
  template <typename T, bool isSetMask = true>                                                    \
  void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalarValue,           \
            uint64_t mask, const Wide<uint8_t> repeatTime, const UnaryRepeatParams& repeatParams, \
            Where where = Where::here()) {                                                        \
    static_assert(ALLOWED, #NAME " does not take this dtype on arch 2201 or in the simulator");   \
    npu_rope::simulator::unary<T, T, isSetMask, uint64_t>(                                        \
        #NAME, where, dst, src, mask, repeatTime, repeatParams,                                   \
        [b = scalarValue](T a) { return T(FUNCTION); });                                          \
  }                                                                                               \
  template <typename T, bool isSetMask = true>                                                    \
  void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalarValue,           \
            const int32_t& count, Where where = Where::here()) {                                  \
    static_assert(ALLOWED, #NAME " does not take this dtype on arch 2201 or in the simulator");   \
    npu_rope::simulator::unary<T, T, isSetMask>(#NAME, where, dst, src, count,                    \
                                                [b = scalarValue](T a) { return T(FUNCTION); });  \
  }

NPU_ROPE_SCALAR(Adds, npu_rope::simulator::kIsArithmetic<T>, npu_rope::simulator::add(a, b))
NPU_ROPE_SCALAR(Muls, npu_rope::simulator::kIsArithmetic<T>, npu_rope::simulator::multiply(a, b))
#undef NPU_ROPE_SCALAR

template <typename T, bool isSetMask = true>
void ShiftLeft(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalarValue,
               uint64_t mask[], const Wide<uint8_t> repeatTime,
               const UnaryRepeatParams& repeatParams, Where where = Where::here()) {
  static_assert(npu_rope::simulator::kIsShiftable<T>, "ShiftLeft takes integers of 16 or 32 bits");
  npu_rope::simulator::check_shift("ShiftLeft", where, scalarValue);
  npu_rope::simulator::unary<T, T, isSetMask, const uint64_t*>(
      "ShiftLeft", where, dst, src, mask, repeatTime, repeatParams,
      [b = scalarValue](T a) { return npu_rope::simulator::shift_left(a, b); });
}
template <typename T, bool isSetMask = true>
void ShiftLeft(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalarValue,
               uint64_t mask, const Wide<uint8_t> repeatTime, const UnaryRepeatParams& repeatParams,
               Where where = Where::here()) {
  static_assert(npu_rope::simulator::kIsShiftable<T>, "ShiftLeft takes integers of 16 or 32 bits");
  npu_rope::simulator::check_shift("ShiftLeft", where, scalarValue);
  npu_rope::simulator::unary<T, T, isSetMask, uint64_t>(
      "ShiftLeft", where, dst, src, mask, repeatTime, repeatParams,
      [b = scalarValue](T a) { return npu_rope::simulator::shift_left(a, b); });
}
template <typename T, bool isSetMask = true>
void ShiftLeft(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalarValue,
               const int32_t& count, Where where = Where::here()) {
  static_assert(npu_rope::simulator::kIsShiftable<T>, "ShiftLeft takes integers of 16 or 32 bits");
  npu_rope::simulator::check_shift("ShiftLeft", where, scalarValue);
  npu_rope::simulator::unary<T, T, isSetMask>(
      "ShiftLeft", where, dst, src, count,
      [b = scalarValue](T a) { return npu_rope::simulator::shift_left(a, b); });
}

template <typename T, bool isSetMask = true>
void ShiftRight(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalarValue,
                uint64_t mask[], const Wide<uint8_t> repeatTime,
                const UnaryRepeatParams& repeatParams, bool roundEn = false,
                Where where = Where::here()) {
  static_assert(npu_rope::simulator::kIsShiftable<T>, "ShiftRight takes integers of 16 or 32 bits");
  npu_rope::simulator::check_shift("ShiftRight", where, scalarValue);
  npu_rope::simulator::expect_no_rounding(where, roundEn);
  npu_rope::simulator::unary<T, T, isSetMask, const uint64_t*>(
      "ShiftRight", where, dst, src, mask, repeatTime, repeatParams,
      [b = scalarValue](T a) { return npu_rope::simulator::shift_right(a, b); });
}
template <typename T, bool isSetMask = true>
void ShiftRight(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalarValue,
                uint64_t mask, const Wide<uint8_t> repeatTime,
                const UnaryRepeatParams& repeatParams, bool roundEn = false,
                Where where = Where::here()) {
  static_assert(npu_rope::simulator::kIsShiftable<T>, "ShiftRight takes integers of 16 or 32 bits");
  npu_rope::simulator::check_shift("ShiftRight", where, scalarValue);
  npu_rope::simulator::expect_no_rounding(where, roundEn);
  npu_rope::simulator::unary<T, T, isSetMask, uint64_t>(
      "ShiftRight", where, dst, src, mask, repeatTime, repeatParams,
      [b = scalarValue](T a) { return npu_rope::simulator::shift_right(a, b); });
}
template <typename T, bool isSetMask = true>
void ShiftRight(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& scalarValue,
                const int32_t& count, Where where = Where::here()) {
  static_assert(npu_rope::simulator::kIsShiftable<T>, "ShiftRight takes integers of 16 or 32 bits");
  npu_rope::simulator::check_shift("ShiftRight", where, scalarValue);
  npu_rope::simulator::unary<T, T, isSetMask>(
      "ShiftRight", where, dst, src, count,
      [b = scalarValue](T a) { return npu_rope::simulator::shift_right(a, b); });
}

template <typename T, bool isSetMask = true>
void Not(const LocalTensor<T>& dst, const LocalTensor<T>& src, uint64_t mask[],
         const Wide<uint8_t> repeatTime, const UnaryRepeatParams& repeatParams,
         Where where = Where::here()) {
  static_assert(npu_rope::simulator::one_of<T, int16_t, uint16_t>(), "Not takes 16-bit integers");
  npu_rope::simulator::unary<T, T, isSetMask, const uint64_t*>(
      "Not", where, dst, src, mask, repeatTime, repeatParams, [](T a) { return T(~a); });
}
template <typename T, bool isSetMask = true>
void Not(const LocalTensor<T>& dst, const LocalTensor<T>& src, uint64_t mask,
         const Wide<uint8_t> repeatTime, const UnaryRepeatParams& repeatParams,
         Where where = Where::here()) {
  static_assert(npu_rope::simulator::one_of<T, int16_t, uint16_t>(), "Not takes 16-bit integers");
  npu_rope::simulator::unary<T, T, isSetMask, uint64_t>("Not", where, dst, src, mask, repeatTime,
                                                        repeatParams, [](T a) { return T(~a); });
}
template <typename T>
void Not(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t& count,
         Where where = Where::here()) {
  static_assert(npu_rope::simulator::one_of<T, int16_t, uint16_t>(), "Not takes 16-bit integers");
  npu_rope::simulator::unary<T, T, true>("Not", where, dst, src, count, [](T a) { return T(~a); });
}

// To the nearest, which CANN's documents do not promise of the chip.
template <typename T, bool isSetMask = true>
void Sqrt(const LocalTensor<T>& dst, const LocalTensor<T>& src, uint64_t mask[],
          const Wide<uint8_t> repeatTime, const UnaryRepeatParams& repeatParams,
          Where where = Where::here()) {
  static_assert(npu_rope::simulator::kIsArithmetic<T>, "Sqrt takes half and float");
  npu_rope::simulator::unary<T, T, isSetMask, const uint64_t*>(
      "Sqrt", where, dst, src, mask, repeatTime, repeatParams,
      [](T a) { return npu_rope::simulator::square_root(a); });
}
template <typename T, bool isSetMask = true>
void Sqrt(const LocalTensor<T>& dst, const LocalTensor<T>& src, uint64_t mask,
          const Wide<uint8_t> repeatTime, const UnaryRepeatParams& repeatParams,
          Where where = Where::here()) {
  static_assert(npu_rope::simulator::kIsArithmetic<T>, "Sqrt takes half and float");
  npu_rope::simulator::unary<T, T, isSetMask, uint64_t>(
      "Sqrt", where, dst, src, mask, repeatTime, repeatParams,
      [](T a) { return npu_rope::simulator::square_root(a); });
}
template <typename T>
void Sqrt(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t& count,
          Where where = Where::here()) {
  static_assert(npu_rope::simulator::kIsArithmetic<T>, "Sqrt takes half and float");
  npu_rope::simulator::unary<T, T, true>("Sqrt", where, dst, src, count,
                                         [](T a) { return npu_rope::simulator::square_root(a); });
}

template <typename T, typename U, bool isSetMask = true>
void Cast(const LocalTensor<T>& dst, const LocalTensor<U>& src, const RoundMode& roundMode,
          const uint64_t mask[], const Wide<uint8_t> repeatTime,
          const UnaryRepeatParams& repeatParams, Where where = Where::here()) {
  npu_rope::simulator::convert_with<T, U>(where, roundMode, [&](auto convert) {
    npu_rope::simulator::unary<T, U, isSetMask, const uint64_t*>("Cast", where, dst, src, mask,
                                                                 repeatTime, repeatParams, convert);
  });
}
template <typename T, typename U, bool isSetMask = true>
void Cast(const LocalTensor<T>& dst, const LocalTensor<U>& src, const RoundMode& roundMode,
          const uint64_t mask, const Wide<uint8_t> repeatTime,
          const UnaryRepeatParams& repeatParams, Where where = Where::here()) {
  npu_rope::simulator::convert_with<T, U>(where, roundMode, [&](auto convert) {
    npu_rope::simulator::unary<T, U, isSetMask, uint64_t>("Cast", where, dst, src, mask, repeatTime,
                                                          repeatParams, convert);
  });
}
template <typename T, typename U>
void Cast(const LocalTensor<T>& dst, const LocalTensor<U>& src, const RoundMode& roundMode,
          const Wide<uint32_t> count, Where where = Where::here()) {
  npu_rope::simulator::convert_with<T, U>(where, roundMode, [&](auto convert) {
    npu_rope::simulator::unary<T, U, true>("Cast", where, dst, src, count, convert);
  });
}

template <typename T, bool isSetMask = true>
void Copy(const LocalTensor<T>& dst, const LocalTensor<T>& src, const uint64_t mask[],
          const Wide<uint8_t> repeatTime, const CopyRepeatParams& repeatParams,
          Where where = Where::here()) {
  static_assert(npu_rope::simulator::kIsMovable<T>, "Copy does not take this dtype on arch 2201");
  npu_rope::simulator::copy<T, isSetMask, const uint64_t*>(where, dst, src, mask, repeatTime,
                                                           repeatParams);
}
template <typename T, bool isSetMask = true>
void Copy(const LocalTensor<T>& dst, const LocalTensor<T>& src, const uint64_t mask,
          const Wide<uint8_t> repeatTime, const CopyRepeatParams& repeatParams,
          Where where = Where::here()) {
  static_assert(npu_rope::simulator::kIsMovable<T>, "Copy does not take this dtype on arch 2201");
  npu_rope::simulator::copy<T, isSetMask, uint64_t>(where, dst, src, mask, repeatTime,
                                                    repeatParams);
}

template <typename T, bool isSetMask = true>
void Duplicate(const LocalTensor<T>& dst, const T& scalarValue, uint64_t mask,
               const Wide<uint8_t> repeatTime, const Wide<uint16_t> dstBlockStride,
               const Wide<uint8_t> dstRepeatStride, Where where = Where::here()) {
  static_assert(npu_rope::simulator::kIsMovable<T>,
                "Duplicate does not take this dtype on arch 2201");
  npu_rope::simulator::fill<T, isSetMask, uint64_t>(where, dst, scalarValue, mask, repeatTime,
                                                    dstBlockStride, dstRepeatStride);
}
template <typename T, bool isSetMask = true>
void Duplicate(const LocalTensor<T>& dst, const T& scalarValue, uint64_t mask[],
               const Wide<uint8_t> repeatTime, const Wide<uint16_t> dstBlockStride,
               const Wide<uint8_t> dstRepeatStride, Where where = Where::here()) {
  static_assert(npu_rope::simulator::kIsMovable<T>,
                "Duplicate does not take this dtype on arch 2201");
  npu_rope::simulator::fill<T, isSetMask, const uint64_t*>(
      where, dst, scalarValue, mask, repeatTime, dstBlockStride, dstRepeatStride);
}
template <typename T>
void Duplicate(const LocalTensor<T>& dst, const T& scalarValue, const int32_t& count,
               Where where = Where::here()) {
  static_assert(npu_rope::simulator::kIsMovable<T>,
                "Duplicate does not take this dtype on arch 2201");
  namespace sim = npu_rope::simulator;
  sim::Core& core = sim::Core::current();
  sim::VectorCall call{"Duplicate", where, core.counted_lanes("Duplicate", where, count, sizeof(T)),
                       1,           {},    false};
  call.operands[0] = sim::dense(dst, "dst", sizeof(T));
  sim::compute_fill(core, call, scalarValue);
  core.reset_mask();
}

// ------------------------------------------------------------------- sums, and the other way round

// Since CANN 9.1 also called ReduceDataBlock and ReducePairElem. half: not simulated.
#define NPU_ROPE_REDUCTION(NAME, GROUP)                                                          \
  template <typename T, bool isSetMask = true>                                                   \
  void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t repeatTime,      \
            const int32_t mask, const int32_t dstRepStride, const int32_t srcBlkStride,          \
            const int32_t srcRepStride, Where where = Where::here()) {                           \
    static_assert(std::is_same_v<T, float>, #NAME " takes float in the simulator");              \
    npu_rope::simulator::reduce_sum<GROUP, isSetMask>(                                           \
        #NAME, where, dst, src, static_cast<uint64_t>(static_cast<int64_t>(mask)), repeatTime,   \
        dstRepStride, srcBlkStride, srcRepStride);                                               \
  }                                                                                              \
  template <typename T, bool isSetMask = true>                                                   \
  void NAME(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t repeatTime,      \
            const uint64_t mask[], const int32_t dstRepStride, const int32_t srcBlkStride,       \
            const int32_t srcRepStride, Where where = Where::here()) {                           \
    static_assert(std::is_same_v<T, float>, #NAME " takes float in the simulator");              \
    npu_rope::simulator::reduce_sum<GROUP, isSetMask>(#NAME, where, dst, src, mask, repeatTime,  \
                                                      dstRepStride, srcBlkStride, srcRepStride); \
  }

NPU_ROPE_REDUCTION(BlockReduceSum, 8)
NPU_ROPE_REDUCTION(PairReduceSum, 2)
#undef NPU_ROPE_REDUCTION

template <typename T>
void Brcb(const LocalTensor<T>& dst, const LocalTensor<T>& src, const Wide<uint8_t> repeatTime,
          const BrcbRepeatParams& repeatParams, Where where = Where::here()) {
  static_assert(npu_rope::simulator::kIsMovable<T> && sizeof(T) == 4,
                "Brcb takes 32-bit types in the simulator");
  npu_rope::simulator::broadcast_to_blocks(where, dst, src, repeatTime, repeatParams);
}

// The mask that it sets stays, in both forms.
template <typename T>
void Gather(const LocalTensor<T>& dst, const LocalTensor<T>& src,
            const LocalTensor<uint32_t>& srcOffset, const uint32_t srcBaseAddr, const uint64_t mask,
            const Wide<uint8_t> repeatTime, const Wide<uint16_t> dstRepStride,
            Where where = Where::here()) {
  static_assert(npu_rope::simulator::kIsMovable<T> && sizeof(T) == 4,
                "Gather takes 32-bit types in the simulator");
  npu_rope::simulator::gather(where, dst, src, srcOffset, srcBaseAddr, mask, repeatTime,
                              dstRepStride);
}
template <typename T>
void Gather(const LocalTensor<T>& dst, const LocalTensor<T>& src,
            const LocalTensor<uint32_t>& srcOffset, const uint32_t srcBaseAddr,
            const uint32_t count, Where where = Where::here()) {
  constexpr uint32_t kLanes = npu_rope::simulator::kRepeatBytes / sizeof(T);
  npu_rope::simulator::Core::current().expect_range("Gather", where, "count", count, 1,
                                                    npu_rope::simulator::kMaxRepeats * kLanes);
  const uint32_t full = count / kLanes, left = count % kLanes;
  if (full > 0) Gather(dst, src, srcOffset, srcBaseAddr, uint64_t{kLanes}, full, 8, where);
  if (left > 0) {
    const uint32_t done = full * kLanes;
    Gather(dst[done], src, srcOffset[done], srcBaseAddr, uint64_t{left}, 1, 8, where);
  }
}

template <typename T>
void TransDataTo5HD(const LocalTensor<T> (&dstList)[NCHW_CONV_ADDR_LIST_SIZE],
                    const LocalTensor<T> (&srcList)[NCHW_CONV_ADDR_LIST_SIZE],
                    const TransDataTo5HDParams& nchwconvParams, Where where = Where::here()) {
  auto call = npu_rope::simulator::transpose_call<T>(nchwconvParams, where);
  for (int i = 0; i < NCHW_CONV_ADDR_LIST_SIZE; ++i) {
    call.dst[i] = dstList[i].as_operand("dst");
    call.src[i] = srcList[i].as_operand("src");
  }
  npu_rope::simulator::finish_transpose<T>(call);
}
template <typename T>
void TransDataTo5HD(uint64_t dstList[NCHW_CONV_ADDR_LIST_SIZE],
                    uint64_t srcList[NCHW_CONV_ADDR_LIST_SIZE],
                    const TransDataTo5HDParams& nchwconvParams, Where where = Where::here()) {
  const auto& core = npu_rope::simulator::Core::current();
  auto call = npu_rope::simulator::transpose_call<T>(nchwconvParams, where);
  for (int i = 0; i < NCHW_CONV_ADDR_LIST_SIZE; ++i) {
    constexpr const char* kDtype = npu_rope::simulator::dtype_name<T>();
    call.dst[i] = core.operand_at("dst", kDtype, sizeof(T), dstList[i]);
    call.src[i] = core.operand_at("src", kDtype, sizeof(T), srcList[i]);
  }
  npu_rope::simulator::finish_transpose<T>(call);
}

}  // namespace AscendC
