# Made by `core stubs core_splatting`.
from typing import Any

def rasterize(
    means: Any,  # float32[N,3]
    quats: Any,  # float32[N,4]
    scales: Any,  # float32[N,3]
    opacities: Any,  # float32[N]
    colors: Any,  # float32[*,N,D]
    viewmats: Any,  # float32[C,4,4]
    Ks: Any,  # float32[C,3,3]
    backgrounds: Any | None,  # float32[C,D]
    near_plane: float,
    far_plane: float,
    radius_clip: float,
    eps2d: float,
    max_alpha: float,
    out_colors: Any,  # out float32[C,H,W,D]
    out_alphas: Any,  # out float32[C,H,W]
) -> None:
    """Renders 3D Gaussians into pinhole cameras: projection, exact tile culling, one sort by depth, blending front to back."""

def rasterize_backward(
    means: Any,  # float32[N,3]
    quats: Any,  # float32[N,4]
    scales: Any,  # float32[N,3]
    opacities: Any,  # float32[N]
    colors: Any,  # float32[*,N,D]
    viewmats: Any,  # float32[C,4,4]
    Ks: Any,  # float32[C,3,3]
    near_plane: float,
    far_plane: float,
    radius_clip: float,
    eps2d: float,
    max_alpha: float,
    image: Any,  # float32[C,H,W,D]
    alphas: Any,  # float32[C,H,W]
    v_image: Any,  # float32[C,H,W,D]
    v_alphas: Any,  # float32[C,H,W]
    v_means: Any,  # out float32[N,3]
    v_quats: Any,  # out float32[N,4]
    v_scales: Any,  # out float32[N,3]
    v_opacities: Any,  # out float32[N]
    v_colors: Any,  # out float32[*,N,D]
    v_viewmats: Any,  # out float32[C,4,4]
    v_means2d: Any,  # out float32[C,N,4]
) -> None:
    """The gradient of rasterize by Gaussians, colours, cameras and projected centres."""

def ssim(
    image: Any,  # float32[B,C,H,W]
    target: Any,  # float32[B,C,H,W]
    out: Any,  # out float32[B,C,H,W]
    partials: Any | None,  # out float32[3,B,C,H,W]
) -> None:
    """The structural similarity of two images at each pixel, 11x11 Gaussian window, and its partial derivatives."""

def ssim_backward(
    image: Any,  # float32[B,C,H,W]
    target: Any,  # float32[B,C,H,W]
    partials: Any,  # float32[3,B,C,H,W]
    v_out: Any,  # float32[B,C,H,W]
    v_image: Any,  # out float32[B,C,H,W]
) -> None:
    """The gradient of ssim by the image."""

def selective_adam(
    param: Any,  # out float32[N,K]
    grad: Any,  # float32[N,K]
    exp_avg: Any,  # out float32[N,K]
    exp_avg_sq: Any,  # out float32[N,K]
    steps: Any,  # out int32[N]
    visible: Any,  # bool[N]
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """One step of Adam on the rows that are visible, with a count of steps for each row."""
