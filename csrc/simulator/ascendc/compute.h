// How vector instructions of all kinds compute: the operands of a call, then a loop over active
// lanes.
#pragma once

#include <algorithm>
#include <cmath>

#include "repeat_params.h"

namespace npu_rope::simulator {

using AscendC::BinaryRepeatParams;
using AscendC::CopyRepeatParams;
using AscendC::LocalTensor;
using AscendC::UnaryRepeatParams;

constexpr int64_t kMaxUint8 = 255;
constexpr int64_t kMaxCopyRepeatStride = 4095;

/// Sets the mask register as an instruction of the form with repeats does.
template <bool kSetMask>
void apply_mask(Core& core, const char* api, Where where, uint64_t mask, uint32_t element_bytes) {
  if constexpr (kSetMask) {
    core.set_mask_prefix(api, where, static_cast<int64_t>(mask), element_bytes);
  }
}
template <bool kSetMask>
void apply_mask(Core& core, const char* api, Where where, const uint64_t* mask,
                uint32_t element_bytes) {
  if constexpr (kSetMask) core.set_mask_array(api, where, mask, element_bytes);
}

template <typename T>
Operand strided(Core& core, const char* api, Where where, const LocalTensor<T>& tensor,
                const char* role, const char* block_name, int64_t block_stride, int64_t max_block,
                const char* repeat_name, int64_t repeat_stride, int64_t max_repeat) {
  core.expect_range(api, where, block_name, block_stride, 0, max_block);
  core.expect_range(api, where, repeat_name, repeat_stride, 0, max_repeat);
  Operand operand = tensor.as_operand(role);
  operand.block_stride = static_cast<uint32_t>(block_stride);
  operand.repeat_stride = static_cast<uint32_t>(repeat_stride);
  return operand;
}

/// The form for the first n elements: operands follow each other without gaps.
template <typename T>
Operand dense(const LocalTensor<T>& tensor, const char* role, uint32_t widest) {
  Operand operand = tensor.as_operand(role);
  operand.repeat_stride = static_cast<uint32_t>(kRepeatBlocks * sizeof(T) / widest);
  return operand;
}

template <typename T>
T* at(uint8_t* ub, const Operand& operand, uint32_t repeat, uint32_t lane) {
  const uint32_t per_block = kBlockBytes / sizeof(T);
  const uint32_t block = repeat * operand.repeat_stride + lane / per_block * operand.block_stride;
  return reinterpret_cast<T*>(ub + operand.address + block * kBlockBytes) + lane % per_block;
}

// g++ 12 at -O2 takes some of these loops, out of line, for functions that write nothing, though
// their code does (seen with Cast from half, and not with -fno-ipa-modref -fno-ipa-pure-const).
#define NPU_ROPE_INLINED __attribute__((always_inline))

/// Calls run(dst, src..., n) on stretches of lanes that lie densely in every operand.
template <typename Run>
void for_each_run(const VectorCall& call, Run run) {
  const Lanes& lanes = call.lanes;
  bool unit = lanes.prefix, seamless = lanes.prefix;
  for (int o = 0; o < call.operand_count; ++o) {
    const Operand& operand = call.operands[o];
    unit &= operand.block_stride == 1;
    seamless &= operand.repeat_stride * kBlockBytes == lanes.active * operand.element_bytes;
  }
  if (unit && seamless) {
    run(0, 0, (lanes.repeats - 1) * lanes.active + lanes.last);
    return;
  }
  uint32_t widest = 1;
  for (int o = 0; o < call.operand_count; ++o) {
    widest = std::max(widest, call.operands[o].element_bytes);
  }
  const uint32_t per_block = kBlockBytes / widest;
  for (uint32_t r = 0; r < lanes.repeats; ++r) {
    const uint32_t active = r + 1 == lanes.repeats ? lanes.last : lanes.active;
    if (unit) {
      run(r, 0, active);
    } else if (lanes.prefix) {
      for (uint32_t lane = 0; lane < active; lane += per_block) {
        run(r, lane, std::min(per_block, active - lane));
      }
    } else {
      for (uint32_t lane = 0; lane < lanes.per_repeat; ++lane) {
        if (lanes.is_active(lane)) run(r, lane, 1);
      }
    }
  }
}

template <typename D, typename S, typename F>
void compute_unary(Core& core, const VectorCall& call, F f) {
  core.vector(call);
  uint8_t* const ub = core.ub();
  for_each_run(call, [&](uint32_t repeat, uint32_t lane, uint32_t n) NPU_ROPE_INLINED {
    D* const dst = at<D>(ub, call.operands[0], repeat, lane);
    const S* const src = at<S>(ub, call.operands[1], repeat, lane);
    for (uint32_t i = 0; i < n; ++i) dst[i] = f(src[i]);
  });
}

template <typename T, typename F>
void compute_binary(Core& core, const VectorCall& call, F f) {
  core.vector(call);
  uint8_t* const ub = core.ub();
  for_each_run(call, [&](uint32_t repeat, uint32_t lane, uint32_t n) NPU_ROPE_INLINED {
    T* const dst = at<T>(ub, call.operands[0], repeat, lane);
    const T* const src0 = at<T>(ub, call.operands[1], repeat, lane);
    const T* const src1 = at<T>(ub, call.operands[2], repeat, lane);
    for (uint32_t i = 0; i < n; ++i) dst[i] = f(src0[i], src1[i]);
  });
}

template <typename T, bool kSetMask, typename Mask, typename F>
void binary(const char* api, Where where, const LocalTensor<T>& dst, const LocalTensor<T>& src0,
            const LocalTensor<T>& src1, Mask mask, int64_t repeats, const BinaryRepeatParams& p,
            bool may_accumulate, F f) {
  Core& core = Core::current();
  apply_mask<kSetMask>(core, api, where, mask, sizeof(T));
  VectorCall call{api, where, core.lanes(api, where, repeats, sizeof(T)), 3, {}, may_accumulate};
  call.operands[0] = strided(core, api, where, dst, "dst", "dstBlkStride", p.dstBlkStride,
                             kMaxUint8, "dstRepStride", p.dstRepStride, kMaxUint8);
  call.operands[1] = strided(core, api, where, src0, "src0", "src0BlkStride", p.src0BlkStride,
                             kMaxUint8, "src0RepStride", p.src0RepStride, kMaxUint8);
  call.operands[2] = strided(core, api, where, src1, "src1", "src1BlkStride", p.src1BlkStride,
                             kMaxUint8, "src1RepStride", p.src1RepStride, kMaxUint8);
  compute_binary<T>(core, call, f);
}

template <typename T, typename F>
void binary(const char* api, Where where, const LocalTensor<T>& dst, const LocalTensor<T>& src0,
            const LocalTensor<T>& src1, int64_t count, F f) {
  Core& core = Core::current();
  const Lanes lanes = core.counted_lanes(api, where, count, sizeof(T));
  VectorCall call{api, where, lanes, 3, {}, false};
  call.operands[0] = dense(dst, "dst", sizeof(T));
  call.operands[1] = dense(src0, "src0", sizeof(T));
  call.operands[2] = dense(src1, "src1", sizeof(T));
  compute_binary<T>(core, call, f);
  core.reset_mask();
}

template <typename D, typename S, bool kSetMask, typename Mask, typename F>
void unary(const char* api, Where where, const LocalTensor<D>& dst, const LocalTensor<S>& src,
           Mask mask, int64_t repeats, const UnaryRepeatParams& p, F f) {
  constexpr uint32_t kWidest = std::max(sizeof(D), sizeof(S));
  Core& core = Core::current();
  apply_mask<kSetMask>(core, api, where, mask, kWidest);
  VectorCall call{api, where, core.lanes(api, where, repeats, kWidest), 2, {}, false};
  call.operands[0] = strided(core, api, where, dst, "dst", "dstBlkStride", p.dstBlkStride,
                             kMaxUint16, "dstRepStride", p.dstRepStride, kMaxUint8);
  call.operands[1] = strided(core, api, where, src, "src", "srcBlkStride", p.srcBlkStride,
                             kMaxUint16, "srcRepStride", p.srcRepStride, kMaxUint8);
  compute_unary<D, S>(core, call, f);
}

template <typename D, typename S, bool kSetMask, typename F>
void unary(const char* api, Where where, const LocalTensor<D>& dst, const LocalTensor<S>& src,
           int64_t count, F f) {
  constexpr uint32_t kWidest = std::max(sizeof(D), sizeof(S));
  Core& core = Core::current();
  const Lanes lanes = kSetMask ? core.counted_lanes(api, where, count, kWidest)
                               : core.lanes(api, where, 1, kWidest);
  VectorCall call{api, where, lanes, 2, {}, false};
  call.operands[0] = dense(dst, "dst", kWidest);
  call.operands[1] = dense(src, "src", kWidest);
  compute_unary<D, S>(core, call, f);
  if (kSetMask) core.reset_mask();
}

/// A run of lanes gets one value.
template <typename T>
void compute_fill(Core& core, const VectorCall& call, T value) {
  core.vector(call);
  uint8_t* const ub = core.ub();
  for_each_run(call, [&](uint32_t repeat, uint32_t lane, uint32_t n) NPU_ROPE_INLINED {
    T* const dst = at<T>(ub, call.operands[0], repeat, lane);
    for (uint32_t i = 0; i < n; ++i) dst[i] = value;
  });
}

template <typename T, bool kSetMask, typename Mask>
void fill(Where where, const LocalTensor<T>& dst, T value, Mask mask, int64_t repeats,
          int64_t block_stride, int64_t repeat_stride) {
  constexpr const char* kApi = "Duplicate";
  Core& core = Core::current();
  apply_mask<kSetMask>(core, kApi, where, mask, sizeof(T));
  VectorCall call{kApi, where, core.lanes(kApi, where, repeats, sizeof(T)), 1, {}, false};
  call.operands[0] = strided(core, kApi, where, dst, "dst", "dstBlockStride", block_stride,
                             kMaxUint16, "dstRepeatStride", repeat_stride, kMaxUint8);
  compute_fill(core, call, value);
}

template <typename T, bool kSetMask, typename Mask>
void copy(Where where, const LocalTensor<T>& dst, const LocalTensor<T>& src, Mask mask,
          int64_t repeats, const CopyRepeatParams& p) {
  constexpr const char* kApi = "Copy";
  Core& core = Core::current();
  if (core.counter_mode()) {
    core.fail(kApi, where, "is simulated with masks only, expected SetMaskNorm() before");
  }
  apply_mask<kSetMask>(core, kApi, where, mask, sizeof(T));
  VectorCall call{kApi, where, core.lanes(kApi, where, repeats, sizeof(T)), 2, {}, false};
  call.operands[0] = strided(core, kApi, where, dst, "dst", "dstStride", p.dstStride, kMaxUint16,
                             "dstRepeatSize", p.dstRepeatSize, kMaxCopyRepeatStride);
  call.operands[1] = strided(core, kApi, where, src, "src", "srcStride", p.srcStride, kMaxUint16,
                             "srcRepeatSize", p.srcRepeatSize, kMaxCopyRepeatStride);
  compute_unary<T, T>(core, call, [](T value) { return value; });
}

/// The lanes of a destination that has one element for each `group` of its source's lanes: a group
/// without an active lane writes nothing.
inline Lanes reduced_lanes(const Lanes& lanes, uint32_t group) {
  Lanes reduced = lanes;
  reduced.per_repeat = lanes.per_repeat / group;
  reduced.active = (lanes.active + group - 1) / group;
  reduced.last = (lanes.last + group - 1) / group;
  reduced.bits[0] = reduced.bits[1] = 0;
  for (uint32_t lane = 0; !lanes.prefix && lane < lanes.per_repeat; ++lane) {
    if (lanes.is_active(lane)) reduced.bits[0] |= uint64_t{1} << lane / group;
  }
  return reduced;
}

/// Sums of each `group` lanes of a repeat, neighbours first and then neighbouring sums; lanes that
/// are not active count as 0. A repeat's results lie side by side, those of the next one
/// dst_repeat_stride times a full repeat's results further on.
template <uint32_t group, bool kSetMask, typename Mask>
void reduce_sum(const char* api, Where where, const LocalTensor<float>& dst,
                const LocalTensor<float>& src, Mask mask, int64_t repeats,
                int64_t dst_repeat_stride, int64_t src_block_stride, int64_t src_repeat_stride) {
  Core& core = Core::current();
  apply_mask<kSetMask>(core, api, where, mask, sizeof(float));
  const Lanes lanes = core.lanes(api, where, repeats, sizeof(float));
  VectorCall call{api, where, lanes, 2, {}, false, true, reduced_lanes(lanes, group)};
  core.expect_range(api, where, "dstRepStride", dst_repeat_stride, 0, kMaxUint16);
  call.operands[0] = dst.as_operand("dst");
  call.operands[0].repeat_stride =
      static_cast<uint32_t>(dst_repeat_stride) * (kRepeatBytes / group / kBlockBytes);
  call.operands[1] = strided(core, api, where, src, "src", "srcBlkStride", src_block_stride,
                             kMaxUint16, "srcRepStride", src_repeat_stride, kMaxUint16);
  core.vector(call);
  uint8_t* const ub = core.ub();
  for (uint32_t r = 0; r < lanes.repeats; ++r) {
    const uint32_t count = r + 1 == lanes.repeats ? lanes.last : lanes.active;
    const auto active = [&](uint32_t lane) {
      return lanes.prefix ? lane < count : lanes.is_active(lane);
    };
    for (uint32_t first = 0; first < lanes.per_repeat; first += group) {
      float sums[group];
      bool any = false;
      for (uint32_t i = 0; i < group; ++i) {
        const bool has = active(first + i);
        sums[i] = has ? *at<float>(ub, call.operands[1], r, first + i) : 0.0f;
        any |= has;
      }
      for (uint32_t n = group / 2; n > 0; n /= 2) {
        for (uint32_t i = 0; i < n; ++i) sums[i] = sums[2 * i] + sums[2 * i + 1];
      }
      if (any) *at<float>(ub, call.operands[0], r, first / group) = sums[0];
    }
  }
}

/// Eight elements a repeat, each to all of a block.
template <typename T>
void broadcast_to_blocks(Where where, const LocalTensor<T>& dst, const LocalTensor<T>& src,
                         int64_t repeats, const AscendC::BrcbRepeatParams& p) {
  constexpr const char* kApi = "Brcb";
  Core& core = Core::current();
  if (core.counter_mode()) {
    core.fail(kApi, where, "is simulated without counter mode, expected SetMaskNorm() before");
  }
  core.reset_mask();  // which CANN's function does, and leaves
  VectorCall call{kApi, where, core.lanes(kApi, where, repeats, sizeof(T)), 2, {}, false, true};
  call.dst_lanes = call.lanes;
  call.lanes.per_repeat = call.lanes.active = call.lanes.last = kRepeatBlocks;
  call.operands[0] = strided(core, kApi, where, dst, "dst", "dstBlkStride", p.dstBlkStride,
                             kMaxUint16, "dstRepStride", p.dstRepStride, kMaxUint16);
  call.operands[1] = src.as_operand("src");
  call.operands[1].repeat_stride = 1;
  core.vector(call);
  uint8_t* const ub = core.ub();
  constexpr uint32_t kPerBlock = kBlockBytes / sizeof(T);
  for (uint32_t r = 0; r < call.lanes.repeats; ++r) {
    for (uint32_t lane = 0; lane < kRepeatBlocks * kPerBlock; ++lane) {
      *at<T>(ub, call.operands[0], r, lane) = *at<T>(ub, call.operands[1], r, lane / kPerBlock);
    }
  }
}

/// Each lane gets the element of src that its offset leads to.
template <typename T>
void gather(Where where, const LocalTensor<T>& dst, const LocalTensor<T>& src,
            const LocalTensor<uint32_t>& offsets, uint32_t base, uint64_t mask, int64_t repeats,
            int64_t dst_step) {
  constexpr const char* kApi = "Gather";
  Core& core = Core::current();
  core.set_mask_prefix(kApi, where, static_cast<int64_t>(mask), sizeof(T));
  VectorCall call{kApi, where, core.lanes(kApi, where, repeats, sizeof(T)), 2, {}, false, true};
  call.dst_lanes = call.lanes;
  core.expect_range(kApi, where, "dstRepStride", dst_step, 0, kMaxUint16);
  core.expect_range(kApi, where, "srcBaseAddr", base, 0, int64_t{src.GetSize()} * sizeof(T) - 1);
  if (base % sizeof(T) != 0) {
    core.fail(kApi, where,
              "srcBaseAddr is " + std::to_string(base) + ", expected a multiple of " +
                  std::to_string(sizeof(T)) + " bytes");
  }
  call.operands[0] = dst.as_operand("dst");
  call.operands[0].repeat_stride = static_cast<uint32_t>(dst_step);
  call.operands[1] = offsets.as_operand("srcOffset");
  const Operand gathered = src.as_operand("src");
  call.gathered = &gathered;
  call.gathered_from = base;
  core.vector(call);
  uint8_t* const ub = core.ub();
  for (uint32_t r = 0; r < call.lanes.repeats; ++r) {
    for (uint32_t lane = 0; lane < call.lanes.active; ++lane) {
      const uint32_t offset = *at<uint32_t>(ub, call.operands[1], r, lane);
      std::memcpy(at<T>(ub, call.operands[0], r, lane), ub + gathered.address + base + offset,
                  sizeof(T));
    }
  }
}

/// Transposes 16 blocks: [16][16] elements of 2 bytes, or [16][8] of 4 bytes to [8][16], whose row
/// j is split over blocks 2j and 2j + 1.
template <typename T>
void transpose_blocks(const BlockListCall& call) {
  Core& core = Core::current();
  core.vector_lists(call);
  uint8_t* const ub = core.ub();
  constexpr uint32_t kWidth = kBlockBytes / sizeof(T);
  for (uint32_t r = 0; r < call.repeats; ++r) {
    T rows[16][kWidth];
    for (int i = 0; i < 16; ++i) {
      std::memcpy(rows[i], ub + call.src[i].address + r * call.src_step * kBlockBytes, kBlockBytes);
    }
    for (uint32_t d = 0; d < 16; ++d) {
      T block[kWidth];
      for (uint32_t i = 0; i < kWidth; ++i) {
        const uint32_t element = d * kWidth + i;  // of the transposed matrix, 16 wide
        block[i] = rows[element % 16][element / 16];
      }
      std::memcpy(ub + call.dst[d].address + r * call.dst_step * kBlockBytes, block, kBlockBytes);
    }
  }
}

/// Fills in what both forms of TransDataTo5HD share. With one repeat the chip applies the repeat
/// strides to it, with more only between them.
template <typename T>
BlockListCall transpose_call(const AscendC::TransDataTo5HDParams& p, Where where) {
  static_assert(one_of<T, int16_t, uint16_t, half, int32_t, uint32_t, float>(),
                "TransDataTo5HD does not take this dtype on arch 2201 or in the simulator");
  constexpr const char* kApi = "TransDataTo5HD";
  const Core& core = Core::current();
  core.expect_range(kApi, where, "repeatTimes", p.repeatTimes, 1, kMaxRepeats);
  core.expect_range(kApi, where, "dstRepStride", p.dstRepStride, 0, kMaxUint16);
  core.expect_range(kApi, where, "srcRepStride", p.srcRepStride, 0, kMaxUint16);
  BlockListCall call{};
  call.api = kApi;
  call.where = where;
  call.repeats = static_cast<uint32_t>(p.repeatTimes);
  call.dst_step = static_cast<uint32_t>(p.dstRepStride);
  call.src_step = static_cast<uint32_t>(p.srcRepStride);
  return call;
}

template <typename T>
void finish_transpose(BlockListCall& call) {
  if (call.repeats == 1) {
    for (int i = 0; i < 16; ++i) {
      call.dst[i].address += call.dst_step * kBlockBytes;
      call.src[i].address += call.src_step * kBlockBytes;
    }
  }
  transpose_blocks<T>(call);
}

inline float add(float a, float b) { return a + b; }
inline float subtract(float a, float b) { return a - b; }
inline float multiply(float a, float b) { return a * b; }
inline half add(half a, half b) { return half(float(a) + float(b)); }
inline half subtract(half a, half b) { return half(float(a) - float(b)); }
inline float divide(float a, float b) { return a / b; }
inline half divide(half a, half b) { return half(float(a) / float(b)); }
inline float square_root(float a) { return std::sqrt(a); }
inline half square_root(half a) { return half(std::sqrt(float(a))); }
inline half multiply(half a, half b) { return half(float(a) * float(b)); }

template <typename T>
constexpr bool kIsArithmetic = one_of<T, half, float>();

template <typename T>
constexpr bool kIsMovable =
    one_of<T, int16_t, uint16_t, half, bfloat16_t, int32_t, uint32_t, float>();

template <typename T>
constexpr bool kIsShiftable = one_of<T, int16_t, uint16_t, int32_t, uint32_t>();

template <typename T>
T shift_left(T value, T distance) {
  using Unsigned = std::make_unsigned_t<T>;
  const uint64_t wide = static_cast<Unsigned>(value);
  return static_cast<T>(static_cast<Unsigned>(wide << distance));
}

/// Arithmetic for signed types.
template <typename T>
T shift_right(T value, T distance) {
  return static_cast<T>(static_cast<int64_t>(value) >> distance);
}

template <typename T>
void check_shift(const char* api, Where where, T distance) {
  Core::current().expect_range(api, where, "scalarValue", static_cast<int64_t>(distance), 0,
                               8 * sizeof(T));
}

inline void expect_no_rounding(Where where, bool round) {
  if (round) {
    Core::current().fail("ShiftRight", where, "roundEn is true, expected false: not simulated");
  }
}

}  // namespace npu_rope::simulator
