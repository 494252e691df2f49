// On the chip: rows of pairs (2i, 2i + 1) <-> a plane of their first and one of their second
// elements, for elements of 16 or 32 bits, by transposes.
//
// Two neighbouring 32-byte blocks hold the pairs whose first elements fill one block of the even
// plane and whose second elements fill one of the odd plane. A unit is 16 such neighbours: a matrix
// of 16 rows. Transposed it has a column a line, so even and odd columns are apart; those of either
// parity, transposed back, are the plane.
//
// TransDataTo5HD takes 16 blocks by a list of addresses and gives 16. 16-bit: the blocks are 16
// rows of 16, a unit is 32 columns, and a line is one block. 32-bit: they are 16 rows of 8, a unit
// is 16 columns, and a line is two blocks, entries 2l and 2l + 1 of the list that is given.
#pragma once

#include "kernel_operator.h"
#include "rope_params.h"

namespace npu_rope {

constexpr int32_t kUnitBlocks = 2 * kUnit;  // kUnit neighbours

/// Where neighbours lie: `count` after each other, the next so many `pitch` blocks after the first.
/// The rows of a unit are whole.
struct PairRows {
  int32_t count = kUnit, pitch = kUnitBlocks;

  __aicore__ inline int32_t BlockOf(int32_t neighbour) const {
    return neighbour / count * pitch + neighbour % count * 2;
  }
};

/// Blocks to keep for a plane that SplitPairs writes: it writes whole units.
__aicore__ inline int32_t SplitBlocks(int32_t blocks) {
  return static_cast<int32_t>(AlignUp(blocks, kUnit));
}

template <typename B>
__aicore__ inline AscendC::LocalTensor<B> AtBlock(const AscendC::LocalTensor<B>& tensor,
                                                  int32_t block) {
  return tensor[block * (kBlockBytes / static_cast<int32_t>(sizeof(B)))];
}

template <typename B>
__aicore__ inline uint64_t BlockAddress(const AscendC::LocalTensor<B>& tensor, int32_t block) {
  return reinterpret_cast<uint64_t>(AtBlock(tensor, block).GetPhyAddr());
}

/// Entry i of the list that a transpose gives is the block of this row, when it gives rows.
template <typename B>
__aicore__ inline int32_t RowOf(int32_t i) {
  return sizeof(B) == 2 ? i : i % 2 * 8 + i / 2;
}
/// Entry i of the list that it takes is this block of 16 blocks of lines, when it takes lines.
template <typename B>
__aicore__ inline int32_t LineOf(int32_t i) {
  return sizeof(B) == 2 ? i : i % 8 * 2 + i / 8;
}
/// Where a block of 16 blocks of lines of one parity lies among all lines of a unit.
template <typename B>
__aicore__ inline int32_t OfParity(int32_t block, int32_t odd) {
  return sizeof(B) == 2 ? 2 * block + odd : block / 2 * 4 + block % 2 + 2 * odd;
}

/// `units` transposes, each `to_step` and `from_step` blocks after the one before.
template <typename B>
__aicore__ inline void Transpose(uint64_t (&to)[kUnit], int32_t to_step, uint64_t (&from)[kUnit],
                                 int32_t from_step, int32_t units) {
  if (units == 0) return;
  AscendC::TransDataTo5HDParams params;
  params.repeatTimes = static_cast<uint8_t>(units);
  // A single repeat would begin a step further on, more begin at the addresses themselves.
  params.dstRepStride = static_cast<uint16_t>(units > 1 ? to_step : 0);
  params.srcRepStride = static_cast<uint16_t>(units > 1 ? from_step : 0);
  AscendC::TransDataTo5HD<B>(to, from, params);
}

/// The first (side 0) or second blocks of neighbours -> their lines. Where a unit has less than 16
/// neighbours the last one stands in for the rest.
template <typename B>
__aicore__ inline void PairsToLines(const AscendC::LocalTensor<B>& lines,
                                    const AscendC::LocalTensor<B>& pairs, const PairRows& rows,
                                    int32_t side, int32_t neighbours, int32_t units) {
  uint64_t to[kUnit], from[kUnit];
  for (int32_t i = 0; i < kUnit; ++i) {
    to[i] = BlockAddress(lines, side * kUnit + i);
    const int32_t neighbour = static_cast<int32_t>(Min(i, neighbours - 1));
    from[i] = BlockAddress(pairs, rows.BlockOf(neighbour) + side);
  }
  Transpose<B>(to, kUnitBlocks, from, rows.BlockOf(kUnit), units);
}

/// The even (side 0) or odd lines -> their plane.
template <typename B>
__aicore__ inline void LinesToPlane(const AscendC::LocalTensor<B>& plane,
                                    const AscendC::LocalTensor<B>& lines, int32_t side,
                                    int32_t units) {
  uint64_t to[kUnit], from[kUnit];
  for (int32_t i = 0; i < kUnit; ++i) {
    to[i] = BlockAddress(plane, RowOf<B>(i));
    from[i] = BlockAddress(lines, OfParity<B>(LineOf<B>(i), side));
  }
  Transpose<B>(to, kUnit, from, kUnitBlocks, units);
}

/// The even (side 0) or odd plane -> its lines.
template <typename B>
__aicore__ inline void PlaneToLines(const AscendC::LocalTensor<B>& lines,
                                    const AscendC::LocalTensor<B>& plane, int32_t side,
                                    int32_t neighbours, int32_t units) {
  uint64_t to[kUnit], from[kUnit];
  for (int32_t i = 0; i < kUnit; ++i) {
    to[i] = BlockAddress(lines, OfParity<B>(i, side));
    from[i] = BlockAddress(plane, static_cast<int32_t>(Min(i, neighbours - 1)));
  }
  Transpose<B>(to, kUnitBlocks, from, kUnit, units);
}

/// The lines of the first (side 0) or second blocks -> those blocks. What stood in for missing
/// neighbours goes to `spare`.
template <typename B>
__aicore__ inline void LinesToPairs(const AscendC::LocalTensor<B>& pairs, const PairRows& rows,
                                    const AscendC::LocalTensor<B>& lines,
                                    const AscendC::LocalTensor<B>& spare, int32_t side,
                                    int32_t neighbours, int32_t units) {
  uint64_t to[kUnit], from[kUnit];
  for (int32_t i = 0; i < kUnit; ++i) {
    const int32_t row = RowOf<B>(i);
    to[i] = row < neighbours ? BlockAddress(pairs, rows.BlockOf(row) + side)
                             : BlockAddress(spare, side * kUnit + row);
    from[i] = BlockAddress(lines, side * kUnit + LineOf<B>(i));
  }
  Transpose<B>(to, rows.BlockOf(kUnit), from, kUnitBlocks, units);
}

/// `blocks` neighbours of `pairs` -> a plane of even and one of odd elements, `blocks` blocks each
/// (room for SplitBlocks(blocks)). `lines` is scratch of two such planes.
template <typename B>
__aicore__ inline void SplitPairs(const AscendC::LocalTensor<B>& even,
                                  const AscendC::LocalTensor<B>& odd,
                                  const AscendC::LocalTensor<B>& pairs,
                                  const AscendC::LocalTensor<B>& lines, int32_t blocks,
                                  const PairRows& rows = {}) {
  const int32_t units = blocks / kUnit;
  const int32_t rest = blocks % kUnit;
  const int32_t last = units * kUnit;
  const AscendC::LocalTensor<B> planes[2] = {even, odd};
  for (int32_t side = 0; side < 2; ++side) {
    PairsToLines<B>(lines, pairs, rows, side, kUnit, units);
    if (rest == 0) continue;
    PairsToLines<B>(AtBlock(lines, 2 * last), AtBlock(pairs, rows.BlockOf(last)), rows, side, rest,
                    1);
  }
  AscendC::PipeBarrier<PIPE_V>();
  for (int32_t side = 0; side < 2; ++side) {
    LinesToPlane<B>(planes[side], lines, side, units);
    if (rest == 0) continue;
    LinesToPlane<B>(AtBlock(planes[side], last), AtBlock(lines, 2 * last), side, 1);
  }
  AscendC::PipeBarrier<PIPE_V>();
}

/// The other way round. `spare` is room for a unit; it may be the planes, not `pairs` or `lines`.
template <typename B>
__aicore__ inline void JoinPairs(const AscendC::LocalTensor<B>& pairs,
                                 const AscendC::LocalTensor<B>& even,
                                 const AscendC::LocalTensor<B>& odd,
                                 const AscendC::LocalTensor<B>& lines,
                                 const AscendC::LocalTensor<B>& spare, int32_t blocks,
                                 const PairRows& rows = {}) {
  const int32_t units = blocks / kUnit;
  const int32_t rest = blocks % kUnit;
  const int32_t last = units * kUnit;
  const AscendC::LocalTensor<B> planes[2] = {even, odd};
  for (int32_t side = 0; side < 2; ++side) {
    PlaneToLines<B>(lines, planes[side], side, kUnit, units);
    if (rest == 0) continue;
    PlaneToLines<B>(AtBlock(lines, 2 * last), AtBlock(planes[side], last), side, rest, 1);
  }
  AscendC::PipeBarrier<PIPE_V>();
  for (int32_t side = 0; side < 2; ++side) {
    LinesToPairs<B>(pairs, rows, lines, spare, side, kUnit, units);
    if (rest == 0) continue;
    LinesToPairs<B>(AtBlock(pairs, rows.BlockOf(last)), rows, AtBlock(lines, 2 * last), spare, side,
                    rest, 1);
  }
  AscendC::PipeBarrier<PIPE_V>();
}

}  // namespace npu_rope
