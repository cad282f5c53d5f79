"""What the tests of installed packages share: the wheels of this checkout and environments that hold nothing else."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


class Environment:
    """A virtual environment made from wheels, without this checkout."""

    def __init__(self, folder: Path, python: str = sys.executable) -> None:
        subprocess.run([python, "-m", "venv", str(folder)], check=True)
        self.folder = folder
        self.python = folder / "bin" / "python"
        inherited = {
            k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "CORE_", "VIRTUAL_ENV", "CMAKE"))
        }
        self.env = inherited | {"VIRTUAL_ENV": str(folder), "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}

    def run(self, *command: str | Path, cwd: Path | None = None, **env: str) -> str:
        """The output of a command that must succeed; its errors are shown."""
        done = subprocess.run(
            [str(c) for c in command],
            cwd=cwd or self.folder,
            env=self.env | env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}"
        return done.stdout

    def install(self, *what: str | Path) -> None:
        """Installs wheels or third parties' packages."""
        self.run(self.python, "-m", "pip", "install", "-q", "--no-compile", "--disable-pip-version-check", *what)


def by_name(folder: Path) -> dict[str, Path]:
    """The wheels of a folder by import name."""
    return {wheel.name.split("-")[0]: wheel for wheel in sorted(folder.glob("*.whl"))}


@pytest.fixture(scope="session")
def wheels() -> dict[str, Path]:
    """A checked release wheel of each of our packages, by import name; built once for the same sources.

    CORE_WHEELS names a folder that tools/release has just written, to be tested instead.
    """
    if given := os.environ.get("CORE_WHEELS"):
        return by_name(ROOT / given)
    folder = ROOT / "build" / "wheels"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "libs", "packages", "tools/_release.py"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    h = hashlib.sha256()
    for name in sorted(set(listed)):
        if (ROOT / name).is_file():
            h.update(name.encode() + (ROOT / name).read_bytes())
    stamp = folder / "sources.sha256"
    folder.parent.mkdir(exist_ok=True)
    lock = folder.with_suffix(".lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)  # a second test run waits; the lock ends with the file
    if not stamp.exists() or stamp.read_text() != h.hexdigest():
        release = [sys.executable, str(ROOT / "tools" / "_release.py"), "--quick", "--output", str(folder)]
        done = subprocess.run(release, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        stamp.write_text(h.hexdigest())
    lock.close()
    return by_name(folder)


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Environment]:
    """Makes an empty environment in a new folder whose path holds a blank."""

    def make(name: str, python: str = sys.executable) -> Environment:
        return Environment(tmp_path_factory.mktemp(name) / "a blank", python)

    return make
