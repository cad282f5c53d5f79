"""XAttention in transformers models: `register_transformers()`, then `attn_implementation="core_xattention"`."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .xattention import xattention


def register_transformers(
    name: str = "core_xattention", *, densities: list[float] | None = None, dense_up_to: int = 8192, **options: Any
) -> None:
    """Registers prefill by `xattention(..., **options)` as the attention implementation `name`.

    options: threshold, stride, block_size as in `xattention`: float32 on the CPU, bfloat16 and float16 on CUDA;
    `densities` gets the share of visible blocks that was read appended, for every layer that ran sparse. What has
    no sparse path (decoding one token, padded batches, masks other than causal, dropout, gradients, other dtypes and
    devices) goes to torch's dense SDPA, and so does what would not gain: on CUDA, at most `dense_up_to` keys.
    """

    def pays(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
        if query.device.type == "cpu":
            return bool(query.dtype == torch.float32)
        widest = max(query.shape[3], value.shape[3])
        half = query.dtype in (torch.bfloat16, torch.float16)
        return bool(query.device.type == "cuda" and half and widest <= 256 and key.shape[2] > dense_up_to)

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
            or not pays(query, key, value)
            or (torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad))
        )
        if dense:
            answer: tuple[Any, None] = sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **rest
            )
            return answer
        if densities is None:
            out = xattention(query, key, value, scale=scaling, **options)
        else:
            out, density = xattention(query, key, value, scale=scaling, return_density=True, **options)
            densities.append(density)
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register(name, forward)
    AttentionMaskInterface.register(name, sdpa_mask)
