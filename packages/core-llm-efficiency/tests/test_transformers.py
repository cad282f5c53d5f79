"""A random Llama model with the attention of `register_transformers`."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from core_llm_efficiency.transformers import register_transformers  # noqa: E402


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
    )
    return transformers.LlamaForCausalLM(config).eval()


def logits(model, ids, name, **more):
    model.set_attn_implementation(name)
    with torch.no_grad():
        return model(ids, **more).logits


def test_threshold_one_equals_sdpa(model):
    register_transformers("core_test_dense", threshold=1.0, block_size=64)
    ids = torch.randint(0, 64, (2, 200))
    torch.testing.assert_close(logits(model, ids, "core_test_dense"), logits(model, ids, "sdpa"), rtol=1e-4, atol=1e-4)


def test_padded_batches_fall_back_to_sdpa(model):
    register_transformers("core_test_sparse", threshold=0.1, block_size=16)
    ids = torch.randint(0, 64, (2, 100))
    seen = torch.ones_like(ids)
    seen[0, :30] = 0
    ours, theirs = (logits(model, ids, name, attention_mask=seen) for name in ("core_test_sparse", "sdpa"))
    torch.testing.assert_close(ours[seen.bool()], theirs[seen.bool()])
    assert not torch.equal(logits(model, ids, "core_test_sparse"), logits(model, ids, "sdpa"))


def test_generation_decodes_densely(model):
    register_transformers("core_test_dense", threshold=1.0, block_size=64)
    ids = torch.randint(0, 64, (1, 150))
    made = []
    for name in ("core_test_dense", "sdpa"):
        model.set_attn_implementation(name)
        made.append(model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0))
    assert torch.equal(*made)
