// The NPU library: what of this package needs torch_npu and CANN. Nothing links it. It is loaded by
// the first call on an npu tensor, when torch_npu is there in any case, so that npu_rope imports
// without either, before torch_npu or after it.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>
#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "rope/rope_geometry.h"

namespace npu_rope {

/// What the library offers: one function for each operator, and what torch_npu knows of a tensor.
struct NpuLibrary {
  int64_t (*format)(const at::Tensor&);  // of an npu tensor, by CANN's numbers (aclFormat)
  // Throws where no kernel is written for this machine's chip, or none that takes this.
  void (*check)(const RopeGeometry&);
  void (*rope)(const RopeGeometry&, const RopePointers&);
};

/// The one function that the library exports, which returns what it offers.
constexpr const char* kNpuLibraryEntry = "npu_rope_npu_library";
using NpuLibraryEntry = const NpuLibrary*();

/// The library's file: what NPU_ROPE_NPU_LIBRARY names, or libnpu_rope_npu.so beside this module.
/// Empty where there is neither.
inline std::string npu_library_path() {
  if (const char* const named = std::getenv("NPU_ROPE_NPU_LIBRARY")) return named;
  Dl_info module;
  if (!dladdr(reinterpret_cast<const void*>(&npu_library_path), &module)) return "";
  std::string path = module.dli_fname;
  path = path.substr(0, path.rfind('/') + 1) + "libnpu_rope_npu.so";
  return access(path.c_str(), R_OK) == 0 ? path : "";
}

/// Throws c10::Error saying what is missing where the library does not load.
inline const NpuLibrary* load_npu_library() {
  const std::string path = npu_library_path();
  TORCH_CHECK(!path.empty(),
              "npu_rope was built without its NPU library, so it can't run on npu tensors; "
              "`python -m npu_rope doctor` says what is missing");
  void* const handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  TORCH_CHECK(handle, "npu_rope's NPU library does not load: ", dlerror());
  const auto entry = reinterpret_cast<NpuLibraryEntry*>(dlsym(handle, kNpuLibraryEntry));
  TORCH_CHECK(entry, path, " has no function ", kNpuLibraryEntry,
              ": it is not npu_rope's NPU library");
  return entry();
}

/// The library of this process. What failed to load is tried again by the next call.
inline const NpuLibrary& npu_library() {
  static const NpuLibrary* const library = load_npu_library();
  return *library;
}

}  // namespace npu_rope
