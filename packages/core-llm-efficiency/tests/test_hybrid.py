"""The hybrid model: logits of transformers' models, decoding with a cache, training."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from core_llm_efficiency.hybrid import HybridCache, HybridConfig, HybridModel, _renamed  # noqa: E402


def theirs(kind: str) -> Any:
    torch.manual_seed(0)
    common = {"vocab_size": 99, "hidden_size": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if kind.startswith("mamba2"):
        config = transformers.Mamba2Config(
            **common, num_hidden_layers=3, num_heads=8, head_dim=8, state_size=16, n_groups=2, chunk_size=32, expand=2
        )
        model = (transformers.Mamba2Model if kind == "mamba2 body" else transformers.Mamba2ForCausalLM)(config)
    elif kind == "bamba":
        config = transformers.BambaConfig(
            **common, num_hidden_layers=3, attn_layer_indices=[1], num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=48, mamba_n_heads=8, mamba_d_head=8, mamba_n_groups=2, mamba_d_state=16,
            mamba_chunk_size=32,
        )  # fmt: skip
        model = transformers.BambaForCausalLM(config)
    else:
        nemotron = pytest.importorskip("transformers.models.nemotron_h")
        config = nemotron.NemotronHConfig(
            **common, hybrid_override_pattern="M-M*-M-", num_attention_heads=4, num_key_value_heads=2, head_dim=8,
            intermediate_size=48, mamba_num_heads=8, mamba_head_dim=8, n_groups=2, ssm_state_size=16, chunk_size=32,
        )  # fmt: skip
        model = nemotron.NemotronHForCausalLM(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape))  # so that no scale, bias or step size keeps its plain first value
    return model.eval()


def ids(length: int = 75) -> Any:
    return torch.randint(3, 99, (2, length), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=["mamba2", "mamba2 body", "bamba", "nemotron_h"])
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    model = theirs(request.param)
    return model, HybridModel.from_transformers(model)


def test_logits_equal_transformers(pair: tuple[Any, Any]) -> None:
    model, ours = pair
    with torch.no_grad():
        found = model(ids(), use_cache=False)
        want = found.logits if hasattr(found, "logits") else found.last_hidden_state @ model.embeddings.weight.T
        torch.testing.assert_close(ours(ids()), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cut", [1, 2, 40, 74])
def test_a_prompt_cut_anywhere(pair: tuple[Any, Any], cut: int) -> None:
    _, ours = pair
    with torch.no_grad():
        whole = HybridCache()
        want = ours(ids(), whole)
        parts = HybridCache()
        got = torch.cat([ours(ids()[:, :cut], parts), ours(ids()[:, cut:], parts)], 1)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert parts.length == whole.length == 75
    for i, pair_of in whole.layers.items():
        for a, b in zip(pair_of, parts.layers[i], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_steps_reach_the_prompts_state(pair: tuple[Any, Any]) -> None:
    _, ours = pair
    with torch.no_grad():
        whole, steps = HybridCache(), HybridCache()
        want = ours(ids(20), whole)
        got = torch.cat([ours(ids(20)[:, i : i + 1], steps) for i in range(20)], 1)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    for i, kept in whole.layers.items():
        torch.testing.assert_close(kept, steps.layers[i], rtol=1e-4, atol=1e-4)
    assert steps.nbytes == whole.nbytes > 0


NEMOTRON_H_8B = "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("Mamba2", {}),  # Codestral Mamba 7B
        ("Bamba", {"attn_layer_indices": [9, 18, 27], "mamba_d_state": 128}),  # Bamba 9B
        ("NemotronH", {"hybrid_override_pattern": NEMOTRON_H_8B}),
    ],
)
def test_published_sizes_fit(kind: str, more: dict[str, Any]) -> None:
    """Every parameter of the models of several 10^9 parameters has its place; no memory is taken."""
    if not hasattr(transformers, f"{kind}Config"):
        pytest.skip(f"this transformers has no {kind}")
    config = getattr(transformers, f"{kind}Config")(**more)
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}ForCausalLM")(config)
        ours = HybridModel(HybridConfig.from_transformers(config))
    there = {_renamed(name, config.model_type): x.shape for name, x in model.state_dict().items()}
    assert {name: x.shape for name, x in ours.state_dict().items()} == there


def test_generation_equals_transformers() -> None:
    model = theirs("bamba")
    made = model.generate(ids(30), max_new_tokens=10, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(HybridModel.from_transformers(model).generate(ids(30), 10), made)


def test_gradients_equal_transformers() -> None:
    model = theirs("nemotron_h")
    ours = HybridModel.from_transformers(model)
    for logits in (model(ids(), use_cache=False).logits, ours(ids())):
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids()[:, 1:].flatten()).backward()
    wanted = {name.removeprefix("model."): p.grad for name, p in model.named_parameters()}
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p.grad, wanted[name], rtol=1e-3, atol=1e-4, msg=name)


def test_a_fresh_model_learns_and_sparse_attention_goes_in() -> None:
    torch.manual_seed(0)
    config = HybridConfig(
        32, 32, "M-*-", intermediate_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        mamba_num_heads=4, mamba_head_dim=16, ssm_state_size=16,
    )  # fmt: skip
    tokens = torch.arange(64).remainder(7).repeat(2, 3)
    sparse = HybridModel(config, threshold=0.99)
    optimiser, losses = torch.optim.Adam(sparse.parameters(), 0.01), []
    for _ in range(15):
        optimiser.zero_grad()
        logits = sparse(tokens)[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_one_token_and_none() -> None:
    model = HybridModel(HybridConfig(9, 8, "M*-", intermediate_size=8, head_dim=8, mamba_head_dim=8, ssm_state_size=4))
    assert model(torch.zeros(1, 1, dtype=torch.long)).shape == (1, 1, 9)
    with pytest.raises(ValueError, match=r"argument 'input_ids' must be \(B, L\) with L >= 1, got shape \(1, 0\)"):
        model.generate(torch.zeros(1, 0, dtype=torch.long), 2)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="argument 'pattern' must be of the letters"):
        HybridConfig(9, 8, "MX")
    with pytest.raises(ValueError, match="argument 'mlp' must be"):
        HybridConfig(9, 8, "M", mlp="gelu")
    with pytest.raises(ValueError, match="must divide the numbers of heads"):
        HybridConfig(9, 8, "M", n_groups=2)
    with pytest.raises(ValueError, match="argument 'rotary' must be even"):
        HybridConfig(9, 8, "M", rotary=3)
    with pytest.raises(ValueError, match="must be of a Mamba-2, Bamba or Nemotron-H model, got 'llama'"):
        HybridConfig.from_transformers(transformers.LlamaConfig())
