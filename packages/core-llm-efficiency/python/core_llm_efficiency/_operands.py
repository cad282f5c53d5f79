"""Which dtypes the facades' main operands may have."""

from __future__ import annotations

from typing import Any

from core_registry.arrays import is_torch


def operand_dtype(x: Any, name: str) -> str:
    """The dtype that operand `x` and those beside it must have: on CUDA its own of three, else "float32"."""
    dtype = str(x.dtype).removeprefix("torch.") if is_torch(x) and x.device.type == "cuda" else "float32"
    if dtype not in ("float32", "float16", "bfloat16"):
        raise TypeError(f"argument '{name}' must be float32, float16 or bfloat16, got {dtype}")
    return dtype
