"""The mixture-of-experts layer of diffusion transformers with four routers, and its torch operators.

Token choice, expert choice, Expert Race (arXiv 2503.16057) and DiffMoE (arXiv 2503.14487) as one layer, `MoE`. Its
operators are core_diffusion::{moe_topk, moe_experts} with their backward operator; no shape depends on data, so that
`torch.compile(fullgraph=True)` takes it whole.
"""

from __future__ import annotations

import itertools
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from core_registry import torchlib
from torch import Tensor, nn
from torch.nn import functional

from . import _core_diffusion as _C

__all__ = ["MoE", "MoEOutput", "distributed_topk_mask", "expert_ffn", "similarity_loss", "topk_mask"]

# ---- selection ----------------------------------------------------------------------------------------------


def _fake_topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return scores.new_empty(scores.shape, dtype=torch.bool), scores.new_empty(scores.shape[0])


def _topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    mask, kth = _fake_topk(scores, k)
    _C.topk_mask(scores, k, mask, kth)
    return mask, kth


_moe_topk = torchlib.define(
    "core_diffusion", "moe_topk(Tensor scores, SymInt k) -> (Tensor, Tensor)", _topk, _fake_topk
)


def topk_mask(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`core_diffusion.topk_mask` of a float32 or float64 tensor [..., C]."""
    mask, kth = _moe_topk(scores.reshape(scores.shape[:-1].numel(), scores.shape[-1]), k)
    return mask.view(scores.shape), kth.view(scores.shape[:-1])


# ---- experts ------------------------------------------------------------------------------------------------
# On CUDA, and on CPUs in float32, the products are ours, all experts in one call, and the host waits for nothing.
# Elsewhere they are torch's, expert after expert over gathered rows. Around them nothing is materialised but the values
# before the activation.


def _ours(x: Tensor) -> bool:
    return x.device.type == "cuda" or (x.device.type == "cpu" and x.dtype == torch.float32)


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.contiguous() for t in tensors]


def _act(x: Tensor, activation: str, out: Tensor) -> Tensor:
    if activation == "silu":
        return torch.ops.aten.silu.out(x, out=out)
    return torch.ops.aten.gelu.out(x, approximate="tanh", out=out)


def _act_backward(grad: Tensor, x: Tensor, gate: Tensor, activation: str, values: Tensor, out: Tensor) -> Tensor:
    """Writes act(x) and gate grad act'(x); returns the rows' sums of grad act(x)."""
    shares = torch.linalg.vecdot(grad, _act(x, activation, values))
    torch.mul(grad, gate[:, None], out=out)
    if activation == "silu":
        torch.ops.aten.silu_backward.grad_input(out, x, grad_input=out)
    else:
        torch.ops.aten.gelu_backward.grad_input(out, x, approximate="tanh", grad_input=out)
    return shares


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    return torch.mm(x, weight.t(), out=out) if bias is None else torch.addmm(bias, x, weight.t(), out=out)


def _largest(bounds: list[int]) -> int:
    return max((end - begin for begin, end in itertools.pairwise(bounds)), default=0)


def _fake_experts(
    x: Tensor,
    mask: Tensor,
    gates: Tensor,
    up: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    activation: str,
    pairs: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    offsets = mask.new_empty(mask.shape[1] + 1, dtype=torch.int64)
    tokens = mask.new_empty(pairs, dtype=torch.int64)
    kept = (pairs // 128 + up.shape[0]) * 128 if x.device.type == "cuda" else pairs  # whole tiles for each expert
    return x.new_empty(x.shape), offsets, tokens, x.new_empty(kept if keep else 0, up.shape[1])


def _experts(
    x: Tensor,
    mask: Tensor,
    gates: Tensor,
    up: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    activation: str,
    pairs: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out, offsets, tokens, hidden = _fake_experts(x, mask, gates, up, up_bias, down, down_bias, activation, pairs, keep)
    _C.moe_route(mask, offsets, tokens)
    if _ours(x):
        if x.device.type == "cuda":
            x, gates, up, up_bias, down, down_bias = _contiguous(x, gates, up, up_bias, down, down_bias)
        stored = hidden if keep else None
        _C.expert_ffn(x, tokens, offsets, gates, up, up_bias, down, down_bias, activation, stored, out)
        return out, offsets, tokens, hidden
    bounds = offsets.tolist()
    out = torch.zeros_like(x, memory_format=torch.contiguous_format)
    most, (inner, width) = _largest(bounds), up.shape[1:]
    rows, shares, wide = x.new_empty(most, width), x.new_empty(most, width), x.new_empty(most, inner)
    for e, (begin, end) in enumerate(itertools.pairwise(bounds)):
        if begin == end:
            continue
        n, which = end - begin, tokens[begin:end]
        torch.index_select(x, 0, which, out=rows[:n])
        h = hidden[begin:end] if keep else wide[:n]
        _linear(rows[:n], up[e], None if up_bias is None else up_bias[e], h)
        _act(h, activation, wide[:n])
        y = _linear(wide[:n], down[e], None if down_bias is None else down_bias[e], shares[:n])
        out.index_add_(0, which, y.mul_(gates[which, e, None]))
    hidden[bounds[-1] :] = 0
    return out, offsets, tokens, hidden


def _fake_gradients(
    grad: Tensor,
    x: Tensor,
    gates: Tensor,
    up: Tensor,
    down: Tensor,
    down_bias: Tensor | None,
    offsets: Tensor,
    tokens: Tensor,
    hidden: Tensor,
    activation: str,
    biased: bool,
) -> list[Tensor]:
    of = [x, gates, up, up[:, :, 0] if biased else up[:0, :, 0], down, down[:, :, 0] if biased else down[:0, :, 0]]
    return [t.new_empty(t.shape) for t in of]


def _gradients(
    grad: Tensor,
    x: Tensor,
    gates: Tensor,
    up: Tensor,
    down: Tensor,
    down_bias: Tensor | None,
    offsets: Tensor,
    tokens: Tensor,
    hidden: Tensor,
    activation: str,
    biased: bool,
) -> list[Tensor]:
    outputs = _fake_gradients(grad, x, gates, up, down, down_bias, offsets, tokens, hidden, activation, biased)
    dx, dgates, dup, dup_bias, ddown, ddown_bias = outputs
    if _ours(x):
        if x.device.type == "cuda":
            grad, x, gates, up, down, down_bias = _contiguous(grad, x, gates, up, down, down_bias)
        of_up, of_down = (dup_bias, ddown_bias) if biased else (None, None)
        inputs = (grad, x, tokens, offsets, gates, up, down, down_bias, hidden)
        _C.expert_ffn_backward(*inputs, activation, dx, dgates, dup, of_up, ddown, of_down)
        return outputs
    dx.zero_()
    dgates.zero_()
    bounds = offsets.tolist()
    most, (inner, width) = _largest(bounds), up.shape[1:]
    rows, grads, shares = (x.new_empty(most, width) for _ in range(3))
    values, slopes, hiddens = (x.new_empty(most, inner) for _ in range(3))
    for e, (begin, end) in enumerate(itertools.pairwise(bounds)):
        if begin == end:
            for d in (dup, dup_bias, ddown, ddown_bias) if biased else (dup, ddown):
                d[e].zero_()
            continue
        n, which, h = end - begin, tokens[begin:end], hidden[begin:end]
        torch.index_select(x, 0, which, out=rows[:n])
        dy, a, da, dh, gate = grads[:n], values[:n], slopes[:n], hiddens[:n], gates[which, e]
        torch.index_select(grad, 0, which, out=dy)
        torch.mm(dy, down[e], out=da)
        share = _act_backward(da, h, gate, activation, a, dh)
        dgates[which, e] = share if down_bias is None else share + dy @ down_bias[e]
        torch.mm(dy.mul_(gate[:, None]).t(), a, out=ddown[e])
        torch.mm(dh.t(), rows[:n], out=dup[e])
        if biased:
            torch.sum(dy, 0, out=ddown_bias[e])
            torch.sum(dh, 0, out=dup_bias[e])
        dx.index_add_(0, which, torch.mm(dh, up[e], out=shares[:n]))
    return outputs


_experts_backward = torchlib.define(
    "core_diffusion",
    "moe_experts_backward(Tensor grad, Tensor x, Tensor gates, Tensor up, Tensor down, Tensor? down_bias, "
    "Tensor offsets, Tensor tokens, Tensor hidden, str activation, bool biased) -> Tensor[]",
    _gradients,
    _fake_gradients,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, _, gates, up, up_bias, down, down_bias, activation, _, _ = inputs
    ctx.activation, ctx.biased = activation, (up_bias is not None, down_bias is not None)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # else zeros of the size of the stored values
    ctx.save_for_backward(x, gates, up, down, down_bias, *output[1:])


def _of_experts(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 10
    of_up, of_down = ctx.biased
    biased = of_up or of_down
    dx, dgates, dup, dup_bias, ddown, ddown_bias = _experts_backward(grad, *ctx.saved_tensors, ctx.activation, biased)
    return (dx, None, dgates, dup, dup_bias if of_up else None, ddown, ddown_bias if of_down else None, *[None] * 3)


_moe_experts = torchlib.define(
    "core_diffusion",
    "moe_experts(Tensor x, Tensor mask, Tensor gates, Tensor up, Tensor? up_bias, Tensor down, Tensor? down_bias, "
    "str activation, SymInt pairs, bool keep) -> (Tensor, Tensor, Tensor, Tensor)",
    _experts,
    _fake_experts,
    _of_experts,
    _save,
)


def expert_ffn(
    x: Tensor,
    mask: Tensor,
    gates: Tensor,
    up: Tensor,
    down: Tensor,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    activation: Literal["gelu_tanh", "silu"] = "gelu_tanh",
    pairs: int | None = None,
) -> Tensor:
    """`core_diffusion.expert_ffn` of tensors."""
    if activation not in ("gelu_tanh", "silu"):
        raise ValueError(f"expert_ffn: argument 'activation' must be 'gelu_tanh' or 'silu', got {activation!r}")
    if x.ndim != 2 or up.ndim != 3:
        raise ValueError(f"expert_ffn: 'x' and 'up' must have 2 and 3 axes, got {x.ndim} and {up.ndim}")
    (count, width), (experts, inner) = x.shape, up.shape[:2]
    wanted = {
        "mask": (mask, (count, experts)),
        "gates": (gates, (count, experts)),
        "up": (up, (experts, inner, width)),
        "up_bias": (up_bias, (experts, inner)),
        "down": (down, (experts, width, inner)),
        "down_bias": (down_bias, (experts, width)),
    }
    for name, (tensor, shape) in wanted.items():
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(f"expert_ffn: argument '{name}' must have shape {shape}, got {tuple(tensor.shape)}")
        dtype = torch.bool if name == "mask" else x.dtype
        if tensor.dtype != dtype:
            raise TypeError(f"expert_ffn: argument '{name}' must be {dtype}, got {tensor.dtype}")
    floats = (x, gates, up, up_bias, down, down_bias)
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in floats)
    pairs = count * experts if pairs is None else pairs
    out: Tensor = _moe_experts(x, mask, gates, up, up_bias, down, down_bias, activation, pairs, keep)[0]
    return out


# ---- selection over processes -------------------------------------------------------------------------------

_DIGIT = 11


def _ordered(scores: Tensor) -> Tensor:
    """int64 in 0..2^32-1 in the order of the float32 scores; -0 and 0 have one."""
    bits = (scores + 0.0).view(torch.int32).to(torch.int64)
    return torch.where(bits < 0, -bits - 1, bits + 2**31)


def distributed_topk_mask(scores: Tensor, k: int, group: dist.ProcessGroup | None = None) -> tuple[Tensor, Tensor]:
    """Marks the k largest of the scores of all processes of a group: exactly k, of equals those of lower ranks first.

    A radix selection of which only the histograms travel (three all-reduces of 2048 counts and one gather of a number),
    so that the cost does not grow with the number of processes as gathering all scores does. Nothing waits for the
    device. Each process may hold another number of scores.

    Args:
        scores: float32 [N] of this process, any value but NaN.
        k: how many to take over all processes, in 1..their number.

    Returns:
        The mask of this process, bool [N], and the k-th largest score of all, [], the same on each process.

    Raises:
        TypeError: another dtype; ValueError: more than one axis, or k below 1.
    """
    if scores.dtype != torch.float32:
        raise TypeError(f"distributed_topk_mask: argument 'scores' must be torch.float32, got {scores.dtype}")
    if scores.ndim != 1:
        raise ValueError(f"distributed_topk_mask: argument 'scores' must have 1 axis, got {scores.ndim}")
    if k < 1:
        raise ValueError(f"distributed_topk_mask: argument 'k' must be at least 1, got {k}")
    keys = _ordered(scores)
    found = torch.zeros((), dtype=torch.int64, device=scores.device)  # the leading digits of the k-th key
    left = torch.full_like(found, k)  # how many to take among the keys that begin with them
    for shift in (33 - _DIGIT, 33 - 2 * _DIGIT, 0):
        inside = keys >> (shift + _DIGIT) == found
        counts = torch.zeros(2**_DIGIT, dtype=torch.int64, device=scores.device)
        counts.scatter_add_(0, keys >> shift & 2**_DIGIT - 1, inside.to(torch.int64))
        dist.all_reduce(counts, group=group)
        above = counts.sum() - counts.cumsum(0)  # how many have a larger digit
        digit = (above >= left).sum()
        left = left - above[digit.clamp(max=2**_DIGIT - 1)]
        found = found << _DIGIT | digit
    equal = keys == found
    ranks = torch.zeros(dist.get_world_size(group), dtype=torch.int64, device=scores.device)
    dist.all_gather_into_tensor(ranks, equal.sum()[None], group=group)
    left = left - ranks[: dist.get_rank(group)].sum()
    bits = torch.where(found < 2**31, -found - 1, found - 2**31)
    return (keys > found) | (equal & (equal.cumsum(0) <= left)), bits.to(torch.int32).view(torch.float32)


# ---- the layer ----------------------------------------------------------------------------------------------


def similarity_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """The router similarity loss of Expert Race (arXiv 2503.16057, section 4.3): experts that answer alike cost.

    With P the softmax of the logits over experts and M the mask: (1/T) sum of W_ij (P'P)_ij, where W is M'M scaled so
    that its diagonal has mean 1 (times E) and its rest likewise. An off-diagonal without any pair weighs nothing.

    Args:
        logits, mask: [T, E] and bool [T, E].

    Returns:
        A number; 1 where all tokens are spread evenly.
    """
    tokens, experts = logits.shape
    probs, chosen = logits.softmax(1), mask.to(logits.dtype)
    together, similar = chosen.T @ chosen, probs.T @ probs
    diagonal = together.diagonal()
    own = experts * diagonal / diagonal.sum().clamp(min=1)
    rest = together - diagonal.diag()
    weights = (experts * experts - experts) * rest / rest.sum().clamp(min=1) + own.diag()
    return (weights * similar).sum() / max(tokens, 1)


class MoEOutput(NamedTuple):
    """What the layer returns."""

    hidden_states: Tensor
    """[B, L, D]."""
    mask: Tensor
    """The selection, bool [B, L, E]."""
    router_loss: Tensor
    """The router's own loss: similarity (token choice, race), the capacity predictor's entropy (DiffMoE), or 0."""
    layer_loss: Tensor
    """Mean squared error of the target head; 0 without one or without target."""


class MoE(nn.Module):
    """A mixture of feed-forward experts in place of a transformer block's feed-forward network.

    Routers differ in the rows in which the best scores are taken, `top_k` experts a token on average:

    | router | rows | gate | in eval mode |
    |---|---|---|---|
    | token | each token's experts | softmax | the same |
    | expert | each image's tokens, for each expert | softmax | the same |
    | race | all tokens and experts of the batch | the logit itself | logit >= threshold |
    | diffmoe | all tokens of the batch, for each expert | softmax | by the capacity predictor |

    The thresholds of race and DiffMoE are running means (0.95) of the k-th largest value in training, the first one
    taken as it is; so in eval mode an image's result does not depend on its batch. DiffMoE then selects where the
    predictor exceeds the threshold; with `published_inference` it only counts these tokens for each expert and takes
    as many by gate score, as the published code does, which depends on the batch.

    Args:
        dim, hidden_dim, num_experts: D, H and E.
        router: "token", "expert", "race" or "diffmoe".
        top_k: experts a token; for the routers other than "token" any number > 0 up to E.
        activation: "gelu_tanh" or "silu".
        target_dim: size of the training target a token, for the per-layer regularisation (Race); no head if absent.
        published_inference: see above.
        group: race only: the process group over whose batches the race goes (`distributed_topk_mask`); each
            process has the same number of tokens. For DiffMoE its thresholds are averaged over it.

    Raises ValueError on values out of range.
    arXiv 2503.16057 (sections 3 and 4), arXiv 2503.14487 (section 3).
    """

    threshold: Tensor
    updates: Tensor

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        num_experts: int,
        router: Literal["token", "expert", "race", "diffmoe"] = "race",
        top_k: float = 1,
        activation: Literal["gelu_tanh", "silu"] = "gelu_tanh",
        target_dim: int | None = None,
        published_inference: bool = False,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        if router not in ("token", "expert", "race", "diffmoe"):
            raise ValueError(f"MoE: argument 'router' must be 'token', 'expert', 'race' or 'diffmoe', got {router!r}")
        if not 0 < top_k <= num_experts or (router == "token" and top_k != int(top_k)):
            kind = "a whole number" if router == "token" else "a number"
            raise ValueError(f"MoE: argument 'top_k' must be {kind} in (0, {num_experts}], got {top_k}")
        if activation not in ("gelu_tanh", "silu"):
            raise ValueError(f"MoE: argument 'activation' must be 'gelu_tanh' or 'silu', got {activation!r}")
        self.router, self.num_experts = router, num_experts
        self.top_k = int(top_k) if top_k == int(top_k) else top_k
        self.activation, self.published_inference, self.group = activation, published_inference, group
        self.up = nn.Parameter(torch.empty(num_experts, hidden_dim, dim).uniform_(-1, 1) * dim**-0.5)
        self.up_bias = nn.Parameter(torch.zeros(num_experts, hidden_dim))
        self.down = nn.Parameter(torch.empty(num_experts, dim, hidden_dim).uniform_(-1, 1) * hidden_dim**-0.5)
        self.down_bias = nn.Parameter(torch.zeros(num_experts, dim))
        self.trunk = nn.Sequential(nn.Linear(dim, dim), nn.GELU()) if router == "race" else nn.Identity()
        self.gate = nn.Linear(dim, num_experts, bias=router == "race")
        if router != "race":
            nn.init.normal_(self.gate.weight, std=0.006)
        self.target = None if target_dim is None else nn.Linear(dim, target_dim)
        self.capacity = (
            nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, num_experts)) if router == "diffmoe" else None
        )
        if router in ("race", "diffmoe"):
            self.register_buffer("threshold", torch.zeros(1 if router == "race" else num_experts))
            self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def _share(self, count: int, among: int = 1) -> int:
        """`top_k` times `count` pairs, divided and rounded down."""
        if isinstance(self.top_k, int):
            return count * self.top_k // among  # int() of it would tie a compiled graph to one batch size
        return int(count * self.top_k / among)

    def _observe(self, kth: Tensor) -> None:
        """Moves the threshold towards the k-th largest value."""
        moved = torch.lerp(self.threshold.float(), kth, 0.05)
        self.threshold.copy_(torch.where(self.updates == 0, kth, moved))
        self.updates.add_(1)

    def _race(self, logits: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, int | None]:
        if not self.training:
            return scores >= self.threshold, logits.new_zeros(()), None
        taken = self._share(logits.shape[0])
        if self.group is None:
            mask, kth = topk_mask(scores.reshape(-1), taken)
        else:
            everywhere = taken * dist.get_world_size(self.group)
            mask, kth = distributed_topk_mask(scores.reshape(-1), everywhere, self.group)
        if taken > 0:
            self._observe(kth)
        mask = mask.view(logits.shape)
        return mask, similarity_loss(logits, mask), taken if self.group is None else None

    def _diffmoe(self, x: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, int | None]:
        assert self.capacity is not None
        wanted = self.capacity(x.detach())
        chance = wanted.detach().float().sigmoid()
        if self.training:
            taken = self._share(x.shape[0], self.num_experts)
            mask = topk_mask(scores.T.contiguous(), taken)[0].T
            if taken > 0:
                kth = topk_mask(chance.T.contiguous(), taken)[1]
                if self.group is not None:
                    dist.all_reduce(kth, group=self.group)
                    kth = kth / dist.get_world_size(self.group)
                self._observe(kth)
            loss = functional.binary_cross_entropy_with_logits(wanted, mask.to(wanted.dtype))
            return mask, loss, taken * self.num_experts
        mask = chance > self.threshold
        if self.published_inference:
            order = scores.argsort(dim=0, descending=True, stable=True)
            ranks = torch.arange(x.shape[0], device=x.device)[:, None]
            mask = torch.zeros_like(mask).scatter_(0, order, ranks < mask.sum(0))
        return mask, wanted.new_zeros(()), None

    def _experts(self, x: Tensor, mask: Tensor, gates: Tensor, pairs: int | None) -> Tensor:
        """The experts in autocast's dtype where that is on."""
        device, dtype = x.device.type, x.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        x, gates, up, down = x.to(dtype), gates.to(dtype), self.up.to(dtype), self.down.to(dtype)
        up_bias, down_bias = self.up_bias.to(dtype), self.down_bias.to(dtype)
        return expert_ffn(x, mask, gates, up, down, up_bias, down_bias, self.activation, pairs)

    def forward(self, hidden_states: Tensor, target: Tensor | None = None) -> MoEOutput:
        """Routes and transforms [B, L, D]; `target` [B, L, target_dim] is the model's final training target.

        Raises ValueError on another shape, and on a target without target head.
        """
        if hidden_states.ndim != 3 or hidden_states.shape[2] != self.up.shape[2]:
            raise ValueError(
                f"MoE: argument 'hidden_states' must have shape (B, L, {self.up.shape[2]}), "
                f"got {tuple(hidden_states.shape)}"
            )
        batch, length, dim = hidden_states.shape
        x = hidden_states.reshape(batch * length, dim)
        features = self.trunk(x)
        logits = self.gate(features)
        gates = logits if self.router == "race" else logits.softmax(1)
        scores = gates.detach().float()
        if self.router == "race":
            mask, loss, pairs = self._race(logits, scores)
        elif self.router == "diffmoe":
            mask, loss, pairs = self._diffmoe(x, scores)
        elif self.router == "token":
            mask, pairs = topk_mask(scores, self._share(1))[0], self._share(x.shape[0])
            loss = similarity_loss(logits, mask)
        else:
            taken = self._share(length, self.num_experts)
            by_expert = scores.view(batch, length, self.num_experts).transpose(1, 2).contiguous()
            mask = topk_mask(by_expert, taken)[0].transpose(1, 2).reshape(logits.shape)
            loss, pairs = logits.new_zeros(()), batch * self.num_experts * taken
        out = self._experts(x, mask, gates, pairs)
        layer_loss = logits.new_zeros(())
        if target is not None:
            if self.target is None:
                raise ValueError("MoE: argument 'target' needs a layer with target_dim")
            guess = self.target(features).view(batch, length, self.target.out_features)
            if target.shape != guess.shape:
                raise ValueError(
                    f"MoE: argument 'target' must have shape {tuple(guess.shape)}, got {tuple(target.shape)}"
                )
            layer_loss = functional.mse_loss(guess, target)
        return MoEOutput(out.view(hidden_states.shape), mask.view(batch, length, self.num_experts), loss, layer_loss)
