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
    t: Any,  # float64[B]
    sigma: float,
    max_count: SupportsIndex,
    seed: SupportsIndex,
    out: Any,  # out int32[B,K]
) -> None:
    """A state at the rows' times `t` of the fixed-sum path from `x0` to `x1`, conditioned exactly on the common row sums."""

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

def grid_points(
    first: SupportsIndex,
    size: SupportsIndex,
    low: Any,  # float64[3]
    spacing: Any,  # float64[3]
    points: Any,  # out float32[N,3]
) -> None:
    """Where consecutive nodes of a grid lie."""

def refine_start(
    coarse: Any,  # float32[B,N,N,N]
    level: float,
    near: float,
    dilation: SupportsIndex,
    size: SupportsIndex,
    values: Any,  # out float32[B,V]
    nodes: Any,  # out uint8[B,P]
    cells: Any,  # out uint8[B,Q]
    tiles: Any,  # out int64[B,T,4]
    counts: Any,  # out int64[B+1,2]
) -> None:
    """Begins a level of a hierarchical decoder: marks the cells that the surface crosses or approaches, and their nodes."""

def refine_ask(
    size: SupportsIndex,
    low: Any,  # float64[3]
    spacing: Any,  # float64[3]
    nodes: Any,  # out uint8[B,P]
    tiles: Any,  # int64[B,T,4]
    index: Any,  # out int64[B,M]
    points: Any,  # out float32[B,M,3]
) -> None:
    """Lists the nodes of a level that are to be asked, and where they lie."""

def refine_follow(
    size: SupportsIndex,
    index: Any,  # int64[B,M]
    found: Any,  # float32[B,M]
    level: float,
    round: SupportsIndex,
    values: Any,  # out float32[B,V]
    nodes: Any,  # out uint8[B,P]
    cells: Any,  # out uint8[B,Q]
    tiles: Any,  # out int64[B,T,4]
    counts: Any,  # out int64[B+1,2]
) -> None:
    """Takes the answers at a level's nodes and marks the cells into which the surface runs on, and their nodes."""

def refine_known(
    size: SupportsIndex,
    values: Any,  # float32[B,V]
    nodes: Any,  # uint8[B,P]
    tiles: Any,  # int64[B,T,4]
    index: Any,  # out int64[K]
    found: Any,  # out float32[K]
) -> None:
    """Lists the known nodes of a level and their values."""

def nearest_codes(
    x: Any,  # float32[N,D]
    codes: Any,  # float32[K,D]
    index: Any,  # out int64[N]
    distance: Any,  # out float32[N]
) -> None:
    """The nearest code of each vector, and its squared distance."""

def kmeans_init(
    x: Any,  # float32[N,D]
    trials: SupportsIndex,
    seed: SupportsIndex,
    centers: Any,  # out float32[K,D]
) -> None:
    """First centers of k-means: rows of `x` drawn by greedy k-means++."""

def kmeans(
    x: Any,  # float32[N,D]
    init: Any,  # float32[K,D]
    max_iter: SupportsIndex,
    tol: float,
    centers: Any,  # out float32[K,D]
    labels: Any,  # out int64[N]
    inertia: Any,  # out float64[1]
    rounds: Any,  # out int64[1]
) -> None:
    """Lloyd's k-means without empty clusters, the same for any number of threads."""

def topk_mask(
    scores: Any,  # float32 | float64[R,C]
    k: SupportsIndex,
    mask: Any,  # out bool[R,C]
    kth: Any,  # out float32 | float64[R]
) -> None:
    """Marks exactly the `k` largest scores of each row; ties: lower columns first."""

def moe_route(
    mask: Any,  # bool[T,E]
    offsets: Any,  # out int64[O]
    tokens: Any,  # out int64[A]
) -> None:
    """Lists the tokens of each expert from a selection mask."""

def expert_ffn(
    x: Any,  # float32[T,D]
    tokens: Any,  # int64[A]
    offsets: Any,  # int64[O]
    gates: Any,  # float32[T,E]
    up: Any,  # float32[E,H,D]
    up_bias: Any | None,  # float32[E,H]
    down: Any,  # float32[E,D,H]
    down_bias: Any | None,  # float32[E,D]
    activation: str,
    hidden: Any | None,  # out float32[P,H]
    out: Any,  # out float32[T,D]
) -> None:
    """The weighted sum of the feed-forward networks of each token's experts."""

def expert_ffn_backward(
    dout: Any,  # float32[T,D]
    x: Any,  # float32[T,D]
    tokens: Any,  # int64[A]
    offsets: Any,  # int64[O]
    gates: Any,  # float32[T,E]
    up: Any,  # float32[E,H,D]
    down: Any,  # float32[E,D,H]
    down_bias: Any | None,  # float32[E,D]
    hidden: Any,  # float32[P,H]
    activation: str,
    dx: Any,  # out float32[T,D]
    dgates: Any,  # out float32[T,E]
    dup: Any,  # out float32[E,H,D]
    dup_bias: Any | None,  # out float32[E,H]
    ddown: Any,  # out float32[E,D,H]
    ddown_bias: Any | None,  # out float32[E,D]
) -> None:
    """The derivatives of expert_ffn."""
