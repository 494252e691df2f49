// The sample kernels as plain C functions, for ctypes. Nothing here includes kernel_operator.h:
// this is how any host program launches a kernel on the simulator.
#include <cstring>
#include <sstream>
#include <string>

#include "faults.h"
#include "params.h"
#include "simulator.h"

extern "C" void vector_add(uint8_t* x, uint8_t* y, uint8_t* z, AddParams p);
extern "C" void strided_copy(uint8_t* x, uint8_t* y, StridedParams p);
extern "C" void cast_pipeline(uint8_t* x, uint8_t* y, CastParams p);
extern "C" void instruction(uint8_t* y, uint8_t* x0, uint8_t* x1, InstructionParams p);

namespace {

using namespace npu_rope::simulator;

const npu_rope::Chip kChip{"Ascend910B1", 2201, 48, 1850, 192 * 1024, 188160, 192 << 20};

thread_local std::string answer;

std::string escaped(const std::string& text) {
  std::string out;
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out;
}

std::string json(const BankConflicts& conflicts) {
  std::ostringstream out;
  out << "{\"read_read\":" << conflicts.read_read << ",\"write_write\":" << conflicts.write_write
      << ",\"read_write\":" << conflicts.read_write << "}";
  return out.str();
}

std::string json(const Trace& trace) {
  std::ostringstream out;
  const Counters totals = trace.totals();
  out << "{\"gm_bytes_read\":" << totals.gm_bytes_read
      << ",\"gm_bytes_written\":" << totals.gm_bytes_written << ",\"loads\":" << totals.loads
      << ",\"stores\":" << totals.stores << ",\"ub_bytes\":" << totals.ub_bytes << ",\"vector\":[";
  const char* comma = "";
  for (const VectorCount& count : totals.vector) {
    out << comma << "{\"api\":\"" << count.api << "\",\"dst\":\"" << count.dst_dtype
        << "\",\"src\":\"" << count.src_dtype << "\",\"calls\":" << count.calls
        << ",\"repeats\":" << count.repeats << ",\"elements\":" << count.elements
        << ",\"conflicts\":" << json(count.conflicts) << "}";
    comma = ",";
  }
  out << "],\"cores\":[";
  comma = "";
  for (const CoreTrace& core : trace.cores) {
    out << comma << "[";
    comma = "";
    for (const Event& event : core.events) {
      out << comma << "{\"api\":\"" << event.api << "\",\"pipe\":\"" << pipe_name(event.pipe)
          << "\",\"line\":" << event.where.line << ",\"repeats\":" << event.repeats
          << ",\"elements\":" << event.elements << ",\"blocks\":" << event.blocks
          << ",\"block_bytes\":" << event.block_bytes << ",\"region\":" << event.gm_region
          << ",\"offset\":" << event.gm_offset << ",\"addresses\":[";
      for (int o = 0; o < event.operand_count; ++o) {
        out << (o ? "," : "") << event.operands[o].address;
      }
      out << "],\"after\":[";
      for (uint32_t d = 0; d < event.dependency_count; ++d) {
        out << (d ? "," : "") << core.dependencies[event.first_dependency + d];
      }
      out << "]}";
      comma = ",";
    }
    out << "]";
    comma = ",";
  }
  out << "]}";
  return out.str();
}

}  // namespace

extern "C" {

struct LaunchOptions {
  int32_t block_dim, threads, record_events, auto_sync, arch;
};

/// Returns the trace as JSON, or {"error": message}. The string lives until the thread's next call.
const char* launch(const char* kernel, int32_t region_count, uint8_t** data, const int64_t* bytes,
                   const int32_t* read_only, const void* params, const LaunchOptions* options) {
  std::vector<GmRegion> regions;
  for (int32_t i = 0; i < region_count; ++i)
    regions.push_back({data[i], bytes[i], read_only[i] != 0});
  npu_rope::Chip chip = kChip;
  chip.arch = options->arch;
  const std::string name = kernel;
  const std::function<void()> call = [&] {
    if (name == "vector_add") {
      vector_add(data[0], data[1], data[2], *static_cast<const AddParams*>(params));
    } else if (name == "strided_copy") {
      strided_copy(data[0], data[1], *static_cast<const StridedParams*>(params));
    } else if (name == "cast_pipeline") {
      cast_pipeline(data[0], data[1], *static_cast<const CastParams*>(params));
    } else if (name == "instruction") {
      instruction(data[0], data[1], data[2], *static_cast<const InstructionParams*>(params));
    } else {
      run_fault(name, data[0], data[1]);
    }
  };
  try {
    answer =
        json(simulate(chip, options->block_dim, regions, call,
                      {options->threads, options->record_events != 0, options->auto_sync != 0}));
  } catch (const SimulationError& error) {
    answer = "{\"error\":\"" + escaped(error.what()) + "\"}";
  }
  return answer.c_str();
}

/// The kernels of faults.cpp, one a line.
const char* faults() {
  answer.clear();
  for (const std::string& name : fault_names()) answer += name + "\n";
  return answer.c_str();
}

/// Calls a kernel without a launch around it.
const char* call_outside_of_a_launch() {
  try {
    run_fault("right", nullptr, nullptr);
    answer = "";
  } catch (const SimulationError& error) {
    answer = error.what();
  }
  return answer.c_str();
}
}
