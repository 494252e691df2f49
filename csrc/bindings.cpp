// Module _C. Loading it registers the operators. What it binds is for tests and benchmarks (the
// plan, and the simulated launch of the Ascend C kernel) and for npu_rope.lmdeploy.
#include <ATen/core/grad_mode.h>
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/api/include/torch/version.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include "npu/chip.h"
#include "rope/rope_args.h"
#include "rope/rope_entries.h"
#include "rope/rope_forms.h"
#include "rope/rope_layer.h"
#include "rope/rope_ops.h"
#include "rope/rope_plan.h"
#include "simulator/ascendc/simulator.h"

// The kernel's entries, compiled against the simulator's kernel_operator.h.
using RopeKernelFunction = void(uint8_t* q, uint8_t* k, uint8_t* cos, uint8_t* sin, uint8_t* q_out,
                                uint8_t* k_out, uint8_t* q_weight, uint8_t* k_weight,
                                npu_rope::RopeParams params);
#define DECLARE(name, ...) extern "C" RopeKernelFunction name;
ROPE_ENTRIES(DECLARE)
#undef DECLARE

namespace py = pybind11;

namespace npu_rope {
namespace {

using simulator::CoreTrace;
using simulator::Counters;
using simulator::Event;
using simulator::GmRegion;
using simulator::SimulationError;
using simulator::Trace;
using simulator::UbOperand;
using simulator::VectorCount;

RopeOptions options_of(const std::optional<std::string>& layout, std::optional<int64_t> rotary_dim,
                       int64_t rotary_offset, bool interleaved, bool deinterleave, bool cast_tables,
                       bool round_each) {
  RopeOptions options{{},           rotary_dim,  rotary_offset, interleaved,
                      deinterleave, cast_tables, round_each};
  if (layout) options.layout = c10::string_view(*layout);
  return options;
}

/// The norm as it came: none where both weights are None.
NormOptions norm_of(const std::optional<at::Tensor>& q_weight,
                    const std::optional<at::Tensor>& k_weight, double eps, double weight_offset) {
  return {or_undefined(q_weight), or_undefined(k_weight), eps, weight_offset};
}

/// Of tensors that come past the dispatcher: what it would have seen to.
void check_plain(const at::Tensor& tensor, const char* name) {
  if (!tensor.defined()) return;
  TORCH_CHECK_VALUE(tensor.is_cpu(), name, " is on ", tensor.device(), ", expected cpu");
  TORCH_CHECK_VALUE(!tensor.is_neg() && !tensor.is_conj() && !tensor._is_zerotensor(), name,
                    " is a view whose elements are not what its memory holds, expected ", name,
                    ".clone()");
}

/// The checks of every form, on the tensors as they lie.
RopeArgs check_all(const at::Tensor& q, const at::Tensor& k, const at::Tensor& cos,
                   const at::Tensor& sin, const at::Tensor& q_out, const at::Tensor& k_out,
                   const NormOptions& norm, const RopeOptions& options) {
  const at::Tensor* const tensors[] = {&q,     &k,     &cos,           &sin,
                                       &q_out, &k_out, &norm.q_weight, &norm.k_weight};
  const char* const names[] = {"q", "k", "cos", "sin", "q_out", "k_out", "q_weight", "k_weight"};
  for (int i = 0; i < 8; ++i) check_plain(*tensors[i], names[i]);
  const RopeArgs args = check_inputs<int64_t>(q, k, cos, sin, options, {"q", "k"});
  check_norm(norm, q, k, args);
  check_outputs<int64_t>(q, k, q_out, k_out);
  check_norm_overlap(q, k, cos, sin, norm, q_out, k_out);
  return args;
}

RopeGeometry geometry_of(const at::Tensor& q, const at::Tensor& k, const at::Tensor& cos,
                         const at::Tensor& sin, const at::Tensor& q_out, const at::Tensor& k_out,
                         const std::optional<std::string>& layout,
                         std::optional<int64_t> rotary_dim, int64_t rotary_offset, bool interleaved,
                         bool deinterleave, bool cast_tables, bool round_each, bool transpose,
                         const std::optional<at::Tensor>& q_weight,
                         const std::optional<at::Tensor>& k_weight, double eps,
                         double weight_offset) {
  const RopeOptions options = options_of(layout, rotary_dim, rotary_offset, interleaved,
                                         deinterleave, cast_tables, round_each);
  const NormOptions norm = norm_of(q_weight, k_weight, eps, weight_offset);
  const RopeArgs args = check_all(q, k, cos, sin, q_out, k_out, norm, options);
  for (const at::Tensor& tensor : {q, k, cos, sin, q_out, k_out}) {
    TORCH_CHECK_VALUE(has_dense_rows(tensor), "a tensor's last axis has stride ",
                      tensor.strides().back(), ", expected 1: a geometry has dense rows");
  }
  RopeGeometry geometry = make_geometry(args, q, k, cos, sin, q_out, k_out, transpose);
  geometry.norm = make_norm(norm);
  return geometry;
}

/// The bytes from a tensor's first element to its last: what a kernel may touch of its storage.
GmRegion extent_of(const at::Tensor& tensor, bool read_only) {
  if (!tensor.defined()) return {nullptr, 0, read_only};
  int64_t elements = tensor.numel() > 0 ? 1 : 0;
  for (int64_t axis = 0; elements > 0 && axis < tensor.dim(); ++axis) {
    elements += (tensor.size(axis) - 1) * tensor.stride(axis);
  }
  return {tensor.const_data_ptr(), elements * tensor.element_size(), read_only};
}

#define KERNEL(name, dtype, type, split_in, join_out, kind) \
  {DType::dtype, split_in, join_out, kind, name},
constexpr RopeEntry<RopeKernelFunction> kKernels[] = {ROPE_ENTRIES(KERNEL)};
#undef KERNEL

Trace simulate_rope(const RopePlan& plan, const at::Tensor& q, const at::Tensor& k,
                    const at::Tensor& cos, const at::Tensor& sin, const at::Tensor& q_out,
                    const at::Tensor& k_out, const std::optional<at::Tensor>& maybe_q_weight,
                    const std::optional<at::Tensor>& maybe_k_weight, const std::string& soc,
                    bool events, int threads) {
  const at::Tensor& q_weight = or_undefined(maybe_q_weight);
  const at::Tensor& k_weight = or_undefined(maybe_k_weight);
  Trace nothing;
  nothing.chip = soc;
  if (plan.cores == 0) return nothing;
  const at::ScalarType type = q.defined() ? q.scalar_type() : k.scalar_type();
  const DType dtype = type == at::kHalf       ? DType::kFloat16
                      : type == at::kBFloat16 ? DType::kBFloat16
                                              : DType::kFloat32;
  RopeKernelFunction* const entry = find_entry(kKernels, dtype, plan.params);
  TORCH_INTERNAL_ASSERT(entry);
  const auto address = [](const at::Tensor& tensor) -> uint8_t* {
    if (!tensor.defined()) return nullptr;
    return static_cast<uint8_t*>(const_cast<void*>(tensor.const_data_ptr()));
  };
  const auto written = [](const at::Tensor& tensor) -> uint8_t* {
    return tensor.defined() ? static_cast<uint8_t*>(tensor.mutable_data_ptr()) : nullptr;
  };
  uint8_t* const q_written = written(q_out);
  uint8_t* const k_written = written(k_out);
  // Outputs first: where one is its own input, the region that may be written is found first.
  const std::vector<GmRegion> regions = {extent_of(q_out, false),   extent_of(k_out, false),
                                         extent_of(q, true),        extent_of(k, true),
                                         extent_of(cos, true),      extent_of(sin, true),
                                         extent_of(q_weight, true), extent_of(k_weight, true)};
  constexpr bool kAutoSync = false;  // the kernel is right without the compiler's help, too
  const py::gil_scoped_release release;
  return simulator::simulate(find_chip(soc), plan.cores, regions,
                             [&] {
                               entry(address(q), address(k), address(cos), address(sin), q_written,
                                     k_written, address(q_weight), address(k_weight), plan.params);
                             },
                             {threads, events, kAutoSync});
}

at::Tensor dense_rows(const at::Tensor& tensor) {
  return has_dense_rows(tensor) ? tensor : tensor.contiguous();
}

/// The operator on simulated cores: its checks, its copies where rows are not dense, one launch.
std::tuple<RopeGeometry, RopePlan, Trace> simulate(
    const std::optional<at::Tensor>& maybe_q, const std::optional<at::Tensor>& maybe_k,
    const at::Tensor& given_cos, const at::Tensor& given_sin,
    const std::optional<at::Tensor>& maybe_q_out, const std::optional<at::Tensor>& maybe_k_out,
    const std::string& soc, bool events, int threads, const std::optional<std::string>& layout,
    std::optional<int64_t> rotary_dim, int64_t rotary_offset, bool interleaved, bool deinterleave,
    bool cast_tables, bool round_each, bool transpose, const std::optional<at::Tensor>& q_weight,
    const std::optional<at::Tensor>& k_weight, double eps, double weight_offset) {
  const RopeOptions options = options_of(layout, rotary_dim, rotary_offset, interleaved,
                                         deinterleave, cast_tables, round_each);
  NormOptions norm = norm_of(q_weight, k_weight, eps, weight_offset);
  const at::NoGradGuard no_grad;
  const at::Tensor q_out = maybe_q_out.value_or(at::Tensor());
  const at::Tensor k_out = maybe_k_out.value_or(at::Tensor());
  // What is only read is resolved, as the dispatcher does.
  const auto resolved = [&](const at::Tensor& t) {
    return t.is_same(q_out) || t.is_same(k_out) ? t : t.resolve_conj().resolve_neg();
  };
  const at::Tensor q = maybe_q ? resolved(*maybe_q) : at::Tensor();
  const at::Tensor k = maybe_k ? resolved(*maybe_k) : at::Tensor();
  const at::Tensor cos = resolved(given_cos), sin = resolved(given_sin);
  for (at::Tensor* const weight : {&norm.q_weight, &norm.k_weight}) {
    if (weight->defined()) *weight = resolved(*weight);
  }
  const RopeArgs args = check_all(q, k, cos, sin, q_out, k_out, norm, options);
  RopeGeometry geometry = make_geometry(args, q, k, cos, sin, q_out, k_out, transpose);
  geometry.norm = make_norm(norm);
  RopePlan plan = plan_rope(geometry, find_chip(soc));
  Trace trace;
  trace.chip = soc;
  rotate(args, q, k, cos, sin, q_out, k_out, transpose,
         [&](const RopeGeometry& dense, const at::Tensor& q, const at::Tensor& k,
             const at::Tensor& cos, const at::Tensor& sin, const at::Tensor& q_out,
             const at::Tensor& k_out) {
           geometry = dense;
           geometry.norm = make_norm(norm);
           plan = plan_rope(geometry, find_chip(soc));
           trace = simulate_rope(plan, q, k, cos, sin, q_out, k_out, dense_rows(norm.q_weight),
                                 dense_rows(norm.k_weight), soc, events, threads);
         });
  return {geometry, plan, std::move(trace)};
}

template <class Struct>
void bind_fields(py::class_<Struct>&) {}
template <class Struct, class Field, class... Rest>
void bind_fields(py::class_<Struct>& type, const char* name, Field Struct::* field, Rest... rest) {
  type.def_readwrite(name, field);
  bind_fields(type, rest...);
}
/// A plain struct whose fields can be read and set by name; made of zeros.
template <class Struct, class... Fields>
py::class_<Struct> bind_struct(py::module_& module, const char* name, Fields... fields) {
  py::class_<Struct> type(module, name);
  type.def(py::init([] { return Struct{}; }));
  bind_fields(type, fields...);
  return type;
}

void bind_plan(py::module_& module) {
  py::enum_<DType>(module, "DType")
      .value("float16", DType::kFloat16)
      .value("bfloat16", DType::kBFloat16)
      .value("float32", DType::kFloat32)
      .value("float64", DType::kFloat64);
  py::enum_<Style>(module, "Style")
      .value("half", Style::kHalf)
      .value("interleaved", Style::kInterleaved)
      .value("deinterleave", Style::kDeinterleave);
  bind_struct<Chip>(module, "Chip", "name", &Chip::name, "arch", &Chip::arch, "cores", &Chip::cores,
                    "mhz", &Chip::mhz, "ub_bytes", &Chip::ub_bytes, "ub_usable", &Chip::ub_usable,
                    "l2_bytes", &Chip::l2_bytes);
  bind_struct<RowStrides>(module, "RowStrides", "batch", &RowStrides::batch, "token",
                          &RowStrides::token, "head", &RowStrides::head);
  bind_struct<TableStrides>(module, "TableStrides", "batch", &TableStrides::batch, "token",
                            &TableStrides::token);
  bind_struct<RopeNorm>(module, "RopeNorm", "q", &RopeNorm::q, "k", &RopeNorm::k, "weight_dtype",
                        &RopeNorm::weight_dtype, "eps", &RopeNorm::eps, "weight_offset",
                        &RopeNorm::weight_offset);
  using G = RopeGeometry;
  bind_struct<G>(module, "RopeGeometry", "dtype", &G::dtype, "table_dtype", &G::table_dtype,
                 "style", &G::style, "transpose", &G::transpose, "half_tables", &G::half_tables,
                 "cast_tables", &G::cast_tables, "round_each", &G::round_each, "batch", &G::batch,
                 "tokens", &G::tokens, "q_heads", &G::q_heads, "k_heads", &G::k_heads, "head_dim",
                 &G::head_dim, "rotary_dim", &G::rotary_dim, "rotary_offset", &G::rotary_offset,
                 "q_in_place", &G::q_in_place, "k_in_place", &G::k_in_place, "q", &G::q, "k", &G::k,
                 "q_out", &G::q_out, "k_out", &G::k_out, "cos", &G::cos, "sin", &G::sin, "norm",
                 &G::norm);
  using P = RopeParams;
  bind_struct<P>(module, "RopeParams", "token_parts", &P::token_parts, "head_parts", &P::head_parts,
                 "tile_tokens", &P::tile_tokens, "box_rows", &P::box_rows, "step_rows",
                 &P::step_rows, "upright", &P::upright, "kind", &P::kind)
      .def_property_readonly("stream_in", [](const P& p) {
        return std::vector<int32_t>{p.stream_in[0], p.stream_in[1]};
      });
  using B = RopeBox;
  bind_struct<B>(module, "RopeBox", "tensor", &B::tensor, "batch", &B::batch, "token", &B::token,
                 "tokens", &B::tokens, "head", &B::head, "heads", &B::heads, "tile_token",
                 &B::tile_token, "tile_tokens", &B::tile_tokens, "starts_tile", &B::starts_tile);
  bind_struct<RopePlan>(module, "RopePlan", "cores", &RopePlan::cores, "ub_bytes",
                        &RopePlan::ub_bytes, "params", &RopePlan::params)
      .def("boxes", &boxes_of, py::arg("core"));
  module.def("chips", &chips);
  module.def("find_chip", &find_chip, py::arg("soc"));
  module.def("plan_rope", &plan_rope, py::arg("geometry"), py::arg("chip"));
  module.def("geometry_of", &geometry_of, py::arg("q"), py::arg("k"), py::arg("cos"),
             py::arg("sin"), py::arg("q_out"), py::arg("k_out"), py::kw_only(),
             py::arg("layout") = py::none(), py::arg("rotary_dim") = py::none(),
             py::arg("rotary_offset") = 0, py::arg("interleaved") = false,
             py::arg("deinterleave") = false, py::arg("cast_tables") = true,
             py::arg("round_each") = false, py::arg("transpose") = false,
             py::arg("q_weight") = py::none(), py::arg("k_weight") = py::none(),
             py::arg("eps") = 0.0, py::arg("weight_offset") = 0.0);
}

std::vector<UbOperand> operands_of(const Event& event) {
  return {event.operands, event.operands + event.operand_count};
}
std::vector<uint32_t> dependencies_of(const CoreTrace& trace, const Event& event) {
  const auto first = trace.dependencies.begin() + event.first_dependency;
  return {first, first + event.dependency_count};
}

void bind_simulator(py::module_& module) {
  py::register_exception<SimulationError>(module, "SimulationError", PyExc_RuntimeError);
  py::class_<UbOperand>(module, "UbOperand")
      .def_readonly("address", &UbOperand::address)
      .def_readonly("block_stride", &UbOperand::block_stride)
      .def_readonly("repeat_stride", &UbOperand::repeat_stride)
      .def_readonly("dtype", &UbOperand::dtype);
  py::class_<Event>(module, "Event")
      .def_readonly("api", &Event::api)
      .def_property_readonly("file", [](const Event& e) { return e.where.file; })
      .def_property_readonly("line", [](const Event& e) { return e.where.line; })
      .def_property_readonly("pipe", [](const Event& e) { return pipe_name(e.pipe); })
      .def_property_readonly("operands", &operands_of)
      .def_readonly("repeats", &Event::repeats)
      .def_readonly("lanes", &Event::lanes)
      .def_readonly("elements", &Event::elements)
      .def_property_readonly("conflicts", [](const Event& e) { return e.conflicts.total(); })
      .def_readonly("blocks", &Event::blocks)
      .def_readonly("block_bytes", &Event::block_bytes)
      .def_readonly("gm_region", &Event::gm_region)
      .def_readonly("gm_offset", &Event::gm_offset)
      .def_readonly("gm_pitch", &Event::gm_pitch)
      .def_readonly("cached", &Event::cached);
  py::class_<VectorCount>(module, "VectorCount")
      .def_readonly("api", &VectorCount::api)
      .def_readonly("dst_dtype", &VectorCount::dst_dtype)
      .def_readonly("src_dtype", &VectorCount::src_dtype)
      .def_readonly("calls", &VectorCount::calls)
      .def_readonly("repeats", &VectorCount::repeats)
      .def_readonly("elements", &VectorCount::elements)
      .def_property_readonly("conflicts", [](const VectorCount& c) { return c.conflicts.total(); });
  py::class_<Counters>(module, "Counters")
      .def_readonly("gm_bytes_read", &Counters::gm_bytes_read)
      .def_readonly("gm_bytes_written", &Counters::gm_bytes_written)
      .def_readonly("loads", &Counters::loads)
      .def_readonly("stores", &Counters::stores)
      .def_readonly("ub_bytes", &Counters::ub_bytes)
      .def_readonly("vector", &Counters::vector);
  py::class_<CoreTrace>(module, "CoreTrace")
      .def_readonly("core", &CoreTrace::core)
      .def_readonly("counters", &CoreTrace::counters)
      .def_readonly("events", &CoreTrace::events)
      .def("dependencies", &dependencies_of, py::arg("event"));
  py::class_<Trace>(module, "Trace")
      .def_readonly("chip", &Trace::chip)
      .def_readonly("cores", &Trace::cores)
      .def("totals", &Trace::totals);
  module.def("simulate", &simulate, py::arg("q"), py::arg("k"), py::arg("cos"), py::arg("sin"),
             py::arg("q_out"), py::arg("k_out"), py::kw_only(), py::arg("soc"), py::arg("events"),
             py::arg("threads"), py::arg("layout") = py::none(), py::arg("rotary_dim") = py::none(),
             py::arg("rotary_offset") = 0, py::arg("interleaved") = false,
             py::arg("deinterleave") = false, py::arg("cast_tables") = true,
             py::arg("round_each") = false, py::arg("transpose") = false,
             py::arg("q_weight") = py::none(), py::arg("k_weight") = py::none(),
             py::arg("eps") = 0.0, py::arg("weight_offset") = 0.0);
  module.def("simulate_rope", &simulate_rope, py::arg("plan"), py::arg("q"), py::arg("k"),
             py::arg("cos"), py::arg("sin"), py::arg("q_out"), py::arg("k_out"),
             py::arg("q_weight") = py::none(), py::arg("k_weight") = py::none(), py::kw_only(),
             py::arg("soc"), py::arg("events") = false, py::arg("threads") = 0);
}

const at::Tensor& unpacked(py::handle x) { return THPVariable_Unpack(x.ptr()); }

py::object pair_or_reason(const RopeResult& result) {
  if (const auto* const refusal = std::get_if<std::string>(&result)) return py::str(*refusal);
  const auto& [q_rows, k_rows] = std::get<1>(result);
  return py::make_tuple(q_rows, k_rows);
}

// What LMDeploy's layer calls for each of its layers: arguments are read here by hand, since a
// signature with names costs as much as the call. A tuple, or a string that says why not.
py::object try_apply_py(py::handle q, py::handle k, py::handle cos, py::handle sin, bool in_place,
                        py::handle q_out, py::handle k_out, int64_t rotary_dim, bool interleaved,
                        bool deinterleave, bool cast_tables, bool round_each) {
  for (const py::handle x : {q, k, cos, sin}) {
    if (!THPVariable_Check(x.ptr())) return py::str("q, k, cos and sin are not all tensors");
  }
  RopeTarget target{in_place, std::nullopt, std::nullopt};
  if (!q_out.is_none()) target.q_out = unpacked(q_out);
  if (!k_out.is_none()) target.k_out = unpacked(k_out);
  RopeOptions options{{}, std::nullopt, 0, interleaved, deinterleave, cast_tables, round_each};
  if (rotary_dim > 0) options.rotary_dim = rotary_dim;
  RopeResult result;
  {
    const py::gil_scoped_release release;
    result = try_apply(unpacked(q), unpacked(k), unpacked(cos), unpacked(sin), target, options);
  }
  return pair_or_reason(result);
}

// The same with a norm, for rows that the caller gives away.
py::object try_norm_apply_py(py::handle q, py::handle k, py::handle q_weight, py::handle k_weight,
                             py::handle cos, py::handle sin, double eps, bool cast_tables,
                             bool round_each) {
  for (const py::handle x : {q, k, q_weight, k_weight, cos, sin}) {
    if (!THPVariable_Check(x.ptr()))
      return py::str(
          "q, k, the weights, cos and sin are not all "
          "tensors");
  }
  const RopeTarget over{true, std::nullopt, std::nullopt};
  const RopeOptions options{{}, std::nullopt, 0, false, false, cast_tables, round_each};
  const NormOptions norm{unpacked(q_weight), unpacked(k_weight), eps, 0};
  RopeResult result;
  {
    const py::gil_scoped_release release;
    result = try_apply(unpacked(q), unpacked(k), unpacked(cos), unpacked(sin), over, options, norm);
  }
  return pair_or_reason(result);
}

void bind_layer(py::module_& module) {
  module.def("try_apply", torch::wrap_pybind_function(&try_apply_py));
  module.def("try_norm_apply", torch::wrap_pybind_function(&try_norm_apply_py));
  module.def("npu_library_problem", &npu_library_problem);
  module.def("npu_chip_problem", &npu_chip_problem, py::arg("round_each") = false);
}

}  // namespace
}  // namespace npu_rope

PYBIND11_MODULE(_C, module) {
  // As the dispatcher raises them. Not every torch translates them for a module of pybind11.
  py::register_local_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const c10::ValueError& refused) {
      PyErr_SetString(PyExc_ValueError, refused.what_without_backtrace());
    } catch (const c10::TypeError& refused) {
      PyErr_SetString(PyExc_TypeError, refused.what_without_backtrace());
    }
  });
  module.attr("built_for_torch") = TORCH_VERSION;
  npu_rope::bind_plan(module);
  npu_rope::bind_simulator(module);
  npu_rope::bind_layer(module);
}
