"""Shape models with their losses and data, for jobs: an autoencoder of latent sets, a flow over them, its distillation.

Everything is trained on a folder of closed meshes, at the sizes "cpu" (minutes) and "gpu".
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .claims import flashvdm
from .flow_distillation import FlowDistillation, StudentAndCritic, flow_loss, sample_flow
from .latent_flow import LatentTransformer, encode_latents
from .meshes import shape_set
from .training import TrainConfig, Trainer
from .vecset import VecSetVAE
from .volume_decoding import decode_volume

__all__ = [
    "FLOW_SIZES",
    "FlowSize",
    "box_sides",
    "decode_latents",
    "distil_flow",
    "draw_latents",
    "fit_flow",
    "fit_student",
    "train_flow",
    "train_vecset",
]

EXTENT = 1.9
"""Longest side of the boxes of shapes, as `meshes.load_mesh` scales them."""


class FlowSize(NamedTuple):
    """Width and depth of the flow, its run, and the steps of each stage of its distillation."""

    hidden: int
    heads: int
    depth: int
    batch: int
    steps: int
    stage_steps: int
    ema_decay: float


FLOW_SIZES = {"cpu": FlowSize(64, 4, 2, 16, 400, 100, 0.98), "gpu": FlowSize(512, 8, 12, 64, 20_000, 4000, 0.999)}


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _surfaces(meshes: Path, rows: int, seed: int) -> dict[str, Tensor]:
    """`meshes.shape_set` of every mesh file below a folder."""
    suffixes = (".obj", ".ply", ".stl", ".glb", ".off")
    paths = sorted(path for path in meshes.rglob("*") if path.suffix.lower() in suffixes)
    return shape_set(paths, rows, _device(), torch.Generator(_device()).manual_seed(seed))[1]


def train_vecset(meshes: Path, out: Path, size: str = "cpu", steps: int | None = None, seed: int = 0) -> VecSetVAE:
    """Trains a `VecSetVAE` on the closed meshes below a folder, or goes on with it, in `out`; steps: of each stage.

    Raises ValueError if no file holds a closed mesh.
    """
    setting = flashvdm.SIZES[size]
    data = _surfaces(meshes, setting.rows, seed)
    if steps is not None:
        stages = tuple(dataclasses.replace(s, config={**s.config, "steps": steps}) for s in setting.stages)
        setting = dataclasses.replace(setting, stages=stages)
    vae, _ = flashvdm.train(setting, data, seed, out)
    vae.save_pretrained(out / "model")
    return vae


def box_sides(surface: Tensor) -> Tensor:
    """The sides [N, 3] of the boxes around surface points [N, P, 3 or more], what a flow is conditioned on."""
    return surface[..., :3].float().amax(1) - surface[..., :3].float().amin(1)


def _latents(vae: VecSetVAE, meshes: Path, seed: int) -> tuple[dict[str, Tensor], float]:
    surface = _surfaces(meshes, max(4096, vae.config.num_latents), seed)["surface"]
    latents, scale = encode_latents(vae.to(_device()).eval(), surface)
    return {"x": latents, "condition": box_sides(surface)}, scale


def _fit(model: nn.Module, loss: object, data: dict[str, Tensor], config: TrainConfig, out: Path) -> nn.Module:
    trainer = Trainer(model, loss, data, config, out)  # type: ignore[arg-type]
    trainer.fit()
    return trainer.ema


def _config(s: FlowSize, steps: int, rate: float, seed: int) -> TrainConfig:
    return TrainConfig(
        steps=steps, batch_size=s.batch, learning_rate=rate, warmup_steps=50, ema_decay=s.ema_decay, seed=seed,
        precision="bf16" if torch.cuda.is_available() else "no", save_every=500,
    )  # fmt: skip


def train_flow(
    meshes: Path, vae: VecSetVAE, out: Path, size: str = "cpu", steps: int | None = None, seed: int = 0
) -> LatentTransformer:
    """Trains a flow over the latent sets of closed meshes, under the sides of their boxes, or goes on with it."""
    return fit_flow(*_latents(vae, meshes, seed), out, size, steps, seed)


def fit_flow(
    data: dict[str, Tensor], scale: float, out: Path, size: str = "cpu", steps: int | None = None, seed: int = 0
) -> LatentTransformer:
    """`train_flow` on latent sets "x" [N, M, C] that were divided by `scale`, and boxes' sides "condition" [N, 3]."""
    s = FLOW_SIZES[size]
    torch.manual_seed(seed)
    shape = {"latent_channels": data["x"].shape[2], "hidden_size": s.hidden, "depth": s.depth, "num_heads": s.heads}
    model = LatentTransformer(**shape, condition_dim=3, latent_scale=scale)
    found = _fit(model, flow_loss(), data, _config(s, s.steps if steps is None else steps, 5e-4, seed), out)
    assert isinstance(found, LatentTransformer)
    return found


def distil_flow(
    meshes: Path,
    vae: VecSetVAE,
    teacher: LatentTransformer,
    out: Path,
    size: str = "cpu",
    steps: int | None = None,
    seed: int = 0,
    guidance: float = 2.0,
    phases: int = 5,
) -> LatentTransformer:
    """The three stages of `flow_distillation` one after the other, each in its folder of `out`, or goes on with them.

    Args:
        meshes, vae: what the teacher was trained on.
        teacher: a flow of `train_flow`.
        steps: of each stage.
        guidance: of the teacher; phases: steps of the student's sampler, a divisor of 50.
    """
    return fit_student(_latents(vae, meshes, seed)[0], teacher, out, size, steps, seed, guidance, phases)


def fit_student(
    data: dict[str, Tensor],
    teacher: LatentTransformer,
    out: Path,
    size: str = "cpu",
    steps: int | None = None,
    seed: int = 0,
    guidance: float = 2.0,
    phases: int = 5,
) -> LatentTransformer:
    """`distil_flow` on the data of `fit_flow`."""
    s = FLOW_SIZES[size]
    teacher = teacher.to(_device()).eval().requires_grad_(False)
    losses = FlowDistillation(teacher, guidance, phases=phases)
    student = LatentTransformer.from_config(teacher.config)
    student.load_state_dict(teacher.state_dict())
    config = _config(s, s.stage_steps if steps is None else steps, 1e-4, seed)
    for name, loss in (("guidance", losses.guidance_loss), ("consistency", losses.consistency_loss)):
        found = _fit(student, loss, data, config, out / name)
        student.load_state_dict(found.state_dict())
    torch.manual_seed(seed)
    channels = teacher.config.latent_channels
    critic = nn.Sequential(nn.Linear(channels, s.hidden), nn.SiLU(), nn.Linear(s.hidden, 1))
    both = StudentAndCritic(student, critic)
    both = _fit(both, losses.adversarial(1e-4), data, config, out / "adversarial")
    assert isinstance(both, StudentAndCritic)
    student.load_state_dict(both.student.state_dict())
    student.save_pretrained(out / "model")
    return student.eval()


@torch.no_grad()
def draw_latents(
    flow: LatentTransformer, vae: VecSetVAE, count: int, steps: int, guidance_scale: float, generator: torch.Generator
) -> Tensor:
    """Latent sets [count, M, C] for `vae.decode`, of boxes drawn at random: one side the longest, two uniform below."""
    device, sizes = generator.device, vae.config
    sides = EXTENT * (0.2 + 0.8 * torch.rand(count, 3, device=device, generator=generator))
    longest = torch.randint(3, (count, 1), device=device, generator=generator)
    sides.scatter_(1, longest, EXTENT)
    noise = torch.randn(count, sizes.num_latents, sizes.latent_channels, device=device, generator=generator)
    way = sample_flow(flow, noise, sides, steps, max(50, steps), guidance=guidance_scale, null=0)
    return flow.config.latent_scale * way


@torch.no_grad()
def decode_latents(vae: VecSetVAE, latents: Tensor, resolution: int) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Vertices and faces of each of the latent sets [N, M, C]; of an empty volume none."""
    found = []
    for z in latents:
        (volume,) = decode_volume(vae.geo_decoder.field(vae.decode(z[None])), resolution, device=z.device)
        found.append(volume.mesh())
    return found
