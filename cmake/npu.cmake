# The NPU side: libnpu_rope_npu.so, the host library over torch_npu, and libnpu_rope_kernels.so, the
# kernel's entries compiled by CANN. No NPU is needed to build them.
#
#   NPU_ROPE_NPU      AUTO     where CANN and torch_npu are installed (default)
#                     ON       the same, but what is missing is an error
#                     OFF      never
#   NPU_ROPE_KERNELS  AUTO     how CANN compiles the kernels: as its compiler allows (default)
#                     DIRECT   by its compiler (CANN >= 8.5), npu_direct.cmake
#                     LEGACY   by its ascendc_library, npu_legacy/CMakeLists.txt
#   NPU_ROPE_CANN_DIR                  the toolkit; without it ASCEND_HOME_PATH, ASCEND_TOOLKIT_HOME
#                                      and CANN's default folders are asked, in this order
#   NPU_ROPE_TORCH_NPU_DIR             the torch_npu package, where it is not beside torch
#   NPU_ROPE_SIMULATED_TORCH_NPU_DIR   set by `python -m npu_rope simulate` alone
set(NPU_ROPE_NPU AUTO CACHE STRING "AUTO, ON or OFF")
set(NPU_ROPE_KERNELS AUTO CACHE STRING "AUTO, DIRECT or LEGACY")
set(NPU_ROPE_CANN_DIR "" CACHE PATH "folder of CANN's toolkit")
set(NPU_ROPE_TORCH_NPU_DIR "" CACHE PATH "folder of the torch_npu package")

include(${CMAKE_CURRENT_LIST_DIR}/npu_library.cmake)
if(NPU_ROPE_SIMULATED_TORCH_NPU_DIR)
  include(${CMAKE_CURRENT_LIST_DIR}/npu_simulated.cmake)
endif()

if(NOT NPU_ROPE_NPU MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "npu_rope: NPU_ROPE_NPU is '${NPU_ROPE_NPU}', expected AUTO, ON or OFF")
endif()
if(NOT NPU_ROPE_KERNELS MATCHES "^(AUTO|DIRECT|LEGACY)$")
  message(FATAL_ERROR "npu_rope: NPU_ROPE_KERNELS is '${NPU_ROPE_KERNELS}', expected AUTO, DIRECT "
                      "or LEGACY")
endif()
if(NPU_ROPE_NPU STREQUAL "OFF")
  return()
endif()

# CANN: the first that is named, or that is where its installers put it
if(NOT DEFINED NPU_ROPE_CANN_DEFAULTS)
  set(NPU_ROPE_CANN_DEFAULTS /usr/local/Ascend/cann /usr/local/Ascend/ascend-toolkit/latest
                             /usr/local/Ascend/latest)
endif()
set(cann ${NPU_ROPE_CANN_DIR})
set(named NPU_ROPE_CANN_DIR)
foreach(variable ASCEND_HOME_PATH ASCEND_TOOLKIT_HOME)
  if(NOT cann)
    set(cann $ENV{${variable}})
    set(named ${variable})
  endif()
endforeach()
set(missing)
if(cann AND NOT IS_DIRECTORY "${cann}")
  set(missing "CANN: ${named} is '${cann}', where no folder is")
endif()
if(NOT cann)
  foreach(folder ${NPU_ROPE_CANN_DEFAULTS})
    if(IS_DIRECTORY ${folder} AND NOT cann)
      set(cann ${folder})
    endif()
  endforeach()
  if(NOT cann)
    list(JOIN NPU_ROPE_CANN_DEFAULTS ", " folders)
    set(missing "CANN: neither ASCEND_HOME_PATH nor ASCEND_TOOLKIT_HOME is set, and there is none "
                "of ${folders}")
    list(JOIN missing "" missing)
  endif()
endif()

set(torch_npu_dir ${NPU_ROPE_TORCH_NPU_DIR})
if(NOT torch_npu_dir)
  get_filename_component(torch_npu_dir ${NPU_ROPE_TORCH_DIR}/../torch_npu ABSOLUTE)
endif()
if(NOT EXISTS ${torch_npu_dir}/lib/libtorch_npu.so)
  list(APPEND missing "torch_npu: ${torch_npu_dir} has no lib/libtorch_npu.so")
endif()
if(missing)
  list(JOIN missing " and " missing)
  if(NPU_ROPE_NPU STREQUAL "ON")
    message(FATAL_ERROR "npu_rope: the NPU library needs ${missing}")
  endif()
  message(STATUS "npu_rope: no NPU library, which needs ${missing}")
  return()
endif()

# torch_npu is made for one version of torch
file(STRINGS ${torch_npu_dir}/version.py line REGEX "^__version__ *=")
string(REGEX MATCH "[0-9]+\\.[0-9]+" torch_npu_version "${line}")
if(NOT torch_npu_version STREQUAL torch_version)
  message(FATAL_ERROR "npu_rope: torch_npu is ${torch_npu_version}, expected ${torch_version} as "
                      "torch is; install the torch_npu that pairs with it")
endif()

set(NPU_ROPE_CANN_USED ${cann} CACHE INTERNAL "for tests/cann_build.py")

# CANN's compiler: its place has changed over the versions
set(places ${CMAKE_SYSTEM_PROCESSOR}-linux/ccec_compiler/bin compiler/ccec_compiler/bin
           tools/ccec_compiler/bin bin)
set(bisheng)
foreach(place ${places})
  if(EXISTS ${cann}/${place}/bisheng AND NOT bisheng)
    set(bisheng ${cann}/${place}/bisheng)
  endif()
endforeach()
set(legacy)
foreach(place compiler/tikcpp tools/tikcpp tikcpp ${CMAKE_SYSTEM_PROCESSOR}-linux/tikcpp)
  if(EXISTS ${cann}/${place}/ascendc_kernel_cmake/ascendc.cmake AND NOT legacy)
    set(legacy ${cann}/${place}/ascendc_kernel_cmake/ascendc.cmake)
  endif()
endforeach()

# Which way: whether the compiler takes a file as asc is asked of it, not of its version.
set(architecture dav-2201)  # A2 and A3, every chip that has a kernel
set(bisheng_command ${CMAKE_COMMAND} -E env ASCEND_HOME_PATH=${cann} ${bisheng})
set(asc_options -x asc --npu-arch=${architecture} -std=c++17 -O3 -fPIC)
set(refusal "${cann} has no bisheng in any of ${places}")
set(way LEGACY)
if(bisheng AND NOT NPU_ROPE_KERNELS STREQUAL "LEGACY")
  file(WRITE ${CMAKE_BINARY_DIR}/kernels/probe.cpp "int npu_rope_probe;\n")
  execute_process(
    COMMAND ${bisheng_command} ${asc_options} -c probe.cpp -o probe.o
    WORKING_DIRECTORY ${CMAKE_BINARY_DIR}/kernels
    OUTPUT_VARIABLE refusal ERROR_VARIABLE refusal RESULT_VARIABLE refused)
  if(NOT refused)
    set(way DIRECT)
  endif()
  string(STRIP "${bisheng} does not compile an empty file with ${asc_options}:\n${refusal}" refusal)
endif()
if(NPU_ROPE_KERNELS STREQUAL "DIRECT" AND NOT way STREQUAL "DIRECT")
  message(FATAL_ERROR "npu_rope: NPU_ROPE_KERNELS is DIRECT, but ${refusal}")
endif()
if(way STREQUAL "LEGACY" AND NOT legacy)
  message(FATAL_ERROR "npu_rope: ${cann} cannot compile kernels. It has no ascendc.cmake, and "
                      "${refusal}\nInstall CANN's toolkit, not its runtime alone.")
endif()

# libnpu_rope_kernels.so, by CANN's tools alone: nothing of theirs reaches any other target.
set(kernels ${CMAKE_BINARY_DIR}/libnpu_rope_kernels.so)
file(GLOB kernel_headers CONFIGURE_DEPENDS csrc/rope/*.h)
if(way STREQUAL "DIRECT")
  include(${CMAKE_CURRENT_LIST_DIR}/npu_direct.cmake)
  message(STATUS "npu_rope: NPU library, kernels compiled directly by ${bisheng}, torch_npu in "
                 "${torch_npu_dir}")
else()
  include(${CMAKE_CURRENT_LIST_DIR}/npu_legacy.cmake)
  message(STATUS "npu_rope: NPU library, kernels compiled by ascendc_library of ${legacy}, "
                 "torch_npu in ${torch_npu_dir}")
endif()
add_custom_target(npu_rope_kernels DEPENDS ${kernels})

add_npu_library(npu_rope_npu ${torch_npu_dir} ${kernels} ${cann}/lib64/libascendcl.so)
add_dependencies(npu_rope_npu npu_rope_kernels)
target_link_options(npu_rope_npu PRIVATE "LINKER:-rpath,$ORIGIN")  # the kernels lie beside it
