"""Programs ticked for many agents."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from core_registry.arrays import as_array, empty, is_torch

from .. import _core_agents as _C
from .log import TickLog
from .nodes import INVALID
from .observations import columns
from .program import Program


class BatchedTree:
    """One program ticked for ``num_agents`` agents.

    ``period`` (int or int array [agents]): agent ``a`` ticks on every ``period[a]``-th call only; agents with the same
    period are spread evenly over the calls.
    """

    def __init__(self, program: Program, num_agents: int, period: Any = None) -> None:
        if num_agents < 0:
            raise ValueError(f"BatchedTree: argument 'num_agents' must not be negative, got {num_agents}")
        self.program = program
        self.num_agents = num_agents
        self._arguments = tuple(program.arrays.values())
        self._state = np.zeros((program.state_rows, num_agents), np.uint8)
        self._counters = np.zeros((program.counter_rows, num_agents), np.int32)
        self.actions: Any = np.full(num_agents, -1, np.int32)
        """int32 [agents]: the last action id that an agent's latest tick emitted, -1 for none."""
        self.status: Any = np.zeros(num_agents, np.uint8)
        """uint8 [agents]: :class:`Status` of the root after an agent's latest tick."""
        self.calls = 0
        self._period: np.ndarray | None = None
        if period is not None:
            self._period = np.broadcast_to(np.asarray(period, np.int64), (num_agents,))
            if num_agents and self._period.min() < 1:
                raise ValueError(f"BatchedTree: argument 'period' must be at least 1, got {self._period.min()}")
            self._phase = np.arange(num_agents) % self._period

    def tick(self, observations: Any, mask: Any = None, log: TickLog | None = None) -> Any:
        """Ticks the agents once and returns :attr:`status`; :attr:`actions` holds what they do.

        ``observations`` [agents, features] float32 (numpy, torch or CuPy, on the CPU or a GPU, or lists), ``mask``
        [agents] bool: which agents tick; the others keep everything. A program that was compiled for a structured dtype
        takes arrays [agents] of it. ``log`` records what every node did. The agents move to the device of the
        observations; the returned arrays are overwritten by the next call.
        """
        if self.program.dtype is not None:
            if getattr(observations, "dtype", None) != self.program.dtype:
                got = getattr(observations, "dtype", type(observations).__name__)
                raise ValueError(f"tick: argument 'observations' must be of dtype {self.program.dtype}, got {got}")
            observations = columns(observations)
        observations = as_array(observations, "float32", "observations")
        if len(observations.shape) != 2 or observations.shape[0] != self.num_agents:
            shape = tuple(observations.shape)
            raise ValueError(
                f"tick: argument 'observations' must be float32 of shape ({self.num_agents}, F), got shape {shape}"
            )
        if _place(self.actions) != _place(observations):
            self._move(observations)
        if mask is not None:
            mask = as_array(mask, "bool", "mask")
            if _place(mask) != _place(observations):
                mask = _like(_host(mask), observations)
        if self._period is not None:
            due = _like(self.calls % self._period == self._phase, observations)
            mask = due if mask is None else due & mask
        self.calls += 1
        nodes = None if log is None else empty((len(self.program), self.num_agents), "uint8", like=observations)
        agents: tuple[Any, ...] = (observations, mask, self._state, self._counters, self.actions, self.status, nodes)
        _C.tick(*self._arguments, *agents)
        if log is not None:
            log.append(_host(nodes), _host(self.actions))
        return self.status

    def _move(self, like: Any) -> None:
        """Brings program and agents to the kind and the device of an array."""
        self._arguments = tuple(_like(a, like) for a in self.program.arrays.values())
        for name in ("_state", "_counters", "actions", "status"):
            setattr(self, name, _like(_host(getattr(self, name)), like))

    @property
    def running(self) -> np.ndarray:
        """bool [nodes, agents]: which nodes are RUNNING."""
        out = np.zeros((len(self.program), self.num_agents), bool)
        has = self.program.rows >= 0
        out[has] = _host(self._state)[self.program.rows[has]] & 1
        return out

    def reset(self, mask: Any = None) -> None:
        """Forgets everything about the agents of ``mask`` ([agents] bool; default all): status INVALID, action -1."""
        who = slice(None) if mask is None else _like(np.asarray(_host(mask), bool), self.actions)
        self._state[:, who] = 0
        self._counters[:, who] = 0
        self.actions[who] = -1
        self.status[who] = int(INVALID)


def _place(x: Any) -> tuple[type, str]:
    return type(x), str(getattr(x, "device", "cpu"))


def _host(x: Any) -> np.ndarray:
    """A numpy array of any array's values."""
    if is_torch(x):
        return np.asarray(x.detach().cpu())
    return np.asarray(x.get() if hasattr(x, "get") else x)


def _like(x: np.ndarray, like: Any) -> Any:
    """A copy of a numpy array, of the kind and on the device of ``like``."""
    if is_torch(like):
        return sys.modules["torch"].tensor(x, device=like.device)
    out = empty(x.shape, str(x.dtype), like=like)
    if isinstance(out, np.ndarray):
        out[...] = x
    else:
        out.set(x)
    return out
