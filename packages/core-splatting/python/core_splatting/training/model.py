"""The trained tensors of a scene at rest or in motion, with the state that Adam keeps of them."""

from __future__ import annotations

import dataclasses
import os
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..dynamic import KeyFrameFilter, rasterization_4d
from ..formats import SH_C0, Gaussians
from ..formats.container4d import Gaussians4D
from ..optim import SelectiveAdam
from ..rasterize import rasterization
from ..scenes import Scene, View
from .config import Config
from .geometry import rotations, rotations_4d


@dataclasses.dataclass(frozen=True)
class Picture:
    """A photograph as it is trained on: pixels (H, W, 3) uint8, viewmat (4, 4) and K (3, 3) float32, its time."""

    pixels: Tensor
    viewmat: Tensor
    K: Tensor
    time: float = 0.0

    @staticmethod
    def of(view: View, downscale: int, device: str) -> Picture:
        """Loads, scales and undistorts a view."""
        if view.pixels is not None and downscale == 1 and not any(view.distortion):
            pixels, K = torch.as_tensor(view.pixels, device=device), view.K
        else:
            image, K = view.load(downscale)
            pixels = torch.as_tensor(np.rint(image * 255).astype(np.uint8), device=device)
        viewmat, K = (torch.as_tensor(m.astype(np.float32), device=device) for m in (view.viewmat, K))
        return Picture(pixels, viewmat, K, view.time)


class Model:
    """Parameters by name, all of first size N, those of `Gaussians` or of `Gaussians4D`, and their optimiser; the two
    kinds of Gaussians are below."""

    names: ClassVar[tuple[str, ...]]

    def __init__(self, values: dict[str, Tensor], config: Config, extent: float) -> None:
        self.config = config
        rates = {
            "means": config.lr_means * extent, "log_scales": config.lr_scales,
            "logit_opacities": config.lr_opacities, "sh": 1.0,
        }  # fmt: skip
        self.parameters = {name: values[name].detach().clone().requires_grad_() for name in self.names}
        sh = self.parameters["sh"]
        of_harmonics = torch.full(sh.shape[1:], config.lr_shn, device=sh.device)
        of_harmonics[0] = config.lr_sh0
        self.optimizer = SelectiveAdam(
            {
                "params": [self.parameters[n]], "lr": rates.get(n, config.lr_quats), "name": n,
                "rates": of_harmonics if n == "sh" else None,
            }
            for n in self.names
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.parameters["means"])

    def __getattr__(self, name: str) -> Tensor:
        if name in type(self).names:
            return self.parameters[name]
        raise AttributeError(name)

    @staticmethod
    def initial(scene: Scene, config: Config, device: str) -> dict[str, Tensor]:
        """Values to begin from."""
        raise NotImplementedError

    def render(
        self, picture: Picture, step: int, background: Tensor | None = None, meta: bool = False
    ) -> tuple[Tensor, Any]:
        """The (H, W, 3) image of a picture's camera at its time, and the rasteriser's third result."""
        height, width = picture.pixels.shape[:2]
        c = self.config
        image, _, information = self._rasterize(
            picture, step // c.sh_every, picture.viewmat[None], picture.K[None], width, height, meta=meta,
            backgrounds=None if background is None else background[None], absgrad=meta and c.absgrad,
            rasterize_mode="antialiased" if c.antialiased else "classic",
        )  # fmt: skip
        return image[0], information

    def _rasterize(
        self, picture: Picture, degree: int, viewmats: Any, Ks: Any, width: int, height: int, **options: Any
    ) -> tuple[Any, Any, Any]:
        raise NotImplementedError

    def factors(self, rows: Any = slice(None)) -> Tensor:
        """(M, k, k) whose product with its transpose is the covariance, k = 3 or 4."""
        raise NotImplementedError

    def sizes(self) -> Tensor:
        """(N,) largest standard deviations in space, at one time."""
        raise NotImplementedError

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes a file that others read."""
        raise NotImplementedError

    def set_rate(self, name: str, rate: float) -> None:
        """The learning rate of one parameter."""
        next(g for g in self.optimizer.param_groups if g["name"] == name)["lr"] = rate

    def select(self, index: Tensor, fresh: int = 0) -> None:
        """Keeps the Gaussians of `index`, which may name one twice; the last `fresh` begin without moments."""
        for group in self.optimizer.param_groups:
            old = group["params"][0]
            state = self.optimizer.state.pop(old, {})
            new = old.detach()[index].requires_grad_()
            group["params"][0] = self.parameters[group["name"]] = new
            if state:
                kept = {k: v[index].clone() for k, v in state.items()}
                for v in kept.values():
                    v[len(index) - fresh :] = 0
                self.optimizer.state[new] = kept

    def forget(self, name: str, rows: Tensor | None = None) -> None:
        """Sets the moments of one parameter to zero, all or those of some rows."""
        for key, value in self.optimizer.state.get(self.parameters[name], {}).items():
            if key != "steps":
                value[slice(None) if rows is None else rows] = 0

    def _arrays(self) -> dict[str, Any]:
        return {n: self.parameters[n].detach().cpu().numpy().copy() for n in self.names}


class Model3D(Model):
    """Gaussians at rest (arXiv 2308.04079)."""

    names = ("means", "quats", "log_scales", "logit_opacities", "sh")

    @staticmethod
    def initial(scene: Scene, config: Config, device: str) -> dict[str, Tensor]:
        """Gaussians at the scene's points, as large as the distance to the three nearest others, of opacity 0.1 (0.5
        for MCMC); without points, 10,000 random ones in the ball about which the cameras stand. At most `config.most`:
        of more points, some at random."""
        rng = np.random.default_rng(config.seed)
        points, colors = _points(scene, rng, config.most)
        quats = rng.random((len(points), 4))
        log_scales = np.repeat(_log_sizes(points, config), 3, 1)
        values = {"means": points, "quats": quats, "log_scales": log_scales}
        return _tensors(values | _looks(colors, config, (config.sh_degree + 1) ** 2), device)

    def _rasterize(
        self, picture: Picture, degree: int, viewmats: Any, Ks: Any, width: int, height: int, **options: Any
    ) -> tuple[Any, Any, Any]:
        return rasterization(
            self.means, self.quats, self.log_scales.exp(), torch.sigmoid(self.logit_opacities), self.sh, viewmats, Ks,
            width, height, sh_degree=min(degree, self.config.sh_degree), **options,
        )  # fmt: skip

    def factors(self, rows: Any = slice(None)) -> Tensor:
        """(M, 3, 3): R diag(scales)."""
        return rotations(self.quats[rows]) * self.log_scales[rows].exp()[:, None, :]

    def sizes(self) -> Tensor:
        """(N,) the largest scales."""
        return self.log_scales.detach().amax(-1).exp()

    def gaussians(self) -> Gaussians:
        """A copy as numpy arrays."""
        return Gaussians(**self._arrays())

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes .ply, .compressed.ply, .splat or .spz."""
        from .. import formats

        formats.write(path, self.gaussians())


class Model4D(Model):
    """Gaussians in space and time (arXiv 2310.10642); with a `filter`, only those that it names are rendered."""

    names = ("means", "quats_left", "quats_right", "log_scales", "logit_opacities", "sh")
    filter: KeyFrameFilter | None = None
    _shown: tuple[KeyFrameFilter | None, dict[tuple[int, int], Tensor]] = (None, {})

    @staticmethod
    def initial(scene: Scene, config: Config, device: str) -> dict[str, Tensor]:
        """As `Model3D.initial`, not rotated, their centres in time uniform over the duration and a tenth more on both
        sides, their variance in time a fifth of the duration."""
        rng = np.random.default_rng(config.seed)
        points, colors = _points(scene, rng, config.most)
        count = len(points)
        times = rng.uniform(-0.1, 1.1, (count, 1)) * config.duration
        in_time = np.full((count, 1), 0.5 * np.log(config.duration / 5))
        values = {
            "means": np.concatenate([points, times], 1),
            "quats_left": np.tile([1.0, 0, 0, 0], (count, 1)), "quats_right": np.tile([1.0, 0, 0, 0], (count, 1)),
            "log_scales": np.concatenate([np.repeat(_log_sizes(points, config), 3, 1), in_time], 1),
        }  # fmt: skip
        terms = 16 * config.sh_time_degree + (config.sh_degree + 1) ** 2
        return _tensors(values | _looks(colors, config, terms), device)

    def _rasterize(
        self, picture: Picture, degree: int, viewmats: Any, Ks: Any, width: int, height: int, **options: Any
    ) -> tuple[Any, Any, Any]:
        c = self.config
        return rasterization_4d(
            *self.shape(), self.sh, viewmats, Ks, width, height, picture.time,
            indices=self._indices(picture.time), sh_degree=min(degree, c.sh_degree),
            time_degree=min(max(degree - c.sh_degree, 0), c.sh_time_degree), duration=c.duration, **options,
        )  # fmt: skip

    def _indices(self, time: float) -> Tensor | None:
        """What the filter shows at a time, on the device, where it stays for the next step between the same keys."""
        if self.filter is None:
            return None
        if self._shown[0] is not self.filter:
            self._shown = (self.filter, {})
        between, shown = self.filter.nearest(time), self._shown[1]
        if between not in shown:
            shown[between] = torch.as_tensor(self.filter.indices(time), device=self.means.device)
        return shown[between]

    def shape(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The first arguments of `slice_4d`: means, scales, quats_l, quats_r and opacities."""
        opacities = torch.sigmoid(self.logit_opacities)
        return self.means, self.log_scales.exp(), self.quats_left, self.quats_right, opacities

    def factors(self, rows: Any = slice(None)) -> Tensor:
        """(M, 4, 4): R diag(scales), axes x, y, z, t."""
        rotated = rotations_4d(self.quats_left[rows], self.quats_right[rows])
        return rotated * self.log_scales[rows].exp()[:, None, :]

    def sizes(self) -> Tensor:
        """(N,) roots of the largest variance of x, y or z given t."""
        with torch.no_grad():
            factors = self.factors()
            space, time = factors[:, :3], factors[:, 3:]
            beside = space - (space @ time.mT) / time.square().sum(-1, keepdim=True) * time
            return beside.square().sum(-1).amax(-1).sqrt()

    def gaussians(self) -> Gaussians4D:
        """A copy as numpy arrays, with the masks of the filter if there is one."""
        arrays = self._arrays()
        arrays["logit_opacities"] = arrays["logit_opacities"][:, None]
        key_times, masks = np.zeros(0, np.float32), np.zeros((0, len(self)), bool)
        if self.filter is not None:
            key_times = self.filter.times.astype(np.float32)
            masks = np.unpackbits(self.filter.masks, axis=1, count=len(self), bitorder="little").astype(bool)
        return Gaussians4D(**arrays, masks=masks, key_times=key_times, duration=self.config.duration)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes a container of 4D Gaussians (`core_splatting.formats.container4d`)."""
        from ..formats.container4d import write_4d

        write_4d(path, self.gaussians(), seed=self.config.seed)


def _points(scene: Scene, rng: np.random.Generator, most: int) -> tuple[Any, Any]:
    if len(scene.points) >= 4:
        if len(scene.points) <= most:
            return scene.points, scene.colors
        chosen = rng.choice(len(scene.points), most, replace=False)
        return scene.points[chosen], scene.colors[chosen]
    centre, distance = scene.focus()
    count = min(most, 10_000)
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return centre + directions * (rng.random((count, 1)) ** (1 / 3) * distance), rng.random((count, 3))


def _log_sizes(points: Any, config: Config) -> Any:
    from scipy.spatial import cKDTree

    distances, _ = cKDTree(points).query(points, k=4)
    size = np.sqrt((distances[:, 1:] ** 2).mean(1)).clip(1e-7)
    return np.log(size * (0.1 if config.strategy == "mcmc" else 1.0))[:, None]


def _looks(colors: Any, config: Config, terms: int) -> dict[str, Any]:
    sh = np.zeros((len(colors), terms, 3))
    sh[:, 0] = (colors - 0.5) / SH_C0
    return {"logit_opacities": np.full(len(sh), 0.0 if config.strategy == "mcmc" else np.log(0.1 / 0.9)), "sh": sh}


def _tensors(values: dict[str, Any], device: str) -> dict[str, Tensor]:
    return {name: torch.as_tensor(np.asarray(v, np.float32), device=device) for name, v in values.items()}
