"""The frame of the claims' plots."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core_registry.files import replace


@contextmanager
def axes(path: Path, columns: int = 1, width: float = 7, height: float = 4.5) -> Iterator[Any]:
    """Matplotlib's axes (an array of them for more ``columns``); the picture is written as PNG at the end."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, made = plt.subplots(1, columns, figsize=(width, height), layout="constrained")
    try:
        yield made
        with replace(path) as temporary:
            figure.savefig(temporary, dpi=110, format="png")
    finally:
        plt.close(figure)
