// Relational attention on the CPU, backward; see include/core_3d_molecule/relational_attention.hpp.
#include <core/parallel.hpp>

#include <algorithm>
#include <limits>

#include "relational_molecule.hpp"

namespace core_3d_molecule {
using core::Tensor;
using std::int64_t;

namespace relational {
namespace {
constexpr int64_t most_partial_sums = 64;  // molecules are cut into so many parts for the sums over pairs

/// Sums over pairs of one part of the molecules, a number for each lane.
template <class T>
struct PairSums {
  std::vector<T> w1, w2, form, centres, widths;
  explicit PairSums(const PairNetwork<T>& n)
      : w1(size(n.F * (n.I + 1) * lanes)),
        w2(size(n.E * (n.F + 1) * lanes)),
        form(size(n.H * n.products * lanes)),
        centres(size(n.G * lanes)),
        widths(size(n.G * lanes)) {}
};

template <class T>
struct BackwardTask {
  const PairNetwork<T>& net;
  int64_t D;
  Tensor<const T, 3> out, out_edge;
  Tensor<const T, 2> lse;
  Tensor<const T, 3> grad_out, grad_out_edge;
  Tensor<const T, 2> grad_lse;
  Tensor<T, 3> q, k, v, q_edge, k_edge;
  Tensor<T, 2> positions;
};

template <class T>
struct BackwardScratch {
  PairTile<T> tile;
  Molecule<T> m;
  Rows<T> out, out_edge;  ///< the gradients of the outputs
  std::vector<T> grad_square, lse, mean, q, q_edge, k, v, k_edge, positions;
  std::vector<T> derivative, e, value, product, hidden, x;
  explicit BackwardScratch(const PairNetwork<T>& n)
      : tile(n),
        derivative(size(round_up(n.F) * lanes)),
        e(size(round_up(n.E) * lanes)),
        value(size(round_up(n.H) * lanes)),
        product(size(round_up(n.products) * lanes)),
        hidden(size(round_up(n.F) * lanes)),
        x(size(round_up(1 + n.G) * lanes)) {}
};

/// The attention of one molecule backward: gradients of its atoms' rows, and of the square into grad_square.
template <class T>
static void attention_backward(const BackwardTask<T>& task, BackwardScratch<T>& s) {
  const auto& net = task.net;
  const Molecule<T>& m = s.m;
  const int64_t H = net.H, E = net.E, D = task.D, P = m.padded, n = m.n;
  s.q.assign(size(H * D * P), 0);
  s.q_edge.assign(size(H * E * P), 0);
  s.grad_square.assign(m.square.size(), 0);
  std::vector<T> p(size(H * lanes));
  for (int64_t j = 0; j < n; ++j) {
    s.k.assign(size(H * D * lanes), 0);
    s.v.assign(size(H * D * lanes), 0);
    s.k_edge.assign(size(H * E * lanes), 0);
    const T *k = m.k.row.data() + j * H * D, *v = m.v.row.data() + j * H * D, *k_edge = m.k_edge.row.data() + j * H * E;
    for (int64_t i0 = 0; i0 < n; i0 += lanes) {
      const T* e = m.square.data() + j * (E + H) * P + i0;
      T* grad_e = s.grad_square.data() + j * (E + H) * P + i0;
      logits_of(net, m, D, i0, j, p.data());
      for (int64_t h = 0; h < H; ++h) {
        const T *g = s.out.column.data() + h * D * P + i0, *g_edge = s.out_edge.column.data() + h * E * P + i0;
        T* weight = p.data() + h * lanes;
        T slope[lanes], part[lanes];
        for (int l = 0; l < lanes; ++l) part[l] = -s.mean[size(h * P + i0 + l)];
        for (int64_t d = 0; d < D; ++d) add_scaled(part, g + d * P, v[h * D + d]);
        for (int64_t c = 0; c < E; ++c) add_product(part, g_edge + c * P, e + c * P);
#pragma GCC unroll 1
        for (int l = 0; l < lanes; ++l) {
          weight[l] = exponential(weight[l] - s.lse[size(h * P + i0 + l)]);
          slope[l] = part[l] * weight[l];
          grad_e[(E + h) * P + l] = slope[l];
        }
        const T *q = m.q.column.data() + h * D * P + i0, *q_edge = m.q_edge.column.data() + h * E * P + i0;
        T *grad_q = s.q.data() + h * D * P + i0, *grad_q_edge = s.q_edge.data() + h * E * P + i0;
        T *grad_k = s.k.data() + h * D * lanes, *grad_v = s.v.data() + h * D * lanes, *grad_k_edge = s.k_edge.data() + h * E * lanes;
        for (int64_t d = 0; d < D; ++d) {
          add_scaled(grad_q + d * P, slope, k[h * D + d]);
          add_product(grad_k + d * lanes, slope, q + d * P);
          add_product(grad_v + d * lanes, weight, g + d * P);
        }
        for (int64_t c = 0; c < E; ++c) {
          add_product(grad_q_edge + c * P, slope, e + c * P);
          add_product(grad_k_edge + c * lanes, slope, e + c * P);
          add_product(grad_e + c * P, slope, q_edge + c * P);
          add_scaled(grad_e + c * P, slope, k_edge[h * E + c]);
          add_product(grad_e + c * P, weight, g_edge + c * P);
        }
      }
    }
    for (int64_t h = 0; h < H; ++h) {
      for (int64_t d = 0; d < D; ++d) {
        task.k(m.begin + j, h, d) = over_lanes(&s.k[size((h * D + d) * lanes)]);
        task.v(m.begin + j, h, d) = over_lanes(&s.v[size((h * D + d) * lanes)]);
      }
      for (int64_t c = 0; c < E; ++c) task.k_edge(m.begin + j, h, c) = over_lanes(&s.k_edge[size((h * E + c) * lanes)]);
    }
  }
  for (int64_t i = 0; i < n; ++i)
    for (int64_t h = 0; h < H; ++h) {
      for (int64_t d = 0; d < D; ++d) task.q(m.begin + i, h, d) = s.q[size((h * D + d) * P + i)];
      for (int64_t c = 0; c < E; ++c) task.q_edge(m.begin + i, h, c) = s.q_edge[size((h * E + c) * P + i)];
    }
}

/// The perceptron and the form backward, from grad_square: sums over pairs, and the gradients of the positions.
template <class T>
static void pairs_backward(const PairNetwork<T>& net, BackwardScratch<T>& s, PairSums<T>& sums) {
  const Molecule<T>& m = s.m;
  const int64_t E = net.E, H = net.H, P = m.padded, channels = E + H;
  s.positions.assign(size(m.n * 3), 0);
  Pairs pairs{m.n};
  while (pairs.next()) {
    T squared[lanes], slope[lanes];
    std::uint8_t bond[lanes];
    T *e = s.e.data(), *value = s.value.data();
    for (int l = 0; l < lanes; ++l) {
      const int64_t i = pairs.first[l], j = pairs.second[l];
      squared[l] = m.squared(i, j);
      bond[l] = m.bonds[size(i * m.n + j)];
      const T *one = s.grad_square.data() + j * channels * P + i, *other = s.grad_square.data() + i * channels * P + j;
      const bool used = l < pairs.count, twice = i != j;
      for (int64_t c = 0; c < E; ++c) e[c * lanes + l] = used ? one[c * P] + (twice ? other[c * P] : 0) : 0;
      for (int64_t h = 0; h < H; ++h) value[h * lanes + l] = used ? one[(E + h) * P] + (twice ? other[(E + h) * P] : 0) : 0;
    }
    pair_features(net, squared, bond, s.tile, s.derivative.data());
    add_products(H, net.products, value, s.tile.product.data(), sums.form.data());
    multiply(net.form_back.count, H, net.form_back.data.data(), value, s.product.data());
    const T *grad = s.product.data(), *features = s.tile.e.data();
    for (int64_t a = 0; a < E; ++a)
      for (int64_t b = a; b < E; ++b, grad += lanes) {
        add_product(e + a * lanes, grad, features + b * lanes);
        add_product(e + b * lanes, grad, features + a * lanes);
      }
    add_products(E, net.F + 1, e, s.tile.hidden.data(), sums.w2.data());
    multiply(net.w2_back.count, E, net.w2_back.data.data(), e, s.hidden.data());
#pragma GCC unroll 1
    for (int64_t x = 0; x < net.F * lanes; ++x) s.hidden[size(x)] *= s.derivative[size(x)];
    add_products(net.F, net.I + 1, s.hidden.data(), s.tile.x.data(), sums.w1.data());
    multiply(net.w1_back.count, net.F, net.w1_back.data.data(), s.hidden.data(), s.x.data());
    for (int l = 0; l < lanes; ++l) slope[l] = s.x[size(l)];
    for (int64_t g = 0; g < net.G; ++g) {
      const T centre = net.centres[size(g)], inverse = 1 / net.widths[size(g)];
      const T *y = s.tile.x.data() + (1 + g) * lanes, *grad_y = s.x.data() + (1 + g) * lanes;
      T *centre_sum = sums.centres.data() + g * lanes, *width_sum = sums.widths.data() + g * lanes;
#pragma GCC unroll 1
      for (int l = 0; l < lanes; ++l) {
        const T z = (squared[l] - centre) * inverse, d = grad_y[l] * y[l] * z * inverse;
        centre_sum[l] += d;
        width_sum[l] += d * z;
        slope[l] -= d;
      }
    }
    for (int l = 0; l < pairs.count; ++l)
      for (int64_t c = 0; c < 3; ++c) {
        const int64_t i = pairs.first[l] * 3 + c, j = pairs.second[l] * 3 + c;
        const T d = 2 * slope[l] * (m.at[size(i)] - m.at[size(j)]);
        s.positions[size(i)] += d;
        s.positions[size(j)] -= d;
      }
  }
}

template <class T>
static void backward_molecule(const BackwardTask<T>* task_, BackwardScratch<T>* scratch, PairSums<T>* sums) {
  const BackwardTask<T>& task = *task_;
  BackwardScratch<T>& s = *scratch;
  Molecule<T>& m = s.m;
  fill_square(task.net, m, s.tile);
  s.out.load(task.grad_out, m.begin, m.n, m.padded);
  s.out_edge.load(task.grad_out_edge, m.begin, m.n, m.padded);
  s.lse.assign(size(task.net.H * m.padded), std::numeric_limits<T>::max());
  s.mean.assign(size(task.net.H * m.padded), 0);
  for (int64_t i = 0; i < m.n; ++i)
    for (int64_t h = 0; h < task.net.H; ++h) {
      T mean = -task.grad_lse(m.begin + i, h);
      for (int64_t d = 0; d < task.D; ++d) mean += task.out(m.begin + i, h, d) * task.grad_out(m.begin + i, h, d);
      for (int64_t c = 0; c < task.net.E; ++c) mean += task.out_edge(m.begin + i, h, c) * task.grad_out_edge(m.begin + i, h, c);
      s.mean[size(h * m.padded + i)] = mean;
      s.lse[size(h * m.padded + i)] = task.lse(m.begin + i, h);
    }
  attention_backward(task, s);
  pairs_backward(task.net, s, *sums);
  for (int64_t i = 0; i < m.n; ++i)
    for (int64_t c = 0; c < 3; ++c) task.positions(m.begin + i, c) = s.positions[size(i * 3 + c)];
}
}  // namespace
}  // namespace relational

template <class T>
void relational_attention_backward(Tensor<const T, 3> q, Tensor<const T, 3> k, Tensor<const T, 3> v, Tensor<const T, 3> q_edge,
                                   Tensor<const T, 3> k_edge, Tensor<const T, 2> form, Tensor<const T, 2> positions,
                                   Tensor<const std::uint8_t, 1> bonds, Tensor<const int64_t, 1> offsets, Tensor<const T, 1> centres,
                                   Tensor<const T, 1> widths, Tensor<const T, 2> w1, Tensor<const T, 1> b1, Tensor<const T, 2> w2,
                                   Tensor<const T, 1> b2, Tensor<const T, 3> out, Tensor<const T, 3> out_edge, Tensor<const T, 2> lse,
                                   Tensor<const T, 3> grad_out, Tensor<const T, 3> grad_out_edge, Tensor<const T, 2> grad_lse,
                                   Tensor<T, 3> grad_q, Tensor<T, 3> grad_k, Tensor<T, 3> grad_v, Tensor<T, 3> grad_q_edge,
                                   Tensor<T, 3> grad_k_edge, Tensor<T, 2> grad_form, Tensor<T, 2> grad_positions, Tensor<T, 1> grad_centres,
                                   Tensor<T, 1> grad_widths, Tensor<T, 2> grad_w1, Tensor<T, 1> grad_b1, Tensor<T, 2> grad_w2,
                                   Tensor<T, 1> grad_b2) {
  using namespace relational;
  Inputs<T> in{"relational_attention_backward", q, k, v, q_edge, k_edge, positions, bonds, offsets, {}};
  in.check(form, centres, widths, w1);
  const PairNetwork<T> net(form, centres, widths, w1, b1, w2, b2, true);
  const BackwardTask<T> task{net,      q.shape[2], out,    out_edge, lse,         grad_out,    grad_out_edge,
                             grad_lse, grad_q,     grad_k, grad_v,   grad_q_edge, grad_k_edge, grad_positions};
  const int64_t molecules = in.molecules(), parts = std::min(molecules, most_partial_sums);
  std::vector<PairSums<T>> sums(size(std::max<int64_t>(parts, 1)), PairSums<T>(net));
  core::parallel_for(parts, 1, [&](int64_t begin, int64_t end) {
    BackwardScratch<T> scratch(net);
    for (int64_t part = begin; part < end; ++part)
      for (int64_t b = part * molecules / parts; b < (part + 1) * molecules / parts; ++b) {
        in.load(b, scratch.m);
        at_best_isa<&backward_molecule<T>, T>(&task, &scratch, &sums[size(part)]);
      }
  });
  const auto total = [&](std::vector<T> PairSums<T>::* of, int64_t at) {
    T sum = 0;
    for (const auto& part : sums) sum += over_lanes(&(part.*of)[size(at * lanes)]);
    return sum;
  };
  for (int64_t f = 0; f < net.F; ++f)
    for (int64_t i = 0; i <= net.I; ++i) (i < net.I ? grad_w1(f, i) : grad_b1(f)) = total(&PairSums<T>::w1, f * (net.I + 1) + i);
  for (int64_t e = 0; e < net.E; ++e)
    for (int64_t f = 0; f <= net.F; ++f) (f < net.F ? grad_w2(e, f) : grad_b2(e)) = total(&PairSums<T>::w2, e * (net.F + 1) + f);
  for (int64_t h = 0; h < net.H; ++h)
    for (int64_t p = 0; p < net.products; ++p) grad_form(h, p) = total(&PairSums<T>::form, h * net.products + p);
  for (int64_t g = 0; g < net.G; ++g) {
    grad_centres(g) = total(&PairSums<T>::centres, g);
    grad_widths(g) = total(&PairSums<T>::widths, g);
  }
}

template CORE_EXPORT void relational_attention_backward(
    Tensor<const float, 3>, Tensor<const float, 3>, Tensor<const float, 3>, Tensor<const float, 3>, Tensor<const float, 3>,
    Tensor<const float, 2>, Tensor<const float, 2>, Tensor<const std::uint8_t, 1>, Tensor<const int64_t, 1>, Tensor<const float, 1>,
    Tensor<const float, 1>, Tensor<const float, 2>, Tensor<const float, 1>, Tensor<const float, 2>, Tensor<const float, 1>,
    Tensor<const float, 3>, Tensor<const float, 3>, Tensor<const float, 2>, Tensor<const float, 3>, Tensor<const float, 3>,
    Tensor<const float, 2>, Tensor<float, 3>, Tensor<float, 3>, Tensor<float, 3>, Tensor<float, 3>, Tensor<float, 3>, Tensor<float, 2>,
    Tensor<float, 2>, Tensor<float, 1>, Tensor<float, 1>, Tensor<float, 2>, Tensor<float, 1>, Tensor<float, 2>, Tensor<float, 1>);
template CORE_EXPORT void relational_attention_backward(
    Tensor<const double, 3>, Tensor<const double, 3>, Tensor<const double, 3>, Tensor<const double, 3>, Tensor<const double, 3>,
    Tensor<const double, 2>, Tensor<const double, 2>, Tensor<const std::uint8_t, 1>, Tensor<const int64_t, 1>, Tensor<const double, 1>,
    Tensor<const double, 1>, Tensor<const double, 2>, Tensor<const double, 1>, Tensor<const double, 2>, Tensor<const double, 1>,
    Tensor<const double, 3>, Tensor<const double, 3>, Tensor<const double, 2>, Tensor<const double, 3>, Tensor<const double, 3>,
    Tensor<const double, 2>, Tensor<double, 3>, Tensor<double, 3>, Tensor<double, 3>, Tensor<double, 3>, Tensor<double, 3>,
    Tensor<double, 2>, Tensor<double, 2>, Tensor<double, 1>, Tensor<double, 1>, Tensor<double, 2>, Tensor<double, 1>, Tensor<double, 2>,
    Tensor<double, 1>);
}  // namespace core_3d_molecule
