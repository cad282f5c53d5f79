// What tick refuses on every device.
#pragma once
#include <core/tensor.hpp>

#include <string>

namespace core_agents {

/// Throws ValueError unless `state` and `counters` have the program's numbers of rows.
inline void check_rows(const char* op, std::int64_t state, std::int64_t state_rows, std::int64_t counters, std::int64_t counter_rows) {
  const auto check = [&](const char* argument, const char* what, std::int64_t got, std::int64_t want) {
    if (got != want)
      throw core::Error("ValueError", std::string(op) + ": argument '" + argument + "' must have " + std::to_string(want) +
                                          " rows, one per node that " + what + " (see check_program), got " + std::to_string(got));
  };
  check("state", "can be RUNNING or is remembered", state, state_rows);
  check("counters", "counts", counters, counter_rows);
}

}  // namespace core_agents
