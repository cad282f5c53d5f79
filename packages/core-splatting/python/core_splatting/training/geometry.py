"""Rotations of Gaussians in torch."""

from __future__ import annotations

import torch
from torch import Tensor


def rotations(quats: Tensor) -> Tensor:
    """(N, 3, 3) of quaternions w, x, y, z of any length."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = (
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(rows, -1).reshape(-1, 3, 3)


def rotations_4d(left: Tensor, right: Tensor) -> Tensor:
    """(N, 4, 4) products of the two isoclinic rotations of quaternions of any length, axes x, y, z, t (arXiv
    2310.10642); those of `slice_4d`."""
    a, b, c, d = torch.nn.functional.normalize(left, dim=-1).unbind(-1)
    p, q, u, v = torch.nn.functional.normalize(right, dim=-1).unbind(-1)
    first = torch.stack((a, -b, -c, -d, b, a, -d, c, c, d, a, -b, d, -c, b, a), -1).reshape(-1, 4, 4)
    second = torch.stack((p, q, u, v, -q, p, -v, u, -u, v, p, -q, -v, -u, q, p), -1).reshape(-1, 4, 4)
    return (first @ second).flip(-2, -1)
