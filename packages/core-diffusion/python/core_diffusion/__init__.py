"""core-diffusion: exact set diffusion, and meshes of partly known volumes."""

from .marching_cubes import marching_cubes, sparse_marching_cubes
from .set_diffusion import (
    FixedSumScheduler,
    FixedSumSchedulerOutput,
    fixed_sum_bridge,
    fixed_sum_prior,
    fixed_sum_sample,
)

__all__ = [
    "FixedSumScheduler",
    "FixedSumSchedulerOutput",
    "fixed_sum_bridge",
    "fixed_sum_prior",
    "fixed_sum_sample",
    "marching_cubes",
    "sparse_marching_cubes",
]
