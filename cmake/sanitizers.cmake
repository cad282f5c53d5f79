# CORE_SANITIZE=address,undefined or thread: for every target of this tree.
set(CORE_SANITIZE "" CACHE STRING "Sanitizers to build with, as -fsanitize= takes them")
if(CORE_SANITIZE)
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${CORE_SANITIZE}> $<$<COMPILE_LANGUAGE:CXX>:-fno-omit-frame-pointer>
    $<$<COMPILE_LANGUAGE:CXX>:-fno-sanitize-recover=all>)
  add_link_options(-fsanitize=${CORE_SANITIZE})
endif()
