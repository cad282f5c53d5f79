"""The packed cache's coders and attention: spec 2.2's acceptance list."""

import core_llm_efficiency as core
import numpy as np
import pytest
from core_llm_efficiency.cases_vidkv import cache_like
from core_llm_efficiency.reference import vidkv as reference


def kv(seed=0, batch=1, heads=2, n=96, dim=64):
    rng = np.random.default_rng(seed)
    return cache_like(rng, batch, heads, n, dim), cache_like(rng, batch, heads, n, dim)


@pytest.mark.parametrize("dim", [64, 80, 96, 128])
@pytest.mark.parametrize("group", [32, 64])
def test_round_trips(dim, group):
    key, value = kv(n=128, dim=dim)
    channels, wide = core.select_channels(key)
    packed = core.pack_keys(key, channels, wide, group)
    once = core.unpack_keys(packed)
    planes, scales, zeros = reference.pack_keys(key, channels, group, wide)
    np.testing.assert_array_equal(packed.planes, planes)
    np.testing.assert_array_equal(packed.zeros, zeros)
    np.testing.assert_allclose(packed.scales, scales, rtol=1e-3)
    np.testing.assert_allclose(once, reference.unpack_keys(channels, group, planes, packed.scales, zeros), atol=1e-5)
    # signs and two-bit steps of what was unpacked are those that were packed
    again = core.pack_keys(once, channels, wide, group)
    np.testing.assert_array_equal(again.planes[..., 2 * wide :], packed.planes[..., 2 * wide :])
    np.testing.assert_allclose(core.unpack_keys(again), once, rtol=5e-3, atol=5e-2)
    for levels in (3, 4):
        stored = core.pack_values(value, levels, group)
        once = core.unpack_values(stored)
        np.testing.assert_allclose(once, reference.unpack_values(group, stored.codes, stored.scales, stored.zeros))
        again = core.pack_values(once, levels, group, gamma=0.1)
        np.testing.assert_array_equal(again.codes[..., : dim // 5], stored.codes[..., : dim // 5])


def test_half_the_spectrum_equals_the_whole():
    """The authors keep signs of both halves of a complex FFT; of real keys the second half adds nothing."""
    key, _ = kv(n=32)
    packed = core.pack_keys(key, np.tile(np.arange(64, dtype=np.int32), (1, 1)), 0)
    whole = np.fft.fft(key.astype(np.float64))
    full = np.zeros(whole.shape, complex)
    for part, unit in ((whole.real, 1), (whole.imag, 1j)):
        small = np.abs(part) < 1e-9
        scale = np.abs(part).mean(2, keepdims=True)
        full += unit * np.where(small, 0, np.where(part > 0, scale, -scale))
    np.testing.assert_allclose(core.unpack_keys(packed), np.fft.ifft(full).real, atol=6e-3)


def test_least_squares_scale():
    _, value = kv(n=32)
    codes = reference.unpack_values(32, *reference.pack_values(value, 32, 0.5, 3)[:2], None)
    signs = np.sign(codes)
    best = (signs * value).sum(2) / np.maximum(np.abs(signs).sum(2), 1)
    np.testing.assert_allclose(core.pack_values(value).scales[:, :, 0], best, rtol=1e-3)


@pytest.mark.parametrize(
    ("query_heads", "heads", "dim"), [(9, 3, 64), (4, 1, 80), (2, 2, 96), (10, 2, 128), (4, 2, 256)]
)
@pytest.mark.parametrize("protect", [0, 32])
def test_attention_equals_dequantise_then_attend(query_heads, heads, dim, protect):
    key, value = kv(batch=2, heads=heads, n=173, dim=dim)
    query = np.random.default_rng(1).standard_normal((2, query_heads, dim)).astype(np.float32)
    seen = np.arange(173) >= np.array([[0], [40]])
    keys = core.pack_keys(key[:, :, :160], *core.select_channels(key[:, :, :160]))
    four = core.pack_values(value[:, :, :protect], 4) if protect else None
    three = core.pack_values(value[:, :, protect:160])
    out = core.packed_attention(query, keys, three, key[:, :, 160:], value[:, :, 160:], protected=four, seen=seen)
    whole_key = np.concatenate([core.unpack_keys(keys), key[:, :, 160:]], 2)
    parts = [*([core.unpack_values(four)] if four else []), core.unpack_values(three), value[:, :, 160:]]
    want = reference.attention(query, whole_key, np.concatenate(parts, 2), seen, dim**-0.5)
    np.testing.assert_allclose(out, want, atol=2e-5)


def test_long_caches_are_split_and_merged():
    key, value = kv(heads=1, n=4640, dim=32)
    key[:, :, 3000] *= 6  # the largest logit is in the second of three parts
    query = 2 * np.random.default_rng(1).standard_normal((1, 2, 32)).astype(np.float32)
    keys, values = core.pack_keys(key, *core.select_channels(key)), core.pack_values(value)
    nothing = np.zeros((1, 1, 0, 32), np.float32)
    out = core.packed_attention(query, keys, values, nothing, nothing)
    want = reference.attention(query, core.unpack_keys(keys), core.unpack_values(values), None, 32**-0.5)
    np.testing.assert_allclose(out, want, rtol=1e-4, atol=2e-5)


def test_no_token_and_one():
    nothing = np.zeros((1, 2, 0, 64), np.float32)
    keys, values = core.pack_keys(nothing, np.arange(64, dtype=np.int32)[None], 32), core.pack_values(nothing)
    assert core.unpack_keys(keys).shape == core.unpack_values(values).shape == nothing.shape
    query = np.ones((1, 4, 64), np.float32)
    assert (core.packed_attention(query, keys, values, nothing, nothing) == np.zeros((1, 4, 64))).all()
    key, value = kv(n=1)
    out = core.packed_attention(query, keys, values, key, value)
    np.testing.assert_allclose(out, value[:, :, 0].repeat(2, 1), rtol=1e-6)


def test_bytes_are_those_of_the_format():
    key, value = kv(heads=8, n=4096, dim=128)
    keys, values = core.pack_keys(key, *core.select_channels(key)), core.pack_values(value)
    assert 8 * keys.nbytes / key.size == pytest.approx(2.25, abs=0.01)
    assert 8 * values.nbytes / value.size == pytest.approx(2.125, abs=0.01)
    for group, bits in ((64, 1.875), (128, 1.69)):
        packed = core.pack_keys(key, *core.select_channels(key), group)
        assert 8 * packed.nbytes / key.size == pytest.approx(bits, abs=0.01)


def test_channels_of_widest_range_come_first():
    key = np.ones((2, 2, 32, 8), np.float32)
    key[0, 1, 3, 5], key[1, 0, 7, 2] = 9, -9
    channels, wide = core.select_channels(key, 1.25)
    assert wide == 2
    assert channels[:, 0].tolist() == [5, 2]
    assert sorted(channels[0]) == list(range(8))


def test_torch_gives_torch():
    torch = pytest.importorskip("torch")
    key, value = (torch.from_numpy(x) for x in kv())
    keys, values = core.pack_keys(key, *core.select_channels(key)), core.pack_values(value)
    assert isinstance(keys.planes, torch.Tensor)
    np.testing.assert_array_equal(keys.planes, core.pack_keys(key.numpy(), *core.select_channels(key.numpy())).planes)
    out = core.packed_attention(torch.randn(1, 4, 64), keys, values, key[:, :, :5], value[:, :, :5])
    assert out.dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda k, v: core.pack_keys(k[:, :, :33], *core.select_channels(k)), "multiple of 32"),
        (lambda k, v: core.pack_keys(k, np.zeros((1, 64), np.int32), 3), "'channels' must be a permutation"),
        (lambda k, v: core.pack_keys(k, *core.select_channels(k), 48), "'group' must be 32, 64 or 128, got 48"),
        (lambda k, v: core.pack_keys(np.where(k > 2, np.nan, k), *core.select_channels(k)), "'x' must be finite"),
        (lambda k, v: core.pack_values(1e6 * v), "'x' must be finite and of magnitude at most 65504"),
        (lambda k, v: core.pack_values(v, 5), "'levels' must be 3 or 4, got 5"),
        (lambda k, v: core.pack_values(v, gamma=-1.0), "'gamma' must be in"),
        (lambda k, v: core.select_channels(k, 3), "'bits' must be in"),
        (lambda k, v: core.select_channels(k[:, :, :0]), "'key' must have a head and a token"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call(*kv())


def test_attention_refuses_what_does_not_fit():
    key, value = kv()
    keys, values = core.pack_keys(key, *core.select_channels(key)), core.pack_values(value)
    with pytest.raises(ValueError, match="multiple of the keys'"):
        core.packed_attention(np.zeros((1, 3, 64), np.float32), keys, values, key, value)
    with pytest.raises(ValueError, match=r"'codes3'|'planes'"):
        core.packed_attention(np.zeros((1, 2, 64), np.float32), keys, core.pack_values(value[:, :, :64]), key, value)
    with pytest.raises(ValueError, match="three levels"):
        core.packed_attention(np.zeros((1, 2, 64), np.float32), keys, core.pack_values(value, 4), key, value)


def test_nan_in_the_residual_shows():
    key, value = kv()
    keys, values = core.pack_keys(key, *core.select_channels(key)), core.pack_values(value)
    recent = value[:, :, :3].copy()
    recent[..., 0] = np.nan
    out = core.packed_attention(np.ones((1, 2, 64), np.float32), keys, values, key[:, :, :3], recent)
    assert np.isnan(out[..., 0]).all()
    assert not np.isnan(out[..., 1:]).any()
