"""Expressions over the features of an agent, as conditions use them: ``obs[0] > 0.5 and (ammo < 3 or not dead)``.

Arithmetic ``+ - * /``, ``min``, ``max``, ``abs``, comparisons, ``and``, ``or``, ``not`` (C's ``&&``, ``||``, ``!`` are
read too). Everything is computed in float32, operation by operation. A number is true if it is not 0 (so NaN is true);
a truth is no number: ``(a < b) + 1`` and ``a < b < c`` are refused.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")
"""The comparisons of conditions; a program holds their positions here."""

OPERATIONS = ("+", "-", "*", "/", "min", "max", *COMPARISONS, "and", "or", "not", "neg", "abs")
"""The operations of expressions; the code of a program holds their positions here."""

MAX_DEPTH = 64
"""Expressions that nest deeper are refused."""

_TRUTHS = (*COMPARISONS, "and", "or", "not")
UNARY = ("not", "neg", "abs")
_BINDS = {"or": 1, "and": 2, "not": 3, **dict.fromkeys(COMPARISONS, 4), "+": 5, "-": 5, "*": 6, "/": 6, "neg": 7}
_SPELLINGS = {"&&": "and", "||": "or"}
RESERVED = frozenset({"and", "or", "not", "min", "max", "abs", "true", "false", "inf", "none", "for", "while", "then"})
"""Words that cannot name a feature, an action or a port."""


@dataclass(frozen=True)
class Feature:
    """A column of the observations."""

    index: int


@dataclass(frozen=True)
class Constant:
    """A number."""

    value: float

    def __post_init__(self) -> None:
        if math.isnan(self.value):
            raise ValueError("Constant: argument 'value' must be a number, got NaN")


@dataclass(frozen=True)
class Port:
    """A parameter of a sub-tree, which takes its value where the sub-tree is called."""

    name: str


@dataclass(frozen=True)
class Operation:
    """``op`` of :data:`OPERATIONS` applied to one or two operands."""

    op: str
    operands: tuple[Expression, ...]
    depth: int = field(init=False, compare=False, repr=False, default=0)

    def __post_init__(self) -> None:
        if self.op not in OPERATIONS:
            raise ValueError(f"Operation: argument 'op' must be one of {' '.join(OPERATIONS)}, got {self.op!r}")
        if len(self.operands) != (1 if self.op in UNARY else 2):
            raise ValueError(f"Operation: {self.op!r} does not take {len(self.operands)} operands")
        if self.op not in ("and", "or", "not") and any(is_truth(x) for x in self.operands):
            raise ValueError(f"Operation: {self.op!r} takes numbers, got a comparison")
        depth = 1 + max(x.depth if isinstance(x, Operation) else 0 for x in self.operands)
        if depth > MAX_DEPTH:
            raise ValueError(f"Operation: the expression nests deeper than {MAX_DEPTH} operations")
        object.__setattr__(self, "depth", depth)


Expression = Feature | Constant | Port | Operation


def is_truth(x: Expression) -> bool:
    """Whether an expression is true or false rather than a number."""
    return isinstance(x, Operation) and x.op in _TRUTHS


def ports(x: Expression) -> set[str]:
    """The names of the ports in an expression."""
    if isinstance(x, Operation):
        return set().union(*map(ports, x.operands))
    return {x.name} if isinstance(x, Port) else set()


def columns_of(x: int | Expression) -> set[int]:
    """The columns of the observations that a condition's feature reads."""
    if isinstance(x, Operation):
        return set().union(*map(columns_of, x.operands))
    return {x} if isinstance(x, int) else {x.index} if isinstance(x, Feature) else set()


def bind(x: Expression, values: Mapping[str, Expression]) -> Expression:
    """The expression with values in place of its ports."""
    if isinstance(x, Operation):
        return Operation(x.op, tuple(bind(y, values) for y in x.operands))
    return values[x.name] if isinstance(x, Port) else x


def apply(op: str, x: np.float32, y: np.float32) -> np.float32:
    """What one operation gives, in float32; ``y`` is ignored where it takes one operand."""
    with np.errstate(all="ignore"):
        if op in _CHOICES:
            return np.float32(_CHOICES[op](x, y))
        return np.float32({"+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide}[op](x, y))


_CHOICES: dict[str, Callable[[np.float32, np.float32], Any]] = {
    "min": lambda x, y: y if y < x else x,
    "max": lambda x, y: y if x < y else x,
    "<": lambda x, y: x < y,
    "<=": lambda x, y: x <= y,
    ">": lambda x, y: x > y,
    ">=": lambda x, y: x >= y,
    "==": lambda x, y: x == y,
    "!=": lambda x, y: x != y,
    "and": lambda x, y: x != 0 and y != 0,
    "or": lambda x, y: x != 0 or y != 0,
    "not": lambda x, y: x == 0,
    "neg": lambda x, y: -x,
    "abs": lambda x, y: abs(x),
}


def evaluate(x: Expression, observation: np.ndarray) -> np.float32:
    """The value for one agent's observation, float32; a truth is 1 or 0."""
    if isinstance(x, Feature):
        return np.float32(observation[x.index])
    if isinstance(x, Constant):
        return np.float32(x.value)
    if isinstance(x, Port):
        raise ValueError(f"port '{x.name}' has no value outside its sub-tree")
    values = [evaluate(y, observation) for y in x.operands]
    return apply(x.op, values[0], values[-1])


def text(x: Expression, c_style: bool = False, above: int = 0) -> str:
    """The text of an expression; :meth:`Parser.expression` is the inverse.

    ``c_style`` writes the script language of BehaviorTree.CPP, with ``obs_3`` for ``obs[3]`` and brackets around every
    operand that is an operation; it has no functions, for them ValueError is raised.
    """
    if isinstance(x, Feature):
        return f"obs_{x.index}" if c_style else f"obs[{x.index}]"
    if isinstance(x, Constant):
        return f"({float(x.value)!r})" if c_style and above and x.value < 0 else repr(float(x.value))
    if isinstance(x, Port):
        return x.name
    if x.op in ("min", "max", "abs"):
        if c_style:
            raise ValueError(f"a script has no function {x.op}")
        return f"{x.op}({', '.join(text(y) for y in x.operands)})"
    binds = _BINDS[x.op]
    if x.op == "neg":
        inner = text(x.operands[0], c_style, 0 if isinstance(x.operands[0], Constant) else binds)
        written = f"-({inner})" if isinstance(x.operands[0], Constant) else f"-{inner}"
    elif x.op == "not":
        inner = text(x.operands[0], c_style, 0 if c_style else binds)
        written = f"!({inner})" if c_style else f"not {inner}"
    else:
        word = {"and": "&&", "or": "||"}.get(x.op, x.op) if c_style else x.op
        left = text(x.operands[0], c_style, 9 if c_style else binds + (x.op in COMPARISONS))
        written = f"{left} {word} {text(x.operands[1], c_style, 9 if c_style else binds + 1)}"
    return f"({written})" if binds < above else written  # no operator binds more than 7


class ExpressionError(ValueError):
    """A text that is no expression: ``at`` counts characters from 0, ``hint`` says how to repair it."""

    def __init__(self, message: str, at: int, hint: str) -> None:
        super().__init__(f"{message}; {hint}")
        self.message, self.at, self.hint = message, at, hint


def suggest(word: str, known: Iterable[str]) -> str:
    """A hint: the known word that is most alike, or all of them."""
    names = list(known)
    close = difflib.get_close_matches(word, names, 1, 0.5)
    return f"did you mean '{close[0]}'?" if close else "use one of " + ", ".join(names)


_TOKEN = re.compile(
    r"\s*(?:(?P<quoted>\"(?:[^\"\\]|\\.)*\")|(?P<op><=|>=|==|!=|&&|\|\||:=|[-+*/<>!(),])|(?P<obs>obs\[\d{1,9}\])"
    r"|(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))|(?P<word>@?[^\W\d][\w.\[\]]*))"
)


def split(source: str, at: int = 0) -> list[tuple[str, str, int]]:
    """The tokens of a text from ``at``: kind (quoted, op, obs, number, word), text and position."""
    found = []
    end = len(source.rstrip())
    while at < end:
        m = _TOKEN.match(source, at)
        if m is None:
            at += len(source[at:]) - len(source[at:].lstrip())
            raise ExpressionError(
                f"unexpected character {source[at]!r}",
                at,
                "names go in double quotes, comparisons are < <= > >= == !=",
            )
        kind = str(m.lastgroup)
        found.append((kind, m[kind], m.start(kind)))
        at = m.end()
    return found


class Parser:
    """Reads expressions from a list of tokens; ``resolve`` gives what a name stands for, or None."""

    def __init__(
        self, source: str, at: int, resolve: Callable[[str], Expression | None], known: Iterable[str] = ()
    ) -> None:
        self.tokens = split(source, at)
        self.end = len(source)
        self.at = 0
        self._resolve, self._known = resolve, known
        self._depth = 0

    @property
    def position(self) -> int:
        """Where the next token begins."""
        return self.tokens[self.at][2] if self.at < len(self.tokens) else self.end

    def peek(self) -> str:
        """The next token, '' at the end."""
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    def take(self, what: str, hint: str) -> str:
        """The next token, which must be there."""
        if self.at == len(self.tokens):
            raise ExpressionError(f"{what} is missing", self.position, hint)
        self.at += 1
        return self.tokens[self.at - 1][1]

    def fail(self, message: str, hint: str) -> ExpressionError:
        """An error at the token that was taken last."""
        return ExpressionError(message, self.tokens[self.at - 1][2], hint)

    def condition(self) -> Condition:
        """An expression as a condition ``(feature, op, threshold)``."""
        at = self.position
        x = self.expression()
        try:
            return condition(x, "!=", 0.0)
        except ValueError as e:
            raise ExpressionError(str(e), at, "compare numbers only") from None

    def expression(self, above: int = 0) -> Expression:
        """Reads as far as the expression goes; only operators that bind more than ``above`` are taken."""
        self._depth += 1
        if self._depth > 3 * MAX_DEPTH:
            raise ExpressionError("the expression nests too deep", self.position, "split the condition")
        left = self._operand()
        compared = False
        while True:
            op = _SPELLINGS.get(self.peek(), self.peek())
            binds = _BINDS.get(op, 0) if op not in ("not", "neg") else 0
            if binds <= above:
                break
            if op in COMPARISONS and compared:
                raise ExpressionError("comparisons cannot be chained", self.position, "write a < b and b < c")
            at = self.position
            self.take("", "")
            left = self._make(op, at, left, self.expression(binds))
            compared = op in COMPARISONS
        self._depth -= 1
        return left

    def _make(self, op: str, at: int, *operands: Expression) -> Expression:
        try:
            return Operation(op, operands)
        except ValueError as e:
            hint = "put brackets around what belongs together; truths are joined by and, or, not"
            if "deeper" in str(e):
                hint = "split the condition into several nodes"
            raise ExpressionError(str(e).removeprefix("Operation: "), at, hint) from None

    def _operand(self) -> Expression:
        at = self.position
        hint = "write FEATURE OP NUMBER, such as obs[2] > 0.05"
        kind = self.tokens[self.at][0] if self.at < len(self.tokens) else ""
        word = self.take("a feature or a number", hint)
        if word == "(":
            inner = self.expression()
            if self.take("')'", f"close the bracket of column {at + 1}") != ")":
                raise self.fail(f"expected ')', got '{self.tokens[self.at - 1][1]}'", "close the bracket")
            return inner
        if word == "-":
            following = self.tokens[self.at] if self.at < len(self.tokens) else ("", "", 0)
            if following[0] == "number" or following[1] == "inf":
                self.at += 1
                return Constant(-float(following[1]))
            return self._make("neg", at, self.expression(_BINDS["neg"] - 1))
        if word in ("not", "!"):
            return self._make("not", at, self.expression(_BINDS["not"] - 1 if word == "not" else _BINDS["neg"]))
        if kind == "obs":
            return Feature(int(word[4:-1]))
        if kind == "number":
            return Constant(float(word))
        if kind == "word":
            found = self._resolve(word)
            if found is not None:
                return found
            if word in ("min", "max", "abs"):
                return self._call(word, at)
            if word in ("true", "false", "inf"):
                return Constant({"true": 1.0, "false": 0.0, "inf": math.inf}[word])
            names = list(self._known)
            raise self.fail(f"unknown feature '{word}'", suggest(word, names) if names else "write obs[NUMBER]")
        raise self.fail(f"unexpected '{word}'", hint)

    def _call(self, function: str, at: int) -> Expression:
        count = 1 if function == "abs" else 2
        hint = f"write {function}({', '.join('ab'[:count])})"
        operands: list[Expression] = []
        for mark in ("(", ",")[:count]:
            if self.take(f"'{mark}'", hint) != mark:
                raise self.fail(f"expected '{mark}', got '{self.tokens[self.at - 1][1]}'", hint)
            operands.append(self.expression())
        if self.take("')'", hint) != ")":
            raise self.fail(f"expected ')', got '{self.tokens[self.at - 1][1]}'", hint)
        return self._make(function, at, *operands)


Condition = tuple[int | Expression, str, float]
"""What a condition compares: a feature (its column, or an expression), a comparison and a threshold."""


def condition(feature: int | Expression, op: str, threshold: float) -> Condition:
    """The normal form: comparisons with a number are taken apart, columns are plain integers."""
    if op not in COMPARISONS:
        raise ValueError(f"argument 'op' must be one of {' '.join(COMPARISONS)}, got {op!r}")
    if isinstance(feature, Feature):
        feature = feature.index
    if isinstance(feature, Operation) and is_truth(feature):
        if (op, threshold) != ("!=", 0):
            raise ValueError("argument 'feature' must be a number to be compared, got a truth")
        right = feature.operands[-1]
        if feature.op in COMPARISONS and isinstance(right, Constant):
            return condition(feature.operands[0], feature.op, right.value)
    return feature, op, threshold


def condition_text(feature: int | Expression, op: str, threshold: float, c_style: bool = False) -> str:
    """The text of a condition; :meth:`Parser.condition` is the inverse."""
    x = Feature(feature) if isinstance(feature, int) else feature
    if is_truth(x):
        return text(x, c_style)
    return f"{text(x, c_style, 9 if c_style else _BINDS[op] + 1)} {op} {text(Constant(threshold), c_style, 9)}"


class Code:
    """Collects the instructions of expressions; equal expressions share theirs."""

    def __init__(self, num_features: int) -> None:
        self.num_features = num_features
        self.ops: list[int] = []
        self.lefts: list[int] = []
        self.rights: list[int] = []
        self.values: list[float] = []
        self._made: dict[Expression, int] = {}

    def column(self, x: Expression) -> int:
        """The column that holds the value of ``x``."""
        operand = self._operand(x)
        return self._emit("min", -1, -1, float(operand)) if isinstance(operand, np.float32) else operand

    def _operand(self, x: Expression) -> int | np.float32:
        if isinstance(x, Feature):
            return x.index
        if isinstance(x, Constant):
            return np.float32(x.value)
        if isinstance(x, Port):
            raise ValueError(f"port '{x.name}' has no value outside its sub-tree")
        if x not in self._made:
            operands = [self._operand(y) for y in x.operands]
            constants = [y for y in operands if isinstance(y, np.float32)]
            if len(constants) == len(operands):
                return apply(x.op, constants[0], constants[-1])
            columns = [-1 if isinstance(y, np.float32) else y for y in operands]
            self._made[x] = self._emit(x.op, columns[0], columns[-1], float(constants[0]) if constants else 0.0)
        return self._made[x]

    def _emit(self, op: str, left: int, right: int, value: float) -> int:
        for values, new in (
            (self.ops, OPERATIONS.index(op)),
            (self.lefts, left),
            (self.rights, right),
        ):
            values.append(new)
        self.values.append(value)
        return self.num_features + len(self.ops) - 1
