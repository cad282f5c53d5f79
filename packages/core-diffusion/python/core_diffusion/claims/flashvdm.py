"""FlashVDM (arXiv 2503.16302): hierarchical decoding changes nothing but the time; adaptive selection costs little."""

from __future__ import annotations

import dataclasses
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from core_registry.claims import Claim
from torch import Tensor

from ..meshes import draw_meshes, save_mesh, shape_set, winding_number
from ..training import TrainConfig, Trainer
from ..vecset import VecSetDecoder, VecSetVAE, vae_loss
from ..volume_decoding import SparseVolume, decode_volume


@dataclasses.dataclass(frozen=True)
class Size:
    """How large the experiment is."""

    meshes: int
    held_out: int
    rows: int
    model: dict[str, Any]
    config: dict[str, Any]
    resolution: int
    large: int | None
    dtype: torch.dtype
    stride: int
    """The truth is asked at each stride-th node of each axis."""
    coarsest: int = 64
    shares: tuple[int, ...] = (2, 4, 8)
    """Numbers of keys: that of latent vectors divided by these."""


CPU = Size(
    120,
    4,
    2048,
    {"num_latents": 96, "latent_channels": 16, "width": 64, "heads": 2, "layers": 2, "mlp_ratio": 1},
    {"steps": 500, "batch_size": 8, "learning_rate": 2e-3, "warmup_steps": 50, "ema_decay": 0.98},
    128,
    None,
    torch.float32,
    2,
)
GPU = Size(
    1000,
    16,
    8192,
    {"num_latents": 512, "latent_channels": 32, "width": 256, "heads": 4, "layers": 8, "mlp_ratio": 1},
    {
        "steps": 9000,
        "batch_size": 32,
        "learning_rate": 5e-4,
        "warmup_steps": 300,
        "ema_decay": 0.998,
        "precision": "bf16",
        "compile": True,
    },
    256,
    512,
    torch.float16,
    1,
)


def mesh_files() -> list[Path]:
    """The 1000 objects of pybullet's data.

    Raises ModuleNotFoundError without them.
    """
    found = importlib.util.find_spec("pybullet_data")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("2503.16302 is measured on the meshes of pybullet: pip install pybullet")
    return sorted(Path(next(iter(found.submodule_search_locations))).glob("random_urdfs/*/*.obj"))


def iou(ours: Tensor, truth: Tensor) -> float:
    """Volume of the intersection over that of the union, of two bool volumes."""
    return float((ours & truth).sum() / (ours | truth).sum().clamp(min=1))


def true_inside(vertices: Tensor, faces: Tensor, resolution: int) -> Tensor:
    """bool [r + 1, r + 1, r + 1] on [-1, 1]^3."""
    axis = torch.linspace(-1, 1, resolution + 1, device=vertices.device)
    points = torch.cartesian_prod(axis, axis, axis)
    return (winding_number(points, vertices, faces) > 0.5).view((resolution + 1,) * 3)


def seconds(call: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """The median time of a call that ends with the device's work, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def claim(size: str, seed: int, out: Path) -> Claim:
    """Trains an autoencoder of sets on pybullet's meshes, decodes held-out ones densely and not."""
    setting = GPU if size == "gpu" else CPU
    device = torch.device("cuda" if size == "gpu" else "cpu")
    generator = torch.Generator(device).manual_seed(seed)
    shapes, rows = shape_set(mesh_files()[: setting.meshes], setting.rows, device, generator)
    held_out = shapes[: setting.held_out]
    data = {name: value[setting.held_out :] for name, value in rows.items()}
    torch.manual_seed(seed)
    vae = VecSetVAE(**setting.model)
    start = time.perf_counter()
    trainer = Trainer(vae, vae_loss, data, TrainConfig(seed=seed, progress=False, log_every=500, **setting.config))
    history = trainer.fit()
    training = time.perf_counter() - start
    model = trainer.ema.half() if setting.dtype is torch.float16 else trainer.ema
    clouds = rows["surface"][: setting.held_out, :4096].to(setting.dtype)
    with torch.no_grad():
        return measure(setting, model, clouds, held_out, out, f"{training:.0f} s", history[-1])


def measure(
    setting: Size,
    model: VecSetVAE,
    clouds: Tensor,
    held_out: list[tuple[Tensor, Tensor]],
    out: Path,
    training: str,
    last: dict[str, float],
) -> Claim:
    """Overlap with the truth, times and queries of the ways to decode held-out shapes."""
    device, latents = clouds.device, [model.decode(model.encode(cloud[None])[0]) for cloud in clouds]
    decoder: VecSetDecoder = model.geo_decoder
    count = setting.model["num_latents"]

    def decode(
        z: Tensor, keys: int | None = None, resolution: int = setting.resolution, **options: Any
    ) -> SparseVolume:
        return decode_volume(decoder.field(z, keys), resolution, coarsest=setting.coarsest, device=device, **options)[0]

    ways: dict[str, dict[str, Any]] = {
        "dense": {"hierarchical": False},
        "hierarchy": {},
        **{f"hierarchy, {count // s} of {count} keys": {"keys": count // s} for s in setting.shares},
    }
    overlaps: dict[str, list[float]] = {name: [] for name in ways}
    queries: list[float] = []
    drawn = []
    for i, (z, shape) in enumerate(zip(latents, held_out, strict=True)):
        truth = true_inside(*shape, setting.resolution // setting.stride)
        nodes = (slice(None, None, setting.stride),) * 3
        for name, options in ways.items():
            volume = decode(z, **options)
            overlaps[name].append(iou(volume.inside()[nodes], truth))
            if name == "hierarchy":
                queries.append((setting.resolution + 1) ** 3 / volume.queries)
                vertices, faces = volume.mesh()
                if i < 4:
                    drawn += [("held out", *(x.cpu().numpy() for x in shape)), ("decoded", vertices, faces)]
                if i < 2:
                    for suffix in ("ply", "glb"):
                        save_mesh(out / f"2503.16302-{i}.{suffix}", vertices, faces)

    def timed(repeats: int, **options: Any) -> float:
        return seconds(lambda: decode(latents[0], **options), device, repeats)

    times = {name: timed(3, **options) for name, options in ways.items()}
    measured = {f"IoU, {name}": (float(np.mean(v)), float(np.std(v))) for name, v in overlaps.items()}
    measured["queries, dense / hierarchy"] = float(np.mean(queries)), float(np.std(queries))
    measured |= {
        f"dense / {name}, time at {setting.resolution}": (times["dense"] / t, 0.0) for name, t in times.items()
    }
    measured[f"dense, s at {setting.resolution}"] = times["dense"], 0.0
    near = [n for n in ways if abs(measured[f"IoU, {n}"][0] - measured["IoU, dense"][0]) <= 0.01]
    fastest = min(near, key=lambda n: times[n])
    if setting.large is not None:
        options = {**ways[fastest], "resolution": setting.large}
        short, long = timed(3, **options), timed(1, resolution=setting.large, hierarchical=False)
        whole = seconds(lambda: decode(latents[0], **options).mesh(), device, 3)
        usual = VecSetDecoder(decoder.config.width, decoder.config.heads, mlp_ratio=4, enable_ln_post=True)
        usual = usual.to(device, setting.dtype)
        full = usual.field(latents[0])
        published = seconds(lambda: decode_volume(full, setting.large, hierarchical=False, device=device), device, 1)
        measured[f"dense / {fastest}, time at {setting.large}"] = long / short, 0.0
        measured[f"dense with the usual MLP / {fastest}, time at {setting.large}"] = published / short, 0.0
        measured[f"{fastest}, s at {setting.large}"] = short, 0.0
        measured[f"{fastest} and mesh, s at {setting.large}"] = whole, 0.0
    plot = out / "2503.16302.png"
    draw_meshes(plot, drawn)
    same = abs(measured["IoU, hierarchy"][0] - measured["IoU, dense"][0]) <= 0.001
    faster = times["dense"] / times["hierarchy"] >= (8 if setting.large else 2)
    return Claim(
        paper="2503.16302",
        claim="Hierarchical decoding gives the dense result many times faster; adaptive keys lose little.",
        protocol=(
            f"An autoencoder of {count} latent vectors (width {setting.model['width']}), trained {training} on at most "
            f"{setting.meshes - setting.held_out} of pybullet's meshes (the closed ones), points in, inside out; "
            f"{setting.held_out} held-out meshes at {setting.resolution} cells a side, {setting.dtype}, truth by "
            f"winding numbers, {setting.stride} cells apart; spread over meshes. Last training entropy "
            f"{last['entropy']:.4f}. Time: the first mesh, scaled-dot-product attention in chunks of 131,072 points "
            "against the same decoder."
        ),
        measured=measured,
        holds=same and faster and len(near) > 2,
        plot=plot,
    )
