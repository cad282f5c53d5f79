"""Independent references: plain Python, written to be read."""
