import itertools

import numpy as np
import pytest
from core_3d_molecule import relational_attention

NAMES = ["q", "k", "v", "positions", "edge_q", "edge_k", "edge_v", "centres", "widths", "w1", "b1", "w2", "b2"]


def problem(counts, heads=2, channels=3, edge=4, hidden=5, gaussians=3, classes=3, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    atoms = sum(counts)
    a = {name: rng.standard_normal((atoms, heads, channels)) for name in ("q", "k", "v")}
    a |= {name: rng.standard_normal((heads, channels, edge)) for name in ("edge_q", "edge_k", "edge_v")}
    a["positions"] = rng.standard_normal((atoms, 3)) * 1.5
    a["centres"], a["widths"] = rng.uniform(0, 9, gaussians), rng.uniform(0.5, 3, gaussians)
    a["w1"], a["b1"] = rng.standard_normal((hidden, 1 + gaussians + classes)) * 0.3, rng.standard_normal(hidden)
    a["w2"], a["b2"] = rng.standard_normal((edge, hidden)) * 0.5, rng.standard_normal(edge)
    a = {name: x.astype(dtype) for name, x in a.items()}
    squares = [rng.integers(0, classes, (n, n), np.uint8) for n in counts]
    a["bonds"] = np.concatenate([np.empty(0, np.uint8), *(np.triu(s) + np.triu(s, 1).T for s in squares)], None)
    a["offsets"] = np.cumsum([0, *counts])
    return a


def naive(a):
    """Each query, key and value of each pair in memory, as the paper writes it."""
    out, at = np.zeros(a["q"].shape), 0
    for i, j in itertools.pairwise(a["offsets"]):
        n = j - i
        squared = ((a["positions"][i:j, None] - a["positions"][None, i:j]) ** 2).sum(-1, keepdims=True)
        one_hot = np.eye(a["w1"].shape[1] - 1 - len(a["centres"]))[a["bonds"][at : at + n * n].reshape(n, n)]
        x = np.concatenate([squared, np.exp(-(((squared - a["centres"]) / a["widths"]) ** 2) / 2), one_hot], -1)
        pre = x @ a["w1"].T + a["b1"]
        e = pre / (1 + np.exp(-pre)) @ a["w2"].T + a["b2"]
        q = a["q"][i:j, None] + np.einsum("ijc,hdc->ijhd", e, a["edge_q"])
        k = a["k"][None, i:j] + np.einsum("ijc,hdc->ijhd", e, a["edge_k"])
        v = a["v"][None, i:j] + np.einsum("ijc,hdc->ijhd", e, a["edge_v"])
        logits = (q * k).sum(-1) / np.sqrt(q.shape[-1])
        p = np.exp(logits - logits.max(1, keepdims=True, initial=-np.inf))
        out[i:j] = ((p / p.sum(1, keepdims=True))[..., None] * v).sum(1)
        at += n * n
    return out


@pytest.mark.parametrize("counts", [[1], [2, 0, 9, 17], [181, 3], []])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-5), (np.float64, 1e-12)])
def test_equals_pairs_in_memory(counts, dtype, tolerance):
    a = problem(counts, heads=8, channels=8, edge=16, hidden=16, gaussians=15, classes=6, dtype=dtype)
    for name in ("edge_q", "edge_k", "w2"):
        a[name] *= dtype(0.3)
    got = relational_attention(**a)
    assert got.dtype == dtype
    np.testing.assert_allclose(got, naive(a), rtol=tolerance, atol=tolerance)


def test_nan_stays_within_its_molecule():
    a = problem([4, 5])
    clean = relational_attention(**a)
    a["positions"][1] = np.nan
    spoilt = relational_attention(**a)
    assert np.isnan(spoilt[:4]).any()
    np.testing.assert_array_equal(spoilt[4:], clean[4:])


def test_turning_and_renaming_atoms_changes_nothing():
    a = problem([7])
    order = np.random.default_rng(1).permutation(7)
    turn = np.linalg.qr(np.random.default_rng(2).standard_normal((3, 3)))[0]
    moved = a | {name: a[name][order] for name in ("q", "k", "v")} | {"positions": a["positions"][order] @ turn + 3}
    moved["bonds"] = a["bonds"].reshape(7, 7)[np.ix_(order, order)].ravel()
    np.testing.assert_allclose(relational_attention(**moved), relational_attention(**a)[order], atol=1e-12)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"bonds": np.full(25, 3, np.uint8)}, "'bonds' must be below the number of classes, 3, got 3"),
        ({"bonds": np.eye(5, k=1, dtype=np.uint8).ravel()}, "'bonds' must be symmetric"),
        ({"bonds": np.zeros(24, np.uint8)}, "'bonds' must have 25 classes"),
        ({"offsets": [0, 4]}, "'offsets' must begin with 0 and end with 5"),
        ({"widths": [1.0, 0.0, 1.0]}, "'widths' must be above 0, got 0"),
        ({"edge_k": np.zeros((2, 3, 5))}, "'edge_k' must have shape"),
        ({"w1": np.zeros((5, 4))}, "'w1' must have 1 [+] G [+] 1..256 bond classes columns, got 4"),
    ],
)
def test_bad_input_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        relational_attention(**(problem([5]) | change))


def test_too_many_atoms_are_refused():
    a = problem([1025], heads=1, channels=1, edge=1)
    with pytest.raises(ValueError, match="no molecule more than 1024 atoms, got 1025"):
        relational_attention(**a)


class TestTorch:
    torch = pytest.importorskip("torch")

    def arguments(self, counts, **size):
        return {name: self.torch.from_numpy(x) for name, x in problem(counts, **size).items()}

    def test_gradients(self):
        a = self.arguments([3, 1], channels=2, edge=3, hidden=3, gaussians=2)
        leaves = [a[name].requires_grad_() for name in NAMES]

        def call(*values):
            return relational_attention(**(a | dict(zip(NAMES, values, strict=True))))

        assert self.torch.autograd.gradcheck(call, leaves)

    def test_every_output_has_its_gradient(self):
        from core_3d_molecule import torch_ops
        from core_3d_molecule.cases import cases

        (case,) = (c for c in cases if c.op.endswith("relational_attention"))
        args = case.make(np.random.default_rng(0), **(case.sizes["tiny"] | {"B": 2, "N": 3, "E": 3, "F": 3, "D": 2}))
        inputs = [
            self.torch.from_numpy(x.astype(np.float64)).requires_grad_()
            if x.dtype == np.float32
            else self.torch.from_numpy(x)
            for x in list(args.values())[:15]
        ]
        assert self.torch.autograd.gradcheck(torch_ops.relational_attention, inputs)
        self.torch.library.opcheck(torch_ops.relational_attention, inputs)

    def test_projections_are_operators(self):
        from core_3d_molecule import torch_ops

        def normal(*shape):
            return self.torch.randn(shape, dtype=self.torch.float64, requires_grad=True)

        for operator, inputs in (
            (
                torch_ops.relational_projections,
                (normal(4, 2, 3), normal(4, 2, 3), normal(2, 3, 5), normal(2, 3, 5), 0.6),
            ),
            (torch_ops.relational_values, (normal(4, 2, 3), normal(4, 2, 5), normal(2, 3, 5))),
        ):
            assert self.torch.autograd.gradcheck(operator, inputs)
            self.torch.library.opcheck(operator, inputs)

    def test_compiles_whole(self):
        a = self.arguments([6, 2], dtype=np.float32)
        compiled = self.torch.compile(relational_attention, fullgraph=True, backend="aot_eager")
        self.torch.testing.assert_close(compiled(**a), relational_attention(**a))
