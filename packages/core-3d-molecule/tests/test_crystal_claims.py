"""What tells generated crystals from known ones, and the claim about them from training to verdict."""

import csv

import numpy as np
import pytest
from core_3d_molecule import Crystals
from core_3d_molecule.novelty import MATCH, known, repeated


def perovskites(count, seed=0):
    """Cubic perovskites of changing elements and lengths, turned and with their atoms in an order of their own."""
    rng = np.random.default_rng(seed)
    cubic = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    numbers, places, lattices = [], [], []
    for _ in range(count):
        order = rng.permutation(5)
        z = np.array([rng.choice([20, 38, 56]), rng.choice([22, 40]), 8, 8, 8])
        numbers.append(z[order])
        places.append((cubic[order] + rng.random(3)) % 1)
        lattices.append(np.linalg.qr(rng.normal(size=(3, 3)))[0] * rng.uniform(3.8, 4.4))
    return Crystals.from_list(numbers, places, lattices)


def test_known_and_repeated_against_pymatgen():
    core = pytest.importorskip("pymatgen.core")
    from pymatgen.analysis.structure_matcher import StructureMatcher

    samples, among = perovskites(24), perovskites(3, seed=1)
    split = among.numbers.copy()
    split[:5] = split[:5][::-1]  # the same formula at other places: no match unless symmetry brings it back
    among = Crystals(split, among.fractional, among.lattices, among.offsets)
    matcher = StructureMatcher(**MATCH)

    def structures(crystals):
        return [core.Structure(lattice, z, f) for z, f, lattice in crystals]

    def same(a, b):
        return sorted(a.atomic_numbers) == sorted(b.atomic_numbers) and matcher.get_rms_dist(a, b) is not None

    mine, others = structures(samples), structures(among)
    assert known(samples, among).tolist() == [any(same(a, b) for b in others) for a in mine]
    expected = [any(same(a, b) for b in mine[:k]) for k, a in enumerate(mine)]
    assert repeated(samples).tolist() == expected
    assert 0 < sum(expected) < len(expected)


def test_nothing_is_known_of_nothing():
    nothing, some = perovskites(0), perovskites(2)
    assert known(some, nothing).tolist() == [False, False]
    assert known(nothing, some).shape == repeated(nothing).shape == (0,)


def test_claim_from_training_to_verdict(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    pytest.importorskip("smact")
    from core_3d_molecule import crystal_files
    from core_3d_molecule.claims import runs
    from core_3d_molecule.claims import uni3dar_crystals as claims
    from core_3d_molecule.claims.uni3dar_runs import save

    pytest.importorskip("ase")
    crystal_files.write(tmp_path / "one.cif", perovskites(6))
    blocks = (tmp_path / "one.cif").read_text().split("data_")[1:]
    with (tmp_path / "table.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["cif"])
        table.writerows([["data_" + block] for block in blocks])

    def run():
        return claims.generate(
            0, tmp_path, tmp_path / "table.csv", steps=4, minutes=0, count=3, rows=400, layers=1, width=48, device="cpu"
        )

    with monkeypatch.context() as patch:
        patch.setattr(runs, "installed", lambda module: False)
        with pytest.raises(ModuleNotFoundError, match="call again"):
            run()
    drawn = sorted(tmp_path.glob("*.npz"))
    assert [path.name for path in drawn] == [
        "uni3dar-crystals-0.5-0.5-0.3.npz", "uni3dar-crystals-0.9-0.3-0.3.npz", "uni3dar-crystals-half.npz",
    ]  # fmt: skip
    written = [path.stat().st_mtime_ns for path in drawn]
    samples = perovskites(3)
    save(drawn[0], samples, np.ones(3))  # as if they had been drawn
    found = run()
    assert written[1:] == [path.stat().st_mtime_ns for path in drawn[1:]]
    assert found.holds
    assert found.measured["unranked: composition_validity"][0] == found.measured["finished"][0] == 1
    assert found.plot.stat().st_size > 1000
    save(
        drawn[0],
        Crystals(samples.numbers * 0 + 8, samples.fractional, samples.lattices / 9, samples.offsets),
        np.ones(3),
    )
    assert not run().holds
