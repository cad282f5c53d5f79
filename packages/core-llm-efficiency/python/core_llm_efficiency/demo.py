"""The demonstration: sparse prefill attention of SmolLM2's own queries and keys on a 4096-token text."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import numpy as np
from core_registry.demo import Demo, Picture
from core_registry.timing import fastest, one_torch_thread

from . import smollm2
from .cases import structured_qkv
from .pictures import draw_blocks
from .xattention import block_density, block_sparse_attention, xattention, xattn_estimate

BLOCK = 128


def demo(out: Path) -> Demo:
    """Attention over the selected blocks, against torch's dense SDPA in CPU time and against masked SDPA in value."""
    import torch
    import torch.nn.functional as F

    if smollm2.available():
        source = "q, k, v of SmolLM2-135M, layers 3, 9, 15, on 4096 tokens of the GPL"
        arrays = smollm2.captured_qkv()
        inputs = [tuple(arrays[f"{x}{i}"] for x in "qkv") for i in range(3)]
    else:
        source = "structured q, k, v in SmolLM2's shapes (9 query heads, 3 key heads, 64), 4096 tokens"
        inputs = [structured_qkv(np.random.default_rng(0), 1, 9, 3, 4096, 4096, 64)]
    with one_torch_thread():
        ours = peers = difference = 0.0
        figures: dict[str, str] = {}
        densities, errors = [], []
        for q, k, v in inputs:
            q_t, k_t, v_t = map(torch.from_numpy, (q, k, v))
            share = q.shape[1] // k.shape[1]
            k_t, v_t = k_t.repeat_interleave(share, 1), v_t.repeat_interleave(share, 1)
            _, mask = xattn_estimate(q, k, block_size=BLOCK)
            result = block_sparse_attention(q, k, v, mask, block_size=BLOCK)
            peer = partial(F.scaled_dot_product_attention, q_t, k_t, v_t, is_causal=True)
            dense = peer().numpy()
            ours += fastest(partial(xattention, q, k, v, block_size=BLOCK), 0, time.process_time)
            peers += fastest(
                partial(F.scaled_dot_product_attention, q_t, k_t, v_t, is_causal=True), 0, time.process_time
            )
            for h in range(q.shape[1]):
                seen = torch.from_numpy(mask[0, h]).repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1).tril()
                same = F.scaled_dot_product_attention(q_t[0, h], k_t[0, h], v_t[0, h], attn_mask=seen)
                difference = max(difference, float(np.abs(result[0, h] - same.numpy()).max()))
            lengths = {"q_len": q.shape[2], "k_len": k.shape[2], "block_size": BLOCK}
            densities.append(block_density(mask, **lengths))
            errors.append(float(np.linalg.norm(result - dense) / np.linalg.norm(dense)))
        q, k, _ = inputs[-1]
        head = int(np.argsort(mask[0].sum((1, 2)))[mask.shape[1] // 2])
        draw_blocks(q, k, mask, head, out / "blocks.png", block_size=BLOCK)
        figures["blocks read, of the visible"] = ", ".join(f"{d:.1%}" for d in densities)
        figures["relative error to dense attention"] = ", ".join(f"{e:.3f}" for e in errors)
        figures["timing"] = "CPU seconds, estimate and selection included"
    return Demo(
        what="XAttention prefill: antidiagonal scores, block selection, block-sparse attention",
        input=source,
        ours=ours,
        peer="torch SDPA, dense",
        peers=peers,
        difference=difference,
        tolerance=1e-4,
        pictures=[Picture("true attention and the blocks read", out / "blocks.png")],
        figures=figures,
    )
