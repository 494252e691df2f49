// y = bf16(float(x) * scale), for x in bf16: the smallest kernel with a load, a computation and a
// store that overlap. Plain Ascend C: nothing here knows of a simulator.
#include "kernel_operator.h"
#include "scale_params.h"

using namespace AscendC;

constexpr uint32_t kTile = 4096;  // elements: 8 KB of bf16, 16 KB of fp32

class Scale {
 public:
  __aicore__ inline void Init(GM_ADDR x, GM_ADDR y, const ScaleParams& params) {
    x_.SetGlobalBuffer(reinterpret_cast<__gm__ bfloat16_t*>(x));
    y_.SetGlobalBuffer(reinterpret_cast<__gm__ bfloat16_t*>(y));
    total_ = params.total;
    scale_ = params.scale;
    pipe_.InitBuffer(in_, 2, kTile * sizeof(bfloat16_t));  // two: one is loaded, one is used
    pipe_.InitBuffer(out_, 2, kTile * sizeof(bfloat16_t));
    pipe_.InitBuffer(wide_, kTile * sizeof(float));
  }

  /// Tiles go round the cores.
  __aicore__ inline void Process() {
    for (uint32_t at = kTile * GetBlockIdx(); at < total_; at += kTile * GetBlockNum()) {
      const uint32_t count = total_ - at < kTile ? total_ - at : kTile;
      Load(at, count);
      Compute(count);
      Store(at, count);
    }
  }

 private:
  __aicore__ inline void Load(uint32_t at, uint32_t count) {
    LocalTensor<bfloat16_t> x = in_.AllocTensor<bfloat16_t>();
    DataCopyPad(x, x_[at], {1, static_cast<uint32_t>(count * sizeof(bfloat16_t)), 0, 0, 0},
                {false, 0, 0, 0});
    in_.EnQue(x);
  }

  __aicore__ inline void Compute(uint32_t count) {
    LocalTensor<bfloat16_t> x = in_.DeQue<bfloat16_t>();  // waits for the load
    LocalTensor<bfloat16_t> y = out_.AllocTensor<bfloat16_t>();
    LocalTensor<float> wide = wide_.Get<float>();
    Cast(wide, x, RoundMode::CAST_NONE, count);  // the chip does not multiply bf16
    Muls(wide, wide, scale_, count);
    Cast(y, wide, RoundMode::CAST_RINT, count);
    in_.FreeTensor(x);
    out_.EnQue(y);
  }

  __aicore__ inline void Store(uint32_t at, uint32_t count) {
    LocalTensor<bfloat16_t> y = out_.DeQue<bfloat16_t>();  // waits for the computation
    DataCopyPad(y_[at], y, {1, static_cast<uint32_t>(count * sizeof(bfloat16_t)), 0, 0, 0});
    out_.FreeTensor(y);
  }

  TPipe pipe_;
  TQue<TPosition::VECIN, 1> in_;
  TQue<TPosition::VECOUT, 1> out_;
  TBuf<TPosition::VECCALC> wide_;
  GlobalTensor<bfloat16_t> x_, y_;
  uint32_t total_;
  float scale_;
};

extern "C" __global__ __aicore__ void scale_bf16(GM_ADDR x, GM_ADDR y, ScaleParams params) {
  KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
  Scale kernel;
  kernel.Init(x, y, params);
  kernel.Process();
}
