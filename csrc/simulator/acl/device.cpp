// Initialisation, devices, and what can be asked about them.
#include "device.h"

#include <acl/acl_op_compiler.h>

#include <atomic>
#include <cstdlib>

#include "calls.h"
#include "stream.h"

namespace npu_rope::acl {
namespace {

std::string setting(const char* name, const char* otherwise) {
  const char* const value = std::getenv(name);
  return value && *value ? value : otherwise;
}

thread_local int this_device = -1;

// A context is its device's number plus one, as a pointer: there is one for each device.
aclrtContext context_of(int device) { return reinterpret_cast<aclrtContext>(intptr_t{device} + 1); }

std::atomic<int64_t>& parameter(aclSysParamOpt option) {
  static std::atomic<int64_t> values[16];
  if (option < 0 || option >= 16) throw Failure(ACL_ERROR_INVALID_PARAM, "no such parameter");
  return values[option];
}

}  // namespace

const std::string& soc_name() {
  static const std::string name = setting("NPU_ROPE_SIM_SOC", "Ascend910B1");
  return name;
}

int device_count() {
  static const int count = std::stoi(setting("NPU_ROPE_SIM_DEVICES", "1"));
  return count;
}

size_t device_bytes() {
  static const size_t bytes = std::stoull(setting("NPU_ROPE_SIM_MEMORY", "2048")) << 20;
  return bytes;
}

int current_device() {
  if (this_device < 0) {
    throw Failure(ACL_ERROR_RT_CONTEXT_NULL,
                  "this thread has set no device, expected "
                  "aclrtSetDevice before");
  }
  return this_device;
}

void check_device(int device) {
  if (device < 0 || device >= device_count()) {
    throw Failure(ACL_ERROR_RT_INVALID_DEVICEID, "device is " + std::to_string(device) +
                                                     ", expected less than " +
                                                     std::to_string(device_count()));
  }
}

}  // namespace npu_rope::acl

using namespace npu_rope::acl;

aclError aclInit(const char*) {
  return call("aclInit", [] {});
}
aclError aclFinalize() {
  return call("aclFinalize", [] {});
}
aclError aclmdlInitDump() {
  return call("aclmdlInitDump", [] {});
}
aclError aclmdlSetDump(const char*) {
  return call("aclmdlSetDump", [] {});
}
aclError aclmdlFinalizeDump() {
  return call("aclmdlFinalizeDump", [] {});
}
void aclAppLog(aclLogLevel, const char*, const char*, uint32_t, const char*, ...) {}

const char* aclrtGetSocName() { return soc_name().c_str(); }

aclError aclrtGetDeviceCount(uint32_t* count) {
  return call("aclrtGetDeviceCount", [&] { *count = device_count(); });
}

aclError aclrtSetDevice(int32_t device) {
  return call("aclrtSetDevice", std::to_string(device), [&] {
    check_device(device);
    this_device = device;
  });
}

aclError aclrtGetDevice(int32_t* device) {
  return call("aclrtGetDevice", [&] { *device = current_device(); });
}

aclError aclrtResetDevice(int32_t device) {
  return call("aclrtResetDevice", std::to_string(device), [&] {
    check_device(device);
    synchronize_device(device);
    if (this_device == device) this_device = -1;
  });
}

aclError aclrtGetCurrentContext(aclrtContext* context) {
  return call("aclrtGetCurrentContext", [&] { *context = context_of(current_device()); });
}

aclError aclrtSetCurrentContext(aclrtContext context) {
  return call("aclrtSetCurrentContext", [&] {
    const auto device = static_cast<int>(reinterpret_cast<intptr_t>(context)) - 1;
    check_device(device);
    this_device = device;
  });
}

aclError aclrtGetPrimaryCtxState(int32_t device, uint32_t* flags, int32_t* active) {
  return call("aclrtGetPrimaryCtxState", [&] {
    check_device(device);
    if (flags) *flags = 0;
    *active = 1;
  });
}

aclError aclrtDeviceCanAccessPeer(int32_t* can_access, int32_t device, int32_t peer) {
  return call("aclrtDeviceCanAccessPeer", [&] {
    check_device(device);
    check_device(peer);
    *can_access = device != peer;
  });
}

aclError aclrtDeviceEnablePeerAccess(int32_t peer, uint32_t) {
  return call("aclrtDeviceEnablePeerAccess", [&] { check_device(peer); });
}

// Settings that change nothing here: results are exact and deterministic in every mode.
aclError aclrtSetDeviceSatMode(aclrtFloatOverflowMode) {
  return call("aclrtSetDeviceSatMode", [] {});
}
aclError aclrtSetSysParamOpt(aclSysParamOpt option, int64_t value) {
  return call("aclrtSetSysParamOpt", [&] { parameter(option) = value; });
}
aclError aclrtCtxSetSysParamOpt(aclSysParamOpt option, int64_t value) {
  return call("aclrtCtxSetSysParamOpt", [&] { parameter(option) = value; });
}
aclError aclrtGetSysParamOpt(aclSysParamOpt option, int64_t* value) {
  return call("aclrtGetSysParamOpt", [&] { *value = parameter(option); });
}
aclError aclrtSetOpExecuteTimeOut(uint32_t) {
  return call("aclrtSetOpExecuteTimeOut", [] {});
}
aclError aclSetCompileopt(aclCompileOpt, const char*) {
  return call("aclSetCompileopt", [] {});
}
