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
// become pairs, by two 16-row transposes (SplitPairs, JoinPairs), which run at full rate; pairs of
// bf16 become halves in fp32 at once, by a shift and a mask (WidenPairs).
//
// Work per element, in passes of 64 lanes a cycle by the documented rates (a transpose of 16-bit
// elements runs at 128 a cycle, two of them are one pass):
//
//                          16-bit                                  fp32
//   half                   cast 1, mul 2, add 1, cast 1       = 5  mul 2, add 1                 = 3
//   interleaved            split 1, half 5, join 1            = 7  split 2, copy 1, 3, join 2   = 8
//   deinterleave           split 1, half 5                    = 6  split 2, copy 1, 3           = 6
//   deinterleave, transp.  half 5, join 1                     = 6  3, join 2                    = 5
//
// For bf16, split and the first cast are one pass together: 6 and 5.
//
// Memory: a ring of kRing buffers, each loaded, rotated in place and stored. MTE2 loads one box
// while V rotates the one before and MTE3 stores the one before that. Banks: rows in fp32 and the
// tables share the first 64 KB, at opposite 256-byte parity; the products and (for 16-bit types)
// the ring lie beyond, so that no instruction reads and writes one bank or reads one group twice.
#pragma once

#include "kernel_operator.h"
#include "rope_pairs.h"
#include "rope_params.h"

namespace npu_rope {

using AscendC::GlobalTensor;
using AscendC::HardEvent;
using AscendC::LocalTensor;
using AscendC::RoundMode;
using AscendC::TBuf;
using AscendC::TPosition;

/// What moves and transposes elements without looking at them.
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

/// Columns of rows: `blocks` blocks of `width` elements next to each other in global memory, each
/// at a multiple of `pitch` elements (whole 32-byte blocks) in the unified buffer.
struct Columns {
  int32_t width, blocks, pitch;
};

/// One axis of a box in global memory.
struct Axis {
  int64_t count, stride;
};

/// T: of q and k. kSplit: rows come as pairs. kJoin: rows leave as pairs.
template <typename T, bool kSplit, bool kJoin>
class RopeKernel {
  using Bits = typename BitsOf<T>::Type;
  static constexpr bool kFloat = Same<T, float>::value;
  static constexpr bool kBFloat16 = Same<T, bfloat16_t>::value;
  static constexpr int32_t kBlock = kBlockBytes / sizeof(T);  // elements
  static constexpr int32_t kFloatBlock = kBlockBytes / sizeof(float);

 public:
  __aicore__ inline RopeKernel(const RopeParams& params, AscendC::TPipe& pipe)
      : p_(params), pipe_(pipe) {}

  __aicore__ inline void Init(GM_ADDR q, GM_ADDR k, GM_ADDR cos, GM_ADDR sin, GM_ADDR q_out,
                              GM_ADDR k_out) {
    in_[0].SetGlobalBuffer(reinterpret_cast<__gm__ Bits*>(q));
    in_[1].SetGlobalBuffer(reinterpret_cast<__gm__ Bits*>(k));
    out_[0].SetGlobalBuffer(reinterpret_cast<__gm__ Bits*>(q_out));
    out_[1].SetGlobalBuffer(reinterpret_cast<__gm__ Bits*>(k_out));
    table_in_[0] = cos;
    table_in_[1] = sin;

    // Buffers come one after another from address 0: the order is the bank layout.
    if constexpr (kFloat) {
      InitRing();
    } else {
      pipe_.InitBuffer(work_buffer_, p_.work_bytes);
      work_ = work_buffer_.template Get<float>();
    }
    pipe_.InitBuffer(table_buffer_, 2 * p_.table_bytes + 512);
    upper_ = table_buffer_.template Get<uint32_t>();  // before the tables, which begin 256 bytes on
    tables_[0] = table_buffer_.template Get<float>()[kRepeatFloats];
    tables_[1] = tables_[0][p_.table_bytes / sizeof(float)];
    pipe_.InitBuffer(raw_buffer_, 2 * p_.raw_bytes);
    raw_[0] = raw_buffer_.template Get<uint8_t>();
    raw_[1] = raw_[0][p_.raw_bytes];
    if (p_.gap_bytes > 0) pipe_.InitBuffer(gap_buffer_, p_.gap_bytes);
    pipe_.InitBuffer(cos_product_buffer_, p_.product_bytes);
    pipe_.InitBuffer(sin_product_buffer_, p_.product_bytes + p_.sin_shift);
    cos_product_ = cos_product_buffer_.template Get<float>();
    sin_product_ = sin_product_buffer_.template Get<float>()[p_.sin_shift / sizeof(float)];
    if constexpr (!kFloat) InitRing();

    tables_loaded_ = pipe_.AllocEventID<HardEvent::MTE2_V>();
    tables_free_ = pipe_.AllocEventID<HardEvent::V_MTE2>();
    for (int32_t i = 0; i < kRing; ++i) {
      loaded_[i] = pipe_.AllocEventID<HardEvent::MTE2_V>();
      rotated_[i] = pipe_.AllocEventID<HardEvent::V_MTE3>();
      stored_[i] = pipe_.AllocEventID<HardEvent::MTE3_MTE2>();
    }
  }

  __aicore__ inline void Process() {
    if (2 * Lanes() > p_.rotary_dim) {  // padding lanes are multiplied too: make them 0
      AscendC::Duplicate(tables_[0], 0.0f,
                         static_cast<int32_t>(2 * p_.table_bytes / sizeof(float)));
      AscendC::PipeBarrier<PIPE_V>();
    }
    if constexpr (kBFloat16 && kSplit) {
      AscendC::Duplicate(upper_, 0xFFFF0000u, kFloatBlock);
      AscendC::PipeBarrier<PIPE_V>();
    }
    AscendC::SetFlag<HardEvent::V_MTE2>(tables_free_);
    for (int32_t i = 0; i < kRing; ++i) AscendC::SetFlag<HardEvent::MTE3_MTE2>(stored_[i]);

    RopeWalk walk(p_, AscendC::GetBlockIdx());
    RopeBox box, next;
    int32_t slot = 0;
    bool more = walk.Next(next);
    if (more) Load(next, slot);
    while (more) {
      box = next;
      const int32_t next_slot = slot + 1 == kRing ? 0 : slot + 1;
      if (box.starts_tile) {
        if (p_.table_dtype == kTableFloat16) PrepareTables<half>(box);
        if (p_.table_dtype == kTableBFloat16) PrepareTables<bfloat16_t>(box);
        if (p_.table_dtype == kTableFloat32) PrepareTables<float>(box);
      }
      more = walk.Next(next);
      if (more) Load(next, next_slot);
      AscendC::WaitFlag<HardEvent::MTE2_V>(loaded_[slot]);
      Rotate(box, slot);
      AscendC::SetFlag<HardEvent::V_MTE3>(rotated_[slot]);
      AscendC::WaitFlag<HardEvent::V_MTE3>(rotated_[slot]);
      MoveRows<false>(box, slot);
      AscendC::SetFlag<HardEvent::MTE3_MTE2>(stored_[slot]);
      slot = next_slot;
    }

    AscendC::WaitFlag<HardEvent::V_MTE2>(tables_free_);
    pipe_.ReleaseEventID<HardEvent::MTE2_V>(tables_loaded_);
    pipe_.ReleaseEventID<HardEvent::V_MTE2>(tables_free_);
    for (int32_t i = 0; i < kRing; ++i) {
      AscendC::WaitFlag<HardEvent::MTE3_MTE2>(stored_[i]);
      pipe_.ReleaseEventID<HardEvent::MTE2_V>(loaded_[i]);
      pipe_.ReleaseEventID<HardEvent::V_MTE3>(rotated_[i]);
      pipe_.ReleaseEventID<HardEvent::MTE3_MTE2>(stored_[i]);
    }
  }

 private:
  __aicore__ inline void InitRing() {
    pipe_.InitBuffer(ring_buffer_, kRing * p_.slot_bytes);
    for (int32_t i = 0; i < kRing; ++i) {
      slots_[i] = ring_buffer_.template Get<Bits>()[i * p_.slot_bytes / sizeof(T)];
    }
  }

  // ---- Global memory <-> unified buffer -----------------------------------------------------

  __aicore__ inline void Load(const RopeBox& box, int32_t slot) {
    if (box.starts_tile) {
      if (p_.table_dtype == kTableFloat16) LoadTables<half>(box);
      if (p_.table_dtype == kTableBFloat16) LoadTables<bfloat16_t>(box);
      if (p_.table_dtype == kTableFloat32) LoadTables<float>(box);
    }
    AscendC::WaitFlag<HardEvent::MTE3_MTE2>(stored_[slot]);
    MoveRows<true>(box, slot);
    AscendC::SetFlag<HardEvent::MTE2_V>(loaded_[slot]);
  }

  template <typename Table>
  __aicore__ inline void LoadTables(const RopeBox& box) {
    using TableBits = typename BitsOf<Table>::Type;
    AscendC::WaitFlag<HardEvent::V_MTE2>(tables_free_);
    const int32_t half = p_.rotary_dim / 2;
    Columns columns = {half, p_.half_tables ? 1 : 2, p_.table_half_pitch};
    if (p_.split_tables) columns = {p_.rotary_dim, 1, 2 * p_.table_half_pitch};
    for (int32_t i = 0; i < 2; ++i) {
      const RopeTable& table = p_.tables[i];
      const int64_t rows = table.token == 0 ? 1 : box.tile_tokens;  // one row serves all
      GlobalTensor<TableBits> gm;
      gm.SetGlobalBuffer(reinterpret_cast<__gm__ TableBits*>(table_in_[i]));
      Move<true, TableBits>(raw_[i].template ReinterpretCast<TableBits>(), gm,
                            box.batch * table.batch + box.tile_token * table.token, columns,
                            {rows, table.token}, {1, 0});
    }
    AscendC::SetFlag<HardEvent::MTE2_V>(tables_loaded_);
  }

  /// Loads a box from q or k, or stores it to the output: whole rows, or the rotated columns and,
  /// out of place, those before and after them, each group of columns in its own place of the slot.
  template <bool kLoad>
  __aicore__ inline void MoveRows(const RopeBox& box, int32_t slot) {
    const RopeTensor& t = p_.tensors[box.tensor];
    const GlobalTensor<Bits>& gm = kLoad ? in_[box.tensor] : out_[box.tensor];
    const int64_t token_stride = kLoad ? t.in_token : t.out_token;
    const int64_t head_stride = kLoad ? t.in_head : t.out_head;
    const int64_t first = box.batch * (kLoad ? t.in_batch : t.out_batch) +
                          box.token * token_stride + box.head * head_stride;
    const Axis tokens = {box.tokens, token_stride};
    const Axis heads = {box.heads, head_stride};
    const Axis inner = t.head_major ? tokens : heads;
    const Axis outer = t.head_major ? heads : tokens;

    LocalTensor<Bits> place = slots_[slot];
    if (t.whole) {
      Move<kLoad, Bits>(place, gm, first, {p_.head_dim, 1, t.row_pitch}, inner, outer);
      return;
    }
    const bool pairs = kLoad ? kSplit : kJoin;
    Columns columns = {p_.rotary_dim / 2, 2, p_.half_pitch};
    if (pairs) columns = {p_.rotary_dim, 1, 2 * p_.half_pitch};
    Move<kLoad, Bits>(place, gm, first + p_.rotary_offset, columns, inner, outer);
    if (t.in_place) return;

    place = place[p_.box_rows * 2 * p_.half_pitch];
    const int32_t before = p_.rotary_offset;
    if (before > 0) {
      columns = {before, 1, static_cast<int32_t>(AlignUp(before, kBlock))};
      Move<kLoad, Bits>(place, gm, first, columns, inner, outer);
      place = place[p_.box_rows * columns.pitch];
    }
    const int32_t after = p_.head_dim - p_.rotary_dim - before;
    if (after > 0) {
      columns = {after, 1, static_cast<int32_t>(AlignUp(after, kBlock))};
      Move<kLoad, Bits>(place, gm, first + before + p_.rotary_dim, columns, inner, outer);
    }
  }

  /// Moves columns of inner × outer rows. Neighbouring axes that follow on without a seam become
  /// one, so that a dense box is one long transfer and a box with one kind of gap is one transfer
  /// of many blocks. What a transfer cannot express becomes more transfers.
  template <bool kLoad, typename B>
  __aicore__ inline void Move(const LocalTensor<B>& ub, const GlobalTensor<B>& gm, int64_t first,
                              Columns columns, Axis inner, Axis outer) {
    int64_t width = columns.width, pitch = columns.pitch;
    const Axis axes[3] = {{columns.blocks, columns.width}, inner, outer};
    Axis merged[3] = {{1, 0}, {1, 0}, {1, 0}};
    int32_t n = 0;
    for (int32_t i = 0; i < 3; ++i) {
      if (axes[i].count == 1) continue;
      if (n == 0 && pitch == width && axes[i].stride == width) {  // longer blocks
        width *= axes[i].count;
        pitch = width;
      } else if (n > 0 && axes[i].stride == merged[n - 1].count * merged[n - 1].stride) {
        merged[n - 1].count *= axes[i].count;  // more blocks
      } else {
        merged[n++] = axes[i];
      }
    }

    const int64_t gap = (merged[0].stride - width) * static_cast<int64_t>(sizeof(B));
    const bool regular = gap >= 0 && gap <= UINT32_MAX;
    const int64_t most = regular ? kMaxTransferBlocks : 1;
    const uint32_t gm_gap = regular ? static_cast<uint32_t>(gap) : 0;
    for (int64_t k = 0; k < merged[2].count; ++k) {
      for (int64_t j = 0; j < merged[1].count; ++j) {
        for (int64_t i = 0; i < merged[0].count; i += most) {
          const int64_t row = (k * merged[1].count + j) * merged[0].count + i;
          const int64_t at =
              first + k * merged[2].stride + j * merged[1].stride + i * merged[0].stride;
          Transfer<kLoad, B>(ub[static_cast<uint32_t>(row * pitch)], gm[at],
                             static_cast<uint16_t>(Min(most, merged[0].count - i)),
                             static_cast<uint32_t>(width), static_cast<uint32_t>(pitch), gm_gap);
        }
      }
    }
  }

  /// One DataCopyPad of `blocks` blocks of `width` elements, `pitch` apart in the unified buffer.
  /// Padding is loaded as 0.
  template <bool kLoad, typename B>
  __aicore__ inline void Transfer(const LocalTensor<B>& ub, const GlobalTensor<B>& gm,
                                  uint16_t blocks, uint32_t width, uint32_t pitch,
                                  uint32_t gm_gap) {
    constexpr uint32_t kBlockElements = kBlockBytes / sizeof(B);
    const uint32_t bytes = width * sizeof(B);
    const uint32_t padding = pitch - width;
    if constexpr (kLoad) {  // a block is filled up to its pitch: at most one 32-byte block more
      const uint8_t fill = static_cast<uint8_t>(Min(padding, kBlockElements));
      AscendC::DataCopyPad(ub, gm, AscendC::DataCopyExtParams{blocks, bytes, gm_gap, 0, 0},
                           AscendC::DataCopyPadExtParams<B>{fill > 0, 0, fill, static_cast<B>(0)});
    } else {
      const uint32_t ub_gap = padding / kBlockElements;
      AscendC::DataCopyPad(gm, ub, AscendC::DataCopyExtParams{blocks, bytes, ub_gap, gm_gap, 0});
    }
  }

  // ---- Tables -------------------------------------------------------------------------------

  /// Tables as loaded -> C and S of the tile, in fp32.
  template <typename Table>
  __aicore__ inline void PrepareTables(const RopeBox& box) {
    using TableBits = typename BitsOf<Table>::Type;
    constexpr int32_t kTableBlock = kBlockBytes / sizeof(Table);
    AscendC::WaitFlag<HardEvent::MTE2_V>(tables_loaded_);
    for (int32_t i = 0; i < 2; ++i) {
      const bool one_row = p_.tables[i].token == 0;
      const LocalTensor<TableBits> raw = raw_[i].template ReinterpretCast<TableBits>();
      LocalTensor<TableBits> halves[2] = {raw, raw};
      int32_t pitch = p_.table_half_pitch;
      if (p_.split_tables) {
        const int32_t blocks = (one_row ? 1 : box.tile_tokens) * pitch / kTableBlock;
        halves[0] = sin_product_.template ReinterpretCast<TableBits>();
        halves[1] = halves[0][SplitBlocks(blocks) * kTableBlock];
        SplitPairs<TableBits>(halves[0], halves[1], raw,
                              cos_product_.template ReinterpretCast<TableBits>(), blocks);
      } else if (!p_.half_tables) {
        halves[1] = raw[pitch];
        pitch *= 2;
      }
      const int32_t first = i == 1 && !p_.transpose ? 1 : 0;  // S = [sin2 | sin1]
      const LocalTensor<Table> from[2] = {halves[first].template ReinterpretCast<Table>(),
                                          halves[1 - first].template ReinterpretCast<Table>()};
      PrepareHalves<Table>(tables_[i], from, one_row ? 0 : pitch, box.tile_tokens);
    }
    AscendC::SetFlag<HardEvent::V_MTE2>(tables_free_);
  }

  /// Both halves of a table's rows: Table -> (rounded to T ->) fp32.
  template <typename Table>
  __aicore__ inline void PrepareHalves(const LocalTensor<float>& table,
                                       const LocalTensor<Table> (&from)[2], int32_t pitch,
                                       int32_t rows) {
    const LocalTensor<float> to[2] = {table, table[p_.half_pitch]};
    const int32_t to_pitch = p_.float_pitch;
    const int32_t half = p_.rotary_dim / 2;
    if constexpr (!kFloat && !Same<T, Table>::value) {
      if (p_.round_tables) {
        const int32_t dense = static_cast<int32_t>(AlignUp(half, kBlock));
        const LocalTensor<T> scratch = cos_product_.template ReinterpretCast<T>();
        const LocalTensor<T> rounded[2] = {scratch, scratch[rows * dense]};
        for (int32_t h = 0; h < 2; ++h) {
          if constexpr (Same<Table, float>::value) {
            CastRows(rounded[h], dense, from[h], pitch, half, rows, RoundMode::CAST_RINT);
          } else {
            CastRows(to[h], to_pitch, from[h], pitch, half, rows, RoundMode::CAST_NONE);
            AscendC::PipeBarrier<PIPE_V>();
            CastRows(rounded[h], dense, to[h], to_pitch, half, rows, RoundMode::CAST_RINT);
          }
        }
        AscendC::PipeBarrier<PIPE_V>();
        for (int32_t h = 0; h < 2; ++h) {
          CastRows(to[h], to_pitch, rounded[h], dense, half, rows, RoundMode::CAST_NONE);
        }
        AscendC::PipeBarrier<PIPE_V>();
        return;
      }
    }
    for (int32_t h = 0; h < 2; ++h) {
      if constexpr (Same<Table, float>::value) {
        CopyRows(to[h], to_pitch, from[h], pitch, half, rows);
      } else {
        CastRows(to[h], to_pitch, from[h], pitch, half, rows, RoundMode::CAST_NONE);
      }
    }
    AscendC::PipeBarrier<PIPE_V>();
  }

  // ---- Rotation -----------------------------------------------------------------------------

  /// A round of vector instructions: rows that lie one after another, tokens × heads.
  struct Step {
    int32_t row, rows;                  // in the box
    int32_t token, tokens, heads;       // the first token counted from the tile's first
    int32_t token_stride, head_stride;  // in rows
  };

  __aicore__ inline void Rotate(const RopeBox& box, int32_t slot) {
    const RopeTensor& t = p_.tensors[box.tensor];
    const bool head_major = t.head_major;
    const int32_t inner = head_major ? box.tokens : box.heads;
    const int32_t outer = head_major ? box.heads : box.tokens;
    const int32_t token = static_cast<int32_t>(box.token - box.tile_token);
    // Whole lines of `inner` rows while they fit, else parts of one line.
    const int32_t part = static_cast<int32_t>(EvenPiece(inner, p_.step_rows));
    const int32_t lines =
        part < inner ? 1 : static_cast<int32_t>(EvenPiece(outer, p_.step_rows / inner));
    for (int32_t o = 0; o < outer; o += lines) {
      const int32_t os = static_cast<int32_t>(Min(lines, outer - o));
      for (int32_t i = 0; i < inner; i += part) {
        const int32_t is = static_cast<int32_t>(Min(part, inner - i));
        Step step;
        step.row = o * inner + i;
        step.rows = os * is;
        step.token = token + (head_major ? i : o);
        step.tokens = head_major ? is : os;
        step.heads = head_major ? os : is;
        step.token_stride = head_major ? 1 : is;
        step.head_stride = head_major ? is : 1;
        RotateStep(step, slots_[slot][step.row * t.row_pitch + t.row_offset], t.row_pitch);
      }
    }
  }

  /// x: the step's rows, `pitch` elements apart; they are rotated in place.
  __aicore__ inline void RotateStep(const Step& step, const LocalTensor<Bits>& x, int32_t pitch) {
    const int32_t half = p_.half_pitch;
    if constexpr (kFloat) {
      if constexpr (kSplit) {
        Split(x, pitch, step.rows);
        CopyRows(x, pitch, sin_product_, half, half, step.rows);
        CopyRows(x[half], pitch, SplitOdd(sin_product_, step.rows), half, half, step.rows);
        AscendC::PipeBarrier<PIPE_V>();
      }
      Multiply(step, x, pitch);
      if constexpr (kJoin) {  // as two planes, which is what Join reads
        Combine(x, x[step.rows * half], half, step.rows);
        JoinPairs<float>(x, x, x[step.rows * half], LineScratch(), sin_product_, Blocks(step.rows));
      } else {
        Combine(x, x[half], pitch, step.rows);
      }
    } else {
      const LocalTensor<T> rows = x.template ReinterpretCast<T>();
      const int32_t width = kJoin ? half : Lanes();  // Join reads the padding too
      if constexpr (kSplit && kBFloat16) {
        WidenPairs(x, pitch, width, step.rows);
      } else if constexpr (kSplit) {
        Split(x, pitch, step.rows);
        const LocalTensor<T> even = sin_product_.template ReinterpretCast<T>();
        const LocalTensor<T> odd = SplitOdd(even, step.rows);
        CastRows(work_, p_.float_pitch, even, half, width, step.rows, RoundMode::CAST_NONE);
        CastRows(work_[half], p_.float_pitch, odd, half, width, step.rows, RoundMode::CAST_NONE);
      } else {
        CastWholeRows(work_, p_.float_pitch, rows, pitch, step.rows, RoundMode::CAST_NONE);
      }
      AscendC::PipeBarrier<PIPE_V>();
      Multiply(step, work_, p_.float_pitch);
      Combine(work_, work_[half], p_.float_pitch, step.rows);
      if constexpr (kJoin) {
        const LocalTensor<T> even = cos_product_.template ReinterpretCast<T>();
        const LocalTensor<T> odd = even[step.rows * half];
        CastRows(even, half, work_, p_.float_pitch, half, step.rows, RoundMode::CAST_RINT);
        CastRows(odd, half, work_[half], p_.float_pitch, half, step.rows, RoundMode::CAST_RINT);
        AscendC::PipeBarrier<PIPE_V>();
        // Once the planes are in lines, their buffer is spare.
        const LocalTensor<Bits> spare = cos_product_.template ReinterpretCast<Bits>();
        JoinPairs<Bits>(x, even.template ReinterpretCast<Bits>(),
                        odd.template ReinterpretCast<Bits>(), LineScratch(), spare,
                        Blocks(step.rows), PairsOf(pitch));
      } else {
        CastWholeRows(rows, pitch, work_, p_.float_pitch, step.rows, RoundMode::CAST_RINT);
      }
      AscendC::PipeBarrier<PIPE_V>();  // the next step writes what this one still reads
    }
  }

  /// P = x*C, Q = x*S. One instruction serves 64 columns of all heads of a token (which read the
  /// token's table again and again) or of all tokens of a head, whichever are more.
  __aicore__ inline void Multiply(const Step& step, const LocalTensor<float>& x, int32_t pitch) {
    const int32_t x_blocks = pitch / kFloatBlock;
    const int32_t blocks = p_.float_pitch / kFloatBlock;  // of the products and the tables
    const int32_t most_blocks = static_cast<int32_t>(Max(x_blocks, blocks));
    const bool heads_fit = step.head_stride * most_blocks <= kMaxRepeats;
    const bool tokens_fit = step.token_stride * most_blocks <= kMaxRepeats;
    const bool over_heads = heads_fit && (step.heads >= step.tokens || !tokens_fit);
    const int32_t repeats = over_heads ? step.heads : step.tokens;
    const int32_t repeat_stride = over_heads ? step.head_stride : step.token_stride;
    const int32_t loops = over_heads ? step.tokens : step.heads;
    const int32_t loop_stride = over_heads ? step.token_stride : step.head_stride;
    AscendC::BinaryRepeatParams params;
    params.dstRepStride = static_cast<uint8_t>(repeat_stride * blocks);
    params.src0RepStride = static_cast<uint8_t>(repeat_stride * x_blocks);
    params.src1RepStride = static_cast<uint8_t>(over_heads ? 0 : blocks);
    const int32_t width = 2 * Lanes() / p_.row_parts;
    for (int32_t i = 0; i < loops; ++i) {
      const int32_t table = (step.token + (over_heads ? i : 0)) * p_.float_pitch;
      for (int32_t part = 0; part < p_.row_parts; ++part) {
        for (int32_t c = 0; c < width; c += kRepeatFloats) {
          const uint64_t lanes = static_cast<uint64_t>(Min(kRepeatFloats, width - c));
          const int32_t column = part * p_.half_pitch + c;
          const int32_t product = i * loop_stride * p_.float_pitch + column;
          const LocalTensor<float> rows = x[i * loop_stride * pitch + column];
          AscendC::Mul(cos_product_[product], rows, tables_[0][table + column], lanes,
                       static_cast<uint8_t>(repeats), params);
          AscendC::Mul(sin_product_[product], rows, tables_[1][table + column], lanes,
                       static_cast<uint8_t>(repeats), params);
        }
      }
    }
    AscendC::PipeBarrier<PIPE_V>();
  }

  /// y1 = P1 - Q2, y2 = P2 + Q1; transposed: y1 = P1 + Q2, y2 = P2 - Q1.
  __aicore__ inline void Combine(const LocalTensor<float>& y1, const LocalTensor<float>& y2,
                                 int32_t pitch, int32_t rows) {
    const int32_t half = p_.half_pitch;
    AscendC::BinaryRepeatParams params;
    params.dstRepStride = static_cast<uint8_t>(pitch / kFloatBlock);
    params.src0RepStride = static_cast<uint8_t>(p_.float_pitch / kFloatBlock);
    params.src1RepStride = params.src0RepStride;
    const uint8_t repeats = static_cast<uint8_t>(rows);
    for (int32_t c = 0; c < Lanes(); c += kRepeatFloats) {
      const uint64_t lanes = static_cast<uint64_t>(Min(kRepeatFloats, Lanes() - c));
      const int32_t d = half + c;
      if (p_.transpose) {
        AscendC::Add(y1[c], cos_product_[c], sin_product_[d], lanes, repeats, params);
        AscendC::Sub(y2[c], cos_product_[d], sin_product_[c], lanes, repeats, params);
      } else {
        AscendC::Sub(y1[c], cos_product_[c], sin_product_[d], lanes, repeats, params);
        AscendC::Add(y2[c], cos_product_[d], sin_product_[c], lanes, repeats, params);
      }
    }
    AscendC::PipeBarrier<PIPE_V>();
  }

  // ---- Rows ---------------------------------------------------------------------------------

  /// Lanes of a half row that are worked on: without the padding where the two halves of a row are
  /// worked on one by one, with it where the row is one run.
  __aicore__ inline int32_t Lanes() const {
    return p_.row_parts == 2 ? p_.rotary_dim / 2 : p_.half_pitch;
  }

  template <typename D, typename S>
  __aicore__ inline void CastWholeRows(const LocalTensor<D>& to, int32_t to_pitch,
                                       const LocalTensor<S>& from, int32_t from_pitch, int32_t rows,
                                       RoundMode mode) {
    const bool one_run = kJoin || p_.row_parts == 1;  // Join reads the padding too
    CastRows(to, to_pitch, from, from_pitch, one_run ? 2 * p_.half_pitch : Lanes(), rows, mode);
    if (!one_run) {
      const int32_t half = p_.half_pitch;
      CastRows(to[half], to_pitch, from[half], from_pitch, Lanes(), rows, mode);
    }
  }

  template <typename D, typename S>
  __aicore__ inline void CastRows(const LocalTensor<D>& to, int32_t to_pitch,
                                  const LocalTensor<S>& from, int32_t from_pitch, int32_t width,
                                  int32_t rows, RoundMode mode) {
    AscendC::UnaryRepeatParams params;
    params.dstRepStride = static_cast<uint8_t>(to_pitch * sizeof(D) / kBlockBytes);
    params.srcRepStride = static_cast<uint8_t>(from_pitch * sizeof(S) / kBlockBytes);
    for (int32_t c = 0; c < width; c += kRepeatFloats) {
      AscendC::Cast(to[c], from[c], mode, static_cast<uint64_t>(Min(kRepeatFloats, width - c)),
                    static_cast<uint8_t>(rows), params);
    }
  }

  __aicore__ inline void CopyRows(const LocalTensor<float>& to, int32_t to_pitch,
                                  const LocalTensor<float>& from, int32_t from_pitch, int32_t width,
                                  int32_t rows) {
    AscendC::CopyRepeatParams params;
    params.dstStride = 1;
    params.srcStride = 1;
    params.dstRepeatSize = static_cast<uint16_t>(to_pitch / kFloatBlock);
    params.srcRepeatSize = static_cast<uint16_t>(from_pitch / kFloatBlock);
    for (int32_t c = 0; c < width; c += kRepeatFloats) {
      AscendC::Copy(to[c], from[c], static_cast<uint64_t>(Min(kRepeatFloats, width - c)),
                    static_cast<uint8_t>(rows), params);
    }
  }

  // ---- Pairs <-> halves ---------------------------------------------------------------------

  /// Rows of pairs -> an even and an odd plane, in Q's buffer.
  __aicore__ inline void Split(const LocalTensor<Bits>& x, int32_t pitch, int32_t rows) {
    const LocalTensor<Bits> even = sin_product_.template ReinterpretCast<Bits>();
    SplitPairs<Bits>(even, SplitOdd(even, rows), x, LineScratch(), Blocks(rows), PairsOf(pitch));
  }

  /// How pairs lie in rows `pitch` elements apart: without a seam, or between other columns.
  __aicore__ inline PairRows PairsOf(int32_t pitch) const {
    if (pitch == 2 * p_.half_pitch) return PairRows();
    return {p_.half_pitch / kBlock, pitch / kBlock};
  }

  /// Rows of bf16 pairs -> first and second elements in fp32, in the work buffer. bf16 is the upper
  /// half of fp32, and of a pair read as 32 bits the first element is the lower half.
  __aicore__ inline void WidenPairs(const LocalTensor<Bits>& x, int32_t pitch, int32_t width,
                                    int32_t rows) {
    const LocalTensor<uint32_t> pairs = x.template ReinterpretCast<uint32_t>();
    const LocalTensor<uint32_t> first = work_.template ReinterpretCast<uint32_t>();
    const LocalTensor<Bits> second = work_[p_.half_pitch].template ReinterpretCast<Bits>();
    const LocalTensor<Bits> upper = upper_.template ReinterpretCast<Bits>();
    const uint8_t to = static_cast<uint8_t>(p_.float_pitch / kFloatBlock);
    const uint8_t from = static_cast<uint8_t>(pitch / kBlock);
    const uint8_t repeats = static_cast<uint8_t>(rows);
    for (int32_t c = 0; c < width; c += kRepeatFloats) {
      const uint64_t lanes = static_cast<uint64_t>(Min(kRepeatFloats, width - c));
      AscendC::ShiftLeft(first[c], pairs[c], uint32_t{16}, lanes, repeats, {1, 1, to, from});
      AscendC::And(second[2 * c], x[2 * c], upper, 2 * lanes, repeats, {1, 1, 0, to, from, 0});
    }
  }

  /// Between two transposes: in another third of the unified buffer than rows and planes, where no
  /// bank is both read and written. fp32 has nothing there, its rows are rotated in the ring.
  __aicore__ inline LocalTensor<Bits> LineScratch() const {
    if constexpr (kFloat) return cos_product_.template ReinterpretCast<Bits>();
    return work_.template ReinterpretCast<Bits>();
  }

  template <typename B>
  __aicore__ inline LocalTensor<B> SplitOdd(const LocalTensor<B>& even, int32_t rows) {
    return even[SplitBlocks(Blocks(rows)) * kBlock];
  }

  /// 32-byte blocks of a plane.
  __aicore__ inline int32_t Blocks(int32_t rows) const { return rows * p_.half_pitch / kBlock; }

  const RopeParams& p_;
  AscendC::TPipe& pipe_;
  GlobalTensor<Bits> in_[2], out_[2];
  GM_ADDR table_in_[2];

  TBuf<TPosition::VECIN> ring_buffer_, raw_buffer_;
  TBuf<TPosition::VECCALC> work_buffer_, table_buffer_, gap_buffer_;
  TBuf<TPosition::VECCALC> cos_product_buffer_, sin_product_buffer_;
  LocalTensor<Bits> slots_[kRing];
  LocalTensor<uint8_t> raw_[2];
  LocalTensor<uint32_t> upper_;     // a block of ones in the upper halves
  LocalTensor<float> work_;         // rows in fp32: x, then y; also the scratch of transposes
  LocalTensor<float> tables_[2];    // C and S of the tile
  LocalTensor<float> cos_product_;  // P; also planes, and the scratch of table work
  LocalTensor<float> sin_product_;  // Q; the same

  AscendC::TEventID tables_loaded_, tables_free_;
  AscendC::TEventID loaded_[kRing], rotated_[kRing], stored_[kRing];
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
