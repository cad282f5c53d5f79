from core_registry.testing import abuse_tests, case_tests
from core_splatting.cases import cases

TestCases = case_tests(cases)
TestAbuse = abuse_tests(cases)
