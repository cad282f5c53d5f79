"""What one call costs through each face of an operator, beside torch.add and apache-tvm-ffi in the same run."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.util
import operator
import os
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import cmake_dir, include_dir, load, plugins
from .testing import REFUSALS, Args, Case
from .timing import fastest

BUDGETS = {"numpy in": 0.6, "torch in": 0.55, "torch operator with out": 1.9, "C ABI by name": 0.12}


@dataclasses.dataclass(frozen=True)
class Call:
    """The cost of one call in seconds, as a multiple of torch.add, and the budget for that multiple."""

    face: str
    what: str
    seconds: float | None
    ratio: float | None = None
    budget: float | None = None
    problem: str = ""


def measure(cases: Sequence[Case]) -> list[Call]:
    """All faces of the operator among `cases` that is nearest to three tensors, called with nothing to do."""
    case, args = _least_work(sorted(cases, key=_distance))
    tensors = [v for v in args.values() if isinstance(v, np.ndarray)]
    what = f"{case.op}, {len(tensors)} tensors, {len(args) - len(tensors)} scalars"
    binding = case.binding()
    values = list(args.values())
    found = [Call("numpy in", what, fastest(lambda: binding(*values)))]
    if importlib.util.find_spec("torch"):
        import torch

        a = torch.ones(16)
        unit = fastest(lambda: torch.add(a, a))
        theirs = [torch.from_numpy(v) if isinstance(v, np.ndarray) else v for v in values]
        found.append(Call("torch in", what, fastest(lambda: binding(*theirs))))
        torch_operator, given = _operator(case, theirs)
        found.append(
            Call("torch operator with out", f"its {len(given)} tensors", fastest(lambda: torch_operator(*given)))
        )
    else:
        unit = float("nan")
    found += [_abi(case, args, what), *_tvm_ffi()]
    rated = [
        dataclasses.replace(c, ratio=c.seconds / unit, budget=BUDGETS.get(c.face)) if c.seconds and unit == unit else c
        for c in found
    ]
    return [Call("torch.add", "16 elements", unit, 1.0), *rated] if unit == unit else rated


def _distance(case: Case) -> tuple[int, int]:
    kinds = [a.kind for a in case.description.args]
    tensors = kinds.count("tensor")
    return abs(tensors - 3), len(kinds) - tensors


def _least_work(cases: Sequence[Case]) -> tuple[Case, Args]:
    """The first case that can be called with nothing to do, and such arguments; else the first with its smallest."""
    for case in cases:
        tiny = case.sizes["tiny"]
        for name in tiny:
            try:
                args = case.arguments({**tiny, name: 0})
                case.binding()(*args.values())
            except (*REFUSALS, ZeroDivisionError, IndexError):
                continue
            if all(v.size == 0 for k, v in args.items() if k in case.outputs):
                return case, args
    return cases[0], cases[0].arguments()


def _operator(case: Case, values: Sequence[Any]) -> tuple[Callable[..., None], list[Any]]:
    """A torch operator of the case's tensors, outputs passed in and scalars bound, and the tensors to call it with."""
    from . import torchlib

    described = list(zip(case.description.args, values, strict=True))
    tensors = [i for i, (a, v) in enumerate(described) if a.kind == "tensor" and v is not None]
    rest = [i for i in range(len(values)) if i not in tensors]
    in_order = operator.itemgetter(*(([*tensors, *rest]).index(i) for i in range(len(values))))
    binding, bound = case.binding(), tuple(values[i] for i in rest)
    letters = iter("abcdefgh")
    schema = ", ".join(
        f"Tensor{f'({next(letters)}!)' if described[i][0].out else ''} {described[i][0].name}" for i in tensors
    )
    made = torchlib.define(
        "core_registry_calls",
        f"call({schema}) -> ()",
        lambda *given: binding(*in_order(given + bound)),
        lambda *_: None,
    )
    return made, [values[i] for i in tensors]


def _abi(case: Case, args: Args, what: str) -> Call:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        return Call("C ABI by name", what, None, problem="needs a C compiler (cc)")
    with tempfile.TemporaryDirectory() as folder:
        library = pathlib.Path(folder) / "calls.so"
        source = pathlib.Path(cmake_dir()) / "core_time_calls.c"
        command = [compiler, "-O2", "-shared", "-fPIC", "-I", include_dir(), str(source), "-o", str(library)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return Call("C ABI by name", what, None, problem=done.stderr.strip().splitlines()[0])
        timer = ctypes.CDLL(str(library)).core_time_calls
    timer.restype = ctypes.c_double
    timer.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64]
    function = load(plugins()[case.plugin].path)[case.op]
    values, keep, _ = function.values(*args.values())
    seconds = min(timer(ctypes.addressof(function.raw), values, len(values), 10_000) for _ in range(20)) / 10_000
    del keep
    return Call(
        "C ABI by name", what, seconds if seconds > 0 else None, problem="" if seconds > 0 else "the call fails"
    )


def _tvm_ffi() -> list[Call]:
    """The same by apache-tvm-ffi, if it is installed: a function of three tensors that does nothing."""
    if not (importlib.util.find_spec("tvm_ffi") and importlib.util.find_spec("torch")):
        return []
    import torch

    what = "an empty function of 3 tensors"
    try:
        import tvm_ffi.cpp

        source = "void nothing(tvm::ffi::TensorView a, tvm::ffi::TensorView b, tvm::ffi::TensorView c) {}"
        nothing = tvm_ffi.cpp.load_inline(name="core_calls", cpp_sources=source, functions="nothing").nothing
    except Exception as e:  # a comparison, not a need
        return [Call("apache-tvm-ffi", what, None, problem=str(e).splitlines()[0] if str(e) else type(e).__name__)]
    x: Any = np.zeros((0, 4), np.float32)
    y = torch.from_numpy(x)
    return [
        Call("apache-tvm-ffi, numpy in", what, fastest(lambda: nothing(x, x, x))),
        Call("apache-tvm-ffi, torch in", what, fastest(lambda: nothing(y, y, y))),
    ]
