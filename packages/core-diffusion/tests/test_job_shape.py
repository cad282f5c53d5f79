"""`core run diffusion.train-shape` and `diffusion.decode-shape` on small autoencoders."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for needed in ("diffusers", "trimesh", "matplotlib"):
    pytest.importorskip(needed)

from core_diffusion.jobs_shapes import decode_shape, train_shape  # noqa: E402
from core_diffusion.meshes import load_mesh, save_mesh  # noqa: E402
from core_diffusion.vecset import VecSetVAE  # noqa: E402
from safetensors.torch import save_file  # noqa: E402


@pytest.fixture
def model(tmp_path):
    """An autoencoder that takes every shape for the half space x > 0.1, whatever its latent set."""
    vae = VecSetVAE(8, 4, 16, 2, 1)
    decoder = vae.geo_decoder
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.zero_()
        decoder.query_proj.weight[0, 0] = 1
        decoder.query_proj.bias[0] = -0.1
        decoder.output_proj.weight[0, 0] = 1
    vae.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_mesh_and_a_latent_set_become_files(tmp_path, model):
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    save_mesh(tmp_path / "in.ply", corners, np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]))
    save_file({"latents": torch.zeros(8, 4)}, tmp_path / "in.safetensors")
    for source, target in (("in.ply", "out.glb"), ("in.safetensors", "out.ply")):
        picture = tmp_path / f"{target}.png"
        decode_shape(model, tmp_path / source, tmp_path / target, resolution=16, picture=picture)
        vertices, faces = load_mesh(tmp_path / target, 1)
        assert len(faces) > 100
        np.testing.assert_allclose(vertices[:, 0], 0, atol=1e-5)
        assert picture.read_bytes()[:4] == b"\x89PNG"
    save_file({"latents": torch.zeros(3, 4)}, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match="'latents'"):
        decode_shape(model, tmp_path / "bad.safetensors", tmp_path / "x.ply")
    assert not (tmp_path / "x.ply").exists()


def test_training_ends_with_a_model_that_decodes(tmp_path):
    pytest.importorskip("accelerate")
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    (tmp_path / "meshes").mkdir()
    for i in range(3):
        save_mesh(tmp_path / "meshes" / f"{i}.ply", corners * [1, 1 + i, 1], faces)
    save_mesh(tmp_path / "meshes" / "open.obj", corners, faces[:2])
    train_shape(tmp_path / "meshes", tmp_path / "run", steps=2)
    vae = VecSetVAE.from_pretrained(tmp_path / "run" / "model")
    assert vae.config.num_latents == 96
    with pytest.raises(ValueError, match="closed"):
        train_shape(tmp_path / "run", tmp_path / "other", steps=2)
