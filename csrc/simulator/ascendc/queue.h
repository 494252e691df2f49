// TPipe, TQue and TBuf: how UB is shared out, and the flags that queues set and wait for.
//
// As on the chip, EnQue sets a flag from the pipe that filled the tensor and DeQue waits for it on
// the pipe that uses it; FreeTensor and the next AllocTensor of the same buffer do so the other way
// round.
#pragma once

#include <exception>

#include "sync.h"

namespace npu_rope::simulator {

constexpr bool in_ub(AscendC::TPosition position) {
  using AscendC::TPosition;
  return position == TPosition::VECIN || position == TPosition::VECOUT ||
         position == TPosition::VECCALC;
}

}  // namespace npu_rope::simulator

namespace AscendC {

class TPipe;
template <TPosition src, TPosition dst, int32_t depth, auto mask = 0>
class TQueBind;
template <TPosition pos = TPosition::LCM>
class TBuf;

/// The queue of one position: VECIN is filled from GM, VECOUT is emptied to GM.
template <TPosition pos, int32_t depth, auto mask = 0>
class TQue : public TQueBind<pos == TPosition::VECIN ? TPosition::GM : pos,
                             pos == TPosition::VECIN ? pos : TPosition::GM, depth, mask> {
  static_assert(pos == TPosition::VECIN || pos == TPosition::VECOUT,
                "the simulated vector core has queues at VECIN and VECOUT");
};

template <TPosition src, TPosition dst, int32_t depth, auto mask>
class TQueBind {
  static_assert(depth >= 1, "queues of depth 0 (in place) are not simulated");
  static_assert((src == TPosition::GM && npu_rope::simulator::in_ub(dst)) ||
                    (npu_rope::simulator::in_ub(src) &&
                     (dst == TPosition::GM || npu_rope::simulator::in_ub(dst))),
                "the simulated vector core moves GM -> UB, UB -> GM and UB -> UB");
  using Pipe = npu_rope::simulator::Pipe;
  using Buffer = npu_rope::simulator::Buffer;
  using State = Buffer::State;

  // Who fills a tensor before EnQue, and who uses it after DeQue. A queue with both ends in UB
  // binds a copy in to a copy out.
  static constexpr Pipe kFills =
      src == TPosition::GM || dst != TPosition::GM ? Pipe::MTE2 : Pipe::V;
  static constexpr Pipe kUses = src == TPosition::GM ? Pipe::V : Pipe::MTE3;
  static constexpr TPosition kPosition = src == TPosition::GM ? dst : src;

 public:
  template <typename T>
  LocalTensor<T> AllocTensor(Where where = Where::here()) {
    auto& core = npu_rope::simulator::Core::current();
    expect_initialised("AllocTensor", where);
    for (int32_t tried = 0; tried < count_; ++tried) {
      Buffer& buffer = buffers_[cursor_];
      cursor_ = (cursor_ + 1) % count_;
      if (buffer.state != State::kFree) continue;
      if (buffer.free_event >= 0) {
        core.wait_flag("AllocTensor", where, kUses, kFills, buffer.free_event);
        core.release_event("AllocTensor", where, kUses, kFills, buffer.free_event);
        buffer.free_event = -1;
      }
      buffer.state = State::kOccupied;
      buffer.where = where;
      return LocalTensor<T>(kPosition, &buffer, 0, buffer.bytes);
    }
    core.fail(
        "AllocTensor", where,
        "all " + std::to_string(count_) +
            " buffers of the queue are held: expected a FreeTensor first, without it the core "
            "hangs");
  }

  template <typename T>
  bool EnQue(const LocalTensor<T>& tensor, Where where = Where::here()) {
    auto& core = npu_rope::simulator::Core::current();
    Buffer& buffer = own("EnQue", where, tensor.buffer());
    if (buffer.state != State::kOccupied && buffer.state != State::kDequeued) {
      core.fail("EnQue", where,
                std::string("the tensor is ") + state_name(buffer.state) +
                    ", expected one from AllocTensor or DeQue");
    }
    if (used_ >= depth) {
      core.fail("EnQue", where,
                "the queue already holds " + std::to_string(used_) +
                    " tensors, expected at most its depth " + std::to_string(depth));
    }
    queue_[(head_ + used_) % depth] = &buffer;
    ++used_;
    buffer.queue_event = core.alloc_event("EnQue", where, kFills, kUses);
    core.set_flag("EnQue", where, kFills, kUses, buffer.queue_event);
    buffer.state = State::kEnqueued;
    buffer.where = where;
    return true;
  }

  template <typename T>
  LocalTensor<T> DeQue(Where where = Where::here()) {
    auto& core = npu_rope::simulator::Core::current();
    expect_initialised("DeQue", where);
    if (used_ == 0) {
      core.fail("DeQue", where, "the queue is empty, expected a tensor enqueued before");
    }
    Buffer& buffer = *queue_[head_];
    head_ = (head_ + 1) % depth;
    --used_;
    core.wait_flag("DeQue", where, kFills, kUses, buffer.queue_event);
    core.release_event("DeQue", where, kFills, kUses, buffer.queue_event);
    buffer.queue_event = -1;
    buffer.state = State::kDequeued;
    buffer.where = where;
    return LocalTensor<T>(kPosition, &buffer, 0, buffer.bytes);
  }

  template <typename T>
  void FreeTensor(LocalTensor<T>& tensor, Where where = Where::here()) {
    auto& core = npu_rope::simulator::Core::current();
    Buffer& buffer = own("FreeTensor", where, tensor.buffer());
    if (buffer.state != State::kDequeued) {
      core.fail(
          "FreeTensor", where,
          std::string("the tensor is ") + state_name(buffer.state) + ", expected one from DeQue");
    }
    buffer.free_event = core.alloc_event("FreeTensor", where, kUses, kFills);
    buffer.free_from = kUses;
    buffer.free_to = kFills;
    core.set_flag("FreeTensor", where, kUses, kFills, buffer.free_event);
    buffer.state = State::kFree;
    buffer.where = where;
  }

  bool VacantInQue() const { return used_ < depth; }
  bool HasTensorInQue() const { return used_ > 0; }
  int32_t GetTensorCountInQue() const { return used_; }
  bool HasIdleBuffer() const {
    for (int32_t i = 0; i < count_; ++i) {
      if (buffers_[i].state == State::kFree) return true;
    }
    return false;
  }

 private:
  friend class TPipe;

  static const char* state_name(State state) {
    switch (state) {
      case State::kFree:
        return "free";
      case State::kOccupied:
        return "allocated and never enqueued";
      case State::kEnqueued:
        return "still enqueued";
      case State::kDequeued:
        return "dequeued";
    }
    return "?";
  }

  void expect_initialised(const char* api, Where where) const {
    if (count_ == 0) {
      npu_rope::simulator::Core::current().fail(
          api, where, "the queue has no buffers, expected InitBuffer first");
    }
  }

  Buffer& own(const char* api, Where where, Buffer* buffer) const {
    expect_initialised(api, where);
    if (!buffer || buffer < buffers_ || buffer >= buffers_ + count_) {
      npu_rope::simulator::Core::current().fail(
          api, where, "the tensor is not from this queue, expected one of its AllocTensor");
    }
    return *buffer;
  }

  Buffer* buffers_ = nullptr;
  int32_t count_ = 0, cursor_ = 0;
  Buffer* queue_[depth] = {};
  int32_t head_ = 0, used_ = 0;
};

/// Memory for intermediate results. Nothing orders the pipes that share it.
template <TPosition pos>
class TBuf {
  static_assert(npu_rope::simulator::in_ub(pos),
                "the simulated vector core has TBuf at VECIN, VECOUT, VECCALC");

 public:
  template <typename T>
  LocalTensor<T> Get(Where where = Where::here()) {
    expect_initialised("TBuf::Get", where);
    return LocalTensor<T>(pos, buffer_, 0, buffer_->bytes);
  }
  template <typename T>
  LocalTensor<T> Get(uint32_t len, Where where = Where::here()) {
    return view<T>("TBuf::Get", where, len, 0);
  }
  template <typename T>
  LocalTensor<T> GetWithOffset(uint32_t size, uint32_t bufOffset, Where where = Where::here()) {
    return view<T>("TBuf::GetWithOffset", where, size, bufOffset);
  }

 private:
  friend class TPipe;

  void expect_initialised(const char* api, Where where) const {
    if (!buffer_) {
      npu_rope::simulator::Core::current().fail(
          api, where, "the buffer has no memory, expected InitBuffer first");
    }
  }

  template <typename T>
  LocalTensor<T> view(const char* api, Where where, uint32_t size, uint32_t offset) {
    expect_initialised(api, where);
    const uint64_t end = offset + uint64_t{size} * sizeof(T);
    if (size == 0 || end > buffer_->bytes) {
      npu_rope::simulator::Core::current().fail(
          api, where,
          "asks for bytes [" + std::to_string(offset) + ", " + std::to_string(end) +
              "), expected some of the buffer's " + std::to_string(buffer_->bytes));
    }
    return LocalTensor<T>(pos, buffer_, offset, size * sizeof(T));
  }

  npu_rope::simulator::Buffer* buffer_ = nullptr;
};

class TPipe {
 public:
  TPipe() { Init(); }
  TPipe(const TPipe&) = delete;
  ~TPipe() {
    // A kernel that was refused is being unwound: what it holds is no leak of its own.
    if (!destroyed_ && std::uncaught_exceptions() == 0) Destroy();
    if (current_ == this) current_ = nullptr;
  }

  void Init() {
    npu_rope::simulator::Core::current().reset_pool();
    destroyed_ = false;
    current_ = this;
  }
  void Reset() { npu_rope::simulator::Core::current().reset_pool(); }
  void Destroy() {
    npu_rope::simulator::Core::current().destroy_pipe();
    destroyed_ = true;
  }

  template <class T>
  bool InitBuffer(T& que, Wide<uint8_t> num, Wide<uint32_t> len, Where where = Where::here()) {
    que.buffers_ =
        npu_rope::simulator::Core::current().new_buffers("InitBuffer", where, num, len, true);
    que.count_ = static_cast<int32_t>(num);
    que.cursor_ = que.head_ = que.used_ = 0;
    return true;
  }
  template <TPosition pos>
  bool InitBuffer(TBuf<pos>& buf, Wide<uint32_t> len, Where where = Where::here()) {
    buf.buffer_ =
        npu_rope::simulator::Core::current().new_buffers("InitBuffer", where, 1, len, false);
    return true;
  }

  template <HardEvent evt>
  TEventID AllocEventID(Where where = Where::here()) {
    constexpr auto kPair = npu_rope::simulator::pipes_of(evt);
    return static_cast<TEventID>(npu_rope::simulator::Core::current().alloc_event(
        "AllocEventID", where, kPair.from, kPair.to));
  }
  template <HardEvent evt>
  void ReleaseEventID(TEventID id, Where where = Where::here()) {
    constexpr auto kPair = npu_rope::simulator::pipes_of(evt);
    npu_rope::simulator::Core::current().release_event("ReleaseEventID", where, kPair.from,
                                                       kPair.to, id);
  }
  template <HardEvent evt>
  TEventID FetchEventID(Where where = Where::here()) {
    return FetchEventID(evt, where);
  }
  TEventID FetchEventID(HardEvent evt, Where where = Where::here()) {
    const auto pair = npu_rope::simulator::pipes_of(evt);
    return static_cast<TEventID>(npu_rope::simulator::Core::current().fetch_event(
        "FetchEventID", where, pair.from, pair.to));
  }

  static TPipe* current() { return current_; }

 private:
  bool destroyed_ = false;
  static inline thread_local TPipe* current_ = nullptr;
};

}  // namespace AscendC

inline AscendC::TPipe* GetTPipePtr() { return AscendC::TPipe::current(); }

namespace AscendC {
using ::GetTPipePtr;
}
