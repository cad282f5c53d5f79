"""Case table of core-diffusion: sizes, inputs, reference and peer of each raw operator."""

from collections.abc import Callable
from typing import Any

import numpy as np
from core_registry.testing import Case
from numpy.typing import NDArray

from .reference import set_diffusion as reference

Args = dict[str, Any]


def code_counts(rng: np.random.Generator, batch: int, codes: int, tokens: int) -> NDArray[np.int32]:
    """Counts [B, K] of `tokens` tokens a row, as skewed as the codes of real images."""
    return rng.multinomial(tokens, rng.dirichlet(np.full(codes, 0.05), batch)).astype(np.int32)


def make_sample(rng: np.random.Generator, B: int, K: int, M: int) -> Args:
    """Laws [B, K, M+1] around the counts of a random set, as a trained network gives them."""
    logits = -3.0 * np.abs(np.arange(M + 1, dtype=np.float32) - code_counts(rng, B, K, M)[..., None])
    logits += rng.standard_normal(logits.shape, np.float32)
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return {"probs": probs, "totals": np.full(B, M), "top_p": 0.8, "seed": 7, "out": np.zeros((B, K), np.int32)}


def make_bridge(rng: np.random.Generator, B: int, K: int, M: int) -> Args:
    """A random 0/1 prior and the counts of a random set, half-way."""
    prior = rng.permuted(np.tile(np.arange(K) < M, (B, 1)), axis=1)
    return {
        "x0": prior.astype(np.int32),
        "x1": code_counts(rng, B, K, M),
        "t": 0.5,
        "sigma": 0.25,
        "max_count": M,
        "seed": 7,
        "out": np.zeros((B, K), np.int32),
    }


def reference_sample(args: Args) -> Args:
    """The counts by the reference's dynamic program."""
    return {"out": reference.fixed_sum_sample(args["probs"], args["totals"], args["seed"], args["top_p"])}


def reference_bridge(args: Args) -> Args:
    """The counts by the reference's dynamic program."""
    names = ("x0", "x1", "t", "sigma", "max_count", "seed")
    return {"out": reference.fixed_sum_bridge(*(args[name] for name in names))}


def peer_sample(args: Args) -> Callable[[], Args]:
    """The published draw of the data end."""
    import torch

    probs, totals = torch.from_numpy(args["probs"]), torch.from_numpy(args["totals"])
    generator = torch.Generator().manual_seed(args["seed"])
    return lambda: {"out": reference.repair_sample(probs, totals, args["top_p"], generator).numpy()}


def peer_bridge(args: Args) -> Callable[[], Args]:
    """The published posterior step."""
    import torch

    x0, x1 = torch.from_numpy(args["x0"]), torch.from_numpy(args["x1"])
    generator = torch.Generator().manual_seed(args["seed"])
    return lambda: {
        "out": reference.repair_step(x0, x1, args["t"], args["sigma"], args["max_count"], generator).numpy()
    }


def agree(args: Args, ours: Args, peers: Args) -> float:
    """Largest difference between the shares that the counts 0, 1, 2, ... have among all codes of all rows.

    Infinite if a row of ours has another sum than asked for (the peer's may)."""
    totals = args["totals"] if "totals" in args else args["x0"].sum(1)
    if (ours["out"].sum(1) != totals).any():
        return float("inf")
    size = max(int(ours["out"].max()), int(peers["out"].max())) + 1
    shares = [np.bincount(o["out"].ravel(), minlength=size) / o["out"].size for o in (ours, peers)]
    return float(np.abs(shares[0] - shares[1]).max())


def work_sample(args: Args) -> tuple[float, float]:
    """Bytes of weights and counts; a comparison and an addition for each weight."""
    return args["probs"].nbytes + args["out"].nbytes, 2.0 * args["probs"].size


def work_bridge(args: Args) -> tuple[float, float]:
    """Bytes of the three count arrays; the recursion over random codes, three counts each, and half the sums."""
    moved = float((args["x0"] != args["x1"]).sum())
    return 3.0 * args["out"].nbytes, 2 * 3 * moved * (args["max_count"] + 1) / 2


SIZES = {"tiny": {"B": 2, "K": 16, "M": 5}, "bench": {"B": 8, "K": 4096, "M": 128}}
VARY = {"B": (0, 4), "K": (12, 40), "M": (0, 12)}

cases = [
    Case(
        op="core_diffusion.fixed_sum_sample",
        sizes=SIZES,
        make=make_sample,
        reference=reference_sample,
        tolerance={"out": (0, 0)},
        peer=("torch top-p, multinomial, repair", peer_sample),
        agree=agree,
        vary=VARY,
        work=work_sample,
    ),
    Case(
        op="core_diffusion.fixed_sum_bridge",
        sizes=SIZES,
        make=make_bridge,
        reference=reference_bridge,
        tolerance={"out": (0, 0)},
        peer=("torch multinomial, repair", peer_bridge),
        agree=agree,
        vary=VARY,
        work=work_bridge,
    ),
]
