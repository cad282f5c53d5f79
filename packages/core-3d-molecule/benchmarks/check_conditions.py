"""Whether Uni-3DAR predicts crystals that it has not seen from their composition and powder pattern.

python benchmarks/check_conditions.py [--train perov_5_val.csv] [--test perov_5_test.csv] [--minutes M] [--device cuda]

One model is trained with both conditions, each left out one time in ten. For crystals of the other table, of each
composition `--tries` candidates are drawn and the one of lowest perplexity is kept: told the composition alone, that
and the pattern, that and another crystal's pattern, and the pattern alone. Prints how many match the crystal (CDVAE's
tolerances 0.3, 0.5, 10 degrees, which allow any volume), the mean RMS of those, and the mean relative error of the
volume an atom. Exits 1 if the right pattern does not bring volumes nearer than another's.
"""

from __future__ import annotations

import argparse
import pathlib

import numpy as np
import torch
from core_3d_molecule import data, match_crystals
from core_3d_molecule.crystal_tokens import pxrd_peaks
from core_3d_molecule.crystals import Crystals, crystal_distances
from core_3d_molecule.octree import Augmentation
from core_3d_molecule.training import Optimisation
from core_3d_molecule.uni3dar import CrystalSampler, Settings, crystal_config, make_trainer

SHAPES = {
    "cpu": ({"layers": 3, "width": 96, "heads": 4, "dropout": 0.0, "drop_path": 0.0}, 16, 3e-3),
    "cuda": ({"layers": 8, "width": 512, "heads": 8}, 128, 6e-4),
}


def volumes(crystals: Crystals) -> np.ndarray:
    """Cubic angstroms an atom."""
    found: np.ndarray = crystal_distances(crystals)[0] / np.diff(crystals.offsets)
    return found


def main(train: pathlib.Path, test: pathlib.Path, minutes: float, count: int, tries: int, device: str) -> int:
    """Trains, draws, prints; 1 if patterns do not help."""
    given, asked = data.crystals(train), data.crystals(test)
    asked = asked.select(np.random.default_rng(0).permutation(len(asked))[:count])
    shape, batch, lr = SHAPES[device]
    level = 6 if device == "cpu" else 8
    how = Optimisation(steps=1_000_000, minutes=minutes, lr=lr, last_lr=lr / 100, warmup=50, ema=0.99)
    config = crystal_config(**shape, merge_level=level, composition=True, pxrd=True)
    augment = Augmentation(rotate=0.0, noise=0.0, shift=0, drop=0.0, slide=0.0)
    trainer = make_trainer(given, config, how, rows=batch * 224, augment=augment, device=device)
    for found in trainer.run(1_000_000):
        if trainer.step % 50 == 0:
            print(f"step {trainer.step}, {float(found['nll']):.2f} nats a crystal", flush=True)
    trainer.model.load_state_dict(trainer.averaged())
    settings = Settings(tree=0.4, atom=0.3, xyz=0.3, max_tokens=320)
    sampler = CrystalSampler(trainer.model, settings, batch=min(500, tries * count))
    rows = np.repeat(np.arange(len(asked)), tries)
    peaks = pxrd_peaks(asked)
    own, other = peaks.select(rows), peaks.select((rows + 1) % len(asked))
    compositions = np.array([np.bincount(z, minlength=119)[1:119] for z, _, _ in asked])[rows]
    told = {
        "composition": {"composition": compositions},
        "composition and pattern": {"composition": compositions, "pattern": own},
        "composition and another's pattern": {"composition": compositions, "pattern": other},
        "pattern": {"pattern": own},
    }
    print(
        f"{len(given)} crystals to train on, {trainer.step} steps, {minutes:g} minutes on {device}; {len(asked)} asked"
    )
    errors = {}
    for name, what in told.items():
        drawn = sampler.sample(np.diff(asked.offsets)[rows], seed=1, **what)
        order = np.argsort(drawn.scores, kind="stable")
        which, first = np.unique(rows[drawn.rows][order], return_index=True)
        best, wanted = drawn.crystals.select(order[first]), asked.select(which)
        rms, _ = match_crystals(wanted, best, ltol=0.3, stol=0.5, angle_tol=10.0)
        errors[name] = float(np.abs(volumes(best) / volumes(wanted) - 1).mean()) if len(which) else np.inf
        matched = np.isfinite(rms)
        print(
            f"told {name}: {len(which)} drawn, {matched.sum() / len(asked):.1%} match, RMS "
            f"{rms[matched].mean() if matched.any() else np.nan:.3f}, volume off by {errors[name]:.1%}",
            flush=True,
        )
    return int(errors["composition and pattern"] >= errors["composition and another's pattern"])


if __name__ == "__main__":
    tables = pathlib.Path("shared/data/crystals")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=pathlib.Path, default=tables / "perov_5_val.csv")
    parser.add_argument("--test", type=pathlib.Path, default=tables / "perov_5_test.csv")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--tries", type=int, default=5)
    parser.add_argument("--device", choices=SHAPES, default="cuda" if torch.cuda.is_available() else "cpu")
    a = parser.parse_args()
    raise SystemExit(main(a.train, a.test, a.minutes, a.count, a.tries, a.device))
