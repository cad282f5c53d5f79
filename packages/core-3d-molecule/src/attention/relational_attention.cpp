// Relational attention, forward and backward; see include/core_3d_molecule/relational_attention.hpp.
//
// The features of a pair are symmetric, so the perceptron runs once for i <= j, `lanes` pairs side by side, into a
// square [j][E + H][i] of one molecule: features and the quadratic form of each head. The attention then runs
// `lanes` atoms i side by side over all j.
#include <core/exp.hpp>
#include <core/isa.hpp>
#include <core/parallel.hpp>
#include <core_3d_molecule/relational_attention.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "relational_sizes.hpp"

namespace core_3d_molecule {
namespace {
using core::Tensor;
using std::int64_t;

constexpr int lanes = 8, rows = 8;
constexpr int64_t most_partial_sums = 64;  // molecules are cut into so many parts for the sums over pairs

constexpr int64_t round_up(int64_t n) { return (n + lanes - 1) / lanes * lanes; }
std::size_t size(int64_t n) { return static_cast<std::size_t>(n); }

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

/// One molecule's rows, copied from any strides: as rows [n][width] and as columns [width][padded].
template <class T>
struct Rows {
  std::vector<T> row, column;

  void load(const Tensor<const T, 3>& x, int64_t begin, int64_t n, int64_t padded) {
    const int64_t heads = x.shape[1], width = heads * x.shape[2];
    row.assign(size(n * width), 0);
    column.assign(size(width * padded), 0);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t h = 0, c = 0; h < heads; ++h)
        for (int64_t d = 0; d < x.shape[2]; ++d, ++c) column[size(c * padded + i)] = row[size(i * width + c)] = x(begin + i, h, d);
  }
};

template <class T>
struct Molecule {
  int64_t n = 0, padded = 0, begin = 0;
  Rows<T> q, k, v, q_edge, k_edge;
  std::vector<T> at, square;  ///< positions [n][3]; [j][E + H][i]
  std::vector<std::uint8_t> bonds;

  T squared(int64_t i, int64_t j) const {
    T s = 0;
    for (int64_t c = 0; c < 3; ++c) {
      const T d = at[size(i * 3 + c)] - at[size(j * 3 + c)];
      s += d * d;
    }
    return s;
  }
};

/// The square of one molecule.
template <class T>
inline void fill_square(const PairNetwork<T>& net, Molecule<T>& m, PairTile<T>& tile) {
  const int64_t channels = net.E + net.H;
  m.square.assign(size(m.n * channels * m.padded), 0);
  Pairs pairs{m.n};
  while (pairs.next()) {
    T squared[lanes];
    std::uint8_t bond[lanes];
    for (int l = 0; l < lanes; ++l) {
      squared[l] = m.squared(pairs.first[l], pairs.second[l]);
      bond[l] = m.bonds[size(pairs.first[l] * m.n + pairs.second[l])];
    }
    pair_features<T>(net, squared, bond, tile, nullptr);
    for (int l = 0; l < pairs.count; ++l) {
      const int64_t i = pairs.first[l], j = pairs.second[l];
      T* one = m.square.data() + j * channels * m.padded + i;
      T* other = m.square.data() + i * channels * m.padded + j;
      for (int64_t c = 0; c < net.E; ++c) one[c * m.padded] = other[c * m.padded] = tile.e[size(c * lanes + l)];
      for (int64_t h = 0; h < net.H; ++h) one[(net.E + h) * m.padded] = other[(net.E + h) * m.padded] = tile.value[size(h * lanes + l)];
    }
  }
}

/// logits[h][lane] of the atoms i0.. towards j.
template <class T>
inline void logits_of(const PairNetwork<T>& net, const Molecule<T>& m, int64_t D, int64_t i0, int64_t j, T* logits) {
  const int64_t P = m.padded, E = net.E, H = net.H;
  const T* e = m.square.data() + j * (E + H) * P + i0;
  const T *q = m.q.column.data() + i0, *q_edge = m.q_edge.column.data() + i0;
  const T *k = m.k.row.data() + j * H * D, *k_edge = m.k_edge.row.data() + j * H * E;
  for (int64_t h = 0; h < H; ++h) {
    typename Vector<T>::type sum, x, y;
    std::memcpy(&sum, e + (E + h) * P, sizeof sum);
    for (int64_t d = 0; d < D; ++d) {
      std::memcpy(&x, q + (h * D + d) * P, sizeof x);
      sum += x * k[h * D + d];
    }
    for (int64_t c = 0; c < E; ++c) {
      std::memcpy(&x, q_edge + (h * E + c) * P, sizeof x);
      std::memcpy(&y, e + c * P, sizeof y);
      sum += (x + k_edge[h * E + c]) * y;
    }
    std::memcpy(logits + h * lanes, &sum, sizeof sum);
  }
}

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

/// What both directions read, its values checked once.
template <class T>
struct Inputs {
  const char* op;
  Tensor<const T, 3> q, k, v, q_edge, k_edge;
  Tensor<const T, 2> positions;
  Tensor<const std::uint8_t, 1> bonds;
  Tensor<const int64_t, 1> offsets;
  std::vector<int64_t> bond_offsets;

  void check(const Tensor<const T, 2>& form, const Tensor<const T, 1>& centres, const Tensor<const T, 1>& widths,
             const Tensor<const T, 2>& w1) {
    const int64_t classes = check_shapes(op, q, q_edge, form, centres, w1);
    for (int64_t g = 0; g < widths.shape[0]; ++g)
      if (!(widths(g) > 0)) refuse(op, "widths", "be above 0, got " + text(static_cast<double>(widths(g))));
    check_offsets(op, "offsets", offsets, q.shape[0]);
    bond_offsets.push_back(0);
    for (int64_t b = 0; b + 1 < offsets.shape[0]; ++b) {
      const int64_t n = offsets(b + 1) - offsets(b);
      if (n > relational_attention_atoms)
        refuse(op, "offsets",
               "give no molecule more than " + std::to_string(relational_attention_atoms) + " atoms, got " + std::to_string(n));
      bond_offsets.push_back(bond_offsets.back() + n * n);
    }
    if (bond_offsets.back() != bonds.shape[0])
      refuse(op, "bonds",
             "have " + std::to_string(bond_offsets.back()) + " classes, one for each pair of atoms, got " + std::to_string(bonds.shape[0]));
    for (int64_t b = 0; b + 1 < offsets.shape[0]; ++b) {
      const int64_t n = offsets(b + 1) - offsets(b), at = bond_offsets[size(b)];
      for (int64_t i = 0; i < n; ++i)
        for (int64_t j = i; j < n; ++j) {
          const int one = bonds(at + i * n + j), other = bonds(at + j * n + i);
          if (one >= classes)
            refuse(op, "bonds", "be below the number of classes, " + std::to_string(classes) + ", got " + std::to_string(one));
          if (one != other)
            refuse(op, "bonds",
                   "be symmetric, got " + std::to_string(one) + " and " + std::to_string(other) + " in molecule " + std::to_string(b));
        }
    }
  }

  void load(int64_t b, Molecule<T>& m) const {
    m.begin = offsets(b), m.n = offsets(b + 1) - m.begin, m.padded = round_up(m.n);
    m.q.load(q, m.begin, m.n, m.padded);
    m.k.load(k, m.begin, m.n, m.padded);
    m.v.load(v, m.begin, m.n, m.padded);
    m.q_edge.load(q_edge, m.begin, m.n, m.padded);
    m.k_edge.load(k_edge, m.begin, m.n, m.padded);
    m.at.clear(), m.bonds.clear();
    for (int64_t i = 0; i < m.n; ++i)
      for (int64_t c = 0; c < 3; ++c) m.at.push_back(positions(m.begin + i, c));
    const int64_t at = bond_offsets[size(b)];
    for (int64_t p = 0; p < m.n * m.n; ++p) m.bonds.push_back(bonds(at + p));
  }
  int64_t molecules() const { return offsets.shape[0] - 1; }
};

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

/// Calls f, compiled for the processor's level where T is float; double is for checking gradients.
template <auto f, class T, class... Args>
void at_best_isa(Args*... args) {
  if constexpr (std::is_same_v<T, float>)
    core::multiversion<f>(args...);
  else
    f(args...);
}
}  // namespace

template <class T>
void relational_attention(Tensor<const T, 3> q, Tensor<const T, 3> k, Tensor<const T, 3> v, Tensor<const T, 3> q_edge,
                          Tensor<const T, 3> k_edge, Tensor<const T, 2> form, Tensor<const T, 2> positions,
                          Tensor<const std::uint8_t, 1> bonds, Tensor<const int64_t, 1> offsets, Tensor<const T, 1> centres,
                          Tensor<const T, 1> widths, Tensor<const T, 2> w1, Tensor<const T, 1> b1, Tensor<const T, 2> w2,
                          Tensor<const T, 1> b2, Tensor<T, 3> out, Tensor<T, 3> out_edge, Tensor<T, 2> lse) {
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

template CORE_EXPORT void relational_attention(Tensor<const float, 3>, Tensor<const float, 3>, Tensor<const float, 3>,
                                               Tensor<const float, 3>, Tensor<const float, 3>, Tensor<const float, 2>,
                                               Tensor<const float, 2>, Tensor<const std::uint8_t, 1>, Tensor<const int64_t, 1>,
                                               Tensor<const float, 1>, Tensor<const float, 1>, Tensor<const float, 2>,
                                               Tensor<const float, 1>, Tensor<const float, 2>, Tensor<const float, 1>, Tensor<float, 3>,
                                               Tensor<float, 3>, Tensor<float, 2>);
template CORE_EXPORT void relational_attention_backward(
    Tensor<const float, 3>, Tensor<const float, 3>, Tensor<const float, 3>, Tensor<const float, 3>, Tensor<const float, 3>,
    Tensor<const float, 2>, Tensor<const float, 2>, Tensor<const std::uint8_t, 1>, Tensor<const int64_t, 1>, Tensor<const float, 1>,
    Tensor<const float, 1>, Tensor<const float, 2>, Tensor<const float, 1>, Tensor<const float, 2>, Tensor<const float, 1>,
    Tensor<const float, 3>, Tensor<const float, 3>, Tensor<const float, 2>, Tensor<const float, 3>, Tensor<const float, 3>,
    Tensor<const float, 2>, Tensor<float, 3>, Tensor<float, 3>, Tensor<float, 3>, Tensor<float, 3>, Tensor<float, 3>, Tensor<float, 2>,
    Tensor<float, 2>, Tensor<float, 1>, Tensor<float, 1>, Tensor<float, 2>, Tensor<float, 1>, Tensor<float, 2>, Tensor<float, 1>);
template CORE_EXPORT void relational_attention(Tensor<const double, 3>, Tensor<const double, 3>, Tensor<const double, 3>,
                                               Tensor<const double, 3>, Tensor<const double, 3>, Tensor<const double, 2>,
                                               Tensor<const double, 2>, Tensor<const std::uint8_t, 1>, Tensor<const int64_t, 1>,
                                               Tensor<const double, 1>, Tensor<const double, 1>, Tensor<const double, 2>,
                                               Tensor<const double, 1>, Tensor<const double, 2>, Tensor<const double, 1>, Tensor<double, 3>,
                                               Tensor<double, 3>, Tensor<double, 2>);
template CORE_EXPORT void relational_attention_backward(
    Tensor<const double, 3>, Tensor<const double, 3>, Tensor<const double, 3>, Tensor<const double, 3>, Tensor<const double, 3>,
    Tensor<const double, 2>, Tensor<const double, 2>, Tensor<const std::uint8_t, 1>, Tensor<const int64_t, 1>, Tensor<const double, 1>,
    Tensor<const double, 1>, Tensor<const double, 2>, Tensor<const double, 1>, Tensor<const double, 2>, Tensor<const double, 1>,
    Tensor<const double, 3>, Tensor<const double, 3>, Tensor<const double, 2>, Tensor<const double, 3>, Tensor<const double, 3>,
    Tensor<const double, 2>, Tensor<double, 3>, Tensor<double, 3>, Tensor<double, 3>, Tensor<double, 3>, Tensor<double, 3>,
    Tensor<double, 2>, Tensor<double, 2>, Tensor<double, 1>, Tensor<double, 1>, Tensor<double, 2>, Tensor<double, 1>, Tensor<double, 2>,
    Tensor<double, 1>);
}  // namespace core_3d_molecule
