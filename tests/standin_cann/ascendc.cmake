# ascendc_library of older toolkits.
get_filename_component(STANDIN_FOLDER ${CMAKE_CURRENT_LIST_DIR} ABSOLUTE)
if(NOT SOC_VERSION MATCHES "^Ascend(910B[1-4]|910B2C|910B4-1|910_93[0-9][0-9])$")
  message(FATAL_ERROR "SOC_VERSION ${SOC_VERSION} does not support")
endif()
if(NOT EXISTS "${ASCEND_CANN_PACKAGE_PATH}")
  message(FATAL_ERROR "${ASCEND_CANN_PACKAGE_PATH} does not exist")
endif()
set(ASCEND_PYTHON_EXECUTABLE "python3" CACHE STRING "python executable program")
set(CMAKE_CXX_FLAGS_RELEASE "")
set(CMAKE_SKIP_RPATH TRUE)
include(ExternalProject)

function(ascendc_library name kind)
  set(folder ${CMAKE_BINARY_DIR}/auto_gen/${name})
  set_source_files_properties(${folder}/unused.cpp ${folder}/host_stub.cpp PROPERTIES GENERATED TRUE)
  set_source_files_properties(${folder}/device.o PROPERTIES GENERATED TRUE EXTERNAL_OBJECT TRUE)
  add_library(${name}_interface STATIC EXCLUDE_FROM_ALL ${folder}/unused.cpp)
  string(REPLACE ";" "::" sources "${ARGN}")
  ExternalProject_Add(${name}_kernels
    SOURCE_DIR ${STANDIN_FOLDER}/kernels_project
    CONFIGURE_COMMAND ${CMAKE_COMMAND} -G ${CMAKE_GENERATOR}
      -DCOMPILER=${ASCEND_CANN_PACKAGE_PATH}/compiler/ccec_compiler/bin/bisheng
      -DPYTHON=${ASCEND_PYTHON_EXECUTABLE} -DSOURCES=${sources} -DFOLDER=${folder}
      -DINCLUDES=$<TARGET_PROPERTY:${name}_interface,INCLUDES>
      -DDEFINITIONS=$<TARGET_PROPERTY:${name}_interface,DEFINITIONS>
      -DLAUNCH_ONLY=${ASCEND_KERNEL_LAUNCH_ONLY} <SOURCE_DIR>
    INSTALL_COMMAND "" LIST_SEPARATOR :: BUILD_ALWAYS TRUE
    BUILD_BYPRODUCTS ${folder}/device.o ${folder}/host_stub.cpp)
  add_library(${name}_host_stub OBJECT ${folder}/host_stub.cpp)
  target_include_directories(${name}_host_stub PRIVATE ${ASCEND_CANN_PACKAGE_PATH}/standin)
  target_compile_options(${name}_host_stub PRIVATE -fPIC)
  add_dependencies(${name}_host_stub ${name}_kernels)
  add_library(${name} ${kind} $<TARGET_OBJECTS:${name}_host_stub> ${folder}/device.o)
  target_include_directories(${name} INTERFACE ${ASCEND_CANN_PACKAGE_PATH}/include)
  target_link_directories(${name} PUBLIC ${ASCEND_CANN_PACKAGE_PATH}/lib64)
  target_link_libraries(${name} INTERFACE ${ASCEND_CANN_PACKAGE_PATH}/standin/libruntime.a ascendcl
                        runtime register pthread)
  # Links once more, as link.txt says: a file that only Makefiles have.
  add_custom_command(TARGET ${name} POST_BUILD
    COMMAND cat ${CMAKE_CURRENT_BINARY_DIR}/CMakeFiles/${name}.dir/link.txt)
endfunction()

function(ascendc_include_directories name scope)
  set_target_properties(${name}_interface PROPERTIES INCLUDES "${ARGN}")
endfunction()

function(ascendc_compile_definitions name scope)
  set_target_properties(${name}_interface PROPERTIES DEFINITIONS "${ARGN}")
endfunction()
