"""The claims with trained models on a hand of images and steps: they run, keep results, and go on; and the jobs."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for needed in ("accelerate", "diffusers", "matplotlib", "PIL"):
    pytest.importorskip(needed)

from core_diffusion import jobs_models, recipes  # noqa: E402
from core_diffusion.claims import coarse_to_fine, experts, seeds, set_diffusion, token_set  # noqa: E402
from core_diffusion.images import ImageSet  # noqa: E402


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> ImageSet:
    """Sixty images of noise, models of width 16 and runs of two steps."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (60, 1, 28, 28), np.uint8)
    labels = np.arange(60) % 10
    found = ImageSet("noise", pixels, labels, pixels, labels)
    tiny = recipes.Size(16, 2, 2, 7, 8, 2, 16, 4, 16, 4, 16, 2)
    monkeypatch.setitem(recipes.SIZES, "cpu", tiny)
    for module in (experts, coarse_to_fine, token_set):
        monkeypatch.setattr(module, "pictures", lambda: found)
    monkeypatch.setattr(seeds, "SEEDS", 2)
    monkeypatch.setitem(seeds.CLASSIFIER_STEPS, "cpu", 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(experts, "STEPS", {"cpu": 2})
    monkeypatch.setattr(coarse_to_fine, "SECONDS", {"cpu": 0.1})
    monkeypatch.setattr(token_set, "STEPS", 2)
    monkeypatch.setattr("core_diffusion.images.image_set", lambda name: found)
    return found


@pytest.mark.parametrize("claim", [experts.race, experts.diffmoe, coarse_to_fine.claim])
def test_claim_runs_and_goes_on(claim, small, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    result = claim("cpu", 0, tmp_path)
    assert result.plot is not None
    assert result.plot.stat().st_size > 0
    assert all(np.isfinite(v).all() for v in result.measured.values())
    monkeypatch.setattr("core_diffusion.training.Trainer.fit", None)  # what is kept is not trained again
    assert claim("cpu", 0, tmp_path).measured == result.measured


def test_token_set_run(small: ImageSet, tmp_path: Path) -> None:
    found = token_set.run("cpu", 0, tmp_path)
    assert found["violated sums, fixed sum"] == 0
    assert found["violated sums, rounded"] > 0
    assert (tmp_path / "fixed-sum.png").exists()


def test_the_benchmark_writes_as_it_goes(small: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that breaks off in the second seed leaves the first one's figures; the next one goes on and ends it."""
    script, whole = Path(__file__).parents[1] / "benchmarks" / "gpu_claims.py", token_set.run
    monkeypatch.setattr(sys, "argv", [str(script), "2503.16425", "--size", "tiny", "-o", str(tmp_path)])
    monkeypatch.setattr(set_diffusion, "SAMPLES", 5000)
    monkeypatch.setattr(set_diffusion, "REPLICAS", 2)

    def once(size: str, seed: int, folder: Path) -> seeds.Result:
        if seed == 1:
            raise TimeoutError
        return whole(size, seed, folder)

    monkeypatch.setattr(token_set, "run", once)
    main = runpy.run_path(str(script))["main"]
    with pytest.raises(TimeoutError):
        main()
    told = json.loads((tmp_path / "2503.16425.json").read_text())
    assert (told["seeds"], told["of"]) == (1, 2)
    first = {row["what"]: row["value"] for row in told["rows"]}
    again: list[int] = []
    monkeypatch.setattr(token_set, "run", lambda size, seed, folder: again.append(seed) or whole(size, seed, folder))
    assert main() in (0, 1)
    assert again == [1]
    told = json.loads((tmp_path / "2503.16425.json").read_text())
    assert {row["what"] for row in told["rows"]} > first.keys()
    assert [bar["met"] for bar in told["bars"][:2]] == [True] * 2
    assert len(told["bars"]) == 4
    assert {file.name for file in tmp_path.iterdir()} == {
        "2503.16425",
        "2503.16425.json",
        "2503.16425.png",
        "2503.16425-images.png",
        "2503.16425-samples.png",
    }


def test_rounding_keeps_the_sum() -> None:
    counts = torch.from_numpy(np.random.default_rng(0).integers(0, 9, (50, 12)))
    counts[:, 0] += 1
    rounded = token_set.round_to_sum(counts, 17)
    assert (rounded.sum(1) == 17).all()
    exact = counts.double() * 17 / counts.sum(1, keepdim=True)
    assert (rounded - exact).abs().max() < 1
    assert torch.equal(token_set.round_to_sum(rounded, 17), rounded)


def test_imbalance_of_known_loads() -> None:
    assert experts.imbalance(torch.tensor([[1.0, 1.0, 1.0, 1.0]])) == 0
    assert experts.imbalance(torch.tensor([[4.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])) == pytest.approx(1.5)


def test_jobs_train_tokenize_and_sample(small: ImageSet, tmp_path: Path) -> None:
    from PIL import Image

    picture = tmp_path / "p.png"
    Image.fromarray(small.train[0, 0]).save(picture)
    for kind, tokens in (("set-tokenizer", 4), ("grid-tokenizer", 49)):
        jobs_models.train(kind, tmp_path / kind, steps=2)  # type: ignore[arg-type]
        jobs_models.tokenize(tmp_path / kind, [picture, picture], tmp_path / "c.npz", tmp_path / "r.png")
        with np.load(tmp_path / "c.npz") as found:
            assert found["codes"].shape == (2, tokens)
            assert ("counts" in found) == (kind == "set-tokenizer")
            if "counts" in found:
                assert found["counts"].sum(1).tolist() == [4, 4]
    for kind, tokenizer in (
        ("dit", None),
        ("dit-ddpm", None),
        ("tokenset", "set-tokenizer"),
        ("ctf", "grid-tokenizer"),
        ("ar", "grid-tokenizer"),
    ):
        given = None if tokenizer is None else tmp_path / tokenizer
        jobs_models.train(kind, tmp_path / kind, tokenizer=given, steps=2, router="race" if kind == "dit" else "none")  # type: ignore[arg-type]
        jobs_models.sample(tmp_path / kind, tmp_path / f"{kind}.png", given, count=4, steps=2)
        assert Image.open(tmp_path / f"{kind}.png").size == (56, 56)
    with pytest.raises(ValueError, match="needs a tokenizer with tokens='set'"):
        jobs_models.train("tokenset", tmp_path / "x", tokenizer=tmp_path / "grid-tokenizer", steps=1)
    with pytest.raises(ValueError, match="does not hold a model"):
        jobs_models.sample(tmp_path, tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"generates nothing|'tokenizer' is needed"):
        jobs_models.sample(tmp_path / "set-tokenizer", tmp_path / "x.png", tmp_path / "set-tokenizer")
