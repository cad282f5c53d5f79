"""Progressive flow distillation of FlashVDM (arXiv 2503.16302, section 3.4): a few steps for many guided ones.

A teacher is trained by `flow_loss`. Three stages follow, each a loss (or phases) for a
`core_diffusion.training.Trainer`:

1. `guidance`: the student learns the teacher's guided velocity, so that one call replaces two.
2. `consistency`: along the teacher's path the student's jumps to the end of a phase agree with those of its running
   mean one point later, under a Huber loss.
3. `adversarial`: the same, and a critic of clean latents that the jumps to the data must convince (hinge loss).

Time goes from 0, noise, to 1, data; a velocity model is called model(x, t, condition) with t of shape [B].
`latent_flow.LatentTransformer` is one, over the latent sets of a vecset autoencoder.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["FlowDistillation", "StudentAndCritic", "flow_loss", "flow_points", "guided", "huber", "sample_flow"]

Velocity = Callable[..., Tensor]


def flow_points(steps: int, points: int = 50) -> list[float]:
    """Times of a sampler of `steps` steps on a path of `points` equal parts: floor(i points / steps) / points, and 1.

    Raises ValueError unless 1 <= steps <= points.
    """
    if not 1 <= steps <= points:
        raise ValueError(f"flow_points: argument 'steps' must be in 1..{points}, got {steps}")
    return [i * points // steps / points for i in range(steps)] + [1.0]


def _times(t: Tensor, like: Tensor) -> Tensor:
    return t.view(-1, *[1] * (like.ndim - 1))


def guided(model: Velocity, x: Tensor, t: Tensor, condition: Tensor | None, guidance: float, null: Any) -> Tensor:
    """v_null + guidance (v_condition - v_null), both from one call on a doubled batch; one call alone if guidance is 1.

    `null` stands for no condition: a number or tensor that is broadcast to the shape of `condition`.
    """
    if condition is None or guidance == 1:
        return model(x, t, condition)
    none = torch.as_tensor(null, dtype=condition.dtype, device=condition.device).expand_as(condition)
    both = model(torch.cat([x, x]), torch.cat([t, t]), torch.cat([condition, none]))
    with_, without = both.chunk(2)
    return without + guidance * (with_ - without)


@torch.no_grad()
def sample_flow(
    model: Velocity, noise: Tensor, condition: Tensor | None = None, steps: int = 5, points: int = 50, **guidance: Any
) -> Tensor:
    """Euler's way from `noise` at time 0 to data at time 1 over `flow_points(steps, points)`.

    `guidance` and `null` as for `guided`, where the model is not distilled.
    """
    x, times = noise, flow_points(steps, points)
    scale, null = guidance.get("guidance", 1.0), guidance.get("null")
    for now, then in itertools.pairwise(times):
        t = torch.full((len(x),), now, device=x.device)
        x = x + (then - now) * guided(model, x, t, condition, scale, null)
    return x


def flow_loss(null: Any = 0, dropout: float = 0.1) -> Callable[[Any], dict[str, Tensor]]:
    """The teacher's training (rectified flow): squared error of the velocity x - noise at a uniform time.

    Batches as of `FlowDistillation`; a condition is replaced by `null` with the probability `dropout`, for guidance.
    """

    def loss(step: Any) -> dict[str, Tensor]:
        x, condition, g = step.batch["x"], step.batch.get("condition"), step.generator
        noise = torch.randn(x.shape, device=x.device, dtype=x.dtype, generator=g)
        t = torch.rand(len(x), device=x.device, generator=g)
        if condition is not None:
            dropped = torch.rand(len(x), device=x.device, generator=g) < dropout
            none = torch.as_tensor(null, dtype=condition.dtype, device=condition.device)
            condition = torch.where(_times(dropped, condition), none, condition)
        found = step.model(noise + _times(t, x) * (x - noise), t, condition)
        return {"loss": (found.float() - (x - noise)).square().mean()}

    return loss


def huber(x: Tensor, y: Tensor, width: float) -> Tensor:
    """The mean over rows of sqrt(|x - y|^2 + c^2) - c, c = width sqrt(elements of a row) (pseudo-Huber)."""
    c = width * (x[0].numel()) ** 0.5
    return ((x - y).flatten(1).square().sum(1) + c * c).sqrt().sub(c).mean()


class StudentAndCritic(nn.Module):
    """What the third stage trains: phases take the parameters below `student.` and `critic.`."""

    def __init__(self, student: nn.Module, critic: nn.Module) -> None:
        super().__init__()
        self.student, self.critic = student, critic

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """The student's velocity."""
        out: Tensor = self.student(x, t, condition)
        return out


@dataclasses.dataclass
class FlowDistillation:
    """The losses of the three stages. A step's batch is {"x": data [B, ...], "condition": [B, ...], optional}.

    Args:
        teacher: velocity model; is only called, without gradient.
        guidance, null: of the teacher, see `guided`.
        points: of the path.
        phases: the path is cut into as many parts of equal length, and a jump ends where its part ends; a sampler of
            `phases` steps makes exactly these jumps. 1: all jumps end at the data.
        width: of the Huber loss.
        adversarial_weight: of the critic's word in the third stage.
    """

    teacher: Velocity
    guidance: float = 1.0
    null: Any = 0
    points: int = 50
    phases: int = 5
    width: float = 1e-3
    adversarial_weight: float = 0.1

    def __post_init__(self) -> None:
        if not 1 <= self.phases <= self.points or self.points % self.phases:
            raise ValueError(
                f"FlowDistillation: argument 'phases' must divide points ({self.points}), got {self.phases}"
            )
        for name in ("width", "adversarial_weight"):
            if not getattr(self, name) > 0:
                raise ValueError(f"FlowDistillation: argument '{name}' must be > 0, got {getattr(self, name)}")

    def _noised(self, step: Any, point: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The batch's data, its noised state at a point of the path, that time, the condition."""
        x, condition = step.batch["x"], step.batch.get("condition")
        noise = torch.randn(x.shape, device=x.device, dtype=x.dtype, generator=step.generator)
        t = point / self.points
        return x, noise + _times(t, x) * (x - noise), t, condition

    def _points(self, step: Any) -> Tensor:
        x = step.batch["x"]
        return torch.randint(self.points, (len(x),), device=x.device, generator=step.generator)

    @torch.no_grad()
    def _teach(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        return guided(self.teacher, x, t, condition, self.guidance, self.null)

    def guidance_loss(self, step: Any) -> dict[str, Tensor]:
        """Stage 1: squared difference from the teacher's guided velocity."""
        _, state, t, condition = self._noised(step, self._points(step))
        difference = step.model(state, t, condition) - self._teach(state, t, condition)
        return {"loss": difference.square().mean()}

    def consistency_loss(self, step: Any) -> dict[str, Tensor]:
        """Stage 2: Huber loss between the jumps from neighbouring points of the teacher's path."""
        point = self._points(step)
        _, state, t, condition = self._noised(step, point)
        part = self.points // self.phases
        last = (point // part + 1) * part
        end = last / self.points
        jump = state + _times(end - t, state) * step.model(state, t, condition)
        with torch.no_grad():
            then = (point + 1) / self.points
            moved = state + _times(then - t, state) * self._teach(state, t, condition)
            ahead = moved + _times(end - then, state) * step.ema(moved, then, condition)
            target = torch.where(_times(point + 1 == last, state), moved, ahead)
        return {"loss": huber(jump.float(), target.float(), self.width)}

    def student_loss(self, step: Any) -> dict[str, Tensor]:
        """Stage 3, the student: consistency, and the critic's word on its jumps to the data."""
        consistency = self.consistency_loss(step)["loss"]
        _, state, t, condition = self._noised(step, self._points(step) // (part := self.points // self.phases) * part)
        clean = state + _times(1 - t, state) * step.model(state, t, condition)
        word = -step.plain.critic(clean).mean()
        return {"loss": consistency + self.adversarial_weight * word, "consistency": consistency, "word": word}

    def critic_loss(self, step: Any) -> dict[str, Tensor]:
        """Stage 3, the critic: hinge loss between data and the student's jumps to it."""
        x, state, t, condition = self._noised(step, self._points(step) // (part := self.points // self.phases) * part)
        with torch.no_grad():
            clean = state + _times(1 - t, state) * step.model(state, t, condition)
        real, false = step.plain.critic(x), step.plain.critic(clean)
        return {"loss": (1 - real).relu().mean() + (1 + false).relu().mean()}

    def adversarial(self, critic_learning_rate: float | None = None) -> list[Any]:
        """Stage 3 as phases of a trainer, over a `StudentAndCritic`."""
        from .training import Phase

        return [
            Phase("student", self.student_loss, "student."),
            Phase("critic", self.critic_loss, "critic.", critic_learning_rate),
        ]
