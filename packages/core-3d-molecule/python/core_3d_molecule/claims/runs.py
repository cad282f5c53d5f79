"""Long runs behind claims: to the end of a schedule, from a checkpoint if there is one, with a record to read."""

from __future__ import annotations

import copy
import datetime
import importlib
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core_registry.files import replace

_SHOW, _SAVE = 10.0, 240.0
"""Seconds between lines of the record and between checkpoints."""


class UnfinishedError(Exception):
    """The time that a call may take was over before the end; calling again goes on."""


class Record:
    """A dictionary of plain values, kept in a JSON file; one that is there already is gone on with. It has the "date"
    of its beginning. `seconds` from now what uses the record raises `UnfinishedError`."""

    def __init__(self, path: Path, seconds: float = math.inf) -> None:
        self.path, self._until = path, time.monotonic() + seconds
        self.values: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        self.values.setdefault("date", datetime.datetime.now(datetime.UTC).date().isoformat())

    @property
    def over(self) -> bool:
        """Whether the time is."""
        return time.monotonic() >= self._until

    def put(self, **values: Any) -> None:
        """Adds values and writes the file."""
        self.values |= values
        with replace(self.path) as temporary:
            temporary.write_text(json.dumps(self.values, indent=1) + "\n")
        print(json.dumps({k: v for k, v in values.items() if k != "curves"}), file=sys.stderr, flush=True)

    def check(self) -> None:
        """Raises `UnfinishedError` if the time is over."""
        if self.over:
            raise UnfinishedError(f"the time of this call is over; what there is is in {self.path.parent}: call again")

    def has(self, module: str, why: str) -> None:
        """Raises ModuleNotFoundError if a module is missing that the rest needs."""
        if not installed(module):
            raise ModuleNotFoundError(f"{why} needs {module}; the rest is in {self.path}: call again where it is")


def installed(module: str) -> bool:
    """Whether a module can be imported, with all that it imports."""
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def head(trainer: Any, **values: Any) -> dict[str, Any]:
    """What a record says of a trainer: the device, and what else is given."""
    import torch

    name = torch.cuda.get_device_name() if trainer.device.type == "cuda" else "cpu"
    parameters = sum(p.numel() for p in trainer.parameters.values())
    return {"device": name, "torch": torch.__version__, "parameters": parameters} | values


def train(trainer: Any, checkpoint: Path, record: Record, name: str, part: float = 1.0) -> None:
    """Trains to the end of the schedule, or until `part` of it is over, from the checkpoint if there is one; what the
    loss gave goes to the record's `curves[name]`, steps and minutes to `runs[name]`. When the record's time is over it
    leaves a checkpoint and raises `UnfinishedError`."""
    if checkpoint.exists() and not trainer.step:
        trainer.load(checkpoint)
    if trainer.progress >= part:
        return
    curve = record.values.setdefault("curves", {}).setdefault(name, [])
    shown = saved = time.monotonic()
    before = trainer.step
    for found in trainer.run(trainer.optimisation.steps):
        over = trainer.progress >= part or record.over
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
    if trainer.progress < part:
        record.check()


def averaged(trainer: Any) -> Any:
    """A copy of the trainer's model with the averaged weights, for evaluation."""
    model = copy.deepcopy(trainer.model)
    model.load_state_dict(trainer.averaged())
    return model.eval()


def timed(record: Record, name: str, count: int, draw: Callable[[], Any], **also: Any) -> Any:
    """What `draw` gives; how long it took for `count` goes to the record."""
    start = time.monotonic()
    found = draw()  # samples are on the host when they are given back
    seconds = time.monotonic() - start
    record.put(**{name: {"seconds": seconds, "ms_a_sample": 1e3 * seconds / max(count, 1)} | also})
    return found
