"""Case table of core-diffusion: sizes, inputs, reference and peer of each raw operator."""

from collections.abc import Callable
from typing import Any

import numpy as np
from core_registry.testing import Case
from numpy.typing import NDArray

from . import _core_diffusion as _C
from .reference import marching_cubes as reference_mesh
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


def band_volume(rng: np.random.Generator, X: int, Y: int, Z: int) -> NDArray[np.float32]:
    """A ball's signed distance [X, Y, Z] with some noise, in nodes; NaN beyond four nodes of the surface."""
    axes = np.meshgrid(*(np.arange(n, dtype=np.float32) - np.float32(n - 1) / 2 for n in (X, Y, Z)), indexing="ij")
    distance = np.float32(0.3 * max(X, Y, Z)) - np.sqrt(sum(a * a for a in axes))
    distance += 0.2 * rng.standard_normal(distance.shape, np.float32)
    return np.where(np.abs(distance) < 4, distance, np.float32(np.nan))


def mesh_outputs(volume: NDArray[np.float32], level: float) -> Args:
    """Outputs of the right sizes."""
    counts = reference_counts({"volume": volume, "level": level})["counts"]
    return {"vertices": np.zeros((counts[0], 3), np.float32), "faces": np.zeros((counts[1], 3), np.int32)}


def reference_counts(args: Args) -> Args:
    """The size of the mesh: of the reference's, or on large volumes of the operator's, which the reference tested."""
    volume, level = args["volume"], args["level"]
    if volume.size > 4096:
        counts = np.zeros(2, np.int64)
        _C.marching_cubes_count(volume, level, counts)
        return {"counts": counts}
    vertices, faces = reference_mesh.marching_cubes(volume, level, np.zeros(3), np.ones(3), False)
    return {"counts": np.array([len(vertices), len(faces)])}


def make_counts(rng: np.random.Generator, X: int, Y: int, Z: int) -> Args:
    """A noisy ball."""
    return {"volume": band_volume(rng, X, Y, Z), "level": 0.1, "counts": np.zeros(2, np.int64)}


def make_mesh(rng: np.random.Generator, X: int, Y: int, Z: int) -> Args:
    """A noisy ball in a box whose nodes are not cubic."""
    volume = band_volume(rng, X, Y, Z)
    place = {"origin": np.array([-1.0, 0.5, 2.0]), "spacing": np.array([0.1, 0.2, 0.3]), "inward": False}
    return {"volume": volume, "level": 0.1, **place, **mesh_outputs(volume, 0.1)}


def sparse(args: Args) -> Args:
    """The arguments with the known nodes in place of the volume."""
    volume = args.pop("volume")
    index = np.flatnonzero(~np.isnan(volume))
    return {"index": index, "values": volume.ravel()[index], "shape": np.array(volume.shape, np.int64), **args}


def dense(args: Args) -> Args:
    """The arguments with a volume again."""
    volume = np.full(args["shape"], np.nan, np.float32)
    volume.ravel()[args["index"]] = args["values"]
    return {**args, "volume": volume}


def reference_mesh_of(args: Args) -> Args:
    """The mesh cell by cell in float64."""
    names = ("volume", "level", "origin", "spacing", "inward")
    vertices, faces = reference_mesh.marching_cubes(*(args[name] for name in names))
    return {"vertices": vertices, "faces": faces}


SIZES = {"tiny": {"B": 2, "K": 16, "M": 5}, "bench": {"B": 8, "K": 4096, "M": 128}}
VARY = {"B": (0, 4), "K": (12, 40), "M": (0, 12)}

MESH_SIZES = {"tiny": {"X": 5, "Y": 6, "Z": 7}, "bench": {"X": 24, "Y": 24, "Z": 24}}
MESH_VARY = {"X": (0, 5), "Y": (0, 6), "Z": (0, 12)}

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
    Case(
        op="core_diffusion.marching_cubes_count",
        sizes=MESH_SIZES,
        make=make_counts,
        reference=reference_counts,
        tolerance={"counts": (0, 0)},
        vary=MESH_VARY,
        work=lambda args: (args["volume"].nbytes, float(args["volume"].size)),
    ),
    Case(
        op="core_diffusion.marching_cubes",
        sizes=MESH_SIZES,
        make=make_mesh,
        reference=reference_mesh_of,
        tolerance={"vertices": (1e-5, 1e-5), "faces": (0, 0)},
        vary=MESH_VARY,
        work=lambda args: (args["volume"].nbytes, float(args["volume"].size)),
    ),
    Case(
        op="core_diffusion.sparse_marching_cubes_count",
        sizes=MESH_SIZES,
        make=lambda rng, **size: sparse(make_counts(rng, **size)),
        reference=lambda args: reference_counts(dense(args)),
        tolerance={"counts": (0, 0)},
        vary=MESH_VARY,
        work=lambda args: (args["values"].nbytes * 3, float(args["values"].size)),
    ),
    Case(
        op="core_diffusion.sparse_marching_cubes",
        sizes=MESH_SIZES,
        make=lambda rng, **size: sparse(make_mesh(rng, **size)),
        reference=lambda args: reference_mesh_of(dense(args)),
        tolerance={"vertices": (1e-5, 1e-5), "faces": (0, 0)},
        vary=MESH_VARY,
        work=lambda args: (args["values"].nbytes * 3, float(args["values"].size)),
    ),
]
