import numpy as np
import pytest

torch = pytest.importorskip("torch")

from core_diffusion.meshes import (  # noqa: E402
    draw_meshes,
    load_mesh,
    sample_surface,
    save_mesh,
    shape_rows,
    shape_set,
    signed_distance,
    winding_number,
)


def box(low=(-0.5, -0.4, -0.3), high=(0.5, 0.4, 0.3)):
    """Vertices and outward triangles of a box."""
    corner = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = [t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))]
    vertices = np.where(corner, high, low)
    return torch.from_numpy(vertices), torch.tensor(faces)


def box_distance(p):
    q = p.abs() - torch.tensor([0.5, 0.4, 0.3], dtype=p.dtype)
    return -(q.clamp(min=0).norm(dim=1) + q.amax(1).clamp(max=0))


def test_inside_and_distance_of_a_box():
    vertices, faces = box()
    points = torch.rand(2000, 3, dtype=torch.float64) * 2 - 1
    want = box_distance(points)
    torch.testing.assert_close(winding_number(points, vertices, faces), (want > 0).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(signed_distance(points, vertices, faces), want, rtol=0, atol=1e-9)
    turned = signed_distance(points, vertices, faces[:, [0, 2, 1]])  # inside out: nothing is inside
    torch.testing.assert_close(turned, -want.abs(), rtol=0, atol=1e-9)
    assert winding_number(points[:0], vertices, faces).shape == (0,)


def test_triangles_without_area_do_no_harm():
    vertices, faces = box()
    faces = torch.cat([faces, torch.tensor([[0, 0, 1], [2, 2, 2]])])
    points = torch.rand(200, 3, dtype=torch.float64) * 2 - 1
    torch.testing.assert_close(signed_distance(points, vertices, faces), box_distance(points), rtol=0, atol=1e-9)


def test_distance_of_a_mesh_against_libigl():
    igl = pytest.importorskip("igl")
    rng = np.random.default_rng(0)
    vertices, faces = rng.standard_normal((20, 3)), rng.integers(0, 20, (30, 3))
    points = rng.standard_normal((500, 3))
    ours = signed_distance(*map(torch.from_numpy, (points, vertices, faces))).abs()
    squared = igl.point_mesh_squared_distance(points, vertices, faces)[0]
    np.testing.assert_allclose(ours, np.sqrt(squared), atol=1e-9)


def test_samples_lie_on_the_surface_evenly():
    vertices, faces = box()
    points, normals = sample_surface(vertices, faces, 20000, torch.Generator().manual_seed(0))
    assert box_distance(points).abs().max() < 1e-9
    torch.testing.assert_close(box_distance(points + 1e-3 * normals), torch.full((20000,), -1e-3, dtype=torch.float64))
    area = torch.tensor([0.8 * 0.6, 0.6 * 1.0, 0.8 * 1.0]).double() / (0.48 + 0.6 + 0.8)
    share = normals.abs().round().mean(0)
    torch.testing.assert_close(share, area, rtol=0, atol=0.02)
    with pytest.raises(ValueError, match="'faces'"):
        sample_surface(vertices, torch.zeros(2, 3, dtype=torch.int64), 5)


def test_rows_of_overlapping_boxes_are_of_their_union():
    (a, f), (b, _) = box(), box((-0.2, -0.2, -0.9), (0.2, 0.2, 0.9))
    vertices, faces = torch.cat([a, b]).float(), torch.cat([f, f + 8])
    rows = shape_rows(vertices, faces, 500, 1000, 1000, torch.Generator().manual_seed(0))
    assert rows["surface"].shape == (500, 6)
    assert rows["points"].shape == (2000, 3)
    p = rows["points"].double()
    within = lambda p, low, high: ((p > low) & (p < high)).all(1)  # noqa: E731
    union = within(p, a[0], a[-1]) | within(p, b[0], b[-1])
    assert (rows["inside"] == union).double().mean() > 0.999
    q = rows["surface"][:, :3].double()
    inner = within(q, a[0] + 2e-3, a[-1] - 2e-3) | within(q, b[0] + 2e-3, b[-1] - 2e-3)
    assert not inner.any()


def test_bad_arguments_are_named():
    vertices, faces = box()
    with pytest.raises(ValueError, match="'points'"):
        winding_number(torch.zeros(3), vertices, faces)
    with pytest.raises(ValueError, match="'faces'"):
        winding_number(vertices, vertices, faces + 1)


@pytest.mark.parametrize("suffix", ["ply", "glb", "obj"])
def test_files_and_pictures(tmp_path, suffix):
    pytest.importorskip("trimesh")
    vertices, faces = (x.numpy() for x in box())
    save_mesh(tmp_path / f"box.{suffix}", vertices, faces)
    again, triangles = load_mesh(tmp_path / f"box.{suffix}")
    assert len(triangles) == 12
    np.testing.assert_allclose(np.abs(again).max(0), [0.95, 0.76, 0.57], rtol=1e-5)
    if suffix == "ply":
        draw_meshes(tmp_path / "box.png", [("a box", again, triangles)])
        assert (tmp_path / "box.png").read_bytes()[:4] == b"\x89PNG"
    (tmp_path / "empty.obj").write_text("v 0 0 0\n")
    with pytest.raises(ValueError, match="no triangles"):
        load_mesh(tmp_path / "empty.obj")


def test_a_training_set_leaves_bad_files_out_and_says_so(tmp_path):
    pytest.importorskip("trimesh")
    vertices, faces = (x.numpy() for x in box())
    save_mesh(tmp_path / "good.obj", vertices, faces)
    save_mesh(tmp_path / "open.obj", vertices, faces[:-3])
    save_mesh(tmp_path / "nan.obj", np.where(np.arange(8)[:, None] == 5, np.nan, vertices), faces)
    paths = [tmp_path / f"{name}.obj" for name in ("nan", "good", "open")]
    with pytest.warns(UserWarning, match=r"left out: .*nan\.obj has \d+ of 12 triangles .* not finite") as seen:
        shapes, rows = shape_set(paths, 64, torch.device("cpu"), torch.Generator().manual_seed(0))
    assert len(seen) == 1
    assert len(shapes) == 1
    assert rows["points"].shape == (1, 128, 3)
    assert all(torch.isfinite(x).all() for x in rows.values())
    with pytest.warns(UserWarning, match="left out"), pytest.raises(ValueError, match="closed mesh"):
        shape_set(paths[:1], 64, torch.device("cpu"), torch.Generator())
