// core_describe LIBRARY [OUTPUT]: writes the description of a plugin (core_plugin.json), so that
// `core list` and `core show` need not load it.
#include <core/abi.h>
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>

namespace {
std::string quoted(const char* s) {
  if (!s) return "null";
  std::string r = "\"";
  for (; *s; ++s) {
    const auto c = static_cast<unsigned char>(*s);
    char hex[8];
    if (c == '"' || c == '\\') {
      r += '\\';
      r += *s;
    } else if (c < 0x20) {
      std::snprintf(hex, sizeof hex, "\\u%04x", c);
      r += hex;
    } else {
      r += *s;
    }
  }
  return r + "\"";
}
std::string dtype(const core_arg& a) {
  if (a.kind != CORE_TENSOR) return "null";
  static const char* const names[] = {"int", "uint", "float", "opaque", "bfloat", "complex", "bool"};
  const std::string name = names[a.dtype_code];
  return "\"" + (a.dtype_code == 6 ? name : name + std::to_string(a.dtype_bits)) + "\"";
}
std::string describe(const core_plugin& p) {
  static const char* const kinds[] = {"none", "tensor", "int", "float", "bool", "str"};
  std::ostringstream o;
  o << "{\"schema\": 1, \"name\": " << quoted(p.name) << ", \"version\": " << quoted(p.version) << ", \"abi\": [" << p.abi_major << ", "
    << p.abi_minor << "], \"ops\": [";
  for (std::uint32_t i = 0; i < p.num_ops; ++i) {
    const core_op& op = p.ops[i];
    o << (i ? ",\n" : "\n") << " {\"name\": " << quoted(op.name) << ", \"doc\": " << quoted(op.doc) << ", \"paper\": " << quoted(op.paper)
      << ",\n  \"args\": [";
    for (std::uint32_t j = 0; j < op.num_args; ++j) {
      const core_arg& a = op.overloads[0].args[j];
      o << (j ? ", " : "") << "{\"name\": " << quoted(a.name) << ", \"kind\": \"" << kinds[a.kind] << "\", \"shape\": " << quoted(a.shape)
        << ", \"optional\": " << (a.flags & CORE_ARG_OPTIONAL ? "true" : "false")
        << ", \"out\": " << (a.flags & CORE_ARG_OUT ? "true" : "false") << "}";
    }
    o << "],\n  \"overloads\": [";
    for (std::uint32_t k = 0; k < op.num_overloads; ++k) {
      o << (k ? ", " : "") << "{\"device\": \"" << (op.overloads[k].device_type == CORE_CUDA ? "cuda" : "cpu") << "\", \"dtypes\": [";
      for (std::uint32_t j = 0; j < op.num_args; ++j) o << (j ? ", " : "") << dtype(op.overloads[k].args[j]);
      o << "]}";
    }
    o << "]}";
  }
  o << "\n]}\n";
  return o.str();
}
}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argc > 3) {
    std::cerr << "usage: core_describe LIBRARY [OUTPUT]\n";
    return 2;
  }
  void* library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    std::cerr << "core_describe: " << dlerror() << "\n";
    return 1;
  }
  const auto query = reinterpret_cast<core_plugin_query_fn>(dlsym(library, "core_plugin_query"));
  if (!query) {
    std::cerr << "core_describe: " << argv[1] << " exports no core_plugin_query\n";
    return 1;
  }
  const std::string text = describe(*query());
  if (argc == 2) {
    std::cout << text;
    return 0;
  }
  std::ofstream out(argv[2]);
  out << text;
  out.close();
  return out ? 0 : 1;
}
