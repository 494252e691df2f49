// The parameter structs and constants of vector instructions.
#pragma once

#include "tensor.h"

namespace AscendC {

constexpr uint64_t MASK_PLACEHOLDER = 0;
constexpr int32_t DEFAULT_BLK_NUM = 8;
constexpr int32_t DEFAULT_BLK_STRIDE = 1;
constexpr uint8_t DEFAULT_REPEAT_STRIDE = 8;
constexpr int32_t NCHW_CONV_ADDR_LIST_SIZE = 16;

enum class MaskMode : uint8_t { NORMAL = 0, COUNTER };

/// Strides in 32-byte blocks.
struct BinaryRepeatParams {
  BinaryRepeatParams() {}
  BinaryRepeatParams(const Wide<uint8_t> dstBlkStrideIn, const Wide<uint8_t> src0BlkStrideIn,
                     const Wide<uint8_t> src1BlkStrideIn, const Wide<uint8_t> dstRepStrideIn,
                     const Wide<uint8_t> src0RepStrideIn, const Wide<uint8_t> src1RepStrideIn)
      : dstBlkStride(dstBlkStrideIn),
        src0BlkStride(src0BlkStrideIn),
        src1BlkStride(src1BlkStrideIn),
        dstRepStride(dstRepStrideIn),
        src0RepStride(src0RepStrideIn),
        src1RepStride(src1RepStrideIn) {}

  Wide<uint8_t> dstBlkStride = DEFAULT_BLK_STRIDE;
  Wide<uint8_t> src0BlkStride = DEFAULT_BLK_STRIDE;
  Wide<uint8_t> src1BlkStride = DEFAULT_BLK_STRIDE;
  Wide<uint8_t> dstRepStride = DEFAULT_REPEAT_STRIDE;
  Wide<uint8_t> src0RepStride = DEFAULT_REPEAT_STRIDE;
  Wide<uint8_t> src1RepStride = DEFAULT_REPEAT_STRIDE;
};

struct UnaryRepeatParams {
  UnaryRepeatParams() {}
  UnaryRepeatParams(const Wide<uint16_t> dstBlkStrideIn, const Wide<uint16_t> srcBlkStrideIn,
                    const Wide<uint8_t> dstRepStrideIn, const Wide<uint8_t> srcRepStrideIn)
      : dstBlkStride(dstBlkStrideIn),
        srcBlkStride(srcBlkStrideIn),
        dstRepStride(dstRepStrideIn),
        srcRepStride(srcRepStrideIn) {}

  Wide<uint16_t> dstBlkStride = DEFAULT_BLK_STRIDE;
  Wide<uint16_t> srcBlkStride = DEFAULT_BLK_STRIDE;
  Wide<uint8_t> dstRepStride = DEFAULT_REPEAT_STRIDE;
  Wide<uint8_t> srcRepStride = DEFAULT_REPEAT_STRIDE;
};

struct CopyRepeatParams {
  CopyRepeatParams() {}
  CopyRepeatParams(const Wide<uint16_t> dstStrideIn, const Wide<uint16_t> srcStrideIn,
                   Wide<uint16_t> dstRepeatSizeIn, Wide<uint16_t> srcRepeatSizeIn)
      : dstStride(dstStrideIn),
        srcStride(srcStrideIn),
        dstRepeatSize(dstRepeatSizeIn),
        srcRepeatSize(srcRepeatSizeIn) {}

  Wide<uint16_t> dstStride = 0;
  Wide<uint16_t> srcStride = 0;
  Wide<uint16_t> dstRepeatSize = DEFAULT_REPEAT_STRIDE;
  Wide<uint16_t> srcRepeatSize = DEFAULT_REPEAT_STRIDE;
};

/// Strides of the destination alone: the source is read on and on.
struct BrcbRepeatParams {
  BrcbRepeatParams() {}
  BrcbRepeatParams(const Wide<uint16_t> dstBlkStrideIn, const Wide<uint16_t> dstRepStrideIn)
      : dstBlkStride(dstBlkStrideIn), dstRepStride(dstRepStrideIn) {}

  Wide<uint16_t> dstBlkStride = DEFAULT_BLK_STRIDE;
  Wide<uint16_t> dstRepStride = DEFAULT_REPEAT_STRIDE;
};

struct TransDataTo5HDParams {
  TransDataTo5HDParams() {}
  TransDataTo5HDParams(const bool dstHighHalfIn, const bool srcHighHalfIn,
                       const Wide<uint8_t> repeatTimesIn, const Wide<uint16_t> dstRepStrideIn,
                       const Wide<uint16_t> srcRepStrideIn)
      : dstHighHalf(dstHighHalfIn),
        srcHighHalf(srcHighHalfIn),
        repeatTimes(repeatTimesIn),
        dstRepStride(dstRepStrideIn),
        srcRepStride(srcRepStrideIn) {}

  bool dstHighHalf = false;
  bool srcHighHalf = false;
  Wide<uint8_t> repeatTimes = 1;
  Wide<uint16_t> dstRepStride = 0;
  Wide<uint16_t> srcRepStride = 0;
};

}  // namespace AscendC
