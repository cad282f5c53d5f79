"""The demo of core-splatting: a photograph and its disparity, seen from the other camera of the stereo pair."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from core_registry.demo import Demo, Picture

from . import _core_splatting as _C
from .novel_view import gaussians_from_disparity, psnr, render_right, right_camera, visible_in_right
from .reference.rasterize import rasterize_torch

# Of the packaged photographs (scikit-image's documentation); baseline in millimetres.
CALIBRATION = {"focal": 994.978, "centre": (311.693, 255.377), "baseline": 193.001, "offset": 31.086}
CROP = 128


def demo(out: Path) -> Demo:
    """Renders the right view of the Middlebury `motorcycle` pair from the left photograph."""
    import torch
    from PIL import Image
    from skimage import data

    left, right, disparity = data.stereo_motorcycle()
    left, right = left.astype(np.float32) / 255, right.astype(np.float32) / 255
    height, width = disparity.shape
    gaussians = gaussians_from_disparity(left, disparity, **CALIBRATION)
    view, _ = render_right(gaussians, width, height, **CALIBRATION)
    seen = visible_in_right(disparity)
    quality, unmoved = psnr(view, right, seen), psnr(left, right, seen)

    # The same work for both: the middle of the right view, one thread.
    viewmats, Ks = right_camera(**CALIBRATION)
    Ks[0, :2, 2] -= (width - CROP) // 2, (height - CROP) // 2
    args = {
        **{k: gaussians.get(k) for k in ("means", "quats", "scales", "covars", "opacities")},
        "colors": gaussians["colors"][None], "viewmats": viewmats, "Ks": Ks, "backgrounds": None,
        "near_plane": 0.01, "far_plane": 1e10, "radius_clip": 0.0, "eps2d": 0.1, "max_alpha": 0.999,
        "antialiased": False, "camera_model": "pinhole", "scenes": 1,
        "out_colors": np.empty((1, CROP, CROP, 3), np.float32), "out_alphas": np.empty((1, CROP, CROP), np.float32),
    }  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        start = time.process_time()
        theirs, _ = rasterize_torch(args)
        peers = time.process_time() - start
    finally:
        torch.set_num_threads(threads)
    ours = float("inf")
    for _ in range(3):
        start = time.process_time()
        _C.rasterize(*args.values(), None)
        ours = min(ours, time.process_time() - start)

    error = np.where(seen[..., None], np.abs(view - right), 0)
    strip = np.concatenate([left, view, right, np.clip(4 * error, 0, 1)], axis=1)
    picture = out / "motorcycle.png"
    Image.fromarray((strip * 255 + 0.5).astype(np.uint8)).save(picture)
    return Demo(
        what="3D Gaussians, forward",
        input=f"motorcycle stereo pair, {len(gaussians['means']):,} Gaussians; timed on {CROP}x{CROP}",
        ours=ours,
        peer="torch, padded tiles (CPU time)",
        peers=peers,
        difference=float(np.abs(theirs.numpy() - args["out_colors"]).mean()),
        tolerance=1e-4,
        pictures=[Picture("left, rendered right view, true right view, 4 x error where both cameras see", picture)],
        figures={"PSNR right view": f"{quality:.1f} dB", "PSNR of the left photograph instead": f"{unmoved:.1f} dB"},
    )
