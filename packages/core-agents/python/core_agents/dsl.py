"""The text form of a behaviour tree: one node a line, indentation gives the children (as in PORTAL, arXiv 2503.13356).

::

    Selector: stay upright
        Condition: angle > 0.05 and (spin > 0 or not hurt)
            Action: right
        SubTree(retreat, danger=position, go=left)
        Sequence(memory): wait, then go left
            Wait: 3
            Action: left while velocity < 0 then FAILURE
    Tree(retreat, danger, go):
        Condition: abs(danger) > 2
            Action: go

Composites: ``Sequence``, ``Selector``, ``Parallel(all)``, ``Parallel(all, synchronise)``, ``Parallel(one)``; the first
two take ``(memory)``. Decorators: py_trees' names, ``ForceSuccess``, ``ForceFailure``, ``Repeat(3)``, ``Retry(3)``,
``Timeout(5)``, ``OneShot(on_completion)``, ``OneShot(on_successful_completion)``; ``not`` is ``Inverter``. After the
colon comes the name. Leaves: ``Condition: EXPRESSION`` (with one indented child it is a guard),
``Action: ID [for TICKS | while EXPRESSION] [then STATUS]`` and ``Wait: TICKS``, each optionally followed by a name in
double quotes. An expression (:mod:`core_agents.behaviour_tree.expressions`) reads ``obs[3]`` or names from
``features``; ID is a number, ``none`` or a name from ``actions``. ``Tree(NAME, PORTS)`` with one indented child, beside
the root, defines a sub-tree, which ``SubTree(NAME, PORT=VALUE)`` calls: VALUE is a feature, a number, a port of the
caller or an action. Lines that begin with ``#`` are comments.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from . import behaviour_tree as bt
from .behaviour_tree import expressions
from .behaviour_tree.expressions import RESERVED, ExpressionError, suggest
from .behaviour_tree.subtrees import NAME, Argument
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
    action_hint,
    integer,
)

_HEAD = re.compile(r"([A-Za-z_]\w*)[ ]*(?:\(([^()]*)\))?[ ]*(:?)[ ]*")


@dataclass
class _Line:
    number: int
    text: str
    indent: int
    kind: str = ""
    argument: str = ""
    argument_at: int = 0
    body_at: int = 0
    children: list[_Line] = field(default_factory=list)

    def error(self, at: int, message: str, hint: str) -> ParseError:
        return ParseError(message, self.number, at + 1, hint)


_COMPOSITES = ("Sequence", "Selector", "Parallel")
_KINDS = (*_COMPOSITES, "Condition", "Action", "Wait", *PLAIN, *COUNTED, "OneShot", "SubTree", "Tree")
_FOREIGN = {
    "Fallback": "write 'Selector(memory)'",
    "ReactiveFallback": "write 'Selector'",
    "ReactiveSequence": "write 'Sequence'",
    "SequenceWithMemory": "write 'Sequence(memory)'",
    "RetryUntilSuccessful": "write 'Retry(NUMBER)'",
    "Task": "write 'Action'",
    "Guard": "write 'Condition: EXPRESSION' with one indented child",
}


def _tail(parser: expressions.Parser, default: str) -> str:
    """The name at the end of a leaf's line."""
    name = default
    if parser.peek().startswith('"'):
        name = parser.take("a name", "")
        at = parser.tokens[parser.at - 1][2]
        try:
            name = str(json.loads(name))
        except json.JSONDecodeError as e:
            raise ExpressionError(
                "this is not a JSON string", at + e.pos, "escape backslashes and quotes with a backslash"
            ) from None
    if parser.peek():
        hint = "end the line here, or put the name in double quotes"
        if parser.tokens[parser.at][0] in ("number", "obs"):
            hint = "put a comparison (use one of < <= > >= == !=), 'and' or 'or' before it"
        raise ExpressionError(f"unexpected '{parser.peek()}'", parser.position, hint)
    return name


def _ticks(parser: expressions.Parser, behind: str) -> int:
    hint = f"write a number behind '{behind}'"
    text = parser.take("a number of ticks", hint)
    ticks = integer(text)
    if ticks is None:
        raise parser.fail(f"'{text}' is no number of ticks", "write an integer from 0")
    return ticks


def _wait(source: str, at: int) -> bt.Node:
    parser = expressions.Parser(source, at, lambda _: None)
    ticks = _ticks(parser, "Wait:")
    return bt.Wait(_tail(parser, action_text(bt.Wait("", ticks))), ticks)


def _action(source: str, at: int, scope: Scope) -> bt.Node:
    parser = scope.parser(source, at)
    word = parser.take("an action", "write a number, 'none' or an action's name")
    action = scope.action(word)
    if action is None:
        if word == "-":
            word += parser.peek()
        raise parser.fail(f"unknown action '{word}'", action_hint(word, scope.actions))
    duration, status, running_while = 0, bt.SUCCESS, None
    if parser.peek() == "for":
        parser.take("", "")
        duration = _ticks(parser, "for")
    elif parser.peek() == "while":
        parser.take("", "")
        running_while = parser.condition()
    if parser.peek() == "then":
        parser.take("", "")
        word = parser.take("a status", "write SUCCESS, FAILURE or RUNNING behind 'then'")
        if word not in STATUSES:
            raise parser.fail(f"'{word}' is no status", suggest(word, STATUSES))
        status = STATUSES[word]
    node = bt.Action("", action, status, duration, running_while)
    return bt.Action(_tail(parser, action_text(node)), action, status, duration, running_while)


def _condition(source: str, at: int, scope: Scope, child: bt.Node | None) -> bt.Node:
    parser = scope.parser(source, at)
    condition = parser.condition()
    return bt.Condition(_tail(parser, expressions.condition_text(*condition)), *condition, child)


class _Reader:
    """Turns lines into nodes; sub-trees are read when they are called first."""

    def __init__(self, scope: Scope, trees: list[_Line]) -> None:
        self.scope = scope
        self.trees: dict[str, tuple[_Line, tuple[str, ...]]] = {}
        self.made: dict[str, bt.Definition] = {}
        self.open: list[str] = []
        for line in trees:
            words = [w.strip() for w in line.argument.split(",")]
            for word in words:
                if not NAME.fullmatch(word) or word in RESERVED or words.count(word) > 1:
                    raise line.error(
                        line.argument_at,
                        f"'{word}' cannot name a sub-tree or a port" if words.count(word) < 2 else f"'{word}' twice",
                        "write Tree(NAME, PORT, PORT): with different names of letters, digits and _",
                    )
            if words[0] in self.trees:
                raise line.error(line.argument_at, f"a second Tree '{words[0]}'", "give it another name")
            self.trees[words[0]] = line, tuple(words[1:])

    def definition(self, id_: str, caller: _Line) -> bt.Definition:
        if id_ in self.made:
            return self.made[id_]
        if id_ not in self.trees:
            hint = suggest(id_, self.trees) if self.trees else f"add 'Tree({id_}):' below the root"
            raise caller.error(caller.argument_at, f"unknown sub-tree '{id_}'", hint)
        if id_ in self.open:
            raise caller.error(caller.argument_at, f"sub-tree '{id_}' calls itself", "let a Repeat do it again")
        if len(self.open) >= MAX_CALLS:
            raise caller.error(caller.argument_at, f"sub-trees nest deeper than {MAX_CALLS} calls", "flatten them")
        line, ports = self.trees[id_]
        self.open.append(id_)
        self._one_child(line, "Tree")
        body = self.node(line.children[0], Scope(self.scope.features, self.scope.actions, ports))
        self.open.pop()
        try:
            self.made[id_] = bt.Definition(id_, ports, body)
        except ValueError as e:
            hint = "give the two uses a port each"
            raise line.error(line.argument_at, str(e).removeprefix("Definition: "), hint) from None
        return self.made[id_]

    def node(self, root: _Line, scope: Scope) -> bt.Node:
        order, pending = [], [root]
        while pending:
            order.append(pending.pop())
            pending.extend(order[-1].children)
        built: dict[int, bt.Node] = {}
        for line in reversed(order):
            children = [built.pop(id(c)) for c in line.children]
            try:
                built[id(line)] = self._finish(line, children, scope)
            except ExpressionError as e:
                raise line.error(e.at, e.message, e.hint) from None
        return built[id(root)]

    def _one_child(self, line: _Line, kind: str) -> None:
        count = len(line.children)
        if count != 1:
            hint = "give it one child: put a Sequence or Selector between" if count else "indent one node below it"
            raise line.error(line.indent, f"{kind} has {count} children", hint)

    def _finish(self, line: _Line, children: list[bt.Node], scope: Scope) -> bt.Node:
        kind = line.kind
        if line.argument and kind in ("Condition", "Action", "Wait", *PLAIN):
            raise line.error(line.argument_at, f"{kind} takes no argument", f"write '{kind}:'")
        if kind in ("Action", "Wait", "SubTree") and children:
            article = "an" if kind == "Action" else "a"
            raise line.error(
                line.indent, f"{article} {kind} has no children", "put it into a Sequence together with them"
            )
        if kind == "Condition":
            if len(children) > 1:
                self._one_child(line, kind)
            return _condition(line.text, line.body_at, scope, children[0] if children else None)
        if kind == "Action":
            return _action(line.text, line.body_at, scope)
        if kind == "Wait":
            return _wait(line.text, line.body_at)
        name = line.text[line.body_at :].strip() or ("Inverter" if kind == "not" else kind)
        if name.startswith('"'):
            name = _tail(expressions.Parser(line.text, line.body_at, lambda _: None), "")
        if kind == "SubTree":
            return self._call(line, name, scope)
        return _composite(line, name, children) if kind in _COMPOSITES else self._decorator(line, name, children)

    def _decorator(self, line: _Line, name: str, children: list[bt.Node]) -> bt.Node:
        self._one_child(line, line.kind)
        if line.kind in PLAIN:
            return PLAIN[line.kind](name, children[0])
        if line.kind == "OneShot":
            if line.argument not in POLICIES:
                hint = suggest(line.argument, POLICIES)
                raise line.error(line.argument_at, f"unknown policy '{line.argument}'", hint)
            return bt.OneShot(name, children[0], POLICIES[line.argument])
        make, least = COUNTED[line.kind]
        count = integer(line.argument)
        if count is None or (count < least and not (line.kind == "Repeat" and count == -1)):
            raise line.error(
                line.argument_at,
                f"'{line.argument}' is no count",
                f"write {line.kind}(NUMBER) with a number from {least}",
            )
        return make(name, children[0], count)

    def _call(self, line: _Line, name: str, scope: Scope) -> bt.Node:
        definition = self.definition(line.argument.split(",")[0].strip(), line)
        given: dict[str, Argument] = {}
        at = line.argument_at
        for i, part in enumerate(line.argument.split(",")):
            port, equals, value = (s.strip() for s in part.partition("="))
            if i and (not equals or port not in definition.ports or port in given):
                wanted = ", ".join(f"{p}=VALUE" for p in (definition.id, *definition.ports))
                hint = f"write SubTree({wanted.replace('=VALUE', '', 1)})"
                raise line.error(at + len(part) - len(part.lstrip()), f"'{part.strip()}' gives no port", hint)
            if i:
                try:
                    given[port] = scope.argument(value, definition.kinds.get(port))
                except ExpressionError as e:
                    value_at = at + part.index("=") + 1
                    value_at += len(line.text[value_at:]) - len(line.text[value_at:].lstrip())
                    raise line.error(value_at + e.at, e.message, e.hint) from None
            at += len(part) + 1
        missing = [p for p in definition.ports if p not in given]
        if missing:
            hint = f"add {', '.join(p + '=VALUE' for p in missing)}"
            raise line.error(line.argument_at, f"port '{missing[0]}' of '{definition.id}' is missing", hint)
        return bt.SubTree(name, definition, tuple(given.items()))


def _composite(line: _Line, name: str, children: list[bt.Node]) -> bt.Node:
    words = ", ".join(w.strip() for w in line.argument.split(",")) if line.argument else ""
    if line.kind == "Parallel":
        if words not in PARALLEL:
            hint = "write Parallel(all), Parallel(all, synchronise) or Parallel(one)"
            raise line.error(line.argument_at, f"unknown policy '{line.argument}'", hint)
        return bt.Parallel(name, PARALLEL[words], children)
    if words not in ("", "memory"):
        hint = f"write {line.kind} or {line.kind}(memory)"
        raise line.error(line.argument_at, f"unknown argument '{line.argument}'", hint)
    return (bt.Sequence if line.kind == "Sequence" else bt.Selector)(name, bool(words), children)


def _head(line: _Line) -> None:
    m = _HEAD.match(line.text, line.indent)
    if m is None:
        raise line.error(
            line.indent,
            f"unexpected character {line.text[line.indent]!r}",
            "a line begins with the kind of a node, such as Sequence",
        )
    if m[1] not in _KINDS:
        raise line.error(line.indent, f"unknown node '{m[1]}'", _FOREIGN.get(m[1]) or suggest(m[1], _KINDS))
    if not m[3] and m.end() < len(line.text):
        raise line.error(m.end(), f"expected ':' behind '{m[1]}'", f"write '{m[1]}: ...'")
    line.kind, line.argument, line.body_at = m[1], (m[2] or "").strip(), m.end()
    line.argument_at = m.end(1)
    if m[2] is not None:
        line.argument_at = m.start(2) + len(m[2]) - len(m[2].lstrip())


def _structure(text: str) -> tuple[_Line | None, list[_Line], int]:
    """The root's line, those of the sub-trees' definitions, and how many lines there are."""
    open_: list[_Line] = []
    root: _Line | None = None
    trees: list[_Line] = []
    number = 0
    for number, raw in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        content = raw.rstrip()
        indent = len(content) - len(content.lstrip(" "))
        if not content or content[indent:].startswith("#"):
            continue
        line = _Line(number, content, indent)
        if content[indent] == "\t":
            raise line.error(indent, "a tab in the indentation", "indent with spaces")
        _head(line)
        levels = [o.indent for o in open_]
        while open_ and open_[-1].indent >= indent:
            open_.pop()
        if levels and indent < levels[-1] and indent not in levels:
            raise line.error(
                indent, "this indentation fits no line above", f"use one of {', '.join(map(str, levels))} spaces"
            )
        if line.kind == "Tree" and open_:
            raise line.error(indent, "a Tree inside a tree", "define it beside the root, and call it by SubTree(NAME)")
        if len(open_) >= MAX_DEPTH:
            raise line.error(indent, f"the tree is deeper than {MAX_DEPTH} levels", "flatten it")
        if open_:
            open_[-1].children.append(line)
        elif line.kind == "Tree":
            trees.append(line)
        elif root is None:
            root = line
        else:
            raise line.error(indent, "a second root", "indent this line below the first, or put both below a Selector")
        open_.append(line)
    return root, trees, max(number, 1)


def from_dsl(
    text: str, features: Mapping[str, int] | np.dtype | None = None, actions: Mapping[str, int] | None = None
) -> bt.Node:
    """Parses the text of one tree and its sub-trees (grammar: the module's docstring).

    ``features`` and ``actions`` name columns of the observations and action ids; ``features`` may be the dtype of
    structured observations. Raises :class:`ParseError` with line, column and a hint how to repair the text.
    """
    if len(text) > MAX_LENGTH:
        raise ParseError(f"the text is longer than {MAX_LENGTH} characters", 1, 1, "split it into several trees")
    if isinstance(features, np.dtype):
        features = bt.feature_names(features)
    root, trees, last = _structure(text)
    if root is None:
        raise ParseError("there is no node", last, 1, "begin with a root, such as 'Selector: root'")
    reader = _Reader(Scope(features or {}, actions or {}), trees)
    for id_, (line, _) in reader.trees.items():
        reader.definition(id_, line)
    return reader.node(root, reader.scope)


def action_text(node: bt.Action) -> str:
    """What an action's line says behind its kind, without the name."""
    action = node.action.name if isinstance(node.action, bt.Port) else "none" if node.action < 0 else str(node.action)
    if node.duration:
        action += f" for {node.duration}"
    if node.running_while is not None:
        action += f" while {expressions.condition_text(*node.running_while)}"
    return action if node.status == bt.SUCCESS else f"{action} then {node.status.name}"


def argument_text(value: Argument) -> str:
    """A port's value as it is written in a call."""
    if isinstance(value, int):
        return "none" if value < 0 else str(value)
    return expressions.text(value)


def _text(node: bt.Node) -> str:
    if isinstance(node, bt.Condition | bt.Action):
        kind = type(node).__name__
        if isinstance(node, bt.Condition):
            body = said = expressions.condition_text(node.feature, node.op, node.threshold)
        else:
            body = said = action_text(node)
            if node == bt.Wait(node.name, node.duration) and node.duration:
                kind, said = "Wait", str(node.duration)
        return f"{kind}: {said}" + ("" if node.name == body else " " + json.dumps(node.name))
    kind, argument = type(node).__name__, ""
    if isinstance(node, bt.Sequence | bt.Selector):
        argument = "(memory)" if node.memory else ""
    elif isinstance(node, bt.Parallel):
        argument = f"({next(word for word, policy in PARALLEL.items() if policy == node.policy)})"
    elif isinstance(node, bt.Repeat | bt.Retry | bt.Timeout):
        argument = f"({node._fields()['params']})"
    elif isinstance(node, bt.OneShot):
        argument = f"({node.policy.name.lower()})"
    elif isinstance(node, bt.SubTree):
        given = (f"{port}={argument_text(value)}" for port, value in node.arguments)
        argument = f"({', '.join((node.definition.id, *given))})"
    plain = node.name.isprintable() and node.name == node.name.strip() and node.name and not node.name.startswith('"')
    return f"{kind}{argument}: {node.name if plain else json.dumps(node.name)}"


def lines(tree: bt.Node) -> Iterator[tuple[int, str]]:
    """Depth and line of each node of a tree, in pre-order."""
    return ((depth, _text(node)) for node, depth in bt.preorder(tree))


def to_dsl(tree: bt.Node) -> str:
    """The text of a tree and of the sub-trees that it calls; ``from_dsl(to_dsl(tree)) == tree``."""
    written = ["    " * depth + line for depth, line in lines(tree)]
    for id_, definition in bt.definitions(tree).items():
        written.append(f"Tree({', '.join((id_, *definition.ports))}):")
        written.extend("    " * (depth + 1) + line for depth, line in lines(definition.body))
    return "\n".join(written) + "\n"
