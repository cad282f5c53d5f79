"""Models of this package with their losses and data, for jobs and claims: "tiny" takes seconds, "cpu" minutes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor, nn

from .codebook import CoarseToFine
from .ctf import CoarseToFineModel, TokenTransformer, coarse_to_fine_loss, token_loss
from .dit import DiT, ddpm_loss, flow_matching_loss, sample
from .images import ImageSet
from .latent_flow import LatentTransformer
from .tokenizer import ImageTokenizer, counts_to_set, set_to_counts, tokenizer_loss
from .tokenset import CountTransformer, fixed_sum_loss, fixed_sum_path, sample_counts
from .training import Prepare, Step, TrainConfig, Trainer
from .vecset import VecSetVAE

__all__ = ["KINDS", "SIZES", "Recipe", "Size", "draw_images", "encode", "load_model", "make"]

Kind = Literal["dit", "dit-ddpm", "set-tokenizer", "grid-tokenizer", "tokenset", "ctf", "ar"]
KINDS = ("dit", "dit-ddpm", "set-tokenizer", "grid-tokenizer", "tokenset", "ctf", "ar")


class Size(NamedTuple):
    """Width and depth of the models, patch of the DiT, and their codes."""

    hidden: int
    heads: int
    depth: int
    patch: int
    batch: int
    steps: int
    codes: int
    tokens: int
    grid_codes: int
    clusters: int
    tokenizer_hidden: int
    tokenizer_steps: int


SIZES = {
    "tiny": Size(16, 2, 2, 7, 8, 20, 16, 4, 16, 4, 16, 20),
    "cpu": Size(64, 4, 4, 4, 32, 400, 64, 16, 128, 16, 48, 400),
    "gpu": Size(256, 4, 8, 4, 128, 2000, 256, 32, 1024, 64, 128, 2000),
}


@dataclasses.dataclass
class Recipe:
    """What `Trainer` takes."""

    model: nn.Module
    loss: Callable[[Step], Any]
    data: dict[str, Tensor]
    config: TrainConfig
    sample: Callable[[nn.Module, torch.Generator], Tensor]
    prepare: Prepare | None = None
    scheduler: DDPMScheduler | None = None
    """Of a model that predicts noise; saved beside it, samplers need it."""

    def trainer(self, out: Path | None = None, sample: bool = False, **changes: Any) -> Trainer:
        """The trainer, in a folder and with changes of its config; `sample`: that draws pictures on the way."""
        config = dataclasses.replace(self.config, **changes)
        return Trainer(self.model, self.loss, self.data, config, out, self.sample if sample else None, self.prepare)


def unit(images: Any) -> Tensor:
    """Images uint8 [N, C, H, W] as float32 in 0..1."""
    return torch.as_tensor(images.copy()).float() / 255


@torch.no_grad()
def encode(tokenizer: ImageTokenizer, images: Tensor) -> Tensor:
    """Codes int64 [N, M] of images [N, C, H, W] in 0..1, on their device."""
    device = tokenizer.quantizer.codebook.device
    return torch.cat([tokenizer.encode(part.to(device)).codes for part in images.split(1000)])


def make(
    kind: Kind,
    images: ImageSet,
    size: str = "cpu",
    seed: int = 0,
    steps: int | None = None,
    tokenizer: ImageTokenizer | None = None,
    moe: dict[str, Any] | None = None,
    router_weight: float = 1e-2,
    **changes: Any,
) -> Recipe:
    """The recipe of a kind of model.

    Args:
        kind: "dit" (flow matching), "dit-ddpm" (noise of 1000 steps), "set-tokenizer", "grid-tokenizer", "tokenset",
            "ctf" or "ar" (flat codes).
        images: the train split is taken.
        size: one of `SIZES`.
        steps: in place of the size's own number.
        tokenizer: for "tokenset" one of a set, for "ctf" and "ar" one of a grid.
        moe: the DiT's mixture of experts; router_weight: of its routers' losses.
        changes: of `TrainConfig`.

    Raises:
        ValueError: another kind or size, or no tokeniser of the right kind.
    """
    if kind not in KINDS or size not in SIZES:
        raise ValueError(f"make: 'kind' must be one of {', '.join(KINDS)} and 'size' one of {', '.join(SIZES)}")
    wanted = {"tokenset": "set", "ctf": "grid", "ar": "grid"}.get(kind)
    if wanted is not None and (tokenizer is None or tokenizer.config.tokens != wanted):
        raise ValueError(f"make: kind '{kind}' needs a tokenizer with tokens='{wanted}'")
    s = SIZES[size]
    torch.manual_seed(seed)
    labels = torch.as_tensor(images.train_labels)
    default = s.tokenizer_steps if kind.endswith("tokenizer") else s.steps
    config = TrainConfig(
        **{
            "steps": default if steps is None else steps,
            "batch_size": s.batch,
            "learning_rate": 5e-4 if size == "gpu" else 1e-3,
            "warmup_steps": 50,
            "ema_decay": 0.999 if size == "gpu" else 0.99,
            "precision": "bf16" if torch.cuda.is_available() and not kind.endswith("tokenizer") else "no",
            "record": size == "gpu",
            "seed": seed,
            **changes,
        }
    )
    pixels = unit(images.train)
    model: nn.Module
    prepare: Prepare | None = None
    scheduler = DDPMScheduler() if kind == "dit-ddpm" else None
    if kind.startswith("dit"):
        model = DiT(
            patch_size=s.patch, hidden_size=s.hidden, depth=s.depth, num_heads=s.heads, moe=moe,
            per_layer_target=moe is not None and moe["router"] == "race",
        )  # fmt: skip
        loss = flow_matching_loss(router_weight) if scheduler is None else ddpm_loss(scheduler, router_weight)
        data = {"images": pixels * 2 - 1, "labels": labels}
    elif kind.endswith("tokenizer"):
        grid = kind == "grid-tokenizer"
        model = ImageTokenizer(
            tokens="grid" if grid else "set", num_tokens=s.tokens, num_codes=s.grid_codes if grid else s.codes,
            code_dim=8 if grid else 12, hidden_size=s.tokenizer_hidden,
        )  # fmt: skip
        return Recipe(model, tokenizer_loss(), {"images": pixels}, config, _reconstruct(pixels[:32]))
    else:
        assert tokenizer is not None
        codes = encode(tokenizer, pixels)
        count, shape = tokenizer.config.num_codes, {"hidden_size": s.hidden, "num_heads": s.heads}
        if kind == "tokenset":
            model = CountTransformer(count, tokenizer.length, depth=s.depth, **shape)
            prepare = fixed_sum_path(tokenizer.length)
            loss, data = fixed_sum_loss(), {"counts": set_to_counts(codes, count), "labels": labels}
        elif kind == "ar":
            model = TokenTransformer(count, tokenizer.length, depth=s.depth + s.depth // 2, **shape)
            loss, data = token_loss(), {"codes": codes, "labels": labels}
        else:
            model = CoarseToFineModel(
                count, s.clusters, tokenizer.length, depth=s.depth, fine_depth=s.depth // 2, **shape
            )  # fmt: skip
            book = tokenizer.quantizer.codebook.detach().float().cpu().numpy()
            model.set_clusters(CoarseToFine.from_codebook(book, s.clusters, n_init=3, random_state=seed))
            loss, data = coarse_to_fine_loss(), {"codes": codes, "labels": labels}

    def preview(ema: nn.Module, generator: torch.Generator) -> Tensor:
        classes = torch.arange(40, device=generator.device) % 10
        return draw_images(ema, classes, generator, tokenizer, scheduler=scheduler)

    return Recipe(model, loss, data, config, preview, prepare, scheduler)


def _reconstruct(images: Tensor) -> Callable[[nn.Module, torch.Generator], Tensor]:
    def pairs(ema: nn.Module, generator: torch.Generator) -> Tensor:
        x = images.to(generator.device)
        return torch.stack([x, ema(x).sample.clamp(0, 1)], 1).flatten(0, 1)

    return pairs


@torch.no_grad()
def draw_images(
    model: nn.Module,
    labels: Tensor,
    generator: torch.Generator,
    tokenizer: ImageTokenizer | None = None,
    steps: int = 25,
    guidance_scale: float = 1.0,
    temperature: float = 1.0,
    scheduler: DDPMScheduler | None = None,
) -> Tensor:
    """Images [N, C, H, W] in 0..1 of the classes [N] from any of the generators, 1000 at a time.

    steps: of the DiT's or the count transformer's sampler; temperature: of the autoregressive stages; scheduler: that a
    DiT was trained with, if not by flow matching (its steps are then DDIM's).
    ValueError: a model of tokens without its tokeniser, or a model that generates nothing.
    """
    if not isinstance(model, DiT) and tokenizer is None:
        raise ValueError("draw_images: argument 'tokenizer' is needed for a model of tokens")
    parts = []
    for classes in labels.split(1000):
        if isinstance(model, DiT):
            ddim = None if scheduler is None else DDIMScheduler.from_config(scheduler.config)
            x = sample(model, classes, ddim, steps, guidance_scale, generator)
            parts.append(((x + 1) / 2).clamp(0, 1))
            continue
        assert tokenizer is not None
        if isinstance(model, CountTransformer):
            counts = sample_counts(model, classes, steps, guidance_scale, generator=generator)
            codes = counts_to_set(counts)
        elif isinstance(model, CoarseToFineModel | TokenTransformer):
            codes = model.generate(classes, temperature, 0, guidance_scale, generator=generator)
        else:
            raise ValueError(f"draw_images: a {type(model).__name__} generates nothing")
        parts.append(tokenizer.decode(codes))
    return torch.cat(parts)


_CLASSES = {
    c.__name__: c
    for c in (DiT, ImageTokenizer, CountTransformer, TokenTransformer, CoarseToFineModel, VecSetVAE, LatentTransformer)
}


def load_model(folder: Path, *wanted: type[nn.Module]) -> Any:
    """A saved model of this package, in eval mode. ValueError: the folder does not hold one, or another than wanted."""
    folder = folder / "model" if (folder / "model").is_dir() else folder
    try:
        found = _CLASSES[json.loads((folder / "config.json").read_text())["_class_name"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} does not hold a model of core-diffusion: {error!r}") from error
    if wanted and not issubclass(found, wanted):
        raise ValueError(f"{folder} holds a {found.__name__}, not a {' or '.join(c.__name__ for c in wanted)}")
    return found.from_pretrained(folder).eval()
