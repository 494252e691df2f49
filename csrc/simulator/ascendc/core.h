// One simulated vector core: its unified buffer, its pipes and what they know of each other.
//
// Instructions take effect at once, in program order. What the chip would do in parallel is checked
// instead: every pipe numbers its instructions, and keeps for every other pipe the number up to
// which that pipe is known to have finished (a vector clock). Flags, queues and barriers carry this
// knowledge from pipe to pipe. Each 32-byte block of UB remembers by number who touched it last, so
// an access that nothing orders after a conflicting one is found, whatever the timing would be.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "simulator.h"

namespace npu_rope::simulator {

constexpr int kBlockBytes = 32;   // a data block: the unit of UB addresses and strides
constexpr int kRepeatBlocks = 8;  // what one repeat of a vector instruction takes
constexpr int kRepeatBytes = 256;
constexpr int kMaxRepeats = 255;
constexpr int kMaxBuffers = 64;  // of all queues and TBufs of a kernel
constexpr int kEventIds = 8;
constexpr int kReservedEventId = 6;  // 6 and 7 belong to the system

/// What is common to all cores of a launch.
struct Launch {
  std::string chip;
  int64_t ub_bytes, ub_usable;
  int block_dim;
  std::vector<GmRegion> regions;
  Options options;
};

using Clock = std::array<uint32_t, kPipes>;

/// A buffer that InitBuffer cut out of UB.
struct Buffer {
  enum class State : uint8_t { kFree, kOccupied, kEnqueued, kDequeued };
  uint32_t address, bytes;
  State state;
  bool queued;      // belongs to a queue, not to a TBuf
  int free_event;   // id of the flag set by FreeTensor and not waited for yet, or -1
  int queue_event;  // the same for EnQue
  Pipe free_from, free_to;
  Where where;  // of the last AllocTensor, EnQue, DeQue or FreeTensor
};

/// The lanes of a vector instruction that are active.
struct Lanes {
  uint32_t repeats;
  uint32_t per_repeat;  // of a full repeat: 256 bytes / the widest element
  uint32_t active;      // prefix: the first `active` of each repeat ...
  uint32_t last;        // ... and the first `last` of the last one
  bool prefix;
  uint64_t bits[2];  // otherwise lane i is active where bit i is set

  bool is_active(uint32_t lane) const {
    return prefix ? lane < active : (bits[lane >> 6] >> (lane & 63) & 1) != 0;
  }
};

/// A LocalTensor as an instruction sees it.
struct Operand {
  const char* role;  // "dst", "src0", ...
  const char* dtype;
  uint32_t element_bytes;
  uint32_t address;      // in UB
  uint32_t begin, end;   // of the memory the tensor was cut from
  const Buffer* buffer;  // nullptr: a tensor at an address the kernel chose itself
  uint32_t block_stride = 1, repeat_stride = kRepeatBlocks;
};

struct VectorCall {
  const char* api;
  Where where;
  Lanes lanes;
  int operand_count;
  Operand operands[3];  // destination, then sources
  bool may_accumulate;  // repeats may read, as the last source, what earlier ones wrote
  // Reductions, Brcb, Gather: the destination has lanes of its own, and no block is source and
  // destination.
  bool reshapes = false;
  Lanes dst_lanes{};
  // Gather: the sources are offsets; each lane reads an element of `gathered`, so many bytes behind
  // `gathered_from`.
  const Operand* gathered = nullptr;
  uint32_t gathered_from = 0;

  const Lanes& lanes_of(int operand) const { return reshapes && operand == 0 ? dst_lanes : lanes; }
};

/// An instruction on two lists of 16 blocks, each moved on by a step (in blocks) from repeat to
/// repeat.
struct BlockListCall {
  const char* api;
  Where where;
  uint32_t repeats, dst_step, src_step;
  Operand dst[16], src[16];
};

/// A transfer between GM and UB: `blocks` runs of `block_bytes`.
struct Transfer {
  const char* api;
  Where where;
  const uint8_t* gm;
  Operand ub;
  uint32_t blocks, block_bytes;
  int64_t gm_pitch;  // bytes from one block to the next
  uint32_t ub_pitch;
  uint32_t left_bytes = 0, right_bytes = 0;  // padding inside UB
  bool cached = true;                        // through L2 (SetL2CacheHint)
  bool fill = false;                         // with fill_value; else those bytes are nobody's
  uint32_t fill_bytes = 0;
  uint64_t fill_value = 0;
};

/// An access to GM, kept to be compared with all others at the end of the launch.
struct GmAccess {
  const uint8_t* begin;
  uint32_t blocks, block_bytes;
  int64_t pitch;
  int core;
  uint32_t order;  // among the accesses of the core
  Pipe pipe;
  uint32_t number;  // of the instruction on its pipe
  Clock known;      // to the pipe when it was issued
  bool write;
  const char* api;
  Where where;
};

/// Refuses unordered or shared bytes among the GM accesses of a launch.
void check_gm_accesses(const std::vector<std::vector<GmAccess>>& by_core, const Options& options);

class Core {
 public:
  explicit Core(const Launch& launch);

  /// The core of this thread. Throws outside of a launch.
  static Core& current();
  static void set_current(Core* core);

  void start(int index);
  /// After the kernel returned: refuses leaks and flags left over.
  void finish();
  CoreTrace take_trace();
  std::vector<GmAccess> take_gm_accesses();

  int index() const { return index_; }
  int block_dim() const { return launch_.block_dim; }
  uint8_t* ub() { return ub_.get(); }

  [[noreturn]] void fail(const char* api, Where where, const std::string& what) const;
  /// Refuses a parameter outside [low, high].
  void expect_range(const char* api, Where where, const char* parameter, int64_t value, int64_t low,
                    int64_t high) const;

  // Masks. The register outlives instructions, as on the chip.
  void set_mask_mode(bool counter) { counter_mode_ = counter; }
  void set_mask_bits(uint64_t high, uint64_t low);
  void set_mask_prefix(const char* api, Where where, int64_t count, uint32_t element_bytes);
  void set_mask_array(const char* api, Where where, const uint64_t* mask, uint32_t element_bytes);
  bool counter_mode() const { return counter_mode_; }
  /// What instructions on the first n elements leave behind.
  void reset_mask() {
    counter_mode_ = false;
    mask_[0] = mask_[1] = ~uint64_t{0};
  }
  Lanes lanes(const char* api, Where where, int64_t repeats, uint32_t element_bytes) const;
  Lanes counted_lanes(const char* api, Where where, int64_t count, uint32_t element_bytes) const;

  // Instructions. vector() checks and records; the caller then computes.
  void vector(const VectorCall& call);
  void vector_lists(const BlockListCall& call);
  void load(const Transfer& transfer);
  void store(const Transfer& transfer);
  void scalar_read(const char* api, Where where, const Operand& operand);
  void scalar_write(const char* api, Where where, const Operand& operand);
  void scalar_read_gm(const char* api, Where where, const uint8_t* gm, uint32_t bytes);

  /// The operand at a bare UB address, bounded by the buffer it falls into.
  Operand operand_at(const char* role, const char* dtype, uint32_t element_bytes,
                     uint64_t address) const;

  // Synchronisation.
  void set_flag(const char* api, Where where, Pipe from, Pipe to, int64_t id);
  void wait_flag(const char* api, Where where, Pipe from, Pipe to, int64_t id);
  void barrier(Pipe pipe);
  void barrier_all();
  int alloc_event(const char* api, Where where, Pipe from, Pipe to);
  int fetch_event(const char* api, Where where, Pipe from, Pipe to);
  void release_event(const char* api, Where where, Pipe from, Pipe to, int64_t id);
  void check_user_event(const char* api, Where where, Pipe from, Pipe to, int64_t id) const;

  // Buffers.
  void reset_pool();
  Buffer* new_buffers(const char* api, Where where, int64_t count, int64_t bytes, bool queued);
  void destroy_pipe();

 private:
  struct Issued {
    const char* api;
    Where where;
  };
  struct Flag {
    bool set = false;
    Clock clock{};
    Where where{};
    int64_t event = -1;  // last one on the source pipe, for the trace
  };

  uint32_t issue(Pipe pipe, const char* api, Where where);
  Event& new_event(Pipe pipe, const char* api, Where where);
  void check_operand(const char* api, Where where, const Operand& operand) const;
  void check_bounds(const char* api, Where where, const Operand& operand, uint32_t begin,
                    uint32_t end) const;
  void check_overlap(const VectorCall& call) const;
  void check_apart(const VectorCall& call) const;
  const GmRegion& check_gm(const Transfer& transfer, bool write) const;
  bool needs_order(Pipe pipe, Pipe other) const;
  void read_range(Pipe pipe, uint32_t number, const char* api, Where where, const Operand& operand,
                  uint32_t begin, uint32_t end);
  void write_range(Pipe pipe, uint32_t number, const char* api, Where where, const Operand& operand,
                   uint32_t begin, uint32_t end);
  void order_after(const uint32_t* numbers, Pipe pipe, Pipe other, bool other_wrote, bool writes,
                   const char* api, Where where, const Operand& operand, uint32_t first,
                   uint32_t last) const;
  void touch(const VectorCall& call, int operand, bool write, uint32_t number);
  void touch_gathered(const VectorCall& call, uint32_t number);
  void record_transfer(Pipe pipe, uint32_t number, const Transfer& transfer,
                       const GmRegion& region);
  std::string describe(Pipe pipe, uint32_t number) const;

  const Launch& launch_;
  int index_ = 0;
  std::unique_ptr<uint8_t[]> ub_;
  // Per 32-byte block of UB: which bytes hold something, and the last instruction of each pipe that
  // wrote or read it.
  std::vector<uint32_t> valid_;
  std::array<std::vector<uint32_t>, kPipes> written_, read_;

  std::array<std::vector<Issued>, kPipes> issued_;  // [number - 1]
  std::array<Clock, kPipes> known_;
  Flag flags_[kPipes][kPipes][kEventIds];
  uint8_t allocated_events_[kPipes][kPipes];

  bool counter_mode_ = false;
  uint64_t mask_[2];  // low, high

  std::array<Buffer, kMaxBuffers> buffers_;
  int buffer_count_ = 0;
  uint32_t pool_bytes_ = 0;
  std::string leak_;  // found while the TPipe was destroyed, where nothing may be thrown

  CoreTrace trace_;
  std::array<int64_t, kPipes> last_event_;                    // of each pipe, -1: none
  std::array<std::vector<uint32_t>, kPipes> pending_events_;  // waited for since the last event
  std::vector<GmAccess> gm_accesses_;
};

}  // namespace npu_rope::simulator
