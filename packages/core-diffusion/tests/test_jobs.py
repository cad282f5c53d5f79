"""The job writes its picture, and refuses an image that is too small."""

from pathlib import Path

import numpy as np
import pytest


def test_count_walk(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    from core_diffusion.jobs import count_walk

    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    image.fromarray(pixels).save(tmp_path / "in.png")
    count_walk(tmp_path / "in.png", tmp_path / "walk.png", codes=256, tokens=24, steps=5)
    assert image.open(tmp_path / "walk.png").size[0] > 500
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.png", "walk.png"]
    with pytest.raises(ValueError, match="fewer than 100 tokens"):
        count_walk(tmp_path / "in.png", tmp_path / "no.png", codes=256, tokens=100, steps=5)
