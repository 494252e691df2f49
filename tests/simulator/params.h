// What crosses from the launches to the kernels, by value.
#pragma once

#include <cstdint>

struct AddParams {
  uint32_t total, tile;  // elements; total is a multiple of cores * tile
};

struct StridedParams {
  uint32_t rows, columns, first, width, rows_per_tile;
};

struct CastParams {
  uint32_t total;
  float scale;
};

/// One instruction on UB images of x0, x1 and y, see any_instruction.cpp.
struct InstructionParams {
  int32_t api, dtype, form;  // indices of the names in harness.cpp
  int32_t mode;              // RoundMode of Cast
  int32_t repeats, count;
  uint64_t mask[2];                             // form kMask: mask[0] lanes
  int32_t block_strides[3], repeat_strides[3];  // dst, src0, src1
  float scalar;
  uint32_t bytes[3];  // of y, x0, x1; multiples of 32
};
