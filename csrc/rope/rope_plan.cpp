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
constexpr int64_t kFewTransfers = 8;       // of a core: it waits for the first more than they cost
constexpr int64_t kMaxTables = 32 * kKiB;  // of the unified buffer, for the tables of a tile
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
  if (g.round_each) refuse("round_each=True is not there yet on the NPU");
  if (g.batch < 0 || g.tokens < 0 || g.q_heads < 0 || g.k_heads < 0) {
    refuse("expected no negative size, got batch " + std::to_string(g.batch) + ", tokens " +
           std::to_string(g.tokens) + ", heads " + std::to_string(g.q_heads) + " and " +
           std::to_string(g.k_heads));
  }
  if (g.q_heads + g.k_heads > INT32_MAX) {
    refuse("expected less than 2^31 heads, got " + std::to_string(g.q_heads + g.k_heads));
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

/// Whether a row can be rotated as it lies, between columns that only pass through: its rotated
/// halves begin at whole blocks, and a transpose takes whole rows.
bool rotates_whole_rows(const RopeGeometry& g, const RopeParams& p) {
  const int64_t block = kBlockBytes / size_of(g.dtype);
  const int64_t half = g.rotary_dim / 2;
  if (g.rotary_offset % block != 0 || g.head_dim % block != 0 || p.half_pitch != half) return false;
  if (!p.transposes_in && !p.join_out) return true;
  return g.dtype != DType::kFloat32 && kUnit % (half / block) == 0;
}

/// p: of which half_pitch and what is transposed are set.
RopeTensor tensor_of(const RopeGeometry& g, const RopeParams& p, const RowStrides& in,
                     const RowStrides& out, int64_t heads, bool in_place) {
  RopeTensor t = {};
  t.in_batch = in.batch;
  t.in_token = in.token;
  t.in_head = in.head;
  t.out_batch = out.batch;
  t.out_token = out.token;
  t.out_head = out.head;
  t.heads = static_cast<int32_t>(heads);
  t.in_place = in_place;
  t.head_major = in.token < in.head;  // the axis whose rows lie closer comes innermost
  t.whole = !in_place && g.rotary_dim < g.head_dim && rotates_whole_rows(g, p);
  t.row_pitch = t.whole ? static_cast<int32_t>(g.head_dim) : 2 * p.half_pitch;
  t.row_offset = t.whole ? static_cast<int32_t>(g.rotary_offset) : 0;
  return t;
}

/// Bytes of a row: of its longest run of columns that are moved together, and in a buffer.
struct RowBytes {
  int64_t run, held;
};

RowBytes row_bytes(const RopeGeometry& g, const RopeTensor& t) {
  const int64_t size = size_of(g.dtype);
  const int64_t block = kBlockBytes / size;
  if (t.whole) return {g.head_dim * size, t.row_pitch * size};
  if (t.in_place) return {g.rotary_dim * size, t.row_pitch * size};
  const int64_t before = g.rotary_offset;
  const int64_t after = g.head_dim - g.rotary_dim - before;
  return {std::max({before, g.rotary_dim, after}) * size,
          (AlignUp(before, block) + t.row_pitch + AlignUp(after, block)) * size};
}

/// The grid of cores that takes least by the rule in rope_plan.h.
void choose_grid(const RopeGeometry& g, int64_t max_cores, RopeParams& p) {
  const int64_t tokens = g.batch * g.tokens;
  const int64_t heads = g.q_heads + g.k_heads;
  const bool in_place = g.q_in_place && g.k_in_place;
  const int64_t row = 2 * (in_place ? g.rotary_dim : g.head_dim) * size_of(g.dtype);
  const int64_t tables = 2 * g.rotary_dim / (g.half_tables ? 2 : 1) * size_of(g.table_dtype);
  double least = 0;
  for (int64_t head_parts = 1; head_parts <= std::min(heads, max_cores); ++head_parts) {
    const int64_t token_bytes = CeilDiv(heads, head_parts) * row + tables;
    const int64_t most = std::min(tokens, max_cores / head_parts);
    for (int64_t token_parts = 1; token_parts <= most; ++token_parts) {
      const double bytes = static_cast<double>(CeilDiv(tokens, token_parts) * token_bytes);
      const double ns =
          kStartNs * static_cast<double>(head_parts * token_parts) + bytes / kBytesPerNs;
      if (p.token_parts == 0 || ns < least) {
        least = ns;
        p.token_parts = static_cast<int32_t>(token_parts);
        p.head_parts = static_cast<int32_t>(head_parts);
      }
    }
  }
}

/// Rows of a box with lines (all heads of a token, or all tokens of a head) of `line` rows: as many
/// whole lines as make a long enough transfer, or an even part of a line that makes several, as far
/// as a buffer of `most` rows holds them.
int64_t box_of(int64_t line, RowBytes row, int64_t most) {
  const int64_t long_enough = CeilDiv(kTransfer, row.run);
  const int64_t parts = std::max<int64_t>(line / long_enough, 1);
  if (parts > 1 || line > most) return EvenPiece(line, std::min(most, CeilDiv(line, parts)));
  return line * std::min(CeilDiv(long_enough, line), most / line);
}

/// Cuts the tokens of a core into tiles, tiles into boxes and boxes into steps so that all buffers
/// fit, and lays the buffers out.
int64_t fill_buffer(const RopeGeometry& g, const Chip& chip, RopeParams& p) {
  const bool fp32 = g.dtype == DType::kFloat32;
  const int64_t float_row = p.float_pitch * 4;
  const int64_t raw_row = (g.half_tables ? 1 : 2) * p.table_half_pitch * size_of(g.table_dtype);
  const bool transposes_rows = p.transposes_in || p.join_out;
  const int64_t spare = transposes_rows || p.split_tables ? kUnitBytes : 0;
  const int64_t work_spare = transposes_rows && !fp32 ? kUnitBytes : 0;
  const RowBytes rows[2] = {row_bytes(g, p.tensors[0]), row_bytes(g, p.tensors[1])};
  const int64_t held = std::max(g.q_heads ? rows[0].held : 0, g.k_heads ? rows[1].held : 0);
  const int64_t core_tokens = std::min(CeilDiv(g.batch * g.tokens, p.token_parts), g.tokens);

  // Load and store buffers first, then the tables, then as many rows a step as are left for: the
  // more rows a step has, the less it waits for its own results. Of buffers that leave as many the
  // longest, or the shortest where a core has so few transfers that it waits for the first.
  const int64_t core_rows = core_tokens * CeilDiv(g.q_heads + g.k_heads, p.head_parts);
  const bool few = core_rows * held < kFewTransfers * kTransfer;
  const int64_t least = few ? kTransfer / 4 : kTransfer;
  int64_t best = 0, bytes = 0;
  for (int64_t slot = 2 * kTransfer; slot >= held; slot -= kKiB) {
    const int64_t most = std::min<int64_t>(slot / held, kMaxTransferBlocks / 2);
    int64_t tile = std::max<int64_t>(1, kMaxTables / (2 * (float_row + raw_row)));
    for (; tile >= 1; tile = tile == 1 ? 0 : std::max<int64_t>(1, tile / 2)) {
      int64_t tokens = std::min({core_tokens, tile, most, int64_t{kMaxRepeats}});
      // Of whole boxes where there are several: boxes of q, and of k with its fewer heads.
      int64_t whole = 1;
      for (int i = 0; i < 2; ++i) {
        const int64_t heads = CeilDiv(p.tensors[i].heads, p.head_parts);
        if (heads == 0) continue;
        const int64_t lines =
            p.tensors[i].head_major ? kEvenTokens : box_of(heads, rows[i], most) / heads;
        if (lines <= tokens) whole = std::max(whole, lines);
      }
      tokens -= tokens % whole;
      int64_t box = 1, shortest = INT64_MAX;  // rows of the largest, bytes of what is cut
      for (int i = 0; i < 2; ++i) {
        const int64_t heads = CeilDiv(p.tensors[i].heads, p.head_parts);
        if (heads == 0) continue;
        const bool head_major = p.tensors[i].head_major;
        const int64_t line = head_major ? tokens : heads;
        const int64_t across = head_major ? heads : tokens;
        int64_t fits = std::min(box_of(line, rows[i], most), line * across);
        if (head_major) fits = std::max(fits, tokens);  // the walk never cuts a column of tokens
        box = std::max(box, fits);
        if (fits < line * across) shortest = std::min(shortest, fits * rows[i].run);
      }
      const int64_t table = tokens * float_row;
      const int64_t raw = AlignUp(tokens * raw_row, 256);
      const int64_t slot_bytes = AlignUp(box * held, kBankRow);
      const int64_t near_fixed =
          work_spare + 2 * table + 2 * raw + kBankRow + (fp32 ? kRing * slot_bytes : 0);
      const int64_t far_fixed = 2 * spare + kBankRow + (fp32 ? 0 : kRing * slot_bytes);
      const int64_t near_row = fp32 ? 0 : float_row;
      const int64_t far_row = 2 * float_row;

      // With the products beyond the first third if that leaves steps of a useful length.
      int64_t step = (chip.ub_usable - near_fixed - far_fixed) / (near_row + far_row);
      int64_t apart = std::min(step, (chip.ub_usable - kThird - far_fixed) / far_row);
      const int64_t near_room = kThird - (near_fixed - 2 * raw);  // tables as loaded may straddle
      if (near_row > 0) apart = std::min(apart, near_room / near_row);
      if (near_room < 0) apart = 0;
      const int64_t limit = std::min<int64_t>(box, kMaxRepeats);
      const bool gap = apart >= std::min(limit, kUsefulSteps);
      step = std::min(gap ? apart : step, limit);
      if (step < tokens || (step < std::min(limit, kUsefulSteps) && tile > 1)) continue;
      const int64_t even = EvenPiece(box, step);
      if (best > 0 && (shortest < least || even < best || (even == best && !few))) break;
      best = even;

      p.tile_tokens = static_cast<int32_t>(tokens);
      p.box_rows = static_cast<int32_t>(box);
      p.step_rows = static_cast<int32_t>(step);
      p.slot_bytes = static_cast<int32_t>(slot_bytes);
      p.table_bytes = static_cast<int32_t>(table);
      p.raw_bytes = static_cast<int32_t>(raw);
      p.work_bytes = static_cast<int32_t>(step * near_row + work_spare);
      const int64_t near = near_fixed + step * near_row;
      p.gap_bytes = static_cast<int32_t>(gap ? std::max<int64_t>(kThird - near, 0) : 0);
      p.product_bytes = static_cast<int32_t>(step * float_row + spare);
      // y1 reads P1 with Q2, y2 reads P2 with Q1, half a row apart: where that is a multiple of
      // 512 bytes the two would meet in the same groups. (Halves of 9 to 15 blocks, of 17 to 23
      // and so on, as of D = 192, meet in part whatever the shift.)
      p.sin_shift = p.half_pitch * 4 % kBankRow == 0 ? 256 : 0;
      const int64_t ring = fp32 ? 0 : kRing * slot_bytes;
      bytes = near + p.gap_bytes + 2 * p.product_bytes + p.sin_shift + ring;
      break;
    }
  }
  if (best > 0) return bytes;
  refuse("head_dim " + std::to_string(g.head_dim) + " does not fit the " +
         std::to_string(chip.ub_usable) + " bytes of unified buffer of " + chip.name);
}

}  // namespace

RopePlan plan_rope(const RopeGeometry& g, const Chip& chip) {
  check(g, chip);
  RopePlan plan = {};
  if (g.batch * g.tokens * (g.q_heads + g.k_heads) == 0) return plan;

  RopeParams& p = plan.params;
  p.tables[0] = {g.cos.batch, g.cos.token};
  p.tables[1] = {g.sin.batch, g.sin.token};
  p.batch = g.batch;
  p.tokens = g.tokens;
  p.head_dim = static_cast<int32_t>(g.head_dim);
  p.rotary_dim = static_cast<int32_t>(g.rotary_dim);
  p.rotary_offset = static_cast<int32_t>(g.rotary_offset);
  p.table_dtype = static_cast<int32_t>(g.table_dtype);
  p.round_tables = g.cast_tables && g.dtype != DType::kFloat32 && g.table_dtype != g.dtype;
  p.half_tables = g.half_tables;
  p.split_tables = !g.half_tables && g.style == Style::kInterleaved;
  p.split_in = g.style == Style::kInterleaved || (g.style == Style::kDeinterleave && !g.transpose);
  p.join_out = g.style == Style::kInterleaved || (g.style == Style::kDeinterleave && g.transpose);
  p.transposes_in = p.split_in && g.dtype != DType::kBFloat16;
  p.transpose = g.transpose;

  // Halves begin at whole 32-byte blocks, of fp32 always, of a 16-bit type too where they are
  // loaded or transposed one by one: where a dense row does not have its second half there.
  const int64_t half = g.rotary_dim / 2;
  const bool dense = half % 8 == 0 && !p.transposes_in && !p.join_out;
  p.half_pitch = static_cast<int32_t>(dense ? half : AlignUp(half, kBlockBytes / size_of(g.dtype)));
  const bool by_halves = p.half_pitch != half && 2 * CeilDiv(half, kRepeatFloats) <=
                                                     CeilDiv(2 * p.half_pitch, kRepeatFloats);
  p.row_parts = by_halves ? 2 : 1;
  p.table_half_pitch = static_cast<int32_t>(AlignUp(half, kBlockBytes / size_of(g.table_dtype)));
  p.float_pitch = static_cast<int32_t>(AlignUp(2 * p.half_pitch, kBankRow / 4));
  p.tensors[0] = tensor_of(g, p, g.q, g.q_out, g.q_heads, g.q_in_place);
  p.tensors[1] = tensor_of(g, p, g.k, g.k_out, g.k_heads, g.k_in_place);

  choose_grid(g, chip.cores, p);
  plan.cores = p.token_parts * p.head_parts;
  plan.ub_bytes = fill_buffer(g, chip, p);
  return plan;
}

std::vector<RopeBox> boxes_of(const RopePlan& plan, int32_t core) {
  std::vector<RopeBox> boxes;
  if (core >= plan.cores) return boxes;
  RopeWalk walk(plan.params, core);
  RopeBox box;
  while (walk.Next(box)) boxes.push_back(box);
  return boxes;
}

}  // namespace npu_rope
