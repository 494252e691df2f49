// Global memory at the end of a launch: which bytes two accesses share, and whether anything
// orders them. Cores run beside one another without order, so across cores sharing is refused as
// soon as one of the two writes.
#include <algorithm>
#include <cstring>
#include <sstream>

#include "core.h"

namespace npu_rope::simulator {
namespace {

struct Interval {
  uintptr_t begin, end;
  const GmAccess* access;
};

std::string describe(const GmAccess& access) {
  std::ostringstream out;
  const char* const slash = std::strrchr(access.where.file, '/');
  out << access.api << " of core " << access.core << " (" << (slash ? slash + 1 : access.where.file)
      << ":" << access.where.line << ", " << pipe_name(access.pipe) << " instruction "
      << access.number << ")";
  return out.str();
}

void add_intervals(const GmAccess& access, std::vector<Interval>& intervals) {
  const auto begin = reinterpret_cast<uintptr_t>(access.begin);
  if (access.pitch == access.block_bytes) {
    intervals.push_back({begin, begin + uintptr_t{access.blocks} * access.block_bytes, &access});
    return;
  }
  for (uint32_t b = 0; b < access.blocks; ++b) {
    const uintptr_t at = begin + b * static_cast<uintptr_t>(access.pitch);
    intervals.push_back({at, at + access.block_bytes, &access});
  }
}

void check_pair(const GmAccess& a, const GmAccess& b, const Options& options) {
  if (a.core != b.core) {
    const GmAccess& low = a.core < b.core ? a : b;
    const GmAccess& high = a.core < b.core ? b : a;
    throw SimulationError(describe(low) + (low.write ? " writes" : " reads") +
                          " a byte of GM that " + describe(high) +
                          (high.write ? " writes" : " reads") +
                          " too: expected every byte written by one core and touched by no other");
  }
  if (&a == &b) {
    throw SimulationError(describe(a) +
                          " writes one byte of GM twice: expected blocks that do not "
                          "overlap");
  }
  if (options.auto_sync && (a.pipe == Pipe::S || b.pipe == Pipe::S)) return;
  const GmAccess& earlier = a.order < b.order ? a : b;
  const GmAccess& later = a.order < b.order ? b : a;
  if (later.known[int(earlier.pipe)] >= earlier.number) return;
  const std::string from = pipe_name(earlier.pipe), to = pipe_name(later.pipe);
  const std::string remedy =
      from == to ? "PipeBarrier<PIPE_" + to + ">"
                 : "SetFlag/WaitFlag<HardEvent::" + from + "_" + to + "> or PipeBarrier<PIPE_ALL>";
  throw SimulationError(describe(later) + (later.write ? " writes" : " reads") +
                        " a byte of GM that " + describe(earlier) +
                        (earlier.write ? " writes" : " reads") +
                        ", and nothing orders the two: expected " + remedy + " between them");
}

void drop_ended(std::vector<Interval>& active, uintptr_t begin) {
  active.erase(std::remove_if(active.begin(), active.end(),
                              [&](const Interval& interval) { return interval.end <= begin; }),
               active.end());
}

}  // namespace

void check_gm_accesses(const std::vector<std::vector<GmAccess>>& by_core, const Options& options) {
  std::vector<Interval> intervals;
  for (const std::vector<GmAccess>& accesses : by_core) {
    for (const GmAccess& access : accesses) add_intervals(access, intervals);
  }
  std::sort(intervals.begin(), intervals.end(), [](const Interval& a, const Interval& b) {
    if (a.begin != b.begin) return a.begin < b.begin;
    if (a.access->core != b.access->core) return a.access->core < b.access->core;
    return a.access->order < b.access->order;
  });
  std::vector<Interval> reads, writes;  // those that reach beyond where the sweep is
  for (const Interval& interval : intervals) {
    drop_ended(writes, interval.begin);
    for (const Interval& other : writes) {
      check_pair(*other.access, *interval.access, options);
    }
    if (interval.access->write) {
      drop_ended(reads, interval.begin);
      for (const Interval& other : reads) {
        check_pair(*other.access, *interval.access, options);
      }
      writes.push_back(interval);
    } else {
      reads.push_back(interval);
    }
  }
}

}  // namespace npu_rope::simulator
