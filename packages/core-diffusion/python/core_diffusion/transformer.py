"""The transformer block that this package's models share, its positions, and its embeddings."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from .torch_moe import MoE, MoEOutput

__all__ = ["Block", "Cache", "FinalLayer", "TimestepEmbedding", "rope_angles", "sincos_grid"]


def sincos_grid(dim: int, height: int, width: int) -> Tensor:
    """Fixed sine-cosine positions of a grid, float32 [height * width, dim]; dim a multiple of 4 (MAE, DiT)."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rates = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angles = [axis.reshape(-1, 1) * rates for axis in (columns, rows)]
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], 1).float()


def rope_angles(head_dim: int, positions: Tensor) -> Tensor:
    """Angles float32 [L, head_dim / 2] of rotary positions (RoFormer, arXiv 2104.09864), positions [L, axes].

    Each axis turns an equal share of the pairs of channels; head_dim is a multiple of 2 * axes.
    """
    axes = positions.shape[1]
    pairs = head_dim // (2 * axes)
    if pairs * 2 * axes != head_dim:
        raise ValueError(f"rope_angles: argument 'head_dim' must be a multiple of {2 * axes}, got {head_dim}")
    rates = 10000.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    return (positions[:, :, None].double() * rates).flatten(1).float()


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turns the channel pairs (i, i + half) of x [B, H, L, D] by angles [L, D / 2]."""
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def _rms_norm(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    """The norm in x's own dtype: under autocast torch has no fused one for a weight of another."""
    return functional.rms_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.eps)


class Cache(NamedTuple):
    """Keys and values [B, heads, room, head_dim] of the places up to now."""

    keys: Tensor
    values: Tensor


class Attention(nn.Module):
    """Self-attention with normalised queries and keys, rotary positions and a cache."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"Attention: argument 'dim' must be a multiple of 'heads' = {heads}, got {dim}")
        self.heads = heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.norm_q, self.norm_k = nn.RMSNorm(dim // heads), nn.RMSNorm(dim // heads)

    def forward(
        self, x: Tensor, angles: Tensor | None = None, causal: bool = False, cache: Cache | None = None, at: int = 0
    ) -> Tensor:
        """x [B, L, D]. With a cache x are the places at .. at + L - 1, which attend to all of 0 .. at + L - 1."""
        batch, length, dim = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = _rms_norm(q, self.norm_q), _rms_norm(k, self.norm_k)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        if cache is not None:
            cache.keys[:, :, at : at + length] = k
            cache.values[:, :, at : at + length] = v
            k, v = cache.keys[:, :, : at + length], cache.values[:, :, : at + length]
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=causal and length > 1)
        return self.out(y.transpose(1, 2).reshape(batch, length, dim))


class Block(nn.Module):
    """Attention and a feed-forward network or a mixture of experts; with `condition` under adaLN-Zero (2212.09748).

    Args:
        dim, heads: width and attention heads.
        mlp_ratio: inner width of the feed-forward network, and of each expert, over dim.
        condition: whether forward takes a vector that shifts, scales and gates both branches; the gates start at 0.
        moe: the options of `torch_moe.MoE` without its sizes, in place of the feed-forward network.
    """

    def __init__(
        self, dim: int, heads: int, mlp_ratio: float = 4.0, condition: bool = False, moe: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        inner = int(dim * mlp_ratio)
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=not condition, eps=1e-6)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=not condition, eps=1e-6)
        self.attention = Attention(dim, heads)
        self.mlp = (
            nn.Sequential(nn.Linear(dim, inner), nn.GELU("tanh"), nn.Linear(inner, dim))
            if moe is None
            else MoE(dim, inner, **moe)
        )
        self.modulation = nn.Linear(dim, 6 * dim) if condition else None
        for module in self.modules():
            if isinstance(module, nn.Linear) and module is not self.modulation and module.weight.requires_grad:
                if moe is not None and any(module is m for m in self.mlp.modules()):
                    continue  # the layer has its own start
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        if self.modulation is not None:
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(
        self,
        x: Tensor,
        condition: Tensor | None = None,
        angles: Tensor | None = None,
        causal: bool = False,
        cache: Cache | None = None,
        at: int = 0,
        target: Tensor | None = None,
    ) -> tuple[Tensor, MoEOutput | None]:
        """x [B, L, D], condition [B, D]; returns x and what the mixture of experts says."""
        if self.modulation is None:
            x = x + self.attention(self.norm1(x), angles, causal, cache, at)
            y, moe = self._mlp(self.norm2(x), target)
            return x + y, moe
        parts = self.modulation(functional.silu(condition))[:, None].chunk(6, -1)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1, angles, causal, cache, at)
        y, moe = self._mlp(self.norm2(x) * (1 + scale2) + shift2, target)
        return x + gate2 * y, moe

    def _mlp(self, x: Tensor, target: Tensor | None) -> tuple[Tensor, MoEOutput | None]:
        if not isinstance(self.mlp, MoE):
            return self.mlp(x), None
        found = self.mlp(x, target if self.mlp.target is not None else None)
        return found.hidden_states.to(x.dtype), found


class FinalLayer(nn.Module):
    """The last norm and projection under adaLN; both start at 0."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.modulation, self.linear = nn.Linear(dim, 2 * dim), nn.Linear(dim, out)
        for layer in (self.modulation, self.linear):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x [B, L, D], condition [B, D]; returns [B, L, out]."""
        shift, scale = self.modulation(functional.silu(condition))[:, None].chunk(2, -1)
        return self.linear(self.norm(x) * (1 + scale) + shift)


class TimestepEmbedding(nn.Module):
    """A time in 0..1000 as sines and cosines of 128 rates, through two layers."""

    rates: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("rates", torch.exp(-math.log(10000.0) * torch.arange(128) / 128), persistent=False)
        self.layers = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, timestep: Tensor) -> Tensor:
        """timestep [B]; returns [B, dim]."""
        angles = timestep.float()[:, None] * self.rates
        return self.layers(torch.cat([angles.cos(), angles.sin()], 1).to(self.layers[0].weight.dtype))


def drop_labels(labels: Tensor, classes: int, probability: float, training: bool) -> Tensor:
    """Labels [B], in training each replaced by `classes`, which stands for none, with a probability."""
    if not training or probability == 0:
        return labels
    return torch.where(torch.rand(labels.shape, device=labels.device) < probability, classes, labels)
