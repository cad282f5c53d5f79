"""Jobs of the trained models: `core run diffusion.train`, `diffusion.sample` and `diffusion.tokenize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Kind = Literal["dit", "set-tokenizer", "grid-tokenizer", "tokenset", "ctf", "ar"]


def train(
    model: Annotated[Kind, typer.Argument(help="What to train")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run; an unfinished run in it goes on")],
    data: Annotated[
        Literal["auto", "fashion-mnist", "digits"],
        typer.Option(help="Images; auto: Fashion-MNIST if installed, else digits"),
    ] = "auto",
    size: Annotated[Literal["cpu", "gpu"], typer.Option(help="Size of model and run")] = "cpu",
    tokenizer: Annotated[Path | None, typer.Option(help="Trained tokeniser, for tokenset, ctf and ar")] = None,
    steps: Annotated[int | None, typer.Option(help="In place of the size's own number", min=1)] = None,
    router: Annotated[
        Literal["none", "token", "expert", "race", "diffmoe"],
        typer.Option(help="Mixture of experts in every second block of dit"),
    ] = "none",
    experts: Annotated[int, typer.Option(help="Experts of a layer", min=1)] = 8,
    seed: Annotated[int, typer.Option(help="Seed of weights, order and noise")] = 0,
) -> None:
    """Train a small generator or tokeniser of images (2503.16425, 2503.16057, 2503.14487, 2503.16194).

    Writes checkpoint, metrics.jsonl, samples/*.png and, at the end, model/ in the layout of diffusers.
    """
    from .images import image_set
    from .recipes import load_model, make

    moe = None if router == "none" else {"num_experts": experts, "router": router, "top_k": min(2, experts)}
    weight = 0.0 if router == "expert" else 1.0
    given = None if tokenizer is None else load_model(tokenizer)
    images = image_set(data)
    recipe = make(model, images, size, seed, steps, given, moe, weight, save_every=500, sample_every=500)
    recipe.trainer(output, sample=True).fit()


def sample(
    model: Annotated[Path, typer.Argument(help="Folder of a trained generator")],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG to write, a grid")],
    tokenizer: Annotated[Path | None, typer.Option(help="Its tokeniser, for models of tokens")] = None,
    count: Annotated[int, typer.Option(help="Images, of all classes in turn", min=1, max=10_000)] = 40,
    steps: Annotated[int, typer.Option(help="Steps of the sampler", min=1)] = 25,
    guidance_scale: Annotated[float, typer.Option(help="Classifier-free guidance, 1 for none", min=0)] = 1.0,
    temperature: Annotated[float, typer.Option(help="Of autoregressive models", min=0)] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the draws")] = 0,
) -> None:
    """Draw images from a trained model."""
    import torch

    from .images import save_grid
    from .recipes import draw_images, load_model

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = load_model(model).to(device)
    given = None if tokenizer is None else load_model(tokenizer).to(device)
    labels = torch.arange(count, device=device) % max(1, getattr(net.config, "num_classes", 10))
    generator = torch.Generator(device).manual_seed(seed)
    save_grid(draw_images(net, labels, generator, given, steps, guidance_scale, temperature), output)


def tokenize(
    tokenizer: Annotated[Path, typer.Argument(help="Folder of a trained tokeniser")],
    images: Annotated[list[Path], typer.Argument(help="Pictures: any files that Pillow reads")],
    output: Annotated[Path, typer.Option("--output", "-o", help=".npz to write: codes and, of sets, counts")],
    reconstruction: Annotated[
        Path | None, typer.Option(help="PNG to write: pictures and what their codes decode to")
    ] = None,
) -> None:
    """Turn pictures into codes, and back."""
    import numpy as np
    import torch
    from core_registry.files import replace
    from PIL import Image

    from .images import save_grid
    from .recipes import encode, load_model
    from .tokenizer import ImageTokenizer, set_to_counts

    net = load_model(tokenizer)
    if not isinstance(net, ImageTokenizer):
        raise ValueError(f"{tokenizer} holds a {type(net).__name__}, not a tokeniser")
    side, mode = net.config.sample_size, "L" if net.config.in_channels == 1 else "RGB"
    pixels = np.stack([np.asarray(Image.open(p).convert(mode).resize((side, side))) for p in images])
    x = torch.from_numpy(pixels.reshape(len(images), side, side, -1)).permute(0, 3, 1, 2).float() / 255
    codes = encode(net, x)
    arrays = {"codes": codes.numpy().astype(np.int32)}
    if net.config.tokens == "set":
        arrays["counts"] = set_to_counts(codes, net.config.num_codes).numpy()
    with replace(output) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    if reconstruction is not None:
        with torch.no_grad():
            save_grid(torch.stack([x, net.decode(codes)], 1).flatten(0, 1), reconstruction)
