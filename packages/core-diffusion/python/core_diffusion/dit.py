"""A small diffusion transformer (DiT, arXiv 2212.09748), its training by flow matching or DDPM, and its sampler."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
from diffusers import ConfigMixin, DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn
from torch.nn import functional

from .torch_moe import MoE, MoEOutput
from .training import Step
from .transformer import Block, FinalLayer, TimestepEmbedding, drop_labels, rope_angles, sincos_grid

__all__ = ["DiT", "DiTOutput", "ddpm_loss", "flow_matching_loss", "sample"]


@dataclasses.dataclass
class DiTOutput(BaseOutput):
    """sample [B, C, H, W]; moe: what each mixture-of-experts layer says, in the order of the blocks."""

    sample: Tensor
    moe: tuple[MoEOutput, ...] = ()


class DiT(ModelMixin, ConfigMixin):
    """A transformer over the patches of an image, conditioned on time and class by adaLN-Zero.

    Saved and loaded by `save_pretrained` and `from_pretrained` (safetensors), as all diffusers models.

    Args:
        sample_size, patch_size, in_channels: the image is [in_channels, sample_size, sample_size].
        hidden_size, depth, num_heads, mlp_ratio: of the blocks.
        num_classes: classes; the label `num_classes` stands for none. 0: no labels at all.
        class_dropout_prob: share of labels dropped in training, for guidance.
        position: "sincos" (added, fixed) or "rope" (rotary, two axes).
        moe: options of `torch_moe.MoE` without its sizes (num_experts, router, top_k, ...) for every second block;
            None: feed-forward networks only.
        per_layer_target: give each mixture of experts a head that predicts the training target (Expert Race).
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 28,
        patch_size: int = 2,
        in_channels: int = 1,
        hidden_size: int = 256,
        depth: int = 12,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        num_classes: int = 10,
        class_dropout_prob: float = 0.1,
        position: Literal["sincos", "rope"] = "sincos",
        moe: dict[str, Any] | None = None,
        per_layer_target: bool = False,
    ) -> None:
        super().__init__()
        if sample_size % patch_size:
            raise ValueError(f"DiT: argument 'sample_size' must be a multiple of {patch_size}, got {sample_size}")
        if position not in ("sincos", "rope"):
            raise ValueError(f"DiT: argument 'position' must be 'sincos' or 'rope', got {position!r}")
        side, patch = sample_size // patch_size, patch_size**2 * in_channels
        self.side = side
        self.embed = nn.Linear(patch, hidden_size)
        self.time = TimestepEmbedding(hidden_size)
        self.label = nn.Embedding(num_classes + 1, hidden_size) if num_classes else None
        if self.label is not None:
            nn.init.normal_(self.label.weight, std=0.02)
        options = None if moe is None else dict(moe)
        if options is not None and per_layer_target:
            options["target_dim"] = patch
        self.blocks = nn.ModuleList(
            Block(hidden_size, num_heads, mlp_ratio, True, options if i % 2 else None) for i in range(depth)
        )
        self.final = FinalLayer(hidden_size, patch)
        grid = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).view(-1, 2)
        places = sincos_grid(hidden_size, side, side) if position == "sincos" else None
        angles = rope_angles(hidden_size // num_heads, grid) if position == "rope" else None
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("angles", angles, persistent=False)

    def set_group(self, group: dist.ProcessGroup | None) -> None:
        """Lets the routers of "race" and "diffmoe" choose over the batches of all processes of a group; None: alone."""
        for module in self.modules():
            if isinstance(module, MoE):
                module.group = group

    def patches(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] as patches [B, L, p * p * C]."""
        p, c = self.config.patch_size, self.config.in_channels
        x = images.reshape(len(images), c, self.side, p, self.side, p)
        return x.permute(0, 2, 4, 3, 5, 1).reshape(len(images), self.side**2, p * p * c)

    def images(self, patches: Tensor) -> Tensor:
        """The inverse of `patches`."""
        p, c = self.config.patch_size, self.config.in_channels
        x = patches.reshape(len(patches), self.side, self.side, p, p, c)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), c, self.side * p, self.side * p)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
        target: Tensor | None = None,
    ) -> DiTOutput | tuple[Tensor]:
        """The prediction for images at their times.

        Args:
            hidden_states: [B, C, H, W].
            timestep: [B] or a number, in 0..1000.
            class_labels: int64 [B] in 0..num_classes; None: no class.
            target: [B, C, H, W], the training target for the per-layer heads.

        Raises ValueError on another shape.
        """
        size, channels = self.config.sample_size, self.config.in_channels
        if hidden_states.ndim != 4 or tuple(hidden_states.shape[1:]) != (channels, size, size):
            raise ValueError(
                f"DiT: argument 'hidden_states' must have shape (B, {channels}, {size}, {size}), "
                f"got {tuple(hidden_states.shape)}"
            )
        batch = len(hidden_states)
        x = self.embed(self.patches(hidden_states))
        if self.places is not None:
            x = x + self.places.to(x.dtype)
        condition = self.time(torch.as_tensor(timestep, device=x.device).expand(batch))
        if self.label is not None:
            none = self.config.num_classes
            if class_labels is None:
                class_labels = torch.full((batch,), none, device=x.device)
            dropped = drop_labels(class_labels, none, self.config.class_dropout_prob, self.training)
            condition = condition + self.label(dropped)
        wanted = None if target is None else self.patches(target)
        routed = []
        for block in self.blocks:
            x, moe = block(x, condition, self.angles, target=wanted)
            if moe is not None:
                routed.append(moe)
        found = self.images(self.final(x, condition))
        return DiTOutput(sample=found, moe=tuple(routed)) if return_dict else (found,)


# ---- training


def _losses(
    step: Step, noisy: Tensor, time: Tensor, target: Tensor, router_weight: float, layer_weight: float
) -> dict[str, Tensor]:
    out = step.model(noisy, time, step.batch.get("labels"), target=target)
    error = functional.mse_loss(out.sample.float(), target)
    losses = {"loss": error, "error": error}
    if out.moe:
        losses["router"] = torch.stack([m.router_loss.float() for m in out.moe]).mean()
        losses["layer"] = torch.stack([m.layer_loss.float() for m in out.moe]).mean()
        losses["loss"] = error + router_weight * losses["router"] + layer_weight * losses["layer"]
    return losses


def flow_matching_loss(router_weight: float = 1e-2, layer_weight: float = 1e-2) -> Callable[[Step], dict[str, Tensor]]:
    """Rectified flow: x_s = (1 - s) x + s e, the model predicts e - x at time 1000 s, s uniform.

    Batches have "images" [B, C, H, W] in -1..1 and, if the model has classes, "labels". The weights are those of the
    routers' losses and of the per-layer heads.
    """

    def loss(step: Step) -> dict[str, Tensor]:
        x = step.batch["images"]
        s = torch.rand(len(x), generator=step.generator, device=x.device)
        noise = torch.randn(x.shape, generator=step.generator, device=x.device)
        noisy = torch.lerp(x, noise, s[:, None, None, None])
        return _losses(step, noisy, 1000 * s, noise - x, router_weight, layer_weight)

    return loss


def ddpm_loss(
    scheduler: DDPMScheduler, router_weight: float = 1e-2, layer_weight: float = 1e-2
) -> Callable[[Step], dict[str, Tensor]]:
    """DDPM: the model predicts the noise, or what the scheduler's prediction_type says ("v_prediction", "sample")."""

    def loss(step: Step) -> dict[str, Tensor]:
        x = step.batch["images"]
        count = scheduler.config.num_train_timesteps
        t = torch.randint(count, (len(x),), generator=step.generator, device=x.device)
        noise = torch.randn(x.shape, generator=step.generator, device=x.device)
        kind = scheduler.config.prediction_type
        target = noise if kind == "epsilon" else x if kind == "sample" else scheduler.get_velocity(x, noise, t)
        noisy = scheduler.add_noise(x, noise, t)
        return _losses(step, noisy, t * (1000 / count), target, router_weight, layer_weight)

    return loss


# ---- sampling


@torch.no_grad()
def sample(
    model: DiT,
    class_labels: Tensor,
    scheduler: FlowMatchEulerDiscreteScheduler | DDPMScheduler | DDIMScheduler | None = None,
    num_inference_steps: int = 50,
    guidance_scale: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Images [N, C, H, W] in -1..1 of the classes [N], by a diffusers scheduler (Euler on the flow by default).

    guidance_scale: 1 is none; the classifier-free guidance of arXiv 2207.12598 otherwise.
    """
    scheduler = FlowMatchEulerDiscreteScheduler() if scheduler is None else scheduler
    config, device = model.config, class_labels.device
    scheduler.set_timesteps(num_inference_steps, device=device)
    shape = (len(class_labels), config.in_channels, config.sample_size, config.sample_size)
    x = torch.randn(shape, generator=generator, device=device) * getattr(scheduler, "init_noise_sigma", 1.0)
    per_unit = 1000 / scheduler.config.num_train_timesteps
    none = torch.full_like(class_labels, config.num_classes)
    for t in scheduler.timesteps:
        if guidance_scale == 1:
            found = model(x, t * per_unit, class_labels).sample
        else:
            both = model(torch.cat([x, x]), t * per_unit, torch.cat([class_labels, none])).sample
            with_class, without = both.chunk(2)
            found = without + guidance_scale * (with_class - without)
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            x = scheduler.step(found.float(), t, x).prev_sample
        else:
            x = scheduler.step(found.float(), t, x, generator=generator).prev_sample
    return x
