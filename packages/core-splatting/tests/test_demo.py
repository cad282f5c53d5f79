"""The demo's picture and figures, the job, and the README's example."""

from pathlib import Path

import numpy as np
import pytest


def test_demo(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("skimage")
    from core_splatting.demo import demo

    result = demo(tmp_path)
    assert result.difference <= result.tolerance
    assert float(result.figures["PSNR right view"].removesuffix(" dB")) > 27.5
    assert all(p.path.stat().st_size > 100_000 for p in result.pictures)


def test_job(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    from core_splatting.jobs import novel_view

    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = 6 * np.arange(40), 8 * np.arange(30)[:, None]
    image.fromarray(pixels).save(tmp_path / "left.png")
    disparity = np.full((30, 40), 5.0, np.float32)
    disparity[:3] = np.nan
    np.save(tmp_path / "disparity.npy", disparity)
    novel_view(tmp_path / "left.png", tmp_path / "disparity.npy", tmp_path / "right.png", focal=50, baseline=1)
    view = np.asarray(image.open(tmp_path / "right.png"), float)
    assert view[:2].max() == 0
    assert np.abs(view[5:28, 2:30] - pixels[5:28, 7:35].astype(float)).mean() < 3
    np.save(tmp_path / "disparity.npy", disparity[1:])
    with pytest.raises(Exception, match="shape"):
        novel_view(tmp_path / "left.png", tmp_path / "disparity.npy", tmp_path / "right.png", focal=50, baseline=1)


def test_quaternions_of_rotations() -> None:
    from core_splatting.novel_view import quaternions
    from core_splatting.reference.rasterize import rotation_matrices

    q = np.random.default_rng(0).normal(size=(500, 4))
    r = rotation_matrices(q)
    np.testing.assert_allclose(rotation_matrices(quaternions(r)), r, atol=1e-12)
