#include <core/python.hpp>

#include "elements.hpp"
#include "ops.hpp"

NB_MODULE(_core_3d_molecule, m) {
  core::py::bind<core_3d_molecule::ops>(m);
  nanobind::list symbols;
  for (const char* symbol : core_3d_molecule::symbols) symbols.append(symbol);
  m.attr("SYMBOLS") = nanobind::tuple(symbols);
}
