# Made by `core stubs core_diffusion`.
from typing import Any, SupportsIndex

def fixed_sum_sample(
    probs: Any,  # float32 | float64[B,K,C]
    totals: Any,  # int64[B]
    top_p: float,
    seed: SupportsIndex,
    out: Any,  # out int32[B,K]
) -> None:
    """Count vectors drawn from independent categorical laws `probs`, conditioned exactly on the sums `totals`."""

def fixed_sum_bridge(
    x0: Any,  # int32 | int64[B,K]
    x1: Any,  # int32 | int64[B,K]
    t: float,
    sigma: float,
    max_count: SupportsIndex,
    seed: SupportsIndex,
    out: Any,  # out int32[B,K]
) -> None:
    """A state at time `t` of the fixed-sum path from `x0` to `x1`, conditioned exactly on the common row sums."""
