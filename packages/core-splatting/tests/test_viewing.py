"""Pictures and the page of `splatting.view`, of 3D and 4D Gaussians; without torch."""

import socket
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from core_splatting import formats, slice_4d
from core_splatting.cases_dynamic import gaussians_4d
from core_splatting.formats.container4d import Gaussians4D, open_4d, write_4d
from core_splatting.playback import Player
from core_splatting.viewing import covariances, render, serve


def moving(count: int = 200) -> Gaussians4D:
    """Random 4D Gaussians with two key frames that see the first half and all of them."""
    rng = np.random.default_rng(0)
    a = gaussians_4d(rng, count)
    masks = np.ones((2, count), bool)
    masks[0, count // 2 :] = False
    f32 = np.float32
    return Gaussians4D(
        a["means"], np.log(a["scales"]), a["quats_l"], a["quats_r"], rng.normal(size=(count, 1)).astype(f32),
        rng.normal(0, 0.3, (count, 48, 3)).astype(f32), masks, np.array([0, 1], f32), 1.0,
    )  # fmt: skip


def test_player_shows_the_two_nearest_key_frames() -> None:
    g = moving()
    player = Player(g)
    assert (player.sh_degree, player.time_degree, len(player)) == (3, 2, 200)
    assert player.indices(0.0).tolist() == list(range(100))
    assert len(player.indices(0.5)) == 200
    centres, covars, colors, opacities = player.at(0.3)
    arrays = [x[:60] for x in player.arrays]
    expected = slice_4d(*arrays[:5], 0.3)
    there = np.flatnonzero(expected[3] > 0)
    np.testing.assert_array_equal(centres[: len(there)], expected[0][there])
    np.testing.assert_array_equal(opacities[: len(there)], expected[2][there])
    assert covars.shape == (len(centres), 3, 3)
    phase = 2 * np.pi * (g.means[there, 3] - 0.3)[:, None]
    harmonics = g.sh[there, 0] + np.cos(phase) * g.sh[there, 16] + np.cos(2 * phase) * g.sh[there, 32]
    np.testing.assert_allclose(colors[: len(there)], 0.5 + formats.SH_C0 * harmonics, rtol=1e-4, atol=1e-5)


def test_render_4d(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    write_4d(tmp_path / "a.4dgs", moving())
    assert len(open_4d(tmp_path / "a.4dgs").read()) == 200
    render(tmp_path / "a.4dgs", tmp_path / "turn.gif", None, 3, 64, 48, 1)
    with image.open(tmp_path / "turn.gif") as gif:
        assert gif.n_frames == 3
        assert np.asarray(gif.convert("RGB")).max() > 50
    with pytest.raises(SystemExit, match=r"none\.4dgs"):
        render(tmp_path / "none.4dgs", tmp_path / "x.png", None, 1, 8, 8, 1)


@pytest.mark.parametrize("kind", ["3D", "4D"])
def test_view(kind: str) -> None:
    """The page is served, and the Gaussians are in it."""
    pytest.importorskip("viser")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    rng = np.random.default_rng(0)
    shown: Any = Player(moving())
    if kind == "3D":
        means, colors = rng.normal(size=(2, 50, 3))
        shown = formats.Gaussians.from_activated(
            means, rng.normal(size=(50, 4)), np.full((50, 3), 0.1), np.full(50, 0.5), colors
        )
        assert covariances(shown).shape == (50, 3, 3)
    server = serve(shown, "127.0.0.1", port)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=10) as page:
            assert b"<html" in page.read().lower()
    finally:
        server.stop()
