#include "ops.hpp"

CORE_PLUGIN(core_llm_efficiency, CORE_VERSION, core_llm_efficiency::ops)
