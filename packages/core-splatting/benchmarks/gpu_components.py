"""GPU benchmark: principal scene components (arXiv 2503.16413, algorithm 1) beside the same rule in torch.

python benchmarks/gpu_components.py [-o FILE.json]

The peer computes the cosines of 1,000 rows at a time with all rows in float32 and follows the rule in Python. Wall time
of whole calls with the device's, the shortest. Exits 1 if ours are not the components that the CPU finds, which are
those of float64; the peer's may differ where float32 cannot decide.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from core_registry.timing import fastest, floor_ms, run_benchmark
from core_splatting import principal_scene_components
from core_splatting.cases_memory import clustered, greedy_torch

SIZES = ((20_000, 256, 40), (100_000, 768, 400))  # rows, width, clusters
COLUMNS = ("rows", "width", "components", "ours_ms", "torch_ms", "ratio", "cpu_ms", "floor_ms", "same", "torch_differs")


def measure(count: int, width: int, clusters: int) -> dict[str, Any]:
    """One row of the table. The floor is that of the cosines of components with all rows, on the matrix units."""
    args = clustered(np.random.default_rng(0), count, width, clusters)
    features = torch.from_numpy(args["features"]).cuda()

    def ours() -> torch.Tensor:
        return principal_scene_components(features, args["threshold"])

    peer = greedy_torch(args | {"features": features})
    found, theirs = ours().cpu(), torch.from_numpy(np.flatnonzero(peer()["selected"]))
    row: dict[str, Any] = {"rows": count, "width": width, "components": len(found)}
    row["ours_ms"], row["torch_ms"] = 1e3 * fastest(lambda: ours().sum().item(), 1.0), 1e3 * fastest(peer, 0.1)
    row["floor_ms"] = floor_ms(2.0 * len(found) * count * width, 4.0 * count * width)
    row["torch_differs"] = int((~torch.isin(found, theirs)).sum() + (~torch.isin(theirs, found)).sum())
    if count <= 20_000:
        exact = principal_scene_components(args["features"], args["threshold"])
        row["same"] = bool(np.array_equal(found.numpy(), exact))
        row["cpu_ms"] = 1e3 * fastest(lambda: principal_scene_components(args["features"], args["threshold"]), 0.1)
    if row.get("same", True) and row["torch_differs"] <= 1e-2 * len(found):
        row["ratio"] = row["torch_ms"] / row["ours_ms"]
    return row


def right(row: Mapping[str, Any]) -> bool:
    """Whether ours are the components of the CPU, where those were sought."""
    return bool(row.get("same", True))


if __name__ == "__main__":
    torch.backends.cuda.matmul.allow_tf32 = False
    sys.exit(run_benchmark(__doc__, measure, SIZES, COLUMNS, right, "core_splatting.principal_components"))
