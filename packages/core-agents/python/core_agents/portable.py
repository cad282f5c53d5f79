"""Trees as BehaviorTree.CPP v4 can run them."""

from __future__ import annotations

from . import behaviour_tree as bt
from .xml_format import tag_and_attributes


def portable(tree: bt.Node) -> bt.Node:
    """The tree without what BehaviorTree.CPP lacks, where the same can be said with what it has.

    Sub-trees are put in; guards become a Sequence of a condition and the child; actions that do not just succeed
    become a Sequence of the action and what makes the status. Raises ValueError that names a node for which there is
    nothing: what counts ticks, other Parallels than (all, synchronise), RunningIsFailure, RunningIsSuccess, OneShot on
    successful completion, ``min``, ``max`` and ``abs``. BehaviorTree.CPP computes in double precision.
    """
    built: list[bt.Node] = []
    for node, _ in reversed(list(bt.preorder(bt.expand(tree)))):
        built.append(_portable(node, [built.pop() for _ in node.children]))
    return built[0]


_SHARED = ("Parallel", "RunOnce", "Inverter", "ForceSuccess", "ForceFailure", "KeepRunningUntilFailure")


def _portable(node: bt.Node, children: list[bt.Node]) -> bt.Node:
    name = node.name
    if isinstance(node, bt.Condition):
        leaf = bt.Condition(name, node.feature, node.op, node.threshold)
        if tag_and_attributes(leaf)[0] == "ScriptCondition":
            return bt.Sequence(name, False, [leaf, *children]) if children else leaf
    elif isinstance(node, bt.Action) and not node.duration:
        return _portable_action(node)
    elif isinstance(node, bt.FailureIsRunning):
        return bt.Inverter(name, bt.SuccessIsRunning(name, bt.Inverter(name, children[0])))
    elif children and (isinstance(node, bt.Sequence | bt.Selector) or tag_and_attributes(node)[0] in _SHARED):
        return node.with_children(children)
    raise ValueError(f"portable: {type(node).__name__} '{name}' has no counterpart in BehaviorTree.CPP")


def _portable_action(node: bt.Action) -> bt.Node:
    name = node.name
    emit = bt.Action(name, node.action)
    if node.running_while is not None:
        end: bt.Node = bt.SuccessIsRunning(name, bt.Condition(name, *node.running_while))  # RUNNING or FAILURE
        if node.status == bt.SUCCESS:
            end = bt.Inverter(name, end)
        elif node.status == bt.RUNNING:
            end = bt.SuccessIsRunning(name, bt.Success(name))
    elif node.status == bt.SUCCESS:
        return emit
    else:
        end = bt.Failure(name) if node.status == bt.FAILURE else bt.SuccessIsRunning(name, bt.Success(name))
    return end if node.action == -1 else bt.Sequence(name, False, [emit, end])
