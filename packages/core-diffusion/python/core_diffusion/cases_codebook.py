"""Rows of the case table for the codebook operators."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from core_registry.testing import Case
from numpy.typing import NDArray

from .reference import codebook as reference

Args = dict[str, Any]


def clouds(rng: np.random.Generator, N: int, K: int, D: int) -> NDArray[np.float32]:
    """Vectors [N, D] around K centers, off the origin."""
    centers = 3 * rng.standard_normal((max(K, 1), D)) + 1
    return (centers[rng.integers(max(K, 1), size=N)] + rng.standard_normal((N, D))).astype(np.float32)


def make_nearest(rng: np.random.Generator, N: int, K: int, D: int) -> Args:
    """Vectors, and others as codes."""
    x, codes = clouds(rng, N, K, D), clouds(rng, K, K, D)
    return {"x": x, "codes": codes, "index": np.zeros(N, np.int64), "distance": np.zeros(N, np.float32)}


def reference_nearest(args: Args) -> Args:
    """All distances in float64."""
    every = reference.squared_distances(args["x"], args["codes"])
    return {"index": every.argmin(1), "distance": every.min(1)}


def peer_nearest(args: Args) -> Callable[[], Args]:
    """torch.cdist and min."""
    import torch

    x, codes = torch.from_numpy(args["x"]), torch.from_numpy(args["codes"])

    def run() -> Args:
        distance, index = torch.cdist(x, codes).min(1)
        return {"index": index.numpy(), "distance": (distance**2).numpy()}

    return run


def agree_nearest(args: Args, ours: Mapping[str, Any], peers: Mapping[str, Any]) -> float:
    """Largest difference of the squared distances; either may take one of two nearly equal codes."""
    return float(np.abs(ours["distance"] - peers["distance"]).max(initial=0))


def make_init(rng: np.random.Generator, N: int, K: int, D: int) -> Args:
    """Vectors in clouds, and room for K <= N centers."""
    return {"x": clouds(rng, N, K, D), "trials": 3, "seed": 5, "centers": np.zeros((min(K, N), D), np.float32)}


def make_kmeans(rng: np.random.Generator, N: int, K: int, D: int) -> Args:
    """Vectors in clouds, and their first rows as centers."""
    x, clusters = clouds(rng, N, K, D), min(K, N)
    return {
        "x": x,
        "init": x[:clusters].copy(),
        "max_iter": 20,
        "tol": 1e-4,
        "centers": np.zeros((clusters, D), np.float32),
        "labels": np.zeros(N, np.int64),
        "inertia": np.zeros(1),
        "rounds": np.zeros(1, np.int64),
    }


def reference_kmeans(args: Args) -> Args:
    """Lloyd's rounds in float64."""
    centers, labels, inertia, rounds = reference.kmeans(args["x"], args["init"], args["max_iter"], args["tol"])
    return {"centers": centers, "labels": labels, "inertia": np.array([inertia]), "rounds": np.array([rounds])}


def peer_kmeans(args: Args) -> Callable[[], Args]:
    """The same rounds with torch.cdist and index_add_."""
    import torch

    x, init = torch.from_numpy(args["x"]), torch.from_numpy(args["init"])

    def run() -> Args:
        centers, before = init, None
        for _ in range(args["max_iter"]):
            labels = torch.cdist(x, centers).argmin(1)
            if before is not None and torch.equal(labels, before):
                break
            size = torch.bincount(labels, minlength=len(centers))
            sums = torch.zeros_like(centers).index_add_(0, labels, x)
            centers, before = sums / size[:, None], labels
        distance = torch.cdist(x, centers).min(1).values
        return {"inertia": (distance.double() ** 2).sum()[None].numpy()}

    return run


def work(args: Args) -> tuple[float, float]:
    """Bytes of vectors and codes; a multiplication and an addition for each element of each pair."""
    x, codes = args["x"], next(args[name] for name in ("codes", "init", "centers") if name in args)
    return float(x.nbytes + codes.nbytes), 2.0 * x.size * len(codes)


SIZES = {"tiny": {"N": 70, "K": 5, "D": 3}, "bench": {"N": 4096, "K": 512, "D": 8}}

cases = [
    Case(
        op="core_diffusion.nearest_codes",
        sizes={"tiny": {"N": 13, "K": 19, "D": 3}, "bench": {"N": 16384, "K": 4096, "D": 8}},
        make=make_nearest,
        reference=reference_nearest,
        tolerance={"index": (0, 0), "distance": (1e-5, 1e-5)},
        peer=("torch cdist and min", peer_nearest),
        agree=agree_nearest,
        vary={"N": (0, 60), "K": (1, 40), "D": (1, 20)},
        work=work,
    ),
    Case(
        op="core_diffusion.kmeans_init",
        sizes=SIZES,
        make=make_init,
        reference=lambda args: {
            "centers": reference.kmeans_init(args["x"], len(args["centers"]), args["trials"], args["seed"])
        },
        tolerance={"centers": (0, 0)},
        vary={"N": (1, 60), "K": (1, 12), "D": (1, 20)},
        work=work,
    ),
    Case(
        op="core_diffusion.kmeans",
        sizes=SIZES,
        make=make_kmeans,
        reference=reference_kmeans,
        tolerance={"centers": (1e-5, 1e-5), "labels": (0, 0), "inertia": (1e-5, 1e-5), "rounds": (0, 0)},
        peer=("torch cdist and index_add_", peer_kmeans),
        agree=lambda args, ours, peers: float(abs(ours["inertia"] / peers["inertia"] - 1).max()),
        vary={"N": (1, 60), "K": (1, 12), "D": (1, 20)},
        work=lambda args: (work(args)[0], 20 * work(args)[1]),
    ),
]
