"""Coarse-to-fine token prediction (arXiv 2503.16194): an autoregressive model of clusters, a parallel one of codes.

The flat peer, an autoregressive model of the codes themselves, is `TokenTransformer` with as many tokens as codes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional

from .codebook import CoarseToFine
from .training import Step
from .transformer import Block, Cache, drop_labels

__all__ = ["CoarseToFineModel", "FineTransformer", "TokenTransformer", "coarse_to_fine_loss", "draw", "token_loss"]


def draw(logits: Tensor, temperature: float = 1.0, top_k: int = 0, generator: torch.Generator | None = None) -> Tensor:
    """Tokens int64 [...] of logits [..., V]: of the top_k likeliest (0: all) at a temperature (0: the likeliest)."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    # Gumbel's way: the largest of log p + noise is drawn by p.
    noise = torch.rand(logits.shape, generator=generator, device=logits.device)
    return (logits - (-noise.clamp_min(1e-30).log()).log()).argmax(-1)


class _Body(nn.Module):
    """Embeddings of tokens, classes and places, transformer blocks, and logits."""

    def __init__(
        self, tokens: int, logits: int, length: int, dim: int, depth: int, heads: int, num_classes: int
    ) -> None:
        super().__init__()
        self.token, self.label = nn.Embedding(tokens, dim), nn.Embedding(num_classes + 1, dim)
        self.place = nn.Parameter(torch.randn(length, dim) * 0.02)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, logits)
        for module in (self.token, self.label, self.head):
            nn.init.normal_(module.weight, std=0.02)

    def forward(self, x: Tensor, caches: list[Cache] | None = None, **options: Any) -> Tensor:
        """Logits [B, L, V] of x [B, L, D]; `options` of the blocks."""
        for i, block in enumerate(self.blocks):
            x, _ = block(x, cache=None if caches is None else caches[i], **options)
        return self.head(self.norm(x))


class TokenTransformer(ModelMixin, ConfigMixin):
    """A class-conditional autoregressive transformer over sequences of tokens.

    Args:
        num_tokens, length: the tokens are 0..num_tokens - 1; a sequence has `length` of them.
        hidden_size, depth, num_heads: of the blocks.
        num_classes: classes; the label `num_classes` stands for none.
        class_dropout_prob: share of labels dropped in training, for guidance.
    """

    @register_to_config
    def __init__(
        self,
        num_tokens: int,
        length: int,
        hidden_size: int = 256,
        depth: int = 6,
        num_heads: int = 4,
        num_classes: int = 10,
        class_dropout_prob: float = 0.1,
    ) -> None:
        super().__init__()
        self.body = _Body(num_tokens, num_tokens, length, hidden_size, depth, num_heads, num_classes)

    def forward(self, tokens: Tensor, class_labels: Tensor) -> Tensor:
        """Logits [B, L, V] of each token given the class and the tokens before it; tokens int64 [B, L]."""
        body, c = self.body, self.config
        labels = drop_labels(class_labels, c.num_classes, c.class_dropout_prob, self.training)
        x = torch.cat([body.label(labels)[:, None], body.token(tokens[:, :-1])], 1)
        return body(x + body.place, causal=True)

    @torch.no_grad()
    def generate(
        self,
        class_labels: Tensor,
        temperature: float = 1.0,
        top_k: int = 0,
        guidance_scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Sequences int64 [B, L] of the classes int64 [B], token by token over cached keys and values.

        guidance_scale: 1 is none; otherwise logits without class + scale (with - without).
        """
        c, body, guides = self.config, self.body, guidance_scale != 1
        labels = torch.cat([class_labels, torch.full_like(class_labels, c.num_classes)]) if guides else class_labels
        shape = (len(labels), c.num_heads, c.length, c.hidden_size // c.num_heads)
        like = body.head.weight
        caches = [Cache(like.new_zeros(shape), like.new_zeros(shape)) for _ in body.blocks]
        x, drawn = body.label(labels)[:, None], []
        for at in range(c.length):
            logits = body(x + body.place[at], caches, at=at)[:, -1]
            if guides:
                given, free = logits.chunk(2)
                logits = free + guidance_scale * (given - free)
            drawn.append(draw(logits, temperature, top_k, generator))
            x = body.token(drawn[-1].repeat(2) if guides else drawn[-1])[:, None]
        return torch.stack(drawn, 1)


class FineTransformer(nn.Module):
    """All codes at once from all clusters, with attention both ways; logits outside of a place's cluster are -inf."""

    coarse_of: Tensor

    def __init__(
        self, coarse_of: Tensor, clusters: int, length: int, dim: int, depth: int, heads: int, classes: int
    ) -> None:
        super().__init__()
        self.register_buffer("coarse_of", coarse_of)
        self.body = _Body(clusters, len(coarse_of), length, dim, depth, heads, classes)

    def forward(self, coarse: Tensor, class_labels: Tensor) -> Tensor:
        """Logits [B, L, K] of the codes at clusters int64 [B, L]."""
        body = self.body
        logits = body(body.token(coarse) + body.place + body.label(class_labels)[:, None])
        return logits.masked_fill(coarse[..., None] != self.coarse_of, -torch.inf)


class CoarseToFineModel(ModelMixin, ConfigMixin):
    """Both stages of coarse-to-fine prediction.

    Args:
        num_codes, num_clusters: K codes in as many clusters; 16384 and 512 in the paper.
        length: tokens of an image.
        hidden_size, num_heads: of both stages.
        depth, fine_depth: blocks of the autoregressive and of the parallel stage.
        num_classes, class_dropout_prob: see `TokenTransformer`.

    The clusters themselves, `set_clusters`, are saved with the weights.
    """

    @register_to_config
    def __init__(
        self,
        num_codes: int,
        num_clusters: int,
        length: int,
        hidden_size: int = 256,
        depth: int = 6,
        fine_depth: int = 3,
        num_heads: int = 4,
        num_classes: int = 10,
        class_dropout_prob: float = 0.1,
    ) -> None:
        super().__init__()
        self.first = TokenTransformer(
            num_clusters, length, hidden_size, depth, num_heads, num_classes, class_dropout_prob
        )
        clusters = torch.arange(num_codes) % num_clusters
        self.second = FineTransformer(
            clusters, num_clusters, length, hidden_size, fine_depth, num_heads, num_classes
        )  # fmt: skip

    def set_clusters(self, levels: CoarseToFine) -> None:
        """Takes the clusters of the codes. ValueError: another number of codes or clusters."""
        sizes = levels.num_fine, levels.num_coarse
        if sizes != (self.config.num_codes, self.config.num_clusters):
            raise ValueError(
                f"CoarseToFineModel: argument 'levels' must have {self.config.num_codes} codes in "
                f"{self.config.num_clusters} clusters, got {sizes[0]} in {sizes[1]}"
            )
        self.second.coarse_of.copy_(torch.from_numpy(levels.coarse_of))

    def forward(self, codes: Tensor, class_labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the clusters [B, L, clusters] and of the codes [B, L, K], for codes int64 [B, L]."""
        coarse = self.second.coarse_of[codes]
        return self.first(coarse, class_labels), self.second(coarse, class_labels)

    @torch.no_grad()
    def generate(
        self,
        class_labels: Tensor,
        temperature: float = 1.0,
        top_k: int = 0,
        guidance_scale: float = 1.0,
        fine_temperature: float = 1.0,
        fine_top_k: int = 0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Codes int64 [B, L] of the classes int64 [B]: clusters one after the other, then all codes at once.

        The paper needs a temperature above 1 in the first stage, and more than the best code in the second.
        """
        coarse = self.first.generate(class_labels, temperature, top_k, guidance_scale, generator)
        return draw(self.second(coarse, class_labels), fine_temperature, fine_top_k, generator)


def token_loss() -> Callable[[Step], dict[str, Tensor]]:
    """Cross-entropy of a `TokenTransformer`; batches have "codes" int64 [B, L] and "labels" [B]."""

    def loss(step: Step) -> dict[str, Tensor]:
        codes = step.batch["codes"]
        return {"loss": _entropy(step.model(codes, step.batch["labels"]), codes)}

    return loss


def coarse_to_fine_loss() -> Callable[[Step], dict[str, Tensor]]:
    """The cross-entropies of both stages of a `CoarseToFineModel`, added; batches as for `token_loss`."""

    def loss(step: Step) -> dict[str, Tensor]:
        codes = step.batch["codes"]
        coarse, fine = step.model(codes, step.batch["labels"])
        first, second = _entropy(coarse, step.plain.second.coarse_of[codes]), _entropy(fine, codes)
        return {"loss": first + second, "coarse": first, "fine": second}

    return loss


def _entropy(logits: Tensor, tokens: Tensor) -> Any:
    return functional.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten())
