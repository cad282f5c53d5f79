"""The facade against the reference and against torch: spec 2.2's acceptance list."""

import subprocess
import sys

import core_llm_efficiency as core
import numpy as np
import pytest
from core_llm_efficiency.cases import structured_qkv
from core_llm_efficiency.reference import xattention as reference
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
F = torch.nn.functional


def inputs(seed=0, batch=1, heads=2, groups=1, n=256, m=None, dim=64):
    return structured_qkv(np.random.default_rng(seed), batch, heads, groups, n, m or n, dim)


def dense(q, k, v, causal=True):
    mask = np.ones((*q.shape[:2], 1, -(-k.shape[2] // 4096)), bool)
    return reference.block_sparse_attention(q, k, v, mask, 4096, q.shape[3] ** -0.5, causal)[0]


@pytest.mark.parametrize("stride", [4, 8, 16])
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("causal", [True, False])
def test_estimate_agrees_with_the_reference(stride, block, causal):
    q, k, _ = inputs(batch=2, heads=4, groups=2, n=330, m=472)
    scores, mask = core.xattn_estimate(q, k, stride=stride, block_size=block, is_causal=causal)
    want = reference.antidiagonal_scores(q, k, stride, block, 64**-0.5, causal)
    np.testing.assert_allclose(scores, want, rtol=1e-5, atol=1e-5)
    expected = reference.select_blocks(want, np.full(4, 0.9, np.float32), block, 330, 472, causal)
    ordered = np.sort(want, -1)
    close = (np.diff(ordered, axis=-1) < 1e-5).any(-1)
    assert ((mask == expected).all(-1) | close).all()


@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("stride", [4, 8, 16])
def test_head_dimensions_blocks_and_strides(dim, block, stride):
    """Two examples, grouped heads of a threshold each, more keys than queries, lengths off the grid."""
    q, k, v = inputs(batch=2, heads=4, groups=2, n=200, m=330, dim=dim)
    q *= np.float32((64 / dim) ** 0.5)  # the logits of float32 operands are as large, and as exact, at every dim
    thresholds = np.array([0.5, 0.8, 0.9, 0.95], np.float32)
    options = {"threshold": thresholds, "stride": stride, "block_size": block}
    scores, mask = core.xattn_estimate(q, k, **options)
    want = reference.antidiagonal_scores(q, k, stride, block, dim**-0.5, True)
    np.testing.assert_allclose(scores, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(mask, reference.select_blocks(scores, thresholds, block, 200, 330, True))
    exact, _ = reference.block_sparse_attention(q, k, v, mask, block, dim**-0.5, True)
    np.testing.assert_allclose(core.xattention(q, k, v, **options), exact, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("threshold", [1.0, 2.5])
def test_threshold_one_or_more_is_dense_attention(dim, causal, threshold):
    q, k, v = inputs(batch=2, heads=3, groups=1, n=200, dim=dim)
    out = core.xattention(q, k, v, threshold=threshold, block_size=64, is_causal=causal)
    repeated = (torch.from_numpy(x).repeat_interleave(3, 1) for x in (k, v))
    want = F.scaled_dot_product_attention(torch.from_numpy(q), *repeated, is_causal=causal)
    np.testing.assert_allclose(out, want.numpy(), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("limit", [{}, {"dense_up_to": 100}, {"dense_above": 0.0}])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_no_token_and_one(kind, limit):
    """No query gives an empty array, no key gives zeros, one key gives its value; and gradients of their shapes."""

    def call(n, m, causal):
        leaves = [np.ones((2, h, x, 8), np.float32) for h, x in ((4, n), (2, m), (2, m))]
        leaves[2] *= np.arange(8, dtype=np.float32)
        if kind == "torch":
            leaves = [torch.from_numpy(x).requires_grad_() for x in leaves]
        out = core.xattention(*leaves, is_causal=causal, **limit)
        if kind == "torch":
            out.sum().backward()
            assert all(x.grad is None or x.grad.shape == x.shape for x in leaves)
        return out.detach().numpy() if kind == "torch" else out

    for n, m, causal in ((0, 0, True), (0, 5, True), (0, 0, False), (0, 5, False)):
        assert call(n, m, causal).shape == (2, 4, 0, 8)
    for n in (1, 5):
        assert (call(n, 0, False) == np.zeros((2, 4, n, 8))).all()
    for causal in (True, False):
        np.testing.assert_allclose(call(1, 1, causal), np.broadcast_to(np.arange(8.0), (2, 4, 1, 8)), atol=1e-6)
    with pytest.raises(ValueError, match="causal"):
        call(1, 0, True)


def test_chunks_of_a_prompt_equal_the_whole():
    q, k, v = inputs(n=512)
    whole = core.xattention(q, k, v, block_size=64)
    half = core.xattention(q[:, :, 256:], k, v, block_size=64)
    np.testing.assert_array_equal(half, whole[:, :, 256:])


def test_keys_longer_than_queries_off_the_block_grid():
    q, k, v = inputs(n=37, m=301)
    out = core.xattention(q, k, v, threshold=1.0, block_size=64)
    np.testing.assert_allclose(out, dense(q, k, v), rtol=1e-4, atol=2e-5)


def test_threshold_for_each_head():
    q, k, _v = inputs(heads=2, n=1024)
    _, both = core.xattn_estimate(q, k, threshold=[0.5, 0.95], block_size=64)
    for head, tau in enumerate((0.5, 0.95)):
        _, one = core.xattn_estimate(q, k, threshold=tau, block_size=64)
        np.testing.assert_array_equal(both[:, head], one[:, head])
    assert both[:, 0].sum() < both[:, 1].sum()


def test_the_chosen_blocks_hold_the_true_mass():
    q, k, v = inputs(heads=4, groups=2, n=2048)
    _, density = core.xattention(q, k, v, block_size=64, return_density=True)
    _, mask = core.xattn_estimate(q, k, block_size=64)
    exact = reference.antidiagonal_scores(q, k, 1, 64, 0.125, True)  # stride 1: every key is sampled
    assert density < 0.8
    assert (exact * mask).sum() > 0.9 * exact.sum()


def test_rows_without_visible_keys_are_zero():
    q, k, v = inputs(n=128)
    mask = np.zeros((1, 2, 2, 2), bool)
    mask[:, :, 0, 1] = True  # wholly in the future
    assert (core.block_sparse_attention(q, k, v, mask, block_size=64) == 0).all()


@pytest.mark.parametrize("name", ["query", "key"])
def test_nan_gives_nan_where_it_is_read_and_keeps_its_blocks(name):
    q, k, v = inputs(n=256)
    (q if name == "query" else k)[0, 0, 200, 3] = np.nan
    scores, mask = core.xattn_estimate(q, k, block_size=64)
    assert np.isnan(scores[0, 0, 3]).all()
    assert mask[0, 0, 3].all()
    assert np.isfinite(scores[0, :, :3]).all()
    out = core.xattention(q, k, v, block_size=64)
    assert np.isnan(out[0, 0, 200]).all()
    assert np.isfinite(out[0, :, :192]).all()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 200),
    st.integers(0, 100),
    st.sampled_from([16, 32, 64]),
    st.booleans(),
    st.floats(0, 1.2),
    st.integers(0, 99),
)
def test_any_size(n, more, block, causal, tau, seed):
    q, k, v = inputs(seed, n=n, m=n + more, dim=16)
    lengths = {"q_len": n, "k_len": n + more, "block_size": block, "is_causal": causal}
    scores, mask = core.xattn_estimate(q, k, threshold=tau, block_size=block, is_causal=causal)
    expected = reference.select_blocks(scores, np.full(2, tau, np.float32), block, n, n + more, causal)
    np.testing.assert_array_equal(mask, expected)
    out = core.block_sparse_attention(q, k, v, mask, block_size=block, is_causal=causal)
    want, _ = reference.block_sparse_attention(q, k, v, mask, block, 0.25, causal)
    np.testing.assert_allclose(out, want, rtol=1e-4, atol=2e-5)
    assert 0 < core.block_density(mask, **lengths) <= 1


def test_torch_in_torch_out():
    q, k, v = inputs()
    out = core.xattention(*map(torch.from_numpy, (q, k, v)), block_size=64)
    assert isinstance(out, torch.Tensor)
    np.testing.assert_array_equal(out.numpy(), core.xattention(q, k, v, block_size=64))


def test_torch_operators_pass_opcheck_and_compile():
    from core_llm_efficiency import torch_ops

    q, k, v = map(torch.from_numpy, inputs(heads=4, groups=2))
    scores = torch_ops.antidiagonal_scores(q, k, 8, 64, 0.125, True)
    mask = torch_ops.select_blocks(scores, torch.full((4,), 0.9), 64, 256, 256, True)
    for op, args in (
        (torch_ops.antidiagonal_scores, (q, k, 8, 64, 0.125, True)),
        (torch_ops.select_blocks, (scores, torch.full((4,), 0.9), 64, 256, 256, True)),
        (torch_ops.block_sparse_attention, (q, k, v, mask, 64, 0.125, True)),
    ):
        torch.library.opcheck(op, args)
        compiled = torch.compile(lambda *a, op=op: op(*a), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*args), op(*args))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_size": 24}, "block"),
        ({"block_size": 0}, "block"),
        ({"stride": 7}, "stride"),
        ({"threshold": -1.0}, "thresholds"),
        ({"threshold": float("nan")}, "thresholds"),
        ({"scale": float("inf")}, "scale"),
        ({"query": np.zeros((1, 3, 256, 64), np.float32), "key": np.zeros((1, 2, 256, 64), np.float32)}, "k"),
        ({"query": np.zeros((1, 2, 300, 64), np.float32)}, "causal"),
        ({"query": np.zeros((2, 256, 64), np.float32)}, "query"),
    ],
)
def test_bad_values_are_refused(change, message):
    named = dict(zip(("query", "key", "value"), inputs(), strict=True)) | {"block_size": 64} | change
    with pytest.raises(ValueError, match=message):
        core.xattention(named.pop("query"), named.pop("key"), named.pop("value"), **named)


def test_other_dtypes_are_refused():
    q, k, v = inputs()
    with pytest.raises(TypeError, match="query"):
        core.xattention(q.astype(np.float64), k, v)


def test_import_needs_no_torch():
    code = "import sys, core_llm_efficiency; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
