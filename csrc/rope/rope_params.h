// What crosses from the plan to the kernel, and the arithmetic that both share: which core does
// which rows in which order. Plain C++, by value, no pointers; strides are in elements.
#pragma once

#include <cstdint>

#ifndef __aicore__  // the device compiler's mark, nothing on the host
#define __aicore__
#endif

namespace npu_rope {

constexpr int32_t kBlockBytes = 32;    // unified buffer: unit of addresses and of vector strides
constexpr int32_t kRepeatFloats = 64;  // fp32 lanes of one vector repeat
constexpr int32_t kMaxRepeats = 255;   // repeats of one vector instruction, and its repeat stride
constexpr int32_t kMaxTransferBlocks = 4095;  // blockCount of one DataCopyPad

// RopeParams::table_dtype
constexpr int32_t kTableFloat16 = 0;
constexpr int32_t kTableBFloat16 = 1;
constexpr int32_t kTableFloat32 = 2;

constexpr int32_t kUnit = 16;  // 32-byte blocks that one transpose takes, and gives

constexpr int32_t kRing = 3;  // tiles in flight: one being loaded, one rotated, one stored

__aicore__ inline constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
__aicore__ inline constexpr int64_t AlignUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }
__aicore__ inline constexpr int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }
__aicore__ inline constexpr int64_t Max(int64_t a, int64_t b) { return a < b ? b : a; }

/// The size of the pieces when `total` is cut into as few as possible of at most `limit`, evenly.
__aicore__ inline constexpr int64_t EvenPiece(int64_t total, int64_t limit) {
  return CeilDiv(total, CeilDiv(total, limit));
}

/// q or k, with its output.
struct RopeTensor {
  int64_t in_batch, in_token, in_head;
  int64_t out_batch, out_token, out_head;
  int32_t heads;
  int32_t in_place;    // what is not rotated is already where it belongs
  int32_t whole;       // rows are moved as they lie, with what is not rotated in its place
  int32_t row_pitch;   // elements from row to row in the unified buffer
  int32_t row_offset;  // elements from a row's beginning there to what is rotated
  int32_t head_major;  // rows of a box in the unified buffer: 0 [token][head], 1 [head][token]
};

/// cos or sin. 0 where it is broadcast.
struct RopeTable {
  int64_t batch, token;
};

struct RopeParams {
  RopeTensor tensors[2];  // q, k
  RopeTable tables[2];    // cos, sin
  int64_t batch, tokens;
  int32_t head_dim, rotary_dim, rotary_offset;

  int32_t table_dtype;    // kTableFloat16, ...
  int32_t round_tables;   // round the tables to q's dtype first
  int32_t half_tables;    // table rows hold rotary_dim / 2 entries
  int32_t split_tables;   // table rows are (2i, 2i + 1) pairs
  int32_t split_in;       // rows come as (2i, 2i + 1) pairs, else as two halves
  int32_t transposes_in;  // and are split by transposes, as all but bf16 are
  int32_t join_out;       // rows leave as (2i, 2i + 1) pairs, else as two halves
  int32_t transpose;      // the transposed rotation

  // How the work is cut. Cores form a grid: token_parts × head_parts.
  int32_t token_parts, head_parts;
  int32_t tile_tokens;  // tokens whose tables are in the unified buffer at once
  int32_t box_rows;     // most rows of one load: (tokens of the tile) × heads
  int32_t step_rows;    // most rows rotated by one round of vector instructions

  // The unified buffer. What is rotated of a row is [first half, pad | second half, pad].
  int32_t half_pitch;        // elements from the first half of a row to the second
  int32_t row_parts;         // 1: rows are worked on as one run, padding too; 2: half by half
  int32_t table_half_pitch;  // the same in the tables as loaded
  int32_t float_pitch;       // fp32 elements from row to row in the work buffers: 512-byte steps
  int32_t work_bytes;        // rows in fp32 (0 for fp32: they are rotated where they were loaded)
  int32_t table_bytes;       // cos and sin in fp32, one of them; begins 256 bytes past its buffer
  int32_t raw_bytes;         // cos or sin as loaded
  int32_t gap_bytes;         // what keeps the products out of the rows' 64 KB third
  int32_t product_bytes;     // x·cos, or x·sin
  int32_t sin_shift;         // bytes that x·sin begins past its buffer: 0 or 256
  int32_t slot_bytes;        // one of the kRing load and store buffers
};

/// Rows that are loaded, rotated and stored together: tokens × heads of q or k.
struct RopeBox {
  int32_t tensor;  // 0 q, 1 k
  int64_t batch, token;
  int32_t tokens, head, heads;
  int64_t tile_token;  // first token of the tile, whose tables serve this box
  int32_t tile_tokens;
  int32_t starts_tile;  // 1 for the first box of a tile
};

/// The boxes of one core, in order. A core owns a range of tokens (batch and tokens counted as one)
/// and a range of heads (q's and then k's counted as one). Its tokens go by in tiles; of a tile
/// first q's boxes, then k's.
class RopeWalk {
 public:
  __aicore__ inline RopeWalk(const RopeParams& params, int64_t core) : p_(params) {
    const int64_t all_tokens = p_.batch * p_.tokens;
    const int64_t all_heads = p_.tensors[0].heads + p_.tensors[1].heads;
    const int64_t token_part = core / p_.head_parts;
    const int64_t head_part = core % p_.head_parts;
    begin_ = all_tokens * token_part / p_.token_parts;
    end_ = all_tokens * (token_part + 1) / p_.token_parts;
    head_begin_ = all_heads * head_part / p_.head_parts;
    head_end_ = all_heads * (head_part + 1) / p_.head_parts;
    StartTile();
  }

  /// The next box, or false when there is none.
  __aicore__ inline bool Next(RopeBox& box) {
    while (begin_ < end_) {
      for (; tensor_ < 2; NextTensor()) {
        if (head_ < tensor_head_end_) {
          MakeBox(box);
          return true;
        }
      }
      begin_ += tile_tokens_;
      StartTile();
    }
    return false;
  }

 private:
  __aicore__ inline void StartTile() {
    if (begin_ >= end_) return;
    batch_ = begin_ / p_.tokens;
    tile_token_ = begin_ % p_.tokens;
    tile_tokens_ = Min(Min(p_.tile_tokens, end_ - begin_), p_.tokens - tile_token_);
    starts_tile_ = 1;
    tensor_ = -1;
    NextTensor();
  }

  /// Heads of this core in the next tensor, and the box that suits them.
  __aicore__ inline void NextTensor() {
    ++tensor_;
    if (tensor_ == 2) return;
    const int64_t before = tensor_ == 0 ? 0 : p_.tensors[0].heads;
    const int64_t heads = p_.tensors[tensor_].heads;
    tensor_head_begin_ = Min(Max(head_begin_ - before, 0), heads);
    tensor_head_end_ = Min(Max(head_end_ - before, 0), heads);
    head_ = tensor_head_begin_;
    token_ = 0;
    const int64_t n = tensor_head_end_ - tensor_head_begin_;
    if (n == 0) return;
    if (p_.tensors[tensor_].head_major) {  // all tokens of the tile, as many heads as fit
      box_tokens_ = tile_tokens_;
      box_heads_ = Max(p_.box_rows / box_tokens_, 1);
    } else if (n <= p_.box_rows) {  // all heads, as many tokens as fit
      box_heads_ = n;
      box_tokens_ = p_.box_rows / n;
    } else {
      box_heads_ = EvenPiece(n, p_.box_rows);
      box_tokens_ = 1;
    }
  }

  __aicore__ inline void MakeBox(RopeBox& box) {
    box.tensor = tensor_;
    box.batch = batch_;
    box.token = tile_token_ + token_;
    box.tokens = static_cast<int32_t>(Min(box_tokens_, tile_tokens_ - token_));
    box.head = static_cast<int32_t>(head_);
    box.heads = static_cast<int32_t>(Min(box_heads_, tensor_head_end_ - head_));
    box.tile_token = tile_token_;
    box.tile_tokens = static_cast<int32_t>(tile_tokens_);
    box.starts_tile = starts_tile_;
    starts_tile_ = 0;
    token_ += box.tokens;
    if (token_ == tile_tokens_) {
      token_ = 0;
      head_ += box.heads;
    }
  }

  const RopeParams& p_;
  int64_t begin_, end_, head_begin_, head_end_;                    // of the core
  int64_t batch_ = 0, tile_token_ = 0, tile_tokens_ = 0;           // of the tile
  int64_t tensor_head_begin_ = 0, tensor_head_end_ = 0;            // of the core in q or k
  int64_t box_tokens_ = 0, box_heads_ = 0, token_ = 0, head_ = 0;  // of the next box
  int32_t tensor_ = 0, starts_tile_ = 0;
};

}  // namespace npu_rope
