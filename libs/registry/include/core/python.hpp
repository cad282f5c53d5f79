// core/python.hpp - the nanobind face of an op_set: numpy, torch, JAX and CuPy arrays in, no copies.
//
//   NB_MODULE(_core_x, m) { core::py::bind<core_x::ops>(m); }
//
// An array is read through DLPack's C exchange API if its type has one (torch: 30 ns against
// 3 us for __dlpack__()), else through the buffer protocol (numpy), else through nb::ndarray.
// The GIL is released when the operator's work estimate exceeds 20 us.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <core/op.hpp>

namespace core::py {
namespace nb = nanobind;
using core::detail::arg_spec;
using core::detail::bad;
using core::detail::op_spec;

/// DLPackExchangeAPI of DLPack 1.2, in part.
struct exchange_api {
  struct {
    std::uint32_t major, minor;
    void* prev;
  } header;
  void* managed_tensor_allocator;
  void* managed_from_py;
  void* managed_to_py;
  int (*dltensor_from_py)(void* object, core_tensor* out);
  int (*current_work_stream)(int device_type, std::int32_t device_id, void** out);
};

/// What is known of an array type; looked up once per type.
struct array_type {
  PyTypeObject* type = nullptr;
  const exchange_api* api = nullptr;
  PyObject* is_neg = nullptr;           // torch: unbound Tensor.is_neg
  PyObject* is_grad_enabled = nullptr;  // torch.is_grad_enabled
  PyObject* requires_grad = nullptr;    // its descriptor
  descrgetfunc get_requires_grad = nullptr;
};

inline PyObject* attribute(PyObject* o, const char* name) {
  PyObject* r = PyObject_GetAttrString(o, name);
  if (!r) PyErr_Clear();
  return r;
}

inline const array_type& array_type_of(PyTypeObject* type) {
  static array_type cache[8];
  static unsigned next = 0;
  for (const array_type& known : cache)
    if (known.type == type) return known;
  array_type t;
  t.type = type;
  auto* object = reinterpret_cast<PyObject*>(type);
  if (nb::object capsule = nb::steal(attribute(object, "__dlpack_c_exchange_api__")); capsule.is_valid()) {
    t.api = static_cast<const exchange_api*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    PyErr_Clear();
    if (t.api && (t.api->header.major != 1 || !t.api->dltensor_from_py || !t.api->current_work_stream)) t.api = nullptr;
  }
  if (t.api && (t.is_neg = attribute(object, "is_neg"))) {
    if ((t.requires_grad = attribute(object, "requires_grad")))
      t.get_requires_grad = reinterpret_cast<descrgetfunc>(PyType_GetSlot(Py_TYPE(t.requires_grad), Py_tp_descr_get));
    if (nb::object torch = nb::steal(PyImport_ImportModule("torch")); torch.is_valid())
      t.is_grad_enabled = attribute(torch.ptr(), "is_grad_enabled");
    PyErr_Clear();
  }
  array_type& at = cache[next++ % 8];
  for (PyObject* old : {reinterpret_cast<PyObject*>(at.type), at.is_neg, at.is_grad_enabled, at.requires_grad}) Py_XDECREF(old);
  Py_INCREF(object);
  return at = t;
}

inline std::string take_python_error() {
  nb::python_error e;  // fetches and clears
  const std::string s = e.what();
  return s.substr(0, s.find('\n'));
}

/// One converted array; keeps alive what the call needs.
class Array {
 public:
  core_tensor t{};
  void* stream = nullptr;

  Array() = default;
  Array(const Array&) = delete;
  ~Array() {
    if (buffer_.obj) PyBuffer_Release(&buffer_);
  }

  void load(nb::handle h, const op_spec& op, const arg_spec& arg, const core_arg& want) {
    const bool writable = want.flags & CORE_ARG_OUT;
    const array_type& type = array_type_of(Py_TYPE(h.ptr()));
    if (type.api) return exchange(h, type, op, arg);
    if (PyObject_CheckBuffer(h.ptr()) && from_buffer(h.ptr(), writable, op, arg)) return;
    if (writable && nb::try_cast(h, writable_, false)) return take(writable_);
    if (nb::try_cast(h, readable_, false)) {
      if (writable) read_only(op, arg);
      return take(readable_);
    }
    PyErr_Clear();
    bad("TypeError", op, arg, "must be an array of shape " + core::detail::shape_text(arg) + ", got " + nb::type_name(h.type()).c_str());
  }

 private:
  [[noreturn]] static void read_only(const op_spec& op, const arg_spec& arg) {
    bad("ValueError", op, arg, "is read-only, but the operator writes to it");
  }

  void exchange(nb::handle h, const array_type& type, const op_spec& op, const arg_spec& arg) {
    if (type.api->dltensor_from_py(h.ptr(), &t)) bad("TypeError", op, arg, "must be a dense array in memory: " + take_python_error());
    if (type.get_requires_grad && (t.dtype_code == 2 || t.dtype_code > 3)) {  // integers have no gradient
      nb::object grad = nb::steal(type.get_requires_grad(type.requires_grad, h.ptr(), reinterpret_cast<PyObject*>(type.type)));
      if (grad.ptr() == Py_True && nb::steal(PyObject_CallFunctionObjArgs(type.is_grad_enabled, nullptr)).ptr() == Py_True)
        bad("NotImplementedError", op, arg,
            "requires grad, but this call has no backward; use torch.no_grad(), x.detach() or a differentiable torch operator");
      PyErr_Clear();
    }
    if (type.is_neg && may_be_negative()) {
      if (nb::object neg = nb::steal(PyObject_CallFunctionObjArgs(type.is_neg, h.ptr(), nullptr)); neg.ptr() == Py_True)
        bad("ValueError", op, arg, "has its negative bit set; pass x.resolve_neg()");
      PyErr_Clear();
    }
    if (t.device_type == CORE_CUDA) type.api->current_work_stream(t.device_type, t.device_id, &stream);
  }

  /// torch sets the negative bit on the imaginary part of a conjugate alone, whose strides are even. Asking costs 100 ns.
  bool may_be_negative() const {
    for (int d = 0; d < t.ndim; ++d)
      if (!t.shape[d] || (t.shape[d] > 1 && t.strides && t.strides[d] % 2)) return false;
    return true;
  }

  bool from_buffer(PyObject* o, bool writable, const op_spec& op, const arg_spec& arg) {
    if (PyObject_GetBuffer(o, &buffer_, PyBUF_STRIDES | PyBUF_FORMAT)) {
      PyErr_Clear();
      return false;
    }
    const char* f = buffer_.format ? buffer_.format : "B";
    if (*f == '>' || *f == '!') bad("TypeError", op, arg, "has big-endian elements; pass x.astype(x.dtype.newbyteorder('='))");
    if (*f == '@' || *f == '=' || *f == '<' || *f == '|') ++f;
    if (f[0] == 'Z' && f[1] && !f[2])
      t.dtype_code = 5;
    else if (f[0] && !f[1] && std::strchr("efdg", *f))
      t.dtype_code = 2;
    else if (f[0] && !f[1] && std::strchr("bhilq", *f))
      t.dtype_code = 0;
    else if (f[0] && !f[1] && std::strchr("BHILQ", *f))
      t.dtype_code = 1;
    else if (f[0] == '?' && !f[1])
      t.dtype_code = 6;
    else
      bad("TypeError", op, arg, std::string("has elements of the unsupported format '") + (buffer_.format ? buffer_.format : "") + "'");
    if (buffer_.readonly && writable) read_only(op, arg);
    if (buffer_.ndim > max_rank) bad("ValueError", op, arg, "has more than 8 dimensions");
    t.dtype_bits = static_cast<std::uint8_t>(buffer_.itemsize * 8);
    t.dtype_lanes = 1;
    t.data = buffer_.buf;
    t.device_type = CORE_CPU;
    t.ndim = buffer_.ndim;
    static_assert(sizeof(Py_ssize_t) == sizeof(std::int64_t));
    t.shape = reinterpret_cast<std::int64_t*>(buffer_.shape);
    for (int d = 0; d < buffer_.ndim; ++d) {
      if (buffer_.strides[d] % buffer_.itemsize)
        bad("ValueError", op, arg, "has strides that are no multiple of its element size (a field of a record array?); pass a copy");
      strides_[d] = buffer_.strides[d] / buffer_.itemsize;
    }
    t.strides = strides_;
    return true;
  }

  template <class A>
  void take(const A& a) {
    t.data = const_cast<void*>(static_cast<const void*>(a.data()));
    t.device_type = a.device_type();
    t.device_id = a.device_id();
    t.ndim = static_cast<int>(a.ndim());
    t.dtype_code = a.dtype().code;
    t.dtype_bits = a.dtype().bits;
    t.dtype_lanes = a.dtype().lanes;
    t.shape = const_cast<std::int64_t*>(a.shape_ptr());
    t.strides = const_cast<std::int64_t*>(a.stride_ptr());
  }

  Py_buffer buffer_{};
  std::int64_t strides_[max_rank];
  nb::ndarray<nb::ro> readable_;
  nb::ndarray<> writable_;
};

inline void load_scalar(nb::handle h, core_value& v, const op_spec& op, const arg_spec& arg, const core_arg& want) {
  PyObject* o = h.ptr();
  const auto refuse = [&](const char* expected) {
    PyErr_Clear();
    bad("TypeError", op, arg, std::string("must be ") + expected + ", got " + nb::type_name(h.type()).c_str());
  };
  v.kind = want.kind;
  switch (want.kind) {
    case CORE_INT: {
      nb::object index = nb::steal(PyNumber_Index(o));
      if (!index.is_valid()) refuse("an int");
      int overflow = 0;
      v.u.i = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
      if (overflow) bad("ValueError", op, arg, "must fit into 64 bits");
      return;
    }
    case CORE_FLOAT:
      v.u.f = PyFloat_AsDouble(o);
      if (v.u.f == -1.0 && PyErr_Occurred()) refuse("a float");
      return;
    case CORE_BOOL:
      if (!PyBool_Check(o) && std::string_view(nb::type_name(h.type()).c_str()).substr(0, 10) != "numpy.bool") refuse("a bool");
      v.u.i = PyObject_IsTrue(o);
      return;
    default: {
      Py_ssize_t size = 0;
      v.u.s = PyUnicode_Check(o) ? PyUnicode_AsUTF8AndSize(o, &size) : nullptr;
      if (!v.u.s) refuse("a str");
      if (std::strlen(v.u.s) != static_cast<std::size_t>(size)) bad("ValueError", op, arg, "has a NUL character");
    }
  }
}

[[gnu::cold]] inline void set_python_error(const char* kind, const char* message) {
  PyObject* type = PyExc_RuntimeError;
  for (PyObject* t : {PyExc_TypeError, PyExc_ValueError, PyExc_BufferError, PyExc_MemoryError, PyExc_NotImplementedError, PyExc_KeyError,
                      PyExc_IndexError, PyExc_OverflowError, PyExc_OSError})
    if (nb::object name = nb::steal(attribute(t, "__name__")); name.is_valid() && !PyUnicode_CompareWithASCIIString(name.ptr(), kind))
      type = t;
  PyErr_SetString(type, message);
}

template <std::size_t>
using handle = nb::handle;

template <const auto& Set, std::size_t I, class = std::make_index_sequence<bound_op<Set, I>::n>>
struct Thunk;
template <const auto& Set, std::size_t I, std::size_t... J>
struct Thunk<Set, I, std::index_sequence<J...>> {
  using bound = bound_op<Set, I>;

  static void call(handle<J>... h) {
    try {
      const core_arg* want = bound::overloads()[0].args;
      Array arrays[sizeof...(J) ? sizeof...(J) : 1];
      core_value values[sizeof...(J) ? sizeof...(J) : 1]{};
      void* stream = nullptr;
      double elements = 0;
      const auto load = [&](nb::handle x, std::size_t j) {
        const arg_spec& spec = bound::op.args[j];
        if (want[j].kind != CORE_TENSOR) return load_scalar(x, values[j], bound::op.spec, spec, want[j]);
        if (x.is_none() && (want[j].flags & CORE_ARG_OPTIONAL)) return;
        arrays[j].load(x, bound::op.spec, spec, want[j]);
        values[j].kind = CORE_TENSOR;
        values[j].u.t = &arrays[j].t;
        if (arrays[j].stream) stream = arrays[j].stream;
      };
      (load(h, J), ...);
      const std::size_t which = bound::check(values);
      for (std::size_t j = 0; j < sizeof...(J); ++j) {
        double n = values[j].kind == CORE_TENSOR;
        for (int d = 0; n != 0 && d < arrays[j].t.ndim; ++d) n *= static_cast<double>(arrays[j].t.shape[d]);
        elements += n;
      }
      if (elements * bound::op.spec.traits.ns_per_element > 20e3) {
        nb::gil_scoped_release nogil;
        bound::run(which, values, stream);
      } else {
        bound::run(which, values, stream);
      }
    } catch (const Error& e) {
      set_python_error(e.kind, e.what());
      throw nb::python_error();
    } catch (const std::bad_alloc&) {
      set_python_error("MemoryError", (std::string(bound::op.spec.name) + ": out of memory").c_str());
      throw nb::python_error();
    }
  }
  static void def(nb::module_& m) { m.def(bound::op.spec.name, &call, bound::op.spec.doc, nb::arg(bound::op.args[J].name).none()...); }
};

/// Binds every operator of a constexpr op_set into module `m`, under its name without the prefix.
template <const auto& Set>
void bind(nb::module_& m) {
  [&]<std::size_t... I>(std::index_sequence<I...>) {
    (Thunk<Set, I>::def(m), ...);
  }(std::make_index_sequence<std::remove_cvref_t<decltype(Set)>::size>{});
}
}  // namespace core::py
