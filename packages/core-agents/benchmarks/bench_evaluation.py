"""1,000,000 recorded tool calls against as many of references: every mode and score of each run.

Run with `CORE_NUM_THREADS=1 pytest packages/core-agents/benchmarks/bench_evaluation.py -s`. The peers are agentevals
and this package's own Python over messages, both on few of the runs.
"""

import json
import time
from functools import partial

import numpy as np
import pytest
from core_agents import evaluation, traces
from core_agents.cases_traces import make_calls
from core_registry.timing import fastest

RUNS, MESSAGES, FEW = 1000, 20, 300


cpu = partial(fastest, clock=time.process_time)


@pytest.fixture(scope="module")
def sides():
    """Runs of ours and references as JSON lines, repeated until they hold a million tool calls of ours."""
    outputs, references = make_calls(np.random.default_rng(0), RUNS, MESSAGES)
    calls = sum(len(m.get("tool_calls", ())) for run in outputs for m in run)
    times = -(-1_000_000 // calls)
    return (
        outputs,
        references,
        [("\n".join(map(json.dumps, side)) + "\n").encode() * times for side in (outputs, references)],
        times,
    )


@pytest.mark.parametrize("arguments", ["exact", "ignore"])
def test_a_million_calls(sides, arguments):
    outputs, references, texts, times = sides
    matcher = evaluation.Matcher(arguments)
    ours, theirs = (traces.loads(text, "openai") for text in texts)
    reading = cpu(lambda: [traces.loads(text, "openai") for text in texts], 0)
    found, seconds = (
        evaluation.match_traces(ours, theirs, matcher),
        cpu(lambda: evaluation.match_traces(ours, theirs, matcher), 3),
    )
    pairs = list(zip(outputs[:FEW], references[:FEW], strict=True))
    expected = [evaluation.trajectory_figures(a, b, matcher) for a, b in pairs]
    peer = cpu(lambda: [evaluation.trajectory_figures(a, b, matcher) for a, b in pairs])
    for name, column in found.items():
        assert column[:FEW].tolist() == [e[name] for e in expected]
        assert (column.reshape(times, RUNS) == column[:RUNS]).all()
    calls, wanted = int(ours["call"].sum()), int(theirs["call"].sum())
    few = sum(len(m.get("tool_calls", ())) for run in outputs[:FEW] for m in run)
    print(
        f"\n{arguments} arguments: {calls} calls of {len(ours)} runs against {wanted}, all modes and scores: "
        f"{seconds:.2f} s ({calls / seconds / 1e6:.1f} M/s); reading {sum(map(len, texts)) / 1e6:.0f} MB of JSON: "
        f"{reading:.2f} s; Python over messages {peer / few * calls:.1f} s ({few / peer / 1e6:.2f} M/s), "
        f"ratio {peer / few * calls / seconds:.0f}, equal"
    )


def test_against_agentevals(sides):
    match = pytest.importorskip("agentevals.trajectory.match")
    outputs, references, texts, _ = sides
    ours, theirs = (traces.loads(text, "openai") for text in texts)
    found, seconds = evaluation.match_traces(ours, theirs), cpu(lambda: evaluation.match_traces(ours, theirs), 3)
    evaluator = match.create_trajectory_match_evaluator(trajectory_match_mode="unordered", tool_args_match_mode="exact")
    pairs = list(zip(outputs[:FEW], references[:FEW], strict=True))
    expected = [evaluator(outputs=a, reference_outputs=b)["score"] for a, b in pairs]
    peer = cpu(lambda: [evaluator(outputs=a, reference_outputs=b)["score"] for a, b in pairs], 0)
    assert found["unordered"][:FEW].tolist() == expected
    each = peer / FEW * len(ours)
    print(f"\nagentevals, unordered alone: {each:.0f} s for these runs, ratio {each / seconds:.0f}, equal")
