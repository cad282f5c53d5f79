# find_package(core_embed): the target Core::embed, core/embed.hpp with pybind11 and Python's library.
# Python and pybind11 are those of the interpreter named by Python_EXECUTABLE or found first.
include(CMakeFindDependencyMacro)
set(PYBIND11_FINDPYTHON ON)  # the legacy finder takes the first pythonX.Y on PATH
find_dependency(Python 3.11 COMPONENTS Interpreter Development.Embed Development.Module)
if(NOT pybind11_DIR)
  execute_process(COMMAND "${Python_EXECUTABLE}" -c "import pybind11; print(pybind11.get_cmake_dir(), end='')" OUTPUT_VARIABLE pybind11_DIR)
endif()
find_dependency(pybind11 CONFIG)
if(NOT TARGET Core::embed)
  get_filename_component(_core_embed_root "${CMAKE_CURRENT_LIST_DIR}/.." ABSOLUTE)
  add_library(Core::embed INTERFACE IMPORTED GLOBAL)
  target_include_directories(Core::embed INTERFACE "${_core_embed_root}/include")
  target_compile_features(Core::embed INTERFACE cxx_std_17)
  target_link_libraries(Core::embed INTERFACE pybind11::embed)
endif()
