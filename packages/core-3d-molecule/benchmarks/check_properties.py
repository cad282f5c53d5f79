"""Uni-3DAR's property heads on QM9 itself: minutes of training on one CPU, errors on EDM's test molecules.

Beside each mean absolute error stand those of guessing the training mean, and of a straight line through the numbers of
H, C, N, O and F (least squares on the same training molecules). Exits 1 if a head is not better than the mean.
"""

from __future__ import annotations

import argparse

import numpy as np
from core_3d_molecule import Structures, data
from core_3d_molecule.octree import Augmentation
from core_3d_molecule.training import Optimisation
from core_3d_molecule.uni3dar import Config, make_property_trainer

UNITS = {
    "alpha": "bohr^3",
    "gap": "hartree",
    "mu": "debye",
    "homo": "hartree",
    "zpve": "hartree",
    "cv": "cal / (mol K)",
}


def composition(structures: Structures) -> np.ndarray:
    counts = [[(numbers == z).sum() for z in (1, 6, 7, 8, 9)] for numbers, _ in structures]
    return np.column_stack([np.array(counts, np.float64), np.ones(len(counts))])


def main(names: list[str], minutes: float, layers: int, width: int, tested: int) -> int:
    """Trains, prints a line for each property; 1 if a head is not better than the mean."""
    qm9 = data.load_qm9()
    train, _, test = data.edm_split()
    given, held = qm9.select(train), qm9.select(test[:tested])
    values, want = (np.column_stack([part.properties[name] for name in names]) for part in (given, held))
    how = Optimisation(steps=1_000_000, minutes=minutes, lr=1e-3, warmup=50, ema=0.99)
    config = Config(layers=layers, width=width, heads=width // 32, dropout=0.0, drop_path=0.0)
    augment = Augmentation(rotate=1.0, noise=0.0, shift=0, drop=0.0)
    trainer = make_property_trainer(given.structures, values, config, how, rows=2048, augment=augment)
    for found in trainer.run(how.steps):
        if trainer.step % 100 == 0:
            print(
                f"step {trainer.step}, {trainer.seconds:.0f} s, whitened error {float(found['error']):.3f}", flush=True
            )
    trainer.model.load_state_dict(trainer.averaged())
    found = trainer.model.predict(held.structures)
    line, *_ = np.linalg.lstsq(composition(given.structures), values, rcond=None)
    guesses = {"head": found, "mean": values.mean(0)[None], "composition": composition(held.structures) @ line}
    errors = {name: np.abs(guess - want).mean(0) for name, guess in guesses.items()}
    print(f"{trainer.step} steps of about 12 molecules in {trainer.seconds:.0f} s, {layers} layers of {width}")
    for k, name in enumerate(names):
        said = ", ".join(f"{guess} {error[k]:.4g}" for guess, error in errors.items())
        print(f"{name} ({UNITS[name]}), mean absolute error of {len(held)} test molecules: {said}")
    return int((errors["head"] >= errors["mean"]).any())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--property", nargs="+", default=["alpha", "gap", "mu"], choices=UNITS)
    parser.add_argument("--minutes", type=float, default=2.5)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--tested", type=int, default=500)
    a = parser.parse_args()
    raise SystemExit(main(a.property, a.minutes, a.layers, a.width, a.tested))
