// DataCopy and DataCopyPad: transfers between GM and UB.
#pragma once

#include "tensor.h"

namespace AscendC {

constexpr int32_t DEFAULT_DATA_COPY_NBURST = 1;
constexpr int32_t DEFAULT_DATA_COPY_STRIDE = 0;

/// Lengths and gaps in 32-byte blocks; with DataCopyPad the GM side is in bytes.
struct DataCopyParams {
  DataCopyParams() {}
  DataCopyParams(const Wide<uint16_t> count, const Wide<uint16_t> len,
                 const Wide<uint16_t> srcStrideIn, const Wide<uint16_t> dstStrideIn)
      : blockCount(count), blockLen(len), srcStride(srcStrideIn), dstStride(dstStrideIn) {}

  Wide<uint16_t> blockCount = DEFAULT_DATA_COPY_NBURST;
  Wide<uint16_t> blockLen = 0;
  union {
    Wide<uint16_t> srcGap = 0;
    Wide<uint16_t> srcStride;
  };
  union {
    Wide<uint16_t> dstGap = 0;
    Wide<uint16_t> dstStride;
  };
};

/// blockLen and the GM stride in bytes, the UB stride in 32-byte blocks; strides are gaps.
struct DataCopyExtParams {
  DataCopyExtParams() {}
  DataCopyExtParams(const Wide<uint16_t> count, const Wide<uint32_t> len,
                    const Wide<uint32_t> srcStrideIn, const Wide<uint32_t> dstStrideIn,
                    const Wide<uint32_t> rsvIn)
      : blockCount(count),
        blockLen(len),
        srcStride(srcStrideIn),
        dstStride(dstStrideIn),
        rsv(rsvIn) {}

  Wide<uint16_t> blockCount = DEFAULT_DATA_COPY_NBURST;
  Wide<uint32_t> blockLen = 0;
  Wide<uint32_t> srcStride = DEFAULT_DATA_COPY_STRIDE;
  Wide<uint32_t> dstStride = DEFAULT_DATA_COPY_STRIDE;
  Wide<uint32_t> rsv = 0;
};

/// Paddings in elements.
struct DataCopyPadParams {
  DataCopyPadParams() {}
  DataCopyPadParams(const bool isPadValue, const Wide<uint8_t> leftPadValue,
                    const Wide<uint8_t> rightPadValue, const uint64_t padValue)
      : isPad(isPadValue),
        leftPadding(leftPadValue),
        rightPadding(rightPadValue),
        paddingValue(padValue) {}

  bool isPad = false;
  Wide<uint8_t> leftPadding = 0;
  Wide<uint8_t> rightPadding = 0;
  uint64_t paddingValue = 0;
};

template <typename T>
struct DataCopyPadExtParams {
  DataCopyPadExtParams() {}
  DataCopyPadExtParams(const bool isPadValue, const Wide<uint8_t> leftPadValue,
                       const Wide<uint8_t> rightPadValue, T padValue)
      : isPad(isPadValue),
        leftPadding(leftPadValue),
        rightPadding(rightPadValue),
        paddingValue(padValue) {}

  bool isPad = false;
  Wide<uint8_t> leftPadding = 0;
  Wide<uint8_t> rightPadding = 0;
  T paddingValue = 0;
};

}  // namespace AscendC

namespace npu_rope::simulator {

constexpr int64_t kMaxCopyBlocks = 4095;
constexpr int64_t kMaxPadBlockBytes = 2097151;
constexpr int64_t kMaxUint16 = 65535, kMaxUint32 = 4294967295;

template <typename T>
constexpr bool kIsCopyable = one_of<T, int8_t, uint8_t, int16_t, uint16_t, half, bfloat16_t,
                                    int32_t, uint32_t, float, int64_t, uint64_t, double>();

inline uint32_t whole_blocks(int64_t bytes) {
  return static_cast<uint32_t>((bytes + kBlockBytes - 1) / kBlockBytes * kBlockBytes);
}

/// The positions in UB that the copies of arch 2201 reach.
template <typename T>
void expect_copy_position(const char* api, Where where, const AscendC::LocalTensor<T>& tensor,
                          const char* role) {
  const auto position = static_cast<AscendC::TPosition>(tensor.GetPosition());
  if (position != AscendC::TPosition::VECCALC) return;
  Core::current().fail(api, where,
                       std::string(role) +
                           " is a tensor at VECCALC, expected VECIN or VECOUT: copies "
                           "between GM and UB know no other");
}

/// DataCopy: everything in whole 32-byte blocks.
template <typename T>
void copy_blocks(bool load, const AscendC::LocalTensor<T>& ub,
                 const AscendC::GlobalTensor<T>& gm_tensor, int64_t count, int64_t length,
                 int64_t src_gap, int64_t dst_gap, Where where) {
  static_assert(kIsCopyable<T>, "DataCopy does not take this dtype on arch 2201");
  constexpr const char* kApi = "DataCopy";
  const T* const gm = gm_tensor.GetPhyAddr();
  Core& core = Core::current();
  core.expect_range(kApi, where, "blockCount", count, 0, kMaxCopyBlocks);
  core.expect_range(kApi, where, "blockLen", length, 0, kMaxUint16);
  core.expect_range(kApi, where, "srcGap", src_gap, 0, kMaxUint16);
  core.expect_range(kApi, where, "dstGap", dst_gap, 0, kMaxUint16);
  if (reinterpret_cast<uintptr_t>(gm) % sizeof(T) != 0) {
    core.fail(kApi, where,
              "the GM address is not a multiple of " + std::to_string(sizeof(T)) +
                  " bytes, the size of an element: expected it to be");
  }
  expect_copy_position(kApi, where, ub, load ? "dst" : "src");
  if (count == 0 || length == 0) return;  // nothing to do, on the chip too
  Transfer transfer{};
  transfer.api = kApi;
  transfer.where = where;
  transfer.gm = reinterpret_cast<const uint8_t*>(gm);
  transfer.ub = ub.as_operand(load ? "dst" : "src");
  transfer.blocks = static_cast<uint32_t>(count);
  transfer.block_bytes = static_cast<uint32_t>(length * kBlockBytes);
  transfer.cached = gm_tensor.cached();
  transfer.gm_pitch = (length + (load ? src_gap : dst_gap)) * kBlockBytes;
  transfer.ub_pitch = static_cast<uint32_t>((length + (load ? dst_gap : src_gap)) * kBlockBytes);
  load ? core.load(transfer) : core.store(transfer);
}

template <typename T>
void copy_elements(bool load, const AscendC::LocalTensor<T>& ub, const AscendC::GlobalTensor<T>& gm,
                   int64_t count, Where where) {
  const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
  if (count < 1 || bytes % kBlockBytes != 0) {
    Core::current().fail("DataCopy", where,
                         "count is " + std::to_string(count) + " elements or " +
                             std::to_string(bytes) +
                             " bytes, expected a positive multiple of 32 "
                             "bytes: the chip drops the rest");
  }
  copy_blocks(load, ub, gm, 1, bytes / kBlockBytes, 0, 0, where);
}

/// DataCopyPad: bytes on the GM side, each block padded to 32 bytes on the UB side.
template <typename T>
Transfer pad_transfer(bool load, const AscendC::LocalTensor<T>& ub,
                      const AscendC::GlobalTensor<T>& gm, int64_t count, int64_t length,
                      int64_t src_stride, int64_t dst_stride, int64_t max_length,
                      int64_t max_stride, int64_t left, int64_t right, Where where) {
  static_assert(kIsCopyable<T>, "DataCopyPad does not take this dtype on arch 2201");
  constexpr const char* kApi = "DataCopyPad";
  const Core& core = Core::current();
  core.expect_range(kApi, where, "blockCount", count, 0, kMaxCopyBlocks);
  core.expect_range(kApi, where, "blockLen", length, 0, max_length);
  core.expect_range(kApi, where, "srcStride", src_stride, 0, max_stride);
  core.expect_range(kApi, where, "dstStride", dst_stride, 0, max_stride);
  core.expect_range(kApi, where, "leftPadding", left, 0, kBlockBytes / sizeof(T));
  core.expect_range(kApi, where, "rightPadding", right, 0, kBlockBytes / sizeof(T));
  if (length % static_cast<int64_t>(sizeof(T)) != 0) {
    core.fail(kApi, where,
              "blockLen is " + std::to_string(length) + " bytes, expected a multiple of " +
                  std::to_string(sizeof(T)) + ", the size of " + dtype_name<T>());
  }
  expect_copy_position(kApi, where, ub, load ? "dst" : "src");
  Transfer transfer{};
  transfer.api = kApi;
  transfer.where = where;
  transfer.gm = reinterpret_cast<const uint8_t*>(gm.GetPhyAddr());
  transfer.cached = gm.cached();
  transfer.ub = ub.as_operand(load ? "dst" : "src");
  transfer.blocks = static_cast<uint32_t>(count);
  transfer.block_bytes = static_cast<uint32_t>(length);
  transfer.left_bytes = static_cast<uint32_t>(left * sizeof(T));
  transfer.right_bytes = static_cast<uint32_t>(right * sizeof(T));
  const int64_t in_ub = transfer.left_bytes + length + transfer.right_bytes;
  const int64_t ub_gap = (load ? dst_stride : src_stride) * kBlockBytes;
  if (count > 1)
    core.expect_range(kApi, where, "bytes from block to block in UB", whole_blocks(in_ub) + ub_gap,
                      0, kMaxPadBlockBytes);
  transfer.ub_pitch = static_cast<uint32_t>(whole_blocks(in_ub) + ub_gap);
  transfer.gm_pitch = length + (load ? src_stride : dst_stride);
  return transfer;
}

}  // namespace npu_rope::simulator

namespace AscendC {

template <typename T>
void DataCopy(const LocalTensor<T>& dst, const GlobalTensor<T>& src, const Wide<uint32_t> count,
              Where where = Where::here()) {
  npu_rope::simulator::copy_elements(true, dst, src, count, where);
}

template <typename T>
void DataCopy(const GlobalTensor<T>& dst, const LocalTensor<T>& src, const Wide<uint32_t> count,
              Where where = Where::here()) {
  npu_rope::simulator::copy_elements(false, src, dst, count, where);
}

template <typename T>
void DataCopy(const LocalTensor<T>& dst, const GlobalTensor<T>& src,
              const DataCopyParams& repeatParams, Where where = Where::here()) {
  npu_rope::simulator::copy_blocks(true, dst, src, repeatParams.blockCount, repeatParams.blockLen,
                                   repeatParams.srcGap, repeatParams.dstGap, where);
}

template <typename T>
void DataCopy(const GlobalTensor<T>& dst, const LocalTensor<T>& src,
              const DataCopyParams& repeatParams, Where where = Where::here()) {
  npu_rope::simulator::copy_blocks(false, src, dst, repeatParams.blockCount, repeatParams.blockLen,
                                   repeatParams.srcGap, repeatParams.dstGap, where);
}

template <typename T>
void DataCopyPad(const LocalTensor<T>& dst, const GlobalTensor<T>& src,
                 const DataCopyExtParams& dataCopyParams, const DataCopyPadExtParams<T>& padParams,
                 Where where = Where::here()) {
  namespace sim = npu_rope::simulator;
  const DataCopyExtParams& p = dataCopyParams;
  sim::Transfer transfer = sim::pad_transfer(true, dst, src, p.blockCount, p.blockLen, p.srcStride,
                                             p.dstStride, sim::kMaxPadBlockBytes, sim::kMaxUint32,
                                             padParams.leftPadding, padParams.rightPadding, where);
  transfer.fill = padParams.isPad && (padParams.leftPadding > 0 || padParams.rightPadding > 0);
  transfer.fill_bytes = sizeof(T);
  std::memcpy(&transfer.fill_value, &padParams.paddingValue, sizeof(T));
  if (transfer.fill && sizeof(T) == 8 && transfer.fill_value != 0) {
    sim::Core::current().fail("DataCopyPad", where,
                              "paddingValue is not 0, expected 0 for elements of 8 bytes");
  }
  if (transfer.blocks > 0 && transfer.block_bytes > 0) sim::Core::current().load(transfer);
}

template <typename T>
void DataCopyPad(const LocalTensor<T>& dst, const GlobalTensor<T>& src,
                 const DataCopyParams& dataCopyParams, const DataCopyPadParams& padParams,
                 Where where = Where::here()) {
  namespace sim = npu_rope::simulator;
  const DataCopyParams& p = dataCopyParams;
  sim::Transfer transfer = sim::pad_transfer(true, dst, src, p.blockCount, p.blockLen, p.srcStride,
                                             p.dstStride, sim::kMaxUint16, sim::kMaxUint16,
                                             padParams.leftPadding, padParams.rightPadding, where);
  transfer.fill = padParams.isPad && (padParams.leftPadding > 0 || padParams.rightPadding > 0);
  transfer.fill_bytes = sizeof(T);
  transfer.fill_value = padParams.paddingValue;
  if (transfer.blocks > 0 && transfer.block_bytes > 0) sim::Core::current().load(transfer);
}

template <typename T>
void DataCopyPad(const GlobalTensor<T>& dst, const LocalTensor<T>& src,
                 const DataCopyExtParams& dataCopyParams, Where where = Where::here()) {
  namespace sim = npu_rope::simulator;
  const DataCopyExtParams& p = dataCopyParams;
  const sim::Transfer transfer =
      sim::pad_transfer(false, src, dst, p.blockCount, p.blockLen, p.srcStride, p.dstStride,
                        sim::kMaxPadBlockBytes, sim::kMaxUint32, 0, 0, where);
  if (transfer.blocks > 0 && transfer.block_bytes > 0) sim::Core::current().store(transfer);
}

template <typename T>
void DataCopyPad(const GlobalTensor<T>& dst, const LocalTensor<T>& src,
                 const DataCopyParams& dataCopyParams, Where where = Where::here()) {
  namespace sim = npu_rope::simulator;
  const DataCopyParams& p = dataCopyParams;
  const sim::Transfer transfer =
      sim::pad_transfer(false, src, dst, p.blockCount, p.blockLen, p.srcStride, p.dstStride,
                        sim::kMaxUint16, sim::kMaxUint16, 0, 0, where);
  if (transfer.blocks > 0 && transfer.block_bytes > 0) sim::Core::current().store(transfer);
}

}  // namespace AscendC
