"""Behaviour trees as JSON, which a program writes and reads more easily than indented text.

::

    {"format": "core-behaviour-tree", "version": 1,
     "root": {"type": "Selector", "name": "stay upright", "memory": false, "children": [
        {"type": "Condition", "if": "obs[2] > 0.05", "child": {"type": "Action", "name": "right", "action": 1}},
        {"type": "SubTree", "name": "go", "id": "retreat", "ports": {"danger": "obs[0]", "go": 0}}]},
     "trees": [{"id": "retreat", "ports": ["danger", "go"], "root": {...}}]}

A node has ``type`` (a class of :mod:`core_agents`) and may have ``name`` (else its type). Besides: Sequence, Selector
``memory`` (else false) and ``children``; Parallel ``policy`` (``"all"``, ``"all, synchronise"``, ``"one"``) and
``children``; decorators ``child``; Repeat, Retry, Timeout ``count``; OneShot ``policy``; Condition ``if`` and perhaps
``child``; Action ``action`` (an id, ``null`` for none, or a name), and perhaps ``duration``, ``while``, ``then``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from . import behaviour_tree as bt
from .behaviour_tree import expressions
from .behaviour_tree.expressions import ExpressionError, suggest
from .behaviour_tree.subtrees import Argument
from .dsl import argument_text
from .forms import (
    COUNTED,
    MAX_CALLS,
    MAX_DEPTH,
    MAX_LENGTH,
    PARALLEL,
    PLAIN,
    POLICIES,
    STATUSES,
    ParseError,
    Scope,
)

FORMAT, VERSION = "core-behaviour-tree", 1
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:,]|[^\s{}\[\]:,"]+')
_COMPOSITES = {
    "Sequence": ("memory", "children"),
    "Selector": ("memory", "children"),
    "Parallel": ("policy", "children"),
}
_FIELDS = {
    **_COMPOSITES,
    **{kind: ("child",) for kind in PLAIN if kind != "not"},
    **dict.fromkeys(COUNTED, ("count", "child")),
    "OneShot": ("policy", "child"),
    "Condition": ("if", "child"),
    "Action": ("action", "duration", "while", "then"),
    "SubTree": ("id", "ports"),
}

_Path = tuple[str | int, ...]


def _where(text: str, path: _Path) -> tuple[int, int]:
    """Line and column, from 1, of the value at a path in a JSON text."""
    at: list[str | int] = []
    opened: list[str] = []
    key = True  # the next string in an object is a key
    for m in _TOKEN.finditer(text):
        token = m[0]
        if token in "}]":
            opened.pop()
            at.pop()
        elif token == ":":
            key = False
        elif token == ",":
            key = opened[-1] == "{"
            if not key:
                at[-1] += 1  # type: ignore[operator]
        elif opened and opened[-1] == "{" and key:
            at[-1] = json.loads(token)
        else:
            if tuple(at) == path:
                return text.count("\n", 0, m.start()) + 1, m.start() - text.rfind("\n", 0, m.start())
            if token in "{[":
                opened.append(token)
                at.append("" if token == "{" else 0)
                key = token == "{"
    return 1, 1


def _too_deep(text: str, most: int) -> int:
    """Where brackets nest deeper than ``most``, or -1."""
    depth = 0
    for m in _TOKEN.finditer(text):
        depth += (m[0] in "{[") - (m[0] in "}]")
        if depth > most:
            return m.start()
    return -1


class _Reader:
    def __init__(self, text: str, scope: Scope) -> None:
        self.text, self.scope = text, scope
        self.trees: dict[str, tuple[Mapping[str, Any], _Path]] = {}
        self.made: dict[str, bt.Definition] = {}
        self.open: list[str] = []

    def fail(self, path: _Path, message: str, hint: str) -> NoReturn:
        raise ParseError(message, *_where(self.text, path), hint)

    def take(self, of: Mapping[str, Any], path: _Path, key: str, kind: type, default: Any = None) -> Any:
        """A field of an object, which must be of a kind; ``default`` if it is absent."""
        said = {str: "a text", int: "an integer", bool: "true or false", list: "a list", dict: "an object"}[kind]
        if key not in of:
            if default is None:
                self.fail(path, f"field '{key}' is missing", f'add "{key}" with {said}')
            return default
        if type(of[key]) is not kind:
            self.fail((*path, key), f"'{key}' must be {said}, got {json.dumps(of[key])[:40]}", f"write {said}")
        return of[key]

    def definition(self, id_: str, path: _Path) -> bt.Definition:
        if id_ in self.made:
            return self.made[id_]
        if id_ not in self.trees:
            hint = suggest(id_, self.trees) if self.trees else 'add it to "trees"'
            self.fail(path, f"unknown sub-tree '{id_}'", hint)
        if id_ in self.open or len(self.open) >= MAX_CALLS:
            self.fail(path, f"sub-tree '{id_}' calls itself, or calls nest too deep", "let a Repeat do it again")
        tree, at = self.trees[id_]
        ports = self.take(tree, at, "ports", list, ())
        if not all(isinstance(p, str) and p for p in ports):
            self.fail((*at, "ports"), "ports must be names", "write a list of texts")
        self.open.append(id_)
        scope = Scope(self.scope.features, self.scope.actions, tuple(ports))
        body = self.node(self.take(tree, at, "root", dict), (*at, "root"), scope)
        self.open.pop()
        try:
            self.made[id_] = bt.Definition(id_, tuple(ports), body)
        except ValueError as e:
            self.fail(at, str(e), "name each port once, and give the two uses a port each")
        return self.made[id_]

    def node(self, of: Any, path: _Path, scope: Scope) -> bt.Node:
        if not isinstance(of, dict):
            self.fail(path, "a node must be an object", 'write {"type": "Action", "action": 0}')
        if sum(step in ("child", "children") for step in path) >= MAX_DEPTH:
            self.fail(path, f"the tree is deeper than {MAX_DEPTH} levels", "flatten it")
        kind = self.take(of, path, "type", str)
        if kind not in _FIELDS:
            self.fail((*path, "type"), f"unknown node '{kind}'", suggest(kind, _FIELDS))
        for key in of:
            if key not in ("type", "name", *_FIELDS[kind]):
                known = suggest(key, ("name", *_FIELDS[kind]))
                self.fail((*path, key), f"{kind} has no field '{key}'", known)
        name = self.take(of, path, "name", str, kind)
        if kind in _COMPOSITES:
            given = self.take(of, path, "children", list, ())
            children = [self.node(c, (*path, "children", i), scope) for i, c in enumerate(given)]
            if kind == "Parallel":
                return bt.Parallel(name, self._choice(of, path, "policy", PARALLEL), children)
            memory = self.take(of, path, "memory", bool, False)
            return (bt.Sequence if kind == "Sequence" else bt.Selector)(name, memory, children)
        child = self.node(of["child"], (*path, "child"), scope) if "child" in of else None
        if kind == "Condition":
            return bt.Condition(name, *self._condition(of, path, "if", scope), child)
        if kind == "Action":
            return self._action(of, path, name, scope)
        if kind == "SubTree":
            return self._call(of, path, name, scope)
        if child is None:
            self.fail(path, f"{kind} has no child", 'add "child" with a node')
        if kind in PLAIN:
            return PLAIN[kind](name, child)
        if kind == "OneShot":
            return bt.OneShot(name, child, self._choice(of, path, "policy", POLICIES))
        make, least = COUNTED[kind]
        count = self.take(of, path, "count", int)
        if count >= 1 << 31 or (count < least and not (kind == "Repeat" and count == -1)):
            self.fail((*path, "count"), f"{count} is no count", f"write a number from {least}")
        return make(name, child, count)

    def _choice(self, of: Mapping[str, Any], path: _Path, key: str, known: Mapping[str, Any]) -> Any:
        word = self.take(of, path, key, str)
        if word not in known:
            self.fail((*path, key), f"unknown {key} '{word}'", suggest(word, known))
        return known[word]

    def _condition(self, of: Mapping[str, Any], path: _Path, key: str, scope: Scope) -> expressions.Condition:
        source = self.take(of, path, key, str)
        try:
            parser = scope.parser(source)
            condition = parser.condition()
            if parser.peek():
                raise ExpressionError(f"unexpected '{parser.peek()}'", parser.position, "end the expression before it")
        except ExpressionError as e:
            self.fail((*path, key), f"at character {e.at + 1} of the expression: {e.message}", e.hint)
        return condition

    def _action(self, of: Mapping[str, Any], path: _Path, name: str, scope: Scope) -> bt.Node:
        action = self._id(of.get("action", ""), (*path, "action") if "action" in of else path, scope)
        duration = self.take(of, path, "duration", int, 0)
        if not 0 <= duration < 1 << 31 or (duration and "while" in of):
            self.fail((*path, "duration"), f"{duration} is no duration", "write ticks from 0, and not beside 'while'")
        running_while = self._condition(of, path, "while", scope) if "while" in of else None
        status = self._choice(of, path, "then", STATUSES) if "then" in of else bt.SUCCESS
        return bt.Action(name, action, status, duration, running_while)

    def _id(self, value: Any, path: _Path, scope: Scope) -> int | bt.Port:
        if value is None:
            return -1
        if type(value) is int and 0 <= value < 1 << 31:
            return value
        found = scope.action(value) if isinstance(value, str) else None
        if found is None:
            hint = "write an id from 0, null or one of " + ", ".join((*scope.actions, *scope.ports))
            self.fail(path, f"unknown action {json.dumps(value)[:40]}", hint.removesuffix(" or one of "))
        return found

    def _call(self, of: Mapping[str, Any], path: _Path, name: str, scope: Scope) -> bt.Node:
        definition = self.definition(self.take(of, path, "id", str), (*path, "id"))
        given: dict[str, Argument] = {}
        for port, value in self.take(of, path, "ports", dict, {}).items():
            at = (*path, "ports", port)
            if definition.kinds.get(port, "action" if value is None or type(value) is int else "value") == "action":
                given[port] = self._id(value, at, scope)
                continue
            if type(value) in (int, float):
                value = repr(float(value))
            try:
                given[port] = scope.argument(str(value), "value")
            except ExpressionError as e:
                self.fail(at, e.message, e.hint)
        try:
            return bt.SubTree(name, definition, tuple(given.items()))
        except ValueError as e:
            self.fail(path, str(e), f"give 'ports' {', '.join(definition.ports) or 'nothing'}")


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [k for k, _ in pairs]
        raise ValueError(f"a field '{next(k for k in keys if keys.count(k) > 1)}' stands twice in one object")
    return made


def from_json(
    text: str, features: Mapping[str, int] | np.dtype | None = None, actions: Mapping[str, int] | None = None
) -> bt.Node:
    """Parses a tree (form: the module's docstring); ``features`` and ``actions`` as for :func:`core_agents.from_dsl`.

    Raises :class:`core_agents.ParseError` with line, column and a hint how to repair the text.
    """
    if len(text) > MAX_LENGTH:
        raise ParseError(f"the text is longer than {MAX_LENGTH} characters", 1, 1, "split it into several trees")
    deep = _too_deep(text, 2 * MAX_DEPTH + 8)
    if deep >= 0:
        line, column = text.count("\n", 0, deep) + 1, deep - text.rfind("\n", 0, deep)
        raise ParseError(f"the tree is deeper than {MAX_DEPTH} levels", line, column, "flatten it")
    try:
        read = json.loads(text, parse_constant=_refuse, object_pairs_hook=_once)
    except json.JSONDecodeError as e:
        raise ParseError(e.msg, e.lineno, e.colno, "write valid JSON") from None
    except ValueError as e:
        raise ParseError(str(e)[:200], 1, 1, "write valid JSON with each field once") from None
    if isinstance(features, np.dtype):
        features = bt.feature_names(features)
    reader = _Reader(text, Scope(features or {}, actions or {}))
    if not isinstance(read, dict):
        reader.fail((), "this is no tree", 'write {"format": "core-behaviour-tree", "version": 1, "root": {...}}')
    if read.get("format") != FORMAT or read.get("version") != VERSION:
        reader.fail((), "this is another format", f'begin with "format": "{FORMAT}", "version": {VERSION}')
    for key in read:
        if key not in ("format", "version", "root", "trees"):
            reader.fail((key,), f"unknown field '{key}'", suggest(key, ("root", "trees")))
    for i, tree in enumerate(reader.take(read, (), "trees", list, ())):
        at: _Path = ("trees", i)
        if not isinstance(tree, dict) or not tree.keys() <= {"id", "ports", "root"}:
            reader.fail(at, "a sub-tree has id, ports and root", "write these three")
        id_ = reader.take(tree, at, "id", str)
        if id_ in reader.trees:
            reader.fail((*at, "id"), f"a second sub-tree '{id_}'", "give it another name")
        reader.trees[id_] = tree, at
    for id_, (_, at) in list(reader.trees.items()):
        reader.definition(id_, at)
    return reader.node(reader.take(read, (), "root", dict), ("root",), reader.scope)


def _object(node: bt.Node, children: list[dict[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {"type": type(node).__name__, "name": node.name}
    if isinstance(node, bt.Condition):
        made["if"] = expressions.condition_text(node.feature, node.op, node.threshold)
    elif isinstance(node, bt.Action):
        made["action"] = (
            node.action.name if isinstance(node.action, bt.Port) else None if node.action < 0 else node.action
        )
        made |= {"duration": node.duration} if node.duration else {}
        if node.running_while is not None:
            made["while"] = expressions.condition_text(*node.running_while)
        made |= {"then": node.status.name} if node.status != bt.SUCCESS else {}
    elif isinstance(node, bt.SubTree):
        made["id"] = node.definition.id
        ports = {p: (None if v < 0 else v) if isinstance(v, int) else argument_text(v) for p, v in node.arguments}
        made["ports"] = ports
    elif isinstance(node, bt.Sequence | bt.Selector):
        made |= {"memory": node.memory}
    elif isinstance(node, bt.Parallel):
        made["policy"] = next(word for word, policy in PARALLEL.items() if policy == node.policy)
    elif isinstance(node, bt.OneShot):
        made["policy"] = node.policy.name.lower()
    elif isinstance(node, bt.Repeat | bt.Retry | bt.Timeout):
        made["count"] = node._fields()["params"]
    if made["type"] in _COMPOSITES:
        made["children"] = children
    elif children:
        made["child"] = children[0]
    return made


def _tree(tree: bt.Node) -> dict[str, Any]:
    built: list[dict[str, Any]] = []
    for node, _ in reversed(list(bt.preorder(tree))):
        built.append(_object(node, [built.pop() for _ in node.children]))
    return built[0]


def to_json(tree: bt.Node, indent: int | None = 1) -> str:
    """The JSON of a tree and of the sub-trees that it calls; ``from_json(to_json(tree)) == tree``."""
    document = {"format": FORMAT, "version": VERSION, "root": _tree(tree)}
    trees = [{"id": d.id, "ports": list(d.ports), "root": _tree(d.body)} for d in bt.definitions(tree).values()]
    return json.dumps(document | ({"trees": trees} if trees else {}), indent=indent) + "\n"
