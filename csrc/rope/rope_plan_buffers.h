// How a core's rows are cut into tiles, boxes and steps, and the unified buffer into buffers for
// them: the last part of rope_plan.
#pragma once

#include "npu/chip.h"
#include "rope/rope_plan_rows.h"

namespace npu_rope {

constexpr int64_t kBankRow = 512;  // the 16 bank groups repeat every 512 bytes

/// The buffers of a core: load and store buffers first, then the tables, then as many rows a step
/// as are left for. The more rows a step has, the less it waits for its own results. Of buffers
/// that leave as many the longest, or the shortest where a core has so few transfers that it waits
/// for the first.
void choose_buffers(const RopeGeometry& g, const Chip& chip, const RopeRows (&rows)[2],
                    RopeParams& p);

/// Whether rows stand upright (rope_upright.h), and then all that choose_buffers chooses. They do
/// where at least half of the 16 lines of a box are there.
bool choose_upright(const RopeGeometry& g, const Chip& chip, RopeRows (&rows)[2], RopeParams& p);

}  // namespace npu_rope
