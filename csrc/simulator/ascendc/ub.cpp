// The unified buffer: bounds, what was ever written, and who touched a block last.
#include <algorithm>
#include <cstring>

#include "core_util.h"

namespace npu_rope::simulator {
namespace {

/// The active bytes of one block, bit by bit, where lanes are picked one by one.
uint32_t active_bytes(const Lanes& lanes, const Operand& operand, uint32_t block) {
  const uint32_t per_block = kBlockBytes / operand.element_bytes;
  const uint32_t element = operand.element_bytes == 4   ? 0xfu
                           : operand.element_bytes == 2 ? 0x3u
                                                        : 0x1u;
  uint32_t mask = 0;
  for (uint32_t i = 0; i < per_block; ++i) {
    const uint32_t lane = block * per_block + i;
    if (lane < lanes.per_repeat && lanes.is_active(lane)) {
      mask |= element << (i * operand.element_bytes);
    }
  }
  return mask;
}

}  // namespace

void Core::check_operand(const char* api, Where where, const Operand& operand) const {
  if (operand.end == operand.begin) {
    fail(api, where,
         text(operand.role,
              " is a tensor without memory: expected one from "
              "AllocTensor, DeQue or TBuf::Get"));
  }
  if (operand.buffer && operand.buffer->state == Buffer::State::kFree) {
    fail(api, where,
         text(operand.role, " at UB ", hex(operand.address), " was given back by FreeTensor (",
              place(operand.buffer->where), "): expected a tensor that is still held"));
  }
  if (operand.address % kBlockBytes != 0) {
    fail(api, where,
         text(operand.role, " starts at UB address ", hex(operand.address), " (", operand.address,
              "), expected a multiple of 32 bytes"));
  }
}

void Core::check_bounds(const char* api, Where where, const Operand& operand, uint32_t begin,
                        uint32_t end) const {
  if (begin < operand.begin || end > operand.end) {
    fail(api, where,
         text(operand.role, " touches UB bytes [", begin, ", ", end,
              "), expected to stay inside its buffer [", operand.begin, ", ", operand.end, ")"));
  }
  if (end > launch_.ub_usable) {
    fail(api, where,
         text(operand.role, " touches UB bytes [", begin, ", ", end, "), expected below ",
              launch_.ub_usable, ", what ", launch_.chip, " leaves for a kernel"));
  }
}

Operand Core::operand_at(const char* role, const char* dtype, uint32_t element_bytes,
                         uint64_t address) const {
  Operand operand{role,
                  dtype,
                  element_bytes,
                  static_cast<uint32_t>(address),
                  0,
                  static_cast<uint32_t>(launch_.ub_usable),
                  nullptr};
  for (int i = 0; i < buffer_count_; ++i) {
    const Buffer& buffer = buffers_[i];
    if (address < buffer.address || address >= buffer.address + buffer.bytes) continue;
    operand.begin = buffer.address;
    operand.end = buffer.address + buffer.bytes;
    operand.buffer = &buffer;
  }
  return operand;
}

bool Core::needs_order(Pipe pipe, Pipe other) const {
  if (pipe == Pipe::S && other == Pipe::S) return false;  // which has one instruction at a time
  if (!launch_.options.auto_sync) return true;
  if (pipe == Pipe::S || other == Pipe::S) return false;
  return pipe != Pipe::V || other != Pipe::V;
}

void Core::order_after(const uint32_t* numbers, Pipe pipe, Pipe other, bool other_wrote,
                       bool writes, const char* api, Where where, const Operand& operand,
                       uint32_t first, uint32_t last) const {
  uint32_t latest = 0;
  for (uint32_t block = first; block < last; ++block) latest = std::max(latest, numbers[block]);
  const uint32_t known = known_[int(pipe)][int(other)];
  if (latest <= known) return;
  uint32_t block = first;
  while (numbers[block] <= known) ++block;
  const std::string remedy = pipe == other
                                 ? text("PipeBarrier<PIPE_", pipe_name(pipe), ">")
                                 : text("a queue, SetFlag/WaitFlag<HardEvent::", pipe_name(other),
                                        "_", pipe_name(pipe), "> or PipeBarrier<PIPE_ALL>");
  fail(api, where,
       text(operand.role, writes ? " writes" : " reads", " UB ", hex(uint64_t{block} * kBlockBytes),
            ", which ", describe(other, numbers[block]), other_wrote ? " writes" : " reads",
            ", and nothing orders the two: expected ", remedy, " between them"));
}

void Core::read_range(Pipe pipe, uint32_t number, const char* api, Where where,
                      const Operand& operand, uint32_t begin, uint32_t end) {
  check_bounds(api, where, operand, begin, end);
  const uint32_t first = begin / kBlockBytes, last = align_up(end) / kBlockBytes;
  uint32_t all = valid_[first] | ~bytes_inside(first, begin, end);
  for (uint32_t block = first + 1; block + 1 < last; ++block) all &= valid_[block];
  all &= valid_[last - 1] | ~bytes_inside(last - 1, begin, end);
  if (all != ~0u) {
    uint32_t byte = begin;
    while (valid_[byte / kBlockBytes] >> (byte % kBlockBytes) & 1u) ++byte;
    fail(api, where,
         text(operand.role, " reads UB byte ", byte, " (", hex(byte), ", byte ",
              byte - operand.begin, " of its buffer), which was never written"));
  }
  for (int other = 0; other < kPipes; ++other) {
    if (needs_order(pipe, Pipe(other))) {
      order_after(written_[other].data(), pipe, Pipe(other), true, false, api, where, operand,
                  first, last);
    }
  }
  std::fill(read_[int(pipe)].begin() + first, read_[int(pipe)].begin() + last, number);
}

void Core::write_range(Pipe pipe, uint32_t number, const char* api, Where where,
                       const Operand& operand, uint32_t begin, uint32_t end) {
  check_bounds(api, where, operand, begin, end);
  const uint32_t first = begin / kBlockBytes, last = align_up(end) / kBlockBytes;
  for (int other = 0; other < kPipes; ++other) {
    if (needs_order(pipe, Pipe(other))) {
      order_after(written_[other].data(), pipe, Pipe(other), true, true, api, where, operand, first,
                  last);
      if (Pipe(other) != pipe) {
        order_after(read_[other].data(), pipe, Pipe(other), false, true, api, where, operand, first,
                    last);
      }
    }
  }
  valid_[first] |= bytes_inside(first, begin, end);
  if (last - first > 1) {
    std::fill(valid_.begin() + first + 1, valid_.begin() + last - 1, ~0u);
    valid_[last - 1] |= bytes_inside(last - 1, begin, end);
  }
  std::fill(written_[int(pipe)].begin() + first, written_[int(pipe)].begin() + last, number);
}

/// Applies an operand's reads or writes to what is remembered of UB.
void Core::touch(const VectorCall& call, int index, bool write, uint32_t number) {
  const Operand& operand = call.operands[index];
  const auto apply = [&](uint32_t begin, uint32_t end) {
    if (write) {
      write_range(Pipe::V, number, call.api, call.where, operand, begin, end);
    } else {
      read_range(Pipe::V, number, call.api, call.where, operand, begin, end);
    }
  };
  const Lanes& lanes = call.lanes_of(index);
  const uint32_t repeat_pitch = operand.repeat_stride * kBlockBytes;
  if (lanes.prefix && operand.block_stride == 1) {
    if (repeat_pitch == lanes.active * operand.element_bytes) {  // one run of bytes
      apply(operand.address, operand.address + (lanes.repeats - 1) * repeat_pitch +
                                 repeat_bytes(lanes, operand, lanes.repeats - 1));
    } else {
      for (uint32_t r = 0; r < (repeat_pitch == 0 ? 1 : lanes.repeats); ++r) {
        const uint32_t begin = operand.address + r * repeat_pitch;
        apply(begin, begin + repeat_bytes(lanes, operand, r));
      }
    }
    return;
  }
  for (uint32_t r = 0; r < lanes.repeats; ++r) {
    const uint32_t blocks = repeat_blocks(lanes, operand, r);
    for (uint32_t b = 0; b < blocks; ++b) {
      const uint32_t begin = block_address(operand, r, b);
      if (lanes.prefix) {
        const uint32_t left = repeat_bytes(lanes, operand, r) - b * kBlockBytes;
        apply(begin, begin + std::min<uint32_t>(left, kBlockBytes));
        continue;
      }
      uint32_t bytes = active_bytes(lanes, operand, b);
      while (bytes) {  // run by run
        const uint32_t from = uint32_t(__builtin_ctz(bytes));
        const uint32_t rest = ~(bytes >> from);
        const uint32_t length = rest ? uint32_t(__builtin_ctz(rest)) : 32 - from;
        apply(begin + from, begin + from + length);
        bytes &= ~(low_bytes(length) << from);
      }
    }
  }
}

/// What Gather reads, lane by lane.
void Core::touch_gathered(const VectorCall& call, uint32_t number) {
  const Operand &dst = call.operands[0], &offsets = call.operands[1], &src = *call.gathered;
  check_operand(call.api, call.where, src);
  std::vector<uint8_t> written(valid_.size(), 0);
  for (uint32_t r = 0; r < call.lanes.repeats; ++r) {
    for (uint32_t b = 0; b < repeat_blocks(call.lanes, dst, r); ++b) {
      written[std::min(block_address(dst, r, b) / kBlockBytes, uint32_t(written.size() - 1))] = 1;
    }
  }
  for (uint32_t r = 0; r < call.lanes.repeats; ++r) {
    for (uint32_t lane = 0; lane < call.lanes.active; ++lane) {
      const uint32_t place = block_address(offsets, r, 0) + lane * offsets.element_bytes;
      uint32_t offset;
      std::memcpy(&offset, ub_.get() + place, sizeof offset);
      const uint64_t at = uint64_t{src.address} + call.gathered_from + offset;
      const auto lane_text = [&] { return text(" of lane ", lane, " of repeat ", r, " is "); };
      if (at % src.element_bytes != 0) {
        fail(call.api, call.where,
             text(offsets.role, lane_text(), offset, ", expected a multiple of ", src.element_bytes,
                  " bytes"));
      }
      if (at + src.element_bytes > src.end) {
        fail(call.api, call.where,
             text(offsets.role, lane_text(), offset, ", which leads to UB byte ", at,
                  ": expected to stay inside the buffer [", src.begin, ", ", src.end, ") of ",
                  src.role));
      }
      if (written[at / kBlockBytes]) {
        fail(call.api, call.where,
             text("dst overlaps ", src.role, " at UB ", hex(at), ": expected no block in common"));
      }
      const uint32_t begin = static_cast<uint32_t>(at);
      read_range(Pipe::V, number, call.api, call.where, src, begin, begin + src.element_bytes);
    }
  }
}

/// Of an instruction whose destination has another shape than its source.
void Core::check_apart(const VectorCall& call) const {
  std::vector<uint8_t> read(valid_.size(), 0);
  const auto for_each_block = [&](int index, const auto& visit) {
    const Operand& operand = call.operands[index];
    for (uint32_t r = 0; r < call.lanes.repeats; ++r) {
      const uint32_t blocks = repeat_blocks(call.lanes_of(index), operand, r);
      for (uint32_t b = 0; b < blocks; ++b) {
        const size_t row = block_address(operand, r, b) / kBlockBytes;
        visit(std::min(row, read.size() - 1));
      }
    }
  };
  for_each_block(1, [&](size_t row) { read[row] = 1; });
  for_each_block(0, [&](size_t row) {
    if (read[row]) {
      fail(call.api, call.where,
           text("dst overlaps ", call.operands[1].role, " at UB ", hex(row * kBlockBytes),
                ": expected no block in common"));
    }
  });
}

void Core::check_overlap(const VectorCall& call) const {
  const Lanes& lanes = call.lanes;
  const Operand& dst = call.operands[0];
  const auto extent_end = [&](const Operand& operand) {
    return block_address(operand, lanes.repeats - 1, kRepeatBlocks - 1) + kBlockBytes;
  };
  for (int o = 1; o < call.operand_count; ++o) {
    const Operand& src = call.operands[o];
    if (src.address >= extent_end(dst) || dst.address >= extent_end(src)) continue;
    const bool same_shape = src.address == dst.address && src.block_stride == dst.block_stride &&
                            src.repeat_stride == dst.repeat_stride &&
                            src.element_bytes == dst.element_bytes;
    const uint32_t span = (repeat_blocks(lanes, dst, 0) - 1) * dst.block_stride + 1;
    if (same_shape && (lanes.repeats == 1 || dst.repeat_stride >= span)) continue;
    const bool accumulates = call.may_accumulate && o == call.operand_count - 1 &&
                             (src.repeat_stride == 0 || dst.repeat_stride == 0);
    std::vector<uint8_t> written(valid_.size(), 0);  // by an earlier repeat
    const auto row = [&](const Operand& operand, uint32_t repeat, uint32_t block) {
      return std::min<size_t>(block_address(operand, repeat, block) / kBlockBytes,
                              written.size() - 1);
    };
    for (uint32_t r = 0; r < lanes.repeats; ++r) {
      const uint32_t src_blocks = repeat_blocks(lanes, src, r);
      const uint32_t dst_blocks = repeat_blocks(lanes, dst, r);
      uint32_t shared = 0, aligned = 0;
      for (uint32_t b = 0; b < src_blocks; ++b) {
        if (written[row(src, r, b)] && !accumulates) {
          fail(call.api, call.where,
               text(src.role, " of repeat ", r, " overlaps dst of an earlier repeat at UB ",
                    hex(block_address(src, r, b)),
                    ": expected repeats that do not read what earlier ones wrote"));
        }
        for (uint32_t d = 0; d < dst_blocks; ++d) {
          if (row(src, r, b) != row(dst, r, d)) continue;
          ++shared;
          aligned += b == d && src.element_bytes == dst.element_bytes;
        }
      }
      if (shared && (shared != aligned || aligned != dst_blocks)) {
        fail(call.api, call.where,
             text("dst at UB ", hex(dst.address), " overlaps ", src.role, " at UB ",
                  hex(src.address), " in part (repeat ", r,
                  "): expected the same blocks or none in common"));
      }
      for (uint32_t d = 0; d < dst_blocks; ++d) written[row(dst, r, d)] = 1;
    }
  }
}

}  // namespace npu_rope::simulator
