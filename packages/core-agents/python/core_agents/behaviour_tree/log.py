"""What every node did at every tick, for a viewer."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from core_registry.files import replace

from .program import Program

_MAX_BYTES = 1 << 30


class TickLog:
    """Records some agents' ticks: ``batched.tick(observations, log=log)`` appends one.

    A file (:meth:`save`, :meth:`load`) is a numpy ``.npz`` with

    ============  ==========================================================================================
    ``format``    int: 1
    ``nodes``     text, JSON: for each node in pre-order ``{"kind", "name", "text", "depth", "end"}``; ``end`` is one
                  past the last node below it, ``text`` its line in the DSL
    ``agents``    int32 [agents]: their numbers
    ``statuses``  uint8 [ticks, ceil(nodes * agents / 4)]: four statuses a byte, the lowest bits first, of the
                  array [nodes, agents]; 0 not ticked, 1 SUCCESS, 2 FAILURE, 3 RUNNING
    ``actions``   int32 [ticks, agents]: what the tick emitted last, -1 for none
    ============  ==========================================================================================
    """

    def __init__(self, program: Program, agents: Iterable[int]) -> None:
        from ..dsl import lines

        self.agents: np.ndarray = np.array(list(agents), np.int32).reshape(-1)
        if self.agents.size and self.agents.min() < 0:
            raise ValueError(f"TickLog: argument 'agents' must be numbers from 0, got {self.agents.min()}")
        self.nodes: list[dict[str, Any]] = [
            {"kind": type(node).__name__, "name": node.name, "text": text, "depth": depth, "end": end}
            for node, (depth, text), end in zip(
                program.nodes, lines(program.tree), program.arrays["ends"].tolist(), strict=True
            )
        ]
        self._packed: list[np.ndarray] = []
        self._actions: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self._packed)

    @property
    def _width(self) -> int:
        return -(-len(self.nodes) * len(self.agents) // 4)

    def append(self, statuses: np.ndarray, actions: np.ndarray) -> None:
        """Adds a tick: uint8 [nodes, all agents] and int32 [all agents], of which the log keeps its own."""
        flat = statuses[:, self.agents].reshape(-1)
        quads = np.zeros(-(-flat.size // 4) * 4, np.uint8)
        quads[: flat.size] = flat
        shifts = np.array([0, 2, 4, 6], np.uint8)
        self._packed.append(np.bitwise_or.reduce(quads.reshape(-1, 4) << shifts, axis=1))
        self._actions.append(np.array(actions[self.agents], np.int32))

    @property
    def statuses(self) -> np.ndarray:
        """uint8 [ticks, nodes, agents]: with which status the node ended the tick; 0: it was not ticked."""
        nodes, agents = len(self.nodes), len(self.agents)
        packed = np.array(self._packed, np.uint8).reshape(len(self), self._width)
        flat = (packed[:, :, None] >> np.array([0, 2, 4, 6], np.uint8) & 3).reshape(len(self), 4 * self._width)
        return flat[:, : nodes * agents].reshape(len(self), nodes, agents)

    @property
    def actions(self) -> np.ndarray:
        """int32 [ticks, agents]: the last action id that the tick emitted, -1 for none."""
        return np.array(self._actions, np.int32).reshape(len(self), len(self.agents))

    def save(self, path: Path | str) -> None:
        """Writes the log as a compressed ``.npz``."""
        with replace(Path(path)) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                format=np.int64(1),
                nodes=np.array(json.dumps(self.nodes)),
                agents=self.agents,
                statuses=np.array(self._packed, np.uint8).reshape(len(self), self._width),
                actions=self.actions,
            )

    @classmethod
    def load(cls, path: Path | str) -> TickLog:
        """Reads what :meth:`save` wrote. Raises ValueError for any other file."""
        data = Path(path).read_bytes()
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                if sum(i.file_size for i in archive.infolist()) > _MAX_BYTES:
                    raise ValueError(f"it holds more than {_MAX_BYTES} bytes")
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                if int(file["format"]) != 1:
                    raise ValueError(f"format must be 1, got {int(file['format'])}")
                log = cls.__new__(cls)
                log.nodes = json.loads(str(file["nodes"]))
                log.agents = file["agents"]
                packed, actions = file["statuses"], file["actions"]
            for name, array, shape, dtype in (
                ("agents", log.agents, log.agents.shape[:1], np.int32),
                ("statuses", packed, (len(actions), log._width), np.uint8),
                ("actions", actions, (len(packed), len(log.agents)), np.int32),
            ):
                if array.shape != shape or array.dtype != dtype:
                    raise ValueError(
                        f"{name} must be {np.dtype(dtype)} of shape {shape}, got {array.dtype} {array.shape}"
                    )
            _check(log.nodes)
        except Exception as e:  # zipfile and numpy raise whatever the damage leads them to
            raise ValueError(f"{path}: this is no tick log: {e}") from None
        log._packed, log._actions = list(packed), list(actions)
        return log


def _check(nodes: Any) -> None:
    fields = {"kind": str, "name": str, "text": str, "depth": int, "end": int}
    if not isinstance(nodes, list):
        raise ValueError("nodes must be a list")
    for i, node in enumerate(nodes):
        if not isinstance(node, dict) or {k: type(v) for k, v in node.items()} != fields:
            raise ValueError(f"node {i} must have the fields {', '.join(fields)}")
        if not (i < node["end"] <= len(nodes) and 0 <= node["depth"] <= i):
            raise ValueError(f"node {i} has an end or a depth that fits no tree")
