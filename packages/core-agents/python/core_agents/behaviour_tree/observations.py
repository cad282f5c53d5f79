"""Observations as numpy structured arrays: named fields are the features of a tree."""

from __future__ import annotations

import numpy as np


def feature_names(dtype: np.dtype) -> dict[str, int]:
    """The column of each feature of a structured dtype, as :func:`core_agents.from_dsl` takes it.

    A field of one number is a feature of that name; a field of shape (n,) or (n, m) gives ``name[0]``, ...,
    ``name[i][j]`` in C order. Raises ValueError for a dtype without names, nested fields and what is no number.
    """
    names: dict[str, int] = {}
    for field, (kind, _) in _fields(dtype).items():
        for at in np.ndindex(kind.shape):
            names[field + "".join(f"[{i}]" for i in at)] = len(names)
    return names


def _fields(dtype: np.dtype) -> dict[str, tuple[np.dtype, int]]:
    if dtype.names is None or dtype.fields is None:
        raise ValueError(f"argument 'dtype' must have named fields, got {dtype}")
    for name in dtype.names:
        if dtype.fields[name][0].base.kind not in "biuf":
            raise ValueError(
                f"field '{name}' must be a number, a truth or an array of these, got {dtype.fields[name][0]}"
            )
    return {name: (dtype.fields[name][0], dtype.fields[name][1]) for name in dtype.names}


def columns(structured: np.ndarray) -> np.ndarray:
    """A structured array [agents] as float32 [agents, features], columns as in :func:`feature_names`.

    A view if the fields are packed float32, else a copy; numbers are rounded to float32.
    """
    fields = _fields(structured.dtype)
    sizes = [int(np.prod(kind.shape)) for kind, _ in fields.values()]
    packed = all(kind.base == np.float32 for kind, _ in fields.values()) and structured.dtype.itemsize == 4 * sum(sizes)
    if packed and structured.ndim == 1 and structured.flags.c_contiguous:
        return structured.view(np.float32).reshape(len(structured), sum(sizes))
    out = np.empty((*structured.shape, sum(sizes)), np.float32)
    first = 0
    for name, size in zip(fields, sizes, strict=True):
        out[..., first : first + size] = structured[name].reshape(*structured.shape, size)
        first += size
    return out
