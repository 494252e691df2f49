# The NPU side: the host library over torch_npu (libnpu_rope_npu.so), with the kernel compiled by CANN.
#
#   NPU_ROPE_NPU   AUTO   where CANN's set_env.sh is sourced and torch_npu is installed (default)
#                  ON     the same, but what is missing is an error
#                  OFF    never
#   NPU_ROPE_SOC   the chip, as Ascend910B1; without it, this machine's is asked
#   NPU_ROPE_TORCH_NPU_DIR             the torch_npu package, where it is not beside torch
#   NPU_ROPE_SIMULATED_TORCH_NPU_DIR   set by `python -m npu_rope simulate` alone
set(NPU_ROPE_NPU AUTO CACHE STRING "AUTO, ON or OFF")
set(NPU_ROPE_SOC "" CACHE STRING "chip to compile the kernel for")
set(NPU_ROPE_TORCH_NPU_DIR "" CACHE PATH "folder of the torch_npu package")

include(${CMAKE_CURRENT_LIST_DIR}/npu_library.cmake)
if(NPU_ROPE_SIMULATED_TORCH_NPU_DIR)
  include(${CMAKE_CURRENT_LIST_DIR}/npu_simulated.cmake)
endif()

if(NOT NPU_ROPE_NPU MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "npu_rope: NPU_ROPE_NPU is '${NPU_ROPE_NPU}', expected AUTO, ON or OFF")
endif()
if(NPU_ROPE_NPU STREQUAL "OFF")
  return()
endif()

# CANN and torch_npu
set(missing)
set(cann $ENV{ASCEND_HOME_PATH})
if(NOT IS_DIRECTORY "${cann}")
  set(missing "CANN: ASCEND_HOME_PATH is '${cann}', source CANN's set_env.sh")
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
foreach(package torch torch_npu)
  set(folder ${NPU_ROPE_TORCH_DIR})
  if(package STREQUAL "torch_npu")
    set(folder ${torch_npu_dir})
  endif()
  file(STRINGS ${folder}/version.py line REGEX "^__version__ *=")
  string(REGEX MATCH "[0-9]+\\.[0-9]+" ${package}_version "${line}")
endforeach()
if(NOT torch_version STREQUAL torch_npu_version)
  message(FATAL_ERROR "npu_rope: torch_npu is ${torch_npu_version}, expected ${torch_version} as "
                      "torch is; install the torch_npu that pairs with it")
endif()

# The chip: one that the kernel is written for, by its row in chip.cpp
if(NOT NPU_ROPE_SOC)
  execute_process(
    COMMAND ${Python_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/find_soc.py
    OUTPUT_VARIABLE soc OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "npu_rope: this machine's chip cannot be asked (see above); name the one to "
                        "build for: NPU_ROPE_CMAKE_ARGS=-DNPU_ROPE_SOC=Ascend910B1")
  endif()
else()
  set(soc ${NPU_ROPE_SOC})
endif()
file(STRINGS csrc/npu/chip.cpp rows REGEX "{\"Ascend[^\"]*\", 2201,")
set(known)
foreach(row ${rows})
  string(REGEX MATCH "Ascend[^\"]*" name "${row}")
  list(APPEND known ${name})
endforeach()
if(NOT soc IN_LIST known)
  list(JOIN known ", " known)
  message(FATAL_ERROR "npu_rope: the chip is '${soc}', expected one of ${known}")
endif()
set(architecture dav-2201)  # of every chip in that list

# The kernel, compiled by CANN
find_package(ASC QUIET CONFIG NO_DEFAULT_PATH PATHS
  ${cann} ${cann}/compiler/tikcpp/ascendc_kernel_cmake ${cann}/tikcpp/ascendc_kernel_cmake)
if(ASC_FOUND)  # CANN >= 9.1
  set(CMAKE_ASC_ARCHITECTURES ${architecture})
  enable_language(ASC)
  ascendc_library(rope_kernels STATIC ${rope_entries})
  target_compile_definitions(rope_kernels PRIVATE NPU_ROPE_ASC)
else()
  find_path(ascendc_folder ascendc.cmake NO_DEFAULT_PATH PATHS
    ${cann}/compiler/tikcpp/ascendc_kernel_cmake
    ${cann}/tools/tikcpp/ascendc_kernel_cmake
    ${cann}/ascendc_devkit/tikcpp/samples/cmake)
  if(NOT ascendc_folder)
    message(FATAL_ERROR "npu_rope: ${cann} has neither an ASC package nor ascendc.cmake: install "
                        "CANN's toolkit, not its runtime alone")
  endif()
  set(SOC_VERSION ${soc})
  set(RUN_MODE npu)
  set(ASCEND_CANN_PACKAGE_PATH ${cann})
  set(ASCEND_PYTHON_EXECUTABLE ${Python_EXECUTABLE})
  include(${ascendc_folder}/ascendc.cmake)
  ascendc_library(rope_kernels STATIC ${rope_entries})
endif()
ascendc_include_directories(rope_kernels PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/csrc)

message(STATUS "npu_rope: NPU library for ${soc}, CANN in ${cann}, torch_npu in ${torch_npu_dir}")
add_npu_library(npu_rope_npu ${torch_npu_dir} rope_kernels ${cann}/lib64/libascendcl.so)
