"""core-diffusion: exact set diffusion, codebooks, meshes of partly known volumes, mixture-of-experts layers."""

from .codebook import CoarseToFine, KMeans, k_means, nearest_codes
from .marching_cubes import marching_cubes, sparse_marching_cubes
from .moe import expert_ffn, moe_route, topk_mask
from .set_diffusion import (
    FixedSumScheduler,
    FixedSumSchedulerOutput,
    fixed_sum_bridge,
    fixed_sum_prior,
    fixed_sum_sample,
)

__all__ = [
    "CoarseToFine",
    "FixedSumScheduler",
    "FixedSumSchedulerOutput",
    "KMeans",
    "expert_ffn",
    "fixed_sum_bridge",
    "fixed_sum_prior",
    "fixed_sum_sample",
    "k_means",
    "marching_cubes",
    "moe_route",
    "nearest_codes",
    "sparse_marching_cubes",
    "topk_mask",
]
