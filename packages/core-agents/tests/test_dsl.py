"""The text form: round trips, named features and actions, and errors that say where and how to repair."""

import numpy as np
import pytest
from core_agents import behaviour_tree as bt
from core_agents import from_dsl, to_dsl
from core_agents.forms import ParseError
from core_agents.reference.behaviour_tree import random_tree
from hypothesis import given, settings
from hypothesis import strategies as st

GOOD = """\
# a comment
Selector: stay upright
    Condition: obs[2] > 0.05
        Sequence(memory): step
            Action: 1 for 3 then FAILURE
            Action: none while obs[0] <= -1e-3 "hold still"
    not:
        Repeat(3): again
            Parallel(all, synchronise):
                OneShot(on_completion): once
                    Action: 0
                Timeout(2):
                    Action: 2 then RUNNING
"""


def test_1000_random_trees_round_trip():
    for seed in range(1000):
        tree = random_tree(np.random.default_rng(seed), 30, 4)
        assert from_dsl(to_dsl(tree)) == tree


def test_a_text_means_what_it_says():
    hold = bt.Action("hold still", -1, running_while=(0, "<=", -1e-3))
    step = bt.Sequence("step", True, [bt.Action("1 for 3 then FAILURE", 1, bt.FAILURE, 3), hold])
    once = bt.OneShot("once", bt.Action("0", 0), bt.OneShotPolicy.ON_COMPLETION)
    wait = bt.Timeout("Timeout", bt.Action("2 then RUNNING", 2, bt.RUNNING), 2)
    both = bt.Parallel("Parallel", bt.ParallelPolicy.SuccessOnAll(True), [once, wait])
    guard = bt.Condition("obs[2] > 0.05", 2, ">", 0.05, step)
    expected = bt.Selector("stay upright", False, [guard, bt.Inverter("Inverter", bt.Repeat("again", both, 3))])
    assert from_dsl(GOOD) == expected
    assert from_dsl(to_dsl(expected)) == expected
    assert from_dsl(GOOD.replace("\n", "\r\n")) == expected


def test_names_of_features_and_actions():
    tree = from_dsl("Condition: angle >= 1\n  Action: left", features={"angle": 2}, actions={"left": 0})
    assert (tree.feature, tree.child.action) == (2, 0)
    with pytest.raises(ParseError, match=r"line 1, column 12: unknown feature 'angel'; did you mean 'angle'"):
        from_dsl("Condition: angel >= 1", features={"angle": 2})
    with pytest.raises(ParseError, match="did you mean 'left'"):
        from_dsl("Action: lef", actions={"left": 0})


@pytest.mark.parametrize(
    "name", ["", " padded ", '"quoted"', "back\\slash", "line\nbreak", "ünï # code", ":", "a\u2028b"]
)
def test_any_name_round_trips(name):
    for tree in (bt.Sequence(name, False, [bt.Action(name, 1)]), bt.Inverter(name, bt.Condition(name, 0, "<", 1.0))):
        assert from_dsl(to_dsl(tree)) == tree


@pytest.mark.parametrize(
    ("text", "line", "column", "hint"),
    [
        ("", 1, 1, "begin with a root"),
        ("Sequnce: a", 1, 1, "did you mean 'Sequence'"),
        ("Sequence: a\n\tAction: 1", 2, 1, "indent with spaces"),
        ("Sequence: a\n    Action: 1\n  Action: 2", 3, 3, "use one of 0, 4 spaces"),
        ("Action: 1\nAction: 2", 2, 1, "both below a Selector"),
        ("Sequence: a\n    Action: 1\n        Action: 2", 2, 5, "put it into a Sequence"),
        ("Inverter: a", 1, 1, "indent one node below"),
        ("not:\n  Action: 1\n  Action: 2", 1, 1, "put a Sequence or Selector"),
        ("Repeat(x):\n  Action: 1", 1, 8, "a number from 1"),
        ("Repeat:\n  Action: 1", 1, 7, "a number from 1"),
        ("OneShot(maybe):\n  Action: 1", 1, 9, "use one of"),
        ("Parallel(some): a", 1, 10, "Parallel(one)"),
        ("Sequence(mem): a", 1, 10, "Sequence(memory)"),
        ("Condition(x): obs[0] < 1", 1, 11, "write 'Condition:'"),
        ("Condition:", 1, 11, "write FEATURE OP NUMBER"),
        ("Condition: obs[0] 5", 1, 19, "use one of"),
        ("Condition: obs[0] <", 1, 20, "write FEATURE OP NUMBER"),
        ("Condition: obs[0] < nan", 1, 21, "write obs[NUMBER]"),
        ("Condition: obs[0] < 1 so", 1, 23, "end the line here"),
        ("Condition: obs[0] = 1", 1, 19, "comparisons are"),
        ("Action: -1", 1, 9, "write a number or 'none'"),
        ("Action: 1 for ever", 1, 15, "write an integer"),
        ("Action: 1 then GLORY", 1, 16, "use one of"),
        ("Action: 1 then", 1, 15, "write SUCCESS"),
        ('Action: 1 "open', 1, 11, "double quotes"),
        ("- Action: 1", 1, 1, "begins with the kind"),
        ("Action 1", 1, 8, "write 'Action: ...'"),
        ("\n".join("  " * i + "not:" for i in range(300)), 257, 513, "flatten"),
    ],
)
def test_errors_name_line_column_and_repair(text, line, column, hint):
    with pytest.raises(ParseError) as caught:
        from_dsl(text)
    assert (caught.value.line, caught.value.column) == (line, column)
    assert hint in caught.value.hint
    assert str(caught.value).startswith(f"line {line}, column {column}: ")


def refused(text):
    """Whether the text is refused; the refusal must say where and how to repair, an accepted text must round trip."""
    error = None
    try:
        tree = from_dsl(text)
    except ParseError as e:
        error = e
    if error is None:
        assert from_dsl(to_dsl(tree)) == tree
        return False
    assert min(error.line, error.column) >= 1
    assert error.hint
    return True


def test_100_damaged_texts_are_refused_or_read():
    rng = np.random.default_rng(0)
    count = 0
    for _ in range(400):
        characters = list(GOOD)
        for _ in range(3):
            at = int(rng.integers(len(characters)))
            characters[at : at + int(rng.integers(1, 4))] = (
                rng.choice(list('(:)[]"<>= \n\tx9')) if rng.random() < 0.8 else ""
            )
        count += refused("".join(characters))
    assert count >= 100


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="SequenceActionnot:()[]<>=\"'# \n\t0123456789obs.\\", max_size=120))
def test_no_text_crashes_the_parser(text):
    refused(text)
