#include "trace.h"

#include <cstring>

namespace npu_rope::simulator {

const char* pipe_name(Pipe pipe) {
  constexpr const char* kNames[] = {"S", "V", "MTE2", "MTE3"};
  return kNames[static_cast<int>(pipe)];
}

void BankConflicts::add(const BankConflicts& other) {
  read_read += other.read_read;
  write_write += other.write_write;
  read_write += other.read_write;
}

VectorCount& Counters::of(const char* api, const char* dst_dtype, const char* src_dtype) {
  for (VectorCount& count : vector) {
    if (std::strcmp(count.api, api) == 0 && std::strcmp(count.dst_dtype, dst_dtype) == 0 &&
        std::strcmp(count.src_dtype, src_dtype) == 0) {
      return count;
    }
  }
  vector.push_back({api, dst_dtype, src_dtype, 0, 0, 0, {}});
  return vector.back();
}

void Counters::add(const Counters& other) {
  gm_bytes_read += other.gm_bytes_read;
  gm_bytes_written += other.gm_bytes_written;
  loads += other.loads;
  stores += other.stores;
  ub_bytes = ub_bytes > other.ub_bytes ? ub_bytes : other.ub_bytes;
  for (const VectorCount& theirs : other.vector) {
    VectorCount& ours = of(theirs.api, theirs.dst_dtype, theirs.src_dtype);
    ours.calls += theirs.calls;
    ours.repeats += theirs.repeats;
    ours.elements += theirs.elements;
    ours.conflicts.add(theirs.conflicts);
  }
}

BankConflicts Counters::conflicts() const {
  BankConflicts sum;
  for (const VectorCount& count : vector) sum.add(count.conflicts);
  return sum;
}

Counters Trace::totals() const {
  Counters sum;
  for (const CoreTrace& core : cores) sum.add(core.counters);
  return sum;
}

}  // namespace npu_rope::simulator
