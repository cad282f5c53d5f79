"""The trainer of this package's models: accelerate, averaged weights, exact resume, progress bar, grids of samples.

All of a step's randomness comes from its number, so that a run that is stopped and resumed ends with the same bits as
one that was not. A checkpoint is one safetensors file, renamed into place; nothing is pickled.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from core_registry.files import replace
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .graphs import Recorded
from .images import save_grid

__all__ = ["Phase", "Prepare", "Step", "TrainConfig", "Trainer"]

Loss = Callable[["Step"], Tensor | dict[str, Tensor]]
Prepare = Callable[[dict[str, Tensor], torch.Generator], dict[str, Tensor]]
Sampler = Callable[[nn.Module, torch.Generator], Tensor]


@dataclasses.dataclass(frozen=True)
class Step:
    """What a loss is given."""

    model: nn.Module
    """The module to call; compiled or wrapped for several processes."""
    plain: nn.Module
    """The same module as it was passed to the trainer."""
    ema: nn.Module
    """Its averaged copy, in eval mode and without gradients."""
    batch: dict[str, Tensor]
    """Rows of the data, on the device."""
    generator: torch.Generator
    """Of the device; seeded by the run's seed, the step and the process."""
    index: int
    """The step's number, from 0; in a recorded step that of the recording."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of a run.

    batch_size counts rows over all processes. ema_decay grows from 0 as (1 + n) / (10 + n) up to its value.
    schedule: of the learning rate after its warm-up, "constant" or "cosine" (to 0 at the last step, or at the end of
    the time that `Trainer.fit` is given, whichever comes first).
    precision: "no" or "bf16" (autocast). save_every, sample_every, log_every: steps, 0 for never.
    compile: the model, by torch.compile. record: a step of one process on CUDA as a CUDA graph (`graphs.Recorded` says
    what a loss may do then); elsewhere it changes nothing.
    """

    steps: int = 10_000
    batch_size: int = 256
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 0
    schedule: Literal["constant", "cosine"] = "constant"
    max_grad_norm: float | None = 1.0
    ema_decay: float = 0.9999
    precision: Literal["no", "bf16"] = "no"
    seed: int = 0
    save_every: int = 0
    sample_every: int = 0
    log_every: int = 50
    compile: bool = False
    record: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("batch_size", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"TrainConfig: argument '{name}' must be > 0, got {getattr(self, name)}")
        for name in ("steps", "weight_decay", "warmup_steps", "save_every", "sample_every", "log_every"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"TrainConfig: argument '{name}' must be >= 0, got {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"TrainConfig: argument 'ema_decay' must be in [0, 1), got {self.ema_decay}")
        for name, words in (("precision", ("no", "bf16")), ("schedule", ("constant", "cosine"))):
            if getattr(self, name) not in words:
                one = " or ".join(map(repr, words))
                raise ValueError(f"TrainConfig: argument '{name}' must be {one}, got {getattr(self, name)!r}")


@dataclasses.dataclass(frozen=True)
class Phase:
    """A loss with its own optimiser: of the parameters whose names begin with one of `prefix`."""

    name: str
    loss: Loss
    prefix: str | tuple[str, ...] = ""
    learning_rate: float | None = None


class Trainer:
    """Trains a module on rows of tensors.

    Args:
        model: the module; with a method `save_pretrained` its averaged weights are written by that.
        loss: gives a number from a `Step`, or a dict with "loss"; all of its entries are logged. Or phases, which
            are done one after the other at each step (a generator and its critic).
        data: tensors with one first axis, the rows; they are moved to the device.
        config: the settings.
        out: folder for training.safetensors (resumed from if there), metrics.jsonl, samples/ and model/.
        sample: images [N, C, H, W] in 0..1 from the averaged model, for samples/STEP.png.
        prepare: makes the losses' batch of the data's rows and a generator, outside of what is recorded.

    Raises:
        ValueError: no rows, rows of unequal number, a phase without parameters, a checkpoint of another model.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss | Sequence[Phase],
        data: Mapping[str, Tensor],
        config: TrainConfig,
        out: Path | None = None,
        sample: Sampler | None = None,
        prepare: Prepare | None = None,
    ) -> None:
        rows = {len(value) for value in data.values()}
        if len(rows) != 1 or 0 in rows:
            raise ValueError(f"Trainer: argument 'data' must have tensors of one length > 0, got {sorted(rows)}")
        self.rows = rows.pop()
        self.phases = [Phase("", loss)] if callable(loss) else list(loss)
        unused = DistributedDataParallelKwargs(find_unused_parameters=len(self.phases) > 1)
        self.accelerator = Accelerator(cpu=not torch.accelerator.is_available(), kwargs_handlers=[unused])
        self.device, self.config, self.out, self.sample = self.accelerator.device, config, out, sample
        self.prepare, self._generator = prepare, torch.Generator(self.device)
        if config.batch_size % self.accelerator.num_processes:
            raise ValueError(
                f"Trainer: batch_size {config.batch_size} is not a multiple of the {self.accelerator.num_processes} "
                "processes"
            )
        self.model = model.to(self.device).train()
        self.ema = copy.deepcopy(model).eval().requires_grad_(False)
        self.data = {name: value.to(self.device) for name, value in data.items()}
        self.optimizers = [self._optimizer(phase) for phase in self.phases]
        wrapped = self.accelerator.prepare_model(self.model)
        self.wrapped = torch.compile(wrapped) if config.compile else wrapped
        alone = self.accelerator.num_processes == 1 and self.device.type == "cuda"
        self._pass = Recorded(self._passes, [self._generator]) if config.record and alone else self._passes
        self.step = 0
        self._start, self._seconds = 0.0, math.inf
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))
        if self.checkpoint is not None and self.checkpoint.exists():
            self._load(self.checkpoint)

    @property
    def checkpoint(self) -> Path | None:
        """The file that the run resumes from."""
        return None if self.out is None else self.out / "training.safetensors"

    def _optimizer(self, phase: Phase) -> torch.optim.AdamW:
        named = [p for n, p in self.model.named_parameters() if n.startswith(phase.prefix) and p.requires_grad]
        if not named:
            raise ValueError(f"Trainer: no parameter's name begins with {phase.prefix!r} (phase {phase.name!r})")
        c, cuda = self.config, self.device.type == "cuda"
        rate = torch.zeros((), device=self.device) if cuda else c.learning_rate  # `_set_rates` fills it
        return torch.optim.AdamW(named, rate, c.betas, weight_decay=c.weight_decay, fused=cuda or None, capturable=cuda)

    # ---- one step

    def _batch(self) -> dict[str, Tensor]:
        """This process's rows of the step: the epochs' permutations one after the other."""
        share = self.config.batch_size // self.accelerator.num_processes
        first = self.step * self.config.batch_size + share * self.accelerator.process_index
        places: list[Tensor] = []
        while share:
            epoch, at = divmod(first, self.rows)
            if self._order[0] != epoch:
                generator = torch.Generator().manual_seed(_mix(self.config.seed, epoch, 1))
                self._order = epoch, torch.randperm(self.rows, generator=generator).to(self.device)
            places.append(self._order[1][at : at + share])
            first, share = first + len(places[-1]), share - len(places[-1])
        rows = torch.cat(places)
        return {name: value[rows] for name, value in self.data.items()}

    def train_step(self) -> dict[str, Tensor]:
        """Does the step `self.step`, of all phases; returns their losses, still on the device."""
        seed = _mix(self.config.seed, self.step, 2 + self.accelerator.process_index)
        torch.manual_seed(seed)  # for modules that draw from the global generator, as dropout does
        self._generator.manual_seed(seed)
        batch = self._batch()
        if self.prepare is not None:
            batch = self.prepare(batch, self._generator)
        self._set_rates()
        losses = self._pass(batch)
        self.step += 1
        self._average()
        return losses

    def _set_rates(self) -> None:
        c = self.config
        share = min(1.0, (self.step + 1) / max(c.warmup_steps, 1))
        if c.schedule == "cosine" and self.step >= c.warmup_steps:
            done = (self.step - c.warmup_steps) / max(c.steps - c.warmup_steps, 1)
            done = min(max(done, (time.perf_counter() - self._start) / self._seconds), 1.0)
            share = (1 + math.cos(math.pi * done)) / 2
        for phase, optimizer in zip(self.phases, self.optimizers, strict=True):
            rate = share * (c.learning_rate if phase.learning_rate is None else phase.learning_rate)
            for group in optimizer.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate

    def _passes(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Forward, backward and the optimiser's step of each phase."""
        c, logged = self.config, dict[str, Tensor]()
        autocast = (
            torch.autocast(self.device.type, torch.bfloat16) if c.precision == "bf16" else contextlib.nullcontext()
        )
        for phase, optimizer in zip(self.phases, self.optimizers, strict=True):
            for other in self.optimizers:
                other.zero_grad(set_to_none=True)
            with autocast:
                found = phase.loss(Step(self.wrapped, self.model, self.ema, batch, self._generator, self.step))
            losses = found if isinstance(found, dict) else {"loss": found}
            self.accelerator.backward(losses["loss"])
            if c.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], c.max_grad_norm)
            optimizer.step()
            logged |= {f"{phase.name}_{k}" if phase.name else k: v.detach().float() for k, v in losses.items()}
        return logged

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        ours, theirs = list(self.ema.parameters()), list(self.model.parameters())
        torch._foreach_lerp_(ours, theirs, 1 - decay)
        ours, theirs = list(self.ema.buffers()), list(self.model.buffers())
        if ours:
            torch._foreach_copy_(ours, theirs)

    # ---- the run

    def fit(self, seconds: float = math.inf) -> list[dict[str, float]]:
        """Trains up to config.steps; returns what was logged: the mean of each loss since the last line.

        seconds: after so many, the first line of the log ends the training, and what is written at the end is written.
        Raises FloatingPointError if a loss is not finite.
        """
        self._start, self._seconds = time.perf_counter(), max(seconds, 1e-9)
        c, history, sums, counted = self.config, list[dict[str, float]](), dict[str, Tensor](), 0
        main = self.accelerator.is_main_process
        if main and self.out is not None:
            self._trim_metrics()
        with _bar(c.steps, self.step, c.progress and main) as show:
            last = self.step >= c.steps
            while not last:
                for name, value in self.train_step().items():
                    sums[name] = sums[name] + value if name in sums else value
                counted += 1
                last = self.step == c.steps or (_due(self.step, c.log_every) and self._late())
                if _due(self.step, c.log_every) or last:
                    names = sorted(sums)
                    means = torch.stack([sums[name].reshape(()) for name in names]) / counted
                    means = self.accelerator.reduce(means, "mean")
                    line = {"step": float(self.step), **dict(zip(names, means.tolist(), strict=True))}
                    sums, counted = {}, 0
                    if not bool(torch.isfinite(means).all()):
                        raise FloatingPointError(f"a loss is not finite at step {self.step}: {line}")
                    history.append(line)
                    if main and self.out is not None:
                        with (self.out / "metrics.jsonl").open("a") as file:
                            file.write(json.dumps(line) + "\n")
                show(self.step, history[-1] if history else {})
                if self.out is not None and (_due(self.step, c.save_every) or last):
                    self._save()
                if (
                    main
                    and self.out is not None
                    and self.sample is not None
                    and (_due(self.step, c.sample_every) or last)
                ):
                    generator = torch.Generator(self.device).manual_seed(c.seed)
                    with torch.no_grad():
                        save_grid(self.sample(self.ema, generator), self.out / "samples" / f"{self.step:07d}.png")
        if main and self.out is not None and hasattr(self.ema, "save_pretrained"):
            self.ema.save_pretrained(self.out / "model")
        self.accelerator.wait_for_everyone()
        return history

    def _late(self) -> bool:
        """Whether the time of `fit` is over for one of the processes."""
        if self._seconds == math.inf:
            return False
        late = torch.tensor(float(time.perf_counter() - self._start >= self._seconds), device=self.device)
        return bool(self.accelerator.reduce(late, "sum") > 0)

    def _trim_metrics(self) -> None:
        """Drops lines behind the step that the run resumes from."""
        assert self.out is not None
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        with replace(path) as temporary:
            temporary.write_text("".join(line for line in lines if json.loads(line)["step"] <= self.step))

    # ---- checkpoints

    def _state(self) -> dict[str, Tensor]:
        parts = {f"model.{n}": t for n, t in self.model.state_dict().items()}
        parts |= {f"ema.{n}": t for n, t in self.ema.state_dict().items()}
        for i, optimizer in enumerate(self.optimizers):
            for place, values in optimizer.state_dict()["state"].items():
                parts |= {f"optimizer.{i}.{place}.{n}": torch.as_tensor(v) for n, v in values.items()}
        return parts

    def _save(self) -> None:
        if not self.accelerator.is_main_process or self.checkpoint is None:
            return
        tensors = {name: t.detach().cpu().contiguous().clone() for name, t in self._state().items()}
        with replace(self.checkpoint) as temporary:
            save_file(tensors, temporary, {"step": str(self.step), "seed": str(self.config.seed)})

    def _load(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            notes = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        if notes.get("seed") != str(self.config.seed):
            raise ValueError(f"{path} is of a run with seed {notes.get('seed')}, not {self.config.seed}")

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

        try:
            self.model.load_state_dict(part("model."))
            self.ema.load_state_dict(part("ema."))
            for i, optimizer in enumerate(self.optimizers):
                state = dict[int, dict[str, Tensor]]()
                for name, value in part(f"optimizer.{i}.").items():
                    place, _, entry = name.partition(".")
                    state.setdefault(int(place), {})[entry] = value
                optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        except (RuntimeError, KeyError) as error:
            raise ValueError(f"{path} is of another model: {error}") from error
        self.step = int(notes["step"])


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _mix(*numbers: int) -> int:
    """A 63-bit seed that differs with each of the numbers."""
    state = 0
    for number in numbers:
        state = (state ^ number) * 0x9E3779B97F4A7C15 % 2**64
        state ^= state >> 29
    return state >> 1


@contextlib.contextmanager
def _bar(steps: int, start: int, shown: bool) -> Any:
    """Yields a function of the step and the last logged line that moves a progress bar."""
    if not shown:
        yield lambda step, line: None
        return
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[line]}")) as progress:
        task = progress.add_task("training", total=steps, completed=start, line="")

        def show(step: int, line: dict[str, float]) -> None:
            text = " ".join(f"{name} {value:.4g}" for name, value in line.items() if name != "step")
            progress.update(task, completed=step, line=text)

        yield show
