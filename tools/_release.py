"""The work of tools/release: builds dist/ and refuses what must not be published. Standard library only."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SIZE_LIMIT = 4 << 20  # bytes of a wheel without CUDA
PIP = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
FUNCTION = re.compile(r"^[0-9a-f]+ <(.+)>:$")
INSTRUCTION = re.compile(
    r"^\s*[0-9a-f]+:\t(?:[0-9a-f]{2} )+\s*\t(?:(?:notrack|bnd|lock|rep[a-z]*|data16) )*([a-z]\w*)(.*)"
)
NOT_AVX = re.compile(r"ver[rw]|vm[a-z]+$")  # the legacy instructions that begin with v
STD = re.compile(r"^(?:(?:typeinfo|vtable|typeinfo name|guard variable|VTT) for )?(?:[\w:<>*&, ]+ )?std::")


def say(text: str) -> None:
    """One line of progress."""
    print(text, flush=True)


def run(*command: str | Path, **env: str) -> str:
    """The output of a command that must succeed."""
    return subprocess.run(
        [str(c) for c in command], check=True, stdout=subprocess.PIPE, text=True, env=os.environ | env
    ).stdout


def members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """The files of a wheel or an sdist."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as z:
            yield from ((name, z.read(name)) for name in z.namelist())
    else:
        with tarfile.open(archive) as t:
            for m in t:
                if f := t.extractfile(m):
                    yield m.name, f.read()


def check_metadata(archive: Path) -> list[str]:
    """No requirement may point into this checkout."""
    texts = ((n, t.decode()) for n, t in members(archive) if n.endswith(("METADATA", "PKG-INFO")))
    return [f"{archive.name}: {n} says {line}" for n, t in texts for line in t.splitlines() if "@ file:" in line]


def check_exports(library: Path, name: str) -> list[str]:
    """A plugin exports core_plugin_query and its own C++ API, and knows nothing of Python."""
    problems = []
    own = re.compile(rf"(?:\w[\w:<>*&, ]* )?{name}::")  # a template's symbol begins with its return type
    for line in run("nm", "-DC", "--defined-only", library).splitlines():
        _, kind, symbol = line.split(" ", 2)
        if symbol == "core_plugin_query" or own.match(symbol) or (kind in "WVu" and STD.match(symbol)):
            continue
        problems.append(f"{library.name} exports {symbol}")
    needed = run("nm", "-D", "--undefined-only", library).splitlines()
    python = [line.split()[-1] for line in needed if re.search(r"\b_?Py[A-Z_]", line)]
    return problems + [f"{library.name} needs the Python symbol {symbol}" for symbol in python]


def check_instructions(library: Path) -> list[str]:
    """Only functions compiled for a higher level may hold AVX instructions: these run on every x86-64-v2 machine."""
    if "x86-64" not in run("objdump", "-f", library):
        return []
    bad: dict[str, str] = {}
    function = ""
    with subprocess.Popen(["objdump", "-d", str(library)], stdout=subprocess.PIPE, text=True) as p:
        assert p.stdout
        for line in p.stdout:
            if m := FUNCTION.match(line):
                function = m[1]
            elif "isa_v3" not in function and "isa_v4" not in function and (m := INSTRUCTION.match(line)):
                vex = m[1].startswith("v") and not NOT_AVX.match(m[1])
                if vex or "%ymm" in m[2] or "%zmm" in m[2]:
                    bad.setdefault(function, m[1])
    return [f"{library.name}: {f} holds the AVX instruction {i}" for f, i in bad.items()]


def check_wheel(wheel: Path) -> list[str]:
    """Everything about a built wheel."""
    problems = check_metadata(wheel)
    name, _, tag = wheel.stem.split("-", 2)
    if wheel.stat().st_size > SIZE_LIMIT and os.environ.get("CORE_CUDA", "OFF") == "OFF":
        problems.append(f"{wheel.name} has {wheel.stat().st_size >> 10} KiB, more than {SIZE_LIMIT >> 10}")
    if name in ("core_registry", "core_embed"):
        return problems if tag == "py3-none-any" else [*problems, f"{wheel.name} is not a pure wheel"]
    if not tag.startswith("cp311-abi3-"):
        problems.append(f"{wheel.name} is not for the stable ABI of Python 3.11 (cp311-abi3)")
    with tempfile.TemporaryDirectory() as tmp:
        with zipfile.ZipFile(wheel) as z:
            z.extractall(tmp)
        inside = Path(tmp, name)
        for needed in (
            f"_{name}.abi3.so",
            f"lib/lib{name}.so",
            "lib/core_plugin.json",
            f"lib/cmake/{name}/{name}Config.cmake",
            "include",
        ):
            if not (inside / needed).exists():
                problems.append(f"{wheel.name} has no {needed}")
        for library in Path(tmp).rglob("*.so"):
            problems += check_instructions(library)
            if library.name == f"lib{name}.so":
                problems += check_exports(library, name)
    return problems


def main() -> None:
    """Builds, then checks; exits 1 and names each problem if there is one."""
    parser = argparse.ArgumentParser(
        prog="tools/release", description="Wheels and sdists of all packages into dist/, checked."
    )
    parser.add_argument("--quick", action="store_true", help="wheels only, from the folders")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="the folder to replace, dist by default")
    args = parser.parse_args()
    dist: Path = args.output.resolve()
    os.environ["CORE_RELEASE"] = "1"
    os.environ.setdefault("CORE_CUDA", "OFF")
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shutil.rmtree(dist, ignore_errors=True)
    dist.mkdir()
    unpacked = ROOT / "build" / "sdist"  # always there, so that a compiler cache may know it
    shutil.rmtree(unpacked, ignore_errors=True)
    libraries = sorted(f.parent for f in ROOT.glob("libs/*/pyproject.toml"))
    folders = [*libraries, *sorted(f.parent for f in ROOT.glob("packages/*/CMakeLists.txt"))]
    problems: list[str] = []
    for folder in folders:
        start = time.monotonic()
        before = set(dist.iterdir())
        source = folder
        if not args.quick:
            build = "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"
            subprocess.run([sys.executable, "-c", build, str(dist)], cwd=folder, check=True, stdout=subprocess.DEVNULL)
            (sdist,) = set(dist.iterdir()) - before
            shutil.unpack_archive(sdist, unpacked, filter="data")
            source = unpacked / sdist.name.removesuffix(".tar.gz")
        run(*PIP, "-w", dist, source)
        made = sorted(set(dist.iterdir()) - before)
        for archive in made:
            problems += check_wheel(archive) if archive.suffix == ".whl" else check_metadata(archive)
        sizes = ", ".join(f"{a.name} {a.stat().st_size >> 10} KiB" for a in made)
        say(f"{sizes}: {time.monotonic() - start:.0f} s")
    if problems:
        sys.exit("tools/release: " + "\n".join(problems))
    say(f"{len(list(dist.iterdir()))} files in {os.path.relpath(dist)} passed every check")


if __name__ == "__main__":
    main()
