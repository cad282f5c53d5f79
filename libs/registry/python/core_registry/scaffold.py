"""A new plugin package from the files in `template/`."""

from __future__ import annotations

import importlib.util
import keyword
import pathlib
import re
import sys

TEMPLATE = pathlib.Path(__file__).parent / "template"


def import_name(name: str) -> str:
    """The import name of a plugin that is called `name`; ValueError if there can be no such plugin."""
    plugin = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", plugin) or len(plugin) > 40 or keyword.iskeyword(plugin):
        raise ValueError(
            f"a plugin's name is lower case letters, digits and single '-' or '_', at most 40 of them, got {name!r}"
        )
    if plugin in sys.stdlib_module_names or importlib.util.find_spec(plugin) is not None:
        raise ValueError(f"{plugin!r} is the name of a Python package of this environment; choose another")
    return plugin


def make(name: str, folder: pathlib.Path | None = None) -> pathlib.Path:
    """Fills `folder` (default: `name` with dashes, here) with a plugin package, and returns it.

    Raises ValueError for a name that cannot be and FileExistsError for a folder that is not empty.
    """
    plugin = import_name(name)
    distribution = plugin.replace("_", "-")
    folder = folder or pathlib.Path(distribution)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not an empty folder")
    for source in sorted(p for p in TEMPLATE.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        target = folder / str(source.relative_to(TEMPLATE)).replace("plugin_name", plugin)
        target.parent.mkdir(parents=True, exist_ok=True)
        text = source.read_text("utf-8").replace("plugin_name", plugin).replace("plugin-name", distribution)
        target.write_text(text, "utf-8")
    return folder
