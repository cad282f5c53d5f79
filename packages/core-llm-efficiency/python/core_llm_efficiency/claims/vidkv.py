"""VidKV's claim (arXiv 2503.16257): a model hardly notices that its cache holds 1.x bits an element."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
from core_registry.arrays import is_torch
from core_registry.claims import Claim
from core_registry.files import replace

from .. import smollm2
from ..cases_vidkv import cache_like
from ..vidkv import pack_keys, pack_values, select_channels, unpack_keys, unpack_values

PREFIX, SCORED, BOUND = 1024, 256, 0.20
CLAIM = "with keys of 1.5 and values of 1.58 nominal bits an element a model's likelihoods stay close to full precision"
MAIN = "keys 1.5, values 3 levels"


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is packed: keys at `bits`, values at `levels`, neither if None; a scale for `group` tokens. `scaled` False:
    values as the authors' code reads them, whose scale is dropped."""

    bits: float | None
    levels: int | None
    group: int = 32
    gamma: float = 0.5
    scaled: bool = True

    def unpacked(self, key: Any, value: Any) -> tuple[Any, Any, float]:
        """Keys and values (B, G, N, D) as packing keeps them, and all bits held by an element of the two."""
        held = 0.0
        if self.bits is None:
            held += 8 * key.nbytes
        else:
            keys = pack_keys(key, *select_channels(key, self.bits), self.group)
            key, held = unpack_keys(keys), held + 8 * keys.nbytes
        if self.levels is None:
            held += 8 * value.nbytes
        else:
            values = pack_values(value, self.levels, self.group, self.gamma)
            value, held = unpack_values(values), held + 8 * values.nbytes
            if not self.scaled:
                value = value.sign() if is_torch(value) else np.sign(value)
        return key, value, held / (math.prod(key.shape) + math.prod(value.shape))


SETTINGS = {
    "full precision": Setting(None, None),
    "keys 2, values 4 levels": Setting(2.0, 4),
    "keys 1.5 alone": Setting(1.5, None),
    "values 3 levels alone": Setting(None, 3),
    "values 3 levels alone, gamma 0.75": Setting(None, 3, gamma=0.75),
    "values 3 levels alone, no scale (released code)": Setting(None, 3, scaled=False),
    "keys 2, values 3 levels": Setting(2.0, 3),
    "keys 1.75, values 3 levels": Setting(1.75, 3),
    MAIN: Setting(1.5, 3),
    "keys 1.25, values 3 levels": Setting(1.25, 3),
    "keys 1, values 3 levels": Setting(1.0, 3),
    f"{MAIN}, group 64": Setting(1.5, 3, group=64),
    f"{MAIN}, group 128": Setting(1.5, 3, group=128),
}


def likelihoods(tasks: dict[str, Any], settings: dict[str, Setting]) -> dict[str, dict[str, tuple[Any, float]]]:
    """By task and setting, the negative log-likelihoods (SCORED - 1,) of each task's last tokens in SmolLM2-135M whose
    first PREFIX tokens' cache was packed, and the bits an element. tasks: token ids (PREFIX + SCORED,)."""
    import rich.progress
    import torch
    from transformers import DynamicCache

    _, model = smollm2.load()
    found: dict[str, dict[str, tuple[Any, float]]] = {}
    with rich.progress.Progress() as progress, torch.no_grad():
        bar = progress.add_task("packed caches", total=len(tasks) * len(settings))
        for task, ids in tasks.items():
            kept = DynamicCache(config=model.config)
            model.model(ids[None, :PREFIX], past_key_values=kept)
            found[task] = {}
            for name, setting in settings.items():
                cache, bits = DynamicCache(config=model.config), []
                for i, layer in enumerate(kept.layers):
                    key, value, held = setting.unpacked(layer.keys, layer.values)
                    cache.update(key, value, i)
                    bits.append(held)
                logits = model(ids[None, PREFIX:], past_key_values=cache).logits[0, :-1]
                lost = torch.nn.functional.cross_entropy(logits, ids[PREFIX + 1 :], reduction="none")
                found[task][name] = lost.numpy(), float(np.mean(bits))
                progress.advance(bar)
    return found


def _model(seed: int, out: Path) -> Claim:
    import torch

    tokenizer, _ = smollm2.load()
    ids = torch.tensor(tokenizer(smollm2.text())["input_ids"])
    start = int(np.random.default_rng(seed).integers(0, len(ids) - PREFIX - SCORED)) if seed else 0
    text = ids[start : start + PREFIX + SCORED]
    tasks = {"text": text, "copy": torch.cat([text[:PREFIX], text[PREFIX // 4 : PREFIX // 4 + SCORED]])}
    found = likelihoods(tasks, SETTINGS)
    measured, mean = {}, {}
    for task, of in found.items():
        for name, (lost, bits) in of.items():
            rise = lost - of["full precision"][0]
            error = float(rise.std() / math.sqrt(len(rise))) if name != "full precision" else 0.0
            mean[task, name] = float(lost.mean())
            measured[f"{task} NLL, {name}, {bits:.2f} bits"] = mean[task, name], error
    bits = found["text"][MAIN][1]
    holds = mean["text", MAIN] <= mean["text", "full precision"] + BOUND and bits <= 2.4
    protocol = (
        f"SmolLM2-135M, cache of {PREFIX} tokens packed in all 30 layers, mean NLL of the next {SCORED}, which go on "
        f"with the text or copy tokens from {PREFIX // 4} on; bits count scales and zeros; spread: standard error of "
        f"the rise over full precision. Holds if the text's rise at {MAIN} is at most {BOUND} at no more than 2.4 bits"
    )
    return Claim("2503.16257", CLAIM, protocol, measured, holds, _plot(found, out))


def _synthetic(seeds: list[int], out: Path) -> Claim:
    """Relative squared errors of attention's inputs, without the model."""
    measured: dict[str, tuple[float, float]] = {}
    points: dict[str, tuple[float, float]] = {}
    for name, setting in SETTINGS.items():
        errors, bits = [], 0.0
        for seed in seeds:
            rng = np.random.default_rng(seed)
            key, value = (cache_like(rng, 1, 2, 512, 64) for _ in "kv")
            after = setting.unpacked(key, value)
            bits = after[2]
            both = zip(after[:2], (key, value), strict=True)
            errors.append(np.mean([np.square(a - b).sum() / np.square(b).sum() for a, b in both]))
        measured[f"relative squared error, {name}, {bits:.2f} bits"] = float(np.mean(errors)), float(np.std(errors))
        points[name] = bits, float(np.mean(errors))
    holds = points[MAIN][1] < 0.3 and points[MAIN][0] <= 2.4
    protocol = (
        f"relative squared error of structured keys and values (2 heads, 512 tokens, 64 channels), {len(seeds)} "
        "seeds; holds if it is below 0.3 at no more than 2.4 bits; SmolLM2 is not installed"
    )
    lost = {"error": {name: (np.array([error]), bits) for name, (bits, error) in points.items()}}
    return Claim("2503.16257", CLAIM, protocol, measured, holds, _plot(lost, out))


def claim(size: str, seed: int, out: Path) -> Claim:
    """Likelihoods of SmolLM2 with a packed cache, or where it is not installed the error of packing alone."""
    if size not in ("cpu", "gpu"):
        raise ValueError(f"argument 'size' must be 'cpu' or 'gpu', got {size!r}")
    return _model(seed, out) if smollm2.available() else _synthetic(list(range(seed, seed + 3)), out)


def _plot(found: dict[str, dict[str, tuple[Any, float]]], out: Path) -> Path:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(6.5 * len(found), 5), layout="constrained", squeeze=False)
    for axis, (task, of) in zip(axes[0], found.items(), strict=True):
        for i, (name, (lost, bits)) in enumerate(of.items()):
            axis.plot(bits, float(lost.mean()), "osD"[i % 3], color=f"C{i % 10}", label=name)
        axis.axhline(float(of["full precision"][0].mean()), color="#999", lw=1)
        axis.set(xscale="log", xlabel="bits an element, all of them", ylabel="loss", title=task)
        axis.set_xticks([2, 4, 8, 16, 32], ["2", "4", "8", "16", "32"])
        axis.minorticks_off()
    axes[0, -1].legend(fontsize=7)
    with replace(out / "vidkv.png") as path:
        figure.savefig(path, dpi=90)
    plt.close(figure)
    return out / "vidkv.png"
