"""Independent, readable versions of the operators, in Python and float64."""
