// On the chip: interleaved rows that are rotated upright, 16 lines of a box side by side.
//
// One transpose (TransDataTo5HD) of 16 lines makes a block of each of their columns, and the list
// of where blocks go sets columns of first elements apart from those of second ones. What is
// rotated is then two planes without a gap, whatever head_dim is,
//
//   first elements:   [row of a line][pair][16 lines]        second elements:   the same
//
// and one more transpose lays the result down again. The tables of a tile stand the same way: of
// 16 tokens where a line is a token's heads, so that all rows of a line read the same; of each
// token 16 times over where a line is a head's tokens. Where a box has less than 16 lines, what is
// there of earlier ones is rotated beside them and goes nowhere.
//
// Lines lie an odd number of blocks apart, so that no two of them meet in a bank group (rows of
// tables an even one, which is no multiple of 4: two of them meet, and a transpose takes two).
#pragma once

#include "kernel_operator.h"
#include "rope_pairs.h"
#include "rope_params.h"
#include "rope_rows.h"

namespace npu_rope {

template <typename T>
class UprightStep {
  using Bits = typename BitsOf<T>::Type;
  static constexpr bool kFloat = sizeof(T) == sizeof(float);
  static constexpr int32_t kFloatBytes = sizeof(float);
  static constexpr int32_t kFloatBlock = kBlockBytes / kFloatBytes;
  static constexpr int32_t kRepeatBlocks = kRepeatFloats / kFloatBlock;

 public:
  ROPE_INLINE explicit UprightStep(const RopeParams& params) : p_(params) {}

  ROPE_INLINE void Init(const AscendC::LocalTensor<uint8_t>& work,
                        const AscendC::LocalTensor<uint8_t>& tables,
                        const AscendC::LocalTensor<uint8_t>& cos_product,
                        const AscendC::LocalTensor<uint8_t>& sin_product,
                        const AscendC::LocalTensor<uint8_t>& ring) {
    ring_ = ring;
    work_ = work;
    tables_ = tables;
    cos_product_ = cos_product;
    sin_product_ = sin_product;
  }

  /// Lines that a box does not have are rotated, too: from zeros on.
  ROPE_INLINE void Start() {
    const float zero = 0.0f;
    AscendC::Duplicate(Rows<float>{ring_, 0, 0}[0], zero, kRing * p_.ub.slot_bytes / kFloatBytes);
    AscendC::PipeBarrier<PIPE_V>();
  }

  /// C and S of `tokens` tokens as rows, one after the other -> upright.
  ROPE_INLINE void StandTables(const AscendC::LocalTensor<uint8_t>& rows, int32_t tokens) {
    const bool alike = p_.upright == kUprightHeads;
    const int32_t columns = 2 * p_.half / kFloatBlock;  // blocks of them
    const int32_t pitch = p_.float_blocks * kBlockBytes;
    for (int32_t i = 0; i < 2; ++i) {
      uint64_t to[kUnit], from[kUnit];
      const uint64_t upright = Address(tables_, i * p_.ub.upright_bytes);
      uint64_t row = Address(rows, i * tokens * pitch);
      for (int32_t l = 0; l < kUnit; ++l) {
        to[l] = upright + l * kBlockBytes;
        from[l] = row;
        if (!alike && l + 1 < tokens) row += pitch;
      }
      Transpose<float>(to, kUnit * kBlockBytes, from, kBlockBytes,
                       alike ? columns * tokens : columns);
    }
    AscendC::PipeBarrier<PIPE_V>();
  }

  /// Rotates a box in place: lines of `run` rows, the first at byte `at` of the ring. A box has all
  /// tokens of its tile.
  ROPE_INLINE void Rotate(const RopeTensor& t, int32_t at, int32_t run) {
    const int32_t blocks = run * t.row_blocks;  // of a line
    const int32_t pitch = (blocks + t.in.columns[0].ub_gap) * kBlockBytes;
    const int32_t plane = blocks * kBlockBytes * kUnit / 2;  // bytes of a plane of T
    const int32_t second = plane * (kFloatBytes / static_cast<int32_t>(sizeof(T)));
    const Rows<float> x{work_, 0, 0}, p{cos_product_, 0, 0}, q{sin_product_, 0, 0};
    const Rows<T> narrow{kFloat ? work_ : cos_product_, 0, 0};
    const uint8_t repeats = static_cast<uint8_t>(second / (kRepeatBlocks * kBlockBytes));
    const uint64_t line = Address(ring_, at);
    {
      uint64_t to[kUnit], from[kUnit];
      for (int32_t i = 0; i < kUnit; ++i) {
        to[i] = Address(narrow) + PlaceOf(i, plane);
        from[i] = line + i * pitch;
      }
      Transpose<Bits>(to, kUnit / 2 * kBlockBytes, from, kBlockBytes, blocks);
      AscendC::PipeBarrier<PIPE_V>();
    }
    if constexpr (!kFloat) Cast(x, narrow, 2 * repeats, AscendC::RoundMode::CAST_NONE);
    Multiply(run, second);
    if constexpr (!kFloat) {
      if (p_.round_each) RoundProducts(2 * repeats, 2 * plane);
    }
    const bool swap = p_.transpose;  // y1 = P1 - Q2, y2 = P2 + Q1; transposed the signs change
    const int32_t a = swap ? second : 0, b = swap ? 0 : second;
    const AscendC::BinaryRepeatParams dense(1, 1, 1, kRepeatBlocks, kRepeatBlocks, kRepeatBlocks);
    AscendC::Sub<float, false>(x.After(a)[0], p.After(a)[0], q.After(b)[0],
                               AscendC::MASK_PLACEHOLDER, repeats, dense);
    AscendC::Add<float, false>(x.After(b)[0], p.After(b)[0], q.After(a)[0],
                               AscendC::MASK_PLACEHOLDER, repeats, dense);
    AscendC::PipeBarrier<PIPE_V>();
    if constexpr (!kFloat) Cast(narrow, x, 2 * repeats, AscendC::RoundMode::CAST_RINT);
    {
      uint64_t to[kUnit], from[kUnit];
      for (int32_t i = 0; i < kUnit; ++i) {
        to[i] = line + RowOf<Bits>(i) * pitch;
        from[i] = Address(narrow) + PlaceOf(LineOf<Bits>(i), plane);
      }
      Transpose<Bits>(to, kBlockBytes, from, kUnit / 2 * kBlockBytes, blocks);
      AscendC::PipeBarrier<PIPE_V>();
    }
  }

 private:
  /// Bytes from the planes to block i of what a transpose gives for a block of columns: a column of
  /// 16 lines is one block of 16 bits, two of 32. Columns of second elements go `plane` further.
  ROPE_INLINE int32_t PlaceOf(int32_t i, int32_t plane) {
    constexpr int32_t kColumn = sizeof(T) / sizeof(uint16_t);  // blocks
    const int32_t column = i / kColumn;
    return column % 2 * plane + (column / 2 * kColumn + i % kColumn) * kBlockBytes;
  }

  template <typename D, typename S>
  ROPE_INLINE void Cast(const Rows<D>& to, const Rows<S>& from, int32_t repeats,
                        AscendC::RoundMode mode) {
    constexpr uint8_t to_blocks = kRepeatFloats * sizeof(D) / kBlockBytes;
    constexpr uint8_t from_blocks = kRepeatFloats * sizeof(S) / kBlockBytes;
    AscendC::Cast<D, S, false>(to[0], from[0], mode, AscendC::MASK_PLACEHOLDER,
                               static_cast<uint8_t>(repeats),
                               AscendC::UnaryRepeatParams(1, 1, to_blocks, from_blocks));
    AscendC::PipeBarrier<PIPE_V>();
  }

  /// P = x*C, Q = x*S: both planes of one row of all lines by one instruction each.
  ROPE_INLINE void Multiply(int32_t run, int32_t second) {
    const int32_t half = p_.half * kUnit * kFloatBytes;  // bytes of a row in a plane
    const uint8_t repeats = static_cast<uint8_t>(half / (kRepeatBlocks * kBlockBytes));
    const bool alike = p_.upright == kUprightHeads;
    const AscendC::BinaryRepeatParams dense(1, 1, 1, kRepeatBlocks, kRepeatBlocks, kRepeatBlocks);
    Rows<float> c{tables_, 0, 0};
    Rows<float> x{work_, 0, 0}, p{cos_product_, 0, 0}, q{sin_product_, 0, 0};
    for (;;) {
      const Rows<float> s = c.After(p_.ub.upright_bytes);
      AscendC::Mul<float, false>(p[0], x[0], c[0], AscendC::MASK_PLACEHOLDER, repeats, dense);
      AscendC::Mul<float, false>(q[0], x[0], s[0], AscendC::MASK_PLACEHOLDER, repeats, dense);
      AscendC::Mul<float, false>(p.After(second)[0], x.After(second)[0], c.After(half)[0],
                                 AscendC::MASK_PLACEHOLDER, repeats, dense);
      AscendC::Mul<float, false>(q.After(second)[0], x.After(second)[0], s.After(half)[0],
                                 AscendC::MASK_PLACEHOLDER, repeats, dense);
      if (--run == 0) break;
      x.begin += half;
      p.begin += half;
      q.begin += half;
      if (alike) c.begin += 2 * half;
    }
    AscendC::PipeBarrier<PIPE_V>();
  }

  /// P and Q as eager PyTorch has them: rounded to T, `bytes` each. x is needed no more.
  ROPE_INLINE void RoundProducts(int32_t repeats, int32_t bytes) {
    const Rows<float> p{cos_product_, 0, 0}, q{sin_product_, 0, 0};
    const Rows<T> rounded{work_, 0, 0};
    Cast(rounded, p, repeats, AscendC::RoundMode::CAST_RINT);
    Cast(rounded.After(bytes), q, repeats, AscendC::RoundMode::CAST_RINT);
    Cast(p, rounded, repeats, AscendC::RoundMode::CAST_NONE);
    Cast(q, rounded.After(bytes), repeats, AscendC::RoundMode::CAST_NONE);
  }

  const RopeParams& p_;
  AscendC::LocalTensor<uint8_t> work_;    // rows in fp32, upright: x, then y
  AscendC::LocalTensor<uint8_t> tables_;  // C and then S of the tile, upright
  AscendC::LocalTensor<uint8_t> cos_product_, sin_product_, ring_;
};

}  // namespace npu_rope
