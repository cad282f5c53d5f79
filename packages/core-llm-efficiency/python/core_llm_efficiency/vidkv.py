"""VidKV (arXiv 2503.16257, section 3): keys and values of 1.x bits an element, and attention that reads them packed.

Keys, at `bits` between 1 and 2: the share bits - 1 of the channels, those of widest range, is stored at two bits; of
the others' real Fourier transform along the channels only signs are kept. Values: three levels (log2 3 = 1.58 bits),
five to a byte, or two bits. Every channel has a float16 scale for each run of `group` tokens; `nbytes` counts them.

Arrays are float32 on the CPU and float32, float16 or bfloat16 on CUDA, keys (B, G, N, D) and values (B, G, N, E) as in
transformers' caches, numpy or torch; the result is of the same kind. On CUDA D and E are at most 256, and since values
are not read by the host, a run that holds one that is not finite or too large gets a NaN scale instead of an error.
Inputs that require grad are refused.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from core_registry.arrays import as_array, empty, is_torch

from . import _core_llm_efficiency as _C
from ._operands import operand_dtype

WORD = 32


def _check_rank(x: Any, name: str, rank: int) -> None:
    if len(x.shape) != rank:
        raise ValueError(f"argument '{name}' must have {rank} dimensions, got shape {tuple(x.shape)}")


def _check_group(group: int) -> None:
    if group not in (32, 64, 128):
        raise ValueError(f"argument 'group' must be 32, 64 or 128, got {group}")


@dataclasses.dataclass(frozen=True)
class PackedKeys:
    """N packed keys. channels (B, D) int32: a permutation, the C channels at two bits first; planes (B, G, N/32, D+C)
    int32: bit t of a word belongs to token t of 32; scales (B, G, N/group, D) and zeros (B, G, N/group, C) float16."""

    channels: Any
    planes: Any
    scales: Any
    zeros: Any
    group: int

    @property
    def length(self) -> int:
        """N, the number of tokens."""
        return int(self.planes.shape[2]) * WORD

    @property
    def nbytes(self) -> int:
        """All bytes held: bits, scales, zeros and the channels' order."""
        return int(self.channels.nbytes + self.planes.nbytes + self.scales.nbytes + self.zeros.nbytes)


@dataclasses.dataclass(frozen=True)
class PackedValues:
    """N packed values. codes (B, G, N, W) uint8: five digits to base 3 in a byte, W = ceil(E/5), or with zeros four to
    base 4, W = ceil(E/4); scales, zeros (B, G, N/group, E) float16."""

    codes: Any
    scales: Any
    zeros: Any | None
    group: int

    @property
    def length(self) -> int:
        """N, the number of tokens."""
        return int(self.codes.shape[2])

    @property
    def nbytes(self) -> int:
        """All bytes held: digits, scales and zeros."""
        return int(self.codes.nbytes + self.scales.nbytes + (0 if self.zeros is None else self.zeros.nbytes))


def select_channels(key: Any, bits: float = 1.5) -> tuple[Any, int]:
    """The order of channels (B, D) int32, widest range over heads and tokens first, and how many get two bits.

    key (B, G, N, D) with N >= 1; bits in [1, 2]: int(D (bits - 1)) channels. Equal ranges keep their order.
    """
    _check_rank(key, "key", 4)
    if not 1 <= bits <= 2:
        raise ValueError(f"argument 'bits' must be in [1, 2], got {bits}")
    if key.shape[1] * key.shape[2] == 0:
        raise ValueError(f"argument 'key' must have a head and a token, got shape {tuple(key.shape)}")
    wide = int(key.shape[3] * (bits - 1))
    if is_torch(key):
        order = (key.amin((1, 2)) - key.amax((1, 2))).argsort(stable=True, dim=-1)
        return order.int(), wide
    return (key.min((1, 2)) - key.max((1, 2))).argsort(-1, kind="stable").astype("int32"), wide


def pack_keys(key: Any, channels: Any, wide: int, group: int = 32) -> PackedKeys:
    """Packs key (B, G, N, D), N a multiple of group (32, 64 or 128), with channels and wide from `select_channels`.

    Raises ValueError on sizes that do not fit, rows of channels that are no permutation, and values that are not finite
    or above 65504 in magnitude.
    """
    _check_group(group)
    key, channels = as_array(key, operand_dtype(key, "key"), "key"), as_array(channels, "int32", "channels", key)
    _check_rank(key, "key", 4)
    batch, heads, n, d = key.shape
    if not 0 <= wide <= d:
        raise ValueError(f"argument 'wide' must be in [0, {d}], got {wide}")
    planes = empty((batch, heads, n // WORD, d + wide), "int32", key)
    scales = empty((batch, heads, n // group, d), "float16", key)
    zeros = empty((batch, heads, n // group, wide), "float16", key)
    _C.pack_keys(key, channels, group, planes, scales, zeros)
    return PackedKeys(channels, planes, scales, zeros, group)


def unpack_keys(packed: PackedKeys, dtype: str = "float32") -> Any:
    """The keys (B, G, N, D) that the packed form stands for; dtype: on CUDA also "float16" or "bfloat16"."""
    heads, d = packed.scales.shape[1], packed.scales.shape[3]
    out = empty((packed.scales.shape[0], heads, packed.length, d), dtype, packed.planes)
    _C.unpack_keys(packed.channels, packed.group, packed.planes, packed.scales, packed.zeros, out)
    return out


def pack_values(value: Any, levels: int = 3, group: int = 32, gamma: float = 0.5) -> PackedValues:
    """Packs value (B, G, N, E), N a multiple of group, at 3 or 4 levels.

    Three levels: 0 for magnitudes up to gamma (in [0, 4]) times the run's mean magnitude, else the sign; the scale is
    the mean magnitude of the rest, which is the least-squares one. 0.5, as in the authors' code, loses SmolLM2 less
    likelihood than 0.75, though that has the least error for normally distributed values. Raises ValueError as
    `pack_keys` does.
    """
    _check_group(group)
    if levels not in (3, 4):
        raise ValueError(f"argument 'levels' must be 3 or 4, got {levels}")
    value = as_array(value, operand_dtype(value, "value"), "value")
    _check_rank(value, "value", 4)
    batch, heads, n, e = value.shape
    codes = empty((batch, heads, n, -(-e // (5 if levels == 3 else 4))), "uint8", value)
    scales = empty((batch, heads, n // group, e), "float16", value)
    zeros = None if levels == 3 else empty(scales.shape, "float16", value)
    _C.pack_values(value, group, gamma, codes, scales, zeros)
    return PackedValues(codes, scales, zeros, group)


def unpack_values(packed: PackedValues, dtype: str = "float32") -> Any:
    """The values (B, G, N, E) that the packed form stands for; dtype: on CUDA also "float16" or "bfloat16"."""
    shape = (*packed.codes.shape[:3], packed.scales.shape[3])
    out = empty(shape, dtype, packed.codes)
    _C.unpack_values(packed.group, packed.codes, packed.scales, packed.zeros, out)
    return out


def packed_attention(
    query: Any,
    keys: PackedKeys,
    values: PackedValues,
    recent_key: Any,
    recent_value: Any,
    *,
    protected: PackedValues | None = None,
    seen: Any | None = None,
    scale: float | None = None,
) -> Any:
    """Attention of one query a head (B, H, D), read from the packed form; (B, H, E) of the query's dtype.

    The tokens are, in this order, keys' N, whose values are `protected` (at 4 levels) followed by `values` (at 3), and
    the R of recent_key (B, G, R, D) and recent_value (B, G, R, E) in the query's dtype: float32 on the CPU; float32,
    float16 or bfloat16 on CUDA, where D and E are at most 256. seen: bool (B, N + R), which tokens are
    read; H a multiple of G; scale: 1/sqrt(D) if None. A query that sees no token gives zeros.
    Raises ValueError on sizes that do not fit, TypeError on another dtype.
    """
    dtype = operand_dtype(query, "query")
    query = as_array(query, dtype, "query")
    recent_key, recent_value = (
        as_array(x, dtype, name, query) for x, name in ((recent_key, "recent_key"), (recent_value, "recent_value"))
    )
    _check_rank(query, "query", 3)
    if values.zeros is not None or (protected is not None and protected.zeros is None):
        raise ValueError("argument 'values' must be of three levels and 'protected' of four")
    if any(x is not None and x.group != keys.group for x in (values, protected)):
        raise ValueError(f"argument 'values' must be packed in groups of {keys.group}, as the keys are")
    e = values.scales.shape[3]
    if protected is None:
        shape = (*values.codes.shape[:2], 0)
        protected = PackedValues(
            empty((*shape, -(-e // 4)), "uint8", query),
            empty((*shape, e), "float16", query),
            empty((*shape, e), "float16", query),
            keys.group,
        )
    out = empty((*query.shape[:2], e), dtype, query)
    _C.packed_attention(
        query,
        keys.channels,
        keys.group,
        keys.planes,
        keys.scales,
        keys.zeros,
        protected.codes,
        protected.scales,
        protected.zeros,
        values.codes,
        values.scales,
        recent_key,
        recent_value,
        None if seen is None else as_array(seen, "bool", "seen", query),
        1.0 / math.sqrt(max(query.shape[2], 1)) if scale is None else float(scale),
        out,
    )
    return out
