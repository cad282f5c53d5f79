"""`core demo`, `run`, `reproduce` and `bench` on a package made for it: what fails is reported, the rest goes on."""

from __future__ import annotations

import json
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Core = Callable[..., subprocess.CompletedProcess[str]]

MODULE = '''
import os
import numpy as np
from core_registry.claims import Claim
from core_registry.demo import Demo, Picture
from pathlib import Path


def good(out: Path) -> Demo:
    (out / "a <b>.png").write_bytes(b"")
    pictures = [Picture("a <title>", out / "a <b>.png")]
    return Demo("a [bold] what", "1 < 2", 1e-3, "peer", 2e-3, np.float32(0), 0, pictures, {"PSNR": "24 dB"})


def raises(out: Path) -> Demo:
    raise RuntimeError("cannot [see]")


def dies(out: Path) -> Demo:
    os.abort()


def differs(out: Path) -> Demo:
    return Demo("what", "input", 1.0, "peer", 1.0, 2.0, 1.0)


def job(source: Path, times: int = 2) -> None:
    """Repeats the text of SOURCE."""
    print(source.read_text() * times)


def claim(size: str, seed: int, out: Path) -> Claim:
    holds = np.bool_(seed == 0)
    return Claim("0000.00001", "claim", "protocol", {"x": (np.float64(seed), np.nan)}, holds, out / "x.png")


def several(size: str, seed: int, out: Path) -> list[Claim]:
    return [claim(size, one, out) for one in (0, 1)]


def broken(size: str, seed: int, out: Path) -> Claim:
    raise OSError("no disk")
'''
POINTS = """
[core.demos]
a_raises = fake:raises
b_dies = fake:dies
c_differs = fake:differs
d_good = fake:good
[core.jobs]
fake.job = fake:job
fake.missing = fake_without:job
[core.claims]
0000.00001 = fake:claim
0000.00002 = fake:broken
0000.00003 = fake:claim
0000.00004 = fake:several
[core.cases]
fake = fake_without:cases
"""


@pytest.fixture
def fake(tmp_path: Path, core: Core) -> Core:
    """`core` with a package beside the installed ones."""
    site = tmp_path / "site"
    info = site / "fake-1.dist-info"
    info.mkdir(parents=True)
    (site / "fake.py").write_text(textwrap.dedent(MODULE))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake\nVersion: 1\n")
    (info / "entry_points.txt").write_text(POINTS)
    other = site / "other-1.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1\n")
    (other / "entry_points.txt").write_text("[core.claims]\n0000.00003 = fake:claim\n")
    return lambda *arguments: core(*arguments, PYTHONPATH=str(site))


def test_one_failing_demonstration_does_not_stop_the_others(fake: Core, tmp_path: Path) -> None:
    result = fake("demo", "a_raises", "b_dies", "c_differs", "d_good")
    assert result.returncode == 1
    assert "cannot [see]" in result.stdout
    assert "SIGABRT" in result.stdout
    assert "differs from peer by 2" in result.stdout
    assert "a [bold] what" in result.stdout
    assert "2x" in result.stdout
    assert "d_good: PSNR: 24 dB" in result.stdout
    page = (tmp_path / "out" / "demo" / "index.html").read_text()
    assert "a &lt;title&gt;" in page
    assert 'src="d_good/a &lt;b&gt;.png"' in page
    assert "1 &lt; 2" in page


def test_demo_as_json(fake: Core) -> None:
    result = fake("demo", "--json", "d_good", "b_dies")
    answer: dict[str, Any] = json.loads(result.stdout)
    assert answer["d_good"]["difference"] == 0
    assert "SIGABRT" in answer["b_dies"]["failed"]
    assert result.returncode == 1
    assert fake("demo", "d_good").returncode == 0
    assert fake("demo", "nobody").stderr.startswith("core: there are demonstrations of")


def test_jobs(fake: Core, tmp_path: Path) -> None:
    assert "fake.job" in fake("run").stdout
    assert json.loads(fake("run", "--json").stdout)["fake.job"] == ["fake:job"]
    assert "Repeats the text of SOURCE" in fake("run", "fake.job", "--help").stdout
    (tmp_path / "text").write_text("ab")
    assert fake("run", "fake.job", "text", "--times", "3").stdout.strip() == "ababab"
    missing = fake("run", "fake.job", "nowhere")
    assert missing.returncode == 1
    assert missing.stderr.startswith("core: ")
    assert "nowhere" in missing.stderr
    assert fake("run", "fake.missing").stderr == "core: No module named 'fake_without'\n"
    assert fake("run", "fake.job", "text", "--times", "many").returncode == 2


def test_claims(fake: Core) -> None:
    assert "0000.00001" in fake("reproduce").stdout
    held = fake("reproduce", "0000.00001")
    assert held.returncode == 0
    assert "verdict   holds at size cpu" in held.stdout
    failed = fake("reproduce", "0000.00001", "--seed", "1", "--json")
    assert failed.returncode == 1
    (answer,) = json.loads(failed.stdout)
    assert answer["holds"] is False
    assert answer["measured"] == {"x": [1.0, None]}
    assert fake("reproduce", "0000.00002").stderr.endswith("core: no disk\n")
    assert fake("reproduce", "0000.00001", "--size", "huge").returncode != 0
    assert "core reproduce 0000.00002" in fake("list", "--papers").stdout
    assert [claim["holds"] for claim in json.loads(fake("reproduce", "0000.00003", "--json").stdout)] == [True, True]
    assert [claim["holds"] for claim in json.loads(fake("reproduce", "0000.00004", "--json").stdout)] == [True, False]


def test_bench_goes_on_without_a_broken_package(fake: Core) -> None:
    result = fake("bench", "nothing")
    assert "its cases cannot be loaded: ModuleNotFoundError" in result.stderr
    assert "no case of nothing" in result.stderr
    assert fake("bench", "--device", "toaster").returncode == 1
