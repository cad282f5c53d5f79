// The declaration, the checks and the C-ABI face of operators.
#include <core/op.hpp>
#include <core/test.hpp>

#include <limits>

namespace toy {
using core::Tensor;

/// out = x y^T + k (+ 1 with weights)
template <class T>
void outer(Tensor<const T, 2> x, Tensor<const T, 2> y, Tensor<T, 2> out, std::int64_t k, double scale, bool negate, const char* mode,
           std::optional<Tensor<const T, 1>> weights) {
  if (std::string_view(mode) != "dot") throw core::Error("ValueError", "outer: argument 'mode' must be 'dot'");
  for (std::int64_t i = 0; i < x.shape[0]; ++i)
    for (std::int64_t j = 0; j < y.shape[0]; ++j) {
      T s = static_cast<T>(k);
      for (std::int64_t d = 0; d < x.shape[1]; ++d) s += x(i, d) * y(j, d) * (weights ? (*weights)(d) : T(1));
      out(i, j) = (negate ? -s : s) * static_cast<T>(scale);
    }
}
void fill(Tensor<float, 1> out) {
  for (std::int64_t i = 0; i < out.shape[0]; ++i) out(i) = 1;
}
void fill_cuda(Tensor<float, 1> out, core::Stream stream) {
  throw core::Error("RuntimeError", stream.handle == out.data ? "stream and data arrived" : "stream was lost");
}
void exhaust(std::int64_t) { throw std::bad_alloc(); }

inline constexpr auto ops = core::op_set(
    core::op<"outer", &outer<float>, &outer<double>>(
        "Products of rows.", {"x[N,D]", "y[M,D]", "out[N,M]", "k", "scale", "negate", "mode", "weights[D]"}, {.paper = "0000.00000"}),
    core::op<"fill", &fill, &fill_cuda>("Ones.", {"out[*]"}), core::op<"exhaust", &exhaust>("Throws.", {"n"}));
}  // namespace toy

CORE_PLUGIN(toy, "1.2.3", toy::ops)

namespace {
struct Raw {
  core_tensor t{};
  std::int64_t shape[8]{}, strides[8]{};
  template <class T>
  Raw(T* data, std::initializer_list<std::int64_t> s, std::initializer_list<std::int64_t> st = {}) {
    t = {const_cast<void*>(static_cast<const void*>(data)),
         CORE_CPU,
         0,
         static_cast<std::int32_t>(s.size()),
         core::dtype_of<T>::code,
         core::dtype_of<T>::bits,
         1,
         shape,
         st.size() ? strides : nullptr,
         0};
    std::copy(s.begin(), s.end(), shape);
    std::copy(st.begin(), st.end(), strides);
  }
  Raw(const Raw&) = delete;
  operator core_value() const {
    core_value v{CORE_TENSOR, 0, {}};
    v.u.t = &t;
    return v;
  }
};
core_value integer(std::int64_t i) {
  core_value v{CORE_INT, 0, {}};
  v.u.i = i;
  return v;
}
core_value real(double f) {
  core_value v{CORE_FLOAT, 0, {}};
  v.u.f = f;
  return v;
}
core_value text(const char* s) {
  core_value v{CORE_STR, 0, {}};
  v.u.s = s;
  return v;
}
const core_value no{CORE_BOOL, 0, {}}, none{};

/// "" or "Kind: message".
std::string call(int op, std::initializer_list<core_value> v, void* stream = nullptr) {
  core_error e{};
  const auto& o = core_plugin_query()->ops[op];
  return o.call(v.begin(), static_cast<std::int32_t>(v.size()), stream, &e) ? std::string(e.kind) + ": " + e.message : "";
}

struct Fixture {
  float x[6]{1, 2, 3, 4, 5, 6}, out[4]{};
  double xd[6]{}, outd[4]{};
  Raw X{x, {2, 3}}, Y{x, {2, 3}}, O{out, {2, 2}};
  std::string outer(const core_value& a, const core_value& b, const core_value& c, const core_value& w = none) {
    return call(0, {a, b, c, integer(0), real(1), no, text("dot"), w});
  }
};
bool has(const std::string& s, const char* part) { return s.find(part) != s.npos; }
}  // namespace

CORE_TEST(table) {
  const core_plugin* p = core_plugin_query();
  CHECK(p == core_plugin_query());
  CHECK(p->struct_size == sizeof(core_plugin) && p->op_size == sizeof(core_op) && p->num_ops == 3);
  CHECK(p->abi_major == CORE_ABI_MAJOR && std::string(p->name) == "toy" && std::string(p->version) == "1.2.3");
  const core_op& o = p->ops[0];
  CHECK(std::string(o.name) == "toy.outer" && std::string(o.paper) == "0000.00000" && o.num_args == 8 && o.num_overloads == 2);
  CHECK(std::string(o.overloads[0].args[2].name) == "out" && o.overloads[0].args[2].flags == CORE_ARG_OUT);
  CHECK(o.overloads[0].args[0].dtype_bits == 32 && o.overloads[1].args[0].dtype_bits == 64);
  CHECK(o.overloads[0].args[7].flags == CORE_ARG_OPTIONAL && std::string(o.overloads[0].args[0].shape) == "N,D");
  CHECK(p->ops[1].overloads[1].device_type == CORE_CUDA && !p->ops[1].paper);
}

CORE_TEST(calls) {
  Fixture f;
  CHECK(f.outer(f.X, f.Y, f.O).empty());
  CHECK_NEAR(f.out[0], 14, 0);
  CHECK_NEAR(f.out[1], 32, 0);
  float w[3]{1, 0, 0};
  CHECK(call(0, {f.X, f.Y, f.O, integer(1), integer(2), no, text("dot"), Raw(w, {3})}).empty());
  CHECK_NEAR(f.out[3], 2 * (16 + 1), 0);
  Raw xd{f.xd, {2, 3}}, yd{f.xd, {2, 3}}, od{f.outd, {2, 2}};
  f.outd[0] = 7;
  CHECK(f.outer(xd, yd, od).empty());
  CHECK_NEAR(f.outd[0], 0, 0);
}

CORE_TEST(strides) {
  Fixture f;
  Raw reversed{f.x + 5, {2, 3}, {-3, -1}}, broadcast{f.x, {2, 3}, {0, 1}}, transposed{f.out, {2, 2}, {1, 2}};
  CHECK(f.outer(reversed, broadcast, transposed).empty());
  CHECK_NEAR(f.out[0], 6 + 10 + 12, 0);
  Raw shifted{f.x, {1, 3}};
  shifted.t.byte_offset = 3 * sizeof(float);
  Raw one{f.out, {1, 1}};
  CHECK(f.outer(shifted, shifted, one).empty());
  CHECK_NEAR(f.out[0], 16 + 25 + 36, 0);
}

CORE_TEST(empty_axes) {
  Fixture f;
  Raw no_rows{static_cast<float*>(nullptr), {0, 3}}, no_out{static_cast<float*>(nullptr), {0, 2}};
  CHECK(f.outer(no_rows, f.Y, no_out).empty());
  Raw no_columns{static_cast<float*>(nullptr), {2, 0}};
  CHECK(f.outer(no_columns, no_columns, f.O).empty());
  CHECK_NEAR(f.out[3], 0, 0);
}

CORE_TEST(refusals) {
  Fixture f;
  Raw xd{f.xd, {2, 3}}, wide{f.x, {1, 6}}, flat{f.x, {6}}, scalar{f.x, {}}, short_w{f.x, {2}};
  CHECK(f.outer(f.X, xd, f.O) == "TypeError: outer: argument 'y' must be float32 of shape (M, D), got float64 of shape (2, 3)");
  CHECK(has(f.outer(f.X, wide, f.O),
            "ValueError: outer: argument 'y' must be float32 of shape (M, D) with D = 3, got float32 of shape (1, 6)"));
  CHECK(has(f.outer(flat, f.Y, f.O), "argument 'x' must be float32 of shape (N, D), got float32 of shape (6,)"));
  CHECK(has(f.outer(scalar, f.Y, f.O), "got float32 of shape ()"));
  CHECK(has(f.outer(f.X, f.Y, f.O, short_w), "argument 'weights' must be float32 of shape (D,) with D = 3"));
  CHECK(has(f.outer(f.X, f.Y, none), "TypeError: outer: argument 'out' must be a tensor, got None"));
  CHECK(has(f.outer(integer(1), f.Y, f.O), "argument 'x' must be a tensor, got an int"));
  CHECK(has(call(0, {f.X, f.Y, f.O, real(1), real(1), no, text("dot"), none}), "argument 'k' must be an int, got a float"));
  CHECK(has(call(0, {f.X, f.Y, f.O, integer(0), real(1), no, text("sum"), none}), "argument 'mode' must be 'dot'"));
  CHECK(has(call(0, {f.X, f.Y, f.O, integer(0), real(1), no, text(nullptr), none}), "is a null pointer"));
  CHECK(call(0, {f.X}) == "TypeError: outer: takes 8 arguments, got 1");
  CHECK(call(2, {integer(1)}) == "MemoryError: exhaust: out of memory");
  CHECK(core_plugin_query()->ops[0].call(nullptr, 8, nullptr, nullptr) == -1);
}

CORE_TEST(hostile_tensors) {
  Fixture f;
  const std::int64_t big = std::int64_t{1} << 40, most = std::numeric_limits<std::int64_t>::max();
  Raw huge{f.x, {big, big}}, stretched{f.x, {big, 3}, {0, 1}}, far{f.x, {2, 3}, {most, 1}}, least{f.x, {2, 3}, {INT64_MIN, 1}},
      negative{f.x, {-1, 3}}, null{static_cast<float*>(nullptr), {2, 3}};
  CHECK(has(f.outer(huge, f.Y, f.O), "spans more than 2^56 bytes"));
  CHECK(has(f.outer(far, f.Y, f.O), "spans more than 2^56 bytes"));
  CHECK(has(f.outer(least, f.Y, f.O), "spans more than 2^56 bytes"));
  CHECK(has(f.outer(stretched, f.Y, f.O), "argument 'out'"));
  CHECK(has(f.outer(negative, f.Y, f.O), "has a negative size"));
  CHECK(has(f.outer(null, f.Y, f.O), "has a null data pointer"));
  Raw odd{f.x, {1, 3}};
  odd.t.byte_offset = 1;
  CHECK(has(f.outer(odd, f.Y, f.O), "is not aligned"));
  Raw shapeless{f.x, {2, 3}};
  shapeless.t.shape = nullptr;
  CHECK(has(f.outer(shapeless, f.Y, f.O), "has no shape"));
  Raw deep{f.x, {2, 3}};
  deep.t.ndim = 1000000;  // the shape has two
  CHECK(has(f.outer(deep, f.Y, f.O), "got float32 of shape (1000000 dimensions)"));
  Raw lanes{f.x, {2, 3}};
  lanes.t.dtype_lanes = 4;
  CHECK(has(f.outer(lanes, f.Y, f.O), "got float32x4"));
}

CORE_TEST(outputs_are_alone) {
  Fixture f;
  Raw broadcast{f.out, {2, 2}, {0, 1}}, overlapping{f.out, {2, 2}, {1, 1}}, same{f.x, {2, 2}}, beside{f.x + 4, {1, 1}}, row{f.x, {1, 3}};
  CHECK(has(f.outer(f.X, f.Y, broadcast), "several of its elements share memory"));
  CHECK(has(f.outer(f.X, f.Y, overlapping), "several of its elements share memory"));
  CHECK(has(f.outer(f.X, f.Y, same), "shares memory with argument 'x'"));
  CHECK(f.outer(row, row, beside).empty());
}

CORE_TEST(devices) {
  Fixture f;
  Raw on_gpu{f.x, {2, 3}}, pinned{f.x, {2, 3}}, out{f.out, {4}};
  on_gpu.t.device_type = CORE_CUDA;
  pinned.t.device_type = CORE_CUDA_HOST;
  CHECK(f.outer(f.X, on_gpu, f.O) == "ValueError: outer: argument 'y' is on cuda:0, but 'x' is on cpu");
  CHECK(f.outer(pinned, f.Y, f.O).empty());
  Raw elsewhere{f.x, {2, 3}};
  elsewhere.t.device_type = CORE_CUDA;
  elsewhere.t.device_id = 1;
  CHECK(has(f.outer(on_gpu, elsewhere, f.O), "argument 'y' is on cuda:1, but 'x' is on cuda:0"));
  CHECK(has(f.outer(on_gpu, on_gpu, on_gpu), "NotImplementedError: outer: argument 'x' is on cuda:0"));
  CHECK(call(1, {out}).empty());
  out.t.device_type = CORE_CUDA;
  CHECK(call(1, {out}, f.out) == "RuntimeError: stream and data arrived");
}

CORE_TEST(checked_sizes) {
  CHECK(core::checked_mul(3, 4, "n") == 12);
  CHECK_THROWS(core::checked_mul(std::int64_t{1} << 62, 2, "n"), "ValueError");
}
