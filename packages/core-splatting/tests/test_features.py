"""The field of features with M3's memory: it learns, masks, and its parts are the definitions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from core_splatting import rasterization
from core_splatting.scenes.walker import camera

torch = pytest.importorskip("torch")
from core_splatting.claims import m3  # noqa: E402
from core_splatting.reference.memory import gaussian_memory_attention  # noqa: E402
from core_splatting.training.features import Bank, FeatureField, FeatureView, LinearField, _sampled  # noqa: E402


def blobs() -> tuple[list[Any], list[Any], dict[str, Bank]]:
    """Forty large Gaussians of four kinds, four views of the features of their kinds."""
    rng = np.random.default_rng(0)
    tensors = [
        rng.uniform(-0.6, 0.6, (40, 3)), rng.normal(size=(40, 4)), np.full((40, 3), 0.12), np.full(40, 0.95),
    ]  # fmt: skip
    shape = [torch.from_numpy(x.astype(np.float32)) for x in tensors]
    banks = {
        name: Bank(torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(4, d)).astype(np.float32))), c)
        for name, c, d in (("a", 8, 64), ("b", 4, 24))
    }
    K = torch.tensor([[40.0, 0, 20], [0, 40, 16], [0, 0, 1]])
    views = []
    for angle in (0.0, 0.7, 1.4, 2.1):
        viewmat = torch.from_numpy(camera(angle, 0.2).astype(np.float32))
        kinds = torch.eye(4).repeat(10, 1)
        seen = rasterization(*shape, kinds, viewmat[None], K[None], 40, 32)[0][0]
        there = (seen.sum(-1, keepdim=True) > 0.7).float()
        features = {n: b.components[seen.argmax(-1)] * there for n, b in banks.items()}
        views.append(FeatureView(viewmat, K, 40, 32, features))
    return shape, views, banks


def test_it_learns_a_held_out_view() -> None:
    shape, views, banks = blobs()
    field = FeatureField(*shape, banks, points=300)

    def cosine() -> float:
        with torch.no_grad():
            found = field.recall(field.render(views[0]))
        target = views[0].features
        there = (target["a"] != 0).any(-1)
        same = [torch.nn.functional.cosine_similarity(found[n][there], target[n][there], dim=-1) for n in banks]
        return float(torch.cat(same).mean())

    before = cosine()
    losses = list(field.train(views[1:], 150))
    assert np.mean(losses[-20:]) < 0.4 * np.mean(losses[:20])
    assert cosine() > max(0.85, before + 0.2)


def test_parts_are_the_definitions() -> None:
    shape, views, banks = blobs()
    field = FeatureField(*shape, banks)
    with torch.no_grad():
        rendered = field.render(views[0])
        found = field.recall(rendered)
    assert rendered.shape == (32, 40, 12)
    start = 0
    for name, bank in banks.items():
        rows = rendered[..., start : start + bank.channels].reshape(-1, bank.channels).numpy()
        start += bank.channels
        expected = gaussian_memory_attention(rows, field.projections[name].detach().numpy(), bank.components.numpy())
        error = np.linalg.norm(found[name].reshape(len(rows), -1).numpy() - expected)
        assert error < 1e-4 * np.linalg.norm(expected)
    linear = LinearField(*shape, banks)
    with torch.no_grad():
        assert torch.equal(linear.recall(rendered)["b"], rendered[..., 8:] @ linear.projections["b"])


def test_samples_are_bilinear() -> None:
    image, at = torch.rand(7, 9, 5), torch.rand(200, 2)
    expected = torch.nn.functional.grid_sample(
        image.permute(2, 0, 1)[None], 2 * at[None, None] - 1, padding_mode="border", align_corners=False
    )[0, :, 0].T
    np.testing.assert_allclose(_sampled(image, at), expected, rtol=1e-4, atol=1e-5)


def test_where_nothing_is_known_nothing_is_learnt() -> None:
    shape, views, banks = blobs()
    field = FeatureField(*shape, banks, points=100)
    empty = {n: torch.zeros_like(f) for n, f in views[0].features.items()}
    loss = field.loss(FeatureView(views[0].viewmat, views[0].K, 40, 32, empty))
    loss.backward()
    assert float(loss.detach()) == 0
    assert float(field.queries.grad.abs().max()) == 0


def test_hundred_and_sixty_channels_are_fifty_four_pictures() -> None:
    """The queries of M3's six models at once are those of renderings with three channels."""
    shape, views, _ = blobs()
    queries = torch.randn(40, 162, generator=torch.Generator().manual_seed(0))
    view = views[0]
    place = (view.viewmat[None], view.K[None], 40, 32)
    at_once = rasterization(*shape, queries[:, :160].contiguous(), *place)[0]
    parts = [rasterization(*shape, queries[:, i : i + 3].contiguous(), *place)[0] for i in range(0, 162, 3)]
    np.testing.assert_allclose(at_once, torch.cat(parts, -1)[..., :160], atol=1e-5)


def test_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs through at a size too small for its bar."""
    for module in ("matplotlib", "scipy", "PIL"):
        pytest.importorskip(module)
    monkeypatch.setitem(m3.SIZES, "cpu", m3.Size(24, 3, 1500, ("CLIP",), 5, 5, 0.1, 0.98, 0.02, 2, "cpu"))
    found = m3.claim("cpu", 0, tmp_path)
    assert set(found.measured) >= {"CLIP: cosine, memory", "CLIP: cosine, linear decoder"}
    assert found.plot is not None
    assert found.plot.stat().st_size > 10_000
