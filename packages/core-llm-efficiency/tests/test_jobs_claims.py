"""The job, the claim without a model, and the code of the README."""

import json

import numpy as np
import pytest
from core_llm_efficiency import smollm2
from core_llm_efficiency.cases import structured_qkv
from core_llm_efficiency.claims import vidkv, xattention
from core_llm_efficiency.jobs import density

pytest.importorskip("matplotlib")


def test_density(tmp_path):
    q, k, _ = structured_qkv(np.random.default_rng(0), 1, 4, 2, 512, 512, 32)
    np.savez(tmp_path / "qk.npz", q=q, k=k)
    density(tmp_path / "qk.npz", tmp_path / "out.png", block=64)
    figures = json.loads((tmp_path / "out.json").read_text())
    assert figures["0.8"]["mean"] <= figures["0.9"]["mean"] <= figures["0.95"]["mean"] <= 1
    assert (tmp_path / "out.png").stat().st_size > 0


def test_density_names_what_is_missing(tmp_path):
    np.savez(tmp_path / "x.npz", q=np.zeros(1))
    with pytest.raises(ValueError, match="no tensor k"):
        density(tmp_path / "x.npz", tmp_path / "out.png")


@pytest.mark.parametrize("claim", [xattention.claim, vidkv.claim], ids=["xattention", "vidkv"])
def test_claim(tmp_path, monkeypatch, claim):
    monkeypatch.setattr(smollm2, "available", lambda: False)
    result = claim("cpu", 0, tmp_path)
    assert result.holds
    assert result.plot is not None
    assert result.plot.stat().st_size > 0
