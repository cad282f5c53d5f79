"""The cost of a call with three small tensors through each face, beside torch.add and apache-tvm-ffi."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import pathlib
import shutil
import subprocess
import tempfile
import timeit
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from . import cmake_dir, include_dir, load, plugins

if TYPE_CHECKING:
    from .testing import Case


def measure() -> list[dict[str, Any]]:
    """Seconds of a call and their ratio to torch.add, through each face that can be measured here."""
    case = _smallest_case()
    args = case.arguments()
    binding, values = case.binding(), list(args.values())
    rows: list[tuple[str, float]] = [(f"{case.op}, numpy", _seconds(lambda: binding(*values)))]
    by_name = _by_name(case, values)
    if by_name is not None:
        rows.append((f"{case.op}, C ABI by name", by_name))
    add = None
    if importlib.util.find_spec("torch"):
        import torch

        tensors = [torch.from_numpy(v) if isinstance(v, np.ndarray) else v for v in values]
        rows.append((f"{case.op}, torch", _seconds(lambda: binding(*tensors))))
        operator = _torch_operator(case, binding)
        rows.append((f"{case.op}, torch operator with out", _seconds(lambda: operator(*tensors))))
        one = torch.ones(2, 3)
        add = _seconds(lambda: torch.add(one, one))
        rows.append(("torch.add", add))
    rows += _tvm_ffi()
    return [{"call": name, "seconds": s, **({"of torch.add": s / add} if add else {})} for name, s in rows]


def _smallest_case() -> Case:
    """The case with three tensors and the fewest other arguments."""
    cases: list[Case] = []
    for point in sorted(importlib.metadata.entry_points(group="core.cases"), key=lambda p: p.name):
        cases += point.load()
    three = [c for c in cases if sum(a.kind == "tensor" for a in c.description.args) == 3]
    if not three:
        raise SystemExit("core: no installed operator has three tensors, so there is nothing to measure")
    return min(three, key=lambda c: (len(c.description.args), c.op))


def _seconds(call: Callable[[], object]) -> float:
    timer = timeit.Timer(call)
    number, _ = timer.autorange()
    return min(timer.repeat(5, max(number // 5, 1))) / max(number // 5, 1)


def _by_name(case: Case, values: list[Any]) -> float | None:
    """A C loop of calls through the ABI; None without a C compiler."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        library = pathlib.Path(folder) / "time_calls.so"
        source = pathlib.Path(cmake_dir()) / "core_time_calls.c"
        subprocess.run(
            [compiler, "-O2", "-shared", "-fPIC", "-I", include_dir(), str(source), "-o", str(library)], check=True
        )
        time_calls = ctypes.CDLL(str(library)).core_time_calls
    time_calls.restype = ctypes.c_double
    time_calls.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64]
    function = load(plugins()[case.plugin].path)[case.op]
    arguments, keep, _ = function.values(*values)
    repeats = 100_000
    best = min(time_calls(ctypes.byref(function.raw), arguments, len(arguments), repeats) for _ in range(5))
    del keep
    if best < 0:
        raise RuntimeError(f"{case.op} fails through the C ABI")
    return float(best) / repeats


def _torch_operator(case: Case, binding: Callable[..., None]) -> Callable[..., None]:
    from . import torchlib

    types = {"tensor": "Tensor", "int": "int", "float": "float", "bool": "bool", "str": "str"}
    letters = iter("abcdefgh")
    schema = ", ".join(
        f"{types[a.kind]}{f'({next(letters)}!)' if a.out else ''}{'?' if a.optional else ''} {a.name}"
        for a in case.description.args
    )
    return torchlib.define("core_registry_calls", f"call({schema}) -> ()", binding, lambda *_: None)  # type: ignore[no-any-return]


def _tvm_ffi() -> list[tuple[str, float]]:
    """The same with apache-tvm-ffi, if it and a C++ compiler are there."""
    if importlib.util.find_spec("tvm_ffi") is None or shutil.which("g++") is None or shutil.which("ninja") is None:
        return []
    import torch
    import tvm_ffi.cpp

    source = """
    void check(tvm::ffi::TensorView x, tvm::ffi::TensorView y, tvm::ffi::TensorView out) {
      if (x.ndim() != 2 || y.ndim() != 2 || out.ndim() != 2 || x.dtype().bits != 32) TVM_FFI_THROW(ValueError) << "no";
    }"""
    check = tvm_ffi.cpp.load_inline(name="core_calls", cpp_sources=source, functions=["check"]).check
    x, t = np.ones((2, 3), np.float32), torch.ones(2, 3)
    return [
        ("apache-tvm-ffi, numpy", _seconds(lambda: check(x, x, x))),
        ("apache-tvm-ffi, torch", _seconds(lambda: check(t, t, t))),
    ]
