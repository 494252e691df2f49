// LocalTensor and GlobalTensor: typed views of UB and GM.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core.h"
#include "types.h"

#define __aicore__
#define __global__
#define __gm__
#define __ubuf__
#define GM_ADDR __gm__ uint8_t*

enum pipe_t { PIPE_S, PIPE_V, PIPE_M, PIPE_MTE1, PIPE_MTE2, PIPE_MTE3, PIPE_ALL, PIPE_FIX };

namespace AscendC {

using npu_rope::simulator::Where;

/// A parameter whose type on the chip is T. Kept wide, so that an instruction can refuse a value
/// that T would silently cut (a repeatTime of 256 is 0 in a uint8_t).
template <typename T>
class Wide {
 public:
  template <typename I, typename = std::enable_if_t<std::is_integral_v<I> || std::is_enum_v<I>>>
  Wide(I value) : value_(static_cast<int64_t>(value)) {}
  operator int64_t() const { return value_; }

 private:
  int64_t value_;
};

enum class TPosition : uint8_t {
  GM,
  A1,
  A2,
  B1,
  B2,
  C1,
  C2,
  CO1,
  CO2,
  VECIN,
  VECOUT,
  VECCALC,
  LCM = VECCALC,
  SPM,
  SHM = SPM,
  TSCM,
  C2PIPE2GM,
  C2PIPE2LOCAL,
  MAX,
};
using QuePosition = TPosition;

template <typename T>
class LocalTensor {
 public:
  using PrimType = T;

  LocalTensor() = default;
  /// A tensor at an address of the kernel's own choice (static tensor programming).
  LocalTensor(TPosition position, uint32_t address, uint32_t elements)
      : position_(position),
        address_(address),
        bytes_(elements * sizeof(T)),
        begin_(address),
        end_(address + bytes_) {}
  LocalTensor(TPosition position, npu_rope::simulator::Buffer* buffer, uint32_t offset,
              uint32_t bytes)
      : position_(position),
        address_(buffer->address + offset),
        bytes_(bytes),
        begin_(buffer->address),
        end_(buffer->address + buffer->bytes),
        buffer_(buffer) {}

  LocalTensor operator[](const uint32_t offset) const {
    LocalTensor result = *this;
    const uint64_t bytes = uint64_t{offset} * sizeof(T);
    result.address_ += static_cast<uint32_t>(bytes);
    result.bytes_ = bytes < bytes_ ? bytes_ - static_cast<uint32_t>(bytes) : 0;
    return result;
  }

  template <typename U>
  LocalTensor<U> ReinterpretCast() const {
    LocalTensor<U> result;
    result.position_ = position_;
    result.address_ = address_;
    result.bytes_ = bytes_;
    result.begin_ = begin_;
    result.end_ = end_;
    result.buffer_ = buffer_;
    return result;
  }

  T GetValue(const uint32_t offset, Where where = Where::here()) const {
    npu_rope::simulator::Core& core = npu_rope::simulator::Core::current();
    const auto operand = (*this)[offset].as_operand("src");
    core.scalar_read("GetValue", where, operand);
    return *reinterpret_cast<const T*>(core.ub() + operand.address);
  }

  template <typename S>
  void SetValue(const uint32_t index, const S value, Where where = Where::here()) const {
    npu_rope::simulator::Core& core = npu_rope::simulator::Core::current();
    const auto operand = (*this)[index].as_operand("dst");
    core.scalar_write("SetValue", where, operand);
    *reinterpret_cast<T*>(core.ub() + operand.address) = static_cast<T>(value);
  }

  uint32_t GetSize() const { return bytes_ / sizeof(T); }
  void SetSize(const uint32_t size) { bytes_ = size * sizeof(T); }
  int32_t GetPosition() const { return static_cast<int32_t>(position_); }
  uint64_t GetPhyAddr() const { return address_; }
  uint64_t GetPhyAddr(const uint32_t offset) const { return address_ + offset * sizeof(T); }

  // Below: for the simulator only.
  npu_rope::simulator::Operand as_operand(const char* role) const {
    return {role, npu_rope::simulator::dtype_name<T>(), sizeof(T), address_, begin_, end_, buffer_};
  }
  npu_rope::simulator::Buffer* buffer() const { return buffer_; }

 private:
  template <typename>
  friend class LocalTensor;

  TPosition position_ = TPosition::MAX;
  uint32_t address_ = 0, bytes_ = 0;
  uint32_t begin_ = 0, end_ = 0;  // of the buffer
  npu_rope::simulator::Buffer* buffer_ = nullptr;
};

template <typename T>
class GlobalTensor {
 public:
  using PrimType = T;

  void SetGlobalBuffer(__gm__ T* buffer, uint64_t bufferSize) {
    address_ = buffer;
    size_ = bufferSize;
  }
  void SetGlobalBuffer(__gm__ T* buffer) { SetGlobalBuffer(buffer, 0); }
  const __gm__ T* GetPhyAddr() const { return address_; }
  __gm__ T* GetPhyAddr(const uint64_t offset) const { return address_ + offset; }
  uint64_t GetSize() const { return size_; }

  GlobalTensor operator[](const uint64_t offset) const {
    GlobalTensor result = *this;
    result.address_ += offset;
    return result;
  }

  T GetValue(const uint64_t offset, Where where = Where::here()) const {
    const T* const at = address_ + offset;
    npu_rope::simulator::Core::current().scalar_read_gm(
        "GetValue", where, reinterpret_cast<const uint8_t*>(at), sizeof(T));
    return *at;
  }

 private:
  __gm__ T* address_ = nullptr;
  uint64_t size_ = 0;  // elements
};

}  // namespace AscendC
