"""JARVIS-VLA's post-training (arXiv 2503.16365): a vision-language model learns a world before it learns to act in it.

Three stages, each with its own data: text about the world, the vision part frozen; questions, captions and points about
images, everything trained; actions for images, the vision part frozen again. Loss is taken on what the model shall say
and nowhere else: the answer in the first two, the action tokens in the third. Needs torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from core_registry import files
from torch import Tensor, nn

from .action_tokens import ActionTokenizer

IGNORED = -100
"""The label of a token without loss, as in transformers."""
VISION = frozenset(
    [
        *("visual", "vision", "vision_tower", "vision_model", "vision_encoder", "image_encoder", "image_newline"),
        *("multi_modal_projector", "mm_projector", "connector", "perceiver", "aligner"),
        *("embed_vision", "vision_embed_tokens"),
    ]
)
"""How models of transformers and their kin call the vision encoder and its adapter."""
_FORMAT = "core-agents post-training 1"


@dataclass(frozen=True)
class Stage:
    """One stage. The defaults are the paper's, but for ``steps``, which its data decide.

    vision: whether the vision encoder and its adapter train too. steps: of the optimizer, each over ``batch`` examples,
    of which ``micro`` are in memory at once. learning_rate: the largest; it rises over ``warmup`` steps and falls by a
    cosine to 0. max_tokens: of an example.
    """

    name: str
    steps: int
    vision: bool = False
    learning_rate: float = 5e-6
    warmup: int = 200
    batch: int = 256
    micro: int = 8
    max_tokens: int = 3584

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "micro", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"Stage {self.name}: argument '{name}' must be at least 1, got {getattr(self, name)}")

    def rate(self, step: int) -> float:
        """The learning rate of a step, 0 on: linear warm-up, then half a cosine, as transformers has it."""
        if step < self.warmup:
            return self.learning_rate * step / self.warmup
        done = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.learning_rate * max(0.5 * (1 + math.cos(math.pi * done)), 0.0)


def language(steps: int, **options: Any) -> Stage:
    """Stage 1: text alone, the language model trains."""
    return Stage("language", steps, **options)


def vision_language(steps: int, **options: Any) -> Stage:
    """Stage 2: images and text, everything trains."""
    return Stage("vision-language", steps, vision=True, **options)


def action(steps: int, **options: Any) -> Stage:
    """Stage 3: imitation, the language model trains; an example has 512 tokens at most."""
    return Stage("action", steps, **{"max_tokens": 512, **options})


@dataclass(frozen=True)
class Example:
    """What one example is made of: ``input_ids`` and ``labels`` int64 [T]; ``inputs``: what the model takes besides,
    such as `pixel_values` float [images, ...]; examples are joined along the first axis."""

    input_ids: Tensor
    labels: Tensor
    inputs: Mapping[str, Tensor] = field(default_factory=dict)


def example(prompt: Iterable[int], answer: Iterable[int], **inputs: Tensor) -> Example:
    """An example with loss on the answer's tokens only; put the end token into the answer. An empty prompt makes plain
    text, of which every token but the first is learnt."""
    asked, said = (torch.as_tensor(np.fromiter(ids, np.int64)) for ids in (prompt, answer))
    if not len(said) or len(asked) + len(said) < 2:
        raise ValueError("argument 'answer' must hold tokens, and one must stand before the last of them")
    return Example(torch.cat([asked, said]), torch.cat([torch.full_like(asked, IGNORED), said]), inputs)


def action_example(
    prompt: Iterable[int], button_ids: Any, camera_ids: Any, tokenizer: ActionTokenizer, **inputs: Tensor
) -> Example:
    """An example with loss on the action tokens only. button_ids, camera_ids: int32 [C], a chunk of C actions, see
    :func:`core_agents.encode_actions`."""
    ids, views = (np.asarray(x, np.int32)[None] for x in (button_ids, camera_ids))
    tokens, lengths = tokenizer.encode(ids, views)
    return example(prompt, tokens[0, : lengths[0]].tolist(), **inputs)


def collate(examples: Sequence[Example], pad_id: int = 0) -> dict[str, Tensor]:
    """A batch as models of transformers take it: `input_ids`, `labels`, `attention_mask` int64 [B, T], filled up to the
    right, and the other inputs joined along their first axis."""
    rows = {"input_ids": pad_id, "labels": IGNORED, "attention_mask": 0}
    width = max(len(e.input_ids) for e in examples)
    batch = {name: torch.full((len(examples), width), fill) for name, fill in rows.items()}
    for i, e in enumerate(examples):
        n = len(e.input_ids)
        batch["input_ids"][i, :n], batch["labels"][i, :n], batch["attention_mask"][i, :n] = e.input_ids, e.labels, 1
    names = {name for e in examples for name in e.inputs}
    return batch | {n: torch.cat([e.inputs[n] for e in examples if n in e.inputs]) for n in sorted(names)}


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of each token that has a label, [tokens]: logits [B, T, V] at t speak of the label at t + 1."""
    wanted = labels[:, 1:]
    chosen = wanted != IGNORED
    said = logits[:, :-1][chosen]
    return nn.functional.cross_entropy(
        said.to(torch.promote_types(said.dtype, torch.float32)), wanted[chosen], reduction="none"
    )


def vision_parameters(model: nn.Module, names: Iterable[str] = VISION) -> set[str]:
    """The names of the parameters of the vision encoder and its adapter: those below a module (or called) like one of
    ``names``. Raises ValueError if there are none."""
    wanted = set(names)
    found = {name for name, _ in model.named_parameters() if wanted & set(name.split("."))}
    if not found:
        raise ValueError(
            f"the model has no module called {', '.join(sorted(wanted))}; say how its vision part is called"
        )
    return found


@dataclass(frozen=True)
class Progress:
    """A step that was taken: ``loss`` is the mean over its ``tokens`` with loss."""

    stage: str
    step: int
    loss: float
    tokens: int
    rate: float
    norm: float


class PostTraining:
    """Runs stages one after the other over any module that is called like a vision-language model of transformers:
    ``model(input_ids=, attention_mask=, ...)`` gives an object with ``logits`` [B, T, V].

    stages: each with its examples (anything with `len` and `[i]`). A batch's loss is the mean over all its tokens that
    have a label, whatever the micro-batches. AdamW (0.9, 0.95), gradients cut at norm 1. The same seed gives the same
    run, and one that was saved and loaded goes on as if it had not been (dropout included).

    Args:
        model: on its device; it is trained in place.
        stages: see above.
        pad_id: the token that fills up.
        seed: of the order of examples and of dropout; the paper's is 42.
        vision: names of the vision part's modules, see :func:`vision_parameters`.
        max_norm: of the gradient.
        autocast: the precision of the forward pass, None for that of the weights.
    """

    def __init__(
        self,
        model: nn.Module,
        stages: Sequence[tuple[Stage, Sequence[Example]]],
        *,
        pad_id: int = 0,
        seed: int = 42,
        vision: Iterable[str] = VISION,
        max_norm: float = 1.0,
        autocast: torch.dtype | None = None,
    ) -> None:
        for stage, examples in stages:
            if not len(examples):
                raise ValueError(f"PostTraining: stage {stage.name} has no examples")
        self.model, self.stages, self.pad_id, self.seed = model, list(stages), pad_id, seed
        self.max_norm, self.autocast = max_norm, autocast
        self.vision = vision_parameters(model, vision)
        self.device = next(model.parameters()).device
        self.stage, self.step = 0, 0
        self.optimizer: torch.optim.AdamW | None = None

    @property
    def total(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage, _ in self.stages)

    @property
    def done(self) -> int:
        """Steps taken."""
        return sum(stage.steps for stage, _ in self.stages[: self.stage]) + self.step

    def run(self, steps: int | None = None) -> Iterator[Progress]:
        """Takes so many steps, None: to the end; yields what each was."""
        left = self.total - self.done if steps is None else min(steps, self.total - self.done)
        for _ in range(left):
            yield self._train_step()

    def _begin(self) -> torch.optim.AdamW:
        """Freezes what the stage does not train, and makes its optimizer."""
        stage = self.stages[self.stage][0]
        trained = []
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(stage.vision or name not in self.vision)
            parameter.grad = None
            if parameter.requires_grad:
                trained.append(parameter)
        self.model.train()
        if not stage.vision:
            for module_name, module in self.model.named_modules():
                below = [n for n, _ in module.named_parameters(prefix=module_name)]
                if below and self.vision.issuperset(below):
                    module.eval()
        self.optimizer = torch.optim.AdamW(trained, lr=0.0, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
        return self.optimizer

    def _batch(self, stage: Stage, examples: Sequence[Example]) -> list[Example]:
        """The examples of the current step: permutations one after the other, each of its own seed."""
        n = len(examples)
        chosen: list[Example] = []
        for at in range(self.step * stage.batch, (self.step + 1) * stage.batch):
            epoch, place = divmod(at, n)
            if not chosen or place == 0:
                order = np.random.default_rng([self.seed, self.stage, epoch]).permutation(n)
            chosen.append(examples[int(order[place])])
        longest = max(len(e.input_ids) for e in chosen)
        if longest > stage.max_tokens:
            raise ValueError(
                f"stage {stage.name}: an example has {longest} tokens, at most {stage.max_tokens} are allowed"
            )
        return chosen

    def _train_step(self) -> Progress:
        stage, examples = self.stages[self.stage]
        optimizer = self.optimizer or self._begin()
        chosen = self._batch(stage, examples)
        tokens = sum(int((e.labels[1:] != IGNORED).sum()) for e in chosen)
        rate, total = stage.rate(self.step), 0.0
        optimizer.param_groups[0]["lr"] = rate
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            key = hashlib.sha256(f"{self.seed} {self.stage} {self.step}".encode()).digest()
            torch.manual_seed(int.from_bytes(key[:7], "little"))
            for start in range(0, len(chosen), stage.micro):
                batch = collate(chosen[start : start + stage.micro], self.pad_id)
                loss = self._losses(batch).sum() / tokens
                loss.backward()
                total += float(loss.detach())
        trained = optimizer.param_groups[0]["params"]
        norm = float(nn.utils.clip_grad_norm_(trained, self.max_norm))
        if not math.isfinite(total + norm):
            raise FloatingPointError(f"stage {stage.name}, step {self.step}: loss {total}, norm of the gradient {norm}")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        made = Progress(stage.name, self.step, total, tokens, rate, norm)
        self.step += 1
        if self.step == stage.steps:
            self.stage, self.step, self.optimizer = self.stage + 1, 0, None
        return made

    def _losses(self, batch: Mapping[str, Tensor]) -> Tensor:
        inputs = {name: x.to(self.device) for name, x in batch.items()}
        labels = inputs.pop("labels")
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            logits = self.model(**inputs).logits
        return token_losses(logits, labels)

    def evaluate(self, examples: Sequence[Example], micro: int = 8) -> float:
        """The mean loss over all tokens with a label."""
        self.model.eval()
        with torch.no_grad():
            batches = (collate(examples[i : i + micro], self.pad_id) for i in range(0, len(examples), micro))
            parts = [self._losses(batch) for batch in batches]
        if self.optimizer is not None:
            state = self.optimizer.state_dict()
            self._begin().load_state_dict(state)
        return float(torch.cat(parts).mean())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a checkpoint (.safetensors), from which :meth:`load` goes on exactly."""
        from safetensors.torch import save_file

        tensors = {f"model.{n}": x for n, x in self.model.state_dict().items()}
        if self.optimizer is not None:
            for i, state in self.optimizer.state_dict()["state"].items():
                tensors |= {f"adam.{i}.{key}": value for key, value in state.items()}
        about = {"format": _FORMAT, "stage": self.stage, "step": self.step, **self._about()}
        with files.replace(path) as temporary:
            save_file(
                {n: x.detach().cpu().contiguous().clone() for n, x in tensors.items()},
                temporary,
                {"core": json.dumps(about)},
            )

    def load(self, path: str | os.PathLike[str]) -> None:
        """Goes on from a checkpoint. Raises ValueError for a file that is none, or of other stages, seed or model."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as read:
                about = json.loads((read.metadata() or {}).get("core", "{}"))
                tensors = {n: read.get_tensor(n) for n in read.keys()}  # noqa: SIM118
        except (SafetensorError, ValueError) as e:
            raise ValueError(f"{path}: this is no checkpoint: {e}") from None
        if about.get("format") != _FORMAT or {k: about.get(k) for k in self._about()} != self._about():
            raise ValueError(f"{path}: the checkpoint belongs to another run: {about}")
        try:
            self.model.load_state_dict({n[6:]: x for n, x in tensors.items() if n.startswith("model.")})
        except RuntimeError as e:
            raise ValueError(f"{path}: the checkpoint belongs to another model: {e}") from None
        self.stage, self.step, self.optimizer = int(about["stage"]), int(about["step"]), None
        if self.step:
            optimizer = self._begin()
            states: dict[int, dict[str, Tensor]] = {}
            for name, value in tensors.items():
                if name.startswith("adam."):
                    _, place, key = name.split(".")
                    states.setdefault(int(place), {})[key] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": states})

    def _about(self) -> dict[str, Any]:
        return {"seed": self.seed, "stages": [[asdict(stage), len(examples)] for stage, examples in self.stages]}


def train(
    trainer: PostTraining,
    checkpoint: Path | None = None,
    every: int = 200,
    seen: Callable[[Progress], None] = lambda _: None,
) -> None:
    """Runs a trainer to its end with a progress bar; goes on from the checkpoint if it exists, and writes it every so
    many steps and at the end. ``seen`` is called after each step."""
    import rich.progress

    if checkpoint is not None and checkpoint.exists():
        trainer.load(checkpoint)
    columns = (*rich.progress.Progress.get_default_columns(), rich.progress.TextColumn("{task.fields[now]}"))
    with rich.progress.Progress(*columns) as progress:
        task = progress.add_task("post-training", total=trainer.total, completed=trainer.done, now="")
        for made in trainer.run():
            progress.update(task, completed=trainer.done, now=f"{made.stage}, loss {made.loss:.3f}")
            seen(made)
            if checkpoint is not None and (trainer.done % every == 0 or trainer.done == trainer.total):
                trainer.save(checkpoint)
