"""Tokenisers, the count transformer and coarse-to-fine prediction: what must hold exactly, and that they learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("diffusers")

from core_diffusion import CoarseToFine, FixedSumScheduler  # noqa: E402
from core_diffusion.ctf import (  # noqa: E402
    CoarseToFineModel,
    TokenTransformer,
    coarse_to_fine_loss,
    draw,
    token_loss,
)
from core_diffusion.evaluation import frechet_distance  # noqa: E402
from core_diffusion.tokenizer import (  # noqa: E402
    ImageTokenizer,
    VectorQuantizer,
    counts_to_set,
    set_to_counts,
    tokenizer_loss,
)
from core_diffusion.tokenset import CountTransformer, fixed_sum_loss, fixed_sum_path, guided, sample_counts  # noqa: E402
from core_diffusion.training import TrainConfig, Trainer  # noqa: E402


def config(**changes: object) -> TrainConfig:
    base = {"steps": 150, "batch_size": 32, "learning_rate": 3e-3, "ema_decay": 0.9, "progress": False}
    return TrainConfig(**{**base, **changes})  # type: ignore[arg-type]


# ---- sets and counts


def test_sets_and_counts_are_one_to_one() -> None:
    rng = np.random.default_rng()
    tokens = torch.from_numpy(rng.integers(0, 40, (20, 13)))
    counts = set_to_counts(tokens, 40)
    for row, have in zip(counts.tolist(), tokens.tolist(), strict=True):
        assert row == np.bincount(have, minlength=40).tolist()
    assert torch.equal(counts_to_set(counts), tokens.sort(1).values)
    shuffled = tokens[:, torch.randperm(13)]
    assert torch.equal(set_to_counts(shuffled, 40), counts)
    assert counts_to_set(torch.zeros(3, 5, dtype=torch.int32)).shape == (3, 0)
    with pytest.raises(ValueError, match=r"codes in 0\.\.38, got"):
        set_to_counts(torch.tensor([[39]]), 39)
    with pytest.raises(ValueError, match="rows of one sum"):
        counts_to_set(torch.tensor([[1, 0], [1, 1]]))
    with pytest.raises(TypeError, match="must be integers"):
        set_to_counts(torch.zeros(1, 2), 3)


# ---- tokenisers


def tokenizer(**changes: object) -> ImageTokenizer:
    torch.manual_seed(0)
    small = {"num_tokens": 8, "num_codes": 32, "code_dim": 4, "hidden_size": 32, "depth": 1, "num_heads": 2}
    return ImageTokenizer(sample_size=8, patch_size=2, **{**small, **changes})


def test_order_of_a_set_changes_no_bit_of_the_image() -> None:
    net = tokenizer().eval()
    codes = torch.randint(32, (5, 8))
    with torch.no_grad():
        image = net.decode(codes)
        for _ in range(5):
            assert torch.equal(net.decode(codes[:, torch.randperm(8)]), image)
        assert torch.equal(net.decode(counts_to_set(set_to_counts(codes, 32))), image)
        shuffled = net.quantizer.codebook[codes[:, torch.randperm(8)]]  # without sorting: equal but for rounding
        torch.testing.assert_close(net.decode_vectors(shuffled).clamp(0, 1), image, atol=1e-5, rtol=0)
        grid = tokenizer(tokens="grid").eval()
        assert grid.length == 16
        codes = torch.arange(16)[None]
        assert not torch.allclose(grid.decode(codes), grid.decode(codes.flip(1)))


@pytest.mark.parametrize("kind", ["set", "grid"])
def test_tokenizer_learns_and_loads(kind: str, tmp_path: Path) -> None:
    net = tokenizer(tokens=kind)
    images = torch.rand(64, 1, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)
    trainer = Trainer(net, tokenizer_loss(), {"images": images}, config(steps=250, log_every=50), tmp_path)
    history = trainer.fit()
    assert history[-1]["error"] < 0.6 * float(images.var())
    loaded = ImageTokenizer.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        ours, theirs = trainer.ema.encode(images), loaded.encode(images)
        assert torch.equal(ours.codes, theirs.codes)
        assert torch.equal(loaded.decode(ours.codes), trainer.ema.decode(ours.codes))
    with pytest.raises(ValueError, match="'images' must have shape"):
        net.encode(images[:, :, :4])


def test_quantizer_gives_the_nearest_code_and_passes_gradients() -> None:
    q = VectorQuantizer(50, 6).eval()
    x = torch.randn(30, 6, requires_grad=True)
    found = q(x)
    unit = x.detach() / x.detach().norm(dim=1, keepdim=True)
    assert torch.equal(found.codes, torch.cdist(unit, q.codebook).argmin(1))
    torch.testing.assert_close(found.vectors, q.codebook[found.codes])
    (gradient,) = torch.autograd.grad((found.vectors * 3).sum(), x, retain_graph=True)
    (expected,) = torch.autograd.grad((torch.nn.functional.normalize(x, dim=1) * 3).sum(), x)
    torch.testing.assert_close(gradient, expected)


def test_dead_codes_start_anew() -> None:
    torch.manual_seed(0)
    q = VectorQuantizer(16, 4)
    with torch.no_grad():
        q.codebook[8:] = torch.nn.functional.normalize(torch.full((8, 4), -1.0), dim=1)  # far from all data
        for _ in range(1500):
            q(torch.rand(64, 4))
    assert (q.codebook.norm(dim=1) - 1).abs().max() < 1e-5
    assert len(q.eval()(torch.rand(4000, 4)).codes.unique()) > 12


# ---- the count transformer


def counts_net(**changes: object) -> CountTransformer:
    torch.manual_seed(0)
    small = {"num_codes": 12, "num_tokens": 6, "hidden_size": 32, "depth": 2, "num_heads": 2, "num_classes": 2}
    return CountTransformer(**{**small, **changes})


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_every_sampled_state_has_the_sum(scale: float) -> None:
    """With an untrained network, whose laws are made wild."""
    net = counts_net().eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.5)
    seen = []

    class Watched(FixedSumScheduler):
        def step(self, *args, **kwargs):  # type: ignore[no-untyped-def]
            out = super().step(*args, **kwargs)
            seen.extend([out.prev_sample, out.pred_original_sample])
            return out

    drawn = sample_counts(
        net, torch.arange(400) % 2, 25, scale, 0.8, torch.Generator().manual_seed(1), Watched(6, "probabilities")
    )
    assert len(seen) == 50
    for state in (*seen, drawn):
        assert bool((state.sum(1) == 6).all())
        assert 0 <= int(state.min()) <= int(state.max()) <= 6


def test_generator_learns_two_classes_of_sets() -> None:
    """Class 0 uses the lower codes and class 1 the upper ones."""
    rng = np.random.default_rng(0)
    labels = torch.arange(256) % 2
    tokens = torch.from_numpy(rng.integers(0, 6, (256, 6))) + 6 * labels[:, None]
    data = {"counts": set_to_counts(tokens, 12), "labels": labels}
    trainer = Trainer(counts_net(), fixed_sum_loss(), data, config(steps=300), prepare=fixed_sum_path(6))
    history = trainer.fit()
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    drawn = sample_counts(trainer.ema, labels[:64], 10, 1.5, 0.9, torch.Generator().manual_seed(0))
    right = torch.where(labels[:64, None] == 0, drawn[:, :6], drawn[:, 6:]).sum() / drawn.sum()
    assert right > 0.75


def test_guidance_is_on_probabilities() -> None:
    a, b = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    torch.testing.assert_close(guided(a, b, 1.0), a.softmax(-1))
    p, q = a.softmax(-1).double(), b.softmax(-1).double()
    want = (q + 2.5 * (p - q)).clamp(min=0)
    torch.testing.assert_close(guided(a, b, 2.5).double(), want / want.sum(-1, keepdim=True), atol=1e-6, rtol=0)


# ---- coarse to fine


def test_cached_generation_equals_recomputation() -> None:
    torch.manual_seed(0)
    net = TokenTransformer(20, 9, 32, 2, 2, 3).eval()
    torch.nn.init.normal_(net.body.head.weight, std=1.0)
    labels = torch.arange(6) % 3
    drawn = net.generate(labels, temperature=0)
    with torch.no_grad():
        logits = net(drawn, labels)  # teacher forcing on the result: each token is the likeliest given those before
    assert torch.equal(logits.argmax(-1), drawn)
    guided_tokens = net.generate(labels, temperature=0, guidance_scale=2.0)
    with torch.no_grad():
        free = net(guided_tokens, torch.full_like(labels, 3))
        logits = free + 2 * (net(guided_tokens, labels) - free)
    assert torch.equal(logits.argmax(-1), guided_tokens)


def test_future_tokens_have_no_effect() -> None:
    net = TokenTransformer(20, 9, 32, 2, 2, 3).eval()
    tokens, labels = torch.randint(20, (2, 9)), torch.zeros(2, dtype=torch.long)
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 7) % 20
    with torch.no_grad():
        a, b = net(tokens, labels), net(changed, labels)
    torch.testing.assert_close(a[:, :6], b[:, :6], atol=1e-5, rtol=0)
    assert not torch.allclose(a[:, 6:], b[:, 6:])


def levels(codes: int = 20, clusters: int = 5) -> CoarseToFine:
    labels = np.random.default_rng(0).permutation(np.arange(codes) % clusters)
    return CoarseToFine.from_labels(labels)


def test_every_code_lies_in_its_cluster_and_models_learn(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = CoarseToFineModel(20, 5, 9, 32, 2, 2, 2, 2)
    net.set_clusters(levels())
    labels = torch.arange(128) % 2
    codes = (torch.arange(9) + 10 * labels[:, None]) % 20  # class 0 counts up from 0, class 1 from 10
    trainer = Trainer(net, coarse_to_fine_loss(), {"codes": codes, "labels": labels}, config(steps=120), tmp_path)
    trainer.fit()
    seen = []
    first = trainer.ema.first.generate
    trainer.ema.first.generate = lambda *args: seen.append(first(*args)) or seen[-1]  # type: ignore[assignment]
    drawn = trainer.ema.generate(labels[:40], 1.3, 0, 1.0, 1.2, 0, torch.Generator().manual_seed(0))
    coarse_of = torch.from_numpy(levels().coarse_of)
    assert torch.equal(coarse_of[drawn], seen[0])
    assert (trainer.ema.generate(labels[:40], 0, 0, 1.0, 0) == codes[:40]).float().mean() > 0.95
    loaded = CoarseToFineModel.from_pretrained(tmp_path / "model").eval()
    assert torch.equal(loaded.second.coarse_of, coarse_of)
    with pytest.raises(ValueError, match="20 codes in 5 clusters, got 20 in 4"):
        net.set_clusters(levels(20, 4))


def test_flat_model_learns() -> None:
    labels = torch.arange(128) % 2
    codes = (torch.arange(9) + 10 * labels[:, None]) % 20
    torch.manual_seed(0)
    trainer = Trainer(TokenTransformer(20, 9, 32, 2, 2, 2), token_loss(), {"codes": codes, "labels": labels}, config())
    trainer.fit()
    assert (trainer.ema.generate(labels[:40], 0) == codes[:40]).float().mean() > 0.95


def test_draws_follow_the_law() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0]).expand(100_000, 4)
    g = torch.Generator().manual_seed(0)
    for temperature, top_k in ((1.0, 0), (2.0, 0), (1.0, 2)):
        law = logits[0] / temperature
        if top_k:
            law = law.masked_fill(law < law.topk(top_k).values[-1], -torch.inf)
        seen = draw(logits, temperature, top_k, g).bincount(minlength=4) / 100_000
        torch.testing.assert_close(seen, law.softmax(0), atol=0.006, rtol=0)


# ---- distance


def test_frechet_distance() -> None:
    scipy = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((500, 5)), rng.standard_normal((400, 5)) @ rng.standard_normal((5, 5)) + 1
    root = scipy.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    want = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(want, rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="'b' must be finite"):
        frechet_distance(a, np.full((4, 5), np.nan))
