"""One posterior step, ours against the published one in torch, one thread: pytest benchmarks/bench_set_diffusion.py."""

from collections.abc import Iterator

import numpy as np
import pytest
from core_diffusion import _core_diffusion as _C
from core_diffusion.cases import agree, make_bridge, peer_bridge
from core_diffusion.reference import set_diffusion as reference
from core_registry.timing import one_torch_thread

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with one_torch_thread():
        yield


@pytest.mark.parametrize(("codes", "tokens"), [(4096, 128), (1024, 64), (256, 32)])
def test_bridge(benchmark, codes: int, tokens: int) -> None:  # type: ignore[no-untyped-def]
    """One row, so that one thread works. Prints the ratio only if sum and law hold."""
    args = make_bridge(np.random.default_rng(0), B=1, K=codes, M=tokens)
    benchmark(_C.fixed_sum_bridge, *args.values())
    names = ("x0", "x1", "t", "sigma", "max_count", "seed")
    np.testing.assert_array_equal(args["out"], reference.fixed_sum_bridge(*(args[name] for name in names)))

    peer = peer_bridge(args)
    times, differences = [], []
    for _ in range(15):
        start = benchmark._timer()
        theirs = peer()
        times.append(benchmark._timer() - start)
        differences.append(agree(args, {"out": args["out"]}, theirs))
    assert np.median(differences) < 0.05
    ours = benchmark.stats.stats.min
    print(
        f"\nK={codes} M={tokens}: ours {ours * 1e3:.4f} ms, torch {min(times) * 1e3:.3f} ms, "
        f"ratio {min(times) / ours:.0f}, shares of counts differ by {np.median(differences):.4f}"
    )
