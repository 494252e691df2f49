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

/// The offset given to operator[], and where: a default argument is all that can tell.
class Offset {
 public:
  template <typename I, typename = std::enable_if_t<std::is_integral_v<I>>>
  Offset(I value, Where where = Where::here())
      : value_(static_cast<uint32_t>(value)), where_(where) {}
  operator uint32_t() const { return value_; }
  Where where() const { return where_; }

 private:
  uint32_t value_;
  Where where_;
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

  LocalTensor operator[](const Offset offset) const {
    const uint64_t bytes = uint64_t{offset} * sizeof(T);
    if (bytes >= bytes_) {
      npu_rope::simulator::Core::current().fail(
          "operator[]", offset.where(),
          "the offset is " + std::to_string(uint32_t{offset}) + ", expected less than the " +
              std::to_string(GetSize()) + " elements of the tensor");
    }
    LocalTensor result = *this;
    result.address_ += static_cast<uint32_t>(bytes);
    result.bytes_ -= static_cast<uint32_t>(bytes);
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
  /// Cuts the tensor to its first elements: what uses it may not touch more.
  void SetSize(const uint32_t size, Where where = Where::here()) {
    const uint64_t bytes = uint64_t{size} * sizeof(T);
    if (address_ + bytes > end_) {
      npu_rope::simulator::Core::current().fail(
          "SetSize", where,
          "the size is " + std::to_string(size) + " elements, expected at most the " +
              std::to_string((end_ - address_) / sizeof(T)) + " that are left of the memory");
    }
    bytes_ = static_cast<uint32_t>(bytes);
    begin_ = address_;
    end_ = address_ + bytes_;
  }
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

enum class CacheMode {
  CACHE_MODE_DISABLE = 0,
  CACHE_MODE_NORMAL = 1,
  CACHE_MODE_LAST = 2,
  CACHE_MODE_PERSISTENT = 4
};
enum class CacheRwMode { READ = 1, WRITE = 2, RW = 3 };

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

  /// Whether transfers go through L2. It changes their time alone, and is recorded.
  template <CacheRwMode rwMode = CacheRwMode::RW>
  void SetL2CacheHint(CacheMode mode, Where where = Where::here()) {
    static_assert(rwMode == CacheRwMode::RW, "the other modes are reserved");
    if (mode != CacheMode::CACHE_MODE_DISABLE && mode != CacheMode::CACHE_MODE_NORMAL) {
      npu_rope::simulator::Core::current().fail(
          "SetL2CacheHint", where,
          "the mode is " + std::to_string(static_cast<int>(mode)) +
              ", expected CACHE_MODE_DISABLE or CACHE_MODE_NORMAL: the others are not there yet");
    }
    cached_ = mode == CacheMode::CACHE_MODE_NORMAL;
  }
  bool cached() const { return cached_; }  // for the simulator only

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
  bool cached_ = true;
};

}  // namespace AscendC
