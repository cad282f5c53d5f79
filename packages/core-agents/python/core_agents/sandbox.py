"""Runs code that nobody has read: a child process with limits of its own, in bubblewrap where that is installed.

The child limits its memory, CPU time, open files and the size of files, and forbids itself by seccomp to start
processes, to use sockets and to write files. bubblewrap adds its own file system, network, process and user namespaces.
A child that says nothing for too long is killed with its whole process group.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MAX_OUTPUT = 64 << 20
"""Bytes that a child may write."""


class SandboxError(RuntimeError):
    """The child was ended, or ended without a result; the message says why."""


def bubblewrap() -> str | None:
    """The path of bwrap, if it is installed and may make namespaces here."""
    found = shutil.which("bwrap")
    if not found:
        return None
    command = [found, "--ro-bind", "/", "/", "--unshare-all", "true"]
    return found if subprocess.run(command, capture_output=True, check=False, timeout=10).returncode == 0 else None


def command(program: Path, bwrap: str | None) -> list[str]:
    """How a Python program is started: isolated from the environment and the user's site, and in bwrap if given."""
    python = [sys.executable, "-I", "-S", "-B", str(program)]
    if not bwrap:
        return python
    inside = [bwrap, "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--unshare-all", "--die-with-parent"]
    inside += ["--new-session", "--cap-drop", "ALL"]
    needed = [program.resolve(), Path(sys.executable).absolute(), Path(sys.executable).resolve(), Path(sys.base_prefix)]
    for folder in ("/tmp", "/root", "/home"):
        if Path(folder).is_dir() and not any(p.is_relative_to(folder) for p in needed):
            inside += ["--tmpfs", folder]
    return [*inside, "--chdir", "/", *python]


def run(
    program: Path, job: Mapping[str, Any], *, silence: float, seconds: float, bwrap: str | None = None
) -> Iterator[dict[str, Any]]:
    """The JSON lines that a program writes for a job (its standard input).

    silence, seconds: how long it may say nothing, and how long it may run, in seconds of the clock. Raises SandboxError
    when one of these is over, when it writes too much or no JSON, or dies by a signal.
    """
    environment = {"PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"}
    child = subprocess.Popen(
        command(program, bwrap),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd="/",
        start_new_session=True,
    )
    assert child.stdin
    assert child.stdout
    start = heard = time.monotonic()
    rest, written = b"", 0
    try:
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(json.dumps(job).encode())
            child.stdin.close()
        with selectors.DefaultSelector() as ready:
            ready.register(child.stdout, selectors.EVENT_READ)
            while True:
                now = time.monotonic()
                left = min(heard + silence, start + seconds) - now
                if left <= 0 or not ready.select(left):
                    why = "did not end" if heard + silence <= start + seconds else "took too long in all"
                    raise SandboxError(f"the code {why} and was stopped after {time.monotonic() - start:.1f} s")
                data = os.read(child.stdout.fileno(), 1 << 16)
                if not data:
                    break
                heard = time.monotonic()
                written += len(data)
                if written > MAX_OUTPUT:
                    raise SandboxError("the code wrote too much and was stopped")
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    try:
                        message = json.loads(line)
                    except ValueError:
                        message = None
                    if not isinstance(message, dict):
                        raise SandboxError("the code disturbed the measurement's output")
                    yield message
        code = child.wait(timeout=5)
        if code:
            name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise SandboxError(f"the code ended the measurement ({name})")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.stdout.close()
        child.wait()
