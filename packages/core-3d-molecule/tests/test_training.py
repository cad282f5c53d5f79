"""What the trainers share: schedules over steps and time, fixed sizes of batches, records; on CUDA, replayed steps."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
from core_3d_molecule import data  # noqa: E402
from core_3d_molecule.claims.runs import Record, UnfinishedError, train  # noqa: E402
from core_3d_molecule.octree import Augmentation  # noqa: E402
from core_3d_molecule.structures import Structures  # noqa: E402
from core_3d_molecule.training import Optimisation, Trainer  # noqa: E402
from core_3d_molecule.udm3d import UAE3D, Dataset, dit, make_autoencoder_trainer, make_diffusion_trainer  # noqa: E402
from core_3d_molecule.udm3d.batches import Room, orders_of  # noqa: E402
from core_3d_molecule.udm3d.vae import Config, Weights, weighted  # noqa: E402
from core_3d_molecule.uni3dar import Config as Shape  # noqa: E402
from core_3d_molecule.uni3dar import make_trainer  # noqa: E402

SMALL = Config(hidden=16, edge=8, heads=2, encoder_layers=2, decoder_layers=1, latent=4, most_atoms=7, dropout=0)


def molecules(count=60, most=7, seed=0):
    rng = np.random.default_rng(seed)
    counts = rng.integers(2, most + 1, count)
    numbers = [rng.choice([1, 6, 7, 8], n).astype(np.int32) for n in counts]
    return Structures.from_list(numbers, [rng.normal(0, 1.2, (n, 3)) for n in counts])


def quadratic(optimisation):
    """A trainer whose loss is the square of its only weight."""
    model = torch.nn.Linear(1, 1, bias=False)

    def batches(state):
        at = (state or {"at": 0})["at"]
        while True:
            at += 1
            yield torch.ones(1), {"at": at}

    return Trainer(model, lambda x: {"loss": model(x).square().sum()}, batches, optimisation)


def test_rate_over_steps_and_over_time():
    steps = Optimisation(steps=100, lr=1.0, last_lr=0.1, warmup=10)
    assert steps.rate(0) == pytest.approx(0.1)
    assert steps.rate(10) == 1.0
    assert steps.rate(55) == pytest.approx(0.55)
    assert steps.rate(99) == pytest.approx(0.1, abs=0.001)
    assert steps.rate(55, seconds=1e9) == steps.rate(55)
    timed = Optimisation(steps=10**6, minutes=2, lr=1.0, last_lr=0.1, warmup=10)
    assert timed.rate(4, 60) == pytest.approx(0.5)
    assert timed.rate(1000, 60) == pytest.approx(0.55)
    assert timed.rate(1000, 120) == pytest.approx(0.1)
    assert timed.rate(1000, 500) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="'minutes' is out of range"):
        Optimisation(steps=1, minutes=-1)


def test_time_ends_a_run_and_goes_into_its_checkpoint(tmp_path, monkeypatch):
    from core_3d_molecule import training

    clock = iter(np.arange(0, 1e6, 10))  # ten seconds a look, and two looks a step
    monkeypatch.setattr(training.time, "perf_counter", lambda: next(clock))
    first = quadratic(Optimisation(steps=1000, minutes=1, lr=0.1))
    assert len(list(first.run(4))) == 4
    assert not first.done
    first.save(tmp_path / "t.safetensors")
    second = quadratic(Optimisation(steps=1000, minutes=1, lr=0.1))
    second.load(tmp_path / "t.safetensors")
    assert second.seconds == 40
    assert len(list(second.run(1000))) == 2
    assert second.done
    assert not list(second.run(1000))


def test_record_and_resumed_run(tmp_path):
    def once(steps):
        trainer = quadratic(Optimisation(steps=40, lr=0.1))
        monitored = Record(tmp_path / "r.json")
        if steps < 40:
            list(trainer.run(steps))
            trainer.save(tmp_path / "r.safetensors")
        else:
            train(trainer, tmp_path / "r.safetensors", monitored, "square")
        return trainer

    once(20)
    trainer = once(40)
    assert trainer.done
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["square"]["steps"] == 40
    assert found["curves"]["square"][-1]["loss"] == pytest.approx(found["square"]["loss"])
    again = once(40)
    assert again.step == 40
    assert torch.equal(again.model.weight, trainer.model.weight)


def test_a_call_that_is_over_in_time_goes_on_exactly(tmp_path):
    def trainer():
        torch.manual_seed(0)
        return quadratic(Optimisation(steps=9, lr=0.1))

    checkpoint, record = tmp_path / "p.safetensors", tmp_path / "p.json"
    for done in range(1, 9):  # a step a call
        part = trainer()
        with pytest.raises(UnfinishedError, match="call again"):
            train(part, checkpoint, Record(record, seconds=0), "square")
        assert part.step == done
    part, whole = trainer(), trainer()
    train(part, checkpoint, Record(record, seconds=0), "square")  # the last step ends it
    list(whole.run(9))
    assert part.done
    assert torch.equal(part.model.weight, whole.model.weight)
    assert torch.equal(part.average["weight"], whole.average["weight"])
    assert len(json.loads(record.read_text())["curves"]["square"]) == 9


def test_room_is_filled():
    rng = np.random.default_rng(0)
    counts = rng.choice([3, 9, 15, 16, 17, 18, 18, 19, 20, 21, 22, 29], 5000)
    room = Room.of(counts, 64)
    for _ in range(50):
        rows = rng.permutation(len(counts))[:64]
        filled, sizes = room.fill(rows, counts[rows])
        assert len(filled) == len(sizes) == 64 + room.others
        np.testing.assert_array_equal(filled[:64], rows)
        np.testing.assert_array_equal(sizes[:64], counts[rows])
        assert sizes.sum() == room.atoms
        assert (sizes**2).sum() == room.pairs
    rows = np.argsort(counts)[np.r_[:4, -60:0]]  # far above the mean: some have to go
    filled, sizes = room.fill(rows, counts[rows])
    assert (sizes.sum(), (sizes**2).sum()) == (room.atoms, room.pairs)
    assert set(filled[:64]) <= set(rows)
    with pytest.raises(ValueError, match="cannot fill"):
        room.fill(rows, np.full(64, 200))
    assert room.fill(rows, counts[rows])[1].max() <= 29


def test_fillers_change_nothing():
    given = molecules()
    data_ = Dataset.of(given, SMALL.elements, 7)
    room = Room.of(np.diff(given.offsets), 8)
    (rows, sizes), _ = next(orders_of(data_, 8, 0, None, room))
    torch.manual_seed(1)
    model = UAE3D(SMALL)
    gradients = []
    for batch in (data_.batch(rows[:8], 1.0, False), data_.batch(rows, 1.0, False, sizes=sizes, room=room)):
        model.zero_grad()
        terms = model.eval()(batch)
        weighted(terms, Weights(kl=1.0)).backward()
        gradients.append((terms, [p.grad.clone() for p in model.parameters()]))
    (plain, one), (filled, other) = gradients
    for name, value in plain.items():
        torch.testing.assert_close(filled[name], value, rtol=1e-5, atol=1e-6)
    for x, y in zip(one, other, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


def test_compact_file(tmp_path, monkeypatch):
    given = molecules()
    path = tmp_path / "m.npz"
    data.save_compact(path, given)
    monkeypatch.setenv("CORE_QM9", str(path))
    assert data.has_qm9()
    found = data.qm9()
    np.testing.assert_array_equal(found.numbers, given.numbers)
    np.testing.assert_array_equal(found.offsets, given.offsets)
    assert np.abs(found.positions - given.positions).max() <= 0.000251
    assert len(data.qm9(7)) == 7
    with pytest.raises(ValueError, match=r"16\.38 angstroms"):
        data.save_compact(path, Structures.from_list([[1]], [[[20.0, 0, 0]]]))
    path.write_bytes(b"junk")
    with pytest.raises(ValueError, match="expected a file of save_compact"):
        data.load_compact(path)
    np.savez(path, numbers=np.zeros(3, np.uint8), positions=np.zeros((2, 3), np.int16), counts=np.array([3], np.uint8))
    with pytest.raises(ValueError, match="expected 3 atoms"):
        data.load_compact(path)


def trainers(kind, steps=12):
    given = molecules(most=7)
    place = np.arange(len(given.numbers)) - np.repeat(given.offsets[:-1], np.diff(given.offsets))
    corner = 2.4 * np.stack([place % 2, place // 2 % 2, place // 4], 1)  # no two atoms near each other
    given = Structures(given.numbers, 0.2 * given.positions + corner, given.offsets)
    optimisation = Optimisation(steps=steps, lr=1e-3, warmup=2, muon=kind == "muon")
    if kind in ("uni3dar", "muon"):
        config = Shape(layers=2, width=128, heads=2, dropout=0, drop_path=0)
        return make_trainer(given, config, optimisation, rows=2048, augment=Augmentation(), device="cuda")
    data_ = Dataset.of(given, SMALL.elements, 7, "cuda")
    if kind == "uae3d":
        return make_autoencoder_trainer(data_, SMALL, optimisation, batch=16)
    torch.manual_seed(3)
    shape = dit.Config(latent=4, layers=2, width=32, heads=2)
    turn = kind != "oriented"
    return make_diffusion_trainer(data_, UAE3D(SMALL).cuda(), shape, optimisation, batch=16, turn=turn)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["uni3dar", "muon", "uae3d", "udm3d", "oriented"])
def test_replayed_steps_are_the_steps(kind, tmp_path):
    """Captured or not, the run is the same, and so is one resumed from a checkpoint; sums differ in their order."""
    plain, captured, resumed = (trainers(kind) for _ in range(3))
    plain._move = plain._moved
    want = [float(f["loss"]) for f in plain.run(12)]
    found = [float(f["loss"]) for f in captured.run(7)]
    captured.save(tmp_path / "half.safetensors")
    found += [float(f["loss"]) for f in captured.run(5)]
    np.testing.assert_allclose(found, want, rtol=2e-2)
    assert len(set(found)) == 12
    resumed.load(tmp_path / "half.safetensors")
    np.testing.assert_allclose([float(f["loss"]) for f in resumed.run(5)], found[7:], rtol=2e-2)
    assert resumed.step == 12
