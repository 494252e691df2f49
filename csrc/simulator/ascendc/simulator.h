// Ascend C on the CPU, with the rules of the chip enforced (NPU architecture 2201: Atlas A2 and
// A3).
//
// To run a kernel of your own:
//   1. Compile its source as it is, with this folder on the include path so that kernel_operator.h
//      is found here, together with the .cpp files of this folder:
//        g++ -std=c++17 -O3 -ffp-contract=off -I csrc/simulator/ascendc -I csrc -pthread
//            my_kernel.cpp my_main.cpp csrc/simulator/ascendc/*.cpp csrc/npu/chip.cpp
//   2. Declare it in a file that does not include kernel_operator.h, and launch it on host memory:
//        extern "C" void my_kernel(uint8_t* x, uint8_t* y, MyParams params);
//        simulate(find_chip("Ascend910B1"), 8, {{x, x_bytes, true}, {y, y_bytes, false}},
//                 [&] { my_kernel(x, y, params); });
//      simulate() calls the lambda once for each of the 8 blocks, each on its own simulated core.
//   3. Whatever the chip would not do, or do by luck alone, throws SimulationError.
//
// What is checked and what is not: README.md in this folder.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "../../npu/chip.h"
#include "trace.h"

namespace npu_rope::simulator {

/// Memory that the launch may touch. Any byte outside of all regions is refused.
struct GmRegion {
  const void* data;
  int64_t bytes;
  bool read_only;
};

struct Options {
  int threads = 0;             // host threads; 0: as many as the machine has
  bool record_events = false;  // fill CoreTrace::events
  bool auto_sync = true;       // the compiler's --cce-auto-sync: V after V, and S with any pipe
};

/// Runs `kernel` once for each block in [0, block_dim). Results and trace do not depend on the
/// number of threads. Throws SimulationError; of several cores that break a rule, the lowest is
/// reported.
Trace simulate(const Chip& chip, int block_dim, const std::vector<GmRegion>& regions,
               const std::function<void()>& kernel, const Options& options = {});

}  // namespace npu_rope::simulator
