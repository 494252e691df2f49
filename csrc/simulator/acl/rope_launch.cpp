// The entries' launch functions on the simulated runtime.
#include "rope/rope_launch.h"

#include "launch.h"

#define LAUNCH(name, ...)                                                                          \
  extern "C" void name(uint8_t* q, uint8_t* k, uint8_t* cos, uint8_t* sin, uint8_t* q_out,         \
                       uint8_t* k_out, uint8_t* q_weight, uint8_t* k_weight,                       \
                       npu_rope::RopeParams params);                                               \
  uint32_t aclrtlaunch_##name(uint32_t cores, void* stream, void* q, void* k, void* cos,           \
                              void* sin, void* q_out, void* k_out, void* q_weight, void* k_weight, \
                              npu_rope::RopeParams* params) {                                      \
    const auto gm = [](void* pointer) { return static_cast<uint8_t*>(pointer); };                  \
    return npu_rope::acl::launch_kernel("aclrtlaunch_" #name, cores, stream,                       \
                                        [=, params = *params] {                                    \
                                          name(gm(q), gm(k), gm(cos), gm(sin), gm(q_out),          \
                                               gm(k_out), gm(q_weight), gm(k_weight), params);     \
                                        });                                                        \
  }
ROPE_ENTRIES(LAUNCH)
