// What the forward and the backward pass on CUDA share: scratch memory, the projected Gaussians and the tiles' lists, and
// the part of a tile that a warp blends.
#pragma once
#include <cuda_fp16.h>
#include <core/cuda.hpp>

#include <algorithm>
#include <optional>

#include "../dynamic/slice.hpp"

namespace core_splatting {

constexpr int block = 256;
constexpr std::uint32_t culled = 0xffffffffu;

inline void check(cudaError_t e, const char* what) { core::check_cuda("rasterize", e, what); }

/// One allocation, handed out in parts: ask for all parts, allocate, then read the pointers.
class Scratch {
 public:
  Scratch(int device, cudaStream_t stream) : device_(device), stream_(stream) {}
  Scratch(const Scratch&) = delete;

  template <class T>
  std::size_t part(std::int64_t n) {
    const std::size_t at = size_;
    size_ += (static_cast<std::size_t>(core::checked_mul(n, sizeof(T), "rasterize: scratch")) + 255) / 256 * 256;
    return at;
  }
  void allocate() { memory_.emplace("rasterize", device_, stream_, static_cast<std::int64_t>(size_ + 256)); }
  template <class T>
  T* at(std::size_t part) const {
    return reinterpret_cast<T*>(memory_->get<char>() + part);
  }

 private:
  int device_;
  cudaStream_t stream_;
  std::optional<core::DeviceScratch> memory_;
  std::size_t size_ = 0;
};

/// An element of float32 or float16.
__device__ inline float number(float x) { return x; }
__device__ inline float number(core::float16 x) { return __half2float(__ushort_as_half(x.bits)); }
__device__ inline void set(float& to, float x) { to = x; }
__device__ inline void set(core::float16& to, float x) { to.bits = __half_as_ushort(__float2half_rn(x)); }

/// What is rendered; `Source`: Gaussians or Dynamic.
template <class Source>
struct SceneFrom {
  Source gaussians;
  In<3> viewmats, Ks;
};
using Scene = SceneFrom<Gaussians>;

/// The camera of the arrays, not checked.
template <class Source>
__device__ Camera load_camera(const SceneFrom<Source>& in, int c) {
  Camera cam;
  for (int row = 0; row < 3; ++row) {
    for (int k = 0; k < 3; ++k) cam.r[3 * row + k] = at(in.viewmats, c, row, k);
    cam.t[row] = at(in.viewmats, c, row, 3);
  }
  cam.fx = at(in.Ks, c, 0, 0), cam.fy = at(in.Ks, c, 1, 1), cam.cx = at(in.Ks, c, 0, 2), cam.cy = at(in.Ks, c, 1, 2);
  return cam;
}

__device__ inline Splat load_splat(const Splat* splats, std::uint32_t i) {
  const float4* in = reinterpret_cast<const float4*>(splats + i);
  const float4 a = in[0], b = in[1];
  return {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
}

__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// The projected Gaussians (i = camera * N + n) and which of them each tile sees, front to back. The memory is the
/// workspace that the forward pass leaves to the backward pass. If there are more (tile, Gaussian) pairs than `capacity`,
/// a tile's list is that of all Gaussians of all cameras in depth order: right, but slow.
struct Lists {
  unsigned long long* pairs;  // the number of pairs
  std::uint32_t* begins;      // of the tiles in ids, and the end
  Splat* splats;              // nothing where culled
  std::uint32_t* depths;      // the bits of the depth, or `culled`
  std::uint32_t* order;       // all by depth, if there was no room for the lists
  std::uint32_t* ids;
  std::uint32_t capacity;
  int gaussians, total, tiles;

  /// In 4 bytes; what the ids take is to be added.
  static std::int64_t size_without_ids(std::int64_t total, std::int64_t tiles);
  Lists(std::int32_t* memory, std::int64_t size, std::int64_t gaussians, std::int64_t total, std::int64_t tiles);
};

/// The list of one tile.
struct TileList {
  const std::uint32_t* ids;
  std::uint32_t begin, end;
  bool all;  // of other tiles and cameras too
  __device__ TileList(const Lists& lists, int tile) : ids(lists.ids), all(*lists.pairs > lists.capacity) {
    if (all)
      ids = lists.order, begin = 0, end = static_cast<std::uint32_t>(lists.total);
    else
      begin = lists.begins[tile], end = lists.begins[tile + 1];
  }
  /// Whether an entry is a Gaussian of this camera.
  __device__ bool holds(const Lists& lists, std::uint32_t id, int camera) const {
    return !all || (lists.depths[id] != culled && static_cast<int>(id) / lists.gaussians == camera);
  }
};

/// Lists in the memory that the caller gives, or in scratch of their own.
class OwnLists {
  std::optional<core::DeviceScratch> memory_;

 public:
  Lists lists;
  template <class Workspace>  // of the forward or of the backward pass
  OwnLists(const Workspace& workspace, int device, std::int64_t gaussians, std::int64_t total, std::int64_t tiles, cudaStream_t stream)
      : lists(workspace ? Lists(const_cast<std::int32_t*>(workspace->data), workspace->shape[0], gaussians, total, tiles)
                        : in_scratch(device, gaussians, total, tiles, stream)) {
    if (workspace && !workspace->contiguous()) throw core::Error("ValueError", "rasterize: argument 'workspace' must be contiguous");
  }

 private:
  Lists in_scratch(int device, std::int64_t gaussians, std::int64_t total, std::int64_t tiles, cudaStream_t stream) {
    const std::int64_t size = workspace_size(device, total, tiles);
    memory_.emplace("rasterize", device, stream, size * 4);
    return {memory_->get<std::int32_t>(), size, gaussians, total, tiles};
  }
};

/// Sorts each tile's list front to back, or all Gaussians if there was no room for the lists. `expected`: the length of a list,
/// in the mean.
void sort_lists(const Lists& lists, double expected, cudaStream_t stream);

/// Projects, bins and sorts on `stream`; the host does not wait.
template <class Source>
void prepare(const SceneFrom<Source>& in, const Options& o, const Lists& lists, int device, cudaStream_t stream);

/// Blends all tiles.
template <class T>
void blend_lists(const Lists& lists, const Options& o, const core::Tensor<const T, 3>& colors, const MaybeIn<2>& backgrounds,
                 const core::Tensor<T, 4>& out_colors, const Out<3>& out_alphas, cudaStream_t stream);

inline unsigned blocks_for(std::int64_t n) { return static_cast<unsigned>((n + block - 1) / block); }

/// Whether the ellipse's rows reach 8x4 pixels.
__device__ inline bool reaches(const Splat& s, int left, int top) {
  const float x = s.x - static_cast<float>(left), dy = static_cast<float>(top) + 0.5f - s.y;
  float from, to;
  ellipse_span(s, dy, dy + 3.f, from, to);
  return dy <= s.extent_y && dy + 3.f >= -s.extent_y && x + from <= 7.52f && x + to >= 0.48f;
}

/// Which of the eight strips of 8x4 pixels of a tile the ellipse's rows reach: a bit for each of the four of the left half, from
/// above, and of the right.
__device__ inline std::uint32_t reached_of_tile(const Splat& s, int left, int top) {
  const float x = s.x - static_cast<float>(left);
  std::uint32_t mask = 0;
#pragma unroll
  for (int strip = 0; strip < 4; ++strip) {
    const float dy = static_cast<float>(top + 4 * strip) + 0.5f - s.y;
    float from, to;
    ellipse_span(s, dy, dy + 3.f, from, to);
    const bool rows = dy <= s.extent_y && dy + 3.f >= -s.extent_y;
    if (rows && x + from <= 7.52f && x + to >= 0.48f) mask |= 1u << strip;
    if (rows && x + from <= 15.52f && x + to >= 8.48f) mask |= 16u << strip;
  }
  return mask;
}

/// A Gaussian as the pixels around a point see it: with x and y counted from there, the exponent of its alpha is
/// power - U^2 - V^2 with U = p x + sheared y + u, V = q y + v.
struct __align__(16) Staged {
  float p, q, sheared, power;
  float u, v, cut;
  std::uint32_t mask;  // of strips
};
__device__ inline Staged stage_at(int column, int row, const Splat& s, std::uint32_t mask) {
  const float p = fast_sqrt(-s.uu), q = fast_sqrt(-s.yy), x = static_cast<float>(column) - s.x, y = static_cast<float>(row) - s.y;
  return {p, q, -p * s.shear, s.log2_opacity, p * (x - s.shear * y), q * y, exponent_cut(s.log2_opacity), mask};
}
__device__ inline float not_a_number() { return __int_as_float(0x7fffffff); }

/// The part of a tile of 16x16 pixels that a warp blends: S strips of 8x4 pixels, one below the other; a lane has one
/// pixel of each. A block is a tile. Places are counted from the tile's middle.
template <int S>
struct Patch {
  static constexpr int warps = 8 / S, threads = 32 * warps;
  int camera, left, top;  // of the tile
  int column, row, lane, warp;
  __device__ Patch(const Options& o, int tile) : lane(static_cast<int>(threadIdx.x & 31)), warp(static_cast<int>(threadIdx.x / 32)) {
    const int in_camera = tile % (o.tiles_x * o.tiles_y);
    camera = tile / (o.tiles_x * o.tiles_y);
    left = in_camera % o.tiles_x * tile_size, top = in_camera / o.tiles_x * tile_size;
    column = left + warp % 2 * 8 + lane % 8, row = top + warp / 2 * (4 * S) + lane / 8;
  }
  /// The middle of the patch.
  __device__ float middle_x() const { return static_cast<float>(warp % 2 * 8 - 4); }
  __device__ float middle_y() const { return static_cast<float>(warp / 2 * (4 * S) + 2 * S - 8); }
  /// Of the lane's pixel in a strip; NaN, which no alpha survives, outside the picture.
  __device__ float x() const { return static_cast<float>(column - left - 8) + 0.5f; }
  __device__ float y(int strip, const Options& o) const {
    return column < o.width && row + 4 * strip < o.height ? static_cast<float>(row + 4 * strip - top - 8) + 0.5f : not_a_number();
  }
  /// Of what `reached_of_tile` gives, the patch's strips.
  __device__ std::uint32_t own(std::uint32_t reached) const { return reached >> (warp % 2 * 4 + warp / 2 * S) & ((1u << S) - 1); }
};

/// Batches of entries of a tile's list, one a thread, fetched ahead: the splat and K channels of its colour.
template <int K, int Batch, class T = float>
class Stream {
 public:
  Splat splat;
  float color[K];
  std::uint32_t id;  // `culled` where there is none
  __device__ bool valid() const { return id != culled; }

  /// Channels [0, channels) of `colors`, which begins with the first Gaussian's; the others are 0.
  __device__ Stream(const Lists& lists, const TileList& list, const T* colors, std::int64_t stride_n, std::int64_t stride_k, int channels,
                    int camera, int thread)
      : lists_(lists),
        list_(list),
        colors_(colors - std::int64_t{camera} * lists.gaussians * stride_n),
        stride_n_(stride_n),
        stride_k_(stride_k),
        channels_(channels),
        camera_(camera),
        at_(list.begin + static_cast<std::uint32_t>(thread)) {
    fetch_id();
    fetch();
  }
  /// Starts to fetch the batch after the present one, which the caller has read.
  __device__ void fetch() {
    id = ahead_;
    if (valid()) {
      splat = load_splat(lists_.splats, id);
      const T* const source = colors_ + static_cast<std::int64_t>(id) * stride_n_;
#pragma unroll
      for (int k = 0; k < K; ++k) color[k] = k < channels_ ? number(source[k * stride_k_]) : 0.f;
    }
    at_ += Batch;
    fetch_id();
  }

 private:
  __device__ void fetch_id() {
    ahead_ = at_ < list_.end ? list_.ids[at_] : culled;
    if (list_.all && ahead_ != culled && !list_.holds(lists_, ahead_, camera_)) ahead_ = culled;
  }
  const Lists& lists_;
  const TileList& list_;
  const T* colors_;
  std::int64_t stride_n_, stride_k_;
  int channels_, camera_;
  std::uint32_t at_, ahead_ = culled;
};

}  // namespace core_splatting
