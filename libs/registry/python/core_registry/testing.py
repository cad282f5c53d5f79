"""The case table of a package, and the tests that every row gets.

from core_diffusion.cases import cases
from core_registry.testing import abuse_tests, case_tests

TestCases = case_tests(cases)
TestAbuse = abuse_tests(cases)
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import dataclasses
import functools
import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from . import Op, load, op, ops, plugins
from ._ffi import Tensor

Args = dict[str, Any]
REFUSALS = (TypeError, ValueError, BufferError, NotImplementedError, MemoryError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One operator's row: from it come its tests of correctness and of bad input, and its benchmark.

    `make(rng, **size)` gives every argument of the raw operator by name, in order; `reference(args)` the expected
    outputs by name, independent of our kernel. `tolerance` is (rtol, atol) for each of them; with `sums` atol is a part
    of an output's largest value where that exceeds 1, as of long sums whose terms cancel. `peer` is a name and
    a function that prepares the same work: `peer(args)` returns a callable that does it and returns outputs by
    name. `agree(args, ours, peers)` gives the largest difference where values cannot be compared one by one.
    `work(args)` is (bytes moved, floating point operations). `inout` names outputs that are read too. `vary` gives
    ranges of sizes for hypothesis. `torch_call(args)` calls the torch operator with torch tensors;
    `differentiable` says that it takes tensors that require grad.
    """

    op: str
    sizes: Mapping[str, Mapping[str, Any]]
    make: Callable[..., Args]
    reference: Callable[[Args], Mapping[str, Any]]
    tolerance: Mapping[str, tuple[float, float]]
    sums: bool = False
    peer: tuple[str, Callable[[Args], Callable[[], Mapping[str, Any]]]] | None = None
    agree: Callable[[Args, Mapping[str, Any], Mapping[str, Any]], float] | None = None
    work: Callable[[Args], tuple[float, float]] | None = None
    inout: tuple[str, ...] = ()
    vary: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    torch_call: Callable[[Args], Any] | None = None
    differentiable: bool = False
    devices: tuple[str, ...] = ("cpu",)

    @property
    def plugin(self) -> str:
        """The plugin's name."""
        return self.op.partition(".")[0]

    @property
    def description(self) -> Op:
        """The operator's description."""
        return op(self.op)

    @property
    def outputs(self) -> list[str]:
        """The names of the outputs."""
        return [a.name for a in self.description.args if a.out]

    def binding(self) -> Callable[..., None]:
        """The operator's function in the package's extension module."""
        module = importlib.import_module(f"{self.plugin}._{self.plugin}")
        return getattr(module, self.op.partition(".")[2])  # type: ignore[no-any-return]

    def arguments(self, size: str | Mapping[str, Any] = "tiny", seed: int = 0) -> Args:
        """Fresh arguments, checked against the description; the outputs hold garbage."""
        chosen = self.sizes[size] if isinstance(size, str) else size
        args = self.make(np.random.default_rng(seed), **chosen)
        names = [a.name for a in self.description.args]
        if list(args) != names:
            raise ValueError(f"{self.op}: the case makes {list(args)}, the operator takes {names}")
        for name in self.outputs:
            if name not in self.inout:
                poison(args[name])
        return args

    def difference(self, args: Args, expected: Mapping[str, Any]) -> float:
        """The largest absolute difference of the outputs in `args`; raises AssertionError beyond the tolerance."""
        largest = 0.0
        for name, want in expected.items():
            rtol, atol = self.tolerance[name]
            got = np.asarray(args[name])
            want = np.asarray(want)
            if got.shape != want.shape:
                raise AssertionError(f"{self.op}: {name} has shape {got.shape}, expected {want.shape}")
            if rtol == atol == 0 or got.dtype.kind not in "fc":
                np.testing.assert_array_equal(got, want, err_msg=f"{self.op}: {name}")
            else:
                atol *= max(1.0, float(np.abs(want).max(initial=0))) if self.sums else 1.0
                np.testing.assert_allclose(got, want, rtol=rtol, atol=atol, err_msg=f"{self.op}: {name}")
            if got.size and got.dtype.kind != "b":
                with np.errstate(invalid="ignore"):
                    largest = max(largest, float(np.nanmax(np.abs(got.astype(np.float64) - want.astype(np.float64)))))
        return largest


def poison(array: Any) -> None:
    """Fills an output with garbage, so that an element that is not written shows."""
    if array is not None:
        array[...] = np.nan if array.dtype.kind in "fc" else array.dtype.type(1 if array.dtype.kind == "b" else 85)


def duplicate(args: Args) -> Args:
    """A copy of the arguments."""
    return {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in args.items()}


def _run(case: Case, args: Args, call: Callable[..., Any] | None = None) -> None:
    (call or case.binding())(*args.values())


def _compare(case: Case, args: Args) -> float:
    """Calls the operator and compares with the reference."""
    expected = case.reference(duplicate(args))
    _run(case, args)
    return case.difference(args, expected)


# ---- layouts ------------------------------------------------------------------------------------------------


def _stepped(x: np.ndarray) -> np.ndarray:
    wide = np.empty((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    wide[...] = 85
    wide[..., ::2] = x
    return wide[..., ::2]


def _reversed(x: np.ndarray) -> np.ndarray:
    flip = (slice(None, None, -1),) * x.ndim
    return np.ascontiguousarray(x[flip])[flip]


def _shifted(x: np.ndarray) -> np.ndarray:
    flat = np.empty(x.size + 1, x.dtype)
    flat[1:] = x.ravel()
    return flat[1:].reshape(x.shape)


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "every second element": _stepped,
    "reversed": _reversed,
    "Fortran order": np.asfortranarray,
    "shifted by one element": _shifted,
}


def _relaid(args: Args, layout: Callable[[np.ndarray], np.ndarray], which: Sequence[str]) -> Args:
    return {
        k: layout(v) if k in which and isinstance(v, np.ndarray) and v.ndim else v for k, v in duplicate(args).items()
    }


def case_tests(cases: Sequence[Case]) -> type:
    """The tests of correctness: a class for pytest to collect."""
    import pytest

    each = pytest.mark.parametrize("case", cases, ids=lambda c: c.op)
    plugin = cases[0].plugin

    class TestCases:
        def test_every_operator_has_a_row(self) -> None:
            assert {c.op for c in cases} == {o.name for o in ops().values() if o.plugin == plugin}

        @each
        @pytest.mark.parametrize("seed", range(3))
        def test_reference(self, case: Case, seed: int) -> None:
            _compare(case, case.arguments(seed=seed))

        @each
        def test_faces_agree(self, case: Case) -> None:
            args = case.arguments()
            expected = case.reference(duplicate(args))
            by_name = duplicate(args)
            load(plugins()[plugin].path)[case.op](**by_name)
            case.difference(by_name, expected)
            torch = pytest.importorskip("torch")
            tensors = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in args.items()}
            _run(case, tensors)
            case.difference(args, expected)

        @each
        def test_sizes(self, case: Case) -> None:
            if not case.vary:
                pytest.skip("no sizes to vary")

            hypothesis = pytest.importorskip("hypothesis")
            st = hypothesis.strategies

            @hypothesis.settings(max_examples=25, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))  # type: ignore[untyped-decorator]
            @hypothesis.given(
                st.fixed_dictionaries({k: st.integers(a, b) for k, (a, b) in case.vary.items()}),
                st.integers(0, 2**32 - 1),
            )
            def check(size: dict[str, int], seed: int) -> None:
                _compare(case, case.arguments({**case.sizes["tiny"], **size}, seed))

            check()

        @each
        @pytest.mark.parametrize("layout", LAYOUTS)
        def test_layout(self, case: Case, layout: str) -> None:
            args = case.arguments()
            for which in ([a.name for a in case.description.args if not a.out], case.outputs):
                _compare(case, _relaid(args, LAYOUTS[layout], which))

        @each
        def test_broadcast_input(self, case: Case) -> None:
            for arg in case.description.args:
                args = case.arguments()
                x = args[arg.name]
                if arg.out or not isinstance(x, np.ndarray) or x.ndim < 2 or x.shape[0] < 2:
                    continue
                repeated = {**args, arg.name: np.ascontiguousarray(np.broadcast_to(x[:1], x.shape))}
                strided = {**duplicate(args), arg.name: np.broadcast_to(x[:1], x.shape)}
                try:
                    _run(case, repeated)
                except REFUSALS:
                    with pytest.raises(REFUSALS):
                        _run(case, strided)
                    continue
                _run(case, strided)
                case.difference(strided, {k: repeated[k] for k in case.tolerance})

        @each
        def test_empty_axes(self, case: Case) -> None:
            for name, value in case.sizes["tiny"].items():
                if not isinstance(value, int):
                    continue
                try:
                    args = case.arguments({**case.sizes["tiny"], name: 0})
                except (ValueError, ZeroDivisionError, IndexError, OverflowError):
                    continue  # not a size that may be zero
                try:
                    _run(case, args)
                except REFUSALS as e:
                    assert str(e).startswith(case.op.partition(".")[2] + ":")

        @each
        def test_same_from_many_threads(self, case: Case) -> None:
            copies = [case.arguments() for _ in range(8)]
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                list(pool.map(functools.partial(_run, case), copies))
            for other in copies[1:]:
                for name in case.tolerance:
                    np.testing.assert_array_equal(other[name], copies[0][name])

        @pytest.mark.parametrize("isa", ["v2", "v3", "v4"])
        def test_instruction_sets_and_threads(self, isa: str) -> None:
            digests = {_in_child(plugin, isa, threads) for threads in (1, 3)}
            if digests == {None}:
                pytest.skip(f"this processor lacks {isa}")
            assert len(digests) == 1, "the result depends on the number of threads"

        @each
        @pytest.mark.cuda
        def test_cuda(self, case: Case) -> None:
            torch = pytest.importorskip("torch")
            if "cuda" not in case.devices or not torch.cuda.is_available():
                pytest.skip("no CUDA operator or no GPU")
            args = case.arguments()
            expected = case.reference(duplicate(args))
            there = {k: torch.from_numpy(v).cuda() if isinstance(v, np.ndarray) else v for k, v in args.items()}
            _run(case, there)
            torch.cuda.synchronize()
            back = {k: v.cpu().numpy() if isinstance(v, torch.Tensor) else v for k, v in there.items()}
            case.difference(back, expected)

    return TestCases


def _in_child(plugin: str, isa: str, threads: int) -> str | None:
    """A digest of all results at these settings, each compared with its reference; None if the level is missing."""
    done = subprocess.run(
        [sys.executable, "-m", "core_registry.testing", plugin],
        env={**os.environ, "CORE_ISA": isa, "CORE_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        check=False,
    )
    if "asks for more than this processor has" in done.stderr:
        return None
    if done.returncode:
        raise AssertionError(f"CORE_ISA={isa} CORE_NUM_THREADS={threads}:\n{done.stderr[-3000:]}")
    return done.stdout


def main(plugin: str) -> None:
    """Runs all cases of a plugin at size tiny against their references and prints a digest of the results."""
    import hashlib

    digest = hashlib.sha256()
    for case in importlib.import_module(f"{plugin}.cases").cases:
        args = case.arguments()
        _compare(case, args)
        for name in case.tolerance:
            digest.update(np.ascontiguousarray(args[name]).tobytes())
    print(digest.hexdigest())


# ---- bad input ----------------------------------------------------------------------------------------------


def _misaligned(x: np.ndarray) -> np.ndarray:
    raw = np.zeros(x.nbytes + 1, np.uint8)
    raw[1:] = np.frombuffer(np.ascontiguousarray(x).tobytes(), np.uint8)
    return np.ndarray(x.shape, x.dtype, raw.data, 1)


def _read_only(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flags.writeable = False
    return x


def _longer(x: np.ndarray, axis: int) -> np.ndarray:
    return np.concatenate([x, np.take(x, [-1], axis)], axis)


def _bad_arrays(case: Case, args: Args) -> Iterator[tuple[str, str, Any]]:
    """(argument, what is wrong, the bad value): none may be accepted."""
    described = case.description
    for i, arg in enumerate(described.args):
        x = args[arg.name]
        if not isinstance(x, np.ndarray):
            continue
        known = {o.dtypes[i] for o in described.overloads}
        wrong = next(d for d in ("float16", "int8", "uint32") if d not in known)
        yield arg.name, "complex", x.astype(np.complex64)
        yield arg.name, wrong, x.astype(wrong)
        yield arg.name, "one dimension more", x[None]
        yield arg.name, "no dimension", np.array(1, x.dtype) if x.ndim else x[None]
        yield arg.name, "a list", x.tolist()
        yield arg.name, "a number", 3
        yield arg.name, "objects", x.astype(object)
        yield arg.name, "dates", np.zeros(x.shape, "datetime64[s]")
        if x.dtype.itemsize > 1:
            yield arg.name, "big-endian", x.astype(x.dtype.newbyteorder(">"))
            if x.size:
                yield arg.name, "misaligned", _misaligned(x)
        record = np.zeros(x.shape, [("a", x.dtype), ("b", np.uint8)])
        if x.dtype.itemsize > 1 and x.size > 1:
            yield arg.name, "a field of records", record["a"]
        yield arg.name, "records", record
        if not arg.optional:
            yield arg.name, "None", None
        symbols = arg.shape.split(",")
        elsewhere = {s for a in described.args if a.name != arg.name for s in a.shape.split(",")}
        for axis, symbol in enumerate(symbols):
            if x.ndim and x.shape[axis] and (symbol in elsewhere or symbol.isdigit()):
                yield arg.name, f"axis {axis} longer by one", _longer(x, axis)
        if arg.out:
            yield arg.name, "read-only", _read_only(x)
            if x.size > 1:
                yield arg.name, "stride zero", np.lib.stride_tricks.as_strided(x.copy(), x.shape, (0,) * x.ndim)


def _overlaps(case: Case, args: Args) -> Iterator[tuple[str, Args]]:
    """Arguments in which an output shares memory with another array."""
    arrays = {k: v for k, v in args.items() if isinstance(v, np.ndarray) and v.size}
    for out in set(case.outputs) & set(arrays):
        for other in set(arrays) - {out}:
            memory = np.zeros(max(arrays[out].nbytes, arrays[other].nbytes) // 8 + 1, np.float64)
            shared = {k: np.ndarray(arrays[k].shape, arrays[k].dtype, memory.data) for k in (out, other)}
            shared[other][...] = arrays[other]
            yield f"{out} and {other}", {**duplicate(args), **shared}


def _hostile_contents(case: Case, args: Args) -> Iterator[tuple[str, Args]]:
    for arg in case.description.args:
        x = args[arg.name]
        if isinstance(x, np.ndarray) and x.dtype.kind in "iuf" and (not arg.out or arg.name in case.inout):
            if x.dtype.kind == "f":
                big = np.finfo(x.dtype)
                values: list[Any] = [np.nan, np.inf, -np.inf, big.max, big.min, big.tiny, 0]
            else:
                values = [np.iinfo(x.dtype).max, np.iinfo(x.dtype).min, 0, 1]
            for value in values:
                yield f"{arg.name} = {value}", {**duplicate(args), arg.name: np.full_like(x, value)}
            if x.size > 1:
                for value in values[:2]:
                    spoiled = x.copy()
                    spoiled.flat[x.size // 2] = value
                    yield f"{arg.name} with one {value}", {**duplicate(args), arg.name: spoiled}
        elif isinstance(x, (int, float)) and not isinstance(x, bool):
            for number in [-1, 0, 2**62, -(2**63)] if isinstance(x, int) else [np.nan, np.inf, -1.0, 0.0, 1e300]:
                yield f"{arg.name} = {number}", {**duplicate(args), arg.name: number}


def abuse_tests(cases: Sequence[Case]) -> type:
    """The tests of bad input, through the binding, the C ABI and torch: a class for pytest to collect."""
    import pytest

    each = pytest.mark.parametrize("case", cases, ids=lambda c: c.op)
    through = pytest.mark.parametrize("face", ["binding", "C ABI"])

    def function(case: Case, face: str) -> Callable[..., None]:
        return case.binding() if face == "binding" else load(plugins()[case.plugin].path)[case.op]

    def refused(case: Case, call: Callable[..., Any], args: Args, argument: str | None, what: str) -> None:
        try:
            call(*args.values())
        except REFUSALS as e:
            said = str(e)
            short = case.op.partition(".")[2]
            assert said.startswith(f"{short}: argument '"), f"{argument}, {what}: {said!r}"
        else:
            pytest.fail(f"{case.op} accepts {argument} ({what})")

    def raw(case: Case, args: Args, name: str, change: Callable[[Tensor], None]) -> int:
        """The exit code of a C call in which one tensor's descriptor is changed."""
        call = load(plugins()[case.plugin].path)[case.op]
        values, keep, _ = call.values(*args.values())
        tensor = Tensor()
        i = list(args).index(name)
        ctypes.memmove(ctypes.byref(tensor), values[i].u.t, ctypes.sizeof(Tensor))
        change(tensor)
        values[i].u.t = ctypes.pointer(tensor)
        code = call.raw.call(values, len(values), None, None)
        del keep
        return int(code)

    class TestAbuse:
        @each
        @through
        def test_arrays(self, case: Case, face: str) -> None:
            call = function(case, face)
            args = case.arguments()
            for name, what, bad in _bad_arrays(case, args):
                refused(case, call, {**args, name: bad}, name, what)

        @each
        @through
        def test_overlap(self, case: Case, face: str) -> None:
            call = function(case, face)
            for what, args in _overlaps(case, case.arguments()):
                refused(case, call, args, what, "shared memory")

        @each
        @through
        def test_scalars(self, case: Case, face: str) -> None:
            call = function(case, face)
            args = case.arguments()
            wrong = {
                "int": [1.5, "1", None, 2**70],
                "float": ["1", None],
                "bool": [2.5, "no", None],
                "str": [1, None, "a\0b"],
            }
            for arg in case.description.args:
                for bad in wrong.get(arg.kind, []):
                    refused(case, call, {**args, arg.name: bad}, arg.name, repr(bad))

        @each
        @through
        def test_contents(self, case: Case, face: str) -> None:
            call = function(case, face)
            for _, args in _hostile_contents(case, case.arguments()):
                try:
                    call(*args.values())
                except REFUSALS as e:
                    assert str(e).startswith(case.op.partition(".")[2] + ":")

        @each
        @through
        def test_number_of_arguments(self, case: Case, face: str) -> None:
            call = function(case, face)
            values = list(case.arguments().values())
            with pytest.raises(TypeError):
                call(*values[:-1])
            with pytest.raises(TypeError):
                call(*values, 1)

        @each
        def test_descriptors(self, case: Case) -> None:
            args = case.arguments()
            huge = (ctypes.c_int64 * 8)(*[2**57] * 8)
            negative = (ctypes.c_int64 * 8)(*[-1] * 8)
            far = (ctypes.c_int64 * 8)(*[2**62] * 8)

            def set_field(field: str, value: Any) -> Callable[[Tensor], None]:
                return lambda t: setattr(t, field, value)

            changes = {
                "huge": set_field("shape", huge),
                "negative": set_field("shape", negative),
                "lanes": set_field("dtype_lanes", 4),
                "device": set_field("device_type", 77),
                "rank": set_field("ndim", 100),
                "negative rank": set_field("ndim", -1),
            }
            for arg in case.description.args:
                x = args[arg.name]
                if not isinstance(x, np.ndarray) or not x.size:
                    continue
                for what, change in changes.items():
                    if x.ndim or what in ("lanes", "device", "rank", "negative rank"):
                        assert raw(case, args, arg.name, change) == -1, f"{arg.name}: {what}"
                assert raw(case, args, arg.name, set_field("data", None)) == -1, f"{arg.name}: null data"
                if max(x.shape, default=0) > 2:
                    assert raw(case, args, arg.name, set_field("strides", far)) == -1, f"{arg.name}: far strides"
            again = case.arguments()
            for arg in case.description.args:
                if isinstance(again[arg.name], np.ndarray):
                    null = ctypes.POINTER(ctypes.c_int64)()
                    assert raw(case, case.arguments(), arg.name, set_field("strides", null)) == 0, (
                        f"{arg.name}: NULL strides"
                    )

        @each
        def test_torch_tensors(self, case: Case) -> None:
            torch = pytest.importorskip("torch")
            plain = case.arguments()
            tensors = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in plain.items()}
            case.binding()(*tensors.values())
            for name, x in tensors.items():
                if not isinstance(x, torch.Tensor):
                    continue
                bad = {"meta": x.to("meta"), "conjugate": x.to(torch.complex64).conj()}
                if x.ndim:
                    bad["sparse"] = x.to_sparse()
                if x.is_floating_point():
                    bad["requires grad"] = x.clone().requires_grad_()
                    bad["negative bit"] = torch.complex(x.double(), -x.double()).to(x.dtype.to_complex()).conj().imag
                if torch.cuda.is_available():
                    bad["another device"] = x.cuda()
                calls = [case.binding(), load(plugins()[case.plugin].path)[case.op]]
                if len([t for t in tensors.values() if isinstance(t, torch.Tensor)]) < 2:
                    bad.pop("another device", None)
                for what, value in bad.items():
                    for call in calls:
                        refused(case, call, {**tensors, name: value}, name, what)
                    if (
                        case.torch_call is not None
                        and what in (("conjugate",) if case.differentiable else ("conjugate", "requires grad"))
                        and name not in case.outputs
                    ):
                        with pytest.raises((*REFUSALS, RuntimeError)):
                            case.torch_call({**tensors, name: value})

    return TestAbuse


if __name__ == "__main__":
    main(sys.argv[1])
