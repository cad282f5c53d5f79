"""C and C++ programs that use Core, built and run from installed wheels only, in a path with a blank."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
PACKAGES = ["core_registry", "core_embed", "core_splatting", "core_diffusion"]


@pytest.fixture(scope="module")
def host(wheels: dict[str, Path], environment: Callable[..., Any]) -> Any:
    """An environment with the wheels, and in its folder `build` the programs."""
    env = environment("embedding")
    env.install(*(wheels[name] for name in PACKAGES))
    source = env.folder.parent / "an application"
    shutil.copytree(HERE, source, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    build = env.folder / "build"
    tools = Path(sys.executable).parent  # cmake and ninja; nothing of Core is taken from there
    prefix = env.run("core", "--prefix").strip() + ";" + env.run(env.python, "-m", "core_embed").strip()
    paths = [
        f"-DCMAKE_PREFIX_PATH={prefix}",
        f"-DPython_EXECUTABLE={env.python}",
        f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}",
    ]
    env.run(tools / "cmake", "-S", source, "-B", build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", *paths)
    env.run(tools / "cmake", "--build", build)
    (build / "empty.so").touch()
    env.build = build
    return env


def library(env: Any, name: str) -> str:
    """Where the wheel put a plugin's library."""
    code = f"import importlib.util as u; print(u.find_spec('{name}').submodule_search_locations[0])"
    return f"{env.run(env.python, '-c', code).strip()}/lib/lib{name}.so"


def test_linked(host: Any) -> None:
    """An application that links Core::splatting renders a frame."""
    print(host.run(host.build / "link", host.folder / "frame.ppm"))
    header, size, depth, pixels = (host.folder / "frame.ppm").read_bytes().split(b"\n", 3)
    assert (header, depth) == (b"P6", b"255")
    width, height = map(int, size.split())
    assert len(pixels) == width * height * 3
    assert len(set(pixels)) > 20


def test_by_name(host: Any) -> None:
    """A C++17 application loads plugins, calls operators, and survives what is broken."""
    path = f"{host.build / 'libgood.so'}:{host.build / 'empty.so'}"
    output = host.run(host.build / "by_name", host.build, library(host, "core_diffusion"), CORE_PLUGIN_PATH=path)
    assert "FAILED" not in output
    assert output.count("ok ") > 15


def test_by_name_in_c(host: Any) -> None:
    """A C application needs core/abi.h alone."""
    plugins = [host.build / "libgood.so", library(host, "core_splatting"), library(host, "core_diffusion")]
    output = host.run(host.build / "by_name_c", *plugins)
    assert "operator core_diffusion.fixed_sum_sample, 5 arguments" in output
    assert "filled 2.5 2.5 2.5" in output
    assert "refused: ValueError: fill: argument 'out' must be float64" in output


def test_facades(host: Any) -> None:
    """A C++ application embeds Python and calls two facades."""
    output = host.run(host.build / "facades", host.python)
    assert "core_diffusion: 4 counts, sum 5" in output
    assert "refused: ValueError" in output
    assert "core_splatting:" in output


def test_libraries_know_no_python(host: Any) -> None:
    """What a C++ application links has no need of Python's library."""
    for name in ("core_splatting", "core_diffusion"):
        needed = subprocess.run(["ldd", library(host, name)], capture_output=True, text=True, check=True).stdout
        assert "libpython" not in needed
