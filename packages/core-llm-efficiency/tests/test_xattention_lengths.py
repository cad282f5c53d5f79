"""Sequences of different lengths, dense fallback, and thresholds found from examples."""

import itertools

import core_llm_efficiency as core
import numpy as np
import pytest
from core_llm_efficiency.cases import structured_qkv
from core_llm_efficiency.reference import xattention as reference
from hypothesis import given, settings
from hypothesis import strategies as st


def inputs(n=256, m=None, batch=1, heads=4, groups=2, dim=32, seed=0):
    return structured_qkv(np.random.default_rng(seed), batch, heads, groups, n, m or n, dim)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("more", [0, 50])
def test_packed_sequences_are_those_alone(causal, more):
    lengths, options = [70, 0, 1, 200], {"block_size": 32, "is_causal": causal}
    alone = [inputs(n, n + more if n else n, seed=i) for i, n in enumerate(lengths)]
    q, k, v = (np.concatenate([x[i][0].swapaxes(0, 1) for x in alone]) for i in range(3))
    cu_q, cu_k = (np.cumsum([0, *(x[i].shape[2] for x in alone)]) for i in range(2))
    out, density = core.xattention_varlen(q, k, v, cu_q, cu_k, return_density=True, **options)
    want = [core.xattention(*x, return_density=True, **options) for x in alone]
    np.testing.assert_array_equal(out, np.concatenate([x[0][0].swapaxes(0, 1) for x in want]))
    assert min(d for _, d in want) <= density <= 1
    torch = pytest.importorskip("torch")
    leaves = [torch.from_numpy(x).requires_grad_() for x in (q, k, v)]
    again = core.xattention_varlen(*leaves, torch.from_numpy(cu_q).int(), torch.from_numpy(cu_k).int(), **options)
    np.testing.assert_array_equal(again.detach().numpy(), out)
    again.sum().backward()
    assert leaves[1].grad.shape == k.shape


def test_padding_takes_no_part():
    q, k, v = inputs(n=130, m=210, batch=3)
    lengths = [210, 97, 0]
    spoiled_k, spoiled_v = k.copy(), v.copy()
    for b, n in enumerate(lengths):
        spoiled_k[b, :, n:], spoiled_v[b, :, n:] = np.nan, np.inf
    out = core.xattention_padded(q, spoiled_k, spoiled_v, lengths, threshold=0.8, block_size=32)
    for b, n in enumerate(lengths[:2]):
        one = [q[b : b + 1], k[b : b + 1, :, :n], v[b : b + 1, :, :n]]
        np.testing.assert_array_equal(
            out[b : b + 1], core.xattention(*one, threshold=0.8, block_size=32, is_causal=False)
        )
    assert (out[2] == 0).all()
    whole = core.xattention_padded(q, spoiled_k, spoiled_v, lengths, threshold=1.0, block_size=32)
    want, _ = reference.block_sparse_attention(
        q[1:2], k[1:2, :, :97], v[1:2, :, :97], np.ones((1, 4, 1, 1), bool), 256, 32**-0.5, False
    )
    np.testing.assert_allclose(whole[1:2], want, rtol=1e-4, atol=2e-5)


def test_no_sequence_gives_an_empty_array():
    q, k, v = (np.zeros((0, h, 32), np.float32) for h in (4, 2, 2))
    assert core.xattention_varlen(q, k, v, [0], [0]).shape == (0, 4, 32)
    assert core.xattention_padded(*(x[None, :0].swapaxes(1, 2)[:0] for x in (q, k, v)), []).shape == (0, 4, 0, 32)


@pytest.mark.parametrize("bounds", [[0, 9, 5, 10], [1, 10], [0, 9], [0, 5, 11], []])
def test_bad_bounds_are_refused(bounds):
    q, k, v = (np.zeros((10, h, 32), np.float32) for h in (4, 2, 2))
    with pytest.raises(ValueError, match="argument 'cu_seqlens_q' must rise from 0 to the number of rows, 10"):
        core.xattention_varlen(q, k, v, bounds, [0, 10])
    with pytest.raises(ValueError, match="argument 'cu_seqlens_k' must have 2 entries"):
        core.xattention_varlen(q, k, v, [0, 10], [0, 5, 10])
    with pytest.raises(ValueError, match="argument 'key_lengths' must be 1 numbers in"):
        core.xattention_padded(*(x[None].swapaxes(1, 2) for x in (q, k, v)), [11])


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize(("n", "m", "causal"), [(200, 200, True), (70, 200, True), (70, 200, False)])
@pytest.mark.parametrize("limit", [{"dense_up_to": 200}, {"dense_above": 0.0}])
def test_dense_where_sparse_would_not_pay(kind, n, m, causal, limit):
    torch = pytest.importorskip("torch")
    q, k, v = inputs(n, m)
    given = (q, k, v) if kind == "numpy" else tuple(map(torch.from_numpy, (q, k, v)))
    options = {"block_size": 32, "is_causal": causal, "threshold": 0.3}
    out, density = core.xattention(*given, return_density=True, **options, **limit)
    assert density == 1
    whole = core.xattention(q, k, v, **options | {"threshold": 1.0})
    np.testing.assert_allclose(np.asarray(out), whole, rtol=1e-4, atol=2e-5)
    beyond = {"dense_up_to": 199, "dense_above": 1.0}
    _, density = core.xattention(*given, return_density=True, **options, **beyond)
    assert density < 1


@pytest.mark.parametrize("limit", [{}, {"dense_up_to": 200}, {"dense_above": 0.0}])
def test_narrower_floats_are_widened_however_it_attends(limit):
    torch = pytest.importorskip("torch")
    q, k, v = (torch.from_numpy(x).bfloat16() for x in inputs(200))
    out = core.xattention(q, k, v, block_size=32, threshold=0.3, **limit)
    assert out.dtype == torch.float32
    assert torch.equal(out, core.xattention(q.float(), k.float(), v.float(), block_size=32, threshold=0.3, **limit))
    with pytest.raises(TypeError, match="argument 'key' must be float32, got float64"):
        core.xattention(q, k.double(), v, block_size=32, **limit)


def test_covering_thresholds_by_hand():
    exact = np.array([[[[6.0, 1, 2, 1], [1, 1, 1, 1]]]])
    scores = np.array([[[[5.0, 3, 2, 0], [4, 3, 2, 1]]]])
    # row 0: blocks 0, 2 hold 8 of 10; the lowest score among them is 2, and scores >= 2 hold all. Row 1: all four
    assert core.covering_thresholds(scores, exact, 0.8) == pytest.approx([1.0])
    # half: row 0 needs block 0 alone, 5 of 10; row 1 needs blocks 0 and 1, 7 of 10
    assert core.covering_thresholds(scores, exact, 0.5) == pytest.approx([0.6])
    # of two examples the larger: blocks scored as they truly weigh need 0.6 and, all being equal, 1
    two = core.covering_thresholds(np.concatenate([scores, exact]), np.concatenate([exact, exact]), 0.5)
    assert two == pytest.approx([0.8])


def test_profiled_thresholds_cover_the_true_mass():
    q, k, _ = inputs(1024)
    found = core.profile_thresholds(q, k, coverage=0.9, block_size=32)
    assert found.shape == (4,)
    assert ((found > 0) & (found <= 1)).all()
    assert (core.profile_thresholds(q, k, coverage=0.5, block_size=32) <= found).all()
    _, mask = core.xattn_estimate(q, k, threshold=found.astype(np.float32), block_size=32)
    exact, _ = core.xattn_estimate(q, k, stride=1, block_size=32)
    assert (exact * mask).sum() > 0.85 * exact.sum()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 16), st.integers(0, 99))
def test_adjustments_are_the_best_of_all(heads, steps, adjustments, seed):
    losses = np.random.default_rng(seed).random((heads, steps + 1))
    if adjustments > heads * steps:
        with pytest.raises(ValueError, match="argument 'adjustments' must be in"):
            core.allocate_adjustments(losses, adjustments)
        return
    counts, totals = core.allocate_adjustments(losses, adjustments)
    ways = [w for w in itertools.product(range(steps + 1), repeat=heads) if sum(w) == adjustments]
    best = min(sum(losses[h, j] for h, j in enumerate(w)) for w in ways)
    assert counts.sum() == adjustments
    assert totals[-1] == pytest.approx(best)
    assert losses[np.arange(heads), counts].sum() == pytest.approx(best)


def test_search_beats_one_threshold_for_all():
    q, k, v = inputs(512, seed=3)
    found = core.search_thresholds(q, k, v, 8, steps=6, block_size=32)
    assert found.losses.shape == found.densities.shape == (4, 7)
    same = found.losses[:, 2].sum()  # two adjustments for every head
    assert found.totals[8] <= same
    out, density = core.xattention(
        q, k, v, threshold=found.thresholds.astype(np.float32), block_size=32, return_density=True
    )
    counts = [int(np.argmin(abs(found.candidates - t))) for t in found.thresholds]
    assert density == pytest.approx(found.densities[np.arange(4), counts].mean())
    dense = core.xattention(q, k, v, threshold=1.0, block_size=32)
    loss = (np.square(out - dense).sum((0, 2, 3)) / np.square(dense).sum((0, 2, 3))).sum()
    assert loss == pytest.approx(found.totals[8], rel=1e-3)
