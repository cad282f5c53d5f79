"""The torch operator: opcheck, torch.compile, the reference in torch, gradients, and CUDA."""

from typing import Any

import numpy as np
import pytest
from core_splatting import rasterization
from core_splatting.cases import scene
from core_splatting.reference.rasterize import rasterize_torch

torch = pytest.importorskip("torch")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def inputs(device: str = "cpu") -> list[Any]:
    a = scene(np.random.default_rng(0), 300, 90, 70, C=2, focal=80.0)
    names = ("means", "quats", "scales", "opacities", "colors", "viewmats", "Ks")
    return [torch.from_numpy(a[k][0] if k == "colors" else a[k]).to(device) for k in names]


def test_torch_equals_numpy() -> None:
    image, alphas, meta = rasterization(*inputs(), 90, 70)
    expected, expected_alphas, _ = rasterization(*(x.numpy() for x in inputs()), 90, 70)
    assert isinstance(image, torch.Tensor)
    np.testing.assert_array_equal(image.numpy(), expected)
    np.testing.assert_array_equal(alphas.numpy(), expected_alphas)
    assert meta == {"width": 90, "height": 70, "n_cameras": 2, "tile_size": 16}


def test_torch_reference_agrees() -> None:
    a = scene(np.random.default_rng(1), 2000, 100, 80, focal=100.0)
    image, alphas = rasterize_torch(a)
    options = {k: a[k] for k in ("backgrounds", "eps2d")}
    names = ("means", "quats", "scales", "opacities", "colors", "viewmats", "Ks")
    ours, our_alphas, _ = rasterization(*(a[k] for k in names), 100, 80, **options)
    assert np.abs(image.numpy() - ours).mean() < 1e-5
    assert np.abs(alphas.numpy() - our_alphas[..., 0]).mean() < 1e-5


@pytest.mark.parametrize("differentiable", [False, True])
def test_opcheck(differentiable: bool) -> None:
    from core_splatting.torch_ops import rasterize

    x = inputs()
    if differentiable:
        x[0].requires_grad_()
    torch.library.opcheck(
        rasterize,
        (
            *x[:3],
            None,
            x[3],
            x[4] if differentiable else x[4][None],
            *x[5:],
            None,
            None,
            90,
            70,
            0.01,
            1e10,
            0.0,
            0.3,
            0.999,
            False,
            "pinhole",
            1,
            False,
            False,
        ),
    )


def test_compile() -> None:
    compiled = torch.compile(lambda *x: rasterization(*x, 90, 70)[0] * 2, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs()), rasterization(*inputs(), 90, 70)[0] * 2)


def differentiable(count: int = 30) -> list[Any]:
    a = scene(np.random.default_rng(3), count, 24, 20, C=2, focal=25.0)
    a["opacities"] *= 0.8
    names = ("means", "quats", "scales", "opacities", "colors", "viewmats", "Ks", "backgrounds")
    x = [torch.from_numpy(a[k][0] if k == "colors" else a[k]) for k in names]
    for t in (*x[:6], x[7]):
        t.requires_grad_()
    return x


def loss(x: list[Any], weights: Any, mode: str = "RGB+D") -> Any:
    image, alphas, _ = rasterization(*x[:7], 24, 20, backgrounds=x[7], render_mode=mode)
    return (image * weights[0]).sum() + (alphas * weights[1]).sum()


@pytest.mark.parametrize("mode", ["RGB+D", "RGB+ED"])
def test_gradient_by_finite_differences(mode: str) -> None:
    """Along a random uphill direction of each input. The rims where alpha is cut at 1/255 add jumps of their own."""
    x = differentiable()
    gen = torch.Generator().manual_seed(0)
    rows = torch.arange(20)[:, None, None] / 20
    weights = (rows + torch.rand(4, generator=gen) - 0.5, rows - 0.3)
    loss(x, weights, mode).backward()
    for i in (0, 1, 2, 3, 4, 5, 7):
        with torch.no_grad():
            direction = torch.randn(x[i].shape, generator=gen) * (x[i].grad != 0) * (0.05 if i == 2 else 1)
            direction *= 1 + x[i].grad.sign() * direction.sign()  # uphill, so that nothing cancels
            step = 2e-4
            values = [
                loss([t + s * step * direction if j == i else t for j, t in enumerate(x)], weights, mode).double()
                for s in (1.0, -1.0)
            ]
            slope = float((values[0] - values[1]) / (2 * step))
        predicted = float((x[i].grad * direction).sum())
        assert abs(slope - predicted) <= 0.08 * abs(predicted) + 1e-2, (i, slope, predicted)


def test_gradient_equals_reference() -> None:
    from core_splatting.reference.rasterize import rasterize_backward

    x = differentiable()
    image, alphas, _ = rasterization(*x[:7], 24, 20, backgrounds=x[7])
    v_image, v_alphas = torch.randn_like(image), torch.randn_like(alphas)
    torch.autograd.backward([image, alphas], [v_image, v_alphas])
    names = ("means", "quats", "scales", "opacities", "colors", "viewmats", "Ks")
    args = {k: t.detach().numpy() for k, t in zip(names, x, strict=False)}
    args["colors"] = args["colors"][None]
    args |= {"near_plane": 0.01, "far_plane": 1e10, "radius_clip": 0.0, "eps2d": 0.3, "max_alpha": 0.999}
    args |= {"covars": None, "antialiased": False, "camera_model": "pinhole"}
    args |= {"image": image.detach().numpy(), "alphas": alphas[..., 0].detach().numpy()}
    args |= {"v_image": v_image.numpy(), "v_alphas": v_alphas[..., 0].numpy()}
    args |= {f"v_{k}": args[k] for k in names[:6]} | {"v_means2d": np.empty((2, 30, 4))}
    expected = rasterize_backward(args)
    for name, t in zip(names[:6], x, strict=False):
        want = expected[f"v_{name}"][0] if name == "colors" else expected[f"v_{name}"]
        scale = np.abs(want).max()
        assert np.abs(t.grad.numpy() - want).max() < 2e-4 * scale, name
    left = 1 - alphas.detach()
    torch.testing.assert_close(x[7].grad, (left * v_image).sum((1, 2)), rtol=1e-5, atol=1e-4)


def test_opcheck_with_gradients() -> None:
    from core_splatting.torch_ops import rasterize

    x = differentiable()
    colors = x[4].detach()[None].requires_grad_()
    means2d = torch.zeros(2, 30, 2, requires_grad=True)
    torch.library.opcheck(
        rasterize,
        (
            *x[:3],
            None,
            x[3],
            colors,
            *x[5:],
            means2d,
            24,
            20,
            0.01,
            1e10,
            0.0,
            0.3,
            0.999,
            True,
            "fisheye",
            1,
            False,
            True,
        ),
    )


def test_compiled_gradient() -> None:
    x, y = differentiable(), differentiable()
    weights = (torch.ones(4), torch.ones(1))
    loss(x, weights).backward()
    torch.compile(loss, fullgraph=True, backend="aot_eager")(y, weights).backward()
    for a, b in zip(x, y, strict=True):
        if a.requires_grad:
            torch.testing.assert_close(a.grad, b.grad)


def test_gradient_of_the_camera_matrix_is_refused() -> None:
    x = differentiable()
    x[6].requires_grad_()
    with pytest.raises(NotImplementedError, match="Ks"):
        loss(x, (1.0, 1.0)).backward()


def test_gradient_of_the_gradient_is_refused() -> None:
    x = differentiable()
    with pytest.raises(NotImplementedError, match="rasterize_backward: argument 'means' requires grad"):
        torch.autograd.grad(loss(x, (1.0, 1.0)), x[0], create_graph=True)


@needs_cuda
@pytest.mark.parametrize("mode", ["RGB", "RGB+ED"])
def test_cuda_equals_cpu(mode: str) -> None:
    image, alphas, _ = rasterization(*inputs("cuda"), 90, 70, render_mode=mode)
    expected, expected_alphas, _ = rasterization(*inputs(), 90, 70, render_mode=mode)
    assert (image.cpu() - expected).abs().mean() < 1e-4
    assert (alphas.cpu() - expected_alphas).abs().mean() < 1e-5


@needs_cuda
@pytest.mark.parametrize("channels", [1, 3, 4, 5, 7, 16, 24, 32, 33, 70, 160, 200])
def test_cuda_channels(channels: int) -> None:
    x, y = inputs("cuda"), inputs()
    color = torch.rand(300, channels, generator=torch.Generator().manual_seed(0))
    x[4], y[4] = color.cuda(), color
    assert (rasterization(*x, 90, 70)[0].cpu() - rasterization(*y, 90, 70)[0]).abs().mean() < 1e-5


def gradients(x: list[Any], device: str, weights: Any) -> list[Any]:
    leaves = [t.detach().to(device).requires_grad_() for t in x[:6]]
    image, alphas, _ = rasterization(*leaves, x[6].to(device), 90, 70)
    ((image * weights.to(device)).sum() + (alphas * alphas).sum()).backward()
    return [t.grad.cpu() for t in leaves]


def with_channels(channels: int) -> tuple[list[Any], Any]:
    x, gen = inputs(), torch.Generator().manual_seed(0)
    x[4] = torch.rand(300, channels, generator=gen)
    return x, torch.rand(70, 90, channels, generator=gen) - 0.4


@needs_cuda
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7, 16, 32, 33, 160])
def test_cuda_gradient_equals_cpu(channels: int, deterministic: bool) -> None:
    x, weights = with_channels(channels)
    torch.use_deterministic_algorithms(deterministic)
    try:
        found, again = gradients(x, "cuda", weights), gradients(x, "cuda", weights)
    finally:
        torch.use_deterministic_algorithms(False)
    for got, second, want in zip(found, again, gradients(x, "cpu", weights), strict=True):
        assert (got - want).norm() < 2e-4 * want.norm()
        assert not deterministic or torch.equal(got, second)


@needs_cuda
def test_cuda_gradient_has_at_most_1024_channels() -> None:
    x = inputs()
    x[4] = torch.rand(300, 1025)
    with pytest.raises(
        NotImplementedError, match="argument 'colors' must have at most 1024 channels on CUDA, got 1025"
    ):
        gradients(x, "cuda", torch.ones(1))


@needs_cuda
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("channels", [3, 33])
def test_cuda_workspace_that_is_too_small(channels: int, deterministic: bool) -> None:
    from core_splatting import _core_splatting as _C
    from core_splatting.cases import scene_backward

    a = scene_backward(np.random.default_rng(0), N=400, W=90, H=70, C=2, D=channels, focal=80.0)
    there = {k: torch.from_numpy(v).cuda() if isinstance(v, np.ndarray) else v for k, v in a.items()}
    size = torch.zeros(1, dtype=torch.int64)
    _C.rasterize_workspace(2, 400, 90, 70, 0, size)
    inputs, scalars = list(there.values())[:8], list(there.values())[8:16]
    found = []
    for room in (int(size), 64 * (1 + 1 + 100 + 13 + 13)):  # the second has none for the tiles' lists
        workspace = torch.full((room,), -1, dtype=torch.int32, device="cuda")
        image, alphas = torch.empty_like(there["image"]), torch.empty_like(there["alphas"])
        _C.rasterize(*inputs, None, *scalars, image, alphas, workspace)
        _C.rasterize_backward(*(there | {"workspace": workspace, "deterministic": deterministic}).values())
        found.append([x.clone() for x in (image, alphas, *list(there.values())[22:]) if x is not None])
    black = {k: a[k] for k in list(a)[:8]} | {"backgrounds": None} | {k: a[k] for k in list(a)[8:16]}
    cpu = np.empty_like(a["image"]), np.empty_like(a["alphas"])
    _C.rasterize(*black.values(), *cpu, None)
    assert np.abs(found[0][0].cpu().numpy() - cpu[0]).mean() < 1e-5
    for enough, small in zip(*found, strict=True):
        assert (enough - small).norm() <= 1e-5 * enough.norm()
    with pytest.raises(ValueError, match="argument 'workspace'"):
        _C.rasterize(*inputs, None, *scalars, image, alphas, workspace[:-64])


@needs_cuda
def test_cuda_compiled_gradient() -> None:
    x, weights = with_channels(3)

    def loss(*leaves: Any) -> Any:
        return (rasterization(*leaves, x[6].cuda(), 90, 70)[0] * weights.cuda()).sum()

    found = []
    for call in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaves = [t.detach().cuda().requires_grad_() for t in x[:6]]
        call(*leaves).backward()
        found.append([t.grad for t in leaves])
    for eager, compiled in zip(*found, strict=True):
        assert (eager - compiled).norm() < 1e-4 * eager.norm()


@needs_cuda
def test_cuda_large_and_degenerate_gaussians() -> None:
    x = inputs()
    x[2][:10] *= 100
    x[0][10] = float("nan")
    x[2][11] = float("inf")
    x[3][12] = 0
    image, again = (rasterization(*(t.cuda() for t in x), 900, 700)[0] for _ in range(2))
    assert torch.equal(image, again)
    assert (image.cpu() - rasterization(*x, 900, 700)[0]).abs().mean() < 1e-4


@needs_cuda
@pytest.mark.parametrize("plane", [False, True])
@pytest.mark.parametrize("count", [200, 700, 1500, 12000, 13000])
def test_cuda_long_lists_and_equal_depths(count: int, plane: bool) -> None:
    a = scene(np.random.default_rng(0), count, 20, 20, focal=20.0)
    a["opacities"] *= 0.05
    if plane:
        a["means"][:, 2] = 0
    else:
        a["means"][::3, 2] = a["means"][1::3, 2][: len(a["means"][::3])].mean()
    names = ("means", "quats", "scales", "opacities", "colors", "viewmats", "Ks")
    x = [torch.from_numpy(a[k][0] if k == "colors" else a[k]) for k in names]
    image, again = (rasterization(*(t.cuda() for t in x), 20, 20)[0] for _ in range(2))
    assert torch.equal(image, again)
    assert (image.cpu() - rasterization(*x, 20, 20)[0]).abs().mean() < 1e-5


@needs_cuda
def test_cuda_picture_of_more_tiles_than_a_block_counts() -> None:
    x = inputs()
    x[6][:, :2] *= 28
    image, again = (rasterization(*(t.cuda() for t in x), 2570, 2560)[0] for _ in range(2))
    assert torch.equal(image, again)
    assert image[:, 1800:].abs().max() > 0
    assert (image.cpu() - rasterization(*x, 2570, 2560)[0]).abs().mean() < 1e-4


@needs_cuda
def test_cuda_nothing_to_draw() -> None:
    x = inputs("cuda")
    nothing = [t[:0] for t in x[:5]]
    assert rasterization(*nothing, *x[5:], 90, 70)[1].abs().max() == 0
    behind = [x[0] - torch.tensor([0.0, 0.0, 50.0], device="cuda"), *x[1:]]
    assert rasterization(*behind, 90, 70)[1].abs().max() == 0


@needs_cuda
def test_cuda_other_stream() -> None:
    expected = rasterization(*inputs("cuda"), 90, 70)[0]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        image = rasterization(*inputs("cuda"), 90, 70)[0]
    stream.synchronize()
    assert torch.equal(image, expected)


@needs_cuda
@pytest.mark.parametrize("count", [100, 900, 3000, 9000, 20000])
def test_cuda_sorts_lists_of_any_length(count: int) -> None:
    """All Gaussians reach the one tile, a third of them have one depth, and red tells the depth."""
    rng = np.random.default_rng(0)
    a = scene(rng, count, 16, 16, focal=16.0)
    a["means"] = (a["means"] * 0.2).astype(np.float32)
    a["means"][: count // 3, 2] = 0.01
    a["colors"][0, :, 0] = 2.5 * a["means"][:, 2] + 0.5
    a["scales"][:] = 2
    a["opacities"] = rng.uniform(0.005, 4 / count + 0.006, count).astype(np.float32)
    names = ("means", "quats", "scales", "opacities", "colors", "viewmats", "Ks")
    x = [torch.from_numpy(a[k][0] if k == "colors" else a[k]) for k in names]
    expected, _, _ = rasterization(*x, 16, 16)
    for _ in range(3):  # what a call does depends on what earlier ones saw
        image, _, _ = rasterization(*(t.cuda() for t in x), 16, 16)
        assert (image.cpu() - expected).norm() <= 2e-3 * expected.norm()  # some alphas lie at 1/255


@needs_cuda
def test_cuda_graph_holds_a_step() -> None:
    x, weights = with_channels(3)
    leaves, K, weights = [t.detach().cuda().requires_grad_() for t in x[:6]], x[6].cuda(), weights.cuda()

    def step() -> Any:
        return torch.autograd.grad((rasterization(*leaves, K, 90, 70)[0] * weights).sum(), leaves)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held = step()
    with torch.no_grad():
        leaves[0] += 0.01
    graph.replay()
    for found, expected in zip(held, step(), strict=True):
        assert (found - expected).norm() <= 1e-4 * expected.norm()


@needs_cuda
@pytest.mark.parametrize("channels", [1, 3, 4, 5, 16, 32, 33, 64, 160])
def test_cuda_float16(channels: int) -> None:
    x, _ = with_channels(channels)
    x[5], x[6] = x[5][:1], x[6][:1]
    expected, alphas, _ = rasterization(*x, 90, 70)
    found, found_alphas, _ = rasterization(*(t.cuda() for t in x), 90, 70, precision="float16")
    assert found.dtype == torch.float16
    assert found_alphas.dtype == torch.float32
    difference = (found.cpu().float() - expected).abs()
    assert difference.mean() < 5e-4
    assert difference.quantile(0.999) < 1.5e-3  # a pixel on the border of a Gaussian may fall on either side
    assert (found_alphas.cpu() - alphas).abs().mean() < 1e-5
    with pytest.raises(NotImplementedError, match="float16 has no gradient"):
        rasterization(x[0].cuda().requires_grad_(), *(t.cuda() for t in x[1:]), 90, 70, precision="float16")


def test_float16_is_for_cuda() -> None:
    with pytest.raises(NotImplementedError, match="precision='float16' is for CUDA"):
        rasterization(*inputs(), 90, 70, precision="float16")
    with pytest.raises(ValueError, match="argument 'precision' must be one of float32, float16"):
        rasterization(*inputs(), 90, 70, precision="bfloat16")
