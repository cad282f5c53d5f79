"""The claim of the implemented paper holds and is reported with its plot."""

from pathlib import Path

import pytest
from core_diffusion.claims.set_diffusion import claim


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_token_set(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    result = claim("cpu", 0, tmp_path)
    assert result.holds
    assert result.plot is not None
    assert result.plot.stat().st_size > 0
    assert result.measured["total variation, published repair"][0] > 0.1
