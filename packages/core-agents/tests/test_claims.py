"""The claims hold and are reported."""

import pytest
from core_agents import games
from core_agents.claims import action_tokens, complexity, evaluation, mast, portal
from core_agents.reference.mast import fault_counts as counts


def test_every_action_survives(tmp_path):
    claim = action_tokens.claim("cpu", 0, tmp_path)
    assert claim.holds
    assert claim.measured["share that survives, 51 tokens"] == (1.0, 0.0)


def test_classes_are_counted_right(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    few = {name: complexity.KNOWN[name] for name in ("halving", "library_maximum", "common")}
    monkeypatch.setattr(complexity, "KNOWN", few)
    claim = complexity.claim("cpu", 0, tmp_path)
    assert claim.holds
    assert claim.plot.read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(complexity, "KNOWN", dict.fromkeys(few, "n^3; n^3"))
    assert not complexity.claim("cpu", 0, tmp_path).holds


def test_later_generations_play_better(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    pytest.importorskip("gymnasium")
    monkeypatch.setattr(portal, "find_spec", lambda name: None)
    monkeypatch.setattr(portal, "gym", lambda name: games.gym(name, steps=40))
    for name, small in {"SEARCHES": 1, "GENERATIONS": 3, "CANDIDATES": 4}.items():
        monkeypatch.setattr(portal, name, small)
    claim = portal.claim("cpu", 0, tmp_path)
    (first, _), (last, _), (best, _) = claim.measured.values()
    assert claim.holds == (last > first)
    assert best > 8
    assert claim.plot.read_bytes().startswith(b"\x89PNG")


def test_answers_are_read_and_faults_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(mast.itertools, "product", lambda *_, **__: [(False,) * 14, (True, False) * 7])
    monkeypatch.setattr(mast, "fault_counts", lambda code, seed, _: counts(code, seed, 10))
    claim = mast.claim("cpu", 0, tmp_path)
    assert claim.holds
    assert claim.measured["the same, by the first yes or no after a code"][0] > 0
    monkeypatch.setattr(mast, "f1_score", lambda _: 0.5)
    assert not mast.claim("cpu", 0, tmp_path).holds


def test_reliability_differs_from_success(tmp_path, monkeypatch):
    pytest.importorskip("gymnasium")
    claim = evaluation.claim("cpu", 0, tmp_path)
    assert claim.holds
    monkeypatch.setattr(evaluation, "trials", lambda *_: [{"task": str(i), "success": 1.0} for i in range(50)] * 16)
    assert not evaluation.claim("cpu", 0, tmp_path).holds
