"""tools/setup refuses a machine that does not fit, in one sentence."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PYTHONS = ("python3.13", "python3.12", "python3.11", "python3")


def command(folder: Path, name: str, script: str) -> None:
    """Puts a command into a folder of PATH."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def setup(folder: Path, **env: str) -> str:
    """What tools/setup says when these commands hide the machine's own."""
    environment = os.environ | {"PATH": f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin"} | env
    done = subprocess.run(
        [str(ROOT / "tools" / "setup")],
        env=environment | {"CORE_VENV": str(folder / "v")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert not (folder / "v").exists()
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    "what",
    ["is Python 3.9", "has no module venv (apt install python3-venv)", "has no Python.h (apt install python3-dev)"],
)
def test_python(what: str, tmp_path: Path) -> None:
    """An old Python, and one without what Debian keeps in other packages."""
    for name in PYTHONS:
        command(tmp_path, name, f"echo '{what}'")
    script = (ROOT / "tools" / "setup").read_text()
    assert "/usr/bin/python3" in script  # the last candidate, a path: hide it with a copy of the script
    copy = tmp_path / "tools"
    copy.mkdir()
    command(
        copy,
        "setup",
        script.replace("/usr/bin/python3", str(tmp_path / "python3")).removeprefix("#!/usr/bin/env bash\n"),
    )
    done = subprocess.run(
        ["bash", str(copy / "setup")],
        env=os.environ | {"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert what in done.stderr
    assert done.stderr.count("\n") == 1


def test_compiler(tmp_path: Path) -> None:
    """No compiler, and an old one."""
    assert "g++ 12 or newer is needed, but nowhere-g++ was not found" in setup(tmp_path, CXX="nowhere-g++")
    command(tmp_path, "old-g++", "echo 11.4.0")
    assert "old-g++ is version 11" in setup(tmp_path, CXX="old-g++")
