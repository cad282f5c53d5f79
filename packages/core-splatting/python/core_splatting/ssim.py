"""The structural similarity of images, for losses and evaluation."""

from __future__ import annotations

from typing import Any

from core_registry.arrays import as_array, empty, is_torch

from . import _core_splatting as _C


def ssim(image: Any, target: Any) -> Any:
    """Structural similarity at each pixel (Wang et al. 2004) as 3D Gaussian splatting uses it (arXiv 2308.04079):
    11x11 Gaussian window of deviation 1.5, zeros outside the image, C1 = 0.01^2, C2 = 0.03^2.

    Its mean is what fused-ssim's `fused_ssim(img1, img2, padding="same")` gives; the loss is 1 - mean.

    Args:
        image, target: (B, C, H, W) float32, values about [0, 1]; views in any memory order. A torch tensor `image` that
            requires grad gets one; `target` must not require grad.

    Returns:
        (B, C, H, W) float32 in [-1, 1], of the kind of `image`.

    Raises:
        TypeError: another dtype. ValueError: shapes that differ. NotImplementedError: a target that requires grad.
    """
    image = as_array(image, "float32", "image")
    target = as_array(target, "float32", "target", like=image)
    if is_torch(image):
        from .train_ops import ssim as op

        return op(image, target)[0]
    out = empty(image.shape, "float32", like=image)
    _C.ssim(image, target, out, None)
    return out
