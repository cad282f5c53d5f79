"""Starts the package of this folder by itself: nothing else of core_agents is imported, or can be."""

import importlib.util
import sys
from pathlib import Path

if __name__ == "__main__":
    folder = Path(__file__).parent
    sys.path[:] = [p for p in sys.path if p != str(folder)]
    spec = importlib.util.spec_from_file_location("counting", folder / "__init__.py")
    assert spec is not None
    sys.modules["counting"] = importlib.util.module_from_spec(spec)
    importlib.import_module("counting.measure").main()
