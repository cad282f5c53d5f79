# Made by `core stubs core_agents`.
from typing import Any, SupportsIndex

def check_program(
    kinds: Any,  # uint8[P]
    ends: Any,  # int32[P]
    features: Any,  # int32[P]
    comparisons: Any,  # uint8[P]
    thresholds: Any,  # float32[P]
    action_ids: Any,  # int32[P]
    results: Any,  # uint8[P]
    params: Any,  # int32[P]
    num_features: SupportsIndex,
    rows: Any,  # out int32[P]
    sizes: Any,  # out int64[2]
) -> None:
    """Checks a behaviour-tree program (flat pre-order arrays) and writes into `rows` each node's row of `state` (or -1) and into `sizes` how many rows `state` and `counters` have."""

def tick(
    kinds: Any,  # uint8[P]
    ends: Any,  # int32[P]
    features: Any,  # int32[P]
    comparisons: Any,  # uint8[P]
    thresholds: Any,  # float32[P]
    action_ids: Any,  # int32[P]
    results: Any,  # uint8[P]
    params: Any,  # int32[P]
    observations: Any,  # float32[A,F]
    mask: Any | None,  # bool[A]
    state: Any,  # out uint8[R,A]
    counters: Any,  # out int32[C,A]
    actions: Any,  # out int32[A]
    statuses: Any,  # out uint8[A]
) -> None:
    """Ticks one behaviour tree for A agents at once: conditions read `observations`, actions write an id into `actions`, `statuses` is the root's status. Semantics of py_trees' tick_once. Agents that `mask` leaves out keep everything."""
