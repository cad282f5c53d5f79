"""The plugin registry of Core: find plugins, look at their operators, call them by name.

Importing this module imports no plugin, no numpy and no torch.
"""

from __future__ import annotations

import functools
import importlib
import os
import pathlib
from typing import TYPE_CHECKING

from ._discovery import Arg, Op, Overload, Plugin, PluginError, Scan, scan

if TYPE_CHECKING:
    from ._ffi import Library

__all__ = [
    "Arg",
    "Op",
    "Overload",
    "Plugin",
    "PluginError",
    "cmake_dir",
    "errors",
    "include_dir",
    "load",
    "op",
    "ops",
    "plugins",
    "prefix",
    "refresh",
]


@functools.cache
def scanned() -> Scan:
    """All that was found, good and broken; scanned once, see `refresh`."""
    return scan()


def plugins() -> dict[str, Plugin]:
    """The usable plugins by name. Broken ones are in `errors()`."""
    return dict(scanned().plugins)


def errors() -> dict[str, PluginError]:
    """What is wrong, by the name of the plugin or of the operator."""
    return {**scanned().errors, **scanned().poisoned}


def ops() -> dict[str, Op]:
    """The operators of all usable plugins by full name ("core_splatting.rasterize")."""
    return dict(scanned().ops)


def op(name: str) -> Op:
    """One operator's description, by its full name or, if that is clear, its last part.

    Raises PluginError for a name that two plugins provide, KeyError (with near names) for an unknown one.
    """
    found = scanned()
    if name in found.poisoned:
        raise found.poisoned[name]
    if name in found.ops:
        return found.ops[name]
    short = [o for o in found.ops.values() if o.name.rpartition(".")[2] == name]
    if len(short) == 1:
        return short[0]
    import difflib  # a tenth of the time of this package's import

    near = [o.name for o in short] or difflib.get_close_matches(name, found.ops, 3, 0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    broken = f" ({len(errors())} broken, see `core doctor`)" if errors() else ""
    raise KeyError(f"no operator {name!r}{hint}{broken}")


def load(path: str | os.PathLike[str]) -> Library:
    """Loads a plugin library, installed or not, into this process: `load(path)["op"](...)`.

    It is never unloaded. Raises PluginError with what to do about it.
    """
    from ._ffi import Library

    return Library(path)


def refresh() -> None:
    """Forgets what was found, after an installation into the running process."""
    scanned.cache_clear()
    importlib.invalidate_caches()


def cmake_dir() -> str:
    """The folder of `core_registryConfig.cmake`, for CMAKE_PREFIX_PATH or core_registry_DIR."""
    return str(_root() / "cmake")


def include_dir() -> str:
    """The folder of the C and C++ headers."""
    return str(_root() / "include")


def prefix() -> str:
    """A CMAKE_PREFIX_PATH under which find_package finds core_registry and all installed plugins."""
    folders = [cmake_dir(), *(str(p.path.parents[1]) for p in plugins().values())]
    return ";".join(folders)


def _root() -> pathlib.Path:
    here = pathlib.Path(__file__).parent
    return here if (here / "include").is_dir() else here.parents[1]  # in a checkout: libs/registry
