"""A vision-language model small enough to be trained on a processor: patches of an image, then words, one decoder.

It has the shape of LLaVA (a vision tower, an adapter, a causal language model) and is called like a model of
transformers, so that :mod:`core_agents.post_training` trains it as it trains those. Without `pixel_values` it is a
language model.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn


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


class SmallVLM(nn.Module):
    """Images uint8 or float [B, 3, height, width] in 0..255, one an example, stand before the words."""

    def __init__(
        self,
        vocabulary: int,
        image: tuple[int, int],
        patch: tuple[int, int],
        dim: int = 64,
        vision_layers: int = 2,
        layers: int = 2,
        longest: int = 32,
        heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.patches = (image[0] // patch[0]) * (image[1] // patch[1])
        self.vision_tower = nn.ModuleDict(
            {
                "embed": nn.Conv2d(3, dim, patch, patch),
                "layers": nn.ModuleList(Block(dim, heads, dropout) for _ in range(vision_layers)),
                "norm": nn.LayerNorm(dim),
            }
        )
        self.vision_tower.register_parameter("places", nn.Parameter(torch.randn(self.patches, dim) * 0.5))
        self.multi_modal_projector = nn.Linear(dim, dim)
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
            tower = self.vision_tower
            image = (
                tower["embed"](pixel_values.to(tower.places.dtype) / 127.5 - 1).flatten(2).transpose(1, 2)
                + tower.places
            )
            for layer in tower["layers"]:
                image = layer(image, None)
            x = torch.cat([self.multi_modal_projector(tower["norm"](image)), x], 1)
            seen = self.patches
        t = x.shape[1]
        mask = torch.ones(t, t, dtype=torch.bool, device=x.device).tril()
        mask[:, :seen] = True
        for layer in self.layers:
            x = layer(x, mask)
        return SimpleNamespace(logits=self.lm_head(self.norm(x[:, seen:])))
