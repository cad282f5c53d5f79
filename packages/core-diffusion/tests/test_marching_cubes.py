import itertools

import numpy as np
import pytest
from core_diffusion import marching_cubes, sparse_marching_cubes
from core_diffusion.reference import marching_cubes as reference
from hypothesis import given, settings
from hypothesis import strategies as st

measure = pytest.importorskip("skimage.measure")


def grid(n: int) -> list[np.ndarray]:
    return list(np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32),) * 3, indexing="ij", sparse=True))


def sphere(n: int, radius: float = 0.7) -> np.ndarray:
    x, y, z = grid(n)
    return np.float32(radius) - np.sqrt(x * x + y * y + z * z)


def torus(n: int) -> np.ndarray:
    x, y, z = grid(n)
    return np.float32(0.25) - np.sqrt((np.sqrt(x * x + y * y) - np.float32(0.61)) ** 2 + z * z)


def euler(faces: np.ndarray) -> int:
    edges = np.unique(np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)), axis=0)
    return len(np.unique(faces)) - len(edges) + len(faces)


def watertight(faces: np.ndarray) -> bool:
    """Every directed edge occurs once, and so does its reverse."""
    edges = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    once = set(map(tuple, edges.tolist()))
    return len(once) == len(edges) and once == {(b, a) for a, b in once}


def enclosed(vertices: np.ndarray, faces: np.ndarray) -> float:
    a, b, c = np.moveaxis(vertices[faces].astype(np.float64), 1, 0)
    return float((a * np.cross(b, c)).sum() / 6)


@pytest.mark.parametrize(("volume", "number"), [(sphere(33), 2), (torus(33), 0)])
def test_the_surface_is_scikit_images(volume: np.ndarray, number: int) -> None:
    vertices, faces = marching_cubes(volume)
    # "ascent": its faces wind for a left-handed grid
    theirs, their_faces, _, _ = measure.marching_cubes(volume, 0.0, gradient_direction="ascent")
    order, their_order = np.lexsort(vertices.T.round(3)), np.lexsort(theirs.T.round(3))
    np.testing.assert_allclose(vertices[order], theirs[their_order], atol=1e-4)
    assert watertight(faces)
    assert euler(faces) == euler(their_faces) == number
    assert enclosed(vertices, faces) == pytest.approx(enclosed(theirs, their_faces), rel=1e-3)  # other diagonals


def test_world_units_and_orientation() -> None:
    spacing, origin = np.full(3, 2 / 32), np.full(3, -1.0)
    vertices, faces = marching_cubes(sphere(33), spacing=spacing, origin=origin)
    assert np.abs(np.linalg.norm(vertices, axis=1) - 0.7).max() < 0.02 * spacing[0]
    assert enclosed(vertices, faces) == pytest.approx(4 / 3 * np.pi * 0.7**3, rel=0.01)
    same, turned = marching_cubes(-sphere(33), spacing=spacing, origin=origin, gradient_direction="ascent")
    np.testing.assert_allclose(same, vertices, atol=1e-6)
    assert enclosed(same, turned) == pytest.approx(enclosed(vertices, faces), rel=1e-6)


def test_unknown_nodes_are_never_crossed() -> None:
    volume = sphere(33)
    whole, whole_faces = marching_cubes(volume)
    banded = np.where(np.abs(volume) < 0.15, volume, np.float32(np.nan))
    vertices, faces = marching_cubes(banded)
    np.testing.assert_array_equal(vertices, whole)
    np.testing.assert_array_equal(faces, whole_faces)
    banded[:, :, :16] = np.nan
    vertices, faces = marching_cubes(banded)
    assert np.isfinite(vertices).all()
    assert vertices[:, 2].min() >= 16
    assert not watertight(faces)
    assert set(faces.ravel()) == set(range(len(vertices)))


def test_sparse_is_dense() -> None:
    volume = torus(25)
    index = np.flatnonzero(np.abs(volume) < 0.2)
    thin = np.full(volume.size, np.nan, np.float32)
    thin[index] = volume.ravel()[index]
    for ours, theirs in zip(
        sparse_marching_cubes(index, thin[index], volume.shape), marching_cubes(thin.reshape(volume.shape)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("shape", [(0, 4, 4), (1, 5, 5), (4, 4, 4)])
@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0, np.nan, np.inf, -np.inf])
def test_volumes_without_a_surface(shape: tuple[int, int, int], value: float) -> None:
    vertices, faces = marching_cubes(np.full(shape, value, np.float32))
    assert vertices.shape == faces.shape == (0, 3)


def test_a_plane_through_nodes() -> None:
    volume = np.broadcast_to(np.arange(-3, 4, dtype=np.float32)[:, None, None], (7, 6, 5))
    vertices, faces = marching_cubes(volume)
    assert np.isfinite(vertices).all()
    np.testing.assert_array_equal(vertices[:, 0], 3)
    assert euler(faces) == 1  # a disc
    area = np.linalg.norm(np.cross(*(vertices[faces[:, c]] - vertices[faces[:, 0]] for c in (1, 2))), axis=1) / 2
    assert area.sum() == pytest.approx(5 * 4)


def test_a_sphere_whose_nodes_lie_on_the_level() -> None:
    x, y, z = np.meshgrid(*(np.arange(-4, 5, dtype=np.float32),) * 3, indexing="ij")
    vertices, faces = marching_cubes(9 - (x * x + y * y + z * z))
    assert np.isfinite(vertices).all()
    assert watertight(faces)
    assert euler(faces) == 2


def test_a_sheet_of_one_node() -> None:
    volume = np.full((7, 9, 9), -1, np.float32)
    volume[3, 2:7, 2:7] = 1
    vertices, faces = marching_cubes(volume)
    assert watertight(faces)
    assert euler(faces) == 2
    assert np.ptp(vertices[:, 0]) == 1


def test_infinite_values() -> None:
    volume = np.where(sphere(9) > 0, np.float32(np.inf), np.float32(-np.inf))
    vertices, faces = marching_cubes(volume)
    assert np.isfinite(vertices).all()
    assert watertight(faces)


def test_every_case_of_the_table() -> None:
    for case in range(256):
        volume = np.full((4, 4, 4), -1, np.float32)
        volume[1:3, 1:3, 1:3] = np.where([case >> c & 1 for c in range(8)], 1, -1).reshape(2, 2, 2)
        _, faces = marching_cubes(volume)
        assert watertight(faces) or case == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 7), st.floats(0, 0.3))
def test_random_volumes(seed: int, n: int, holes: float) -> None:
    rng = np.random.default_rng(seed)
    volume = np.full((n + 2,) * 3, -1, np.float32)
    volume[1:-1, 1:-1, 1:-1] = rng.standard_normal((n,) * 3)
    vertices, faces = marching_cubes(volume)
    assert watertight(faces)
    volume[rng.random(volume.shape) < holes] = np.nan
    want, want_faces = reference.marching_cubes(volume, 0.0, np.zeros(3), np.ones(3), False)
    vertices, faces = marching_cubes(volume)
    np.testing.assert_allclose(vertices, want, atol=1e-5)
    np.testing.assert_array_equal(faces, want_faces)
    edges = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    assert len(np.unique(edges, axis=0)) == len(edges)


def test_torch_in_torch_out() -> None:
    torch = pytest.importorskip("torch")
    volume = sphere(17)
    vertices, faces = marching_cubes(torch.from_numpy(volume))
    assert isinstance(vertices, torch.Tensor)
    np.testing.assert_array_equal(faces.numpy(), marching_cubes(volume)[1])


def test_bad_arguments_are_named() -> None:
    volume = sphere(5)
    for name, value in [
        ("level", np.nan),
        ("spacing", (1, 0, 1)),
        ("spacing", (1, 1)),
        ("origin", (0, np.inf, 0)),
        ("gradient_direction", "up"),
    ]:
        with pytest.raises(ValueError, match=f"'{name}'"):
            marching_cubes(volume, **{name: value})
    with pytest.raises(TypeError, match="'volume'"):
        marching_cubes(volume.astype(np.float64))
    values = np.zeros(2, np.float32)
    for index, shape, name in [
        ([1, 1], (2, 2, 2), "index"),
        ([1, 8], (2, 2, 2), "index"),
        ([-1, 0], (2, 2, 2), "index"),
        ([0, 1], (2, 2), "shape"),
        ([0, 1], (2, -1, 2), "shape"),
        ([0, 1], (2, 2**40, 2**40), "shape"),
    ]:
        with pytest.raises(ValueError, match=f"'{name}'"):
            sparse_marching_cubes(np.array(index), values, shape)


def test_faces_of_the_reference_are_faces_of_the_cube() -> None:
    for face in reference.FACES:
        a, b, _, d = (np.array(c) for c in face)
        outward = np.cross(b - a, d - a)
        assert outward @ (np.mean(face, axis=0) - 0.5) > 0
    assert len(set(itertools.chain(*map(tuple, reference.FACES)))) == 8
