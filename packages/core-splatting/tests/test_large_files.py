"""A file of any size is read and converted in the same memory: peaks of child processes at two sizes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

COUNT = int(
    os.environ.get("CORE_LARGE", "100_000")
)  # Gaussians of the small file; the large one has four times as many

BEGIN = """
import struct, sys
from pathlib import Path
import numpy as np
from core_splatting.formats import Gaussians, Source, open_gaussians, spz, write
from core_splatting.formats.container4d import Gaussians4D, Source4D, open_4d, write_4d
from core_splatting.scenes import load_scene

spz._SPOOLED = 1 << 20  # what a small .spz holds goes to a temporary file too
folder, count, task = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

def parts(make):
    rng = np.random.default_rng(0)
    f32 = lambda *shape: rng.normal(size=shape).astype(np.float32)
    return (make(f32, min(1000, count - at)) for at in range(0, count, 1000))
"""
END = """
with open("/proc/self/status") as status:
    print(next(int(line.split()[1]) for line in status if line.startswith("VmHWM")))
"""
WRITE = """
made = lambda f, n: Gaussians(f(n, 3), f(n, 4), f(n, 3), f(n), f(n, 1, 3))
version = {"version": int(task[0])} if task.endswith(".spz") else {}
write(folder / task, Source(count, 0, lambda n: parts(made)), **version)
"""
READ = """
assert sum(len(part) for part in open_gaussians(folder / task).chunks(4096)) == count
"""
WRITE_4D = """
times = np.linspace(0, 1, 6, dtype=np.float32)
made = lambda f, n: Gaussians4D(*(f(n, 4) for _ in range(4)), f(n, 1), f(n, 4, 3), f(6, n) > 0, times, 1.0)
write_4d(folder / task, Source4D(count, 4, times, 1.0, lambda: parts(made)), entries=16)
"""
READ_4D = """
assert sum(len(part) for part in open_4d(folder / task).blocks()) == count
"""
WRITE_POINTS = """
with (folder / task).open("wb") as file:
    if task.endswith("bin"):
        (folder / "cameras.bin").write_bytes(struct.pack("<QiiQQ3d", 1, 1, 0, 8, 8, 8, 4, 4))
        (folder / "images.bin").write_bytes(struct.pack("<Qi7di", 1, 1, 1, *[0] * 6, 1) + b"a.png\\0" + bytes(8))
        file.write(struct.pack("<Q", count))
        record = struct.pack("<Q3d3BdQ6i", 1, 1, 2, 3, 4, 5, 6, 0.5, 3, *range(6))
    else:
        (folder / "cameras.txt").write_text("1 SIMPLE_PINHOLE 8 8 8 4 4\\n")
        (folder / "images.txt").write_text("1 1 0 0 0 0 0 0 1 a.png\\n\\n")
        record = b"1 0.123456789012 1.234567890123 2.345678901234 100 110 120 0.567890123456 1 2 3 4 5 6\\n"
    for _ in range(count):
        file.write(record)
"""
READ_POINTS = """
assert len(load_scene(folder).points) == count
"""


def peak(what: str, folder: Path, count: int, task: str) -> int:
    """The most memory, in bytes, that a process held which did it."""
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", BEGIN + what + END, str(folder), str(count), task]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | one_thread)
    return int(done.stdout) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("name", "write", "read", "share"),
    [
        *((name, WRITE, READ, 0.5) for name in ("a.ply", "a.compressed.ply", "a.splat", "2.spz", "3.spz")),
        ("4.spz", WRITE, READ, 1.0),
        ("a.4dgs", WRITE_4D, READ_4D, 0.5),
        ("points3D.bin", WRITE_POINTS, READ_POINTS, 1.0),  # a model's points are held, and no more
        ("points3D.txt", WRITE_POINTS, READ_POINTS, 1.0),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 20 else "",
)
def test_memory_does_not_follow_the_size(tmp_path: Path, name: str, write: str, read: str, share: float) -> None:
    if name == "4.spz":
        pytest.importorskip("zstandard")
    sizes, written, seen = [], [], []
    for count in (COUNT, 4 * COUNT):
        written.append(peak(write, tmp_path, count, name))
        seen.append(peak(read, tmp_path, count, name))
        sizes.append((tmp_path / name).stat().st_size)
    print(f"{name}, bytes: files of {sizes}, writing held {written}, reading {seen}")
    more = sizes[1] - sizes[0]
    assert seen[1] - seen[0] < share * more
    if name != "4.spz":  # zstd's own tables grow by 50 MB up to some size
        assert written[1] - written[0] < share * more
