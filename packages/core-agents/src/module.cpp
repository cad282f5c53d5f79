#include <core/python.hpp>

#include "ops.hpp"

NB_MODULE(_core_agents, m) { core::py::bind<core_agents::ops>(m); }
