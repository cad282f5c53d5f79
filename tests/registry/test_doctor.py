"""`core doctor`: every way in which a library can be broken is reported with its cure, and the rest keeps working."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import core_registry
import pytest
from core_registry.child import ask

from .conftest import GOOD

Core = Callable[..., subprocess.CompletedProcess[str]]
GHOST = 'extern "C" __attribute__((visibility("default"))) '

BROKEN = {
    "wrong_abi": (
        GOOD.replace("NAME", "w").replace("PREFIX", "wrong_abi"),
        ["-DCORE_ABI_MAJOR=9"],
        "install matching releases",
    ),
    "no_symbol": ("int nothing;", [], "exports no core_plugin_query"),
    "aborts": ("#include <cstdlib>\nstatic int x = (std::abort(), 0);", [], "SIGABRT"),
    "exits": ("#include <cstdlib>\nstatic int x = (std::exit(3), 0);", [], "exit code 3"),
    "babbles": ('#include <cstdlib>\n#include <cstdio>\nstatic int x = (puts("["), std::exit(0), 0);', [], "ends its"),
    "small_table": (
        "#include <core/abi.h>\n" + GHOST + "const core_plugin* core_plugin_query() { "
        "static const core_plugin p{8, CORE_ABI_MAJOR, 0, nullptr, nullptr, nullptr, 7, 0, nullptr}; return &p; }",
        [],
        "smaller than its ABI says; rebuild",
    ),
    "null_table": (GHOST + "const void* core_plugin_query() { return nullptr; }", [], "returned nothing"),
    "undefined": (
        "extern int missing(); " + GHOST + "int core_plugin_query() { return missing(); }",
        [],
        "undefined symbol",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_library(name: str, tmp_path: Path, good: Path, compiler: Callable[..., Path], core: Core) -> None:
    source, flags, cure = BROKEN[name]
    library = compiler(tmp_path, name, source, *flags)
    result = core("doctor", "--json", CORE_PLUGIN_PATH=f"{library}:{good}")
    report = json.loads(result.stdout)
    assert result.returncode == 1
    assert cure in report["broken"][name]
    assert set(report["broken"]) == {name}
    assert {"toy", *core_registry.plugins()} <= set(report["good"])


@pytest.mark.parametrize(
    ("content", "cure"), [(b"", "file too short"), (b"not a library at all" * 9, "invalid ELF header")]
)
def test_not_a_library(content: bytes, cure: str, tmp_path: Path, core: Core) -> None:
    (tmp_path / "libjunk.so").write_bytes(content)
    result = core("doctor", CORE_PLUGIN_PATH=str(tmp_path))
    assert result.returncode == 1
    assert f"junk: BROKEN: cannot load {tmp_path}/libjunk.so" in result.stdout
    assert cure in result.stdout


def test_hangs(tmp_path: Path, compiler: Callable[..., Path]) -> None:
    library = compiler(tmp_path, "hangs", "#include <unistd.h>\nstatic int x = pause();")
    with pytest.raises(core_registry.PluginError, match="hangs on load"):
        ask(library, timeout=1)


def test_breaks_after_its_description_was_written(
    tmp_path: Path, core: Core, compiler: Callable[..., Path], good: Path
) -> None:
    compiler(tmp_path, "toy", "#include <cstdlib>\nstatic int x = (std::abort(), 0);")
    (tmp_path / "core_plugin.json").write_text(ask(good))
    assert core("list", CORE_PLUGIN_PATH=str(tmp_path)).returncode == 0
    result = core("doctor", CORE_PLUGIN_PATH=str(tmp_path))
    assert result.returncode == 1
    assert "toy: BROKEN" in result.stdout
    assert "SIGABRT" in result.stdout


def test_is_another_build_than_described(tmp_path: Path, core: Core, compiler: Callable[..., Path], good: Path) -> None:
    compiler(tmp_path, "toy", GOOD.replace("NAME", "toy").replace("PREFIX", "toy").replace("0.1.0", "0.2.0"))
    (tmp_path / "core_plugin.json").write_text(ask(good))
    result = core("doctor", CORE_PLUGIN_PATH=str(tmp_path))
    assert result.returncode == 1
    assert "is another build than its core_plugin.json describes; rebuild it" in result.stdout


def test_hang_is_only_reported(tmp_path: Path, core: Core, compiler: Callable[..., Path]) -> None:
    library = compiler(tmp_path, "sleeper", "#include <unistd.h>\nstatic int x = pause();")
    (tmp_path / "core_plugin.json").write_text(
        '{"schema": 1, "name": "sleeper", "version": "1", "abi": [1, 0], "ops": []}'
    )
    report = json.loads(core("doctor", "--timeout", "2", "--json", CORE_PLUGIN_PATH=str(library)).stdout)
    assert "hangs on load (no answer within 2 s)" in report["broken"]["sleeper"]
    assert report["machine"]["ABI"] == "1.0"


def test_all_good(core: Core) -> None:
    result = core("doctor")
    assert result.returncode == 0, result.stdout
    assert result.stdout.count(": good") == len(core_registry.plugins())
