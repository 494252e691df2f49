// What the parts of Core share: text for messages, and where an operand's blocks lie.
#pragma once

#include <cstring>
#include <sstream>
#include <string>

#include "core.h"

namespace npu_rope::simulator {

inline std::string hex(uint64_t value) {
  std::ostringstream out;
  out << "0x" << std::hex << value;
  return out.str();
}

template <typename... Parts>
inline std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

inline std::string place(Where where) {
  const char* slash = std::strrchr(where.file, '/');
  return text(slash ? slash + 1 : where.file, ":", where.line);
}

/// The operand's bytes in a full repeat, or in the last one, where the lanes are a prefix.
inline uint32_t repeat_bytes(const Lanes& lanes, const Operand& operand, uint32_t repeat) {
  const uint32_t count = repeat + 1 == lanes.repeats ? lanes.last : lanes.active;
  return count * operand.element_bytes;
}

inline uint32_t align_up(uint32_t value) {
  return (value + kBlockBytes - 1) / kBlockBytes * kBlockBytes;
}

/// How many blocks of a repeat have an active lane in them, from the first block on.
inline uint32_t repeat_blocks(const Lanes& lanes, const Operand& operand, uint32_t repeat) {
  const uint32_t bytes = lanes.prefix ? repeat_bytes(lanes, operand, repeat)
                                      : lanes.per_repeat * operand.element_bytes;
  return align_up(bytes) / kBlockBytes;
}

inline uint32_t block_address(const Operand& operand, uint32_t repeat, uint32_t block) {
  return operand.address +
         kBlockBytes * (repeat * operand.repeat_stride + block * operand.block_stride);
}

inline uint32_t low_bytes(uint32_t count) { return count >= 32 ? ~0u : (1u << count) - 1u; }

/// The bytes of `block` that lie in [begin, end), bit by bit.
inline uint32_t bytes_inside(uint32_t block, uint32_t begin, uint32_t end) {
  const uint32_t start = block * kBlockBytes;
  const uint32_t below = begin > start ? low_bytes(begin - start) : 0u;
  return low_bytes(end - start) & ~below;
}

}  // namespace npu_rope::simulator
