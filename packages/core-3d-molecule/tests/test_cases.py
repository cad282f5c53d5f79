from core_3d_molecule.cases import cases
from core_registry.testing import abuse_tests, case_tests

TestCases = case_tests(cases)
TestAbuse = abuse_tests(cases)
