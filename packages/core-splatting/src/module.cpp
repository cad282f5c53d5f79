#include <core/python.hpp>

#include "ops.hpp"

NB_MODULE(_core_splatting, m) { core::py::bind<core_splatting::ops>(m); }
