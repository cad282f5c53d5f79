"""Pictures of block masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from core_registry.files import replace
from numpy.typing import NDArray

from .xattention import xattn_estimate


def draw_blocks(
    q: NDArray[np.float32], k: NDArray[np.float32], mask: NDArray[Any], head: int, path: Path, **options: Any
) -> None:
    """Writes one head's exact block masses (first item) beside its mask; options: block_size, scale, is_causal."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    group = head // (q.shape[1] // k.shape[1])
    exact, _ = xattn_estimate(q[:1, head : head + 1], k[:1, group : group + 1], stride=1, **options)
    share = exact[0, 0] / np.maximum(exact[0, 0].sum(1, keepdims=True), 1e-30)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 5), layout="constrained")
    left.imshow(np.log10(np.maximum(share, 1e-4)), cmap="magma", vmin=-4, vmax=0, interpolation="nearest")
    left.set(title=f"true attention mass of head {head}, log10", xlabel="key block", ylabel="query block")
    right.imshow(mask[0, head], cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
    right.set(title="blocks that are read", xlabel="key block")
    with replace(path) as temporary:
        figure.savefig(temporary, dpi=80)
    plt.close(figure)
