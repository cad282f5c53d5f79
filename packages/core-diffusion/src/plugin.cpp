#include "ops.hpp"

CORE_PLUGIN(core_diffusion, CORE_VERSION, core_diffusion::ops)
