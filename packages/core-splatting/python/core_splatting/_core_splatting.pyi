# Made by `core stubs core_splatting`.
from typing import Any, SupportsIndex

def rasterize(
    means: Any,  # float32[N,3]
    quats: Any | None,  # float32[N,4]
    scales: Any | None,  # float32[N,3]
    covars: Any | None,  # float32[N,6]
    opacities: Any,  # float32[N]
    colors: Any,  # float32[*,*,D]
    viewmats: Any,  # float32[C,4,4]
    Ks: Any,  # float32[C,3,3]
    backgrounds: Any | None,  # float32[C,D]
    near_plane: float,
    far_plane: float,
    radius_clip: float,
    eps2d: float,
    max_alpha: float,
    antialiased: bool,
    camera_model: str,
    scenes: SupportsIndex,
    out_colors: Any,  # out float32[C,H,W,D]
    out_alphas: Any,  # out float32[C,H,W]
    workspace: Any | None,  # out int32[S]
) -> None:
    """Renders 3D Gaussians into cameras: projection, exact tile culling, one sort by depth, blending front to back."""

def rasterize_backward(
    means: Any,  # float32[N,3]
    quats: Any | None,  # float32[N,4]
    scales: Any | None,  # float32[N,3]
    covars: Any | None,  # float32[N,6]
    opacities: Any,  # float32[N]
    colors: Any,  # float32[*,*,D]
    viewmats: Any,  # float32[C,4,4]
    Ks: Any,  # float32[C,3,3]
    near_plane: float,
    far_plane: float,
    radius_clip: float,
    eps2d: float,
    max_alpha: float,
    antialiased: bool,
    camera_model: str,
    scenes: SupportsIndex,
    image: Any,  # float32[C,H,W,D]
    alphas: Any,  # float32[C,H,W]
    v_image: Any,  # float32[C,H,W,D]
    v_alphas: Any | None,  # float32[C,H,W]
    workspace: Any | None,  # int32[S]
    deterministic: bool,
    v_means: Any,  # out float32[N,3]
    v_quats: Any | None,  # out float32[N,4]
    v_scales: Any | None,  # out float32[N,3]
    v_covars: Any | None,  # out float32[N,6]
    v_opacities: Any,  # out float32[N]
    v_colors: Any,  # out float32[*,*,D]
    v_viewmats: Any | None,  # out float32[C,4,4]
    v_means2d: Any | None,  # out float32[C,*,*]
) -> None:
    """The gradient of rasterize by Gaussians, colours, cameras and projected centres."""

def rasterize_workspace(
    cameras: SupportsIndex,
    gaussians: SupportsIndex,
    width: SupportsIndex,
    height: SupportsIndex,
    device: SupportsIndex,
    out: Any,  # out int64[1]
) -> None:
    """The size that the workspace of rasterize should have."""

def contributions(
    means: Any,  # float32[N,3]
    quats: Any | None,  # float32[N,4]
    scales: Any | None,  # float32[N,3]
    covars: Any | None,  # float32[N,6]
    opacities: Any,  # float32[N]
    viewmats: Any,  # float32[C,4,4]
    Ks: Any,  # float32[C,3,3]
    pixels: Any,  # float32[C,H,W]
    near_plane: float,
    far_plane: float,
    radius_clip: float,
    eps2d: float,
    max_alpha: float,
    antialiased: bool,
    camera_model: str,
    scenes: SupportsIndex,
    out: Any,  # out float32[C,R]
) -> None:
    """How much each Gaussian contributes to the pixels of each camera: the sum of its blending weights."""

def project_gaussians(
    means: Any,  # float32[N,3]
    quats: Any | None,  # float32[N,4]
    scales: Any | None,  # float32[N,3]
    covars: Any | None,  # float32[N,6]
    opacities: Any,  # float32[N]
    viewmats: Any,  # float32[C,4,4]
    Ks: Any,  # float32[C,3,3]
    width: SupportsIndex,
    height: SupportsIndex,
    near_plane: float,
    far_plane: float,
    radius_clip: float,
    eps2d: float,
    antialiased: bool,
    camera_model: str,
    scenes: SupportsIndex,
    means2d: Any,  # out float32[C,R,2]
    radii: Any,  # out int32[C,R,2]
    depths: Any,  # out float32[C,R]
    conics: Any,  # out float32[C,R,3]
    weights: Any,  # out float32[C,R]
) -> None:
    """What rasterize makes of each Gaussian in each camera: centre, radii, depth, conic and opacity."""

def spherical_harmonics(
    degree: SupportsIndex,
    time_degree: SupportsIndex,
    dirs: Any,  # float32[N,3]
    coeffs: Any,  # float32[*,*,K,D]
    viewmats: Any | None,  # float32[C,4,4]
    phases: Any | None,  # float32[N]
    masks: Any | None,  # bool[C,R]
    as_color: bool,
    scenes: SupportsIndex,
    out: Any,  # out float32[C,R,D]
) -> None:
    """Colours by direction: real spherical harmonics to degree 3, times a cosine series in time."""

def spherical_harmonics_backward(
    degree: SupportsIndex,
    time_degree: SupportsIndex,
    dirs: Any,  # float32[N,3]
    coeffs: Any,  # float32[*,*,K,D]
    viewmats: Any | None,  # float32[C,4,4]
    phases: Any | None,  # float32[N]
    masks: Any | None,  # bool[C,R]
    as_color: bool,
    scenes: SupportsIndex,
    v_out: Any,  # float32[C,R,D]
    v_dirs: Any,  # out float32[N,3]
    v_coeffs: Any,  # out float32[*,*,K,D]
    v_viewmats: Any,  # out float32[C,4,4]
    v_phases: Any,  # out float32[N]
) -> None:
    """The gradient of spherical_harmonics by directions, coefficients, cameras and phases."""

def slice_4d(
    means: Any,  # float32[N,4]
    scales: Any,  # float32[N,4]
    quats_l: Any,  # float32[N,4]
    quats_r: Any,  # float32[N,4]
    opacities: Any,  # float32[N]
    indices: Any | None,  # int64[M]
    time: float,
    min_weight: float,
    prefilter_var: float,
    out_means: Any,  # out float32[M,3]
    out_covars: Any,  # out float32[M,6]
    out_opacities: Any,  # out float32[M]
    out_weights: Any,  # out float32[M]
) -> None:
    """The 3D Gaussians that 4D Gaussians are at a time: conditional mean and covariance, opacity times temporal weight."""

def slice_4d_backward(
    means: Any,  # float32[N,4]
    scales: Any,  # float32[N,4]
    quats_l: Any,  # float32[N,4]
    quats_r: Any,  # float32[N,4]
    opacities: Any,  # float32[N]
    indices: Any | None,  # int64[M]
    time: float,
    min_weight: float,
    prefilter_var: float,
    v_out_means: Any,  # float32[M,3]
    v_out_covars: Any,  # float32[M,6]
    v_out_opacities: Any,  # float32[M]
    v_means: Any,  # out float32[N,4]
    v_scales: Any,  # out float32[N,4]
    v_quats_l: Any,  # out float32[N,4]
    v_quats_r: Any,  # out float32[N,4]
    v_opacities: Any,  # out float32[N]
) -> None:
    """The gradient of slice_4d by the 4D Gaussians."""

def rasterize_4d(
    means: Any,  # float32[N,4]
    scales: Any,  # float32[N,4]
    quats_l: Any,  # float32[N,4]
    quats_r: Any,  # float32[N,4]
    opacities: Any,  # float32[N]
    indices: Any | None,  # int64[M]
    time: float,
    min_weight: float,
    prefilter_var: float,
    colors: Any | None,  # float32[*,*,D]
    coeffs: Any | None,  # float32[N,K,D]
    degree: SupportsIndex,
    time_degree: SupportsIndex,
    duration: float,
    depth: bool,
    viewmats: Any,  # float32[C,4,4]
    Ks: Any,  # float32[C,3,3]
    backgrounds: Any | None,  # float32[C,E]
    near_plane: float,
    far_plane: float,
    radius_clip: float,
    eps2d: float,
    max_alpha: float,
    antialiased: bool,
    camera_model: str,
    out_colors: Any,  # out float32[C,H,W,E]
    out_alphas: Any,  # out float32[C,H,W]
    seen: Any | None,  # out float32[C,R,E]
    workspace: Any | None,  # out int32[S]
) -> None:
    """Renders 4D Gaussians at a time into cameras: sliced where they are projected, coloured where they are seen."""

def rasterize_4d_backward(
    means: Any,  # float32[N,4]
    scales: Any,  # float32[N,4]
    quats_l: Any,  # float32[N,4]
    quats_r: Any,  # float32[N,4]
    opacities: Any,  # float32[N]
    indices: Any | None,  # int64[M]
    time: float,
    min_weight: float,
    prefilter_var: float,
    colors: Any,  # float32[*,*,E]
    coeffs: Any | None,  # float32[N,K,D]
    degree: SupportsIndex,
    time_degree: SupportsIndex,
    duration: float,
    depth: bool,
    viewmats: Any,  # float32[C,4,4]
    Ks: Any,  # float32[C,3,3]
    near_plane: float,
    far_plane: float,
    radius_clip: float,
    eps2d: float,
    max_alpha: float,
    antialiased: bool,
    camera_model: str,
    image: Any,  # float32[C,H,W,E]
    alphas: Any,  # float32[C,H,W]
    v_image: Any,  # float32[C,H,W,E]
    v_alphas: Any | None,  # float32[C,H,W]
    workspace: Any | None,  # int32[S]
    deterministic: bool,
    v_means: Any,  # out float32[N,4]
    v_scales: Any,  # out float32[N,4]
    v_quats_l: Any,  # out float32[N,4]
    v_quats_r: Any,  # out float32[N,4]
    v_opacities: Any,  # out float32[N]
    v_colors: Any | None,  # out float32[*,*,D]
    v_coeffs: Any | None,  # out float32[N,K,D]
    v_viewmats: Any | None,  # out float32[C,4,4]
    v_means2d: Any | None,  # out float32[C,*,*]
) -> None:
    """The gradient of rasterize_4d by 4D Gaussians, colours or harmonics, cameras and projected centres."""

def temporal_variation(
    means: Any,  # float32[N,4]
    scales: Any,  # float32[N,4]
    quats_l: Any,  # float32[N,4]
    quats_r: Any,  # float32[N,4]
    times: Any,  # float32[T]
    out: Any,  # out float32[N]
) -> None:
    """How little each 4D Gaussian's temporal weight curves, summed over times: the temporal part of the variation score."""

def memory_attention(
    queries: Any,  # float32[P,L]
    keys: Any,  # float32[T,L]
    values: Any,  # float32[T,D]
    out: Any,  # out float32[P,D]
    log_sums: Any,  # out float32[P]
) -> None:
    """The values that queries call back: softmax of their products with keys, times values; the weights never exist at once."""

def memory_attention_backward(
    queries: Any,  # float32[P,L]
    keys: Any,  # float32[T,L]
    values: Any,  # float32[T,D]
    out: Any,  # float32[P,D]
    log_sums: Any,  # float32[P]
    v_out: Any,  # float32[P,D]
    v_queries: Any,  # out float32[P,L]
    v_keys: Any,  # out float32[T,L]
    v_values: Any | None,  # out float32[T,D]
) -> None:
    """The gradient of memory_attention by queries, keys and values."""

def principal_components(
    features: Any,  # float32[N,D]
    threshold: float,
    selected: Any,  # out bool[N]
) -> None:
    """The rows that stand for all: visited in order, each that is near no taken row takes those near it."""

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
    rates: Any | None,  # float32[K]
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """One step of Adam on the rows that are visible, with a count of steps for each row."""
