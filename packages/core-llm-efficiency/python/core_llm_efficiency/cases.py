"""Case table of core-llm-efficiency: sizes, inputs, reference and peer of each raw operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from core_registry.testing import Case
from numpy.typing import NDArray

from .cases_state_space import cases as state_space_cases
from .cases_vidkv import cases as vidkv_cases
from .reference import xattention as reference

Args = dict[str, Any]
Float = NDArray[np.float32]


def structured_qkv(
    rng: np.random.Generator, batch: int, heads: int, groups: int, n: int, m: int, dim: int
) -> tuple[Float, Float, Float]:
    """q, k, v whose attention has what real models' has: a sink, locality, and a few distant topics.

    Keys hold slowly changing topics, Fourier features of their position and a constant at the first position; random
    q and k would give uniform scores, on which no selection can be told from another.
    """
    topics, local = dim // 2, dim // 4
    run = 24  # tokens a topic lasts
    centres = rng.standard_normal((16, topics))
    which = rng.integers(0, 16, -(-m // run) + 1)
    topic = centres[np.repeat(which, run)[:m]]
    wave = 2.0 ** rng.uniform(-9, -3, (local + 1) // 2)
    phase = np.arange(m)[:, None] * wave * 2 * np.pi
    place = np.concatenate([np.cos(phase), np.sin(phase)], 1)[:, :local]
    k = np.zeros((batch, groups, m, dim))
    k[..., :topics] = 1.2 * topic
    k[..., topics : topics + local] = 1.6 * place
    k[..., :1, dim - 1 :] += 8.0
    q = np.zeros((batch, heads, n, dim))
    gain = rng.uniform(0.4, 1.6, (batch, heads, 1, 1))
    q[..., :topics] = gain * 1.2 * topic[m - n :]
    q[..., topics : topics + local] = (2.0 - gain) * 1.6 * place[m - n :]
    q[..., dim - 1 :] += 4.0
    k += 0.3 * rng.standard_normal(k.shape)
    q += 0.3 * rng.standard_normal(q.shape)
    v = rng.standard_normal((batch, groups, m, dim))
    return q.astype(np.float32), k.astype(np.float32), v.astype(np.float32)


def _shape(B: int, H: int, N: int, M: int, block: int) -> tuple[int, int, int, int]:
    return B, H, -(-N // block), -(-M // block)


def make_scores(rng: np.random.Generator, B: int, H: int, G: int, N: int, M: int, D: int, block: int) -> Args:
    """Structured q and k."""
    q, k, _ = structured_qkv(rng, B, H, G, N, M, D)
    scores = np.zeros(_shape(B, H, N, M, block), np.float32)
    return {"q": q, "k": k, "stride": 8, "block": block, "scale": D**-0.5, "causal": True, "scores": scores}


def make_select(rng: np.random.Generator, B: int, H: int, N: int, M: int, block: int) -> Args:
    """Skewed masses, as attention has."""
    scores = rng.gamma(0.3, 1.0, _shape(B, H, N, M, block)).astype(np.float32)
    thresholds = rng.uniform(0.5, 0.95, H).astype(np.float32)
    return {
        "scores": scores,
        "thresholds": thresholds,
        "block": block,
        "q_len": N,
        "k_len": M,
        "causal": True,
        "mask": np.zeros(scores.shape, bool),
    }


def make_attention(
    rng: np.random.Generator, B: int, H: int, G: int, N: int, M: int, D: int, block: int, density: float
) -> Args:
    """Structured q, k, v; a random mask that holds the sink and the diagonal."""
    q, k, v = structured_qkv(rng, B, H, G, N, M, D)
    mask = rng.random(_shape(B, H, N, M, block)) < density
    mask[..., :1] = True
    rows = np.arange(mask.shape[2])
    mask[..., rows, np.minimum(rows * block + M - N, max(M - 1, 0)) // block] = True
    return {
        "q": q,
        "k": k,
        "v": v,
        "mask": mask,
        "block": block,
        "scale": D**-0.5,
        "causal": True,
        "out": np.zeros(q.shape, np.float32),
        "lse": np.zeros(q.shape[:3], np.float32),
    }


def reference_scores(args: Args) -> Args:
    """The scores in float64."""
    return {"scores": reference.antidiagonal_scores(*list(args.values())[:6])}


def reference_select(args: Args) -> Args:
    """The mask by sorting each row."""
    return {"mask": reference.select_blocks(*list(args.values())[:6])}


def reference_attention(args: Args) -> Args:
    """The output in float64, with the whole matrix of weights."""
    out, lse = reference.block_sparse_attention(*list(args.values())[:7])
    return {"out": out, "lse": lse}


def make_attention_backward(rng: np.random.Generator, **sizes: Any) -> Args:
    """Also gradients of the output and of lse."""
    args = make_attention(rng, **sizes)
    out, lse = reference.block_sparse_attention(*list(args.values())[:7])
    args["out"], args["lse"] = out.astype(np.float32), lse.astype(np.float32)
    args["grad_out"] = rng.standard_normal(out.shape).astype(np.float32)
    args["grad_lse"] = rng.standard_normal(lse.shape).astype(np.float32)
    return args | {f"grad_{x}": np.zeros(args[x].shape, np.float32) for x in "qkv"}


def reference_attention_backward(args: Args) -> Args:
    """The gradients in float64, with the whole matrix of weights."""
    found = reference.block_sparse_attention_backward(*list(args.values())[:7], args["grad_out"], args["grad_lse"])
    return dict(zip(("grad_q", "grad_k", "grad_v"), found, strict=True))


def peer_attention(args: Args) -> Callable[[], Args]:
    """torch's dense attention of the same q, k, v; its own fast path is for equally many queries and keys."""
    import torch
    import torch.nn.functional as F

    q, k, v = (torch.from_numpy(args[x]) for x in "qkv")
    share = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
    square = q.shape[2] == k.shape[2]
    seen = None if square else torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
    return lambda: {
        "out": F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=square, scale=args["scale"]).numpy()
    }


def peer_scores(args: Args) -> Callable[[], Args]:
    """The published estimator's arithmetic in torch: strided views side by side, one matmul, softmax, block sums."""
    import torch

    q, k = torch.from_numpy(args["q"]), torch.from_numpy(args["k"])
    stride, per = args["stride"], args["block"] // args["stride"]
    share, n, m = q.shape[1] // k.shape[1], q.shape[2], k.shape[2]
    pad = torch.nn.functional.pad

    def run() -> Args:
        wide_q, wide_k = (pad(x, (0, 0, 0, -x.shape[2] % args["block"])) for x in (q, k.repeat_interleave(share, 1)))
        tiles_q = torch.cat([wide_q[:, :, stride - 1 - r :: stride] for r in range(stride)], -1)
        tiles_k = torch.cat([wide_k[:, :, r::stride] for r in range(stride)], -1)
        logits = tiles_q @ tiles_k.mT * (args["scale"] / stride)
        rows, cols = torch.arange(logits.shape[2])[:, None], torch.arange(logits.shape[3])
        last = ((rows + 1) * stride).clamp(max=n) - 1 + m - n
        weights = logits.masked_fill(cols * stride > last, -torch.inf).softmax(-1)
        weights = weights * (rows * stride < n)
        return {"scores": weights.unflatten(3, (-1, per)).sum(-1).unflatten(2, (-1, per)).sum(3).numpy()}

    return run


def agree_dense(args: Args, ours: Args, peers: Args) -> float:
    """The largest difference to dense attention; it is meaningful where the mask keeps everything."""
    import torch
    import torch.nn.functional as F

    if args["mask"].all():
        return float(np.abs(ours["out"] - peers["out"]).max())
    q, k, v = (torch.from_numpy(args[x]) for x in "qkv")
    share, block, offset = q.shape[1] // k.shape[1], args["block"], k.shape[2] - q.shape[2]
    seen = torch.from_numpy(args["mask"]).repeat_interleave(block, 2).repeat_interleave(block, 3)
    seen = seen[:, :, : q.shape[2], : k.shape[2]].tril(offset)
    k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
    masked = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=args["scale"])
    return float(np.abs(ours["out"] - masked.numpy()).max())


def work_scores(args: Args) -> tuple[float, float]:
    """Bytes of q, k and scores; half of the sampled products."""
    q, k = args["q"], args["k"]
    flops = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] * q.shape[3] / args["stride"]
    return float(q.nbytes + k.nbytes + args["scores"].nbytes), float(flops)


def work_select(args: Args) -> tuple[float, float]:
    """Bytes of the scores and of the mask."""
    return float(args["scores"].nbytes + args["mask"].nbytes), float(args["scores"].size)


def work_attention(args: Args) -> tuple[float, float]:
    """Bytes of q, k, v and out; the products of the selected visible blocks."""
    q, k, block = args["q"], args["k"], args["block"]
    mask = np.tril(args["mask"], (k.shape[2] - q.shape[2]) // block)
    flops = 4.0 * float(mask.sum()) * block * block * q.shape[3]
    return float(2 * q.nbytes + 2 * k.nbytes), flops


tiny = {"B": 2, "H": 4, "G": 2, "N": 100, "M": 150, "D": 64, "block": 32}
bench = {"B": 1, "H": 4, "G": 4, "N": 4096, "M": 4096, "D": 128, "block": 128}
vary = {"B": (1, 2), "N": (1, 150), "M": (150, 200), "D": (8, 80)}


def _torch_call(name: str, count: int) -> Callable[[Args], Any]:
    def call(args: Args) -> Any:
        from . import torch_ops

        return getattr(torch_ops, name)(*list(args.values())[:count])

    return call


cases: list[Case] = [
    Case(
        op="core_llm_efficiency.antidiagonal_scores",
        sizes={"tiny": tiny, "bench": bench},
        make=make_scores,
        reference=reference_scores,
        tolerance={"scores": (1e-4, 1e-5)},
        peer=("torch, materialised", peer_scores),
        work=work_scores,
        vary=vary,
        torch_call=_torch_call("antidiagonal_scores", 6),
    ),
    Case(
        op="core_llm_efficiency.select_blocks",
        sizes={
            "tiny": {"B": 2, "H": 3, "N": 100, "M": 150, "block": 16},
            "bench": {"B": 1, "H": 32, "N": 32768, "M": 32768, "block": 128},
        },
        make=make_select,
        reference=reference_select,
        tolerance={"mask": (0, 0)},
        devices=("cpu", "cuda"),
        work=work_select,
        vary={"N": (1, 150), "M": (150, 200)},
        torch_call=_torch_call("select_blocks", 6),
    ),
    Case(
        op="core_llm_efficiency.block_sparse_attention",
        sizes={"tiny": {**tiny, "density": 0.4}, "bench": {**bench, "density": 0.15}},
        make=make_attention,
        reference=reference_attention,
        tolerance={"out": (1e-4, 2e-5), "lse": (1e-5, 2e-5)},
        peer=("torch SDPA, dense", peer_attention),
        agree=agree_dense,
        work=work_attention,
        vary=vary,
        torch_call=_torch_call("block_sparse_attention", 7),
        differentiable=True,
    ),
    Case(
        op="core_llm_efficiency.block_sparse_attention_backward",
        sizes={"tiny": {**tiny, "density": 0.4}, "bench": {**bench, "N": 2048, "M": 2048, "density": 0.15}},
        make=make_attention_backward,
        reference=reference_attention_backward,
        tolerance={f"grad_{x}": (1e-3, 1e-4) for x in "qkv"},
        work=lambda a: (3.5 * work_attention(a)[0], 3.5 * work_attention(a)[1]),
        vary=vary,
        torch_call=_torch_call("block_sparse_attention_backward", 11),
    ),
    *state_space_cases,
    *vidkv_cases,
]
