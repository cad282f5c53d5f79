// What the two directions of relational attention on CUDA share: operands, the perceptron of a pair, tiles of pairs.
#pragma once
#include <core/cuda.hpp>
#include <core_3d_molecule/relational_attention.hpp>

#include <algorithm>

#include "dense.cuh"
#include "relational_sizes.hpp"

namespace core_3d_molecule {
using core::Tensor;
using std::int64_t;

namespace relational {

constexpr int threads = 256, warps = threads / 32;
constexpr int most_shared = 227 * 1024;  // bytes of shared memory a block may have on sm_90; asked for, and refused by the driver elsewhere

constexpr int triangle(int n) { return n * (n + 1) / 2; }
constexpr int up4(int n) { return (n + 3) / 4 * 4; }

/// Sizes that registers are laid out for, all of them powers of two; with `exact` they are the operands' own.
template <int H_, int D_, int E_, int F_, bool exact_>
struct Shape {
  static constexpr int H = H_, D = D_, E = E_, F = F_, S = triangle(E_);
  static constexpr bool exact = exact_;
};

struct Sizes {
  int H, D, E, F, G, classes, molecules;
  int64_t atoms, bonds;
  __host__ __device__ int products() const { return triangle(E); }
};

inline Sizes sizes_of(const char* op, const Tensor<const float, 3>& q, const Tensor<const float, 3>& q_edge,
                      const Tensor<const float, 2>& form, const Tensor<const std::uint8_t, 1>& bonds,
                      const Tensor<const int64_t, 1>& offsets, const Tensor<const float, 1>& centres, const Tensor<const float, 2>& w1) {
  const auto classes = check_shapes(op, q, q_edge, form, centres, w1);
  constexpr int64_t most = std::int64_t{1} << 30;
  if (q.shape[0] > most) refuse(op, "q", "have at most 2^30 atoms on CUDA");
  if (offsets.shape[0] < 1 || offsets.shape[0] > most) refuse(op, "offsets", "have 1 to 2^30 numbers on CUDA");
  const auto narrow = [&](int64_t x) { return static_cast<int>(std::min(x, most)); };
  return {narrow(q.shape[1]),
          narrow(q.shape[2]),
          narrow(q_edge.shape[2]),
          narrow(w1.shape[0]),
          narrow(centres.shape[0]),
          static_cast<int>(classes),
          narrow(offsets.shape[0] - 1),
          q.shape[0],
          bonds.shape[0]};
}

/// Contiguous operands.
struct Operands {
  const float *q, *k, *v, *q_edge, *k_edge, *form, *positions;
  const std::uint8_t* bonds;
  const float *centres, *widths, *w1, *b1, *w2, *b2;
};

/// Where a molecule's atoms and bonds begin.
struct Span {
  int begin, n;
  int64_t bonds;
};

/// Device memory of spans[molecules] and a flag that is not zero if the offsets are bad; with `order`[molecules] the molecules by
/// falling size, those of the same size and of 31 atoms and more as they come.
void find_spans(const char* op, const int64_t* offsets, const Sizes& s, Span* spans, int* bad, int* order, cudaStream_t stream);

struct DenseOperands {
  Dense<const float, 3> q, k, v, q_edge, k_edge;
  Dense<const float, 2> form, positions;
  Dense<const std::uint8_t, 1> bonds;
  Dense<const int64_t, 1> offsets;
  Dense<const float, 1> centres, widths;
  Dense<const float, 2> w1;
  Dense<const float, 1> b1;
  Dense<const float, 2> w2;
  Dense<const float, 1> b2;

  DenseOperands(const char* op, cudaStream_t stream, const Tensor<const float, 3>& q_, const Tensor<const float, 3>& k_,
                const Tensor<const float, 3>& v_, const Tensor<const float, 3>& q_edge_, const Tensor<const float, 3>& k_edge_,
                const Tensor<const float, 2>& form_, const Tensor<const float, 2>& positions_, const Tensor<const std::uint8_t, 1>& bonds_,
                const Tensor<const int64_t, 1>& offsets_, const Tensor<const float, 1>& centres_, const Tensor<const float, 1>& widths_,
                const Tensor<const float, 2>& w1_, const Tensor<const float, 1>& b1_, const Tensor<const float, 2>& w2_,
                const Tensor<const float, 1>& b2_)
      : q(op, q_, stream),
        k(op, k_, stream),
        v(op, v_, stream),
        q_edge(op, q_edge_, stream),
        k_edge(op, k_edge_, stream),
        form(op, form_, stream),
        positions(op, positions_, stream),
        bonds(op, bonds_, stream),
        offsets(op, offsets_, stream),
        centres(op, centres_, stream),
        widths(op, widths_, stream),
        w1(op, w1_, stream),
        b1(op, b1_, stream),
        w2(op, w2_, stream),
        b2(op, b2_, stream) {}
  Operands get() const {
    return {q.get(),     k.get(),       v.get(),      q_edge.get(), k_edge.get(), form.get(), positions.get(),
            bonds.get(), centres.get(), widths.get(), w1.get(),     b1.get(),     w2.get(),   b2.get()};
  }
};

/// to[0..N) = from[0..n), zeros behind it.
template <int N, bool exact>
__device__ inline void load(float (&to)[N], const float* from, int n) {
  if constexpr (exact && N % 4 == 0) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
      const float4 x = *reinterpret_cast<const float4*>(from + i);
      to[i] = x.x, to[i + 1] = x.y, to[i + 2] = x.z, to[i + 3] = x.w;
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = i < n ? from[i] : 0.f;
  }
}
template <int N, bool exact>
__device__ inline void store(float* to, const float (&from)[N], int n, bool add = false) {
  if constexpr (exact && N % 4 == 0) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
      float4 x{from[i], from[i + 1], from[i + 2], from[i + 3]};
      float4* at = reinterpret_cast<float4*>(to + i);
      if (add) x.x += at->x, x.y += at->y, x.z += at->z, x.w += at->w;
      *at = x;
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (i < n) to[i] = add ? to[i] + from[i] : from[i];
  }
}

/// Queries i0..i0+ni against keys j0..j0+nj of one molecule. On the diagonal (i0 == j0, ni == nj) a pair stands once, i <= j.
struct Tile {
  int i0, j0, ni, nj;
  __device__ bool diagonal() const { return i0 == j0; }
  __device__ int pairs() const { return diagonal() ? triangle(ni) : ni * nj; }
  __device__ int pair(int i, int j) const { return diagonal() ? triangle(max(i, j)) + min(i, j) : i * nj + j; }
  __device__ void atoms(int pair, int& i, int& j) const {
    if (!diagonal()) {
      i = pair / nj, j = pair % nj;
      return;
    }
    float root;
    asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(8.f * pair + 1.f));
    j = static_cast<int>((root - 1.f) * 0.5f);
    if (triangle(j) > pair) --j;
    if (triangle(j + 1) <= pair) ++j;
    i = pair - triangle(j);
  }
};

/// f for all tiles of queries i0..: the one on the diagonal is N wide, those beside it N / 2. Called from one place, as it is long.
template <int N, class Visit>
__device__ inline void for_tiles(int n, int i0, Visit visit) {
  const int ni = min(N, n - i0);
#pragma unroll 1
  for (int j0 = 0, nj; j0 < n; j0 += j0 == i0 ? N : N / 2) {
    nj = j0 == i0 ? ni : min(N / 2, n - j0);
    visit(Tile{i0, j0, ni, nj});
  }
}

/// The squared distance and the bond of a pair; the class is -1 if there is none such or the bond is not symmetric.
__device__ inline float pair_of(const Operands& o, const Sizes& s, const Span& m, int i, int j, int& bond) {
  const int64_t a = m.bonds + int64_t{i} * m.n + j, b = m.bonds + int64_t{j} * m.n + i;
  bond = o.bonds[a];
  if (bond >= s.classes || o.bonds[b] != bond) bond = -1;
  float squared = 0.f;
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    const float d = o.positions[int64_t{m.begin + i} * 3 + c] - o.positions[int64_t{m.begin + j} * 3 + c];
    squared += d * d;
  }
  return bond < 0 ? __int_as_float(0x7fffffff) : squared;
}

/// exp(x), zero where that is denormal: two instructions of the five of __expf.
__device__ inline float exponential(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.4426950408889634f));
  return y;
}

template <int N>
__device__ inline float dot(const float (&a)[N], const float (&b)[N], float sum) {
#pragma unroll
  for (int i = 0; i < N; ++i) sum += a[i] * b[i];
  return sum;
}

/// The perceptron in shared memory, filled up with zeros to the shape.
template <class C>
struct Network {
  float *w1, *classes, *w2, *b2, *form, *centres, *inverse;  // [1+G][F], [classes][F] with b1 in each, [F][E], [E], [S][H], [G], [G]
  std::uint8_t* pairs;                                       // [S][2]: the channels of a product
  int G, number_of_classes;

  static __host__ __device__ int floats(const Sizes& s) {
    return (1 + s.G + s.classes) * C::F + C::F * C::E + C::E + C::S * C::H + 2 * up4(s.G) + up4((C::S + 1) / 2);
  }

  /// Takes its place at `at` and returns what lies behind it.
  __device__ float* load(float* at, const Operands& o, const Sizes& s) {
    G = s.G, number_of_classes = s.classes;
    w1 = at, at += (1 + G) * C::F;
    classes = at, at += number_of_classes * C::F;
    w2 = at, at += C::F * C::E;
    b2 = at, at += C::E;
    form = at, at += C::S * C::H;
    centres = at, at += up4(G);
    inverse = at, at += up4(G);
    pairs = reinterpret_cast<std::uint8_t*>(at), at += up4((C::S + 1) / 2);
    const int I = 1 + G + number_of_classes, t = static_cast<int>(threadIdx.x);
    for (int i = t; i < I * C::F; i += threads) {
      const int f = i % C::F, row = i / C::F;
      w1[i] = f < s.F ? o.w1[f * I + row] + (row > G ? o.b1[f] : 0.f) : 0.f;
    }
    for (int i = t; i < C::F * C::E; i += threads) w2[i] = i / C::E < s.F && i % C::E < s.E ? o.w2[i % C::E * s.F + i / C::E] : 0.f;
    for (int i = t; i < C::E; i += threads) b2[i] = i < s.E ? o.b2[i] : 0.f;
    for (int i = t; i < C::S; i += threads) {
      int a = 0, row = i;
      while (row >= C::E - a) row -= C::E - a, ++a;
      const int b = a + row, from = a * s.E - triangle(a) + b;  // the same product among the operand's own channels
      pairs[2 * i] = static_cast<std::uint8_t>(a), pairs[2 * i + 1] = static_cast<std::uint8_t>(b);
      for (int h = 0; h < C::H; ++h) form[i * C::H + h] = h < s.H && b < s.E ? o.form[h * s.products() + from] : 0.f;
    }
    for (int g = t; g < G; g += threads) centres[g] = o.centres[g], inverse[g] = 1.f / o.widths[g];
    return at;
  }

  __device__ float gaussian(float squared, int g, float& z) const {
    z = (squared - centres[g]) * inverse[g];
    return exponential(-0.5f * z * z);
  }

  /// hidden[F], and the derivative of silu if it is wanted.
  __device__ void hidden(float squared, int bond, float (&out)[C::F], float (*derivative)[C::F]) const {
#pragma unroll
    for (int f = 0; f < C::F; ++f) out[f] = classes[bond * C::F + f] + w1[f] * squared;
    for (int g = 0; g < G; ++g) {
      float z;
      const float y = gaussian(squared, g, z);
#pragma unroll
      for (int f = 0; f < C::F; ++f) out[f] += w1[(1 + g) * C::F + f] * y;
    }
#pragma unroll
    for (int f = 0; f < C::F; ++f) {
      const float a = out[f], s = __fdividef(1.f, 1.f + exponential(-a));
      out[f] = a * s;
      if (derivative) (*derivative)[f] = s + a * s * (1.f - s);
    }
  }

  __device__ void features(const float (&hidden)[C::F], float (&e)[C::E]) const {
#pragma unroll
    for (int c = 0; c < C::E; ++c) e[c] = b2[c];
#pragma unroll
    for (int f = 0; f < C::F; ++f)
#pragma unroll
      for (int c = 0; c < C::E; ++c) e[c] += w2[f * C::E + c] * hidden[f];
  }

  __device__ void quadratic(const float (&e)[C::E], float (&value)[C::H]) const {
#pragma unroll
    for (int h = 0; h < C::H; ++h) value[h] = 0.f;
    int row = 0;
#pragma unroll
    for (int a = 0; a < C::E; ++a)
#pragma unroll
      for (int b = a; b < C::E; ++b, ++row) {
        const float product = e[a] * e[b];
#pragma unroll
        for (int h = 0; h < C::H; ++h) value[h] += form[row * C::H + h] * product;
      }
  }

  /// square[pair][E + H]: features and the form's value, of all pairs of a tile.
  __device__ void fill(const Operands& o, const Sizes& s, const Span& m, const Tile& tile, float* square) const {
    for (int p = static_cast<int>(threadIdx.x); p < tile.pairs(); p += threads) {
      int i, j, bond;
      tile.atoms(p, i, j);
      const float squared = pair_of(o, s, m, tile.i0 + i, tile.j0 + j, bond);
      float layer[C::F], e[C::E], value[C::H];
      hidden(squared, max(bond, 0), layer, nullptr);
      features(layer, e);
      quadratic(e, value);
      store<C::E, true>(square + p * (C::E + C::H), e, C::E);
      store<C::H, true>(square + p * (C::E + C::H) + C::E, value, C::H);
    }
  }
};

/// Runs `launch` with the shape for these sizes; refuses those that no shape holds.
template <class Launch>
void with_shape(const char* op, const Sizes& s, Launch launch) {
  if (s.H == 8 && s.D == 8 && s.E == 16 && s.F == 16 && s.G < 16 && s.classes <= 8) return launch(Shape<8, 8, 16, 16, true>{});
  if (s.H <= 16 && s.D <= 32 && s.E <= 16 && s.F <= 32) return launch(Shape<16, 32, 16, 32, false>{});
  throw core::Error("ValueError", std::string(op) +
                                      ": argument 'q_edge' must have at most 16 heads and channels on CUDA, q at most 32 "
                                      "channels, w1 at most 32 rows");
}
}  // namespace relational
}  // namespace core_3d_molecule
