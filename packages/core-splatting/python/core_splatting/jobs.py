"""The jobs of core-splatting: files in, files out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from core_registry import files

from .novel_view import gaussians_from_disparity, render_right


def novel_view(
    left: Annotated[Path, typer.Argument(help="photograph, PNG or JPEG")],
    disparity: Annotated[Path, typer.Argument(help=".npy of its disparity in pixels, NaN where unknown")],
    out: Annotated[Path, typer.Option("-o", "--out", help="PNG of the view to write")],
    focal: Annotated[float, typer.Option(help="focal length in pixels")],
    baseline: Annotated[float, typer.Option(help="distance of the new camera to the right, any unit")],
    offset: Annotated[float, typer.Option(help="principal point of the right image minus that of the left one")] = 0.0,
    centre_x: Annotated[float | None, typer.Option(help="principal point, default the middle")] = None,
    centre_y: Annotated[float | None, typer.Option(help="principal point, default the middle")] = None,
) -> None:
    """Renders a photograph with known disparity from a camera further right."""
    import rich.progress
    from PIL import Image

    with rich.progress.Progress(transient=True) as progress:
        task = progress.add_task("novel view", total=3)
        image = np.asarray(Image.open(left).convert("RGB"), np.float32) / 255
        known = np.load(disparity, allow_pickle=False)
        if known.shape != image.shape[:2]:
            raise typer.BadParameter(f"{disparity} has shape {known.shape}, the photograph {image.shape[:2]}")
        height, width = known.shape
        centre = (width / 2 if centre_x is None else centre_x, height / 2 if centre_y is None else centre_y)
        progress.advance(task)
        gaussians = gaussians_from_disparity(image, known, focal, centre, baseline, offset)
        progress.advance(task)
        view, _ = render_right(gaussians, width, height, focal, centre, baseline, offset)
        with files.replace(out) as path:
            Image.fromarray((view * 255 + 0.5).astype(np.uint8)).save(path)
        progress.advance(task)
