"""Block-sparse attention against torch's dense SDPA, one thread each: pytest benchmarks/bench_xattention.py."""

import os

os.environ["CORE_NUM_THREADS"] = "1"  # read when the first operator runs

import time
from collections.abc import Iterator

import numpy as np
import pytest
from core_llm_efficiency import _core_llm_efficiency as _C
from core_llm_efficiency.cases import agree_dense, make_attention, make_scores, peer_attention, peer_scores
from core_registry.timing import fastest, one_torch_thread

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with one_torch_thread():
        yield


@pytest.mark.parametrize("density", [0.1, 0.3, 1.0])
def test_attention(benchmark, density: float) -> None:  # type: ignore[no-untyped-def]
    """(1, 4, 4096, 128), blocks of 128."""
    args = make_attention(np.random.default_rng(0), 1, 4, 4, 4096, 4096, 128, 128, density)
    benchmark.pedantic(_C.block_sparse_attention, list(args.values()), rounds=3)
    peer = peer_attention(args)
    difference = agree_dense(args, args, peer())
    assert difference < 1e-4
    ours = fastest(lambda: _C.block_sparse_attention(*args.values()), clock=time.process_time)
    peers = fastest(peer, clock=time.process_time)
    kept = np.tril(args["mask"]).sum() / (4 * 32 * 33 / 2)
    print(
        f"\ndensity {kept:.3f}: ours {ours * 1e3:.1f} ms, SDPA {peers * 1e3:.1f} ms, SDPA/ours {peers / ours:.2f}, "
        f"largest difference {difference:.1e}"
    )


@pytest.mark.parametrize("stride", [4, 8, 16])
def test_scores(benchmark, stride: int) -> None:  # type: ignore[no-untyped-def]
    args = make_scores(np.random.default_rng(0), 1, 4, 4, 4096, 4096, 128, 128) | {"stride": stride}
    benchmark.pedantic(_C.antidiagonal_scores, list(args.values()), rounds=3)
    peer = peer_scores(args)
    difference = float(np.abs(args["scores"] - peer()["scores"]).max())
    assert difference < 1e-3
    ours = fastest(lambda: _C.antidiagonal_scores(*args.values()), clock=time.process_time)
    peers = fastest(peer, clock=time.process_time)
    print(f"\nstride {stride}: ours {ours * 1e3:.1f} ms, torch {peers * 1e3:.1f} ms, torch/ours {peers / ours:.2f}")
