"""Text, JSON and XML of trees: round trips, sub-trees with ports, and hostile input."""

import json
import os

import numpy as np
import pytest
from core_agents import behaviour_tree as bt
from core_agents import from_dsl, from_json, from_xml, to_dsl, to_json, to_xml
from core_agents.forms import ParseError
from core_agents.reference.behaviour_tree import random_forest, random_tree

ALL = os.environ.get("CORE_TEST_ALL") == "1"
FORMATS = {"dsl": (to_dsl, from_dsl), "json": (to_json, from_json), "xml": (to_xml, from_xml)}
RETREAT = """\
Selector: root
    SubTree(retreat, danger=near, go=left): first
    SubTree(retreat, danger=obs[1], go=none): second
    Wait: 4 "hold"
Tree(retreat, danger, go):
    Condition: abs(danger) > 2 and not (danger > 5 or obs[2] * 2 <= min(danger, 1))
        ForceSuccess: always
            Action: go while danger > 3 then FAILURE
"""


def retreat():
    return from_dsl(RETREAT, features={"near": 0}, actions={"left": 7})


@pytest.mark.parametrize("form", FORMATS)
def test_1000_random_trees_round_trip(form):
    write, read = FORMATS[form]
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        tree = random_tree(rng, 12, 4) if seed % 4 else random_forest(rng, 12, 4)
        assert read(write(tree)) == tree, seed


def test_formats_convert_into_each_other():
    for seed in range(50):
        tree = random_forest(np.random.default_rng(seed), 20, 4)
        assert to_dsl(from_xml(to_xml(from_json(to_json(from_dsl(to_dsl(tree))))))) == to_dsl(tree)


def test_sub_trees_take_what_they_are_given():
    tree = retreat()
    assert tree.children[0].arguments == (("danger", bt.Feature(0)), ("go", 7))
    expanded = bt.expand(tree)
    assert not bt.definitions(expanded)
    assert len(bt.definitions(tree)) == 1
    batched = bt.BatchedTree(bt.compile(tree, 3), 3)
    status = batched.tick(np.float32([[4, 0, 9], [2.5, 0, 9], [0, 0, 9]]))
    assert status.tolist() == [bt.RUNNING, bt.SUCCESS, bt.RUNNING]
    assert batched.actions.tolist() == [7, 7, -1]
    for write, read in FORMATS.values():
        assert bt.compile(read(write(tree)), 3).tree == expanded


@pytest.mark.parametrize("form", FORMATS)
def test_ports_that_the_body_does_not_use_keep_their_values(form):
    write, read = FORMATS[form]
    body = bt.Definition("part", ("a", "b", "c", "d", "e"), bt.Success("done"))
    given = (("a", 3), ("b", -1), ("c", bt.Constant(3)), ("d", bt.Feature(1)), ("e", bt.Constant(-2.5)))
    tree = bt.SubTree("call", body, given)
    assert read(write(tree)) == tree


def test_sub_trees_that_explode_are_refused():
    body = bt.Action("a", 1)
    for i in range(40):
        definition = bt.Definition(f"t{i}", (), body)
        body = bt.Sequence("twice", False, [bt.SubTree("l", definition), bt.SubTree("r", definition)])
    with pytest.raises(ValueError, match="more than 131072 nodes"):
        bt.compile(body)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: bt.Definition("d", (), bt.Action("a", bt.Port("p"))), "without p"),
        (lambda: bt.Definition("d", ("p", "p"), bt.Action("a", 1)), "once"),
        (lambda: bt.Definition("d", ("not",), bt.Action("a", 1)), "cannot name"),
        (lambda: bt.SubTree("s", bt.Definition("d", ("p",), bt.Action("a", bt.Port("p")))), "must give"),
        (
            lambda: bt.SubTree("s", bt.Definition("d", ("p",), bt.Action("a", bt.Port("p"))), (("p", bt.Feature(0)),)),
            "id of an action",
        ),
        (lambda: bt.compile(bt.Action("a", bt.Port("p"))), "no value outside"),
        (lambda: bt.compile(bt.Condition("c", bt.Port("p"), "<", 1.0)), "no value outside"),
    ],
)
def test_wrong_ports_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize(
    ("text", "line", "column", "hint"),
    [
        ("SubTree(a)", 1, 9, "add 'Tree(a):'"),
        ("SubTree(a)\nTree(b):\n  Action: 1", 1, 9, "use one of b"),
        ("SubTree(a)\nTree(a):\n  SubTree(a)", 3, 11, "Repeat"),
        ("SubTree(a)\nTree(a, x):\n  Condition: x", 1, 9, "add x=VALUE"),
        ("SubTree(a, y=1)\nTree(a, x):\n  Condition: x", 1, 12, "SubTree(a, x=VALUE)"),
        ("SubTree(a, x=left)\nTree(a, x):\n  Condition: x", 1, 14, "obs[NUMBER]"),
        ("SubTree(a, x=obs[0])\nTree(a, x):\n  Action: x", 1, 14, "number or 'none'"),
        ("SubTree(a, x=1)\nTree(a, x):\n  Sequence:\n    Condition: x\n    Action: x", 2, 6, "a port each"),
        ("Action: 1\nTree(a, a):\n  Action: 1", 2, 6, "different names"),
        ("Action: 1\nTree(a):\n  Action: 1\nTree(a):\n  Action: 1", 4, 6, "another name"),
        ("Action: 1\nTree(a):", 2, 1, "indent one node"),
        ("Selector: a\n  Tree(a):\n    Action: 1", 2, 3, "beside the root"),
        ("Fallback: a", 1, 1, "Selector(memory)"),
        ("Condition: 0 < obs[0] < 1", 1, 23, "a < b and b < c"),
        ("Condition: (obs[0] < 1) + 1 > 0", 1, 25, "brackets"),
        ("Condition: (obs[0] < 1", 1, 23, "close the bracket"),
        ("Condition: max(obs[0]) < 1", 1, 22, "max(a, b)"),
        ("Condition: abs obs[0] < 1", 1, 16, "abs(a)"),
        ("Condition: obs[0] and", 1, 22, "FEATURE OP NUMBER"),
        ("Condition: " + "(" * 300, 1, 204, "split"),
        ("Condition: " + " and ".join(["obs[0]"] * 80), 1, 723, "split"),
        ("Wait: x", 1, 7, "integer"),
        ("Wait:", 1, 6, "number"),
    ],
)
def test_errors_of_the_text_name_line_column_and_repair(text, line, column, hint):
    with pytest.raises(ParseError) as caught:
        from_dsl(text)
    assert (caught.value.line, caught.value.column) == (line, column), str(caught.value)
    assert hint in caught.value.hint


def document(node, **more):
    return json.dumps({"format": "core-behaviour-tree", "version": 1, "root": node, **more}, indent=1)


@pytest.mark.parametrize(
    ("text", "line", "column", "said"),
    [
        ("{", 1, 2, "write valid JSON"),
        ("[]", 1, 1, "this is no tree"),
        ("{}", 1, 1, "another format"),
        (document({"type": "Sequnce"}), 5, 11, "did you mean 'Sequence'"),
        (document({"type": "Sequence", "memory": 1}), 6, 13, "true or false"),
        (document({"type": "Sequence", "children": [{"type": "Action"}]}), 7, 4, "unknown action"),
        (document({"type": "Sequence", "children": [{"type": "Action", "action": -2}]}), 9, 15, "id from 0"),
        (document({"type": "Condition", "if": "obs[0] >"}), 6, 9, "character 9"),
        (document({"type": "Inverter"}), 4, 10, "no child"),
        (document({"type": "Repeat", "count": 0, "child": {"type": "Action", "action": 1}}), 6, 12, "from 1"),
        (document({"type": "Wait"}), 5, 11, "unknown node"),
        (document({"type": "Action", "action": 1, "extra": 1}), 7, 12, "no field 'extra'"),
        (document({"type": "SubTree", "id": "x"}), 6, 9, "unknown sub-tree"),
        ('{"format": NaN}', 1, 1, "NaN is no JSON"),
        ('{"format": 1, "format": 1}', 1, 1, "twice"),
    ],
)
def test_errors_of_json_name_line_column_and_repair(text, line, column, said):
    with pytest.raises(ParseError) as caught:
        from_json(text)
    assert (caught.value.line, caught.value.column) == (line, column), str(caught.value)
    assert said in str(caught.value)


def bt_cpp(body, head='BTCPP_format="4"'):
    return f'<root {head}>\n<BehaviorTree ID="m">\n{body}\n</BehaviorTree>\n</root>'


@pytest.mark.parametrize(
    ("text", "line", "column", "said"),
    [
        ("", 1, 1, "no element"),
        ("<root>", 1, 7, "no element"),
        ("<root/>", 1, 1, 'BTCPP_format="4"'),
        ('<!DOCTYPE r [<!ENTITY a "b">]><root BTCPP_format="4"/>', 1, 13, "document type"),
        (bt_cpp("<Sequnce/>"), 3, 1, "did you mean 'Sequence'"),
        (bt_cpp('<Sequence memory="1"/>'), 3, 1, "no attribute 'memory'"),
        (bt_cpp('<Inverter _skipIf="1"><AlwaysSuccess/></Inverter>'), 3, 1, "no attribute '_skipIf'"),
        (bt_cpp("<Inverter/>"), 3, 1, "0 children"),
        (bt_cpp("<Sequence>\n<Script code='x := 2'/></Sequence>"), 4, 1, "emit an action"),
        (bt_cpp("<ScriptCondition code='obs_0 &gt; '/>"), 3, 1, "character 9 of the script"),
        (bt_cpp("<Repeat num_cycles='0'><AlwaysSuccess/></Repeat>"), 3, 1, "from 1"),
        (bt_cpp("<Parallel failure_count='2'/>"), 3, 1, "counts otherwise"),
        (bt_cpp("<SubTree ID='m'/>"), 3, 1, "calls itself"),
        (bt_cpp("<Sequence>hello</Sequence>"), 3, 11, "text 'hello'"),
        (bt_cpp("<AlwaysSuccess/><AlwaysSuccess/>"), 2, 1, "2 children"),
    ],
)
def test_errors_of_xml_name_line_column_and_repair(text, line, column, said):
    with pytest.raises(ParseError) as caught:
        from_xml(text)
    assert said in str(caught.value)
    assert (caught.value.line, caught.value.column) == (line, column), str(caught.value)


def test_xml_of_groot2_is_read():
    tree = from_xml(
        """<?xml version="1.0" encoding="UTF-8"?>
<root BTCPP_format="4" main_tree_to_execute="main">
  <BehaviorTree ID="main">
    <Fallback name="root" _uid="1">
      <Condition ID="ScriptCondition" name="low" code="ammo &lt; 3 &amp;&amp; !(dead)"/>
      <SubTree ID="go" target="{ammo}" _autoremap="true"/>
      <shoot/>
      <Action ID="shoot" name="again"/>
    </Fallback>
  </BehaviorTree>
  <BehaviorTree ID="go"><ScriptCondition code="target + @obs_3 &gt;= 1 || true"/></BehaviorTree>
</root>""",
        features={"ammo": 0, "dead": 1},
        actions={"shoot": 5},
    )
    low, call, first, again = tree.children
    assert tree.memory
    assert to_dsl(low) == 'Condition: obs[0] < 3.0 and not obs[1] "low"\n'
    assert call.definition.ports == ("target",)
    assert call.arguments == (("target", bt.Feature(0)),)
    assert (first, again) == (bt.Action("shoot", 5), bt.Action("again", 5))


def test_names_that_xml_cannot_hold_are_refused():
    for name in ("a\0b", "\ud800", "\ufffe"):
        with pytest.raises(ValueError, match="cannot be written as XML"):
            to_xml(bt.Action(name, 1))
    for name in ("tab\tand\nline", "<&\"'>", ""):
        assert from_xml(to_xml(bt.Action(name, 1))) == bt.Action(name, 1)


def test_10000_levels_are_an_error():
    n = 10_000
    deep = {
        "dsl": "\n".join(" " * i + "not:" for i in range(n)),
        "json": document(0).replace("0\n", '{"type": "Inverter", "child": ' * n + "0" + "}" * n + "\n"),
        "xml": bt_cpp("<Inverter>" * n + "<AlwaysSuccess/>" + "</Inverter>" * n),
    }
    for form, text in deep.items():
        with pytest.raises(ParseError, match=r"deeper than 256 levels|longer than"):
            FORMATS[form][1](text)
    with pytest.raises(ParseError, match=r"line 257, column 257: the tree is deeper than 256"):
        from_dsl("\n".join(" " * i + "not:" for i in range(3000)))
    with pytest.raises(ParseError, match="deeper than 256"):
        from_json(document(0).replace("0\n", '{"type": "Inverter", "child": ' * 300 + "0" + "}" * 300 + "\n"))
    with pytest.raises(ParseError):
        from_json("[" * n)
    with pytest.raises(ParseError, match=r"nests too deep"):
        from_dsl("Condition: " + "not " * n + "obs[0]")


def mutated(rng, text):
    characters = list(text)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(characters)))
        kind = rng.random()
        if kind < 0.4:
            characters[at] = str(rng.choice(list('(:)[]{}"<>=/& \n\tx9,\0é-')))
        elif kind < 0.6:
            del characters[at : at + int(rng.integers(1, 9))]
        else:
            begin = int(rng.integers(len(text)))
            characters[at:at] = text[begin : begin + int(rng.integers(1, 30))]
        characters = characters or [" "]
    return "".join(characters)


@pytest.mark.parametrize("form", FORMATS)
def test_mutated_texts_are_refused_or_read(form):
    write, read = FORMATS[form]
    rng = np.random.default_rng(0)
    texts = [write(retreat()), *(write(random_forest(np.random.default_rng(s), 8, 4)) for s in range(20))]
    refused = 0
    for i in range(100_000 if ALL else 700):
        text = mutated(rng, texts[i % len(texts)])
        try:
            tree = read(text)
        except ParseError as e:
            refused += 1
            assert min(e.line, e.column) >= 1
            assert e.hint
            continue
        assert from_dsl(to_dsl(tree)) == tree
        bt.expand(tree)
    assert refused >= 100
