"""Trains Gaussians, 3D or 4D, on posed photographs."""

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

from ..scenes import Scene
from ..ssim import ssim
from .config import Config
from .densify import MCMC, Default, Fixed
from .model import Model3D, Model4D, Picture

_FORMAT = "core-splatting trainer 2"
_STRATEGIES = {"default": Default, "mcmc": MCMC, "fixed": Fixed}


def psnr(image: Tensor, target: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [0, 1]."""
    return float(-10 * torch.log10((image.clamp(0, 1) - target).square().mean().clamp(min=1e-12)))


class Trainer:
    """3D Gaussian splatting (arXiv 2308.04079), or with a `config.duration` 4D (arXiv 2310.10642), on the CPU or CUDA;
    Gaussians are added and taken away by its rules or by those of MCMC (arXiv 2404.09591).

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
        late = next((v for v in scene.views if config.duration and not 0 <= v.time <= config.duration), None)
        if late is not None:
            raise ValueError(f"Trainer: argument 'scene' must have times from 0 to {config.duration}, got {late.time}")
        self.pictures, self.held = ([Picture.of(v, downscale, device) for v in views] for views in (train, held))
        self.generator = torch.Generator().manual_seed(config.seed)
        self.order = torch.empty(0, dtype=torch.int64)
        self.kind: type[Model3D] | type[Model4D] = Model4D if config.duration else Model3D
        self.model = self.kind(self.kind.initial(scene, config, device), config, self.extent)
        self.strategy = _STRATEGIES[config.strategy](config, self.extent, self.generator)

    def render(self, picture: Picture, background: Tensor | None = None, meta: bool = False) -> tuple[Tensor, Any]:
        """The (H, W, 3) image of a picture's camera, and the rasteriser's third result."""
        return self.model.render(picture, self.step, background, meta)

    def run(self, steps: int) -> Iterator[Tensor]:
        """Trains `steps` more steps, at most to the end of the run; yields the loss of each, on the device: who asks
        for its value waits for the step."""
        for _ in range(min(steps, self.config.steps - self.step)):
            yield self._train_step()

    def _train_step(self) -> Tensor:
        c = self.config
        rate = c.lr_means * self.extent * 0.01 ** (self.step / c.steps)
        self.model.set_rate("means", rate)
        observes = self.strategy.observes(self.step)
        meta = observes or c.visible_only
        losses, metas = zip(*(self._picture_loss(self._next_picture(), meta) for _ in range(c.batch)), strict=True)
        loss = sum(losses) / c.batch
        (loss + self.strategy.penalty(self.model)).backward()
        for found in metas if observes else ():
            # Densification looks at the derivative of one picture's loss.
            self.strategy.observe(self.model, found | {"n_cameras": c.batch})
        seen = torch.stack([self._seen(found) for found in metas]).any(0) if c.visible_only else None
        self.model.optimizer.step(seen)
        self.model.optimizer.zero_grad(set_to_none=True)
        self.strategy.after(self.model, self.step, rate)
        self.step += 1
        return loss.detach()

    def _next_picture(self) -> Picture:
        if not len(self.order):
            self.order = torch.randperm(len(self.pictures), generator=self.generator)
        picture = self.pictures[int(self.order[-1])]
        self.order = self.order[:-1]
        return picture

    def _picture_loss(self, picture: Picture, meta: bool) -> tuple[Tensor, Any]:
        image, information = self.render(picture, self._background(), meta)
        target = picture.pixels / 255
        similarity = ssim(image.permute(2, 0, 1)[None], target.permute(2, 0, 1)[None]).mean()
        weight = self.config.ssim_weight
        return (1 - weight) * (image - target).abs().mean() + weight * (1 - similarity), information

    def _seen(self, meta: Any) -> Tensor:
        visible = (meta["radii"] > 0).all(-1).any(0)
        indices = meta.get("indices")
        if indices is None:
            return visible
        seen = torch.zeros(len(self.model), dtype=torch.bool, device=visible.device)
        seen[indices] = visible
        return seen

    def _background(self) -> Tensor | None:
        if self.config.background == "random":
            return torch.rand(3, generator=self.generator).to(self.device)
        return torch.ones(3, device=self.device) if self.config.background == "white" else None

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Mean PSNR (dB) and SSIM over the views that were held out; NaN without any."""
        white = torch.ones(3, device=self.device) if self.config.background == "white" else None
        rows = []
        for picture in self.held:
            image, target = self.render(picture, white)[0].clamp(0, 1), picture.pixels / 255
            similarity = ssim(image.permute(2, 0, 1)[None], target.permute(2, 0, 1)[None]).mean()
            rows.append((psnr(image, target), float(similarity)))
        means = np.mean(rows, 0) if rows else (float("nan"), float("nan"))
        return {"psnr": float(means[0]), "ssim": float(means[1])}

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

    @staticmethod
    def resume(path: str | os.PathLike[str], scene: Scene, **options: Any) -> Trainer:
        """A trainer as it was saved, with the configuration of the checkpoint; `options` as for `Trainer`."""
        given = _read(Path(path))[0].get("config")
        known = {f.name: f.type for f in dataclasses.fields(Config)}
        if not isinstance(given, dict) or given.keys() - known.keys():
            raise ValueError(f"{path}: expected a configuration of the trainer, got {given!r}")
        wrong = [k for k, v in given.items() if type(v).__name__ != known[k] and (known[k], type(v)) != ("float", int)]
        if wrong:
            raise ValueError(f"{path}: expected '{wrong[0]}' to be {known[wrong[0]]}, got {given[wrong[0]]!r}")
        trainer = Trainer(scene, Config(**given), **options)
        trainer.load(path)
        return trainer

    def load(self, path: str | os.PathLike[str]) -> None:
        """Goes on from a checkpoint of a run with the same configuration and views; raises ValueError for another."""
        path = Path(path)
        about, tensors = _read(path)
        mine = dataclasses.asdict(self.config)
        other = {k: v for k, v in about["config"].items() if mine.get(k) != v}
        if other:
            raise ValueError(f"{path}: expected a run with this configuration, it had {other}")
        if not 0 <= about["step"] <= self.config.steps:
            raise ValueError(f"{path}: expected 'step' to be 0 to {self.config.steps}, got {about['step']}")
        self._check(path, tensors)
        values = {n: tensors[f"model.{n}"].to(self.device) for n in self.kind.names}
        self.model = self.kind(values, self.config, self.extent)
        for name, parameter in self.model.parameters.items():
            prefix = f"adam.{name}."
            state = {k.removeprefix(prefix): v.to(self.device) for k, v in tensors.items() if k.startswith(prefix)}
            if state:
                self.model.optimizer.state[parameter] = state
        self.strategy.state = {
            k.removeprefix("strategy."): v.to(self.device) for k, v in tensors.items() if k.startswith("strategy.")
        }
        self.order, self.step = tensors["order"], about["step"]
        self.generator.set_state(tensors["generator"])

    def _check(self, path: Path, tensors: dict[str, Tensor]) -> None:
        """Raises ValueError unless the tensors are those of this trainer, of any number of Gaussians."""
        count, order = (len(tensors[n]) if n in tensors and tensors[n].ndim else 0 for n in ("model.means", "order"))
        wanted = {f"model.{n}": ((count, *p.shape[1:]), torch.float32) for n, p in self.model.parameters.items()}
        for name, parameter in self.model.parameters.items():
            if any(k.startswith(f"adam.{name}.") for k in tensors):
                moments = ((count, *parameter.shape[1:]), torch.float32)
                wanted |= {f"adam.{name}.exp_avg": moments, f"adam.{name}.exp_avg_sq": moments}
                wanted[f"adam.{name}.steps"] = ((count,), torch.int32)
        if any(k.startswith("strategy.") for k in tensors):
            wanted |= {f"strategy.{k}": ((count,), torch.float32) for k in ("gradient", "seen")}
        wanted["order"] = ((order,), torch.int64)
        wanted["generator"] = (tuple(self.generator.get_state().shape), torch.uint8)
        for name, (shape, dtype) in wanted.items():
            found = tensors.get(name)
            if found is None or found.dtype != dtype or tuple(found.shape) != shape:
                got = "none" if found is None else f"{found.dtype} of shape {tuple(found.shape)}"
                raise ValueError(f"{path}: expected the tensor '{name}', {dtype} of shape {shape}, got {got}")
        if tensors.keys() - wanted.keys():
            raise ValueError(f"{path}: expected no tensor '{min(tensors.keys() - wanted.keys())}'")
        if not ((tensors["order"] >= 0) & (tensors["order"] < len(self.pictures))).all():
            raise ValueError(f"{path}: expected 'order' to name some of {len(self.pictures)} pictures")


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a checkpoint says of itself, and its tensors."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("core", "null"))
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, RecursionError) as e:
        raise ValueError(f"{path}: expected a checkpoint of the trainer: {e}") from None
    if not isinstance(about, dict) or about.get("format") != _FORMAT:
        raise ValueError(f"{path}: expected a checkpoint of the trainer ('{_FORMAT}'), got {about!r}")
    for name, kind in (("config", dict), ("step", int)):
        if type(about.get(name)) is not kind:
            raise ValueError(f"{path}: expected '{name}' to be {kind.__name__}, got {about.get(name)!r}")
    return about, tensors
