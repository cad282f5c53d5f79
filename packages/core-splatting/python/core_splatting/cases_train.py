"""The cases of the training operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from core_registry.testing import Case

from .reference import train as reference

f32 = np.float32


def images(rng: np.random.Generator, B: int, C: int, H: int, W: int) -> dict[str, Any]:
    """An image and a noisy copy; the arguments of ssim."""
    image = rng.random((B, C, H, W), f32)
    target = np.clip(image + rng.normal(0, 0.2, image.shape), 0, 1).astype(f32)
    return {
        "image": image,
        "target": target,
        "out": np.empty_like(image),
        "partials": np.empty((3, *image.shape), f32),
    }


def images_backward(rng: np.random.Generator, **size: int) -> dict[str, Any]:
    """The same with partial derivatives and a random gradient; the arguments of ssim_backward."""
    args = images(rng, **size)
    partials = reference.ssim(args)["partials"].astype(f32)
    v_out = rng.normal(size=args["image"].shape).astype(f32)
    return {
        "image": args["image"], "target": args["target"], "partials": partials, "v_out": v_out, "v_image": args["out"],
    }  # fmt: skip


def adam(rng: np.random.Generator, N: int, K: int, rates: bool = False) -> dict[str, Any]:
    """Adam in full run, two fifths of the rows visible; columns with or without rates of their own."""
    moments = rng.normal(size=(N, K)).astype(f32)
    return {
        "param": rng.normal(size=(N, K)).astype(f32), "grad": rng.normal(size=(N, K)).astype(f32), "exp_avg": moments,
        "exp_avg_sq": (moments * moments * rng.uniform(1, 3, (N, K))).astype(f32),
        "steps": rng.integers(0, 30000, N).astype(np.int32), "visible": rng.random(N) < 0.4,
        "rates": rng.uniform(0, 2, K).astype(f32) if rates else None, "lr": 1e-2, "beta1": 0.9, "beta2": 0.999,
        "eps": 1e-8,
    }  # fmt: skip


def _ssim_torch(args: dict[str, Any]) -> Callable[[], Mapping[str, Any]]:
    """Five convolutions, as in the reference code of 3D Gaussian splatting."""
    import torch

    x, y = torch.from_numpy(args["image"]), torch.from_numpy(args["target"])
    channels = x.shape[1]
    weights = torch.exp(-(torch.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = (torch.outer(weights, weights) / weights.sum() ** 2).expand(channels, 1, 11, 11).contiguous()

    def mean(q: Any) -> Any:
        return torch.nn.functional.conv2d(q, window, padding=5, groups=channels)

    def run() -> Mapping[str, Any]:
        mx, my = mean(x), mean(y)
        sx, sy, sxy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
        value = (2 * mx * my + 0.01**2) * (2 * sxy + 0.03**2) / ((mx * mx + my * my + 0.01**2) * (sx + sy + 0.03**2))
        return {"out": value.numpy()}

    return run


def _torch_ssim(args: dict[str, Any]) -> Any:
    from .train_ops import ssim

    return ssim(args["image"], args["target"])


def _work(args: dict[str, Any]) -> tuple[float, float]:
    pixels = args["image"].size
    return float(pixels * 4 * 6), float(pixels * (5 * 44 + 40))


def _adam_work(args: dict[str, Any]) -> tuple[float, float]:
    rows = int(args["visible"].sum())
    return float(rows * args["param"].shape[1] * 28 + len(args["visible"]) * 5), float(
        rows * args["param"].shape[1] * 15
    )


cases = [
    Case(
        op="core_splatting.ssim",
        sizes={"tiny": {"B": 2, "C": 3, "H": 21, "W": 18}, "bench": {"B": 1, "C": 3, "H": 512, "W": 512}},
        make=images,
        reference=reference.ssim,
        # The variance in a window is a difference of two means.
        tolerance={"out": (1e-4, 1e-4), "partials": (1e-3, 5e-2)},
        peer=("torch, five convolutions", _ssim_torch),
        work=_work,
        vary={"B": (0, 2), "C": (0, 4), "H": (0, 80), "W": (0, 40)},
        torch_call=_torch_ssim,
        differentiable=True,
        devices=("cpu", "cuda"),
    ),
    Case(
        op="core_splatting.ssim_backward",
        sizes={"tiny": {"B": 2, "C": 3, "H": 21, "W": 18}, "bench": {"B": 1, "C": 3, "H": 512, "W": 512}},
        make=images_backward,
        reference=reference.ssim_backward,
        tolerance={"v_image": (1e-4, 1e-3)},
        work=_work,
        vary={"B": (0, 2), "C": (0, 4), "H": (0, 80), "W": (0, 40)},
        devices=("cpu", "cuda"),
    ),
    Case(
        op="core_splatting.selective_adam",
        sizes={"tiny": {"N": 40, "K": 3}, "bench": {"N": 200_000, "K": 48}},
        make=adam,
        reference=reference.selective_adam,
        tolerance={"param": (1e-5, 1e-6), "exp_avg": (1e-5, 1e-6), "exp_avg_sq": (1e-5, 1e-6), "steps": (0, 0)},
        inout=("param", "exp_avg", "exp_avg_sq", "steps"),
        work=_adam_work,
        vary={"N": (0, 60), "K": (0, 50), "rates": (0, 1)},
        devices=("cpu", "cuda"),
    ),
]
