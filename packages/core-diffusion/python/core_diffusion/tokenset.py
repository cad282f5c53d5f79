"""TokenSet's generator (arXiv 2503.16425): a transformer over the counts of the codes, its training and its sampler.

The network predicts the law of each code's count in the data; the fixed-sum path and draws of `set_diffusion` keep the
sum of every state, in training and in sampling.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn
from torch.nn import functional

from .set_diffusion import FixedSumScheduler, fixed_sum_bridge, fixed_sum_prior
from .training import Step
from .transformer import Block, FinalLayer, TimestepEmbedding, drop_labels

__all__ = ["CountTransformer", "CountTransformerOutput", "fixed_sum_loss", "fixed_sum_path", "guided", "sample_counts"]


@dataclasses.dataclass
class CountTransformerOutput(BaseOutput):
    """sample [B, K, M + 1]: logits of each code's count."""

    sample: Tensor


class CountTransformer(ModelMixin, ConfigMixin):
    """A DiT over the K codes: each place is a count's embedding plus a learned position (TokenSet, section 3.3).

    Args:
        num_codes, num_tokens: K and M; a count is in 0..M.
        hidden_size, depth, num_heads: 384, 12 and 6 in TokenSet-S.
        num_classes: classes; the label `num_classes` stands for none. 0: no labels at all.
        class_dropout_prob: share of labels dropped in training, for guidance.
    """

    @register_to_config
    def __init__(
        self,
        num_codes: int = 256,
        num_tokens: int = 32,
        hidden_size: int = 256,
        depth: int = 8,
        num_heads: int = 4,
        num_classes: int = 10,
        class_dropout_prob: float = 0.1,
    ) -> None:
        super().__init__()
        self.count = nn.Embedding(num_tokens + 1, hidden_size)
        self.place = nn.Parameter(torch.randn(num_codes, hidden_size) * 0.02)
        nn.init.normal_(self.count.weight, std=0.02)
        self.time = TimestepEmbedding(hidden_size)
        self.label = nn.Embedding(num_classes + 1, hidden_size) if num_classes else None
        if self.label is not None:
            nn.init.normal_(self.label.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(hidden_size, num_heads, condition=True) for _ in range(depth))
        self.final = FinalLayer(hidden_size, num_tokens + 1)

    def forward(
        self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> CountTransformerOutput | tuple[Tensor]:
        """Logits for counts [B, K] at the times [B] (or a number) in 0..1, 1 the data, of the classes int64 [B].

        Raises ValueError on another shape.
        """
        if sample.ndim != 2 or sample.shape[1] != self.config.num_codes:
            raise ValueError(
                f"CountTransformer: argument 'sample' must have shape (B, {self.config.num_codes}), "
                f"got {tuple(sample.shape)}"
            )
        batch, none = len(sample), self.config.num_classes
        x = self.count(sample.long()) + self.place
        condition = self.time(1000 * torch.as_tensor(timestep, device=x.device).expand(batch))
        if self.label is not None:
            if class_labels is None:
                class_labels = torch.full((batch,), none, device=x.device)
            dropped = drop_labels(class_labels, none, self.config.class_dropout_prob, self.training)
            condition = condition + self.label(dropped)
        for block in self.blocks:
            x, _ = block(x, condition)
        logits = self.final(x, condition)
        return CountTransformerOutput(sample=logits) if return_dict else (logits,)


def fixed_sum_path(num_tokens: int) -> Callable[[dict[str, Tensor], torch.Generator], dict[str, Tensor]]:
    """What a trainer prepares for `fixed_sum_loss`: a state of the fixed-sum path at a time uniform in [0, 1).

    Adds "state" int32 [B, K] and "t" float32 [B] to batches with "counts", int32 [B, K] with the sum num_tokens.
    """

    def prepare(batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        counts = batch["counts"]
        seeds = torch.randint(2**62, (2,), generator=generator, device=counts.device).tolist()
        t = torch.rand(len(counts), generator=generator, device=counts.device, dtype=torch.float64)
        prior = fixed_sum_prior(len(counts), counts.shape[1], num_tokens, seed=seeds[0], like=counts)
        state = fixed_sum_bridge(prior, counts, t, max_count=num_tokens, seed=seeds[1])
        return {**batch, "state": state, "t": t.float()}

    return prepare


def fixed_sum_loss() -> Callable[[Step], dict[str, Tensor]]:
    """Cross-entropy of the data counts at the states of `fixed_sum_path`; "labels" too, if the model has classes."""

    def loss(step: Step) -> dict[str, Tensor]:
        batch = step.batch
        logits = step.model(batch["state"], batch["t"], batch.get("labels")).sample
        return {"loss": functional.cross_entropy(logits.flatten(0, 1).float(), batch["counts"].flatten().long())}

    return loss


def guided(with_class: Tensor, without: Tensor, scale: float) -> Tensor:
    """TokenSet's guidance on probabilities [..., C]: p_without + scale (p_with - p_without), cut at 0 and normalised.

    The laws are softmaxes of the logits. A code whose guided law would vanish keeps its law with the class.
    """
    p, q = with_class.softmax(-1), without.softmax(-1)
    mixed = (q + scale * (p - q)).clamp(min=0)
    total = mixed.sum(-1, keepdim=True)
    return torch.where(total > 0, mixed / total, p)


@torch.no_grad()
def sample_counts(
    model: CountTransformer,
    class_labels: Tensor,
    num_inference_steps: int = 25,
    guidance_scale: float = 1.0,
    top_p: float = 0.8,
    generator: torch.Generator | None = None,
    scheduler: FixedSumScheduler | None = None,
) -> Tensor:
    """Counts int32 [N, K] of the classes int64 [N], each row with the sum M.

    guidance_scale: see `guided`; 1 is none. TokenSet changes it with t by thirds; here it is one number.
    top_p: kept share of each code's law; where kept counts cannot make up the sum, the whole laws are taken.
    """
    codes, tokens, none = (model.config[name] for name in ("num_codes", "num_tokens", "num_classes"))
    if scheduler is None:
        scheduler = FixedSumScheduler(tokens, "probabilities", top_p=top_p)
    scheduler.set_timesteps(num_inference_steps)
    like = torch.empty(0, dtype=torch.int32, device=class_labels.device)
    state = fixed_sum_prior(len(class_labels), codes, tokens, generator=generator, like=like)
    unconditional = torch.full_like(class_labels, none)
    for t in scheduler.timesteps.tolist():
        if guidance_scale == 1:
            laws = model(state, t, class_labels).sample.float().softmax(-1)
        else:
            both = model(torch.cat([state, state]), t, torch.cat([class_labels, unconditional])).sample.float()
            with_class, without = both.chunk(2)
            laws = guided(with_class, without, guidance_scale)
        state = scheduler.step(laws, t, state, generator).prev_sample
    return state
