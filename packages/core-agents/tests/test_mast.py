"""The parser over all answers in all forms, the taxonomies, the prompt, detectors against injected faults."""

import itertools
import json

import numpy as np
import pytest
from core_agents import jobs, mast
from core_agents.judge import ScriptedJudge
from core_agents.reference import traces as reference
from core_agents.reference.mast import FAULTS, VOCABULARY, clean, f1_score, fault_counts, forms
from hypothesis import given, settings
from hypothesis import strategies as st
from typer import Typer
from typer.testing import CliRunner

CODES = mast.PAPER.codes


@pytest.mark.parametrize("form", forms(mast.PAPER))
def test_answers_in_all_forms(form):
    """Each eighth of the 2^14 answers; benchmarks/bench_mast.py reads them all."""
    write = forms(mast.PAPER)[form]
    start = list(forms(mast.PAPER)).index(form)
    for verdicts in itertools.islice(itertools.product((False, True), repeat=14), start, None, 8):
        answer = mast.parse_answer(write(verdicts))
        assert tuple(answer.modes.values()) == verdicts, write(verdicts)
        assert not answer.problems


@pytest.mark.parametrize("version", mast.TAXONOMIES)
@pytest.mark.parametrize("form", forms(mast.PAPER))
def test_all_versions_in_all_forms(version, form):
    taxonomy = mast.TAXONOMIES[version]
    rng = np.random.default_rng(0)
    for _ in range(60):
        verdicts = tuple((rng.random(14) < 0.5).tolist())
        answer = mast.parse_answer(forms(taxonomy)[form](verdicts), taxonomy)
        assert tuple(answer.modes.values()) == verdicts
        assert (answer.array() == verdicts).all()


def test_where_the_published_parser_is_fooled():
    """agentdash 0.1.0 finds the "no" of the names "Ignored ..." and "No or ..." before the verdict."""
    agentdash = mast.TAXONOMIES["agentdash-0.1.0"]
    for name in ("2.5", "3.2"):
        answer = mast.parse_answer(f"{name} {agentdash[name].name}: Yes", agentdash)
        assert answer.modes[name] is True


def test_what_is_unclear_is_not_a_no():
    answer = mast.parse_answer(
        "C.1.1 yes\nC.1.2 maybe\nC.1.3 yes\nC.1.3 no\nC.1.6 yes\nC.2.1: yes / no\nC.2.2 - not at all"
    )
    assert answer.modes["1.1"] is True
    assert all(answer.modes[c] is None for c in CODES[1:])
    assert set(answer.problems) >= {
        "1.2 says neither yes nor no",
        "1.3 is answered twice, differently",
        "1.6 is not a mode of paper-v3",
        "2.1 says neither yes nor no",
        "2.4 is not answered",
    }
    assert (answer.array() == [1] + [-1] * 13).all()


def test_the_last_block_counts_and_the_template_does_not():
    template = "@@\nC.1.1 yes or no\n@@"
    answer = mast.parse_answer(f"{template}\nSo:\n@@\nA. Two lines\nof it.\nB. yes\nC.1.1 no\n@@")
    assert answer.modes["1.1"] is False
    assert answer.completed is True
    assert answer.summary == "Two lines\nof it."


def test_json_with_objects_and_words():
    text = 'x {"modes": {"FM-1.1": {"present": true, "why": "no check"}, "1.2": "No", "1.3": 1, "1.4": "perhaps"}}'
    answer = mast.parse_answer(text)
    assert [answer.modes[c] for c in CODES[:4]] == [True, False, True, None]


def test_one_line():
    assert mast.parse_answer("1.1: yes, 1.2: no; 1.3 yes 2.5 Ignored other agent's input: yes").array()[
        :3
    ].tolist() == [1, 0, 1]


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet='C.123 @\n|{}[]":*yesno-,', max_size=120))
def test_any_text_is_read_without_an_exception(text):
    answer = mast.parse_answer(text)
    assert set(answer.modes) == set(CODES)


def test_deep_json_is_no_crash():
    assert mast.parse_answer('{"1.1":' * 50_000).modes["1.1"] is None


def test_the_crosswalk():
    paper, definitions, package = (mast.TAXONOMIES[v] for v in ("paper-v3", "definitions", "agentdash-0.1.0"))
    assert mast.crosswalk("3.2", definitions, package) == (("3.3",), True)
    assert mast.crosswalk("3.2", paper, package) == (("3.2", "3.3"), False)
    assert mast.crosswalk("3.3", paper, package) == (("3.2",), False)
    for a, b in itertools.permutations(mast.TAXONOMIES.values(), 2):
        assert all(mast.crosswalk(c, a, b) == ((c,), True) for c in CODES[:12])
    assert [len([m for m in paper.modes if m.stage == s]) for s in ("pre", "exec", "post")] == [3, 7, 4]
    assert paper["FM-2.5"].category == "Inter-agent misalignment"
    with pytest.raises(KeyError):
        paper["1.6"]


def test_a_scripted_judge_end_to_end():
    judge = ScriptedJudge([forms(mast.PAPER)["short"]([c == "3.1" for c in CODES])])
    answer, reply = mast.judge_trace(judge, "x" * 200, examples=[("old trace", "@@ old answer @@")])
    assert [c for c, v in answer.modes.items() if v] == ["3.1"]
    assert reply.text == answer.text
    asked = judge.asked[0]
    assert [m["role"] for m in asked] == ["system", "user", "assistant", "user"]
    assert all(m.name in asked[0]["content"] and m.code in asked[0]["content"] for m in mast.PAPER.modes)
    assert mast.parse_answer(asked[0]["content"]).array().max() == -1, "the prompt itself answers nothing"
    cut = mast.judge_prompt("a" * 500 + "b" * 500, max_characters=100)[-1]["content"]
    assert "[900 characters left out]" in cut
    assert cut.count("a" * 50) == 1
    assert cut.endswith("b" * 50)


# ---- detectors ----


@pytest.mark.parametrize("code", FAULTS)
def test_injected_faults_are_found(code):
    counts = fault_counts(code, int(code.replace(".", "")), 60)
    assert f1_score(counts) >= 0.9, counts


def test_findings_name_their_messages():
    def said(*texts):
        return [{"role": "assistant", "content": t} for t in texts]

    a, b, c = "read the first file of all", "write a test for this one", "now run every test again"
    end = "The task is completed."
    assert mast.detect(said(a, b, c, end)) == []
    assert [(f.code, f.messages) for f in mast.detect(said(a, b, c, b, end))] == [("1.3", (3,))]
    assert [(f.code, f.messages) for f in mast.detect(said("Do it all for me please", a, b, c, a, b, end))] == [
        ("1.4", (4, 5))
    ]
    assert [(f.code, f.messages) for f in mast.detect(said(a, b, c, a, b, end))] == [("2.1", (3, 4))]
    assert [(f.code, f.messages) for f in mast.detect(said(a, end, b, c))] == [("1.5", (1, 3))]
    assert [(f.code, f.messages) for f in mast.detect(said(a, b))] == [("3.1", (1,))]
    assert mast.detect(said("ok", "ok", "ok", end)) == []
    assert mast.detect([]) == []
    call = {"id": "1", "function": {"name": "f", "arguments": "{}"}}
    open_ = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    assert [f.why for f in mast.detect(open_)] == ["the trace ends with a tool call that nothing answers"]
    assert "[0] assistant:" in mast.trace_text(said(a))


def test_similarity_is_jaccards():
    rng = np.random.default_rng(3)
    base = list(rng.choice(VOCABULARY, 400))
    for share in (0.0, 0.02, 0.1, 0.3):
        other = [w if rng.random() > share else "zz" for w in base]
        runs = [set(zip(x, x[1:], x[2:], strict=False)) for x in (base, other)]
        jaccard = len(runs[0] & runs[1]) / len(runs[0] | runs[1])
        texts = [" ".join(x).encode() for x in (base, other)]
        made = {
            "text": np.frombuffer(b"".join(texts), np.uint8),
            "offsets": np.cumsum([0, *map(len, texts)]),
            "sketches": np.empty((2, 1024), np.int64),
        }
        a, b = reference.text_sketches(made)["sketches"]
        estimate = ((a == b) & (a >= 0)).sum() / ((a >= 0) | (b >= 0)).sum()
        assert abs(estimate - jaccard) < 0.12


def test_the_job_runs_detectors_without_a_network(tmp_path):
    app = Typer()
    app.command()(jobs.judge)
    traces, out = tmp_path / "t.jsonl", tmp_path / "out.jsonl"
    traces.write_text(
        json.dumps(clean(np.random.default_rng(0))) + "\n" + json.dumps([{"role": "user", "content": "Hi"}])
    )
    done = CliRunner().invoke(app, [str(traces), "-o", str(out)])
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [[f["code"] for f in row["detected"]] for row in rows] == [[], ["3.1"]]
    for bad in (["--taxonomy", "v0"], ["--endpoint", "file:///x"]):
        assert CliRunner().invoke(app, [str(traces), "-o", str(out), *bad]).exit_code == 2
    traces.write_text("{}")
    assert CliRunner().invoke(app, [str(traces), "-o", str(out)]).exit_code == 2
