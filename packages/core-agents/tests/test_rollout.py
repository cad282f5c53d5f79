"""The job and the demonstration, on Gymnasium's own environments."""

import json

import numpy as np
import pytest
import typer
from core_agents import demo
from core_agents.games import Game
from core_agents.rollout import environments, play, rollout
from typer.testing import CliRunner

gymnasium = pytest.importorskip("gymnasium")


@pytest.fixture
def run(tmp_path):
    app = typer.Typer()
    app.command()(rollout)

    def call(text, *options):
        tree = tmp_path / "tree.txt"
        tree.write_text(text)
        result = CliRunner().invoke(app, [str(tree), "-o", str(tmp_path / "out.json"), *options])
        return result, tmp_path / "out.json"

    return call


def test_rollout_writes_the_returns(run):
    result, path = run("Condition: angle > 0\n  Action: right", "--agents", "50", "--steps", "30")
    assert result.exit_code == 0, result.output
    written = json.loads(path.read_text())
    assert len(written["returns"]) == 50
    assert written["env"] == "CartPole-v1"
    assert written["mean_return"] == pytest.approx(np.mean(written["returns"]))


def test_rollout_of_an_environment_without_a_vectorised_form(run):
    text = "Selector: push\n  Condition: velocity < 0\n    Action: left\n  Action: right"
    result, path = run(text, "--env", "MountainCar-v0", "--agents", "3", "--steps", "199")
    assert result.exit_code == 0, result.output
    assert max(json.loads(path.read_text())["returns"]) > -199


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("Sequnce: a", (), "line 1, column 1"),
        ("Condition: obs[4] > 0", (), "features"),
        ("Action: 5", (), "CartPole-v1 has 2"),
        ("Action: 0", ("--env", "Pendulum-v1"), "discrete actions"),
    ],
)
def test_rollout_says_what_is_wrong(run, text, options, said):
    result, path = run(text, "--agents", "2", "--steps", "2", *options)
    assert result.exit_code != 0
    assert said in " ".join((result.output + str(result.exception)).replace("│", "").split())
    assert not path.exists()


def test_an_agent_that_emits_nothing_repeats_its_action():
    game = Game("any", ("x",), ("stop", "go"), "return", "")
    act = game.policy(game.parse("Condition: x > 0\n  Action: go"), 2)
    assert act(np.float32([[1], [-1]])).tolist() == [1, 0]
    assert act(np.float32([[-1], [1]])).tolist() == [1, 1]


def test_play_counts_first_episodes_only():
    made = environments("CartPole-v1", 20)
    played = play(lambda o: np.zeros(len(o), np.int64), made, range(100), 0)
    made.close()
    assert (played.returns == played.lengths).all()
    assert played.lengths.max() < 15


def test_demo(tmp_path):
    result = demo.demo(tmp_path)
    assert result.difference == 0
    assert result.ratio > 10
    assert result.pictures[0].path.stat().st_size > 10_000
