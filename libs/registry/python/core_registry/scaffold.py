"""A new plugin package from the files in `template/`."""

from __future__ import annotations

import pathlib

TEMPLATE = pathlib.Path(__file__).parent / "template"


def make(distribution: str, folder: pathlib.Path) -> pathlib.Path:
    """Fills `folder` (which must not exist, or be empty) with a plugin package; returns it."""
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} exists and is not empty")
    plugin = distribution.replace("-", "_")
    for source in sorted(p for p in TEMPLATE.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        target = folder / str(source.relative_to(TEMPLATE)).replace("plugin_name", plugin)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source.read_text().replace("plugin_name", plugin).replace("plugin-name", distribution))
    return folder
