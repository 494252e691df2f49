// On the chip: RMSNorm of rows in fp32, by the steps of which norm_kernel.h makes a launch.
//
//   s = the sum of x*x, added pairwise,  f = 1 / sqrt(s * (1 / head_dim) + eps),  n = x * f * w
//
// The order of the sum is that of the instructions: BlockReduceSum adds the 8 floats of a block in
// a binary tree, PairReduceSum neighbours. A row's squares become a sum for each of its blocks, of
// which it has a power of two (what it lacks is 0), and these one sum by further rounds over all
// rows side by side. The order is that in which rows were loaded; where pairs are two halves by the
// time they are multiplied, so are the weights.
//
// Repeats for a row of 128: squares 2, sums 2 and 1/4, n 4; the rest takes 1/4 for the factors'
// blocks and 1/64 for each step to them.
#pragma once

#include "kernel_operator.h"
#include "rope_pairs.h"
#include "rope_params.h"
#include "rope_rows.h"

namespace npu_rope {

class NormStep {
  static constexpr int32_t kFloatBlock = kBlockBytes / sizeof(float);
  static constexpr int32_t kRepeatBlocks = 8;
  static constexpr int32_t kWeights = kRing + 1;  // the weights' event
  static constexpr int32_t kOffsets = 0;          // the event of offsets, the only one from S to V

 public:
  ROPE_INLINE explicit NormStep(const RopeParams& params) : p_(params), norm_(params.norm) {}

  ROPE_INLINE void Init(const AscendC::LocalTensor<uint8_t>& part, GM_ADDR q_weight,
                        GM_ADDR k_weight) {
    part_ = part;
    weight_in_[0].SetGlobalBuffer(q_weight);
    weight_in_[1].SetGlobalBuffer(k_weight);
  }

  ROPE_INLINE void Start() {
    const float zero = 0.0f, one = 1.0f;
    AscendC::Duplicate(Part(norm_.ones)[0], one, int32_t{kFloatBlock});
    // Sums that a row lacks are 0. And instructions on sums take whole repeats: what they read
    // beyond the rows is anything, but written.
    AscendC::Duplicate(Part(norm_.sums)[0], zero,
                       (norm_.factors - norm_.sums) / static_cast<int32_t>(sizeof(float)));
    AscendC::PipeBarrier<PIPE_V>();
  }

  // ---- Weights ------------------------------------------------------------------------------

  ROPE_INLINE void LoadWeights() {
    AscendC::DataCopyExtParams params;
    params.blockCount = 1;
    params.blockLen = norm_.weight.bytes;
    params.srcStride = 0;
    params.dstStride = 0;
    params.rsv = 0;
    const AscendC::DataCopyPadExtParams<uint8_t> fill{norm_.weight.fill > 0, 0, norm_.weight.fill,
                                                      0};
    for (int32_t i = 0; i < 2; ++i) {
      if (norm_.tensors[i] == 0) continue;
      AscendC::DataCopyPad(part_[norm_.raw_weights + i * norm_.raw_weight_bytes], weight_in_[i],
                           params, fill);
    }
    AscendC::SetFlag<AscendC::HardEvent::MTE2_V>(kWeights);
  }

  /// Weights as loaded -> weight_offset + weight in fp32, in the order in which rows are
  /// multiplied. lines and planes are scratch.
  template <bool kSplit, bool kArrange>
  ROPE_INLINE void PrepareWeights(const AscendC::LocalTensor<uint8_t>& lines,
                                  const AscendC::LocalTensor<uint8_t>& planes) {
    if constexpr (kSplit) {  // padding lanes are multiplied too: make them 0
      const float zero = 0.0f;
      AscendC::Duplicate(Part(norm_.weights)[0], zero,
                         2 * norm_.weight_bytes / static_cast<int32_t>(sizeof(float)));
      AscendC::PipeBarrier<PIPE_V>();
    }
    AscendC::WaitFlag<AscendC::HardEvent::MTE2_V>(kWeights);
    for (int32_t i = 0; i < 2; ++i) {
      if (norm_.tensors[i] == 0) continue;
      if (norm_.weight_dtype == kTableFloat16) {
        PrepareWeight<kSplit, kArrange, half>(i, lines, planes);
      } else if (norm_.weight_dtype == kTableBFloat16) {
        PrepareWeight<kSplit, kArrange, bfloat16_t>(i, lines, planes);
      } else {
        PrepareWeight<kSplit, kArrange, float>(i, lines, planes);
      }
    }
  }

  // ---- Rows in another order ----------------------------------------------------------------

  /// S writes the offsets by which Arrange and PutBack gather.
  ROPE_INLINE void MakeOffsets() {
    const RopeArrangement& a = norm_.arrangement;
    for (int32_t i = 0; i < p_.half; ++i) {
      Connect(a.before + i * a.in_step, i, a.before + i * a.out_step);
      Connect(a.before + a.in_second + i * a.in_step, p_.half_pitch + i,
              a.before + a.out_second + i * a.out_step);
    }
    const AscendC::LocalTensor<uint32_t> arrange = Offsets(a.arrange);
    for (int32_t i = p_.half; i < p_.half_pitch; ++i) {  // padding: any column
      arrange.SetValue(i, 0u);
      arrange.SetValue(p_.half_pitch + i, 0u);
    }
    for (int32_t i = 0; i < a.rest; ++i) {
      const int32_t column = i < a.before ? i : i + 2 * p_.half;
      Connect(column, 2 * p_.half_pitch + i, column);
    }
    AscendC::SetFlag<AscendC::HardEvent::S_V>(kOffsets);
    AscendC::WaitFlag<AscendC::HardEvent::S_V>(kOffsets);
  }

  /// Rows as they lie -> arranged, but for columns that are kept.
  ROPE_INLINE void Arrange(const Rows<float>& to, const Rows<float>& from, int32_t rows) {
    const RopeArrangement& a = norm_.arrangement;
    Gather(to, from, a.arrange, a.width - a.kept, rows);
  }
  /// And back.
  ROPE_INLINE void PutBack(const Rows<float>& to, const Rows<float>& from, int32_t rows) {
    const RopeArrangement& a = norm_.arrangement;
    Gather(to, from, a.put_back, norm_.columns - a.kept, rows);
  }

  // ---- Factors ------------------------------------------------------------------------------

  // Each step waits for the one before: the caller has barriers between them, and better things to
  // do there than to wait.

  /// squares = x * x, rows as loaded. shift: as in RopeKernel's Steps.
  ROPE_INLINE void Square(const Rows<float>& squares, const Rows<float>& x, int32_t shift,
                          int32_t rows) {
    const uint8_t pitch = static_cast<uint8_t>(x.blocks >> shift);
    const AscendC::BinaryRepeatParams params(1, 1, 1, static_cast<uint8_t>(squares.blocks >> shift),
                                             pitch, pitch);
    const int32_t width = norm_.columns >> shift;
    int32_t i = 0;
    do {
      if (width - i < kRepeatFloats) AscendC::SetVectorMask<float>(0, norm_.mask);
      AscendC::Mul<float, false>(squares[i], x[i], x[i], AscendC::MASK_PLACEHOLDER,
                                 static_cast<uint8_t>(rows << shift), params);
      i += kRepeatFloats;
    } while (i < width);
    if (i > width) AscendC::ResetMask();
  }

  /// A sum for each block of the squares.
  ROPE_INLINE void AddColumns(const Rows<float>& squares, int32_t shift, int32_t rows) {
    const Rows<float> sums = Part(norm_.sums);
    const int32_t width = norm_.columns >> shift;
    int32_t i = 0;
    do {
      if (width - i < kRepeatFloats) AscendC::SetVectorMask<float>(0, norm_.mask);
      AscendC::BlockReduceSum<float, false>(sums[i / kFloatBlock], squares[i], rows << shift,
                                            AscendC::MASK_PLACEHOLDER, norm_.sum_blocks >> shift, 1,
                                            squares.blocks >> shift);
      i += kRepeatFloats;
    } while (i < width);
    if (i > width) AscendC::ResetMask();
  }

  /// The sums of 8 blocks become one.
  ROPE_INLINE void AddBlocks(int32_t rows) {
    AscendC::BlockReduceSum<float, false>(Part(norm_.factor)[0], Part(norm_.sums)[0],
                                          Repeats(rows * norm_.sum_blocks * kFloatBlock),
                                          AscendC::MASK_PLACEHOLDER, 1, 1, kRepeatBlocks);
  }

  /// And these a row's sum.
  ROPE_INLINE void AddRest(int32_t rows) {
    int32_t left = norm_.sum_blocks;
    int32_t from = norm_.factor, to = norm_.other_factor;
    while (left > 1) {
      const int32_t repeats = Repeats(rows * left);
      if (left >= kFloatBlock) {
        AscendC::BlockReduceSum<float, false>(Part(to)[0], Part(from)[0], repeats,
                                              AscendC::MASK_PLACEHOLDER, 1, 1, kRepeatBlocks);
        left /= kFloatBlock;
      } else {
        AscendC::PairReduceSum<float, false>(Part(to)[0], Part(from)[0], repeats,
                                             AscendC::MASK_PLACEHOLDER, 1, 1, kRepeatBlocks);
        left /= 2;
      }
      const int32_t swap = from;
      from = to;
      to = swap;
      if (left > 1) AscendC::PipeBarrier<PIPE_V>();
    }
    factor_ = from;
  }

  ROPE_INLINE void TakeMean(int32_t rows) {
    const float share = norm_.share;
    AscendC::Muls<float, false>(Factor(), Factor(), share, AscendC::MASK_PLACEHOLDER,
                                static_cast<uint8_t>(Repeats(rows)), Dense());
  }
  ROPE_INLINE void AddEps(int32_t rows) {
    const float eps = norm_.eps;
    AscendC::Adds<float, false>(Factor(), Factor(), eps, AscendC::MASK_PLACEHOLDER,
                                static_cast<uint8_t>(Repeats(rows)), Dense());
  }
  ROPE_INLINE void TakeRoot(int32_t rows) {
    AscendC::Sqrt<float, false>(Factor(), Factor(), AscendC::MASK_PLACEHOLDER,
                                static_cast<uint8_t>(Repeats(rows)), Dense());
  }
  ROPE_INLINE void Invert(int32_t rows) {
    AscendC::Div<float, false>(
        Factor(), Part(norm_.ones)[0], Factor(), AscendC::MASK_PLACEHOLDER,
        static_cast<uint8_t>(Repeats(rows)),
        AscendC::BinaryRepeatParams(1, 0, 1, kRepeatBlocks, 0, kRepeatBlocks));
  }
  /// Each factor to all of a block, of which each row has norm_.spread.
  ROPE_INLINE void Spread(int32_t rows) {
    const uint8_t repeats = static_cast<uint8_t>((rows + kRepeatBlocks - 1) / kRepeatBlocks);
    const AscendC::BrcbRepeatParams params(static_cast<uint16_t>(norm_.spread),
                                           static_cast<uint16_t>(norm_.spread * kRepeatBlocks));
    for (int32_t i = 0; i < norm_.spread; ++i) {
      AscendC::Brcb(Part(norm_.factors)[i * kFloatBlock], Factor(), repeats, params);
    }
  }

  // ---- Products -----------------------------------------------------------------------------

  /// to = x * f. Where a row has two blocks of its factor, an instruction takes every second block
  /// of x, and the factor's that no bank group has in common with them.
  ROPE_INLINE void MultiplyFactors(const Rows<float>& to, const Rows<float>& x, int32_t rows) {
    const uint8_t spread = static_cast<uint8_t>(norm_.spread);
    const AscendC::BinaryRepeatParams params(spread, spread, 0, static_cast<uint8_t>(to.blocks),
                                             static_cast<uint8_t>(x.blocks), spread);
    const Rows<float> factors = Part(norm_.factors);
    const RopeChunks& chunks = norm_.scaled;
    int32_t i = 0, by = (spread - 1) * kFloatBlock;
    do {
      if (i == chunks.full) AscendC::SetVectorMask<float>(0, chunks.mask);
      const int32_t c = chunks.columns[i];
      AscendC::Mul<float, false>(to[c], x[c], factors[by], AscendC::MASK_PLACEHOLDER,
                                 static_cast<uint8_t>(rows), params);
      by = (spread - 1) * kFloatBlock - by;
    } while (++i < chunks.count);
    if (chunks.count > chunks.full) AscendC::ResetMask();
  }

  /// to = x * w. tensor: whose weight.
  ROPE_INLINE void MultiplyWeight(const Rows<float>& to, const Rows<float>& x, int32_t tensor,
                                  int32_t rows) {
    const AscendC::BinaryRepeatParams params(1, 1, 1, static_cast<uint8_t>(to.blocks),
                                             static_cast<uint8_t>(x.blocks), 0);
    const Rows<float> weight = Part(norm_.weights + tensor * norm_.weight_bytes);
    const RopeChunks& chunks = norm_.row;
    int32_t i = 0;
    do {
      if (i == chunks.full) AscendC::SetVectorMask<float>(0, chunks.mask);
      const int32_t c = chunks.columns[i];
      AscendC::Mul<float, false>(to[c], x[c], weight[c], AscendC::MASK_PLACEHOLDER,
                                 static_cast<uint8_t>(rows), params);
    } while (++i < chunks.count);
    if (chunks.count > chunks.full) AscendC::ResetMask();
  }

 private:
  ROPE_INLINE Rows<float> Part(int32_t begin) const { return {part_, begin, 0}; }
  ROPE_INLINE AscendC::LocalTensor<float> Factor() const { return Part(factor_)[0]; }
  ROPE_INLINE static int32_t Repeats(int32_t count) {
    return (count + kRepeatFloats - 1) / kRepeatFloats;
  }
  ROPE_INLINE static AscendC::UnaryRepeatParams Dense() {
    return AscendC::UnaryRepeatParams(1, 1, kRepeatBlocks, kRepeatBlocks);
  }

  ROPE_INLINE AscendC::LocalTensor<uint32_t> Offsets(int32_t begin) const {
    return Rows<uint32_t>{part_, begin, 0}[0];
  }

  /// Column `in` of a row as it comes is column `arranged` for the rotation, and `out` as it
  /// leaves.
  ROPE_INLINE void Connect(int32_t in, int32_t arranged, int32_t out) {
    constexpr int32_t kBytes = sizeof(float);
    Offsets(norm_.arrangement.arrange).SetValue(arranged, static_cast<uint32_t>(in * kBytes));
    Offsets(norm_.arrangement.put_back).SetValue(out, static_cast<uint32_t>(arranged * kBytes));
  }

  /// `width` columns of each row, by offsets from its beginning.
  ROPE_INLINE void Gather(const Rows<float>& to, const Rows<float>& from, int32_t offsets,
                          int32_t width, int32_t rows) {
    const int32_t full = width / kRepeatFloats, left = width - full * kRepeatFloats;
    const AscendC::LocalTensor<float> first = from[0];
    const AscendC::LocalTensor<uint32_t> by = Offsets(offsets);
    for (int32_t row = 0; row < rows; ++row) {
      const Rows<float> y = to.After(row * to.blocks * kBlockBytes);
      const uint32_t begin = static_cast<uint32_t>(row * from.blocks * kBlockBytes);
      if (full > 0) {
        AscendC::Gather(y[0], first, by, begin, uint64_t{kRepeatFloats}, static_cast<uint8_t>(full),
                        uint16_t{kRepeatBlocks});
      }
      if (left > 0) {
        const int32_t i = full * kRepeatFloats;
        AscendC::Gather(y[i], first, by[i], begin, static_cast<uint64_t>(left), uint8_t{1},
                        uint16_t{kRepeatBlocks});
      }
    }
    AscendC::ResetMask();
  }

  template <bool kSplit, bool kArrange, typename W>
  ROPE_INLINE void PrepareWeight(int32_t tensor, const AscendC::LocalTensor<uint8_t>& lines,
                                 const AscendC::LocalTensor<uint8_t>& planes) {
    const Rows<W> raw{part_, norm_.raw_weights + tensor * norm_.raw_weight_bytes, 0};
    const Rows<float> weight = Part(norm_.weights + tensor * norm_.weight_bytes);
    if constexpr (kSplit) {
      const int32_t count = norm_.weight_half_blocks, half = norm_.columns / 2;
      const Rows<W> even{planes, 0, 0}, odd = even.After(SplitBlocks(count) * kBlockBytes);
      PairRows seamless;
      seamless.MakeSeamless();
      SplitPairs<typename BitsOf<W>::Type>(
          {Address(raw), Address(lines), {Address(even), Address(odd)}}, seamless, count);
      Widen(weight, even, half);
      Widen(weight.After(p_.half_pitch * static_cast<int32_t>(sizeof(float))), odd, half);
    } else if constexpr (kArrange) {
      const Rows<float> wide{lines, 0, 0};
      Widen(wide, raw, norm_.columns);
      AscendC::PipeBarrier<PIPE_V>();
      Gather(weight, wide, norm_.arrangement.arrange, norm_.arrangement.width, 1);
    } else {
      Widen(weight, raw, norm_.columns);
    }
    AscendC::PipeBarrier<PIPE_V>();
  }

  template <typename W>
  ROPE_INLINE void Widen(const Rows<float>& to, const Rows<W>& from, int32_t count) {
    const float offset = norm_.weight_offset;
    if constexpr (sizeof(W) == sizeof(float)) {
      AscendC::Adds(to[0], from[0], offset, count);
    } else {
      AscendC::Cast(to[0], from[0], AscendC::RoundMode::CAST_NONE, static_cast<uint32_t>(count));
      AscendC::PipeBarrier<PIPE_V>();
      AscendC::Adds(to[0], to[0], offset, count);
    }
  }

  const RopeParams& p_;
  const RopeNormParams& norm_;
  AscendC::GlobalTensor<uint8_t> weight_in_[2];
  AscendC::LocalTensor<uint8_t> part_;  // of the unified buffer, cut as RopeNormParams says
  int32_t factor_;                      // where in it the rows' factors are made
};

}  // namespace npu_rope
