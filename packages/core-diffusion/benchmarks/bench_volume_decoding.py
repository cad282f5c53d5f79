"""Queries of hierarchical decoding against the dense grid: pytest -s benchmarks/bench_volume_decoding.py.

Signed distances of a sphere, a torus and, where pybullet (its meshes) and libigl (its distances) are installed, of a
real mesh. Every node of a cut cell of the dense grid must be known, with its value.
"""

import numpy as np
import pytest
import torch
from core_diffusion.volume_decoding import Field, decode_volume


def sphere(points: torch.Tensor) -> torch.Tensor:
    """Distance of a sphere, positive inside."""
    return 0.801 - points.norm(dim=-1)


def torus(points: torch.Tensor) -> torch.Tensor:
    """Distance of a torus, positive inside."""
    return 0.2 - ((points[..., :2].norm(dim=-1) - 0.61) ** 2 + points[..., 2] ** 2).sqrt()


def real_mesh(points: torch.Tensor) -> torch.Tensor:
    """Distance of pybullet's object 7, positive inside, by libigl."""
    igl = pytest.importorskip("igl")
    from core_diffusion.claims.flashvdm import mesh_files
    from core_diffusion.meshes import load_mesh

    vertices, faces = load_mesh(mesh_files()[7])
    flat = points.reshape(-1, 3).double().numpy()
    kind = igl.SIGNED_DISTANCE_TYPE_FAST_WINDING_NUMBER
    distance = igl.signed_distance(flat, vertices.astype(np.float64), faces, sign_type=kind)[0]
    return -torch.from_numpy(distance).float().view(points.shape[:-1])


def cut_nodes(volume: torch.Tensor) -> torch.Tensor:
    """Flat indices of the nodes of cells with both signs."""
    signs = (volume > 0).float()[None, None]
    most = torch.nn.functional.max_pool3d(signs, 2, 1)
    least = -torch.nn.functional.max_pool3d(-signs, 2, 1)
    cells = torch.nn.functional.pad((most != least).float(), (1,) * 6)
    return torch.nn.functional.max_pool3d(cells, 2, 1)[0, 0].flatten().nonzero().squeeze(1)


@pytest.mark.parametrize("resolution", [128, 256])
@pytest.mark.parametrize("field", [sphere, torus, real_mesh])
def test_queries(field: Field, resolution: int) -> None:
    """Prints the ratio of queries; nothing may be missed."""
    if field is real_mesh:
        pytest.importorskip("pybullet_data")
    whole = decode_volume(field, resolution, hierarchical=False, device="cpu")[0]
    (part,) = decode_volume(field, resolution, device="cpu")
    wanted = cut_nodes(whole.dense())
    missed = int((~torch.isin(wanted, part.index)).sum())
    assert torch.equal(part.values, whole.values[part.index])
    ratio = (resolution + 1) ** 3 / part.queries
    name = field.__name__  # type: ignore[attr-defined]
    print(
        f"\n{name} {resolution + 1}^3: {ratio:.1f} times fewer queries, {missed} of {len(wanted)} surface nodes missed"
    )
    assert missed == 0
    assert ratio >= (4 if resolution == 128 else 8)
