"""What a claim's run tells and keeps as it goes, so that one that is cut off loses little."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core_registry.timing import write_results

if TYPE_CHECKING:
    from ..training import Trainer

SAVED_EVERY = 120.0  # seconds


class Notes:
    """What a run has `measured`, by name.

    Args:
        file: JSON (`write_results`) that is written anew with what each `note` adds; files to go on from are kept in
            the folder of its name. None: neither.
        paper: whose claim it is.
        size: dataclass of the claim's settings, with its `device`.
        seed: of everything random.
        resume: go on from the file; raises ValueError if it is of other settings.
        seconds: after these, `check` stops the run.
    """

    def __init__(
        self, file: Path | None, paper: str, size: Any, seed: int, *, resume: bool = False, seconds: float = math.inf
    ) -> None:
        self.file, self.paper, self.cpu = file, paper, size.device == "cpu"
        self.settings = json.loads(json.dumps({**dataclasses.asdict(size), "seed": seed}))
        self.measured: dict[str, tuple[float, float]] = {}
        self.end = time.monotonic() + seconds
        self.resume = resume and file is not None and file.exists()
        if self.resume and file is not None:
            kept = json.loads(file.read_text(encoding="utf-8"))
            if kept.get("settings") != self.settings:
                raise ValueError(f"{file}: expected a run with settings {self.settings}, got {kept.get('settings')}")
            self.measured = {row["what"]: (row["value"], row["spread"]) for row in kept["rows"]}
        elif file is not None:
            self.note({})

    def note(self, measured: Mapping[str, tuple[float, float]]) -> None:
        """Adds to what is measured, and to the file."""
        self.measured |= measured
        if self.file is not None:
            rows = [{"paper": self.paper, "what": k, "value": v, "spread": s} for k, (v, s) in self.measured.items()]
            columns = ("paper", "what", "value", "spread")
            write_results(self.file, columns, rows, cpu=self.cpu, settings=self.settings)

    def kept(self, name: str) -> Path | None:
        """Where a file to go on from is kept, or None."""
        if self.file is None:
            return None
        folder = self.file.with_suffix("")
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name

    def check(self) -> None:
        """Raises TimeoutError when the seconds are over."""
        if time.monotonic() > self.end:
            raise TimeoutError(f"{self.paper}: stopped, its seconds are over")

    def training(self, trainer: Trainer) -> Iterator[int]:
        """Trains to the end of the run, or goes on; yields the steps done. The trainer is kept now and then, at the end
        and when the seconds are over."""
        path, whole = self.kept("trainer.safetensors"), trainer.config.steps
        if path is not None and self.resume and path.exists():
            trainer.load(path)
        yield trainer.step
        begin = saved = time.monotonic()
        before = self.measured.get("seconds of training", (0.0, 0.0))[0]
        for _ in trainer.run(whole):
            now = time.monotonic()
            if trainer.step == whole or now > self.end or now - saved > SAVED_EVERY:
                if path is not None:
                    trainer.save(path)
                saved = time.monotonic()
                took = before + saved - begin
                self.note({"steps of training": (trainer.step, 0.0), "seconds of training": (took, 0.0)})
            yield trainer.step
            self.check()
