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

def block_sparse_attention_backward(
    q: Any,  # float32[B,H,N,D]
    k: Any,  # float32[B,G,M,D]
    v: Any,  # float32[B,G,M,E]
    mask: Any,  # bool[B,H,QB,KB]
    block: SupportsIndex,
    scale: float,
    causal: bool,
    out: Any,  # float32[B,H,N,E]
    lse: Any,  # float32[B,H,N]
    grad_out: Any,  # float32[B,H,N,E]
    grad_lse: Any | None,  # float32[B,H,N]
    grad_q: Any,  # out float32[B,H,N,D]
    grad_k: Any,  # out float32[B,G,M,D]
    grad_v: Any,  # out float32[B,G,M,E]
) -> None:
    """The gradients of block-sparse attention, its weights made again from the logarithm of the softmax denominator."""

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

def pack_keys(
    x: Any,  # float32[B,G,N,D]
    channels: Any,  # int32[B,D]
    group: SupportsIndex,
    planes: Any,  # out int32[B,G,T,P]
    scales: Any,  # out float16[B,G,S,D]
    zeros: Any,  # out float16[B,G,S,C]
) -> None:
    """Packs keys: chosen channels at two bits, the signs of the others' Fourier coefficients."""

def unpack_keys(
    channels: Any,  # int32[B,D]
    group: SupportsIndex,
    planes: Any,  # int32[B,G,T,P]
    scales: Any,  # float16[B,G,S,D]
    zeros: Any,  # float16[B,G,S,C]
    out: Any,  # out float32[B,G,N,D]
) -> None:
    """The keys that pack_keys stored, in float32."""

def pack_values(
    x: Any,  # float32[B,G,N,E]
    group: SupportsIndex,
    gamma: float,
    codes: Any,  # out uint8[B,G,N,W]
    scales: Any,  # out float16[B,G,S,E]
    zeros: Any | None,  # out float16[B,G,S,E]
) -> None:
    """Packs values at three levels, five to a byte, or at two bits."""

def unpack_values(
    group: SupportsIndex,
    codes: Any,  # uint8[B,G,N,W]
    scales: Any,  # float16[B,G,S,E]
    zeros: Any | None,  # float16[B,G,S,E]
    out: Any,  # out float32[B,G,N,E]
) -> None:
    """The values that pack_values stored, in float32."""

def packed_attention(
    q: Any,  # float32[B,H,D]
    channels: Any,  # int32[B,D]
    group: SupportsIndex,
    planes: Any,  # int32[B,G,T,P]
    scales: Any,  # float16[B,G,S,D]
    zeros: Any,  # float16[B,G,S,C]
    codes2: Any,  # uint8[B,G,V,W2]
    scales2: Any,  # float16[B,G,S2,E]
    zeros2: Any,  # float16[B,G,S2,E]
    codes3: Any,  # uint8[B,G,U,*]
    scales3: Any,  # float16[B,G,S3,E]
    recent_k: Any,  # float32[B,G,R,D]
    recent_v: Any,  # float32[B,G,R,E]
    seen: Any | None,  # bool[B,*]
    scale: float,
    out: Any,  # out float32[B,H,E]
) -> None:
    """Attention of one query a head over packed keys and values, read packed, and recent ones in float32."""
