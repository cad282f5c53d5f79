import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from core_diffusion import marching_cubes  # noqa: E402
from core_diffusion.volume_decoding import decode_volume, levels_of  # noqa: E402


def ball(radius=0.7, center=(0.0, 0.0, 0.0)):
    c = torch.tensor(center)
    return lambda p: radius - (p - c).norm(dim=-1)


def ring(p):
    return 0.25 - ((p[..., :2].norm(dim=-1) - 0.61) ** 2 + p[..., 2] ** 2).sqrt()


def dense(field, resolution):
    return decode_volume(field, resolution, hierarchical=False, device="cpu")[0]


def euler(faces):
    edges = np.unique(np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)), axis=0)
    return len(np.unique(faces)) - len(edges) + len(faces)


def crossing(volume):
    """Flat indices of the nodes of cells with both signs."""
    above = volume > 0
    n = np.array(volume.shape) - 1
    corners = [above[i : i + n[0], j : j + n[1], k : k + n[2]] for i in (0, 1) for j in (0, 1) for k in (0, 1)]
    cells = np.logical_or.reduce(corners) & ~np.logical_and.reduce(corners)
    nodes = np.zeros(volume.shape, bool)
    for i in (0, 1):
        for j in (0, 1):
            for k in (0, 1):
                nodes[i : i + n[0], j : j + n[1], k : k + n[2]] |= cells
    return np.flatnonzero(nodes)


@pytest.mark.parametrize(("field", "number"), [(ball(), 2), (ring, 0)])
def test_nothing_of_the_dense_surface_is_missed(field, number):
    whole = dense(field, 128)
    (part,) = decode_volume(field, 128, device="cpu")
    assert part.queries <= 129**3 / 4
    assert np.isin(crossing(whole.dense().numpy()), part.index.numpy()).all()
    np.testing.assert_array_equal(part.values, whole.values[part.index])
    assert torch.equal(part.inside(), whole.dense() > 0)
    vertices, faces = part.mesh()
    want, want_faces = whole.mesh()
    np.testing.assert_array_equal(vertices, want)
    np.testing.assert_array_equal(faces, want_faces)
    assert euler(faces) == number


def test_the_surface_is_followed_out_of_the_cells_where_it_showed():
    """A blade whose rim shows at coarse nodes only at its root: the rest is reached through the sides of cells."""
    blade = lambda p: torch.minimum(0.02 - (p[..., 2] - 0.031).abs(), 0.8 - p[..., :2].norm(dim=-1))  # noqa: E731
    field = lambda p: torch.maximum(blade(p), 0.2 - p.norm(dim=-1))  # noqa: E731
    (part,) = decode_volume(field, 128, coarsest=32, device="cpu")
    vertices, faces = part.mesh()
    want, want_faces = dense(field, 128).mesh()
    assert np.abs(vertices[:, 0]).max() > 0.75
    np.testing.assert_array_equal(vertices, want)
    np.testing.assert_array_equal(faces, want_faces)


def test_radius_in_world_units_and_bounds():
    (part,) = decode_volume(ball(1.4, (1.0, 0, 0)), 100, bounds=((-1, -2, -2), (3, 2, 2)), coarsest=25, device="cpu")
    vertices, _ = part.mesh()
    assert part.shape == (101, 101, 101)
    assert np.abs(np.linalg.norm(vertices - [1, 0, 0], axis=1) - 1.4).max() < 0.02 * 0.04


@pytest.mark.parametrize("resolution", [1, 2, 3, 33, 47, 64, 101])
def test_any_resolution_is_the_one_requested(resolution):
    (part,) = decode_volume(ball(), resolution, coarsest=8, device="cpu")
    assert part.shape == (resolution + 1,) * 3
    np.testing.assert_allclose(part.spacing, 2 / resolution)
    vertices, faces = part.mesh()
    want, want_faces = dense(ball(), resolution).mesh()
    np.testing.assert_allclose(vertices, want, atol=1e-6)
    np.testing.assert_array_equal(faces, want_faces)


def test_levels():
    assert levels_of(512) == [64, 128, 256, 512]
    assert levels_of(380) == [95, 190, 380]
    assert levels_of(256, 63) == [64, 128, 256]
    assert levels_of(127) == [64, 127]
    assert levels_of(5, 1) == [1, 2, 3, 5]


def test_a_batch_is_its_shapes():
    radii = torch.tensor([0.3, 0.8, 1e-6])  # the last shows at no node
    fields = lambda p: radii[:, None] - (p + 0.003).norm(dim=-1)  # noqa: E731
    together = decode_volume(fields, 64, batch=3, coarsest=16, chunk=1000, device="cpu")
    assert len(together) == 3
    for radius, volume in zip(radii, together, strict=True):
        alone = decode_volume(lambda p, r=radius: r - (p + 0.003).norm(dim=-1), 64, coarsest=16, device="cpu")[0]
        assert torch.equal(volume.index, alone.index)
        assert torch.equal(volume.values, alone.values)
        assert volume.queries == alone.queries
    assert len(together[2].index) == 0
    assert decode_volume(fields, 64, batch=0, device="cpu") == []


@pytest.mark.parametrize("value", [-1.0, 1.0, 0.0, math.nan, math.inf])
def test_volumes_without_a_surface(value):
    (part,) = decode_volume(lambda p: torch.full(p.shape[:2], value), 64, coarsest=16, device="cpu")
    vertices, faces = part.mesh()
    assert len(part.index) == len(vertices) == len(faces) == 0
    assert part.queries == 17**3


def test_a_plane_through_nodes():
    (part,) = decode_volume(lambda p: p[..., 0], 64, coarsest=16, device="cpu")
    vertices, faces = part.mesh()
    assert np.isfinite(vertices).all()
    np.testing.assert_allclose(vertices[:, 0], 0, atol=1e-7)
    assert euler(faces) == 1


def test_unknown_values_are_never_crossed():
    field = lambda p: torch.where(p[..., 0] < 0.1, math.nan, 0.7 - p.norm(dim=-1))  # noqa: E731
    (part,) = decode_volume(field, 64, coarsest=16, device="cpu")
    vertices, faces = part.mesh()
    assert np.isfinite(vertices).all()
    assert len(faces) > 0
    assert vertices[:, 0].min() >= 0.1


def test_a_thin_sheet_needs_the_band():
    """One fine cell thick, between two planes of the coarse grid: missed by signs alone, found by a band or a bound."""
    sheet = lambda p: 1 / 128 - (p[..., 0] - 1 / 32).abs()  # noqa: E731
    missed = decode_volume(sheet, 128, coarsest=32, device="cpu")[0]
    assert len(missed.index) == 0
    want, _ = dense(sheet, 128).mesh()
    for options in ({"band": 0.04}, {"lipschitz": 1.0}, {"band": 0.04, "dilation": 1}):
        (part,) = decode_volume(sheet, 128, coarsest=32, device="cpu", **options)
        vertices, _ = part.mesh()
        np.testing.assert_array_equal(vertices, want)


@pytest.mark.parametrize("resolution", [24, 41])
@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_inside_of_what_the_border_cuts(axis, side, resolution):
    center = torch.zeros(3)
    center[axis] = 1.1 * side
    field = lambda p: torch.maximum(0.9 - (p - center).norm(dim=-1), 0.2 - p.norm(dim=-1))  # noqa: E731
    (part,) = decode_volume(field, resolution, coarsest=6, lipschitz=1.0, device="cpu")
    assert len(part.index) < (resolution + 1) ** 3
    assert torch.equal(part.inside(), dense(field, resolution).dense() > 0)


def test_a_bound_on_the_slope_finds_every_part():
    rng = np.random.default_rng(0)
    centers = torch.from_numpy(rng.uniform(-0.8, 0.8, (40, 3)).astype(np.float32))
    dust = lambda p: 0.02 - torch.cdist(p, centers[None]).min(-1).values  # noqa: E731
    (part,) = decode_volume(dust, 96, coarsest=24, lipschitz=1.0, chunk=4096, device="cpu")
    want, want_faces = marching_cubes(dense(dust, 96).dense().numpy(), spacing=part.spacing, origin=part.origin)
    vertices, faces = part.mesh()
    np.testing.assert_array_equal(vertices, want)
    np.testing.assert_array_equal(faces, want_faces)


def test_bad_arguments_are_named():
    for name, value in [
        ("resolution", 0),
        ("resolution", 10**6),
        ("batch", -1),
        ("bounds", ((0, 0, 0), (1, 0, 1))),
        ("bounds", ((0, 0), (1, 1))),
        ("level", math.nan),
        ("band", -1.0),
        ("band", math.nan),
        ("lipschitz", 0.0),
        ("dilation", -1),
        ("coarsest", 0),
        ("chunk", 0),
    ]:
        with pytest.raises(ValueError, match=f"'{name}'"):
            decode_volume(ball(), **{"resolution": 8, "device": "cpu", name: value})
    with pytest.raises(ValueError, match="'field'"):
        decode_volume(lambda p: p, 8, device="cpu")
