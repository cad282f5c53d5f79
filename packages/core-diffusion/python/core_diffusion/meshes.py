"""Triangle meshes as data for shape models: inside and outside, distances, samples, files and pictures.

Everything over points and triangles is brute force in torch, exact, and runs where the tensors are. Reading and writing
files is trimesh's work (`pip install core-diffusion[mesh]`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from core_registry.files import replace
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "draw_meshes",
    "load_mesh",
    "sample_surface",
    "save_mesh",
    "shape_rows",
    "shape_set",
    "signed_distance",
    "winding_number",
]

_PAIRS = {"cpu": 2**18, "cuda": 2**26}
"""Points times triangles in flight."""


def _chunks(points: Tensor, faces: Tensor) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...] = points.split(max(1, _PAIRS.get(points.device.type, 2**20) // max(len(faces), 1)))
    return parts


def _check(points: Tensor, vertices: Tensor, faces: Tensor, name: str) -> None:
    for argument, tensor in (("points", points), ("vertices", vertices), ("faces", faces)):
        if tensor.ndim != 2 or tensor.shape[1] != 3:
            raise ValueError(f"{name}: argument '{argument}' must have shape (N, 3), got {tuple(tensor.shape)}")
    if faces.numel() and not 0 <= int(faces.min()) <= int(faces.max()) < len(vertices):
        raise ValueError(f"{name}: argument 'faces' must be in 0..{len(vertices) - 1}")


def winding_number(points: Tensor, vertices: Tensor, faces: Tensor) -> Tensor:
    """How often a surface winds around each point: 0 outside, 1 or more inside of a closed, outward mesh.

    The sum of the triangles' solid angles over 4 pi (van Oosterom and Strackee, 1983); parts that overlap add up, so
    `> 0.5` is the inside of their union.

    Args:
        points: [N, 3].
        vertices: [V, 3], the same floating dtype.
        faces: int64 [F, 3].

    Returns:
        [N].

    Raises:
        ValueError: another shape, or faces that name no vertex.
    """
    _check(points, vertices, faces, "winding_number")
    corners = vertices[faces]  # [F, 3, 3]
    parts = []
    for p in _chunks(points, faces):
        (ax, ay, az), (bx, by, bz), (cx, cy, cz) = (
            [corners[None, :, corner, d] - p[:, None, d] for d in range(3)] for corner in range(3)
        )
        a, b, c = (
            (ax * ax + ay * ay + az * az).sqrt(),
            (bx * bx + by * by + bz * bz).sqrt(),
            (cx * cx + cy * cy + cz * cz).sqrt(),
        )
        volume = ax * (by * cz - bz * cy) + ay * (bz * cx - bx * cz) + az * (bx * cy - by * cx)
        base = (
            a * b * c
            + (ax * bx + ay * by + az * bz) * c
            + (bx * cx + by * cy + bz * cz) * a
            + (cx * ax + cy * ay + cz * az) * b
        )
        parts.append(torch.atan2(volume, base).sum(1) / (2 * math.pi))
    return torch.cat(parts) if parts else points.new_empty(0)


def signed_distance(points: Tensor, vertices: Tensor, faces: Tensor) -> Tensor:
    """Distance to the nearest triangle, positive inside (where the winding number is over 0.5).

    Args and errors: as of `winding_number`; triangles without area are allowed.
    """
    inside = winding_number(points, vertices, faces) > 0.5
    a, b, c = vertices[faces].unbind(1)
    ab, ac, bc = b - a, c - a, c - b
    normal = torch.linalg.cross(ab, ac)
    parts = []
    for p in _chunks(points, faces):
        ap, bp = p[:, None] - a, p[:, None] - b

        def to_edge(offset: Tensor, edge: Tensor) -> Tensor:
            t = (offset * edge).sum(-1) / (edge * edge).sum(-1).clamp(min=1e-30)
            return (offset - t.clamp(0, 1)[..., None] * edge).square().sum(-1)

        edges = torch.stack([to_edge(ap, ab), to_edge(ap, ac), to_edge(bp, bc)]).amin(0)
        square = (normal * normal).sum(-1)
        over = (
            ((torch.linalg.cross(ab.expand_as(ap), ap) * normal).sum(-1) >= 0)
            & ((torch.linalg.cross(ap, ac.expand_as(ap)) * normal).sum(-1) >= 0)
            & ((torch.linalg.cross(bc.expand_as(bp), bp) * normal).sum(-1) >= 0)
            & (square > 0)
        )
        plane = (ap * normal).sum(-1).square() / square.clamp(min=1e-30)
        parts.append(torch.where(over, plane, edges).amin(1).sqrt())
    distance = torch.cat(parts) if parts else points.new_empty(0)
    return torch.where(inside, distance, -distance)


def sample_surface(
    vertices: Tensor, faces: Tensor, count: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Points [count, 3], uniform over the surface, and their outward normals [count, 3].

    Raises ValueError on a surface without area.
    """
    a, b, c = vertices[faces].unbind(1)
    normal = torch.linalg.cross(b - a, c - a)
    area = normal.norm(dim=1)
    if not float(area.sum()) > 0:
        raise ValueError("sample_surface: argument 'faces' must have an area")
    which = torch.multinomial(area, count, replacement=True, generator=generator)
    u, v = torch.rand(2, count, 1, device=vertices.device, generator=generator).unbind()
    u, v = torch.where(u + v > 1, 1 - u, u), torch.where(u + v > 1, 1 - v, v)
    return a[which] + u * (b - a)[which] + v * (c - a)[which], normal[which] / area[which, None]


def shape_rows(
    vertices: Tensor, faces: Tensor, surface: int, volume: int, near: int, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """What a shape autoencoder learns from, of one mesh in [-1, 1]^3.

    Returns:
        surface float16 [surface, 6]: points of the outer surface with normals (what lies inside of another part is left
        out); points float16 [volume + near, 3]: uniform in the cube, then near the surface (normal noise of 0.03 and
        0.01); inside bool [volume + near].
    """
    options = {"device": vertices.device, "generator": generator}
    points, normals = sample_surface(vertices, faces, 2 * surface, generator)
    step = 2e-3 * normals
    both = torch.stack([winding_number(points + s, vertices, faces) > 0.5 for s in (step, -step)])
    outer = (~both[0] & both[1]).nonzero().squeeze(1)
    if len(outer) == 0:
        raise ValueError("shape_rows: arguments 'vertices' and 'faces' must bound a volume")
    outer = outer[torch.arange(surface, device=outer.device) % len(outer)]
    around = points[outer][torch.randint(surface, (near,), **options)]
    scale = torch.where(torch.arange(near, device=outer.device) % 2 == 0, 0.03, 0.01)[:, None]
    noise = scale * torch.randn(near, 3, **options)
    asked = torch.cat([2 * torch.rand(volume, 3, **options) - 1, (around + noise).clamp(-1, 1)]).half()
    return {
        "surface": torch.cat([points[outer], normals[outer]], 1).half(),
        "points": asked,
        "inside": winding_number(asked.to(vertices.dtype), vertices, faces) > 0.5,
    }


def load_mesh(path: str | Path, extent: float = 0.95) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Vertices float32 [V, 3] and faces int64 [F, 3] of a mesh file, moved and scaled to fit [-extent, extent]^3.

    Raises:
        ValueError: a file without triangles or without size, or whose triangles have coordinates that are not finite.
    """
    import trimesh

    mesh: Any = trimesh.load(path, force="mesh", process=False)
    vertices, faces = np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces, np.int64)
    if len(faces) == 0:
        raise ValueError(f"{path} has no triangles")
    corners = vertices[faces]
    bad = ~np.isfinite(corners).all((1, 2))
    if bad.any():
        raise ValueError(f"{path} has {bad.sum()} of {len(faces)} triangles with coordinates that are not finite")
    low, high = corners.min((0, 1)), corners.max((0, 1))
    size = float((high - low).max())
    if not size > 0:
        raise ValueError(f"{path} is a single point")
    return ((vertices - (low + high) / 2) * (2 * extent / size)).astype(np.float32), faces


def _closed(vertices: Tensor, faces: Tensor, generator: torch.Generator) -> bool:
    """Whether winding numbers at random points are whole, as of closed surfaces."""
    points = 2 * torch.rand(500, 3, device=vertices.device, generator=generator) - 1
    turns = winding_number(points, vertices, faces)
    return bool(((turns - turns.round()).abs() < 0.05).float().mean() > 0.99)


def shape_set(
    paths: Sequence[Path], rows: int, device: torch.device, generator: torch.Generator
) -> tuple[list[tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """The closed ones of mesh files as a training set; a file that `load_mesh` refuses is left out with a warning.

    Returns:
        vertices and faces of each, on the device, and `shape_rows` of all with one first axis: `rows` points of the
        surface, of the cube and near the surface.

    Raises:
        ValueError: no file holds a closed mesh; RuntimeError: a file that trimesh does not read.
    """
    shapes = []
    for path in paths:
        try:
            vertices, faces = (torch.from_numpy(x).to(device) for x in load_mesh(path))
        except ValueError as error:
            warnings.warn(f"shape_set: left out: {error}", stacklevel=2)
            continue
        if _closed(vertices, faces, generator):
            shapes.append((vertices, faces))
    if not shapes:
        raise ValueError(f"none of the {len(paths)} mesh files holds a closed mesh")
    every = [shape_rows(*shape, rows, rows, rows, generator) for shape in shapes]
    return shapes, {name: torch.stack([one[name] for one in every]) for name in every[0]}


def save_mesh(path: str | Path, vertices: NDArray[Any], faces: NDArray[Any]) -> None:
    """Writes .ply, .glb, .obj, .stl or what else trimesh writes; the file appears whole."""
    import trimesh

    mesh = trimesh.Trimesh(vertices, faces, process=False)
    with replace(path) as temporary:
        mesh.export(temporary, file_type=Path(path).suffix[1:].lower())


def draw_meshes(path: str | Path, meshes: Sequence[tuple[str, NDArray[Any], NDArray[Any]]], columns: int = 4) -> None:
    """A picture of meshes in [-1, 1]^3, each with its title, shaded by their triangles' normals."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from mpl_toolkits.mplot3d.art3d import Poly3DCollection  # type: ignore[import-untyped]

    rows = -(-len(meshes) // columns)
    figure = plt.figure(figsize=(2.6 * columns, 2.8 * rows), layout="constrained")
    for i, (title, vertices, faces) in enumerate(meshes):
        axes = figure.add_subplot(rows, columns, i + 1, projection="3d")
        corners = vertices[faces]
        normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        normal /= np.linalg.norm(normal, axis=1, keepdims=True).clip(1e-12)
        light = 0.35 + 0.65 * (normal @ np.array([0.4, -0.6, 0.69])).clip(0)
        colors = np.stack([light * 0.55, light * 0.7, light * 0.95, np.ones_like(light)], 1)
        axes.add_collection3d(Poly3DCollection(corners, facecolors=colors))
        axes.set(xlim=(-0.75, 0.75), ylim=(-0.75, 0.75), zlim=(-0.75, 0.75), title=title)
        axes.set_box_aspect((1, 1, 1))
        axes.set_axis_off()
    with replace(path) as temporary:
        figure.savefig(temporary, dpi=110, format=Path(path).suffix[1:] or "png")
    plt.close(figure)
