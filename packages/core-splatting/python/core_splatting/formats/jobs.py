"""The job of the file formats: `core run splatting.convert`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from . import Gaussians, Source, open_gaussians, write


def convert(
    source: Annotated[Path, typer.Argument(help=".ply, .compressed.ply, .splat or .spz")],
    target: Annotated[Path, typer.Argument(help="file to write, its suffix says the format")],
    spz_version: Annotated[int, typer.Option(help="version of a .spz: 2, 3 or 4", min=2, max=4)] = 3,
) -> None:
    """Converts Gaussians from one file format to another, a part at a time."""
    import rich.progress

    try:
        opened = open_gaussians(source)
        with rich.progress.Progress(transient=True) as progress:
            task = progress.add_task(f"{target.name}", total=opened.count)

            def watched(n: int) -> Iterator[Gaussians]:
                for part in opened.chunks(n):
                    yield part
                    progress.advance(task, len(part))

            options: dict[str, Any] = {"version": spz_version} if target.suffix.lower() == ".spz" else {}
            write(target, Source(opened.count, opened.sh_degree, watched), **options)
    except (OSError, ValueError, ModuleNotFoundError) as e:
        raise SystemExit(f"core: {e}") from None
    print(f"{opened.count} Gaussians, harmonics of degree {opened.sh_degree}: {target.stat().st_size:,} bytes")
