// Several scenes in one call: their Gaussians one after the other, and so their cameras.
#pragma once
#include <core_splatting/rasterize.hpp>

#include <string>

namespace core_splatting {

/// What belongs to one scene.
class SceneOf {
 public:
  SceneOf(const char* op, std::int64_t index, std::int64_t scenes, std::int64_t gaussians, std::int64_t cameras)
      : op_(op), index_(index), scenes_(scenes), gaussians_(gaussians), cameras_(cameras) {}

  /// The rows of its Gaussians, and those of its cameras.
  template <class T, int N>
  core::Tensor<T, N> rows(const core::Tensor<T, N>& t) const {
    return part(t, 0, gaussians_);
  }
  template <class T, int N>
  core::Tensor<T, N> views(const core::Tensor<T, N>& t) const {
    return part(t, 0, cameras_);
  }
  template <class T, int N>
  std::optional<core::Tensor<T, N>> rows(const std::optional<core::Tensor<T, N>>& t) const {
    return t ? std::optional(rows(*t)) : t;
  }
  template <class T, int N>
  std::optional<core::Tensor<T, N>> views(const std::optional<core::Tensor<T, N>>& t) const {
    return t ? std::optional(views(*t)) : t;
  }
  /// [cameras, Gaussians of a scene, ...]; throws ValueError for other sizes.
  template <class T, int N>
  core::Tensor<T, N> projections(const char* name, const core::Tensor<T, N>& t) const {
    if (t.shape[1] != gaussians_) refuse(name, t.shape[0], t.shape[1]);
    return views(t);
  }
  template <class T, int N>
  std::optional<core::Tensor<T, N>> projections(const char* name, const std::optional<core::Tensor<T, N>>& t) const {
    return t ? std::optional(projections(name, *t)) : t;
  }
  /// The same, or [1, all Gaussians, ...].
  template <class T, int N>
  core::Tensor<T, N> colors(const char* name, const core::Tensor<T, N>& t) const {
    if (t.shape[0] == 1 && t.shape[1] == scenes_ * gaussians_) return part(t, 1, gaussians_);
    if (t.shape[0] != scenes_ * cameras_) refuse(name, t.shape[0], t.shape[1]);
    return projections(name, t);
  }
  /// Its share of a workspace of equal shares.
  template <class T>
  std::optional<core::Tensor<T, 1>> workspace(const std::optional<core::Tensor<T, 1>>& t) const {
    return t ? std::optional(part(*t, 0, t->shape[0] / scenes_)) : t;
  }

 private:
  template <class T, int N>
  core::Tensor<T, N> part(core::Tensor<T, N> t, std::size_t dimension, std::int64_t size) const {
    if (t.data) t.data += index_ * size * t.stride[dimension];
    t.shape[dimension] = size;
    return t;
  }
  [[noreturn]] void refuse(const char* name, std::int64_t first, std::int64_t second) const {
    throw core::Error("ValueError",
                      std::string(op_) + ": argument '" + name + "' must begin with (" + std::to_string(scenes_ * cameras_) + ", " +
                          std::to_string(gaussians_) + "), cameras and Gaussians of a scene, or for colours with (1, " +
                          std::to_string(scenes_ * gaussians_) + "), got (" + std::to_string(first) + ", " + std::to_string(second) + ")");
  }

  const char* op_;
  std::int64_t index_, scenes_, gaussians_, cameras_;
};

/// Calls f(SceneOf) for each scene; throws ValueError unless the Gaussians and the cameras can be divided among them.
template <class F>
void for_each_scene(const char* op, std::int64_t scenes, std::int64_t gaussians, std::int64_t cameras, F f) {
  if (scenes < 1 || gaussians % scenes || cameras % scenes)
    throw core::Error("ValueError", std::string(op) + ": argument 'scenes' must be positive and divide the " + std::to_string(gaussians) +
                                        " Gaussians and the " + std::to_string(cameras) + " cameras, got " + std::to_string(scenes));
  for (std::int64_t s = 0; s < scenes; ++s) f(SceneOf(op, s, scenes, gaussians / scenes, cameras / scenes));
}

}  // namespace core_splatting
