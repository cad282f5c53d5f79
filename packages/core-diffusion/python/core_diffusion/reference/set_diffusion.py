"""Reference of the fixed-sum samplers: enumeration, a readable dynamic program, and the published step.

TokenSet, arXiv 2503.16425, section "Fixed-Sum Discrete Diffusion".
"""

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

Counts = tuple[int, ...]


def enumerate_law(probs: NDArray[np.float64], total: int) -> dict[Counts, float]:
    """The conditional law of independent counts given their sum, by going through all vectors.

    probs: float64 [K, C], weights of the counts 0..C-1 of each code; total: the sum.
    Returns the probability of each vector of sum `total`; C**K steps, so for small K only.
    """
    laws = probs / probs.sum(1, keepdims=True)
    law = {
        counts: float(np.prod([laws[i, k] for i, k in enumerate(counts)]))
        for counts in itertools.product(range(probs.shape[1]), repeat=len(probs))
        if sum(counts) == total
    }
    z = sum(law.values())
    return {counts: p / z for counts, p in law.items() if p > 0}


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """The Philox-4x32-10 block (Salmon et al., SC'11) at a 128-bit counter under a 64-bit key."""
    word = 0xFFFFFFFF
    for _ in range(10):
        a, b = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = ((b >> 32) ^ counter[1] ^ key[0], b & word, (a >> 32) ^ counter[3] ^ key[1], a & word)
        key = ((key[0] + 0x9E3779B9) & word, (key[1] + 0xBB67AE85) & word)
    return counter


def uniform(seed: int, b: int, i: int) -> float:
    """The number in [0, 1) that element `i` of row `b` uses under `seed` (see core_diffusion/philox.hpp)."""
    word = 0xFFFFFFFF
    block = philox((i & word, i >> 32 & word, b & word, b >> 32 & word), (seed & word, seed >> 32 & word))
    return ((block[1] << 32 | block[0]) >> 11) * 2.0**-53


def draw_row(laws: dict[int, tuple[int, NDArray[np.float64]]], residual: int, seed: int, b: int) -> dict[int, int]:
    """Draws counts of the codes in `laws` (code -> least count, weights from there on) that sum to `residual`.

    T_i(r) = sum_k p_i(k) T_{i+1}(r - k); the count of code i is the first whose cumulated share of
    p_i(k) T_{i+1}(r - k) exceeds `uniform(seed, b, i)`. ValueError if no counts sum to `residual`.
    """
    r = residual - sum(low for low, _ in laws.values())
    if r < 0:
        raise ValueError(f"the least counts exceed {residual} by {-r}")
    tables = [np.eye(1, r + 1)[0]]
    for _, weight in reversed(laws.values()):
        tables.insert(0, np.convolve(tables[0], weight / weight.sum())[: r + 1])
    if tables[0][r] == 0:
        raise ValueError(f"no counts sum to {residual}")
    drawn = {}
    for (code, (low, weight)), table in zip(laws.items(), tables[1:], strict=True):
        k = np.arange(min(len(weight), r + 1))
        share = np.cumsum(weight[k] / weight.sum() * table[r - k])
        count = int(np.argmax(share > uniform(seed, b, code) * share[-1]))
        drawn[code] = low + count
        r -= count
    return drawn


def fixed_sum_sample(
    probs: NDArray[Any], totals: NDArray[np.int64], seed: int, top_p: float = 1.0
) -> NDArray[np.int32]:
    """Counts [B, K] of the laws `probs` [B, K, C] given the sums `totals` [B]; see the facade of the same name.

    Does not tilt: P(total) has to be well inside the range of float64.
    """
    out = np.zeros(probs.shape[:2], np.int32)
    for b, total in enumerate(totals.tolist()):
        rows = probs[b].astype(np.float64)
        try:
            drawn = draw_row(dict(enumerate(map(nucleus, rows, itertools.repeat(top_p)))), total, seed, b)
        except ValueError:
            drawn = draw_row(dict(enumerate(map(nucleus, rows, itertools.repeat(1.0)))), total, seed, b)
        out[b] = [drawn[i] for i in range(len(rows))]
    return out


def nucleus(row: NDArray[np.float64], top_p: float) -> tuple[int, NDArray[np.float64]]:
    """Least count and weights from there on of the fewest most likely counts whose share reaches `top_p`."""
    order = np.argsort(-row, kind="stable")
    kept = len(row) if top_p == 1 else int(np.searchsorted(np.cumsum(row[order]), top_p * row.sum())) + 1
    weight = np.where(np.isin(np.arange(len(row)), order[:kept]), row, 0)
    low, high = np.flatnonzero(weight)[[0, -1]].tolist()
    return low, weight[low : high + 1]


def bridge_law(x0: int, x1: int, t: float, sigma: float, max_count: int) -> tuple[int, NDArray[np.float64]]:
    """Least count and weights of one code of the fixed-sum path: a Gaussian with mean (1-t) x0 + t x1 and
    deviation max(sigma |x1 - x0|, 1e-3) at the counts within six deviations, and the two next to the mean."""
    mean, s = x0 + t * (x1 - x0), max(sigma * abs(x1 - x0), 1e-3)
    low = max(0, min(int(np.ceil(mean - 6 * s)), int(np.floor(mean))))
    high = min(max_count, max(int(np.floor(mean + 6 * s)), int(np.ceil(mean))))
    exponent = -0.5 * ((np.arange(low, high + 1) - mean) / s) ** 2
    return low, np.exp(exponent - exponent.max())


def fixed_sum_bridge(
    x0: NDArray[np.int32],
    x1: NDArray[np.int32],
    t: NDArray[np.float64] | float,
    sigma: float,
    max_count: int,
    seed: int,
) -> NDArray[np.int32]:
    """A state [B, K] at time `t` (one, or [B]) on the way from `x0` to `x1` [B, K], with their common row sums."""
    out, times = x0.copy(), np.broadcast_to(t, len(x0)).tolist()
    for b in range(len(x0)):
        moved = np.flatnonzero(x0[b] != x1[b]).tolist()
        laws = {i: bridge_law(int(x0[b, i]), int(x1[b, i]), times[b], sigma, max_count) for i in moved}
        for i, count in draw_row(laws, int(x0[b, moved].sum()), seed, b).items():
            out[b, i] = count
    return out


def repair_step(
    x0: Any, x1: Any, t: float, sigma: float, max_count: int, generator: Any = None, totals: Any = None
) -> Any:
    """The published posterior step, in torch: Gaussian weights of all counts, `multinomial`, greedy repair.

    x0, x1: torch tensors [B, K] of counts (x0 may be an estimate and fractional); totals [B]: the sums to repair
    to, x0's by default; returns int64 [B, K]. The published defects are part of it:
    the weights stop at max_count - 1, so that a code whose mean is max_count has none and `multinomial`
    raises; the repair moves a code by one at most, so that a large deficit stays; and the repaired draw
    does not follow the law of independent draws given their sum. `sigma` is 0.25 in the paper;
    deviations are at least 0.05, for the weights between two counts not to vanish.
    """
    import torch

    mean = ((1 - t) * x0 + t * x1).float()
    deviation = (sigma * (x1 - x0).abs()).float().clamp_min(0.05)
    counts = torch.arange(max_count, dtype=torch.float32)
    density = torch.exp(-0.5 * ((counts - mean[..., None]) / deviation[..., None]) ** 2)
    law = density / density.sum(-1, keepdim=True)
    drawn = torch.multinomial(law.flatten(0, 1), 1, generator=generator).view(mean.shape)
    return repair(drawn, law, x0.sum(-1) if totals is None else totals)


def repair_sample(probs: Any, totals: Any, top_p: float, generator: Any = None, repaired: bool = True) -> Any:
    """The published draw of the data end, in torch: top-p by a full sort, `multinomial`, greedy repair.

    probs: [B, K, C]; totals: [B]; returns int64 [B, K], of which a row may miss its total. The
    published sampler sets `repaired` only from t = 0.65 on.
    """
    import torch

    ranked, order = probs.sort(-1, descending=True)
    ranked = ranked.masked_fill(ranked.cumsum(-1) - ranked >= top_p, 0)
    law = torch.zeros_like(probs).scatter(-1, order, ranked)
    law = law / law.sum(-1, keepdim=True)
    drawn = torch.multinomial(law.flatten(0, 1), 1, generator=generator).view(probs.shape[:-1])
    return repair(drawn, law, totals) if repaired else drawn


def repair(drawn: Any, law: Any, totals: Any) -> Any:
    """The published greedy repair: the codes that gain most probability by one step towards the total take it.

    drawn: torch int64 [B, K]; law: [B, K, C]; totals: [B]. Codes are ranked by p(k -+ 1) - p(k).
    """
    import torch

    excess = drawn.sum(-1) - totals
    step = -excess.sign()[:, None]
    moved = drawn + step
    inside = (moved >= 0) & (moved < law.shape[-1])
    at = moved.clamp(0, law.shape[-1] - 1)
    gain = law.gather(-1, at[..., None])[..., 0] - law.gather(-1, drawn[..., None])[..., 0]
    order = gain.masked_fill(~inside, -torch.inf).argsort(-1, descending=True)
    rank = torch.arange(drawn.shape[1]).expand_as(order)
    chosen = torch.zeros_like(inside).scatter(-1, order, rank < excess.abs()[:, None])
    return torch.where(chosen & inside, moved, drawn)


def repair_walk(
    network: Any, prior: Any, steps: int, tokens: int, top_p: float, generator: Any = None
) -> tuple[Any, Any]:
    """The published sampler: data ends and states [steps, B, K] (int64) from the prior counts [B, K] (torch).

    network(t, state) gives the laws [B, K, M+1] at time t. Draws of the data end are repaired from t = 0.65 on;
    states always, to the sum `tokens`, which is kinder than the published code.
    """
    import torch

    totals = torch.full((len(prior),), tokens)
    state, ends, states = prior, [], []
    for i in range(steps):
        t, after = i / steps, (i + 1) / steps
        x1 = repair_sample(network(t, state), totals, top_p, generator, repaired=t >= 0.65)
        x0 = (state - t * x1) / (1 - t)
        damped = 1 / (1 + np.exp(100 * (after - 0.8)))
        state = repair_step(x0, x1, after, 0.25 * damped, tokens, generator, totals)
        ends.append(x1)
        states.append(state)
    return torch.stack(ends), torch.stack(states)
