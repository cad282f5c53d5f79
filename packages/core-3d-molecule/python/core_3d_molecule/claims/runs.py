"""Long runs behind claims: to the end of a schedule, from a checkpoint if there is one, with a record to read."""

from __future__ import annotations

import datetime
import json
import sys
import time
from pathlib import Path
from typing import Any

from core_registry.files import replace

_SHOW, _SAVE = 10.0, 240.0
"""Seconds between lines of the record and between checkpoints."""


class Record:
    """A dictionary of plain values, kept in a JSON file; one that is there already is gone on with. It has the "date"
    of its beginning."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        self.values.setdefault("date", datetime.datetime.now(datetime.UTC).date().isoformat())

    def put(self, **values: Any) -> None:
        """Adds values and writes the file."""
        self.values |= values
        with replace(self.path) as temporary:
            temporary.write_text(json.dumps(self.values, indent=1) + "\n")
        print(json.dumps({k: v for k, v in values.items() if k != "curves"}), file=sys.stderr, flush=True)


def train(trainer: Any, checkpoint: Path, record: Record, name: str, part: float = 1.0) -> None:
    """Trains to the end of the schedule, or until `part` of it is over, from the checkpoint if there is one; what the
    loss gave goes to the record's `curves[name]`, steps and minutes to `runs[name]`."""
    if checkpoint.exists() and not trainer.step:
        trainer.load(checkpoint)
    curve = record.values.setdefault("curves", {}).setdefault(name, [])
    shown = saved = time.monotonic()
    before = trainer.step
    for found in trainer.run(trainer.optimisation.steps):
        over = trainer.progress >= part
        if not over and (trainer.step % 20 or time.monotonic() - shown < _SHOW):
            continue
        values = {k: round(float(v), 6) for k, v in found.items()}  # waits for the device
        now = time.monotonic()
        run = {
            "steps": trainer.step, "minutes": round(trainer.seconds / 60, 3),
            "ms_a_step": round(1e3 * (now - shown) / max(trainer.step - before, 1), 3),
        }  # fmt: skip
        curve.append(run | values)
        record.put(**{name: run | values})
        shown, before = now, trainer.step
        if now - saved > _SAVE:
            trainer.save(checkpoint)
            shown = saved = time.monotonic()
        if over:
            break
    trainer.save(checkpoint)
