// The fused rotary embedding for A2/A3 vector cores (arch 2201).
//
//   y1 = x1*cos1 - x2*sin1,  y2 = x2*cos2 + x1*sin2        (transposed: y1 = x1*cos1 + x2*sin2,
//                                                                       y2 = x2*cos2 - x1*sin1)
// With rows x = [x1 | x2], C = [cos1 | cos2], S = [sin2 | sin1] (transposed: [sin1 | sin2]):
//
//   P = x*C, Q = x*S, then y1 = P1 - Q2, y2 = P2 + Q1      (transposed: y1 = P1 + Q2, y2 = P2 - Q1)
//
// so that no half is ever moved to the other's place. C and S of a token serve all its heads: they
// are read again and again by a repeat stride of 0. Pairs (2i, 2i+1) become two halves, and halves
// become pairs, by two 16-row transposes (rope_pairs.h), which run at full rate. Pairs of bf16 need
// none: bf16 is the upper half of fp32, so a shift and a mask make halves in fp32 of them
// (WidenPairs), and a shift and an Or make pairs of rounded halves (NarrowPairs).
//
// Work per element, in passes of 64 lanes a cycle by the documented rates (of 16-bit elements a
// transpose, And and Or take 128 a cycle, two transposes are one pass):
//
//                          bf16                         fp16                  fp32
//   half                   cast, mul 2, add, cast = 5   as bf16           5   mul 2, add        3
//   interleaved            4, round 2, join 1     = 7   split, 5, join    7   split 2, copy, 3,
//                                                                             join 2            8
//   deinterleave           as half                = 5   split, 5          6   split 2, copy, 3  6
//   deinterleave, transp.  as interleaved         = 7   5, join           6   3, join 2         5
//
// round_each, 16-bit: 4 more, both products are rounded and widened again (RoundProducts).
//
// Memory: a ring of kRing buffers, each loaded, rotated in place and stored. MTE2 loads one box
// while V rotates the one before and MTE3 stores the one before that. Banks: rows in fp32 and the
// tables share the first 64 KB, at opposite 256-byte parity; the products and (for 16-bit types)
// the ring lie beyond, so that no instruction reads and writes one bank or reads one group twice.
//
// The scalar unit runs what is written here in order and issues every instruction, so nothing is
// computed twice that does not change: masks are set where a row's end is less than a repeat, and
// are full everywhere else; addresses move on by additions.
#pragma once

#include "kernel_operator.h"
#include "rope_pairs.h"
#include "rope_params.h"

namespace npu_rope {

using AscendC::BinaryRepeatParams;
using AscendC::GlobalTensor;
using AscendC::HardEvent;
using AscendC::LocalTensor;
using AscendC::MASK_PLACEHOLDER;
using AscendC::RoundMode;
using AscendC::UnaryRepeatParams;

/// What transposes elements without looking at them.
template <typename T>
struct BitsOf {
  using Type = uint16_t;
};
template <>
struct BitsOf<float> {
  using Type = float;
};

template <typename T, typename U>
struct Same {
  static constexpr bool value = false;
};
template <typename T>
struct Same<T, T> {
  static constexpr bool value = true;
};

/// T: of q and k. kSplit: rows come as pairs. kJoin: rows leave as pairs.
template <typename T, bool kSplit, bool kJoin>
class RopeKernel {
  using Bits = typename BitsOf<T>::Type;
  static constexpr bool kFloat = Same<T, float>::value;
  static constexpr bool kBFloat16 = Same<T, bfloat16_t>::value;
  static constexpr bool kTransposes = !kBFloat16 && (kSplit || kJoin);
  static constexpr int32_t kBlock = kBlockBytes / sizeof(T);  // elements
  static constexpr int32_t kFloatBytes = sizeof(float);
  static constexpr int32_t kFloatBlock = kBlockBytes / kFloatBytes;
  static constexpr int32_t kTables = kRing;  // the tables' event, beside those of the ring

 public:
  ROPE_INLINE RopeKernel(const RopeParams& params, AscendC::TPipe& pipe)
      : p_(params), pipe_(pipe) {}

  ROPE_INLINE void Init(GM_ADDR q, GM_ADDR k, GM_ADDR cos, GM_ADDR sin, GM_ADDR q_out,
                        GM_ADDR k_out) {
    in_[0].SetGlobalBuffer(q);
    in_[1].SetGlobalBuffer(k);
    out_[0].SetGlobalBuffer(q_out);
    out_[1].SetGlobalBuffer(k_out);
    table_in_[0].SetGlobalBuffer(cos);
    table_in_[1].SetGlobalBuffer(sin);
    if (p_.stream_in[0]) in_[0].SetL2CacheHint(AscendC::CacheMode::CACHE_MODE_DISABLE);
    if (p_.stream_in[1]) in_[1].SetL2CacheHint(AscendC::CacheMode::CACHE_MODE_DISABLE);

    const RopeLayout& ub = p_.ub;
    pipe_.InitBuffer(buffer_, ub.bytes);
    if constexpr (!kFloat) work_ = Part<float>(ub.work, ub.work_bytes);
    if constexpr (kBFloat16 && kSplit) upper_ = Part<uint32_t>(ub.upper, kBlockBytes);
    tables_ = Part<float>(ub.tables, 2 * ub.table_bytes);
    raw_ = Part<uint8_t>(ub.raw, 2 * ub.raw_bytes);
    cos_product_ = Part<float>(ub.cos_product, ub.product_bytes);
    sin_product_ = Part<float>(ub.sin_product, ub.product_bytes);
    ring_ = Part<uint8_t>(ub.ring, kRing * ub.slot_bytes);

    if constexpr (kTransposes) {
      pair_rows_[0].Make(p_.tensors[0].pair_rows, p_.tensors[0].pair_pitch);
      pair_rows_[1].Make(p_.tensors[1].pair_rows, p_.tensors[1].pair_pitch);
    }
  }

  ROPE_INLINE void Process() {
    AscendC::ResetMask();
    if (2 * p_.lanes > p_.rotary_dim) {  // padding lanes are multiplied too: make them 0
      AscendC::Duplicate(tables_, 0.0f, 2 * p_.ub.table_bytes / kFloatBytes);
      AscendC::PipeBarrier<PIPE_V>();
    }
    if constexpr (kBFloat16 && kSplit) {
      AscendC::Duplicate(upper_, 0xFFFF0000u, int32_t{kFloatBlock});
      AscendC::PipeBarrier<PIPE_V>();
    }

    // A turn loads a box and then rotates and stores the one before it.
    RopeWalk walk(p_, static_cast<int32_t>(AscendC::GetBlockIdx()));
    RopeBox box = {}, next = {};
    int32_t turn = 0, slot = 0, last_slot = 0;
    for (bool more = true;; ++turn) {
      if (turn > 0 && box.starts_tile) PrepareTables(box);
      more = more && walk.Next(next);
      if (more) Load(next, slot, turn);
      if (turn > 0) {
        AscendC::WaitFlag<HardEvent::MTE2_V>(last_slot);
        Rotate(box, last_slot);
        AscendC::SetFlag<HardEvent::V_MTE3>(last_slot);
        AscendC::WaitFlag<HardEvent::V_MTE3>(last_slot);
        MoveRows<false>(box, last_slot);
        AscendC::SetFlag<HardEvent::MTE3_MTE2>(last_slot);
      }
      if (!more) break;
      if (next.follows) {
        box.out = next.out;
        box.token = next.token;
        box.starts_tile = 0;
      } else {
        box = next;
      }
      last_slot = slot;
      slot = slot + 1 == kRing ? 0 : slot + 1;
    }

    AscendC::WaitFlag<HardEvent::V_MTE2>(kTables);
    for (int32_t i = 0; i < Min(turn, kRing); ++i) AscendC::WaitFlag<HardEvent::MTE3_MTE2>(i);
  }

 private:
  /// `bytes` of the unified buffer, as RopeLayout cuts it.
  template <typename B>
  ROPE_INLINE LocalTensor<B> Part(int32_t begin, int32_t bytes) {
    LocalTensor<B> part = buffer_.template Get<uint8_t>()[begin].template ReinterpretCast<B>();
    part.SetSize(bytes / static_cast<int32_t>(sizeof(B)));
    return part;
  }

  // ---- Global memory <-> unified buffer -----------------------------------------------------

  ROPE_INLINE void Load(const RopeBox& box, int32_t slot, int32_t turn) {
    if (box.starts_tile) {
      if (turn > 0) AscendC::WaitFlag<HardEvent::V_MTE2>(kTables);
      for (int32_t i = 0; i < 2; ++i) {
        const RopeTable& table = p_.tables[i];
        const int64_t first = box.batch * table.in.batch + box.tile_token * table.in.token;
        Move<true>(table.in, table_in_[i][first], raw_[i * p_.ub.raw_bytes],
                   table.one_row ? 1 : box.tile_tokens, 1);
      }
      AscendC::SetFlag<HardEvent::MTE2_V>(kTables);
    }
    if (turn >= kRing) AscendC::WaitFlag<HardEvent::MTE3_MTE2>(slot);
    MoveRows<true>(box, slot);
    AscendC::SetFlag<HardEvent::MTE2_V>(slot);
  }

  /// Loads a box from q or k, or stores it to the output.
  template <bool kLoad>
  ROPE_INLINE void MoveRows(const RopeBox& box, int32_t slot) {
    const RopeMove& move = kLoad ? box.rows->in : box.rows->out;
    const GlobalTensor<uint8_t>& gm = kLoad ? in_[box.tensor] : out_[box.tensor];
    Move<kLoad>(move, gm[kLoad ? box.in : box.out], ring_[slot * p_.ub.slot_bytes], box.inner,
                box.outer);
  }

  /// Moves `outer` lines of `inner` rows. A line whose rows have no seam is one block; lines that
  /// follow on at the rows' own distance are one transfer.
  template <bool kLoad>
  ROPE_INLINE void Move(const RopeMove& move, const GlobalTensor<uint8_t>& gm,
                        const LocalTensor<uint8_t>& ub, int32_t inner, int32_t outer) {
    int64_t pitch = move.inner;
    int32_t blocks = inner * move.halves, lines = 1, rows = 1;  // rows: of a block
    if (move.runs || blocks == 1) {
      rows = blocks;
      blocks = outer;
      pitch = move.outer;
    } else if (pitch * blocks == move.outer) {
      blocks *= outer;
    } else {
      lines = outer;
    }
    const RopeColumns* const end = move.columns + move.groups;
    const RopeColumns* group = move.columns;
    do {
      const RopeColumns& columns = *group;
      const int32_t bytes = columns.bytes * rows;
      AscendC::DataCopyExtParams params;
      params.blockCount = static_cast<uint16_t>(blocks);
      params.blockLen = static_cast<uint32_t>(bytes);
      params.rsv = 0;
      const uint32_t gap = blocks > 1 ? static_cast<uint32_t>(pitch - bytes) : 0;
      params.srcStride = kLoad ? gap : columns.ub_gap;
      params.dstStride = kLoad ? columns.ub_gap : gap;
      const AscendC::DataCopyPadExtParams<uint8_t> fill{columns.fill > 0, 0, columns.fill, 0};
      int64_t from = columns.gm;
      int32_t to = columns.ub, line = lines;
      do {
        if constexpr (kLoad) {
          AscendC::DataCopyPad(ub[to], gm[from], params, fill);
        } else {
          AscendC::DataCopyPad(gm[from], ub[to], params);
        }
        from += move.outer;
        to += blocks * columns.ub_pitch;
      } while (--line > 0);
    } while (++group < end);
  }

  // ---- Tables -------------------------------------------------------------------------------

  ROPE_INLINE void PrepareTables(const RopeBox& box) {
    AscendC::WaitFlag<HardEvent::MTE2_V>(kTables);
    for (int32_t i = 0; i < 2; ++i) {
      if (p_.table_dtype == kTableFloat16) PrepareTable<half>(i, box.tile_tokens);
      if (p_.table_dtype == kTableBFloat16) PrepareTable<bfloat16_t>(i, box.tile_tokens);
      if (p_.table_dtype == kTableFloat32) PrepareTable<float>(i, box.tile_tokens);
    }
    AscendC::SetFlag<HardEvent::V_MTE2>(kTables);
  }

  /// cos (0) or sin (1) as loaded -> C or S of the tile.
  template <typename Table>
  ROPE_INLINE void PrepareTable(int32_t which, int32_t rows) {
    using TableBits = typename BitsOf<Table>::Type;
    constexpr int32_t kTableBlock = kBlockBytes / sizeof(Table);  // elements
    const bool one_row = p_.tables[which].one_row;
    const LocalTensor<TableBits> raw =
        raw_[which * p_.ub.raw_bytes].template ReinterpretCast<TableBits>();
    const LocalTensor<float> table = tables_[which * (p_.ub.table_bytes / kFloatBytes)];
    const bool swap = which == 1 && !p_.transpose;       // S = [sin2 | sin1]
    int32_t blocks = p_.table_half_pitch / kTableBlock;  // from row to row
    int32_t second = p_.half_tables ? 0 : p_.table_half_pitch;
    LocalTensor<TableBits> halves = raw;
    if (p_.split_tables) {
      const int32_t count = one_row ? blocks : rows * blocks;
      halves = sin_product_.template ReinterpretCast<TableBits>();
      second = SplitBlocks(count) * kTableBlock;
      PairRows seamless;
      seamless.MakeSeamless();
      SplitPairs<TableBits>(
          {Address(raw), Address(cos_product_), {Address(halves), Address(halves[second])}},
          seamless, count);
    } else if (!p_.half_tables) {
      blocks *= 2;
    }
    const LocalTensor<Table> from = halves.template ReinterpretCast<Table>();
    WidenTable(table, from[swap ? second : 0], from[swap ? 0 : second], one_row ? 0 : blocks, rows);
  }

  /// The first and second halves of a table's rows, `blocks` apart: Table -> (rounded to T ->)
  /// fp32.
  template <typename Table>
  ROPE_INLINE void WidenTable(const LocalTensor<float>& to, const LocalTensor<Table>& first,
                              const LocalTensor<Table>& second, int32_t blocks, int32_t rows) {
    const LocalTensor<float> to2 = to[p_.half_pitch];
    const int32_t to_blocks = p_.float_blocks;
    const Columns half{p_.rotary_dim / 2, p_.table_mask};
    if constexpr (!kFloat && !Same<T, Table>::value) {
      if (p_.round_tables) {
        const int32_t dense = (half.width + kBlock - 1) / kBlock;  // blocks
        const LocalTensor<T> rounded = cos_product_.template ReinterpretCast<T>();
        const LocalTensor<T> rounded2 = rounded[rows * dense * kBlock];
        if constexpr (Same<Table, float>::value) {
          CastRows(rounded, dense, first, blocks, half, rows, RoundMode::CAST_RINT);
          CastRows(rounded2, dense, second, blocks, half, rows, RoundMode::CAST_RINT);
        } else {
          CastRows(to, to_blocks, first, blocks, half, rows, RoundMode::CAST_NONE);
          CastRows(to2, to_blocks, second, blocks, half, rows, RoundMode::CAST_NONE);
          AscendC::PipeBarrier<PIPE_V>();
          CastRows(rounded, dense, to, to_blocks, half, rows, RoundMode::CAST_RINT);
          CastRows(rounded2, dense, to2, to_blocks, half, rows, RoundMode::CAST_RINT);
        }
        AscendC::PipeBarrier<PIPE_V>();
        CastRows(to, to_blocks, rounded, dense, half, rows, RoundMode::CAST_NONE);
        CastRows(to2, to_blocks, rounded2, dense, half, rows, RoundMode::CAST_NONE);
        AscendC::PipeBarrier<PIPE_V>();
        return;
      }
    }
    if constexpr (Same<Table, float>::value) {
      CopyRows(to, to_blocks, first, blocks, half, rows);
      CopyRows(to2, to_blocks, second, blocks, half, rows);
    } else {
      CastRows(to, to_blocks, first, blocks, half, rows, RoundMode::CAST_NONE);
      CastRows(to2, to_blocks, second, blocks, half, rows, RoundMode::CAST_NONE);
    }
    AscendC::PipeBarrier<PIPE_V>();
  }

  // ---- Rotation -----------------------------------------------------------------------------

  /// Rotates a box by rounds of vector instructions.
  ROPE_INLINE void Rotate(const RopeBox& box, int32_t slot) {
    const RopeTensor& t = *box.rows;
    const int32_t line = t.parts ? 1 : box.inner;
    int32_t left = t.parts ? box.inner : box.outer;
    int32_t token = box.token - box.tile_token;
    int32_t at = slot * p_.ub.slot_bytes + t.row_offset;
    do {
      const int32_t lines = Min(t.step_lines, left);
      RotateStep(box, at, token, line, lines);
      at += line * lines * t.row_blocks * kBlockBytes;
      token += t.over_tokens ? lines : 0;
      left -= lines;
    } while (left > 0);
  }

  /// Rotates in place `lines` lines of `line` rows, the first at byte `at` of the ring. token: of
  /// the first row, in the tile.
  ROPE_INLINE void RotateStep(const RopeBox& box, int32_t at, int32_t token, int32_t line,
                              int32_t lines) {
    const RopeTensor& t = *box.rows;
    const int32_t tensor = box.tensor;
    const int32_t half = p_.half_pitch;
    const int32_t rows = line * lines;
    const int32_t x_blocks = t.row_blocks, blocks = p_.float_blocks;
    const LocalTensor<Bits> x = ring_[at].template ReinterpretCast<Bits>();
    const Columns columns{p_.lanes, p_.half_mask};
    if constexpr (kFloat) {
      if constexpr (kSplit) {
        const LocalTensor<float> odd = Split(x, tensor, rows);
        CopyRows(x, x_blocks, sin_product_, half / kBlock, columns, rows);
        CopyRows(x[half], x_blocks, odd, half / kBlock, columns, rows);
        AscendC::PipeBarrier<PIPE_V>();
      }
      Multiply(x, x_blocks, t.over_tokens, token, line, lines);
      if constexpr (kJoin) {  // as two planes, which is what JoinPairs reads
        const LocalTensor<float> odd = x[rows * half];
        Combine(x, odd, half / kBlock, rows);
        JoinPairs<float>({Address(x), Address(cos_product_), {Address(x), Address(odd)}},
                         pair_rows_[tensor], Address(sin_product_), rows * half / kBlock);
      } else {
        Combine(x, x[half], x_blocks, rows);
      }
    } else {
      const LocalTensor<T> as_rows = x.template ReinterpretCast<T>();
      if constexpr (kSplit && kBFloat16) {
        WidenPairs(x, x_blocks, rows);
      } else if constexpr (kSplit) {
        const LocalTensor<T> even = sin_product_.template ReinterpretCast<T>();
        const LocalTensor<T> odd = Split(x, tensor, rows).template ReinterpretCast<T>();
        CastRows(work_, blocks, even, half / kBlock, columns, rows, RoundMode::CAST_NONE);
        CastRows(work_[half], blocks, odd, half / kBlock, columns, rows, RoundMode::CAST_NONE);
      } else {
        CastWholeRows(work_, blocks, as_rows, x_blocks, rows, RoundMode::CAST_NONE);
      }
      AscendC::PipeBarrier<PIPE_V>();
      Multiply(work_, blocks, t.over_tokens, token, line, lines);
      if (p_.round_each) RoundProducts(rows);
      Combine(work_, work_[half], blocks, rows);
      if constexpr (kJoin && kBFloat16) {
        NarrowPairs(x, x_blocks, rows);
      } else if constexpr (kJoin) {
        const LocalTensor<T> even = cos_product_.template ReinterpretCast<T>();
        const LocalTensor<T> odd = even[rows * half];
        CastRows(even, half / kBlock, work_, blocks, columns, rows, RoundMode::CAST_RINT);
        CastRows(odd, half / kBlock, work_[half], blocks, columns, rows, RoundMode::CAST_RINT);
        AscendC::PipeBarrier<PIPE_V>();
        // Once the planes are in lines, their buffer is spare.
        JoinPairs<Bits>({Address(x), Address(work_), {Address(even), Address(odd)}},
                        pair_rows_[tensor], Address(cos_product_), rows * half / kBlock);
      } else {
        CastWholeRows(as_rows, x_blocks, work_, blocks, rows, RoundMode::CAST_RINT);
      }
      AscendC::PipeBarrier<PIPE_V>();  // the next step writes what this one still reads
    }
  }

  /// P = x*C, Q = x*S for `lines` lines of `line` rows, x_blocks apart. One instruction serves 64
  /// columns of a line, or of one row of each line, whichever are more rows. Where they are heads
  /// of a token they read its table again and again.
  ROPE_INLINE void Multiply(const LocalTensor<float>& x, int32_t x_blocks, bool lines_are_tokens,
                            int32_t token, int32_t line, int32_t lines) {
    const int32_t blocks = p_.float_blocks;  // of the products and the tables
    const bool across = lines > line && line * Max(x_blocks, blocks) <= kMaxRepeats;
    const int32_t repeats = across ? lines : line, stride = across ? line : 1;
    const int32_t loops = across ? line : lines, loop_stride = across ? 1 : line;
    const bool over_tokens = across == lines_are_tokens;  // from repeat to repeat
    const int32_t table_blocks = over_tokens ? blocks : 0;
    const BinaryRepeatParams params(1, 1, 1, static_cast<uint8_t>(stride * blocks),
                                    static_cast<uint8_t>(stride * x_blocks),
                                    static_cast<uint8_t>(table_blocks));
    const int32_t x_step = loop_stride * x_blocks * kFloatBlock;
    const int32_t product_step = loop_stride * blocks * kFloatBlock;
    const int32_t table_step = (blocks - table_blocks) * kFloatBlock;
    const int32_t table = token * blocks * kFloatBlock;
    const LocalTensor<float> c = tables_[table];
    const LocalTensor<float> s = tables_[table + p_.ub.table_bytes / kFloatBytes];
    int32_t i = 0;
    do {
      if (i == p_.row.full) AscendC::SetVectorMask<float>(0, p_.row.mask);
      int32_t row = p_.row.columns[i], product = row, entry = row, n = loops;
      do {
        AscendC::Mul<float, false>(cos_product_[product], x[row], c[entry], MASK_PLACEHOLDER,
                                   static_cast<uint8_t>(repeats), params);
        AscendC::Mul<float, false>(sin_product_[product], x[row], s[entry], MASK_PLACEHOLDER,
                                   static_cast<uint8_t>(repeats), params);
        row += x_step;
        product += product_step;
        entry += table_step;
      } while (--n > 0);
    } while (++i < p_.row.count);
    if (p_.row.count > p_.row.full) AscendC::ResetMask();
    AscendC::PipeBarrier<PIPE_V>();
  }

  /// P and Q as eager PyTorch has them: rounded to T. x is needed no more, its buffer is scratch.
  ROPE_INLINE void RoundProducts(int32_t rows) {
    const int32_t blocks = p_.float_blocks;
    const LocalTensor<T> p = work_.template ReinterpretCast<T>();
    const LocalTensor<T> q = p[rows * (blocks / 2) * kBlock];
    CastWholeRows(p, blocks / 2, cos_product_, blocks, rows, RoundMode::CAST_RINT);
    CastWholeRows(q, blocks / 2, sin_product_, blocks, rows, RoundMode::CAST_RINT);
    AscendC::PipeBarrier<PIPE_V>();
    CastWholeRows(cos_product_, blocks, p, blocks / 2, rows, RoundMode::CAST_NONE);
    CastWholeRows(sin_product_, blocks, q, blocks / 2, rows, RoundMode::CAST_NONE);
    AscendC::PipeBarrier<PIPE_V>();
  }

  /// y1 = P1 - Q2, y2 = P2 + Q1; transposed: y1 = P1 + Q2, y2 = P2 - Q1. Rows of y lie y_blocks
  /// apart.
  ROPE_INLINE void Combine(const LocalTensor<float>& y1, const LocalTensor<float>& y2,
                           int32_t y_blocks, int32_t rows) {
    const uint8_t blocks = static_cast<uint8_t>(p_.float_blocks);
    const BinaryRepeatParams params(1, 1, 1, static_cast<uint8_t>(y_blocks), blocks, blocks);
    const uint8_t repeats = static_cast<uint8_t>(rows);
    const LocalTensor<float> p2 = cos_product_[p_.half_pitch], q2 = sin_product_[p_.half_pitch];
    const int32_t width = p_.lanes;
    for (int32_t c = 0; c < width; c += kRepeatFloats) {
      if (width - c < kRepeatFloats) AscendC::SetVectorMask<float>(0, p_.half_mask);
      if (p_.transpose) {
        AscendC::Add<float, false>(y1[c], cos_product_[c], q2[c], MASK_PLACEHOLDER, repeats,
                                   params);
        AscendC::Sub<float, false>(y2[c], p2[c], sin_product_[c], MASK_PLACEHOLDER, repeats,
                                   params);
      } else {
        AscendC::Sub<float, false>(y1[c], cos_product_[c], q2[c], MASK_PLACEHOLDER, repeats,
                                   params);
        AscendC::Add<float, false>(y2[c], p2[c], sin_product_[c], MASK_PLACEHOLDER, repeats,
                                   params);
      }
    }
    if (width % kRepeatFloats != 0) AscendC::ResetMask();
    AscendC::PipeBarrier<PIPE_V>();
  }

  // ---- Rows ---------------------------------------------------------------------------------

  /// The first `width` columns of rows. mask: the lanes of the last repeat, where it is not full.
  struct Columns {
    int32_t width;
    uint64_t mask;
  };

  template <typename D, typename S>
  ROPE_INLINE void CastRows(const LocalTensor<D>& to, int32_t to_blocks, const LocalTensor<S>& from,
                            int32_t from_blocks, const Columns& columns, int32_t rows,
                            RoundMode mode) {
    const UnaryRepeatParams params(1, 1, static_cast<uint8_t>(to_blocks),
                                   static_cast<uint8_t>(from_blocks));
    for (int32_t c = 0; c < columns.width; c += kRepeatFloats) {
      if (columns.width - c < kRepeatFloats) AscendC::SetVectorMask<float>(0, columns.mask);
      AscendC::Cast<D, S, false>(to[c], from[c], mode, MASK_PLACEHOLDER, static_cast<uint8_t>(rows),
                                 params);
    }
    if (columns.width % kRepeatFloats != 0) AscendC::ResetMask();
  }

  /// Both halves of rows.
  template <typename D, typename S>
  ROPE_INLINE void CastWholeRows(const LocalTensor<D>& to, int32_t to_blocks,
                                 const LocalTensor<S>& from, int32_t from_blocks, int32_t rows,
                                 RoundMode mode) {
    const UnaryRepeatParams params(1, 1, static_cast<uint8_t>(to_blocks),
                                   static_cast<uint8_t>(from_blocks));
    int32_t i = 0;
    do {
      if (i == p_.row.full) AscendC::SetVectorMask<float>(0, p_.row.mask);
      const int32_t c = p_.row.columns[i];
      AscendC::Cast<D, S, false>(to[c], from[c], mode, MASK_PLACEHOLDER, static_cast<uint8_t>(rows),
                                 params);
    } while (++i < p_.row.count);
    if (p_.row.count > p_.row.full) AscendC::ResetMask();
  }

  ROPE_INLINE void CopyRows(const LocalTensor<float>& to, int32_t to_blocks,
                            const LocalTensor<float>& from, int32_t from_blocks,
                            const Columns& columns, int32_t rows) {
    AscendC::CopyRepeatParams params;
    params.dstStride = 1;
    params.srcStride = 1;
    params.dstRepeatSize = static_cast<uint16_t>(to_blocks);
    params.srcRepeatSize = static_cast<uint16_t>(from_blocks);
    for (int32_t c = 0; c < columns.width; c += kRepeatFloats) {
      if (columns.width - c < kRepeatFloats) AscendC::SetVectorMask<float>(0, columns.mask);
      AscendC::Copy<float, false>(to[c], from[c], MASK_PLACEHOLDER, static_cast<uint8_t>(rows),
                                  params);
    }
    if (columns.width % kRepeatFloats != 0) AscendC::ResetMask();
  }

  // ---- Pairs <-> halves ---------------------------------------------------------------------

  /// Rows of bf16 pairs -> first and second elements in fp32, in the work buffer. bf16 is the upper
  /// half of fp32, and of a pair read as 32 bits the first element is the lower half.
  ROPE_INLINE void WidenPairs(const LocalTensor<uint16_t>& x, int32_t x_blocks, int32_t rows) {
    const LocalTensor<uint32_t> pairs = x.template ReinterpretCast<uint32_t>();
    const LocalTensor<uint32_t> first = work_.template ReinterpretCast<uint32_t>();
    const LocalTensor<uint16_t> second = work_[p_.half_pitch].template ReinterpretCast<uint16_t>();
    const LocalTensor<uint16_t> upper = upper_.template ReinterpretCast<uint16_t>();
    const uint8_t to = static_cast<uint8_t>(p_.float_blocks);
    const uint8_t from = static_cast<uint8_t>(x_blocks);
    const uint8_t repeats = static_cast<uint8_t>(rows);
    const UnaryRepeatParams shift(1, 1, to, from);
    const BinaryRepeatParams mask(1, 1, 0, to, from, 0);
    const int32_t width = p_.lanes;
    for (int32_t c = 0; c < width; c += kRepeatFloats) {
      const bool partial = width - c < kRepeatFloats;
      if (partial) AscendC::SetVectorMask<uint32_t>(0, p_.half_mask);
      AscendC::ShiftLeft<uint32_t, false>(first[c], pairs[c], uint32_t{16}, MASK_PLACEHOLDER,
                                          repeats, shift);
      if (partial) AscendC::SetVectorMask<uint16_t>(p_.pair_mask[1], p_.pair_mask[0]);
      AscendC::And<uint16_t, false>(second[2 * c], x[2 * c], upper, MASK_PLACEHOLDER, repeats,
                                    mask);
    }
    if (width % kRepeatFloats != 0) AscendC::ResetMask();
  }

  /// The other way round: the work buffer's halves are rounded to bf16, as fp32 again, and the
  /// first elements' upper halves moved into the seconds' lower ones.
  ROPE_INLINE void NarrowPairs(const LocalTensor<uint16_t>& x, int32_t x_blocks, int32_t rows) {
    const uint8_t blocks = static_cast<uint8_t>(p_.float_blocks);
    const LocalTensor<bfloat16_t> rounded = cos_product_.template ReinterpretCast<bfloat16_t>();
    CastWholeRows(rounded, blocks / 2, work_, blocks, rows, RoundMode::CAST_RINT);
    AscendC::PipeBarrier<PIPE_V>();
    CastWholeRows(work_, blocks, rounded, blocks / 2, rows, RoundMode::CAST_NONE);
    AscendC::PipeBarrier<PIPE_V>();
    const LocalTensor<uint32_t> first = work_.template ReinterpretCast<uint32_t>();
    const LocalTensor<uint16_t> second = work_[p_.half_pitch].template ReinterpretCast<uint16_t>();
    const LocalTensor<uint32_t> moved = sin_product_.template ReinterpretCast<uint32_t>();
    const LocalTensor<uint16_t> lower = sin_product_.template ReinterpretCast<uint16_t>();
    const uint8_t repeats = static_cast<uint8_t>(rows);
    const UnaryRepeatParams shift(1, 1, blocks, blocks);
    const BinaryRepeatParams join(1, 1, 1, static_cast<uint8_t>(x_blocks), blocks, blocks);
    const int32_t width = p_.lanes;
    for (int32_t c = 0; c < width; c += kRepeatFloats) {
      const bool partial = width - c < kRepeatFloats;
      if (partial) AscendC::SetVectorMask<uint32_t>(0, p_.half_mask);
      AscendC::ShiftRight<uint32_t, false>(moved[c], first[c], uint32_t{16}, MASK_PLACEHOLDER,
                                           repeats, shift);
      AscendC::PipeBarrier<PIPE_V>();
      if (partial) AscendC::SetVectorMask<uint16_t>(p_.pair_mask[1], p_.pair_mask[0]);
      AscendC::Or<uint16_t, false>(x[2 * c], lower[2 * c], second[2 * c], MASK_PLACEHOLDER, repeats,
                                   join);
    }
    if (width % kRepeatFloats != 0) AscendC::ResetMask();
  }

  /// Rows of pairs -> an even plane at the beginning of Q's buffer, and an odd one, which is given.
  ROPE_INLINE LocalTensor<Bits> Split(const LocalTensor<Bits>& x, int32_t tensor, int32_t rows) {
    const int32_t blocks = rows * p_.half_pitch / kBlock;
    const LocalTensor<Bits> even = sin_product_.template ReinterpretCast<Bits>();
    const LocalTensor<Bits> odd = even[SplitBlocks(blocks) * kBlock];
    // Between the transposes, in another third of the unified buffer than rows and planes, where no
    // bank is both read and written. fp32 has nothing there, its rows are rotated in the ring.
    const uint64_t lines = kFloat ? Address(cos_product_) : Address(work_);
    SplitPairs<Bits>({Address(x), lines, {Address(even), Address(odd)}}, pair_rows_[tensor],
                     blocks);
    return odd;
  }

  template <typename B>
  ROPE_INLINE static uint64_t Address(const LocalTensor<B>& tensor) {
    return reinterpret_cast<uint64_t>(tensor.GetPhyAddr());
  }

  const RopeParams& p_;
  AscendC::TPipe& pipe_;
  GlobalTensor<uint8_t> in_[2], out_[2], table_in_[2];

  AscendC::TBuf<AscendC::TPosition::VECIN> buffer_;  // all of it, cut as RopeLayout says
  LocalTensor<float> work_;         // rows in fp32: x, then y; also the scratch of transposes
  LocalTensor<uint32_t> upper_;     // a block of ones in the upper halves
  LocalTensor<float> tables_;       // C and S of the tile
  LocalTensor<uint8_t> raw_;        // cos and sin as loaded
  LocalTensor<float> cos_product_;  // P; also planes, and the scratch of table work
  LocalTensor<float> sin_product_;  // Q; the same
  LocalTensor<uint8_t> ring_;
  PairRows pair_rows_[2];  // of q and k, where they are transposed
};

/// What an entry (rope_entry.cpp.in) does.
template <typename T, bool kSplit, bool kJoin>
__aicore__ inline void Run(GM_ADDR q, GM_ADDR k, GM_ADDR cos, GM_ADDR sin, GM_ADDR q_out,
                           GM_ADDR k_out, const RopeParams& params) {
  AscendC::TPipe pipe;
  RopeKernel<T, kSplit, kJoin> kernel(params, pipe);
  kernel.Init(q, k, cos, sin, q_out, k_out);
  kernel.Process();
}

}  // namespace npu_rope
