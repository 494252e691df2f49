# The CMake package of newer toolkits.
set(CMAKE_CXX_FLAGS_RELEASE "")
