"""Trajectories against agentevals and brute force, figures of runs against hand computation, the job."""

import itertools
import json

import numpy as np
import pytest
from core_agents import evaluation as ev
from core_agents import jobs
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
