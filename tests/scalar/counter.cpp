// Counts the instructions that the kernel's scalar code takes on one core: the kernel compiled for
// this machine over the kernel_operator.h beside this file, run one instruction at a time in a
// child process (ptrace). Prints one line of numbers for each line of standard input:
//
//   in    dtype style tokens q_heads k_heads head_dim rotary_dim rows core
//   out   instructions vector loads stores distinct cores
//
// dtype, style: as in rope_geometry.h, by number. rows: 0 slices of a packed QKV, 1 dense and in
// place, 2 MLA's rope slices of q (192 columns) and of the compressed k (576). distinct: different
// instructions executed, which is what an instruction cache has to hold.
#include <elf.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <unordered_set>

#include "kernel_operator.h"
#include "rope/rope_entries.h"
#include "rope/rope_plan.h"

int64_t block_index = 0;

using namespace npu_rope;
using Kernel = void(uint8_t*, uint8_t*, uint8_t*, uint8_t*, uint8_t*, uint8_t*, RopeParams);
#define DECLARE(name, ...) extern "C" Kernel name;
ROPE_ENTRIES(DECLARE)
#define ENTRY(name, dtype, type, split_in, join_out) {DType::dtype, split_in, join_out, name},
constexpr RopeEntry<Kernel> kKernels[] = {ROPE_ENTRIES(ENTRY)};

extern "C" __attribute__((noinline)) void count_begin() { asm volatile(""); }
extern "C" __attribute__((noinline)) void count_end() { asm volatile(""); }

namespace {

/// The marked nop at an address, or 0. The child is a fork: its text is this process's too.
int marked(uint64_t address) {
  uint32_t word;
#if defined(__x86_64__)
  const auto* const text = reinterpret_cast<const uint8_t*>(address);
  if (text[0] != 0x0f || text[1] != 0x1f || text[2] != 0x80) return 0;
  std::memcpy(&word, text + 3, sizeof word);
  return (word & ~15u) == 0x5ca1a000u ? static_cast<int>(word & 15) : 0;
#else
  std::memcpy(&word, reinterpret_cast<const void*>(address), sizeof word);
  return (word & 0xffe0001f) == 0xd280001f ? static_cast<int>(word >> 5 & 0xffff) : 0;
#endif
}

uint64_t program_counter(pid_t child) {
  user_regs_struct registers;
  iovec where = {&registers, sizeof registers};
  if (ptrace(PTRACE_GETREGSET, child, NT_PRSTATUS, &where) != 0) {
    std::perror("ptrace");
    std::exit(2);
  }
#if defined(__x86_64__)
  return registers.rip;
#else
  return registers.pc;
#endif
}

void step(pid_t child) {
  int status;
  if (ptrace(PTRACE_SINGLESTEP, child, nullptr, nullptr) != 0 ||
      waitpid(child, &status, 0) != child || !WIFSTOPPED(status)) {
    std::fprintf(stderr, "the kernel cannot be stepped through\n");
    std::exit(2);
  }
}

void count(const RopePlan& plan, Kernel* kernel, int64_t core) {
  const pid_t child = fork();
  if (child == 0) {
    if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) _exit(2);
    raise(SIGSTOP);
    block_index = core;
    uint8_t* const gm = reinterpret_cast<uint8_t*>(uint64_t{1} << 32);
    count_begin();
    kernel(gm, gm, gm, gm, gm, gm, plan.params);
    count_end();
    _exit(0);
  }
  int status;
  waitpid(child, &status, 0);
  if (!WIFSTOPPED(status)) {
    std::fprintf(stderr, "this machine lets no process trace its own child\n");
    std::exit(2);
  }
  uint64_t instructions = 0, issued[16] = {};
  std::unordered_set<uint64_t> seen;
  bool on = false;
  for (;;) {
    const uint64_t at = program_counter(child);
    if (at == reinterpret_cast<uint64_t>(count_begin)) on = true;
    if (at == reinterpret_cast<uint64_t>(count_end)) break;
    if (on) {
      ++instructions;
      ++issued[marked(at) & 15];
      seen.insert(at);
    }
    step(child);
  }
  kill(child, SIGKILL);
  waitpid(child, &status, 0);
  std::printf("%llu %llu %llu %llu %zu %d\n", static_cast<unsigned long long>(instructions),
              static_cast<unsigned long long>(issued[kVector]),
              static_cast<unsigned long long>(issued[kLoad]),
              static_cast<unsigned long long>(issued[kStore]), seen.size(), plan.cores);
  std::fflush(stdout);
}

RowStrides strides_of(int64_t tokens, int64_t token, int64_t head) {
  return {tokens * token, token, head};
}

}  // namespace

int main() {
  int dtype, style, rows;
  long long tokens, q_heads, k_heads, head_dim, rotary_dim, core;
  while (std::scanf("%d %d %lld %lld %lld %lld %lld %d %lld", &dtype, &style, &tokens, &q_heads,
                    &k_heads, &head_dim, &rotary_dim, &rows, &core) == 9) {
    RopeGeometry g = {};
    g.dtype = static_cast<DType>(dtype);
    g.table_dtype = DType::kFloat32;
    g.style = static_cast<Style>(style);
    g.cast_tables = true;
    g.batch = 1;
    g.tokens = tokens;
    g.q_heads = q_heads;
    g.k_heads = k_heads;
    g.head_dim = head_dim;
    g.rotary_dim = rotary_dim;
    g.q = g.q_out = strides_of(tokens, q_heads * head_dim, head_dim);
    g.k = g.k_out = strides_of(tokens, k_heads * head_dim, head_dim);
    if (rows == 0) g.q = g.k = strides_of(tokens, (q_heads + 2 * k_heads) * head_dim, head_dim);
    if (rows == 1) g.q_in_place = g.k_in_place = true;
    if (rows == 2) {
      g.q = strides_of(tokens, q_heads * 192, 192);
      g.k = strides_of(tokens, k_heads * 576, 576);
    }
    g.cos = g.sin = {tokens * rotary_dim, rotary_dim};
    const RopePlan plan = plan_rope(g, find_chip("Ascend910B1"));
    count(plan, find_entry(kKernels, g.dtype, plan.params), core);
  }
}
