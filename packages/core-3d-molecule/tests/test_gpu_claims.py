"""benchmarks/gpu_claims.py end to end at a tiny size: cut off, gone on with, scored, and what a lease gives back."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
from core_3d_molecule import data  # noqa: E402
from core_3d_molecule.checkpoints import load_model  # noqa: E402
from core_3d_molecule.claims import runs, trials, uni3dar_qm9  # noqa: E402
from core_3d_molecule.claims.uni3dar_runs import load  # noqa: E402
from core_3d_molecule.structures import Structures  # noqa: E402

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu_claims.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("gpu_claims", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def qm9(tmp_path, monkeypatch):
    """Water and ammonia, each a little different."""
    rng = np.random.default_rng(0)
    numbers = [[8, 1, 1], [7, 1, 1, 1]] * 20
    water = [[0, 0, 0.119], [0, 0.763, -0.477], [0, -0.763, -0.477]]
    ammonia = [[0, 0, 0.116], [0, 0.94, -0.271], [0.814, -0.47, -0.271], [-0.814, -0.47, -0.271]]
    given = Structures.from_list(
        numbers, [np.array(p) + rng.normal(0, 0.01, (len(p), 3)) for p in [water, ammonia] * 20]
    )
    data.save_compact(tmp_path / "qm9.npz", given)
    monkeypatch.setenv("CORE_QM9", str(tmp_path / "qm9.npz"))
    return given


def test_a_module_whose_own_imports_are_missing_is_not_installed(tmp_path, monkeypatch):
    (tmp_path / "half_there.py").write_text("import surely_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert not runs.installed("half_there")
    assert not runs.installed("surely_not_there")
    assert runs.installed("json")


@pytest.mark.parametrize("name", ["uni3dar", "udm3d"])
def test_in_leases(name, script, qm9, tmp_path, monkeypatch):
    work, out, given_back = (tmp_path / x for x in ("work", "results", "back"))
    given_back.mkdir()
    monkeypatch.setenv("OUT", str(given_back))

    def call(*more):
        arguments = ["gpu_claims.py", str(work), "-o", str(out), "--only", name, "--tiny", "--oriented", *more]
        monkeypatch.setattr(script.sys, "argv", arguments)
        return script.main()

    assert call("--seconds", "0") == 3
    record = work / f"{name}-qm9.json"
    part = json.loads(record.read_text())["train" if name == "uni3dar" else "autoencoder"]
    assert part["steps"] == 1
    assert (given_back / record.name).exists()
    with monkeypatch.context() as patch:
        patch.setattr(runs, "installed", lambda module: False)
        assert call() == 2
    found = json.loads(record.read_text())
    tried = script.TINY_UNI["temperatures"] if name == "uni3dar" else script.TINY_UDM["sampling"][1]
    assert found["train" if name == "uni3dar" else "transformer"]["steps"] == 6
    samples = {path.name: path.stat().st_mtime_ns for path in work.glob("*-qm9*.npz")}
    assert list(samples) == [f"{name}-qm9.npz"]
    assert {path.name for path in given_back.iterdir()} == {*samples, record.name}
    assert set(found["trials"]) == {str(t) for t in tried}
    best = trials.chosen(found["trials"], 8)
    assert str(found["temperatures" if name == "uni3dar" else "temperature"]) == best
    if name == "uni3dar":
        assert found["held"]["nll"] == pytest.approx(sum(v for k, v in found["held"].items() if k != "nll"), rel=1e-6)
    pytest.importorskip("rdkit")
    pytest.importorskip("matplotlib")
    assert call() == 1
    assert samples == {path.name: path.stat().st_mtime_ns for path in work.glob("*-qm9*.npz")}
    table = json.loads((out / script.NAMES[name]).read_text())
    assert {"device", "date", "torch", "protocol", "columns", "rows"} <= set(table)
    assert all(list(row) == table["columns"] for row in table["rows"])


@pytest.mark.parametrize("name", ["uni3dar", "udm3d"])
def test_weights_come_home_in_shares(name, script, qm9, tmp_path, monkeypatch):
    """Pieces of two calls make the model again, from which samples are drawn without training."""
    work, home = tmp_path / "work", tmp_path / "home"
    home.mkdir()
    monkeypatch.setattr(script, "PIECE", 20_000)
    monkeypatch.setattr(runs, "installed", lambda module: False)

    def call(folder, *more):
        monkeypatch.setattr(
            script.sys, "argv", ["x", str(folder), "-o", str(tmp_path), "--only", name, "--tiny", *more]
        )
        return script.main()

    found = {}
    for share in (1, 2):
        monkeypatch.setenv("OUT", str(home))
        assert call(work, "--weights", str(share), "2") == 2
        found[share] = {path.name for path in home.glob("weights-*")}
        assert max(path.stat().st_size for path in home.glob("weights-*")) < 62_000
        if share == 1:
            script.join(home, name)
            assert not list(home.glob("*-weights.safetensors"))
    assert 0 < len(found[1]) < len(found[2])
    monkeypatch.delenv("OUT")
    (home / f"{name}-qm9.npz").unlink()
    assert call(home) == 2
    assert not (home / f"{name}-qm9.safetensors").exists()
    assert (home / f"{name}-qm9.npz").exists()
    whole, joined = (
        load_model(p) for p in (work / f"{name}-qm9.safetensors", home / f"{name}-qm9-weights.safetensors")
    )
    for (key, value), other in zip(whole.state_dict().items(), joined.state_dict().values(), strict=True):
        exact = key.startswith("autoencoder.")
        torch.testing.assert_close(other, value, atol=0 if exact else 1e-4, rtol=0 if exact else 1e-3, msg=key)


def test_what_settings_are_chosen_by(qm9):
    """Of repeated molecules one counts, of broken ones none; near the best, the most valid ones decide."""
    assert trials.scores(qm9, 40) == {"valid": 1.0, trials.DECIDES: 2 / 40}
    broken = Structures(qm9.numbers, qm9.positions * 2, qm9.offsets)
    assert trials.scores(broken, 40) == {"valid": 0.0, trials.DECIDES: 0.0}
    assert trials.scores(qm9.select([0]), 4) == {"valid": 1 / 4, trials.DECIDES: 1 / 4}
    tried = {n: {"valid": v, trials.DECIDES: d} for n, v, d in (("a", 0.7, 0.6), ("b", 0.8, 0.59), ("c", 0.9, 0.5))}
    assert trials.chosen(tried, 100) == "b"
    assert trials.chosen(tried, 100_000) == "a"


def test_nats_of_held_molecules(qm9):
    """A model that says nothing pays for each token what an even guess costs."""
    from core_3d_molecule.octree import Augmentation
    from core_3d_molecule.uni3dar import Config, Uni3DAR

    model = Uni3DAR(Config(layers=1, width=48, heads=1)).eval()
    for head in (model.heads[0].tree, *model.heads[0].atom.heads):
        torch.nn.init.zeros_(head[-1].weight)
    found = uni3dar_qm9.nats(model, qm9, Augmentation(), 0)
    atoms = len(qm9.numbers) / len(qm9)
    assert found["type"] == pytest.approx(atoms * np.log(118), rel=1e-4)
    assert found["xyz"] == pytest.approx(3 * atoms * np.log(24), rel=1e-4)
    assert found["tree 6"] == pytest.approx(np.log(255), rel=1e-4)
    assert found["nll"] == pytest.approx(sum(v for k, v in found.items() if k != "nll"), rel=1e-6)


def test_samples_come_back(qm9, tmp_path):
    from core_3d_molecule.claims.uni3dar_runs import save

    for scores in (None, np.arange(len(qm9), dtype=np.float32)):
        save(tmp_path / "s.npz", qm9, scores)
        found, back = load(tmp_path / "s.npz")
        np.testing.assert_allclose(found.positions, qm9.positions, atol=1e-6)
        np.testing.assert_array_equal(found.numbers, qm9.numbers)
        assert back is None if scores is None else np.array_equal(back, scores)
