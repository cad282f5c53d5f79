"""Where Gaussians are added and taken away: the rules of 3D Gaussian splatting, and those of 3DGS-MCMC."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .config import Config
from .model import Model


def _logit(p: Tensor) -> Tensor:
    return torch.log(p / (1 - p))


class Fixed:
    """Leaves the Gaussians as many as they are. Strategies are called by the trainer after the gradient and after the
    optimiser of each step."""

    def __init__(self, config: Config, extent: float, generator: torch.Generator) -> None:
        self.config, self.extent, self.generator = config, extent, generator
        self.state: dict[str, Tensor] = {}

    def observes(self, step: int) -> bool:
        """Whether `observe` is to be called at this step."""
        return False

    def penalty(self, model: Model) -> Tensor | float:
        """What is added to the loss."""
        return 0.0

    def observe(self, model: Model, meta: dict[str, Any]) -> None:
        """Sees the gradient of a picture, with the rasteriser's `meta`."""

    def _noise(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """Normal numbers, drawn on the device; what they are follows from the generator's state, which is kept."""
        seed = int(torch.randint(2**62, (), generator=self.generator))
        return torch.randn(*shape, generator=torch.Generator(device).manual_seed(seed), device=device)

    def after(self, model: Model, step: int, rate: float) -> None:
        """May change the Gaussians; `rate` is the learning rate of the means."""


class Default(Fixed):
    """Adaptive density control (arXiv 2308.04079, section 5): clone small Gaussians and split large ones where the
    derivative by their projected centre is large, prune the transparent and the huge, reset opacities now and then."""

    def observes(self, step: int) -> bool:
        """Until the refinement ends."""
        return step < self.config.refine_stop

    def observe(self, model: Model, meta: dict[str, Any]) -> None:
        """Adds up the derivative's length, in half images, over the views that see a Gaussian."""
        centres = meta["means2d"]
        gradient = centres.absgrad if self.config.absgrad else centres.grad
        across, down = (0.5 * meta[side] * meta["n_cameras"] for side in ("width", "height"))
        length = torch.hypot(gradient[..., 0] * across, gradient[..., 1] * down)
        seen = (meta["radii"] > 0).all(-1)
        if not self.state:
            self.state = {k: torch.zeros(len(model), device=gradient.device) for k in ("gradient", "seen")}
        self.state["gradient"] += (length * seen).sum(0)
        self.state["seen"] += seen.sum(0)

    def after(self, model: Model, step: int, rate: float) -> None:
        """Refines and resets at the steps of the schedule."""
        c = self.config
        if step >= c.refine_stop:
            return
        if step > c.refine_start and step % c.refine_every == 0:
            self._grow(model)
            self._prune(model, step)
            self.state = {}
        if step > 0 and step % c.reset_every == 0:
            with torch.no_grad():
                model.logit_opacities.clamp_(max=math.log(2 * c.prune_opacity / (1 - 2 * c.prune_opacity)))
            model.forget("logit_opacities")

    def _grow(self, model: Model) -> None:
        c = self.config
        mean = self.state["gradient"] / self.state["seen"].clamp(min=1)
        high = mean > c.grow_gradient
        small = model.sizes() <= c.grow_scale * self.extent
        room = max(c.most - len(model), 0)
        if int(high.sum()) > room:  # those with the largest
            high = torch.zeros_like(high).index_fill_(0, mean.topk(room).indices, True)
        clone = torch.nonzero(high & small)[:, 0]
        split = torch.nonzero(high & ~small)[:, 0]
        kept = torch.ones(len(model), dtype=torch.bool, device=high.device)
        kept[split] = False
        index = torch.cat([torch.nonzero(kept)[:, 0], clone, split, split])
        model.select(index, fresh=len(clone) + 2 * len(split))
        if len(split):
            new = slice(len(index) - 2 * len(split), None)
            with torch.no_grad():
                factors = model.factors(new)
                noise = self._noise(factors.shape[:2], factors.device)
                model.means[new] += (factors @ noise[..., None])[..., 0]
                model.log_scales[new] -= math.log(1.6)

    def _prune(self, model: Model, step: int) -> None:
        c = self.config
        gone = torch.sigmoid(model.logit_opacities.detach()) < c.prune_opacity
        if step > c.reset_every:
            gone |= model.sizes() > c.prune_scale * self.extent
        if gone.all():
            raise RuntimeError(f"training: no Gaussian is left after step {step}; the loss pruned them all")
        model.select(torch.nonzero(~gone)[:, 0])


class MCMC(Fixed):
    """3DGS-MCMC (arXiv 2404.09591): dead Gaussians move onto live ones so that the picture stays, 5 % are added at
    a time up to a number, and noise along their covariance lets transparent ones explore."""

    def penalty(self, model: Model) -> Tensor | float:
        """The means of opacities and scales, weighted."""
        opacity, scale = torch.sigmoid(model.logit_opacities).mean(), model.log_scales.exp().mean()
        return self.config.opacity_penalty * opacity + self.config.scale_penalty * scale

    def after(self, model: Model, step: int, rate: float) -> None:
        """Moves and adds at the steps of the schedule; adds noise at every step."""
        c = self.config
        if c.refine_start < step < c.refine_stop and step % c.refine_every == 0:
            opacities = torch.sigmoid(model.logit_opacities.detach())
            dead, alive = (torch.nonzero(m)[:, 0] for m in (opacities <= c.prune_opacity, opacities > c.prune_opacity))
            if len(dead) and len(alive):
                self._place(model, self._sample(alive, opacities[alive], len(dead)), onto=dead)
            more = min(c.most, int(1.05 * len(model))) - len(model)
            if more > 0:
                opacities = torch.sigmoid(model.logit_opacities.detach())
                self._place(model, self._sample(torch.arange(len(model), device=opacities.device), opacities, more))
        with torch.no_grad():
            opacities = torch.sigmoid(model.logit_opacities)
            exploring = torch.sigmoid(100 * ((1 - opacities) - 0.995))
            axes = model.factors()
            noise = self._noise(axes.shape[:2], axes.device)
            noise = (axes @ (axes.mT @ (noise * (exploring * rate * c.noise)[:, None])[..., None]))[..., 0]
            model.means.add_(noise)

    def _sample(self, among: Tensor, weights: Tensor, count: int) -> Tensor:
        """`count` draws with probability by weight."""
        total = weights.double().cpu().cumsum(0)
        draws = torch.rand(count, generator=self.generator, dtype=torch.float64) * total[-1]
        return among[torch.searchsorted(total, draws).clamp(max=len(total) - 1).to(among.device)]

    def _place(self, model: Model, sources: Tensor, onto: Tensor | None = None) -> None:
        """Copies of `sources`, in the place of `onto` or beside all others; they render like the one did."""
        copies = torch.bincount(sources, minlength=len(model))[sources] + 1
        with torch.no_grad():
            opacities, factors = relocated(torch.sigmoid(model.logit_opacities[sources]), copies)
            logits = _logit(opacities.clamp(self.config.prune_opacity, 1 - 1e-6)).float()
            model.logit_opacities[sources] = logits
            model.log_scales[sources] += factors.log().float()[:, None]
        if onto is None:
            model.select(torch.cat([torch.arange(len(model), device=sources.device), sources]), fresh=len(sources))
        else:
            index = torch.arange(len(model), device=sources.device)
            index[onto] = sources
            model.select(index)
            for name in model.parameters:
                model.forget(name, onto)
        for name in model.parameters:
            model.forget(name, sources)


def relocated(opacities: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
    """The opacity of each of n equal Gaussians that together cover what one of `opacities` did, and the factor by which
    their scales change (arXiv 2404.09591, equation 9); n is taken for at most 51."""
    n = copies.clamp(max=51).double()
    each = 1 - (1 - opacities.double()) ** (1 / n)
    total = torch.zeros_like(each)
    for k in range(int(n.max()) if len(n) else 0):
        binomial = torch.exp(torch.lgamma(n + 1) - math.lgamma(k + 2) - torch.lgamma((n - k).clamp(min=1)))
        total += torch.where(n > k, binomial * (-1) ** k * each ** (k + 1) / math.sqrt(k + 1), 0)
    return each, opacities.double() / total
