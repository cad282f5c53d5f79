"""Whether UDM-3D, told a property of QM9, draws molecules that have it: minutes of training on one CPU.

Molecules of one size, so that the number of atoms tells nothing; autoencoder and transformer are trained on the
generators' half of EDM's training molecules. The property of what is drawn is estimated from its numbers of H, C, N, O
and F, by least squares on the other half. Prints the mean absolute error from what was asked for, that with the same
conditions dealt out at random, and that of the estimate on real molecules. Exits 1 if telling does not help.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from check_properties import UNITS, composition
from core_3d_molecule import data, edm_stability
from core_3d_molecule.training import Optimisation
from core_3d_molecule.udm3d import Dataset, dit, make_autoencoder_trainer, make_diffusion_trainer, vae


def main(name: str, atoms: int, minutes: float, count: int) -> int:
    """Trains, draws, prints; 1 if molecules drawn for a value are not nearer to it than to another."""
    torch.set_num_threads(1)
    halves = []
    for rows in data.property_halves():
        half = data.load_qm9().select(rows)
        halves.append(half.select(np.flatnonzero(np.diff(half.structures.offsets) == atoms)))
    judged, given = halves
    line, *_ = np.linalg.lstsq(composition(judged.structures), judged.properties[name], rcond=None)
    told = torch.from_numpy(given.properties[name].astype(np.float32))[:, None]
    config = vae.Config(most_atoms=atoms, dropout=0.0)
    dataset = Dataset.of(given.structures, config.elements, atoms)
    adam = {"steps": 1_000_000, "minutes": minutes, "warmup": 50, "betas": (0.9, 0.999), "ema": 0.99}
    coder = make_autoencoder_trainer(dataset, config, Optimisation(lr=2e-3, last_lr=1e-6, **adam), batch=32)
    for found in coder.run(1_000_000):
        if coder.step % 200 == 0:
            print(f"autoencoder: step {coder.step}, RMSD {float(found['rmsd']):.3f}", flush=True)
    coder.model.load_state_dict(coder.averaged())
    shape = dit.Config(layers=6, width=128, heads=4, context=1)
    how = Optimisation(lr=1e-3, last_lr=1e-6, **adam)
    trainer = make_diffusion_trainer(dataset, coder.model.eval(), shape, how, context=told, batch=64)
    for found in trainer.run(1_000_000):
        if trainer.step % 500 == 0:
            print(f"transformer: step {trainer.step}, loss {float(found['loss']):.3f}", flush=True)
    model = trainer.model
    model.load_state_dict(trainer.averaged())
    model.eval()
    wanted = told[torch.randperm(len(told), generator=torch.Generator().manual_seed(1))[:count]]
    real = np.abs(composition(given.structures) @ line - given.properties[name]).mean()
    print(f"{len(given)} molecules of {atoms} atoms, {coder.step} and {trainer.step} steps; {name} in {UNITS[name]}")
    helps = True
    for w in (0.0, 0.5, 1.0):
        drawn = model.sample(count, seed=2, context=wanted, batch=128, w=w).structures
        got, asked = composition(drawn) @ line, wanted[:, 0].numpy()
        errors = np.abs(got - asked).mean(), np.abs(got - np.random.default_rng(0).permutation(asked)).mean()
        print(
            f"guidance {w:g}: error {errors[0]:.3g}, of conditions dealt out at random {errors[1]:.3g}, of the "
            f"estimate on real molecules {real:.3g}; correlation {np.corrcoef(got, asked)[0, 1]:.3f}; "
            f"{edm_stability(drawn).stable.mean():.1%} stable by EDM's distances"
        )
        helps &= bool(errors[0] < errors[1])
    return int(not helps)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--property", default="alpha", choices=UNITS)
    parser.add_argument("--atoms", type=int, default=14)
    parser.add_argument("--minutes", type=float, default=2.5, help="Of each training.")
    parser.add_argument("--count", type=int, default=256)
    a = parser.parse_args()
    raise SystemExit(main(a.property, a.atoms, a.minutes, a.count))
