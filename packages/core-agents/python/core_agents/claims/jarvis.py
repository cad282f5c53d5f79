"""JARVIS-VLA's recipe at the size of a toy: knowledge and sight first, then few actions, in VizDoom with a mouse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from .. import mouse_doom, post_training
from ..action_policy import ActionPolicy
from ..action_tokens import VPT_CAMERA, ActionTokenizer, decode_actions, encode_actions
from ..reference.small_vlm import SmallVLM

BINS = 21
"""Places that a question about the screen knows, from left to right."""
WORDS = [
    "<pad>", "<end>", "enemy", "at", "do", "where", "how", "many", "kill", "none", "search", "attack", "left", "right",
    "far", "near", *(f"n{i}" for i in range(6)), *(f"x{i}" for i in range(BINS)),
]  # fmt: skip
ID = {word: i for i, word in enumerate(WORDS)}
TOKENS = ActionTokenizer(51, first_id=len(WORDS), pad_id=0)


@dataclass(frozen=True)
class Size:
    """How much is played and trained: frames that are asked about, frames that are imitated, steps of the stages."""

    asked: int = 1500
    imitated: int = 150
    steps: tuple[int, int, int] = (40, 600, 160)
    batch: int = 32
    learning_rate: float = 2e-3
    seeds: int = 2
    episodes: int = 10
    dim: int = 64
    ticks: int = 300


def words(text: str) -> list[int]:
    """The ids of words."""
    return [ID[w] for w in text.split()]


def place(offset: float) -> int:
    """The place on the screen of an offset in half screens."""
    return int(np.clip((offset + 1) / 2 * BINS, 0, BINS - 1))


def knowledge() -> list[post_training.Example]:
    """Text of the world: what to do about an enemy at each place."""
    out = [post_training.example(words("enemy none do"), words("search right <end>"))]
    for k in range(BINS):
        away = k - BINS // 2
        side = "right" if away > 0 else "left"
        said = "attack" if away == 0 else f"{side} {'far' if abs(away) > 4 else 'near'}"
        out.append(post_training.example(words(f"enemy at x{k} do"), words(f"{said} <end>")))
    return out


def questions(made: mouse_doom.Episodes, count: int, rng: np.random.Generator) -> list[post_training.Example]:
    """Questions about frames: where the largest enemy stands, and how many are in sight. No action is in them."""
    out = []
    for i in rng.permutation(len(made.images))[:count]:
        offset, enemies = float(made.features[i, 0]), int(made.features[i, 3])
        image = torch.as_tensor(made.images[i : i + 1])
        where = f"x{place(offset)}" if enemies else "none"
        for asked, said in (("where enemy", where), ("how many", f"n{min(enemies, 5)}")):
            out.append(post_training.example(words(asked), words(f"{said} <end>"), pixel_values=image))
    return out


def imitation(made: mouse_doom.Episodes, count: int) -> list[post_training.Example]:
    """The first frames of an expert's play with its actions."""
    ids, views = encode_actions(made.buttons, made.camera, VPT_CAMERA)
    return [
        post_training.action_example(
            words("kill"),
            ids[i : i + 1],
            views[i : i + 1],
            TOKENS,
            pixel_values=torch.as_tensor(made.images[i : i + 1]),
        )
        for i in range(min(count, len(ids)))
    ]


def policy(model: torch.nn.Module) -> mouse_doom.Act:
    """The model plays."""
    acting = ActionPolicy(model, TOKENS)

    def act(images: np.ndarray, _: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        prompts = torch.as_tensor(words("kill"))[None].expand(len(images), -1)
        return decode_actions(*acting.act(prompts, pixel_values=torch.as_tensor(images)), VPT_CAMERA)

    return act


def _wander(rng: np.random.Generator) -> mouse_doom.Act:
    """Turns at random and never shoots."""

    def act(images: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        turn = rng.uniform(-10, 10, len(images)) + 6
        return np.zeros((len(images), 20), bool), np.stack([0 * turn, turn], 1).astype(np.float32)

    return act


def _quantised(images: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return decode_actions(*encode_actions(*mouse_doom.expert(images, features), VPT_CAMERA), VPT_CAMERA)


def run(
    size: Size, seed: int, seen: Callable[[post_training.Progress], None] = lambda _: None
) -> Iterator[tuple[str, float]]:
    """(what, kills a game) of the expert, of a model after all three stages, and of one that imitated only: as many
    steps in all on the same actions, all of it trained."""
    rng = np.random.default_rng(seed)
    first = 100 * seed
    expert = mouse_doom.play(_quantised, [first + 50, first + 51], size.ticks, keep=True)
    yield "the expert", float(expert.kills.mean())
    games = range(first, first + 2 + size.asked // 60)
    asked = questions(mouse_doom.play(_wander(rng), games, size.ticks, keep=True), size.asked, rng)
    acted = imitation(expert, size.imitated)
    options = {"batch": size.batch, "micro": size.batch, "learning_rate": size.learning_rate, "warmup": 20}
    language, vision, action = size.steps
    recipe = [
        (post_training.language(language, **options), knowledge()),
        (post_training.vision_language(vision, **options), asked),
        (post_training.action(action, **options), acted),
    ]
    alone = [(post_training.action(sum(size.steps), vision=True, **options), acted)]
    for name, stages in (("all three stages", recipe), ("imitation alone", alone)):
        torch.manual_seed(seed)
        shape = (mouse_doom.HEIGHT, mouse_doom.WIDTH)
        model = SmallVLM(len(WORDS) + 51, shape, dim=size.dim, longest=16)
        for made in post_training.PostTraining(model, stages, seed=seed).run():
            seen(made)
        yield name, float(mouse_doom.play(policy(model), range(1000, 1000 + size.episodes), size.ticks).kills.mean())
