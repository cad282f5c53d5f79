"""The octree operators against the Python reference on molecules of QM9's size; the answers are compared first."""

from __future__ import annotations

from typing import Any

import pytest
from core_3d_molecule.cases import cases
from core_registry.testing import Case


@pytest.mark.parametrize("case", cases, ids=lambda c: c.op)
@pytest.mark.parametrize("who", ["ours", "reference"])
def test_octree(benchmark: Any, case: Case, who: str) -> None:
    args = case.arguments("bench")
    call, values = case.binding(), list(args.values())
    call(*values)
    case.difference(args, case.reference(args))
    benchmark.group = case.op
    if who == "ours":
        benchmark(lambda: call(*values))
    else:
        benchmark.pedantic(lambda: case.reference(args), rounds=2)
