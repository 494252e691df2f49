// Kernels in the idiom of the Ascend C guide, none of them made for the simulator.
#include "kernel_operator.h"
#include "params.h"

using namespace AscendC;

// ------------------------------------------------------- z = x + y, queues on both sides, two
// buffers

class VectorAdd {
 public:
  __aicore__ inline VectorAdd() {}
  __aicore__ inline void Init(GM_ADDR x, GM_ADDR y, GM_ADDR z, uint32_t total, uint32_t tile) {
    const uint32_t per_core = total / GetBlockNum();
    x_.SetGlobalBuffer((__gm__ half*)x + per_core * GetBlockIdx(), per_core);
    y_.SetGlobalBuffer((__gm__ half*)y + per_core * GetBlockIdx(), per_core);
    z_.SetGlobalBuffer((__gm__ half*)z + per_core * GetBlockIdx(), per_core);
    tile_ = tile;
    tiles_ = per_core / tile;
    pipe_.InitBuffer(in_x_, 2, tile * sizeof(half));
    pipe_.InitBuffer(in_y_, 2, tile * sizeof(half));
    pipe_.InitBuffer(out_z_, 2, tile * sizeof(half));
  }
  __aicore__ inline void Process() {
    for (uint32_t i = 0; i < tiles_; ++i) {
      CopyIn(i);
      Compute();
      CopyOut(i);
    }
  }

 private:
  __aicore__ inline void CopyIn(uint32_t i) {
    LocalTensor<half> x = in_x_.AllocTensor<half>();
    LocalTensor<half> y = in_y_.AllocTensor<half>();
    DataCopy(x, x_[i * tile_], tile_);
    DataCopy(y, y_[i * tile_], tile_);
    in_x_.EnQue(x);
    in_y_.EnQue(y);
  }
  __aicore__ inline void Compute() {
    LocalTensor<half> x = in_x_.DeQue<half>();
    LocalTensor<half> y = in_y_.DeQue<half>();
    LocalTensor<half> z = out_z_.AllocTensor<half>();
    Add(z, x, y, tile_);
    out_z_.EnQue<half>(z);
    in_x_.FreeTensor(x);
    in_y_.FreeTensor(y);
  }
  __aicore__ inline void CopyOut(uint32_t i) {
    LocalTensor<half> z = out_z_.DeQue<half>();
    DataCopy(z_[i * tile_], z, tile_);
    out_z_.FreeTensor(z);
  }

  TPipe pipe_;
  TQue<QuePosition::VECIN, 1> in_x_, in_y_;
  TQue<QuePosition::VECOUT, 1> out_z_;
  GlobalTensor<half> x_, y_, z_;
  uint32_t tile_, tiles_;
};

extern "C" __global__ __aicore__ void vector_add(GM_ADDR x, GM_ADDR y, GM_ADDR z, AddParams p) {
  KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
  VectorAdd op;
  op.Init(x, y, z, p.total, p.tile);
  op.Process();
}

// ------------------------------- columns [first, first + width) of every row, straight from GM to
// GM

extern "C" __global__ __aicore__ void strided_copy(GM_ADDR x, GM_ADDR y, StridedParams p) {
  TPipe pipe;
  TQueBind<QuePosition::VECIN, QuePosition::VECOUT, 1> queue;
  const uint32_t row_bytes = p.width * sizeof(bfloat16_t);
  pipe.InitBuffer(queue, 2, p.rows_per_tile * ((row_bytes + 31) / 32 * 32));
  GlobalTensor<bfloat16_t> source, target;
  source.SetGlobalBuffer((__gm__ bfloat16_t*)x);
  target.SetGlobalBuffer((__gm__ bfloat16_t*)y);
  for (uint32_t row = p.rows_per_tile * GetBlockIdx(); row < p.rows;
       row += p.rows_per_tile * GetBlockNum()) {
    const uint32_t rows = p.rows - row < p.rows_per_tile ? p.rows - row : p.rows_per_tile;
    LocalTensor<bfloat16_t> in = queue.AllocTensor<bfloat16_t>();
    const uint32_t gap = (p.columns - p.width) * sizeof(bfloat16_t);
    DataCopyPad(in, source[uint64_t(row) * p.columns + p.first],
                DataCopyExtParams(rows, row_bytes, gap, 0, 0),
                DataCopyPadExtParams<bfloat16_t>(false, 0, 0, 0));
    queue.EnQue(in);
    LocalTensor<bfloat16_t> out = queue.DeQue<bfloat16_t>();
    DataCopyPad(target[uint64_t(row) * p.width], out, DataCopyExtParams(rows, row_bytes, 0, 0, 0));
    queue.FreeTensor(out);
  }
}

// --------------- y = bf16(float(x) * scale), an intermediate in a TBuf, repeats and strides by
// hand

extern "C" __global__ __aicore__ void cast_pipeline(GM_ADDR x, GM_ADDR y, CastParams p) {
  TPipe pipe;
  TQue<TPosition::VECIN, 1> in_queue;
  TQue<TPosition::VECOUT, 1> out_queue;
  TBuf<TPosition::VECCALC> wide_buffer;
  constexpr uint32_t kTile = 4096;
  pipe.InitBuffer(in_queue, 2, kTile * sizeof(half));
  pipe.InitBuffer(out_queue, 2, kTile * sizeof(bfloat16_t));
  pipe.InitBuffer(wide_buffer, kTile * sizeof(float));
  GlobalTensor<half> source;
  GlobalTensor<bfloat16_t> target;
  source.SetGlobalBuffer((__gm__ half*)x);
  target.SetGlobalBuffer((__gm__ bfloat16_t*)y);
  LocalTensor<float> wide = wide_buffer.Get<float>();
  for (uint32_t at = kTile * GetBlockIdx(); at < p.total; at += kTile * GetBlockNum()) {
    const uint32_t n = p.total - at < kTile ? p.total - at : kTile;
    LocalTensor<half> in = in_queue.AllocTensor<half>();
    DataCopyPad(in, source[at], {1, static_cast<uint32_t>(n * sizeof(half)), 0, 0, 0},
                {false, 0, 0, 0});
    in_queue.EnQue(in);
    in = in_queue.DeQue<half>();
    const uint8_t repeats = n / 64;
    const uint32_t tail = n % 64;
    if (repeats > 0) Cast(wide, in, RoundMode::CAST_NONE, 64, repeats, {1, 1, 8, 4});
    if (tail > 0) {
      Cast(wide[repeats * 64], in[repeats * 64], RoundMode::CAST_NONE, tail, 1, {1, 1, 8, 4});
    }
    in_queue.FreeTensor(in);
    Muls(wide, wide, p.scale, n);
    LocalTensor<bfloat16_t> out = out_queue.AllocTensor<bfloat16_t>();
    Cast(out, wide, RoundMode::CAST_RINT, n);
    out_queue.EnQue(out);
    out = out_queue.DeQue<bfloat16_t>();
    DataCopyPad(target[at], out, {1, static_cast<uint32_t>(n * sizeof(bfloat16_t)), 0, 0, 0});
    out_queue.FreeTensor(out);
  }
}
