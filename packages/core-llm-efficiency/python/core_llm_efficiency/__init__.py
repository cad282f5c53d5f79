"""core-llm-efficiency: block-sparse attention for long prompts, and state-space scans."""

from .state_space import mamba_chunk_scan_combined, selective_scan_fn
from .xattention import block_density, block_sparse_attention, select_blocks, xattention, xattn_estimate

__all__ = [
    "block_density",
    "block_sparse_attention",
    "mamba_chunk_scan_combined",
    "select_blocks",
    "selective_scan_fn",
    "xattention",
    "xattn_estimate",
]
