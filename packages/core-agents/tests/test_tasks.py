"""Actions that a network chooses."""

import numpy as np
import pytest
from core_agents import BatchedTree, compile, from_dsl  # noqa: A004
from core_agents.tasks import Tasks

TEXT = """
Selector: s
    Condition: x > 0
        Action: aim while y > 0
    Condition: x < -1
        Action: flee
    Action: wait
"""
TREE = from_dsl(TEXT, {"x": 0, "y": 1}, {"wait": 0, "aim": 100, "flee": 101})


def test_each_policy_is_asked_once_with_its_rows():
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(500, 2)).astype(np.float32)
    batched = BatchedTree(compile(TREE, 2), 500)
    batched.tick(observations)
    asked = []
    weights = rng.normal(size=(2, 5))

    def aim(rows):
        asked.append(rows)
        return rows @ weights

    tasks = Tasks({100: aim, 101: lambda rows: np.full(len(rows), 3)})
    actions = tasks.resolve(batched.actions, observations)
    x = observations[:, 0]
    np.testing.assert_array_equal(actions, np.where(x > 0, (observations @ weights).argmax(1), np.where(x < -1, 3, 0)))
    assert len(asked) == 1
    np.testing.assert_array_equal(asked[0], observations[x > 0])
    assert 100 in batched.actions
    np.testing.assert_array_equal(tasks.resolve(np.zeros(500, np.int32), observations), np.zeros(500))
    assert len(asked) == 1


def test_a_torch_module_decides():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 6)
    )
    seen, images = torch.randn(40, 2), torch.randn(40, 1, 8, 8)
    batched = BatchedTree(compile(TREE, 2), 40)
    batched.tick(seen)
    tasks = Tasks({100: network, 101: lambda rows: [7] * len(rows)})
    actions = tasks.resolve(batched.actions, images)
    expected = torch.where(seen[:, 0] > 0, network(images).argmax(1), torch.where(seen[:, 0] < -1, 7, 0))
    assert torch.equal(actions, expected.int())
    there = tasks.resolve(batched.actions.numpy(), images.numpy())
    np.testing.assert_array_equal(there, actions.numpy())


@pytest.mark.parametrize("answer", [np.zeros(3), np.zeros(4, np.int64), np.zeros((4, 2)), "left", np.zeros((3, 0))])
def test_what_is_no_choice_is_refused(answer):
    with pytest.raises(ValueError, match="the policy of task 5 must give ids"):
        Tasks({5: lambda rows: answer}).resolve(np.full(3, 5), np.zeros((3, 1)))


def test_bad_arguments():
    with pytest.raises(ValueError, match="rows"):
        Tasks({}).resolve(np.zeros(3), np.zeros((2, 1)))
    with pytest.raises(ValueError, match="negative"):
        Tasks({-1: len})
