"""Uni-3DAR's heads for properties: trained beside generation, resumed, and predicting new molecules."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
from core_3d_molecule.checkpoints import load_model  # noqa: E402
from core_3d_molecule.octree import Augmentation  # noqa: E402
from core_3d_molecule.structures import Structures  # noqa: E402
from core_3d_molecule.training import Optimisation  # noqa: E402
from core_3d_molecule.uni3dar import Config, Understanding, Uni3DAR, make_property_trainer  # noqa: E402

TINY = Config(layers=2, width=48, heads=2, merge_level=4, dropout=0, drop_path=0)
TURN = Augmentation(rotate=1.0, noise=0.0, shift=0, drop=0.0)


def molecules(count, seed=0, pure=False):
    """Atoms in different cells; `pure`: of one element in each molecule."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 7, count)
    cells = [rng.permutation(27)[:n] for n in sizes]
    positions = [np.stack([c % 3, c // 3 % 3, c // 9], 1) * 0.45 + rng.uniform(0, 0.01, (len(c), 3)) for c in cells]
    elements = [rng.choice([1, 6, 7, 8], 1 if pure else n) for n in sizes]
    return Structures.from_list(
        [np.resize(e, n).astype(np.int32) for e, n in zip(elements, sizes, strict=True)], positions
    )


def element(given):
    """Of each molecule's first atom, as a property (molecules, 1)."""
    return np.asarray(given.numbers)[np.asarray(given.offsets)[:-1], None].astype(np.float32)


def trainer(given, values, level, steps):
    optimisation = Optimisation(steps=steps, lr=4e-3, warmup=min(10, steps), ema=0.9)
    return make_property_trainer(given, values, TINY, optimisation, level=level, rows=900, augment=TURN)


def test_molecules_property_is_learnt_and_new_molecules_predicted(tmp_path):
    given, held = molecules(120, pure=True), molecules(30, 1, pure=True)
    whole = trainer(given, element(given), -1, 60)
    list(whole.run(60))
    whole.save(tmp_path / "m.safetensors")
    model = load_model(tmp_path / "m.safetensors")
    assert isinstance(model, Understanding)
    found, want = model.predict(held), element(held)
    assert found.shape == (30, 1)
    assert np.abs(found - want).mean() < 0.25 * np.abs(want - want.mean()).mean()
    np.testing.assert_array_equal(found, model.predict(held))


def test_atoms_property_comes_in_the_order_of_the_atoms():
    given, held = molecules(120), molecules(30, seed=1)

    def values(structures):
        numbers = np.asarray(structures.numbers)
        return np.stack([numbers % 5, -numbers], 1).astype(np.float32)

    whole = trainer(given, values(given), 0, 60)
    list(whole.run(60))
    whole.model.load_state_dict(whole.averaged())
    found, want = whole.model.predict(held), values(held)
    assert found.shape == want.shape
    assert np.abs(found - want).mean() < 0.25 * np.abs(want - want.mean(0)).mean()


def test_resumed_run_is_the_same_run(tmp_path):
    given = molecules(40)
    whole = trainer(given, element(given), -1, 6)
    list(whole.run(3))
    whole.save(tmp_path / "half.safetensors")
    rest = [float(f["loss"]) for f in whole.run(3)]
    again = trainer(given, element(given), -1, 6)
    again.load(tmp_path / "half.safetensors")
    assert [float(f["loss"]) for f in again.run(3)] == rest


def test_generation_goes_on():
    """A trained model may be given, and its cross-entropies are in the loss."""
    given = molecules(20)
    torch.manual_seed(0)
    model = Uni3DAR(TINY)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    made = make_property_trainer(given, element(given), model, Optimisation(steps=1, lr=1e-9), rows=900)
    first = next(iter(made.run(1)))
    assert float(first["loss"]) > 50 * float(first["error"]) + 1
    for name, value in made.model.model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-7)


@pytest.mark.parametrize("values", [np.zeros(4), np.zeros((3, 1)), np.full((4, 1), np.nan), np.zeros((4, 0))])
def test_bad_values(values):
    with pytest.raises(ValueError, match="'values' must be finite"):
        make_property_trainer(molecules(4), values, TINY, Optimisation(steps=1))
