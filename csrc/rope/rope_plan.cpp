#include "rope/rope_plan.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "rope/rope_plan_buffers.h"
#include "rope/rope_plan_rows.h"

namespace npu_rope {
namespace {

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

/// Whether rows are put in another order to be normalised (RopeArrangement). Otherwise they are
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

/// Which columns the repeats of an instruction take. p: of which half_pitch is set. Rows are
/// worked on as one run, padding too, or half by half without it where that takes no more repeats.
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
  const double bytes_per_ns = p.kind == kNormsArranged ? kArrangedBytesPerNs
                              : p.join_out             ? kPairBytesPerNs
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

/// p: of which kind, split_in, half_pitch, float_blocks and row are set.
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
    const bool arranged = p.kind == kNormsArranged;
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
  // Rows of whole 512 bytes: of a repeat of every second block, and a factor in one of the
  // others, none share a bank group.
  n.scaled = n.row;
  n.spread = g.head_dim % (2 * kRepeatFloats) == 0 && p.kind == kNorms ? 2 : 1;
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
  p.kind = arranges(g) ? kNormsArranged : norms(g) ? kNorms : kRotates;
  if (p.kind != kNormsArranged) {
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
    const int64_t rest = p.kind == kNormsArranged ? g.head_dim - g.rotary_dim : 0;
    const int64_t columns = std::max<int64_t>(g.head_dim, 2 * p.half_pitch + rest);
    p.float_blocks = static_cast<int32_t>(AlignUp(columns * 4, kBankRow) / kBlockBytes);
    p.norm = norm_of(g, p);
  }

  choose_grid(g, chip.cores, p);
  RopeRows rows[2] = {rows_of(g, p, false), rows_of(g, p, true)};
  for (int i = 0; i < 2; ++i) {
    RopeTensor& t = p.tensors[i];
    const RopeRows& r = rows[i];
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
