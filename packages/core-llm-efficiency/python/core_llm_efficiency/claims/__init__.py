"""The claims of the implemented papers."""
