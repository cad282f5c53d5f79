"""The header core/embed.hpp and its CMake package, for C++ programs that call the Python facades."""

from pathlib import Path

__all__ = ["prefix"]


def prefix() -> Path:
    """The folder to add to CMAKE_PREFIX_PATH, so that find_package(core_embed) gives Core::embed."""
    return Path(__file__).resolve().parent
