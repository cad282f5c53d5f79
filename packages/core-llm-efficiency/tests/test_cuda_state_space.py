"""The state-space scans on CUDA against the step-by-step reference in float64, on fresh inputs at every run."""

import core_llm_efficiency as core
import numpy as np
import pytest
from core_llm_efficiency.reference import state_space as reference

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
OUT = {torch.float32: 3e-5, torch.float16: 1e-3, torch.bfloat16: 6e-3}
STATE = {torch.float32: 3e-5, torch.float16: 3e-5, torch.bfloat16: 6e-3}


def relative(x, want):
    return float(np.linalg.norm(x.double().cpu().numpy() - want) / np.linalg.norm(want))


def ssd(dtype, b=2, l=300, h=4, g=2, p=64, n=128, initial=True, seq=False, layout=None):  # noqa: E741
    """Arguments on the device; the floats of `dtype` are x, B and C."""
    rng = np.random.default_rng()
    x, B, C = (rng.standard_normal(s) for s in ((b, l, h, p), (b, l, g, n), (b, l, g, n)))
    x, B, C = (torch.from_numpy(v).cuda().to(dtype) for v in (x, B, C))
    if layout == "odd":
        x, B, C = (torch.nn.functional.pad(v, (3, 2))[..., 3:-2] for v in (x, B, C))
    dt = torch.from_numpy(rng.uniform(0.002, 0.2, (b, l, h))).cuda().float()
    A = -torch.from_numpy(rng.uniform(0.5, 8, h)).cuda().float()
    state = torch.from_numpy(rng.standard_normal((b, h, p, n))).cuda().float() if initial else None
    index = torch.from_numpy(np.sort(rng.integers(0, 4, (b, l)), 1)).cuda().int() if seq else None
    return x, dt, A, B, C, state, index


def check_ssd(dtype, **sizes):
    x, dt, A, B, C, state, seq = ssd(dtype, **sizes)
    options = {"initial_states": state, "seq_idx": seq, "return_final_states": True}
    out, final = core.mamba_chunk_scan_combined(x, dt, A, B, C, **options)
    assert (out.dtype, final.dtype) == (dtype, torch.float32)
    there = (None if v is None else v.cpu() for v in (x, dt, A, B, C, state, seq))
    want, last = reference.ssd_scan(*(None if v is None else v.double().numpy() for v in there))
    assert relative(out, want) < OUT[dtype]
    assert relative(final, last) < STATE[dtype]
    again, _ = core.mamba_chunk_scan_combined(x, dt, A, B, C, **options)
    assert torch.equal(out, again)


SSD = [{}, {"initial": False}, {"seq": True}, {"p": 24, "n": 16}, {"p": 80, "n": 100}, {"n": 256, "p": 40}, {"l": 1}]
SSD += [
    {"l": 64},
    {"l": 65, "p": 256, "n": 32},
    {"layout": "odd"},
    {"b": 4, "h": 40, "g": 1},
    {"b": 1, "l": 2100, "seq": True},
    {"n": 200, "seq": True},
    {"b": 1, "l": 1100, "h": 80, "n": 64},
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SSD)
def test_ssd(dtype, sizes):
    check_ssd(dtype, **sizes)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ssd_cut_and_step_by_step(dtype):
    x, dt, A, B, C, state, _ = ssd(dtype, l=133)
    whole, last = core.mamba_chunk_scan_combined(x, dt, A, B, C, initial_states=state, return_final_states=True)
    outs = []
    for begin, end in ((0, 70), (70, 128), *((t, t + 1) for t in range(128, 133))):
        part = (v[:, begin:end] for v in (x, dt, B, C))
        px, pdt, pB, pC = part
        out, state = core.mamba_chunk_scan_combined(px, pdt, A, pB, pC, initial_states=state, return_final_states=True)
        outs.append(out)
    assert relative(torch.cat(outs, 1), whole.double().cpu().numpy()) < OUT[dtype]
    assert relative(state, last.double().cpu().numpy()) < STATE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("d", "n", "g", "l"), [(64, 16, 1, 300), (48, 5, 2, 33), (33, 64, 1, 77), (8, 200, 1, 1), (96, 17, 3, 64)]
)
@pytest.mark.parametrize("initial", [True, False])
def test_selective_scan(dtype, d, n, g, l, initial):  # noqa: E741
    rng = np.random.default_rng()
    drawn = (rng.standard_normal(s) for s in ((2, d, l), (2, g, n, l), (2, g, n, l)))
    u, B, C = (torch.from_numpy(x).cuda().to(dtype) for x in drawn)
    delta = torch.from_numpy(rng.uniform(0.002, 0.2, (2, d, l))).cuda().float()
    A = -torch.from_numpy(rng.uniform(0.5, 8, (d, n))).cuda().float()
    state = torch.from_numpy(rng.standard_normal((2, d, n))).cuda().float() if initial else None
    out, last = core.selective_scan_fn(u, delta, A, B, C, initial_state=state, return_last_state=True)
    assert (out.dtype, last.dtype) == (dtype, torch.float32)
    there = (None if v is None else v.double().cpu().numpy() for v in (u, delta, A, B, C, state))
    want = reference.selective_scan(*there)
    assert relative(out, want[0]) < OUT[dtype] / (10 if dtype == torch.float32 else 1)
    assert relative(last, want[1]) < 3e-6


GRADIENT = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}


def check_gradients(call, reference_call, inputs, dtype):
    """Those of a random weighting of both results, against the step-by-step gradients in float64."""
    leaves = [x.clone().requires_grad_() if x is not None and x.is_floating_point() else x for x in inputs]
    out, last = call(*leaves)
    of_out = torch.randn_like(out.float()).to(out.dtype)
    of_last = torch.randn_like(last)
    torch.autograd.backward([out, last], [of_out, of_last])
    there = [None if x is None else x.detach().cpu().double().numpy() for x in inputs]
    want = reference_call(*there, of_out.double().cpu().numpy(), of_last.double().cpu().numpy())
    floats = [x for x in leaves if x is not None and x.is_floating_point()]
    for x, exact in zip(floats, want, strict=False):
        assert x.grad.dtype == x.dtype
        assert relative(x.grad, exact) < GRADIENT[dtype], (tuple(x.shape), relative(x.grad, exact))
    first = [x.grad.clone() for x in floats]
    for x in floats:
        x.grad = None
    torch.autograd.backward(list(call(*leaves)), [of_out, of_last])
    assert all(torch.equal(x.grad, y) for x, y in zip(floats, first, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SSD)
def test_ssd_gradients(dtype, sizes):
    x, dt, A, B, C, state, seq = ssd(dtype, **sizes)

    def call(x, dt, A, B, C, state=None):
        options = {"initial_states": state, "seq_idx": seq, "return_final_states": True}
        return core.mamba_chunk_scan_combined(x, dt, A, B, C, **options)

    def exact(x, dt, A, B, C, *rest):
        *state, of_out, of_last = rest
        index = None if seq is None else seq.cpu().numpy()
        return reference.ssd_scan_backward(x, dt, A, B, C, *(state or [None]), index, of_out, of_last)

    inputs = [x, dt, A, B, C] + ([] if state is None else [state])
    check_gradients(call, exact, inputs, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("d", "n", "g", "l"),
    [
        (64, 16, 1, 300),
        (48, 5, 2, 33),
        (33, 64, 1, 77),
        (8, 200, 1, 1),
        (96, 17, 3, 64),
        (40, 16, 2, 900),
        (20, 200, 1, 150),
    ],
)
def test_selective_scan_gradients(dtype, d, n, g, l):  # noqa: E741
    rng = np.random.default_rng()
    drawn = (rng.standard_normal(s) for s in ((2, d, l), (2, g, n, l), (2, g, n, l)))
    u, B, C = (torch.from_numpy(x).cuda().to(dtype) for x in drawn)
    delta = torch.from_numpy(rng.uniform(0.002, 0.2, (2, d, l))).cuda().float()
    A = -torch.from_numpy(rng.uniform(0.5, 8, (d, n))).cuda().float()
    state = torch.from_numpy(rng.standard_normal((2, d, n))).cuda().float()

    def call(u, delta, A, B, C, state):
        return core.selective_scan_fn(u, delta, A, B, C, initial_state=state, return_last_state=True)

    check_gradients(call, reference.selective_scan_backward, [u, delta, A, B, C, state], dtype)


def test_gradients_of_a_cut_sequence():
    """The gradients of two calls in a row are those of one."""
    inputs = [x.detach().requires_grad_() for x in ssd(torch.float32, l=133, initial=False)[:5]]

    def halves(x, dt, A, B, C):
        first, state = core.mamba_chunk_scan_combined(
            x[:, :70], dt[:, :70], A, B[:, :70], C[:, :70], return_final_states=True
        )
        rest = core.mamba_chunk_scan_combined(x[:, 70:], dt[:, 70:], A, B[:, 70:], C[:, 70:], initial_states=state)
        return torch.cat([first, rest], 1)

    weight = torch.randn(2, 133, 4, 64, device="cuda")
    whole = torch.autograd.grad((core.mamba_chunk_scan_combined(*inputs) * weight).sum(), inputs)
    for x, y in zip(torch.autograd.grad((halves(*inputs) * weight).sum(), inputs), whole, strict=True):
        assert relative(x, y.double().cpu().numpy()) < 1e-4


def test_options_and_refusals():
    x, dt, A, B, C, _, _ = ssd(torch.bfloat16)
    out = core.mamba_chunk_scan_combined(x, dt, A, B, C, D=torch.ones(4, device="cuda"), z=x, dt_softplus=True)
    assert out.dtype == torch.bfloat16
    with pytest.raises(TypeError, match="'B' must be bfloat16"):
        core.mamba_chunk_scan_combined(x, dt, A, B.float(), C)
    with pytest.raises(ValueError, match="divides the heads"):
        core.mamba_chunk_scan_combined(x[:, :, :3], dt[:, :, :3], A[:3], B, C)
    assert core.mamba_chunk_scan_combined(x[:, :0], dt[:, :0], A, B[:, :0], C[:, :0]).shape == (2, 0, 4, 64)


def test_hybrid_model_trains():
    """Loss and gradients of the model are those of the CPU."""
    from core_llm_efficiency.hybrid import HybridConfig, HybridModel

    torch.manual_seed(0)
    config = HybridConfig(
        vocab_size=100, hidden_size=64, pattern="M-M-*-", intermediate_size=128, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, mamba_num_heads=4, mamba_head_dim=32,
    )  # fmt: skip
    model = HybridModel(config)
    ids = torch.randint(0, 100, (2, 130))
    found = []
    for device in ("cpu", "cuda"):
        model = model.to(device)
        model.zero_grad()
        there = ids.to(device)
        loss = torch.nn.functional.cross_entropy(model(there)[:, :-1].flatten(0, 1), there[:, 1:].flatten())
        loss.backward()
        found.append([loss.detach().cpu(), *(p.grad.detach().cpu() for p in model.parameters())])
    for got, want in zip(*found[::-1], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5)
