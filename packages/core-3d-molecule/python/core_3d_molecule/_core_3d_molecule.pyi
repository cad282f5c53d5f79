# Made by `core stubs core_3d_molecule`.
from typing import Any, SupportsIndex

def octree_count(
    positions: Any,  # float32 | float64[A,3]
    offsets: Any,  # int64[B+1]
    depth: SupportsIndex,
    cell: float,
    resolution: float,
    keep_first: bool,
    crop: bool,
    seed: SupportsIndex,
    middles: Any | None,  # float64[B,3]
    drops: Any | None,  # float64[B]
    counts: Any,  # out int64[B]
) -> None:
    """The number of octree tokens of each structure of a batch."""

def octree_tokenize(
    numbers: Any,  # int32[A]
    positions: Any,  # float32 | float64[A,3]
    offsets: Any,  # int64[B+1]
    token_offsets: Any,  # int64[B+1]
    depth: SupportsIndex,
    cell: float,
    resolution: float,
    keep_first: bool,
    crop: bool,
    seed: SupportsIndex,
    middles: Any | None,  # float64[B,3]
    drops: Any | None,  # float64[B]
    tokens: Any,  # out int32[T]
    levels: Any,  # out int32[T]
    centres: Any,  # out float32[T,3]
    bins: Any,  # out int32[T,3]
    counts: Any,  # out int32[T]
    atoms: Any,  # out int64[T]
    origins: Any,  # out float64[B,3]
) -> None:
    """The octree tokens of each structure of a batch: nodes coarse to fine, atoms, CLS."""

def octree_augment(
    positions: Any,  # float64[A,3]
    offsets: Any,  # int64[B+1]
    anchors: SupportsIndex,
    rotate: float,
    noise: float,
    step: float,
    steps: SupportsIndex,
    drop: float,
    seed: SupportsIndex,
    moved: Any,  # out float64[A,3]
    middles: Any,  # out float64[B,3]
    drops: Any,  # out float64[B]
) -> None:
    """Random rotations and shifts of each structure of a batch."""

def octree_detokenize(
    tokens: Any,  # int32[T]
    bins: Any,  # int32[T,3]
    token_offsets: Any,  # int64[B+1]
    origins: Any | None,  # float64[B,3]
    offsets: Any,  # int64[B+1]
    depth: SupportsIndex,
    cell: float,
    resolution: float,
    numbers: Any,  # out int32[A]
    positions: Any,  # out float64[A,3]
) -> None:
    """The structures of a batch of octree token streams."""

def octree_pack(
    tokens: Any,  # int32[T]
    levels: Any,  # int32[T]
    centres: Any,  # float32[T,3]
    bins: Any,  # int32[T,3]
    counts: Any,  # int32[T]
    token_offsets: Any,  # int64[R+1]
    conditions: Any,  # int32[B,C]
    trees: SupportsIndex,
    depth: SupportsIndex,
    cell: float,
    resolution: float,
    packed_tokens: Any,  # out int32[S]
    packed_levels: Any,  # out int32[S]
    positions: Any,  # out float32[S,3]
    packed_bins: Any,  # out int32[S,3]
    packed_trees: Any,  # out int32[S]
    packed_counts: Any,  # out int32[S]
    remaining: Any,  # out int32[S,2]
    cu_seqlens: Any,  # out int32[B+1]
) -> None:
    """Octree tokens as a model's input: each after its MASK copy, with cu_seqlens."""

def edm_stability(
    numbers: Any,  # int32[A]
    positions: Any,  # float32 | float64[A,3]
    offsets: Any,  # int64[B+1]
    allowed: Any,  # int64[119]
    valences: Any,  # out int32[A]
    stable_atoms: Any,  # out int64[B]
    bond_counts: Any,  # out int64[B]
) -> None:
    """Valences by EDM's bond lengths, and how many atoms of each molecule have an allowed one."""

def edm_bonds(
    numbers: Any,  # int32[A]
    positions: Any,  # float32 | float64[A,3]
    offsets: Any,  # int64[B+1]
    bond_offsets: Any,  # int64[B+1]
    bonds: Any,  # out int64[M,2]
    orders: Any,  # out int32[M]
) -> None:
    """The bonds of each molecule of a batch by EDM's bond lengths."""

def valence_stability(
    numbers: Any,  # int32[A]
    charges: Any,  # int32[A]
    offsets: Any,  # int64[B+1]
    bonds: Any,  # int64[M,2]
    orders: Any,  # int32[M]
    bond_offsets: Any,  # int64[B+1]
    allowed: Any,  # int64[119,C,R]
    stable_atoms: Any,  # out int64[B]
) -> None:
    """How many atoms of each molecule have an allowed valence, by bonds that are given."""

def chain_count(
    numbers: Any,  # int32[A]
    offsets: Any,  # int64[B+1]
    bonds: Any,  # int64[M,2]
    orders: Any,  # int32[M]
    bond_offsets: Any,  # int64[B+1]
    kind: SupportsIndex,
    counts: Any,  # out int64[B]
) -> None:
    """How many bonds, angles or dihedrals each molecule has."""

def chain_values(
    numbers: Any,  # int32[A]
    positions: Any,  # float64[A,3]
    offsets: Any,  # int64[B+1]
    bonds: Any,  # int64[M,2]
    orders: Any,  # int32[M]
    bond_offsets: Any,  # int64[B+1]
    kind: SupportsIndex,
    value_offsets: Any,  # int64[B+1]
    symbols: Any,  # out int64[V]
    values: Any,  # out float64[V]
) -> None:
    """The bond lengths, angles or dihedrals of each molecule."""

def kabsch_rmsd(
    positions: Any,  # float64[A,3]
    targets: Any,  # float64[A,3]
    offsets: Any,  # int64[B+1]
    rmsd: Any,  # out float64[B]
) -> None:
    """RMSD of each structure of a batch after the best translation and rotation."""

def gaussian_mmd(
    x: Any,  # float64[N]
    y: Any,  # float64[M]
    mmd: Any,  # out float64[1]
) -> None:
    """Maximum mean discrepancy of two sets of numbers, five Gaussian kernels."""

def niggli_reduce(
    lattices: Any,  # float64[B,3,3]
    reduced: Any,  # out float64[B,3,3]
    transforms: Any,  # out int64[B,3,3]
) -> None:
    """Niggli's reduced cell of each lattice of a batch."""

def neighbor_count(
    fractional: Any,  # float64[A,3]
    lattices: Any,  # float64[B,3,3]
    offsets: Any,  # int64[B+1]
    cutoff: float,
    counts: Any,  # out int64[A]
) -> None:
    """How many neighbours each atom of each crystal has within a cutoff."""

def neighbor_list(
    fractional: Any,  # float64[A,3]
    lattices: Any,  # float64[B,3,3]
    offsets: Any,  # int64[B+1]
    cutoff: float,
    neighbor_offsets: Any,  # int64[A+1]
    pairs: Any,  # out int64[P,2]
    shifts: Any,  # out int32[P,3]
    distances: Any,  # out float64[P]
) -> None:
    """The neighbours of each atom of each crystal within a cutoff."""

def crystal_distances(
    fractional: Any,  # float64[A,3]
    lattices: Any,  # float64[B,3,3]
    offsets: Any,  # int64[B+1]
    volumes: Any,  # out float64[B]
    min_distances: Any,  # out float64[B]
) -> None:
    """The volume and the least distance between different atoms of each crystal."""

def pxrd_count(
    lattices: Any,  # float64[B,3,3]
    wavelength: float,
    low: float,
    high: float,
    counts: Any,  # out int64[B]
) -> None:
    """How many peaks the powder pattern of each crystal may have."""

def pxrd_patterns(
    numbers: Any,  # int32[A]
    fractional: Any,  # float64[A,3]
    lattices: Any,  # float64[B,3,3]
    offsets: Any,  # int64[B+1]
    capacities: Any,  # int64[B+1]
    wavelength: float,
    low: float,
    high: float,
    two_theta: Any,  # out float64[P]
    intensity: Any,  # out float64[P]
    counts: Any,  # out int64[B]
) -> None:
    """The powder diffraction pattern of each crystal."""

def lattice_from_corners(
    corners: Any,  # float64[B,8,3]
    lattices: Any,  # out float64[B,3,3]
    origins: Any,  # out float64[B,3]
    errors: Any,  # out float64[B]
) -> None:
    """The cells whose eight corners are given, in any order."""

def pxrd_profile(
    two_theta: Any,  # float64[P]
    intensity: Any,  # float64[P]
    offsets: Any,  # int64[B+1]
    high: float,
    least: float,
    zeros: SupportsIndex,
    seed: SupportsIndex,
    profiles: Any,  # out float32[B,N]
) -> None:
    """Powder diffraction patterns on a grid of angles."""

def match_crystals(
    numbers1: Any,  # int32[A]
    fractional1: Any,  # float64[A,3]
    lattices1: Any,  # float64[B,3,3]
    offsets1: Any,  # int64[B+1]
    numbers2: Any,  # int32[C]
    fractional2: Any,  # float64[C,3]
    lattices2: Any,  # float64[B,3,3]
    offsets2: Any,  # int64[B+1]
    ltol: float,
    stol: float,
    angle_tol: float,
    primitive_cell: bool,
    scale: bool,
    rms: Any,  # out float64[B]
    max_distance: Any,  # out float64[B]
) -> None:
    """Whether pairs of crystals are the same within tolerances, and how far apart their atoms are."""

def relational_attention(
    q: Any,  # float32 | float64[A,H,D]
    k: Any,  # float32 | float64[A,H,D]
    v: Any,  # float32 | float64[A,H,D]
    q_edge: Any,  # float32 | float64[A,H,E]
    k_edge: Any,  # float32 | float64[A,H,E]
    form: Any,  # float32 | float64[H,S]
    positions: Any,  # float32 | float64[A,3]
    bonds: Any,  # uint8[P]
    offsets: Any,  # int64[B+1]
    centres: Any,  # float32 | float64[G]
    widths: Any,  # float32 | float64[G]
    w1: Any,  # float32 | float64[F,I]
    b1: Any,  # float32 | float64[F]
    w2: Any,  # float32 | float64[E,F]
    b2: Any,  # float32 | float64[E]
    out: Any,  # out float32 | float64[A,H,D]
    out_edge: Any,  # out float32 | float64[A,H,E]
    lse: Any,  # out float32 | float64[A,H]
) -> None:
    """Attention among the atoms of each molecule, with features of every pair that are made on the fly."""

def relational_attention_backward(
    q: Any,  # float32 | float64[A,H,D]
    k: Any,  # float32 | float64[A,H,D]
    v: Any,  # float32 | float64[A,H,D]
    q_edge: Any,  # float32 | float64[A,H,E]
    k_edge: Any,  # float32 | float64[A,H,E]
    form: Any,  # float32 | float64[H,S]
    positions: Any,  # float32 | float64[A,3]
    bonds: Any,  # uint8[P]
    offsets: Any,  # int64[B+1]
    centres: Any,  # float32 | float64[G]
    widths: Any,  # float32 | float64[G]
    w1: Any,  # float32 | float64[F,I]
    b1: Any,  # float32 | float64[F]
    w2: Any,  # float32 | float64[E,F]
    b2: Any,  # float32 | float64[E]
    out: Any,  # float32 | float64[A,H,D]
    out_edge: Any,  # float32 | float64[A,H,E]
    lse: Any,  # float32 | float64[A,H]
    grad_out: Any,  # float32 | float64[A,H,D]
    grad_out_edge: Any,  # float32 | float64[A,H,E]
    grad_lse: Any,  # float32 | float64[A,H]
    grad_q: Any,  # out float32 | float64[A,H,D]
    grad_k: Any,  # out float32 | float64[A,H,D]
    grad_v: Any,  # out float32 | float64[A,H,D]
    grad_q_edge: Any,  # out float32 | float64[A,H,E]
    grad_k_edge: Any,  # out float32 | float64[A,H,E]
    grad_form: Any,  # out float32 | float64[H,S]
    grad_positions: Any,  # out float32 | float64[A,3]
    grad_centres: Any,  # out float32 | float64[G]
    grad_widths: Any,  # out float32 | float64[G]
    grad_w1: Any,  # out float32 | float64[F,I]
    grad_b1: Any,  # out float32 | float64[F]
    grad_w2: Any,  # out float32 | float64[E,F]
    grad_b2: Any,  # out float32 | float64[E]
) -> None:
    """The gradients of relational_attention."""

def relational_projections(
    q: Any,  # float32 | float64[A,H,D]
    k: Any,  # float32 | float64[A,H,D]
    edge_q: Any,  # float32 | float64[H,D,E]
    edge_k: Any,  # float32 | float64[H,D,E]
    scale: float,
    scaled_q: Any,  # out float32 | float64[A,H,D]
    q_edge: Any,  # out float32 | float64[A,H,E]
    k_edge: Any,  # out float32 | float64[A,H,E]
    form: Any,  # out float32 | float64[H,S]
) -> None:
    """What relational_attention reads, from projections of atoms and pairs."""

def relational_projections_backward(
    q: Any,  # float32 | float64[A,H,D]
    k: Any,  # float32 | float64[A,H,D]
    edge_q: Any,  # float32 | float64[H,D,E]
    edge_k: Any,  # float32 | float64[H,D,E]
    scale: float,
    grad_scaled_q: Any,  # float32 | float64[A,H,D]
    grad_q_edge: Any,  # float32 | float64[A,H,E]
    grad_k_edge: Any,  # float32 | float64[A,H,E]
    grad_form: Any,  # float32 | float64[H,S]
    grad_q: Any,  # out float32 | float64[A,H,D]
    grad_k: Any,  # out float32 | float64[A,H,D]
    grad_edge_q: Any,  # out float32 | float64[H,D,E]
    grad_edge_k: Any,  # out float32 | float64[H,D,E]
) -> None:
    """The gradients of relational_projections."""

def relational_values(
    out: Any,  # float32 | float64[A,H,D]
    out_edge: Any,  # float32 | float64[A,H,E]
    edge_v: Any,  # float32 | float64[H,D,E]
    values: Any,  # out float32 | float64[A,H,D]
) -> None:
    """The mean of values that see the pairs' features, from relational_attention's means."""

def relational_values_backward(
    out_edge: Any,  # float32 | float64[A,H,E]
    edge_v: Any,  # float32 | float64[H,D,E]
    grad_values: Any,  # float32 | float64[A,H,D]
    grad_out_edge: Any,  # out float32 | float64[A,H,E]
    grad_edge_v: Any,  # out float32 | float64[H,D,E]
) -> None:
    """The gradients of relational_values."""
