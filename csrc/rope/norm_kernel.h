// On the chip: RMSNorm of rows in fp32, a step of rope_kernel.h before the rotation.
//
//   s = the sum of x*x, added pairwise,  f = 1 / sqrt(s * (1 / head_dim) + eps),  n = x * f * w
//
// The order of the sum is that of the instructions: BlockReduceSum adds the 8 floats of a block in
// a binary tree, PairReduceSum neighbours. A row's squares become a sum for each of its blocks, of
// which it has a power of two (what it lacks is 0), and these one sum by further rounds over all
// rows side by side. The order is that in which rows were loaded; where pairs are two halves by the
// time they are multiplied, so are the weights.
//
// Repeats for a row of 128: squares 2, sums 2 and 1/4, n 4; the rest takes 1/8 for the factors'
// blocks and 1/64 for each step to them. 16-bit pairs are widened once more, as loaded: 2.
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

 public:
  ROPE_INLINE explicit NormStep(const RopeParams& params) : p_(params), norm_(params.norm) {}

  ROPE_INLINE void Init(const AscendC::LocalTensor<uint8_t>& part, GM_ADDR q_weight,
                        GM_ADDR k_weight) {
    part_ = part;
    weight_in_[0].SetGlobalBuffer(q_weight);
    weight_in_[1].SetGlobalBuffer(k_weight);
  }

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
  /// multiplied. lines and planes are scratch of SplitPairs.
  template <bool kSplit>
  ROPE_INLINE void PrepareWeights(const AscendC::LocalTensor<uint8_t>& lines,
                                  const AscendC::LocalTensor<uint8_t>& planes) {
    const float zero = 0.0f, one = 1.0f;
    // Brcb reads eight factors at once, of which some may be no row's.
    AscendC::Duplicate(Rows<float>{lines, 0, 0}[0], zero,
                       (p_.step_rows + kRepeatBlocks - 1) & -kRepeatBlocks);
    AscendC::Duplicate(Part(norm_.ones)[0], one, int32_t{kFloatBlock});
    if constexpr (kSplit) {  // padding lanes are multiplied too: make them 0
      AscendC::Duplicate(Part(norm_.weights)[0], zero,
                         2 * norm_.weight_bytes / static_cast<int32_t>(sizeof(float)));
    }
    AscendC::PipeBarrier<PIPE_V>();
    AscendC::WaitFlag<AscendC::HardEvent::MTE2_V>(kWeights);
    for (int32_t i = 0; i < 2; ++i) {
      if (norm_.tensors[i] == 0) continue;
      if (norm_.weight_dtype == kTableFloat16) PrepareWeight<kSplit, half>(i, lines, planes);
      if (norm_.weight_dtype == kTableBFloat16) PrepareWeight<kSplit, bfloat16_t>(i, lines, planes);
      if (norm_.weight_dtype == kTableFloat32) PrepareWeight<kSplit, float>(i, lines, planes);
    }
  }

  /// The factors f of `rows` rows x as loaded, each in all of a block of `sums`. products: scratch
  /// of as many rows. shift: as in RopeKernel's Steps.
  ROPE_INLINE void MakeFactors(const Rows<float>& x, const Rows<float>& products, int32_t shift,
                               int32_t rows) {
    if (norm_.full == 0) shift = 0;
    const int32_t repeats = rows << shift, blocks = products.blocks >> shift;
    const uint8_t pitch = static_cast<uint8_t>(x.blocks >> shift);
    const AscendC::BinaryRepeatParams square(1, 1, 1, static_cast<uint8_t>(blocks), pitch, pitch);
    const Rows<float> sums = Part(norm_.sums);
    const int32_t width = norm_.columns >> shift;
    if (norm_.gaps) {
      const float zero = 0.0f;
      AscendC::Duplicate(sums[0], zero, rows * norm_.sum_blocks * kFloatBlock);
    }
    int32_t i = 0;
    do {
      if (width - i < kRepeatFloats) AscendC::SetVectorMask<float>(0, norm_.mask);
      AscendC::Mul<float, false>(products[i], x[i], x[i], AscendC::MASK_PLACEHOLDER,
                                 static_cast<uint8_t>(repeats), square);
      i += kRepeatFloats;
    } while (i < width);
    if (i > width) AscendC::ResetMask();
    AscendC::PipeBarrier<PIPE_V>();
    i = 0;
    do {
      if (width - i < kRepeatFloats) AscendC::SetVectorMask<float>(0, norm_.mask);
      AscendC::BlockReduceSum<float, false>(sums[i / kFloatBlock], products[i], repeats,
                                            AscendC::MASK_PLACEHOLDER, norm_.sum_blocks >> shift, 1,
                                            blocks);
      i += kRepeatFloats;
    } while (i < width);
    AscendC::PipeBarrier<PIPE_V>();

    // All rows side by side: `left` sums of each become one.
    AscendC::SetMaskCount();
    int32_t left = norm_.sum_blocks * kFloatBlock;
    bool back = false;  // to `sums`, from `products`
    do {
      const AscendC::LocalTensor<float> to = back ? sums[0] : products[0];
      const AscendC::LocalTensor<float> from = back ? products[0] : sums[0];
      AscendC::SetVectorMask<float, AscendC::MaskMode::COUNTER>(0, rows * left);
      if (left >= kFloatBlock) {
        AscendC::BlockReduceSum<float, false>(to, from, 1, AscendC::MASK_PLACEHOLDER, 1, 1,
                                              kRepeatBlocks);
        left /= kFloatBlock;
      } else {
        AscendC::PairReduceSum<float, false>(to, from, 1, AscendC::MASK_PLACEHOLDER, 1, 1,
                                             kRepeatBlocks);
        left /= 2;
      }
      AscendC::PipeBarrier<PIPE_V>();
      back = !back;
    } while (left > 1);
    AscendC::SetVectorMask<float, AscendC::MaskMode::COUNTER>(0, rows);
    const AscendC::UnaryRepeatParams dense(1, 1, kRepeatBlocks, kRepeatBlocks);
    const float share = norm_.share, eps = norm_.eps;
    const Rows<float>& factors = products;  // one after another
    AscendC::Muls<float, false>(factors[0], back ? products[0] : sums[0], share,
                                AscendC::MASK_PLACEHOLDER, 1, dense);
    AscendC::PipeBarrier<PIPE_V>();
    AscendC::Adds<float, false>(factors[0], factors[0], eps, AscendC::MASK_PLACEHOLDER, 1, dense);
    AscendC::PipeBarrier<PIPE_V>();
    AscendC::Sqrt<float, false>(factors[0], factors[0], AscendC::MASK_PLACEHOLDER, 1, dense);
    AscendC::PipeBarrier<PIPE_V>();
    AscendC::Div<float, false>(
        factors[0], Part(norm_.ones)[0], factors[0], AscendC::MASK_PLACEHOLDER, 1,
        AscendC::BinaryRepeatParams(1, 0, 1, kRepeatBlocks, 0, kRepeatBlocks));
    AscendC::PipeBarrier<PIPE_V>();
    AscendC::SetMaskNorm();
    AscendC::ResetMask();
    AscendC::Brcb(sums[0], factors[0],
                  static_cast<uint8_t>((rows + kRepeatBlocks - 1) / kRepeatBlocks),
                  AscendC::BrcbRepeatParams(1, kRepeatBlocks));
    AscendC::PipeBarrier<PIPE_V>();
  }

  /// x = x * f * w, with the factors made last. tensor: whose weight.
  ROPE_INLINE void Multiply(const Rows<float>& x, const Rows<float>& products, int32_t tensor,
                            int32_t rows) {
    const uint8_t blocks = static_cast<uint8_t>(products.blocks);
    const uint8_t pitch = static_cast<uint8_t>(x.blocks);
    const Rows<float> weight = Part(norm_.weights + tensor * norm_.weight_bytes);
    Multiply<false>(products, x, Part(norm_.sums),
                    AscendC::BinaryRepeatParams(1, 1, 0, blocks, pitch, 1), rows);
    Multiply<true>(x, products, weight, AscendC::BinaryRepeatParams(1, 1, 1, pitch, blocks, 0),
                   rows);
  }

 private:
  ROPE_INLINE Rows<float> Part(int32_t begin) const { return {part_, begin, 0}; }

  template <bool kSplit, typename W>
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

  /// to = from * by, over the columns of rows. kColumns: `by` has them too.
  template <bool kColumns>
  ROPE_INLINE void Multiply(const Rows<float>& to, const Rows<float>& from, const Rows<float>& by,
                            const AscendC::BinaryRepeatParams& params, int32_t rows) {
    const RopeChunks& chunks = norm_.row;
    int32_t i = 0;
    do {
      if (i == chunks.full) AscendC::SetVectorMask<float>(0, chunks.mask);
      const int32_t c = chunks.columns[i];
      AscendC::Mul<float, false>(to[c], from[c], by[kColumns ? c : 0], AscendC::MASK_PLACEHOLDER,
                                 static_cast<uint8_t>(rows), params);
    } while (++i < chunks.count);
    if (chunks.count > chunks.full) AscendC::ResetMask();
    AscendC::PipeBarrier<PIPE_V>();
  }

  const RopeParams& p_;
  const RopeNormParams& norm_;
  AscendC::GlobalTensor<uint8_t> weight_in_[2];
  AscendC::LocalTensor<uint8_t> part_;  // of the unified buffer, cut as RopeNormParams says
};

}  // namespace npu_rope
