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
    register_transformers("core_test_dense", threshold=1.0, block_size=64, dense_up_to=0)
    ids = torch.randint(0, 64, (2, 200))
    torch.testing.assert_close(logits(model, ids, "core_test_dense"), logits(model, ids, "sdpa"), rtol=1e-4, atol=1e-4)


def test_padded_batches_fall_back_to_sdpa(model):
    register_transformers("core_test_sparse", threshold=0.1, block_size=16, dense_up_to=0)
    ids = torch.randint(0, 64, (2, 100))
    seen = torch.ones_like(ids)
    seen[0, :30] = 0
    ours, theirs = (logits(model, ids, name, attention_mask=seen) for name in ("core_test_sparse", "sdpa"))
    torch.testing.assert_close(ours[seen.bool()], theirs[seen.bool()])
    assert not torch.equal(logits(model, ids, "core_test_sparse"), logits(model, ids, "sdpa"))


def test_generation_decodes_densely(model):
    register_transformers("core_test_dense", threshold=1.0, block_size=64, dense_up_to=0)
    ids = torch.randint(0, 64, (1, 150))
    made = []
    for name in ("core_test_dense", "sdpa"):
        model.set_attn_implementation(name)
        made.append(model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0))
    assert torch.equal(*made)


def test_short_and_dense_prompts_go_to_sdpa(model):
    densities = []
    register_transformers("core_test_limits", threshold=0.1, block_size=16, dense_up_to=100, densities=densities)
    short, long = torch.randint(0, 64, (1, 100)), torch.randint(0, 64, (1, 101))
    assert torch.equal(logits(model, short, "core_test_limits"), logits(model, short, "sdpa"))
    assert densities == []
    logits(model, long, "core_test_limits")
    assert len(densities) == 2
    assert max(densities) < 1
    register_transformers(
        "core_test_limits", threshold=0.1, block_size=16, dense_up_to=0, dense_above=0.0, densities=densities
    )
    assert torch.equal(logits(model, long, "core_test_limits"), logits(model, long, "sdpa"))
    assert densities[2:] == [1.0, 1.0]


def test_gradients_equal_sdpas(model):
    register_transformers("core_test_grad", threshold=1.0, block_size=16, dense_up_to=0, dense_above=1.0)
    ids, found = torch.randint(0, 64, (2, 90)), []
    for name in ("core_test_grad", "sdpa"):
        model.set_attn_implementation(name)
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        found.append([p.grad.clone() for p in model.parameters()])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("threshold", [0.1, [0.1, 0.5, 2.0]])
def test_a_loaded_model_prefills_sparsely_and_decodes(model, tmp_path, threshold):
    """From `from_pretrained`, with one threshold or one for each head."""
    densities = []
    register_transformers(threshold=threshold, block_size=16, dense_up_to=0, densities=densities)
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="core_xattention")
    ids = torch.randint(1, 64, (2, 120))  # 0 would be taken for padding
    made = loaded.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert made.shape == (2, 124)
    assert len(densities) == 2  # of the prompt, a layer each; single tokens are decoded densely
    assert all(0 < x < 1 for x in densities)
    expected = logits(model, ids, "core_xattention")[:, -1].argmax(-1)
    assert torch.equal(made[:, 120], expected)
