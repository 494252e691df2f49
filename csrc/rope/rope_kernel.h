// The fused rotary embedding for A2/A3 vector cores (arch 2201).
//
//   y1 = x1*cos1 - x2*sin1,  y2 = x2*cos2 + x1*sin2        (transposed: y1 = x1*cos1 + x2*sin2,
//                                                                       y2 = x2*cos2 - x1*sin1)
// With rows x = [x1 | x2], C = [cos1 | cos2], S = [sin2 | sin1] (transposed: [sin1 | sin2]):
//
//   P = x*C, Q = x*S, then y1 = P1 - Q2, y2 = P2 + Q1      (transposed: y1 = P1 + Q2, y2 = P2 - Q1)
//
// so that no half is ever moved to the other's place. C and S of a token serve all its heads: they
// are read again and again by a repeat stride of 0. Pairs (2i, 2i+1) become two halves, and halves
// become pairs, by two 16-row transposes (rope_pairs.h), which run at full rate. Pairs of bf16 need
// none: bf16 is the upper half of fp32, so a shift and a mask make halves in fp32 of them
// (WidenPairs), and a shift and an Or make pairs of rounded halves (NarrowPairs).
//
// Work per element, in passes of 64 lanes a cycle by the documented rates (of 16-bit elements a
// transpose, And and Or take 128 a cycle, two transposes are one pass):
//
//                          bf16                         fp16                  fp32
//   half                   cast, mul 2, add, cast = 5   as bf16           5   mul 2, add        3
//   interleaved            4, round 2, join 1     = 7   split, 5, join    7   split 2, copy, 3,
//                                                                             join 2            8
//   deinterleave           as half                = 5   split, 5          6   split 2, copy, 3  6
//   deinterleave, transp.  as interleaved         = 7   5, join           6   3, join 2         5
//
// round_each, 16-bit: 4 more, both products are rounded and widened again (RoundProducts).
// With a norm before: norm_kernel.h.
//
// Memory: a ring of kRing buffers, each loaded, rotated in place and stored. MTE2 loads one box
// while V rotates the one before and MTE3 stores the one before that. Banks: rows in fp32 and the
// tables share the first 64 KB, at opposite 256-byte parity; the products and (for 16-bit types)
// the ring lie beyond, so that no instruction reads and writes one bank or reads one group twice.
//
// The scalar unit runs what is written here in order and issues every instruction, so nothing is
// computed twice that does not change: masks are set where a row's end is less than a repeat, and
// are full everywhere else; addresses move on by additions.
#pragma once

#include "kernel_operator.h"
#include "rope_pairs.h"
#include "rope_params.h"
#include "rope_rows.h"
#include "rope_upright.h"

namespace npu_rope {

using AscendC::BinaryRepeatParams;
using AscendC::GlobalTensor;
using AscendC::HardEvent;
using AscendC::LocalTensor;
using AscendC::MASK_PLACEHOLDER;
using AscendC::RoundMode;
using AscendC::UnaryRepeatParams;

template <typename T, typename U>
struct Same {
  static constexpr bool value = false;
};
template <typename T>
struct Same<T, T> {
  static constexpr bool value = true;
};

template <typename T, bool kUpright>
struct UprightOf {
  struct Type {
    ROPE_INLINE explicit Type(const RopeParams&) {}
  };
};
template <typename T>
struct UprightOf<T, true> {
  using Type = UprightStep<T>;
};

/// T: of q and k. kSplit: rows come as pairs. kJoin: rows leave as pairs. kUpright: pairs are
/// rotated by rope_upright.h.
template <typename T, bool kSplit, bool kJoin, bool kUpright>
class RopeKernel {
 protected:
  using Bits = typename BitsOf<T>::Type;
  static constexpr bool kFloat = Same<T, float>::value;
  static constexpr bool kBFloat16 = Same<T, bfloat16_t>::value;
  static constexpr bool kTransposes = !kUpright && !kBFloat16 && (kSplit || kJoin);
  static constexpr int32_t kBlock = kBlockBytes / sizeof(T);  // elements
  static constexpr int32_t kFloatBytes = sizeof(float);
  static constexpr int32_t kFloatBlock = kBlockBytes / kFloatBytes;
  static constexpr int32_t kTables = kRing;  // the tables' event, beside those of the ring

 public:
  ROPE_INLINE RopeKernel(const RopeParams& params, AscendC::TPipe& pipe)
      : p_(params), pipe_(pipe), upright_(params) {}

  ROPE_INLINE void Init(GM_ADDR q, GM_ADDR k, GM_ADDR cos, GM_ADDR sin, GM_ADDR q_out,
                        GM_ADDR k_out) {
    q_.SetGlobalBuffer(q);
    k_.SetGlobalBuffer(k);
    q_out_.SetGlobalBuffer(q_out);
    k_out_.SetGlobalBuffer(k_out);
    cos_.SetGlobalBuffer(cos);
    sin_.SetGlobalBuffer(sin);
    if (p_.stream_in[0]) q_.SetL2CacheHint(AscendC::CacheMode::CACHE_MODE_DISABLE);
    if (p_.stream_in[1]) k_.SetL2CacheHint(AscendC::CacheMode::CACHE_MODE_DISABLE);

    const RopeLayout& ub = p_.ub;
    pipe_.InitBuffer(buffer_, ub.bytes);
    work_ = Part(ub.work, ub.work_bytes);
    upper_ = Part(ub.upper, kBlockBytes);
    tables_ = Part(ub.tables, 2 * ub.table_bytes);
    raw_ = Part(ub.raw, 2 * ub.raw_bytes);
    cos_product_ = Part(ub.cos_product, ub.product_bytes);
    sin_product_ = Part(ub.sin_product, ub.product_bytes);
    ring_ = Part(ub.ring, ub.ring_bytes);
    if constexpr (kUpright) {
      upright_.Init(work_, Part(ub.upright_tables, 2 * ub.upright_bytes), cos_product_,
                    sin_product_, ring_);
    }
    if constexpr (kTransposes) {
      for (int32_t i = 0; i < 2; ++i) {
        pair_rows_[i].Make(p_.tensors[i].pair_rows, p_.tensors[i].pair_pitch);
      }
    }
  }

  ROPE_INLINE void Process() {
    PrepareBuffers();

    if constexpr (kUpright) upright_.Start();

    // While a box is rotated and stored the next one is loaded. What boxes of one shape have in
    // common is made once, before the first of them.
    AscendC::SetFlag<HardEvent::V_MTE2>(kTables);
    for (int32_t i = 0; i < kRing; ++i) AscendC::SetFlag<HardEvent::MTE3_MTE2>(i);
    RopeWalk walk(p_, static_cast<int32_t>(AscendC::GetBlockIdx()));
    RopeBox next;
    walk.First(next);
    LoadTables(next);
    int32_t slot = 0;
    GlobalTensor<uint8_t> from = Choose(q_, k_, next.tensor)[next.in];
    Lines loaded = LinesOf(next.rows->in, next.inner, next.outer);
    if (next.k_heads > 0) MoveJoined<true>(next, p_.tensors[1].in, k_);
    Load(next.rows->in, loaded, from, slot);
    bool more = true;
    do {
      const RopeBox box = next;
      if (box.starts_tile) PrepareTables(box.tile_tokens);
      Steps steps = StepsOf(box);
      Lines stored = LinesOf(box.rows->out, box.inner, box.outer);
      int32_t token = box.token - box.tile_token;
      GlobalTensor<uint8_t> to = Choose(q_out_, k_out_, box.tensor)[box.out];
      do {
        const int32_t here = slot;
        slot = slot + 1 == kRing ? 0 : slot + 1;
        more = walk.Next(next);
        if (more) {
          from = next.follows ? from[next.in_step] : Choose(q_, k_, next.tensor)[next.in];
          if (!next.follows) {
            if (next.starts_tile) LoadTables(next);
            loaded = LinesOf(next.rows->in, next.inner, next.outer);
          }
          Load(next.rows->in, loaded, from, slot);
        }
        AscendC::WaitFlag<HardEvent::MTE2_V>(here);
        if constexpr (kUpright) {
          upright_.Rotate(*box.rows, here * p_.ub.slot_bytes, box.inner);
        } else {
          Rotate(steps, here * p_.ub.slot_bytes, token);
        }
        AscendC::SetFlag<HardEvent::V_MTE3>(here);
        AscendC::WaitFlag<HardEvent::V_MTE3>(here);
        Move<false>(box.rows->out, stored, to, ring_, here * p_.ub.slot_bytes);
        if (box.k_heads > 0) MoveJoined<false>(box, p_.tensors[1].out, k_out_);
        AscendC::SetFlag<HardEvent::MTE3_MTE2>(here);
        to = to[box.out_step];
        token += box.token_step;
      } while (more && next.follows);
    } while (more);

    AscendC::WaitFlag<HardEvent::V_MTE2>(kTables);
    for (int32_t i = 0; i < kRing; ++i) AscendC::WaitFlag<HardEvent::MTE3_MTE2>(i);
  }

 protected:
  ROPE_INLINE void PrepareBuffers() {
    AscendC::ResetMask();
    if (p_.lanes > p_.half) {  // padding lanes are multiplied too: make them 0
      AscendC::Duplicate(tables_.template ReinterpretCast<float>(), 0.0f,
                         2 * p_.ub.table_bytes / kFloatBytes);
      AscendC::PipeBarrier<PIPE_V>();
    }
    if constexpr (kBFloat16 && kSplit && !kUpright) {
      AscendC::Duplicate(upper_.template ReinterpretCast<uint32_t>(), 0xFFFF0000u,
                         int32_t{kFloatBlock});
      AscendC::PipeBarrier<PIPE_V>();
    }
  }

  /// `bytes` of the unified buffer, as RopeLayout cuts it.
  ROPE_INLINE LocalTensor<uint8_t> Part(int32_t begin, int32_t bytes) {
    LocalTensor<uint8_t> part = buffer_.template Get<uint8_t>()[begin];
    part.SetSize(bytes);
    return part;
  }

  // ---- Global memory <-> unified buffer -----------------------------------------------------

  /// How rows are cut into transfers: each moves `blocks` blocks of `rows` rows, `pitch` bytes
  /// apart in global memory.
  struct Lines {
    int32_t count, blocks, rows;
    int64_t pitch;
  };

  /// Of `outer` lines of `inner` rows. A line whose rows have no seam is one block; lines that
  /// follow on at the rows' own distance are one transfer.
  ROPE_INLINE Lines LinesOf(const RopeMove& move, int32_t inner, int32_t outer) {
    const int32_t blocks = inner * move.halves;
    if (move.runs || blocks == 1) return {1, outer, blocks, move.outer};
    if (move.inner * blocks == move.outer) return {1, blocks * outer, 1, move.inner};
    return {outer, blocks, 1, move.inner};
  }

  ROPE_INLINE void LoadTables(const RopeBox& box) {
    AscendC::WaitFlag<HardEvent::V_MTE2>(kTables);
    LoadTable(p_.tables[0], box, cos_, 0);
    LoadTable(p_.tables[1], box, sin_, p_.ub.raw_bytes);
    AscendC::SetFlag<HardEvent::MTE2_V>(kTables);
  }

  ROPE_INLINE void LoadTable(const RopeTable& table, const RopeBox& box,
                             const GlobalTensor<uint8_t>& gm, int32_t begin) {
    const int64_t first = box.batch * table.in.batch + box.tile_token * table.in.token;
    Move<true>(table.in, LinesOf(table.in, table.one_row ? 1 : box.tile_tokens, 1), gm[first], raw_,
               begin);
  }

  ROPE_INLINE GlobalTensor<uint8_t> Choose(const GlobalTensor<uint8_t>& a,
                                           const GlobalTensor<uint8_t>& b, int32_t second) {
    GlobalTensor<uint8_t> chosen = a;
    if (second) chosen = b;
    return chosen;
  }

  /// The rows of a box.
  ROPE_INLINE void Load(const RopeMove& move, const Lines& lines, const GlobalTensor<uint8_t>& from,
                        int32_t slot) {
    AscendC::WaitFlag<HardEvent::MTE3_MTE2>(slot);
    Move<true>(move, lines, from, ring_, slot * p_.ub.slot_bytes);
    AscendC::SetFlag<HardEvent::MTE2_V>(slot);
  }

  /// The rows of k in a joined box, of which a core has one.
  template <bool kLoad>
  ROPE_INLINE void MoveJoined(const RopeBox& box, const RopeMove& move,
                              const GlobalTensor<uint8_t>& gm) {
    const int64_t first = box.batch * move.batch + box.token * move.token;
    Move<kLoad>(move, LinesOf(move, box.k_heads, 1), gm[first], ring_,
                box.heads * box.rows->row_blocks * kBlockBytes);
  }

  template <bool kLoad>
  ROPE_INLINE void Move(const RopeMove& move, const Lines& lines, const GlobalTensor<uint8_t>& gm,
                        const LocalTensor<uint8_t>& ub, int32_t ub_begin) {
    const RopeColumns* columns = move.columns;
    int32_t left = lines.count;
    int64_t from = columns->gm;
    int32_t to = ub_begin + columns->ub;
    for (;;) {
      const int32_t bytes = columns->bytes * lines.rows;
      AscendC::DataCopyExtParams params;
      params.blockCount = static_cast<uint16_t>(lines.blocks);
      params.blockLen = static_cast<uint32_t>(bytes);
      params.rsv = 0;
      const uint32_t gap = lines.blocks > 1 ? static_cast<uint32_t>(lines.pitch - bytes) : 0;
      params.srcStride = kLoad ? gap : columns->ub_gap;
      params.dstStride = kLoad ? columns->ub_gap : gap;
      Transfer<kLoad>(gm[from], ub[to], params, columns->fill);
      if (--left > 0) {
        from += move.outer;
        to += lines.blocks * columns->ub_pitch;
        continue;
      }
      if (columns->last) break;
      ++columns;
      left = lines.count;
      from = columns->gm;
      to = ub_begin + columns->ub;
    }
  }

  template <bool kLoad>
  ROPE_INLINE void Transfer(const GlobalTensor<uint8_t>& gm, const LocalTensor<uint8_t>& ub,
                            const AscendC::DataCopyExtParams& params, uint8_t fill) {
    if constexpr (kLoad) {
      AscendC::DataCopyPad(ub, gm, params, {fill > 0, 0, fill, 0});
    } else {
      AscendC::DataCopyPad(gm, ub, params);
    }
  }

  /// The first `width` columns of rows. mask: the lanes of the last repeat, where it is not full.
  struct Columns {
    int32_t width;
    uint64_t mask;
  };

  // ---- Tables -------------------------------------------------------------------------------

  ROPE_INLINE void PrepareTables(int32_t tokens) {
    AscendC::WaitFlag<HardEvent::MTE2_V>(kTables);
    if (p_.table_dtype == kTableFloat16) PrepareTables<half>(tokens);
    if (p_.table_dtype == kTableBFloat16) PrepareTables<bfloat16_t>(tokens);
    if (p_.table_dtype == kTableFloat32) PrepareTables<float>(tokens);
    AscendC::SetFlag<HardEvent::V_MTE2>(kTables);
  }

  /// Rows of two halves, the second `second` bytes behind the first.
  template <typename B>
  struct Halves {
    Rows<B> first;
    int32_t second;
  };

  /// cos and sin as loaded -> C and S of the tile in fp32, S behind the last row of C.
  template <typename Table>
  ROPE_INLINE void PrepareTables(int32_t tokens) {
    const RopeTable &cos = p_.tables[0], &sin = p_.tables[1];
    sin_rows_ = tokens * p_.float_blocks * kBlockBytes;
    if (p_.split_tables) {
      const int32_t half = p_.table_half_blocks;
      const int32_t second = half * kBlockBytes;  // of rounded rows, where pairs no longer are
      PairRows seamless;
      seamless.MakeSeamless();
      for (int32_t i = 0; i < 2; ++i) {
        const RopeTable& table = i == 0 ? cos : sin;
        const int32_t count = table.one_row ? half : half * tokens;
        const int32_t plane = SplitBlocks(count) * kBlockBytes;
        const uint64_t planes = Address(sin_product_, 0);
        SplitPairs<typename BitsOf<Table>::Type>({Address(raw_, i * p_.ub.raw_bytes),
                                                  Address(cos_product_, 0),
                                                  {planes, planes + plane}},
                                                 seamless, count);
        PlaceTable<Table>(i * sin_rows_, table, {{sin_product_, 0, table.blocks}, plane},
                          {{raw_, i * tokens * 2 * second, 2 * half}, second}, tokens);
        AscendC::PipeBarrier<PIPE_V>();
      }
      RoundTables<Table>({{raw_, 0, 2 * half}, second}, 2 * tokens);
    } else {
      const int32_t half = p_.table_second, blocks = p_.float_blocks / 2;
      const int32_t second = blocks / 2 * kBlockBytes;
      PlaceTable<Table>(0, cos, {{raw_, 0, cos.blocks}, half}, {{cos_product_, 0, blocks}, second},
                        tokens);
      PlaceTable<Table>(sin_rows_, sin, {{raw_, p_.ub.raw_bytes, sin.blocks}, half},
                        {{cos_product_, sin_rows_ / 2, blocks}, second}, tokens);
      AscendC::PipeBarrier<PIPE_V>();
      RoundTables<Table>({{cos_product_, 0, blocks}, second}, 2 * tokens);
    }
    if constexpr (kUpright) upright_.StandTables(tables_, tokens);
  }

  /// A table's rows -> `to` of the tile's and on; fp32 ones that are rounded on the way as far as
  /// `rounded`.
  template <typename Table>
  ROPE_INLINE void PlaceTable(int32_t to, const RopeTable& table, const Halves<Table>& halves,
                              const Halves<T>& rounded, int32_t rows) {
    Rows<Table> from = halves.first.After(table.swap ? halves.second : 0);
    Rows<Table> from2 = halves.first.After(table.swap ? 0 : halves.second);
    const Columns half{p_.half, p_.table_mask};
    if constexpr (!kFloat && Same<Table, float>::value) {
      if (p_.round_tables) {
        ConvertHalves(rounded.first, rounded.first.After(rounded.second), from, from2, half, rows);
        return;
      }
    }
    const Rows<float> wide{tables_, to, p_.float_blocks};
    ConvertHalves(wide, wide.After(p_.half_pitch * kFloatBytes), from, from2, half, rows);
  }

  /// Rows as PlaceTable left them -> rounded to T if they are to be.
  template <typename Table>
  ROPE_INLINE void RoundTables(const Halves<T>& rounded, int32_t rows) {
    if constexpr (!kFloat && !Same<T, Table>::value) {
      if (p_.round_tables == 0) return;
      const Rows<float> wide{tables_, 0, p_.float_blocks};
      Rows<float> wide2 = wide.After(p_.half_pitch * kFloatBytes);
      Rows<T> rounded2 = rounded.first.After(rounded.second);
      const Columns half{p_.half, p_.table_mask};
      if constexpr (!Same<Table, float>::value) {
        ConvertHalves(rounded.first, rounded2, wide, wide2, half, rows);
        AscendC::PipeBarrier<PIPE_V>();
      }
      ConvertHalves(wide, wide2, rounded.first, rounded2, half, rows);
      AscendC::PipeBarrier<PIPE_V>();
    }
  }

  // ---- Rotation -----------------------------------------------------------------------------

  /// How a box is rotated, by rounds of vector instructions: `lines` lines of `line` rows, of
  /// which a round takes `step`.
  struct Steps {
    const RopeTensor* rows;
    int32_t tensor, line, lines, step;
    int32_t bytes, tokens;  // from round to round: in the ring, and of the tables
    // How P = x*C and Q = x*S are made. An instruction takes 64 columns of the rows of a line, or
    // (across) of one row of each line, whichever are more.
    bool across;
    BinaryRepeatParams multiply;
    int32_t x_step, product_step, table_step;  // from instruction to instruction: elements
    int32_t shift;  // rows have no gap: casts take them as 2^shift rows of one repeat each
  };

  ROPE_INLINE Steps StepsOf(const RopeBox& box) {
    return StepsOf(box, kFloat ? box.rows->row_blocks : p_.float_blocks);
  }

  /// x_blocks: from row to row in fp32.
  ROPE_INLINE Steps StepsOf(const RopeBox& box, int32_t x_blocks) {
    const RopeTensor& t = *box.rows;
    const int32_t line = t.parts ? 1 : box.inner + box.k_heads;
    const int32_t lines = t.parts ? box.inner : box.outer;
    const int32_t step = Min(t.step_lines, lines);
    const int32_t blocks = p_.float_blocks;  // of the products and the tables
    const bool across = step > line && line * Max(x_blocks, blocks) <= kMaxRepeats;
    const int32_t stride = across ? line : 1, next = across ? 1 : line;
    // Heads of a token read its table again and again.
    const int32_t table_blocks = across == (t.over_tokens != 0) ? blocks : 0;
    return {&t,
            box.tensor,
            line,
            lines,
            step,
            step * line * t.row_blocks * kBlockBytes,
            t.over_tokens ? step : 0,
            across,
            BinaryRepeatParams(1, 1, 1, static_cast<uint8_t>(stride * blocks),
                               static_cast<uint8_t>(stride * x_blocks),
                               static_cast<uint8_t>(table_blocks)),
            next * x_blocks * kFloatBlock,
            next * blocks * kFloatBlock,
            (blocks - table_blocks) * kFloatBlock,
            step * line << t.shift <= kMaxRepeats ? t.shift : 0};
  }

  /// Rotates the box at byte `at` of the ring in place. token: of its first row, in the tile.
  ROPE_INLINE void Rotate(const Steps& steps, int32_t at, int32_t token) {
    at += steps.rows->row_offset;
    int32_t left = steps.lines;
    for (;;) {
      RotateStep(steps, at, token, Min(steps.step, left));
      left -= steps.step;
      if (left <= 0) break;
      at += steps.bytes;
      token += steps.tokens;
    }
  }

  /// Rotates `lines` lines of the box in place, the first at byte `at` of the ring.
  ROPE_INLINE void RotateStep(const Steps& steps, int32_t at, int32_t token, int32_t lines) {
    const int32_t rows = steps.line * lines;
    const int32_t half = p_.half_pitch;
    const int32_t plane = half / kBlock;  // blocks of a row in a plane of first or second elements
    const PairRows& pairs = pair_rows_[steps.tensor];
    const Rows<T> x{ring_, at, steps.rows->row_blocks};
    const Rows<float> y{work_, 0, p_.float_blocks};
    if constexpr (kFloat) {
      if constexpr (kSplit) Split(x, x, pairs, Address(cos_product_), rows);
      Multiply(x, steps, token, lines);
      if constexpr (kJoin) {  // as two planes, which is what JoinPairs reads
        const Rows<float> first{ring_, at, plane};
        Rows<float> second = first.After(rows * half * kFloatBytes);
        Combine(first, rows * half * kFloatBytes, rows);
        JoinPairs<Bits>({Address(x), Address(cos_product_), {Address(first), Address(second)}},
                        pairs, Address(sin_product_), rows * plane);
      } else {
        Combine(x, half * kFloatBytes, rows);
      }
    } else {
      if constexpr (kSplit) {
        Split(y, x, pairs, Address(y), rows);
      } else {
        CastWholeRows(y, x, steps.shift, rows, RoundMode::CAST_NONE);
        AscendC::PipeBarrier<PIPE_V>();
      }
      Multiply(y, steps, token, lines);
      if (p_.round_each) {
        const Rows<T> rounded{work_, 0, p_.float_blocks / 2};
        RoundProducts(rounded, rounded.After(rows * rounded.blocks * kBlockBytes), steps.shift,
                      rows);
      }
      Combine(y, half * kFloatBytes, rows);
      if constexpr (kJoin) {
        Join(x, y, pairs, steps.shift, rows);
      } else {
        CastWholeRows(x, y, steps.shift, rows, RoundMode::CAST_RINT);
      }
      AscendC::PipeBarrier<PIPE_V>();  // the next step writes what this one still reads
    }
  }

  /// P = x*C, Q = x*S.
  ROPE_INLINE void Multiply(const Rows<float>& x, const Steps& steps, int32_t token,
                            int32_t lines) {
    const uint8_t repeats = static_cast<uint8_t>(steps.across ? lines : steps.line);
    const int32_t loops = steps.across ? steps.line : lines;
    const Rows<float> p{cos_product_, 0, 0}, q{sin_product_, 0, 0};
    const Rows<float> c{tables_, token * p_.float_blocks * kBlockBytes, 0};
    Rows<float> s = c.After(sin_rows_);
    int32_t i = 0;
    do {
      if (i == p_.row.full) AscendC::SetVectorMask<float>(0, p_.row.mask);
      int32_t row = p_.row.columns[i], product = row, entry = row, left = loops;
      for (;;) {
        AscendC::Mul<float, false>(p[product], x[row], c[entry], MASK_PLACEHOLDER, repeats,
                                   steps.multiply);
        AscendC::Mul<float, false>(q[product], x[row], s[entry], MASK_PLACEHOLDER, repeats,
                                   steps.multiply);
        if (--left == 0) break;
        row += steps.x_step;
        product += steps.product_step;
        entry += steps.table_step;
      }
    } while (++i < p_.row.count);
    if (p_.row.count > p_.row.full) AscendC::ResetMask();
    AscendC::PipeBarrier<PIPE_V>();
  }

  /// P and Q as eager PyTorch has them: rounded to T. Rows of T are scratch for each.
  ROPE_INLINE void RoundProducts(const Rows<T>& rounded_p, const Rows<T>& rounded_q, int32_t shift,
                                 int32_t rows) {
    const Rows<float> p{cos_product_, 0, p_.float_blocks}, q{sin_product_, 0, p_.float_blocks};
    CastWholeRows(rounded_p, p, shift, rows, RoundMode::CAST_RINT);
    CastWholeRows(rounded_q, q, shift, rows, RoundMode::CAST_RINT);
    AscendC::PipeBarrier<PIPE_V>();
    CastWholeRows(p, rounded_p, shift, rows, RoundMode::CAST_NONE);
    CastWholeRows(q, rounded_q, shift, rows, RoundMode::CAST_NONE);
    AscendC::PipeBarrier<PIPE_V>();
  }

  /// y1 = P1 - Q2, y2 = P2 + Q1; transposed: y2 = P2 - Q1, y1 = P1 + Q2. y: y1, and y2 `second`
  /// bytes behind it.
  ROPE_INLINE void Combine(const Rows<float>& y, int32_t second, int32_t rows) {
    const uint8_t blocks = static_cast<uint8_t>(p_.float_blocks);
    const BinaryRepeatParams params(1, 1, 1, static_cast<uint8_t>(y.blocks), blocks, blocks);
    const uint8_t repeats = static_cast<uint8_t>(rows);
    const bool swap = p_.transpose;
    const int32_t half = p_.half_pitch * kFloatBytes;
    const int32_t a = swap ? half : 0, b = swap ? 0 : half;
    Rows<float> difference = y.After(swap ? second : 0), sum = y.After(swap ? 0 : second);
    const Rows<float> p{cos_product_, 0, 0}, q{sin_product_, 0, 0};
    const int32_t width = p_.lanes;
    for (int32_t i = 0;; i += kRepeatFloats) {
      const int32_t left = width - i;
      if (left < kRepeatFloats) AscendC::SetVectorMask<float>(0, p_.half_mask);
      AscendC::Sub<float, false>(difference[i], p.After(a)[i], q.After(b)[i], MASK_PLACEHOLDER,
                                 repeats, params);
      AscendC::Add<float, false>(sum[i], p.After(b)[i], q.After(a)[i], MASK_PLACEHOLDER, repeats,
                                 params);
      if (left <= kRepeatFloats) break;
    }
    if (width % kRepeatFloats != 0) AscendC::ResetMask();
    AscendC::PipeBarrier<PIPE_V>();
  }

  // ---- Rows ---------------------------------------------------------------------------------

  /// Columns of rows, copied, widened or rounded.
  template <typename To, typename From>
  ROPE_INLINE void ConvertRows(const Rows<To>& to, const Rows<From>& from, const Columns& columns,
                               int32_t rows) {
    for (int32_t i = 0;; i += kRepeatFloats) {
      const int32_t left = columns.width - i;
      if (left < kRepeatFloats) AscendC::SetVectorMask<float>(0, columns.mask);
      Convert(to[i], from[i], static_cast<uint8_t>(to.blocks), static_cast<uint8_t>(from.blocks),
              static_cast<uint8_t>(rows));
      if (left <= kRepeatFloats) break;
    }
    if (columns.width % kRepeatFloats != 0) AscendC::ResetMask();
  }

  /// Both halves of rows. shift: as in Steps.
  template <typename D, typename S>
  ROPE_INLINE void CastWholeRows(const Rows<D>& to, const Rows<S>& from, int32_t shift,
                                 int32_t rows, RoundMode mode) {
    CastChunks(p_.row, to, from, shift, rows, mode);
  }

  template <typename D, typename S>
  ROPE_INLINE void CastChunks(const RopeChunks& chunks, const Rows<D>& to, const Rows<S>& from,
                              int32_t shift, int32_t rows, RoundMode mode) {
    const UnaryRepeatParams params(1, 1, static_cast<uint8_t>(to.blocks >> shift),
                                   static_cast<uint8_t>(from.blocks >> shift));
    const uint8_t repeats = static_cast<uint8_t>(rows << shift);
    const int32_t count = chunks.count >> shift;
    int32_t i = 0;
    do {
      if (i == chunks.full) AscendC::SetVectorMask<float>(0, chunks.mask);
      const int32_t c = chunks.columns[i];
      AscendC::Cast<D, S, false>(to[c], from[c], mode, MASK_PLACEHOLDER, repeats, params);
    } while (++i < count);
    if (count > chunks.full) AscendC::ResetMask();
  }

  /// The same with both halves of rows, an instruction of either in turn.
  template <typename To, typename From>
  ROPE_INLINE void ConvertHalves(const Rows<To>& to, const Rows<To>& to2, const Rows<From>& from,
                                 const Rows<From>& from2, const Columns& columns, int32_t rows) {
    for (int32_t i = 0;; i += kRepeatFloats) {
      const int32_t left = columns.width - i;
      if (left < kRepeatFloats) AscendC::SetVectorMask<float>(0, columns.mask);
      Convert(to[i], from[i], static_cast<uint8_t>(to.blocks), static_cast<uint8_t>(from.blocks),
              static_cast<uint8_t>(rows));
      Convert(to2[i], from2[i], static_cast<uint8_t>(to.blocks), static_cast<uint8_t>(from.blocks),
              static_cast<uint8_t>(rows));
      if (left <= kRepeatFloats) break;
    }
    if (columns.width % kRepeatFloats != 0) AscendC::ResetMask();
  }

  template <typename To, typename From>
  ROPE_INLINE void Convert(const LocalTensor<To>& to, const LocalTensor<From>& from,
                           uint8_t to_blocks, uint8_t from_blocks, uint8_t repeats) {
    if constexpr (Same<To, From>::value) {
      AscendC::CopyRepeatParams params;
      params.dstStride = 1;
      params.srcStride = 1;
      params.dstRepeatSize = to_blocks;
      params.srcRepeatSize = from_blocks;
      AscendC::Copy<To, false>(to, from, MASK_PLACEHOLDER, repeats, params);
    } else {
      constexpr RoundMode kMode =
          Same<To, float>::value ? RoundMode::CAST_NONE : RoundMode::CAST_RINT;
      const UnaryRepeatParams params(1, 1, to_blocks, from_blocks);
      AscendC::Cast<To, From, false>(to, from, kMode, MASK_PLACEHOLDER, repeats, params);
    }
  }

  // ---- Pairs <-> halves ---------------------------------------------------------------------

  /// Pairs x -> two halves `to` in fp32. Where they are transposed, the lines between lie in
  /// another third of the unified buffer than rows and planes, where no bank is both read and
  /// written.
  ROPE_INLINE void Split(const Rows<float>& to, const Rows<T>& x, const PairRows& pairs,
                         uint64_t lines, int32_t rows) {
    if constexpr (kBFloat16) {
      WidenPairs(to, x, rows);
    } else {
      const int32_t plane = p_.half_pitch / kBlock;  // blocks of a row
      const Columns columns{p_.lanes, p_.half_mask};
      const Rows<T> even{sin_product_, 0, plane};
      Rows<T> odd = even.After(SplitBlocks(rows * plane) * kBlockBytes);
      Rows<float> to2 = to.After(p_.half_pitch * kFloatBytes);
      SplitPairs<Bits>({Address(x), lines, {Address(even), Address(odd)}}, pairs, rows * plane);
      ConvertHalves(to, to2, even, odd, columns, rows);
    }
    AscendC::PipeBarrier<PIPE_V>();
  }

  /// The other way round, rounded; y is scratch then.
  ROPE_INLINE void Join(const Rows<T>& to, const Rows<float>& y, const PairRows& pairs,
                        int32_t shift, int32_t rows) {
    if constexpr (kBFloat16) {
      NarrowPairs(to, y, shift, rows);
    } else {
      const int32_t plane = p_.half_pitch / kBlock;
      const Columns columns{p_.lanes, p_.half_mask};
      const Rows<T> first{cos_product_, 0, plane};
      Rows<T> second = first.After(rows * plane * kBlockBytes);
      ConvertHalves(first, second, y, y.After(p_.half_pitch * kFloatBytes), columns, rows);
      AscendC::PipeBarrier<PIPE_V>();
      // Once the planes are in lines, their buffer is spare.
      JoinPairs<Bits>({Address(to), Address(y), {Address(first), Address(second)}}, pairs,
                      Address(cos_product_), rows * plane);
    }
  }

  /// Rows of bf16 pairs -> first and second elements in fp32. bf16 is the upper half of fp32, and
  /// of a pair read as 32 bits the first element is the lower half.
  ROPE_INLINE void WidenPairs(const Rows<float>& wide, const Rows<bfloat16_t>& x, int32_t rows) {
    const uint8_t to = static_cast<uint8_t>(p_.float_blocks);
    const uint8_t from = static_cast<uint8_t>(x.blocks);
    const uint8_t repeats = static_cast<uint8_t>(rows);
    const UnaryRepeatParams shift(1, 1, to, from);
    const BinaryRepeatParams mask(1, 1, 0, to, from, 0);
    const Rows<uint32_t> pairs{x.part, x.begin, 0}, first{wide.part, wide.begin, 0};
    const Rows<uint16_t> halves{x.part, x.begin, 0}, upper{upper_, 0, 0};
    const Rows<uint16_t> second{wide.part, wide.begin + p_.half_pitch * kFloatBytes, 0};
    const int32_t width = p_.lanes;
    for (int32_t i = 0;; i += kRepeatFloats) {
      const int32_t left = width - i;
      const bool partial = left < kRepeatFloats;
      if (partial) AscendC::SetVectorMask<uint32_t>(0, p_.half_mask);
      AscendC::ShiftLeft<uint32_t, false>(first[i], pairs[i], uint32_t{16}, MASK_PLACEHOLDER,
                                          repeats, shift);
      if (partial) AscendC::SetVectorMask<uint16_t>(p_.pair_mask[1], p_.pair_mask[0]);
      AscendC::And<uint16_t, false>(second[2 * i], halves[2 * i], upper[0], MASK_PLACEHOLDER,
                                    repeats, mask);
      if (left <= kRepeatFloats) break;
    }
    if (width % kRepeatFloats != 0) AscendC::ResetMask();
  }

  /// The other way round: halves y are rounded to bf16, as fp32 again, and the first elements'
  /// upper halves moved into the seconds' lower ones.
  ROPE_INLINE void NarrowPairs(const Rows<bfloat16_t>& x, const Rows<float>& y, int32_t shift,
                               int32_t rows) {
    const uint8_t blocks = static_cast<uint8_t>(p_.float_blocks);
    const Rows<bfloat16_t> rounded{cos_product_, 0, blocks / 2};
    CastWholeRows(rounded, y, shift, rows, RoundMode::CAST_RINT);
    AscendC::PipeBarrier<PIPE_V>();
    CastWholeRows(y, rounded, shift, rows, RoundMode::CAST_NONE);
    AscendC::PipeBarrier<PIPE_V>();
    const uint8_t repeats = static_cast<uint8_t>(rows);
    const UnaryRepeatParams down(1, 1, blocks, blocks);
    const BinaryRepeatParams join(1, 1, 1, static_cast<uint8_t>(x.blocks), blocks, blocks);
    const Rows<uint32_t> first{y.part, y.begin, 0}, moved{sin_product_, 0, 0};
    const Rows<uint16_t> lower{sin_product_, 0, 0};
    const Rows<uint16_t> second{y.part, y.begin + p_.half_pitch * kFloatBytes, 0};
    const Rows<uint16_t> halves{x.part, x.begin, 0};
    const int32_t width = p_.lanes;
    for (int32_t i = 0;; i += kRepeatFloats) {
      const int32_t left = width - i;
      const bool partial = left < kRepeatFloats;
      if (partial) AscendC::SetVectorMask<uint32_t>(0, p_.half_mask);
      AscendC::ShiftRight<uint32_t, false>(moved[i], first[i], uint32_t{16}, MASK_PLACEHOLDER,
                                           repeats, down);
      AscendC::PipeBarrier<PIPE_V>();
      if (partial) AscendC::SetVectorMask<uint16_t>(p_.pair_mask[1], p_.pair_mask[0]);
      AscendC::Or<uint16_t, false>(halves[2 * i], lower[2 * i], second[2 * i], MASK_PLACEHOLDER,
                                   repeats, join);
      if (left <= kRepeatFloats) break;
    }
    if (width % kRepeatFloats != 0) AscendC::ResetMask();
  }

  const RopeParams& p_;
  AscendC::TPipe& pipe_;
  GlobalTensor<uint8_t> q_, k_, cos_, sin_, q_out_, k_out_;

  AscendC::TBuf<AscendC::TPosition::VECIN> buffer_;  // all of it, cut as RopeLayout says
  LocalTensor<uint8_t> work_;         // rows in fp32: x, then y; also the scratch of transposes
  LocalTensor<uint8_t> upper_;        // a block of ones in the upper halves
  LocalTensor<uint8_t> tables_;       // C and S of the tile
  LocalTensor<uint8_t> raw_;          // cos and sin as loaded
  LocalTensor<uint8_t> cos_product_;  // P; also planes, and the scratch of table work
  LocalTensor<uint8_t> sin_product_;  // Q; the same
  LocalTensor<uint8_t> ring_;
  int32_t sin_rows_;       // bytes from C to S
  PairRows pair_rows_[2];  // of q and k, where they are transposed
  typename UprightOf<T, kUpright>::Type upright_;
};

}  // namespace npu_rope
