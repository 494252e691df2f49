# The package of CPU debug mode: here the simulator's headers, and its sources.
file(GLOB simulator @CSRC@/simulator/ascendc/*.cpp)
add_library(tikicpulib_simulator STATIC ${simulator})
target_include_directories(tikicpulib_simulator PUBLIC
  @CANN@/standin/debug @CANN@/standin/kernel @CSRC@/simulator/ascendc PRIVATE @CSRC@)
target_compile_options(tikicpulib_simulator PRIVATE -std=c++17 -ffp-contract=off)
find_package(Threads REQUIRED)
target_link_libraries(tikicpulib_simulator PUBLIC Threads::Threads)
add_library(tikicpulib::Ascend910B1 ALIAS tikicpulib_simulator)
