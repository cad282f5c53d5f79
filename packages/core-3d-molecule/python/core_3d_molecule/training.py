"""What the package's trainers share: schedule, clipping, an average of the weights, checkpoints that go on exactly."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from core_registry import files
from torch import Tensor, nn

_FORMAT = "core-3d-molecule trainer 1"
Step = Callable[[Any], dict[str, Tensor]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimisation:
    """How weights move: AdamW, linear warm-up over `warmup` steps, then a cosine from `lr` to `last_lr` at `steps`."""

    steps: int
    lr: float = 3e-4
    last_lr: float = 0.0
    warmup: int = 0
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-6
    weight_decay: float = 1e-4
    clip: float = 1.0
    ema: float = 0.999
    seed: int = 0

    def __post_init__(self) -> None:
        problems = {
            "steps": self.steps >= 1,
            "lr": 0 < self.lr < math.inf,
            "last_lr": 0 <= self.last_lr <= self.lr,
            "warmup": 0 <= self.warmup <= self.steps,
            "clip": self.clip > 0,
            "ema": 0 <= self.ema < 1,
        }
        for name, good in problems.items():
            if not good:
                raise ValueError(f"Optimisation: argument '{name}' is out of range, got {getattr(self, name)!r}")

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        part = (step - self.warmup) / max(self.steps - self.warmup, 1)
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
        about: what a checkpoint must agree with to be loaded; JSON.
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
        about: dict[str, Any] | None = None,
    ) -> None:
        self.model, self.optimisation, self.amp = model, optimisation, amp
        self.about = {"format": _FORMAT, "optimisation": dataclasses.asdict(optimisation)} | (about or {})
        self.about = json.loads(json.dumps(self.about))
        self.device = next(model.parameters()).device
        self._loss = torch.compile(loss) if compiled else loss
        self._batches = batches
        self._behind: dict[str, Any] | None = None
        self.step = 0
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=torch.tensor(optimisation.lr, device=self.device) if self.device.type == "cuda" else optimisation.lr,
            betas=optimisation.betas,
            eps=optimisation.eps,
            weight_decay=optimisation.weight_decay,
            fused=self.device.type == "cuda",
        )
        self.average = {n: p.detach().clone() for n, p in self.parameters.items()}

    def run(self, steps: int) -> Iterator[dict[str, Tensor]]:
        """Trains `steps` more steps, at most to the end of the schedule; yields what the loss gave, on its device.

        Dropout and whatever else draws from torch's generators are seeded by the run's seed and the step.
        """
        self.model.train()
        batches = iter(self._batches(self._behind))
        for _ in range(min(steps, self.optimisation.steps - self.step)):
            batch, behind = next(batches)
            torch.manual_seed(self.optimisation.seed * 1_000_003 + self.step)
            with torch.autocast(self.device.type, self.amp, enabled=self.amp is not None):
                found = self._loss(batch)
            self.optimizer.zero_grad(set_to_none=True)
            found["loss"].backward()
            found["gradient"] = nn.utils.clip_grad_norm_(self.parameters.values(), self.optimisation.clip)
            self._set_rate(self.optimisation.rate(self.step))
            self.optimizer.step()
            self.step += 1
            self._behind = behind
            # early steps of a short run would otherwise be remembered for long
            weight = 1 - min(self.optimisation.ema, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), weight)
            yield {k: v.detach() for k, v in found.items()}

    def _set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def averaged(self) -> dict[str, Tensor]:
        """The model's state with the averaged weights in place of the trained ones."""
        return {k: v.detach() for k, v in self.model.state_dict().items()} | self.average

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a checkpoint (.safetensors), from which `load` goes on exactly."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        for name, parameter in self.parameters.items():
            tensors |= {f"adam.{name}.{k}": v for k, v in self.optimizer.state.get(parameter, {}).items()}
        write_tensors(path, tensors, {"about": self.about, "step": self.step, "behind": self._behind})

    def load(self, path: str | os.PathLike[str]) -> None:
        """Goes on from a checkpoint of a run with the same settings; raises ValueError for another."""
        tensors, meta = read_tensors(path)
        about = meta.get("about")
        if about != self.about:
            raise ValueError(f"{path}: expected a run with {self.about}, it had {about}")
        adam = [n for n in tensors if n.startswith("adam.")]
        for group, mine in (("model", self.model.state_dict()), ("average", self.average)):
            for name, value in mine.items():
                take(tensors, f"{group}.{name}", value, path)
        try:
            state = {
                n: {k: tensors[f"adam.{n}.{k}"] for k in ("step", "exp_avg", "exp_avg_sq")} if adam else {}
                for n in self.parameters
            }
        except KeyError as e:
            raise ValueError(f"{path}: expected the tensor {e}") from None
        for name, parameter in self.parameters.items():
            if state[name]:
                self.optimizer.state[parameter] = {
                    k: v.to(self.device if k != "step" or self.device.type == "cuda" else "cpu")
                    for k, v in state[name].items()
                }
        self.step, self._behind = int(meta["step"]), meta["behind"]


def write_tensors(path: str | os.PathLike[str], tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Writes tensors and a JSON object beside them into a .safetensors file."""
    from safetensors.torch import save_file

    with files.replace(path) as temporary:
        found = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        save_file(found, temporary, {"core": json.dumps(about)})


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_tensors` wrote; raises ValueError for any other file."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("core", "null"))
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
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
