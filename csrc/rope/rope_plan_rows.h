// How the rows of q and k lie in global memory and in the unified buffer, and how they move between
// the two: the first part of rope_plan.
#pragma once

#include "rope/rope_geometry.h"
#include "rope/rope_params.h"

namespace npu_rope {

/// Whether pairs are made or taken apart by transposes, as all but bf16's are.
bool transposes(const RopeGeometry& g, const RopeParams& p);

/// Whether rows are normalised before they are rotated.
bool norms(const RopeGeometry& g);

/// Whether a transfer can go from a block of `bytes` to the next one, `stride` bytes further: the
/// gap between them is an unsigned number of 32 bits.
bool reachable(int64_t stride, int64_t bytes);

/// Tokens of the core that has most, of one batch.
int64_t core_tokens(const RopeGeometry& g, const RopeParams& p);

/// q or k with its output, as the geometry has them.
struct RopeRows {
  RowStrides in, out;
  int64_t heads;
  bool in_place;
  bool whole;       // rows are moved as they lie, with what is not rotated in its place
  bool passes;      // columns that are not rotated are moved beside those that are
  int64_t run;      // bytes of the longest run of columns of a row that are moved together
  int64_t held;     // bytes of a row in a buffer
  bool head_major;  // rows of a box: [head][token], not [token][head]
  bool reach_inner, reach_outer;  // from row to row, and from line to line, in one transfer
};

RopeRows rows_of(const RopeGeometry& g, const RopeParams& p, bool k);

/// Columns of `bytes` at `gm` of a row -> `ub`, rows `pitch` bytes apart there. Up to `filled`
/// bytes behind them are loaded as zeros.
RopeColumns columns_of(bool load, int64_t gm, int64_t ub, int64_t bytes, int64_t pitch,
                       int64_t filled);

RopeMove move_of(const RopeGeometry& g, const RopeParams& p, const RopeRows& r, bool load);

/// cos, or sin.
RopeTable table_of(const RopeGeometry& g, const RopeParams& p, const TableStrides& strides,
                   bool sin);

}  // namespace npu_rope
