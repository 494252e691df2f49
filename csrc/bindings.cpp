// Module _C. Loading it registers the operators; what it binds is for tests and benchmarks.
#include <pybind11/pybind11.h>
#include <torch/csrc/api/include/torch/version.h>

PYBIND11_MODULE(_C, module) { module.attr("built_for_torch") = TORCH_VERSION; }
