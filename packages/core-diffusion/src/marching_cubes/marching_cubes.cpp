// Marching cubes in the narrow band; see include/core_diffusion/marching_cubes.hpp for the rules.
#include <core/isa.hpp>
#include <core/parallel.hpp>
#include <core_diffusion/marching_cubes.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

namespace core_diffusion {
namespace {
using core::Tensor;
using std::int64_t;
using std::size_t;
using std::uint8_t;

// ---- the table of triangles -----------------------------------------------------------------------------------
// Corner c of a cell lies at (c >> 2 & 1, c >> 1 & 1, c & 1). Edge 8 * axis + c starts at corner c and runs along axis.
constexpr int axis_bit(int axis) { return 4 >> axis; }

constexpr int edge_between(int a, int b) {
  const int axis = (a ^ b) == 4 ? 0 : (a ^ b) == 2 ? 1 : 2;
  return 8 * axis + (a & b);
}

constexpr bool share_a_face(int e, int f) {
  for (int axis = 0; axis < 3; ++axis)
    for (int side = 0; side < 2; ++side) {
      const auto on = [&](int edge) { return edge / 8 != axis && ((edge & axis_bit(axis)) != 0) == (side == 1); };
      if (on(e) && on(f)) return true;
    }
  return false;
}

struct Case {
  int count = 0;                    // of triangles
  std::array<uint8_t, 15> edges{};  // three for each
};

/// The triangles of a cell whose inside corners are the bits of `inside`.
constexpr Case triangulate(int inside) {
  std::array<int, 24> next{};  // along the contour, from the edge where it enters a face's inside to where it leaves
  next.fill(-1);
  for (int axis = 0; axis < 3; ++axis)
    for (int side = 0; side < 2; ++side) {
      const int base = side * axis_bit(axis);
      int u = axis_bit((axis + 1) % 3), v = axis_bit((axis + 2) % 3);
      if (side == 0) std::swap(u, v);
      const std::array<int, 4> corner{base, base | u, base | u | v, base | v};  // counter-clockwise from outside the cell
      const auto is_in = [&](int m) { return (inside >> corner[static_cast<size_t>(m & 3)] & 1) != 0; };
      for (int m = 0; m < 4; ++m) {
        if (is_in(m) || !is_in(m + 1)) continue;
        int last = m + 1;
        while (is_in(last + 1)) ++last;
        next[static_cast<size_t>(edge_between(corner[static_cast<size_t>(m)], corner[static_cast<size_t>((m + 1) & 3)]))] =
            edge_between(corner[static_cast<size_t>(last & 3)], corner[static_cast<size_t>((last + 1) & 3)]);
      }
    }
  Case result;
  for (int start = 0; start < 24; ++start) {
    if (next[static_cast<size_t>(start)] < 0) continue;
    std::array<int, 12> loop{};
    int n = 0;
    for (int e = start; next[static_cast<size_t>(e)] >= 0;) {
      loop[static_cast<size_t>(n++)] = e;
      const int to = next[static_cast<size_t>(e)];
      next[static_cast<size_t>(e)] = -1;
      e = to;
    }
    const auto at = [&](int m) { return loop[static_cast<size_t>(m % n)]; };
    int apex = 0;  // of a fan whose inner sides all run through the inside of the cell
    for (bool good = false; !good; apex += !good) {
      good = true;
      for (int m = 2; m < n - 1; ++m) good = good && !share_a_face(at(apex), at(apex + m));
    }
    for (int m = 1; m + 1 < n; ++m, ++result.count)
      for (int corner = 0; corner < 3; ++corner)
        result.edges[static_cast<size_t>(3 * result.count + corner)] =
            static_cast<uint8_t>(corner == 0 ? at(apex) : at(apex + m + corner - 1));
  }
  return result;
}

constexpr auto table = [] {
  std::array<Case, 256> t{};
  for (int inside = 0; inside < 256; ++inside) t[static_cast<size_t>(inside)] = triangulate(inside);
  return t;
}();

// ---- volumes --------------------------------------------------------------------------------------------------
enum : uint8_t { above = 1, below = 2, unknown = 4 };

constexpr uint8_t state(float v, float level) { return v > level ? above : v <= level ? below : unknown; }

void states(const float* v, int64_t n, float level, uint8_t* out) {
  for (int64_t k = 0; k < n; ++k) out[k] = static_cast<uint8_t>((v[k] > level) | (v[k] <= level) << 1 | (v[k] != v[k]) << 2);
}

/// cut[k] = 1 if the eight nodes around cell k are known and lie on both sides.
void cut_cells(const uint8_t* a, const uint8_t* b, const uint8_t* c, const uint8_t* d, int64_t n, uint8_t* cut) {
  for (int64_t k = 0; k < n; ++k) {
    const auto both = static_cast<uint8_t>(a[k] | b[k] | c[k] | d[k] | a[k + 1] | b[k + 1] | c[k + 1] | d[k + 1]);
    cut[k] = both == (above | below);
  }
}

struct Dense {
  Tensor<const float, 3> volume;
  std::array<int64_t, 3> shape = volume.shape;

  static bool empty(int64_t, int64_t) { return false; }
  void read(int64_t i, int64_t j, float level, uint8_t* out) const {
    if (volume.stride[2] == 1) return core::multiversion<&states>(&volume(i, j, 0), shape[2], level, out);
    for (int64_t k = 0; k < shape[2]; ++k) out[k] = state(volume(i, j, k), level);
  }
  float at(int64_t i, int64_t j, int64_t k) const { return volume(i, j, k); }
};

constexpr int64_t max_size = 16384;  // nodes along an axis of a sparse volume: a table of 2 GiB for its rows

struct Sparse {
  Tensor<const int64_t, 1> index;
  Tensor<const float, 1> values;
  std::array<int64_t, 3> shape{};
  std::vector<int64_t> first;  // of each row, and the end

  Sparse(const char* op, Tensor<const int64_t, 1> index, Tensor<const float, 1> values, Tensor<const int64_t, 1> size)
      : index(index), values(values) {
    for (int d = 0; d < 3; ++d) {
      shape[static_cast<size_t>(d)] = size(d);
      if (size(d) < 0 || size(d) > max_size)
        throw core::Error("ValueError", std::string(op) + ": argument 'shape' must be three sizes in 0.." + std::to_string(max_size) +
                                            ", got " + std::to_string(size(d)));
    }
    const int64_t rows = shape[0] * shape[1], nodes = rows * shape[2], n = index.shape[0];
    first.assign(static_cast<size_t>(rows + 1), n);
    int64_t row = 0;
    for (int64_t m = 0; m < n; ++m) {
      const int64_t at = index(m);
      if (at < 0 || at >= nodes || (m > 0 && at <= index(m - 1)))
        throw core::Error("ValueError", std::string(op) + ": argument 'index' must ascend strictly within 0.." + std::to_string(nodes - 1) +
                                            ", got " + std::to_string(at) + " at " + std::to_string(m));
      while (row <= at / shape[2]) first[static_cast<size_t>(row++)] = m;
    }
  }
  int64_t begin(int64_t i, int64_t j) const { return first[static_cast<size_t>(i * shape[1] + j)]; }
  int64_t end(int64_t i, int64_t j) const { return first[static_cast<size_t>(i * shape[1] + j + 1)]; }
  bool empty(int64_t i, int64_t j) const { return begin(i, j) == end(i, j); }
  void read(int64_t i, int64_t j, float level, uint8_t* out) const {
    std::memset(out, unknown, static_cast<size_t>(shape[2]));
    const int64_t base = (i * shape[1] + j) * shape[2];
    for (int64_t m = begin(i, j); m < end(i, j); ++m) out[index(m) - base] = state(values(m), level);
  }
  float at(int64_t i, int64_t j, int64_t k) const {
    const int64_t node = (i * shape[1] + j) * shape[2] + k;
    int64_t low = begin(i, j), high = end(i, j);
    while (high - low > 1) (index((low + high) / 2) <= node ? low : high) = (low + high) / 2;
    return values(low);
  }
};

// ---- the mesh -------------------------------------------------------------------------------------------------
struct Cut {
  int64_t k;
  uint8_t inside;  // bit c: corner c is above the level
};
struct Crossing {
  int64_t k;
  int64_t first;  // the row's vertices before those of this node
  uint8_t axes;   // bit a: the edge along axis a is cut and belongs to a cut cell
};

/// What lies in one slab i: the items of its rows j one after the other, row j being [first[j], first[j + 1]).
template <class T>
struct Slab {
  std::vector<T> items;
  std::vector<size_t> first;
  int64_t count = 0, base = 0;  // of vertices or triangles: in this slab, and before it

  const T* begin(int64_t j) const { return items.data() + first[static_cast<size_t>(j)]; }
  const T* end(int64_t j) const { return items.data() + first[static_cast<size_t>(j + 1)]; }
};

/// The cut cells and the vertices of a volume.
template <class Volume>
struct Contour {
  const Volume& volume;
  float level;
  int64_t nx = volume.shape[0], ny = volume.shape[1], nz = volume.shape[2];
  std::vector<Slab<Cut>> cells;
  std::vector<Slab<Crossing>> nodes;
  int64_t vertex_count = 0, face_count = 0;

  Contour(const Volume& volume, float level) : volume(volume), level(level) {
    if (nx < 2 || ny < 2 || nz < 2) return;
    cells.resize(static_cast<size_t>(nx - 1));
    nodes.resize(static_cast<size_t>(nx));
    core::parallel_for(nx - 1, 1, [&](int64_t begin, int64_t end) { find_cells(begin, end); });
    core::parallel_for(nx, 1, [&](int64_t begin, int64_t end) {
      std::vector<uint8_t> axes(static_cast<size_t>(nz + 8));
      for (int64_t i = begin; i < end; ++i) find_nodes(i, axes.data());
    });
    for (auto& slab : nodes) slab.base = std::exchange(vertex_count, vertex_count + slab.count);
    for (auto& slab : cells) slab.base = std::exchange(face_count, face_count + slab.count);
  }

  void read_plane(int64_t i, uint8_t* plane) const {
    for (int64_t j = 0; j < ny; ++j)
      if (!volume.empty(i, j)) volume.read(i, j, level, plane + j * nz);
  }

  void find_cells(int64_t begin, int64_t end) {
    const auto size = static_cast<size_t>(ny * nz);
    std::vector<uint8_t> plane(size), other(size), cut(static_cast<size_t>(nz + 8));
    read_plane(begin, plane.data());
    for (int64_t i = begin; i < end; ++i, plane.swap(other)) {
      read_plane(i + 1, other.data());
      auto& slab = cells[static_cast<size_t>(i)];
      slab.first.assign(static_cast<size_t>(ny), 0);
      for (int64_t j = 0; j + 1 < ny; ++j) {
        if (!volume.empty(i, j) && !volume.empty(i, j + 1) && !volume.empty(i + 1, j) && !volume.empty(i + 1, j + 1)) {
          const uint8_t* row[] = {plane.data() + j * nz, plane.data() + (j + 1) * nz, other.data() + j * nz, other.data() + (j + 1) * nz};
          core::multiversion<&cut_cells>(row[0], row[1], row[2], row[3], nz - 1, cut.data());
          for_each_set(cut.data(), nz - 1, [&](int64_t k) {
            int inside = 0;
            for (int c = 0; c < 8; ++c) inside |= (row[c >> 1][k + (c & 1)] & above) << c;
            slab.items.push_back({k, static_cast<uint8_t>(inside)});
            slab.count += table[static_cast<size_t>(inside)].count;
          });
        }
        slab.first[static_cast<size_t>(j + 1)] = slab.items.size();
      }
    }
  }

  /// f(k) for each nonzero byte among n, and `bytes` has room for eight more, which are zero or rewritten.
  template <class F>
  static void for_each_set(uint8_t* bytes, int64_t n, F f) {
    std::memset(bytes + n, 0, 8);
    for (int64_t k = 0; k < n; k += 8) {
      std::uint64_t word;
      std::memcpy(&word, bytes + k, 8);
      if (word == 0) continue;
      for (int64_t m = k; m < k + 8; ++m)
        if (bytes[m]) f(m);
    }
  }

  /// The vertices that belong to the nodes of slab i: marks the cut edges of the cells around each row. `axes`
  /// is nz + 8 bytes of scratch, zero before and after.
  void find_nodes(int64_t i, uint8_t* axes) {
    auto& slab = nodes[static_cast<size_t>(i)];
    slab.first.assign(static_cast<size_t>(ny + 1), 0);
    for (int64_t j = 0; j < ny; ++j) {
      bool any = false;
      for (int corner = 0; corner < 4; ++corner) {  // of the cell, on which this row lies
        const int64_t ci = i - (corner >> 1), cj = j - (corner & 1);
        if (ci < 0 || cj < 0 || ci >= nx - 1 || cj >= ny - 1) continue;
        const auto& from = cells[static_cast<size_t>(ci)];
        for (const Cut* cell = from.begin(cj); cell != from.end(cj); ++cell, any = true)
          for (int dk = 0; dk < 2; ++dk) {
            const int c = corner << 1 | dk;
            int cut = 0;
            for (int axis = 0; axis < 3; ++axis)
              if (!(c & axis_bit(axis))) cut |= ((cell->inside >> c ^ cell->inside >> (c | axis_bit(axis))) & 1) << axis;
            axes[cell->k + dk] = static_cast<uint8_t>(axes[cell->k + dk] | cut);
          }
      }
      if (any) {
        for_each_set(axes, nz, [&](int64_t k) {
          slab.items.push_back({k, slab.count, axes[k]});
          slab.count += std::popcount(axes[k]);
        });
        std::memset(axes, 0, static_cast<size_t>(nz));
      }
      slab.first[static_cast<size_t>(j + 1)] = slab.items.size();
    }
  }

  void write_vertices(Tensor<const double, 1> origin, Tensor<const double, 1> spacing, Tensor<float, 2> out) const {
    core::parallel_for(static_cast<int64_t>(nodes.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const auto& slab = nodes[static_cast<size_t>(i)];
        int64_t row = slab.base;
        for (int64_t j = 0; j < ny; ++j)
          for (const Crossing* node = slab.begin(j); node != slab.end(j); ++node) {
            const double a = finite(volume.at(i, j, node->k));
            for (int axis = 0; axis < 3; ++axis) {
              if (!(node->axes >> axis & 1)) continue;
              const double b = finite(volume.at(i + (axis == 0), j + (axis == 1), node->k + (axis == 2)));
              const double t = (level - a) / (b - a);
              const double at[] = {static_cast<double>(i), static_cast<double>(j), static_cast<double>(node->k)};
              for (int d = 0; d < 3; ++d) out(row, d) = static_cast<float>(origin(d) + spacing(d) * (at[d] + (d == axis ? t : 0.0)));
              ++row;
            }
          }
      }
    });
  }
  static double finite(float v) { return std::clamp(v, -FLT_MAX, FLT_MAX); }

  void write_faces(bool inward, Tensor<std::int32_t, 2> out) const {
    core::parallel_for(static_cast<int64_t>(cells.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const auto& slab = cells[static_cast<size_t>(i)];
        int64_t row = slab.base;
        for (int64_t j = 0; j + 1 < ny; ++j) {
          const Slab<Crossing>* of[] = {&nodes[static_cast<size_t>(i)], &nodes[static_cast<size_t>(i + 1)]};
          std::array<const Crossing*, 4> at{};  // in the four rows of nodes around this row of cells
          for (int c = 0; c < 4; ++c) at[static_cast<size_t>(c)] = of[c >> 1]->begin(j + (c & 1));
          for (const Cut* cell = slab.begin(j); cell != slab.end(j); ++cell) {
            std::array<int64_t, 24> vertex{};
            for (int c = 0; c < 4; ++c) {
              const auto& from = *of[c >> 1];
              const Crossing*& node = at[static_cast<size_t>(c)];
              const Crossing* stop = from.end(j + (c & 1));
              while (node != stop && node->k < cell->k) ++node;
              for (const Crossing* n = node; n != stop && n->k <= cell->k + 1; ++n) {
                int64_t id = from.base + n->first;
                for (int axis = 0; axis < 3; ++axis)
                  if (n->axes >> axis & 1) vertex[static_cast<size_t>(8 * axis + (c << 1 | static_cast<int>(n->k - cell->k)))] = id++;
              }
            }
            const Case& triangles = table[cell->inside];
            for (int t = 0; t < triangles.count; ++t, ++row)
              for (int v = 0; v < 3; ++v)
                out(row, inward ? 2 - v : v) = static_cast<std::int32_t>(vertex[triangles.edges[static_cast<size_t>(3 * t + v)]]);
          }
        }
      }
    });
  }
};

float checked_level(const char* op, double level) {
  const auto narrow = static_cast<float>(level);
  if (!std::isfinite(narrow))
    throw core::Error("ValueError", std::string(op) + ": argument 'level' must be a finite float32, got " + std::to_string(level));
  return narrow;
}

template <class Volume>
void count(const char* op, const Volume& volume, double level, Tensor<int64_t, 1> counts) {
  const Contour contour(volume, checked_level(op, level));
  counts(0) = contour.vertex_count;
  counts(1) = contour.face_count;
}

template <class Volume>
void extract(const char* op, const Volume& volume, double level, Tensor<const double, 1> origin, Tensor<const double, 1> spacing,
             bool inward, Tensor<float, 2> vertices, Tensor<std::int32_t, 2> faces) {
  const float narrow = checked_level(op, level);
  for (int d = 0; d < 3; ++d) {
    if (!std::isfinite(origin(d)))
      throw core::Error("ValueError", std::string(op) + ": argument 'origin' must be finite, got " + std::to_string(origin(d)));
    if (!(spacing(d) > 0 && std::isfinite(spacing(d))))
      throw core::Error("ValueError", std::string(op) + ": argument 'spacing' must be finite and > 0, got " + std::to_string(spacing(d)));
  }
  const Contour contour(volume, narrow);
  const auto check = [&](const char* name, int64_t rows, int64_t got) {
    if (rows != got)
      throw core::Error("ValueError", std::string(op) + ": argument '" + name + "' must have " + std::to_string(rows) + " rows, got " +
                                          std::to_string(got));
  };
  check("vertices", contour.vertex_count, vertices.shape[0]);
  check("faces", contour.face_count, faces.shape[0]);
  if (contour.vertex_count > std::numeric_limits<std::int32_t>::max())
    throw core::Error("ValueError", std::string(op) + ": argument 'volume' must give fewer than 2^31 vertices, got " +
                                        std::to_string(contour.vertex_count));
  contour.write_vertices(origin, spacing, vertices);
  contour.write_faces(inward, faces);
}
}  // namespace

void marching_cubes_count(Tensor<const float, 3> volume, double level, Tensor<int64_t, 1> counts) {
  count("marching_cubes_count", Dense{volume}, level, counts);
}

void marching_cubes(Tensor<const float, 3> volume, double level, Tensor<const double, 1> origin, Tensor<const double, 1> spacing,
                    bool inward, Tensor<float, 2> vertices, Tensor<std::int32_t, 2> faces) {
  extract("marching_cubes", Dense{volume}, level, origin, spacing, inward, vertices, faces);
}

void sparse_marching_cubes_count(Tensor<const int64_t, 1> index, Tensor<const float, 1> values, Tensor<const int64_t, 1> shape,
                                 double level, Tensor<int64_t, 1> counts) {
  constexpr auto name = "sparse_marching_cubes_count";
  count(name, Sparse(name, index, values, shape), level, counts);
}

void sparse_marching_cubes(Tensor<const int64_t, 1> index, Tensor<const float, 1> values, Tensor<const int64_t, 1> shape, double level,
                           Tensor<const double, 1> origin, Tensor<const double, 1> spacing, bool inward, Tensor<float, 2> vertices,
                           Tensor<std::int32_t, 2> faces) {
  constexpr auto name = "sparse_marching_cubes";
  extract(name, Sparse(name, index, values, shape), level, origin, spacing, inward, vertices, faces);
}
}  // namespace core_diffusion
