"""The packed cache in a random Llama model, against a cache that holds what the coders' reference gives, unpacked."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from core_llm_efficiency import transformers_vidkv as core_vidkv  # noqa: E402
from core_llm_efficiency.reference import vidkv as reference  # noqa: E402
from core_llm_efficiency.transformers_vidkv import (  # noqa: E402
    VidKVCache,
    VidKVLayer,
    register_vidkv,
    semantic_tokens,
)
from transformers.cache_utils import Cache, DynamicLayer  # noqa: E402

RECENT, GAMMA = 16, 0.5


CUDA = pytest.param(
    "cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
)


@pytest.fixture(scope="module", params=["cpu", CUDA])
def model(request):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, head_dim=24, initializer_range=0.3, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    register_vidkv()
    return transformers.LlamaForCausalLM(config).eval().to(request.param)


class Oracle(DynamicLayer):
    """Plain tensors, whose oldest runs are replaced by what packing keeps of them."""

    def __init__(self, protect=None):
        super().__init__()
        self.done, self.channels, self.protect = 0, None, protect

    def update(self, key, value, *rest, **named):
        super().update(key, value)
        seen = self.keys.clone(), self.values.clone()
        count = (self.keys.shape[2] - self.done - RECENT) // 32 * 32
        device = self.keys.device
        if count > 0:
            part = slice(self.done, self.done + count)
            four = np.array([], int) if self.protect is None or self.done else self.protect.numpy()
            three = np.setdiff1d(np.arange(count), four)
            order = self.done + torch.from_numpy(np.concatenate([four, three]))
            k, v = self.keys[:, :, order].cpu().numpy(), self.values[:, :, part].cpu().numpy()
            if self.channels is None:
                self.channels = torch.from_numpy(np.argsort(k.min((1, 2)) - k.max((1, 2)), axis=-1, kind="stable"))
            channels = self.channels.numpy()
            packed = reference.pack_keys(k, channels, 32, 12)
            self.keys[:, :, order] = torch.from_numpy(reference.unpack_keys(channels, 32, *packed)).float().to(device)
            for tokens, levels in ((four, 4), (three, 3)):
                if len(tokens):
                    kept = reference.unpack_values(32, *reference.pack_values(v[:, :, tokens], 32, GAMMA, levels))
                    self.values[:, :, self.done + torch.from_numpy(tokens)] = torch.from_numpy(kept).float().to(device)
            self.done += count
        return seen

    def crop(self, tokens_to_remove):
        super().crop(tokens_to_remove)
        self.done = min(self.done, self.keys.shape[2])

    def reorder_cache(self, beam_idx):
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats):
        super().batch_repeat_interleave(repeats)
        if self.channels is not None:
            self.channels = self.channels.repeat_interleave(repeats, 0)

    def batch_select_indices(self, indices):
        super().batch_select_indices(indices)
        if self.channels is not None:
            self.channels = self.channels[indices.cpu()]


def close(model):
    """Tolerances: on CUDA sums differ in their last digits, and a value near a bound may be packed to either side."""
    return dict.fromkeys(("rtol", "atol"), 1e-3 if model.device.type == "cpu" else 1e-2)


def caches(model, protect=None):
    return VidKVCache(model.config, residual_length=RECENT, protect=protect), Cache(
        layers=[Oracle(protect) for _ in range(2)]
    )


def prompt(model, batch=1, n=100):
    return torch.randint(3, 64, (batch, n), generator=torch.Generator().manual_seed(1)).to(model.device)


def both(model, call, protect=None):
    """What `call(cache)` gives with the packed cache and with the oracle."""
    found = []
    for name, cache in zip(("core_vidkv", "sdpa"), caches(model, protect), strict=True):
        model.set_attn_implementation(name)
        torch.manual_seed(0)
        with torch.no_grad():
            found.append(call(cache))
    return found


@pytest.mark.parametrize(
    "how",
    [
        {"do_sample": False},
        {"do_sample": True, "temperature": 1.5},
        {"num_beams": 4, "do_sample": False},
        {"do_sample": True, "num_return_sequences": 3},
    ],
)
@pytest.mark.parametrize("protect", [None, torch.arange(10, 42)])
def test_generation_equals_the_oracle(model, how, protect):
    def call(cache):
        made = model.generate(prompt(model), past_key_values=cache, max_new_tokens=24, pad_token_id=0, **how)
        return made, cache.get_seq_length()

    ours, theirs = both(model, call, protect)
    assert torch.equal(ours[0], theirs[0])
    assert ours[1] == theirs[1] == 123


def steps(model, cache, ids, count=3):
    """Logits of `count` single tokens."""
    got = [model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(count)]
    return torch.cat(got, 1)


def test_padded_batches(model):
    seen = torch.ones(2, 100, dtype=torch.long, device=model.device)
    seen[0, :37] = 0

    def call(cache):
        model(prompt(model, 2), attention_mask=seen, past_key_values=cache)
        more = torch.nn.functional.pad(seen, (0, 1), value=1)
        return model(prompt(model, 2, 1), attention_mask=more, past_key_values=cache).logits

    torch.testing.assert_close(*both(model, call), **close(model))


@pytest.mark.parametrize("n", [1, 48, 49])
def test_short_prompts(model, n):
    """From a single token on, and where a first run is just complete."""

    def call(cache):
        return model.generate(prompt(model, 1, n), past_key_values=cache, max_new_tokens=60, do_sample=False)

    assert torch.equal(*both(model, call))


@pytest.mark.parametrize("removed", [1, 20, 37, 50, 100])
@pytest.mark.parametrize("protect", [None, torch.arange(10, 42)])
def test_crop(model, removed, protect):
    def call(cache):
        model(prompt(model), past_key_values=cache)
        steps(model, cache, prompt(model, 1, 3))
        cache.crop(-removed)
        assert cache.get_seq_length() == 103 - removed
        chunk = model(
            prompt(model, 1, 40), past_key_values=cache
        ).logits  # more than one token: unpacked, and packs again
        return torch.cat([chunk, steps(model, cache, prompt(model, 1, 8), 8)], 1)

    torch.testing.assert_close(*both(model, call, protect), **close(model))


def test_batch_operations(model):
    def call(cache):
        model(prompt(model, 2), past_key_values=cache)
        cache.batch_repeat_interleave(2)
        cache.reorder_cache(torch.tensor([3, 0, 0, 1], device=model.device))
        cache.batch_select_indices(torch.tensor([0, 1], device=model.device))
        return steps(model, cache, prompt(model, 2, 20), 20)

    torch.testing.assert_close(*both(model, call), **close(model))


def test_any_attention_reads_the_cache(model):
    """An implementation that knows nothing of packing sees the unpacked tokens."""
    found = []
    for name in ("core_vidkv", "sdpa", "eager"):
        model.set_attn_implementation(name)
        cache = caches(model)[0]
        with torch.no_grad():
            model(prompt(model), past_key_values=cache)
            found.append(steps(model, cache, prompt(model, 1, 3)))
    torch.testing.assert_close(found[0], found[1], **close(model))
    torch.testing.assert_close(found[0], found[2], **close(model))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_decodes_packed(dtype, monkeypatch):
    """Heads of 128 channels, whose kernel is another; beside SDPA over the unpacked cache."""
    register_vidkv()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, initializer_range=0.1, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval().to("cuda", dtype)
    used, attend = [], core_vidkv.packed_attention
    monkeypatch.setattr(core_vidkv, "packed_attention", lambda *x, **y: used.append(1) or attend(*x, **y))
    found = []
    for name in ("core_vidkv", "sdpa"):
        model.set_attn_implementation(name)
        cache = VidKVCache(model.config, residual_length=RECENT)
        with torch.no_grad():
            model(prompt(model, 2, 900), past_key_values=cache)
            found.append(steps(model, cache, prompt(model, 2, 20), 20).float())
    assert len(used) == 40
    assert cache.layers[0].state.packed_keys.planes.device.type == "cuda"
    assert float((found[0] - found[1]).norm() / found[1].norm()) < (2e-2 if dtype == torch.bfloat16 else 3e-3)


def test_what_is_packed_stays():
    layer, rng = VidKVLayer(residual_length=8), torch.Generator().manual_seed(0)
    draw = lambda n: (torch.randn(1, 2, n, 64, generator=rng), torch.randn(1, 2, n, 64, generator=rng))  # noqa: E731
    layer.update(*draw(75))
    before = layer.state
    for _ in range(70):
        layer.update(*draw(1))
    after = layer.state
    assert (before.packed_keys.length, after.packed_keys.length, layer.get_seq_length()) == (64, 128, 145)
    assert torch.equal(after.packed_keys.planes[:, :, :2], before.packed_keys.planes)
    assert torch.equal(after.packed_values.codes[:, :, :64], before.packed_values.codes)
    assert layer.nbytes == after.packed_keys.nbytes + after.packed_values.nbytes + 128 * 8 + 2 * 2 * 17 * 64 * 4
    assert after.keys.untyped_storage().nbytes() <= 2 * 40 * 64 * 4  # no view keeps the packed tokens' floats alive
    layer.reset()
    assert (layer.nbytes, layer.get_seq_length()) == (0, 0)


def test_bytes_an_element():
    cache = VidKVCache(transformers.LlamaConfig(num_hidden_layers=1), residual_length=0)
    key, value = torch.randn(2, 1, 3, 1024, 64)
    cache.update(key, value, 0)
    assert 8 * cache.nbytes / (2 * key.numel()) <= 2.4


def test_semantic_tokens():
    visual = torch.zeros(200, 8)
    visual[50:90, 3] = 1.0
    found = semantic_tokens(visual, torch.eye(8)[3:4], ratio=0.2, first=14)
    assert len(found) == 32
    assert found.min() >= 64
    assert found.max() < 104
    with pytest.raises(ValueError, match="'ratio' must be in"):
        semantic_tokens(visual, visual, 2.0)
    with pytest.raises(ValueError, match="'text' must be"):
        semantic_tokens(visual, visual[:0])


@pytest.mark.parametrize(
    "wrong", [{"bits": 0.5}, {"group": 48}, {"residual_length": -1}, {"gamma": 9.0}], ids=lambda x: next(iter(x))
)
def test_refusals(wrong):
    with pytest.raises(ValueError, match=f"argument '{next(iter(wrong))}' must"):
        VidKVLayer(**wrong)
