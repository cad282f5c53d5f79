# mypy: disallow-subclassing-any=False, disallow-untyped-decorators=False
"""UDM-3D (arXiv 2503.15567, section 3.2): a diffusion transformer on the latent vectors of a molecule's atoms."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Spread = Callable[[Tensor], Tensor]
END = 0.9946
"""The last time of the cosine schedule, where the signal is all but gone."""
BEGIN = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Shape of a `DiT`; the defaults are the paper's (38.6 million parameters). context: properties it is told.
    qk_norm: queries and keys of length sqrt(D) each, times a learnt weight (the paper has none): long training by Muon
    diverges without."""

    latent: int = 16
    layers: int = 8
    width: int = 512
    heads: int = 8
    mlp: int = 4
    frequencies: int = 16
    context: int = 0
    qk_norm: bool = False

    def __post_init__(self) -> None:
        problems = {
            "latent": self.latent >= 1,
            "layers": 1 <= self.layers <= 1000,
            "heads": self.heads >= 1,
            "width": self.width >= 1 and self.width % max(self.heads, 1) == 0,
            "mlp": self.mlp >= 1,
            "frequencies": self.frequencies >= 1,
            "context": self.context >= 0,
        }
        for name, good in problems.items():
            if not good:
                raise ValueError(f"Config: argument '{name}' is out of range, got {getattr(self, name)!r}")


class Block(nn.Module):
    """Attention and a perceptron, both shifted, scaled and gated by the condition (adaLN-Zero)."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.heads = c.heads
        self.norm1, self.norm2 = (nn.LayerNorm(c.width, elementwise_affine=False) for _ in range(2))
        self.qkv, self.out = nn.Linear(c.width, 3 * c.width), nn.Linear(c.width, c.width)
        self.q_norm, self.k_norm = (
            nn.RMSNorm(c.width // c.heads, eps=1e-6) if c.qk_norm else nn.Identity() for _ in range(2)
        )
        self.mlp = nn.Sequential(
            nn.Linear(c.width, c.mlp * c.width), nn.GELU("tanh"), nn.Linear(c.mlp * c.width, c.width)
        )
        self.condition = nn.Sequential(nn.SiLU(), nn.Linear(c.width, 6 * c.width))

    def forward(self, x: Tensor, code: Tensor, attend: Attend, spread: Spread) -> Tensor:
        """x (..., width), code (B, width); `attend` mixes atoms, `spread` gives each its molecule's (B, 6 width)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = spread(self.condition(code)).chunk(6, -1)
        y = self.norm1(x) * (1 + scale1) + shift1
        q, k, v = self.qkv(y).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        y = attend(self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype), v).flatten(-2)
        x = x + gate1 * self.out(y)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class Packing(NamedTuple):
    """Where the atoms of molecules (B, N) lie in a list without gaps, for `DiT.forward`.

    molecule (A,) int64, which may be B and more for atoms that only fill the list; rows (B, N) int64: the atom at each
    place, where there is one; cu_seqlens int32: where each molecule begins, those that fill the list included.
    """

    molecule: Tensor
    rows: Tensor
    cu_seqlens: Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
    """Among the atoms of each molecule, q, k, v (B, N, heads, D); real (B, N)."""
    q, k, v = (y.transpose(1, 2) for y in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=real[:, None, None]).transpose(1, 2)


def packed_attention(q: Tensor, k: Tensor, v: Tensor, real: Tensor, packing: Packing) -> Tensor:
    """The same of packed atoms (A, heads, D): flash attention on CUDA in half precision, elsewhere side by side."""
    if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16):
        cu, most = packing.cu_seqlens, real.shape[1]
        out: Tensor = torch.ops.aten._flash_attention_forward(q, k, v, cu, cu, most, most, 0.0, False, False)[0]
        return out
    side_by_side = attention(q[packing.rows], k[packing.rows], v[packing.rows], real)
    return torch.zeros_like(q).index_put((packing.rows[real],), side_by_side[real])


class _Spread(torch.autograd.Function):
    """x (B, C) to the atoms of the molecules; the gradient is summed along the rows, without atomic additions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, molecule: Tensor, rows: Tensor, real: Tensor) -> Tensor:
        ctx.save_for_backward(rows, real)
        return x[molecule.clamp(max=len(x) - 1)]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, real = ctx.saved_tensors
        gradient = torch.where(real[..., None], gradients[0][rows], 0).sum(1, dtype=torch.float32)
        return gradient.to(gradients[0].dtype), None, None, None


class DiT(nn.Module):
    """Predicts the noise in latent vectors."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        c = self.config = config
        self.read, self.write = nn.Linear(c.latent, c.width), nn.Linear(c.width, c.latent)
        self.frequencies = nn.Parameter(torch.randn(c.frequencies // 2))
        self.time = nn.Sequential(
            nn.Linear(2 * (c.frequencies // 2) + 1, c.width), nn.SiLU(), nn.Linear(c.width, c.width)
        )
        if c.context:
            self.context = nn.Sequential(nn.Linear(c.context, c.width), nn.SiLU(), nn.Linear(c.width, c.width))
            self.nothing = nn.Parameter(torch.zeros(c.width))
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.norm = nn.LayerNorm(c.width, elementwise_affine=False)
        self.condition = nn.Sequential(nn.SiLU(), nn.Linear(c.width, 2 * c.width))
        for block in [*self.blocks, self]:
            nn.init.zeros_(block.condition[1].weight)
            nn.init.zeros_(block.condition[1].bias)
        nn.init.zeros_(self.write.weight)
        nn.init.zeros_(self.write.bias)

    def matrices(self) -> dict[str, int]:
        """The parameters that are hidden matrices, and of how many each consists, for `training.Trainer`."""
        pieces = {"qkv": 3, "out": 1, "mlp.0": 1, "mlp.2": 1}
        return {f"blocks.{i}.{name}.weight": n for i in range(len(self.blocks)) for name, n in pieces.items()}

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        real: Tensor,
        context: Tensor | None = None,
        given: Tensor | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """The noise (B, N, latent) in x (B, N, latent) at times t (B,), of molecules with the atoms real (B, N) bool.

        context (B, properties) where the model has some, whitened; given (B,) bool: whose context counts, all by
        default. Without context nobody's does. With a packing x and the noise are (A, latent).
        """
        angles = t[:, None] * self.frequencies * (2 * math.pi)
        code = self.time(torch.cat([t[:, None], angles.sin(), angles.cos()], -1))
        if self.config.context:
            told = self.nothing.expand(len(x), -1)
            if context is not None:
                known = self.context(context)
                told = known if given is None else torch.where(given[:, None], known, told)
            code = code + told

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attention(q, k, v, real) if packing is None else packed_attention(q, k, v, real, packing)

        def spread(y: Tensor) -> Tensor:
            if packing is None:
                return y[:, None]
            of_atoms: Tensor = _Spread.apply(y, packing.molecule, packing.rows, real)
            return of_atoms

        h = self.read(x)
        for block in self.blocks:
            h = block(h, code, attend, spread)
        shift, scale = spread(self.condition(code)).chunk(2, -1)
        return self.write(self.norm(h) * (1 + scale) + shift)


def signal(t: Tensor) -> Tensor:
    """alpha of the cosine schedule at times 0..END; the noise's share is sqrt(1 - alpha^2)."""
    s = 0.008
    return torch.cos((t + s) / (1 + s) * math.pi / 2) / math.cos(s / (1 + s) * math.pi / 2)


def noise_loss(
    model: DiT,
    x: Tensor,
    real: Tensor,
    context: Tensor | None = None,
    *,
    drop: float = 0.1,
    early: float = 1.0,
    packing: Packing | None = None,
) -> dict[str, Tensor]:
    """The mean square error of the predicted noise over atoms; x (B, N, latent), or packed (A, latent), whitened.

    Times are stratified over the batch, uniform numbers to the power of `early`: above 1 more of them have little
    noise. In training each row's context is dropped with the probability `drop`, in
    evaluation never.
    """
    size = len(real)
    t = (torch.rand(1, device=x.device) + torch.arange(size, device=x.device) / size) % 1
    t = BEGIN + (END - BEGIN) * t**early
    alpha = signal(t)
    alpha = alpha[:, None, None] if packing is None else alpha[packing.molecule.clamp(max=size - 1), None]
    noise = torch.randn_like(x)
    given = dropped(size, drop if model.training else 0.0, x.device) if context is not None else None
    found = model(alpha * x + (1 - alpha.square()).sqrt() * noise, t, real, context, given, packing)
    mine = real if packing is None else packing.molecule < size
    square = ((found.float() - noise).square().mean(-1) * mine).sum() / real.sum().clamp(min=1)
    return {"loss": square}


def dropped(size: int, drop: float, device: torch.device | str) -> Tensor:
    """Which rows keep their context: (size,) bool, each False with the probability `drop`."""
    return torch.rand(size, device=device) >= drop


def guided(model: DiT, x: Tensor, t: Tensor, real: Tensor, context: Tensor | None, w: float) -> Tensor:
    """(1 + w) eps(x, context) - w eps(x): classifier-free guidance; w = 0 the conditional, w = -1 the unconditional."""
    if context is None or w == -1:
        return model(x, t, real)
    if w == 0:
        return model(x, t, real, context)
    both = torch.cat([torch.ones(len(x), dtype=torch.bool, device=x.device), torch.zeros_like(real[:, 0])])
    eps = model(*(torch.cat([y, y]) for y in (x, t, real, context)), both)
    conditional, unconditional = eps.chunk(2)
    return (1 + w) * conditional - w * unconditional


@torch.no_grad()
def sample(
    model: DiT,
    real: Tensor,
    context: Tensor | None = None,
    *,
    steps: int = 100,
    w: float = 0.0,
    eta: float = 1.0,
    temperature: float = 0.95,
    generator: torch.Generator | None = None,
    step: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Latent vectors (B, N, latent), whitened, of molecules with the atoms real (B, N).

    Ancestral steps from END to BEGIN in equal steps of time; the last mean, without noise, is what is returned. eta 0
    is deterministic given the first noise; `temperature` scales all noise. `step` may replace the call of the model,
    (x, t) to the guided noise. Raises ValueError for settings out of range.
    """
    for name, good, value in (
        ("steps", steps >= 1, steps), ("eta", 0 <= eta <= 1, eta), ("temperature", temperature >= 0, temperature),
    ):  # fmt: skip
        if not good:
            raise ValueError(f"sample: argument '{name}' is out of range, got {value}")
    if (context is not None) != bool(model.config.context) and w != -1:
        raise ValueError(f"sample: argument 'context' must have {model.config.context} properties a row")
    call = step or (lambda x, t: guided(model, x, t, real, context, w).float())
    shape = (*real.shape, model.config.latent)
    x = torch.randn(shape, device=real.device, generator=generator) * temperature
    times = torch.linspace(END, BEGIN, steps + 1, device=real.device)
    for now, after in itertools.pairwise(times):
        eps = call(x, now.expand(len(x)))
        alpha, beta = signal(now), (1 - signal(now).square()).sqrt()
        clean = (x - beta * eps) / alpha
        if after == times[-1]:
            return clean * real[..., None]
        alpha_after = signal(after)
        left = (1 - alpha_after.square()).clamp(min=0)
        spread = eta * (left / beta.square() * (1 - (alpha / alpha_after).square())).clamp(min=0).sqrt()
        x = alpha_after * clean + (left - spread.square()).clamp(min=0).sqrt() * eps
        x = x + spread * temperature * torch.randn(shape, device=real.device, generator=generator)
    return x * real[..., None]
