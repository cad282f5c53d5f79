"""Jobs of the trained models: `core run diffusion.train`, `diffusion.sample` and `diffusion.tokenize`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    import torch

    from .latent_flow import LatentTransformer

Kind = Literal[
    "dit", "dit-ddpm", "set-tokenizer", "grid-tokenizer", "tokenset", "ctf", "ar",
    "vecset", "latent-flow", "distilled-flow",
]  # fmt: skip


def _need(kind: str, **paths: Path | None) -> list[Path]:
    """The paths that a kind of model cannot do without. ValueError: one is missing."""
    for name, path in paths.items():
        if path is None:
            raise ValueError(f"{kind} needs option --{name}")
    return [path for path in paths.values() if path is not None]


def train(
    model: Annotated[Kind, typer.Argument(help="What to train")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run; an unfinished run in it goes on")],
    data: Annotated[
        Literal["auto", "fashion-mnist", "digits"],
        typer.Option(help="Images; auto: Fashion-MNIST if installed, else digits"),
    ] = "auto",
    size: Annotated[Literal["cpu", "gpu"], typer.Option(help="Size of model and run")] = "cpu",
    tokenizer: Annotated[Path | None, typer.Option(help="Trained tokeniser, for tokenset, ctf and ar")] = None,
    meshes: Annotated[Path | None, typer.Option(help="Folder of closed meshes, for vecset and the flows")] = None,
    autoencoder: Annotated[Path | None, typer.Option(help="Trained vecset, for the flows")] = None,
    teacher: Annotated[Path | None, typer.Option(help="Trained latent-flow, for distilled-flow")] = None,
    guidance_scale: Annotated[float, typer.Option(help="Of the teacher of distilled-flow", min=0)] = 2.0,
    steps: Annotated[int | None, typer.Option(help="Of each stage, in place of the size's own", min=1)] = None,
    router: Annotated[
        Literal["none", "token", "expert", "race", "diffmoe"],
        typer.Option(help="Mixture of experts in every second block of dit"),
    ] = "none",
    experts: Annotated[int, typer.Option(help="Experts of a layer", min=1)] = 8,
    seed: Annotated[int, typer.Option(help="Seed of weights, order and noise")] = 0,
) -> None:
    """Train a generator or tokeniser of images (dit ... ar), or of shapes (vecset, latent-flow, distilled-flow).

    2503.16425, 2503.16057, 2503.14487, 2503.16194, 2503.16302. Writes checkpoint, metrics.jsonl, of images
    samples/*.png and, at the end, model/ in the layout of diffusers.
    """
    from .recipes import load_model, make

    if model == "vecset":
        from .shape_recipes import train_vecset

        train_vecset(*_need(model, meshes=meshes), output, size, steps, seed)
        return
    if model in ("latent-flow", "distilled-flow"):
        from .latent_flow import LatentTransformer
        from .shape_recipes import distil_flow, train_flow
        from .vecset import VecSetVAE

        folder, trained = _need(model, meshes=meshes, autoencoder=autoencoder)
        vae = load_model(trained, VecSetVAE)
        if model == "latent-flow":
            train_flow(folder, vae, output, size, steps, seed)
        else:
            flow = load_model(*_need(model, teacher=teacher), LatentTransformer)
            distil_flow(folder, vae, flow, output, size, steps, seed, guidance_scale)
        return
    from .images import image_set

    moe = None if router == "none" else {"num_experts": experts, "router": router, "top_k": min(2, experts)}
    weight = 0.0 if router == "expert" else 1.0
    given = None if tokenizer is None else load_model(tokenizer)
    images = image_set(data)
    recipe = make(model, images, size, seed, steps, given, moe, weight, save_every=500, sample_every=500)
    if recipe.scheduler is not None:
        recipe.scheduler.save_pretrained(output / "scheduler")
    recipe.trainer(output, sample=True).fit()


def sample(
    model: Annotated[Path, typer.Argument(help="Folder of a trained generator")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="PNG to write, a grid; of one shape also .glb, .ply, .obj or .stl")
    ],
    tokenizer: Annotated[Path | None, typer.Option(help="Its tokeniser, for models of tokens")] = None,
    autoencoder: Annotated[Path | None, typer.Option(help="Its vecset, for flows")] = None,
    count: Annotated[int, typer.Option(help="How many, images of all classes in turn", min=1, max=10_000)] = 40,
    steps: Annotated[int, typer.Option(help="Steps of the sampler", min=1)] = 25,
    guidance_scale: Annotated[float, typer.Option(help="Classifier-free guidance, 1 for none", min=0)] = 1.0,
    temperature: Annotated[float, typer.Option(help="Of autoregressive models", min=0)] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the draws")] = 0,
) -> None:
    """Draw images, or shapes, from a trained model."""
    import torch
    from diffusers import DDPMScheduler

    from .images import save_grid
    from .latent_flow import LatentTransformer
    from .recipes import draw_images, load_model
    from .tokenizer import ImageTokenizer

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = load_model(model).to(device)
    generator = torch.Generator(device).manual_seed(seed)
    if isinstance(net, LatentTransformer):
        _sample_shapes(net, *_need("a flow", autoencoder=autoencoder), output, count, steps, guidance_scale, generator)
        return
    given = None if tokenizer is None else load_model(tokenizer, ImageTokenizer).to(device)
    scheduler = DDPMScheduler.from_pretrained(model / "scheduler") if (model / "scheduler").is_dir() else None
    labels = torch.arange(count, device=device) % max(1, getattr(net.config, "num_classes", 10))
    drawn = draw_images(net, labels, generator, given, steps, guidance_scale, temperature, scheduler)
    save_grid(drawn, output)


def _sample_shapes(
    flow: LatentTransformer,
    autoencoder: Path,
    output: Path,
    count: int,
    steps: int,
    guidance_scale: float,
    generator: torch.Generator,
) -> None:
    from .meshes import draw_meshes, save_mesh
    from .recipes import load_model
    from .shape_recipes import decode_latents, draw_latents
    from .vecset import VecSetVAE

    if output.suffix != ".png" and count != 1:
        raise ValueError(f"diffusion.sample: {output.suffix} holds one shape, got --count {count}")
    vae = load_model(autoencoder, VecSetVAE).to(generator.device)
    latents = draw_latents(flow, vae, count, steps, guidance_scale, generator)
    found = decode_latents(vae, latents, 64 if output.suffix == ".png" else 256)
    if output.suffix == ".png":
        draw_meshes(output, [("", *mesh) for mesh in found], columns=min(count, 8))
    else:
        save_mesh(output, *found[0])


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

    net = load_model(tokenizer, ImageTokenizer)
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
