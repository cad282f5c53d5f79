"""What a training run may be told."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a `Trainer`; the defaults are those of the reference code of 3D Gaussian splatting (arXiv
    2308.04079), and for strategy "mcmc" those of 3DGS-MCMC (arXiv 2404.09591).

    Rates are per step; that of the means is times the scene's extent and falls a hundredfold over the run. `for_steps`
    shortens the schedule (`sh_every`, `refine_*`) with a run of less than 7,000 steps. `visible_only` moves a
    Gaussian only in steps that see it. `most` bounds their number and is at least 4; `noise` and the penalties are of
    MCMC. A step sees `batch` pictures. Strategy "fixed" neither adds nor takes away Gaussians.

    With a `duration` above 0 the Gaussians are 4D (arXiv 2310.10642) and views have times from 0 to it; their colours
    change with a cosine series of `sh_time_degree` terms, whose degree rises after that of the harmonics.
    """

    steps: int = 30_000
    sh_degree: int = 3
    sh_every: int = 1000
    duration: float = 0.0
    sh_time_degree: int = 2
    batch: int = 1
    strategy: str = "default"
    ssim_weight: float = 0.2
    lr_means: float = 1.6e-4
    lr_quats: float = 1e-3
    lr_scales: float = 5e-3
    lr_opacities: float = 5e-2
    lr_sh0: float = 2.5e-3
    lr_shn: float = 2.5e-3 / 20
    visible_only: bool = False
    background: str = "black"
    antialiased: bool = False
    refine_start: int = 500
    refine_stop: int = 15_000
    refine_every: int = 100
    reset_every: int = 3000
    grow_gradient: float = 2e-4
    absgrad: bool = False
    grow_scale: float = 0.01
    prune_opacity: float = 0.005
    prune_scale: float = 0.1
    most: int = 1_000_000
    noise: float = 5e5
    opacity_penalty: float = 0.01
    scale_penalty: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        problems = {
            "steps": self.steps >= 1,
            "sh_degree": 0 <= self.sh_degree <= 3,
            "sh_time_degree": 0 <= self.sh_time_degree <= 2,
            "duration": 0 <= self.duration < 1e30,
            "batch": self.batch >= 1,
            "strategy": self.strategy in ("default", "mcmc", "fixed"),
            "background": self.background in ("black", "white", "random"),
            "ssim_weight": 0 <= self.ssim_weight <= 1,
            "refine_every": self.refine_every >= 1,
            "reset_every": self.reset_every >= 1,
            "sh_every": self.sh_every >= 1,
            "most": self.most >= 4,
        }
        for name, good in problems.items():
            if not good:
                raise ValueError(f"Config: argument '{name}' is out of range, got {getattr(self, name)!r}")

    @staticmethod
    def for_steps(steps: int, **changes: Any) -> Config:
        """The settings of a run of `steps`, its schedule shortened if that is less than 7,000."""
        whole, part = Config(), min(steps / 7000, 1)
        schedule = {k: max(round(getattr(whole, k) * part), 1) for k in _SCHEDULE}
        schedule["refine_every"] = max(schedule["refine_every"], 25)
        return Config(**({"steps": steps} | schedule | changes))


_SCHEDULE = ("sh_every", "refine_start", "refine_stop", "refine_every")
