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


class Browser:
    """A client of viser's page: the Gaussians and the slider that it was sent last."""

    def __init__(self, viser: Any, port: int) -> None:
        from websockets.sync.client import connect

        page = f"ws://127.0.0.1:{port}"
        self.socket = connect(page, subprotocols=[f"viser-v{viser.__version__}"], max_size=None)
        camera = {"wxyz": [1, 0, 0, 0], "position": [0, 0, -3], "look_at": [0, 0, 0], "up_direction": [0, -1, 0]}
        self.send("ViewerCameraMessage", **camera, fov=1, near=0.1, far=9, image_height=48, image_width=64)
        self.slider: Any = None

    def send(self, kind: str, **values: Any) -> None:
        import msgspec

        self.socket.send(msgspec.msgpack.encode({"type": kind} | values))

    def splats(self) -> tuple[Any, Any, Any]:
        """Centres, upper triangles of covariances and RGBA of the next Gaussians that come."""
        import msgspec
        import zstandard

        while True:
            data = self.socket.recv(timeout=60)
            end = 16 + int.from_bytes(data[8:16], "little")
            about = msgspec.msgpack.decode(zstandard.decompress(data[16:end]))
            lengths = [(n + 7) // 8 * 8 for n in about["binaryBufferLengths"]]
            messages = {m["type"]: m for m in about["messages"]}
            self.slider = messages.get("GuiSliderMessage", self.slider)
            if "GaussianSplatsMessage" in messages:
                i = messages["GaussianSplatsMessage"]["props"]["buffer"]["__binary_index"]
                begin = (end + 7) // 8 * 8 + sum(lengths[:i])
                rows = np.frombuffer(data[begin : begin + about["binaryBufferLengths"][i]], np.uint32).reshape(-1, 8)
                return rows[:, :3].view(np.float32), rows[:, 4:7].view(np.float16), rows[:, 7:].view(np.uint8)


def are_shown(splats: tuple[Any, Any, Any], centres: Any, covars: Any, colors: Any, opacities: Any) -> None:
    np.testing.assert_array_equal(splats[0], centres)
    np.testing.assert_allclose(splats[1], covars.reshape(-1, 9)[:, [0, 1, 2, 4, 5, 8]], rtol=1e-3, atol=1e-4)
    rgba = np.concatenate([colors.clip(0, 1), opacities[:, None]], 1)
    np.testing.assert_allclose(splats[2] / 255, rgba, atol=1.01 / 255)


@pytest.mark.parametrize("kind", ["3D", "4D"])
def test_view(kind: str) -> None:
    """The page is served, a client is sent the Gaussians, and those of the time that its slider stands at."""
    viser = pytest.importorskip("viser", minversion="1.1")  # the form of its messages
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
        browser = Browser(viser, port)
        first = browser.splats()
        if kind == "3D":
            are_shown(first, shown.means, covariances(shown), shown.colors, shown.opacities)
            assert browser.slider is None
        else:
            are_shown(first, *shown.at(0.0))
            assert (browser.slider["props"]["min"], browser.slider["props"]["max"]) == (0.0, 1.0)
            browser.send("GuiUpdateMessage", uuid=browser.slider["uuid"], updates={"value": 0.5})
            later = browser.splats()
            are_shown(later, *shown.at(0.5))
            assert len(later[0]) != len(first[0])
        browser.socket.close()
    finally:
        server.stop()
