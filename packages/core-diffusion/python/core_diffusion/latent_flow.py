"""Shapes from noise: a flow over the latent sets of a vecset autoencoder, for `flow_distillation` to distil."""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from .transformer import Block, FinalLayer, TimestepEmbedding
from .vecset import VecSetVAE

__all__ = ["LatentTransformer", "encode_latents"]


class LatentTransformer(ModelMixin, ConfigMixin):
    """Velocities of a set of latent vectors: a DiT without positions, so that a permuted set has permuted velocities.

    Args:
        latent_channels: C; a set is [B, M, C] with any M.
        hidden_size, depth, num_heads, mlp_ratio: of the blocks.
        condition_dim: numbers that a shape is conditioned on (the sides of its box, say); 0: none.
        latent_scale: of `encode_latents`, kept with the model: what it draws is multiplied by it before it is decoded.

    arXiv 2503.16302, section 3.4; 2301.11445, section 5 (diffusion of latent sets).
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 32,
        hidden_size: int = 256,
        depth: int = 8,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        condition_dim: int = 0,
        latent_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(latent_channels, hidden_size)
        self.time = TimestepEmbedding(hidden_size)
        self.condition = nn.Linear(condition_dim, hidden_size) if condition_dim else None
        self.blocks = nn.ModuleList(Block(hidden_size, num_heads, mlp_ratio, True) for _ in range(depth))
        self.final = FinalLayer(hidden_size, latent_channels)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Velocities [B, M, C] of x [B, M, C] at the times [B], 0 noise and 1 data, under condition [B, condition_dim].

        Raises ValueError on another shape, and on a condition that is missing or not foreseen.
        """
        if x.ndim != 3 or x.shape[2] != self.config.latent_channels:
            raise ValueError(
                f"LatentTransformer: argument 'x' must have shape (B, M, {self.config.latent_channels}), "
                f"got {tuple(x.shape)}"
            )
        wanted = None if self.condition is None else (len(x), self.config.condition_dim)
        if (None if condition is None else tuple(condition.shape)) != wanted:
            got = None if condition is None else tuple(condition.shape)
            raise ValueError(f"LatentTransformer: argument 'condition' must have shape {wanted}, got {got}")
        given = self.time(1000 * t)
        if self.condition is not None:
            given = given + self.condition(condition)
        h = self.embed(x)
        for block in self.blocks:
            h, _ = block(h, given)
        out: Tensor = self.final(h, given)
        return out


@torch.no_grad()
def encode_latents(vae: VecSetVAE, surface: Tensor, batch: int = 64) -> tuple[Tensor, float]:
    """Latent sets of shapes as data of a flow.

    Args:
        vae: a trained autoencoder.
        surface: points with normals [N, P, 6] of N shapes, as `meshes.shape_set` gives them.
        batch: shapes in one call.

    Returns:
        The mean latent sets [N, M, C], float32, over their standard deviation, and that number: what is drawn is
        decoded as `vae.decode(scale * x)`.
    """
    device, dtype = vae.post_kl.weight.device, vae.post_kl.weight.dtype
    found = torch.cat([vae.encode(part.to(device, dtype))[0] for part in surface.split(batch)])
    scale = float(found.std())
    return found / scale, scale
