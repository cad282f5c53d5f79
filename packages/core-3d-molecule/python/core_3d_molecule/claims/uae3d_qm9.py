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
from ..geometry import principal_frames
from ..structures import Structures
from . import runs, trials

ADAM = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-5}
CALM = {"betas": (0.9, 0.99), "clip": 0.5}
"""With the norm of queries and keys, against what happened without: the transformer's loss, .047 after 35,000 steps by
Muon, rose to .12 within 2,000, with gradients 200 times as long."""
TEST_BARS = {"atoms": 0.9999, "bonds": 0.999, "rmsd": 0.01, "stability": 0.01}
DRAWN_BARS = {"atom_stability": 0.97, "given_valid_connected": 0.90, "given_unique": 0.88}
MOST_MS = 5.0
NOISE = 0.05
"""Errors of latent vectors, in their standard deviations, with which the test set is reconstructed once more."""
WEIGHTS = "udm3d-qm9-weights.safetensors"


def generate(
    seed: int,
    out: Path,
    *,
    minutes: tuple[float, float] = (7.0, 13.0),
    steps: int = 1_000_000,
    count: int = 10_000,
    trial: int = 2048,
    batch: int = 512,
    lr: tuple[float, float] = (2e-3, 1e-3),
    compiled: tuple[bool, bool] = (False, True),
    weights: tuple[float, float, float] = (10.0, 10.0, 30.0),
    noise: float = 0.05,
    muon: bool = True,
    early: float = 1.5,
    oriented: bool = False,
    sampling: tuple[int, tuple[float, ...]] = (300, (0.95, 0.9, 0.85, 0.8, 0.75, 0.7)),
    small: bool = False,
    device: str = "cuda",
    limit: int | None = None,
    seconds: float = math.inf,
) -> Claim:
    """Trains UAE-3D on EDM's training molecules of QM9 (or `limit` of all), UDM-3D on its latents; draws `count`.

    minutes, lr, compiled: of the autoencoder and of the transformer; their schedules end after so much time or `steps`.
    weights: in the autoencoder's loss, of positions, of distances and of those between bonded atoms; noise: of latents
    in its training, in their standard deviations. muon: the transformer's hidden matrices move by Muon, and its queries
    and keys are normed; early: see `dit.noise_loss`; oriented: its molecules lie along their principal axes. sampling:
    the number of steps, and the temperatures of which `trial` samples at each, of which none is scored, decide (see
    `trials`). `small` makes both tiny. `out`, `seconds` and weights there (`udm3d-qm9-weights.safetensors`): as for
    `uni3dar_qm9.generate`.
    """
    record = runs.Record(out / "udm3d-qm9.json", seconds)
    path = out / "udm3d-qm9.npz"
    qm9 = data.qm9(limit)
    split = data.edm_split() if limit is None else (np.arange(len(qm9)),) * 3
    if not path.exists():
        import torch

        tiny = {"hidden": 16, "edge": 8, "heads": 2, "latent": 4}, {"latent": 4, "layers": 2, "width": 32, "heads": 2}
        schedules = [
            {"steps": steps, "minutes": most, "lr": high, "last_lr": high * 1e-3, "warmup": min(500, steps // 5),
             "ema": ema, "seed": seed, **ADAM, **also}
            for most, high, ema, also in zip(
                minutes, lr, (0.999, 0.9995), ({}, {"muon": muon, **CALM}), strict=True
            )
        ]  # fmt: skip
        sets = qm9.select(split[0]), qm9.select(split[2])
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")  # tf32 would show in the coordinates
        try:
            whole = _trained(
                record, sets, tiny if small else ({}, {}), schedules, batch, compiled, weights, noise, early, oriented,
                device,
            )  # fmt: skip
            _draw(record, whole, sampling, trial, count, path, device, seed)
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
    for name in ("bonds right", "rmsd"):
        measured[f"test, latents with errors of {NOISE:g}: {name}"] = (test[f"noisy {name}"], 0.0)
    for name, values in found.get("trials", {}).items():
        measured |= {f"trial at {name}: {what}": (value, 0.0) for what, value in values.items()}
    scores, speed = evaluate(load_bonded(path), rdkit=rdkit).unranked, found["sampling"]["ms_a_sample"]
    measured["drawn: temperature"] = (found["temperature"], 0.0)
    measured["drawn: milliseconds a molecule"] = (speed, 0.0)
    for name, rate in scores.items():
        measured[f"drawn: {name.replace('_', ' ')}"] = (rate.value, rate.half)
    record.put(measured=measured)
    record.has("rdkit", "validity")
    return Claim(
        paper="2503.15567",
        claim="One latent space for atoms, bonds and coordinates reconstructs molecules almost exactly, and "
        "diffusion in it generates stable molecules fast.",
        protocol=f"EDM's training molecules of QM9, {minutes[0]:g} and {minutes[1]:g} minutes of training on one GPU "
        f"(the paper: 14 and 38 hours), errors of positions, distances and bonded distances weighted "
        f"{', '.join(f'{x:g}' for x in weights)} (1, 1, 10), latents disturbed by up to {noise:g} of their deviation "
        f"(0); the transformer's hidden matrices by {'Muon' if muon else 'AdamW'}"
        f"{', its queries and keys of one length' if muon else ''}, its molecules "
        f"{'along their principal axes' if oriented else 'turned at random'}, times to the power of {early:g} (1); "
        f"{count} molecules drawn in batches of 512, in {sampling[0]} steps at temperature {found['temperature']:g}: "
        f"of {len(sampling[1])} tried with {trial} other samples each, the one with the most that are valid by JODO's "
        "valences among those with as many different valid ones as the best within a standard error. Holds if of the "
        "test molecules 99.99 % of atoms and 99.9 % of bonds are right, the RMSD is at most 0.01 angstroms and as many "
        "are stable within a point, and of those drawn 97 % of atoms are stable by distances, 90 % valid and connected "
        "and 88 % valid and unique by the bonds that are drawn with them, at 5 ms each",
        measured=measured,
        holds=test["atoms right"] >= TEST_BARS["atoms"]
        and test["bonds right"] >= TEST_BARS["bonds"]
        and test["rmsd"] <= TEST_BARS["rmsd"]
        and abs(test["stable"] - test["stable again"]) <= TEST_BARS["stability"]
        and all(scores[name].value >= bar for name, bar in DRAWN_BARS.items())
        and speed <= MOST_MS,
        plot=None,
    )


def _trained(
    record: runs.Record,
    sets: tuple[Structures, Structures],
    shapes: tuple[dict[str, int], dict[str, int]],
    schedules: list[dict[str, Any]],
    batch: int,
    compiled: tuple[bool, bool],
    weights: tuple[float, float, float],
    noise: float,
    early: float,
    oriented: bool,
    device: str,
) -> Any:
    from ..checkpoints import load_model
    from ..training import Optimisation
    from ..udm3d import Dataset, dit, make_autoencoder_trainer, make_diffusion_trainer, vae

    kept = record.path.with_name(WEIGHTS)
    if kept.exists():
        return load_model(kept, device)
    cuda = device == "cuda"
    config, most = vae.Config(dropout=0.0, **shapes[0]), 29
    dataset, held = (Dataset.of(given, config.elements, most, device) for given in sets)
    coder = make_autoencoder_trainer(
        dataset, config, Optimisation(**schedules[0]), batch=batch, compiled=compiled[0] and cuda, noise=noise,
        weights=vae.Weights(position=weights[0], distance=weights[1], bonded=weights[2]),
    )  # fmt: skip
    record.put(**runs.head(coder, batch=batch, schedules=schedules, weights=weights, noise=noise, early=early))
    runs.train(coder, record.path.with_name("uae3d-qm9.safetensors"), record, "autoencoder")
    model = runs.averaged(coder)
    if "reconstruction" not in record.values:
        record.put(reconstruction=reconstruction(model, held, sets[1]))
    if oriented:
        dataset, held = (Dataset.of(principal_frames(given), config.elements, most, device) for given in sets)
    diffusion = make_diffusion_trainer(
        dataset, model, dit.Config(qk_norm=schedules[1]["muon"], **shapes[1]), Optimisation(**schedules[1]),
        batch=batch, turn=not oriented, early=early, compiled=compiled[1] and cuda,
    )  # fmt: skip
    runs.train(diffusion, record.path.with_suffix(".safetensors"), record, "transformer")
    whole = diffusion.model  # itself: a copy would not be compiled
    whole.load_state_dict(diffusion.averaged())
    whole.eval()
    losses = {
        name: _noise_loss(whole, data_, not oriented, early) for name, data_ in (("train", dataset), ("held", held))
    }
    record.put(noise_loss=losses)
    return whole


def _noise_loss(model: Any, given: Any, turn: bool, early: float) -> float:
    """The transformer's loss on the first molecules of a set: what it has learnt by heart shows."""
    import torch

    from ..udm3d import dit

    torch.manual_seed(0)
    device, found = given.counts.device.type, []
    batch = min(len(given), 512)  # in the shape that samples are drawn in, for which the transformer is compiled
    with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        for rows in torch.arange(min(len(given), 20 * 512) // batch * batch, device=device).split(batch):
            with torch.autocast(device, enabled=False):
                m = given.batch(rows, model.autoencoder.config.scale, turn)
                z = model.latents(m)
            found.append(float(dit.noise_loss(model.dit, z, m.real, early=early)["loss"]))
    return sum(found) / len(found)


def _draw(
    record: runs.Record,
    model: Any,
    sampling: tuple[int, tuple[float, ...]],
    trial: int,
    count: int,
    path: Path,
    device: str,
    seed: int,
) -> None:
    import torch

    def draw(name: str, number: int, temperature: float, seed: int) -> Bonded:
        settings = {"batch": 512, "steps": sampling[0], "temperature": temperature}
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            return runs.timed(record, name, number, lambda: model.sample(number, seed=seed, **settings), batch=512)

    tried = record.values.setdefault("trials", {})
    for temperature in sampling[1]:
        if f"{temperature:g}" not in tried:
            record.check()
            drawn = draw("trial", trial, temperature, seed + 2)
            tried[f"{temperature:g}"] = trials.scores(drawn.structures, trial, drawn.bonds)
            record.put(trials=tried)
    best = float(trials.chosen({f"{t:g}": tried[f"{t:g}"] for t in sampling[1]}, trial))
    record.check()
    record.put(temperature=best)
    save_bonded(path, draw("sampling", count, best, seed))


def reconstruction(model: Any, held: Any, structures: Structures) -> dict[str, float]:
    """How well atoms, bonds and positions (RMSD in angstroms) come out of the autoencoder, also of latents with errors
    ("noisy"), and how many molecules are stable by EDM's distances before and after."""
    import torch

    scale, numbers, positions = model.config.scale, [], []
    names, sums = ("atoms right", "bonds right", "rmsd"), dict[str, float]()
    elements = torch.tensor(model.config.elements)
    torch.manual_seed(0)
    with torch.no_grad():
        for rows in torch.arange(len(held), device=held.counts.device).split(512):
            m = held.batch(rows, scale, True)
            atoms_here, pairs_here = len(m.kinds), len(m.bonds) - len(m.kinds)
            for prefix, noise in (("", 0.0), ("noisy ", NOISE)):
                found = model(m, noise)
                for name, count in zip(names, (atoms_here, pairs_here, atoms_here), strict=True):
                    value = float(found[name]) ** (2 if name == "rmsd" else 1)
                    sums[prefix + name] = sums.get(prefix + name, 0.0) + value * count
            sums["atoms"], sums["pairs"] = sums.get("atoms", 0) + atoms_here, sums.get("pairs", 0) + pairs_here
            atoms, at, _ = model.decode(model.encode(m)[0][m.rows] * m.real[..., None], m.real)
            numbers.append(elements[atoms.argmax(-1)[m.real].cpu()])
            positions.append((at[m.real].double() * scale).cpu())
    out = {}
    for prefix in ("", "noisy "):
        for name, count in zip(names, ("atoms", "pairs", "atoms"), strict=True):
            out[prefix + name] = (sums[prefix + name] / sums[count]) ** (0.5 if name == "rmsd" else 1)
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
