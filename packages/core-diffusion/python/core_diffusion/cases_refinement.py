"""Cases of the operators under hierarchical volume decoding."""

from typing import Any

import numpy as np
from core_registry.testing import Case
from numpy.typing import NDArray

from . import _core_diffusion as _C
from .reference import refinement as reference

Args = dict[str, Any]
STATE = ("values", "nodes", "cells", "tiles", "counts")


def field(rng: np.random.Generator, batch: int, nodes: int) -> NDArray[np.float32]:
    """A few waves with some noise, and unknown at some nodes: [B, nodes, nodes, nodes]."""
    at = np.stack(np.meshgrid(*[np.arange(nodes) / 4] * 3, indexing="ij"), -1)
    waves = np.sin(at @ rng.standard_normal((batch, 1, 1, 3, 4)) + rng.random(4)).sum(-1)
    waves += 0.1 * rng.standard_normal(waves.shape)
    return np.where(rng.random(waves.shape) < 0.02, np.nan, waves).astype(np.float32)


def make_state(batch: int, size: int) -> Args:
    """A level's state, not yet begun."""
    values, nodes, cells, tiles = reference.state_sizes(size)
    return {
        "values": np.zeros((batch, values), np.float32),
        "nodes": np.zeros((batch, nodes), np.uint8),
        "cells": np.zeros((batch, cells), np.uint8),
        "tiles": np.zeros((batch, tiles, 4), np.int64),
        "counts": np.zeros((batch + 1, 2), np.int64),
    }


def make_start(rng: np.random.Generator, B: int, N: int, odd: int, dilation: int) -> Args:
    """A coarse grid with a surface and holes; odd: 1 if the fine volume ends with the coarse one, else 0."""
    size = 2 * N - 2 + odd
    coarse = field(rng, B, N)
    options = {"level": 0.1, "near": 0.05 * dilation, "dilation": dilation, "size": size}
    return {"coarse": coarse, **options, **make_state(B, size)}


def reference_start(args: Args) -> Args:
    """The state by sets of cells."""
    size, side = args["size"], args["size"] // 2 * 2 + 1
    values = np.full((len(args["coarse"]), side, side, side), np.nan, np.float32)
    values[:, ::2, ::2, ::2] = args["coarse"]
    nodes, cells = np.zeros(values.shape, np.uint8), np.zeros((len(values), *[side // 2] * 3), np.uint8)
    for b, coarse in enumerate(args["coarse"]):
        front = reference.active(coarse, args["level"], args["near"], args["dilation"])
        reference.mark(values[b], nodes[b], front)
        for cell in front:
            cells[b][cell] = 2
    return state_of(args, values, nodes, cells, reference.counts_of(nodes, size, int((cells > 0).sum())))


def state_of(args: Args, values: Any, nodes: Any, cells: Any, counts: Any) -> Args:
    """Cubes as the operators hold them."""
    out = {"values": values.reshape(args["values"].shape), "counts": counts}
    for name, x in (("nodes", nodes), ("cells", cells)):
        out[name] = np.zeros_like(args[name])
        for row, cube in zip(out[name], x, strict=True):
            row[: cube.size] = cube.ravel()
    return out


def begun(rng: np.random.Generator, B: int, N: int, odd: int) -> tuple[Args, int]:
    """A level that has begun, and its size."""
    start = make_start(rng, B, N, odd, 0)
    _C.refine_start(*start.values())
    return {name: start[name] for name in STATE}, start["size"]


PLACE = {"low": np.array([-1.0, 0.5, 2.0]), "spacing": np.array([0.1, 0.2, 0.3])}


def make_ask(rng: np.random.Generator, B: int, N: int, odd: int) -> Args:
    """What a level that begins asks."""
    state, size = begun(rng, B, N, odd)
    most = int(state["counts"][:B, 0].max(initial=0))
    room = {"index": np.zeros((B, most), np.int64), "points": np.zeros((B, most, 3), np.float32)}
    return {"size": size, **PLACE, "nodes": state["nodes"], "tiles": state["tiles"], **room}


def reference_ask(args: Args) -> Args:
    """The nodes in state 2, one shape after the other."""
    index = np.full(args["index"].shape, -1, np.int64)
    for row, nodes in zip(index, args["nodes"], strict=True):
        asked = np.flatnonzero(nodes == 2)
        row[: len(asked)] = asked
    side, place = args["size"] // 2 * 2 + 1, (args["low"], args["spacing"])
    points = reference.points_of(index, side, args["size"] - 1, *place)
    return {"nodes": np.minimum(args["nodes"], 1), "index": index, "points": points}


def make_follow(rng: np.random.Generator, B: int, N: int, odd: int, step: int) -> Args:
    """The answers to what a level asks first, or second."""
    state, size = begun(rng, B, N, odd)
    values = field(rng, B, size // 2 * 2 + 1).reshape(B, (size // 2 * 2 + 1) ** 3)
    for i in range(step + 1):
        most = int(state["counts"][:B, 0].max(initial=0))
        index, points = np.zeros((B, most), np.int64), np.zeros((B, most, 3), np.float32)
        _C.refine_ask(size, PLACE["low"], PLACE["spacing"], state["nodes"], state["tiles"], index, points)
        found = np.take_along_axis(values, np.maximum(index, 0), 1) if B else np.zeros(index.shape, np.float32)
        args = {"size": size, "index": index, "found": found, "level": 0.1, "round": i, **state}
        if i < step:
            _C.refine_follow(*args.values())
    return args


def reference_follow(args: Args) -> Args:
    """The state by sets of cells."""
    size, step = args["size"], args["round"]
    side = size // 2 * 2 + 1
    values = reference.cube(args["values"], side)
    nodes, cells = reference.cube(args["nodes"], side), reference.cube(args["cells"], side // 2)
    total = 0
    for b in range(len(values)):
        there = args["index"][b] >= 0
        values[b].ravel()[args["index"][b, there]] = args["found"][b, there]
        front = reference.followed(values[b], cells[b], args["level"], step)
        cells[b][cells[b] > 0] = 1
        reference.mark(values[b], nodes[b], front)
        for cell in front:
            cells[b][cell] = 3 - step % 2
        total += len(front)
    return state_of(args, values, nodes, cells, reference.counts_of(nodes, size, total))


def make_known(rng: np.random.Generator, B: int, N: int, odd: int) -> Args:
    """What a level knows after its first answers."""
    args = make_follow(rng, B, N, odd, 0)
    _C.refine_follow(*args.values())
    known = int(args["counts"][:B, 1].sum())
    room = {"index": np.zeros(known, np.int64), "found": np.zeros(known, np.float32)}
    return {"size": args["size"], **{name: args[name] for name in ("values", "nodes", "tiles")}, **room}


def reference_known(args: Args) -> Args:
    """The nodes of the volume that are marked."""
    size, side = args["size"], args["size"] // 2 * 2 + 1
    inner = (slice(None), *[slice(0, size)] * 3)
    known = reference.cube(args["nodes"], side)[inner] > 0
    index = np.flatnonzero(known) % size**3
    return {"index": index, "found": reference.cube(args["values"], side)[inner][known]}


def make_points(rng: np.random.Generator, N: int, size: int) -> Args:
    """Nodes that begin somewhere in a grid."""
    first = int(rng.integers(0, max(size**3 - N, 0) + 1))
    return {"first": first, "size": size, **PLACE, "points": np.zeros((N, 3), np.float32)}


def reference_points(args: Args) -> Args:
    """By numpy's unravel_index."""
    index = args["first"] + np.arange(len(args["points"]))
    place = (args["low"], args["spacing"])
    return {"points": reference.points_of(index, args["size"], args["size"], *place)}


SIZES = {"tiny": {"B": 2, "N": 8, "odd": 0}, "bench": {"B": 1, "N": 65, "odd": 1}}
VARY = {"B": (0, 3), "N": (2, 12), "odd": (0, 1)}
EXACT = (0, 0)


def sized(**more: int) -> dict[str, dict[str, int]]:
    """The sizes with something more."""
    return {name: {**size, **more} for name, size in SIZES.items()}


cases = [
    Case(
        op="core_diffusion.grid_points",
        sizes={"tiny": {"N": 50, "size": 5}, "bench": {"N": 262144, "size": 65}},
        make=make_points,
        reference=reference_points,
        tolerance={"points": (1e-6, 1e-6)},
        vary={"N": (0, 125), "size": (5, 9)},
        work=lambda args: (args["points"].nbytes, 2.0 * args["points"].size),
        devices=("cpu", "cuda"),
    ),
    Case(
        op="core_diffusion.refine_start",
        sizes=sized(dilation=1),
        make=make_start,
        reference=reference_start,
        tolerance=dict.fromkeys(("values", "nodes", "cells", "counts"), EXACT),
        vary={**VARY, "dilation": (0, 2)},
        work=lambda args: (args["values"].nbytes + args["nodes"].nbytes, 8.0 * args["coarse"].size),
        devices=("cpu", "cuda"),
    ),
    Case(
        op="core_diffusion.refine_ask",
        sizes=SIZES,
        make=make_ask,
        reference=reference_ask,
        tolerance={"nodes": EXACT, "index": EXACT, "points": (1e-6, 1e-6)},
        inout=("nodes",),
        vary=VARY,
        work=lambda args: (args["points"].nbytes + args["index"].nbytes, 2.0 * args["points"].size),
        devices=("cpu", "cuda"),
    ),
    Case(
        op="core_diffusion.refine_follow",
        sizes=sized(step=1),
        make=make_follow,
        reference=reference_follow,
        tolerance=dict.fromkeys(("values", "nodes", "cells", "counts"), EXACT),
        inout=("values", "nodes", "cells", "tiles"),
        vary={**VARY, "step": (0, 2)},
        work=lambda args: (27.0 * args["cells"].size, 54.0 * args["cells"].size),
        devices=("cpu", "cuda"),
    ),
    Case(
        op="core_diffusion.refine_known",
        sizes=SIZES,
        make=make_known,
        reference=reference_known,
        tolerance={"index": EXACT, "found": EXACT},
        vary=VARY,
        work=lambda args: (2.0 * args["index"].nbytes, float(args["index"].size)),
        devices=("cpu", "cuda"),
    ),
]
