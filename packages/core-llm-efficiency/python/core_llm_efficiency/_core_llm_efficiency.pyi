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

def selective_scan(
    u: Any,  # float32[b,d,l]
    delta: Any,  # float32[b,d,l]
    A: Any,  # float32[d,n]
    B: Any,  # float32[b,g,n,l]
    C: Any,  # float32[b,g,n,l]
    initial_state: Any | None,  # float32[b,d,n]
    out: Any,  # out float32[b,d,l]
    last_state: Any,  # out float32[b,d,n]
) -> None:
    """Mamba-1's selective scan with carried state."""

def selective_scan_backward(
    u: Any,  # float32[b,d,l]
    delta: Any,  # float32[b,d,l]
    A: Any,  # float32[d,n]
    B: Any,  # float32[b,g,n,l]
    C: Any,  # float32[b,g,n,l]
    initial_state: Any | None,  # float32[b,d,n]
    grad_out: Any,  # float32[b,d,l]
    grad_last_state: Any | None,  # float32[b,d,n]
    grad_u: Any,  # out float32[b,d,l]
    grad_delta: Any,  # out float32[b,d,l]
    grad_A: Any,  # out float32[d,n]
    grad_B: Any,  # out float32[b,g,n,l]
    grad_C: Any,  # out float32[b,g,n,l]
    grad_initial_state: Any,  # out float32[b,d,n]
) -> None:
    """The gradients of Mamba-1's selective scan."""

def ssd_scan(
    x: Any,  # float32[b,l,h,p]
    dt: Any,  # float32[b,l,h]
    A: Any,  # float32[h]
    B: Any,  # float32[b,l,g,n]
    C: Any,  # float32[b,l,g,n]
    initial_states: Any | None,  # float32[b,h,p,n]
    seq_idx: Any | None,  # int32[b,l]
    out: Any,  # out float32[b,l,h,p]
    final_states: Any,  # out float32[b,h,p,n]
) -> None:
    """Mamba-2's scan (SSD) with carried state, by chunks."""

def ssd_scan_backward(
    x: Any,  # float32[b,l,h,p]
    dt: Any,  # float32[b,l,h]
    A: Any,  # float32[h]
    B: Any,  # float32[b,l,g,n]
    C: Any,  # float32[b,l,g,n]
    initial_states: Any | None,  # float32[b,h,p,n]
    seq_idx: Any | None,  # int32[b,l]
    grad_out: Any,  # float32[b,l,h,p]
    grad_final_states: Any | None,  # float32[b,h,p,n]
    grad_x: Any,  # out float32[b,l,h,p]
    grad_dt: Any,  # out float32[b,l,h]
    grad_A: Any,  # out float32[h]
    grad_B: Any,  # out float32[b,l,g,n]
    grad_C: Any,  # out float32[b,l,g,n]
    grad_initial_states: Any,  # out float32[b,h,p,n]
) -> None:
    """The gradients of Mamba-2's scan."""
