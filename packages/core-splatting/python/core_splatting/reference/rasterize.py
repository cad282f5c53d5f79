"""References of the rasteriser: float64 numpy, Gaussian by Gaussian; and plain torch with padded tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]


def rotation_matrices(quats: Array) -> Array:
    """(N, 3, 3) of (N, 4) quaternions w, x, y, z; NaN for a zero quaternion."""
    with np.errstate(all="ignore"):
        w, x, y, z = (quats / np.linalg.norm(quats, axis=-1, keepdims=True)).T
    rows = [
        [w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def project(
    means: Array, quats: Array, scales: Array, viewmat: Array, K: Array, width: int, height: int, eps2d: float
) -> tuple[Array, Array, Array]:
    """Centres (N, 2) in pixels, covariances (N, 2, 2) in square pixels and depths (N,) of one camera, float64."""
    with np.errstate(all="ignore"):
        world = rotation_matrices(quats) * scales[:, None, :]
        world = world @ world.transpose(0, 2, 1)
        x, y, z = (means @ viewmat[:3, :3].T + viewmat[:3, 3]).T
        fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
        # A Gaussian far outside the image gets the Jacobian of the border (plus 15 % of the image).
        u = np.clip(x / z, (0 - cx - 0.15 * width) / fx, (width - cx + 0.15 * width) / fx)
        v = np.clip(y / z, (0 - cy - 0.15 * height) / fy, (height - cy + 0.15 * height) / fy)
        zero = np.zeros_like(z)
        jacobian = np.array([[fx / z, zero, -fx * u / z], [zero, fy / z, -fy * v / z]]).transpose(2, 0, 1)
        map_ = jacobian @ viewmat[:3, :3]
        covariance = map_ @ world @ map_.transpose(0, 2, 1) + eps2d * np.eye(2)
        return np.stack([fx * x / z + cx, fy * y / z + cy], -1), covariance, z


def rasterize(args: dict[str, Any]) -> dict[str, Array]:
    """The raw operator's outputs in float64, each Gaussian over all pixels, in the order of depth."""
    f64 = {
        k: np.asarray(v, np.float64) for k, v in args.items() if isinstance(v, np.ndarray) and not k.startswith("out")
    }
    cameras, height, width, channels = args["out_colors"].shape
    colors = np.broadcast_to(f64["colors"], (cameras, *f64["colors"].shape[1:]))
    out_colors, out_alphas = np.zeros((cameras, height, width, channels)), np.zeros((cameras, height, width))
    px, py = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    opacities = f64["opacities"]
    for c in range(cameras):
        centres, covariances, depths = project(
            f64["means"], f64["quats"], f64["scales"], f64["viewmats"][c], f64["Ks"][c], width, height, args["eps2d"]
        )
        with np.errstate(all="ignore"):
            determinants = np.linalg.det(covariances)
            extent = np.minimum(3.33, np.sqrt(2 * np.log(255 * opacities)))
            radii = np.ceil(extent[:, None] * np.sqrt(covariances[:, [0, 1], [0, 1]]))
            visible = (
                (depths >= args["near_plane"]) & (depths <= args["far_plane"]) & (opacities > 1 / 255)
                & (determinants > 0)
                & (radii > args["radius_clip"]).any(-1)
                & np.isfinite(centres).all(-1) & np.isfinite(covariances).all((-1, -2)) & np.isfinite(opacities)
            )  # fmt: skip
        chosen = np.flatnonzero(visible)
        left, finished = np.ones((height, width)), np.zeros((height, width), bool)
        for i in chosen[np.argsort(depths[chosen], kind="stable")]:
            (a, b), (_, d) = np.linalg.inv(covariances[i])
            dx, dy = px - centres[i, 0], py - centres[i, 1]
            sigma = 0.5 * (a * dx * dx + d * dy * dy) + b * dx * dy
            alpha = np.minimum(args["max_alpha"], opacities[i] * np.exp(-sigma))
            touched = ~finished & (alpha >= 1 / 255) & (sigma <= 0.5 * 3.33**2)
            after = left * (1 - alpha)
            finished |= touched & (after <= 1e-4)
            touched &= ~finished
            out_colors[c] += np.where(touched, alpha * left, 0)[..., None] * colors[c, i]
            left = np.where(touched, after, left)
        out_alphas[c] = 1 - left
        if args["backgrounds"] is not None:
            out_colors[c] += left[..., None] * f64["backgrounds"][c]
    return {"out_colors": out_colors, "out_alphas": out_alphas}


def rasterize_backward(args: dict[str, Any]) -> dict[str, Array]:
    """The gradient in float64: blending with a kept list for each pixel and the inverse covariance as the parameter;
    the projection's Jacobian by central differences."""
    f64 = {k: np.asarray(v, np.float64) for k, v in args.items() if isinstance(v, np.ndarray)}
    cameras, height, width, _ = args["image"].shape
    count = len(f64["means"])
    colors = np.broadcast_to(f64["colors"], (cameras, *f64["colors"].shape[1:]))
    out = {k: np.zeros(v.shape) for k, v in args.items() if k.startswith("v_") and k not in ("v_image", "v_alphas")}
    px, py = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    for c in range(cameras):
        K = f64["Ks"][c]
        inputs = np.concatenate(
            [f64["means"], f64["quats"], f64["scales"], np.tile(f64["viewmats"][c, :3].reshape(12), (count, 1))], 1
        )

        def projected(x: Array, K: Array = K) -> Array:
            """(N, 5): centre and covariance (xx, xy, yy) for one camera per Gaussian."""
            views = np.zeros((len(x), 4, 4))
            views[:, :3] = x[:, 10:].reshape(-1, 3, 4)
            rows = [
                project(x[i : i + 1, :3], x[i : i + 1, 3:7], x[i : i + 1, 7:10], views[i], K, width, height,
                        args["eps2d"])
                for i in range(len(x))
            ]  # fmt: skip
            return np.array([[*centre[0], cov[0, 0, 0], cov[0, 0, 1], cov[0, 1, 1]] for centre, cov, _ in rows])

        if count == 0 or height * width == 0:
            continue
        now = projected(inputs)
        depths = f64["means"] @ f64["viewmats"][c, 2, :3] + f64["viewmats"][c, 2, 3]
        opacities = f64["opacities"]
        with np.errstate(all="ignore"):
            reach = np.minimum(3.33, np.sqrt(2 * np.log(255 * opacities)))
            radii = np.ceil(reach[:, None] * np.sqrt(now[:, [2, 4]]))
            visible = (
                (depths >= args["near_plane"]) & (depths <= args["far_plane"]) & (opacities > 1 / 255)
                & (radii > args["radius_clip"]).any(-1) & np.isfinite(now).all(-1)
            )  # fmt: skip
        order = np.flatnonzero(visible)
        order = order[np.argsort(depths[order], kind="stable")]
        blended: list[tuple[int, Array, Array, Array, Array]] = []
        left, finished = np.ones((height, width)), np.zeros((height, width), bool)
        for i in order:
            inverse = np.linalg.inv([[now[i, 2], now[i, 3]], [now[i, 3], now[i, 4]]])
            offset = np.stack([px - now[i, 0], py - now[i, 1]], -1)
            pull = offset @ inverse
            sigma = 0.5 * (pull * offset).sum(-1)
            raw = opacities[i] * np.exp(-sigma)
            alpha = np.minimum(args["max_alpha"], raw)
            touched = ~finished & (alpha >= 1 / 255) & (sigma <= 0.5 * 3.33**2)
            finished |= touched & (left * (1 - alpha) <= 1e-4)
            alpha = np.where(touched & ~finished, alpha, 0)
            blended.append((i, alpha, left, raw <= args["max_alpha"], pull))
            left = left * (1 - alpha)
        v_image, v_alphas = f64["v_image"][c], f64["v_alphas"][c]
        total = (v_image * f64["image"][c]).sum(-1)
        front = sum(
            (alpha * before * (v_image @ colors[c, i]) for i, alpha, before, *_ in blended), np.zeros((height, width))
        )
        behind = total - front - left * v_alphas  # what the background adds, and alpha takes
        v_projected = np.zeros((count, 5))
        for i, alpha, before, free, pull in reversed(blended):
            shade = v_image @ colors[c, i]
            v_alpha = before * shade - behind / (1 - alpha)
            behind = behind + alpha * before * shade
            out["v_colors"][c if len(out["v_colors"]) > 1 else 0, i] += np.einsum("hw,hwd->d", alpha * before, v_image)
            v_log = np.where(free, v_alpha * alpha, 0)
            out["v_opacities"][i] += v_log.sum() / opacities[i]
            v_centre = v_log[..., None] * pull
            v_projected[i, :2] = v_centre.sum((0, 1))
            v_covariance = 0.5 * np.einsum("hw,hwi,hwj->ij", v_log, pull, pull)
            v_projected[i, 2:] = v_covariance[0, 0], 2 * v_covariance[0, 1], v_covariance[1, 1]
            out["v_means2d"][c, i] = *v_projected[i, :2], *np.abs(v_centre).sum((0, 1))
        for k in range(22):
            step = 1e-6 * np.maximum(1e-2, np.abs(inputs[order, k]))
            above, below = inputs[order].copy(), inputs[order].copy()
            above[:, k] += step
            below[:, k] -= step
            if not len(order):
                break
            slope = (projected(above) - projected(below)) / (2 * step[:, None])
            v = (slope * v_projected[order]).sum(-1)
            if k < 3:
                out["v_means"][order, k] += v
            elif k < 7:
                out["v_quats"][order, k - 3] += v
            elif k < 10:
                out["v_scales"][order, k - 7] += v
            else:
                out["v_viewmats"][c, (k - 10) // 4, (k - 10) % 4] = v.sum()
    return out


def rasterize_torch(args: dict[str, Any], tiles_at_once: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """The raw operator in plain torch, as reference rasterisers of the field do it: float32, tiles of 16x16 pixels,
    the Gaussians of each tile padded to the longest list of its batch, transmittance as a cumulative product.

    Culling is by the bounding box of each ellipse; all else as in `rasterize`. Returns colours (C, H, W, D) and
    alphas (C, H, W).
    """
    import torch

    t = {k: torch.as_tensor(v) for k, v in args.items() if isinstance(v, np.ndarray)}
    cameras, height, width, channels = args["out_colors"].shape
    tiles_x, tiles_y = -(-width // 16), -(-height // 16)
    images, alphas = [], []
    for c in range(cameras):
        view, K = t["viewmats"][c], t["Ks"][c]
        w, x, y, z = torch.nn.functional.normalize(t["quats"], dim=-1).unbind(-1)
        rotation = torch.stack(
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
             2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
             2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1,
        ).view(-1, 3, 3)  # fmt: skip
        x, y, z = (t["means"] @ view[:3, :3].T + view[:3, 3]).unbind(-1)
        fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
        u = torch.clamp(x / z, float((-cx - 0.15 * width) / fx), float((1.15 * width - cx) / fx))
        v = torch.clamp(y / z, float((-cy - 0.15 * height) / fy), float((1.15 * height - cy) / fy))
        zero = torch.zeros_like(z)
        jacobian = torch.stack([fx / z, zero, -fx * u / z, zero, fy / z, -fy * v / z], -1).view(-1, 2, 3)
        m = jacobian @ view[:3, :3] @ (rotation * t["scales"][:, None, :])
        covariance = m @ m.transpose(1, 2) + args["eps2d"] * torch.eye(2)
        cxx, cxy, cyy = covariance[:, 0, 0], covariance[:, 0, 1], covariance[:, 1, 1]
        det = cxx * cyy - cxy * cxy
        mx, my = fx * x / z + cx, fy * y / z + cy
        extent = torch.sqrt(2 * torch.log(255 * t["opacities"].clamp_min(1 / 255))).clamp_max(3.33)
        rx, ry = extent * cxx.sqrt(), extent * cyy.sqrt()
        keep = (
            (z >= args["near_plane"]) & (z <= args["far_plane"]) & (t["opacities"] > 1 / 255) & (det > 0)
            & ((rx.ceil() > args["radius_clip"]) | (ry.ceil() > args["radius_clip"]))
        )  # fmt: skip
        order = torch.nonzero(keep)[:, 0]
        order = order[torch.argsort(z[order], stable=True)]
        x0, x1 = ((mx - rx)[order] / 16).floor().clamp(0, tiles_x), ((mx + rx)[order] / 16).ceil().clamp(0, tiles_x)
        y0, y1 = ((my - ry)[order] / 16).floor().clamp(0, tiles_y), ((my + ry)[order] / 16).ceil().clamp(0, tiles_y)
        counts = ((x1 - x0) * (y1 - y0)).long()
        who = torch.repeat_interleave(torch.arange(len(order)), counts)
        inside = torch.arange(len(who)) - (counts.cumsum(0) - counts)[who]
        wide = (x1 - x0).long()[who]
        tile = ((y0.long()[who] + inside // wide.clamp_min(1)) * tiles_x) + x0.long()[who] + inside % wide.clamp_min(1)
        tile, by_tile = torch.sort(tile, stable=True)
        pairs = order[who[by_tile]]
        lengths = torch.bincount(tile, minlength=tiles_x * tiles_y)
        starts = lengths.cumsum(0) - lengths

        params = torch.stack([mx, my, cyy / det, -cxy / det, cxx / det, t["opacities"]], -1)
        color = t["colors"][0 if len(t["colors"]) == 1 else c]
        rgb, alpha_out = torch.zeros(tiles_x * tiles_y, 256, channels), torch.zeros(tiles_x * tiles_y, 256)
        by_length = torch.argsort(lengths)
        pixel = torch.arange(256)
        for part in by_length[lengths[by_length] > 0].split(tiles_at_once):
            most = int(lengths[part].max())
            slot = torch.arange(most)
            valid = slot < lengths[part, None]
            ids = pairs[(starts[part, None] + slot).clamp_max(len(pairs) - 1)]
            p = params[ids][:, None]
            dx = (part % tiles_x * 16)[:, None, None] + (pixel % 16)[:, None] + 0.5 - p[..., 0]
            dy = (part // tiles_x * 16)[:, None, None] + (pixel // 16)[:, None] + 0.5 - p[..., 1]
            sigma = 0.5 * (p[..., 2] * dx * dx + p[..., 4] * dy * dy) + p[..., 3] * dx * dy
            alpha = (p[..., 5] * torch.exp(-sigma)).clamp_max(args["max_alpha"])
            alpha = torch.where(
                valid[:, None] & (alpha >= 1 / 255) & (sigma <= 0.5 * 3.33**2) & (sigma >= 0), alpha, 0.0
            )
            after = torch.cumprod(1 - alpha, -1)
            before = torch.cat([torch.ones_like(after[..., :1]), after[..., :-1]], -1)
            weight = torch.where(after > 1e-4, alpha * before, 0.0)
            rgb[part] = weight @ color[ids]
            alpha_out[part] = weight.sum(-1)
        rgb = rgb.view(tiles_y, tiles_x, 16, 16, channels).transpose(1, 2).reshape(tiles_y * 16, tiles_x * 16, channels)
        alpha_image = alpha_out.view(tiles_y, tiles_x, 16, 16).transpose(1, 2).reshape(tiles_y * 16, tiles_x * 16)
        image, alpha_image = rgb[:height, :width], alpha_image[:height, :width]
        if args["backgrounds"] is not None:
            image = image + (1 - alpha_image)[..., None] * t["backgrounds"][c]
        images.append(image)
        alphas.append(alpha_image)
    return torch.stack(images), torch.stack(alphas)
