"""run_operators.py PACKAGE: what a user's first minute proves, in an environment with nothing but numpy.

Imports the package, runs each of its operators on the tiny row of its case table, and compares with the reference.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys

import numpy as np

name = sys.argv[1]
assert importlib.util.find_spec("torch") is None, "this environment must not hold torch"
importlib.import_module(name)
binding = importlib.import_module(f"{name}._{name}")
for case in importlib.import_module(f"{name}.cases").cases:
    args = case.make(np.random.default_rng(0), **case.sizes["tiny"])
    expected = case.reference(args)
    getattr(binding, case.op.split(".")[1])(*args.values())
    for output, value in expected.items():
        rtol, atol = case.tolerance[output]
        np.testing.assert_allclose(args[output], value, rtol, atol, err_msg=f"{case.op}: {output}")
    print("ran", case.op)
