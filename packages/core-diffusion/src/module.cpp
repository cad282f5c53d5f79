#include <core/python.hpp>

#include "ops.hpp"

NB_MODULE(_core_diffusion, m) { core::py::bind<core_diffusion::ops>(m); }
