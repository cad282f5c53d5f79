#include <core/python.hpp>

#include "ops.hpp"

NB_MODULE(_core_3d_molecule, m) { core::py::bind<core_3d_molecule::ops>(m); }
