"""Marching cubes over a partly known volume: an indexed mesh that never reaches into the unknown.

The surface extraction of FlashVDM (arXiv 2503.16302, section 3.2), over dense volumes with NaN where nothing is
known, or over the list of the known nodes alone.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from core_registry.arrays import as_array, empty

from . import _core_diffusion as _C

__all__ = ["marching_cubes", "sparse_marching_cubes"]

Array = Any
"""A numpy array or a torch tensor."""


def _inward(name: str, gradient_direction: str) -> bool:
    if gradient_direction not in ("descent", "ascent"):
        raise ValueError(
            f"{name}: argument 'gradient_direction' must be 'descent' or 'ascent', got {gradient_direction!r}"
        )
    return gradient_direction == "ascent"


def _three(name: str, x: Sequence[float] | Array, like: Array) -> Array:
    x = as_array(x, "float64", name, like=like)
    if tuple(x.shape) != (3,):
        raise ValueError(f"argument '{name}' must be three numbers, got shape {tuple(x.shape)}")
    return x


def _mesh(counts: Array, like: Array) -> tuple[Array, Array]:
    vertices, faces = (int(n) for n in counts)
    return empty((vertices, 3), "float32", like=like), empty((faces, 3), "int32", like=like)


def marching_cubes(
    volume: Array,
    level: float = 0.0,
    *,
    spacing: Sequence[float] | Array = (1.0, 1.0, 1.0),
    origin: Sequence[float] | Array = (0.0, 0.0, 0.0),
    gradient_direction: Literal["descent", "ascent"] = "descent",
) -> tuple[Array, Array]:
    """The level set of a volume as an indexed triangle mesh, by scikit-image's names.

    A cell takes part only if its eight nodes are known, that is, not NaN; so the mesh ends where the known ends, and
    no vertex is NaN. Away from there it is watertight: each edge belongs to two triangles, running through it in
    opposite directions. A cell's triangles come from a table (Lorensen and Cline, 1987); where a face of a cell is cut
    four times, the two nodes above the level are kept apart. A node at the level counts as below it; vertices of
    several edges may then share its position. Infinite values count as the largest finite ones.

    Args:
        volume: float32 [X, Y, Z] (narrower dtypes are widened); any of X, Y, Z below 2 gives an empty mesh.
        level: value of the surface; rounded to float32.
        spacing: distance of nodes along X, Y and Z in world units, > 0.
        origin: world position of node (0, 0, 0).
        gradient_direction: 'descent' if the object has the values above the level (occupancy, logits), 'ascent' if
            it has those below (distances). Triangles are counter-clockwise seen from outside the object
            (scikit-image 0.26 winds them the other way).

    Returns:
        vertices float32 [V, 3] in world units, and faces int32 [F, 3], in the order of the grid.

    Raises:
        ValueError: level, spacing, origin or gradient_direction out of range, or over 2^31 - 1 vertices.
        TypeError: volume is not float32 or narrower.
    """
    inward = _inward("marching_cubes", gradient_direction)
    volume = as_array(volume, "float32", "volume")
    counts = empty((2,), "int64", like=volume)
    _C.marching_cubes_count(volume, level, counts)
    vertices, faces = _mesh(counts, volume)
    origin, spacing = _three("origin", origin, volume), _three("spacing", spacing, volume)
    _C.marching_cubes(volume, level, origin, spacing, inward, vertices, faces)
    return vertices, faces


def sparse_marching_cubes(
    index: Array,
    values: Array,
    shape: Sequence[int],
    level: float = 0.0,
    *,
    spacing: Sequence[float] | Array = (1.0, 1.0, 1.0),
    origin: Sequence[float] | Array = (0.0, 0.0, 0.0),
    gradient_direction: Literal["descent", "ascent"] = "descent",
) -> tuple[Array, Array]:
    """`marching_cubes` of a volume given by its known nodes; the mesh is that of the dense volume with NaN elsewhere.

    Time and memory grow with the known nodes and the rows X Y, not with the volume.

    Args:
        index: int64 [N], strictly ascending: node (i, j, k) has the index (i Y + j) Z + k.
        values: float32 [N] (narrower dtypes are widened); NaN is unknown.
        shape: (X, Y, Z), nodes of the grid, at most 16384 each.
        level, spacing, origin, gradient_direction: as for `marching_cubes`.

    Returns:
        vertices float32 [V, 3] in world units, and faces int32 [F, 3], in the order of the grid.

    Raises:
        ValueError: index does not ascend or leaves the grid, shape is not three sizes, or as for `marching_cubes`.
    """
    inward = _inward("sparse_marching_cubes", gradient_direction)
    values = as_array(values, "float32", "values")
    index = as_array(index, "int64", "index", like=values)
    if len(shape) != 3:
        raise ValueError(f"sparse_marching_cubes: argument 'shape' must be three sizes, got {tuple(shape)}")
    size = as_array(np.array([int(s) for s in shape], np.int64), "int64", "shape", like=values)
    counts = empty((2,), "int64", like=values)
    _C.sparse_marching_cubes_count(index, values, size, level, counts)
    vertices, faces = _mesh(counts, values)
    origin, spacing = _three("origin", origin, values), _three("spacing", spacing, values)
    _C.sparse_marching_cubes(index, values, size, level, origin, spacing, inward, vertices, faces)
    return vertices, faces
