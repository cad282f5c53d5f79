"""Jobs on files: `core run molecule.tokenize`, `molecule.detokenize` and `molecule.eval`."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from core_registry.files import replace

from .octree import OctreeTokenizer, Tokens
from .structures import Structures

FORMAT = 2
MAX_BYTES = 4 << 30
FIELDS = {
    "tokens": ("int32", 1), "levels": ("int32", 1), "centres": ("float32", 2), "bins": ("int32", 2),
    "counts": ("int32", 1), "atoms": ("int64", 1), "offsets": ("int64", 1), "origins": ("float64", 2),
}  # fmt: skip

Output = Annotated[Path, typer.Option("-o", "--out", help="The file to write.")]


def tokenize(
    structures: Annotated[Path, typer.Argument(help="A file that ASE reads: xyz, sdf, cif ...", exists=True)],
    out: Output = Path("tokens.npz"),
    merge_level: Annotated[
        int, typer.Option(help="Depth of the octree: QM9 6, drug-like 7, crystals 8.", min=1, max=10)
    ] = 6,
    keep_first: Annotated[bool, typer.Option(help="Drop all but the first atom of a cell instead of failing.")] = False,
) -> None:
    """Writes the octree tokens of all structures of a file."""
    from ase.io import iread
    from rich.progress import track

    atoms = list(track(iread(structures, index=":"), description=f"reading {structures}"))
    tokenizer = OctreeTokenizer(merge_level, duplicates="first" if keep_first else "error")
    tokens = tokenizer.tokenize(Structures.from_ase(atoms))
    with replace(out) as temporary:
        np.savez_compressed(temporary, format=FORMAT, merge_level=merge_level, **vars(tokens))
    print(f"{len(tokens)} structures, {len(tokens.tokens)} tokens: {out}")


def detokenize(
    tokens: Annotated[Path, typer.Argument(help="A file that molecule.tokenize wrote.", exists=True)],
    out: Output = Path("structures.xyz"),
) -> None:
    """Writes the structures of a file of tokens, in a format that ASE writes."""
    from ase.io import write

    loaded, merge_level = load(tokens)
    structures = OctreeTokenizer(merge_level).detokenize(loaded)
    with replace(out) as temporary:
        write(temporary, structures.to_ase())
    print(f"{len(structures)} structures: {out}")


def evaluate(
    samples: Annotated[Path, typer.Argument(help="Generated molecules: .sdf (V2000) or .xyz.", exists=True)],
    out: Output = Path("report.json"),
    training: Annotated[
        Path | None, typer.Option(help="Training molecules, .sdf or .xyz, for the novelty.", exists=True)
    ] = None,
    rdkit: Annotated[bool, typer.Option(help="Validity, uniqueness and novelty through RDKit.")] = True,
) -> None:
    """Scores a file of molecules: stability, validity, uniqueness, novelty, with intervals and tolerances."""
    from rich.console import Console

    from .evaluate import evaluate as score
    from .evaluate import smiles
    from .files import read

    if training is not None and not rdkit:
        raise ValueError("argument 'training' must be left out without rdkit: novelty compares SMILES")
    known = {s for s in smiles(read(training)) if s is not None} if training is not None else None
    report = score(read(samples), rdkit=rdkit, training=known).to_dict()
    with replace(out) as temporary:
        Path(temporary).write_text(json.dumps(report, indent=2) + "\n")
    console = Console()
    for name, value in report.items():
        if isinstance(value, dict) and "low" in value:
            value = f"{value['value']:.4f}  [{value['low']:.4f}, {value['high']:.4f}]"
        console.print(f"{name.replace('_', ' ')}: {value}", markup=False, highlight=False)


def load(path: Path) -> tuple[Tokens, int]:
    """Tokens and merge level of a file; ValueError for one that molecule.tokenize did not write."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(i.file_size for i in archive.infolist())
        if size > MAX_BYTES:
            raise ValueError(f"{path} unpacks to {size} bytes, more than {MAX_BYTES}")
        with np.load(path, allow_pickle=False) as file:
            if int(file["format"]) != FORMAT:
                raise ValueError(f"{path} has format {int(file['format'])}, this release reads {FORMAT}")
            fields = {name: file[name] for name in FIELDS}
            merge_level = int(file["merge_level"])
    except (
        KeyError, OSError, TypeError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error
    ) as e:  # fmt: skip
        raise ValueError(f"{path} is no file of octree tokens: {e}") from e
    for name, (dtype, rank) in FIELDS.items():
        if fields[name].dtype != dtype or fields[name].ndim != rank:
            raise ValueError(
                f"{path}: {name} must be {dtype} with {rank} axes, got {fields[name].dtype} {fields[name].shape}"
            )
    return Tokens(**fields), merge_level
