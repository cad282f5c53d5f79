"""Plugins, good and broken, that the registry's tests compile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import core_registry
import pytest

GOOD = """
#include <core/op.hpp>
namespace NAME {
inline void add(core::Tensor<const float, 1> x, core::Tensor<const float, 1> y, double scale,
                std::optional<core::Tensor<const float, 1>> z, core::Tensor<float, 1> out) {
  if (scale < 0) throw core::Error("ValueError", "add: argument 'scale' must be >= 0");
  const auto factor = static_cast<float>(scale);
  for (std::int64_t i = 0; i < out.shape[0]; ++i) out(i) = x(i) + factor * y(i) + (z ? (*z)(i) : 0.f);
}
inline void add_double(core::Tensor<const double, 1> x, core::Tensor<const double, 1> y, double scale,
                       std::optional<core::Tensor<const double, 1>> z, core::Tensor<double, 1> out) {
  for (std::int64_t i = 0; i < out.shape[0]; ++i) out(i) = x(i) + scale * y(i) + (z ? (*z)(i) : 0.);
}
inline constexpr auto ops = core::op_set(core::op<"add", &add, &add_double>(
    "out = x + scale y + z.", {"x[N]", "y[N]", "scale", "z[N]", "out[N]"}, {.paper = "0000.00001"}));
}
CORE_PLUGIN(PREFIX, "0.1.0", NAME::ops)
"""


@pytest.fixture(scope="session")
def compiler() -> Callable[..., Path]:
    """compile(folder, name, source, *flags) -> lib<name>.so."""

    def compile_(folder: Path, name: str, source: str, *flags: str) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        file, library = folder / f"{name}.cpp", folder / f"lib{name}.so"
        file.write_text(source)
        command = [
            "g++",
            "-std=c++20",
            "-O1",
            "-shared",
            "-fPIC",
            "-fvisibility=hidden",
            "-I",
            core_registry.include_dir(),
        ]
        subprocess.run([*command, *flags, str(file), "-o", str(library), "-pthread"], check=True)
        return library

    return compile_


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory, compiler: Callable[..., Path]) -> Path:
    """A plain C++ plugin `toy` with the operator `toy.add`."""
    return compiler(tmp_path_factory.mktemp("good"), "toy", GOOD.replace("NAME", "toy").replace("PREFIX", "toy"))


@pytest.fixture
def core(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """core(*arguments, **environment): runs the command in a process of its own."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "core_registry", *arguments]
        env = {**os.environ, "COLUMNS": "200", **environment}
        return subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path, timeout=120)

    return run


@pytest.fixture
def listed(core: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., dict[str, object]]:
    """listed(**environment): what `core list --json` says."""
    return lambda **environment: json.loads(core("list", "--json", **environment).stdout)
