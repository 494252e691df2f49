// What every form does before it reaches a backend: derivatives, and the version of what is
// written.
#pragma once

#include <torch/library.h>

namespace npu_rope {

void register_autograd(torch::Library& library);
void register_inplace_or_view(torch::Library& library);

}  // namespace npu_rope
