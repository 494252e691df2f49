// What crosses from the plan to the kernel, and the arithmetic that both share: which core does
// which rows in which order. Plain C++, by value, no pointers.
//
// The kernel's scalar unit runs about one instruction a cycle, so what the host can decide is
// decided here: strides come in the unit of the instruction that takes them, and the kernel
// divides once, when a core looks up its share.
#pragma once

#include <cstdint>

#ifndef __aicore__  // the device compiler's mark, nothing on the host
#define __aicore__
#endif

/// Of what a kernel is made of: one function in the end, whose tensors are numbers in registers.
#define ROPE_INLINE __attribute__((always_inline)) __aicore__ inline

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

// RopeParams::kind
constexpr uint8_t kRotates = 0;         // rope_kernel.h
constexpr uint8_t kRotatesUpright = 1;  // with the steps of rope_upright.h
constexpr uint8_t kNorms = 2;           // norm_kernel.h
constexpr uint8_t kNormsArranged = 3;   // of rows that RopeArrangement puts in order

// RopeParams::upright: what a line of a box is. 0: rows are rotated as they lie.
constexpr int32_t kUprightTokens = 1;  // a token's heads
constexpr int32_t kUprightHeads = 2;   // a head's tokens

constexpr int32_t kRing = 3;  // boxes in flight: one being loaded, one rotated, one stored

__aicore__ inline constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
__aicore__ inline constexpr int64_t AlignUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }
__aicore__ inline constexpr int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }
__aicore__ inline constexpr int64_t Max(int64_t a, int64_t b) { return a < b ? b : a; }
__aicore__ inline constexpr int32_t Min(int32_t a, int32_t b) { return a < b ? a : b; }
__aicore__ inline constexpr int32_t Max(int32_t a, int32_t b) { return a < b ? b : a; }

/// The size of the pieces when `total` is cut into as few as possible of at most `limit`, evenly.
__aicore__ inline constexpr int64_t EvenPiece(int64_t total, int64_t limit) {
  return CeilDiv(total, CeilDiv(total, limit));
}

/// Columns of rows that one transfer moves, for all rows of a box.
struct RopeColumns {
  uint16_t gm;        // bytes from a row's beginning in global memory to the columns
  uint16_t ub;        // bytes from the buffer's beginning to the first row's columns
  uint16_t bytes;     // of the columns
  uint16_t ub_pitch;  // bytes from row to row in the unified buffer: whole blocks
  uint8_t fill;       // bytes of zeros that are loaded behind them: to the end of their last block,
                      // or of the one after it
  uint8_t ub_gap;     // whole blocks that are left alone from there to the next row
  uint8_t last;       // of a row's
};

/// How rows of one tensor move between global memory and the unified buffer. In a box, rows lie in
/// lines: its inner axis is the one whose rows are closer in global memory.
struct RopeMove {
  int64_t batch, token, head;  // bytes between neighbours in global memory
  int64_t inner, outer;        // bytes from row to row of a line, and from line to line
  uint8_t halves;              // 2: a row is moved as two rows, its halves; else 1
  uint8_t runs;                // rows of a line have no seam on either side: they are one block
  RopeColumns columns[4];
};

/// q or k.
struct RopeTensor {
  RopeMove in, out;
  int32_t heads;
  int32_t box_tokens, box_heads;  // most of a box
  int32_t step_lines;             // most lines that one round of vector instructions rotates
  int32_t row_blocks;             // 32-byte blocks from row to row in the unified buffer
  int32_t row_offset;             // bytes from a row's beginning there to what is rotated
  // Pairs that are transposed: neighbours (two blocks each) that lie after each other, and bytes to
  // the next so many.
  int32_t pair_rows, pair_pitch;
  uint8_t head_major;   // rows of a box: 0 [token][head], 1 [head][token]
  uint8_t parts;        // a box is part of a line: each of its rows counts as a line then
  uint8_t over_tokens;  // from line to line the token changes, not the head
  uint8_t shift;  // rows in the unified buffer are 2^shift full repeats and have no gap; else 0
};

/// cos or sin. Strides are 0 where it is broadcast.
struct RopeTable {
  RopeMove in;
  int32_t blocks;   // 32-byte blocks from row to row, as loaded or taken apart; 0 for one_row
  uint8_t one_row;  // a row serves all tokens
  uint8_t swap;     // its second half comes first in the tile: S = [sin2 | sin1]
};

/// The unified buffer: bytes from its beginning. What is rotated of a row is
/// [first half, pad | second half, pad].
struct RopeLayout {
  int32_t work;    // rows in fp32; fp32 rows have none, they are rotated where they were loaded;
                   // with a norm those of two boxes
  int32_t upper;   // a block of 0xFFFF0000, by which pairs of bf16 are taken apart
  int32_t tables;  // C and then S in fp32
  int32_t raw;     // cos and then sin as loaded
  int32_t cos_product;     // x·C
  int32_t sin_product;     // x·S
  int32_t ring;            // kRing buffers (1 for a joined box), each loaded, rotated, stored;
                           // with a norm one that is loaded and one that is stored
  int32_t norm;            // what RopeNormParams cuts
  int32_t upright_tables;  // C and then S, upright
  int32_t work_bytes, table_bytes, raw_bytes, product_bytes, slot_bytes;  // of one of them
  int32_t ring_bytes;                                                     // of all
  int32_t norm_bytes, upright_bytes;
  int32_t bytes;  // in all
};

/// Columns of a row, by repeats: the first column of each, the full ones first.
struct RopeChunks {
  uint64_t mask;  // lanes of the others
  int32_t full, count;
  int32_t shift;         // rows in fp32 are 2^shift full repeats and have no gap; else 0
  uint16_t columns[32];  // a number: CANN 8 copies this text to where our constants are not
};
static_assert(sizeof RopeChunks::columns / sizeof(uint16_t) == 2 * 1024 / kRepeatFloats);

/// Rows whose halves do not begin at whole blocks, or are pairs beside other columns: worked on as
/// [first half, pad | second half, pad | what is not rotated], by columns that are gathered.
struct RopeArrangement {
  int32_t width;   // columns, with padding
  int32_t before;  // columns of a row as it lies before those that are rotated
  int32_t rest;    // columns that are not rotated
  // Rows as they come, and as they leave: columns from an element of a half to the next one, and
  // from the first half's to the second's.
  int32_t in_step, in_second, out_step, out_second;
  int32_t kept;               // the last so many columns are not gathered: they are in place
  uint64_t kept_mask;         // lanes of the last repeat of them
  int32_t arrange, put_back;  // bytes from the beginning of the norm's part to offsets of columns:
                              // of a row as it lies, and of one so arranged
};

/// RMSNorm of rows before they are rotated. Zeros where there is none.
struct RopeNormParams {
  int32_t tensors[2];               // whether q's, and k's, rows have it
  int32_t weight_dtype;             // kTableFloat16, ...
  RopeColumns weight;               // how one is loaded
  int32_t weight_half_blocks;       // 32-byte blocks of a half of its pairs
  int32_t columns;                  // of a row: head_dim
  uint64_t mask;                    // lanes of the last repeat of them
  RopeChunks row;                   // a row as it is multiplied: as one run, or as two halves
  int32_t offset;                   // columns of a row before those that are rotated
  int32_t sum_blocks;               // blocks of sums of a row, one for each repeat: a power of two
  RopeChunks scaled;                // a row as it is multiplied by its factor
  int32_t spread;                   // by blocks this far from each other, and blocks of a factor
  float share, eps, weight_offset;  // share: 1 / head_dim
  RopeArrangement arrangement;      // of kNormsArranged

  // Bytes from the beginning of RopeLayout's part.
  int32_t weights;                         // of q and k in fp32
  int32_t raw_weights;                     // the same as loaded
  int32_t ones;                            // a block
  int32_t sums;                            // of blocks of the rows of a box
  int32_t factor, other_factor;            // of rows side by side, one made of the other
  int32_t factors;                         // the same in a block, or two
  int32_t weight_bytes, raw_weight_bytes;  // of one of them
};

struct RopeParams {
  RopeTensor tensors[2];  // q, k
  RopeTable tables[2];    // cos, sin
  RopeLayout ub;
  RopeNormParams norm;

  int32_t half;               // columns of a half
  int32_t half_pitch;         // elements from the first half of a row to the second
  int32_t table_half_blocks;  // 32-byte blocks of a half in the tables as loaded
  int32_t table_second;       // bytes from there to the second half: 0 where one serves as both
  int32_t float_blocks;       // 32-byte blocks from row to row in the work buffers: 512-byte steps
  int32_t lanes;              // columns of a half that are worked on: with padding where transposes
                              // read it or both halves are one run
  RopeChunks row;             // both halves of a row, as one run or half by half
  uint64_t half_mask;         // lanes of the last repeat of a half
  uint64_t pair_mask[2];      // the same for 16-bit elements of pairs: low, high
  uint64_t table_mask;        // the same for a half without padding
  uint8_t table_dtype;        // kTableFloat16, ...
  uint8_t round_tables;       // round the tables to q's dtype first
  uint8_t split_tables;       // table rows are (2i, 2i + 1) pairs
  uint8_t split_in;           // rows come as (2i, 2i + 1) pairs, else as two halves
  uint8_t join_out;           // rows leave as (2i, 2i + 1) pairs, else as two halves
  uint8_t transpose;          // the transposed rotation
  uint8_t round_each;         // round the products to q's dtype
  uint8_t kind;               // of kernel: kRotates, ...
  uint8_t upright;            // how pairs are rotated: kUprightTokens, kUprightHeads or 0
  uint8_t stream_in[2];       // q, k: read once and more than L2 holds, so not kept there
  uint8_t joined;  // each core has one token, all of whose rows are one box: q's, then k's

  // How the work is cut. Cores form a grid: token_parts × head_parts. Parts are even, the first
  // `more` of them are one longer.
  int32_t token_parts, head_parts;
  int32_t part_tokens, more_tokens, part_heads, more_heads;
  int32_t tokens;       // of one batch
  int32_t tile_tokens;  // tokens whose tables are in the unified buffer at once
  int32_t box_rows;     // most rows of one load: (tokens of the tile) × heads
  int32_t step_rows;    // most rows rotated by one round of vector instructions
};

/// Rows that are loaded, rotated and stored together: tokens × heads of q or k.
struct RopeBox {
  int32_t tensor;  // 0 q, 1 k
  const RopeTensor* rows;
  int64_t in, out;       // bytes from the first element of q or k, and of its output
  int32_t inner, outer;  // rows of a line, lines
  int32_t batch, token, tokens, head, heads;
  int32_t k_heads;     // of q's box: heads of k, from 0 on, whose rows are joined to it
  int32_t tile_token;  // first token of the tile, whose tables serve this box
  int32_t tile_tokens;
  int32_t starts_tile;  // 1 for the first box of a tile
  // 1: this box is of one shape with the box before it, and so far from it. All above is then of
  // the first such box.
  int32_t follows;
  int64_t in_step, out_step;
  int32_t token_step, head_step;
};

/// The boxes of one core, in order. A core owns a range of tokens (batch and tokens counted as one)
/// and a range of heads (q's and then k's counted as one). Its tokens go by in tiles; of a tile
/// first q's boxes, then k's; of the same heads, token after token. Boxes of one shape follow each
/// other along the tokens of a tile, or along the heads where a box has all of its tokens.
class RopeWalk {
 public:
  ROPE_INLINE RopeWalk(const RopeParams& params, int32_t core) : p_(params) {
    const int32_t token_part = core / p_.head_parts;
    const int32_t head_part = core - token_part * p_.head_parts;
    const int32_t begin = token_part * p_.part_tokens + Min(token_part, p_.more_tokens);
    left_ = p_.part_tokens + (token_part < p_.more_tokens);
    batch_ = begin / p_.tokens;
    tile_token_ = begin - batch_ * p_.tokens;
    const int32_t head = head_part * p_.part_heads + Min(head_part, p_.more_heads);
    const int32_t head_end = head + p_.part_heads + (head_part < p_.more_heads);
    const int32_t q_heads = p_.tensors[0].heads;
    q_begin_ = Min(head, q_heads);
    q_end_ = Min(head_end, q_heads);
    k_begin_ = Max(head - q_heads, 0);
    k_end_ = Max(head_end - q_heads, 0);
    joined_ = 0;
    if (p_.joined && head < q_heads) {
      joined_ = k_end_;
      k_end_ = 0;
    }
  }

  /// The first box: a core has at least one.
  ROPE_INLINE void First(RopeBox& box) {
    StartTile();
    MakeBox(box);
  }

  /// The box after `box`, which is what the last call gave; or false when there is none.
  ROPE_INLINE bool Next(RopeBox& box) {
    if (next_ + piece_ <= end_) {
      next_ += piece_;
      box.follows = 1;
      return true;
    }
    if (over_heads_) {
      head_ = next_;
    } else if (next_ < end_) {
      token_ = next_;
    } else {
      token_ = 0;
      head_ += box.heads;
    }
    if (head_ >= head_end_ && tensor_ == 0) StartK();
    if (head_ >= head_end_) {
      left_ -= tile_tokens_;
      if (left_ <= 0) return false;
      tile_token_ += tile_tokens_;
      if (tile_token_ == p_.tokens) {
        tile_token_ = 0;
        ++batch_;
      }
      StartTile();
    }
    MakeBox(box);
    return true;
  }

 private:
  ROPE_INLINE void StartTile() {
    tile_tokens_ = Min(Min(p_.tile_tokens, left_), p_.tokens - tile_token_);
    starts_tile_ = 1;
    tensor_ = 0;
    rows_ = &p_.tensors[0];
    head_ = q_begin_;
    head_end_ = q_end_;
    token_ = 0;
    if (q_begin_ >= q_end_) StartK();
  }

  ROPE_INLINE void StartK() {
    tensor_ = 1;
    rows_ = &p_.tensors[1];
    head_ = k_begin_;
    head_end_ = k_end_;
    token_ = 0;
  }

  ROPE_INLINE void MakeBox(RopeBox& box) {
    const RopeTensor& t = *rows_;
    box.tensor = tensor_;
    box.rows = rows_;
    box.batch = batch_;
    box.token = tile_token_ + token_;
    box.tokens = Min(t.box_tokens, tile_tokens_ - token_);
    box.head = head_;
    box.heads = Min(t.box_heads, head_end_ - head_);
    box.k_heads = joined_;
    box.inner = t.head_major ? box.tokens : box.heads;
    box.outer = t.head_major ? box.heads : box.tokens;
    box.in = box.batch * t.in.batch + box.token * t.in.token + box.head * t.in.head;
    box.out = box.batch * t.out.batch + box.token * t.out.token + box.head * t.out.head;
    box.tile_token = tile_token_;
    box.tile_tokens = tile_tokens_;
    box.starts_tile = starts_tile_;
    box.follows = 0;
    starts_tile_ = 0;

    over_heads_ = box.tokens == tile_tokens_;
    piece_ = over_heads_ ? box.heads : box.tokens;
    next_ = (over_heads_ ? head_ : token_) + piece_;
    end_ = over_heads_ ? head_end_ : tile_tokens_;
    box.token_step = over_heads_ ? 0 : piece_;
    box.head_step = over_heads_ ? piece_ : 0;
    box.in_step = piece_ * (over_heads_ ? t.in.head : t.in.token);
    box.out_step = piece_ * (over_heads_ ? t.out.head : t.out.token);
  }

  const RopeParams& p_;
  int32_t left_;                               // tokens of the core, from this tile on
  int32_t q_begin_, q_end_, k_begin_, k_end_;  // heads of the core
  int32_t joined_;                             // heads of k that are in q's box instead
  int32_t batch_, tile_token_, tile_tokens_;
  int32_t starts_tile_, tensor_;
  const RopeTensor* rows_;
  int32_t head_, head_end_, token_;  // of the box that the following ones are like
  // Along tokens or heads: where the next box would begin, its length, and where boxes end.
  int32_t next_, piece_, end_;
  bool over_heads_;
};

}  // namespace npu_rope
