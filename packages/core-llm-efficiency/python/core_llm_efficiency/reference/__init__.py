"""Readable references, independent of the kernels."""
