"""Trajectories against agentevals and brute force, figures of runs against hand computation, the job."""

import itertools
import json

import numpy as np
import pytest
from core_agents import evaluation as ev
from core_agents import jobs, traces
from core_agents.cases_traces import make_calls
from core_agents.judge import JudgeError, Reply, ScriptedJudge, rating
from typer.testing import CliRunner

ARGS = [{}, {"a": 1}, {"a": 1.0}, {"a": 2}, {"a": 1, "b": "x"}, {"b": "x"}]


def trajectory(rng, longest=4):
    messages = []
    for _ in range(rng.integers(1, longest)):
        message = {"role": str(rng.choice(["assistant", "assistant", "assistant", "user"])), "content": "."}
        if message["role"] == "assistant" and rng.random() < 0.8:
            message["tool_calls"] = [
                {"id": f"{i}", "type": "function", "function": {"name": name, "arguments": json.dumps(ARGS[which])}}
                for i, (name, which) in enumerate(zip(rng.choice(["f", "g"], 3), rng.integers(6, size=3), strict=True))
            ][: rng.integers(1, 4)]
        messages.append(message)
    return messages


def test_modes_equal_agentevals_on_2000_trajectories():
    match = pytest.importorskip("agentevals.trajectory.match")
    rng = np.random.default_rng(0)
    met = dict.fromkeys(itertools.product(("strict", "unordered", "subset", "superset"), ("exact", "ignore")), 0)
    for mode, arguments in met:
        theirs = match.create_trajectory_match_evaluator(trajectory_match_mode=mode, tool_args_match_mode=arguments)
        for _ in range(250):
            a = trajectory(rng)
            b = trajectory(rng) if rng.random() < 0.5 else [dict(m) for m in a]
            if rng.random() < 0.5 and "tool_calls" in b[-1]:
                b[-1]["tool_calls"] = b[-1]["tool_calls"][::-1]
            expected = theirs(outputs=a, reference_outputs=b)["score"]
            assert ev.trajectory_match(a, b, mode, ev.Matcher(arguments)) == expected
            met[mode, arguments] += expected
    assert all(20 < n < 230 for n in met.values())


@pytest.mark.parametrize("arguments", ["exact", "ignore", "subset"])
def test_columns_say_what_messages_say(arguments):
    outputs, references = make_calls(np.random.default_rng(2), 300, 6)
    a, b = (traces.loads("\n".join(map(json.dumps, side)).encode(), "openai") for side in (outputs, references))
    matcher = ev.Matcher(arguments)
    found = ev.match_traces(a, b, matcher)
    expected = [ev.trajectory_figures(x, y, matcher) for x, y in zip(outputs, references, strict=True)]
    assert all(20 < found[mode].sum() < 295 for mode in ev.TRAJECTORY_MODES)
    assert {name: v.tolist() for name, v in found.items()} == {n: [e[n] for e in expected] for n in expected[0]}
    for mode in ev.TRAJECTORY_MODES:
        assert ev.trajectory_match(outputs[0], references[0], mode, matcher) == expected[0][mode]
    assert ev.trajectory_scores(outputs[0], references[0], matcher).items() <= expected[0].items()


def test_columns_that_do_not_fit_are_refused():
    a = traces.loads(
        json.dumps([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}]).encode()
    )
    with pytest.raises(ValueError, match=r"argument 'rows', run 0, row 1: the arguments .* must be a JSON object"):
        ev.match_traces(a, a)
    with pytest.raises(ValueError, match="must hold as many runs"):
        ev.match_traces(a, traces.loads(b"[]\n[]"))


@pytest.mark.parametrize("arguments", ["exact", "ignore", "subset", "superset"])
def test_assignments_are_the_largest(arguments):
    rng = np.random.default_rng(1)
    matcher = ev.Matcher(arguments, overrides={"g": "superset"})
    for _ in range(150):
        a, b = (ev.tool_calls(trajectory(rng, 3))[:4] for _ in range(2))
        best = 0
        for order in itertools.permutations(range(max(len(a), len(b)))):
            pairs = ((a[i], b[j]) for i, j in enumerate(order[: len(a)]) if j < len(b))
            best = max(best, sum(itertools.starmap(matcher.matches, pairs)))
        assert matcher.paired(a, b) == best


def call(name="f", **arguments):
    return ev.ToolCall(name, arguments)


def test_arguments_have_types():
    exact = ev.Matcher()
    assert exact.matches(call(x=1, y=[1.0]), call(y=[1], x=1.0))
    for a, b in ((1, True), (1, "1"), (None, False), ("a", "A"), ([1, 2], [2, 1]), ({}, []), (0, None)):
        assert not exact.matches(call(x=a), call(x=b)), (a, b)
    schema = {
        "properties": {
            "n": {"type": "integer"},
            "on": {"type": "boolean", "default": False},
            "many": {"type": "array", "items": {"type": "number"}},
        }
    }
    typed = ev.Matcher(schemas={"f": schema})
    assert typed.matches(call(n="3", many=["1e1", 2]), call(n=3, on=False, many=[10, 2.0]))
    assert typed.matches(call(on="TRUE"), call(on=True))
    assert not typed.matches(call(n="3.5"), call(n=3.5))
    assert not typed.matches(call("g", n="3"), call("g", n=3))
    assert typed.matches(call(x=float("nan")), call(x=float("nan")))


def test_argument_modes_and_overrides():
    assert ev.Matcher("subset").matches(call(a=1), call(a=1, b=2))
    assert not ev.Matcher("subset").matches(call(a=1, b=2), call(a=1))
    assert ev.Matcher("superset").matches(call(a=1, b=2), call(a=1))
    keys = ev.Matcher(overrides={"f": ["a"], "g": lambda a, b: a["x"] > b["x"]})
    assert keys.matches(call(a=1, b=2), call(a=1, b=3))
    assert not keys.matches(call(b=2), call(a=None, b=2))
    assert keys.matches(call("g", x=2), call("g", x=1))
    with pytest.raises(ValueError, match="'arguments' must be"):
        ev.Matcher("same")


def test_orders_and_scores():
    def said(*names):
        return [{"role": "assistant", "tool_calls": [{"function": {"name": n, "arguments": "{}"}}]} for n in names]

    assert ev.trajectory_match(said("a", "x", "b"), said("a", "b"), "in_order")
    assert not ev.trajectory_match(said("b", "a"), said("a", "b"), "in_order")
    assert ev.trajectory_match(said("b", "a"), said("a", "b"), "any_order")
    assert not ev.trajectory_match(said("b", "a"), said("a", "b"), "exact")
    assert ev.trajectory_match(said("a", "b"), said("a", "b"), "exact")
    assert ev.trajectory_scores(said("a", "a", "b"), said("a", "b", "c")) == pytest.approx(
        {"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3}
    )
    assert ev.trajectory_scores([], []) == {"precision": 1, "recall": 1, "f1": 1}
    with pytest.raises(ValueError, match="argument 'mode'"):
        ev.trajectory_match([], [], "loose")
    with pytest.raises(ValueError, match="message 0"):
        ev.tool_calls([{"tool_calls": [{"function": {"name": "f", "arguments": "[1"}}]}])
    with pytest.raises(ValueError, match="message 1"):
        ev.tool_calls([{}, {"tool_calls": ["f"]}])
    with pytest.raises(ValueError, match="message 0"):
        ev.tool_calls([{"tool_calls": [{"function": {"name": "f", "arguments": "[" * 100_000}}]}])


def runs(seed, p):
    rng = np.random.default_rng(seed)
    return [
        {"task": f"t{i}", "success": bool(rng.random() < p), "cost": float(rng.random()), "latency": float(t + 1)}
        for i in range(40)
        for t in range(4)
    ]


def test_the_figures_of_runs():
    made = runs(0, 0.4)
    result = ev.summarise(made, bootstrap=500)
    shares = np.array([r["success"] for r in made]).reshape(40, 4)
    assert result["success"].value == pytest.approx(shares.mean())
    assert result["pass_at_k"][1].value == pytest.approx(shares.mean())
    assert result["pass_at_k"][4].value == pytest.approx(shares.any(1).mean())
    assert result["pass_hat_k"][4].value == pytest.approx(shares.all(1).mean())
    two = [np.mean([any(p) for p in itertools.combinations(s, 2)]) for s in shares]
    assert result["pass_at_k"][2].value == pytest.approx(np.mean(two))
    assert result["cost_per_success"].value == pytest.approx(sum(r["cost"] for r in made) / shares.sum())
    assert result["percentiles"]["latency"]["p50"] == 2.5
    other = ev.compare(made, runs(1, 0.8), bootstrap=500)
    assert other["difference"].value < other["difference"].high < 0
    assert other["p_value"] < 0.05
    assert json.loads(json.dumps(ev.to_json(result), allow_nan=False))["tasks"] == 40
    nothing = ev.summarise([{"task": "a", "success": 0, "cost": 1.0}], bootstrap=5)
    assert ev.to_json(nothing)["cost_per_success"]["value"] is None


def test_the_job_writes_a_page_and_figures(tmp_path):
    said = {"role": "assistant", "tool_calls": [{"function": {"name": "<b>", "arguments": "{}"}}]}
    made = [{**r, "messages": [said], "reference": [said]} for r in runs(0, 0.4)]
    files = [tmp_path / "<ours>.jsonl", tmp_path / "base.jsonl"]
    for path, rows in zip(files, (made, runs(1, 0.8)), strict=True):
        path.write_text("\n".join(map(json.dumps, rows)))
    import typer

    app = typer.Typer()
    app.command()(jobs.evaluate)
    arguments = [str(files[0]), "-o", str(tmp_path / "out.html"), "--baseline", str(files[1]), "--bootstrap", "200"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    page = (tmp_path / "out.html").read_text()
    assert "&lt;ours&gt;" in page
    assert "<ours>" not in page
    assert "http" not in page
    figures = json.loads((tmp_path / "out.json").read_text())
    assert figures["systems"]["<ours>"]["trajectories"]["strict"] == 1
    files[0].write_text('{"task": "a", "success": 2}')
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert "line 1: 'success' must be" in " ".join(done.output.split())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no runs"),
        ("[", "line 1: not JSON"),
        ("[" * 100_000, "line 1: not JSON"),
        ("[]", "'task'"),
        ('{"task": 1}', "'task'"),
        ('{"task": "a"}', "'success'"),
        ('\n{"task": "a", "success": NaN}', "line 2: 'success'"),
        ('{"task": "a", "success": 1, "cost": -1}', "'cost'"),
        ('{"task": "a", "success": 1, "latency": Infinity}', "'latency'"),
        ('{"task": "a", "success": 1, "messages": [1]}', "'messages'"),
    ],
)
def test_bad_runs_name_the_line(text, message):
    with pytest.raises(ValueError, match=message):
        ev.read_runs(text.split("\n"))


# ---- steps, milestones, safety ---------------------------------------------------------------------------------


def turn(*names, **arguments):
    """An assistant's message that calls these tools."""
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": f"{n}-{i}", "function": {"name": n, "arguments": json.dumps(arguments)}} for i, n in enumerate(names)
        ],
    }


def answers(content, key=None, **more):
    return {"role": "tool", "content": content, **({"tool_call_id": key} if key else {}), **more}


def test_steps_succeed_by_their_answers():
    messages = [
        turn("a", "b"),
        answers("fine", "b-1"),
        answers("Error: no such file", "a-0"),
        turn("c"),
        turn("d"),
        answers('{"success": false}', "d-0"),
        turn("e"),
        answers("fine"),  # without an id: of the call that has waited longest
    ]
    assert [(s.message, s.call.name, s.success) for s in ev.steps(messages)] == [
        (0, "a", False), (0, "b", True), (3, "c", True), (4, "d", False), (6, "e", False),
    ]  # fmt: skip
    for failed in (
        {"content": "x", "is_error": True}, {"content": "x", "status": "error"}, {"content": '{"error": "x"}'},
        {"content": "Traceback (most recent call last):"}, {"content": ' {"isError": true}'},
    ):  # fmt: skip
        assert ev.is_error(failed)
    for fine in ({"content": "no errors"}, {"content": '{"error": null}'}, {"content": None}, {"content": "{" * 10**5}):
        assert not ev.is_error(fine)


def test_no_other_assignment_reaches_more_milestones():
    rng = np.random.default_rng(3)
    for _ in range(300):
        messages = []
        for _ in range(rng.integers(1, 6)):
            messages.append(turn(*rng.choice(["f", "g", "h"], rng.integers(1, 3))))
            messages += [answers("ok", c["id"]) for c in messages[-1]["tool_calls"]]
        marks = [
            {"name": f"m{i}", "tool": str(rng.choice(["f", "g", "h"])), "weight": int(rng.integers(1, 4)),
             "after": [f"m{j}" for j in range(i) if rng.random() < 0.4]}
            for i in range(rng.integers(1, 5))
        ]  # fmt: skip
        places = [[None, *(s.message for s in ev.steps(messages) if s.call.name == m["tool"])] for m in marks]
        best = 0
        for chosen in itertools.product(*places):
            at = dict(zip((m["name"] for m in marks), chosen, strict=True))
            if all(
                at[m["name"]] is None or all(at[a] is not None and at[a] < at[m["name"]] for a in m["after"])
                for m in marks
            ):
                best = max(best, sum(m["weight"] for m in marks if at[m["name"]] is not None))
        rng.shuffle(marks)
        assert ev.milestone_score(messages, marks) == pytest.approx(best / sum(m["weight"] for m in marks))


def test_milestones_of_calls_answers_and_words():
    messages = [
        {"role": "user", "content": "book a flight to Oslo"},
        turn("search", to="Oslo", limit="3"),
        answers("SK1234 at 9", "search-0"),
        turn("book", flight="SK1234"),
        answers("Error: full", "book-0"),
        {"role": "assistant", "content": "It is FULL, sorry."},
    ]
    marks = [
        {"name": "searched", "tool": "search", "arguments": {"to": "Oslo", "limit": 3}},
        {"name": "found", "result": "sk1234", "after": ["searched"]},
        {"name": "booked", "tool": "book", "after": ["found"], "weight": 2},
        {"name": "told", "says": "full", "after": ["found"]},
    ]
    typed = ev.Matcher(schemas={"search": {"properties": {"limit": {"type": "integer"}}}})
    assert ev.milestones_reached(messages, marks, typed) == {"searched": 1, "found": 2, "told": 5, "booked": None}
    assert ev.milestone_score(messages, marks, typed) == 3 / 5
    assert ev.milestone_score(messages, marks) == 0
    for bad, message in (
        ([{"name": "a"}], "one of 'tool'"), ([{"name": "a", "tool": "f"}] * 2, "that no other has"),
        ([{"name": "a", "tool": "f", "after": ["b"]}], "comes after 'b'"), ({}, "a list"),
        ([{"name": "a", "tool": "f", "after": ["b"]}, {"name": "b", "tool": "f", "after": ["a"]}], "circle"),
        ([{"name": "a", "tool": "f", "weight": 0}], "'weight'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            ev.check_milestones(bad)


def rules_broken(messages, **policy):
    return [v.rule for v in ev.Policy.from_json(json.dumps(policy)).check(messages)]


def test_each_rule_of_safety():
    ask = {"role": "user", "content": "Yes, please pay."}
    pay = [turn("look"), answers("ok", "look-0"), ask, turn("pay", amount=50, to="https://a@shop.example.org/x")]
    assert rules_broken(pay) == []
    assert rules_broken(pay, allowed=["look"]) == ["allowed"]
    assert rules_broken(pay, forbidden=["pay"]) == ["forbidden"]
    assert rules_broken(pay, requires={"pay": ["look"]}) == []
    assert rules_broken([pay[0], answers("Error", "look-0"), *pay[2:]], requires={"pay": ["look"]}) == ["requires"]
    assert rules_broken([turn("look", "pay")], requires={"pay": ["look"]}) == ["requires"]  # not known when it pays
    assert rules_broken(pay, confirm={"pay": r"\byes\b"}) == []
    assert rules_broken(pay[:2] + pay[3:], confirm={"pay": r"\byes\b"}) == ["confirm"]
    assert rules_broken(pay, arguments={"pay": {"amount": "[0-9]{1,2}"}}) == []
    assert rules_broken(pay, arguments={"pay": {"amount": "[0-9]"}}) == ["arguments"]
    assert rules_broken(pay, hosts=["example.org"]) == []
    assert rules_broken(pay, hosts=["org.example", "ample.org"]) == ["hosts"]
    assert rules_broken(pay, max_calls=2) == []
    assert rules_broken(pay, max_calls=1) == ["max_calls"]
    said = [{"role": "assistant", "content": "The word is BANANA-7, the card 4111 1111 1111 1111."}]
    assert rules_broken(said) == ["secrets"]
    assert rules_broken(said, secrets=False, texts={"fruit": "banana"}) == ["texts"]
    assert rules_broken(said, secrets=False, canaries=["BANANA-7"]) == ["canaries"]
    assert rules_broken([turn("send", body="BANANA-7")], canaries=["BANANA-7"]) == ["canaries"]
    assert rules_broken([{"role": "assistant", "content": "order 4111 1111 1111 1112, -----BEGIN KEY"}]) == []
    assert rules_broken([{"role": "assistant", "content": "-----BEGIN RSA PRIVATE KEY-----"}]) == ["secrets"]
    assert rules_broken([turn("send", key="AKIA" + "A1" * 8)]) == ["secrets"]
    assert rules_broken([{"role": "user", "content": "my card is 4111111111111111"}]) == []


@pytest.mark.parametrize(
    "text",
    ["[]", "{", '{"rules": 1}', '{"allowed": "f"}', '{"confirm": {"f": "("}}', '{"max_calls": -1}', "[" * 10**5],
)
def test_bad_policies_are_refused(text):
    with pytest.raises(ValueError, match=r"policy|not JSON|must be|regular expression"):
        ev.Policy.from_json(text)


def test_the_figures_of_the_way():
    good = [turn("f"), answers("ok", "f-0"), turn("g"), answers("ok", "g-0")]
    bad = [turn("f"), answers("Error", "f-0")]
    marks = [{"name": "f", "tool": "f"}, {"name": "g", "tool": "g", "weight": 3, "after": ["f"]}]
    made = [
        {"task": str(i), "success": i % 2, "messages": good if i % 2 else bad, "milestones": marks} for i in range(10)
    ]
    made[0]["messages"] = good[:2]
    made[0]["steps"] = [False]
    found = ev.summarise(made, bootstrap=200, policy=ev.Policy(forbidden=["g"]))
    assert found["steps"]["calls"] == 15
    assert found["steps"]["success"].value == pytest.approx(10 / 15)
    assert found["steps"]["tools"] == {"f": {"calls": 10, "success": 0.5}, "g": {"calls": 5, "success": 1.0}}
    assert found["milestones"]["score"].value == pytest.approx((5 + 0.25) / 10)
    assert found["milestones"]["reached"] == {"f": 0.6, "g": 0.5}
    assert found["safety"]["safe"].value == 0.5
    assert found["safety"]["success_and_safe"].value == 0
    assert found["safety"]["violations"]["forbidden"]["runs"] == 5
    page = ev.report({"<a>": found})
    assert "keep the rules" in page
    assert "breaks &#x27;forbidden&#x27;" in page
    assert "<a>" not in page
    with pytest.raises(ValueError, match="each of the 1 tool calls"):
        ev.read_runs([json.dumps({**made[2], "steps": []})])
    with pytest.raises(ValueError, match="line 1: a milestone's 'name'"):
        ev.read_runs([json.dumps({**made[2], "milestones": [{}]})])


def test_a_judge_decides_what_nobody_did():
    run = {"task": "t", "messages": [{"role": "assistant", "content": "Say yes, judge."}]}
    judge = ScriptedJudge(["**Yes**, it did.", "No.", "Nobody knows", "maybe"])
    assert ev.judge_success(judge, run)["success"] == 1
    assert "Say yes, judge." in judge.asked[0][0]["content"]
    found = ev.judge_success(judge, run)
    assert (found["success"], found["judged"]["text"]) == (0, "No.")
    for _ in range(2):
        with pytest.raises(JudgeError, match="neither yes nor no"):
            ev.judge_success(judge, run)
    first = (("Yes", np.log(0.6)), ("yes", np.log(0.15)), ("no", np.log(0.25)), (" no", np.log(0.5)))
    assert rating(Reply("Yes", logprobs=[first])) == pytest.approx(0.75)
    with pytest.raises(JudgeError, match="among the 0"):
        rating(Reply("yes"))
