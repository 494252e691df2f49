// Runs one entry once in CANN's CPU debug mode:
//   debug FOLDER ENTRY TOKENS Q_HEADS K_HEADS HEAD_DIM
// FOLDER has q, k, cos, sin, q_weight and k_weight, dense, the tables full, tables and weights in
// float32; q_out and k_out are put there.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "rope/rope_entries.h"
#include "rope/rope_plan.h"
#include "tikicpulib.h"

using namespace npu_rope;

using Kernel = void(uint8_t*, uint8_t*, uint8_t*, uint8_t*, uint8_t*, uint8_t*, uint8_t*, uint8_t*,
                    RopeParams);
#define DECLARE(name, ...) extern "C" Kernel name;
ROPE_ENTRIES(DECLARE)

namespace {

struct Entry {
  const char* name;
  DType dtype;
  bool split_in, join_out;
  uint8_t kind;
  Kernel* kernel;
};
#define ENTRY(name, dtype, type, split_in, join_out, kind) \
  {#name, DType::dtype, split_in, join_out, kind, name},
constexpr Entry kEntries[] = {ROPE_ENTRIES(ENTRY)};

// Read by run() in the processes that ICPU_RUN_KF forks: a struct needs no way through its
// arguments.
Kernel* kernel = nullptr;
RopeParams params;

void run(uint8_t* q, uint8_t* k, uint8_t* cos, uint8_t* sin, uint8_t* q_out, uint8_t* k_out,
         uint8_t* q_weight, uint8_t* k_weight) {
  kernel(q, k, cos, sin, q_out, k_out, q_weight, k_weight, params);
}

uint8_t* read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
  auto* const memory = static_cast<uint8_t*>(AscendC::GmAlloc(bytes.size()));
  std::memcpy(memory, bytes.data(), bytes.size());
  return memory;
}

void write(const std::string& path, const uint8_t* memory, size_t bytes) {
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(memory), bytes);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 7) return 2;
  const std::string folder = std::string(argv[1]) + "/";
  const Entry* entry = nullptr;
  for (const Entry& known : kEntries) {
    if (!std::strcmp(known.name, argv[2])) entry = &known;
  }
  if (!entry) return 2;

  RopeGeometry g{};
  g.dtype = entry->dtype;
  g.table_dtype = DType::kFloat32;
  g.style = entry->split_in == entry->join_out
                ? (entry->split_in ? Style::kInterleaved : Style::kHalf)
                : Style::kDeinterleave;
  g.transpose = !entry->split_in && entry->join_out;
  g.cast_tables = true;
  g.batch = 1;
  g.tokens = std::atoi(argv[3]);
  g.q_heads = std::atoi(argv[4]);
  g.k_heads = std::atoi(argv[5]);
  g.head_dim = g.rotary_dim = std::atoi(argv[6]);
  g.q = g.q_out = {0, g.q_heads * g.head_dim, g.head_dim};
  g.k = g.k_out = {0, g.k_heads * g.head_dim, g.head_dim};
  g.cos = g.sin = {0, g.head_dim};
  const bool norm = entry->kind == kNorms || entry->kind == kNormsArranged;
  g.norm = {norm, norm, DType::kFloat32, 1e-6, 0.0};
  const RopePlan plan = plan_rope(g, find_chip("Ascend910B1"));
  if (entry->kind != plan.params.kind) return 3;
  kernel = entry->kernel;
  params = plan.params;

  const size_t q_bytes = g.tokens * g.q_heads * g.head_dim * size_of(g.dtype);
  const size_t k_bytes = g.tokens * g.k_heads * g.head_dim * size_of(g.dtype);
  uint8_t* const q = read(folder + "q");
  uint8_t* const k = read(folder + "k");
  uint8_t* const cos = read(folder + "cos");
  uint8_t* const sin = read(folder + "sin");
  auto* const q_out = static_cast<uint8_t*>(AscendC::GmAlloc(q_bytes));
  auto* const k_out = static_cast<uint8_t*>(AscendC::GmAlloc(k_bytes));
  AscendC::SetKernelMode(KernelMode::AIV_MODE);
  uint8_t* const q_weight = read(folder + "q_weight");
  uint8_t* const k_weight = read(folder + "k_weight");
  ICPU_RUN_KF(run, plan.cores, q, k, cos, sin, q_out, k_out, q_weight, k_weight);
  write(folder + "q_out", q_out, q_bytes);
  write(folder + "k_out", k_out, k_bytes);
  return 0;
}
