"""FlashVDM (arXiv 2503.16302): hierarchical decoding changes nothing but the time; adaptive selection costs little."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import itertools
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from core_registry.claims import Claim
from torch import Tensor

from ..meshes import draw_meshes, save_mesh, shape_set, winding_number
from ..training import TrainConfig, Trainer
from ..vecset import VecSetDecoder, VecSetVAE, vae_loss
from ..volume_decoding import Field, SparseVolume, decode_volume
from .seeds import Bar, record


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of the training: so many latent vectors from so many points of the surface, and the trainer's settings."""

    num_latents: int
    surface: int
    config: dict[str, Any]
    share: float = 1.0
    """Of the time that is left, where it is limited."""


@dataclasses.dataclass(frozen=True)
class Size:
    """How large the experiment is."""

    meshes: int
    held_out: int
    rows: int
    model: dict[str, Any]
    stages: tuple[Stage, ...]
    """One after the other; a stage begins with the averaged weights of the one before."""
    resolution: int
    large: int | None
    half: bool
    stride: int
    """The truth is asked at each stride-th node of each axis."""
    shares: tuple[int, ...]
    """Numbers of keys: that of latent vectors divided by these."""
    coarsest: int = 64
    chunks: tuple[int, ...] = (2**17,)
    """Points in one call of a decoder; the fastest is taken, for each decoder its own."""


TINY = Size(
    8,
    2,
    512,
    {"latent_channels": 4, "width": 32, "heads": 2, "layers": 1, "mlp_ratio": 1},
    (
        Stage(16, 256, {"steps": 40, "batch_size": 6, "learning_rate": 3e-3, "ema_decay": 0.9}, 0.5),
        Stage(32, 512, {"steps": 15, "batch_size": 4, "learning_rate": 1e-3, "ema_decay": 0.9}),
    ),
    32,
    64,
    False,
    2,
    (2, 4),
    coarsest=16,
    chunks=(2**14, 2**16),
)
CPU = Size(
    120,
    4,
    2048,
    {"latent_channels": 16, "width": 64, "heads": 2, "layers": 2, "mlp_ratio": 1},
    (Stage(96, 2048, {"steps": 500, "batch_size": 8, "learning_rate": 2e-3, "warmup_steps": 50, "ema_decay": 0.98}),),
    128,
    None,
    False,
    2,
    (2, 4, 8),
)
_FAST = {"warmup_steps": 300, "ema_decay": 0.998, "precision": "bf16", "compile": True, "record": True}
GPU = Size(
    1000,
    16,
    8192,
    {"latent_channels": 32, "width": 256, "heads": 4, "layers": 8, "mlp_ratio": 1},
    (
        Stage(512, 2048, {"steps": 20000, "batch_size": 32, "learning_rate": 5e-4, "save_every": 2000, **_FAST}, 0.45),
        Stage(
            3072,
            6144,
            {"steps": 8000, "batch_size": 12, "learning_rate": 3e-4, "save_every": 1000, "schedule": "cosine", **_FAST},
        ),
    ),
    256,
    512,
    True,
    2,
    (3, 4, 6, 12),
    chunks=(2**15, 2**16, 2**17, 2**19),
)
SIZES = {"tiny": TINY, "cpu": CPU, "gpu": GPU}


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


def best_chunk(field: Field, setting: Size, device: torch.device) -> int:
    """The number of points in a call with which a grid of twice the coarsest level is asked fastest."""
    if len(setting.chunks) == 1:
        return setting.chunks[0]

    def timed(chunk: int) -> float:
        options = {"hierarchical": False, "chunk": chunk, "device": device}
        return seconds(lambda: decode_volume(field, 2 * setting.coarsest, **options), device, 3)

    return min(setting.chunks, key=timed)


def beside_field(field: Field, resolution: int, options: Mapping[str, Any], device: torch.device) -> tuple[float, int]:
    """The time of a decode whose field takes none, its answers being those that it gave before; how often it is
    asked."""
    answers: list[Tensor] = []

    def ask(points: Tensor) -> Tensor:
        answers.append(field(points))
        return answers[-1]

    decode_volume(ask, resolution, **options)
    again = itertools.cycle(answers)
    return seconds(lambda: decode_volume(lambda points: next(again), resolution, **options), device, 5), len(answers)


def train(
    setting: Size, data: dict[str, Tensor], seed: int, folder: Path, limit: float = math.inf
) -> tuple[VecSetVAE, dict[str, float]]:
    """Trains, or goes on, in the folder, `limit` seconds at most; returns the averaged model and figures of the way."""
    vae: VecSetVAE | None = None
    begin, told = time.perf_counter(), dict[str, float]()
    for i, stage in enumerate(setting.stages):
        torch.manual_seed(seed)
        model = VecSetVAE(num_latents=stage.num_latents, **setting.model)
        if vae is not None:
            model.load_state_dict(vae.state_dict())
        config = TrainConfig(seed=seed, progress=False, log_every=100, **stage.config)
        loss = functools.partial(vae_loss, surface=stage.surface)
        trainer = Trainer(model, loss, data, config, folder / f"stage-{i}")
        trainer.fit(stage.share * (limit - (time.perf_counter() - begin)))
        vae = trainer.ema
        last = json.loads((folder / f"stage-{i}" / "metrics.jsonl").read_text().splitlines()[-1])
        told |= {f"steps, {stage.num_latents} latent vectors": trainer.step, "training entropy": last["entropy"]}
    assert vae is not None
    return vae, {**told, "training, s": time.perf_counter() - begin}


def claim(size: str, seed: int, out: Path, limit: float = math.inf) -> Claim:
    """Trains an autoencoder of sets on pybullet's meshes, decodes held-out ones densely and not.

    limit: seconds of training. 2503.16302.json tells from the training's end on what is measured so far.
    """
    setting = SIZES[size]
    device = torch.device("cuda" if size == "gpu" else "cpu")
    generator = torch.Generator(device).manual_seed(seed)
    shapes, rows = shape_set(mesh_files()[: setting.meshes], setting.rows, device, generator)
    held_out = shapes[: setting.held_out]
    data = {name: value[setting.held_out :] for name, value in rows.items()}
    vae, told = train(setting, data, seed, out / "2503.16302" / size / f"seed-{seed}", limit)
    told["meshes of the training"] = len(shapes) - setting.held_out
    model = vae.half() if setting.half else vae
    clouds = rows["surface"][: setting.held_out, : setting.stages[-1].surface].to(model.dtype)
    with torch.no_grad():
        return measure(setting, model, clouds, held_out, out, {name: (value, 0.0) for name, value in told.items()})


def bars(setting: Size, measured: Mapping[str, tuple[float, float]]) -> tuple[list[Bar], str]:
    """What must show, and the way with adaptive keys (or plain "hierarchy") that is taken for it: the fastest of those
    that lose at most 0.01 of the overlap. The whole decode may do without adaptive keys."""

    def found(name: str) -> float:
        return measured.get(name, (math.nan, 0.0))[0]

    def ratio(over: str, under: str, resolution: int | None) -> float | None:
        value = found(f"{over}, s at {resolution}") / found(f"{under}, s at {resolution}")
        return None if math.isnan(value) else value

    side, large, dense = setting.resolution, setting.large, found("IoU, dense")
    keyed = [f"{setting.stages[-1].num_latents // share} keys" for share in setting.shares]
    allowed = [way for way in keyed if abs(found(f"IoU, {way}") - dense) <= 0.01]
    best = min(allowed, key=lambda way: found(f"{way}, s at {side}"), default="hierarchy")
    at_large = {way: found(f"{way}, s at {large}") for way in ["hierarchy", *allowed]}
    whole = min(at_large, key=lambda way: math.inf if math.isnan(at_large[way]) else at_large[way])
    usual = "dense with the usual MLP"
    lost = abs(found("IoU, hierarchy") - dense)
    shown = [Bar("IoU, hierarchy and dense, difference", None if math.isnan(lost) else lost, 0.001, most=True)]
    if large is None:
        return [
            *shown,
            Bar(f"dense / hierarchy, time at {side}", ratio("dense", "hierarchy", side), 2),
            Bar("numbers of keys that lose at most 0.01", len(allowed), 2),
        ], best
    return [
        *shown,
        Bar("IoU, dense", None if math.isnan(dense) else dense, 0.95),
        Bar(f"dense / hierarchy, time at {side}", ratio("dense", "hierarchy", side), 8),
        Bar(f"hierarchy / {best}, time at {side}", ratio("hierarchy", best, side), 1.3),
        Bar(f"{usual} / {whole}, time at {large}", ratio(usual, whole, large), 45),
    ], best


def measure(
    setting: Size,
    model: VecSetVAE,
    clouds: Tensor,
    held_out: list[tuple[Tensor, Tensor]],
    out: Path,
    measured: dict[str, tuple[float, float]],
) -> Claim:
    """Times, queries and overlap with the truth of the ways to decode held-out shapes, added to `measured`."""
    device, latents = clouds.device, [model.decode(model.encode(cloud[None])[0]) for cloud in clouds]
    decoder: VecSetDecoder = model.geo_decoder
    count, side, large = model.config.num_latents, setting.resolution, setting.large
    chunk = best_chunk(decoder.field(latents[0]), setting, device)
    common = {"coarsest": setting.coarsest, "chunk": chunk, "device": device}
    ways: dict[str, tuple[int | None, dict[str, Any]]] = {
        "dense": (None, {**common, "hierarchical": False}),
        "hierarchy": (None, common),
        **{f"{count // share} keys": (count // share, common) for share in setting.shares},
    }

    def decode(z: Tensor, way: str, resolution: int = side) -> SparseVolume:
        keys, options = ways[way]
        return decode_volume(decoder.field(z, keys), resolution, **options)[0]

    def note(**values: float) -> None:
        measured.update({name: (value, 0.0) for name, value in values.items()})
        record(out / "2503.16302.json", measured, bars(setting, measured)[0])

    for resolution in [side] if large is None else [side, large]:
        for way in ways:
            repeats = 1 if way == "dense" and resolution == large else 5
            call = functools.partial(decode, latents[0], way, resolution)
            note(**{f"{way}, s at {resolution}": seconds(call, device, repeats)})
        start = time.perf_counter()
        decode(latents[1], "hierarchy", resolution).values.sum().item()
        first = time.perf_counter() - start
        plain = decode(latents[0], "hierarchy", resolution)
        for way, (keys, options) in ways.items():
            if way != "dense":
                besides, calls = beside_field(decoder.field(latents[0], keys), resolution, options, device)
                note(
                    **{f"{way} beside the decoder, s at {resolution}": besides, f"{way}, calls at {resolution}": calls}
                )
        note(
            **{
                f"hierarchy, first time of another mesh, s at {resolution}": first,
                f"mesh, s at {resolution}": seconds(plain.mesh, device, 1),
                f"dense / hierarchy, queries at {resolution}": (resolution + 1) ** 3 / plain.queries,
            }
        )
    if large is not None:
        usual = VecSetDecoder(decoder.config.width, decoder.config.heads, mlp_ratio=4, enable_ln_post=True).to(device)
        full = (usual.half() if setting.half else usual).field(latents[0])
        options = {"hierarchical": False, "chunk": best_chunk(full, setting, device), "device": device}
        whole = functools.partial(decode_volume, full, large, **options)
        note(**{f"dense with the usual MLP, s at {large}": seconds(whole, device, 1)})
    overlaps: dict[str, list[float]] = {way: [] for way in ways}
    drawn = []
    for i, (z, shape) in enumerate(zip(latents, held_out, strict=True)):
        truth = true_inside(*shape, side // setting.stride)
        nodes = (slice(None, None, setting.stride),) * 3
        for way, values in overlaps.items():
            volume = decode(z, way)
            values.append(iou(volume.inside()[nodes], truth))
            measured[f"IoU, {way}"] = float(np.mean(values)), float(np.std(values))
            if way == "hierarchy" and i < 2:
                for suffix in ("ply", "glb"):
                    save_mesh(out / f"2503.16302-{i}.{suffix}", *volume.mesh())
        note()
        if i < 4:
            drawn += [("held out", *(x.cpu().numpy() for x in shape)), ("decoded", *decode(z, "hierarchy", 64).mesh())]
        if i == min(4, len(held_out)) - 1:
            draw_meshes(out / "2503.16302.png", drawn)
    shown, best = bars(setting, measured)
    steps = " and ".join(f"{s.config['steps']} steps with {s.num_latents}" for s in setting.stages)
    return Claim(
        paper="2503.16302",
        claim="Hierarchical decoding gives the dense result many times faster; adaptive keys lose little.",
        protocol=(
            f"An autoencoder of latent vectors (width {setting.model['width']}), trained at most {steps} of them on "
            f"pybullet's meshes (the closed ones of {setting.meshes}), points in, inside out; {len(held_out)} held-out "
            f"meshes at {side} cells a side, {model.dtype}, truth by winding numbers, {setting.stride} cells apart; "
            f"spread over meshes. Time: the first mesh, scaled-dot-product attention, {chunk} points in a "
            f"call; the same decoder, or one with an MLP four times as wide. Taken: {best}. Holds if "
            + "; ".join(f"{bar.what}: at {'most' if bar.most else 'least'} {bar.bar:g}" for bar in shown)
        ),
        measured=measured,
        holds=all(bar.met for bar in shown),
        plot=out / "2503.16302.png",
    )
