# mypy: disallow-untyped-decorators=False
"""Muon (Jordan and others, 2024): momentum of matrices, made orthogonal before it moves them; needs torch."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
SPREAD = 0.2
"""The root mean square of an update before the learning rate, near that of AdamW's, so that both can share one."""
DECAY = 0.1
"""Decoupled weight decay, times the learning rate: without one the updates, all of one size, make matrices grow."""
STEPS = 5
_QUINTIC = (3.4445, -4.7750, 2.0315)
"""Of the published polynomial, which brings singular values from about 0.01..1 to about 0.7..1.2 in five steps."""


class Muon:
    """Moves matrices by their orthogonalised Nesterov momentum; matrices of one shape go through the steps together.

    torch.optim.Muon has a learning rate that is a float of the host and so cannot be captured in a CUDA graph; here it
    is the tensor `lr` on the matrices' device, and nothing waits for the device.

    Args:
        weights: by name, of shape (n * rows, cols).
        pieces: for each name the n matrices of which it consists, each moved as one of its own.
        lr: to begin with.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], pieces: Mapping[str, int], lr: float) -> None:
        for name, weight in weights.items():
            if weight.dim() != 2 or pieces[name] < 1 or weight.shape[0] % pieces[name]:
                raise ValueError(
                    f"Muon: argument 'weights' must be {pieces[name]} matrices under each other, got "
                    f"'{name}' of shape {tuple(weight.shape)}"
                )
        self.weights = list(weights.values())
        self.momenta = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        self.lr = torch.tensor(lr, device=self.weights[0].device)
        self._groups: dict[torch.Size, list[tuple[int, int]]] = {}
        for place, (name, weight) in enumerate(weights.items()):
            self._groups.setdefault(_wide(weight, pieces[name]).shape[1:], []).append((place, pieces[name]))

    @torch.no_grad()
    def step(self) -> None:
        """Moves all weights along their gradients."""
        gradients = [w.grad for w in self.weights if w.grad is not None]
        if len(gradients) < len(self.weights):
            raise ValueError("Muon: argument 'weights' must all have gradients")
        momenta = list(self.momenta.values())
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        ahead = torch._foreach_lerp(gradients, momenta, MOMENTUM)
        torch._foreach_mul_(self.weights, 1 - self.lr * DECAY)
        for shape, places in self._groups.items():
            stacked = torch.cat([_wide(ahead[place], n) for place, n in places])
            moved = orthogonalised(stacked) * (self.lr * -SPREAD * math.sqrt(shape[1]))
            for (place, n), one in zip(places, moved.split([n for _, n in places]), strict=True):
                _wide(self.weights[place], n).add_(one)


def _wide(x: Tensor, n: int) -> Tensor:
    """(n, rows, cols) of the matrices under each other in x, transposed if they are higher than wide; a view."""
    x = x.unflatten(0, (n, -1))
    return x.mT if x.shape[1] > x.shape[2] else x


def orthogonalised(x: Tensor) -> Tensor:
    """For matrices (N, rows, cols), rows <= cols, about U V^T of their singular value decompositions.

    Newton-Schulz steps, in bfloat16 on CUDA; float32 comes out.
    """
    a, b, c = _QUINTIC
    y = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    y = y.bfloat16() if x.is_cuda else y
    for _ in range(STEPS):
        square = y @ y.mT
        y = torch.baddbmm(y, torch.baddbmm(square, square, square, beta=b, alpha=c), y, beta=a)
    return y.float()
