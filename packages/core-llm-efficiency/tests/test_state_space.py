"""The scans through their facades: against float64, cut anywhere, with gradients, and in transformers' models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from core_llm_efficiency import mamba_chunk_scan_combined, selective_scan_fn
from core_llm_efficiency.cases_state_space import make_scan, make_ssd
from core_llm_efficiency.reference import state_space as reference
from hypothesis import given, settings
from hypothesis import strategies as st


def scan_inputs(steps: int = 70, seed: int = 0) -> dict[str, Any]:
    args = make_scan(np.random.default_rng(seed), 2, 10, 2, 3, steps)
    return {k: args[k] for k in ("u", "delta", "A", "B", "C", "initial_state")}


def ssd_inputs(steps: int = 140, seed: int = 0) -> dict[str, Any]:
    args = make_ssd(np.random.default_rng(seed), 2, steps, 2, 2, 9, 17)
    return {k: args[k] for k in ("x", "dt", "A", "B", "C", "initial_states", "seq_idx")}


def along(args: dict[str, Any], axes: dict[str, int], part: slice) -> dict[str, Any]:
    return {k: np.moveaxis(np.moveaxis(v, axes[k], 0)[part], 0, axes[k]) if k in axes else v for k, v in args.items()}


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(0, 70), seed=st.integers(0, 1000))
def test_selective_scan_cut_anywhere(cut: int, seed: int) -> None:
    args = scan_inputs(seed=seed)
    whole, last = selective_scan_fn(**args, return_last_state=True)
    axes = {"u": 2, "delta": 2, "B": 3, "C": 3}
    first, state = selective_scan_fn(**along(args, axes, slice(0, cut)), return_last_state=True)
    then = along(args, axes, slice(cut, None)) | {"initial_state": state}
    second, end = selective_scan_fn(**then, return_last_state=True)
    np.testing.assert_allclose(np.concatenate([first, second], 2), whole, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(end, last, rtol=1e-5, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(0, 140), seed=st.integers(0, 1000))
def test_chunk_scan_cut_anywhere(cut: int, seed: int) -> None:
    args = ssd_inputs(seed=seed) | {"seq_idx": None}
    whole, last = mamba_chunk_scan_combined(**args, return_final_states=True)
    axes = dict.fromkeys(("x", "dt", "B", "C"), 1)
    first, state = mamba_chunk_scan_combined(**along(args, axes, slice(0, cut)), return_final_states=True)
    then = along(args, axes, slice(cut, None)) | {"initial_states": state}
    second, end = mamba_chunk_scan_combined(**then, return_final_states=True)
    np.testing.assert_allclose(np.concatenate([first, second], 1), whole, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(end, last, rtol=1e-4, atol=1e-4)


def test_sequences_side_by_side_are_those_alone() -> None:
    args = ssd_inputs(100) | {
        "initial_states": None,
        "seq_idx": np.repeat([[0] * 37 + [4] * 63], 2, 0).astype(np.int32),
    }
    out = mamba_chunk_scan_combined(**args)
    axes = dict.fromkeys(("x", "dt", "B", "C"), 1)
    alone = [
        mamba_chunk_scan_combined(**along(args, axes, part) | {"seq_idx": None})
        for part in (slice(0, 37), slice(37, None))
    ]
    np.testing.assert_allclose(out, np.concatenate(alone, 1), rtol=1e-4, atol=1e-5)


def test_bias_softplus_skip_and_gate() -> None:
    args = scan_inputs()
    rng = np.random.default_rng(1)
    raw, bias, D = (rng.standard_normal(s).astype(np.float32) for s in (args["u"].shape, 20, 20))
    z = rng.standard_normal(args["u"].shape).astype(np.float32)
    out = selective_scan_fn(**args | {"delta": raw}, D=D, z=z, delta_bias=bias, delta_softplus=True)
    plain, _ = reference.selective_scan(**args | {"delta": np.log1p(np.exp(raw + bias[:, None]))})
    np.testing.assert_allclose(out, (plain + D[:, None] * args["u"]) * z / (1 + np.exp(-z)), rtol=1e-4, atol=1e-4)


def test_dt_limit() -> None:
    args = ssd_inputs()
    out = mamba_chunk_scan_combined(**args, dt_limit=(0.05, 0.1))
    expected, _ = reference.ssd_scan(**args | {"dt": args["dt"].clip(0.05, 0.1)})
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)


def test_growing_states_overflow_to_infinity() -> None:
    args = scan_inputs(40) | {"A": np.full((20, 3), 50, np.float32)}
    with np.errstate(over="ignore"):
        assert np.isinf(selective_scan_fn(**args, return_last_state=True)[1]).any()


def test_nan_stays_in_its_channel() -> None:
    args = scan_inputs()
    args["u"][0, 3, 20] = np.nan
    out = selective_scan_fn(**args)
    bad = np.isnan(out)
    assert bad[0, 3, 20:].all()
    assert bad.sum() == 50


def test_refusals() -> None:
    args, wide, three = ssd_inputs(), np.zeros((2, 140, 2, 257), "f"), np.zeros((2, 140, 3, 17), "f")
    with pytest.raises(ValueError, match="a number of groups that divides the heads, got 3 and 4"):
        mamba_chunk_scan_combined(**args | {"B": three, "C": three})
    with pytest.raises(ValueError, match="argument 'B' must be at most 256 wide"):
        mamba_chunk_scan_combined(**args | {"B": wide, "C": wide, "initial_states": None})
    with pytest.raises(TypeError, match="argument 'dt' must be float32"):
        mamba_chunk_scan_combined(**args | {"dt": args["dt"].astype(np.float64)})
    with pytest.raises(ValueError, match="delta"):
        selective_scan_fn(**scan_inputs() | {"delta": np.zeros((2, 20, 69), "f")})


@pytest.mark.parametrize(("name", "good"), [("D", (4,)), ("z", (2, 140, 4, 9)), ("dt_bias", (4,))])
def test_refusals_of_what_would_be_broadcast(name: str, good: tuple[int, ...]) -> None:
    chunked, scan = ssd_inputs(), scan_inputs()
    other = {"D": "D", "z": "z", "dt_bias": "delta_bias"}[name]
    mamba_chunk_scan_combined(**chunked, **{name: np.ones(good, "f")})
    for shape in ((1,), (3,), (2, 140, 4, 1), (2, 20, 1)):
        with pytest.raises(ValueError, match=f"argument '{name}' must be float32 of shape"):
            mamba_chunk_scan_combined(**chunked, **{name: np.ones(shape, "f")})
        with pytest.raises(ValueError, match=f"argument '{other}' must be float32 of shape"):
            selective_scan_fn(**scan, **{other: np.ones(shape, "f")})


def autograd(function: Any, args: dict[str, Any], **more: Any) -> tuple[Any, list[Any]]:
    import torch

    kind = torch.float64 if function in (torch_selective_scan, torch_ssd_scan) else torch.float32
    tensors = {k: torch.from_numpy(v) if v.dtype == np.int32 else torch.tensor(v, dtype=kind) for k, v in args.items()}
    floats = [v.requires_grad_() for v in tensors.values() if v.is_floating_point()]
    out, last = function(**tensors, **more)
    loss = (out * torch.sin(torch.arange(out.numel()).view(out.shape))).sum() + (last * last).sum()
    return out, list(torch.autograd.grad(loss, floats))


def torch_selective_scan(u: Any, delta: Any, A: Any, B: Any, C: Any, initial_state: Any, **_: Any) -> Any:
    import torch

    share, h, out = u.shape[1] // B.shape[1], initial_state, []
    B, C = B.repeat_interleave(share, 1), C.repeat_interleave(share, 1)
    for t in range(u.shape[2]):
        step = delta[:, :, t, None]
        h = torch.exp(step * A) * h + step * B[..., t] * u[:, :, t, None]
        out.append((h * C[..., t]).sum(-1))
    return torch.stack(out, 2), h


def torch_ssd_scan(x: Any, dt: Any, A: Any, B: Any, C: Any, initial_states: Any, seq_idx: Any, **_: Any) -> Any:
    import torch

    share, state, out = x.shape[2] // B.shape[2], initial_states, []
    B, C = B.repeat_interleave(share, 2), C.repeat_interleave(share, 2)
    for t in range(x.shape[1]):
        if t:
            state = state * (seq_idx[:, t] == seq_idx[:, t - 1])[:, None, None, None]
        step = dt[:, t, :, None, None]
        state = torch.exp(step * A[:, None, None]) * state + step * x[:, t, :, :, None] * B[:, t, :, None]
        out.append((state * C[:, t, :, None]).sum(-1))
    return torch.stack(out, 1), state


@pytest.mark.parametrize(
    ("ours", "oracle", "inputs", "more"),
    [
        (selective_scan_fn, torch_selective_scan, scan_inputs, {"return_last_state": True}),
        (mamba_chunk_scan_combined, torch_ssd_scan, ssd_inputs, {"return_final_states": True}),
    ],
    ids=["selective", "chunked"],
)
def test_gradients_are_float64_autograds(ours: Any, oracle: Any, inputs: Any, more: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    out, gradients = autograd(ours, inputs(), **more)
    expected, wanted = autograd(oracle, inputs())
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4)
    for got, want in zip(gradients, wanted, strict=True):
        scale = float(want.abs().max())
        torch.testing.assert_close(got.double() / scale, want / scale, rtol=1e-4, atol=1e-5)


def test_torch_operators() -> None:
    torch = pytest.importorskip("torch")
    from core_llm_efficiency import torch_scans

    scan = [torch.from_numpy(v) for v in scan_inputs(9).values()]
    ssd = [torch.from_numpy(v) for v in ssd_inputs(9).values()]
    torch.library.opcheck(torch_scans.selective_scan, [v.clone().requires_grad_() for v in scan])
    torch.library.opcheck(torch_scans.ssd_scan, [*(v.clone().requires_grad_() for v in ssd[:6]), ssd[6]])
    step = torch.compile(lambda *x: torch_scans.ssd_scan(*x, None)[0] * 2, fullgraph=True, backend="aot_eager")
    leaf = ssd[0].clone().requires_grad_()
    step(leaf, *ssd[1:6]).sum().backward()
    eager = ssd[0].clone().requires_grad_()
    (torch_scans.ssd_scan(eager, *ssd[1:6], None)[0] * 2).sum().backward()
    torch.testing.assert_close(leaf.grad, eager.grad)


SMALL = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0, "eos_token_id": 49}
MODELS = {
    "mamba": ("Mamba", {"state_size": 5}),
    "mamba2": ("Mamba2", {"state_size": 9, "num_heads": 4, "head_dim": 16, "n_groups": 2, "chunk_size": 32}),
    "bamba": (
        "Bamba",
        {
            "intermediate_size": 40, "num_attention_heads": 2, "num_key_value_heads": 1, "attn_layer_indices": [1],
            "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 16,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_transformers_models(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    import importlib

    from core_llm_efficiency.transformers_scans import register_transformers_scans

    kind, more = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**SMALL, **more)).eval()
    ids = torch.randint(1, 49, (2, 77))
    labels = ids.clone()

    def run() -> tuple[Any, list[Any], Any]:
        model.zero_grad()
        answer = model(ids, labels=labels)
        answer.loss.backward()
        with torch.no_grad():
            made = model.generate(ids[:1, :40], max_new_tokens=6, do_sample=False, pad_token_id=0)
        return answer.logits.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None], made

    module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    scans = [n for n in ("mamba_selective_scan", "mamba2_chunk_scan") if hasattr(module, n)]
    if not scans:
        pytest.skip("this transformers keeps its scans inside the mixer")
    logits, gradients, made = run()
    for scan in scans:
        monkeypatch.setattr(module, scan, getattr(module, scan))  # put back afterwards
    assert register_transformers_scans([name]) == [f"{name}.{n}" for n in scans]
    calls = []
    ours = getattr(module, scans[0])
    monkeypatch.setattr(module, scans[0], lambda *a, **k: (calls.append(1), ours(*a, **k))[1])
    ours_logits, ours_gradients, ours_made = run()
    assert calls
    torch.testing.assert_close(ours_logits, logits, rtol=1e-4, atol=1e-4)
    for got, want in zip(ours_gradients, gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
    assert torch.equal(ours_made, made)
