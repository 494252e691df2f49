#include "core.h"

#include <algorithm>

#include "core_util.h"

namespace npu_rope::simulator {
namespace {

thread_local Core* current_core = nullptr;

constexpr uint8_t kUnwrittenByte = 0xcd;  // what UB holds before anyone wrote it

}  // namespace

Core::Core(const Launch& launch)
    : launch_(launch), ub_(new uint8_t[launch.ub_bytes]), valid_(launch.ub_bytes / kBlockBytes) {
  for (int pipe = 0; pipe < kPipes; ++pipe) {
    written_[pipe].resize(valid_.size());
    read_[pipe].resize(valid_.size());
  }
}

Core& Core::current() {
  if (!current_core) {
    throw SimulationError("an Ascend C function was called outside of a simulated launch");
  }
  return *current_core;
}

void Core::set_current(Core* core) { current_core = core; }

void Core::start(int index) {
  index_ = index;
  std::memset(ub_.get(), kUnwrittenByte, launch_.ub_bytes);
  std::fill(valid_.begin(), valid_.end(), 0u);
  for (int pipe = 0; pipe < kPipes; ++pipe) {
    std::fill(written_[pipe].begin(), written_[pipe].end(), 0u);
    std::fill(read_[pipe].begin(), read_[pipe].end(), 0u);
    issued_[pipe].clear();
    known_[pipe] = {};
    pending_events_[pipe].clear();
    for (int to = 0; to < kPipes; ++to) {
      for (Flag& flag : flags_[pipe][to]) flag = {};
      allocated_events_[pipe][to] = 0;
    }
  }
  last_event_.fill(-1);
  counter_mode_ = false;
  mask_[0] = mask_[1] = ~uint64_t{0};
  buffer_count_ = 0;
  pool_bytes_ = 0;
  leak_.clear();
  trace_ = {};
  trace_.core = index;
  gm_accesses_.clear();
}

void Core::finish() {
  if (!leak_.empty()) throw SimulationError(leak_);
  for (int from = 0; from < kPipes; ++from) {
    for (int to = 0; to < kPipes; ++to) {
      for (int id = 0; id < kEventIds; ++id) {
        const Flag& flag = flags_[from][to][id];
        if (flag.set) {
          fail("SetFlag", flag.where,
               text("event ", pipe_name(Pipe(from)), "_", pipe_name(Pipe(to)), " ", id,
                    " was set and never waited for: expected a WaitFlag with the same event and id "
                    "before the kernel ends"));
        }
      }
    }
  }
  if (counter_mode_) {
    throw SimulationError(text("core ", index_,
                               ": the kernel ended in counter mode: expected SetMaskNorm() after "
                               "SetMaskCount()"));
  }
}

CoreTrace Core::take_trace() { return std::move(trace_); }
std::vector<GmAccess> Core::take_gm_accesses() { return std::move(gm_accesses_); }

void Core::fail(const char* api, Where where, const std::string& what) const {
  throw SimulationError(text("core ", index_, ", ", place(where), ", ", api, ": ", what));
}

void Core::expect_range(const char* api, Where where, const char* parameter, int64_t value,
                        int64_t low, int64_t high) const {
  if (value < low || value > high) {
    fail(api, where, text(parameter, " is ", value, ", expected ", low, " to ", high));
  }
}

std::string Core::describe(Pipe pipe, uint32_t number) const {
  const Issued& issued = issued_[int(pipe)][number - 1];
  return text(issued.api, " (", place(issued.where), ", ", pipe_name(pipe), " instruction ", number,
              ")");
}

// ------------------------------------------------------------------------------------------- masks

void Core::set_mask_bits(uint64_t high, uint64_t low) {
  mask_[0] = low;
  mask_[1] = high;
}

void Core::set_mask_prefix(const char* api, Where where, int64_t count, uint32_t element_bytes) {
  if (counter_mode_) {
    fail(api, where,
         text("mask ", count,
              " was given as a number in counter mode: expected a mask "
              "array, or SetVectorMask and isSetMask = false"));
  }
  expect_range(api, where, "mask", count, 1, kRepeatBytes / element_bytes);
  const auto ones = [](int64_t n) { return n >= 64 ? ~uint64_t{0} : (uint64_t{1} << n) - 1; };
  set_mask_bits(count > 64 ? ones(count - 64) : 0, ones(count));
}

void Core::set_mask_array(const char* api, Where where, const uint64_t* mask,
                          uint32_t element_bytes) {
  if (element_bytes >= 4 && mask[1] != 0) {
    fail(api, where,
         text("mask[1] is ", hex(mask[1]),
              ", expected 0 for elements of 4 bytes, of "
              "which a repeat has only 64"));
  }
  set_mask_bits(mask[1], mask[0]);
}

Lanes Core::counted_lanes(const char* api, Where where, int64_t count,
                          uint32_t element_bytes) const {
  Lanes lanes{};
  lanes.per_repeat = kRepeatBytes / element_bytes;
  expect_range(api, where, "count", count, 1, launch_.ub_bytes / element_bytes);
  const auto total = static_cast<uint32_t>(count);
  lanes.prefix = true;
  lanes.repeats = (total + lanes.per_repeat - 1) / lanes.per_repeat;
  lanes.last = total - (lanes.repeats - 1) * lanes.per_repeat;
  lanes.active = lanes.repeats > 1 ? lanes.per_repeat : lanes.last;
  return lanes;
}

Lanes Core::lanes(const char* api, Where where, int64_t repeats, uint32_t element_bytes) const {
  if (counter_mode_) {
    return counted_lanes(api, where, static_cast<int64_t>(mask_[0]), element_bytes);
  }
  expect_range(api, where, "repeatTime", repeats, 1, kMaxRepeats);
  Lanes lanes{};
  lanes.per_repeat = kRepeatBytes / element_bytes;
  lanes.repeats = static_cast<uint32_t>(repeats);
  lanes.bits[0] = mask_[0];
  lanes.bits[1] = lanes.per_repeat > 64 ? mask_[1] : 0;
  const uint64_t low = lanes.bits[0], high = lanes.bits[1];
  if (low == 0 && high == 0) fail(api, where, "mask is 0, expected at least one bit set");
  const auto is_prefix = [](uint64_t bits) { return (bits & (bits + 1)) == 0; };
  lanes.prefix = high == 0 ? is_prefix(low) : low == ~uint64_t{0} && is_prefix(high);
  lanes.active = static_cast<uint32_t>(__builtin_popcountll(low) + __builtin_popcountll(high));
  if (lanes.prefix && lanes.active > lanes.per_repeat) lanes.active = lanes.per_repeat;
  lanes.last = lanes.active;
  return lanes;
}

// -----------------------------------------------------------------------------------
// synchronisation

void Core::set_flag(const char* api, Where where, Pipe from, Pipe to, int64_t id) {
  Flag& flag = flags_[int(from)][int(to)][id];
  if (flag.set) {
    fail(api, where,
         text("event ", pipe_name(from), "_", pipe_name(to), " ", id,
              " is set again before anyone waited for it (first set at ", place(flag.where),
              "): expected a WaitFlag between the two"));
  }
  flag.set = true;
  flag.where = where;
  flag.clock = known_[int(from)];
  flag.clock[int(from)] = static_cast<uint32_t>(issued_[int(from)].size());
  flag.event = last_event_[int(from)];
}

void Core::wait_flag(const char* api, Where where, Pipe from, Pipe to, int64_t id) {
  Flag& flag = flags_[int(from)][int(to)][id];
  if (!flag.set) {
    fail(api, where,
         text("waits for event ", pipe_name(from), "_", pipe_name(to), " ", id,
              ", which nothing before has set: expected a SetFlag with the same event "
              "and id, without it the core hangs"));
  }
  flag.set = false;
  Clock& known = known_[int(to)];
  for (int pipe = 0; pipe < kPipes; ++pipe) known[pipe] = std::max(known[pipe], flag.clock[pipe]);
  if (flag.event >= 0) pending_events_[int(to)].push_back(static_cast<uint32_t>(flag.event));
}

void Core::barrier(Pipe pipe) {
  known_[int(pipe)][int(pipe)] = static_cast<uint32_t>(issued_[int(pipe)].size());
  if (last_event_[int(pipe)] >= 0) {
    pending_events_[int(pipe)].push_back(static_cast<uint32_t>(last_event_[int(pipe)]));
  }
}

void Core::barrier_all() {
  for (int pipe = 0; pipe < kPipes; ++pipe) {
    for (int other = 0; other < kPipes; ++other) {
      known_[pipe][other] = static_cast<uint32_t>(issued_[other].size());
      if (last_event_[other] >= 0) {
        pending_events_[pipe].push_back(static_cast<uint32_t>(last_event_[other]));
      }
    }
  }
}

int Core::fetch_event(const char* api, Where where, Pipe from, Pipe to) {
  const uint8_t allocated = allocated_events_[int(from)][int(to)];
  for (int id = 0; id < kEventIds; ++id) {
    if (!(allocated >> id & 1)) return id;
  }
  fail(
      api, where,
      text("all ", kEventIds, " ids of event ", pipe_name(from), "_", pipe_name(to),
           " are taken: expected at most ", kEventIds, " tensors or events of one kind at a time"));
}

int Core::alloc_event(const char* api, Where where, Pipe from, Pipe to) {
  const int id = fetch_event(api, where, from, to);
  allocated_events_[int(from)][int(to)] |= uint8_t(1u << id);
  return id;
}

void Core::release_event(const char* api, Where where, Pipe from, Pipe to, int64_t id) {
  expect_range(api, where, "event id", id, 0, kEventIds - 1);
  uint8_t& allocated = allocated_events_[int(from)][int(to)];
  if (!(allocated >> id & 1)) {
    fail(api, where,
         text("id ", id, " of event ", pipe_name(from), "_", pipe_name(to),
              " is not allocated: expected an id from AllocEventID"));
  }
  allocated &= uint8_t(~(1u << id));
}

void Core::check_user_event(const char* api, Where where, Pipe from, Pipe to, int64_t id) const {
  const bool allocated =
      id >= 0 && id < kEventIds && (allocated_events_[int(from)][int(to)] >> id & 1);
  if (id >= 0 && id < kEventIds && (id < kReservedEventId || allocated)) return;
  fail(api, where,
       text("event id is ", id, ", expected 0 to ", kReservedEventId - 1,
            " (6 and 7 belong to the system unless AllocEventID hands them out)"));
}

// ----------------------------------------------------------------------------------------- buffers

void Core::reset_pool() {
  for (int i = 0; i < buffer_count_; ++i) {
    Buffer& buffer = buffers_[i];
    if (buffer.queued && buffer.state != Buffer::State::kFree && leak_.empty()) {
      const char* const last = buffer.state == Buffer::State::kOccupied   ? "AllocTensor"
                               : buffer.state == Buffer::State::kEnqueued ? "EnQue"
                                                                          : "DeQue";
      leak_ = text("core ", index_, ", ", place(buffer.where), ", ", last, ": this tensor at UB ",
                   hex(buffer.address), " is still held when the TPipe goes: expected ",
                   buffer.state == Buffer::State::kOccupied   ? "EnQue, DeQue and FreeTensor"
                   : buffer.state == Buffer::State::kEnqueued ? "DeQue and FreeTensor"
                                                              : "FreeTensor");
    }
    if (buffer.free_event >= 0) {
      wait_flag("~TPipe", buffer.where, buffer.free_from, buffer.free_to, buffer.free_event);
      buffer.free_event = -1;
    }
  }
  for (auto& to : allocated_events_) std::fill(std::begin(to), std::end(to), uint8_t{0});
  buffer_count_ = 0;
  pool_bytes_ = 0;
}

void Core::destroy_pipe() {
  reset_pool();
  barrier_all();
}

Buffer* Core::new_buffers(const char* api, Where where, int64_t count, int64_t bytes, bool queued) {
  expect_range(api, where, "num", count, 1, kMaxBuffers);
  expect_range(api, where, "len", bytes, 1, launch_.ub_bytes);
  if (buffer_count_ + count > kMaxBuffers) {
    fail(api, where,
         text("makes ", buffer_count_ + count, " buffers, expected at most ", kMaxBuffers,
              " in a kernel"));
  }
  const uint32_t each = align_up(static_cast<uint32_t>(bytes));
  const int64_t total = pool_bytes_ + count * int64_t{each};
  if (total > launch_.ub_usable) {
    fail(api, where,
         text("brings the UB in use to ", total, " bytes, expected at most ", launch_.ub_usable,
              ", what ", launch_.chip, " leaves for a kernel"));
  }
  Buffer* const first = &buffers_[buffer_count_];
  for (int64_t i = 0; i < count; ++i) {
    Buffer& buffer = buffers_[buffer_count_++];
    buffer = {};
    buffer.address = pool_bytes_;
    buffer.bytes = each;
    buffer.state = queued ? Buffer::State::kFree : Buffer::State::kOccupied;
    buffer.queued = queued;
    buffer.free_event = buffer.queue_event = -1;
    buffer.where = where;
    pool_bytes_ += each;
  }
  trace_.counters.ub_bytes = std::max<uint64_t>(trace_.counters.ub_bytes, pool_bytes_);
  return first;
}

}  // namespace npu_rope::simulator
