"""The text form of a behaviour tree: one node a line, indentation gives the children (as in PORTAL, arXiv 2503.13356).

::

    Selector: stay upright
        Condition: angle > 0.05
            Action: right
        Sequence(memory): wait, then go left
            Action: none for 3
            Action: left while velocity < 0 then FAILURE

Composites: ``Sequence``, ``Selector``, ``Parallel(all)``, ``Parallel(all, synchronise)``, ``Parallel(one)``; the first
two take ``(memory)``. Decorators: py_trees' names, ``Repeat(3)``, ``Retry(3)``, ``Timeout(5)``,
``OneShot(on_completion)``, ``OneShot(on_successful_completion)``; ``not`` is ``Inverter``. After the colon comes the
name. Leaves: ``Condition: FEATURE OP NUMBER`` (with one indented child it is a guard) and
``Action: ID [for TICKS | while FEATURE OP NUMBER] [then STATUS]``, each optionally followed by a name in double quotes.
FEATURE is ``obs[3]`` or a name from ``features``, ID a number, ``none`` or a name from ``actions``. Lines that begin
with ``#`` are comments.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from . import behaviour_tree as bt

_MAX_DEPTH = 256
_HEAD = re.compile(r"([A-Za-z_]\w*)[ ]*(?:\(([^()]*)\))?[ ]*(:?)[ ]*")
_TOKEN = re.compile(r'[ ]*(?:("(?:[^"\\]|\\.)*")|(<=|>=|==|!=|<|>)|(obs\[\d{1,9}\])|([^\s"<>=!]+))')


class ParseError(ValueError):
    """A text that is no tree. ``line`` and ``column`` count from 1; ``hint`` says how to repair it."""

    def __init__(self, message: str, line: int, column: int, hint: str) -> None:
        super().__init__(f"line {line}, column {column}: {message}; {hint}")
        self.line, self.column, self.hint = line, column, hint


@dataclass
class _Line:
    number: int
    text: str
    indent: int
    kind: str = ""
    argument: str = ""
    argument_at: int = 0
    body_at: int = 0
    children: list[bt.Node] = field(default_factory=list)

    def error(self, at: int, message: str, hint: str) -> ParseError:
        return ParseError(message, self.number, at + 1, hint)


_COMPOSITES = ("Sequence", "Selector", "Parallel")
_PLAIN: dict[str, Callable[[str, bt.Node], bt.Node]] = {
    c.__name__: c
    for c in (
        bt.Inverter,
        bt.FailureIsRunning,
        bt.FailureIsSuccess,
        bt.RunningIsFailure,
        bt.RunningIsSuccess,
        bt.SuccessIsFailure,
        bt.SuccessIsRunning,
    )
}
_COUNTED: dict[str, tuple[Callable[[str, bt.Node, int], bt.Node], int]] = {
    "Repeat": (bt.Repeat, 1),
    "Retry": (bt.Retry, 1),
    "Timeout": (bt.Timeout, 0),
}
_KINDS = (*_COMPOSITES, "Condition", "Action", "not", *_PLAIN, *_COUNTED, "OneShot")
_POLICIES = {p.name.lower(): p for p in bt.OneShotPolicy}
_STATUSES = {s.name: s for s in (bt.SUCCESS, bt.FAILURE, bt.RUNNING)}


def _suggest(word: str, known: object) -> str:
    names = [str(k) for k in known]  # type: ignore[attr-defined]
    close = difflib.get_close_matches(word, names, 1, 0.5)
    return f"did you mean '{close[0]}'?" if close else "use one of " + ", ".join(names)


class _Tokens:
    def __init__(self, line: _Line) -> None:
        self.line = line
        self.found: list[tuple[str, int]] = []
        at = line.body_at
        while line.text[at:].strip():
            m = _TOKEN.match(line.text, at)
            if m is None:
                skip = at + len(line.text[at:]) - len(line.text[at:].lstrip())
                raise line.error(
                    skip,
                    f"unexpected character {line.text[skip]!r}",
                    "names go in double quotes, comparisons are < <= > >= == !=",
                )
            self.found.append((m[m.lastindex or 0], m.start(m.lastindex or 0)))
            at = m.end()
        self.at = 0

    @property
    def column(self) -> int:
        return self.found[self.at][1] if self.at < len(self.found) else len(self.line.text)

    def peek(self) -> str:
        return self.found[self.at][0] if self.at < len(self.found) else ""

    def take(self, what: str, hint: str) -> str:
        if self.at == len(self.found):
            raise self.line.error(self.column, f"{what} is missing", hint)
        self.at += 1
        return self.found[self.at - 1][0]

    def fail(self, message: str, hint: str) -> ParseError:
        return self.line.error(self.found[self.at - 1][1], message, hint)

    def name(self, default: str) -> str:
        if self.peek().startswith('"'):
            default = _quoted(self.line, self.take("a name", ""), self.found[self.at - 1][1])
        if self.at < len(self.found):
            raise self.line.error(
                self.column, f"unexpected '{self.peek()}'", "end the line here, or put the name in double quotes"
            )
        return default


def _quoted(line: _Line, text: str, at: int) -> str:
    try:
        return str(json.loads(text))
    except json.JSONDecodeError as e:
        raise line.error(
            at + e.pos, "this is not a JSON string", "escape backslashes and quotes with a backslash"
        ) from None


def _condition(tokens: _Tokens, features: Mapping[str, int]) -> tuple[int, str, float]:
    word = tokens.take("a feature", "write FEATURE OP NUMBER, such as obs[2] > 0.05")
    if word in features:
        feature = features[word]
    elif word.startswith("obs[") and word.endswith("]") and word[4:-1].isdecimal():
        feature = int(word[4:-1])
    else:
        raise tokens.fail(f"unknown feature '{word}'", _suggest(word, features) if features else "write obs[NUMBER]")
    op = tokens.take("a comparison", "use one of " + " ".join(bt.COMPARISONS))
    if op not in bt.COMPARISONS:
        raise tokens.fail(f"'{op}' is no comparison", "use one of " + " ".join(bt.COMPARISONS))
    number = tokens.take("a threshold", "write a number behind the comparison")
    try:
        threshold = float(number)
    except ValueError:
        threshold = math.nan
    if math.isnan(threshold):
        raise tokens.fail(f"'{number}' is no number", "write a number such as 0.5 or -1e3")
    return feature, op, threshold


def _integer(text: str) -> int | None:
    return int(text) if re.fullmatch(r"-?\d{1,9}", text) else None


def _action(line: _Line, features: Mapping[str, int], actions: Mapping[str, int]) -> bt.Node:
    tokens = _Tokens(line)
    word = tokens.take("an action", "write a number, 'none' or an action's name")
    number = _integer(word)
    if word in actions:
        action = actions[word]
    elif word == "none":
        action = -1
    elif number is not None and number >= 0:
        action = number
    else:
        raise tokens.fail(
            f"unknown action '{word}'", _suggest(word, ("none", *actions)) if actions else "write a number or 'none'"
        )
    duration, status, running_while = 0, bt.SUCCESS, None
    if tokens.peek() == "for":
        tokens.take("for", "")
        ticks = tokens.take("a number of ticks", "write a number behind 'for'")
        duration = _integer(ticks) if _integer(ticks) is not None else -1  # type: ignore[assignment]
        if duration < 0:
            raise tokens.fail(f"'{ticks}' is no number of ticks", "write an integer from 0")
    elif tokens.peek() == "while":
        tokens.take("while", "")
        running_while = _condition(tokens, features)
    if tokens.peek() == "then":
        tokens.take("then", "")
        word = tokens.take("a status", "write SUCCESS, FAILURE or RUNNING behind 'then'")
        if word not in _STATUSES:
            raise tokens.fail(f"'{word}' is no status", _suggest(word, _STATUSES))
        status = _STATUSES[word]
    node = bt.Action("", action, status, duration, running_while)
    return bt.Action(tokens.name(_action_text(node)), action, status, duration, running_while)


def _composite(line: _Line, name: str) -> bt.Node:
    words = [w.strip() for w in line.argument.split(",")] if line.argument else []
    if line.kind == "Parallel":
        if words == ["one"]:
            return bt.Parallel(name, bt.ParallelPolicy.SuccessOnOne(), line.children)
        if words in (["all"], ["all", "synchronise"]):
            return bt.Parallel(name, bt.ParallelPolicy.SuccessOnAll(len(words) == 2), line.children)
        raise line.error(
            line.argument_at,
            f"unknown policy '{line.argument}'",
            "write Parallel(all), Parallel(all, synchronise) or Parallel(one)",
        )
    if words not in ([], ["memory"]):
        raise line.error(
            line.argument_at, f"unknown argument '{line.argument}'", f"write {line.kind} or {line.kind}(memory)"
        )
    return (bt.Sequence if line.kind == "Sequence" else bt.Selector)(name, bool(words), line.children)


def _decorator(line: _Line, name: str) -> bt.Node:
    if len(line.children) != 1:
        raise line.error(
            line.indent,
            f"{line.kind} has {len(line.children)} children",
            "indent one node below it"
            if not line.children
            else "give it one child: put a Sequence or Selector between",
        )
    child = line.children[0]
    if line.kind in _COUNTED:
        make, least = _COUNTED[line.kind]
        count = _integer(line.argument)
        if count is None or (count < least and not (line.kind == "Repeat" and count == -1)):
            raise line.error(
                line.argument_at,
                f"'{line.argument}' is no count",
                f"write {line.kind}(NUMBER) with a number from {least}",
            )
        return make(name, child, count)
    if line.kind == "OneShot":
        if line.argument not in _POLICIES:
            raise line.error(line.argument_at, f"unknown policy '{line.argument}'", _suggest(line.argument, _POLICIES))
        return bt.OneShot(name, child, _POLICIES[line.argument])
    return _PLAIN["Inverter" if line.kind == "not" else line.kind](name, child)


def _finish(line: _Line, features: Mapping[str, int], actions: Mapping[str, int]) -> bt.Node:
    if line.argument and line.kind in ("Condition", "Action", "not", *_PLAIN):
        raise line.error(line.argument_at, f"{line.kind} takes no argument", f"write '{line.kind}:'")
    if line.kind == "Condition":
        tokens = _Tokens(line)
        condition = _condition(tokens, features)
        if len(line.children) > 1:
            raise line.error(
                line.indent,
                f"Condition has {len(line.children)} children",
                "give it one child: put a Sequence or Selector between",
            )
        child = line.children[0] if line.children else None
        return bt.Condition(tokens.name(_condition_text(condition)), *condition, child)
    if line.kind == "Action":
        if line.children:
            raise line.error(line.indent, "an Action has no children", "put it into a Sequence together with them")
        return _action(line, features, actions)
    name = line.text[line.body_at :].strip()
    if name.startswith('"'):
        name = _quoted(line, name, line.body_at)
    elif not name:
        name = "Inverter" if line.kind == "not" else line.kind
    return (_composite if line.kind in _COMPOSITES else _decorator)(line, name)


def _head(line: _Line) -> None:
    m = _HEAD.match(line.text, line.indent)
    if m is None:
        raise line.error(
            line.indent,
            f"unexpected character {line.text[line.indent]!r}",
            "a line begins with the kind of a node, such as Sequence",
        )
    if m[1] not in _KINDS:
        raise line.error(line.indent, f"unknown node '{m[1]}'", _suggest(m[1], _KINDS))
    if not m[3] and m.end() < len(line.text):
        raise line.error(m.end(), f"expected ':' behind '{m[1]}'", f"write '{m[1]}: ...'")
    line.kind, line.argument, line.body_at = m[1], (m[2] or "").strip(), m.end()
    line.argument_at = m.start(2) if m[2] is not None else m.end(1)


def from_dsl(text: str, features: Mapping[str, int] | None = None, actions: Mapping[str, int] | None = None) -> bt.Node:
    """Parses the text of one tree (grammar: the module's docstring).

    ``features`` and ``actions`` name columns of the observations and action ids. Raises :class:`ParseError` with line,
    column and a hint how to repair the text.
    """
    features, actions = features or {}, actions or {}
    open_: list[_Line] = []
    root: bt.Node | None = None

    def close(indent: int) -> None:
        nonlocal root
        while open_ and open_[-1].indent >= indent:
            node = _finish(open_[-1], features, actions)
            open_.pop()
            if open_:
                open_[-1].children.append(node)
            else:
                root = node

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
        close(indent)
        if root is not None:
            raise line.error(indent, "a second root", "indent this line below the first, or put both below a Selector")
        if levels and indent < levels[-1] and indent not in levels:
            raise line.error(
                indent, "this indentation fits no line above", f"use one of {', '.join(map(str, levels))} spaces"
            )
        if len(open_) >= _MAX_DEPTH:
            raise line.error(indent, f"the tree is deeper than {_MAX_DEPTH} levels", "flatten it")
        open_.append(line)
    close(0)
    if root is None:
        raise ParseError("there is no node", max(number, 1), 1, "begin with a root, such as 'Selector: root'")
    return root


def _condition_text(condition: tuple[int, str, float]) -> str:
    feature, op, threshold = condition
    return f"obs[{feature}] {op} {float(threshold)!r}"


def _action_text(node: bt.Action) -> str:
    text = "none" if node.action < 0 else str(node.action)
    if node.duration:
        text += f" for {node.duration}"
    if node.running_while is not None:
        text += f" while {_condition_text(node.running_while)}"
    return text if node.status == bt.SUCCESS else f"{text} then {node.status.name}"


def _text(node: bt.Node) -> str:
    if isinstance(node, bt.Condition | bt.Action):
        body = (
            _action_text(node)
            if isinstance(node, bt.Action)
            else _condition_text((node.feature, node.op, node.threshold))
        )
        name = "" if node.name == body else " " + json.dumps(node.name)
        return f"{type(node).__name__}: {body}{name}"
    kind, argument = type(node).__name__, ""
    if isinstance(node, bt.Sequence | bt.Selector):
        argument = "(memory)" if node.memory else ""
    elif isinstance(node, bt.Parallel):
        synchronise = isinstance(node.policy, bt.ParallelPolicy.SuccessOnAll) and node.policy.synchronise
        argument = (
            "(one)"
            if isinstance(node.policy, bt.ParallelPolicy.SuccessOnOne)
            else "(all, synchronise)"
            if synchronise
            else "(all)"
        )
    elif isinstance(node, bt.Repeat | bt.Retry | bt.Timeout):
        argument = f"({node._fields()['params']})"
    elif isinstance(node, bt.OneShot):
        argument = f"({node.policy.name.lower()})"
    plain = node.name.isprintable() and node.name == node.name.strip() and node.name and not node.name.startswith('"')
    return f"{kind}{argument}: {node.name if plain else json.dumps(node.name)}"


def to_dsl(tree: bt.Node) -> str:
    """The text of a tree; ``from_dsl(to_dsl(tree)) == tree``."""
    lines: list[str] = []
    stack = [(tree, 0)]
    while stack:
        node, depth = stack.pop()
        lines.append("    " * depth + _text(node))
        stack.extend((c, depth + 1) for c in reversed(node.children))
    return "\n".join(lines) + "\n"
