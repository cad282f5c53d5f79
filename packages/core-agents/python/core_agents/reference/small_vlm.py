"""A vision-language model small enough to be trained on a processor: columns of an image, then words, one decoder.

The adapter makes four tokens of all columns together. It has the shape of LLaVA (a vision tower, an adapter, a causal
language model) and is called like a model of transformers, so that :mod:`core_agents.post_training` trains it as it
trains those. Without `pixel_values` it is a language model.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

TOKENS = 4
"""Tokens of the language model that an image becomes."""


class Block(nn.Module):
    """Attention and a feed-forward layer, each behind a norm and added."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x [B, T, dim]; mask bool [T, T], True where a position may look."""
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        drop = self.dropout if self.training else 0.0
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=drop)
        x = x + self.out(mixed.transpose(1, 2).reshape(b, t, d))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Vision(nn.Module):
    """Images [B, 3, height, width] in 0..255 to tokens [B, width / 4, dim].

    A token tells what is seen anywhere in four columns.
    """

    def __init__(self, image: tuple[int, int], dim: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        width = -(-image[1] // 4)
        self.embed = nn.Sequential(
            nn.Conv2d(3, dim // 2, 5, 2, 2), nn.GELU(), nn.Conv2d(dim // 2, dim, 3, 2, 1), nn.GELU()
        )
        for layer in self.embed:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
        self.contrast = nn.LayerNorm(dim)
        self.places = nn.Parameter(torch.randn(width, dim) * 0.5)
        self.layers = nn.ModuleList(Block(dim, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        """The tokens."""
        seen = self.embed(images.to(self.places.dtype) / 64 - 2).amax(2).transpose(1, 2)
        x = self.contrast(seen) + self.places
        for layer in self.layers:
            x = layer(x, None)
        return self.norm(x)


class SmallVLM(nn.Module):
    """Images uint8 or float [B, 3, height, width] in 0..255, one an example, stand before the words."""

    def __init__(
        self,
        vocabulary: int,
        image: tuple[int, int],
        dim: int = 64,
        vision_layers: int = 1,
        layers: int = 2,
        longest: int = 32,
        heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.vision_tower = Vision(image, dim, vision_layers, heads, dropout)
        self.multi_modal_projector = nn.Linear(-(-image[1] // 4) * dim, TOKENS * dim)
        self.embed_tokens = nn.Embedding(vocabulary, dim)
        self.places = nn.Parameter(torch.randn(longest, dim) * 0.5)
        self.layers = nn.ModuleList(Block(dim, heads, dropout) for _ in range(layers))
        self.norm, self.lm_head = nn.LayerNorm(dim), nn.Linear(dim, vocabulary)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, pixel_values: Tensor | None = None
    ) -> SimpleNamespace:
        """`logits` [B, T, vocabulary] of words [B, T]; what is filled up stands to the right and needs no mask."""
        x = self.embed_tokens(input_ids) + self.places[: input_ids.shape[1]]
        seen = 0
        if pixel_values is not None:
            seen = TOKENS
            image = self.multi_modal_projector(self.vision_tower(pixel_values).flatten(1))
            x = torch.cat([image.view(len(x), seen, -1), x], 1)
        t = x.shape[1]
        mask = torch.ones(t, t, dtype=torch.bool, device=x.device).tril()
        mask[:, :seen] = True
        for layer in self.layers:
            x = layer(x, mask)
        return SimpleNamespace(logits=self.lm_head(self.norm(x[:, seen:])))
