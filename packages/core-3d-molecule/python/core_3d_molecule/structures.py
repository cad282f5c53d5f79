"""Batches of molecules, to and from the objects of ASE, RDKit and torch_geometric."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from core_registry.arrays import as_array, is_torch

if TYPE_CHECKING:
    from ase import Atoms
    from rdkit.Chem import Mol
    from torch_geometric.data import Data


@dataclasses.dataclass(frozen=True)
class Structures:
    """A batch of structures, one after the other.

    numbers (A,) int32: atomic numbers 1..118 (119..139: the alpha carbons of `elements.RESIDUES`); positions (A, 3)
    float32 or float64, angstroms; offsets (B + 1,) int64: the atoms of structure b are rows offsets[b]..offsets[b + 1].
    """

    numbers: Any
    positions: Any
    offsets: Any

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def from_list(cls, numbers: Sequence[Any], positions: Sequence[Any]) -> Structures:
        """A batch from one array of atomic numbers and one of positions (n, 3) for each structure.

        Raises ValueError for a structure whose numbers and positions differ in length, and for numbers that are
        not integers.
        """
        counts, rows = (np.fromiter(map(len, x), np.int64, len(x)) for x in (numbers, positions))
        if len(counts) != len(rows) or (counts != rows).any():
            raise ValueError("arguments 'numbers' and 'positions' must have as many structures and atoms as each other")
        given = np.concatenate([np.empty(0, np.int32), *numbers])
        exact = given.astype(np.int32)
        if (exact != given).any():
            raise ValueError(f"argument 'numbers' must be integers, got {given[exact != given][0]}")
        points = np.concatenate([np.empty((0, 3)), *(p for p in positions if len(p))]).astype(np.float64)
        return cls(exact, points, offsets_of(counts))

    def select(self, rows: Any) -> Structures:
        """The structures of these rows (K,), in their order. Raises IndexError for a row too large."""
        atoms, offsets = selected(self.offsets, rows)
        return Structures(self.numbers[atoms], self.positions[atoms], offsets)

    def __iter__(self) -> Any:
        """Numbers (n,) and positions (n, 3) of each structure."""
        cuts = np.asarray(self.offsets)[1:-1]
        parts = (np.split(np.asarray(x), cuts)[: len(self)] for x in (self.numbers, self.positions))
        return iter(zip(*parts, strict=True))

    @classmethod
    def from_ase(cls, atoms: Iterable[Atoms]) -> Structures:
        """A batch from `ase.Atoms`; cells and boundary conditions are not kept."""
        listed = list(atoms)
        return cls.from_list([a.numbers for a in listed], [a.positions for a in listed])

    def to_ase(self) -> list[Atoms]:
        """One `ase.Atoms` for each structure."""
        from ase import Atoms

        return [Atoms(numbers=n, positions=p) for n, p in self]

    @classmethod
    def from_rdkit(cls, molecules: Iterable[Mol]) -> Structures:
        """A batch from `rdkit.Chem.Mol` with a conformer each (the first is taken), hydrogens as they are.

        Raises ValueError for a molecule without a conformer.
        """
        listed = list(molecules)
        for b, m in enumerate(listed):
            if m.GetNumConformers() == 0:
                raise ValueError(f"argument 'molecules' must have conformers, got none in molecule {b}")
        numbers = [[a.GetAtomicNum() for a in m.GetAtoms()] for m in listed]
        return cls.from_list(numbers, [m.GetConformer().GetPositions() for m in listed])

    def to_rdkit(self, bonds: tuple[Any, Any, Any] | None = None, charges: Any = None) -> list[Mol]:
        """One `rdkit.Chem.Mol` with a conformer for each structure, not sanitised.

        bonds: rows (M, 2), orders (M,) 1..3 or 4 for aromatic, and offsets (B + 1,), as edm_bonds gives them; no bonds
        if left out. charges (A,): formal ones, 0 if left out.
        """
        from rdkit import Chem, Geometry

        kinds = [Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE, Chem.BondType.AROMATIC]
        rows, orders, starts = bonds or (np.empty((0, 2), np.int64), (), np.zeros(len(self) + 1, np.int64))
        ions = np.zeros(len(self.numbers), np.int64) if charges is None else np.asarray(charges)
        found = []
        for b, (numbers, positions) in enumerate(self):
            first, molecule = int(self.offsets[b]), Chem.RWMol()
            conformer = Chem.Conformer(len(numbers))
            for i, (number, point) in enumerate(zip(numbers.tolist(), positions.tolist(), strict=True)):
                molecule.AddAtom(Chem.Atom(number))
                conformer.SetAtomPosition(i, Geometry.Point3D(*point))
            which = slice(int(starts[b]), int(starts[b + 1]))
            for (i, j), order in zip(rows[which].tolist(), list(orders[which]), strict=True):
                molecule.AddBond(i - first, j - first, kinds[int(order) - 1])
            for atom, charge in zip(molecule.GetAtoms(), ions[first : first + len(numbers)].tolist(), strict=True):
                atom.SetFormalCharge(charge)
            molecule.AddConformer(conformer, assignId=True)
            found.append(molecule.GetMol())
        return found

    @classmethod
    def from_pyg(cls, data: Iterable[Data]) -> Structures:
        """A batch from `torch_geometric.data.Data` with atomic numbers `z` (n,) and positions `pos` (n, 3)."""
        listed = list(data)
        return cls.from_list([d.z.numpy() for d in listed], [d.pos.double().numpy() for d in listed])

    def to_pyg(self) -> list[Data]:
        """One `torch_geometric.data.Data` for each structure: `z` int64, `pos` float32."""
        import torch
        from torch_geometric.data import Data

        return [
            Data(z=torch.from_numpy(n.astype(np.int64)), pos=torch.from_numpy(p.astype(np.float32))) for n, p in self
        ]


def selected(offsets: Any, rows: Any) -> tuple[Any, Any]:
    """The atoms of some structures of a batch, and the offsets of these structures, numpy or torch."""
    if is_torch(offsets):
        torch = sys.modules["torch"]
        atoms, starts = selected(offsets.numpy(), np.asarray(rows))
        return torch.from_numpy(atoms), torch.from_numpy(starts)
    which = np.arange(len(offsets) - 1)[np.asarray(rows)]
    counts = np.diff(offsets)[which]
    starts = offsets_of(counts)
    return np.arange(starts[-1]) + np.repeat(offsets[which] - starts[:-1], counts), starts


def arrays(structures: Structures) -> tuple[Any, Any, Any]:
    """Numbers, positions and offsets with the kernels' dtypes."""
    numbers = as_array(structures.numbers, "int32", "numbers")
    offsets = as_array(structures.offsets, "int64", "offsets", like=numbers)
    positions = structures.positions
    if not hasattr(positions, "dtype") or str(positions.dtype).rpartition(".")[2] != "float32":
        positions = as_array(positions, "float64", "positions", like=numbers)
    return numbers, positions, offsets


def offsets_of(counts: Any) -> Any:
    """0 and the running sums, int64."""
    if is_torch(counts):
        torch = sys.modules["torch"]
        return torch.nn.functional.pad(torch.cumsum(counts, 0, dtype=torch.int64), (1, 0))
    out = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=out[1:])
    return out
