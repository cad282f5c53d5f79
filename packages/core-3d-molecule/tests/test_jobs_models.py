import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytest.importorskip("ase")
typer = pytest.importorskip("typer")
from core_3d_molecule import data, files, jobs_models  # noqa: E402
from core_3d_molecule.checkpoints import load_model  # noqa: E402
from core_3d_molecule.structures import Structures  # noqa: E402
from core_3d_molecule.training import read_tensors, write_tensors  # noqa: E402


@pytest.fixture(scope="module")
def molecules(tmp_path_factory):
    path = tmp_path_factory.mktemp("given") / "molecules.xyz"
    water = [[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]
    files.write(path, Structures.from_list([[8, 1, 1], [8, 1]] * 4, [water, water[:2]] * 4))
    return path


def train(given, out, **settings):
    fixed = {
        "size": "tiny",
        "steps": 2,
        "minutes": 0.0,
        "batch": 4,
        "lr": 1e-3,
        "autoencoder": None,
        "merge_level": 4,
        "device": "cpu",
    }
    jobs_models.train(
        str(given), out, **(fixed | {"property_": None, "resume": False, "save_every": 1, "seed": 0} | settings)
    )
    return out


def sample(checkpoint, out, **settings):
    fixed = {
        "count": 6,
        "target": None,
        "guidance": 0.5,
        "keep": 1.0,
        "formula": None,
        "temperature": (0.9, 0.3, 0.3),
        "noise": 1.0,
        "steps": 3,
    }
    jobs_models.sample(checkpoint, out, **(fixed | {"batch": 4, "seed": 0, "device": "cpu"} | settings))
    return files.read(out) if out.stat().st_size else None


def test_uni3dar_from_file_to_file(molecules, tmp_path):
    whole = train(molecules, tmp_path / "whole.safetensors", model="uni3dar")
    part = train(molecules, tmp_path / "part.safetensors", model="uni3dar")
    model = load_model(whole)
    for name, value in load_model(part).state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    train(molecules, part, model="uni3dar", resume=True)  # at its end: nothing is left to do
    sample(whole, tmp_path / "out.xyz", formula="H2O")
    with pytest.raises(typer.BadParameter, match="--formula"):
        sample(whole, tmp_path / "out.xyz", formula="H2Q")


def test_udm3d_from_file_to_file(molecules, tmp_path):
    coder = train(molecules, tmp_path / "coder.safetensors", model="uae3d")
    whole = train(molecules, tmp_path / "whole.safetensors", model="udm3d", autoencoder=coder)
    found = sample(whole, tmp_path / "out.xyz")
    assert len(found) == 6
    assert set(np.diff(found.offsets)) <= {2, 3}
    assert set(found.numbers) <= {1, 8}
    with pytest.raises(ValueError, match="an autoencoder alone draws nothing"):
        sample(coder, tmp_path / "out.xyz")
    with pytest.raises(ValueError, match="'target' must not be given"):
        sample(whole, tmp_path / "out.xyz", target=1.0)
    with pytest.raises(typer.BadParameter, match="--property must be one of"):
        train(molecules, whole, model="udm3d", autoencoder=coder, property_="alpha")
    with pytest.raises(typer.BadParameter, match="--autoencoder must be given"):
        train(molecules, whole, model="udm3d")


def test_conditional_udm3d(molecules, tmp_path, monkeypatch):
    given = files.read(molecules)
    rows = np.arange(len(given))
    qm9 = data.QM9(given, rows, rows.astype(str), {"alpha": rows * 2.0})
    monkeypatch.setattr(data, "load_qm9", lambda: qm9)
    monkeypatch.setattr(data, "property_halves", lambda: (rows[::2], rows[1::2]))
    coder = train(molecules, tmp_path / "coder.safetensors", model="uae3d")
    whole = train("qm9", tmp_path / "m.safetensors", model="udm3d", autoencoder=coder, property_="alpha")
    assert float(load_model(whole).context_mean) == rows[1::2].mean() * 2
    assert len(sample(whole, tmp_path / "out.xyz", target=4.0)) == 6
    with pytest.raises(ValueError, match="'target' must be given"):
        sample(whole, tmp_path / "out.xyz")


def test_hostile_checkpoints(molecules, tmp_path):
    path = train(molecules, tmp_path / "m.safetensors", model="uni3dar", steps=1)
    tensors, about = read_tensors(path)

    def changed(tensors, **config):
        other = json.loads(json.dumps(about))
        other["about"]["config"] |= config
        write_tensors(tmp_path / "bad.safetensors", tensors, other)
        return tmp_path / "bad.safetensors"

    for config, says in (
        ({"width": 4096}, r"expected .* to be"),
        ({"layers": 10**9}, "argument 'layers' is out of range"),
        ({"surprise": 1}, "expected the configuration"),
    ):
        with pytest.raises(ValueError, match=says):
            load_model(changed(tensors, **config))
    less = {k: v for k, v in tensors.items() if not k.endswith("norm.weight")}
    with pytest.raises(ValueError, match=r"expected 'norm\.weight'"):
        load_model(changed(less))
    about["about"]["model"] = "other"
    with pytest.raises(ValueError, match="expected a checkpoint of uni3dar, uae3d or udm3d, got 'other'"):
        load_model(changed(tensors))
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    with pytest.raises(ValueError, match="expected a checkpoint"):
        load_model(tmp_path / "junk.safetensors")
