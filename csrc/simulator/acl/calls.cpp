#include "calls.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <map>
#include <mutex>
#include <set>
#include <sstream>
#include <thread>
#include <utility>

#include "control.h"

namespace npu_rope::acl {
namespace {

struct Fault {
  aclError code;
  int after;  // calls that still succeed
  int times;  // failures that are left, or < 0: no end
};

struct State {
  std::mutex mutex;
  bool logging = false;
  std::string log;
  std::map<std::string, Fault> faults;
  std::map<std::string, int> delays;
  std::set<std::string> held;
  std::condition_variable released;
};

// NPU_ROPE_SIM_FAULTS=function:code[:after[:times]],…
void read_faults(State& state) {
  const char* const text = std::getenv("NPU_ROPE_SIM_FAULTS");
  std::istringstream faults(text ? text : "");
  for (std::string fault; std::getline(faults, fault, ',');) {
    std::istringstream fields(fault);
    std::string function, code, after = "0", times = "-1";
    std::getline(fields, function, ':');
    std::getline(fields, code, ':');
    std::getline(fields, after, ':');
    std::getline(fields, times, ':');
    state.faults[function] = {std::atoi(code.c_str()), std::atoi(after.c_str()),
                              std::atoi(times.c_str())};
  }
}

State& state() {  // never destroyed: the streams' threads outlive static destructors
  static State* const instance = [] {
    auto* made = new State;
    read_faults(*made);
    return made;
  }();
  return *instance;
}

void throw_fault(State& state, const std::string& function) {
  for (const char* name : {function.c_str(), "*"}) {
    const auto found = state.faults.find(name);
    if (found == state.faults.end()) continue;
    Fault& fault = found->second;
    if (fault.after-- > 0) continue;
    fault.after = 0;
    if (fault.times == 0) continue;
    if (fault.times > 0) --fault.times;
    throw Failure(fault.code, "injected fault");
  }
}

thread_local std::string recent_error;
thread_local aclError last_error = ACL_SUCCESS;

}  // namespace

void enter(const std::string& function, const std::string& detail) {
  hold_up(function + "@call");
  State& s = state();
  const std::lock_guard<std::mutex> lock(s.mutex);
  if (s.logging) s.log += function + (detail.empty() ? "" : " " + detail) + "\n";
  throw_fault(s, function);
}

void enter_on_device(const std::string& function) {
  State& s = state();
  const std::lock_guard<std::mutex> lock(s.mutex);
  const auto found = s.faults.find(function + "@device");
  if (found != s.faults.end()) throw_fault(s, function + "@device");
}

void hold_up(const std::string& function) {
  State& s = state();
  std::unique_lock<std::mutex> lock(s.mutex);
  s.released.wait(lock, [&] { return s.held.count(function) == 0; });
  const auto delay = s.delays.find(function);
  const int milliseconds = delay == s.delays.end() ? 0 : delay->second;
  lock.unlock();
  std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
}

std::atomic<bool>& runs_kernels() {
  static std::atomic<bool> runs{true};
  return runs;
}

aclError report(const std::string& function, const Failure& failure) {
  recent_error = function + ": " + failure.what() + " (" + std::to_string(failure.code) + ")";
  last_error = failure.code;
  return failure.code;
}

aclError absent(const char* function) {
  return call(function, [] {
    throw Failure(ACL_ERROR_API_NOT_SUPPORT, "not part of the simulated CANN runtime");
  });
}

}  // namespace npu_rope::acl

using namespace npu_rope::acl;

const char* aclGetRecentErrMsg() { return recent_error.c_str(); }

// Neither logged nor made to fail: they look at what the calls before them have left.
aclError aclrtPeekAtLastError(aclrtLastErrLevel) { return last_error; }
aclError aclrtGetLastError(aclrtLastErrLevel) { return std::exchange(last_error, ACL_SUCCESS); }

void npu_rope_sim_log_start() {
  State& s = state();
  const std::lock_guard<std::mutex> lock(s.mutex);
  s.log.clear();
  s.logging = true;
}

const char* npu_rope_sim_log_stop() {
  static std::string taken;
  State& s = state();
  const std::lock_guard<std::mutex> lock(s.mutex);
  s.logging = false;
  taken.swap(s.log);
  return taken.c_str();
}

void npu_rope_sim_fail(const char* function, int code, int after, int times) {
  State& s = state();
  const std::lock_guard<std::mutex> lock(s.mutex);
  if (code == 0) {
    s.faults.erase(function);
  } else {
    s.faults[function] = {code, after, times};
  }
}

void npu_rope_sim_run_kernels(int run) { runs_kernels() = run != 0; }

void npu_rope_sim_delay(const char* function, int milliseconds) {
  State& s = state();
  const std::lock_guard<std::mutex> lock(s.mutex);
  s.delays[function] = milliseconds;
}

void npu_rope_sim_hold(const char* function, int hold) {
  State& s = state();
  {
    const std::lock_guard<std::mutex> lock(s.mutex);
    if (hold) {
      s.held.insert(function);
    } else {
      s.held.erase(function);
    }
  }
  s.released.notify_all();
}
