"""`core_registry.load`: operators of a plain C++ library, called with the arrays of several libraries."""

from __future__ import annotations

import subprocess
from pathlib import Path

import core_registry
import numpy as np
import pytest
from core_registry import _ffi

LAYOUT = """
#include <core/abi.h>
#include <stdio.h>
#define P(t) printf(#t " %zu\\n", sizeof(t))
#define O(t, f) printf(#t "." #f " %zu\\n", offsetof(t, f))
int main(void) {
  P(core_tensor); P(core_value); P(core_error); P(core_arg); P(core_overload); P(core_op); P(core_plugin);
  O(core_tensor, ndim); O(core_tensor, dtype_bits); O(core_tensor, shape); O(core_tensor, strides);
  O(core_tensor, byte_offset);
  O(core_value, u); O(core_error, message); O(core_arg, shape); O(core_arg, kind); O(core_arg, flags);
  O(core_arg, ndim);
  O(core_overload, args); O(core_op, paper); O(core_op, overloads); O(core_op, num_args); O(core_op, call);
  O(core_plugin, name); O(core_plugin, ops); O(core_plugin, num_ops); O(core_plugin, op_size); O(core_plugin, attach);
  return 0;
}
"""


def test_layout_is_that_of_the_header(tmp_path: Path) -> None:
    (tmp_path / "layout.c").write_text(LAYOUT)
    command = ["gcc", "-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", "-I", core_registry.include_dir()]
    subprocess.run([*command, str(tmp_path / "layout.c"), "-o", str(tmp_path / "layout")], check=True)
    lines = subprocess.run([str(tmp_path / "layout")], capture_output=True, text=True, check=True).stdout.split()
    for what, size in zip(lines[::2], map(int, lines[1::2]), strict=True):
        struct, _, field = what.partition(".")
        ours = getattr(_ffi, struct.removeprefix("core_").capitalize())
        assert (getattr(ours, field).offset if field else _ffi.C.sizeof(ours)) == size, what


def test_numpy(good: Path) -> None:
    toy = core_registry.load(good)
    assert list(toy) == ["toy.add"]
    assert (toy.name, toy.version, toy.abi) == ("toy", "0.1.0", (1, 0))
    for dtype in ("float32", "float64"):
        x, out = np.arange(4, dtype=dtype), np.empty(4, dtype)
        toy["add"](x, x[::-1], 2, None, out)
        np.testing.assert_array_equal(out, x + 2 * x[::-1])
        toy["toy.add"](x, x, scale=1.0, z=x, out=out)
        np.testing.assert_array_equal(out, 3 * x)
    with pytest.raises(KeyError, match=r"toy has no operator 'sub'; it has toy.add"):
        toy["sub"]


def test_torch(good: Path) -> None:
    torch = pytest.importorskip("torch")
    add = core_registry.load(good)["add"]
    x, out = torch.arange(4.0), torch.empty(4)
    add(x, x, 1.0, None, out)
    assert torch.equal(out, 2 * x)
    with pytest.raises(NotImplementedError, match="argument 'x' requires grad"):
        add(x.clone().requires_grad_(), x, 1.0, None, out)
    with torch.no_grad():
        add(x.clone().requires_grad_(), x, 1.0, None, out)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"x": np.zeros(3, np.float32)},
            ValueError,
            r"argument 'y' must be float32 of shape \(N,\) with N = 3, got float32 of shape \(4,\)",
        ),
        ({"x": np.zeros(4)}, TypeError, "argument 'y' must be float64"),
        ({"x": [1.0]}, TypeError, "argument 'x' must be an array, got list"),
        ({"x": None}, TypeError, "argument 'x' must be a tensor, got None"),
        ({"scale": "1"}, TypeError, "argument 'scale' must be a float, got str"),
        ({"scale": -1.0}, ValueError, "argument 'scale' must be >= 0"),
        ({"out": np.broadcast_to(np.zeros(1, np.float32), 4)}, ValueError, "argument 'out' is read-only"),
    ],
)
def test_refusals(good: Path, change: dict[str, object], error: type[Exception], message: str) -> None:
    four = np.zeros(4, np.float32)
    args = {"x": four, "y": four, "scale": 1.0, "z": None, "out": np.empty(4, np.float32), **change}
    with pytest.raises(error, match=message):
        core_registry.load(good)["add"](**args)


def test_numbers_of_arguments(good: Path) -> None:
    add = core_registry.load(good)["add"]
    with pytest.raises(TypeError, match="argument 'out' is missing"):
        add(1, 2, 3, None)
    with pytest.raises(TypeError, match="takes 5 arguments"):
        add(1, 2, 3, None, 5, 6)
    with pytest.raises(TypeError, match="takes 5 arguments"):
        add(1, 2, 3, None, 5, other=6)
