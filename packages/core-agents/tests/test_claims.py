"""The claims hold and are reported."""

import numpy as np
import pytest
from core_agents import games
from core_agents.claims import action_tokens, complexity, evaluation, mast, portal
from core_agents.reference.mast import fault_counts as counts

PNG = b"\x89PNG"


def test_every_action_survives(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(action_tokens, "find_spec", lambda _: None)
    claim = action_tokens.claim("cpu", 0, tmp_path)
    assert claim.holds
    assert claim.measured["share that survives, 51 tokens"] == (1.0, 0.0)
    monkeypatch.setattr(action_tokens, "find_spec", lambda _: True)
    for better in (True, False):
        kills = {"the expert": [20.0], "all three stages": [9.0], "imitation alone": [3.0 if better else 9.5]}
        monkeypatch.setattr(action_tokens, "post_training", lambda _, k=kills: k)
        claim = action_tokens.claim("cpu", 0, tmp_path)
        assert claim.holds == better
        assert claim.measured["kills, all three stages"] == (9.0, 0.0)
        assert claim.plot.read_bytes().startswith(PNG)


def test_the_three_stages_run_in_doom():
    pytest.importorskip("torch")
    pytest.importorskip("vizdoom")
    from core_agents.claims import jarvis

    size = jarvis.Size(asked=60, imitated=40, steps=(2, 2, 2), batch=4, seeds=1, episodes=1, dim=16, ticks=40)
    kills = action_tokens.post_training(0, size)
    assert kills["the expert"][0] > 0
    assert list(kills) == ["the expert", "all three stages", "imitation alone"]
    made = jarvis.mouse_doom.play(jarvis._quantised, [1], ticks=30, keep=True)
    for e, offset, enemies in zip(
        jarvis.imitation(made, 30), made.features[:, 0], made.features[:, 3], strict=True
    ):  # the actions that are imitated turn towards the enemy
        _, cameras, counts = jarvis.TOKENS.decode(e.labels[e.labels >= 0].numpy()[None])
        turn = int(cameras[0, 0]) % 11 - 5
        assert counts[0] == 1
        assert turn == 5 if not enemies else turn == 0 or np.sign(turn) == np.sign(offset)


def test_classes_are_counted_right(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    few = {name: complexity.KNOWN[name] for name in ("halving", "library_maximum", "common")}
    monkeypatch.setattr(complexity, "KNOWN", few)
    claim = complexity.claim("cpu", 0, tmp_path)
    assert claim.holds
    assert claim.plot.read_bytes().startswith(PNG)
    monkeypatch.setattr(complexity, "KNOWN", dict.fromkeys(few, "n^3; n^3"))
    assert not complexity.claim("cpu", 0, tmp_path).holds


def test_later_generations_play_better(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    pytest.importorskip("gymnasium")
    monkeypatch.setattr(portal, "find_spec", lambda name: None)
    monkeypatch.setattr(portal, "gym", lambda name: games.gym(name, steps=40))
    for name, small in {"SEARCHES": 1, "GENERATIONS": 3, "CANDIDATES": 4, "SEEDS": 3}.items():
        monkeypatch.setattr(portal, name, small)
    claim = portal.claim("cpu", 0, tmp_path)
    (first, _), (last, _), (best, _), *_ = claim.measured.values()
    assert claim.holds == (last > first)
    assert best > 8
    assert claim.plot.read_bytes().startswith(PNG)


def test_answers_are_read_and_faults_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(mast.itertools, "product", lambda *_, **__: [(False,) * 14, (True, False) * 7])
    monkeypatch.setattr(mast, "fault_counts", lambda code, seed, _: counts(code, seed, 10))
    pytest.importorskip("matplotlib")
    claim = mast.claim("cpu", 0, tmp_path)
    assert claim.holds
    assert claim.plot.read_bytes().startswith(PNG)
    assert claim.measured["the same, by the first yes or no after a code"][0] > 0
    monkeypatch.setattr(mast, "f1_score", lambda _: 0.5)
    assert not mast.claim("cpu", 0, tmp_path).holds


def test_reliability_differs_from_success(tmp_path, monkeypatch):
    pytest.importorskip("gymnasium")
    pytest.importorskip("matplotlib")
    claim = evaluation.claim("cpu", 0, tmp_path)
    assert claim.holds
    assert claim.plot.read_bytes().startswith(PNG)
    monkeypatch.setattr(evaluation, "trials", lambda *_: [{"task": str(i), "success": 1.0} for i in range(50)] * 16)
    assert not evaluation.claim("cpu", 0, tmp_path).holds
