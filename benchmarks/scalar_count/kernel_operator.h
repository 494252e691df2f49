// Thin device-like stub of Ascend C for arch 2201: same scalar work as asc-devkit's headers in a
// release build (config packing, masks, position checks), each hardware instruction one marker.
#pragma once
#include <cstdint>
#include <type_traits>
#define __aicore__
#define __gm__
#ifndef __global__
#define __global__
#endif
#define __ubuf__
#define GM_ADDR uint8_t*
enum pipe_t { PIPE_S, PIPE_V, PIPE_M, PIPE_MTE1, PIPE_MTE2, PIPE_MTE3, PIPE_ALL, PIPE_FIX };
struct half {
  uint16_t b;
  half() = default;
  constexpr half(float) : b(0) {}
};
struct bfloat16_t {
  uint16_t b;
  bfloat16_t() = default;
  constexpr bfloat16_t(float) : b(0) {}
};
#ifdef CLOBBER
#define CLOB : "memory"
#else
#define CLOB
#endif
// markers: 1 vector, 2 load, 3 store, 4 set flag, 5 wait flag, 6 barrier, 7 mask set, 8 va reg, 9
// other spr
#define M1(id, a) asm volatile("movz xzr, #" #id::"r"(a)CLOB)
#define M2(id, a, b) asm volatile("movz xzr, #" #id::"r"(a), "r"(b)CLOB)
#define M3(id, a, b, c) asm volatile("movz xzr, #" #id::"r"(a), "r"(b), "r"(c)CLOB)
#define M4(id, a, b, c, d) asm volatile("movz xzr, #" #id::"r"(a), "r"(b), "r"(c), "r"(d)CLOB)
extern int64_t g_block_idx;
namespace AscendC {
using TEventID = int8_t;
enum class HardEvent : uint8_t { MTE2_V, V_MTE2, MTE3_V, V_MTE3, V_V, MTE3_MTE2, MTE2_MTE3 };
enum class RoundMode {
  CAST_NONE = 0,
  CAST_RINT,
  CAST_FLOOR,
  CAST_CEIL,
  CAST_ROUND,
  CAST_TRUNC,
  CAST_ODD
};
enum class TPosition : uint8_t { GM, A1, A2, B1, B2, C1, C2, CO1, CO2, VECIN, VECOUT, VECCALC };
struct TBuffHandle;
template <typename T>
class LocalTensor {
 public:
  struct {
    uint32_t dataLen, bufferAddr;
    void* bufferHandle;
    uint8_t logicPos;
  } a;
  __aicore__ inline LocalTensor operator[](const uint32_t offset) const {
    LocalTensor r = *this;
    r.a.dataLen -= offset * sizeof(T);
    r.a.bufferAddr += offset * sizeof(T);
    return r;
  }
  template <typename U>
  __aicore__ inline LocalTensor<U> ReinterpretCast() const {
    LocalTensor<U> r;
    r.a.dataLen = a.dataLen;
    r.a.bufferAddr = a.bufferAddr;
    r.a.bufferHandle = a.bufferHandle;
    r.a.logicPos = a.logicPos;
    return r;
  }
  __aicore__ inline uint64_t GetPhyAddr() const { return a.bufferAddr; }
  __aicore__ inline void SetSize(uint32_t n) { a.dataLen = n * sizeof(T); }
};
enum class CacheMode { CACHE_MODE_DISABLE = 0, CACHE_MODE_NORMAL = 1 };
constexpr uint64_t MASK_PLACEHOLDER = 0;
template <typename T>
class GlobalTensor {
 public:
  T* address_;
  T* ori_;
  uint64_t size_;
  uint8_t cacheMode_;
  __aicore__ inline void SetGlobalBuffer(T* b) {
    address_ = b;
    ori_ = b;
    cacheMode_ = 1;
  }
  __aicore__ inline GlobalTensor operator[](const uint64_t o) const {
    GlobalTensor r = *this;
    r.address_ += o;
    return r;
  }
  __aicore__ inline T* GetPhyAddr() const { return address_; }
  __aicore__ inline void SetL2CacheHint(CacheMode m) {
    cacheMode_ = (uint8_t)m;
    address_ = (T*)((uint64_t)ori_ + (m == CacheMode::CACHE_MODE_DISABLE ? 1ull << 60 : 0));
  }
};
struct BinaryRepeatParams {
  BinaryRepeatParams() {}
  constexpr BinaryRepeatParams(uint8_t a, uint8_t b, uint8_t c, uint8_t d, uint8_t e, uint8_t f)
      : dstBlkStride(a),
        src0BlkStride(b),
        src1BlkStride(c),
        dstRepStride(d),
        src0RepStride(e),
        src1RepStride(f) {}
  uint8_t dstBlkStride = 1, src0BlkStride = 1, src1BlkStride = 1, dstRepStride = 8,
          src0RepStride = 8, src1RepStride = 8;
};
struct UnaryRepeatParams {
  UnaryRepeatParams() {}
  constexpr UnaryRepeatParams(uint16_t a, uint16_t b, uint8_t c, uint8_t d)
      : dstBlkStride(a), srcBlkStride(b), dstRepStride(c), srcRepStride(d) {}
  uint16_t dstBlkStride = 1, srcBlkStride = 1;
  uint8_t dstRepStride = 8, srcRepStride = 8;
};
struct CopyRepeatParams {
  uint16_t dstStride = 0, srcStride = 0, dstRepeatSize = 8, srcRepeatSize = 8;
};
struct TransDataTo5HDParams {
  bool dstHighHalf = false, srcHighHalf = false;
  uint8_t repeatTimes = 1;
  uint16_t dstRepStride = 0, srcRepStride = 0;
};
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
__aicore__ inline void SetMask(uint64_t len64) {
  const int32_t len = static_cast<int32_t>(len64);
  const int32_t typeLen = 256 / sizeof(T);
  uint64_t hi, lo;
  if (len == 64) {
    hi = 0;
    lo = ~0ull;
  } else if (len == typeLen || len >= 128) {
    hi = lo = ~0ull;
  } else {
    hi = len > 64 ? (1ull << (len - 64)) - 1 : 0;
    lo = len > 64 ? ~0ull : (1ull << len) - 1;
  }
  M1(7, hi);
  M1(7, lo);
}
__aicore__ inline uint64_t Config3(uint8_t rep, const BinaryRepeatParams& p) {
  return (uint64_t)rep << 56 | (uint64_t)p.src1RepStride << 40 | (uint64_t)p.src0RepStride << 32 |
         (uint64_t)p.dstRepStride << 24 | (uint64_t)p.src1BlkStride << 16 |
         (uint64_t)p.src0BlkStride << 8 | p.dstBlkStride;
}
__aicore__ inline uint64_t Config2(uint8_t rep, uint64_t db, uint64_t sb, uint64_t dr,
                                   uint64_t sr) {
  return (uint64_t)rep << 56 | sr << 40 | dr << 32 | sb << 16 | db;
}
template <typename T>
__aicore__ inline void SetVectorMask(int32_t len) {
  SetMask<T>(len);
}
template <typename T>
__aicore__ inline void SetVectorMask(uint64_t hi, uint64_t lo) {
  M1(7, hi);
  M1(7, lo);
}
__aicore__ inline void ResetMask() {
  M1(7, ~0ull);
  M1(7, ~0ull);
}
#define BINARY(name)                                                                     \
  template <typename T, bool isSetMask = true>                                           \
  __aicore__ inline void name(const LocalTensor<T>& d, const LocalTensor<T>& a,          \
                              const LocalTensor<T>& b, uint64_t mask, const uint8_t rep, \
                              const BinaryRepeatParams& p) {                             \
    if (isSetMask) SetMask<T>(mask);                                                     \
    M4(1, d.GetPhyAddr(), a.GetPhyAddr(), b.GetPhyAddr(), Config3(rep, p));              \
  }
BINARY(Add)
BINARY(Sub) BINARY(Mul) BINARY(And) BINARY(Or) template <typename T, bool isSetMask = true>
__aicore__ inline void ShiftLeft(const LocalTensor<T>& d, const LocalTensor<T>& s, const T& v,
                                 uint64_t mask, const uint8_t rep, const UnaryRepeatParams& p) {
  if (isSetMask) SetMask<T>(mask);
  M4(1, d.GetPhyAddr(), s.GetPhyAddr(), v,
     Config2(rep, p.dstBlkStride, p.srcBlkStride, p.dstRepStride, p.srcRepStride));
}
template <typename T, bool isSetMask = true>
__aicore__ inline void ShiftRight(const LocalTensor<T>& d, const LocalTensor<T>& s, const T& v,
                                  uint64_t mask, const uint8_t rep, const UnaryRepeatParams& p,
                                  bool roundEn = false) {
  if (isSetMask) SetMask<T>(mask);
  M4(1, d.GetPhyAddr(), s.GetPhyAddr(), v,
     Config2(rep, p.dstBlkStride, p.srcBlkStride, p.dstRepStride, p.srcRepStride));
}
template <typename D, typename S, bool isSetMask = true>
__aicore__ inline void Cast(const LocalTensor<D>& d, const LocalTensor<S>& s, const RoundMode& m,
                            const uint64_t mask, const uint8_t rep, const UnaryRepeatParams& p) {
  if (isSetMask) SetMask<float>(mask);
  const uint64_t c = Config2(rep, p.dstBlkStride, p.srcBlkStride, p.dstRepStride, p.srcRepStride);
  switch (m) {
    case RoundMode::CAST_RINT:
      M3(1, d.GetPhyAddr(), s.GetPhyAddr(), c);
      break;
    default:
      M3(1, d.GetPhyAddr(), s.GetPhyAddr(), c);
      break;
  }
}
template <typename T, bool isSetMask = true>
__aicore__ inline void Copy(const LocalTensor<T>& d, const LocalTensor<T>& s, const uint64_t mask,
                            const uint8_t rep, const CopyRepeatParams& p) {
  if (isSetMask) SetMask<T>(mask);
  M3(1, d.GetPhyAddr(), s.GetPhyAddr(),
     Config2(rep, p.dstStride, p.srcStride, p.dstRepeatSize, p.srcRepeatSize));
}
template <typename T>
__aicore__ inline void Duplicate(const LocalTensor<T>& d, const T& v, const int32_t& count) {
  M1(9, 0);
  M1(7, 0);
  M1(7, count);
  M3(1, d.GetPhyAddr(), v, 1ull << 56 | 8ull << 32 | 1);
  M1(9, 0);
  M1(7, ~0ull);
  M1(7, ~0ull);
}
template <typename B>
__aicore__ inline void TransDataTo5HD(uint64_t (&to)[16], uint64_t (&from)[16],
                                      const TransDataTo5HDParams& p) {
  // set_va_reg_sb: 8 addresses, in units of 32 bytes, 16 bits each: two 64-bit values a register
  auto va = [](const uint64_t* x) __attribute__((always_inline)) {
    uint64_t lo = 0, hi = 0;
    for (int i = 0; i < 4; ++i) {
      lo |= (x[i] >> 5 & 0xffff) << 16 * i;
      hi |= (x[4 + i] >> 5 & 0xffff) << 16 * i;
    }
    M2(8, lo, hi);
  };
  va(to);
  va(to + 8);
  va(from);
  va(from + 8);
  M1(1, (uint64_t)p.repeatTimes << 56 | (uint64_t)p.srcRepStride << 16 | p.dstRepStride);
}
template <typename T>
__aicore__ inline void DataCopyPad(const LocalTensor<T>& d, const GlobalTensor<T>& s,
                                   const DataCopyExtParams& p, const DataCopyPadExtParams<T>& pad) {
  if (d.a.logicPos == (uint8_t)TPosition::VECIN || d.a.logicPos == (uint8_t)TPosition::VECOUT ||
      d.a.logicPos == (uint8_t)TPosition::VECCALC) {
    if (pad.isPad) M1(9, (uint64_t)pad.rightPadding);
    const uint64_t c0 = (uint64_t)p.blockCount << 4 | (uint64_t)p.blockLen << 16 |
                        (uint64_t)pad.leftPadding << 48 | (uint64_t)pad.rightPadding << 54;
    const uint64_t c1 = (uint64_t)p.srcStride | (uint64_t)p.dstStride << 32;
    M4(2, d.GetPhyAddr(), s.GetPhyAddr(), c0, c1);
  } else
    M1(9, 1);
}
template <typename T>
__aicore__ inline void DataCopyPad(const GlobalTensor<T>& d, const LocalTensor<T>& s,
                                   const DataCopyExtParams& p) {
  if (s.a.logicPos == (uint8_t)TPosition::VECIN || s.a.logicPos == (uint8_t)TPosition::VECOUT ||
      s.a.logicPos == (uint8_t)TPosition::VECCALC) {
    const uint64_t c0 = (uint64_t)p.blockCount << 4 | (uint64_t)p.blockLen << 16;
    const uint64_t c1 = (uint64_t)p.srcStride | (uint64_t)p.dstStride << 32;
    M4(3, d.GetPhyAddr(), s.GetPhyAddr(), c0, c1);
  } else
    M1(9, 1);
}
template <HardEvent e>
__aicore__ inline void SetFlag(int32_t id) {
  M1(4, id);
}
template <HardEvent e>
__aicore__ inline void WaitFlag(int32_t id) {
  M1(5, id);
}
template <pipe_t p>
__aicore__ inline void PipeBarrier() {
  asm volatile("movz xzr, #6" ::: "cc");
}
__aicore__ inline int64_t GetBlockIdx() { return g_block_idx; }

struct TBufType {
  uint8_t state;
  uint8_t freeBufEvt;
  int8_t enQueEvtID, freeBufEvtID;
  uint32_t address, dataLen;
  int32_t usertag;
};
template <TPosition pos>
class TBuf {
 public:
  TBufType* bufStart;
  uint32_t bufLen, offset;
  template <typename T>
  __aicore__ inline LocalTensor<T> Get() {
    LocalTensor<T> r;
    r.a.dataLen = bufLen;
    r.a.bufferAddr = bufStart->address;
    r.a.bufferHandle = bufStart;
    r.a.logicPos = (uint8_t)pos;
    return r;
  }
};
struct TPipe {
  TBufType buf_[64];
  struct {
    uint32_t maxAddr;
  } bufPool_[13];
  struct {
    uint64_t eventOccupy;
  } eventPool_[32];
  uint32_t tscm_;
  uint32_t share_[3];
  uint8_t curBufSize_;
  bool isDestroy;
  __aicore__ inline TPipe() {
    M1(9, 0);
    M1(9, 0);
    M1(7, ~0ull);
    M1(7, ~0ull);
    Reset();
    asm volatile("" ::"r"(this) : "memory");
    isDestroy = false;
  }
  __aicore__ inline ~TPipe() {
    if (!isDestroy) {
      asm volatile("movz xzr, #6" ::: "memory");
    }
  }
  __aicore__ inline void Reset() {
    tscm_ = 512 * 1024;
    curBufSize_ = 0;
    for (auto& b : bufPool_) b.maxAddr = 0;
    for (auto& e : eventPool_) e.eventOccupy = 0;
    for (auto& s : share_) s = ~0u;
  }
  template <TPosition pos>
  __aicore__ inline bool InitBuffer(TBuf<pos>& buf, uint32_t len) {
    len = (len + 31) / 32 * 32;
    buf.bufStart = buf_ + curBufSize_;
    buf.bufLen = len;
    buf.offset = 0;
    auto cur = bufPool_[4].maxAddr;
    auto* p = buf.bufStart;
    p->state = 0;
    p->enQueEvtID = -1;
    p->freeBufEvtID = -1;
    p->address = cur;
    p->dataLen = len;
    p->usertag = -1;
    bufPool_[4].maxAddr = cur + len;
    curBufSize_ += 1;
    return true;
  }
  template <HardEvent e>
  __aicore__ inline TEventID AllocEventID() {
    auto* p = eventPool_ + (int)e;
    auto id = __builtin_ctzll(~p->eventOccupy);
    p->eventOccupy |= 1ull << id;
    return id;
  }
  template <HardEvent e>
  __aicore__ inline void ReleaseEventID(TEventID id) {
    auto* p = eventPool_ + (int)e;
    p->eventOccupy &= ~(1ull << id);
  }
};
}  // namespace AscendC
using AscendC::TPipe;
#define KERNEL_TASK_TYPE_DEFAULT(type)
