"""Jobs on files: `core run molecule.tokenize`, `molecule.detokenize`, `molecule.eval` and `molecule.show`."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from core_registry.files import replace

from . import crystal_files, data, files
from .crystal_tokens import CrystalTokenizer
from .crystals import Crystals
from .octree import PRESETS, OctreeTokenizer, Tokens
from .structures import Structures

FORMAT = 2
MAX_BYTES = 4 << 30
FIELDS = {
    "tokens": ("int32", 1), "levels": ("int32", 1), "centres": ("float32", 2), "bins": ("int32", 2),
    "counts": ("int32", 1), "atoms": ("int64", 1), "offsets": ("int64", 1), "origins": ("float64", 2),
}  # fmt: skip

Output = Annotated[Path, typer.Option("-o", "--out", help="The file to write.")]


def read(path: Path) -> Structures | Crystals:
    """Molecules (.sdf, .mol, .xyz, .pdb) or crystals (.cif, .extxyz, .csv with a column cif) of a file."""
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return data.crystals(path)
    return crystal_files.read(path) if suffix in (".cif", ".extxyz") else files.read(path)


def tokenize(
    structures: Annotated[Path, typer.Argument(help=".sdf, .mol, .xyz, .pdb; .cif, .extxyz, .csv (cif)", exists=True)],
    out: Output = Path("tokens.npz"),
    preset: Annotated[
        str, typer.Option(help="qm9, drug, crystal or protein; crystals are always 'crystal', .pdb always 'protein'.")
    ] = "qm9",
    keep_first: Annotated[bool, typer.Option(help="Drop all but the first atom of a cell instead of failing.")] = False,
    crop: Annotated[bool, typer.Option(help="Cut structures that the cube cannot hold instead of failing.")] = False,
    seed: Annotated[int, typer.Option(help="Decides where structures are cut.")] = 0,
) -> None:
    """Writes the octree tokens of all structures of a file."""
    given = read(structures)
    if isinstance(given, Crystals):
        preset = "crystal"
    elif structures.suffix.lower() == ".pdb":
        preset = "protein"
    base = OctreeTokenizer.preset(preset)
    tokenizer = OctreeTokenizer(
        base.merge_level,
        base.grid_len,
        base.resolution,
        "first" if keep_first else "error",
        "crop" if crop else "error",
    )
    if isinstance(given, Crystals):
        tokens = CrystalTokenizer(tokenizer).tokenize(given, seed=seed)
    else:
        tokens = tokenizer.tokenize(given, seed=seed)
    with replace(out) as temporary:
        np.savez_compressed(temporary, format=FORMAT, preset=preset, **vars(tokens))
    print(f"{len(given)} structures, {len(tokens.tokens)} tokens: {out}")


def detokenize(
    tokens: Annotated[Path, typer.Argument(help="A file that molecule.tokenize wrote.", exists=True)],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Molecules: .xyz or .sdf; crystals: .extxyz or .cif.")
    ] = None,
) -> None:
    """Writes the structures of a file of tokens; structures.xyz, or for crystals structures.extxyz, if not told."""
    loaded, preset = load(tokens)
    if preset == "crystal":
        crystals, rows = CrystalTokenizer().detokenize(loaded)
        path = out or Path("structures.extxyz")
        crystal_files.write(path, crystals)
        print(f"{len(rows)} of {len(loaded) // 2} crystals: {path}")
        return
    structures = OctreeTokenizer.preset(preset).detokenize(loaded)
    if preset == "protein":  # a file of atoms can only say that these are carbons
        structures = Structures(np.full_like(structures.numbers, 6), structures.positions, structures.offsets)
    path = out or Path("structures.xyz")
    files.write(path, structures)
    print(f"{len(structures)} structures: {path}")


def evaluate(
    samples: Annotated[Path, typer.Argument(help="Generated structures: .sdf, .xyz; .cif, .extxyz.", exists=True)],
    out: Output = Path("report.json"),
    training: Annotated[
        Path | None, typer.Option(help="Training structures (crystals also .csv), for the novelty.", exists=True)
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Real structures, to compare geometries or densities with.", exists=True)
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(help="One perplexity a line and structure: the best are scored, too.", exists=True)
    ] = None,
    keep: Annotated[float, typer.Option(help="The share of structures that are the best.", min=0, max=1)] = 0.1,
    rdkit: Annotated[bool, typer.Option(help="Validity, uniqueness and novelty through RDKit.")] = True,
    composition: Annotated[bool, typer.Option(help="Validity of crystals' compositions through smact.")] = True,
    coverage: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Coverage of the reference's crystals within these cutoffs (0.2 4 for Perov-5); matminer."),
    ] = None,
    fcd: Annotated[bool, typer.Option(help="Frechet ChemNet distance from the reference, through fcd_torch.")] = False,
) -> None:
    """Scores a file of molecules or crystals, with intervals and tolerances; all samples and the best side by side."""
    from rich.console import Console
    from rich.table import Table

    from .evaluate import evaluate as score
    from .evaluate import evaluate_crystals, smiles

    given, real = read(samples), None if reference is None else read(reference)
    ranks = None if scores is None else files.numbers(scores)
    if isinstance(given, Crystals):
        if not isinstance(real, Crystals | None):
            raise ValueError("argument 'reference' must be a file of crystals, like 'samples'")
        learnt = None if training is None else read(training)
        if not isinstance(learnt, Crystals | None):
            raise ValueError("argument 'training' must be a file of crystals, like 'samples'")
        report = evaluate_crystals(
            given, scores=ranks, keep=keep, composition=composition, training=learnt, reference=real, cutoffs=coverage
        )
    else:
        if not isinstance(real, Structures | None):
            raise ValueError("argument 'reference' must be a file of molecules, like 'samples'")
        if training is not None and not rdkit:
            raise ValueError("argument 'training' must be left out without rdkit: novelty compares SMILES")
        if fcd and (real is None or not rdkit):
            raise ValueError("argument 'fcd' must come with a reference and with rdkit")
        known = None if training is None else {s for s in smiles(files.read(training))[0] if s is not None}
        texts = [s for s in smiles(real)[0] if s is not None] if fcd and real is not None else None
        bonded = files.read_bonded(samples) if samples.suffix.lower() in (".sdf", ".mol") else given
        report = score(
            bonded, scores=ranks, keep=keep, rdkit=rdkit, training=known, reference=real, reference_smiles=texts
        )
    with replace(out) as temporary:
        Path(temporary).write_text(json.dumps(report.to_dict(), indent=2) + "\n")
    table = Table("", f"all {len(given)}", "not ranked" if ranks is None else f"best {keep:.0%}")
    for row in report.rows():
        table.add_row(*row)
    console = Console()
    console.print(table)
    for name, value in report.tolerances.items():
        console.print(f"{name}: {value}", markup=False, highlight=False)


def show(
    structures: Annotated[Path, typer.Argument(help=".sdf, .mol, .xyz, .cif, .extxyz, .csv (cif)", exists=True)],
    out: Annotated[Path, typer.Option("-o", "--out", help=".html (turnable) or .png (a grid).")] = Path("show.html"),
    columns: Annotated[int, typer.Option(help="Structures in a row.", min=1, max=16)] = 4,
) -> None:
    """Draws the first 64 structures of a file."""
    from .show import grid, page

    draw = {".html": page, ".png": grid}.get(out.suffix.lower())
    if draw is None:
        raise ValueError(f"argument 'out' must end in .html or .png, got {out}")
    draw(out, read(structures), columns)
    print(out)


def load(path: Path) -> tuple[Tokens, str]:
    """Tokens of a file and the preset that made them; ValueError for one that molecule.tokenize did not write."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(i.file_size for i in archive.infolist())
        if size > MAX_BYTES:
            raise ValueError(f"{path} unpacks to {size} bytes, more than {MAX_BYTES}")
        with np.load(path, allow_pickle=False) as file:
            if int(file["format"]) != FORMAT:
                raise ValueError(f"{path} has format {int(file['format'])}, this release reads {FORMAT}")
            fields = {name: file[name] for name in FIELDS}
            preset = str(file["preset"])
    except (
        KeyError, OSError, TypeError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error
    ) as e:  # fmt: skip
        raise ValueError(f"{path} is no file of octree tokens: {e}") from e
    for name, (dtype, rank) in FIELDS.items():
        if fields[name].dtype != dtype or fields[name].ndim != rank:
            raise ValueError(
                f"{path}: {name} must be {dtype} with {rank} axes, got {fields[name].dtype} {fields[name].shape}"
            )
    if preset not in PRESETS:
        raise ValueError(f"{path}: the preset must be one of {', '.join(PRESETS)}, got {preset[:40]!r}")
    return Tokens(**fields), preset
