"""python -m core_registry is the command core."""

from .cli import main

main()
