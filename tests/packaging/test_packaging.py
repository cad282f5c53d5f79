"""What is published works for someone who has nothing else: no checkout, no torch, another Python."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
NAMES = [f"core_{f.parent.name[5:].replace('-', '_')}" for f in sorted(ROOT.glob("packages/core-*/CMakeLists.txt"))]
FROM_CHECKOUT = NAMES if os.environ.get("CORE_TEST_ALL") == "1" else ["core_diffusion"]


def other_pythons() -> list[str]:
    """Newer interpreters of this machine that start and can make an environment."""
    found = []
    folders = [*os.environ["PATH"].split(os.pathsep), *map(str, Path.home().glob(".pyenv/versions/*/bin"))]
    for version in ("3.12", "3.13"):
        for folder in folders:
            python = Path(folder, f"python{version}")
            check = [str(python), "-c", "import ensurepip, sys; print('%d.%d' % sys.version_info[:2])"]
            if python.exists() and subprocess.run(check, capture_output=True, text=True).stdout.strip() == version:
                found.append(str(python))
                break
    return found


@pytest.mark.parametrize("name", NAMES)
def test_alone(name: str, wheels: dict[str, Path], environment: Callable[..., Any]) -> None:
    """One package's wheel and the registry's, in an empty environment: every operator runs with numpy, and so does the
    first example of the package's README (a rendered picture, for one)."""
    env = environment(name)
    env.install(wheels["core_registry"], wheels[name])
    ran = env.run(env.python, HERE / "run_operators.py", name)
    assert f"ran {name}." in ran
    readme = (ROOT / "packages" / name.replace("_", "-") / "README.md").read_text()
    env.run(env.python, "-c", readme.split("```python\n")[1].split("```")[0])
    assert f"{name}." in env.run("core", "list")
    env.run("core", "doctor")


@pytest.mark.parametrize("name", FROM_CHECKOUT)
def test_from_checkout(name: str, environment: Callable[..., Any]) -> None:
    """`pip install ./packages/core-x` alone, without an index for our packages. CORE_TEST_ALL=1: each of them."""
    env = environment(f"{name}_source")
    env.env["CORE_CUDA"] = "OFF"
    build = env.folder / "build"
    env.install("-C", f"build-dir={build}", ROOT / "packages" / name.replace("_", "-"))
    assert f"ran {name}." in env.run(env.python, HERE / "run_operators.py", name)


@pytest.mark.parametrize("python", other_pythons())
def test_other_python(python: str, wheels: dict[str, Path], environment: Callable[..., Any]) -> None:
    """The same wheels serve every later Python."""
    env = environment("other", python)
    env.install(*(wheels[name] for name in ["core_registry", *NAMES]))
    for name in NAMES:
        assert f"ran {name}." in env.run(env.python, HERE / "run_operators.py", name)


def test_fifteen_minutes(wheels: dict[str, Path], environment: Callable[..., Any]) -> None:
    """The README's "Write a plugin in fifteen minutes", done word by word by a third party with nothing but wheels."""
    env = environment("fifteen")
    env.install(wheels["core_registry"])
    work = env.folder.parent / "third party"
    work.mkdir()
    section = (ROOT / "README.md").read_text().split("## Write a plugin in fifteen minutes")[1].split("\n## ")[0]
    output = ""
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", section, re.DOTALL | re.MULTILINE):
        if language == "sh":
            output += env.run("bash", "-euo", "pipefail", "-c", block, cwd=work)
        else:
            file = block.split("\n")[0].lstrip("/# ")
            (work / file).write_text(block)
    assert "mine.halve" in output
    assert "[0.  0.5 1.  1.5 2.  2.5]" in output
    assert "argument 'out' must be float32 of shape (N,) with N = 6, got float32 of shape (4,)" in output
    assert " passed" in output
    assert "my_plugin." in output
    env.run("core", "doctor")


@pytest.mark.skipif(not shutil.which("objdump"), reason="needs binutils")
def test_release_finds_what_is_wrong(tmp_path: Path) -> None:
    """The release tool sees a foreign export, a Python symbol and an AVX instruction in the wrong function."""
    import sys

    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import _release
    finally:
        sys.path.pop(0)
    source = tmp_path / "bad.cpp"
    source.write_text("""
        #define PUBLIC __attribute__((visibility("default")))
        #define AVX2 __attribute__((target("avx2")))
        extern "C" int Py_IsInitialized();
        namespace core_a { PUBLIC int fine(int x) { return x + Py_IsInitialized(); } }
        namespace other { PUBLIC int leaked() { return 1; } }
        namespace core_a::isa_v3 { PUBLIC AVX2 void good(float* x) { for (int i = 0; i < 64; ++i) x[i] *= x[i]; } }
        namespace core_a { PUBLIC AVX2 void bad(float* x) { for (int i = 0; i < 64; ++i) x[i] *= x[i]; } }
    """)
    library = tmp_path / "libcore_a.so"
    subprocess.run(["g++", "-O3", "-shared", "-fPIC", "-fvisibility=hidden", source, "-o", library], check=True)
    exports = " ".join(_release.check_exports(library, "core_a"))
    assert "exports other::leaked()" in exports
    assert "Python symbol Py_IsInitialized" in exports
    assert "core_a::" not in exports
    if "x86-64" in subprocess.run(["objdump", "-f", library], capture_output=True, text=True, check=True).stdout:
        (avx,) = _release.check_instructions(library)
        assert "core_a3bad" in avx
