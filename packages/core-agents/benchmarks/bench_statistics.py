"""The bootstrap interval of Cohen's kappa: 10,000 replicates of 1,642 traces with 14 labels, against scikit-learn.

Run with `CORE_NUM_THREADS=1 pytest packages/core-agents/benchmarks/bench_statistics.py -s`. The peer is timed on few
replicates, which must be equal to ours.
"""

import time

import numpy as np
from core_agents import statistics
from core_registry.timing import fastest
from sklearn.metrics import cohen_kappa_score


def test_bootstrap_of_kappa():
    rng = np.random.default_rng(0)
    truth = rng.random((1642, 14)) < 0.12
    labels = np.stack([truth ^ (rng.random(truth.shape) < p) for p in (0.04, 0.06)], -1).astype(np.int64)
    estimate = statistics.agreement(labels, "cohen", bootstrap=10_000)
    seconds = fastest(lambda: statistics.agreement(labels, "cohen", bootstrap=10_000), clock=time.process_time)
    picks = statistics.bootstrap_sums(np.eye(1642), 20).astype(int)
    values, theirs = [], []
    for times in picks:
        drawn = np.repeat(labels, times, 0).reshape(-1, 2)
        start = time.process_time()
        values.append(cohen_kappa_score(drawn[:, 0], drawn[:, 1]))
        theirs.append(time.process_time() - start)
    few = statistics.agreement(labels, "cohen", bootstrap=20)
    assert np.abs(np.percentile(values, [2.5, 97.5]) - [few.low, few.high]).max() < 1e-12
    each = min(theirs) * 10_000
    print(
        f"\nkappa {estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]: {seconds:.2f} s, "
        f"scikit-learn {each:.0f} s, ratio {each / seconds:.0f}, equal to 1e-12"
    )
