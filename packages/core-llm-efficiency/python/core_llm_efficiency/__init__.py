"""core-llm-efficiency: block-sparse attention for long prompts, a packed key/value cache, and state-space scans."""

from .state_space import mamba_chunk_scan_combined, selective_scan_fn
from .thresholds import allocate_adjustments, covering_thresholds, profile_thresholds, search_thresholds
from .varlen import xattention_padded, xattention_varlen
from .vidkv import (
    PackedKeys,
    PackedValues,
    pack_keys,
    pack_values,
    packed_attention,
    select_channels,
    unpack_keys,
    unpack_values,
)
from .xattention import block_density, block_sparse_attention, select_blocks, xattention, xattn_estimate

__all__ = [
    "PackedKeys",
    "PackedValues",
    "allocate_adjustments",
    "block_density",
    "block_sparse_attention",
    "covering_thresholds",
    "mamba_chunk_scan_combined",
    "pack_keys",
    "pack_values",
    "packed_attention",
    "profile_thresholds",
    "search_thresholds",
    "select_blocks",
    "select_channels",
    "selective_scan_fn",
    "unpack_keys",
    "unpack_values",
    "xattention",
    "xattention_padded",
    "xattention_varlen",
    "xattn_estimate",
]
