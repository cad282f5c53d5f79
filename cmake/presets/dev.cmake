# cmake -S . -B build/dev -C cmake/presets/dev.cmake
set(CMAKE_BUILD_TYPE Release CACHE STRING "")
set(CORE_CUDA OFF CACHE STRING "")
