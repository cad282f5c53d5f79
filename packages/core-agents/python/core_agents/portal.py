"""PORTAL's loop (arXiv 2503.13356): a policy writes trees, games judge them, what was seen goes into the next request.

A generation is a number of candidate trees. Each is asked for with a message that holds the language, the game, the
best trees so far with their metrics and the written analysis on the paper's five tactical axes, and the reflexion on
the generation before. What comes back is parsed; an error goes back with its line, column and hint, a few times. The
policy is anything with ``ask`` as in :class:`core_agents.judge.Judge`: a model behind
:class:`core_agents.judge.ChatJudge`, or :class:`core_agents.mutator.Mutator`, which needs no model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from core_registry.files import replace

from .behaviour_tree import compile  # noqa: A004
from .forms import ParseError
from .games import Game, Played
from .judge import Judge, Message
from .mutator import FENCE
from .tactics import analyse, together

LANGUAGE = """A behaviour tree is one node a line; children are indented by four spaces.
Selector: NAME           children in order until one does not fail
Sequence: NAME           children in order until one does not succeed
Condition: TEST          as 'speed > 2', with < <= > >= == !=, + - * /, abs(), and, or, not; with one indented child it
                         guards the child
Action: ACTION           does it; 'Action: ACTION for TICKS' or 'Action: ACTION while TEST' goes on
not: NAME                turns its one child's success and failure round
Answer with the tree alone, between ``` and ```."""
_MAX_NODES = 400
_REFLEXIONS = 3


@dataclass
class Candidate:
    """A tree's text, its metrics (means over the seeds), its analysis; ``error`` says why it could not be played."""

    text: str
    metrics: dict[str, float] = field(default_factory=dict)
    analysis: dict[str, str] = field(default_factory=dict)
    error: str = ""
    repairs: int = 0


@dataclass
class Generation:
    """Candidates and what was learnt from them."""

    candidates: list[Candidate]
    reflexion: str = ""


@dataclass
class Search:
    """The state of a search; ``goal`` is the metric that ranks."""

    game: str
    goal: str
    seeds: list[int]
    generations: list[Generation] = field(default_factory=list)

    def best(self, count: int = 1) -> list[Candidate]:
        """The best candidates so far, different texts, the earlier of equals first."""
        played = [c for g in self.generations for c in g.candidates if not c.error]
        unique: dict[str, Candidate] = {}
        for c in played:
            unique.setdefault(c.text, c)
        return sorted(unique.values(), key=lambda c: -c.metrics[self.goal])[:count]

    def means(self) -> list[float]:
        """The mean of the goal over the candidates of each generation that could be played; NaN if there were none."""
        played = [[c.metrics[self.goal] for c in g.candidates if not c.error] for g in self.generations]
        return [float(np.mean(p)) if p else float("nan") for p in played]

    def save(self, path: Path) -> None:
        """Writes the state as JSON."""
        with replace(path) as temporary:
            temporary.write_text(json.dumps({"format": 1, **asdict(self)}, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Search:
        """Reads what :meth:`save` wrote. Raises ValueError for anything else."""
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
            if read.pop("format") != 1:
                raise ValueError("format must be 1")
            generations = [
                Generation([Candidate(**c) for c in g["candidates"]], str(g["reflexion"])) for g in read["generations"]
            ]
            state = cls(str(read["game"]), str(read["goal"]), [int(s) for s in read["seeds"]], generations)
            for c in (c for g in generations for c in g.candidates):
                if not isinstance(c.text, str) or not (c.error or np.isfinite(c.metrics[state.goal])):
                    raise ValueError("a candidate has no finite metric")
            return state
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            raise ValueError(f"{path}: this is no saved search: {e}") from None


def request(game: Game, search: Search, number: int, keep: int) -> list[Message]:
    """The messages that ask for candidate ``number`` of the next generation."""
    parts = [LANGUAGE, game.about, f"Features: {', '.join(game.features)}. Actions: {', '.join(game.actions)}."]
    for c in search.best(keep):
        figures = ", ".join(f"{k} {v:.2f}" for k, v in c.metrics.items())
        said = "\n".join(f"{axis}: {text}" for axis, text in c.analysis.items())
        parts.append(f"A tree that reached {figures}:\n```\n{c.text}```\n{said}")
    parts += [f"Reflexion: {generation.reflexion}" for generation in search.generations[-_REFLEXIONS:]]
    parts.append(
        f"Generation {len(search.generations)}, candidate {number}: think of the goal and the obstacles, then of the "
        f"root, then of each child's sub-goal. Write a tree with more {game.goal} than these."
    )
    return [{"role": "user", "content": "\n\n".join(parts)}]


def propose(game: Game, policy: Judge, messages: Sequence[Message], repairs: int = 3) -> Candidate:
    """Asks for a tree; a text that is none goes back with its error, up to ``repairs`` times. Raises JudgeError."""
    talk = list(messages)
    for attempt in range(repairs + 1):
        answer = policy.ask(talk).text
        found = FENCE.search(answer)
        text = (found[1] if found else answer).strip("\n") + "\n"
        try:
            nodes = compile(game.parse(text), len(game.features)).nodes
            if len(nodes) > _MAX_NODES:
                raise ValueError(f"the tree has {len(nodes)} nodes, at most {_MAX_NODES} are allowed")
            return Candidate(text, repairs=attempt)
        except (ParseError, ValueError) as e:
            error = str(e)
        talk += [
            {"role": "assistant", "content": answer},
            {"role": "user", "content": f"This is no valid tree: {error}. Write it again."},
        ]
    return Candidate(text, error=error, repairs=repairs)


def reflect(game: Game, generation: Generation, games: Sequence[Played]) -> str:
    """What the next generation should know of this one and of the games that it played."""
    played = sorted((c for c in generation.candidates if not c.error), key=lambda c: -c.metrics[game.goal])
    wrong = len(generation.candidates) - len(played)
    said = f"{wrong} of {len(generation.candidates)} texts were no trees. " if wrong else ""
    if not played:
        return said + "Nothing could be played."
    best, worst = played[0], played[-1]
    mean = np.mean([c.metrics[game.goal] for c in played])
    high, low = best.metrics[game.goal], worst.metrics[game.goal]
    return (
        f"{said}{game.goal}: best {high:.2f}, mean {mean:.2f}, worst {low:.2f}. "
        f"The best: {' '.join(best.analysis.values())} The worst: {' '.join(worst.analysis.values())} "
        f"All games together: {together(game, games)}"
    )


def search(
    game: Game,
    policy: Judge,
    seeds: Sequence[int],
    generations: int,
    candidates: int,
    keep: int = 3,
    state: Path | None = None,
    progress: Callable[[], Any] = lambda: None,
) -> Search:
    """Runs the loop up to that many generations; each candidate plays one episode a seed.

    ``state``: a JSON file from which an interrupted search goes on and into which each generation is written.
    ``progress`` is called after each candidate. Raises ValueError if the file belongs to another search.
    """
    out = Search(game.name, game.goal, [int(s) for s in seeds])
    if state is not None and state.exists():
        found = Search.load(state)
        if (found.game, found.goal, found.seeds) != (out.game, out.goal, out.seeds):
            raise ValueError(f"{state}: belongs to a search of {found.game} with seeds {found.seeds}")
        out = found
    for _ in range(len(out.generations), generations):
        made, games = [], []
        for number in range(candidates):
            candidate = propose(game, policy, request(game, out, number, keep))
            if not candidate.error:
                try:
                    played = game.play(game.parse(candidate.text), out.seeds)
                    candidate.metrics, candidate.analysis = played.means(), analyse(game, played)
                    games.append(played)
                except ValueError as e:
                    candidate.error = str(e)
            made.append(candidate)
            progress()
        generation = Generation(made)
        generation.reflexion = reflect(game, generation, games)
        out.generations.append(generation)
        if state is not None:
            out.save(state)
    return out
