// The rotation on an NPU: plan -> enqueue. Checks and outputs are rope_forms.h's.
#include <c10/util/Exception.h>
#include <torch_npu/csrc/core/npu/NPUFormat.h>

#include <array>
#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>

#include "npu/launch.h"
#include "npu/library.h"
#include "rope/rope_launch.h"
#include "rope/rope_plan.h"

namespace npu_rope {
namespace {

/// The last plans, by geometry. A model calls with few geometries: one for each token count.
class PlanCache {
 public:
  std::shared_ptr<const RopePlan> find_or_make(const RopeGeometry& geometry, const Chip& chip) {
    Slot& slot = slots_[hash(geometry) % slots_.size()];
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      // Bytes may differ in padding alone: then the plan is made again, which is right too.
      if (slot.plan && !std::memcmp(&slot.geometry, &geometry, sizeof geometry)) return slot.plan;
    }
    auto plan = std::make_shared<const RopePlan>(plan_rope(geometry, chip));
    const std::lock_guard<std::mutex> lock(mutex_);
    std::memcpy(&slot.geometry, &geometry, sizeof geometry);
    slot.plan = plan;
    return plan;
  }

 private:
  struct Slot {
    RopeGeometry geometry;
    std::shared_ptr<const RopePlan> plan;
  };

  static uint64_t hash(const RopeGeometry& geometry) {
    static_assert(sizeof geometry % sizeof(uint64_t) == 0);
    std::array<uint64_t, sizeof(RopeGeometry) / sizeof(uint64_t)> words;
    std::memcpy(words.data(), &geometry, sizeof geometry);
    uint64_t mixed = 0;
    for (const uint64_t word : words) mixed = (mixed ^ word) * 0x9E3779B97F4A7C15u;
    return mixed >> 32;
  }

  std::mutex mutex_;
  std::array<Slot, 256> slots_;
};

#define LAUNCH(name, dtype, type, split_in, join_out, kind) \
  {DType::dtype, split_in, join_out, kind, aclrtlaunch_##name},
constexpr RopeEntry<RopeLaunch> kLaunches[] = {ROPE_ENTRIES(LAUNCH)};
#undef LAUNCH

std::shared_ptr<const RopePlan> plan_of(const RopeGeometry& geometry) {
  static PlanCache cache;
  try {
    return cache.find_or_make(geometry, current_chip());
  } catch (const std::invalid_argument& refused) {
    TORCH_CHECK_NOT_IMPLEMENTED(false, refused.what());
  }
}

void check(const RopeGeometry& geometry) { plan_of(geometry); }

void rope_npu(const RopeGeometry& geometry, const RopePointers& pointers) {
  static const std::string names[] = {"npu_rope::apply", "npu_rope::norm_apply"};
  const std::string& name = names[geometry.norm.q || geometry.norm.k];
  const std::shared_ptr<const RopePlan> plan = plan_of(geometry);
  RopeLaunch* const rope = find_entry(kLaunches, geometry.dtype, plan->params);
  TORCH_INTERNAL_ASSERT(rope, "no entry for dtype ", static_cast<int>(geometry.dtype));
  enqueue(name, [rope, plan, p = pointers](aclrtStream stream) {
    RopeParams params = plan->params;  // CANN's function takes them by a pointer that is not const
    return static_cast<int>(
        rope(plan->cores, stream, const_cast<void*>(p.q), const_cast<void*>(p.k),
             const_cast<void*>(p.cos), const_cast<void*>(p.sin), p.q_out, p.k_out,
             const_cast<void*>(p.q_weight), const_cast<void*>(p.k_weight), &params));
  });
}

}  // namespace
}  // namespace npu_rope

extern "C" __attribute__((visibility("default"))) const npu_rope::NpuLibrary*
npu_rope_npu_library() {
  static const npu_rope::NpuLibrary library = {at_npu::native::get_npu_format, npu_rope::check,
                                               npu_rope::rope_npu};
  return &library;
}
