// What every instruction does before its result is computed: check, remember, record.
#include <algorithm>

#include "core_util.h"

namespace npu_rope::simulator {
namespace {

constexpr uint8_t kNobodysByte = 0xcd;  // put around data that a transfer pads

/// Per repeat: 16 bank groups of 3 banks each; a group serves one 32-byte row a cycle.
BankConflicts count_conflicts(const VectorCall& call) {
  constexpr uint32_t kGroups = 16, kThirdBytes = 64 * 1024;
  BankConflicts conflicts;
  for (uint32_t repeat = 0; repeat < call.lanes.repeats; ++repeat) {
    uint32_t reads[kGroups][2 * kRepeatBlocks], read_count[kGroups] = {};
    uint32_t writes[kGroups] = {};
    uint8_t thirds_read[kGroups] = {};
    bool read_read = false, write_write = false, read_write = false;
    for (int o = 1; o < call.operand_count; ++o) {
      const uint32_t blocks = repeat_blocks(call.lanes_of(o), call.operands[o], repeat);
      for (uint32_t b = 0; b < blocks; ++b) {
        const uint32_t row = block_address(call.operands[o], repeat, b) / kBlockBytes;
        const uint32_t group = row % kGroups;
        uint32_t* const rows = reads[group];
        if (std::find(rows, rows + read_count[group], row) == rows + read_count[group]) {
          read_read |= read_count[group] > 0;
          rows[read_count[group]++] = row;
          thirds_read[group] |= uint8_t(1u << (row * kBlockBytes / kThirdBytes));
        }
      }
    }
    const uint32_t blocks = repeat_blocks(call.lanes_of(0), call.operands[0], repeat);
    for (uint32_t b = 0; b < blocks; ++b) {
      const uint32_t row = block_address(call.operands[0], repeat, b) / kBlockBytes;
      const uint32_t group = row % kGroups;
      write_write |= writes[group]++ > 0;
      read_write |= (thirds_read[group] >> (row * kBlockBytes / kThirdBytes) & 1) != 0;
    }
    conflicts.read_read += read_read;
    conflicts.write_write += write_write;
    conflicts.read_write += read_write;
  }
  return conflicts;
}

}  // namespace

uint32_t Core::issue(Pipe pipe, const char* api, Where where) {
  issued_[int(pipe)].push_back({api, where});
  return static_cast<uint32_t>(issued_[int(pipe)].size());
}

Event& Core::new_event(Pipe pipe, const char* api, Where where) {
  Event event{};
  event.api = api;
  event.where = where;
  event.pipe = pipe;
  event.gm_region = -1;
  std::vector<uint32_t>& waits = pending_events_[int(pipe)];
  if (pipe == Pipe::S && launch_.options.auto_sync) {
    for (int other = 1; other < kPipes; ++other) {
      if (last_event_[other] >= 0) waits.push_back(uint32_t(last_event_[other]));
    }
  }
  std::sort(waits.begin(), waits.end());
  waits.erase(std::unique(waits.begin(), waits.end()), waits.end());
  event.first_dependency = static_cast<uint32_t>(trace_.dependencies.size());
  event.dependency_count = static_cast<uint32_t>(waits.size());
  trace_.dependencies.insert(trace_.dependencies.end(), waits.begin(), waits.end());
  waits.clear();
  last_event_[int(pipe)] = static_cast<int64_t>(trace_.events.size());
  if (pipe == Pipe::S && launch_.options.auto_sync) {
    for (int other = 1; other < kPipes; ++other) {
      pending_events_[other].push_back(uint32_t(last_event_[int(pipe)]));
    }
  }
  trace_.events.push_back(event);
  return trace_.events.back();
}

void Core::vector(const VectorCall& call) {
  for (int o = 0; o < call.operand_count; ++o) {
    check_operand(call.api, call.where, call.operands[o]);
  }
  if (call.operands[0].block_stride == 0) {
    fail(call.api, call.where, "dst block stride is 0, expected at least 1");
  }
  call.reshapes ? check_apart(call) : check_overlap(call);
  const uint32_t number = issue(Pipe::V, call.api, call.where);
  for (int o = 1; o < call.operand_count; ++o) touch(call, o, false, number);
  if (call.gathered != nullptr) touch_gathered(call, number);
  touch(call, 0, true, number);

  const Lanes& lanes = call.lanes;
  uint64_t active = lanes.active;
  if (!lanes.prefix) {
    active = 0;
    for (uint32_t lane = 0; lane < lanes.per_repeat; ++lane) active += lanes.is_active(lane);
  }
  const uint64_t elements = (lanes.repeats - 1) * active + (lanes.prefix ? lanes.last : active);
  const BankConflicts conflicts = count_conflicts(call);
  const char* const src_dtype = call.operand_count > 1 ? call.operands[1].dtype : "";
  VectorCount& count = trace_.counters.of(call.api, call.operands[0].dtype, src_dtype);
  count.calls += 1;
  count.repeats += lanes.repeats;
  count.elements += elements;
  count.conflicts.add(conflicts);
  if (!launch_.options.record_events) return;
  Event& event = new_event(Pipe::V, call.api, call.where);
  event.operand_count = static_cast<uint8_t>(call.operand_count);
  for (int o = 0; o < call.operand_count; ++o) {
    const Operand& operand = call.operands[o];
    event.operands[o] = {operand.address, operand.block_stride, operand.repeat_stride,
                         operand.dtype};
  }
  event.repeats = lanes.repeats;
  event.lanes = static_cast<uint32_t>(active);
  event.elements = elements;
  event.conflicts = conflicts;
}

void Core::vector_lists(const BlockListCall& call) {
  for (int i = 0; i < 16; ++i) {
    check_operand(call.api, call.where, call.src[i]);
    check_operand(call.api, call.where, call.dst[i]);
  }
  const uint32_t number = issue(Pipe::V, call.api, call.where);
  const auto address = [&](const Operand& operand, uint32_t step, uint32_t repeat) {
    return operand.address + repeat * step * kBlockBytes;
  };
  std::vector<uint8_t> written(valid_.size(), 0);  // by an earlier repeat
  BankConflicts conflicts;
  for (uint32_t r = 0; r < call.repeats; ++r) {
    int shared = 0, aligned = 0;
    uint32_t reads[16] = {}, writes[16] = {}, thirds[16] = {};
    bool read_write = false;
    for (int i = 0; i < 16; ++i) {
      const uint32_t at = address(call.src[i], call.src_step, r);
      read_range(Pipe::V, number, call.api, call.where, call.src[i], at, at + kBlockBytes);
      if (written[at / kBlockBytes]) {
        fail(call.api, call.where,
             text("src of repeat ", r, " overlaps dst of an earlier repeat at UB ", hex(at),
                  ": expected repeats that do not read what earlier ones wrote"));
      }
      for (int d = 0; d < 16; ++d) {
        if (at != address(call.dst[d], call.dst_step, r)) continue;
        ++shared;
        aligned += d == i;
      }
      ++reads[at / kBlockBytes % 16];
      thirds[at / kBlockBytes % 16] |= 1u << (at >> 16);
    }
    if (shared && (shared != 16 || aligned != 16)) {
      fail(call.api, call.where,
           text("dst overlaps src in part (repeat ", r,
                "): expected the same blocks or none in common"));
    }
    for (int d = 0; d < 16; ++d) {
      const uint32_t at = address(call.dst[d], call.dst_step, r);
      write_range(Pipe::V, number, call.api, call.where, call.dst[d], at, at + kBlockBytes);
      written[at / kBlockBytes] = 1;
      ++writes[at / kBlockBytes % 16];
      read_write |= (thirds[at / kBlockBytes % 16] >> (at >> 16) & 1u) != 0;
    }
    // A repeat takes two cycles anyway, so a bank group may serve two rows.
    conflicts.read_read += *std::max_element(reads, reads + 16) > 2;
    conflicts.write_write += *std::max_element(writes, writes + 16) > 2;
    conflicts.read_write += read_write;
  }
  const uint64_t lanes = 16 * kBlockBytes / call.dst[0].element_bytes;
  VectorCount& count = trace_.counters.of(call.api, call.dst[0].dtype, call.src[0].dtype);
  count.calls += 1;
  count.repeats += call.repeats;
  count.elements += call.repeats * lanes;
  count.conflicts.add(conflicts);
  if (!launch_.options.record_events) return;
  Event& event = new_event(Pipe::V, call.api, call.where);
  event.operand_count = 2;
  const auto stride = [](const Operand* list) { return (list[1].address - list[0].address) / 32; };
  event.operands[0] = {call.dst[0].address, stride(call.dst), call.dst_step, call.dst[0].dtype};
  event.operands[1] = {call.src[0].address, stride(call.src), call.src_step, call.src[0].dtype};
  event.repeats = call.repeats;
  event.lanes = static_cast<uint32_t>(lanes);
  event.elements = call.repeats * lanes;
  event.conflicts = conflicts;
}

// --------------------------------------------------------------------------------------- transfers

const GmRegion& Core::check_gm(const Transfer& transfer, bool write) const {
  const int64_t span = (transfer.blocks - 1) * transfer.gm_pitch + transfer.block_bytes;
  const auto begin = reinterpret_cast<intptr_t>(transfer.gm);
  const GmRegion* nearest = nullptr;
  const GmRegion* read_only = nullptr;
  for (const GmRegion& region : launch_.regions) {
    const auto data = reinterpret_cast<intptr_t>(region.data);
    if (begin >= data && begin + span <= data + region.bytes) {
      // The same memory may be there as an input and as an output: what is done in place.
      if (!write || !region.read_only) return region;
      read_only = &region;
    }
    if (begin + span > data && begin < data + region.bytes) nearest = &region;
  }
  if (read_only) {
    fail(transfer.api, transfer.where,
         text("writes GM region ", read_only - launch_.regions.data(), " at byte ",
              begin - reinterpret_cast<intptr_t>(read_only->data),
              ", which is read-only: expected an output"));
  }
  if (nearest) {
    const int64_t offset = begin - reinterpret_cast<intptr_t>(nearest->data);
    fail(transfer.api, transfer.where,
         text("touches bytes [", offset, ", ", offset + span, ") of GM region ",
              nearest - launch_.regions.data(), ", expected to stay inside its ", nearest->bytes,
              " bytes"));
  }
  fail(transfer.api, transfer.where,
       text("touches ", span, " bytes of GM at ", hex(uint64_t(begin)),
            ", expected an address inside the ", launch_.regions.size(), " regions of the launch"));
}

void Core::record_transfer(Pipe pipe, uint32_t number, const Transfer& transfer,
                           const GmRegion& region) {
  const bool write = pipe == Pipe::MTE3;
  gm_accesses_.push_back({transfer.gm, transfer.blocks, transfer.block_bytes, transfer.gm_pitch,
                          index_, static_cast<uint32_t>(gm_accesses_.size()), pipe, number,
                          known_[int(pipe)], write, transfer.api, transfer.where});
  const uint64_t bytes = uint64_t{transfer.blocks} * transfer.block_bytes;
  Counters& counters = trace_.counters;
  (write ? counters.gm_bytes_written : counters.gm_bytes_read) += bytes;
  ++(write ? counters.stores : counters.loads);
  if (!launch_.options.record_events) return;
  Event& event = new_event(pipe, transfer.api, transfer.where);
  event.operand_count = 1;
  event.operands[0] = {transfer.ub.address, 1, 0, transfer.ub.dtype};
  event.elements = bytes / transfer.ub.element_bytes;
  event.blocks = transfer.blocks;
  event.block_bytes = transfer.block_bytes;
  event.ub_pitch = transfer.ub_pitch;
  event.gm_pitch = transfer.gm_pitch;
  event.gm_region = static_cast<int32_t>(&region - launch_.regions.data());
  event.gm_offset = transfer.gm - static_cast<const uint8_t*>(region.data);
  event.cached = transfer.cached;
}

void Core::load(const Transfer& transfer) {
  check_operand(transfer.api, transfer.where, transfer.ub);
  const GmRegion& region = check_gm(transfer, false);
  const uint32_t number = issue(Pipe::MTE2, transfer.api, transfer.where);
  const uint32_t block_end = transfer.left_bytes + transfer.block_bytes + transfer.right_bytes;
  for (uint32_t b = 0; b < transfer.blocks; ++b) {
    const uint32_t begin = transfer.ub.address + b * transfer.ub_pitch;
    const uint32_t data = begin + transfer.left_bytes;
    const uint32_t data_end = data + transfer.block_bytes;
    const uint32_t end = align_up(begin + block_end);
    write_range(Pipe::MTE2, number, transfer.api, transfer.where, transfer.ub, begin, end);
    if (transfer.fill) {
      for (uint32_t at = begin; at < end; at += transfer.fill_bytes) {
        std::memcpy(ub_.get() + at, &transfer.fill_value, transfer.fill_bytes);
      }
    } else {  // what the chip puts around the data is not to be relied on
      for (uint32_t block = begin / kBlockBytes; block < end / kBlockBytes; ++block) {
        if (block * kBlockBytes >= data && (block + 1) * kBlockBytes <= data_end) continue;
        const uint32_t from = std::max<uint32_t>(data, block * kBlockBytes);
        const uint32_t to = std::min<uint32_t>(data_end, (block + 1) * kBlockBytes);
        valid_[block] = from < to ? bytes_inside(block, from, to) : 0u;
      }
      std::memset(ub_.get() + begin, kNobodysByte, data - begin);
      std::memset(ub_.get() + data_end, kNobodysByte, end - data_end);
    }
    std::memcpy(ub_.get() + data, transfer.gm + b * transfer.gm_pitch, transfer.block_bytes);
  }
  record_transfer(Pipe::MTE2, number, transfer, region);
}

void Core::store(const Transfer& transfer) {
  check_operand(transfer.api, transfer.where, transfer.ub);
  const GmRegion& region = check_gm(transfer, true);
  const uint32_t number = issue(Pipe::MTE3, transfer.api, transfer.where);
  uint8_t* const gm = const_cast<uint8_t*>(transfer.gm);
  for (uint32_t b = 0; b < transfer.blocks; ++b) {
    const uint32_t begin = transfer.ub.address + b * transfer.ub_pitch;
    read_range(Pipe::MTE3, number, transfer.api, transfer.where, transfer.ub, begin,
               begin + transfer.block_bytes);
    std::memcpy(gm + b * transfer.gm_pitch, ub_.get() + begin, transfer.block_bytes);
  }
  record_transfer(Pipe::MTE3, number, transfer, region);
}

void Core::scalar_read(const char* api, Where where, const Operand& operand) {
  const uint32_t number = issue(Pipe::S, api, where);
  read_range(Pipe::S, number, api, where, operand, operand.address,
             operand.address + operand.element_bytes);
  if (launch_.options.record_events) new_event(Pipe::S, api, where);
}

void Core::scalar_write(const char* api, Where where, const Operand& operand) {
  const uint32_t number = issue(Pipe::S, api, where);
  write_range(Pipe::S, number, api, where, operand, operand.address,
              operand.address + operand.element_bytes);
  if (launch_.options.record_events) new_event(Pipe::S, api, where);
}

void Core::scalar_read_gm(const char* api, Where where, const uint8_t* gm, uint32_t bytes) {
  Transfer transfer{};
  transfer.api = api;
  transfer.where = where;
  transfer.gm = gm;
  transfer.blocks = 1;
  transfer.block_bytes = bytes;
  check_gm(transfer, false);
  const uint32_t number = issue(Pipe::S, api, where);
  gm_accesses_.push_back({gm, 1, bytes, 0, index_, static_cast<uint32_t>(gm_accesses_.size()),
                          Pipe::S, number, known_[int(Pipe::S)], false, api, where});
  trace_.counters.gm_bytes_read += bytes;
  if (launch_.options.record_events) new_event(Pipe::S, api, where);
}

}  // namespace npu_rope::simulator
