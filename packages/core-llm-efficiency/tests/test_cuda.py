"""The CUDA operators against the float64 reference, on fresh inputs at every run."""

import core_llm_efficiency as core
import numpy as np
import pytest
from core_llm_efficiency import _core_llm_efficiency as _C
from core_llm_efficiency.cases import structured_qkv
from core_llm_efficiency.reference import xattention as reference

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
DTYPES = [torch.bfloat16, torch.float16]


def inputs(dtype, batch=2, heads=4, groups=2, n=330, m=472, dim=128, layout="bhnd"):
    """Operands on the GPU and the same values in float64."""
    there = []
    for x in structured_qkv(np.random.default_rng(), batch, heads, groups, n, m, dim):
        y = torch.from_numpy(x).to("cuda", dtype)
        if layout == "bnhd":
            y = y.transpose(1, 2).contiguous().transpose(1, 2)
        elif layout == "odd":
            y = torch.nn.functional.pad(y, (3, 4))[..., 3:-4]
        there.append(y)
    return there, [x.double().cpu().numpy() for x in there]


def relative(a, b):
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30))


def random_mask(batch, heads, n, m, block, density):
    shape = batch, heads, -(-n // block), -(-m // block)
    return np.random.default_rng().random(shape) < density


def attention(q, k, v, mask, block, causal):
    """The raw operator on poisoned outputs: out and lse in float64."""
    out = torch.full((*q.shape[:3], v.shape[3]), torch.nan, dtype=q.dtype, device="cuda")
    lse = torch.full(q.shape[:3], torch.nan, device="cuda")
    there = torch.from_numpy(mask).cuda()
    _C.block_sparse_attention(q, k, v, there, block, q.shape[3] ** -0.5, causal, out, lse)
    return out.double().cpu().numpy(), lse.double().cpu().numpy()


def check_attention(q, k, v, exact, mask, block, causal):
    out, lse = attention(q, k, v, mask, block, causal)
    want, want_lse = reference.block_sparse_attention(*exact, mask, block, q.shape[3] ** -0.5, causal)
    assert relative(out, want) < (8e-3 if q.dtype == torch.bfloat16 else 1.5e-3)
    assert not out[np.isneginf(want_lse)].any()
    np.testing.assert_allclose(lse, want_lse, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("block", "dim"), [(64, 64), (128, 64), (64, 128), (128, 128), (16, 80), (48, 96), (128, 256)])
def test_attention(dtype, causal, block, dim):
    (q, k, v), exact = inputs(dtype, dim=dim)
    check_attention(q, k, v, exact, random_mask(2, 4, 330, 472, block, 0.5), block, causal)


@pytest.mark.parametrize("layout", ["bnhd", "odd"])
def test_attention_layouts(layout):
    (q, k, v), exact = inputs(torch.bfloat16, layout=layout)
    check_attention(q, k, v, exact, random_mask(2, 4, 330, 472, 128, 0.5), 128, True)


@pytest.mark.parametrize(
    ("n", "m"), [(1, 1), (1, 300), (128, 128), (127, 129), (256, 1024), (1000, 1000), (200, 1337), (2048, 2048)]
)
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_attention_lengths(n, m, density):
    (q, k, v), exact = inputs(torch.bfloat16, 1, 4, 1, n, m)
    check_attention(q, k, v, exact, random_mask(1, 4, n, m, 128, density), 128, True)


def test_attention_with_many_more_tiles_than_processors():
    """Every processor gets several query blocks, of very different length."""
    (q, k, v), exact = inputs(torch.bfloat16, 2, 8, 2, 4100, 4100)
    mask = random_mask(2, 8, 4100, 4100, 128, 0.2)
    mask[:, ::3] = False
    check_attention(q, k, v, exact, mask, 128, True)
    first, again = (attention(q, k, v, mask, 128, True)[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_value_of_another_width_and_huge_logits():
    (q, k, v), exact = inputs(torch.float16, dim=128)
    q, exact[0] = q * 16, exact[0] * 16
    v, exact[2] = v[..., :40].contiguous(), exact[2][..., :40]
    check_attention(q, k, v, exact, random_mask(2, 4, 330, 472, 128, 0.5), 128, True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("stride", "block"), [(16, 128), (8, 128), (4, 128), (1, 128), (16, 64), (8, 64), (4, 64), (3, 48), (16, 16)]
)
def test_estimate(dtype, causal, stride, block):
    (q, k, _), exact = inputs(dtype, n=330, m=472)
    scores, mask = core.xattn_estimate(q, k, stride=stride, block_size=block, is_causal=causal)
    want = reference.antidiagonal_scores(exact[0], exact[1], stride, block, 128**-0.5, causal)
    np.testing.assert_allclose(scores.cpu().numpy(), want, rtol=1e-3, atol=1e-4)
    on_cpu = core.select_blocks(scores.cpu(), 0.9, q_len=330, k_len=472, block_size=block, is_causal=causal)
    assert torch.equal(mask.cpu(), on_cpu)


@pytest.mark.parametrize(("n", "m"), [(2048, 2048), (512, 4096), (256, 2304), (16, 16), (4112, 4112)])
@pytest.mark.parametrize(("layout", "stride"), [("bhnd", 16), ("bnhd", 16), ("odd", 16), ("bhnd", 8)])
def test_estimate_of_longer_prompts(n, m, layout, stride):
    (q, k, _), exact = inputs(torch.bfloat16, 2, 4, 2, n, m, layout=layout)
    scores, _ = core.xattn_estimate(q, k, stride=stride)
    want = reference.antidiagonal_scores(exact[0], exact[1], stride, 128, 128**-0.5, True)
    np.testing.assert_allclose(scores.cpu().numpy(), want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("scale", [None, -0.1])
@pytest.mark.parametrize(
    ("n", "m", "stride", "block"),
    [(8192, 8192, 16, 128), (8208, 8208, 16, 128), (2048, 12304, 16, 128), (4104, 4104, 8, 128), (2048, 3072, 4, 128)],
)
def test_estimate_with_and_without_hidden_columns(dtype, causal, scale, n, m, stride, block):
    """Tiles of 128 x 256 of which nothing is hidden, something, or which the operands do not fill; a negative scale."""
    (q, k, _), exact = inputs(dtype, 1, 2, 1, n, m)
    scores, _ = core.xattn_estimate(q, k, stride=stride, block_size=block, is_causal=causal, scale=scale)
    want = reference.antidiagonal_scores(exact[0], exact[1], stride, block, scale or 128**-0.5, causal)
    np.testing.assert_allclose(scores.cpu().numpy(), want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("blocks", [1, 31, 129, 1000, 13000])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", ["skewed", "ties", "zero"])
def test_selection_equals_the_cpu(blocks, causal, kind):
    rng = np.random.default_rng()
    shape = 2, 3, min(blocks, 40), blocks
    drawn = {"skewed": rng.gamma(0.3, 1.0, shape), "ties": rng.integers(0, 4, shape), "zero": np.zeros(shape)}
    scores = torch.from_numpy(drawn[kind].astype(np.float32))
    thresholds = torch.tensor([0.0, 0.9, rng.uniform(0, 1)])
    lengths = {"q_len": shape[2] * 16, "k_len": blocks * 16, "block_size": 16, "is_causal": causal}
    mask = core.select_blocks(scores.cuda(), thresholds.cuda(), **lengths)
    assert torch.equal(mask.cpu(), core.select_blocks(scores, thresholds, **lengths))


def test_selection_keeps_all_of_an_invalid_row():
    scores = torch.ones(1, 2, 2, 2)
    scores[0, 0, 1, 0], scores[0, 1, 1, 1] = -1, torch.nan
    mask = core.select_blocks(scores.cuda(), 0.1, q_len=32, k_len=32, block_size=16)
    assert mask[0, :, 1].all()


def test_whole_chain_with_threshold_one_is_dense():
    (q, k, v), _ = inputs(torch.bfloat16, 1, 4, 2, 700, 700)
    out = core.xattention(q, k, v, threshold=1.0, stride=16, dense_up_to=0)
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    assert relative(out.double().cpu().numpy(), want.double().cpu().numpy()) < 8e-3


def test_another_stream():
    (q, k, v), _ = inputs(torch.bfloat16)
    want = core.xattention(q, k, v, dense_up_to=0)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        out = core.xattention(q, k, v, dense_up_to=0)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(out, want)


def test_empty_operands_and_refusals():
    (q, k, v), _ = inputs(torch.bfloat16)
    assert core.xattention(q[:, :, :0], k, v).shape == (2, 4, 0, 128)
    with pytest.raises(ValueError, match=r"'q'.*256 channels"):
        core.block_sparse_attention(*(torch.zeros(1, 1, 16, 264, device="cuda", dtype=q.dtype) for _ in range(3)),
                                    torch.ones(1, 1, 1, 1, dtype=torch.bool, device="cuda"), block_size=16)  # fmt: skip
    with pytest.raises(TypeError, match="'key' must be bfloat16"):
        core.xattention(q, k.float(), v)
    with pytest.raises(TypeError, match="must be bfloat16"):
        core.xattention(q.float(), k.float(), v.float())


def test_transformers_attend_sparsely_to_long_prompts_only():
    transformers = pytest.importorskip("transformers")
    from core_llm_efficiency.transformers import register_transformers

    register_transformers("core_cuda_test", dense_up_to=512, stride=16)
    forward = transformers.AttentionInterface()["core_cuda_test"]
    module = torch.nn.Module()
    module.is_causal, module.num_key_value_groups = True, 2
    (q, k, v), _ = inputs(torch.bfloat16, 1, 4, 2, 700, 700)
    with torch.no_grad():
        sparse, _ = forward(module, q, k, v, None, scaling=128**-0.5)
        short, _ = forward(module, q[:, :, :512], k[:, :, :512], v[:, :, :512], None, scaling=128**-0.5)
    assert torch.equal(sparse.transpose(1, 2), core.xattention(q, k, v, stride=16, dense_up_to=0))
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)[:, :, :512]
    assert relative(short.transpose(1, 2).double().cpu().numpy(), dense.double().cpu().numpy()) < 8e-3
