"""The jobs of shapes on small models: `core run diffusion.train`, `diffusion.sample` and `diffusion.decode-shape`."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for needed in ("diffusers", "trimesh", "matplotlib"):
    pytest.importorskip(needed)

from core_diffusion.jobs_models import sample, train  # noqa: E402
from core_diffusion.jobs_shapes import decode_shape  # noqa: E402
from core_diffusion.latent_flow import LatentTransformer  # noqa: E402
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


def test_shapes_from_noise(tmp_path, monkeypatch):
    """Autoencoder, flow over its latent sets, distilled flow; each goes on from what the one before has written."""
    pytest.importorskip("accelerate")
    from core_diffusion import shape_recipes

    monkeypatch.setitem(shape_recipes.FLOW_SIZES, "cpu", shape_recipes.FlowSize(16, 2, 1, 2, 2, 2, 0.5))
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    folder, vae, flow, student = (tmp_path / name for name in ("meshes", "vae", "flow", "student"))
    folder.mkdir()
    for i in range(3):
        save_mesh(folder / f"{i}.ply", corners * [1, 1 + i, 1], faces)
    save_mesh(folder / "open.obj", corners, faces[:2])
    train("vecset", vae, meshes=folder, steps=2)
    assert VecSetVAE.from_pretrained(vae / "model").config.num_latents == 96
    train("latent-flow", flow, meshes=folder, autoencoder=vae)
    train("distilled-flow", student, meshes=folder, autoencoder=vae, teacher=flow)
    assert {p.name for p in student.iterdir()} == {"guidance", "consistency", "adversarial", "model"}
    teacher, taught = (LatentTransformer.from_pretrained(run / "model") for run in (flow, student))
    assert taught.config.latent_scale == teacher.config.latent_scale != 1
    assert any((a != b).any() for a, b in zip(teacher.parameters(), taught.parameters(), strict=True))
    for target, count in (("some.png", 2), ("one.ply", 1)):
        sample(student, tmp_path / target, autoencoder=vae, count=count, steps=5, seed=1)
        assert (tmp_path / target).stat().st_size > 50
    with pytest.raises(ValueError, match="closed"):
        train("vecset", tmp_path / "other", meshes=vae, steps=2)
    for bad, name in (({}, "meshes"), ({"meshes": folder}, "autoencoder")):
        with pytest.raises(ValueError, match=f"latent-flow needs option --{name}"):
            train("latent-flow", tmp_path / "other", **bad)
    with pytest.raises(ValueError, match="holds a LatentTransformer, not a VecSetVAE"):
        train("latent-flow", tmp_path / "other", meshes=folder, autoencoder=flow)
    with pytest.raises(ValueError, match="one shape, got --count 40"):
        sample(student, tmp_path / "x.glb", autoencoder=vae)


def test_a_flow_of_other_sizes_is_distilled(tmp_path, monkeypatch):
    pytest.importorskip("accelerate")
    from core_diffusion import shape_recipes

    monkeypatch.setitem(shape_recipes.FLOW_SIZES, "cpu", shape_recipes.FlowSize(16, 2, 1, 2, 2, 2, 0.5))
    data = {"x": torch.randn(3, 8, 4), "condition": torch.rand(3, 3)}
    teacher = shape_recipes.fit_flow(data, 2.0, tmp_path / "teacher")
    student = shape_recipes.fit_student(data, teacher, tmp_path, steps=1)
    assert student.config.latent_channels == 4
    assert student.config.latent_scale == 2.0


def test_boxes():
    from core_diffusion.shape_recipes import box_sides

    cloud = torch.tensor([[[0.0, 0, 0, 9], [1, 2, 3, 9]], [[1, 1, 1, 9], [-1, 1, 0.5, 9]]])
    assert box_sides(cloud).tolist() == [[1, 2, 3], [2, 0, 0.5]]
