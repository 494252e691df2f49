// A kernel that is right, and kernels that differ from it in one thing each, for which they are
// refused.
//
// The right one squares 64 floats of x into y, ordered by flags: load -> V -> store.
#include "faults.h"

#include <map>

#include "kernel_operator.h"

using namespace AscendC;

namespace {

constexpr uint32_t kCount = 64;
constexpr uint32_t kBytes = kCount * sizeof(float);

class Square {
 public:
  Square(GM_ADDR x, GM_ADDR y) {
    x_.SetGlobalBuffer((__gm__ float*)x + kCount * GetBlockIdx());
    y_.SetGlobalBuffer((__gm__ float*)y + kCount * GetBlockIdx());
    pipe_.InitBuffer(in_, 2 * kBytes);
    pipe_.InitBuffer(out_, 2 * kBytes);
    a = in_.Get<float>();
    b = out_.Get<float>();
  }
  void Load() { DataCopy(a, x_, kCount); }
  void Compute() { Mul(b, a, a, kCount); }
  void Store() { DataCopy(y_, b, kCount); }
  template <HardEvent event>
  void Order() {
    const TEventID id = pipe_.FetchEventID<event>();
    SetFlag<event>(id);
    WaitFlag<event>(id);
  }
  /// Up to where b holds the result.
  void LoadAndCompute() {
    Load();
    Order<HardEvent::MTE2_V>();
    Compute();
  }
  void StoreResult() {
    Order<HardEvent::V_MTE3>();
    Store();
  }
  void LoadForCompute() {
    Load();
    Order<HardEvent::MTE2_V>();
  }
  /// For Gather, behind the result: so many times one.
  LocalTensor<uint32_t> Offsets(uint32_t offset) {
    const LocalTensor<uint32_t> offsets = b[kCount].ReinterpretCast<uint32_t>();
    Duplicate(offsets, offset, static_cast<int32_t>(kCount));
    PipeBarrier<PIPE_V>();
    return offsets;
  }

  TPipe pipe_;
  TBuf<TPosition::VECIN> in_;
  TBuf<TPosition::VECOUT> out_;
  GlobalTensor<float> x_, y_;
  LocalTensor<float> a, b;
};

/// The same by queues: what their faults start from.
class QueuedSquare {
 public:
  QueuedSquare(GM_ADDR x, GM_ADDR y) {
    x_.SetGlobalBuffer((__gm__ float*)x);
    y_.SetGlobalBuffer((__gm__ float*)y);
    pipe_.InitBuffer(in_, 1, kBytes);
    pipe_.InitBuffer(out_, 1, kBytes);
  }
  void Load() {
    LocalTensor<float> a = in_.AllocTensor<float>();
    DataCopy(a, x_, kCount);
    in_.EnQue(a);
  }
  void Compute() {
    LocalTensor<float> a = in_.DeQue<float>();
    LocalTensor<float> b = out_.AllocTensor<float>();
    Mul(b, a, a, kCount);
    in_.FreeTensor(a);
    out_.EnQue(b);
  }
  void Store() {
    LocalTensor<float> b = out_.DeQue<float>();
    DataCopy(y_, b, kCount);
    out_.FreeTensor(b);
  }

  TPipe pipe_;
  TQue<TPosition::VECIN, 1> in_;
  TQue<TPosition::VECOUT, 1> out_;
  GlobalTensor<float> x_, y_;
};

using Kernel = void (*)(GM_ADDR x, GM_ADDR y);

/// Gathers, lane for lane, the element `offset` bytes behind `base`.
template <uint32_t offset, uint32_t base, uint64_t mask, int repeats>
void GatherOne(GM_ADDR x, GM_ADDR y) {
  Square k(x, y);
  k.LoadForCompute();
  Gather(k.b, k.a, k.Offsets(offset), base, mask, repeats, 8);
}

const std::map<std::string, Kernel>& kernels() {
  static const std::map<std::string, Kernel> table = {
      {"right",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.Load();
         k.Order<HardEvent::MTE2_V>();
         k.Compute();
         k.Order<HardEvent::V_MTE3>();
         k.Store();
       }},
      {"right queues",
       [](GM_ADDR x, GM_ADDR y) {
         QueuedSquare k(x, y);
         k.Load();
         k.Compute();
         k.Store();
       }},

      // ------------------------------------------------------------------------ UB addresses and sizes
      {"more UB than usable",
       [](GM_ADDR, GM_ADDR) {
         TPipe pipe;
         TBuf<TPosition::VECCALC> buffer;
         pipe.InitBuffer(buffer, 188160 + 32);
       }},
      {"more UB than usable in parts",
       [](GM_ADDR, GM_ADDR) {
         TPipe pipe;
         TBuf<TPosition::VECCALC> buffer;
         TQue<TPosition::VECIN, 1> queue;
         pipe.InitBuffer(buffer, 100000);
         pipe.InitBuffer(queue, 2, 50000);
       }},
      {"static tensor beyond usable UB",
       [](GM_ADDR, GM_ADDR) {
         LocalTensor<float> a(TPosition::VECCALC, 188160 - 32, 64);
         Duplicate(a, 1.0f, 64);
       }},
      {"too many buffers",
       [](GM_ADDR, GM_ADDR) {
         TPipe pipe;
         TBuf<TPosition::VECCALC> buffers[65];
         for (auto& buffer : buffers) pipe.InitBuffer(buffer, 32);
       }},
      {"misaligned address",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         Mul(k.b[1], k.a, k.a, 8);
         k.StoreResult();
       }},
      {"misaligned after ReinterpretCast",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         LocalTensor<float> odd = k.a.ReinterpretCast<half>()[8].ReinterpretCast<float>();
         Mul(k.b, odd, odd, 8);
       }},
      {"misaligned transfer",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         DataCopy(k.a[4], k.x_, 8);
       }},
      {"out of the buffer by one element",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         Duplicate(k.b, 1.0f, 2 * kCount + 1);
       }},
      {"tensor without memory",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         LocalTensor<float> nowhere;
         Mul(nowhere, k.a, k.a, kCount);
       }},
      {"TBuf without InitBuffer",
       [](GM_ADDR, GM_ADDR) {
         TBuf<TPosition::VECCALC> buffer;
         buffer.Get<float>();
       }},
      {"GetWithOffset beyond the buffer",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.in_.GetWithOffset<float>(kCount, kBytes + 32);
       }},
      {"read of unwritten UB",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         Mul(k.b, k.a, k.a, kCount + 1);
       }},
      {"read of padding",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         DataCopyPad(k.a, k.x_, {1, 4 * 7, 0, 0, 0}, {false, 0, 0, 0});
         k.Order<HardEvent::MTE2_V>();
         Mul(k.b, k.a, k.a, 8);
       }},
      {"store of unwritten UB",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         Mul(k.b, k.a, k.a, kCount - 1);
         k.StoreResult();
       }},
      {"GetValue of unwritten UB",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.a.GetValue(3);
       }},

      // ---------------------------------------------------------------------------------------- GM
      {"GM read one byte beyond",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         GlobalTensor<uint8_t> bytes;
         bytes.SetGlobalBuffer((__gm__ uint8_t*)x);
         DataCopyPad(k.a.ReinterpretCast<uint8_t>(), bytes, {1, kBytes + 1, 0, 0, 0},
                     {false, 0, 0, 0});
       }},
      {"GM write one byte beyond",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadAndCompute();
         k.Order<HardEvent::V_MTE3>();
         GlobalTensor<uint8_t> bytes;
         bytes.SetGlobalBuffer((__gm__ uint8_t*)y + 1);
         DataCopyPad(bytes, k.b.ReinterpretCast<uint8_t>(), {1, kBytes, 0, 0, 0});
       }},
      {"GM read before the region",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x - 4, y);
         k.Load();
       }},
      {"GM address of nothing",
       [](GM_ADDR, GM_ADDR y) {
         Square k(nullptr, y);
         k.Load();
       }},
      {"write to an input",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadAndCompute();
         k.Order<HardEvent::V_MTE3>();
         DataCopy(k.x_, k.b, kCount);
       }},
      {"GM address misaligned for DataCopy",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         GlobalTensor<float> odd;
         odd.SetGlobalBuffer((__gm__ float*)(x + 2));
         DataCopy(k.a, odd, 8);
       }},
      {"two cores write one byte",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadAndCompute();
         k.Order<HardEvent::V_MTE3>();
         GlobalTensor<uint8_t> bytes;
         bytes.SetGlobalBuffer((__gm__ uint8_t*)y + (GetBlockIdx() == 1 ? kBytes - 1 : 0));
         DataCopyPad(bytes, k.b.ReinterpretCast<uint8_t>(), {1, kBytes, 0, 0, 0});
       }},
      {"a core reads what another writes",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadAndCompute();
         k.StoreResult();
         if (GetBlockIdx() == 1) {
           k.Order<HardEvent::V_MTE2>();
           GlobalTensor<float> all;
           all.SetGlobalBuffer((__gm__ float*)y);
           DataCopy(k.a, all[kCount - 8], 8);
         }
       }},
      {"GM read after write without order",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadAndCompute();
         k.StoreResult();
         k.Order<HardEvent::V_MTE2>();
         DataCopy(k.a, k.y_, kCount);
       }},
      {"GM write after read without order",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadAndCompute();
         DataCopy(k.a[kCount], k.y_, kCount);
         k.StoreResult();
       }},
      {"GM written twice without order",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadAndCompute();
         k.StoreResult();
         k.Store();
       }},

      // -------------------------------------------------------------------- parameters of instructions
      {"repeat 256",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         Mul(k.b, k.a, k.a, 64, 256, {1, 1, 1, 0, 0, 0});
       }},
      {"repeat 256 in a uint8_t",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         const uint8_t repeats = static_cast<uint8_t>(GetBlockNum() * 256);
         Mul(k.b, k.a, k.a, 64, repeats, {1, 1, 1, 0, 0, 0});
       }},
      {"mask 0",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         const uint64_t mask = 0;
         Mul(k.b, k.a, k.a, mask, 1, {1, 1, 1, 8, 8, 8});
       }},
      {"mask 65 of 4-byte elements",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         Mul(k.b, k.a, k.a, 65, 1, {1, 1, 1, 8, 8, 8});
       }},
      {"mask bits beyond 4-byte elements",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         uint64_t mask[2] = {~0ull, 1};
         Mul(k.b, k.a, k.a, mask, 1, {1, 1, 1, 8, 8, 8});
       }},
      {"mask bits all 0",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         uint64_t mask[2] = {0, 0};
         Mul(k.b, k.a, k.a, mask, 1, {1, 1, 1, 8, 8, 8});
       }},
      {"count 0",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         Mul(k.b, k.a, k.a, 0);
       }},
      {"repeat stride 256",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         Mul(k.b, k.a, k.a, 64, 1, {1, 1, 1, 256, 8, 8});
       }},
      {"block stride 256",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         BinaryRepeatParams params;
         params.src1BlkStride = 256;
         Mul(k.b, k.a, k.a, 8, 1, params);
       }},
      {"destination block stride 0",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         Mul(k.b, k.a, k.a, 64, 1, {0, 1, 1, 8, 8, 8});
       }},
      {"Copy repeat stride 4096",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         Copy(k.b, k.a, 64, 1, {1, 1, 4096, 8});
       }},
      {"block count 4096",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         DataCopyPad(k.a, k.x_, {4096, 4, 0, 0, 0}, {false, 0, 0, 0});
       }},
      {"block length 2097152",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         DataCopyPad(k.a, k.x_, {1, 2097152, 0, 0, 0}, {false, 0, 0, 0});
       }},
      {"block length of half an element",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         DataCopyPad(k.a, k.x_, {1, 6, 0, 0, 0}, {false, 0, 0, 0});
       }},
      {"padding of more than 32 bytes",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         DataCopyPad(k.a, k.x_, {1, 32, 0, 0, 0}, {true, 0, 9, 0});
       }},
      {"padding value of 8-byte elements",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         GlobalTensor<int64_t> wide;
         wide.SetGlobalBuffer((__gm__ int64_t*)x);
         DataCopyPad(k.a.ReinterpretCast<int64_t>(), wide, {1, 8, 0, 0, 0}, {true, 0, 1, 1});
       }},
      {"GM stride beyond 32 bits",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         DataCopyPad(k.a, k.x_, {2, 32, uint64_t{1} << 32, 0, 0}, {false, 0, 0, 0});
       }},
      {"DataCopy block count 4096",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         DataCopy(k.a, k.x_, {4096, 1, 0, 0});
       }},
      {"DataCopy gap 65536",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         DataCopy(k.a, k.x_, {2, 1, 65536, 0});
       }},
      {"DataCopy of a part of a block",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         DataCopy(k.a, k.x_, kCount - 1);
       }},
      {"copy into VECCALC",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         TBuf<TPosition::VECCALC> buffer;
         k.pipe_.InitBuffer(buffer, kBytes);
         DataCopyPad(buffer.Get<float>(), k.x_, {1, kBytes, 0, 0, 0}, {false, 0, 0, 0});
       }},
      {"Cast half to float with RINT",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         Cast(k.b, k.a.ReinterpretCast<half>(), RoundMode::CAST_RINT, kCount);
       }},
      {"Cast float to bfloat16 with ODD",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         Cast(k.b.ReinterpretCast<bfloat16_t>(), k.a, RoundMode::CAST_ODD, kCount);
       }},
      {"Cast float to bfloat16 with NONE",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         Cast(k.b.ReinterpretCast<bfloat16_t>(), k.a, RoundMode::CAST_NONE, kCount);
       }},
      {"shift by 33",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         ShiftLeft(k.b.ReinterpretCast<int32_t>(), k.a.ReinterpretCast<int32_t>(), 33, 8);
       }},
      {"destination overlaps a source in part",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         Mul(k.a[8], k.a, k.a, kCount - 8);
       }},
      {"widening Cast in place",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         Cast(k.a, k.a.ReinterpretCast<half>(), RoundMode::CAST_NONE, kCount);
       }},
      {"a repeat reads what an earlier one wrote",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         Adds(k.a[8], k.a, 1.0f, 8, 3, {1, 1, 1, 1});
       }},
      {"BlockReduceSum repeat 256",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         BlockReduceSum(k.b, k.a, 256, 64, 0, 1, 0);
       }},
      {"BlockReduceSum mask 65",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         BlockReduceSum(k.b, k.a, 1, 65, 1, 1, 8);
       }},
      {"BlockReduceSum mask -1",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         BlockReduceSum(k.b, k.a, 1, -1, 1, 1, 8);
       }},
      {"BlockReduceSum destination stride 65536",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         BlockReduceSum(k.b, k.a, 1, 64, 65536, 1, 8);
       }},
      {"BlockReduceSum source stride 65536",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         BlockReduceSum(k.b, k.a, 1, 64, 1, 1, 65536);
       }},
      {"BlockReduceSum in place",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         BlockReduceSum(k.a, k.a, 1, 64, 1, 1, 8);
       }},
      {"BlockReduceSum to a misaligned address",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         BlockReduceSum(k.b[1], k.a, 1, 64, 1, 1, 8);
       }},
      {"PairReduceSum of unwritten UB",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         PairReduceSum(k.b, k.a, 2, 64, 1, 1, 8);
       }},
      {"PairReduceSum block stride -1",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         PairReduceSum(k.b, k.a, 1, 64, 1, -1, 8);
       }},
      {"PairReduceSum into its source",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         PairReduceSum(k.a[32], k.a, 1, 64, 1, 1, 8);
       }},
      {"Brcb repeat 256",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         Brcb(k.b, k.a, 256, {1, 0});
       }},
      {"Brcb into its source",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         Brcb(k.a, k.a, 1, {1, 8});
       }},
      {"Brcb block stride 0",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         Brcb(k.b, k.a, 1, {0, 8});
       }},
      {"Brcb from a misaligned address",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         Brcb(k.b, k.a[4], 1, {1, 8});
       }},
      {"Brcb of unwritten UB",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         Brcb(k.b, k.a[kCount], 1, {1, 8});
       }},
      {"Brcb in counter mode",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         SetMaskCount();
         Brcb(k.b, k.a, 1, {1, 8});
       }},
      {"Gather repeat 256", GatherOne<0, 0, 64, 256>},
      {"Gather mask 65", GatherOne<0, 0, 65, 1>},
      {"Gather of no elements",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         Gather(k.b, k.a, k.Offsets(0), 0, 0);
       }},
      {"Gather by an offset that is no whole element", GatherOne<6, 0, 8, 1>},
      {"Gather from a base that is no whole element", GatherOne<0, 2, 8, 1>},
      {"Gather from a base beyond the tensor", GatherOne<0, 1024, 8, 1>},
      {"Gather beyond the buffer", GatherOne<4096, 0, 8, 1>},
      {"Gather of unwritten UB", GatherOne<kCount * 4, 0, 8, 1>},
      {"Gather into its source",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         Gather(k.a, k.a, k.Offsets(4), 0, 8, 1, 8);
       }},
      {"Gather into its offsets",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         const auto offsets = k.Offsets(4);
         Gather(offsets.ReinterpretCast<float>(), k.a, offsets, 0, 8, 1, 8);
       }},
      {"Gather by offsets that S just wrote, no auto sync",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         const auto offsets = k.Offsets(0);
         k.Order<HardEvent::V_S>();
         offsets.SetValue(0, 4u);
         Gather(k.b, k.a, offsets, 0, 8, 1, 8);
       }},
      {"Gather in counter mode",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         const auto offsets = k.Offsets(0);
         SetMaskCount();
         Gather(k.b, k.a, offsets, 0, 8, 1, 8);
       }},
      {"Sqrt repeat stride 256",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         Sqrt(k.b, k.a, 64, 1, {1, 1, 8, 256});
       }},
      {"Div that accumulates",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         Div(k.b, k.a, k.b, 64, 2, {1, 1, 1, 0, 0, 0});
       }},
      {"TransDataTo5HD misaligned",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         uint64_t dst[16], src[16];
         for (int i = 0; i < 16; ++i) {
           src[i] = k.a.GetPhyAddr(4 * i);
           dst[i] = k.b[8 * i].GetPhyAddr();
         }
         TransDataTo5HD<float>(dst, src, {false, false, 1, 0, 0});
       }},

      // ----------------------------------------------------------------------------------------- masks
      {"mask as a number in counter mode",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         SetMaskCount();
         Mul(k.b, k.a, k.a, 64, 1, {1, 1, 1, 8, 8, 8});
       }},
      {"counter mode left on",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadAndCompute();
         k.StoreResult();
         SetMaskCount();
       }},

      // ---------------------------------------------------------------------------------------- queues
      {"AllocTensor beyond the buffers",
       [](GM_ADDR x, GM_ADDR y) {
         QueuedSquare k(x, y);
         k.Load();
         k.Load();
       }},
      {"EnQue of a foreign tensor",
       [](GM_ADDR x, GM_ADDR y) {
         QueuedSquare k(x, y);
         LocalTensor<float> a = k.in_.AllocTensor<float>();
         k.out_.EnQue(a);
       }},
      {"EnQue twice",
       [](GM_ADDR x, GM_ADDR y) {
         QueuedSquare k(x, y);
         LocalTensor<float> a = k.in_.AllocTensor<float>();
         k.in_.EnQue(a);
         k.in_.EnQue(a);
       }},
      {"EnQue beyond the depth",
       [](GM_ADDR, GM_ADDR) {
         TPipe pipe;
         TQue<TPosition::VECIN, 1> queue;
         pipe.InitBuffer(queue, 2, kBytes);
         LocalTensor<float> a = queue.AllocTensor<float>();
         LocalTensor<float> b = queue.AllocTensor<float>();
         queue.EnQue(a);
         queue.EnQue(b);
       }},
      {"DeQue of an empty queue",
       [](GM_ADDR x, GM_ADDR y) {
         QueuedSquare k(x, y);
         k.in_.DeQue<float>();
       }},
      {"FreeTensor before DeQue",
       [](GM_ADDR x, GM_ADDR y) {
         QueuedSquare k(x, y);
         LocalTensor<float> a = k.in_.AllocTensor<float>();
         DataCopy(a, k.x_, kCount);
         k.in_.EnQue(a);
         k.in_.FreeTensor(a);
       }},
      {"FreeTensor twice",
       [](GM_ADDR x, GM_ADDR y) {
         QueuedSquare k(x, y);
         k.Load();
         LocalTensor<float> a = k.in_.DeQue<float>();
         k.in_.FreeTensor(a);
         k.in_.FreeTensor(a);
       }},
      {"use after FreeTensor",
       [](GM_ADDR x, GM_ADDR y) {
         QueuedSquare k(x, y);
         k.Load();
         LocalTensor<float> a = k.in_.DeQue<float>();
         k.in_.FreeTensor(a);
         LocalTensor<float> b = k.out_.AllocTensor<float>();
         Mul(b, a, a, kCount);
       }},
      {"tensor never freed",
       [](GM_ADDR x, GM_ADDR y) {
         QueuedSquare k(x, y);
         k.Load();
         k.Compute();
         LocalTensor<float> b = k.out_.DeQue<float>();
         DataCopy(k.y_, b, kCount);
       }},
      {"tensor never dequeued",
       [](GM_ADDR x, GM_ADDR y) {
         QueuedSquare k(x, y);
         k.Load();
       }},
      {"queue without InitBuffer",
       [](GM_ADDR, GM_ADDR) {
         TPipe pipe;
         TQue<TPosition::VECIN, 1> queue;
         queue.AllocTensor<float>();
       }},
      {"compute before DeQue",
       [](GM_ADDR x, GM_ADDR y) {
         QueuedSquare k(x, y);
         LocalTensor<float> a = k.in_.AllocTensor<float>();
         DataCopy(a, k.x_, kCount);
         k.in_.EnQue(a);
         LocalTensor<float> b = k.out_.AllocTensor<float>();
         Mul(b, a, a, kCount);
       }},
      {"more events than ids",
       [](GM_ADDR, GM_ADDR) {
         TPipe pipe;
         TQue<TPosition::VECIN, 9> queue;
         pipe.InitBuffer(queue, 9, kBytes);
         for (int i = 0; i < 9; ++i) {
           LocalTensor<float> a = queue.AllocTensor<float>();
           queue.EnQue(a);
         }
       }},

      // ----------------------------------------------------------------------------------------- flags
      {"flag never waited for",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadAndCompute();
         k.StoreResult();
         SetFlag<HardEvent::MTE3_V>(EVENT_ID0);
       }},
      {"flag never set",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.Load();
         WaitFlag<HardEvent::MTE2_V>(EVENT_ID0);
       }},
      {"flag waited for by another id",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.Load();
         SetFlag<HardEvent::MTE2_V>(EVENT_ID0);
         WaitFlag<HardEvent::MTE2_V>(EVENT_ID1);
       }},
      {"flag set twice",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.Load();
         SetFlag<HardEvent::MTE2_V>(EVENT_ID0);
         SetFlag<HardEvent::MTE2_V>(EVENT_ID0);
       }},
      {"operator[] past the end",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         (void)k.a[2 * kCount];
       }},
      {"SetSize beyond the memory",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.a[kCount].SetSize(kCount + 1);
       }},
      {"a tensor used beyond its SetSize",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         k.b.SetSize(kCount - 1);
         k.Compute();
       }},
      {"L2 cache mode that is not there yet",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.x_.SetL2CacheHint(CacheMode::CACHE_MODE_PERSISTENT);
       }},
      {"reserved event id", [](GM_ADDR, GM_ADDR) { SetFlag<HardEvent::MTE2_V>(EVENT_ID6); }},
      {"two cores at fault, the lower one later",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         for (int i = 0; i < 20000 && GetBlockIdx() == 0; ++i) Duplicate(k.b, 1.0f, kCount);
         SetFlag<HardEvent::MTE2_V>(8);
       }},
      {"two cores at fault, the higher one later",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         for (int i = 0; i < 50000 + 50000 * GetBlockIdx(); ++i) Duplicate(k.b, 1.0f, kCount);
         SetFlag<HardEvent::MTE2_V>(8);
       }},
      {"event id 8", [](GM_ADDR, GM_ADDR) { SetFlag<HardEvent::MTE2_V>(8); }},
      {"release of an event id never allocated",
       [](GM_ADDR, GM_ADDR) {
         TPipe pipe;
         pipe.ReleaseEventID<HardEvent::MTE2_V>(0);
       }},

      // ------------------------------------------------------------------------- order between the pipes
      {"no order MTE2 to V",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.Load();
         k.Compute();
       }},
      {"flag of the wrong direction",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.Load();
         k.Order<HardEvent::V_MTE2>();
         k.Compute();
       }},
      {"flag set before the load",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         SetFlag<HardEvent::MTE2_V>(EVENT_ID0);
         k.Load();
         WaitFlag<HardEvent::MTE2_V>(EVENT_ID0);
         k.Compute();
       }},
      {"no order V to MTE3",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadAndCompute();
         k.Store();
       }},
      {"barrier of one pipe only",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadAndCompute();
         PipeBarrier<PIPE_V>();
         k.Store();
       }},
      {"no order V to MTE2",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadAndCompute();
         k.StoreResult();
         k.Load();
       }},
      {"no order MTE3 to V",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadAndCompute();
         k.StoreResult();
         k.Compute();
       }},
      {"no order MTE3 to MTE2",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadAndCompute();
         k.StoreResult();
         k.Order<HardEvent::V_MTE2>();
         DataCopy(k.b, k.x_, kCount);
       }},
      {"no order MTE2 to MTE3",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.Load();
         DataCopy(k.y_, k.a, kCount);
       }},
      {"two loads of one place",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.Load();
         k.Load();
       }},
      {"SetValue before a load, no auto sync",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.a.SetValue(0, 1.0f);
         k.Load();
       }},
      {"V after V, no auto sync",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadAndCompute();
         Muls(k.b, k.b, 2.0f, kCount);
       }},

      {"ASSERT",
       [](GM_ADDR, GM_ADDR) { ASSERT(GetBlockNum() == 0); }},

      // --------------------------------- right, though one may think otherwise: never to be refused
      {"right: barrier instead of flags",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.Load();
         PipeBarrier<PIPE_ALL>();
         k.Compute();
         PipeBarrier<PIPE_ALL>();
         k.Store();
       }},
      {"right: order passed on through V",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadAndCompute();
         k.StoreResult();                 // reads b on MTE3
         k.Order<HardEvent::MTE3_V>();    // V knows of it
         k.Order<HardEvent::V_MTE2>();    // and so does MTE2
         DataCopy(k.b, k.x_, kCount);
         k.Order<HardEvent::MTE2_V>();
         Mul(k.b, k.b, k.b, kCount);
         k.Order<HardEvent::V_MTE3>();
         PipeBarrier<PIPE_MTE3>();
         k.Store();
       }},
      {"right: two loads with a barrier",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.Load();
         PipeBarrier<PIPE_MTE2>();
         k.LoadAndCompute();
         k.StoreResult();
       }},
      {"right: S after S",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadAndCompute();
         k.Order<HardEvent::V_S>();
         const float first = k.b.GetValue(0);
         k.b.SetValue(0, 0.0f);
         k.b.SetValue(0, first);
         k.Order<HardEvent::S_MTE3>();
         k.StoreResult();
       }},
      {"right: SetValue and GetValue by auto sync",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         const float first = k.a.GetValue(0);
         k.Compute();
         k.b.SetValue(0, first * first);
         k.StoreResult();
       }},
      {"right: empty transfers",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         DataCopyPad(k.a, k.x_, {0, 4, 0, 0, 0}, {false, 0, 0, 0});
         DataCopyPad(k.a, k.x_, {1, 0, 0, 0, 0}, {false, 0, 0, 0});
         k.LoadAndCompute();
         k.StoreResult();
       }},
      {"right: in place",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         Mul(k.a, k.a, k.a, 64, 1, {1, 1, 1, 8, 8, 8});
         k.Order<HardEvent::V_MTE3>();
         DataCopy(k.y_, k.a, kCount);
       }},
      {"right: mask outside of the instruction",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         SetMaskNorm();
         SetVectorMask<float, MaskMode::NORMAL>(64);
         Mul<float, false>(k.b, k.a, k.a, MASK_PLACEHOLDER, 1, {1, 1, 1, 8, 8, 8});
         ResetMask();
         k.StoreResult();
       }},
      {"right: counter mode",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         k.LoadForCompute();
         SetMaskCount();
         SetVectorMask<float, MaskMode::COUNTER>(kCount);
         Mul<float, false>(k.b, k.a, k.a, MASK_PLACEHOLDER, 1, {1, 1, 1, 8, 8, 8});
         SetMaskNorm();
         ResetMask();
         k.StoreResult();
       }},
      {"right: padding with a value",
       [](GM_ADDR x, GM_ADDR y) {
         Square k(x, y);
         DataCopyPad(k.a, k.x_, {1, 4 * (kCount - 3), 0, 0, 0}, {true, 0, 3, 2.0f});
         k.Order<HardEvent::MTE2_V>();
         k.Compute();
         k.Order<HardEvent::V_MTE3>();
         DataCopyPad(k.y_, k.b, {1, 4 * (kCount - 3), 0, 0, 0});
         PipeBarrier<PIPE_ALL>();
         DataCopyPad(k.a, k.x_[kCount - 3], {1, 12, 0, 0, 0}, {false, 0, 0, 0});
         k.Order<HardEvent::MTE2_V>();
         Mul(k.b, k.a, k.a, 3);
         k.Order<HardEvent::V_MTE3>();
         DataCopyPad(k.y_[kCount - 3], k.b, {1, 12, 0, 0, 0});
       }},
  };
  return table;
}

}  // namespace

std::vector<std::string> fault_names() {
  std::vector<std::string> names;
  for (const auto& entry : kernels()) names.push_back(entry.first);
  return names;
}

void run_fault(const std::string& name, uint8_t* x, uint8_t* y) { kernels().at(name)(x, y); }
