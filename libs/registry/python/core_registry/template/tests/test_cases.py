import numpy as np
import plugin_name
from plugin_name.cases import cases
from core_registry.testing import abuse_tests, case_tests

TestCases = case_tests(cases)
TestAbuse = abuse_tests(cases)


def test_facade() -> None:
    x = np.eye(3, dtype=np.float32)
    np.testing.assert_array_equal(plugin_name.pairwise_sqdist(x, x), 2 * (1 - x))
