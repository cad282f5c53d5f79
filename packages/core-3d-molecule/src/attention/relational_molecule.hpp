// One molecule of relational attention on the CPU: its rows, the square of its pairs, logits; and the inputs' checks.
//
// The features of a pair are symmetric, so the perceptron runs once for i <= j, `lanes` pairs side by side, into a
// square [j][E + H][i] of one molecule: features and the quadratic form of each head. The attention then runs
// `lanes` atoms i side by side over all j.
#pragma once
#include <core_3d_molecule/relational_attention.hpp>

#include <string>

#include "relational_pairs.hpp"
#include "relational_sizes.hpp"

namespace core_3d_molecule::relational {
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
}  // namespace core_3d_molecule::relational
