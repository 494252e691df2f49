// Operators of CANN's own library that torch_npu runs by name. Those behind copies of strided views
// are computed; every other one fails and names itself.
#include <acl/acl_op_compiler.h>

#include <cstring>
#include <map>
#include <numeric>

#include "calls.h"
#include "memory.h"
#include "stream.h"

struct aclTensorDesc {
  aclDataType dtype;
  std::vector<int64_t> dims;
  aclFormat format;
  std::string name;
  bool on_host = false;

  int64_t numel() const {
    return std::accumulate(dims.begin(), dims.end(), int64_t{1}, std::multiplies<>());
  }
};

struct aclDataBuffer {
  void* data;
  size_t bytes;
};

struct aclopAttr {
  std::map<std::string, int64_t> ints;  // the others matter to no operator below
};

namespace npu_rope::acl {
namespace {

using Sizes = std::vector<int64_t>;

size_t size_of(aclDataType dtype) {
  switch (dtype) {
    case ACL_BOOL:
    case ACL_INT8:
    case ACL_UINT8:
      return 1;
    case ACL_FLOAT16:
    case ACL_BF16:
    case ACL_INT16:
    case ACL_UINT16:
      return 2;
    case ACL_FLOAT:
    case ACL_INT32:
    case ACL_UINT32:
      return 4;
    case ACL_DOUBLE:
    case ACL_INT64:
    case ACL_UINT64:
      return 8;
    default:
      throw Failure(ACL_ERROR_UNSUPPORTED_DATA_TYPE,
                    "dtype " + std::to_string(dtype) + " is not simulated");
  }
}

/// An operand as the call gave it. Host operands are read at once, as CANN reads constants.
struct Operand {
  size_t item;
  Sizes dims;
  uint8_t* data;
  size_t bytes;
  Sizes values;  // of a host operand of integers
};

Operand operand(const aclTensorDesc* desc, const aclDataBuffer* buffer) {
  Operand made{
      size_of(desc->dtype), desc->dims, static_cast<uint8_t*>(buffer->data), buffer->bytes, {}};
  if (desc->on_host) {
    for (int64_t i = 0; i < desc->numel(); ++i) {
      int64_t value = 0;
      std::memcpy(&value, made.data + i * made.item, made.item);
      made.values.push_back(made.item == 4 ? static_cast<int32_t>(value) : value);
    }
  }
  return made;
}

Sizes contiguous_strides(const Sizes& dims) {
  Sizes strides(dims.size(), 1);
  for (size_t i = dims.size(); i-- > 1;) strides[i - 1] = strides[i] * dims[i];
  return strides;
}

/// A strided box of elements within a buffer, strides in elements.
struct View {
  uint8_t* data;
  size_t bytes;
  Sizes strides;
  int64_t offset;
};

/// Copies a box of `dims` elements, one by one and within the bounds of both buffers.
void copy_elements(const Sizes& dims, size_t item, const View& from, const View& to) {
  const auto source = live_block(from.data, from.bytes, -1, "input");
  const auto target = live_block(to.data, to.bytes, -1, "output");
  const int64_t count = std::accumulate(dims.begin(), dims.end(), int64_t{1}, std::multiplies<>());
  Sizes index(dims.size(), 0);
  for (int64_t n = 0; n < count; ++n) {
    int64_t at_from = from.offset, at_to = to.offset;
    for (size_t i = 0; i < dims.size(); ++i) {
      at_from += index[i] * from.strides[i];
      at_to += index[i] * to.strides[i];
    }
    if (at_from < 0 || (at_from + 1) * item > from.bytes || at_to < 0 ||
        (at_to + 1) * item > to.bytes) {
      throw Failure(ACL_ERROR_RT_PARAM_INVALID, "an element lies outside of its tensor");
    }
    std::memcpy(to.data + at_to * item, from.data + at_from * item, item);
    for (size_t i = dims.size(); i-- > 0;) {
      if (++index[i] < dims[i]) break;
      index[i] = 0;
    }
  }
}

using Work = std::function<void()>;
using Operands = std::vector<Operand>;

View whole(const Operand& operand) {
  return {operand.data, operand.bytes, contiguous_strides(operand.dims), 0};
}

Work copy_work(const Sizes& dims, size_t item, View from, View to) {
  return [=] { copy_elements(dims, item, from, to); };
}

/// y = x, element by element in order.
Work identity(const Operands& in, const Operands& out, const aclopAttr*) {
  const Sizes flat = {
      std::accumulate(out[0].dims.begin(), out[0].dims.end(), int64_t{1}, std::multiplies<>())};
  return copy_work(flat, out[0].item, {in[0].data, in[0].bytes, {1}, 0},
                   {out[0].data, out[0].bytes, {1}, 0});
}

/// y[i…] = x[i0·stride0 + … + offset]; inputs x, size, stride, offset.
Work as_strided(const Operands& in, const Operands& out, const aclopAttr*) {
  return copy_work(in[1].values, out[0].item,
                   {in[0].data, in[0].bytes, in[2].values, in[3].values.at(0)}, whole(out[0]));
}

/// y = x with axes permuted; inputs x, perm.
Work transpose(const Operands& in, const Operands& out, const aclopAttr*) {
  const Sizes strides = contiguous_strides(in[0].dims);
  View from{in[0].data, in[0].bytes, {}, 0};
  for (const int64_t axis : in[1].values) from.strides.push_back(strides.at(axis));
  return copy_work(out[0].dims, out[0].item, from, whole(out[0]));
}

/// y = x[offsets, offsets + size); inputs x, offsets, size.
Work slice(const Operands& in, const Operands& out, const aclopAttr*) {
  View from = whole(in[0]);
  for (size_t i = 0; i < in[1].values.size(); ++i) {
    from.offset += in[1].values[i] * from.strides.at(i);
  }
  return copy_work(in[2].values, out[0].item, from, whole(out[0]));
}

/// y = x[begin : end : step]; inputs x, begin, end, step.
Work strided_slice(const Operands& in, const Operands& out, const aclopAttr* attr) {
  for (const auto& [name, mask] : attr->ints) {
    if (mask != 0) throw Failure(ACL_ERROR_OP_ATTR_NOT_MATCH, name + " is not simulated");
  }
  View from = whole(in[0]);
  for (size_t i = 0; i < in[1].values.size(); ++i) {
    from.offset += in[1].values[i] * from.strides.at(i);
    from.strides[i] *= in[3].values.at(i);
  }
  return copy_work(out[0].dims, out[0].item, from, whole(out[0]));
}

/// dst[view] = src[view]; inputs dst, dst size, stride, offset, src, src size, stride, offset.
Work view_copy(const Operands& in, const Operands& out, const aclopAttr*) {
  return copy_work(in[1].values, out[0].item,
                   {in[4].data, in[4].bytes, in[6].values, in[7].values.at(0)},
                   {out[0].data, out[0].bytes, in[2].values, in[3].values.at(0)});
}

/// y = x broadcast to a shape; inputs x, shape.
Work broadcast_to(const Operands& in, const Operands& out, const aclopAttr*) {
  const Sizes strides = contiguous_strides(in[0].dims);
  const size_t added = out[0].dims.size() - in[0].dims.size();
  View from{in[0].data, in[0].bytes, Sizes(added, 0), 0};
  for (size_t i = 0; i < in[0].dims.size(); ++i) {
    from.strides.push_back(in[0].dims[i] == 1 ? 0 : strides[i]);
  }
  return copy_work(out[0].dims, out[0].item, from, whole(out[0]));
}

using Operator = Work (*)(const Operands&, const Operands&, const aclopAttr*);

const std::map<std::string, Operator>& operators() {
  static const std::map<std::string, Operator> all = {
      {"AsStrided", as_strided}, {"BroadcastTo", broadcast_to},   {"Identity", identity},
      {"Slice", slice},          {"StridedSlice", strided_slice}, {"TensorMove", identity},
      {"Transpose", transpose},  {"ViewCopy", view_copy},
  };
  return all;
}

}  // namespace
}  // namespace npu_rope::acl

using namespace npu_rope::acl;

aclError aclopCompileAndExecute(const char* name, int input_count,
                                const aclTensorDesc* const input_descs[],
                                const aclDataBuffer* const inputs[], int output_count,
                                const aclTensorDesc* const output_descs[],
                                aclDataBuffer* const outputs[], const aclopAttr* attr,
                                aclopEngineType, aclopCompileType, const char*,
                                aclrtStream stream) {
  return call("aclopCompileAndExecute", name, [&] {
    const auto found = operators().find(name);
    if (found == operators().end()) {
      throw Failure(ACL_ERROR_OP_NOT_FOUND,
                    std::string("operator ") + name + " is not part of the simulated runtime");
    }
    Operands in, out;
    for (int i = 0; i < input_count; ++i) in.push_back(operand(input_descs[i], inputs[i]));
    for (int i = 0; i < output_count; ++i) out.push_back(operand(output_descs[i], outputs[i]));
    try {
      stream_of(stream).enqueue(name, found->second(in, out, attr));
    } catch (const std::out_of_range&) {
      throw Failure(ACL_ERROR_OP_INPUT_NOT_MATCH,
                    std::string("operator ") + name + ": inputs do not fit one another");
    }
  });
}

aclTensorDesc* aclCreateTensorDesc(aclDataType dtype, int rank, const int64_t* dims,
                                   aclFormat format) {
  return new aclTensorDesc{dtype, {dims, dims + rank}, format, ""};
}
void aclDestroyTensorDesc(const aclTensorDesc* desc) { delete desc; }
void aclSetTensorDescName(aclTensorDesc* desc, const char* name) { desc->name = name; }
aclError aclSetTensorFormat(aclTensorDesc*, aclFormat) { return ACL_SUCCESS; }
aclError aclSetTensorShape(aclTensorDesc*, int, const int64_t*) { return ACL_SUCCESS; }
aclError aclSetTensorPlaceMent(aclTensorDesc* desc, aclMemType type) {
  desc->on_host = type != ACL_MEMTYPE_DEVICE;
  return ACL_SUCCESS;
}
aclDataType aclGetTensorDescType(const aclTensorDesc* desc) { return desc->dtype; }
aclFormat aclGetTensorDescFormat(const aclTensorDesc* desc) { return desc->format; }
size_t aclGetTensorDescNumDims(const aclTensorDesc* desc) { return desc->dims.size(); }
aclError aclGetTensorDescDimV2(const aclTensorDesc* desc, size_t axis, int64_t* size) {
  return call("aclGetTensorDescDimV2", [&] {
    if (axis >= desc->dims.size()) throw Failure(ACL_ERROR_INVALID_PARAM, "no such axis");
    *size = desc->dims[axis];
  });
}

aclDataBuffer* aclCreateDataBuffer(void* data, size_t bytes) {
  return new aclDataBuffer{data, bytes};
}
aclError aclDestroyDataBuffer(const aclDataBuffer* buffer) {
  delete buffer;
  return ACL_SUCCESS;
}

aclopAttr* aclopCreateAttr() { return new aclopAttr; }
void aclopDestroyAttr(const aclopAttr* attr) { delete attr; }
aclError aclopSetAttrInt(aclopAttr* attr, const char* name, int64_t value) {
  attr->ints[name] = value;
  return ACL_SUCCESS;
}
aclError aclopSetAttrListInt(aclopAttr*, const char*, int, const int64_t*) { return ACL_SUCCESS; }
aclError aclopSetAttrBool(aclopAttr*, const char*, uint8_t) { return ACL_SUCCESS; }
aclError aclopSetAttrDataType(aclopAttr*, const char*, aclDataType) { return ACL_SUCCESS; }
aclError aclopSetAttrFloat(aclopAttr*, const char*, float) { return ACL_SUCCESS; }
aclError aclopSetAttrString(aclopAttr*, const char*, const char*) { return ACL_SUCCESS; }
aclError aclopSetAttrListBool(aclopAttr*, const char*, int, const uint8_t*) { return ACL_SUCCESS; }
aclError aclopSetAttrListFloat(aclopAttr*, const char*, int, const float*) { return ACL_SUCCESS; }
aclError aclopSetAttrListListInt(aclopAttr*, const char*, int, const int*, const int64_t* const[]) {
  return ACL_SUCCESS;
}
