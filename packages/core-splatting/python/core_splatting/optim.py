"""Adam for the Gaussians that were seen."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch

from . import _core_splatting as _C


@functools.cache
def _true(device: torch.device) -> torch.Tensor:
    """(1,), which stands for any number of visible Gaussians."""
    return torch.ones(1, dtype=torch.bool, device=device)


class SelectiveAdam(torch.optim.Optimizer):
    """Adam (arXiv 1412.6980) that at each step moves the visible Gaussians alone, in one pass over memory.

    The optimiser of Taming 3DGS (arXiv 2406.15643) and gsplat, but with Adam's correction for the first steps: a
    Gaussian goes exactly as under torch.optim.Adam that is run at the steps at which it was visible. State: `exp_avg`,
    `exp_avg_sq` of the parameter's shape and `steps` (N,) int32.

    Args:
        params: float32 parameters of first size N, or groups of them with `lr` of their own and perhaps `rates`, a
            float32 tensor of the shape of a row by which `lr` is multiplied.
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the denominator.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-15,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "rates": None})

    def step(self, visibility: torch.Tensor | None = None, closure: Callable[[], Any] | None = None) -> None:
        """One step; `visibility` is (N,) bool, or None if all are visible. Parameters without a gradient stay."""
        if closure is not None:
            raise NotImplementedError("SelectiveAdam: argument 'closure' must be None")
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                count = param.shape[0]
                if not state:
                    state["exp_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)
                    state["exp_avg_sq"] = torch.zeros_like(param, memory_format=torch.preserve_format)
                    state["steps"] = torch.zeros(count, dtype=torch.int32, device=param.device)
                seen = _true(param.device).expand(count) if visibility is None else visibility
                value, grad, first, second = (
                    x.detach().view(count, -1 if count else 1)
                    for x in (param, param.grad.contiguous(), state["exp_avg"], state["exp_avg_sq"])
                )
                rates, (beta1, beta2) = group["rates"], group["betas"]
                _C.selective_adam(
                    value, grad, first, second, state["steps"], seen, None if rates is None else rates.view(-1),
                    group["lr"], beta1, beta2, group["eps"],
                )  # fmt: skip
