#include "rope/rope_plan_buffers.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace npu_rope {
namespace {

constexpr int64_t kKiB = 1024;
constexpr int64_t kThird = 64 * kKiB;      // the banks repeat every 64 KB of the unified buffer
constexpr int64_t kTransfer = 16 * kKiB;   // a transfer this long has the full bandwidth
constexpr int64_t kBlock = 4 * kKiB;       // a shorter block costs a transfer more than it brings
constexpr int64_t kStepLines = 6;          // lines whose Mul take as long as the rest of a step
constexpr int64_t kFewTransfers = 8;       // of a core: it waits for the first more than they cost
constexpr int64_t kMaxTables = 32 * kKiB;  // of the unified buffer, for the tables of a tile
constexpr int64_t kTileRows = 128;         // of q and k, that a tile of few heads should have
constexpr int64_t kUsefulSteps = 20;       // rows a step needs to be worth more than its start
constexpr int64_t kEvenTokens = 8;         // of a tile, where tokens are innermost
constexpr int64_t kUnitBytes = 1024;       // SplitPairs and Join work in units of 1 KB

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
BoxLines box_of(int64_t line, int64_t lines, const RopeRows& rows, int64_t most) {
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
int64_t core_heads(const RopeParams& p, const RopeRows& rows) {
  return std::min<int64_t>(rows.heads, p.part_heads + (p.more_heads > 0));
}

Cut cut(const RopeGeometry& g, const RopeParams& p, const RopeRows (&rows)[2], int64_t most,
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
bool can_join(const RopeGeometry& g, const RopeParams& p, const RopeRows (&rows)[2]) {
  return core_tokens(g, p) == 1 && g.q_heads > 0 && g.k_heads > 0 && !norms(g) &&
         rows[0].whole == rows[1].whole && !rows[0].passes && !rows[1].passes &&
         rows[0].reach_inner && rows[1].reach_inner;
}

Cut joined_cut(const RopeParams& p, const RopeRows (&rows)[2]) {
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

/// With a norm a box is a round, and rows in fp32 take turns in two work buffers.
Room lay_out_norm(const Chip& chip, const RopeParams& p, const Cut& c, int64_t held) {
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
  if (norms(g)) return lay_out_norm(chip, p, c, held);
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

// ---- Upright rows -------------------------------------------------------------------------------

/// What a line of a box is where rows can be rotated upright, else 0. q and k agree on it, and
/// their lines have no gaps: a line is one block of a transfer.
int32_t lines_of(const RopeGeometry& g, const RopeParams& p, RopeRows (&rows)[2]) {
  if (g.style != Style::kInterleaved || norms(g) || p.half_pitch % 16 != 0 ||
      p.half_pitch != g.rotary_dim / 2) {
    return 0;
  }
  int32_t lines = 0;
  for (RopeRows& r : rows) {
    if (r.heads <= 1) continue;
    const int32_t own = r.head_major ? kUprightHeads : kUprightTokens;
    if (lines != 0 && lines != own) return 0;
    lines = own;
  }
  if (lines == 0) lines = kUprightTokens;
  for (RopeRows& r : rows) {
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

}  // namespace

void choose_buffers(const RopeGeometry& g, const Chip& chip, const RopeRows (&rows)[2],
                    RopeParams& p) {
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
    throw std::invalid_argument("rope: head_dim " + std::to_string(g.head_dim) +
                                " does not fit the " + std::to_string(chip.ub_usable) +
                                " bytes of unified buffer of " + chip.name);
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

bool choose_upright(const RopeGeometry& g, const Chip& chip, RopeRows (&rows)[2], RopeParams& p) {
  RopeRows stood[2] = {rows[0], rows[1]};
  const int32_t upright = lines_of(g, p, stood);
  if (upright == 0) return false;
  const bool heads_abreast = upright == kUprightHeads;
  const int64_t tokens = core_tokens(g, p);
  int64_t there = 0, taken = 0, longest = 0;
  for (const RopeRows& r : stood) {
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
  u.kind = kRotatesUpright;
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

}  // namespace npu_rope
