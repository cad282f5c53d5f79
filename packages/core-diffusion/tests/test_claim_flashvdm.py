"""The experiment of FlashVDM runs from mesh files to figures, files and a picture; here on boxes, hardly trained."""

import dataclasses

import numpy as np
import pytest

trimesh = pytest.importorskip("trimesh")
for needed in ("torch", "diffusers", "accelerate", "matplotlib"):
    pytest.importorskip(needed)

from core_diffusion.claims import flashvdm  # noqa: E402
from core_diffusion.meshes import load_mesh, save_mesh  # noqa: E402


def test_the_experiment(tmp_path, monkeypatch):
    rng, files = np.random.default_rng(0), []
    for i in range(8):
        box = trimesh.creation.box(rng.uniform(0.3, 1, 3))
        files.append(tmp_path / f"{i}.obj")
        save_mesh(files[-1], box.vertices, box.faces)
    small = dataclasses.replace(
        flashvdm.CPU,
        held_out=2,
        rows=512,
        resolution=32,
        coarsest=16,
        shares=(2,),
        model={"latent_channels": 4, "width": 32, "heads": 2, "layers": 1, "mlp_ratio": 1},
        stages=(
            flashvdm.Stage(16, 256, {"steps": 40, "batch_size": 6, "learning_rate": 3e-3, "ema_decay": 0.9}),
            flashvdm.Stage(32, 512, {"steps": 15, "batch_size": 4, "learning_rate": 1e-3, "ema_decay": 0.9}),
        ),
    )
    monkeypatch.setattr(flashvdm, "CPU", small)
    monkeypatch.setattr(flashvdm, "mesh_files", lambda: files)
    result = flashvdm.claim("cpu", 0, tmp_path / "out")
    assert result.plot is not None
    assert result.plot.stat().st_size > 0
    measured = result.measured
    assert 0.3 < measured["IoU, dense"][0] <= 1
    assert measured["IoU, hierarchy"][0] == pytest.approx(measured["IoU, dense"][0], abs=0.02)
    vertices, _ = load_mesh(tmp_path / "out" / "2503.16302-0.glb")
    assert np.isfinite(vertices).all()
    again = flashvdm.claim("cpu", 0, tmp_path / "out").measured  # from the finished training
    assert again["IoU, dense"] == measured["IoU, dense"]
