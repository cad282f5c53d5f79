"""Claims of papers, measured: `core reproduce`."""
