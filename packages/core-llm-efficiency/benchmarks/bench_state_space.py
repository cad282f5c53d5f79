"""Scans and layers beside mambapy and transformers, one thread, CPU time (pytest -s bench_state_space.py).

transformers computed Mamba-2 on the CPU some 20 times slower until it was rewritten, after 5.10. `test_hybrid_model`
runs beside any version: `pip install --no-deps --target OLD transformers==4.57.6 "tokenizers<0.23"
"huggingface_hub<1"`, then `PYTHONPATH=OLD pytest -s bench_state_space.py -k hybrid`.
"""

import os

os.environ["CORE_NUM_THREADS"] = "1"  # read when the first operator runs

import importlib
import time
from collections.abc import Iterator

import numpy as np
import pytest
from core_llm_efficiency import selective_scan_fn
from core_llm_efficiency.cases_state_space import make_scan
from core_llm_efficiency.transformers_scans import register_transformers_scans
from core_registry.timing import fastest, one_torch_thread

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with one_torch_thread():
        yield


def cpu(f) -> float:  # type: ignore[no-untyped-def]
    return fastest(f, 3, time.process_time)


def test_selective_scan_against_mambapy() -> None:
    """(1, 512, 1024), 16 states; mambapy needs all states in memory."""
    pscan = pytest.importorskip("mambapy.pscan").pscan
    args = make_scan(np.random.default_rng(0), 1, 512, 1, 16, 1024)
    u, delta, A, B, C = (torch.from_numpy(args[k]) for k in ("u", "delta", "A", "B", "C"))

    def theirs():  # type: ignore[no-untyped-def]
        decay = torch.exp(delta.mT[..., None] * A)
        states = pscan(decay, (delta * u).mT[..., None] * B.permute(0, 3, 1, 2))
        return (states @ C[:, 0].mT[..., None]).squeeze(-1).mT

    with torch.no_grad():
        difference = float((selective_scan_fn(u, delta, A, B, C) - theirs()).abs().max())
        assert difference < 1e-3
        ours, peers = cpu(lambda: selective_scan_fn(u, delta, A, B, C)), cpu(theirs)
    print(
        f"\nselective scan: ours {ours * 1e3:.1f} ms, mambapy {peers * 1e3:.1f} ms, ratio {peers / ours:.1f}, "
        f"largest difference {difference:.1e}"
    )


LAYERS = {
    "mamba": ("Mamba", {"state_size": 16, "hidden_size": 256}),
    "mamba2": (
        "Mamba2",
        {"state_size": 128, "hidden_size": 256, "num_heads": 8, "head_dim": 64, "n_groups": 1, "chunk_size": 128},
    ),
}


def test_hybrid_model() -> None:
    """The Mamba-2 layer as our own model, with the same weights; logits of both."""
    from core_llm_efficiency.hybrid import HybridModel

    kind, more = LAYERS["mamba2"]
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(
        getattr(transformers, f"{kind}Config")(vocab_size=64, num_hidden_layers=1, **more)
    )
    hybrid, ids = HybridModel.from_transformers(model), torch.randint(0, 64, (1, 1024))

    def theirs():  # type: ignore[no-untyped-def]
        return model(ids, use_cache=False).last_hidden_state @ model.embeddings.weight.T

    with torch.no_grad():
        difference = float((hybrid(ids) - theirs()).abs().max())
        assert difference < 1e-3
        ours, peers = cpu(lambda: hybrid(ids)), cpu(theirs)
    print(
        f"\nMamba-2 layer in our model: {ours * 1e3:.1f} ms, transformers {transformers.__version__} "
        f"{peers * 1e3:.0f} ms, ratio {peers / ours:.1f}, largest difference {difference:.1e}"
    )


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("training", [False, True], ids=["forward", "forward and backward"])
def test_layer_against_transformers(name: str, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One layer of 256 channels (inner 512) over 1024 tokens, its projections included."""
    kind, more = LAYERS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(vocab_size=64, num_hidden_layers=1, **more)
    model = getattr(transformers, f"{kind}Model")(config)
    ids = torch.randint(0, 64, (1, 1024))

    def run():  # type: ignore[no-untyped-def]
        with torch.set_grad_enabled(training):
            out = model(ids, use_cache=False).last_hidden_state
            if training:
                out.square().mean().backward()
            return out.detach()

    module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    for scan in ("mamba_selective_scan", "mamba2_chunk_scan"):
        if hasattr(module, scan):
            monkeypatch.setattr(module, scan, getattr(module, scan))
    expected, peers = run(), cpu(run)
    register_transformers_scans([name])
    difference = float((run() - expected).abs().max())
    assert difference < 1e-3
    ours = cpu(run)
    mixer = model.layers[0].mixer
    x, y = torch.randn(1, 1024, 256), torch.randn(1, 1024, 512)
    with torch.no_grad():
        projections = cpu(lambda: (mixer.in_proj(x), mixer.out_proj(y)))
    print(
        f"\n{kind} layer, {'forward and backward' if training else 'forward'}: ours {ours * 1e3:.1f} ms, transformers "
        f"{transformers.__version__} {peers * 1e3:.0f} ms, ratio {peers / ours:.1f}, largest difference "
        f"{difference:.1e}; its projections alone, forward, {projections * 1e3:.1f} ms"
    )
