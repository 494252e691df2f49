# add_npu_library(target torch_npu_dir kernels...): the host library, from the same sources on a chip
# and in simulation. `kernels` are what has the launch functions of rope_launch.h.
function(add_npu_library target torch_npu_dir)
  add_library(${target} SHARED
    csrc/npu/chip.cpp
    csrc/npu/launch.cpp
    csrc/rope/rope_npu.cpp
    csrc/rope/rope_plan.cpp
    csrc/rope/rope_plan_buffers.cpp
    csrc/rope/rope_plan_rows.cpp)
  set_target_properties(${target} PROPERTIES OUTPUT_NAME npu_rope_npu)
  # torch_npu's own acl headers, not SYSTEM: CANN's, by CPATH, would come before them.
  target_include_directories(${target} PRIVATE csrc ${torch_npu_dir}/include/third_party/acl/inc)
  target_include_directories(${target} SYSTEM PRIVATE
    ${NPU_ROPE_TORCH_DIR}/include
    ${NPU_ROPE_TORCH_DIR}/include/torch/csrc/api/include
    ${torch_npu_dir}/include)
  target_link_libraries(${target} PRIVATE
    ${ARGN} ${torch_npu_dir}/lib/libtorch_npu.so ${torch_libs})
  # Every symbol of the library is found now, or the build fails. What the libraries below it lack is
  # their own affair.
  target_link_options(${target} PRIVATE -Wl,--no-undefined -Wl,--allow-shlib-undefined)
endfunction()
