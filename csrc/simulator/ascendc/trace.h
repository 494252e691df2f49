// What a simulated launch did: counters always, every instruction on demand.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace npu_rope::simulator {

/// A rule of the chip was broken. The message names core, place, instruction, expected and got.
class SimulationError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A place in the kernel source: the default argument at the end of every simulated instruction.
struct Where {
  const char* file;
  int line;

  static constexpr Where here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

/// The queues of a vector core whose instructions run beside one another.
enum class Pipe : uint8_t { S, V, MTE2, MTE3 };
constexpr int kPipes = 4;
const char* pipe_name(Pipe pipe);

/// Repeats of vector instructions that need more than one cycle because of UB banks: two blocks
/// read (written) in one bank group, or one bank both read and written.
struct BankConflicts {
  uint64_t read_read = 0, write_write = 0, read_write = 0;
  void add(const BankConflicts& other);
  uint64_t total() const { return read_read + write_write + read_write; }
};

/// An operand in UB: block b of repeat r lies at address + 32 * (b * block_stride + r *
/// repeat_stride).
struct UbOperand {
  uint32_t address;  // bytes
  uint32_t block_stride, repeat_stride;
  const char* dtype;
};

/// One executed instruction.
struct Event {
  const char* api;
  Where where;
  Pipe pipe;
  uint8_t operand_count;  // vector: destination, then sources; transfers: the one UB side
  UbOperand operands[3];
  uint32_t repeats;   // vector
  uint32_t lanes;     // vector: elements of a full repeat
  uint64_t elements;  // vector: of all repeats
  BankConflicts conflicts;
  uint32_t blocks, block_bytes;                 // transfers: payload is their product
  uint32_t ub_pitch;                            // bytes from one block to the next in UB
  int64_t gm_pitch;                             // and in GM
  int32_t gm_region;                            // index into the launch's regions
  int64_t gm_offset;                            // bytes into it
  bool cached;                                  // transfers: through L2
  uint32_t first_dependency, dependency_count;  // into CoreTrace::dependencies
};

/// What was done with one instruction and dtype.
struct VectorCount {
  const char* api;
  const char* dst_dtype;
  const char* src_dtype;  // of the first source, "" without one
  uint64_t calls, repeats, elements;
  BankConflicts conflicts;
};

struct Counters {
  uint64_t gm_bytes_read = 0, gm_bytes_written = 0;
  uint64_t loads = 0, stores = 0;  // transfers GM -> UB and UB -> GM
  uint64_t ub_bytes = 0;           // allocated by InitBuffer at most
  std::vector<VectorCount> vector;

  void add(const Counters& other);
  VectorCount& of(const char* api, const char* dst_dtype, const char* src_dtype);
  BankConflicts conflicts() const;
};

struct CoreTrace {
  int core = 0;
  Counters counters;
  std::vector<Event> events;           // in program order; empty unless recorded
  std::vector<uint32_t> dependencies;  // indices of events an event waits for besides its own pipe
};

struct Trace {
  std::string chip;
  int block_dim = 0;
  std::vector<CoreTrace> cores;

  Counters totals() const;
};

}  // namespace npu_rope::simulator
