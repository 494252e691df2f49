// Ascend C as far as the scalar unit sees it, for counting: the scalar work of CANN's own inline
// functions in a release build (strides packed into a configuration word, masks, addresses, event
// bookkeeping), and one marked nop for each instruction that the scalar unit hands to a pipe or
// writes to a special register. Nothing is computed. Functions are declared inline as CANN's are,
// which a compiler weighs: without it counts are up to a fifth higher. Follows the headers of CANN
// 8.1 and 9.1 for arch 2201; what the simulator's headers do not know is not here either.
#pragma once

#include <cstdint>

#define __aicore__
#define __global__
#define __gm__
#define GM_ADDR uint8_t*
#define KERNEL_TASK_TYPE_DEFAULT(type)

// What a marked nop stands for; driver.cpp and plugin.c count by these numbers. All between kBegin
// and kEnd is the kernel's.
enum Issued {
  kVector = 1,
  kLoad,
  kStore,
  kSetFlag,
  kWaitFlag,
  kBarrier,
  kMask,
  kOther,
  kBegin = 100,
  kEnd
};

#if defined(__x86_64__)
#define ISSUE_TEXT ".byte 0x0f, 0x1f, 0x80\n.long 0x5ca1a000 + %c0"  // nopl 0x5ca1a0nn(%rax)
#elif defined(__aarch64__)
#define ISSUE_TEXT "movz xzr, %c0"
#endif
#define ISSUE0(what) asm volatile(ISSUE_TEXT ::"i"(what))
#define ISSUE_ALONE(what) asm volatile(ISSUE_TEXT ::"i"(what) : "memory")
#define ISSUE1(what, a) asm volatile(ISSUE_TEXT ::"i"(what), "r"(a))
#define ISSUE2(what, a, b) asm volatile(ISSUE_TEXT ::"i"(what), "r"(a), "r"(b))
#define ISSUE3(what, a, b, c) asm volatile(ISSUE_TEXT ::"i"(what), "r"(a), "r"(b), "r"(c))
#define ISSUE4(what, a, b, c, d) \
  asm volatile(ISSUE_TEXT ::"i"(what), "r"(a), "r"(b), "r"(c), "r"(d))

enum pipe_t { PIPE_V, PIPE_MTE2, PIPE_MTE3, PIPE_ALL };

struct half {
  uint16_t bits;
};
struct bfloat16_t {
  uint16_t bits;
};

extern int64_t block_index;

namespace AscendC {

enum class HardEvent { MTE2_V, V_MTE2, MTE3_V, V_MTE3, MTE3_MTE2, S_V };
enum class RoundMode { CAST_NONE, CAST_RINT };
enum class TPosition : uint8_t { VECIN = 9, VECOUT, VECCALC };
enum class CacheMode { CACHE_MODE_DISABLE = 0, CACHE_MODE_NORMAL = 1 };
constexpr uint64_t MASK_PLACEHOLDER = 0;

// ---- Tensors ------------------------------------------------------------------------------------

template <typename T>
class LocalTensor {
 public:
  struct {
    uint32_t dataLen, bufferAddr;
    void* bufferHandle;
    uint8_t logicPos;
  } address_;

  LocalTensor operator[](const uint32_t offset) const {
    LocalTensor result = *this;
    result.address_.dataLen -= offset * sizeof(T);
    result.address_.bufferAddr += offset * sizeof(T);
    return result;
  }
  template <typename U>
  LocalTensor<U> ReinterpretCast() const {
    LocalTensor<U> result;
    result.address_.dataLen = address_.dataLen;
    result.address_.bufferAddr = address_.bufferAddr;
    result.address_.bufferHandle = address_.bufferHandle;
    result.address_.logicPos = address_.logicPos;
    return result;
  }
  void SetSize(const uint32_t size) { address_.dataLen = size * sizeof(T); }
  void SetValue(const uint32_t index, const T value) const {
    ISSUE2(kOther, address_.bufferAddr + index * sizeof(T), value);
  }
  uint64_t GetPhyAddr() const { return address_.bufferAddr; }
  bool in_ub() const {
    return address_.logicPos >= static_cast<uint8_t>(TPosition::VECIN) &&
           address_.logicPos <= static_cast<uint8_t>(TPosition::VECCALC);
  }
};

template <typename T>
class GlobalTensor {
 public:
  void SetGlobalBuffer(T* buffer) {
    address_ = original_ = buffer;
    mode_ = CacheMode::CACHE_MODE_NORMAL;
  }
  void SetL2CacheHint(CacheMode mode) {
    mode_ = mode;
    const uint64_t past_l2 = mode == CacheMode::CACHE_MODE_DISABLE ? uint64_t{1} << 60 : 0;
    address_ = reinterpret_cast<T*>(reinterpret_cast<uint64_t>(original_) | past_l2);
  }
  GlobalTensor operator[](const uint64_t offset) const {
    GlobalTensor result = *this;
    result.address_ += offset;
    return result;
  }
  T* GetPhyAddr() const { return address_; }

 private:
  T *address_, *original_;
  CacheMode mode_;
};

// ---- Masks --------------------------------------------------------------------------------------

enum class MaskMode : uint8_t { NORMAL = 0, COUNTER };

template <typename T, MaskMode mode = MaskMode::NORMAL>
inline void SetVectorMask(const uint64_t high, const uint64_t low) {
  ISSUE1(kMask, high);
  ISSUE1(kMask, low);
}
inline void ResetMask() {
  ISSUE1(kMask, ~uint64_t{0});
  ISSUE1(kMask, ~uint64_t{0});
}
inline void SetMaskCount() { ISSUE0(kOther); }
inline void SetMaskNorm() { ISSUE0(kOther); }
template <typename T>
inline void SetMask(uint64_t lanes) {
  const auto ones = [](uint64_t n) { return n >= 64 ? ~uint64_t{0} : (uint64_t{1} << n) - 1; };
  SetVectorMask<T>(lanes > 64 ? ones(lanes - 64) : 0, ones(lanes));
}

// ---- Vector instructions ------------------------------------------------------------------------

struct BinaryRepeatParams {
  BinaryRepeatParams() = default;
  constexpr BinaryRepeatParams(uint8_t dst_block, uint8_t src0_block, uint8_t src1_block,
                               uint8_t dst_repeat, uint8_t src0_repeat, uint8_t src1_repeat)
      : dstBlkStride(dst_block),
        src0BlkStride(src0_block),
        src1BlkStride(src1_block),
        dstRepStride(dst_repeat),
        src0RepStride(src0_repeat),
        src1RepStride(src1_repeat) {}
  uint8_t dstBlkStride, src0BlkStride, src1BlkStride, dstRepStride, src0RepStride, src1RepStride;

  uint64_t packed(uint8_t repeats) const {
    return uint64_t{repeats} << 56 | uint64_t{src1RepStride} << 40 | uint64_t{src0RepStride} << 32 |
           uint64_t{dstRepStride} << 24 | uint64_t{src1BlkStride} << 16 |
           uint64_t{src0BlkStride} << 8 | dstBlkStride;
  }
};
struct UnaryRepeatParams {
  constexpr UnaryRepeatParams(uint16_t dst_block, uint16_t src_block, uint8_t dst_repeat,
                              uint8_t src_repeat)
      : dstBlkStride(dst_block),
        srcBlkStride(src_block),
        dstRepStride(dst_repeat),
        srcRepStride(src_repeat) {}
  uint16_t dstBlkStride, srcBlkStride;
  uint8_t dstRepStride, srcRepStride;

  uint64_t packed(uint8_t repeats) const {
    return uint64_t{repeats} << 56 | uint64_t{srcRepStride} << 40 | uint64_t{dstRepStride} << 32 |
           uint64_t{srcBlkStride} << 16 | dstBlkStride;
  }
};
struct CopyRepeatParams {
  uint16_t dstStride = 0, srcStride = 0, dstRepeatSize = 8, srcRepeatSize = 8;
};
struct TransDataTo5HDParams {
  bool dstHighHalf = false, srcHighHalf = false;
  uint8_t repeatTimes = 1;
  uint16_t dstRepStride = 0, srcRepStride = 0;
};

#define BINARY(name)                                                                    \
  template <typename T, bool isSetMask = true>                                          \
  inline void name(const LocalTensor<T>& dst, const LocalTensor<T>& src0,               \
                   const LocalTensor<T>& src1, uint64_t mask, const uint8_t repeatTime, \
                   const BinaryRepeatParams& params) {                                  \
    if (isSetMask) SetMask<T>(mask);                                                    \
    ISSUE4(kVector, dst.GetPhyAddr(), src0.GetPhyAddr(), src1.GetPhyAddr(),             \
           params.packed(repeatTime));                                                  \
  }
BINARY(Add)
BINARY(Sub)
BINARY(Mul)
BINARY(Div)
BINARY(And)
BINARY(Or)
#undef BINARY

#define SCALAR(name)                                                                           \
  template <typename T, bool isSetMask = true>                                                 \
  inline void name(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& value,       \
                   uint64_t mask, const uint8_t repeatTime, const UnaryRepeatParams& params) { \
    if (isSetMask) SetMask<T>(mask);                                                           \
    ISSUE4(kVector, dst.GetPhyAddr(), src.GetPhyAddr(), value, params.packed(repeatTime));     \
  }                                                                                            \
  template <typename T>                                                                        \
  inline void name(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& value,       \
                   const int32_t& count) {                                                     \
    SetMaskCount();                                                                            \
    SetVectorMask<T>(0, static_cast<uint64_t>(count));                                         \
    ISSUE4(kVector, dst.GetPhyAddr(), src.GetPhyAddr(), value,                                 \
           (UnaryRepeatParams{1, 1, 8, 8}.packed(1)));                                         \
    SetMaskNorm();                                                                             \
    ResetMask();                                                                               \
  }
SCALAR(Adds)
SCALAR(Muls)
#undef SCALAR
template <typename T, bool isSetMask = true>
inline void Sqrt(const LocalTensor<T>& dst, const LocalTensor<T>& src, uint64_t mask,
                 const uint8_t repeatTime, const UnaryRepeatParams& params) {
  if (isSetMask) SetMask<T>(mask);
  ISSUE3(kVector, dst.GetPhyAddr(), src.GetPhyAddr(), params.packed(repeatTime));
}
#define REDUCTION(name)                                                                        \
  template <typename T, bool isSetMask = true>                                                 \
  inline void name(const LocalTensor<T>& dst, const LocalTensor<T>& src, const int32_t repeat, \
                   const int32_t mask, const int32_t dstRepStride, const int32_t srcBlkStride, \
                   const int32_t srcRepStride) {                                               \
    if (isSetMask) SetMask<T>(static_cast<uint64_t>(mask));                                    \
    ISSUE3(kVector, dst.GetPhyAddr(), src.GetPhyAddr(),                                        \
           uint64_t{static_cast<uint8_t>(repeat)} << 56 |                                      \
               uint64_t{static_cast<uint16_t>(dstRepStride)} |                                 \
               uint64_t{static_cast<uint16_t>(srcBlkStride)} << 16 |                           \
               uint64_t{static_cast<uint16_t>(srcRepStride)} << 32);                           \
  }
REDUCTION(BlockReduceSum)
REDUCTION(PairReduceSum)
#undef REDUCTION
struct BrcbRepeatParams {
  constexpr BrcbRepeatParams(uint16_t dst_block, uint16_t dst_repeat)
      : dstBlkStride(dst_block), dstRepStride(dst_repeat) {}
  uint16_t dstBlkStride, dstRepStride;
};
template <typename T>
inline void Brcb(const LocalTensor<T>& dst, const LocalTensor<T>& src, const uint8_t repeatTime,
                 const BrcbRepeatParams& p) {
  ResetMask();
  ISSUE3(kVector, dst.GetPhyAddr(), src.GetPhyAddr(),
         uint64_t{repeatTime} << 56 | uint64_t{p.dstRepStride} << 32 | p.dstBlkStride);
}
template <typename T>
inline void Gather(const LocalTensor<T>& dst, const LocalTensor<T>& src,
                   const LocalTensor<uint32_t>& offsets, const uint32_t base, const uint64_t mask,
                   const uint8_t repeatTime, const uint16_t dstRepStride) {
  SetMask<T>(mask);
  ISSUE4(kVector, dst.GetPhyAddr(), offsets.GetPhyAddr(), src.GetPhyAddr() + base,
         uint64_t{repeatTime} << 56 | dstRepStride);
}

template <typename T, bool isSetMask = true>
inline void ShiftLeft(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& distance,
                      uint64_t mask, const uint8_t repeatTime, const UnaryRepeatParams& params) {
  if (isSetMask) SetMask<T>(mask);
  ISSUE4(kVector, dst.GetPhyAddr(), src.GetPhyAddr(), distance, params.packed(repeatTime));
}
template <typename T, bool isSetMask = true>
inline void ShiftRight(const LocalTensor<T>& dst, const LocalTensor<T>& src, const T& distance,
                       uint64_t mask, const uint8_t repeatTime, const UnaryRepeatParams& params) {
  ShiftLeft<T, isSetMask>(dst, src, distance, mask, repeatTime, params);
}
template <typename D, typename S, bool isSetMask = true>
inline void Cast(const LocalTensor<D>& dst, const LocalTensor<S>& src, const RoundMode&,
                 const uint64_t mask, const uint8_t repeatTime, const UnaryRepeatParams& params) {
  if (isSetMask) SetMask<float>(mask);
  ISSUE3(kVector, dst.GetPhyAddr(), src.GetPhyAddr(), params.packed(repeatTime));
}
template <typename D, typename S>
inline void Cast(const LocalTensor<D>& dst, const LocalTensor<S>& src, const RoundMode&,
                 const uint32_t count) {
  SetMaskCount();
  SetVectorMask<float>(0, count);
  ISSUE3(kVector, dst.GetPhyAddr(), src.GetPhyAddr(), (UnaryRepeatParams{1, 1, 8, 4}.packed(1)));
  SetMaskNorm();
  ResetMask();
}
template <typename T, bool isSetMask = true>
inline void Copy(const LocalTensor<T>& dst, const LocalTensor<T>& src, const uint64_t mask,
                 const uint8_t repeatTime, const CopyRepeatParams& p) {
  if (isSetMask) SetMask<T>(mask);
  ISSUE3(kVector, dst.GetPhyAddr(), src.GetPhyAddr(),
         (UnaryRepeatParams{p.dstStride, p.srcStride, static_cast<uint8_t>(p.dstRepeatSize),
                            static_cast<uint8_t>(p.srcRepeatSize)}
              .packed(repeatTime)));
}
template <typename T>
inline void Duplicate(const LocalTensor<T>& dst, const T& value, const int32_t& count) {
  ISSUE0(kOther);  // counter mode
  SetVectorMask<T>(0, static_cast<uint64_t>(count));
  ISSUE3(kVector, dst.GetPhyAddr(), value, uint64_t{1} << 56 | uint64_t{8} << 32 | 1);
  ISSUE0(kOther);
  ResetMask();
}
/// Eight addresses a register, in units of 32 bytes, of 16 bits each.
template <typename T>
inline void TransDataTo5HD(uint64_t (&dst)[16], uint64_t (&src)[16],
                           const TransDataTo5HDParams& p) {
  const auto load = [](const uint64_t* list) __attribute__((always_inline)) {
    uint64_t low = 0, high = 0;
    for (int i = 0; i < 4; ++i) {
      low |= (list[i] >> 5 & 0xffff) << 16 * i;
      high |= (list[4 + i] >> 5 & 0xffff) << 16 * i;
    }
    ISSUE2(kOther, low, high);
  };
  load(dst);
  load(dst + 8);
  load(src);
  load(src + 8);
  ISSUE1(kVector, uint64_t{p.repeatTimes} << 56 | uint64_t{p.srcRepStride} << 16 | p.dstRepStride);
}

// ---- Transfers ----------------------------------------------------------------------------------

struct DataCopyExtParams {
  uint16_t blockCount;
  uint32_t blockLen, srcStride, dstStride, rsv;
};
template <typename T>
struct DataCopyPadExtParams {
  bool isPad;
  uint8_t leftPadding, rightPadding;
  T paddingValue;
};

template <typename T>
inline void DataCopyPad(const LocalTensor<T>& dst, const GlobalTensor<T>& src,
                        const DataCopyExtParams& p, const DataCopyPadExtParams<T>& pad) {
  if (!dst.in_ub()) return;
  if (pad.isPad) ISSUE1(kOther, uint64_t{pad.rightPadding});
  ISSUE4(kLoad, dst.GetPhyAddr(), src.GetPhyAddr(),
         uint64_t{p.blockCount} << 4 | uint64_t{p.blockLen} << 16 |
             uint64_t{pad.leftPadding} << 48 | uint64_t{pad.rightPadding} << 54,
         uint64_t{p.srcStride} | uint64_t{p.dstStride} << 32);
}
template <typename T>
inline void DataCopyPad(const GlobalTensor<T>& dst, const LocalTensor<T>& src,
                        const DataCopyExtParams& p) {
  if (!src.in_ub()) return;
  ISSUE4(kStore, dst.GetPhyAddr(), src.GetPhyAddr(),
         uint64_t{p.blockCount} << 4 | uint64_t{p.blockLen} << 16,
         uint64_t{p.srcStride} | uint64_t{p.dstStride} << 32);
}

// ---- Order and buffers --------------------------------------------------------------------------

template <HardEvent event>
inline void SetFlag(int32_t id) {
  ISSUE1(kSetFlag, id);
}
template <HardEvent event>
inline void WaitFlag(int32_t id) {
  ISSUE1(kWaitFlag, id);
}
template <pipe_t pipe>
inline void PipeBarrier() {
  ISSUE0(kBarrier);
}
inline int64_t GetBlockIdx() { return block_index; }

struct TBufType {
  uint8_t state, freeBufEvt;
  int8_t enQueEvtID, freeBufEvtID;
  uint32_t address, dataLen;
  int32_t usertag;
};
template <TPosition pos>
class TBuf {
 public:
  template <typename T>
  LocalTensor<T> Get() {
    LocalTensor<T> result;
    result.address_.dataLen = bytes;
    result.address_.bufferAddr = start->address;
    result.address_.bufferHandle = start;
    result.address_.logicPos = static_cast<uint8_t>(pos);
    return result;
  }
  TBufType* start;
  uint32_t bytes;
};
class TPipe {
 public:
  TPipe() {
    ISSUE0(kOther);
    ISSUE0(kOther);
    ResetMask();
    used_ = 0;
    for (auto& pool : pools_) pool = 0;
    for (auto& events : events_) events = 0;
    asm volatile("" ::"r"(this) : "memory");
  }
  ~TPipe() { ISSUE0(kBarrier); }
  template <TPosition pos>
  bool InitBuffer(TBuf<pos>& buffer, uint32_t bytes) {
    bytes = (bytes + 31) / 32 * 32;
    buffer.start = buffers_ + used_++;
    buffer.bytes = bytes;
    *buffer.start = {0, 0, -1, -1, pools_[4], bytes, -1};
    pools_[4] += bytes;
    return true;
  }

 private:
  TBufType buffers_[64];
  uint32_t pools_[13];
  uint64_t events_[32];
  uint8_t used_;
};

}  // namespace AscendC
using AscendC::TPipe;
