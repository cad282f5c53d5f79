"""The torch operator: opcheck, torch.compile, the reference in torch, the refusal of gradients, and CUDA."""

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


def test_opcheck() -> None:
    from core_splatting.torch_ops import rasterize

    x = inputs()
    torch.library.opcheck(rasterize, (*x[:4], x[4][None], *x[5:], None, 90, 70, 0.01, 1e10, 0.0, 0.3, 0.999))


def test_compile() -> None:
    compiled = torch.compile(lambda *x: rasterization(*x, 90, 70)[0] * 2, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs()), rasterization(*inputs(), 90, 70)[0] * 2)


def test_gradient_is_refused() -> None:
    x = inputs()
    x[0].requires_grad_()
    with pytest.raises((RuntimeError, NotImplementedError, ValueError), match="grad"):
        rasterization(*x, 90, 70)
    with torch.no_grad():
        rasterization(*x, 90, 70)


@needs_cuda
@pytest.mark.parametrize("mode", ["RGB", "RGB+ED"])
def test_cuda_equals_cpu(mode: str) -> None:
    image, alphas, _ = rasterization(*inputs("cuda"), 90, 70, render_mode=mode)
    expected, expected_alphas, _ = rasterization(*inputs(), 90, 70, render_mode=mode)
    assert (image.cpu() - expected).abs().mean() < 1e-4
    assert (alphas.cpu() - expected_alphas).abs().mean() < 1e-5


@needs_cuda
@pytest.mark.parametrize("channels", [1, 3, 4, 7, 16, 32, 33, 70])
def test_cuda_channels(channels: int) -> None:
    x, y = inputs("cuda"), inputs()
    color = torch.rand(300, channels, generator=torch.Generator().manual_seed(0))
    x[4], y[4] = color.cuda(), color
    assert (rasterization(*x, 90, 70)[0].cpu() - rasterization(*y, 90, 70)[0]).abs().mean() < 1e-5


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
