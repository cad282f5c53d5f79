"""UAE-3D and UDM-3D on QM9 on one GPU: some minutes for each, reconstructions of the test set, and molecules drawn."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from core_registry.claims import Claim
from core_registry.files import replace

from .. import data
from ..bonded import Bonded
from ..bonds import edm_stability
from ..evaluate import evaluate
from ..structures import Structures
from . import runs

ADAM = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-5}
TEST_BARS = {"atoms": 0.9999, "bonds": 0.999, "rmsd": 0.01, "stability": 0.01}
DRAWN_BARS = {"atom_stability": 0.97, "given_valid_connected": 0.90, "given_unique": 0.88}
MOST_MS = 5.0


def generate(
    seed: int,
    out: Path,
    *,
    minutes: tuple[float, float] = (6.0, 12.0),
    steps: int = 1_000_000,
    count: int = 10_000,
    batch: int = 512,
    lr: tuple[float, float] = (2e-3, 4e-4),
    compiled: tuple[bool, bool] = (False, True),
    weights: tuple[float, float, float] = (10.0, 10.0, 30.0),
    sampling: tuple[tuple[int, float], ...] = ((250, 0.95), (100, 0.95), (500, 0.95), (250, 0.9), (250, 0.85)),
    small: bool = False,
    device: str = "cuda",
    limit: int | None = None,
    seconds: float = math.inf,
) -> Claim:
    """Trains UAE-3D on EDM's training molecules of QM9 (or `limit` of all), UDM-3D on its latents; draws `count`.

    minutes, lr, compiled: of the autoencoder and of the transformer; their schedules end after so much time or `steps`.
    weights: in the autoencoder's loss, of positions, of distances and of those between bonded atoms. sampling: numbers
    of steps and temperatures, the first the claim's. `small` makes both tiny. `out`, `seconds`: as for
    `uni3dar_qm9.generate`.
    """
    record = runs.Record(out / "udm3d-qm9.json", seconds)
    files = {setting: out / f"udm3d-qm9-{setting[0]}-{setting[1]:g}.npz" for setting in sampling}
    qm9 = data.qm9(limit)
    split = data.edm_split() if limit is None else (np.arange(len(qm9)),) * 3
    if not all(path.exists() for path in files.values()):
        import torch

        tiny = {"hidden": 16, "edge": 8, "heads": 2, "latent": 4}, {"latent": 4, "layers": 2, "width": 32, "heads": 2}
        schedules = [
            {"steps": steps, "minutes": most, "lr": high, "last_lr": high * 1e-3, "warmup": min(500, steps // 5),
             "ema": ema, "seed": seed, **ADAM}
            for most, high, ema in zip(minutes, lr, (0.999, 0.9995), strict=True)
        ]  # fmt: skip
        sets = qm9.select(split[0]), qm9.select(split[2])
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")  # tf32 would show in the coordinates
        try:
            _make(record, sets, tiny if small else ({}, {}), schedules, batch, compiled, weights, count, files, device)
        finally:
            torch.set_float32_matmul_precision(precision)
    rdkit, found = runs.installed("rdkit"), record.values
    test = found["reconstruction"]
    measured: dict[str, tuple[float, float]] = {
        "GPU minutes, autoencoder": (found["autoencoder"]["minutes"], 0.0),
        "steps, autoencoder": (found["autoencoder"]["steps"], 0.0),
        "GPU minutes, transformer": (found["transformer"]["minutes"], 0.0),
        "steps, transformer": (found["transformer"]["steps"], 0.0),
        "test: atoms right": (test["atoms right"], 0.0),
        "test: bonds right": (test["bonds right"], 0.0),
        "test: RMSD (angstroms)": (test["rmsd"], 0.0),
        "test: stable molecules": (test["stable"], 0.0),
        "test: stable molecules after reconstruction": (test["stable again"], 0.0),
    }
    drawn = {setting: evaluate(load_bonded(path), rdkit=rdkit).unranked for setting, path in files.items()}
    for (number, temperature), scores in drawn.items():
        what = f"drawn in {number} steps at {temperature:g}"
        measured[f"{what}: milliseconds a molecule"] = (found[_key(number, temperature)]["ms_a_sample"], 0.0)
        for name, rate in scores.items():
            measured[f"{what}: {name.replace('_', ' ')}"] = (rate.value, rate.half)
    scores, speed = drawn[sampling[0]], found[_key(*sampling[0])]["ms_a_sample"]
    record.put(measured=measured)
    record.has("rdkit", "validity")
    return Claim(
        paper="2503.15567",
        claim="One latent space for atoms, bonds and coordinates reconstructs molecules almost exactly, and "
        "diffusion in it generates stable molecules fast.",
        protocol=f"EDM's training molecules of QM9, {minutes[0]:g} and {minutes[1]:g} minutes of training on one GPU "
        f"(the paper: 14 and 38 hours), errors of positions, distances and bonded distances weighted "
        f"{', '.join(f'{x:g}' for x in weights)} (1, 1, 10); {count} molecules drawn in batches of 512, in "
        f"{sampling[0][0]} steps at temperature {sampling[0][1]:g}. Holds if of the test molecules "
        "99.99 % of atoms and 99.9 % of bonds are right, the RMSD is at most 0.01 angstroms and as many are stable "
        "within a point, and of those drawn 97 % of atoms are stable by distances, 90 % valid and connected and 88 % "
        "valid and unique by the bonds that are drawn with them, at 5 ms each",
        measured=measured,
        holds=test["atoms right"] >= TEST_BARS["atoms"]
        and test["bonds right"] >= TEST_BARS["bonds"]
        and test["rmsd"] <= TEST_BARS["rmsd"]
        and abs(test["stable"] - test["stable again"]) <= TEST_BARS["stability"]
        and all(scores[name].value >= bar for name, bar in DRAWN_BARS.items())
        and speed <= MOST_MS,
        plot=None,
    )


def _key(steps: int, temperature: float) -> str:
    """Of a setting's times in the record."""
    return f"sampling in {steps} steps at {temperature:g}"


def _make(
    record: runs.Record,
    sets: tuple[Structures, Structures],
    shapes: tuple[dict[str, int], dict[str, int]],
    schedules: list[dict[str, Any]],
    batch: int,
    compiled: tuple[bool, bool],
    weights: tuple[float, float, float],
    count: int,
    files: dict[tuple[int, float], Path],
    device: str,
) -> None:
    import torch

    from ..training import Optimisation
    from ..udm3d import Dataset, dit, make_autoencoder_trainer, make_diffusion_trainer, vae

    cuda = device == "cuda"
    config, most = vae.Config(dropout=0.0, **shapes[0]), 29
    dataset, held = (Dataset.of(given, config.elements, most, device) for given in sets)
    coder = make_autoencoder_trainer(
        dataset, config, Optimisation(**schedules[0]), batch=batch, compiled=compiled[0] and cuda,
        weights=vae.Weights(position=weights[0], distance=weights[1], bonded=weights[2]),
    )  # fmt: skip
    record.put(**runs.head(coder, batch=batch, schedules=schedules, weights=weights))
    runs.train(coder, record.path.with_name("uae3d-qm9.safetensors"), record, "autoencoder")
    model = runs.averaged(coder)
    if "reconstruction" not in record.values:
        record.put(reconstruction=reconstruction(model, held, sets[1]))
    diffusion = make_diffusion_trainer(
        dataset, model, dit.Config(**shapes[1]), Optimisation(**schedules[1]), batch=batch,
        compiled=compiled[1] and cuda,
    )  # fmt: skip
    runs.train(diffusion, record.path.with_suffix(".safetensors"), record, "transformer")
    whole = diffusion.model  # itself: a copy would not be compiled
    whole.load_state_dict(diffusion.averaged())
    whole.eval()
    for (steps, temperature), path in files.items():
        if path.exists():
            continue
        record.check()
        settings = {"batch": 512, "steps": steps, "temperature": temperature}
        with torch.autocast(device, torch.bfloat16, enabled=cuda):
            whole.sample(min(512, count), seed=schedules[1]["seed"] + 1, **settings)
            drawn = runs.timed(
                record, _key(steps, temperature), count,
                lambda settings=settings: whole.sample(count, seed=schedules[1]["seed"], **settings), batch=512,
            )  # fmt: skip
        save_bonded(path, drawn)


def reconstruction(model: Any, held: Any, structures: Structures) -> dict[str, float]:
    """How well atoms, bonds and positions (RMSD in angstroms) come out of the autoencoder, and how many molecules are
    stable by EDM's distances before and after."""
    import torch

    scale, numbers, positions = model.config.scale, [], []
    sums = {"atoms right": 0.0, "bonds right": 0.0, "rmsd": 0.0}
    atoms_seen = pairs_seen = 0
    elements = torch.tensor(model.config.elements)
    with torch.no_grad():
        for rows in torch.arange(len(held), device=held.counts.device).split(512):
            m = held.batch(rows, scale, True)
            count, pairs = len(m.kinds), len(m.bonds) - len(m.kinds)
            found = {name: float(value) for name, value in model(m).items()}
            atoms_seen, pairs_seen = atoms_seen + count, pairs_seen + pairs
            sums["atoms right"] += found["atoms right"] * count
            sums["bonds right"] += found["bonds right"] * pairs
            sums["rmsd"] += found["rmsd"] ** 2 * count
            atoms, at, _ = model.decode(model.encode(m)[0][m.rows] * m.real[..., None], m.real)
            numbers.append(elements[atoms.argmax(-1)[m.real].cpu()])
            positions.append((at[m.real].double() * scale).cpu())
    out = {
        "atoms right": sums["atoms right"] / atoms_seen, "bonds right": sums["bonds right"] / pairs_seen,
        "rmsd": (sums["rmsd"] / atoms_seen) ** 0.5,
    }  # fmt: skip
    again = Structures(torch.cat(numbers).numpy().astype(np.int32), torch.cat(positions).numpy(), structures.offsets)
    for name, given in (("stable", structures), ("stable again", again)):
        out[name] = float(edm_stability(given).stable.mean())
    return {name: round(value, 6) for name, value in out.items()}


def save_bonded(path: Path, drawn: Bonded) -> None:
    """Molecules with their bonds as a `.npz`, positions in float32."""
    pairs, orders, cuts = drawn.bonds
    given = drawn.structures
    with replace(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file, numbers=given.numbers, positions=np.asarray(given.positions, np.float32), offsets=given.offsets,
            pairs=pairs, orders=orders, cuts=cuts, charges=drawn.charges,
        )  # fmt: skip


def load_bonded(path: Path) -> Bonded:
    """What `save_bonded` wrote."""
    with np.load(path, allow_pickle=False) as f:
        structures = Structures(f["numbers"], f["positions"].astype(np.float64), f["offsets"])
        return Bonded(structures, (f["pairs"], f["orders"], f["cuts"]), f["charges"])
