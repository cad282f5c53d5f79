"""4D training, pruning, the filter and the container on a small walk; the claim's machinery."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from core_splatting.dynamic import slice_4d
from core_splatting.playback import Player
from core_splatting.scenes.walker import walker

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")
pytest.importorskip("PIL.Image")
from core_splatting.claims import fourdgs_1k  # noqa: E402
from core_splatting.formats.container4d import open_4d, write_4d  # noqa: E402
from core_splatting.reference import dynamic as reference  # noqa: E402
from core_splatting.training import Config, Trainer  # noqa: E402
from core_splatting.training.densify import Default  # noqa: E402
from core_splatting.training.geometry import rotations_4d  # noqa: E402
from core_splatting.training.jobs import prune4d, train  # noqa: E402
from core_splatting.training.model import Model4D  # noqa: E402
from core_splatting.training.prune import finish, key_times, prune, tie  # noqa: E402


@pytest.fixture(scope="module")
def scene() -> Any:
    """Six times, three cameras of 40 x 48, 800 points."""
    whole = walker(40, 48, frames=6, cameras=3, gaussians=4000)
    return dataclasses.replace(whole, points=whole.points[::10], colors=whole.colors[::10])


def trainer(scene: Any, steps: int, **changes: Any) -> Trainer:
    settings = {"duration": 1.0, "sh_every": 20, "most": 1500} | changes
    return Trainer(scene, Config.for_steps(steps, **settings), hold_out=3)


@pytest.mark.parametrize("changes", [{}, {"strategy": "mcmc", "batch": 2, "visible_only": True}])
def test_training_and_exact_resume(scene: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    pytest.importorskip("safetensors")
    first = trainer(scene, 120, **changes)
    before = first.evaluate()["psnr"]
    losses = list(first.run(60))
    first.save(tmp_path / "a.safetensors")
    losses += list(first.run(1000))
    assert len(losses) == first.step == 120
    assert np.mean(losses[-20:]) < 0.75 * np.mean(losses[:10])
    assert first.evaluate()["psnr"] > before + 1
    again = trainer(scene, 120, **changes)
    again.load(tmp_path / "a.safetensors")
    list(again.run(1000))
    for name in Model4D.names:
        np.testing.assert_array_equal(first.model.parameters[name].detach(), again.model.parameters[name].detach())


def test_geometry_is_that_of_the_slice(scene: Any) -> None:
    model = trainer(scene, 10).model
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for name in ("quats_left", "quats_right"):
            model.parameters[name].copy_(torch.from_numpy(rng.normal(size=(len(model), 4)).astype(np.float32)))
        model.log_scales.add_(torch.from_numpy(rng.normal(0, 0.5, (len(model), 4)).astype(np.float32)))
    shape = [x.detach() for x in model.shape()]
    _, covars, _, _ = slice_4d(*shape, 0.5, prefilter_var=1e6)  # nothing is culled
    whole = model.factors().detach() @ model.factors().detach().mT
    space, time = whole[:, :3, 3:], whole[:, 3:, 3:]
    expected = whole[:, :3, :3] - space @ space.mT / time
    np.testing.assert_allclose(covars, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(model.sizes() ** 2, covars.diagonal(dim1=1, dim2=2).amax(-1), rtol=1e-3)
    rotation = rotations_4d(model.quats_left.detach(), model.quats_right.detach())
    np.testing.assert_allclose(rotation @ rotation.mT, np.tile(np.eye(4), (len(model), 1, 1)), atol=1e-5)
    assert reference  # the slice itself is held against float64 in the case table


def test_split_draws_from_space_and_time(scene: Any) -> None:
    t = trainer(scene, 10, refine_start=0, refine_every=1, most=10**6)
    model, count = t.model, len(t.model)
    with torch.no_grad():
        model.log_scales[:, :3] = 0.0  # all large
    strategy = Default(t.config, 1.0, torch.Generator().manual_seed(0))
    strategy.state = {"gradient": torch.full((count,), 1.0), "seen": torch.ones(count)}
    old = model.means.detach().clone()
    strategy.after(model, 1, 1e-4)
    moved = model.means.detach()[:count] - old
    assert len(model) == 2 * count
    np.testing.assert_allclose(moved.std(0), [1, 1, 1, (1 / 5) ** 0.5], rtol=0.15)


def test_prune_filter_and_container(scene: Any, tmp_path: Path) -> None:
    t = trainer(scene, 60)
    list(t.run(60))
    count = len(t.model)
    prune(t, 0.8, interval=2, steps=30)
    assert len(t.model) == count - round(0.8 * count)
    before = t.evaluate()["psnr"]
    assert len(list(t.run(1000))) == 30
    assert t.evaluate()["psnr"] > before
    finish(t)
    stored = t.model.gaussians()
    write_4d(tmp_path / "a.4dgs", stored)
    read = open_4d(tmp_path / "a.4dgs").read()
    np.testing.assert_array_equal(read.masks, stored.masks)
    assert read.key_times.tolist() == np.float32([0, 0.4, 0.8, 1.0]).tolist()
    player = Player(read)
    assert (player.sh_degree, player.time_degree) == (3, 2)
    for p in t.pictures:
        camera = (p.viewmat[None].numpy(), p.K[None].numpy(), 40, 48)
        if np.float32(p.time) in read.key_times:
            whole = player.render(p.time, *camera, filtered=False)
            np.testing.assert_array_equal(player.render(p.time, *camera), whole)
    share = [len(player.indices(x)) / len(stored) for x in (0.0, 0.2)]
    assert 0 < share[0] <= share[1] <= 1


def test_jobs(scene: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From photographs with times on the disk to a small container."""
    pytest.importorskip("safetensors")
    from PIL import Image

    frames = []
    for i, view in enumerate(scene.views):
        Image.fromarray(view.pixels).save(tmp_path / f"{i:03}.png")
        pose = np.linalg.inv(view.viewmat)
        pose[:3, 1:3] *= -1
        frames.append({"file_path": f"{i:03}.png", "transform_matrix": pose.tolist(), "time": view.time})
    K = scene.views[0].K
    about = {"w": 40, "h": 48, "fl_x": K[0, 0], "fl_y": K[1, 1], "frames": frames}
    (tmp_path / "transforms.json").write_text(json.dumps(about))
    check = tmp_path / "a.safetensors"
    common = {"downscale": 1, "hold_out": 3, "device": "cpu"}
    train(
        tmp_path, tmp_path / "a.4dgs", steps=20, strategy="default", most=12_000, sh_degree=1, duration=1.0, batch=1,
        absgrad=False, checkpoint=check, resume=False, seed=0, **common,
    )  # fmt: skip
    count = open_4d(tmp_path / "a.4dgs").count
    prune4d(tmp_path, check, tmp_path / "b.4dgs", prune=0.8, interval=2, key_frames=0, steps=3, entries=64, **common)
    small = open_4d(tmp_path / "b.4dgs").read()
    assert len(small) == count - round(0.8 * count)
    assert small.masks.shape == (4, len(small))
    assert "fine-tuned" in capsys.readouterr().out
    write = check.read_bytes().replace(b'\\"batch\\": 1', b'\\"batch\\": []')
    (tmp_path / "c.safetensors").write_bytes(write)
    with pytest.raises(SystemExit, match=r"core: .*c\.safetensors"):
        prune4d(
            tmp_path, tmp_path / "c.safetensors", tmp_path / "b.4dgs", prune=0.8, interval=2, key_frames=0, steps=3,
            entries=64, **common,
        )  # fmt: skip


def test_key_times() -> None:
    times = [0.1 * i for i in range(24)] * 3
    assert key_times(times, 20) == pytest.approx([0, 2.0, 2.3])
    assert key_times(times, 23) == pytest.approx([0, 2.3])
    assert key_times(times, count=6)[::5] == pytest.approx([0, 2.3])
    assert len(key_times(times, count=100)) == 24


def test_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs through at a size too small for its bars; key frames are equal at any size."""
    pytest.importorskip("matplotlib")
    tiny = fourdgs_1k.Size(32, 32, 4, 3, 2000, 8000, 30, 2e-4, 9000, 2, 5, 2, 1.0, "cpu")
    monkeypatch.setitem(fourdgs_1k.SIZES, "cpu", tiny)
    found = fourdgs_1k.claim("cpu", 0, tmp_path)
    assert found.measured["filtered against all: most at key frames"][0] <= 1 / 255
    assert found.measured["times less storage"][0] > 30
    assert found.plot is not None
    assert found.plot.stat().st_size > 10_000


def test_bad_arguments(scene: Any) -> None:
    with pytest.raises(ValueError, match="times"):
        trainer(scene, 10, duration=0.5)
    with pytest.raises(ValueError, match="4D"):
        prune(Trainer(scene, Config.for_steps(10), hold_out=3))
    for bad in ({"duration": -1.0}, {"batch": 0}, {"sh_time_degree": 3}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Config(**bad)


def test_tied_harmonics_move_together_and_are_stored_as_they_are(scene: Any, tmp_path: Path) -> None:
    t = trainer(scene, 60, visible_only=True)
    list(t.run(60))
    prune(t, 0.5, interval=2, steps=20)
    list(t.run(10))
    tie(t, 16)
    before = t.model.gaussians().sh
    gradient = torch.randn(t.model.sh.shape, generator=torch.Generator().manual_seed(0))
    (t.model.sh * gradient).sum().backward()
    _, codes = np.unique(before[:, 16:32].reshape(len(before), -1), axis=0, return_inverse=True)
    sums = np.zeros((16, 16, 3))
    np.add.at(sums, codes, gradient[:, 16:32].numpy())
    np.testing.assert_allclose(t.model.sh.grad[:, 16:32], sums[codes], rtol=1e-4, atol=1e-4)
    t.model.sh.grad = None
    list(t.run(10))
    after = t.model.gaussians()
    for columns in (slice(0, 1), slice(1, 16), slice(16, 32), slice(32, 48)):
        rows = after.sh[:, columns].reshape(len(after), -1)
        assert 1 < len(np.unique(rows, axis=0)) <= 16
        assert np.abs(rows - before[:, columns].reshape(len(after), -1)).max() > 0
    write_4d(tmp_path / "a.4dgs", after, entries=16)
    np.testing.assert_array_equal(
        open_4d(tmp_path / "a.4dgs").read().sh, after.sh.astype(np.float16).astype(np.float32)
    )
