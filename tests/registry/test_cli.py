"""The command `core`, run as a user would."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import core_registry
import numpy as np
import pytest

Core = Callable[..., subprocess.CompletedProcess[str]]


def test_list_and_show(core: Core, good: Path) -> None:
    assert "toy.add" in core("list", CORE_PLUGIN_PATH=str(good)).stdout
    shown = core("show", "add", CORE_PLUGIN_PATH=str(good)).stdout
    assert "out = x + scale y + z." in shown
    assert "https://arxiv.org/abs/0000.00001" in shown
    assert json.loads(core("show", "toy.add", "--json", CORE_PLUGIN_PATH=str(good)).stdout)["plugin"] == "toy"
    papers = core("list", "--papers", "--markdown", CORE_PLUGIN_PATH=str(good)).stdout
    assert "| arXiv 0000.00001 | `toy.add` |" in papers


def test_unknown_names(core: Core) -> None:
    for arguments in (
        ["show", "nothing.here"],
        ["run", "nothing"],
        ["reproduce", "0000.00000"],
        ["stubs", "nothing"],
        ["new", "Not A Name"],
    ):
        result = core(*arguments)
        assert result.returncode != 0
        assert result.stderr.startswith("core: ")
        assert "Traceback" not in result.stderr


def test_folders(core: Core) -> None:
    assert (Path(core("--cmake-dir").stdout.strip()) / "core_registryConfig.cmake").is_file()
    assert (Path(core("--include-dir").stdout.strip()) / "core" / "abi.h").is_file()
    assert core("--version").stdout.strip() == "0.1.0"
    for folder in core("--prefix").stdout.strip().split(";"):
        assert Path(folder).is_dir()


def test_new_makes_a_package_once(core: Core, tmp_path: Path) -> None:
    assert core("new", "my-plugin").returncode == 0
    made = tmp_path / "my-plugin"
    assert (made / "src" / "ops.hpp").read_text().count("my_plugin") == 2
    assert (made / "python" / "my_plugin" / "__init__.py").is_file()
    assert not [p for p in made.rglob("*") if p.is_file() and "plugin_name" in p.read_text()]
    assert "numpy" in core("new", "numpy").stderr
    for bad in ("json", "class", "a--b", "3d", "../x"):
        assert core("new", bad).stderr.startswith("core: "), bad
    assert "src/ops.hpp" in json.loads(core("new", "other_plugin", "--json").stdout)["files"]
    again = core("new", "my-plugin")
    assert again.returncode != 0
    assert "exists" in again.stderr


def test_the_scaffold_needs_only_headers_and_a_compiler(core: Core, tmp_path: Path) -> None:
    made = Path(json.loads(core("new", "bare", "--json").stdout)["folder"])
    sources = [str(tmp_path / made / "src" / s) for s in ("plugin.cpp", "distance/pairwise.cpp")]
    flags = ["-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", "-Wall", "-Wextra", "-Werror", '-DCORE_VERSION="1"']
    library = tmp_path / "libbare.so"
    include = ["-I", core_registry.include_dir(), "-I", str(tmp_path / made / "include")]
    subprocess.run(["g++", *flags, *include, *sources, "-o", str(library)], check=True)
    x = np.random.default_rng(0).standard_normal((70, 3)).astype(np.float32)
    out = np.empty((70, 70), np.float32)
    core_registry.load(library)["pairwise_sqdist"](x, x[::-1], out=out)
    np.testing.assert_allclose(out, ((x[:, None] - x[None, ::-1]) ** 2).sum(-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(core_registry.plugins()))
def test_each_package_declares_its_rooms(name: str) -> None:
    import importlib.metadata

    for group in ("core.plugins", "core.cases", "core.demos"):
        assert name in importlib.metadata.entry_points(group=group).names, group
