"""A synthetic multi-view video: a striped figure that walks on a chequered floor, rendered from its skin."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..rasterize import rasterization
from .views import Scene, View

Array = NDArray[Any]

# Bones: name, parent, start in the parent's frame (x forward, y down, z to the side), length, radius, colour.
_BONES = (
    ("pelvis", None, (0, 0, 0), -0.12, 0.13, (0.2, 0.25, 0.6)),
    ("chest", "pelvis", (0, -0.14, 0), -0.36, 0.15, (0.75, 0.2, 0.2)),
    ("head", "chest", (0.02, -0.52, 0), -0.14, 0.11, (0.9, 0.7, 0.55)),
    *(
        bone
        for side, z in (("left", 0.09), ("right", -0.09))
        for bone in (
            (f"{side} thigh", "pelvis", (0, 0.05, z), 0.40, 0.085, (0.2, 0.3, 0.7)),
            (f"{side} shin", f"{side} thigh", (0, 0.42, 0), 0.38, 0.06, (0.25, 0.35, 0.75)),
            (f"{side} foot", f"{side} shin", (0.05, 0.42, 0), 0.05, 0.06, (0.3, 0.2, 0.1)),
            (f"{side} arm", "chest", (0, -0.34, 2.3 * z), 0.28, 0.055, (0.8, 0.3, 0.2)),
            (f"{side} forearm", f"{side} arm", (0, 0.30, 0), 0.26, 0.045, (0.9, 0.7, 0.55)),
        )
    ),
)
_LIGHT = np.array([0.4, -0.8, 0.45])
_FLOOR = 0.95  # y of the floor; the pelvis is at 0


def _bend(name: str, phase: float) -> float:
    """The angle of a joint about the side axis."""
    swing = phase + (np.pi if name.startswith("right") else 0)
    angles = {
        "thigh": 0.55 * np.sin(swing), "shin": -0.75 * max(0.0, np.sin(swing + 2.2)), "arm": -0.5 * np.sin(swing),
        "forearm": 0.35 + 0.25 * np.sin(swing), "foot": 0.2 * np.sin(swing + 0.6),
    }  # fmt: skip
    return float(angles.get(name.rpartition(" ")[2], 0.0))


def _pose(phase: float) -> dict[str, tuple[Array, Array]]:
    """Rotation and origin of each bone; the figure walks half a unit forward in a cycle."""
    poses: dict[str, tuple[Array, Array]] = {}
    for name, parent, start, *_ in _BONES:
        c, s = np.cos(_bend(name, phase)), np.sin(_bend(name, phase))
        turn = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
        if parent is None:
            forward, bob = 0.5 * (phase / (2 * np.pi) - 0.5), 0.02 * np.cos(2 * phase)
            poses[name] = (turn, np.array([forward, bob, 0.0]))
        else:
            rotation, origin = poses[parent]
            poses[name] = (rotation @ turn, origin + rotation @ np.asarray(start))
    return poses


@dataclasses.dataclass(frozen=True)
class Skin:
    """Points on the bones' capsules, in their frames: which bone, place, normal, colour; and on the floor."""

    bone: Array
    place: Array
    normal: Array
    color: Array
    size: float

    @staticmethod
    def sample(count: int, rng: np.random.Generator) -> Skin:
        """`count` points, by area; three in ten on the floor, a disc of radius 0.9."""
        on_floor = int(0.3 * count)
        areas = np.array([2 * np.pi * r * (abs(length) + 2 * r) for *_, length, r, _ in _BONES])
        bone = rng.choice(len(_BONES), count - on_floor, p=areas / areas.sum())
        lengths, radii = (np.array([b[i] for b in _BONES])[bone] for i in (3, 4))
        direction = rng.normal(size=(len(bone), 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        along = rng.random(len(bone))
        cap = rng.random(len(bone)) < 2 * radii / (np.abs(lengths) + 2 * radii)
        along = np.where(cap, direction[:, 1] * np.sign(lengths) > 0, along)
        ring = direction * [1, 0, 1]
        ring /= np.linalg.norm(ring, axis=1, keepdims=True)
        normal = np.where(cap[:, None], direction, ring)
        place = normal * radii[:, None]
        place[:, 1] += along * lengths
        stripes = np.sin(40 * place[:, 1]) * np.cos(6 * np.arctan2(place[:, 2], place[:, 0]))
        color = np.array([b[5] for b in _BONES])[bone] * (1 + 0.35 * np.sign(stripes)[:, None])
        radius, angle = 0.9 * np.sqrt(rng.random(on_floor)), 2 * np.pi * rng.random(on_floor)
        floor = np.stack([radius * np.cos(angle), np.full(on_floor, _FLOOR), radius * np.sin(angle)], 1)
        chequer = (np.floor(floor[:, 0] / 0.15) + np.floor(floor[:, 2] / 0.15)) % 2
        return Skin(
            np.concatenate([bone, np.full(on_floor, -1)]),
            np.concatenate([place, floor]),
            np.concatenate([normal, np.tile([0.0, -1, 0], (on_floor, 1))]),
            np.concatenate([color, 0.25 + 0.5 * np.tile(chequer[:, None], 3)]).clip(0, 1),
            float(1.1 * np.sqrt((areas.sum() + np.pi * 0.81) / count)),
        )

    def at(self, phase: float) -> tuple[Array, Array]:
        """Places (N, 3) and shaded colours (N, 3) at a phase of the walk, 0 to 2 pi."""
        poses = [*_pose(phase).values(), (np.eye(3), np.zeros(3))]
        rotations, origins = (np.stack([p[i] for p in poses])[self.bone] for i in range(2))
        places = (rotations @ self.place[..., None])[..., 0] + origins
        facing = (rotations @ self.normal[..., None])[..., 0] @ (_LIGHT / np.linalg.norm(_LIGHT))
        return places, self.color * (0.45 + 0.55 * facing.clip(0, 1))[:, None]


def camera(angle: float, height: float, distance: float = 3.0) -> Array:
    """(4, 4) world to camera, from `angle` around the figure and `height` above its middle, looking at it."""
    place = distance * np.array([np.cos(angle), -height, np.sin(angle)])
    forward = np.array([0, 0.15, 0]) - place
    forward /= np.linalg.norm(forward)
    right = np.cross([0.0, 1, 0], forward)
    right /= np.linalg.norm(right)
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([right, np.cross(forward, right), forward])
    matrix[:3, 3] = -matrix[:3, :3] @ place
    return matrix


def walker(
    width: int = 128, height: int = 128, frames: int = 24, cameras: int = 9, gaussians: int = 60_000, seed: int = 0,
    device: str | None = None, points: int = 8000,
) -> Scene:  # fmt: skip
    """A cycle of the walk at times 0 to 1, seen by cameras on an arc of 200 degrees at two heights.

    Views are in the order of time, and of camera within a time; `split(cameras)` holds out the first camera, which
    stands between others. The points are `points` of the skin's at eight times, moved by 0.01, as structure from motion
    at some frames would give; 4D training begins from them. With a `device` torch renders there, else numpy.
    """
    rng = np.random.default_rng(seed)
    skin = Skin.sample(gaussians, rng)
    focal = 1.15 * min(width, height)
    K = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    # The first camera goes to the middle of the arc.
    steps = np.roll(np.linspace(-0.55, 0.55, cameras) * np.pi, -(cameras // 2))
    viewmats = np.stack([camera(a, 0.15 if i == 0 else (0.02, 0.35)[i % 2]) for i, a in enumerate(steps)])

    def moved(x: Array) -> Any:
        x = np.ascontiguousarray(x, np.float32)
        if device is None:
            return x
        import torch

        return torch.from_numpy(x).to(device)

    quats = moved(np.tile([1.0, 0, 0, 0], (gaussians, 1)))
    scales, opacities = moved(np.full((gaussians, 3), skin.size)), moved(np.full(gaussians, 0.95))
    matrices, Ks = moved(viewmats), moved(np.tile(K, (cameras, 1, 1)))
    views = []
    for frame in range(frames):
        time = frame / max(frames - 1, 1)
        places, colors = (moved(x) for x in skin.at(2 * np.pi * time))
        images, _, _ = rasterization(places, quats, scales, opacities, colors, matrices, Ks, width, height)
        pixels = (images * 255).round().clip(0, 255)
        pixels = (pixels.cpu().numpy() if device is not None else pixels).astype(np.uint8)
        views += [
            View(Path(f"walker/{frame:03}/{i:02}.png"), viewmats[i], K, width, height, time=time, pixels=pixels[i])
            for i in range(cameras)
        ]
    chosen = [rng.choice(gaussians, min(points // 8, gaussians), replace=False) for _ in range(8)]
    parts = [(x[rows] for x in skin.at(2 * np.pi * i / 7)) for i, rows in enumerate(chosen)]
    places, colors = (np.concatenate(x) for x in zip(*parts, strict=True))
    return Scene(views, places + rng.normal(0, 0.01, places.shape), colors)
