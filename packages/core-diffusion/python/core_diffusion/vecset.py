"""Vecset shape models: a set of latent vectors as a shape, decoded by cross-attention (FlashVDM, arXiv 2503.16302).

`VecSetDecoder` has the published decoders' layout (Fourier features, one cross-attention block, a head) and the names
of their weights, so that a state dict of such a decoder loads; width, heads, MLP ratio and norms are configuration,
the "efficient" decoder of the paper being a smaller MLP without the last norm. `VecSetVAE` is an autoencoder around
it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn

__all__ = ["VecSetDecoder", "VecSetVAE", "fourier_features", "vae_loss"]

_GROUP = 128
"""Points of a cell that attend together where cells of their own lengths cannot."""
_PROBES = 4
"""Points along each axis of a cell, in which its keys are chosen."""
_PROBED = 2**17
"""Such points at once, about."""
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""q [1, heads, N, D], k and v [B, heads, M, D] -> [1, heads, N, D]."""


def fourier_features(points: Tensor, octaves: int, include_pi: bool = False) -> Tensor:
    """[..., 3] -> [..., 3 + 6 octaves]: the points, sines, cosines at 1, 2, 4, ... (times pi)."""
    rate = 2.0 ** torch.arange(octaves, device=points.device, dtype=torch.float32)
    rate = rate * math.pi if include_pi else rate
    angles = (points.float()[..., None] * rate).flatten(-2)
    return torch.cat([points.float(), angles.sin(), angles.cos()], -1)


class _Attention(nn.Module):
    """The weights of multi-head cross-attention; keys and values lie side by side, head by head."""

    def __init__(self, width: int, data_width: int, heads: int, bias: bool, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.c_q = nn.Linear(width, width, bias=bias)
        self.c_kv = nn.Linear(data_width, 2 * width, bias=bias)
        self.c_proj = nn.Linear(width, width)
        each = width // heads
        self.attention = nn.ModuleDict({"q_norm": nn.LayerNorm(each), "k_norm": nn.LayerNorm(each)} if qk_norm else {})

    def queries(self, x: Tensor) -> Tensor:
        """[B, N, W] -> [B, heads, N, W / heads]."""
        q = self.c_q(x).unflatten(-1, (self.heads, -1))
        q = self.attention["q_norm"](q) if self.attention else q
        return q.transpose(1, 2)

    def keys_values(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """[B, M, data_width] -> two of [B, heads, M, W / heads]."""
        k, v = self.c_kv(data).unflatten(-1, (self.heads, -1)).chunk(2, dim=-1)
        k = self.attention["k_norm"](k) if self.attention else k
        return k.transpose(1, 2), v.transpose(1, 2)

    def merge(self, x: Tensor) -> Tensor:
        """[B, heads, N, W / heads] -> [B, N, W]."""
        out: Tensor = self.c_proj(x.transpose(1, 2).flatten(2))
        return out


class _MLP(nn.Module):
    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(width, ratio * width), nn.Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c_proj(functional.gelu(self.c_fc(x)))
        return out


class _CrossBlock(nn.Module):
    def __init__(self, width: int, data_width: int, heads: int, mlp_ratio: int, bias: bool, qk_norm: bool) -> None:
        super().__init__()
        self.ln_1, self.ln_2, self.ln_3 = nn.LayerNorm(width), nn.LayerNorm(data_width), nn.LayerNorm(width)
        self.attn = _Attention(width, data_width, heads, bias, qk_norm)
        self.mlp = _MLP(width, mlp_ratio)

    def forward(
        self, x: Tensor, k: Tensor, v: Tensor, attend: Attend = functional.scaled_dot_product_attention
    ) -> Tensor:
        x = x + self.attn.merge(attend(self.attn.queries(self.ln_1(x)), k, v))
        out: Tensor = x + self.mlp(self.ln_3(x))
        return out


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention whose kernel depends on no length: cuDNN's, torch's first choice on Hopper, is built anew, in tens of
    milliseconds, for each number of queries, and a surface has its own at every level."""
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        return functional.scaled_dot_product_attention(q, k, v)


class _Cells:
    """The cells of a grid over [-1, 1]^3, `cells` along each axis, whose points attend to the cell's keys.

    Numbered over all shapes; chosen: keys and values [B cells^3, keys, heads, 2 D].
    """

    def __init__(self, chosen: Tensor, cells: int) -> None:
        arange = functools.partial(torch.arange, dtype=torch.int32, device=chosen.device)
        self.chosen, self.cells = chosen, cells
        self.numbers = arange(len(chosen) + 1)
        self.ends = self.numbers * chosen.shape[1]
        self.shapes = self.numbers[: -1 : cells**3, None]

    def sort(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Of points [B, N, 3], all shapes' in a row: their order int64 [B N] by cells, and where in it each cell's
        begin, int32 [B cells^3 + 1]."""
        x, y, z = ((points + 1) * (self.cells / 2)).to(torch.int32).clamp_(0, self.cells - 1).unbind(-1)
        cell = torch.add(z, torch.add(y, x, alpha=self.cells), alpha=self.cells) + self.shapes
        ordered, order = cell.flatten().sort(stable=True)
        return order, torch.searchsorted(ordered, self.numbers, out_int32=True)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, begin: Tensor) -> Tensor:
        """q [1, heads, N, D] of the ordered points -> [1, heads, N, D]."""
        rows, lengths = q[0].transpose(0, 1), begin.diff()
        if _flash_takes(q):
            k, v = self.chosen.flatten(0, 1).chunk(2, -1)
            found: Tensor = varlen_attn(rows, k, v, begin, self.ends, int(lengths.max()), self.chosen.shape[1])
            return found.transpose(0, 1)[None]
        groups = -(-lengths // _GROUP)
        moved = (groups.cumsum(0) - groups) * _GROUP - begin[:-1]
        slots = torch.arange(len(rows), device=q.device) + moved.repeat_interleave(lengths)
        owners = torch.repeat_interleave(groups)
        padded = rows.new_zeros(len(owners) * _GROUP, *rows.shape[1:]).index_copy_(0, slots, rows)
        k, v = self.chosen[owners].transpose(1, 2).chunk(2, -1)
        found = _attend(padded.unflatten(0, (-1, _GROUP)).transpose(1, 2), k, v)
        return found.transpose(1, 2).flatten(0, 1)[slots].transpose(0, 1)[None]


def _flash_takes(q: Tensor) -> bool:
    """Whether `varlen_attn` is there for queries [..., D]."""
    return (
        q.is_cuda
        and torch.cuda.get_device_capability(q.device) >= (8, 0)
        and q.dtype in (torch.float16, torch.bfloat16)
        and q.shape[-1] % 8 == 0
        and q.shape[-1] <= 256
    )


class VecSetDecoder(ModelMixin, ConfigMixin):
    """Values of a field at points, from a set of latent vectors.

    Args:
        width, heads: of the attention; width is a multiple of heads.
        latent_width: of the latent vectors; `width` if absent.
        mlp_ratio: hidden size of the MLP over width (4 in Hunyuan3D-2, 1 in the efficient decoder).
        num_freqs, include_pi: of the Fourier features.
        qkv_bias, qk_norm, enable_ln_post: as in the decoder whose weights are loaded.

    arXiv 2503.16302, sections 3.1 and 3.3.
    """

    @register_to_config
    def __init__(
        self,
        width: int = 256,
        heads: int = 4,
        latent_width: int | None = None,
        mlp_ratio: int = 1,
        num_freqs: int = 8,
        include_pi: bool = False,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        enable_ln_post: bool = False,
    ) -> None:
        super().__init__()
        if width < 1 or heads < 1 or width % heads:
            raise ValueError(f"VecSetDecoder: argument 'width' must be a multiple of heads ({heads}), got {width}")
        self.query_proj = nn.Linear(3 + 6 * num_freqs, width)
        self.cross_attn_decoder = _CrossBlock(width, latent_width or width, heads, mlp_ratio, qkv_bias, qk_norm)
        if enable_ln_post:
            self.ln_post = nn.LayerNorm(width)
        self.output_proj = nn.Linear(width, 1)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], heads: int, include_pi: bool = False) -> VecSetDecoder:
        """The decoder that a state dict holds, with the keys of Hunyuan3D-2's (a prefix that ends in "geo_decoder."
        is taken off); sizes are read off the weights, the number of heads cannot be.

        Raises:
            ValueError: weights are missing, left over or of another shape.
        """
        mark = "geo_decoder."
        if any(mark in name for name in state):
            state = {name.partition(mark)[2]: t for name, t in state.items() if mark in name}
        block = "cross_attn_decoder."
        try:
            features, hidden = state["query_proj.weight"], state[block + "mlp.c_fc.weight"]
            decoder = cls(
                width=features.shape[0],
                heads=heads,
                latent_width=state[block + "ln_2.weight"].shape[0],
                mlp_ratio=hidden.shape[0] // features.shape[0],
                num_freqs=(features.shape[1] - 3) // 6,
                include_pi=include_pi,
                qkv_bias=block + "attn.c_q.bias" in state,
                qk_norm=block + "attn.attention.q_norm.weight" in state,
                enable_ln_post="ln_post.weight" in state,
            )
            decoder.load_state_dict(dict(state))
        except (KeyError, IndexError, RuntimeError) as error:
            raise ValueError(f"from_state_dict: argument 'state' is not of a vecset decoder: {error}") from error
        return decoder

    def _head(self, x: Tensor) -> Tensor:
        x = self.ln_post(x) if self.config.enable_ln_post else x
        out: Tensor = self.output_proj(x)
        return out

    def forward(self, queries: Tensor, latents: Tensor) -> Tensor:
        """Logits [B, N, 1] at points [B, N, 3] from latent vectors [B, M, latent_width]; above 0 inside."""
        k, v = self._prepared(latents)
        return self._ask(queries, k, v)

    def _prepared(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        block = self.cross_attn_decoder
        return block.attn.keys_values(block.ln_2(latents))

    def _embedded(self, points: Tensor) -> Tensor:
        features = fourier_features(points, self.config.num_freqs, self.config.include_pi)
        out: Tensor = self.query_proj(features.to(self.query_proj.weight.dtype))
        return out

    def _ask(
        self, points: Tensor, k: Tensor, v: Tensor, attend: Attend = functional.scaled_dot_product_attention
    ) -> Tensor:
        return self._head(self.cross_attn_decoder(self._embedded(points), k, v, attend))

    def _chosen(self, k: Tensor, v: Tensor, keys: int, cells: int) -> Tensor:
        """Keys and values [B cells^3, keys, heads, 2 D]: of those given, [B, heads, M, D], each cell's and head's whose
        mean product with the queries of the cell's probes is largest."""
        heads, count = k.shape[1:3]
        axis = (torch.arange(cells * _PROBES, device=k.device) + 0.5) * (2 / (cells * _PROBES)) - 1
        block, means = self.cross_attn_decoder, []
        at_once = max(_PROBED // (cells**2 * _PROBES**3), 1)
        for x in axis.split(at_once * _PROBES):
            probes = torch.cartesian_prod(x, axis, axis).view(-1, _PROBES, cells, _PROBES, cells, _PROBES, 3)
            probes = probes.permute(0, 2, 4, 1, 3, 5, 6).reshape(1, -1, 3)
            q = block.attn.queries(block.ln_1(self._embedded(probes)))
            means.append(q.unflatten(2, (-1, _PROBES**3)).mean(3))
        best = (torch.cat(means, 2) @ k.transpose(2, 3)).topk(keys, sorted=False).indices
        best += torch.arange(len(k) * heads, device=k.device).view(-1, heads, 1, 1) * count
        rows = torch.cat([k, v], -1).flatten(0, 2)[best.permute(0, 2, 3, 1).flatten()]
        return rows.view(-1, keys, heads, rows.shape[1])

    def field(self, latents: Tensor, keys: int | None = None, cells: int = 8) -> Callable[[Tensor], Tensor]:
        """The field of `decode_volume` of latent vectors [B, M, latent_width]: points [B, N, 3] -> [B, N].

        With `keys` by adaptive selection (section 3.2): in each cell of a grid over [-1, 1]^3, `cells` along each axis,
        points attend, head by head, to only those keys whose mean product with the queries of 64 places of the cell
        is largest. A point's value does not depend on what else is asked with it, so that a surface that is followed
        from one call to the next does not tear; points outside belong to the nearest cell. With keys >= M it is the
        whole attention. Chosen keys and values take 2 B cells^3 keys width numbers; half precision on CUDA attends to
        them as they are, another copies them for each 128 points.

        Raises:
            ValueError: keys or cells out of range.
        """
        if keys is not None and keys < 1:
            raise ValueError(f"field: argument 'keys' must be at least 1, got {keys}")
        if not 1 <= cells <= 64:
            raise ValueError(f"field: argument 'cells' must be in 1..64, got {cells}")
        k, v = self._prepared(latents)
        if keys is None or keys >= k.shape[2]:
            return lambda points: self._ask(points, k, v, _attend)[..., 0].float()
        groups = _Cells(self._chosen(k, v, keys, cells), cells)

        def ask(points: Tensor) -> Tensor:
            order, begin = groups.sort(points)
            ordered = points.flatten(0, 1)[None, order]
            found = self._ask(ordered, k, v, functools.partial(groups.attend, begin=begin))[0, :, 0].float()
            return torch.empty_like(found).scatter_(0, order, found).view(points.shape[:2])

        return ask


class _SelfBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.mlp = _MLP(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.ln_1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class VecSetVAE(ModelMixin, ConfigMixin):
    """A shape autoencoder: surface points with normals -> latent vectors -> inside or outside at any point.

    The encoder's queries are the first `num_latents` of the surface points, so a latent vector belongs to a place.

    Args:
        num_latents, latent_channels: M and C of the latent set [B, M, C].
        width, heads, layers: of the transformer between latent set and decoder.
        mlp_ratio: of the decoder.
        num_freqs: octaves of the Fourier features.
    """

    @register_to_config
    def __init__(
        self,
        num_latents: int = 256,
        latent_channels: int = 32,
        width: int = 256,
        heads: int = 4,
        layers: int = 8,
        mlp_ratio: int = 1,
        num_freqs: int = 8,
    ) -> None:
        super().__init__()
        self.point_proj = nn.Linear(6 + 6 * num_freqs, width)
        self.encoder = _CrossBlock(width, width, heads, 4, False, False)
        self.encoder_blocks = nn.ModuleList(_SelfBlock(width, heads) for _ in range(2))
        self.moments = nn.Linear(width, 2 * latent_channels)
        self.post_kl = nn.Linear(latent_channels, width)
        self.transformer = nn.ModuleList(_SelfBlock(width, heads) for _ in range(layers))
        self.geo_decoder = VecSetDecoder(width, heads, None, mlp_ratio, num_freqs)

    def encode(self, surface: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance [B, M, C] of surface points with normals [B, N, 6], N >= num_latents.

        Raises ValueError on another shape.
        """
        if surface.ndim != 3 or surface.shape[2] != 6 or surface.shape[1] < self.config.num_latents:
            raise ValueError(
                f"encode: argument 'surface' must have shape (B, N >= {self.config.num_latents}, 6), "
                f"got {tuple(surface.shape)}"
            )
        features = fourier_features(surface[..., :3], self.config.num_freqs)
        x = self.point_proj(torch.cat([features, surface[..., 3:].float()], -1).to(self.point_proj.weight.dtype))
        k, v = self.encoder.attn.keys_values(self.encoder.ln_2(x))
        x = self.encoder(x[:, : self.config.num_latents], k, v)
        for block in self.encoder_blocks:
            x = block(x)
        mean, log_variance = self.moments(x).float().chunk(2, -1)
        return mean, log_variance.clamp(-20, 10)

    def decode(self, z: Tensor) -> Tensor:
        """The decoder's latent vectors [B, M, width] of a latent set [B, M, C]."""
        x = self.post_kl(z.to(self.post_kl.weight.dtype))
        for block in self.transformer:
            x = block(x)
        return x

    def forward(self, surface: Tensor, points: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits [B, N] at points [B, N, 3] from the mean latent set, or with normal `noise` [B, M, C] from a draw of
        it; and the mean of its divergence from the standard normal law, a number."""
        mean, log_variance = self.encode(surface)
        z = mean if noise is None else mean + (log_variance / 2).exp() * noise
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return self.geo_decoder(points, self.decode(z))[..., 0].float(), divergence

    def field(self, surface: Tensor, keys: int | None = None) -> Callable[[Tensor], Tensor]:
        """The field of `decode_volume` of shapes given by surface points [B, N, 6]."""
        decoder: VecSetDecoder = self.geo_decoder
        return decoder.field(self.decode(self.encode(surface)[0]), keys)


def vae_loss(step: Any, surface: int = 2048, points: int = 2048, kl_weight: float = 1e-4) -> dict[str, Tensor]:
    """The autoencoder's loss of a `core_diffusion.training.Step`: binary cross-entropy of inside and outside at points
    of the cube and near the surface, half and half, and the divergence.

    The batch is of `meshes.shape_rows` with as many points near the surface as in the cube. Shapes are turned and
    mirrored by one of the cube's 48 symmetries and stretched along the axes by 0.8 to 1.25; inside stays inside.
    """
    batch, generator = step.batch, step.generator
    cloud, asked, inside = batch["surface"].float(), batch["points"].float(), batch["inside"]
    count, device = len(cloud), cloud.device

    def draw(total: int, wanted: int, first: int = 0) -> Tensor:
        return first + torch.randint(total, (count, wanted), device=device, generator=generator)

    half = asked.shape[1] // 2
    rows = torch.arange(count, device=device)[:, None]
    which = torch.cat([draw(half, points // 2), draw(asked.shape[1] - half, points - points // 2, half)], 1)
    cloud, asked, inside = cloud[rows, draw(cloud.shape[1], surface)], asked[rows, which], inside[rows, which]
    axes = torch.rand(count, 3, device=device, generator=generator).argsort(1)[:, None]
    sign = torch.randint(2, (count, 1, 3), device=device, generator=generator) * 2.0 - 1
    stretch = 1.25 ** (2 * torch.rand(count, 1, 3, device=device, generator=generator) - 1)
    places, normals = cloud[..., :3], cloud[..., 3:]
    places, normals, asked = (x.gather(2, axes.expand(-1, x.shape[1], -1)) * sign for x in (places, normals, asked))
    scale = (
        stretch
        / (places.abs() * stretch).amax((1, 2), keepdim=True).clamp(min=1e-6)
        * places.abs().amax((1, 2), keepdim=True)
    )
    places, asked, normals = places * scale, asked * scale, functional.normalize(normals / scale, dim=2)
    sizes = step.plain.config
    noise = torch.randn(count, sizes.num_latents, sizes.latent_channels, device=device, generator=generator)
    logits, divergence = step.model(torch.cat([places, normals], 2), asked, noise)
    entropy = functional.binary_cross_entropy_with_logits(logits, inside.float())
    right = ((logits > 0) == inside)[:, : points // 2].float().mean()
    return {"loss": entropy + kl_weight * divergence, "entropy": entropy, "divergence": divergence, "right": right}
