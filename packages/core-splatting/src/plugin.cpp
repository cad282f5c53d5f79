#include "ops.hpp"

CORE_PLUGIN(core_splatting, CORE_VERSION, core_splatting::ops)
