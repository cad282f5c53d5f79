"""The gradients of block-sparse attention on CUDA against the float64 reference, on fresh inputs at every run."""

import itertools

import core_llm_efficiency as core
import numpy as np
import pytest
from core_llm_efficiency import _core_llm_efficiency as _C
from core_llm_efficiency.cases import structured_qkv
from core_llm_efficiency.reference import xattention as reference

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
ERROR = {torch.bfloat16: 1.5e-2, torch.float16: 2e-3}


def inputs(dtype, batch=2, heads=4, groups=2, n=330, m=472, dim=128, width=None, layout="bhnd"):
    """q, k, v and the gradient of the output, on the GPU."""
    rng = np.random.default_rng()
    q, k, v = structured_qkv(rng, batch, heads, groups, n, m, dim)
    there = []
    for x in (q, k, v[..., :width], rng.normal(size=(batch, heads, n, width or dim))):
        y = torch.from_numpy(x).to("cuda", dtype)
        if layout == "bnhd":
            y = y.transpose(1, 2).contiguous().transpose(1, 2)
        elif layout == "odd":
            y = torch.nn.functional.pad(y, (3, 4))[..., 3:-4]
        there.append(y)
    return there


def random_mask(q, k, block, density):
    shape = *q.shape[:2], -(-q.shape[2] // block), -(-k.shape[2] // block)
    return np.random.default_rng().random(shape) < density


def relative(x, want):
    return float(np.linalg.norm(x.double().cpu().numpy() - want) / max(np.linalg.norm(want), 1e-30))


def check(q, k, v, grad, mask, block, causal):
    """The raw operator, twice, on poisoned outputs; the same bits, near the reference."""
    scale = q.shape[3] ** -0.5
    there = torch.from_numpy(mask).cuda()
    out, lse = torch.empty_like(grad).contiguous(), torch.empty(q.shape[:3], device="cuda")
    _C.block_sparse_attention(q, k, v, there, block, scale, causal, out, lse)
    of_lse = torch.randn_like(lse)
    found = []
    for _ in range(2):
        found.append([torch.full(x.shape, torch.nan, dtype=x.dtype, device="cuda") for x in (q, k, v)])
        _C.block_sparse_attention_backward(q, k, v, there, block, scale, causal, out, lse, grad, of_lse, *found[-1])
    exact = [x.double().cpu().numpy() for x in (q, k, v, grad, of_lse)]
    want = reference.block_sparse_attention_backward(*exact[:3], mask, block, scale, causal, *exact[3:])
    for x, again, y, name in zip(*found, want, "qkv", strict=True):
        assert torch.equal(x, again), name
        assert relative(x, y) < ERROR[q.dtype], (name, relative(x, y))


@pytest.mark.parametrize("dtype", ERROR)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("block", "dim"), [(64, 64), (128, 64), (64, 128), (128, 128), (16, 80), (48, 96), (128, 256)])
def test_gradients(dtype, causal, block, dim):
    q, k, v, grad = inputs(dtype, dim=dim)
    check(q, k, v, grad, random_mask(q, k, block, 0.5), block, causal)


@pytest.mark.parametrize("layout", ["bnhd", "odd"])
@pytest.mark.parametrize("width", [None, 40])
def test_layouts_and_a_narrower_value(layout, width):
    q, k, v, grad = inputs(torch.bfloat16, width=width, layout=layout)
    check(q, k, v, grad, random_mask(q, k, 128, 0.5), 128, True)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 300), (128, 128), (127, 129), (256, 1024), (1000, 1000), (200, 1337)])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("block", [64, 128, 256])
def test_lengths(n, m, density, block):
    q, k, v, grad = inputs(torch.bfloat16, 1, 4, 1, n, m)
    check(q, k, v, grad, random_mask(q, k, block, density), block, True)


@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("groups", [1, 4])
def test_keys_that_every_query_reads(block, groups):
    """Their work is split."""
    q, k, v, grad = inputs(torch.bfloat16, 1, 4, groups, 2100, 2100)
    mask = random_mask(q, k, block, 0.1)
    mask[..., :2] = True
    mask[:, ::3, 5:7] = False
    check(q, k, v, grad, mask, block, True)


def test_no_queries_and_no_keys():
    q, k, v, grad = inputs(torch.bfloat16, n=0)
    check(q, k, v, grad, random_mask(q, k, 128, 0.5), 128, True)
    q, k, v, grad = inputs(torch.bfloat16, n=20, m=20)
    k, v = k[:, :, :0], v[:, :, :0]
    check(q, k, v, grad, random_mask(q, k, 128, 0.5), 128, False)


@pytest.mark.parametrize("layout", ["bhnd", "odd"])
def test_no_query_heads(layout):
    """The gradients of keys and values that nobody reads are zero, through the torch operator too."""
    q, k, v, grad = inputs(torch.bfloat16, n=300, m=300, layout=layout)
    q, grad = q[:, :0], grad[:, :0]
    mask = random_mask(q, k, 128, 0.5)
    check(q, k, v, grad, mask, 128, True)
    leaves = leaves_of(q, k, v)
    core.block_sparse_attention(*leaves, torch.from_numpy(mask).cuda()).backward(grad)
    assert leaves[0].grad.shape == q.shape
    assert not any(x.grad.any() for x in leaves[1:])


def leaves_of(*tensors):
    return [x.detach().clone().requires_grad_() for x in tensors]


def test_operator_and_compile():
    from core_llm_efficiency import torch_ops

    q, k, v, grad = inputs(torch.bfloat16, n=330, m=330)
    mask = torch.from_numpy(random_mask(q, k, 128, 0.7)).cuda()
    torch.library.opcheck(torch_ops.block_sparse_attention, (*leaves_of(q, k, v), mask, 128, 0.1, True))
    out, lse = torch_ops.block_sparse_attention(q, k, v, mask, 128, 0.1, True)
    torch.library.opcheck(
        torch_ops.block_sparse_attention_backward, (q, k, v, mask, 128, 0.1, True, out, lse, grad, None)
    )

    def loss(q, k, v):
        return (core.xattention(q, k, v, dense_up_to=0).float() * grad.float()).sum()

    found = []
    for f in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaves = leaves_of(q, k, v)
        f(*leaves).backward()
        found.append([x.grad for x in leaves])
    for x, y in zip(*found, strict=True):
        assert relative(x, y.double().cpu().numpy()) < 1e-3


@pytest.mark.parametrize("dtype", ERROR)
def test_gradients_equal_the_cpu_operators(dtype):
    q, k, v, grad = inputs(dtype, n=472)
    mask = torch.from_numpy(random_mask(q, k, 64, 0.5))
    found = []
    for device, kind in (("cuda", dtype), ("cpu", torch.float32)):
        leaves = leaves_of(*(x.to(device, kind) for x in (q, k, v)))
        out = core.block_sparse_attention(*leaves, mask.to(device), block_size=64)
        out.backward(grad.to(device, kind))
        found.append([x.grad for x in leaves])
    for x, y in zip(*found, strict=True):
        assert relative(x, y.double().numpy()) < ERROR[dtype]


def test_several_sequences_side_by_side():
    """Gradients through the packed form are those of each sequence alone."""
    q, k, v, grad = (x[0].transpose(0, 1) for x in inputs(torch.bfloat16, 1, 4, 2, 700, 700))
    bounds = [0, 130, 131, 700]
    leaves = leaves_of(q, k, v)
    core.xattention_varlen(*leaves, bounds, bounds, dense_up_to=0).backward(grad)
    for begin, end in itertools.pairwise(bounds):
        alone = leaves_of(*(x[begin:end].transpose(0, 1)[None] for x in (q, k, v)))
        core.xattention(*alone, dense_up_to=0).backward(grad[begin:end].transpose(0, 1)[None])
        for x, y in zip(leaves, alone, strict=True):
            assert relative(x.grad[begin:end].transpose(0, 1)[None], y.grad.double().cpu().numpy()) < 1e-6


def test_transformers_train_through_the_blocks():
    transformers = pytest.importorskip("transformers")
    from core_llm_efficiency.transformers import register_transformers

    densities = []
    register_transformers("core_cuda_training", dense_up_to=512, stride=16, densities=densities)
    forward = transformers.AttentionInterface()["core_cuda_training"]
    module = torch.nn.Module()
    module.is_causal, module.num_key_value_groups = True, 2
    q, k, v, grad = inputs(torch.bfloat16, 1, 4, 2, 700, 700)
    leaves, alone = leaves_of(q, k, v), leaves_of(q, k, v)
    out, _ = forward(module, *leaves, None, scaling=128**-0.5)
    out.transpose(1, 2).backward(grad)
    assert len(densities) == 1
    core.xattention(*alone, stride=16, dense_up_to=0).backward(grad)
    for x, y in zip(leaves, alone, strict=True):
        assert torch.equal(x.grad, y.grad)


def test_training_lowers_the_loss():
    q, k, v, _ = inputs(torch.bfloat16, n=512, m=512)
    target = torch.randn_like(q)
    leaves = [x.float().requires_grad_() for x in (q, k, v)]
    optimiser = torch.optim.Adam(leaves, 0.05)
    losses = []
    for _ in range(15):
        optimiser.zero_grad()
        out = core.xattention(*(x.to(torch.bfloat16) for x in leaves), dense_up_to=0)
        loss = (out.float() - target.float()).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_refusals():
    q, k, v, grad = inputs(torch.bfloat16)
    mask = torch.from_numpy(random_mask(q, k, 128, 0.5)).cuda()
    out, lse = core.block_sparse_attention(q, k, v, mask, return_lse=True)
    rest = [torch.empty_like(x) for x in (q, k, v)]
    with pytest.raises(TypeError, match="'grad_out' must be bfloat16"):
        _C.block_sparse_attention_backward(q, k, v, mask, 128, 0.1, True, out, lse, grad.float(), None, *rest)
    with pytest.raises(ValueError, match="'block'"):
        _C.block_sparse_attention_backward(q, k, v, mask, 100, 0.1, True, out, lse, grad, None, *rest)
