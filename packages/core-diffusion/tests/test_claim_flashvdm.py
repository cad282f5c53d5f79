"""The experiment of FlashVDM runs from mesh files to figures, files and a picture; here on boxes, hardly trained."""

import json

import numpy as np
import pytest

trimesh = pytest.importorskip("trimesh")
for needed in ("torch", "diffusers", "accelerate", "matplotlib"):
    pytest.importorskip(needed)

from core_diffusion.claims import flashvdm  # noqa: E402
from core_diffusion.meshes import load_mesh, save_mesh  # noqa: E402


@pytest.fixture
def boxes(tmp_path, monkeypatch):
    """Eight files of boxes in place of pybullet's meshes."""
    rng, files = np.random.default_rng(0), []
    for i in range(8):
        box = trimesh.creation.box(rng.uniform(0.3, 1, 3))
        files.append(tmp_path / f"{i}.obj")
        save_mesh(files[-1], box.vertices, box.faces)
    monkeypatch.setattr(flashvdm, "mesh_files", lambda: files)


def test_the_experiment(boxes, tmp_path):
    result = flashvdm.claim("tiny", 0, tmp_path / "out")
    assert result.plot is not None
    assert result.plot.stat().st_size > 0
    measured = result.measured
    assert 0.3 < measured["IoU, dense"][0] <= 1
    assert measured["IoU, hierarchy"][0] == pytest.approx(measured["IoU, dense"][0], abs=0.02)
    assert measured["steps, 16 latent vectors"] == (40, 0)
    told = json.loads((tmp_path / "out" / "2503.16302.json").read_text())
    assert {row["what"]: (row["value"], row["spread"]) for row in told["rows"]} == measured
    assert [bar["bar"] for bar in told["bars"]] == [0.001, 0.95, 8, 1.3, 45]
    assert all(bar["met"] == ((bar["value"] <= bar["bar"]) == bar["most"]) for bar in told["bars"])
    assert result.holds == all(bar["met"] for bar in told["bars"])
    vertices, _ = load_mesh(tmp_path / "out" / "2503.16302-0.glb")
    assert np.isfinite(vertices).all()
    again = flashvdm.claim("tiny", 0, tmp_path / "out").measured  # from the finished training
    assert again["IoU, dense"] == measured["IoU, dense"]


def test_what_is_not_measured_meets_no_bar():
    shown, way = flashvdm.bars(flashvdm.GPU, {"IoU, dense": (0.99, 0.0)})
    assert [bar.met for bar in shown] == [False, True, False, False, False]
    assert way == "hierarchy"
    measured = {"IoU, dense": (0.99, 0.0), "IoU, hierarchy": (0.99, 0.0)}
    for way, seconds, overlap in (("1024 keys", 0.5, 0.985), ("512 keys", 0.4, 0.981), ("256 keys", 0.1, 0.9)):
        measured |= {f"{way}, s at {r}": (seconds, 0.0) for r in (256, 512)} | {f"IoU, {way}": (overlap, 0.0)}
    measured |= {"dense, s at 256": (8.0, 0.0), "hierarchy, s at 256": (0.6, 0.0)}
    measured["dense with the usual MLP, s at 512"] = 20.0, 0.0
    shown, way = flashvdm.bars(flashvdm.GPU, measured)
    assert way == "512 keys"
    assert [bar.value for bar in shown] == pytest.approx([0, 0.99, 8 / 0.6, 0.6 / 0.4, 20 / 0.4])
    assert all(bar.met for bar in shown)
