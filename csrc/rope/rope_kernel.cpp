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
// become pairs, by two 16-row transposes (SplitPairs, JoinPairs), which run at full rate.
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
// Memory: a ring of kRing buffers, each loaded, rotated in place and stored. MTE2 loads one box
// while V rotates the one before and MTE3 stores the one before that. Banks: rows in fp32 and the
// tables share the first 64 KB, at opposite 256-byte parity; the products and (for 16-bit types)
// the ring lie beyond, so that no instruction reads and writes one bank or reads one group twice.
#include "kernel_operator.h"
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

template <typename T, typename Table, bool kSplit, bool kJoin>
class RopeKernel {
  using Bits = typename BitsOf<T>::Type;
  using TableBits = typename BitsOf<Table>::Type;
  static constexpr bool kFloat = Same<T, float>::value;
  static constexpr int32_t kBlock = kBlockBytes / sizeof(T);  // elements
  static constexpr int32_t kTableBlock = kBlockBytes / sizeof(Table);
  static constexpr int32_t kFloatBlock = kBlockBytes / sizeof(float);

 public:
  __aicore__ inline explicit RopeKernel(const RopeParams& params) : p_(params) {}

  __aicore__ inline void Init(GM_ADDR q, GM_ADDR k, GM_ADDR cos, GM_ADDR sin, GM_ADDR q_out,
                              GM_ADDR k_out) {
    in_[0].SetGlobalBuffer(reinterpret_cast<__gm__ Bits*>(q));
    in_[1].SetGlobalBuffer(reinterpret_cast<__gm__ Bits*>(k));
    out_[0].SetGlobalBuffer(reinterpret_cast<__gm__ Bits*>(q_out));
    out_[1].SetGlobalBuffer(reinterpret_cast<__gm__ Bits*>(k_out));
    table_in_[0].SetGlobalBuffer(reinterpret_cast<__gm__ TableBits*>(cos));
    table_in_[1].SetGlobalBuffer(reinterpret_cast<__gm__ TableBits*>(sin));

    // Buffers come one after another from address 0: the order is the bank layout.
    if constexpr (kFloat) {
      InitRing();
    } else {
      pipe_.InitBuffer(work_buffer_, p_.work_bytes);
      work_ = work_buffer_.template Get<float>();
    }
    pipe_.InitBuffer(table_buffer_, 2 * p_.table_bytes + 512);
    tables_[0] = table_buffer_.template Get<float>()[kRepeatFloats];
    tables_[1] = tables_[0][p_.table_bytes / sizeof(float)];
    pipe_.InitBuffer(raw_buffer_, 2 * p_.raw_bytes);
    raw_[0] = raw_buffer_.template Get<TableBits>();
    raw_[1] = raw_[0][p_.raw_bytes / sizeof(Table)];
    if (p_.gap_bytes > 0) pipe_.InitBuffer(gap_buffer_, p_.gap_bytes);
    pipe_.InitBuffer(cos_product_buffer_, p_.product_bytes);
    pipe_.InitBuffer(sin_product_buffer_, p_.product_bytes + p_.sin_shift);
    cos_product_ = cos_product_buffer_.template Get<float>();
    sin_product_ = sin_product_buffer_.template Get<float>()[p_.sin_shift / sizeof(float)];
    if constexpr (!kFloat) InitRing();

    tables_loaded_ = pipe_.template AllocEventID<HardEvent::MTE2_V>();
    tables_free_ = pipe_.template AllocEventID<HardEvent::V_MTE2>();
    for (int32_t i = 0; i < kRing; ++i) {
      loaded_[i] = pipe_.template AllocEventID<HardEvent::MTE2_V>();
      rotated_[i] = pipe_.template AllocEventID<HardEvent::V_MTE3>();
      stored_[i] = pipe_.template AllocEventID<HardEvent::MTE3_MTE2>();
    }
  }

  __aicore__ inline void Process() {
    if (2 * Lanes() > p_.rotary_dim) {  // padding lanes are multiplied too: make them 0
      AscendC::Duplicate(tables_[0], 0.0f, static_cast<int32_t>(2 * p_.table_bytes / sizeof(float)));
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
      if (box.starts_tile) PrepareTables(box);
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
    pipe_.template ReleaseEventID<HardEvent::MTE2_V>(tables_loaded_);
    pipe_.template ReleaseEventID<HardEvent::V_MTE2>(tables_free_);
    for (int32_t i = 0; i < kRing; ++i) {
      AscendC::WaitFlag<HardEvent::MTE3_MTE2>(stored_[i]);
      pipe_.template ReleaseEventID<HardEvent::MTE2_V>(loaded_[i]);
      pipe_.template ReleaseEventID<HardEvent::V_MTE3>(rotated_[i]);
      pipe_.template ReleaseEventID<HardEvent::MTE3_MTE2>(stored_[i]);
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
    if (box.starts_tile) LoadTables(box);
    AscendC::WaitFlag<HardEvent::MTE3_MTE2>(stored_[slot]);
    MoveRows<true>(box, slot);
    AscendC::SetFlag<HardEvent::MTE2_V>(loaded_[slot]);
  }

  __aicore__ inline void LoadTables(const RopeBox& box) {
    AscendC::WaitFlag<HardEvent::V_MTE2>(tables_free_);
    const int32_t half = p_.rotary_dim / 2;
    Columns columns = {half, p_.half_tables ? 1 : 2, p_.table_half_pitch};
    if (p_.split_tables) columns = {p_.rotary_dim, 1, 2 * p_.table_half_pitch};
    for (int32_t i = 0; i < 2; ++i) {
      const RopeTable& table = p_.tables[i];
      const int64_t rows = table.token == 0 ? 1 : box.tile_tokens;  // one row serves all
      Move<true, TableBits>(raw_[i], table_in_[i],
                            box.batch * table.batch + box.tile_token * table.token, columns,
                            {rows, table.token}, {1, 0});
    }
    AscendC::SetFlag<HardEvent::MTE2_V>(tables_loaded_);
  }

  /// Loads a box from q or k, or stores it to the output: the rotated columns and, out of place,
  /// those before and after them. Each group of columns has its own place in the slot.
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

    const bool pairs = kLoad ? kSplit : kJoin;
    Columns columns = {p_.rotary_dim / 2, 2, p_.half_pitch};
    if (pairs) columns = {p_.rotary_dim, 1, 2 * p_.half_pitch};
    LocalTensor<Bits> place = slots_[slot];
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
          const int64_t at = first + k * merged[2].stride + j * merged[1].stride + i * merged[0].stride;
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
  __aicore__ inline void PrepareTables(const RopeBox& box) {
    AscendC::WaitFlag<HardEvent::MTE2_V>(tables_loaded_);
    for (int32_t i = 0; i < 2; ++i) {
      const bool one_row = p_.tables[i].token == 0;
      int32_t pitch = p_.half_tables ? p_.table_half_pitch : 2 * p_.table_half_pitch;
      LocalTensor<TableBits> halves[2] = {raw_[i], raw_[i]};
      if (p_.split_tables) {
        pitch = p_.table_half_pitch;
        const int32_t blocks = (one_row ? 1 : box.tile_tokens) * pitch / kTableBlock;
        halves[0] = sin_product_.template ReinterpretCast<TableBits>();
        halves[1] = halves[0][PlaneBlocks(blocks) * kTableBlock];
        SplitPairs<TableBits>(halves[0], halves[1], raw_[i],
                              cos_product_.template ReinterpretCast<TableBits>(), blocks);
      } else if (!p_.half_tables) {
        halves[1] = raw_[i][p_.table_half_pitch];
      }
      const bool swap = i == 1 && !p_.transpose;  // S = [sin2 | sin1]
      for (int32_t h = 0; h < 2; ++h) {
        PrepareHalf(tables_[i][h * p_.half_pitch], halves[swap ? 1 - h : h], one_row ? 0 : pitch,
                    box.tile_tokens);
      }
      AscendC::PipeBarrier<PIPE_V>();
    }
    AscendC::SetFlag<HardEvent::V_MTE2>(tables_free_);
  }

  /// Half of each row: Table -> (rounded to T ->) fp32.
  __aicore__ inline void PrepareHalf(const LocalTensor<float>& to,
                                     const LocalTensor<TableBits>& from, int32_t pitch,
                                     int32_t rows) {
    const LocalTensor<Table> table = from.template ReinterpretCast<Table>();
    const int32_t half = p_.rotary_dim / 2;
    if constexpr (!kFloat && !Same<T, Table>::value) {
      if (p_.round_tables) {
        const int32_t dense = static_cast<int32_t>(AlignUp(half, kBlock));
        const LocalTensor<T> rounded = cos_product_[rows * dense].template ReinterpretCast<T>();
        if constexpr (Same<Table, float>::value) {
          CastRows(rounded, dense, table, pitch, half, rows, RoundMode::CAST_RINT);
        } else {
          CastRows(cos_product_, dense, table, pitch, half, rows, RoundMode::CAST_NONE);
          AscendC::PipeBarrier<PIPE_V>();
          CastRows(rounded, dense, cos_product_, dense, half, rows, RoundMode::CAST_RINT);
        }
        AscendC::PipeBarrier<PIPE_V>();
        CastRows(to, p_.float_pitch, rounded, dense, half, rows, RoundMode::CAST_NONE);
        AscendC::PipeBarrier<PIPE_V>();
        return;
      }
    }
    if constexpr (Same<Table, float>::value) {
      CopyRows(to, p_.float_pitch, table, pitch, half, rows);
    } else {
      CastRows(to, p_.float_pitch, table, pitch, half, rows, RoundMode::CAST_NONE);
    }
  }

  // ---- Rotation -----------------------------------------------------------------------------

  /// A round of vector instructions: rows that lie one after another, tokens × heads.
  struct Step {
    int32_t row, rows;                 // in the box
    int32_t token, tokens, heads;      // the first token counted from the tile's first
    int32_t token_stride, head_stride;  // in rows
  };

  __aicore__ inline void Rotate(const RopeBox& box, int32_t slot) {
    const bool head_major = p_.tensors[box.tensor].head_major;
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
        RotateStep(step, slots_[slot][step.row * 2 * p_.half_pitch]);
      }
    }
  }

  __aicore__ inline void RotateStep(const Step& step, const LocalTensor<Bits>& x) {
    const int32_t half = p_.half_pitch;
    if constexpr (kFloat) {
      if constexpr (kSplit) {
        Split(x, step.rows);
        CopyRows(x, 2 * half, sin_product_, half, half, step.rows);
        CopyRows(x[half], 2 * half, SplitOdd(sin_product_, step.rows), half, half, step.rows);
        AscendC::PipeBarrier<PIPE_V>();
      }
      Multiply(step, x, 2 * half);
      if constexpr (kJoin) {  // as two planes, which is what Join reads
        Combine(x, x[step.rows * half], half, step.rows);
        Join(x, x, cos_product_, sin_product_, step.rows);
      } else {
        Combine(x, x[half], 2 * half, step.rows);
      }
    } else {
      const LocalTensor<T> rows = x.template ReinterpretCast<T>();
      if constexpr (kSplit) {
        Split(x, step.rows);
        const LocalTensor<T> even = sin_product_.template ReinterpretCast<T>();
        const LocalTensor<T> odd = SplitOdd(even, step.rows);
        const int32_t width = kJoin ? half : Lanes();  // Join reads the padding too
        CastRows(work_, p_.float_pitch, even, half, width, step.rows, RoundMode::CAST_NONE);
        CastRows(work_[half], p_.float_pitch, odd, half, width, step.rows, RoundMode::CAST_NONE);
      } else {
        CastWholeRows(work_, p_.float_pitch, rows, 2 * half, step.rows, RoundMode::CAST_NONE);
      }
      AscendC::PipeBarrier<PIPE_V>();
      Multiply(step, work_, p_.float_pitch);
      Combine(work_, work_[half], p_.float_pitch, step.rows);
      if constexpr (kJoin) {
        const LocalTensor<T> even = cos_product_.template ReinterpretCast<T>();
        CastRows(even, half, work_, p_.float_pitch, half, step.rows, RoundMode::CAST_RINT);
        CastRows(even[step.rows * half], half, work_[half], p_.float_pitch, half, step.rows,
                 RoundMode::CAST_RINT);
        AscendC::PipeBarrier<PIPE_V>();
        Join(x, cos_product_.template ReinterpretCast<Bits>(),
             sin_product_.template ReinterpretCast<Bits>(),
             cos_product_.template ReinterpretCast<Bits>(), step.rows);
      } else {
        CastWholeRows(rows, 2 * half, work_, p_.float_pitch, step.rows, RoundMode::CAST_RINT);
      }
      AscendC::PipeBarrier<PIPE_V>();  // the next step writes what this one still reads
    }
  }

  /// P = x*C, Q = x*S. One instruction serves 64 columns of all heads of a token (which read the
  /// token's table again and again) or of all tokens of a head, whichever are more.
  __aicore__ inline void Multiply(const Step& step, const LocalTensor<float>& x, int32_t pitch) {
    const int32_t x_blocks = pitch / kFloatBlock;
    const int32_t blocks = p_.float_pitch / kFloatBlock;  // of the products and the tables
    const bool heads_fit = step.head_stride * blocks <= kMaxRepeats;
    const bool tokens_fit = step.token_stride * blocks <= kMaxRepeats;
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
                                       const LocalTensor<S>& from, int32_t from_pitch,
                                       int32_t rows, RoundMode mode) {
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
                                  const LocalTensor<float>& from, int32_t from_pitch,
                                  int32_t width, int32_t rows) {
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
  //
  // Two neighbouring 32-byte blocks hold the pairs whose first elements fill one block of the even
  // plane and whose second elements fill one of the odd plane. A unit is 16 such neighbours, a
  // matrix of 16 rows. Transposed it has one column a line, so that even and odd columns are apart;
  // transposed back, they are the planes. 16-bit: 16 rows × 32 columns, a column is one block.
  // 32-bit: 16 rows × 16 columns, a column is two blocks, and TransDataTo5HD takes and gives
  // 16 × 8: its line l is blocks 2l and 2l + 1.

  static constexpr int32_t kUnit = 16;              // neighbours, and entries of an address list
  static constexpr int32_t kUnitBlocks = 2 * kUnit;

  /// Blocks from the even plane to the odd one where SplitPairs writes them: it writes whole units.
  __aicore__ inline static constexpr int32_t PlaneBlocks(int32_t blocks) {
    return static_cast<int32_t>(AlignUp(blocks, kUnit));
  }

  template <typename B>
  __aicore__ inline LocalTensor<B> SplitOdd(const LocalTensor<B>& even, int32_t rows) {
    return even[PlaneBlocks(rows * p_.half_pitch / kBlock) * kBlock];
  }

  /// The neighbour whose block leaves a transpose as entry i of its list.
  template <typename B>
  __aicore__ inline static constexpr int32_t RowOf(int32_t i) {
    return sizeof(B) == 2 ? i : i % 2 * 8 + i / 2;
  }
  /// The entry-th block of the columns of one parity, counted in columns.
  template <typename B>
  __aicore__ inline static constexpr int32_t ColumnLine(int32_t line, int32_t odd) {
    return sizeof(B) == 2 ? 2 * line + odd : line / 2 * 4 + line % 2 + 2 * odd;
  }
  /// The order in which a transpose takes the blocks of 8 (16-bit: 16) columns.
  template <typename B>
  __aicore__ inline static constexpr int32_t LineOf(int32_t i) {
    return sizeof(B) == 2 ? i : i % 8 * 2 + i / 8;
  }

  __aicore__ inline void Split(const LocalTensor<Bits>& x, int32_t rows) {
    const LocalTensor<Bits> even = sin_product_.template ReinterpretCast<Bits>();
    SplitPairs<Bits>(even, SplitOdd(even, rows), x, cos_product_.template ReinterpretCast<Bits>(),
                     rows * p_.half_pitch / kBlock);
  }

  /// `blocks` neighbours of `pairs` -> the planes, through `lines`.
  template <typename B>
  __aicore__ inline void SplitPairs(const LocalTensor<B>& even, const LocalTensor<B>& odd,
                                    const LocalTensor<B>& pairs, const LocalTensor<B>& lines,
                                    int32_t blocks) {
    const int32_t units = blocks / kUnit;
    const int32_t rest = blocks % kUnit;
    const int32_t last = units * kUnit;
    for (int32_t side = 0; side < 2; ++side) {
      PairsToLines<B>(lines, pairs, side, kUnit, units);
      if (rest > 0) PairsToLines<B>(At(lines, 2 * last), At(pairs, 2 * last), side, rest, 1);
    }
    AscendC::PipeBarrier<PIPE_V>();
    for (int32_t side = 0; side < 2; ++side) {
      const LocalTensor<B>& plane = side == 0 ? even : odd;
      LinesToPlane<B>(plane, lines, side, units);
      if (rest > 0) LinesToPlane<B>(At(plane, last), At(lines, 2 * last), side, 1);
    }
    AscendC::PipeBarrier<PIPE_V>();
  }

  /// The planes -> pairs, through `lines`. Blocks beyond the last go to `spare`.
  __aicore__ inline void Join(const LocalTensor<Bits>& pairs, const LocalTensor<Bits>& even,
                              const LocalTensor<Bits>& lines, const LocalTensor<Bits>& spare,
                              int32_t rows) {
    const int32_t blocks = rows * p_.half_pitch / kBlock;
    const int32_t units = blocks / kUnit;
    const int32_t rest = blocks % kUnit;
    const int32_t last = units * kUnit;
    for (int32_t side = 0; side < 2; ++side) {
      const LocalTensor<Bits> plane = even[side * rows * p_.half_pitch];
      PlaneToLines(lines, plane, side, kUnit, units);
      if (rest > 0) PlaneToLines(At(lines, 2 * last), At(plane, last), side, rest, 1);
    }
    AscendC::PipeBarrier<PIPE_V>();
    for (int32_t side = 0; side < 2; ++side) {
      LinesToPairs(pairs, lines, spare, side, kUnit, units);
      if (rest > 0) {
        LinesToPairs(At(pairs, 2 * last), At(lines, 2 * last), spare, side, rest, 1);
      }
    }
    AscendC::PipeBarrier<PIPE_V>();
  }

  /// The first (side 0) or second blocks of the neighbours -> their columns.
  template <typename B>
  __aicore__ inline void PairsToLines(const LocalTensor<B>& lines, const LocalTensor<B>& pairs,
                                      int32_t side, int32_t valid, int32_t units) {
    uint64_t to[kUnit], from[kUnit];
    for (int32_t i = 0; i < kUnit; ++i) {
      to[i] = Address(lines, side * kUnit + i);
      from[i] = Address(pairs, 2 * static_cast<int32_t>(Min(i, valid - 1)) + side);
    }
    Transpose<B>(to, kUnitBlocks, from, kUnitBlocks, units);
  }

  /// The even (side 0) or odd columns -> their plane.
  template <typename B>
  __aicore__ inline void LinesToPlane(const LocalTensor<B>& plane, const LocalTensor<B>& lines,
                                      int32_t side, int32_t units) {
    uint64_t to[kUnit], from[kUnit];
    for (int32_t i = 0; i < kUnit; ++i) {
      to[i] = Address(plane, RowOf<B>(i));
      from[i] = Address(lines, ColumnLine<B>(LineOf<B>(i), side));
    }
    Transpose<B>(to, kUnit, from, kUnitBlocks, units);
  }

  /// The even (side 0) or odd plane -> its columns among the others.
  __aicore__ inline void PlaneToLines(const LocalTensor<Bits>& lines,
                                      const LocalTensor<Bits>& plane, int32_t side, int32_t valid,
                                      int32_t units) {
    uint64_t to[kUnit], from[kUnit];
    for (int32_t i = 0; i < kUnit; ++i) {
      to[i] = Address(lines, ColumnLine<Bits>(i, side));
      from[i] = Address(plane, static_cast<int32_t>(Min(i, valid - 1)));
    }
    Transpose<Bits>(to, kUnitBlocks, from, kUnit, units);
  }

  /// The columns of the first (side 0) or second blocks -> those blocks.
  __aicore__ inline void LinesToPairs(const LocalTensor<Bits>& pairs,
                                      const LocalTensor<Bits>& lines,
                                      const LocalTensor<Bits>& spare, int32_t side, int32_t valid,
                                      int32_t units) {
    uint64_t to[kUnit], from[kUnit];
    for (int32_t i = 0; i < kUnit; ++i) {
      const int32_t row = RowOf<Bits>(i);
      to[i] = row < valid ? Address(pairs, 2 * row + side) : Address(spare, side * kUnit + row);
      from[i] = Address(lines, side * kUnit + LineOf<Bits>(i));
    }
    Transpose<Bits>(to, kUnitBlocks, from, kUnitBlocks, units);
  }

  template <typename B>
  __aicore__ inline void Transpose(uint64_t (&to)[kUnit], int32_t to_step, uint64_t (&from)[kUnit],
                                   int32_t from_step, int32_t units) {
    if (units == 0) return;
    AscendC::TransDataTo5HDParams params;
    params.dstHighHalf = false;
    params.srcHighHalf = false;
    params.repeatTimes = static_cast<uint8_t>(units);
    // One repeat begins a stride further on, more begin at the addresses themselves.
    params.dstRepStride = static_cast<uint16_t>(units > 1 ? to_step : 0);
    params.srcRepStride = static_cast<uint16_t>(units > 1 ? from_step : 0);
    AscendC::TransDataTo5HD<B>(to, from, params);
  }

  template <typename B>
  __aicore__ inline LocalTensor<B> At(const LocalTensor<B>& tensor, int32_t block) {
    return tensor[block * (kBlockBytes / static_cast<int32_t>(sizeof(B)))];
  }

  template <typename B>
  __aicore__ inline uint64_t Address(const LocalTensor<B>& tensor, int32_t block) {
    return reinterpret_cast<uint64_t>(At(tensor, block).GetPhyAddr());
  }

  const RopeParams& p_;
  AscendC::TPipe pipe_;
  GlobalTensor<Bits> in_[2], out_[2];
  GlobalTensor<TableBits> table_in_[2];

  TBuf<TPosition::VECIN> ring_buffer_, raw_buffer_;
  TBuf<TPosition::VECCALC> work_buffer_, table_buffer_, gap_buffer_;
  TBuf<TPosition::VECCALC> cos_product_buffer_, sin_product_buffer_;
  LocalTensor<Bits> slots_[kRing];
  LocalTensor<TableBits> raw_[2];
  LocalTensor<float> work_;         // rows in fp32: x, then y
  LocalTensor<float> tables_[2];    // C and S of the tile
  LocalTensor<float> cos_product_;  // P; also the scratch of table work and transposes
  LocalTensor<float> sin_product_;  // Q; the same

  AscendC::TEventID tables_loaded_, tables_free_;
  AscendC::TEventID loaded_[kRing], rotated_[kRing], stored_[kRing];
};

struct RopeAddresses {
  GM_ADDR q;
  GM_ADDR k;
  GM_ADDR cos;
  GM_ADDR sin;
  GM_ADDR q_out;
  GM_ADDR k_out;
};

template <typename T, typename Table, bool kSplit, bool kJoin>
__aicore__ inline void Run(const RopeAddresses& a, const RopeParams& params) {
  RopeKernel<T, Table, kSplit, kJoin> kernel(params);
  kernel.Init(a.q, a.k, a.cos, a.sin, a.q_out, a.k_out);
  kernel.Process();
}

template <typename T, typename Table>
__aicore__ inline void RunOrder(const RopeAddresses& a, const RopeParams& params) {
  if (params.split_in && params.join_out) {
    Run<T, Table, true, true>(a, params);
  } else if (params.split_in) {
    Run<T, Table, true, false>(a, params);
  } else if (params.join_out) {
    Run<T, Table, false, true>(a, params);
  } else {
    Run<T, Table, false, false>(a, params);
  }
}

/// The plan has refused every other table dtype.
template <typename T>
__aicore__ inline void RunTable(const RopeAddresses& a, const RopeParams& params) {
  switch (params.table_dtype) {
    case kTableFloat16:
      return RunOrder<T, half>(a, params);
    case kTableBFloat16:
      return RunOrder<T, bfloat16_t>(a, params);
    default:
      return RunOrder<T, float>(a, params);
  }
}

}  // namespace npu_rope

#define ROPE_ENTRY(name, T)                                                                      \
  extern "C" __global__ __aicore__ void name(GM_ADDR q, GM_ADDR k, GM_ADDR cos, GM_ADDR sin,     \
                                             GM_ADDR q_out, GM_ADDR k_out,                       \
                                             npu_rope::RopeParams params) {                      \
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);                                              \
    npu_rope::RunTable<T>({q, k, cos, sin, q_out, k_out}, params);                               \
  }

ROPE_ENTRY(rope_fp16, half)
ROPE_ENTRY(rope_bf16, bfloat16_t)
ROPE_ENTRY(rope_fp32, float)
