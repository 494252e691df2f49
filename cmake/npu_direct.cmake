# CANN >= 8.5: each entry compiled by CANN's compiler, and all of them linked by it. The link has to
# be the compiler's too: it puts the device code of all objects together, and adds what registers it.
set(objects)
foreach(source ${rope_entries})
  get_filename_component(name ${source} NAME_WE)
  set(object ${CMAKE_BINARY_DIR}/kernels/${name}.o)
  add_custom_command(
    OUTPUT ${object}
    # ASCENDC_DUMP=0: no buffer for printf and assert, which would be allocated at every launch
    COMMAND ${bisheng_command} ${asc_options} -DNPU_ROPE_ASC -DASCENDC_DUMP=0
            -I${CMAKE_CURRENT_SOURCE_DIR}/csrc -c ${source} -o ${object}
    # Not the compiler's own list: it names headers that do not exist.
    DEPENDS ${source} ${kernel_headers}
    COMMENT "Building ASC object ${name}.o" VERBATIM)
  list(APPEND objects ${object})
endforeach()
add_custom_command(
  OUTPUT ${kernels}
  COMMAND ${bisheng_command} --npu-arch=${architecture} -shared -fPIC -Wl,--no-undefined
          -Wl,--allow-shlib-undefined -Wl,-soname,libnpu_rope_kernels.so ${objects} -o ${kernels}
          -L${cann}/lib64 -lascendcl
  DEPENDS ${objects}
  COMMENT "Linking ASC shared library libnpu_rope_kernels.so" VERBATIM)
