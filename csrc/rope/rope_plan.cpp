#include "rope/rope_plan.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace npu_rope {
namespace {

constexpr int64_t kKiB = 1024;
constexpr int64_t kThird = 64 * kKiB;      // the banks repeat every 64 KB of the unified buffer
constexpr int64_t kBankRow = 512;          // the 16 bank groups repeat every 512 bytes
constexpr int64_t kTransfer = 16 * kKiB;   // a transfer this long has the full bandwidth
constexpr int64_t kBlock = 4 * kKiB;       // a shorter block costs a transfer more than it brings
constexpr int64_t kStepLines = 6;          // lines whose Mul take as long as the rest of a step
constexpr int64_t kFewTransfers = 8;       // of a core: it waits for the first more than they cost
constexpr int64_t kMaxTables = 32 * kKiB;  // of the unified buffer, for the tables of a tile
constexpr int64_t kTileRows = 128;         // of q and k, that a tile of few heads should have
constexpr int64_t kUsefulSteps = 20;       // rows a step needs to be worth more than its start
constexpr int64_t kEvenTokens = 8;         // of a tile, where tokens are innermost
constexpr int64_t kUnitBytes = 1024;       // SplitPairs and Join work in units of 1 KB
constexpr int64_t kMaxHeadDim = 1024;

static_assert(static_cast<int32_t>(DType::kFloat16) == kTableFloat16 &&
              static_cast<int32_t>(DType::kBFloat16) == kTableBFloat16 &&
              static_cast<int32_t>(DType::kFloat32) == kTableFloat32);

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument("rope: " + what); }

void check(const RopeGeometry& g, const Chip& chip) {
  if (chip.arch != 2201) {
    refuse("there is a kernel for A2 and A3 (NPU architecture 2201), not for " + chip.name +
           " (architecture " + std::to_string(chip.arch) + ")");
  }
  if (g.dtype == DType::kFloat64 || g.table_dtype == DType::kFloat64) {
    refuse("float64 is for the CPU alone, the NPU rotates float16, bfloat16 and float32");
  }
  if (g.norm.weight_dtype == DType::kFloat64) refuse("weights of float64 are for the CPU alone");
  if (g.batch < 0 || g.tokens < 0 || g.q_heads < 0 || g.k_heads < 0) {
    refuse("expected no negative size, got batch " + std::to_string(g.batch) + ", tokens " +
           std::to_string(g.tokens) + ", heads " + std::to_string(g.q_heads) + " and " +
           std::to_string(g.k_heads));
  }
  if (g.q_heads + g.k_heads > INT32_MAX) {
    refuse("expected less than 2^31 heads, got " + std::to_string(g.q_heads + g.k_heads));
  }
  if (g.batch > INT32_MAX || g.tokens > INT32_MAX || g.batch * g.tokens > INT32_MAX) {
    refuse("expected less than 2^31 tokens, got batch " + std::to_string(g.batch) + " of " +
           std::to_string(g.tokens));
  }
  if (g.head_dim < 2 || g.head_dim > kMaxHeadDim || g.head_dim % 2 != 0) {
    refuse("expected an even head_dim from 2 to " + std::to_string(kMaxHeadDim) + ", got " +
           std::to_string(g.head_dim));
  }
  if (g.rotary_dim < 2 || g.rotary_dim % 2 != 0 || g.rotary_offset < 0 ||
      g.rotary_offset + g.rotary_dim > g.head_dim) {
    refuse("expected an even rotary_dim from 2 whose slice lies in head_dim " +
           std::to_string(g.head_dim) + ", got rotary_dim " + std::to_string(g.rotary_dim) +
           " at rotary_offset " + std::to_string(g.rotary_offset));
  }
}

/// The same rotation with batches counted as heads, where they step through memory as heads do and
/// all read one table: it is then loaded once for all of them, and few tokens fill a transfer.
RopeGeometry batches_as_heads(RopeGeometry g) {
  const auto even = [&](int64_t heads, const RowStrides& rows) {
    return heads <= 1 || rows.batch == heads * rows.head;
  };
  const bool one_table = g.cos.batch == 0 && g.sin.batch == 0;
  if (g.batch == 1 || !one_table || g.batch * (g.q_heads + g.k_heads) > INT32_MAX ||
      !even(g.q_heads, g.q) || !even(g.q_heads, g.q_out) || !even(g.k_heads, g.k) ||
      !even(g.k_heads, g.k_out)) {
    return g;
  }
  const auto fold = [](int64_t heads, RowStrides& rows) {
    if (heads == 1) rows.head = rows.batch;
    rows.batch = 0;
  };
  fold(g.q_heads, g.q);
  fold(g.q_heads, g.q_out);
  fold(g.k_heads, g.k);
  fold(g.k_heads, g.k_out);
  g.q_heads *= g.batch;
  g.k_heads *= g.batch;
  g.batch = 1;
  return g;
}

/// Whether pairs are made or taken apart by transposes, as all but bf16's are.
bool transposes(const RopeGeometry& g, const RopeParams& p) {
  return (p.split_in || p.join_out) && g.dtype != DType::kBFloat16;
}

/// Whether a row can be rotated as it lies, between columns that only pass through: its rotated
/// halves begin at whole blocks, and a transpose takes whole rows.
bool rotates_whole_rows(const RopeGeometry& g, const RopeParams& p) {
  const int64_t block = kBlockBytes / size_of(g.dtype);
  const int64_t half = g.rotary_dim / 2;
  if (g.rotary_offset % block != 0 || g.head_dim % block != 0 || p.half_pitch != half) return false;
  if (!transposes(g, p)) return true;
  return g.dtype != DType::kFloat32 && kUnit % (half / block) == 0;
}

/// Whether rows are normalised before they are rotated.
bool norms(const RopeGeometry& g) { return g.norm.q || g.norm.k; }

/// Whether their columns are put in another order for it (RopeArrangement). Otherwise rows are
/// normalised as they lie, and what is rotated of them begins and ends at whole blocks; or they are
/// pairs from the first column to the last.
bool arranges(const RopeGeometry& g) {
  if (!norms(g)) return false;
  const bool partial = g.rotary_dim < g.head_dim;
  if (g.style != Style::kHalf) return partial;
  const int64_t block = kBlockBytes / size_of(g.dtype);
  return g.rotary_dim / 2 % 8 != 0 ||
         (partial && (g.head_dim % block != 0 || g.rotary_offset % block != 0));
}

/// Whether a transfer can go from a block of `bytes` to the next one, `stride` bytes further: the
/// gap between them is an unsigned number of 32 bits.
bool reachable(int64_t stride, int64_t bytes) { return stride >= bytes && stride <= UINT32_MAX; }

/// q or k with its output, as the geometry has them.
struct Rows {
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

/// Tokens of the core that has most, of one batch.
int64_t core_tokens(const RopeGeometry& g, const RopeParams& p) {
  return std::min<int64_t>(p.part_tokens + (p.more_tokens > 0), g.tokens);
}

Rows rows_of(const RopeGeometry& g, const RopeParams& p, bool k) {
  Rows r = {};
  r.in = k ? g.k : g.q;
  r.out = k ? g.k_out : g.q_out;
  r.heads = k ? g.k_heads : g.q_heads;
  r.in_place = k ? g.k_in_place : g.q_in_place;
  const int64_t size = size_of(g.dtype);
  const int64_t block = kBlockBytes / size;
  const bool partial = (!r.in_place || norms(g)) && g.rotary_dim < g.head_dim;
  r.whole = arranges(g) || (partial && (norms(g) || rotates_whole_rows(g, p)));
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

/// Columns of `bytes` at `gm` of a row -> `ub`, rows `pitch` bytes apart there. Up to `filled`
/// bytes behind them are loaded as zeros.
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

RopeMove move_of(const RopeGeometry& g, const RopeParams& p, const Rows& r, bool load) {
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

/// cos, or sin.
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

/// Bytes of q, k and their outputs.
int64_t moved_bytes(const RopeGeometry& g) {
  const int64_t row = g.head_dim * size_of(g.dtype);
  const int64_t tokens = g.batch * g.tokens;
  return tokens * row * (g.q_heads * (g.q_in_place ? 1 : 2) + g.k_heads * (g.k_in_place ? 1 : 2));
}

// ---- Repeats ------------------------------------------------------------------------------------

uint64_t first_lanes(int64_t n) { return n >= 64 ? ~uint64_t{0} : (uint64_t{1} << n) - 1; }

/// Lanes of the last of the repeats that take `width` columns.
uint64_t last_lanes(int64_t width) { return first_lanes((width - 1) % kRepeatFloats + 1); }

/// RopeChunks::shift of rows of `width` columns, `blocks` blocks apart in fp32.
int32_t shift_of(int64_t width, int64_t blocks) {
  const int64_t repeats = blocks * kBlockBytes / 4 / kRepeatFloats;
  if ((repeats & (repeats - 1)) != 0 || width != repeats * kRepeatFloats) return 0;
  int32_t shift = 0;
  while (1 << shift < repeats) ++shift;
  return shift;
}

/// Which columns the repeats of an instruction take. p: of which half_pitch is set. Rows are worked
/// on as one run, padding too, or half by half without it where that takes no more repeats.
void choose_repeats(int64_t half, bool may_skip_padding, RopeParams& p) {
  const int64_t pitch = p.half_pitch;
  const bool by_halves = may_skip_padding && pitch != half &&
                         2 * CeilDiv(half, kRepeatFloats) <= CeilDiv(2 * pitch, kRepeatFloats);
  const int64_t width = by_halves ? half : 2 * pitch;  // of a run
  for (const bool full : {true, false}) {
    for (int64_t begin = 0; begin < (by_halves ? 2 * pitch : 1); begin += pitch) {
      for (int64_t c = 0; c < width; c += kRepeatFloats) {
        if (full != (width - c >= kRepeatFloats)) continue;
        p.row.columns[p.row.count++] = static_cast<uint16_t>(begin + c);
        p.row.full += full;
      }
    }
  }
  p.row.mask = last_lanes(width);
  p.row.shift = shift_of(width, p.float_blocks);
  p.lanes = static_cast<int32_t>(by_halves ? half : pitch);
  p.half_mask = last_lanes(p.lanes);
  p.table_mask = last_lanes(half);
  const int64_t pairs = 2 * ((p.lanes - 1) % kRepeatFloats + 1);  // 16-bit elements
  p.pair_mask[0] = first_lanes(pairs);
  p.pair_mask[1] = pairs > 64 ? first_lanes(pairs - 64) : 0;
}

// ---- Cores --------------------------------------------------------------------------------------

/// The grid of cores that takes least by the rule in rope_plan.h.
void choose_grid(const RopeGeometry& g, int64_t max_cores, RopeParams& p) {
  const int64_t tokens = g.batch * g.tokens;
  const int64_t heads = g.q_heads + g.k_heads;
  const bool in_place = g.q_in_place && g.k_in_place;
  const int64_t columns = in_place && !norms(g) ? g.rotary_dim : g.head_dim;
  const int64_t row = 2 * columns * size_of(g.dtype);
  const int64_t tables = 2 * g.rotary_dim / (g.half_tables ? 2 : 1) * size_of(g.table_dtype);
  const double bytes_per_ns = p.steps == kNormsArranged ? kArrangedBytesPerNs
                              : p.join_out              ? kPairBytesPerNs
                                                        : kBytesPerNs;
  double least = 0;
  for (int64_t head_parts = 1; head_parts <= std::min(heads, max_cores); ++head_parts) {
    const int64_t token_bytes = CeilDiv(heads, head_parts) * row + tables;
    const int64_t most = std::min(tokens, max_cores / head_parts);
    for (int64_t token_parts = 1; token_parts <= most; ++token_parts) {
      const double bytes = static_cast<double>(CeilDiv(tokens, token_parts) * token_bytes);
      const double ns =
          kStartNs * static_cast<double>(head_parts * token_parts) + bytes / bytes_per_ns;
      if (p.token_parts == 0 || ns < least) {
        least = ns;
        p.token_parts = static_cast<int32_t>(token_parts);
        p.head_parts = static_cast<int32_t>(head_parts);
      }
    }
  }
  p.tokens = static_cast<int32_t>(g.tokens);
  p.part_tokens = static_cast<int32_t>(tokens / p.token_parts);
  p.more_tokens = static_cast<int32_t>(tokens % p.token_parts);
  p.part_heads = static_cast<int32_t>(heads / p.head_parts);
  p.more_heads = static_cast<int32_t>(heads % p.head_parts);
}

// ---- The unified buffer -------------------------------------------------------------------------

/// What is tried: bytes of one of the ring's buffers, and most tokens of a tile.
struct Candidate {
  int64_t slot, tile;
};

/// How a candidate cuts the tokens of a core into tiles and tiles into boxes.
struct Cut {
  int64_t tile_tokens;
  int64_t box_tokens[2], box_heads[2];  // of q and k
  int64_t box_rows;                     // of the largest
  int64_t shortest;  // bytes of the shortest transfer that is cut from a longer one
};

/// Lines of a box, and rows of each.
struct BoxLines {
  int64_t inner, outer;
};

/// A box of at most `most` rows of `lines` lines (all heads of a token, or all tokens of a head) of
/// `line` rows: as many whole lines as make a long enough transfer, or an even part of a line that
/// makes several; or shorter parts of several lines, where those fill a buffer better.
BoxLines box_of(int64_t line, int64_t lines, const Rows& rows, int64_t most) {
  const int64_t long_enough = CeilDiv(kTransfer, rows.run);
  const int64_t parts = std::max<int64_t>(line / long_enough, 1);
  if (parts == 1 && line <= most) {
    return {line, std::min({CeilDiv(long_enough, line), most / line, lines})};
  }
  BoxLines best = {EvenPiece(line, std::min(most, CeilDiv(line, parts))), 1};
  for (int64_t outer = 2; outer <= std::min(lines, most); ++outer) {
    const int64_t inner = EvenPiece(line, most / outer);
    if (inner * rows.run < kBlock) break;
    const int64_t cost = (kStepLines + outer) * best.inner * best.outer;
    const bool cheaper = cost < (kStepLines + best.outer) * inner * outer;
    if (cheaper && line % inner == 0) best = {inner, outer};
  }
  return best;
}

/// Heads of q and k of the core that has most.
int64_t core_heads(const RopeParams& p, const Rows& rows) {
  return std::min<int64_t>(rows.heads, p.part_heads + (p.more_heads > 0));
}

Cut cut(const RopeGeometry& g, const RopeParams& p, const Rows (&rows)[2], int64_t most,
        int64_t tile) {
  Cut c = {};
  int64_t tokens = std::min({core_tokens(g, p), tile, most, int64_t{kMaxRepeats / 2}});
  const int64_t width = g.rotary_dim / (g.half_tables ? 2 : 1) * size_of(g.table_dtype);
  for (const TableStrides& table : {g.cos, g.sin}) {
    const int64_t stride = table.token * size_of(g.table_dtype);
    if (stride != 0 && !reachable(stride, width)) tokens = 1;
  }
  // Of whole boxes where there are several: boxes of q, and of k with its fewer heads.
  int64_t whole = 1;
  for (int i = 0; i < 2; ++i) {
    const int64_t heads = core_heads(p, rows[i]);
    if (heads == 0) continue;
    const int64_t lines =
        rows[i].head_major ? kEvenTokens : box_of(heads, most, rows[i], most).outer;
    if (lines <= tokens) whole = std::max(whole, lines);
  }
  if (tokens < core_tokens(g, p)) tokens -= tokens % whole;
  c.tile_tokens = tokens;
  c.box_rows = 1;
  c.shortest = INT64_MAX;
  for (int i = 0; i < 2; ++i) {
    const int64_t heads = core_heads(p, rows[i]);
    if (heads == 0) continue;
    const bool head_major = rows[i].head_major;
    const int64_t line = head_major ? tokens : heads;
    auto [inner, outer] = box_of(line, head_major ? heads : tokens, rows[i], most);
    if (head_major) inner = line;  // a column of tokens is cut only where it must be
    if (!rows[i].reach_inner) inner = 1;
    if (!rows[i].reach_outer) outer = 1;
    c.box_tokens[i] = head_major ? inner : outer;
    c.box_heads[i] = head_major ? outer : inner;
    const int64_t cut_rows = c.box_tokens[i] * c.box_heads[i];
    c.box_rows = std::max(c.box_rows, cut_rows);
    const bool reaches = rows[i].reach_inner && rows[i].reach_outer;
    if (reaches && cut_rows < heads * tokens)
      c.shortest = std::min(c.shortest, cut_rows * rows[i].run);
  }
  return c;
}

/// Whether a core's rows of q and of k can be one box: of one token, and lying alike.
bool can_join(const RopeGeometry& g, const RopeParams& p, const Rows (&rows)[2]) {
  return core_tokens(g, p) == 1 && g.q_heads > 0 && g.k_heads > 0 && !norms(g) &&
         rows[0].whole == rows[1].whole && !rows[0].passes && !rows[1].passes &&
         rows[0].reach_inner && rows[1].reach_inner;
}

Cut joined_cut(const RopeParams& p, const Rows (&rows)[2]) {
  Cut c = {};
  c.tile_tokens = 1;
  for (int i = 0; i < 2; ++i) {
    c.box_tokens[i] = 1;
    c.box_heads[i] = core_heads(p, rows[i]);
  }
  c.box_rows = p.part_heads + (p.more_heads > 0);
  return c;
}

/// What a cut lays out in the unified buffer, with as many rows a step as are left room for: 0
/// where it does not fit.
struct Room {
  RopeLayout ub;
  int64_t step_rows;
};

/// Buffers one after the other: from which byte of the unified buffer on each lies.
struct Placer {
  int64_t at = 0;
  int32_t operator()(int64_t bytes) {
    const int64_t begin = at;
    at += bytes;
    return static_cast<int32_t>(begin);
  }
};

/// Bytes of a table's row as loaded.
int64_t raw_row(const RopeParams& p) {
  return (p.table_second ? 2 : 1) * p.table_half_blocks * kBlockBytes;
}

/// Cuts what of the norm's part is as long as a box has rows. Whole repeats are read of all but the
/// blocks of factors, of which Brcb writes 8 at once. Returns where it ends.
int64_t place_factors(RopeNormParams& n, int64_t rows) {
  constexpr int64_t kRepeat = kRepeatFloats * 4;
  const int64_t sums = AlignUp(rows * n.sum_blocks * kBlockBytes, kRepeat);
  const int64_t factor = AlignUp(rows * n.sum_blocks * 4, kRepeat);
  n.factor = static_cast<int32_t>(n.sums + sums);
  n.other_factor = static_cast<int32_t>(n.factor + factor);
  n.factors = static_cast<int32_t>(n.other_factor + factor);
  return AlignUp(n.factors + AlignUp(rows, 8) * n.spread * kBlockBytes, kRepeat);
}

/// Bytes between P and Q. y1 reads P1 with Q2, y2 reads P2 with Q1, half a row apart: where that is
/// a multiple of 512 bytes the two would meet in the same groups. (Halves of 9 to 15 blocks, of 17
/// to 23 and so on, as of D = 192, meet in part whatever the shift.)
int64_t shift_of_sin(const RopeParams& p) {
  return p.half_pitch * 4 % kBankRow == 0 ? kBankRow / 2 : 0;
}

/// The same with a norm: a box is a round, and rows in fp32 take turns in two work buffers.
Room lay_out_norm(const RopeGeometry& g, const Chip& chip, const RopeParams& p, const Cut& c,
                  int64_t held) {
  const int64_t rows = c.box_rows;
  Room room = {};
  if (rows > kMaxRepeats || rows < c.tile_tokens) return room;
  const int64_t float_row = p.float_blocks * kBlockBytes;
  const int64_t spare = p.split_in || p.split_tables ? kUnitBytes : 0;
  RopeNormParams norm = p.norm;
  RopeLayout& ub = room.ub;
  ub.work_bytes = static_cast<int32_t>(2 * (rows * float_row + spare));
  ub.table_bytes = static_cast<int32_t>(c.tile_tokens * float_row);
  ub.raw_bytes = static_cast<int32_t>(AlignUp(c.tile_tokens * raw_row(p), 256));
  ub.product_bytes = static_cast<int32_t>(rows * float_row + spare);
  ub.slot_bytes = static_cast<int32_t>(AlignUp(rows * held, kBankRow));
  ub.norm_bytes = static_cast<int32_t>(place_factors(norm, rows));
  ub.ring_bytes = 2 * ub.slot_bytes;
  // Products beyond the first third, where rows in fp32 are, if that leaves room for all.
  for (const bool apart : {true, false}) {
    Placer place;
    ub.work = place(ub.work_bytes);
    ub.upper = place(kBankRow / 2);
    ub.tables = place(2 * ub.table_bytes);
    ub.norm = place(ub.norm_bytes);  // begins with weights, placed against rows as tables are
    ub.raw = place(2 * ub.raw_bytes);
    ub.ring = place(ub.ring_bytes);
    place.at = std::max(AlignUp(place.at, kBankRow), apart ? kThird : 0);
    ub.cos_product = place(ub.product_bytes);
    place(shift_of_sin(p));
    ub.sin_product = place(ub.product_bytes);
    ub.bytes = static_cast<int32_t>(place.at);
    if (place.at > chip.ub_usable) continue;
    room.step_rows = rows;
    break;
  }
  return room;
}

Room lay_out(const RopeGeometry& g, const Chip& chip, const RopeParams& p, const Cut& c,
             int64_t held) {
  if (norms(g)) return lay_out_norm(g, chip, p, c, held);
  const bool fp32 = g.dtype == DType::kFloat32;
  const int64_t float_row = p.float_blocks * kBlockBytes;
  const int64_t spare = transposes(g, p) || p.split_tables ? kUnitBytes : 0;
  const int64_t work_spare = transposes(g, p) && !fp32 ? kUnitBytes : 0;
  const int64_t table = c.tile_tokens * float_row;
  const int64_t raw = AlignUp(c.tile_tokens * raw_row(p), 256);
  const int64_t slot = AlignUp(c.box_rows * held, kBankRow);
  const int64_t ring = (p.joined ? 1 : kRing) * slot;
  const int64_t near_fixed = work_spare + 2 * table + 2 * raw + kBankRow + (fp32 ? ring : 0);
  const int64_t far_fixed = 2 * spare + kBankRow + (fp32 ? 0 : ring);
  const int64_t near_row = fp32 ? 0 : float_row;
  const int64_t far_row = 2 * float_row;

  // With the products beyond the first third if that leaves steps of a useful length.
  const int64_t limit = std::min<int64_t>(c.box_rows, kMaxRepeats);
  int64_t step = (chip.ub_usable - near_fixed - far_fixed) / (near_row + far_row);
  int64_t apart = std::min(step, (chip.ub_usable - kThird - far_fixed) / far_row);
  const int64_t near_room = kThird - (near_fixed - 2 * raw);  // tables as loaded may straddle
  if (near_row > 0) apart = std::min(apart, near_room / near_row);
  if (near_room < 0) apart = 0;
  const bool gap = apart >= std::min(limit, kUsefulSteps);
  step = std::min(gap ? apart : step, limit);
  Room room = {};
  if (step < c.tile_tokens) return room;
  room.step_rows = step;

  const int64_t sin_shift = shift_of_sin(p);
  RopeLayout& ub = room.ub;
  ub.work_bytes = static_cast<int32_t>((fp32 ? 0 : step * float_row) + work_spare);
  ub.table_bytes = static_cast<int32_t>(table);
  ub.raw_bytes = static_cast<int32_t>(raw);
  ub.product_bytes = static_cast<int32_t>(step * float_row + spare);
  ub.slot_bytes = static_cast<int32_t>(slot);
  ub.ring_bytes = static_cast<int32_t>(ring);
  Placer place;
  if (fp32) ub.ring = place(ring);
  ub.work = place(ub.work_bytes);
  ub.upper = place(kBankRow / 2);
  ub.tables = place(2 * table);
  place(kBankRow / 2);
  ub.raw = place(2 * raw);
  if (gap) place.at = std::max(place.at, kThird);
  ub.cos_product = place(ub.product_bytes);
  place(sin_shift);
  ub.sin_product = place(ub.product_bytes);
  if (!fp32) ub.ring = place(ring);
  ub.bytes = static_cast<int32_t>(place.at);
  return room;
}

/// The buffers of a core: load and store buffers first, then the tables, then as many rows a step
/// as are left for. The more rows a step has, the less it waits for its own results. Of buffers
/// that leave as many the longest, or the shortest where a core has so few transfers that it waits
/// for the first.
void choose_buffers(const RopeGeometry& g, const Chip& chip, const Rows (&rows)[2], RopeParams& p) {
  const int64_t held = std::max(g.q_heads ? rows[0].held : 0, g.k_heads ? rows[1].held : 0);
  const int64_t token_bytes = 2 * (p.float_blocks * kBlockBytes + raw_row(p));
  const int64_t core_rows = core_tokens(g, p) * (p.part_heads + (p.more_heads > 0));
  const bool few = core_rows * held < kFewTransfers * kTransfer;
  // Steps that join pairs or norm have half as many instructions again: their rows count for more.
  const bool long_steps = p.join_out || norms(g);
  const int64_t least = few ? kTransfer / 4 : long_steps ? kTransfer * 3 / 4 : kTransfer;

  Cut chosen = joined_cut(p, rows);
  p.joined = can_join(g, p, rows) && chosen.box_rows * held <= 2 * kTransfer;
  Room room = {};
  if (p.joined) {
    room = lay_out(g, chip, p, chosen, held);
    p.joined = room.step_rows == chosen.box_rows;
  }
  int64_t best = p.joined ? room.step_rows : 0;  // rows of a step when boxes are cut evenly
  for (int64_t slot = 2 * kTransfer; slot >= held && !p.joined; slot -= kKiB) {
    const int64_t most = std::min<int64_t>(slot / held, kMaxTransferBlocks / 2);
    // A tile of few heads has more tokens, so that its rows are worth a box and a step.
    const int64_t heads = p.part_heads + (p.more_heads > 0);
    int64_t tile = std::max({int64_t{1}, kMaxTables / token_bytes, kTileRows / heads});
    for (; tile >= 1; tile = tile * 3 / 4) {
      const Cut c = cut(g, p, rows, most, tile);
      const Room r = lay_out(g, chip, p, c, held);
      const int64_t useful = std::min({c.box_rows, int64_t{kMaxRepeats}, kUsefulSteps});
      if (r.step_rows == 0 || (r.step_rows < useful && tile > 1)) continue;  // fewer tokens may fit
      const int64_t even = EvenPiece(c.box_rows, r.step_rows);
      const bool worse = c.shortest < least || even < best || (even == best && !few);
      if (best == 0 || !worse) {
        best = even;
        chosen = c;
        room = r;
      }
      break;
    }
  }
  if (best == 0) {
    refuse("head_dim " + std::to_string(g.head_dim) + " does not fit the " +
           std::to_string(chip.ub_usable) + " bytes of unified buffer of " + chip.name);
  }

  p.ub = room.ub;
  if (norms(g)) place_factors(p.norm, room.step_rows);
  p.tile_tokens = static_cast<int32_t>(chosen.tile_tokens);
  p.box_rows = static_cast<int32_t>(chosen.box_rows);
  p.step_rows = static_cast<int32_t>(room.step_rows);
  for (int i = 0; i < 2; ++i) {
    RopeTensor& t = p.tensors[i];
    if (chosen.box_tokens[i] == 0) continue;
    int64_t tokens = chosen.box_tokens[i], heads = chosen.box_heads[i];
    const bool longer = !t.head_major && heads > room.step_rows;  // a line than a step
    t.parts = longer && tokens == 1;
    if (longer && tokens > 1) {  // as long a box, of lines that fit a step
      const int64_t part = EvenPiece(heads, room.step_rows);
      const int64_t most = rows[i].reach_outer ? chosen.tile_tokens : 1;
      tokens = std::min(most, tokens * heads / part);
      heads = part;
    }
    const int64_t line = t.head_major ? tokens : heads, lines = t.head_major ? heads : tokens;
    t.box_tokens = static_cast<int32_t>(tokens);
    t.box_heads = static_cast<int32_t>(heads);
    t.step_lines = static_cast<int32_t>(t.parts ? EvenPiece(line, room.step_rows)
                                                : EvenPiece(lines, room.step_rows / line));
    t.over_tokens = t.parts == t.head_major;
  }
}

// ---- Upright rows -------------------------------------------------------------------------------

/// What a line of a box is where rows can be rotated upright, else 0. q and k agree on it, and
/// their lines have no gaps: a line is one block of a transfer.
int32_t lines_of(const RopeGeometry& g, const RopeParams& p, Rows (&rows)[2]) {
  if (g.style != Style::kInterleaved || norms(g) || p.half_pitch % 16 != 0 ||
      p.half_pitch != g.rotary_dim / 2) {
    return 0;
  }
  int32_t lines = 0;
  for (Rows& r : rows) {
    if (r.heads <= 1) continue;
    const int32_t own = r.head_major ? kUprightHeads : kUprightTokens;
    if (lines != 0 && lines != own) return 0;
    lines = own;
  }
  if (lines == 0) lines = kUprightTokens;
  for (Rows& r : rows) {
    if (r.heads == 0) continue;
    r.head_major = lines == kUprightHeads;
    const auto dense = [&](const RowStrides& strides) {
      const int64_t inner = r.head_major ? strides.token : strides.head;
      const int64_t outer = r.head_major ? strides.head : strides.token;
      return inner == g.rotary_dim && reachable(outer, inner);
    };
    if (r.whole || r.passes || !dense(r.in) || !dense(r.out)) return 0;
  }
  return lines;
}

/// Upright rows of `run` rows a line and tables of `tile` tokens in the unified buffer: 0 bytes
/// where they do not fit. Rows and tables in its first third, products in the next.
RopeLayout lay_out_upright(const RopeGeometry& g, const Chip& chip, const RopeParams& p,
                           int64_t run, int64_t tile) {
  const int64_t wide = kUnit * run * g.rotary_dim * 4;
  const int64_t table = tile * p.float_blocks * kBlockBytes;
  const int64_t stood = p.upright == kUprightHeads ? tile : 1;  // rows of 16 columns abreast
  const int64_t line = run * g.rotary_dim * size_of(g.dtype) + kBlockBytes;
  RopeLayout ub = {};
  ub.work_bytes = static_cast<int32_t>(AlignUp(std::max(wide, 2 * table), kBankRow));
  ub.table_bytes = static_cast<int32_t>(table);
  ub.upright_bytes = static_cast<int32_t>(stood * g.rotary_dim * kUnit * 4);
  ub.raw_bytes = static_cast<int32_t>(AlignUp(tile * raw_row(p), 256));
  ub.product_bytes =
      static_cast<int32_t>(AlignUp(std::max(wide, table + 2 * kUnitBytes), kBankRow));
  ub.slot_bytes = static_cast<int32_t>(AlignUp(kUnit * line, kBankRow));
  ub.ring_bytes = kRing * ub.slot_bytes;
  Placer place;
  ub.work = place(ub.work_bytes);
  ub.tables = ub.work;  // as rows, before they stand
  place(kBankRow / 2);
  ub.upright_tables = place(2 * ub.upright_bytes);
  ub.raw = place(2 * ub.raw_bytes);
  place.at = std::max(AlignUp(place.at, kBankRow), kThird);
  ub.cos_product = place(ub.product_bytes);
  place(kBankRow / 2);
  ub.sin_product = place(ub.product_bytes);
  place(kBankRow / 2);
  ub.ring = place(ub.ring_bytes);
  ub.bytes = place.at <= chip.ub_usable ? static_cast<int32_t>(place.at) : 0;
  return ub;
}

/// Whether rows stand upright, and then all that choose_buffers chooses. They do where at least
/// half of the 16 lines of a box are there.
bool choose_upright(const RopeGeometry& g, const Chip& chip, Rows (&rows)[2], RopeParams& p) {
  Rows stood[2] = {rows[0], rows[1]};
  const int32_t upright = lines_of(g, p, stood);
  if (upright == 0) return false;
  const bool heads_abreast = upright == kUprightHeads;
  const int64_t tokens = core_tokens(g, p);
  int64_t there = 0, taken = 0, longest = 0;
  for (const Rows& r : stood) {
    const int64_t heads = core_heads(p, r);
    const int64_t lines = heads_abreast ? heads : tokens, line = heads_abreast ? tokens : heads;
    there += lines * line;
    taken += AlignUp(lines, kUnit) * line;
    longest = std::max(longest, line);
  }
  // Pairs of bf16 need no transposes as rows lie: they stand where their halves would not fill
  // repeats, and where that saves more than shorter boxes cost.
  const bool bf16 = g.dtype == DType::kBFloat16;
  const int64_t least_run = bf16 ? 4 : 1;
  if (there * 2 < taken || (bf16 && there * 4 < taken * 3)) return false;
  if (bf16 && p.half_pitch % kRepeatFloats == 0) return false;

  RopeParams u = p;
  u.upright = static_cast<uint8_t>(upright);
  u.steps = kRotatesUpright;
  u.float_blocks = static_cast<int32_t>(g.rotary_dim * 4 / kBlockBytes + (heads_abreast ? 0 : 2));
  for (int64_t run = std::min(longest, 4 * kMaxRepeats / g.rotary_dim); run >= least_run; --run) {
    const int64_t tile = std::min(tokens, heads_abreast ? run : int64_t{kUnit});
    u.ub = lay_out_upright(g, chip, u, run, tile);
    if (u.ub.bytes == 0) continue;
    u.tile_tokens = static_cast<int32_t>(heads_abreast ? EvenPiece(tokens, run) : tile);
    u.box_rows = static_cast<int32_t>(kUnit * run);
    u.step_rows = u.box_rows;
    for (int i = 0; i < 2; ++i) {
      const int64_t heads = core_heads(p, stood[i]);
      if (heads == 0) continue;
      RopeTensor& t = u.tensors[i];
      t.head_major = stood[i].head_major;
      t.box_tokens = u.tile_tokens;
      t.box_heads = static_cast<int32_t>(heads_abreast ? kUnit : EvenPiece(heads, run));
      rows[i] = stood[i];
    }
    p = u;
    return true;
  }
  return false;
}

// ---- The norm -----------------------------------------------------------------------------------

/// p: of which half_pitch is set.
RopeArrangement arrangement_of(const RopeGeometry& g, const RopeParams& p) {
  RopeArrangement a = {};
  a.before = static_cast<int32_t>(g.rotary_offset);
  a.rest = static_cast<int32_t>(g.head_dim - g.rotary_dim);
  a.width = 2 * p.half_pitch + a.rest;
  const bool pairs_in = g.style != Style::kHalf, pairs_out = g.style == Style::kInterleaved;
  a.in_step = pairs_in ? 2 : 1;
  a.in_second = pairs_in ? 1 : p.half;
  a.out_step = pairs_out ? 2 : 1;
  a.out_second = pairs_out ? 1 : p.half;
  const bool in_place = a.before == 0 && p.half_pitch == p.half;
  a.kept = in_place ? a.rest : 0;
  a.kept_mask = a.kept > 0 ? last_lanes(a.kept) : 0;
  return a;
}

/// p: of which steps, split_in, half_pitch, float_blocks and row are set.
RopeNormParams norm_of(const RopeGeometry& g, const RopeParams& p) {
  RopeNormParams n = {};
  const int64_t size = size_of(g.norm.weight_dtype);
  n.tensors[0] = g.norm.q;
  n.tensors[1] = g.norm.k;
  n.weight_dtype = static_cast<int32_t>(g.norm.weight_dtype);
  const int64_t bytes = g.head_dim * size;
  const int64_t half_blocks = CeilDiv(bytes / 2, kBlockBytes);
  const int64_t held = p.split_in ? 2 * half_blocks * kBlockBytes : AlignUp(bytes, kBlockBytes);
  n.weight = columns_of(true, 0, 0, bytes, held, held);
  n.weight_half_blocks = static_cast<int32_t>(half_blocks);
  n.columns = static_cast<int32_t>(g.head_dim);
  n.mask = last_lanes(g.head_dim);
  if (p.split_in) {
    n.row = p.row;
  } else {
    const bool arranged = p.steps == kNormsArranged;
    if (arranged) n.arrangement = arrangement_of(g, p);
    const int64_t width = arranged ? n.arrangement.width : g.head_dim;
    for (int64_t c = 0; c < width; c += kRepeatFloats) {
      n.row.columns[n.row.count++] = static_cast<uint16_t>(c);
      n.row.full += width - c >= kRepeatFloats;
    }
    n.row.mask = last_lanes(width);
    n.row.shift = arranged ? 0 : shift_of(width, p.float_blocks);
    n.offset = arranged ? 0 : static_cast<int32_t>(g.rotary_offset);
  }
  // Rows of whole 512 bytes: of a repeat of every second block, and a factor in one of the others,
  // none share a bank group.
  n.scaled = n.row;
  n.spread = g.head_dim % (2 * kRepeatFloats) == 0 && p.steps == kNorms ? 2 : 1;
  if (n.spread == 2) {
    for (int32_t i = 0; i < n.scaled.count; ++i) {
      n.scaled.columns[i] = static_cast<uint16_t>(i / 2 * 2 * kRepeatFloats + i % 2 * 8);
    }
  }
  n.sum_blocks = 1;
  while (n.sum_blocks * kRepeatFloats < g.head_dim) n.sum_blocks *= 2;
  n.share = static_cast<float>(1.0 / static_cast<double>(g.head_dim));
  n.eps = static_cast<float>(g.norm.eps);
  n.weight_offset = static_cast<float>(g.norm.weight_offset);

  n.weight_bytes = p.float_blocks * kBlockBytes;
  n.raw_weight_bytes = static_cast<int32_t>(held);
  n.raw_weights = 2 * n.weight_bytes;
  n.ones = n.raw_weights + 2 * n.raw_weight_bytes;
  n.arrangement.arrange = n.ones + kBlockBytes;
  n.arrangement.put_back =
      n.arrangement.arrange + static_cast<int32_t>(AlignUp(n.arrangement.width, 8)) * 4;
  const int64_t put_back = n.arrangement.width > 0 ? AlignUp(g.head_dim, 8) * 4 : 0;
  n.sums = static_cast<int32_t>(AlignUp(n.arrangement.put_back + put_back, kRepeatFloats * 4));
  return n;
}

}  // namespace

RopePlan plan_rope(const RopeGeometry& geometry, const Chip& chip) {
  check(geometry, chip);
  RopePlan plan = {};
  const RopeGeometry g = batches_as_heads(geometry);
  if (g.batch * g.tokens * (g.q_heads + g.k_heads) == 0) return plan;

  RopeParams& p = plan.params;
  p.half = static_cast<int32_t>(g.rotary_dim / 2);
  p.table_dtype = static_cast<uint8_t>(g.table_dtype);
  p.round_tables = g.cast_tables && g.dtype != DType::kFloat32 && g.table_dtype != g.dtype;
  p.split_tables = !g.half_tables && g.style == Style::kInterleaved;
  p.steps = arranges(g) ? kNormsArranged : norms(g) ? kNorms : kRotates;
  if (p.steps != kNormsArranged) {
    const bool interleaved = g.style == Style::kInterleaved;
    p.split_in = interleaved || (g.style == Style::kDeinterleave && !g.transpose);
    p.join_out = interleaved || (g.style == Style::kDeinterleave && g.transpose);
  }
  p.transpose = g.transpose;
  p.round_each = g.round_each && g.dtype != DType::kFloat32;

  // Halves begin at whole 32-byte blocks, of fp32 always, of a 16-bit type too where they are
  // loaded or transposed one by one: where a dense row does not have its second half there.
  const int64_t half = g.rotary_dim / 2;
  const int64_t block = kBlockBytes / size_of(g.dtype);
  const bool dense = half % 8 == 0 && !transposes(g, p);
  p.half_pitch = static_cast<int32_t>(dense ? half : AlignUp(half, block));
  p.table_half_blocks = static_cast<int32_t>(CeilDiv(half * size_of(g.table_dtype), kBlockBytes));
  p.table_second = g.half_tables ? 0 : p.table_half_blocks * kBlockBytes;
  p.float_blocks = static_cast<int32_t>(AlignUp(2 * p.half_pitch * 4, kBankRow) / kBlockBytes);
  choose_repeats(half, !transposes(g, p), p);
  if (norms(g)) {  // which works on whole rows
    const int64_t rest = arranges(g) ? g.head_dim - g.rotary_dim : 0;
    const int64_t columns = std::max<int64_t>(g.head_dim, 2 * p.half_pitch + rest);
    p.float_blocks = static_cast<int32_t>(AlignUp(columns * 4, kBankRow) / kBlockBytes);
    p.norm = norm_of(g, p);
  }

  choose_grid(g, chip.cores, p);
  Rows rows[2] = {rows_of(g, p, false), rows_of(g, p, true)};
  for (int i = 0; i < 2; ++i) {
    RopeTensor& t = p.tensors[i];
    const Rows& r = rows[i];
    const int64_t columns = r.whole ? AlignUp(g.head_dim, block) : 2 * p.half_pitch;
    const int64_t pitch = columns * size_of(g.dtype);
    const bool between = r.whole && transposes(g, p);  // pairs lie between other columns
    t.heads = static_cast<int32_t>(r.heads);
    t.head_major = r.head_major;
    t.row_blocks = static_cast<int32_t>(pitch / kBlockBytes);
    const bool seamless =
        pitch == (norms(g) && !p.split_in ? g.head_dim : 2 * p.half_pitch) * size_of(g.dtype);
    t.shift = seamless ? static_cast<uint8_t>((norms(g) ? p.norm.row : p.row).shift) : 0;
    t.row_offset = static_cast<int32_t>(r.whole ? g.rotary_offset * size_of(g.dtype) : 0);
    t.pair_rows = static_cast<int32_t>(between ? half / block : kUnit);
    t.pair_pitch = static_cast<int32_t>(between ? pitch : 2 * kUnit * kBlockBytes);
  }

  if (!choose_upright(g, chip, rows, p)) choose_buffers(g, chip, rows, p);
  for (int i = 0; i < 2; ++i) {
    p.tensors[i].in = move_of(g, p, rows[i], true);
    p.tensors[i].out = move_of(g, p, rows[i], false);
    if (p.upright) p.tensors[i].in.columns[0].ub_gap = p.tensors[i].out.columns[0].ub_gap = 1;
    p.stream_in[i] = !rows[i].in_place && moved_bytes(g) > chip.l2_bytes;
  }
  p.tables[0] = table_of(g, p, g.cos, false);
  p.tables[1] = table_of(g, p, g.sin, true);
  plan.cores = p.token_parts * p.head_parts;
  plan.ub_bytes = p.ub.bytes;
  return plan;
}

std::vector<RopeBox> boxes_of(const RopePlan& plan, int32_t core) {
  std::vector<RopeBox> boxes;
  if (core >= plan.cores) return boxes;
  RopeWalk walk(plan.params, core);
  RopeBox next;
  walk.First(next);
  do {
    RopeBox box = next;
    if (box.follows) {
      box = boxes.back();
      box.in += box.in_step;
      box.out += box.out_step;
      box.token += box.token_step;
      box.head += box.head_step;
      box.starts_tile = 0;
      box.follows = 1;
    }
    boxes.push_back(box);
    if (box.k_heads > 0) {
      box.tensor = 1;
      box.head = 0;
      box.heads = box.k_heads;
      box.starts_tile = 0;
      boxes.push_back(box);
    }
  } while (walk.Next(next));
  return boxes;
}

}  // namespace npu_rope
