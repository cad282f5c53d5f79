"""The container of 4D Gaussians: what it keeps, its size, parts, hostile files; and its k-means."""

import dataclasses
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from core_splatting.formats.container4d import Gaussians4D, Source4D, open_4d, write_4d
from core_splatting.formats.gaussians import FormatError
from core_splatting.vector_quantisation import kmeans, nearest


def sample(n: int, frames: int = 6, coefficients: int = 48, kinds: int = 20) -> Gaussians4D:
    rng = np.random.default_rng(n)
    f = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    sh = f(kinds, coefficients, 3)[rng.integers(0, kinds, n)]
    return Gaussians4D(
        f(n, 4), f(n, 4), f(n, 4), f(n, 4), f(n, 1), sh, rng.random((frames, n)) < 0.2,
        np.linspace(0, 1, frames, dtype=np.float32), 1.5,
    )  # fmt: skip


@pytest.mark.parametrize("n", [0, 1, 300, 16385])
@pytest.mark.parametrize("coefficients", [1, 48])
def test_round_trip(tmp_path: Path, n: int, coefficients: int) -> None:
    g = sample(n, coefficients=coefficients)
    write_4d(tmp_path / "a.4dgs", g, entries=32)
    back = open_4d(tmp_path / "a.4dgs").read()
    for name in ("means", "log_scales", "quats_left", "quats_right", "logit_opacities", "masks", "key_times"):
        np.testing.assert_array_equal(getattr(back, name), getattr(g, name))
    assert back.duration == 1.5
    if n >= 300:  # as many entries as kinds: float16 alone is lost
        np.testing.assert_allclose(back.sh, g.sh, rtol=1e-3, atol=1e-3)
    blocks = list(open_4d(tmp_path / "a.4dgs").blocks())
    assert [len(b) for b in blocks] == [min(16384, n - i) for i in range(0, n, 16384)]


@pytest.mark.parametrize("part", [1, 700, 17_000])
def test_written_in_parts_it_is_the_same(tmp_path: Path, part: int) -> None:
    g = sample(17_000 if part > 1 else 50, coefficients=16, kinds=300)
    source = Source4D(len(g), 16, g.key_times, g.duration, lambda: (g[at : at + part] for at in range(0, len(g), part)))
    write_4d(tmp_path / "whole.4dgs", g, entries=32)
    write_4d(tmp_path / "parts.4dgs", source, entries=32)
    assert (tmp_path / "whole.4dgs").read_bytes() == (tmp_path / "parts.4dgs").read_bytes()
    write_4d(tmp_path / "again.4dgs", open_4d(tmp_path / "whole.4dgs"), entries=32)
    again, whole = (open_4d(tmp_path / f"{name}.4dgs").read() for name in ("again", "whole"))
    for field in dataclasses.fields(whole):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(whole, field.name))
    with pytest.raises(ValueError, match=f"{len(g) + 1} Gaussians"):
        write_4d(tmp_path / "parts.4dgs", dataclasses.replace(source, count=len(g) + 1), entries=32)
    assert (tmp_path / "whole.4dgs").read_bytes() == (tmp_path / "parts.4dgs").read_bytes()
    assert len(list(tmp_path.iterdir())) == 3


def test_size_is_that_of_the_paper(tmp_path: Path) -> None:
    n = 10_000
    write_4d(tmp_path / "a.4dgs", sample(n, kinds=64), entries=64)
    size = (tmp_path / "a.4dgs").stat().st_size
    books = 64 * 144 * 2
    assert abs(size - n * (68 + 24 / 8 + 6 / 8) - books) < 500
    assert 5 * n * 644 / size > 35  # of a model five times as large in floats, as after pruning


def test_kmeans_against_brute_force() -> None:
    rng = np.random.default_rng(0)
    rows = (rng.integers(0, 7, (3000, 1)) * 10 + rng.normal(size=(3000, 5))).astype(np.float32)
    book = kmeans(rows, 30)
    codes = nearest(rows, book)
    distances = ((rows[:, None].astype(np.float64) - book) ** 2).sum(-1)
    np.testing.assert_allclose(distances[np.arange(3000), codes], distances.min(1), rtol=1e-3, atol=1e-3)
    assert distances.min(1).mean() < 5  # within a cluster
    np.testing.assert_array_equal(book, kmeans(rows, 30))
    assert len(np.unique(codes)) >= 28
    with pytest.raises(ValueError, match="rows"):
        kmeans(np.full((3, 2), np.nan, np.float32), 2)
    with pytest.raises(ValueError, match="size"):
        kmeans(rows, 0)


def test_abuse_of_files(tmp_path: Path, abused: Callable[..., None]) -> None:
    path = tmp_path / "a.4dgs"
    write_4d(path, sample(40, kinds=8))
    abused(path, lambda: open_4d(path).read(), FormatError, head=100)


def test_nothing_is_allocated_on_a_books_word(tmp_path: Path) -> None:
    g = sample(40, kinds=8)
    write_4d(tmp_path / "a.4dgs", g)
    hostile = bytearray((tmp_path / "a.4dgs").read_bytes())
    place = 36 + 4 * len(g.key_times) + 8  # of the first book's number of entries
    hostile[place : place + 4] = (65536).to_bytes(4, "little")
    (tmp_path / "a.4dgs").write_bytes(hostile)
    tracemalloc.start()
    with pytest.raises(FormatError, match="book 0: expected 393216 bytes"):
        open_4d(tmp_path / "a.4dgs")
    assert tracemalloc.get_traced_memory()[1] < 200_000
    tracemalloc.stop()


def test_refusals(tmp_path: Path) -> None:
    g = sample(10)
    write_4d(tmp_path / "a.4dgs", g)
    before = (tmp_path / "a.4dgs").read_bytes()
    with pytest.raises(ValueError, match="sh"):
        write_4d(tmp_path / "a.4dgs", dataclasses.replace(g, sh=np.full_like(g.sh, np.inf)))
    with pytest.raises(ValueError, match="entries"):
        write_4d(tmp_path / "a.4dgs", g, entries=0)
    with pytest.raises(ValueError, match="masks"):
        dataclasses.replace(g, masks=g.masks[:2])
    with pytest.raises(TypeError, match="means"):
        dataclasses.replace(g, means=g.means.astype(np.float64))
    for name, value in (("duration", float("nan")), ("sh", g.sh[:, :7]), ("key_times", g.key_times[::-1].copy())):
        with pytest.raises(ValueError, match=name):
            dataclasses.replace(g, **{name: value})
    for place, value, says in ((28, 7, "coefficients"), (32, 0, "duration"), (36, 2**31 - 1, "rise")):
        hostile = bytearray(before)
        hostile[place : place + 4] = value.to_bytes(4, "little")
        (tmp_path / "b.4dgs").write_bytes(hostile)
        with pytest.raises(FormatError, match=says):
            open_4d(tmp_path / "b.4dgs")
    assert (tmp_path / "a.4dgs").read_bytes() == before
