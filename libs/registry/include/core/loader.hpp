// core/loader.hpp - the host's side: load plugins, find an operator by name, call it. C++17.
//
//   core::host::Registry registry;
//   registry.load("/path/to/libcore_splatting.so");  // or registry.load_path() for CORE_PLUGIN_PATH
//   registry.call("core_x.op", {core::host::Tensor(x.data(), {n, 3}), core::host::Tensor(out.data(), {n}), 0.5});
//
// Loading and attaching are for one thread at a time; looking up and calling are for any number.
#pragma once
#include <core/abi.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <filesystem>
#include <initializer_list>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace core::host {

/// What loading and calling throw. `kind` names the Python exception of the same meaning.
struct Error : std::runtime_error {
  Error(std::string kind, const std::string& message) : std::runtime_error(message), kind(std::move(kind)) {}
  std::string kind;
};

/// A view of memory as an argument. Output arguments take memory that is not const.
class Tensor {
 public:
  static constexpr int max_rank = 8;

  /// `strides` in elements; none means C-contiguous. Element types: (u)int8 to (u)int64, float, double, bool.
  template <class T>
  Tensor(T* data, std::initializer_list<std::int64_t> shape, std::initializer_list<std::int64_t> strides = {},
         core_device device = CORE_CPU, int device_id = 0) {
    using U = std::remove_const_t<T>;
    static_assert(std::is_arithmetic_v<U>, "a tensor's elements are integers, floating point numbers or bool");
    if (shape.size() > max_rank || (strides.size() != 0 && strides.size() != shape.size()))
      throw Error("ValueError", "a tensor has at most 8 dimensions, and one stride for each or none");
    std::copy(shape.begin(), shape.end(), shape_.begin());
    std::copy(strides.begin(), strides.end(), strides_.begin());
    t_.data = const_cast<U*>(data);
    t_.device_type = device;
    t_.device_id = device_id;
    t_.ndim = static_cast<std::int32_t>(shape.size());
    t_.dtype_code = std::is_same_v<U, bool> ? 6 : std::is_floating_point_v<U> ? 2 : std::is_unsigned_v<U> ? 1 : 0;
    t_.dtype_bits = static_cast<std::uint8_t>(sizeof(U) * 8);
    t_.dtype_lanes = 1;
    has_strides_ = strides.size() != 0;
    point();
  }
  Tensor(const Tensor& o) : t_(o.t_), shape_(o.shape_), strides_(o.strides_), has_strides_(o.has_strides_) { point(); }
  Tensor& operator=(const Tensor&) = delete;
  const core_tensor& get() const { return t_; }

 private:
  void point() {
    t_.shape = shape_.data();
    t_.strides = has_strides_ ? strides_.data() : nullptr;
  }
  core_tensor t_{};
  std::array<std::int64_t, max_rank> shape_{}, strides_{};
  bool has_strides_ = false;
};

/// One argument of a call, made from a tensor, a number, a bool, a string, or nullptr for an optional tensor left out.
/// Does not own what it names.
struct Value : core_value {
  Value(std::nullptr_t) : core_value{CORE_NONE, 0, {}} {}
  Value(const core_tensor& t) : core_value{CORE_TENSOR, 0, {}} { u.t = &t; }
  Value(const Tensor& t) : Value(t.get()) {}
  Value(const char* s) : core_value{CORE_STR, 0, {}} { u.s = s; }
  template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>>
  Value(T x) : core_value{std::is_same_v<T, bool>       ? CORE_BOOL
                          : std::is_floating_point_v<T> ? CORE_FLOAT
                                                        : CORE_INT,
                          0,
                          {}} {
    if constexpr (std::is_floating_point_v<T>)
      u.f = x;
    else
      u.i = static_cast<std::int64_t>(x);
  }
};

class Registry {
 public:
  /// Loads the plugin library at `path` and adds its operators. A library that cannot be loaded, is no plugin, speaks
  /// another ABI or names operators outside its own prefix is refused with kind "ImportError" and a sentence that
  /// says what to do; the registry is then as it was. An operator name that another library has already is from then
  /// on refused by at(); the other names keep working. A library is never unloaded.
  const core_plugin& load(const std::string& path) {
    void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) throw Error("ImportError", "cannot load plugin " + path + ": " + ::dlerror());
    const auto query = reinterpret_cast<core_plugin_query_fn>(::dlsym(library, "core_plugin_query"));
    if (!query) throw Error("ImportError", path + " exports no core_plugin_query; it is not a Core plugin");
    const core_plugin* p = query();
    for (const auto& [known, its_path] : plugins_)
      if (known == p) return *p;
    check(path, *p);
    for (std::uint32_t i = 0; i < p->num_ops; ++i) {
      const core_op& op = op_at(*p, i);
      if (const auto [it, added] = ops_.try_emplace(op.name, Entry{&op, path, {}}); !added) it->second.rival = path;
    }
    plugins_.emplace_back(p, path);
    if (host_ && p->attach) p->attach(host_);
    return *p;
  }

  /// Loads every plugin of `list`, by default CORE_PLUGIN_PATH: libraries, or folders of lib*.so, with ':' between
  /// them. Returns what went wrong, one sentence for each library that was refused.
  std::vector<std::string> load_path(const char* list = std::getenv("CORE_PLUGIN_PATH")) {
    std::vector<std::string> problems;
    std::string_view rest = list ? list : "";
    while (!rest.empty()) {
      const std::size_t colon = std::min(rest.find(':'), rest.size());
      const std::filesystem::path entry(rest.substr(0, colon));
      rest.remove_prefix(std::min(colon + 1, rest.size()));
      std::vector<std::string> files;
      std::error_code no_folder;
      for (const auto& f : std::filesystem::directory_iterator(entry, no_folder))
        if (f.path().extension() == ".so" && f.path().filename().string().rfind("lib", 0) == 0) files.push_back(f.path());
      std::sort(files.begin(), files.end());
      if (no_folder && !entry.empty()) files.push_back(entry);
      for (const auto& file : files) try {
          load(file);
        } catch (const Error& e) {
          problems.emplace_back(e.what());
        }
    }
    return problems;
  }

  /// The operator of that name; throws kind "KeyError" when no loaded plugin, or more than one, has it.
  const core_op& at(std::string_view name) const {
    const auto it = ops_.find(name);
    if (it == ops_.end()) {
      std::string known;
      for (const auto& [other, entry] : ops_) known += (known.empty() ? "" : ", ") + other;
      throw Error("KeyError", "no operator '" + std::string(name) + "'; loaded are: " + (known.empty() ? "none" : known));
    }
    if (!it->second.rival.empty())
      throw Error("KeyError",
                  "operator '" + it->first + "' is in both " + it->second.path + " and " + it->second.rival + "; remove one of them");
    return *it->second.op;
  }

  /// Calls an operator; `stream` is a cudaStream_t. Throws Error of the operator's kind if it refuses its arguments.
  static void call(const core_op& op, std::initializer_list<Value> values, void* stream = nullptr) {
    static_assert(sizeof(Value) == sizeof(core_value));
    core_error e{};
    if (op.call(values.begin(), static_cast<std::int32_t>(values.size()), stream, &e)) throw Error(e.kind, e.message);
  }
  void call(std::string_view name, std::initializer_list<Value> values, void* stream = nullptr) const { call(at(name), values, stream); }

  /// Lends the host's services to all plugins, loaded and to come; nullptr takes them back. `host` must outlive its loan.
  void attach(const core_host* host) {
    host_ = host;
    for (const auto& [p, path] : plugins_)
      if (p->attach) p->attach(host);
  }

  /// The names of all operators, sorted; those in two plugins included.
  std::vector<std::string> names() const {
    std::vector<std::string> r;
    for (const auto& [name, entry] : ops_) r.push_back(name);
    return r;
  }

 private:
  struct Entry {
    const core_op* op;
    std::string path, rival;
  };

  static const core_op& op_at(const core_plugin& p, std::uint32_t i) {
    return *reinterpret_cast<const core_op*>(reinterpret_cast<const char*>(p.ops) + std::size_t{i} * p.op_size);
  }
  static void check(const std::string& path, const core_plugin& p) {
    if (p.abi_major != CORE_ABI_MAJOR || p.abi_minor > CORE_ABI_MINOR)
      throw Error("ImportError", "plugin " + path + " was built for Core ABI " + std::to_string(p.abi_major) + "." +
                                     std::to_string(p.abi_minor) + ", this host speaks " + std::to_string(CORE_ABI_MAJOR) + "." +
                                     std::to_string(CORE_ABI_MINOR) + "; install matching releases of the plugin and core-registry");
    if (p.struct_size < sizeof(core_plugin) || p.op_size < sizeof(core_op) || !p.name || (p.num_ops && !p.ops))
      throw Error("ImportError", "plugin " + path + " has a damaged table; build it again");
    const std::string prefix = std::string(p.name) + ".";
    for (std::uint32_t i = 0; i < p.num_ops; ++i)
      if (std::string_view(op_at(p, i).name).substr(0, prefix.size()) != prefix)
        throw Error("ImportError",
                    "plugin " + path + " names an operator '" + op_at(p, i).name + "'; it may only use its own prefix '" + prefix + "'");
  }

  std::map<std::string, Entry, std::less<>> ops_;
  std::vector<std::pair<const core_plugin*, std::string>> plugins_;
  const core_host* host_ = nullptr;
};
}  // namespace core::host
