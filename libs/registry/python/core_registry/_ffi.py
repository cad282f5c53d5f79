"""The C ABI of `core/abi.h` through ctypes: load a plugin library and call its operators with any arrays."""

from __future__ import annotations

import builtins
import ctypes as C
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from ._discovery import KINDS, PluginError, check_abi

_DTYPE_CODES = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 5: "complex", 6: "bool"}
_CUDA = (2, 13)


class Tensor(C.Structure):
    """core_tensor, which is DLTensor."""

    _fields_: ClassVar = [
        ("data", C.c_void_p),
        ("device_type", C.c_int32),
        ("device_id", C.c_int32),
        ("ndim", C.c_int32),
        ("dtype_code", C.c_uint8),
        ("dtype_bits", C.c_uint8),
        ("dtype_lanes", C.c_uint16),
        ("shape", C.POINTER(C.c_int64)),
        ("strides", C.POINTER(C.c_int64)),
        ("byte_offset", C.c_uint64),
    ]


class _Union(C.Union):
    _fields_: ClassVar = [("t", C.POINTER(Tensor)), ("i", C.c_int64), ("f", C.c_double), ("s", C.c_char_p)]


class Value(C.Structure):
    """core_value."""

    _fields_: ClassVar = [("kind", C.c_int32), ("reserved", C.c_int32), ("u", _Union)]


class Error(C.Structure):
    """core_error."""

    _fields_: ClassVar = [("kind", C.c_char * 32), ("message", C.c_char * 992)]


class Arg(C.Structure):
    """core_arg."""

    _fields_: ClassVar = [
        ("name", C.c_char_p),
        ("shape", C.c_char_p),
        ("kind", C.c_int32),
        ("flags", C.c_uint32),
        ("dtype_code", C.c_uint8),
        ("dtype_bits", C.c_uint8),
        ("ndim", C.c_int16),
        ("reserved", C.c_uint32),
    ]


class Overload(C.Structure):
    """core_overload."""

    _fields_: ClassVar = [("device_type", C.c_int32), ("reserved", C.c_uint32), ("args", C.POINTER(Arg))]


CALL = C.CFUNCTYPE(C.c_int32, C.POINTER(Value), C.c_int32, C.c_void_p, C.POINTER(Error))


class Op(C.Structure):
    """core_op."""

    _fields_: ClassVar = [
        ("name", C.c_char_p),
        ("doc", C.c_char_p),
        ("paper", C.c_char_p),
        ("overloads", C.POINTER(Overload)),
        ("num_args", C.c_uint32),
        ("num_overloads", C.c_uint32),
        ("call", CALL),
    ]


class Plugin(C.Structure):
    """core_plugin."""

    _fields_: ClassVar = [
        ("struct_size", C.c_uint32),
        ("abi_major", C.c_uint16),
        ("abi_minor", C.c_uint16),
        ("name", C.c_char_p),
        ("version", C.c_char_p),
        ("ops", C.c_void_p),
        ("num_ops", C.c_uint32),
        ("op_size", C.c_uint32),
        ("attach", C.c_void_p),
    ]


class _Managed(C.Structure):  # DLManagedTensor
    _fields_: ClassVar = [("tensor", Tensor), ("context", C.c_void_p), ("deleter", C.c_void_p)]


class _ManagedVersioned(C.Structure):  # DLManagedTensorVersioned
    _fields_: ClassVar = [
        ("major", C.c_uint32),
        ("minor", C.c_uint32),
        ("context", C.c_void_p),
        ("deleter", C.c_void_p),
        ("flags", C.c_uint64),
        ("tensor", Tensor),
    ]


_capsule_name = C.pythonapi.PyCapsule_GetName
_capsule_name.restype, _capsule_name.argtypes = C.c_char_p, [C.py_object]
_capsule_pointer = C.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype, _capsule_pointer.argtypes = C.c_void_p, [C.py_object, C.c_char_p]


def as_tensor(array: Any, name: str) -> tuple[Tensor, bool, Any]:
    """`array` (anything with `__dlpack__`) as (tensor, read-only, what keeps it alive), without copying.

    Raises TypeError or ValueError, starting with `name`, for what is no dense array in memory.
    """
    if not hasattr(array, "__dlpack__"):
        raise TypeError(f"{name} must be an array, got {type(array).__name__}")
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        if array.requires_grad:
            if torch.is_grad_enabled():
                raise NotImplementedError(
                    f"{name} requires grad, but this call has no backward; "
                    "use torch.no_grad(), x.detach() or a differentiable torch operator"
                )
            array = array.detach()
        if array.is_neg() or array.is_conj():
            raise ValueError(f"{name} has its negative or conjugate bit set; pass x.resolve_neg() or x.resolve_conj()")
    try:
        try:
            capsule = array.__dlpack__(max_version=(1, 0))
        except TypeError:
            capsule = array.__dlpack__()
    except (BufferError, RuntimeError, ValueError, TypeError, NotImplementedError) as e:
        raise TypeError(f"{name} must be a dense array in memory: {str(e).splitlines()[0]}") from e
    if _capsule_name(capsule) == b"dltensor_versioned":
        versioned = _ManagedVersioned.from_address(_capsule_pointer(capsule, b"dltensor_versioned"))
        if versioned.major != 1:
            raise TypeError(f"{name} speaks DLPack {versioned.major}, not 1")
        return versioned.tensor, bool(versioned.flags & 1), capsule
    return _Managed.from_address(_capsule_pointer(capsule, b"dltensor")).tensor, False, capsule


def exception(error: Error) -> Exception:
    """The Python exception that an operator's error names."""
    kind = getattr(builtins, error.kind.decode("utf-8", "replace"), RuntimeError)
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        kind = RuntimeError
    return kind(error.message.decode("utf-8", "replace"))


def _decode(text: bytes | None) -> str:
    return (text or b"").decode("utf-8", "replace")


class Function:
    """An operator of a loaded library. Call it with its arguments in order or by name; outputs are arguments.

    Arrays are anything with `__dlpack__` (numpy, torch, JAX, CuPy) and are not copied; None stands for an
    optional one. On CUDA it runs on torch's current stream if torch is loaded, else on the default stream.
    """

    def __init__(self, op: Op) -> None:
        self._op = op
        args = op.overloads[0].args[: op.num_args]
        self.name = _decode(op.name)
        self.__doc__ = _decode(op.doc)
        self.args = tuple(_decode(a.name) for a in args)
        self._kinds = tuple(a.kind for a in args)
        self._out = tuple(bool(a.flags & 1) for a in args)

    def __repr__(self) -> str:
        return f"<operator {self.name}({', '.join(self.args)})>"

    def __call__(self, *args: Any, **named: Any) -> None:
        values, keep, stream = self.values(*args, **named)
        error = Error()
        if self._op.call(values, len(values), stream, C.byref(error)):
            raise exception(error)
        del keep

    def values(self, *args: Any, **named: Any) -> tuple[C.Array[Value], list[Any], int | None]:
        """The C values of a call's arguments, what keeps them alive, and the CUDA stream."""
        short = self.name.rpartition(".")[2]
        given = list(args)
        for name in self.args[len(args) :]:
            if name not in named:
                raise TypeError(f"{short}: argument '{name}' is missing")
            given.append(named.pop(name))
        if named or len(given) != len(self.args):
            raise TypeError(
                f"{short}: takes {len(self.args)} arguments ({', '.join(self.args)}), got {len(given) + len(named)}"
            )
        values = (Value * len(given))()
        keep: list[Any] = []
        stream = None
        for i, x in enumerate(given):
            label = f"{short}: argument '{self.args[i]}'"
            if x is None:
                continue
            if self._kinds[i] == 1:
                tensor, read_only, owner = as_tensor(x, label)
                if read_only and self._out[i]:
                    raise ValueError(f"{label} is read-only, but the operator writes to it")
                if tensor.device_type in _CUDA:
                    stream = _current_stream(tensor.device_id)
                values[i].kind, values[i].u.t = 1, C.pointer(tensor)
                keep.append((owner, tensor, x))
            else:
                keep.append(_scalar(values[i], self._kinds[i], x, label))
        return values, keep, stream

    @property
    def raw(self) -> Op:
        """The `core_op`, for a host's own calls."""
        return self._op


def _scalar(value: Value, kind: int, x: Any, label: str) -> Any:
    expected = {2: "an int", 3: "a float", 4: "a bool", 5: "a str"}[kind]
    value.kind = kind
    try:
        if kind == 3:
            if isinstance(x, (str, bytes)):
                raise TypeError
            value.u.f = float(x)
        elif kind == 5:
            if not isinstance(x, str):
                raise TypeError
            if "\0" in x:
                raise ValueError(f"{label} has a NUL character")
            value.u.s = x.encode()
            return value.u.s
        elif kind == 4:
            if type(x).__name__ not in ("bool", "bool_"):
                raise TypeError
            value.u.i = bool(x)
        else:
            i = x.__index__()
            if not -(2**63) <= i < 2**63:
                raise ValueError(f"{label} must fit into 64 bits")
            value.u.i = i
    except (TypeError, AttributeError):
        raise TypeError(f"{label} must be {expected}, got {type(x).__name__}") from None
    return None


def _current_stream(device: int) -> int | None:
    torch = sys.modules.get("torch")
    return torch.cuda.current_stream(device).cuda_stream if torch is not None else None


class Library(Mapping[str, Function]):
    """A loaded plugin library: its operators by name, with or without the plugin's prefix."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = pathlib.Path(path).absolute()
        if not self.path.is_file():
            raise PluginError(f"{self.path} does not exist")
        try:
            library = C.CDLL(str(self.path))
        except OSError as e:
            raise PluginError(
                f"cannot load {self.path}: {e}; it is no shared library of this platform, or misses another one: "
                "reinstall or rebuild it"
            ) from e
        if not hasattr(library, "core_plugin_query"):
            raise PluginError(
                f"{self.path} exports no core_plugin_query; it is no Core plugin, or was built without CORE_PLUGIN"
            )
        library.core_plugin_query.restype = C.POINTER(Plugin)
        table = library.core_plugin_query()
        if not table:
            raise PluginError(f"{self.path}: core_plugin_query returned nothing; rebuild the plugin")
        plugin = table.contents
        self.abi = (plugin.abi_major, plugin.abi_minor)
        check_abi(self.abi, self.path)
        if (
            plugin.struct_size < C.sizeof(Plugin)
            or plugin.op_size < C.sizeof(Op)
            or (plugin.num_ops and not plugin.ops)
        ):
            raise PluginError(f"the table of {self.path} is smaller than its ABI says; rebuild the plugin")
        self.name, self.version = _decode(plugin.name), _decode(plugin.version)
        ops = [Op.from_address(plugin.ops + i * plugin.op_size) for i in range(plugin.num_ops)]
        self._functions = {_decode(op.name): Function(op) for op in ops}
        self._keep = library

    def __getitem__(self, name: str) -> Function:
        full = name if name in self._functions else f"{self.name}.{name}"
        try:
            return self._functions[full]
        except KeyError:
            raise KeyError(f"{self.name} has no operator {name!r}; it has {', '.join(self)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._functions)

    def __len__(self) -> int:
        return len(self._functions)

    def __repr__(self) -> str:
        return f"<plugin {self.name} {self.version}: {', '.join(self)}>"

    def description(self) -> dict[str, Any]:
        """The description in the form of `core_plugin.json`."""
        return {
            "schema": 1,
            "name": self.name,
            "version": self.version,
            "abi": list(self.abi),
            "ops": [_describe(f.raw) for f in self._functions.values()],
        }


def _describe(op: Op) -> dict[str, Any]:
    def dtype(a: Arg) -> str | None:
        if a.kind != 1:
            return None
        name = _DTYPE_CODES.get(a.dtype_code, "?")
        return name if name == "bool" else f"{name}{a.dtype_bits}"

    return {
        "name": _decode(op.name),
        "doc": _decode(op.doc),
        "paper": None if op.paper is None else _decode(op.paper),
        "args": [
            {
                "name": _decode(a.name),
                "kind": KINDS[a.kind - 1],
                "shape": _decode(a.shape),
                "optional": bool(a.flags & 2),
                "out": bool(a.flags & 1),
            }
            for a in op.overloads[0].args[: op.num_args]
        ],
        "overloads": [
            {"device": "cuda" if o.device_type in _CUDA else "cpu", "dtypes": [dtype(a) for a in o.args[: op.num_args]]}
            for o in op.overloads[: op.num_overloads]
        ],
    }
