"""Loaders of posed photographs, against files written here field by field, and OpenCV's distortion."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from core_splatting.scenes import SceneError, load_scene, undistort

Image = pytest.importorskip("PIL.Image")
FOX = Path(os.environ.get("CORE_SPLAT_DATA", "/nonexistent")) / "fox"
QUAT, PLACE = (0.9, 0.1, -0.3, 0.2), (0.5, -1.0, 2.0)
POINTS = np.array([[1.0, 2, 3], [-4, 5.5, 6], [0, 0, 1e3]])
OPENCV = (40.0, 41.0, 16.0, 12.0, 0.1, -0.02, 0.01, -0.003)


def photographs(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    for name in ("b.png", "a.png"):
        pixels = np.random.default_rng(len(name)).integers(0, 256, (24, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / name)


def colmap(folder: Path, binary: bool, model: int = 4) -> Path:
    photographs(folder)
    sparse = folder / "sparse" / "0"
    sparse.mkdir(parents=True)
    if binary:
        params = OPENCV if model == 4 else OPENCV[:12]
        (sparse / "cameras.bin").write_bytes(struct.pack("<QiiQQ8d", 1, 7, model, 32, 24, *params))
        records = b"".join(
            struct.pack("<i7di", i, *QUAT, *PLACE, 7) + name + b"\0" + struct.pack("<Q", i) + bytes(24 * i)
            for i, name in enumerate((b"b.png", b"a.png"))
        )
        (sparse / "images.bin").write_bytes(struct.pack("<Q", 2) + records)
        points = b"".join(
            struct.pack("<Q3d3BdQ", i, *p, 255, 0, i, 0.5, i) + bytes(8 * i) for i, p in enumerate(POINTS)
        )
        (sparse / "points3D.bin").write_bytes(struct.pack("<Q", 3) + points)
    else:
        numbers = " ".join(map(str, OPENCV))
        (sparse / "cameras.txt").write_text(f"# cameras\n7 OPENCV 32 24 {numbers}\n")
        pose = " ".join(map(str, (*QUAT, *PLACE)))
        (sparse / "images.txt").write_text(f"# images\n0 {pose} 7 b.png\n\n1 {pose} 7 a.png\n1.5 2.5 -1\n")
        rows = "\n".join(f"{i} {p[0]} {p[1]} {p[2]} 255 0 {i} 0.5 1 2" for i, p in enumerate(POINTS))
        (sparse / "points3D.txt").write_text(f"# points\n{rows}\n")
    return folder


@pytest.mark.parametrize("binary", [True, False])
def test_colmap(tmp_path: Path, binary: bool) -> None:
    scene = load_scene(colmap(tmp_path, binary))
    assert [v.path.name for v in scene.views] == ["a.png", "b.png"]
    view = scene.views[0]
    r = view.viewmat[:3, :3]
    np.testing.assert_allclose(r @ r.T, np.eye(3), atol=1e-12)
    w, *xyz = np.array(QUAT) / np.linalg.norm(QUAT)
    p = np.array([1.0, -2, 0.5])
    turned = p + 2 * np.cross(xyz, np.cross(xyz, p) + w * p)  # Rodrigues' form, not the matrix
    np.testing.assert_allclose(r @ p, turned, atol=1e-12)
    np.testing.assert_array_equal(view.viewmat[:3, 3], PLACE)
    np.testing.assert_array_equal(view.K, [[40, 0, 16], [0, 41, 12], [0, 0, 1]])
    assert view.distortion == OPENCV[4:]
    np.testing.assert_array_equal(scene.points, POINTS)
    np.testing.assert_allclose(scene.colors, [[1, 0, i / 255] for i in range(3)])
    image, K = view.load(2)
    assert image.shape == (12, 16, 3)
    np.testing.assert_allclose(K[:2], view.K[:2] / 2)


def test_undistortion_is_opencvs_model() -> None:
    # A picture that is a linear function of its place shows where each pixel was taken from.
    K = np.array([[40.0, 0, 16], [0, 41, 12], [0, 0, 1]])
    ys, xs = np.mgrid[:24, :32].astype(np.float32)
    out = undistort(np.stack([xs, ys], -1), K, (0.05, -0.02, 0.01, -0.003))
    for row, column in ((12, 16), (5, 9), (20, 25)):
        x, y = (column + 0.5 - 16) / 40, (row + 0.5 - 12) / 41
        r2 = x * x + y * y
        radial = 1 + 0.05 * r2 - 0.02 * r2 * r2
        u = x * radial + 2 * 0.01 * x * y - 0.003 * (r2 + 2 * x * x)
        v = y * radial + 0.01 * (r2 + 2 * y * y) - 2 * 0.003 * x * y
        np.testing.assert_allclose(out[row, column], [u * 40 + 16 - 0.5, v * 41 + 12 - 0.5], atol=1e-4)
    np.testing.assert_array_equal(undistort(np.stack([xs, ys], -1), K, (0, 0, 0, 0)), np.stack([xs, ys], -1))


def transforms(folder: Path, **change: Any) -> Path:
    photographs(folder)
    matrix = np.eye(4)
    matrix[:3, 3] = [1, 2, 3]
    frames = [{"file_path": f"images/{n}.png", "transform_matrix": matrix.tolist()} for n in ("b", "a", "missing")]
    data: dict[str, Any] = {"w": 32, "h": 24, "fl_x": 40.0, "k1": 0.1, "frames": frames} | change
    (folder / "transforms.json").write_text(json.dumps({k: v for k, v in data.items() if v is not None}))
    return folder


def test_nerfstudio(tmp_path: Path) -> None:
    scene = load_scene(transforms(tmp_path))
    assert [v.path.name for v in scene.views] == ["a.png", "b.png"]
    view = scene.views[0]
    # OpenGL's camera at (1, 2, 3) looks along -z: a point before it is at positive depth, one above it is up.
    np.testing.assert_allclose((view.viewmat @ [1, 2, 0, 1])[:3], [0, 0, 3])
    np.testing.assert_allclose((view.viewmat @ [1, 3, 3, 1])[:3], [0, -1, 0], atol=1e-12)
    np.testing.assert_array_equal(view.K, [[40, 0, 16], [0, 40, 12], [0, 0, 1]])
    assert view.distortion == (0.1, 0, 0, 0)
    np.testing.assert_allclose(scene.centres, [[1, 2, 3]] * 2)
    train, held = scene.split(2)
    assert [v.path.name for v in train + held] == ["b.png", "a.png"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"frames": 3}, "frames"),
        ({"w": "wide"}, "'w'"),
        ({"fl_x": -1.0}, "focal"),
        ({"camera_model": "FISHEYE"}, "camera_model"),
        ({"frames": [{"file_path": "images/a.png", "transform_matrix": [[1]]}]}, "frame 0"),
        ({"frames": [{"file_path": "images/none.png"}]}, "1 are missing"),
        ({"k3": 0.1}, "k3"),
        ({"fl_x": 10**400}, "'fl_x'"),
        ({"fl_x": None, "camera_angle_x": 0}, "focal"),
        ({"frames": [{"file_path": "images/a.png", "transform_matrix": [[10**400] * 4] * 4}]}, "frame 0"),
        ({"frames": [{"file_path": "images/a.png", "transform_matrix": [[1e9] * 4] * 4}]}, "rotation"),
        ({"frames": [{"file_path": name} for name in ("x" * 5000, "a\0", "\ud800", ".", "")]}, "5 are missing"),
        ({"w": None, "frames": [{"file_path": "transforms.json", "transform_matrix": np.eye(4).tolist()}]}, "Pillow"),
    ],
)
def test_refusals_of_transforms(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(SceneError, match=says):
        load_scene(transforms(tmp_path, **change))


@pytest.mark.parametrize("kind", ["bin", "txt"])
@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
def test_abuse_of_colmap(tmp_path: Path, abused: Callable[..., None], name: str, kind: str) -> None:
    scene = colmap(tmp_path, kind == "bin")
    abused(scene / "sparse" / "0" / f"{name}.{kind}", lambda: load_scene(scene), SceneError)


def test_abuse_of_transforms(tmp_path: Path, abused: Callable[..., None]) -> None:
    scene = transforms(tmp_path)
    abused(scene / "transforms.json", lambda: load_scene(scene), SceneError)


@pytest.mark.parametrize(
    ("name", "line", "says"),
    [
        ("cameras", "1 PINHOLE nan 8 8 8 4 4", "line 1.*whole numbers"),
        ("cameras", f"1 PINHOLE {'9' * 5000} 8 8 8 4 4", "line 1.*whole numbers"),
        ("cameras", f"1 PINHOLE 8 8 {'9' * 400} 8 4 4", "line 1.*focal"),
        ("images", "0 1 0 0 0 0 0 0 inf a.png", "line 1.*whole numbers"),
        ("images", "0 1 0 0 0 0 0 0", "line 1.*whole numbers"),
        ("points3D", "0 1 2 3 4 5", "line 1.*6 numbers"),
        ("points3D", "0" * (1 << 24), "line 1.*letters"),
    ],
)
def test_refusals_of_colmaps_text(tmp_path: Path, name: str, line: str, says: str) -> None:
    scene = colmap(tmp_path, False)
    (scene / "sparse" / "0" / f"{name}.txt").write_text(line)
    with pytest.raises(SceneError, match=says):
        load_scene(scene)


def test_odd_points(tmp_path: Path) -> None:
    scene = colmap(tmp_path, False)
    path = scene / "sparse" / "0" / "points3D.txt"
    path.write_text("0 1 2 3 nan 300 -4\n1 nan 2 3 4 5 6\n")
    np.testing.assert_array_equal(load_scene(scene).points, [[1, 2, 3]])
    np.testing.assert_array_equal(load_scene(scene).colors, [[0, 1, 0]])
    path.write_text("")
    assert load_scene(scene).points.shape == (0, 3)
    scene = colmap(tmp_path / "binary", True)
    (scene / "sparse" / "0" / "points3D.bin").write_bytes(bytes(8))
    assert load_scene(scene).points.shape == load_scene(scene).colors.shape == (0, 3)


def test_wrong_pictures(tmp_path: Path) -> None:
    scene = load_scene(colmap(tmp_path, True))
    scene.views[0].path.write_bytes(b"no picture")
    with pytest.raises(SceneError, match=r"a\.png: image"):
        scene.views[0].load()
    Image.new("RGB", (5, 5)).save(scene.views[1].path)
    with pytest.raises(SceneError, match="32 x 24"):
        scene.views[1].load()
    with pytest.raises(SceneError, match=r"cameras\.bin"):
        load_scene(tmp_path / "images")


@pytest.mark.skipif(not FOX.exists(), reason="needs CORE_SPLAT_DATA")
def test_fox() -> None:
    scene = load_scene(FOX)
    assert len(scene.views) == 50
    image, _ = scene.views[0].load(12)
    assert image.shape == (160, 90, 3)
    point, distance = scene.focus()
    # All cameras look at what stands in the middle.
    for view in scene.views:
        seen = view.viewmat @ np.append(point, 1)
        assert seen[2] > 0.3 * distance
        assert np.hypot(seen[0], seen[1]) < 0.5 * seen[2]
