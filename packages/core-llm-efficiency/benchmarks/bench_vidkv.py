"""Packed decoding against SDPA and quanto's 2-bit cache, one thread each: pytest -s benchmarks/bench_vidkv.py."""

import os

os.environ["CORE_NUM_THREADS"] = "1"  # read when the first operator runs

import time
from collections.abc import Iterator

import core_llm_efficiency as core
import numpy as np
import pytest
from core_llm_efficiency.cases_vidkv import cache_like
from core_registry.timing import fastest, one_torch_thread

torch = pytest.importorskip("torch")
F = torch.nn.functional
HEADS, GROUPS, TOKENS, DIM = 32, 8, 4096, 128


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with one_torch_thread():
        yield


@pytest.fixture(scope="module")
def kv():  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    return tuple(torch.from_numpy(cache_like(rng, 1, GROUPS, TOKENS, DIM)) for _ in "kv")


def _cpu(call) -> float:  # type: ignore[no-untyped-def]
    return 1e3 * fastest(call, clock=time.process_time)


@pytest.mark.parametrize("group", [32, 64, 128])
def test_decode(kv, group: int) -> None:  # type: ignore[no-untyped-def]
    """One token over (1, 8, 4096, 128) with 32 query heads."""
    key, value = kv
    query = torch.randn(1, HEADS, DIM, generator=torch.Generator().manual_seed(0))
    keys, values = core.pack_keys(key, *core.select_channels(key), group), core.pack_values(value, group=group)
    nothing = key[:, :, :0]
    plain = core.unpack_keys(keys), core.unpack_values(values)

    def ours():  # type: ignore[no-untyped-def]
        return core.packed_attention(query, keys, values, nothing, nothing)

    def theirs():  # type: ignore[no-untyped-def]
        return F.scaled_dot_product_attention(query[:, :, None], *plain, enable_gqa=True)[:, :, 0]

    difference = float((ours() - theirs()).abs().max())
    assert difference < 1e-4
    first, second = _cpu(ours), _cpu(theirs)
    bits = 8 * (keys.nbytes + values.nbytes) / (2 * key.numel())
    print(
        f"\ngroup {group}, {bits:.2f} bits: ours {first:.2f} ms, SDPA float32 {second:.2f} ms, SDPA/ours "
        f"{second / first:.2f}, largest difference {difference:.1e}"
    )


def test_pack(kv) -> None:  # type: ignore[no-untyped-def]
    """Packing a prompt's cache, and quanto's."""
    key, value = kv

    def ours():  # type: ignore[no-untyped-def]
        return core.pack_keys(key, *core.select_channels(key)), core.pack_values(value)

    print(f"\npack: ours {_cpu(ours):.1f} ms")


def test_quanto(kv) -> None:  # type: ignore[no-untyped-def]
    """A decoding step of one layer with transformers' QuantizedCache: dequantise, concatenate, SDPA."""
    pytest.importorskip("optimum.quanto")
    transformers = pytest.importorskip("transformers")
    key, value = kv
    query = torch.randn(1, HEADS, DIM, generator=torch.Generator().manual_seed(0))
    config = transformers.LlamaConfig(num_hidden_layers=1, num_attention_heads=HEADS, num_key_value_heads=GROUPS)
    cache = transformers.QuantizedCache("quanto", config, nbits=2, residual_length=128)
    pack = _cpu(lambda: (cache.reset(), cache.update(key, value, 0)))
    one = key[:, :, :1]

    def theirs():  # type: ignore[no-untyped-def]
        layer = cache.layers[0]
        layer.keys = layer.values = torch.zeros(0)  # as before the step, so that no run requantises
        seen = cache.update(one, one, 0)
        return F.scaled_dot_product_attention(query[:, :, None], *seen, enable_gqa=True)

    keys, values = core.pack_keys(key, *core.select_channels(key)), core.pack_values(value)
    first, second = _cpu(lambda: core.packed_attention(query, keys, values, one, one)), _cpu(theirs)
    ratio = f"quanto/ours {second / first:.1f}; quanto packs in {pack:.1f} ms"
    print(f"\ndecode: ours {first:.2f} ms, quanto {second:.2f} ms, {ratio}")
