"""Neural task nodes (PORTAL, arXiv 2503.13356): actions that a network chooses, for all agents of a tick in one batch.

A task is an ordinary :class:`core_agents.Action` whose id stands for a policy instead of an action of the game; in the
text it has a name like any other (``actions={"left": 0, ..., "aim": 100}``). After a tick, :meth:`Tasks.resolve` asks
each policy once, with the observations of those agents whose tick ended in its task.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from core_registry.arrays import is_torch


class Tasks:
    """``policies`` by action id: observations [rows, features] to int ids [rows], or to scores [rows, actions], whose
    largest is taken. A torch module gets tensors and runs without gradients.
    """

    def __init__(self, policies: Mapping[int, Callable[[Any], Any]]) -> None:
        if any(int(id_) < 0 for id_ in policies):
            raise ValueError(f"Tasks: action ids must not be negative, got {sorted(policies)}")
        self.policies = {int(id_): policy for id_, policy in policies.items()}

    def resolve(self, actions: Any, observations: Any) -> Any:
        """``actions`` [agents] of a tick with the tasks' ids replaced by what the policies chose; a new array.

        ``observations`` [agents, ...]: anything that the policies take, rows of one image each for example; of numpy
        or torch, on the device of ``actions``. Raises ValueError if a policy gives no id or score for each row.
        """
        if len(observations) != len(actions):
            raise ValueError(f"resolve: argument 'observations' must have {len(actions)} rows, got {len(observations)}")
        if is_torch(actions) and not is_torch(observations):
            observations = sys.modules["torch"].as_tensor(observations, device=actions.device)
        out = actions.clone() if is_torch(actions) else np.array(actions)
        for id_, policy in self.policies.items():
            rows = (actions == id_).nonzero()
            rows = rows[:, 0] if is_torch(rows) else rows[0]
            if len(rows):
                out[rows] = _choose(id_, policy, observations[rows], out)
        return out


def _choose(id_: int, policy: Callable[[Any], Any], rows: Any, like: Any) -> Any:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(policy, torch.nn.Module):
        with torch.no_grad():
            found = policy(torch.as_tensor(rows))
    else:
        found = policy(rows)
    found = found if is_torch(found) else np.asarray(found)
    if found.ndim == 2 and found.shape[1] and found.shape[0] == len(rows):
        found = found.argmax(1)
    whole = not (found.is_floating_point() if is_torch(found) else found.dtype.kind not in "iu")
    if tuple(found.shape) != (len(rows),) or not whole:
        raise ValueError(
            f"the policy of task {id_} must give ids [{len(rows)}] or scores [{len(rows)}, actions], "
            f"got {found.dtype} {tuple(found.shape)}"
        )
    if is_torch(like):
        return sys.modules["torch"].as_tensor(found, dtype=like.dtype, device=like.device)
    return (found.cpu().numpy() if is_torch(found) else found).astype(like.dtype)
