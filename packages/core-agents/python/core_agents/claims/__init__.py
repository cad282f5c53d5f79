"""Claims of the implemented papers: `core reproduce`."""
