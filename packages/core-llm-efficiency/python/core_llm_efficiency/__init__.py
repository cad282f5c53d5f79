"""core-llm-efficiency: block-sparse attention for long prompts."""

from .xattention import block_density, block_sparse_attention, select_blocks, xattention, xattn_estimate

__all__ = ["block_density", "block_sparse_attention", "select_blocks", "xattention", "xattn_estimate"]
