"""Find plugins and read their descriptions; nothing is loaded or imported."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

ABI = (1, 0)
GROUP = "core.plugins"
MAX_DESCRIPTION = 16 << 20
KINDS = ("tensor", "int", "float", "bool", "str")


class PluginError(ImportError):
    """A plugin cannot be used. The message says why and what to do about it."""


@dataclasses.dataclass(frozen=True)
class Arg:
    """One argument of an operator: `shape` is "N,3" for a tensor of two dimensions, "" for other kinds."""

    name: str
    kind: str
    shape: str = ""
    optional: bool = False
    out: bool = False

    @property
    def ndim(self) -> int:
        """The number of dimensions of a tensor."""
        return len(self.shape.split(",")) if self.shape else 0


@dataclasses.dataclass(frozen=True)
class Overload:
    """One function behind an operator's name: its device and, per argument, the dtype (None: no tensor)."""

    device: str
    dtypes: tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class Op:
    """An operator's description."""

    name: str
    doc: str
    paper: str | None
    args: tuple[Arg, ...]
    overloads: tuple[Overload, ...]
    plugin: str

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices it runs on."""
        return tuple(dict.fromkeys(o.device for o in self.overloads))

    def __str__(self) -> str:
        return f"{self.name}({', '.join(self._argument(i) for i in range(len(self.args)))})"

    def _argument(self, i: int) -> str:
        arg = self.args[i]
        kind = arg.kind
        if kind == "tensor":
            kind = " | ".join(dict.fromkeys(o.dtypes[i] or "" for o in self.overloads)) + f"[{arg.shape}]"
        return f"{arg.name}: {'out ' if arg.out else ''}{kind}{' = None' if arg.optional else ''}"


@dataclasses.dataclass(frozen=True)
class Plugin:
    """A plugin's description. `path` is its library, `dist` the distribution that installed it ("" for none)."""

    name: str
    version: str
    abi: tuple[int, int]
    ops: tuple[Op, ...]
    path: pathlib.Path
    dist: str = ""


@dataclasses.dataclass(frozen=True)
class Scan:
    """What a scan found: plugins and operators by name, and what is wrong with the others."""

    plugins: dict[str, Plugin]
    errors: dict[str, PluginError]
    ops: dict[str, Op]
    poisoned: dict[str, PluginError]


def parse_description(text: str, path: pathlib.Path, dist: str = "") -> Plugin:
    """A plugin's description from its `core_plugin.json`; PluginError if it is malformed or of another ABI."""
    try:
        raw = json.loads(text)
        if raw["schema"] != 1:
            raise ValueError(f"schema {raw['schema']!r} is not 1")
        abi = (int(raw["abi"][0]), int(raw["abi"][1]))
        check_abi(abi, path, dist)
        name = _name(raw["name"])
        ops = tuple(_parse_op(op, name) for op in raw["ops"])
        return Plugin(name, _text(raw["version"]), abi, ops, path, dist)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as e:
        raise PluginError(
            f"the description of {path} is malformed ({type(e).__name__}: {e}); reinstall {dist or 'the plugin'}"
        ) from e


def check_abi(abi: tuple[int, int], path: object, dist: str = "") -> None:
    """PluginError unless a plugin of this ABI version runs under this registry."""
    if abi[0] != ABI[0] or abi[1] > ABI[1]:
        raise PluginError(
            f"{path} was built for Core ABI {abi[0]}.{abi[1]}, this core-registry speaks {ABI[0]}.{ABI[1]}; "
            f"install matching releases, e.g. pip install -U {dist or 'the plugin'} core-registry"
        )


def _parse_op(raw: dict[str, Any], plugin: str) -> Op:
    args = tuple(
        Arg(_name(a["name"]), _one_of(a["kind"], KINDS), _text(a["shape"]), bool(a["optional"]), bool(a["out"]))
        for a in raw["args"]
    )
    overloads = tuple(
        Overload(_one_of(o["device"], ("cpu", "cuda")), tuple(None if d is None else _text(d) for d in o["dtypes"]))
        for o in raw["overloads"]
    )
    if not overloads or any(len(o.dtypes) != len(args) for o in overloads):
        raise ValueError(f"the overloads of {raw['name']!r} do not fit its arguments")
    paper = None if raw["paper"] is None else _text(raw["paper"])
    full = _text(raw["name"])
    if len(full.split(".")) != 2 or not all(part.isidentifier() for part in full.split(".")):
        raise ValueError(f"{full!r:.60} is no operator's name, which is PLUGIN.NAME")
    return Op(full, _text(raw["doc"]), paper, args, overloads, plugin)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a string, got {value!r:.60}")
    return value


def _name(value: object) -> str:
    if not _text(value).isidentifier():
        raise ValueError(f"expected a name, got {value!r:.60}")
    return str(value)


def _one_of(value: object, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(f"expected one of {', '.join(known)}, got {value!r:.60}")
    return str(value)


def library_of(package: str) -> pathlib.Path:
    """The plugin library of an installed package, found without importing it."""
    if not package.isidentifier():
        raise PluginError(f"the entry point names {package!r}, which is no top-level package")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise PluginError(f"the entry point names package {package!r}, which is not installed; reinstall it")
    folders = [pathlib.Path(d) / "lib" for d in spec.submodule_search_locations]
    for folder in folders:
        if (library := folder / f"lib{package}.so").is_file():
            return library
    raise PluginError(f"no lib{package}.so in {' or '.join(map(str, folders))}; reinstall the package")


def describe(library: pathlib.Path, dist: str = "") -> Plugin:
    """The description of a library: from the `core_plugin.json` beside it, else asked of it in a child process."""
    description = library.with_name("core_plugin.json")
    if description.is_file():
        if description.stat().st_size > MAX_DESCRIPTION:
            raise PluginError(
                f"{description} is larger than {MAX_DESCRIPTION >> 20} MiB; reinstall {dist or 'the plugin'}"
            )
        return parse_description(description.read_text("utf-8", "replace"), library, dist)
    from .child import ask

    return parse_description(ask(library), library, dist)


def _candidates() -> Iterator[tuple[str, str, pathlib.Path | PluginError]]:
    """(name, distribution, library or what is wrong) of everything that claims to be a plugin."""
    seen = set()
    for point in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda p: p.name):
        dist = point.dist.name if point.dist else ""
        if (point.name, dist) in seen:
            continue  # one distribution that lies on sys.path twice
        seen.add((point.name, dist))
        try:
            yield point.name, dist, library_of(point.value.partition(":")[0].strip())
        except PluginError as e:
            yield point.name, dist, e
        except (ImportError, ValueError) as e:
            yield point.name, dist, PluginError(f"cannot find the package of {point.name}: {e}; reinstall it")
    for entry in filter(None, os.environ.get("CORE_PLUGIN_PATH", "").split(os.pathsep)):
        path = pathlib.Path(entry)
        if path.is_dir():
            for library in sorted(path.glob("lib*.so")):
                yield library.stem.removeprefix("lib"), "", library.absolute()
        elif path.is_file():
            yield path.stem.removeprefix("lib"), "", path.absolute()
        else:
            yield path.stem.removeprefix("lib"), "", PluginError(f"CORE_PLUGIN_PATH names {path}, which does not exist")


def scan() -> Scan:
    """Finds and reads everything; one broken plugin never touches the others."""
    disabled = {n.strip() for n in os.environ.get("CORE_DISABLE", "").split(",")}
    result = Scan({}, {}, {}, {})
    for name, dist, found in _candidates():
        if name in disabled:
            continue
        try:
            if isinstance(found, PluginError):
                raise found
            plugin = describe(found, dist)
            if plugin.name in disabled:
                continue
            if plugin.name in result.plugins:
                other = result.plugins[plugin.name].path
                raise PluginError(f"{plugin.path} and {other} are both the plugin {plugin.name!r}; remove one")
            result.plugins[plugin.name] = plugin
        except PluginError as e:
            result.errors[name if name not in result.errors else f"{name} ({found})"] = e
        except OSError as e:
            result.errors[name] = PluginError(f"cannot read the plugin {name}: {e}")
    for plugin in result.plugins.values():
        for op in plugin.ops:
            _add(result, op, plugin)
    return result


def _add(result: Scan, op: Op, plugin: Plugin) -> None:
    if not op.name.startswith(plugin.name + "."):
        why = f"{plugin.name!r} registers the operator {op.name!r}, which lacks its prefix {plugin.name + '.'!r}"
    elif op.name in result.ops:
        other = result.ops.pop(op.name).plugin
        why = f"the operator {op.name!r} is provided by both {other!r} and {plugin.name!r}; uninstall one"
    elif op.name not in result.poisoned:
        result.ops[op.name] = op
        return
    else:
        return
    result.poisoned[op.name] = PluginError(why)
