"""The job that continues a text, with a random model and a tokenizer made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from core_llm_efficiency.generate import generate, load, run  # noqa: E402

TEXT = "the cat sat on the mat and the dog sat on the cat " * 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *sorted(set(TEXT.split()))])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(words), hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=1, max_position_embeddings=512, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("model")
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[Any, Any]:
    return load(folder)


def test_whole_threshold_continues_as_dense_attention(loaded: tuple[Any, Any]) -> None:
    tokenizer, model = loaded
    sparse = run(model, tokenizer, TEXT, threshold=1.0, block_size=32, max_new_tokens=9)
    dense = run(model, tokenizer, TEXT, attention="sdpa", max_new_tokens=9)
    assert sparse.text == dense.text
    assert sparse.density == 1
    assert dense.density is None
    assert sparse.prompt_tokens == len(TEXT.split())
    # keys and values of two layers, one head of 16 floats; the last token is not in the cache
    assert sparse.cache_bytes == 2 * 2 * (sparse.prompt_tokens + sparse.new_tokens - 1) * 16 * 4
    assert sparse.prefill_seconds > 0
    assert sparse.decode_seconds > 0


def test_low_threshold_reads_fewer_blocks(loaded: tuple[Any, Any]) -> None:
    tokenizer, model = loaded
    density = run(model, tokenizer, TEXT, threshold=0.3, block_size=16, max_new_tokens=1).density
    assert density is not None
    assert 0 < density < 0.8


def test_packed_cache_is_smaller_and_follows_the_prompt(loaded: tuple[Any, Any]) -> None:
    tokenizer, model = loaded
    how: dict[str, Any] = {"threshold": 1.0, "block_size": 32, "max_new_tokens": 9}
    packed, plain = (run(model, tokenizer, TEXT, kv=kv, **how) for kv in ("vidkv", "plain"))
    assert packed.cache_bytes < 0.6 * plain.cache_bytes
    assert packed.density == 1
    assert packed.text.split()[0] == plain.text.split()[0]  # it comes from the prompt's own attention
    with pytest.raises(ValueError, match="argument 'kv' must be 'plain', or 'vidkv' with attention not 'eager'"):
        run(model, tokenizer, TEXT, kv="vidkv", attention="eager", max_new_tokens=2)


def test_sampling_follows_the_seed(loaded: tuple[Any, Any]) -> None:
    tokenizer, model = loaded
    made = [run(model, tokenizer, TEXT, max_new_tokens=12, temperature=2.0, seed=s).text for s in (1, 1, 2)]
    assert made[0] == made[1] != made[2]


def test_job(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt, out = tmp_path / "prompt.txt", tmp_path / "out.json"
    prompt.write_text(TEXT)
    generate(folder, prompt, out, kv="vidkv", block=32, max_new_tokens=5)
    figures = json.loads(out.read_text())
    shown = capsys.readouterr()
    assert figures["new_tokens"] <= 5
    assert figures["text"].split()[0] in shown.out
    assert "of the visible blocks" in shown.err.replace("\n", " ")


def test_refusals(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    tokenizer, model = loaded
    with pytest.raises(ValueError, match="leave room for max_new_tokens in 512 positions, got 390 and 200"):
        run(model, tokenizer, TEXT, max_new_tokens=200)
    with pytest.raises(ValueError, match="argument 'prompt' must have tokens"):
        run(model, tokenizer, "", max_new_tokens=2)
    with pytest.raises(FileNotFoundError, match="argument 'model' must be a folder with a"):
        load(tmp_path / "nowhere")
