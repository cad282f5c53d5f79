#include <core/python.hpp>

#include "ops.hpp"

NB_MODULE(_plugin_name, m) { core::py::bind<plugin_name::ops>(m); }
