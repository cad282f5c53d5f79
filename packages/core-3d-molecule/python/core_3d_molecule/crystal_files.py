"""Crystals from CIF and extended XYZ files of any origin, and to them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from core_registry.files import replace

from .crystals import Crystals, Patterns
from .elements import NUMBERS
from .lines import MAX_ATOMS, Lines

Atoms = tuple[list[int], np.ndarray, np.ndarray]
SAME_SITE = 0.01
"""Angstroms within which images of an atom under a crystal's symmetry are one."""
MAX_OPERATIONS = 192
MOST_EVEN = 50
"""Peaks of a powder pattern that may lie at even steps."""


def read(path: str | Path) -> Crystals:
    """The crystals of a file `*.cif` (one for each data block with atoms) or `*.extxyz` (frames with a Lattice).

    Raises ValueError that names file and line: for what the format does not allow, a value that is not finite, an
    unknown element, sites that are partly occupied, a space group whose operations are not written out, more than
    100,000 atoms.
    """
    path = Path(path)
    readers = {".cif": _cif, ".extxyz": _extxyz}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path}: the name must end in .cif or .extxyz")
    return _batch(list(reader(Lines.of(path))))


def from_cif(text: str, name: str = "<cif>") -> Crystals:
    """The crystals of the text of a CIF file; `name` stands for it in messages."""
    return _batch(list(_cif(Lines(name, text))))


def read_pattern(path: str | Path) -> Patterns:
    """The one powder pattern of a text file: in each line the angle 2 theta of a peak, in degrees, and its intensity.

    Spaces, commas or semicolons part them; a line that begins with # says nothing. Intensities are scaled so that the
    greatest is 100. Raises ValueError that names file and line: for what is no pair of numbers, an angle outside
    0..180 or twice, a negative intensity; for a file without a peak; for more than 50 angles at even steps, which are a
    measured curve whose peaks are to be found first.
    """
    lines, found = Lines.of(Path(path)), dict[float, float]()
    while lines.skip_blank():
        fields = lines.next("a peak").replace(",", " ").replace(";", " ").split()
        if not fields or fields[0].startswith("#"):
            continue
        if len(fields) != 2:
            raise lines.error(f"a peak must be an angle and an intensity, got {len(fields)} fields")
        angle, intensity = lines.number(fields[0], "the angle"), lines.number(fields[1], "the intensity")
        if not 0 <= angle <= 180 or angle in found:
            raise lines.error(f"the angle must be new, and in 0..180 degrees, got {angle:g}")
        if intensity < 0:
            raise lines.error(f"the intensity must be 0 or above, got {intensity:g}")
        found[angle] = intensity
    greatest = max(found.values(), default=0.0)
    if greatest <= 0:
        raise ValueError(f"{path}: no line has a peak, an angle and an intensity above 0")
    angles = np.array(sorted(found))
    steps = np.diff(angles)
    if len(angles) > MOST_EVEN and np.ptp(steps) < 0.1 * steps.mean():
        raise ValueError(f"{path}: {len(angles)} angles at even steps are a measured curve; give the peaks alone")
    intensities = np.array([found[angle] for angle in angles]) * (100 / greatest)
    return Patterns(angles, intensities.clip(max=100), np.array([0, len(angles)]))


def write(path: str | Path, crystals: Crystals) -> None:
    """Writes `*.cif` or `*.extxyz` with ASE."""
    path = Path(path)
    from ase.io import write as to_file

    if path.suffix.lower() not in (".cif", ".extxyz"):
        raise ValueError(f"{path}: the name must end in .cif or .extxyz")
    with replace(path) as temporary:
        to_file(temporary, crystals.to_ase(), format=path.suffix[1:].lower())


def _batch(found: list[Atoms]) -> Crystals:
    lattices = np.array([lattice for _, _, lattice in found]).reshape(-1, 3, 3)
    return Crystals.from_list([z for z, _, _ in found], [f for _, f, _ in found], list(lattices))


def _extxyz(lines: Lines) -> Iterator[Atoms]:
    while lines.skip_blank():
        count = lines.count(lines.next("the number of atoms"), "the number of atoms")
        comment = lines.next("the comment")
        cell = re.search(r'(?:^|\s)Lattice\s*=\s*["{]([^"}]*)["}]', comment, re.IGNORECASE)
        if cell is None or len(cell[1].split()) != 9:
            raise lines.error('the comment must have Lattice="..." with nine numbers')
        lattice = np.array([lines.number(x, "the lattice") for x in cell[1].split()]).reshape(3, 3)
        if not abs(np.linalg.det(lattice)) > 1e-9:
            raise lines.error("the lattice must span a volume")
        columns = re.search(r'(?:^|\s)Properties\s*=\s*"?([^\s"]*)', comment, re.IGNORECASE)
        symbol, first = _columns(lines, columns[1] if columns else "species:S:1:pos:R:3")
        numbers, positions = [], []
        for _ in range(count):
            fields = lines.next("an atom").split()
            if len(fields) < max(symbol + 1, first + 3):
                raise lines.error("an atom must have the fields that Properties names")
            numbers.append(lines.element(fields[symbol]))
            positions.append([lines.number(x, "a coordinate") for x in fields[first : first + 3]])
        yield numbers, np.array(positions).reshape(-1, 3) @ np.linalg.inv(lattice), lattice


def _columns(lines: Lines, properties: str) -> tuple[int, int]:
    """Where an atom's symbol and the first of its coordinates stand."""
    parts, at = properties.split(":"), 0
    places: dict[str, int] = {}
    for name, _, width in zip(*(iter(parts),) * 3, strict=False):
        places[name.lower()] = at
        at += lines.count(width, "a width in Properties")
    for name in ("species", "pos"):
        if name not in places:
            raise lines.error(f"Properties must have {name}")
    return places["species"], places["pos"]


@dataclasses.dataclass
class _Block:
    """The values of a data block, by lower-case tag, with their lines."""

    line: int
    values: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    lines: dict[str, list[int]] = dataclasses.field(default_factory=dict)


def _cif(lines: Lines) -> Iterator[Atoms]:
    for block in _blocks(lines):
        if "_atom_site_fract_x" in block.values:
            yield _crystal(lines, block)


_WORD = re.compile(r"""\s*(?:(\#.*)|'((?:[^']|'(?=\S))*)'(?=\s|$)|"((?:[^"]|"(?=\S))*)"(?=\s|$)|(\S+))""")


def _words(lines: Lines) -> Iterator[tuple[str, bool, int]]:
    """Each word of a CIF file, whether it was quoted, and its line."""
    while lines.at < len(lines.lines):
        row = lines.next("a line")
        if row.startswith(";"):
            text, line = [row[1:]], lines.at
            while not (row := lines.next("the end of a text field, ';'")).startswith(";"):
                text.append(row)
            yield "\n".join(text), True, line
            row = row[1:]
        at = 0
        while match := _WORD.match(row, at):
            comment, single, double, bare = match.groups()
            at = match.end()
            if comment is not None:
                break
            quoted = single if single is not None else double
            yield (bare, False, lines.at) if quoted is None else (quoted, True, lines.at)


def _blocks(lines: Lines) -> Iterator[_Block]:
    block: _Block | None = None
    tags: list[str] = []  # of a loop; a single one waits for its value
    loop, row = False, 0
    for word, quoted, line in _words(lines):
        special = word.lower() if not quoted else ""
        if special.startswith("data_"):
            _complete(lines, tags, loop, row, line)
            if block:
                yield block
            block, tags, loop, row = _Block(line), [], False, 0
            continue
        if block is None:
            raise lines.error("a CIF file must begin with data_", line)
        if special == "loop_" or special.startswith("_"):
            if not (loop and row == 0 and special != "loop_"):
                _complete(lines, tags, loop, row, line)
                tags, loop, row = [], special == "loop_", 0
            if special != "loop_":
                if special in block.values:
                    raise lines.error(f"{special[:60]} stands twice", line)
                tags.append(special)
                block.values[special], block.lines[special] = [], []
            continue
        if special == "stop_" or special.startswith(("save_", "global_")):
            raise lines.error(f"{word[:20]} is not read", line)
        if not tags or (not loop and row == 1):
            raise lines.error(f"a value without a tag: {word[:40]!r}", line)
        tag = tags[row % len(tags)]
        block.values[tag].append(word)
        block.lines[tag].append(line)
        row += 1
    _complete(lines, tags, loop, row, lines.at)
    if block:
        yield block


def _complete(lines: Lines, tags: list[str], loop: bool, row: int, line: int) -> None:
    if tags and (row == 0 or row % len(tags)):
        raise lines.error(f"{'the loop of ' if loop else ''}{tags[0][:60]} must have its values", line)


def _number(lines: Lines, word: str, what: str, line: int) -> float:
    """A number, whose uncertainty in parentheses is left out."""
    return lines.number(re.sub(r"\(\d+\)$", "", word), what, line)


def _crystal(lines: Lines, block: _Block) -> Atoms:
    def value(tag: str) -> float:
        if len(block.values.get(tag, [])) != 1:
            raise lines.error(f"the data block must have one {tag}", block.line)
        return _number(lines, block.values[tag][0], tag, block.lines[tag][0])

    lengths = np.array([value(f"_cell_length_{k}") for k in "abc"])
    cosines = np.cos(np.deg2rad([value(f"_cell_angle_{k}") for k in ("alpha", "beta", "gamma")]))
    metric = np.outer(lengths, lengths)
    for k, (i, j) in enumerate(((1, 2), (0, 2), (0, 1))):
        metric[i, j] = metric[j, i] = metric[i, j] * cosines[k]
    try:
        lattice = np.linalg.cholesky(metric)
    except np.linalg.LinAlgError:
        lattice = np.zeros((3, 3))
    if not ((lengths > 0).all() and np.linalg.det(lattice) > 1e-9):
        raise lines.error("lengths and angles of the cell must span a volume", block.lines["_cell_length_a"][0])
    turns, shifts = _operations(lines, block)
    rows = len(block.values["_atom_site_fract_x"])
    kinds = next((t for t in ("_atom_site_type_symbol", "_atom_site_label") if t in block.values), None)
    columns = [block.values.get(f"_atom_site_fract_{axis}", []) for axis in "xyz"]
    if kinds is None or any(len(c) != rows for c in (*columns, block.values[kinds])):
        raise lines.error("atoms must have a type symbol or label and _atom_site_fract_x, _y and _z", block.line)
    if rows * len(turns) > MAX_ATOMS:
        raise lines.error(f"at most {MAX_ATOMS} atoms and images are read, got {rows * len(turns)}", block.line)
    numbers: list[int] = []
    places: list[np.ndarray] = []
    for i, line in enumerate(block.lines[kinds]):
        if "_atom_site_occupancy" in block.values:
            share = _number(lines, block.values["_atom_site_occupancy"][i].replace("?", "1"), "an occupancy", line)
            if abs(share - 1) > 1e-3:
                raise lines.error(f"a site must be occupied by one element, got {share:g}", line)
        number = _element(lines, block.values[kinds][i], line)
        site = np.array([_number(lines, c[i], "a coordinate", line) for c in columns])
        images = (turns @ site + shifts) % 1.0
        apart = images[:, None] - images[None]
        distance = np.linalg.norm((apart - apart.round()) @ lattice, axis=2)
        kept = [k for k in range(len(images)) if not (distance[k, :k] < SAME_SITE).any()]
        numbers += [number] * len(kept)
        places.append(images[kept])
    return numbers, np.concatenate(places) if places else np.empty((0, 3)), lattice


def _element(lines: Lines, word: str, line: int) -> int:
    """Of a type symbol or label: the element of its first two letters, or of its first (Ow1), hydrogen for D and T."""
    match = re.match(r"[A-Za-z]{1,2}", word)
    letters = match[0].capitalize() if match else word
    symbol = letters if letters in NUMBERS or letters[:1] not in NUMBERS else letters[0]
    return lines.element({"D": "H", "T": "H"}.get(symbol, symbol), line)


def _operations(lines: Lines, block: _Block) -> tuple[np.ndarray, np.ndarray]:
    """Rotations (K, 3, 3) and translations (K, 3) of the space group, in fractional coordinates."""
    tags = ("_space_group_symop_operation_xyz", "_symmetry_equiv_pos_as_xyz")
    tag = next((t for t in tags if t in block.values), None)
    if tag is None:
        for name in ("_space_group_it_number", "_symmetry_int_tables_number"):
            if block.values.get(name, ["1"])[0] not in ("1", "?", "."):
                raise lines.error("the operations of the space group must be written out", block.lines[name][0])
        return np.eye(3)[None], np.zeros((1, 3))
    if len(block.values[tag]) > MAX_OPERATIONS:
        raise lines.error(f"a space group has at most {MAX_OPERATIONS} operations", block.lines[tag][0])
    found = [_operation(lines, *both) for both in zip(block.values[tag], block.lines[tag], strict=True)]
    return np.array([turn for turn, _ in found]), np.array([shift for _, shift in found])


_TERM = re.compile(r"([+-]?)(?:([xyz])|(\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})(?:/(\d{1,9}))?)")


def _operation(lines: Lines, word: str, line: int) -> tuple[np.ndarray, np.ndarray]:
    parts = word.lower().replace(" ", "").split(",")
    turn, shift = np.zeros((3, 3)), np.zeros(3)
    for k, part in enumerate(parts if len(parts) == 3 else []):
        at = 0
        while match := _TERM.match(part, at):
            sign, axis, above, below = match.groups()
            if at and not sign:
                break
            if axis:
                turn[k, "xyz".index(axis)] += -1 if sign == "-" else 1
            elif below is None or int(below):
                shift[k] += (-1 if sign == "-" else 1) * float(above) / int(below or 1)
            else:
                break
            at = match.end()
        if at != len(part):
            break
    else:
        if abs(abs(np.linalg.det(turn)) - 1) < 1e-9:
            return turn, shift
    raise lines.error(f"a symmetry operation must be like 'x, -y, z+1/2', got {word[:40]!r}", line)
