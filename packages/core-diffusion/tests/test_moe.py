import numpy as np
import pytest
from core_diffusion import _core_diffusion as _C
from core_diffusion import expert_ffn, moe_route, topk_mask
from core_diffusion.reference import moe as reference
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")


def problem(tokens=7, width=4, experts=3, inner=5, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    shapes = {
        "x": (tokens, width),
        "gates": (tokens, experts),
        "up": (experts, inner, width),
        "down": (experts, width, inner),
        "up_bias": (experts, inner),
        "down_bias": (experts, width),
    }
    p = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    return p, rng.random((tokens, experts)) < 0.5


def expected(p, mask, activation):
    p = {name: a.astype(np.float64) for name, a in p.items()}
    names = ("gates", "up", "up_bias", "down", "down_bias")
    return reference.expert_ffn(p["x"], mask, *(p[n] for n in names), activation)[0]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3), st.integers(1, 60), st.integers(1, 9), st.integers(0, 2**32 - 1), st.data())
def test_topk_takes_exactly_k_and_the_lowest_of_equals(rows, columns, values, seed, data):
    k = data.draw(st.integers(0, columns))
    rng = np.random.default_rng(seed)
    choice = np.array([-np.inf, -1.5, -0.0, 0.0, 1e-40, 0.25, 3, 1e30, np.inf], np.float32)[:values]
    scores = rng.choice(choice, (rows, columns))
    mask, kth = topk_mask(scores, k)
    want, limit = reference.topk_mask(scores, k)
    np.testing.assert_array_equal(mask, want)
    np.testing.assert_array_equal(kth, limit)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", [0, 1, 20000, 49999, 50000])
def test_topk_of_a_row_that_threads_share(dtype, k):
    scores = np.random.default_rng(0).integers(-9, 9, (1, 50000)).astype(dtype)
    mask, kth = topk_mask(scores, k)
    want, limit = reference.topk_mask(scores, k)
    np.testing.assert_array_equal(mask, want)
    np.testing.assert_array_equal(kth, limit)
    equal, _ = topk_mask(np.zeros((1, 50000), dtype), k)
    np.testing.assert_array_equal(np.flatnonzero(equal), np.arange(k))


def test_topk_refuses():
    with pytest.raises(ValueError, match=r"'k' must be in 0\.\.3"):
        topk_mask(np.zeros((2, 3), np.float32), 4)
    with pytest.raises(ValueError, match=r"'scores' must not be NaN, got NaN at \(1, 2\)"):
        topk_mask(np.array([[0, 0, 0], [0, 0, np.nan]], np.float32), 1)
    with pytest.raises(TypeError, match="'scores' must be float32"):
        topk_mask(np.zeros((2, 3), np.int64), 1)
    with pytest.raises(NotImplementedError, match="requires grad"):
        topk_mask(torch.zeros(2, 3, requires_grad=True), 1)


def test_topk_keeps_leading_axes():
    scores = np.random.default_rng(0).standard_normal((2, 3, 5)).astype(np.float32)
    mask, kth = topk_mask(scores, 2)
    assert mask.shape == (2, 3, 5)
    assert kth.shape == (2, 3)
    for ours, theirs in zip(topk_mask(torch.from_numpy(scores), 2), (mask, kth), strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs)


def test_route():
    mask = np.array([[1, 0, 1], [0, 0, 1]], bool)
    offsets, tokens = moe_route(mask, 5)
    assert offsets.tolist() == [0, 1, 1, 3]
    assert tokens.tolist() == [0, 0, 1, -1, -1]
    with pytest.raises(ValueError, match="'tokens' must have room for the 3 pairs"):
        moe_route(mask, 2)


@pytest.mark.parametrize("activation", ["gelu_tanh", "silu"])
@pytest.mark.parametrize("sizes", [(7, 4, 3, 5), (1, 4, 3, 5), (9, 3, 1, 2), (0, 4, 2, 3)])
def test_experts(activation, sizes):
    p, mask = problem(*sizes)
    mask[:, 1:2] = False
    want = expected(p, mask, activation)
    np.testing.assert_allclose(expert_ffn(mask=mask, activation=activation, **p), want, rtol=1e-5, atol=1e-5)
    t = {name: torch.from_numpy(a) for name, a in p.items()}
    got = expert_ffn(mask=torch.from_numpy(mask), activation=activation, **t)
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-5, atol=1e-5)
    nothing = expert_ffn(mask=np.zeros_like(mask), activation=activation, **p)
    assert not nothing.any()


def test_experts_over_several_chunks_and_panels():
    p, mask = problem(2300, 37, 2, 50)
    want = expected(p, mask, "silu")
    np.testing.assert_allclose(expert_ffn(mask=mask, activation="silu", **p), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ["gelu_tanh", "silu"])
@pytest.mark.parametrize("biased", [True, False])
def test_gradcheck(activation, biased):
    p, mask = problem(dtype=np.float64)
    mask[:, 1] = False
    t = {name: torch.from_numpy(a).requires_grad_() for name, a in p.items() if biased or "bias" not in name}

    def call(*args):
        return expert_ffn(
            mask=torch.from_numpy(mask), activation=activation, pairs=20, **dict(zip(t, args, strict=True))
        )

    assert torch.autograd.gradcheck(call, tuple(t.values()))


def test_kernel_and_torch_agree_on_gradients():
    p, mask = problem(300, 24, 3, 40)
    t = {name: torch.from_numpy(a).double().requires_grad_() for name, a in p.items()}  # float64 has torch's products
    grad = torch.from_numpy(np.random.default_rng(1).standard_normal((300, 24)).astype(np.float32))
    expert_ffn(mask=torch.from_numpy(mask), **t).backward(grad.double())
    offsets, tokens = moe_route(mask)
    hidden, out = np.zeros((len(tokens), 40), np.float32), np.zeros((300, 24), np.float32)
    names = ("gates", "up", "up_bias", "down", "down_bias")
    _C.expert_ffn(p["x"], tokens, offsets, *(p[n] for n in names), "gelu_tanh", hidden, out)
    d = {n: np.zeros_like(p[n]) for n in ("x", "gates", "up", "up_bias", "down", "down_bias")}
    inputs = (p["x"], tokens, offsets, p["gates"], p["up"], p["down"], p["down_bias"], hidden)
    _C.expert_ffn_backward(grad.numpy(), *inputs, "gelu_tanh", *d.values())
    for name, got in d.items():
        np.testing.assert_allclose(got, t[name].grad.numpy(), rtol=1e-4, atol=1e-4, err_msg=name)


def test_experts_refuse():
    p, mask = problem()
    with pytest.raises(ValueError, match="'mask' must have the shape of 'gates'"):
        expert_ffn(mask=mask[:3], **p)
    t = {name: torch.from_numpy(a) for name, a in p.items()}
    with pytest.raises(ValueError, match="'mask' must have shape"):
        expert_ffn(mask=torch.from_numpy(mask[:3]), **t)
    with pytest.raises(TypeError, match=r"'gates' must be torch\.float32"):
        expert_ffn(mask=torch.from_numpy(mask), **{**t, "gates": t["gates"].double()})
    for arrays, m in ((p, mask), (t, torch.from_numpy(mask))):
        with pytest.raises(ValueError, match="'activation' must be"):
            expert_ffn(mask=m, activation="relu", **arrays)
    with pytest.raises(ValueError, match="room"):
        expert_ffn(mask=torch.from_numpy(mask), pairs=1, **t)
    out, (offsets, tokens) = np.zeros_like(p["x"]), moe_route(mask)
    names = ("gates", "up", "up_bias", "down", "down_bias")
    for wrong in (tokens[::-1].copy(), tokens + 9):
        with pytest.raises(ValueError, match="'tokens' must ascend strictly"):
            _C.expert_ffn(p["x"], wrong, offsets, *(p[n] for n in names), "silu", None, out)
    with pytest.raises(ValueError, match="'offsets' must"):
        _C.expert_ffn(p["x"], tokens, offsets + 1, *(p[n] for n in names), "silu", None, out)
