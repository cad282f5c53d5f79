"""Arrays of the caller's kind, for facades: torch in gives torch out, CuPy gives CuPy, all else numpy."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any


def is_torch(x: object) -> bool:
    """Whether `x` is a torch tensor; never imports torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def empty(shape: Sequence[int], dtype: str, like: object = None) -> Any:
    """An uninitialised C-contiguous array of `dtype` ("float32", ...), of the kind and on the device of `like`."""
    if is_torch(like):
        torch = sys.modules["torch"]
        return torch.empty(tuple(shape), dtype=getattr(torch, dtype), device=like.device)  # type: ignore[attr-defined]
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(like, cupy.ndarray):
        return cupy.empty(tuple(shape), dtype)
    import numpy as np

    return np.empty(tuple(shape), dtype)


def as_array(x: Any, dtype: str, name: str, like: object = None) -> Any:
    """`x` as an array of exactly `dtype`; `x` itself if it is one.

    Torch and CuPy arrays stay what they are. Lists and numbers become numpy arrays, or tensors beside `like` if
    that is one. Arrays of another dtype are refused, unless the conversion keeps every value (int32 to int64,
    float32 to float64). Raises TypeError that names the argument `name`.
    """
    if is_torch(x):
        torch = sys.modules["torch"]
        wanted = getattr(torch, dtype)
        if x.dtype == wanted:
            return x
        if torch.promote_types(x.dtype, wanted) == wanted and x.dtype != torch.bool:
            return x.to(wanted)
        raise TypeError(f"argument '{name}' must be {dtype}, got {str(x.dtype).removeprefix('torch.')}")
    import numpy as np

    if hasattr(x, "__dlpack__") and not isinstance(x, (np.ndarray, np.generic)):
        return x
    array = np.asarray(x)
    if array.dtype != dtype:
        literal = not isinstance(x, (np.ndarray, np.generic))
        order = "buif"
        kinds = array.dtype.kind, np.dtype(dtype).kind
        if not (
            order.find(kinds[0]) <= order.find(kinds[1]) + (kinds == ("i", "u")) and kinds[0] in order
            if literal
            else kinds[0] != "b" and np.can_cast(array.dtype, dtype, "safe")
        ):
            raise TypeError(f"argument '{name}' must be {dtype}, got {array.dtype} of shape {array.shape}")
        array = np.asarray(x, dtype)
    return sys.modules["torch"].as_tensor(array, device=like.device) if is_torch(like) else array  # type: ignore[attr-defined]
