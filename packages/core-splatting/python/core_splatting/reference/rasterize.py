"""References of the rasteriser: float64 numpy, Gaussian by Gaussian; and plain torch with padded tiles."""

from __future__ import annotations

import functools
from collections.abc import Callable
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


def covariances_of(args: dict[str, Any]) -> Array:
    """(N, 3, 3) float64, of the quats and scales or the six covars of an operator's arguments."""
    if args["covars"] is not None:
        return np.asarray(args["covars"], np.float64)[:, [[0, 1, 2], [1, 3, 4], [2, 4, 5]]]
    with np.errstate(all="ignore"):
        factor = (
            rotation_matrices(np.asarray(args["quats"], np.float64))
            * np.asarray(args["scales"], np.float64)[:, None, :]
        )
        product: Array = factor @ factor.transpose(0, 2, 1)
    return product


def place(points: Array, K: Array, model: str) -> Array:
    """(..., 2) pixels of points (..., 3) in the camera's coordinates."""
    x, y, z = np.moveaxis(points, -1, 0)
    if model == "pinhole":
        x, y = x / z, y / z
    elif model == "fisheye":
        rho = np.hypot(x, y)
        factor = np.where(rho > 0, np.arctan2(rho, z) / np.where(rho > 0, rho, 1), 1 / z)
        x, y = factor * x, factor * y
    return np.stack([K[0, 0] * x + K[0, 2], K[1, 1] * y + K[1, 2]], -1)


def project(
    means: Array, world: Array, viewmat: Array, K: Array, width: int, height: int, eps2d: float, model: str = "pinhole"
) -> tuple[Array, Array, Array, Array]:
    """Centres (N, 2) in pixels, covariances (N, 2, 2) in square pixels, depths (N,) and the square roots (N,) of what
    the determinant was before eps2d to what it is after; of one camera, float64. `world` are covariances (N, 3, 3)."""
    with np.errstate(all="ignore"):
        points = means @ viewmat[:3, :3].T + viewmat[:3, 3]
        at = points.copy()
        if model == "pinhole":  # a Gaussian far outside gets the Jacobian of the border (plus 15 % of the image)
            for axis, size in enumerate((width, height)):
                f, c = K[axis, axis], K[axis, 2]
                at[:, axis] = at[:, 2] * np.clip(
                    at[:, axis] / at[:, 2], (-c - 0.15 * size) / f, (size - c + 0.15 * size) / f
                )
        step = 2e-3 * np.abs(at[:, 2])
        columns = []
        for k in range(3):  # fourth order differences
            moved = np.zeros_like(at)
            moved[:, k] = step
            near = place(at + moved, K, model) - place(at - moved, K, model)
            far = place(at + 2 * moved, K, model) - place(at - 2 * moved, K, model)
            columns.append((8 * near - far) / (12 * step[:, None]))
        map_ = np.stack(columns, -1) @ viewmat[:3, :3]
        before = map_ @ world @ map_.transpose(0, 2, 1)
        covariance = before + eps2d * np.eye(2)
        compensation = np.sqrt(np.clip(np.linalg.det(before) / np.linalg.det(covariance), 0, None))
        return place(points, K, model), covariance, points[:, 2], compensation


def project_gaussians(args: dict[str, Any]) -> dict[str, Array]:
    """The raw operator's outputs in float64."""
    cameras, count = args["depths"].shape
    shapes = {"means2d": (2,), "radii": (2,), "depths": (), "conics": (3,), "weights": ()}
    out = {k: np.zeros((cameras, count, *shape)) for k, shape in shapes.items()}
    world = covariances_of(args)
    size = np.array([args["width"], args["height"]])
    for c in range(cameras):
        centres, covariances, depths, compensation = project(
            args["means"].astype(np.float64), world, args["viewmats"][c].astype(np.float64),
            args["Ks"][c].astype(np.float64), *size, args["eps2d"], args["camera_model"],
        )  # fmt: skip
        weights = args["opacities"] * (compensation if args["antialiased"] else 1.0)
        with np.errstate(all="ignore"):
            extent = np.minimum(3.33, np.sqrt(2 * np.log(255 * weights)))[:, None] * np.sqrt(
                covariances[:, [0, 1], [0, 1]]
            )
            seen = (
                (depths >= args["near_plane"]) & (depths <= args["far_plane"]) & (weights > 1 / 255)
                & (np.ceil(extent) > args["radius_clip"]).any(-1)
                & (centres + extent > 0).all(-1) & (centres - extent < size).all(-1)
            )  # fmt: skip
        inverse = np.linalg.inv(covariances[seen])
        out["means2d"][c, seen], out["radii"][c, seen] = centres[seen], np.ceil(extent[seen])
        out["depths"][c, seen], out["weights"][c, seen] = depths[seen], weights[seen]
        out["conics"][c, seen] = inverse[:, [0, 0, 1], [0, 1, 1]]
    return out | {"radii": out["radii"].astype(np.int32)}


def by_scene(of_one: Callable[[dict[str, Any]], dict[str, Array]]) -> Callable[[dict[str, Any]], dict[str, Array]]:
    """The same function for the operator's arguments of several scenes: one after the other."""

    @functools.wraps(of_one)
    def all_of_them(args: dict[str, Any]) -> dict[str, Array]:
        scenes = args.get("scenes", 1)
        if scenes == 1:
            return of_one(args)
        shared = "colors" not in args or args["colors"].shape[0] == 1
        by_axis = {"colors": int(shared), "v_colors": int(shared)}
        found = []
        for s in range(scenes):
            parts = {
                k: np.split(v, scenes, by_axis.get(k, 0))[s] if isinstance(v, np.ndarray) else v
                for k, v in args.items()
            }
            found.append(of_one(parts | {"scenes": 1}))
        return {k: np.concatenate([f[k] for f in found], by_axis.get(k, 0)) for k in found[0]}

    return all_of_them


@by_scene
def rasterize(args: dict[str, Any]) -> dict[str, Array]:
    """The raw operator's outputs in float64, each Gaussian over all pixels, in the order of depth."""
    f64 = {
        k: np.asarray(v, np.float64) for k, v in args.items() if isinstance(v, np.ndarray) and not k.startswith("out")
    }
    cameras, height, width, channels = args["out_colors"].shape
    colors = np.broadcast_to(f64["colors"], (cameras, *f64["colors"].shape[1:]))
    out_colors, out_alphas = np.zeros((cameras, height, width, channels)), np.zeros((cameras, height, width))
    px, py = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    world = covariances_of(args)
    for c in range(cameras):
        centres, covariances, depths, compensation = project(
            f64["means"], world, f64["viewmats"][c], f64["Ks"][c], width, height, args["eps2d"], args["camera_model"]
        )
        opacities = f64["opacities"] * (compensation if args["antialiased"] else 1.0)
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


@by_scene
def contributions(args: dict[str, Any]) -> dict[str, Array]:
    """The raw operator's output in float64: a picture in which each Gaussian has a channel of its own."""
    count = len(args["means"])
    picture = {
        "colors": np.eye(count)[None],
        "backgrounds": None,
        "out_colors": np.empty((*args["pixels"].shape, count)),
    }
    weights = rasterize({k: v for k, v in args.items() if k not in ("pixels", "out")} | picture)["out_colors"]
    return {"out": np.einsum("chwn,chw->cn", weights, args["pixels"].astype(np.float64))}


@by_scene
def rasterize_backward(args: dict[str, Any]) -> dict[str, Array]:
    """The gradient in float64: blending with a kept list for each pixel and the inverse covariance as the parameter;
    the projection's Jacobian by central differences."""
    f64 = {k: np.asarray(v, np.float64) for k, v in args.items() if isinstance(v, np.ndarray)}
    cameras, height, width, _ = args["image"].shape
    count = len(f64["means"])
    colors = np.broadcast_to(f64["colors"], (cameras, *f64["colors"].shape[1:]))
    given = [k for k in args if k.startswith("v_") and k not in ("v_image", "v_alphas") and args[k] is not None]
    out = {k: np.zeros(args[k].shape) for k in given}
    names = ["means", *(k for k in ("quats", "scales", "covars") if args[k] is not None)]
    ends = np.cumsum([f64[k].shape[1] for k in names])
    px, py = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    for c in range(cameras):
        K = f64["Ks"][c]
        inputs = np.concatenate([*(f64[k] for k in names), np.tile(f64["viewmats"][c, :3].reshape(12), (count, 1))], 1)

        def projected(x: Array, K: Array = K) -> Array:
            """(N, 6): centre, covariance (xx, xy, yy) and factor of the opacity, for one camera per Gaussian."""
            views = np.zeros((len(x), 4, 4))
            views[:, :3] = x[:, ends[-1] :].reshape(-1, 3, 4)
            parts = dict(zip(names, np.split(x, ends, 1), strict=False))
            world = covariances_of({"covars": None} | parts)
            rows = [
                project(parts["means"][i : i + 1], world[i : i + 1], views[i], K, width, height, args["eps2d"],
                        args["camera_model"])
                for i in range(len(x))
            ]  # fmt: skip
            return np.array(
                [
                    [*centre[0], *cov[0].ravel()[[0, 1, 3]], factor[0] if args["antialiased"] else 1.0]
                    for centre, cov, _, factor in rows
                ]
            )

        if count == 0 or height * width == 0:
            continue
        now = projected(inputs)
        depths = f64["means"] @ f64["viewmats"][c, 2, :3] + f64["viewmats"][c, 2, 3]
        opacities = f64["opacities"] * now[:, 5]
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
        v_projected = np.zeros((count, 6))
        for i, alpha, before, free, pull in reversed(blended):
            shade = v_image @ colors[c, i]
            v_alpha = before * shade - behind / (1 - alpha)
            behind = behind + alpha * before * shade
            out["v_colors"][c if len(out["v_colors"]) > 1 else 0, i] += np.einsum("hw,hwd->d", alpha * before, v_image)
            v_log = np.where(free, v_alpha * alpha, 0)
            out["v_opacities"][i] += v_log.sum() / f64["opacities"][i]
            v_centre = v_log[..., None] * pull
            v_projected[i, :2] = v_centre.sum((0, 1))
            v_covariance = 0.5 * np.einsum("hw,hwi,hwj->ij", v_log, pull, pull)
            v_projected[i, 2:5] = v_covariance[0, 0], 2 * v_covariance[0, 1], v_covariance[1, 1]
            v_projected[i, 5] = v_log.sum() / now[i, 5]
            out["v_means2d"][c, i] = *v_projected[i, :2], *np.abs(v_centre).sum((0, 1))
        for k in range(inputs.shape[1] if len(order) else 0):
            step = 1e-5 * np.maximum(1e-1, np.abs(inputs[order, k]))
            above, below = inputs[order].copy(), inputs[order].copy()
            above[:, k] += step
            below[:, k] -= step
            slope = (projected(above) - projected(below)) / (2 * step[:, None])
            v = (slope * v_projected[order]).sum(-1)
            if k < ends[-1]:
                which = int(np.searchsorted(ends, k, side="right"))
                out[f"v_{names[which]}"][order, k - ends[which]] += v  # counted from the end of its own columns
            else:
                out["v_viewmats"][c, (k - ends[-1]) // 4, (k - ends[-1]) % 4] = v.sum()
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
