// Rows in the unified buffer, as the kernel's steps hand them to each other.
#pragma once

#include "kernel_operator.h"
#include "rope_params.h"

namespace npu_rope {

/// What transposes elements without looking at them.
template <typename T>
struct BitsOf {
  using Type = uint16_t;
};
template <>
struct BitsOf<float> {
  using Type = float;
};

/// Rows in a part of the unified buffer.
template <typename B>
struct Rows {
  const AscendC::LocalTensor<uint8_t>& part;
  int32_t begin;   // bytes to the first
  int32_t blocks;  // 32-byte blocks from row to row

  /// From a column of the first row on.
  ROPE_INLINE AscendC::LocalTensor<B> operator[](int32_t column) const {
    return part[begin + column * static_cast<int32_t>(sizeof(B))].template ReinterpretCast<B>();
  }
  /// Rows that begin so many bytes further on. What holds them is not const: g++ keeps a const
  /// that a function returned in memory, and with it every tensor that it refers to.
  ROPE_INLINE Rows After(int32_t bytes) const { return {part, begin + bytes, blocks}; }
};

ROPE_INLINE uint64_t Address(const AscendC::LocalTensor<uint8_t>& part, int32_t begin = 0) {
  return reinterpret_cast<uint64_t>(part[begin].GetPhyAddr());
}
template <typename B>
ROPE_INLINE uint64_t Address(const Rows<B>& rows) {
  return Address(rows.part, rows.begin);
}

}  // namespace npu_rope
