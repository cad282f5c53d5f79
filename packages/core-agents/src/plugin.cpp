#include "ops.hpp"

CORE_PLUGIN(core_agents, CORE_VERSION, core_agents::ops)
