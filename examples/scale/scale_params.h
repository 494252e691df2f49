// What crosses from the host to the kernel, by value.
#pragma once

#include <cstdint>

struct ScaleParams {
  uint32_t total;  // elements
  float scale;
};
