"""Relational attention on CUDA against the float64 reference, on fresh inputs at every run."""

import numpy as np
import pytest
from core_3d_molecule.cases import GRADIENTS, cases
from core_3d_molecule.reference import relational as reference

torch = pytest.importorskip("torch")
from core_3d_molecule import torch_ops  # noqa: E402

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
QM9 = {"H": 8, "D": 8, "E": 16, "F": 16, "G": 15}
SIZES = [
    QM9,
    QM9 | {"G": 0},
    {"H": 2, "D": 3, "E": 5, "F": 6, "G": 3},
    {"H": 16, "D": 32, "E": 16, "F": 32, "G": 9},
    {"H": 8, "D": 8, "E": 15, "F": 16, "G": 15},
    {"H": 1, "D": 1, "E": 1, "F": 1, "G": 0},
]


def problem(counts, size):
    """The inputs of the case table, for molecules of these numbers of atoms."""
    (case,) = (c for c in cases if c.op.endswith(".relational_attention"))
    rng = np.random.default_rng()
    a = dict(list(case.make(rng, B=1, N=1, **size).items())[:15])
    atoms, classes = sum(counts), a["w1"].shape[1] - 1 - len(a["centres"])
    for name in ("q", "k", "v", "q_edge", "k_edge"):
        a[name] = rng.standard_normal((atoms, *a[name].shape[1:]), np.float32)
    a["positions"] = rng.standard_normal((atoms, 3), np.float32) * np.float32(1.5)
    a["w1"][:, 0] *= np.float32(0.5)
    a["form"] *= np.float32(0.3)
    squares = [rng.integers(0, classes, (n, n), np.uint8) for n in counts]
    a["bonds"] = np.concatenate([np.empty(0, np.uint8), *(np.triu(s) + np.triu(s, 1).T for s in squares)], None)
    a["offsets"] = np.cumsum([0, *counts])
    return a


def on_device(a):
    return [torch.from_numpy(x).cuda() for x in a.values()]


def distance(got, want):
    want = np.asarray(want, np.float64)
    return np.linalg.norm(got.detach().cpu().numpy() - want) / max(np.linalg.norm(want), 1e-30)


@pytest.mark.parametrize("size", SIZES, ids=lambda s: "-".join(map(str, s.values())))
@pytest.mark.parametrize(
    "counts", [[1], [24, 25, 0, 18, 9], [29] * 3, [32, 33, 48, 49], [181, 5], [16, 17, 15]], ids=str
)
def test_equals_the_reference(counts, size):
    a = problem(counts, size)
    inputs = [x.requires_grad_() if x.is_floating_point() else x for x in on_device(a)]
    outputs = torch_ops.relational_attention(*inputs)
    want = reference.forward(a)
    for got, name in zip(outputs, ("out", "out_edge", "lse"), strict=True):
        assert distance(got, want[name]) < 3e-5, name
    grads = {f"grad_{n}": np.random.default_rng().standard_normal(want[n].shape) for n in ("out", "out_edge", "lse")}
    upstream = [torch.from_numpy(x).float().cuda() for x in grads.values()]
    leaves = [x for x in inputs if x.requires_grad]
    found = torch.autograd.grad(outputs, leaves, upstream)
    expected = reference.backward(a | want | {k: v.astype(np.float32) for k, v in grads.items()})
    for got, name in zip(found, GRADIENTS, strict=True):
        assert distance(got, expected[name]) < 2e-4 or np.linalg.norm(expected[name]) < 1e-6, name


@pytest.mark.parametrize("size", [(8, 8, 16), (8, 8, 15), (3, 5, 7)], ids=str)
@pytest.mark.parametrize("atoms", [0, 1, 31, 33, 300, 9001])
def test_projections_and_values_equal_those_in_float64(atoms, size):
    heads, channels, edge = size
    q, k, out = (torch.randn(atoms, heads, channels).double() for _ in range(3))
    edge_q, edge_k, edge_v = (torch.randn(heads, channels, edge).double() for _ in range(3))
    out_edge = torch.randn(atoms, heads, edge).double()

    def both(q, k, edge_q, edge_k, out, out_edge, edge_v):
        projected = torch_ops.relational_projections(q, k, edge_q, edge_k, 0.3)
        return *projected, torch_ops.relational_values(out, out_edge, edge_v)

    inputs = [x.requires_grad_() for x in (q, k, edge_q, edge_k, out, out_edge, edge_v)]
    on_gpu = [x.detach().float().cuda().requires_grad_() for x in inputs]
    want, got = both(*inputs), both(*on_gpu)
    directions = [torch.randn(x.shape).double() for x in want]
    expected = torch.autograd.grad(want, inputs, directions)
    found = torch.autograd.grad(got, on_gpu, [x.float().cuda() for x in directions])
    for one, other in zip((*got, *found), (*want, *expected), strict=True):
        assert one.shape == other.shape
        assert distance(one, other.detach()) < 2e-6
    again = torch.autograd.grad(both(*on_gpu), on_gpu, [x.float().cuda() for x in directions])
    for one, other in zip(found, again, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_any_strides_and_alignment():
    a = problem([18, 30], QM9)
    inputs = on_device(a)
    turned = [x.flip(0).flip(0) if x.ndim == 1 else x.mT.contiguous().mT for x in inputs]
    shifted = [torch.cat([x.new_zeros(1), x.reshape(-1)])[1:].reshape(x.shape) for x in inputs]
    want = torch_ops.relational_attention(*inputs)
    for other in (turned, shifted):
        for got, expected in zip(torch_ops.relational_attention(*other), want, strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_same_gradients_every_time():
    a = problem([18] * 40 + [27] * 9, QM9)
    inputs = [x.requires_grad_() if x.is_floating_point() else x for x in on_device(a)]
    leaves = [x for x in inputs if x.requires_grad]

    def once():
        return torch.autograd.grad([x.sum() for x in torch_ops.relational_attention(*inputs)], leaves)

    for one, other in zip(once(), once(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("offsets", [[0, 4, 3, 9], [0, 4, 8], [1, 5, 9], [0, 9], [0, 3, 10**9], [-5, 4, 9], [0]])
def test_bad_offsets_give_nan(offsets):
    a = problem([4, 5], QM9) | {"offsets": np.array(offsets)}
    inputs = [x.requires_grad_() if x.is_floating_point() else x for x in on_device(a)]
    outputs = torch_ops.relational_attention(*inputs)
    assert all(x.isnan().all() for x in outputs)
    found = torch.autograd.grad([x.sum() for x in outputs], [x for x in inputs if x.requires_grad])
    assert all(x.isnan().all() for x in found)


def test_a_bad_bond_spoils_its_molecule_alone():
    a = problem([4, 5, 6], QM9)
    clean = torch_ops.relational_attention(*on_device(a))[0]
    for change in (200, int(a["bonds"][17] + 1) % 4):  # an unknown class; a pair that is not symmetric
        spoilt = torch_ops.relational_attention(
            *on_device(a | {"bonds": np.r_[a["bonds"][:17], np.uint8(change), a["bonds"][18:]]})
        )[0]
        assert spoilt[4:9].isnan().any()
        torch.testing.assert_close(spoilt[:4], clean[:4], rtol=0, atol=0)
        torch.testing.assert_close(spoilt[9:], clean[9:], rtol=0, atol=0)


def test_nothing():
    a = problem([], QM9)
    inputs = [x.requires_grad_() if x.is_floating_point() else x for x in on_device(a)]
    outputs = torch_ops.relational_attention(*inputs)
    assert [tuple(x.shape) for x in outputs] == [(0, 8, 8), (0, 8, 16), (0, 8)]
    found = torch.autograd.grad([x.sum() for x in outputs], [x for x in inputs if x.requires_grad])
    assert all(not x.any() for x in found)


def test_too_wide_is_refused():
    with pytest.raises(ValueError, match="at most 16 heads and channels on CUDA"):
        torch_ops.relational_attention(*on_device(problem([3], QM9 | {"H": 17})))
