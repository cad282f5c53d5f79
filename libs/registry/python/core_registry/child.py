"""Load a plugin library in a child process, so that one that aborts or hangs is only reported."""

from __future__ import annotations

import json
import pathlib
import signal
import subprocess
import sys

from ._discovery import MAX_DESCRIPTION, PluginError

TIMEOUT = 10.0


def ask(library: pathlib.Path, timeout: float = TIMEOUT) -> str:
    """The description (JSON) that a library gives of itself; PluginError if it cannot be loaded."""
    command = [sys.executable, "-c", "from core_registry.child import main; main()", str(library)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise PluginError(
            f"{library} hangs on load (no answer within {timeout:g} s); uninstall or rebuild it"
        ) from None
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise PluginError(f"{library} kills its process on load ({name}); uninstall or rebuild it")
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    if done.returncode or not lines or len(done.stdout) > MAX_DESCRIPTION:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise PluginError(f"{library} cannot be loaded: {said[-1] if said else f'exit code {done.returncode}'}")
    answer = json.loads(lines[-1])
    if "error" in answer:
        raise PluginError(answer["error"])
    return json.dumps(answer)


def main() -> None:
    """What the child process runs: the description, or what is wrong, as the last line of its output."""
    from ._ffi import Library

    try:
        answer = Library(pathlib.Path(sys.argv[1])).description()
    except PluginError as e:
        answer = {"error": str(e)}
    print("\n" + json.dumps(answer), flush=True)
