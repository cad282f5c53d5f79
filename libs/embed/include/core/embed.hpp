// core/embed.hpp - a C++ program's way to the Python facades: one embedded interpreter, C++ exceptions, no copies.
//
//   core::embed::Interpreter python("/path/to/.venv/bin/python");
//   auto lengths = python.call("core_x.facade", core::embed::numpy(x.data(), {n, 3}), 0.5);
//   core::embed::Array<float> out(lengths);  // out.data(), out.shape(0)
//
// Python is held only inside these functions: any thread may call them.
#pragma once
#include <pybind11/embed.h>
#include <pybind11/numpy.h>

#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#pragma GCC visibility push(hidden)  // as that of pybind11
namespace core::embed {
namespace py = pybind11;

/// A Python exception, as C++ sees it. `kind` is its class, e.g. "ValueError".
struct Error : std::runtime_error {
  Error(std::string kind, const std::string& message) : std::runtime_error(message), kind(std::move(kind)) {}
  std::string kind;
};

/// Runs `f` with Python held; a Python exception becomes an Error.
template <class F>
auto locked(F&& f) {
  py::gil_scoped_acquire hold;
  try {
    return f();
  } catch (const py::error_already_set& e) {
    throw Error(py::str(e.type().attr("__name__")), py::str(e.value()));
  } catch (const py::builtin_exception& e) {
    throw Error("TypeError", e.what());
  }
}

/// A Python object that may be passed on and dropped by any thread.
class Object {
 public:
  Object() = default;
  explicit Object(py::object o)
      : o_(new py::object(std::move(o)), [](py::object* p) {
          py::gil_scoped_acquire hold;
          delete p;
        }) {}
  /// The object itself, for use inside locked().
  const py::object& get() const { return *o_; }
  /// Its value as a C++ type, e.g. to<double>().
  template <class T>
  T to() const {
    return locked([&] { return o_->cast<T>(); });
  }
  /// Element `i` of a tuple or list, e.g. of a facade's several results.
  Object operator[](std::size_t i) const {
    return locked([&] { return Object(o_->attr("__getitem__")(i)); });
  }
  /// An attribute, e.g. a field of a named tuple.
  Object attr(const char* name) const {
    return locked([&] { return Object(o_->attr(name)); });
  }

 private:
  std::shared_ptr<py::object> o_;
};

/// The numpy array of C++ memory, shape given, C-contiguous, without a copy. The memory must outlive every use of it.
/// Memory of a const type is read-only in Python.
template <class T>
Object numpy(T* data, std::vector<py::ssize_t> shape) {
  return locked([&] {
    using U = std::remove_const_t<T>;
    py::array_t<U> a(std::move(shape), data, py::capsule(static_cast<const void*>(data)));  // a base: do not copy
    if (std::is_const_v<T>) a.attr("setflags")(py::arg("write") = false);
    return Object(std::move(a));
  });
}

/// The elements of a numpy array, C-contiguous: without a copy if it is that of T already.
template <class T>
class Array {
 public:
  explicit Array(const Object& o) {
    locked([&] {
      auto a = py::array_t<T, py::array::c_style | py::array::forcecast>::ensure(o.get());
      if (!a) throw Error("TypeError", "Array: the object cannot be read as an array of the wanted elements");
      data_ = a.data();
      shape_.assign(a.shape(), a.shape() + a.ndim());
      size_ = static_cast<std::size_t>(a.size());
      keep_ = Object(std::move(a));
    });
  }
  const T* data() const { return data_; }
  const T* begin() const { return data_; }
  const T* end() const { return data_ + size_; }
  std::size_t size() const { return size_; }
  const std::vector<py::ssize_t>& shape() const { return shape_; }

 private:
  Object keep_;
  const T* data_ = nullptr;
  std::vector<py::ssize_t> shape_;
  std::size_t size_ = 0;
};

/// A keyword argument: named("tau", 0.5).
template <class T>
struct Named {
  const char* name;
  T value;
};
template <class T>
Named<T> named(const char* name, T value) {
  return {name, std::move(value)};
}

/// The interpreter of the process; make one, before all else of this header, and keep it.
class Interpreter {
 public:
  /// `python` is the interpreter of the environment that holds the packages, e.g. .venv/bin/python.
  /// Default: CORE_PYTHON, else that of VIRTUAL_ENV, else the first python3 on PATH.
  explicit Interpreter(std::string python = {}) {
    const char* named = std::getenv("CORE_PYTHON");
    const char* environment = std::getenv("VIRTUAL_ENV");
    if (python.empty() && named) python = named;
    if (python.empty() && environment) python = std::string(environment) + "/bin/python";
    PyConfig config;
    PyConfig_InitPythonConfig(&config);
    config.install_signal_handlers = 0;  // the signals are the host's
    if (!python.empty()) PyConfig_SetBytesString(&config, &config.program_name, python.c_str());
    scope_ = std::make_unique<py::scoped_interpreter>(&config, 0, nullptr, false);
    free_ = std::make_unique<py::gil_scoped_release>();
  }
  ~Interpreter() {
    free_.reset();
    scope_.reset();
  }
  Interpreter(const Interpreter&) = delete;
  Interpreter& operator=(const Interpreter&) = delete;

  /// Calls "package.module.function" with the arguments: Objects, numbers, strings, and named().
  template <class... A>
  Object call(const std::string& function, const A&... arguments) const {
    return locked([&] {
      const auto dot = function.rfind('.');
      if (dot == std::string::npos) throw Error("ValueError", "call: the function must be package.function, got '" + function + "'");
      const auto module = py::module_::import(function.substr(0, dot).c_str());
      return Object(module.attr(function.substr(dot + 1).c_str())(unwrap(arguments)...));
    });
  }

 private:
  static const py::object& unwrap(const Object& o) { return o.get(); }
  template <class T>
  static py::arg_v unwrap(const Named<T>& x) {
    return py::arg(x.name) = unwrap(x.value);
  }
  template <class T>
  static const T& unwrap(const T& x) {
    return x;
  }
  std::unique_ptr<py::scoped_interpreter> scope_;
  std::unique_ptr<py::gil_scoped_release> free_;
};
}  // namespace core::embed
#pragma GCC visibility pop
