"""The job `core run llm.generate`: a causal model of transformers continues a text, with this package's attention."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from core_registry.files import replace


@dataclasses.dataclass(frozen=True)
class Generated:
    """What a run did: tokens and seconds of prefill and decoding, the mean share of visible blocks that sparse prefill
    read (None if all attention was dense), the bytes of the cache at the end, and the text."""

    prompt_tokens: int
    prefill_seconds: float
    new_tokens: int
    decode_seconds: float
    density: float | None
    cache_bytes: int
    text: str


def load(model: Path) -> tuple[Any, Any]:
    """Tokenizer and model from a folder as `save_pretrained` writes it, or from a .gguf file (needs gguf, accelerate).

    Raises FileNotFoundError if there is neither. No code of the model's own is run and nothing is fetched.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if model.suffix == ".gguf" and model.is_file():
        source: dict[str, Any] = {"pretrained_model_name_or_path": model.parent, "gguf_file": model.name}
    elif (model / "config.json").is_file():
        source = {"pretrained_model_name_or_path": model}
    else:
        raise FileNotFoundError(f"argument 'model' must be a folder with a config.json or a .gguf file, got {model}")
    source |= {"local_files_only": True, "trust_remote_code": False}
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype="float32")
    return AutoTokenizer.from_pretrained(**source), loaded.eval()


def run(
    model: Any,
    tokenizer: Any,
    prompt: str,
    *,
    attention: str = "core_xattention",
    kv: str = "plain",
    threshold: float = 0.9,
    stride: int = 8,
    block_size: int = 128,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
    streamer: Any = None,
) -> Generated:
    """Continues `prompt` by at most `max_new_tokens` tokens; `temperature` 0 takes the likeliest token each time.

    attention: "core_xattention" (threshold, stride and block_size as in `xattention`) or one that transformers knows,
    such as "sdpa". kv: "vidkv" packs keys and values (`VidKVCache`) and decodes from the packed form; "plain" keeps
    them as they are. `streamer` gets the tokens as they come (TextStreamer). Prefill and decoding are timed
    apart. Raises ValueError for an empty prompt, one that leaves no room in the model's context, and for another kv, or
    "vidkv" with attention "eager".
    """
    import torch
    from transformers import DynamicCache

    from .transformers import register_transformers

    ids = tokenizer(prompt, return_tensors="pt")["input_ids"].to(model.device)
    room = getattr(model.config, "max_position_embeddings", None)
    if ids.shape[1] == 0 or max_new_tokens < 1 or (room is not None and ids.shape[1] + max_new_tokens > room):
        raise ValueError(
            f"argument 'prompt' must have tokens and leave room for max_new_tokens in {room} positions, "
            f"got {ids.shape[1]} and {max_new_tokens}"
        )
    if kv not in ("plain", "vidkv") or (kv == "vidkv" and attention == "eager"):
        raise ValueError(
            f"argument 'kv' must be 'plain', or 'vidkv' with attention not 'eager', got {kv!r}, {attention!r}"
        )
    densities: list[float] = []
    if attention == "core_xattention":
        register_transformers(densities=densities, threshold=threshold, stride=stride, block_size=block_size)
    cache: Any = DynamicCache(config=model.config)
    if kv == "vidkv":
        from .transformers_vidkv import VidKVCache, register_vidkv

        register_vidkv("core_generate", attention)
        attention, cache = "core_generate", VidKVCache(model.config)
    model.set_attn_implementation(attention)
    torch.manual_seed(seed)
    how: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    clock = _Clock(streamer)
    made = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        past_key_values=cache,
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        streamer=clock,
        **how,
    )
    new = made[0, ids.shape[1] :]
    return Generated(
        prompt_tokens=ids.shape[1],
        prefill_seconds=clock.times[1] - clock.times[0],
        new_tokens=len(new),
        decode_seconds=clock.times[-1] - clock.times[1],
        density=sum(densities) / len(densities) if densities else None,
        cache_bytes=cache.nbytes if kv == "vidkv" else sum(x.keys.nbytes + x.values.nbytes for x in cache.layers),
        text=tokenizer.decode(new, skip_special_tokens=True),
    )


class _Clock:
    """A streamer that notes when the prompt and each token came, and hands them on."""

    def __init__(self, streamer: Any) -> None:
        self.streamer = streamer
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())
        if self.streamer is not None:
            self.streamer.put(value)

    def end(self) -> None:
        if self.streamer is not None:
            self.streamer.end()


def generate(
    model: Annotated[Path, typer.Option(help="A folder as transformers' save_pretrained writes it, or a .gguf file.")],
    prompt: Annotated[Path, typer.Option(help="A text file (UTF-8).")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write text and figures here, as JSON.")] = None,
    attention: Annotated[
        Literal["core_xattention", "sdpa", "eager"], typer.Option(help="How prefill attends.")
    ] = "core_xattention",
    kv: Annotated[
        Literal["plain", "vidkv"], typer.Option(help="The cache: as it is, or packed to 1.x bits an element.")
    ] = "plain",
    threshold: Annotated[float, typer.Option(min=0, help="Share of the attention mass the blocks must hold.")] = 0.9,
    stride: Annotated[int, typer.Option(min=1, help="Antidiagonal stride.")] = 8,
    block: Annotated[int, typer.Option(min=16, help="Block size.")] = 128,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0: the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Continues a text with a causal model, prints it as it comes, and says what prefill, decoding and cache cost."""
    import rich.console
    from transformers import TextStreamer

    console = rich.console.Console(stderr=True)
    text = prompt.read_text(encoding="utf-8")
    with console.status(f"loading {model}"):
        tokenizer, loaded = load(model)
    done = run(
        loaded,
        tokenizer,
        text,
        attention=attention,
        kv=kv,
        threshold=threshold,
        stride=stride,
        block_size=block,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        streamer=TextStreamer(tokenizer, skip_prompt=True),
    )
    read = "dense" if done.density is None else f"{done.density:.1%} of the visible blocks"
    prefill = done.prompt_tokens / max(done.prefill_seconds, 1e-9)
    decode = (done.new_tokens - 1) / max(done.decode_seconds, 1e-9)
    console.print(f"prefill  {done.prompt_tokens} tokens, {prefill:,.0f} a second, {read}")
    console.print(f"decode   {done.new_tokens} tokens, {decode:,.1f} a second")
    console.print(f"cache    {done.cache_bytes / 2**20:,.1f} MiB")
    if out is not None:
        with replace(out) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(done), indent=1) + "\n", encoding="utf-8")
