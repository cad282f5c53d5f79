"""Independent references in plain numpy, and the published methods that serve as peers."""
