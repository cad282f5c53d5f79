"""Block-sparse attention against torch's dense SDPA, one thread each: pytest benchmarks/bench_xattention.py."""

import os

os.environ["CORE_NUM_THREADS"] = "1"  # read when the first operator runs

import time
from collections.abc import Iterator

import core_llm_efficiency as core
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


def gather_loop(q, k, v, mask):  # type: ignore[no-untyped-def]
    """For each head and block of queries, torch's attention over the chosen blocks put side by side."""
    out = torch.empty_like(q)
    places = torch.arange(128)
    later = torch.ones(128, 128, dtype=torch.bool).triu(1)
    for h in range(q.shape[1]):
        for i in range(mask.shape[2]):
            chosen = mask[0, h, i].nonzero()[:, 0]  # the last is the diagonal block
            at = (chosen[:, None] * 128 + places).flatten()
            rows = slice(i * 128, (i + 1) * 128)
            logits = q[0, h, rows] @ k[0, h, at].T / q.shape[3] ** 0.5
            logits[:, -128:].masked_fill_(later, float("-inf"))
            out[0, h, rows] = logits.softmax(-1) @ v[0, h, at]
    return out


def test_against_sparse_peers() -> None:
    """(1, 4, 4096, 128) at density 0.21, beside a loop that gathers blocks and FlexAttention (whose compilation takes
    a minute and is not counted)."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    args = make_attention(np.random.default_rng(0), 1, 4, 4, 4096, 4096, 128, 128, 0.115)
    q, k, v = (torch.from_numpy(args[x]) for x in "qkv")
    mask = torch.from_numpy(np.tril(args["mask"])) | torch.eye(32, dtype=torch.bool)
    diagonal = torch.eye(32, dtype=torch.bool)

    def listed(kept):  # type: ignore[no-untyped-def]
        order = kept.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
        return kept.sum(-1, dtype=torch.int32), order.to(torch.int32)

    chosen = BlockMask.from_kv_blocks(
        *listed(mask & diagonal), *listed(mask & ~diagonal), BLOCK_SIZE=128,
        mask_mod=lambda b, h, i, j: i >= j, seq_lengths=(4096, 4096),
    )  # fmt: skip
    flex = torch.compile(flex_attention)
    calls = {
        "ours": lambda: core.block_sparse_attention(q, k, v, mask),
        "gather loop": lambda: gather_loop(q, k, v, mask),
        "FlexAttention": lambda: flex(q, k, v, block_mask=chosen),
    }
    with torch.no_grad():
        want = calls["ours"]()
        for name, call in calls.items():
            assert float((call() - want).abs().max()) < 1e-4, name
        times = {name: fastest(call, clock=time.process_time) for name, call in calls.items()}
    print(
        f"\ndensity {core.block_density(mask, q_len=4096, k_len=4096):.3f}: ours {times['ours'] * 1e3:.1f} ms", end=""
    )
    for name in ("gather loop", "FlexAttention"):
        print(f", {name} {times[name] * 1e3:.1f} ms, ratio {times[name] / times['ours']:.2f}", end="")
    print()


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


@pytest.mark.parametrize("density", [0.1, 0.3, 1.0])
def test_training(density: float) -> None:
    """Forward and backward of (1, 4, 2048, 128), blocks of 128, against dense SDPA."""
    args = make_attention(np.random.default_rng(0), 1, 4, 4, 2048, 2048, 128, 128, density)
    leaves = [torch.from_numpy(args[x]).requires_grad_() for x in "qkv"]
    mask = torch.from_numpy(np.tril(args["mask"]))
    upstream = torch.randn(leaves[0].shape, generator=torch.Generator().manual_seed(0))

    def step(call):  # type: ignore[no-untyped-def]
        for x in leaves:
            x.grad = None
        call().backward(upstream)
        return [x.grad for x in leaves]

    def ours():  # type: ignore[no-untyped-def]
        return core.block_sparse_attention(*leaves, mask)

    def masked():  # type: ignore[no-untyped-def]
        seen = mask.repeat_interleave(128, 2).repeat_interleave(128, 3).tril()
        return torch.nn.functional.scaled_dot_product_attention(*leaves, attn_mask=seen)

    def dense():  # type: ignore[no-untyped-def]
        return torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=True)

    difference = max(float((a - b).abs().max()) for a, b in zip(step(ours), step(masked), strict=True))
    assert difference < 1e-3
    first, second = (fastest(lambda f=f: step(f), clock=time.process_time) for f in (ours, dense))
    print(
        f"\ndensity {core.block_density(mask, q_len=2048, k_len=2048):.3f}, forward and backward: ours "
        f"{first * 1e3:.1f} ms, SDPA {second * 1e3:.1f} ms, SDPA/ours {second / first:.2f}, largest difference "
        f"to the same blocks in SDPA {difference:.1e}"
    )
