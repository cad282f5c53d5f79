"""benchmarks/claims.py: figures appear as they come, and a run that was stopped goes on."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

for module in ("torch", "scipy", "PIL.Image", "safetensors", "matplotlib", "rich"):
    pytest.importorskip(module)
from core_splatting.claims import fourdgs_1k, m3  # noqa: E402
from core_splatting.claims.notes import Notes  # noqa: E402

TINY = {
    "2503.16422": fourdgs_1k.Size(32, 32, 4, 3, 2000, 8000, 30, 2e-4, 9000, 2, 5, 2, 1.0, "cpu"),
    "2503.16413": m3.Size(24, 3, 1500, ("CLIP",), 30, 5, 0.1, 0.98, 0.02, 2, "cpu"),
}
# Of the checks, one after each step: stopped within the training, and after it.
STOPS = {"2503.16422": (10, 32), "2503.16413": (10, 37)}


def run(monkeypatch: pytest.MonkeyPatch, paper: str, out: Path, stop: int, *more: str) -> tuple[int, int, Any]:
    """The exit code, how many steps were checked, and the JSON of a run whose `stop`-th check stops it."""
    checks = 0

    def check(notes: Notes) -> None:
        nonlocal checks
        checks += 1
        if checks == stop:
            raise TimeoutError("stopped")
        if checks == stop - 1:
            notes.end = 0  # the next step is the last

    monkeypatch.setitem(fourdgs_1k.SIZES if paper == "2503.16422" else m3.SIZES, "cpu", TINY[paper])
    monkeypatch.setattr(Notes, "check", check)
    script = Path(__file__).parents[1] / "benchmarks" / "claims.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--only", paper, "-o", str(out), *more])
    code = runpy.run_path(str(script))["main"]()
    return code, checks, json.loads((out / f"{paper}_cpu.json").read_text())


@pytest.mark.parametrize("paper", list(TINY))
def test_a_stopped_run_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, paper: str) -> None:
    within, after = STOPS[paper]
    code, _, told = run(monkeypatch, paper, tmp_path, within)
    assert code == 3
    assert {row["what"]: row["value"] for row in told["rows"]}["steps of training"] == within
    code, _, told = run(monkeypatch, paper, tmp_path, after - within, "--resume")
    assert code == 3
    found = {row["what"]: row["value"] for row in told["rows"]}
    assert found["steps of training"] == 30
    assert len(found) > 2
    code, _, told = run(monkeypatch, paper, tmp_path, 10**9, "--resume")
    assert code in (0, 1)
    whole = {row["what"]: row["value"] for row in told["rows"]}
    assert found.items() <= whole.items()
    assert (tmp_path / f"{paper}.png").stat().st_size > 10_000

    code, _, straight = run(monkeypatch, paper, tmp_path / "straight", 10**9)
    timed = ("seconds", "ms")
    for row in straight["rows"]:
        if not row["what"].startswith(timed):
            assert whole[row["what"]] == pytest.approx(row["value"], abs=1e-5), row["what"]
    with pytest.raises(ValueError, match="settings"):
        run(monkeypatch, paper, tmp_path, 10**9, "--resume", "--set", "steps=31")


def test_seconds_stop_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = Notes(tmp_path / "a.json", "1", TINY["2503.16413"], 0, seconds=0)
    with pytest.raises(TimeoutError, match="stopped"):
        notes.check()
