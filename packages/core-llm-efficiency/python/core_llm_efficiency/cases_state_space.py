"""Rows of the case table: the scans of Mamba-1 and Mamba-2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from core_registry.testing import Case

from .reference import state_space as reference

Args = dict[str, Any]
_SCAN = ("u", "delta", "A", "B", "C", "initial_state")
_SSD = ("x", "dt", "A", "B", "C", "initial_states")


def _f32(rng: np.random.Generator, *shape: int) -> Any:
    return rng.standard_normal(shape).astype(np.float32)


def make_scan(rng: np.random.Generator, b: int, d: int, g: int, n: int, l: int) -> Args:  # noqa: E741
    """delta as softplus gives it; A of a decaying state."""
    channels = d * g
    return {
        "u": _f32(rng, b, channels, l),
        "delta": np.logaddexp(0, _f32(rng, b, channels, l) - 2).astype(np.float32),
        "A": -np.exp(_f32(rng, channels, n)),
        "B": _f32(rng, b, g, n, l),
        "C": _f32(rng, b, g, n, l),
        "initial_state": _f32(rng, b, channels, n),
        "out": np.zeros((b, channels, l), np.float32),
        "last_state": np.zeros((b, channels, n), np.float32),
    }


def make_ssd(rng: np.random.Generator, b: int, l: int, h: int, g: int, p: int, n: int) -> Args:  # noqa: E741
    """Two or three sequences a row."""
    heads = h * g
    return {
        "x": _f32(rng, b, l, heads, p),
        "dt": np.logaddexp(0, _f32(rng, b, l, heads) - 2).astype(np.float32),
        "A": -np.exp(_f32(rng, heads)),
        "B": _f32(rng, b, l, g, n),
        "C": _f32(rng, b, l, g, n),
        "initial_states": _f32(rng, b, heads, p, n),
        "seq_idx": np.sort(rng.integers(0, 3, (b, l)), 1).astype(np.int32),
        "out": np.zeros((b, l, heads, p), np.float32),
        "final_states": np.zeros((b, heads, p, n), np.float32),
    }


def _backward(args: Args, rng: np.random.Generator, names: tuple[str, ...], out: str, last: str) -> Args:
    """The arguments of the backward operator from those of the forward one."""
    outputs = {f"grad_{name}": np.zeros_like(args[name]) for name in names}
    inputs = {k: v for k, v in args.items() if k not in (out, last)}
    given = {f"grad_{name}": _f32(rng, *args[name].shape) for name in (out, last)}
    return inputs | given | outputs


def make_scan_backward(rng: np.random.Generator, **sizes: int) -> Args:
    """Also a gradient of the last state."""
    return _backward(make_scan(rng, **sizes), rng, _SCAN, "out", "last_state")


def make_ssd_backward(rng: np.random.Generator, **sizes: int) -> Args:
    """Also a gradient of the final states."""
    return _backward(make_ssd(rng, **sizes), rng, _SSD, "out", "final_states")


def _reference(function: Callable[..., Any], count: int) -> Callable[[Args], Args]:
    def run(args: Args) -> Args:
        found = function(*list(args.values())[:count])
        return dict(zip(list(args)[-len(found) :], found, strict=True))

    return run


def _torch_call(name: str, count: int) -> Callable[[Args], Any]:
    def call(args: Args) -> Any:
        from . import torch_scans

        return getattr(torch_scans, name)(*list(args.values())[:count])

    return call


def _elements(args: Args, name: str, states: str) -> int:
    """How often a state is updated."""
    return int(args[name].shape[0] * args[states][0].size * args[name].shape[-1 if name == "u" else 1])


_scan_sizes = {
    "tiny": {"b": 2, "d": 20, "g": 2, "n": 3, "l": 70},
    "bench": {"b": 1, "d": 512, "g": 1, "n": 16, "l": 1024},
}
_ssd_sizes = {
    "tiny": {"b": 2, "l": 70, "h": 2, "g": 2, "p": 9, "n": 17},
    "bench": {"b": 1, "l": 1024, "h": 8, "g": 1, "p": 64, "n": 128},
}
_close = (1e-4, 1e-4)

cases: list[Case] = [
    Case(
        op="core_llm_efficiency.selective_scan",
        sizes=_scan_sizes,
        make=make_scan,
        reference=_reference(reference.selective_scan, 6),
        tolerance={"out": _close, "last_state": _close},
        devices=("cpu", "cuda"),
        work=lambda a: (sum(float(v.nbytes) for v in a.values()), 7.0 * _elements(a, "u", "initial_state")),
        vary={"b": (1, 2), "d": (1, 18), "n": (1, 5), "l": (1, 70)},
        torch_call=_torch_call("selective_scan", 6),
        differentiable=True,
    ),
    Case(
        op="core_llm_efficiency.selective_scan_backward",
        sizes=_scan_sizes,
        make=make_scan_backward,
        reference=_reference(reference.selective_scan_backward, 8),
        tolerance={f"grad_{name}": (1e-3, 1e-3) for name in _SCAN},
        devices=("cpu", "cuda"),
        work=lambda a: (sum(float(v.nbytes) for v in a.values()), 25.0 * _elements(a, "u", "initial_state")),
        torch_call=_torch_call("_scan_backward", 8),
    ),
    Case(
        op="core_llm_efficiency.ssd_scan",
        sizes=_ssd_sizes,
        make=make_ssd,
        reference=_reference(reference.ssd_scan, 7),
        tolerance={"out": _close, "final_states": _close},
        devices=("cpu", "cuda"),
        work=lambda a: (
            sum(float(v.nbytes) for v in a.values() if v is not None),
            4.0 * _elements(a, "x", "initial_states"),
        ),
        vary={"b": (1, 2), "l": (1, 140), "p": (1, 20), "n": (1, 20)},
        torch_call=_torch_call("ssd_scan", 7),
        differentiable=True,
    ),
    Case(
        op="core_llm_efficiency.ssd_scan_backward",
        sizes=_ssd_sizes,
        make=make_ssd_backward,
        reference=_reference(reference.ssd_scan_backward, 9),
        tolerance={f"grad_{name}": (1e-3, 2e-3) for name in _SSD},
        devices=("cpu", "cuda"),
        work=lambda a: (
            sum(float(v.nbytes) for v in a.values() if v is not None),
            12.0 * _elements(a, "x", "initial_states"),
        ),
        torch_call=_torch_call("_ssd_backward", 9),
    ),
]
