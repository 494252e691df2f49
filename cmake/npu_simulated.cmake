# Target npu_simulated: a CANN runtime over host memory, under the names that torch_npu links, and
# the host library over it. Built by `python -m npu_rope simulate` alone, and installed nowhere.
set(simulated_folder ${CMAKE_BINARY_DIR}/npu_simulated)
set(acl_headers ${NPU_ROPE_SIMULATED_TORCH_NPU_DIR}/include/third_party/acl/inc)

# Names of the libraries, not of their targets: CANN's own targets are called so too.
function(name_as_canns target)
  string(REPLACE "_simulated" "" name ${target})
  set_target_properties(${target} PROPERTIES OUTPUT_NAME ${name})
endfunction()

add_library(ascendcl_simulated SHARED
  csrc/simulator/acl/absent.cpp
  csrc/simulator/acl/calls.cpp
  csrc/simulator/acl/device.cpp
  csrc/simulator/acl/event.cpp
  csrc/simulator/acl/graph.cpp
  csrc/simulator/acl/memory.cpp
  csrc/simulator/acl/operators.cpp
  csrc/simulator/acl/profiling.cpp
  csrc/simulator/acl/stream.cpp)
name_as_canns(ascendcl_simulated)
target_include_directories(ascendcl_simulated SYSTEM PRIVATE ${acl_headers})
target_link_libraries(ascendcl_simulated PRIVATE Threads::Threads)
target_link_options(ascendcl_simulated PRIVATE -Wl,--no-undefined)

# CANN has its runtime in several libraries; here libascendcl.so is all of it, and the others only
# lead to it.
file(WRITE ${simulated_folder}/companion.cpp "")
set(companions acl_op_compiler_simulated acl_tdt_channel_simulated ge_runner_simulated
               graph_simulated hccl_simulated)
foreach(target ${companions})
  add_library(${target} SHARED ${simulated_folder}/companion.cpp)
  name_as_canns(${target})
  target_link_libraries(${target} PRIVATE -Wl,--no-as-needed ascendcl_simulated)
endforeach()

# The kernel and its simulator are compiled already, for the bindings of _C.
add_library(launch_simulated OBJECT
  csrc/simulator/acl/launch.cpp
  csrc/simulator/acl/rope_launch.cpp)
target_include_directories(launch_simulated PRIVATE csrc)
target_include_directories(launch_simulated SYSTEM PRIVATE ${acl_headers})
add_npu_library(npu_rope_npu_simulated ${NPU_ROPE_SIMULATED_TORCH_NPU_DIR}
  $<TARGET_OBJECTS:rope_kernel_simulated> $<TARGET_OBJECTS:launch_simulated>
  ascendcl_simulated Threads::Threads)

set(libraries ascendcl_simulated ${companions} npu_rope_npu_simulated)
set_target_properties(launch_simulated ${libraries} PROPERTIES EXCLUDE_FROM_ALL ON)
set_target_properties(${libraries} PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${simulated_folder})
set_target_properties(ascendcl_simulated PROPERTIES CXX_VISIBILITY_PRESET default)
add_custom_target(npu_simulated DEPENDS ${libraries})
