"""scikit-build-core metadata provider: the dependencies of a package of this workspace.

In a checkout core-registry is the sibling directory, so that `pip install ./packages/core-x`
needs no index for our packages; in an sdist, or with CORE_RELEASE=1, it is the released version.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any


def dynamic_metadata(settings: Mapping[str, Any], project: Mapping[str, Any]) -> dict[str, list[str]]:
    """The provider's interface: `settings` is the table that names it, `project` the project's metadata."""
    registry = pathlib.Path.cwd().parent.parent / "libs" / "registry"
    in_checkout = (registry / "pyproject.toml").is_file() and not os.environ.get("CORE_RELEASE")
    first = f"core-registry @ {registry.as_uri()}" if in_checkout else settings["registry"]
    return {"dependencies": [first, *settings["dependencies"]]}
