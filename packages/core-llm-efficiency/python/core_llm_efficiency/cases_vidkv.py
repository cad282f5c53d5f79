"""Case table rows of the packed key/value cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from core_registry.testing import Case
from numpy.typing import NDArray

from .reference import vidkv as reference

Args = dict[str, Any]


def cache_like(rng: np.random.Generator, B: int, G: int, N: int, D: int) -> NDArray[np.float32]:
    """Keys with a few channels of wide range and offset, as models have."""
    spread = 1 + 3 * rng.random((B, G, 1, D)) ** 4
    return (spread * (rng.standard_normal((B, G, N, D)) + rng.standard_normal((B, G, 1, D)))).astype(np.float32)


def _channels(rng: np.random.Generator, B: int, D: int) -> NDArray[np.int32]:
    return rng.permuted(np.tile(np.arange(D, dtype=np.int32), (B, 1)), axis=1)


def _half(rng: np.random.Generator, *shape: int) -> NDArray[np.float16]:
    return rng.uniform(0.1, 1, shape).astype(np.float16)


def _key_arrays(rng: np.random.Generator, B: int, G: int, N: int, D: int, group: int) -> tuple[Any, Any, Any]:
    planes = rng.integers(-(2**31), 2**31, (B, G, N // 32, D + D // 2)).astype(np.int32)
    return planes, _half(rng, B, G, N // group, D), _half(rng, B, G, N // group, D // 2)


def _value_arrays(rng: np.random.Generator, B: int, G: int, N: int, E: int, group: int, per: int) -> tuple[Any, Any]:
    codes = rng.integers(0, 256 if per == 4 else 243, (B, G, N, -(-E // per))).astype(np.uint8)
    return codes, _half(rng, B, G, N // group, E)


def make_pack_keys(rng: np.random.Generator, B: int, G: int, S: int, D: int, group: int) -> Args:
    """Keys, half of whose channels are at two bits."""
    x, channels = cache_like(rng, B, G, S * group, D), _channels(rng, B, D)
    planes, scales, zeros = _key_arrays(rng, B, G, S * group, D, group)
    return {"x": x, "channels": channels, "group": group, "planes": planes, "scales": scales, "zeros": zeros}


def make_unpack_keys(rng: np.random.Generator, B: int, G: int, S: int, D: int, group: int) -> Args:
    """Random bits."""
    planes, scales, zeros = _key_arrays(rng, B, G, S * group, D, group)
    out = np.zeros((B, G, S * group, D), np.float32)
    channels = _channels(rng, B, D)
    return {"channels": channels, "group": group, "planes": planes, "scales": scales, "zeros": zeros, "out": out}


def make_pack_values(rng: np.random.Generator, B: int, G: int, S: int, E: int, group: int) -> Args:
    """Values at three levels."""
    x = cache_like(rng, B, G, S * group, E)
    codes, scales = _value_arrays(rng, B, G, S * group, E, group, 5)
    return {"x": x, "group": group, "gamma": 0.75, "codes": codes, "scales": scales, "zeros": None}


def make_unpack_values(rng: np.random.Generator, B: int, G: int, S: int, E: int, group: int) -> Args:
    """Random values at two bits."""
    codes, scales = _value_arrays(rng, B, G, S * group, E, group, 4)
    out = np.zeros((B, G, S * group, E), np.float32)
    return {"group": group, "codes": codes, "scales": scales, "zeros": _half(rng, *scales.shape), "out": out}


def make_packed_attention(
    rng: np.random.Generator, B: int, H: int, G: int, S2: int, S3: int, R: int, D: int, E: int, group: int
) -> Args:
    """A cache whose first S2 runs of values have two bits, the next S3 three levels, and R recent tokens."""
    n = (S2 + S3) * group
    planes, scales, zeros = _key_arrays(rng, B, G, n, D, group)
    codes2, scales2 = _value_arrays(rng, B, G, S2 * group, E, group, 4)
    codes3, scales3 = _value_arrays(rng, B, G, S3 * group, E, group, 5)
    return {
        "q": rng.standard_normal((B, H, D)).astype(np.float32),
        "channels": _channels(rng, B, D),
        "group": group,
        "planes": planes,
        "scales": scales,
        "zeros": zeros,
        "codes2": codes2,
        "scales2": scales2,
        "zeros2": _half(rng, *scales2.shape),
        "codes3": codes3,
        "scales3": scales3,
        "recent_k": cache_like(rng, B, G, R, D),
        "recent_v": cache_like(rng, B, G, R, E),
        "seen": rng.random((B, n + R)) < 0.8,
        "scale": max(D, 1) ** -0.5,
        "out": np.zeros((B, H, E), np.float32),
    }


def reference_pack_keys(args: Args) -> Args:
    """The codes by numpy's FFT in float64."""
    x, channels, group, _, _, zeros = args.values()
    return dict(
        zip(("planes", "scales", "zeros"), reference.pack_keys(x, channels, group, zeros.shape[3]), strict=True)
    )


def reference_unpack_keys(args: Args) -> Args:
    """The keys in float64."""
    return {"out": reference.unpack_keys(*list(args.values())[:5])}


def reference_pack_values(args: Args) -> Args:
    """The codes in float64."""
    codes, scales, zeros = reference.pack_values(
        args["x"], args["group"], args["gamma"], 3 if args["zeros"] is None else 4
    )
    return {"codes": codes, "scales": scales} | ({} if zeros is None else {"zeros": zeros})


def reference_unpack_values(args: Args) -> Args:
    """The values in float64."""
    return {"out": reference.unpack_values(*list(args.values())[:4])}


def dequantised(args: Args) -> tuple[Any, Any]:
    """All keys and values that `packed_attention` reads, in float64."""
    keys = reference.unpack_keys(args["channels"], args["group"], args["planes"], args["scales"], args["zeros"])
    two = reference.unpack_values(args["group"], args["codes2"], args["scales2"], args["zeros2"])
    three = reference.unpack_values(args["group"], args["codes3"], args["scales3"], None)
    return np.concatenate([keys, args["recent_k"]], 2), np.concatenate([two, three, args["recent_v"]], 2)


def reference_packed_attention(args: Args) -> Args:
    """Dequantise, then attend, in float64."""
    return {"out": reference.attention(args["q"], *dequantised(args), args["seen"], args["scale"])}


def peer_packed_attention(args: Args) -> Callable[[], Args]:
    """torch's SDPA over the same keys and values in float32."""
    import torch
    import torch.nn.functional as F

    q = torch.from_numpy(args["q"])[:, :, None]
    k, v = (torch.from_numpy(x.astype(np.float32)) for x in dequantised(args))
    seen = None if args["seen"] is None else torch.from_numpy(args["seen"])[:, None, None]
    return lambda: {
        "out": F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=args["scale"], enable_gqa=True)[
            :, :, 0
        ].numpy()
    }


def _bytes(args: Args) -> float:
    return float(sum(x.nbytes for x in args.values() if isinstance(x, np.ndarray)))


def _work(flops_each: Callable[[Args], float]) -> Callable[[Args], tuple[float, float]]:
    return lambda args: (_bytes(args), flops_each(args))


_keys = {"B": 2, "G": 2, "S": 2, "D": 22, "group": 32}
_values = {"B": 2, "G": 2, "S": 2, "E": 23, "group": 32}
_big = {"B": 1, "G": 8, "S": 128, "group": 32}

cases: list[Case] = [
    Case(
        op="core_llm_efficiency.pack_keys",
        sizes={"tiny": _keys, "bench": {**_big, "D": 128}},
        make=make_pack_keys,
        reference=reference_pack_keys,
        tolerance={"planes": (0, 0), "scales": (2e-3, 1e-6), "zeros": (0, 0)},
        devices=("cpu", "cuda"),
        work=_work(lambda a: 2.0 * a["x"].size * (a["x"].shape[3] - a["zeros"].shape[3])),
        vary={"S": (0, 3), "D": (1, 40)},
    ),
    Case(
        op="core_llm_efficiency.unpack_keys",
        sizes={"tiny": _keys, "bench": {**_big, "D": 128}},
        make=make_unpack_keys,
        reference=reference_unpack_keys,
        tolerance={"out": (1e-4, 1e-5)},
        devices=("cpu", "cuda"),
        work=_work(lambda a: 2.0 * a["out"].size * (a["out"].shape[3] - a["zeros"].shape[3])),
        vary={"S": (0, 3), "D": (1, 40)},
    ),
    Case(
        op="core_llm_efficiency.pack_values",
        sizes={"tiny": _values, "bench": {**_big, "E": 128}},
        make=make_pack_values,
        reference=reference_pack_values,
        tolerance={"codes": (0, 0), "scales": (2e-3, 1e-6)},
        devices=("cpu", "cuda"),
        work=_work(lambda a: 4.0 * a["x"].size),
        vary={"S": (0, 3), "E": (1, 40)},
    ),
    Case(
        op="core_llm_efficiency.unpack_values",
        sizes={"tiny": _values, "bench": {**_big, "E": 128}},
        make=make_unpack_values,
        reference=reference_unpack_values,
        tolerance={"out": (1e-5, 1e-6)},
        devices=("cpu", "cuda"),
        work=_work(lambda a: 2.0 * a["out"].size),
        vary={"S": (0, 3), "E": (1, 40)},
    ),
    Case(
        op="core_llm_efficiency.packed_attention",
        sizes={
            "tiny": {"B": 2, "H": 6, "G": 2, "S2": 1, "S3": 2, "R": 19, "D": 22, "E": 23, "group": 32},
            "bench": {"B": 1, "H": 32, "G": 8, "S2": 0, "S3": 127, "R": 32, "D": 128, "E": 128, "group": 32},
        },
        make=make_packed_attention,
        reference=reference_packed_attention,
        tolerance={"out": (1e-4, 2e-5)},
        devices=("cpu", "cuda"),
        peer=("torch SDPA, float32", peer_packed_attention),
        work=_work(lambda a: 2.0 * a["q"].shape[1] * a["seen"].size * (a["q"].shape[2] + a["out"].shape[2])),
        vary={"S2": (0, 2), "S3": (0, 3), "R": (0, 40), "D": (1, 40), "E": (1, 40)},
    ),
]
