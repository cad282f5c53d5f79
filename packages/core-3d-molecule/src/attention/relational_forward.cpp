// Relational attention on the CPU, forward; see include/core_3d_molecule/relational_attention.hpp.
#include <core/parallel.hpp>

#include <algorithm>
#include <limits>

#include "relational_molecule.hpp"

namespace core_3d_molecule {
using core::Tensor;
using std::int64_t;

namespace relational {
namespace {
template <class T>
struct ForwardTask {
  const PairNetwork<T>& net;
  int64_t D;
  Tensor<T, 3> out, out_edge;
  Tensor<T, 2> lse;
};

template <class T>
struct ForwardScratch {
  PairTile<T> tile;
  Molecule<T> m;
  std::vector<T> weights, sums, edge_sums, total;
};

template <class T>
static void forward_molecule(const ForwardTask<T>* task_, ForwardScratch<T>* scratch) {
  const ForwardTask<T>& task = *task_;
  ForwardScratch<T>& s = *scratch;
  const auto& net = task.net;
  const int64_t H = net.H, E = net.E, D = task.D, P = s.m.padded;
  fill_square(net, s.m, s.tile);
  s.weights.resize(size(s.m.n * H * lanes));
  s.sums.resize(size(H * D * lanes));
  s.edge_sums.resize(size(H * E * lanes));
  s.total.resize(size(2 * H * lanes));
  T* total = s.total.data();
  T* most = total + H * lanes;
  for (int64_t i0 = 0; i0 < s.m.n; i0 += lanes) {
    std::fill_n(most, H * lanes, -std::numeric_limits<T>::infinity());
    std::fill_n(total, H * lanes, T(0));
    std::fill(s.sums.begin(), s.sums.end(), T(0));
    std::fill(s.edge_sums.begin(), s.edge_sums.end(), T(0));
    for (int64_t j = 0; j < s.m.n; ++j) {
      T* w = s.weights.data() + j * H * lanes;
      logits_of(net, s.m, D, i0, j, w);
#pragma GCC unroll 1
      for (int64_t x = 0; x < H * lanes; ++x) most[x] = w[x] > most[x] ? w[x] : most[x];
    }
    for (int64_t j = 0; j < s.m.n; ++j) {
      T* w = s.weights.data() + j * H * lanes;
#pragma GCC unroll 1
      for (int64_t x = 0; x < H * lanes; ++x) w[x] = exponential(w[x] - most[x]);
#pragma GCC unroll 1
      for (int64_t x = 0; x < H * lanes; ++x) total[x] += w[x];
      const T* v = s.m.v.row.data() + j * H * D;
      const T* e = s.m.square.data() + j * (E + H) * P + i0;
      for (int64_t h = 0; h < H; ++h) {
        const T* weight = w + h * lanes;
        T* sum = s.sums.data() + h * D * lanes;
        T* edge_sum = s.edge_sums.data() + h * E * lanes;
        for (int64_t d = 0; d < D; ++d) add_scaled(sum + d * lanes, weight, v[h * D + d]);
        for (int64_t c = 0; c < E; ++c) add_product(edge_sum + c * lanes, weight, e + c * P);
      }
    }
    const int used = static_cast<int>(std::min<int64_t>(lanes, s.m.n - i0));
    for (int l = 0; l < used; ++l) {
      const int64_t i = s.m.begin + i0 + l;
      for (int64_t h = 0; h < H; ++h) {
        const T sum = total[h * lanes + l], inverse = 1 / sum;
        for (int64_t d = 0; d < D; ++d) task.out(i, h, d) = s.sums[size((h * D + d) * lanes + l)] * inverse;
        for (int64_t c = 0; c < E; ++c) task.out_edge(i, h, c) = s.edge_sums[size((h * E + c) * lanes + l)] * inverse;
        task.lse(i, h) = most[h * lanes + l] + std::log(sum);
      }
    }
  }
}
}  // namespace
}  // namespace relational

template <class T>
void relational_attention(Tensor<const T, 3> q, Tensor<const T, 3> k, Tensor<const T, 3> v, Tensor<const T, 3> q_edge,
                          Tensor<const T, 3> k_edge, Tensor<const T, 2> form, Tensor<const T, 2> positions,
                          Tensor<const std::uint8_t, 1> bonds, Tensor<const int64_t, 1> offsets, Tensor<const T, 1> centres,
                          Tensor<const T, 1> widths, Tensor<const T, 2> w1, Tensor<const T, 1> b1, Tensor<const T, 2> w2,
                          Tensor<const T, 1> b2, Tensor<T, 3> out, Tensor<T, 3> out_edge, Tensor<T, 2> lse) {
  using namespace relational;
  Inputs<T> in{"relational_attention", q, k, v, q_edge, k_edge, positions, bonds, offsets, {}};
  in.check(form, centres, widths, w1);
  const PairNetwork<T> net(form, centres, widths, w1, b1, w2, b2, false);
  const ForwardTask<T> task{net, q.shape[2], out, out_edge, lse};
  core::parallel_for(in.molecules(), 8, [&](int64_t begin, int64_t end) {
    ForwardScratch<T> scratch{PairTile<T>(net), {}, {}, {}, {}, {}};
    for (int64_t b = begin; b < end; ++b) {
      in.load(b, scratch.m);
      at_best_isa<&forward_molecule<T>, T>(&task, &scratch);
    }
  });
}

template CORE_EXPORT void relational_attention(Tensor<const float, 3>, Tensor<const float, 3>, Tensor<const float, 3>,
                                               Tensor<const float, 3>, Tensor<const float, 3>, Tensor<const float, 2>,
                                               Tensor<const float, 2>, Tensor<const std::uint8_t, 1>, Tensor<const int64_t, 1>,
                                               Tensor<const float, 1>, Tensor<const float, 1>, Tensor<const float, 2>,
                                               Tensor<const float, 1>, Tensor<const float, 2>, Tensor<const float, 1>, Tensor<float, 3>,
                                               Tensor<float, 3>, Tensor<float, 2>);
template CORE_EXPORT void relational_attention(Tensor<const double, 3>, Tensor<const double, 3>, Tensor<const double, 3>,
                                               Tensor<const double, 3>, Tensor<const double, 3>, Tensor<const double, 2>,
                                               Tensor<const double, 2>, Tensor<const std::uint8_t, 1>, Tensor<const int64_t, 1>,
                                               Tensor<const double, 1>, Tensor<const double, 1>, Tensor<const double, 2>,
                                               Tensor<const double, 1>, Tensor<const double, 2>, Tensor<const double, 1>, Tensor<double, 3>,
                                               Tensor<double, 3>, Tensor<double, 2>);
}  // namespace core_3d_molecule
