// Launches the kernel on simulated cores and compares every element with the host's arithmetic.
// It does not include kernel_operator.h: this is how any host program uses the simulator.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "scale_params.h"
#include "simulator.h"

extern "C" void scale_bf16(uint8_t* x, uint8_t* y, ScaleParams params);

namespace {

float widen(uint16_t bf16) {
  const uint32_t bits = static_cast<uint32_t>(bf16) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

uint16_t round_to_bf16(float value) {  // to nearest, ties to even; no NaN here
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

}  // namespace

int main() {
  const ScaleParams params = {100'003, 1.7f};  // a prime: the last tile is short and unaligned
  std::vector<uint16_t> x(params.total), y(params.total);
  for (uint32_t i = 0; i < params.total; ++i) x[i] = static_cast<uint16_t>(0x3000 + i % 0x2000);

  using namespace npu_rope::simulator;
  const auto bytes = [](std::vector<uint16_t>& v) { return reinterpret_cast<uint8_t*>(v.data()); };
  const int64_t size = params.total * sizeof(uint16_t);
  try {
    const Trace trace = simulate(npu_rope::find_chip("Ascend910B1"), 8,
                                 {{x.data(), size, true}, {y.data(), size, false}},
                                 [&] { scale_bf16(bytes(x), bytes(y), params); });
    uint32_t wrong = 0;
    for (uint32_t i = 0; i < params.total; ++i) {
      wrong += y[i] != round_to_bf16(widen(x[i]) * params.scale);
    }
    const Counters totals = trace.totals();
    std::printf("%u elements, %u wrong; %llu loads, %llu stores, %llu bytes of unified buffer\n",
                params.total, wrong, static_cast<unsigned long long>(totals.loads),
                static_cast<unsigned long long>(totals.stores),
                static_cast<unsigned long long>(totals.ub_bytes));
    return wrong != 0;
  } catch (const SimulationError& refused) {
    std::printf("refused: %s\n", refused.what());
    return 2;
  }
}
