// core/op.hpp - declare an operator once: this gives its C-ABI face, core/python.hpp the
// Python one.
//
//   inline constexpr auto ops = core::op_set(
//       core::op<"pairwise_sqdist", &pairwise_sqdist, &pairwise_sqdist_double>(
//           "Squared Euclidean distances of the rows of `x` and of `y`.",
//           {"x[N,D]", "y[M,D]", "out[N,M]"}));
//
// An argument is its name and, for a tensor, its sizes: equal symbols are equal sizes
// ("N", "N+1"), "*" is any size. A `Tensor<T, N>` with non-const T is an output (it may be
// read too); `std::optional<Tensor>` may be left out; the rest are int64, double, bool and
// `const char*`. Several functions under one name are overloads by dtype and device; the one
// whose last parameter is core::Stream runs on CUDA.
#pragma once
#include <core/parallel.hpp>
#include <core/tensor.hpp>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>
#include <span>
#include <string_view>
#include <tuple>
#include <utility>

namespace core {
inline namespace v1 {

inline constexpr int max_rank = 8, max_symbols = 16, max_name = 31;

template <std::size_t N>
struct fixed_string {
  char s[N]{};
  constexpr fixed_string(const char (&v)[N]) { std::copy_n(v, N, s); }
};

struct op_traits {
  const char* paper = nullptr;  ///< arXiv id of the source, shown by `core list --papers`
  double ns_per_element = 1;    ///< rough cost per element of all tensors; the GIL is released above 20 us
};

namespace detail {
/// One size of a declared shape: any, a literal, or a symbol plus a constant.
struct dim {
  int symbol = -1;
  std::int64_t value = 0;
  constexpr bool any() const { return symbol < 0 && value < 0; }
};

struct arg_spec {
  char name[max_name + 1]{};
  char shape[64]{};
  int rank = -1;
  dim dims[max_rank]{};
};

/// The parsed declaration of an operator, free of its template parameters.
struct op_spec {
  const char* name = "";
  const char* doc = "";
  op_traits traits{};
  int num_symbols = 0;
  char symbols[max_symbols][max_name + 1]{};
};

template <std::size_t K>
constexpr void copy_text(char (&to)[K], std::string_view from) {
  if (from.size() >= K) throw "core::op: a name or shape is too long";
  std::copy(from.begin(), from.end(), to);
}
constexpr bool is_digit(char c) { return c >= '0' && c <= '9'; }
constexpr std::int64_t parse_int(std::string_view s) {
  std::int64_t v = 0;
  if (s.empty()) throw "core::op: a number is missing in a shape";
  for (char c : s) {
    if (!is_digit(c)) throw "core::op: a shape is names, numbers, '+' and '*'";
    v = v * 10 + (c - '0');
  }
  return v;
}
constexpr dim parse_dim(op_spec& op, std::string_view s) {
  if (s == "*") return {-1, -1};
  if (s.empty()) throw "core::op: an empty size in a shape";
  if (is_digit(s[0])) return {-1, parse_int(s)};
  const auto plus = s.find('+');
  const auto symbol = s.substr(0, plus);
  int i = 0;
  while (i < op.num_symbols && std::string_view(op.symbols[i]) != symbol) ++i;
  if (i == op.num_symbols) {
    if (i == max_symbols) throw "core::op: too many size symbols";
    copy_text(op.symbols[op.num_symbols++], symbol);
  }
  return {i, plus == s.npos ? 0 : parse_int(s.substr(plus + 1))};
}
constexpr arg_spec parse_arg(op_spec& op, std::string_view s) {
  arg_spec a;
  const auto open = s.find('[');
  copy_text(a.name, s.substr(0, open));
  if (open == s.npos) return a;
  if (s.back() != ']') throw "core::op: a shape ends with ']'";
  auto rest = s.substr(open + 1, s.size() - open - 2);
  copy_text(a.shape, rest);
  a.rank = 0;
  while (!rest.empty()) {
    if (a.rank == max_rank) throw "core::op: too many dimensions";
    const auto comma = rest.find(',');
    a.dims[a.rank++] = parse_dim(op, rest.substr(0, comma));
    if (comma == rest.npos) break;
    rest.remove_prefix(comma + 1);
  }
  return a;
}

template <class T>
struct unwrap {
  using type = T;
};
template <class T>
struct unwrap<std::optional<T>> {
  using type = T;
};

template <class T>
constexpr core_arg describe() {
  core_arg a{};
  a.ndim = -1;
  using U = typename unwrap<T>::type;
  if constexpr (is_tensor<U>) {
    using D = dtype_of<typename U::value_type>;
    a.kind = CORE_TENSOR;
    a.ndim = U::rank;
    a.dtype_code = D::code;
    a.dtype_bits = D::bits;
    if (U::is_output) a.flags |= CORE_ARG_OUT;
    if (is_optional<T>) a.flags |= CORE_ARG_OPTIONAL;
  } else if constexpr (std::same_as<T, bool>) {
    a.kind = CORE_BOOL;
  } else if constexpr (std::same_as<T, std::int64_t>) {
    a.kind = CORE_INT;
  } else if constexpr (std::same_as<T, double>) {
    a.kind = CORE_FLOAT;
  } else {
    static_assert(std::same_as<T, const char*>, "an operator takes Tensor, optional<Tensor>, int64_t, double, bool and const char*");
    a.kind = CORE_STR;
  }
  return a;
}

template <class>
struct signature;
template <class... A>
struct signature<void (*)(A...)> {
  using all = std::tuple<std::remove_cvref_t<A>...>;
  static constexpr std::size_t total = sizeof...(A);
  static constexpr bool cuda = [] {
    if constexpr (total == 0)
      return false;
    else
      return std::same_as<std::tuple_element_t<total - 1, all>, Stream>;
  }();
  static constexpr std::size_t n = total - (cuda ? 1 : 0);
  template <std::size_t I>
  using arg = std::tuple_element_t<I, all>;
};

// ---- messages ---------------------------------------------------------------------------

inline std::string dtype_name(int code, int bits, int lanes = 1) {
  static constexpr const char* names[] = {"int", "uint", "float", "opaque", "bfloat", "complex", "bool"};
  std::string s = code == 6 ? "bool" : (code < 7 ? names[code] : "dtype" + std::to_string(code) + "_") + std::to_string(bits);
  return lanes == 1 ? s : s + "x" + std::to_string(lanes);
}
inline std::string device_name(int type, int id) {
  switch (type) {
    case CORE_CPU:
    case CORE_CUDA_HOST: return "cpu";
    case CORE_CUDA:
    case CORE_CUDA_MANAGED: return "cuda:" + std::to_string(id);
    default: return "device type " + std::to_string(type);
  }
}
inline std::string shape_text(const core_tensor& t) {
  if (t.ndim > max_rank) return "(" + std::to_string(t.ndim) + " dimensions)";  // more than the shape may hold
  std::string s = "(";
  for (int d = 0; d < t.ndim; ++d) s += (d ? ", " : "") + std::to_string(t.shape[d]);
  return s + (t.ndim == 1 ? ",)" : ")");
}
inline std::string shape_text(const arg_spec& a) {
  std::string s = "(";
  for (const char* c = a.shape; *c; ++c) s += *c == ',' ? std::string(", ") : std::string(1, *c);
  return s + (a.rank == 1 ? ",)" : ")");
}
[[noreturn, gnu::cold]] inline void bad(const char* kind, const op_spec& op, const arg_spec& arg, const std::string& why) {
  throw Error(kind, std::string(op.name) + ": argument '" + arg.name + "' " + why);
}

// ---- checks, not templated on the operator ----------------------------------------------

inline int dispatch_device(int type) { return type == CORE_CUDA_HOST ? CORE_CPU : type == CORE_CUDA_MANAGED ? CORE_CUDA : type; }

/// Bytes [first, last) that a tensor's elements lie in.
inline std::pair<std::uintptr_t, std::uintptr_t> extent(const core_tensor& t) {
  const std::int64_t item = t.dtype_bits / 8;
  std::int64_t lo = 0, hi = 1, acc = 1;
  for (int d = t.ndim; d-- > 0;) {
    if (t.shape[d] == 0) return {0, 0};
    const std::int64_t span = (t.strides ? t.strides[d] : acc) * (t.shape[d] - 1);
    (span < 0 ? lo : hi) += span;
    acc *= t.shape[d];
  }
  const auto p = reinterpret_cast<std::uintptr_t>(t.data) + t.byte_offset;
  return {p + static_cast<std::uintptr_t>(lo * item), p + static_cast<std::uintptr_t>(hi * item)};
}

/// Whether two index tuples may reach one element (exact for the layouts that slicing,
/// transposing and expanding make).
inline bool overlaps_itself(const core_tensor& t) {
  if (!t.strides) return false;
  std::int64_t size[max_rank], stride[max_rank];
  int n = 0;
  for (int d = 0; d < t.ndim; ++d) {
    if (t.shape[d] == 0) return false;
    if (t.shape[d] == 1) continue;
    const std::int64_t s = t.strides[d] < 0 ? -t.strides[d] : t.strides[d];
    int at = n++;
    for (; at > 0 && stride[at - 1] > s; --at) stride[at] = stride[at - 1], size[at] = size[at - 1];
    stride[at] = s, size[at] = t.shape[d];
  }
  std::int64_t reach = 0;
  for (int d = 0; d < n; ++d) {
    if (stride[d] <= reach) return true;
    reach += stride[d] * (size[d] - 1);
  }
  return false;
}

/// Sanity of the raw descriptor: rank, sizes, strides, pointer, alignment, address range.
inline void check_tensor(const op_spec& op, const arg_spec& spec, const core_arg& want, const core_tensor& t) {
  const auto expected = [&] { return "must be " + dtype_name(want.dtype_code, want.dtype_bits) + " of shape " + shape_text(spec); };
  if (t.ndim < 0 || (t.ndim > 0 && !t.shape)) bad("ValueError", op, spec, "has no shape");
  if (t.ndim != want.ndim)
    bad("ValueError", op, spec,
        expected() + ", got " + dtype_name(t.dtype_code, t.dtype_bits, t.dtype_lanes) + " of shape " + shape_text(t));
  const std::int64_t item = want.dtype_bits / 8;
  std::int64_t n = 1, reach = 0, acc = 1;
  bool overflow = false, empty = false;
  for (int d = t.ndim; d-- > 0;) {
    if (t.shape[d] < 0) bad("ValueError", op, spec, "has a negative size: " + shape_text(t));
    empty |= t.shape[d] == 0;
  }
  for (int d = t.ndim; d-- > 0 && !empty;) {
    std::int64_t step = t.strides ? t.strides[d] : acc, span;
    overflow |= __builtin_mul_overflow(acc, t.shape[d], &acc);
    overflow |= step == INT64_MIN;
    if (step < 0) step = -(step + (step == INT64_MIN));
    overflow |= __builtin_mul_overflow(step, t.shape[d] - 1, &span) || __builtin_add_overflow(reach, span, &reach);
  }
  overflow |= __builtin_mul_overflow(acc, item, &n) || __builtin_add_overflow(reach, std::int64_t{1}, &reach) ||
              __builtin_mul_overflow(reach, item, &reach) || t.byte_offset > static_cast<std::uint64_t>(INT64_MAX);
  overflow |= reach > std::int64_t{1} << 56;  // no processor addresses more
  if (overflow) bad("ValueError", op, spec, "spans more than 2^56 bytes: shape " + shape_text(t));
  if (empty) return;
  if (!t.data) bad("ValueError", op, spec, "has a null data pointer and shape " + shape_text(t));
  if ((reinterpret_cast<std::uintptr_t>(t.data) + t.byte_offset) % static_cast<std::uintptr_t>(item))
    bad("ValueError", op, spec, "is not aligned to its " + std::to_string(item) + "-byte elements; pass a copy");
  if ((want.flags & CORE_ARG_OUT) && overlaps_itself(t))
    bad("ValueError", op, spec, "is written to, but several of its elements share memory; pass a contiguous array");
}

/// Binds the symbols of one argument's shape, or says which size is wrong.
inline void check_shape(const op_spec& op, const arg_spec& spec, const core_arg& want, const core_tensor& t, std::int64_t* bound) {
  std::uint32_t fresh = 0;  // symbols that this argument binds first
  for (int d = 0; d < spec.rank; ++d) {
    const dim& want_dim = spec.dims[d];
    const std::int64_t got = t.shape[d] - want_dim.value;
    if (want_dim.symbol < 0) {
      if (want_dim.any() || got == 0) continue;
    } else if (bound[want_dim.symbol] == got) {
      continue;
    } else if (bound[want_dim.symbol] < 0 && got >= 0) {
      bound[want_dim.symbol] = got;
      fresh |= 1u << want_dim.symbol;
      continue;
    }
    std::string known;
    for (int e = 0; e < spec.rank; ++e)
      if (const int s = spec.dims[e].symbol;
          s >= 0 && bound[s] >= 0 && !(fresh >> s & 1) && known.find(std::string(op.symbols[s]) + " = ") == known.npos)
        known += (known.empty() ? " with " : ", ") + std::string(op.symbols[s]) + " = " + std::to_string(bound[s]);
    bad("ValueError", op, spec,
        "must be " + dtype_name(want.dtype_code, want.dtype_bits) + " of shape " + shape_text(spec) + known + ", got " +
            dtype_name(t.dtype_code, t.dtype_bits, t.dtype_lanes) + " of shape " + shape_text(t));
  }
}

/// No output may share memory with another tensor of the call.
inline void check_overlap(const op_spec& op, const arg_spec* specs, const core_arg* want, const core_value* v, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) {
    if (v[i].kind != CORE_TENSOR || !(want[i].flags & CORE_ARG_OUT)) continue;
    const auto [lo, hi] = extent(*v[i].u.t);
    for (std::size_t j = 0; j < n && lo != hi; ++j) {
      if (j == i || v[j].kind != CORE_TENSOR) continue;
      const auto [lo2, hi2] = extent(*v[j].u.t);
      if (lo < hi2 && lo2 < hi)
        bad("ValueError", op, specs[i], std::string("shares memory with argument '") + specs[j].name + "', but the operator writes to it");
    }
  }
}

inline void check_kind(const op_spec& op, const arg_spec& spec, const core_arg& want, const core_value& v) {
  static constexpr const char* names[] = {"None", "a tensor", "an int", "a float", "a bool", "a str"};
  const bool ok = v.kind == want.kind || (v.kind == CORE_NONE && (want.flags & CORE_ARG_OPTIONAL)) ||
                  (want.kind == CORE_FLOAT && v.kind == CORE_INT) || (want.kind == CORE_INT && v.kind == CORE_BOOL);
  if (!ok)
    bad("TypeError", op, spec,
        std::string("must be ") + names[want.kind] + ", got " + (v.kind >= 0 && v.kind <= 5 ? names[v.kind] : "an unknown kind"));
  if ((v.kind == CORE_TENSOR && !v.u.t) || (v.kind == CORE_STR && !v.u.s)) bad("ValueError", op, spec, "is a null pointer");
}

inline bool same_dtype(const core_arg& a, const core_tensor& t) {
  return t.dtype_code == a.dtype_code && t.dtype_bits == a.dtype_bits && t.dtype_lanes == 1;
}

/// Which overload takes these values; throws if none does. `want[k]` are the arguments of overload k.
inline std::size_t choose(const op_spec& op, const arg_spec* specs, std::span<const core_overload> overloads, const core_value* v,
                          std::size_t n) {
  const core_tensor* first = nullptr;
  std::size_t first_at = 0;
  for (std::size_t i = 0; i < n; ++i) {
    check_kind(op, specs[i], overloads[0].args[i], v[i]);
    if (v[i].kind != CORE_TENSOR) continue;
    const core_tensor& t = *v[i].u.t;
    if (!first) first = &t, first_at = i;
    const int a = dispatch_device(first->device_type), b = dispatch_device(t.device_type);
    if (a != b || (a != CORE_CPU && first->device_id != t.device_id))
      bad("ValueError", op, specs[i],
          "is on " + device_name(t.device_type, t.device_id) + ", but '" + specs[first_at].name + "' is on " +
              device_name(first->device_type, first->device_id));
  }
  const int device = first ? dispatch_device(first->device_type) : overloads[0].device_type;
  std::size_t deepest = 0;  // how many arguments the best candidate matched
  std::string wanted;
  bool on_device = false;
  for (std::size_t k = 0; k < overloads.size(); ++k) {
    if (overloads[k].device_type != device) continue;
    on_device = true;
    std::size_t i = 0;
    while (i < n && (v[i].kind != CORE_TENSOR || same_dtype(overloads[k].args[i], *v[i].u.t))) ++i;
    if (i == n) return k;
    const std::string name = dtype_name(overloads[k].args[i].dtype_code, overloads[k].args[i].dtype_bits);
    if (i > deepest || wanted.empty())
      wanted = name;
    else if (i == deepest && wanted.find(name) == wanted.npos)
      wanted += " or " + name;
    deepest = std::max(deepest, i);
  }
  if (!on_device)
    throw Error("NotImplementedError", std::string(op.name) + ": argument '" + specs[first_at].name + "' is on " +
                                           device_name(first->device_type, first->device_id) + ", where this build has no such operator" +
                                           (device == CORE_CUDA ? " (built without CUDA, or the operator is for the CPU only)" : ""));
  const core_tensor& t = *v[deepest].u.t;
  bad("TypeError", op, specs[deepest],
      "must be " + wanted + " of shape " + shape_text(specs[deepest]) + ", got " + dtype_name(t.dtype_code, t.dtype_bits, t.dtype_lanes) +
          " of shape " + (t.ndim >= 0 && (t.ndim == 0 || t.shape) ? shape_text(t) : "unknown"));
}

template <class V>
V view(const core_tensor& t) {
  V v;
  v.data = reinterpret_cast<decltype(v.data)>(static_cast<char*>(t.data) + t.byte_offset);
  v.device_type = dispatch_device(t.device_type);
  v.device_id = t.device_id;
  std::int64_t acc = 1;
  for (std::size_t d = V::rank; d-- > 0;) {
    v.shape[d] = t.shape[d];
    v.stride[d] = t.strides ? t.strides[d] : acc;
    acc *= std::max<std::int64_t>(t.shape[d], 1);
  }
  return v;
}
template <class A>
A unpack(const core_value& v) {
  if constexpr (is_optional<A>)
    return v.kind == CORE_NONE ? A{} : A{view<typename A::value_type>(*v.u.t)};
  else if constexpr (is_tensor<A>)
    return view<A>(*v.u.t);
  else if constexpr (std::same_as<A, double>)
    return v.kind == CORE_INT ? static_cast<double>(v.u.i) : v.u.f;
  else if constexpr (std::same_as<A, bool>)
    return v.u.i != 0;
  else if constexpr (std::same_as<A, const char*>)
    return v.u.s;
  else
    return v.u.i;
}

inline std::int32_t fail(core_error* e, const char* kind, const std::string& message) noexcept {
  if (e) {
    std::snprintf(e->kind, sizeof e->kind, "%s", kind);
    std::snprintf(e->message, sizeof e->message, "%s", message.c_str());
  }
  return -1;
}
}  // namespace detail

/// One operator. Name and functions are part of its type; documentation and argument names
/// are part of the constant, parsed by the compiler.
template <fixed_string Name, auto Fn, auto... More>
struct op {
  template <auto F>
  using sig = detail::signature<decltype(F)>;
  static constexpr std::size_t n = sig<Fn>::n, num_overloads = 1 + sizeof...(More);
  static_assert(((sig<More>::n == n) && ...), "overloads have the same arguments");

  detail::op_spec spec;
  std::array<detail::arg_spec, n> args{};

  consteval op(const char* doc, const char* const (&names)[n], op_traits traits = {}) {
    spec.name = Name.s;
    spec.doc = doc;
    spec.traits = traits;
    for (std::size_t i = 0; i < n; ++i) args[i] = detail::parse_arg(spec, names[i]);
    [&]<std::size_t... I>(std::index_sequence<I...>) {
      ((void)((args[I].rank == detail::describe<typename sig<Fn>::template arg<I>>().ndim) ||
              (throw "core::op: a declared shape has not the rank of the function's tensor", true)),
       ...);
    }(std::make_index_sequence<n>{});
  }

  /// The C-ABI description of one overload's arguments, in the order of `Fn, More...`.
  template <auto F>
  static std::array<core_arg, n> describe(const op& o) {
    std::array<core_arg, n> a;
    [&]<std::size_t... I>(std::index_sequence<I...>) {
      ((a[I] = detail::describe<typename sig<F>::template arg<I>>(), a[I].name = o.args[I].name, a[I].shape = o.args[I].shape), ...);
    }(std::make_index_sequence<n>{});
    return a;
  }

  /// Runs overload `which` on checked values.
  static void run(std::size_t which, const core_value* v, void* stream) {
    constexpr void (*table[])(const core_value*, void*) = {&run_one<Fn>, &run_one<More>...};
    table[which](v, stream);
  }

 private:
  template <auto F>
  static void run_one(const core_value* v, void* stream) {
    [&]<std::size_t... I>(std::index_sequence<I...>) {
      if constexpr (sig<F>::cuda)
        F(detail::unpack<typename sig<F>::template arg<I>>(v[I])..., Stream{stream});
      else
        F(detail::unpack<typename sig<F>::template arg<I>>(v[I])...);
    }(std::make_index_sequence<n>{});
  }
};

/// The set of a package's operators. Make it one constexpr object.
template <class... Op>
struct op_set {
  std::tuple<Op...> ops;
  static constexpr std::size_t size = sizeof...(Op);
  consteval explicit op_set(Op... o) : ops(o...) {}
};

/// Operator `I` of the constexpr op_set `Set`, with its run-time tables.
template <const auto& Set, std::size_t I>
struct bound_op {
  static constexpr const auto& op = std::get<I>(Set.ops);
  using Op = std::remove_cvref_t<decltype(op)>;
  static constexpr std::size_t n = Op::n;

  static std::span<const core_overload> overloads() {
    static const tables t(op);
    return t.overloads;
  }

  /// Checks everything about the values and returns the overload that takes them.
  static std::size_t check(const core_value* v) {
    const auto all = overloads();
    const std::size_t which = detail::choose(op.spec, op.args.data(), all, v, n);
    std::int64_t bound[max_symbols];
    std::fill_n(bound, op.spec.num_symbols, -1);
    for (std::size_t i = 0; i < n; ++i) {
      if (v[i].kind != CORE_TENSOR) continue;
      detail::check_tensor(op.spec, op.args[i], all[which].args[i], *v[i].u.t);
      detail::check_shape(op.spec, op.args[i], all[which].args[i], *v[i].u.t, bound);
    }
    detail::check_overlap(op.spec, op.args.data(), all[which].args, v, n);
    return which;
  }
  static void run(std::size_t which, const core_value* v, void* stream) { Op::run(which, v, stream); }

  static std::int32_t call(const core_value* v, std::int32_t num, void* stream, core_error* err) noexcept try {
    if (num != static_cast<std::int32_t>(n) || (n && !v))
      return detail::fail(err, "TypeError",
                          std::string(op.spec.name) + ": takes " + std::to_string(n) + " arguments, got " + std::to_string(v ? num : 0));
    run(check(v), v, stream);
    return 0;
  } catch (const Error& e) {
    return detail::fail(err, e.kind, e.what());
  } catch (const std::bad_alloc&) {
    return detail::fail(err, "MemoryError", std::string(op.spec.name) + ": out of memory");
  } catch (const std::exception& e) {
    return detail::fail(err, "RuntimeError", std::string(op.spec.name) + ": " + e.what());
  } catch (...) {
    return detail::fail(err, "RuntimeError", "unknown C++ exception");
  }

 private:
  struct tables {
    std::array<std::array<core_arg, n>, Op::num_overloads> args;
    std::array<core_overload, Op::num_overloads> overloads{};
    template <fixed_string Name, auto... Fn>
    explicit tables(const core::op<Name, Fn...>& o) : args{Op::template describe<Fn>(o)...} {
      std::size_t k = 0;
      ((overloads[k] = {detail::signature<decltype(Fn)>::cuda ? CORE_CUDA : CORE_CPU, 0, args[k].data()}, ++k), ...);
    }
    tables(const tables&) = delete;
  };
};

/// The C-ABI table of a constexpr op_set. `package` is also the prefix of the operators' names.
template <const auto& Set>
const core_plugin* plugin_table(const char* package, const char* version) {
  constexpr std::size_t count = std::remove_cvref_t<decltype(Set)>::size;
  static const auto names = [&] {
    std::array<std::string, count> s;
    [&]<std::size_t... I>(std::index_sequence<I...>) {
      ((s[I] = std::string(package) + "." + std::get<I>(Set.ops).spec.name), ...);
    }(std::make_index_sequence<count>{});
    return s;
  }();
  static const auto table = [&] {
    std::array<core_op, count> t;
    [&]<std::size_t... I>(std::index_sequence<I...>) {
      ((t[I] = core_op{names[I].c_str(), std::get<I>(Set.ops).spec.doc, std::get<I>(Set.ops).spec.traits.paper,
                       bound_op<Set, I>::overloads().data(), static_cast<std::uint32_t>(bound_op<Set, I>::n),
                       static_cast<std::uint32_t>(bound_op<Set, I>::overloads().size()), &bound_op<Set, I>::call}),
       ...);
    }(std::make_index_sequence<count>{});
    return t;
  }();
  static const core_plugin p{
      sizeof(core_plugin), CORE_ABI_MAJOR, CORE_ABI_MINOR, package, version, table.data(), count, sizeof(core_op), [](const core_host* h) {
        detail::host().store(h, std::memory_order_release);
      }};
  return &p;
}
}  // namespace v1
}  // namespace core

/// For op<...>: `CORE_IF_CUDA(&f_cuda)` is `, &f_cuda` in a build with CUDA and nothing else.
#if defined(CORE_WITH_CUDA)
#define CORE_IF_CUDA(...) , __VA_ARGS__
#else
#define CORE_IF_CUDA(...)
#endif

/// Defines the plugin's one exported symbol from its constexpr op_set.
#define CORE_PLUGIN(package, version, set) \
  extern "C" CORE_EXPORT const core_plugin* core_plugin_query() { return ::core::plugin_table<set>(#package, version); }
