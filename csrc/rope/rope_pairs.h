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

/// Where the neighbours of a unit lie: bytes from the first to each, and to the next unit's first.
struct PairRows {
  int32_t at[kUnit + 1];

  /// `count` after each other, the next so many `pitch` bytes after the first; count divides kUnit.
  ROPE_INLINE void Make(int32_t count, int32_t pitch) {
    int32_t row = 0, i = 0;
    for (int32_t n = 0; n <= kUnit; ++n) {
      at[n] = row + i * 2 * kBlockBytes;
      if (++i == count) {
        i = 0;
        row += pitch;
      }
    }
  }
  ROPE_INLINE void MakeSeamless() { Make(kUnit, kUnitBlocks * kBlockBytes); }
};

/// Blocks to keep for a plane that SplitPairs writes: it writes whole units.
ROPE_INLINE int32_t SplitBlocks(int32_t blocks) { return (blocks + kUnit - 1) & -kUnit; }

/// Entry i of the list that a transpose gives is the block of this row, when it gives rows.
template <typename B>
ROPE_INLINE int32_t RowOf(int32_t i) {
  return sizeof(B) == 2 ? i : i % 2 * 8 + i / 2;
}
/// Entry i of the list that it takes is this block of 16 blocks of lines, when it takes lines.
template <typename B>
ROPE_INLINE int32_t LineOf(int32_t i) {
  return sizeof(B) == 2 ? i : i % 8 * 2 + i / 8;
}
/// Where a block of 16 blocks of lines of one parity lies among all lines of a unit.
template <typename B>
ROPE_INLINE int32_t OfParity(int32_t block, int32_t odd) {
  return sizeof(B) == 2 ? 2 * block + odd : block / 2 * 4 + block % 2 + 2 * odd;
}

/// Addresses in the unified buffer of what pairs become each other through. All are of whole units
/// but the pairs, of which the last unit may have less.
struct PairPlaces {
  uint64_t pairs, lines;
  uint64_t planes[2];  // even, odd
};

/// `units` transposes, each `to_step` and `from_step` bytes after the one before.
template <typename B>
ROPE_INLINE void Transpose(uint64_t (&to)[kUnit], int32_t to_step, uint64_t (&from)[kUnit],
                           int32_t from_step, int32_t units) {
  AscendC::TransDataTo5HDParams params;
  params.repeatTimes = static_cast<uint8_t>(units);
  // A single repeat would begin a step further on, more begin at the addresses themselves.
  params.dstRepStride = static_cast<uint16_t>(units > 1 ? to_step / kBlockBytes : 0);
  params.srcRepStride = static_cast<uint16_t>(units > 1 ? from_step / kBlockBytes : 0);
  AscendC::TransDataTo5HD<B>(to, from, params);
}

/// Pairs -> lines: the first (side 0) or second blocks of neighbours -> their lines. Where a unit
/// has less than 16 neighbours the last one stands in for the rest.
template <typename B>
ROPE_INLINE void PairsToLines(const PairPlaces& at, const PairRows& rows, int32_t neighbours,
                              int32_t units) {
  for (int32_t side = 0; side < 2; ++side) {
    uint64_t to[kUnit], from[kUnit];
    for (int32_t i = 0; i < kUnit; ++i) {
      to[i] = at.lines + (side * kUnit + i) * kBlockBytes;
      from[i] = at.pairs + rows.at[Min(i, neighbours - 1)] + side * kBlockBytes;
    }
    Transpose<B>(to, kUnitBlocks * kBlockBytes, from, rows.at[kUnit], units);
  }
}

/// The even and odd lines -> their planes.
template <typename B>
ROPE_INLINE void LinesToPlanes(const PairPlaces& at, int32_t units) {
  for (int32_t side = 0; side < 2; ++side) {
    uint64_t to[kUnit], from[kUnit];
    for (int32_t i = 0; i < kUnit; ++i) {
      to[i] = at.planes[side] + RowOf<B>(i) * kBlockBytes;
      from[i] = at.lines + OfParity<B>(LineOf<B>(i), side) * kBlockBytes;
    }
    Transpose<B>(to, kUnit * kBlockBytes, from, kUnitBlocks * kBlockBytes, units);
  }
}

/// The even and odd planes -> their lines.
template <typename B>
ROPE_INLINE void PlanesToLines(const PairPlaces& at, int32_t neighbours, int32_t units) {
  for (int32_t side = 0; side < 2; ++side) {
    uint64_t to[kUnit], from[kUnit];
    for (int32_t i = 0; i < kUnit; ++i) {
      to[i] = at.lines + OfParity<B>(i, side) * kBlockBytes;
      from[i] = at.planes[side] + Min(i, neighbours - 1) * kBlockBytes;
    }
    Transpose<B>(to, kUnitBlocks * kBlockBytes, from, kUnit * kBlockBytes, units);
  }
}

/// Lines -> pairs: the lines of the first (side 0) or second blocks -> those blocks. What stood in
/// for missing neighbours goes to `spare`.
template <typename B>
ROPE_INLINE void LinesToPairs(const PairPlaces& at, const PairRows& rows, uint64_t spare,
                              int32_t neighbours, int32_t units) {
  for (int32_t side = 0; side < 2; ++side) {
    uint64_t to[kUnit], from[kUnit];
    for (int32_t i = 0; i < kUnit; ++i) {
      const int32_t row = RowOf<B>(i);
      to[i] = row < neighbours ? at.pairs + rows.at[row] + side * kBlockBytes
                               : spare + (side * kUnit + row) * kBlockBytes;
      from[i] = at.lines + (side * kUnit + LineOf<B>(i)) * kBlockBytes;
    }
    Transpose<B>(to, rows.at[kUnit], from, kUnitBlocks * kBlockBytes, units);
  }
}

/// The places of the last unit, after `units` whole ones.
ROPE_INLINE PairPlaces LastUnit(const PairPlaces& at, const PairRows& rows, int32_t units) {
  const int32_t plane = units * kUnit * kBlockBytes;
  return {at.pairs + units * rows.at[kUnit],
          at.lines + 2 * plane,
          {at.planes[0] + plane, at.planes[1] + plane}};
}

/// `blocks` neighbours of pairs -> a plane of even and one of odd elements, `blocks` blocks each
/// (room for SplitBlocks(blocks)). The lines are scratch of two such planes.
template <typename B>
ROPE_INLINE void SplitPairs(const PairPlaces& at, const PairRows& rows, int32_t blocks) {
  const int32_t units = blocks / kUnit;
  const int32_t rest = blocks % kUnit;
  const PairPlaces last = LastUnit(at, rows, units);
  if (units > 0) PairsToLines<B>(at, rows, kUnit, units);
  if (rest > 0) PairsToLines<B>(last, rows, rest, 1);
  AscendC::PipeBarrier<PIPE_V>();
  for (int32_t whole = 1; whole >= 0; --whole) {  // one code for both: it fits the cache then
    const int32_t count = whole ? units : rest > 0;
    if (count > 0) LinesToPlanes<B>(whole ? at : last, count);
  }
  AscendC::PipeBarrier<PIPE_V>();
}

/// The other way round. `spare` is room for a unit; it may be the planes, not pairs or lines.
template <typename B>
ROPE_INLINE void JoinPairs(const PairPlaces& at, const PairRows& rows, uint64_t spare,
                           int32_t blocks) {
  const int32_t units = blocks / kUnit;
  const int32_t rest = blocks % kUnit;
  const PairPlaces last = LastUnit(at, rows, units);
  if (units > 0) PlanesToLines<B>(at, kUnit, units);
  if (rest > 0) PlanesToLines<B>(last, rest, 1);
  AscendC::PipeBarrier<PIPE_V>();
  if (units > 0) LinesToPairs<B>(at, rows, spare, kUnit, units);
  if (rest > 0) LinesToPairs<B>(last, rows, spare, rest, 1);
  AscendC::PipeBarrier<PIPE_V>();
}

}  // namespace npu_rope
