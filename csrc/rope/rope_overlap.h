// Which tensors of a call share memory. Nothing that is written may overlap anything but, exactly,
// its own input.
#pragma once

#include <ATen/core/Tensor.h>

#include "rope/rope_args.h"

namespace npu_rope {

/// Throws c10::Error where what is written overlaps itself, another output or another input; where
/// strides are so irregular that a short search finds no common byte, the caller has to know.
/// For the in-place form the outputs are the inputs. Tensors may be undefined, or on meta; of sizes
/// that are symbols nothing is known.
void check_overlap(const at::Tensor& q, const at::Tensor& k, const at::Tensor& cos,
                   const at::Tensor& sin, const at::Tensor& q_out, const at::Tensor& k_out);

/// The same for norm_apply.
void check_norm_overlap(const at::Tensor& q, const at::Tensor& k, const at::Tensor& cos,
                        const at::Tensor& sin, const NormOptions& norm, const at::Tensor& q_out,
                        const at::Tensor& k_out);

/// Whether two tensors of the same sizes are the same elements of the same memory.
bool is_same_memory(const at::Tensor& a, const at::Tensor& b);

}  // namespace npu_rope
