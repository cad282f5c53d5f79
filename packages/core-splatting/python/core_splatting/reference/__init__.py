"""The independent references."""
