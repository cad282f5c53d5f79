"""core-diffusion: exact set diffusion."""

from .set_diffusion import (
    FixedSumScheduler,
    FixedSumSchedulerOutput,
    fixed_sum_bridge,
    fixed_sum_prior,
    fixed_sum_sample,
)

__all__ = ["FixedSumScheduler", "FixedSumSchedulerOutput", "fixed_sum_bridge", "fixed_sum_prior", "fixed_sum_sample"]
