"""Throughput of the detectors, their text kernels and the parser.

Run with `CORE_NUM_THREADS=1 pytest packages/core-agents/benchmarks/bench_mast.py -s`.
"""

import itertools
import time
from functools import partial

import numpy as np
import pytest
from core_agents import mast
from core_agents.reference.mast import forms
from core_registry.timing import fastest

cpu = partial(fastest, clock=time.process_time)


def test_text_per_second():
    rng = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(5000)])
    for messages, length in ((200, 150), (200, 1500), (2000, 1500)):
        trace = [
            {"role": "assistant", "name": f"agent {i % 4}", "content": " ".join(words[rng.integers(5000, size=length)])}
            for i in range(messages)
        ]
        size = sum(len(m["content"]) for m in trace) / 1e6
        kernels, whole = cpu(lambda t=trace: mast.repeated(t)), cpu(lambda t=trace: mast.detect(t))
        print(
            f"\n{messages} messages, {size:.1f} MB: sketches and search {size / kernels:.0f} MB/s, "
            f"all detectors {size / whole:.0f} MB/s"
        )


@pytest.mark.parametrize("form", forms(mast.PAPER))
def test_every_answer(form):
    write, wrong = forms(mast.PAPER)[form], 0
    for verdicts in itertools.product((False, True), repeat=14):
        wrong += tuple(mast.parse_answer(write(verdicts)).modes.values()) != verdicts
    print(f"\n{form}: {wrong} of {2**14} answers read wrongly")
    assert not wrong


def test_answers_per_second():
    text = "\n".join(f"C.{m.code} {m.name}: {'yes' if i % 3 else 'no'}" for i, m in enumerate(mast.PAPER.modes))
    assert mast.parse_answer(text).array().sum() == 9
    print(f"\nparser: {1 / cpu(lambda: mast.parse_answer(text)):.0f} answers/s")
