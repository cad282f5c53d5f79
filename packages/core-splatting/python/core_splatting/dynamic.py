"""4D Gaussians: rendering at a time, the variation score of 4DGS-1K by which they are pruned, and its filter."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from core_registry.arrays import as_array, empty, is_torch

from . import _core_splatting as _C
from .contributions import contributions
from .harmonics import colors_by_view
from .rasterize import behind_depth, check_picture, projections, rasterization, with_expected_depth

_SYMMETRIC = [[0, 1, 2], [1, 3, 4], [2, 4, 5]]


def _arrays(*given: Any) -> list[Any]:
    means = as_array(given[0], "float32", "means")
    names = ("scales", "quats_l", "quats_r", "opacities")
    rest = (as_array(x, "float32", name, like=means) for name, x in zip(names, given[1:], strict=False))
    return [means, *rest]


def slice_4d(
    means: Any,
    scales: Any,
    quats_l: Any,
    quats_r: Any,
    opacities: Any,
    time: float,
    indices: Any = None,
    min_weight: float = 0.05,
    prefilter_var: float = 0.0,
) -> tuple[Any, Any, Any, Any]:
    """The 3D Gaussians that 4D Gaussians are at a time: the conditional distribution of space given time, and opacities
    times the temporal weight p = exp(-(time - mean_t)^2 / (2 S)) (arXiv 2310.10642, equations 7 to 9; native form with
    two quaternions).

    Args:
        means: (N, 4) float32 x, y, z, t.
        scales: (N, 4) float32 standard deviations along the rotated axes.
        quats_l, quats_r: (N, 4) float32 left and right quaternions of the 4D rotation, any length but zero.
        opacities: (N,) float32 in [0, 1].
        time: in the units of t.
        indices: (M,) int64, rising: which Gaussians; all if None.
        min_weight: Gaussians with p at or below get zeros in every output, and are culled by the rasteriser.
        prefilter_var: added to S in p alone.

    Returns:
        means (M, 3), covars (M, 3, 3), opacities (M,), weights p (M,). torch tensors get gradients, but not by weights.

    Raises:
        TypeError: an array of another dtype.
        ValueError: shapes that do not fit, a scalar out of range, indices that do not rise (on the CPU).
    """
    sliced, covars, alphas, weights = _slice(
        means, scales, quats_l, quats_r, opacities, time, indices, min_weight, prefilter_var
    )
    return sliced, covars[:, _SYMMETRIC], alphas, weights


def _slice(
    means: Any,
    scales: Any,
    quats_l: Any,
    quats_r: Any,
    opacities: Any,
    time: float,
    indices: Any,
    min_weight: float,
    prefilter_var: float,
) -> tuple[Any, Any, Any, Any]:
    """`slice_4d` with the upper triangles (M, 6) of the covariances."""
    arrays = _arrays(means, scales, quats_l, quats_r, opacities)
    if indices is not None:
        indices = as_array(indices, "int64", "indices", like=arrays[0])
    scalars = (float(time), float(min_weight), float(prefilter_var))
    if is_torch(arrays[0]):
        from .torch_ops import slice_4d as operator

        sliced, covars, alphas, weights = operator(*arrays, indices, *scalars)
    else:
        rows = arrays[0].shape[0] if indices is None else indices.shape[0]
        sliced, covars = (empty((rows, k), "float32", like=arrays[0]) for k in (3, 6))
        alphas, weights = (empty((rows,), "float32", like=arrays[0]) for _ in range(2))
        _C.slice_4d(*(*arrays, indices, *scalars, sliced, covars, alphas, weights))
    return sliced, covars, alphas, weights


def rasterization_4d(
    means: Any,
    scales: Any,
    quats_l: Any,
    quats_r: Any,
    opacities: Any,
    colors: Any,
    viewmats: Any,
    Ks: Any,
    width: int,
    height: int,
    time: float,
    *,
    indices: Any = None,
    sh_degree: int | None = None,
    time_degree: int = 0,
    duration: float = 1.0,
    min_weight: float = 0.05,
    prefilter_var: float = 0.0,
    **options: Any,
) -> tuple[Any, Any, dict[str, Any]]:
    """Renders N 4D Gaussians at a time into C cameras (arXiv 2310.10642), or only those in `indices`.

    Args:
        means, scales, quats_l, quats_r, opacities, time, indices, min_weight, prefilter_var: as in `slice_4d`.
        colors: (N, D) colours, or with `sh_degree` (N, K, D) coefficients of the 4D spherindrical harmonics, K >=
            16 time_degree + (sh_degree + 1)^2; see `colors_by_view`.
        viewmats, Ks, width, height, **options: as in `rasterization`.
        duration: T, the period of the harmonics in time.

    Returns:
        What `rasterization` returns, with the `indices` in the third; its rows are those of `indices`. torch tensors
        get gradients, the same on every run where those of `rasterization` are.

    Raises:
        TypeError, ValueError, NotImplementedError: as `slice_4d` and `rasterization` do.
    """
    arrays = _arrays(means, scales, quats_l, quats_r, opacities)
    colors = as_array(colors, "float32", "colors", like=arrays[0])
    if indices is not None:
        indices = as_array(indices, "int64", "indices", like=arrays[0])
    if sh_degree is None and indices is not None:
        colors = colors[..., indices, :]
    if _FUSED.issuperset(options):
        moment = (indices, float(time), float(min_weight), float(prefilter_var))
        looks = (None, colors, sh_degree, time_degree, float(duration))
        if sh_degree is None:
            looks = (colors if colors.ndim == 3 else colors[None], None, 0, 0, 1.0)
        image, coverage, information = _render(arrays, moment, looks, viewmats, Ks, int(width), int(height), **options)
    else:
        sliced, covars, alphas, _ = _slice(*(*arrays, time, indices, min_weight, prefilter_var))
        if sh_degree is not None:
            centres = arrays[0][:, 3]
            if indices is not None:
                colors, centres = colors[indices], centres[indices]
            phases = (centres - time) / duration if time_degree else None
            colors = colors_by_view(sh_degree, sliced, viewmats, colors, time_degree, phases)
        image, coverage, information = rasterization(
            sliced, None, None, alphas, colors, viewmats, Ks, width, height, covars=covars, **options
        )
    return image, coverage, information if indices is None else information | {"indices": indices}


_FUSED = frozenset(
    ("backgrounds", "near_plane", "far_plane", "radius_clip", "eps2d", "render_mode", "absgrad", "rasterize_mode",
     "camera_model", "max_alpha", "meta")
)  # fmt: skip


def _render(
    arrays: list[Any],
    moment: tuple[Any, ...],
    looks: tuple[Any, ...],
    viewmats: Any,
    Ks: Any,
    width: int,
    height: int,
    *,
    backgrounds: Any = None,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    render_mode: str = "RGB",
    absgrad: bool = False,
    rasterize_mode: str = "classic",
    camera_model: str = "pinhole",
    max_alpha: float = 0.999,
    meta: bool = False,
) -> tuple[Any, Any, dict[str, Any]]:
    """`rasterization_4d` by one operator, which slices where it projects."""
    viewmats, Ks, backgrounds = (
        None if x is None else as_array(x, "float32", name, like=arrays[0])
        for x, name in ((viewmats, "viewmats"), (Ks, "Ks"), (backgrounds, "backgrounds"))
    )
    check_picture("rasterization_4d", width, height, rasterize_mode, render_mode)
    if not render_mode.startswith("RGB"):
        rows = (arrays[0] if moment[0] is None else moment[0]).shape[0]
        looks = (empty((1, rows, 0), "float32", like=arrays[0]), None, 0, 0, 1.0)
    depth, channels = render_mode != "RGB", next(x for x in looks if x is not None).shape[-1]
    if backgrounds is not None and render_mode.startswith("RGB") and backgrounds.shape[-1] != channels:
        raise ValueError(
            f"rasterization_4d: argument 'backgrounds' must be of shape (C, {channels}), got {tuple(backgrounds.shape)}"
        )
    if depth:
        backgrounds, channels = behind_depth("rasterization_4d", backgrounds, render_mode), channels + 1
    named = {
        "near_plane": float(near_plane), "far_plane": float(far_plane), "radius_clip": float(radius_clip),
        "eps2d": float(eps2d), "max_alpha": float(max_alpha), "antialiased": rasterize_mode == "antialiased",
        "camera_model": camera_model,
    }  # fmt: skip
    information: dict[str, Any] = {
        "width": width, "height": height, "n_cameras": viewmats.shape[0], "tile_size": 16,
    }  # fmt: skip
    if meta:
        indices, *scalars = moment
        shape = [x.detach() if is_torch(x) else x for x in arrays]
        sliced, covars, alphas, _ = _slice(*(*shape, scalars[0], indices, *scalars[1:]))
        size = {"width": width, "height": height, "scenes": 1}
        information |= projections((sliced, None, None, covars, alphas), viewmats, Ks, named | size)
        information |= {"tile_width": -(-width // 16), "tile_height": -(-height // 16)}
    given = (*arrays, *moment, *looks, depth, viewmats, Ks, backgrounds)
    if is_torch(arrays[0]):
        from .torch_ops import eager_rasterize_4d

        enabled, means2d = sys.modules["torch"].is_grad_enabled(), None
        if meta and enabled:
            means2d = information["means2d"].requires_grad_()
        keep = enabled and any(is_torch(x) and x.requires_grad for x in (*given, means2d))
        image, alphas = eager_rasterize_4d(*given, means2d, width, height, *named.values(), absgrad, keep)[:2]
    else:
        image = empty((viewmats.shape[0], height, width, channels), "float32", like=arrays[0])
        alphas = empty((viewmats.shape[0], height, width), "float32", like=arrays[0])
        _C.rasterize_4d(*(*given, *named.values(), image, alphas, None, None))
        alphas = alphas[..., None]
    return with_expected_depth(image, alphas) if render_mode.endswith("ED") else image, alphas, information


def variation_scores(
    means: Any,
    scales: Any,
    quats_l: Any,
    quats_r: Any,
    opacities: Any,
    views: Iterable[tuple[float, Any, Any, int, int]],
    *,
    min_weight: float = 0.05,
    prefilter_var: float = 0.0,
    beta: float = 0.1,
    **options: Any,
) -> Any:
    """The spatial-temporal variation score of 4DGS-1K (arXiv 2503.16422, section 4.1): prune the lowest.

    It is the sum over views of a Gaussian's blending weights, times the sum over the views' times of
    1 / (0.5 tanh(|p''(t)|) + 0.5), times clip(V / V90, 0, 1)^beta, where V is its 4D volume and V90 that which nine
    tenths do not exceed.

    Args:
        means, scales, quats_l, quats_r, opacities, min_weight, prefilter_var: as in `slice_4d`.
        views: (time, viewmats (C, 4, 4), Ks (C, 3, 3), width, height) each; all training views.
        beta: exponent of the volume.
        **options: as in `contributions`.

    Returns:
        (N,) float32 of the kind of `means`; without gradients.

    Raises:
        TypeError, ValueError: as `slice_4d` and `contributions` do; no views.
    """
    arrays = [x.detach() if is_torch(x) else x for x in _arrays(means, scales, quats_l, quats_r, opacities)]
    spatial, times = None, []
    for time, viewmats, Ks, width, height in views:
        sliced, covars, alphas, _ = _slice(*(*arrays, time, None, min_weight, prefilter_var))
        weights = contributions(sliced, None, None, alphas, viewmats, Ks, width, height, covars=covars, **options).sum(
            0
        )
        spatial = weights if spatial is None else spatial + weights
        times.append(float(time))
    if spatial is None:
        raise ValueError("variation_scores: argument 'views' must hold at least one view, got none")
    temporal = empty((arrays[0].shape[0],), "float32", like=arrays[0])
    moments = as_array(sorted(set(times)), "float32", "times", like=arrays[0])
    _C.temporal_variation(*(*arrays[:4], moments, temporal))
    volumes = arrays[1].prod(-1)
    if not len(volumes):
        return temporal
    if is_torch(volumes):
        torch = sys.modules["torch"]
        ordered = volumes.sort().values
        limit = ordered[int(0.9 * (len(ordered) - 1))]
        relative = torch.clamp(volumes / limit, 0, 1)
    else:
        import numpy as np

        limit = np.sort(volumes)[int(0.9 * (len(volumes) - 1))]
        relative = np.clip(volumes / limit, 0, 1)
    return spatial * temporal * relative**beta


def keep_best(scores: Any, prune: float) -> Any:
    """The indices (rising, int64) that remain when the share `prune` with the lowest scores is removed.

    Args:
        scores: (N,) numpy array or torch tensor; equal scores keep the order of the array.
        prune: 0 to 1: 0.8 for real scenes and 0.85 for synthetic ones in arXiv 2503.16422.

    Raises:
        ValueError: a share outside [0, 1].
    """
    if not 0 <= prune <= 1:
        raise ValueError(f"keep_best: argument 'prune' must be between 0 and 1, got {prune}")
    removed = round(prune * len(scores))
    if is_torch(scores):
        return scores.argsort(stable=True)[removed:].sort().values
    import numpy as np

    return np.sort(np.argsort(scores, kind="stable")[removed:])


class KeyFrameFilter:
    """Which Gaussians are seen at key frames; in between, those of the two nearest are rendered (arXiv 2503.16422,
    section 4.2).

    Args:
        times: of the key frames, rising.
        masks: (len(times), ceil(N / 8)) uint8, a bit for each Gaussian, the lowest first.
        count: N.
    """

    def __init__(self, times: Sequence[float], masks: Any, count: int) -> None:
        import numpy as np

        self.times = np.asarray(times, np.float64)
        self.masks = np.asarray(masks, np.uint8)
        self.count = int(count)
        if self.times.ndim != 1 or not len(self.times) or not (np.diff(self.times) > 0).all():
            raise ValueError(f"KeyFrameFilter: argument 'times' must rise and not be empty, got {list(times)}")
        if self.masks.shape != (len(self.times), -(-self.count // 8)):
            raise ValueError(
                f"KeyFrameFilter: argument 'masks' must be of shape {(len(self.times), -(-self.count // 8))}, got "
                f"{self.masks.shape}"
            )

    @classmethod
    def from_views(
        cls,
        means: Any,
        scales: Any,
        quats_l: Any,
        quats_r: Any,
        opacities: Any,
        views: Iterable[tuple[float, Any, Any, int, int]],
        *,
        min_weight: float = 0.05,
        prefilter_var: float = 0.0,
        **options: Any,
    ) -> KeyFrameFilter:
        """The union over views of what is seen at each key frame: temporal weight above `min_weight`, and inside the
        picture. `views` as in `variation_scores`, at the times of the key frames; `options` as in `rasterization`
        (near_plane, far_plane, radius_clip, eps2d, rasterize_mode, camera_model): those of the rendering to come."""
        import numpy as np

        arrays = [x.detach() if is_torch(x) else x for x in _arrays(means, scales, quats_l, quats_r, opacities)]
        count = arrays[0].shape[0]
        nothing = empty((count, 0), "float32", like=arrays[0])
        seen: dict[float, Any] = {}
        for time, viewmats, Ks, width, height in views:
            sliced, covars, alphas, _ = _slice(*(*arrays, time, None, min_weight, prefilter_var))
            meta = rasterization(
                sliced, None, None, alphas, nothing, viewmats, Ks, width, height, covars=covars, meta=True, **options
            )[2]
            radii = meta["radii"]
            visible = (radii.cpu().numpy() if is_torch(radii) else np.asarray(radii)).max(-1).max(0, initial=0) > 0
            seen[float(time)] = visible | seen.get(float(time), False)
        times = sorted(seen)
        packed = [np.packbits(seen[t], bitorder="little") for t in times]
        return cls(times, np.stack(packed) if packed else np.zeros((0, -(-count // 8)), np.uint8), count)

    def nearest(self, time: float) -> tuple[int, int]:
        """The key frames before and after a time: at a key frame twice its own, outside of all twice the nearest."""
        import numpy as np

        right = int(np.searchsorted(self.times, time))
        left = right if right < len(self.times) and self.times[right] == time else right - 1
        return max(left, 0), min(right, len(self.times) - 1)

    def indices(self, time: float) -> Any:
        """(M,) int64, rising: the Gaussians to render at `time`, those that one of its `nearest` key frames sees."""
        import numpy as np

        left, right = self.nearest(time)
        chosen = self.masks[left] | self.masks[right]
        return np.flatnonzero(np.unpackbits(chosen, count=self.count, bitorder="little").view(bool))
