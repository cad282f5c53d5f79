"""Float64 references of the training operators."""

from __future__ import annotations

from typing import Any

import numpy as np


def _windowed(x: Any) -> Any:
    """The 11x11 Gaussian mean of deviation 1.5 over the last two axes, zeros outside."""
    weights = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(weights, weights) / weights.sum() ** 2
    height, width = x.shape[-2:]
    padded = np.pad(x, [(0, 0)] * (x.ndim - 2) + [(5, 5), (5, 5)])
    return sum(
        window[i, j] * padded[..., i : i + height, j : j + width] for i in range(11) for j in range(11)
    ) + np.zeros(x.shape)


def ssim(args: dict[str, Any]) -> dict[str, Any]:
    """Similarity, and its derivatives by the windowed means of x, x^2 and x y."""
    x, y = args["image"].astype(np.float64), args["target"].astype(np.float64)
    mx, my, xx, yy, xy = (_windowed(q) for q in (x, y, x * x, y * y, x * y))
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mx * my + c1), (2 * (xy - mx * my) + c2)
    bottom = (mx**2 + my**2 + c1), (xx - mx**2 + yy - my**2 + c2)
    value = top[0] * top[1] / (bottom[0] * bottom[1])
    # The logarithmic derivative of each factor, without dividing by a numerator that may be 0.
    scale = 1 / (bottom[0] * bottom[1])
    by_mean = (2 * my * top[1] - 2 * my * top[0]) * scale - value * (2 * mx / bottom[0] - 2 * mx / bottom[1])
    return {"out": value, "partials": np.stack([by_mean, -value / bottom[1], 2 * top[0] * scale])}


def ssim_backward(args: dict[str, Any]) -> dict[str, Any]:
    """The gradient from the given partial derivatives: the window is its own transpose."""
    x, y, v = (args[k].astype(np.float64) for k in ("image", "target", "v_out"))
    a, b, c = (_windowed(v * p.astype(np.float64)) for p in args["partials"])
    return {"v_image": a + 2 * x * b + y * c}


def selective_adam(args: dict[str, Any]) -> dict[str, Any]:
    """Adam as in its paper, algorithm 1, on the visible rows."""
    p, g, m, v = (args[k].astype(np.float64) for k in ("param", "grad", "exp_avg", "exp_avg_sq"))
    seen, steps = args["visible"], args["steps"].astype(np.int64) + args["visible"]
    beta1, beta2 = args["beta1"], args["beta2"]
    t = np.maximum(steps, 1)[:, None]
    new_m, new_v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
    rates = args["lr"] * np.float64(1 if args["rates"] is None else args["rates"])
    new_p = p - rates * (new_m / (1 - beta1**t)) / (np.sqrt(new_v / (1 - beta2**t)) + args["eps"])
    pick = [np.where(seen[:, None], new, old) for new, old in ((new_p, p), (new_m, m), (new_v, v))]
    return dict(zip(("param", "exp_avg", "exp_avg_sq"), pick, strict=True)) | {"steps": steps.astype(np.int32)}
