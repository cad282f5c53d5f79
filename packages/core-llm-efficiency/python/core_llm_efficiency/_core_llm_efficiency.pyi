# Made by `core stubs core_llm_efficiency`.
from typing import Any, SupportsIndex

def antidiagonal_scores(
    q: Any,  # float32[B,H,N,D]
    k: Any,  # float32[B,G,M,D]
    stride: SupportsIndex,
    block: SupportsIndex,
    scale: float,
    causal: bool,
    scores: Any,  # out float32[B,H,QB,KB]
) -> None:
    """Estimated attention mass of every block: softmax of antidiagonally sampled tile logits, summed over blocks."""

def select_blocks(
    scores: Any,  # float32[B,H,QB,KB]
    thresholds: Any,  # float32[H]
    block: SupportsIndex,
    q_len: SupportsIndex,
    k_len: SupportsIndex,
    causal: bool,
    mask: Any,  # out bool[B,H,QB,KB]
) -> None:
    """The fewest blocks of every query block whose estimated mass reaches a share of the whole; sink and diagonal always."""

def block_sparse_attention(
    q: Any,  # float32[B,H,N,D]
    k: Any,  # float32[B,G,M,D]
    v: Any,  # float32[B,G,M,E]
    mask: Any,  # bool[B,H,QB,KB]
    block: SupportsIndex,
    scale: float,
    causal: bool,
    out: Any,  # out float32[B,H,N,E]
    lse: Any | None,  # out float32[B,H,N]
) -> None:
    """Softmax attention over the selected blocks only; grouped-query heads, right-aligned causal mask."""
