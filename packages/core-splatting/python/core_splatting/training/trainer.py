"""Trains 3D Gaussians on posed photographs."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from core_registry import files
from torch import Tensor

from ..formats import Gaussians
from ..rasterize import rasterization
from ..scenes import Scene, View
from ..ssim import ssim
from .config import Config
from .densify import MCMC, Default, Strategy
from .model import NAMES, Model, initial

_FORMAT = "core-splatting trainer 1"


@dataclasses.dataclass(frozen=True)
class Picture:
    """A photograph as it is trained on: pixels (H, W, 3) uint8, viewmat (4, 4) and K (3, 3) float32."""

    pixels: Tensor
    viewmat: Tensor
    K: Tensor

    @staticmethod
    def of(view: View, downscale: int, device: str) -> Picture:
        """Loads, scales and undistorts a view."""
        image, K = view.load(downscale)
        pixels = torch.as_tensor(np.rint(image * 255).astype(np.uint8), device=device)
        return Picture(pixels, *(torch.as_tensor(m.astype(np.float32), device=device) for m in (view.viewmat, K)))


def psnr(image: Tensor, target: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [0, 1]."""
    return float(-10 * torch.log10((image.clamp(0, 1) - target).square().mean().clamp(min=1e-12)))


class Trainer:
    """3D Gaussian splatting (arXiv 2308.04079), or its MCMC form (arXiv 2404.09591), on the CPU or CUDA.

    A run is the same for a seed, and one that was saved and loaded goes on as if it had not been (on CUDA but for the
    order of sums in the gradient).

    Args:
        scene: views and points to begin from.
        config: see `Config`.
        downscale: by which the sides of the photographs are divided.
        device: "cpu", "cuda", ...
        hold_out: each such view in the order of names is kept to judge by; 0 for none.
    """

    def __init__(
        self, scene: Scene, config: Config, *, downscale: int = 1, device: str = "cpu", hold_out: int = 8
    ) -> None:
        self.config, self.extent, self.device, self.step = config, scene.extent, device, 0
        train, held = scene.split(hold_out)
        if not train:
            raise ValueError(f"Trainer: argument 'scene' must leave a view to train on, got {len(scene.views)} views")
        self.pictures, self.held = ([Picture.of(v, downscale, device) for v in views] for views in (train, held))
        self.generator = torch.Generator().manual_seed(config.seed)
        self.order = torch.empty(0, dtype=torch.int64)
        self.model = Model(initial(scene, config, device), config, self.extent)
        kind = MCMC if config.strategy == "mcmc" else Default
        self.strategy: Strategy = kind(config, self.extent, self.generator)

    def render(self, picture: Picture, background: Tensor | None = None, meta: bool = False) -> tuple[Tensor, Any]:
        """The (H, W, 3) image of a picture's camera, and the rasteriser's third result."""
        m, (height, width) = self.model, picture.pixels.shape[:2]
        mode = "antialiased" if self.config.antialiased else "classic"
        sh = torch.cat([m.sh0, m.shN], 1)
        image, _, information = rasterization(
            m.means, m.quats, m.log_scales.exp(), torch.sigmoid(m.logit_opacities), sh, picture.viewmat[None],
            picture.K[None], width, height, sh_degree=min(self.step // self.config.sh_every, self.config.sh_degree),
            backgrounds=None if background is None else background[None], meta=meta,
            absgrad=meta and self.config.absgrad, rasterize_mode=mode,
        )  # fmt: skip
        return image[0], information

    def run(self, steps: int) -> Iterator[float]:
        """Trains `steps` more steps, at most to the end of the run; yields the loss of each."""
        for _ in range(min(steps, self.config.steps - self.step)):
            yield self._train_step()

    def _train_step(self) -> float:
        c = self.config
        if not len(self.order):
            self.order = torch.randperm(len(self.pictures), generator=self.generator)
        picture = self.pictures[int(self.order[-1])]
        self.order = self.order[:-1]
        rate = c.lr_means * self.extent * 0.01 ** (self.step / c.steps)
        self.model.set_rate("means", rate)
        background = self._background()
        image, meta = self.render(picture, background, meta=True)
        target = picture.pixels.float() / 255
        similarity = ssim(image.permute(2, 0, 1)[None], target.permute(2, 0, 1)[None]).mean()
        loss = (1 - c.ssim_weight) * (image - target).abs().mean() + c.ssim_weight * (1 - similarity)
        (loss + self.strategy.penalty(self.model)).backward()
        self.strategy.observe(self.model, meta, self.step)
        seen = (meta["radii"] > 0).all(-1).any(0) if c.visible_only else None
        self.model.optimizer.step(seen)
        self.model.optimizer.zero_grad(set_to_none=True)
        self.strategy.after(self.model, self.step, rate)
        self.step += 1
        return float(loss.detach())

    def _background(self) -> Tensor | None:
        if self.config.background == "random":
            return torch.rand(3, generator=self.generator).to(self.device)
        return torch.ones(3, device=self.device) if self.config.background == "white" else None

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def evaluate(self) -> dict[str, float]:
        """Mean PSNR (dB) and SSIM over the views that were held out; NaN without any."""
        white = torch.ones(3, device=self.device) if self.config.background == "white" else None
        rows = []
        for picture in self.held:
            image, target = self.render(picture, white)[0].clamp(0, 1), picture.pixels.float() / 255
            similarity = ssim(image.permute(2, 0, 1)[None], target.permute(2, 0, 1)[None]).mean()
            rows.append((psnr(image, target), float(similarity)))
        means = np.mean(rows, 0) if rows else (float("nan"), float("nan"))
        return {"psnr": float(means[0]), "ssim": float(means[1])}

    def gaussians(self) -> Gaussians:
        """What has been trained so far."""
        return self.model.gaussians()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a checkpoint (.safetensors), from which `load` goes on exactly."""
        from safetensors.torch import save_file

        tensors = {f"model.{n}": p.detach() for n, p in self.model.parameters.items()}
        for name, parameter in self.model.parameters.items():
            for key, value in self.model.optimizer.state.get(parameter, {}).items():
                tensors[f"adam.{name}.{key}"] = value
        tensors |= {f"strategy.{k}": v for k, v in self.strategy.state.items()}
        tensors |= {"order": self.order, "generator": self.generator.get_state()}
        about = {"format": _FORMAT, "step": self.step, "config": dataclasses.asdict(self.config)}
        with files.replace(path) as temporary:
            save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, temporary, {"core": json.dumps(about)})

    def load(self, path: str | os.PathLike[str]) -> None:
        """Goes on from a checkpoint of a run with the same configuration and views; raises ValueError for another."""
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {}).get("core", "null"))
                tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        except (SafetensorError, ValueError) as e:
            raise ValueError(f"{path}: expected a checkpoint of the trainer: {e}") from None
        if not isinstance(about, dict) or about.get("format") != _FORMAT:
            raise ValueError(f"{path}: expected a checkpoint of the trainer ('{_FORMAT}'), got {about!r}")
        mine = dataclasses.asdict(self.config)
        other = {k: v for k, v in about["config"].items() if mine.get(k) != v}
        if other:
            raise ValueError(f"{path}: expected a run with this configuration, it had {other}")
        missing = {"order", "generator", *(f"model.{n}" for n in NAMES)} - tensors.keys()
        if missing:
            raise ValueError(f"{path}: expected the tensor '{min(missing)}'")
        values = {n: tensors[f"model.{n}"].to(self.device) for n in NAMES}
        shapes = {n: (len(values["means"]), *p.shape[1:]) for n, p in self.model.parameters.items()}
        for name, shape in shapes.items():
            if tuple(values[name].shape) != tuple(shape) or values[name].dtype != torch.float32:
                raise ValueError(f"{path}: expected '{name}' to be float32 of shape {shape}, got {values[name].shape}")
        self.model = Model(values, self.config, self.extent)
        for name, parameter in self.model.parameters.items():
            prefix = f"adam.{name}."
            state = {k.removeprefix(prefix): v.to(self.device) for k, v in tensors.items() if k.startswith(prefix)}
            if state:
                self.model.optimizer.state[parameter] = state
        self.strategy.state = {
            k.removeprefix("strategy."): v.to(self.device) for k, v in tensors.items() if k.startswith("strategy.")
        }
        self.order, self.step = tensors["order"], int(about["step"])
        self.generator.set_state(tensors["generator"])
