"""Sub-trees with ports: a tree that is written once and called with other features, numbers and actions."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from . import expressions
from .expressions import Constant, Expression, Feature, Port
from .nodes import Action, Condition, Node

MAX_NODES = 1 << 17
"""Trees that grow larger when their sub-trees are put in are refused."""

NAME = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")
"""What can name a sub-tree or a port."""

Argument = Feature | Constant | Port | int
"""What a port is given: a feature, a number, a port of the caller, or (a plain int) an action id."""


def preorder(tree: Node) -> Iterator[tuple[Node, int]]:
    """The nodes of a tree in pre-order, each with its depth; a sub-tree's call is a leaf."""
    stack = [(tree, 0)]
    while stack:
        node, depth = stack.pop()
        yield node, depth
        stack.extend((c, depth + 1) for c in reversed(node.children))


def used_ports(tree: Node) -> dict[str, str]:
    """The ports that a tree uses and what for: ``"value"`` in a condition, ``"action"`` as an action's id.

    Raises ValueError for a port that is used for both.
    """
    found: dict[str, str] = {}

    def use(name: str, kind: str) -> None:
        if found.setdefault(name, kind) != kind:
            raise ValueError(f"port '{name}' is used as a value and as an action")

    for node, _ in preorder(tree):
        compared = node.feature if isinstance(node, Condition) else None
        if isinstance(node, Action):
            if isinstance(node.action, Port):
                use(node.action.name, "action")
            compared = node.running_while[0] if node.running_while is not None else None
        if compared is not None and not isinstance(compared, int):
            for name in expressions.ports(compared):
                use(name, "value")
        if isinstance(node, SubTree):
            for port, value in node.arguments:
                if isinstance(value, Port):
                    kind = node.definition.kinds.get(port)
                    if kind is not None:
                        use(value.name, kind)
                    else:
                        found.setdefault(value.name, "value")
    return found


@dataclass(frozen=True)
class Definition:
    """A sub-tree's ``body`` under the name ``id``; ``ports`` are its parameters. Raises ValueError for other ports."""

    id: str
    ports: tuple[str, ...]
    body: Node
    kinds: Mapping[str, str] = field(init=False, compare=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ports", tuple(self.ports))
        for word in (self.id, *self.ports):
            if not NAME.fullmatch(word) or word in expressions.RESERVED:
                raise ValueError(f"Definition: '{word}' cannot name a sub-tree or a port: use letters, digits and _")
        object.__setattr__(self, "kinds", used_ports(self.body))
        unknown = sorted(self.kinds.keys() - set(self.ports))
        if unknown or len(set(self.ports)) != len(self.ports):
            raise ValueError(
                f"Definition {self.id!r}: argument 'ports' must name each port of the body once, got "
                f"({', '.join(self.ports)})" + (f" without {', '.join(unknown)}" if unknown else "")
            )


@dataclass(frozen=True)
class SubTree(Node):
    """Calls a sub-tree: stands for the definition's body with ``arguments`` in place of its ports.

    ``arguments`` gives every port of the definition a feature, a number or a port of the caller (or the id of an
    action where the body uses it as one). Raises ValueError if it does not.
    """

    definition: Definition
    arguments: tuple[tuple[str, Argument], ...] = ()

    def __post_init__(self) -> None:
        given = dict(self.arguments)
        where = f"SubTree {self.name!r}"
        if set(given) != set(self.definition.ports):
            raise ValueError(
                f"{where}: argument 'arguments' must give ({', '.join(self.definition.ports)}) of "
                f"'{self.definition.id}', got ({', '.join(given)})"
            )
        object.__setattr__(self, "arguments", tuple((port, given[port]) for port in self.definition.ports))
        for port, value in self.arguments:
            kind = self.definition.kinds.get(port, "action" if isinstance(value, int) else "value")
            if not isinstance(value, Port) and (kind == "action") != isinstance(value, int):
                wanted = "the id of an action" if kind == "action" else "a feature or a number"
                raise ValueError(f"{where}: port '{port}' must be given {wanted}, got {value!r}")


def definitions(tree: Node) -> dict[str, Definition]:
    """The definitions that a tree calls, also those that they call, by id in the order of their first call.

    Raises ValueError if two different ones have the same id.
    """
    found: dict[str, Definition] = {}
    pending = [tree]
    for at in pending:
        for node, _ in preorder(at):
            if isinstance(node, SubTree):
                known = found.get(node.definition.id)
                if known is None:
                    found[node.definition.id] = node.definition
                    pending.append(node.definition.body)
                elif known is not node.definition and known != node.definition:
                    raise ValueError(f"two different sub-trees have the id '{known.id}'")
    return found


def _bound(node: Node, values: Mapping[str, Argument]) -> Node:
    def value(condition: expressions.Condition) -> expressions.Condition:
        feature, op, threshold = condition
        if isinstance(feature, int):
            return condition
        bound = expressions.bind(feature, values)  # type: ignore[arg-type]
        return expressions.condition(bound, op, threshold)

    if not values:
        return node
    if isinstance(node, Condition) and not isinstance(node.feature, int):
        feature, op, threshold = value((node.feature, node.op, node.threshold))
        return dataclasses.replace(node, feature=feature, op=op, threshold=threshold)
    if isinstance(node, Action):
        action = values[node.action.name] if isinstance(node.action, Port) else node.action
        running = value(node.running_while) if node.running_while is not None else None
        return dataclasses.replace(node, action=action, running_while=running)  # type: ignore[arg-type]
    return node


def expand(tree: Node) -> Node:
    """The tree with its sub-trees in place of their calls, whose names they lose.

    Raises ValueError if it would have more than :data:`MAX_NODES` nodes.
    """
    if not any(isinstance(node, SubTree) for node, _ in preorder(tree)):
        return tree
    flat: list[tuple[Node, int]] = []  # with the number of children
    stack: list[tuple[Node, Mapping[str, Argument]]] = [(tree, {})]
    while stack:
        node, values = stack.pop()
        while isinstance(node, SubTree):
            values = {p: values[v.name] if isinstance(v, Port) else v for p, v in node.arguments}
            node = node.definition.body
        flat.append((_bound(node, values), len(node.children)))
        if len(flat) > MAX_NODES:
            raise ValueError(f"expand: the sub-trees make a tree of more than {MAX_NODES} nodes")
        stack.extend((c, values) for c in reversed(node.children))
    built: list[Node] = []
    for node, count in reversed(flat):
        children = [built.pop() for _ in range(count)]
        built.append(node.with_children(children))
    return built[0]


__all__ = ["MAX_NODES", "NAME", "Argument", "Definition", "Expression", "SubTree", "definitions", "expand", "preorder"]
