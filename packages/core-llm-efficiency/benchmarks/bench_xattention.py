"""Block-sparse attention against torch's dense SDPA, one thread each: pytest benchmarks/bench_xattention.py."""

import os

os.environ["CORE_NUM_THREADS"] = "1"  # read when the first operator runs

import time
from collections.abc import Iterator

import numpy as np
import pytest
from core_llm_efficiency import _core_llm_efficiency as _C
from core_llm_efficiency.cases import agree_dense, make_attention, make_scores, peer_attention, peer_scores

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def shortest(f, rounds=5):  # type: ignore[no-untyped-def]
    times = []
    for _ in range(rounds):
        start = time.process_time()
        result = f()
        times.append(time.process_time() - start)
    return min(times), result


@pytest.mark.parametrize("density", [0.1, 0.3, 1.0])
def test_attention(benchmark, density: float) -> None:  # type: ignore[no-untyped-def]
    """(1, 4, 4096, 128), blocks of 128."""
    args = make_attention(np.random.default_rng(0), 1, 4, 4, 4096, 4096, 128, 128, density)
    benchmark.pedantic(_C.block_sparse_attention, list(args.values()), rounds=3)
    ours, _ = shortest(lambda: _C.block_sparse_attention(*args.values()))
    peers, theirs = shortest(peer_attention(args))
    difference = agree_dense(args, args, theirs)
    assert difference < 1e-4
    kept = np.tril(args["mask"]).sum() / (4 * 32 * 33 / 2)
    print(
        f"\ndensity {kept:.3f}: ours {ours * 1e3:.1f} ms, SDPA {peers * 1e3:.1f} ms, SDPA/ours {peers / ours:.2f}, "
        f"largest difference {difference:.1e}"
    )


@pytest.mark.parametrize("stride", [4, 8, 16])
def test_scores(benchmark, stride: int) -> None:  # type: ignore[no-untyped-def]
    args = make_scores(np.random.default_rng(0), 1, 4, 4, 4096, 4096, 128, 128) | {"stride": stride}
    benchmark.pedantic(_C.antidiagonal_scores, list(args.values()), rounds=3)
    ours, _ = shortest(lambda: _C.antidiagonal_scores(*args.values()))
    peers, theirs = shortest(peer_scores(args))
    difference = float(np.abs(args["scores"] - theirs["scores"]).max())
    assert difference < 1e-3
    print(f"\nstride {stride}: ours {ours * 1e3:.1f} ms, torch {peers * 1e3:.1f} ms, torch/ours {peers / ours:.2f}")
