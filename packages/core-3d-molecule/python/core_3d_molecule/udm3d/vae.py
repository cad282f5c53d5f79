# mypy: disallow-subclassing-any=False, disallow-untyped-decorators=False
"""UAE-3D (arXiv 2503.15567, section 3.1): molecules with bonds to one latent vector an atom, and back."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..relational import relational_attention

NO_BOND, SELF_LOOP, BOND_CLASSES = 0, 5, 6
"""Bond classes: none, single, double, triple, aromatic, self-loop."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Shape of a `UAE3D`; the defaults are the paper's for QM9 (0.64 million parameters).

    elements: the atomic numbers that occur, in the order of the atom classes; scale: coordinates are divided by it (the
    standard deviation of the training set's; drugs 2.3859); most_atoms: of one molecule.
    """

    elements: tuple[int, ...] = (1, 6, 7, 8, 9)
    scale: float = 1.3981
    most_atoms: int = 29
    hidden: int = 64
    edge: int = 16
    heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 4
    latent: int = 16
    dropout: float = 0.1

    def __post_init__(self) -> None:
        problems = {
            "elements": len(set(self.elements)) == len(self.elements) > 0 and all(1 <= z <= 118 for z in self.elements),
            "scale": 0 < self.scale < math.inf,
            "most_atoms": 1 <= self.most_atoms <= 1024,
            "hidden": self.hidden >= 1 and self.hidden % max(self.heads, 1) == 0 and self.hidden % 4 == 0,
            "heads": self.heads >= 1,
            "encoder_layers": 0 <= self.encoder_layers <= 1000,
            "decoder_layers": 1 <= self.decoder_layers <= 1000,
            "edge": self.edge >= 1,
            "latent": self.latent >= 1,
            "dropout": 0 <= self.dropout < 1,
        }
        for name, good in problems.items():
            if not good:
                raise ValueError(f"Config: argument '{name}' is out of range, got {getattr(self, name)!r}")


class Molecules(NamedTuple):
    """A ragged batch of B molecules, behind which others may follow that only fill it (`batches.Room`).

    kinds (A,) int64 atom classes; positions (A, 3) float32 in units of the scale; bonds (P,) uint8, for each molecule
    its n x n classes, SELF_LOOP on the diagonal; offsets (B + 1 or more,) int64; rows (B, N) int64, the atom at each
    place of a molecule, and real (B, N) bool, whether there is one.
    """

    kinds: Tensor
    positions: Tensor
    bonds: Tensor
    offsets: Tensor
    rows: Tensor
    real: Tensor

    def molecule(self) -> Tensor:
        """Which molecule each atom (A,) belongs to."""
        every = torch.arange(len(self.kinds), device=self.kinds.device)
        return torch.searchsorted(self.offsets[1:], every, right=True)

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Which places of (B, N, N) hold pairs of atoms, bool, and the bond classes (B, N, N) int64, 0 elsewhere."""
        both = self.real[:, :, None] & self.real[:, None]
        counts, places = self.offsets.diff()[: len(self.real)], torch.arange(self.real.shape[1], device=both.device)
        begin = counts.square().cumsum(0) - counts.square()
        at = begin[:, None, None] + places[:, None] * counts[:, None, None] + places
        return both, torch.where(both, self.bonds[torch.where(both, at, 0)].long(), 0)


class Relational(nn.Module):
    """A block of the relational transformer: attention that sees the pairs' features, and a perceptron on the atoms.

    The features of a pair are a perceptron of its own on the squared distance, Gaussians of that and the bond.
    """

    def __init__(self, c: Config) -> None:
        super().__init__()
        gaussians = c.hidden // 4 - 1
        self.heads, width, inputs = c.heads, c.hidden // c.heads, 1 + gaussians + BOND_CLASSES
        self.norm1, self.norm2 = nn.LayerNorm(c.hidden), nn.LayerNorm(c.hidden)
        self.qkv, self.out = nn.Linear(c.hidden, 3 * c.hidden), nn.Linear(c.hidden, c.hidden)
        self.edges = nn.Parameter(torch.randn(3, c.heads, width, c.edge) / math.sqrt(c.edge + c.hidden))
        self.centres = nn.Parameter(torch.empty(gaussians).uniform_(0, 3))
        self.widths = nn.Parameter(torch.empty(gaussians).uniform_(0, 3))
        self.w1, self.b1 = (
            nn.Parameter(torch.randn(c.edge, inputs) / math.sqrt(inputs)),
            nn.Parameter(torch.zeros(c.edge)),
        )
        self.w2, self.b2 = (
            nn.Parameter(torch.randn(c.edge, c.edge) / math.sqrt(c.edge)),
            nn.Parameter(torch.zeros(c.edge)),
        )
        self.mlp = nn.Sequential(
            nn.Linear(c.hidden, 4 * c.hidden), nn.GELU(), nn.Dropout(c.dropout), nn.Linear(4 * c.hidden, c.hidden)
        )
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, h: Tensor, m: Molecules) -> Tensor:
        """h (A, hidden)."""
        q, k, v = self.qkv(self.norm1(h)).float().unflatten(-1, (3, self.heads, -1)).unbind(1)
        with torch.autocast(h.device.type, enabled=False):
            y = relational_attention(
                q, k, v, m.positions, m.bonds, m.offsets,
                edge_q=self.edges[0], edge_k=self.edges[1], edge_v=self.edges[2],
                centres=self.centres, widths=self.widths.abs() + 1e-2,
                w1=self.w1, b1=self.b1, w2=self.w2, b2=self.b2,
            )  # fmt: skip
        h = h + self.dropout(self.out(y.flatten(1)))
        return h + self.dropout(self.mlp(self.norm2(h)))


class Decoder(nn.Module):
    """A transformer decoder on the latent vectors of a molecule, without positions of its own."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.project = nn.Linear(c.latent, c.hidden)
        layer = nn.TransformerDecoderLayer(
            c.hidden, c.heads, 4 * c.hidden, c.dropout, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.ModuleList(
            [layer, *(type(layer)(c.hidden, c.heads, 4 * c.hidden, c.dropout, "gelu", batch_first=True, norm_first=True)
                      for _ in range(c.decoder_layers - 1))]
        )  # fmt: skip
        self.atom = nn.Sequential(
            nn.LayerNorm(c.hidden), nn.Linear(c.hidden, c.hidden), nn.GELU(), nn.Linear(c.hidden, len(c.elements))
        )
        self.position = nn.Sequential(
            nn.LayerNorm(c.hidden),
            nn.Linear(c.hidden, c.hidden, bias=False),
            nn.Tanh(),
            nn.Linear(c.hidden, 3, bias=False),
        )
        self.bond = nn.Sequential(
            nn.LayerNorm(c.hidden), nn.Linear(c.hidden, c.hidden), nn.GELU(), nn.Linear(c.hidden, BOND_CLASSES)
        )

    def forward(self, z: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of atoms (B, N, elements), positions (B, N, 3), logits of bonds (B, N, N, 6); z (B, N, latent)."""
        given = h = self.project(z)
        none = ~real
        for layer in self.layers:
            h = layer(h, given, tgt_key_padding_mask=none, memory_key_padding_mask=none)
        with torch.autocast(z.device.type, enabled=False):  # half precision would show in the coordinates
            positions = self.position(h.float())
        return self.atom(h), positions, self.bond(h[:, :, None] + h[:, None])


@dataclasses.dataclass(frozen=True)
class Weights:
    """Of the loss's terms (equation 5 and the released settings)."""

    atom: float = 1.0
    bond: float = 1.0
    position: float = 1.0
    distance: float = 1.0
    bonded: float = 10.0
    kl: float = 1e-8


class UAE3D(nn.Module):
    """The variational autoencoder."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        c = self.config = config
        self.atoms = nn.Embedding(len(c.elements), c.hidden)
        self.place = nn.Linear(3, c.hidden)
        self.encoder = nn.ModuleList(Relational(c) for _ in range(c.encoder_layers))
        self.norm = nn.LayerNorm(c.hidden)
        self.latent = nn.Linear(c.hidden, 2 * c.latent)
        self.decoder = Decoder(c)

    def encode(self, m: Molecules) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance (A, latent) of each atom's latent vector."""
        h = self.atoms(m.kinds) + self.place(m.positions)
        for block in self.encoder:
            h = block(h, m)
        mean, log_variance = self.latent(self.norm(h)).float().chunk(2, -1)
        return mean, log_variance.clamp(-30, 20)

    def decode(self, z: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Decoder`; z (B, N, latent), real (B, N)."""
        found: tuple[Tensor, Tensor, Tensor] = self.decoder(z, real)
        return found

    def forward(self, m: Molecules, noise: float = 0.0) -> dict[str, Tensor]:
        """The terms of the loss, unweighted, and how well atoms, bonds and positions (angstroms) came out.

        The decoder gets latent vectors with normal errors of `noise` times their standard deviation, in training of a
        random share of it for each molecule.
        """
        mean, log_variance = self.encode(m)
        z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp() if self.training else mean
        z = z[m.rows]
        if noise:
            share = torch.rand(len(z), 1, 1, device=z.device) if self.training else 1.0
            z = z + noise * deviation(z.detach(), m.real) * share * torch.randn_like(z)
        atoms, positions, bonds = self.decode(z * m.real[..., None], m.real)
        apart = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean(-1)
        kl = (apart[m.rows] * m.real).sum() / m.real.sum()
        return reconstruction(m, atoms, positions, bonds, self.config.scale) | {"kl": kl}


def deviation(z: Tensor, real: Tensor) -> Tensor:
    """The standard deviation () of latent vectors z (B, N, latent) where real (B, N), over all their numbers."""
    z, count = torch.where(real[..., None], z, 0), real.sum() * z.shape[-1]
    return (z.square().sum() / count - (z.sum() / count).square()).clamp(min=0).sqrt()


def reconstruction(m: Molecules, atoms: Tensor, positions: Tensor, bonds: Tensor, scale: float) -> dict[str, Tensor]:
    """The loss's terms between a batch and what the decoder made of it."""
    both, classes = m.pairs()
    real, count = m.real, m.real.sum()
    kinds = m.kinds[m.rows]
    at = torch.where(real[..., None], m.positions[m.rows], 0)
    positions = torch.where(real[..., None], positions, 0)
    pairs = both & (classes != SELF_LOOP)

    def mean(x: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, x, 0).sum() / mask.sum().clamp(min=1)

    def distances(x: Tensor) -> Tensor:
        squared = (x[:, :, None] - x[:, None]).square().sum(-1)
        return torch.where(pairs, squared, 1).clamp(min=1e-12).sqrt()

    square = (distances(positions) - distances(at)).square()
    cross = F.cross_entropy(bonds.float().flatten(0, 2), classes.flatten(), reduction="none").view_as(square)
    without_loops = bonds.detach()[..., :SELF_LOOP].argmax(-1)
    return {
        "atom": mean(
            F.cross_entropy(atoms.float().flatten(0, 1), kinds.flatten(), reduction="none").view_as(real), real
        ),
        "bond": mean(cross, both),
        "position": (positions - at).square().sum() / (3 * count),
        "distance": mean(square, pairs),
        "bonded": mean(square, pairs & (classes != NO_BOND)),
        "atoms right": mean((atoms.detach().argmax(-1) == kinds).float(), real),
        "bonds right": mean((without_loops == classes).float(), pairs),
        "rmsd": (positions - at).detach().square().sum().div(count).sqrt() * scale,
    }


def weighted(terms: dict[str, Tensor], weights: Weights) -> Tensor:
    """The loss."""
    return torch.stack([w * terms[name] for name, w in dataclasses.asdict(weights).items()]).sum()
