"""What the package's trainers share: schedule, clipping, an average of the weights, checkpoints that go on exactly."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from core_registry import files
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .muon import Muon

_FORMAT = "core-3d-molecule trainer 1"
_WARM = 3
"""Steps before the one that is captured: what is allocated once, and torch.compile, lie in them."""
Step = Callable[[Any], dict[str, Tensor]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimisation:
    """How weights move: AdamW, linear warm-up over `warmup` steps, then a cosine from `lr` to `last_lr` at `steps`.

    With `muon` the model's hidden matrices move by `muon.Muon`, at the same learning rate.
    `minutes` above 0 ends the schedule, and the run, after so much time of training if `steps` have not before.
    """

    steps: int
    minutes: float = 0.0
    lr: float = 3e-4
    last_lr: float = 0.0
    warmup: int = 0
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-6
    weight_decay: float = 1e-4
    clip: float = 1.0
    ema: float = 0.999
    seed: int = 0
    muon: bool = False

    def __post_init__(self) -> None:
        problems = {
            "steps": self.steps >= 1,
            "minutes": 0 <= self.minutes < math.inf,
            "lr": 0 < self.lr < math.inf,
            "last_lr": 0 <= self.last_lr <= self.lr,
            "warmup": 0 <= self.warmup <= self.steps,
            "clip": self.clip > 0,
            "ema": 0 <= self.ema < 1,
        }
        for name, good in problems.items():
            if not good:
                raise ValueError(f"Optimisation: argument '{name}' is out of range, got {getattr(self, name)!r}")

    def part(self, seconds: float) -> float:
        """Of the time, what is over after so many seconds; 0 without a limit."""
        return seconds / (60 * self.minutes) if self.minutes else 0.0

    def rate(self, step: int, seconds: float = 0.0) -> float:
        """The learning rate of a step, counted from 0, that begins after so many seconds of training."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        part = max((step - self.warmup) / max(self.steps - self.warmup, 1), self.part(seconds))
        return self.last_lr + (self.lr - self.last_lr) * 0.5 * (1 + math.cos(math.pi * min(part, 1)))


class Trainer:
    """Moves a model's weights along the gradient of a loss.

    Args:
        model: its parameters are trained in float32.
        loss: from a batch to a dictionary with the scalar "loss" and whatever else is to be watched.
        batches: from the state behind a batch (None at the beginning) to an endless iterator of batches, each with the
            state behind it, a dictionary of integers that JSON can hold.
        optimisation: see there.
        amp: the dtype of autocast on CUDA, None for none.
        compiled: run the loss through torch.compile.
        graph: on CUDA, capture a whole step once and replay it; batches, trees of tensors, must keep their shapes.
        about: what a checkpoint must agree with to be loaded; JSON.
        matrices: the model's hidden matrices, by name, and of how many each consists, for `optimisation.muon`.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Step,
        batches: Callable[[dict[str, Any] | None], Iterator[tuple[Any, dict[str, Any]]]],
        optimisation: Optimisation,
        *,
        amp: torch.dtype | None = None,
        compiled: bool = False,
        graph: bool = False,
        about: dict[str, Any] | None = None,
        matrices: Mapping[str, int] | None = None,
    ) -> None:
        self.model, self.optimisation, self.amp = model, optimisation, amp
        self.about = {"format": _FORMAT, "optimisation": dataclasses.asdict(optimisation)} | (about or {})
        self.about = json.loads(json.dumps(self.about))
        self.device = next(model.parameters()).device
        cuda = self.device.type == "cuda"
        self._loss = torch.compile(loss) if compiled else loss
        self._batches = batches
        self._behind: dict[str, Any] | None = None
        self.step, self.seconds = 0, 0.0
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.muon: Muon | None = None
        if optimisation.muon:
            if not matrices or not set(matrices) <= set(self.parameters):
                raise ValueError(f"Trainer: argument 'matrices' must name parameters for Muon, got {matrices}")
            hidden = {n: self.parameters[n] for n in matrices}
            self.muon = Muon(hidden, matrices, optimisation.lr)
        self._adam = {n: p for n, p in self.parameters.items() if not self.muon or n not in self.muon.momenta}
        self.optimizer = torch.optim.AdamW(
            self._adam.values(),
            lr=torch.tensor(optimisation.lr, device=self.device) if cuda else optimisation.lr,
            betas=optimisation.betas,
            eps=optimisation.eps,
            weight_decay=optimisation.weight_decay,
            fused=cuda,
            capturable=cuda,
        )
        self.average = {n: p.detach().clone() for n, p in self.parameters.items()}
        self._move = _Captured(self._moved, self.device) if graph and cuda else self._moved

    @property
    def progress(self) -> float:
        """Of the schedule, what is over."""
        return max(self.step / self.optimisation.steps, self.optimisation.part(self.seconds))

    @property
    def done(self) -> bool:
        """Whether the schedule has come to its end."""
        return self.progress >= 1

    def run(self, steps: int) -> Iterator[dict[str, Tensor]]:
        """Trains `steps` more steps, at most to the end of the schedule; yields what the loss gave, on its device.

        Dropout and whatever else draws from torch's generators are seeded by the run's seed and the step.
        """
        self.model.train()
        batches, end = iter(self._batches(self._behind)), self.step + steps
        started: deque[torch.cuda.Event] = deque()
        while self.step < end and not self.done:
            begin = time.perf_counter()
            if len(started) > 1:  # the clock of the host is that of the device, two steps ahead
                started.popleft().synchronize()
            batch, behind = next(batches)
            torch.manual_seed(self.optimisation.seed * 1_000_003 + self.step)
            self._set_rate(self.optimisation.rate(self.step, self.seconds))
            found = self._move(batch)
            self.step += 1
            self._behind = behind
            # early steps of a short run would otherwise be remembered for long
            weight = 1 - min(self.optimisation.ema, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), weight)
            if self.device.type == "cuda":
                started.append(torch.cuda.Event())
                started[-1].record()
            self.seconds += time.perf_counter() - begin
            yield {k: v.detach() for k, v in found.items()}

    def _moved(self, batch: Any) -> dict[str, Tensor]:
        """One step of the optimiser."""
        with torch.autocast(self.device.type, self.amp, enabled=self.amp is not None, cache_enabled=False):
            found = self._loss(batch)
        self.model.zero_grad(set_to_none=True)
        found["loss"].backward()
        found["gradient"] = nn.utils.clip_grad_norm_(self.parameters.values(), self.optimisation.clip)
        self.optimizer.step()
        if self.muon:
            self.muon.step()
        return found

    def _set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        if self.muon:
            self.muon.lr.fill_(rate)

    def averaged(self) -> dict[str, Tensor]:
        """The model's state with the averaged weights in place of the trained ones."""
        return {k: v.detach() for k, v in self.model.state_dict().items()} | self.average

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a checkpoint (.safetensors), from which `load` goes on exactly."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        if self.muon:
            tensors |= {f"muon.{k}": v for k, v in self.muon.momenta.items()}
        for name, parameter in self._adam.items():
            tensors |= {f"adam.{name}.{k}": v for k, v in self.optimizer.state.get(parameter, {}).items()}
        about = {"about": self.about, "step": self.step, "seconds": self.seconds, "behind": self._behind}
        write_tensors(path, tensors, about)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Goes on from a checkpoint of a run with the same settings; raises ValueError for another."""
        tensors, meta = read_tensors(path)
        about = meta.get("about")
        if about != self.about:
            raise ValueError(f"{path}: expected a run with {self.about}, it had {about}")
        adam = [n for n in tensors if n.startswith("adam.")]
        momenta = self.muon.momenta if self.muon else {}
        for group, mine in (("model", self.model.state_dict()), ("average", self.average), ("muon", momenta)):
            for name, value in mine.items():
                take(tensors, f"{group}.{name}", value, path)
        try:
            state = {
                n: {k: tensors[f"adam.{n}.{k}"] for k in ("step", "exp_avg", "exp_avg_sq")} if adam else {}
                for n in self._adam
            }
        except KeyError as e:
            raise ValueError(f"{path}: expected the tensor {e}") from None
        for name, parameter in self._adam.items():
            if state[name]:
                self.optimizer.state[parameter] = {
                    k: v.to(self.device if k != "step" or self.device.type == "cuda" else "cpu")
                    for k, v in state[name].items()
                }
        self.step, self.seconds, self._behind = int(meta["step"]), float(meta.get("seconds", 0)), meta["behind"]
        if isinstance(self._move, _Captured):
            self._move = _Captured(self._moved, self.device)


class _Captured:
    """A function of a tree of tensors to a dictionary of tensors on CUDA: run at first, then captured and replayed."""

    def __init__(self, call: Step, device: torch.device) -> None:
        self._call, self._before = call, 0
        self._stream = torch.cuda.Stream(device)
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: Any) -> dict[str, Tensor]:
        leaves, self._tree = pytree.tree_flatten(batch)
        current = torch.cuda.current_stream()
        if self._before < _WARM:
            self._before += 1
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                found = self._call(batch)
            current.wait_stream(self._stream)
            return found
        if self._graph is None:
            self._given = [x.clone() for x in leaves]
            self._graph = torch.cuda.CUDAGraph()
            # batches are pinned by another thread meanwhile, which must be let to
            with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
                self._found = self._call(pytree.tree_unflatten(self._given, self._tree))
        for mine, one in zip(self._given, leaves, strict=True):
            if mine.shape != one.shape:
                raise ValueError(f"Trainer: batches must keep their shapes, got {one.shape} after {mine.shape}")
            mine.copy_(one, non_blocking=True)
        self._graph.replay()
        return {k: v.detach().clone() for k, v in self._found.items()}


def write_tensors(path: str | os.PathLike[str], tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Writes tensors and a JSON object beside them into a .safetensors file."""
    from safetensors.torch import save_file

    with files.replace(path) as temporary:
        found = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        save_file(found, temporary, {"core": json.dumps(about)})


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_tensors` wrote; raises ValueError for any other file."""
    return _read(path, True)


def read_about(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON object of such a file alone."""
    return _read(path, False)[1]


def _read(path: str | os.PathLike[str], all_of_it: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("core", "null"))
            tensors = {k: file.get_tensor(k) for k in file.keys()} if all_of_it else {}  # noqa: SIM118
    except (SafetensorError, ValueError) as e:
        raise ValueError(f"{path}: expected a checkpoint (.safetensors): {e}") from None
    if not isinstance(about, dict):
        raise ValueError(f"{path}: expected a checkpoint with a JSON object beside its tensors, got {about!r}")
    return tensors, about


def take(tensors: dict[str, Tensor], name: str, into: Tensor, path: str | os.PathLike[str]) -> None:
    """Copies a tensor of a checkpoint; raises ValueError if it is missing or has another shape or dtype."""
    value = tensors.get(name)
    if value is None or value.shape != into.shape or value.dtype != into.dtype:
        got = "nothing" if value is None else f"{value.dtype} of shape {tuple(value.shape)}"
        raise ValueError(f"{path}: expected '{name}' to be {into.dtype} of shape {tuple(into.shape)}, got {got}")
    with torch.no_grad():
        into.copy_(value)
