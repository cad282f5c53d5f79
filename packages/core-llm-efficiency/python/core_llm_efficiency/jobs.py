"""Jobs of core-llm-efficiency: `core run llm.density`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from core_registry.files import replace

from .pictures import draw_blocks
from .xattention import block_density, xattn_estimate


def _read(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return dict(load_file(path))
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def density(
    qk: Annotated[Path, typer.Argument(help="A .npz or .safetensors file with float32 q [B,H,N,D] and k [B,G,M,D].")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The picture; a .json of the figures goes beside it.")
    ] = Path("density.png"),
    stride: Annotated[int, typer.Option(help="Antidiagonal stride.")] = 8,
    block: Annotated[int, typer.Option(help="Block size.")] = 128,
    causal: Annotated[bool, typer.Option(help="Causal attention.")] = True,
) -> None:
    """How sparse the attention of given queries and keys is: density for each head and threshold, and a picture."""
    import rich.progress

    tensors = _read(qk)
    missing = {"q", "k"} - set(tensors)
    if missing:
        raise ValueError(f"{qk} has no tensor {' and no '.join(sorted(missing))}; it has {', '.join(sorted(tensors))}")
    q, k = tensors["q"], tensors["k"]
    common: dict[str, Any] = {"block_size": block, "is_causal": causal}
    figures: dict[str, Any] = {}
    for threshold in rich.progress.track((0.8, 0.9, 0.95), "density"):
        _, mask = xattn_estimate(q, k, threshold=threshold, stride=stride, **common)
        lengths = {"q_len": q.shape[2], "k_len": k.shape[2], **common}
        heads = [block_density(mask[:, h : h + 1], **lengths) for h in range(q.shape[1])]
        figures[str(threshold)] = {"mean": float(np.mean(heads)), "heads": heads}
        if threshold == 0.9:
            draw_blocks(q, k, mask, int(np.argsort(heads)[len(heads) // 2]), out, **common)
    with replace(out.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(figures, indent=1) + "\n")
    for name, figure in figures.items():
        rich.print(f"threshold {name}: {figure['mean']:.1%} of the visible blocks")
