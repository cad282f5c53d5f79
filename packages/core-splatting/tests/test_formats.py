"""File formats: round trips, gsply as independent reader and writer, a real scan, memory, and hostile files."""

import dataclasses
import gzip
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from core_splatting import formats
from core_splatting.formats import FormatError, Gaussians
from hypothesis import given, settings
from hypothesis import strategies as st

SCAN = Path(os.environ.get("CORE_SPLAT_DATA", "/nonexistent"))
PLY = b"ply\nformat binary_little_endian 1.0\n"
WITH_EXTENSIONS = 2 << 20  # bytes that a .spz may hold besides: up to 2^20 of extensions, and buffers
FIELDS = [f.name for f in dataclasses.fields(Gaussians)]


def random_gaussians(count: int, degree: int, seed: int = 0) -> Gaussians:
    rng = np.random.default_rng(seed)
    quats = rng.normal(size=(count, 4))
    quats /= np.linalg.norm(quats, axis=1, keepdims=True)
    arrays = (
        rng.uniform(-3, 3, (count, 3)), quats, rng.uniform(-8, 0, (count, 3)), rng.normal(size=count) * 2,
        rng.uniform(-0.9, 0.9, (count, (degree + 1) ** 2, 3)),
    )  # fmt: skip
    return Gaussians(*(a.astype(np.float32) for a in arrays))


def difference(a: Gaussians, b: Gaussians) -> dict[str, float]:
    """The largest difference of each field; of rotations that of 1 - |q.r|, of opacities and colours as shown."""
    sh = np.abs(a.sh - b.sh).max((0, 2)) if len(a) else np.zeros(a.sh.shape[1])
    return {
        "means": float(np.abs(a.means - b.means).max(initial=0)),
        "quats": float((1 - np.abs((a.quats * b.quats).sum(1))).max(initial=0)),
        "log_scales": float(np.abs(a.log_scales - b.log_scales).max(initial=0)),
        "opacities": float(np.abs(a.opacities - b.opacities).max(initial=0)),
        "dc": float(sh[0]),
        "rest": float(sh[1:].max(initial=0)),
    }


def below(found: dict[str, float], bounds: tuple[float, ...]) -> None:
    for (name, value), bound in zip(found.items(), bounds, strict=True):
        assert value <= bound, f"{name}: {value} > {bound}"


def matched(g: Gaussians, to: Gaussians) -> Gaussians:
    """`g` in the order of `to`, by the nearest centre."""
    return g[np.abs(to.means[:, None] - g.means[None]).sum(-1).argmin(1)] if len(g) else g


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 300])
def test_ply_keeps_every_bit(tmp_path: Path, count: int, degree: int) -> None:
    g = random_gaussians(count, degree)
    formats.write(tmp_path / "a.ply", g)
    back = formats.read(tmp_path / "a.ply")
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(back, name), getattr(g, name))


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 700])
@pytest.mark.parametrize("version", [2, 3, 4])
def test_spz_round_trip(tmp_path: Path, count: int, degree: int, version: int) -> None:
    if version == 4:
        pytest.importorskip("zstandard")
    g = random_gaussians(count, degree)
    formats.write(tmp_path / "a.spz", g, version=version)
    # Halves of the steps; a rotation from 8 bits a component is off by more where w is near 0.
    below(
        difference(g, formats.read(tmp_path / "a.spz")),
        (1.3e-4, 0.01 if version == 2 else 1e-5, 1 / 31, 2e-3, 0.014, 1 / 250),
    )


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 256, 700])
def test_compressed_ply_round_trip(tmp_path: Path, count: int, degree: int) -> None:
    g = random_gaussians(count, degree)
    formats.write(tmp_path / "a.compressed.ply", g)
    back = formats.read(tmp_path / "a.compressed.ply")
    below(difference(g, matched(back, g)), (3.1e-3, 1e-5, 4.1e-3, 2e-3, 0.004, 1 / 60))


@pytest.mark.parametrize("count", [0, 1, 700])
def test_splat_round_trip(tmp_path: Path, count: int) -> None:
    g = random_gaussians(count, 0)
    formats.write(tmp_path / "a.splat", g)
    assert (tmp_path / "a.splat").stat().st_size == 32 * count
    below(difference(g, formats.read(tmp_path / "a.splat")), (0, 1e-4, 1e-5, 2e-3, 0.5 / 255 / 0.282 + 1e-4, 0))


def test_parts_are_the_whole(tmp_path: Path) -> None:
    g = random_gaussians(1000, 1)
    for name in ("a.ply", "a.spz", "a.compressed.ply", "a.splat"):
        formats.write(tmp_path / name, g)
        source = formats.open_gaussians(tmp_path / name)
        whole, parts = source.read(), list(source.chunks(256))
        assert [len(p) for p in parts] == [256, 256, 256, 232]
        for field in FIELDS:
            np.testing.assert_array_equal(getattr(whole, field), np.concatenate([getattr(p, field) for p in parts]))


def to_gsply(g: Gaussians) -> Any:
    gsdata = pytest.importorskip("gsply.gsdata")
    return gsdata.GSData.from_arrays(
        means=g.means, scales=g.log_scales, quats=g.quats, opacities=g.logit_opacities, sh0=g.sh[:, 0].copy(),
        shN=g.sh[:, 1:].copy() if g.sh_degree else None, format="ply",
    )  # fmt: skip


def from_gsply(d: Any) -> Gaussians:
    rest = d.shN if d.shN is not None else np.empty((len(d.means), 0, 3), np.float32)
    arrays = (d.means, d.quats, d.scales, d.opacities, np.concatenate([d.sh0[:, None], rest], 1))
    return Gaussians(*(np.ascontiguousarray(a, np.float32) for a in arrays))


def turned(g: Gaussians) -> Gaussians:
    """The same in the frame right, up, back, which gsply leaves as it is in a .spz."""
    signs = np.float32([1, -1, -1, 1, -1, 1, 1, -1, 1, -1, 1, -1, -1, 1, -1, 1])[: g.sh.shape[1], None]
    return Gaussians(
        g.means * np.float32([1, -1, -1]),
        g.quats * np.float32([1, 1, -1, -1]),
        g.log_scales,
        g.logit_opacities,
        g.sh * signs,
    )


@pytest.mark.parametrize("degree", [0, 2, 3])
def test_gsply_reads_ours_and_we_read_gsply(tmp_path: Path, degree: int) -> None:
    gsply = pytest.importorskip("gsply")
    g = random_gaussians(600, degree)
    formats.write(tmp_path / "a.ply", g)
    below(difference(g, from_gsply(gsply.plyread(tmp_path / "a.ply"))), (0, 1e-6, 0, 1e-6, 0, 0))
    gsply.plywrite(tmp_path / "b.ply", to_gsply(g))
    below(difference(g, formats.read(tmp_path / "b.ply")), (0, 1e-6, 0, 1e-6, 0, 0))

    formats.write(tmp_path / "a.compressed.ply", g)
    ours, theirs = formats.read(tmp_path / "a.compressed.ply"), from_gsply(gsply.plyread(tmp_path / "a.compressed.ply"))
    below(difference(ours, theirs), (1e-6, 1e-6, 1e-5, 1e-4, 1e-5, 1e-6))
    gsply.plywrite(tmp_path / "c.ply", to_gsply(g), compressed=True)
    path = next(tmp_path.glob("c.*"))
    ours = formats.open_gaussians(path if path.suffix == ".ply" else path.rename(tmp_path / "d.ply")).read()
    below(difference(g, matched(ours, g)), (3.1e-3, 1e-5, 4.1e-3, 2e-3, 0.02, 1 / 30))

    for version in (3, 4):
        if version == 4:
            pytest.importorskip("zstandard")
        formats.write(tmp_path / "a.spz", g, version=version)
        same = turned(from_gsply(gsply.read_spz(tmp_path / "a.spz")))
        below(difference(formats.read(tmp_path / "a.spz"), same), (1e-7, 1e-6, 1e-6, 1e-6, 1e-6, 1e-6))
        gsply.write_spz(tmp_path / "b.spz", to_gsply(turned(g)), version=version)
        below(difference(formats.read(tmp_path / "b.spz"), g), (1.3e-4, 1e-5, 1 / 31, 2e-3, 0.014, 1 / 250))


def test_harmonics_turn_with_the_frame() -> None:
    # The signs are those of the harmonics themselves at (x, -y, -z), here from Cartesian formulas up to constants.
    x, y, z = np.random.default_rng(0).normal(size=3)

    def basis(x: float, y: float, z: float) -> Any:
        return np.array([
            -y, z, -x, x * y, -y * z, 2 * z * z - x * x - y * y, -x * z, x * x - y * y, -y * (3 * x * x - y * y),
            x * y * z, -y * (4 * z * z - x * x - y * y), z * (2 * z * z - 3 * x * x - 3 * y * y),
            -x * (4 * z * z - x * x - y * y), z * (x * x - y * y), -x * (x * x - 3 * y * y),
        ])  # fmt: skip

    from core_splatting.formats.spz import _FLIP_SH

    np.testing.assert_allclose(basis(x, -y, -z), basis(x, y, z) * _FLIP_SH)


@pytest.mark.skipif(not (SCAN / "biker.spz").exists(), reason="needs CORE_SPLAT_DATA")
def test_a_scan_in_two_formats_is_the_same() -> None:
    pytest.importorskip("zstandard")
    spz, ply = formats.read(SCAN / "biker.spz"), formats.read(SCAN / "biker.compressed.ply")
    assert len(spz) == len(ply) == 152746
    held = ply.log_scales > -9.9  # the .spz holds no smaller ones
    assert np.abs(spz.log_scales - ply.log_scales)[held].max() < 0.05
    below(difference(spz, ply) | {"log_scales": 0}, (2.5e-4, 1e-5, 0, 1e-6, 0.02, 0))


def test_a_large_file_is_read_in_parts(tmp_path: Path) -> None:
    count = 200_000
    big = random_gaussians(1000, 0)
    for name in ("a.ply", "a.spz", "a.compressed.ply", "a.splat"):
        repeated = formats.Source(count, 0, lambda n: (big for _ in range(count // 1000)))
        formats.write(tmp_path / name, repeated)
        tracemalloc.start()
        seen = sum(len(part) for part in formats.open_gaussians(tmp_path / name).chunks(4096))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert seen == count
        assert peak < 6e6 + (33e6 if name == "a.spz" else 0), f"{name}: {peak}"  # all of them are 56 bytes x 200,000


@pytest.mark.parametrize("kind", ["", "big-endian", "ascii"])
def test_abuse_of_plys(tmp_path: Path, abused: Callable[..., None], kind: str) -> None:
    path = tmp_path / "a.ply"
    formats.write(path, random_gaussians(40, 1))
    header, records = path.read_bytes().split(b"end_header\n")
    if kind == "big-endian":
        header, records = header.replace(b"little", b"big"), np.frombuffer(records, "<f4").astype(">f4").tobytes()
    if kind == "ascii":  # is refused
        header, records = header.replace(b"binary_little_endian", b"ascii"), b"0.5 " * 26 * 40
    path.write_bytes(header + b"end_header\n" + records)
    abused(path, lambda: formats.read(path), FormatError, head=len(header))


@pytest.mark.parametrize("name", ["a.compressed.ply", "a.splat", "2.spz", "3.spz", "4.spz"])
def test_abuse_of_files(tmp_path: Path, abused: Callable[..., None], name: str) -> None:
    if name == "4.spz":
        pytest.importorskip("zstandard")
    path = tmp_path / name
    formats.write(path, random_gaussians(300, 1), **({"version": int(name[0])} if name.endswith("spz") else {}))
    head = 1500 if name.endswith("ply") else 120
    abused(path, lambda: formats.read(path), FormatError, head=head, fixed=WITH_EXTENSIONS)


@pytest.mark.parametrize("version", [2, 3])
def test_abuse_within_gzip(tmp_path: Path, abused: Callable[..., None], version: int) -> None:
    path = tmp_path / "a.spz"
    formats.write(path, random_gaussians(40, 1), version=version)
    path.write_bytes(gzip.decompress(path.read_bytes()))
    abused(
        path,
        lambda: formats.read(path),
        FormatError,
        head=120,
        fixed=WITH_EXTENSIONS,
        packed=lambda data: gzip.compress(data, 1),
    )


def spz(*header: int, more: bytes = b"") -> bytes:
    return gzip.compress(struct.pack("<IIIBBBB", 0x5053474E, *header) + more, 9)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.ply", b"", "'ply' in the first line"),
        ("a.ply", b"ply\n" + b"comment x\n" * 10000, "end_header"),
        ("a.ply", b"ply\nformat ascii 1.0\nend_header\n", "format ascii"),
        ("a.ply", PLY + b"element vertex 99999999999\nproperty float x\nend_header\n", "bytes"),
        ("a.ply", PLY + b"element vertex 0\nproperty float x\nend_header\n", "'y' is missing"),
        ("a.ply", PLY + b"element vertex 0\nproperty list uchar int i\nend_header\n", "line 4"),
        ("a.splat", b"x" * 33, "multiple of 32"),
        ("a.spz", b"NGSP", "NGSP"),
        ("a.spz", spz(3, 2**32 - 1, 0, 12, 0, 0), "at most"),
        ("a.spz", spz(3, 2**25, 0, 12, 0, 0), "can hold compressed"),
        ("a.spz", spz(1, 1, 0, 12, 0, 0), "version"),
        ("a.spz", spz(3, 1, 0, 12, 0, 0, more=bytes(19)), "ends 1 before"),
        ("a.spz", spz(3, 0, 0, 12, 2, 0, more=struct.pack("<II", 7, 0)), "0x7"),
    ],
)  # fmt: skip
def test_refusals_name_file_and_place(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(FormatError, match=says) as e:
        formats.read(tmp_path / name)
    assert str(tmp_path / name) in str(e.value)


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    (tmp_path / "a.spz").write_bytes(spz(3, 5, 0, 12, 0, 0, more=bytes(100 << 20)))
    tracemalloc.start()
    assert len(formats.read(tmp_path / "a.spz")) == 5
    assert tracemalloc.get_traced_memory()[1] < 4e6
    tracemalloc.stop()


def test_nothing_is_allocated_on_a_files_word(tmp_path: Path) -> None:
    (tmp_path / "a.spz").write_bytes(spz(3, 2**20, 0, 12, 0, 0, more=bytes(20 * 2**20 - 1)))
    tracemalloc.start()
    with pytest.raises(FormatError, match="ends 1 before"):
        formats.read(tmp_path / "a.spz")
    assert tracemalloc.get_traced_memory()[1] < 36e6  # of 59 MB
    tracemalloc.stop()


def test_what_a_format_cannot_hold_leaves_the_old_file(tmp_path: Path) -> None:
    g = random_gaussians(5, 0)
    bad = dataclasses.replace(g, means=np.full((5, 3), np.nan, np.float32))
    for name in ("a.spz", "a.splat", "a.compressed.ply"):
        formats.write(tmp_path / name, g)
        before = (tmp_path / name).read_bytes()
        with pytest.raises(ValueError, match="means"):
            formats.write(tmp_path / name, bad)
        assert (tmp_path / name).read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3
    formats.write(tmp_path / "a.ply", bad)
    assert np.isnan(formats.read(tmp_path / "a.ply").means).all()
    with pytest.raises(ValueError, match="name that ends"):
        formats.write(tmp_path / "a.obj", g)
    with pytest.raises(ValueError, match="name that ends"):
        formats.read(tmp_path / "a.obj")


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 600), st.integers(0, 2**32))
def test_any_float_survives_a_ply(tmp_path_factory: pytest.TempPathFactory, count: int, seed: int) -> None:
    bits = np.random.default_rng(seed).integers(0, 2**32, (count, 14), np.uint32).view(np.float32)
    means, quats, log_scales, dc = (np.ascontiguousarray(bits[:, a:b]) for a, b in ((0, 3), (3, 7), (7, 10), (11, 14)))
    g = Gaussians(means, quats, log_scales, bits[:, 10].copy(), dc[:, None])
    path = tmp_path_factory.mktemp("ply") / "a.ply"
    formats.write(path, g)
    for name in FIELDS:
        np.testing.assert_array_equal(
            getattr(formats.read(path), name).view(np.uint32), getattr(g, name).view(np.uint32)
        )


def test_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from core_splatting.formats.jobs import convert

    formats.write(tmp_path / "a.ply", random_gaussians(300, 1))
    convert(tmp_path / "a.ply", tmp_path / "a.spz", 2)
    assert "300 Gaussians" in capsys.readouterr().out
    assert len(formats.read(tmp_path / "a.spz")) == 300
    (tmp_path / "bad.ply").write_bytes(b"no")
    with pytest.raises(SystemExit, match=r"bad\.ply: byte 0"):
        convert(tmp_path / "bad.ply", tmp_path / "b.spz", 3)
    assert not (tmp_path / "b.spz").exists()


NAMES = ["a.ply", "a.compressed.ply", "a.splat", "2.spz", "3.spz", "4.spz"]


@pytest.mark.parametrize("source", NAMES)
@pytest.mark.parametrize("target", NAMES)
def test_convert_from_each_to_each(tmp_path: Path, source: str, target: str) -> None:
    from core_splatting.formats.jobs import convert

    if "4.spz" in (source, target):
        pytest.importorskip("zstandard")
    version = {n: int(n[0]) if n.endswith("spz") else 3 for n in NAMES}
    (tmp_path / "made").mkdir()
    formats.write(tmp_path / "made" / "a.ply", random_gaussians(300, 1))
    convert(tmp_path / "made" / "a.ply", tmp_path / source, version[source])
    convert(tmp_path / source, tmp_path / "made" / target, version[target])
    given, got = formats.read(tmp_path / source), formats.read(tmp_path / "made" / target)
    bounds = {
        "a.ply": (0, 1e-6, 0, 1e-6, 0, 0),
        "a.compressed.ply": (3.1e-3, 1e-5, 4.1e-3, 2e-3, 0.008, 1 / 60),
        "a.splat": (0, 1e-4, 1e-5, 2e-3, 0.5 / 255 / 0.282 + 1e-4, 0),
        "2.spz": (1.3e-4, 0.01, 1 / 31, 2e-3, 0.014, 1 / 250),
    }
    if 4 in (given.sh.shape[1], got.sh.shape[1]) and given.sh.shape != got.sh.shape:  # a .splat has no harmonics
        given, got = (dataclasses.replace(g, sh=g.sh[:, :1].copy()) for g in (given, got))
    below(difference(given, matched(got, given)), bounds.get(target, (1.3e-4, 1e-5, 1 / 31, 2e-3, 0.014, 1 / 250)))


def test_activations() -> None:
    g = random_gaussians(50, 0)
    again = Gaussians.from_activated(g.means, g.quats, g.scales, g.opacities, g.sh[:, 0] * 0.28209479 + 0.5)
    below(difference(g, again), (0, 1e-6, 1e-5, 1e-6, 1e-5, 0))
    with pytest.raises(ValueError, match="sh"):
        dataclasses.replace(g, sh=g.sh[:, :0])
    with pytest.raises(TypeError, match="means"):
        dataclasses.replace(g, means=g.means.astype(np.float64))
