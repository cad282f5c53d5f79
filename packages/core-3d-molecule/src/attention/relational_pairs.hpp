// The perceptron of a pair of atoms and its quadratic form, `lanes` pairs side by side.
#pragma once
#include <core/exp.hpp>
#include <core/isa.hpp>
#include <core/tensor.hpp>

#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

namespace core_3d_molecule::relational {
using core::Tensor;
using std::int64_t;

constexpr int lanes = 8, rows = 8;

constexpr int64_t round_up(int64_t n) { return (n + lanes - 1) / lanes * lanes; }
inline std::size_t size(int64_t n) { return static_cast<std::size_t>(n); }

inline float exponential(float x) {
  const float y = x < core::lowest_exp ? core::lowest_exp : x;
  return core::exp_clamped(y > -core::lowest_exp ? -core::lowest_exp : y);
}
inline double exponential(double x) { return std::exp(x); }

/// A matrix in panels of `rows` rows, [panel][depth][rows], the last one filled up with zeros.
template <class T>
struct Panels {
  int64_t count = 0, depth = 0;
  std::vector<T> data;

  template <class At>
  Panels(int64_t n, int64_t depth_, At at) : count((n + rows - 1) / rows), depth(depth_), data(size(count * depth_ * rows)) {
    for (int64_t r = 0; r < n; ++r)
      for (int64_t c = 0; c < depth; ++c) data[size((r / rows * depth + c) * rows + r % rows)] = at(r, c);
  }
};

/// y[r][lane] = sum_c m[r][c] x[c][lane], for all the rows of the panels. The loop over lanes is the outermost one and
/// what the compiler vectorises; a test before the first pass over c would keep it from that, so depth is at least 1.
template <class T>
inline void multiply(int64_t count, int64_t depth, const T* m, const T* x, T* y) {
  for (int64_t p = 0; p < count; ++p, m += depth * rows, y += rows * lanes) {
    T sums[rows][lanes];
    for (int l = 0; l < lanes; ++l) {
      T sum[rows] = {};
      int64_t c = 0;
      do {
        const T value = x[c * lanes + l];
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) sum[r] += m[c * rows + r] * value;
      } while (++c < depth);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) sums[r][l] = sum[r];
    }
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 1
      for (int l = 0; l < lanes; ++l) y[r * lanes + l] = sums[r][l];
  }
}

/// `lanes` numbers in registers; loads and stores are by memcpy, so that no two of them are taken to overlap.
template <class T>
struct Vector {
  typedef T type __attribute__((vector_size(lanes * sizeof(T))));
};

/// sum[lane] += a[lane] b.
template <class T>
inline void add_scaled(T* sum, const T* a, T b) {
  typename Vector<T>::type x, y;
  std::memcpy(&x, sum, sizeof x);
  std::memcpy(&y, a, sizeof y);
  x += y * b;
  std::memcpy(sum, &x, sizeof x);
}

/// sum[lane] += a[lane] b[lane].
template <class T>
inline void add_product(T* sum, const T* a, const T* b) {
  typename Vector<T>::type x, y, z;
  std::memcpy(&x, sum, sizeof x);
  std::memcpy(&y, a, sizeof y);
  std::memcpy(&z, b, sizeof z);
  x += y * z;
  std::memcpy(sum, &x, sizeof x);
}

/// sums[r][c][lane] += g[r][lane] x[c][lane].
template <class T>
inline void add_products(int64_t n, int64_t depth, const T* g, const T* x, T* sums) {
  for (int64_t r = 0; r < n; ++r)
    for (int64_t c = 0; c < depth; ++c) add_product(sums + (r * depth + c) * lanes, g + r * lanes, x + c * lanes);
}

template <class T>
T over_lanes(const T* x) {
  T sum = 0;
  for (int l = 0; l < lanes; ++l) sum += x[l];
  return sum;
}

/// The perceptron and the quadratic form of `lanes` pairs.
template <class T>
struct PairNetwork {
  int64_t H, E, F, G, I, products;
  std::vector<T> centres, widths;
  Panels<T> w1, w2, form;  ///< w1 and w2 with their biases as a last column
  Panels<T> w1_back, w2_back, form_back;

  PairNetwork(const Tensor<const T, 2>& form_, const Tensor<const T, 1>& c, const Tensor<const T, 1>& w, const Tensor<const T, 2>& w1_,
              const Tensor<const T, 1>& b1, const Tensor<const T, 2>& w2_, const Tensor<const T, 1>& b2, bool backward)
      : H(form_.shape[0]),
        E(w2_.shape[0]),
        F(w1_.shape[0]),
        G(c.shape[0]),
        I(w1_.shape[1]),
        products(E * (E + 1) / 2),
        w1(F, I + 1, [&](int64_t r, int64_t i) { return i < I ? w1_(r, i) : b1(r); }),
        w2(E, F + 1, [&](int64_t r, int64_t i) { return i < F ? w2_(r, i) : b2(r); }),
        form(H, products, [&](int64_t r, int64_t i) { return form_(r, i); }),
        w1_back(backward ? 1 + G : 0, F, [&](int64_t r, int64_t i) { return w1_(i, r); }),
        w2_back(backward ? F : 0, E, [&](int64_t r, int64_t i) { return w2_(i, r); }),
        form_back(backward ? products : 0, H, [&](int64_t r, int64_t i) { return form_(i, r); }) {
    for (int64_t g = 0; g < G; ++g) centres.push_back(c(g)), widths.push_back(w(g));
  }
  int64_t classes() const { return I - 1 - G; }
};

/// Scratch of one tile of pairs.
template <class T>
struct PairTile {
  std::vector<T> x, pre, hidden, e, product, value;

  explicit PairTile(const PairNetwork<T>& n)
      : x(size((n.I + 1) * lanes)),
        pre(size(round_up(n.F) * lanes)),
        hidden(size((round_up(n.F) + 1) * lanes)),
        e(size(round_up(n.E) * lanes)),
        product(size(round_up(n.products) * lanes)),
        value(size(round_up(n.H) * lanes)) {}
};

/// Fills a tile from squared distances and bond classes; `derivative` [F][lanes] gets that of silu if it is not null.
template <class T>
inline void pair_features(const PairNetwork<T>& n, const T* squared, const std::uint8_t* bond, PairTile<T>& t, T* derivative) {
  T* x = t.x.data();
#pragma GCC unroll 1
  for (int l = 0; l < lanes; ++l) x[l] = squared[l];
  for (int64_t g = 0; g < n.G; ++g) {
    const T centre = n.centres[size(g)], inverse = 1 / n.widths[size(g)];
    T* y = x + (1 + g) * lanes;
#pragma GCC unroll 1
    for (int l = 0; l < lanes; ++l) {
      const T z = (squared[l] - centre) * inverse;
      y[l] = exponential(T(-0.5) * z * z);
    }
  }
  for (int64_t c = 0; c < n.classes(); ++c)
    for (int l = 0; l < lanes; ++l) x[(1 + n.G + c) * lanes + l] = bond[l] == c;
  for (int l = 0; l < lanes; ++l) x[n.I * lanes + l] = 1;
  multiply(n.w1.count, n.I + 1, n.w1.data.data(), x, t.pre.data());
  T* hidden = t.hidden.data();
  const T* pre = t.pre.data();
  for (int64_t f = 0; f < n.F; ++f) {
#pragma GCC unroll 1
    for (int l = 0; l < lanes; ++l) {
      const T a = pre[f * lanes + l], s = 1 / (1 + exponential(-a));
      hidden[f * lanes + l] = a * s;
      if (derivative) derivative[f * lanes + l] = s + a * s * (1 - s);
    }
  }
  for (int l = 0; l < lanes; ++l) hidden[n.F * lanes + l] = 1;
  multiply(n.w2.count, n.F + 1, n.w2.data.data(), hidden, t.e.data());
  const T* e = t.e.data();
  T* product = t.product.data();
  for (int64_t a = 0; a < n.E; ++a)
    for (int64_t b = a; b < n.E; ++b, product += lanes)
#pragma GCC unroll 1
      for (int l = 0; l < lanes; ++l) product[l] = e[a * lanes + l] * e[b * lanes + l];
  multiply(n.form.count, n.products, n.form.data.data(), t.product.data(), t.value.data());
}

/// The next `lanes` pairs i <= j of a molecule of n atoms, row by row; the last ones repeat.
struct Pairs {
  int64_t n, i = 0, j = 0;
  int64_t first[lanes] = {}, second[lanes] = {};
  int count = 0;

  bool next() {
    count = 0;
    for (int l = 0; l < lanes; ++l) {
      if (i < n) {
        first[l] = i, second[l] = j, ++count;
        if (++j == n) j = ++i;
      } else if (count) {
        first[l] = first[l - 1], second[l] = second[l - 1];
      }
    }
    return count > 0;
  }
};

/// Calls f, compiled for the processor's level where T is float; double is for checking gradients.
template <auto f, class T, class... Args>
void at_best_isa(Args*... args) {
  if constexpr (std::is_same_v<T, float>)
    core::multiversion<f>(args...);
  else
    f(args...);
}
}  // namespace core_3d_molecule::relational
