# cmake -S . -B build/asan -C cmake/presets/asan.cmake
set(CMAKE_BUILD_TYPE RelWithDebInfo CACHE STRING "")
set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O1 -g1 -DNDEBUG" CACHE STRING "") # half the time of -O2 -g, and reports still name lines
set(CORE_SANITIZE address,undefined CACHE STRING "")
set(CORE_CUDA OFF CACHE STRING "")
