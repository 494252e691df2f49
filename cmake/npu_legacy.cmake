# CANN < 8.5: ascendc_library, in a build of its own (npu_legacy/), by Unix Makefiles, which are what
# its scripts can read.
find_program(NPU_ROPE_MAKE make)
mark_as_advanced(NPU_ROPE_MAKE)
if(NOT NPU_ROPE_MAKE)
  message(FATAL_ERROR "npu_rope: this CANN's ascendc_library needs make: apt install make, or "
                      "yum install make")
endif()
set(legacy_project ${CMAKE_CURRENT_LIST_DIR}/npu_legacy)
set(legacy_build ${CMAKE_BINARY_DIR}/kernels/legacy)
list(JOIN rope_entries "::" sources)
include(ProcessorCount)
ProcessorCount(processors)
add_custom_command(
  OUTPUT ${kernels}
  COMMAND ${CMAKE_COMMAND} -E env --unset=MAKEFLAGS --unset=MAKELEVEL ASCEND_HOME_PATH=${cann}
          ${CMAKE_COMMAND} -S ${legacy_project} -B ${legacy_build} -G "Unix Makefiles"
          -DCMAKE_MAKE_PROGRAM=${NPU_ROPE_MAKE} -DCMAKE_BUILD_TYPE=Release
          -DCMAKE_CXX_COMPILER=${CMAKE_CXX_COMPILER} -DASCENDC_CMAKE=${legacy}
          -DASCEND_CANN_PACKAGE_PATH=${cann} -DASCEND_PYTHON_EXECUTABLE=${Python_EXECUTABLE}
          -DSOURCES=${sources} -DINCLUDE=${CMAKE_CURRENT_SOURCE_DIR}/csrc
  COMMAND ${CMAKE_COMMAND} -E env --unset=MAKEFLAGS --unset=MAKELEVEL ASCEND_HOME_PATH=${cann}
          ${CMAKE_COMMAND} --build ${legacy_build} --target npu_rope_kernels
          --parallel ${processors}
  COMMAND ${CMAKE_COMMAND} -E copy ${legacy_build}/libnpu_rope_kernels.so ${kernels}
  DEPENDS ${rope_entries} ${kernel_headers} ${legacy_project}/CMakeLists.txt
  COMMENT "Building libnpu_rope_kernels.so by CANN's ascendc_library" USES_TERMINAL VERBATIM)
