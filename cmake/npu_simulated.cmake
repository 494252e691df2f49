# Target npu_simulated: a CANN runtime over host memory, under the names that torch_npu links, and
# the host library over it. Built by `python -m npu_rope simulate` alone, and installed nowhere.
set(simulated_folder ${CMAKE_BINARY_DIR}/npu_simulated)
set(acl_headers ${NPU_ROPE_SIMULATED_TORCH_NPU_DIR}/include/third_party/acl/inc)

add_library(ascendcl SHARED
  csrc/simulator/acl/absent.cpp
  csrc/simulator/acl/calls.cpp
  csrc/simulator/acl/device.cpp
  csrc/simulator/acl/event.cpp
  csrc/simulator/acl/graph.cpp
  csrc/simulator/acl/memory.cpp
  csrc/simulator/acl/operators.cpp
  csrc/simulator/acl/profiling.cpp
  csrc/simulator/acl/stream.cpp)
target_include_directories(ascendcl SYSTEM PRIVATE ${acl_headers})
target_link_libraries(ascendcl PRIVATE Threads::Threads)
target_link_options(ascendcl PRIVATE -Wl,--no-undefined)

# CANN has its runtime in several libraries; here libascendcl.so is all of it, and the others only
# lead to it.
file(WRITE ${simulated_folder}/companion.cpp "")
set(companions acl_op_compiler acl_tdt_channel ge_runner graph hccl)
foreach(name ${companions})
  add_library(${name} SHARED ${simulated_folder}/companion.cpp)
  target_link_libraries(${name} PRIVATE -Wl,--no-as-needed ascendcl)
endforeach()

# The kernel and its simulator are compiled already, for the bindings of _C.
add_library(launch_simulated OBJECT
  csrc/simulator/acl/launch.cpp
  csrc/simulator/acl/rope_launch.cpp)
target_include_directories(launch_simulated PRIVATE csrc)
target_include_directories(launch_simulated SYSTEM PRIVATE ${acl_headers})
add_npu_library(npu_rope_npu_simulated ${NPU_ROPE_SIMULATED_TORCH_NPU_DIR}
  $<TARGET_OBJECTS:rope_kernel_simulated> $<TARGET_OBJECTS:launch_simulated>
  ascendcl Threads::Threads)

set(libraries ascendcl ${companions} npu_rope_npu_simulated)
set_target_properties(launch_simulated ${libraries} PROPERTIES EXCLUDE_FROM_ALL ON)
set_target_properties(${libraries} PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${simulated_folder})
set_target_properties(ascendcl PROPERTIES CXX_VISIBILITY_PRESET default)
add_custom_target(npu_simulated DEPENDS ${libraries})
