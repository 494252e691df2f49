#include "simulator.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>

#include "core.h"

namespace npu_rope::simulator {
namespace {

constexpr int kSimulatedArch = 2201;
constexpr int kMaxBlockDim = 65535;  // blocks beyond the chip's cores run in turns

/// Runs the cores of a launch, taking them one by one from the front.
class Workers {
 public:
  Workers(const Launch& launch, const std::function<void()>& kernel, Trace& trace)
      : launch_(launch), kernel_(kernel), trace_(trace), gm_accesses_(launch.block_dim) {}

  void run(int threads) {
    std::vector<std::thread> others;
    for (int i = 1; i < threads; ++i) others.emplace_back([this] { work(); });
    work();
    for (std::thread& thread : others) thread.join();
    if (error_) std::rethrow_exception(error_);
  }

  const std::vector<std::vector<GmAccess>>& gm_accesses() const { return gm_accesses_; }

 private:
  void work() {
    Core core(launch_);
    Core::set_current(&core);
    for (int index; (index = next_++) < launch_.block_dim && index < failed_;) {
      try {
        core.start(index);
        kernel_();
        core.finish();
        trace_.cores[index] = core.take_trace();
        gm_accesses_[index] = core.take_gm_accesses();
      } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (index < failed_) {
          failed_ = index;
          error_ = std::current_exception();
        }
      }
    }
    Core::set_current(nullptr);
  }

  const Launch& launch_;
  const std::function<void()>& kernel_;
  Trace& trace_;
  std::vector<std::vector<GmAccess>> gm_accesses_;
  std::atomic<int> next_{0};
  std::mutex mutex_;
  std::atomic<int> failed_{1 << 30};  // the lowest core that broke a rule
  std::exception_ptr error_;
};

}  // namespace

Trace simulate(const Chip& chip, int block_dim, const std::vector<GmRegion>& regions,
               const std::function<void()>& kernel, const Options& options) {
  if (chip.arch != kSimulatedArch) {
    throw SimulationError("chip " + chip.name + " has NPU architecture " +
                          std::to_string(chip.arch) + ", expected " +
                          std::to_string(kSimulatedArch));
  }
  if (block_dim < 1 || block_dim > kMaxBlockDim) {
    throw SimulationError("block_dim is " + std::to_string(block_dim) + ", expected 1 to " +
                          std::to_string(kMaxBlockDim));
  }
  const Launch launch{chip.name, chip.ub_bytes, chip.ub_usable, block_dim, regions, options};
  Trace trace;
  trace.chip = chip.name;
  trace.block_dim = block_dim;
  trace.cores.resize(block_dim);
  const int available = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  const int threads = std::min(block_dim, options.threads > 0 ? options.threads : available);
  Workers workers(launch, kernel, trace);
  workers.run(threads);
  check_gm_accesses(workers.gm_accesses(), options);
  return trace;
}

}  // namespace npu_rope::simulator
