"""The trainer resumes exactly, saves what diffusers loads, and samples; the DiT learns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
diffusers = pytest.importorskip("diffusers")

from core_diffusion.dit import DiT, ddpm_loss, flow_matching_loss, sample  # noqa: E402
from core_diffusion.images import digits, fashion_mnist, read_idx, save_grid  # noqa: E402
from core_diffusion.training import Phase, Step, TrainConfig, Trainer  # noqa: E402

SMALL = {"sample_size": 8, "patch_size": 2, "hidden_size": 32, "depth": 2, "num_heads": 2, "num_classes": 3}


def rows(n: int = 50) -> dict[str, torch.Tensor]:
    """Bright or dark images of three classes."""
    labels = torch.arange(n) % 3
    return {"images": (labels - 1.0)[:, None, None, None].expand(n, 1, 8, 8).contiguous(), "labels": labels}


def config(**changes: object) -> TrainConfig:
    base = {"steps": 12, "batch_size": 8, "learning_rate": 3e-3, "ema_decay": 0.9, "progress": False, "log_every": 3}
    return TrainConfig(**{**base, **changes})  # type: ignore[arg-type]


def model(**changes: object) -> DiT:
    torch.manual_seed(0)
    return DiT(**{**SMALL, **changes})


@pytest.mark.parametrize("moe", [None, {"num_experts": 4, "router": "race", "top_k": 1}])
def test_resumed_run_equals_whole_run(tmp_path: Path, moe: dict[str, object] | None) -> None:
    changes = {"moe": moe, "per_layer_target": moe is not None}
    whole = Trainer(model(**changes), flow_matching_loss(), rows(), config(), tmp_path / "whole")
    history = whole.fit()
    Trainer(model(**changes), flow_matching_loss(), rows(), config(steps=7), tmp_path / "parts").fit()
    torch.manual_seed(99)
    second = Trainer(model(**changes), flow_matching_loss(), rows(), config(), tmp_path / "parts")
    assert second.step == 7
    second.fit()
    for ours, theirs in ((whole.model, second.model), (whole.ema, second.ema)):
        for name, tensor in ours.state_dict().items():
            assert torch.equal(tensor, theirs.state_dict()[name]), name
    steps = [json.loads(line)["step"] for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [3, 6, 7, 9, 12]
    assert [line["step"] for line in history] == [3, 6, 9, 12]


def test_losses_fall_and_samples_follow_their_class(tmp_path: Path) -> None:
    def draw(ema: torch.nn.Module, generator: torch.Generator) -> torch.Tensor:
        return (sample(ema, torch.arange(3), num_inference_steps=10, generator=generator) + 1) / 2

    c = config(steps=300, batch_size=32, log_every=50, sample_every=300)
    trainer = Trainer(model(position="rope"), flow_matching_loss(), rows(), c, tmp_path, draw)
    history = trainer.fit()
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    dark, grey, bright = draw(trainer.ema, torch.Generator().manual_seed(1)).mean((1, 2, 3)).tolist()
    assert dark < 0.25 < 0.35 < grey < 0.65 < 0.75 < bright
    image = pytest.importorskip("PIL.Image").open(tmp_path / "samples" / "0000300.png")
    assert image.size == (16, 16)
    loaded = DiT.from_pretrained(tmp_path / "model").eval()
    assert (tmp_path / "model" / "diffusion_pytorch_model.safetensors").exists()
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        a, b = (m(x, 500.0, torch.arange(3)).sample for m in (trainer.ema, loaded))
    assert torch.equal(a, b)
    assert loaded.config.position == "rope"


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_ddpm_trains_and_samples_with_its_scheduler(kind: str) -> None:
    scheduler = diffusers.DDPMScheduler(prediction_type=kind)
    trainer = Trainer(model(), ddpm_loss(scheduler), rows(), config(steps=3, precision="bf16"))
    assert np.isfinite(trainer.fit()[-1]["loss"])
    ddim = diffusers.DDIMScheduler.from_config(scheduler.config)
    for chosen in (scheduler, ddim):
        drawn = [
            sample(trainer.ema, torch.arange(3), chosen, 4, 2.0, torch.Generator().manual_seed(3)) for _ in range(2)
        ]
        assert torch.equal(*drawn)
        assert drawn[0].shape == (3, 1, 8, 8)


def test_ddpm_target_is_the_noise_that_was_added() -> None:
    """A model that knows the images has no loss: the pairing of noise, state and target is right."""
    scheduler = diffusers.DDPMScheduler()
    seen = []

    class Knows(torch.nn.Module):
        def forward(self, x, t, labels, target=None):  # type: ignore[no-untyped-def]
            alpha = scheduler.alphas_cumprod[t.long()].view(-1, 1, 1, 1)
            noise = (x - alpha.sqrt() * seen[-1]) / (1 - alpha).sqrt()
            return type("Out", (), {"sample": noise, "moe": ()})

    batch = {"images": torch.randn(64, 1, 8, 8)}
    seen.append(batch["images"])
    step = Step(Knows(), Knows(), Knows(), batch, torch.Generator().manual_seed(0), 0)
    assert ddpm_loss(scheduler)(step)["loss"] < 1e-6


def test_phases_train_their_own_parameters() -> None:
    net = torch.nn.ModuleDict({"a": torch.nn.Linear(1, 1), "b": torch.nn.Linear(1, 1)})
    before = {n: p.clone() for n, p in net.named_parameters()}

    def loss(step: Step) -> torch.Tensor:
        return (step.plain["a"](step.batch["x"]) * step.plain["b"](step.batch["x"])).square().mean()

    data = {"x": torch.randn(16, 1)}
    trainer = Trainer(net, [Phase("g", loss, "a."), Phase("d", loss, "b.", 0.0001)], data, config(steps=1))
    history = trainer.fit()
    assert set(history[0]) == {"step", "g_loss", "d_loss"}
    moved = {n: float((p.detach() - before[n].detach()).abs().max()) for n, p in net.named_parameters()}
    assert moved["a.weight"] == pytest.approx(3e-3, rel=0.01)  # Adam's first step is its rate
    assert moved["b.weight"] == pytest.approx(1e-4, rel=0.01)
    with pytest.raises(ValueError, match=r"begins with 'c\.'"):
        Trainer(net, [Phase("g", loss, "c.")], data, config())


def test_learning_rate_warms_up_and_falls() -> None:
    data, rates = {"x": torch.randn(16, 1)}, []
    net = torch.nn.Linear(1, 1)

    def loss(step: Step) -> torch.Tensor:
        rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        return step.model(step.batch["x"]).square().mean()

    trainer = Trainer(net, loss, data, config(steps=8, warmup_steps=4, learning_rate=1.0, schedule="cosine"))
    trainer.fit()
    cosine = (1 + np.cos(np.pi * np.arange(4) / 4)) / 2
    np.testing.assert_allclose(np.array(rates, np.float64), [0.25, 0.5, 0.75, 1, *cosine], rtol=1e-6)
    with pytest.raises(ValueError, match="'schedule' must be 'constant' or 'cosine'"):
        config(schedule="linear")


def test_a_run_ends_with_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, rates = [0.0], []
    monkeypatch.setattr("core_diffusion.training.time.perf_counter", lambda: now[0])

    def loss(step: Step) -> torch.Tensor:
        now[0] += 1
        rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        return step.model(step.batch["x"]).square().mean()

    data, c = {"x": torch.randn(16, 1)}, config(steps=1000, log_every=1, learning_rate=1.0, schedule="cosine")
    trainer = Trainer(torch.nn.Linear(1, 1), loss, data, c, tmp_path)
    trainer.fit(4)
    np.testing.assert_allclose(rates, (1 + np.cos(np.pi * np.arange(4) / 4)) / 2)
    trainer = Trainer(torch.nn.Linear(1, 1), loss, data, c, tmp_path)
    assert trainer.step == 4
    trainer.fit(0)
    assert trainer.step == 5  # the first line of the log ends it


def test_bad_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tensors of one length"):
        Trainer(model(), flow_matching_loss(), {"a": torch.zeros(2), "b": torch.zeros(3)}, config())
    with pytest.raises(ValueError, match="'batch_size' must be > 0"):
        config(batch_size=0)
    with pytest.raises(FloatingPointError, match="not finite at step 3"):
        Trainer(
            model(), flow_matching_loss(), {**rows(), "images": torch.full((50, 1, 8, 8), torch.nan)}, config()
        ).fit()
    Trainer(model(), flow_matching_loss(), rows(), config(steps=1), tmp_path).fit()
    with pytest.raises(ValueError, match="is of another model"):
        Trainer(model(depth=1), flow_matching_loss(), rows(), config(), tmp_path)
    with pytest.raises(ValueError, match="with seed 0, not 1"):
        Trainer(model(), flow_matching_loss(), rows(), config(seed=1), tmp_path)
    with pytest.raises(ValueError, match=r"'hidden_states' must have shape \(B, 1, 8, 8\)"):
        model()(torch.zeros(2, 1, 9, 8), 0.0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("DiT", {**SMALL, "position": "rope", "moe": {"num_experts": 4, "router": "race", "top_k": 1}}),
        ("DiT", {**SMALL, "moe": {"num_experts": 4, "router": "diffmoe"}}),
        ("ImageTokenizer", {"tokens": "set", "num_tokens": 4, "num_codes": 8, "hidden_size": 16}),
        ("ImageTokenizer", {"tokens": "grid", "num_codes": 8, "code_dim": 8, "hidden_size": 16}),
        ("CountTransformer", {"num_codes": 8, "num_tokens": 4, "hidden_size": 16, "depth": 1}),
        ("TokenTransformer", {"num_tokens": 8, "length": 4, "hidden_size": 16, "depth": 1}),
        ("CoarseToFineModel", {"num_codes": 8, "num_clusters": 2, "length": 4, "hidden_size": 16, "depth": 1}),
        ("VecSetVAE", {"num_latents": 8, "latent_channels": 4, "width": 16, "heads": 2, "layers": 1}),
        ("LatentTransformer", {"latent_channels": 4, "hidden_size": 16, "depth": 1, "condition_dim": 3}),
    ],
)
def test_every_model_comes_back_from_its_files(tmp_path: Path, name: str, options: dict[str, object]) -> None:
    from core_diffusion import recipes

    kind = recipes._CLASSES[name]
    net = kind(**options)
    for tensor in net.state_dict().values():  # buffers too: thresholds, clusters
        tensor.copy_(torch.rand(tensor.shape) if tensor.is_floating_point() else torch.randint_like(tensor, 2))
    net.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    loaded = recipes.load_model(tmp_path, kind)
    assert {k: v for k, v in loaded.config.items() if k[0] != "_"} == {
        k: v for k, v in net.config.items() if k[0] != "_"
    }
    assert all(loaded.config[k] == v for k, v in options.items())
    found = loaded.state_dict()
    assert found.keys() == net.state_dict().keys()
    assert all(torch.equal(tensor, found[k]) for k, tensor in net.state_dict().items())


def test_dit_starts_as_zero_and_patches_invert() -> None:
    net = model(in_channels=3)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(net.images(net.patches(x)), x)
    assert not net(x, 3.0).sample.any()  # adaLN-Zero and the last layer


def test_dit_compiles_whole() -> None:
    net = model(moe={"num_experts": 4, "router": "race", "top_k": 1}).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    x, labels = torch.randn(2, 1, 8, 8), torch.arange(2)
    with torch.no_grad():
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x, 7.0, labels).sample, net(x, 7.0, labels).sample)


def test_image_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    found = digits()
    assert found.train.shape == (1297, 1, 28, 28)
    assert len(found.test_labels) == 500
    monkeypatch.setenv("CORE_FASHION_MNIST", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist"):
        fashion_mnist()
    good = b"\0\0\x08\x01\0\0\0\x02ab"
    for name, content in (("good", good), ("short", good[:-1]), ("long", good + b"x"), ("other", b"\x89PNG....")):
        (tmp_path / name).write_bytes(content)
    assert read_idx(tmp_path / "good").tolist() == [97, 98]
    for name in ("short", "long", "other"):
        with pytest.raises(ValueError, match=name):
            read_idx(tmp_path / name)
    with pytest.raises(ValueError, match="'images' must have shape"):
        save_grid(np.zeros((2, 5, 4, 4)), tmp_path / "x.png")


def test_scheduler_goes_through_diffusers(tmp_path: Path) -> None:
    from core_diffusion.schedulers import FixedSumDiscreteScheduler

    FixedSumDiscreteScheduler(5, "probabilities", top_p=0.7).save_pretrained(tmp_path)
    loaded = FixedSumDiscreteScheduler.from_pretrained(tmp_path)
    assert loaded.config.top_p == 0.7
    loaded.set_timesteps(4)
    state = torch.tensor([[5, 0, 0]], dtype=torch.int32)
    laws = torch.rand(1, 3, 6)
    for t in loaded.timesteps:
        state, end = loaded.step(laws, t, state, torch.Generator().manual_seed(0), return_dict=False)
        assert int(state.sum()) == int(end.sum()) == 5
    assert torch.equal(state, end)


def _train_in_process(rank: int, file: str, out: str) -> None:
    import os

    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # what the test's own process left
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)

    def loss(step: Step) -> torch.Tensor:
        return (step.model(step.batch["x"]) - step.batch["x"].sum(1, keepdim=True)).square().mean()

    torch.manual_seed(0)
    data = {"x": torch.randn(40, 3, generator=torch.Generator().manual_seed(5))}
    trainer = Trainer(torch.nn.Linear(3, 1), loss, data, config(steps=9, max_grad_norm=None), Path(out))
    assert trainer.accelerator.num_processes == 2
    trainer.fit()
    torch.save(trainer.model.state_dict(), f"{out}/{rank}.pt")
    torch.distributed.destroy_process_group()


def _race_in_process(rank: int, file: str, out: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    net = model(moe={"num_experts": 4, "router": "race", "top_k": 1}, class_dropout_prob=0)
    net.set_group(torch.distributed.group.WORLD)
    found = net(rows(8)["images"][4 * rank : 4 * rank + 4], 500.0, torch.zeros(4, dtype=torch.long))
    torch.save({"mask": found.moe[0].mask, "threshold": net.blocks[1].mlp.threshold}, f"{out}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_race_in_a_dit_goes_over_all_processes(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(
        _race_in_process, (str(tmp_path / "group"), str(tmp_path)), nprocs=2, start_method="fork"
    )
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    net = model(moe={"num_experts": 4, "router": "race", "top_k": 1}, class_dropout_prob=0)
    whole = net(rows(8)["images"], 500.0, torch.zeros(8, dtype=torch.long))
    assert torch.equal(torch.cat([first["mask"], second["mask"]]), whole.moe[0].mask)
    for part in (first, second):
        assert torch.equal(part["threshold"], net.blocks[1].mlp.threshold)


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    torch.multiprocessing.start_processes(
        _train_in_process, (str(tmp_path / "group"), str(tmp_path / "two")), nprocs=2, start_method="fork"
    )
    first, second = (torch.load(tmp_path / "two" / f"{rank}.pt", weights_only=True) for rank in (0, 1))

    def loss(step: Step) -> torch.Tensor:
        return (step.model(step.batch["x"]) - step.batch["x"].sum(1, keepdim=True)).square().mean()

    torch.manual_seed(0)
    data = {"x": torch.randn(40, 3, generator=torch.Generator().manual_seed(5))}
    alone = Trainer(torch.nn.Linear(3, 1), loss, data, config(steps=9, max_grad_norm=None))
    alone.fit()
    for name, value in alone.model.state_dict().items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, atol=1e-6, rtol=1e-5)
