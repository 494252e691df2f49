// Order between the pipes of a core: flags, barriers, block index.
#pragma once

#include "tensor.h"

namespace AscendC {

using TEventID = int8_t;

/// Named source_destination. Only those a vector core has.
enum class HardEvent : uint8_t {
  MTE2_V = 4,
  V_MTE2,
  MTE3_V,
  V_MTE3,
  V_V = 10,
  MTE3_MTE2 = 19,
  MTE2_MTE3,
  S_V,
  V_S,
  S_MTE2,
  MTE2_S,
  S_MTE3,
  MTE3_S,
};

}  // namespace AscendC

namespace npu_rope::simulator {

struct PipePair {
  Pipe from, to;
};

constexpr PipePair pipes_of(AscendC::HardEvent event) {
  using AscendC::HardEvent;
  switch (event) {
    case HardEvent::MTE2_V:
      return {Pipe::MTE2, Pipe::V};
    case HardEvent::V_MTE2:
      return {Pipe::V, Pipe::MTE2};
    case HardEvent::MTE3_V:
      return {Pipe::MTE3, Pipe::V};
    case HardEvent::V_MTE3:
      return {Pipe::V, Pipe::MTE3};
    case HardEvent::V_V:
      return {Pipe::V, Pipe::V};
    case HardEvent::MTE3_MTE2:
      return {Pipe::MTE3, Pipe::MTE2};
    case HardEvent::MTE2_MTE3:
      return {Pipe::MTE2, Pipe::MTE3};
    case HardEvent::S_V:
      return {Pipe::S, Pipe::V};
    case HardEvent::V_S:
      return {Pipe::V, Pipe::S};
    case HardEvent::S_MTE2:
      return {Pipe::S, Pipe::MTE2};
    case HardEvent::MTE2_S:
      return {Pipe::MTE2, Pipe::S};
    case HardEvent::S_MTE3:
      return {Pipe::S, Pipe::MTE3};
    case HardEvent::MTE3_S:
      return {Pipe::MTE3, Pipe::S};
  }
  return {Pipe::S, Pipe::S};
}

constexpr Pipe pipe_of(pipe_t pipe) {
  return pipe == PIPE_V ? Pipe::V : pipe == PIPE_MTE2 ? Pipe::MTE2 : Pipe::MTE3;
}

}  // namespace npu_rope::simulator

constexpr AscendC::TEventID EVENT_ID0 = 0, EVENT_ID1 = 1, EVENT_ID2 = 2, EVENT_ID3 = 3,
                            EVENT_ID4 = 4, EVENT_ID5 = 5, EVENT_ID6 = 6, EVENT_ID7 = 7;

namespace AscendC {

template <HardEvent event>
void SetFlag(int32_t eventID, Where where = Where::here()) {
  constexpr auto kPair = npu_rope::simulator::pipes_of(event);
  npu_rope::simulator::Core& core = npu_rope::simulator::Core::current();
  core.check_user_event("SetFlag", where, kPair.from, kPair.to, eventID);
  core.set_flag("SetFlag", where, kPair.from, kPair.to, eventID);
}

template <HardEvent event>
void WaitFlag(int32_t eventID, Where where = Where::here()) {
  constexpr auto kPair = npu_rope::simulator::pipes_of(event);
  npu_rope::simulator::Core& core = npu_rope::simulator::Core::current();
  core.check_user_event("WaitFlag", where, kPair.from, kPair.to, eventID);
  core.wait_flag("WaitFlag", where, kPair.from, kPair.to, eventID);
}

template <pipe_t pipe>
void PipeBarrier() {
  static_assert(pipe == PIPE_V || pipe == PIPE_MTE2 || pipe == PIPE_MTE3 || pipe == PIPE_ALL,
                "PipeBarrier takes PIPE_V, PIPE_MTE2, PIPE_MTE3 or PIPE_ALL on a vector core");
  npu_rope::simulator::Core& core = npu_rope::simulator::Core::current();
  if constexpr (pipe == PIPE_ALL) {
    core.barrier_all();
  } else {
    core.barrier(npu_rope::simulator::pipe_of(pipe));
  }
}

inline int64_t GetBlockIdx() { return npu_rope::simulator::Core::current().index(); }
inline int64_t GetBlockNum() { return npu_rope::simulator::Core::current().block_dim(); }

}  // namespace AscendC
