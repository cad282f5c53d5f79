"""Load a plugin library in a child process, so that one that aborts or hangs is only reported."""

from __future__ import annotations

import json
import pathlib
import signal
import subprocess
import sys
from collections.abc import Sequence

from ._discovery import MAX_DESCRIPTION, PluginError

TIMEOUT = 10.0


def python(arguments: Sequence[str], what: str, timeout: float) -> str:
    """The output of a Python process, or PluginError with the reason why `what` cannot be loaded."""
    try:
        done = subprocess.run(
            [sys.executable, *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        raise PluginError(f"{what} hangs on load (no answer within {timeout:g} s); uninstall or rebuild it") from None
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise PluginError(f"{what} kills its process on load ({name}); uninstall or rebuild it")
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        why = said[-1] if said else f"exit code {done.returncode}"
        raise PluginError(f"{what} cannot be loaded: {why}; reinstall or rebuild it")
    return done.stdout.decode("utf-8", "replace")


def ask(library: pathlib.Path, timeout: float = TIMEOUT) -> str:
    """The description (JSON) that a library gives of itself; PluginError if it cannot be loaded."""
    said = python(["-c", "from core_registry.child import main; main()", str(library)], str(library), timeout)
    last = said.splitlines()[-1:] if len(said) <= MAX_DESCRIPTION else []
    try:
        error = json.loads(last[0]).get("error")
    except (IndexError, ValueError, AttributeError, RecursionError):
        raise PluginError(f"{library} ends its process on load; uninstall or rebuild it") from None
    if error:
        raise PluginError(str(error))
    return last[0]


def main() -> None:
    """What the child process runs: the description, or what is wrong, as the last line of its output."""
    from ._ffi import Library

    try:
        answer = Library(pathlib.Path(sys.argv[1])).description()
    except PluginError as e:
        answer = {"error": str(e)}
    print("\n" + json.dumps(answer), flush=True)
