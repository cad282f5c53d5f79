"""Attention over the packed cache on CUDA against dequantise-then-attend in float64, on fresh inputs at every run."""

import dataclasses

import core_llm_efficiency as core
import numpy as np
import pytest
from core_llm_efficiency.cases_vidkv import cache_like
from core_llm_efficiency.reference import vidkv as reference

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
BOUND = {torch.float32: 1e-4, torch.float16: 3e-3, torch.bfloat16: 6e-3}


def on_cuda(packed):
    arrays = {f.name: getattr(packed, f.name) for f in dataclasses.fields(packed)}
    arrays = {k: torch.from_numpy(v).cuda() for k, v in arrays.items() if isinstance(v, np.ndarray)}
    return dataclasses.replace(packed, **arrays)


def padded(packed, name):
    """The same, with an array whose rows are apart, so that the operator must take it element by element."""
    return dataclasses.replace(packed, **{name: torch.nn.functional.pad(getattr(packed, name), (1, 2))[..., 1:-2]})


def compare(
    dtype, batch=2, heads=8, groups=2, n=1024, recent=37, dim=128, e=128, group=32, bits=1.5, protect=0, seen=None,
    apart=(),
):  # fmt: skip
    """The largest error of a head, relative to its norm or to the mean norm of all heads, whichever is larger.

    apart: which of "query", "keys", "protected" and "values" do not lie in one piece.
    """
    rng = np.random.default_rng()
    key, value = cache_like(rng, batch, groups, n, dim), cache_like(rng, batch, groups, n, e)
    query = rng.standard_normal((batch, heads, dim)).astype(np.float32)
    keys = core.pack_keys(key, *core.select_channels(key, bits), group)
    four = core.pack_values(value[:, :, :protect], 4, group) if protect else None
    three = core.pack_values(value[:, :, protect:], 3, group)
    recents = (cache_like(rng, batch, groups, recent, width) for width in (dim, e))
    like = [torch.from_numpy(x).cuda().to(dtype) for x in (query, *recents)]
    q, k, v = (x.double().cpu().numpy() for x in like)
    mask = None if seen is None else rng.random((batch, n + recent)) < seen
    there = None if mask is None else torch.from_numpy(mask).cuda()
    packed = {"keys": on_cuda(keys), "protected": None if four is None else on_cuda(four), "values": on_cuda(three)}
    packed |= {x: padded(packed[x], "planes" if x == "keys" else "codes") for x in apart if x != "query"}
    if "query" in apart:
        like[0] = like[0].mT.contiguous().mT
    options = {"protected": packed["protected"], "seen": there}
    operands = like[0], packed["keys"], packed["values"], *like[1:]
    out = core.packed_attention(*operands, **options)
    assert out.dtype == dtype
    whole_k = np.concatenate([core.unpack_keys(keys), k], 2)
    parts = [*([core.unpack_values(four)] if four else []), core.unpack_values(three), v]
    want = reference.attention(q, whole_k, np.concatenate(parts, 2), mask, dim**-0.5)
    norm = np.linalg.norm(want, axis=-1)
    size = np.maximum(np.maximum(norm, norm.mean()), 1e-30)
    error = np.linalg.norm(out.double().cpu().numpy() - want, axis=-1) / size
    again = core.packed_attention(*operands, **options)
    assert torch.equal(out, again)
    return float(error.max())


@pytest.mark.parametrize("dtype", list(BOUND))
@pytest.mark.parametrize("group", [32, 64, 128])
def test_usual_shape(dtype, group):
    assert compare(dtype, group=group) < BOUND[dtype]


@pytest.mark.parametrize("dtype", list(BOUND))
@pytest.mark.parametrize(("heads", "groups"), [(9, 3), (2, 2), (10, 2), (16, 2), (7, 1)])
def test_shares_of_heads(dtype, heads, groups):
    assert compare(dtype, heads=heads, groups=groups, n=256) < BOUND[dtype]


@pytest.mark.parametrize("dtype", list(BOUND))
@pytest.mark.parametrize(("dim", "e"), [(64, 64), (80, 80), (96, 96), (128, 64), (22, 23), (256, 256), (1, 1)])
@pytest.mark.parametrize("protect", [0, 64])
def test_dimensions(dtype, dim, e, protect):
    assert compare(dtype, dim=dim, e=e, n=320, protect=protect) < BOUND[dtype]


@pytest.mark.parametrize("bits", [1.0, 1.25, 2.0])
def test_bits(bits):
    assert compare(torch.float16, bits=bits) < BOUND[torch.float16]


@pytest.mark.parametrize("dtype", list(BOUND))
@pytest.mark.parametrize(("n", "recent", "protect"), [(32, 0, 0), (32, 1, 32), (64, 200, 32), (9024, 129, 512)])
@pytest.mark.parametrize("seen", [None, 0.7])
def test_lengths_and_masks(dtype, n, recent, protect, seen):
    assert compare(dtype, n=n, recent=recent, protect=protect, seen=seen) < BOUND[dtype]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize(("dim", "group"), [(128, 32), (128, 128), (64, 32), (64, 64)])
@pytest.mark.parametrize(("length", "recents"), [(157, True), (1125, True), (1152, False)])
@pytest.mark.parametrize("protect", [0, 128])
def test_shapes_with_kernels_of_their_own(dtype, batch, dim, group, length, recents, protect):
    """With what does not fill a group among the recent tokens, and with none of these."""
    n = length // group * group
    sizes = {"dim": dim, "e": dim, "n": n, "recent": length - n if recents else 0, "protect": min(protect, n)}
    assert compare(dtype, batch=batch, heads=12, groups=2, group=group, seen=0.8, **sizes) < BOUND[dtype]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dim", [128, 64])
@pytest.mark.parametrize("recent", [0, 70])
@pytest.mark.parametrize("apart", [("query",), ("keys",), ("values",), ("protected",), ("values", "protected")])
def test_either_kernel_for_the_same_operands(dtype, dim, recent, apart):
    """Keys or values that do not lie in one piece take the kernel for any shape, each kind of values by itself."""
    sizes = {"dim": dim, "e": dim, "n": 1056, "recent": recent, "protect": 256}
    assert compare(dtype, apart=apart, **sizes) < BOUND[dtype]


@pytest.mark.parametrize("dtype", list(BOUND))
def test_long(dtype):
    assert compare(dtype, batch=1, heads=8, groups=2, n=65536, recent=100) < BOUND[dtype]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("batch", "heads", "groups"), [(1, 32, 8), (2, 16, 8), (4, 8, 8)])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize(("n", "recent", "seen"), [(32, 0, None), (4096, 40, 0.7), (9024, 200, None)])
def test_many_heads(dtype, batch, heads, groups, dim, n, recent, seen):
    found = compare(dtype, batch=batch, heads=heads, groups=groups, dim=dim, e=dim, n=n, recent=recent, seen=seen)
    assert found < BOUND[dtype]


@pytest.mark.parametrize("dtype", list(BOUND))
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("protect", [0, 4992])
def test_more_tokens_than_a_thread_block_takes_at_once(dtype, dim, protect):
    """So many query heads share a key head that nobody shares the tokens."""
    rng = np.random.default_rng()
    key, value = cache_like(rng, 1, 1, 9984, dim), cache_like(rng, 1, 1, 9984, dim)
    keys, three = core.pack_keys(key, *core.select_channels(key)), core.pack_values(value[:, :, protect:])
    four = core.pack_values(value[:, :, :protect], 4) if protect else None
    query = torch.randn(1, 1600, dim, device="cuda").to(dtype)
    nothing = torch.zeros(1, 1, 0, dim, device="cuda", dtype=dtype)
    options = {"protected": on_cuda(four)} if protect else {}
    out = core.packed_attention(query, on_cuda(keys), on_cuda(three), nothing, nothing, **options)
    values = np.concatenate([core.unpack_values(x) for x in ([four] if protect else []) + [three]], 2)
    k, v = (torch.from_numpy(x[0, 0]).cuda().double() for x in (core.unpack_keys(keys), values))
    want = (query[0].double() @ k.T * dim**-0.5).softmax(-1) @ v
    assert ((out[0].double() - want).norm(dim=-1) / want.norm(dim=-1)).max() < BOUND[dtype]


@pytest.mark.parametrize("dtype", list(BOUND))
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("dim", [128, 80, 23, 256])
def test_coders_equal_those_of_the_cpu(dtype, group, dim):
    x = torch.from_numpy(cache_like(np.random.default_rng(), 2, 3, 256, dim)).to(dtype)
    channels, wide = core.select_channels(x.float())
    ours = core.pack_keys(x.cuda(), channels.cuda(), wide, group)
    want = core.pack_keys(x.float(), channels, wide, group)
    differ = ours.planes.cpu() != want.planes
    assert differ.float().mean() < 1e-4  # a coefficient near zero may fall on either side
    assert torch.equal(ours.zeros.cpu(), want.zeros)
    torch.testing.assert_close(ours.scales.cpu(), want.scales, rtol=2e-3, atol=1e-6)
    there = dataclasses.replace(want, **{k: getattr(want, k).cuda() for k in ("channels", "planes", "scales", "zeros")})
    torch.testing.assert_close(core.unpack_keys(there).cpu(), core.unpack_keys(want), rtol=1e-4, atol=1e-5)
    name = str(dtype).removeprefix("torch.")
    exact = core.unpack_keys(want).to(dtype)
    torch.testing.assert_close(core.unpack_keys(there, name).cpu(), exact, rtol=1e-2, atol=1e-4)
    for levels in (3, 4):
        ours, want = core.pack_values(x.cuda(), levels, group), core.pack_values(x.float(), levels, group)
        assert torch.equal(ours.codes.cpu(), want.codes)
        torch.testing.assert_close(ours.scales.cpu(), want.scales, rtol=2e-3, atol=1e-6)
        unpacked = core.unpack_values(ours, name)
        assert unpacked.dtype == dtype
        torch.testing.assert_close(unpacked.cpu(), core.unpack_values(want).to(dtype), rtol=1e-2, atol=1e-3)


def test_values_out_of_range_show():
    x = torch.randn(1, 1, 64, 128, device="cuda")
    x[0, 0, 3, 5], x[0, 0, 40, 7] = torch.nan, 1e6
    values = core.unpack_values(core.pack_values(x))
    assert values[0, 0, :32, 5].isnan().all()
    assert values[0, 0, 32:, 7].isnan().all()
    assert int(values.isnan().sum()) == 64
    keys = core.unpack_keys(core.pack_keys(x, torch.arange(128, device="cuda").int()[None], 64))
    assert keys[0, 0, :32, 5].isnan().all()


def test_nothing_seen_and_nan():
    rng = np.random.default_rng()
    key = cache_like(rng, 1, 2, 64, 128)
    keys, values = core.pack_keys(key, *core.select_channels(key)), core.pack_values(key)
    query = torch.randn(1, 4, 128, device="cuda", dtype=torch.float16)
    recent = torch.randn(1, 2, 3, 128, device="cuda", dtype=torch.float16)
    nothing = torch.zeros(1, 67, dtype=torch.bool, device="cuda")
    packed = on_cuda(keys), on_cuda(values)
    assert not core.packed_attention(query, *packed, recent, recent, seen=nothing).any()
    query[0, 1, 5] = torch.nan
    out = core.packed_attention(query, *packed, recent, recent)
    assert out[0, 1].isnan().all()
    assert not out[0, [0, 2, 3]].isnan().any()


def test_strided_operands_and_huge_logits():
    rng = np.random.default_rng()
    key = cache_like(rng, 1, 2, 256, 128)
    keys, values = on_cuda(core.pack_keys(key, *core.select_channels(key))), on_cuda(core.pack_values(key))
    query = 30 * torch.randn(1, 8, 128, device="cuda")
    nothing = torch.zeros(1, 2, 0, 128, device="cuda")
    want = core.packed_attention(query, keys, values, nothing, nothing)
    scales = keys.scales.transpose(1, 2).contiguous().transpose(1, 2)
    odd = dataclasses.replace(padded(keys, "planes"), scales=scales)
    assert torch.equal(core.packed_attention(query, odd, padded(values, "codes"), nothing, nothing), want)
    dense = (x.double().cpu().numpy() for x in (core.unpack_keys(keys), core.unpack_values(values)))
    exact = reference.attention(query.double().cpu().numpy(), *dense, None, 128**-0.5)
    np.testing.assert_allclose(want.cpu().numpy(), exact, rtol=1e-3, atol=1e-3)


def test_refusals():
    rng = np.random.default_rng()
    key = cache_like(rng, 1, 2, 64, 128)
    keys, values = on_cuda(core.pack_keys(key, *core.select_channels(key))), on_cuda(core.pack_values(key))
    recent = torch.zeros(1, 2, 1, 128, device="cuda")
    with pytest.raises(ValueError, match="multiple of the keys'"):
        core.packed_attention(torch.zeros(1, 3, 128, device="cuda"), keys, values, recent, recent)
    with pytest.raises(TypeError, match="'recent_key' must be float16"):
        core.packed_attention(torch.zeros(1, 2, 128, device="cuda").half(), keys, values, recent, recent)
