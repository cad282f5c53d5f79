"""The trained tensors of a scene, with the state that Adam keeps of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..formats import SH_C0, Gaussians
from ..optim import SelectiveAdam
from ..scenes import Scene
from .config import Config

NAMES = ("means", "quats", "log_scales", "logit_opacities", "sh0", "shN")


class Model:
    """Parameters by name (those of `Gaussians`, `sh` as sh0 (N, 1, 3) and shN (N, K - 1, 3)) and their optimiser."""

    def __init__(self, values: dict[str, Tensor], config: Config, extent: float) -> None:
        rates = (
            config.lr_means * extent, config.lr_quats, config.lr_scales, config.lr_opacities, config.lr_sh0,
            config.lr_shn,
        )  # fmt: skip
        self.parameters = {name: values[name].detach().clone().requires_grad_() for name in NAMES}
        self.optimizer = SelectiveAdam(
            [{"params": [self.parameters[n]], "lr": lr, "name": n} for n, lr in zip(NAMES, rates, strict=True)]
        )

    def __len__(self) -> int:
        return len(self.parameters["means"])

    def __getattr__(self, name: str) -> Tensor:
        if name in NAMES:
            return self.parameters[name]
        raise AttributeError(name)

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

    def gaussians(self) -> Gaussians:
        """A copy as numpy arrays."""
        arrays = {n: self.parameters[n].detach().cpu().numpy().copy() for n in NAMES}
        sh = np.concatenate([arrays.pop("sh0"), arrays.pop("shN")], 1)
        return Gaussians(**arrays, sh=sh)


def initial(scene: Scene, config: Config, device: str, count: int = 10_000) -> dict[str, Tensor]:
    """Gaussians at the scene's points, as large as the distance to the three nearest others, of opacity 0.1 (0.5 for
    MCMC); without points, `count` random grey ones in the ball about which the cameras stand."""
    from scipy.spatial import cKDTree

    rng = np.random.default_rng(config.seed)
    points, colors = scene.points, scene.colors
    if len(points) < 4:
        centre, distance = scene.focus()
        directions = rng.normal(size=(count, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        points = centre + directions * (rng.random((count, 1)) ** (1 / 3) * distance)
        colors = rng.random((count, 3))
    distances, _ = cKDTree(points).query(points, k=4)
    size = np.sqrt((distances[:, 1:] ** 2).mean(1)).clip(1e-7)
    n, k = len(points), (config.sh_degree + 1) ** 2
    values: dict[str, Any] = {
        "means": points,
        "quats": rng.random((n, 4)),
        "log_scales": np.repeat(np.log(size * (0.1 if config.strategy == "mcmc" else 1.0))[:, None], 3, 1),
        "logit_opacities": np.full(n, 0.0 if config.strategy == "mcmc" else np.log(0.1 / 0.9)),
        "sh0": ((colors - 0.5) / SH_C0)[:, None],
        "shN": np.zeros((n, k - 1, 3)),
    }
    return {name: torch.as_tensor(np.asarray(v, np.float32), device=device) for name, v in values.items()}
