"""Games that a behaviour tree plays, one agent a seed: Gymnasium's environments and VizDoom's scenarios.

A :class:`Game` names its features and actions, so that a tree's text can be read (:meth:`Game.parse`), and plays one
episode for each seed (:meth:`Game.play`). VizDoom needs the wheel ``vizdoom``; no window is opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from shutil import rmtree
from tempfile import mkdtemp
from threading import Lock
from typing import Any, Protocol
from weakref import finalize

import numpy as np

from .behaviour_tree import BatchedTree, Node, TickLog, compile  # noqa: A004
from .dsl import from_dsl

NAMES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "CartPole-v1": (("position", "velocity", "angle", "spin"), ("left", "right")),
    "MountainCar-v0": (("position", "velocity"), ("left", "none", "right")),
    "Acrobot-v1": (("cos1", "sin1", "cos2", "sin2", "spin1", "spin2"), ("negative", "zero", "positive")),
}
"""The names by which trees call the features and actions of Gymnasium's environments; others: obs[0], 0."""


@dataclass
class Played:
    """One episode a seed.

    ``metrics`` by name float64 [seeds]. What happened by tick: ``observations`` float32 [ticks, seeds, features],
    ``actions`` int64 [ticks, seeds] (-1: the episode is over), ``gains`` float64 [ticks, seeds], by how much the goal
    grew. ``frames`` uint8 [height, width, 3]: what the first seed's player saw, if it was recorded.
    """

    metrics: dict[str, np.ndarray]
    observations: np.ndarray
    actions: np.ndarray
    gains: np.ndarray
    frames: list[np.ndarray] = field(default_factory=list)

    def means(self) -> dict[str, float]:
        """The mean of each metric over the seeds."""
        return {name: float(values.mean()) for name, values in self.metrics.items()}


def _played(metrics: dict[str, np.ndarray], ticks: list[tuple[np.ndarray, ...]], frames: list[np.ndarray]) -> Played:
    observations, actions, gains = (np.array(column) for column in zip(*ticks, strict=True))
    return Played(metrics, observations, actions, gains, frames)


class Policy(Protocol):
    """See :meth:`Game.policy`."""

    def __call__(
        self, observations: np.ndarray, playing: np.ndarray | None = None, log: TickLog | None = None
    ) -> np.ndarray:
        """The actions."""
        ...


@dataclass
class Game:
    """What a tree may read and do; ``goal`` names the metric that is to grow."""

    name: str
    features: tuple[str, ...]
    actions: tuple[str, ...]
    goal: str
    about: str

    def parse(self, text: str) -> Node:
        """The tree of a text that uses the game's names. Raises ParseError."""
        return from_dsl(text, {n: i for i, n in enumerate(self.features)}, {n: i for i, n in enumerate(self.actions)})

    def play(self, tree: Node, seeds: Sequence[int], record: bool = False, log: TickLog | None = None) -> Played:
        """One episode a seed. Raises ValueError if the tree reads or does what the game has not."""
        raise NotImplementedError

    def policy(self, tree: Node, count: int) -> Policy:
        """The tree as the player of so many agents: observations float32 [count, features], and which of them play and
        a log if there are such, to actions int64 [count], which the next call overwrites. An agent whose tick emits
        nothing repeats its action, at first 0. Raises ValueError if the tree emits what is no action."""
        if not count:
            raise ValueError("argument 'seeds' must name at least one episode")
        batched = BatchedTree(compile(tree, len(self.features)), count)
        held = np.zeros(count, np.int64)

        def act(observations: np.ndarray, playing: np.ndarray | None = None, log: TickLog | None = None) -> np.ndarray:
            batched.tick(observations, playing, log)
            np.copyto(held, batched.actions, where=batched.actions >= 0)
            if held.max() >= len(self.actions):
                raise ValueError(f"the tree emits action {held.max()}, {self.name} has {len(self.actions)}")
            return held

        return act


@dataclass
class GymGame(Game):
    """A Gymnasium environment with a flat row of numbers as observation and discrete actions."""

    steps: int = 500

    def play(self, tree: Node, seeds: Sequence[int], record: bool = False, log: TickLog | None = None) -> Played:
        """One episode a seed, at most ``steps`` long; the metrics are ``return`` and ``length``."""
        import gymnasium

        options: dict[str, Any] = {"render_mode": "rgb_array"} if record else {}
        count = len(seeds)
        act = self.policy(tree, count)
        metrics = {"return": np.zeros(count), "length": np.zeros(count)}
        frames: list[np.ndarray] = []
        ticks: list[tuple[np.ndarray, ...]] = []
        with closing(gymnasium.make_vec(self.name, count, vectorization_mode="sync", **options)) as made:
            observations, _ = made.reset(seed=[int(s) for s in seeds])
            playing = np.ones(count, bool)
            for _ in range(self.steps):
                seen = np.array(observations, np.float32)
                actions = act(seen, playing, log)
                if record and playing[0]:
                    frames.append(np.asarray(made.envs[0].render()))
                observations, rewards, terminated, truncated, _ = made.step(actions)
                gains = np.where(playing, rewards, 0)
                ticks.append((seen, np.where(playing, actions, -1), gains))
                metrics["return"] += gains
                metrics["length"] += playing
                playing &= ~(terminated | truncated)
                if not playing.any():
                    break
        return _played(metrics, ticks, frames)


def gym(name: str, steps: int = 500) -> GymGame:
    """A Gymnasium environment by its id. Raises ValueError for one that a tree cannot play."""
    import gymnasium

    with closing(gymnasium.make(name)) as made:
        space, actions = made.observation_space, made.action_space
        if not isinstance(actions, gymnasium.spaces.Discrete) or len(space.shape or ()) != 1:
            raise ValueError(f"{name}: a tree needs one row of numbers as observation and discrete actions")
        named = NAMES.get(name, ((), ()))
        features = named[0] or tuple(f"x{i}" for i in range(space.shape[0]))
        ids = named[1] or tuple(f"a{i}" for i in range(int(actions.n)))
    return GymGame(name, features, ids, "return", f"Gymnasium's {name}.", steps)


ENEMIES = frozenset(
    [
        "Zombieman",
        "ShotgunGuy",
        "ChaingunGuy",
        "MarineChainsaw",
        "MarineChainsawVzd",
        "DoomImp",
        "Demon",
        "Spectre",
        "HellKnight",
        "BaronOfHell",
        "LostSoul",
        "Cacodemon",
        "Arachnotron",
        "Fatso",
        "Revenant",
        "Archvile",
        "PainElemental",
        "WolfensteinSS",
    ]
)
"""The names by which VizDoom's labels buffer calls what shoots or bites."""

MAX_GAMES = 64
"""Games of VizDoom at a time: each is a process of its own."""


@dataclass
class DoomGame(Game):
    """VizDoom's scenario ``defend_the_center``: enemies close in from all sides, the player turns and shoots.

    The features are made from the game's variables and the labels buffer, of the enemy that looks largest:
    ``offset`` of its middle from the crosshair and its ``width`` and ``height`` in half screens (0 if there is none),
    ``enemies`` in sight, ``ammo``, ``health``. The tree ticks every ``skip`` frames of 1/35 s. Metrics: ``kills``,
    ``survived`` (s), ``shots``, ``seconds_per_kill``.
    """

    skip: int = 4

    def __post_init__(self) -> None:
        self._lock = Lock()
        self._opened = ExitStack()
        self._games: list[Any] = []
        finalize(self, self._opened.close)

    def play(self, tree: Node, seeds: Sequence[int], record: bool = False, log: TickLog | None = None) -> Played:
        """One episode a seed, at most :data:`MAX_GAMES`; the games run side by side. They stay open for the next call,
        which costs a hundredth of starting them, as long as this object lives."""
        count = len(seeds)
        if count > MAX_GAMES:
            raise ValueError(f"argument 'seeds' must name at most {MAX_GAMES} episodes of VizDoom, got {count}")
        act = self.policy(tree, count)
        metrics = {n: np.zeros(count) for n in ("kills", "survived", "shots")}
        frames: list[np.ndarray] = []
        ticks: list[tuple[np.ndarray, ...]] = []
        with self._lock:
            if missing := seeds[len(self._games) :]:
                self._games += start_doom(self._opened, self.name, missing)
            games = self._games[:count]
            for one, seed in zip(games, seeds, strict=True):
                one.set_seed(int(seed))
                one.new_episode()
            playing = np.ones(count, bool)
            while playing.any():
                observations = np.zeros((count, len(self.features)), np.float32)
                for i in np.flatnonzero(playing):
                    state = games[i].get_state()
                    observations[i] = see(state)
                    if record and i == 0:
                        frames.append(np.array(state.screen_buffer))
                actions = np.where(playing, act(observations, playing, log), -1)
                before = metrics["kills"].copy()
                for i in np.flatnonzero(playing):
                    games[i].make_action([float(actions[i] == k) for k in range(3)], self.skip)
                    metrics["kills"][i] = games[i].get_total_reward() + games[i].is_player_dead()  # death costs 1
                    if games[i].is_episode_finished():
                        playing[i] = False
                    else:
                        metrics["survived"][i] = games[i].get_episode_time() / 35
                        metrics["shots"][i] = 26 - games[i].get_state().game_variables[0]
                ticks.append((observations, actions, metrics["kills"] - before))
        metrics["seconds_per_kill"] = metrics["survived"] / np.maximum(metrics["kills"], 1)
        return _played(metrics, ticks, frames)


@contextmanager
def open_doom(scenario: str, seeds: Sequence[int], buttons: Sequence[str] = ()) -> Iterator[list[Any]]:
    """A VizDoom game for each seed, as :func:`start_doom` starts them."""
    with ExitStack() as opened:
        yield start_doom(opened, scenario, seeds, buttons)


def start_doom(opened: ExitStack, scenario: str, seeds: Sequence[int], buttons: Sequence[str] = ()) -> list[Any]:
    """A VizDoom game without a window for each seed, 160 x 120 pixels, with labels, until ``opened`` is closed.

    ``buttons`` replace the scenario's.
    """
    import vizdoom

    games: list[Any] = []
    folder = mkdtemp()  # not a TemporaryDirectory: at the end of the program that goes before the games do
    opened.callback(rmtree, folder, ignore_errors=True)
    for seed in seeds:
        game = vizdoom.DoomGame()
        opened.callback(game.close)
        game.set_doom_config_path(f"{folder}/{len(games)}.ini")
        game.load_config(f"{vizdoom.scenarios_path}/{scenario}.cfg")
        if buttons:
            game.set_available_buttons([getattr(vizdoom.Button, name) for name in buttons])
        game.set_window_visible(False)
        game.set_labels_buffer_enabled(True)
        game.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
        game.set_screen_format(vizdoom.ScreenFormat.RGB24)
        game.set_mode(vizdoom.Mode.PLAYER)
        game.set_seed(int(seed))
        game.init()
        games.append(game)
    return games


def see(state: Any) -> tuple[float, ...]:
    """The features of :class:`DoomGame` in a state of the game."""
    seen = [label for label in state.labels if label.object_name in ENEMIES]
    ammo, health = state.game_variables[:2]
    if not seen:
        return (0, 0, 0, 0, ammo, health)
    nearest = max(seen, key=lambda label: (label.width * label.height, -label.object_id))
    middle = (nearest.x + nearest.width / 2) / 80 - 1
    return (middle, nearest.width / 80, nearest.height / 60, len(seen), ammo, health)


def doom() -> DoomGame:
    """VizDoom's ``defend_the_center``. Raises ModuleNotFoundError that names the wheel if there is none."""
    try:
        import vizdoom  # noqa: F401
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError("VizDoom is not installed; install core-agents[games]", name=e.name) from None
    return DoomGame(
        "defend_the_center",
        ("offset", "width", "height", "enemies", "ammo", "health"),
        ("left", "right", "attack", "none"),
        "kills",
        "A player stands in the middle of a round arena with a pistol and 26 bullets. Enemies come from all sides. It "
        "can turn left, turn right or attack; each kill counts 1. offset is where the largest enemy in sight stands: "
        "-1 the left edge of the screen, 0 the crosshair, 1 the right edge; width and height are its size in half "
        "screens, 0 when no enemy is in sight; enemies counts those in sight.",
    )


def game(name: str) -> Game:
    """``doom`` (or ``defend_the_center``), or a Gymnasium environment's id."""
    return doom() if name in ("doom", "defend_the_center") else gym(name)
