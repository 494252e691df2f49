#include "rope/rope_plan_rows.h"

#include <algorithm>

namespace npu_rope {

bool transposes(const RopeGeometry& g, const RopeParams& p) {
  return (p.split_in || p.join_out) && g.dtype != DType::kBFloat16;
}

namespace {

/// Whether a row can be rotated as it lies, between columns that only pass through: its rotated
/// halves begin at whole blocks, and a transpose takes whole rows.
bool rotates_whole_rows(const RopeGeometry& g, const RopeParams& p) {
  const int64_t block = kBlockBytes / size_of(g.dtype);
  const int64_t half = g.rotary_dim / 2;
  if (g.rotary_offset % block != 0 || g.head_dim % block != 0 || p.half_pitch != half) return false;
  if (!transposes(g, p)) return true;
  return g.dtype != DType::kFloat32 && kUnit % (half / block) == 0;
}

}  // namespace

bool norms(const RopeGeometry& g) { return g.norm.q || g.norm.k; }

bool reachable(int64_t stride, int64_t bytes) { return stride >= bytes && stride <= UINT32_MAX; }

int64_t core_tokens(const RopeGeometry& g, const RopeParams& p) {
  return std::min<int64_t>(p.part_tokens + (p.more_tokens > 0), g.tokens);
}

RopeRows rows_of(const RopeGeometry& g, const RopeParams& p, bool k) {
  RopeRows r = {};
  r.in = k ? g.k : g.q;
  r.out = k ? g.k_out : g.q_out;
  r.heads = k ? g.k_heads : g.q_heads;
  r.in_place = k ? g.k_in_place : g.q_in_place;
  const int64_t size = size_of(g.dtype);
  const int64_t block = kBlockBytes / size;
  const bool partial = (!r.in_place || norms(g)) && g.rotary_dim < g.head_dim;
  r.whole = p.kind == kNormsArranged || (partial && (norms(g) || rotates_whole_rows(g, p)));
  r.passes = partial && !r.whole;
  const int64_t before = r.passes ? g.rotary_offset : 0;
  const int64_t after = r.passes ? g.head_dim - g.rotary_dim - before : 0;
  r.run = (r.whole ? g.head_dim : std::max({before, g.rotary_dim, after})) * size;
  const int64_t rotated = r.whole ? AlignUp(g.head_dim, block) : 2 * p.half_pitch;
  r.held = (AlignUp(before, block) + rotated + AlignUp(after, block)) * size;

  // The axis whose rows lie closer comes innermost.
  r.head_major = g.tokens > 1 && core_tokens(g, p) > 1 && (r.heads == 1 || r.in.token < r.in.head);
  const auto reaches = [&](int64_t count, int64_t in, int64_t out) {
    return count == 1 || (reachable(in * size, r.run) && reachable(out * size, r.run));
  };
  const bool tokens = reaches(g.tokens, r.in.token, r.out.token);
  const bool heads = reaches(r.heads, r.in.head, r.out.head);
  r.reach_inner = r.head_major ? tokens : heads;
  r.reach_outer = r.head_major ? heads : tokens;
  return r;
}

// ---- How rows move ------------------------------------------------------------------------------

RopeColumns columns_of(bool load, int64_t gm, int64_t ub, int64_t bytes, int64_t pitch,
                       int64_t filled) {
  const int64_t fill = load ? std::min<int64_t>(filled - bytes, kBlockBytes) : 0;
  const int64_t gap = pitch - AlignUp(bytes + fill, kBlockBytes);
  return {static_cast<uint16_t>(gm),
          static_cast<uint16_t>(ub),
          static_cast<uint16_t>(bytes),
          static_cast<uint16_t>(pitch),
          static_cast<uint8_t>(fill),
          static_cast<uint8_t>(gap / kBlockBytes),
          1};
}

namespace {

/// A group of columns more.
void add(RopeMove& move, const RopeColumns& columns) {
  int i = 0;
  while (move.columns[i].bytes > 0) move.columns[i++].last = 0;
  move.columns[i] = columns;
}

/// Two halves of `half` bytes, half_pitch bytes apart in the unified buffer: as one run where that
/// is as they lie, as rows of their own where rows have no seam in global memory, else as two
/// groups.
void add_halves(RopeMove& move, bool load, int64_t gm, int64_t half, int64_t half_pitch,
                int64_t pitch, bool seamless) {
  if (half == half_pitch) {
    add(move, columns_of(load, gm, 0, 2 * half, pitch, 2 * half));
  } else if (seamless && pitch == 2 * half_pitch) {
    move.halves = 2;
    move.inner = half;
    add(move, columns_of(load, gm, 0, half, half_pitch, half_pitch));
  } else {
    add(move, columns_of(load, gm, 0, half, pitch, half_pitch));
    add(move, columns_of(load, gm + half, half_pitch, half, pitch, half_pitch));
  }
}

/// What remains once the columns are known: whether rows of a line are one block.
void finish(RopeMove& move, int64_t inner_count, int64_t outer_count) {
  const RopeColumns& first = move.columns[0];
  move.runs = first.last && first.bytes == first.ub_pitch && move.inner == first.bytes &&
              (outer_count == 1 || move.outer >= inner_count * move.inner);
}

}  // namespace

RopeMove move_of(const RopeGeometry& g, const RopeParams& p, const RopeRows& r, bool load) {
  const int64_t size = size_of(g.dtype);
  const RowStrides& strides = load ? r.in : r.out;
  const int64_t inner_count = r.head_major ? g.tokens : r.heads;
  const int64_t outer_count = r.head_major ? r.heads : g.tokens;
  RopeMove move = {};
  move.batch = strides.batch * size;
  move.token = strides.token * size;
  move.head = strides.head * size;
  move.inner = r.head_major ? move.token : move.head;
  move.outer = r.head_major ? move.head : move.token;
  move.halves = 1;
  if (r.whole) {
    const int64_t bytes = g.head_dim * size;
    const int64_t pitch = AlignUp(bytes, kBlockBytes);
    add(move, columns_of(load, 0, 0, bytes, pitch, pitch));
    finish(move, inner_count, outer_count);
    return move;
  }
  const int64_t bytes = g.rotary_dim * size;
  const int64_t offset = g.rotary_offset * size;
  const int64_t half_pitch = p.half_pitch * size;
  if (load ? p.split_in : p.join_out) {  // pairs
    add(move, columns_of(load, offset, 0, bytes, 2 * half_pitch, 2 * half_pitch));
  } else {
    const int64_t stride = inner_count > 1 ? move.inner : move.outer;
    const bool seamless = !r.passes && (stride == bytes || inner_count * outer_count == 1);
    add_halves(move, load, offset, bytes / 2, half_pitch, 2 * half_pitch, seamless);
  }
  if (r.passes) {  // each group in its own place of the buffer
    int64_t place = p.box_rows * 2 * half_pitch;
    const int64_t after = g.head_dim * size - bytes - offset;
    if (offset > 0) {
      const int64_t pitch = AlignUp(offset, kBlockBytes);
      add(move, columns_of(load, 0, place, offset, pitch, offset));
      place += p.box_rows * pitch;
    }
    if (after > 0) {
      const int64_t pitch = AlignUp(after, kBlockBytes);
      add(move, columns_of(load, offset + bytes, place, after, pitch, after));
    }
  }
  finish(move, inner_count, outer_count);
  return move;
}

RopeTable table_of(const RopeGeometry& g, const RopeParams& p, const TableStrides& strides,
                   bool sin) {
  const int64_t size = size_of(g.table_dtype);
  const int64_t half = g.rotary_dim / 2 * size;
  const int64_t half_pitch = p.table_half_blocks * kBlockBytes;
  RopeTable table = {};
  table.one_row = strides.token == 0 || g.tokens == 1;
  RopeMove& move = table.in;
  move.batch = strides.batch * size;
  move.token = strides.token * size;
  move.inner = move.token;
  move.halves = 1;
  if (g.half_tables) {
    add(move, columns_of(true, 0, 0, half, half_pitch, half_pitch));
  } else if (p.split_tables) {
    add(move, columns_of(true, 0, 0, 2 * half, 2 * half_pitch, 2 * half_pitch));
  } else {
    add_halves(move, true, 0, half, half_pitch, 2 * half_pitch,
               table.one_row || move.token == 2 * half);
  }
  finish(move, g.tokens, 1);
  table.swap = sin && !p.transpose;
  const bool whole_rows = !g.half_tables && !p.split_tables;
  table.blocks = table.one_row ? 0 : p.table_half_blocks * (whole_rows ? 2 : 1);
  return table;
}

}  // namespace npu_rope
