"""A field of features over Gaussians as M3 keeps it (arXiv 2503.16413): few channels, which call back a memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..memory import gaussian_memory_attention
from ..optim import SelectiveAdam
from ..rasterize import rasterization


@dataclasses.dataclass(frozen=True)
class FeatureView:
    """A camera, viewmat (4, 4) and K (3, 3) of a picture of width x height, and what each model saw there: (h, w, D)
    float32 at any resolution, zeros where there is nothing to learn."""

    viewmat: Tensor
    K: Tensor
    width: int
    height: int
    features: Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Bank:
    """The memory of one model: its principal scene components (T, D), and how many channels call them back."""

    components: Tensor
    channels: int = 16


class FeatureField:
    """Queries of Gaussians that are otherwise fixed, and for each model the projection of its channels.

    `queries` (N, sum of the channels) is what `rasterization` renders, at once for all models; a rendered query recalls
    features by Gaussian memory attention. The loss looks at random points of a picture: 1 - cosine, plus the mean
    squared difference; points whose target is zero do not count.

    Args:
        means, quats, scales, opacities: the Gaussians, as in `rasterization`.
        banks: by the model's name.
        points: how many points of a picture a step looks at.
        lr_queries, lr_projections: rates of Adam.
        temperature, cosine: as in `gaussian_memory_attention`.
    """

    def __init__(
        self, means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, banks: Mapping[str, Bank], *,
        points: int = 2000, lr_queries: float = 0.05, lr_projections: float = 2e-3, temperature: float = 0.05,
        cosine: bool = True, seed: int = 0,
    ) -> None:  # fmt: skip
        self.means, self.quats, self.scales, self.opacities = (x.detach() for x in (means, quats, scales, opacities))
        self.banks, self.points, self.temperature, self.cosine = dict(banks), points, temperature, cosine
        self.generator = torch.Generator().manual_seed(seed)
        device, total = means.device, sum(b.channels for b in banks.values())

        def random(*size: int) -> Tensor:
            return torch.randn(size, generator=self.generator).to(device)

        self.queries = random(len(means), total).requires_grad_()
        self.projections = {
            name: (random(b.channels, b.components.shape[1]) / b.channels**0.5).requires_grad_()
            for name, b in self.banks.items()
        }
        self.optimizers = (
            SelectiveAdam([self.queries], lr=lr_queries),
            torch.optim.Adam(list(self.projections.values()), lr=lr_projections, eps=1e-15),
        )

    def render(self, view: FeatureView) -> Tensor:
        """(H, W, channels of all models): blended queries."""
        image: Tensor = rasterization(
            self.means, self.quats, self.scales, self.opacities, self.queries, view.viewmat[None], view.K[None],
            view.width, view.height,
        )[0][0]  # fmt: skip
        return image

    def recall(self, rendered: Tensor) -> dict[str, Tensor]:
        """(..., D) features of each model from rendered queries (..., channels)."""
        parts = rendered.split([b.channels for b in self.banks.values()], -1)
        return {
            name: gaussian_memory_attention(
                part, self.projections[name], bank.components, temperature=self.temperature, cosine=self.cosine
            )
            for (name, bank), part in zip(self.banks.items(), parts, strict=True)
        }

    def loss(self, view: FeatureView) -> Tensor:
        """The loss at random points of a view, summed over models."""
        at = torch.rand((self.points, 2), generator=self.generator)
        found = self.recall(_sampled(self.render(view), at))
        total = torch.zeros((), device=self.queries.device)
        for name, target in view.features.items():
            wanted = _sampled(target, at)
            seen = (wanted.square().sum(-1) > 0).float()
            near = 1 - torch.nn.functional.cosine_similarity(found[name], wanted, dim=-1)
            each = near + (found[name] - wanted).square().mean(-1)
            total = total + (each * seen).sum() / seen.sum().clamp(min=1)
        return total

    def train(self, views: Sequence[FeatureView], steps: int) -> Iterator[Tensor]:
        """Trains for `steps`, a view at random each; yields the losses, on the device."""
        for _ in range(steps):
            view = views[int(torch.randint(len(views), (), generator=self.generator))]
            loss = self.loss(view)
            loss.backward()
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            yield loss.detach()


class LinearField(FeatureField):
    """The same channels decoded by the projections alone, as feature distillation does: the peer of the memory."""

    def recall(self, rendered: Tensor) -> dict[str, Tensor]:
        """(..., D) features of each model, linear in the rendered queries (..., channels)."""
        parts = rendered.split([b.channels for b in self.banks.values()], -1)
        return {name: part @ self.projections[name] for name, part in zip(self.banks, parts, strict=True)}


def _sampled(image: Tensor, at: Tensor) -> Tensor:
    """(P, D) bilinear samples of (H, W, D) at (P, 2) places x, y in [0, 1], the border's pixels going on outside."""
    height, width, channels = image.shape
    pixels = image.reshape(height * width, channels)
    x, y = at.to(image.device).unbind(-1)
    (left, right, u), (top, low, v) = _between(x, width), _between(y, height)
    rows = [pixels[row * width + column] for row in (top, low) for column in (left, right)]
    return (rows[0] * (1 - u) + rows[1] * u) * (1 - v) + (rows[2] * (1 - u) + rows[3] * u) * v


def _between(place: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The two pixels of a row of `size` between which places in [0, 1] lie, and the share (P, 1) of the second."""
    place = (place * size - 0.5).clamp(0, size - 1)
    first = place.floor()
    left = first.long()
    return left, (left + 1).clamp(max=size - 1), (place - first)[:, None]
