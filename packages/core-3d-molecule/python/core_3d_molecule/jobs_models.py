"""Jobs around trained models: `core run molecule.train` and `molecule.sample`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from .crystals import Crystals, Patterns
from .structures import Structures

SIZES = {
    "tiny": {"layers": 4, "width": 128, "heads": 4},
    "small": {"layers": 8, "width": 512, "heads": 8},
    "paper": {"layers": 12, "width": 768, "heads": 12},
}


@dataclasses.dataclass(frozen=True)
class _Run:
    """What a trainer is made from."""

    structures: Structures | Crystals
    context: Any
    optimisation: Any
    size: str
    batch: int
    device: str
    autoencoder: Path | None
    merge_level: int | None
    conditions: tuple[str, ...]


CONDITIONS = ("composition", "pxrd")
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto.")]


def train(
    structures: Annotated[
        str, typer.Argument(help="A file .sdf, .mol, .xyz; of crystals .cif, .extxyz, .csv (cif); or qm9, to train on.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The checkpoint to write, .safetensors.")] = Path(
        "model.safetensors"
    ),
    model: Annotated[str, typer.Option(help="uni3dar, uae3d, or udm3d (on a trained uae3d).")] = "uni3dar",
    size: Annotated[
        str, typer.Option(help="Of uni3dar: tiny, small or paper; of udm3d: the paper's unless tiny.")
    ] = "small",
    steps: Annotated[int, typer.Option(help="Steps of the whole run.", min=1)] = 10_000,
    minutes: Annotated[float, typer.Option(help="End the run, annealed, after so long; 0: at its steps.", min=0)] = 0.0,
    batch: Annotated[int, typer.Option(help="Molecules in a step.", min=1)] = 64,
    lr: Annotated[float, typer.Option(help="Learning rate at its highest.")] = 3e-4,
    autoencoder: Annotated[Path | None, typer.Option(help="The checkpoint of a uae3d, for udm3d.", exists=True)] = None,
    property_: Annotated[
        str | None, typer.Option("--property", help="Of QM9: what udm3d is to be told, for example alpha.")
    ] = None,
    merge_level: Annotated[
        int | None, typer.Option(help="Depth of uni3dar's octree; 6, of crystals 8, if not told.", min=1, max=10)
    ] = None,
    condition: Annotated[
        list[str] | None,
        typer.Option(help="Of uni3dar on crystals: what it is told, composition or pxrd (powder pattern); or both."),
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint if it is there.")] = False,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.", min=1)] = 1000,
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = 0,
    device: Device = "auto",
) -> None:
    """Trains a model of molecules; the checkpoint is what molecule.sample reads."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from .training import Optimisation

    if size not in SIZES:
        raise typer.BadParameter(f"--size must be one of {', '.join(SIZES)}, got {size}")
    makers = {"uni3dar": _uni3dar, "uae3d": _uae3d, "udm3d": _udm3d}
    if model not in makers:
        raise typer.BadParameter(f"--model must be one of {', '.join(makers)}, got {model}")
    optimisation = Optimisation(
        steps=steps, minutes=minutes, lr=lr, last_lr=lr / 100, warmup=min(steps // 10, 1000), seed=seed
    )
    if property_ is not None and model != "udm3d":
        raise typer.BadParameter("--property goes with --model udm3d alone")
    told = tuple(dict.fromkeys(condition or ()))
    if not set(told) <= set(CONDITIONS):
        raise typer.BadParameter(f"--condition must be one of {', '.join(CONDITIONS)}, got {', '.join(told)}")
    given = _read(structures, property_)
    if told and (model != "uni3dar" or not isinstance(given[0], Crystals)):
        raise typer.BadParameter("--condition goes with --model uni3dar on crystals alone")
    trainer = makers[model](_Run(*given, optimisation, size, batch, _device(device), autoencoder, merge_level, told))
    if resume and out.exists():
        trainer.load(out)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
    )
    shown: dict[str, Any] = {}
    with Progress(*columns) as progress:
        task = progress.add_task(model, total=steps, completed=trainer.step)
        while not trainer.done:
            for shown in trainer.run(min(save_every, steps - trainer.step)):
                progress.advance(task)
                if trainer.step % 20 == 0:
                    progress.update(task, description=f"{model} {float(shown['loss']):.4f}")
            trainer.save(out)
    trainer.save(out)
    line = ", ".join(f"{name} {float(value):.4f}" for name, value in shown.items())
    Console().print(f"{trainer.step} steps: {line}\n{out}", markup=False, highlight=False)


def sample(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of molecule.train, uni3dar or udm3d.", exists=True)],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Molecules: .xyz or .sdf; crystals: .extxyz or .cif.")
    ] = None,
    count: Annotated[int, typer.Option(help="Molecules or crystals to begin.", min=1)] = 1000,
    keep: Annotated[float, typer.Option(help="Of uni3dar: the share with the lowest perplexity.", min=0, max=1)] = 1.0,
    formula: Annotated[str | None, typer.Option(help="Of uni3dar: the wanted composition, for example C6H6.")] = None,
    pattern: Annotated[
        Path | None,
        typer.Option(
            help="Of uni3dar trained with --condition pxrd: a file with 2 theta (copper, degrees) and intensity of a "
            "peak in each line, or a crystal .cif, .extxyz with the wanted powder pattern.",
            exists=True,
        ),
    ] = None,
    temperature: Annotated[tuple[float, float, float], typer.Option(help="Of uni3dar: trees, types, coordinates.")] = (
        0.9,
        0.3,
        0.3,
    ),
    noise: Annotated[float, typer.Option(help="Of udm3d: the noise's scale.", min=0)] = 0.95,
    steps: Annotated[int, typer.Option(help="Of udm3d: steps of the sampler.", min=1)] = 100,
    target: Annotated[float | None, typer.Option(help="Of a conditional udm3d: the property's value.")] = None,
    guidance: Annotated[float, typer.Option(help="Of a conditional udm3d: w, 0 for none.")] = 0.5,
    batch: Annotated[int, typer.Option(help="Molecules at a time.", min=1)] = 500,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    device: Device = "auto",
) -> None:
    """Draws molecules or crystals from a trained model; crystals with the training set's numbers of atoms."""
    import torch
    from rich.console import Console

    from .checkpoints import load_model
    from .files import write
    from .udm3d import UDM3D
    from .uni3dar import Sampler, Settings, Uni3DAR

    model = load_model(checkpoint, _device(device))
    if isinstance(model, Uni3DAR) and model.config.trees > 1:
        _sample_crystals(model, checkpoint, out, count, keep, formula, pattern, temperature, batch, seed)
        return
    if pattern is not None:
        raise typer.BadParameter("--pattern goes with a model of crystals alone")
    if isinstance(model, Uni3DAR):
        tree, atom, xyz = temperature
        sampler = Sampler(model, Settings(tree=tree, atom=atom, xyz=xyz, max_tokens=256), batch=min(batch, count))
        found = sampler.sample(count, seed, None if formula is None else _composition(formula))
        structures, bonds = (found.best(keep) if keep < 1 else found.structures), None
        note = f", {found.discarded} of {count} begun in vain"
    elif isinstance(model, UDM3D):
        if (target is not None) != bool(model.dit.config.context):
            raise ValueError(f"argument 'target' must {'' if target is None else 'not '}be given for {checkpoint}")
        told = None if target is None else torch.full((count, 1), target, device=model.mean.device)
        made = model.sample(
            count,
            seed=seed,
            context=told,
            batch=batch,
            steps=steps,
            temperature=noise,
            w=guidance if told is not None else 0.0,
        )
        structures, bonds, note = made.structures, made.bonds, ""
    else:
        raise ValueError(f"{checkpoint}: expected uni3dar or udm3d; an autoencoder alone draws nothing")
    path = out or Path("samples.xyz")
    write(path, structures, bonds)
    Console().print(f"{len(structures)} molecules{note}\n{path}", markup=False, highlight=False)


def _sample_crystals(
    model: Any,
    checkpoint: Path,
    out: Path | None,
    count: int,
    keep: float,
    formula: str | None,
    pattern: Path | None,
    temperature: tuple[float, float, float],
    batch: int,
    seed: int,
) -> None:
    import numpy as np
    from rich.console import Console

    from .crystal_files import write
    from .training import read_about
    from .uni3dar import CrystalSampler, Settings

    if pattern is not None and not model.config.pxrd:
        raise ValueError(f"{checkpoint}: expected a model trained with --condition pxrd for --pattern")
    peaks = None if pattern is None else _pattern(pattern)
    wanted = None if formula is None else _composition(formula)
    if wanted is None:
        atoms = np.array(read_about(checkpoint)["about"]["data"]["atoms"], np.float64)
        sizes = np.random.default_rng(seed).choice(len(atoms), count, p=atoms / atoms.sum())
    else:
        sizes = np.full(count, wanted.sum())
    tree, atom, xyz = temperature
    sampler = CrystalSampler(model, Settings(tree=tree, atom=atom, xyz=xyz, max_tokens=320), batch=min(batch, count))
    found = sampler.sample(sizes, seed, wanted, pattern=peaks)
    crystals = found.best(keep) if keep < 1 else found.crystals
    path = out or Path("samples.extxyz")
    write(path, crystals)
    Console().print(
        f"{len(crystals)} crystals, {found.discarded} of {count} begun in vain\n{path}", markup=False, highlight=False
    )


def _read(structures: str, property_: str | None) -> tuple[Structures | Crystals, Any]:
    """Molecules or crystals, and a property of each (M, 1) if one is asked for."""
    from . import data
    from .jobs import read

    if property_ is None:
        if structures == "qm9":
            return data.qm9().select(data.edm_split()[0]), None
        return read(Path(structures)), None
    if structures != "qm9" or property_ not in data.PROPERTIES:
        raise typer.BadParameter(f"--property must be one of {', '.join(data.PROPERTIES)}, and goes with qm9 alone")
    import numpy as np

    qm9 = data.load_qm9().select(data.property_halves()[1])
    values = qm9.properties[property_]
    if property_ == "cv":
        values = values - data.CV_PER_ATOM * np.diff(qm9.structures.offsets)
    return qm9.structures, values[:, None].astype(np.float32)


def _device(device: str) -> str:
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def _composition(formula: str) -> Any:
    """Counts by atomic number - 1."""
    import re

    import numpy as np

    from .elements import NUMBERS

    wanted = np.zeros(118, np.int64)
    parts = re.findall(r"([A-Z][a-z]?)(\d*)", formula)
    if "".join(s + n for s, n in parts) != formula or any(s not in NUMBERS for s, _ in parts) or not parts:
        raise typer.BadParameter(f"--formula must be elements and counts, for example C6H6, got {formula}")
    for symbol, number in parts:
        wanted[NUMBERS[symbol] - 1] += int(number or 1)
    return wanted


def _pattern(path: Path) -> Patterns:
    """The powder pattern of a file of peaks, or of the one crystal of a file."""
    from .crystal_files import read, read_pattern
    from .crystal_tokens import pxrd_peaks

    if path.suffix.lower() not in (".cif", ".extxyz"):
        return read_pattern(path)
    crystals = read(path)
    if len(crystals) != 1:
        raise ValueError(f"{path}: expected one crystal for --pattern, got {len(crystals)}")
    return pxrd_peaks(crystals)


def _uni3dar(run: _Run) -> Any:
    from .octree import Augmentation
    from .uni3dar import Config, crystal_config, make_trainer

    level = {} if run.merge_level is None else {"merge_level": run.merge_level}
    crystals = isinstance(run.structures, Crystals)
    told = dict.fromkeys(run.conditions, True)
    config = (crystal_config if crystals else Config)(**SIZES[run.size], **level, **told)
    return make_trainer(
        run.structures, config, run.optimisation, rows=run.batch * (224 if crystals else 192), device=run.device,
        augment=Augmentation(rotate=0.5 if crystals else 1.0), compiled=run.device != "cpu",
    )  # fmt: skip


def _molecules(run: _Run) -> Structures:
    if isinstance(run.structures, Crystals):
        raise typer.BadParameter("--model must be uni3dar for crystals")
    return run.structures


def _uae3d(run: _Run) -> Any:
    import numpy as np

    from .udm3d import Dataset, make_autoencoder_trainer, vae

    structures = _molecules(run)
    numbers, counts = np.asarray(structures.numbers), np.diff(np.asarray(structures.offsets))
    config = vae.Config(elements=tuple(np.unique(numbers).tolist()), most_atoms=int(counts.max(initial=1)))
    dataset = Dataset.of(structures, config.elements, config.most_atoms, run.device)
    return make_autoencoder_trainer(dataset, config, run.optimisation, batch=run.batch, compiled=run.device != "cpu")


def _udm3d(run: _Run) -> Any:
    import torch

    from .checkpoints import load_model
    from .udm3d import UAE3D, Dataset, dit, make_diffusion_trainer

    if run.autoencoder is None:
        raise typer.BadParameter("--autoencoder must be given for udm3d")
    coder = load_model(run.autoencoder, run.device)
    if not isinstance(coder, UAE3D):
        raise ValueError(f"{run.autoencoder}: expected the checkpoint of a uae3d")
    told = None if run.context is None else torch.from_numpy(run.context).to(run.device)
    shape = SIZES[run.size] if run.size == "tiny" else {}
    config = dit.Config(latent=coder.config.latent, context=0 if told is None else 1, **shape)
    dataset = Dataset.of(_molecules(run), coder.config.elements, coder.config.most_atoms, run.device)
    return make_diffusion_trainer(
        dataset, coder, config, run.optimisation, context=told, batch=run.batch, compiled=run.device != "cpu"
    )
