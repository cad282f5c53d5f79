"""The trainer on a synthetic scene of a few seconds, its parts against their definitions, and exact resume."""

import dataclasses
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from core_splatting import formats
from core_splatting.viewing import Orbit, covariances, render, render_gaussians

torch = pytest.importorskip("torch")
Rotation = pytest.importorskip("scipy.spatial.transform").Rotation
Image = pytest.importorskip("PIL.Image")
from core_splatting.scenes import load_scene  # noqa: E402
from core_splatting.training import Config, Trainer  # noqa: E402
from core_splatting.training.densify import MCMC, Default, relocated  # noqa: E402
from core_splatting.training.geometry import rotations  # noqa: E402
from core_splatting.training.jobs import train  # noqa: E402
from core_splatting.training.model import Model3D  # noqa: E402

SIZE = 48


def blobs(count: int = 40, seed: int = 3) -> formats.Gaussians:
    rng = np.random.default_rng(seed)
    means, quats = rng.uniform(-0.8, 0.8, (count, 3)), rng.normal(size=(count, 4))
    scales, colors = rng.uniform(0.08, 0.25, (count, 3)), rng.uniform(0, 1, (count, 3))
    return formats.Gaussians.from_activated(means, quats, scales, rng.uniform(0.6, 0.95, count), colors)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of coloured blobs, with transforms.json."""
    folder = tmp_path_factory.mktemp("blobs")
    K = np.array([[60.0, 0, SIZE / 2], [0, 60, SIZE / 2], [0, 0, 1]])
    frames = []
    orbit = Orbit(np.zeros(3), 3.0)
    for i in range(12):
        viewmat = orbit.viewmat(i / 12)
        Image.fromarray(render_gaussians(blobs(), viewmat, K, SIZE, SIZE)).save(folder / f"{i:02}.png")
        camera = np.linalg.inv(viewmat)
        camera[:3, 1:3] *= -1
        frames.append({"file_path": f"{i:02}.png", "transform_matrix": camera.tolist()})
    about: dict[str, Any] = {"w": SIZE, "h": SIZE, "fl_x": 60.0, "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(about))
    return folder


def trainer(photographs: Path, steps: int, **changes: Any) -> Trainer:
    """Begins from 400 points near the blobs, as a structure from motion would give."""
    scene = load_scene(photographs)
    points = np.repeat(blobs().means, 10, 0) + np.random.default_rng(0).normal(0, 0.1, (400, 3))
    scene = dataclasses.replace(scene, points=points, colors=np.full((400, 3), 0.5))
    return Trainer(scene, Config.for_steps(steps, **({"sh_degree": 1} | changes)), hold_out=6)


@pytest.mark.parametrize("strategy", ["default", "mcmc"])
def test_training_finds_the_scene(photographs: Path, strategy: str) -> None:
    t = trainer(photographs, 250, strategy=strategy, most=600)
    before = t.evaluate()
    losses = list(t.run(1000))
    after = t.evaluate()
    assert len(losses) == 250
    assert np.mean(losses[-20:]) < 0.5 * np.mean(losses[:20])
    assert after["psnr"] > before["psnr"] + 5
    assert after["psnr"] > 18, after
    assert len(t.model) != 400


def test_most_bounds_the_first_gaussians(photographs: Path) -> None:
    assert len(trainer(photographs, 10, most=50).model) == 50
    scene = load_scene(photographs)
    without = dataclasses.replace(scene, points=np.zeros((0, 3)), colors=np.zeros((0, 3)))
    for of in (without, scene):
        assert len(Trainer(of, Config(most=30), hold_out=6).model) <= 30
    with pytest.raises(ValueError, match="most"):
        Config(most=3)


def test_resume_is_exact(photographs: Path, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    for changes in (
        {},
        {"strategy": "mcmc", "most": 500, "visible_only": True},
        {"absgrad": True, "background": "random"},
    ):
        runs = []
        for stop in (None, 37):
            t = trainer(photographs, 60, **changes)
            if stop:
                list(t.run(stop))
                t.save(tmp_path / "a.safetensors")
                t = trainer(photographs, 60, **changes)
                t.load(tmp_path / "a.safetensors")
            list(t.run(60))
            assert t.step == 60
            runs.append(t.model.gaussians())
        for field in ("means", "quats", "log_scales", "logit_opacities", "sh"):
            np.testing.assert_array_equal(getattr(runs[0], field), getattr(runs[1], field))
    with pytest.raises(ValueError, match="configuration"):
        trainer(photographs, 61).load(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"b\.safetensors"):
        trainer(photographs, 60).load(tmp_path / "b.safetensors")


def model_of(g: formats.Gaussians, config: Config) -> Model3D:
    values = {
        "means": g.means, "quats": g.quats, "log_scales": g.log_scales, "logit_opacities": g.logit_opacities,
        "sh": g.sh,
    }  # fmt: skip
    return Model3D({k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in values.items()}, config, 1.0)


def test_clone_split_and_prune() -> None:
    config = Config(refine_start=0, refine_every=1)
    model = model_of(blobs(6), config)
    with torch.no_grad():
        model.log_scales[:3] = np.log(0.005)  # small
        model.logit_opacities[5] = -10.0
    strategy = Default(config, 1.0, torch.Generator().manual_seed(0))
    strategy.state = {"gradient": torch.tensor([1e-3, 0, 1e-3, 1e-3, 0, 0]), "seen": torch.ones(6)}
    old = {n: p.detach().clone() for n, p in model.parameters.items()}
    strategy.after(model, 1, 1e-4)
    # 0 and 2 are cloned, 3 is split in two, 5 is pruned.
    assert len(model) == 8
    np.testing.assert_array_equal(model.means[:6].detach(), old["means"][[0, 1, 2, 4, 0, 2]])
    np.testing.assert_allclose(model.log_scales[6:].detach(), old["log_scales"][[3, 3]] - np.log(1.6), rtol=1e-6)
    assert (model.means[6] != model.means[7]).any()
    assert strategy.state == {}


def test_relocation_keeps_what_is_seen() -> None:
    # n equal Gaussians of the new opacity and size, one behind the other, against the one they replace: in the middle
    # exactly, and in the integral over the line.
    for opacity, n in ((0.3, 2), (0.7, 3), (0.9, 10)):
        each, factor = relocated(torch.tensor([opacity]), torch.tensor([n]))
        x = np.linspace(-8, 8, 4001)
        one = opacity * np.exp(-0.5 * x**2)
        many = 1 - (1 - float(each) * np.exp(-0.5 * (x / float(factor)) ** 2)) ** n
        assert abs(many[2000] - one[2000]) < 1e-6
        assert abs(np.trapezoid(many, x) / np.trapezoid(one, x) - 1) < 1e-3


def test_mcmc_moves_the_dead_and_grows() -> None:
    config = Config(strategy="mcmc", refine_start=0, refine_every=1, most=45, noise=0.0)
    model = model_of(blobs(40), config)
    with torch.no_grad():
        model.logit_opacities[:5] = -12.0
    strategy = MCMC(config, 1.0, torch.Generator().manual_seed(0))
    strategy.after(model, 1, 1e-4)
    assert len(model) == 42
    assert float(torch.sigmoid(model.logit_opacities.detach()).min()) >= config.prune_opacity * 0.999


def test_noise_follows_the_covariance() -> None:
    config = Config(strategy="mcmc", refine_start=10**6, noise=1e3)
    g = formats.Gaussians.from_activated(
        np.zeros((4000, 3)), np.tile([0.8, 0.3, -0.4, 0.2], (4000, 1)), np.tile([0.5, 0.1, 0.02], (4000, 1)),
        np.full(4000, 1e-4), np.zeros((4000, 3)),
    )  # fmt: skip
    model = model_of(g, config)
    MCMC(config, 1.0, torch.Generator().manual_seed(0)).after(model, 0, 1e-3)
    moved = model.means.detach().double().numpy()
    sigma = covariances(g)[0].astype(np.float64)
    factor = 1 / (1 + np.exp(-100 * ((1 - 1e-4) - 0.995)))
    np.testing.assert_allclose(np.cov(moved.T), sigma @ sigma * factor**2, rtol=0.1, atol=2e-3)
    np.testing.assert_allclose(
        (rotations(torch.tensor(g.quats[:1])) @ rotations(torch.tensor(g.quats[:1])).mT)[0], np.eye(3), atol=1e-6
    )


def test_jobs(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(
        photographs, tmp_path / "a.ply", steps=5, downscale=2, strategy="default", most=10**6, sh_degree=0,
        absgrad=False, duration=0.0, batch=1, hold_out=6, device="cpu", checkpoint=None, resume=False, seed=0,
    )  # fmt: skip
    assert "PSNR" in capsys.readouterr().out
    formats.write(tmp_path / "a.ply", blobs())
    render(tmp_path / "a.ply", tmp_path / "views", photographs, 3, 64, 48, 2)
    assert len(list((tmp_path / "views").glob("*.png"))) == 12
    render(tmp_path / "a.ply", tmp_path / "turn.gif", None, 3, 64, 48, 1)
    with Image.open(tmp_path / "turn.gif") as gif:
        assert gif.n_frames == 3
        assert gif.size == (64, 48)
    with pytest.raises(SystemExit, match=r"none\.ply"):
        render(tmp_path / "none.ply", tmp_path / "x.png", None, 1, 8, 8, 1)
    with pytest.raises(SystemExit, match="expected"):
        train(
            tmp_path, tmp_path / "b.ply", steps=5, downscale=1, strategy="default", most=10, sh_degree=0,
            absgrad=False, duration=0.0, batch=1, hold_out=0, device="cpu", checkpoint=None, resume=False, seed=0,
        )  # fmt: skip


def colmap(photographs: Path, folder: Path, binary: bool) -> Path:
    """The photographs of a transforms.json as a COLMAP model without points."""
    views = load_scene(photographs).views
    shutil.copytree(photographs, folder / "images")
    model = folder / "sparse" / "0"
    model.mkdir(parents=True)
    rows = []
    for i, view in enumerate(views, 1):
        x, y, z, w = Rotation.from_matrix(view.viewmat[:3, :3]).as_quat().tolist()
        rows.append((i, w, x, y, z, *view.viewmat[:3, 3].tolist(), 1, view.path.name))
    if binary:
        (model / "cameras.bin").write_bytes(struct.pack("<QiiQQ3d", 1, 1, 0, SIZE, SIZE, 60, SIZE / 2, SIZE / 2))
        records = [struct.pack("<i7di", *row[:-1]) + row[-1].encode() + bytes(9) for row in rows]
        (model / "images.bin").write_bytes(struct.pack("<Q", len(rows)) + b"".join(records))
        (model / "points3D.bin").write_bytes(bytes(8))
    else:
        (model / "cameras.txt").write_text(f"1 SIMPLE_PINHOLE {SIZE} {SIZE} 60 {SIZE / 2} {SIZE / 2}\n")
        (model / "images.txt").write_text("".join(" ".join(map(str, row)) + "\n\n" for row in rows))
        (model / "points3D.txt").write_text("")
    return folder


def few_steps(scene: Path, out: Path, **changes: Any) -> None:
    options = {"checkpoint": None, "resume": False, "hold_out": 6, "steps": 5} | changes
    train(
        scene, out, downscale=1, strategy="default", most=10**6, sh_degree=0, absgrad=False, duration=0.0, batch=1,
        device="cpu", seed=0, **options,
    )  # fmt: skip


def test_jobs_on_each_kind_of_scene(photographs: Path, tmp_path: Path) -> None:
    """The same photographs as transforms.json and as COLMAP's two kinds of files give the same Gaussians."""
    few_steps(photographs, tmp_path / "json.ply")
    for kind in ("bin", "txt"):
        few_steps(colmap(photographs, tmp_path / kind, kind == "bin"), tmp_path / f"{kind}.ply")
        np.testing.assert_allclose(
            formats.read(tmp_path / f"{kind}.ply").means, formats.read(tmp_path / "json.ply").means, atol=1e-3
        )
        assert len(formats.read(tmp_path / f"{kind}.ply")) == 10_000


def test_what_is_wrong_with_a_scene_is_said(photographs: Path, tmp_path: Path) -> None:
    scene, out = colmap(photographs, tmp_path / "scene", True), tmp_path / "a.ply"
    Image.new("RGB", (5, 5)).save(scene / "images" / "03.png")
    with pytest.raises(SystemExit, match=r"core: .*03\.png: size: expected 48 x 48 pixels, got 5 x 5"):
        few_steps(scene, out)
    (scene / "images" / "03.png").unlink()
    with pytest.raises(SystemExit, match=r"core: .*03\.png: image: .*No such file"):
        few_steps(scene, out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match=r"core: .*empty: folder: expected cameras\.bin"):
        few_steps(tmp_path / "empty", out)
    assert not out.exists()


def test_what_is_wrong_with_a_checkpoint_is_said(photographs: Path, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    check = tmp_path / "a.safetensors"
    t = trainer(photographs, 60)
    list(t.run(2))
    t.save(check)
    with safetensors.safe_open(check, "pt") as file:
        about, tensors = json.loads(file.metadata()["core"]), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    for change in ({"config": None}, {"step": "one"}, {"step": -1}, {"step": 61}, {"step": None}):
        safetensors.save_file(tensors, check, {"core": json.dumps(about | change)})
        with pytest.raises(ValueError, match=r"a\.safetensors: expected .*" + next(iter(change))):
            trainer(photographs, 60).load(check)
    for name, value in (
        ("generator", torch.zeros(3, dtype=torch.uint8)), ("generator", torch.zeros(5056)), ("order", torch.ones(3)),
        ("order", torch.tensor([99])), ("model.means", torch.zeros(400, 2)), ("adam.means.exp_avg", torch.zeros(7, 3)),
    ):  # fmt: skip
        safetensors.save_file(tensors | {name: value}, check, {"core": json.dumps(about)})
        with pytest.raises(ValueError, match=r"a\.safetensors: expected .*" + name.split(".")[-1]):
            trainer(photographs, 60).load(check)


def test_bad_settings() -> None:
    for bad in ({"strategy": "none"}, {"steps": 0}, {"sh_degree": 4}, {"ssim_weight": 2.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Config(**bad)
    short = Config.for_steps(700)
    assert (short.refine_stop, short.refine_every) == (1500, 25)
    assert Config.for_steps(30_000) == Config()
