#include "memory.h"

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <sstream>

#include "calls.h"
#include "control.h"
#include "device.h"
#include "stream.h"

namespace npu_rope::acl {
namespace {

constexpr int kHost = -1;
constexpr size_t kAlignment = 512;
// Fresh memory is a NaN in every float format, so that what nobody wrote is seen.
constexpr int kFresh = 0xFF;

struct Entry {
  std::shared_ptr<Block> block;
  int device;
};

struct Memory {
  std::mutex mutex;
  std::map<const void*, Entry> blocks;
};

Memory& memory() {  // never destroyed, as torch_npu frees in its own static destructors
  static auto* const instance = new Memory;
  return *instance;
}

void* allocate(size_t bytes, int device) {
  Memory& m = memory();
  const std::lock_guard<std::mutex> lock(m.mutex);
  if (device != kHost) {
    size_t used = 0;
    for (const auto& [data, entry] : m.blocks) {
      if (entry.device == device) used += entry.block->bytes();
    }
    if (used + bytes > device_bytes()) {
      throw Failure(ACL_ERROR_RT_MEMORY_ALLOCATION, std::to_string(bytes) + " bytes asked, " +
                                                        std::to_string(device_bytes() - used) +
                                                        " are left on device " +
                                                        std::to_string(device));
    }
  }
  auto block = std::make_shared<Block>(bytes, device);
  void* const data = block->data();
  m.blocks[data] = {std::move(block), device};
  return data;
}

void free_block(void* data) {
  Memory& m = memory();
  const std::lock_guard<std::mutex> lock(m.mutex);
  if (m.blocks.erase(data) == 0) {
    throw Failure(ACL_ERROR_RT_MEMORY_FREE, "not the beginning of a live allocation");
  }
}

const char* name_of(aclrtMemcpyKind kind) {
  switch (kind) {
    case ACL_MEMCPY_HOST_TO_HOST:
      return "host to host";
    case ACL_MEMCPY_HOST_TO_DEVICE:
      return "host to device";
    case ACL_MEMCPY_DEVICE_TO_HOST:
      return "device to host";
    case ACL_MEMCPY_DEVICE_TO_DEVICE:
      return "device to device";
    default:
      throw Failure(ACL_ERROR_RT_PARAM_INVALID,
                    "memcpy kind " + std::to_string(kind) + " is not simulated");
  }
}

void copy(void* to, size_t capacity, const void* from, size_t bytes, aclrtMemcpyKind kind) {
  if (bytes > capacity) {
    throw Failure(ACL_ERROR_RT_PARAM_INVALID, std::to_string(bytes) +
                                                  " bytes to copy, but destMax "
                                                  "is " +
                                                  std::to_string(capacity));
  }
  std::shared_ptr<Block> source, target;
  if (kind == ACL_MEMCPY_DEVICE_TO_HOST || kind == ACL_MEMCPY_DEVICE_TO_DEVICE) {
    source = live_block(from, bytes, -1, "src");
  }
  if (kind == ACL_MEMCPY_HOST_TO_DEVICE || kind == ACL_MEMCPY_DEVICE_TO_DEVICE) {
    target = live_block(to, bytes, -1, "dst");
  }
  std::memmove(to, from, bytes);
}

std::string detail(size_t bytes, aclrtMemcpyKind kind) {
  return std::to_string(bytes) + " bytes " + name_of(kind);
}

}  // namespace

Block::Block(size_t bytes, int device) : bytes_(bytes), device_(device) {
  const size_t padded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  data_ = static_cast<uint8_t*>(std::aligned_alloc(kAlignment, padded ? padded : kAlignment));
  if (!data_) throw Failure(ACL_ERROR_RT_MEMORY_ALLOCATION, "the host has no memory left");
  if (device_ != kHost) std::memset(data_, kFresh, bytes);
}

Block::~Block() { std::free(data_); }

std::shared_ptr<Block> live_block(const void* data, size_t bytes, int device,
                                  const std::string& name) {
  Memory& m = memory();
  const std::lock_guard<std::mutex> lock(m.mutex);
  auto after = m.blocks.upper_bound(data);
  if (after != m.blocks.begin()) {
    const Entry& entry = std::prev(after)->second;
    const size_t offset = static_cast<const uint8_t*>(data) - entry.block->data();
    const bool owned = device < 0 ? entry.device != kHost : entry.device == device;
    if (owned && offset + bytes <= entry.block->bytes()) return entry.block;
  }
  std::ostringstream what;
  what << name << " [" << data << ", + " << bytes
       << ") is not inside one live allocation of device memory";
  throw Failure(ACL_ERROR_RT_PARAM_INVALID, what.str());
}

std::vector<std::shared_ptr<Block>> live_blocks(int device) {
  Memory& m = memory();
  const std::lock_guard<std::mutex> lock(m.mutex);
  std::vector<std::shared_ptr<Block>> live;
  for (const auto& [data, entry] : m.blocks) {
    if (entry.device == device) live.push_back(entry.block);
  }
  return live;
}

}  // namespace npu_rope::acl

using namespace npu_rope::acl;

aclError aclrtMalloc(void** data, size_t bytes, aclrtMemMallocPolicy) {
  return call("aclrtMalloc", std::to_string(bytes),
              [&] { *data = allocate(bytes, current_device()); });
}
aclError aclrtMallocAlign32(void** data, size_t bytes, aclrtMemMallocPolicy) {
  return call("aclrtMallocAlign32", std::to_string(bytes),
              [&] { *data = allocate(bytes, current_device()); });
}
aclError aclrtFree(void* data) {
  return call("aclrtFree", [&] { free_block(data); });
}
aclError aclrtMallocHost(void** data, size_t bytes) {
  return call("aclrtMallocHost", std::to_string(bytes), [&] { *data = allocate(bytes, kHost); });
}
aclError aclrtFreeHost(void* data) {
  return call("aclrtFreeHost", [&] { free_block(data); });
}

aclError aclrtGetMemInfo(aclrtMemAttr, size_t* free, size_t* total) {
  return call("aclrtGetMemInfo", [&] {
    *total = device_bytes();
    *free = *total - npu_rope_sim_live_bytes(current_device());
  });
}

aclError aclrtPointerGetAttributes(const void* data, aclrtPtrAttributes* attributes) {
  return call("aclrtPointerGetAttributes", [&] {
    *attributes = {};
    attributes->location.type = ACL_MEM_LOCATION_TYPE_UNREGISTERED;
    Memory& m = memory();
    const std::lock_guard<std::mutex> lock(m.mutex);
    const auto after = m.blocks.upper_bound(data);
    if (after == m.blocks.begin()) return;
    const Entry& entry = std::prev(after)->second;
    if (data >= entry.block->data() + entry.block->bytes()) return;
    attributes->location.id = entry.device == kHost ? 0 : entry.device;
    attributes->location.type =
        entry.device == kHost ? ACL_MEM_LOCATION_TYPE_HOST : ACL_MEM_LOCATION_TYPE_DEVICE;
  });
}

aclError aclrtMemcpy(void* to, size_t capacity, const void* from, size_t bytes,
                     aclrtMemcpyKind kind) {
  return call("aclrtMemcpy", detail(bytes, kind), [&] { copy(to, capacity, from, bytes, kind); });
}

aclError aclrtMemcpyAsync(void* to, size_t capacity, const void* from, size_t bytes,
                          aclrtMemcpyKind kind, aclrtStream stream) {
  return call("aclrtMemcpyAsync", detail(bytes, kind), [&] {
    stream_of(stream).enqueue("aclrtMemcpyAsync", [=] { copy(to, capacity, from, bytes, kind); });
  });
}

aclError aclrtMemset(void* data, size_t capacity, int32_t value, size_t bytes) {
  return call("aclrtMemset", std::to_string(bytes), [&] {
    const auto block = live_block(data, capacity, -1, "devPtr");
    std::memset(data, value, bytes);
  });
}

aclError aclrtMemsetAsync(void* data, size_t capacity, int32_t value, size_t bytes,
                          aclrtStream stream) {
  return call("aclrtMemsetAsync", std::to_string(bytes), [&] {
    stream_of(stream).enqueue("aclrtMemsetAsync", [=] {
      const auto block = live_block(data, capacity, -1, "devPtr");
      std::memset(data, value, bytes);
    });
  });
}

size_t npu_rope_sim_live_bytes(int device) {
  size_t bytes = 0;
  for (const auto& block : live_blocks(device)) bytes += block->bytes();
  return bytes;
}
