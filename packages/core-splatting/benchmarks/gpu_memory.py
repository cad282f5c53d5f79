"""GPU benchmark: Gaussian memory attention (arXiv 2503.16413) beside torch's softmax of the whole matrix.

python benchmarks/gpu_memory.py [-o FILE.json]

Rows: 2,000 points of an image (a training step, forward and backward) and the pixels of 720p (forward), 2,000
components. CUDA events, median of 20. The peer computes in full float32. Exits 1 if an answer differs from float64 by
more than 1e-5 of its norm (gradients 1e-4).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from core_registry.timing import device_ms, floor_ms, run_benchmark
from core_splatting.memory_ops import memory_attention

SIZES = ((2000, 32, 2000, 768), (2000, 32, 2000, 4096), (1280 * 720, 16, 2000, 512))
COLUMNS = (
    "pixels", "channels", "components", "width", "ours_ms", "torch_ms", "ratio", "floor_ms", "ours_gib", "torch_gib",
    "error", "ours_both_ms", "torch_both_ms", "both_ratio", "gradient_error",
)  # fmt: skip


def peak_gib(call: Callable[[], Any]) -> float:
    """The most device memory that torch holds during a call, above what it holds before, without the result."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before - result.numel() * result.element_size()) / 2**30


def theirs(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The formula as written."""
    return (q @ k.T).softmax(1) @ v


def relative(ours: torch.Tensor, exact: torch.Tensor) -> float:
    """The error over the norm."""
    return float((ours.double() - exact).norm() / exact.norm())


def measure(pixels: int, channels: int, components: int, width: int) -> dict[str, Any]:
    """One row of the table."""
    generator = torch.Generator("cuda").manual_seed(0)
    shapes = ((pixels, channels), (components, channels), (components, width))
    q, k, v = (torch.randn(s, generator=generator, device="cuda") for s in shapes)
    q *= 3 / channels**0.5
    row: dict[str, Any] = dict(zip(COLUMNS[:4], (pixels, channels, components, width), strict=True))
    rows = slice(0, min(pixels, 20_000))
    row["error"] = relative(memory_attention(q, k, v)[0][rows], theirs(q[rows].double(), k.double(), v.double()))
    row["ours_ms"] = device_ms(lambda: memory_attention(q, k, v))
    row["torch_ms"] = device_ms(lambda: theirs(q, k, v))
    row["ours_gib"] = peak_gib(lambda: memory_attention(q, k, v)[0])
    row["torch_gib"] = peak_gib(lambda: theirs(q, k, v))
    row["floor_ms"] = floor_ms(2 * pixels * components * (channels + width), dtype="float32")
    if row["error"] <= 1e-5:
        row["ratio"] = row["torch_ms"] / row["ours_ms"]
    if pixels > 20_000:
        return row
    weights = torch.randn((pixels, width), generator=generator, device="cuda")

    def both(attend: Callable[..., Any], *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad((attend(*given) * weights.to(given[0].dtype)).sum(), given[:2])

    def ours(*given: torch.Tensor) -> torch.Tensor:
        return memory_attention(*given)[0]

    leaves = [q.requires_grad_(), k.requires_grad_(), v]
    exact = both(theirs, *(x.detach().double().requires_grad_() for x in leaves[:2]), v.double())
    row["gradient_error"] = max(relative(a, b) for a, b in zip(both(ours, *leaves), exact, strict=True))
    row["ours_both_ms"] = device_ms(lambda: both(ours, *leaves))
    row["torch_both_ms"] = device_ms(lambda: both(theirs, *leaves))
    if row["gradient_error"] <= 1e-4:
        row["both_ratio"] = row["torch_both_ms"] / row["ours_both_ms"]
    return row


def right(row: Mapping[str, Any]) -> bool:
    """Whether ours is close to float64's."""
    return bool(row["error"] <= 1e-5 and row.get("gradient_error", 0.0) <= 1e-4)


if __name__ == "__main__":
    torch.backends.cuda.matmul.allow_tf32 = False
    sys.exit(run_benchmark(__doc__, measure, SIZES, COLUMNS, right, "core_splatting.memory_attention"))
