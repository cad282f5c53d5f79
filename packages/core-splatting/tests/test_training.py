"""The trainer on a synthetic scene of a few seconds, its parts against their definitions, and exact resume."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from core_splatting import formats
from core_splatting.viewing import Orbit, covariances, render, render_gaussians

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")
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
        "sh0": g.sh[:, :1], "shN": g.sh[:, 1:],
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


def test_bad_settings() -> None:
    for bad in ({"strategy": "none"}, {"steps": 0}, {"sh_degree": 4}, {"ssim_weight": 2.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Config(**bad)
    short = Config.for_steps(700)
    assert (short.refine_stop, short.refine_every) == (1500, 25)
    assert Config.for_steps(30_000) == Config()
