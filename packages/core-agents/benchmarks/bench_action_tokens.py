"""Actions to joint ids and tokens and back against numpy and against tokens by name in Python; equal results required.

Run with `CORE_NUM_THREADS=1 pytest packages/core-agents/benchmarks/bench_action_tokens.py -s`.
"""

import time
from functools import partial

import numpy as np
import pytest
from core_agents import cases
from core_registry.testing import duplicate
from core_registry.timing import fastest

ROWS = {c.op.partition(".")[2]: c for c in cases.cases if "code_" in c.op}


cpu = partial(fastest, clock=time.process_time)


@pytest.mark.parametrize("name", ROWS)
def test_rate(name):
    case = ROWS[name]
    args = case.arguments("bench")
    actions = args["button_ids"].size
    few = case.arguments({**case.sizes["bench"], "chunks": 200}) if "tokens" in name else duplicate(args)
    scale = actions / few["button_ids"].size
    case.binding()(*few.values())
    peer = case.peer[1](duplicate(few))
    case.difference(few, peer())
    ours, theirs = cpu(lambda: case.binding()(*args.values())), cpu(peer) * scale
    print(
        f"\n{name}: {actions / ours / 1e6:.1f} M actions/s, {case.peer[0]} {actions / theirs / 1e6:.3f} M/s, "
        f"ratio {theirs / ours:.1f}, equal"
    )


def test_whole_encoding():
    """Buttons and angles to tokens."""
    actions, tokens = ROWS["encode_actions"].arguments("bench"), ROWS["encode_tokens"].arguments("bench")
    n = 80_000
    part = {k: v[:n] if isinstance(v, np.ndarray) else v for k, v in actions.items()}
    tokens["button_ids"], tokens["camera_ids"] = (part[k].reshape(-1, 4) for k in ("button_ids", "camera_ids"))

    def whole():
        ROWS["encode_actions"].binding()(*part.values())
        ROWS["encode_tokens"].binding()(*tokens.values())

    print(f"\nbuttons and angles to tokens: {n / cpu(whole) / 1e6:.1f} M actions/s")
