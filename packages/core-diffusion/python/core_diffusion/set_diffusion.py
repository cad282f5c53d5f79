"""Set diffusion with exact sums: fixed-sum sampling of count vectors, and the sampler of TokenSet.

A set of M tokens from a codebook of K codes is the vector of the K counts, whose sum is M (TokenSet,
arXiv 2503.16425). The functions take numpy arrays or torch tensors (CUDA too) and return the same kind. Sampling
has no gradient: a torch tensor that requires grad is refused.
"""

import math
import secrets
import sys
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np
from core_registry.arrays import as_array, empty

from . import _core_diffusion as _C

__all__ = ["FixedSumScheduler", "FixedSumSchedulerOutput", "fixed_sum_bridge", "fixed_sum_prior", "fixed_sum_sample"]

Array = Any
"""A numpy array or a torch tensor."""

LEAST_WEIGHT = 1e-30
"""What the scheduler adds to each weight of the predicted laws."""


def _seed(seed: int | None, generator: Any) -> int:
    """The 63-bit seed of one call; without seed and generator a fresh one from the operating system."""
    if seed is not None and generator is not None:
        raise ValueError("give seed or generator, not both")
    if seed is not None:
        return seed
    if generator is None:
        return secrets.randbits(63)
    if isinstance(generator, np.random.Generator):
        return int(generator.integers(2**63))
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(generator, torch.Generator):
        return int(torch.randint(2**63 - 1, (), generator=generator, dtype=torch.int64, device=generator.device))
    raise TypeError(f"generator must be a numpy.random.Generator or a torch.Generator, got {type(generator).__name__}")


def _expand(x: Array, shape: tuple[int, ...]) -> Array:
    return np.broadcast_to(x, shape) if isinstance(x, np.ndarray) else x.expand(shape)


def fixed_sum_sample(
    probs: Array, totals: Array | int, *, seed: int | None = None, generator: Any = None, top_p: float = 1.0
) -> Array:
    """Draws count vectors from independent categorical laws, conditioned exactly on their sums.

    The sampler of the data end in TokenSet (arXiv 2503.16425) with the sum as part of the law in place of
    a greedy repair, by the suffix recursion T_i(r) = sum_k p_i(k) T_{i+1}(r - k) in float64.

    Args:
        probs: float32 or float64 [..., K, C] (narrower dtypes are widened); probs[..., i, k] >= 0 is the
            weight of count k of code i. The weights of a code need not add up to 1.
        totals: int, or integers [...], the sums of the drawn vectors.
        seed: any int of 64 bits; the same arguments and seed give the same counts on every machine.
        generator: in place of a seed, a numpy or torch generator to take one from. With neither, the draw
            cannot be repeated.
        top_p: in (0, 1]; each code keeps the fewest most likely counts whose share reaches top_p. A vector whose
            kept counts cannot make up its total is drawn from its whole laws.

    Returns:
        int32 [..., K], with sum over K equal to totals.

    Raises:
        ValueError: a weight is negative, NaN or infinite, or a code has no positive one (the message names row,
            code and count); no counts of positive weight make up a total, or it is less likely than 1e-280
            however the laws are tilted; top_p is out of range.
        MemoryError: one vector needs more than 4 GiB of scratch.
    """
    single = str(getattr(probs, "dtype", "")).endswith(("float32", "float16"))
    probs = as_array(probs, "float32" if single else "float64", "probs")
    if probs.ndim < 2:
        raise ValueError(
            f"fixed_sum_sample: argument 'probs' must have the shape (..., K, C), got {tuple(probs.shape)}"
        )
    *batch, codes, counts = probs.shape
    rows = math.prod(batch)
    totals = _expand(as_array(totals, "int64", "totals", like=probs), tuple(batch)).reshape(rows)
    out = empty((rows, codes), "int32", like=probs)
    _C.fixed_sum_sample(probs.reshape(rows, codes, counts), totals, top_p, _seed(seed, generator), out)
    return out.reshape(*batch, codes)


def fixed_sum_bridge(
    x0: Array,
    x1: Array,
    t: Array | float,
    *,
    sigma: float = 0.25,
    max_count: int | None = None,
    seed: int | None = None,
    generator: Any = None,
) -> Array:
    """Draws a state at the time t of the fixed-sum path from x0 to x1, conditioned exactly on their common sum.

    TokenSet (arXiv 2503.16425), with the counts 0..max_count inclusive and the exact conditional law. A code with
    x0 != x1 has Gaussian weights with mean (1-t) x0 + t x1 and deviation max(sigma |x1 - x0|, 1e-3), at the counts
    within six deviations and the two next to the mean; the others do not move. Every pair has a solution: the
    integers next to the means are always allowed, and the means add up to the sum.

    Args:
        x0: counts [..., K], the prior end; int32 or int64 (narrower dtypes are widened).
        x1: counts [..., K], the data end, with the sums of x0.
        t: in [0, 1], a number or float64 [...]; 0 is x0, 1 is x1.
        sigma: deviation per unit of |x1 - x0|, >= 0.
        max_count: largest count; by default the largest in x0 and x1 (the path's own bound is M).
        seed, generator: as for fixed_sum_sample.

    Returns:
        int32 [..., K], with the sums of x0.

    Raises:
        ValueError: t, sigma or a count is out of range, or sums differ (the message names row and code).
    """
    both_narrow = all(str(getattr(x, "dtype", "")).endswith("int32") for x in (x0, x1))
    dtype = "int32" if both_narrow else "int64"
    x0 = as_array(x0, dtype, "x0")
    x1 = as_array(x1, dtype, "x1", like=x0)
    if x0.ndim < 1 or x0.shape != x1.shape:
        raise ValueError(
            "fixed_sum_bridge: arguments 'x0' and 'x1' must have one shape (..., K), "
            f"got {tuple(x0.shape)} and {tuple(x1.shape)}"
        )
    if max_count is None:
        max_count = max(int(x0.max()), int(x1.max())) if math.prod(x0.shape) else 0
    *batch, codes = x0.shape
    rows = math.prod(batch)
    times = _expand(as_array(t, "float64", "t", like=x0), tuple(batch)).reshape(rows)
    out = empty((rows, codes), "int32", like=x0)
    _C.fixed_sum_bridge(
        x0.reshape(rows, codes), x1.reshape(rows, codes), times, sigma, max_count, _seed(seed, generator), out
    )
    return out.reshape(*batch, codes)


def fixed_sum_prior(
    batch: int, codes: int, tokens: int, *, seed: int | None = None, generator: Any = None, like: Array = None
) -> Array:
    """Draws the prior of TokenSet: counts as even as can be, the `tokens % codes` larger ones at random.

    With tokens <= codes this is a random 0/1 vector with exactly `tokens` ones (arXiv 2503.16425).
    Returns int32 [batch, codes], of the kind of `like` (numpy by default), each row with sum `tokens`.
    ValueError if a size is negative, or tokens > 0 = codes.
    """
    if min(batch, codes, tokens) < 0 or tokens > 0 == codes:
        raise ValueError(
            f"batch, codes and tokens must be >= 0, and codes > 0 if tokens are; got {batch}, {codes}, {tokens}"
        )
    if codes == 0:
        return as_array(np.zeros((batch, 0), np.int32), "int32", "prior", like=like)
    even, rest = divmod(tokens, codes)
    coins = _expand(as_array(np.ones((1, 1, 1), np.float32), "float32", "coins", like=like), (batch, codes, 2))
    ones = fixed_sum_sample(coins, rest, seed=seed, generator=generator)
    return ones + np.int32(even).item()


@dataclass
class FixedSumSchedulerOutput:
    """prev_sample: counts [B, K] of the next step; pred_original_sample: the data end [B, K] it went towards."""

    prev_sample: Array
    pred_original_sample: Array


class FixedSumScheduler:
    """The sampler of TokenSet (arXiv 2503.16425) with the interface of a diffusers scheduler.

    At t = i/N the network predicts the law of the data counts x1; x1 is drawn with sum M; the prior end is
    estimated anew as x0 = (z - t x1)/(1-t); the next state is drawn on the path from x0 to x1 at t = (i+1)/N, its
    deviation |x1 - x0|/4 damped by sigmoid(-damping ((i+1)/N - damping_start)). Every state has the sum M
    exactly, from the first step to the last; the published sampler repairs sums only from t = 0.65 on.

    Supports that cannot make up the sum are widened in two stages: rows whose kept counts (top_p) cannot are drawn from
    their whole laws, and to every weight of these LEAST_WEIGHT = 1e-30 is added, so that a network that is sure of a
    wrong sum still gives the likeliest way to the right one.

    Args:
        num_tokens: M, the sum and the largest count.
        prediction_type: what step() is given: "logits" or "probabilities" [B, K, M+1] of the counts, or "sample",
            the counts [B, K] themselves.
        top_p: in (0, 1], see fixed_sum_sample; 0.8 in the paper.
        sigma: deviation per unit of |x1 - x0|.
        damping, damping_start: of the deviation near the data.
    """

    order = 1
    init_noise_sigma = 1.0

    def __init__(
        self,
        num_tokens: int = 128,
        prediction_type: Literal["logits", "probabilities", "sample"] = "logits",
        top_p: float = 0.8,
        sigma: float = 0.25,
        damping: float = 100.0,
        damping_start: float = 0.8,
    ) -> None:
        if prediction_type not in ("logits", "probabilities", "sample"):
            raise ValueError(f"prediction_type must be 'logits', 'probabilities' or 'sample', got {prediction_type!r}")
        if num_tokens < 0:
            raise ValueError(f"num_tokens must be >= 0, got {num_tokens}")
        self.config: dict[str, Any] = {
            "num_tokens": num_tokens,
            "prediction_type": prediction_type,
            "top_p": top_p,
            "sigma": sigma,
            "damping": damping,
            "damping_start": damping_start,
        }
        self.num_inference_steps = 0
        self.timesteps: Array = np.zeros(0)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "FixedSumScheduler":
        """A scheduler with the settings of another one's `config`."""
        return cls(**config)

    def set_timesteps(self, num_inference_steps: int = 25, device: Any = None) -> None:
        """Sets `timesteps` to i/N, i = 0..N-1: the times at which the network is asked (1 is the data).

        float64 [N]; a torch tensor if `device` is given.
        """
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be >= 1, got {num_inference_steps}")
        self.num_inference_steps = num_inference_steps
        self.timesteps = np.arange(num_inference_steps) / num_inference_steps
        if device is not None:
            import torch

            self.timesteps = torch.as_tensor(self.timesteps, device=device)

    def scale_model_input(self, sample: Array, timestep: Any = None) -> Array:
        """The sample itself: counts are not scaled."""
        return sample

    @overload
    def step(
        self,
        model_output: Array,
        timestep: Any,
        sample: Array,
        generator: Any = None,
        return_dict: Literal[True] = True,
    ) -> FixedSumSchedulerOutput: ...

    @overload
    def step(
        self, model_output: Array, timestep: Any, sample: Array, generator: Any = None, *, return_dict: Literal[False]
    ) -> tuple[Array, Array]: ...

    def step(
        self, model_output: Array, timestep: Any, sample: Array, generator: Any = None, return_dict: bool = True
    ) -> FixedSumSchedulerOutput | tuple[Array, Array]:
        """Goes from `timestep` to the next one.

        Args:
            model_output: the network's prediction at `timestep`, see prediction_type.
            timestep: one of `timesteps`.
            sample: counts [B, K], each row with sum num_tokens.
            generator: a numpy or torch generator; without one the step cannot be repeated.
            return_dict: return a FixedSumSchedulerOutput rather than its two members as a tuple.

        Raises:
            ValueError: set_timesteps was not called, `timestep` is none of them, or a row of `sample` has another sum.
        """
        n, config = self.num_inference_steps, self.config
        i = round(float(timestep) * n)
        if not 0 <= i < n or abs(i / n - float(timestep)) > 1e-6:
            raise ValueError(f"timestep must be one of the {n} times that set_timesteps made, got {float(timestep)}")
        x1 = self._data_end(model_output, generator)
        damped = 1 / (1 + math.exp(min(700.0, config["damping"] * ((i + 1) / n - config["damping_start"]))))
        sample = fixed_sum_bridge(
            sample,
            x1,
            1 / (n - i),  # as seen from the sample: ((i+1)/n - t) / (1 - t), and x1 - x0 = (x1 - sample) / (1 - t)
            sigma=config["sigma"] * damped * n / (n - i),
            max_count=config["num_tokens"],
            seed=_seed(None, generator),
        )
        return FixedSumSchedulerOutput(sample, x1) if return_dict else (sample, x1)

    def _data_end(self, model_output: Array, generator: Any) -> Array:
        if self.config["prediction_type"] == "sample":
            return model_output
        if self.config["prediction_type"] == "logits":
            if isinstance(model_output, np.ndarray):
                model_output = np.exp(model_output - model_output.max(-1, keepdims=True))
            else:
                model_output = model_output.softmax(-1)
        return fixed_sum_sample(
            model_output + LEAST_WEIGHT, self.config["num_tokens"], generator=generator, top_p=self.config["top_p"]
        )

    def add_noise(self, original_samples: Array, noise: Array, timesteps: Any, generator: Any = None) -> Array:
        """The state [B, K] of the training path at time `timesteps` (one, or [B]), from prior counts `noise`
        [B, K] to data counts `original_samples` [B, K]."""
        return fixed_sum_bridge(
            noise,
            original_samples,
            timesteps,
            sigma=self.config["sigma"],
            max_count=self.config["num_tokens"],
            generator=generator,
        )

    def __len__(self) -> int:
        return self.num_inference_steps
