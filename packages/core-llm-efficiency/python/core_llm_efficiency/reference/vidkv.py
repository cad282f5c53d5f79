"""VidKV's coders and attention in float64, with numpy's FFT; arrays laid out as in core_llm_efficiency/vidkv.hpp."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
WORD = 32


def fourier(x: Array) -> Array:
    """The orthonormal real Fourier coefficients of the last axis: constant, cos 1, sin 1, cos 2, ..."""
    n = x.shape[-1]
    out = np.zeros(x.shape)
    if n:
        half = np.fft.rfft(x, norm="ortho")
        weight = np.where((np.arange(n // 2 + 1) * 2) % n == 0, 1.0, np.sqrt(2.0))
        out[..., 0] = half[..., 0].real
        out[..., 1::2] = (half.real * weight)[..., 1:]
        out[..., 2::2] = -(half.imag * weight)[..., 1 : (n + 1) // 2]
    return out


def inverse_fourier(x: Array) -> Array:
    """The signal whose `fourier` is x."""
    n = x.shape[-1]
    if n == 0:
        return x
    weight = np.where((np.arange(n // 2 + 1) * 2) % n == 0, 1.0, np.sqrt(2.0))
    half = np.zeros((*x.shape[:-1], n // 2 + 1), complex)
    half[..., 0] = x[..., 0]
    half[..., 1:] = x[..., 1::2]
    half[..., 1 : (n + 1) // 2] -= 1j * x[..., 2::2]
    return np.fft.irfft(half / weight, n, norm="ortho")


def _runs(x: Array, group: int) -> Array:
    return x.reshape(*x.shape[:2], x.shape[2] // group, group, x.shape[3]).astype(np.float64)


def _half(x: Array) -> Array:
    return x.astype(np.float32).astype(np.float16)


def _two_bits(runs: Array) -> tuple[Array, Array, Array]:
    low, high = runs.min(3), runs.max(3)
    scales, zeros = _half(np.minimum((high - low) / 3, 65504)), _half(low)
    scale, zero = (x.astype(np.float64)[:, :, :, None] for x in (scales, zeros))
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.where(scale > 0, (runs - zero) / scale, 0)
    return np.rint(np.clip(steps, 0, 3)).astype(np.int64), scales, zeros


def _spread(x: Array, group: int) -> Array:
    return np.repeat(x.astype(np.float64), group, 2)


def _columns(channels: Array) -> Array:
    return channels[:, None, None, :].astype(np.int64)


def pack_keys(x: Array, channels: Array, group: int, wide: int) -> tuple[Array, Array, Array]:
    """Planes, scales and zeros of keys x[B,G,N,D], the first `wide` of each row of channels at two bits."""
    ordered = np.take_along_axis(x, _columns(channels), 3)
    batch, groups, n, d = x.shape
    codes, scale2, zeros = _two_bits(_runs(ordered[..., :wide], group))
    spectrum = fourier(ordered[..., wide:].astype(np.float64))
    limit = -1e-6 * np.abs(ordered[..., wide:].astype(np.float64)).sum(-1, keepdims=True)
    scale1 = _half(np.abs(_runs(spectrum, group)).mean(3))
    codes = codes.reshape(batch, groups, n, wide)
    bits = np.concatenate([codes & 1, codes >> 1, spectrum >= limit], -1).astype(np.uint64)
    words = bits.reshape(batch, groups, n // WORD, WORD, d + wide) << np.arange(WORD, dtype=np.uint64)[:, None]
    return words.sum(3).astype(np.uint32).view(np.int32), np.concatenate([scale2, scale1], -1), zeros


def unpack_keys(channels: Array, group: int, planes: Array, scales: Array, zeros: Array) -> Array:
    """The keys [B,G,N,D] that were packed."""
    wide = zeros.shape[3]
    bits = planes[:, :, :, None].view(np.uint32) >> np.arange(WORD, dtype=np.uint32)[:, None] & 1
    bits = bits.reshape(*planes.shape[:2], planes.shape[2] * WORD, planes.shape[3]).astype(np.float64)
    scale = _spread(scales, group)
    two = _spread(zeros, group) + scale[..., :wide] * (bits[..., :wide] + 2 * bits[..., wide : 2 * wide])
    one = inverse_fourier((2 * bits[..., 2 * wide :] - 1) * scale[..., wide:])
    out = np.empty(scale.shape)
    np.put_along_axis(out, np.broadcast_to(_columns(channels), out.shape), np.concatenate([two, one], -1), 3)
    return out


def _to_bytes(digits: Array, base: int, per: int) -> Array:
    width = -(-digits.shape[-1] // per)
    padded = np.zeros((*digits.shape[:-1], width * per), np.int64)
    padded[..., : digits.shape[-1]] = digits
    places = padded.reshape(*digits.shape[:-1], per, width) * base ** np.arange(per)[:, None]
    return places.sum(-2).astype(np.uint8)


def _from_bytes(codes: Array, base: int, per: int, channels: int) -> Array:
    digits = codes[..., None, :].astype(np.int64) // base ** np.arange(per)[:, None] % base
    return digits.reshape(*codes.shape[:-1], per * codes.shape[-1])[..., :channels]


def pack_values(x: Array, group: int, gamma: float, levels: int) -> tuple[Array, Array, Array | None]:
    """Codes, scales and (at levels 4) zeros of values x[B,G,N,E]; levels 3 is ternary."""
    runs = _runs(x, group)
    if levels == 4:
        digits, scales, zeros = _two_bits(runs)
        return _to_bytes(digits.reshape(x.shape), 4, 4), scales, zeros
    size = np.abs(runs)
    keep = size > gamma * size.mean(3, keepdims=True)
    scales = _half((size * keep).sum(3) / np.maximum(keep.sum(3), 1))
    digits = (np.sign(runs) * keep).astype(np.int64) + 1
    return _to_bytes(digits.reshape(x.shape), 3, 5), scales, None


def unpack_values(group: int, codes: Array, scales: Array, zeros: Array | None) -> Array:
    """The values [B,G,N,E] that were packed."""
    if zeros is not None:
        return _spread(zeros, group) + _spread(scales, group) * _from_bytes(codes, 4, 4, scales.shape[3])
    return _spread(scales, group) * (_from_bytes(codes, 3, 5, scales.shape[3]) - 1)


def attention(q: Array, k: Array, v: Array, seen: Array | None, scale: float) -> Array:
    """Attention of one query a head, q[B,H,D] over k[B,G,M,D] and v[B,G,M,E]; zeros where nothing is seen."""
    share = q.shape[1] // k.shape[1]
    k, v = (np.repeat(x, share, 1).astype(np.float64) for x in (k, v))
    logits = scale * np.einsum("bhd,bhmd->bhm", q.astype(np.float64), k)
    if seen is not None:
        logits = np.where(seen[:, None], logits, -np.inf)
    top = logits.max(-1, keepdims=True, initial=-np.inf)
    weights = np.exp(logits - np.where(np.isfinite(top), top, 0))
    total = weights.sum(-1, keepdims=True)
    return np.einsum("bhm,bhme->bhe", weights / np.where(total > 0, total, 1), v)
