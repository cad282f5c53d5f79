"""Behaviour trees as XML of BehaviorTree.CPP v4, which Groot2 shows.

A node takes the name that has its meaning there: ``Sequence``/``Fallback`` (with memory), ``ReactiveSequence``,
``ReactiveFallback``, ``Parallel`` (all, synchronise), ``Inverter``, ``ForceSuccess``, ``ForceFailure``,
``KeepRunningUntilFailure`` (SuccessIsRunning), ``RunOnce`` (OneShot on completion), ``Repeat``,
``RetryUntilSuccessful``, ``SubTree`` with remapped ports. Conditions are ``ScriptCondition`` over the blackboard's
``obs_0``, ``obs_1``, ...; actions are ``<Script code="action := 3"/>``. What BehaviorTree.CPP lacks has names that
begin with Core; all of them are declared in the TreeNodesModel. How the meanings differ stands in the package's README.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np

from . import behaviour_tree as bt
from .behaviour_tree import expressions
from .behaviour_tree.expressions import ExpressionError, suggest
from .behaviour_tree.subtrees import Argument
from .forms import MAX_CALLS, PARALLEL, STATUSES, Scope
from .xml_elements import Element, parse

_PLAIN = {
    "Inverter": bt.Inverter,
    "ForceSuccess": bt.FailureIsSuccess,
    "ForceFailure": bt.SuccessIsFailure,
    "KeepRunningUntilFailure": bt.SuccessIsRunning,
    "CoreFailureIsRunning": bt.FailureIsRunning,
    "CoreRunningIsFailure": bt.RunningIsFailure,
    "CoreRunningIsSuccess": bt.RunningIsSuccess,
}
_COUNTED = {
    "Repeat": (bt.Repeat, "num_cycles", 1),
    "RetryUntilSuccessful": (bt.Retry, "num_attempts", 1),
    "CoreTimeout": (bt.Timeout, "ticks", 0),
}
_IN_ORDER = {
    "Sequence": (bt.Sequence, True),
    "ReactiveSequence": (bt.Sequence, False),
    "Fallback": (bt.Selector, True),
    "ReactiveFallback": (bt.Selector, False),
}
_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys((*_IN_ORDER, *_PLAIN, "AlwaysSuccess", "AlwaysFailure"), ()),
    **{tag: (count,) for tag, (_, count, _) in _COUNTED.items()},
    "Parallel": ("success_count", "failure_count"),
    "CoreParallel": ("policy",),
    "RunOnce": ("then_skip",),
    "CoreOneShot": (),
    "ScriptCondition": ("code",),
    "CoreCondition": ("code",),
    "CoreGuard": ("code",),
    "Script": ("code",),
    "CoreAction": ("action", "duration", "while", "then"),
}
_LEAVES = ("AlwaysSuccess", "AlwaysFailure", "ScriptCondition", "CoreCondition", "Script", "CoreAction", "SubTree")
_GROOT = ("_description", "_uid", "_fullpath", "_autoremap")
_MODEL = {
    "CoreAction": ("Action", "action", "duration", "while", "then"),
    "CoreCondition": ("Condition", "code"),
    "CoreGuard": ("Decorator", "code"),
    "CoreTimeout": ("Decorator", "ticks"),
    "CoreOneShot": ("Decorator",),
    "CoreFailureIsRunning": ("Decorator",),
    "CoreRunningIsFailure": ("Decorator",),
    "CoreRunningIsSuccess": ("Decorator",),
    "CoreParallel": ("Control", "policy"),
}
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class _Scope(Scope):
    def feature(self, name: str) -> expressions.Expression | None:
        name = name.removeprefix("@")
        found = super().feature(name)
        if found is None and (m := re.fullmatch(r"obs_(\d{1,9})", name)):
            found = bt.Feature(int(m[1]))
        return found


def _plain_attributes(element: Element) -> dict[str, str]:
    return {k: v for k, v in element.attributes.items() if k not in ("ID", "name", *_GROOT)}


class _Reader:
    def __init__(self, root: Element, features: Mapping[str, int], actions: Mapping[str, int]) -> None:
        self.features, self.actions = features, actions
        self.trees: dict[str, Element] = {}
        self.ports: dict[str, list[str]] = {}
        self.made: dict[str, bt.Definition] = {}
        self.open: list[str] = []
        if root.tag != "root" or root.attributes.get("BTCPP_format") != "4":
            raise root.error("this is no BehaviorTree.CPP v4 document", 'begin with <root BTCPP_format="4">')
        for element in root.children:
            if element.tag == "BehaviorTree":
                id_ = element.attributes.get("ID", "")
                if not id_ or id_ in self.trees:
                    raise element.error(f"a BehaviorTree with the ID '{id_}'", "give each tree an ID of its own")
                if len(element.children) != 1:
                    raise element.error(f"BehaviorTree has {len(element.children)} children", "give it one child")
                self.trees[id_] = element
            elif element.tag == "TreeNodesModel":
                for model in element.children:
                    if model.tag == "SubTree":
                        names = [p.attributes.get("name", "") for p in model.children if p.tag.endswith("_port")]
                        self.ports[model.attributes.get("ID", "")] = names
            else:
                raise element.error(f"unknown element '{element.tag}'", "write BehaviorTree or TreeNodesModel")
        if not self.trees:
            raise root.error("there is no BehaviorTree", 'add <BehaviorTree ID="main">')
        self.main = root.attributes.get("main_tree_to_execute", next(iter(self.trees)))
        if self.main not in self.trees or ("main_tree_to_execute" not in root.attributes and len(self.trees) > 1):
            raise root.error(f"main_tree_to_execute '{self.main}'", suggest(self.main, self.trees))
        for element in self._all(root):
            if self._tag(element) == "SubTree":
                ports = self.ports.setdefault(element.attributes.get("ID", ""), [])
                ports.extend(p for p in _plain_attributes(element) if p not in ports)

    @staticmethod
    def _all(root: Element) -> list[Element]:
        """Elements from a root on, parents before their children."""
        order, pending = [], [root]
        while pending:
            order.append(pending.pop())
            pending.extend(order[-1].children)
        return order

    @staticmethod
    def _tag(element: Element) -> str:
        explicit = element.tag in ("Action", "Condition", "Control", "Decorator")
        return element.attributes.get("ID", element.tag) if explicit else element.tag

    def definition(self, id_: str, caller: Element) -> bt.Definition:
        if id_ in self.made:
            return self.made[id_]
        if id_ not in self.trees:
            raise caller.error(f"unknown sub-tree '{id_}'", suggest(id_, self.trees))
        if id_ in self.open or len(self.open) >= MAX_CALLS:
            raise caller.error(f"sub-tree '{id_}' calls itself, or calls nest too deep", "let a Repeat do it again")
        ports = tuple(self.ports.get(id_, ()))
        self.open.append(id_)
        body = self.tree(id_, ports)
        self.open.pop()
        try:
            self.made[id_] = bt.Definition(id_, ports, body)
        except ValueError as e:
            hint = "use letters, digits and _ in names, and a port either as a value or as an action"
            raise self.trees[id_].error(str(e), hint) from None
        return self.made[id_]

    def tree(self, id_: str, ports: tuple[str, ...]) -> bt.Node:
        scope = _Scope(self.features, self.actions, ports)
        built: dict[int, bt.Node] = {}
        top = self.trees[id_].children[0]
        for element in reversed(self._all(top)):
            children = [built.pop(id(c)) for c in element.children]
            try:
                built[id(element)] = self._finish(element, children, scope)
            except ExpressionError as e:
                raise element.error(f"at character {e.at + 1} of the script: {e.message}", e.hint) from None
        return built[id(top)]

    def _finish(self, element: Element, children: list[bt.Node], scope: _Scope) -> bt.Node:
        tag = self._tag(element)
        given = _plain_attributes(element)
        if tag in self.actions and tag not in _ATTRIBUTES and not given and not children:
            return bt.Action(element.attributes.get("name", tag), self.actions[tag])
        name = element.attributes.get("name", tag)
        if tag != "SubTree":
            if tag not in _ATTRIBUTES:
                raise element.error(f"unknown node '{tag}'", suggest(tag, (*_ATTRIBUTES, "SubTree", *self.actions)))
            for key in given:
                if key not in _ATTRIBUTES[tag]:
                    known = ("name", *_ATTRIBUTES[tag])
                    raise element.error(f"{tag} has no attribute '{key}'", suggest(key, known))
        if tag in _LEAVES:
            if children:
                raise element.error(f"{tag} has no children", "put it into a Sequence together with them")
            return self._leaf(tag, element, name, scope)
        if tag in _IN_ORDER:
            make, memory = _IN_ORDER[tag]
            return make(name, memory, children)
        if tag == "Parallel":
            counts = given.get("success_count", "-1"), given.get("failure_count", "1")
            if counts[0] not in ("-1", str(len(children))) or counts[1] != "1":
                raise element.error("this Parallel counts otherwise", 'write success_count="-1" failure_count="1"')
            return bt.Parallel(name, bt.ParallelPolicy.SuccessOnAll(True), children)
        if tag == "CoreParallel":
            return bt.Parallel(name, PARALLEL[self._choice(element, "policy", PARALLEL)], children)
        if len(children) != 1:
            raise element.error(f"{tag} has {len(children)} children", "give it one child")
        return self._decorator(tag, element, name, children[0], scope)

    def _decorator(self, tag: str, element: Element, name: str, child: bt.Node, scope: _Scope) -> bt.Node:
        if tag in _PLAIN:
            return _PLAIN[tag](name, child)
        if tag == "CoreGuard":
            return bt.Condition(name, *self._condition(element, "code", scope), child)
        if tag == "CoreOneShot":
            return bt.OneShot(name, child, bt.OneShotPolicy.ON_SUCCESSFUL_COMPLETION)
        if tag == "RunOnce":
            if element.attributes.get("then_skip", "true") not in ("false", "0"):
                raise element.error("RunOnce that is skipped later", 'write then_skip="false"')
            return bt.OneShot(name, child, bt.OneShotPolicy.ON_COMPLETION)
        make, key, least = _COUNTED[tag]
        written = element.attributes.get(key, "")
        count = int(written) if re.fullmatch(r"-?\d{1,9}", written) else None
        if count is None or (count < least and not (tag == "Repeat" and count == -1)):
            raise element.error(f"{key} '{written}' is no count", f"write a number from {least}")
        return make(name, child, count)

    def _leaf(self, tag: str, element: Element, name: str, scope: _Scope) -> bt.Node:
        if tag in ("AlwaysSuccess", "AlwaysFailure"):
            return bt.Action(name, -1, bt.SUCCESS if tag == "AlwaysSuccess" else bt.FAILURE)
        if tag == "SubTree":
            return self._call(element, name, scope)
        if tag in ("ScriptCondition", "CoreCondition"):
            return bt.Condition(name, *self._condition(element, "code", scope))
        if tag == "Script":
            words = [text for _, text, _ in expressions.split(element.attributes.get("code", ""))]
            if len(words) != 3 or words[:2] != ["action", ":="]:
                raise element.error("this Script does more than emit an action", 'write code="action := NUMBER"')
            return bt.Action(name, self._action(element, words[2], scope))
        action = self._action(element, element.attributes.get("action", "none"), scope)
        written = element.attributes.get("duration", "0")
        duration = int(written) if re.fullmatch(r"\d{1,9}", written) else -1
        running_while = self._condition(element, "while", scope) if "while" in element.attributes else None
        if duration < 0 or (duration and running_while):
            raise element.error(f"duration '{written}'", "write ticks from 0, and not beside while")
        status = STATUSES[self._choice(element, "then", STATUSES, "SUCCESS")]
        return bt.Action(name, action, status, duration, running_while)

    def _action(self, element: Element, word: str, scope: _Scope) -> int | bt.Port:
        found = scope.action(word.removeprefix("@"))
        if found is None:
            known = ("none", *scope.actions, *scope.ports)
            raise element.error(f"unknown action '{word}'", f"write a number from 0, or {suggest(word, known)}")
        return found

    def _choice(self, element: Element, key: str, known: Mapping[str, Any], default: str = "") -> str:
        word = element.attributes.get(key, default)
        if word not in known:
            raise element.error(f"unknown {key} '{word}'", suggest(word, known))
        return word

    def _condition(self, element: Element, key: str, scope: _Scope) -> expressions.Condition:
        parser = scope.parser(element.attributes.get(key, ""))
        condition = parser.condition()
        if parser.peek():
            raise ExpressionError(f"unexpected '{parser.peek()}'", parser.position, "end the expression before it")
        return condition

    def _call(self, element: Element, name: str, scope: _Scope) -> bt.Node:
        definition = self.definition(element.attributes.get("ID", ""), element)
        given: dict[str, Argument] = {}
        for port, value in _plain_attributes(element).items():
            m = re.fullmatch(r"\{(.*)\}", value)
            given[port] = scope.argument(m[1] if m else value, definition.kinds.get(port))
        try:
            return bt.SubTree(name, definition, tuple(given.items()))
        except ValueError as e:
            raise element.error(str(e), f"give the ports {', '.join(definition.ports)}") from None


def from_xml(
    text: str, features: Mapping[str, int] | np.dtype | None = None, actions: Mapping[str, int] | None = None
) -> bt.Node:
    """Parses a document; ``features`` and ``actions`` as for :func:`core_agents.from_dsl` (an action's name may stand
    as an element). Raises :class:`core_agents.ParseError` with line, column and a hint how to repair the text."""
    if isinstance(features, np.dtype):
        features = bt.feature_names(features)
    reader = _Reader(parse(text), features or {}, actions or {})
    for id_, element in reader.trees.items():
        if id_ != reader.main:
            reader.definition(id_, element)
    reader.open.append(reader.main)
    return reader.tree(reader.main, ())


_Written = tuple[str, dict[str, str]]


def _script(condition: expressions.Condition) -> str | None:
    try:
        return expressions.condition_text(*condition, c_style=True)
    except ValueError:
        return None


def _action_element(node: bt.Action) -> _Written:
    plain = not node.duration and node.running_while is None
    action = node.action.name if isinstance(node.action, bt.Port) else str(node.action) if node.action >= 0 else "none"
    if plain and action == "none" and node.status != bt.RUNNING:
        return ("AlwaysSuccess" if node.status == bt.SUCCESS else "AlwaysFailure"), {}
    if plain and action != "none" and node.status == bt.SUCCESS:
        return "Script", {"code": f"action := {action}"}
    attributes = {"action": action, "then": node.status.name}
    if node.duration:
        attributes["duration"] = str(node.duration)
    if node.running_while is not None:
        attributes["while"] = expressions.condition_text(*node.running_while)
    return "CoreAction", attributes


def _argument(value: Argument) -> str:
    if isinstance(value, int):
        return str(value) if value >= 0 else "none"
    written = expressions.text(value, c_style=True)
    return written if isinstance(value, bt.Constant) else f"{{{written}}}"


def tag_and_attributes(node: bt.Node) -> _Written:
    """How a node is written: the element's tag and its attributes but the name."""
    if isinstance(node, bt.Condition):
        condition = (node.feature, node.op, node.threshold)
        if node.child is not None:
            return "CoreGuard", {"code": expressions.condition_text(*condition)}
        script = _script(condition)
        if script is None:
            return "CoreCondition", {"code": expressions.condition_text(*condition)}
        return "ScriptCondition", {"code": script}
    if isinstance(node, bt.Action):
        return _action_element(node)
    if isinstance(node, bt.SubTree):
        ports = {port: _argument(value) for port, value in node.arguments}
        return "SubTree", {"ID": node.definition.id, **ports, "_autoremap": "true"}
    if isinstance(node, bt.Sequence | bt.Selector):
        return next(tag for tag, what in _IN_ORDER.items() if what == (type(node), node.memory)), {}
    if isinstance(node, bt.Parallel):
        if node.policy == bt.ParallelPolicy.SuccessOnAll(True):
            return "Parallel", {"success_count": "-1", "failure_count": "1"}
        return "CoreParallel", {"policy": next(word for word, policy in PARALLEL.items() if policy == node.policy)}
    if isinstance(node, bt.OneShot):
        once = node.policy == bt.OneShotPolicy.ON_COMPLETION
        return ("RunOnce", {"then_skip": "false"}) if once else ("CoreOneShot", {})
    for tag, (make, key, _) in _COUNTED.items():
        if type(node) is make:
            return tag, {key: str(node._fields()["params"])}
    return next(tag for tag, make in _PLAIN.items() if type(node) is make), {}


def _attribute(value: str) -> str:
    if (bad := _NO_XML.search(value)) is not None:
        raise ValueError(f"to_xml: character {bad[0]!r} in {value[:40]!r} cannot be written as XML")
    return quoteattr(value)


def to_xml(tree: bt.Node) -> str:
    """The XML of a tree and of the sub-trees that it calls; ``from_xml(to_xml(tree)) == tree``.

    Raises ValueError for a character that XML has not, and for a port called ID, name, like an attribute of Groot2 or
    ``obs_NUMBER``.
    """
    called = bt.definitions(tree)
    main = next(id_ for id_ in ("main", *(f"main{i}" for i in range(len(called) + 1))) if id_ not in called)
    lines = [f'<root BTCPP_format="4" main_tree_to_execute="{main}">']
    used: set[str] = set()
    for id_, body in [(main, tree), *((d.id, d.body) for d in called.values())]:
        lines.append(f'  <BehaviorTree ID="{id_}">')
        open_: list[str] = []
        for node, depth in bt.preorder(body):
            while len(open_) > depth:
                lines.append("  " * (len(open_) + 1) + f"</{open_.pop()}>")
            tag, attributes = tag_and_attributes(node)
            used.add(tag)
            written = "".join(f" {k}={_attribute(v)}" for k, v in {"name": node.name, **attributes}.items())
            lines.append("  " * (depth + 2) + f"<{tag}{written}{'>' if node.children else '/>'}")
            if node.children:
                open_.append(tag)
        while open_:
            lines.append("  " * (len(open_) + 1) + f"</{open_.pop()}>")
        lines.append("  </BehaviorTree>")
    lines.append("  <TreeNodesModel>")
    for definition in called.values():
        for port in definition.ports:
            if port in ("ID", "name", *_GROOT) or re.fullmatch(r"obs_\d+", port):
                raise ValueError(f"to_xml: a port of '{definition.id}' cannot be called '{port}'")
        lines.append(f'    <SubTree ID="{definition.id}">')
        lines.extend(f'      <input_port name="{port}"/>' for port in definition.ports)
        lines.append("    </SubTree>")
    for tag, (kind, *ports) in _MODEL.items():
        if tag in used:
            lines.append(f'    <{kind} ID="{tag}">')
            lines.extend(f'      <input_port name="{port}"/>' for port in ports)
            lines.append(f"    </{kind}>")
    return "\n".join([*lines, "  </TreeNodesModel>", "</root>"]) + "\n"
