"""What the facades share: arrays, files, torch operators, demonstrations; and the stubs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import core_registry
import numpy as np
import pytest
from core_registry.arrays import as_array, empty
from core_registry.demo import Demo
from core_registry.files import replace
from core_registry.stubs import stub

ROOT = Path(__file__).resolve().parents[2]


def test_as_array() -> None:
    x = np.ones(3, np.float32)
    assert as_array(x, "float32", "x") is x
    assert as_array([1, 2], "float32", "x").dtype == np.float32
    assert as_array(np.int32([1]), "int64", "x").dtype == np.int64
    for bad, dtype in [
        (np.ones(3), "float32"),
        (["a"], "float32"),
        ([1.5], "int64"),
        ([True], "no"),
        (np.ones(3, bool), "float32"),
    ]:
        with pytest.raises(TypeError):
            as_array(bad, dtype, "x")
    with pytest.raises((OverflowError, TypeError)):
        as_array([-1], "uint8", "x")


def test_arrays_of_torch() -> None:
    torch = pytest.importorskip("torch")
    x = torch.ones(3)
    assert as_array(x, "float32", "x") is x
    assert as_array([1.0], "float32", "y", like=x).dtype == torch.float32
    assert isinstance(empty((2, 0), "bool", like=x), torch.Tensor)
    assert as_array(x, "float64", "x").dtype == torch.float64
    with pytest.raises(TypeError, match="argument 'x' must be int64, got float32"):
        as_array(x, "int64", "x")


def test_replace(tmp_path: Path) -> None:
    target = tmp_path / "new" / "x.txt"
    with replace(target) as temporary:
        temporary.write_text("one")
        assert not target.exists()
    assert target.read_text() == "one"
    with pytest.raises(ZeroDivisionError), replace(target) as temporary:
        temporary.write_text("half" * (1 // 0))
    assert target.read_text() == "one"
    assert list(target.parent.iterdir()) == [target]


def test_demo_refuses_different_answers() -> None:
    with pytest.raises(ValueError, match="differs from peer by 2"):
        Demo("what", "input", 1.0, "peer", 2.0, difference=2.0, tolerance=1.0)
    with pytest.raises(ValueError, match="differs"):
        Demo("what", "input", 1.0, "peer", 2.0, difference=float("nan"), tolerance=1.0)
    assert Demo("what", "input", 1.0, "peer", 2.0, difference=0.0, tolerance=1.0).ratio == 2


@pytest.mark.parametrize("name", sorted(core_registry.plugins()))
def test_stubs_are_current(name: str) -> None:
    spec = importlib.util.find_spec(name)
    assert spec
    assert spec.submodule_search_locations
    files = [Path(f) / f"_{name}.pyi" for f in spec.submodule_search_locations]
    file = next(f for f in files if f.exists())
    assert file.read_text() == stub(core_registry.plugins()[name]), f"run: core stubs {name} -o {file}"


def test_results_on_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from core_registry.timing import floor_ms, write_results

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    assert floor_ms(moved=3.35e9) == floor_ms(67e9, dtype="float32") == floor_ms(989e9, 3.35e9) == 1.0
    rows = [{"what": "a", "ours_ms": 2.0, "same": True}, {"what": "b"}]
    write_results(tmp_path / "new" / "x.json", ["what", "ours_ms"], rows, operator="core_x.y")
    results = json.loads((tmp_path / "new" / "x.json").read_text())
    assert results.pop("date")
    assert results == {
        "operator": "core_x.y", "device": "NVIDIA H100 80GB HBM3", "torch": torch.__version__,
        "columns": ["what", "ours_ms"], "rows": [rows[0], {"what": "b", "ours_ms": ""}],
    }  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "another")
    assert floor_ms(1.0, 1.0) is None


@pytest.mark.cuda
def test_time_on_cuda() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    from core_registry.timing import device_ms

    called: list[int] = []
    assert 2 < device_ms(lambda: torch.cuda._sleep(10_000_000), 3, 1, lambda: called.append(1)) < 50
    assert len(called) == 3
