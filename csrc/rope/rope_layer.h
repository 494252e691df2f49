// The operator for a caller who has another one for what it does not take: LMDeploy's rotary layer.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <variant>

#include "rope/rope_args.h"

namespace npu_rope {

/// Where the results go.
struct RopeTarget {
  bool in_place;                           // each of q and k whose rows are dense: over itself
  std::optional<at::Tensor> q_out, k_out;  // both or neither: into these rows
};

using RopeResult = std::variant<std::string, std::tuple<at::Tensor, at::Tensor>>;

/// Rotates q and k in one launch, or says why this call is not the operator's: what its checks
/// refuse, and npu tensors where `npu_problem`. Nothing is launched or written before the answer is
/// known. Whatever is thrown comes from the launch or from allocation, or is the failure of another
/// kernel that torch_npu's queue reports there: never a refusal, and not to be taken for one.
///
/// With a norm, it is norm_apply.
///
/// q is [T, N, D] or [B, S, N, D]; a table has a row for each token, in any shape: [T, W],
/// [T, 1, W], [1, T, 1, W], [B, S, W]; or beside 4-D q [S, W], for every batch. Where a gradient is
/// asked for, and for inference tensors outside inference mode, in_place gives new tensors.
RopeResult try_apply(const at::Tensor& q, const at::Tensor& k, const at::Tensor& cos,
                     const at::Tensor& sin, const RopeTarget& target, const RopeOptions& options,
                     const std::optional<NormOptions>& norm = std::nullopt);

/// What keeps the operator from npu tensors in this process for good; empty where nothing does.
/// Found out by the first call that asks: the library, and the chip once a device may be touched.
const std::string& npu_library_problem();
const std::string& npu_chip_problem(bool round_each);

}  // namespace npu_rope
