"""Camera models, the antialiased mode, covariances, batches, harmonics and the meta dictionary."""

import itertools
from typing import Any

import numpy as np
import pytest
from core_splatting import _core_splatting as _C
from core_splatting import rasterization, spherical_harmonics
from core_splatting.cases import projections, scene, scene_backward
from core_splatting.reference.harmonics import basis
from core_splatting.reference.rasterize import (
    covariances_of,
    project_gaussians,
    rasterize,
    rasterize_backward,
)

Args = dict[str, Any]
NAMES = ("means", "quats", "scales", "opacities", "colors", "viewmats", "Ks")
MODES = list(itertools.product(("pinhole", "ortho", "fisheye"), (False, True), (False, True)))
modes = pytest.mark.parametrize(("model", "antialiased", "covars"), MODES)


def changed(a: Args, model: str, antialiased: bool, covars: bool) -> Args:
    """A scene in this mode; the fisheye sees it from within, the rays up to 80 degrees off the axis."""
    if model == "fisheye":
        a["viewmats"][:, 2, 3] = 0.6
        a["Ks"][:, [0, 1], [0, 1]] *= 0.5
    a |= {"camera_model": model, "antialiased": antialiased}
    if covars:
        world = covariances_of(a)[:, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]].astype(np.float32)
        a |= {"covars": world, "quats": None, "scales": None}
        if "v_quats" in a:
            a |= {"v_covars": np.empty_like(world), "v_quats": None, "v_scales": None}
    return a


@modes
def test_forward(model: str, antialiased: bool, covars: bool) -> None:
    a = changed(scene(np.random.default_rng(2), 60, 50, 34, 2, focal=40.0), model, antialiased, covars)
    _C.rasterize(*a.values())
    want = rasterize(a)
    assert want["out_alphas"].mean() > 0.05
    for name, expected in want.items():
        difference = np.abs(a[name] - expected)
        assert difference.max() < 0.02  # a pixel on the border of a Gaussian may fall on either side
        assert difference.mean() < 1e-5


@modes
def test_gradient(model: str, antialiased: bool, covars: bool) -> None:
    a = changed(scene_backward(np.random.default_rng(0), N=14, W=24, H=20, C=2, focal=25.0), model, antialiased, covars)
    forward = {
        k: v
        for k, v in a.items()
        if k not in ("image", "alphas", "workspace", "deterministic") and not k.startswith("v_")
    }
    keys = list(forward)
    ordered = {k: forward[k] for k in keys[: keys.index("Ks") + 1]} | {"backgrounds": None}
    ordered |= {k: forward[k] for k in keys[keys.index("Ks") + 1 :]}
    _C.rasterize(*ordered.values(), a["image"], a["alphas"], None)
    _C.rasterize_backward(*a.values())
    for name, want in rasterize_backward(a).items():
        scale = np.abs(want).max()
        assert scale > 0, name
        assert np.abs(a[name] - want).max() < 1e-3 * scale, name


@modes
def test_projections(model: str, antialiased: bool, covars: bool) -> None:
    a = changed(projections(np.random.default_rng(1), 200, 50, 34, 2, focal=40.0), model, antialiased, covars)
    _C.project_gaussians(*a.values())
    want = project_gaussians(a)
    same = (a["radii"] == want["radii"]).all(-1)
    assert same.mean() > 0.99  # a float32 may round up where a float64 does not
    assert (a["radii"] > 0).any()
    for name in ("means2d", "depths", "conics", "weights"):
        np.testing.assert_allclose(a[name][same], want[name][same], rtol=5e-3, atol=1e-3)


def test_antialiasing_keeps_the_mass_of_small_gaussians() -> None:
    a = scene(np.random.default_rng(0), 40, 64, 48, focal=60.0)
    a["scales"] *= 0.05
    sums = []
    for mode in ("classic", "antialiased"):
        _, alphas, _ = rasterization(
            *(a[k][0] if k == "colors" else a[k] for k in NAMES), 64, 48, rasterize_mode=mode, eps2d=0.3
        )
        sums.append(float(alphas.sum()))
    assert sums[1] < 0.1 * sums[0]


def test_covars_equal_quats_and_scales() -> None:
    a = scene(np.random.default_rng(0), 40, 50, 34, focal=50.0)
    inputs = [a[k][0] if k == "colors" else a[k] for k in NAMES]
    image, _, _ = rasterization(*inputs, 50, 34)
    inputs[1:3] = None, None
    again, _, _ = rasterization(*inputs, 50, 34, covars=covariances_of(a).astype(np.float32))
    assert np.abs(image - again).max() < 1e-3


@pytest.mark.parametrize(
    "options",
    [
        {}, {"render_mode": "D"}, {"render_mode": "RGB+ED", "by_camera": True},
        {"sh_degree": 1, "render_mode": "RGB+D"}, {"sh_degree": 1, "by_camera": True},
    ],
)  # fmt: skip
def test_batches_are_scenes(options: dict[str, Any]) -> None:
    rng, options = np.random.default_rng(0), dict(options)
    by_camera = options.pop("by_camera", False)
    scenes = [scene(np.random.default_rng(i), 40, 50, 34, 2, focal=50.0) for i in range(6)]
    inputs = [np.stack([a[k][0] if k == "colors" else a[k] for a in scenes]) for k in NAMES]
    shape = (6, 2, 40) if by_camera else (6, 40)
    inputs[4] = rng.uniform(0, 1, (*shape, 4, 3) if "sh_degree" in options else (*shape, 3)).astype(np.float32)
    if options.get("render_mode") != "D":
        options["backgrounds"] = rng.uniform(0, 1, (6, 2, 3)).astype(np.float32)

    def one(i: int) -> Any:
        own = options | ({"backgrounds": options["backgrounds"][i]} if "backgrounds" in options else {})
        return rasterization(*(x[i] for x in inputs), 50, 34, meta=True, **own)

    options_of_batch = {k: v.reshape(2, 3, *v.shape[1:]) if k == "backgrounds" else v for k, v in options.items()}
    image, alphas, meta = rasterization(
        *(x.reshape(2, 3, *x.shape[1:]) for x in inputs), 50, 34, meta=True, **options_of_batch
    )
    assert alphas.shape == (2, 3, 2, 34, 50, 1)
    for i in range(6):
        single, single_alphas, single_meta = one(i)
        np.testing.assert_array_equal(image[i // 3, i % 3], single)
        np.testing.assert_array_equal(alphas[i // 3, i % 3], single_alphas)
        for name in ("means2d", "radii", "depths", "conics", "opacities"):
            np.testing.assert_array_equal(meta[name][i // 3, i % 3], single_meta[name])


def test_batches_that_do_not_fit() -> None:
    a = scene(np.random.default_rng(0), 40, 50, 34, 2, focal=50.0)
    inputs = [np.stack([a[k][0] if k == "colors" else a[k]] * 2) for k in NAMES]
    with pytest.raises(ValueError, match="'Ks'"):
        rasterization(*inputs[:6], inputs[6][0], 50, 34)
    with pytest.raises(ValueError, match="at least one scene"):
        rasterization(*(x[:0] for x in inputs), 50, 34)
    with pytest.raises(ValueError, match="'colors'"):
        rasterization(*inputs[:4], inputs[4][:, None, None], *inputs[5:], 50, 34)
    with pytest.raises(ValueError, match="'colors'"):
        rasterization(*inputs[:4], inputs[4][:, None], *inputs[5:], 50, 34)


def test_gradients_of_batches_are_those_of_scenes() -> None:
    torch = pytest.importorskip("torch")
    scenes = [scene(np.random.default_rng(i), 40, 50, 34, 2, focal=50.0) for i in range(3)]
    inputs = [torch.from_numpy(np.stack([a[k][0] if k == "colors" else a[k] for a in scenes])) for k in NAMES]
    inputs[4] = torch.rand(3, 40, 4, 3, generator=torch.Generator().manual_seed(0))
    weights = torch.rand(3, 2, 34, 50, 4, generator=torch.Generator().manual_seed(1))
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for device in devices:

        def gradients(parts: list[slice | int], device: str = device) -> list[Any]:
            leaves = [x.detach().to(device).requires_grad_(k < 6) for k, x in enumerate(inputs)]
            centres = []
            for part in parts:
                image, _, meta = rasterization(
                    *(x[part] for x in leaves), 50, 34, sh_degree=1, render_mode="RGB+D", meta=True, absgrad=True
                )
                (image * weights[part].to(device)).sum().backward()
                centres += [x.reshape(-1, 2, 40, 2).cpu() for x in (meta["means2d"].grad, meta["means2d"].absgrad)]
            found = [x.grad.cpu() for x in leaves[:6]]
            return [*found, torch.cat(centres[::2]), torch.cat(centres[1::2])]

        for whole, apart in zip(gradients([slice(None)]), gradients([0, 1, 2]), strict=True):
            if device == "cpu":
                torch.testing.assert_close(whole, apart, rtol=0, atol=0)
            else:
                assert (whole - apart).norm() <= 1e-5 * apart.norm()


@pytest.mark.parametrize("degree", range(4))
def test_harmonics_in_the_renderer(degree: int) -> None:
    rng = np.random.default_rng(0)
    a = scene(rng, 40, 50, 34, 2, focal=50.0)
    coeffs = rng.normal(0, 0.5, (40, 16, 3)).astype(np.float32)
    inputs = [a[k][0] if k == "colors" else a[k] for k in NAMES]
    inputs[4] = coeffs
    image, _, _ = rasterization(*inputs, 50, 34, sh_degree=degree)
    centres = np.linalg.inv(a["viewmats"].astype(np.float64))[:, :3, 3]
    y = np.stack([basis(a["means"] - centre, degree) for centre in centres])
    inputs[4] = np.maximum(np.einsum("cnk,nkd->cnd", y, coeffs[:, : (degree + 1) ** 2]) + 0.5, 0).astype(np.float32)
    expected, _, _ = rasterization(*inputs, 50, 34)
    np.testing.assert_allclose(image, expected, atol=1e-5)


def test_harmonics_have_the_shapes_of_gsplat() -> None:
    rng = np.random.default_rng(0)
    dirs, coeffs = rng.normal(size=(2, 5, 3)).astype(np.float32), rng.normal(size=(2, 5, 9, 3)).astype(np.float32)
    masks = rng.random((2, 5)) < 0.5
    out = spherical_harmonics(2, dirs, coeffs, masks)
    want = np.einsum("nk,nkd->nd", basis(dirs.reshape(-1, 3), 2), coeffs.reshape(10, 9, 3)).reshape(2, 5, 3)
    np.testing.assert_allclose(out, np.where(masks[..., None], want, 0), atol=1e-5)
    for bad, says in (((4, dirs, coeffs), "degree"), ((3, dirs, coeffs), "coeffs"), ((2, dirs, coeffs[0]), "coeffs")):
        with pytest.raises(ValueError, match=says):
            spherical_harmonics(*bad)


def test_meta() -> None:
    a = scene(np.random.default_rng(0), 40, 50, 34, 2, focal=50.0)
    inputs = [a[k][0] if k == "colors" else a[k] for k in NAMES]
    _, _, plain = rasterization(*inputs, 50, 34)
    assert set(plain) == {"width", "height", "n_cameras", "tile_size"}
    _, _, meta = rasterization(*inputs, 50, 34, meta=True)
    assert meta["means2d"].shape == (2, 40, 2)
    assert meta["radii"].dtype == np.int32
    assert (meta["tile_width"], meta["tile_height"]) == (4, 3)


def test_torch_meta_and_gradients() -> None:
    torch = pytest.importorskip("torch")
    a = scene(np.random.default_rng(0), 40, 50, 34, 2, focal=50.0)
    x = [torch.from_numpy(a[k][0] if k == "colors" else a[k]) for k in NAMES]
    x[4] = torch.randn(40, 16, 3, generator=torch.Generator().manual_seed(0)) * 0.3
    for t in x[:6]:
        t.requires_grad_()
    image, _, meta = rasterization(*x, 50, 34, sh_degree=3, meta=True, absgrad=True)
    meta["means2d"].retain_grad()
    image.square().sum().backward()
    grad, absgrad = meta["means2d"].grad, meta["means2d"].absgrad
    assert grad.shape == absgrad.shape == (2, 40, 2)
    assert (absgrad + 1e-4 >= grad.abs()).all()
    assert absgrad.sum() > grad.abs().sum()
    assert (grad != 0).any()
    compiled = torch.compile(
        lambda *y: rasterization(*y, 50, 34, sh_degree=3, camera_model="fisheye")[0].sum(),
        fullgraph=True, backend="aot_eager",
    )  # fmt: skip
    y = [t.detach().requires_grad_(i < 6) for i, t in enumerate(x)]
    z = [t.detach().requires_grad_(i < 6) for i, t in enumerate(x)]
    compiled(*y).backward()
    rasterization(*z, 50, 34, sh_degree=3, camera_model="fisheye")[0].sum().backward()
    for one, other in zip(y[:6], z[:6], strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_harmonics_opcheck_and_gradcheck_by_differences() -> None:
    torch = pytest.importorskip("torch")
    from core_splatting.cases_harmonics import harmonics
    from core_splatting.torch_ops import spherical_harmonics as op

    a = harmonics(np.random.default_rng(0), 10)
    t = [torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in a.items() if k != "out"]
    for i in (2, 3, 4, 5):
        t[i].requires_grad_()
    torch.library.opcheck(op, tuple(t))
    t[7] = True
    with pytest.warns(UserWarning, match="double precision"):
        torch.autograd.gradcheck(
            lambda *v: op(3, 2, *v, t[6], True, 1), t[2:6], eps=1e-3, atol=2e-2, rtol=2e-2, fast_mode=True
        )


def _on_both(call: Any, args: Args, outputs: list[str]) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """The outputs of a raw operator on CUDA and on the CPU."""
    import torch

    there = {k: torch.from_numpy(v).cuda() if isinstance(v, np.ndarray) else v for k, v in args.items()}
    call(*there.values())
    call(*args.values())
    return [(k, there[k].cpu().numpy(), args[k]) for k in outputs if args[k] is not None]


@modes
def test_cuda_equals_cpu(model: str, antialiased: bool, covars: bool) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    rng = np.random.default_rng(3)
    a = changed(scene(rng, 2000, 150, 90, 2, focal=120.0), model, antialiased, covars)
    for name, cuda, cpu in _on_both(_C.rasterize, a, ["out_colors", "out_alphas"]):
        assert np.abs(cuda - cpu).mean() < 1e-5, name
    a = changed(projections(rng, 2000, 150, 90, 2, focal=120.0), model, antialiased, covars)
    for name, cuda, cpu in _on_both(_C.project_gaussians, a, ["means2d", "radii", "depths", "conics", "weights"]):
        assert (np.abs(cuda - cpu) > 1e-3 * np.abs(cpu) + 1e-3).mean() < 1e-3, name
    a = changed(scene_backward(rng, N=2000, W=150, H=90, C=2, focal=120.0), model, antialiased, covars)
    outputs = [k for k in a if k.startswith("v_") and k not in ("v_image", "v_alphas")]
    for name, cuda, cpu in _on_both(_C.rasterize_backward, a, outputs):
        assert np.linalg.norm(cuda - cpu) < 1e-3 * np.linalg.norm(cpu), name


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_gradient_of_what_is_wanted_alone(device: str) -> None:
    torch = pytest.importorskip("torch")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    a = scene_backward(np.random.default_rng(0), N=200, W=60, H=50, focal=60.0)
    there = {k: torch.from_numpy(v).to(device) if isinstance(v, np.ndarray) else v for k, v in a.items()}
    _C.rasterize_backward(*there.values())
    whole = there["v_means2d"].clone()
    few = there | {"v_means2d": torch.empty_like(whole[..., :2].contiguous())}
    _C.rasterize_backward(*few.values())
    assert (few["v_means2d"] - whole[..., :2]).norm() <= 1e-5 * whole[..., :2].norm()
    assert (whole[..., 2:] > 0).any()
    there["v_alphas"].zero_()
    _C.rasterize_backward(*there.values())
    kept = ("v_means", "v_quats", "v_scales", "v_opacities", "v_colors")
    want = [there[k].clone() for k in kept]
    fewer = there | {"v_alphas": None, "v_viewmats": None, "v_means2d": None}
    _C.rasterize_backward(*fewer.values())
    for name, expected in zip(kept, want, strict=True):
        assert (fewer[name] - expected).norm() <= 1e-5 * expected.norm(), name
    with pytest.raises(ValueError, match="'v_means2d' must have 2 or 4 columns, got 3"):
        _C.rasterize_backward(*(few | {"v_means2d": whole[..., :3].contiguous()}).values())
