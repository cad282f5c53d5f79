"""XAttention in transformers models: `register_transformers()`, then `attn_implementation="core_xattention"`."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .xattention import DENSE_UP_TO, xattention


def register_transformers(
    name: str = "core_xattention",
    *,
    densities: list[float] | None = None,
    dense_up_to: int | None = None,
    dense_above: float | None = None,
    **options: Any,
) -> None:
    """Registers prefill by `xattention(..., **options)` as the attention implementation `name`.

    options: threshold, stride, block_size as in `xattention`: float32 on the CPU, bfloat16 and float16 on CUDA;
    `densities` gets the share of visible blocks that was read appended, for every layer that ran sparse. What has
    no sparse path (decoding one token, padded batches, masks other than causal, dropout, other dtypes and devices)
    goes to torch's dense SDPA, and so does what would not gain: prompts of at most `dense_up_to` keys (if None, 256 on
    the CPU and 8192 on CUDA), and layers that chose more than a share `dense_above` of the visible blocks (if None,
    0.75 where gradients are wanted on the CPU, else 1), the measured break-even points.
    """

    def shortest(query: torch.Tensor, value: torch.Tensor) -> float:
        """The number of keys up to which attention is dense."""
        half = query.dtype in (torch.bfloat16, torch.float16) and max(query.shape[3], value.shape[3]) <= 256
        if query.device.type == "cpu" and query.dtype == torch.float32:
            return 256 if dense_up_to is None else dense_up_to
        if query.device.type == "cuda" and half:
            return DENSE_UP_TO if dense_up_to is None else dense_up_to
        return float("inf")

    def forward(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        is_causal: bool | None = None,
        **rest: Any,
    ) -> tuple[torch.Tensor, None]:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        dense = (
            query.shape[2] == 1
            or query.shape[2] > key.shape[2]
            or not causal
            or attention_mask is not None
            or dropout > 0
            or key.shape[2] <= shortest(query, value)
        )
        if dense:
            answer: tuple[Any, None] = sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **rest
            )
            return answer
        above = dense_above
        if above is None:
            trains = torch.is_grad_enabled() and query.requires_grad
            above = 0.75 if trains and query.device.type == "cpu" else 1.0
        counted = densities is not None
        out = xattention(
            query, key, value, scale=scaling, dense_up_to=0, dense_above=above, return_density=counted, **options
        )
        if densities is not None:
            out, density = out
            densities.append(density)
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register(name, forward)
    AttentionMaskInterface.register(name, sdpa_mask)
