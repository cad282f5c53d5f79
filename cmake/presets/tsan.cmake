# cmake -S . -B build/tsan -C cmake/presets/tsan.cmake
set(CMAKE_BUILD_TYPE RelWithDebInfo CACHE STRING "")
set(CORE_SANITIZE thread CACHE STRING "")
set(CORE_CUDA OFF CACHE STRING "")
