"""A million states of the fixed-sum sampler, and its draws against enumerated laws: chi-square's p-values.

python benchmarks/check_set_diffusion.py [-o FILE]; half a minute of a CPU. Exits 1 if a sum is violated or a p is below
0.01.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from core_diffusion import fixed_sum_bridge, fixed_sum_sample
from core_diffusion.claims import set_diffusion as claim
from core_diffusion.reference import set_diffusion as reference
from core_registry.timing import write_results
from numpy.typing import NDArray
from scipy.stats import chisquare

DRAWS = 1_000_000


def p_value(draws: NDArray[np.int32], law: dict[tuple[int, ...], float]) -> float:
    """Of the frequencies of draws [N, K] under a law; vectors expected less than five times are counted as one."""
    vectors, times = np.unique(draws, axis=0, return_counts=True)
    seen = dict(zip(map(tuple, vectors.tolist()), times.tolist(), strict=True))
    if not seen.keys() <= law.keys():
        return 0.0
    common = [v for v, p in law.items() if p * len(draws) >= 5]
    expected, observed = [law[v] * len(draws) for v in common], [seen.get(v, 0) for v in common]
    if len(common) < len(law):
        expected.append(len(draws) - sum(expected))
        observed.append(len(draws) - sum(observed))
    return float(chisquare(observed, expected, sum_check=False).pvalue)


def main() -> int:
    """Prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=Path)
    chosen = parser.parse_args()
    wrong, states, wrong_published, states_published = claim.violations(0, DRAWS // 25, codes=16, tokens=8)
    rows = [
        {"what": "violated sums, ours", "of": states, "value": wrong},
        {"what": "violated sums, published repair", "of": states_published, "value": wrong_published},
    ]
    start, end = (np.tile(np.array(x, np.int32), (DRAWS, 1)) for x in (claim.TOY_X0, claim.TOY_X1))
    drawn = fixed_sum_bridge(start, end, claim.TOY_T, max_count=claim.TOY_TOKENS, seed=1)
    ps = {"p, step of 3 codes and 4 tokens": p_value(drawn, claim.exact_law())}
    for total in (1, 4, 7, 11):
        laws = np.random.default_rng(total).dirichlet(np.full(4, 0.7), 4)
        drawn = fixed_sum_sample(np.broadcast_to(laws, (DRAWS, 4, 4)), total, seed=total)
        ps[f"p, 4 codes, sum {total}"] = p_value(drawn, reference.enumerate_law(laws, total))
    rows += [{"what": name, "of": DRAWS, "value": p} for name, p in ps.items()]
    print(*rows, sep="\n")
    if chosen.out:
        write_results(chosen.out, ["what", "of", "value"], rows, cpu=True)
    return int(wrong > 0 or min(ps.values()) <= 0.01)


if __name__ == "__main__":
    sys.exit(main())
