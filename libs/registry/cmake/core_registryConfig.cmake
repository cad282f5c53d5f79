# find_package(core_registry): the target core::registry (headers) and core_add_plugin().
# Works from the checkout, from an sdist's copy and from an installed wheel.
get_filename_component(_core_registry_root "${CMAKE_CURRENT_LIST_DIR}/.." ABSOLUTE)
if(NOT TARGET core::registry)
  add_library(core::registry INTERFACE IMPORTED GLOBAL)
  target_include_directories(core::registry INTERFACE "${_core_registry_root}/include")
  target_compile_features(core::registry INTERFACE cxx_std_17)
  find_package(Threads REQUIRED)
  target_link_libraries(core::registry INTERFACE Threads::Threads ${CMAKE_DL_LIBS})
endif()
include("${CMAKE_CURRENT_LIST_DIR}/CoreAddPlugin.cmake")
