// Device memory: host memory whose bounds and owner are known.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace npu_rope::acl {

/// One allocation. A task that holds it may finish after it was freed.
class Block {
 public:
  Block(size_t bytes, int device);
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  uint8_t* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  const size_t bytes_;
  const int device_;  // or -1: pinned host memory
  uint8_t* data_;
};

/// The live block of this device (-1: of any) that holds [data, data + bytes). Throws, calling the
/// memory `name`, where there is none.
std::shared_ptr<Block> live_block(const void* data, size_t bytes, int device,
                                  const std::string& name);

/// Every live block of the device.
std::vector<std::shared_ptr<Block>> live_blocks(int device);

}  // namespace npu_rope::acl
