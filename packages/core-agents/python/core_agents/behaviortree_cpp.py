"""Trees run by BehaviorTree.CPP v4 through its Python wheel `behaviortreepy` (extra ``behaviortree-cpp``)."""

from __future__ import annotations

from typing import Any

import behaviortreepy

from . import behaviour_tree as bt
from .portable import portable
from .xml_format import to_xml


class BehaviorTreeCppAgent:
    """One agent's tree in BehaviorTree.CPP: features and the action are entries of its blackboard.

    The tree is first brought to what BehaviorTree.CPP has (:func:`core_agents.portable.portable`).
    """

    def __init__(self, tree: bt.Node, num_features: int) -> None:
        self.keys = [f"obs_{i}" for i in range(num_features)]
        self.blackboard = behaviortreepy.Blackboard.create()
        self.observe([0.0] * num_features)
        self.blackboard.set_int("action", -1)
        text = to_xml(portable(tree))
        self.tree = behaviortreepy.BehaviorTreeFactory().create_tree_from_text(text, self.blackboard)

    def observe(self, observation: Any) -> None:
        """Writes the features."""
        for key, value in zip(self.keys, observation, strict=True):
            self.blackboard.set_double(key, value)

    def tick(self, observation: Any) -> tuple[bt.Status, int]:
        """Ticks once; the root's status and the last emitted action id, or -1."""
        self.observe(observation)
        self.blackboard.set_int("action", -1)
        status = self.tree.tick_exactly_once()
        return bt.Status[status.name], int(self.blackboard.get_int("action"))
