"""The memory of M3 (arXiv 2503.16413): the features that stand for all, and the attention that calls them back."""

from __future__ import annotations

import math
from typing import Any

from core_registry.arrays import as_array, empty, is_torch

from . import _core_splatting as _C


def principal_scene_components(features: Any, threshold: float) -> Any:
    """The rows of features that stand for all of them (arXiv 2503.16413, algorithm 1).

    Rows are visited in order. One that is not taken yet becomes a component and takes all rows whose cosine with it is
    at least `threshold`, but only if none of those is taken already; else it is neither a component nor taken.

    Args:
        features: (N, D) float32 embeddings of pixels, of any length; rows of zeros are never components.
        threshold: in (0, 1]; M3 uses 0.80 to 0.90 for CLIP, 0.85 for SigLIP, 0.70 to 0.75 for DINOv2, 0.98 to 1 for
            LLaMA3.

    Returns:
        (K,) int64, rising, of the kind of `features`. Exactly those that float64 gives.

    Raises:
        TypeError: another dtype. ValueError: another shape, values that are not finite, a threshold out of range.
    """
    features = as_array(features, "float32", "features")
    if is_torch(features):
        features = features.detach()
    if features.ndim != 2:
        raise ValueError(
            f"principal_scene_components: argument 'features' must be of shape (N, D), got {tuple(features.shape)}"
        )
    selected = empty((features.shape[0],), "bool", like=features)
    _C.principal_components(features, float(threshold), selected)
    return selected.nonzero()[:, 0] if is_torch(features) else selected.nonzero()[0]


def gaussian_memory_attention(
    queries: Any, projection: Any, components: Any, *, temperature: float = 0.05, cosine: bool = True
) -> Any:
    """Gaussian memory attention: what rendered queries recall from the principal scene components.

    As the code of M3 has it, softmax(normalise(Q W) normalise(PSC)^T / temperature) PSC, where `normalise` divides rows
    by their length + 1e-6; with cosine=False as the paper writes it, softmax(Q W PSC^T) PSC (arXiv 2503.16413,
    equation 3). The weights (pixels x components) never exist at once, nor does Q W.

    Args:
        queries: (..., L) float32, e.g. (C, H, W, L) that `rasterization` renders; 16 or 32 channels a model in M3.
        projection: (L, D) float32, W, learnt.
        components: (T, D) float32, PSC.
        temperature: positive; not used with cosine=False.
        cosine: see above.

    Returns:
        (..., D) float32 of the kind of `queries`. torch tensors get gradients, by all three.

    Raises:
        TypeError: another dtype. ValueError: shapes that do not fit, no component, a temperature that is not positive.
    """
    queries = as_array(queries, "float32", "queries")
    projection = as_array(projection, "float32", "projection", like=queries)
    components = as_array(components, "float32", "components", like=queries)
    length = queries.shape[-1] if queries.ndim else 0
    if projection.ndim != 2 or projection.shape[0] != length:
        raise ValueError(
            f"gaussian_memory_attention: argument 'projection' must be of shape ({length}, D), got "
            f"{tuple(projection.shape)}"
        )
    width = projection.shape[1]
    if components.ndim != 2 or components.shape[1] != width or not components.shape[0]:
        raise ValueError(
            f"gaussian_memory_attention: argument 'components' must be of shape (T, {width}) with T >= 1, got "
            f"{tuple(components.shape)}"
        )
    if not temperature > 0 or math.isinf(temperature):
        raise ValueError(
            f"gaussian_memory_attention: argument 'temperature' must be positive and finite, got {temperature}"
        )
    batch = tuple(queries.shape[:-1])
    rows = queries.reshape((math.prod(batch), length))
    keys = components @ projection.T
    if cosine:
        keys = keys / ((components * components).sum(1) ** 0.5 + 1e-6)[:, None]
        # |q W|^2 = q (W W^T) q: L x L numbers instead of pixels x D.
        squares = ((rows @ (projection @ projection.T)) * rows).sum(1).clip(1e-12)
        rows = rows / ((squares**0.5 + 1e-6) * temperature)[:, None]
    if is_torch(rows):
        from .memory_ops import memory_attention

        out = memory_attention(rows, keys, components)[0]
    else:
        out = empty((rows.shape[0], width), "float32", like=rows)
        _C.memory_attention(rows, keys, components, out, empty((rows.shape[0],), "float32", like=rows))
    return out.reshape((*batch, width))
