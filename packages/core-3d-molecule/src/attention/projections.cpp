// From projections of [h; e] to relational attention and back, on the CPU; see include/core_3d_molecule/relational_projections.hpp.
#include <core/parallel.hpp>
#include <core_3d_molecule/relational_projections.hpp>

#include <algorithm>
#include <cstring>
#include <vector>

#include "projection_sizes.hpp"
#include "relational_pairs.hpp"

namespace core_3d_molecule {
using core::Tensor;
using std::int64_t;

namespace relational {
namespace {
constexpr int64_t atoms_per_part = 256;

/// A matrix of each head, [H][M][width]: N columns, filled up with zeros to whole vectors.
template <class T>
struct Heads {
  int64_t H, M, N, width;
  std::vector<T> data;

  Heads(int64_t H_, int64_t M_, int64_t N_) : H(H_), M(M_), N(N_), width(round_up(N_)), data(size(H * M * width)) {}
  Heads(const Tensor<const T, 3>& w, bool transposed, T scale)
      : Heads(w.shape[0], w.shape[transposed ? 2 : 1], w.shape[transposed ? 1 : 2]) {
    for (int64_t h = 0; h < H; ++h)
      for (int64_t m = 0; m < M; ++m)
        for (int64_t n = 0; n < N; ++n) at(h, m, n) = scale * (transposed ? w(h, n, m) : w(h, m, n));
  }
  T& at(int64_t h, int64_t m, int64_t n) { return data[size((h * M + m) * width + n)]; }
};

/// y[h][n] += x[h][m] w[h][m][n].
template <class T>
static void product(const Heads<T>* w, const T* x, T* y) {
  for (int64_t h = 0; h < w->H; ++h, x += w->M)
    for (int64_t n = 0; n < w->width; n += lanes, y += lanes) {
      typename Vector<T>::type sum, row;
      std::memcpy(&sum, y, sizeof sum);
      const T* at = w->data.data() + h * w->M * w->width + n;
      for (int64_t m = 0; m < w->M; ++m, at += w->width) {
        std::memcpy(&row, at, sizeof row);
        sum += row * x[m];
      }
      std::memcpy(y, &sum, sizeof sum);
    }
}

/// w[h][m][n] += x[h][m] y[h][n].
template <class T>
static void outer(Heads<T>* w, const T* x, const T* y) {
  T* row = w->data.data();
  for (int64_t h = 0; h < w->H; ++h, y += w->width)
    for (int64_t m = 0; m < w->M; ++m, ++x, row += w->width)
      for (int64_t n = 0; n < w->width; n += lanes) add_scaled(row + n, y + n, *x);
}

template <class T, int N>
bool dense_rows(const Tensor<T, N>& x) {
  return x.stride[2] == 1 && x.stride[1] == x.shape[2];
}

/// One atom's rows in one piece, each `width` long.
template <class T>
struct Row {
  int64_t width;
  std::vector<T> data;
  Row(const Tensor<const T, 3>& x, int64_t width_) : width(width_), data(size(x.shape[1] * width)) {}
  const T* load(const Tensor<const T, 3>& x, int64_t atom) {
    if (width == x.shape[2] && dense_rows(x)) return &x(atom, 0, 0);
    for (int64_t h = 0; h < x.shape[1]; ++h)
      for (int64_t c = 0; c < x.shape[2]; ++c) data[size(h * width + c)] = x(atom, h, c);
    return data.data();
  }
};

/// to[a] = factor base[a] + x[a] w for all atoms; no base is zero.
template <class T>
void products(const Tensor<const T, 3>& x, const Heads<T>& w, const Tensor<const T, 3>* base, T factor, const Tensor<T, 3>& to) {
  core::parallel_for(x.shape[0], atoms_per_part, [&](int64_t begin, int64_t end) {
    Row<T> row(x, w.M);
    std::vector<T> sum(size(w.H * w.width));
    const bool direct = w.width == w.N && dense_rows(to);
    for (int64_t a = begin; a < end; ++a) {
      T* y = direct ? &to(a, 0, 0) : sum.data();
      std::fill_n(y, w.H * w.width, T(0));
      if (base)
        for (int64_t h = 0; h < w.H; ++h)
          for (int64_t n = 0; n < w.N; ++n) y[h * w.width + n] = factor * (*base)(a, h, n);
      at_best_isa<&product<T>, T>(&w, row.load(x, a), y);
      if (direct) continue;
      for (int64_t h = 0; h < w.H; ++h)
        for (int64_t n = 0; n < w.N; ++n) to(a, h, n) = y[h * w.width + n];
    }
  });
}
template <class T>
void products(const Tensor<const T, 3>& x, const Heads<T>& w, const Tensor<T, 3>& to) {
  products(x, w, static_cast<const Tensor<const T, 3>*>(nullptr), T(0), to);
}

/// The sum over atoms of x[a]^T y[a].
template <class T>
Heads<T> outers(const Tensor<const T, 3>& x, const Tensor<const T, 3>& y) {
  const int64_t parts = (x.shape[0] + atoms_per_part - 1) / atoms_per_part;
  std::vector<Heads<T>> sums(size(std::max<int64_t>(parts, 1)), Heads<T>(x.shape[1], x.shape[2], y.shape[2]));
  core::parallel_for(parts, 1, [&](int64_t begin, int64_t end) {
    Row<T> one(x, x.shape[2]), other(y, round_up(y.shape[2]));
    for (int64_t p = begin; p < end; ++p)
      for (int64_t a = p * atoms_per_part; a < std::min((p + 1) * atoms_per_part, x.shape[0]); ++a)
        at_best_isa<&outer<T>, T>(&sums[size(p)], one.load(x, a), other.load(y, a));
  });
  for (std::size_t p = 1; p < sums.size(); ++p)
    for (std::size_t i = 0; i < sums[0].data.size(); ++i) sums[0].data[i] += sums[p].data[i];
  return std::move(sums[0]);
}
}  // namespace
}  // namespace relational

template <class T>
void relational_projections(Tensor<const T, 3> q, Tensor<const T, 3> k, Tensor<const T, 3> edge_q, Tensor<const T, 3> edge_k, double scale,
                            Tensor<T, 3> scaled_q, Tensor<T, 3> q_edge, Tensor<T, 3> k_edge, Tensor<T, 2> form) {
  using namespace relational;
  check_projections("relational_projections", edge_q, form);
  const T s = static_cast<T>(scale);
  for (int64_t a = 0; a < q.shape[0]; ++a)
    for (int64_t h = 0; h < q.shape[1]; ++h)
      for (int64_t d = 0; d < q.shape[2]; ++d) scaled_q(a, h, d) = s * q(a, h, d);
  products(q, Heads<T>(edge_k, false, s), q_edge);
  products(k, Heads<T>(edge_q, false, s), k_edge);
  const int64_t D = edge_q.shape[1], E = edge_q.shape[2];
  for (int64_t h = 0; h < edge_q.shape[0]; ++h)
    for (int64_t e = 0, at = 0; e < E; ++e)
      for (int64_t f = e; f < E; ++f, ++at) {
        T sum = 0;
        for (int64_t d = 0; d < D; ++d) sum += edge_q(h, d, e) * edge_k(h, d, f) + (e == f ? T(0) : edge_q(h, d, f) * edge_k(h, d, e));
        form(h, at) = s * sum;
      }
}

template <class T>
void relational_projections_backward(Tensor<const T, 3> q, Tensor<const T, 3> k, Tensor<const T, 3> edge_q, Tensor<const T, 3> edge_k,
                                     double scale, Tensor<const T, 3> grad_scaled_q, Tensor<const T, 3> grad_q_edge,
                                     Tensor<const T, 3> grad_k_edge, Tensor<const T, 2> grad_form, Tensor<T, 3> grad_q, Tensor<T, 3> grad_k,
                                     Tensor<T, 3> grad_edge_q, Tensor<T, 3> grad_edge_k) {
  using namespace relational;
  check_projections("relational_projections_backward", edge_q, grad_form);
  const T s = static_cast<T>(scale);
  products(grad_q_edge, Heads<T>(edge_k, true, s), &grad_scaled_q, s, grad_q);
  products(grad_k_edge, Heads<T>(edge_q, true, s), grad_k);
  Heads<T> to_q = outers(k, grad_k_edge), to_k = outers(q, grad_q_edge);
  const int64_t D = edge_q.shape[1], E = edge_q.shape[2];
  for (int64_t h = 0; h < edge_q.shape[0]; ++h)
    for (int64_t d = 0; d < D; ++d)
      for (int64_t e = 0; e < E; ++e) {
        T by_form_q = 0, by_form_k = 0;
        for (int64_t f = 0; f < E; ++f) {
          const T g = grad_form(h, product_of(e, f, E));
          by_form_q += g * edge_k(h, d, f), by_form_k += g * edge_q(h, d, f);
        }
        grad_edge_q(h, d, e) = s * (to_q.at(h, d, e) + by_form_q);
        grad_edge_k(h, d, e) = s * (to_k.at(h, d, e) + by_form_k);
      }
}

template <class T>
void relational_values(Tensor<const T, 3> out, Tensor<const T, 3> out_edge, Tensor<const T, 3> edge_v, Tensor<T, 3> values) {
  relational::products(out_edge, relational::Heads<T>(edge_v, true, T(1)), &out, T(1), values);
}

template <class T>
void relational_values_backward(Tensor<const T, 3> out_edge, Tensor<const T, 3> edge_v, Tensor<const T, 3> grad_values,
                                Tensor<T, 3> grad_out_edge, Tensor<T, 3> grad_edge_v) {
  using namespace relational;
  products(grad_values, Heads<T>(edge_v, false, T(1)), grad_out_edge);
  Heads<T> sum = outers(grad_values, out_edge);
  for (int64_t h = 0; h < sum.H; ++h)
    for (int64_t d = 0; d < sum.M; ++d)
      for (int64_t e = 0; e < sum.N; ++e) grad_edge_v(h, d, e) = sum.at(h, d, e);
}

#define CORE_PROJECTIONS(T)                                                                                                                \
  template CORE_EXPORT void relational_projections(Tensor<const T, 3>, Tensor<const T, 3>, Tensor<const T, 3>, Tensor<const T, 3>, double, \
                                                   Tensor<T, 3>, Tensor<T, 3>, Tensor<T, 3>, Tensor<T, 2>);                                \
  template CORE_EXPORT void relational_projections_backward(                                                                               \
      Tensor<const T, 3>, Tensor<const T, 3>, Tensor<const T, 3>, Tensor<const T, 3>, double, Tensor<const T, 3>, Tensor<const T, 3>,      \
      Tensor<const T, 3>, Tensor<const T, 2>, Tensor<T, 3>, Tensor<T, 3>, Tensor<T, 3>, Tensor<T, 3>);                                     \
  template CORE_EXPORT void relational_values(Tensor<const T, 3>, Tensor<const T, 3>, Tensor<const T, 3>, Tensor<T, 3>);                   \
  template CORE_EXPORT void relational_values_backward(Tensor<const T, 3>, Tensor<const T, 3>, Tensor<const T, 3>, Tensor<T, 3>,           \
                                                       Tensor<T, 3>);
CORE_PROJECTIONS(float)
CORE_PROJECTIONS(double)
#undef CORE_PROJECTIONS
}  // namespace core_3d_molecule
