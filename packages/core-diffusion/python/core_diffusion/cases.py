"""Case table of core-diffusion: sizes, inputs, reference and peer of each raw operator."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from core_registry.testing import Case
from numpy.typing import NDArray

from . import _core_diffusion as _C
from .cases_codebook import cases as codebook_cases
from .cases_refinement import cases as refinement_cases
from .reference import marching_cubes as reference_mesh
from .reference import moe as reference_moe
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
        "t": np.full(B, 0.5),
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
        "out": reference.repair_step(x0, x1, float(args["t"][0]), args["sigma"], args["max_count"], generator).numpy()
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


def make_topk(rng: np.random.Generator, R: int, C: int) -> Args:
    """Scores with many ties, half of them taken."""
    scores = rng.integers(-C, C, (R, C)).astype(np.float32) / np.float32(4)
    return {"scores": scores, "k": (C + 1) // 2, "mask": np.zeros((R, C), bool), "kth": np.zeros(R, np.float32)}


def reference_topk(args: Args) -> Args:
    """Mask and k-th score by a stable sort."""
    mask, kth = reference_moe.topk_mask(args["scores"], args["k"])
    return {"mask": mask, "kth": kth}


def peer_topk(args: Args) -> Callable[[], Args]:
    """torch.topk, then scatter."""
    import torch

    scores = torch.from_numpy(args["scores"])

    def run() -> Args:
        values, columns = scores.topk(args["k"], dim=1)
        mask = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, columns, True)
        return {"mask": mask.numpy(), "kth": values[:, -1].numpy()}

    return run


def agree_topk(args: Args, ours: Args, peers: Args) -> float:
    """The largest difference of the k-th scores; infinite if the counts differ (the peer takes any of equal scores)."""
    if (ours["mask"].sum(1) != peers["mask"].sum(1)).any():
        return float("inf")
    return float(np.abs(ours["kth"] - peers["kth"]).max(initial=0))


def make_route(rng: np.random.Generator, T: int, E: int) -> Args:
    """A third of the pairs; the last expert has none."""
    mask = rng.random((T, E)) < 1 / 3
    mask[:, -1:] = False
    return {"mask": mask, "offsets": np.zeros(E + 1, np.int64), "tokens": np.zeros(T * E, np.int64)}


def reference_route(args: Args) -> Args:
    """The lists by numpy's nonzero."""
    offsets, tokens = reference_moe.moe_route(args["mask"], len(args["tokens"]))
    return {"offsets": offsets, "tokens": tokens}


def make_experts(rng: np.random.Generator, T: int, D: int, E: int, H: int) -> Args:
    """Tokens, a route with an expert that has none, and weights as networks have them."""
    route = make_route(rng, T, E)
    offsets, tokens = reference_moe.moe_route(route["mask"], int(route["mask"].sum()) + 2)

    def normal(*shape: int, scale: float = 1.0) -> NDArray[np.float32]:
        return rng.standard_normal(shape, np.float32) * np.float32(scale)

    return {
        "x": normal(T, D),
        "tokens": tokens,
        "offsets": offsets,
        "gates": rng.random((T, E), np.float32),
        "up": normal(E, H, D, scale=max(D, 1) ** -0.5),
        "up_bias": normal(E, H),
        "down": normal(E, D, H, scale=max(H, 1) ** -0.5),
        "down_bias": normal(E, D),
        "activation": "gelu_tanh",
        "hidden": np.zeros((len(tokens), H), np.float32),
        "out": np.zeros((T, D), np.float32),
    }


def selection(args: Args) -> NDArray[np.bool_]:
    """The mask [T, E] from which the lists of the arguments come."""
    mask = np.zeros(args["gates"].shape, bool)
    offsets = args["offsets"]
    for e, (begin, end) in enumerate(itertools.pairwise(offsets)):
        mask[args["tokens"][begin:end], e] = True
    return mask


def float64(args: Args) -> Args:
    """The arguments with double in place of float."""
    return {
        k: v.astype(np.float64) if isinstance(v, np.ndarray) and v.dtype == np.float32 else v for k, v in args.items()
    }


def reference_experts(args: Args) -> Args:
    """Output and stored values, one pair at a time."""
    a = float64(args)
    names = ("up", "up_bias", "down", "down_bias", "activation")
    out, stored = reference_moe.expert_ffn(a["x"], selection(args), a["gates"], *(a[n] for n in names))
    hidden = np.zeros(args["hidden"].shape)
    hidden[: len(stored)] = stored
    return {"hidden": hidden, "out": out}


def make_experts_backward(rng: np.random.Generator, T: int, D: int, E: int, H: int) -> Args:
    """The arguments of the forward pass, its stored values, and a random gradient."""
    a = make_experts(rng, T, D, E, H)
    _C.expert_ffn(*a.values())
    names = ("x", "tokens", "offsets", "gates", "up", "down", "down_bias", "hidden", "activation")
    return {
        "dout": rng.standard_normal((T, D), np.float32),
        **{n: a[n] for n in names},
        **{f"d{n}": np.zeros_like(a[n]) for n in ("x", "gates", "up", "up_bias", "down", "down_bias")},
    }


def reference_experts_backward(args: Args) -> Args:
    """The chain rule; the bias that the operator does not need is found from the stored values."""
    a, mask = float64(args), selection(args)
    offsets, tokens = args["offsets"], args["tokens"]
    up_bias = np.zeros(a["up"].shape[:2])
    for e, (begin, end) in enumerate(itertools.pairwise(offsets)):
        if begin < end:
            up_bias[e] = a["hidden"][begin] - a["up"][e] @ a["x"][tokens[begin]]
    names = ("up", "down", "down_bias", "activation")
    up, down, down_bias, name = (a[n] for n in names)
    return reference_moe.expert_ffn_backward(a["dout"], a["x"], mask, a["gates"], up, up_bias, down, down_bias, name)


def work_experts(args: Args) -> tuple[float, float]:
    """Bytes of all arrays; two products for each selected pair."""
    pairs, (_, hidden, width) = float(args["offsets"][-1]), args["up"].shape
    return float(sum(v.nbytes for v in args.values() if isinstance(v, np.ndarray))), 4 * pairs * hidden * width


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
    Case(
        op="core_diffusion.topk_mask",
        sizes={"tiny": {"R": 3, "C": 9}, "bench": {"R": 1, "C": 524288}},
        make=make_topk,
        reference=reference_topk,
        tolerance={"mask": (0, 0), "kth": (0, 0)},
        peer=("torch topk and scatter", peer_topk),
        agree=agree_topk,
        vary={"R": (0, 4), "C": (1, 40)},
        work=lambda args: (args["scores"].nbytes + args["mask"].nbytes, float(args["scores"].size)),
    ),
    Case(
        op="core_diffusion.moe_route",
        sizes={"tiny": {"T": 7, "E": 3}, "bench": {"T": 65536, "E": 16}},
        make=make_route,
        reference=reference_route,
        tolerance={"offsets": (0, 0), "tokens": (0, 0)},
        vary={"T": (0, 20), "E": (0, 5)},
        work=lambda args: (args["mask"].nbytes + args["tokens"].nbytes, float(args["mask"].size)),
    ),
    Case(
        op="core_diffusion.expert_ffn",
        sizes={"tiny": {"T": 9, "D": 5, "E": 3, "H": 6}, "bench": {"T": 256, "D": 64, "E": 4, "H": 128}},
        make=make_experts,
        reference=reference_experts,
        tolerance={"hidden": (1e-5, 1e-5), "out": (1e-5, 1e-5)},
        vary={"T": (0, 20), "D": (0, 20), "E": (0, 4), "H": (0, 20)},
        work=work_experts,
    ),
    Case(
        op="core_diffusion.expert_ffn_backward",
        sizes={"tiny": {"T": 9, "D": 5, "E": 3, "H": 6}, "bench": {"T": 256, "D": 64, "E": 4, "H": 128}},
        make=make_experts_backward,
        reference=reference_experts_backward,
        tolerance=dict.fromkeys(("dx", "dgates", "dup", "dup_bias", "ddown", "ddown_bias"), (0.0001, 2e-05)),
        vary={"T": (0, 20), "D": (0, 20), "E": (0, 4), "H": (0, 20)},
        work=work_experts,
    ),
    *codebook_cases,
    *refinement_cases,
]
