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
//                          bf16                        fp16                      fp32
//   half                   cast, mul 2, add, cast = 5  the same            = 5   mul 2, add = 3
//   interleaved            4, round 2, join 1     = 7  split 1, 5, join 1  = 7   split 2, 1, 3, 2
//   = 8 deinterleave           5                      = 5  split 1, 5          = 6   split 2, copy
//   1, 3 = 6 deinterleave, transp.  4, round 2, join 1     = 7  5, join 1           = 6   3, join 2
//   = 5
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
  static constexpr int32_t kFloatBlock = kBlockBytes / sizeof(float);
  static constexpr int32_t kTables = kRing;  // the tables' event, beside those of the ring

 public:
  __aicore__ inline RopeKernel(const RopeParams& params, AscendC::TPipe& pipe)
      : p_(params), pipe_(pipe) {}

  __aicore__ inline void Init(GM_ADDR q, GM_ADDR k, GM_ADDR cos, GM_ADDR sin, GM_ADDR q_out,
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
      for (int32_t i = 0; i < 2; ++i) {
        if (p_.pair_rows > 0 && p_.tensors[i].row_pitch != 2 * p_.half_pitch * int32_t{sizeof(T)}) {
          pair_rows_[i].Make(p_.pair_rows, p_.tensors[i].row_pitch);
        } else {
          pair_rows_[i].MakeSeamless();
        }
      }
    }
  }

  __aicore__ inline void Process() {
    if (2 * Lanes() > p_.rotary_dim) {  // padding lanes are multiplied too: make them 0
      AscendC::Duplicate(tables_, 0.0f,
                         static_cast<int32_t>(2 * p_.ub.table_bytes / sizeof(float)));
      AscendC::PipeBarrier<PIPE_V>();
    }
    if constexpr (kBFloat16 && kSplit) {
      AscendC::Duplicate(upper_, 0xFFFF0000u, int32_t{kFloatBlock});
      AscendC::PipeBarrier<PIPE_V>();
    }
    AscendC::ResetMask();

    // A turn loads a box and then rotates and stores the one before it.
    RopeWalk walk(p_, static_cast<int32_t>(AscendC::GetBlockIdx()));
    RopeBox box, next;
    int32_t turn = 0, slot = 0, last_slot = 0;
    for (bool more = true;; ++turn) {
      if (turn > 0 && box.starts_tile) PrepareTables(box);
      more = more && walk.Next(next);
      if (more) {
        if (next.starts_tile) LoadTables(next, turn > 0);
        if (turn >= kRing) AscendC::WaitFlag<HardEvent::MTE3_MTE2>(slot);
        MoveRows<true>(next, slot);
        AscendC::SetFlag<HardEvent::MTE2_V>(slot);
      }
      if (turn > 0) {
        AscendC::WaitFlag<HardEvent::MTE2_V>(last_slot);
        Rotate(box, last_slot);
        AscendC::SetFlag<HardEvent::V_MTE3>(last_slot);
        AscendC::WaitFlag<HardEvent::V_MTE3>(last_slot);
        MoveRows<false>(box, last_slot);
        AscendC::SetFlag<HardEvent::MTE3_MTE2>(last_slot);
      }
      if (!more) break;
      box = next;
      last_slot = slot;
      slot = slot + 1 == kRing ? 0 : slot + 1;
    }

    AscendC::WaitFlag<HardEvent::V_MTE2>(kTables);
    for (int32_t i = 0; i < Min(turn, kRing); ++i) AscendC::WaitFlag<HardEvent::MTE3_MTE2>(i);
  }

 private:
  /// `bytes` of the unified buffer, as RopeLayout cuts it.
  template <typename B>
  __aicore__ inline LocalTensor<B> Part(int32_t begin, int32_t bytes) {
    LocalTensor<B> part = buffer_.template Get<uint8_t>()[begin].template ReinterpretCast<B>();
    part.SetSize(bytes / static_cast<int32_t>(sizeof(B)));
    return part;
  }

  // ---- Global memory <-> unified buffer -----------------------------------------------------

  __aicore__ inline void LoadTables(const RopeBox& box, bool wait) {
    if (wait) AscendC::WaitFlag<HardEvent::V_MTE2>(kTables);
    for (int32_t i = 0; i < 2; ++i) {
      const RopeTable& table = p_.tables[i];
      const int64_t first = box.batch * table.in.batch + box.tile_token * table.in.token;
      Move<true>(table.in, table_in_[i][first], raw_[i * p_.ub.raw_bytes],
                 table.one_row ? 1 : box.tile_tokens, 1);
    }
    AscendC::SetFlag<HardEvent::MTE2_V>(kTables);
  }

  /// Loads a box from q or k, or stores it to the output.
  template <bool kLoad>
  __aicore__ inline void MoveRows(const RopeBox& box, int32_t slot) {
    const RopeTensor& t = p_.tensors[box.tensor];
    const RopeMove& move = kLoad ? t.in : t.out;
    const int64_t first = box.batch * move.batch + box.token * move.token + box.head * move.head;
    const GlobalTensor<uint8_t>& gm = kLoad ? in_[box.tensor] : out_[box.tensor];
    Move<kLoad>(move, gm[first], ring_[slot * p_.ub.slot_bytes],
                t.head_major ? box.tokens : box.heads, t.head_major ? box.heads : box.tokens);
  }

  /// Moves `outer` lines of `inner` rows. Lines that follow on without a seam become one; rows that
  /// do, one long block.
  template <bool kLoad>
  __aicore__ inline void Move(const RopeMove& move, const GlobalTensor<uint8_t>& gm,
                              const LocalTensor<uint8_t>& ub, int32_t inner, int32_t outer) {
    int64_t pitch = move.inner;
    int32_t blocks = inner * move.halves, lines = outer, rows = 1;  // rows: of a block
    if (blocks == 1 || move.outer == pitch * blocks) {
      if (blocks == 1) pitch = move.outer;
      blocks *= lines;
      lines = 1;
    }
    if (move.packed && pitch == move.columns[0].bytes) {
      rows = blocks;
      blocks = lines;
      pitch = move.outer;
      lines = 1;
    }
    const int32_t most = move.separate ? 1 : blocks;
    for (int32_t g = 0; g < move.groups; ++g) {
      const RopeColumns& columns = move.columns[g];
      const int32_t bytes = columns.bytes * rows;
      const uint32_t gap = move.separate ? 0 : static_cast<uint32_t>(pitch - bytes);
      int32_t at = columns.ub;
      for (int32_t line = 0; line < lines; ++line) {
        int64_t from = columns.gm + line * move.outer;
        for (int32_t b = 0; b < blocks; b += most) {
          Transfer<kLoad>(gm[from], ub[at], most, bytes, gap, columns);
          from += pitch;
          at += most * columns.ub_pitch;
        }
      }
    }
  }

  template <bool kLoad>
  __aicore__ inline void Transfer(const GlobalTensor<uint8_t>& gm, const LocalTensor<uint8_t>& ub,
                                  int32_t blocks, int32_t bytes, uint32_t gap,
                                  const RopeColumns& columns) {
    AscendC::DataCopyExtParams params;
    params.blockCount = static_cast<uint16_t>(blocks);
    params.blockLen = static_cast<uint32_t>(bytes);
    params.rsv = 0;
    if constexpr (kLoad) {
      params.srcStride = gap;
      params.dstStride = columns.ub_gap;
      AscendC::DataCopyPad(
          ub, gm, params,
          AscendC::DataCopyPadExtParams<uint8_t>{columns.fill > 0, 0, columns.fill, 0});
    } else {
      params.srcStride = columns.ub_gap;
      params.dstStride = gap;
      AscendC::DataCopyPad(gm, ub, params);
    }
  }

  // ---- Tables -------------------------------------------------------------------------------

  __aicore__ inline void PrepareTables(const RopeBox& box) {
    AscendC::WaitFlag<HardEvent::MTE2_V>(kTables);
    for (int32_t i = 0; i < 2; ++i) {
      if (p_.table_dtype == kTableFloat16) PrepareTable<half>(i, box.tile_tokens);
      if (p_.table_dtype == kTableBFloat16) PrepareTable<bfloat16_t>(i, box.tile_tokens);
      if (p_.table_dtype == kTableFloat32) PrepareTable<float>(i, box.tile_tokens);
    }
    AscendC::SetFlag<HardEvent::V_MTE2>(kTables);
  }

  /// cos (0) or sin (1) as loaded -> C or S of the tile, in fp32.
  template <typename Table>
  __aicore__ inline void PrepareTable(int32_t which, int32_t rows) {
    using TableBits = typename BitsOf<Table>::Type;
    constexpr int32_t kTableBlock = kBlockBytes / sizeof(Table);
    const bool one_row = p_.tables[which].one_row;
    const LocalTensor<TableBits> raw =
        raw_[which * p_.ub.raw_bytes].template ReinterpretCast<TableBits>();
    LocalTensor<TableBits> halves[2] = {raw, raw};
    int32_t blocks = p_.table_half_pitch / kTableBlock;  // from row to row
    if (p_.split_tables) {
      const int32_t count = (one_row ? 1 : rows) * blocks;
      halves[0] = sin_product_.template ReinterpretCast<TableBits>();
      halves[1] = halves[0][SplitBlocks(count) * kTableBlock];
      PairRows seamless;
      seamless.MakeSeamless();
      SplitPairs<TableBits>(
          {Address(raw), Address(cos_product_), {Address(halves[0]), Address(halves[1])}}, seamless,
          count);
    } else if (!p_.half_tables) {
      halves[1] = raw[p_.table_half_pitch];
      blocks *= 2;
    }
    const int32_t first = which == 1 && !p_.transpose ? 1 : 0;  // S = [sin2 | sin1]
    const LocalTensor<Table> from[2] = {halves[first].template ReinterpretCast<Table>(),
                                        halves[1 - first].template ReinterpretCast<Table>()};
    PrepareHalves<Table>(tables_[which * (p_.ub.table_bytes / static_cast<int32_t>(sizeof(float)))],
                         from, one_row ? 0 : blocks, rows);
  }

  /// Both halves of a table's rows, `blocks` apart: Table -> (rounded to T ->) fp32.
  template <typename Table>
  __aicore__ inline void PrepareHalves(const LocalTensor<float>& table,
                                       const LocalTensor<Table> (&from)[2], int32_t blocks,
                                       int32_t rows) {
    const LocalTensor<float> to[2] = {table, table[p_.half_pitch]};
    const int32_t to_blocks = FloatBlocks();
    const int32_t half = p_.rotary_dim / 2;
    if constexpr (!kFloat && !Same<T, Table>::value) {
      if (p_.round_tables) {
        const int32_t dense = (half + kBlock - 1) / kBlock;  // blocks
        const LocalTensor<T> scratch = cos_product_.template ReinterpretCast<T>();
        const LocalTensor<T> rounded[2] = {scratch, scratch[rows * dense * kBlock]};
        if constexpr (Same<Table, float>::value) {
          for (int32_t h = 0; h < 2; ++h) {
            CastRows(rounded[h], dense, from[h], blocks, half, rows, RoundMode::CAST_RINT);
          }
        } else {
          for (int32_t h = 0; h < 2; ++h) {
            CastRows(to[h], to_blocks, from[h], blocks, half, rows, RoundMode::CAST_NONE);
          }
          AscendC::PipeBarrier<PIPE_V>();
          for (int32_t h = 0; h < 2; ++h) {
            CastRows(rounded[h], dense, to[h], to_blocks, half, rows, RoundMode::CAST_RINT);
          }
        }
        AscendC::PipeBarrier<PIPE_V>();
        for (int32_t h = 0; h < 2; ++h) {
          CastRows(to[h], to_blocks, rounded[h], dense, half, rows, RoundMode::CAST_NONE);
        }
        AscendC::PipeBarrier<PIPE_V>();
        return;
      }
    }
    for (int32_t h = 0; h < 2; ++h) {
      if constexpr (Same<Table, float>::value) {
        CopyRows(to[h], to_blocks, from[h], blocks, half, rows);
      } else {
        CastRows(to[h], to_blocks, from[h], blocks, half, rows, RoundMode::CAST_NONE);
      }
    }
    AscendC::PipeBarrier<PIPE_V>();
  }

  // ---- Rotation -----------------------------------------------------------------------------

  /// Rotates a box by rounds of vector instructions, of whole lines or of a part of one.
  __aicore__ inline void Rotate(const RopeBox& box, int32_t slot) {
    const RopeTensor& t = p_.tensors[box.tensor];
    const int32_t inner = t.head_major ? box.tokens : box.heads;
    const int32_t outer = t.head_major ? box.heads : box.tokens;
    const int32_t token = box.token - box.tile_token;
    int32_t at = slot * p_.ub.slot_bytes + t.row_offset;
    for (int32_t o = 0; o < outer; o += t.step_outer) {
      const int32_t lines = Min(t.step_outer, outer - o);
      for (int32_t i = 0; i < inner; i += t.step_inner) {
        const int32_t rows = Min(t.step_inner, inner - i);
        RotateStep(box.tensor, at, token + (t.head_major ? i : o), rows, lines);
        at += lines * rows * t.row_pitch;
      }
    }
  }

  /// Rotates in place `lines` lines of `line` rows, the first at byte `at` of the ring. token: of
  /// the first row, in the tile.
  __aicore__ inline void RotateStep(int32_t tensor, int32_t at, int32_t token, int32_t line,
                                    int32_t lines) {
    const RopeTensor& t = p_.tensors[tensor];
    const int32_t half = p_.half_pitch;
    const int32_t rows = line * lines;
    const int32_t x_blocks = t.row_pitch / kBlockBytes;
    const LocalTensor<Bits> x = ring_[at].template ReinterpretCast<Bits>();
    if constexpr (kFloat) {
      if constexpr (kSplit) {
        const LocalTensor<float> odd = Split(x, tensor, rows);
        CopyRows(x, x_blocks, sin_product_, half / kBlock, half, rows);
        CopyRows(x[half], x_blocks, odd, half / kBlock, half, rows);
        AscendC::PipeBarrier<PIPE_V>();
      }
      Multiply(x, x_blocks, t.head_major, token, line, lines);
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
      const int32_t blocks = FloatBlocks();
      if constexpr (kSplit && kBFloat16) {
        WidenPairs(x, x_blocks, rows);
      } else if constexpr (kSplit) {
        const LocalTensor<T> even = sin_product_.template ReinterpretCast<T>();
        const LocalTensor<T> odd = Split(x, tensor, rows).template ReinterpretCast<T>();
        const int32_t width = kJoin ? half : Lanes();  // JoinPairs reads the padding too
        CastRows(work_, blocks, even, half / kBlock, width, rows, RoundMode::CAST_NONE);
        CastRows(work_[half], blocks, odd, half / kBlock, width, rows, RoundMode::CAST_NONE);
      } else {
        CastWholeRows(work_, blocks, as_rows, x_blocks, rows, RoundMode::CAST_NONE);
      }
      AscendC::PipeBarrier<PIPE_V>();
      Multiply(work_, blocks, t.head_major, token, line, lines);
      Combine(work_, work_[half], blocks, rows);
      if constexpr (kJoin && kBFloat16) {
        NarrowPairs(x, x_blocks, rows);
      } else if constexpr (kJoin) {
        const LocalTensor<T> even = cos_product_.template ReinterpretCast<T>();
        const LocalTensor<T> odd = even[rows * half];
        CastRows(even, half / kBlock, work_, blocks, half, rows, RoundMode::CAST_RINT);
        CastRows(odd, half / kBlock, work_[half], blocks, half, rows, RoundMode::CAST_RINT);
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
  __aicore__ inline void Multiply(const LocalTensor<float>& x, int32_t x_blocks, bool head_major,
                                  int32_t token, int32_t line, int32_t lines) {
    const int32_t blocks = FloatBlocks();  // of the products and the tables
    const bool across = lines > line && line * Max(x_blocks, blocks) <= kMaxRepeats;
    const int32_t repeats = across ? lines : line, stride = across ? line : 1;
    const int32_t loops = across ? line : lines, loop_stride = across ? 1 : line;
    const bool over_tokens = across != head_major;
    const BinaryRepeatParams params(1, 1, 1, static_cast<uint8_t>(stride * blocks),
                                    static_cast<uint8_t>(stride * x_blocks),
                                    static_cast<uint8_t>(over_tokens ? blocks : 0));
    const int32_t x_step = loop_stride * x_blocks * kFloatBlock;
    const int32_t product_step = loop_stride * p_.float_pitch;
    const int32_t table_step = over_tokens ? 0 : p_.float_pitch;
    const int32_t sin_table = p_.ub.table_bytes / static_cast<int32_t>(sizeof(float));
    const int32_t width = 2 * Lanes() / p_.row_parts;
    for (int32_t part = 0; part < p_.row_parts; ++part) {
      for (int32_t c = 0; c < width; c += kRepeatFloats) {
        const bool partial = width - c < kRepeatFloats;
        if (partial) AscendC::SetVectorMask<float>(width - c);
        const int32_t column = part * p_.half_pitch + c;
        int32_t row = column, product = column, table = token * p_.float_pitch + column;
        for (int32_t i = 0; i < loops; ++i) {
          AscendC::Mul<float, false>(cos_product_[product], x[row], tables_[table],
                                     MASK_PLACEHOLDER, static_cast<uint8_t>(repeats), params);
          AscendC::Mul<float, false>(sin_product_[product], x[row], tables_[table + sin_table],
                                     MASK_PLACEHOLDER, static_cast<uint8_t>(repeats), params);
          row += x_step;
          product += product_step;
          table += table_step;
        }
        if (partial) AscendC::ResetMask();
      }
    }
    AscendC::PipeBarrier<PIPE_V>();
  }

  /// y1 = P1 - Q2, y2 = P2 + Q1; transposed: y1 = P1 + Q2, y2 = P2 - Q1. Rows of y lie y_blocks
  /// apart.
  __aicore__ inline void Combine(const LocalTensor<float>& y1, const LocalTensor<float>& y2,
                                 int32_t y_blocks, int32_t rows) {
    const int32_t half = p_.half_pitch;
    const uint8_t blocks = static_cast<uint8_t>(FloatBlocks());
    const BinaryRepeatParams params(1, 1, 1, static_cast<uint8_t>(y_blocks), blocks, blocks);
    const uint8_t repeats = static_cast<uint8_t>(rows);
    const int32_t width = Lanes();
    for (int32_t c = 0; c < width; c += kRepeatFloats) {
      const bool partial = width - c < kRepeatFloats;
      if (partial) AscendC::SetVectorMask<float>(width - c);
      const int32_t d = half + c;
      if (p_.transpose) {
        AscendC::Add<float, false>(y1[c], cos_product_[c], sin_product_[d], MASK_PLACEHOLDER,
                                   repeats, params);
        AscendC::Sub<float, false>(y2[c], cos_product_[d], sin_product_[c], MASK_PLACEHOLDER,
                                   repeats, params);
      } else {
        AscendC::Sub<float, false>(y1[c], cos_product_[c], sin_product_[d], MASK_PLACEHOLDER,
                                   repeats, params);
        AscendC::Add<float, false>(y2[c], cos_product_[d], sin_product_[c], MASK_PLACEHOLDER,
                                   repeats, params);
      }
      if (partial) AscendC::ResetMask();
    }
    AscendC::PipeBarrier<PIPE_V>();
  }

  // ---- Rows ---------------------------------------------------------------------------------

  /// Blocks from row to row in the work buffers and the tables.
  __aicore__ inline int32_t FloatBlocks() const { return p_.float_pitch / kFloatBlock; }

  /// Lanes of a half row that are worked on: without the padding where the two halves of a row are
  /// worked on one by one, with it where the row is one run.
  __aicore__ inline int32_t Lanes() const {
    return p_.row_parts == 2 ? p_.rotary_dim / 2 : p_.half_pitch;
  }

  template <typename D, typename S>
  __aicore__ inline void CastWholeRows(const LocalTensor<D>& to, int32_t to_blocks,
                                       const LocalTensor<S>& from, int32_t from_blocks,
                                       int32_t rows, RoundMode mode) {
    const int32_t half = p_.half_pitch;
    const bool one_run = (kJoin && !kBFloat16) || p_.row_parts == 1;  // JoinPairs reads padding too
    CastRows(to, to_blocks, from, from_blocks, one_run ? 2 * half : Lanes(), rows, mode);
    if (!one_run) CastRows(to[half], to_blocks, from[half], from_blocks, Lanes(), rows, mode);
  }

  template <typename D, typename S>
  __aicore__ inline void CastRows(const LocalTensor<D>& to, int32_t to_blocks,
                                  const LocalTensor<S>& from, int32_t from_blocks, int32_t width,
                                  int32_t rows, RoundMode mode) {
    const UnaryRepeatParams params(1, 1, static_cast<uint8_t>(to_blocks),
                                   static_cast<uint8_t>(from_blocks));
    for (int32_t c = 0; c < width; c += kRepeatFloats) {
      const bool partial = width - c < kRepeatFloats;
      if (partial) AscendC::SetVectorMask<float>(width - c);
      AscendC::Cast<D, S, false>(to[c], from[c], mode, MASK_PLACEHOLDER, static_cast<uint8_t>(rows),
                                 params);
      if (partial) AscendC::ResetMask();
    }
  }

  __aicore__ inline void CopyRows(const LocalTensor<float>& to, int32_t to_blocks,
                                  const LocalTensor<float>& from, int32_t from_blocks,
                                  int32_t width, int32_t rows) {
    AscendC::CopyRepeatParams params;
    params.dstStride = 1;
    params.srcStride = 1;
    params.dstRepeatSize = static_cast<uint16_t>(to_blocks);
    params.srcRepeatSize = static_cast<uint16_t>(from_blocks);
    for (int32_t c = 0; c < width; c += kRepeatFloats) {
      const bool partial = width - c < kRepeatFloats;
      if (partial) AscendC::SetVectorMask<float>(width - c);
      AscendC::Copy<float, false>(to[c], from[c], MASK_PLACEHOLDER, static_cast<uint8_t>(rows),
                                  params);
      if (partial) AscendC::ResetMask();
    }
  }

  // ---- Pairs <-> halves ---------------------------------------------------------------------

  /// Rows of bf16 pairs -> first and second elements in fp32, in the work buffer. bf16 is the upper
  /// half of fp32, and of a pair read as 32 bits the first element is the lower half.
  __aicore__ inline void WidenPairs(const LocalTensor<uint16_t>& x, int32_t x_blocks,
                                    int32_t rows) {
    const LocalTensor<uint32_t> pairs = x.template ReinterpretCast<uint32_t>();
    const LocalTensor<uint32_t> first = work_.template ReinterpretCast<uint32_t>();
    const LocalTensor<uint16_t> second = work_[p_.half_pitch].template ReinterpretCast<uint16_t>();
    const LocalTensor<uint16_t> upper = upper_.template ReinterpretCast<uint16_t>();
    const uint8_t to = static_cast<uint8_t>(FloatBlocks());
    const uint8_t from = static_cast<uint8_t>(x_blocks);
    const uint8_t repeats = static_cast<uint8_t>(rows);
    const int32_t width = Lanes();
    for (int32_t c = 0; c < width; c += kRepeatFloats) {
      const bool partial = width - c < kRepeatFloats;
      if (partial) AscendC::SetVectorMask<uint32_t>(width - c);
      AscendC::ShiftLeft<uint32_t, false>(first[c], pairs[c], uint32_t{16}, MASK_PLACEHOLDER,
                                          repeats, UnaryRepeatParams(1, 1, to, from));
      if (partial) AscendC::SetVectorMask<uint16_t>(2 * (width - c));
      AscendC::And<uint16_t, false>(second[2 * c], x[2 * c], upper, MASK_PLACEHOLDER, repeats,
                                    BinaryRepeatParams(1, 1, 0, to, from, 0));
      if (partial) AscendC::ResetMask();
    }
  }

  /// The other way round: the work buffer's halves are rounded to bf16, as fp32 again, and the
  /// first elements' upper halves moved into the seconds' lower ones.
  __aicore__ inline void NarrowPairs(const LocalTensor<uint16_t>& x, int32_t x_blocks,
                                     int32_t rows) {
    const uint8_t blocks = static_cast<uint8_t>(FloatBlocks());
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
    const int32_t width = Lanes();
    for (int32_t c = 0; c < width; c += kRepeatFloats) {
      const bool partial = width - c < kRepeatFloats;
      if (partial) AscendC::SetVectorMask<uint32_t>(width - c);
      AscendC::ShiftRight<uint32_t, false>(moved[c], first[c], uint32_t{16}, MASK_PLACEHOLDER,
                                           repeats, UnaryRepeatParams(1, 1, blocks, blocks));
      AscendC::PipeBarrier<PIPE_V>();
      if (partial) AscendC::SetVectorMask<uint16_t>(2 * (width - c));
      AscendC::Or<uint16_t, false>(
          x[2 * c], lower[2 * c], second[2 * c], MASK_PLACEHOLDER, repeats,
          BinaryRepeatParams(1, 1, 1, static_cast<uint8_t>(x_blocks), blocks, blocks));
      if (partial) AscendC::ResetMask();
    }
  }

  /// Rows of pairs -> an even plane at the beginning of Q's buffer, and an odd one, which is given.
  __aicore__ inline LocalTensor<Bits> Split(const LocalTensor<Bits>& x, int32_t tensor,
                                            int32_t rows) {
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
  __aicore__ inline static uint64_t Address(const LocalTensor<B>& tensor) {
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
