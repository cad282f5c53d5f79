"""Image tokenisers: an image as a set of codes (TokenSet, arXiv 2503.16425) or as a grid of codes.

The encoder is a vision transformer over patches; its code vectors are those of learned register tokens (a set, without
places) or of the patches (a grid). The decoder sees the codes of a set without positions: their order cannot matter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn
from torch.nn import functional

from .training import Step
from .transformer import Block, sincos_grid

__all__ = [
    "ImageTokenizer", "TokenizerOutput", "VectorQuantizer", "counts_to_set", "set_to_counts", "tokenizer_loss",
]  # fmt: skip


def set_to_counts(tokens: Tensor, num_codes: int) -> Tensor:
    """Sets of tokens [..., M] (codes in 0..num_codes - 1) as counts int32 [..., num_codes], whose sum is M.

    The dual transformation of TokenSet (arXiv 2503.16425, section 3.2); `counts_to_set` is its inverse.
    Raises ValueError on a code out of range, TypeError on numbers that are not integers.
    """
    if tokens.is_floating_point():
        raise TypeError(f"set_to_counts: argument 'tokens' must be integers, got {tokens.dtype}")
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < num_codes:
        raise ValueError(
            f"set_to_counts: argument 'tokens' must be codes in 0..{num_codes - 1}, "
            f"got {int(tokens.min())}..{int(tokens.max())}"
        )
    counts = torch.zeros(*tokens.shape[:-1], num_codes, dtype=torch.int32, device=tokens.device)
    return counts.scatter_add_(-1, tokens.long(), torch.ones_like(tokens, dtype=torch.int32))


def counts_to_set(counts: Tensor) -> Tensor:
    """Counts [B, K] with one sum M as sets int64 [B, M], the codes of each ascending.

    Raises ValueError on a negative count or rows of unequal sums.
    """
    if counts.ndim != 2 or counts.is_floating_point():
        raise ValueError(
            f"counts_to_set: argument 'counts' must be integers of shape (B, K), got {tuple(counts.shape)}"
        )
    sums = counts.sum(1)
    if counts.numel() and (int(counts.min()) < 0 or not bool((sums == sums[0]).all())):
        raise ValueError("counts_to_set: argument 'counts' must be >= 0 with rows of one sum")
    codes = torch.arange(counts.shape[1], device=counts.device).repeat(len(counts))
    return codes.repeat_interleave(counts.reshape(-1).long()).view(len(counts), -1)


class Quantized(NamedTuple):
    """What the quantiser gives: vectors [..., D] with the straight-through gradient, codes int64 [...], its loss."""

    vectors: Tensor
    codes: Tensor
    loss: Tensor


class VectorQuantizer(nn.Module):
    """Unit vectors to the nearest of K unit codes (VQ-VAE, arXiv 1711.00937; normalised as in arXiv 2110.04627).

    In training the codes are running means of the vectors that they were given; a code that has had less than a
    hundredth of its share for long starts anew at a vector of the batch.

    Args:
        num_codes, dim: K and D.
        decay: of the running means.
        commitment: weight of the vectors' distance to their codes in the loss.
    """

    codebook: Tensor
    usage: Tensor
    sums: Tensor

    def __init__(self, num_codes: int, dim: int, decay: float = 0.99, commitment: float = 0.25) -> None:
        super().__init__()
        self.decay, self.commitment = decay, commitment
        start = functional.normalize(torch.randn(num_codes, dim), dim=-1)
        self.register_buffer("codebook", start)
        self.register_buffer("usage", torch.ones(num_codes))
        self.register_buffer("sums", start.clone())

    def forward(self, vectors: Tensor) -> Quantized:
        """Quantises vectors [..., D]."""
        unit = functional.normalize(vectors.float(), dim=-1)
        flat = unit.detach().reshape(-1, unit.shape[-1])
        with torch.autocast(vectors.device.type, enabled=False):
            codes = (flat @ self.codebook.T).argmax(1)
        found = self.codebook[codes].view_as(unit)
        loss = self.commitment * (unit - found).square().sum(-1).mean()
        if self.training:
            self._learn(flat, codes)
        return Quantized(unit + (found - unit).detach(), codes.view(unit.shape[:-1]), loss)

    @torch.no_grad()
    def _learn(self, flat: Tensor, codes: Tensor) -> None:
        count = len(self.codebook)
        given = flat.new_zeros(count, 1 + flat.shape[1])
        given.index_add_(0, codes, torch.cat([flat.new_ones(len(flat), 1), flat], 1))
        fresh = flat[torch.randint(len(flat), (count,), device=flat.device)]
        if dist.is_initialized():
            dist.all_reduce(given)
            dist.broadcast(fresh, 0)
        self.usage.lerp_(given[:, 0], 1 - self.decay)
        self.sums.lerp_(given[:, 1:], 1 - self.decay)
        dead = (self.usage < 0.01 * self.usage.mean())[:, None]
        self.sums.copy_(torch.where(dead, fresh, self.sums))
        self.usage.copy_(torch.where(dead[:, 0], 1, self.usage))
        self.codebook.copy_(functional.normalize(self.sums, dim=-1))


@dataclasses.dataclass
class TokenizerOutput(BaseOutput):
    """sample [B, C, H, W] in 0..1; codes int64 [B, M]; loss of the quantiser."""

    sample: Tensor
    codes: Tensor
    loss: Tensor


class ImageTokenizer(ModelMixin, ConfigMixin):
    """Images to M codes and back.

    Args:
        sample_size, patch_size, in_channels: the image is [in_channels, sample_size, sample_size].
        tokens: "set": the codes of `num_tokens` registers, without order; "grid": one code a patch, in raster order
            (num_tokens is then the number of patches, whatever is given).
        num_codes, code_dim: the codebook; 4096 and 12 in TokenSet, 16384 and 8 in LlamaGen.
        hidden_size, depth, num_heads: of the encoder's and the decoder's blocks.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 28,
        patch_size: int = 4,
        in_channels: int = 1,
        tokens: Literal["set", "grid"] = "set",
        num_tokens: int = 32,
        num_codes: int = 256,
        code_dim: int = 12,
        hidden_size: int = 128,
        depth: int = 3,
        num_heads: int = 4,
    ) -> None:
        super().__init__()
        if sample_size % patch_size:
            raise ValueError(
                f"ImageTokenizer: argument 'sample_size' must be a multiple of {patch_size}, got {sample_size}"
            )
        if tokens not in ("set", "grid"):
            raise ValueError(f"ImageTokenizer: argument 'tokens' must be 'set' or 'grid', got {tokens!r}")
        side = sample_size // patch_size
        patch = patch_size**2 * in_channels
        self.side, self.length = side, num_tokens if tokens == "set" else side * side
        self.embed, self.unembed = nn.Linear(patch, hidden_size), nn.Linear(hidden_size, patch)
        self.to_code, self.from_code = nn.Linear(hidden_size, code_dim), nn.Linear(code_dim, hidden_size)
        self.quantizer = VectorQuantizer(num_codes, code_dim)
        self.encoder = nn.ModuleList(Block(hidden_size, num_heads) for _ in range(depth))
        self.decoder = nn.ModuleList(Block(hidden_size, num_heads) for _ in range(depth))
        self.norm_encoder, self.norm_decoder = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        self.registers = nn.Parameter(torch.randn(num_tokens, hidden_size) * 0.02) if tokens == "set" else None
        self.mask = nn.Parameter(torch.randn(hidden_size) * 0.02) if tokens == "set" else None
        self.register_buffer("places", sincos_grid(hidden_size, side, side), persistent=False)

    def encode(self, images: Tensor) -> Quantized:
        """The codes [B, M] of images [B, C, H, W] in 0..1, and their vectors."""
        c = self.config
        if images.ndim != 4 or tuple(images.shape[1:]) != (c.in_channels, c.sample_size, c.sample_size):
            raise ValueError(
                f"ImageTokenizer: argument 'images' must have shape (B, {c.in_channels}, {c.sample_size}, "
                f"{c.sample_size}), got {tuple(images.shape)}"
            )
        x = functional.pixel_unshuffle(images * 2 - 1, c.patch_size).flatten(2).transpose(1, 2)
        x = self.embed(x) + self.places
        if self.registers is not None:
            x = torch.cat([self.registers.expand(len(x), -1, -1), x], 1)
        for block in self.encoder:
            x, _ = block(x)
        return self.quantizer(self.to_code(self.norm_encoder(x[:, : self.length])))

    def decode_vectors(self, vectors: Tensor) -> Tensor:
        """Images [B, C, H, W] (not clipped) from the codes' vectors [B, M, code_dim]."""
        x = self.from_code(vectors)
        if self.mask is None:
            x = x + self.places
        else:
            x = torch.cat([(self.mask + self.places).expand(len(x), -1, -1), x], 1)
        for block in self.decoder:
            x, _ = block(x)
        x = self.unembed(self.norm_decoder(x[:, : self.side**2]))
        x = x.transpose(1, 2).reshape(len(x), -1, self.side, self.side)
        return (functional.pixel_shuffle(x, self.config.patch_size) + 1) / 2

    def decode(self, codes: Tensor) -> Tensor:
        """Images [B, C, H, W] in 0..1 of codes int [B, M]. A set is sorted first: its order changes no bit."""
        codes = codes.long() if self.registers is None else codes.long().sort(1).values
        return self.decode_vectors(self.quantizer.codebook[codes]).clamp(0, 1)

    def forward(self, images: Tensor) -> TokenizerOutput:
        """Reconstructs images [B, C, H, W] in 0..1."""
        found = self.encode(images)
        return TokenizerOutput(sample=self.decode_vectors(found.vectors), codes=found.codes, loss=found.loss)


def tokenizer_loss() -> Callable[[Step], dict[str, Tensor]]:
    """Squared error of the reconstruction plus the quantiser's loss; batches have "images" in 0..1.

    TokenSet adds a discriminator and the proxy codes of MaskGIT, which this loss does without.
    """

    def loss(step: Step) -> dict[str, Tensor]:
        images = step.batch["images"]
        out = step.model(images)
        error = functional.mse_loss(out.sample.float(), images)
        return {"loss": error + 0.1 * out.loss, "error": error, "quantizer": out.loss}

    return loss
