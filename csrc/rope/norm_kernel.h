// The fused rotary embedding with RMSNorm of q's rows, of k's or of both before it.
//
// What makes a row's factor of its squares (norm_step.h) is a chain of small instructions that wait
// for each other, some 30 cycles each, whatever the rows. So boxes go two at a time: while the rows
// of one are multiplied, rotated and stored, the chain of the next one runs between.
//
//   this box                               the box before
//   x in fp32, whose slot is free then     1 / root
//   squares                                spread over blocks
//   a sum for each block                   times factors
//   of 8 of them one                       times weights
//   of the rest one                        P = x*C, Q = x*S
//   mean                                   y = P -+ Q
//   plus eps                               rounded, and stored
//   root
//
// A box is loaded into one slot of the ring, which is free for the next one as soon as it is
// widened, and stored from the other. Rows in fp32 take turns in two work buffers. A box is one
// round of vector instructions.
//
// Banks: rows in fp32 lie in the first 64 KB, what is made of them beyond.
//
// kArrange: for rows whose halves do not begin at whole blocks. They are widened as they lie,
// which is the order of the sum, then arranged as RopeArrangement says, and put back before they
// are rounded.
#pragma once

#include "kernel_operator.h"
#include "norm_step.h"
#include "rope_kernel.h"
#include "rope_params.h"

namespace npu_rope {

template <typename T, bool kSplit, bool kJoin, bool kArrange>
class NormKernel : public RopeKernel<T, kSplit, kJoin, false> {
  using Rope = RopeKernel<T, kSplit, kJoin, false>;
  using Rope::kBlock, Rope::kFloat, Rope::kFloatBytes, Rope::kTables;
  using Rope::p_, Rope::q_, Rope::k_, Rope::q_out_, Rope::k_out_, Rope::work_, Rope::ring_,
      Rope::cos_product_, Rope::sin_product_, Rope::pair_rows_;
  using typename Rope::Columns;
  using typename Rope::Lines;
  using typename Rope::Steps;
  static constexpr int32_t kIn = 0, kOut = 1;  // slots of the ring, and their events

 public:
  ROPE_INLINE NormKernel(const RopeParams& params, AscendC::TPipe& pipe)
      : Rope(params, pipe), norm_(params) {}

  ROPE_INLINE void Init(GM_ADDR q, GM_ADDR k, GM_ADDR cos, GM_ADDR sin, GM_ADDR q_out,
                        GM_ADDR k_out, GM_ADDR q_weight, GM_ADDR k_weight) {
    Rope::Init(q, k, cos, sin, q_out, k_out);
    norm_.Init(this->Part(p_.ub.norm, p_.ub.norm_bytes), q_weight, k_weight);
  }

  ROPE_INLINE void Process() {
    this->PrepareBuffers();
    norm_.Start();
    AscendC::SetFlag<HardEvent::V_MTE2>(kTables);
    AscendC::SetFlag<HardEvent::V_MTE2>(kIn);
    AscendC::SetFlag<HardEvent::MTE3_V>(kOut);
    RopeWalk walk(p_, static_cast<int32_t>(AscendC::GetBlockIdx()));
    RopeBox next;
    walk.First(next);
    GlobalTensor<uint8_t> from = this->Choose(q_, k_, next.tensor)[next.in];
    Lines loaded = this->LinesOf(next.rows->in, next.inner, next.outer);
    LoadRows(next.rows->in, loaded, from);
    norm_.LoadWeights();
    if constexpr (kArrange) norm_.MakeOffsets();

    Shape shapes[2];  // of this box and of the one before
    Box box, last;
    box.shape = last.shape = &shapes[1];
    box.work = last.work = 0;
    bool begins = true, ends = false, tile = false;
    do {
      if (tile) this->PrepareTables(last.shape->tile_tokens);
      tile = false;
      if (begins) {
        if (next.follows) {
          box.to = box.to[next.out_step];
          box.token += next.token_step;
        } else {
          Shape& shape = shapes[box.shape == &shapes[0]];
          ShapeOf(next, shape);
          box.shape = &shape;
          box.to = this->Choose(q_out_, k_out_, next.tensor)[next.out];
          box.token = next.token - next.tile_token;
          tile = next.starts_tile;
          if (tile) this->LoadTables(next);
        }
        box.work = p_.ub.work_bytes / 2 - last.work;
      }
      Begin(box, begins, last, ends);
      const bool more = begins && walk.Next(next);
      if (more) {
        from = next.follows ? from[next.in_step] : this->Choose(q_, k_, next.tensor)[next.in];
        if (!next.follows) loaded = this->LinesOf(next.rows->in, next.inner, next.outer);
        LoadRows(next.rows->in, loaded, from);
      }
      End(box, begins, last, ends);
      if (!ends) {  // once
        norm_.template PrepareWeights<kSplit, kArrange>(cos_product_, sin_product_);
      }
      last = box;
      ends = begins;
      begins = more;
    } while (ends);

    AscendC::WaitFlag<HardEvent::V_MTE2>(kTables);
    AscendC::WaitFlag<HardEvent::V_MTE2>(kIn);
    AscendC::WaitFlag<HardEvent::MTE3_V>(kOut);
  }

 private:
  /// What boxes of one shape have in common.
  struct Shape {
    Steps steps;
    bool norm;  // of these rows
    int32_t rows, tile_tokens;
    Lines stored;
  };

  /// A box from its rows in the ring to those in the output.
  struct Box {
    const Shape* shape;
    int32_t token;  // of its first row, in the tile
    int32_t work;   // bytes to its rows in the work buffer
    GlobalTensor<uint8_t> to;
  };

  ROPE_INLINE void ShapeOf(const RopeBox& box, Shape& shape) {
    shape.steps = this->StepsOf(box, p_.float_blocks);
    shape.norm = p_.norm.tensors[box.tensor] != 0;
    shape.rows = box.inner * box.outer;
    shape.tile_tokens = box.tile_tokens;
    shape.stored = this->LinesOf(box.rows->out, box.inner, box.outer);
  }

  ROPE_INLINE void LoadRows(const RopeMove& move, const Lines& lines,
                            const GlobalTensor<uint8_t>& from) {
    AscendC::WaitFlag<HardEvent::V_MTE2>(kIn);
    this->template Move<true>(move, lines, from, ring_, 0);
    AscendC::SetFlag<HardEvent::MTE2_V>(kIn);
  }

  ROPE_INLINE Rows<float> WorkOf(const Box& box) const {
    return {work_, box.work, p_.float_blocks};
  }
  ROPE_INLINE Rows<T> SlotOf(const Box& box, int32_t slot) const {
    return {ring_, slot * p_.ub.slot_bytes, box.shape->steps.rows->row_blocks};
  }

  /// Where `begins`, the rows of `box` in fp32 and their squares' sums; beside that, where `ends`,
  /// what the factors of `last` lack.
  ROPE_INLINE void Begin(const Box& box, bool begins, const Box& last, bool ends) {
    const Rows<float> x = WorkOf(box), squares{sin_product_, 0, p_.float_blocks};
    const Rows<T> loaded = SlotOf(box, kIn);
    const int32_t rows = box.shape->rows, shift = box.shape->steps.shift;
    const bool sums = begins && box.shape->norm, scales = ends && last.shape->norm;
    // Rows are summed in the order in which they were loaded, and pairs taken apart then.
    const Rows<float> wide = kSplit || kArrange ? Rows<float>{cos_product_, 0, p_.float_blocks} : x;

    if (scales) norm_.Invert(last.shape->rows);
    if (begins) {
      AscendC::WaitFlag<HardEvent::MTE2_V>(kIn);
      if constexpr (!kSplit) {
        Widen(wide, loaded, shift, rows);
      } else if constexpr (!kFloat) {
        if (sums) Widen(wide, loaded, 0, rows);
      }
    }
    AscendC::PipeBarrier<PIPE_V>();
    if constexpr (!kSplit) {
      if (begins) AscendC::SetFlag<HardEvent::V_MTE2>(kIn);
    }

    if (scales) norm_.Spread(last.shape->rows);
    if constexpr (kSplit && kFloat) {
      if (sums) norm_.Square(squares, loaded, 0, rows);
    } else {
      if (sums) norm_.Square(squares, wide, kSplit ? 0 : shift, rows);
    }
    if constexpr (kArrange) {
      if (begins) {
        norm_.Arrange(x, wide, rows);
        Keep(x, wide, rows);
      }
    }
    AscendC::PipeBarrier<PIPE_V>();

    if (sums) norm_.AddColumns(squares, kSplit ? 0 : shift, rows);
    if constexpr (kSplit) {
      AscendC::PipeBarrier<PIPE_V>();
      if (begins) {
        this->Split(x, loaded, pair_rows_[box.shape->steps.tensor],
                    kFloat ? Address(cos_product_) : Address(x), rows);
        AscendC::SetFlag<HardEvent::V_MTE2>(kIn);
      }
    }
  }

  /// Whole rows as loaded -> fp32.
  ROPE_INLINE void Widen(const Rows<float>& to, const Rows<T>& from, int32_t shift, int32_t rows) {
    const Columns columns{p_.norm.columns, p_.norm.mask};
    if constexpr (kFloat || kSplit || kArrange) {
      this->ConvertRows(to, from, columns, rows);
    } else {
      this->CastChunks(p_.norm.row, to, from, shift, rows, RoundMode::CAST_NONE);
    }
  }

  /// The columns that an arrangement leaves where they are.
  ROPE_INLINE void Keep(const Rows<float>& to, const Rows<float>& from, int32_t rows) {
    const RopeArrangement& a = p_.norm.arrangement;
    if (a.kept == 0) return;
    const int32_t begin = (a.width - a.kept) * kFloatBytes;
    this->ConvertRows(to.After(begin), from.After(begin), Columns{a.kept, a.kept_mask}, rows);
  }

  /// Where `ends`, all that is left to do of `last`; beside that the factors of `box` as far as
  /// they go.
  ROPE_INLINE void End(const Box& box, bool begins, const Box& last, bool ends) {
    const bool sums = begins && box.shape->norm, scales = ends && last.shape->norm;
    const int32_t rows = box.shape->rows;
    const Rows<float> x = WorkOf(last), products{cos_product_, 0, p_.float_blocks};
    const Rows<float> y = x.After(p_.norm.offset * kFloatBytes);

    if (scales) norm_.MultiplyFactors(products, x, last.shape->rows);
    AscendC::PipeBarrier<PIPE_V>();

    if (sums) norm_.AddBlocks(rows);
    if (scales) norm_.MultiplyWeight(x, products, last.shape->steps.tensor, last.shape->rows);
    AscendC::PipeBarrier<PIPE_V>();

    if (sums) norm_.AddRest(rows);
    if (ends) {
      if (scales && p_.round_each) RoundRows(x, last.shape->rows);
      this->Multiply(y, last.shape->steps, last.token, last.shape->steps.lines);
    } else {
      AscendC::PipeBarrier<PIPE_V>();
    }

    if (sums) norm_.TakeMean(rows);
    if (ends) {
      Combine(last, x, y);
    } else {
      AscendC::PipeBarrier<PIPE_V>();
    }

    if (sums) norm_.AddEps(rows);
    if (ends) {
      AscendC::WaitFlag<HardEvent::MTE3_V>(kOut);
      Narrow(last, x);
      AscendC::SetFlag<HardEvent::V_MTE3>(kOut);
      AscendC::WaitFlag<HardEvent::V_MTE3>(kOut);
      this->template Move<false>(last.shape->steps.rows->out, last.shape->stored, last.to, ring_,
                                 kOut * p_.ub.slot_bytes);
      AscendC::SetFlag<HardEvent::MTE3_V>(kOut);
    }
    AscendC::PipeBarrier<PIPE_V>();

    if (sums) norm_.TakeRoot(rows);
    AscendC::PipeBarrier<PIPE_V>();
  }

  /// Normalised rows as eager PyTorch has them: rounded to T. P's buffer is scratch.
  ROPE_INLINE void RoundRows(const Rows<float>& x, int32_t rows) {
    const Rows<T> rounded{cos_product_, 0, p_.float_blocks / 2};
    if constexpr (!kFloat) {
      this->CastChunks(p_.norm.row, rounded, x, 0, rows, RoundMode::CAST_RINT);
      AscendC::PipeBarrier<PIPE_V>();
      this->CastChunks(p_.norm.row, x, rounded, 0, rows, RoundMode::CAST_NONE);
      AscendC::PipeBarrier<PIPE_V>();
    }
  }

  /// y = P -+ Q, among columns x that are not rotated.
  ROPE_INLINE void Combine(const Box& box, const Rows<float>& x, const Rows<float>& y) {
    const int32_t half = p_.half_pitch * kFloatBytes, rows = box.shape->rows;
    if constexpr (kFloat && kJoin) {  // as two planes, which is what JoinPairs reads
      const Rows<float> first{x.part, x.begin, p_.half_pitch / kBlock};
      Rope::Combine(first, rows * half, rows);
    } else {
      if constexpr (!kFloat) {
        if (p_.round_each) {  // into where y was: its columns alone are free
          const Rows<T> rounded{y.part, y.begin, y.blocks};
          this->RoundProducts(rounded, rounded.After(half), 0, rows);
        }
      }
      Rope::Combine(y, half, rows);
    }
  }

  /// Rows in fp32 -> rows to store.
  ROPE_INLINE void Narrow(const Box& box, const Rows<float>& x) {
    const Rows<T> to = SlotOf(box, kOut);
    const int32_t rows = box.shape->rows;
    const Columns whole{p_.norm.columns, p_.norm.mask};
    if constexpr (kArrange) {
      const Rows<float> back{cos_product_, 0, p_.float_blocks};
      norm_.PutBack(back, x, rows);
      Keep(back, x, rows);
      AscendC::PipeBarrier<PIPE_V>();
      this->ConvertRows(to, back, whole, rows);
    } else if constexpr (kFloat && kJoin) {
      const int32_t plane = p_.half_pitch / kBlock;
      JoinPairs<T>({Address(to),
                    Address(cos_product_),
                    {Address(x), Address(x.After(rows * plane * kBlockBytes))}},
                   pair_rows_[box.shape->steps.tensor], Address(sin_product_), rows * plane);
    } else if constexpr (kFloat && kSplit) {
      const int32_t half = p_.half_pitch * kFloatBytes;
      const Columns columns{p_.lanes, p_.half_mask};
      this->ConvertHalves(to, to.After(half), x, x.After(half), columns, rows);
    } else if constexpr (kFloat) {
      this->ConvertRows(to, x, whole, rows);
    } else if constexpr (kJoin) {
      this->Join(to, x, pair_rows_[box.shape->steps.tensor], box.shape->steps.shift, rows);
    } else if constexpr (kSplit) {
      this->CastWholeRows(to, x, box.shape->steps.shift, rows, RoundMode::CAST_RINT);
    } else {
      this->CastChunks(p_.norm.row, to, x, box.shape->steps.shift, rows, RoundMode::CAST_RINT);
    }
  }

  NormStep norm_;
};

}  // namespace npu_rope
