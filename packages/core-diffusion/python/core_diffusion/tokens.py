"""Count vectors of an image: patches, a codebook of them, and how often each code occurs."""

import numpy as np
from numpy.typing import NDArray

from .codebook import k_means, nearest_codes

PATCH = 16
"""Side of a patch in pixels."""


def patch_features(image: NDArray[np.uint8], step: int) -> NDArray[np.float32]:
    """Means of the 4x4 cells of the 16x16 patches at every `step` pixels (a multiple of 4), in raster order.

    image: uint8 [H, W, 3]; returns float32 [N, 48] in 0..1.
    """
    h, w = (n // 4 for n in image.shape[:2])
    cells = image[: 4 * h, : 4 * w].reshape(h, 4, w, 4, 3).mean((1, 3), dtype=np.float32) / 255
    patches = np.lib.stride_tricks.sliding_window_view(cells, (4, 4), (0, 1))[:: step // 4, :: step // 4]
    return patches.reshape(-1, 48)


def image_counts(image: NDArray[np.uint8], codes: int, tokens: int, seed: int) -> NDArray[np.int32]:
    """How often each code of a codebook of the image occurs in each run of `tokens` patches.

    image: uint8 [H, W, 3]; its 16x16 patches in raster order are cut into runs, a rest is dropped. The codebook
    is k-means over the first 12 principal components of all patches at every 4 pixels.
    Returns int32 [runs, codes], each row with sum `tokens`. ValueError if the image is too small.
    """
    everywhere, grid = patch_features(image, 4), patch_features(image, PATCH)
    runs = len(grid) // tokens
    if runs == 0 or len(everywhere) < codes:
        raise ValueError(
            f"an image of {image.shape[0]}x{image.shape[1]} pixels has {len(grid)} tokens and {len(everywhere)} "
            f"patches, fewer than {tokens} tokens or {codes} codes"
        )
    middle = everywhere.mean(0)
    _, vectors = np.linalg.eigh(np.cov((everywhere - middle).T))
    basis = vectors[:, :-13:-1].astype(np.float32)
    codebook = k_means((everywhere - middle) @ basis, codes, max_iter=4, random_state=seed).centroid
    label = nearest_codes((grid - middle) @ basis, codebook)[0][: runs * tokens].reshape(runs, tokens)
    counts = np.zeros((runs, codes), np.int32)
    np.add.at(counts, (np.arange(runs)[:, None], label), 1)
    return counts
