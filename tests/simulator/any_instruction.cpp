// Runs any one vector instruction: y, x0 and x1 are images of UB; the instruction works from x0
// (and x1) into y, which was loaded too, so that lanes it leaves alone keep what they had.
#include "kernel_operator.h"
#include "params.h"

using namespace AscendC;

namespace {

enum Api {
  kAdd,
  kSub,
  kMul,
  kDiv,
  kAnd,
  kOr,
  kAdds,
  kMuls,
  kSqrt,
  kShiftLeft,
  kShiftRight,
  kNot,
  kCopy,
  kDuplicate,
  kBlockReduceSum,
  kPairReduceSum,
  kBrcb,
  kGather,
  kTranspose,
  kCast
};
enum Form { kCount, kMask, kBits, kCounter };

template <typename T>
constexpr bool kIsFloating = std::is_same_v<T, half> || std::is_same_v<T, float>;
template <typename T>
constexpr bool kIsInteger16 = std::is_same_v<T, int16_t> || std::is_same_v<T, uint16_t>;
template <typename T>
constexpr bool kIsInteger = std::is_integral_v<T>;

template <typename T>
struct Operands {
  LocalTensor<T> y, x0, x1;
};

BinaryRepeatParams Binary(const InstructionParams& p) {
  return BinaryRepeatParams(p.block_strides[0], p.block_strides[1], p.block_strides[2],
                            p.repeat_strides[0], p.repeat_strides[1], p.repeat_strides[2]);
}
UnaryRepeatParams Unary(const InstructionParams& p) {
  return UnaryRepeatParams(p.block_strides[0], p.block_strides[1], p.repeat_strides[0],
                           p.repeat_strides[1]);
}

// Calls CALL(<template arguments>, <what stands for the mask>) in the form asked for.
#define IN_FORM(COUNTED, MASKED)                       \
  switch (p.form) {                                    \
    case kCount:                                       \
      COUNTED;                                         \
      break;                                           \
    case kMask: {                                      \
      constexpr bool kSet = true;                      \
      const uint64_t mask = p.mask[0];                 \
      MASKED;                                          \
      break;                                           \
    }                                                  \
    case kBits: {                                      \
      constexpr bool kSet = true;                      \
      uint64_t mask[2] = {p.mask[0], p.mask[1]};       \
      MASKED;                                          \
      break;                                           \
    }                                                  \
    case kCounter: {                                   \
      constexpr bool kSet = false;                     \
      const uint64_t mask = MASK_PLACEHOLDER;          \
      SetMaskCount();                                  \
      SetVectorMask<T, MaskMode::COUNTER>(0, p.count); \
      MASKED;                                          \
      SetMaskNorm();                                   \
      ResetMask();                                     \
      break;                                           \
    }                                                  \
  }

template <typename T>
void Execute(const Operands<T>& o, const InstructionParams& p) {
  const T scalar = static_cast<T>(p.scalar);
  if constexpr (kIsFloating<T>) {
    if (p.api == kAdd) {
      IN_FORM(Add(o.y, o.x0, o.x1, p.count),
              (Add<T, kSet>(o.y, o.x0, o.x1, mask, p.repeats, Binary(p))))
    } else if (p.api == kSub) {
      IN_FORM(Sub(o.y, o.x0, o.x1, p.count),
              (Sub<T, kSet>(o.y, o.x0, o.x1, mask, p.repeats, Binary(p))))
    } else if (p.api == kMul) {
      IN_FORM(Mul(o.y, o.x0, o.x1, p.count),
              (Mul<T, kSet>(o.y, o.x0, o.x1, mask, p.repeats, Binary(p))))
    } else if (p.api == kDiv) {
      IN_FORM(Div(o.y, o.x0, o.x1, p.count),
              (Div<T, kSet>(o.y, o.x0, o.x1, mask, p.repeats, Binary(p))))
    } else if (p.api == kSqrt) {
      IN_FORM(Sqrt(o.y, o.x0, p.count), (Sqrt<T, kSet>(o.y, o.x0, mask, p.repeats, Unary(p))))
    } else if (p.api == kAdds) {
      IN_FORM(Adds(o.y, o.x0, scalar, p.count),
              (Adds<T, kSet>(o.y, o.x0, scalar, mask, p.repeats, Unary(p))))
    } else if (p.api == kMuls) {
      IN_FORM(Muls(o.y, o.x0, scalar, p.count),
              (Muls<T, kSet>(o.y, o.x0, scalar, mask, p.repeats, Unary(p))))
    }
  }
  if constexpr (std::is_same_v<T, float>) {
    if (p.api == kBlockReduceSum) {
      IN_FORM(ASSERT(false),
              (BlockReduceSum<T, kSet>(o.y, o.x0, p.repeats, mask, p.repeat_strides[0],
                                       p.block_strides[1], p.repeat_strides[1])))
    } else if (p.api == kPairReduceSum) {
      IN_FORM(ASSERT(false),
              (PairReduceSum<T, kSet>(o.y, o.x0, p.repeats, mask, p.repeat_strides[0],
                                      p.block_strides[1], p.repeat_strides[1])))
    }
  }
  if constexpr (sizeof(T) == 4) {
    if (p.api == kBrcb) {
      Brcb(o.y, o.x0, p.repeats, BrcbRepeatParams(p.block_strides[0], p.repeat_strides[0]));
    } else if (p.api == kGather) {  // x1 holds offsets, scalar is the base
      const auto offsets = o.x1.template ReinterpretCast<uint32_t>();
      const uint32_t base = static_cast<uint32_t>(p.scalar);
      if (p.form == kCount) {
        Gather(o.y, o.x0, offsets, base, static_cast<uint32_t>(p.count));
      } else {
        Gather(o.y, o.x0, offsets, base, p.mask[0], p.repeats, p.repeat_strides[0]);
      }
    }
  }
  if constexpr (kIsInteger16<T>) {
    if (p.api == kAnd) {
      IN_FORM(And(o.y, o.x0, o.x1, p.count),
              (And<T, kSet>(o.y, o.x0, o.x1, mask, p.repeats, Binary(p))))
    } else if (p.api == kOr) {
      IN_FORM(Or(o.y, o.x0, o.x1, p.count),
              (Or<T, kSet>(o.y, o.x0, o.x1, mask, p.repeats, Binary(p))))
    } else if (p.api == kNot) {
      IN_FORM(Not(o.y, o.x0, p.count), (Not<T, kSet>(o.y, o.x0, mask, p.repeats, Unary(p))))
    }
  }
  if constexpr (kIsInteger<T>) {
    if (p.api == kShiftLeft) {
      IN_FORM(ShiftLeft(o.y, o.x0, scalar, p.count),
              (ShiftLeft<T, kSet>(o.y, o.x0, scalar, mask, p.repeats, Unary(p))))
    } else if (p.api == kShiftRight) {
      IN_FORM(ShiftRight(o.y, o.x0, scalar, p.count),
              (ShiftRight<T, kSet>(o.y, o.x0, scalar, mask, p.repeats, Unary(p))))
    }
  }
  if (p.api == kCopy) {
    const CopyRepeatParams params(p.block_strides[0], p.block_strides[1], p.repeat_strides[0],
                                  p.repeat_strides[1]);
    IN_FORM(ASSERT(false), (Copy<T, kSet>(o.y, o.x0, mask, p.repeats, params)))
  } else if (p.api == kDuplicate) {
    IN_FORM(
        Duplicate(o.y, scalar, p.count),
        (Duplicate<T, kSet>(o.y, scalar, mask, p.repeats, p.block_strides[0], p.repeat_strides[0])))
  }
  if constexpr (!std::is_same_v<T, bfloat16_t>) {
    if (p.api == kTranspose) {  // lists with the operands' block strides
      uint64_t y[16], x[16];
      for (int i = 0; i < 16; ++i) {
        y[i] = o.y.GetPhyAddr() + 32 * i * p.block_strides[0];
        x[i] = o.x0.GetPhyAddr() + 32 * i * p.block_strides[1];
      }
      TransDataTo5HD<T>(
          y, x,
          TransDataTo5HDParams(false, false, p.repeats, p.repeat_strides[0], p.repeat_strides[1]));
    }
  }
}

template <typename D, typename S>
void ExecuteCast(const Operands<uint8_t>& o, const InstructionParams& p) {
  const LocalTensor<D> y = o.y.ReinterpretCast<D>();
  const LocalTensor<S> x = o.x0.ReinterpretCast<S>();
  const RoundMode mode = static_cast<RoundMode>(p.mode);
  using T = D;
  IN_FORM(Cast(y, x, mode, p.count), (Cast<D, S, kSet>(y, x, mode, mask, p.repeats, Unary(p))))
}

template <typename T>
void ExecuteAs(const Operands<uint8_t>& o, const InstructionParams& p) {
  Execute<T>({o.y.ReinterpretCast<T>(), o.x0.ReinterpretCast<T>(), o.x1.ReinterpretCast<T>()}, p);
}

}  // namespace

extern "C" __global__ __aicore__ void instruction(GM_ADDR y, GM_ADDR x0, GM_ADDR x1,
                                                  InstructionParams p) {
  TPipe pipe;
  TBuf<TPosition::VECIN> buffers[3];
  GM_ADDR addresses[3] = {y, x0, x1};
  LocalTensor<uint8_t> tensors[3];
  GlobalTensor<uint8_t> images[3];
  for (int i = 0; i < 3; ++i) {
    pipe.InitBuffer(buffers[i], p.bytes[i]);
    tensors[i] = buffers[i].Get<uint8_t>();
    images[i].SetGlobalBuffer((__gm__ uint8_t*)addresses[i]);
    DataCopy(tensors[i], images[i], p.bytes[i]);
  }
  PipeBarrier<PIPE_ALL>();
  const Operands<uint8_t> operands{tensors[0], tensors[1], tensors[2]};
  if (p.api < kCast) {
    switch (p.dtype) {
      case 0:
        ExecuteAs<half>(operands, p);
        break;
      case 1:
        ExecuteAs<bfloat16_t>(operands, p);
        break;
      case 2:
        ExecuteAs<float>(operands, p);
        break;
      case 3:
        ExecuteAs<int16_t>(operands, p);
        break;
      case 4:
        ExecuteAs<uint16_t>(operands, p);
        break;
      case 5:
        ExecuteAs<int32_t>(operands, p);
        break;
      case 6:
        ExecuteAs<uint32_t>(operands, p);
        break;
    }
  } else {
    switch (p.dtype) {
      case 0:
        ExecuteCast<float, half>(operands, p);
        break;
      case 1:
        ExecuteCast<float, bfloat16_t>(operands, p);
        break;
      case 2:
        ExecuteCast<half, float>(operands, p);
        break;
      case 3:
        ExecuteCast<bfloat16_t, float>(operands, p);
        break;
      case 4:
        ExecuteCast<float, float>(operands, p);
        break;
      case 5:
        ExecuteCast<int32_t, float>(operands, p);
        break;
    }
  }
  PipeBarrier<PIPE_ALL>();
  DataCopy(images[0], tensors[0], p.bytes[0]);
}
