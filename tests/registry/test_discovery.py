"""Finding plugins: nothing is imported, and a broken one never touches the others."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import core_registry
import pytest
from core_registry._discovery import PluginError, parse_description

Core = Callable[..., subprocess.CompletedProcess[str]]
Listed = Callable[..., dict[str, Any]]

CLEAN = """
import sys
import core_registry
core_registry.plugins(), core_registry.ops(), core_registry.errors()
names = [op for op in core_registry.ops()]
core_registry.op(names[0])
heavy = {"numpy", "torch", "typer", "rich", *core_registry.plugins()} & set(sys.modules)
assert not heavy, heavy
"""


def test_scan_imports_nothing() -> None:
    subprocess.run([sys.executable, "-c", CLEAN], check=True)


@pytest.mark.parametrize("arguments", [["list"], ["list", "--papers", "--json"], ["run"], ["reproduce"]])
def test_command_imports_no_plugin(arguments: list[str]) -> None:
    code = f"""
import sys, core_registry
from core_registry.cli import app
app({arguments!r}, standalone_mode=False)
heavy = {{"numpy", "torch", *core_registry.plugins()}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_plugin_path_and_disable(good: Path, listed: Listed) -> None:
    found = listed(CORE_PLUGIN_PATH=str(good))
    toy = next(p for p in found["plugins"] if p["name"] == "toy")
    assert toy["version"] == "0.1.0"
    assert toy["ops"][0]["signature"] == (
        "toy.add(x: float32 | float64[N], y: float32 | float64[N], scale: float, z: float32 | float64[N] = None, "
        "out: out float32 | float64[N])"
    )
    assert not found["errors"]
    assert "toy" in str(listed(CORE_PLUGIN_PATH=str(good.parent))["plugins"])
    assert "toy" not in str(listed(CORE_PLUGIN_PATH=str(good), CORE_DISABLE="toy,other")["plugins"])
    missing = listed(CORE_PLUGIN_PATH="/nowhere/libghost.so")
    assert "does not exist" in missing["errors"]["ghost"]
    assert len(missing["plugins"]) == len(found["plugins"]) - 1


def test_installed_packages_are_found_by_name() -> None:
    assert core_registry.plugins(), "the workspace's packages are installed"
    for plugin in core_registry.plugins().values():
        assert plugin.path.parent.name == "lib"
        assert plugin.dist
        for op in plugin.ops:
            assert core_registry.op(op.name) == op
    with pytest.raises(KeyError, match="did you mean"):
        core_registry.op(next(iter(core_registry.ops())) + "x")


def describe(name: str, *ops: str) -> str:
    rows = ", ".join(
        f'{{"name": "{o}", "doc": "", "paper": null, "args": [], "overloads": [{{"device": "cpu", "dtypes": []}}]}}'
        for o in ops
    )
    return f'{{"schema": 1, "name": "{name}", "version": "1", "abi": [1, 0], "ops": [{rows}]}}'


def place(folder: Path, name: str, text: str) -> None:
    folder.mkdir(parents=True)
    (folder / f"lib{name}.so").touch()
    (folder / "core_plugin.json").write_text(text)


def test_names_are_poisoned_one_by_one(tmp_path: Path, listed: Listed, core: Core) -> None:
    place(tmp_path / "a", "a", describe("aa", "aa.f", "aa.g", "bb.h"))
    place(tmp_path / "b", "b", describe("bb", "bb.f", "bb.f"))
    environment = {"CORE_PLUGIN_PATH": f"{tmp_path / 'a'}:{tmp_path / 'b'}"}
    found = listed(**environment)
    assert "lacks its prefix 'aa.'" in found["errors"]["bb.h"]
    assert "provided by both" in found["errors"]["bb.f"]
    assert core("show", "aa.f", **environment).returncode == 0
    assert "provided by both" in core("show", "bb.f", **environment).stderr
    assert core("doctor", **environment).returncode == 1


def test_two_plugins_of_one_name(tmp_path: Path, listed: Listed) -> None:
    place(tmp_path / "a", "a", describe("aa", "aa.f"))
    place(tmp_path / "b", "b", describe("aa", "aa.g"))
    found = listed(CORE_PLUGIN_PATH=f"{tmp_path / 'a'}:{tmp_path / 'b'}")
    assert "are both the plugin 'aa'" in found["errors"]["b"]
    assert "aa.f" in str(found["plugins"])


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{", "null", '{"schema": 2}', '{"schema": 1, "name": 3}', "[" * 100_000,
        describe("a", "a.f").replace('"doc": ""', '"doc": 1'),
        describe("a", "a.f").replace('"dtypes": []', '"dtypes": ["x"]'), describe("a", "a.f").replace("cpu", "toaster"),
        describe("a", "a.f").replace('"args": []', '"args": [{"name": "x"}]'),
        describe("a b", "a.f"), describe("a", "f"), describe("a", "a.f\\u001b[2J"), describe("a", "a.f(): pass"),
    ],
)  # fmt: skip
def test_malformed_descriptions(text: str) -> None:
    with pytest.raises(PluginError, match="malformed"):
        parse_description(text, Path("/x/liba.so"))


def test_description_of_another_abi() -> None:
    with pytest.raises(PluginError, match=r"built for Core ABI 2.0, this core-registry speaks 1.0; install matching"):
        parse_description(describe("a").replace("[1, 0]", "[2, 0]"), Path("/x/liba.so"))
    with pytest.raises(PluginError, match=r"Core ABI 1.9"):
        parse_description(describe("a").replace("[1, 0]", "[1, 9]"), Path("/x/liba.so"))


def test_huge_description(tmp_path: Path, listed: Listed) -> None:
    place(tmp_path / "a", "a", " " * (17 << 20))
    assert "larger than 16 MiB" in listed(CORE_PLUGIN_PATH=str(tmp_path / "a"))["errors"]["a"]
