"""`FixedSumScheduler` as a scheduler that diffusers saves, loads and puts into pipelines."""

from __future__ import annotations

from typing import Any, Literal

from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config

from .set_diffusion import FixedSumScheduler, FixedSumSchedulerOutput

__all__ = ["FixedSumDiscreteScheduler"]


class FixedSumDiscreteScheduler(SchedulerMixin, ConfigMixin):
    """TokenSet's sampler (arXiv 2503.16425) for diffusers; arguments and results are those of `FixedSumScheduler`."""

    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(
        self,
        num_tokens: int = 128,
        prediction_type: Literal["logits", "probabilities", "sample"] = "logits",
        top_p: float = 0.8,
        sigma: float = 0.25,
        damping: float = 100.0,
        damping_start: float = 0.8,
    ) -> None:
        self._sampler = FixedSumScheduler(num_tokens, prediction_type, top_p, sigma, damping, damping_start)
        self.timesteps: Any = self._sampler.timesteps

    def set_timesteps(self, num_inference_steps: int = 25, device: Any = "cpu") -> None:
        """Sets `timesteps`, a float64 tensor on the device."""
        self._sampler.set_timesteps(num_inference_steps, device)
        self.timesteps = self._sampler.timesteps

    def scale_model_input(self, sample: Any, timestep: Any = None) -> Any:
        """The sample itself."""
        return sample

    def step(
        self, model_output: Any, timestep: Any, sample: Any, generator: Any = None, return_dict: bool = True
    ) -> FixedSumSchedulerOutput | tuple[Any, Any]:
        """Goes from `timestep` to the next one."""
        found = self._sampler.step(model_output, timestep, sample, generator)
        return found if return_dict else (found.prev_sample, found.pred_original_sample)

    def add_noise(self, original_samples: Any, noise: Any, timesteps: Any, generator: Any = None) -> Any:
        """The state of the training path."""
        return self._sampler.add_noise(original_samples, noise, timesteps, generator)

    def __len__(self) -> int:
        return len(self._sampler)
