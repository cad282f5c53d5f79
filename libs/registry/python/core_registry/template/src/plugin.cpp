#include "ops.hpp"

CORE_PLUGIN(plugin_name, CORE_VERSION, plugin_name::ops)
