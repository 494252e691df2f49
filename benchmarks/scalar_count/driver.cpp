// Runs the kernel as core 0 for each geometry on stdin (a line of numbers each), over the
// kernel_operator.h beside this file, and prints a line of counts for each.
//
//   driver SOC        under qemu, where plugin.c counts
//   driver SOC step   alone: the kernel runs one instruction at a time in a child process (ptrace)
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
#include <iostream>
#include <sstream>
#include <string>
#include <unordered_set>

#include "kernel_operator.h"
#include "rope/rope_entries.h"
#include "rope/rope_plan.h"

int64_t block_index = 0;

using namespace npu_rope;
using Kernel = void(uint8_t*, uint8_t*, uint8_t*, uint8_t*, uint8_t*, uint8_t*, uint8_t*, uint8_t*,
                    RopeParams);
#define DECLARE(name, ...) extern "C" Kernel name;
ROPE_ENTRIES(DECLARE)
#define ENTRY(name, dtype, type, split_in, join_out, kind) \
  {DType::dtype, split_in, join_out, kind, name},
constexpr RopeEntry<Kernel> kKernels[] = {ROPE_ENTRIES(ENTRY)};

namespace {

[[noreturn]] void cannot_step() {
  std::fprintf(stderr, "this machine lets no process step through its own child\n");
  std::exit(3);
}

void run(Kernel* kernel, const RopeParams& params) {
  uint8_t* const gm = reinterpret_cast<uint8_t*>(1ull << 40);  // never read or written
  ISSUE_ALONE(kBegin);
  kernel(gm, gm, gm, gm, gm, gm, gm, gm, params);
  ISSUE_ALONE(kEnd);
}

/// The marked nop at an address, or 0. The child is a fork: its text is this process's too.
int marked(uint64_t address) {
  uint32_t word;
#if defined(__x86_64__)
  const auto* const text = reinterpret_cast<const uint8_t*>(address);
  if (text[0] != 0x0f || text[1] != 0x1f || text[2] != 0x80) return 0;
  std::memcpy(&word, text + 3, sizeof word);
  return (word & ~0xffu) == 0x5ca1a000u ? static_cast<int>(word & 0xff) : 0;
#else
  std::memcpy(&word, reinterpret_cast<const void*>(address), sizeof word);
  return (word & 0xffe0001f) == 0xd280001f ? static_cast<int>(word >> 5 & 0xff) : 0;
#endif
}

uint64_t program_counter(pid_t child) {
  user_regs_struct registers;
  iovec where = {&registers, sizeof registers};
  if (ptrace(PTRACE_GETREGSET, child, NT_PRSTATUS, &where) != 0) cannot_step();
#if defined(__x86_64__)
  return registers.rip;
#else
  return registers.pc;
#endif
}

void step_through(Kernel* kernel, const RopeParams& params) {
  const pid_t child = fork();
  if (child == 0) {
    if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) _exit(1);
    raise(SIGSTOP);
    run(kernel, params);
    _exit(0);
  }
  uint64_t instructions = 0, issued[256] = {};
  std::unordered_set<uint64_t> seen;
  for (bool on = false;;) {
    int status;
    if (waitpid(child, &status, 0) != child || !WIFSTOPPED(status)) cannot_step();
    const uint64_t at = program_counter(child);
    const int mark = marked(at);
    if (mark == kEnd) break;
    if (on) {
      ++instructions;
      ++issued[mark];
      seen.insert(at);
    }
    on = on || mark == kBegin;
    if (ptrace(PTRACE_SINGLESTEP, child, nullptr, nullptr) != 0) cannot_step();
  }
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  std::printf("instructions %llu vector %llu loads %llu stores %llu code %zu\n",
              static_cast<unsigned long long>(instructions),
              static_cast<unsigned long long>(issued[kVector]),
              static_cast<unsigned long long>(issued[kLoad]),
              static_cast<unsigned long long>(issued[kStore]), 4 * seen.size());
  std::fflush(stdout);
}

}  // namespace

int main(int count, char** arguments) {
  const Chip& chip = find_chip(arguments[1]);
  const bool step = count > 2 && std::string(arguments[2]) == "step";
  std::string line;
  while (std::getline(std::cin, line)) {
    std::istringstream in(line);
    RopeGeometry g = {};
    int dtype, table_dtype, style;
    in >> dtype >> table_dtype >> style >> g.transpose >> g.half_tables >> g.cast_tables;
    in >> g.batch >> g.tokens >> g.q_heads >> g.k_heads >> g.head_dim >> g.rotary_dim;
    in >> g.rotary_offset >> g.q_in_place >> g.k_in_place;
    for (RowStrides* rows : {&g.q, &g.k, &g.q_out, &g.k_out}) {
      in >> rows->batch >> rows->token >> rows->head;
    }
    for (TableStrides* table : {&g.cos, &g.sin}) in >> table->batch >> table->token;
    if (!in) {
      std::fprintf(stderr, "expected a geometry, got '%s'\n", line.c_str());
      return 1;
    }
    int weight_dtype = 0;
    if (in >> g.norm.q >> g.norm.k >> weight_dtype) g.norm.eps = 1e-6;
    g.norm.weight_dtype = static_cast<DType>(weight_dtype);
    g.dtype = static_cast<DType>(dtype);
    g.table_dtype = static_cast<DType>(table_dtype);
    g.style = static_cast<Style>(style);
    const RopePlan plan = plan_rope(g, chip);
    Kernel* const kernel = find_entry(kKernels, g.dtype, plan.params);
    step ? step_through(kernel, plan.params) : run(kernel, plan.params);
  }
}
