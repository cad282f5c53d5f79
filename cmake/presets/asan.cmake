# cmake -S . -B build/asan -C cmake/presets/asan.cmake
set(CMAKE_BUILD_TYPE RelWithDebInfo CACHE STRING "")
set(CORE_SANITIZE address,undefined CACHE STRING "")
set(CORE_CUDA OFF CACHE STRING "")
