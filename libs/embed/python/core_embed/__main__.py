"""`python -m core_embed`: the folder to add to CMAKE_PREFIX_PATH."""

from core_embed import prefix

print(prefix())
