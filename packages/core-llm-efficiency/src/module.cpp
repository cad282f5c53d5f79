#include <core/python.hpp>

#include "ops.hpp"

NB_MODULE(_core_llm_efficiency, m) { core::py::bind<core_llm_efficiency::ops>(m); }
