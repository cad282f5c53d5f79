"""The gradients of block-sparse attention: against torch's masked attention, through operators, compiled, trained."""

import core_llm_efficiency as core
import numpy as np
import pytest
from core_llm_efficiency.cases import structured_qkv
from core_llm_efficiency.reference import xattention as reference

torch = pytest.importorskip("torch")
F = torch.nn.functional


def inputs(heads=4, groups=2, n=150, m=None, dim=64, block=32, seed=0):
    rng = np.random.default_rng(seed)
    q, k, v = (torch.from_numpy(x) for x in structured_qkv(rng, 2, heads, groups, n, m or n, dim))
    mask = torch.from_numpy(rng.random((2, heads, -(-n // block), -(-(m or n) // block))) < 0.5)
    mask[..., 0] = True
    return q, k, v, mask


def masked_attention(q, k, v, mask, block, causal):
    """torch's, in float64."""
    share = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(share, 1) for x in (k, v))
    seen = mask.repeat_interleave(block, 2).repeat_interleave(block, 3)[:, :, : q.shape[2], : k.shape[2]]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen.tril(k.shape[2] - q.shape[2]) if causal else seen)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("dim", "block", "m"), [(64, 32, 150), (80, 16, 201), (96, 64, 150), (128, 128, 310), (300, 64, 150)]
)
def test_gradients_equal_torchs(causal, dim, block, m):
    q, k, v, mask = inputs(dim=dim, block=block, m=m)
    found, wanted = [], []
    for got, dtype in ((found, torch.float32), (wanted, torch.float64)):
        leaves = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
        if dtype == torch.float32:
            out = core.block_sparse_attention(*leaves, mask, block_size=block, is_causal=causal)
        else:
            out = masked_attention(*leaves, mask, block, causal)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        got += [out.detach(), *(x.grad for x in leaves)]
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-3, atol=1e-4)


def test_gradients_of_the_denominator():
    q, k, v, mask = inputs()
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    _, lse = core.block_sparse_attention(*leaves, mask, block_size=32, return_lse=True)
    lse.square().sum().backward()
    kept = [x.detach().numpy() for x in leaves]
    _, exact = reference.block_sparse_attention(*kept, mask.numpy(), 32, 0.125, True)
    want = reference.block_sparse_attention_backward(
        *kept, mask.numpy(), 32, 0.125, True, np.zeros((*lse.shape, 64)), 2 * exact
    )
    for x, y in zip(leaves, want, strict=True):
        np.testing.assert_allclose(x.grad.numpy(), y, rtol=1e-3, atol=1e-3)


def test_finite_differences_of_the_reference():
    """The reference's own gradients, which the operator is compared with, are those of its output."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(1, h, 6, 3)) for h in (2, 1, 1))
    mask = np.ones((1, 2, 1, 1), bool)
    of_out, of_lse = rng.normal(size=(1, 2, 6, 3)), rng.normal(size=(1, 2, 6))

    def value(*args):
        out, lse = reference.block_sparse_attention(*args, mask, 16, 0.7, True)
        return (out * of_out).sum() + (lse * of_lse).sum()

    gradients = reference.block_sparse_attention_backward(q, k, v, mask, 16, 0.7, True, of_out, of_lse)
    for i, x in enumerate((q, k, v)):
        direction = rng.normal(size=x.shape)
        sides = [value(*(y + s * 1e-6 * direction if j == i else y for j, y in enumerate((q, k, v)))) for s in (1, -1)]
        assert (sides[0] - sides[1]) / 2e-6 == pytest.approx((gradients[i] * direction).sum(), rel=1e-6)


def test_gradcheck():
    q, k, v, mask = inputs(heads=2, groups=1, n=20, dim=4, block=16)

    def call(*leaves):
        return core.block_sparse_attention(*(x.float() for x in leaves), mask, block_size=16).double()

    leaves = [x[:1].double().requires_grad_() for x in (q, k, v)]
    mask = mask[:1]
    assert torch.autograd.gradcheck(call, leaves, eps=1e-2, atol=2e-3, rtol=2e-2, nondet_tol=0)


def test_queries_without_keys_get_no_gradient():
    q, k, v, mask = inputs(n=128)
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    mask[:, :, 0] = False
    core.block_sparse_attention(*leaves, mask, block_size=32).sum().backward()
    assert (leaves[0].grad[:, :, :32] == 0).all()
    assert all(torch.isfinite(x.grad).all() for x in leaves)


def test_opcheck_and_compile():
    from core_llm_efficiency import torch_ops

    q, k, v, mask = inputs(n=70)
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(torch_ops.block_sparse_attention, (*leaves, mask, 32, 0.125, True))
    kept = [x.detach() for x in leaves]
    out, lse = torch_ops.block_sparse_attention(*kept, mask, 32, 0.125, True)
    torch.library.opcheck(
        torch_ops.block_sparse_attention_backward, (*kept, mask, 32, 0.125, True, out, lse, torch.ones_like(out), None)
    )

    def loss(q, k, v):
        return core.xattention(q, k, v, block_size=32).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for f in (loss, compiled):
        f(*leaves).backward()
    first = [x.grad / 2 for x in leaves]
    for x in leaves:
        x.grad = None
    loss(*leaves).backward()
    for x, y in zip(leaves, first, strict=True):
        torch.testing.assert_close(x.grad, y)


def test_training_lowers_the_loss():
    q, k, v, _ = inputs(n=128)
    target = torch.randn(2, 4, 128, 64, generator=torch.Generator().manual_seed(0))
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    optimiser = torch.optim.Adam(leaves, 0.05)
    losses = []
    for _ in range(15):
        optimiser.zero_grad()
        loss = (core.xattention(*leaves, block_size=32) - target).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    assert losses[-1] < 0.8 * losses[0]
