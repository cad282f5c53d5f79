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

def marching_cubes_count(
    volume: Any,  # float32[X,Y,Z]
    level: float,
    counts: Any,  # out int64[2]
) -> None:
    """How many vertices and triangles `marching_cubes` gives."""

def marching_cubes(
    volume: Any,  # float32[X,Y,Z]
    level: float,
    origin: Any,  # float64[3]
    spacing: Any,  # float64[3]
    inward: bool,
    vertices: Any,  # out float32[V,3]
    faces: Any,  # out int32[F,3]
) -> None:
    """The level set of a volume, NaN where unknown, as an indexed mesh in world units."""

def sparse_marching_cubes_count(
    index: Any,  # int64[N]
    values: Any,  # float32[N]
    shape: Any,  # int64[3]
    level: float,
    counts: Any,  # out int64[2]
) -> None:
    """How many vertices and triangles `sparse_marching_cubes` gives."""

def sparse_marching_cubes(
    index: Any,  # int64[N]
    values: Any,  # float32[N]
    shape: Any,  # int64[3]
    level: float,
    origin: Any,  # float64[3]
    spacing: Any,  # float64[3]
    inward: bool,
    vertices: Any,  # out float32[V,3]
    faces: Any,  # out int32[F,3]
) -> None:
    """The level set of a volume of which the nodes `index` are known, as an indexed mesh in world units."""
