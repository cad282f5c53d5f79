"""Load every plugin in a child process of its own and say what is wrong with each, and the cure."""

from __future__ import annotations

import concurrent.futures
import importlib.metadata
import os
import platform
import sys

from ._discovery import ABI, Plugin, PluginError, Scan, parse_description
from .child import TIMEOUT, ask, python


def examine(found: Scan, timeout: float = TIMEOUT) -> dict[str, str]:
    """What is wrong with each plugin or operator of a scan, "" for a plugin that works.

    Each library must load and be what its description says; a package's extension module must import.
    """
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        plugins = dict(
            zip(found.plugins, pool.map(lambda p: _examine(p, timeout), found.plugins.values()), strict=True)
        )
    return plugins | {name: str(error) for name, error in (found.errors | found.poisoned).items()}


def _examine(plugin: Plugin, timeout: float) -> str:
    try:
        if parse_description(ask(plugin.path, timeout), plugin.path, plugin.dist) != plugin:
            cure = f"reinstall {plugin.dist}" if plugin.dist else "rebuild it"
            return f"{plugin.path} is another build than its core_plugin.json describes; {cure}"
        if plugin.dist:
            module = f"{plugin.name}._{plugin.name}"
            python(["-c", f"import {module}"], f"the extension module {module} of {plugin.dist}", timeout)
    except PluginError as e:
        return str(e)
    return ""


def machine() -> dict[str, str]:
    """What a report of a fault should say about this machine; imports nothing."""
    facts = {"python": f"{platform.python_version()} ({sys.executable})", "platform": platform.platform()}
    for package in ("core-registry", "numpy", "nanobind-backend", "torch"):
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = "not installed"
    facts |= {"ABI": f"{ABI[0]}.{ABI[1]}", "processors": str(len(os.sched_getaffinity(0)))}
    return facts | {k: v for k, v in sorted(os.environ.items()) if k.startswith("CORE_")}
