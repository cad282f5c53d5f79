#pragma once
#include <core/tensor.hpp>

#include <string>

namespace core_agents {

/// Refuses a value: "op: argument 'x' must be ..., got ...".
[[noreturn]] inline void bad(const char* op, const char* argument, const std::string& must, const std::string& got) {
  throw core::Error("ValueError", std::string(op) + ": argument '" + argument + "' must be " + must + ", got " + got);
}

}  // namespace core_agents
