#include "ops.hpp"

CORE_PLUGIN(core_3d_molecule, CORE_VERSION, core_3d_molecule::ops)
